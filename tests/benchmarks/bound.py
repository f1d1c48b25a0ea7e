"""What a backend of the standard library could do at most: `http.server` with fixed answers, and
three fully flushed commits a sign-in (a code, a key, a last use), with no other work.

Takes the database's path; prints where it listens, as `scripto serve` does.
"""
import http.server
import json
import socketserver
import sqlite3
import sys
import threading

USER = {"id": "user_" + "0" * 24, "email": "you@example.com", "name": ""}
ANSWERS = {
    "/api/cli/login-request": {"success": True, "data": {"ok": True, "email": USER["email"]}},
    "/api/cli/login-complete": {"success": True, "data": {
        "apiKey": "scripto_" + "k" * 43, "keyId": "key_" + "0" * 24, "userId": USER["id"],
        "email": USER["email"]}},
    "/api/auth/me": {"user": USER},
}
BODIES = {path: json.dumps(answer).encode() for path, answer in ANSWERS.items()}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock, self.server.db:
            self.server.db.execute("INSERT INTO done (path) VALUES (?)", (self.path,))
        body = BODIES[self.path]
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    do_GET = do_POST = answer

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main():
    server = Server(("127.0.0.1", 0), Handler)
    server.lock = threading.Lock()
    server.db = sqlite3.connect(sys.argv[1], check_same_thread=False)
    server.db.execute("PRAGMA journal_mode = WAL").fetchall()
    server.db.execute("PRAGMA synchronous = FULL").fetchall()
    server.db.execute("CREATE TABLE done (id INTEGER PRIMARY KEY, path TEXT)")
    print("listening on http://127.0.0.1:%d" % server.server_address[1], flush=True)
    server.serve_forever()


main()
