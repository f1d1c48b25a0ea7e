"""The profile file where homes are mounted, shared, another's or not to be had at all."""
import json
import os
import subprocess
import threading

import pytest

from client import (  # fmt: skip
    GOOD, KEY, complete, files_beside, minted, mode_of, refusal, some_state, store,
    without_privileges)
from conftest import http_reply

SOMEBODY = 12345  # a uid that is nobody's here
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


def mount(*words):
    if subprocess.run(["mount", *words], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("only root can mount")


@pytest.fixture
def mounted(scripto, tmp_path):
    """A profile file that is a mount of its own, as Docker and Kubernetes make them."""
    scripto.write_config(GOOD)
    outside = tmp_path / "outside.json"
    outside.write_bytes(GOOD)
    mount("--bind", str(outside), str(scripto.config))
    yield outside
    subprocess.run(["umount", "-l", str(scripto.config)], check=True)


# ---- What cannot be replaced ----


def test_a_mounted_file_costs_no_code_and_the_way_out_is_named(scripto, mounted, raw_server):
    server = raw_server(minted())
    error = refusal(scripto.run(*complete("new@example.com", "123456", server.url)), scripto.config)
    assert "mount its folder" in error["nextAction"] and "SCRIPTO_API_KEY" in error["nextAction"]
    assert not server.requests and mounted.read_bytes() == GOOD
    assert not files_beside(scripto.config)
    assert len(scripto.run("use", "--json").data["profiles"]) == 2  # it is read all the same


def test_a_file_that_cannot_be_replaced_costs_no_code(scripto, raw_server):
    scripto.write_config(GOOD)
    server = raw_server(minted())
    if subprocess.run(["chattr", "+i", str(scripto.config)], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no immutable files here")
    try:
        refusal(scripto.run(*complete("you@example.com", "123456", server.url)), scripto.config)
    finally:
        subprocess.run(["chattr", "-i", str(scripto.config)], check=True)
    assert not server.requests and scripto.config.read_bytes() == GOOD


# ---- Homes that cannot be come by, and keys that need none ----


def closed_home(scripto):
    scripto.write_config(GOOD)
    scripto.home.chmod(0)
    return {"preexec_fn": without_privileges}


def home_that_is_a_device(scripto):
    return {"env": {"HOME": "/dev/null"}}


@pytest.mark.parametrize("how", (closed_home, home_that_is_a_device))
def test_a_key_that_is_given_needs_no_home(how, scripto, raw_server):
    start = how(scripto)
    server = raw_server(http_reply({"user": {"id": "user_1", "email": "", "name": ""}}))
    env = dict(start.pop("env", {}), SCRIPTO_API_KEY=KEY)
    assert scripto.run("auth", "token", env=env, **start).out == KEY + "\n"
    shown = scripto.run("config", "show", "--json", env=env, **start).data
    assert shown["key"]["source"] == "SCRIPTO_API_KEY"
    user = scripto.run("whoami", "--json", "--api-url", server.url, env=env, **start).data
    assert user["keySource"] == "SCRIPTO_API_KEY"
    refusal(scripto.run("auth", "token", "--json", env=dict(env, SCRIPTO_API_KEY=""), **start))
    scripto.home.chmod(0o700)


def test_a_broken_file_is_an_error_even_so(scripto):
    scripto.write_config(b"{")
    refusal(scripto.run("auth", "token", "--json", env={"SCRIPTO_API_KEY": KEY}), scripto.config)


# ---- Folders that are shared ----


@as_root
def test_a_folder_that_cannot_be_tightened_is_no_error(scripto, tmp_path):
    """As a volume of root's with mode 0777: the system lets one write there, and no more."""
    folder = scripto.config.parent
    folder.mkdir(parents=True)
    os.chown(str(folder), SOMEBODY, SOMEBODY)
    folder.chmod(0o777)
    assert store(scripto, preexec_fn=without_privileges).data["profile"] == "new"
    assert mode_of(scripto.config) == 0o600


@as_root
@pytest.mark.parametrize("words", (["whoami"], ["auth", "token"], ["use"], ["config", "show"]))
def test_a_file_that_somebody_else_planted_is_not_trusted(scripto, raw_server, patched, words):
    """It would have the key of the environment sent to a backend of theirs."""
    server = raw_server(http_reply({"user": {"id": "user_1"}}))
    state = some_state()
    state["profiles"]["you"]["baseUrl"] = server.url
    scripto.write_config(state)
    scripto.config.chmod(0o644)
    os.chown(str(scripto.config), SOMEBODY, SOMEBODY)
    env = patched("import os\nos.geteuid = lambda: %d" % (SOMEBODY + 1))
    result = scripto.run(*words, "--json", env=dict(env, SCRIPTO_API_KEY=KEY))
    assert str(SOMEBODY) in refusal(result, scripto.config)["message"] and not server.requests


# ---- Root in somebody else's home ----


@pytest.fixture
def guest(scripto):
    """Root in an empty home of somebody else's."""
    if os.geteuid():
        pytest.skip("only root can be such a guest")
    os.chown(str(scripto.home), SOMEBODY, SOMEBODY)
    return scripto


def owners(folder):
    return {each.lstat().st_uid for each in folder.rglob("*")}


def test_what_a_guest_makes_is_given_to_the_owner(guest, backend):
    guest.sign_in(backend)
    assert owners(guest.home) == {SOMEBODY}
    found = {each.name for each in guest.home.rglob("*")}
    assert found == {".config", "scripto", "config.json", "config.json.lock"}
    assert mode_of(guest.config) == 0o600 and mode_of(guest.config.parent) == 0o700
    assert guest.run("use", "you").status == 0
    assert guest.run("whoami", "--json").data["user"]["email"] == "you@example.com"


@pytest.mark.slow
def test_forty_guests_at_once_lose_nothing(guest):
    words = ["config", "set", "--api-key", KEY, "--profile-name"]
    running = [guest.start(*words, "p%d" % number) for number in range(40)]
    assert [process.communicate() and process.returncode for process in running] == [0] * 40
    assert len(guest.state()["profiles"]) == 40 and owners(guest.home) == {SOMEBODY}


LINKS = (".config", ".config/scripto", ".config/scripto/config.json",
         ".config/scripto/config.json.lock")


@pytest.mark.parametrize("place", LINKS)
def test_a_guest_follows_no_link(guest, place, tmp_path):
    """A link there leads to what root has elsewhere, in a folder that is root's alone."""
    precious = tmp_path / "precious"
    (precious / "scripto").mkdir(parents=True)
    target = precious if place == ".config" else precious / "scripto"
    for name in ("config.json", "config.json.lock"):
        (precious / "scripto" / name).write_bytes(GOOD)
    if place.endswith(("json", "lock")):
        target = target / "config.json"
    link = guest.home / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)
    refusal(store(guest))
    for each in (precious / "scripto").iterdir():
        assert each.read_bytes() == GOOD and each.stat().st_uid == 0
    assert {each.name for each in (precious / "scripto").iterdir()} <= {
        "config.json", "config.json.lock"}


def started(guest):
    """The first line of a backend with its database in that home, and what it said at its end."""
    process = guest.start("serve", "--port", "0", "--json")
    line = process.stdout.readline()
    process.terminate()
    return line, process.communicate()


@pytest.mark.slow
def test_the_database_of_a_guest_is_the_owners_too(guest):
    assert json.loads(started(guest)[0].decode())["success"]
    folder = guest.home / ".local/share/scripto"
    assert owners(guest.home) == {SOMEBODY}
    assert mode_of(folder / "scripto.db") == 0o600 and mode_of(folder) == 0o700
    assert json.loads(started(guest)[0].decode())["success"]  # and again


@pytest.mark.parametrize("place", (".local", ".local/share", "scripto", "scripto.db"))
def test_the_database_of_a_guest_follows_no_link(guest, place, tmp_path):
    precious = tmp_path / "precious"
    (precious / "share/scripto").mkdir(parents=True)
    folder = guest.home / ".local/share/scripto"
    inside = {".local": precious, ".local/share": precious / "share"}
    link = guest.home / place if place in inside else guest.home / ".local/share" / place
    target = inside.get(place, precious / "share/scripto")
    if place == "scripto.db":
        link, target = folder / place, target / place
        target.touch()
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)
    line, (out, err) = started(guest)
    assert json.loads(line.decode())["error"]["code"] == "failed-precondition"
    left = [each for each in precious.rglob("*") if each.is_file()]
    assert all(each.stat().st_size == each.stat().st_uid == 0 for each in left)
    assert len(left) == (place == "scripto.db")


# ---- File systems that lack something ----

NO_LOCKS = """
import errno, fcntl
def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
"""


@pytest.mark.slow
def test_without_locks_readers_see_a_whole_file_at_every_moment(scripto, patched):
    """NFS without a lock daemon. Writers at once may undo each other there, but tear nothing."""
    env, done, seen = patched(NO_LOCKS), threading.Event(), []
    scripto.write_config(some_state(filler="x" * 300000))

    def look():
        while not done.is_set():
            seen.append(len(scripto.state()["profiles"]))

    reader = threading.Thread(target=look)
    reader.start()
    words = ["config", "set", "--api-key", KEY, "--profile-name"]
    running = [scripto.start(*words, "p%d" % number, env=env) for number in range(20)]
    statuses = [process.communicate() and process.returncode for process in running]
    done.set()
    reader.join()
    assert statuses == [0] * 20 and {"you", "them"} < set(scripto.state()["profiles"])
    assert min(seen) >= 2 and not files_beside(scripto.config)


def test_a_folder_that_cannot_be_flushed_is_no_error(scripto, patched):
    env = patched(
        "import errno, os, stat\n"
        "real = os.fsync\n"
        "def fsync(descriptor):\n"
        "    if stat.S_ISDIR(os.fstat(descriptor).st_mode):\n"
        "        raise OSError(errno.EINVAL, 'Invalid argument')\n"
        "    real(descriptor)\n"
        "os.fsync = fsync\n")
    assert store(scripto, env=env).data["profile"] == "new"


def test_the_content_is_flushed_before_the_rename_and_the_folder_after(scripto, patched):
    """What was answered survives a power cut."""
    env = patched(
        "import os, stat, sys\n"
        "fsync, replace = os.fsync, os.replace\n"
        "def flushing(descriptor):\n"
        "    status = os.fstat(descriptor)\n"
        "    kind = 'folder' if stat.S_ISDIR(status.st_mode) else 'file'\n"
        "    print(kind, status.st_size > 100, file=sys.stderr)\n"
        "    fsync(descriptor)\n"
        "def replacing(*names, **more):\n"
        "    print('rename', file=sys.stderr)\n"
        "    replace(*names, **more)\n"
        "os.fsync, os.replace = flushing, replacing\n")
    run = scripto.run("config", "set", "--api-key", KEY, env=env)
    assert [line.split()[0] for line in run.err.splitlines()] == ["file", "rename", "folder"]
    assert run.err.startswith("file True")


def test_a_short_read_is_read_on(scripto, patched):
    """As on a network file system, or after a signal."""
    scripto.write_config(some_state(filler="x" * 300000))
    env = patched(
        "import io, os\n"
        "class Short(io.FileIO):\n"
        "    def readinto(self, room):\n"
        "        return super().readinto(memoryview(room)[:1000])\n"
        "    def readall(self):\n"
        "        return self.read(1000)\n"
        "real = open\n"
        "def opened(file, mode='r', *more, **named):\n"
        "    if mode != 'rb' or not isinstance(file, int):\n"
        "        return real(file, mode, *more, **named)\n"
        "    short = Short(file, mode)\n"
        "    return short if named.get('buffering') == 0 else io.BufferedReader(short)\n"
        "import builtins\n"
        "builtins.open = opened\n")
    assert len(scripto.run("use", "--json", env=env).data["profiles"]) == 2
