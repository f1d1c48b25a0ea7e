"""Signing in, looking, switching, signing out; which key and which base URL are in force."""
import json
import os
import pty
import re
import shlex
import signal
import socket
import stat
import subprocess
import time

import pytest

from conftest import PYTHONS, Scripto, http_reply, wait_until

EMAIL = "you@example.com"
KEY = "scripto_" + "k" * 43
PRODUCTION = "https://scripto.codika.io"

REQUESTED = """\
✓ Sign-in code sent to you@example.com

  Then run:
    scripto auth login-complete --email you@example.com --code <6-digit-code>
"""
COMPLETED = """\
✓ Signed in

  Email:    you@example.com
  Profile:  you (now active)
  API key:  scripto_••••••••

  Try it:  scripto whoami
"""

LOGIN_REQUEST = ["auth", "login-request", "--email", EMAIL]
LOGIN_COMPLETE = ["auth", "login-complete", "--email", EMAIL, "--code", "123456"]
SENT = http_reply({"success": True, "data": {"ok": True, "email": EMAIL}})
ME = {"id": "user_1", "email": EMAIL, "name": "You"}


def minted(email, key=KEY):
    data = {"apiKey": key, "keyId": "key_1", "userId": "user_1", "email": email}
    return http_reply({"success": True, "data": data})


def profile(key, url=None, **more):
    return dict({"apiKey": key, **({"baseUrl": url} if url else {})}, **more)


def profiles(active, /, **named):
    return {"activeProfile": active, "profiles": named}


def sent_to(server):
    """The last request to a raw server: (first line, bearer key or None, body as JSON or None)."""
    head, _, body = server.requests[-1].decode().partition("\r\n\r\n")
    key = re.search("(?im)^authorization: bearer (.*)\r$", head + "\r\n")
    return head.partition("\r\n")[0], key and key.group(1), json.loads(body) if body else None


def complete(scripto, server, email, *flags):
    """login-complete at a raw server, which mints for that email; returns its data."""
    server.answer = minted(email)
    words = ["auth", "login-complete", "--email", email, "--code", "123456", *flags]
    return scripto.run(*words, "--api-url", server.url, "--json").data


def at_terminal(scripto, typed, *words):
    """Runs with standard input at a terminal, at which `typed` is answered."""
    master, slave = pty.openpty()
    try:
        os.write(master, typed)
        return scripto.run(*words, stdin=slave)
    finally:
        os.close(master)
        os.close(slave)


def refused(result, code="invalid-argument", status=2):
    """The error of a run with --json that was to fail like that."""
    assert (result.error["code"], result.status) == (code, status), result.error
    return result.error


@pytest.fixture
def newest(tmp_path):
    return Scripto(PYTHONS[-1], tmp_path / "home")


@pytest.fixture
def witness(raw_server):
    """A proxy that sees what goes to any host but loopback; `env` leads to it."""
    server = raw_server(http_reply({}, 502))
    server.env = {"http_proxy": server.url, "https_proxy": server.url}
    return server


# ---- Signing in ----


def test_the_two_commands_print_what_auth_md_shows(python, tmp_path, backend):
    scripto = Scripto(python, tmp_path / "home", SCRIPTO_API_BASE_URL=backend.url)
    first = scripto.run(*LOGIN_REQUEST)
    assert (first.out, first.err, first.status) == (REQUESTED, "", 0)
    code = backend.code_for(EMAIL)
    second = scripto.run("auth", "login-complete", "--email", EMAIL, "--code", code)
    assert (second.out, second.err, second.status) == (COMPLETED, "", 0)
    after = scripto.run("whoami", env={"SCRIPTO_API_BASE_URL": None})
    assert after.status == 0 and EMAIL in after.out and after.err == ""


def test_with_api_url_the_next_step_has_it_too(newest, backend):
    """What login-request prints can be pasted."""
    url = "--api-url " + backend.url
    shown = newest.run(*LOGIN_REQUEST, "--api-url", backend.url)
    assert (shown.out, shown.err) == (REQUESTED[:-1] + " " + url + "\n", "")
    line = shown.out.split("    ")[-1].replace("<6-digit-code>", backend.code_for(EMAIL))
    assert newest.run(*shlex.split(line)[1:]).out == COMPLETED


def test_login_request_answers_with_the_next_action(newest, backend):
    data = newest.run(*LOGIN_REQUEST, "--api-url", backend.url, "--json").data
    assert (data["ok"], data["email"]) == (True, EMAIL)
    assert data["nextAction"].startswith("scripto auth login-complete --email " + EMAIL)


def test_login_complete_answers_with_everything_but_the_key(newest, backend):
    data = newest.sign_in(backend)
    assert data.pop("userId").startswith("user_") and data.pop("keyId").startswith("key_")
    assert data == {"profile": "you", "active": True, "email": EMAIL, "baseUrl": backend.url,
                    "apiKey": "scripto_••••••••"}  # fmt: skip


def test_the_profile_file_has_the_contracts_shape(newest, backend):
    data = newest.sign_in(backend)
    state = newest.state()
    stored = state["profiles"].pop("you")
    assert state == {"activeProfile": "you", "profiles": {}}
    assert stored.pop("apiKey").startswith("scripto_")
    for name in ("createdAt", "updatedAt"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", stored.pop(name))
    assert stored == {name: data[name] for name in ("email", "userId", "keyId", "baseUrl")}


def test_the_profile_file_is_for_its_owner_only(scripto):
    scripto.run("config", "set", "--api-key", KEY, preexec_fn=lambda: os.umask(0)).out
    assert stat.S_IMODE(scripto.config.stat().st_mode) == 0o600
    assert stat.S_IMODE(scripto.config.parent.stat().st_mode) == 0o700


def test_the_requests_are_the_contracts(newest, raw_server):
    """Also: a key in the environment is no business of the two public routes."""
    server, version = raw_server(SENT), newest.run("--version").out.split()[-1]
    env = {"SCRIPTO_API_KEY": KEY}
    newest.run(*LOGIN_REQUEST, "--api-url", server.url, env=env)
    assert sent_to(server) == ("POST /api/cli/login-request HTTP/1.1", None, {"email": EMAIL})
    assert "User-Agent: scripto/" + version in server.requests[0].decode()
    server.answer = minted(EMAIL)
    newest.run(*LOGIN_COMPLETE, "--api-url", server.url, env=env)
    body = {"email": EMAIL, "otp": "123456", "name": "scripto-cli on " + socket.gethostname()}
    assert sent_to(server) == ("POST /api/cli/login-complete HTTP/1.1", None, body)


def test_name_goes_to_the_backend(newest, raw_server):
    server = raw_server(minted(EMAIL))
    newest.run(*LOGIN_COMPLETE, "--name", "my laptop", "--api-url", server.url)
    assert sent_to(server)[2]["name"] == "my laptop"


@pytest.mark.parametrize("typed", ["123 456", "123-456", "1 2 3-4 5 6"])
def test_a_code_may_be_typed_in_groups(newest, raw_server, typed):
    server = raw_server(minted(EMAIL))
    words = ["auth", "login-complete", "--email", EMAIL, "--code", typed]
    assert newest.run(*words, "--api-url", server.url).out == COMPLETED
    assert sent_to(server)[2]["otp"] == "123456"


def test_a_code_can_come_on_standard_input(newest, backend):
    newest.run(*LOGIN_REQUEST, "--api-url", backend.url)
    pasted = (backend.code_for(EMAIL) + "\n").encode()
    words = ["auth", "login-complete", "--email", EMAIL, "--code", "-", "--api-url", backend.url]
    assert newest.run(*words, input=pasted).out == COMPLETED


@pytest.mark.parametrize("email", ["o'brien@example.com", "a#$&*+/=?^_`{|}~-z@example.com"])
def test_any_email_that_the_contract_allows_signs_in(newest, backend, email):
    assert newest.sign_in(backend, email)["email"] == email


# ---- Profiles ----


def test_a_second_sign_in_renews_the_profile_with_a_new_key(scripto, backend):
    first, key = scripto.sign_in(backend), scripto.state()["profiles"]["you"]["apiKey"]
    second = scripto.sign_in(backend)
    assert (first["profile"], first["userId"]) == (second["profile"], second["userId"])
    assert first["keyId"] != second["keyId"]
    assert list(scripto.state()["profiles"]) == ["you"]
    assert scripto.state()["profiles"]["you"]["apiKey"] != key
    assert scripto.run("whoami", "--json").data["user"]["id"] == first["userId"]


def test_a_renewal_keeps_what_it_does_not_know(newest, raw_server):
    server = raw_server(b"")
    old = profile("scripto_old", server.url, email=EMAIL, createdAt="2020-01-02T03:04:05Z", hue=[7])
    newest.write_config(dict(profiles("you", you=old), theme={"dark": True}))
    complete(newest, server, EMAIL)
    renewed = newest.state()["profiles"]["you"]
    assert newest.state()["theme"] == {"dark": True} and renewed["hue"] == [7]
    assert renewed["createdAt"] == "2020-01-02T03:04:05Z" < renewed["updatedAt"]
    assert renewed["apiKey"] == KEY


@pytest.mark.slow
def test_another_email_with_the_same_local_part_gets_a_number(newest, backend):
    emails = [EMAIL, "you@example.org", "you@example.net", "you@example.org"]
    names = [newest.sign_in(backend, email)["profile"] for email in emails]
    assert names == ["you", "you-2", "you-3", "you-2"]
    assert newest.run("whoami", "--json").data["user"]["email"] == "you@example.org"


def test_the_same_email_at_another_backend_gets_a_number(newest, raw_server):
    here, there = raw_server(b""), raw_server(b"")
    names = [complete(newest, server, EMAIL)["profile"] for server in (here, there, here, there)]
    assert names == ["you", "you-2", "you", "you-2"]


def test_an_email_in_other_case_is_the_same_person(newest, backend):
    first, second = newest.sign_in(backend, EMAIL), newest.sign_in(backend, "You@Example.COM")
    assert (first["profile"], first["userId"]) == (second["profile"], second["userId"])


@pytest.mark.parametrize("email, name", [
    ("You@example.com", "you"), ("First.Last_x-y@a.b", "first.last_x-y"), ("a+b@c.d", "a-b"),
    ("a+?#b@c.d", "a-b"), ("+a+@c.d", "a"), ("+@c.d", "default"), ("ünal@c.d", "nal"),
    ("用户@c.d", "default"),
])  # fmt: skip
def test_a_profile_is_named_by_the_local_part(newest, raw_server, email, name):
    assert complete(newest, raw_server(b""), email)["profile"] == name


def test_a_long_email_gives_a_name_that_can_be_typed(newest, raw_server):
    name = complete(newest, raw_server(b""), "x" * 200 + "@c.d")["profile"]
    assert 1 <= len(name) <= 64 and set(name) == {"x"}
    assert newest.run("use", name).status == 0


def test_a_name_given_by_hand_keeps_its_case_and_is_renewed_without_the_flag(newest, raw_server):
    server = raw_server(b"")
    name = "Work.1_a-B"
    assert complete(newest, server, EMAIL, "--profile-name", name)["profile"] == name
    assert complete(newest, server, EMAIL)["profile"] == name


@pytest.mark.parametrize("words", [LOGIN_COMPLETE, ["auth", "login", "--email", EMAIL,
                                                    "--code-from", "cmd:false"]], ids=" ".join)
@pytest.mark.parametrize("how", ["flag", "environment"])
def test_a_taken_name_given_by_hand_costs_no_code(newest, raw_server, words, how):
    server = raw_server(minted(EMAIL))
    state = profiles("work", work=profile("scripto_w", server.url, email="me@c.d"))
    newest.write_config(state)
    flags, env = (["--profile-name", "work"], {}) if how == "flag" else ([], {"SCRIPTO_PROFILE": "work"})
    run = newest.run(*words, *flags, "--api-url", server.url, "--json", env=env)
    hint = refused(run, "failed-precondition", 1)["nextAction"]
    assert "scripto logout work" in hint and "--profile-name" in hint
    assert server.requests == [] and newest.state() == state


def test_no_code_is_asked_for_a_name_of_the_environment_that_is_taken(newest, raw_server):
    server = raw_server(SENT)
    newest.write_config(profiles(None, work=profile("scripto_w", server.url, email="me@c.d")))
    words = [*LOGIN_REQUEST, "--api-url", server.url, "--json"]
    refused(newest.run(*words, env={"SCRIPTO_PROFILE": "work"}), "failed-precondition", 1)
    assert server.requests == []


def test_the_environment_names_the_profile_that_a_sign_in_makes(scripto, backend):
    """A fresh job: every command says that it has to sign in, and the sign-in makes the profile."""
    scripto.write_config(profiles("me", me=profile("scripto_me")))
    scripto.env["SCRIPTO_PROFILE"] = "ci"
    for words in (["whoami"], ["auth", "token"], ["logout"], ["keys", "list"]):
        error = refused(scripto.run(*words, "--json"), "unauthenticated", 4)
        assert "'ci'" in error["message"] and "auth login-request" in error["nextAction"]
    assert scripto.sign_in(backend)["profile"] == "ci"
    assert scripto.sign_in(backend)["profile"] == "ci"  # and renews it
    assert scripto.run("whoami", "--json").data["profile"] == "ci"


def test_the_environment_gives_a_sign_in_the_backend_of_its_profile(newest, raw_server):
    active, named = raw_server(SENT), raw_server(SENT)
    newest.write_config(profiles("a", a=profile(KEY, active.url), n=profile(KEY, named.url, email=EMAIL)))
    assert newest.run(*LOGIN_REQUEST, env={"SCRIPTO_PROFILE": "n"}).status == 0
    assert len(named.requests) == 1 and active.requests == []


def test_a_profile_that_is_not_there_yet_is_made_by_profile_name(newest):
    error = refused(newest.run(*LOGIN_COMPLETE, "--profile", "work", "--json"), "not-found", 1)
    assert "--profile-name" in error["nextAction"]
    error = refused(newest.run("whoami", "--profile", "work", "--json"), "not-found", 1)
    assert "--profile-name" not in error["nextAction"]


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../a", "ü", "a\n", "a" * 65, "a@b", "\x1b"])
def test_a_name_beyond_the_alphabet_is_refused_before_anything_happens(newest, raw_server, name):
    server = raw_server(minted(EMAIL))
    refused(newest.run(*LOGIN_COMPLETE, "--profile-name", name, "--api-url", server.url, "--json"))
    refused(newest.run("config", "set", "--api-key", KEY, "--profile-name", name, "--json"))
    assert server.requests == [] and not newest.config.exists()


# ---- whoami ----


def test_whoami_says_whose_key_it_is(scripto, backend):
    scripto.sign_in(backend)
    data = scripto.run("whoami", "--json").data
    assert set(data) == {"user", "profile", "baseUrl", "keySource", "expiresAt"}
    assert set(data["user"]) == {"id", "email", "name"} and data["user"]["email"] == EMAIL
    assert (data["profile"], data["baseUrl"]) == ("you", backend.url)


def test_whoami_sends_the_key_and_ignores_what_it_does_not_know(newest, raw_server):
    server = raw_server(http_reply({"user": dict(ME, plan="free"), "session": None}))
    newest.write_config(profiles("you", you=profile(KEY, server.url)))
    assert newest.run("whoami", "--json").data["user"] == ME
    assert sent_to(server) == ("GET /api/auth/me HTTP/1.1", KEY, None)


def test_whoami_fills_a_blank_email_from_the_profile(newest, raw_server):
    """The name is the backend's only."""
    server = raw_server(http_reply({"user": {"id": "user_1", "email": "", "name": None}}))
    newest.write_config(profiles("you", you=profile(KEY, server.url, email=EMAIL)))
    user = newest.run("whoami", "--json").data["user"]
    assert user == {"id": "user_1", "email": EMAIL, "name": ""}
    out = newest.run("whoami").out
    assert EMAIL in out and "Name:" not in out


def test_whoami_does_not_lend_a_profiles_email_to_another_key(newest, raw_server):
    server = raw_server(http_reply({"user": {"id": "user_2", "email": "", "name": ""}}))
    newest.write_config(profiles("you", you=profile(KEY, server.url, email=EMAIL)))
    assert EMAIL not in newest.run("whoami", "--api-key", "scripto_other").out


# ---- use, logout, auth token ----


TWO = profiles("you", me=profile("scripto_me", email="me@c.d"), you=profile(KEY, email=EMAIL))


def test_use_lists_the_profiles_and_marks_the_active_one(scripto):
    scripto.write_config(TWO)
    marked = [line for line in scripto.run("use").out.splitlines() if "●" in line]
    assert len(marked) == 1 and "you" in marked[0] and EMAIL in marked[0]
    rows = [{"name": "me", "active": False, "email": "me@c.d", "baseUrl": PRODUCTION},
            {"name": "you", "active": True, "email": EMAIL, "baseUrl": PRODUCTION}]  # fmt: skip
    expected = {"activeProfile": "you", "profiles": rows}
    assert scripto.run("use", "--json").data == expected


def test_use_switches(scripto):
    scripto.write_config(TWO)
    assert scripto.run("use", "me", "--json").data["activeProfile"] == "me"
    assert scripto.state() == dict(TWO, activeProfile="me")
    assert scripto.run("auth", "token").out == "scripto_me\n"


@pytest.mark.parametrize("words", [
    ["use", "him"], ["logout", "him"], ["config", "clear", "--profile", "him", "--yes"],
    ["whoami", "--profile", "him"], [*LOGIN_REQUEST, "--profile", "him"],
])  # fmt: skip
def test_an_unknown_profile_changes_nothing(newest, witness, words):
    newest.write_config(TWO)
    error = refused(newest.run(*words, "--json", env=witness.env), "not-found", 1)
    assert "him" in error["message"] and error["nextAction"]
    assert newest.state() == TWO and witness.requests == []


def test_after_logout_of_the_active_profile_none_is_active(scripto):
    """Who acts as whom is never guessed."""
    scripto.write_config(TWO)
    gone = {"removed": "you", "revoked": False, "activeProfile": None}
    assert scripto.run("logout", "--json").data == gone
    assert scripto.state() == profiles(None, me=TWO["profiles"]["me"])
    for words in (["whoami"], ["auth", "token"], ["logout", "--revoke"]):
        error = refused(scripto.run(*words, "--json"), "unauthenticated", 4)
        assert error["message"] == "No profile is active."
        assert error["nextAction"] == "choose one with: scripto use <name>"
    assert scripto.run("use", "me").status == scripto.run("logout").status == 0
    error = refused(scripto.run("logout", "--json"), "unauthenticated", 4)
    assert error["nextAction"] == "sign in with: scripto auth login-request --email <your-email>"


def test_logout_of_another_profile_leaves_the_active_one(newest):
    newest.write_config(TWO)
    assert newest.run("logout", "me", "--json").data["activeProfile"] == "you"
    assert newest.state() == profiles("you", you=TWO["profiles"]["you"])


def test_after_logout_there_is_no_key(newest):
    newest.write_config(profiles("you", you=profile(KEY)))
    assert newest.run("logout").status == 0
    refused(newest.run("whoami", "--json"), "unauthenticated", 4)


def test_auth_token_prints_the_key_and_nothing_else(scripto):
    scripto.write_config(TWO)
    result = scripto.run("auth", "token")
    assert (result.out, result.err) == (KEY + "\n", "")
    assert KEY in scripto.run("auth", "token", "--json").data.values()
    assert scripto.run("auth", "token", "--profile", "me").out == "scripto_me\n"


# ---- config ----


def test_config_set_stores_and_activates_a_key_without_the_network(scripto, witness):
    data = scripto.run("config", "set", "--api-key", KEY, "--json", env=witness.env).data
    assert data == {"profile": "default", "active": True, "baseUrl": PRODUCTION,
                    "apiKey": "scripto_••••••••"}  # fmt: skip
    assert scripto.state()["activeProfile"] == "default" and witness.requests == []
    stored = scripto.state()["profiles"]["default"]
    assert stored["apiKey"] == KEY and "baseUrl" not in stored


def test_config_set_takes_a_name_and_a_backend(newest, raw_server):
    server = raw_server(http_reply({"user": ME}))
    words = ["config", "set", "--api-key", KEY, "--profile-name", "ci", "--api-url", server.url]
    assert newest.run(*words, "--json").data["profile"] == "ci"
    assert newest.state()["profiles"]["ci"]["baseUrl"] == server.url and server.requests == []
    assert newest.run("whoami").status == 0


def test_a_profile_that_moves_to_production_forgets_where_it_was(newest):
    newest.write_config(profiles("you", you=profile(KEY, "http://localhost:1")))
    url = "https://scripto.codika.io"
    newest.run("config", "set", "--api-key", KEY, "--profile-name", "you", "--api-url", url)
    assert "baseUrl" not in newest.state()["profiles"]["you"]


def test_config_set_reads_the_key_from_standard_input(scripto):
    result = scripto.run("config", "set", "--api-key", "-", input=KEY.encode() + b"\n")
    assert result.status == 0 and scripto.run("auth", "token").out == KEY + "\n"


def test_a_key_set_by_hand_does_not_take_another_profiles_name(newest):
    newest.write_config(TWO)
    name = newest.run("config", "set", "--api-key", "scripto_new", "--json").data["profile"]
    assert name not in TWO["profiles"]
    assert newest.state()["profiles"]["you"] == TWO["profiles"]["you"]


@pytest.mark.parametrize("key", [
    "sk_123", "Scripto_123", "scripto_a b", "scripto_a\nb", "scripto_a\x1b[1m", "hunter2", "",
])  # fmt: skip
def test_what_is_no_key_is_refused_and_not_repeated(newest, key):
    result = newest.run("config", "set", "--api-key", key, "--json")
    refused(result)
    assert not newest.config.exists() and not (key and key in result.error["message"])


def test_config_show_names_the_file_and_what_is_in_force(scripto):
    scripto.write_config(TWO)
    result = scripto.run("config", "show")
    for shown in (str(scripto.config), "you", "scripto_••••••••", PRODUCTION):
        assert shown in result.out
    assert "me@c.d" not in result.out  # `use` has the list
    assert scripto.run("config", "show", "--json").data["path"] == str(scripto.config)


def test_config_show_says_why(newest):
    newest.write_config(TWO)
    env = {"SCRIPTO_API_KEY": "scripto_env", "SCRIPTO_API_BASE_URL": "http://localhost:1"}
    out = newest.run("config", "show", env=env).out
    assert [shown for shown in [*env, "http://localhost:1"] if shown not in out] == []


def test_config_show_names_no_profile_for_a_key_of_the_environment(newest):
    newest.write_config(profiles("you", you=profile(KEY)))
    shown = newest.run("config", "show", "--json", env={"SCRIPTO_API_KEY": KEY}).data["key"]
    assert (shown["source"], shown["profile"]) == ("SCRIPTO_API_KEY", None)
    shown = newest.run("config", "show", "--json").data["key"]
    assert (shown["source"], shown["profile"]) == ("profile", "you")


@pytest.mark.parametrize("flags, env, source", [
    ([], {}, "active"), ([], {"SCRIPTO_PROFILE": "you"}, "SCRIPTO_PROFILE"),
    (["--profile", "you"], {}, "--profile"),
])  # fmt: skip
def test_config_show_says_why_a_profile_is_in_force(newest, flags, env, source):
    newest.write_config(TWO)
    shown = newest.run("config", "show", *flags, "--json", env=env).data["profile"]
    assert shown == {"name": "you", "source": source}


def test_config_show_works_with_nothing_to_show(newest):
    result = newest.run("config", "show")
    assert result.status == 0 and str(newest.config) in result.out and not newest.config.exists()


CLEAR = ["config", "clear", "--all"]


def test_config_clear_needs_yes_where_nobody_can_be_asked(scripto):
    scripto.write_config(TWO)
    error = refused(scripto.run(*CLEAR, "--json", input=b"y\n"))
    assert "scripto config clear --yes --all" in error["nextAction"] and scripto.state() == TWO


@pytest.mark.parametrize("flags", [[], ["--all", "--profile", "me"]], ids=["none", "both"])
def test_config_clear_has_to_be_told_what(newest, flags):
    newest.write_config(TWO)
    env = {"SCRIPTO_PROFILE": "me"}
    error = refused(newest.run("config", "clear", "--yes", *flags, "--json", env=env))
    assert "--profile" in error["message"] and "--all" in error["message"]
    assert newest.state() == TWO


def test_config_clear_forgets_all_profiles(newest):
    newest.write_config(dict(TWO, theme="dark"))
    assert newest.run(*CLEAR, "--yes").status == 0
    state = newest.state()
    assert not state["profiles"] and not state.get("activeProfile") and state["theme"] == "dark"


def test_config_clear_forgets_one_profile(newest):
    newest.write_config(TWO)
    words = ["config", "clear", "--yes", "--json", "--profile"]
    assert newest.run(*words, "me").data == {"removed": ["me"], "activeProfile": "you"}
    assert newest.run(*words, "you").data == {"removed": ["you"], "activeProfile": None}


@pytest.mark.parametrize("typed", [b"y\n", b"Y\n", b"yes\n"])
def test_config_clear_asks_at_a_terminal(newest, typed):
    newest.write_config(TWO)
    result = at_terminal(newest, typed, *CLEAR)
    assert result.status == 0 and newest.state()["profiles"] == {}
    assert "?" in result.err and "?" not in result.out


@pytest.mark.parametrize("typed", [b"n\n", b"\n", b"\x04", b"what?\n"])
def test_config_clear_declined_at_a_terminal_changes_nothing(scripto, typed):
    scripto.write_config(TWO)
    refused(at_terminal(scripto, typed, *CLEAR, "--json"), "cancelled", 130)
    assert scripto.state() == TWO


def test_config_clear_with_yes_does_not_ask(newest):
    newest.write_config(TWO)
    assert at_terminal(newest, b"n\n", *CLEAR, "--yes").err == ""
    assert newest.state()["profiles"] == {}


# ---- No key in any output ----


@pytest.mark.parametrize("as_json", [["--json"], []], ids=["json", "human"])
@pytest.mark.parametrize("words", [
    LOGIN_COMPLETE, ["whoami"], ["use"], ["use", "you"], ["config", "show"],
    ["config", "set", "--api-key", KEY], [*CLEAR, "--yes"], ["logout"],
], ids=" ".join)  # fmt: skip
def test_no_command_shows_the_key(newest, raw_server, words, as_json):
    server = raw_server(minted(EMAIL) if words is LOGIN_COMPLETE else http_reply({"user": ME}))
    newest.write_config(profiles("you", you=profile(KEY, server.url)))
    result = newest.run(*words, *as_json, env={"SCRIPTO_API_BASE_URL": server.url})
    assert result.status == 0 and KEY not in result.out + result.err
    assert KEY[:14] not in result.out + result.err


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


# ---- Which key ----


ENV_KEY = {"SCRIPTO_API_KEY": "scripto_env"}


@pytest.mark.parametrize("flags, env, winner", [
    (["--api-key", "scripto_flag", "--profile", "other"], ENV_KEY, "scripto_flag"),
    (["--profile", "other"], ENV_KEY, "scripto_other"),
    ([], ENV_KEY, "scripto_env"),
    (["--profile", "other"], {}, "scripto_other"),
    ([], {}, "scripto_active"),
])  # fmt: skip
def test_the_key_that_wins_is_the_key_that_is_sent(newest, raw_server, flags, env, winner):
    server = raw_server(http_reply({"user": ME}))
    newest.write_config(profiles("active", active=profile("scripto_active", server.url),
                                  other=profile("scripto_other", server.url)))  # fmt: skip
    assert newest.run("whoami", *flags, env=env).status == 0
    assert [sent_to(server)[1], len(server.requests)] == [winner, 1]
    assert newest.run("auth", "token", *flags, env=env).out == winner + "\n"


def test_a_key_can_come_on_standard_input(scripto, raw_server):
    server = raw_server(http_reply({"user": ME}))
    words = ["whoami", "--api-key", "-", "--api-url", server.url]
    assert scripto.run(*words, input=KEY.encode() + b"\n").status == 0
    assert sent_to(server)[1] == KEY


def test_an_unknown_profile_is_an_error_even_where_another_key_wins(newest, raw_server):
    server = raw_server(http_reply({"user": ME}))
    words = ["whoami", "--profile", "him", "--api-url", server.url, "--json"]
    refused(newest.run(*words, env=ENV_KEY), "not-found", 1)
    assert server.requests == []


# ---- Which base URL ----


@pytest.mark.parametrize("chosen, winner", [
    ("flag env named active", "flag"), ("env named active", "env"), ("env active", "env"),
    ("named active", "named"), ("active", "active"),
])  # fmt: skip
def test_the_base_url_that_wins_is_the_one_that_is_asked(newest, raw_server, chosen, winner):
    servers = {name: raw_server(SENT) for name in ("flag", "env", "named", "active")}
    newest.write_config(profiles("active", active=profile(KEY, servers["active"].url),
                                  named=profile(KEY, servers["named"].url)))  # fmt: skip
    flags = ["--api-url", servers["flag"].url] if "flag" in chosen else []
    flags += ["--profile", "named"] if "named" in chosen else []
    env = {"SCRIPTO_API_BASE_URL": servers["env"].url} if "env" in chosen else {}
    assert newest.run(*LOGIN_REQUEST, *flags, env=env).status == 0
    assert [name for name, server in servers.items() if server.requests] == [winner]


def test_production_is_asked_where_nothing_else_is_said(scripto, witness):
    scripto.run(*LOGIN_REQUEST, env=witness.env)
    assert witness.requests[0].startswith(b"CONNECT scripto.codika.io:443 ")


@pytest.mark.parametrize("flags, env", [
    (["--api-key", "scripto_env", "--profile", "named"], {}),
    ([], dict(ENV_KEY, SCRIPTO_PROFILE="named")),
])  # fmt: skip
def test_a_key_that_is_given_goes_to_the_backend_of_the_named_profile(newest, raw_server, flags, env):
    active, named = raw_server(b""), raw_server(http_reply({"user": ME}))
    newest.write_config(profiles("active", active=profile(KEY, active.url),
                                 named=profile(KEY, named.url)))  # fmt: skip
    assert newest.run("whoami", *flags, env=env).status == 0
    assert sent_to(named)[1] == "scripto_env" and active.requests == []


def test_a_key_of_the_environment_needs_no_profile_that_the_environment_names(newest, raw_server):
    server = raw_server(http_reply({"user": ME}))
    env = dict(ENV_KEY, SCRIPTO_PROFILE="ci", SCRIPTO_API_BASE_URL=server.url)
    assert newest.run("whoami", "--json", env=env).data["keySource"] == "SCRIPTO_API_KEY"
    assert newest.run("auth", "token", env=dict(env, SCRIPTO_API_BASE_URL="")).status == 0


@pytest.mark.parametrize("key", [KEY + "\n", " " + KEY, KEY + "\r\n", "\t" + KEY + " "], ids=repr)
def test_white_space_around_a_key_is_no_part_of_it(newest, key):
    assert newest.run("auth", "token", env={"SCRIPTO_API_KEY": key}).out == KEY + "\n"
    assert newest.run("auth", "token", "--api-key", key).out == KEY + "\n"
    newest.write_config(profiles("you", you=profile(key)))
    assert newest.run("auth", "token").out == KEY + "\n"


def test_a_malformed_key_of_the_environment_says_where_it_is(newest):
    error = refused(newest.run("whoami", "--json", env={"SCRIPTO_API_KEY": "hunter2"}))
    assert error["nextAction"] == "fix or unset SCRIPTO_API_KEY"


def test_an_empty_api_key_is_an_error_and_never_another_key(newest, witness):
    newest.write_config(TWO)
    for env in (witness.env, dict(witness.env, **ENV_KEY)):
        for words in (["whoami"], ["auth", "token"], ["config", "show"]):
            refused(newest.run(*words, "--api-key", "", "--json", env=env))
    assert witness.requests == []


def test_a_key_with_a_named_profile_that_cannot_be_read_is_an_error(newest, raw_server):
    """Whose backend would the key go to?"""
    server = raw_server(http_reply({"user": ME}))
    for folder, code in (("/dev/null", "failed-precondition"), (str(newest.home), "not-found")):
        words = ["whoami", "--api-key", KEY, "--profile", "you", "--json"]
        refused(newest.run(*words, env={"XDG_CONFIG_HOME": folder}), code, 1)
        refused(newest.run(*words, "--api-url", server.url, env={"XDG_CONFIG_HOME": folder}), code, 1)
    assert server.requests == []


# ---- A stored key goes only to the backend that minted it ----


@pytest.mark.parametrize("words", [["whoami"], ["auth", "token"]], ids=" ".join)
@pytest.mark.parametrize("how", ["flag", "environment", "flag and named profile"])
def test_a_stored_key_is_not_sent_elsewhere(newest, raw_server, words, how):
    here, there = raw_server(http_reply({"user": ME})), raw_server(http_reply({"user": ME}))
    newest.write_config(profiles("you", you=profile(KEY, here.url)))
    flags = ["--api-url", there.url] if "flag" in how else []
    flags += ["--profile", "you"] if "named" in how else []
    env = {} if flags else {"SCRIPTO_API_BASE_URL": there.url}
    error = refused(newest.run(*words, *flags, "--json", env=env), "failed-precondition", 1)
    assert "--api-key" in error["nextAction"] and "auth login-request" in error["nextAction"]
    assert error["nextAction"].startswith("drop " + ("--api-url" if flags else "SCRIPTO_API_BASE_URL"))
    assert there.requests == [] and here.requests == []


def test_a_production_key_is_not_sent_to_another_backend(newest, raw_server):
    there = raw_server(http_reply({"user": ME}))
    newest.write_config(profiles("you", you=profile(KEY)))
    result = newest.run("whoami", "--api-url", there.url, "--json")
    refused(result, "failed-precondition", 1)
    assert there.requests == []


@pytest.mark.parametrize("url", [
    "https://backend.example:444", "http://backend.example", "http://backend.example:443",
    "https://backend.example.evil.example", "https://evil.example/backend.example",
    "https://www.backend.example", "https://backend.exampl",
])  # fmt: skip
def test_another_scheme_host_or_port_is_elsewhere(newest, witness, url):
    newest.write_config(profiles("you", you=profile(KEY, "https://backend.example")))
    env = dict(witness.env, SCRIPTO_ALLOW_HTTP="1")
    refused(newest.run("whoami", "--api-url", url, "--json", env=env), "failed-precondition", 1)
    assert witness.requests == []


@pytest.mark.parametrize("url", [
    "https://backend.example/", "https://backend.example:443", "https://BACKEND.Example/path",
])  # fmt: skip
def test_the_same_scheme_host_and_port_is_at_home(newest, witness, url):
    newest.write_config(profiles("you", you=profile(KEY, "https://backend.example")))
    newest.run("whoami", "--api-url", url, env=witness.env)
    assert witness.requests[0].lower().startswith(b"connect backend.example:443 ")


@pytest.mark.parametrize("flags, env", [(["--api-key", "scripto_env"], {}), ([], ENV_KEY)])
def test_a_key_that_was_given_goes_where_it_was_told(newest, raw_server, flags, env):
    there = raw_server(http_reply({"user": ME}))
    newest.write_config(profiles("you", you=profile(KEY, "https://backend.example")))
    assert newest.run("whoami", *flags, "--api-url", there.url, env=env).status == 0
    assert sent_to(there)[1] == "scripto_env"


# ---- What a base URL may be ----


BAD_URLS = [
    "ftp://backend.example", "file:///etc/passwd", "backend.example", "//backend.example",
    "https://", "https://:443", "https:///path", "https:backend.example", "not a url",
    "https://me@backend.example", "https://me:hunter2@backend.example",
    "https://backend.example?a=b", "https://backend.example/?", "https://backend.example/#top",
    "https://backend.example#", "https://backend.example:0", "https://backend.example:65536",
    "https://backend.example:x", "https://back end.example", "https://backend.example/a b",
    "https://backend.example\r\nX-Evil: 1", "https://[::1", "https://[:::]", "https://[1.2.3.4]",
    "https://backend.example\\@evil.example",
    "http://backend.example", "http://127.0.0.1.evil.example", "http://localhost.evil.example",
    "http://10.0.0.1", "http://0.0.0.0", "http://[::2]", "http://127.0.0.256",
    "http://notlocalhost", "http\u017f://127.0.0.1", "http://127.0.0.1\u0661",
]  # fmt: skip


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_bad_base_url_is_refused_and_nothing_is_sent(newest, witness, url):
    result = newest.run(*LOGIN_REQUEST, "--api-url", url, "--json", env=witness.env)
    assert refused(result)["nextAction"] and witness.requests == []
    assert "hunter2" not in result.out


@pytest.mark.parametrize("words", [LOGIN_REQUEST, LOGIN_COMPLETE, ["whoami", "--api-key", KEY],
                                   ["config", "set", "--api-key", KEY]], ids=" ".join)
def test_a_bad_base_url_in_the_environment_is_refused(scripto, witness, words):
    env = dict(witness.env, SCRIPTO_API_BASE_URL="http://backend.example")
    refused(scripto.run(*words, "--json", env=env))
    assert witness.requests == [] and not scripto.config.exists()


@pytest.mark.parametrize("words", [LOGIN_REQUEST, ["whoami"]], ids=" ".join)
def test_a_bad_base_url_in_the_profile_is_the_files_fault(newest, witness, words):
    newest.write_config(profiles("you", you=profile(KEY, "http://backend.example")))
    refused(newest.run(*words, "--json", env=witness.env), "failed-precondition", 1)
    assert witness.requests == []


@pytest.mark.parametrize("url, stored", [
    ("http://localhost", "http://localhost"), ("http://127.0.0.1:8787/", "http://127.0.0.1:8787"),
    ("http://127.9.8.7", "http://127.9.8.7"), ("http://[::1]:8787", "http://[::1]:8787"),
    ("https://backend.example//", "https://backend.example"),
    ("https://backend.example/a/b/", "https://backend.example/a/b"),
])  # fmt: skip
def test_a_good_base_url_is_kept_without_its_trailing_slashes(newest, url, stored):
    words = ["config", "set", "--api-key", KEY, "--api-url", url, "--json"]
    assert newest.run(*words).data["baseUrl"] == stored
    assert newest.state()["profiles"]["default"]["baseUrl"] == stored


def test_a_path_prefix_is_kept(scripto, raw_server):
    server = raw_server(SENT)
    assert scripto.run(*LOGIN_REQUEST, "--api-url", server.url + "/some/where/").status == 0
    assert sent_to(server)[0] == "POST /some/where/api/cli/login-request HTTP/1.1"


@pytest.mark.parametrize("allow, sent", [("1", True), ("0", False), ("", False)])
def test_plain_http_beyond_loopback_has_to_be_allowed(newest, witness, allow, sent):
    env = dict(witness.env, SCRIPTO_ALLOW_HTTP=allow)
    newest.run(*LOGIN_REQUEST, "--api-url", "http://backend.example", env=env)
    assert [request.split(b"\r\n")[0] for request in witness.requests] == sent * [
        b"POST http://backend.example/api/cli/login-request HTTP/1.1"]  # fmt: skip


# ---- Where the files are ----


def test_xdg_config_home_is_where_the_profiles_live(scripto, tmp_path):
    env = {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    assert scripto.run("config", "set", "--api-key", KEY, env=env).status == 0
    path = tmp_path / "xdg" / "scripto" / "config.json"
    assert path.exists() and list(scripto.home.iterdir()) == []
    assert scripto.run("config", "show", "--json", env=env).data["path"] == str(path)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("value", ["", "xdg", "./xdg", "~/xdg"])
def test_an_xdg_variable_that_is_empty_or_relative_is_ignored(scripto, tmp_path, value):
    (tmp_path / "here").mkdir()
    env = {"XDG_CONFIG_HOME": value}
    scripto.run("config", "set", "--api-key", KEY, env=env, cwd=str(tmp_path / "here"))
    assert scripto.config.exists() and list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("value, place", [
    ("{home}/data", "data"), ("data", ".local/share"),
])
@pytest.mark.slow
def test_the_backends_data_is_where_xdg_data_home_says(newest, value, place):
    env = {"XDG_DATA_HOME": value.format(home=newest.home)}
    server = newest.start("serve", "--port", "0", env=env, stderr=subprocess.DEVNULL)
    with server:
        first = server.stdout.readline()
        server.send_signal(signal.SIGTERM)
    database = newest.home / place / "scripto" / "scripto.db"
    assert first.startswith(b"listening on ") and server.returncode == 0
    assert stat.S_IMODE(database.stat().st_mode) == 0o600


# ---- No home folder ----


def passwd_says(home):
    """Flags and environment for a run with HOME unset and that passwd entry, None for none."""
    code = ("import pwd, runpy, sys, types\n"
            "def getpwuid(uid):\n"
            "    if not %(home)r: raise KeyError(uid)\n"
            "    return types.SimpleNamespace(pw_dir=%(home)r)\n"
            "pwd.getpwuid, sys.argv = getpwuid, sys.argv[1:]\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')\n")  # fmt: skip
    return {"flags": ["-c", code % {"home": home}], "env": {"HOME": None}}


def test_without_home_the_passwd_entry_counts(scripto):
    run = passwd_says(str(scripto.home))
    assert scripto.run("config", "set", "--api-key", KEY, **run).status == 0
    assert scripto.config.exists()


@pytest.mark.parametrize("words", [
    ["use"], ["logout"], ["config", "show"], ["config", "clear", "--yes", "--all"], LOGIN_COMPLETE,
    ["config", "set", "--api-key", KEY], ["whoami", "--profile", "you"],
], ids=" ".join)  # fmt: skip
def test_no_home_is_an_error_that_names_the_way_out(newest, raw_server, words):
    server, run = raw_server(minted(EMAIL)), passwd_says(None)
    run["env"]["SCRIPTO_API_BASE_URL"] = server.url
    error = refused(newest.run(*words, "--json", **run), "failed-precondition", 1)
    assert "XDG_CONFIG_HOME" in error["nextAction"] or "SCRIPTO_API_KEY" in error["nextAction"]
    assert server.requests == []


def test_with_no_home_the_way_out_is_one(scripto, raw_server, tmp_path):
    server = raw_server(http_reply({"user": ME}))
    run = passwd_says(None)
    run["env"].update(SCRIPTO_API_BASE_URL=server.url)
    assert scripto.run("whoami", "--api-key", KEY, **run).status == 0
    run["env"].update(SCRIPTO_API_KEY=KEY)
    assert scripto.run("whoami", **run).status == 0
    run["env"].update(SCRIPTO_API_KEY=None, XDG_CONFIG_HOME=str(tmp_path / "xdg"))
    assert scripto.run("config", "set", "--api-key", KEY, **run).status == 0
    assert scripto.run("whoami", **run).status == 0


@pytest.mark.parametrize("words", [["--version"], ["--help"], LOGIN_REQUEST], ids=" ".join)
def test_no_home_is_no_error_where_no_file_is_needed(newest, raw_server, words):
    run = passwd_says(None)
    run["env"]["SCRIPTO_API_BASE_URL"] = raw_server(SENT).url
    assert newest.run(*words, **run).status == 0


# ---- The same backend ----


def test_a_new_key_for_a_profile_is_for_the_same_backend(scripto):
    words = ["config", "set", "--profile-name", "work", "--api-key"]
    scripto.run(*words, KEY, "--api-url", "http://127.0.0.1:8787", "--json").data
    assert scripto.run(*words, KEY + "2", "--json").data["baseUrl"] == "http://127.0.0.1:8787"
    assert scripto.state()["profiles"]["work"]["apiKey"] == KEY + "2"


def test_a_backend_is_the_same_however_it_is_spelled(scripto, backend):
    scripto.sign_in(backend)
    state = scripto.state()
    state["profiles"]["you"]["baseUrl"] += "/"  # as another program may have written it
    scripto.write_config(state)
    assert scripto.sign_in(backend)["profile"] == "you"
    words = ["config", "set", "--api-key", KEY, "--api-url", PRODUCTION + ":443/", "--json"]
    assert scripto.run(*words).data["baseUrl"] == PRODUCTION


def test_logging_out_of_another_profile_says_nothing_of_the_active_one(scripto):
    profiles = {"a": {"apiKey": KEY}, "b": {"apiKey": KEY}}
    scripto.write_config({"activeProfile": "a", "profiles": profiles})
    assert "active" not in scripto.run("logout", "b").out


# ---- The former key, and keys that end ----


def test_a_renewal_says_that_the_former_key_still_works_and_how_to_end_it(scripto, backend):
    first, key = scripto.sign_in(backend), scripto.run("auth", "token").out.strip()
    assert "formerKeyId" not in first
    scripto.run(*LOGIN_REQUEST, "--api-url", backend.url)
    words = [*LOGIN_COMPLETE[:-1], backend.code_for(EMAIL), "--api-url", backend.url]
    shown = scripto.run(*words)
    assert shown.out == COMPLETED and backend.request("GET", "/api/auth/me", key=key)[0] == 200
    line = re.search("scripto (keys revoke .*)", shown.err).group(1)
    assert line == "keys revoke " + first["keyId"] and "still works" in shown.err
    assert scripto.run(*line.split()).status == 0
    assert backend.request("GET", "/api/auth/me", key=key)[0] == 401
    assert scripto.sign_in(backend)["formerKeyId"].startswith("key_")


def test_a_key_that_replaces_another_by_hand_says_so_too(newest):
    newest.write_config(profiles("you", you=profile("scripto_old", keyId="key_7")))
    words = ["config", "set", "--profile-name", "you", "--json", "--api-key"]
    assert newest.run(*words, KEY).data["formerKeyId"] == "key_7"
    assert "formerKeyId" not in newest.run(*words, KEY).data


def test_a_key_is_named_by_its_machine(newest, backend):
    newest.sign_in(backend)
    (key,) = newest.run("keys", "list", "--json").data["keys"]
    assert key["name"] == "scripto-cli on " + socket.gethostname()


def test_keys_revoke_others_leaves_the_one_in_use(scripto, backend):
    for name in ("laptop", "server", "phone"):
        scripto.sign_in(backend, EMAIL, "--name", name)
    words = ["keys", "revoke", "--others"]
    error = refused(scripto.run(*words, "--json"))
    assert "scripto keys revoke --yes --others" in error["nextAction"]
    refused(at_terminal(scripto, b"n\n", *words, "--json"), "cancelled", 130)
    assert len(scripto.run(*words, "--yes", "--json").data["ids"]) == 2
    assert [key["name"] for key in scripto.run("keys", "list", "--json").data["keys"]] == ["phone"]
    assert scripto.run(*words, "--json").data["ids"] == []  # nothing to ask about


def test_keys_revoke_others_ends_no_key_where_the_one_in_use_is_not_listed(newest, raw_server):
    server = raw_server(http_reply({"success": True, "data": {"keys": [{"id": "key_2"}]}}))
    newest.write_config(profiles("you", you=profile(KEY, server.url, keyId="key_1")))
    words = ["keys", "revoke", "--others", "--yes", "--json"]
    refused(newest.run(*words), "failed-precondition", 1)
    assert all(b"DELETE" not in request for request in server.requests)


@pytest.mark.parametrize("words", [[], ["key_1", "--others"]], ids=["neither", "both"])
def test_keys_revoke_has_to_be_told_which(newest, words):
    refused(newest.run("keys", "revoke", *words, "--yes", "--api-key", KEY, "--json"))


def ending(days):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + days * 24 * 3600))


def test_days_are_asked_for_and_the_answer_is_kept_and_shown(newest, raw_server):
    ends = ending(30)
    data = {"apiKey": KEY, "keyId": "key_1", "email": EMAIL, "expiresAt": ends}
    server = raw_server(http_reply({"success": True, "data": data}))
    words = [*LOGIN_COMPLETE, "--api-url", server.url, "--expires-in", "30", "--json"]
    result = newest.run(*words)
    assert sent_to(server)[2]["expiresIn"] == 30 * 24 * 3600
    assert (result.data["expiresAt"], result.err) == (ends, "")
    assert newest.state()["profiles"]["you"]["expiresAt"] == ends
    server.answer = http_reply({"user": ME})
    for words in (["whoami"], ["config", "show"]):
        shown = newest.run(*words)
        assert ends in shown.out and shown.err == ""
        assert newest.run(*words, "--json").data["expiresAt"] == ends


def test_a_key_of_a_real_backend_ends_when_it_was_asked_to(scripto, backend):
    data = scripto.sign_in(backend, EMAIL, "--expires-in", "30")
    assert ending(30)[:13] <= data["expiresAt"][:13] <= ending(30.1)[:13]
    (key,) = scripto.run("keys", "list", "--json").data["keys"]
    assert key["expiresAt"] == data["expiresAt"] and data["expiresAt"] in scripto.run("keys", "list").out


@pytest.mark.parametrize("more", [{"ticket": "t1"}, {}], ids=["ticket", "none"])
def test_a_ticket_goes_back_with_the_code(newest, raw_server, more):
    """A backend that knows none is served as before."""
    sent = http_reply({"success": True, "data": dict({"ok": True, "email": EMAIL}, **more)})

    def answer(connection):
        first = b"login-request" in server.requests[-1]
        connection.sendall(sent if first else minted(EMAIL))

    server = raw_server(answer)
    words = ["auth", "login", "--email", EMAIL, "--code-from", "cmd:echo 123456"]
    newest.run(*words, "--api-url", server.url, "--json").data
    assert sent_to(server)[2].get("ticket") == more.get("ticket")
    assert "t1" not in newest.config.read_text()


@pytest.mark.parametrize("days", ["0", "-1", "1.5", "soon", "4000", ""])
def test_days_that_are_none_cost_no_code(newest, raw_server, days):
    server = raw_server(minted(EMAIL))
    words = [*LOGIN_COMPLETE, "--api-url", server.url, "--expires-in=" + days, "--json"]
    refused(newest.run(*words))
    assert server.requests == []


def test_a_backend_that_knows_no_end_of_keys_is_named_and_served_as_before(newest, raw_server):
    server = raw_server(minted(EMAIL))
    words = [*LOGIN_COMPLETE, "--api-url", server.url]
    assert "--expires-in" in newest.run(*words, "--expires-in", "7").err
    newest.config.unlink()
    shown = newest.run(*words)
    assert (shown.out, shown.err) == (COMPLETED, "") and "expiresIn" not in sent_to(server)[2]


@pytest.mark.parametrize("days, warned", [(8, False), (6, True), (-1, True)])
def test_the_last_seven_days_of_a_key_are_said(newest, raw_server, days, warned):
    server = raw_server(http_reply({"user": ME}))
    newest.write_config(profiles("you", you=profile(KEY, server.url, email=EMAIL,
                                                    expiresAt=ending(days))))  # fmt: skip
    for words in (["whoami"], ["config", "show"]):
        err = newest.run(*words).err
        assert bool(err) is warned and (not warned or ending(days)[:10] in err)
        assert not warned or "scripto auth login-request --email %s --profile you" % EMAIL in err


def test_a_key_that_has_ended_leads_to_the_sign_in(newest, raw_server):
    error = {"code": "unauthenticated", "message": "The key has expired."}
    server = raw_server(http_reply({"success": False, "error": error}, 401))
    newest.write_config(profiles("you", you=profile(KEY, server.url)))
    said = refused(newest.run("whoami", "--json"), "unauthenticated", 4)
    assert said["message"] == "The key has expired."
    assert said["nextAction"] == "sign in with: scripto auth login-request --email <your-email>"


# ---- A code that is no code ----


def test_a_malformed_code_repeats_the_command_with_its_flags(newest, raw_server):
    server = raw_server(minted(EMAIL))
    words = ["auth", "login-complete", "--email", EMAIL, "--code", "12345", "--name", "my laptop"]
    hint = refused(newest.run(*words, "--api-url", server.url, "--json"))["nextAction"]
    line = hint.partition("scripto ")[2].replace("<6-digit-code>", "123456")
    assert newest.run(*shlex.split(line)).status == 0
    assert sent_to(server)[2] == {"email": EMAIL, "otp": "123456", "name": "my laptop"}
