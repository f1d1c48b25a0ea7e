"""No key and no password is shown, by no command, in no error."""
import pytest

from client import EMAILS, GOOD, KEY, LOGIN_REQUEST, NOWHERE, OFFLINE, ask, complete
from conftest import case_id, http_reply, in_turn

# ---- Keys leak nowhere ----


def secret(key):
    """What no output may hold: the key without its public prefix."""
    return key[len("scripto_") :]


@in_turn("as_json", {"json": ["--json"], "human": []})
@pytest.mark.slow
def test_no_command_prints_a_key(as_json, scripto, shared):
    """A whole life of a key, from minting to removal, good and bad."""
    email = next(EMAILS)
    url = ["--api-url", shared.url]
    scripto.run("auth", "login-request", "--email", email, *url)
    words = complete(email, shared.code_for(email), shared.url)[:-1]
    results = [scripto.run(*words, *as_json)]
    minted_key = scripto.run("auth", "token").out.strip()
    assert minted_key.startswith("scripto_")
    given = ["--api-key", KEY]
    named = ["--profile", scripto.state()["activeProfile"]]
    for words in (
        ["whoami"], ["whoami", *named, *given], ["whoami", *given, *url], ["use"],
        ["use", named[1]], ["use", "nobody"], ["config", "show"], ["config", "show", *given],
        ["config", "show", "--api-url", NOWHERE], ["whoami", "--api-url", NOWHERE],
        ["config", "set", *given], ["config", "set", *given, "--profile-name", "a/b"],
        ["config", "set", *given, "--nonsense"], ["config", "set", "--api-key", KEY + " x"],
        ["config", "set", "--api-key", KEY[1:]], ["auth", "token", "--api-key", KEY[1:]],
        ["config", "set", *given, "--api-url", "ftp://x"], ["doctor", *named], ["doctor", *url],
        ["whoami", "--api-key", KEY, "--api-url", NOWHERE], ["logout", named[1]], ["logout"],
        ["logout"], ["config", "clear", "--all", "--yes"],
    ):  # fmt: skip
        results.append(scripto.run(*words, *as_json, env={"HTTPS_PROXY": NOWHERE}))
    for result in results:
        assert secret(minted_key) not in result.out + result.err
        assert secret(KEY)[:-1] not in result.out + result.err


@pytest.mark.parametrize("words", (
    ["config", "set", KEY], ["config", "set", "--api-keys", KEY], ["use", KEY], ["logout", KEY],
    ["whoami", KEY], ["whoami", "--profile", KEY], ["whoami", "--api-url", KEY], [KEY],
    ["auth", KEY], ["auth", "login-request", "--email", KEY], ["whoami", "--key=" + KEY],
    ["--api-key=" + KEY, "whoami"], ["config", "set", KEY.replace("3", ".")],
), ids=case_id)  # fmt: skip
def test_a_key_in_the_wrong_place_is_not_echoed(words, newest):
    """Its owner mistyped; the log that keeps the error is read by others."""
    newest.write_config(GOOD)
    for result in (newest.run(*words), newest.run(*words, "--json")):
        assert secret(KEY) not in result.out + result.err


def test_a_bad_key_of_the_environment_is_not_quoted(scripto):
    for command in (["whoami"], ["auth", "token"], ["config", "show"]):
        for value in (secret(KEY), KEY + " x"):
            result = scripto.run(*command, env={"SCRIPTO_API_KEY": value})
            assert secret(KEY) not in result.out + result.err


@in_turn("status, code", ((401, "unauthenticated"), (500, "internal")))
def test_a_backend_that_quotes_the_key_does_not_get_it_printed(status, code, scripto, raw_server):
    body = {"success": False, "error": {"code": code, "message": "bad key %s!" % KEY}}
    words = ["whoami", "--api-key", KEY, "--api-url", raw_server(http_reply(body, status)).url]
    for result in (scripto.run(*words), scripto.run(*words, "--json")):
        assert result.status != 0 and secret(KEY) not in result.out + result.err


@pytest.mark.parametrize("command", (["use"], ["logout", "odd"], ["config", "show"], ["whoami"]),
                         ids=" ".join)  # fmt: skip
def test_a_broken_stored_key_is_not_quoted(command, newest):
    newest.write_config({"activeProfile": "odd", "profiles": {"odd": {"apiKey": secret(KEY)}}})
    result = newest.run(*command, env=OFFLINE)
    assert secret(KEY) not in result.out + result.err


@pytest.mark.slow
def test_a_bad_file_is_not_quoted(newest):
    for content in (GOOD[:-30], b'{"profiles": "%s"}' % KEY.encode(), KEY.encode()):
        newest.write_config(content)
        for words in (["use"], ["config", "show"], ["doctor", "--api-url", NOWHERE]):
            result = newest.run(*words)
            assert result.status == 1 and secret(KEY)[:20] not in result.out + result.err


# ---- Keys where they should not be ----

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
    assert newest.run(*LOGIN_REQUEST, "--json", "--api-url", server.url).error["code"] == "invalid-response"
