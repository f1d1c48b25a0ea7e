"""Every Python, with less than a whole library too; ways to start the program; its own faults."""
import json
import os
import pathlib
import re
import shutil
import subprocess
import time
import zipapp

import pytest

import conftest
from client import KEY, NOWHERE, complete, some_state
from conftest import PROGRAM, Backend, Scripto, http_reply, in_turn, wait_until

USER = http_reply({"user": {"id": "user_1", "email": "you@example.com", "name": ""}})
RUNNER = """
import os, runpy, sys

class Lacking:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in %(modules)r:
            raise ModuleNotFoundError("No module named %%r" %% name, name=name)

for name in %(modules)r:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Lacking)
for name in %(functions)r:
    delattr(os, name)
if not hasattr(os, "geteuid"):  # Windows says of every file that it is user 0's
    fstat = os.fstat
    os.fstat = lambda file: os.stat_result([*fstat(file)[:4], 0, *fstat(file)[5:]])
class msvcrt:  # what Windows has instead of fcntl
    LK_NBLCK = 2
    locking = staticmethod(lambda *_: None)

sys.modules["msvcrt"] = msvcrt
runpy.run_path(%(program)r, run_name="__main__")
"""
WINDOWS = ["fcntl", "pwd", "grp", "termios", "resource"]
NOT_ON_WINDOWS = ["fchmod", "geteuid", "getuid", "O_NONBLOCK"]


@pytest.fixture
def without(tmp_path):
    """without("ssl", ...) is a file that runs the program where those modules are missing."""

    def make(*modules, functions=()):
        path = tmp_path / ("without-%s.py" % "-".join(modules))
        values = {"modules": modules, "functions": functions, "program": PROGRAM}
        path.write_text(RUNNER % values)
        return str(path)

    return make


# ---- Flags of the interpreter ----


def test_isolated_and_without_site_everywhere(python, tmp_path):
    scripto, flags = Scripto(python, tmp_path / "home"), ["-I", "-S"]
    assert scripto.run("--version", flags=flags).out.startswith("scripto ")
    assert scripto.run("config", "set", "--api-key", KEY, flags=flags).status == 0
    assert scripto.run("auth", "token", flags=flags).out == KEY + "\n"


@pytest.mark.parametrize("flags", [["-I", "-S"], ["-OO", "-bb", "-W", "error"]], ids=" ".join)
@pytest.mark.slow
def test_a_sign_in_works_under_any_flag(scripto, backend, flags):
    words = ["--email", "you@example.com", "--api-url", backend.url]
    assert scripto.run("auth", "login-request", *words, flags=flags).status == 0
    code = backend.code_for("you@example.com")
    run = scripto.run("auth", "login-complete", *words, "--code", code, flags=flags)
    assert run.status == 0, run.err
    run = scripto.run("whoami", flags=flags)
    assert run.status == 0 and run.err == ""


@pytest.mark.parametrize("flags", [["-I"], ["-S"]], ids=" ".join)
@pytest.mark.slow
def test_a_backend_works_under_any_flag(newest, tmp_path, flags):
    server = newest.start("serve", "--port", "0", "--db", str(tmp_path / "db"), flags=flags)
    assert server.stdout.readline().startswith(b"listening on http://127.0.0.1:")
    server.terminate()
    server.communicate(timeout=20)
    assert server.returncode == 0


# ---- Modules taken away ----

HTTP, HTTPS = " --api-url http://127.0.0.1:1", " --api-url https://127.0.0.1:1"
SERVE = "serve --port 0 --db DB"
NEEDS = [  # (what is missing, as which name it is told, a command that cannot do without)
    ("ssl", "ssl", "whoami --api-key K" + HTTPS),
    ("_ssl", "ssl", "whoami --api-key K" + HTTPS),
    ("_ssl", "ssl", "auth login-request --email you@example.com" + HTTPS),
    ("_ssl", "ssl", SERVE + " --tls-cert x --tls-key y"),
    ("_ssl", "ssl", SERVE + " --mail smtps://127.0.0.1:1"),
    ("sqlite3", "sqlite3", SERVE),
    ("_sqlite3", "sqlite3", SERVE),
    ("http.client", "http.client", "whoami --api-key K" + HTTP),
    ("urllib.request", "urllib.request", "whoami --api-key K" + HTTP),
    ("json", "json", "use"),
    ("json", "json", "config set --api-key K"),
]


@pytest.fixture
def lacking(newest, without, tmp_path):
    """Runs a command of the table above; returns (what it said, standard output)."""

    def run(module, words, *flags):
        words = words.replace("DB", str(tmp_path / "db")).replace("K", KEY).split()
        process = newest.start(*words, *flags, program=without(module))
        try:
            out, err = process.communicate(timeout=5)
        except subprocess.TimeoutExpired:  # it serves happily, and will find out too late
            process.kill()
            out, err = process.communicate()
        assert process.returncode == 1 and b"Traceback" not in err, err
        return (out + err).decode(), out.decode()

    return run


@pytest.mark.parametrize("module, told, words", NEEDS)
def test_what_needs_a_module_says_which_and_what_to_install(lacking, module, told, words):
    said, out = lacking(module, words)
    assert "'%s'" % told in said and "python3" in said
    assert out == "" and said.startswith("✗ ") and said.count("\n") == 2


@pytest.mark.parametrize("module, words", [
    ("_ssl", "whoami --api-key K" + HTTPS), ("sqlite3", SERVE),
])  # fmt: skip
def test_it_says_so_in_json_too(lacking, module, words):
    _, out = lacking(module, words, "--json")
    assert out.count("\n") == 1
    error = json.loads(out)["error"]
    assert error["code"] == "failed-precondition" and "python3" in error["nextAction"]


def test_without_json_it_says_so_on_standard_error(lacking):
    for words in ("use", "--version"):
        said, out = lacking("json", words, "--json")
        assert out == "" and "'json'" in said and "python3" in said


@pytest.fixture
def without_sqlite3(newest, tmp_path):
    """A machine on which no process, not even a child of a child, finds sqlite3."""
    (tmp_path / "lacking").mkdir()
    text = 'raise ModuleNotFoundError("No module named \'sqlite3\'", name="sqlite3")\n'
    (tmp_path / "lacking" / "sqlite3.py").write_text(text)
    newest.env["PYTHONPATH"] = str(tmp_path / "lacking")
    return newest


def test_the_demo_says_what_its_backend_lacks(without_sqlite3, raw_server):
    proxy = raw_server(http_reply(b"", 403))
    run = without_sqlite3.run("demo", env={"https_proxy": proxy.url})
    assert run.status == 1  # and not 3: it will not work later either
    assert "'sqlite3'" in run.err and "python3" in run.err


def test_a_demo_without_its_backend_asks_no_other(without_sqlite3, raw_server):
    """The throw-away sign-in must not end up at production."""
    proxy = raw_server(http_reply(b"", 403))
    assert without_sqlite3.run("demo", env={"https_proxy": proxy.url}).status != 0
    assert proxy.requests == []


OTHERS = ["ssl", "_ssl", "sqlite3", "_sqlite3", "http", "urllib.request", "smtplib", "mailbox",
          "email", "shlex", "difflib", "getpass", "threading", "subprocess", "tempfile",
          "hashlib", "hmac", "secrets"]  # fmt: skip


@in_turn("words", [
    "--version", "use --help", "use", "use a --json", "config set --api-key " + KEY, "logout a",
    "auth token", "config show", "config clear --all --yes",
])  # fmt: skip
def test_a_local_command_needs_none_of_the_others(scripto, without, words):
    profile = {"apiKey": KEY, "email": "you@example.com"}
    scripto.write_config({"activeProfile": "a", "profiles": {"a": profile}})
    run = scripto.run(*words.split(), program=without(*OTHERS, *WINDOWS))
    assert run.status == 0 and run.err == ""


def test_help_needs_no_json(newest, without):
    for words in ("--version", "--help", "auth --help", "auth login-request --help"):
        assert newest.run(*words.split(), program=without("json")).status == 0


def test_usage_errors_need_no_json(newest, without):
    program = without("json")
    assert newest.run("frobnicate", program=program).status == 2
    run = newest.run("auth", "login-request", "--email", "nonsense", program=program)
    assert run.status == 2 and "auth login-request" in run.err
    assert newest.run("whoami", "--frobnicate", program=program).status == 2


def test_mistakes_are_found_without_difflib(newest, without):
    for words in (["frobnicate"], ["use", "nobody"], ["whoami", "--frob"]):
        run = newest.run(*words, "--json", program=without("difflib"))
        assert run.error["code"] in ("invalid-argument", "not-found")


def test_http_on_loopback_needs_no_ssl(scripto, raw_server, without):
    words = ["whoami", "--api-key", KEY, "--api-url", raw_server(USER).url, "--json"]
    for modules in (["_ssl"], ["ssl"]):
        assert scripto.run(*words, program=without(*modules)).data["user"]["id"] == "user_1"


def test_a_whole_sign_in_needs_neither_ssl_nor_sqlite3(scripto, backend, without):
    program = without("_ssl", "_sqlite3", "sqlite3", *WINDOWS)
    words = ["--email", "you@example.com", "--api-url", backend.url]
    assert scripto.run("auth", "login-request", *words, program=program).status == 0
    words += ["--code", backend.code_for("you@example.com")]
    assert scripto.run("auth", "login-complete", *words, program=program).status == 0
    assert scripto.run("whoami", program=program).status == 0


@pytest.mark.slow
def test_a_backend_needs_no_ssl(scripto, without, tmp_path):
    server = scripto.start("serve", "--port", "0", "--db", str(tmp_path / "db"),
                           program=without("_ssl", "ssl"))  # fmt: skip
    assert server.stdout.readline().startswith(b"listening on http://")
    server.terminate()
    server.communicate(timeout=20)
    assert server.returncode == 0


def test_the_profile_file_needs_nothing_that_windows_lacks(scripto, without):
    program = without(*WINDOWS, functions=NOT_ON_WINDOWS)
    for name in ("a", "b"):
        words = ["config", "set", "--api-key", KEY + name, "--profile-name", name]
        assert scripto.run(*words, program=program).status == 0
    assert scripto.run("use", "a", program=program).status == 0
    assert scripto.run("logout", "b", program=program).status == 0
    assert list(scripto.state()["profiles"]) == ["a"] and scripto.state()["activeProfile"] == "a"
    assert scripto.config.stat().st_mode & 0o777 == 0o600
    assert not list(scripto.config.parent.glob("*.tmp"))


def test_no_home_is_told_with_the_way_out(newest, without):
    program = without("pwd")
    error = newest.run("use", "--json", program=program, env={"HOME": None}).error
    assert error["code"] == "failed-precondition"
    assert "XDG_CONFIG_HOME" in error["nextAction"] and "SCRIPTO_API_KEY" in error["nextAction"]


def test_a_key_from_the_environment_needs_no_home(newest, raw_server, without):
    env = {"HOME": None, "SCRIPTO_API_KEY": KEY, "SCRIPTO_API_BASE_URL": raw_server(USER).url}
    program = without("pwd")
    assert newest.run("auth", "token", program=program, env=env).out == KEY + "\n"
    assert newest.run("whoami", program=program, env=env).status == 0


@pytest.mark.parametrize("module, told, status", [
    ("_ssl", "- tls", 0), ("sqlite3", "! sqlite", 0), ("fcntl", "", 0), ("pwd", "", 0),
    ("json", "'json'", 1), ("http.client", "'http.client'", 1),
    ("urllib.request", "'urllib.request'", 1),
])  # fmt: skip
def test_doctor_says_what_is_missing(newest, raw_server, without, module, told, status):
    words = ["doctor", "--api-key", KEY, "--api-url", raw_server(USER).url]
    run = newest.run(*words, program=without(module))
    assert run.status == status and told in run.out + run.err


def test_doctor_finds_a_missing_ssl_broken_where_https_is_needed(newest, without):
    words = ["doctor", "--api-key", KEY, "--api-url", "https://127.0.0.1:1"]
    run = newest.run(*words, program=without("_ssl"))
    assert run.status == 1 and "✗ tls" in run.out and "python3" in run.out


def test_no_module_is_taken_from_the_folder_of_the_file(scripto, tmp_path):
    """Which may be a download folder, and what lies there anybody's."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    program = shutil.copy(PROGRAM, str(folder))
    for name in ("bisect", "email", "copy", "json", "argparse", "shlex"):
        (folder / (name + ".py")).write_text("open(%r, 'w')" % str(folder / "pwned"))
    run = scripto.run("config", "set", "--api-key", KEY, program=program, cwd=str(folder))
    assert run.status == 0 and not (folder / "pwned").exists(), run.err


# ---- What is loaded ----

NETWORK = {"http.client", "urllib.request", "socket", "ssl", "email.message", "threading"}
SERVING = {"http.server", "socketserver", "sqlite3", "smtplib", "mailbox", "hmac", "secrets",
           "subprocess", "tempfile"}  # fmt: skip
LOCAL = ["--version", "--help", "use", "config show", "config set --api-key K", "auth token",
         "config clear --all --yes", "logout"]  # fmt: skip


def loaded(newest, words, **more):
    """The modules that a run loads, by the interpreter's own account, beyond those that a machine
    has each start load."""
    def modules(*words, **more):
        run = newest.run(*words, flags=("-X", "importtime"), **more)
        assert run.status == 0 and "|" in run.err
        return {line.rpartition("|")[2].strip() for line in run.err.splitlines() if "|" in line}

    return modules(*words.replace("K", KEY).split(), **more) - modules(program="-", input=b"")


@pytest.mark.parametrize("words", LOCAL)
def test_a_local_command_loads_nothing_of_the_network_or_the_backend(newest, words):
    newest.run("config", "set", "--api-key", KEY)
    modules = loaded(newest, words)
    assert modules & (NETWORK | SERVING) == set()


@pytest.mark.parametrize("words", ["--version", "--help", ""])
def test_what_needs_no_parser_loads_next_to_nothing(newest, words):
    assert loaded(newest, words) <= {"errno"}


def test_whoami_loads_nothing_of_the_backend(newest, raw_server):
    env = {"SCRIPTO_API_BASE_URL": raw_server(USER).url}
    modules = loaded(newest, "whoami --api-key K", env=env)
    assert "http.client" in modules and modules & SERVING <= {"tempfile"}  # which urllib loads


def test_no_request_loads_a_module(newest, tmp_path):
    """Each was loaded at the start, while there are descriptors left; by the interpreter's own
    account, from the first request on."""
    words = ["serve", "--port", "0", "--db", str(tmp_path / "db")]
    words += ["--mail", "maildir:%s" % (tmp_path / "mail")]
    with open(str(tmp_path / "log"), "wb") as log:
        process = newest.start(*words, flags=("-X", "importtime"), stderr=log)
    url = process.stdout.readline().decode().split()[-1]
    site = type("Site", (), {"url": url, "request": Backend.request})()
    try:
        wait_until(lambda: "traceback" in (tmp_path / "log").read_text(), what="the start")
        before = (tmp_path / "log").read_text()
        site.request("POST", "/api/cli/login-request", {"email": "you@example.com"})
        (mail,) = (tmp_path / "mail" / "new").iterdir()
        code = re.search(r"Subject: (\d{6}) ", mail.read_text()).group(1)
        body = {"email": "you@example.com", "otp": code}
        key = site.request("POST", "/api/cli/login-complete", body)[2]["data"]["apiKey"]
        for path in ("/api/auth/me", "/api/keys", "/healthz", "/scripto.py", "/llms.txt", "/no"):
            site.request("GET", path, key=key)
        after = (tmp_path / "log").read_text()[len(before) :]
    finally:
        process.kill()
        process.communicate()
    assert after.count(" 200") == 7 and "|" not in after, after


# ---- Hosts of the program ----


def as_zip(scripto, tmp_path):
    folder, archive = tmp_path / "source", tmp_path / "scripto.pyz"
    folder.mkdir()
    (folder / "scripto.py").write_bytes(pathlib.Path(conftest.PROGRAM).read_bytes())
    zipapp.create_archive(str(folder), str(archive), main="scripto:main")
    return {"program": str(archive)}


def as_link(scripto, tmp_path):
    (tmp_path / "scripto").symlink_to(conftest.PROGRAM)
    return {"program": str(tmp_path / "scripto")}


def as_module(scripto, tmp_path):
    return {"flags": ["-m"], "program": "scripto", "cwd": os.path.dirname(conftest.PROGRAM)}


def as_package(scripto, tmp_path):
    """As `pip install` leaves it: in site-packages, with a start of its own."""
    start = tmp_path / "start"
    start.write_text("import sys\nfrom scripto import main\nsys.exit(main())\n")
    scripto.env["PYTHONPATH"] = os.path.dirname(conftest.PROGRAM)
    return {"program": str(start)}


@pytest.mark.parametrize("way", (as_zip, as_link, as_module, as_package))
@pytest.mark.slow
def test_every_way_to_start_it_behaves_alike(scripto, tmp_path, way):
    start = way(scripto, tmp_path)
    usual = Scripto(scripto.python, tmp_path / "usual")
    for words in (["auth", "token"], ["config", "set", "--api-key", KEY], ["auth", "token"],
                  ["--version"], ["nonsense"], ["whoami", "--help"]):
        ours, theirs = scripto.run(*words, **start), usual.run(*words)
        assert (ours.status, ours.out) == (theirs.status, theirs.out), words
        assert ours.err.replace(str(scripto.home), "") == theirs.err.replace(str(usual.home), "")


@pytest.mark.slow
def test_an_output_that_is_full_for_now_is_waited_for(newest):
    """A pipe that does not block, and is not read from: it sleeps, and loses nothing."""
    newest.write_config(some_state(profiles={"p%d" % n: {"email": "e" * 90} for n in range(2000)}))
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    process = newest.start("use", "--json", stdout=write_end)
    os.close(write_end)
    time.sleep(1)
    before = process_seconds(process)
    time.sleep(1)
    spent = process_seconds(process) - before
    with open(read_end, "rb") as pipe:
        assert len(json.loads(pipe.read().decode())["data"]["profiles"]) == 2000
    process.communicate()
    assert process.returncode == 0 and spent < 0.5


def process_seconds(process):
    fields = pathlib.Path("/proc/%d/stat" % process.pid).read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---- Bugs, and machines that lack something ----


def broken(tmp_path, code):
    (tmp_path / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(tmp_path)}


def test_a_bug_names_file_and_line_and_the_line_here_that_led_there(newest, tmp_path):
    env = broken(tmp_path, "import difflib\n\n\ndef fail(*_):\n    raise ValueError('hunter2')\n"
                           "difflib.get_close_matches = fail\n")  # fmt: skip
    error = newest.run("whoami", "--nonsense", "--json", env=env).error
    assert error["code"] == "internal" and "hunter2" not in json.dumps(error)
    assert "ValueError at sitecustomize.py:5" in error["message"]
    line = int(re.findall(r"\d+", error["message"])[-1])
    source = pathlib.Path(conftest.PROGRAM).read_text(encoding="utf-8").splitlines()
    assert "get_close_matches" in source[line - 1] and "https://" in error["nextAction"]


def test_a_machine_without_a_thread_to_spare_is_no_bug(newest, tmp_path):
    env = broken(tmp_path, "import threading\n\n\ndef fail(*_):\n"
                           "    raise RuntimeError(\"can't start new thread\")\n"
                           "threading.Thread.start = fail\n")  # fmt: skip
    words = ["whoami", "--api-key", KEY, "--api-url", NOWHERE, "--json"]
    assert newest.run(*words, env=env).error["code"] == "failed-precondition"


def test_a_machine_without_a_temporary_folder_is_no_bug(newest, tmp_path):
    env = broken(tmp_path, "import errno, tempfile\n\n\ndef fail(*_, **__):\n"
                           "    raise FileNotFoundError(errno.ENOENT, 'No usable folder')\n"
                           "tempfile.mkdtemp = fail\n")  # fmt: skip
    error = newest.run("demo", "--json", env=env).error
    assert error["code"] == "failed-precondition" and "TMPDIR" in error["nextAction"]


def test_the_demo_says_why_it_needs_a_file(newest, tmp_path):
    error = newest.run("demo", "--json", **as_zip(newest, tmp_path)).error
    assert error["code"] == "failed-precondition" and "scripto.py" in error["nextAction"]
    source = pathlib.Path(conftest.PROGRAM).read_bytes()
    run = newest.run("demo", program="-", input=source, cwd=str(tmp_path))
    assert run.status == 1 and "save" in run.err


def test_the_demo_passes_on_what_its_backend_said(newest, tmp_path):
    env = broken(tmp_path, "import sqlite3\n\n\ndef fail(*_, **__):\n"
                           "    raise sqlite3.OperationalError('the disk is on fire')\n"
                           "sqlite3.connect = fail\n")  # fmt: skip
    error = newest.run("demo", "--json", env=env).error
    assert "the disk is on fire" in error["message"] and error["nextAction"]


@pytest.mark.slow
def test_the_demo_claims_no_more_than_it_showed(newest):
    run = newest.run("demo", env={"HOME": "/nonexistent"})
    assert run.status == 0 and "this machine" not in run.out


def test_doctor_lists_what_a_minimal_python_lacks(newest, tmp_path):
    env = broken(tmp_path, "import sys\nfor name in ('json', 'ssl', 'sqlite3', 'urllib.request'):\n"
                           "    sys.modules[name] = None\n")  # fmt: skip
    run = newest.run("doctor", "--api-url", "https://127.0.0.1:1", env=env)
    assert run.status == 1 and all(name in run.out for name in ("json", "sqlite3"))


def test_a_fresh_machine_is_well(newest, backend):
    assert newest.run("doctor", "--api-url", backend.url, "--json").data["checks"]


@pytest.mark.parametrize("name", ["n" * 101, "two\nlines", "esc\x1b[1m"])
def test_a_key_name_that_is_too_long_or_no_line_costs_no_code(newest, backend, name):
    """Refused here, before anything is sent, and by the backend, with the right code at hand."""
    email = "you@example.com"
    assert backend.request("POST", "/api/cli/login-request", {"email": email})[0] == 200
    body = {"email": email, "otp": backend.code_for(email), "name": name}
    status, _, value = backend.request("POST", "/api/cli/login-complete", body)
    assert (status, value["error"]["code"]) == (400, "invalid-argument")
    words = complete(email, body["otp"], backend.url)
    assert newest.run(*words, "--name", name).error["nextAction"] == "pass another --name"
    assert newest.run(*words, "--name", "n" * 100).data["email"] == email
