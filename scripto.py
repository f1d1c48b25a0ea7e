#!/usr/bin/env python3
"""Scripto on the command line: an email, a six-digit code, and this machine is signed in.

One file, standard library only, Python 3.6 or newer; `scripto serve` makes it its own backend.
Each section stands above those that use it, so the story starts at the bottom, in main():

  Constants, Errors, Context    limits; the one error type; what is passed along
  Terminal, Door                the streams; every value from outside, checked once
  Profiles, Resolution          the profile file; the key and base URL in force, and why
  HTTP client                   the only place that sends a request
  Account, Configuration        the commands that sign in, look around and sign out
  Mail, Store, Routes, Server   the backend: delivery, SQL, answers, sockets
  Backend, Doctor               the commands serve and demo; what works on this machine
  Command line                  the table of commands, the parser, the way in and out

Imports marked `lazy` would cost most commands more time than all their work.
"""
import sys

if __name__ == "__main__" and not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
    del sys.path[0]  # this file's folder: a download folder, say, where anybody's `email.py` is

import argparse
import errno
import os
import re
import stat
import time

__version__ = "0.1.0"

# ---- Constants ----------------------------------------------------------------

# What a profile without `baseUrl` belongs to, also in a copy of this file that came from another
# backend: or one backend's key would be taken for another's.
PRODUCTION_URL = "https://scripto.codika.io"
BASE_URL = PRODUCTION_URL  # when nothing names one; GET /scripto.py puts its own URL here

KEY_PREFIX = "scripto_"
MASKED_KEY = KEY_PREFIX + "•" * 8
EMAIL_LENGTH = 254  # RFC 5321, 4.5.3.1.3, less the angle brackets
REPLY_BYTES = 1 << 20  # that the client reads
PROFILE_BYTES = 4 << 20  # that a profile file may have
BODY_BYTES = 16 << 10  # that the backend reads
TIMEOUT_SECONDS = "30"  # for one request, from name look-up to last byte
LOCK_SECONDS = 30  # to wait for another program that writes the profile file

# NIST SP 800-63B, 3.1.3: codes live ten minutes at most; wrong attempts count for the account.
CODE_SECONDS = 5 * 60
CODE_ATTEMPTS = 3
DAY = 24 * 3600
WRONG_LIMITS = (("wrong", 15, 15 * 60), ("wrong", 60, DAY))  # (event, how many, in seconds)
REQUEST_LIMITS = (("request", 5, 15 * 60),) + WRONG_LIMITS
READ_SECONDS = 10  # for a client to send its request, and to take the answer
MAIL_SECONDS = 15  # for each step of a conversation with a mail server
CONNECTIONS = 256  # open at once

# ---- Errors -------------------------------------------------------------------
# One type, raised anywhere, turned into output in two places only: main() and, for the backend,
# RequestHandler.dispatch().

ERRORS = {  # code: (HTTP status, exit status)
    "invalid-argument": (400, 2),
    "unauthenticated": (401, 4),
    "not-found": (404, 1),
    "failed-precondition": (412, 1),
    "resource-exhausted": (429, 3),
    "internal": (500, 3),
    "network-error": (502, 3),
    "invalid-response": (502, 1),
    "cancelled": (499, 130),
}
NEXT_EMAIL = "Pass --email <your-email> to: scripto "
NEXT_CODE = "request a new code with: scripto auth login-request"
NEXT_RETRY = "retry shortly"
NEXT_SIGN_IN = "sign in with: scripto auth login-request --email <your-email>"
NEXT_BACKEND = "check that this is a Scripto backend, or pass another with --api-url"
NEXT_DOCTOR = "see what is wrong with: scripto doctor"
NEXT_USE = "see the profiles with: scripto use"


class ScriptoError(Exception):
    """message: a key in it, mistyped or quoted by a backend, is masked. http_status: if it is not
    the table's. retry_after: seconds. A code that is not in the table exits by HTTP status."""

    def __init__(self, code, message, next_action=None, http_status=None, retry_after=None):
        message = re.sub(KEY_PREFIX + "[!-&(-.0-~]{8,}", MASKED_KEY, message)
        super().__init__(message)
        self.code, self.message, self.next_action = code, message, next_action
        status = self.http_status = http_status or ERRORS.get(code, (500,))[0]
        by_http = 4 if status == 401 else 3 if status == 429 or status >= 500 else 1
        self.exit_status, self.retry_after = ERRORS.get(code, (0, by_http))[1], retry_after

    def envelope(self):
        error = {"code": self.code, "message": self.message}
        if self.next_action:
            error["nextAction"] = self.next_action
        return {"success": False, "error": error}


def refused(message, next_action=None, http_status=None):
    """invalid-argument: has to be said differently."""
    return ScriptoError("invalid-argument", message, next_action, http_status)


def blocked(message, next_action):
    """failed-precondition: this machine stands in the way."""
    return ScriptoError("failed-precondition", message, next_action)


def lacking(error):
    """Some Pythons come without ssl, sqlite3 or, as Debian's python3-minimal, even json."""
    module = (error.name or str(error)).lstrip("_")
    hint = "install all of it (Debian, Ubuntu: apt-get install python3), or use another Python"
    return blocked("This Python (%s) has no module '%s'." % (sys.executable, module), hint)


def bug(error):
    """Kind and place of an unforeseen exception, instead of a traceback."""
    place = error.__traceback__
    while place.tb_next:
        place = place.tb_next
    return "%s at line %d" % (type(error).__name__, place.tb_lineno)


def reason_of(error):
    """Why a system call failed, without the path."""
    return error.strerror or str(error)


# ---- Context ------------------------------------------------------------------
# What a command may use of the world, passed along, so that nothing is global.


class Context:

    def __init__(self, env, stdin, stdout, stderr, as_json):
        self.env, self.stdin, self.stdout, self.stderr = env, stdin, stdout, stderr
        self.now, self.as_json, self.warned = time.time, as_json, set()

    def setting(self, name):
        """An environment variable; None if it is empty or not set."""
        return self.env.get(name) or None


def timestamp(seconds):
    """Unix seconds as RFC 3339 in UTC; None stays None."""
    return seconds and time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def xdg_folder(ctx, variable, below_home, otherwise):
    """XDG Base Directory specification: a variable that is empty or relative is ignored."""
    folder, home = ctx.env.get(variable, ""), ctx.env.get("HOME")
    if os.path.isabs(folder):
        return folder
    if home is None:
        try:
            home = os.path.expanduser("~")
        except (KeyError, ImportError):  # before Python 3.8, for a user that is only a number
            home = ""
    if not os.path.isabs(home):
        hint = "set %s to a folder of your own, or %s" % (variable, otherwise)
        raise blocked("There is no home folder: HOME is not set.", hint)
    return os.path.join(home, below_home)


# ---- Terminal -----------------------------------------------------------------
# The only place that writes to the streams or reads standard input. All that a person sees passes
# harmless() here.

ASCII_FORM = str.maketrans({"✓": "[ok]", "✗": "[error]", "●": "*", "•": "*"})
COLOURS = {"✓": "32", "✗": "31", "●": "36", "!": "33"}  # by the mark that a line begins with


class Reply:
    """A command's answer: data for JSON, the same as lines for a person."""

    def __init__(self, data, lines, exit_status=0):
        self.data, self.lines, self.exit_status = data, lines, exit_status


def harmless(text):
    """Makes visible what could steer a terminal: escapes, line breaks, bidirectional marks."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_terminal(stream):
    return stream is not None and stream.isatty()


def emit(stream, text):
    """Writes past the buffer, so that OSError comes up here, and not once more at exit."""
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
            line = "\033[%sm%s\033[0m%s" % (COLOURS[line[0]], line[0], line[1:])
        text += line + end
    emit(stream, text)


def answer(ctx, stream, envelope, lines):
    if not ctx.as_json:
        return emit_lines(ctx, stream, lines)
    import json  # lazy

    emit(ctx.stdout, json.dumps(envelope) + "\n")


def say(ctx, *lines, end="\n"):
    """To standard error, if anybody hears."""
    try:
        emit_lines(ctx, ctx.stderr, lines, end)
    except OSError:
        pass


def warn(ctx, text):
    """Says a thing once."""
    if text not in ctx.warned:
        ctx.warned.add(text)
        say(ctx, "! " + text)


def show(ctx, reply):
    """Writes a Reply; returns the exit status. Raises failed-precondition on a full disk,
    BrokenPipeError when nobody reads on."""
    try:
        answer(ctx, ctx.stdout, {"success": True, "data": reply.data}, reply.lines)
    except BrokenPipeError:
        raise
    except OSError as error:
        message = "The answer cannot be written: %s." % reason_of(error)
        raise blocked(message, "look at where standard output goes")
    return reply.exit_status


def show_error(ctx, error):
    """Writes an error; returns the exit status."""
    lines = ["✗ " + error.message]
    if error.next_action:
        lines.append("  next: " + error.next_action)
    try:
        answer(ctx, ctx.stderr, error.envelope(), lines)
    except ImportError:  # no json, which is what there is to say
        parts = (re.sub(r"[^ !#-\[\]-~]", "?", part) for part in lines)
        emit(ctx.stdout, '{"success": false, "error": {"code": "%s", "message": "%s", '
             '"nextAction": "%s"}}\n' % (error.code, next(parts)[2:], next(parts)[8:]))
    except OSError:
        say(ctx, *lines)
    return error.exit_status


def read_line(ctx, prompt, secret=False):
    """One line of standard input, "" if there is none. At a terminal with a prompt, and a
    secret does not show."""
    if is_terminal(ctx.stdin) and secret:
        import getpass  # lazy

        try:
            return getpass.getpass(prompt)
        except (EOFError, UnicodeDecodeError):  # bytes that are no text are no key
            return ""
    if is_terminal(ctx.stdin):
        say(ctx, prompt, end="")
    try:
        line = ctx.stdin.buffer.readline(64 << 10) if ctx.stdin else b""
    except OSError:  # opened for writing only, or a terminal that went away
        line = b""
    return line.decode("utf-8", "replace").rstrip("\r\n")


# ---- Door ---------------------------------------------------------------------
# Every value from outside is checked here, once, before anything is read, written or sent. A
# check returns the value's one form, or raises invalid-argument.


def readable(text):
    """As it was typed: in an ASCII locale Python 3.6 makes lone surrogates of UTF-8."""
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
        problem = "'%s' is not an email address." % text[:EMAIL_LENGTH]
        raise refused(problem if text else "The email is missing.", NEXT_EMAIL + command)
    return text


def check_code(text):
    """`123456`, `123 456` or `123-456`; the digits alone come back."""
    if not re.match(r"\s*[0-9](?:[ -]*[0-9]){5}\s*\Z", text or ""):
        raise refused("The code must be six digits." if text else "The code is missing.", NEXT_CODE)
    return re.sub("[^0-9]", "", text)


def is_key(text):
    """The prefix, and nothing that a header or a terminal would trip over."""
    return isinstance(text, str) and bool(re.match(KEY_PREFIX + r"[!-~]+\Z", text))


def check_key(text, source):
    """Never quoted: what was pasted by mistake may be another secret."""
    if not is_key(text):
        rule = "must start with '%s' and hold no white space or control characters" % KEY_PREFIX
        hint = "pass --api-key %s<your-key>, or --api-key - for standard input" % KEY_PREFIX
        raise refused("The key from %s %s." % (source, rule), hint)
    return text


def check_profile_name(text):
    if not re.match(r"[A-Za-z0-9._-]{1,64}\Z", text):
        problem = "'%s' is not a profile name." % readable(text)[:80]
        raise refused(problem, "use 1 to 64 of: letters, digits, . _ -")
    return text


def check_key_name(text):
    text = readable(text)
    if len(text) > 100 or not text.isprintable():
        raise refused("A key's name has at most 100 printable characters.", "pass another --name")
    return text


def check_number(text, flag, most):
    if not re.match(r"[0-9]{1,9}\Z", text) or int(text) > most:
        problem = "'%s' is not a whole number from 0 to %d." % (readable(text), most)
        raise refused(problem, "pass another " + flag)
    return int(text)


def timeout_of(ctx):
    """SCRIPTO_TIMEOUT, in seconds."""
    text = ctx.setting("SCRIPTO_TIMEOUT") or TIMEOUT_SECONDS
    if not re.match(r"[0-9]{0,5}(\.[0-9]{1,9})?\Z", text) or not 0 < float(text) <= DAY:
        problem = "SCRIPTO_TIMEOUT is '%s', not a number of seconds." % readable(text)
        raise refused(problem, "set it to a number from 1 to %d, or unset it" % DAY)
    return float(text)


def is_loopback(host):
    """127.0.0.0/8, ::1 (RFC 1122, RFC 4291), localhost and what is below it (RFC 6761)."""
    octet = "(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"
    return bool(re.match(r"(::1|(.+\.)?localhost|127(\.%s){3})\Z" % octet, host))


def is_ipv6(host):
    import socket  # lazy

    try:
        return bool(socket.inet_pton(socket.AF_INET6, host))
    except OSError:
        return False


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
    if bad or (host[0] == "[" and not is_ipv6(host[1:-1])):
        problem = "'%s' is not a base URL" % readable(text)[:200]
        if "@" in text:  # what stands before it may be a password
            problem = "a base URL holds no user and no password"
        hint = "pass one like https://host[:port][/path] with --api-url"
        raise refused("From %s: %s." % (source, problem), hint)
    scheme, host = scheme.lower(), host.lower()
    insecure = scheme == "http" and not is_loopback(host.strip("[]"))
    if insecure and ctx.env.get("SCRIPTO_ALLOW_HTTP") != "1":
        problem = "From %s: plain http to %s would show codes and keys to the network."
        hint = "use https, or set SCRIPTO_ALLOW_HTTP=1 if you trust that network"
        raise refused(problem % (source, host), hint)
    port = "" if port == {"http": ":80", "https": ":443"}[scheme] else port
    return scheme + "://" + host + port + path.rstrip("/")


def shell_word(text):
    """A value as it can be pasted into a shell."""
    import shlex  # lazy

    return shlex.quote(text)


# ---- Profiles -----------------------------------------------------------------
# The only place that knows the profile file. It is whole at every moment, 0600 from its first
# byte, and what cannot be understood is never overwritten.


def try_lock(descriptor):
    """False: another program has it. The system drops it with its holder, however that dies, so
    no lock is ever stale."""
    try:
        import fcntl  # lazy; not on Windows

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks: better unlocked than not
    except ImportError:
        try:
            import msvcrt  # lazy; only there

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        except ImportError:
            pass  # a Python with neither
    return True


class ProfileFile:
    """This user's profile file. Every failure is failed-precondition and names the path."""

    def __init__(self, ctx):
        home = xdg_folder(ctx, "XDG_CONFIG_HOME", ".config", "SCRIPTO_API_KEY, which needs no file")
        self.ctx, self.folder = ctx, os.path.join(home, "scripto")
        path = os.path.join(self.folder, "config.json")
        self.shown = readable(path)
        self.path = os.path.realpath(path)  # a link stays: what it leads to is replaced

    def trouble(self, what, hint=None):
        hint = hint or "mend it, or move it away: mv {0} {0}.old".format(shell_word(self.shown))
        return blocked("The profile file %s %s." % (self.shown, what), hint)

    def content(self):
        """The file's bytes, b"{}" without a file. Nothing in its place makes this hang."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except FileNotFoundError:
            return b"{}"
        with open(descriptor, "rb", buffering=0) as file:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise self.trouble("is not a regular file")
            if mode & 0o077 and os.name == "posix":
                text = "%s can be read by others (mode %04o); the next write makes it 0600"
                warn(self.ctx, text % (self.shown, stat.S_IMODE(mode)))
            return file.read(PROFILE_BYTES + 1)

    def read(self):
        """The file's object, unknown members and all, "profiles" always there."""
        import json  # lazy

        try:
            content = self.content()
            state = json.loads(content.decode("utf-8-sig")) if len(content) <= PROFILE_BYTES else 0
        except OSError as error:
            raise self.trouble("cannot be read: " + reason_of(error))
        except (ValueError, RecursionError):
            raise self.trouble("is not valid JSON")
        profiles = state.setdefault("profiles", {}) if isinstance(state, dict) else None
        if not isinstance(profiles, dict) or not all(isinstance(p, dict) for p in profiles.values()):
            raise self.trouble("is not an object of moderate size with an object of 'profiles'")
        if not isinstance(state.get("activeProfile"), (str, type(None))):
            raise self.trouble("names an active profile that is not text")
        return state

    def missing_folders(self):
        """Those on the way, outermost first. Raises OSError for a home that is not there, and for
        another user's, whom a file of root's would lock out."""
        missing, nearest = [], os.path.dirname(self.path)
        while not os.path.lexists(nearest):
            missing.insert(0, nearest)
            nearest = os.path.dirname(nearest)
        owner, home = os.stat(nearest).st_uid, os.path.dirname(os.path.dirname(self.folder))
        if hasattr(os, "geteuid") and owner not in (0, os.geteuid()):
            raise OSError(errno.EPERM, "%s belongs to user %d" % (readable(nearest), owner))
        if not self.ctx.setting("XDG_CONFIG_HOME") and not os.path.isdir(home):
            raise OSError(errno.ENOENT, "there is no folder " + readable(home))
        return missing

    def prepare_folder(self):
        """Makes it, 0700 like those on the way, or closes it to others."""
        for folder in self.missing_folders():
            try:
                os.mkdir(folder, 0o700)
                os.chmod(folder, 0o700)  # the umask may have taken too much
            except FileExistsError:
                pass  # another program was faster
        folder = os.path.dirname(self.path)
        mode = stat.S_IMODE(os.stat(folder).st_mode)
        if folder == self.folder and mode & 0o077:  # ours by its name; a link's target is not
            os.chmod(folder, mode & 0o700)

    def lock(self):
        """Returns the descriptor that holds it, or raises TimeoutError."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(self.path + ".lock", flags, 0o600)
        if hasattr(os, "fchmod"):  # not on Windows; the umask may have taken too much
            os.fchmod(descriptor, 0o600)
        give_up = time.monotonic() + LOCK_SECONDS
        while not try_lock(descriptor):
            if time.monotonic() > give_up:
                os.close(descriptor)
                raise TimeoutError(errno.ETIMEDOUT, "another program is writing it")
            time.sleep(0.02)
        return descriptor

    def write_beside(self, content):
        """Writes a temporary file through to the disk. One fixed name, under the lock, so that
        nothing piles up; made anew, so that it is no link and 0600 from the start."""
        path = self.path + ".tmp"
        if os.path.lexists(path):
            os.unlink(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "wb") as file:
                if hasattr(os, "fchmod"):  # as above
                    os.fchmod(descriptor, 0o600)
                file.write(content)
                file.flush()
                os.fsync(descriptor)
        except OSError:
            os.unlink(path)
            raise
        return path

    def replace(self, content, rehearsal):
        """A rehearsal does all but the replacement, with room to spare: a full disk shows."""
        if len(content) > PROFILE_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        beside = self.write_beside(content + b" " * 4096 * rehearsal)
        if rehearsal:
            return os.unlink(beside)
        os.replace(beside, self.path)
        if os.name == "posix":  # the rename has to reach the disk too; Windows opens no folders
            descriptor = os.open(os.path.dirname(self.path), os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def change(self, work, rehearsal=False):
        """Replaces the file after work(state) under the lock, and returns what work() returned;
        if that raises, nothing changes."""
        import json  # lazy

        lock = None
        try:
            self.prepare_folder()
            lock = self.lock()
            state = self.read()
            result = work(state)
            content = json.dumps(state, indent=2, allow_nan=False).encode("ascii") + b"\n"
            self.replace(content, rehearsal)
            return result
        except (RecursionError, ValueError):
            raise self.trouble("is nested too deeply, or holds a number that is none")
        except OSError as error:
            hint = "make that possible, or set XDG_CONFIG_HOME or SCRIPTO_API_KEY instead"
            raise self.trouble("cannot be written: " + reason_of(error), hint)
        finally:
            if lock is not None:
                os.close(lock)


def find_profile(state, name):
    """Raises not-found, or invalid-argument for what can be no name."""
    if name not in state["profiles"]:
        check_profile_name(name)
        raise ScriptoError("not-found", "There is no profile '%s'." % name, NEXT_USE)
    return state["profiles"][name]


def text_of(thing, member):
    """A member that ought to be text, "" if it is not."""
    value = thing.get(member)
    return value if isinstance(value, str) else ""


def url_of(profile):
    """The backend that minted the profile's key."""
    url = profile.get("baseUrl")
    return PRODUCTION_URL if url is None else str(url)


def profile_name_for(email):
    local = re.sub("[^a-z0-9._-]+", "-", email.partition("@")[0].lower())
    return local[:60].strip("-") or "default"


def store_profile(state, named, identity, base_url, now, just_there=False):
    """Stores a key (identity: what is known of apiKey, email, userId, keyId), makes it active,
    and returns its name. The same email at the same backend renews its profile; a taken name
    gets a number, unless just that profile is meant."""
    profiles, email = state["profiles"], identity.get("email", "")

    def is_same(name):
        same_email = text_of(profiles[name], "email").lower() == email.lower()
        return same_email and url_of(profiles[name]).rstrip("/") == base_url

    name = named or (profile_name_for(email) if email else "default")
    if not named and email:
        candidates = [name, state.get("activeProfile")] + list(profiles)
        name = next((each for each in candidates if each in profiles and is_same(each)), name)
    first, number = name, 1
    while name in profiles and not just_there and not is_same(name):
        number += 1
        name = "%s-%d" % (first[:60], number)
    profile = profiles.setdefault(name, {})
    for member in ("apiKey", "email", "userId", "keyId", "baseUrl"):  # unknown ones stay
        profile.pop(member, None)
    profile.update(identity)
    if base_url != PRODUCTION_URL:
        profile["baseUrl"] = base_url
    profile.setdefault("createdAt", timestamp(now))
    profile["updatedAt"] = timestamp(now)
    state["activeProfile"] = name
    return name


def remove_profiles(state, names):
    """Returns the active one's name: if that went, the first that is left becomes it."""
    for name in names:
        state["profiles"].pop(name, None)
    if state.get("activeProfile") not in state["profiles"]:
        state["activeProfile"] = next(iter(state["profiles"]), None)
    return state["activeProfile"]


# ---- Resolution ---------------------------------------------------------------
# Which key and which base URL are in force, and why. Nothing is sent or written here.


class Target:
    """A base URL and a key, with the source of each, and the profile in force, if any."""

    def __init__(self):
        self.base_url = self.url_source = self.key = self.key_source = self.name = None
        self.profile = {}


def given_key(ctx, text):
    return check_key(read_line(ctx, "API key: ", True) if text == "-" else text, "--api-key")


def resolve(ctx, args, with_key=True):
    """A Target by the contract's order. Raises unauthenticated without a key where one is
    needed, failed-precondition where a profile's key would go to another origin."""
    target, key, url = Target(), "SCRIPTO_API_KEY", "SCRIPTO_API_BASE_URL"
    if with_key and args.api_key is not None:
        target.key, target.key_source = given_key(ctx, args.api_key), "--api-key"
    elif with_key and ctx.setting(key):
        target.key, target.key_source = check_key(ctx.env[key], key), key
    for source, text in (("--api-url", args.api_url), (url, ctx.setting(url))):
        if text is not None and not target.base_url:
            target.base_url, target.url_source = check_base_url(ctx, text, source), source
    needed = args.profile is not None or (with_key and not target.key)
    if needed or not target.base_url:
        pick_profile(ctx, args.profile, needed, target)
    if args.profile is not None and target.key_source == key:
        warn(ctx, "%s overrides the key of profile '%s'" % (key, target.name))
    if with_key and not target.key:
        target.key, target.key_source = target.profile.get("apiKey"), "profile"
        if not target.key:
            raise ScriptoError("unauthenticated", "There is no API key.", NEXT_SIGN_IN)
        if not is_key(target.key):
            raise blocked("Profile '%s' holds no Scripto key." % target.name, NEXT_SIGN_IN)
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
    """The profile's where none was given, else the default. A stored key goes to its own
    backend only, whoever set another base URL, and why."""
    unsaid = args.profile is None and "baseUrl" not in target.profile
    if target.key_source != "profile" and (target.base_url or unsaid):
        target.url_source = target.url_source or "default"
        target.base_url = target.base_url or check_base_url(ctx, BASE_URL, "this file")
        return
    try:
        home = check_base_url(ctx, url_of(target.profile), "profile '%s'" % target.name)
    except ScriptoError as error:  # the file's fault, not the user's
        raise blocked(error.message, error.next_action)
    if not target.base_url:
        target.base_url, target.url_source = home, "profile"
    elif origin_of(home) != origin_of(target.base_url):
        message = "The key of profile '%s' belongs to %s and is not sent to %s (from %s)."
        raise blocked(message % (target.name, home, target.base_url, target.url_source),
                      "pass --api-key, or sign in there with: scripto auth login-request "
                      "--email <your-email> --api-url " + shell_word(target.base_url))


# ---- HTTP client --------------------------------------------------------------
# The only place that sends a request. No redirect is followed: every request carries a key, a
# code or an email.


def bad_reply(url, what):
    return ScriptoError("invalid-response", "%s %s." % (url, what), NEXT_BACKEND)


def send(ctx, method, url, body=None, key=None):
    """Sends an object as JSON, the key as bearer token (RFC 6750); returns (status, headers, body
    as bytes), whatever the status. Raises network-error, or invalid-response for what is no HTTP,
    too large or broken off. A thread does the work, since a socket's time-out bounds neither a
    name look-up nor a peer that sends a byte a second."""
    import http.client  # lazy, like the others
    import json
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
        try:
            outcome.append(exchange(opener, request, seconds, progress))
        except (OSError, http.client.HTTPException, ValueError) as error:
            outcome.append(network_trouble(url, error, seconds, progress))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    result = (outcome + [network_trouble(url, socket.timeout(), seconds, progress)])[0]
    if isinstance(result, ScriptoError):
        raise result
    return result


def proxy_for(url):
    """The proxy that the environment names for it, None for loopback."""
    import urllib.request as library  # lazy

    scheme, host, port = origin_of(url)
    if is_loopback(host) or library.proxy_bypass_environment("%s:%d" % (host, port)):
        return None
    return library.getproxies_environment().get(scheme)


def client_tls():
    """Certificates are always checked."""
    import ssl  # lazy, and some Pythons lack it

    try:
        return ssl.create_default_context()
    except OSError as error:
        hint = "check SSL_CERT_FILE, SSL_CERT_DIR and SSLKEYLOGFILE"
        raise blocked("TLS cannot be set up: %s." % reason_of(error), hint)


def opener_for(url):
    """No redirects, no opinion on statuses, no other schemes."""
    import urllib.request as library  # lazy

    scheme, proxy = origin_of(url)[0], proxy_for(url)
    opener = library.OpenerDirector()
    opener.addheaders = []
    opener.add_handler(library.ProxyHandler({scheme: proxy} if proxy else {}))
    opener.add_handler(library.HTTPHandler())
    if scheme == "https":
        tls = client_tls()
        opener.add_handler(library.HTTPSHandler(context=tls))
    return opener


def exchange(opener, request, seconds, progress):
    """A GET that was reset is tried once more; what spends a code never is: it may have been
    heard. `progress` notes that a reply began."""
    try:
        response = opener.open(request, timeout=seconds)
    except OSError as error:
        reset = isinstance(getattr(error, "reason", error), ConnectionResetError)
        if not reset or request.get_method() != "GET":
            raise
        response = opener.open(request, timeout=seconds)
    with response:
        progress.append("reply")
        buffer = bytearray(REPLY_BYTES + 1)  # read() would follow a chunk of -1 bytes to the end
        body = bytes(buffer[: response.readinto(buffer)])
        if len(body) > REPLY_BYTES:
            return bad_reply(request.full_url, "sent more than %d bytes" % REPLY_BYTES)
        if response.length:  # what Content-Length promised beyond this
            return bad_reply(request.full_url, "broke off its reply")
        return response.status, response.headers, body


def network_trouble(url, error, seconds, progress):
    """What went wrong on the way, told apart as a person wants to know it."""
    import http.client  # lazy
    import socket

    if isinstance(getattr(error, "reason", None), Exception):
        error = error.reason  # urllib wraps what happens before the reply
    where, tls = "%s:%d" % origin_of(url)[1:], sys.modules.get("ssl")
    hint = "check the network, any proxy and the base URL"
    if proxy_for(url):
        where += " (through a proxy)"
    if tls and isinstance(error, (tls.SSLError, tls.CertificateError)):
        text = getattr(error, "verify_message", "") or getattr(error, "strerror", 0) or str(error)
        text = re.sub(r"^\[.*?\] *|\.?( *\(_ssl\.c:\d+\))?$", "", text)  # OpenSSL's own, bare
        text = "TLS with %s failed: %s." % (where, text)
        hint = "check scheme and host; for their certificate install ca-certificates, or set SSL_CERT_FILE"
    elif isinstance(error, socket.timeout):
        what = "did not finish its reply" if progress else "did not answer"
        text = "%s %s within %g seconds." % (where, what, seconds)
        hint = "try again, or allow more time: SCRIPTO_TIMEOUT=%g" % (seconds * 2)
    elif isinstance(error, (socket.gaierror, UnicodeError, http.client.InvalidURL)):
        reason = getattr(error, "strerror", None) or "not a host name"
        text = "The host of %s cannot be found: %s." % (where, reason)
    elif isinstance(error, ConnectionRefusedError):
        text = "%s refused the connection." % where
        if not proxy_for(url):
            hint = "check that the backend runs there, or pass another with --api-url"
    elif isinstance(error, ConnectionError):
        when = "in the middle of its reply" if progress else "without an answer"
        text = "%s closed the connection %s." % (where, when)
    elif isinstance(error, OSError) or (proxy_for(url) and not progress):
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        text = "%s cannot be reached: %s." % (where, reason)
    else:
        cut = isinstance(error, http.client.IncompleteRead)
        return bad_reply(url, "broke off its reply" if cut else "sent what is not HTTP")
    return ScriptoError("network-error", text, hint)


def parse_json(content):
    """The JSON object, None for anything else. No number matters here; as floats they cost no
    more than their length, however many digits."""
    import json  # lazy

    try:
        value = json.loads(content.decode("utf-8"), parse_int=float)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def call(ctx, target, method, path, part, body=None, hints=None):
    """That part of a success, an object. Raises the backend's error; `hints` has next actions by
    code, for those that name none."""
    url = target.base_url + path
    status, headers, content = send(ctx, method, url, body, target.key)
    value = parse_json(content)
    if 300 <= status < 400:
        raise bad_reply(url, "answered with a redirect, which is not followed")
    if value is None and status < 500 and status not in (401, 429):
        raise bad_reply(url, "did not answer in the contract's JSON")
    if status >= 300 or (value.get("success") is False and isinstance(value.get("error"), dict)):
        raise backend_error(status, headers, value or {}, hints or {})
    if not isinstance(value.get(part), dict):
        raise bad_reply(url, "left '%s' out of its answer" % part)
    return value[part]


def backend_error(status, headers, value, hints):
    """Its members word for word, gaps filled by the status."""
    by_status = {401: "unauthenticated", 404: "not-found", 429: "resource-exhausted"}
    error = value.get("error")
    error = error if isinstance(error, dict) else {}
    code = by_status.get(status, "internal" if status >= 500 else "invalid-argument")
    code = text_of(error, "code") or code
    refusal = "The backend refused the key." if code == "unauthenticated" else ""
    message = text_of(error, "message") or refusal or "The backend answered HTTP %d." % status
    wait = headers.get("Retry-After", "")
    retry = "retry in %s seconds" % wait if wait.isdigit() else NEXT_RETRY
    usual = {"unauthenticated": NEXT_SIGN_IN, "internal": retry, "resource-exhausted": retry}
    hint = text_of(error, "nextAction") or hints.get(code) or usual.get(code, NEXT_DOCTOR)
    return ScriptoError(code, message, hint, status)


# ---- Account ------------------------------------------------------------------
# A command takes the context and the parsed arguments and returns a Reply.


def cmd_login_request(ctx, args):
    email = check_email(args.email, "auth login-request")
    target = resolve(ctx, args, with_key=False)
    hints = {"invalid-argument": NEXT_EMAIL + "auth login-request"}
    data = call(ctx, target, "POST", "/api/cli/login-request", "data", {"email": email}, hints)
    if data.get("ok") is not True:
        raise bad_reply(target.base_url, "did not say that a code was sent")
    then = "scripto auth login-complete --email %s --code <6-digit-code>" % shell_word(email)
    chosen = (("--api-url", args.api_url), ("--profile", args.profile))
    flags = "".join(" %s %s" % (flag, shell_word(value)) for flag, value in chosen if value)
    if flags:
        warn(ctx, "the code is good at %s only: add%s there too" % (target.base_url, flags))
    lines = ["✓ Sign-in code sent to " + email, "", "  Then run:", "    " + then]
    return Reply({"ok": True, "email": email, "nextAction": then + flags}, lines)


def cmd_login_complete(ctx, args):
    """What can fail on this machine is tried first: a code is good for one key."""
    email = check_email(args.email, "auth login-complete")
    code = check_code(read_line(ctx, "Code: ") if args.code == "-" else args.code)
    body = {"email": email, "otp": code}
    if args.name is not None:
        body["name"] = check_key_name(args.name)
    if args.profile_name is not None:
        check_profile_name(args.profile_name)
    target, file = resolve(ctx, args, with_key=False), ProfileFile(ctx)
    file.change(lambda state: None, rehearsal=True)
    hints = {"invalid-argument": NEXT_CODE}
    try:
        data = call(ctx, target, "POST", "/api/cli/login-complete", "data", body, hints)
    except ScriptoError as error:
        if error.code in ("network-error", "invalid-response"):  # it may have been heard
            error.next_action += "; if the code is used up by now, " + NEXT_CODE
        raise
    if not is_key(data.get("apiKey")):
        raise bad_reply(target.base_url, "sent no key")
    names = ("apiKey", "email", "userId", "keyId")
    identity = {name: text_of(data, name) for name in names if text_of(data, name)}
    identity.setdefault("email", email)
    name = keep_key(ctx, file, args.profile_name, identity, target.base_url)
    lines = ["✓ Signed in", "", "  Email:    " + identity["email"]]
    return stored(name, identity, target.base_url, lines)


def keep_key(ctx, file, named, identity, base_url):
    """If a key that was just minted cannot be stored after all, the error hands it over, this
    once: its code is spent."""

    def store(state):
        return store_profile(state, named, identity, base_url, ctx.now())

    try:
        return file.change(store)
    except (ScriptoError, KeyboardInterrupt) as error:
        hint = "store it with: scripto config set --api-key %s --profile-name %s --api-url %s"
        try:
            name = store(file.read())  # the name that is free for it
        except ScriptoError:
            name = named or profile_name_for(identity["email"])
        raise blocked("Signed in, but the key could not be stored. %s" % error,
                      hint % (shell_word(identity["apiKey"]), name, shell_word(base_url)))


def stored(name, identity, base_url, lines):
    data = dict(identity, profile=name, active=True, baseUrl=base_url, apiKey=MASKED_KEY)
    lines = lines + ["  Profile:  %s (now active)" % name, "  API key:  " + MASKED_KEY]
    return Reply(data, lines + ["", "  Try it:  scripto whoami"])


def cmd_whoami(ctx, args):
    """What the backend says just now; the profile fills a blank email or name."""
    target = resolve(ctx, args)
    user = call(ctx, target, "GET", "/api/auth/me", "user")
    if not text_of(user, "id"):
        raise bad_reply(target.base_url, "named no user")
    own, name = ({}, None) if target.key_source != "profile" else (target.profile, target.name)
    user = {
        "id": text_of(user, "id"),
        "email": text_of(user, "email") or text_of(own, "email"),
        "name": text_of(user, "name") or text_of(own, "name") or name or "",
    }
    data = {"user": user, "profile": name, "baseUrl": target.base_url}
    data["keySource"] = target.key_source
    source = "profile " + name if name else target.key_source
    return Reply(data, [
        "✓ Signed in as " + (user["email"] or user["id"]),
        "",
        "  Name:     " + user["name"],
        "  User ID:  " + user["id"],
        "  API key:  %s (from %s)" % (MASKED_KEY, source),
        "  Backend:  " + target.base_url,
    ])


def cmd_token(ctx, args):
    """The one command that shows a key."""
    key = resolve(ctx, args).key
    return Reply({"apiKey": key}, [key])


def listed(state):
    """(rows for JSON, lines for a person)."""
    active, profiles = state.get("activeProfile"), state["profiles"].items()
    rows = [{"name": name, "active": name == active, "email": text_of(profile, "email"),
             "baseUrl": url_of(profile)} for name, profile in profiles]
    wide = max([len(row["name"]) for row in rows] + [0])
    lines = ["%s %s  %-24s  %s" % ("●" if row["active"] else " ", row["name"].ljust(wide),
                                   row["email"], row["baseUrl"]) for row in rows]
    return rows, lines or ["No profile yet.", "  next: " + NEXT_SIGN_IN]


def warn_of_environment(ctx):
    if ctx.setting("SCRIPTO_API_KEY"):
        warn(ctx, "SCRIPTO_API_KEY is set and overrides the key of every profile")


def cmd_use(ctx, args):
    file = ProfileFile(ctx)
    state = file.read()
    if args.name is not None:
        find_profile(state, args.name)  # a refusal comes before anything is touched

        def switch(state):
            find_profile(state, args.name)
            state["activeProfile"] = args.name
            return state

        state = file.change(switch)
        warn_of_environment(ctx)
    rows, lines = listed(state)
    if args.name is not None:
        lines = ["✓ Profile %s is now active" % args.name]
    return Reply({"activeProfile": state.get("activeProfile"), "profiles": rows}, lines)


def cmd_logout(ctx, args):
    file = ProfileFile(ctx)
    state = file.read()
    name = args.name if args.name is not None else state.get("activeProfile")
    if name is None:
        raise ScriptoError("not-found", "No profile is active.", NEXT_SIGN_IN)
    backend = url_of(find_profile(state, name))
    active = file.change(lambda state: remove_profiles(state, [name]))
    lines = ["✓ Signed out: profile %s is removed from this machine" % name]
    lines.append("  Its key is not revoked: copies of it still work at " + backend)
    if active and state.get("activeProfile") == name:
        lines.append("  Profile %s is now active" % active)
    warn_of_environment(ctx)
    return Reply({"removed": name, "revoked": False, "activeProfile": active}, lines)


# ---- Configuration ------------------------------------------------------------
# The commands that work on the profile file alone, with no network.


def cmd_config_set(ctx, args):
    if args.api_key is None:
        raise refused("The API key is missing.", "Pass --api-key <your-key> to: scripto config set")
    identity, name = {"apiKey": given_key(ctx, args.api_key)}, args.profile_name
    url, source = args.api_url, "--api-url"
    if url is None:
        url, source = ctx.setting("SCRIPTO_API_BASE_URL"), "SCRIPTO_API_BASE_URL"
    if name is not None:
        check_profile_name(name)
    file = ProfileFile(ctx)
    if url is None:  # a new key for a profile is for the same backend
        url, source = BASE_URL, "this file"
        if name in file.read()["profiles"]:
            url, source = url_of(find_profile(file.read(), name)), "profile '%s'" % name
    base_url = check_base_url(ctx, url, source)

    def store(state):
        return store_profile(state, name, identity, base_url, ctx.now(), name is not None)

    lines = ["✓ Key stored", "", "  Backend:  " + base_url]
    return stored(file.change(store), identity, base_url, lines)


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
        return Reply(data, lines + ["Key in force: none. " + error.message])
    data["key"] = {"apiKey": MASKED_KEY, "source": target.key_source, "profile": target.name}
    data["baseUrl"] = {"url": target.base_url, "source": target.url_source}
    lines.append("Key in force: %s (from %s)" % (MASKED_KEY, target.key_source))
    return Reply(data, lines + ["Base URL:     %s (from %s)" % (target.base_url, target.url_source)])


def cmd_config_clear(ctx, args):
    file = ProfileFile(ctx)
    state = file.read()
    names = list(state["profiles"])
    if args.profile is not None:
        find_profile(state, args.profile)
        names = [args.profile]
    if names and not args.yes and not is_terminal(ctx.stdin):
        problem = "This forgets keys, and there is no terminal to ask at."
        raise refused(problem, "add --yes to: scripto config clear")
    if names and not args.yes:
        reply = read_line(ctx, "Forget %s? [y/N] " % ", ".join(names))
        if reply.strip().lower() not in ("y", "yes"):
            raise ScriptoError("cancelled", "Nothing was changed.", "answer y, or add --yes")
    active = file.change(lambda state: remove_profiles(state, names)) if names else None
    lines = ["✓ Forgotten: " + (", ".join(names) or "nothing, there was no profile")]
    return Reply({"removed": names, "activeProfile": active}, lines)


# ---- Mail ---------------------------------------------------------------------
# How the backend delivers a code: deliver(message, to) raises MailError, whose reason goes to the
# log and holds no address and no code.


class MailError(Exception):
    pass


def compose(sender, to, code, site, now):
    """As readers and spam filters expect it (RFC 5322, RFC 3834)."""
    import email.message  # lazy
    import email.policy
    import email.utils

    message = email.message.EmailMessage(email.policy.default.clone(utf8=True))
    message["From"] = "Scripto <%s>" % sender
    message["To"] = to
    message["Subject"] = "%s is your Scripto sign-in code" % code
    message["Date"] = email.utils.formatdate(now, localtime=True)
    message["Message-ID"] = email.utils.make_msgid(domain=sender.rpartition("@")[2])
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(
        "Your code to sign in to Scripto at %s is:\n\n    %s\n\n"
        "It works once, within %d minutes. Enter it only where you asked for it.\n"
        "If you did not ask for it, ignore this mail: without the code nobody gets in.\n"
        % (site, code, CODE_SECONDS // 60)
    )
    return message


def delivery_for(ctx, where, bound_to):
    """deliver(message, to) by --mail. A code on the console of a server is for who sits there,
    so that is for a server bound to loopback only."""
    kind, _, rest = where.partition(":")
    if where == "console" and is_loopback(bound_to):
        return lambda message, to: say(ctx, "mail to %s: %s" % (to, message["Subject"]))
    if kind == "maildir" and rest:
        folder = os.path.abspath(os.path.expanduser(rest))
        try:
            make_maildir(folder)
        except OSError as error:
            warn(ctx, "mail cannot go to %s: %s" % (folder, reason_of(error)))
        return lambda message, to: deliver_to_maildir(folder, message)
    if kind == "smtps":
        client_tls()  # what is wrong with it shows now
    server = smtp_server(ctx, where) if kind in ("smtp", "smtps") else None
    if server:
        return lambda message, to: deliver_by_smtp(server, message, to)
    forms = "maildir:DIR, smtp://[user@]host[:port], smtps://..., console (on loopback only)"
    raise refused("Mail cannot go by '%s' from %s." % (kind, bound_to), "pass --mail with: " + forms)


def make_maildir(folder):
    """By us, since mailbox minds it if another program is making them, too."""
    for part in ("tmp", "new", "cur"):
        os.makedirs(os.path.join(folder, part), 0o700, exist_ok=True)


def deliver_to_maildir(folder, message):
    import mailbox  # lazy

    try:
        make_maildir(folder)
        mailbox.Maildir(folder, create=False).add(message)
    except (OSError, ValueError, mailbox.Error) as error:
        raise MailError("maildir: " + type(error).__name__)


def smtp_server(ctx, url):
    """(scheme, host, port, user, password), None for a bad URL. The environment's password wins
    over the URL's, which the list of processes shows."""
    from urllib.parse import unquote, urlsplit  # lazy

    try:
        parts = urlsplit(url)
        port = parts.port or (465 if parts.scheme == "smtps" else 25)
    except ValueError:
        return None
    if not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
        return None
    password = ctx.setting("SCRIPTO_SMTP_PASSWORD") or unquote(parts.password or "")
    return parts.scheme, parts.hostname, port, unquote(parts.username or ""), password


def deliver_by_smtp(server, message, to):
    """Over checked TLS where the server offers it; no password goes out in the clear."""
    import smtplib  # lazy

    scheme, host, port, user, password = server
    secure, kind, more = scheme == "smtps", smtplib.SMTP, {}
    if secure:
        kind, more = smtplib.SMTP_SSL, {"context": client_tls()}
    own = message["Message-ID"][1:-1].partition("@")[2]  # else a look-up in the DNS, to wait for
    try:
        smtp = kind(host, port, own, timeout=MAIL_SECONDS, **more)
        try:
            smtp.ehlo_or_helo_if_needed()
            if not secure and smtp.has_extn("starttls"):
                smtp.starttls(context=client_tls())
                secure = True
            if user and not secure and not is_loopback(host):
                raise MailError("smtp: the server offers no TLS for the password")
            if user:
                smtp.login(user, password)
            smtp.send_message(message, to_addrs=[to])
            smtp.putcmd("quit")  # the mail is taken, whatever the answer to this
        finally:
            smtp.close()
    except (OSError, smtplib.SMTPException, ValueError) as error:
        status = getattr(error, "smtp_code", "")  # not its text, which may quote the address
        raise MailError("smtp: %s %s" % (type(error).__name__, status))


# ---- Store --------------------------------------------------------------------
# The only place that knows SQL: users, keys, live codes, and the events that limits count.

MIGRATIONS = (  # each from user_version n to n + 1; only ever appended to
    (
        "CREATE TABLE secret (value BLOB NOT NULL)",
        "CREATE TABLE users (id TEXT PRIMARY KEY, email TEXT NOT NULL UNIQUE, name TEXT NOT NULL,"
        " created_at REAL NOT NULL)",
        "CREATE TABLE keys (id TEXT PRIMARY KEY, user_id TEXT NOT NULL, hash BLOB NOT NULL UNIQUE,"
        " name TEXT NOT NULL, start TEXT NOT NULL, created_at REAL NOT NULL, last_used_at REAL)",
        "CREATE TABLE codes (email TEXT PRIMARY KEY, hash BLOB NOT NULL, expires_at REAL NOT NULL,"
        " attempts INTEGER NOT NULL)",
        "CREATE TABLE events (id INTEGER PRIMARY KEY, email TEXT NOT NULL, kind TEXT NOT NULL,"
        " at REAL NOT NULL)",
        "CREATE INDEX events_by_email ON events (email, kind, at)",
        "CREATE INDEX events_by_age ON events (at)",
        "CREATE INDEX keys_by_user ON keys (user_id)",
    ),
)


class Store:
    """One connection, one thread at a time; SQLite's locks hold off other processes. Times are
    Unix seconds. What write() returned survives a power cut."""

    def __init__(self, path):
        import sqlite3  # lazy
        import threading

        path = os.path.abspath(path)  # no `:memory:`, which SQLite would lose at the end
        self.path, self.lock = path, threading.Lock()
        try:
            # Made by us, so that it is 0600 before SQLite writes; its side files follow suit.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o600))
            self.db = sqlite3.connect(
                path, timeout=10, isolation_level=None, check_same_thread=False)
            with self.db:  # one view of it, and before the first change: it may not be ours
                self.run("BEGIN")
                self.version()
            os.chmod(path, 0o600)
            self.run("PRAGMA journal_mode = WAL")
            self.run("PRAGMA synchronous = FULL")
            self.write(self.migrate)
        except (OSError, sqlite3.Error) as error:
            raise self.trouble("cannot be used: %s" % error)

    def trouble(self, what):
        return blocked("The database %s %s." % (self.path, what), "pass another file with --db")

    def run(self, sql, *values):
        return self.db.execute(sql, values)

    def read(self, sql, *values):
        with self.lock:
            return self.run(sql, *values).fetchall()

    def write(self, work, *values):
        """Runs work(*values) as one transaction."""
        with self.lock, self.db:  # commits; what raises is rolled back
            self.run("BEGIN IMMEDIATE")
            return work(*values)

    def version(self):
        """How many migrations it has seen. Raises for a file that is not this program's."""
        version = self.run("PRAGMA user_version").fetchone()[0]
        ours = self.run("SELECT count(*) FROM sqlite_master WHERE name IN ('secret', 'events')")
        tables = self.run("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if (ours.fetchone()[0] == 2) != (version > 0) or (version == 0 and tables):
            raise self.trouble("belongs to another program")
        if version > len(MIGRATIONS):
            raise self.trouble("was made by a newer scripto")
        return version

    def migrate(self):
        version = self.version()
        for statement in sum(MIGRATIONS[version:], ()):
            self.run(statement)
        if version == 0:
            self.run("INSERT INTO secret VALUES (?)", os.urandom(32))
        self.run("PRAGMA user_version = %d" % len(MIGRATIONS))

    def wait(self, email, limits, now):
        """Seconds until the email is within all limits."""
        sql = ("SELECT at FROM events WHERE email = ? AND kind = ? AND at > ?"
               " ORDER BY at DESC LIMIT 1 OFFSET ?")
        waits = [0]
        for kind, most, seconds in limits:
            for row in self.run(sql, email, kind, now - seconds, most - 1):
                waits.append(row[0] + seconds - now)
        return max(waits)

    def add_event(self, email, kind, now):
        sql = "INSERT INTO events (email, kind, at) VALUES (?, ?, ?)"
        return self.run(sql, email, kind, now).lastrowid

    def reserve(self, email, now):
        """Counts a code request before its mail goes: (seconds to wait, event)."""
        self.run("DELETE FROM events WHERE at <= ?", now - DAY)
        self.run("DELETE FROM codes WHERE expires_at <= ?", now)
        wait = self.wait(email, REQUEST_LIMITS, now)
        return wait, None if wait else self.add_event(email, "request", now)

    def release(self, event):
        self.run("DELETE FROM events WHERE id = ?", event)

    def put_code(self, email, digest, now):
        """New attempts for the code; those counted for the email stay."""
        sql = "INSERT OR REPLACE INTO codes VALUES (?, ?, ?, ?)"
        self.run(sql, email, digest, now + CODE_SECONDS, CODE_ATTEMPTS)

    def redeem(self, email, digest, key, now):
        """Spends a code on a key (id, hash, name, start), all or nothing: (seconds to wait, user
        id). Without an id the code was wrong, which counts even where no code is live."""
        import hmac  # lazy

        wait = self.wait(email, WRONG_LIMITS, now)
        if wait:
            return wait, None
        sql = "SELECT hash FROM codes WHERE email = ? AND expires_at > ? AND attempts > 0"
        row = self.run(sql, email, now).fetchone()
        if not hmac.compare_digest(row[0] if row else b"", digest):
            self.run("UPDATE codes SET attempts = attempts - 1 WHERE email = ?", email)
            self.add_event(email, "wrong", now)
            return 0, None
        self.run("DELETE FROM codes WHERE email = ?", email)
        new_id = "user_" + os.urandom(12).hex()
        self.run("INSERT OR IGNORE INTO users VALUES (?, ?, ?, ?)", new_id, email, "", now)
        user_id = self.run("SELECT id FROM users WHERE email = ?", email).fetchone()[0]
        sql = "INSERT INTO keys (user_id, created_at, id, hash, name, start) VALUES (?,?,?,?,?,?)"
        self.run(sql, user_id, now, *key)
        return 0, user_id

    def user_of(self, digest, now):
        """(id, email, name) by a key's hash, or None. Its use is noted once a minute."""
        rows = self.read(
            "SELECT users.id, email, users.name, keys.id, coalesce(last_used_at, 0)"
            " FROM keys JOIN users ON users.id = user_id WHERE hash = ?", digest)
        if rows and rows[0][4] <= now - 60:
            self.write(self.run, "UPDATE keys SET last_used_at = ? WHERE id = ?", now, rows[0][3])
        return rows[0][:3] if rows else None

    def keys_of(self, user_id):
        return self.read("SELECT id, name, start, created_at, last_used_at FROM keys"
                         " WHERE user_id = ? ORDER BY created_at, id", user_id)

    def delete_key(self, user_id, key_id):
        sql = "DELETE FROM keys WHERE id = ? AND user_id = ?"
        return self.write(self.run, sql, key_id, user_id).rowcount == 1


# ---- Routes -------------------------------------------------------------------
# What the backend answers. A route takes the backend and a request and returns (status, object or
# bytes, headers), or raises ScriptoError. It knows neither sockets nor SQL.

BEARER = ("WWW-Authenticate", "Bearer")


class Backend:
    """What routes share."""

    def __init__(self, ctx, store, deliver, sender, rate_limit):
        import threading  # lazy

        self.ctx, self.store, self.deliver, self.sender = ctx, store, deliver, sender
        self.secret = store.read("SELECT value FROM secret")[0][0]
        self.rate_limit, self.recent, self.guard = rate_limit, {}, threading.Lock()
        self.public_url, self.pruned = None, 0

    def log(self, text):
        say(self.ctx, "%s %s" % (timestamp(self.ctx.now()), text))

    def digest(self, email, code):
        """Keyed, since a plain hash of six digits hides nothing."""
        import hmac  # lazy

        return hmac.new(self.secret, ("%s\0%s" % (email, code)).encode(), "sha256").digest()

    def admit(self, request, next_action):
        """The body of a public route. Raises resource-exhausted if its address asks too often in
        a sliding minute."""
        now, limit, address = time.monotonic(), self.rate_limit, network_of(request.address)
        with self.guard:
            if len(self.recent) > 9999 and now > self.pruned + 1:  # forget who has been quiet
                self.pruned = now
                fresh = [item for item in self.recent.items() if item[1][-1] > now - 60]
                self.recent = dict(fresh)
            times = [at for at in self.recent.get(address, ()) if at > now - 60]
            if len(times) < limit:
                self.recent[address] = times + [now]
        if limit and len(times) >= limit:
            raise too_many("requests from this address", times[0] + 60 - now)
        fields = parse_json(request.body)
        if fields is None:
            raise refused("The body is not a JSON object in UTF-8.", next_action)
        return fields


def network_of(address):
    """IPv6 counts by /64, which is what one customer is given (RFC 6177)."""
    import socket  # lazy

    if address.startswith("::ffff:") or not is_ipv6(address):
        return address
    return socket.inet_pton(socket.AF_INET6, address)[:8]


def too_many(what, seconds):
    wait = int(seconds) + 1
    hint = "retry in %d seconds" % wait
    return ScriptoError("resource-exhausted", "Too many %s." % what, hint, retry_after=wait)


def success(data):
    return 200, {"success": True, "data": data}, []


def route_login_request(backend, request):
    """The mail goes before the code is stored: a failure leaves nothing behind."""
    import secrets  # lazy

    fields = backend.admit(request, NEXT_EMAIL + "auth login-request")
    email = check_email(text_of(fields, "email"), "auth login-request").lower()
    store, now, code = backend.store, backend.ctx.now(), "%06d" % secrets.randbelow(10**6)
    wait, event = store.write(store.reserve, email, now)
    if wait:
        raise too_many("attempts for this email", wait)
    try:
        backend.deliver(compose(backend.sender, email, code, backend.public_url, now), email)
    except (MailError, ValueError) as error:  # ValueError: an address that no header can hold
        store.write(store.release, event)
        reason = str(error) if isinstance(error, MailError) else "unfit address"
        backend.log("mail failed: " + reason)
        raise ScriptoError("internal", "The sign-in code could not be sent.", NEXT_RETRY)
    store.write(store.put_code, email, backend.digest(email, code), backend.ctx.now())
    return success({"ok": True, "email": email})


def route_login_complete(backend, request):
    import hashlib  # lazy
    import secrets

    fields = backend.admit(request, NEXT_CODE)
    email = check_email(text_of(fields, "email"), "auth login-complete").lower()
    code = check_code(text_of(fields, "otp"))
    name = check_key_name(text_of(fields, "name")) or "scripto-cli"
    key_id, secret = "key_" + secrets.token_hex(12), secrets.token_urlsafe(32)
    raw, store = KEY_PREFIX + secret, backend.store
    key = (key_id, hashlib.sha256(raw.encode()).digest(), name, secret[:6])
    digest = backend.digest(email, code)
    wait, user_id = store.write(store.redeem, email, digest, key, backend.ctx.now())
    if wait:
        raise too_many("wrong codes for this email", wait)
    if user_id is None:
        raise refused("The code is wrong or has expired.", NEXT_CODE)
    return success({"apiKey": raw, "keyId": key_id, "userId": user_id, "email": email})


def user_of(backend, request):
    """(id, email, name) of the bearer (RFC 6750). Raises unauthenticated."""
    import hashlib  # lazy

    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    digest = hashlib.sha256(key.strip().encode()).digest()
    user = backend.store.user_of(digest, backend.ctx.now()) if scheme.lower() == "bearer" else None
    if user is None:
        raise ScriptoError("unauthenticated", "The key is missing or not valid.", NEXT_SIGN_IN)
    return user


def route_me(backend, request):
    """Two odd shapes, the product's. The headers are for web servers that guard a page."""
    try:
        user_id, email, name = user_of(backend, request)
    except ScriptoError:
        return 401, {"error": "Unauthorized"}, [BEARER]
    headers = [("X-Scripto-User", user_id), ("X-Scripto-Email", email.encode().decode("latin-1"))]
    return 200, {"user": {"id": user_id, "email": email, "name": name}}, headers


def route_keys(backend, request):
    keys = [
        {"id": key_id, "name": name, "start": start, "createdAt": timestamp(created),
         "lastUsedAt": timestamp(used), "expiresAt": None}  # they last until they are revoked
        for key_id, name, start, created, used in backend.store.keys_of(user_of(backend, request)[0])
    ]
    return success({"keys": keys})


def route_key(backend, request):
    user_id, key_id = user_of(backend, request)[0], request.path.rpartition("/")[2]
    if not backend.store.delete_key(user_id, key_id):
        raise ScriptoError("not-found", "There is no such key.", "see the ids at GET /api/keys")
    return success({"id": key_id, "revoked": True})


def route_health(backend, request):
    return success({"ok": True, "version": __version__})


def route_source(backend, request):
    """This very file, with the URL of this backend in it."""
    with open(os.path.abspath(__file__), "rb") as file:
        source = file.read()
    line = ("BASE_URL = %r" % backend.public_url).encode("ascii")
    source = re.sub(rb"(?m)^BASE_URL = .*$", lambda _: line, source, count=1)
    return 200, source, [("Content-Type", "text/x-python; charset=utf-8")]


GUIDE = """# Scripto: sign a machine in, with no browser

You need Python 3.6 or newer and an email address whose mail you can read.

    curl -fsSO BASE_URL/scripto.py   # one file, no packages; it knows this backend
    python3 scripto.py auth login-request --email you@example.com --json
    python3 scripto.py auth login-complete --email you@example.com --code 123456 --json
    python3 scripto.py whoami --json

The first command mails a six-digit code: valid 5 minutes, 3 attempts, one use. The second buys
a key with it and keeps it as the active profile. An unknown email is registered by this.

With --json exactly one envelope goes to standard output:

    {"success": true, "data": {...}}
    {"success": false, "error": {"code": "...", "message": "...", "nextAction": "..."}}

On an error do what nextAction says, or show it to the user word for word. Exit status: 0 done,
1 cannot be done, 2 bad argument or code, 3 the same command may work later, 4 no valid key,
130 cancelled. SCRIPTO_API_KEY in the environment works without any file. Other programs send
`Authorization: Bearer scripto_...`, to BASE_URL only. Never print the key.
"""


def route_guide(backend, request):
    text = GUIDE.replace("BASE_URL", backend.public_url).encode()
    return 200, text, [("Content-Type", "text/plain; charset=utf-8")]


ROUTES = {  # path: {method: route}
    "/api/cli/login-request": {"POST": route_login_request},
    "/api/cli/login-complete": {"POST": route_login_complete},
    "/api/auth/me": {"GET": route_me},
    "/api/keys": {"GET": route_keys},
    "/api/keys/<id>": {"DELETE": route_key},
    "/healthz": {"GET": route_health},
    "/scripto.py": {"GET": route_source},
    "/llms.txt": {"GET": route_guide},
}


def pattern_of(path):
    """The entry in ROUTES, or None. Logs name this: who knows what a path holds."""
    path = re.sub(r"^/api/keys/[^/]+$", "/api/keys/<id>", path)
    return path if path in ROUTES else None


def respond_to(backend, request):
    """HEAD is a GET whose body is not sent (RFC 9110, 9.3.2)."""
    routes = ROUTES.get(pattern_of(request.path), {})
    if not routes and request.path != "*":
        raise ScriptoError("not-found", "There is nothing here.", "see GET /llms.txt")
    methods = ", ".join(list(routes) + ["HEAD"] * ("GET" in routes) + ["OPTIONS"])
    if request.method == "OPTIONS":
        return 204, b"", [("Allow", methods)]
    route = routes.get("GET" if request.method == "HEAD" else request.method)
    if route is None:
        error = refused("This path takes only %s." % methods, "see GET /llms.txt", 405)
        return error_answer(error, ("Allow", methods))
    return route(backend, request)


def error_answer(error, *headers):
    headers = list(headers) + [BEARER] * (error.http_status == 401)
    if error.retry_after:
        headers.append(("Retry-After", str(error.retry_after)))
    return error.http_status, error.envelope(), headers


# ---- Server -------------------------------------------------------------------
# Sockets, threads and time-outs. Two halves of classes whose other halves are the standard
# library's; make_server() joins them, where those are imported.


class Connections:
    """Half of the server. Each connection has a thread; `opened` holds the time at which it is
    cut off, if its next step is not done by then (None while a route works), and whether a
    request is in hand."""

    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # on Windows it would share the port
    request_queue_size = 128

    def start(self, backend, tls, behind_proxy):
        import threading  # lazy

        self.backend, self.tls, self.behind_proxy = backend, tls, behind_proxy
        self.opened, self.guard, self.stopping = {}, threading.Lock(), False

    def get_request(self):
        try:
            connection, address = super().get_request()
        except OSError:  # out of descriptors, most likely: room has to be made
            self.cut(1)
            time.sleep(0.05)
            raise
        if self.tls:  # the handshake comes with the first read, in the connection's own thread
            connection = self.tls.wrap_socket(connection, True, do_handshake_on_connect=False)
        return connection, address

    def process_request(self, connection, address):
        """When all places are taken, the one that has been silent longest gives way."""
        if len(self.opened) >= CONNECTIONS:
            self.cut(1)
        if len(self.opened) >= CONNECTIONS:
            return super().shutdown_request(connection)
        self.opened[connection] = time.monotonic() + READ_SECONDS, False
        super().process_request(connection, address)

    def expect(self, connection, seconds, in_hand=False):
        """Gives the next step so many seconds, or None: no limit. False: it was cut off."""
        with self.guard:
            if connection not in self.opened:
                return False
            self.opened[connection] = seconds and time.monotonic() + seconds, in_hand
            return True

    def cut(self, most, deadline=float("inf"), also_in_hand=True):
        """Ends those that have until the deadline, the most urgent first; their threads find
        them closed. By the plain socket's shutdown(): TLS would want to talk about it."""
        import socket  # lazy

        with self.guard:
            late = sorted((until, id(each), each) for each, (until, in_hand) in self.opened.items()
                          if until and until < deadline and (also_in_hand or not in_hand))
            for _, _, connection in late[:most]:
                del self.opened[connection]
                try:
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
                except OSError:
                    pass  # gone already

    def service_actions(self):
        """Called twice a second: cuts off who is late, silent or dribbling."""
        self.cut(CONNECTIONS, time.monotonic())

    def shutdown_request(self, connection):
        with self.guard:
            self.opened.pop(connection, None)
        super().shutdown_request(connection)

    def handle_error(self, connection, address):
        kind = sys.exc_info()[0]
        if not issubclass(kind, OSError):  # which is a client that went away
            self.backend.log("fault in a connection: " + kind.__name__)

    def finish(self):
        """Lets requests in hand end."""
        self.stopping = True
        self.shutdown()
        self.server_close()
        give_up = time.monotonic() + 2 * MAIL_SECONDS
        while self.opened and time.monotonic() < give_up:
            self.cut(CONNECTIONS, also_in_hand=False)
            time.sleep(0.02)


class RequestHandler:
    """Half of the handler of a connection's requests."""

    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # by 0.9 an error would go out without its status
    server_version, sys_version = "scripto/" + __version__, ""
    timeout = READ_SECONDS  # of one read or write; Connections bounds the whole
    disable_nagle_algorithm = True

    def handle_one_request(self):
        self.path, self.started = "", time.monotonic()
        self.server.expect(self.connection, READ_SECONDS)
        super().handle_one_request()

    def parse_request(self):
        self.started = time.monotonic()
        self.server.expect(self.connection, READ_SECONDS)
        self.odd, self.lines, self.rfile = False, self.rfile, self
        try:
            return super().parse_request()
        finally:
            self.rfile = self.lines

    def readline(self, limit):
        """A line of the header. The standard library would take a bare carriage return for the
        end of one, which a proxy in front may see differently (request smuggling)."""
        line = self.lines.readline(limit)
        self.odd = self.odd or b"\r" in line.replace(b"\r\n", b"")
        return line

    def dispatch(self):
        """The backend's one edge: what is raised below becomes an answer."""
        try:
            request = self.read_request()
            reply = respond_to(self.server.backend, request) if request else None
        except ScriptoError as error:
            reply = error_answer(error)
        except Exception as error:
            self.server.backend.log("fault: " + bug(error))
            reply = error_answer(ScriptoError("internal", "The backend failed.", NEXT_RETRY))
        if reply:
            self.respond(*reply)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = dispatch

    def read_request(self):
        """None if the client fell silent or went away. After a body that is refused the
        connection ends: it is anyone's guess where the next request would start."""
        import types  # lazy

        keep, self.close_connection = not self.close_connection, True
        lengths = self.headers.get_all("Content-Length", ["0"])
        if "Transfer-Encoding" in self.headers:
            raise refused("A body has to come with its length, not in chunks.", None, 501)
        if self.odd or self.headers.defects or len(lengths) > 1 or not re.match("[0-9]{1,9}$", lengths[0]):
            raise refused("The header is malformed.")
        if int(lengths[0]) > BODY_BYTES:
            raise refused("The body is larger than %d bytes." % BODY_BYTES, None, 413)
        try:
            body = self.rfile.read(int(lengths[0]))
        except OSError:
            return None
        if len(body) < int(lengths[0]) or not self.server.expect(self.connection, None, True):
            return None
        self.close_connection = self.server.stopping or not keep
        self.path = re.sub("(?i)^https?://[^/?]*", "", self.path)  # RFC 9112, 3.2.2
        return types.SimpleNamespace(method=self.command, path=self.path.partition("?")[0],
                                     headers=self.headers, body=body, address=self.address())

    def address(self):
        """As the nearest proxy saw it, if there is said to be one."""
        hops = self.headers.get_all("X-Forwarded-For", []) if self.server.behind_proxy else []
        last = ",".join(hops).rpartition(",")[2].strip()
        return last if re.match("[0-9A-Fa-f.:]{2,45}$", last) else self.client_address[0]

    def respond(self, status, body, headers):
        """A connection that is to end is read on for a moment: to close on unread bytes resets
        it, and the answer is lost (RFC 9112, 9.6)."""
        import json  # lazy
        import socket

        self.server.expect(self.connection, READ_SECONDS, True)
        if isinstance(body, dict):
            body = json.dumps(body).encode("ascii")
            headers = headers + [("Content-Type", "application/json")]
        headers = headers + [("Content-Length", str(len(body)))] * (status != 204)
        headers += [("Connection", "close")] * bool(self.close_connection)
        self.send_response(status)
        for name, value in headers + [("Cache-Control", "no-store")]:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        if self.close_connection:
            self.connection.settimeout(0.5)
            socket.socket.shutdown(self.connection, socket.SHUT_WR)
            for _ in range(16):
                if not self.connection.recv(64 << 10):
                    break

    def send_error(self, code, message=None, explain=None):
        """What the standard library refuses: a malformed line, a header flood."""
        self.close_connection = True
        code = 400 if int(code) == 505 else int(code)  # not the server's fault
        error = refused("The request is not valid HTTP/1.1.", "see GET /llms.txt", code)
        self.respond(*error_answer(error))

    def log_request(self, code="-", size="-"):
        path = pattern_of(self.path.partition("?")[0]) or "-"
        method = self.command if re.match("[A-Z]{3,7}$", self.command or "") else "-"
        spent = (time.monotonic() - self.started) * 1000
        line = (self.client_address[0], method, path, int(code), spent)
        self.server.backend.log("%s %s %s %d %.0fms" % line)

    def log_error(self, *_):
        """log_request() has said it."""


def make_server(host, port):
    import http.server  # lazy
    import socket
    import socketserver

    class Handler(RequestHandler, http.server.BaseHTTPRequestHandler):
        pass

    class Server(Connections, socketserver.ThreadingMixIn, socketserver.TCPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    try:
        return Server((host, port), Handler)
    except (OSError, UnicodeError) as error:
        message = "Cannot listen at %s, port %d: %s." % (host, port, error)
        raise blocked(message, "pass another --host or --port; --port 0 takes a free one")


# ---- Backend ------------------------------------------------------------------
# The commands that run the embedded backend.


def tls_context(args):
    if not args.tls_cert and not args.tls_key:
        return None
    import ssl  # lazy, and some Pythons lack it

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(args.tls_cert or "", args.tls_key or "")
    except (OSError, ValueError) as error:
        hint = "pass both --tls-cert and --tls-key: PEM files that belong together"
        raise refused("The certificate cannot be used: %s." % error, hint)
    return context


def open_store(ctx, path):
    if path is None:
        home = xdg_folder(ctx, "XDG_DATA_HOME", os.path.join(".local", "share"), "pass --db FILE")
        path = os.path.join(home, "scripto", "scripto.db")
        try:
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        except OSError as error:
            problem = "The folder for %s cannot be made: %s." % (path, reason_of(error))
            raise blocked(problem, "pass another place with --db FILE")
    return Store(path)


def cmd_serve(ctx, args):
    """Serves until SIGINT or SIGTERM; shows its Reply itself, before."""
    host, port = args.host or "127.0.0.1", check_number(args.port or "8787", "--port", 65535)
    rate_limit = check_number(args.rate_limit or "60", "--rate-limit", 10**9)
    deliver = delivery_for(ctx, args.mail or "console", host)
    public_url = args.public_url and check_base_url(ctx, args.public_url, "--public-url")
    sender = "scripto@" + origin_of(public_url or "http://localhost")[1]
    sender = args.mail_from or (sender if is_email(sender) else "scripto@localhost")
    if not is_email(sender):
        raise refused("'%s' is no sender." % readable(sender), "pass --mail-from name@domain")
    tls = tls_context(args)
    os.umask(0o077)  # what is made from here on holds codes and hashes: nobody else's business
    store = open_store(ctx, args.db)
    server, backend = make_server(host, port), Backend(ctx, store, deliver, sender, rate_limit)
    server.start(backend, tls, args.behind_proxy)
    where = ("[%s]:%d" if ":" in host else "%s:%d") % (host, server.server_address[1])
    url = "%s://%s" % ("https" if tls else "http", where)
    if host in ("0.0.0.0", "::"):  # no address to come to
        import socket  # lazy

        where = "%s:%d" % (socket.gethostname().lower(), server.server_address[1])
    backend.public_url = public_url or "%s://%s" % (url.partition(":")[0], where)
    reply = Reply({"url": url, "publicUrl": backend.public_url}, ["listening on " + url])
    serve_until_told(ctx, server, reply)
    store.db.close()


def serve_until_told(ctx, server, reply):
    import signal  # lazy
    import threading

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    show(ctx, reply)
    while not stop.wait(1):  # with a limit, since on Windows an endless wait hears no signal
        pass
    server.finish()


def cmd_demo(ctx, args):
    """Real processes, real HTTP, real mail. Raises internal unless every step worked."""
    import sqlite3  # noqa: F401  lazy; who lacks it hears so here
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory(prefix="scripto-demo-") as folder:
        env = {k: v for k, v in ctx.env.items() if not k.startswith(("SCRIPTO_", "XDG_"))}
        env.update(HOME=folder, PYTHONIOENCODING="utf-8")
        program, mail = [sys.executable, os.path.abspath(__file__)], os.path.join(folder, "mail")
        serve = program + ["serve", "--port", "0", "--mail", "maildir:" + mail]
        server = subprocess.Popen(serve, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            first = server.stdout.readline().decode().strip()
            if not first.startswith("listening on "):
                raise ScriptoError("internal", "The demo's backend does not start.", NEXT_DOCTOR)
            env["SCRIPTO_API_BASE_URL"] = first.rpartition(" ")[2]
            steps = demo_steps(program, env, os.path.join(mail, "new"))
        finally:
            server.terminate()
            server.communicate()
    lines = ["A backend of its own, in a folder that is gone by now, " + first]
    for step in steps:
        lines += ["", step["command"]] + step["output"].splitlines()
    return Reply({"ok": True, "steps": steps}, lines + ["", "✓ All of it works on this machine"])


def demo_steps(program, env, mail):
    """The two commands and whoami, as [{"command", "output"}], with the mail in between."""
    import subprocess  # lazy

    steps, code = [], ""
    for words in ("auth login-request --email you@example.com",
                  "auth login-complete --email you@example.com --code ", "whoami"):
        words += code if words.endswith(" ") else ""
        process = subprocess.Popen(program + words.split(), env=env, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT)
        output = process.communicate()[0].decode("utf-8", "replace")
        if process.returncode or "you@example.com" not in output:
            text = "The demo failed at 'scripto %s': %s" % (words, " ".join(output.split()))
            raise ScriptoError("internal", text, NEXT_DOCTOR)
        steps.append({"command": "$ scripto " + words, "output": output})
        if not code:
            with open(os.path.join(mail, os.listdir(mail)[0]), encoding="utf-8") as file:
                steps.append({"command": "The mail that came:", "output": file.read()})
            code = re.search(r"Subject: (\d{6}) ", steps[-1]["output"]).group(1)
    return steps


# ---- Doctor -------------------------------------------------------------------
# What works on this machine and what does not, by looking only: nothing is changed.

MARKS = {"ok": "✓", "warning": "!", "error": "✗"}


class Findings(list):
    def add(self, name, text, hint=None, bad="error"):
        """With a hint it is a finding as bad as that; without, all is well."""
        status = bad if hint else "ok"
        self.append({"name": name, "status": status, "message": text, "nextAction": hint})

    def add_error(self, name, error):
        error = lacking(error) if isinstance(error, ImportError) else error
        self.add(name, error.message, error.next_action or NEXT_DOCTOR)


def examine_machine(ctx, found):
    found.add("python", "%s at %s" % (sys.version.split()[0], sys.executable))
    try:
        import sqlite3  # lazy

        found.add("sqlite", sqlite3.sqlite_version)
    except ImportError as error:
        found.add("sqlite", "missing: serve cannot run", lacking(error).next_action, "warning")
    try:
        file = ProfileFile(ctx)
        found.add("profiles", "%s: %d" % (file.shown, len(file.read()["profiles"])))
        try:
            file.missing_folders()
        except OSError as error:
            found.add("folder", reason_of(error), "set XDG_CONFIG_HOME to a folder of your own")
        mode = os.stat(file.path).st_mode if os.path.exists(file.path) else 0
        if mode & 0o077 and os.name == "posix":
            hint = "chmod 600 " + shell_word(file.path)
            found.add("mode", "others can read the profile file", hint, "warning")
    except (ScriptoError, ImportError) as error:
        found.add_error("profiles", error)


def examine_tls(found, base_url):
    bad = "error" if base_url.startswith("https") else "warning"
    try:
        import ssl  # lazy
    except ImportError as error:
        return found.add("tls", "missing: no https", lacking(error).next_action, bad)
    folder = ssl.get_default_verify_paths().capath
    known = client_tls().cert_store_stats()["x509_ca"]
    if known or (folder and os.access(folder, os.R_OK) and os.listdir(folder)):
        return found.add("tls", ssl.OPENSSL_VERSION)
    hint = "install ca-certificates, or set SSL_CERT_FILE to a file of certificates"
    found.add("tls", "no certificate authority is known here", hint, bad)


def examine_backend(ctx, found, target):
    from email.utils import mktime_tz, parsedate_tz  # lazy

    proxy = re.sub(r"^(\w+://)?.*@", r"\1", proxy_for(target.base_url) or "none")
    found.add("proxy", "%s for %s" % (proxy, origin_of(target.base_url)[1]))
    status, headers, body = send(ctx, "GET", target.base_url + "/api/auth/me", None, target.key)
    known = status in (200, 401) and parse_json(body)
    hint = NEXT_RETRY if status == 429 or status >= 500 else NEXT_BACKEND
    found.add("backend", "%s answers HTTP %d" % (target.base_url, status), None if known else hint)
    if target.key and known:
        text, hint = ("accepted", None) if status == 200 else ("refused", NEXT_SIGN_IN)
        found.add("key", text, hint)
    try:
        off = ctx.now() - mktime_tz(parsedate_tz(headers.get("Date", "")))
    except (TypeError, ValueError, OverflowError):  # no date, or none that can be
        return
    hint = "set this machine's clock: codes live five minutes" if abs(off) > 60 else None
    found.add("clock", "%+.0f seconds against the backend's" % off, hint, "warning")


def cmd_doctor(ctx, args):
    found, target = Findings(), None
    examine_machine(ctx, found)
    try:
        target = resolve(ctx, args)
        text = "key from %s, base URL %s from %s"
        found.add("access", text % (target.key_source, target.base_url, target.url_source))
    except (ScriptoError, ImportError) as error:
        found.add_error("access", error)
    try:
        target = target or resolve(ctx, args, with_key=False)
        examine_tls(found, target.base_url)
        examine_backend(ctx, found, target)
    except (ScriptoError, ImportError) as error:
        if target:
            found.add_error("backend", error)
    lines = []
    for row in found:
        lines.append("%s %-9s %s" % (MARKS[row["status"]], row["name"], row["message"]))
        lines += ["  next: " + row["nextAction"]] if row["nextAction"] else []
    ok = all(row["status"] != "error" for row in found)
    return Reply({"ok": ok, "checks": found}, lines, 0 if ok else 1)


# ---- Command line -------------------------------------------------------------
# One table of commands, from which parser and help are made; the way in and out.

OPTIONS = {  # flag: (what it takes, None for a switch; what it is for)
    "name": ("NAME", "a profile"),
    "--email": ("EMAIL", "the email to sign in with"),
    "--code": ("CODE", "the six-digit code from the email; - reads standard input"),
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
    "--public-url": ("URL", "how clients reach this backend, if not by where it listens"),
    "--tls-cert": ("FILE", "serve https with this certificate chain"),
    "--tls-key": ("FILE", "and this private key"),
    "--behind-proxy": (None, "take client addresses from the last hop of X-Forwarded-For"),
    "--rate-limit": ("N", "requests a minute for an address (60); 0: any number"),
    "--json": (None, "answer as JSON, one envelope on standard output"),
    "--help": (None, "show this and do nothing"),
}
BACKEND = " --api-url --profile"
COMMANDS = {  # name: (function, what it does, its arguments and flags, an example of them)
    "auth login-request": (
        cmd_login_request, "email a six-digit sign-in code",
        "--email" + BACKEND, "--email you@example.com"),
    "auth login-complete": (
        cmd_login_complete, "sign in with the code; a new email signs up",
        "--email --code --name --profile-name" + BACKEND,
        "--email you@example.com --code 123456"),
    "auth token": (cmd_token, "print the API key in force", "--api-key" + BACKEND, ""),
    "whoami": (cmd_whoami, "ask the backend whose key this is", "--api-key" + BACKEND, ""),
    "use": (cmd_use, "list the profiles, or switch to one", "name", "you"),
    "logout": (cmd_logout, "remove a profile, by default the active one", "name", "you"),
    "config set": (
        cmd_config_set, "store a key that you have as a profile",
        "--api-key --profile-name --api-url", "--api-key -"),
    "config show": (
        cmd_config_show, "show the profiles, what is in force, and why", "--api-key" + BACKEND, ""),
    "config clear": (
        cmd_config_clear, "forget one profile, or all", "--profile --yes", "--profile you"),
    "serve": (
        cmd_serve, "run a backend",
        "--host --port --db --mail --mail-from --public-url --tls-cert --tls-key --behind-proxy"
        " --rate-limit", "--mail maildir:/var/mail/scripto"),
    "demo": (cmd_demo, "see the whole sign-in work, in a throw-away folder", "", ""),
    "doctor": (cmd_doctor, "check what works on this machine", "--api-key" + BACKEND, ""),
}


class Parser(argparse.ArgumentParser):
    """argparse, whose errors take the one way out."""

    def error(self, message):
        if message.startswith("argument --email: expected"):
            check_email(None, self.prog.partition(" ")[2])
        if message.startswith("argument --code: expected"):
            check_code(None)
        raise refused(message[:1].upper() + message[1:] + ".", "see: %s --help" % self.prog)


def parser_for(name):
    _, purpose, words, example = COMMANDS[name]
    # A width of our own: argparse would ask a module that a minimal Python lacks.
    parser = Parser("scripto " + name, description=purpose[0].upper() + purpose[1:] + ".",
                    epilog="Example: scripto %s %s" % (name, example),
                    add_help=False, allow_abbrev=False,
                    formatter_class=lambda prog: argparse.HelpFormatter(prog, width=96))
    parser.color = False  # Python 3.14 would colour what is not yet known to go to a terminal
    for word in words.split() + ["--json", "--help"]:
        takes, purpose = OPTIONS[word]
        more = {"metavar": takes} if takes else {"action": "store_true"}
        if word == "name":
            more["nargs"] = "?"
        parser.add_argument(*["-h"] * (word == "--help") + [word], help=purpose, **more)
    return parser


def overview(prefix=""):
    names = [name for name in COMMANDS if name.startswith(prefix)]
    lines = ["Usage: scripto %s<command> [flags]" % prefix, ""]
    lines += ["  %-20s %s" % (name, COMMANDS[name][1]) for name in names]
    lines += ["", "Try it with: scripto demo", "Sign in with: scripto auth login-request "
              "--email you@example.com", "Every command takes --json and --help."]
    return Reply({"help": lines}, lines)


def nearest(word, known):
    try:
        import difflib  # lazy
    except ImportError:  # in a minimal Python: then without a suggestion
        return None
    return (difflib.get_close_matches(word, known, 1) or [None])[0]


def find_command(words):
    """(name, further words)."""
    for size in (2, 1):
        name = " ".join(words[:size])
        if name in COMMANDS:
            return name, words[size:]
    size = 2 if words[:1] in (["auth"], ["config"]) else 1
    typed = readable(" ".join(words[:size]))
    if not words or typed in ("auth", "config"):
        hint = "see the commands with: scripto %s--help" % (typed and typed + " ")
        raise refused("No command is given.", hint)
    alike = [name for name in COMMANDS if name.split()[-1] == typed]
    known = alike[0] if alike else nearest(typed, list(COMMANDS) + ["--help", "--version"])
    what, hint = "command", "see the commands with: scripto --help"
    if typed.startswith("-"):
        what, hint = "flag", "put flags behind the command: scripto <command> %s" % typed.partition("=")[0]
    hint = "did you mean: scripto " + known if known else hint
    raise refused("Unknown %s '%s'." % (what, typed), hint)


def parse(name, words):
    parser = parser_for(name)
    args, extra = parser.parse_known_args(words)
    if extra and not args.help:
        word = readable(extra[0])
        flags = re.findall("--[a-z-]+", COMMANDS[name][2] + " --json --help")
        known = nearest(word.partition("=")[0], flags) if word.startswith("-") else None
        hint = "did you mean %s? " % known if known else ""
        kind = "flag" if word.startswith("-") else "argument"
        raise refused("Unknown %s '%s'." % (kind, word), hint + "see: %s --help" % parser.prog)
    return parser, args


def run(ctx, words):
    words = [word for word in words if word != "--json"]
    if "--version" in words:
        return Reply({"version": __version__}, ["scripto " + __version__])
    if words[:1] in (["--help"], ["-h"], ["help"]):
        return overview()
    if words[:1] in (["auth"], ["config"]) and words[1:] in (["--help"], ["-h"]):
        return overview(words[0] + " ")
    name, rest = find_command(words)
    parser, args = parse(name, rest)
    if args.help:
        lines = parser.format_help().splitlines()
        return Reply({"help": lines}, lines)
    return COMMANDS[name][0](ctx, args)


def main(argv=None):
    """Returns the exit status. The one edge: what is raised below becomes output here."""
    words = sys.argv[1:] if argv is None else argv
    ctx = Context(os.environ, sys.stdin, sys.stdout, sys.stderr, "--json" in words)
    try:
        reply = run(ctx, words)
        return show(ctx, reply) if reply else 0
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
        text = "A bug in scripto: %s." % bug(error)
        return show_error(ctx, ScriptoError("internal", text, "report it, with this line"))


if __name__ == "__main__":
    sys.exit(main())
