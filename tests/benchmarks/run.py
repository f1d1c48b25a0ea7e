"""How fast it starts, and how many sign-ins a second one `serve` carries, against what its parts
could do at most. Not part of the test suite; it takes a minute or two:

    python3 tests/benchmarks/run.py [PATH-OF-ANOTHER-scripto.py ...]

Everything is a ratio within one run, and the median of several rounds. A sign-in is of a new email:
login-request, the code from the console's log, login-complete, auth/me. The bound is the standard
library's http.server with fixed answers and three flushed commits a sign-in, by the same client.
"""
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
KEY = "scripto_" + "x" * 43


def bound():
    """What stands for the bound: run as a program of its own."""
    db = sqlite3.connect(os.environ["DB"], isolation_level=None, check_same_thread=False)
    db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (x)")
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                db.execute("INSERT INTO t VALUES (1)")
            self.do_GET()

        def do_GET(self):
            if self.path == "/api/cli/login-complete":
                with lock:
                    db.execute("INSERT INTO t VALUES (1)")
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


class Peer:
    """A server under test, and the codes that it mails to its console."""

    def __init__(self, command, folder, fixed=False):
        env = dict(os.environ, HOME=str(folder), DB=str(folder / "bound.db"))
        self.fixed, self.codes, self.arrived = fixed, {}, threading.Condition()
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
        if self.fixed:
            return "123456"
        with self.arrived:
            self.arrived.wait_for(lambda: email in self.codes, 10)
            return self.codes.pop(email)

    def memory(self):
        with open("/proc/%d/status" % self.process.pid) as file:
            return int(re.search(r"VmHWM:\s+(\d+)", file.read()).group(1)) / 1024

    def close(self):
        self.process.terminate()
        self.process.wait()


class Client:
    """One connection that is kept."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), 30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def request(self, method, path, body=None, key=None):
        content = json.dumps(body).encode() if body else b""
        head = "%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % (method, path, len(content))
        head += "Authorization: Bearer %s\r\n" % key if key else ""
        self.socket.sendall(head.encode() + b"\r\n" + content)
        data = b""
        while True:
            data += self.socket.recv(65536)
            start, end, rest = data.partition(b"\r\n\r\n")
            length = re.search(rb"Content-Length: (\d+)", start)
            if end and len(rest) >= int(length.group(1)):
                assert b" 200 " in start[:20], data
                return json.loads(rest.decode())

    def sign_in(self, peer, email):
        self.request("POST", "/api/cli/login-request", {"email": email})
        body = {"email": email, "otp": peer.code_for(email)}
        data = self.request("POST", "/api/cli/login-complete", body)["data"]
        self.request("GET", "/api/auth/me", key=data["apiKey"])


def measure(peer, clients, name):
    """(sign-ins a second, median and 99th percentile of their milliseconds)"""
    took, end = [], time.monotonic() + SECONDS

    def work(number):
        client, count = Client(peer.port), 0
        while time.monotonic() < end:
            start = time.monotonic()
            client.sign_in(peer, "%s-%d-%d@example.com" % (name, number, count))
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
    """People and keys, as many as a large installation has."""
    with sqlite3.connect(str(path)) as db:
        db.executemany(
            "INSERT INTO users (id, email, name, created_at) VALUES (?, ?, '', 0)",
            (("user_f%d" % n, "f%d@example.com" % n) for n in range(users)))
        db.executemany(
            "INSERT INTO keys (id, user_id, hash, name, start, created_at)"
            " VALUES (?, ?, ?, 'x', 'xxxxxx', 0)",
            (("key_f%d" % n, "user_f%d" % (n // keys_each), os.urandom(32))
             for n in range(users * keys_each)))  # fmt: skip


def sign_ins(programs):
    rates = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        serve = ["serve", "--port", "0", "--rate-limit", "0", "--db"]
        peers = {"bound": Peer([sys.executable, __file__, "--bound"], folder, fixed=True)}
        for at, program in enumerate(programs):
            peers[str(program)] = Peer(
                [sys.executable, str(program), *serve, "%d.db" % at], folder)
        full = Peer([sys.executable, str(programs[0]), *serve, "full.db"], folder)
        fill(folder / "full.db", 200000, 2)
        peers["the first, 200,000 users"] = full
        for number in range(ROUNDS):
            for clients in CLIENTS:
                for label, peer in peers.items():
                    result = measure(peer, clients, "%d-%d" % (number, clients))
                    rates.setdefault((label, clients), []).append(result)
        print("\n%-42s %8s %10s %8s %8s" % ("", "clients", "a second", "p50 ms", "p99 ms"))
        for (label, clients), results in rates.items():
            rate, p50, p99 = map(statistics.median, zip(*results))
            base = statistics.median(result[0] for result in rates["bound", clients])
            print("%-42s %8d %10.0f %8.1f %8.1f   %.2f of the bound"
                  % (label[-42:], clients, rate, p50, p99, rate / base))  # fmt: skip
        for label, peer in peers.items():
            print("%-42s %.0f MB" % (label[-42:], peer.memory()))
            peer.close()


def median_time(command, env, until=None):
    took = []
    for _ in range(15):
        start = time.monotonic()
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL)  # fmt: skip
        if until:
            until(process)
            took.append(time.monotonic() - start)
            process.terminate()
        process.communicate()
        if not until:
            took.append(time.monotonic() - start)
    return statistics.median(took) * 1000


def first_request(process):
    port = int(process.stdout.readline().decode().rpartition(":")[2])
    Client(port).request("GET", "/healthz")


def start_up(program):
    with tempfile.TemporaryDirectory() as home:
        env = {"HOME": home, "PATH": os.environ["PATH"], "SCRIPTO_API_KEY": KEY}
        python, file = sys.executable, str(program)
        base = median_time([python, "-c", "pass"], env)
        kept = [python, "-c", "import sys; sys.path.insert(0, %r); sys.argv[0] = 'scripto';"
                "import scripto; sys.exit(scripto.main())" % str(program.parent)]  # fmt: skip
        print("%-42s %6.1f ms" % ("python3 -c pass", base))
        for words in (["--version"], ["config", "show"]):
            for label, command in (("file", [python, file]), ("with bytecode kept", kept)):
                took = median_time(command + words, env)
                print("%-42s %6.1f ms   %.1f times" % (
                    "%s (%s)" % (" ".join(words), label), took, took / base))  # fmt: skip
        took = median_time([python, file, "serve", "--port", "0"], env, first_request)
        print("%-42s %6.1f ms   %.1f times" % ("serve, to its first answer", took, took / base))


if __name__ == "__main__":
    if sys.argv[1:] == ["--bound"]:
        bound()
    else:
        start_up(PROGRAM)
        sign_ins([PROGRAM] + [pathlib.Path(path).resolve() for path in sys.argv[1:]])
