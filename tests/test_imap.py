"""`auth login --code-from imaps://…`: the server is a small responder of this file's own, on a real
socket, which writes down what it is asked."""
import base64
import re
import select
import time

import pytest

from client import ended, go_on, login, nothing_sent, requests_to, signed_in, start_login
from conftest import Listener, listeners, wait_until


class ImapServer(Listener):
    """As much of RFC 3501 as a client needs that only peeks. `mails` are bytes, the UIDs are from
    1 on; `asked` are the commands; `refuse` maps a command to the answer instead of OK, and `drop`
    names one at which the connection ends, once."""

    def __init__(self, context=None, mails=(), password="secret", starttls=None):
        self.mails, self.password, self.starttls = list(mails), password, starttls
        self.asked, self.refuse, self.drop, self.validity = [], {}, [], 7
        super().__init__(context)

    def url(self, folder=""):
        scheme = "imaps" if self.context else "imap"
        return "%s://you@localhost:%d%s" % (scheme, self.port, folder)

    def talk(self, connection):
        connection.sendall(b"* OK ready\r\n")
        self.listen(connection)

    def listen(self, connection):
        lines = connection.makefile("rb")
        for line in lines:
            tag, command = line.decode().strip().split(" ", 1)
            verb = " ".join(command.split()[: 2 if command.startswith("UID") else 1])
            self.asked.append(command)
            if verb == "STARTTLS":
                connection.sendall(tag.encode() + b" OK go on\r\n")
                return self.listen(self.starttls.wrap_socket(connection, server_side=True))
            if verb in self.drop:
                self.drop.remove(verb)
                return
            answer = self.refuse.get(verb) or self.answer(verb, command, connection, lines)
            if isinstance(answer, str):
                answer = answer.encode()
            connection.sendall(tag.encode() + b" " + answer + b"\r\n")

    def answer(self, verb, command, connection, lines):
        say = connection.sendall
        if verb == "CAPABILITY":
            offer = b" STARTTLS" if self.starttls else b""
            say(b"* CAPABILITY IMAP4rev1 AUTH=XOAUTH2%s\r\n" % offer)
        elif verb == "LOGIN" and self.password not in command:
            return "NO [AUTHENTICATIONFAILED] Wrong\x1b[2J password."
        elif verb == "AUTHENTICATE":
            say(b"+ \r\n")
            self.asked.append(base64.b64decode(lines.readline()).decode())
        elif verb in ("STATUS", "EXAMINE") and '"INBOX"' not in command and "Junk" not in command:
            return "NO [NONEXISTENT] No such mailbox."
        elif verb == "STATUS":
            say(b'* STATUS "INBOX" (UIDNEXT %d UIDVALIDITY %d)\r\n'
                % (len(self.mails) + 1, self.validity))
        elif verb == "EXAMINE":
            say(b"* %d EXISTS\r\n* OK [UIDVALIDITY %d] .\r\n" % (len(self.mails), self.validity))
        elif verb == "UID SEARCH":
            first = min(int(re.search(r"UID (\d+):\*", command).group(1)), len(self.mails))
            uids = range(max(first, 1), len(self.mails) + 1)
            say(b"* SEARCH %s\r\n" % b" ".join(b"%d" % uid for uid in uids))
        elif verb == "UID FETCH":
            uid, size = map(int, re.match(
                r"UID FETCH (\d+) \(BODY\.PEEK\[\]<0\.(\d+)>\)$", command).groups())
            part = self.mails[uid - 1][:size]
            say(b"* %d FETCH (UID %d BODY[]<0> {%d}\r\n%s)\r\n" % (uid, uid, len(part), part))
        return "OK done"


@pytest.fixture
def imap():
    yield from listeners(ImapServer)


def imap_mails(backend, server):
    """Moves what the backend mails into that mailbox, once."""
    mails = wait_until(backend.mails)
    server.mails.append(mails[-1].replace("\n", "\r\n").encode())


PASSWORD = {"SCRIPTO_MAIL_PASSWORD": "secret"}
OLD = [b"To: you@example.com\r\nSubject: 111111 is your code\r\n\r\n.\r\n"] * 300


@pytest.mark.slow
def test_imaps(scripto, backend, imap, tls, certificate):
    """Twice in a row in a mailbox with old codes; nothing there is changed."""
    server = imap(tls, OLD)
    for _ in range(2):
        mails = len(backend.mails())
        env = dict(PASSWORD, SSL_CERT_FILE=certificate)
        process = start_login(scripto, backend, server.url(), env=env)
        wait_until(lambda: len(backend.mails()) > mails)
        imap_mails(backend, server)
        status, envelope, _ = ended(process)
        assert status == 0 and signed_in(envelope["data"], backend)
    verbs = {" ".join(each.split()[: 2 if each.startswith("UID") else 1]) for each in server.asked}
    assert verbs == {"CAPABILITY", "LOGIN", "STATUS", "EXAMINE", "NOOP", "UID SEARCH", "UID FETCH"}
    fetched = [each.split()[2] for each in server.asked if each.startswith("UID FETCH")]
    assert fetched == ["301", "302"]  # and not one of the old ones
    wait_until(lambda: requests_to(backend, "/api/cli/login-complete") == 2)


@pytest.mark.slow
def test_imap_on_loopback(scripto, backend, imap):
    server = imap()
    process = start_login(scripto, backend, server.url("/INBOX"), env=PASSWORD)
    imap_mails(backend, server)
    assert ended(process)[0] == 0


def test_a_certificate_that_nobody_knows(newest, backend, imap, tls):
    server = imap(tls)
    run = login(newest, backend, server.url(), env=PASSWORD)
    assert run.error["code"] == "network-error" and run.status == 3
    assert "SSL_CERT_FILE" in run.error["nextAction"]
    assert nothing_sent(backend) and server.asked == []


def test_a_mail_server_that_refuses_costs_no_code(scripto, backend, imap):
    server = imap(password="other")
    run = login(scripto, backend, server.url(), env=PASSWORD)
    assert (run.error["code"], run.status) == ("failed-precondition", 1)
    assert "Wrong\\x1b[2J password." in run.error["message"]
    assert "SCRIPTO_MAIL_PASSWORD" in run.error["nextAction"]
    assert "secret" not in run.out + run.err and nothing_sent(backend)


@pytest.mark.parametrize("words", ["[ALERT] Application-specific password required",
                                   "Basic authentication is disabled."])
def test_where_passwords_are_switched_off(words, newest, backend, imap):
    server = imap()
    server.refuse["LOGIN"] = "NO " + words
    error = login(newest, backend, server.url(), env=PASSWORD).error
    assert words in error["message"] and nothing_sent(backend)
    assert "app password" in error["nextAction"] and "SCRIPTO_MAIL_TOKEN" in error["nextAction"]


def test_a_secret_that_the_mail_server_repeats(newest, backend, imap):
    server = imap(password="other")
    server.refuse["LOGIN"] = "NO secret is not your password"
    run = login(newest, backend, server.url(), env=PASSWORD)
    assert "secret" not in run.out + run.err and "is not your password" in run.out


def test_a_secret_that_it_repeats_as_it_was_sent(newest, backend, imap):
    server = imap()
    sent = base64.b64encode(b"user=you\1auth=Bearer ya29.token\1\1").decode()
    server.refuse["AUTHENTICATE"] = "NO %s is no good" % sent
    run = login(newest, backend, server.url(), env={"SCRIPTO_MAIL_TOKEN": "ya29.token"})
    assert sent not in run.out + run.err and "is no good" in run.out


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_beyond_loopback_nothing_is_said_in_the_clear(known, newest, backend, imap, tls, certificate):
    """0.0.0.0 leads to this machine, but is no loopback address: STARTTLS comes first."""
    server = imap(starttls=tls)
    url = server.url().replace("localhost", "0.0.0.0")
    env = dict(PASSWORD, SSL_CERT_FILE=certificate) if known else PASSWORD
    process = start_login(newest, backend, url, env=env)
    if known:
        imap_mails(backend, server)
    status, envelope, _ = ended(process)
    assert status == (0 if known else 3), envelope
    assert server.asked[:2] == ["CAPABILITY", "STARTTLS"]
    assert ("LOGIN" in " ".join(server.asked)) == known


@pytest.mark.slow
def test_an_oauth_token(scripto, backend, imap):
    server = imap()
    env = dict(PASSWORD, SCRIPTO_MAIL_TOKEN="ya29.token")
    process = start_login(scripto, backend, server.url(), env=env)
    imap_mails(backend, server)
    assert ended(process)[0] == 0
    assert "user=you\1auth=Bearer ya29.token\1\1" in server.asked
    assert not any(each.startswith("LOGIN") for each in server.asked)


def test_no_password_at_all(newest, backend, imap):
    """A ~/.netrc, which other programs read, is left alone."""
    server = imap()
    (newest.home / ".netrc").write_text("machine localhost login you password secret\n")
    run = login(newest, backend, server.url())
    assert run.error["code"] == "invalid-argument"
    assert "SCRIPTO_MAIL_PASSWORD" in run.error["nextAction"]
    assert nothing_sent(backend) and server.asked == ["CAPABILITY"]


def test_no_such_folder(newest, backend, imap):
    run = login(newest, backend, imap().url("/Nope"), env=PASSWORD)
    assert run.error["code"] == "invalid-argument" and "No such mailbox" in run.error["message"]
    assert "FOLDER" in run.error["nextAction"] and nothing_sent(backend)


@pytest.mark.slow
def test_a_folder_with_a_space_and_a_quote(newest, backend, imap):
    server = imap()
    process = start_login(newest, backend, server.url("/My%20%22Junk"), env=PASSWORD)
    imap_mails(backend, server)
    assert ended(process)[0] == 0
    assert 'EXAMINE "My \\"Junk"' in server.asked


@pytest.mark.parametrize("verb", ["NOOP", "UID SEARCH", "UID FETCH"])
def test_a_connection_that_drops_is_the_end(verb, newest, backend, imap):
    server = imap()
    server.drop.append(verb)
    process = start_login(newest, backend, server.url(), env=PASSWORD)
    imap_mails(backend, server)
    status, envelope, _ = ended(process)
    assert (status, envelope["error"]["code"]) == (3, "network-error")
    assert envelope["error"]["nextAction"] == go_on("--api-url", backend.url)
    assert sum(each.startswith("LOGIN") for each in server.asked) == 1


def test_a_mail_server_that_is_not_there(newest, backend, imap):
    server = imap()
    server.close()
    run = login(newest, backend, server.url(), env=PASSWORD)
    assert run.error["code"] == "network-error" and nothing_sent(backend)


@pytest.mark.parametrize("greeting", [b"", b"220 smtp ready\r\n", b"\xff" * 2000000, None])
def test_what_is_no_mail_server(greeting, newest, backend, raw_server):
    def answer(connection):
        if greeting is None:
            select.select([connection], [], [], 30)  # silent, until the client is gone
        else:
            connection.sendall(greeting)

    server = raw_server(answer)
    server.read_request = lambda connection: b""
    url = "imap://you@127.0.0.1:%d" % server.port
    began = time.monotonic()
    run = login(newest, backend, url, "--timeout", "2", env=PASSWORD)
    assert run.error["code"] == "network-error" and run.status == 3
    assert time.monotonic() - began < 20 and nothing_sent(backend)


def test_no_password_goes_out_where_tls_is_not_offered(newest, backend, imap):
    """0.0.0.0 leads to this machine, but is no loopback address."""
    server = imap()
    run = login(newest, backend, server.url().replace("localhost", "0.0.0.0"), env=PASSWORD)
    assert (run.error["code"], run.status) == ("network-error", 3) and nothing_sent(backend)
    assert set(server.asked) <= {"CAPABILITY", "LOGOUT"} and "TLS" in run.error["message"]


def test_imap_in_the_clear_is_for_loopback_only(newest, backend):
    """The address leads nowhere."""
    url = "imap://you@192.0.2.1:1"
    run = login(newest, backend, url, "--timeout", "2", env=PASSWORD)
    assert run.error["code"] == "network-error" and nothing_sent(backend)


@pytest.mark.slow
def test_it_pauses_between_two_looks_at_a_server(newest, backend, imap):
    server = imap()
    login(newest, backend, server.url(), "--timeout", "2", env=PASSWORD)
    assert 1 <= server.asked.count("NOOP") <= 3
