"""Signing in, whoami, use, logout, auth token, and what becomes of the former key."""
import os
import re
import shlex
import socket
import stat
import time

import pytest

from client import (  # fmt: skip
    COMPLETED, EMAIL, GOOD, KEY, LOGIN_COMPLETE, LOGIN_REQUEST, ME, PRODUCTION, REQUESTED, SENT,
    TWO, at_terminal, minted, profile, profiles, refused, sent_to, some_state)
from conftest import Scripto, http_reply, in_turn


def complete(scripto, server, email, *flags):
    """login-complete at a raw server, which mints for that email; returns its data."""
    server.answer = minted(email)
    words = ["auth", "login-complete", "--email", email, "--code", "123456", *flags]
    return scripto.run(*words, "--api-url", server.url, "--json").data


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


# ---- whoami says what was checked ----

REFUSALS = {
    "refused": (http_reply({"error": "Unauthorized"}, 401), 4, "unauthenticated"),
    "refused-html": (http_reply(b"<html>", 401), 4, "unauthenticated"),
    "failing": (http_reply({"error": "x"}, 500), 3, "internal"),
    "limited": (http_reply({"error": "x"}, 429), 3, "resource-exhausted"),
    "silent": (b"", 3, "network-error"),
    "web-page": (http_reply(b"<html>hello</html>"), 1, "invalid-response"),
    "redirect": (http_reply(b"", 302, "Location: /login"), 1, "invalid-response"),
    "null": (http_reply(b"null"), 1, "invalid-response"),
    "no-user": (http_reply({"success": True}), 1, "invalid-response"),
    "user-null": (http_reply({"user": None}), 1, "invalid-response"),
    "user-empty": (http_reply({"user": {}}), 1, "invalid-response"),
    "user-blank": (http_reply({"user": {"id": "", "email": ""}}), 1, "invalid-response"),
    "user-odd": (http_reply({"user": {"id": 7, "email": None}}), 1, "invalid-response"),
    "half": (http_reply({"user": {"id": "u"}})[:-5], 1, "invalid-response"),
}


@in_turn("reply, status, code", REFUSALS)
def test_whoami_never_answers_from_the_profile(reply, status, code, scripto, raw_server):
    state = some_state()
    state["profiles"]["you"]["baseUrl"] = raw_server(reply).url
    scripto.write_config(state)
    result = scripto.run("whoami", "--json")
    assert "you@example.com" not in result.out
    assert (result.status, result.error["code"]) == (status, code)
    human = scripto.run("whoami")
    assert human.status == status and not human.out


def test_whoami_does_not_answer_when_nobody_is_there(scripto):
    scripto.write_config(GOOD)
    result = scripto.run("whoami", "--json")
    assert (result.status, result.error["code"]) == (3, "network-error")
    assert "you@example.com" not in result.out


def test_whoami_fills_only_blanks_and_only_from_the_keys_own_profile(scripto, raw_server):
    state = some_state()
    server = raw_server(http_reply({"user": {"id": "u", "email": "", "name": ""}}))
    state["profiles"]["you"]["baseUrl"] = server.url
    scripto.write_config(state)
    assert scripto.run("whoami", "--json").data["user"]["email"] == "you@example.com"
    words = ["whoami", "--api-key", KEY, "--json"]
    assert not scripto.run(*words).data["user"]["email"]


# ---- use, logout, auth token ----


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


def test_a_former_key_that_has_ended_is_not_said_to_work(newest, raw_server):
    server = raw_server(minted(EMAIL))
    newest.write_config(profiles("you", you=profile("scripto_old", server.url, email=EMAIL,
                                                    keyId="key_7", expiresAt=ending(-1))))  # fmt: skip
    result = newest.run(*LOGIN_COMPLETE, "--api-url", server.url, "--json")
    assert "formerKeyId" not in result.data and result.err == ""


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
