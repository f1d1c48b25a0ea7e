"""What goes wrong, and what is said then: code, message, next action, exit status."""
import json
import os
import pty
import re
import signal

import pytest

from client import EMAIL, KEY, OTHER_KEY, some_state
from conftest import http_reply, in_turn, wait_until

SIGN_IN = "sign in with: scripto auth login-request --email <your-email>"

EXIT = {
    "invalid-argument": 2, "unauthenticated": 4, "not-found": 1, "failed-precondition": 1,
    "resource-exhausted": 3, "internal": 3, "network-error": 3, "invalid-response": 1,
    "cancelled": 130, "permission-denied": 1,
}  # fmt: skip

TOLD = {"httpStatus", "retryAfter"}  # where a backend answered

PASS_EMAIL = "Pass --email <your-email> to: scripto auth "
REQUEST_CODE = "request a new code with: scripto auth login-request"
RETRY = "retry shortly"
PASS_ANOTHER = "pass another --api-key, or " + SIGN_IN

LOGIN_REQUEST = ["auth", "login-request", "--email", EMAIL]
LOGIN_COMPLETE = ["auth", "login-complete", "--email", EMAIL, "--code", "123456"]
WHOAMI = ["whoami", "--api-key", KEY]
COMMANDS = {"login-request": LOGIN_REQUEST, "login-complete": LOGIN_COMPLETE, "whoami": WHOAMI}


def failure(status, code, message="No.", **more):
    """A reply with the envelope of an error."""
    error = dict({"code": code, "message": message}, **more)
    return http_reply({"success": False, "error": error}, status)


def check_failure(scripto, words, code, next_action=None, exit_status=None, **run):
    """Runs it with --json and without; both have to say the same, as the contract says it.
    next_action None: any, but there has to be one. Returns the error."""
    as_json = scripto.run(*words, "--json", **run)
    error = as_json.error
    assert as_json.err == "" and set(error) - TOLD == {"code", "message", "nextAction"}
    assert error["code"] == code and error["message"] and error["nextAction"]
    assert error["nextAction"] == next_action or next_action is None
    human = scripto.run(*words, **run)
    lines = ["✗ " + error["message"], "  next: " + error["nextAction"]]
    assert (human.out, human.err.splitlines()) == ("", lines)
    expected = EXIT[code] if exit_status is None else exit_status
    assert (as_json.status, human.status) == (expected, expected)
    return error


def stores_nothing(scripto):
    """What was tried before the request may have made the file."""
    return not scripto.config.exists() or scripto.state() == {"profiles": {}}


@pytest.fixture
def backend_says(raw_server, newest):
    """backend_says(reply, words) runs a command with --json at a backend that replies so."""

    def run(reply, words, scripto=newest):
        url = raw_server(reply).url
        return scripto.run(*words, "--json", env={"SCRIPTO_API_BASE_URL": url})

    return run


# ---- Refused on this machine: nothing is sent ----

LOCAL = {
    "email missing": (["auth", "login-request"], "invalid-argument", PASS_EMAIL + "login-request"),
    "email empty": (["auth", "login-request", "--email", ""],
                    "invalid-argument", PASS_EMAIL + "login-request"),
    "email without its value": (["auth", "login-request", "--email"],
                                "invalid-argument", PASS_EMAIL + "login-request"),
    "email invalid": (["auth", "login-request", "--email", "you"],
                      "invalid-argument", PASS_EMAIL + "login-request"),
    "email missing at login-complete": (["auth", "login-complete", "--code", "123456"],
                                        "invalid-argument", PASS_EMAIL + "login-complete"),
    "email invalid at login-complete": (
        ["auth", "login-complete", "--email", "you@", "--code", "123456"],
        "invalid-argument", PASS_EMAIL + "login-complete"),
    "code missing": (["auth", "login-complete", "--email", EMAIL],
                     "invalid-argument", REQUEST_CODE),
    "code empty": (["auth", "login-complete", "--email", EMAIL, "--code", ""],
                   "invalid-argument", REQUEST_CODE),
    "code without its value": (["auth", "login-complete", "--email", EMAIL, "--code"],
                               "invalid-argument", REQUEST_CODE),
    "code malformed": (["auth", "login-complete", "--email", EMAIL, "--code", "12345"],
                       "invalid-argument", "run it again: scripto auth login-complete --email "
                       + EMAIL + " --code <6-digit-code>"),
    "code not on standard input": (["auth", "login-complete", "--email", EMAIL, "--code", "-"],
                                   "invalid-argument", REQUEST_CODE),
    "bad URL": ([*LOGIN_REQUEST, "--api-url", "ftp://backend.example"], "invalid-argument", None),
    "bad key": (["whoami", "--api-key", "hunter2"], "invalid-argument", None),
    "key missing": (["config", "set"], "invalid-argument", None),
    "no key": (["whoami"], "unauthenticated", SIGN_IN),
    "no key for auth token": (["auth", "token"], "unauthenticated", SIGN_IN),
    "unknown profile": (["whoami", "--profile", "you"], "not-found", None),
}  # fmt: skip

USAGE = {
    "unknown command": ["whoareyou"],
    "unknown flag": [*WHOAMI, "--verbose"],
    "unknown flag with a value": [*WHOAMI, "--verbose=1"],
    "flag without its value": [*LOGIN_REQUEST, "--profile"],
    "flag with an empty value": [*LOGIN_REQUEST, "--profile", ""],
    "flag with two dashes for a value": [*LOGIN_REQUEST, "--api-url=--"],
    "repeated flag with two dashes": ["api", "a", "-H", "X: y", "-H=--", "--api-key", "scripto_1"],
    "switch with a value": ["config", "clear", "--yes=maybe"],
    "short switch with nothing for a value": ["api", "a", "-i=", "--api-key", "scripto_1"],
    "no command to run": ["run", "--api-key", "scripto_1"],
    "argument missing": ["keys", "revoke"],
    "argument too many": ["use", "you", "me"],
}


@pytest.mark.parametrize("row", LOCAL)
def test_refused_before_anything_is_sent(newest, raw_server, row):
    words, code, next_action = LOCAL[row]
    server = raw_server(http_reply({}))
    check_failure(newest, words, code, next_action, env={"SCRIPTO_API_BASE_URL": server.url})
    assert server.requests == []


@in_turn("words", USAGE)
def test_a_usage_error_is_an_error_like_any_other(scripto, raw_server, words):
    server = raw_server(http_reply({}))
    check_failure(scripto, words, "invalid-argument", env={"SCRIPTO_API_BASE_URL": server.url})
    assert server.requests == []


@pytest.mark.parametrize("email", [
    "you", "@example.com", "you@", "you@me@example.com", "a b@example.com", "you@exam ple.com",
    " you@example.com", "you@example.com\n", "you\t@example.com", "you\x1b[1m@example.com",
    "you\x7f@example.com", "you@example.com\r\nBcc: me@c.d", "y" * 243 + "@example.com",
])  # fmt: skip
def test_an_invalid_email_is_not_sent(newest, raw_server, email):
    server = raw_server(http_reply({}))
    words = ["auth", "login-request", "--email", email, "--api-url", server.url, "--json"]
    error = newest.run(*words).error
    assert error["nextAction"] == PASS_EMAIL + "login-request" and server.requests == []


def test_the_longest_email_is_sent(newest, raw_server):
    email = "y" * 242 + "@example.com"
    server = raw_server(http_reply({"success": True, "data": {"ok": True, "email": email}}))
    words = ["auth", "login-request", "--email", email, "--api-url", server.url]
    assert newest.run(*words).status == 0 and email.encode() in server.requests[0]


@pytest.mark.parametrize("code", [
    "1234567", "abcdef", "12345a", "-123456x", "0x1234", "1e5000", "١٢٣٤٥٦", "123.456", "123_456",
])  # fmt: skip
def test_a_malformed_code_is_not_sent(newest, raw_server, code):
    server = raw_server(http_reply({}))
    words = ["auth", "login-complete", "--email", EMAIL, "--code=" + code]
    error = newest.run(*words, "--api-url", server.url, "--json").error
    assert error["code"] == "invalid-argument" and "six digits" in error["message"]
    assert "scripto auth login-complete --email" in error["nextAction"]
    assert server.requests == []


@pytest.mark.parametrize("typed, meant", [
    (["whoam"], "scripto whoami"), (["login-request"], "scripto auth login-request"),
    (["login-complete", "--email", EMAIL], "scripto auth login-complete"),
    (["auth", "login-reqest", "--email", EMAIL], "scripto auth login-request"),
    (["auth", "tokn"], "scripto auth token"), (["config", "shwo"], "scripto config show"),
    (["Logout"], "scripto logout"), (["auth", "login-request", "--emial", EMAIL], "--email"),
    (["auth", "login-request", "--emial=" + EMAIL], "--email"),
    (["whoami", "--api-ulr"], "--api-url"),
    (["config", "clear", "--yess"], "--yes"), (["whoami", "--jsn"], "--json"),
    (["--versoin"], "scripto --version"), (["help", "auth", "logn"], "scripto auth login"),
    (["auth", "logout"], "scripto logout"), (["auth", "status"], "scripto whoami"),
    (["auth", "list"], "scripto use"), (["auth", "switch"], "scripto use"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")  # fmt: skip
def test_the_nearest_name_is_suggested(newest, typed, meant):
    result = newest.run(*typed, "--json")
    assert result.error["nextAction"].endswith(": " + meant) and result.status == 2


def test_a_command_belongs_behind_two_dashes(newest):
    assert "scripto run -- COMMAND" in newest.run("run", "ls", "--json").error["nextAction"]


def test_a_code_in_two_words_is_to_be_quoted(newest):
    words = ["auth", "login-complete", "--email", EMAIL, "--code", "123", "456", "--json"]
    assert "--code '<6-digit-code>'" in newest.run(*words).error["nextAction"]


@pytest.mark.parametrize("words, like", [
    (["help"], ["--help"]), (["help", "auth"], ["auth", "--help"]), (["auth"], ["auth", "--help"]),
    (["help", "auth", "login"], ["auth", "login", "--help"]), (["help", "--json"], ["--json"]),
    (["help", "use", "--help"], ["use", "you", "-h"]),
], ids=" ".join)  # fmt: skip
def test_help_is_a_command_too(newest, words, like):
    run, other = newest.run(*words), newest.run(*like)
    assert (run.status, run.out) == (other.status, other.out) == (0, run.out) and "scripto" in run.out


def test_nothing_is_suggested_for_what_is_like_nothing(newest):
    assert "did you mean" not in newest.run("xyzzy", "--json").error["nextAction"]


def test_what_is_suggested_for_a_flag_is_a_flag(newest):
    hint = newest.run("use", "--name", "you", "--json").error["nextAction"]
    assert not re.search("did you mean:? [^-]", hint), hint


# ---- The profile file stands in the way ----


def test_a_profile_file_that_cannot_be_read(scripto):
    scripto.config.mkdir(parents=True)
    for words in (["whoami"], ["use"], ["config", "set", "--api-key", KEY]):
        error = check_failure(scripto, words, "failed-precondition")
        assert str(scripto.config) in error["message"]


@pytest.mark.parametrize("content", [
    "", "{", "[]", '"text"', b"\xff\xfe", '{"profiles": []}', '{"profiles": {"you": 1}}',
])  # fmt: skip
def test_a_profile_file_that_cannot_be_parsed_stays_as_it_is(newest, content):
    newest.write_config(content)
    before = newest.config.read_bytes()
    error = check_failure(newest, ["config", "set", "--api-key", KEY], "failed-precondition")
    assert str(newest.config) in error["message"] and newest.config.read_bytes() == before


@pytest.mark.parametrize("words", [["config", "set", "--api-key", KEY], LOGIN_COMPLETE])
def test_a_profile_file_that_cannot_be_written_costs_no_code(scripto, raw_server, words):
    (scripto.home / ".config").write_text("a file where the folder has to be")
    server = raw_server(http_reply({}))
    env = {"SCRIPTO_API_BASE_URL": server.url}
    check_failure(scripto, words, "failed-precondition", env=env)
    assert server.requests == []


def test_a_key_that_belongs_elsewhere(scripto, raw_server):
    server = raw_server(http_reply({}))
    scripto.write_config({"activeProfile": "you", "profiles": {"you": {"apiKey": KEY}}})
    check_failure(scripto, ["whoami", "--api-url", server.url], "failed-precondition")
    assert server.requests == []


# ---- The backend says no ----

UNAUTHORIZED = http_reply({"error": "Unauthorized"}, 401)
HTML = b"<!doctype html><html><body>Bad Gateway</body></html>"
REMOTE = {
    "400 invalid email": ("login-request", failure(400, "invalid-argument"),
                          "invalid-argument", PASS_EMAIL + "login-request"),
    "400 wrong code": ("login-complete", failure(400, "invalid-argument"),
                       "invalid-argument", REQUEST_CODE),
    "400 elsewhere": ("whoami", failure(400, "invalid-argument"), "invalid-argument", None),
    "400 with no code": ("login-complete", http_reply({"error": "Bad Request"}, 400),
                         "invalid-argument", REQUEST_CODE),
    "401 key refused": ("whoami", UNAUTHORIZED, "unauthenticated", PASS_ANOTHER),
    "401 in an envelope": ("whoami", failure(401, "unauthenticated"), "unauthenticated", PASS_ANOTHER),
    "401 and no JSON": ("whoami", http_reply(HTML, 401), "unauthenticated", PASS_ANOTHER),
    "403 with no code": ("login-request", http_reply({"error": "No"}, 403),
                         "permission-denied", None),
    "404": ("whoami", failure(404, "not-found"), "not-found", None),
    "404 with no code": ("login-request", http_reply({"error": "Not Found"}, 404),
                         "not-found", None),
    "429": ("login-request", failure(429, "resource-exhausted"), "resource-exhausted", None),
    "429 and no JSON": ("login-request", http_reply(b"slow down", 429),
                        "resource-exhausted", None),
    "500 sending failed": ("login-request", failure(500, "internal"), "internal", RETRY),
    "500 at login-complete": ("login-complete", failure(500, "internal"), "internal", None),
    "404 and no JSON": ("whoami", http_reply(HTML, 404), "invalid-response", None),
    "502 and no JSON": ("whoami", http_reply(HTML, 502), "internal", None),
    "503 with nothing": ("login-request", http_reply(b"", 503), "internal", None),
    "not JSON": ("login-request", http_reply(HTML), "invalid-response", None),
    "too large": ("whoami", http_reply(b" " * (1 << 20) + b"{}"), "invalid-response", None),
}  # fmt: skip


@pytest.mark.parametrize("row", REMOTE)
def test_what_the_backend_says(newest, raw_server, row):
    command, reply, code, next_action = REMOTE[row]
    env = {"SCRIPTO_API_BASE_URL": raw_server(reply).url}
    check_failure(newest, COMMANDS[command], code, next_action, env=env)


@pytest.mark.parametrize("status, header, retry_after", [
    (429, "Retry-After: 7", 7), (503, "Retry-After: 0", 0), (401, "X-Other: 1", None),
    (429, "Retry-After: Wed, 21 Oct 2026 07:28:00 GMT", None), (404, "Retry-After: -1", None),
], ids=str)  # fmt: skip
def test_an_error_says_the_http_status_and_when_to_retry(
    newest, raw_server, status, header, retry_after
):
    url = raw_server(http_reply({"error": "No"}, status, header)).url
    error = newest.run(*WHOAMI, "--api-url", url, "--json").error
    assert (error["httpStatus"], error.get("retryAfter")) == (status, retry_after)


def test_where_no_backend_answered_there_is_no_http_status(newest, nobody):
    for words in ([*WHOAMI, "--api-url", nobody], ["whoami"], ["use", "nobody"]):
        assert set(newest.run(*words, "--json").error) == {"code", "message", "nextAction"}


@pytest.mark.slow
def test_a_wrong_code_a_spent_code_and_no_code_at_all(newest, backend):
    """At the backend that the program brings along; it has to say them all alike."""
    newest.sign_in(backend)
    spent = ["--email", EMAIL, "--code", backend.code_for(EMAIL)]
    unasked = ["--email", "me@example.com", "--code", "123456"]
    for flags in (spent, unasked):
        words = ["auth", "login-complete", *flags, "--api-url", backend.url]
        check_failure(newest, words, "invalid-argument", REQUEST_CODE)


def test_a_code_that_could_not_be_sent(newest, start_backend, nobody):
    backend = start_backend(mail=nobody.replace("http", "smtp"))
    words = [*LOGIN_REQUEST, "--api-url", backend.url]
    check_failure(newest, words, "internal", RETRY)


def test_a_key_that_the_backend_does_not_know(newest, backend):
    check_failure(newest, [*WHOAMI, "--api-url", backend.url], "unauthenticated", PASS_ANOTHER)


@pytest.mark.parametrize("status, exit_status", [
    (400, 1), (401, 4), (403, 1), (404, 1), (429, 3), (500, 3), (503, 3),
])  # fmt: skip
def test_an_unknown_code_is_passed_on_and_exits_by_its_http_status(
    newest, raw_server, status, exit_status
):
    reply = failure(status, "account-frozen", "Your account is frozen.", nextAction="call us")
    words = [*WHOAMI, "--api-url", raw_server(reply).url]
    error = check_failure(newest, words, "account-frozen", "call us", exit_status)
    assert error["message"] == "Your account is frozen."


@pytest.mark.parametrize("command, status, code", [
    ("login-request", 400, "invalid-argument"), ("login-request", 500, "internal"),
    ("login-complete", 400, "invalid-argument"), ("whoami", 401, "unauthenticated"),
])  # fmt: skip
def test_the_backends_next_action_wins_over_ours(newest, raw_server, command, status, code):
    theirs = "Überprüfe \"https://status.example\" & 'retry' <later> $HOME \\o/ 🦊"
    reply = failure(status, code, "Nein.", nextAction=theirs)
    words = [*COMMANDS[command], "--api-url", raw_server(reply).url]
    assert check_failure(newest, words, code, theirs)["message"] == "Nein."


def test_a_backend_may_say_what_we_would_of_something_else(newest, raw_server):
    words = [*WHOAMI, "--api-url", raw_server(failure(500, "internal", nextAction=SIGN_IN)).url]
    check_failure(newest, words, "internal", SIGN_IN)


def test_json_carries_the_backends_words_verbatim_and_a_terminal_does_not(newest, raw_server):
    evil = "run\x1b[2J\r\nthis\x9b1m\u202e"
    server = raw_server(failure(400, "invalid-argument", evil, nextAction=evil))
    words = [*WHOAMI, "--api-url", server.url]
    error = newest.run(*words, "--json").error
    assert error["message"] == error["nextAction"] == evil
    human = newest.run(*words).err
    assert len(human.splitlines()) == 2 and not set("\x1b\r\x9b\u202e") & set(human)


def test_an_error_in_a_200_is_an_error(backend_says):
    result = backend_says(failure(200, "internal", "Not today."), WHOAMI)
    assert (result.error["code"], result.error["message"]) == ("internal", "Not today.")
    assert result.status == 3


@pytest.mark.parametrize("value", [
    {"error": None}, {"error": []}, {"error": {}}, {"error": {"code": 7, "message": ["x"]}}, {},
    {"error": {"code": "", "message": "", "nextAction": {}}}, {"success": True, "data": {}},
], ids=json.dumps)  # fmt: skip
def test_an_error_without_its_members_is_told_by_its_status(backend_says, value):
    result = backend_says(http_reply(value, 400), LOGIN_COMPLETE)
    assert (result.error["code"], result.status) == ("invalid-argument", 2)
    assert result.error["message"] and result.error["nextAction"] == REQUEST_CODE


# ---- The way there and back ----


def test_nobody_listens(scripto, nobody):
    check_failure(scripto, [*WHOAMI, "--api-url", nobody], "network-error")


def test_a_backend_that_is_silent(scripto, raw_server):
    server = raw_server(lambda connection: connection.recv(1))
    words = [*LOGIN_REQUEST, "--api-url", server.url]
    check_failure(scripto, words, "network-error", env={"SCRIPTO_TIMEOUT": "0.3"}, timeout=10)


class NoTls:
    """Stands where a TLS context is expected, and talks of other things."""

    @staticmethod
    def wrap_socket(connection, server_side):
        connection.sendall(b"220 mail.example ESMTP ready\r\n\r\n")
        return connection


def test_a_backend_that_speaks_no_tls(scripto, raw_server):
    server = raw_server(b"", context=NoTls)
    check_failure(scripto, [*WHOAMI, "--api-url", server.url], "network-error")
    assert KEY not in str(server.requests)


def interrupt(scripto, raw_server, *flags):
    """Ctrl-C while the backend is thinking; returns (exit status, output, errors)."""
    server = raw_server(lambda connection: connection.recv(1))

    def restore():  # a runner in the background has its children ignore the signal
        signal.signal(signal.SIGINT, signal.default_int_handler)

    words = [*WHOAMI, "--api-url", server.url, *flags]
    process = scripto.start(*words, preexec_fn=restore)
    wait_until(lambda: server.requests, what="the request")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    return process.returncode, out.decode(), err.decode()


def test_interrupted(scripto, raw_server):
    status, out, err = interrupt(scripto, raw_server)
    assert (status, out) == (130, "") and err.startswith("✗ ") and "Traceback" not in err
    assert len(err.splitlines()) == 2
    status, out, err = interrupt(scripto, raw_server, "--json")
    assert (status, json.loads(out)["error"]["code"], err) == (130, "cancelled", "")


@pytest.mark.parametrize("form", [["--json"], []], ids=["json", "human"])
def test_declined_at_a_prompt(scripto, form):
    scripto.write_config({"profiles": {"you": {"apiKey": KEY}}})
    master, slave = pty.openpty()
    os.write(master, b"n\n")
    with open(master, "wb"), open(slave, "rb") as terminal:
        result = scripto.run("config", "clear", "--all", *form, stdin=terminal)
    assert result.status == 130 and KEY in scripto.config.read_text()
    assert (result.error["code"] == "cancelled") if form else ("✗ " in result.err)


# ---- Replies that are no replies ----


def nested(left, inside, right, depth=100000):
    return (left * depth + inside + right * depth).encode()


def breaks_off(sent, promised=1000):
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % promised + sent


MALFORMED = {
    "HTML": http_reply(HTML, 200, "Content-Type: text/html"),
    "empty": http_reply(b""),
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "list": http_reply([]),
    "text": http_reply("text"),
    "long number": http_reply(b"1" * 5000),
    "null": http_reply(None),
    "not UTF-8": http_reply(b'{"user": {"id": "user_1", "email": "\xff", "name": ""}}'),
    "huge": http_reply({"user": {"id": "user_1"}, "pad": "x" * (2 << 20)}),
    "deep lists": http_reply(nested("[", "", "]")),
    "deep objects": http_reply(nested('{"user":', "1", "}")),
    "deep and broken off": http_reply(nested('{"a":[', "", "")),
    "broken off JSON": http_reply(b'{"user": {"id": "user_1", "ema'),
    "broken off body": breaks_off(b'{"user": {"id": "user_1", "email": "a@b.c", "name": ""}}'),
    "broken off before the body": breaks_off(b""),
    "broken off chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{",
    "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "bad status": b"HTTP/1.1 abc OK\r\n\r\n{}",
    "endless header": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200000 + b"\r\n\r\n{}",
    "header flood": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n{}",
}  # fmt: skip


@in_turn("reply", MALFORMED)
def test_a_malformed_reply(scripto, backend_says, reply):
    result = backend_says(reply, WHOAMI, scripto)
    assert (result.error["code"], result.status) == ("invalid-response", 1)
    assert result.error["nextAction"] and result.err == ""


INCOMPLETE = [
    {}, {"success": False}, {"success": True}, {"success": True, "data": [], "user": []},
    {"success": True, "data": "ok", "user": "you"}, {"success": True, "data": {}, "user": {}},
    {"success": True, "data": {"ok": False, "apiKey": 7}, "user": {"id": 7, "email": EMAIL}},
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("value", INCOMPLETE, ids=json.dumps)
def test_a_reply_without_its_members(backend_says, newest, command, value):
    result = backend_says(http_reply(value), COMMANDS[command])
    assert (result.error["code"], result.status) == ("invalid-response", 1)
    assert result.error["nextAction"] and stores_nothing(newest)


@pytest.mark.parametrize("command", ["login-request", "login-complete"])
@pytest.mark.parametrize("kind", ["HTML", "deep lists", "huge", "broken off body"])
def test_a_malformed_reply_to_a_sign_in(backend_says, newest, command, kind):
    result = backend_says(MALFORMED[kind], COMMANDS[command])
    assert (result.error["code"], result.status) == ("invalid-response", 1)
    assert stores_nothing(newest)


@pytest.mark.parametrize("key", [None, "", 7, ["scripto_x"], "sk_1", "scripto_a b", "scripto_a\nb"])
def test_a_reply_with_no_key_in_it_is_not_stored(backend_says, newest, key):
    data = {"apiKey": key, "keyId": "key_1", "userId": "user_1", "email": EMAIL}
    result = backend_says(http_reply({"success": True, "data": data}), LOGIN_COMPLETE)
    assert result.error["code"] == "invalid-response" and stores_nothing(newest)


def test_an_endless_reply_is_cut_off(newest, raw_server):
    sent = []

    def talk(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while sum(sent) < 64 << 20:
            sent.append(connection.send(b" " * 65536))

    result = newest.run(*WHOAMI, "--api-url", raw_server(talk).url, "--json")
    assert result.error["code"] == "invalid-response" and sum(sent) < 16 << 20


def test_a_malformed_reply_in_human_form(scripto, raw_server):
    server = raw_server(MALFORMED["broken off body"])
    check_failure(scripto, [*WHOAMI, "--api-url", server.url], "invalid-response")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(newest, raw_server, command, status):
    """Whoever it leads to would get a key, a code or an email."""
    data = {"ok": True, "email": EMAIL, "apiKey": KEY}
    good = {"success": True, "data": data, "user": {"id": "user_1"}}
    stranger = raw_server(http_reply(good))
    location = "Location: %s/elsewhere" % stranger.url
    server = raw_server(http_reply(good, status, location))
    result = newest.run(*COMMANDS[command], "--api-url", server.url, "--json")
    assert result.error["code"] == "invalid-response" and stores_nothing(newest)
    assert (len(server.requests), stranger.requests) == (1, [])


# ---- A refused key says which ----


@pytest.mark.parametrize("source, first", [
    ("profile", ""), ("--api-key", "pass another --api-key, or "),
    ("SCRIPTO_API_KEY", "fix or unset SCRIPTO_API_KEY, or "),
])  # fmt: skip
@pytest.mark.parametrize("told", (None, SIGN_IN), ids=("bare", "told"))
def test_a_refused_key_says_which(newest, raw_server, source, first, told):
    body = {"success": False, "error": {"code": "unauthenticated", "nextAction": told}}
    server = raw_server(http_reply(body if told else {"error": "Unauthorized"}, 401))
    state = some_state()
    state["profiles"]["you"]["baseUrl"] = server.url
    newest.write_config(state)
    words = ["--api-url", server.url, "--json"]
    words += ["--api-key", OTHER_KEY] if source == "--api-key" else []
    env = {"SCRIPTO_API_KEY": OTHER_KEY} if source == "SCRIPTO_API_KEY" else {}
    assert newest.run("whoami", *words, env=env).error["nextAction"] == first + SIGN_IN
    checks = newest.run("doctor", *words, env=env).envelope["data"]["checks"]
    assert [each["nextAction"] for each in checks if each["name"] == "key"] == [first + SIGN_IN]
