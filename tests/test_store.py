"""The database: what it holds, what survives, what happens where it is locked, full or damaged."""
import concurrent.futures
import contextlib
import hashlib
import hmac
import os
import shutil
import sqlite3

import pytest

from backend import (  # fmt: skip
    DAY, LIVE, ME, WRONG, YOU, age, ask, at_once, code_after_asking, database_calls, enter,
    full_disk, get, guess_wrong, is_accepted, keys_of, locked, note, rows, stored_bytes, traced,
    within, wrong_guesses)
from conftest import EDGES, wrong_code

# ---- Database ----


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


def test_a_start_that_another_program_locks_out_says_so(backend, scripto, changed):
    backend.stop()
    impatient = changed(WRITE_SECONDS=0.2)
    with contextlib.closing(sqlite3.connect(str(backend.db), isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        words = ["serve", "--port", "0", "--db", str(backend.db), "--json"]
        error = scripto.run(*words, program=impatient).error
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


# ---- A database in trouble ----


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
def test_it_serves_under_pypy_too(start_backend, newest):
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
    newest.python = python
    assert newest.run("users", "--db", str(backend.db), "--json").data["users"][0]["keys"] == 1
    assert newest.run("users", "remove", YOU, "--yes", "--db", str(backend.db)).status == 0
    assert backend.stop() == 0
