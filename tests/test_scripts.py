"""What a script does with a key: api, run, keys, and logout that revokes."""
import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
from conftest import EDGES, PROGRAM, PYTHONS, Scripto, http_reply, python_id
from test_terminal import Terminal

KEY = "scripto_" + "k" * 43
HINT_ID = "see the ids with: scripto keys list"


@pytest.fixture
def newest(tmp_path):
    return Scripto(PYTHONS[-1], tmp_path / "home")


@pytest.fixture
def at(newest, raw_server):
    """at(reply) answers so; returns (api, server): api(*words) runs the command there."""

    def start(reply, scripto=newest):
        server = raw_server(reply)
        env = {"SCRIPTO_API_BASE_URL": server.url, "SCRIPTO_API_KEY": KEY}

        def api(*words, **run):
            return scripto.run("api", *words, env=dict(env, **run.pop("env", {})), **run)

        return api, server

    return start


def said(result, code, status, next_action=None):
    """An error as a person sees it, the two lines at the end of standard error; returns what
    stands before them."""
    assert (result.status, result.out) == (status, ""), result.out + result.err
    *before, message, hint = result.err.splitlines()
    assert message.startswith("✗ ") and hint.startswith("  next: ")
    assert next_action in (None, hint[len("  next: ") :])
    return "\n".join(before)


# ---- api: the request ----


def test_api_asks_with_the_profiles_key(scripto, backend):
    scripto.sign_in(backend)
    me = json.loads(scripto.run("api", "/api/auth/me").out)
    assert me["user"]["email"] == "you@example.com"


@pytest.mark.parametrize("words, line", [
    (["/a"], "GET /a"), (["a"], "GET /a"), ([""], "GET /"), (["a/b:c?x=1"], "GET /a/b:c?x=1"),
    (["a", "-X", "DELETE"], "DELETE /a"), (["a", "-X", "patch"], "PATCH /a"),
    (["a", "-d", "{}"], "POST /a"), (["a", "-d", "{}", "-X", "PUT"], "PUT /a"),
    (["a", "-q", "x=1 2", "-q", "y=ü&=", "-q", "z"], "GET /a?x=1+2&y=%C3%BC%26%3D&z="),
    (["a?b=1", "-q", "x="], "GET /a?b=1&x="),
    (["-i", "a"], "GET /a"),
])  # fmt: skip
def test_api_sends_what_it_is_told(at, words, line):
    api, server = at(http_reply({}))
    assert api(*words).status == 0
    (request,) = server.requests
    assert request.startswith(line.encode() + b" HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n" in request


def test_a_short_flag_may_be_glued_to_its_value(at):
    """As with curl; from Python 3.8 on."""
    api, server = at(http_reply({}))
    assert api("a", "-XPUT", '-d{"n":1}', "-qx=1", "-HX-Y: z", "-i").status == 0
    (request,) = server.requests
    assert request.startswith(b"PUT /a?x=1 ") and b"\r\nX-Y: z\r\n" in request
    assert request.endswith(b'\r\n{"n":1}')


@pytest.mark.parametrize("how", ["argument", "file", "input"])
def test_api_sends_a_body_byte_for_byte(at, tmp_path, how):
    body = '{ "ü": [1.0, 10000000000000000000001] }'
    (tmp_path / "body").write_text(body, encoding="utf-8")
    word = {"argument": body, "file": "@%s" % (tmp_path / "body"), "input": "-"}[how]
    api, server = at(http_reply({}))
    assert api("a", "-d", word, input=body.encode()).status == 0
    head, _, sent = server.requests[0].partition(b"\r\n\r\n")
    assert sent == body.encode() and b"\r\nContent-Type: application/json\r\n" in head


def test_api_sets_headers(at):
    api, server = at(http_reply({}))
    assert api("a", "-H", "X-One: 1", "-H", "accept:text/csv", "-H", "X-None:",
               "-H", "X-One: 2").status == 0
    request = server.requests[0].lower()
    assert b"\r\nx-one: 1, 2\r\n" in request and b"\r\nx-none: \r\n" in request
    assert request.count(b"accept:") == 1 and b"\r\naccept: text/csv\r\n" in request


def test_a_header_that_is_given_wins_over_the_usual_one(at):
    api, server = at(http_reply({}))
    assert api("a", "-d", "{}", "-H", "content-type: application/x-own").status == 0
    request = server.requests[0].lower()
    assert request.count(b"content-type:") == 1
    assert b"\r\ncontent-type: application/x-own\r\n" in request


BAD = {
    "no path": [], "a URL": ["https://elsewhere.example/"], "a URL of another sort": ["ftp:x"],
    "another host": ["//elsewhere.example/"], "what Git Bash makes of it": ["C:/Git/api/keys"],
    "a blank": ["a b"], "a line break": ["a\nb"], "no ASCII": ["ä"], "a fragment": ["a#b"],
    "a header with a line break": ["a", "-H", "X: 1\r\nY: 2"], "no header": ["a", "-H", "X"],
    "a header with no name": ["a", "-H", ": x"], "a header with a blank": ["a", "-H", "X y: 1"],
    "a header beyond ASCII": ["a", "-H", "X: ü"], "the key": ["a", "-H", "authorization: Basic x"],
    "the host": ["a", "-H", "Host: x"], "the length": ["a", "-H", "CONTENT-LENGTH: 1"],
    "the other length": ["a", "-H", "Transfer-Encoding: chunked"],
    "no JSON": ["a", "-d", "{x}"], "no JSON at all": ["a", "-d", ""], "NaN": ["a", "-d", "[NaN]"],
    "no JSON on standard input": ["a", "-d", "-"], "no file": ["a", "-d", "@/nowhere/at/all"],
    "a folder": ["a", "-d", "@/"], "no method": ["a", "-X", "GE T"],
    "an unknown flag": ["a", "-z"], "two paths": ["a", "b"], "a word too many": ["a", "--", "b"],
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_api_refuses_before_anything_is_sent(at, name):
    api, server = at(http_reply({}))
    said(api(*BAD[name]), "invalid-argument", 2)
    assert api("--json", *BAD[name]).error["code"] == "invalid-argument"
    assert server.requests == []


def test_the_key_goes_nowhere_else(newest, at, raw_server):
    api, server = at(b"")
    newest.write_config({"activeProfile": "a", "profiles": {
        "a": {"apiKey": KEY, "baseUrl": server.url}}})  # fmt: skip
    elsewhere = raw_server(http_reply({}))
    result = newest.run("api", "a", "--api-url", elsewhere.url, "--json")
    assert result.error["code"] == "failed-precondition"
    assert elsewhere.requests == server.requests == []


# ---- api: the reply ----


def test_a_reply_comes_as_it_is(at, scripto):
    body = bytes(range(256)) * 1000
    api, _ = at(http_reply(body, 200, "Content-Type: application/octet-stream"), scripto)
    assert api("a").out_bytes == body


def test_in_chunks_too(at):
    body = b"x" * 70000 + b"\0\r\n"
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    api, _ = at(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    assert api("a").out_bytes == body


def test_with_i_status_and_headers_come_first(at):
    api, _ = at(http_reply(b"body", 201, "X-Some: thing"))
    head, _, body = api("a", "-i").out_bytes.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 201 Whatever\r\n") and b"\r\nX-Some: thing" in head
    assert body == b"body"


@pytest.mark.parametrize("body", [
    '{"a": 1}', "[1, 1.10, 1e400, 123456789012345678901234567890]", '"text"', "null", "true",
    '{\n  "ok": false,\r\n  "ü": "\\n"\n}\n',
])  # fmt: skip
def test_json_holds_a_json_reply_as_it_is(at, body):
    api, _ = at(http_reply(body.encode()))
    result = api("a", "--json")
    assert result.envelope["data"] == json.loads(body)
    assert re.sub(r"\s", "", body) in re.sub(r"\s", "", result.out)


def test_json_without_a_body_is_null(at):
    api, _ = at(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert (api("a").out, api("a", "--json").data) == ("", None)


def test_json_of_what_is_none_is_an_error(at):
    api, _ = at(http_reply(b"<html>"))
    assert api("a", "--json").error["code"] == "invalid-response"
    assert api("a").out == "<html>"


STATUSES = [(400, 2, "invalid-argument"), (401, 4, "unauthenticated"), (404, 1, "not-found"),
            (429, 3, "resource-exhausted"), (500, 3, "internal"), (503, 3, "internal"),
            (302, 1, "invalid-response")]  # fmt: skip


@pytest.mark.parametrize("status, exit_status, code", STATUSES)
def test_an_error_is_no_answer(at, status, exit_status, code):
    api, server = at(http_reply(b"\0why\n", status, "Location: /elsewhere"))
    assert said(api("a"), code, exit_status) == "\0why"
    assert len(server.requests) == 1


def test_with_i_the_head_of_an_error_is_an_answer(at):
    api, _ = at(http_reply(b"why", 404, "X-Some: thing"))
    result = api("a", "-i")
    assert result.out.startswith("HTTP/1.1 404 Whatever\r\n") and result.status == 1
    assert "\r\nX-Some: thing\r\n" in result.out and result.err.startswith("why\n✗ ")


@pytest.mark.parametrize("status, body, value", [
    (200, b'{"n": 1.10}', {"n": 1.1}), (200, b"text", "text"), (201, b"", None),
    (404, b'{"error": "no"}', {"error": "no"}), (503, b"<html>", "<html>"),
], ids=str)  # fmt: skip
def test_with_i_json_holds_status_headers_and_body(at, status, body, value):
    api, _ = at(http_reply(body, status, "X-Some: thing", "Set-Cookie: a", "Set-Cookie: b"))
    envelope = api("a", "-i", "--json").envelope
    assert envelope["success"] is (status < 300)
    assert status < 300 or envelope["error"]["httpStatus"] == status
    data = envelope["data"]
    assert (data["status"], data["body"], data["headers"]["x-some"]) == (status, value, "thing")
    assert data["headers"]["set-cookie"] == "a, b"


def test_the_backends_error_is_passed_through(at):
    error = {"code": "teapot", "message": "No.", "nextAction": "brew"}
    reply = {"success": False, "error": error}
    api, _ = at(http_reply(reply, 418))
    assert json.loads(said(api("a"), "teapot", 1, "brew")) == reply
    assert api("a", "--json").error == dict(error, httpStatus=418)


def test_a_script_never_takes_an_error_for_an_answer(newest, at):
    _, server = at(http_reply({"error": "no"}, 404))
    script = 'x=$("$0" "$1" api a); echo "$?:$x"'
    env = dict(newest.env, SCRIPTO_API_BASE_URL=server.url, SCRIPTO_API_KEY=KEY)
    out = subprocess.check_output(
        ["sh", "-c", script, newest.python, PROGRAM], env=env, stderr=subprocess.DEVNULL)
    assert out == b"1:\n"


BROKEN = {
    "short of its length": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
    "no last chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\nhalf",
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("edge", EDGES, ids=python_id)
def test_a_reply_that_breaks_off_is_an_error(at, tmp_path, name, edge):
    api, _ = at(BROKEN[name], Scripto(edge, tmp_path / "home"))
    result = api("a")
    assert result.status == 1 and "broke off its reply" in result.err
    assert api("a", "--json").error["code"] == "invalid-response"


@pytest.mark.slow
def test_a_reply_that_stops_is_an_error(at):
    def answer(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        connection.recv(1)

    api, _ = at(answer)
    result = api("a", env={"SCRIPTO_TIMEOUT": "0.5"})
    assert (result.status, result.out) == (3, "") and "within 0.5 seconds" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("more, status", [(0, 0), (1, 1)])
def test_a_reply_may_have_64_mebibytes(at, scripto, more, status):
    api, _ = at(http_reply(b"x" * ((64 << 20) + more)), scripto)
    result = api("a")
    assert result.status == status and len(result.out_bytes) == (64 << 20) * (1 - more)
    assert status == 0 or "too large" in result.err


def test_a_full_disk_under_a_reply_is_an_error(at):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    api, _ = at(http_reply(b"x" * 100))
    with open("/dev/full", "wb") as full:
        result = api("a", stdout=full)
    assert result.status == 1 and "cannot be written" in result.err


def test_a_reader_that_leaves_ends_it(newest, at):
    _, server = at(http_reply(b"x" * (8 << 20)))
    env = {"SCRIPTO_API_BASE_URL": server.url, "SCRIPTO_API_KEY": KEY}
    process = newest.start("api", "a", env=env)
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(20) == 141
    process.stderr.close(), process.stdin.close()


def test_a_reply_cannot_steer_the_screen(newest, at):
    _, server = at(http_reply("\x1b[2Jü\u202ex\ny".encode()))
    env = {"SCRIPTO_API_BASE_URL": server.url, "SCRIPTO_API_KEY": KEY}
    terminal = Terminal(newest, "api", "a", env=env)
    assert terminal.end() == 0
    assert "\x1b" not in terminal.screen and "\u202e" not in terminal.screen
    assert "\\x1b[2Jü" in terminal.screen


# ---- run ----


def test_run_hands_over_key_and_backend(scripto, backend):
    scripto.sign_in(backend)
    key = scripto.state()["profiles"]["you"]["apiKey"]
    result = scripto.run("run", "--", "sh", "-c",
                         'echo "$SCRIPTO_API_KEY $SCRIPTO_API_BASE_URL"; cat; echo x >&2; exit 7',
                         input=b"in")  # fmt: skip
    assert result.out == "%s %s\nin" % (key, backend.url)
    assert (result.err, result.status) == ("x\n", 7)


def test_run_becomes_the_command(newest):
    """The same process, with nothing left of this program: signals, umask, arguments."""
    env = {"SCRIPTO_API_KEY": KEY}
    code = ("import os, sys; print(os.getpid(), os.umask(0), sys.argv[1:], "
            "open('/proc/self/status').read() if os.path.exists('/proc/self/status') else '')")
    words = ["run", "--", newest.python, "-S", "-c", code, "--json", "--version", "--help", "--"]
    process = newest.start(*words, env=env, preexec_fn=lambda: os.umask(0o027))
    out = process.communicate()[0].decode()
    pid, umask, rest = out.split(" ", 2)
    assert (int(pid), int(umask)) == (process.pid, 0o027)
    assert rest.startswith("['--json', '--version', '--help', '--']")
    process = newest.start("run", "--", "sh", "-c", "kill -PIPE $$", env=env)
    process.communicate()
    assert process.returncode == -signal.SIGPIPE


def test_run_shows_the_key_nowhere(newest):
    key = "scripto_" + os.urandom(16).hex()  # no other run of the tests has it
    newest.write_config({"activeProfile": "a", "profiles": {"a": {"apiKey": key}}})
    result = newest.run("run", "--", "ps", "-ww", "-o", "args") if shutil.which("ps") else None
    assert result is None or key not in result.out + result.err


def test_run_refuses(newest):
    env = {"SCRIPTO_API_KEY": KEY}
    assert newest.run("run", "--json", env=env).error["code"] == "invalid-argument"
    assert newest.run("run", "--", env=env).status == 2
    said(newest.run("run", "--", "no-such-command", env=env), "invalid-argument", 2)
    assert newest.run("run", "--json", "--", "true").error["code"] == "unauthenticated"


def test_run_on_windows_waits(newest, tmp_path):
    """Not Windows: a Python that says it is, since what counts there is that nothing is replaced
    and the exit status comes back."""
    runner = tmp_path / "runner.py"
    runner.write_text("import os, runpy, shutil, sys, subprocess\nsys.argv[0] = %r\nos.name = 'nt'\n"
                      "del os.execvpe\n"
                      "runpy.run_path(%r, run_name='__main__')" % (PROGRAM, PROGRAM))  # fmt: skip
    result = newest.run("run", "--", "sh", "-c", 'echo "$SCRIPTO_API_KEY"; exit 9',
                        program=str(runner), env={"SCRIPTO_API_KEY": KEY})  # fmt: skip
    assert (result.status, result.out) == (9, KEY + "\n")


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


def test_keys_list_has_the_newest_use_first(newest, raw_server):
    def key(name, used, created):
        return {"id": name, "start": "zzzzzz", "lastUsedAt": used, "createdAt": created}

    keys = [key("never", None, "2026-01-01T00:00:00Z"), key("old", "2026-01-02T00:00:00Z", "x"),
            key("new", "2026-01-03T00:00:00Z", "x"), key("unused", None, "2026-01-02T00:00:00Z")]
    url = raw_server(http_reply({"success": True, "data": {"keys": keys}})).url
    words = ["keys", "list", "--json", "--api-key", KEY, "--api-url", url]
    listed = newest.run(*words).data["keys"]
    assert [each["id"] for each in listed] == ["new", "old", "unused", "never"]


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


@pytest.mark.parametrize("key_id", ["key_1", "", "../auth/me", "é", "a b", "x" * 5000])
def test_an_unknown_id_is_an_error(signed_in, key_id):
    scripto, _, other = signed_in
    said(scripto.run("keys", "revoke", "--yes", key_id), "not-found", 1, HINT_ID)
    assert len(scripto.run("keys", "list", "--json").data["keys"]) == 2


@pytest.mark.slow
def test_the_key_in_use_is_revoked_only_on_demand(signed_in):
    scripto, _, _ = signed_in
    own = scripto.state()["profiles"]["you"]["keyId"]
    hint = "add --yes to: scripto keys revoke"
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
    assert "Its key was not valid any more" in out and "is revoked" not in out
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
