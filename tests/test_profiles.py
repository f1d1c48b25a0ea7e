"""The profile file: whole at every moment, private, where it belongs; and no code is spent whose
key cannot be stored."""
import ctypes
import fcntl
import itertools
import json
import os
import random
import re
import resource
import shlex
import signal
import socket
import stat
import subprocess
import threading
import time

import pytest

import conftest
from client import (  # fmt: skip
    EMAIL, EMAILS, GOOD, KEY, LOGIN_COMPLETE, LOGIN_REQUEST, ME, NOWHERE, OFFLINE, OTHER_KEY, SENT,
    complete, files_beside, minted, mode_of, refusal, refused, some_state, store,
    without_privileges)
from conftest import EDGES, PYTHONS, Result, Scripto, case_id, http_reply, in_turn, wait_until

NEW_USER_NAMESPACE, UNKNOWN_UID = 0x10000000, 54321  # <linux/sched.h>


def as_unknown_uid():
    """For preexec_fn: this user by another number, of which no user database knows."""
    outside = os.geteuid()
    if ctypes.CDLL(None).unshare(NEW_USER_NAMESPACE):
        raise OSError("no user namespaces here")
    with open("/proc/self/uid_map", "w") as uid_map:
        uid_map.write("%d %d 1" % (UNKNOWN_UID, outside))


@pytest.fixture
def impatient(changed):
    """The program with another patience: it waits for a lock a moment instead of half a minute."""
    return changed(LOCK_SECONDS=0.3)


@pytest.fixture
def hold_lock():
    """Holds a file's lock until the test is over, as a program does that hangs in mid-write."""
    held = []

    def hold(config):
        config.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        held.append(open(str(config) + ".lock", "w"))
        fcntl.flock(held[-1], fcntl.LOCK_EX)
        return held[-1]

    yield hold
    for file in held:
        file.close()


@pytest.fixture
def small_disk(tmp_path):
    """An empty file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "none", str(folder)]
    try:
        done = subprocess.run(mount, stderr=subprocess.DEVNULL).returncode == 0
    except FileNotFoundError:
        done = False
    if not done:
        pytest.skip("only root can mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def end_of(process, timeout=20):
    return Result(process, *process.communicate(timeout=timeout))


def wait_for_lock(process, config):
    """Returns when the program has its lock file open, which is when it waits for the lock."""
    lock, folder = str(config) + ".lock", "/proc/%d/fd" % process.pid

    def has_it_open():
        for name in os.listdir(folder):
            try:
                if os.readlink(os.path.join(folder, name)) == lock:
                    return True
            except FileNotFoundError:
                pass  # closed in between

    wait_until(has_it_open, what="the program to open its lock")


def fill(folder):
    """Leaves no byte free on a small disk; returns the file that takes the room."""
    path = folder / "filler"
    assert os.path.ismount(str(folder)), "this would fill the real disk"
    with open(str(path), "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 512)
        except OSError:
            return path


# ---- Where the files are ----


def test_xdg_config_home_is_where_the_profiles_live(scripto, tmp_path):
    env = {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    assert scripto.run("config", "set", "--api-key", KEY, env=env).status == 0
    path = tmp_path / "xdg" / "scripto" / "config.json"
    assert path.exists() and list(scripto.home.iterdir()) == []
    assert scripto.run("config", "show", "--json", env=env).data["path"] == str(path)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("value", ["", "xdg", "./xdg", "~/xdg"])
def test_an_xdg_variable_that_is_empty_or_relative_is_ignored(scripto, tmp_path, value):
    (tmp_path / "here").mkdir()
    env = {"XDG_CONFIG_HOME": value}
    scripto.run("config", "set", "--api-key", KEY, env=env, cwd=str(tmp_path / "here"))
    assert scripto.config.exists() and list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("value, place", [
    ("{home}/data", "data"), ("data", ".local/share"),
])
@pytest.mark.slow
def test_the_backends_data_is_where_xdg_data_home_says(newest, value, place):
    env = {"XDG_DATA_HOME": value.format(home=newest.home)}
    server = newest.start("serve", "--port", "0", env=env, stderr=subprocess.DEVNULL)
    with server:
        first = server.stdout.readline()
        server.send_signal(signal.SIGTERM)
    database = newest.home / place / "scripto" / "scripto.db"
    assert first.startswith(b"listening on ") and server.returncode == 0
    assert stat.S_IMODE(database.stat().st_mode) == 0o600


# ---- No home folder ----


def passwd_says(home):
    """Flags and environment for a run with HOME unset and that passwd entry, None for none."""
    code = ("import pwd, runpy, sys, types\n"
            "def getpwuid(uid):\n"
            "    if not %(home)r: raise KeyError(uid)\n"
            "    return types.SimpleNamespace(pw_dir=%(home)r)\n"
            "pwd.getpwuid, sys.argv = getpwuid, sys.argv[1:]\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')\n")  # fmt: skip
    return {"flags": ["-c", code % {"home": home}], "env": {"HOME": None}}


def test_without_home_the_passwd_entry_counts(scripto):
    run = passwd_says(str(scripto.home))
    assert scripto.run("config", "set", "--api-key", KEY, **run).status == 0
    assert scripto.config.exists()


@pytest.mark.parametrize("words", [
    ["use"], ["logout"], ["config", "show"], ["config", "clear", "--yes", "--all"], LOGIN_COMPLETE,
    ["config", "set", "--api-key", KEY], ["whoami", "--profile", "you"],
], ids=" ".join)  # fmt: skip
def test_no_home_is_an_error_that_names_the_way_out(newest, raw_server, words):
    server, run = raw_server(minted(EMAIL)), passwd_says(None)
    run["env"]["SCRIPTO_API_BASE_URL"] = server.url
    error = refused(newest.run(*words, "--json", **run), "failed-precondition", 1)
    assert "XDG_CONFIG_HOME" in error["nextAction"] or "SCRIPTO_API_KEY" in error["nextAction"]
    assert server.requests == []


def test_with_no_home_the_way_out_is_one(scripto, raw_server, tmp_path):
    server = raw_server(http_reply({"user": ME}))
    run = passwd_says(None)
    run["env"].update(SCRIPTO_API_BASE_URL=server.url)
    assert scripto.run("whoami", "--api-key", KEY, **run).status == 0
    run["env"].update(SCRIPTO_API_KEY=KEY)
    assert scripto.run("whoami", **run).status == 0
    run["env"].update(SCRIPTO_API_KEY=None, XDG_CONFIG_HOME=str(tmp_path / "xdg"))
    assert scripto.run("config", "set", "--api-key", KEY, **run).status == 0
    assert scripto.run("whoami", **run).status == 0


@pytest.mark.parametrize("words", [["--version"], ["--help"], LOGIN_REQUEST], ids=" ".join)
def test_no_home_is_no_error_where_no_file_is_needed(newest, raw_server, words):
    run = passwd_says(None)
    run["env"]["SCRIPTO_API_BASE_URL"] = raw_server(SENT).url
    assert newest.run(*words, **run).status == 0


# ---- Whole at every moment ----


@pytest.mark.slow
def test_sixty_programs_writing_at_once_leave_sixty_profiles(tmp_path):
    scriptos = itertools.cycle([Scripto(python, tmp_path / "home") for python in EDGES])
    keys = {"p%d" % number: "scripto_key%d" % number for number in range(60)}
    running = [
        each.start("config", "set", "--api-key", key, "--profile-name", name)
        for (name, key), each in zip(keys.items(), scriptos)
    ]
    results = [end_of(process, 60) for process in running]
    assert [result.status for result in results] == [0] * 60
    profiles = next(scriptos).state()["profiles"]
    assert {name: profile["apiKey"] for name, profile in profiles.items()} == keys
    assert not files_beside(next(scriptos).config)


@pytest.mark.slow
def test_different_commands_at_once_do_not_undo_each_other(tmp_path):
    """Removals, a switch and additions meet: each has its effect and no other."""
    scriptos = itertools.cycle([Scripto(python, tmp_path / "home") for python in EDGES])
    scripto = next(scriptos)
    profiles = {"old%d" % number: {"apiKey": KEY} for number in range(8)}
    scripto.write_config({"activeProfile": "old0", "profiles": profiles})
    running = [next(scriptos).start("logout", "old%d" % number) for number in range(4)]
    running += [next(scriptos).start("use", "old7")]
    running += [
        next(scriptos).start("config", "set", "--api-key", KEY, "--profile-name", "new%d" % number)
        for number in range(8)
    ]
    for process in running:
        assert end_of(process, 60).status == 0
    expected = {"old%d" % number for number in range(4, 8)} | {"new%d" % n for n in range(8)}
    assert set(scripto.state()["profiles"]) == expected


def temporary_files(scripto):
    return list(scripto.config.parent.glob("config.json.*tmp"))


DEADLY = r"""
import os, runpy, signal, sys

at, steps = int(sys.argv.pop(1)), 0


def deadly(name, real):
    def call(*values, **named):
        global steps
        steps += 1
        if steps == at and name == "fsync":
            os.ftruncate(values[0], os.fstat(values[0]).st_size // 2)  # it died while it wrote
        if steps == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*values, **named)

    return call


for name in ("open", "fsync", "replace", "rename", "link", "unlink", "chmod", "fchmod", "close"):
    setattr(os, name, deadly(name, getattr(os, name)))
runpy.run_path(PROGRAM, run_name="__main__")
"""


@pytest.mark.slow
def test_kill_9_at_any_step_of_a_write_leaves_a_whole_file_and_no_held_lock(edge, tmp_path):
    """Before each call to the system in turn, until one run gets to its end."""
    scripto = Scripto(edge, tmp_path / "home")
    code, names, kills = DEADLY.replace("PROGRAM", repr(conftest.PROGRAM)), {"you", "them"}, 0
    scripto.write_config(some_state(filler="x" * 100000))
    while True:
        name = "p%d" % kills
        words = [str(kills + 1), "config", "set", "--api-key", KEY, "--profile-name", name]
        status = scripto.run(code, *words, program="-c").status
        state = scripto.state()
        assert names <= set(state["profiles"]) <= names | {name}
        assert len(state["filler"]) == 100000 and mode_of(scripto.config) == 0o600
        names = set(state["profiles"])
        if status == 0:
            break
        assert status == -signal.SIGKILL
        kills += 1
    assert kills >= 6, "the kills came too late to test anything"
    assert store(scripto, timeout=10).data["profile"] == "new"
    assert not files_beside(scripto.config)


@pytest.mark.slow
def test_kill_9_at_any_moment_of_a_run_loses_nothing(newest):
    newest.write_config(some_state())
    start = time.monotonic()
    store(newest).data
    whole_run = time.monotonic() - start
    before, chance = newest.state(), random.Random(2)
    for _ in range(12):
        process = newest.start("logout", "new")
        time.sleep(chance.random() * whole_run)
        process.kill()
        process.communicate()
        assert set(newest.state()["profiles"]) in ({"you", "them", "new"}, {"you", "them"})
        assert store(newest, timeout=10).status == 0
    assert set(newest.state()["profiles"]) == set(before["profiles"])
    assert not files_beside(newest.config)


@pytest.mark.slow
def test_a_reader_never_sees_half_a_file(newest):
    """The file is read over and over while programs rewrite it."""
    newest.write_config(some_state(filler="x" * 500000))
    writers = [newest.start("use", name) for name in ("you", "them") * 5]
    while any(writer.poll() is None for writer in writers):
        state = newest.state()
        assert set(state["profiles"]) == {"you", "them"} and len(state["filler"]) == 500000
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0


@in_turn("words", (
    ["config", "set", "--api-key", KEY, "--json"], ["use", "you", "--json"],
    ["logout", "you", "--json"], ["config", "clear", "--all", "--yes", "--json"],
    complete("you@example.com", "123456", NOWHERE),
))  # fmt: skip
@pytest.mark.slow
def test_a_held_lock_is_a_clear_error_and_not_a_hang(words, scripto, impatient, hold_lock):
    scripto.write_config(some_state())
    hold_lock(scripto.config)
    start = time.monotonic()
    refusal(scripto.run(*words, program=impatient), scripto.config)
    assert scripto.state() == some_state() and time.monotonic() - start < 15


@pytest.mark.parametrize("words", (("use",), ("auth", "token"), ("config", "show")), ids="-".join)
def test_what_only_reads_waits_for_no_lock(words, newest, hold_lock):
    newest.write_config(some_state())
    hold_lock(newest.config)
    assert newest.run(*words, timeout=10).status == 0


def test_a_command_waits_for_the_writer_before_it(newest, hold_lock):
    newest.write_config(some_state())
    with hold_lock(newest.config):
        process = newest.start("use", "them")
        wait_for_lock(process, newest.config)
        assert process.poll() is None and newest.state()["activeProfile"] == "you"
    assert end_of(process).status == 0
    assert newest.state()["activeProfile"] == "them"


def test_a_left_over_temporary_file_is_no_obstacle(scripto):
    scripto.write_config(some_state())
    beside = scripto.config.with_name("config.json.tmp")
    beside.write_text("half a fi")
    beside.chmod(0o444)
    assert store(scripto).status == 0
    assert not files_beside(scripto.config) and "new" in scripto.state()["profiles"]


def test_a_temporary_file_that_is_a_link_is_not_written_through(scripto, tmp_path):
    scripto.write_config(some_state())
    victim = tmp_path / "victim"
    victim.write_text("precious")
    scripto.config.with_name("config.json.tmp").symlink_to(victim)
    store(scripto)
    assert victim.read_text() == "precious" and mode_of(scripto.config) == 0o600


# ---- A file that cannot be understood ----

BAD_FILES = {
    "truncated": GOOD[:-30],
    "empty": b"",
    "blank": b" \n",
    "zeros": b"\0" * 300,
    "binary": bytes(range(256)) * 20,
    "utf-16": GOOD.decode().encode("utf-16"),
    "invalid-utf-8": GOOD.replace(b"user_1", b"user_\xff"),
    "list": b"[1, 2]",
    "text": b'"profiles"',
    "null": b"null",
    "profiles-list": b'{"profiles": ["you"]}',
    "profiles-null": b'{"activeProfile": "you", "profiles": null}',
    "profile-text": b'{"activeProfile": "you", "profiles": {"you": "%s"}}' % KEY.encode(),
    "active-number": b'{"activeProfile": 1, "profiles": {"you": {}}}',
    "nested-lists": b'{"profiles": {}, "x": ' + b"[" * 100000 + b"]" * 100000 + b"}",
    "nested-objects": b'{"profiles":' * 100000 + b"{}" + b"}" * 100000,
    "unclosed": b"[" * 1000000,
    "too-large": GOOD + b" " * (5 << 20),
    "too-large-zeros": b"\0" * (5 << 20),
}
COMMANDS = [  # every command that reads or writes the profile file
    ["use"], ["use", "you"], ["logout"], ["logout", "you"], ["config", "show"],
    ["config", "clear", "--all", "--yes"], ["config", "clear", "--profile", "you", "--yes"],
    ["config", "set", "--api-key", KEY], ["auth", "token"], ["auth", "token", "--profile", "you"],
    ["whoami"], ["whoami", "--profile", "you"],
    ["auth", "login-request", "--email", "you@example.com", "--profile", "you"],
    ["auth", "login-complete", "--email", "you@example.com", "--code", "123456"],
]  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=case_id)
def test_no_command_takes_a_bad_file_for_an_empty_one(words, newest):
    """Each command says which file it is and what to do, and leaves it byte for byte."""
    for name in ("truncated", "binary", "list", "nested-objects"):
        newest.write_config(BAD_FILES[name])
        refusal(newest.run(*words, "--json", env=OFFLINE), newest.config)
        assert newest.config.read_bytes() == BAD_FILES[name]
    assert not files_beside(newest.config)


@in_turn("content", BAD_FILES)
def test_a_bad_file_of_any_kind_is_reported_and_stays(content, scripto, raw_server):
    """It costs no code either."""
    server = raw_server(minted())
    scripto.write_config(content)
    refusal(scripto.run(*complete("you@example.com", "123456", server.url)), scripto.config)
    assert scripto.config.read_bytes() == content and not server.requests


@pytest.mark.parametrize("content", (GOOD[:-30], b"", b"[]"), ids=("truncated", "empty", "list"))
def test_doctor_names_the_bad_file_and_leaves_it_alone(content, scripto):
    scripto.write_config(content)
    result = scripto.run("doctor", "--api-url", NOWHERE)
    assert result.status == 1 and str(scripto.config) in result.out
    assert scripto.config.read_bytes() == content
    assert os.listdir(str(scripto.config.parent)) == ["config.json"]


def test_the_hint_for_a_bad_file_mends_the_situation(scripto):
    """`mv …` in the hint can be pasted, also where the path needs quoting."""
    home = Scripto(scripto.python, scripto.home / "my home; touch x")
    home.write_config(b"{")
    command = re.search("mv .*", refusal(store(home), home.config)["nextAction"]).group()
    subprocess.run(command, shell=True, check=True, cwd=str(home.home))
    assert store(home).status == 0 and not (home.home / "x").exists()


def test_a_file_nested_almost_too_deeply_is_kept_or_refused(scripto):
    """What can be read but not be written again must not get lost in between."""
    for depth in (150, 300, 600, 900):
        nest = b"[" * depth + b"]" * depth
        content = b'{"profiles": {}, "x": ' + nest + b"}"
        scripto.write_config(content)
        if store(scripto).status:
            assert scripto.config.read_bytes() == content
        else:
            assert nest in b"".join(scripto.config.read_bytes().split())


def test_a_file_that_grows_by_a_write_can_still_be_read(newest):
    """Escapes and indentation make more of it than there was: refused, or read again."""
    content = json.dumps(some_state(x="é" * 1500000), ensure_ascii=False).encode()
    newest.write_config(content)
    if store(newest).status:
        assert newest.config.read_bytes() == content
    else:
        assert newest.run("use", "--json").status == 0


def test_a_byte_order_mark_is_read_past(scripto):
    scripto.write_config(b"\xef\xbb\xbf" + GOOD)
    assert scripto.run("auth", "token").out.strip() == KEY
    store(scripto).data
    assert set(scripto.state()["profiles"]) == {"you", "them", "new"}


# ---- Something else in a file's place ----


def put_fifo(path):
    os.mkfifo(str(path), 0o600)


def put_device(path):
    """/dev/zero, which never ends; by a link for who may not make a device."""
    try:
        os.mknod(str(path), 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    except PermissionError:
        path.symlink_to("/dev/zero")


def put_folder(path):
    path.mkdir()
    (path / "content").write_text("precious")


def put_socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(str(path.parent))  # a socket's path has room for 107 bytes only
        try:
            listener.bind(path.name)
        finally:
            os.chdir(here)


def put_looping_link(path):
    path.symlink_to(path)


THINGS = [put_fifo, put_device, put_folder, put_socket, put_looping_link]


@pytest.fixture(params=THINGS, ids=lambda put: put.__name__[4:])
def thing(request):
    return request.param


def put_in_place(thing, scripto):
    scripto.config.parent.mkdir(parents=True, mode=0o700)
    thing(scripto.config)


@pytest.mark.parametrize("words", COMMANDS, ids=case_id)
def test_no_command_hangs_at_a_fifo_in_the_files_place(words, newest):
    put_in_place(put_fifo, newest)
    refusal(newest.run(*words, "--json", env=OFFLINE, timeout=20), newest.config)


def test_what_is_in_the_files_place_is_reported_and_stays(thing, scripto, raw_server):
    """It costs no code either."""
    server = raw_server(minted())
    put_in_place(thing, scripto)
    before = os.lstat(str(scripto.config))
    for words in (["use", "--json"], complete("you@example.com", "123456", server.url)):
        refusal(scripto.run(*words, timeout=20), scripto.config)
    after = os.lstat(str(scripto.config))
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    assert not files_beside(scripto.config) and not server.requests


@pytest.mark.parametrize("content", (b"", GOOD), ids=("silent", "good"))
def test_a_fifo_with_a_writer_is_no_profile_file_either(content, scripto):
    put_in_place(put_fifo, scripto)
    writer = os.open(str(scripto.config), os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(writer, content)
        refusal(store(scripto, timeout=20), scripto.config)
        assert stat.S_ISFIFO(os.lstat(str(scripto.config)).st_mode)
    finally:
        os.close(writer)


@pytest.mark.parametrize("suffix", (".lock", ".tmp"))
def test_no_hang_and_no_loss_at_what_is_in_a_side_files_place(thing, suffix, newest):
    """It may work all the same; where it does not, the error comes at once."""
    newest.write_config(GOOD)
    thing(newest.config.with_name("config.json" + suffix))
    result = store(newest, timeout=20)
    if result.status:
        refusal(result, newest.config)
        assert newest.config.read_bytes() == GOOD
    else:
        assert set(newest.state()["profiles"]) == {"you", "them", "new"}


def test_a_link_stays_a_link(scripto, tmp_path, shared):
    """Every command that writes changes what the link leads to."""
    real = tmp_path / "dotfiles" / "scripto.json"
    real.parent.mkdir()
    real.parent.chmod(0o755)  # whatever the umask
    real.write_bytes(GOOD)
    scripto.config.parent.mkdir(parents=True, mode=0o700)
    scripto.config.symlink_to(os.path.relpath(str(real), str(scripto.config.parent)))
    store(scripto).data
    scripto.run("use", "them", "--json").data
    scripto.run("logout", "you", "--json").data
    name = scripto.sign_in(shared, next(EMAILS))["profile"]
    assert scripto.config.is_symlink() and not real.is_symlink()
    assert set(json.loads(real.read_text())["profiles"]) == {"them", "new", name}
    assert mode_of(real) == 0o600 and mode_of(real.parent) == 0o755
    assert not files_beside(real)


def test_a_linked_folder_stays_a_link(scripto, tmp_path):
    real = tmp_path / "dotfiles"
    real.mkdir(mode=0o755)
    scripto.config.parent.parent.mkdir()
    scripto.config.parent.symlink_to(real)
    store(scripto).data
    assert scripto.config.parent.is_symlink() and mode_of(real / "config.json") == 0o600


def test_a_link_that_leads_nowhere_is_filled(scripto, tmp_path):
    scripto.config.parent.mkdir(parents=True, mode=0o700)
    scripto.config.symlink_to(tmp_path / "later.json")
    assert scripto.run("use", "--json").data["profiles"] == []
    store(scripto).data
    assert scripto.config.is_symlink() and mode_of(tmp_path / "later.json") == 0o600
    assert set(scripto.state()["profiles"]) == {"new"}


def test_a_link_to_a_missing_folder_costs_no_code_or_works(scripto, tmp_path, raw_server):
    server = raw_server(minted())
    scripto.config.parent.mkdir(parents=True, mode=0o700)
    scripto.config.symlink_to(tmp_path / "later" / "config.json")
    result = scripto.run(*complete("you@example.com", "123456", server.url))
    assert scripto.config.is_symlink()
    assert result.status == 0 or (refusal(result, scripto.config) and not server.requests)


# ---- A home that cannot be written: an error before the code is spent ----


def home_is_a_file(scripto, request):
    (scripto.home / "gone").write_text("")
    return {"env": {"HOME": str(scripto.home / "gone")}}


def no_home_at_all(scripto, request):
    try:
        subprocess.run(["true"], preexec_fn=as_unknown_uid)
    except subprocess.SubprocessError:
        pytest.skip("no user namespaces here")
    return {"env": {"HOME": None}, "preexec_fn": as_unknown_uid}


def read_only_config_folder(scripto, request):
    (scripto.home / ".config").mkdir(mode=0o500)
    return {"preexec_fn": without_privileges}


def read_only_scripto_folder(scripto, request):
    scripto.write_config(GOOD)
    scripto.config.parent.chmod(0o500)
    return {"preexec_fn": without_privileges}


def closed_scripto_folder(scripto, request):
    scripto.write_config(GOOD)
    scripto.config.parent.parent.chmod(0o000)
    request.addfinalizer(lambda: scripto.config.parent.parent.chmod(0o700))
    return {"preexec_fn": without_privileges}


def unreadable_file(scripto, request):
    scripto.write_config(GOOD, mode=0o000)
    return {"preexec_fn": without_privileges}


def read_only_disk(scripto, request):
    disk = request.getfixturevalue("small_disk")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    return {"env": {"XDG_CONFIG_HOME": str(disk)}}


def folder_is_a_file(scripto, request):
    (scripto.home / ".config").write_text("")
    return {}


def home_of_another_user(scripto, request):
    """In which others may only look."""
    if os.geteuid():
        return {"env": {"HOME": "/"}}
    for path in (scripto.home, *scripto.home.glob("**/*")):
        os.chown(str(path), 12345, 12345)
        path.chmod(mode_of(path) & ~0o022)  # whatever the umask
    return {"preexec_fn": without_privileges}


def config_folder_of_another_user(scripto, request):
    if os.geteuid():
        pytest.skip("only root can give a folder away")
    scripto.config.parent.parent.mkdir(mode=0o755)
    os.chown(str(scripto.config.parent.parent), 12345, 12345)
    return {"preexec_fn": without_privileges}


def full_disk(scripto, request):
    disk = request.getfixturevalue("small_disk")
    fill(disk)
    return {"env": {"XDG_CONFIG_HOME": str(disk)}}


def disk_full_beside_the_file(scripto, request):
    """There is a file already, and a little room, but not for another one."""
    disk = request.getfixturevalue("small_disk")
    (disk / "scripto").mkdir(mode=0o700)
    (disk / "scripto" / "config.json").write_text(json.dumps(some_state(x="x" * 20000)))
    (disk / "scripto" / "config.json.lock").write_text("")
    with open(str(fill(disk)), "r+b") as filler:
        filler.truncate(filler.seek(0, os.SEEK_END) - 12288)
    return {"env": {"XDG_CONFIG_HOME": str(disk)}}


def no_byte_may_be_written(scripto, request):
    """As a quota, or a full disk where nothing can be mounted."""
    limit = (resource.RLIMIT_FSIZE, (0, 0))
    return {"preexec_fn": lambda: resource.setrlimit(*limit)}


def no_room_for_one_more_profile(scripto, request):
    """The file as it is can be written again, but not with a new profile in it."""
    scripto.write_config(json.dumps(some_state(), indent=2) + "\n")
    size = scripto.config.stat().st_size
    limit = (resource.RLIMIT_FSIZE, (size + 10, size + 10))
    return {"preexec_fn": lambda: resource.setrlimit(*limit)}


BROKEN_HOMES = [
    home_is_a_file, no_home_at_all, read_only_config_folder,
    read_only_scripto_folder, closed_scripto_folder, unreadable_file, read_only_disk,
    folder_is_a_file, home_of_another_user, config_folder_of_another_user, full_disk,
    disk_full_beside_the_file, no_byte_may_be_written, no_room_for_one_more_profile,
]  # fmt: skip


@in_turn("breakage", BROKEN_HOMES)
def test_a_home_that_cannot_be_written_costs_no_code(breakage, scripto, shared, tmp_path, request):
    """The code still works afterwards, from a home that is well."""
    email, well = next(EMAILS), Scripto(PYTHONS[-1], tmp_path / "well")
    login = ["auth", "login-request", "--email", email, "--api-url", shared.url]
    assert well.run(*login).status == 0
    words = complete(email, shared.code_for(email), shared.url)
    refusal(scripto.run(*words, timeout=20, **breakage(scripto, request)))
    assert well.run(*words).data["email"] == email


@in_turn("breakage", (
    read_only_scripto_folder, unreadable_file, home_of_another_user, no_byte_may_be_written,
))  # fmt: skip
def test_a_write_that_fails_leaves_the_file_as_it_was(breakage, scripto, request):
    scripto.write_config(GOOD)
    how = breakage(scripto, request)
    folder_mode = mode_of(scripto.config.parent)
    for words in (["config", "set", "--api-key", KEY], ["use", "them"], ["logout", "you"]):
        if how.get("env", {}).get("HOME") != "/":
            refusal(scripto.run(*words, "--json", **how), scripto.config)
    if breakage is unreadable_file:
        scripto.config.chmod(0o600)  # for this reader, which may be an ordinary user
    assert scripto.config.read_bytes() == GOOD and not files_beside(scripto.config)
    assert mode_of(scripto.config.parent) == folder_mode


def test_a_full_disk_keeps_the_file_and_leaves_no_litter(scripto, small_disk):
    env = {"XDG_CONFIG_HOME": str(small_disk)}
    store(scripto, "first", KEY, env=env).data
    config = small_disk / "scripto" / "config.json"
    content, filler = config.read_bytes(), fill(small_disk)
    refusal(store(scripto, env=env), config)
    assert config.read_bytes() == content and not files_beside(config)
    assert scripto.run("auth", "token", env=env).out.strip() == KEY
    filler.unlink()
    assert store(scripto, env=env).status == 0


def test_without_a_home_the_hint_names_the_ways_out_and_they_work(scripto, request, raw_server):
    how = no_home_at_all(scripto, request)
    hint = refusal(store(scripto, **how))["nextAction"]
    assert "XDG_CONFIG_HOME" in hint and "SCRIPTO_API_KEY" in hint
    folder = {"HOME": None, "XDG_CONFIG_HOME": str(scripto.home)}
    assert store(scripto, **dict(how, env=folder)).status == 0
    key = {"HOME": None, "SCRIPTO_API_KEY": KEY}
    server = raw_server(http_reply({"user": {"id": "u", "email": "e@example.com", "name": "n"}}))
    words = ["whoami", "--api-url", server.url, "--json"]
    assert scripto.run(*words, **dict(how, env=key)).data["keySource"] == "SCRIPTO_API_KEY"
    assert scripto.run("auth", "token", **dict(how, env=key)).out.strip() == KEY


@pytest.mark.parametrize("value", ("", "relative/folder", "."))
def test_an_xdg_variable_that_is_no_absolute_path_is_ignored(value, newest, tmp_path):
    store(newest, env={"XDG_CONFIG_HOME": value}, cwd=str(tmp_path)).data
    assert set(newest.state()["profiles"]) == {"new"}
    assert not list(tmp_path.glob("**/relative"))


# ---- The key of a spent code is not lost ----


def junk_in_the_file(scripto):
    scripto.config.write_bytes(b"{")
    return scripto.config.unlink


def folder_in_the_files_place(scripto):
    aside = scripto.home / "aside"
    scripto.config.rename(aside)
    scripto.config.mkdir()

    def mend():
        scripto.config.rmdir()
        aside.rename(scripto.config)

    return mend


def file_in_the_folders_place(scripto):
    folder, aside = scripto.config.parent, scripto.home / "aside"
    folder.rename(aside)
    folder.write_text("")

    def mend():
        folder.unlink()
        aside.rename(folder)

    return mend


def breaking_server(raw_server, scripto, breakage):
    """A backend that mints a key after something broke the profile file; and what mends it."""
    menders = []

    def answer(connection):
        menders.append(breakage(scripto))
        connection.sendall(minted())

    return raw_server(answer), menders


@in_turn("breakage", (
    junk_in_the_file, folder_in_the_files_place, file_in_the_folders_place,
))  # fmt: skip
@pytest.mark.parametrize("as_json", (True, False), ids=("json", "human"))
def test_a_key_that_cannot_be_stored_is_handed_over_once(breakage, as_json, scripto, raw_server):
    """With the command that stores it, which then does just that."""
    server, menders = breaking_server(raw_server, scripto, breakage)
    words = complete("you@example.com", "123456", server.url)
    result = scripto.run(*words[: None if as_json else -1])
    assert result.status == 1 and (result.out + result.err).count(KEY) == 1
    assert (KEY in result.out) is as_json
    shown = refusal(result)["nextAction"] if as_json else result.err
    command = shlex.split(re.search("scripto config set .*", shown).group())
    menders[0]()
    assert scripto.run(*command[1:]).status == 0
    assert scripto.run("auth", "token").out.strip() == KEY
    profile = scripto.state()["profiles"][scripto.state()["activeProfile"]]
    assert (profile["apiKey"], profile["baseUrl"]) == (KEY, server.url)


def test_a_disk_that_fills_in_mid_sign_in_does_not_lose_the_key(scripto, small_disk, raw_server):
    scripto.env["XDG_CONFIG_HOME"] = str(small_disk)

    def answer(connection):
        fill(small_disk)
        connection.sendall(minted())

    words = complete("you@example.com", "123456", raw_server(answer).url)
    command = shlex.split(re.search("scripto .*", refusal(scripto.run(*words))["nextAction"])[0])
    (small_disk / "filler").unlink()
    assert scripto.run(*command[1:]).status == 0
    assert scripto.run("auth", "token").out.strip() == KEY


def test_the_command_that_stores_a_handed_over_key_takes_no_other_ones_place(newest, raw_server):
    """Another's profile has the name that the email gives: it is still there afterwards."""
    state = some_state()
    state["profiles"]["you"].update(email="you@elsewhere.example", apiKey=OTHER_KEY)

    newest.write_config(state)
    server, menders = breaking_server(raw_server, newest, folder_in_the_files_place)
    error = refusal(newest.run(*complete("you@example.com", "123456", server.url)))
    menders[0]()
    newest.run(*shlex.split(re.search("scripto .*", error["nextAction"]).group())[1:])
    profiles = newest.state()["profiles"]
    assert profiles["you"]["apiKey"] == OTHER_KEY
    assert KEY in [profile["apiKey"] for profile in profiles.values()]


def test_ctrl_c_after_the_code_was_spent_still_hands_the_key_over(scripto, raw_server, hold_lock):
    answered = threading.Event()

    def answer(connection):
        hold_lock(scripto.config)
        connection.sendall(minted())
        answered.set()

    process = scripto.start(*complete("you@example.com", "123456", raw_server(answer).url))
    assert answered.wait(20)
    wait_for_lock(process, scripto.config)
    process.send_signal(signal.SIGINT)
    result = end_of(process)
    assert result.status != 0 and KEY in result.error["nextAction"]
    assert result.error["message"].endswith("could not be stored. Interrupted.")


@pytest.mark.parametrize("as_json", (True, False), ids=("json", "human"))
@in_turn("words", (
    ["whoami", "--api-key", KEY], ["auth", "login-request", "--email", "you@example.com"],
    ["auth", "login-complete", "--email", "you@example.com", "--code", "123456"],
))  # fmt: skip
def test_ctrl_c_while_the_backend_thinks_is_130(words, as_json, scripto, raw_server):
    thinking, done = threading.Event(), threading.Event()

    def answer(connection):
        thinking.set()
        done.wait(30)

    url = raw_server(answer).url
    process = scripto.start(*words, "--api-url", url, *["--json"] * as_json)
    assert thinking.wait(20)
    process.send_signal(signal.SIGINT)
    result = end_of(process)
    done.set()
    assert result.status == 130
    assert not as_json or result.error["code"] == "cancelled"


def test_ctrl_c_while_waiting_for_a_lock_is_130_and_changes_nothing(scripto, hold_lock):
    scripto.write_config(GOOD)
    hold_lock(scripto.config)
    process = scripto.start("use", "them", "--json")
    wait_for_lock(process, scripto.config)
    process.send_signal(signal.SIGINT)
    result = end_of(process)
    assert result.status == 130 and result.error["code"] == "cancelled"
    assert scripto.config.read_bytes() == GOOD


# ---- A code that may be spent ----


def interrupted(scripto, url, started):
    process = scripto.start(*complete("you@example.com", "123456", url))
    assert started.wait(20)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert b"Traceback" not in err
    return process.returncode, json.loads(out.decode())["error"]


def test_ctrl_c_while_a_code_is_tried_says_that_it_may_be_spent(scripto, raw_server):
    asked, done = threading.Event(), threading.Event()

    def answer(connection):
        asked.set()
        done.wait(20)

    status, error = interrupted(scripto, raw_server(answer).url, asked)
    done.set()
    assert (status, error["code"]) == (130, "cancelled")
    assert "used up" in error["nextAction"] and "auth login-request" in error["nextAction"]


@pytest.mark.parametrize("reply", [
    http_reply({"success": True, "data": {}}),
    http_reply({"success": True, "data": {"apiKey": "sk_1"}}), http_reply(b"<html>"), b"",
], ids=["no key", "no key of ours", "html", "nothing"])  # fmt: skip
def test_an_answer_that_may_have_cost_the_code_says_so(scripto, raw_server, reply):
    words = complete("you@example.com", "123456", raw_server(reply).url)
    assert "used up" in scripto.run(*words).error["nextAction"]


@pytest.mark.parametrize("status", (400, 429))
def test_one_that_did_not_says_nothing_of_it(scripto, raw_server, status):
    words = complete("you@example.com", "123456", raw_server(http_reply({}, status)).url)
    assert "used up" not in scripto.run(*words).error["nextAction"]


def test_a_profile_that_is_not_there_makes_no_file(scripto):
    assert scripto.run("logout", "nobody", "--json").error["code"] == "not-found"
    assert list(scripto.home.iterdir()) == []


# ---- Modes ----


@pytest.mark.parametrize("umask", (0o000, 0o022, 0o077, 0o777), ids="{:04o}".format)
def test_file_and_folders_are_private_whatever_the_umask(umask, scripto):
    """The XDG Base Directory specification wants the folders on the way 0700, too."""

    def before():
        without_privileges()
        os.umask(umask)

    assert store(scripto, preexec_fn=before).status == 0
    assert mode_of(scripto.config) == 0o600
    assert mode_of(scripto.config.parent) == mode_of(scripto.config.parent.parent) == 0o700
    assert not mode_of(str(scripto.config) + ".lock") & 0o077
    assert store(scripto, "again", preexec_fn=without_privileges).status == 0


def test_the_file_is_private_from_its_first_byte(newest):
    """Under the widest umask, the modes of what stands in the folder are looked at all along."""
    newest.write_config(some_state(filler="x" * 3000000))
    seen = set()
    while not any(name.endswith(".tmp") for name, _ in seen):  # one look may come too late
        process = newest.start("use", "them", preexec_fn=lambda: os.umask(0))
        while process.poll() is None:
            for entry in os.scandir(str(newest.config.parent)):
                try:
                    seen.add((entry.name, stat.S_IMODE(os.lstat(entry.path).st_mode)))
                except FileNotFoundError:
                    pass
        process.communicate()
    assert {mode for _, mode in seen} == {0o600}


def test_the_file_is_private_from_the_moment_of_its_creation(scripto, tmp_path):
    """Not a moment later: who opened it in between would go on reading it."""
    spy = tmp_path / "spy.py"
    spy.write_text(
        "import os, runpy, sys\n"
        "real = os.open\n"
        "def spy(path, flags, mode=0o777, **more):\n"
        "    descriptor = real(path, flags, mode, **more)\n"
        "    if flags & os.O_CREAT:\n"
        "        print('%s %o' % (path, os.fstat(descriptor).st_mode), file=sys.stderr)\n"
        "    return descriptor\n"
        "os.open = spy\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    words = [conftest.PROGRAM, "config", "set", "--api-key", KEY]
    result = scripto.run(*words, program=str(spy), preexec_fn=lambda: os.umask(0))
    created = dict(line.rsplit(" ", 1) for line in result.err.splitlines())
    assert result.status == 0 and any(path.endswith(".tmp") for path in created)
    assert set(created.values()) == {"100600"}


@in_turn("mode", {"0644": 0o644, "0640": 0o640, "0604": 0o604, "0666": 0o666})
def test_a_file_that_others_can_read_is_mentioned_and_tightened(mode, scripto):
    scripto.write_config(GOOD, mode)
    for words in (["use"], ["auth", "token"], ["config", "show"], ["use", "them"]):
        result = scripto.run(*words)
        assert result.status == 0 and str(scripto.config) in result.err, words
    assert mode_of(scripto.config) == 0o600
    assert not scripto.run("use").err


def test_a_folder_that_others_can_enter_is_tightened_by_a_write(scripto):
    scripto.write_config(GOOD)
    scripto.config.parent.chmod(0o755)
    scripto.run("use", "them", "--json").data
    assert mode_of(scripto.config.parent) == 0o700


# ---- Members that are not ours ----


def test_unknown_members_survive_every_write(scripto, shared):
    extra = {"deep": [1, None, {"é\u2028": True}], "big": 2**70, "half": "\ud800", "real": 0.1}
    email = next(EMAILS)
    scripto.write_config({"extra": extra, "profiles": {}, "version": 3})
    scripto.sign_in(shared, email)
    state = scripto.state()
    mine = state["activeProfile"]
    state["profiles"][mine]["extra"] = extra
    state["profiles"]["them"] = {"apiKey": OTHER_KEY, "theirs": extra}
    scripto.write_config(state)
    scripto.sign_in(shared, email)
    store(scripto, "them", KEY).data
    store(scripto, "gone", KEY).data
    scripto.run("use", mine, "--json").data
    scripto.run("logout", "gone", "--json").data
    state = scripto.state()
    assert (state["extra"], state["version"]) == (extra, 3)
    assert state["profiles"][mine]["extra"] == state["profiles"]["them"]["theirs"] == extra
    assert set(state["profiles"]) == {mine, "them"}
    scripto.run("config", "clear", "--all", "--yes", "--json").data
    assert (scripto.state()["extra"], scripto.state()["profiles"]) == (extra, {})


def test_what_is_written_is_json_for_every_program(scripto):
    """Infinity is none: a number that is too large for a float stays, or is refused."""
    scripto.write_config(b'{"profiles": {}, "x": 1e400}')
    store(scripto)

    def refuse(constant):
        raise AssertionError(constant + " is not JSON")

    json.loads(scripto.config.read_text(), parse_constant=refuse)


@pytest.mark.parametrize("text", ["\ufdd0+", "\ufdd007", "\ufdd0.5", "\ufdd0"], ids=ascii)
def test_a_text_that_looks_like_a_number_of_ours_stays(text, newest):
    newest.write_config({"profiles": {}, "x": text})
    store(newest)
    assert newest.state()["x"] == text


@in_turn("profile", (
    {}, {"apiKey": None}, {"apiKey": 7}, {"apiKey": "sk-other"}, {"apiKey": "scripto_a\nb"},
    {"apiKey": KEY, "baseUrl": 7}, {"apiKey": KEY, "baseUrl": "ftp://x"},
))  # fmt: skip
def test_a_profile_that_makes_no_sense_is_an_error_and_stays(profile, scripto):
    scripto.write_config({"activeProfile": "odd", "profiles": {"odd": profile}})
    before = scripto.config.read_bytes()
    error = scripto.run("whoami", "--json", env=OFFLINE).error
    assert error["code"] in ("unauthenticated", "failed-precondition") and error["nextAction"]
    shown = scripto.run("config", "show", "--json")
    assert shown.status == 0 or refusal(shown)
    assert scripto.run("use").status == 0 and scripto.config.read_bytes() == before
    store(scripto).data
    assert scripto.state()["profiles"]["odd"] == profile


# ---- Members and names ----


def test_numbers_that_are_not_ours_stay(scripto):
    numbers = {"a": 1.5, "b": 2**70, "c": -3, "d": "\ufdd01"}
    scripto.write_config({"profiles": {"you": {"apiKey": KEY}}, "x": numbers})
    scripto.run("use", "you", "--json").data
    assert scripto.state()["x"] == numbers
    assert [type(each) for each in scripto.state()["x"].values()] == [float, int, int, str]


def test_a_dangling_active_profile_never_means_production(scripto, raw_server):
    scripto.write_config(some_state(activeProfile="gone"))
    email = ["auth", "login-request", "--email", "you@example.com", "--json"]
    for words in (["whoami", "--json"], ["auth", "token", "--json"], email):
        error = scripto.run(*words, env={"HTTPS_PROXY": NOWHERE}).error
        assert error["code"] == "not-found" and "gone" in error["message"], words
        assert "scripto use <name>" in error["nextAction"] and "--api-url" in error["nextAction"]
    error = scripto.run("whoami", "--json", env={"SCRIPTO_API_KEY": KEY}).error
    assert error["code"] == "not-found"
    assert scripto.run("use", "you").status == 0


def test_use_beside_logout_leaves_no_dangling_profile(scripto, patched):
    """The profile goes between the first look at it and the lock."""
    scripto.write_config(some_state())
    env = patched(
        "import fcntl, json\n"
        "real = fcntl.flock\n"
        "def flock(*words):\n"
        "    real(*words)\n"
        "    path = %r\n"
        "    with open(path) as file:\n"
        "        state = json.load(file)\n"
        "    state['profiles'].pop('them', None)\n"
        "    with open(path, 'w') as file:\n"
        "        json.dump(state, file)\n"
        "fcntl.flock = flock\n" % str(scripto.config))
    assert scripto.run("use", "them", "--json", env=env).error["code"] == "not-found"
    assert scripto.state()["activeProfile"] == "you"


def test_a_second_key_without_a_name_does_not_replace_the_first(scripto):
    for key in (KEY, OTHER_KEY, OTHER_KEY):
        scripto.run("config", "set", "--api-key", key, "--json").data
    stored = {name: each["apiKey"] for name, each in scripto.state()["profiles"].items()}
    assert stored == {"default": KEY, "default-2": OTHER_KEY}


def test_a_new_key_by_hand_keeps_nothing_of_whom_the_old_one_was(scripto):
    state = some_state()
    state["profiles"]["you"].update(keyId="key_1", note="mine")
    scripto.write_config(state)
    store(scripto, "you").data
    profile = scripto.state()["profiles"]["you"]
    assert profile["apiKey"] == OTHER_KEY and profile["note"] == "mine"
    assert not set(profile) & {"email", "userId", "keyId"}
