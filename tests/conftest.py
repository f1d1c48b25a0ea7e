"""What the tests share: the program as a user runs it, and a backend of its own.

Everything is real: processes, sockets, files, mail in a Maildir. Each test has a home folder
of its own; the real one is left alone. Nothing leaves this machine.
"""
import base64
import contextlib
import glob
import itertools
import json
import os
import pathlib
import re
import select
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import threading
import time

import pytest

PROGRAM = str(pathlib.Path(__file__).resolve().parent.parent / "scripto.py")
if os.name == "nt":  # all but test_windows.py need pty, fcntl and the like
    collect_ignore_glob = ["test_[!w]*.py"]
QUICK = os.environ.get("SCRIPTO_PYTHONS") == "current"  # while one works: see the README
if QUICK and os.access("/dev/shm", os.W_OK) and not os.statvfs("/dev/shm").f_flag & os.ST_NOEXEC:
    tempfile.tempdir = os.environ.setdefault("TMPDIR", "/dev/shm")  # no flush waits for a disk

# A job in the background (`&` in a script, nohup, some CI) is started with signals ignored, and so
# would be the programs that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("SIGHUP", "SIGQUIT"):
    if hasattr(signal, name):  # not on Windows
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def find_pythons():
    """One interpreter for each minor version from 3.6 on that this machine has, and PyPy; with
    SCRIPTO_PYTHONS=current just the one that runs the tests."""
    if QUICK:
        return [sys.executable]
    candidates = [sys.executable, shutil.which("pypy3") or ""]
    pyenv = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    for minor in range(6, 30):
        here = glob.glob("%s/versions/3.%d.*/bin/python" % (glob.escape(pyenv), minor))
        candidates += here or [shutil.which("python3.%d" % minor) or ""]
    ask = "import sys; print(sys.implementation.name, *sys.version_info[:2])"
    found = {"cpython": {}, "pypy": {}}
    for path in filter(os.path.exists, candidates):
        process = subprocess.run([path, "-c", ask], stdout=subprocess.PIPE,
                                 stderr=subprocess.DEVNULL)
        name, *version = process.stdout.decode().split() or ["", 0, 0]
        version = tuple(map(int, version))
        if name in found and version >= (3, 6):
            found[name].setdefault(version, path)
    ordered = [found["cpython"][version] for version in sorted(found["cpython"])]
    return ordered[:-1] + list(found["pypy"].values()) + ordered[-1:]


PYTHONS = find_pythons()  # the last is the newest CPython
EDGES = PYTHONS[:1] + PYTHONS[1:][-1:]  # the oldest and the newest


# What pip installs: from its bytecode the program starts in less than half the time.
INSTALLED = """import sys
sys.path[0] = %r
from scripto import main
del sys.path[0]
main()
"""


@pytest.fixture(scope="session", autouse=True)
def start_as_installed(tmp_path_factory):
    """The tests start the program so; those under every interpreter start the file itself."""
    path = tmp_path_factory.mktemp("bin") / "scripto.py"
    path.write_text(INSTALLED % str(pathlib.Path(PROGRAM).parent))
    Scripto.program = str(path)


def pytest_make_parametrize_id(val):
    """A row with a text of megabytes is not named by all of it."""
    if isinstance(val, (str, bytes)) and len(val) > 60:
        return "%s and so on" % ascii(val[:20])
    return None


def pytest_collection_modifyitems(config, items):
    """A quick run leaves out what is marked `slow` and all but the first row of a table, unless -m
    or a test's own name says what is wanted."""
    if not QUICK or config.getoption("markexpr") or any("::" in each for each in config.args):
        return
    kept, tables = [], set()
    for item in items:
        table = item.nodeid.partition("[")[0]
        if table not in tables and not item.get_closest_marker("slow"):
            kept.append(item)
        tables.add(table)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def python_id(path):
    match = re.search(r"3\.\d+|pypy", path)
    return match.group() if match else "current"


def case_id(case):
    """For a row of a table: its name, or its words."""
    if isinstance(case, str):
        return case
    return getattr(case, "__name__", None) or " ".join(map(str, case))


def in_turn(name, cases):
    """Parametrizes a test with cases, the oldest and the newest interpreter taking turns."""
    ids = list(cases) if isinstance(cases, dict) else map(case_id, cases)
    cases = cases.values() if isinstance(cases, dict) else cases
    rows = [
        pytest.param(python, *(case if "," in name else (case,)), id=row)
        for python, case, row in zip(itertools.cycle(EDGES), cases, ids)
    ]
    return pytest.mark.parametrize("edge, " + name, rows)


class Result:
    """What a run left behind: exit status, standard output and error as text and as bytes."""

    def __init__(self, process, out, err):
        self.status, self.out_bytes, self.err_bytes = process.returncode, out, err
        self.out, self.err = out.decode("utf-8", "replace"), err.decode("utf-8", "replace")
        assert "Traceback" not in self.out + self.err, self.out + self.err

    @property
    def envelope(self):
        """The one JSON envelope on standard output."""
        assert self.out.count("\n") == 1 and self.out.endswith("\n"), self.out
        envelope = json.loads(self.out)
        assert envelope["success"] is (self.status == 0) or "checks" in envelope.get("data", {})
        return envelope

    @property
    def data(self):
        assert self.status == 0, self.out + self.err
        return self.envelope["data"]

    @property
    def error(self):
        assert self.status != 0, self.out
        return self.envelope["error"]


class Scripto:
    """The program on a machine of its own: an empty home, a clean environment."""

    program = PROGRAM

    def __init__(self, python, home, **env):
        self.python, self.home = python, pathlib.Path(home)
        self.home.mkdir(parents=True, exist_ok=True)
        self.env = {"HOME": str(home), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8",
                    "PYTHONIOENCODING": "utf-8", "SCRIPTO_TIMEOUT": "20"}
        self.env.update(env)

    @property
    def config(self):
        return self.home / ".config" / "scripto" / "config.json"

    def state(self):
        return json.loads(self.config.read_text())

    def write_config(self, content, mode=0o600):
        self.config.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        data = content if isinstance(content, (bytes, str)) else json.dumps(content)
        self.config.write_bytes(data if isinstance(data, bytes) else data.encode())
        self.config.chmod(mode)

    def start(self, *words, flags=(), env=None, **popen):
        """Starts the program; a variable that is None in env is taken out of the environment."""
        merged = dict(self.env, **(env or {}))
        merged = {name: value for name, value in merged.items() if value is not None}
        popen.setdefault("stdin", subprocess.PIPE)
        popen.setdefault("stdout", subprocess.PIPE)
        popen.setdefault("stderr", subprocess.PIPE)
        program = popen.pop("program", PROGRAM if flags else self.program)
        command = [self.python, *flags, program, *words]
        return subprocess.Popen(command, env=merged, **popen)

    def run(self, *words, input=b"", timeout=60, **start):
        process = self.start(*words, **start)
        try:
            if process.stdin is None:
                input = None
            out, err = process.communicate(input, timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        return Result(process, out or b"", err or b"")

    def sign_in(self, backend, email="you@example.com", *flags):
        """Both steps, by the flags that a user has; returns the data of the second."""
        url = ["--api-url", backend.url]
        self.run("auth", "login-request", "--email", email, *url, "--json").data
        code = backend.code_for(email)
        words = ["auth", "login-complete", "--email", email, "--code", code, *url, *flags]
        return self.run(*words, "--json").data


class Terminal:
    """The program with some of its streams on a terminal of its own, the controlling one."""

    def __init__(self, scripto, *words, streams=("stdin", "stdout", "stderr"), **start):
        import fcntl
        import pty
        import termios

        self.master, slave = pty.openpty()
        start.update({name: slave for name in streams})
        self.process = scripto.start(
            *words, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0), **start
        )  # fmt: skip
        os.close(slave)
        self.screen, self.ended = "", False

    def read(self):
        while not self.ended and select.select([self.master], [], [], 0.01)[0]:
            try:
                self.screen += os.read(self.master, 65536).decode("utf-8", "replace")
            except OSError:  # all of the program's ends are closed
                self.ended = True
        return self.screen

    def wait_for(self, text):
        wait_until(lambda: text in self.read(), what="%r on the screen" % text)

    def type(self, text):
        """What was on the screen before is no longer looked at."""
        self.screen = ""
        os.write(self.master, text if isinstance(text, bytes) else text.encode())

    def echoes(self):
        import termios

        return bool(termios.tcgetattr(self.master)[3] & termios.ECHO)

    def end(self):
        """The exit status, once all output has been read; `out` is what was not on the terminal."""
        wait_until(lambda: self.read() is not None and self.process.poll() is not None)
        wait_until(lambda: self.read() is not None and self.ended, 2, "the terminal's end")
        pipes = [self.process.stdin, self.process.stdout, self.process.stderr]
        self.out = pipes[1].read().decode() if pipes[1] else ""
        for each in filter(None, pipes):
            each.close()
        os.close(self.master)
        assert "Traceback" not in self.screen + self.out, self.screen
        return self.process.returncode


class Backend:
    """A running `scripto serve`, with its mail in a Maildir."""

    def __init__(self, scripto, folder, *flags, mail=None, env=None):
        self.scripto, self.folder = scripto, pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.maildir, self.db = self.folder / "mail", self.folder / "scripto.db"
        self.log_path = self.folder / "log"
        self.mail = mail or "maildir:%s" % self.maildir
        self.flags, self.env, self.process, self.port = flags, env, None, "0"
        self.start()

    def start(self):
        flags = ["--rate-limit", "0"] if "--rate-limit" not in self.flags else []
        words = ["serve", "--port", self.port, "--db", str(self.db), "--mail", self.mail]
        with open(str(self.log_path), "ab") as log:
            self.process = self.scripto.start(*words, *flags, *self.flags, stderr=log,
                                              env=self.env, stdin=subprocess.DEVNULL)
        assert select.select([self.process.stdout], [], [], 30)[0], "serve said nothing"
        first = self.process.stdout.readline().decode()
        assert first.startswith("listening on http"), first + self.log()
        self.url = first.split()[-1]
        self.port = self.url.rpartition(":")[2]

    def log(self):
        return self.log_path.read_text()

    def stop(self, number=signal.SIGTERM):
        """Ends the backend and returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(60)
        self.process.stdout.close()
        return status

    def restart(self, number=signal.SIGTERM):
        self.stop(number)
        self.start()

    def mails(self):
        """The mails that were delivered, oldest first, as text."""
        paths = list((self.maildir / "new").glob("*")) if self.maildir.exists() else []
        paths.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))
        return [path.read_text() for path in paths]

    def code_for(self, email):
        """The code in the newest mail to that email."""
        for text in reversed(self.mails()):
            if "To: %s\n" % email.lower() in text:
                return re.search(r"^Subject: (\d{6}) ", text, re.M).group(1)
        raise AssertionError("no mail to " + email)

    def last_uses(self):
        """Of each key, as the database has it."""
        with contextlib.closing(sqlite3.connect(str(self.db))) as db:
            return [row[0] for row in db.execute("SELECT last_used_at FROM keys")]

    def request(self, method, path, body=None, key=None, headers=None, timeout=30):
        """One HTTP request by the standard library: (status, headers, object or bytes). It is in
        the log by then: the connection has come to its end."""
        import http.client
        import urllib.parse

        parts = urllib.parse.urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
        headers = dict(headers or {})
        if key:
            headers["Authorization"] = "Bearer " + key
        if isinstance(body, dict):
            body = json.dumps(body)
            headers["Content-Type"] = "application/json"
        try:
            connection.connect()
            with connection.sock.dup() as end:
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                content = response.read()
                with contextlib.suppress(OSError):  # cut off already
                    end.shutdown(socket.SHUT_WR)
                    end.recv(1)
        finally:
            connection.close()
        if response.headers.get_content_type() == "application/json" and content:
            content = json.loads(content.decode())
        return response.status, response.headers, content

    def mint(self, email, name=None):
        """Signs an email in over HTTP; returns the data of the answer, apiKey and all."""
        assert self.request("POST", "/api/cli/login-request", {"email": email})[0] == 200
        body = {"email": email, "otp": self.code_for(email)}
        if name:
            body["name"] = name
        status, _, value = self.request("POST", "/api/cli/login-complete", body)
        assert status == 200, value
        return value["data"]


def wrong_code(code):
    """A six-digit code that is not this one."""
    return "%06d" % ((int(code) + 1) % 10**6)


def wait_until(condition, seconds=20, what="condition"):
    """Polls until the condition holds; fails when the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError("waited %s s for %s" % (seconds, what))


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch):
    """A test that fails half-way leaves no process behind."""
    processes, start = [], Scripto.start

    def record(*args, **kwargs):
        processes.append(start(*args, **kwargs))
        return processes[-1]

    monkeypatch.setattr(Scripto, "start", record)
    yield
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(params=PYTHONS, ids=python_id)
def python(request, monkeypatch):
    """Every interpreter that this machine has. It starts the file itself, as a user does who has
    nothing but the file."""
    monkeypatch.setattr(Scripto, "program", PROGRAM)
    return request.param


@pytest.fixture(params=EDGES, ids=python_id)
def edge(request):
    """The oldest and the newest interpreter."""
    return request.param


@pytest.fixture
def scripto(edge, tmp_path):
    """The program under the oldest and the newest interpreter, with an empty home."""
    return Scripto(edge, tmp_path / "home")


@pytest.fixture
def newest(tmp_path):
    """The program under the newest interpreter alone, with an empty home."""
    return Scripto(PYTHONS[-1], tmp_path / "home")


@pytest.fixture
def patched(tmp_path):
    """patched(code) is an environment in which that runs first: the system as it is elsewhere."""

    def make(code):
        (tmp_path / "sitecustomize.py").write_text(code)
        return {"PYTHONPATH": str(tmp_path)}

    return make


@pytest.fixture
def changed(tmp_path):
    """changed(LOCK_SECONDS=1) is the path of the program with another constant."""

    def make(**constants):
        with open(PROGRAM, encoding="utf-8") as file:
            source = file.read()
        for name, value in constants.items():
            source, count = re.subn("(?m)^%s = .*$" % name, "%s = %r" % (name, value), source)
            assert count == 1, name
        path = tmp_path / "changed" / "scripto.py"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(source.encode())
        return str(path)

    return make


@pytest.fixture
def start_backend(tmp_path):
    """Starts backends that end with the test: start_backend(python=..., *flags, mail=...)."""
    backends = []

    def start(*flags, python=PYTHONS[-1], folder="backend", program=None, **more):
        owner = Scripto(python, tmp_path / "backend-home")
        owner.program = program or owner.program
        backends.append(Backend(owner, tmp_path / folder, *flags, **more))
        return backends[-1]

    yield start
    for backend in backends:
        if backend.process.poll() is None:
            backend.process.kill()
            backend.process.wait()
            backend.process.stdout.close()


@pytest.fixture
def backend(start_backend):
    """A backend of this test's own, under the newest interpreter."""
    return start_backend()


def free_port():
    """A port at which nobody listens, for a server of the test's own."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def nobody():
    """The URL of a port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield "http://127.0.0.1:%d" % taken.getsockname()[1]


class Listener:
    """A server of a test's own, which talks with every connection in a thread: talk(connection).
    With a context TLS is spoken from the first byte."""

    def __init__(self, context=None):
        self.context = context
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(50)
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def close(self):
        """Waits for the thread: it would go on under a descriptor that is somebody else's."""
        with contextlib.suppress(OSError):  # closed by the test itself
            self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join(20)
        self.listener.close()

    def serve(self):
        with contextlib.suppress(OSError):  # closed: the test is over
            while True:
                connection = self.listener.accept()[0]
                threading.Thread(target=self.handle, args=[connection], daemon=True).start()

    def handle(self, connection):
        with contextlib.suppress(OSError), connection:  # a client that goes away, as some do
            if self.context:
                connection = self.context.wrap_socket(connection, server_side=True)
            self.talk(connection)


class RawServer(Listener):
    """It answers as a test says, byte for byte.

    `answer` is the bytes of the whole reply, or a function that is handed the connected socket
    after the request was read. What came in is in `requests`, one entry a connection."""

    def __init__(self, answer, context=None):
        self.answer, self.requests = answer, []
        super().__init__(context)
        self.url = "%s://127.0.0.1:%d" % ("https" if context else "http", self.port)

    def talk(self, connection):
        self.requests.append(self.read_request(connection))
        if callable(self.answer):
            self.answer(connection)
        else:
            connection.sendall(self.answer)

    @staticmethod
    def read_request(connection):
        data = b""
        while b"\r\n\r\n" not in data:
            chunk = connection.recv(65536)
            if not chunk:
                return data
            data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        while length and len(body) < int(length.group(1)):
            body += connection.recv(65536)
        return head + b"\r\n\r\n" + body


def http_reply(body, status=200, *headers):
    """The bytes of a reply with that body (an object goes as JSON)."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = ["HTTP/1.1 %d Whatever" % status, "Content-Length: %d" % len(body), *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def listeners(kind):
    """For a fixture: start(...) makes listeners of that kind, which end with the test."""
    with contextlib.ExitStack() as stack:

        def start(*args, **kwargs):
            server = kind(*args, **kwargs)
            stack.callback(server.close)
            return server

        yield start


@pytest.fixture
def raw_server():
    """Starts such listeners: raw_server(answer, context=None)."""
    yield from listeners(RawServer)


@pytest.fixture
def witness(raw_server):
    """A proxy that sees what goes to any host but loopback; `env` leads to it."""
    server = raw_server(http_reply({}, 502))
    server.env = {"http_proxy": server.url, "https_proxy": server.url}
    return server


# ---- A backend for many tests ----


def lasting(tmp_path_factory, python):
    """A backend for many tests: those that leave nothing behind that another would notice."""
    folder = tmp_path_factory.mktemp("lasting")
    backend = Backend(Scripto(python, folder / "home"), folder / "backend")
    yield backend
    backend.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Under the newest interpreter."""
    yield from lasting(tmp_path_factory, PYTHONS[-1])


@pytest.fixture(scope="module", params=EDGES, ids=python_id)
def shared_edge(request, tmp_path_factory):
    """Under the oldest and the newest interpreter."""
    yield from lasting(tmp_path_factory, request.param)


# ---- A mail server ----


class MailServer(Listener):
    """A stand-in for a mail server: as much SMTP (RFC 5321) as one message needs. What came in
    is in `mails`: (recipients, message, (user, password) or None, whether TLS was on)."""

    def __init__(self, context=None, wrapped=False, **answers):
        self.tls = context  # offered as STARTTLS, unless the whole connection is wrapped
        self.answers = dict(GREETING=b"220 stand-in", QUIT=b"221 bye", **answers)
        self.offers, self.heard = [b"AUTH PLAIN"], b""  # heard: each line outside of mails
        self.mails, self.busy, self.go_on = [], threading.Event(), threading.Event()
        self.arrived = []  # messages as text, also those that are not accepted yet
        self.go_on.set()
        super().__init__(context if wrapped else None)

    def close(self):
        self.go_on.set()
        super().close()

    def talk(self, connection):
        connection.sendall(self.answers["GREETING"] + b"\r\n")
        self.converse(connection, login=None)

    def converse(self, connection, login):
        lines, recipients = connection.makefile("rb"), []
        secure = isinstance(connection, ssl.SSLSocket)
        for line in lines:
            self.heard += line
            verb, _, rest = line.strip().partition(b" ")
            verb = verb.upper()
            answer = self.answers.get(verb.decode("latin-1"), b"250 fine")
            if verb == b"EHLO":
                offers = [b"STARTTLS"] * bool(self.tls and not secure) + self.offers
                answer = b"250-stand-in\r\n250-" + b"\r\n250-".join(offers) + b"\r\n250 HELP"
            elif verb == b"STARTTLS" and "STARTTLS" not in self.answers:
                connection.sendall(b"220 go ahead\r\n")
                return self.converse(self.tls.wrap_socket(connection, server_side=True), None)
            elif verb == b"AUTH":
                login = tuple(base64.b64decode(rest.split()[1]).decode().split("\0")[1:])
                answer = b"235 welcome"
            elif verb == b"RCPT":
                recipients.append(rest[rest.index(b"<") + 1 : rest.index(b">")].decode())
            elif verb == b"DATA" and "DATA" not in self.answers:
                connection.sendall(b"354 go on\r\n")
                message = b"".join(iter(lines.readline, b".\r\n")).decode()
                self.arrived.append(message)
                self.busy.set()
                self.go_on.wait(60)
                answer = self.answers.get(".", answer)
                if answer == b"hang up":
                    return
                if answer.startswith(b"250"):
                    self.mails.append((recipients, message, login, secure))
            if answer is None:  # it falls silent, until the other side has gone
                return connection.recv(1)
            connection.sendall(answer + b"\r\n")
            if verb == b"QUIT":
                return


@pytest.fixture
def mail_server():
    yield from listeners(MailServer)


# ---- TLS ----


def self_signed(path, *names):
    """A certificate for those names at that path, its key beside it as .key: nobody knows it."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
               "-subj", "/CN=localhost", "-addext", "subjectAltName=" + ",".join(names),
               "-out", str(path), "-keyout", "%s.key" % path]  # fmt: skip
    if not shutil.which("openssl") or subprocess.run(command, stderr=subprocess.PIPE).returncode:
        pytest.skip("no openssl command that makes a certificate")
    return str(path)


def server_side(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate + ".key")
    return context


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """The path of one for this machine and for backend.example."""
    names = "IP:127.0.0.1", "IP:0.0.0.0", "DNS:localhost", "DNS:backend.example"
    return self_signed(tmp_path_factory.mktemp("tls") / "server.pem", *names)


@pytest.fixture
def tls(certificate):
    """A server's side of TLS with it."""
    return server_side(certificate)
