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
import argparse
import errno
import os
import re
import stat
import sys
import time

__version__ = "0.1.0"

# ---- Constants ----------------------------------------------------------------

# What a profile without `baseUrl` belongs to. Fixed, so that copies of this file that came
# from different backends never take one backend's key for another's.
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

# NIST SP 800-63B, 3.1.3: codes live ten minutes at most, and wrong attempts are limited for the
# account, not only for the code. The figures are the contract's.
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
NEXT_DOCTOR = "see what is wrong with: scripto doctor"
NEXT_USE = "see the profiles with: scripto use"


class ScriptoError(Exception):
    """code, message (never with a secret), next_action; the HTTP status if it is not the
    table's; the seconds after which the same request may work."""

    def __init__(self, code, message, next_action=None, http_status=None, retry_after=None):
        super().__init__(message)
        self.code, self.message, self.next_action = code, message, next_action
        self.http_status = http_status or ERRORS.get(code, (500,))[0]
        self.retry_after = retry_after

    @property
    def exit_status(self):
        """By the code; for one that is not in the table, by the HTTP status."""
        later = self.http_status == 429 or self.http_status >= 500
        return ERRORS.get(self.code, (0, 4 if self.http_status == 401 else 3 if later else 1))[1]

    def envelope(self):
        error = {"code": self.code, "message": self.message}
        if self.next_action:
            error["nextAction"] = self.next_action
        return {"success": False, "error": error}


def refused(message, next_action=None, http_status=None):
    """invalid-argument: the user, or a client of the backend, has to say it differently."""
    return ScriptoError("invalid-argument", message, next_action, http_status)


def blocked(message, next_action):
    """failed-precondition: something on this machine stands in the way."""
    return ScriptoError("failed-precondition", message, next_action)


def lacking(error):
    """Some Pythons come without ssl, sqlite3 or, as Debian's python3-minimal, even json."""
    module = (error.name or str(error)).lstrip("_")
    hint = "install all of it (Debian, Ubuntu: apt-get install python3), or use another Python"
    return blocked("This Python (%s) has no module '%s'." % (sys.executable, module), hint)


def bug(error):
    """Kind and place of an exception that nobody foresaw, instead of a traceback."""
    place = error.__traceback__
    while place.tb_next:
        place = place.tb_next
    return "%s at line %d" % (type(error).__name__, place.tb_lineno)


def reason_of(error):
    """Why a system call failed, in the system's words, without the path."""
    return error.strerror or str(error)


# ---- Context ------------------------------------------------------------------
# What a command may use of the world, in one object, so that nothing is global.


class Context:
    """The environment, the three streams, the clock, and whether the answer is to be JSON."""

    def __init__(self, env, stdin, stdout, stderr, as_json):
        self.env, self.stdin, self.stdout, self.stderr = env, stdin, stdout, stderr
        self.now, self.as_json, self.warned = time.time, as_json, set()

    def setting(self, name):
        """An environment variable, or None; an empty one counts as not set."""
        return self.env.get(name) or None


def timestamp(seconds):
    """Unix seconds as RFC 3339 in UTC; None stays None."""
    return seconds and time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def xdg_folder(ctx, variable, below_home, otherwise):
    """The XDG Base Directory specification's: the variable, unless it is empty or relative,
    else the place in the home folder. Raises failed-precondition if there is no home."""
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
# The only place that writes to the streams or reads standard input. What a person sees passes
# harmless() here, so that no command has to think of it.

ASCII_FORM = str.maketrans({"✓": "[ok]", "✗": "[error]", "●": "*", "•": "*"})
COLOURS = {"✓": "32", "✗": "31", "●": "36", "!": "33"}  # by the mark that a line begins with


class Reply:
    """A command's answer: data for JSON, the same as lines for a person, the exit status."""

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
    """Writes past the stream's buffer, so that what the system does not take raises OSError
    here and is not tried again at exit. What the encoding lacks gets an ASCII form."""
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
    """Writes lines for a person, coloured where a terminal shows colours."""
    plain = "NO_COLOR" in ctx.env or ctx.env.get("TERM") == "dumb" or os.name == "nt"
    text = ""
    for line in map(harmless, lines):
        if line[:1] in COLOURS and is_terminal(stream) and not plain:
            line = "\033[%sm%s\033[0m%s" % (COLOURS[line[0]], line[0], line[1:])
        text += line + end
    emit(stream, text)


def answer(ctx, stream, envelope, lines):
    """Writes one envelope to standard output, or its lines for a person to the stream."""
    if not ctx.as_json:
        return emit_lines(ctx, stream, lines)
    import json  # lazy

    emit(ctx.stdout, json.dumps(envelope) + "\n")


def say(ctx, *lines, end="\n"):
    """Warnings, errors, prompts, the backend's log: to standard error, if anybody hears."""
    try:
        emit_lines(ctx, ctx.stderr, lines, end)
    except OSError:
        pass


def warn(ctx, text):
    """Says a thing once, however often it is noticed."""
    if text not in ctx.warned:
        ctx.warned.add(text)
        say(ctx, "! " + text)


def show(ctx, reply):
    """Writes a Reply and returns the exit status. Raises failed-precondition when standard
    output takes no more, as a full disk does; BrokenPipeError when nobody reads on."""
    try:
        answer(ctx, ctx.stdout, {"success": True, "data": reply.data}, reply.lines)
    except BrokenPipeError:
        raise
    except OSError as error:
        message = "The answer cannot be written: %s." % reason_of(error)
        raise blocked(message, "look at where standard output goes")
    return reply.exit_status


def show_error(ctx, error):
    """Writes an error, as JSON or as two lines for a person, and returns the exit status."""
    lines = ["✗ " + error.message]
    if error.next_action:
        lines.append("  next: " + error.next_action)
    try:
        answer(ctx, ctx.stderr, error.envelope(), lines)
    except (OSError, ImportError):
        say(ctx, *lines)  # no standard output, or no json: this is what is left
    return error.exit_status


def read_line(ctx, prompt, secret=False):
    """One line of standard input without its end, "" if there is none. At a terminal there is
    a prompt, and a secret does not show as it is typed."""
    if is_terminal(ctx.stdin) and secret:
        import getpass  # lazy

        try:
            return getpass.getpass(prompt)
        except EOFError:
            return ""
    if is_terminal(ctx.stdin):
        say(ctx, prompt, end="")
    line = ctx.stdin.buffer.readline(64 << 10) if ctx.stdin else b""
    return line.decode("utf-8", "replace").rstrip("\r\n")


# ---- Door ---------------------------------------------------------------------
# Every value from outside is checked here, once, before anything is read, written or sent. A
# check returns the value in its one form, or raises invalid-argument.


def readable(text):
    """An argument as it was typed: under an ASCII locale Python 3.6 hands UTF-8 over as lone
    surrogates, which no JSON and no mail can carry."""
    try:
        return text if text.isprintable() else os.fsencode(text).decode("utf-8", "replace")
    except UnicodeEncodeError:  # not from the command line: a check will refuse it
        return text


def is_email(text):
    """The contract's rule. Refused too are the characters by which mail reads one address as
    another (RFC 5322: comments, groups, quotes): whose code would it be?"""
    local, _, domain = text.partition("@")
    plain = text.isprintable() and not set(text) & set(' <>(),;:\\"')
    return bool(local and domain) and "@" not in domain and len(text) <= EMAIL_LENGTH and plain


def check_email(text, command):
    text = readable(text or "")
    if not is_email(text):
        problem = "'%s' is not an email address." % text[:EMAIL_LENGTH]
        raise refused(problem if text else "The email is missing.", NEXT_EMAIL + command)
    return text


def check_code(text):
    """Six ASCII digits, also as `123 456` or `123-456`; the digits alone come back."""
    if not re.match(r"\s*[0-9](?:[ -]*[0-9]){5}\s*\Z", text or ""):
        raise refused("The code must be six digits." if text else "The code is missing.", NEXT_CODE)
    return re.sub("[^0-9]", "", text)


def is_key(text):
    """A bearer key: the prefix, and nothing that a header or a terminal would trip over."""
    return isinstance(text, str) and bool(re.match(KEY_PREFIX + r"[!-~]+\Z", text))


def check_key(text, source):
    """The text is never quoted: what was pasted by mistake may be another secret."""
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


def origin_of(url):
    """(scheme, host, port) of a checked base URL: what a key is bound to."""
    from urllib.parse import urlsplit  # lazy

    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def check_base_url(ctx, text, source):
    """Scheme and host in lower case, no trailing slash; `source` says where it came from."""
    form = r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?(/[!-~]*)?\Z"
    match = re.match(form, text, re.IGNORECASE | re.ASCII)
    scheme, host, port, path = match.groups("") if match else ("", "", "", "")
    if not match or set(path) & set("?#@\\\"'") or not 0 < int(port[1:] or 1) < 65536:
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
    return scheme + "://" + host + port + path.rstrip("/")


def shell_word(text):
    """A value as it can be pasted into a shell, for the commands that a next action names."""
    import shlex  # lazy

    return shlex.quote(text)


# ---- Profiles -----------------------------------------------------------------
# The only place that knows the profile file. It is whole at every moment, 0600 from its first
# byte, and what cannot be understood is never overwritten.


def try_lock(descriptor):
    """Takes an exclusive lock, or returns False: another program has it. The system drops it
    with its holder, however that dies, so no lock is ever stale."""
    try:
        import fcntl  # lazy; not on Windows

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks, as some network mounts: better unlocked than not
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
        self.shown = os.path.join(self.folder, "config.json")
        self.path = os.path.realpath(self.shown)  # a link stays: what it leads to is replaced

    def trouble(self, what, hint=None):
        hint = hint or "mend it, or move it away: mv {0} {0}.old".format(shell_word(self.shown))
        return blocked("The profile file %s %s." % (self.shown, what), hint)

    def content(self):
        """The file's bytes, b"{}" if there is no file. Nothing in its place makes this hang."""
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
        """The file's object as it stands, unknown members and all, "profiles" always there."""
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

    def prepare_folder(self):
        """Makes the folder, 0700. A home that is not there is not made up, and another user's
        is left alone: a file of root's in it would lock its owner out."""
        folder = nearest = os.path.dirname(self.path)
        while not os.path.lexists(nearest):
            nearest = os.path.dirname(nearest)
        owner, home = os.stat(nearest).st_uid, os.path.dirname(os.path.dirname(self.folder))
        if hasattr(os, "geteuid") and owner not in (0, os.geteuid()):
            raise OSError(errno.EPERM, "%s belongs to user %d" % (nearest, owner))
        if not self.ctx.setting("XDG_CONFIG_HOME") and not os.path.isdir(home):
            raise OSError(errno.ENOENT, "there is no folder " + home)
        os.makedirs(folder, 0o700, exist_ok=True)
        if folder == self.folder:  # ours by its name; where a link leads to is not
            os.chmod(folder, 0o700)

    def lock(self):
        """Returns the descriptor that holds the lock. Raises TimeoutError in the end."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(self.path + ".lock", flags, 0o600)
        give_up = time.monotonic() + LOCK_SECONDS
        while not try_lock(descriptor):
            if time.monotonic() > give_up:
                os.close(descriptor)
                raise TimeoutError(errno.ETIMEDOUT, "another program is writing it")
            time.sleep(0.02)
        return descriptor

    def write_beside(self, content):
        """Writes a temporary file through to the disk and returns its path. One fixed name,
        under the lock: what a killed program left is replaced, and nothing piles up. Made
        anew, so it is no link and 0600 from the start."""
        path = self.path + ".tmp"
        if os.path.lexists(path):
            os.unlink(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "wb") as file:
                if hasattr(os, "fchmod"):  # not on Windows; the umask may have taken too much
                    os.fchmod(descriptor, 0o600)
                file.write(content)
                file.flush()
                os.fsync(descriptor)
        except OSError:
            os.unlink(path)
            raise
        return path

    def replace(self, content, rehearsal):
        """Puts the content in the file's place. A rehearsal does all but that, with room to
        spare, so that a full disk shows early."""
        beside = self.write_beside(content + b" " * 4096 * rehearsal)
        if rehearsal:
            return os.unlink(beside)
        os.replace(beside, self.path)
        if os.name == "posix":  # the rename has to reach the disk too; Windows opens no folders
            descriptor = os.open(os.path.dirname(self.path), os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def change(self, work, rehearsal=False):
        """Runs work(state) under the lock, replaces the file and returns what work() returned;
        if that raises, nothing changes."""
        import json  # lazy

        lock = None
        try:
            self.prepare_folder()
            lock = self.lock()
            state = self.read()
            result = work(state)
            self.replace(json.dumps(state, indent=2).encode("ascii") + b"\n", rehearsal)
            return result
        except RecursionError:
            raise self.trouble("is nested too deeply")
        except OSError as error:
            hint = "make that possible, or set XDG_CONFIG_HOME or SCRIPTO_API_KEY instead"
            raise self.trouble("cannot be written: " + reason_of(error), hint)
        finally:
            if lock is not None:
                os.close(lock)


def find_profile(state, name):
    """The profile of that name. Raises not-found, or invalid-argument if it can be none."""
    if name not in state["profiles"]:
        check_profile_name(name)
        raise ScriptoError("not-found", "There is no profile '%s'." % name, NEXT_USE)
    return state["profiles"][name]


def text_of(thing, member):
    """A member that ought to be text; anything else counts as absent, and absent as ""."""
    value = thing.get(member)
    return value if isinstance(value, str) else ""


def url_of(profile):
    """The backend that minted the profile's key."""
    return text_of(profile, "baseUrl") or PRODUCTION_URL


def profile_name_for(email):
    """`You.Too+x@example.com` gives `you.too-x`, with room for a number behind it."""
    local = re.sub("[^a-z0-9._-]+", "-", email.partition("@")[0].lower())
    return local[:56].strip("-") or "default"


def store_profile(state, named, identity, base_url, now, just_there=False):
    """Puts a key and whose it is into the state, makes it active, and returns its name.

    named: a name given by hand, or None. identity: what is known of apiKey, email, userId and
    keyId. The same email at the same backend renews its profile; a taken name gets a number,
    unless just that profile is meant."""
    profiles, email = state["profiles"], identity.get("email", "")

    def is_same(name):
        same_email = text_of(profiles[name], "email").lower() == email.lower()
        return same_email and url_of(profiles[name]) == base_url

    name = named or (profile_name_for(email) if email else "default")
    if not named and email:
        candidates = [name, state.get("activeProfile")] + list(profiles)
        name = next((each for each in candidates if each in profiles and is_same(each)), name)
    first, number = name, 1
    while name in profiles and not just_there and not is_same(name):
        number += 1
        name = "%s-%d" % (first, number)
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
    """Removes profiles, and returns the name of the active one: if that went, the first that
    is left becomes it."""
    for name in names:
        state["profiles"].pop(name, None)
    if state.get("activeProfile") not in state["profiles"]:
        state["activeProfile"] = next(iter(state["profiles"]), None)
    return state["activeProfile"]


# ---- Resolution ---------------------------------------------------------------
# Which key and which base URL are in force, and why. Nothing is sent or written here.


class Target:
    """base_url and key with the sources of both ("--api-url", "SCRIPTO_API_KEY", "profile",
    "default"); the profile in force and its name, {} and None if there is none."""

    def __init__(self):
        self.base_url = self.url_source = self.key = self.key_source = self.name = None
        self.profile = {}


def given_key(ctx, text):
    """The value of --api-key, checked; `-` reads it from standard input."""
    return check_key(read_line(ctx, "API key: ", True) if text == "-" else text, "--api-key")


def resolve(ctx, args, with_key=True):
    """Finds base URL and, with_key, the key, in the contract's order; returns a Target. Raises
    unauthenticated where there is no key, failed-precondition where a profile's key would go to
    another origin than its own."""
    target, key, url = Target(), "SCRIPTO_API_KEY", "SCRIPTO_API_BASE_URL"
    if with_key and args.api_key is not None:
        target.key, target.key_source = given_key(ctx, args.api_key), "--api-key"
    elif with_key and ctx.setting(key):
        target.key, target.key_source = check_key(ctx.env[key], key), key
    for source, text in (("--api-url", args.api_url), (url, ctx.setting(url))):
        if text is not None and not target.base_url:
            target.base_url, target.url_source = check_base_url(ctx, text, source), source
    if args.profile is not None or not target.base_url or (with_key and not target.key):
        pick_profile(ctx, args.profile, target)
    if args.profile is not None and target.key_source == key:
        warn(ctx, "%s overrides the key of profile '%s'" % (key, target.name))
    if with_key and not target.key:
        target.key, target.key_source = target.profile.get("apiKey"), "profile"
        if not target.key:
            raise ScriptoError("unauthenticated", "There is no API key.", NEXT_SIGN_IN)
        if not is_key(target.key):
            raise blocked("Profile '%s' holds no Scripto key." % target.name, NEXT_SIGN_IN)
    use_stored_url(ctx, target)
    return target


def pick_profile(ctx, named, target):
    """The named profile, else the active one, else none."""
    try:
        file = ProfileFile(ctx)
    except ScriptoError:  # no home, no file: only who asks for a profile minds
        if named is not None:
            raise
        return
    state = file.read()
    name = named if named is not None else state.get("activeProfile")
    if named is not None or name in state["profiles"]:
        target.name, target.profile = name, find_profile(state, name)


def use_stored_url(ctx, target):
    """The profile's base URL where none was given, else the default. A stored key goes to its
    own backend only, whoever set another base URL, and why."""
    if target.key_source != "profile" and (target.base_url or not target.profile.get("baseUrl")):
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
# The only place that sends a request. No redirect is ever followed: every request carries a
# key, a code or an email, and none of them is a stranger's business.


def bad_reply(url, what):
    hint = "check that this is a Scripto backend, or pass another with --api-url"
    return ScriptoError("invalid-response", "%s %s." % (url, what), hint)


def send(ctx, method, url, body=None, key=None):
    """Sends one request; returns (status, headers, body as bytes), whatever the status.

    body: an object, goes as JSON. key: goes as bearer token (RFC 6750). Raises network-error,
    or invalid-response for what is no HTTP, is too large or breaks off. SCRIPTO_TIMEOUT bounds
    the whole: a thread does the work, since a socket's time-out bounds neither a name look-up
    nor a peer that sends a byte a second."""
    import http.client  # lazy, as all that HTTP needs
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


def opener_for(url):
    """A bare opener: proxies from the environment but never for loopback, certificates always
    checked; no redirects, no opinion on statuses, no other schemes."""
    import urllib.request as library  # lazy

    scheme, host, _ = origin_of(url)
    proxies = {} if is_loopback(host) else library.getproxies_environment()
    opener = library.OpenerDirector()
    opener.addheaders = []
    opener.add_handler(library.ProxyHandler(proxies))
    opener.add_handler(library.HTTPHandler())
    if scheme == "https":
        import ssl  # lazy, and some Pythons lack it

        opener.add_handler(library.HTTPSHandler(context=ssl.create_default_context()))
    return opener


def exchange(opener, request, seconds, progress):
    """One request and its reply; `progress` notes that it began. A GET that was reset is tried
    once more; what spends a code never is: it may have been heard."""
    try:
        response = opener.open(request, timeout=seconds)
    except OSError as error:
        reset = isinstance(getattr(error, "reason", error), ConnectionResetError)
        if not reset or request.get_method() != "GET":
            raise
        response = opener.open(request, timeout=seconds)
    with response:
        progress.append("reply")
        body = response.read(REPLY_BYTES + 1)
        if len(body) > REPLY_BYTES:
            return bad_reply(request.full_url, "sent more than %d bytes" % REPLY_BYTES)
        if response.length:  # what Content-Length promised beyond this
            return bad_reply(request.full_url, "broke off its reply")
        return response.status, response.headers, body


def network_trouble(url, error, seconds, progress):
    """The error for what went wrong on the way, told apart as a person wants to know it."""
    import http.client  # lazy
    import socket

    if isinstance(getattr(error, "reason", None), Exception):
        error = error.reason  # urllib wraps what happens before the reply
    where, tls = "%s:%d" % origin_of(url)[1:], sys.modules.get("ssl")
    hint = "check the network, any proxy and the base URL"
    if tls and isinstance(error, (tls.SSLError, tls.CertificateError)):
        text = getattr(error, "verify_message", "") or getattr(error, "strerror", 0) or str(error)
        text = re.sub(r"^\[.*?\] *|\.?( *\(_ssl\.c:\d+\))?$", "", text)  # OpenSSL's own, bare
        text = "TLS with %s failed: %s." % (where, text)
        hint = "check the host; if it is right, install ca-certificates or set SSL_CERT_FILE"
    elif isinstance(error, socket.timeout):
        what = "did not finish its reply" if progress else "did not answer"
        text = "%s %s within %g seconds." % (where, what, seconds)
        hint = "try again, or allow more time: SCRIPTO_TIMEOUT=%g" % (seconds * 2)
    elif isinstance(error, (socket.gaierror, UnicodeError)):
        reason = getattr(error, "strerror", None) or "not a host name"
        text = "The host of %s cannot be found: %s." % (where, reason)
    elif isinstance(error, ConnectionRefusedError):
        text = "%s refused the connection." % where
        hint = "check that the backend runs there, or pass another with --api-url"
    elif isinstance(error, ConnectionError):
        when = "in the middle of its reply" if progress else "without an answer"
        text = "%s closed the connection %s." % (where, when)
    elif isinstance(error, OSError):
        text = "%s cannot be reached: %s." % (where, reason_of(error))
    else:
        cut = isinstance(error, http.client.IncompleteRead)
        return bad_reply(url, "broke off its reply" if cut else "sent what is not HTTP")
    return ScriptoError("network-error", text, hint)


def parse_json(content):
    """The JSON object in UTF-8, None for anything else. No number matters in these bodies; as
    floats they cost no more than their length, however many digits."""
    import json  # lazy

    try:
        value = json.loads(content.decode("utf-8"), parse_int=float)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def call(ctx, target, method, path, part, body=None, hints=None):
    """Sends a request to the target, with its key if it has one, and returns that part of the
    JSON object of a success. Raises the backend's error; `hints` has next actions by code, for
    those that name none."""
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
    """The error that a reply tells: its members word for word, gaps filled by its status."""
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
# Signing in, looking, signing out. A command takes the context and the parsed arguments and
# returns a Reply; it writes nothing itself.


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
    """What can fail on this machine is tried first: the code is good for one key."""
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
    data = call(ctx, target, "POST", "/api/cli/login-complete", "data", body, hints)
    if not is_key(data.get("apiKey")):
        raise bad_reply(target.base_url, "sent no key")
    names = ("apiKey", "email", "userId", "keyId")
    identity = {name: text_of(data, name) for name in names if text_of(data, name)}
    identity.setdefault("email", email)
    name = keep_key(ctx, file, args.profile_name, identity, target.base_url)
    lines = ["✓ Signed in", "", "  Email:    " + identity["email"]]
    return stored(name, identity, target.base_url, lines)


def keep_key(ctx, file, named, identity, base_url):
    """Stores a key that was just minted and returns its profile's name. If that fails after
    all, or is interrupted, the error hands the key over, this once: its code is spent."""

    def store(state):
        return store_profile(state, named, identity, base_url, ctx.now())

    try:
        return file.change(store)
    except (ScriptoError, KeyboardInterrupt) as error:
        hint = "store it with: scripto config set --api-key %s --profile-name %s --api-url %s"
        name = named or profile_name_for(identity["email"])
        raise blocked("Signed in, but the key could not be stored. %s" % error,
                      hint % (shell_word(identity["apiKey"]), name, shell_word(base_url)))


def stored(name, identity, base_url, lines):
    """The reply of a command that stored a key; what is not known is absent."""
    data = dict(identity, profile=name, active=True, baseUrl=base_url, apiKey=MASKED_KEY)
    lines = lines + ["  Profile:  %s (now active)" % name, "  API key:  " + MASKED_KEY]
    return Reply(data, lines + ["", "  Try it:  scripto whoami"])


def cmd_whoami(ctx, args):
    """Says only what the backend said just now; the profile fills a blank email or name."""
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
    """The one command that shows a key: alone on its line, for scripts."""
    key = resolve(ctx, args).key
    return Reply({"apiKey": key}, [key])


def listed(state):
    """(rows for JSON, lines for a person) of the profiles; the active one is marked."""
    active, profiles = state.get("activeProfile"), state["profiles"].items()
    rows = [{"name": name, "active": name == active, "email": text_of(profile, "email"),
             "baseUrl": url_of(profile)} for name, profile in profiles]
    wide = max([len(row["name"]) for row in rows] + [0])
    lines = ["%s %s  %-24s  %s" % ("●" if row["active"] else " ", row["name"].ljust(wide),
                                   row["email"], row["baseUrl"]) for row in rows]
    return rows, lines or ["No profile yet.", "  next: " + NEXT_SIGN_IN]


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
        if ctx.setting("SCRIPTO_API_KEY"):
            warn(ctx, "SCRIPTO_API_KEY is set and overrides the key of every profile")
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
    lines += ["  Profile %s is now active" % active] if active else []
    return Reply({"removed": name, "revoked": False, "activeProfile": active}, lines)


# ---- Configuration ------------------------------------------------------------
# The commands that work on the profile file alone, with no network.


def cmd_config_set(ctx, args):
    if args.api_key is None:
        raise refused("The API key is missing.", "Pass --api-key <your-key> to: scripto config set")
    identity, name = {"apiKey": given_key(ctx, args.api_key)}, args.profile_name
    url, source = args.api_url, "--api-url"
    if url is None:
        url, source = ctx.setting("SCRIPTO_API_BASE_URL") or BASE_URL, "SCRIPTO_API_BASE_URL"
    base_url = check_base_url(ctx, url, source)
    if name is not None:
        check_profile_name(name)

    def store(state):
        return store_profile(state, name, identity, base_url, ctx.now(), name is not None)

    lines = ["✓ Key stored", "", "  Backend:  " + base_url]
    return stored(ProfileFile(ctx).change(store), identity, base_url, lines)


def cmd_config_show(ctx, args):
    file = ProfileFile(ctx)
    rows, lines = listed(file.read())
    data = {"path": file.shown, "profiles": [dict(row, apiKey=MASKED_KEY) for row in rows]}
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
# How the backend delivers a code. deliver(message, to) returns when the mail is on its way, or
# raises MailError with a reason for the log: no address in it, and no code.


class MailError(Exception):
    pass


def compose(sender, to, code, site, now):
    """The mail with a code, as readers and spam filters expect it (RFC 5322, RFC 3834)."""
    import email.message  # lazy
    import email.utils

    message = email.message.EmailMessage()
    message["From"] = "Scripto <%s>" % sender
    message["To"] = to
    message["Subject"] = "%s is your Scripto sign-in code" % code
    message["Date"] = email.utils.formatdate(now)
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
    """Reads --mail and returns deliver(message, to). bound_to is the address of the server: a
    code on its console is for who sits there, so that is for loopback only."""
    kind, _, rest = where.partition(":")
    if where == "console" and is_loopback(bound_to):
        return lambda message, to: say(ctx, "mail to %s: %s" % (to, message["Subject"]))
    if kind == "maildir" and rest:
        return lambda message, to: deliver_to_maildir(rest, message)
    server = smtp_server(ctx, where) if kind in ("smtp", "smtps") else None
    if server:
        return lambda message, to: deliver_by_smtp(server, message, to)
    forms = "maildir:DIR, smtp://[user@]host[:port], smtps://..., console (on loopback only)"
    raise refused("Mail cannot go by '%s' from %s." % (kind, bound_to), "pass --mail with: " + forms)


def deliver_to_maildir(folder, message):
    import mailbox  # lazy

    try:
        os.makedirs(os.path.dirname(os.path.abspath(folder)), exist_ok=True)
        mailbox.Maildir(folder).add(message)
    except (OSError, ValueError) as error:
        raise MailError("maildir: " + type(error).__name__)


def smtp_server(ctx, url):
    """(scheme, host, port, user, password), None for a bad URL. SCRIPTO_SMTP_PASSWORD wins over
    the URL, which anyone can see in the list of processes."""
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
    import ssl

    scheme, host, port, user, password = server
    tls, secure = ssl.create_default_context(), scheme == "smtps"
    kind, more = (smtplib.SMTP_SSL, {"context": tls}) if secure else (smtplib.SMTP, {})
    own = message["Message-ID"][1:-1].partition("@")[2]  # else a look-up in the DNS, to wait for
    try:
        with kind(host, port, own, timeout=MAIL_SECONDS, **more) as smtp:
            smtp.ehlo_or_helo_if_needed()
            if not secure and smtp.has_extn("starttls"):
                smtp.starttls(context=tls)
                secure = True
            if user and not secure and not is_loopback(host):
                raise MailError("smtp: the server offers no TLS for the password")
            if user:
                smtp.login(user, password)
            smtp.send_message(message, to_addrs=[to])
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
    """One SQLite file, one connection, one thread at a time; other processes are held off by
    SQLite's own locks. Times are Unix seconds. What write() returned survives a power cut."""

    def __init__(self, path):
        import sqlite3  # lazy
        import threading

        self.path, self.lock = path, threading.Lock()
        try:
            # Made by us, so that it is 0600 before SQLite writes; its side files follow suit.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            os.chmod(path, 0o600)
            self.db = sqlite3.connect(path, 10, isolation_level=None, check_same_thread=False)
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
        """The rows of one SELECT."""
        with self.lock:
            return self.run(sql, *values).fetchall()

    def write(self, work, *values):
        """Runs work(*values) as one transaction, alone among threads and processes."""
        with self.lock, self.db:  # commits; what raises is rolled back
            self.run("BEGIN IMMEDIATE")
            return work(*values)

    def migrate(self):
        version = self.run("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise self.trouble("was made by a newer scripto")
        if version == 0 and self.run("SELECT 1 FROM sqlite_master").fetchone():
            raise self.trouble("belongs to another program")
        for statement in sum(MIGRATIONS[version:], ()):
            self.run(statement)
        if version == 0:
            self.run("INSERT INTO secret VALUES (?)", os.urandom(32))
        self.run("PRAGMA user_version = %d" % len(MIGRATIONS))

    def wait(self, email, limits, now):
        """Seconds until the email is within all limits again; 0 if it is now."""
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
        """Counts a code request, before its mail goes: (seconds to wait, event)."""
        self.run("DELETE FROM events WHERE at <= ?", now - DAY)
        self.run("DELETE FROM codes WHERE expires_at <= ?", now)
        wait = self.wait(email, REQUEST_LIMITS, now)
        return wait, None if wait else self.add_event(email, "request", now)

    def release(self, event):
        """Takes back a request whose mail was not taken."""
        self.run("DELETE FROM events WHERE id = ?", event)

    def put_code(self, email, digest, now):
        """A new code comes with new attempts; those counted for the email stay."""
        sql = "INSERT OR REPLACE INTO codes VALUES (?, ?, ?, ?)"
        self.run(sql, email, digest, now + CODE_SECONDS, CODE_ATTEMPTS)

    def redeem(self, email, digest, key, now):
        """Checks a code, spends it, makes the user and stores the key (id, hash, name, start),
        all or nothing. Returns (seconds to wait, user id); without an id the code was wrong,
        which counts for the email even where no code is live."""
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
        """(id, email, name) of a key's user, or None. Its use is noted once a minute."""
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
# What the backend answers. A route takes the backend and a request (method, path, headers, body,
# address) and returns (status, object or bytes, headers), or raises ScriptoError. It knows
# neither sockets nor SQL.

BEARER = ("WWW-Authenticate", "Bearer")


class Backend:
    """What routes share: store, delivery, its own URL, and who has asked how often."""

    def __init__(self, ctx, store, deliver, sender, rate_limit):
        import threading  # lazy

        self.ctx, self.store, self.deliver, self.sender = ctx, store, deliver, sender
        self.secret = store.read("SELECT value FROM secret")[0][0]
        self.rate_limit, self.recent, self.guard = rate_limit, {}, threading.Lock()
        self.public_url = None

    def log(self, text):
        say(self.ctx, "%s %s" % (timestamp(self.ctx.now()), text))

    def digest(self, email, code):
        """What is stored of a code. Keyed, since a plain hash of six digits hides nothing."""
        import hmac  # lazy

        return hmac.new(self.secret, ("%s\0%s" % (email, code)).encode(), "sha256").digest()

    def admit(self, request, next_action):
        """The object in the body of a public route. Raises resource-exhausted if its address
        asks too often, by a sliding minute."""
        now, limit, address = time.monotonic(), self.rate_limit, request.address
        with self.guard:
            if len(self.recent) > 9999:  # forget those that have been quiet
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


def too_many(what, seconds):
    wait = int(seconds) + 1
    hint = "retry in %d seconds" % wait
    return ScriptoError("resource-exhausted", "Too many %s." % what, hint, retry_after=wait)


def success(data):
    return 200, {"success": True, "data": data}, []


def route_login_request(backend, request):
    """The mail goes before the code is stored and before the answer: a failure leaves nothing."""
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
    """(id, email, name) of who sent the bearer key (RFC 6750). Raises unauthenticated."""
    import hashlib  # lazy

    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    digest = hashlib.sha256(key.strip().encode()).digest()
    user = backend.store.user_of(digest, backend.ctx.now()) if scheme.lower() == "bearer" else None
    if user is None:
        raise ScriptoError("unauthenticated", "The key is missing or not valid.", NEXT_SIGN_IN)
    return user


def route_me(backend, request):
    """Two odd shapes, both the product's. The headers are for a web server that asks on
    behalf of a page."""
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
    source = re.sub(rb"(?m)^BASE_URL = .*$", lambda _: line, source, 1)
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
    """The path's entry in ROUTES, or None. It is what logs name: who knows what a path holds."""
    path = re.sub(r"^/api/keys/[^/]+$", "/api/keys/<id>", path)
    return path if path in ROUTES else None


def respond_to(backend, request):
    """Finds the route and runs it. HEAD is a GET whose body is not sent (RFC 9110, 9.3.2)."""
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
# Sockets, threads and time-outs around the routes. Two halves of classes whose other halves
# are the standard library's; make_server() joins them, where those are imported.


class Connections:
    """Half of the server: which connections are open, and for how long they may be.

    Each has a thread. `opened` holds them all, with the time at which they are cut off if
    their request has not come by then; None while it is being worked on."""

    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # on Windows it would share the port
    request_queue_size = 128

    def start(self, backend, tls, behind_proxy):
        import threading  # lazy

        self.backend, self.tls, self.behind_proxy = backend, tls, behind_proxy
        self.opened, self.guard, self.stopping = {}, threading.Lock(), False

    def get_request(self):
        connection, address = super().get_request()
        if self.tls:  # the handshake comes with the first read, in the connection's own thread
            connection = self.tls.wrap_socket(connection, True, do_handshake_on_connect=False)
        return connection, address

    def process_request(self, connection, address):
        """When all places are taken, the one that has been silent longest gives way."""
        if len(self.opened) >= CONNECTIONS:
            self.cut(1)
        if len(self.opened) >= CONNECTIONS:
            return super().shutdown_request(connection)
        self.opened[connection] = time.monotonic() + READ_SECONDS
        super().process_request(connection, address)

    def expect(self, connection, seconds):
        """What comes next has to be here within so many seconds; None: all of it is here."""
        with self.guard:
            if connection in self.opened:
                self.opened[connection] = seconds and time.monotonic() + seconds

    def cut(self, most, deadline=float("inf")):
        """Ends the connections that have until the deadline, the most urgent first, under
        their threads, which find them closed. By the plain socket's shutdown(): TLS would want
        to talk about it first."""
        import socket  # lazy

        with self.guard:
            late = sorted((until, id(each), each) for each, until in self.opened.items()
                          if until and until < deadline)
            for _, _, connection in late[:most]:
                del self.opened[connection]
                try:
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
                except OSError:
                    pass  # gone already

    def service_actions(self):
        """Called twice a second: cuts off who is late, however busily it dribbles."""
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
        """Takes no more, lets requests in hand end, and lets go of the rest."""
        self.stopping = True
        self.shutdown()
        self.server_close()
        give_up = time.monotonic() + 2 * MAIL_SECONDS
        while self.opened and time.monotonic() < give_up:
            self.cut(CONNECTIONS)
            time.sleep(0.02)


class RequestHandler:
    """Half of the handler: the requests of one connection, read, answered and logged."""

    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # by 0.9 an error would go out without its status
    server_version, sys_version = "scripto/" + __version__, ""
    timeout = READ_SECONDS  # of one read or write; Connections bounds the whole
    disable_nagle_algorithm = True
    path, started = "", 0

    def handle_one_request(self):
        self.path = ""
        self.server.expect(self.connection, READ_SECONDS)
        super().handle_one_request()

    def parse_request(self):
        self.started = time.monotonic()
        self.server.expect(self.connection, READ_SECONDS)
        return super().parse_request()

    def dispatch(self):
        """The backend's one edge: whatever is raised below becomes an answer here."""
        try:
            reply = respond_to(self.server.backend, self.read_request())
        except ScriptoError as error:
            reply = error_answer(error)
        except OSError:  # the client fell silent or went away
            self.close_connection = True
            return
        except Exception as error:
            self.server.backend.log("fault: " + bug(error))
            reply = error_answer(ScriptoError("internal", "The backend failed.", NEXT_RETRY))
        self.respond(*reply)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = dispatch

    def read_request(self):
        """Reads the body. Raises for one that is too large or whose length is not plain; the
        connection then ends, as it is anyone's guess where the next request would start."""
        import types  # lazy

        keep, self.close_connection = not self.close_connection, True
        lengths = self.headers.get_all("Content-Length", ["0"])
        if "Transfer-Encoding" in self.headers:
            raise refused("A body has to come with its length, not in chunks.", None, 501)
        if self.headers.defects or len(lengths) > 1 or not re.match("[0-9]{1,9}$", lengths[0]):
            raise refused("The header is malformed.")
        if int(lengths[0]) > BODY_BYTES:
            raise refused("The body is larger than %d bytes." % BODY_BYTES, None, 413)
        body = self.rfile.read(int(lengths[0]))
        if len(body) < int(lengths[0]):
            raise ConnectionError("the body broke off")
        self.server.expect(self.connection, None)
        self.close_connection = self.server.stopping or not keep
        self.path = re.sub("(?i)^https?://[^/?]*", "", self.path)  # RFC 9112, 3.2.2
        return types.SimpleNamespace(method=self.command, path=self.path.partition("?")[0],
                                     headers=self.headers, body=body, address=self.address())

    def address(self):
        """The client's, as the nearest proxy saw it if there is said to be one."""
        hops = self.headers.get_all("X-Forwarded-For", []) if self.server.behind_proxy else []
        last = ",".join(hops).rpartition(",")[2].strip()
        return last if re.match("[0-9A-Fa-f.:]{2,45}$", last) else self.client_address[0]

    def respond(self, status, body, headers):
        """Sends an answer. A connection that is to end is read on for a moment: to close on
        unread bytes resets it, and the answer is lost (RFC 9112, 9.6)."""
        import json  # lazy
        import socket

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
        """What the standard library refuses by itself: a malformed line, a header flood."""
        self.close_connection = True
        error = refused("The request is not valid HTTP.", "see GET /llms.txt", int(code))
        self.respond(*error_answer(error))

    def log_request(self, code="-", size="-"):
        """One line a request, without its query, header or body; of the path what it matched."""
        path = pattern_of(self.path.partition("?")[0]) or "-"
        method = self.command if re.match("[A-Z]{3,7}$", self.command or "") else "-"
        spent = (time.monotonic() - self.started) * 1000
        line = (self.client_address[0], method, path, int(code), spent)
        self.server.backend.log("%s %s %s %d %.0fms" % line)

    def log_error(self, *_):
        """The standard library would say again what log_request() has said."""


def make_server(host, port):
    """Binds and returns the server. Raises failed-precondition where that cannot be."""
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
    """The server's side of TLS, None if it is not asked for."""
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
    """The database at --db, else in the data folder."""
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
    """Says where it listens, serves until SIGINT or SIGTERM, and has nothing to add."""
    host, port = args.host or "127.0.0.1", check_number(args.port or "8787", "--port", 65535)
    rate_limit = check_number(args.rate_limit or "60", "--rate-limit", 10**9)
    deliver = delivery_for(ctx, args.mail or "console", host)
    public_url = args.public_url and check_base_url(ctx, args.public_url, "--public-url")
    domain = origin_of(public_url)[1] if public_url else "localhost"
    sender = check_email(args.mail_from or "scripto@" + domain, "serve --mail-from")
    tls = tls_context(args)
    os.umask(0o077)  # what is made from here on holds codes and hashes: nobody else's business
    store = open_store(ctx, args.db)
    server, backend = make_server(host, port), Backend(ctx, store, deliver, sender, rate_limit)
    server.start(backend, tls, args.behind_proxy)
    where = ("[%s]:%d" if ":" in host else "%s:%d") % (host, server.server_address[1])
    url = "%s://%s" % ("https" if tls else "http", where)
    backend.public_url = public_url or url
    reply = Reply({"url": url, "publicUrl": backend.public_url}, ["listening on " + url])
    serve_until_told(ctx, server, reply)


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
    """The sign-in as a user does it: real processes, real HTTP, real mail, in a folder that is
    gone afterwards. Raises internal unless every step worked."""
    import subprocess  # lazy
    import tempfile

    with tempfile.TemporaryDirectory(prefix="scripto-demo-") as folder:
        env = {k: v for k, v in ctx.env.items() if not k.startswith(("SCRIPTO_", "XDG_"))}
        env.update(HOME=folder, PYTHONIOENCODING="utf-8")
        mail = os.path.join(folder, "mail")
        serve = [sys.executable, os.path.abspath(__file__), "serve", "--port", "0"]
        server = subprocess.Popen(serve + ["--mail", "maildir:" + mail], env=env,
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            first = server.stdout.readline().decode()
            env["SCRIPTO_API_BASE_URL"] = first.rpartition(" ")[2].strip()
            steps = demo_steps(env, mail)
        finally:
            server.terminate()
            server.communicate()
    lines = ["A backend of its own, in a folder that is gone by now, " + first.strip()]
    for command, output in steps:
        lines += ["", command] + output.splitlines()
    data = {"ok": True, "steps": [{"command": step[0], "output": step[1]} for step in steps]}
    return Reply(data, lines + ["", "✓ All of it works on this machine"])


def demo_steps(env, mail):
    """Runs the two commands and whoami, and reads the mail in between: [(command, output)]."""
    sign_in = ["--email", "you@example.com"]
    asked = demo_step(env, ["auth", "login-request"] + sign_in)
    folder = os.path.join(mail, "new")
    with open(os.path.join(folder, os.listdir(folder)[0]), encoding="utf-8") as file:
        text = file.read()
    code = re.search(r"^Subject: (\d{6}) ", text, re.M).group(1)
    done = demo_step(env, ["auth", "login-complete"] + sign_in + ["--code", code])
    return [asked, ("The mail that came:", text), done, demo_step(env, ["whoami"])]


def demo_step(env, words):
    import subprocess  # lazy

    process = subprocess.Popen([sys.executable, os.path.abspath(__file__)] + words, env=env,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, errors = (text.decode("utf-8", "replace") for text in process.communicate())
    command = "scripto " + " ".join(words)
    if process.returncode or "you@example.com" not in output:
        text = "The demo failed at '%s': %s" % (command, " ".join((errors or output).split()))
        raise ScriptoError("internal", text, NEXT_DOCTOR)
    return "$ " + command, output


# ---- Doctor -------------------------------------------------------------------
# What works here and what does not, by looking only: nothing is changed. A check yields rows
# (name, "ok" | "warning" | "error", what was found, what to do about it).

MARKS = {"ok": "✓", "warning": "!", "error": "✗"}


def check_python():
    yield "python", "ok", "%s at %s" % (sys.version.split()[0], sys.executable), None
    try:
        import sqlite3  # lazy

        yield "sqlite", "ok", sqlite3.sqlite_version, None
    except ImportError as error:
        yield "sqlite", "warning", "missing: serve cannot run", lacking(error).next_action


def check_file(ctx):
    try:
        file = ProfileFile(ctx)
        count = len(file.read()["profiles"])
    except ScriptoError as error:
        yield "profiles", "error", error.message, error.next_action
        return
    yield "profiles", "ok", "%s: %d" % (file.shown, count), None
    if os.name == "posix" and os.path.exists(file.path) and os.stat(file.path).st_mode & 0o077:
        yield "mode", "warning", "others can read that file", "chmod 600 " + shell_word(file.path)


def check_tls(base_url):
    """TLS matters to a backend that is reached by https."""
    bad = "error" if base_url.startswith("https") else "warning"
    try:
        import ssl  # lazy
    except ImportError as error:
        yield "tls", bad, "missing: no https", lacking(error).next_action
        return
    folder = ssl.get_default_verify_paths().capath
    known = ssl.create_default_context().cert_store_stats()["x509_ca"]
    if known or (folder and os.listdir(folder)):
        yield "tls", "ok", ssl.OPENSSL_VERSION, None
    else:
        hint = "install ca-certificates, or set SSL_CERT_FILE to a file of certificates"
        yield "tls", bad, "no certificate authority is known here", hint


def check_backend(ctx, target):
    """The way there, whether it answers, takes the key, and agrees on the time."""
    import urllib.request as library  # lazy
    from email.utils import mktime_tz, parsedate_tz

    scheme, host, _ = origin_of(target.base_url)
    proxy = library.getproxies_environment().get(scheme)
    if is_loopback(host) or library.proxy_bypass_environment(host):
        proxy = None
    yield "proxy", "ok", re.sub("//[^/@]*@", "//", proxy or "none") + " for " + host, None
    try:
        status, headers, body = send(ctx, "GET", target.base_url + "/api/auth/me", None, target.key)
    except ScriptoError as error:
        yield "backend", "error", error.message, error.next_action
        return
    yield "backend", "ok", target.base_url + " answers", None
    if target.key and status == 200 and parse_json(body):
        yield "key", "ok", "accepted", None
    elif target.key:
        yield "key", "error", "not accepted: HTTP %d" % status, NEXT_SIGN_IN
    date = parsedate_tz(headers.get("Date", ""))
    off = ctx.now() - mktime_tz(date) if date else 0
    verdict = ("ok", "%+.0f seconds against the backend's" % off, None)
    if abs(off) > 60:
        verdict = ("warning", verdict[1], "set this machine's clock: codes live five minutes")
    yield ("clock",) + verdict


def check_access(ctx, args):
    """Which key and base URL are in force, and why; without a key, where one would be got."""
    target, rows = None, []
    try:
        target = resolve(ctx, args)
        text = "key from %s, base URL %s from %s"
        text %= (target.key_source, target.base_url, target.url_source)
        rows.append(("access", "ok", text, None))
    except ScriptoError as error:
        rows.append(("access", "error", error.message, error.next_action))
        try:
            target = resolve(ctx, args, with_key=False)
        except ScriptoError:
            return rows
    try:
        rows += check_tls(target.base_url)
        rows += check_backend(ctx, target)
    except ImportError as error:
        rows.append(("backend", "error", lacking(error).message, lacking(error).next_action))
    return rows


def cmd_doctor(ctx, args):
    rows = list(check_python()) + list(check_file(ctx)) + check_access(ctx, args)
    lines = []
    for name, status, text, hint in rows:
        lines.append("%s %-9s %s" % (MARKS[status], name, text))
        lines += ["  next: " + hint] if hint else []
    keys, ok = ("name", "status", "message", "nextAction"), all(row[1] != "error" for row in rows)
    data = {"ok": ok, "checks": [dict(zip(keys, row)) for row in rows]}
    return Reply(data, lines, 0 if ok else 1)


# ---- Command line -------------------------------------------------------------
# One table of commands, from which parser and help are made; the way in and the way out.

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
    """The help of the whole program, or of a group of commands, as a Reply."""
    names = [name for name in COMMANDS if name.startswith(prefix)]
    lines = ["Usage: scripto %s<command> [flags]" % prefix, ""]
    lines += ["  %-20s %s" % (name, COMMANDS[name][1]) for name in names]
    lines += ["", "Try it with: scripto demo", "Sign in with: scripto auth login-request "
              "--email you@example.com", "Every command takes --json and --help."]
    return Reply({"help": lines}, lines)


def nearest(word, known):
    """The known word most like the one that was typed, or None."""
    try:
        import difflib  # lazy
    except ImportError:  # in a minimal Python: then without a suggestion
        return None
    return (difflib.get_close_matches(word, known, 1) or [None])[0]


def find_command(words):
    """(name, further words). Raises invalid-argument, with the nearest name as the hint."""
    for size in (2, 1):
        name = " ".join(words[:size])
        if name in COMMANDS:
            return name, words[size:]
    hint = "see the commands with: scripto --help"
    if not words:
        raise refused("No command is given.", hint)
    typed = readable(" ".join(words[:2] if words[0] in ("auth", "config") else words[:1]))
    alike = [name for name in COMMANDS if name.split()[-1] == typed]
    known = alike[0] if alike else nearest(typed, list(COMMANDS) + ["--help", "--version"])
    what = "flag" if typed.startswith("-") else "command"
    raise refused("Unknown %s '%s'." % (what, typed), "did you mean: scripto " + known if known else hint)


def parse(name, words):
    """(parser, parsed arguments) of a command."""
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
    """Finds the command, runs it, and returns its Reply; None if it has shown it itself."""
    words = [word for word in words if word != "--json"]
    if words[:1] == ["--version"]:
        return Reply({"version": __version__}, ["scripto " + __version__])
    if words[:1] in (["--help"], ["-h"], ["help"]):
        return overview()
    if words[0:1] in (["auth"], ["config"]) and words[1:] in (["--help"], ["-h"]):
        return overview(words[0] + " ")
    name, rest = find_command(words)
    parser, args = parse(name, rest)
    if args.help:
        lines = parser.format_help().splitlines()
        return Reply({"help": lines}, lines)
    return COMMANDS[name][0](ctx, args)


def main(argv=None):
    """Runs one command; returns the exit status. The command line's one edge: whatever is
    raised below becomes output here."""
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
        return show_error(ctx, ScriptoError("cancelled", "Interrupted.", "run it again"))
    except Exception as error:
        text = "A bug in scripto: %s." % bug(error)
        return show_error(ctx, ScriptoError("internal", text, "report it, with this line"))


if __name__ == "__main__":
    sys.exit(main())
