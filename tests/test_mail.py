"""The mail with the code: what it says, how it goes out, and what happens where it does not."""
import calendar
import concurrent.futures
import contextlib
import email
import email.policy
import email.utils
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time

import pytest

from backend import (  # fmt: skip
    FORWARDED, LIVE, LOCKED, ME, WRONG, YOU, answers_at_once, ask, at_once, can_connect,
    code_after_asking, enter, get, held_up, latest_mail, rows, within)
from conftest import Backend, free_port, in_turn, wait_until

# ---- Mail ----


def test_a_mail_is_what_readers_and_spam_filters_expect(backend, edge):
    code = code_after_asking(backend)
    mail = latest_mail(backend)
    assert mail["To"] == YOU and "@" in email.utils.parseaddr(mail["From"])[1]
    assert code in mail["Subject"] and mail["Auto-Submitted"] == "auto-generated"
    assert re.match(r"<[^<>@\s]+@[^<>@\s]+>\Z", mail["Message-ID"])
    assert abs(email.utils.parsedate_to_datetime(mail["Date"]).timestamp() - time.time()) < 300
    assert mail.get_content_type() == "text/plain"


def test_the_body_says_what_for_how_long_and_what_if_unasked(backend):
    code = code_after_asking(backend)
    body = latest_mail(backend).get_content()
    assert code in body and "sign in to Scripto" in body
    assert "10 minutes" in body and "ignore" in body


def test_the_body_says_when_and_from_where_it_was_asked_for(start_backend):
    """So that who is asked for the code by somebody else, or by a program, sees that."""
    backend = start_backend("--behind-proxy")
    ask(backend, headers={FORWARDED: "6.6.6.6, 203.0.113.7"})
    body = latest_mail(backend).get_content()
    asked, address = re.search("Asked for at (.*) UTC from (.*)[.]", body).groups()
    seconds = calendar.timegm(time.strptime(asked, "%Y-%m-%d %H:%M"))
    assert address == "203.0.113.7" and -1 < time.time() - seconds < 120
    until = time.strftime("until %H:%M UTC", time.gmtime(seconds + 600))
    assert until in body and "Give it to no" in body


def test_the_mail_names_the_backend_and_not_what_a_client_says_it_is(backend):
    ask(backend, headers={"Host": "evil.example"})
    assert "evil" not in backend.mails()[-1] and backend.url in backend.mails()[-1]


def test_the_sender_can_be_chosen(start_backend):
    backend = start_backend("--mail-from", "door@example.org")
    ask(backend)
    assert email.utils.parseaddr(latest_mail(backend)["From"])[1] == "door@example.org"


@pytest.mark.parametrize("url", ["http://[::1]:87", "http://127.0.0.1:87", "https://x_y.example"])
def test_any_public_url_gives_a_sender(start_backend, url):
    backend = start_backend("--public-url", url)
    assert ask(backend).status == 200 and "@" in latest_mail(backend)["From"]


def test_console_mail_is_on_standard_error(start_backend):
    backend = start_backend(mail="console")
    ask(backend)
    (code,) = re.findall(r"\b\d{6}\b", re.sub(r"(?m)^\S+Z .*$", "", backend.log()))
    assert enter(backend, code).status == 200


@pytest.mark.parametrize("stream", ["closed", "full", "unread"])
def test_a_code_that_cannot_be_shown_is_a_mail_that_failed(scripto, tmp_path, stream):
    """On a disk that is full, say, or in a pipe that nobody reads. It costs nothing."""
    reader, writer = os.pipe()
    if stream == "full":
        if not os.path.exists("/dev/full"):
            pytest.skip("no /dev/full")
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError, OSError):
        while stream == "unread":
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    more = {"preexec_fn": lambda: os.close(2)} if stream == "closed" else {}
    words = ["serve", "--port", "0", "--db", str(tmp_path / "db"), "--rate-limit", "0"]
    process = scripto.start(*words, stderr=writer, **more)
    try:
        url = process.stdout.readline().decode().split()[-1]
        site = type("Site", (), {"url": url, "request": Backend.request, "db": tmp_path / "db"})()
        assert {ask(site).error for _ in range(7)} == {(500, "internal")}
        assert rows(site, "events") == 0
    finally:
        process.kill()
        process.communicate()
        os.close(reader)
        os.close(writer)


def has_ipv6():
    with contextlib.suppress(OSError):
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        return True


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
def test_it_serves_ipv6_too(start_backend):
    backend = start_backend("--host", "::1", mail="console")
    assert backend.url.startswith("http://[::1]:") and answers_at_once(backend)


@pytest.mark.parametrize("mail", [[], ["--mail", "console"]], ids=["default", "chosen"])
@in_turn("host", ["0.0.0.0", "::", "192.0.2.1", "scripto.example"])
def test_console_mail_is_refused_beyond_loopback(scripto, tmp_path, host, mail):
    words = ["serve", "--port", "0", "--host", host, "--db", str(tmp_path / "db"), *mail]
    result = scripto.run(*words, "--json")
    assert (result.status, result.error["code"]) == (2, "invalid-argument")
    assert not (tmp_path / "db").exists()


def test_mail_goes_by_smtp(start_backend, mail_server, edge):
    server = mail_server()
    backend = start_backend(python=edge, mail="smtp://127.0.0.1:%d" % server.port)
    assert ask(backend).status == 200
    ((recipients, message, login, secure),) = server.mails
    assert (recipients, login, secure) == ([YOU], None, False)
    code = re.search(r"^Subject: (\d{6}) ", message, re.M).group(1)
    assert enter(backend, code).status == 200


LOGINS = {  # the URL's user info, the environment's password: what the server is told
    "in the URL": ("me%40x:p%2Fw@", None, ("me@x", "p/w")),
    "in the environment": ("me@", "p/w", ("me", "p/w")),
    "in both": ("me:url@", "environment", ("me", "environment")),
}


@pytest.mark.parametrize("user, password, told", LOGINS.values(), ids=LOGINS)
def test_a_password_goes_to_loopback(start_backend, mail_server, user, password, told):
    server = mail_server()
    mail = "smtp://%s127.0.0.1:%d" % (user, server.port)
    backend = start_backend(mail=mail, env={"SCRIPTO_SMTP_PASSWORD": password})
    assert ask(backend).status == 200 and server.mails[0][2] == told


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_mail_goes_by_tls_that_is_known(start_backend, mail_server, edge, tls, certificate, scheme):
    server = mail_server(tls, wrapped=scheme == "smtps")
    env = {"SSL_CERT_FILE": certificate, "SCRIPTO_SMTP_PASSWORD": "p"}
    mail = "%s://me@127.0.0.1:%d" % (scheme, server.port)
    assert ask(start_backend(python=edge, mail=mail, env=env)).status == 200
    assert server.mails[0][2:] == (("me", "p"), True)


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_mail_does_not_go_by_tls_that_is_unknown(start_backend, mail_server, edge, tls, scheme):
    server = mail_server(tls, wrapped=scheme == "smtps")
    backend = start_backend(python=edge, mail="%s://me:p@0.0.0.0:%d" % (scheme, server.port))
    assert ask(backend).error == (500, "internal") and not server.mails


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_on_loopback_no_certificate_is_asked_for(start_backend, mail_server, edge, tls, scheme):
    """As Debian's Postfix ships: STARTTLS is offered, by a certificate of its own making."""
    server = mail_server(tls, wrapped=scheme == "smtps")
    backend = start_backend(python=edge, mail="%s://me:p@127.0.0.1:%d" % (scheme, server.port))
    assert ask(backend).status == 200 and server.mails[0][2:] == (("me", "p"), True)
    assert "mail" not in backend.log()


def test_on_loopback_no_tls_is_asked_for_without_a_password(start_backend, mail_server, tls):
    server = mail_server(tls)
    assert ask(start_backend(mail="smtp://127.0.0.1:%d" % server.port)).status == 200
    assert b"STARTTLS" not in server.heard and server.mails[0][3] is False


@pytest.mark.parametrize("user, password", [("me:pä55@", None), ("mé@", "p"), ("me@", "pä55")])
def test_a_password_that_smtp_cannot_send_is_refused_at_the_start(
    scripto, tmp_path, user, password
):
    """And no character of it is shown."""
    words = ["serve", "--port", "0", "--db", str(tmp_path / "db")]
    result = scripto.run(*words, "--mail", "smtp://%slocalhost" % user,
                         env={"SCRIPTO_SMTP_PASSWORD": password})  # fmt: skip
    assert result.status == 2 and "ASCII" in result.err and not (tmp_path / "db").exists()
    assert not re.search("pä|ä5|mé|me@", result.out + result.err)


def test_a_password_does_not_go_in_the_clear(start_backend, mail_server):
    """0.0.0.0 leads to this machine too, and is not an address of loopback."""
    server = mail_server()
    backend = start_backend(mail="smtp://me:p@0.0.0.0:%d" % server.port)
    assert ask(backend).error == (500, "internal") and b"AUTH" not in server.heard
    backend = start_backend(mail="smtp://0.0.0.0:%d" % server.port, folder="without")
    assert ask(backend).status == 200


def test_a_password_does_not_go_where_starttls_is_declined(start_backend, mail_server, tls):
    """Or who stands in between would only have to say no."""
    server = mail_server(tls, STARTTLS=b"454 not now")
    backend = start_backend(mail="smtp://me:p@0.0.0.0:%d" % server.port)
    assert ask(backend).error == (500, "internal")
    assert b"STARTTLS" in server.heard and b"AUTH" not in server.heard and not server.mails


MAIL_FAILURES = {
    "rejects the recipient for now": {"RCPT": b"450 come again, " + YOU.encode()},
    "rejects the sender": {"MAIL": b"451 not now, scripto@localhost"},
    "takes no content": {"DATA": b"451 not now"},
    "rejects the content for now": {".": b"451 not now"},
    "rejects the content": {".": b"554 this is spam"},
    "is out of order": {"GREETING": b"554 not today"},
    "says nothing that is a reply": {"RCPT": b"what?"},
    "wants no content": {"DATA": b"250 fine"},
    "is no mail server": {"GREETING": b"HTTP/1.1 400 Bad Request"},
}


@pytest.mark.parametrize("trouble", MAIL_FAILURES.values(), ids=MAIL_FAILURES)
def test_a_mail_server_that_fails_is_a_500_and_costs_nothing(start_backend, mail_server, trouble):
    server = mail_server()
    healthy, server.answers = server.answers, dict(server.answers, **trouble)
    backend = start_backend(mail="smtp://127.0.0.1:%d" % server.port)
    assert {ask(backend).error for _ in range(7)} == {(500, "internal")}
    server.answers = healthy
    assert [ask(backend).status for _ in range(6)] == [200] * 5 + [429]
    assert YOU not in backend.log()


def test_an_address_that_takes_no_mail_is_the_client_s_fault_and_counts(start_backend, mail_server):
    """Or anybody could find out who has a mailbox, by asking for codes."""
    server = mail_server(RCPT=b"550 no such user " + YOU.encode())
    backend = start_backend(mail="smtp://127.0.0.1:%d" % server.port)
    replies = [ask(backend) for _ in range(6)]
    assert [reply.error for reply in replies] == [WRONG] * 5 + [LOCKED]
    assert replies[0].value["error"]["nextAction"] == (
        "Pass --email <your-email> to: scripto auth login-request"
    )
    assert YOU not in backend.log() and rows(backend, LIVE) == 0


@pytest.mark.parametrize("mail", ["smtps://127.0.0.1", "smtp://me:p@127.0.0.1", "smtp://0.0.0.0"])
def test_a_tls_set_up_that_fails_is_told_at_the_start(newest, tmp_path, mail):
    env = {"SSLKEYLOGFILE": "/nonexistent/keys"}  # heeded from Python 3.8 on
    words = ["serve", "--port", "0", "--db", str(tmp_path / "db"), "--mail", mail, "--json"]
    assert newest.run(*words, env=env).error["code"] == "failed-precondition"
    assert not (tmp_path / "db").exists()


def test_a_mail_that_was_handed_over_whole_counts_as_sent(start_backend, mail_server):
    """Its server hangs up behind the last dot: that mail may well arrive, so it is charged."""
    server = mail_server()
    server.answers["."] = b"hang up"
    backend = start_backend(mail="smtp://127.0.0.1:%d" % server.port)
    assert [ask(backend).status for _ in range(6)] == [200] * 5 + [429]
    code = re.search(r"^Subject: (\d{6}) ", server.arrived[-1], re.M).group(1)
    assert len(server.arrived) == 5 and enter(backend, code).status == 200


@pytest.mark.parametrize("goodbye", [b"421 too busy to say goodbye", None], ids=["421", "silent"])
def test_a_mail_that_was_taken_is_sent_whatever_the_server_says_to_goodbye(
    start_backend, mail_server, goodbye
):
    server = mail_server()
    server.answers["QUIT"] = goodbye
    backend, start = start_backend(mail="smtp://127.0.0.1:%d" % server.port), time.monotonic()
    assert ask(backend).status == 200 and len(server.mails) == 1
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("offers, status", [([b"SMTPUTF8", b"8BITMIME"], 200), ([], 400)])
def test_an_email_beyond_ascii_is_mailed_or_refused(
    start_backend, mail_server, edge, offers, status
):
    """By RFC 6531, where the server knows it."""
    server, address = mail_server(), "ü@bücher.example"
    server.offers += offers
    reply = ask(start_backend(python=edge, mail="smtp://127.0.0.1:%d" % server.port), address)
    assert reply.status == status and (status == 200 or reply.error == WRONG)
    for recipients, message, *_ in server.mails:
        assert recipients == [address] and "To: %s\r\n" % address in message
    assert len(server.mails) == (status == 200)


def test_no_mail_server_is_a_500(start_backend, scripto):
    backend = start_backend(mail="smtp://127.0.0.1:%d" % free_port())
    words = ["auth", "login-request", "--email", YOU, "--api-url", backend.url, "--json"]
    result = scripto.run(*words)
    assert (result.status, result.error["code"]) == (3, "internal")
    assert result.error["nextAction"] == "retry shortly"


def test_a_mail_that_fails_leaves_no_code_and_no_charge(start_backend, tmp_path):
    blocker = tmp_path / "blocker"
    blocker.write_text("a file where the folder should be")
    backend = start_backend(mail="maildir:%s" % (blocker / "mail"))
    assert {ask(backend).error for _ in range(7)} == {(500, "internal")}
    assert (rows(backend, LIVE), rows(backend, "events")) == (0, 0)
    blocker.unlink()
    assert [ask(backend).status for _ in range(6)] == [200] * 5 + [429]


def test_a_slow_mail_server_delays_its_own_request_only(start_backend, mail_server):
    server = mail_server()
    backend = start_backend(mail="smtp://127.0.0.1:%d" % server.port)
    with concurrent.futures.ThreadPoolExecutor(8) as pool, held_up(server):
        held = [pool.submit(ask, backend, "%d@example.com" % n) for n in range(8)]
        assert server.busy.wait(20) and answers_at_once(backend)
        assert enter(backend, "000000").error == WRONG  # the database is not held either
        assert not any(each.done() for each in held)
        server.go_on.set()
        assert [each.result().status for each in held] == [200] * 8


@pytest.mark.slow
def test_the_first_mails_may_come_all_at_once(start_backend):
    """A Maildir that is not there yet is made by whoever needs it first, and once."""
    backends, wrong = [start_backend(), start_backend()] * 6, []
    for number in range(25):
        shutil.rmtree(str(backends[0].maildir), ignore_errors=True)
        asks = [lambda b=b, n=n: ask(b, "%d-%d@example.com" % (number, n)).status
                for n, b in enumerate(backends)]  # fmt: skip
        wrong += [status for status in at_once(*asks) if status != 200]
    assert wrong == []


ODD_EMAILS = [
    "o'hara+a/b=c@example.com", "x'or'1'='1@example.com", "a@b",
    "{a}@example.com", "a..b@example.com", ".a.@example..com", "a@[127.0.0.1]", "a@[", "?|_-@[",
    "=?utf-8?q?you?=@example.com", "ü@example.com", "you@bücher.example", "中@例え.jp",
    "\U0001f600@example.com", "y" * 240 + "@example.com",
]  # fmt: skip


@pytest.mark.parametrize("address", ODD_EMAILS, ids=ascii)
def test_an_odd_email_is_refused_or_gets_its_own_mail(shared_edge, address):
    reply = ask(shared_edge, address)
    assert reply.status == 200 or reply.error == WRONG
    if reply.status == 200:
        mail = latest_mail(shared_edge)
        assert mail["To"] == address
        code = re.match(r"\d{6}", mail["Subject"]).group()
        key = enter(shared_edge, code, address).value["data"]["apiKey"]
        assert get(shared_edge, ME, key).value["user"]["email"] == address


# ---- A mail server in trouble ----


def test_a_mail_for_which_there_is_no_thread_costs_nothing(start_backend, mail_server, tmp_path):
    """A fake: no limit stops a thread for root."""
    (tmp_path / "sitecustomize.py").write_text(
        "import threading\n"
        "usual = threading.Thread.start\n"
        "def start(self):\n"
        "    if self._target.__qualname__.startswith('within.'):\n"
        "        raise RuntimeError(\"can't start new thread\")\n"
        "    usual(self)\n"
        "threading.Thread.start = start\n"
    )
    url = "smtp://127.0.0.1:%d" % mail_server().port
    backend = start_backend(mail=url, env={"PYTHONPATH": str(tmp_path)})
    assert ask(backend).error == (500, "internal")
    assert (rows(backend, LIVE), rows(backend, "events")) == (0, 0)
    assert "Traceback" not in backend.log()


def test_a_slow_mail_server_takes_few_places(start_backend, mail_server):
    """Who comes when too many mails are under way is told at once, and it costs nothing."""
    server = mail_server()
    backend = start_backend(mail="smtp://127.0.0.1:%d" % server.port)
    with concurrent.futures.ThreadPoolExecutor(32) as pool, held_up(server):
        held = [pool.submit(ask, backend, "%d@example.com" % n) for n in range(32)]
        wait_until(lambda: len(server.arrived) == 32, what="mails under way")
        with within(5):
            replies = [ask(backend) for _ in range(7)]
        assert {reply.error for reply in replies} == {(500, "internal")}
        assert replies[0].value["error"]["nextAction"] == "retry shortly"
        assert answers_at_once(backend) and not any(each.done() for each in held)
        server.go_on.set()
        assert {each.result().status for each in held} == {200}
    assert [ask(backend).status for _ in range(6)] == [200] * 5 + [429]


@pytest.mark.slow
def test_a_mail_server_that_never_comes_to_an_end_is_given_up(start_backend, mail_server, changed):
    """It says something all the time. A signal waits for it no longer than for a mail."""
    server, over = mail_server(), threading.Event()

    def talk(connection):
        with contextlib.suppress(OSError), connection:
            while not over.wait(0.2):
                connection.sendall(b"220-still here\r\n")

    server.talk, program = talk, changed(MAIL_SECONDS=2)
    backend = start_backend(mail="smtp://127.0.0.1:%d" % server.port, program=program)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        with within(8):
            held = pool.submit(ask, backend)
            time.sleep(0.5)  # for the request to be in hand
            assert backend.stop() == 0
        assert held.result().error == (500, "internal")
    over.set()


def codes_in(messages):
    return [re.search(r"Subject: (\d{6}) ", message).group(1) for message in messages]


def test_a_code_is_live_before_its_mail_is_there(start_backend, mail_server):
    server = mail_server()
    backend = start_backend(mail="smtp://127.0.0.1:%d" % server.port)
    with concurrent.futures.ThreadPoolExecutor() as pool, held_up(server):
        held = pool.submit(ask, backend)
        assert server.busy.wait(20)
        assert enter(backend, codes_in(server.arrived)[0]).status == 200 and not held.done()
        server.go_on.set()
        assert held.result().status == 200


def test_of_two_mails_that_cross_both_codes_are_good(start_backend, mail_server):
    server = mail_server()
    backend = start_backend(mail="smtp://127.0.0.1:%d" % server.port)
    for order in (0, 1):
        address, before = "%d@example.com" % order, len(server.arrived)
        assert {reply.status for reply in at_once(*[lambda: ask(backend, address)] * 2)} == {200}
        assert enter(backend, codes_in(server.arrived[before:])[order], address).status == 200


def test_what_fails_to_be_mailed_leaves_the_codes_before_it(start_backend, mail_server):
    """Both of them, though three others were stored for a moment, side by side."""
    server = mail_server()
    backend = start_backend(mail="smtp://127.0.0.1:%d" % server.port)
    for number in (0, 1):
        address, before = "%d@example.com" % number, len(server.arrived)
        assert [ask(backend, address).status for _ in range(2)] == [200, 200]
        server.answers["."] = b"451 not now"
        with concurrent.futures.ThreadPoolExecutor(3) as pool, held_up(server):
            held = [pool.submit(ask, backend, address) for _ in range(3)]
            wait_until(lambda: len(server.arrived) == before + 5, what="three mails under way")
            server.go_on.set()
            assert {each.result().error for each in held} == {(500, "internal")}
        del server.answers["."]
        code = codes_in(server.arrived[before:])[number]
        assert enter(backend, code, address).status == 200


POSTFIX = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/log
maillog_file_prefixes = /
mydestination = example.com
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
local_recipient_maps =
alias_maps =
defer_transports = smtp, local
"""
SERVICES = """
127.0.0.1:{port} inet n - n - - smtpd
postlog unix-dgram n - n - 1 postlogd
cleanup unix n - n - 0 cleanup
anvil unix - - n - 1 anvil
qmgr unix n - n 300 1 qmgr
showq unix n - n - - showq
""" + "".join("%s unix - - n - 0 %s\n" % pair for pair in (
    ("rewrite", "trivial-rewrite"), ("bounce", "bounce"), ("defer", "bounce"), ("trace", "bounce"),
    ("proxymap", "proxymap"), ("smtp", "smtp"), ("error", "error"), ("retry", "error"),
    ("local", "local")))  # fmt: skip


class Postfix:
    """A real one, as it comes but for its places: all mail stays in its queue."""

    def __init__(self, folder):
        for name in ("conf", "queue", "data"):
            (folder / name).mkdir()
        folder.chmod(0o755)  # its daemons run as a user of their own
        shutil.chown(str(folder / "data"), "postfix")
        self.port = free_port()
        for name, text in (("main.cf", POSTFIX), ("master.cf", SERVICES)):
            (folder / "conf" / name).write_text(text.format(folder=folder, port=self.port))
        self.config = str(folder / "conf")
        subprocess.run(["postfix", "-c", self.config, "start"], check=True)
        wait_until(lambda: can_connect(self.port), what="Postfix")

    def recipients(self):
        """Of all mails in its queue."""
        command = ["postqueue", "-c", self.config, "-j"]
        out = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode()
        mails = map(json.loads, out.splitlines())
        return {each["address"] for mail in mails for each in mail["recipients"]}

    def close(self):
        subprocess.run(["postfix", "-c", self.config, "stop"], check=True)


@pytest.fixture
def postfix():
    if os.geteuid() or not shutil.which("postfix") or not shutil.which("postqueue"):
        pytest.skip("no Postfix, or no root to start it")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        server = Postfix(pathlib.Path(folder))
        stack.callback(server.close)
        yield server


@pytest.mark.slow
def test_no_email_leads_a_real_postfix_to_another_domain(start_backend, postfix):
    """It sends `you%there@here` and `there!you@here` on to `there`."""
    import smtplib

    tricks = "attacker%evil.example@example.com", "evil.example!attacker@example.com"
    backend = start_backend("--allow", "@example.com", mail="smtp://127.0.0.1:%d" % postfix.port)
    assert [ask(backend, trick).error for trick in tricks] == [WRONG, WRONG]
    assert ask(backend).status == 200
    wait_until(postfix.recipients, what="the mail")
    assert postfix.recipients() == {YOU}
    with smtplib.SMTP("127.0.0.1", postfix.port) as smtp:  # so that this is seen to find it
        smtp.sendmail(YOU, tricks, "Subject: x\r\n\r\n")
    wait_until(lambda: "attacker@evil.example" in postfix.recipients(), what="the other")
