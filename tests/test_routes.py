"""The routes beyond the sign-in: keys, the way in for who was refused, the client from a backend."""
import calendar
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import sqlite3
import subprocess
import time
import urllib.request

import pytest

from backend import (  # fmt: skip
    COMPLETE, DAY, ME, REQUEST, RESOURCE, WRONG, YOU, Reply, age, can_connect, code_after_asking,
    enter, get, is_accepted, keys_of, message_of)
from conftest import EDGES, PROGRAM, Backend, Scripto, free_port, wait_until

# ---- Keys ----


def test_keys_are_listed_by_what_they_are_and_not_by_their_secret(backend):
    data = backend.mint(YOU, "laptop")
    reply = get(backend, "/api/keys", data["apiKey"])
    (key,) = reply.value["data"]["keys"]
    assert (key["id"], key["name"]) == (data["keyId"], "laptop")
    assert key["start"] == data["apiKey"][len("scripto_") :][:6]
    assert set(key) == {"id", "name", "start", "createdAt", "lastUsedAt", "expiresAt"}
    assert data["apiKey"] not in json.dumps(reply.value)


def test_a_key_without_a_name_has_the_default_one(backend):
    assert keys_of(backend, backend.mint(YOU)["apiKey"])[0]["name"] == "scripto-cli"


def test_a_user_sees_all_of_their_keys_and_no_other(backend):
    first, second = backend.mint(YOU), backend.mint("YOU@example.com")
    backend.mint("me@example.com")
    listed = {key["id"] for key in keys_of(backend, first["apiKey"])}
    assert listed == {first["keyId"], second["keyId"]}


def test_a_revoked_key_is_dead_and_the_others_live(backend):
    lost, kept = backend.mint(YOU), backend.mint(YOU)
    reply = get(backend, "/api/keys/" + lost["keyId"], kept["apiKey"], "DELETE")
    assert reply.value == {"success": True, "data": {"id": lost["keyId"], "revoked": True}}
    backend.restart(signal.SIGKILL)
    assert not is_accepted(backend, lost["apiKey"]) and is_accepted(backend, kept["apiKey"])


def test_a_key_can_revoke_itself(backend):
    data = backend.mint(YOU)
    assert get(backend, "/api/keys/" + data["keyId"], data["apiKey"], "DELETE").status == 200
    assert not is_accepted(backend, data["apiKey"])


@pytest.mark.parametrize("target", ["{theirs}", "key_unknown", "%27%20OR%201=1", "'OR'1'='1", "%"])
def test_nobody_revokes_the_key_of_another(backend, target):
    mine, theirs = backend.mint(YOU), backend.mint("me@example.com")
    path = "/api/keys/" + target.format(theirs=theirs["keyId"])
    assert get(backend, path, mine["apiKey"], "DELETE").error == (404, "not-found")
    assert is_accepted(backend, theirs["apiKey"]) and is_accepted(backend, mine["apiKey"])


@pytest.mark.parametrize("method, path", [("GET", "/api/keys"), ("DELETE", "/api/keys/{id}")])
def test_keys_need_a_key(backend, method, path):
    data = backend.mint(YOU)
    path = path.format(id=data["keyId"])
    for key in (None, data["apiKey"] + "x", data["keyId"]):
        assert get(backend, path, key, method).error == (401, "unauthenticated")
    assert is_accepted(backend, data["apiKey"])


def test_last_use_is_noted_once_a_minute(backend):
    """Whether somebody else wrote is asked of SQLite itself."""
    key = backend.mint(YOU)["apiKey"]
    assert is_accepted(backend, key) and all(backend.last_uses())
    with contextlib.closing(sqlite3.connect(str(backend.db))) as db:
        version = lambda: db.execute("PRAGMA data_version").fetchone()  # noqa: E731
        before = version()
        assert all(is_accepted(backend, key) for _ in range(20)) and version() == before
        age(backend, 61)
        before = version()
        assert is_accepted(backend, key) and version() != before


def test_last_used_is_when_it_was_used(backend):
    data, other = backend.mint(YOU), backend.mint(YOU)
    seen = {key["id"]: key["lastUsedAt"] for key in keys_of(backend, data["apiKey"])}
    assert seen[other["keyId"]] is None
    used = time.strptime(seen[data["keyId"]], "%Y-%m-%dT%H:%M:%SZ")
    assert abs(calendar.timegm(used) - time.time()) < 60


# ---- Keys that end ----


def stamp(text):
    """Seconds since 1970."""
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))


def sign_in(backend, **more):
    return enter(backend, code_after_asking(backend), **more)


def test_a_key_lasts_as_long_as_was_asked_for(backend):
    data = sign_in(backend, expiresIn=3600).value["data"]
    assert abs(stamp(data["expiresAt"]) - time.time() - 3600) < 60
    (listed,) = keys_of(backend, data["apiKey"])
    assert listed["expiresAt"] == data["expiresAt"]
    age(backend, 3500)
    assert is_accepted(backend, data["apiKey"])


def test_a_key_that_nothing_was_said_of_lasts(backend):
    data = sign_in(backend, expiresIn=None).value["data"]
    assert (data["expiresAt"], keys_of(backend, data["apiKey"])[0]["expiresAt"]) == (None, None)


def test_a_key_that_has_expired_is_refused_and_listed_until_it_is_revoked(backend):
    data, other = sign_in(backend, expiresIn=60).value["data"], backend.mint(YOU)["apiKey"]
    age(backend, 61)
    refusal = get(backend, "/api/keys", data["apiKey"])
    assert refusal.error == (401, "unauthenticated")
    assert message_of(refusal) == "The key has expired."
    assert refusal.value["error"]["nextAction"] == (
        "sign in with: scripto auth login-request --email <your-email>")  # fmt: skip
    assert not is_accepted(backend, data["apiKey"])
    assert data["keyId"] in {key["id"] for key in keys_of(backend, other)}
    path = "/api/keys/" + data["keyId"]
    assert get(backend, path, data["apiKey"], "DELETE").error == (401, "unauthenticated")
    assert get(backend, path, other, "DELETE").status == 200
    assert len(keys_of(backend, other)) == 1


def test_whoami_says_that_the_key_has_expired(backend, scripto):
    data = sign_in(backend, expiresIn=60).value["data"]
    age(backend, 61)
    env = {"SCRIPTO_API_KEY": data["apiKey"], "SCRIPTO_API_BASE_URL": backend.url}
    result = scripto.run("whoami", "--json", env=env)
    assert (result.status, result.error["message"]) == (4, "The key has expired.")
    assert "SCRIPTO_API_KEY" in result.error["nextAction"]


@pytest.mark.parametrize("asked_for, days", [(None, 7), (86400, 1), (30 * 86400, 7)])
def test_the_operator_says_how_long_a_key_lasts_at_most(start_backend, asked_for, days):
    backend = start_backend("--key-days", "7")
    data = sign_in(backend, expiresIn=asked_for).value["data"]
    assert abs(stamp(data["expiresAt"]) - time.time() - days * DAY) < 60


NO_SECONDS = {"none": 0, "negative": -1, "text": "3600", "true": True, "a list": [60],
              "a century and more": 101 * 365 * DAY, "more than there is": 1e300}  # fmt: skip


def test_what_is_no_time_to_last_is_refused_and_costs_no_code(backend):
    code = code_after_asking(backend)
    for seconds in NO_SECONDS.values():
        assert enter(backend, code, expiresIn=seconds).error == WRONG, seconds
    body = ('{"email": "%s", "otp": "%s", "expiresIn": %%s}' % (YOU, code)).encode()
    for too_much in (b"1e999", b"-1e999", b"9" * 400):  # no key that lasts for good
        assert Reply(*backend.request("POST", COMPLETE, body % too_much)).error == WRONG
    assert enter(backend, code, expiresIn=0.5e3).status == 200


# ---- The way in ----


@pytest.mark.parametrize("path", [ME, "/api/keys", "/api/keys/x"])
def test_a_refusal_tells_the_way_in(shared_edge, path):
    """RFC 6750, 3; RFC 9728, 5.1."""
    method = "DELETE" if path.endswith("x") else "GET"
    way = 'Bearer realm="Scripto", resource_metadata="%s%s"' % (shared_edge.url, RESOURCE)
    said = get(shared_edge, path, method=method).headers
    assert said["WWW-Authenticate"] == way
    said = get(shared_edge, path, "scripto_" + "x" * 43, method).headers
    assert said["WWW-Authenticate"] == way + ', error="invalid_token"'


def test_what_is_protected_is_described(start_backend):
    """RFC 9728, 2."""
    backend = start_backend("--public-url", "https://scripto.example/door")
    reply = get(backend, RESOURCE)
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
    assert reply.value == {
        "resource": "https://scripto.example/door", "resource_name": "Scripto",
        "bearer_methods_supported": ["header"],
        "resource_documentation": "https://scripto.example/door/llms.txt",
    }  # fmt: skip
    way = "https://scripto.example/door" + RESOURCE
    assert '"%s"' % way in get(backend, ME).headers["WWW-Authenticate"]


def test_a_page_on_the_web_cannot_send_its_visitors(backend):
    """By a plain form, say, which needs nobody's leave."""
    code, origin = code_after_asking(backend), {"Origin": "https://evil.example"}
    form = dict(origin, **{"Content-Type": "text/plain"})
    body = json.dumps({"email": YOU})
    assert Reply(*backend.request("POST", REQUEST, body, headers=form)).error[0] == 403
    assert enter(backend, code, headers=origin).error[0] == 403
    assert len(backend.mails()) == 1 and get(backend, "/llms.txt", headers=origin).status == 200
    assert enter(backend, code).status == 200


def test_me_tells_a_web_server_who_it_is(backend):
    data = backend.mint(YOU)
    reply = get(backend, ME, data["apiKey"])
    headers = reply.headers["X-Scripto-User"], reply.headers["X-Scripto-Email"]
    assert headers == (data["userId"], YOU)
    refusal = get(backend, ME)
    assert (refusal.status, refusal.value) == (401, {"error": "Unauthorized"})
    assert not [name for name in refusal.headers if name.lower().startswith("x-scripto")]


def test_a_web_server_may_ask_for_an_upload(start_backend, edge):
    """It passes the client's header on, and no body."""
    backend = start_backend(python=edge)
    key = backend.mint(YOU)["apiKey"]
    for kind in ("multipart/form-data; boundary=abc", "multipart/mixed", "message/rfc822"):
        assert get(backend, ME, key, headers={"Content-Type": kind}).status == 200


NGINX = """
{user}
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            auth_request /scripto;
            auth_request_set $scripto_email $upstream_http_x_scripto_email;
            add_header X-Who $scripto_email;
            root {folder};
        }}
        location = /scripto {{
            internal;
            proxy_pass {backend}/api/auth/me;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
        }}
    }}
}}
"""


@contextlib.contextmanager
def nginx(folder, backend):
    """A real nginx that guards page.html with the backend's keys; yields itself as a place to
    send requests to."""
    program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")
    if not program:
        pytest.skip("no nginx")
    port = free_port()
    user = "user root;" if os.geteuid() == 0 else ""  # whose folder the test's is
    (folder / "page.html").write_text("the guarded page")
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(user=user, folder=folder, port=port, backend=backend.url))
    process = subprocess.Popen([program, "-p", str(folder), "-c", str(config)])
    site = type("Site", (), {"url": "http://127.0.0.1:%d" % port, "request": Backend.request})()
    try:
        wait_until(lambda: process.poll() is None and can_connect(port), what="nginx")
        yield site
    finally:
        process.terminate()
        process.wait(20)


def test_nginx_guards_a_page_with_these_keys(backend, tmp_path):
    key = backend.mint(YOU)["apiKey"]
    with nginx(tmp_path, backend) as site:
        assert get(site, "/page.html").status == 401
        assert get(site, "/page.html", key + "x").status == 401
        page = get(site, "/page.html", key)
        assert (page.status, page.value, page.headers["X-Who"]) == (200, b"the guarded page", YOU)


def test_who_knows_a_guarded_url_only_finds_the_way_in(backend, scripto, tmp_path):
    """By the header that nginx hands on, to the guide, and by that through the door."""
    with nginx(tmp_path, backend) as site:
        header = get(site, "/page.html").headers["WWW-Authenticate"]
        way = re.search(r'resource_metadata="([^"]+)"', header).group(1)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        read = lambda url: opener.open(url, timeout=30).read()  # noqa: E731
        resource = json.loads(read(way).decode())
        guide = read(resource["resource_documentation"]).decode()
        url = resource["resource"]
        program = tmp_path / "scripto.py"
        assert url + "/scripto.py" in guide and "auth login-request --email" in guide
        program.write_bytes(read(url + "/scripto.py"))
        more = {"program": str(program)}
        scripto.run("auth", "login-request", "--email", YOU, **more)
        code = backend.code_for(YOU)
        scripto.run("auth", "login-complete", "--email", YOU, "--code", code, **more)
        key = scripto.run("auth", "token", **more).out.strip()
        assert get(site, "/page.html", key).value == b"the guarded page"


# ---- The client from the backend ----


def test_the_file_from_the_backend_signs_in_with_no_flag(start_backend, edge, tmp_path):
    """Downloaded from the one interpreter, run by the other, in a folder with nothing else."""
    backend = start_backend(python=edge)
    reply = get(backend, "/scripto.py")
    program = tmp_path / "download" / "scripto.py"
    program.parent.mkdir()
    program.write_bytes(reply.value)
    user = Scripto(EDGES[EDGES.index(edge) - 1], tmp_path / "user")
    user.run("auth", "login-request", "--email", YOU, program=str(program))
    words = ["auth", "login-complete", "--email", YOU, "--code", backend.code_for(YOU)]
    assert user.run(*words, "--json", program=str(program)).data["baseUrl"] == backend.url
    assert user.run("whoami", "--json", program=str(program)).data["user"]["email"] == YOU


def test_the_file_from_the_backend_is_this_one_but_for_one_line(backend):
    ours = pathlib.Path(PROGRAM).read_bytes().splitlines()
    theirs = get(backend, "/scripto.py").value.splitlines()
    changed = [there for here, there in zip(ours, theirs) if here != there]
    assert len(ours) == len(theirs) and len(changed) == 1 and backend.url.encode() in changed[0]


@pytest.mark.parametrize("path", ["/scripto.py", "/llms.txt"])
def test_what_is_handed_out_names_the_public_url(start_backend, path):
    public = "https://scripto.example.org/door"
    backend = start_backend("--public-url", public)
    body = get(backend, path).value
    assert public.encode() in body and backend.url.encode() not in body


def test_what_is_handed_out_is_what_runs_wherever_the_file_is_by_now(
    start_backend, monkeypatch, tmp_path
):
    copy = shutil.copy(PROGRAM, str(tmp_path / "copy.py"))
    monkeypatch.setattr("conftest.PROGRAM", copy)
    backend = start_backend()
    os.unlink(copy)
    assert get(backend, "/scripto.py").status == 200


def test_a_backend_without_a_file_has_none_to_hand_out(tmp_path, edge):
    command = [edge, "-", "serve", "--port", "0", "--db", str(tmp_path / "db")]
    with open(PROGRAM, "rb") as program:
        process = subprocess.Popen(command, stdin=program, stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        url = process.stdout.readline().decode().split()[-1]
        site = type("Site", (), {"url": url, "request": Backend.request})()
        assert get(site, "/scripto.py").error == (404, "not-found")
        assert get(site, "/healthz").status == 200
    finally:
        process.kill()
        process.communicate()


def test_a_fault_of_the_backend_is_a_500_and_logged(backend):
    """In SQLite's own words, with the line that asked; its answer says nothing of it."""
    key = backend.mint(YOU)["apiKey"]
    with contextlib.closing(sqlite3.connect(str(backend.db))) as db, db:
        db.execute("DROP TABLE keys")
    reply = get(backend, "/api/keys", key)
    assert reply.error == (500, "internal") and "table" not in json.dumps(reply.value)
    wait_until(lambda: "fault" in backend.log(), what="the line")
    (line,) = [line for line in backend.log().splitlines() if "fault" in line]
    assert "/api/keys 500" in line and "no such table: keys" in line and key not in line
    lines = pathlib.Path(PROGRAM).read_text().splitlines()
    numbers = re.findall(r"\d+", line.rpartition(", by line ")[2])
    named = [lines[int(number) - 1] for number in numbers]
    assert any("def " not in text and "key_of(" in text for text in named), named
    assert get(backend, "/llms.txt").status == 200 and get(backend, "/healthz").status == 503
