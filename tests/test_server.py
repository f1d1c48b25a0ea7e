"""The HTTP server: its grammar, its limits, slow and many clients, TLS, the log, its end."""
import concurrent.futures
import contextlib
import fcntl
import http.client
import json
import os
import pathlib
import pty
import random
import re
import resource
import select
import signal
import socket
import struct
import threading
import time

import pytest

from backend import (  # fmt: skip
    COMPLETE, DAY, FORWARDED, GOOD, HEAD, HEALTHZ, JSON, ME, REQUEST, WRONG, YOU, Reply, age,
    answers_at_once, ask, at_once, can_connect, code_after_asking, connect, enter, full_disk, get,
    guess_wrong, held_up, is_accepted, locked, peak_memory, raw, read_all, statuses, within)
from conftest import PROGRAM, PYTHONS, Backend, Scripto, wait_until, wrong_code

# ---- HTTP ----


def test_healthz(shared_edge):
    reply = get(shared_edge, "/healthz")
    assert reply.status == 200 and reply.headers["Cache-Control"] == "no-store"


def test_a_header_that_is_too_large_is_told_so(shared_edge):
    """As a whole, however many lines it has."""
    start = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
    fields = b"".join(b"X-%03d: %s\r\n" % (n, b"y" * 490) for n in range(70))
    assert statuses(raw(shared_edge, start + fields[: 31 << 10] + b"\r\n\r\n")) == [200]
    assert statuses(raw(shared_edge, start + fields + b"\r\n")) == [431]


def test_a_header_of_too_many_fields_is_told_so(shared_edge):
    for count, status in ((100, 200), (101, 431)):
        fields = b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * (count - 1)
        assert statuses(raw(shared_edge, fields + b"\r\n")) == [status]


@pytest.mark.parametrize("value", [b"close", b"Close", b"TE, close"])
def test_who_asks_to_close_the_connection_is_heeded(shared_edge, value):
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: %s\r\n\r\n" % value
    start, answered = time.monotonic(), read_all(connect(shared_edge, request * 2))
    assert statuses(answered) == [200] and b"\r\nConnection: close\r\n" in answered
    assert time.monotonic() - start < 5


def test_a_refusal_reaches_who_is_still_sending(shared_edge):
    """A connection that is closed on what nobody reads is reset, and the next send fails."""
    connection = connect(shared_edge, HEAD + b"Content-Length: 999999\r\n\r\n")
    assert select.select([connection], [], [], 20)[0], "no answer"
    for _ in range(8):
        connection.sendall(b"x" * 65536)
    assert statuses(read_all(connection)) == [413]


def test_http_1_0_is_answered_and_closed(shared_edge):
    """A proxy that asks to keep such a connection would wait for its end."""
    start = time.monotonic()
    connection = connect(shared_edge, b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert statuses(read_all(connection)) == [200] and time.monotonic() - start < 5


def test_a_client_that_waits_for_leave_to_send_its_body_gets_it(shared_edge):
    head = HEAD + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(b"{}")
    with connect(shared_edge, head) as connection:
        assert statuses(connection.recv(65536)) == [100]
        connection.sendall(b"{}")
        assert statuses(connection.recv(65536)) == [400]


@pytest.mark.parametrize("path", ["/api", "/index.html", "/api/keys/a/b", "/healthz/", "/../llms.txt", "//"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_anything_else_is_not_found(shared, path, method):
    assert get(shared, path, method=method).error == (404, "not-found")


@pytest.mark.parametrize(
    "method, path, allowed",
    [("GET", REQUEST, "POST"), ("GET", COMPLETE, "POST"), ("POST", ME, "GET"),
     ("DELETE", "/api/keys", "GET"), ("GET", "/api/keys/x", "DELETE"), ("PUT", "/healthz", "GET"),
     ("PATCH", "/scripto.py", "GET"), ("POST", "/llms.txt", "GET"), ("HEAD", REQUEST, "POST"),
     ("TRACE", "/healthz", "GET"), ("BREW", "/healthz", "GET"), ("CONNECT", "/", "GET"),
     ("CONNECT", "example.com:443", "GET"), ("OPTIONS", "/healthz", "GET"),
     ("OPTIONS", "*", "GET"), ("get", ME, "GET")],
)  # fmt: skip
def test_a_method_that_does_not_fit_is_told_which_do(shared, method, path, allowed):
    reply = get(shared, path, method=method)
    methods = reply.headers["Allow"].replace(" ", "").split(",")
    assert reply.status == 405 and allowed in methods and method not in methods
    assert method == "HEAD" or reply.value["success"] is False


@pytest.mark.parametrize(
    "path, status", [("/healthz", 200), ("/scripto.py", 200), (ME, 401), ("/", 200), ("/no", 404)]
)
def test_head_is_get_without_the_body(shared, path, status):
    head = raw(shared, b"HEAD %s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
    assert statuses(head) == [status] and head.endswith(b"\r\n\r\n")
    whole = get(shared, path)
    assert re.search(rb"(?i)content-length: (\d+)", head).group(1) == (
        whole.headers["Content-Length"].encode()
    )


def test_a_connection_serves_many_requests(shared):
    connection = http.client.HTTPConnection("127.0.0.1", int(shared.port), timeout=30)
    for path, status in [("/healthz", 200), ("/no", 404), (ME, 401), ("/healthz", 200)]:
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == status and response.read()
        kept = connection.sock
        assert kept is not None
    connection.close()


def test_a_target_may_be_a_whole_url(shared):
    """RFC 9112, 3.2.2."""
    for target in (b"http://x/healthz?a", b"HTTPS://x:1/healthz"):
        answered = raw(shared, b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % target)
        assert statuses(answered) == [200]


def test_pipelined_requests_are_answered_in_order(shared):
    paths = (b"/healthz", b"/no", b"/healthz")
    lines = b"".join(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path for path in paths)
    assert statuses(raw(shared, lines)) == [200, 404, 200]


@pytest.mark.parametrize("size", [16 * 1024 + 1, 100 << 10, 1 << 20])
def test_a_body_that_is_too_large_is_told_so(shared_edge, size):
    """The answer arrives, though the client only reads when it has sent all of it."""
    reply = Reply(*shared_edge.request("POST", REQUEST, b"x" * size))
    assert reply.error[0] == 413 and answers_at_once(shared_edge)


def test_a_body_of_sixteen_kib_is_read(shared):
    body = json.dumps({"email": "long@example.com"}).encode()
    assert shared.request("POST", REQUEST, body + b" " * (16 * 1024 - len(body)))[0] == 200


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
MALFORMED = {
    "no request": b"\x00\x01\x02\x03\r\n\r\n",
    "one word": b"GET\r\n\r\n",
    "four words": b"GET / / HTTP/1.1\r\n\r\n",
    "no such version": b"GET / HTTP/9.9.9\r\n\r\n",
    "a version that is no number": b"GET / HTTP/\xb2.\xb9\r\n\r\n",
    "a later version": b"GET / HTTP/2.0\r\n\r\n",
    "HTTP/2's greeting": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a TLS client": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
    "a null byte": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: \0\r\n\r\n",
    "a long line": b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n",
    "more than 32 KiB of short headers": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5500 + b"\r\n",
    "a long header": b"GET / HTTP/1.1\r\nX: " + b"a" * 70000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    "a header without a colon": HEAD + b"what is this\r\nContent-Length: 28\r\n\r\n" + JSON,
    "a length behind a line feed alone": HEAD + b"X: y\nContent-Length: 28\r\n\r\n" + JSON,
    "a line that is continued": HEAD + b"X: y\r\n z\r\nContent-Length: 28\r\n\r\n" + JSON,
    "a first line that is no field": HEAD.replace(GOOD, b"From x\r\n" + GOOD) + b"Content-Length: 28\r\n\r\n" + JSON,
    "a last line that is no field": HEAD + b"Content-Length: 28\r\nFrom x\r\n\r\n" + JSON,
    "a blank before the colon": HEAD + b"Content-Length : 28\r\n\r\n" + JSON,
    "a length behind a bare carriage return": HEAD + b"X: y\rContent-Length: 28\r\n\r\n" + JSON,
    "two lengths": HEAD + b"Content-Length: 28\r\nContent-Length: 5\r\n\r\n" + JSON,
    "two lengths in one": HEAD + b"Content-Length: 28, 28\r\n\r\n" + JSON,
    "a length below zero": HEAD + b"Content-Length: -1\r\n\r\n" + JSON,
    "a length with a sign": HEAD + b"Content-Length: +28\r\n\r\n" + JSON,
    "a length in hex": HEAD + b"Content-Length: 0x1c\r\n\r\n" + JSON,
    "a length of no digits": HEAD + b"Content-Length: \xb2\xb2\r\n\r\n" + JSON,
    "an endless length": HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n" + JSON,
    "chunks": HEAD + CHUNKED + b"1c\r\n" + JSON + b"\r\n0\r\n\r\n",
    "chunks and a length": HEAD + b"Content-Length: 28\r\n" + CHUNKED + b"0\r\n\r\n",
    "chunks that are packed": HEAD + b"Content-Length: 28\r\n" + CHUNKED.replace(b"ch", b"gzip, ch") + JSON,
    "what is nearly chunks": HEAD + b"Content-Length: 28\r\n" + CHUNKED.replace(b"ch", b"xch") + JSON,
    "no encoding at all": HEAD + b"Content-Length: 28\r\n" + CHUNKED.replace(b"chunked", b"") + JSON,
    "chunks under cover": HEAD + b"Content-Length: 28\r\n" + CHUNKED.replace(b"c", b"C") + JSON,
    "no length": HEAD + b"\r\n" + JSON,
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_good_request_is_the_client_s_fault(shared_edge, data):
    """Never an error of the server's own; and what it asked for is not done. Nobody knows where
    the next request would start, so there is none."""
    before = len(shared_edge.mails())
    answered = statuses(raw(shared_edge, data + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"))
    assert answered and (400 <= answered[0] < 500 or answered[0] == 501)
    assert len(answered) == 1 or data == MALFORMED["no length"]
    assert len(shared_edge.mails()) == before and answers_at_once(shared_edge)


HOSTILE_BODIES = {
    "a lone surrogate in the email": {"email": "\ud800@example.com", "otp": "123456"},
    "a lone surrogate in the code": {"email": YOU, "otp": "\udfff23456"},
    "a lone surrogate in the name": {"email": YOU, "otp": "123456", "name": "\ud800"},
    "an escape in the name": {"email": YOU, "otp": "123456", "name": "\x1b[2J"},
    "a lone surrogate in the ticket": {"email": YOU, "otp": "123456", "ticket": "\ud800"},
    "a long name": {"email": YOU, "otp": "123456", "name": "x" * 9999},
    "a number for everything": {"email": 1, "otp": 123456, "name": 1},
    "a deep nest": b'{"email": ' + b"[" * 8000 + b"]" * 8000 + b"}",
    "a deep nest that does not end": b'{"email":' * 1500,
    "a number of many digits": b'{"email": ' + b"9" * 16000 + b"}",
    "an exponent": b'{"email": 1e999999999}',
    "not a number": b'{"email": NaN}',
    "a byte order mark": b"\xef\xbb\xbf[]",
    "UTF-16": '{"email": "you@example.com"}'.encode("utf-16"),
    "broken UTF-8": b'{"email": "\xed\xa0\x80@example.com"}',
}


@pytest.mark.parametrize("path", [REQUEST, COMPLETE])
@pytest.mark.parametrize("body", HOSTILE_BODIES.values(), ids=HOSTILE_BODIES)
def test_a_hostile_body_is_refused(shared_edge, path, body):
    if path == REQUEST and isinstance(body, dict) and body["email"] == YOU:
        body = dict(body, email="")  # only the email counts here
    assert Reply(*shared_edge.request("POST", path, body)).error == WRONG


def hostile(chance):
    """A request that means no good: a malformed one, or a good one with damage."""
    if chance.random() < 0.3:
        data = bytearray(chance.choice(list(MALFORMED.values())))
    else:
        body = chance.choice([JSON, b"{}", b"[" * 99, b'{"email": "\\ud800@b", "otp": "\\udc00"}'])
        data = bytearray(b"%s %s HTTP/1.%d\r\n%s" % (
            chance.choice([b"GET", b"POST", b"HEAD", b"DELETE", b"OPTIONS", b"PUT", b"get"]),
            chance.choice([REQUEST, COMPLETE, ME, "/api/keys/x", "/llms.txt", "*", "http://[/x",
                           "/%00%ff?%", "//a", "/\xe9"]).encode("latin-1"),
            chance.randrange(3), GOOD))  # fmt: skip
        data += b"Content-Length: %d\r\n" % chance.choice([len(body)] * 4 + [0, 7, 16384, 99999])
        data += chance.choice([
            b"", b"Authorization: Bearer scripto_\xe9\r\n", b"Expect: 100-continue\r\n",
            b"Connection: keep-alive, \x00\r\n", b"X:\r\n y\r\n",
        ])  # fmt: skip
        data += b"\r\n" + body
    for _ in range(chance.choice([0, 0, 1, 2, 8])):
        at = chance.randrange(len(data) + 1)
        junk = bytes(chance.choice([[0], [10], [13], [32], [58], [255], range(65, 90)]))
        data[at : at + chance.randrange(4)] = junk * chance.choice([1, 1, 1, 300])
    return bytes(data[: chance.choice([None, None, None, chance.randrange(len(data) + 1)])])


def hang_up(backend, data):
    """Sends bytes and resets the connection."""
    with connect(backend) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(data)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.slow
def test_thousands_of_hostile_requests_hurt_nothing(start_backend, edge):
    backend, chance = start_backend(python=edge), random.Random(3)
    answered, said = [], b""
    for number in range(1500):
        data = b"".join(hostile(chance) for _ in range(chance.choice([1, 1, 1, 3])))
        if number % 10:
            reply = raw(backend, data)
            answered += statuses(reply)
            said += reply[:2000]
        else:
            hang_up(backend, data)
    assert len(answered) > 1000 and {400, 404, 405, 501} <= set(answered)
    assert {status for status in answered if status >= 500} <= {501}
    assert b"Traceback" not in said and b"Error" not in said
    assert not re.search("Traceback|Error|fault", backend.log())
    assert answers_at_once(backend)


def test_every_interpreter_serves_and_the_log_is_silent_until_asked(start_backend, python):
    backend = start_backend(python=python)
    assert backend.log() == ""
    assert is_accepted(backend, backend.mint(YOU)["apiKey"])


def test_the_log_has_a_line_for_each_request_and_no_secret(backend):
    started = backend.log()
    data = backend.mint(YOU, "my laptop")
    ask(backend, "me@example.com")
    guess_wrong(backend, 1, address="me@example.com")
    get(backend, ME + "?key=" + data["apiKey"], data["apiKey"])
    get(backend, "/" + data["apiKey"], headers={"User-Agent": YOU})
    get(backend, "/api/keys/" + data["apiKey"], data["apiKey"], method="DELETE")
    wait_until(lambda: " DELETE " in backend.log(), what="the last line")
    log = backend.log()[len(started) :]
    assert log.count("\n") == 7
    codes = {re.search(r"^Subject: (\d+)", mail, re.M).group(1) for mail in backend.mails()}
    for secret in codes | {data["apiKey"][8:], data["apiKey"][8:20], YOU, "me@example.com"}:
        assert secret not in log


def test_the_log_says_who_it_was_and_why_not(start_backend):
    """By ids; and no header, body or email of anybody."""
    backend = start_backend("--allow", "@example.com", "--key-days", "1")
    data, code = backend.mint(YOU), code_after_asking(backend)
    own = "%(userId)s %(keyId)s" % data
    enter(backend, wrong_code(code))
    enter(backend, code, "me@example.com")
    ask(backend, "you@example.org")
    get(backend, ME)
    get(backend, ME, data["apiKey"])
    get(backend, "/api/keys", data["apiKey"] + "x")
    age(backend, DAY + 1)
    get(backend, ME, data["apiKey"])
    get(backend, "/api/keys/" + data["keyId"], data["apiKey"], "DELETE")
    said = [
        "POST %s 200 %s" % (COMPLETE, own), "POST %s 400 wrong code" % COMPLETE,
        "POST %s 400 no live code" % COMPLETE, "POST %s 403 not allowed" % REQUEST,
        "GET %s 401 no key" % ME, "GET %s 200 %s" % (ME, own), "GET /api/keys 401 unknown key",
        "GET %s 401 %s expired" % (ME, own), "DELETE /api/keys/<id> 401 %s expired" % own,
    ]  # fmt: skip
    wait_until(lambda: said[-1] in backend.log(), what="the last line")
    lines = [line.split(" ", 2)[2] for line in backend.log().splitlines()]
    assert [line for line in lines if line in said] == said


# ---- Many clients, slow clients ----


@pytest.mark.slow
def test_clients_that_ask_and_do_not_read_do_not_keep_out_the_next(start_backend):
    backend, clients = start_backend(), []
    try:
        for _ in range(260):
            client = socket.socket()
            clients.append(client)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(30)
            client.connect(("127.0.0.1", int(backend.port)))
            client.sendall(b"GET /scripto.py HTTP/1.1\r\nHost: x\r\n\r\n" * 60)
        assert all(answers_at_once(backend) for _ in range(20))
    finally:
        for client in clients:
            client.close()


def threads(backend):
    """{number: (state, how often it gave up a processor)} of its threads."""
    found = {}
    for path in pathlib.Path("/proc/%d/task" % backend.process.pid).glob("*/status"):
        status = path.read_text()
        found[path.parent.name] = (re.search(r"State:\s+(\w)", status).group(1),
                                   re.findall(r"ctxt_switches:\s+(\d+)", status))  # fmt: skip
    return found


def at_rest(backend):
    """Whether none of its threads has run for a while, or waits for a processor that somebody else
    has. Three only look at the time, or write the log."""
    if not os.path.exists("/proc/self/task"):
        pytest.skip("no /proc to see threads in")
    before = threads(backend)
    time.sleep(0.3)
    after = threads(backend)
    changed = [number for number in after if before.get(number) != after[number]]
    return len(changed) <= 3 and all(state == "S" for state, _ in after.values())


@pytest.mark.slow
def test_what_is_cut_off_at_the_end_is_in_the_log(start_backend, edge):
    """Each client has a reply that it does not take."""
    backend, many = start_backend(python=edge), 100
    with contextlib.ExitStack() as stack:
        for _ in range(many):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(30)
            client.connect(("127.0.0.1", int(backend.port)))
            client.sendall(b"GET /scripto.py HTTP/1.1\r\nHost: x\r\n\r\n" * 60)
        wait_until(lambda: backend.log().count("\n") >= many, what="the first of each")
        wait_until(lambda: at_rest(backend), 60, what="all to be stuck")
        before = backend.log().count("GET /scripto.py 200")
        assert backend.stop() == 0
    assert backend.log().count("GET /scripto.py 200") == before + many


@pytest.mark.slow
def test_silent_clients_do_not_keep_out_the_next(start_backend, edge):
    """Two hundred of them, and then so many that one has to go for the next."""
    backend, silent = start_backend(python=edge), []
    with contextlib.ExitStack() as stack:
        for most in (200, 400):
            while len(silent) < most:
                silent.append(stack.enter_context(connect(backend)))
            assert answers_at_once(backend)
            key = backend.mint("%d@example.com" % most)["apiKey"]
            assert is_accepted(backend, key)
        tasks = "/proc/%d/task" % backend.process.pid
        assert not os.path.exists(tasks) or len(os.listdir(tasks)) < 300


@pytest.mark.slow
def test_clients_that_stop_half_way_do_not_keep_out_the_next(backend):
    half = HEAD + b"Content-Length: 100\r\n\r\n" + JSON
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(connect(backend, half))
        assert answers_at_once(backend) and backend.mint(YOU)["apiKey"]


def until_cut_off(address, first, drip=b"", pause=0.2):
    """Sends `first`, then `drip` after each pause if there is one; returns the seconds until the
    other side has closed."""
    connection = socket.create_connection(address, 60)
    connection.sendall(first)
    start = time.monotonic()
    connection.settimeout(pause)
    while time.monotonic() - start < 60:
        try:
            if not connection.recv(65536):
                break
        except socket.timeout:
            pass
        except ConnectionError:
            break
        with contextlib.suppress(OSError):
            connection.sendall(drip)
    connection.close()
    return time.monotonic() - start


def kept_of_a_client_that_does_not_read(address, over):
    """Asks for far more than buffers hold and reads nothing until it is over with patience;
    returns the part of it that was still to be had then."""
    count, line = 300, b"GET /scripto.py HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        connection.settimeout(60)
        connection.connect(address)
        connection.sendall(line * count)
        over.wait(14)
        got = len(read_all(connection))
    return got / (count * os.path.getsize(PROGRAM))


def asked_again_after_ten_seconds(backend, over):
    first = ask(backend, "1@example.com").status
    over.wait(10)
    return first, ask(backend, "2@example.com").status


@pytest.fixture(scope="module", autouse=True)
def patience(tmp_path_factory):
    """What takes ten seconds starts with the first test, in a backend of its own, and is looked
    at by the last ones: {name: future}."""
    folder = tmp_path_factory.mktemp("patience")
    owner = Scripto(PYTHONS[-1], folder / "home")
    plain = Backend(owner, folder / "plain")
    silent = socket.create_server(("127.0.0.1", 0))  # it accepts, and that is all
    mail = "smtp://127.0.0.1:%d" % silent.getsockname()[1]
    mailing = Backend(owner, folder / "mailing", mail=mail)
    (folder / "sitecustomize.py").write_text(
        "import socket, time\n"  # a name server that does not answer
        "usual = socket.getaddrinfo\n"
        "def getaddrinfo(host, *values, **more):\n"
        "    time.sleep(60 * (host == 'mail.example'))\n"
        "    return usual(host, *values, **more)\n"
        "socket.getaddrinfo = getaddrinfo\n")
    lost = Backend(owner, folder / "lost", mail="smtp://mail.example",
                   env={"PYTHONPATH": str(folder)})
    limiting = Backend(owner, folder / "limiting", "--rate-limit", "1")
    address = ("127.0.0.1", int(plain.port))
    half = HEAD + b"Content-Length: 100\r\n\r\n"
    pool, over = concurrent.futures.ThreadPoolExecutor(10), threading.Event()
    yield {
        "silent": pool.submit(until_cut_off, address, b""),
        "kept": pool.submit(until_cut_off, address, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"),
        "line": pool.submit(until_cut_off, address, b"GET /", b"a"),
        "headers": pool.submit(until_cut_off, address, b"GET / HTTP/1.1\r\nX: ", b"y"),
        "lines": pool.submit(until_cut_off, address, b"GET / HTTP/1.1\r\n", b"X: y\r\n", 1),
        "body": pool.submit(until_cut_off, address, half, b" "),
        "no reader": pool.submit(kept_of_a_client_that_does_not_read, address, over),
        "mail": pool.submit(ask, mailing),
        "name": pool.submit(lambda: (time.monotonic(), ask(lost), time.monotonic())),
        "limit": pool.submit(asked_again_after_ten_seconds, limiting, over),
    }
    over.set()
    for backend in (plain, mailing, lost, limiting):
        backend.stop(signal.SIGKILL)
    silent.close()
    pool.shutdown()


# ---- Memory and places ----


def flood(backend):
    """Headers without end, until it has enough."""
    with contextlib.suppress(OSError), connect(backend, b"GET / HTTP/1.1\r\n") as connection:
        for number in range(64):
            connection.sendall(b"X-%d: %s\r\n" % (number, b"y" * 65000))


def test_a_flood_of_headers_takes_no_memory(backend):
    at_once(*[lambda: flood(backend)] * 100)
    assert answers_at_once(backend) and peak_memory(backend) < 64


@pytest.mark.slow
def test_all_of_it_at_once(start_backend, mail_server):
    """And guarded pages stay up."""
    server = mail_server()
    backend = start_backend(mail="smtp://127.0.0.1:%d" % server.port)
    assert ask(backend).status == 200
    code = re.search(r"Subject: (\d{6})", server.arrived[-1]).group(1)
    key = enter(backend, code).value["data"]["apiKey"]
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(120))
        stack.enter_context(held_up(server))
        held = [pool.submit(ask, backend, "%d@example.com" % n) for n in range(20)]
        wait_until(lambda: len(server.arrived) == 21, what="mails under way")
        stack.enter_context(locked(backend))
        stack.enter_context(full_disk(backend))
        for number in range(40):
            pool.submit(flood, backend)
            pool.submit(enter, backend, "%06d" % number)
        for _ in range(20):
            with within(1):
                assert is_accepted(backend, key)
            with within(1):
                assert get(backend, "/healthz").status in (200, 503)
        server.go_on.set()
    assert {each.result().status for each in held} <= {200, 500} and peak_memory(backend) < 64


def from_address(backend, address):
    return socket.create_connection(("127.0.0.1", int(backend.port)), 30, (address, 0))


@pytest.mark.slow
def test_one_address_takes_its_own_places_only(backend):
    """Who came before from somewhere else stays, however many come."""
    try:
        early = from_address(backend, "127.0.0.2")
    except OSError:
        pytest.skip("loopback has one address here")
    with contextlib.ExitStack() as stack:
        for _ in range(600):
            stack.enter_context(connect(backend))
        early.sendall(HEALTHZ)
        early.shutdown(socket.SHUT_WR)
        assert statuses(read_all(early)) == [200]


FEW = 16  # connections, instead of more than mails may be under way


@pytest.fixture
def few_places(start_backend, mail_server, changed):
    """A backend with room for few, and its mail server."""
    server, program = mail_server(), changed(CONNECTIONS=FEW)
    return start_backend(mail="smtp://127.0.0.1:%d" % server.port, program=program), server


@pytest.mark.parametrize("working", [FEW, FEW - 4], ids=["all", "most"])
def test_no_request_in_work_is_cut_to_make_room(few_places, working):
    """Who comes while all work is turned away at once; else the idle make room for one another."""
    backend, server = few_places
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(FEW))
        stack.enter_context(held_up(server))
        held = [pool.submit(ask, backend, "%d@example.com" % n) for n in range(working)]
        wait_until(lambda: len(server.arrived) == working, what="mails under way")
        late = [stack.enter_context(connect(backend)) for _ in range(3 * FEW)]
        if working < FEW:
            assert answers_at_once(backend)
        for connection in late[: len(late) - FEW + working]:
            with within(5):
                assert read_all(connection) == b""
        assert not any(each.done() for each in held)
        server.go_on.set()
        assert {each.result().status for each in held} == {200}


def with_descriptors(most, start_backend):
    """A backend that may have no more of them."""
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, usual[1]))
    try:
        return start_backend()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)


@pytest.mark.slow
def test_when_descriptors_run_out_it_makes_room(start_backend):
    backend = with_descriptors(64, start_backend)
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(connect(backend))
        assert answers_at_once(backend) and answers_at_once(backend)


def test_a_shortage_that_is_over_is_forgotten(start_backend, changed):
    backend = start_backend(program=changed(SHORT_SECONDS=1))
    usual = resource.prlimit(backend.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(backend.process.pid, resource.RLIMIT_NOFILE, (10, usual[1]))
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(connect(backend))
        time.sleep(0.5)
    resource.prlimit(backend.process.pid, resource.RLIMIT_NOFILE, usual)
    time.sleep(1.5)
    with contextlib.ExitStack() as stack:
        many = [stack.enter_context(connect(backend, HEALTHZ)) for _ in range(100)]
        assert all(b" 200 OK" in each.recv(100) for each in many)


@pytest.mark.slow
def test_where_descriptors_are_few_the_idle_leave_some_for_mail(start_backend):
    """256 is what macOS gives a program."""
    backend = with_descriptors(256, start_backend)
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(connect(backend))
        addresses = ["%d@example.com" % n for n in range(12)]
        replies = at_once(*[lambda a=a: ask(backend, a) for a in addresses])
    assert {reply.status for reply in replies} == {200}


def few_threads(backend, most):
    """From now on it has memory for the stacks of so many more."""
    if not hasattr(resource, "prlimit"):
        pytest.skip("no prlimit to make memory scarce with")
    with open("/proc/%d/status" % backend.process.pid) as file:
        size = int(re.search(r"VmSize:\s+(\d+) kB", file.read()).group(1)) << 10
    stack = resource.prlimit(backend.process.pid, resource.RLIMIT_STACK)[0]
    limit = size + (most + 1) * stack
    resource.prlimit(backend.process.pid, resource.RLIMIT_AS, (limit, limit))


@pytest.mark.slow
def test_where_threads_are_few_the_idle_make_room(start_backend, mail_server):
    """For requests, and for the threads that mails take."""
    env = {"MALLOC_ARENA_MAX": "1"}  # else each thread takes more memory
    backend = start_backend(mail="smtp://127.0.0.1:%d" % mail_server().port, env=env)
    assert ask(backend).status == 200  # with that, modules are loaded that take memory, too
    few_threads(backend, 20)
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(from_address(backend, "127.0.0.2"))
        assert all(get(backend, "/healthz").status == 200 for _ in range(67))
        tasks = os.listdir("/proc/%d/task" % backend.process.pid)
        assert len(tasks) < 30  # they were few indeed
        addresses = ["%d@example.com" % n for n in range(4)]
        replies = at_once(*[lambda a=a: ask(backend, a) for a in addresses])
    assert {reply.status for reply in replies} == {200}


# ---- TLS ----


@pytest.fixture
def tls_backend(start_backend, certificate, edge):
    cert, key = certificate, certificate + ".key"
    return start_backend("--tls-cert", cert, "--tls-key", key, python=edge)


def test_tls_signs_in_who_knows_the_certificate(tls_backend, certificate, scripto):
    scripto.env["SSL_CERT_FILE"] = certificate
    assert tls_backend.url.startswith("https://127.0.0.1:")
    assert scripto.sign_in(tls_backend)["baseUrl"] == tls_backend.url
    assert scripto.run("whoami", "--json").data["user"]["email"] == YOU


def test_tls_does_not_sign_in_who_does_not(tls_backend, scripto):
    words = ["auth", "login-request", "--email", YOU, "--api-url", tls_backend.url, "--json"]
    result = scripto.run(*words)
    assert (result.status, result.error["code"]) == (3, "network-error")
    assert not tls_backend.mails()


@pytest.mark.slow
def test_silent_and_plain_clients_do_not_disturb_tls(tls_backend, certificate, scripto):
    scripto.env["SSL_CERT_FILE"] = certificate
    with contextlib.ExitStack() as stack:
        for number in range(200):
            stack.enter_context(connect(tls_backend, b"GET / HTTP/1.1\r\n\r\n" * (number % 2)))
        assert scripto.sign_in(tls_backend)["email"] == YOU
    assert not re.search("Traceback|fault", tls_backend.log())


@pytest.mark.parametrize("given", ["cert", "key", "swapped", "missing"])
def test_a_certificate_that_cannot_be_used_is_refused(scripto, certificate, given):
    cert, key = certificate, certificate + ".key"
    flags = {"cert": ["--tls-cert", cert], "key": ["--tls-key", key],
             "swapped": ["--tls-cert", key, "--tls-key", cert],
             "missing": ["--tls-cert", cert + ".no", "--tls-key", key]}  # fmt: skip
    result = scripto.run("serve", "--port", "0", *flags[given], "--json")
    assert (result.status, result.error["code"]) == (2, "invalid-argument")


# ---- The log ----


@pytest.mark.slow
def test_nobody_has_to_read_the_log(scripto, tmp_path):
    """A full pipe stops neither requests nor a signal; that lines are missing is said later."""
    process = scripto.start("serve", "--port", "0", "--db", str(tmp_path / "db"))
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
    port = int(process.stdout.readline().decode().rpartition(":")[2])
    backend = type("Site", (), {"port": port})
    assert statuses(raw(backend, HEALTHZ * 1500)) == [200] * 1500
    said = b""
    while b"\nsome lines of the log were dropped\n" not in said:
        assert select.select([process.stderr], [], [], 20)[0], said[-200:]
        said += os.read(process.stderr.fileno(), 65536)
    assert statuses(raw(backend, HEALTHZ * 1500)) == [200] * 1500
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    process.communicate()


@pytest.mark.slow
def test_a_terminal_that_nobody_reads_stops_nothing(scripto, tmp_path):
    """It holds a few KB. Neither requests nor a signal wait for it."""
    master, slave = pty.openpty()
    process = scripto.start("serve", "--port", "0", "--db", str(tmp_path / "db"), stderr=slave)
    os.close(slave)
    port = int(process.stdout.readline().decode().rpartition(":")[2])
    backend = type("Site", (), {"port": port})
    with within(20):
        assert statuses(raw(backend, HEALTHZ * 1500)) == [200] * 1500
    process.send_signal(signal.SIGTERM)
    with within(10):
        process.communicate()
    assert process.returncode == 0
    os.close(master)


@pytest.mark.slow
def test_what_waits_for_the_log_at_the_end_is_written(scripto, tmp_path):
    """If somebody takes it; here from the moment when there is nothing else left to do."""
    process = scripto.start("serve", "--port", "0", "--db", str(tmp_path / "db"))
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
    port = int(process.stdout.readline().decode().rpartition(":")[2])
    assert statuses(raw(type("Site", (), {"port": port}), HEALTHZ * 500)) == [200] * 500
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: not can_connect(port), what="a closed door")
    _, err = process.communicate(timeout=20)
    assert err.count(b"/healthz 200") == 500 and process.returncode == 0


def test_the_log_names_the_client_behind_the_proxy(start_backend):
    backend = start_backend("--behind-proxy")
    get(backend, ME, headers={FORWARDED: "6.6.6.6, 9.9.9.9:4711"})
    get(backend, ME, headers={FORWARDED: "<script>"})
    wait_until(lambda: backend.log().count("\n") == 2, what="both lines")
    assert "Z 9.9.9.9 GET " in backend.log() and "Z 127.0.0.1 GET " in backend.log()


# ---- Endings ----


def test_where_it_cannot_listen_it_leaves_its_database_in_order(backend, scripto, tmp_path):
    words = ["serve", "--port", backend.port, "--db", str(tmp_path / "other.db"), "--json"]
    assert scripto.run(*words).error["code"] == "failed-precondition"
    assert [path.name for path in tmp_path.glob("other*")] == ["other.db"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
def test_a_signal_ends_it_with_status_0(start_backend, edge, number):
    backend = start_backend(python=edge)
    with connect(backend), connect(backend, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"):
        key = backend.mint(YOU)["apiKey"]
        start = time.monotonic()
        assert backend.stop(number) == 0
        assert time.monotonic() - start < 6  # no idle connection is waited for
    assert "Traceback" not in backend.log()
    backend.start()
    assert is_accepted(backend, key)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_in_hand_is_finished_first(start_backend, mail_server, edge, number):
    server = mail_server()
    backend = start_backend(python=edge, mail="smtp://127.0.0.1:%d" % server.port)
    with concurrent.futures.ThreadPoolExecutor() as pool, held_up(server):
        held = pool.submit(ask, backend)
        assert server.busy.wait(20)
        backend.process.send_signal(number)
        wait_until(lambda: not can_connect(int(backend.port)), what="a closed door")
        assert backend.process.poll() is None and not held.done()
        server.go_on.set()
        assert held.result().status == 200 and backend.stop() == 0
    backend.start()
    code = re.search(r"^Subject: (\d{6}) ", server.mails[0][1], re.M).group(1)
    assert enter(backend, code).status == 200


def codes_of(backend):
    """{email: code} of all mails."""
    pairs = [re.search(r"To: (\S+)\nSubject: (\d{6}) ", text) for text in backend.mails()]
    return dict(pair.groups() for pair in pairs)


def sign_in_until_dead(backend, addresses, answered):
    """Signs in one after the other, and asks for codes in between, until nobody answers."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        for address, code in addresses:
            reply = enter(backend, code, address)
            if reply.status == 200:
                answered.append(reply.value["data"]["apiKey"])
            ask(backend, "more-" + address)


@pytest.mark.slow
def test_ten_rounds_of_kill_9_under_load_lose_no_key(backend):
    answered, chance = [], random.Random(9)
    for number in range(10):
        for n in range(24):
            ask(backend, "%d-%d@example.com" % (number, n))
        codes = [item for item in codes_of(backend).items() if item[0].startswith("%d-" % number)]
        enough = len(answered) + chance.randrange(2, 15)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for hand in range(4):
                pool.submit(sign_in_until_dead, backend, codes[hand::4], answered)
            wait_until(lambda: len(answered) >= enough, what="keys")
            backend.process.kill()
        backend.restart()
    assert len(answered) >= 20 and len(set(answered)) == len(answered)
    assert all(is_accepted(backend, key) for key in answered)


# ---- Endings under load ----


@pytest.mark.slow
def test_what_has_arrived_is_answered_before_the_end(backend):
    """Also on connections that nobody had looked at when the signal came."""
    connections = [connect(backend, HEALTHZ) for _ in range(120)]
    backend.process.send_signal(signal.SIGTERM)
    assert [statuses(read_all(connection)) for connection in connections] == [[200]] * 120
    assert backend.stop() == 0


def test_who_was_about_to_send_a_request_is_heard_as_well(backend):
    with connect(backend) as early:
        backend.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not can_connect(int(backend.port)), what="a closed door")
        early.sendall(HEALTHZ)
        assert statuses(read_all(early)) == [200]
    assert backend.stop() == 0


def test_who_gets_a_late_answer_is_not_waited_for_again(start_backend, mail_server):
    """A client that keeps its connection, and asks nothing more."""
    server = mail_server()
    backend = start_backend(mail="smtp://127.0.0.1:%d" % server.port)
    body = json.dumps({"email": YOU}).encode()
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    with held_up(server), connect(backend, head % (REQUEST.encode(), len(body)) + body) as client:
        assert server.busy.wait(20)
        backend.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not can_connect(int(backend.port)), what="a closed door")
        server.go_on.set()
        with within(5):
            assert b"\r\nConnection: close\r\n" in read_all(client)
            assert backend.stop() == 0


@pytest.mark.parametrize("words, status", [
    (["--db", "db"], 0), (["--", "sleep", "60"], 128 + signal.SIGTERM),
])  # fmt: skip
def test_a_signal_during_the_start_ends_it_cleanly(scripto, tmp_path, words, status):
    """And leaves nothing behind. A fake, to have it come at that moment."""
    driver, folder = tmp_path / "driver.py", tmp_path / "temporary"
    folder.mkdir()
    driver.write_text(
        "import os, runpy, signal, sqlite3\n"
        "usual = sqlite3.connect\n"
        "def connect(*values, **more):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return usual(*values, **more)\n"
        "sqlite3.connect = connect\n"
        "runpy.run_path(%r, run_name='__main__')\n" % PROGRAM
    )
    words = ["serve", "--port", "0"] + words
    run = scripto.run(*words, program=str(driver), env={"TMPDIR": str(folder)}, cwd=str(tmp_path))
    assert run.status == status and os.listdir(str(folder)) == []


# ---- Ten seconds later ----


@pytest.mark.parametrize("client", ["silent", "kept", "line", "headers", "lines", "body"])
@pytest.mark.slow
def test_a_client_that_is_silent_or_dribbles_is_cut_off_after_ten_seconds(patience, client):
    assert 8 < patience[client].result() < 25


@pytest.mark.slow
def test_a_client_that_does_not_read_is_cut_off(patience):
    assert patience["no reader"].result() < 0.9


@pytest.mark.slow
def test_the_minute_of_an_address_is_not_over_after_ten_seconds(patience):
    assert patience["limit"].result() == (200, 429)


@pytest.mark.slow
def test_a_mail_server_that_says_nothing_is_given_up(patience):
    assert patience["mail"].result().error == (500, "internal")


@pytest.mark.slow
def test_the_look_up_of_a_mail_server_s_name_has_its_end_too(patience):
    start, reply, end = patience["name"].result()
    assert reply.error == (500, "internal") and end - start < 30
