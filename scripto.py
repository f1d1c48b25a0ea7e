#!/usr/bin/env python3
"""Scripto on the command line: an email, a six-digit code, and this machine is signed in.

One file, standard library only, Python 3.6 or newer; `scripto serve` makes it its own backend.
Each section stands above those that use it, so the story starts at the bottom, in main():
Constants, Errors, Terminal, Door, Profiles, Resolution, HTTP client, Account; the backend's Mail,
Store, Routes, Server and Operator; Doctor; Command line.

Imports marked `lazy` would cost most commands more time than all their work.
"""
import sys

if __name__ == "__main__" and not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
    del sys.path[0]  # this file's folder: a download folder, say, with anybody's `email.py`

import argparse
import collections
import errno
import os
import re
import stat
import time

__version__ = "0.1.0"

# ---- Constants ------------------------

# What a profile without `baseUrl` belongs to, also in a copy of this file from another backend.
PRODUCTION_URL = "https://scripto.codika.io"
BASE_URL = PRODUCTION_URL  # when nothing names one; GET /scripto.py puts its own URL here

KEY_PREFIX = "scripto_"
MASKED_KEY = KEY_PREFIX + "•" * 8
EMAIL_LENGTH = 254  # RFC 5321, 4.5.3.1.3, less the angle brackets
REPLY_BYTES = 1 << 20  # that the client reads
PROFILE_BYTES = 4 << 20  # that a profile file may have
HEAD_BYTES = 32 << 10  # that the backend reads: request line and header,
BODY_BYTES = 16 << 10  # and body
TIMEOUT_SECONDS = "30"  # for one request, from name look-up to last byte
LOCK_SECONDS = 30  # to wait for another program that writes the profile file
NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # a FIFO in a file's place must not hang; not on Windows

# NIST SP 800-63B, 3.1.3: codes live ten minutes at most; wrong attempts count for the account.
CODE_SECONDS = 10 * 60
CODE_ATTEMPTS = 3
LIVE_CODES = 2  # of an email, the newest: late mail does no harm
DAY = 24 * 3600
GUESSES = (("email", "wrong", 15, 15 * 60), ("email", "wrong", 60, DAY))
LIMITS = {  # what is asked for: (whose, event, how many, in seconds)
    "wrong": GUESSES + (("address", "wrong", 100, DAY),),
    "request": GUESSES + (("email", "request", 5, 15 * 60), ("address", "request", 300, DAY)),
}
READ_SECONDS = 10  # for a client to send its request, and to take the reply
WRITE_SECONDS = 5  # to wait for another writer
MAIL_SECONDS = 20  # for a whole delivery
MAILS = 32  # under way at once
CONNECTIONS = 256  # open at once

# ---- Errors ---------------------------
# One type, raised anywhere, turned into output in two places only: main() and, for the backend,
# RequestHandler.handle().

ERRORS = {  # code: (HTTP status, exit status)
    "invalid-argument": (400, 2),
    "unauthenticated": (401, 4),
    "not-found": (404, 1),
    "failed-precondition": (412, 1),
    "resource-exhausted": (429, 3),
    "internal": (500, 3),
    "network-error": (502, 3),
    "invalid-response": (502, 1),
    "permission-denied": (403, 1),
    "cancelled": (499, 130),
}
NEXT_EMAIL = "Pass --email <your-email> to: scripto auth "
NEXT_CODE = "request a new code with: scripto auth login-request"
NEXT_RETRY = "retry shortly"
NEXT_SIGN_IN = "sign in with: scripto auth login-request --email <your-email>"
NEXT_BACKEND = "check that this is a Scripto backend, or pass another with --api-url"
NEXT_DOCTOR = "see what is wrong with: scripto doctor"
NEXT_GUIDE = "see GET /llms.txt"


class ScriptoError(Exception):
    """A key in the message, mistyped or quoted by a backend, is masked. http_status: if it is not
    the table's. headers: for HTTP. A code that is not in the table exits by HTTP status."""

    def __init__(self, code, message, next_action, http_status=None, headers=()):
        self.message = re.sub(KEY_PREFIX + "[!-&(-.0-~]{8,}", MASKED_KEY, message)
        super().__init__(self.message)
        self.code, self.next_action, self.headers = code, next_action, list(headers)
        status = self.http_status = http_status or ERRORS.get(code, (500,))[0]
        by_http = 4 if status == 401 else 3 if status == 429 or status >= 500 else 1
        self.exit_status = ERRORS.get(code, (0, by_http))[1]

    def envelope(self):
        error = {"code": self.code, "message": self.message, "nextAction": self.next_action}
        return {"success": False, "error": error}

    def reply(self):
        """For HTTP: (status, object, headers)."""
        return self.http_status, self.envelope(), self.headers


def refused(message, next_action, http_status=None):
    """invalid-argument: say it differently."""
    return ScriptoError("invalid-argument", message, next_action, http_status)


def blocked(message, next_action):
    """failed-precondition: this machine stands in the way."""
    return ScriptoError("failed-precondition", message, next_action)


def lacking(error):
    """Some Pythons come without ssl, sqlite3 or, as Debian's python3-minimal, even json."""
    module = (error.name or str(error)).lstrip("_")
    hint = "install all of it (Debian, Ubuntu: apt-get install python3), or use another Python"
    return blocked(f"This Python ({sys.executable}) has no module '{module}'.", hint)


def bug(error):
    """What, and in which lines of this file; in words of the system's and SQLite's only, which hold
    nothing from outside."""
    import traceback  # lazy

    sqlite3, words = sys.modules.get("sqlite3"), getattr(error, "strerror", None) or ""
    if sqlite3 and isinstance(error, sqlite3.Error):
        words = str(error)
    lines = [str(place.lineno) for place in traceback.extract_tb(error.__traceback__)
             if place.filename == bug.__code__.co_filename]
    return f"{type(error).__name__} {words} at line {', '.join(lines)}".replace("  ", " ")


# ---- Terminal -------------------------
# The only place that writes to the streams or reads standard input. What a person sees passes
# harmless().

ASCII_FORM = str.maketrans({"✓": "[ok]", "✗": "[error]", "●": "*", "•": "*"})
COLOURS = {"✓": "32", "✗": "31", "●": "36", "!": "33"}  # by the mark that a line begins with


class Context:
    """What a command may use of the world, passed along, so that nothing is global."""

    def __init__(self, as_json, commands, options):
        self.stdin, self.stdout, self.stderr = sys.stdin, sys.stdout, sys.stderr
        self.env, self.as_json, self.warned = os.environ, as_json, set()
        self.commands, self.options = commands, options  # the tables that the parser is made from


def timestamp(seconds):
    """RFC 3339, in UTC; None stays None."""
    return seconds and time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def harmless(text):
    """Makes visible what could steer a terminal: escapes, line breaks, bidirectional marks."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_terminal(stream):
    return stream is not None and stream.isatty()


def emit(stream, text):
    """Writes past the buffer, so that OSError comes up here, and only here."""
    if stream is None:  # the descriptor was closed before the program started
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    try:
        "✓✗●•".encode(stream.encoding)
    except UnicodeEncodeError:
        text = text.translate(ASCII_FORM)
    left = text.encode(stream.encoding, "backslashreplace")
    raw = getattr(stream.buffer, "raw", stream.buffer)
    while left:
        left = left[raw.write(left) or 0 :]


def emit_lines(ctx, stream, lines, end="\n"):
    plain = "NO_COLOR" in ctx.env or ctx.env.get("TERM") == "dumb" or os.name == "nt"
    text = ""
    for line in map(harmless, lines):
        if line[:1] in COLOURS and is_terminal(stream) and not plain:
            line = f"\x1b[{COLOURS[line[0]]}m{line[0]}\x1b[0m{line[1:]}"
        text += line + end
    emit(stream, text)


def answer(ctx, stream, envelope, lines):
    if not ctx.as_json:
        return emit_lines(ctx, stream, lines)
    try:
        import json  # lazy

        text = json.dumps(envelope)
    except ImportError:
        if envelope["success"]:
            raise  # main() comes here once more, to say so
        form = '{"success": false, "error": {"code": "%s", "message": "%s", "nextAction": "%s"}}'
        texts = map(envelope["error"].get, ("code", "message", "nextAction"))
        text = form % tuple(re.sub(r"[^ !#-\[\]-~]", "?", each) for each in texts)
    emit(ctx.stdout, text + "\n")


def say(ctx, *lines, end="\n"):
    """To standard error, if anybody hears. False: a full pipe would have to be waited for."""
    import select  # lazy

    try:
        if os.name == "posix" and not select.select([], [ctx.stderr], [], 0)[1]:
            return False
        emit_lines(ctx, ctx.stderr, lines, end)
    except (OSError, TypeError, ValueError):  # closed, say
        pass
    return True


def warn(ctx, text):
    """Once for each text."""
    if text not in ctx.warned:
        ctx.warned.add(text)
        say(ctx, "! " + text)


def show(ctx, data, lines):
    """Returns the exit status. Raises failed-precondition on a full disk."""
    try:
        answer(ctx, ctx.stdout, {"success": True, "data": data}, lines)
    except BrokenPipeError:  # nobody reads on, which is main()'s business
        raise
    except OSError as error:
        hint = "look at where standard output goes"
        raise blocked(f"The answer cannot be written: {error}.", hint)
    return 0 if data.get("ok", True) else 1


def show_error(ctx, error):
    """Returns the exit status."""
    lines = ["✗ " + error.message, "  next: " + error.next_action]
    try:
        answer(ctx, ctx.stderr, error.envelope(), lines)
    except OSError:
        say(ctx, *lines)
    return error.exit_status


def read_line(ctx, prompt, secret=False):
    """One line of standard input, "" for none. A terminal is prompted, and shows no secret."""
    try:
        if is_terminal(ctx.stdin) and secret:
            import getpass  # lazy

            return getpass.getpass(prompt)
        if is_terminal(ctx.stdin):
            say(ctx, prompt, end="")
        line = ctx.stdin.buffer.readline(64 << 10) if ctx.stdin else b""
    except (OSError, EOFError, UnicodeDecodeError):  # not for reading, gone, or no text
        return ""
    return line.decode("utf-8", "replace").rstrip("\r\n")


def confirm(ctx, args, question, command):
    """Raises cancelled, or invalid-argument where nobody can be asked."""
    if args.yes:
        return
    if not is_terminal(ctx.stdin):
        raise refused("There is no terminal to ask at.", "add --yes to: scripto " + command)
    if read_line(ctx, question + " [y/N] ").strip().lower() not in ("y", "yes"):
        raise ScriptoError("cancelled", "Nothing was changed.", "answer y, or add --yes")


# ---- Door -----------------------------
# Every value from outside is checked here, once, before anything is read, written or sent.
# A check returns the value, or raises invalid-argument.


def readable(text):
    """As typed: in an ASCII locale Python 3.6 makes lone surrogates of UTF-8."""
    try:
        return text if text.isprintable() else os.fsencode(text).decode("utf-8", "replace")
    except UnicodeEncodeError:  # not from the command line: a check will refuse it
        return text


def is_email(text):
    """The contract's rule, less what makes mail read one address as another (RFC 5322: comments,
    groups, quotes; RFC 2047: encoded words): whose code would it be?"""
    local, _, domain = text.partition("@")
    plain = text.isprintable() and not re.search(r'[\ufffd <>()\[\],;:\\"]|=\?.*\?=', text)
    whole = bool(local) and all(domain.split(".")) and "@" not in domain
    return whole and plain and len(text) <= EMAIL_LENGTH


def check_email(text, command):
    text = readable(text or "")
    if not is_email(text):
        problem = f"'{text[:EMAIL_LENGTH]}' is not an email address."
        raise refused(problem if text else "The email is missing.", NEXT_EMAIL + command)
    return text


def check_code(text):
    """`123456`, `123 456` or `123-456`; the digits alone come back."""
    if not re.match(r"\s*[0-9](?:[ -]*[0-9]){5}\s*\Z", text or ""):
        raise refused("The code must be six digits." if text else "The code is missing.", NEXT_CODE)
    return re.sub("[^0-9]", "", text)


def is_key(text):
    """With nothing that a header or a terminal would trip over."""
    return isinstance(text, str) and bool(re.match(KEY_PREFIX + r"[!-~]+\Z", text))


def check_key(ctx, text, source):
    """Never quotes: what was pasted by mistake may be another secret."""
    if text == "-" and source == "--api-key":
        text = read_line(ctx, "API key: ", True)
    if not is_key(text):
        rule = f"must start with '{KEY_PREFIX}' and hold no white space or control characters"
        hint = f"pass --api-key {KEY_PREFIX}<your-key>, or --api-key - for standard input"
        raise refused(f"The key from {source} {rule}.", hint)
    return text


def check_profile_name(text):
    if text is not None and not re.match(r"[A-Za-z0-9._-]{1,64}\Z", text):
        hint = "use 1 to 64 of: letters, digits, . _ -"
        raise refused(f"'{readable(text)[:80]}' is not a profile name.", hint)


def check_key_name(text):
    text = readable(text)
    if len(text) > 100 or not text.isprintable():
        raise refused("A key's name has at most 100 printable characters.", "pass another --name")
    return text


def check_number(text, flag, most):
    if not re.match(r"[0-9]{1,9}\Z", text) or int(text) > most:
        problem = f"'{readable(text)}' is not a whole number from 0 to {most}."
        raise refused(problem, "pass another " + flag)
    return int(text)


def timeout_of(ctx):
    text = ctx.env.get("SCRIPTO_TIMEOUT") or TIMEOUT_SECONDS
    if not re.match(r"[0-9]{0,5}(\.[0-9]{1,9})?\Z", text) or not 0 < float(text) <= DAY:
        problem = f"SCRIPTO_TIMEOUT is '{readable(text)}', not a number of seconds."
        raise refused(problem, f"set it to a number from 1 to {DAY}, or unset it")
    return float(text)


def is_loopback(host):
    """127.0.0.0/8, ::1 (RFC 1122, RFC 4291), localhost and what is below it (RFC 6761)."""
    form = r"(::1|(.+\.)?localhost|127(\.(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])){3})\Z"
    return bool(re.match(form, host))


def ipv6_bytes(host):
    """The address, None for what is none."""
    import socket  # lazy

    try:
        return socket.inet_pton(socket.AF_INET6, host)
    except OSError:
        return None


def origin_of(url):
    """(scheme, host, port): what a key is bound to."""
    from urllib.parse import urlsplit  # lazy

    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def check_base_url(ctx, text, source):
    """Scheme and host in lower case, no trailing slash."""
    form = r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?(/[!-~]*)?\Z"
    match = re.match(form, text, re.IGNORECASE | re.ASCII)
    scheme, host, port, path = match.groups("") if match else ("", "", "", "")
    bad = not match or set(path) & set("?#@\\\"'") or not 0 < int(port[1:] or 1) < 65536
    if bad or (host[0] == "[" and not ipv6_bytes(host[1:-1])):
        problem = f"'{readable(text)[:200]}' is not a base URL"
        if "@" in text:  # what stands before it may be a password
            problem = "a base URL holds no user and no password"
        hint = "pass one like https://host[:port][/path] with --api-url"
        raise refused(f"From {source}: {problem}.", hint)
    scheme, host = scheme.lower(), host.lower()
    trusted = is_loopback(host.strip("[]")) or ctx.env.get("SCRIPTO_ALLOW_HTTP") == "1"
    if scheme == "http" and not trusted:
        problem = f"plain http to {host} would show codes and keys to the network"
        hint = "use https, or set SCRIPTO_ALLOW_HTTP=1 if you trust that network"
        raise refused(f"From {source}: {problem}.", hint)
    port = "" if port == (":443" if scheme == "https" else ":80") else port
    return f"{scheme}://{host}{port}" + path.rstrip("/")


def xdg_folder(ctx, variable, below_home, otherwise):
    """By the XDG specification a variable that is empty or relative is ignored."""
    if os.path.isabs(ctx.env.get(variable, "")):
        return ctx.env[variable]
    try:
        home = ctx.env["HOME"] if "HOME" in ctx.env else os.path.expanduser("~")
    except (KeyError, ImportError):  # before Python 3.8, for a user that is only a number
        home = ""
    if not os.path.isabs(home):
        hint = f"set {variable} to a folder of your own, or {otherwise}"
        raise blocked("There is no home folder: HOME is not set.", hint)
    return os.path.join(home, below_home)


def text_of(thing, member):
    """A member that ought to be text, "" if it is not."""
    value = thing.get(member)
    return value if isinstance(value, str) else ""


def shell_word(text):
    import shlex  # lazy

    return shlex.quote(text)


# ---- Profiles -------------------------
# The only place that knows the profile file. It is whole at every moment, 0600 from its first
# byte (main() sets the umask), and what cannot be understood is never overwritten.


def lock_on_windows(descriptor, give_up):
    try:
        import msvcrt  # lazy

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except ImportError:
        pass  # a Python with neither
    except OSError:
        if time.monotonic() > give_up:
            raise TimeoutError(errno.ETIMEDOUT, "another program is writing it")
        time.sleep(0.02)
        return False
    return True


class ProfileFile:
    """Every failure is failed-precondition and names the path."""

    def __init__(self, ctx):
        home = xdg_folder(ctx, "XDG_CONFIG_HOME", ".config", "SCRIPTO_API_KEY, which needs no file")
        self.ctx, self.folder = ctx, os.path.join(home, "scripto")
        path = os.path.join(self.folder, "config.json")
        self.shown = readable(path)
        self.path = os.path.realpath(path)  # a link stays: what it leads to is replaced

    def trouble(self, what, hint=None):
        hint = hint or "mend it, or move it away: mv {0} {0}.old".format(shell_word(self.shown))
        return blocked(f"The profile file {self.shown} {what}.", hint)

    def content(self):
        """The file's bytes, b"{}" without a file."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | NONBLOCK)
        except FileNotFoundError:
            return b"{}"
        with open(descriptor, "rb", buffering=0) as file:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise self.trouble("is not a regular file")
            if mode & 0o077 and os.name == "posix":
                warn(self.ctx, f"others have access to {self.shown}, until the next write")
            return file.read(PROFILE_BYTES + 1)

    def read(self):
        """The file's object, unknown members and all, "profiles" always there."""
        import json  # lazy

        try:
            content = self.content()
            state = json.loads(content.decode("utf-8-sig")) if len(content) <= PROFILE_BYTES else 0
            profiles = state.setdefault("profiles", {})
            sound = all(isinstance(each, dict) for each in [profiles, *profiles.values()])
        except OSError as error:
            raise self.trouble("cannot be read: " + error.strerror)
        except (ValueError, RecursionError):
            raise self.trouble("is not valid JSON")
        except AttributeError:  # no object where one has to be
            sound = False
        if not sound or not isinstance(state.get("activeProfile"), (str, type(None))):
            raise self.trouble("is too large, or its 'profiles' or 'activeProfile' make no sense")
        return state

    def check_place(self):
        """Raises OSError for no home, or another user's, whom root's file would lock out."""
        nearest, home = os.path.dirname(self.path), os.path.dirname(os.path.dirname(self.folder))
        while not os.path.lexists(nearest):
            nearest = os.path.dirname(nearest)
        owner = os.stat(nearest).st_uid
        if hasattr(os, "geteuid") and owner not in (0, os.geteuid()):
            raise OSError(errno.EPERM, f"{readable(nearest)} belongs to user {owner}")
        if not self.ctx.env.get("XDG_CONFIG_HOME") and not os.path.isdir(home):
            raise OSError(errno.ENOENT, "there is no folder " + readable(home))

    def lock(self):
        """The descriptor that holds it, or TimeoutError. A lock dies with its holder."""
        descriptor = os.open(self.path + ".lock", os.O_RDWR | os.O_CREAT | NONBLOCK, 0o600)
        give_up = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                import fcntl  # lazy; not on Windows

                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                if time.monotonic() > give_up:
                    os.close(descriptor)
                    raise TimeoutError(errno.ETIMEDOUT, "another program is writing it")
                time.sleep(0.02)
            except OSError:
                return descriptor  # no locks on this file system: better unlocked than not
            except ImportError:
                if lock_on_windows(descriptor, give_up):
                    return descriptor

    def replace(self, content, rehearsal):
        """Writes beside the file, through to the disk, and renames. One fixed name, so that
        nothing piles up; made anew, so that it is no link. A rehearsal does all but the renaming,
        with room to spare: a full disk shows."""
        if len(content) > PROFILE_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        beside = self.path + ".tmp"
        if os.path.lexists(beside):
            os.unlink(beside)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(content + b" " * 4096 * rehearsal)
                file.flush()
                os.fsync(descriptor)
            if not rehearsal:
                os.replace(beside, self.path)
        finally:
            if os.path.lexists(beside):
                os.unlink(beside)
        if os.name == "posix":  # the rename has to reach the disk too; Windows opens no folders
            descriptor = os.open(os.path.dirname(self.path), os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def change(self, work=None, *values):
        """Replaces the file after work(state, *values) under the lock, and returns the state; if
        that raises, nothing changes. Without work it is a rehearsal."""
        import json  # lazy

        lock, folder = None, os.path.dirname(self.path)
        try:
            self.check_place()
            os.makedirs(folder, exist_ok=True)
            if folder == self.folder and os.stat(folder).st_mode & 0o077:
                os.chmod(folder, 0o700)  # ours by its name; what a link leads to is not
            lock = self.lock()
            state = self.read()
            if work:
                work(state, *values)
            content = json.dumps(state, indent=2, allow_nan=False).encode("ascii") + b"\n"
            self.replace(content, rehearsal=not work)
            return state
        except (RecursionError, ValueError):
            raise self.trouble("is nested too deeply, or holds a number that is none")
        except OSError as error:
            hint = "make that possible, or set XDG_CONFIG_HOME or SCRIPTO_API_KEY instead"
            raise self.trouble("cannot be written: " + error.strerror, hint)
        finally:
            if lock is not None:
                os.close(lock)


IDENTITY = ("apiKey", "email", "userId", "keyId")


def find_profile(state, name):
    """Raises not-found, invalid-argument for what can be no name."""
    if name not in state["profiles"]:
        check_profile_name(name)
        hint = "see the profiles with: scripto use"
        raise ScriptoError("not-found", f"There is no profile '{name}'.", hint)
    return state["profiles"][name]


def url_of(profile):
    """Where the profile's key was minted."""
    url = profile.get("baseUrl")
    return PRODUCTION_URL if url is None else str(url)


def profile_name_for(email):
    local = re.sub("[^a-z0-9._-]+", "-", email.partition("@")[0].lower())
    return local[:60].strip("-") or "default"


def store_profile(state, named, identity, base_url, just_there=False):
    """Stores a key, with what is known of its IDENTITY, and makes it active. The same email at
    the same backend renews its profile; a taken name gets a number, unless just that is meant."""
    profiles, email = state["profiles"], identity.get("email", "")

    def is_same(name):
        same_email = text_of(profiles[name], "email").lower() == email.lower()
        return same_email and url_of(profiles[name]).rstrip("/") == base_url

    name = named or profile_name_for(email)
    if not named and email:
        candidates = [name, state.get("activeProfile")] + list(profiles)
        name = next((each for each in candidates if each in profiles and is_same(each)), name)
    first, number = name[:60], 1
    while name in profiles and not just_there and not is_same(name):
        number += 1
        name = f"{first}-{number}"
    profile, now = profiles.setdefault(name, {}), timestamp(time.time())
    for member in IDENTITY + ("baseUrl",):  # unknown ones stay
        profile.pop(member, None)
    profile.update(identity, updatedAt=now)
    if base_url != PRODUCTION_URL:
        profile["baseUrl"] = base_url
    profile.setdefault("createdAt", now)
    state["activeProfile"] = name


def remove_profiles(state, names):
    """If the active one goes, the first that is left becomes it."""
    for name in names:
        state["profiles"].pop(name, None)
    if state.get("activeProfile") not in state["profiles"]:
        state["activeProfile"] = next(iter(state["profiles"]), None)


# ---- Resolution -----------------------
# Which key and which base URL are in force, and why. Nothing is sent or written here.


class Target:
    """A base URL and a key, the source of each, and the profile in force, if any."""

    base_url = url_source = key = key_source = name = None
    profile = {}


def given(ctx, check, flag, value, variable):
    """(value, source) by flag, else by environment; None for both without."""
    if value is not None:
        return check(ctx, value, flag), flag
    value = ctx.env.get(variable)
    return (check(ctx, value, variable), variable) if value else (None, None)


def given_url(ctx, args):
    return given(ctx, check_base_url, "--api-url", args.api_url, "SCRIPTO_API_BASE_URL")


def default_url(ctx):
    return check_base_url(ctx, BASE_URL, "this file")


def resolve(ctx, args, with_key=True):
    """By the contract's order. Raises unauthenticated without a key that is needed,
    failed-precondition where a profile's key would go to another origin."""
    target, variable = Target(), "SCRIPTO_API_KEY"
    if with_key:
        key = given(ctx, check_key, "--api-key", args.api_key, variable)
        target.key, target.key_source = key
    target.base_url, target.url_source = given_url(ctx, args)
    needed = args.profile is not None or (with_key and not target.key)
    if needed or not target.base_url:
        pick_profile(ctx, args.profile, needed, target)
    if args.profile is not None and target.key_source == variable:
        warn(ctx, f"{variable} overrides the key of profile '{target.name}'")
    if with_key and not target.key:
        target.key, target.key_source = target.profile.get("apiKey"), "profile"
        if not target.key:
            raise ScriptoError("unauthenticated", "There is no API key.", NEXT_SIGN_IN)
        if not is_key(target.key):
            raise blocked(f"Profile '{target.name}' holds no Scripto key.", NEXT_SIGN_IN)
    use_stored_url(ctx, args, target)
    return target


def pick_profile(ctx, named, needed, target):
    try:
        file = ProfileFile(ctx)
    except ScriptoError:  # no home, no file
        if needed:
            raise
        return
    state = file.read()
    name = named if named is not None else state.get("activeProfile")
    if named is not None or name in state["profiles"]:
        target.name, target.profile = name, find_profile(state, name)


def use_stored_url(ctx, args, target):
    """The profile's where none was given, else the default. A stored key goes to its own backend
    only, whoever set another base URL."""
    unsaid = args.profile is None and "baseUrl" not in target.profile
    if target.key_source != "profile" and (target.base_url or unsaid):
        target.url_source = target.url_source or "default"
        target.base_url = target.base_url or default_url(ctx)
        return
    try:
        home = check_base_url(ctx, url_of(target.profile), f"profile '{target.name}'")
    except ScriptoError as error:  # the file's fault, not the user's
        raise blocked(error.message, error.next_action)
    if not target.base_url:
        target.base_url, target.url_source = home, "profile"
    elif origin_of(home) != origin_of(target.base_url):
        there = f"is not sent to {target.base_url} (from {target.url_source})"
        hint = f"pass --api-key, or {NEXT_SIGN_IN} --api-url {shell_word(target.base_url)}"
        raise blocked(f"The key of profile '{target.name}' belongs to {home} and {there}.", hint)


# ---- HTTP client ----------------------
# The only place that sends a request. No redirect is followed: every request carries a key, a
# code or an email.


def bad_reply(url, what):
    return ScriptoError("invalid-response", f"{url} {what}.", NEXT_BACKEND)


def send(ctx, method, url, body=None, key=None):
    """(status, headers, body as bytes), for an object as JSON and a bearer key (RFC 6750). Raises
    network-error, or invalid-response for what is no HTTP, too large or broken off. In a thread:
    a socket's time-out bounds neither a name look-up nor a peer that sends a byte a second."""
    import json  # lazy
    import socket
    import threading
    import urllib.request

    seconds = timeout_of(ctx)
    headers = {"User-Agent": "scripto/" + __version__, "Accept": "application/json"}
    if body is not None:
        headers["Content-Type"] = "application/json"
        body = json.dumps(body).encode("ascii")
    if key is not None:
        headers["Authorization"] = "Bearer " + key
    request = urllib.request.Request(url, body, headers, method=method)
    opener, outcome, progress = opener_for(url), [], []

    def work():
        outcome.append(exchange(opener, request, seconds, progress))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    result = (outcome + [network_trouble(url, socket.timeout(), seconds, progress)])[0]
    if isinstance(result, ScriptoError):
        raise result
    return result


def proxy_for(url):
    """By the environment; None for loopback."""
    import urllib.request as library  # lazy

    scheme, host, port = origin_of(url)
    if is_loopback(host) or library.proxy_bypass_environment(f"{host}:{port}"):
        return None
    return library.getproxies_environment().get(scheme)


def checked_tls():
    """For a server whose certificate is good for its name."""
    import ssl  # lazy

    try:
        return ssl.create_default_context()
    except OSError as error:
        hint = "check SSL_CERT_FILE, SSL_CERT_DIR and SSLKEYLOGFILE"
        raise blocked(f"TLS cannot be set up: {error}.", hint)


def opener_for(url):
    """Certificates checked, no redirects, no other schemes."""
    import urllib.request as library  # lazy

    scheme, proxy = origin_of(url)[0], proxy_for(url)
    opener = library.OpenerDirector()
    opener.addheaders = []
    opener.add_handler(library.ProxyHandler({scheme: proxy} if proxy else {}))
    opener.add_handler(library.HTTPHandler())
    if scheme == "https":
        tls = checked_tls()  # first: without ssl there is no HTTPSHandler either
        opener.add_handler(library.HTTPSHandler(context=tls))
    return opener


def exchange(opener, request, seconds, progress, again=True):
    """What send() returns or raises. A GET that was reset is tried once more; what spends a code
    never is: it may have been heard. `progress` notes that a reply began."""
    import http.client  # lazy

    url = request.full_url
    try:
        with opener.open(request, timeout=seconds) as response:
            progress.append("reply")
            buffer = bytearray(REPLY_BYTES + 1)  # read() follows a chunk of -1 bytes to the end
            body = bytes(buffer[: response.readinto(buffer)])
            if len(body) > REPLY_BYTES:
                return bad_reply(url, f"sent more than {REPLY_BYTES} bytes")
            if response.length:  # what Content-Length promised beyond this
                return bad_reply(url, "broke off its reply")
            return response.status, response.headers, body
    except (OSError, http.client.HTTPException, ValueError) as error:
        reset = isinstance(getattr(error, "reason", error), ConnectionResetError)
        if reset and again and not progress and request.get_method() == "GET":
            return exchange(opener, request, seconds, progress, again=False)
        return network_trouble(url, error, seconds, progress)


def network_trouble(url, error, seconds, progress):
    """What went wrong on the way, told apart as a person wants to know it."""
    import http.client  # lazy
    import socket

    if isinstance(getattr(error, "reason", None), Exception):
        error = error.reason  # urllib wraps what happens before the reply
    where, ssl = "%s:%d" % origin_of(url)[1:], sys.modules.get("ssl")
    proxied = proxy_for(url)
    where += " (through a proxy)" if proxied else ""
    why = getattr(error, "verify_message", "") or getattr(error, "strerror", "") or str(error)
    late = "did not finish its reply" if progress else "did not answer"
    when = "in the middle of its reply" if progress else "without an answer"
    usual = "check the network, any proxy and the base URL"
    for kinds, text, hint in (  # the first that fits
        ((ssl.SSLError, ssl.CertificateError) if ssl else (), f"TLS with {where} failed: {why}.",
         "check the URL; install ca-certificates, or set SSL_CERT_FILE to who signed theirs"),
        (socket.timeout, f"{where} {late} within {seconds:g} seconds.",
         f"try again, or allow more time: SCRIPTO_TIMEOUT={seconds * 2:g}"),
        ((socket.gaierror, UnicodeError, http.client.InvalidURL),
         f"The host of {where} cannot be found: {why}.", usual),
        (ConnectionRefusedError, f"{where} refused the connection.",
         usual if proxied else "check that it runs there, or pass another with --api-url"),
        (ConnectionError, f"{where} closed the connection {when}.", usual),
        (Exception if proxied and not progress else OSError,
         f"{where} cannot be reached: {why}.", usual),
    ):
        if isinstance(error, kinds):
            return ScriptoError("network-error", text, hint)
    cut = isinstance(error, http.client.IncompleteRead)
    return bad_reply(url, "broke off its reply" if cut else "sent what is not HTTP")


def parse_json(content):
    """The JSON object, None for anything else. As floats, long numbers cost no time."""
    import json  # lazy

    try:
        value = json.loads(content.decode("utf-8"), parse_int=float)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def call(ctx, target, method, path, part, body=None, hint=None):
    """That part of a success, an object. Raises the backend's error; the hint is for an
    invalid-argument without one."""
    url = target.base_url + path
    status, _, content = send(ctx, method, url, body, target.key)
    value = parse_json(content)
    if 300 <= status < 400:
        raise bad_reply(url, "answered with a redirect, which is not followed")
    if value is None and status < 500 and status not in (401, 429):
        raise bad_reply(url, "did not answer in the contract's JSON")
    if status >= 300 or (value.get("success") is False and isinstance(value.get("error"), dict)):
        raise backend_error(status, value or {}, hint)
    if not isinstance(value.get(part), dict):
        raise bad_reply(url, f"left '{part}' out of its answer")
    return value[part]


def backend_error(status, value, hint):
    """Word for word, gaps filled by the status."""
    by_status = {401: "unauthenticated", 404: "not-found", 429: "resource-exhausted"}
    error = value["error"] if isinstance(value.get("error"), dict) else {}
    code = by_status.get(status, "internal" if status >= 500 else "invalid-argument")
    code = text_of(error, "code") or code
    refusal = "The backend refused the key." if code == "unauthenticated" else ""
    message = text_of(error, "message") or refusal or f"The backend answered HTTP {status}."
    usual = {"unauthenticated": NEXT_SIGN_IN, "internal": NEXT_RETRY,
             "resource-exhausted": NEXT_RETRY, "invalid-argument": hint}
    next_action = text_of(error, "nextAction") or usual.get(code) or NEXT_DOCTOR
    return ScriptoError(code, message, next_action, status)


# ---- Account --------------------------
# A command takes the context and the parsed arguments and returns (data for JSON, the same as lines
# for a person).


def cmd_login_request(ctx, args):
    email = check_email(args.email, "login-request")
    target, hint = resolve(ctx, args, with_key=False), NEXT_EMAIL + "login-request"
    data = call(ctx, target, "POST", "/api/cli/login-request", "data", {"email": email}, hint)
    if data.get("ok") is not True:
        raise bad_reply(target.base_url, "did not say that a code was sent")
    then = f"scripto auth login-complete --email {shell_word(email)} --code <6-digit-code>"
    chosen = (("--api-url", args.api_url), ("--profile", args.profile))
    flags = "".join(f" {flag} {shell_word(value)}" for flag, value in chosen if value)
    if flags:
        warn(ctx, f"the code is good at {target.base_url} only: add{flags} there too")
    lines = ["✓ Sign-in code sent to " + email, "", "  Then run:", "    " + then]
    return {"ok": True, "email": email, "nextAction": then + flags}, lines


def cmd_login_complete(ctx, args):
    """What can fail on this machine is tried first: a code is good for one key."""
    email = check_email(args.email, "login-complete")
    code = check_code(read_line(ctx, "Code: ") if args.code == "-" else args.code)
    body = {"email": email, "otp": code}
    if args.name is not None:
        body["name"] = check_key_name(args.name)
    check_profile_name(args.profile_name)
    target, file = resolve(ctx, args, with_key=False), ProfileFile(ctx)
    state = file.change()
    try:
        data = call(ctx, target, "POST", "/api/cli/login-complete", "data", body, NEXT_CODE)
    except ScriptoError as error:
        if error.code in ("network-error", "invalid-response"):  # it may have been heard
            error.next_action += "; if the code is used up by now, " + NEXT_CODE
        raise
    if not is_key(data.get("apiKey")):
        raise bad_reply(target.base_url, "sent no key")
    identity = {name: text_of(data, name) for name in IDENTITY if text_of(data, name)}
    identity.setdefault("email", email)
    name = keep_key(file, state, args.profile_name, identity, target.base_url)
    lines = ["✓ Signed in", "", "  Email:    " + identity["email"]]
    return stored(name, identity, target.base_url, lines)


def keep_key(file, state, named, identity, base_url):
    """The profile's name. If the key cannot be stored after all, the error hands it over, this
    once, with the name that was free in that state: its code is spent."""
    try:
        return file.change(store_profile, named, identity, base_url)["activeProfile"]
    except (ScriptoError, KeyboardInterrupt) as error:
        store_profile(state, named, identity, base_url)
        flags = (f"--api-key {shell_word(identity['apiKey'])} --profile-name "
                 f"{state['activeProfile']} --api-url {shell_word(base_url)}")
        raise blocked(f"Signed in, but the key could not be stored. {error}",
                      "store it with: scripto config set " + flags)


def stored(name, identity, base_url, lines):
    data = dict(identity, profile=name, active=True, baseUrl=base_url, apiKey=MASKED_KEY)
    lines += [f"  Profile:  {name} (now active)", "  API key:  " + MASKED_KEY]
    return data, lines + ["", "  Try it:  scripto whoami"]


def cmd_whoami(ctx, args):
    """What the backend says just now; the profile fills a blank email or name."""
    target = resolve(ctx, args)
    user = call(ctx, target, "GET", "/api/auth/me", "user")
    if not text_of(user, "id"):
        raise bad_reply(target.base_url, "named no user")
    own, name = ({}, None) if target.key_source != "profile" else (target.profile, target.name)
    user_id, email = text_of(user, "id"), text_of(user, "email") or text_of(own, "email")
    user_name = text_of(user, "name") or text_of(own, "name") or name or ""
    data = {"user": {"id": user_id, "email": email, "name": user_name}, "profile": name,
            "baseUrl": target.base_url, "keySource": target.key_source}
    return data, [
        "✓ Signed in as " + (email or user_id), "",
        "  Name:     " + user_name,
        "  User ID:  " + user_id,
        f"  API key:  {MASKED_KEY} (from {'profile ' + name if name else target.key_source})",
        "  Backend:  " + target.base_url,
    ]


def cmd_token(ctx, args):
    """The one command that shows a key."""
    key = resolve(ctx, args).key
    return {"apiKey": key}, [key]


def listed(state):
    """(rows for JSON, lines for a person)."""
    active, profiles = state.get("activeProfile"), state["profiles"].items()
    rows = [{"name": name, "active": name == active, "email": text_of(profile, "email"),
             "baseUrl": url_of(profile)} for name, profile in profiles]
    lines = ["{} {name:16}  {email:24}  {baseUrl}".format("●" if row["active"] else " ", **row)
             for row in rows]
    return rows, lines or ["No profile yet.", "  next: " + NEXT_SIGN_IN]


def warn_of_environment(ctx):
    if ctx.env.get("SCRIPTO_API_KEY"):
        warn(ctx, "SCRIPTO_API_KEY is set and overrides the key of every profile")


def cmd_use(ctx, args):
    file = ProfileFile(ctx)
    state = file.read()
    if args.name is not None:
        find_profile(state, args.name)  # a refusal comes before anything is touched
        state = file.change(dict.update, {"activeProfile": args.name})
        warn_of_environment(ctx)
    rows, lines = listed(state)
    lines = [f"✓ Profile {args.name} is now active"] if args.name else lines
    return {"activeProfile": state.get("activeProfile"), "profiles": rows}, lines


def cmd_logout(ctx, args):
    file = ProfileFile(ctx)
    state = file.read()
    name = args.name if args.name is not None else state.get("activeProfile")
    if name is None:
        raise ScriptoError("not-found", "No profile is active.", NEXT_SIGN_IN)
    backend = url_of(find_profile(state, name))
    active = file.change(remove_profiles, [name])["activeProfile"]
    lines = [f"✓ Signed out: profile {name} is removed from this machine",
             "  Its key is not revoked: copies of it still work at " + backend]
    if active and name == state.get("activeProfile"):
        lines.append(f"  Profile {active} is now active")
    warn_of_environment(ctx)
    return {"removed": name, "revoked": False, "activeProfile": active}, lines


def cmd_config_set(ctx, args):
    name = args.profile_name
    if args.api_key is None:
        raise refused("The API key is missing.", "Pass --api-key <your-key> to: scripto config set")
    identity = {"apiKey": check_key(ctx, args.api_key, "--api-key")}
    given_one = given_url(ctx, args)[0]
    check_profile_name(name)

    def store(state):
        base_url = given_one
        if not base_url and name in state["profiles"]:  # its new key is for the same backend
            base_url = check_base_url(ctx, url_of(state["profiles"][name]), f"profile '{name}'")
        base_url = base_url or default_url(ctx)
        store_profile(state, name, identity, base_url, name is not None)

    state = ProfileFile(ctx).change(store)
    name = state["activeProfile"]
    base_url = url_of(state["profiles"][name])
    return stored(name, identity, base_url, ["✓ Key stored", "", "  Backend:  " + base_url])


def cmd_config_show(ctx, args):
    file = ProfileFile(ctx)
    state = file.read()
    if args.profile is not None:
        find_profile(state, args.profile)
    rows, lines = listed(state)
    for at, row in enumerate(rows):
        if state["profiles"][row["name"]].get("apiKey"):
            row["apiKey"] = MASKED_KEY
            lines[at] += "  " + MASKED_KEY
    data = {"path": file.shown, "profiles": rows}
    lines = ["Profile file: " + file.shown, ""] + lines + [""]
    try:
        target = resolve(ctx, args)
    except ScriptoError as error:
        data["problem"] = error.envelope()["error"]
        return data, lines + ["Key in force: none. " + error.message]
    data["key"] = {"apiKey": MASKED_KEY, "source": target.key_source, "profile": target.name}
    data["baseUrl"] = {"url": target.base_url, "source": target.url_source}
    return data, lines + [f"Key in force: {MASKED_KEY} (from {target.key_source})",
                          f"Base URL:     {target.base_url} (from {target.url_source})"]


def cmd_config_clear(ctx, args):
    file = ProfileFile(ctx)
    state = file.read()
    names = list(state["profiles"])
    if args.profile is not None:
        find_profile(state, args.profile)
        names = [args.profile]
    if names:
        confirm(ctx, args, f"Forget {', '.join(names)}?", "config clear")
    active = file.change(remove_profiles, names)["activeProfile"] if names else None
    lines = ["✓ Forgotten: " + (", ".join(names) or "nothing, there was no profile")]
    return {"removed": names, "activeProfile": active}, lines


# ---- Mail -----------------------------
# How the backend delivers: deliver(message, to) raises OSError, as smtplib's errors are, and
# invalid-argument for an address that takes no mail. Without a message it only tries the way.

# The others: an address that no header can hold; TLS that is not to be had here.
MAIL_ERRORS = (OSError, ValueError, ScriptoError, ImportError)

CODE_MAIL = """Your code to sign in to Scripto at {} is:

    {}

It works once, within %d minutes. If you did not ask for it, ignore
this mail: without the code nobody gets in.
""" % (CODE_SECONDS // 60)


def compose(sender, to, subject, text):
    """As readers and spam filters expect it (RFC 5322, RFC 3834), addresses as UTF-8 (RFC 6532). By
    the library's older class, which takes a fiftieth of the time: all that goes in is checked."""
    from email import message, utils  # lazy

    mail = message.Message()
    for name, value in (
        ("From", f"Scripto <{sender}>"), ("To", to), ("Subject", subject),
        ("Date", utils.formatdate(localtime=True)),
        ("Message-ID", utils.make_msgid(domain=sender.rpartition("@")[2])),
        ("Auto-Submitted", "auto-generated"), ("MIME-Version", "1.0"),
        ("Content-Type", "text/plain; charset=utf-8"),
    ):
        mail[name] = value.encode().decode("ascii", "surrogateescape")
    mail.set_payload(text)
    return mail


def delivery_for(ctx, how, bound_to, sender):
    """By --mail. A code on a console is for who sits there: only for a server bound to loopback."""
    from urllib.parse import urlsplit  # lazy

    kind, _, folder = how.partition(":")
    if how == "console" and is_loopback(bound_to):
        return lambda message, to: message and say(ctx, f"mail to {to}: {message['Subject']}")
    if kind == "maildir" and folder:
        folder = os.path.abspath(os.path.expanduser(folder))
        return lambda message, to: deliver_to_maildir(folder, message)
    try:
        url = urlsplit(how)
        if kind in ("smtp", "smtps") and url.hostname and url.port != 0:
            if kind == "smtps":
                checked_tls()  # a Python without ssl: now is the time to say so
            return lambda message, to: deliver_by_smtp(ctx, url, sender, message, to)
    except ValueError:
        pass  # a bad port, or half a bracket
    forms = "maildir:DIR, smtp://[user@]host[:port], smtps://..., console (on loopback only)"
    raise refused(f"Mail cannot go by '{kind}' from {bound_to}.", "pass --mail with: " + forms)


def deliver_to_maildir(folder, message):
    import mailbox  # lazy

    for part in ("tmp", "new", "cur"):  # mailbox minds it if another program makes them, too
        os.makedirs(os.path.join(folder, part), exist_ok=True)
    try:
        if message:
            mailbox.Maildir(folder, create=False).add(message)
    except mailbox.Error as error:
        raise OSError(errno.EIO, type(error).__name__)


def tls_for_mail(host):
    """On loopback nobody stands in between, and Debian's Postfix signs its own certificate."""
    context = checked_tls()
    if is_loopback(host):
        context.check_hostname = False
        context.verify_mode = 0  # ssl.CERT_NONE
    return context


def hang_up_late(smtp, done):
    """One deadline for the whole: smtplib's own begins anew with each byte. More than once, since
    the connection itself may come late."""
    import socket  # lazy

    seconds = MAIL_SECONDS
    while not done.wait(seconds):
        seconds = 0.5
        try:
            socket.socket.shutdown(smtp.sock, socket.SHUT_RDWR)
        except (OSError, TypeError):
            pass  # gone, or not there yet


def hand_over(smtp, sender, message, to):
    import smtplib  # lazy

    plain = re.match(r"[\0-\x7f]*\Z", sender + to)  # else by RFC 6531
    content = message.as_bytes(policy=message.policy.clone(linesep="\r\n"))
    try:
        smtp.sendmail(sender, [to], content, [] if plain else ["SMTPUTF8", "BODY=8BITMIME"])
    except (smtplib.SMTPRecipientsRefused, smtplib.SMTPNotSupportedError) as error:
        if getattr(error, "recipients", {}).get(to, (550,))[0] < 500:  # greylisting, say
            raise
        raise refused("The mail server takes no mail there.", NEXT_EMAIL + "login-request")


def deliver_by_smtp(ctx, url, sender, message, to):
    """Over checked TLS where it is offered; no password goes out in the clear. The environment's
    wins over the URL's, which the list of processes shows."""
    import smtplib  # lazy
    import threading
    from urllib.parse import unquote

    secure, user = url.scheme == "smtps", unquote(url.username or "")
    password = ctx.env.get("SCRIPTO_SMTP_PASSWORD") or unquote(url.password or "")
    more = {"local_hostname": sender.rpartition("@")[2]}  # else a look-up in the DNS, to wait for
    kind = smtplib.SMTP
    if secure:
        kind, more["context"] = smtplib.SMTP_SSL, tls_for_mail(url.hostname)
    smtp, done = kind(timeout=MAIL_SECONDS, **more), threading.Event()
    smtp._host = url.hostname  # for its certificate; else set only where it connects at once
    threading.Thread(target=hang_up_late, args=(smtp, done), daemon=True).start()
    try:
        status, words = smtp.connect(url.hostname, url.port or 0)
        if status != 220:
            raise smtplib.SMTPConnectError(status, words)
        smtp.ehlo_or_helo_if_needed()
        if not secure and smtp.has_extn("starttls"):
            secure = smtp.starttls(context=tls_for_mail(url.hostname))[0] == 220
        if user:
            if not secure and not is_loopback(url.hostname):
                raise smtplib.SMTPNotSupportedError("no TLS for the password")
            smtp.login(user, password)
        if message:
            hand_over(smtp, sender, message, to)
        smtp.putcmd("quit")  # the mail is taken, whatever the answer to this
    finally:
        done.set()
        smtp.close()


# ---- Store ----------------------------
# The only place that knows SQL: users, keys, live codes, and the events that limits count. Codes
# and keys are stored as hashes only.

# Each from user_version n to n + 1; only ever appended to.
MIGRATIONS = ["""
CREATE TABLE secret (value BLOB NOT NULL);
CREATE TABLE users (id TEXT PRIMARY KEY, email TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
    created_at REAL NOT NULL);
CREATE TABLE keys (id TEXT PRIMARY KEY, user_id TEXT NOT NULL, hash BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL, start TEXT NOT NULL, created_at REAL NOT NULL, last_used_at REAL);
CREATE TABLE codes (email TEXT PRIMARY KEY, hash BLOB NOT NULL, expires_at REAL NOT NULL,
    attempts INTEGER NOT NULL);
CREATE TABLE events (id INTEGER PRIMARY KEY, email TEXT NOT NULL, kind TEXT NOT NULL,
    at REAL NOT NULL);
CREATE INDEX events_by_email ON events (email, kind, at);
CREATE INDEX events_by_age ON events (at);
CREATE INDEX keys_by_user ON keys (user_id)
""", """
CREATE TABLE live (id INTEGER PRIMARY KEY, email TEXT NOT NULL, hash BLOB NOT NULL,
    expires_at REAL NOT NULL, attempts INTEGER NOT NULL);
INSERT INTO live (email, hash, expires_at, attempts)
    SELECT email, hash, expires_at, attempts FROM codes;
DROP TABLE codes;
CREATE INDEX live_by_email ON live (email);
ALTER TABLE events ADD COLUMN address TEXT NOT NULL DEFAULT '';
CREATE INDEX events_by_address ON events (address, kind, at)
"""]


def too_many(what, subject, seconds):
    wait = int(seconds) + 1
    error = ScriptoError("resource-exhausted", f"Too many {what}.", f"retry in {wait} seconds",
                         headers=[("Retry-After", str(wait))])
    error.note = f" too many {what}: {subject}"  # for the log
    return error


def hash_of(key):
    """Plain: nobody guesses 32 random bytes."""
    import hashlib  # lazy

    return hashlib.sha256(key.encode()).digest()


class Store:
    """What write() returned survives a power cut. Reads have a connection of their own, which waits
    for no writer and no disk. SQLite's locks hold off other processes. Each statement is read to
    its end: on PyPy it would stay open, and COMMIT fail. A file is made, or brought up to date, for
    serving only."""

    def __init__(self, ctx, path, serving=True):
        import sqlite3  # lazy
        import threading

        self.lock, self.read_lock = threading.Lock(), threading.Lock()
        home = "" if path else xdg_folder(ctx, "XDG_DATA_HOME", ".local/share", "pass --db FILE")
        # No `:memory:`, which would be lost at the end.
        self.path = path = os.path.abspath(path or os.path.join(home, "scripto", "scripto.db"))
        try:
            if home and serving:
                os.makedirs(os.path.dirname(path), exist_ok=True)
            # Made by us, so that it is 0600 before SQLite writes; its side files follow suit.
            flags = os.O_RDWR | NONBLOCK | (os.O_CREAT if serving else 0)
            os.close(os.open(path, flags, 0o600))
            self.file, self.db = os.stat(path), self.connect(WRITE_SECONDS, "FULL")
            self.write(self.migrate, serving)
            if serving:
                os.chmod(path, 0o600)
                self.run("PRAGMA journal_mode = WAL")
            self.reader = self.connect(0.2, "NORMAL")
            self.read("PRAGMA wal_autocheckpoint = 0")  # which would wait for the disk
            self.secret = self.read("SELECT value FROM secret")[0][0]
            self.check()  # which opens SQLite's other files, while there are descriptors left
        except (OSError, UnicodeError, sqlite3.Error) as error:
            hint = "mend that, or pass --db FILE if you mean another"
            if type(error) is sqlite3.DatabaseError:  # it is damaged, or none
                hint = "restore a backup; sqlite3's command .recover may save what is in there"
            raise self.trouble(f"cannot be used: {error}", hint)

    def trouble(self, what, hint):
        return blocked(f"The database {self.path} {what}.", hint)

    def connect(self, seconds, synchronous):
        import sqlite3  # lazy

        db = sqlite3.connect(
            self.path, timeout=seconds, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA synchronous = " + synchronous).fetchall()
        return db

    def close(self):
        self.reader.close()
        self.db.close()

    def run(self, sql, *values):
        return self.db.execute(sql, values).fetchall()

    def read(self, sql, *values):
        with self.read_lock:
            return self.reader.execute(sql, values).fetchall()

    def hold(self, seconds, work):
        """Runs work() once no other thread writes; raises OSError if that takes too long."""
        if not self.lock.acquire(timeout=seconds):
            raise TimeoutError(errno.ETIMEDOUT, "another writer is not done")
        try:
            return work()
        finally:
            self.lock.release()

    def write(self, work, *values):
        """Runs work(*values) as one transaction. A ScriptoError undoes nothing of it: an attempt
        that is refused counts."""

        def transaction():
            self.db.rollback()  # what a COMMIT that failed may have left: of a full disk, say
            with self.db:  # commits
                self.run("BEGIN IMMEDIATE")
                try:
                    return work(*values)
                except ScriptoError as error:
                    refusal = error
            raise refusal

        return self.hold(WRITE_SECONDS, transaction)

    def check(self):
        """Raises unless both connections read, and from the file at its path: what goes into one
        that was deleted is lost."""
        sql = "SELECT count(*) FROM secret"
        self.read(sql)
        self.hold(0.5, lambda: self.run(sql))
        if not os.path.samestat(self.file, os.stat(self.path)):
            raise OSError(errno.ESTALE, "another database is in its place")

    def migrate(self, serving):
        """Raises, with nothing changed, for a file that is not this program's."""
        version = self.run("PRAGMA user_version")[0][0]
        names = {row[0] for row in self.run("SELECT name FROM sqlite_master")}
        if {"secret", "events"} - names if version else names:
            raise self.trouble("belongs to another program", "pass another file with --db")
        if version > len(MIGRATIONS):
            raise self.trouble("was made by a newer scripto", "update scripto; keep the file")
        if version == len(MIGRATIONS):
            return
        if not serving:
            raise self.trouble("is an older scripto's", "run scripto serve on it, once")
        for statement in ";".join(MIGRATIONS[version:]).split(";"):
            self.run(statement)
        if version == 0:
            self.run("INSERT INTO secret (value) VALUES (?)", os.urandom(32))
        self.run(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def code_hash(self, email, code):
        """Keyed, since a plain hash of six digits hides nothing."""
        import hmac  # lazy

        return hmac.new(self.secret, f"{email}\0{code}".encode(), "sha256").digest()

    def sweep(self):
        """A few rows at a time, whoever writes: millions would be waited for. What a clock that was
        ahead has noted counts as now."""
        now, few = time.time(), "WHERE id IN (SELECT id FROM events WHERE at {} ? LIMIT 50)"
        self.run("DELETE FROM events " + few.format("<="), now - DAY)
        self.run("UPDATE events SET at = ? " + few.format(">"), now, now)
        self.run("DELETE FROM live WHERE id IN (SELECT id FROM live ORDER BY id LIMIT 50)"
                 " AND expires_at NOT BETWEEN ? AND ?", now, now + CODE_SECONDS)

    def check_limits(self, kind, email, address):
        """Raises resource-exhausted until both are within all limits; no address is within any."""
        now, refusals = time.time(), []
        for column, event, most, seconds in LIMITS[kind]:
            subject = email if column == "email" else address
            sql = (f"SELECT at FROM events WHERE {column} = ? AND kind = ? AND at > ?"
                   " ORDER BY at DESC LIMIT 1 OFFSET ?")
            rows = self.run(sql, subject, event, now - seconds, most - 1) if subject else []
            refusals += [(min(at, now) + seconds - now, column) for at, in rows]
        if refusals:
            wait, column = max(refusals)
            shown = address if column == "address" else self.code_hash(email, "").hex()[:12]
            raise too_many("attempts for this " + column, shown, wait)

    def add_event(self, kind, email, address):
        self.run("INSERT INTO events (kind, email, address, at) VALUES (?, ?, ?, ?)",
                 kind, email, address, time.time())
        return self.run("SELECT last_insert_rowid()")[0][0]

    def put_code(self, email, address, code):
        """Counts the request and stores its code, before any mail brings it; returns the event.
        New attempts for the code; those counted for the email stay."""
        self.sweep()
        self.check_limits("request", email, address)
        # One more than are good: when this one's mail fails, all is as it was.
        self.run("DELETE FROM live WHERE email = ? AND id NOT IN"
                 " (SELECT id FROM live WHERE email = ? ORDER BY id DESC LIMIT ?)",
                 email, email, LIVE_CODES)
        self.run("INSERT INTO live (email, hash, expires_at, attempts) VALUES (?, ?, ?, ?)",
                 email, self.code_hash(email, code), time.time() + CODE_SECONDS, CODE_ATTEMPTS)
        return self.add_event("request", email, address)

    def take_back(self, email, code, event):
        """The code, and its event if one is given."""
        entered = self.code_hash(email, code)
        self.run("DELETE FROM live WHERE email = ? AND hash = ?", email, entered)
        self.run("DELETE FROM events WHERE id = ? AND email = ?", event, email)

    def redeem(self, email, address, code, name):
        """Spends a code on a key; returns what its owner gets, the key itself for the only time.
        Raises invalid-argument, and counts the attempt if a code is live: without, it cannot
        succeed, and would only lock somebody out."""
        import hmac  # lazy
        import secrets

        self.sweep()
        self.check_limits("wrong", email, address)
        now, entered = time.time(), self.code_hash(email, code)
        live = self.run("SELECT hash FROM live WHERE email = ? AND attempts > 0"
                        " AND expires_at BETWEEN ? AND ? ORDER BY id DESC LIMIT ?",
                        email, now, now + CODE_SECONDS, LIVE_CODES)
        if not any([hmac.compare_digest(each, entered) for each, in live]):
            if live:
                self.run("UPDATE live SET attempts = attempts - 1 WHERE email = ?", email)
                self.add_event("wrong", email, address)
            raise refused("The code is wrong or has expired.", NEXT_CODE)
        self.run("DELETE FROM live WHERE email = ?", email)
        key = KEY_PREFIX + secrets.token_urlsafe(32)
        user_id, key_id = "user_" + secrets.token_hex(12), "key_" + secrets.token_hex(12)
        self.run("INSERT OR IGNORE INTO users (id, email, name, created_at) VALUES (?, ?, '', ?)",
                 user_id, email, now)
        user_id = self.run("SELECT id FROM users WHERE email = ?", email)[0][0]
        self.run("INSERT INTO keys (id, user_id, hash, name, start, created_at)"
                 " VALUES (?, ?, ?, ?, ?, ?)",
                 key_id, user_id, hash_of(key), name, key[len(KEY_PREFIX) :][:6], now)
        return {"apiKey": key, "keyId": key_id, "userId": user_id, "email": email}

    def user_of(self, key):
        """(id, email, name), or None. Notes the key's use once a minute, at best: a full disk or a
        busy writer keeps nobody out of a guarded page."""
        import sqlite3  # lazy

        now, rows = time.time(), self.read(
            "SELECT users.id, email, users.name, keys.id, coalesce(last_used_at, 0)"
            " FROM keys JOIN users ON users.id = user_id WHERE hash = ?", hash_of(key))
        if rows and not now - 60 < rows[0][4] <= now:
            note = "UPDATE keys SET last_used_at = ? WHERE id = ?"
            try:
                self.hold(0.1, lambda: self.read(note, now, rows[0][3]))
            except (OSError, sqlite3.Error):
                pass
        return rows[0][:3] if rows else None

    def keys_of(self, user_id):
        return self.read("SELECT id, name, start, created_at, last_used_at FROM keys"
                         " WHERE user_id = ? ORDER BY created_at, id", user_id)

    def delete_key(self, user_id, key_id):
        """False for a key that this user has not."""
        self.run("DELETE FROM keys WHERE id = ? AND user_id = ?", key_id, user_id)
        return self.run("SELECT changes()") == [(1,)]

    def users(self):
        """(email, id, since, last use, number of keys) of each."""
        return self.read(
            "SELECT email, users.id, users.created_at, max(last_used_at), count(keys.id) FROM users"
            " LEFT JOIN keys ON user_id = users.id GROUP BY users.id ORDER BY users.created_at")

    def delete_user(self, email):
        """With all keys and live codes; what limits count stays. False if there is none."""
        self.run("DELETE FROM live WHERE email = ?", email)
        self.run("DELETE FROM keys WHERE user_id IN (SELECT id FROM users WHERE email = ?)", email)
        self.run("DELETE FROM users WHERE email = ?", email)
        return self.run("SELECT changes()") == [(1,)]


# ---- Routes ---------------------------
# What the backend answers. A route takes the backend and a request and returns (status, object or
# bytes, headers), or raises ScriptoError. It knows neither sockets nor SQL.

BEARER = ("WWW-Authenticate", "Bearer")


def client_of(address):
    """What is limited as one: an IPv4 address, in either of its forms (RFC 4291, 2.5.5.2), or an
    IPv6 /64, which is one customer's (RFC 6177)."""
    packed = ipv6_bytes(address)
    if packed and packed.startswith(b"\0" * 10 + b"\xff\xff"):
        return ".".join(map(str, packed[12:]))
    return packed[:8].hex() + "/64" if packed else address


class Backend:
    """What routes share."""

    def __init__(self, ctx, deliver, sender, rules, rate_limit):
        import threading  # lazy

        self.ctx, self.deliver, self.sender, self.rules = ctx, deliver, sender, rules
        self.rate_limit, self.recent, self.dropped = rate_limit, {}, 0
        self.guard, self.mails = threading.Lock(), threading.BoundedSemaphore(MAILS)
        self.store = self.public_url = self.source = None  # serve() finds them

    def log(self, text):
        """Who does not read it stops nothing: what nobody takes is dropped, and counted."""
        lines = [f"{timestamp(time.time())} {text}"]
        with self.guard:
            if self.dropped:
                lines.insert(0, f"{self.dropped} lines of the log were dropped")
            self.dropped = 0 if say(self.ctx, *lines) else self.dropped + 1

    def count(self, client):
        """Raises resource-exhausted for one that asks too often in a sliding minute."""
        now = time.monotonic()
        with self.guard:
            times = self.recent.pop(client, None) or collections.deque()
            self.recent[client] = times  # as the latest; the first has been quiet longest
            if len(self.recent) > 9999:
                del self.recent[next(iter(self.recent))]
            while times and times[0] <= now - 60:
                times.popleft()
            if len(times) >= self.rate_limit:
                raise too_many("requests from this address", client, times[0] + 60 - now)
            times.append(now)

    def admit(self, request, command):
        """(body, email, client to be limited, if any) of a public route."""
        client = client_of(request.address()) if self.rate_limit else ""
        if client:
            self.count(client)
        fields = parse_json(request.body)
        if fields is None:
            raise refused("The body is not a JSON object in UTF-8.", NEXT_EMAIL + command)
        email = check_email(text_of(fields, "email"), command).lower()
        if not self.allows(email):
            hint = f"ask the operator of {self.public_url} to allow it, or use another email"
            raise ScriptoError("permission-denied", "That email is not allowed here.", hint)
        return fields, email, client

    def allows(self, email):
        return not self.rules or bool({email, email[email.index("@") :]} & self.rules)

    def user_of(self, request):
        """The bearer (RFC 6750). Raises unauthenticated."""
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        user = self.store.user_of(key.strip()) if scheme.lower() == "bearer" else None
        if user is None or not self.allows(user[1]):
            raise ScriptoError("unauthenticated", "The key is missing or not valid.", NEXT_SIGN_IN,
                               headers=[BEARER])
        return user


def success(data):
    return 200, {"success": True, "data": data}, []


def route_login_request(backend, request):
    """The code is live before its mail can arrive. If that fails, all is as before; but a request
    for an address that takes no mail counts, or this would be a way to list mailboxes."""
    import secrets  # lazy

    _, email, client = backend.admit(request, "login-request")
    code, store = "%06d" % secrets.randbelow(10**6), backend.store
    unsent = ScriptoError("internal", "The sign-in code could not be sent.", NEXT_RETRY)
    if not backend.mails.acquire(blocking=False):  # a slow mail server leaves connections to others
        raise unsent
    try:
        event = store.write(store.put_code, email, client, code)  # flushed: the mail promises it
        try:
            subject = f"{code} is your Scripto sign-in code"
            text = CODE_MAIL.format(backend.public_url, code)
            backend.deliver(compose(backend.sender, email, subject, text), email)
        except MAIL_ERRORS as error:
            refusal = getattr(error, "code", "") == "invalid-argument"
            store.write(store.take_back, email, code, None if refusal else event)
            status = getattr(error, "smtp_code", "")  # not its text, which may quote the address
            backend.log(f"mail failed: {type(error).__name__} {status}")
            raise error if refusal else unsent
    finally:
        backend.mails.release()
    return success({"ok": True, "email": email})


def route_login_complete(backend, request):
    fields, email, client = backend.admit(request, "login-complete")
    code, store = check_code(text_of(fields, "otp")), backend.store
    name = check_key_name(text_of(fields, "name")) or "scripto-cli"
    # Flushed: the key stays, and no power cut gives a guesser his attempts back.
    return success(store.write(store.redeem, email, client, code, name))


def route_me(backend, request):
    """Two odd shapes, the product's. The headers are for web servers that guard pages."""
    try:
        user_id, email, name = backend.user_of(request)
    except ScriptoError:
        return 401, {"error": "Unauthorized"}, [BEARER]
    headers = [("X-Scripto-User", user_id), ("X-Scripto-Email", email.encode().decode("latin-1"))]
    return 200, {"user": {"id": user_id, "email": email, "name": name}}, headers


def route_keys(backend, request):
    keys = backend.store.keys_of(backend.user_of(request)[0])
    return success({"keys": [
        {"id": key_id, "name": name, "start": start, "createdAt": timestamp(created),
         "lastUsedAt": timestamp(used), "expiresAt": None}  # they last until they are revoked
        for key_id, name, start, created, used in keys]})


def route_key(backend, request):
    user_id, key_id = backend.user_of(request)[0], request.path.rpartition("/")[2]
    store = backend.store
    if not store.write(store.delete_key, user_id, key_id):  # flushed: what is revoked stays dead
        raise ScriptoError("not-found", "There is no such key.", "see the ids at GET /api/keys")
    return success({"id": key_id, "revoked": True})


def route_health(backend, request):
    backend.store.check()
    return success({"ok": True, "version": __version__})


def own_source(public_url):
    """This very file, with that URL in it; None where it has none (`python3 -`)."""
    try:
        source = __loader__.get_data(os.path.abspath(__file__))
    except (NameError, AttributeError, OSError):
        return None
    line = f"BASE_URL = {public_url!r}".encode("ascii")
    return re.sub(rb"(?m)^BASE_URL = .*$", lambda _: line, source, count=1)


def route_source(backend, request):
    if not backend.source:
        raise ScriptoError("not-found", "This backend has no file to hand out.", NEXT_GUIDE)
    return 200, backend.source, []


GUIDE = """# Scripto: sign a machine in, with no browser

It takes Python 3.6 or newer and an email address whose mail you can read.

    curl -fsSO BASE_URL/scripto.py   # one file, no packages; it knows this backend
    python3 scripto.py auth login-request --email you@example.com --json
    python3 scripto.py auth login-complete --email you@example.com --code 123456 --json
    python3 scripto.py whoami --json

The first command mails a code: valid 5 minutes, 3 attempts, one use. The second buys a key with
it and keeps it as the active profile. An unknown email is registered.

With --json one envelope goes to standard output: {"success": true, "data": {...}} or
{"success": false, "error": {"code": "...", "message": "...", "nextAction": "..."}}.
On an error do what nextAction says, or show it to the user word for word. Exit status: 0 done,
2 bad argument or code, 3 the same may work later, 4 no valid key, 130 cancelled, else 1.
Other programs send `Authorization: Bearer scripto_...`, to BASE_URL only. Never print the key.
"""


def route_guide(backend, request):
    return 200, GUIDE.replace("BASE_URL", backend.public_url).encode(), []


READ = "GET, HEAD, OPTIONS"
ROUTES = {  # path: (methods, route); HEAD is a GET whose body is not sent (RFC 9110, 9.3.2)
    "/api/cli/login-request": ("POST, OPTIONS", route_login_request),
    "/api/cli/login-complete": ("POST, OPTIONS", route_login_complete),
    "/api/auth/me": (READ, route_me),
    "/api/keys": (READ, route_keys),
    "/api/keys/<id>": ("DELETE, OPTIONS", route_key),
    "/healthz": (READ, route_health),
    "/scripto.py": (READ, route_source),
    "/llms.txt": (READ, route_guide),
    "/": (READ, route_guide),
    "*": ("OPTIONS", None),
}


def pattern_of(path):
    """The entry in ROUTES, or None. Logs name this: who knows what a path holds."""
    path = re.sub(r"^/api/keys/[^/]+$", "/api/keys/<id>", path)
    return path if path in ROUTES else None


def reply_to(backend, request):
    methods, route = ROUTES.get(pattern_of(request.path), ("", None))
    if not methods and request.method in ("CONNECT", "TRACE"):
        methods = ROUTES["*"][0]
    if not methods:
        raise ScriptoError("not-found", "There is nothing here.", NEXT_GUIDE)
    allow = [("Allow", methods)]
    if request.method == "OPTIONS":
        return 204, b"", allow
    if request.method not in methods.split(", "):
        problem = f"This path takes only {methods}."
        raise ScriptoError("invalid-argument", problem, NEXT_GUIDE, 405, allow)
    return route(backend, request)


# ---- Server ---------------------------
# Sockets, threads and time-outs. Two halves of classes whose other halves are the standard
# library's; make_server() joins them, where those are imported.

FOREVER = float("inf")


class Connections:
    """Half of the server. Each connection has a thread; in `deadlines` is when it is cut off, if
    its request is not read, or the reply not taken, by then: never while a route works."""

    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # on Windows it would share the port
    request_queue_size = 128

    def start(self, backend, tls, behind_proxy):
        import threading  # lazy

        self.backend, self.tls, self.behind_proxy = backend, tls, behind_proxy
        self.deadlines, self.clients, self.guard = {}, {}, threading.Lock()
        self.stopping = False

    def get_request(self):
        try:
            connection, address = super().get_request()
        except OSError:  # out of descriptors, most likely
            self.make_room()
            time.sleep(0.05)
            raise
        if self.tls:  # the handshake comes with the first read, in the connection's own thread
            connection = self.tls.wrap_socket(connection, True, do_handshake_on_connect=False)
        return connection, address

    def process_request(self, connection, address):
        if len(self.deadlines) >= CONNECTIONS:
            self.make_room()
        if len(self.deadlines) >= CONNECTIONS:
            return super().shutdown_request(connection)
        self.clients[connection] = client_of(address[0])
        self.deadlines[connection] = time.monotonic() + READ_SECONDS
        super().process_request(connection, address)

    def expect(self, connection, seconds):
        """Gives the next step so many seconds. False: it has been cut off."""
        with self.guard:
            if connection in self.deadlines:
                self.deadlines[connection] = time.monotonic() + seconds
            return connection in self.deadlines

    def cut(self, connections):
        """Their threads find them closed. By the plain socket's shutdown(): TLS would want to talk
        about it."""
        import socket  # lazy

        for connection in connections:
            del self.deadlines[connection]
            try:
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
            except OSError:
                pass  # gone already

    def make_room(self):
        """Who holds most of the connections loses the one that is due first."""
        with self.guard:
            held = collections.Counter(map(self.clients.get, self.deadlines))
            idle = [each for each, until in self.deadlines.items() if until < FOREVER]
            idle.sort(key=lambda each: (-held[self.clients[each]], self.deadlines[each]))
            self.cut(idle[:1])

    def service_actions(self):
        """Twice a second: cuts off who is late, silent or dribbling."""
        now = time.monotonic()
        with self.guard:
            self.cut([each for each, until in self.deadlines.items() if until < now])

    def shutdown_request(self, connection):
        with self.guard:
            self.deadlines.pop(connection, None)
            self.clients.pop(connection, None)
        super().shutdown_request(connection)

    def handle_error(self, connection, address):
        kind = sys.exc_info()[0]
        if not issubclass(kind, OSError):  # which is a client that went away
            self.backend.log("fault in a connection: " + kind.__name__)

    def finish(self):
        """What has arrived is answered, and nothing else waited for."""
        self.stopping = True
        self.shutdown()
        self.timeout = 0
        for _ in range(self.request_queue_size):  # those that nobody has accepted yet
            self.handle_request()
        self.server_close()
        soon = time.monotonic() + 1  # time for the threads to read what is there
        with self.guard:
            for connection, until in self.deadlines.items():
                if until < FOREVER:
                    self.deadlines[connection] = soon
        while self.deadlines and time.monotonic() < soon + MAIL_SECONDS + READ_SECONDS:
            self.service_actions()
            time.sleep(0.02)


class RequestHandler:
    """Half of the handler; to a route it is the request: method, path, headers, body."""

    timeout = READ_SECONDS  # of one read or write; Connections bounds the whole
    disable_nagle_algorithm = True

    def handle(self):
        """One request after the other. The one edge: what is raised below becomes a reply."""
        backend, self.keep = self.server.backend, True
        while self.keep:
            self.keep, self.method, self.path, self.headers, note = False, "-", "", {}, ""
            try:
                if not self.read_request():
                    return
                reply = reply_to(backend, self)
            except ScriptoError as error:
                reply, note = error.reply(), getattr(error, "note", "")
            except Exception as error:
                status = 503 if self.path == "/healthz" else 500
                reply = ScriptoError("internal", "The backend failed.", NEXT_RETRY, status).reply()
                note = " fault: " + bug(error)
            method = self.method if re.match(r"[A-Z]{3,7}\Z", self.method) else "-"
            path = pattern_of(self.path) or "-"
            backend.log(f"{self.address()} {method} {path} {reply[0]}{note}")
            self.send(*reply)
        self.linger()

    def read_request(self):
        """False if the client went away. After a request that is refused the connection ends: it is
        anyone's guess where the next one would start."""
        try:
            length = self.read_head()
            self.body = self.rfile.read(length or 0)
        except OSError:  # silent for too long
            return False
        if length is None or len(self.body) < length:
            return False
        closing = "close" in self.headers.get("Connection", "").lower()
        self.keep = self.persistent and not closing and not self.server.stopping
        return self.server.expect(self.connection, FOREVER)

    def read_head(self):
        """Returns the length of the body, None for no request. Refuses what a proxy in front may
        read in another way (request smuggling; RFC 9112, 2.2, 3.2 and 6.3)."""
        import http.client  # lazy
        import io

        head, line = bytearray(), b"-"
        while line.strip(b"\r\n") and len(head) <= HEAD_BYTES:
            line = self.rfile.readline(HEAD_BYTES)
            head += line
        if not head:
            return None
        if len(head) > HEAD_BYTES:
            raise refused(f"The header is larger than {HEAD_BYTES} bytes.", NEXT_GUIDE, 431)
        first, _, rest = head.partition(b"\n")
        words = re.match(rb"([!-~]+) ([!-~]+) HTTP/1\.([01])\r?\Z", first)
        if not words or line not in (b"\r\n", b"\n") or re.search(rb"\r(?!\n)|\0", head):
            raise refused("The request is not valid HTTP/1.1.", NEXT_GUIDE)
        self.method, target, minor = (word.decode() for word in words.groups())
        self.path = re.sub("(?i)^https?://[^/?]*", "", target).partition("?")[0]
        self.persistent = minor == "1"
        try:
            self.headers = http.client.parse_headers(io.BytesIO(rest))
        except http.client.HTTPException:
            raise refused("The header has too many fields.", NEXT_GUIDE, 431)
        return self.check_head()

    def check_head(self):
        lengths = self.headers.get_all("Content-Length", ["0"])
        hosts = len(self.headers.get_all("Host", []))
        if "Transfer-Encoding" in self.headers:
            raise refused("A body has to come with its length, not in chunks.", NEXT_GUIDE, 501)
        plain = len(lengths) == 1 and re.match(r"[0-9]{1,9}\Z", lengths[0])
        if self.headers.defects or not plain or hosts > 1 or (self.persistent and not hosts):
            raise refused("The header is malformed.", NEXT_GUIDE)
        if int(lengths[0]) > BODY_BYTES:
            raise refused(f"The body is larger than {BODY_BYTES} bytes.", NEXT_GUIDE, 413)
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return int(lengths[0])

    def address(self):
        """As the nearest proxy saw it, without a port, if there is said to be a proxy."""
        match = None
        if self.server.behind_proxy and self.headers:
            last = ",".join(self.headers.get_all("X-Forwarded-For", [])).rpartition(",")[2].strip()
            match = re.match(r"([0-9.]+):\d+\Z|\[?([0-9A-Fa-f.:]{2,45})(?:\](?::\d+)?)?\Z", last)
        return match.group(1) or match.group(2) if match else self.client_address[0]

    def send(self, status, body, headers):
        """The reply in one piece, so that it is one packet if it fits."""
        import http  # lazy
        import json
        from email.utils import formatdate

        self.server.expect(self.connection, READ_SECONDS)  # to take it, and for the next request
        kind = "text/plain; charset=utf-8"
        if isinstance(body, dict):
            kind, body = "application/json", json.dumps(body).encode("ascii")
        if status != 204:
            headers = headers + [("Content-Type", kind), ("Content-Length", len(body))]
        headers = headers + [("Connection", "close")] * (not self.keep) + [
            ("Cache-Control", "no-store"), ("Date", formatdate(usegmt=True))]
        head = f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n"
        self.wfile.write(head.encode("latin-1") + (b"" if self.method == "HEAD" else body))

    def linger(self):
        """To close on unread bytes resets the connection, and the reply is lost (RFC 9112, 9.6)."""
        import socket  # lazy

        self.connection.settimeout(0.5)
        socket.socket.shutdown(self.connection, socket.SHUT_WR)
        for _ in range(16):
            if not self.connection.recv(64 << 10):
                break


def make_server(host, port):
    import http.client  # noqa: F401  lazy; some for requests, while there are descriptors left
    import json  # noqa: F401
    import secrets  # noqa: F401
    import socket
    import socketserver
    import traceback  # noqa: F401

    class Handler(RequestHandler, socketserver.StreamRequestHandler):
        pass

    class Server(Connections, socketserver.ThreadingMixIn, socketserver.TCPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    try:
        return Server((host, port), Handler)
    except (OSError, UnicodeError) as error:
        hint = "pass another --host or --port; --port 0 takes a free one"
        raise blocked(f"Cannot listen at {host}, port {port}: {error}.", hint)


# ---- Operator -------------------------
# The commands of who runs a backend.


def tls_context(args):
    if not args.tls_cert and not args.tls_key:
        return None
    import ssl  # lazy

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(args.tls_cert or "", args.tls_key or "")
    except (OSError, ValueError) as error:
        hint = "pass both --tls-cert and --tls-key: PEM files that belong together"
        raise refused(f"The certificate cannot be used: {error}.", hint)
    return context


def backend_for(ctx, args, host):
    """What was said on the command line is checked here, before anything is opened."""
    rate_limit = check_number(args.rate_limit or "60", "--rate-limit", 10**9)
    if args.public_url:
        args.public_url = check_base_url(ctx, args.public_url, "--public-url")
    sender = "scripto@" + origin_of(args.public_url or "http://localhost")[1]
    sender = args.mail_from or (sender if is_email(sender) else "scripto@localhost")
    rules = {rule.lower() for rule in args.allow or ()}
    addresses = [("--mail-from", sender), ("--test-mail", args.test_mail)]
    for flag, text in addresses + [("--allow", re.sub("^@", "x@", rule)) for rule in rules]:
        if text is not None and not is_email(text):
            raise refused(f"'{readable(text)[:80]}' is no address.", f"pass another {flag}")
    deliver = delivery_for(ctx, args.mail or "console", host, sender)
    return Backend(ctx, deliver, sender, rules, rate_limit)


def try_mail(backend, to):
    """One mail, or without an address only the way there. Raises internal."""
    try:
        subject, text = "A test of Scripto's mail", "It arrived.\n"
        backend.deliver(to and compose(backend.sender, to, subject, text), to)
    except MAIL_ERRORS as error:
        problem = f"Mail does not go: {type(error).__name__}, {error}."
        raise ScriptoError("internal", problem, "mend that, or pass another --mail")
    return {"ok": True, "to": to}, [f"✓ A mail to {to} is on its way"]


def introduce(ctx, backend):
    """Beside what is served: a mail server takes its time."""
    url = backend.public_url
    if url.startswith("http:") and not is_loopback(origin_of(url)[1].strip("[]")):
        warn(ctx, "clients refuse plain http beyond loopback: serve https, or set --public-url")
    if is_terminal(ctx.stderr):
        say(ctx, f"{NEXT_SIGN_IN} --api-url {url}")
    try:
        try_mail(backend, "")
    except ScriptoError as error:
        backend.log(error.message)


def start_command(ctx, args, url):
    """For it, this is the backend. It has the umask that this program was started with."""
    import subprocess  # lazy

    env = dict(ctx.env, SCRIPTO_API_BASE_URL=url)
    kind, _, folder = args.mail.partition(":")
    if kind == "maildir":
        env["SCRIPTO_CODE_FROM"] = "maildir:" + os.path.abspath(os.path.expanduser(folder))
    own = os.umask(ctx.umask)
    try:
        return subprocess.Popen(args.command, env=env)
    except (OSError, ValueError) as error:
        problem = f"'{readable(args.command[0])}' cannot be run: {error}."
        raise refused(problem, "look at the command behind --")
    finally:
        os.umask(own)


def caught_signals():
    """Those that are still to be heeded, in a list that grows. No queue: its lock would be waited
    for by a handler that interrupts its holder."""
    import signal  # lazy

    signals = []
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):  # the last is Windows' Ctrl-Break
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, _: signals.append(number))
    return signals


def wait_for_end(ctx, args, server, process, signals):
    """Returns the exit status, as a shell has it. A command gets the signals: all but a terminal's
    Ctrl-C, which reaches it anyway, as all of them do on Windows. SIGHUP renews the certificate."""
    import signal  # lazy

    while True:
        time.sleep(0.1)
        status = process.poll() if process else None
        if status is not None:
            return 128 - status if status < 0 else status
        while signals:
            number = signals.pop(0)
            if number == getattr(signal, "SIGHUP", None):
                try:
                    server.tls = tls_context(args)
                except ScriptoError as error:
                    server.backend.log("the old one stays. " + error.message)
            elif not process:
                return 0
            elif os.name == "posix" and not (number == signal.SIGINT and is_terminal(ctx.stdin)):
                process.send_signal(number)


def serve(ctx, args):
    import socket  # lazy
    import threading

    host, port = args.host or "127.0.0.1", check_number(args.port or "8787", "--port", 65535)
    backend = backend_for(ctx, args, host)
    if args.test_mail is not None:
        return try_mail(backend, args.test_mail)
    tls, backend.store = tls_context(args), Store(ctx, args.db)
    server = make_server(host, port)
    server.start(backend, tls, args.behind_proxy)
    form = f"{'https' if tls else 'http'}://%s:{server.server_address[1]}"
    url = reached = form % (f"[{host}]" if ":" in host else host)
    if server.server_address[0] in ("0.0.0.0", "::"):  # which nobody can come to
        reached = form % socket.gethostname().lower().encode("idna").decode()
    backend.public_url = args.public_url or reached
    backend.source = own_source(backend.public_url)
    signals = caught_signals()
    show(ctx, {"url": url, "publicUrl": backend.public_url}, ["listening on " + url])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    mailing = threading.Thread(target=introduce, args=[ctx, backend], daemon=True)
    mailing.start()
    process = None
    if args.command:
        mailing.join(1)  # a Maildir is there by then
        process = start_command(ctx, args, backend.public_url)
    status = wait_for_end(ctx, args, server, process, signals)
    server.finish()
    backend.store.close()
    return status


def cmd_serve(ctx, args):
    """Until a signal or, with one, the end of the command; that finds a backend of its own."""
    if not args.command:
        return serve(ctx, args)
    import tempfile  # lazy

    try:
        folder = tempfile.TemporaryDirectory(prefix="scripto-serve-")
    except OSError as error:
        raise blocked(f"There is no place for temporary files: {error}.", "set TMPDIR to one")
    with folder as path:
        args.port, args.db = args.port or "0", args.db or os.path.join(path, "scripto.db")
        args.mail = args.mail or "maildir:" + os.path.join(path, "mail")
        return serve(ctx, args)


def cmd_users(ctx, args):
    """Beside a running server, or without."""
    store = Store(ctx, args.db, serving=False)
    rows = [{"email": email, "id": user_id, "createdAt": timestamp(since),
             "lastUsedAt": timestamp(used), "keys": keys}
            for email, user_id, since, used, keys in store.users()]
    store.close()
    lines = [f"{row['email']:32}  {row['id']}  since {row['createdAt']}  last use"
             f" {row['lastUsedAt'] or 'never'}  keys {row['keys']}" for row in rows]
    return {"users": rows}, lines or ["Nobody has signed up yet."]


def cmd_users_remove(ctx, args):
    email = readable(args.email or "").lower()
    if not email:
        raise refused("The email is missing.", "Pass <email> to: scripto users remove")
    store = Store(ctx, args.db, serving=False)
    confirm(ctx, args, f"Remove {email}, with every key?", "users remove")
    known = store.write(store.delete_user, email)
    store.close()
    if not known:
        hint = "see who has with: scripto users list"
        raise ScriptoError("not-found", f"Nobody has signed up as '{email[:EMAIL_LENGTH]}'.", hint)
    return {"removed": email}, [f"✓ Removed: {email}, with every key"]


def cmd_demo(ctx, args):
    """Real processes, HTTP and mail. Raises internal unless every step worked."""
    import sqlite3  # noqa: F401  lazy; who lacks it hears so here
    import subprocess
    import tempfile

    def start(words, errors):
        command = [sys.executable, os.path.abspath(__file__)] + words.split()
        return subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=errors)

    env = {k: v for k, v in ctx.env.items() if not k.startswith(("SCRIPTO_", "XDG_"))}
    with tempfile.TemporaryDirectory(prefix="scripto-demo-") as folder:
        env.update(HOME=folder, PYTHONIOENCODING="utf-8")
        server = start("serve --port 0 --mail maildir:mail", subprocess.DEVNULL)
        try:
            first = server.stdout.readline().decode().strip()
            if not first.startswith("listening on "):
                raise ScriptoError("internal", "The demo's backend does not start.", NEXT_DOCTOR)
            env["SCRIPTO_API_BASE_URL"] = first.rpartition(" ")[2]
            steps = demo_steps(start, os.path.join(folder, "mail", "new"))
        finally:
            server.terminate()
            server.communicate()
    lines = ["A backend of its own, in a folder that is gone by now, " + first]
    for step in steps:
        lines += ["", step["command"]] + step["output"].splitlines()
    return {"ok": True, "steps": steps}, lines + ["", "✓ All of it works on this machine"]


def demo_steps(start, mail):
    """The two commands and whoami, as [{"command", "output"}], with the mail in between."""
    import subprocess  # lazy

    steps, code = [], ""
    for words in ("auth login-request --email you@example.com",
                  "auth login-complete --email you@example.com --code {}", "whoami"):
        words = words.format(code)
        process = start(words, subprocess.STDOUT)
        output = process.communicate()[0].decode("utf-8", "replace")
        if process.returncode or "you@example.com" not in output:
            text = f"The demo failed at 'scripto {words}': " + " ".join(output.split())
            raise ScriptoError("internal", text, NEXT_DOCTOR)
        steps.append({"command": "$ scripto " + words, "output": output})
        if not code:
            with open(os.path.join(mail, os.listdir(mail)[0]), encoding="utf-8") as file:
                steps.append({"command": "The mail that came:", "output": file.read()})
            code = re.search(r"Subject: (\d{6}) ", steps[-1]["output"]).group(1)
    return steps


# ---- Doctor ---------------------------
# What works on this machine and what does not, by looking only: nothing is changed.

MARKS = {"ok": "✓", "warning": "!", "error": "✗"}


class Findings(list):
    def add(self, name, text, hint=None, bad="error"):
        """With a hint it is as bad as that; without, all is well."""
        status = bad if hint else "ok"
        self.append({"name": name, "status": status, "message": text, "nextAction": hint})

    def check(self, name, examine, *values, bad="error"):
        """Returns what examine(self, *values) does; what that raises is a finding."""
        try:
            return examine(self, *values)
        except (ScriptoError, ImportError) as error:
            error = lacking(error) if isinstance(error, ImportError) else error
            self.add(name, error.message, error.next_action, bad)


def examine_sqlite(found):
    import sqlite3  # lazy

    found.add("sqlite", sqlite3.sqlite_version)


def examine_profiles(found, ctx):
    file = ProfileFile(ctx)
    found.add("profiles", f"{file.shown}: {len(file.read()['profiles'])}")
    mode = os.stat(file.path).st_mode if os.path.exists(file.path) else 0
    if mode & 0o077 and os.name == "posix":
        hint = "chmod 600 " + shell_word(file.path)
        found.add("mode", "others can read the profile file", hint, "warning")
    try:
        file.check_place()
    except OSError as error:
        found.add("folder", error.strerror, "set XDG_CONFIG_HOME to a folder of your own")


def examine_access(found, ctx, args):
    target = resolve(ctx, args)
    text = f"key from {target.key_source}, base URL {target.base_url} from {target.url_source}"
    found.add("access", text)
    return target


def examine_tls(found):
    import ssl  # lazy

    folder = ssl.get_default_verify_paths().capath
    known = checked_tls().cert_store_stats()["x509_ca"]
    if not known and not (folder and os.access(folder, os.R_OK) and os.listdir(folder)):
        hint = "install ca-certificates, or set SSL_CERT_FILE to a file of certificates"
        raise blocked("No certificate authority is known here.", hint)
    found.add("tls", ssl.OPENSSL_VERSION)


def examine_backend(found, ctx, target):
    from email.utils import mktime_tz, parsedate_tz  # lazy

    url = target.base_url
    proxy = re.sub(r"^(\w+://)?.*@", r"\1", proxy_for(url) or "none")  # without its password
    found.add("proxy", f"{proxy} for {origin_of(url)[1]}")
    status, headers, body = send(ctx, "GET", url + "/api/auth/me", None, target.key)
    known = status in (200, 401) and parse_json(body)
    hint = NEXT_RETRY if status == 429 or status >= 500 else NEXT_BACKEND
    found.add("backend", f"{url} answers HTTP {status}", None if known else hint)
    if target.key and known:
        good = status == 200
        found.add("key", "accepted" if good else "refused", None if good else NEXT_SIGN_IN)
    try:
        off = time.time() - mktime_tz(parsedate_tz(headers.get("Date", "")))
    except (TypeError, ValueError, OverflowError):  # no date, or none that can be
        return
    hint = "set this machine's clock: codes live five minutes" if abs(off) > 60 else None
    found.add("clock", f"{off:+.0f} seconds against the backend's", hint, "warning")


def cmd_doctor(ctx, args):
    found, target = Findings(), None
    found.add("python", f"{sys.version.split()[0]} at {sys.executable}")
    found.check("sqlite", examine_sqlite, bad="warning")  # which only serve needs
    found.check("profiles", examine_profiles, ctx)
    try:
        target = found.check("access", examine_access, ctx, args)
        target = target or resolve(ctx, args, with_key=False)
    except ScriptoError:
        pass  # "access" has said it
    if target:
        bad = "error" if target.base_url.startswith("https") else "warning"
        found.check("tls", examine_tls, bad=bad)
        found.check("backend", examine_backend, ctx, target)
    lines = []
    for row in found:
        lines.append(f"{MARKS[row['status']]} {row['name']:9} {row['message']}")
        lines += ["  next: " + row["nextAction"]] if row["nextAction"] else []
    return {"ok": all(row["status"] != "error" for row in found), "checks": found}, lines


# ---- Command line ---------------------
# One table of commands, from which parser and help are made; the way in and out.

OPTIONS = {  # flag: (what it takes, None for a switch; what it is for)
    "name": ("NAME", "a profile"),
    "email": ("EMAIL", "who has signed up"),
    "--email": ("EMAIL", "the email to sign in with"),
    "--code": ("CODE", "the six-digit code; - reads standard input"),
    "--name": ("NAME", "what to call the new key"),
    "--profile-name": ("NAME", "what to call the profile (else made from the email)"),
    "--api-url": ("URL", "the backend (else SCRIPTO_API_BASE_URL, the profile's, production)"),
    "--profile": ("NAME", "the profile (else the active one)"),
    "--api-key": ("KEY", "the key (else SCRIPTO_API_KEY, the profile's); - reads standard input"),
    "--yes": (None, "do not ask"),
    "--host": ("ADDRESS", "where to listen (127.0.0.1)"),
    "--port": ("PORT", "and on which port (8787); 0 takes a free one"),
    "--db": ("FILE", "the database (scripto/scripto.db in the data folder)"),
    "--mail": ("HOW", "console, maildir:DIR, smtp://[user@]host[:port], smtps://..."),
    "--mail-from": ("ADDRESS", "the sender of the mail"),
    "--public-url": ("URL", "how clients reach it, if not by where it listens"),
    "--tls-cert": ("FILE", "serve https with this certificate chain"),
    "--tls-key": ("FILE", "and this private key"),
    "--behind-proxy": (None, "take client addresses from X-Forwarded-For"),
    "--rate-limit": ("N", "requests a minute for an address (60); 0: any number"),
    "--allow": ("RULE", "let in only @domain or this address; any number of times"),
    "--test-mail": ("ADDRESS", "send one mail there, say what happened, and end"),
    "--json": (None, "answer as JSON, one envelope on standard output"),
    "--help": (None, "show this and do nothing"),
}
BACKEND, KEY = " --api-url --profile", "--api-key --api-url --profile"
# What it does, its arguments and flags, an example of them, and where it changes something.
Command = collections.namedtuple("Command", "work purpose takes example changes")
COMMANDS = {
    "auth login-request": Command(
        cmd_login_request, "email a six-digit sign-in code",
        "--email" + BACKEND, "--email you@example.com", "backend"),
    "auth login-complete": Command(
        cmd_login_complete, "sign in with the code; a new email signs up",
        "--email --code --name --profile-name" + BACKEND,
        "--email you@example.com --code 123456", "here, backend"),
    "auth token": Command(cmd_token, "print the API key in force", KEY, "", ""),
    "whoami": Command(cmd_whoami, "ask the backend whose key this is", KEY, "", ""),
    "use": Command(cmd_use, "list the profiles, or switch to one", "name", "you", "here"),
    "logout": Command(
        cmd_logout, "remove a profile, by default the active one", "name", "you", "here"),
    "config set": Command(
        cmd_config_set, "store a key that you have as a profile",
        "--api-key --profile-name --api-url", "--api-key -", "here"),
    "config show": Command(
        cmd_config_show, "show the profiles, what is in force, and why", KEY, "", ""),
    "config clear": Command(
        cmd_config_clear, "forget one profile, or all", "--profile --yes", "--yes", "here"),
    "serve": Command(
        cmd_serve, "run a backend",
        "--host --port --db --mail --mail-from --public-url --tls-cert --tls-key"
        " --behind-proxy --rate-limit --allow --test-mail --", "--mail maildir:mail", "here"),
    "users": Command(cmd_users, "list who has signed up at your backend", "--db", "", ""),
    "users list": Command(cmd_users, "the same", "--db", "", ""),
    "users remove": Command(
        cmd_users_remove, "remove a user of your backend, with every key",
        "email --db --yes", "you@example.com", "backend"),
    "demo": Command(
        cmd_demo, "see the whole sign-in work, in a throw-away folder", "", "", ""),
    "doctor": Command(cmd_doctor, "check what works on this machine", KEY, "", ""),
}
GROUPS = ("auth", "config")


class Parser(argparse.ArgumentParser):
    """argparse, whose errors take the one way out."""

    def error(self, message):
        raise refused(message[:1].upper() + message[1:] + ".", f"see: {self.prog} --help")


def parser_for(name):
    command = COMMANDS[name]
    # A width of our own: argparse would ask a module that a minimal Python lacks.
    parser = Parser("scripto " + name,
                    description=command.purpose[0].upper() + command.purpose[1:] + ".",
                    epilog=f"Example: scripto {name} {command.example}",
                    add_help=False, allow_abbrev=False,
                    formatter_class=lambda prog: argparse.HelpFormatter(prog, width=96))
    parser.color = False  # Python 3.14 would colour what is not yet known to go to a terminal
    words = command.takes.split() + ["--json", "--help"]
    for word in words:
        if word == "--":  # no flag: run() splits there
            continue
        takes, purpose = OPTIONS[word]
        more = {"metavar": takes} if takes else {"action": "store_true"}
        if word == "--allow":
            more["action"] = "append"
        if word in ("name", "email", "--email", "--code"):
            more["nargs"] = "?"  # the command itself says what is missing
        parser.add_argument(word, help=purpose, **more)
    if "--" in words:
        parser.usage = parser.format_usage()[len("usage: ") :].rstrip() + " [-- COMMAND ...]"
    return parser


def overview(prefix=""):
    lines = [f"Usage: scripto {prefix}<command> [flags]", ""]
    shown = [name for name in COMMANDS if name.startswith(prefix)]
    lines += [f"  {name:20} {COMMANDS[name].purpose}" for name in shown]
    lines += ["", "Every command takes --json and --help. Try it with: scripto demo"]
    return {"help": lines}, lines


def unknown(kind, word, known, before, otherwise):
    """The refusal names what is most like the word, if anything is."""
    try:
        import difflib  # lazy

        alike = difflib.get_close_matches(word.partition("=")[0], known, 1)
    except ImportError:  # in a minimal Python: then without a suggestion
        alike = []
    hint = f"did you mean: {before}{alike[0]}" if alike else otherwise
    return refused(f"Unknown {kind} '{word}'.", hint)


def find_command(words):
    """(name, further words)."""
    for size in (2, 1):
        name = " ".join(words[:size])
        if name in COMMANDS:
            return name, words[size:]
    typed = readable(" ".join(words[: 2 if words[:1] and words[0] in GROUPS else 1]))
    kind, hint = "command", "see the commands with: scripto --help"
    if not typed or typed in GROUPS:
        raise refused("No command is given.", hint)
    if typed.startswith("-"):
        kind, hint = "flag", "put flags behind: scripto <command> " + typed.partition("=")[0]
    raise unknown(kind, typed, [*COMMANDS, "--help", "--version"], "scripto ", hint)


def run(ctx, words):
    """What stands behind `--` is another command's alone, and none of it is looked at here."""
    split = words.index("--") if "--" in words else len(words)
    words, behind = words[:split], words[split:]
    ctx.as_json = "--json" in words
    words = ["--help" if word == "-h" else word for word in words if word != "--json"]
    if "--version" in words:
        return {"version": __version__}, ["scripto " + __version__]
    if words[:1] == ["--help"]:
        return overview()
    if words[1:] == ["--help"] and words[0] in GROUPS:
        return overview(words[0] + " ")
    name, rest = find_command(words)
    parser = parser_for(name)
    args, extra = parser.parse_known_args(rest)
    if args.help:
        lines = parser.format_help().splitlines()
        return {"help": lines}, lines
    if extra:
        kind = "flag" if extra[0].startswith("-") else "argument"
        flags = re.findall("--[a-z-]+", COMMANDS[name].takes + " --json --help")
        raise unknown(kind, readable(extra[0]), flags, "", f"see: {parser.prog} --help")
    if behind and "--" not in COMMANDS[name].takes.split():
        raise refused(f"'{name}' takes nothing behind --.", f"see: {parser.prog} --help")
    args.command = behind[1:]
    return COMMANDS[name].work(ctx, args)


def main(argv=None):
    """Returns the exit status. The one edge: what is raised below becomes output here."""
    words = sys.argv[1:] if argv is None else argv
    ctx = Context(False, COMMANDS, OPTIONS)  # run() finds out about --json
    ctx.umask = os.umask(0o077)  # what is made here holds keys, codes and hashes: nobody else's
    try:
        reply = run(ctx, words)
        return show(ctx, *reply) if isinstance(reply, tuple) else reply or 0  # else a status
    except BrokenPipeError:
        return 141  # as a shell reports SIGPIPE
    except ScriptoError as error:
        return show_error(ctx, error)
    except ImportError as error:
        return show_error(ctx, lacking(error))
    except KeyboardInterrupt:
        if is_terminal(ctx.stderr):
            say(ctx, "")  # what was typed stands on the line
        return show_error(ctx, ScriptoError("cancelled", "Interrupted.", "run it again"))
    except Exception as error:
        text = f"A bug in scripto: {bug(error)}."
        return show_error(ctx, ScriptoError("internal", text, "report it, with this line"))


if __name__ == "__main__":
    sys.exit(main())
