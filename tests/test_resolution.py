"""Which key, which profile and which base URL are in force, and where a stored key may go."""
import pathlib

import pytest

import conftest
from client import (  # fmt: skip
    ENV_KEY, KEY, LOGIN_COMPLETE, LOGIN_REQUEST, ME, OTHER_KEY, PRODUCTION, SENT, TWO, profile,
    profiles, refused, sent_to, some_state)
from conftest import http_reply

# ---- Which key, which URL: the table ----

FLAG, ENV = "--api-key", "SCRIPTO_API_KEY"
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


# ---- Which key ----


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


# ---- Loopback ----


@pytest.mark.parametrize("host", ("evil.localhost", "localhost.evil", "a.b.localhost", "localhost."))
def test_a_name_below_localhost_is_not_loopback(newest, host):
    error = newest.run(*LOGIN_REQUEST, "--json", "--api-url", "http://%s:8787" % host).error
    assert error["code"] == "invalid-argument" and host in error["message"]


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
