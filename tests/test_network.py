"""What networks do to a client: it ends in time, says why, and tells nobody a secret."""
import re
import resource
import socket
import struct
import time

import pytest

from client import COMMANDS, KEY, ask
from conftest import PROGRAM, RawServer, Scripto, http_reply, self_signed, server_side

SECRET = "pass/word"

USER = http_reply({"user": {"id": "user_1", "email": "you@example.com", "name": ""}})
CODE_SENT = http_reply({"success": True, "data": {"ok": True, "email": "you@example.com"}})
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
SOON = {"SCRIPTO_TIMEOUT": "0.5"}
SPENDING = ["login-request", "login-complete"]  # what must never be sent twice


def reset(connection):
    """Closes so that the client gets a reset (RST), not an end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def reset_after(data):
    def answer(connection):
        connection.sendall(data)
        connection.recv(1) if not data else time.sleep(0.1)  # so that the data comes first
        reset(connection)

    return answer


def silent(connection):
    connection.recv(1)  # returns when the client goes away


def drip(head):
    """Sends the head at once, then a byte at a time for longer than any test waits."""

    def answer(connection):
        connection.sendall(head)
        for _ in range(600):
            connection.sendall(b"a")
            time.sleep(0.1)

    return answer


class Eager(RawServer):
    """A listener that speaks first."""

    read_request = staticmethod(lambda connection: b"")


def taking_turns(*answers):
    """Answers each connection in its own way, in that order; the last for all that follow."""
    left = list(answers)

    def answer(connection):
        each = left.pop(0) if len(left) > 1 else left[0]
        each(connection) if callable(each) else connection.sendall(each)

    return answer


@pytest.fixture
def with_resolver(tmp_path):
    """The program with a name look-up of the test's making, as a file to run."""

    def make(body):
        path = tmp_path / "resolver.py"
        path.write_text(
            "import runpy, socket, time\n"
            "real = socket.getaddrinfo\n"
            "def getaddrinfo(host, *more, **named):\n"
            "    if host != '127.0.0.1':\n        %s\n"
            "    return real(host, *more, **named)\n"
            "socket.getaddrinfo = getaddrinfo\n"
            "runpy.run_path(%r, run_name='__main__')\n" % (body, PROGRAM)
        )
        return str(path)

    return make


NOT_FOUND = "raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')"


# ---- Told apart ----


def test_a_name_that_is_not_found(scripto, with_resolver):
    run = ask(scripto, "https://backend.example", program=with_resolver(NOT_FOUND))
    assert run.status == 3 and run.error["code"] == "network-error"
    assert "backend.example" in run.error["message"] and run.error["nextAction"]


@pytest.mark.parametrize("host", ["a" * 70 + ".example", "a..example", ".example", "-"])
def test_a_name_that_can_be_none(newest, with_resolver, host):
    run = ask(newest, "https://" + host, program=with_resolver(NOT_FOUND))
    assert run.error["code"] in ("network-error", "invalid-argument")
    assert host[-7:] in run.error["message"]


def test_a_refused_connection(scripto, nobody):
    run = ask(scripto, nobody)
    assert run.status == 3 and run.error["code"] == "network-error"
    assert nobody[7:] in run.error["message"] and run.error["nextAction"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reset_before_the_reply(newest, raw_server, command):
    run = ask(newest, raw_server(reset).url, command)
    assert run.status == 3 and run.error["code"] == "network-error"


@pytest.mark.parametrize("framing", [b"Content-Length: 100\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_a_reset_in_the_middle_of_the_reply(scripto, raw_server, framing):
    start = b'5\r\n{"use' if b"chunked" in framing else b'{"use'
    run = ask(scripto, raw_server(reset_after(HEAD + framing + b"\r\n" + start)).url)
    assert run.status == 3 and run.error["code"] == "network-error"


@pytest.mark.slow
def test_each_cause_has_words_of_its_own(newest, raw_server, tls, nobody, with_resolver):
    causes = {
        "refused": (nobody, {}),
        "not found": ("https://127.0.0.1.example", {"program": with_resolver(NOT_FOUND)}),
        "reset": (raw_server(reset).url, {}),
        "TLS": (raw_server(USER, tls).url, {}),
        "silent": (raw_server(silent).url, {"env": {"SCRIPTO_TIMEOUT": "1"}}),
    }
    said = {}
    for cause, (url, start) in causes.items():
        error = ask(newest, url, **start).error
        assert error["code"] == "network-error" and "127.0.0.1" in error["message"], cause
        said[re.sub(r":\d+", "", error["message"])] = cause
    assert len(said) == len(causes), said


# ---- TLS ----


def test_a_certificate_that_is_trusted(scripto, raw_server, tls, certificate):
    url = raw_server(USER, tls).url.replace("127.0.0.1", "localhost")
    assert ask(scripto, url, env={"SSL_CERT_FILE": certificate}).data["user"]["id"] == "user_1"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_self_signed_certificate_gets_no_secret(newest, raw_server, tls, command):
    server = raw_server(USER, tls)
    run = ask(newest, server.url.replace("127.0.0.1", "localhost"), command)
    assert run.status == 3 and run.error["code"] == "network-error"
    assert "localhost" in run.error["message"]
    assert re.search("self[- ]signed|verify failed", run.error["message"])  # as Python knows it
    assert b"".join(server.requests) == b""


def test_a_certificate_for_another_host_gets_no_secret(scripto, raw_server, tmp_path):
    certificate = self_signed(tmp_path / "cert", "DNS:elsewhere.example")
    server = raw_server(USER, server_side(certificate))
    run = ask(scripto, server.url, env={"SSL_CERT_FILE": certificate})
    assert run.error["code"] == "network-error" and b"".join(server.requests) == b""
    assert re.search("127.0.0.1.*(match|not valid)", run.error["message"])


def test_no_environment_switches_the_checks_off(newest, raw_server, tls):
    server = raw_server(USER, tls)
    env = {"PYTHONHTTPSVERIFY": "0", "SCRIPTO_ALLOW_HTTP": "1", "CURL_INSECURE": "1"}
    assert ask(newest, server.url, env=env).status == 3
    assert server.requests == []


def test_https_to_a_port_that_speaks_http(newest):
    def answer(connection):
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        while connection.recv(65536):
            pass

    server = Eager(answer)
    run = ask(newest, server.url.replace("http:", "https:"))
    assert run.status == 3 and run.error["code"] == "network-error"
    assert server.url[7:] in run.error["message"] and "TLS" in run.error["message"]
    server.close()


def test_http_to_a_port_that_speaks_https(newest, raw_server, tls):
    assert ask(newest, raw_server(USER, tls).url.replace("https:", "http:")).status in (1, 3)


# ---- Time ----

SLOW = {
    "silent": silent,
    "dripping status": drip(b"HTTP/1.1 200 O"),
    "dripping headers": drip(HEAD + b"X-Drip: "),
    "dripping body": drip(HEAD + b"Content-Length: 5000\r\n\r\n"),
    "dripping chunks": drip(HEAD + b"Transfer-Encoding: chunked\r\n\r\nfff\r\n"),
    "endless continue": lambda connection: pour(connection, b"HTTP/1.1 100 Continue\r\n\r\n"),
}


def pour(connection, unit, total=1 << 30):
    """Sends the unit again and again, for ever as far as a client is concerned."""
    block, sent = unit * (65536 // len(unit) + 1), 0
    while sent < total:
        connection.sendall(block)
        sent += len(block)


@pytest.mark.parametrize("kind", SLOW)
@pytest.mark.slow
def test_the_time_out_bounds_the_whole_request(newest, raw_server, kind):
    begin = time.monotonic()
    run = ask(newest, raw_server(SLOW[kind]).url, env=SOON)
    assert 0.5 <= time.monotonic() - begin < 10
    assert run.status == 3 and run.error["code"] == "network-error"
    assert "127.0.0.1" in run.error["message"] and run.error["nextAction"]


def test_it_bounds_a_tls_handshake_too(newest):
    server = Eager(silent)
    begin = time.monotonic()
    run = ask(newest, server.url.replace("http:", "https:"), env=SOON)
    assert time.monotonic() - begin < 10 and run.error["code"] == "network-error"
    server.close()


@pytest.mark.slow
def test_it_bounds_a_name_look_up_too(newest, with_resolver):
    program, begin = with_resolver("time.sleep(60)"), time.monotonic()
    run = ask(newest, "https://x.example", program=program, env=SOON)
    assert time.monotonic() - begin < 20 and run.error["code"] == "network-error"


@pytest.mark.slow
def test_it_bounds_head_and_body_together(newest, raw_server):
    """Each comes within the time-out, both together do not."""

    def late(connection):
        head, _, body = CODE_SENT.partition(b"\r\n\r\n")
        for part in (head + b"\r\n\r\n", body):
            time.sleep(1.2)
            connection.sendall(part)

    url = raw_server(late).url
    runs = [newest.start(*words, "--api-url", url, env={"SCRIPTO_TIMEOUT": "2"})
            for words in (COMMANDS["login-request"], ["api", "a", "--api-key", KEY])]
    for run in runs:
        out, err = run.communicate()
        assert (run.returncode, out) == (3, b"") and b"within 2 seconds" in err


@pytest.mark.slow
def test_a_login_complete_that_is_cut_off_stores_nothing(newest, raw_server):
    server = raw_server(drip(HEAD + b"\r\n"))
    assert ask(newest, server.url, "login-complete", env=SOON).status == 3
    assert len(server.requests) == 1 and newest.state() == {"profiles": {}}


@pytest.mark.parametrize("value", ["0", "-1", "abc", "nan", "inf", "1e99", "5s", " "])
def test_a_time_out_that_is_none_is_refused(newest, raw_server, value):
    server = raw_server(USER)
    run = ask(newest, server.url, env={"SCRIPTO_TIMEOUT": value})
    assert run.status == 2 and run.error["code"] == "invalid-argument"
    assert "SCRIPTO_TIMEOUT" in run.error["message"] and server.requests == []


@pytest.mark.parametrize("value", ["", None, "20", "20.5"])
def test_a_time_out_that_is_one_is_taken(newest, raw_server, value):
    assert ask(newest, raw_server(USER).url, env={"SCRIPTO_TIMEOUT": value}).status == 0


# ---- Once, and only once ----


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_sent_again_after_a_reset(newest, raw_server, command):
    server = raw_server(taking_turns(reset, USER))
    assert ask(newest, server.url, command).status == 3
    assert len(server.requests) == 1


@pytest.mark.parametrize("trouble", [
    reset, lambda connection: None, reset_after(HEAD + b"Content-Length: 99\r\n\r\n{"),
], ids=["reset", "end", "in the middle"])  # fmt: skip
@pytest.mark.parametrize("command", SPENDING)
def test_what_spends_or_sends_a_code_is_never_sent_twice(scripto, raw_server, command, trouble):
    server = raw_server(taking_turns(trouble, CODE_SENT))
    assert ask(scripto, server.url, command).status in (1, 3)
    assert len(server.requests) == 1


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("status", [429, 503])
def test_an_answer_is_never_asked_for_again(newest, raw_server, command, status):
    server = raw_server(http_reply(b"", status, "Retry-After: 0"))
    assert ask(newest, server.url, command).status == 3
    assert len(server.requests) == 1


# ---- Redirects ----


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_redirect_carries_anything_anywhere(newest, raw_server, command, status):
    stranger = raw_server(USER)
    location = "Location: %s/api/auth/me" % stranger.url.replace("127.0.0.1", "localhost")
    server = raw_server(http_reply(b"", status, location))
    run = ask(newest, server.url, command)
    assert run.status == 1 and run.error["code"] == "invalid-response"
    assert stranger.requests == [] and len(server.requests) == 1


@pytest.mark.parametrize("location", ["/elsewhere", "", "file:///etc/passwd"])
def test_no_redirect_is_followed_within_the_backend_either(newest, raw_server, location):
    server = raw_server(taking_turns(http_reply(b"", 302, "Location: " + location), USER))
    assert ask(newest, server.url).status == 1
    assert len(server.requests) == 1


# ---- Size ----


@pytest.mark.parametrize("more, status", [(0, 0), (1, 1)])
def test_a_reply_may_have_one_mebibyte(scripto, raw_server, more, status):
    body = USER.partition(b"\r\n\r\n")[2]
    run = ask(scripto, raw_server(http_reply(body.ljust((1 << 20) + more))).url)
    assert run.status == status
    assert status == 0 or run.error["code"] == "invalid-response"


# Runs a command, and says the most memory that it held, in KiB. A process of its own does that: a
# child counts with what its parent held when it was forked.
PEAK = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""
ENDLESS = {
    "body": (HEAD + b"\r\n", b" " * 1000),
    "body of a huge length": (HEAD + b"Content-Length: 99999999999999\r\n\r\n", b" " * 1000),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"3e8\r\n" + b" " * 1000 + b"\r\n"),
    "chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffffff\r\n", b" " * 1000),
    "chunk size": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0" * 1000),
    "trailer": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-A: b\r\n"),
    "headers": (HEAD, b"X-A: b\r\n"),
    "header": (HEAD + b"X-A: ", b"b" * 1000),
    "status line": (b"HTTP/1.1 200 ", b"K" * 1000),
    "error": (b"HTTP/1.1 500 Oh\r\n\r\n", b" " * 1000),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_an_endless_reply_costs_neither_time_nor_memory(newest, raw_server, kind):
    head, unit = ENDLESS[kind]
    server = raw_server(lambda connection: connection.sendall(head) or pour(connection, unit))
    begin = time.monotonic()
    words = [*COMMANDS["whoami"], "--api-url", server.url]
    run = newest.run(*words, flags=("-c", PEAK, newest.python), env=SOON)
    *said, peak = run.err.splitlines()
    assert int(peak) < 100 << 10 and time.monotonic() - begin < 10
    assert run.status in (1, 3) and said[0].startswith("✗ ")


# ---- Proxies ----

BEYOND = {"SCRIPTO_ALLOW_HTTP": "1"}


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY"])
def test_a_proxy_from_the_environment_is_used(scripto, raw_server, name):
    proxy = raw_server(USER)
    run = ask(scripto, "http://backend.example", env=dict(BEYOND, **{name: proxy.url}))
    assert run.data["user"]["id"] == "user_1"
    assert proxy.requests[0].startswith(b"GET http://backend.example/api/auth/me HTTP/1.1\r\n")


def test_a_proxy_gets_its_password_and_the_backend_does_not(newest, raw_server):
    proxy = raw_server(USER)
    env = dict(BEYOND, http_proxy=proxy.url.replace("//", "//me:secret@"))
    run = ask(newest, "http://backend.example", env=env)
    assert b"\r\nProxy-Authorization: Basic bWU6c2VjcmV0\r\n" in title_case(proxy.requests[0])
    assert run.status == 0 and "secret" not in run.out


def title_case(request):
    return re.sub(rb"(?m)^[\w-]+(?=: )", lambda match: match.group().title(), request)


@pytest.mark.parametrize("command, host", [
    ("whoami", "127.0.0.1"), ("whoami", "localhost"), ("whoami", "LOCALHOST"),
    ("whoami", "127.9.9.9"), ("login-request", "localhost"), ("login-complete", "127.0.0.1"),
])  # fmt: skip
def test_no_proxy_sees_what_goes_to_loopback(newest, raw_server, command, host):
    proxy, server = raw_server(USER), raw_server(USER)
    env = {name: proxy.url for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy")}
    ask(newest, "http://%s:%d" % (host, server.port), command, env=env)
    assert proxy.requests == []
    assert len(server.requests) == (host != "127.9.9.9")


@pytest.mark.parametrize("name, value", [
    ("no_proxy", "0.0.0.0"), ("NO_PROXY", "example.org, 0.0.0.0"), ("no_proxy", "*"),
])  # fmt: skip
def test_no_proxy_is_respected(newest, raw_server, name, value):
    proxy, server = raw_server(USER), raw_server(USER)
    env = dict(BEYOND, http_proxy=proxy.url, **{name: value})
    url = server.url.replace("127.0.0.1", "0.0.0.0")  # this machine too, though no loopback name
    assert ask(newest, url, env=env).status == 0
    assert proxy.requests == [] and len(server.requests) == 1


def tunnel(context, inside, reply):
    """What a proxy does for https: it takes CONNECT, then passes on; here to itself."""

    def answer(connection):
        connection.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
        with context.wrap_socket(connection, server_side=True) as secure:
            inside.append(RawServer.read_request(secure))
            secure.sendall(reply)

    return answer


def test_a_proxy_for_https_sees_no_key(scripto, raw_server, tls, certificate):
    """Nor does the backend see the proxy's password."""
    inside = []
    proxy = raw_server(tunnel(tls, inside, USER))
    url = proxy.url.replace("//", "//me:secret@")
    env = {"https_proxy": url, "SSL_CERT_FILE": certificate}
    assert ask(scripto, "https://backend.example", env=env).status == 0
    (outside,), (request,) = proxy.requests, inside
    assert outside.startswith(b"CONNECT backend.example:443 ") and KEY.encode() not in outside
    assert request.startswith(b"GET /api/auth/me HTTP/1.1\r\n") and KEY.encode() in request
    assert b"roxy-" not in request


def test_a_proxy_that_refuses_a_tunnel(newest, raw_server):
    proxy = raw_server(http_reply(b"", 403))
    run = ask(newest, "https://backend.example", env={"https_proxy": proxy.url})
    assert run.status == 3 and "403" in run.error["message"]


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:port", "http://[", "http://", "socks5://x:1",
                                   "127.0.0.1:1", "http://me:secret@127.0.0.1:1"])  # fmt: skip
def test_a_proxy_that_does_not_work_is_not_blamed_on_the_backend(newest, with_resolver, proxy):
    program = with_resolver(NOT_FOUND)
    env = dict(BEYOND, http_proxy=proxy)
    run = ask(newest, "http://backend.example", env=env, program=program)
    assert run.error["code"] != "invalid-response"  # since there was none
    assert "proxy" in run.error["message"] + run.error["nextAction"]
    assert "secret" not in run.out


# ---- What is sent ----


@pytest.mark.parametrize("command", COMMANDS)
def test_each_request_says_who_asks(scripto, raw_server, command):
    server = raw_server(USER)
    ask(scripto, server.url, command)
    version = scripto.run("--version").out.split()[1].encode()
    request = title_case(server.requests[0])
    assert b"\r\nUser-Agent: scripto/%s\r\n" % version in request
    assert request.count(b"User-Agent") == 1 and b"urllib" not in request


def test_only_what_needs_the_key_carries_it(newest, raw_server):
    server = raw_server(USER)
    newest.env["SCRIPTO_API_KEY"] = KEY
    for command in SPENDING:
        ask(newest, server.url, command)
    assert KEY.encode() not in b"".join(server.requests)
    ask(newest, server.url)
    assert title_case(server.requests[-1]).count(b"Authorization: Bearer " + KEY.encode()) == 1


def test_a_chunk_of_less_than_nothing_costs_no_memory(edge, tmp_path, raw_server):
    """Some versions of the standard library follow it to the end of the stream."""

    def endless(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n")
        while True:
            connection.sendall(b" " * 65536)

    scripto = Scripto(edge, tmp_path / "home", SCRIPTO_TIMEOUT="2")
    words = ["whoami", "--api-key", KEY, "--api-url", raw_server(endless).url, "--json"]

    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))  # bytes of address space

    run = scripto.run(*words, preexec_fn=limited)
    assert run.error["code"] in ("invalid-response", "network-error"), run.err


# ---- Proxies that are not spoken ----


@pytest.mark.parametrize("proxy", [
    "http:/user:%s@proxy.example:1", "http://user:%s@proxy.example:1", "user:%s@proxy.example:1",
    "https://user:%s@proxy.example:1", "socks5://user:%s@proxy.example:1", "http://user:%s@[",
])  # fmt: skip
@pytest.mark.parametrize("words", (["whoami", "--api-key", KEY], ["doctor"]), ids=" ".join)
def test_no_proxy_has_its_password_shown(newest, words, proxy):
    env = {"HTTPS_PROXY": proxy % SECRET, "SCRIPTO_TIMEOUT": "5"}
    run = newest.run(*words, "--json", "--api-url", "https://backend.example", env=env)
    assert run.status == 1 and "https_proxy" in run.out
    told = run.out.replace(str(newest.home), "")
    assert not any(part in told.replace("pass another", "") for part in SECRET.split("/"))


@pytest.mark.parametrize("proxy", ("socks5://127.0.0.1:1", "https://127.0.0.1:1", "127.0.0.1:port"))
def test_a_proxy_that_is_not_spoken_is_refused(scripto, proxy):
    begin = time.monotonic()
    error = ask(scripto, "https://backend.example", env={"HTTPS_PROXY": proxy}).error
    assert error["code"] == "failed-precondition" and "https_proxy" in error["message"]
    assert time.monotonic() - begin < 15 and "https_proxy" in error["nextAction"]
