"""The embedded backend, as one that is trusted with real accounts: attacked, killed, and asked
for everything that it promises."""
import base64
import calendar
import concurrent.futures
import contextlib
import email
import email.policy
import email.utils
import hashlib
import hmac
import http.client
import json
import os
import pathlib
import random
import re
import select
import shutil
import signal
import socket
import sqlite3
import ssl
import struct
import subprocess
import threading
import time
import urllib.request

import pytest
from conftest import (
    EDGES,
    PROGRAM,
    PYTHONS,
    Backend,
    Listener,
    Scripto,
    listeners,
    python_id,
    wait_until,
    wrong_code,
)

REQUEST, COMPLETE, ME = "/api/cli/login-request", "/api/cli/login-complete", "/api/auth/me"
RESOURCE = "/.well-known/oauth-protected-resource"
YOU = "you@example.com"
QUARTER, DAY = 15 * 60, 24 * 3600
WRONG, LOCKED = (400, "invalid-argument"), (429, "resource-exhausted")


class Reply:
    """An answer: status, headers, and the body as an object or as bytes."""

    def __init__(self, status, headers, value):
        self.status, self.headers, self.value = status, headers, value

    @property
    def error(self):
        """(status, code); the envelope has to be whole."""
        assert self.value["success"] is False and self.value["error"]["message"]
        return self.status, self.value["error"]["code"]

    @property
    def wait(self):
        return int(self.headers["Retry-After"])


def get(backend, path, key=None, method="GET", headers=None):
    return Reply(*backend.request(method, path, key=key, headers=headers))


def ask(backend, address=YOU, headers=None):
    """A code request."""
    return Reply(*backend.request("POST", REQUEST, {"email": address}, headers=headers))


def enter(backend, code, address=YOU, headers=None, **more):
    """An attempt to sign in."""
    body = dict(more, email=address, otp=code)
    return Reply(*backend.request("POST", COMPLETE, body, headers=headers))


def asked(backend, address=YOU, headers=None):
    """(code, ticket) of a new request."""
    reply = ask(backend, address, headers)
    assert reply.status == 200, reply.value
    return backend.code_for(address), reply.value["data"]["ticket"]


def message_of(reply):
    return reply.value["error"]["message"]


def code_after_asking(backend, address=YOU):
    assert ask(backend, address).status == 200
    return backend.code_for(address)


def is_accepted(backend, key):
    return get(backend, ME, key).status == 200


def keys_of(backend, key):
    reply = get(backend, "/api/keys", key)
    assert (reply.status, reply.value["success"]) == (200, True)
    return reply.value["data"]["keys"]


def guess_wrong(backend, times, code="000000", address=YOU):
    """Wrong guesses; returns their replies."""
    return [enter(backend, wrong_code(code), address) for _ in range(times)]


def age(backend, seconds):
    """Lets time pass for the database: every point in time in it becomes earlier."""
    with contextlib.closing(sqlite3.connect(str(backend.db), timeout=10)) as db, db:
        tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            for _, column, kind, *_ in db.execute("PRAGMA table_info(%s)" % table).fetchall():
                if kind == "REAL":
                    change = "UPDATE {0} SET {1} = {1} - ?".format(table, column)
                    db.execute(change, (seconds,))


def rows(backend, table):
    """How many there are."""
    with contextlib.closing(sqlite3.connect(str(backend.db), timeout=10)) as db:
        return db.execute("SELECT count(*) FROM " + table).fetchone()[0]


LIVE = "events WHERE hash IS NOT NULL"  # codes that no sign-in has ended


def at_once(*works):
    """Calls all of them in the same moment, each in a thread; returns what they returned."""
    barrier = threading.Barrier(len(works))

    def start(work):
        barrier.wait(30)
        return work()

    with concurrent.futures.ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(start, works))


def stored_bytes(backend):
    """All that the database is, its side files with it."""
    return b"".join(path.read_bytes() for path in backend.folder.glob("scripto.db*"))


def connect(backend, data=b"", timeout=30):
    connection = socket.create_connection(("127.0.0.1", int(backend.port)), timeout)
    if data:
        connection.sendall(data)
    return connection


def read_all(connection):
    """What comes until the other side is done, or breaks off."""
    data = b""
    with connection:
        try:
            for chunk in iter(lambda: connection.recv(65536), b""):
                data += chunk
        except ConnectionError:
            pass
    return data


def raw(backend, data):
    """Sends bytes and hangs up the sending side; returns all that was answered."""
    connection = connect(backend)
    try:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # it has had enough already; what it said is there to be read
    return read_all(connection)


def statuses(data):
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", data)]


def answers_at_once(backend):
    """The next good request is answered, and soon."""
    start = time.monotonic()
    return get(backend, "/healthz").status == 200 and time.monotonic() - start < 5


def latest_mail(backend):
    return email.message_from_string(backend.mails()[-1], policy=email.policy.default)


def lasting(tmp_path_factory, python):
    """A backend for many tests: those that leave nothing behind that another would notice."""
    folder = tmp_path_factory.mktemp("lasting")
    backend = Backend(Scripto(python, folder / "home"), folder / "backend")
    yield backend
    backend.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Under the newest interpreter."""
    yield from lasting(tmp_path_factory, PYTHONS[-1])


@pytest.fixture(scope="module", params=EDGES, ids=python_id)
def shared_edge(request, tmp_path_factory):
    """Under the oldest and the newest interpreter."""
    yield from lasting(tmp_path_factory, request.param)


# ---- Code ---------------------------------------------------------------------


@pytest.mark.slow
def test_codes_are_six_digits_and_cannot_be_foreseen(backend):
    """A chance of less than one in a million makes this fail by accident."""
    at_once(*[
        lambda n=n: [ask(backend, "%d-%d@example.com" % (n, m)) for m in range(50)]
        for n in range(4)
    ])  # fmt: skip
    codes = [re.search(r"^Subject: (\S+)", text, re.M).group(1) for text in backend.mails()]
    assert len(codes) == 200 and all(re.match(r"[0-9]{6}\Z", code) for code in codes)
    assert len(set(codes)) > 190
    assert all(len(set(digits)) == 10 for digits in zip(*codes))  # the first is often a zero


def test_a_code_lives_ten_minutes(backend):
    code = code_after_asking(backend)
    age(backend, 10 * 60 - 30)
    assert enter(backend, code).status == 200


def test_a_code_is_dead_after_ten_minutes(backend):
    code = code_after_asking(backend)
    age(backend, 10 * 60 + 1)
    assert enter(backend, code).error == WRONG


@pytest.mark.parametrize("wrong, last", [(2, 200), (3, 400)])
def test_a_code_takes_three_attempts(backend, wrong, last):
    code = code_after_asking(backend)
    assert {reply.error for reply in guess_wrong(backend, wrong, code)} == {WRONG}
    assert enter(backend, code).status == last


def test_a_wrong_code_counts_for_every_live_code(backend):
    """Not only for the newest: three wrong ones end both."""
    codes = [code_after_asking(backend) for _ in range(2)]
    wrong = next(code for code in ("000000", "000001", "000002") if code not in codes)
    assert {enter(backend, wrong).error for _ in range(3)} == {WRONG}
    assert {enter(backend, code).error for code in codes} == {WRONG}


def test_a_name_that_is_too_long_costs_no_code(backend):
    code = code_after_asking(backend)
    assert enter(backend, code, name="x" * 101).error == WRONG
    assert enter(backend, code, name="x" * 100).status == 200


def test_a_malformed_code_is_no_attempt(backend):
    code = code_after_asking(backend)
    for typed in ("", "12345", "1234567", "letter") * 5:
        assert enter(backend, typed).error == WRONG
    assert enter(backend, "%s-%s" % (code[:3], code[3:])).status == 200


def test_no_user_before_the_code_is_verified(backend):
    code_after_asking(backend)
    guess_wrong(backend, 1)
    with contextlib.closing(sqlite3.connect(str(backend.db))) as db:
        assert db.execute("SELECT count(*) FROM users").fetchone() == (0,)


@pytest.mark.parametrize("copies", [1, 2], ids=["one-server", "two-servers"])
def test_twelve_clients_with_the_same_right_code_get_one_key(start_backend, edge, copies):
    backends = [start_backend(python=edge) for _ in range(copies)]
    code = code_after_asking(backends[0])
    replies = at_once(*[lambda n=n: enter(backends[n % copies], code) for n in range(12)])
    (won,) = [reply for reply in replies if reply.status == 200]
    assert len(keys_of(backends[0], won.value["data"]["apiKey"])) == 1
    assert {reply.error for reply in replies if reply is not won} == {WRONG}


# ---- Limits -------------------------------------------------------------------


def guess_on(backend):
    """Guesses as fast as it can, with as many resends as it is granted; returns how many
    guesses were heard before the door shut."""
    heard = 0
    for _ in range(100):
        granted = ask(backend).status == 200
        code = backend.code_for(YOU) if granted else "000000"
        for reply in guess_wrong(backend, 3, code):
            assert reply.error in (WRONG, LOCKED)
            heard += reply.error == WRONG
            if reply.error == LOCKED:
                return heard
    raise AssertionError("the door never shut")


def guess_twelve(backend, address=YOU):
    """Wrong guesses with four codes, of which the first is almost ten minutes old by then."""
    for number in range(4):
        code = code_after_asking(backend, address)
        if number == 0:
            age(backend, 570)
        replies = guess_wrong(backend, 3, code, address)
        assert {reply.error for reply in replies} == {WRONG}


def lock(backend, address=YOU):
    """Uses up an email's wrong guesses; returns a right code with two attempts left in it."""
    guess_twelve(backend, address)
    guess_wrong(backend, 2, code_after_asking(backend, address), address)
    age(backend, QUARTER + 2 - 570)  # over the first code request, not over any guess
    code = code_after_asking(backend, address)
    assert guess_wrong(backend, 1, code, address)[0].error == WRONG
    return code


def test_a_guesser_gets_fifteen_guesses_in_a_quarter_of_an_hour(backend):
    assert guess_on(backend) == 15


def wrong_guesses(backend):
    """How many the database has counted."""
    with contextlib.closing(sqlite3.connect(str(backend.db))) as db:
        sql = "SELECT count(*) FROM events WHERE kind = 'wrong' AND email <> ''"
        return db.execute(sql).fetchone()[0]


@pytest.mark.slow
def test_a_guesser_with_many_hands_gets_no_more(start_backend):
    """On two servers at that, which share one file: three guesses for each of five codes count,
    those for a code that is dead by then do not, and then the door is shut."""
    one, two = start_backend(), start_backend()
    for number in range(1, 6):
        code = code_after_asking(one)
        hands = [lambda b=b: guess_wrong(b, 3, code) for b in (one, two) * 10]
        heard = [reply.error for replies in at_once(*hands) for reply in replies]
        assert wrong_guesses(one) == 3 * number and set(heard) <= {WRONG, LOCKED}
    assert LOCKED in heard and enter(two, code).error == LOCKED


def test_three_wrong_ones_cost_a_code_and_the_next_has_its_own_three(backend):
    guess_wrong(backend, 3, code_after_asking(backend))
    code = code_after_asking(backend)
    assert {reply.error for reply in guess_wrong(backend, 2, code)} == {WRONG}
    assert enter(backend, code).status == 200


def test_who_guesses_while_no_code_is_live_locks_nobody_out(backend):
    assert {reply.error for reply in guess_wrong(backend, 40)} == {WRONG}
    assert enter(backend, code_after_asking(backend)).status == 200


def test_a_patient_guesser_gets_sixty_guesses_in_a_day(backend):
    heard = 0
    for _ in range(8):
        heard += guess_on(backend)
        age(backend, QUARTER + 1)
    assert heard == 60
    refusal = enter(backend, "000000")
    assert refusal.error == LOCKED and DAY - 9 * QUARTER < refusal.wait < DAY
    age(backend, DAY)
    assert enter(backend, code_after_asking(backend)).status == 200


def test_the_right_code_is_refused_while_locked(backend):
    refusal = enter(backend, lock(backend))
    assert refusal.error == LOCKED and 0 < refusal.wait <= QUARTER


def test_the_right_code_is_good_again_when_the_lock_ends(backend):
    lock(backend)
    age(backend, QUARTER + 1)
    assert enter(backend, code_after_asking(backend)).status == 200


def test_retry_after_is_the_truth(backend):
    lock(backend)
    age(backend, enter(backend, "000000").wait - 30)
    assert enter(backend, "000000").error == LOCKED
    age(backend, enter(backend, "000000").wait)
    assert enter(backend, "000000").error == WRONG


def test_the_windows_still_hold_just_before_they_end(backend):
    lock(backend)
    first = QUARTER - (QUARTER + 2 - 570)  # what is left of the quarter since the first guess
    age(backend, first - 20)
    assert enter(backend, "000000").error == LOCKED
    age(backend, QUARTER)
    assert [ask(backend).status for _ in range(6)] == [200] * 5 + [429]
    age(backend, QUARTER - 20)
    assert ask(backend).error == LOCKED


def test_while_one_email_is_locked_others_are_untouched(backend):
    lock(backend)
    code = code_after_asking(backend, "me@example.com")
    assert enter(backend, code, "me@example.com").status == 200


def test_capitals_buy_no_guesses(backend):
    replies = []
    for spelling in (YOU, "YOU@example.com", "you@EXAMPLE.com", "You@example.com", YOU):
        code = code_after_asking(backend, spelling)
        replies += guess_wrong(backend, 3, code, spelling.swapcase())
    replies += guess_wrong(backend, 1, code)
    assert [reply.error for reply in replies] == [WRONG] * 15 + [LOCKED]


def test_a_good_sign_in_buys_no_guesses(backend):
    guess_twelve(backend)
    assert enter(backend, code_after_asking(backend)).status == 200
    age(backend, QUARTER + 2 - 570)
    replies = guess_wrong(backend, 4, code_after_asking(backend))
    assert [reply.error for reply in replies] == [WRONG] * 3 + [LOCKED]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.slow
def test_a_restart_changes_nothing_for_a_guesser(backend, number):
    code = lock(backend)
    backend.restart(number)
    assert enter(backend, code).error == LOCKED


def test_a_live_code_survives_a_restart_with_the_attempts_it_had(backend):
    code = code_after_asking(backend)
    guess_wrong(backend, 2, code)
    backend.restart(signal.SIGKILL)
    assert enter(backend, wrong_code(code)).error == WRONG
    assert enter(backend, code).error == WRONG


def test_five_codes_in_a_quarter_of_an_hour(backend):
    replies = [ask(backend) for _ in range(6)]
    assert [reply.status for reply in replies] == [200] * 5 + [429]
    assert replies[-1].error == LOCKED and 0 < replies[-1].wait <= QUARTER
    assert len(backend.mails()) == 5 and ask(backend, "me@example.com").status == 200
    age(backend, QUARTER + 1)
    assert ask(backend).status == 200


def test_a_refused_request_does_not_count(backend):
    """Who waits as told gets in, however often they asked meanwhile."""
    lock(backend, "me@example.com")
    assert [ask(backend).status for _ in range(9)] == [200] * 5 + [429] * 4
    assert {enter(backend, "000000", "me@example.com").error for _ in range(9)} == {LOCKED}
    wait = max(ask(backend).wait, enter(backend, "000000", "me@example.com").wait)
    age(backend, wait)
    assert ask(backend).status == 200 and enter(backend, "000000", "me@example.com").error == WRONG


def test_a_refused_request_does_not_count_in_the_minute_of_an_address(start_backend, tmp_path):
    """A fake: the clock of the backend goes a minute ahead when there is such a file."""
    ahead = tmp_path / "ahead"
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\n"
        "usual = time.monotonic\n"
        "time.monotonic = lambda: usual() + 60 * os.path.exists(%r)\n" % str(ahead)
    )
    backend = start_backend("--rate-limit", "2", env={"PYTHONPATH": str(tmp_path)})
    assert [ask(backend).status for _ in range(6)] == [200] * 2 + [429] * 4
    ahead.touch()
    assert [ask(backend).status for _ in range(3)] == [200] * 2 + [429]


def test_many_hands_get_no_more_than_five_codes(start_backend):
    one, two = start_backend(), start_backend()
    replies = at_once(*[lambda b=b: ask(b) for b in (one, two) * 5])
    assert sorted(reply.status for reply in replies) == [200] * 5 + [429] * 5


def test_an_address_gets_sixty_requests_a_minute(start_backend):
    """Both public routes count together, whatever comes of it; the rest stays open."""
    backend = start_backend("--rate-limit", "60")
    good = backend.mint(YOU)["apiKey"]
    replies = [enter(backend, "bad") if n % 2 else ask(backend, "bad") for n in range(59)]
    assert [reply.error for reply in replies] == [WRONG] * 58 + [LOCKED]
    assert 0 < replies[-1].wait <= 60
    assert is_accepted(backend, good) and get(backend, "/healthz").status == 200


def test_sixty_is_the_default(scripto, tmp_path):
    words = ["serve", "--port", "0", "--db", str(tmp_path / "db")]
    process = scripto.start(*words, stderr=subprocess.DEVNULL)
    try:
        port = process.stdout.readline().decode().strip().rpartition(":")[2]
        line = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" % REQUEST.encode()
        connection = socket.create_connection(("127.0.0.1", int(port)), 30)
        connection.sendall(line * 61)
        connection.shutdown(socket.SHUT_WR)
        assert statuses(read_all(connection)) == [400] * 60 + [429]
    finally:
        process.kill()
        process.communicate()


FORWARDED = "X-Forwarded-For"


def test_behind_a_proxy_the_last_hop_counts(start_backend):
    backend = start_backend("--rate-limit", "2", "--behind-proxy")
    hops = ["6.6.6.%d, 9.9.9.9" % n for n in range(3)] + ["9.9.9.9, 6.6.6.6"]
    replies = [ask(backend, "%d@example.com" % n, {FORWARDED: hops[n]}) for n in range(4)]
    assert [reply.status for reply in replies] == [200, 200, 429, 200]


def test_without_a_proxy_nobody_can_choose_an_address(start_backend):
    backend = start_backend("--rate-limit", "2")
    replies = [
        ask(backend, "%d@example.com" % n, {FORWARDED: "9.9.9.%d" % n}) for n in range(3)
    ]
    assert [reply.status for reply in replies] == [200, 200, 429]


def from_address(number):
    """Headers as of a client of that number, for a backend behind a proxy."""
    return {FORWARDED: "10.%d.%d.%d" % (number >> 16, number >> 8 & 255, number & 255)}


@pytest.fixture
def crowded(start_backend):
    """A backend for many addresses, none of which it holds off."""
    return start_backend("--behind-proxy", "--rate-limit", "100000")


def test_ten_codes_in_a_quarter_of_an_hour_from_all_addresses(crowded):
    replies = [ask(crowded, headers=from_address(n // 4)) for n in range(11)]
    assert [reply.status for reply in replies] == [200] * 10 + [429]
    assert replies[-1].error == LOCKED and 0 < replies[-1].wait <= QUARTER


def test_five_of_them_from_one_address(crowded):
    replies = [ask(crowded, headers=from_address(n // 6)) for n in range(7)]
    assert [reply.status for reply in replies] == [200] * 5 + [429, 200]


def test_thirty_codes_in_a_day(crowded):
    for number in range(3):
        assert {ask(crowded, headers=from_address(n)).status for n in range(10)} == {200}
        age(crowded, QUARTER + 1)
    refusal = ask(crowded)
    assert refusal.error == LOCKED and DAY - 4 * QUARTER < refusal.wait < DAY
    age(crowded, refusal.wait)
    assert ask(crowded).status == 200


# ---- Tickets ------------------------------------------------------------------


def test_each_request_has_a_ticket_of_its_own(backend):
    tickets = [asked(backend)[1] for _ in range(3)]
    assert all(re.match(r"[A-Za-z0-9_-]{22}\Z", ticket) for ticket in tickets)  # 16 bytes
    assert len(set(tickets)) == 3
    assert not [ticket for ticket in tickets if ticket.encode() in stored_bytes(backend)]


def test_a_stranger_locks_nobody_out(crowded):
    """Who has used up an email's guesses: its owner gets a code, and in by its ticket."""
    lock(crowded)
    code, ticket = asked(crowded, headers=from_address(1))
    assert enter(crowded, code).error == LOCKED
    assert enter(crowded, code, ticket=ticket).status == 200


def test_three_guesses_of_a_stranger_do_not_end_a_code_for_who_has_its_ticket(backend):
    code, ticket = asked(backend)
    guess_wrong(backend, 3, code)
    assert enter(backend, code).error == enter(backend, code, ticket="x" * 22).error == WRONG
    assert enter(backend, code, ticket=ticket).status == 200


def test_three_guesses_with_a_ticket_leave_the_three_without(backend):
    code, ticket = asked(backend)
    replies = [enter(backend, wrong_code(code), ticket=ticket) for _ in range(3)]
    assert {reply.error for reply in replies} == {WRONG} and wrong_guesses(backend) == 0
    guess_wrong(backend, 2, code)
    assert enter(backend, code).status == 200


def test_a_ticket_is_good_for_three_guesses(backend):
    code, ticket = asked(backend)
    guess_wrong(backend, 3, code)
    assert {enter(backend, wrong_code(code), ticket=ticket).error for _ in range(3)} == {WRONG}
    assert enter(backend, code, ticket=ticket).error == WRONG


def test_with_its_ticket_a_code_is_good_however_many_came_after_it(backend):
    code, ticket = asked(backend)
    later = [asked(backend)[0] for _ in range(3)]
    assert code in later or enter(backend, code).error == WRONG
    assert enter(backend, code, ticket=ticket).status == 200


def test_with_a_ticket_the_newest_code_is_good_as_well(backend):
    """Who started two sign-ins, and types into the one what the other had sent."""
    ticket, code = asked(backend)[1], asked(backend)[0]
    assert enter(backend, code, ticket=ticket).status == 200


def test_a_sign_in_ends_all_codes_tickets_or_not(backend):
    both = [asked(backend) for _ in range(2)]
    assert enter(backend, both[1][0]).status == 200
    assert {enter(backend, code, ticket=ticket).error for code, ticket in both} == {WRONG}


def test_a_ticket_revives_nothing(backend):
    code, ticket = asked(backend)
    age(backend, 10 * 60 + 1)
    assert enter(backend, code, ticket=ticket).error == WRONG


def test_a_ticket_is_good_for_its_own_email_only(backend):
    code, ticket = code_after_asking(backend), asked(backend, "me@example.com")[1]
    guess_wrong(backend, 3, code)
    assert enter(backend, code, ticket=ticket).error == WRONG


def test_guesses_with_a_ticket_count_for_the_address(crowded):
    for number in range(34):
        address = "%d@example.com" % number
        code, ticket = asked(crowded, address, from_address(number))
        replies = [enter(crowded, wrong_code(code), address, from_address(99), ticket=ticket)
                   for _ in range(3)]  # fmt: skip
    assert [reply.error for reply in replies] == [WRONG, LOCKED, LOCKED]  # the 101st
    assert enter(crowded, code, address, from_address(1), ticket=ticket).status == 200


def test_all_ways_together_expose_an_email_to_150_guesses_a_day(crowded):
    """60 without a ticket, and three for each ticket of 30 codes. A guess is one that has found a
    code: its answer says how many tries are left. Each comes from the address that asked."""
    heard = {"with": 0, "without": 0}
    for number in range(45):
        headers = from_address(number)
        reply = ask(crowded, headers=headers)
        assert reply.status == (200 if number < 30 else 429)
        code = wrong_code(crowded.code_for(YOU))
        ticket = reply.value["data"]["ticket"] if reply.status == 200 else ""
        for way, more in [("with", {"ticket": ticket})] * 3 + [("without", {})] * 3:
            guess = enter(crowded, code, YOU, headers, **more)
            assert guess.error in (WRONG, LOCKED)
            heard[way] += guess.error == WRONG and message_of(guess) != NOT_TOLD
        if number % 5 == 4:
            age(crowded, QUARTER + 1 if number < 39 else DAY - 9 * QUARTER)  # near its end
    assert heard == {"with": 90, "without": 60}


LEFT = "The code is wrong; %s left. Compare the digits and run it again."
TOLD = [LEFT % "2 tries are", LEFT % "1 try is",
        "The code is wrong. That was the last try: this code is used up."]  # fmt: skip
NOT_TOLD = "The code is wrong or has expired."
NEW_CODE = "request a new code with: scripto auth login-request"


@pytest.mark.parametrize("with_ticket", [False, True])
def test_a_wrong_code_is_told_how_many_tries_are_left(backend, with_ticket):
    code, ticket = asked(backend)
    more = {"ticket": ticket} if with_ticket else {}
    replies = [enter(backend, wrong_code(code), **more) for _ in range(3)]
    assert [message_of(reply) for reply in replies] == TOLD
    assert {reply.value["error"]["nextAction"] for reply in replies} == {NEW_CODE}


def test_a_stranger_is_not_told_whether_there_is_a_code(crowded):
    """Who asked for one, from that address or with the ticket, is told how many tries it has."""
    code, ticket = asked(crowded, headers=from_address(1))
    wrong, stranger = wrong_code(code), from_address(2)
    assert message_of(enter(crowded, wrong, YOU, stranger)) == NOT_TOLD
    assert message_of(enter(crowded, wrong, "me@example.com", stranger)) == NOT_TOLD
    assert message_of(enter(crowded, wrong, YOU, from_address(1))) == TOLD[1]
    assert message_of(enter(crowded, wrong, YOU, stranger, ticket=ticket)) == TOLD[0]


def test_a_code_that_is_over_is_not_called_wrong(backend):
    code, ticket = asked(backend)
    age(backend, 10 * 60 + 1)
    assert message_of(enter(backend, code, ticket=ticket)) == NOT_TOLD


def test_a_guess_is_the_same_work_whether_a_code_is_live(start_backend, tmp_path):
    """Or the time would tell who is signing in: by the system calls, what it writes to the database
    and how often it is flushed."""
    backend, trace = start_backend(), tmp_path / "trace"
    code = code_after_asking(backend)
    guess_wrong(backend, 1, address="me@example.com")
    guess_wrong(backend, 1, code)
    with traced(backend, trace):
        guess_wrong(backend, 1, address="me@example.com")
        without = database_calls(trace)
        guess_wrong(backend, 1, code)
        assert database_calls(trace)[len(without) :] == without and len(without) > 1


# ---- Mail ---------------------------------------------------------------------


class MailServer(Listener):
    """A stand-in for a mail server: as much SMTP (RFC 5321) as one message needs. What came in
    is in `mails`: (recipients, message, (user, password) or None, whether TLS was on)."""

    def __init__(self, context=None, wrapped=False, **answers):
        self.tls = context  # offered as STARTTLS, unless the whole connection is wrapped
        self.answers = dict(GREETING=b"220 stand-in", QUIT=b"221 bye", **answers)
        self.offers, self.heard = [b"AUTH PLAIN"], b""  # heard: each line outside of mails
        self.mails, self.busy, self.go_on = [], threading.Event(), threading.Event()
        self.arrived = []  # messages as text, also those that are not accepted yet
        self.go_on.set()
        super().__init__(context if wrapped else None)

    def close(self):
        self.go_on.set()
        super().close()

    def talk(self, connection):
        connection.sendall(self.answers["GREETING"] + b"\r\n")
        self.converse(connection, login=None)

    def converse(self, connection, login):
        lines, recipients = connection.makefile("rb"), []
        secure = isinstance(connection, ssl.SSLSocket)
        for line in lines:
            self.heard += line
            verb, _, rest = line.strip().partition(b" ")
            verb = verb.upper()
            answer = self.answers.get(verb.decode("latin-1"), b"250 fine")
            if verb == b"EHLO":
                offers = [b"STARTTLS"] * bool(self.tls and not secure) + self.offers
                answer = b"250-stand-in\r\n250-" + b"\r\n250-".join(offers) + b"\r\n250 HELP"
            elif verb == b"STARTTLS" and "STARTTLS" not in self.answers:
                connection.sendall(b"220 go ahead\r\n")
                return self.converse(self.tls.wrap_socket(connection, server_side=True), None)
            elif verb == b"AUTH":
                login = tuple(base64.b64decode(rest.split()[1]).decode().split("\0")[1:])
                answer = b"235 welcome"
            elif verb == b"RCPT":
                recipients.append(rest[rest.index(b"<") + 1 : rest.index(b">")].decode())
            elif verb == b"DATA" and "DATA" not in self.answers:
                connection.sendall(b"354 go on\r\n")
                message = b"".join(iter(lines.readline, b".\r\n")).decode()
                self.arrived.append(message)
                self.busy.set()
                self.go_on.wait(60)
                answer = self.answers.get(".", answer)
                if answer == b"hang up":
                    return
                if answer.startswith(b"250"):
                    self.mails.append((recipients, message, login, secure))
            if answer is None:  # it falls silent, until the other side has gone
                return connection.recv(1)
            connection.sendall(answer + b"\r\n")
            if verb == b"QUIT":
                return


@contextlib.contextmanager
def held_up(server):
    """The server is slow: it keeps every mail until go_on is set, at the end at the latest."""
    server.go_on.clear()
    try:
        yield
    finally:
        server.go_on.set()


@pytest.fixture
def mail_server():
    yield from listeners(MailServer)


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
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "scripto.example"])
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


def test_a_tls_set_up_that_fails_is_a_500_and_costs_nothing(start_backend, mail_server):
    server = mail_server()
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # so that it offers STARTTLS
    env = {"SSLKEYLOGFILE": "/nonexistent/keys"}  # heeded from Python 3.8 on
    backend = start_backend(mail="smtp://me:p@127.0.0.1:%d" % server.port, env=env)
    assert {ask(backend).error for _ in range(7)} == {(500, "internal")}
    assert rows(backend, "events") == 0 and "/nonexistent" not in backend.log()


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
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    backend = start_backend(mail="smtp://127.0.0.1:%d" % port)
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


# ---- Keys ---------------------------------------------------------------------


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


# ---- Keys that end ------------------------------------------------------------


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
    assert enter(backend, code, expiresIn=0.5e3).status == 200


# ---- The way in ---------------------------------------------------------------


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
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
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


def can_connect(port):
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 5).close()
        return True


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
        resource = json.loads(urllib.request.urlopen(way).read().decode())
        guide = urllib.request.urlopen(resource["resource_documentation"]).read().decode()
        url = resource["resource"]
        program = tmp_path / "scripto.py"
        assert url + "/scripto.py" in guide and "auth login-request --email" in guide
        program.write_bytes(urllib.request.urlopen(url + "/scripto.py").read())
        more = {"program": str(program)}
        scripto.run("auth", "login-request", "--email", YOU, **more)
        code = backend.code_for(YOU)
        scripto.run("auth", "login-complete", "--email", YOU, "--code", code, **more)
        key = scripto.run("auth", "token", **more).out.strip()
        assert get(site, "/page.html", key).value == b"the guarded page"


# ---- The client from the backend ----------------------------------------------


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


# ---- HTTP ---------------------------------------------------------------------


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
GOOD = b"Host: x\r\nContent-Type: application/json\r\n"
JSON = b'{"email": "you@example.com"}'
HEAD = b"POST /api/cli/login-request HTTP/1.1\r\n" + GOOD
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


# ---- Many clients, slow clients -----------------------------------------------


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


def at_rest(backend):
    """Whether none of its threads runs, or waits for a processor that somebody else has."""
    tasks = pathlib.Path("/proc/%d/task" % backend.process.pid)
    if not tasks.exists():
        pytest.skip("no /proc to see threads in")
    stats = [(task / "stat").read_text() for task in tasks.iterdir()]
    return all(stat.rpartition(")")[2].split()[0] == "S" for stat in stats)


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
        wait_until(lambda: all(at_rest(backend) for _ in range(20)), what="all to be stuck")
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


# ---- TLS ----------------------------------------------------------------------


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


# ---- Endings ------------------------------------------------------------------


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


# ---- Database -----------------------------------------------------------------


def mode(path):
    return oct(os.stat(str(path)).st_mode & 0o777)


def test_the_database_and_its_side_files_are_private(start_backend, edge, tmp_path):
    umask = os.umask(0)
    try:
        backend = start_backend(python=edge)
    finally:
        os.umask(umask)
    backend.mint(YOU)
    files = list(backend.folder.glob("scripto.db*"))
    assert {path.name for path in files} == {"scripto.db", "scripto.db-wal", "scripto.db-shm"}
    assert {mode(path) for path in files} == {"0o600"}


@pytest.mark.slow
def test_a_database_that_others_can_read_is_tightened(backend):
    backend.stop()
    backend.db.chmod(0o644)
    backend.start()
    assert mode(backend.db) == "0o600"


def test_the_database_has_its_place_in_the_data_folder(scripto, tmp_path):
    process = scripto.start("serve", "--port", "0", env={"XDG_DATA_HOME": str(tmp_path / "data")})
    assert process.stdout.readline().startswith(b"listening on http://127.0.0.1:")
    process.kill()
    process.communicate()
    path = tmp_path / "data" / "scripto" / "scripto.db"
    assert mode(path) == "0o600" and mode(path.parent) == "0o700"


def test_the_database_keeps_a_log_ahead_and_knows_its_version(backend):
    with contextlib.closing(sqlite3.connect(str(backend.db))) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA user_version").fetchone()[0] >= 1


@contextlib.contextmanager
def traced(backend, trace):
    """What it writes and flushes goes to that file, call by call."""
    if not shutil.which("strace"):
        pytest.skip("no strace")
    command = ["strace", "-f", "-y", "-e", "fsync,fdatasync,pwrite64", "-o", str(trace), "-p"]
    tracer = subprocess.Popen(command + [str(backend.process.pid)], stderr=subprocess.PIPE)
    assert b"attached" in tracer.stderr.readline()
    yield
    tracer.terminate()
    tracer.communicate()


def database_calls(trace):
    """[(call, bytes if it writes)] on the database."""
    form = r'(f(?:data)?sync|pwrite64)\(\d+<[^>]*scripto\.db[^>]*>(?:, "(?:[^"\\]|\\.)*"\.*, (\d+))?'
    return re.findall(form, trace.read_text())


def test_an_answer_has_reached_the_disk(start_backend, tmp_path):
    """Full synchronous: how often the log of the database is flushed before each answer, by the
    system calls. What an answer promises waits for the disk, and what it does not does not."""
    backend, trace, counts = start_backend(), tmp_path / "trace", []

    def step(status, reply):
        calls = [call for call, _ in database_calls(trace) if call != "pwrite64"]
        counts.append(len(calls) - sum(counts))
        assert reply.status == status
        return reply

    with traced(backend, trace):
        step(400, enter(backend, "000000"))  # with that comes the header of the log, once
        step(200, ask(backend))
        code = backend.code_for(YOU)
        step(400, enter(backend, wrong_code(code)))
        data = step(200, enter(backend, code)).value["data"]
        step(200, get(backend, ME, data["apiKey"]))  # the note of a use may be lost
        step(200, get(backend, "/api/keys/" + data["keyId"], data["apiKey"], "DELETE"))
    assert counts[0] in (1, 2) and counts[1:] == [1, 1, 1, 0, 1], counts


def foreign(path, version, table):
    with contextlib.closing(sqlite3.connect(str(path))) as db, db:
        db.execute("CREATE TABLE %s (x)" % table)
        db.execute("PRAGMA user_version = %d" % version)


FOREIGN = {
    "of another program": lambda path: foreign(path, 0, "recipes"),
    "of another program with versions": lambda path: foreign(path, 1, "recipes"),
    "of another program with versions, ahead": lambda path: foreign(path, 99, "users"),
    "no database": lambda path: path.write_bytes(b"Dear diary,\n" * 500),
}


def refused_to_serve(scripto, path):
    """The error of a `serve` that cannot use that database."""
    words = ["serve", "--port", "0", "--db", str(path), "--json"]
    result = scripto.run(*words, timeout=30)
    assert (result.status, result.error["code"]) == (1, "failed-precondition")
    assert str(path) in result.error["message"] and result.error["nextAction"]


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_a_file_that_is_not_ours_is_refused(scripto, tmp_path, make):
    make(tmp_path / "file")
    refused_to_serve(scripto, tmp_path / "file")


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_a_file_that_is_not_ours_is_left_alone(scripto, tmp_path, make):
    path = tmp_path / "file"
    make(path)
    path.chmod(0o640)
    before = path.read_bytes()
    scripto.run("serve", "--port", "0", "--db", str(path), timeout=30)
    assert (path.read_bytes(), mode(path)) == (before, "0o640")


@pytest.mark.parametrize("place", ["folder", "fifo", "file/db"])
def test_a_place_that_can_be_no_database_is_refused(scripto, tmp_path, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(str(tmp_path / "fifo"))
    refused_to_serve(scripto, tmp_path / place)


def test_a_folder_for_the_database_is_made(scripto, tmp_path):
    path = tmp_path / "deep" / "down" / "users.db"
    process = scripto.start("serve", "--port", "0", "--db", str(path))
    assert process.stdout.readline().startswith(b"listening on ")
    process.kill()
    process.communicate()
    assert [mode(each) for each in (path.parent, path.parent.parent)] == ["0o700"] * 2


def test_a_start_that_another_program_locks_out_says_so(backend, scripto):
    backend.stop()
    with contextlib.closing(sqlite3.connect(str(backend.db), isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        words = ["serve", "--port", "0", "--db", str(backend.db), "--json"]
        error = scripto.run(*words).error
    assert error["code"] == "failed-precondition" and "locked" in error["message"]
    assert "another program" in error["nextAction"]


def test_the_database_holds_no_code_and_no_key(backend):
    """Nor what gives them away: a plain hash of six digits is undone in a second."""
    data, code = backend.mint(YOU), code_after_asking(backend, "me@example.com")
    content = stored_bytes(backend)
    assert b"me@example.com" in content  # it is all there to be looked at
    secrets = [data["apiKey"].encode(), data["apiKey"][8:].encode(), code.encode()]
    for text in (code, "me@example.com" + code, "me@example.com\0" + code, code + "me@example.com"):
        for key in (b"", b"\0" * 32, b"scripto", b"me@example.com"):
            secrets.append(hmac.new(key, text.encode(), "sha256").digest())
        for kind in (hashlib.md5, hashlib.sha1, hashlib.sha256):
            secrets += [kind(text.encode()).digest(), kind(text.encode()).hexdigest().encode()]
    assert [secret for secret in secrets if secret in content] == []
    assert hashlib.sha256(data["apiKey"].encode()).digest() in content


@pytest.mark.slow
def test_servers_that_start_at_once_on_a_new_file_all_come_up(start_backend):
    backends = at_once(*[start_backend] * 8)
    key = backends[0].mint(YOU)["apiKey"]
    assert all(is_accepted(backend, key) for backend in backends)


def test_two_servers_on_one_file_are_one(start_backend):
    """Under the oldest and the newest interpreter at that."""
    one, two = start_backend(python=EDGES[0]), start_backend(python=EDGES[-1])
    code = code_after_asking(one)
    key = enter(two, code).value["data"]["apiKey"]
    assert is_accepted(one, key) and is_accepted(two, key)
    (row,) = keys_of(one, key)
    assert get(two, "/api/keys/" + row["id"], key, "DELETE").status == 200
    assert not is_accepted(one, key)


def test_the_database_does_not_grow_with_what_is_over(backend):
    for number in range(20):
        ask(backend, "%d@example.com" % number)
        assert wrong_guesses(backend) == number
        guess_wrong(backend, 1, address="%d@example.com" % number)
    age(backend, DAY + 1)
    ask(backend)
    assert (rows(backend, LIVE), rows(backend, "events")) == (1, 1)


# ---- Ten seconds later --------------------------------------------------------


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
