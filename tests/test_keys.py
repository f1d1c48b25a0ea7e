"""`keys list`, `keys revoke`, `logout --revoke`."""
import json

import pytest

from client import KEY, said
from conftest import Terminal, http_reply

HINT_ID = "see the ids with: scripto keys list"


# ---- keys ----


@pytest.fixture
def signed_in(newest, backend):
    """Signed in, with another key named `other` at the backend: (scripto, backend, its id)."""
    newest.sign_in(backend)
    return newest, backend, backend.mint("you@example.com", "other")["keyId"]


def test_keys_list_is_a_table(scripto, backend):
    scripto.sign_in(backend)
    other = backend.mint("you@example.com", "other")
    own = scripto.state()["profiles"]["you"]
    result = scripto.run("keys", "list")
    first, second = result.out.splitlines()[1:]
    assert first.startswith("● " + own["keyId"]) and second.startswith("  " + other["keyId"])
    assert "other" in second and own["apiKey"][8:14] not in result.out
    keys = scripto.run("keys", "list", "--json").data["keys"]
    assert [(key["id"], key["current"]) for key in keys] == [
        (own["keyId"], True), (other["keyId"], False)]  # fmt: skip
    assert own["apiKey"] not in json.dumps(keys)


def test_a_key_that_is_given_is_known_by_how_it_starts(signed_in):
    scripto, backend, other = signed_in
    key = backend.mint("you@example.com")
    env = {"SCRIPTO_API_KEY": key["apiKey"], "SCRIPTO_API_BASE_URL": backend.url}
    keys = scripto.run("keys", "list", "--json", env=env).data["keys"]
    assert [each["id"] for each in keys if each["current"]] == [key["keyId"]]


def test_a_list_with_odd_numbers_is_json_again(newest, raw_server):
    """JSON has no Infinity, and a huge integer would cost seconds."""
    keys = b'[{"id": "key_1", "n": 1e999, "at": %s}]' % (b"1" * 500000)
    url = raw_server(http_reply(b'{"success": true, "data": {"keys": %s}}' % keys)).url
    run = newest.run("keys", "list", "--json", "--api-key", KEY, "--api-url", url)
    assert '"n": null, "at": null,' in run.out


@pytest.mark.parametrize("keys", [None, {}, [1], "x"])
def test_a_list_that_is_none_is_an_error(newest, raw_server, keys):
    url = raw_server(http_reply({"success": True, "data": {"keys": keys}})).url
    words = ["keys", "list", "--json", "--api-key", KEY, "--api-url", url]
    assert newest.run(*words).error["code"] == "invalid-response"


@pytest.mark.slow
def test_keys_revoke_ends_a_key(signed_in):
    scripto, backend, other = signed_in
    assert scripto.run("keys", "revoke", other, "--json").data == {"id": other, "revoked": True}
    assert [key["id"] for key in scripto.run("keys", "list", "--json").data["keys"]] != []
    said(scripto.run("keys", "revoke", other), "not-found", 1, HINT_ID)
    assert scripto.run("whoami").status == 0


def test_the_key_in_use_is_known_by_its_id_where_that_is_stored(newest, raw_server):
    keys = {"keys": [{"id": each, "start": KEY[len("scripto_"):][:6]} for each in ("key_1", "key_2")]}
    url = raw_server(http_reply({"success": True, "data": keys})).url
    profile = {"apiKey": KEY, "keyId": "key_2", "baseUrl": url}
    newest.write_config({"activeProfile": "a", "profiles": {"a": profile}})
    shown = newest.run("keys", "list", "--json").data["keys"]
    assert {key["id"]: key["current"] for key in shown} == {"key_1": False, "key_2": True}


def test_an_id_of_a_backends_making_stays_within_its_path(newest, raw_server):
    data = {"keys": [{"id": "a/../b?c", "start": "zzzzzz"}], "revoked": True}
    server = raw_server(http_reply({"success": True, "data": data}))
    words = ["--api-url", server.url, "--api-key", KEY]
    assert newest.run("keys", "revoke", "a/../b?c", *words).status == 0
    assert server.requests[1].startswith(b"DELETE /api/keys/a%2F..%2Fb%3Fc HTTP")


def test_an_id_that_is_no_text_for_a_url_is_sent_all_the_same(newest, raw_server):
    keys = [{"id": "\ud800"}, {"id": "key_2", "start": KEY[len("scripto_"):][:6]}]
    server = raw_server(http_reply({"success": True, "data": {"keys": keys, "revoked": True}}))
    words = ["--api-url", server.url, "--api-key", KEY, "--yes"]
    assert newest.run("keys", "revoke", "--others", *words).status == 0
    assert server.requests[1].startswith(b"DELETE /api/keys/%3F HTTP")


@pytest.mark.parametrize("key_id", ["key_1", "", "../auth/me", "é", "a b", "x" * 5000])
def test_an_unknown_id_is_an_error(signed_in, key_id):
    scripto, _, other = signed_in
    said(scripto.run("keys", "revoke", "--yes", key_id), "not-found", 1, HINT_ID)
    assert len(scripto.run("keys", "list", "--json").data["keys"]) == 2


@pytest.mark.slow
def test_the_key_in_use_is_revoked_only_on_demand(signed_in):
    scripto, _, _ = signed_in
    own = scripto.state()["profiles"]["you"]["keyId"]
    hint = "if you are sure: scripto keys revoke %s --yes" % own
    said(scripto.run("keys", "revoke", own), "invalid-argument", 2, hint)
    for typed, status in (("n", 130), ("y", 0)):
        terminal = Terminal(scripto, "keys", "revoke", own)
        terminal.wait_for("? [y/N] ")
        terminal.type(typed + "\n")
        assert terminal.end() == status
    assert scripto.run("whoami", "--json").error["code"] == "unauthenticated"


def test_the_key_in_use_is_revoked_without_a_question_by_yes(signed_in):
    scripto, _, _ = signed_in
    own = scripto.state()["profiles"]["you"]["keyId"]
    assert scripto.run("keys", "revoke", own, "--yes").status == 0
    assert scripto.run("whoami", "--json").error["code"] == "unauthenticated"


# ---- logout ----


def works(backend, key):
    return backend.request("GET", "/api/auth/me", key=key)[0] == 200


def test_logout_says_that_nothing_is_revoked_and_how_to(signed_in):
    scripto, backend, _ = signed_in
    profile = scripto.state()["profiles"]["you"]
    out = scripto.run("logout").out
    assert "not revoked" in out and "scripto keys revoke " + profile["keyId"] in out
    assert works(backend, profile["apiKey"])
    for words in (["logout", "--help"], ["config", "clear", "--help"]):
        text = " ".join(scripto.run(*words).out.split())
        assert "revoke" in text
    assert "on this machine" in text


def test_what_logout_says_to_paste_runs_nothing_of_a_backends_making(newest):
    profile = {"apiKey": KEY, "keyId": "$(id)"}
    newest.write_config({"activeProfile": "a", "profiles": {"a": profile}})
    assert "scripto keys revoke '$(id)'" in newest.run("logout").out


def test_logout_with_revoke_revokes_first(scripto, backend):
    scripto.sign_in(backend)
    profile = scripto.state()["profiles"]["you"]
    data = scripto.run("logout", "--revoke", "--json").data
    assert data == {"removed": "you", "revoked": True, "activeProfile": None}
    assert not works(backend, profile["apiKey"]) and scripto.state()["profiles"] == {}


def test_logout_revokes_the_profiles_own_key_at_its_own_backend(signed_in, raw_server):
    scripto, backend, _ = signed_in
    profile = scripto.state()["profiles"]["you"]
    other = backend.mint("me@example.com")["apiKey"]
    elsewhere = raw_server(http_reply({}, 500))
    env = {"SCRIPTO_API_KEY": other, "SCRIPTO_API_BASE_URL": elsewhere.url}
    assert scripto.run("logout", "you", "--revoke", env=env).status == 0
    assert works(backend, other) and not works(backend, profile["apiKey"])
    assert elsewhere.requests == []


def test_a_key_set_by_hand_can_be_revoked(newest, backend):
    key = backend.mint("you@example.com")["apiKey"]
    newest.run("config", "set", "--api-key", key, "--api-url", backend.url)
    assert newest.run("logout", "--revoke").status == 0 and not works(backend, key)


def test_a_key_that_is_refused_counts_as_revoked(signed_in):
    scripto, backend, _ = signed_in
    profile = scripto.state()["profiles"]["you"]
    backend.request("DELETE", "/api/keys/" + profile["keyId"], key=profile["apiKey"])
    before = scripto.config.read_bytes()
    out = scripto.run("logout", "--revoke").out
    assert "Its key works no longer at" in out and "is revoked" not in out
    scripto.config.write_bytes(before)
    assert scripto.run("logout", "--revoke", "--json").data["revoked"] is True
    assert scripto.state()["profiles"] == {}


@pytest.mark.parametrize("how", ["down", "broken", "another key", "not taken"])
def test_logout_keeps_the_profile_if_revoking_fails(newest, raw_server, how):
    keys = [{"id": "key_1", "start": "kkkkkk" if how == "not taken" else "other"}]
    data = {"keys": keys, "revoked": False}
    reply = http_reply({"success": True, "data": data}, 500 if how == "broken" else 200)
    server = raw_server(reply)
    profile = {"apiKey": KEY, "baseUrl": server.url}
    newest.write_config({"activeProfile": "a", "profiles": {"a": profile}})
    if how == "down":
        server.close()
    before = newest.config.read_bytes()
    assert newest.run("logout", "--revoke").status in (1, 3)
    assert newest.config.read_bytes() == before
