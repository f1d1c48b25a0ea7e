"""How fast the program starts, and how many sign-ins a second one `serve` carries.

    python3 tests/benchmarks/run.py [ANOTHER-scripto.py ...]

It is no part of the test suite and takes about two minutes. What it does goes to standard error
while it runs. The figures go to standard output; the last table is the one of the README.

A sign-in is of a new email: login-request, the code from the console's log, login-complete,
auth/me. "The bound" is what the same parts can do at most: the standard library's http.server with
fixed answers and three flushed commits a sign-in. All servers take turns in each of several rounds,
and each figure is the median of the rounds, so that only ratios within one run are compared.
"""
import contextlib
import http.server
import json
import os
import pathlib
import re
import socket
import socketserver
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time

PROGRAM = pathlib.Path(__file__).resolve().parent.parent.parent / "scripto.py"
CLIENTS, SECONDS, ROUNDS = (1, 8, 32), 3, 3
STARTS = 15  # of each command
USERS = 200000  # in the full database, each with two keys
KEY = "scripto_" + "x" * 43


def say(text):
    print(text, file=sys.stderr, flush=True)


# ---- Servers ----


def bound():
    """The server that stands for the bound. It runs as a program of its own."""
    db = sqlite3.connect(os.environ["DB"], isolation_level=None, check_same_thread=False)
    db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (x)")
    lock = threading.Lock()

    def commit(times):
        for _ in range(times):
            with lock:
                db.execute("INSERT INTO t VALUES (1)")

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            commit(2 if self.path == "/api/cli/login-complete" else 1)
            self.do_GET()

        def do_GET(self):
            body = b'{"success": true, "data": {"apiKey": "%s"}}' % KEY.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
        daemon_threads, request_queue_size = True, 128

    server = Server(("127.0.0.1", 0), Handler)
    print("listening on http://127.0.0.1:%d" % server.server_address[1], flush=True)
    server.serve_forever()


class Client:
    """A connection that is kept."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), 30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def request(self, method, path, body=None, key=None):
        """The object in the body of the answer, which has to be a 200."""
        content = json.dumps(body).encode() if body else b""
        head = "%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % (method, path, len(content))
        head += "Content-Type: application/json\r\n" if body else ""
        head += "Authorization: Bearer %s\r\n" % key if key else ""
        self.socket.sendall(head.encode() + b"\r\n" + content)
        data = b""
        while True:
            data += self.socket.recv(65536)
            start, end, rest = data.partition(b"\r\n\r\n")
            if end and len(rest) >= int(re.search(rb"(?i)content-length: (\d+)", start).group(1)):
                assert b" 200 " in start[:20], data
                return json.loads(rest.decode())


class Peer:
    """A server under test. It says its port on standard output, and the codes that it sends on
    standard error."""

    def __init__(self, command, folder):
        env = dict(os.environ, HOME=str(folder), DB=str(folder / "bound.db"))
        self.codes, self.arrived = {}, threading.Condition()
        self.process = subprocess.Popen(command, env=env, cwd=str(folder),
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        self.port = int(self.process.stdout.readline().decode().rpartition(":")[2])
        threading.Thread(target=self.read_log, daemon=True).start()

    def read_log(self):
        for line in self.process.stderr:
            match = re.match(rb"mail to (\S+): (\d{6})", line)
            if match:
                with self.arrived:
                    self.codes[match.group(1).decode()] = match.group(2).decode()
                    self.arrived.notify_all()

    def code_for(self, email):
        with self.arrived:
            assert self.arrived.wait_for(lambda: email in self.codes, 10), "no code for " + email
            return self.codes.pop(email)

    def sign_in(self, client, email):
        """Returns the key."""
        client.request("POST", "/api/cli/login-request", {"email": email})
        body = {"email": email, "otp": self.code_for(email)}
        key = client.request("POST", "/api/cli/login-complete", body)["data"]["apiKey"]
        client.request("GET", "/api/auth/me", key=key)
        return key

    def memory(self):
        """The most that it had, in MB; None where the system does not tell."""
        with contextlib.suppress(OSError):
            with open("/proc/%d/status" % self.process.pid) as file:
                return int(re.search(r"VmHWM:\s+(\d+)", file.read()).group(1)) / 1024

    def close(self):
        self.process.terminate()
        self.process.wait()


class Bound(Peer):
    def code_for(self, email):
        return "123456"


# ---- Sign-ins a second ----


def measure(peer, clients, name):
    """(sign-ins a second, median and 99th percentile of their milliseconds)"""
    took, end = [], time.monotonic() + SECONDS

    def work(number):
        client, count = Client(peer.port), 0
        while time.monotonic() < end:
            start = time.monotonic()
            peer.sign_in(client, "%s-%d-%d@example.com" % (name, number, count))
            took.append((time.monotonic() - start) * 1000)
            count += 1

    threads = [threading.Thread(target=work, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took.sort()
    return len(took) / SECONDS, took[len(took) // 2], took[len(took) * 99 // 100]


def fill(path, users, keys_each):
    """Gives a database people and keys, as many as a large installation has."""
    with contextlib.closing(sqlite3.connect(str(path))) as db, db:
        db.executemany(
            "INSERT INTO users (id, email, created_at) VALUES (?, ?, 0)",
            (("user_f%d" % n, "f%d@example.com" % n) for n in range(users)))
        db.executemany(
            "INSERT INTO keys (id, user_id, hash, name, start, created_at)"
            " VALUES (?, ?, ?, 'x', 'xxxxxx', 0)",
            (("key_f%d" % n, "user_f%d" % (n // keys_each), os.urandom(32))
             for n in range(users * keys_each)))  # fmt: skip


def start_servers(programs, folder):
    """{name: server}: the bound, each program, and the first one on a full database."""
    serve = ["serve", "--port", "0", "--rate-limit", "0", "--db"]
    peers = {"the bound": Bound([sys.executable, __file__, "--bound"], folder)}
    for at, program in enumerate(programs):
        name = "Scripto" if at == 0 else str(program)
        peers[name] = Peer([sys.executable, str(program), *serve, "%d.db" % at], folder)
    say("filling a database with %d users" % USERS)
    full = Peer([sys.executable, str(programs[0]), *serve, "full.db"], folder)
    fill(folder / "full.db", USERS, 2)
    peers["Scripto, %d users" % USERS] = full
    return peers


def take_turns(peers):
    """{(server, clients): one result a round}"""
    results, steps = {}, ROUNDS * len(CLIENTS) * len(peers)
    say("sign-ins: %d measurements of %d s each" % (steps, SECONDS))
    for number in range(ROUNDS):
        for clients in CLIENTS:
            for name, peer in peers.items():
                result = measure(peer, clients, "%d-%d" % (number, clients))
                results.setdefault((name, clients), []).append(result)
                done = sum(map(len, results.values()))
                say("%3d of %d: %s, %d at once: %.0f a second"
                    % (done, steps, name, clients, result[0]))  # fmt: skip
    return results


def milliseconds(value):
    return "%.1f ms" % value if value < 10 else "%.0f ms" % value


def row(results, name, clients):
    """The last columns of the tables: sign-ins a second, p50, p99, share of the bound."""
    rate, p50, p99 = map(statistics.median, zip(*results[name, clients]))
    most = statistics.median(result[0] for result in results["the bound", clients])
    return "%d | %.0f | %s | %s | %.2f |" % (
        clients, rate, milliseconds(p50), milliseconds(p99), rate / most)  # fmt: skip


def print_sign_ins(peers, results):
    """All servers, then Scripto alone, as in the README."""
    columns = "clients at once | sign-ins a second | p50 | p99 | of the bound |"
    print("\n| server | %s\n|---|---|---|---|---|---|" % columns)
    for name, clients in results:
        print("| %s | %s" % (name, row(results, name, clients)))
    print("\n| server | memory at the most |\n|---|---|")
    for name, peer in peers.items():
        print("| %s | %s |" % (name, "%.0f MB" % peer.memory() if peer.memory() else "?"))
    print("\n| %s\n|---|---|---|---|---|" % columns)
    for clients in CLIENTS:
        print("| " + row(results, "Scripto", clients))


def sign_ins(programs, more=None):
    """`more` starts further servers: it gets the folder and returns {name: server}."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        peers = start_servers(programs, pathlib.Path(name))
        peers.update(more(pathlib.Path(name)) if more else {})
        for peer in peers.values():
            stack.callback(peer.close)
        print_sign_ins(peers, take_turns(peers))


# ---- Starts ----


def seconds_until_its_end(command, env):
    start = time.monotonic()
    subprocess.run(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - start


def seconds_until_its_first_answer(command, env):
    start = time.monotonic()
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    port = int(process.stdout.readline().decode().rpartition(":")[2])
    Client(port).request("GET", "/healthz")
    took = time.monotonic() - start
    process.terminate()
    process.communicate()
    return took


def commands(program, url):
    """{name: command}. whoami asks a backend, as the bare call of urllib does."""
    python, file = sys.executable, str(program)
    kept = [python, "-c", "import sys; sys.path.insert(0, %r); sys.argv[0] = 'scripto';"
            "import scripto; sys.exit(scripto.main())" % str(program.parent)]  # fmt: skip
    call = "import urllib.request as r; r.urlopen('%s/healthz').read()" % url
    found = {"python3 -c pass": [python, "-c", "pass"],
             "a bare call of urllib": [python, "-c", call]}  # fmt: skip
    for words in ("--version", "config show", "whoami"):
        found[words + ", the file"] = [python, file] + words.split()
        found[words + ", installed"] = kept + words.split()
    return found


def start_up(program):
    """Each command against the bare interpreter."""
    say("start-up: %d starts of each command" % STARTS)
    with tempfile.TemporaryDirectory() as home, contextlib.ExitStack() as stack:
        serve = [sys.executable, str(program), "serve", "--port", "0"]
        peer = Peer(serve, pathlib.Path(home))
        stack.callback(peer.close)
        url = "http://127.0.0.1:%d" % peer.port
        env = {"HOME": home, "PATH": os.environ["PATH"], "SCRIPTO_API_BASE_URL": url,
               "SCRIPTO_API_KEY": peer.sign_in(Client(peer.port), "you@example.com")}  # fmt: skip
        cases = {name: (seconds_until_its_end, command)
                 for name, command in commands(program, url).items()}  # fmt: skip
        cases["serve, to its first answer"] = seconds_until_its_first_answer, serve
        print("| start of | time | of python3 -c pass |\n|---|---|---|")
        base = None
        for name, (seconds, command) in cases.items():
            took = statistics.median(seconds(command, env) for _ in range(STARTS))
            base = base or took
            print("| %s | %.0f ms | %.1f times |" % (name, took * 1000, took / base), flush=True)


def main(paths, more=None):
    start_up(PROGRAM)
    sign_ins([PROGRAM] + [pathlib.Path(path).resolve() for path in paths], more)


if __name__ == "__main__":
    if sys.argv[1:] == ["--bound"]:
        bound()
    else:
        main(sys.argv[1:])
