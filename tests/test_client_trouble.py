"""The client in trouble: proxies, keys where they should not be, hosts of the program, bugs."""
import json
import os
import pathlib
import re
import shlex
import subprocess
import time
import zipapp

import pytest

import conftest
from conftest import PYTHONS, Scripto, http_reply
from test_network import ask
from test_profiles import KEY, NOWHERE, OTHER_KEY, complete, some_state

SECRET = "pass/word"
SIGN_IN = "sign in with: scripto auth login-request --email <your-email>"
USER = http_reply({"user": {"id": "user_1", "email": "you@example.com", "name": ""}})
EMAIL = ["auth", "login-request", "--email", "you@example.com", "--json"]


@pytest.fixture
def newest(tmp_path):
    return Scripto(PYTHONS[-1], tmp_path / "home")


# ---- Proxies ----------------------------------------------------------------------


@pytest.mark.parametrize("proxy", [
    "http:/user:%s@proxy.example:1", "http://user:%s@proxy.example:1", "user:%s@proxy.example:1",
    "https://user:%s@proxy.example:1", "socks5://user:%s@proxy.example:1", "http://user:%s@[",
])  # fmt: skip
@pytest.mark.parametrize("words", (["whoami", "--api-key", KEY], ["doctor"]), ids=" ".join)
def test_no_proxy_has_its_password_shown(newest, words, proxy):
    env = {"HTTPS_PROXY": proxy % SECRET, "SCRIPTO_TIMEOUT": "5"}
    run = newest.run(*words, "--json", "--api-url", "https://backend.example", env=env)
    assert run.status == 1 and "https_proxy" in run.out
    told = run.out.replace(str(newest.home), "")
    assert not any(part in told.replace("pass another", "") for part in SECRET.split("/"))


@pytest.mark.parametrize("proxy", ("socks5://127.0.0.1:1", "https://127.0.0.1:1", "127.0.0.1:port"))
def test_a_proxy_that_is_not_spoken_is_refused(scripto, proxy):
    begin = time.monotonic()
    error = ask(scripto, "https://backend.example", env={"HTTPS_PROXY": proxy}).error
    assert error["code"] == "failed-precondition" and "https_proxy" in error["message"]
    assert time.monotonic() - begin < 15 and "https_proxy" in error["nextAction"]


# ---- Loopback ---------------------------------------------------------------------


@pytest.mark.parametrize("host", ("evil.localhost", "localhost.evil", "a.b.localhost", "localhost."))
def test_a_name_below_localhost_is_not_loopback(newest, host):
    error = newest.run(*EMAIL, "--api-url", "http://%s:8787" % host).error
    assert error["code"] == "invalid-argument" and host in error["message"]


# ---- Keys where they should not be ------------------------------------------------

KEYS = (KEY, "scripto_ab-cd_efgh-ijkl", "scripto_abcd+efgh=ijkl")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("place", ("code", "message", "nextAction"))
def test_a_key_that_a_backend_quotes_is_masked_wherever_it_stands(newest, raw_server, key, place):
    error = dict({"code": "account-frozen", "message": "No.", "nextAction": "wait"},
                 **{place: "see %s now" % key})
    server = raw_server(http_reply({"success": False, "error": error}, 400))
    words = ["whoami", "--api-key", key, "--api-url", server.url]
    for run in (newest.run(*words), newest.run(*words, "--json")):
        assert key[8:] not in run.out + run.err
    assert run.error[place] == "see scripto_•••••••• now"


@pytest.mark.parametrize("words", [
    ["whoami", "--api-kye=%s"], ["whoami", "--apikey=%s"], ["--api-key=%s", "whoami"],
    ["whoami", "%s"], ["use", "%s"], ["%s"], ["use", "--password=%s"],
], ids=" ".join)  # fmt: skip
def test_a_key_that_is_mistyped_is_not_repeated(newest, words):
    run = newest.run(*[word.replace("%s", KEY) for word in words])
    assert run.status in (1, 2) and KEY[8:] not in run.err


def test_what_stands_behind_an_unknown_flag_is_not_repeated(newest):
    assert "hunter2" not in newest.run("whoami", "--api-kye=hunter2").err


@pytest.mark.parametrize("value", [
    {"success": False, "user": {"id": "user_1"}, "data": {"ok": True}},
    {"success": "no", "user": {"id": "user_1"}, "data": {"ok": True}},
    {"success": False, "error": "no", "user": {"id": "user_1"}},
])  # fmt: skip
def test_what_is_no_success_does_not_pass_as_one(newest, raw_server, value):
    server = raw_server(http_reply(value))
    assert ask(newest, server.url).error["code"] == "invalid-response"
    assert newest.run(*EMAIL, "--api-url", server.url).error["code"] == "invalid-response"


# ---- A refused key says which -----------------------------------------------------


@pytest.mark.parametrize("source, first", [
    ("profile", ""), ("--api-key", "pass another --api-key, or "),
    ("SCRIPTO_API_KEY", "fix or unset SCRIPTO_API_KEY, or "),
])  # fmt: skip
@pytest.mark.parametrize("told", (None, SIGN_IN), ids=("bare", "told"))
def test_a_refused_key_says_which(newest, raw_server, source, first, told):
    body = {"success": False, "error": {"code": "unauthenticated", "nextAction": told}}
    server = raw_server(http_reply(body if told else {"error": "Unauthorized"}, 401))
    state = some_state()
    state["profiles"]["you"]["baseUrl"] = server.url
    newest.write_config(state)
    words = ["--api-url", server.url, "--json"]
    words += ["--api-key", OTHER_KEY] if source == "--api-key" else []
    env = {"SCRIPTO_API_KEY": OTHER_KEY} if source == "SCRIPTO_API_KEY" else {}
    assert newest.run("whoami", *words, env=env).error["nextAction"] == first + SIGN_IN
    checks = newest.run("doctor", *words, env=env).envelope["data"]["checks"]
    assert [each["nextAction"] for each in checks if each["name"] == "key"] == [first + SIGN_IN]


# ---- Which key, which URL: the table ----------------------------------------------
# Profiles: `own` at A (active unless it is said otherwise), `other` at B, `plain` at production.
# `C` is a third backend. What comes out is (key, key source, URL, URL source), or an error's code.

FLAG, ENV = "--api-key", "SCRIPTO_API_KEY"
PRODUCTION = "https://scripto.codika.io"
A, B, C = "https://a.example", "https://b.example", "https://c.example"
CASES = [
    # active, flags, environment, outcome
    ("own", "", {}, ("own", "profile", A, "profile")),
    ("own", "--profile other", {}, ("other", "profile", B, "profile")),
    ("own", "", {"SCRIPTO_PROFILE": "other"}, ("other", "profile", B, "profile")),
    ("own", "--profile own", {"SCRIPTO_PROFILE": "other"}, ("own", "profile", A, "profile")),
    ("own", "", {"SCRIPTO_PROFILE": ""}, ("own", "profile", A, "profile")),
    ("own", "", {"SCRIPTO_PROFILE": "nobody"}, "unauthenticated"),
    ("own", "--profile nobody", {"SCRIPTO_PROFILE": "own"}, "not-found"),
    ("own", "--profile nobody --api-key K --api-url C", {}, "not-found"),
    ("plain", "", {}, ("plain", "profile", PRODUCTION, "profile")),
    ("gone", "", {}, "not-found"),
    ("gone", "--api-key K", {}, "not-found"),
    ("gone", "--api-key K --api-url C", {}, ("K", FLAG, C, "--api-url")),
    ("gone", "--profile own", {}, ("own", "profile", A, "profile")),
    (None, "", {}, "unauthenticated"),
    (None, "--api-key K", {}, ("K", FLAG, PRODUCTION, "default")),
    ("own", "--api-key K", {}, ("K", FLAG, A, "profile")),
    ("own", "", {ENV: "E"}, ("E", ENV, A, "profile")),
    ("own", "--api-key K", {ENV: "E"}, ("K", FLAG, A, "profile")),
    ("own", "--profile other", {ENV: "E"}, ("other", "profile", B, "profile")),
    ("own", "", {ENV: "E", "SCRIPTO_PROFILE": "other"}, ("E", ENV, B, "profile")),
    ("plain", "", {ENV: "E"}, ("E", ENV, PRODUCTION, "default")),
    ("own", "--profile plain", {ENV: "E"}, ("plain", "profile", PRODUCTION, "profile")),
    ("own", "--api-url C", {}, "failed-precondition"),
    ("own", "--api-url A/path", {}, ("own", "profile", A + "/path", "--api-url")),
    ("own", "", {"SCRIPTO_API_BASE_URL": C}, "failed-precondition"),
    ("own", "--profile other --api-url A", {}, "failed-precondition"),
    ("own", "--api-url B", {"SCRIPTO_PROFILE": "other"}, ("other", "profile", B, "--api-url")),
    ("own", "--api-url C --api-key K", {}, ("K", FLAG, C, "--api-url")),
    ("own", "--api-url C", {ENV: "E"}, ("E", ENV, C, "--api-url")),
    ("own", "", {ENV: "E", "SCRIPTO_API_BASE_URL": C}, ("E", ENV, C, "SCRIPTO_API_BASE_URL")),
    ("own", "--api-url B", {ENV: "E", "SCRIPTO_API_BASE_URL": C}, ("E", ENV, B, "--api-url")),
]  # fmt: skip


@pytest.mark.parametrize("active, flags, env, outcome", CASES, ids=map(str, range(len(CASES))))
def test_the_table_of_keys_and_urls(newest, active, flags, env, outcome):
    keys = {name: "scripto_key-of-" + name for name in ("own", "other", "plain", "K", "E")}
    profiles = {name: {"apiKey": keys[name]} for name in ("own", "other", "plain")}
    profiles["own"]["baseUrl"], profiles["other"]["baseUrl"] = A, B
    newest.write_config({"activeProfile": active, "profiles": profiles})
    words = [A + word[1:] if word[:1] == "A" else {"B": B, "C": C, "K": keys["K"]}.get(word, word)
             for word in flags.split()]
    env = dict(env, **{ENV: keys[env[ENV]]} if ENV in env else {})
    token = newest.run("auth", "token", *words, "--json", env=env)
    if isinstance(outcome, str):
        assert token.error["code"] == outcome
        return
    key, key_source, url, url_source = outcome
    assert token.data["apiKey"] == keys[key]
    shown = newest.run("config", "show", *words, "--json", env=env).data
    assert (shown["key"]["source"], shown["baseUrl"]) == (key_source,
                                                         {"url": url, "source": url_source})


@pytest.mark.parametrize("words", (["use"], ["use", "them"], ["config", "show"]), ids=" ".join)
def test_a_profile_of_the_environment_is_said_to_be_in_force(newest, words):
    newest.write_config(some_state())
    env = {"SCRIPTO_PROFILE": "them"}
    assert "SCRIPTO_PROFILE" in newest.run(*words, env=env).err
    assert "SCRIPTO_PROFILE" not in newest.run(*words).err


@pytest.mark.parametrize("env, told", [
    ({}, ""), ({"SCRIPTO_PROFILE": "you"}, ""), ({"SCRIPTO_PROFILE": "me"}, "SCRIPTO_PROFILE"),
    ({"SCRIPTO_API_KEY": OTHER_KEY}, "SCRIPTO_API_KEY"),
], ids=str)  # fmt: skip
def test_what_overrides_a_profile_is_told_when_it_is_stored(newest, env, told):
    words = ["config", "set", "--api-key", KEY, "--profile-name", "you"]
    run = newest.run(*words, env=env)
    assert run.status == 0 and told in run.err and bool(run.err) == bool(told)


def test_logout_means_the_profile_in_force(newest):
    """Not the active one, which may be another agent's."""
    newest.write_config(some_state())
    data = newest.run("logout", "--json", env={"SCRIPTO_PROFILE": "them"}).data
    assert (data["removed"], data["activeProfile"]) == ("them", "you")


def test_logout_of_no_name_is_not_of_the_active_profile(newest):
    """As `logout "$NAME"` with NAME unset."""
    newest.write_config(some_state())
    assert newest.run("logout", "", "--json").error["code"] == "invalid-argument"
    assert newest.state() == some_state()


def test_the_help_names_the_url_that_this_file_would_use(newest, tmp_path):
    source = pathlib.Path(conftest.PROGRAM).read_text(encoding="utf-8")
    copy = tmp_path / "scripto.py"
    line = 'BASE_URL = "https://backend.example/a%20b"'
    copy.write_text(source.replace("BASE_URL = PRODUCTION_URL", line, 1), encoding="utf-8")
    assert "https://backend.example/a%20b" in newest.run("whoami", "--help", program=str(copy)).out
    assert PRODUCTION in newest.run("whoami", "--help").out


# ---- What is typed and piped ------------------------------------------------------


@pytest.mark.parametrize("typed", [b"%s \r\n", b"\xef\xbb\xbf%s\r\n", b"\xef\xbb\xbf \t%s\t \n", b"%s"])
def test_what_other_shells_put_around_a_key_is_stripped(newest, typed):
    """cmd: a blank at the end; PowerShell 5: a byte order mark."""
    words = ["config", "set", "--api-key", "-", "--json"]
    assert newest.run(*words, input=typed % KEY.encode()).status == 0
    assert newest.run("auth", "token").out == KEY + "\n"


def test_an_email_that_looks_like_a_flag_gets_a_command_that_runs(newest, backend):
    email = "-you@example.com"
    words = ["auth", "login-request", "--email=" + email, "--api-url", backend.url, "--json"]
    command = newest.run(*words).data["nextAction"]
    command = command.replace("<6-digit-code>", backend.code_for(email))
    assert newest.run(*shlex.split(command)[1:]).status == 0


@pytest.mark.parametrize("email", ["=?a" * 40000 + "@x.y", "a" * 120000 + "@x.y", "\u00e9" * 60000])
def test_an_email_of_any_length_costs_no_time(newest, email):
    """As a ratio: no more than another refusal, twenty times."""
    def seconds(text):
        begin = time.monotonic()
        assert newest.run("auth", "login-request", "--email", text).status == 2
        return time.monotonic() - begin

    assert seconds(email) < 20 * seconds("you")


def test_half_of_a_flag_is_no_flag(newest, raw_server):
    server = raw_server(http_reply({"success": True, "data": {"ok": True}}))
    words = ["auth", "login-request", "--ema", "you@example.com", "--api-url", server.url]
    error = newest.run(*words, "--json").error
    assert error["code"] == "invalid-argument" and "--ema" in error["message"]
    assert error["nextAction"] == "did you mean: --email" and not server.requests


# ---- Hosts of the program ---------------------------------------------------------


def python_run(newest, code, **more):
    env = dict(newest.env, PYTHONPATH=str(pathlib.Path(conftest.PROGRAM).parent))
    process = subprocess.run([newest.python, "-c", code], env=env, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, **more)
    assert b"Traceback" not in process.stderr, process.stderr
    return process.returncode, process.stdout.decode()


def test_an_importer_gets_a_status_and_keeps_its_umask(scripto):
    code = ("import os, scripto\nos.umask(0o022)\nstatus = scripto.main(['auth', 'token'])\n"
            "print(status, oct(os.umask(0)))")  # fmt: skip
    assert python_run(scripto, code) == (0, "4 0o22\n")


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


# ---- Bugs, and machines that lack something ---------------------------------------


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
