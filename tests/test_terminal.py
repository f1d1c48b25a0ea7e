"""What a person's screen, locale, pipes and keyboard do to the program: nothing bad."""
import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import socket
import struct
import subprocess
import termios
import time

import pytest

from conftest import Terminal, http_reply, in_turn, wait_until

KEY = "scripto_fromthetests"
HOSTILE = {
    "ansi": "\x1b[2J\x1b]0;owned\x07",
    "c1": "\x9b31m\x90q\x85",
    "return": "harmless\rfake",
    "newline": "one\n✓ Signed in\r\ntwo\x0b\x0c",
    "bidi": "\u202egpj.exe\u202d\u2066\u2069\u200f",
    "nul": "\0\b\x7f",
    "separator": "\u2028\u2029",
    "tag": "\U000e0041\ufeff\u200b",
    "surrogate": "\ud800",
}
ALL_HOSTILE = "".join(HOSTILE.values())
TYPED_HOSTILE = ALL_HOSTILE.replace("\0", "").replace("\ud800", "")  # what argv can hold
SELECT_GRAPHIC = re.compile(r"\x1b\[(?:0|3[1-6])m")  # the only escapes that are our own


def assert_harmless(text):
    for line in text.split("\n"):
        assert line.isprintable(), ascii(line)


def fake_user(text):
    return http_reply({"user": {"id": text, "email": text, "name": text}})


def failure(**error):
    return http_reply({"success": False, "error": dict({"code": "odd"}, **error)}, 400)


@pytest.fixture
def hostile_file(newest):
    """A profile file in which every text is hostile but the keys."""
    profile = {"apiKey": KEY, "email": ALL_HOSTILE, "name": ALL_HOSTILE, "baseUrl": ALL_HOSTILE}
    state = {"activeProfile": ALL_HOSTILE, "profiles": {ALL_HOSTILE: profile, "you": profile}}
    newest.write_config(state)
    return newest


# ---- Strings from outside ------------------------------------------------------


@pytest.mark.parametrize("kind", HOSTILE)
def test_backend_message_and_next_action_cannot_steer_the_screen(newest, raw_server, kind):
    text = "a%sb" % HOSTILE[kind]
    url = raw_server(failure(message=text, nextAction=text)).url
    words = ["auth", "login-request", "--email", "you@example.com", "--api-url", url]
    run = newest.run(*words)
    assert_harmless(run.err)
    assert run.err.count("\n") == 2 and run.out == ""


def test_json_carries_backend_message_and_next_action_verbatim(scripto, raw_server):
    url = raw_server(failure(message=ALL_HOSTILE, nextAction=ALL_HOSTILE)).url
    words = ["whoami", "--api-key", KEY, "--api-url", url]
    run = scripto.run(*words, "--json")
    assert run.error["message"] == run.error["nextAction"] == ALL_HOSTILE
    assert run.out_bytes.isascii()
    assert_harmless(scripto.run(*words).err)


def test_a_hostile_code_and_retry_header_cannot_either(newest, raw_server):
    reply = http_reply({}, 429, "Retry-After: \x1b[2J5\u0085")
    for answer in (reply, failure(code=ALL_HOSTILE, message="m")):
        url = raw_server(answer).url
        run = newest.run("whoami", "--api-key", KEY, "--api-url", url)
        assert run.status != 0
        assert_harmless(run.err)


def test_whose_key_it_is_cannot_steer_the_screen(scripto, raw_server):
    words = ["whoami", "--api-key", KEY, "--api-url", raw_server(fake_user(ALL_HOSTILE)).url]
    human, machine = scripto.run(*words), scripto.run(*words, "--json")
    assert_harmless(human.out)
    assert set(machine.data["user"].values()) == {ALL_HOSTILE}
    assert machine.out_bytes.isascii()


def test_what_a_sign_in_brought_stays_harmless_later(scripto, raw_server):
    data = {"apiKey": KEY, "email": ALL_HOSTILE, "userId": ALL_HOSTILE, "keyId": ALL_HOSTILE}
    url = raw_server(http_reply({"success": True, "data": data})).url
    words = ["--email", "you@example.com", "--code", "123456", "--api-url", url]
    signed_in = scripto.run("auth", "login-complete", *words)
    assert signed_in.status == 0
    assert_harmless(signed_in.out)
    assert_harmless(scripto.run("use").out)
    assert scripto.run("use", "--json").data["profiles"][0]["email"] == ALL_HOSTILE


@pytest.mark.parametrize("words", [
    "use", "use you", "config show", "whoami", "auth token", "logout", "config clear --all --yes",
    "config clear --all", "logout nobody", "doctor", "config set --api-key scripto_new",
    "whoami --profile nobody", "auth login-request --email you@example.com",
])  # fmt: skip
def test_profile_file_content_cannot_steer_the_screen(hostile_file, words):
    run = hostile_file.run(*words.split())
    assert_harmless(run.out + run.err)


def test_json_carries_profile_file_content_verbatim(hostile_file):
    run = hostile_file.run("use", "--json")
    assert run.data["profiles"][0]["name"] == run.data["activeProfile"] == ALL_HOSTILE
    assert run.data["profiles"][0]["email"] == ALL_HOSTILE
    assert run.out_bytes.isascii()


@pytest.mark.parametrize("words", [
    ["auth", "login-request", "--email", TYPED_HOSTILE],
    ["auth", "login-complete", "--email", "you@example.com", "--code", TYPED_HOSTILE],
    ["auth", "login-complete", "--email", "you@example.com", "--code", "123456",
     "--name", TYPED_HOSTILE],
    ["whoami", "--api-url", TYPED_HOSTILE],
    ["whoami", "--api-key", TYPED_HOSTILE],
    ["whoami", "--" + TYPED_HOSTILE],
    ["use", TYPED_HOSTILE],
    ["use", "you", TYPED_HOSTILE],
    ["serve", "--mail", TYPED_HOSTILE + ":x"],
    ["serve", "--port", TYPED_HOSTILE],
    [TYPED_HOSTILE],
    ["auth", TYPED_HOSTILE],
])  # fmt: skip
def test_a_refused_argument_is_quoted_harmlessly(newest, words):
    run = newest.run(*words)
    assert run.status in (1, 2) and run.err.count("\n") == 2
    assert_harmless(run.err)


@pytest.mark.parametrize("name", [
    "SCRIPTO_API_BASE_URL", "SCRIPTO_API_KEY", "SCRIPTO_TIMEOUT", "XDG_CONFIG_HOME", "HOME",
])  # fmt: skip
def test_the_environment_cannot_steer_the_screen(newest, tmp_path, name):
    value = TYPED_HOSTILE
    if name in ("XDG_CONFIG_HOME", "HOME"):
        value = "%s/%s" % (tmp_path, TYPED_HOSTILE.replace("/", ""))
    run = newest.run("config", "show", env={name: value})
    assert_harmless(run.out + run.err)
    whoami = ["whoami", "--api-url", "http://127.0.0.1:1"]
    assert_harmless(newest.run(*whoami, env={"SCRIPTO_API_KEY": KEY, name: value}).err)


def test_a_request_cannot_steer_the_screen_of_the_backend(start_backend):
    backend = start_backend(mail="console")
    lines = b"GET /\x1b[2J\x9b31m?\x1b]0;x\x07 HTTP/1.1\r\nHost: \x1b[1m\r\nUser-Agent: \x1b[2m\r\n"
    with socket.create_connection(("127.0.0.1", int(backend.port)), 10) as connection:
        connection.sendall(lines + b"Connection: close\r\n\r\n")
        assert connection.recv(100)
    wait_until(lambda: " GET " in backend.log() or " 4" in backend.log(), what="a log line")
    assert_harmless(backend.log())


# ---- Colour --------------------------------------------------------------------


def test_marks_are_coloured_on_a_terminal(scripto):
    terminal = Terminal(scripto, "config", "set", "--api-key", KEY, env={"TERM": "xterm"})
    assert terminal.end() == 0
    assert re.search("\x1b\\[32m✓\x1b\\[0m Key stored", terminal.screen)


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
@pytest.mark.parametrize("words", ["config set --api-key " + KEY, "use nobody", "frobnicate"])
def test_no_colour_where_it_is_not_wanted(newest, env, words):
    terminal = Terminal(newest, *words.split(), env=dict({"TERM": "xterm"}, **env))
    terminal.end()
    assert re.search("[✓✗]", terminal.screen) and "\x1b" not in terminal.screen


def test_each_stream_is_asked_whether_it_is_a_terminal(scripto):
    """A success in a pipe is plain although errors would be coloured."""
    env = {"TERM": "xterm", "FORCE_COLOR": "1", "CLICOLOR_FORCE": "1"}
    success = Terminal(scripto, "config", "set", "--api-key", KEY, streams=["stderr"], env=env)
    assert success.end() == 0 and success.out.startswith("✓ Key stored")
    assert "\x1b" not in success.out + success.screen
    error = Terminal(scripto, "use", "nobody", streams=["stderr"], env=env)
    assert error.end() == 1 and "\x1b[31m✗" in error.screen


def test_json_is_never_coloured(newest):
    terminal = Terminal(newest, "use", "nobody", "--json", env={"TERM": "xterm"})
    assert terminal.end() == 1
    assert json.loads(terminal.screen)["error"]["code"] == "not-found"


def test_only_our_own_colours_reach_a_terminal(hostile_file):
    for words in ("use", "config show", "whoami"):
        terminal = Terminal(hostile_file, *words.split(), env={"TERM": "xterm"})
        terminal.end()
        assert SELECT_GRAPHIC.search(terminal.screen)
        plain = SELECT_GRAPHIC.sub("", terminal.screen.replace("\r\n", "\n"))
        assert_harmless(plain)


@pytest.mark.parametrize("columns", ["", "abc", "-5", "1", "99999999", "²"])
def test_no_width_of_the_screen_is_too_odd(newest, columns):
    run = newest.run("auth", "login-complete", "--help", env={"COLUMNS": columns})
    assert run.status == 0 and "--email" in run.out
    assert max(map(len, run.out.splitlines())) <= 110


# ---- Locales -------------------------------------------------------------------

PLAIN = {"PYTHONIOENCODING": None, "LC_ALL": None, "LANG": None}
LOCALES = {
    "none": (PLAIN, "utf-8"),
    "C": (dict(PLAIN, LC_ALL="C"), "utf-8"),
    "POSIX": (dict(PLAIN, LC_ALL="POSIX", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"), "ascii"),
    "ascii": ({"PYTHONIOENCODING": "ascii"}, "ascii"),
    "cp1252": ({"PYTHONIOENCODING": "cp1252"}, "cp1252"),
}


@pytest.fixture(params=LOCALES)
def locale(request):
    """(environment, the encoding that output has in it)."""
    return LOCALES[request.param]


def test_no_locale_makes_the_program_crash(scripto, locale):
    env, encoding = locale
    scripto.write_config({"profiles": {"zoë": {"email": "zoë☃@example.com", "apiKey": "x"}}})
    words = ["config set --api-key " + KEY, "use", "doctor --api-url http://127.0.0.1:1"]
    for each in words:
        run = scripto.run(*each.split(), env=env)
        assert run.status in (0, 1), run.err
        assert (run.out_bytes + run.err_bytes).decode(encoding).strip()


@pytest.mark.parametrize("name", ["POSIX", "cp1252"])
def test_marks_have_an_ascii_form_where_the_encoding_lacks_them(scripto, name):
    env, encoding = LOCALES[name]
    scripto.run("config", "set", "--api-key", KEY, env=env)
    runs = [scripto.run(*words.split(), env=env) for words in ("use", "use x")]
    text = b"".join(run.out_bytes + run.err_bytes for run in runs).decode(encoding)
    assert text.isascii() and "\\u" not in text and "?" not in text
    assert "default" in text


def test_marks_are_themselves_where_the_encoding_has_them(scripto):
    scripto.run("config", "set", "--api-key", KEY)
    assert "● default" in scripto.run("use").out
    assert scripto.run("use", "nobody").err.startswith("✗ ")


@pytest.mark.parametrize("name", ["C", "POSIX", "cp1252"])
def test_non_ascii_file_content_survives_any_locale(scripto, name):
    env = LOCALES[name][0]
    state = {"activeProfile": "a", "profiles": {"a": {"email": "zoë☃@x.org", "n": "ü"}, "b": {}}}
    scripto.write_config(json.dumps(state, ensure_ascii=False))
    assert scripto.run("use", "--json", env=env).data["profiles"][0]["email"] == "zoë☃@x.org"
    assert scripto.run("use", "b", env=env).status == 0
    assert scripto.state() == dict(state, activeProfile="b")


@pytest.mark.parametrize("words", [
    ["auth", "login-request", "--email", b"\xff@a.org", "--api-url", "http://127.0.0.1:1"],
    ["use", b"zo\xeb"],
    ["whoami", b"--\xc3"],
    ["whoami", b"--json=\xff"],
], ids=lambda words: words[0])  # fmt: skip
def test_bytes_that_are_no_text_are_refused(scripto, words):
    run = scripto.run(*words, "--json", env=LOCALES["POSIX"][0])
    assert run.status == 2 and run.out_bytes.isascii()


# ---- Streams -------------------------------------------------------------------

ANSWERS = ["--help", "use", "use --json", "use --help", "auth token --api-key " + KEY,
           "config set --json --api-key " + KEY, "serve --port 0"]  # fmt: skip


def broken_pipe():
    """The writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@in_turn("words", ANSWERS)
def test_a_closed_pipe_ends_quietly(scripto, words):
    writer = broken_pipe()
    run = scripto.run(*words.split(), stdout=writer)
    os.close(writer)
    assert run.err == ""


def test_a_reader_that_leaves_half_way_hears_no_more(scripto):
    scripto.write_config({"profiles": {"p%d" % n: {"email": "x" * 90} for n in range(9999)}})
    process = scripto.start("use")
    assert b"p0" in process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(20) != 0
    process.stdin.close(), process.stderr.close()


@pytest.mark.parametrize("words", ANSWERS + ["use nobody --json"])
def test_a_full_disk_under_standard_output_is_an_error(newest, words):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with open("/dev/full", "wb") as full:
        run = newest.run(*words.split(), stdout=full)
    assert run.status in (1, 4) and run.err.startswith("✗ ") and run.err.count("\n") == 2


@pytest.mark.parametrize("target", ["/dev/full", "closed pipe"])
@pytest.mark.parametrize("words, status", [("use", 0), ("use nobody", 1), ("frobnicate", 2)])
def test_a_standard_error_that_takes_nothing_changes_nothing(newest, target, words, status):
    newest.write_config({"profiles": {"a": {}}}, 0o644)  # which makes for a warning
    writer = broken_pipe() if target == "closed pipe" else os.open(target, os.O_WRONLY)
    run = newest.run(*words.split(), stderr=writer)
    os.close(writer)
    assert run.status == status and ("a" in run.out) is (status == 0)


NAMES = ("stdin", "stdout", "stderr")


def closing(*numbers):
    """The arguments for a start of which those streams are closed, as by >&- in a shell."""
    popen = {NAMES[number]: None for number in numbers}
    return dict(popen, preexec_fn=lambda: [os.close(number) for number in numbers])


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (1, 2), (0, 1, 2)], ids=str)
def test_closed_streams_neither_crash_it_nor_send_output_astray(scripto, closed):
    """What is opened next gets the number of what is closed: the profile file, for one."""
    run = scripto.run("config", "set", "--api-key", KEY, **closing(*closed))
    assert run.status == (1 if 1 in closed else 0)
    assert scripto.state()["profiles"]["default"]["apiKey"] == KEY
    before = scripto.config.read_bytes()
    assert scripto.run("use", "--json", **closing(*closed)).status == (1 if 1 in closed else 0)
    assert scripto.run("use", "nobody", **closing(*closed)).status == 1
    assert scripto.config.read_bytes() == before


def test_closed_standard_input_is_an_empty_one(scripto):
    for words in (["config", "set", "--api-key", "-"], ["whoami", "--api-key", "-"],
                  ["auth", "login-complete", "--email", "a@b.c", "--code", "-"]):  # fmt: skip
        assert scripto.run(*words, "--json", **closing(0)).error["code"] == "invalid-argument"
    scripto.write_config({"profiles": {"a": {}}})
    assert scripto.run("config", "clear", "--all", "--json", **closing(0)).status == 2
    assert scripto.state()["profiles"] == {"a": {}}


def test_unreadable_standard_input_is_a_clear_error(scripto):
    """As after `0>file`, or for a job in the background whose terminal went away."""
    for words in (["config", "set", "--api-key", "-"], ["whoami", "--api-key", "-"]):
        with open(os.devnull, "wb") as for_writing:
            error = scripto.run(*words, "--json", stdin=for_writing).error
        assert error["code"] in ("invalid-argument", "failed-precondition"), error


@pytest.mark.slow
def test_a_backend_with_closed_streams_keeps_its_database(newest, tmp_path):
    mail, db = tmp_path / "mail", tmp_path / "newest.db"
    server = newest.start("serve", "--port", "0", "--mail", "maildir:%s" % mail, "--db", str(db),
                           **closing(0, 2))  # fmt: skip
    url = server.stdout.readline().decode().split()[-1]
    words = ["auth", "login-request", "--email", "you@example.com", "--api-url", url]
    assert [newest.run(*words).status for _ in range(3)] == [0] * 3
    server.terminate()
    assert server.wait(20) == 0
    server.stdout.close()
    assert len(list((mail / "new").iterdir())) == 3
    assert db.read_bytes().startswith(b"SQLite format 3\0")
    assert b"login-request" not in db.read_bytes()


@pytest.mark.slow
def test_the_demo_needs_no_stream_but_its_output(newest):
    run = newest.run("demo", **closing(0, 2))
    assert run.status == 0 and "✓ Signed in" in run.out


# ---- The keyboard --------------------------------------------------------------


def interrupt_when(process, condition, number=signal.SIGINT):
    """Ctrl-C, or so, sent when the program is where it should be; (status, out, err)."""
    wait_until(condition, what="the program to get there")
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    out, err = (out or b"").decode(), err.decode()
    assert "Traceback" not in out + err, err
    return process.returncode, out, err


PROMPTS = [
    ("config set --api-key -", "API key: "),
    ("whoami --api-key -", "API key: "),
    ("auth login-complete --email you@example.com --code -", "Code: "),
    ("config clear --all", "[y/N] "),
]


@pytest.mark.parametrize("words, prompt", PROMPTS)
def test_ctrl_c_at_a_prompt(scripto, words, prompt):
    scripto.write_config({"profiles": {"a": {"apiKey": KEY}}})
    before = scripto.config.read_bytes()
    terminal = Terminal(scripto, *words.split())
    terminal.wait_for(prompt)
    terminal.type("\x03")
    wait_until(lambda: terminal.read() is not None and terminal.process.poll() is not None)
    assert terminal.echoes()
    assert terminal.end() == 130 and "✗" in terminal.screen
    assert scripto.config.read_bytes() == before


@pytest.mark.parametrize("words, prompt", PROMPTS)
def test_the_end_of_input_at_a_prompt_changes_nothing(newest, words, prompt):
    newest.write_config({"profiles": {"a": {"apiKey": KEY}}})
    terminal = Terminal(newest, *words.split())
    terminal.wait_for(prompt)
    terminal.type("\x04")
    assert terminal.end() in (2, 130)
    assert newest.state()["profiles"] == {"a": {"apiKey": KEY}}


def test_a_key_that_is_typed_is_not_shown(scripto):
    terminal = Terminal(scripto, "config", "set", "--api-key", "-")
    terminal.wait_for("API key: ")
    assert not terminal.echoes()
    terminal.type(KEY + "\n")
    assert terminal.end() == 0 and KEY not in terminal.screen
    assert scripto.state()["profiles"]["default"]["apiKey"] == KEY


def test_a_key_that_is_typed_in_another_encoding_is_refused(scripto):
    terminal = Terminal(scripto, "config", "set", "--api-key", "-", env=LOCALES["C"][0])
    terminal.wait_for("API key: ")
    terminal.type(b"scripto_\xe9\xff\n")
    assert terminal.end() == 2, terminal.screen


def test_prompts_stay_out_of_standard_output(newest):
    newest.write_config({"profiles": {"a": {"apiKey": KEY}}})
    words = ["config", "clear", "--all", "--json"]
    terminal = Terminal(newest, *words, streams=["stdin", "stderr"])
    terminal.wait_for("[y/N] ")
    terminal.type("y\n")
    assert terminal.end() == 0
    assert json.loads(terminal.out)["data"]["removed"] == ["a"]


def test_a_prompt_quotes_names_harmlessly(hostile_file):
    terminal = Terminal(hostile_file, "config", "clear", "--all", env={"NO_COLOR": "1"})
    terminal.wait_for("[y/N] ")
    assert_harmless(terminal.screen.replace("\r\n", "\n"))
    terminal.type("n\n")
    assert terminal.end() == 130


def test_ctrl_c_while_reading_standard_input(scripto):
    for words in (["config", "set", "--api-key", "-"], ["whoami", "--api-key", "-", "--json"]):
        reader, writer = os.pipe()
        os.write(writer, b"scripto_half")
        process = scripto.start(*words, stdin=reader)
        status, out, err = interrupt_when(process, lambda: unread(reader) == 0)
        os.close(reader), os.close(writer)
        assert status == 130 and ("cancelled" in out or err.startswith("✗ "))


def unread(descriptor):
    """How many bytes wait in a pipe."""
    return struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * 4))[0]


def test_ctrl_c_while_nobody_reads_the_answer(scripto):
    scripto.write_config({"profiles": {"p%d" % n: {"email": "x" * 90} for n in range(9999)}})
    reader, writer = os.pipe()
    process = scripto.start("use", stdout=writer)
    status, _, _ = interrupt_when(process, lambda: unread(reader) >= 65536)
    os.close(reader), os.close(writer)
    assert status == 130


def test_a_second_signal_ends_what_is_stuck(newest):
    """Here nobody reads the envelope either, which the first one leads to."""
    newest.write_config({"profiles": {"p%d" % n: {"email": "x" * 90} for n in range(9999)}})
    reader, writer = os.pipe()
    process = newest.start("use", "--json", stdout=writer)
    wait_until(lambda: unread(reader) >= 65536, what="a full pipe")
    end = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < end:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    process.communicate()
    os.close(reader), os.close(writer)
    assert process.returncode == -signal.SIGTERM


ENDS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.parametrize("number, expected", ENDS)
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=str)
@pytest.mark.parametrize("words", [
    "whoami --api-key " + KEY, "auth login-complete --email you@example.com --code 123456",
])  # fmt: skip
def test_a_signal_while_waiting_for_the_backend(newest, raw_server, words, flags, number, expected):
    silent = raw_server(lambda connection: connection.recv(1))
    process = newest.start(*words.split(), "--api-url", silent.url, *flags)
    status, out, err = interrupt_when(process, lambda: silent.requests, number)
    assert status == expected
    if flags:
        error = json.loads(out)["error"]
        assert (error["code"], err) == ("cancelled", "") and error["nextAction"]
    else:
        assert out == "" and err.startswith("✗ ") and err.count("\n") == 2


def test_a_signal_that_is_ignored_stays_so(newest, raw_server):
    """As nohup(1) does for SIGHUP."""
    asked = raw_server(http_reply({"user": {"id": "user_1"}}))
    silent = raw_server(lambda connection: connection.recv(1))
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    process = newest.start("whoami", "--api-key", KEY, "--api-url", silent.url, **ignore)
    wait_until(lambda: silent.requests)
    process.send_signal(signal.SIGHUP)
    assert newest.run("whoami", "--api-key", KEY, "--api-url", asked.url).status == 0
    assert process.poll() is None
    process.kill()
    process.communicate()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_ctrl_c_while_waiting_for_the_profile_file(scripto):
    scripto.write_config({"profiles": {"a": {}}})
    before, lock = scripto.config.read_bytes(), str(scripto.config) + ".lock"
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = scripto.start("config", "set", "--api-key", KEY)
        folder = "/proc/%d/fd" % process.pid
        status, _, _ = interrupt_when(process, lambda: lock in opened(folder))
    assert status == 130 and scripto.config.read_bytes() == before


def opened(folder):
    """The files that a process has open."""
    paths = []
    for name in os.listdir(folder):
        try:
            paths.append(os.readlink(os.path.join(folder, name)))
        except OSError as error:
            assert error.errno == errno.ENOENT
    return paths


@pytest.mark.slow
def test_ctrl_c_during_the_demo_leaves_nothing_behind(newest, tmp_path):
    folder = tmp_path / "tmp"
    folder.mkdir()
    process = newest.start("demo", env={"TMPDIR": str(folder)}, start_new_session=True)
    wait_until(lambda: list(folder.glob("*/mail/new/*")), what="the demo's mail")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130 and b"Traceback" not in out + err, err
    assert list(folder.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
