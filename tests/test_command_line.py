"""The command line itself: help, version, what is typed and piped, and the demo."""
import os
import re
import shlex
import signal
import subprocess
import time

import pytest

from client import (  # fmt: skip
    COMPLETED, EMAIL, EMAILS, GOOD, KEY, NOWHERE, REQUESTED, TWO, complete, profile, profiles,
    refused)
from conftest import Scripto, http_reply, in_turn, wait_until

# ---- demo, --version, --help, --json ----


def test_demo_shows_the_sign_in_and_leaves_nothing(python, tmp_path):
    scripto = Scripto(python, tmp_path / "home", TMPDIR=str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    result = scripto.run("demo")
    assert (result.status, result.err) == (0, "")
    assert "\n" + REQUESTED + "\n" in result.out and "\n" + COMPLETED + "\n" in result.out
    assert list(scripto.home.iterdir()) == [] and list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT], ids=str)
def test_a_demo_that_is_stopped_leaves_nothing(edge, tmp_path, number):
    scripto = Scripto(edge, tmp_path / "home", TMPDIR=str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    process = scripto.start("demo")
    wait_until(lambda: list((tmp_path / "tmp").glob("*/scripto.db")), what="its backend")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + number, b"") and err.startswith("✗ ".encode())
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.slow
def test_demo_has_room_for_all_that_its_steps_say(newest):
    """However much: here each says more than a pipe holds."""
    result = newest.run("demo", "--json", env={"PYTHONVERBOSE": "2"})
    assert result.data["ok"] is True and len(result.out) > 100000


@pytest.mark.slow
def test_demo_leaves_the_users_own_account_alone(newest, witness, tmp_path):
    newest.write_config(profiles("you", you=profile(KEY, "http://localhost:1", email=EMAIL)))
    before = newest.config.read_bytes()
    env = dict(witness.env, SCRIPTO_API_KEY=KEY, SCRIPTO_API_BASE_URL="https://backend.example",
               XDG_CONFIG_HOME=str(tmp_path / "config"), XDG_DATA_HOME=str(tmp_path / "data"))
    result = newest.run("demo", "--json", env=env)
    assert result.data["ok"] is True and KEY not in result.out and witness.requests == []
    assert newest.config.read_bytes() == before
    assert not (tmp_path / "config").exists() and not (tmp_path / "data").exists()


def test_version(python, tmp_path):
    result = Scripto(python, tmp_path).run("--version")
    assert result.status == 0 and re.search(r"\b\d+\.\d+\.\d+\n\Z", result.out)


FLAGS = {
    "auth login-request": "--email --api-url --profile --json",
    "auth login-complete": "--email --code --name --profile-name --expires-in --api-url --profile --json",
    "auth token": "--api-key --profile --json",
    "whoami": "--api-key --api-url --profile --json",
    "use": "--json",
    "logout": "--revoke --json",
    "keys list": "--api-key --api-url --profile --json",
    "keys revoke": "--others --yes --api-key --api-url --profile --json",
    "api": "--api-key --api-url --profile --json",
    "run": "--api-key --api-url --profile --json",
    "completion": "--json",
    "config set": "--api-key --profile-name --json",
    "config show": "--json",
    "config clear": "--profile --all --yes --json",
    "serve": "--host --port --db --mail --mail-from --public-url --tls-cert --tls-key "
             "--behind-proxy --rate-limit --json",
    "demo": "--json",
    "doctor": "--api-url --profile --api-key --json",
}  # fmt: skip


@pytest.mark.parametrize("name", FLAGS)
def test_help_on_a_command_names_its_flags_and_does_nothing(newest, name):
    result = newest.run(*name.split(), "--help")
    assert (result.status, result.err) == (0, "") and "scripto " + name in result.out
    assert set(FLAGS[name].split()) <= set(re.findall("--[a-z-]+", result.out))
    assert list(newest.home.iterdir()) == []


def test_help_names_every_command(python, tmp_path):
    result = Scripto(python, tmp_path).run("--help")
    assert result.status == 0 and [name for name in FLAGS if name not in result.out] == []


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["use", "--help"]], ids=" ".join)
def test_version_and_help_as_json(newest, words):
    assert newest.run(*words, "--json").data == newest.run("--json", *words).data


@pytest.mark.parametrize("name", FLAGS)
def test_json_may_stand_before_the_name_or_after_it(newest, name):
    for words in (["--json", *name.split()], [*name.split(), "--json"]):
        refused(newest.run(*words, "--no-such-flag"))


def test_json_before_the_name_is_json_after_it(scripto):
    scripto.write_config(TWO)
    assert scripto.run("--json", "use").out == scripto.run("use", "--json").out


# ---- The overview ----


@in_turn("words, some", [
    ([], "auth login-request"), (["--help"], "whoami"), (["-h"], "whoami"),
    (["auth"], "auth token"), (["auth", "--help"], "auth token"), (["config"], "config show"),
])  # fmt: skip
def test_the_overview_is_an_answer(words, some, scripto):
    run = scripto.run(*words)
    assert run.status == 0 and some in run.out and run.err == ""
    assert run.out.splitlines() == scripto.run(*words, "--json").data["help"]


def test_the_overview_of_a_group_is_of_that_group(newest):
    assert "whoami" not in newest.run("auth").out


@pytest.mark.parametrize("typed, meant", [
    ("auht", "auth"), ("auht login", "auth"), ("logn", "auth login"), ("auth logn", "auth login"),
    ("confg", "config"), ("whoiam", "whoami"), ("login", "auth login"), ("token", "auth token"),
    ("--versoin", "--version"),
])  # fmt: skip
def test_a_near_miss_is_suggested(typed, meant, newest):
    run = newest.run(*typed.split())
    assert run.status == 2 and run.err.endswith("  next: did you mean: scripto %s\n" % meant)


def test_nothing_near_is_nothing_suggested(newest):
    assert "see the commands with: scripto --help" in newest.run("zzz").err


# ---- What is typed and piped ----


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


# ---- Keys and codes on standard input ----

UNKNOWN = [
    ["whoami", "--profile", "nobody"], ["auth", "token", "--profile", "nobody"],
    ["auth", "login-request", "--email", "you@example.com", "--profile", "nobody"],
    ["auth", "login-complete", "--email", "you@example.com", "--code", "123456",
     "--profile", "nobody"],
    ["config", "show", "--profile", "nobody"],
    ["config", "clear", "--yes", "--profile", "nobody"], ["use", "nobody"], ["logout", "nobody"],
]  # fmt: skip


@in_turn("words", UNKNOWN)
def test_an_unknown_profile_is_not_found_even_where_the_environment_wins(words, scripto):
    scripto.write_config(GOOD)
    for env in ({}, {"SCRIPTO_API_KEY": KEY, "SCRIPTO_API_BASE_URL": NOWHERE}):
        result = scripto.run(*words, "--json", env=env)
        assert result.status == 1, result.out
        assert result.error["code"] == "not-found" and result.error["nextAction"]
    assert scripto.config.read_bytes() == GOOD


@in_turn("typed", {"line": KEY + "\n", "crlf": KEY + "\r\n", "bare": KEY, "two": KEY + "\nx\n"})
@pytest.mark.parametrize("words", (["config", "set"], ["auth", "token"]), ids=" ".join)
def test_a_key_comes_from_standard_input(words, typed, scripto):
    assert scripto.run(*words, "--api-key", "-", input=typed.encode()).status == 0
    source = [] if words[0] == "config" else ["--api-key", "-"]
    assert scripto.run("auth", "token", *source, input=typed.encode()).out == KEY + "\n"


def test_whoami_takes_its_key_from_standard_input(scripto, raw_server):
    server = raw_server(http_reply({"user": {"id": "u", "email": "e@example.com", "name": "n"}}))
    words = ["whoami", "--api-key", "-", "--api-url", server.url, "--json"]
    scripto.run(*words, input=KEY.encode() + b"\n").data
    assert b"Bearer " + KEY.encode() + b"\r\n" in server.requests[0]


@pytest.mark.parametrize("typed", (b"", b"\n", b"no-key\n", b"scripto_\n", b"scripto_a b\n",
                                   b"scripto_\xff\n", b"x" * 200000), ids=len)  # fmt: skip
def test_standard_input_without_a_key_is_refused(typed, newest):
    for words in (["config", "set"], ["auth", "token"], ["whoami", "--api-url", NOWHERE]):
        result = newest.run(*words, "--api-key", "-", "--json", input=typed)
        assert (result.status, result.error["code"]) == (2, "invalid-argument")
    assert not newest.config.exists()


def test_a_closed_standard_input_is_no_key_and_no_crash(scripto):
    words = ["config", "set", "--api-key", "-", "--json"]
    result = scripto.run(*words, stdin=subprocess.DEVNULL, preexec_fn=lambda: os.close(0))
    assert (result.status, result.error["code"]) == (2, "invalid-argument")


@pytest.mark.parametrize("typed", ("%s\n", "%s", " %s \r\n"), ids=repr)
def test_a_code_comes_from_standard_input(typed, scripto, shared):
    email, url = next(EMAILS), ["--api-url", shared.url]
    scripto.run("auth", "login-request", "--email", email, *url, "--json").data
    code = shared.code_for(email)
    typed = typed % (code[:3] + " " + code[3:])
    words = complete(email, "-", shared.url)
    assert scripto.run(*words, input=typed.encode()).data["email"] == email
