"""What who runs a backend has: `users`, `--allow`, `serve -- COMMAND`, and what is said at the
start."""
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from backend import (
    ME, YOU, ask, at_once, code_after_asking, connect, enter, execute, get, is_accepted, keys_of,
    locked, raw, read_all, rows, statuses)
from conftest import PROGRAM, Result, Scripto, Terminal, in_turn, wait_until

HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"

# ---- users --------------------------------------------------------------------


def users(scripto, backend, *words):
    return scripto.run("users", *words, "--db", str(backend.db), "--json")


@pytest.mark.parametrize("words", [[], ["list"]])
def test_users_are_listed_while_the_server_runs(backend, scripto, words):
    assert users(scripto, backend, *words).data == {"users": []}
    first = backend.mint(YOU)
    backend.mint(YOU)
    assert is_accepted(backend, first["apiKey"])
    backend.mint("me@example.com")
    one, two = users(scripto, backend, *words).data["users"]
    assert (one["email"], one["id"], one["keys"]) == (YOU, first["userId"], 2)
    assert (two["email"], two["keys"], two["lastUsedAt"]) == ("me@example.com", 1, None)
    for stamp in (one["createdAt"], one["lastUsedAt"], two["createdAt"]):
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z", stamp)
    assert set(one) == {"email", "id", "createdAt", "lastUsedAt", "keys"}


def test_users_has_a_form_for_people(backend, scripto):
    assert scripto.run("users", "--db", str(backend.db)).out == "Nobody has signed up yet.\n"
    backend.mint(YOU)
    (line,) = scripto.run("users", "--db", str(backend.db)).out.splitlines()
    assert YOU in line and "keys 1" in line


def test_who_is_removed_goes_with_keys_and_code_and_nobody_else(backend, scripto):
    mine, other = backend.mint(YOU)["apiKey"], backend.mint("me@example.com")["apiKey"]
    code, theirs = code_after_asking(backend), code_after_asking(backend, "me@example.com")
    data = users(scripto, backend, "remove", "YOU@example.com", "--yes").data
    assert data["removed"] == YOU
    assert not is_accepted(backend, mine) and enter(backend, code).status == 400
    assert is_accepted(backend, other) and enter(backend, theirs, "me@example.com").status == 200
    assert [user["email"] for user in users(scripto, backend).data["users"]] == ["me@example.com"]
    assert rows(backend, "keys") == 2  # both are theirs


def test_the_list_of_users_needs_no_thread(backend, scripto):
    backend.mint(YOU)

    def limited():  # each thread's stack would be larger than all there is
        resource.setrlimit(resource.RLIMIT_STACK, (4 << 30, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))

    run = scripto.run("users", "--db", str(backend.db), "--json", preexec_fn=limited)
    assert [user["email"] for user in run.data["users"]] == [YOU]


def test_removing_forgives_nothing(backend, scripto):
    backend.mint(YOU)
    before = rows(backend, "events")
    users(scripto, backend, "remove", YOU, "--yes").data
    assert rows(backend, "events") == before
    assert [ask(backend).status for _ in range(5)] == [200] * 4 + [429]


REFUSED = {
    "nobody has that email": (["remove", "no@example.com", "--yes"], "not-found", 1),
    "no terminal to ask at": (["remove", YOU], "invalid-argument", 2),
    "no email": (["remove", "--yes"], "invalid-argument", 2),
    "what is no command": (["ban", YOU], "invalid-argument", 2),
}


def test_a_list_that_cannot_be_read_is_the_database_s_fault(backend, scripto):
    execute(backend, "DROP TABLE users")
    assert users(scripto, backend).error["code"] == "failed-precondition"


@pytest.mark.slow
def test_who_cannot_be_removed_since_another_program_writes_is_told_so(backend, scripto, changed):
    key = backend.mint(YOU)["apiKey"]
    scripto.program = changed(WRITE_SECONDS=0.3)
    with locked(backend):
        error = users(scripto, backend, "remove", YOU, "--yes").error
    assert error["code"] == "failed-precondition" and "another program" in error["nextAction"]
    assert is_accepted(backend, key)


@pytest.mark.parametrize("words, code, status", REFUSED.values(), ids=REFUSED)
def test_what_users_refuses(backend, scripto, words, code, status):
    key = backend.mint(YOU)["apiKey"]
    result = users(scripto, backend, *words)
    assert (result.error["code"], result.status) == (code, status)
    assert result.error["nextAction"] and is_accepted(backend, key)
    if code != "invalid-argument" or words == REFUSED["no terminal to ask at"][0]:
        assert result.error["nextAction"].endswith(" --db %s" % backend.db)  # so it can be run


@pytest.mark.parametrize("words", [["list"], ["remove", YOU, "--yes"]])
def test_a_database_that_is_not_there_is_not_made(scripto, tmp_path, words):
    result = scripto.run("users", *words, "--db", str(tmp_path / "none"), "--json")
    assert (result.error["code"], result.status) == ("failed-precondition", 1)
    assert not list(tmp_path.glob("none*"))
    assert scripto.run("users", *words, "--json").error["code"] == "failed-precondition"
    assert not (scripto.home / ".local").exists()


def test_the_list_of_users_waits_for_no_writer(backend, scripto):
    backend.mint(YOU)
    with contextlib.closing(sqlite3.connect(str(backend.db), isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        start = time.monotonic()
        assert len(users(scripto, backend).data["users"]) == 1 and time.monotonic() - start < 4


def users_of(path):
    with contextlib.closing(sqlite3.connect(str(path))) as db:
        return db.execute("SELECT email FROM users").fetchall()


def at_terminal(scripto, words, typed=b"", **start):
    """Runs it with a terminal for all three streams, a server until it has said all; returns
    (status, what was shown)."""
    terminal = Terminal(scripto, *words, **start)
    terminal.type(typed)
    wait_until(lambda: "sign in" in terminal.read() or terminal.process.poll() is not None)
    if terminal.process.poll() is None:
        terminal.process.terminate()
    return terminal.end(), terminal.screen


@pytest.mark.parametrize("typed, status", [(b"n\n", 130), (b"y\n", 0)])
def test_removing_asks_at_a_terminal(backend, scripto, typed, status):
    key = backend.mint(YOU)["apiKey"]
    ended, shown = at_terminal(scripto, ["users", "remove", YOU, "--db", str(backend.db)], typed)
    assert (ended, YOU in shown) == (status, True)
    assert is_accepted(backend, key) is bool(status)


# ---- backup -------------------------------------------------------------------


def backup(scripto, backend, path, **more):
    return scripto.run("backup", str(path), "--db", str(backend.db), "--json", **more)


def on_a_read_only_mount(scripto, folder, *words):
    """Runs a command where that folder is mounted read-only, for it alone."""
    lines = 'mount --bind -o ro "$0" "$0" && ! touch "$0/x" 2>/dev/null && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", lines, str(folder)]
    if os.geteuid() or subprocess.call(command + ["true"], stderr=subprocess.DEVNULL):
        pytest.skip("no read-only mounts here")
    process = subprocess.Popen(command + [scripto.python, PROGRAM, *words], env=scripto.env,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    return Result(process, *process.communicate(timeout=30))


@pytest.mark.parametrize("served", [False, True])
def test_a_database_on_a_read_only_mount_is_read(backend, scripto, tmp_path, served):
    """A database that is not served has no files beside it, and none can be made."""
    backend.mint(YOU)
    if not served:
        backend.stop()
    where, copy = ["--db", str(backend.db), "--json"], tmp_path / "copy.db"
    listed = on_a_read_only_mount(scripto, backend.folder, "users", "list", *where).data
    assert [user["email"] for user in listed["users"]] == [YOU]
    on_a_read_only_mount(scripto, backend.folder, "backup", str(copy), *where).data
    assert users_of(copy) == [(YOU,)]


def test_a_backup_is_whole_and_nobody_else_s(backend, python, tmp_path):
    """Taken while the server runs, night after night, whatever umask there is."""
    owner, copy = Scripto(python, tmp_path / "home"), tmp_path / "backup.db"
    umask = os.umask(0)
    try:
        first = backend.mint(YOU)["apiKey"]
        assert backup(owner, backend, copy).data == {"file": str(copy)}
        code, second = code_after_asking(backend), backend.mint("me@example.com")["apiKey"]
        assert backup(owner, backend, copy).data
    finally:
        os.umask(umask)
    assert copy.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.glob("backup.db*")] == ["backup.db"]
    backend.stop()
    for path in backend.folder.glob("scripto.db*"):
        path.unlink()
    copy.rename(backend.db)
    backend.start()
    assert is_accepted(backend, first) and is_accepted(backend, second)
    assert enter(backend, code).status == 200


def test_a_backup_has_what_a_killed_server_left(backend, scripto, tmp_path):
    """In the log beside its database."""
    backend.mint(YOU)
    backend.stop(signal.SIGKILL)
    assert users(scripto, backend).data["users"][0]["email"] == YOU
    assert backup(scripto, backend, tmp_path / "copy.db").data
    assert len(users_of(tmp_path / "copy.db")) == 1


def test_backups_at_once_disturb_nobody(backend, scripto, tmp_path):
    """The last one stays, and it is whole."""
    for number in range(20):
        backend.mint("%d@example.com" % number)
    copy = tmp_path / "copy.db"
    statuses = at_once(*[lambda: backup(scripto, backend, copy).status] * 4)
    assert statuses == [0] * 4 and len(users_of(copy)) == 20
    assert os.listdir(str(tmp_path)).count("copy.db") == 1


def test_a_backup_leaves_a_link_to_last_time_s(backend, scripto, tmp_path):
    link, old = tmp_path / "latest.db", tmp_path / "old.db"
    old.touch()
    link.symlink_to(old)
    assert backup(scripto, backend, link).data == {"file": str(old)}
    assert link.is_symlink() and users_of(old) == []


NO_BACKUP = {  # where to, of what: the exit status
    "of no database": ("copy.db", "none.db", 1),
    "of another program's file": ("copy.db", "other.db", 1),
    "into no folder": ("missing/copy.db", "backend/scripto.db", 1),
    "onto a folder": ("backend", "backend/scripto.db", 1),
    "onto a file that is no backup": ("notes", "backend/scripto.db", 1),
    "onto the log of the database": ("backend/scripto.db-wal", "backend/scripto.db", 1),
    "onto a database that is in use": ("used.db", "backend/scripto.db", 1),
    "onto a FIFO": ("fifo", "backend/scripto.db", 1),
    "onto the database itself": ("backend/scripto.db", "backend/scripto.db", 2),
    "onto it by another name": ("link.db", "backend/scripto.db", 2),
}


@in_turn("to, of, status", NO_BACKUP)
def test_a_backup_that_cannot_be(backend, scripto, tmp_path, to, of, status):
    """Is an error, and leaves nothing behind."""
    key = backend.mint(YOU)["apiKey"]
    (tmp_path / "link.db").symlink_to(backend.db)
    with contextlib.closing(sqlite3.connect(str(tmp_path / "other.db"))) as db:
        db.execute("CREATE TABLE users (email)")
    (tmp_path / "notes").write_text("mine")
    shutil.copy(str(backend.db), str(tmp_path / "used.db"))
    (tmp_path / "used.db-wal").touch()
    os.mkfifo(str(tmp_path / "fifo"))
    before = sorted(str(path) for path in tmp_path.rglob("*") if "home" not in str(path))
    words = ["backup", str(tmp_path / to), "--db", str(tmp_path / of), "--json"]
    result = scripto.run(*words)
    assert result.status == status and result.error["nextAction"]
    assert (tmp_path / "notes").read_text() == "mine" and (tmp_path / "fifo").is_fifo()
    assert sorted(str(path) for path in tmp_path.rglob("*") if "home" not in str(path)) == before
    assert is_accepted(backend, key)


# ---- --allow ------------------------------------------------------------------

BOSS, GUEST = "boss@example.com", "guest@example.org"


def test_who_is_not_allowed_gets_no_code(start_backend, scripto):
    backend = start_backend("--allow", "@Example.com", "--allow", GUEST)
    for address in (BOSS, "BOSS@EXAMPLE.COM", GUEST):
        assert ask(backend, address).status == 200
    before = len(backend.mails())
    others = ("x@example.org", "x@sub.example.com", "x@notexample.com", "x@example.com.org",
              "not" + GUEST, GUEST + ".net", "guest@sub.example.org")
    for address in others:
        reply = ask(backend, address)
        assert reply.error == (403, "permission-denied")
        assert reply.value["error"]["nextAction"] == (
            "ask the operator of %s to allow it, or use another email" % backend.url
        )
        assert enter(backend, "123456", address).error == (403, "permission-denied")
    assert len(backend.mails()) == before
    words = ["auth", "login-request", "--email", "x@b.org", "--api-url", backend.url, "--json"]
    result = scripto.run(*words)
    assert (result.status, result.error["code"]) == (1, "permission-denied")


@pytest.mark.slow
def test_keys_of_who_is_no_longer_allowed_are_dead_while_that_lasts(start_backend):
    backend = start_backend()
    boss, guest = backend.mint(BOSS), backend.mint(GUEST)
    code = code_after_asking(backend, GUEST)
    backend.stop()
    backend.flags = ("--allow", "@example.com")
    backend.start()
    assert is_accepted(backend, boss["apiKey"])
    refusal = get(backend, ME, guest["apiKey"])
    assert (refusal.status, refusal.value) == (401, {"error": "Unauthorized"})
    assert get(backend, "/api/keys", guest["apiKey"]).error == (401, "unauthenticated")
    path = "/api/keys/" + guest["keyId"]
    assert get(backend, path, guest["apiKey"], "DELETE").error == (401, "unauthenticated")
    assert enter(backend, code, GUEST).error == (403, "permission-denied")
    backend.stop()
    backend.flags = ()
    backend.start()
    assert len(keys_of(backend, guest["apiKey"])) == 1


BAD_FLAGS = {
    "a rule that is only a name": ["--allow", "door"],
    "a rule of nothing": ["--allow", "@"],
    "a rule with a pattern": ["--allow", "@*.example.com"],
    "a sender that is none": ["--mail-from", "the door"],
    "a port too high": ["--port", "70000"],
    "a port that is none": ["--port", "http"],
}


@in_turn("flags", BAD_FLAGS)
def test_bad_flags_are_refused_before_anything_is_made(scripto, tmp_path, flags):
    result = scripto.run("serve", "--db", str(tmp_path / "db"), *flags, "--json")
    assert (result.status, result.error["code"]) == (2, "invalid-argument")
    assert flags[0] in result.error["nextAction"] and not list(tmp_path.glob("db*"))


HALVES = {
    "a domain without its sign": (["--allow", "example.com"], "--allow @example.com"),
    "a certificate without its key": (["--tls-cert", "cert.pem"], "--tls-key <your-file>"),
    "a key without its certificate": (["--tls-key", "key.pem"], "--tls-cert <your-file>"),
}


@pytest.mark.parametrize("flags, missing", HALVES.values(), ids=HALVES)
def test_what_is_only_half_said_is_told_the_other_half(scripto, flags, missing):
    result = scripto.run("serve", *flags, "--json")
    assert (result.status, result.error["code"]) == (2, "invalid-argument")
    assert missing in result.error["nextAction"]


def test_a_database_has_its_folders_made(scripto, tmp_path):
    """As Maildirs have."""
    path = tmp_path / "a" / "b" / "scripto.db"
    process = scripto.start("serve", "--port", "0", "--db", str(path), stderr=subprocess.DEVNULL)
    assert process.stdout.readline().startswith(b"listening")
    process.terminate()
    process.communicate(timeout=20)
    assert path.exists() and oct(path.parent.stat().st_mode & 0o777) == "0o700"


# ---- What is said at the start ------------------------------------------------


@pytest.mark.parametrize("flags, warned", [
    ([], False),
    (["--host", "0.0.0.0", "--mail", "maildir:mail"], True),
    (["--host", "0.0.0.0", "--mail", "maildir:mail", "--public-url", "https://door.example"], False),
])  # fmt: skip
@pytest.mark.slow
def test_a_terminal_is_told_how_to_sign_in(scripto, tmp_path, flags, warned):
    """And, first, what keeps clients out: they refuse plain http beyond loopback."""
    status, shown = at_terminal(scripto, ["serve", "--port", "0", *flags], cwd=str(tmp_path))
    url = re.search(r"listening on (\S+)", shown).group(1).replace("0.0.0.0", "127.0.0.1")
    url = flags[-1] if "--public-url" in flags else url
    hint = "sign in with: scripto auth login-request --email <your-email> --api-url " + url
    assert hint in shown and ("refuse plain http" in shown) is warned


def test_where_it_listens_everywhere_it_names_what_leads_to_it_here(scripto, tmp_path):
    """What leads to it from elsewhere is for --public-url to say."""
    words = ["serve", "--host", "0.0.0.0", "--port", "0", "--mail", "maildir:%s" % tmp_path]
    process = scripto.start(*words, "--db", str(tmp_path / "db"), "--json")
    data = json.loads(process.stdout.readline().decode())["data"]
    process.kill()
    process.communicate()
    assert data["publicUrl"] == data["url"].replace("0.0.0.0", "127.0.0.1") != data["url"]


# ---- serve -- COMMAND ---------------------------------------------------------

SIGN_IN = """
set -e
scripto() { "$PYTHON" "$PROGRAM" "$@"; }
scripto auth login-request --email you@example.com
code=$(sed -n 's/^Subject: \\([0-9]*\\) .*/\\1/p' "${SCRIPTO_CODE_FROM#maildir:}"/new/*)
scripto auth login-complete --email you@example.com --code $code
scripto whoami
"""


def beside(scripto, *command, **more):
    """Runs `serve -- COMMAND`."""
    env = {"PYTHON": scripto.python, "PROGRAM": PROGRAM}
    return scripto.run("serve", "--", *command, env=env, **more)


def test_a_command_finds_a_backend_of_its_own(scripto, tmp_path):
    """And nothing of it is left."""
    assert beside(scripto, "sh", "-c", "exit 9").status == 9
    result = beside(scripto, "sh", "-c", SIGN_IN + "env")
    assert result.status == 0 and "Signed in as you@example.com" in result.out
    assert result.out.startswith("listening on http://127.0.0.1:")
    url, source = (re.search("(?m)^%s=(.*)$" % name, result.out).group(1)
                   for name in ("SCRIPTO_API_BASE_URL", "SCRIPTO_CODE_FROM"))  # fmt: skip
    assert url == result.out.split()[2]
    folder = source[len("maildir:") :]
    assert os.path.isabs(folder) and not os.path.exists(os.path.dirname(folder))
    assert not (scripto.home / ".local").exists()


@pytest.mark.slow
def test_flags_say_where_its_things_are(scripto, tmp_path):
    words = ["--db", str(tmp_path / "db"), "--mail", "maildir:post"]
    result = scripto.run("serve", *words, "--", "sh", "-c", "echo $SCRIPTO_CODE_FROM",
                         cwd=str(tmp_path))  # fmt: skip
    assert result.out.splitlines()[1] == "maildir:%s" % (tmp_path / "post")
    assert (tmp_path / "db").exists()


@pytest.mark.parametrize("command, status", [
    ("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137),
])  # fmt: skip
@pytest.mark.slow
def test_it_ends_as_the_command_did(scripto, command, status):
    assert beside(scripto, "sh", "-c", command).status == status


@pytest.mark.slow
def test_what_stands_behind_is_the_command_s_alone(scripto):
    words = ["echo", "--json", "--version", "--help", "-h", "--port", "1", "--"]
    result = beside(scripto, *words)
    assert result.out.splitlines()[1] == " ".join(words[1:])
    assert scripto.run("serve", "--json", "--", "true").out.startswith('{"success": true')


@pytest.mark.parametrize("command", ["/nonexistent/command", ""])
def test_a_command_that_is_none_is_refused(scripto, command):
    result = beside(scripto, command)
    assert result.status == 2 and result.err.startswith("✗ ") and result.out == ""
    words = ["serve", "--json", "--", command]
    assert scripto.run(*words).error["code"] == "invalid-argument"


def test_other_commands_take_nothing_behind(scripto):
    assert scripto.run("config", "show", "--", "x", "--json").status == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_signals_go_to_the_command_and_no_process_is_left(scripto, number):
    """It may take its time to end, and decides how. What it started would hold the pipe open."""
    script = (
        "import os, signal, subprocess, sys, time\n"
        "def end(number, _): time.sleep(0.5); os.write(1, b'got %d' % number); os._exit(5)\n"
        "for number in (2, 15): signal.signal(number, end)\n"
        "print('pid', os.getpid(), flush=True)\n"
        "subprocess.Popen([sys.executable, '-c', 'import signal, time; '\n"
        "    'signal.signal(15, signal.SIG_IGN); signal.signal(2, signal.SIG_IGN); '\n"
        "    'print(0, flush=True); time.sleep(60)'])\n"
        "time.sleep(60)\n"
    )
    process = scripto.start("serve", "--", sys.executable, "-c", script)
    process.stdout.readline()
    pid = int(process.stdout.readline().split()[1])
    assert process.stdout.readline() == b"0\n"  # what it started is as far as that
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 5 and out.split() == [b"got", b"%d" % number]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"])
@pytest.mark.slow
def test_no_signal_leaves_anything_behind(scripto, tmp_path, name):
    """Of a backend for one command: database and mails are in the folder for temporary files."""
    process = scripto.start("serve", "--", "sleep", "60", env={"TMPDIR": str(tmp_path)})
    assert process.stdout.readline().startswith(b"listening")
    assert list(tmp_path.glob("scripto-*"))
    wait_until(lambda: b"sleep" in command_lines(process.pid), what="the command")
    process.send_signal(getattr(signal, name))
    process.communicate(timeout=20)
    assert process.returncode == 128 + getattr(signal, name)
    assert list(tmp_path.glob("scripto-*")) == []


def command_lines(pid):
    """Those of a process's children."""
    found = subprocess.run(["ps", "-o", "args=", "--ppid", str(pid)], stdout=subprocess.PIPE)
    return found.stdout


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGQUIT"])
@pytest.mark.slow
def test_one_signal_is_enough_and_more_break_nothing(start_backend, edge, name):
    """More of them, while it comes to its end: a client that is still heard takes it a second."""
    backend = start_backend(python=edge)
    with connect(backend) as early:
        for _ in range(20):
            backend.process.send_signal(getattr(signal, name))
            time.sleep(0.02)
        early.sendall(HEALTHZ)
        assert statuses(read_all(early)) == [200]
    assert backend.stop() == 0 and backend.log().count("/healthz 200") == 1
    assert [path.name for path in backend.folder.glob("scripto.db*")] == ["scripto.db"]


@pytest.mark.slow
def test_a_signal_that_was_ignored_at_its_start_stays_so(newest, tmp_path):
    """As with nohup. PyPy does not tell what is ignored."""
    words = ["serve", "--port", "0", "--db", str(tmp_path / "db")]
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    process = newest.start(*words, preexec_fn=ignore, stderr=subprocess.DEVNULL)
    port = int(process.stdout.readline().decode().rpartition(":")[2])
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    assert statuses(raw(type("Site", (), {"port": port}), HEALTHZ)) == [200]
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_no_command_behind_the_dashes_is_refused(scripto):
    """As with an empty variable in a script."""
    for command in ("serve", "run"):
        assert scripto.run(command, "--json", "--").status == 2


@pytest.mark.slow
def test_a_command_finds_a_backend_that_listens_everywhere(scripto):
    words = ["serve", "--host", "0.0.0.0", "--", "sh", "-c", "echo $SCRIPTO_API_BASE_URL"]
    assert re.search(r"http://127\.0\.0\.1:\d+\n\Z", scripto.run(*words).out)


@pytest.mark.slow
def test_the_command_has_the_umask_that_it_was_given(scripto, tmp_path):
    umask = os.umask(0o027)
    try:
        beside(scripto, "sh", "-c", "umask; touch made", cwd=str(tmp_path))
    finally:
        os.umask(umask)
    assert oct((tmp_path / "made").stat().st_mode & 0o777) == "0o640"


