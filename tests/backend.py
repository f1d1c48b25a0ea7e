"""What the tests of the backend share: requests, codes, time that passes, and trouble."""
import concurrent.futures
import contextlib
import email
import email.policy
import email.utils
import os
import re
import resource
import shutil
import socket
import sqlite3
import subprocess
import threading
import time

import pytest

from conftest import wrong_code

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


def wrong_guesses(backend):
    """How many the database has counted."""
    with contextlib.closing(sqlite3.connect(str(backend.db))) as db:
        sql = "SELECT count(*) FROM events WHERE kind = 'wrong' AND email <> ''"
        return db.execute(sql).fetchone()[0]


FORWARDED = "X-Forwarded-For"


def from_address(number):
    """Headers as of a client of that number, for a backend behind a proxy."""
    return {FORWARDED: "10.%d.%d.%d" % (number >> 16, number >> 8 & 255, number & 255)}


@contextlib.contextmanager
def held_up(server):
    """The server is slow: it keeps every mail until go_on is set, at the end at the latest."""
    server.go_on.clear()
    try:
        yield
    finally:
        server.go_on.set()


def can_connect(port):
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 5).close()
        return True


GOOD = b"Host: x\r\nContent-Type: application/json\r\n"
JSON = b'{"email": "you@example.com"}'
HEAD = b"POST /api/cli/login-request HTTP/1.1\r\n" + GOOD


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


def note(backend, kind, address, count, ago=0):
    """Events of other emails, as that address would have caused them."""
    with contextlib.closing(sqlite3.connect(str(backend.db), timeout=10)) as db, db:
        sql = "INSERT INTO events (email, kind, address, at) VALUES (?, ?, ?, ?)"
        at = time.time() - ago
        db.executemany(sql, [("%d@b" % n, kind, address, at) for n in range(count)])
