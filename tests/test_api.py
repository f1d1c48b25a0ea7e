"""`api`: one request with the profile's key, and the reply as it came."""
import json
import os
import re
import subprocess

import pytest

from client import KEY, said
from conftest import EDGES, PROGRAM, Scripto, Terminal, http_reply, python_id


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


# ---- The request ----


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
    words = ["-H", "X-One: 1", "-H", "accept:text/csv", "-H", "X-None:", "-H", "X-One: 2"]
    assert api("a", *words).status == 0
    request = server.requests[0].lower()
    assert b"\r\nx-one: 2\r\n" in request and b"\r\nx-none: \r\n" in request
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
    "no file": ["a", "-d", "@/nowhere/at/all"],
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


# ---- The reply ----


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


def test_json_of_what_is_none_is_a_text(at):
    api, _ = at(http_reply(b"<html>"))
    assert (api("a").out, api("a", "--json").data) == ("<html>", "<html>")


STATUSES = [(400, 2, "invalid-argument"), (401, 4, "unauthenticated"), (404, 1, "not-found"),
            (429, 3, "resource-exhausted"), (500, 3, "internal"), (503, 3, "internal"),
            (302, 1, "invalid-response"), (600, 1, "invalid-response")]  # fmt: skip


@pytest.mark.parametrize("status, exit_status, code", STATUSES)
def test_an_error_is_no_answer(at, status, exit_status, code):
    api, server = at(http_reply(b"\0why\n", status, "Location: /elsewhere"))
    assert said(api("a"), code, exit_status) == "\0why"
    assert len(server.requests) == 1


def test_a_hint_that_a_reply_will_come_is_no_answer(at):
    api, _ = at(b"HTTP/1.1 103 Early Hints\r\n\r\n" + http_reply(b"{}"))
    said(api("a"), "invalid-response", 1)


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
