"""`config set`, `config show`, `config clear`."""
import pytest

from client import CLEAR, KEY, ME, PRODUCTION, TWO, at_terminal, profile, profiles, refused
from conftest import http_reply

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
