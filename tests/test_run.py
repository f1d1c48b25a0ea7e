"""`run`: a command that gets the key."""
import os
import shutil
import signal

from client import KEY, said
from conftest import PROGRAM


def test_run_hands_over_key_and_backend(scripto, backend):
    scripto.sign_in(backend)
    key = scripto.state()["profiles"]["you"]["apiKey"]
    result = scripto.run("run", "--", "sh", "-c",
                         'echo "$SCRIPTO_API_KEY $SCRIPTO_API_BASE_URL"; cat; echo x >&2; exit 7',
                         input=b"in")  # fmt: skip
    assert result.out == "%s %s\nin" % (key, backend.url)
    assert (result.err, result.status) == ("x\n", 7)


def test_run_becomes_the_command(newest):
    """The same process, with nothing left of this program: signals, umask, arguments."""
    env = {"SCRIPTO_API_KEY": KEY}
    code = ("import os, sys; print(os.getpid(), os.umask(0), sys.argv[1:], "
            "open('/proc/self/status').read() if os.path.exists('/proc/self/status') else '')")
    words = ["run", "--", newest.python, "-S", "-c", code, "--json", "--version", "--help", "--"]
    process = newest.start(*words, env=env, preexec_fn=lambda: os.umask(0o027))
    out = process.communicate()[0].decode()
    pid, umask, rest = out.split(" ", 2)
    assert (int(pid), int(umask)) == (process.pid, 0o027)
    assert rest.startswith("['--json', '--version', '--help', '--']")
    process = newest.start("run", "--", "sh", "-c", "kill -PIPE $$", env=env)
    process.communicate()
    assert process.returncode == -signal.SIGPIPE


def test_run_shows_the_key_nowhere(newest):
    key = "scripto_" + os.urandom(16).hex()  # no other run of the tests has it
    newest.write_config({"activeProfile": "a", "profiles": {"a": {"apiKey": key}}})
    result = newest.run("run", "--", "ps", "-ww", "-o", "args") if shutil.which("ps") else None
    assert result is None or key not in result.out + result.err


def test_run_refuses(newest):
    env = {"SCRIPTO_API_KEY": KEY}
    assert newest.run("run", "--json", env=env).error["code"] == "invalid-argument"
    assert newest.run("run", "--", env=env).status == 2
    said(newest.run("run", "--", "no-such-command", env=env), "invalid-argument", 2)
    assert newest.run("run", "--json", "--", "true").error["code"] == "unauthenticated"


def test_run_on_windows_waits(newest, tmp_path):
    """Not Windows: a Python that says it is, since what counts there is that nothing is replaced
    and the exit status comes back."""
    runner = tmp_path / "runner.py"
    runner.write_text("import os, runpy, shutil, sys, subprocess\nsys.argv[0] = %r\nos.name = 'nt'\n"
                      "del os.execvpe\n"
                      "runpy.run_path(%r, run_name='__main__')" % (PROGRAM, PROGRAM))  # fmt: skip
    result = newest.run("run", "--", "sh", "-c", 'echo "$SCRIPTO_API_KEY"; exit 9',
                        program=str(runner), env={"SCRIPTO_API_KEY": KEY})  # fmt: skip
    assert (result.status, result.out) == (9, KEY + "\n")
