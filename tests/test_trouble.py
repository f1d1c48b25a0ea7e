"""The embedded backend in trouble: floods, a slow mail server, a locked database, a full disk,
nobody who reads its log. All on loopback, and bounded in time and number."""
import concurrent.futures
import contextlib
import fcntl
import json
import os
import pathlib
import pty
import re
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time

import pytest
from conftest import PROGRAM, Scripto, wait_until, wrong_code
from test_backend import (  # noqa: F401  some are fixtures
    DAY,
    FORWARDED,
    LIVE,
    LOCKED,
    ME,
    QUARTER,
    REQUEST,
    WRONG,
    YOU,
    age,
    answers_at_once,
    ask,
    at_once,
    can_connect,
    code_after_asking,
    connect,
    enter,
    get,
    guess_wrong,
    held_up,
    is_accepted,
    lock,
    mail_server,
    raw,
    read_all,
    rows,
    statuses,
)

HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@contextlib.contextmanager
def within(seconds):
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


def peak_memory(backend):
    """In MB."""
    path = "/proc/%d/status" % backend.process.pid
    if not os.path.exists(path):
        pytest.skip("no /proc to see memory in")
    with open(path) as file:
        return int(re.search(r"VmHWM:\s+(\d+) kB", file.read()).group(1)) / 1024


def execute(backend, sql, *values):
    with contextlib.closing(sqlite3.connect(str(backend.db), timeout=10)) as db, db:
        return db.execute(sql, values).fetchall()


@contextlib.contextmanager
def locked(backend):
    """Another program is in the middle of a write."""
    with contextlib.closing(sqlite3.connect(str(backend.db), isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("ROLLBACK")


@contextlib.contextmanager
def full_disk(backend):
    """No file that it writes can get any larger, or be written at all."""
    if not hasattr(resource, "prlimit"):
        pytest.skip("no prlimit to fill a disk with")
    usual = resource.prlimit(backend.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(backend.process.pid, resource.RLIMIT_FSIZE, (1, usual[1]))
    yield
    resource.prlimit(backend.process.pid, resource.RLIMIT_FSIZE, usual)


# ---- Memory and places --------------------------------------------------------


def flood(backend):
    """Headers without end, until it has enough."""
    with contextlib.suppress(OSError), connect(backend, b"GET / HTTP/1.1\r\n") as connection:
        for number in range(64):
            connection.sendall(b"X-%d: %s\r\n" % (number, b"y" * 65000))


def test_a_flood_of_headers_takes_no_memory(backend):
    at_once(*[lambda: flood(backend)] * 100)
    assert answers_at_once(backend) and peak_memory(backend) < 64


@pytest.mark.slow
def test_all_of_it_at_once(start_backend, mail_server):  # noqa: F811
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
def few_places(start_backend, mail_server, monkeypatch, tmp_path):  # noqa: F811
    """A backend with room for few, and its mail server."""
    text, count = re.subn("(?m)^CONNECTIONS = .*$", "CONNECTIONS = %d" % FEW,
                          pathlib.Path(PROGRAM).read_text("utf-8"))  # fmt: skip
    assert count == 1
    program = tmp_path / "few.py"
    program.write_text(text, "utf-8")
    monkeypatch.setattr(Scripto, "program", str(program))
    server = mail_server()
    return start_backend(mail="smtp://127.0.0.1:%d" % server.port), server


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
def test_where_threads_are_few_the_idle_make_room(start_backend):
    backend = start_backend(env={"MALLOC_ARENA_MAX": "1"})  # else each thread takes more memory
    few_threads(backend, 20)
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(from_address(backend, "127.0.0.2"))
        assert all(get(backend, "/healthz").status == 200 for _ in range(67))
        tasks = os.listdir("/proc/%d/task" % backend.process.pid)
        assert 15 < len(tasks) < 30  # or they were not so few


# ---- Mail ---------------------------------------------------------------------


def test_a_mail_for_which_there_is_no_thread_costs_nothing(start_backend, mail_server, tmp_path):  # noqa: F811
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


def test_a_slow_mail_server_takes_few_places(start_backend, mail_server):  # noqa: F811
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
def test_a_mail_server_that_never_comes_to_an_end_is_given_up(start_backend, mail_server):  # noqa: F811
    """It says something all the time. A signal waits for it no longer than that."""
    server, over = mail_server(), threading.Event()

    def talk(connection):
        with contextlib.suppress(OSError), connection:
            while not over.wait(0.2):
                connection.sendall(b"220-still here\r\n")

    server.talk = talk
    backend = start_backend(mail="smtp://127.0.0.1:%d" % server.port)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        with within(25):
            held = pool.submit(ask, backend)
            time.sleep(0.5)  # for the request to be in hand
            assert backend.stop() == 0
        assert held.result().error == (500, "internal")
    over.set()


def codes_in(messages):
    return [re.search(r"Subject: (\d{6}) ", message).group(1) for message in messages]


def test_a_code_is_live_before_its_mail_is_there(start_backend, mail_server):  # noqa: F811
    server = mail_server()
    backend = start_backend(mail="smtp://127.0.0.1:%d" % server.port)
    with concurrent.futures.ThreadPoolExecutor() as pool, held_up(server):
        held = pool.submit(ask, backend)
        assert server.busy.wait(20)
        assert enter(backend, codes_in(server.arrived)[0]).status == 200 and not held.done()
        server.go_on.set()
        assert held.result().status == 200


def test_of_two_mails_that_cross_both_codes_are_good(start_backend, mail_server):  # noqa: F811
    server = mail_server()
    backend = start_backend(mail="smtp://127.0.0.1:%d" % server.port)
    for order in (0, 1):
        address, before = "%d@example.com" % order, len(server.arrived)
        assert {reply.status for reply in at_once(*[lambda: ask(backend, address)] * 2)} == {200}
        assert enter(backend, codes_in(server.arrived[before:])[order], address).status == 200


def test_what_fails_to_be_mailed_leaves_the_codes_before_it(start_backend, mail_server):  # noqa: F811
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
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
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


# ---- The database -------------------------------------------------------------


@pytest.mark.slow
def test_reads_wait_for_no_writer(backend):
    key = backend.mint(YOU)["apiKey"]
    code = code_after_asking(backend)
    age(backend, 61)  # so that the use of the key is to be noted
    with concurrent.futures.ThreadPoolExecutor(40) as pool, locked(backend):
        with within(1):
            assert is_accepted(backend, key)
        for _ in range(40):
            pool.submit(enter, backend, wrong_code(code))
        for _ in range(10):
            with within(1):
                assert is_accepted(backend, key)
            with within(1):
                assert get(backend, "/healthz").status in (200, 503)


def test_a_full_disk_closes_no_guarded_page(backend):
    key = backend.mint(YOU)["apiKey"]
    code = code_after_asking(backend)
    age(backend, 61)
    with full_disk(backend):
        assert is_accepted(backend, key) and get(backend, "/healthz").status == 200
        assert enter(backend, code).error == (500, "internal")
    assert enter(backend, code).status == 200 and is_accepted(backend, key)


@pytest.mark.parametrize("trouble", [locked, full_disk])
def test_a_use_that_cannot_be_noted_keeps_nobody_out(start_backend, edge, trouble):
    """And waits for nobody: the next use is noted."""
    backend = start_backend(python=edge)
    key = backend.mint(YOU)["apiKey"]
    with trouble(backend), within(5):
        assert all(is_accepted(backend, key) for _ in range(50))
        assert backend.last_uses() == [None]
    assert is_accepted(backend, key) and all(backend.last_uses())
    assert ask(backend).status == 200


@pytest.mark.slow
def test_who_waits_to_write_leaves_room_for_who_has_a_key(backend):
    """Of 150 clients beside a locked database 64 wait; the others are told at once."""
    key = backend.mint(YOU)["apiKey"]
    with concurrent.futures.ThreadPoolExecutor(150) as pool, locked(backend):
        held = [pool.submit(ask, backend, "%d@example.com" % n) for n in range(150)]
        with within(4):
            first = zip(concurrent.futures.as_completed(held), range(86))
            told = [each.result() for each, _ in first]
        assert {reply.error for reply in told} == {(500, "internal")}
        assert {reply.value["error"]["nextAction"] for reply in told} == {"retry shortly"}
        with within(5):
            assert all(is_accepted(backend, key) for _ in range(50))
    assert {reply.result().status for reply in held} <= {200, 500}
    assert ask(backend, "me@example.com").status == 200


def test_a_write_that_fails_half_way_leaves_nothing(backend):
    code = code_after_asking(backend)
    with contextlib.closing(sqlite3.connect(str(backend.db))) as db, db:
        db.execute("ALTER TABLE keys RENAME TO elsewhere")
    assert enter(backend, code).error == (500, "internal")
    assert ask(backend, "me@example.com").status == 200
    with contextlib.closing(sqlite3.connect(str(backend.db))) as db, db:
        db.execute("ALTER TABLE elsewhere RENAME TO keys")
    assert enter(backend, code).status == 200


def test_a_write_that_fails_is_nobody_s_success(backend):
    """Whoever it was shared with."""
    addresses = ["%d@example.com" % n for n in range(12)]
    with full_disk(backend):
        replies = at_once(*[lambda a=a: ask(backend, a) for a in addresses])
    assert {reply.error for reply in replies} == {(500, "internal")} and backend.mails() == []
    assert (rows(backend, LIVE), rows(backend, "events")) == (0, 0)
    assert {reply.status for reply in at_once(*[lambda a=a: ask(backend, a) for a in addresses])} == {200}


def test_what_is_over_goes_a_few_rows_at_a_time(backend):
    """With each code request, which would have to wait for millions."""
    note(backend, "request", "", 250, 2 * DAY)
    for number, left in enumerate((150, 50, 0, 0)):
        assert ask(backend).status == 200
        assert rows(backend, "events") == left + number + 1


YEAR = 365 * DAY


def test_a_clock_that_was_ahead_locks_nobody_out(backend):
    code = code_after_asking(backend)
    guess_wrong(backend, 2, code)
    assert [ask(backend).status for _ in range(5)] == [200] * 4 + [429]
    age(backend, -YEAR)
    assert [ask(backend).status for _ in range(6)] == [200] * 5 + [429]


def test_a_code_does_not_outlive_a_clock_that_was_ahead(backend):
    code = code_after_asking(backend)
    age(backend, -YEAR)
    assert enter(backend, code).error == WRONG


def test_a_clock_that_is_set_back_a_little_takes_no_code(backend):
    """Nor does it forgive a guess."""
    code = code_after_asking(backend)
    guess_wrong(backend, 1, code)
    age(backend, -30)
    ask(backend, "me@example.com")  # which clears away what is over
    assert "1 try is left" in guess_wrong(backend, 1, code)[0].value["error"]["message"]
    assert enter(backend, code).status == 200


@pytest.mark.parametrize("replace", [False, True], ids=["deleted", "replaced"])
def test_a_database_that_is_gone_is_no_health(backend, replace):
    """What is written to a file without a name is lost at the end."""
    backend.db.unlink()
    if replace:
        backend.db.write_bytes(b"")
    reply = get(backend, "/healthz")
    assert reply.error == (503, "internal")


@pytest.mark.parametrize("table", ["users", "keys", "events"])
def test_a_damaged_page_is_no_health(backend, table):
    """A request for it would be a 500."""
    key = backend.mint(YOU)["apiKey"]
    with contextlib.closing(sqlite3.connect(str(backend.db))) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        (size,), = db.execute("PRAGMA page_size")
        (page,), = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,))
    assert get(backend, "/healthz").status == 200
    with open(str(backend.db), "r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xa5" * size)
    with contextlib.closing(sqlite3.connect(str(backend.db))) as db, db:
        db.execute("UPDATE secret SET value = randomblob(32)")  # so that pages are read anew
    assert get(backend, "/healthz").error == (503, "internal")
    assert table == "events" or get(backend, ME, key).status == 500


def make_newer(path):
    with contextlib.closing(sqlite3.connect(str(path))) as db, db:
        db.execute("PRAGMA user_version = 99")


def make_older(path):
    """As before there was one schema."""
    with contextlib.closing(sqlite3.connect(str(path))) as db, db:
        db.execute("PRAGMA user_version = 1")


def make_corrupt(path):
    content = bytearray(path.read_bytes())
    content[100:1500] = b"\xa5" * 1400
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("spoil, told", [
    (make_newer, "update"), (make_older, "version"), (make_corrupt, "backup"),
])  # fmt: skip
@pytest.mark.slow
def test_a_database_that_cannot_be_used_is_kept(backend, scripto, spoil, told):
    """Who is told to pass another file starts with an empty one, and everybody is locked out."""
    backend.stop()
    spoil(backend.db)
    before = backend.db.read_bytes()
    result = scripto.run("serve", "--port", "0", "--db", str(backend.db), "--json")
    assert (result.status, result.error["code"]) == (1, "failed-precondition")
    assert told in result.error["nextAction"] and "--db" not in result.error["nextAction"]
    assert backend.db.read_bytes() == before


@pytest.mark.slow
def test_it_serves_under_pypy_too(start_backend, scripto):
    """Where a statement that is not read to its end stays open."""
    python = shutil.which("pypy3")
    if not python:
        pytest.skip("no pypy3")
    backend = start_backend(python=python)
    code = code_after_asking(backend)
    assert guess_wrong(backend, 1, code)[0].error == WRONG and enter(backend, code).status == 200
    data = backend.mint(YOU)
    assert get(backend, "/api/keys/" + data["keyId"], data["apiKey"], "DELETE").status == 200
    assert get(backend, "/healthz").status == get(backend, "/scripto.py").status == 200
    scripto.python = python
    assert scripto.run("users", "--db", str(backend.db), "--json").data["users"][0]["keys"] == 1
    assert scripto.run("users", "remove", YOU, "--yes", "--db", str(backend.db)).status == 0
    assert backend.stop() == 0


# ---- Limits across emails -----------------------------------------------------


def note(backend, kind, address, count, ago=0):
    """Events of other emails, as that address would have caused them."""
    with contextlib.closing(sqlite3.connect(str(backend.db), timeout=10)) as db, db:
        sql = "INSERT INTO events (email, kind, address, at) VALUES (?, ?, ?, ?)"
        at = time.time() - ago
        db.executemany(sql, [("%d@b" % n, kind, address, at) for n in range(count)])


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
    "a /64": ["2001:db8:1:2::5", "2001:DB8:1:2:3:4:5:6", "[2001:db8:1:2::7]:443"],
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


def test_who_is_held_off_stands_in_the_log_and_the_email_does_not(backend):
    assert enter(backend, lock(backend)).error == LOCKED == ask(backend).error
    wait_until(lambda: backend.log().count(" 429 ") == 2, what="both lines")
    found = re.findall(r" 429 too many (.*) for this email: ([0-9a-f]{12})$", backend.log(), re.M)
    assert [what for what, _ in found] == ["wrong codes", "code requests"]
    assert found[0][1] == found[1][1] and YOU not in backend.log()


# ---- The log ------------------------------------------------------------------


@pytest.mark.slow
def test_nobody_has_to_read_the_log(scripto, tmp_path):
    """A full pipe stops neither requests nor a signal; how much is missing is said later."""
    process = scripto.start("serve", "--port", "0", "--db", str(tmp_path / "db"))
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
    port = int(process.stdout.readline().decode().rpartition(":")[2])
    backend = type("Site", (), {"port": port})
    assert statuses(raw(backend, HEALTHZ * 1500)) == [200] * 1500
    os.read(process.stderr.fileno(), 65536)
    assert statuses(raw(backend, HEALTHZ)) == [200]
    assert b"lines of the log were dropped" in os.read(process.stderr.fileno(), 65536)
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
    """If somebody takes it; here from the moment when the signal has gone out."""
    process = scripto.start("serve", "--port", "0", "--db", str(tmp_path / "db"))
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
    port = int(process.stdout.readline().decode().rpartition(":")[2])
    assert statuses(raw(type("Site", (), {"port": port}), HEALTHZ * 500)) == [200] * 500
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert err.count(b"/healthz 200") == 500 and process.returncode == 0


def test_the_log_names_the_client_behind_the_proxy(start_backend):
    backend = start_backend("--behind-proxy")
    get(backend, ME, headers={FORWARDED: "6.6.6.6, 9.9.9.9:4711"})
    get(backend, ME, headers={FORWARDED: "<script>"})
    wait_until(lambda: backend.log().count("\n") == 2, what="both lines")
    assert "Z 9.9.9.9 GET " in backend.log() and "Z 127.0.0.1 GET " in backend.log()


# ---- Endings ------------------------------------------------------------------


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


def test_who_gets_a_late_answer_is_not_waited_for_again(start_backend, mail_server):  # noqa: F811
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
