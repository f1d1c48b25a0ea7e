"""The rules of signing in: codes, wrong guesses, code requests, tickets; what a stranger gets, and
what a stranger cannot do to others."""
import contextlib
import re
import signal
import socket
import sqlite3
import subprocess
import threading

import pytest

from backend import (  # fmt: skip
    DAY, FORWARDED, LOCKED, QUARTER, REQUEST, WRONG, YOU, age, ask, asked, at_once,
    code_after_asking, connect, database_calls, enter, from_address, get, guess_twelve, guess_wrong,
    is_accepted, keys_of, lock, message_of, note, peak_memory, read_all, statuses, stored_bytes,
    traced, wrong_guesses)
from conftest import wait_until, wrong_code

# ---- Code ----


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


# ---- Limits ----


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


def test_a_guesser_gets_fifteen_guesses_in_a_quarter_of_an_hour(backend):
    assert guess_on(backend) == 15


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


# ---- Tickets ----


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


# ---- Limits across emails ----


@pytest.mark.parametrize("kind", ["wrong", "request"])
def test_an_address_has_a_limit_across_emails_too(start_backend, kind):
    backend, most = start_backend("--rate-limit", "1000"), 100

    def attempt():
        return ask(backend) if kind == "request" else enter(backend, code)

    code = code_after_asking(backend)
    note(backend, kind, "127.0.0.1", most, DAY + 60)  # which are over
    assert attempt().status == 200
    code = code_after_asking(backend)
    note(backend, kind, "127.0.0.1", most - (3 if kind == "request" else 1), DAY - 60)
    guess_wrong(backend, 1, code)  # one more, and that by its own doing
    refusal = attempt()
    assert refusal.error == LOCKED and 0 < refusal.wait <= 61


def test_without_a_limit_for_addresses_there_is_none_across_emails(backend):
    for address in ("127.0.0.1", ""):
        note(backend, "wrong", address, 200)
        note(backend, "request", address, 400)
    assert enter(backend, code_after_asking(backend)).status == 200


SAME = {
    "a port": ["9.9.9.9", "9.9.9.9:1234", "9.9.9.9:80"],
    "IPv4 in IPv6": ["9.9.9.9", "::ffff:9.9.9.9", "::FFFF:0909:0909"],
    "a /64": ["2001:db8:1:2::5", "2001:DB8:1:2:3:4:5:6", "2001:db8:1:2::7"],
}
DIFFERENT = {
    "IPv4 in IPv6": ["::ffff:9.9.9.9", "::ffff:9.9.9.8", "::ffff:9.9.8.9"],
    "two of a /48": ["2001:db8:1:2::5", "2001:db8:1:3::5", "2001:db8:1:4::5"],
}


@pytest.mark.parametrize("hops", SAME.values(), ids=SAME)
def test_one_client_however_it_is_written(start_backend, hops):
    backend = start_backend("--rate-limit", "2", "--behind-proxy")
    replies = [ask(backend, "%d@b.example" % n, {FORWARDED: hop}) for n, hop in enumerate(hops)]
    assert [reply.status for reply in replies] == [200, 200, 429]
    host = hops[-1].rpartition(":")[0].strip("[]") if hops[0][0] == "9" and "." in hops[-1] else ""
    wait_until(lambda: backend.log().count("\n") == 3, what="all lines")
    assert host in backend.log() and ":80 " not in backend.log()


@pytest.mark.parametrize("hops", DIFFERENT.values(), ids=DIFFERENT)
def test_different_clients_have_limits_of_their_own(start_backend, hops):
    backend = start_backend("--rate-limit", "1", "--behind-proxy")
    replies = [ask(backend, "%d@b.example" % n, {FORWARDED: hop}) for n, hop in enumerate(hops)]
    assert [reply.status for reply in replies] == [200, 200, 200]


@pytest.mark.slow
def test_of_very_many_addresses_the_quietest_are_forgotten(start_backend):
    """Memory is bounded, whoever has a /48 to ask from."""
    backend = start_backend("--rate-limit", "1", "--behind-proxy")
    form = b"POST %s HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 10.%d.%d.%d\r\nContent-Length: 0\r\n\r\n"

    def send(numbers):
        path = REQUEST.encode()
        data = b"".join(form % (path, n >> 16, n >> 8 & 255, n & 255) for n in numbers)
        connection, got = connect(backend), []
        reader = threading.Thread(target=lambda: got.append(read_all(connection)))
        reader.start()
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        reader.join(60)
        return statuses(got[0])

    assert send([0, 0]) == [400, 429]
    assert set(send(range(1, 9000))) == {400} and send([0]) == [429]
    assert set(send(range(9000, 20000))) == {400} and send([0]) == [400]
    assert peak_memory(backend) < 64


def test_the_log_says_which_limit_is_reached_and_not_for_whom(backend):
    assert enter(backend, lock(backend)).error == LOCKED == ask(backend).error
    wait_until(lambda: backend.log().count(" 429 ") == 2, what="both lines")
    found = re.findall(r" 429 too many (.*) for this email$", backend.log(), re.M)
    assert found == ["wrong codes", "code requests"] and YOU not in backend.log()
