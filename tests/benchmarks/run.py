"""How fast it starts and how much its backend carries, each as a ratio in one run.

    python3 tests/benchmarks/run.py [start] [sign-ins] [memory] [size]

Standard library only, loopback only, a few minutes for all. Start-up is measured against the bare
interpreter and a bare `urllib` call; sign-ins (request, complete, whose key is it) against
bound.py with the same client, the rounds of the two taking turns. Medians of several rounds.
"""
import json
import os
import pathlib
import re
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
PROGRAM = HERE.parent.parent / "scripto.py"
ROUNDS, SECONDS, CLIENTS = 5, 3, (1, 8, 32)
URLLIB = "import urllib.request; urllib.request.urlopen('%s/healthz').read()"


def table(title, head, rows):
    print("\n## %s\n" % title)
    for row in [head, ["---"] * len(head)] + rows:
        print("| " + " | ".join(map(str, row)) + " |")
    sys.stdout.flush()


class Server:
    """A backend's process; the codes that it mails to its console are in `codes`, by email."""

    def __init__(self, words, env):
        self.codes, self.arrived = {}, threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable] + list(map(str, words)), env=env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.url = self.process.stdout.readline().decode().split()[-1]
        self.port = int(self.url.rpartition(":")[2])
        self.reader = threading.Thread(target=self.read_codes, daemon=True)
        self.reader.start()

    def read_codes(self):
        for line in self.process.stderr:
            match = re.match(rb"mail to (\S+): (\d{6}) ", line)
            if match:
                with self.arrived:
                    self.codes[match.group(1).decode()] = match.group(2).decode()
                    self.arrived.notify_all()

    def code_for(self, email):
        with self.arrived:
            self.arrived.wait_for(lambda: email in self.codes, 20)
            return self.codes.pop(email)

    def megabytes(self):
        status = pathlib.Path("/proc/%d/status" % self.process.pid).read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) / 1024

    def stop(self):
        self.process.terminate()
        self.process.wait(60)
        self.reader.join(20)
        self.process.stdout.close()
        self.process.stderr.close()


class Client:
    """One kept connection, as little work as possible."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.left = b""

    def ask(self, method, path, body=b"", key=""):
        extra = "Authorization: Bearer %s\r\n" % key if key else ""
        head = "%s %s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n"
        self.socket.sendall((head % (method, path, extra, len(body))).encode() + body)
        data = self.left
        while b"\r\n\r\n" not in data:
            data += self.receive()
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: (\d+)", head).group(1))
        while len(body) < length:
            body += self.receive()
        self.left = body[length:]
        if not head.startswith(b"HTTP/1.1 200 "):
            raise AssertionError(head + body)
        return json.loads(body[:length].decode())

    def receive(self):
        chunk = self.socket.recv(65536)
        if not chunk:
            raise AssertionError("the connection ended")
        return chunk

    def sign_in(self, email, code_for):
        words = json.dumps({"email": email}).encode()
        self.ask("POST", "/api/cli/login-request", words)
        words = json.dumps({"email": email, "otp": code_for(email)}).encode()
        key = self.ask("POST", "/api/cli/login-complete", words)["data"]["apiKey"]
        self.ask("GET", "/api/auth/me", key=key)


def load(server, clients, seconds, code_for):
    """(sign-ins a second, how long each took) of so many clients at once."""
    times, failures, end = [], [], time.perf_counter() + seconds

    def work(number):
        client, count = Client(server.port), 0
        try:
            while time.perf_counter() < end:
                begun = time.perf_counter()
                email = "u%x-%d-%d@example.com" % (int(begun * 1e6), number, count)
                client.sign_in(email, code_for)
                times.append(time.perf_counter() - begun)
                count += 1
        except Exception as error:
            failures.append(error)
        finally:
            client.socket.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return len(times) / (time.perf_counter() - begun), times


def backend(folder, env, name="scripto.db"):
    words = [PROGRAM, "serve", "--port", "0", "--rate-limit", "0", "--db", folder / name]
    return Server(words, env)


def per_mille(times, part):
    return 1000 * sorted(times)[int(len(times) * part)]


def measure_sign_ins(folder, env):
    """Rounds of the backend and of the bound take turns, so that both meet the same machine."""
    rows = []
    servers = backend(folder, env), Server([HERE / "bound.py", folder / "bound.db"], env)
    for clients in CLIENTS:
        rates, times = ([], []), []
        for _ in range(ROUNDS):
            rate, taken = load(servers[0], clients, SECONDS, servers[0].code_for)
            rates[0].append(rate)
            times += taken
            rates[1].append(load(servers[1], clients, SECONDS, lambda email: "123456")[0])
        ratio = statistics.median(mine / bound for mine, bound in zip(*rates))
        mine, bound = map(statistics.median, rates)
        rows.append([clients, "%.0f" % mine, "%.0f" % bound, "%.2f" % ratio,
                     "%.1f" % per_mille(times, 0.5), "%.1f" % per_mille(times, 0.99)])
    peak = servers[0].megabytes()
    for server in servers:
        server.stop()
    head = ["clients", "sign-ins a second", "of the bound's", "ratio", "p50 ms", "p99 ms"]
    table("Sign-ins (peak memory of the backend: %.0f MB)" % peak, head, rows)


def fill(path, users):
    """Users with two keys each, as if they had signed in."""
    now, db = time.time(), sqlite3.connect(str(path))
    with db:
        db.executemany("INSERT INTO users (id, email, name, created_at) VALUES (?, ?, '', ?)",
                       (("user_%d" % i, "user%d@example.org" % i, now) for i in range(users)))
        db.executemany(
            "INSERT INTO keys (id, user_id, hash, name, start, created_at)"
            " VALUES (?, ?, ?, 'scripto-cli', 'abcdef', ?)",
            (("key_%d" % i, "user_%d" % (i // 2), os.urandom(32), now) for i in range(2 * users)))
    db.close()


def measure_size(folder, env, users=200000):
    """The same backend with an empty database and with a full one, in turns."""
    for name in ("empty.db", "full.db"):
        backend(folder, env, name).stop()
    fill(folder / "full.db", users)
    servers, ratios = [backend(folder, env, name) for name in ("empty.db", "full.db")], []
    for _ in range(ROUNDS):
        empty, full = [load(each, 8, SECONDS, each.code_for)[0] for each in servers]
        ratios.append(full / empty)
    peak = servers[1].megabytes()
    for server in servers:
        server.stop()
    row = ["%d" % users, "%d" % (2 * users), "%.2f" % statistics.median(ratios), "%.0f" % peak]
    table("A full database", ["users", "keys", "sign-ins, by an empty one's", "MB"], [row])


def measure_memory(folder, env):
    """At rest, and with 60 idle connections."""
    server = backend(folder, env, "memory.db")
    rest = server.megabytes()
    clients = [Client(server.port) for _ in range(60)]
    for client in clients:
        client.ask("GET", "/healthz")
    idle = server.megabytes()
    for client in clients:
        client.socket.close()
    server.stop()
    table("Memory", ["at rest, MB", "60 connections, MB"], [["%.0f" % rest, "%.0f" % idle]])


def run_time(words, env):
    begun = time.perf_counter()
    subprocess.run(list(map(str, words)), env=env, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    return time.perf_counter() - begun


def measure_start(folder, env):
    """Each command and the bare interpreter in turns; the ratio of the medians."""
    python, server = sys.executable, backend(folder, env, "start.db")
    Client(server.port).sign_in("you@example.com", server.code_for)
    client = Client(server.port)
    client.ask("POST", "/api/cli/login-request", b'{"email": "me@example.com"}')
    words = json.dumps({"email": "me@example.com", "otp": server.code_for("me@example.com")})
    key = client.ask("POST", "/api/cli/login-complete", words.encode())["data"]["apiKey"]
    env = dict(env, PYTHONDONTWRITEBYTECODE="")
    store = [PROGRAM, "config", "set", "--api-key", key, "--api-url", server.url]
    run_time([python] + store, env)
    shutil.copy(str(PROGRAM), str(folder / "scripto.py"))
    env["PYTHONPATH"] = str(folder)
    cases = {"the bare interpreter": [python, "-c", "pass"],
             "a bare urllib call": [python, "-c", URLLIB % server.url]}
    for command in ("--version", "config show", "whoami"):
        cases["scripto.py " + command] = [python, PROGRAM] + command.split()
        cases["-m scripto " + command] = [python, "-m", "scripto"] + command.split()
    times = {name: [] for name in cases}
    for _ in range(4 * ROUNDS):
        for name, words in cases.items():
            times[name].append(run_time(words, env))
    server.stop()
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    bare, call = list(medians.values())[:2]
    rows = [[name, "%.0f" % (1000 * taken), "%.1f" % (taken / bare), "%.1f" % (taken / call)]
            for name, taken in medians.items()]
    table("Start-up", ["", "ms", "by the interpreter's", "by the urllib call's"], rows)


def main():
    chosen = sys.argv[1:] or ["start", "sign-ins", "memory", "size"]
    print("Python %s, %d cores, %s" % (sys.version.split()[0], os.cpu_count(), sys.platform))
    measures = {"start": measure_start, "sign-ins": measure_sign_ins, "memory": measure_memory,
                "size": measure_size}
    for name in chosen:
        with tempfile.TemporaryDirectory(prefix="scripto-benchmark-") as folder:
            env = {key: value for key, value in os.environ.items()
                   if not key.startswith(("SCRIPTO_", "XDG_"))}
            env["HOME"] = folder
            measures[name](pathlib.Path(folder), env)


main()
