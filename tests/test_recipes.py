"""The recipes of the README, run as they stand there, with this test's backend for the example's.

Where a recipe needs what cannot run here (a CI service, a container engine), what it says is done
by hand and the test says so.
"""
import contextlib
import os
import pathlib
import re
import shutil
import socket
import subprocess
import time

import pytest

from conftest import PROGRAM, PYTHONS, Scripto, free_port, http_reply, wait_until

README = (pathlib.Path(PROGRAM).parent / "README.md").read_text(encoding="utf-8")
YOU = "you@example.com"


def recipe(language, word):
    """The one block of that language that holds the word."""
    blocks = re.findall("```%s\n(.*?)```" % language, README, re.S)
    (block,) = [block for block in blocks if word in block]
    return block


class Machine:
    """A folder and an empty home, with `scripto` (a copy of the file) and `python3` on the PATH."""

    def __init__(self, folder):
        self.folder, self.bin = folder, folder / "bin"
        self.scripto = Scripto(PYTHONS[-1], folder / "home")
        self.bin.mkdir()
        (self.bin / "python3").symlink_to(PYTHONS[-1])
        shutil.copy(PROGRAM, str(self.bin / "scripto"))
        (self.bin / "scripto").chmod(0o755)
        self.env = dict(self.scripto.env, PATH="%s:%s" % (self.bin, os.environ["PATH"]))

    def sh(self, script, **env):
        """(exit status, standard output) of a shell script; what fails ends it."""
        process = subprocess.Popen(
            ["sh", "-ec", script], cwd=str(self.folder), env=dict(self.env, **env),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)  # fmt: skip
        out = process.communicate(timeout=60)[0].decode()
        return process.returncode, out


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def curl():
    if not shutil.which("curl"):
        pytest.skip("no curl")


def test_a_ci_job_with_a_stored_secret(machine, backend, curl):
    """No CI service here: its steps are run one by one, with the secret in the environment."""
    block = recipe("yaml", "secrets.").replace("https://scripto.codika.io", backend.url)
    assert "SCRIPTO_API_KEY: ${{ secrets.SCRIPTO_API_KEY }}" in block
    key = backend.mint(YOU)["apiKey"]
    deploy = machine.folder / "deploy.sh"
    deploy.write_text('#!/bin/sh\necho "$1 $SCRIPTO_API_KEY $SCRIPTO_API_BASE_URL"\n')
    deploy.chmod(0o755)
    steps = re.findall("- run: (.*)", block)
    outs = [machine.sh(step, SCRIPTO_API_KEY=key) for step in steps]
    assert [status for status, _ in outs] == [0, 0, 0]
    assert YOU in outs[1][1] and outs[2][1] == "production %s %s\n" % (key, backend.url)
    assert list(machine.scripto.home.iterdir()) == []


@pytest.fixture
def nginx(tmp_path, raw_server):
    """nginx(backend) is the URL of one that has the README's block for that backend, before a
    server that answers every request with "inside"."""
    program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")
    if not program:
        pytest.skip("no nginx")
    with contextlib.ExitStack() as stack:

        def start(backend):
            port = free_port()
            inside = raw_server(http_reply(b"inside"))
            block = recipe("nginx", "auth_request").replace("http://127.0.0.1:3000", inside.url)
            block = block.replace("http://127.0.0.1:8787", backend.url)
            block = block.replace("listen 443 ssl", "listen 127.0.0.1:%d" % port)
            block = re.sub(r"(?m)^ *(ssl_certificate|server_name).*\n", "", block)
            kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            paths = "".join("%s_temp_path %s/%s;\n" % (kind, tmp_path, kind) for kind in kinds)
            config = tmp_path / "nginx.conf"
            config.write_text(
                "%sdaemon off; pid %s/pid; error_log %s/error.log; events {}\nhttp { access_log "
                "off;\n%s%s}\n"
                % ("user root; " if os.geteuid() == 0 else "", tmp_path, tmp_path, paths, block))  # fmt: skip
            process = subprocess.Popen([program, "-p", str(tmp_path), "-c", str(config)])
            stack.callback(process.wait, 20)
            stack.callback(process.terminate)
            wait_until(lambda: can_connect(port), what="nginx")
            return "http://127.0.0.1:%d" % port

        yield start


def can_connect(port):
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 5).close()
        return True


def fetch(url, key):
    import http.client

    connection = http.client.HTTPConnection(url.partition("://")[2], timeout=20)
    try:
        connection.request("GET", "/internal/x", headers={"Authorization": "Bearer " + key})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.mark.slow
def test_a_guarded_page(start_backend, nginx):
    """Who signed up before the rule was made has a key, and stays outside now."""
    backend = start_backend()
    inside, outside = backend.mint(YOU)["apiKey"], backend.mint("x@elsewhere.example")["apiKey"]
    backend.flags = ("--allow", re.search("--allow (@[a-z.]+)\n", README).group(1))
    backend.restart()
    site = nginx(backend)
    assert fetch(site, inside) == (200, b"inside")
    assert fetch(site, outside)[0] == fetch(site, inside + "x")[0] == 401


# ---- Ways to call it ----


@pytest.mark.slow
def test_however_it_is_called_it_is_the_same(machine, tmp_path):
    """As a module beside the file, as a copy on the PATH, by a link; by pip see test_readme.py."""
    (tmp_path / "beside").mkdir()
    shutil.copy(PROGRAM, str(tmp_path / "beside"))
    (machine.bin / "linked").symlink_to(machine.bin / "scripto")
    calls = ["python3 beside/scripto.py", "cd beside && python3 -m scripto", "scripto", "linked"]
    for words in ("--version", "use --json", "whoami --json", "config set --api-key scripto_12345",
                  "auth token", "run -- printenv SCRIPTO_API_KEY", "logout --help",
                  "nonsense --json"):  # fmt: skip
        results = [machine.sh("%s %s" % (call, words)) for call in calls]
        assert results == results[:1] * len(calls), words


@pytest.mark.slow
def test_as_a_module_it_starts_faster(tmp_path):
    """By how much is in the README; here, that it does at all: the medians of runs in turn."""
    shutil.copy(PROGRAM, str(tmp_path))
    env = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    calls, times = (["scripto.py"], ["-m", "scripto"]), ([], [])
    for _ in range(11):
        for call, taken in zip(calls, times):
            begin = time.perf_counter()
            subprocess.check_output([PYTHONS[-1], *call, "--version"], cwd=str(tmp_path), env=env)
            taken.append(time.perf_counter() - begin)
    script, module = (sorted(taken)[5] for taken in times)
    assert module < 0.9 * script
