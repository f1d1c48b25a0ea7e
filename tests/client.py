"""What the tests of the client share: commands, answers of a backend, profile files."""
import ctypes
import itertools
import json
import os
import pty
import re
import stat

from conftest import http_reply

EMAIL = "you@example.com"
LOGIN = ["auth", "login", "--email", EMAIL]


def go_on(*flags, email=EMAIL):
    """The two-step form that the program names."""
    return " ".join(["scripto auth login-complete --email", email, "--code <6-digit-code>", *flags])


def login(scripto, backend, source, *flags, **run):
    words = [*LOGIN, "--code-from=" + source, "--api-url", backend.url, *flags]
    return scripto.run(*words, "--json", **run)


def start_login(scripto, backend, source, *flags, **popen):
    words = [*LOGIN, "--code-from=" + source, "--api-url", backend.url, *flags]
    return scripto.start(*words, "--json", **popen)


def ended(process, input=None, timeout=60):
    """(exit status, envelope, standard error)."""
    out, err = process.communicate(input, timeout)
    assert b"Traceback" not in err, err
    return process.returncode, json.loads(out.decode() or "null"), err.decode()


def requests_to(backend, path):
    return backend.log().count("POST " + path)


def nothing_sent(backend):
    return requests_to(backend, "/api/cli/login-request") == 0


def signed_in(data, backend):
    assert data["email"] == EMAIL and data["active"] is True and data["baseUrl"] == backend.url
    assert data["apiKey"].startswith("scripto_") and "\u2022" in data["apiKey"]
    return True

KEY = "scripto_" + "K3y" * 12
PRODUCTION = "https://scripto.codika.io"

REQUESTED = """\
✓ Sign-in code sent to you@example.com

  Then run:
    scripto auth login-complete --email you@example.com --code <6-digit-code>
"""
COMPLETED = """\
✓ Signed in

  Email:    you@example.com
  Profile:  you (now active)
  API key:  scripto_••••••••

  Try it:  scripto whoami
"""

LOGIN_REQUEST = ["auth", "login-request", "--email", EMAIL]
LOGIN_COMPLETE = ["auth", "login-complete", "--email", EMAIL, "--code", "123456"]
SENT = http_reply({"success": True, "data": {"ok": True, "email": EMAIL}})
ME = {"id": "user_1", "email": EMAIL, "name": "You"}


def minted(email=EMAIL, key=KEY):
    data = {"apiKey": key, "keyId": "key_1", "userId": "user_1", "email": email}
    return http_reply({"success": True, "data": data})


def profile(key, url=None, **more):
    return dict({"apiKey": key, **({"baseUrl": url} if url else {})}, **more)


def profiles(active, /, **named):
    return {"activeProfile": active, "profiles": named}


def sent_to(server):
    """The last request to a raw server: (first line, bearer key or None, body as JSON or None)."""
    head, _, body = server.requests[-1].decode().partition("\r\n\r\n")
    key = re.search("(?im)^authorization: bearer (.*)\r$", head + "\r\n")
    return head.partition("\r\n")[0], key and key.group(1), json.loads(body) if body else None


def at_terminal(scripto, typed, *words):
    """Runs with standard input at a terminal, at which `typed` is answered."""
    master, slave = pty.openpty()
    try:
        os.write(master, typed)
        return scripto.run(*words, stdin=slave)
    finally:
        os.close(master)
        os.close(slave)


def refused(result, code="invalid-argument", status=2):
    """The error of a run with --json that was to fail like that."""
    assert (result.error["code"], result.status) == (code, status), result.error
    return result.error


TWO = profiles("you", me=profile("scripto_me", email="me@c.d"), you=profile(KEY, email=EMAIL))

CLEAR = ["config", "clear", "--all"]

ENV_KEY = {"SCRIPTO_API_KEY": "scripto_env"}
OTHER_KEY = "scripto_" + "0th" * 12
NOWHERE = "http://127.0.0.1:9"  # nothing listens at the discard port
EMAILS = ("user%d@example.com" % number for number in itertools.count())
DROP_FROM_BOUNDING_SET, FILE_CAPABILITIES = 24, (0, 1, 2, 3)  # <linux/prctl.h>, capability.h


def some_state(**top):
    """Two profiles, the first one active."""
    profile = {"apiKey": KEY, "email": "you@example.com", "userId": "user_1", "baseUrl": NOWHERE}
    them = dict(profile, apiKey=OTHER_KEY, email="them@example.com")
    return dict({"activeProfile": "you", "profiles": {"you": profile, "them": them}}, **top)


def mode_of(path):
    return stat.S_IMODE(os.stat(str(path)).st_mode)


def files_beside(path):
    """What lies in the file's folder, apart from the file itself and its lock."""
    return {each.name for each in path.parent.iterdir()} - {path.name, path.name + ".lock"}


def refusal(result, path=""):
    """The error of a run that the profile file stopped, as the contract wants it."""
    assert (result.status, result.error["code"]) == (1, "failed-precondition")
    assert str(path) in result.error["message"] and result.error["nextAction"]
    return result.error


def store(scripto, name="new", key=OTHER_KEY, **more):
    return scripto.run("config", "set", "--api-key", key, "--profile-name", name, "--json", **more)


def without_privileges():
    """For preexec_fn: makes root subject to file modes, as everybody else is."""
    if os.geteuid() == 0:
        for capability in FILE_CAPABILITIES:
            ctypes.CDLL(None).prctl(DROP_FROM_BOUNDING_SET, capability, 0, 0, 0)


def complete(email, code, url):
    return ["auth", "login-complete", "--email", email, "--code", code, "--api-url", url, "--json"]


GOOD = json.dumps(some_state()).encode()
OFFLINE = {"HTTPS_PROXY": NOWHERE, "SCRIPTO_TIMEOUT": "5"}  # should production be asked after all

COMMANDS = {"whoami": ["whoami", "--api-key", KEY], "login-request": LOGIN_REQUEST,
            "login-complete": LOGIN_COMPLETE}  # fmt: skip


def ask(scripto, url, command="whoami", **start):
    """One command against that URL, in JSON."""
    return scripto.run(*COMMANDS[command], "--api-url", url, "--json", **start)


def said(result, code, status, next_action=None):
    """An error as a person sees it, the two lines at the end of standard error; returns what
    stands before them."""
    assert (result.status, result.out) == (status, ""), result.out + result.err
    *before, message, hint = result.err.splitlines()
    assert message.startswith("✗ ") and hint.startswith("  next: ")
    assert next_action in (None, hint[len("  next: ") :])
    return "\n".join(before)
