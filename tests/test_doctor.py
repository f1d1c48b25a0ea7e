"""What doctor finds: it looks, changes nothing, and tells no secret."""
import json
import os
import time

import pytest

from conftest import http_reply

KEY = "scripto_fromthetests"
USER = {"user": {"id": "user_1", "email": "you@example.com", "name": ""}}
NOWHERE = "http://127.0.0.1:1"  # a port of the system's, at which nothing listens


def examine(scripto, *words, **start):
    """Runs doctor, for a person and for a program, and returns the checks by name."""
    run = scripto.run("doctor", *words, "--json", **start)
    envelope = run.envelope
    checks, told = envelope["data"]["checks"], envelope.get("error")
    broken = [each for each in checks if each["status"] == "error"]
    assert bool(broken) is bool(told) is (run.status != 0)
    assert not broken or told["message"] == broken[0]["message"]
    return {each["name"]: each for each in checks}


def statuses(checks):
    return {name: each["status"] for name, each in checks.items()}


def snapshot(folder):
    """Every file below the folder, with its content, mode and time of change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        found[str(path)] = (status.st_mode, status.st_mtime_ns, content)
    return found


def well(raw_server):
    """The URL of a backend that takes every key."""
    return raw_server(http_reply(USER)).url


# ---- All is well ---------------------------------------------------------------


def test_all_is_well_after_a_sign_in(scripto, backend):
    scripto.sign_in(backend)
    found = statuses(examine(scripto))
    assert list(found) == ["python", "sqlite", "profiles", "access", "tls", "proxy", "backend",
                           "key", "skill"]  # fmt: skip
    assert found.pop("tls") == "skipped"  # matters to https only
    assert set(found.values()) == {"ok"}
    run = scripto.run("doctor")
    assert run.status == 0 and run.err == "" and "✗" not in run.out
    assert all(line.startswith(("✓ ", "- ", "  ")) for line in run.out.splitlines())


def test_each_check_is_a_name_a_status_and_a_message(newest):
    for each in examine(newest, "--api-url", NOWHERE).values():
        assert each["status"] in ("ok", "skipped", "warning", "error") and each["message"]
        assert each["status"] in ("ok", "skipped") or each["nextAction"], each


def test_each_finding_has_one_line_and_says_what_to_do(newest):
    run = newest.run("doctor", "--api-url", NOWHERE)
    lines = run.out.splitlines()
    findings = [number for number, line in enumerate(lines) if line.startswith(("✗ ", "! "))]
    assert run.status == 3 and findings and run.err == ""
    assert all("next: " in lines[number + 1] for number in findings)


def test_no_check_is_both_well_and_broken(newest):
    data = newest.run("doctor", "--api-url", NOWHERE, "--json").envelope["data"]
    names = [each["name"] for each in data["checks"]]
    assert len(names) == len(set(names)), names
    assert "None" not in json.dumps(data)


def test_it_says_which_key_and_base_url_are_in_force_and_why(newest, raw_server):
    url = well(raw_server)
    env = {"SCRIPTO_API_KEY": KEY, "SCRIPTO_API_BASE_URL": url}
    access = examine(newest, env=env)["access"]["message"]
    assert url in access and "SCRIPTO_API_KEY" in access and "SCRIPTO_API_BASE_URL" in access
    access = examine(newest, "--api-key", KEY, "--api-url", url)["access"]["message"]
    assert "--api-key" in access and "--api-url" in access


# ---- Something is broken -------------------------------------------------------


def test_no_key_is_a_warning_and_says_how_to_sign_in(newest, raw_server):
    """A machine at which nobody has signed in yet is well."""
    words = ["doctor", "--json", "--api-url", well(raw_server)]
    checks = {each["name"]: each for each in newest.run(*words).data["checks"]}
    assert checks["access"]["status"] == "warning"
    sign_in = "sign in with: scripto auth login-request --email <your-email>"
    assert checks["access"]["nextAction"] == sign_in
    assert checks["backend"]["status"] == "ok" and checks["key"]["status"] == "skipped"


def test_a_refused_key_is_broken(newest, backend):
    words = ["--api-key", KEY, "--api-url", backend.url]
    checks = examine(newest, *words)
    assert checks["backend"]["status"] == "ok" and checks["key"]["status"] == "error"
    sign_in = "sign in with: scripto auth login-request --email <your-email>"
    assert checks["key"]["nextAction"] == "pass another --api-key, or " + sign_in
    run = newest.run("doctor", *words, "--json")
    assert (run.status, run.error["code"], run.error["httpStatus"]) == (4, "unauthenticated", 401)


@pytest.mark.slow
def test_a_backend_that_is_down_is_broken(newest, backend):
    newest.sign_in(backend)
    backend.stop()
    checks = examine(newest)
    assert checks["backend"]["status"] == "error" and backend.url[7:] in json.dumps(checks)
    assert checks["key"]["status"] == "skipped"
    assert checks["profiles"]["status"] == checks["access"]["status"] == "ok"
    run = newest.run("doctor", "--json")
    assert (run.status, run.error["code"]) == (3, "network-error")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_backend_in_trouble_is_not_blamed_on_the_key(newest, raw_server, status):
    url = raw_server(http_reply(b"busy", status)).url
    checks = examine(newest, "--api-key", KEY, "--api-url", url)
    broken = [each for each in checks.values() if each["status"] == "error"]
    assert broken and not any("sign in" in each["nextAction"] for each in broken)
    run = newest.run("doctor", "--api-key", KEY, "--api-url", url, "--json")
    assert (run.status, run.error["httpStatus"]) == (3, status)


@pytest.mark.parametrize("answer", [
    http_reply(b"<html>Welcome</html>"), http_reply(b"[]"), http_reply(USER, 302, "Location: /"),
    http_reply(b"", 404), b"garbage\r\n\r\n",
], ids=["html", "list", "redirect", "not found", "garbage"])  # fmt: skip
def test_what_is_no_scripto_backend_is_broken(newest, raw_server, answer):
    checks = examine(newest, "--api-key", KEY, "--api-url", raw_server(answer).url)
    assert (checks["backend"]["status"], checks["key"]["status"]) == ("error", "skipped")


@pytest.mark.slow
def test_a_silent_backend_is_broken_in_time(newest, raw_server):
    silent = raw_server(lambda connection: connection.recv(1))
    begin = time.monotonic()
    env = {"SCRIPTO_TIMEOUT": "1"}
    checks = examine(newest, "--api-key", KEY, "--api-url", silent.url, env=env)
    assert checks["backend"]["status"] == "error" and time.monotonic() - begin < 10


@pytest.mark.parametrize("days, status", [(6, "warning"), (8, "ok")])
def test_a_key_that_soon_ends_is_a_warning(newest, raw_server, days, status):
    ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + days * 24 * 3600))
    profile = {"apiKey": KEY, "email": "you@example.com", "expiresAt": ends,
               "baseUrl": well(raw_server)}
    newest.write_config({"profiles": {"you": profile}, "activeProfile": "you"})
    key = examine(newest)["key"]
    assert key["status"] == status and (status == "ok" or ends in key["message"])
    assert status == "ok" or key["nextAction"].startswith("sign in again with: scripto auth login")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\0", b"[]", b'{"profiles": 3}', b"[" * 99999])
def test_a_broken_profile_file_is_told_and_left_alone(newest, content):
    newest.write_config(content)
    checks = examine(newest, "--api-url", NOWHERE)
    assert checks["profiles"]["status"] == "error"
    assert str(newest.config) in checks["profiles"]["message"]
    assert newest.config.read_bytes() == content


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_what_is_no_file_in_its_place_is_broken_and_no_hang(newest, kind):
    newest.config.parent.mkdir(parents=True)
    os.mkdir(newest.config) if kind == "folder" else os.mkfifo(newest.config)
    assert examine(newest, "--api-url", NOWHERE)["profiles"]["status"] == "error"


def test_no_home_is_told(newest):
    checks = examine(newest, "--api-url", NOWHERE, env={"HOME": ""})
    assert [checks[name]["status"] for name in ("profiles", "access")] == ["warning", "error"]
    assert "XDG_CONFIG_HOME" in checks["profiles"]["nextAction"]


@pytest.mark.parametrize("env, words", [
    ({"SCRIPTO_API_BASE_URL": "ftp://x"}, []),
    ({"SCRIPTO_API_KEY": "nonsense"}, ["--api-url", NOWHERE]),
    ({"SCRIPTO_TIMEOUT": "soon"}, ["--api-url", NOWHERE, "--api-key", KEY]),
    ({}, ["--api-url", "http://backend.example", "--api-key", KEY]),
    ({}, ["--api-url", NOWHERE, "--profile", "nobody"]),
], ids=str)  # fmt: skip
def test_a_wrong_setting_is_a_finding(newest, env, words):
    broken = [each for each in examine(newest, *words, env=env).values()
              if each["status"] == "error"]  # fmt: skip
    assert broken and all(each["nextAction"] for each in broken)


def test_a_stored_key_goes_nowhere_but_home(newest, raw_server):
    home, stranger = raw_server(http_reply(USER)), raw_server(http_reply(USER))
    newest.run("config", "set", "--api-key", KEY, "--api-url", home.url)
    checks = examine(newest, "--api-url", stranger.url)
    assert checks["access"]["status"] == "error" and home.url in checks["access"]["message"]
    assert KEY.encode() not in b"".join(stranger.requests)


# ---- TLS and proxies -----------------------------------------------------------


def test_tls_is_looked_at_for_https_only(newest):
    for url, status in (("https://127.0.0.1:1", "ok"), (NOWHERE, "skipped")):
        assert examine(newest, "--api-key", KEY, "--api-url", url)["tls"]["status"] == status


def test_no_authorities_are_broken_for_https(newest, raw_server, tls, tmp_path):
    (tmp_path / "empty").mkdir()
    env = {"SSL_CERT_FILE": str(tmp_path / "none"), "SSL_CERT_DIR": str(tmp_path / "empty")}
    found = examine(newest, "--api-key", KEY, "--api-url", raw_server(b"", tls).url, env=env)
    assert found["backend"]["status"] == "error"
    assert "ca-certificates" in found["backend"]["nextAction"]


PASSWORDS = ["http://me:hunter2@127.0.0.1:1", "me:hunter2@127.0.0.1:1",
             "http://hunter2@127.0.0.1:1", "http://me:%68unter2@127.0.0.1:1"]  # fmt: skip


@pytest.mark.parametrize("proxy", PASSWORDS)
def test_the_proxy_in_force_is_shown_without_its_password(newest, proxy):
    words = ["--api-key", KEY, "--api-url", "https://backend.example"]
    run = newest.run("doctor", *words, env={"https_proxy": proxy})
    assert "127.0.0.1:1" in run.out and "unter2" not in run.out + run.err


def test_a_proxy_that_is_not_in_force_is_not_named(newest, raw_server):
    env = {"http_proxy": "http://proxy.example:3128"}
    checks = examine(newest, "--api-key", KEY, "--api-url", well(raw_server), env=env)
    assert "proxy.example" not in checks["proxy"]["message"]
    env.update(no_proxy="0.0.0.0", SCRIPTO_ALLOW_HTTP="1")
    checks = examine(newest, "--api-key", KEY, "--api-url", "http://0.0.0.0:1", env=env)
    assert "proxy.example" not in checks["proxy"]["message"]


# ---- The skill that an agent has -----------------------------------------------


@pytest.mark.parametrize("place", [".claude", ".agents", ".config/some-agent"])
def test_a_skill_of_another_version_is_told(newest, place):
    skill = newest.home / place / "skills" / "scripto" / "SKILL.md"
    skill.parent.mkdir(parents=True)
    skill.write_text(newest.run("guide", "--skill").out)
    assert examine(newest, "--api-url", NOWHERE)["skill"]["status"] == "ok"
    skill.write_text(skill.read_text().replace('version: "', 'version: "9'))
    found = examine(newest, "--api-url", NOWHERE)["skill"]
    assert found["status"] == "warning" and str(skill) in found["message"]
    assert found["nextAction"] == "write it anew: scripto guide --skill > %s" % skill


# ---- By looking only -----------------------------------------------------------


def test_it_changes_nothing_on_a_machine_that_knows_nothing(newest):
    examine(newest, "--api-url", NOWHERE)
    assert list(newest.home.iterdir()) == []


def test_it_changes_nothing_on_a_machine_that_is_signed_in(newest, backend):
    newest.sign_in(backend)
    newest.config.chmod(0o644)
    before = snapshot(newest.home)
    examine(newest)
    assert snapshot(newest.home) == before
    assert len(backend.mails()) == 1


def test_it_asks_the_backend_nothing_that_costs(newest, raw_server):
    server = raw_server(http_reply(USER))
    examine(newest, "--api-key", KEY, "--api-url", server.url)
    assert server.requests and all(each.startswith(b"GET ") for each in server.requests)


@pytest.mark.parametrize("source", ["profile", "environment", "flag", "refused", "bad"])
def test_it_never_shows_the_key(newest, raw_server, source):
    url, key, words, env = well(raw_server), KEY, [], {}
    if source == "refused":
        url = raw_server(http_reply({"error": "Unauthorized " + KEY}, 401)).url
    if source == "bad":
        key = KEY + " with white space"
    if source == "profile":
        newest.run("config", "set", "--api-key", key, "--api-url", url)
    elif source == "environment":
        env = {"SCRIPTO_API_KEY": key}
    else:
        words = ["--api-key", key]
    for more in ([], ["--json"]):
        run = newest.run("doctor", *words, "--api-url", url, *more, env=env)
        assert run.out and KEY not in run.out + run.err


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("gone", path)])
def test_a_skill_file_that_is_none_is_told(newest, make):
    folder = newest.home / ".some" / "skills" / "scripto"
    folder.mkdir(parents=True)
    make(str(folder / "SKILL.md"))
    assert examine(newest, "--api-url", NOWHERE)["skill"]["status"] == "warning"
