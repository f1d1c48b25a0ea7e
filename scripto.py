#!/usr/bin/env python3
"""Scripto on the command line: an email, a six-digit code, and this machine is signed in.

One file, standard library only, Python 3.6 or newer. It carries its own backend
(`scripto serve`), so that it works where no network reaches.

Sections, each above those that use it; the story starts at the bottom, in main():

  Constants, Errors, Context    names and limits; the one error type; what is passed along
  Terminal                      the only place that writes to the streams or reads from them
  Door                          every value from outside, checked once
  Profiles                      the only place that knows the profile file
  Resolution                    which key and which base URL are in force, and why
  HTTP client                   the only place that sends a request
  Account, Configuration        the commands of a person or an agent
  Mail, Store, Routes, Server   the backend: delivery, SQL, answers, sockets
  Backend, Doctor               the commands serve and demo; what works here
  Command line                  the table of commands, the parser, the way in and out

An import marked `lazy` costs more time than most commands take: only who needs it pays.
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
# The backend used when nothing names one. GET /scripto.py puts its own URL here.
BASE_URL = PRODUCTION_URL

KEY_PREFIX = "scripto_"
MASKED_KEY = KEY_PREFIX + "•" * 8
KEY_NAME = "scripto-cli"  # what a key is called that was given no name
NAME_LENGTH = 100  # characters
EMAIL_LENGTH = 254  # characters: RFC 5321, 4.5.3.1.3, less the angle brackets

MIB = 1 << 20
REPLY_BYTES = MIB  # of a reply that the client reads
PROFILE_BYTES = 4 * MIB  # of a profile file that is worth reading
BODY_BYTES = 16 << 10  # of a request that the backend reads
TIMEOUT_SECONDS = 30.0  # for one request, from name look-up to last byte
LOCK_SECONDS = 30.0  # to wait for another program that writes the profile file

# NIST SP 800-63B, 3.1.3: a one-time code lives ten minutes at most, and wrong attempts are
# limited for the account, not only for the code. The figures are the contract's.
CODE_SECONDS = 5 * 60
CODE_ATTEMPTS = 3
DAY = 24 * 3600
WRONG_LIMITS = (("wrong", 15, 15 * 60), ("wrong", 60, DAY))  # (event, how many, in seconds)
REQUEST_LIMITS = (("request", 5, 15 * 60),) + WRONG_LIMITS
RATE_LIMIT = 60  # requests a minute for one address, on the two public routes
READ_SECONDS = 10  # for a client to send its request, and to take the answer
MAIL_SECONDS = 15  # for each step of a conversation with a mail server
CONNECTIONS = 256  # open at once; beyond that, the one that has waited longest goes
LAST_USED_SECONDS = 60  # how exact a key's lastUsedAt is

# ---- Errors -------------------------------------------------------------------
# One type, raised anywhere, turned into output in two places only: main() for the command
# line, RequestHandler.dispatch() for the backend.

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

NEXT_EMAIL = "Pass --email <your-email> to: scripto %s"
NEXT_CODE = "request a new code with: scripto auth login-request"
NEXT_RETRY = "retry shortly"
NEXT_SIGN_IN = "sign in with: scripto auth login-request --email <your-email>"
NEXT_USE = "see the profiles with: scripto use"


class ScriptoError(Exception):
    """What went wrong: code, message (never with a secret), next_action.

    http_status is what the backend answered, or is to answer where the table's does not fit;
    retry_after, in whole seconds, says when the same request may work."""

    def __init__(self, code, message, next_action=None, http_status=None, retry_after=None):
        super().__init__(message)
        self.code, self.message, self.next_action = code, message, next_action
        self.http_status = http_status or ERRORS.get(code, (500,))[0]
        self.retry_after = retry_after

    @property
    def exit_status(self):
        """By the code; for one that is not in the table, by the HTTP status."""
        if self.code in ERRORS:
            return ERRORS[self.code][1]
        if self.http_status == 401:
            return 4
        return 3 if self.http_status == 429 or self.http_status >= 500 else 1

    def envelope(self):
        error = {"code": self.code, "message": self.message}
        if self.next_action:
            error["nextAction"] = self.next_action
        return {"success": False, "error": error}


def refused(message, next_action=None, http_status=None):
    """An invalid-argument error: the user, or a client, has to say it differently."""
    return ScriptoError("invalid-argument", message, next_action, http_status)


def blocked(message, next_action):
    """A failed-precondition error: something on this machine stands in the way."""
    return ScriptoError("failed-precondition", message, next_action)


def reason_of(error):
    """Why a system call failed, in the system's words, without the path."""
    return error.strerror or str(error)


# ---- Context ------------------------------------------------------------------
# What a command may use of the world, in one object, so that nothing is global.


class Context:
    """The environment, the three streams, and whether the answer is to be JSON."""

    def __init__(self, env, stdin, stdout, stderr, as_json):
        self.env, self.stdin, self.stdout, self.stderr = env, stdin, stdout, stderr
        self.as_json = as_json
        self.warned = set()

    def now(self):
        return time.time()

    def setting(self, name):
        """An environment variable, or None; an empty one counts as not set."""
        return self.env.get(name) or None


def timestamp(seconds: "float | None") -> "str | None":
    """Unix seconds as RFC 3339 in UTC; None stays None."""
    return seconds and time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def home_folder(ctx: "Context", way_out: "str") -> "str":
    """HOME, else the passwd entry. Raises failed-precondition, with `way_out` as its hint."""
    home = ctx.env.get("HOME", "")
    if not os.path.isabs(home):
        try:
            import pwd  # lazy

            home = pwd.getpwuid(os.getuid()).pw_dir
        except (ImportError, KeyError):  # Windows; a user that only has a number
            home = os.path.expanduser("~") if os.name == "nt" else ""
    if not os.path.isabs(home):
        raise blocked("There is no home folder: HOME is not set.", way_out)
    return home


def xdg_folder(ctx: "Context", variable: "str", below_home: "str", otherwise: "str") -> "str":
    """The folder that the XDG Base Directory specification says: the variable, unless it is
    empty or relative, else its place below the home folder."""
    folder = ctx.env.get(variable, "")
    if os.path.isabs(folder):
        return folder
    way_out = "set %s to a folder of your own, or %s" % (variable, otherwise)
    return os.path.join(home_folder(ctx, way_out), below_home)


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
    """The text with all that could steer a terminal made visible: ANSI and C1 escapes,
    carriage returns, line breaks, bidirectional overrides."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def emit(stream, text):
    """Writes to a stream past its buffer, so that what the system does not take raises OSError
    here and is not tried again at exit. What the encoding lacks gets an ASCII form."""
    if stream is None:  # the descriptor was closed before the program started
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    encoding = stream.encoding or "ascii"
    try:
        "✓✗●•".encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(ASCII_FORM)
    left = text.encode(encoding, "backslashreplace")
    raw = getattr(stream.buffer, "raw", stream.buffer)
    while left:
        left = left[raw.write(left) or 0 :]


def emit_lines(ctx, stream, lines):
    """Writes lines for a person: harmless, and coloured where a terminal shows colours."""
    lines = [harmless(line) for line in lines]
    plain = "NO_COLOR" in ctx.env or ctx.env.get("TERM") == "dumb" or os.name == "nt"
    if is_terminal(stream) and not plain:
        for at, line in enumerate(lines):
            if line[:1] in COLOURS:
                lines[at] = "\033[%sm%s\033[0m%s" % (COLOURS[line[0]], line[0], line[1:])
    emit(stream, "".join(line + "\n" for line in lines))


def say(ctx, *lines):
    """Progress, warnings, the backend's log: to standard error, come what may of it."""
    try:
        emit_lines(ctx, ctx.stderr, lines)
    except OSError:
        pass  # nobody is there to read it, which is no reason to stop


def warn(ctx, text):
    """Says a thing once, however often it is noticed."""
    if text not in ctx.warned:
        ctx.warned.add(text)
        say(ctx, "! " + text)


def show(ctx, reply):
    """Writes an answer to standard output and returns the exit status. Raises
    failed-precondition when standard output takes no more, as a full disk does."""
    try:
        if ctx.as_json:
            import json  # lazy

            emit(ctx.stdout, json.dumps({"success": True, "data": reply.data}) + "\n")
        else:
            emit_lines(ctx, ctx.stdout, reply.lines)
    except BrokenPipeError:
        raise  # the reader has had enough: main() ends quietly
    except OSError as error:
        message = "The answer cannot be written: %s." % reason_of(error)
        raise blocked(message, "look at where standard output goes")
    return reply.exit_status


def show_error(ctx, error):
    """Writes an error, as JSON or as two lines for a person, and returns the exit status."""
    if ctx.as_json:
        try:
            import json  # lazy

            emit(ctx.stdout, json.dumps(error.envelope()) + "\n")
            return error.exit_status
        except (OSError, ImportError):
            pass  # standard error is what is left
    hint = ["  next: " + error.next_action] if error.next_action else []
    say(ctx, "✗ " + error.message, *hint)
    return error.exit_status


def is_terminal(stream):
    return stream is not None and stream.isatty()


def read_line(ctx, prompt, secret=False):
    """One line of standard input without its end, "" if there is none. At a terminal the
    prompt is shown, and what is typed is not if it is secret."""
    if ctx.stdin is None:
        return ""
    if is_terminal(ctx.stdin):
        if secret:
            import getpass  # lazy

            try:
                return getpass.getpass(prompt)
            except EOFError:
                return ""
        try:
            emit(ctx.stderr, prompt)
        except OSError:
            pass  # the question is lost, the answer may still come
    return ctx.stdin.buffer.readline(64 << 10).decode("utf-8", "replace").rstrip("\r\n")


# ---- Door ---------------------------------------------------------------------
# Every value from outside is checked here, once, before anything is read, written or sent;
# behind the door it is trusted. A check returns the value in its one form, or raises
# invalid-argument.


def readable(text):
    """An argument as it was typed: under an ASCII locale Python 3.6 hands UTF-8 over as lone
    surrogates, which no JSON and no mail can carry."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return os.fsencode(text).decode("utf-8", "replace")
    return text


def is_email(text):
    """The contract's rule. Refused too are the characters by which mail reads one address as
    another (RFC 5322: comments, groups, quotes): whose code would it be?"""
    local, _, domain = text.partition("@")
    return (bool(local and domain) and "@" not in domain and len(text) <= EMAIL_LENGTH
            and text.isprintable() and not set(text) & set(' <>(),;:\\"'))  # fmt: skip


def check_email(text: "str | None", command: "str") -> "str":
    if not text:
        raise refused("The email is missing.", NEXT_EMAIL % command)
    text = readable(text)
    if not is_email(text):
        raise refused("'%s' is not an email address." % text[:EMAIL_LENGTH], NEXT_EMAIL % command)
    return text


def check_code(text: "str | None") -> "str":
    """Six ASCII digits, also as `123 456` or `123-456`; the digits alone come back."""
    if not text:
        raise refused("The code is missing.", NEXT_CODE)
    if not re.match(r"\s*[0-9](?:[ -]*[0-9]){5}\s*\Z", text):
        raise refused("The code must be six digits.", NEXT_CODE)
    return re.sub("[^0-9]", "", text)


def is_key(text):
    """A bearer key: the prefix, and nothing that a header or a terminal would trip over."""
    return (isinstance(text, str) and text.startswith(KEY_PREFIX) and text != KEY_PREFIX
            and all("!" <= char <= "~" for char in text))  # fmt: skip


def check_key(text: "str", source: "str") -> "str":
    """The text is never quoted: what was pasted by mistake may be another secret."""
    if not is_key(text):
        raise refused(
            "The key from %s must start with '%s' and hold no white space or control characters."
            % (source, KEY_PREFIX),
            "pass --api-key %s<your-key>, or --api-key - to read it from standard input"
            % KEY_PREFIX,
        )
    return text


def check_profile_name(text: "str") -> "str":
    if not re.match(r"[A-Za-z0-9._-]{1,64}\Z", text):
        message = "'%s' is not a profile name." % readable(text)[:80]
        raise refused(message, "use 1 to 64 of: letters, digits, '.', '_', '-'")
    return text


def check_key_name(text: "str") -> "str":
    name = readable(text) or KEY_NAME
    if len(name) > NAME_LENGTH or not name.isprintable():
        message = "The key's name must be at most %d printable characters." % NAME_LENGTH
        raise refused(message, "pass another --name")
    return name


def check_number(text: "str | None", flag: "str", default: "int", most: "int") -> "int":
    if text is None:
        return default
    if not re.match(r"[0-9]{1,9}\Z", text) or int(text) > most:
        message = "'%s' is not a whole number from 0 to %d." % (readable(text), most)
        raise refused(message, "pass another " + flag)
    return int(text)


def timeout_of(ctx: "Context") -> "float":
    """SCRIPTO_TIMEOUT, in seconds."""
    text = ctx.setting("SCRIPTO_TIMEOUT") or str(TIMEOUT_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= DAY:  # false for NaN too
        message = "SCRIPTO_TIMEOUT is '%s', not a number of seconds." % readable(text)
        raise refused(message, "set it to a number from 1 to %d, or unset it" % DAY)
    return seconds


def is_loopback(host):
    """127.0.0.0/8, ::1 (RFC 1122, RFC 4291), localhost and what is below it (RFC 6761)."""
    if host in ("::1", "localhost") or host.endswith(".localhost"):
        return True
    return bool(re.match(r"127(\.(25[0-5]|2[0-4]\d|1?\d?\d)){3}\Z", host, re.ASCII))


def origin_of(url):
    """(scheme, host, port) of a checked base URL: what a key is bound to."""
    from urllib.parse import urlsplit  # lazy

    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def check_base_url(ctx: "Context", text: "str", source: "str") -> "str":
    """Scheme and host in lower case, no trailing slash; `source` says where it came from."""
    match = re.match(
        r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?(/[!-~]*)?\Z", text, re.I
    )
    scheme, host, port, path = match.groups("") if match else ("", "", "", "")
    if not match or set(path) & set("?#@\\\"'") or not 0 < int(port[1:] or 1) < 65536:
        shown = "'%s' is not a base URL" % readable(text)[:200]
        if "@" in text:  # what stands before it may be a password
            shown = "a base URL holds no user and no password"
        hint = "pass one like https://host[:port][/path] with --api-url"
        raise refused("From %s: %s." % (source, shown), hint)
    scheme, host = scheme.lower(), host.lower()
    if scheme == "http" and not is_loopback(host.strip("[]")):
        if ctx.env.get("SCRIPTO_ALLOW_HTTP") != "1":
            message = "From %s: plain http to %s would show codes and keys to the network."
            hint = "use https, or set SCRIPTO_ALLOW_HTTP=1 if you trust that network"
            raise refused(message % (source, host), hint)
    return scheme + "://" + host + port + path.rstrip("/")


def shell_word(text):
    """A value as it can be pasted into a shell, for the commands that a next action names."""
    import shlex  # lazy

    return shlex.quote(text)


# ---- Profiles -----------------------------------------------------------------
# The only place that knows the profile file. It is whole at every moment, 0600 from its first
# byte, and what cannot be understood is never overwritten.


def try_lock(descriptor):
    """Takes an exclusive lock; False if another program has it. The system drops it when its
    holder dies, however it dies: there is no stale lock to clean up."""
    try:
        import fcntl  # lazy
    except ImportError:
        return try_lock_windows(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks, as some network mounts: better unlocked than not
    return True


def try_lock_windows(descriptor):
    try:
        import msvcrt  # lazy

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    except ImportError:
        pass  # a Python with neither
    return True


class FileLock:
    """`with FileLock(path):` one program at a time. Raises TimeoutError after LOCK_SECONDS."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
        self.descriptor = os.open(self.path, flags, 0o600)
        give_up = time.monotonic() + LOCK_SECONDS
        while not try_lock(self.descriptor):
            if time.monotonic() > give_up:
                os.close(self.descriptor)
                raise TimeoutError(errno.ETIMEDOUT, "another program holds " + self.path)
            time.sleep(0.02)

    def __exit__(self, *_):
        os.close(self.descriptor)


class ProfileFile:
    """This user's profile file. Every failure is failed-precondition and names the path."""

    def __init__(self, ctx):
        self.ctx = ctx
        home = xdg_folder(ctx, "XDG_CONFIG_HOME", ".config", "SCRIPTO_API_KEY, which needs no file")
        self.folder = os.path.join(home, "scripto")
        self.shown = os.path.join(self.folder, "config.json")
        self.path = os.path.realpath(self.shown)  # a link stays: what it leads to is replaced

    def trouble(self, what):
        move = "mend it, or move it away: mv %s %s"
        names = shell_word(self.shown), shell_word(self.shown + ".old")
        return blocked("The profile file %s %s." % (self.shown, what), move % names)

    def write_trouble(self, reason):
        return blocked(
            "The profile file %s cannot be written: %s." % (self.shown, reason),
            "make that possible, or set XDG_CONFIG_HOME to a folder of your own, or use "
            "SCRIPTO_API_KEY, which needs no file",
        )

    def content(self) -> "bytes | None":
        """The file's bytes, None if there is no file. Nothing in its place makes this hang."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except FileNotFoundError:
            return None
        with open(descriptor, "rb", buffering=0) as file:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise self.trouble("is not a regular file")
            if mode & 0o077 and os.name == "posix":
                text = "%s can be read by others (mode %04o); the next write makes it 0600"
                warn(self.ctx, text % (self.shown, stat.S_IMODE(mode)))
            return file.read(PROFILE_BYTES + 1)

    def read(self) -> "dict":
        """The file's object as it stands, unknown members and all, "profiles" always there."""
        import json  # lazy

        try:
            content = self.content()
            state = {} if content is None else json.loads(content.decode("utf-8-sig"))
        except OSError as error:
            raise self.trouble("cannot be read: " + reason_of(error))
        except (ValueError, RecursionError):
            raise self.trouble("is not valid JSON")
        if len(content or b"") > PROFILE_BYTES:
            raise self.trouble("is too large")
        if not isinstance(state, dict):
            raise self.trouble("is not a JSON object")
        profiles = state.setdefault("profiles", {})
        if not isinstance(profiles, dict) or not all(isinstance(p, dict) for p in profiles.values()):
            raise self.trouble("holds 'profiles' that are not objects")
        if not isinstance(state.get("activeProfile"), (str, type(None))):
            raise self.trouble("names an active profile that is not text")
        return state

    def prepare_folder(self):
        """Makes the folder, 0700. A home that is not there is not made up, and another user's
        is left alone: a file of root's in it would lock its owner out."""
        folder = nearest = os.path.dirname(self.path)
        while not os.path.lexists(nearest):
            nearest = os.path.dirname(nearest)
        owner = os.stat(nearest).st_uid
        if hasattr(os, "geteuid") and owner not in (0, os.geteuid()):
            raise self.write_trouble("%s belongs to another user (uid %d)" % (nearest, owner))
        home = os.path.dirname(os.path.dirname(self.folder))
        if not self.ctx.setting("XDG_CONFIG_HOME") and not os.path.isdir(home):
            raise self.write_trouble("there is no folder " + home)
        os.makedirs(folder, 0o700, exist_ok=True)
        if folder == self.folder:  # ours by its name; where a link leads to is not
            os.chmod(folder, 0o700)

    def write_beside(self, content):
        """Writes a temporary file in the same folder, through to the disk; returns its path.
        One fixed name, under the lock: what a killed program left is replaced, so nothing
        piles up; made anew, so it is no link and 0600 from the start."""
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

    def change(self, work, rehearsal=False):
        """Runs work(state) on the file's content under the lock, then replaces the file.
        Returns what work() returned; if that raises, nothing changes. A rehearsal does all of
        it but the replacement, with room to spare, so that a full disk shows early."""
        import json  # lazy

        try:
            self.prepare_folder()
            with FileLock(self.path + ".lock"):
                state = self.read()
                result = work(state)
                content = json.dumps(state, indent=2) + "\n" + " " * 4096 * rehearsal
                beside = self.write_beside(content.encode("ascii"))
                if rehearsal:
                    os.unlink(beside)
                else:
                    os.replace(beside, self.path)
                    self.sync_folder()
        except RecursionError:
            raise self.trouble("is nested too deeply")
        except OSError as error:
            raise self.write_trouble(reason_of(error))
        return result

    def sync_folder(self):
        """The rename itself has to reach the disk (POSIX; Windows opens no folders)."""
        if os.name == "posix":
            descriptor = os.open(os.path.dirname(self.path), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def nearest(word, known):
    """The known word most like the one that was typed, or None."""
    try:
        import difflib  # lazy
    except ImportError:  # in a minimal Python: then without a suggestion
        return None
    return (difflib.get_close_matches(word, list(known), 1) or [None])[0]


def find_profile(state, name):
    """The profile of that name. Raises not-found, or invalid-argument if it can be none."""
    if name not in state["profiles"]:
        known = nearest(check_profile_name(name), state["profiles"])
        hint = "did you mean '%s'? %s" % (known, NEXT_USE) if known else NEXT_USE
        raise ScriptoError("not-found", "There is no profile '%s'." % name, hint)
    return state["profiles"][name]


def url_of(profile):
    """The backend that minted the profile's key."""
    return profile.get("baseUrl") or PRODUCTION_URL


def text_of(thing, member):
    """A member that ought to be text; anything else counts as absent, and absent as ""."""
    value = thing.get(member)
    return value if isinstance(value, str) else ""


def profile_name_for(email):
    """`You.Too+x@example.com` gives `you.too-x`, with room for a number behind it."""
    local = re.sub("[^a-z0-9._-]+", "-", email.partition("@")[0].lower())
    return local[:56].strip("-") or "default"


def store_profile(state, named, identity, base_url, now):
    """Puts a key and whose it is into the state, makes it active, and returns its name.

    named: a name given by hand, or None. identity: what is known of apiKey, email, userId and
    keyId. The same email at the same backend renews its profile; a taken name gets a number."""
    profiles, email = state["profiles"], identity.get("email", "")

    def is_same(name):
        same_email = text_of(profiles[name], "email").lower() == email.lower()
        return same_email and url_of(profiles[name]) == base_url

    name = named or (profile_name_for(email) if email else "default")
    if not named and email:
        candidates = [name, state.get("activeProfile")] + list(profiles)
        name = next((each for each in candidates if each in profiles and is_same(each)), name)
    first, number = name, 1
    while name in profiles and not is_same(name):
        number += 1
        name = "%s-%d" % (first, number)
    put_profile(state, name, identity, base_url, now)
    return name


def put_profile(state, name, identity, base_url, now):
    """Writes a profile under just this name and makes it active; unknown members stay."""
    profile = state["profiles"].setdefault(name, {})
    for member in ("apiKey", "email", "userId", "keyId", "baseUrl"):
        profile.pop(member, None)
    profile.update(identity)
    if base_url != PRODUCTION_URL:
        profile["baseUrl"] = base_url
    profile.setdefault("createdAt", timestamp(now))
    profile["updatedAt"] = timestamp(now)
    state["activeProfile"] = name


def remove_profiles(state, names):
    """Removes profiles; if the active one goes, the first that is left becomes active. Returns
    the active one's name, or None."""
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


def resolve(ctx: "Context", args, with_key: "bool") -> "Target":
    """Finds base URL and, with_key, the key, in the contract's order. Raises unauthenticated
    where there is no key, failed-precondition where a profile's key would go elsewhere."""
    target = Target()
    if with_key:
        find_given_key(ctx, args, target)
    variable = "SCRIPTO_API_BASE_URL"
    for source, url in (("--api-url", args.api_url), (variable, ctx.setting(variable))):
        if url is not None and target.base_url is None:
            target.base_url, target.url_source = check_base_url(ctx, url, source), source
    if args.profile is not None or target.base_url is None or (with_key and target.key is None):
        pick_profile(ctx, args.profile, target)
    if with_key:
        find_stored_key(ctx, args, target)
    if target.base_url is None and (target.profile.get("baseUrl") or target.key_source == "profile"):
        target.base_url, target.url_source = profile_url(ctx, target), "profile"
    elif target.base_url is None:
        target.base_url, target.url_source = check_base_url(ctx, BASE_URL, "this file"), "default"
    if target.key_source == "profile":
        refuse_elsewhere(ctx, target)
    return target


def find_given_key(ctx, args, target):
    """A key from the flag (`-`: from standard input), else from the environment."""
    if args.api_key is not None:
        given = read_line(ctx, "API key: ", True) if args.api_key == "-" else args.api_key
        target.key, target.key_source = check_key(given, "--api-key"), "--api-key"
    elif ctx.setting("SCRIPTO_API_KEY"):
        target.key_source = "SCRIPTO_API_KEY"
        target.key = check_key(ctx.setting("SCRIPTO_API_KEY"), "SCRIPTO_API_KEY")


def pick_profile(ctx, named, target):
    """The named profile, else the active one, else none."""
    try:
        file = ProfileFile(ctx)
    except ScriptoError:  # no home, no file: only who asks for a profile minds
        if named is not None:
            raise
        return
    state = file.read()
    if named is not None:
        target.name, target.profile = named, find_profile(state, named)
    elif state.get("activeProfile") in state["profiles"]:
        target.name = state["activeProfile"]
        target.profile = state["profiles"][target.name]


def find_stored_key(ctx, args, target):
    """The profile's key, where none was given."""
    if target.key is not None:
        if args.profile is not None and target.key_source == "SCRIPTO_API_KEY":
            warn(ctx, "SCRIPTO_API_KEY overrides the key of profile '%s'" % target.name)
        return
    stored = target.profile.get("apiKey")
    if not stored:
        raise ScriptoError("unauthenticated", "There is no API key.", NEXT_SIGN_IN)
    if not is_key(stored):
        raise blocked("The key in profile '%s' is not a Scripto key." % target.name, NEXT_SIGN_IN)
    target.key, target.key_source = stored, "profile"


def profile_url(ctx, target):
    """The base URL of the profile in force; a bad one is the file's fault, not the user's."""
    try:
        return check_base_url(ctx, str(url_of(target.profile)), "profile '%s'" % target.name)
    except ScriptoError as error:
        raise blocked(error.message, error.next_action)


def refuse_elsewhere(ctx, target):
    """A stored key goes only to its own backend, whoever set the base URL, and why."""
    home = profile_url(ctx, target)
    if origin_of(home) != origin_of(target.base_url):
        message = "The key of profile '%s' belongs to %s and is not sent to %s (from %s)."
        raise blocked(
            message % (target.name, home, target.base_url, target.url_source),
            "pass --api-key, or sign in there with: scripto auth login-request "
            "--email <your-email> --api-url " + shell_word(target.base_url),
        )


# ---- HTTP client --------------------------------------------------------------
# The only place that sends a request. No redirect is ever followed: every request carries a
# key, a code or an email, and none of them is a stranger's business.


class HttpReply:
    """What came back, and from which URL: status, headers, body as bytes."""

    def __init__(self, url, status=200, headers=None, body=b""):
        self.url, self.status, self.headers, self.body = url, status, headers or {}, body

    def trouble(self, what):
        hint = "check that this is a Scripto backend, or pass another with --api-url"
        return ScriptoError("invalid-response", "%s %s." % (self.url, what), hint, self.status)


def send(ctx, method, url, body=None, key=None) -> "HttpReply":
    """Sends one request and returns the reply, whatever its status.

    body: an object, goes as JSON. key: goes as bearer token (RFC 6750). Raises network-error,
    or invalid-response for what is no HTTP, is too large or breaks off. SCRIPTO_TIMEOUT bounds
    the whole: a thread does the work, since a socket's time-out bounds neither a name look-up
    nor a peer that sends a byte a second."""
    import http.client  # lazy, as all that HTTP needs
    import json
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
    result = outcome[0] if outcome else too_slow(url, seconds, progress)
    if isinstance(result, ScriptoError):
        raise result
    return result


def opener_for(url):
    """A bare opener: proxies from the environment but never for loopback, certificates always
    checked; no redirects, no opinion on statuses, no other schemes."""
    import urllib.request  # lazy

    scheme, host, _ = origin_of(url)
    proxies = {} if is_loopback(host) else urllib.request.getproxies_environment()
    handlers = [urllib.request.ProxyHandler(proxies), urllib.request.HTTPHandler()]
    if scheme == "https":
        import ssl  # lazy, and some Pythons lack it

        handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context()))
    opener = urllib.request.OpenerDirector()
    opener.addheaders = []
    for handler in handlers:
        opener.add_handler(handler)
    return opener


def exchange(opener, request, seconds, progress):
    """One request and its reply, of which REPLY_BYTES are read; `progress` notes its start. A
    GET that was reset is tried once more; what spends a code never is: it may have been heard."""
    try:
        response = opener.open(request, timeout=seconds)
    except OSError as error:
        reset = isinstance(getattr(error, "reason", error), ConnectionResetError)
        if not reset or request.get_method() != "GET":
            raise
        response = opener.open(request, timeout=seconds)
    with response:
        progress.append("reply")
        body = b""
        while len(body) <= REPLY_BYTES:
            chunk = response.read(64 << 10)
            if not chunk:
                break
            body += chunk
        reply = HttpReply(request.full_url, response.status, response.headers, body)
        if len(body) > REPLY_BYTES:
            return reply.trouble("sent a reply of more than %d MiB" % (REPLY_BYTES // MIB))
        if response.length:  # what Content-Length promised beyond this
            return reply.trouble("broke off its reply")
        return reply


def too_slow(url, seconds, progress):
    what = "did not finish its reply" if progress else "did not answer"
    message = "%s:%d %s within %g seconds." % (origin_of(url)[1:] + (what, seconds))
    hint = "try again, or allow more time: SCRIPTO_TIMEOUT=%g" % (seconds * 2)
    return ScriptoError("network-error", message, hint)


def network_trouble(url, error, seconds, progress):
    """The error for what went wrong on the way, told apart as a person wants to know it."""
    import http.client  # lazy
    import socket

    if isinstance(getattr(error, "reason", None), Exception):
        error = error.reason  # urllib wraps what happens before the reply
    where, check = "%s:%d" % origin_of(url)[1:], "check the network, any proxy and the base URL"
    tls = sys.modules.get("ssl")
    if tls and isinstance(error, (tls.SSLError, tls.CertificateError)):
        return tls_trouble(where, error)
    if isinstance(error, socket.timeout):
        return too_slow(url, seconds, progress)
    if isinstance(error, (socket.gaierror, UnicodeError)):
        reason = getattr(error, "strerror", None) or "not a host name"
        text = "The host of %s cannot be found: %s." % (where, reason)
    elif isinstance(error, ConnectionRefusedError):
        text = "%s refused the connection." % where
        check = "check that the backend runs there, or pass another with --api-url"
    elif isinstance(error, ConnectionError):
        when = "in the middle of its reply" if progress else "without an answer"
        text = "%s closed the connection %s." % (where, when)
    elif isinstance(error, OSError):
        text = "%s cannot be reached: %s." % (where, reason_of(error))
    elif isinstance(error, http.client.IncompleteRead):
        return HttpReply(url).trouble("broke off its reply")
    else:
        return HttpReply(url).trouble("sent a reply that is not HTTP")
    return ScriptoError("network-error", text, check)


def tls_trouble(where, error):
    """The host, OpenSSL's reason without its brackets, and where certificates come from."""
    text = getattr(error, "verify_message", "") or str(getattr(error, "strerror", None) or error)
    reason = re.sub(r"^\[.*?\] *|\.?( *\(_ssl\.c:\d+\))?$", "", text)
    hint = ("check the host, and that this machine knows who certified it: install "
            "ca-certificates, or set SSL_CERT_FILE")  # fmt: skip
    return ScriptoError("network-error", "TLS with %s failed: %s." % (where, reason), hint)


def parse_json(content):
    """The JSON object in UTF-8, None for anything else. No number matters in these bodies; as
    floats they cost no more than their length, however many digits."""
    import json  # lazy

    try:
        value = json.loads(content.decode("utf-8"), parse_int=float)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def call(ctx, target, method, path, body=None, hints=None):
    """Sends a request to the target, with its key if it has one, and returns the JSON object
    of a success. Raises the backend's error; `hints` has next actions by code, for those that
    name none."""
    reply = send(ctx, method, target.base_url + path, body, target.key)
    value = parse_json(reply.body)
    if 300 <= reply.status < 400:
        raise reply.trouble("answered with a redirect, which is not followed")
    if value is None and not (reply.status in (401, 429) or reply.status >= 500):
        raise reply.trouble("did not answer in the contract's JSON")
    if reply.status < 300 and value.get("success") is not False:
        return value
    raise backend_error(reply, value or {}, hints or {})


def backend_error(reply, value, hints):
    """The error that a reply tells: its members word for word, gaps filled by its status."""
    by_status = {401: "unauthenticated", 404: "not-found", 429: "resource-exhausted"}
    fallback = "internal" if reply.status >= 500 else "invalid-argument"
    error = value.get("error")
    error = error if isinstance(error, dict) else {}
    code = text_of(error, "code") or by_status.get(reply.status, fallback)
    wait = reply.headers.get("Retry-After", "")
    general = {
        "unauthenticated": NEXT_SIGN_IN,
        "internal": NEXT_RETRY,
        "resource-exhausted": "retry in %s seconds" % wait if wait.isdigit() else NEXT_RETRY,
    }
    message = "The backend answered with HTTP %d." % reply.status
    if code == "unauthenticated":
        message = "The backend refused the key."
    message = text_of(error, "message") or message
    hint = text_of(error, "nextAction") or hints.get(code) or general.get(code)
    return ScriptoError(code, message, hint, reply.status)


def data_of(value, target, *members):
    """The `data` of an envelope, in which `members` have to be text."""
    data = value.get("data")
    if not isinstance(data, dict) or not all(text_of(data, name) for name in members):
        raise HttpReply(target.base_url).trouble("left out a part of its answer")
    return data


# ---- Account ------------------------------------------------------------------
# Signing in, looking, signing out. A command takes the context and the parsed arguments and
# returns a Reply; it writes nothing itself.


def cmd_login_request(ctx, args):
    email = check_email(args.email, "auth login-request")
    target = resolve(ctx, args, with_key=False)
    hints = {"invalid-argument": NEXT_EMAIL % "auth login-request"}
    data_of(call(ctx, target, "POST", "/api/cli/login-request", {"email": email}, hints), target)
    then = "scripto auth login-complete --email %s --code <6-digit-code>" % shell_word(email)
    chosen = (("--api-url", args.api_url), ("--profile", args.profile))
    flags = "".join(" %s %s" % (flag, shell_word(value)) for flag, value in chosen if value)
    if flags:
        warn(ctx, "the code is good at %s only: add%s there too" % (target.base_url, flags))
    return Reply(
        {"ok": True, "email": email, "nextAction": then + flags},
        ["✓ Sign-in code sent to " + email, "", "  Then run:", "    " + then],
    )


def cmd_login_complete(ctx, args):
    """What can fail on this machine is tried first: the code is good for one key."""
    email = check_email(args.email, "auth login-complete")
    code = check_code(read_line(ctx, "Code: ") if args.code == "-" else args.code)
    body = {"email": email, "otp": code}
    if args.name is not None:
        body["name"] = check_key_name(args.name)
    if args.profile_name is not None:
        check_profile_name(args.profile_name)
    target = resolve(ctx, args, with_key=False)
    file = ProfileFile(ctx)
    file.change(lambda state: None, rehearsal=True)
    reply = call(ctx, target, "POST", "/api/cli/login-complete", body,
                 {"invalid-argument": NEXT_CODE})  # fmt: skip
    data = data_of(reply, target, "apiKey")
    if not is_key(data["apiKey"]):
        raise HttpReply(target.base_url).trouble("sent something that is no key")
    identity = {name: text_of(data, name) for name in ("apiKey", "email", "userId", "keyId")}
    identity = {name: value for name, value in identity.items() if value}
    identity.setdefault("email", email)
    name = keep_key(ctx, file, args.profile_name, identity, target.base_url)
    lines = ["✓ Signed in", "", "  Email:    " + identity["email"]]
    return stored(name, identity, target.base_url, lines)


def keep_key(ctx, file, named, identity, base_url):
    """Stores a key that was just minted and returns its profile's name. If that fails after
    all, or is interrupted, the error hands the key over, this once: its code is spent."""
    try:
        return file.change(
            lambda state: store_profile(state, named, identity, base_url, ctx.now())
        )
    except (ScriptoError, KeyboardInterrupt) as error:
        name = named or profile_name_for(identity["email"])
        raise blocked(
            "Signed in, but the key could not be stored. %s" % error,
            "store it with: scripto config set --api-key %s --profile-name %s --api-url %s"
            % (identity["apiKey"], name, shell_word(base_url)),
        )


def stored(name, identity, base_url, lines):
    """The reply of a command that stored a key; what is not known is absent."""
    lines = lines + ["  Profile:  %s (now active)" % name, "  API key:  " + MASKED_KEY]
    return Reply(
        dict(identity, profile=name, active=True, baseUrl=base_url, apiKey=MASKED_KEY),
        lines + ["", "  Try it:  scripto whoami"],
    )


def cmd_whoami(ctx, args):
    """Says only what the backend said just now; the profile fills a blank email or name."""
    target = resolve(ctx, args, with_key=True)
    user = call(ctx, target, "GET", "/api/auth/me").get("user")
    if not isinstance(user, dict):
        raise HttpReply(target.base_url).trouble("named no user")
    own, name = ({}, None)
    if target.key_source == "profile":
        own, name = target.profile, target.name
    shown = {
        "id": text_of(user, "id"),
        "email": text_of(user, "email") or text_of(own, "email"),
        "name": text_of(user, "name") or text_of(own, "name") or name or "",
    }
    data = {"user": shown, "profile": name}
    data.update(baseUrl=target.base_url, keySource=target.key_source)
    lines = [
        "✓ Signed in as " + (shown["email"] or shown["id"]),
        "",
        "  Name:     " + shown["name"],
        "  User ID:  " + shown["id"],
        "  API key:  %s (from %s)" % (MASKED_KEY, target.key_source + (" " + name if name else "")),
        "  Backend:  " + target.base_url,
    ]
    return Reply(data, lines)


def cmd_token(ctx, args):
    """The one command that shows a key: alone on its line, for scripts."""
    key = resolve(ctx, args, with_key=True).key
    return Reply({"apiKey": key}, [key])


def profile_rows(state):
    return [
        {"name": name, "active": name == state.get("activeProfile"),
         "email": text_of(profile, "email"), "baseUrl": str(url_of(profile))}
        for name, profile in state["profiles"].items()
    ]  # fmt: skip


def profile_lines(rows):
    """A line a profile, in columns; the active one is marked."""
    names, emails = ([len(row[column]) for row in rows] for column in ("name", "email"))
    form = "%%s %%-%ds  %%-%ds  %%s" % (max(names or [0]), max(emails or [0]))
    return [
        form % ("●" if row["active"] else " ", row["name"], row["email"], row["baseUrl"])
        for row in rows
    ] or ["No profile yet.", "  next: " + NEXT_SIGN_IN]


def cmd_use(ctx, args):
    file = ProfileFile(ctx)
    state = file.read()
    lines = profile_lines(profile_rows(state))
    if args.name is not None:
        find_profile(state, args.name)  # before anything is touched

        def switch(state):
            find_profile(state, args.name)
            state["activeProfile"] = args.name
            return state

        state = file.change(switch)
        lines = ["✓ Profile %s is now active" % args.name]
        if ctx.setting("SCRIPTO_API_KEY"):
            warn(ctx, "SCRIPTO_API_KEY is set and overrides the key of every profile")
    data = {"activeProfile": state.get("activeProfile"), "profiles": profile_rows(state)}
    return Reply(data, lines)


def cmd_logout(ctx, args):
    file = ProfileFile(ctx)
    state = file.read()
    name = args.name if args.name is not None else state.get("activeProfile")
    if name is None:
        raise ScriptoError("not-found", "No profile is active.", NEXT_SIGN_IN)
    backend = url_of(find_profile(state, name))
    active = file.change(lambda state: remove_profiles(state, [name]))
    lines = ["✓ Signed out: profile %s is removed from this machine" % name]
    lines.append("  Its key is not revoked: copies of it still work at %s" % backend)
    return Reply({"removed": name, "revoked": False, "activeProfile": active},
                 lines + now_active(active))  # fmt: skip


def now_active(active):
    return ["  Profile %s is now active" % active] if active else []


# ---- Configuration ------------------------------------------------------------
# The commands that work on the profile file alone, with no network.


def cmd_config_set(ctx, args):
    if args.api_key is None:
        raise refused("The API key is missing.", "Pass --api-key <your-key> to: scripto config set")
    given = read_line(ctx, "API key: ", True) if args.api_key == "-" else args.api_key
    identity = {"apiKey": check_key(given, "--api-key")}
    name = args.profile_name
    if name is not None:
        check_profile_name(name)
    url, source = args.api_url, "--api-url"
    if url is None:
        url, source = ctx.setting("SCRIPTO_API_BASE_URL") or BASE_URL, "SCRIPTO_API_BASE_URL"
    base_url = check_base_url(ctx, url, source)

    def store(state):
        if name is None:
            return store_profile(state, None, identity, base_url, ctx.now())
        put_profile(state, name, identity, base_url, ctx.now())  # just this one is meant
        return name

    name = ProfileFile(ctx).change(store)
    return stored(name, identity, base_url, ["✓ Key stored", "", "  Backend:  " + base_url])


def cmd_config_show(ctx, args):
    file = ProfileFile(ctx)
    rows = profile_rows(file.read())
    data = {"path": file.shown, "profiles": [dict(row, apiKey=MASKED_KEY) for row in rows]}
    lines = ["Profile file: " + file.shown, ""] + profile_lines(rows) + [""]
    try:
        target = resolve(ctx, args, with_key=True)
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
    if names and not args.yes:
        confirm(ctx, "Forget %s? [y/N] " % ", ".join(names))
    active = file.change(lambda state: remove_profiles(state, names)) if names else None
    lines = ["✓ Forgotten: " + (", ".join(names) or "nothing, there was no profile")]
    return Reply({"removed": names, "activeProfile": active}, lines + now_active(active))


def confirm(ctx, question):
    """Asks at a terminal. Raises cancelled for anything but yes, invalid-argument where there
    is nobody to ask."""
    if not is_terminal(ctx.stdin):
        message = "This forgets keys, and there is no terminal to ask at."
        raise refused(message, "add --yes to: scripto config clear")
    if read_line(ctx, harmless(question)).strip().lower() not in ("y", "yes"):
        raise ScriptoError("cancelled", "Nothing was changed.", "answer y, or add --yes")


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
    problem = "'%s' is not known" % readable(kind)
    if where == "console":
        if is_loopback(bound_to):
            return lambda message, to: say(ctx, "mail to %s: %s" % (to, message["Subject"]))
        problem = "console is for loopback only, not for %s" % bound_to
    elif kind == "maildir" and rest:
        return lambda message, to: deliver_to_maildir(rest, message)
    elif kind in ("smtp", "smtps"):
        server = smtp_server(ctx, where)
        if server:
            return lambda message, to: deliver_by_smtp(server, message, to)
        problem = "it names no mail server"
    forms = "console, maildir:DIR, smtp://[user@]host[:port], smtps://[user@]host[:port]"
    raise refused("Mail cannot go that way: %s." % problem, "pass --mail with one of: " + forms)


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
    tls = ssl.create_default_context()
    kind, more = (smtplib.SMTP, {})
    if scheme == "smtps":
        kind, more = (smtplib.SMTP_SSL, {"context": tls})
    try:
        # The third is our name; left out, it would be looked up in the DNS, and waited for.
        with kind(host, port, message["Message-ID"][1:-1].partition("@")[2],
                  timeout=MAIL_SECONDS, **more) as smtp:  # fmt: skip
            smtp.ehlo_or_helo_if_needed()
            secure = scheme == "smtps"
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
        "CREATE TABLE users (id TEXT PRIMARY KEY, email TEXT NOT NULL UNIQUE,"
        " name TEXT NOT NULL, created_at REAL NOT NULL)",
        "CREATE TABLE keys (id TEXT PRIMARY KEY, user_id TEXT NOT NULL REFERENCES users,"
        " hash BLOB NOT NULL UNIQUE, name TEXT NOT NULL, start TEXT NOT NULL,"
        " created_at REAL NOT NULL, last_used_at REAL)",
        "CREATE TABLE codes (email TEXT PRIMARY KEY, hash BLOB NOT NULL,"
        " expires_at REAL NOT NULL, attempts INTEGER NOT NULL)",
        "CREATE TABLE events (id INTEGER PRIMARY KEY, email TEXT NOT NULL,"
        " kind TEXT NOT NULL, at REAL NOT NULL)",
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
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = FULL")
            self.write(self.migrate)
        except (OSError, sqlite3.Error) as error:
            raise self.trouble("cannot be used: %s" % error)

    def trouble(self, what):
        return blocked("The database %s %s." % (self.path, what), "pass another file with --db")

    def migrate(self):
        version = self.one("PRAGMA user_version")[0]
        if version > len(MIGRATIONS):
            raise self.trouble("was made by a newer scripto")
        if version == 0 and self.one("SELECT 1 FROM sqlite_master"):
            raise self.trouble("belongs to another program")
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                self.db.execute(statement)
        if version == 0:
            self.db.execute("INSERT INTO secret VALUES (?)", (os.urandom(32),))
        self.db.execute("PRAGMA user_version = %d" % len(MIGRATIONS))

    def write(self, work, *values):
        """Runs work(*values) as one transaction, alone among threads and processes."""
        with self.lock, self.db:  # commits; what raises is rolled back
            self.db.execute("BEGIN IMMEDIATE")
            return work(*values)

    def one(self, sql, *values):
        return self.db.execute(sql, values).fetchone()

    def secret(self):
        return self.one("SELECT value FROM secret")[0]

    def close(self):
        with self.lock:
            self.db.close()

    def wait(self, email, limits, now):
        """Seconds until the email is within all limits again; 0 if it is now."""
        waits = [0]
        for kind, most, seconds in limits:
            row = self.one(
                "SELECT at FROM events WHERE email = ? AND kind = ? AND at > ?"
                " ORDER BY at DESC LIMIT 1 OFFSET ?",
                *(email, kind, now - seconds, most - 1)
            )
            waits += [row[0] + seconds - now] if row else []
        return max(waits)

    def add_event(self, email, kind, now):
        sql = "INSERT INTO events (email, kind, at) VALUES (?, ?, ?)"
        return self.db.execute(sql, (email, kind, now)).lastrowid

    def reserve(self, email, now):
        """Counts a code request, before its mail goes: (seconds to wait, event)."""
        self.db.execute("DELETE FROM events WHERE at <= ?", (now - DAY,))
        self.db.execute("DELETE FROM codes WHERE expires_at <= ?", (now,))
        wait = self.wait(email, REQUEST_LIMITS, now)
        return wait, None if wait else self.add_event(email, "request", now)

    def release(self, event):
        """Takes back a request whose mail was not taken."""
        self.db.execute("DELETE FROM events WHERE id = ?", (event,))

    def put_code(self, email, digest, now):
        """A new code comes with new attempts; those counted for the email stay."""
        row = (email, digest, now + CODE_SECONDS, CODE_ATTEMPTS)
        self.db.execute("INSERT OR REPLACE INTO codes VALUES (?, ?, ?, ?)", row)

    def redeem(self, email, digest, key, now):
        """Checks a code, spends it, makes the user and stores the key (a row of `keys` by
        column): all or nothing. Returns (seconds to wait, user id); no id, the code was wrong,
        which counts for the email even where no code is live."""
        import hmac  # lazy

        wait = self.wait(email, WRONG_LIMITS, now)
        if wait:
            return wait, None
        row = self.one("SELECT hash FROM codes WHERE email = ? AND expires_at > ?"
                       " AND attempts > 0", email, now)  # fmt: skip
        if not hmac.compare_digest(row[0] if row else b"", digest):
            self.db.execute("UPDATE codes SET attempts = attempts - 1 WHERE email = ?", (email,))
            self.add_event(email, "wrong", now)
            return 0, None
        self.db.execute("DELETE FROM codes WHERE email = ?", (email,))
        user = ("user_" + os.urandom(12).hex(), email, "", now)
        self.db.execute("INSERT OR IGNORE INTO users VALUES (?, ?, ?, ?)", user)
        user_id = self.one("SELECT id FROM users WHERE email = ?", email)[0]
        row = (key["id"], user_id, key["hash"], key["name"], key["start"], now, None)
        self.db.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return 0, user_id

    def user_of(self, digest, now):
        """(id, email, name) of a key's user, or None. Its use is noted once a minute."""
        with self.lock:
            row = self.one(
                "SELECT users.id, email, users.name, keys.id, coalesce(last_used_at, 0)"
                " FROM keys JOIN users ON users.id = user_id WHERE hash = ?",
                digest,
            )
        if row and row[4] <= now - LAST_USED_SECONDS:
            sql = "UPDATE keys SET last_used_at = ? WHERE id = ?"
            self.write(self.db.execute, sql, (now, row[3]))
        return row and row[:3]

    def keys_of(self, user_id):
        sql = ("SELECT id, name, start, created_at, last_used_at FROM keys WHERE user_id = ?"
               " ORDER BY created_at, id")  # fmt: skip
        with self.lock:
            return self.db.execute(sql, (user_id,)).fetchall()

    def delete_key(self, user_id, key_id):
        sql = "DELETE FROM keys WHERE id = ? AND user_id = ?"
        return self.db.execute(sql, (key_id, user_id)).rowcount == 1


# ---- Routes -------------------------------------------------------------------
# What the backend answers. A route takes the backend and a request and returns an Answer, or
# raises ScriptoError; it knows neither sockets nor SQL.


class Request:
    def __init__(self, method, path, headers, body, address):
        self.method, self.path, self.headers = method, path, headers
        self.body, self.address = body, address  # bytes; the client's, as text


class Answer:
    """status, body as bytes, headers. A body given as an object goes as JSON."""

    def __init__(self, body, status=200, headers=(), content_type="application/json"):
        if isinstance(body, dict):
            import json  # lazy

            body = json.dumps(body).encode("ascii")
        self.body, self.status = body, status
        self.headers = [("Content-Type", content_type + "; charset=utf-8")] + list(headers)


class Backend:
    """What routes share: store, delivery, its own URL, and who has asked how often."""

    def __init__(self, ctx, store, deliver, sender, rate_limit):
        import threading  # lazy

        self.ctx, self.store, self.deliver, self.sender = ctx, store, deliver, sender
        self.secret, self.public_url = store.secret(), None
        self.rate_limit, self.recent, self.guard = rate_limit, {}, threading.Lock()

    def log(self, text):
        say(self.ctx, "%s %s" % (timestamp(self.ctx.now()), text))

    def digest(self, email, code):
        """What is stored of a code. Keyed, since a plain hash of six digits hides nothing."""
        import hmac  # lazy

        return hmac.new(self.secret, ("%s\0%s" % (email, code)).encode(), "sha256").digest()

    def admit(self, address):
        """Raises resource-exhausted if the address asks too often: a sliding minute."""
        now, source = time.monotonic(), network_of(address)
        with self.guard:
            if len(self.recent) > 9999:  # forget those that have been quiet
                fresh = [item for item in self.recent.items() if item[1][-1] > now - 60]
                self.recent = dict(fresh)
            times = [at for at in self.recent.get(source, ()) if at > now - 60]
            if not self.rate_limit or len(times) < self.rate_limit:
                self.recent[source] = (times + [now])[-self.rate_limit :]
                return
        raise too_many("Too many requests from this address.", times[0] + 60 - now)


def network_of(address):
    """IPv6 counts by /64, which is what one customer is given (RFC 6177)."""
    import socket  # lazy

    if ":" not in address or address.startswith("::ffff:"):  # the latter is IPv4 in disguise
        return address
    try:
        return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])[:8]
    except OSError:
        return address


def too_many(message, seconds):
    wait = int(seconds) + 1
    hint = "retry in %d seconds" % wait
    return ScriptoError("resource-exhausted", message, hint, retry_after=wait)


def fields_of(backend, request, next_action):
    """The body of a public route, from an address that may still ask."""
    backend.admit(request.address)
    fields = parse_json(request.body)
    if fields is None:
        raise refused("The body is not a JSON object in UTF-8.", next_action)
    return fields


def route_login_request(backend, request):
    """The mail goes before the code is stored and before the answer: a failure leaves nothing."""
    import secrets  # lazy

    fields = fields_of(backend, request, NEXT_EMAIL % "auth login-request")
    email = check_email(text_of(fields, "email"), "auth login-request").lower()
    store, now = backend.store, backend.ctx.now()
    wait, event = store.write(store.reserve, email, now)
    if wait:
        raise too_many("Too many attempts for this email.", wait)
    code = "%06d" % secrets.randbelow(10**6)
    try:
        backend.deliver(compose(backend.sender, email, code, backend.public_url, now), email)
    except (MailError, ValueError) as error:  # ValueError: an address that no header can hold
        store.write(store.release, event)
        reason = str(error) if isinstance(error, MailError) else "unfit address"
        backend.log("mail failed: " + reason)
        raise ScriptoError("internal", "The sign-in code could not be sent.", NEXT_RETRY)
    store.write(store.put_code, email, backend.digest(email, code), backend.ctx.now())
    return Answer({"success": True, "data": {"ok": True, "email": email}})


def route_login_complete(backend, request):
    import hashlib  # lazy
    import secrets

    fields = fields_of(backend, request, NEXT_CODE)
    email = check_email(text_of(fields, "email"), "auth login-complete").lower()
    code = check_code(text_of(fields, "otp"))
    raw = KEY_PREFIX + secrets.token_urlsafe(32)
    key = {
        "id": "key_" + secrets.token_hex(12),
        "hash": hashlib.sha256(raw.encode()).digest(),
        "name": check_key_name(text_of(fields, "name")),
        "start": raw[len(KEY_PREFIX) :][:6],
    }
    store, digest = backend.store, backend.digest(email, code)
    wait, user_id = store.write(store.redeem, email, digest, key, backend.ctx.now())
    if wait:
        raise too_many("Too many wrong codes for this email.", wait)
    if user_id is None:
        raise refused("The code is wrong or has expired.", NEXT_CODE)
    data = {"apiKey": raw, "keyId": key["id"], "userId": user_id, "email": email}
    return Answer({"success": True, "data": data})


BEARER = ("WWW-Authenticate", "Bearer")


def user_of(backend, request):
    """(id, email, name) of who sent the bearer key (RFC 6750), or None."""
    import hashlib  # lazy

    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not is_key(key.strip()):
        return None
    return backend.store.user_of(hashlib.sha256(key.strip().encode()).digest(), backend.ctx.now())


def route_me(backend, request):
    """Two odd shapes, both the product's. The headers are for a web server that asks on
    behalf of a page."""
    user = user_of(backend, request)
    if user is None:
        return Answer({"error": "Unauthorized"}, 401, [BEARER])
    user_id, email, name = user
    headers = [("X-Scripto-User", user_id), ("X-Scripto-Email", email.encode().decode("latin-1"))]
    return Answer({"user": {"id": user_id, "email": email, "name": name}}, 200, headers)


def user_id_of(backend, request):
    user = user_of(backend, request)
    if user is None:
        raise ScriptoError("unauthenticated", "The key is missing or not valid.", NEXT_SIGN_IN)
    return user[0]


def route_keys(backend, request):
    names = ("id", "name", "start", "createdAt", "lastUsedAt")
    keys = [dict(zip(names, row)) for row in backend.store.keys_of(user_id_of(backend, request))]
    for key in keys:  # which last until they are revoked
        key.update(createdAt=timestamp(key["createdAt"]), lastUsedAt=timestamp(key["lastUsedAt"]))
        key["expiresAt"] = None
    return Answer({"success": True, "data": {"keys": keys}})


def route_key(backend, request):
    user_id, key_id = user_id_of(backend, request), request.path.rpartition("/")[2]
    if not backend.store.write(backend.store.delete_key, user_id, key_id):
        raise ScriptoError("not-found", "There is no such key.", "see the ids at GET /api/keys")
    return Answer({"success": True, "data": {"id": key_id, "revoked": True}})


def route_health(backend, request):
    return Answer({"success": True, "data": {"ok": True, "version": __version__}})


def route_source(backend, request):
    """This very file, with the URL of this backend in it."""
    with open(os.path.abspath(__file__), "rb") as file:
        source = file.read()
    line = ("BASE_URL = %r" % backend.public_url).encode("ascii")
    source = re.sub(rb"(?m)^BASE_URL = .*$", lambda _: line, source, 1)
    return Answer(source, content_type="text/x-python")


GUIDE = """# Scripto: sign a machine in, with no browser

You need Python 3.6 or newer and an email address whose mail you can read.

1. Get the client, one file that knows this backend and needs no packages:

       curl -fsSO BASE_URL/scripto.py

2. Ask for a code, then buy a key with it. An unknown email is registered by this, a known one
   signs in. The code is six digits, valid 5 minutes, for 3 attempts and one use:

       python3 scripto.py auth login-request --email you@example.com --json
       python3 scripto.py auth login-complete --email you@example.com --code 123456 --json

3. The key is now kept as the active profile:

       python3 scripto.py whoami --json

With --json exactly one envelope goes to standard output:

    {"success": true, "data": {...}}
    {"success": false, "error": {"code": "...", "message": "...", "nextAction": "..."}}

On an error do what nextAction says, or show it to the user word for word. Exit status: 0 done,
1 cannot be done, 2 bad argument or code, 3 the same command may work later, 4 no valid key,
130 cancelled. SCRIPTO_API_KEY in the environment works without any file. Other programs send
`Authorization: Bearer scripto_...`, to BASE_URL only. Never print the key.
"""


def route_guide(backend, request):
    return Answer(GUIDE.replace("BASE_URL", backend.public_url).encode(), content_type="text/plain")


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


def answer(backend, request):
    """Finds the route and runs it. HEAD is a GET whose body is not sent (RFC 9110, 9.3.2)."""
    routes = ROUTES.get(pattern_of(request.path), {})
    if not routes and request.path != "*":
        raise ScriptoError("not-found", "There is nothing here.", "see GET /llms.txt")
    methods = list(routes) + ["HEAD"] * ("GET" in routes) + ["OPTIONS"]
    allow = [("Allow", ", ".join(methods))]
    if request.method == "OPTIONS":
        return Answer(b"", 204, allow)
    route = routes.get("GET" if request.method == "HEAD" else request.method)
    if route is None:
        error = refused("This path takes only " + allow[0][1], "see GET /llms.txt", 405)
        return error_answer(error, allow)
    return route(backend, request)


def error_answer(error, headers=()):
    headers = list(headers) + [BEARER] * (error.http_status == 401)
    if error.retry_after:
        headers.append(("Retry-After", str(error.retry_after)))
    return Answer(error.envelope(), error.http_status, headers)


# ---- Server -------------------------------------------------------------------
# Sockets, threads and time-outs around the routes. Two halves of classes whose other halves
# are the standard library's; make_server() joins them, where those are imported.


class Connections:
    """Half of the server: which connections are open, and for how long they may be.

    Each has a thread. `waiting` holds those whose request is yet to come, with the time at
    which they are cut off; those that are being worked on are in `opened` only."""

    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # on Windows it would share the port
    request_queue_size = 128

    def start(self, backend, tls, behind_proxy):
        import threading  # lazy

        self.backend, self.tls, self.behind_proxy = backend, tls, behind_proxy
        self.opened, self.waiting, self.guard = set(), {}, threading.Lock()
        self.stopping = False

    def get_request(self):
        connection, address = super().get_request()
        if self.tls:  # the handshake comes with the first read, in the connection's own thread
            connection = self.tls.wrap_socket(connection, True, do_handshake_on_connect=False)
        return connection, address

    def process_request(self, connection, address):
        """When all places are taken, the one that has been silent longest gives way."""
        with self.guard:
            if len(self.opened) >= CONNECTIONS and self.waiting:
                self.cut(min(self.waiting, key=self.waiting.get))
            room = len(self.opened) < CONNECTIONS
            if room:
                self.opened.add(connection)
        if room:
            super().process_request(connection, address)
        else:
            self.shutdown_request(connection)

    def cut(self, connection):
        """Ends a connection under its thread, which finds it closed. By the plain socket's
        shutdown(): TLS would want to talk about it first."""
        import socket  # lazy

        self.waiting.pop(connection, None)
        self.opened.discard(connection)
        try:
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
        except OSError:
            pass  # gone already

    def expect(self, connection, seconds):
        """What comes next has to be here within so many seconds; None: all of it is here."""
        with self.guard:
            self.waiting.pop(connection, None)
            if seconds and connection in self.opened:
                self.waiting[connection] = time.monotonic() + seconds

    def service_actions(self):
        """Called twice a second: cuts off who is late, however busily it dribbles."""
        now = time.monotonic()
        with self.guard:
            for connection in [each for each, until in self.waiting.items() if until < now]:
                self.cut(connection)

    def shutdown_request(self, connection):
        with self.guard:
            self.waiting.pop(connection, None)
            self.opened.discard(connection)
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
            with self.guard:
                for connection in list(self.waiting):
                    self.cut(connection)
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
            reply = answer(self.server.backend, self.read_request())
        except ScriptoError as error:
            reply = error_answer(error)
        except OSError:  # the client fell silent or went away
            self.close_connection = True
            return
        except Exception as error:  # a fault of ours: its place goes to the log, nothing out
            place = error.__traceback__
            while place.tb_next:
                place = place.tb_next
            where = (type(error).__name__, place.tb_lineno)
            self.server.backend.log("fault: %s at line %d" % where)
            reply = error_answer(ScriptoError("internal", "The backend failed.", NEXT_RETRY))
        self.respond(reply)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = dispatch

    def read_request(self):
        """Reads the body. Raises for one that is too large or whose length is not plain; the
        connection then ends, as it is anyone's guess where the next request would start."""
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
        return Request(
            self.command, self.path.partition("?")[0], self.headers, body, self.address()
        )

    def address(self):
        """The client's, as the nearest proxy saw it if there is said to be one."""
        hops = self.headers.get_all("X-Forwarded-For", []) if self.server.behind_proxy else []
        last = ",".join(hops).rpartition(",")[2].strip()
        return last if re.match("[0-9A-Fa-f.:]{2,45}$", last) else self.client_address[0]

    def respond(self, reply):
        self.send_response(reply.status)
        for name, value in reply.headers + [("Cache-Control", "no-store")]:
            self.send_header(name, value)
        if reply.status != 204:
            self.send_header("Content-Length", str(len(reply.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)
        if self.close_connection:
            self.linger()

    def linger(self):
        """Reads on for a moment: to close on unread bytes resets the connection, and the
        answer is lost with it (RFC 9112, 9.6)."""
        import socket  # lazy

        try:
            self.connection.settimeout(0.5)
            socket.socket.shutdown(self.connection, socket.SHUT_WR)
            for _ in range(16):
                if not self.connection.recv(64 << 10):
                    break
        except (OSError, ValueError):
            pass  # gone already

    def send_error(self, code, message=None, explain=None):
        """What the standard library refuses by itself: a malformed line, a header flood."""
        self.close_connection = True
        self.respond(error_answer(refused("The request is not valid HTTP.", None, int(code))))

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


def database_path(ctx, given):
    if given is not None:
        return given
    folder = os.path.join(
        xdg_folder(ctx, "XDG_DATA_HOME", os.path.join(".local", "share"), "pass --db FILE"), "scripto"
    )
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
    except OSError as error:
        message = "The folder %s cannot be made: %s." % (folder, reason_of(error))
        raise blocked(message, "pass another place with --db FILE")
    return os.path.join(folder, "scripto.db")


def cmd_serve(ctx, args):
    """Says where it listens, serves until SIGINT or SIGTERM, and has nothing to add."""
    host = args.host or "127.0.0.1"
    port = check_number(args.port, "--port", 8787, 65535)
    rate_limit = check_number(args.rate_limit, "--rate-limit", RATE_LIMIT, 10**9)
    deliver = delivery_for(ctx, args.mail or "console", host)
    public_url = args.public_url and check_base_url(ctx, args.public_url, "--public-url")
    domain = origin_of(public_url)[1] if public_url else "localhost"
    sender = check_email(args.mail_from or "scripto@" + domain, "serve --mail-from")
    tls = tls_context(args)
    os.umask(0o077)  # what is made from here on holds codes and hashes: nobody else's business
    store = Store(database_path(ctx, args.db))
    backend = Backend(ctx, store, deliver, sender, rate_limit)
    server = make_server(host, port)
    server.start(backend, tls, args.behind_proxy)
    where = ("[%s]:%d" if ":" in host else "%s:%d") % (host, server.server_address[1])
    url = "%s://%s" % ("https" if tls else "http", where)
    backend.public_url = public_url or url
    reply = Reply({"url": url, "publicUrl": backend.public_url}, ["listening on " + url])
    serve_until_told(ctx, server, reply)
    store.close()


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


def demo_environment(ctx, folder):
    """The user's environment without what would lead out of the folder."""
    env = {k: v for k, v in ctx.env.items() if not k.startswith(("SCRIPTO_", "XDG_"))}
    env.update(HOME=folder, PYTHONIOENCODING="utf-8")
    return env


def cmd_demo(ctx, args):
    """The sign-in as a user does it: real processes, real HTTP, real mail, in a folder that is
    gone afterwards. Raises internal unless every step worked."""
    import subprocess  # lazy
    import tempfile

    with tempfile.TemporaryDirectory(prefix="scripto-demo-") as folder:
        env = demo_environment(ctx, folder)
        program = [sys.executable, os.path.abspath(__file__)]
        mail, log = os.path.join(folder, "mail"), os.path.join(folder, "log")
        serve = ["serve", "--port", "0", "--mail", "maildir:" + mail]
        with open(log, "wb") as errors:
            server = subprocess.Popen(
                program + serve, env=env, stdout=subprocess.PIPE, stderr=errors
            )
        try:
            first = server.stdout.readline().decode().strip()
            if not first.startswith("listening on "):
                with open(log, encoding="utf-8", errors="replace") as errors:
                    raise demo_failure("scripto serve", errors.read())
            env["SCRIPTO_API_BASE_URL"] = first.split()[-1]
            steps = demo_steps(program, env, mail)
        finally:
            server.terminate()
            server.wait()
            server.stdout.close()
    lines = ["A backend of its own (%s), in a folder that is gone by now:" % first]
    for step in steps:
        lines += ["", step["command"]] + step["output"].splitlines()
    lines += ["", "✓ All of it works on this machine"]
    return Reply({"ok": True, "steps": steps}, lines)


def demo_steps(program, env, mail):
    """Runs the two commands and whoami, and reads the mail in between."""
    sign_in = ["--email", "you@example.com"]
    steps = [demo_step(program, env, ["auth", "login-request"] + sign_in)]
    folder = os.path.join(mail, "new")
    name = (os.listdir(folder) + [""])[0]
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        text = file.read()
    code = re.search(r"^Subject: (\d{6}) ", text, re.M).group(1)
    steps.append({"command": "the mail that came:", "output": text})
    complete = ["auth", "login-complete"] + sign_in + ["--code", code]
    steps += [demo_step(program, env, complete), demo_step(program, env, ["whoami"])]
    return steps


def demo_step(program, env, words):
    import subprocess  # lazy

    process = subprocess.Popen(
        program + words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, errors = (text.decode("utf-8", "replace") for text in process.communicate())
    command = "scripto " + " ".join(words)
    if process.returncode or ("you@example.com" not in output):
        raise demo_failure(command, errors or output)
    return {"command": "$ " + command, "output": output}


def demo_failure(command, output):
    message = "The demo failed at '%s': %s" % (command, " ".join(output.split()))
    return ScriptoError("internal", message, "see what is wrong with: scripto doctor")


# ---- Doctor -------------------------------------------------------------------
# What works here and what does not, by looking only: nothing is changed. A check yields rows
# (name, "ok" | "warning" | "error", what was found, what to do about it).

MARKS = {"ok": "✓ ", "warning": "! ", "error": "✗ "}


def check_python(ctx):
    version = "%d.%d.%d at %s" % (sys.version_info[:3] + (sys.executable or "an unknown place",))
    yield "python", "ok", "Python " + version, None
    try:
        import sqlite3  # lazy

        yield "sqlite", "ok", "SQLite " + sqlite3.sqlite_version, None
    except ImportError as error:
        yield "sqlite", "warning", "no sqlite3: serve and demo cannot run", missing(error).next_action


def check_tls(ctx, base_url):
    """TLS matters to a backend that is reached by https."""
    bad = "error" if base_url.startswith("https") else "warning"
    try:
        import ssl  # lazy
    except ImportError as error:
        yield "tls", bad, "no ssl: only http on loopback can be reached", missing(error).next_action
        return
    places = ssl.get_default_verify_paths()
    found = ssl.create_default_context().cert_store_stats()["x509_ca"]
    if found or (places.capath and os.listdir(places.capath)):
        where = places.cafile or places.capath or "the system"
        yield "tls", "ok", "%s, authorities from %s" % (ssl.OPENSSL_VERSION, where), None
    else:
        hint = "install ca-certificates, or set SSL_CERT_FILE to a file of certificates"
        yield "tls", bad, "no certificate authorities are known here", hint


def check_proxy(base_url):
    import urllib.request  # lazy

    scheme, host, _ = origin_of(base_url)
    proxy = urllib.request.getproxies_environment().get(scheme)
    if not proxy or is_loopback(host) or urllib.request.proxy_bypass_environment(host):
        return "proxy", "ok", "no proxy for %s" % host, None
    return "proxy", "ok", "proxy for %s: %s" % (host, re.sub("//[^/@]*@", "//", proxy)), None


def check_file(ctx):
    """The profile file; its mode is a finding of its own."""
    try:
        file = ProfileFile(ctx)
        count = len(file.read()["profiles"])
        mode = stat.S_IMODE(os.stat(file.path).st_mode) if os.path.exists(file.path) else 0o600
    except ScriptoError as error:
        yield "profiles", "error", error.message, error.next_action
        return
    yield "profiles", "ok", "%s: %d profiles" % (file.shown, count), None
    if mode & 0o077 and os.name == "posix":
        text = "others can read %s (mode %04o)" % (file.shown, mode)
        yield "mode", "warning", text, "close it with: chmod 600 " + shell_word(file.path)


def check_backend(ctx, target):
    """Whether it answers, takes the key, and agrees on the time: codes live five minutes."""
    try:
        reply = send(ctx, "GET", target.base_url + "/api/auth/me", None, target.key)
    except (ScriptoError, ImportError) as error:
        error = missing(error) if isinstance(error, ImportError) else error
        yield "backend", "error", error.message, error.next_action
        return
    yield "backend", "ok", "%s answers" % target.base_url, None
    if target.key and reply.status == 200 and isinstance(parse_json(reply.body), dict):
        yield "key", "ok", "the backend accepts the key from " + target.key_source, None
    elif target.key:
        text = "the backend answers HTTP %d to the key" % reply.status
        yield "key", "error", text, NEXT_SIGN_IN
    from email.utils import mktime_tz, parsedate_tz  # lazy

    date = parsedate_tz(reply.headers.get("Date", ""))
    if date:
        off = ctx.now() - mktime_tz(date)
        status, hint = ("ok", None) if abs(off) < 60 else ("warning", "set this machine's clock")
        yield "clock", status, "%+.0f s against the backend" % off, hint


def cmd_doctor(ctx, args):
    rows = list(check_python(ctx)) + list(check_file(ctx))
    try:
        target = resolve(ctx, args, with_key=True)
        text = "from %s; base URL %s, from %s"
        text %= (target.key_source, target.base_url, target.url_source)
        rows.append(("access", "ok", "key " + text, None))
    except ScriptoError as error:
        rows.append(("access", "error", error.message, error.next_action))
        target = Target()
        target.base_url = args.api_url or ctx.setting("SCRIPTO_API_BASE_URL") or BASE_URL
        try:
            target.base_url = check_base_url(ctx, target.base_url, "--api-url")
        except ScriptoError:
            target.base_url = None
    if target.base_url:
        rows += check_tls(ctx, target.base_url)
        rows += [check_proxy(target.base_url)] + list(check_backend(ctx, target))
    lines = []
    for name, status, text, hint in rows:
        lines.append("%s%-9s %s" % (MARKS[status], name, text))
        lines += ["            next: " + hint] if hint else []
    keys = ("name", "status", "message", "nextAction")
    ok = not any(row[1] == "error" for row in rows)
    data = {"ok": ok, "checks": [dict(zip(keys, row)) for row in rows]}
    return Reply(data, lines, 0 if ok else 1)


# ---- Command line -------------------------------------------------------------
# One table of commands, from which parser and help are made; the way in and the way out.

OPTIONS = {  # flag: (what it takes, None for a switch; what it is for)
    "--email": ("EMAIL", "the email to sign in with"),
    "--code": ("CODE", "the six-digit code from the email; - reads standard input"),
    "--name": ("NAME", "what to call the new key"),
    "--profile-name": ("NAME", "what to call the local profile (else made from the email)"),
    "--api-url": ("URL", "the backend (default: SCRIPTO_API_BASE_URL, the profile's, production)"),
    "--profile": ("NAME", "the profile to use instead of the active one"),
    "--api-key": ("KEY", "a key to use (or SCRIPTO_API_KEY); - reads standard input"),
    "--yes": (None, "do not ask"),
    "--host": ("ADDRESS", "where to listen (default 127.0.0.1)"),
    "--port": ("PORT", "default 8787; 0 takes a free one"),
    "--db": ("FILE", "the database (default: scripto.db in the data folder)"),
    "--mail": ("HOW", "console, maildir:DIR, smtp://[user@]host[:port], smtps://..."),
    "--mail-from": ("ADDRESS", "the sender of the mail"),
    "--public-url": ("URL", "how clients reach this backend, if not by where it listens"),
    "--tls-cert": ("FILE", "serve https with this certificate chain"),
    "--tls-key": ("FILE", "and this private key"),
    "--behind-proxy": (None, "take client addresses from the last hop of X-Forwarded-For"),
    "--rate-limit": ("N", "requests a minute for an address (default 60; 0: no limit)"),
    "--json": (None, "answer as JSON, one envelope on standard output"),
    "--help": (None, "show this and do nothing"),
}
BACKEND = " --api-url --profile"
SERVE = " --host --port --db --mail --mail-from --public-url --tls-cert --tls-key"

COMMANDS = {  # name: (function, what it does, its arguments and flags, an example)
    "auth login-request": (cmd_login_request, "email a six-digit sign-in code",
                           "--email" + BACKEND, "--email you@example.com"),
    "auth login-complete": (cmd_login_complete, "sign in with the code; a new email signs up",
                            "--email --code --name --profile-name" + BACKEND,
                            "--email you@example.com --code 123456"),
    "auth token": (cmd_token, "print the API key in force, for scripts",
                   "--api-key" + BACKEND, ""),
    "whoami": (cmd_whoami, "ask the backend whose key is in force", "--api-key" + BACKEND, ""),
    "use": (cmd_use, "list the profiles, or switch to one", "name", "you"),
    "logout": (cmd_logout, "remove a profile, by default the active one", "name", "you"),
    "config set": (cmd_config_set, "store a key that you have as a profile",
                   "--api-key --profile-name --api-url", "--api-key -"),
    "config show": (cmd_config_show, "the profiles, and what is in force and why",
                    "--api-key" + BACKEND, ""),
    "config clear": (cmd_config_clear, "forget one profile, or all of them",
                     "--profile --yes", "--profile you"),
    "serve": (cmd_serve, "run a backend here", SERVE + " --behind-proxy --rate-limit",
              "--mail maildir:/var/mail/scripto"),
    "demo": (cmd_demo, "see the whole sign-in work, in a throw-away folder", "", ""),
    "doctor": (cmd_doctor, "check what works on this machine", "--api-key" + BACKEND, ""),
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """argparse, whose errors take the one way out."""

    def error(self, message):
        command = self.prog.partition(" ")[2]
        if message.startswith("argument --email: expected"):
            check_email(None, command)
        if message.startswith("argument --code: expected"):
            check_code(None)
        raise refused("%s." % message, "see: %s --help" % self.prog)


def parser_for(name):
    import functools  # loaded by the interpreter's own start

    _, purpose, words, example = COMMANDS[name]
    prog = "scripto " + name
    width = min(int(os.environ.get("COLUMNS", "0") or 0) or 80, 100)
    form = functools.partial(argparse.HelpFormatter, max_help_position=28, width=width)
    parser = Parser(
        prog=prog, add_help=False, allow_abbrev=False, formatter_class=form,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog="Example: %s %s" % (prog, example),
    )  # fmt: skip
    parser.color = False  # Python 3.14 would colour what goes through a pipe of ours
    flags = parser.add_argument_group("flags")
    for word in words.split() + ["--json", "--help"]:
        if not word.startswith("-"):
            parser.add_argument(word, metavar=word.upper(), nargs="?", help="a profile's name")
            continue
        takes, purpose = OPTIONS[word]
        names = ["-h", word] if word == "--help" else [word]
        kind = {"metavar": takes} if takes else {"action": "store_true"}
        flags.add_argument(*names, help=purpose, **kind)
    return parser


def overview(prefix=""):
    """The help of the whole program, or of a group of commands."""
    names = [name for name in COMMANDS if name.startswith(prefix)]
    lines = ["Usage: scripto %sCOMMAND [flags]" % prefix, ""]
    lines += ["  %-20s %s" % (name, COMMANDS[name][1]) for name in names]
    return lines + [
        "",
        "Sign in:   scripto auth login-request --email you@example.com",
        "Try it:    scripto demo",
        "More:      scripto COMMAND --help; --json for JSON; --version",
    ]


def find_command(words):
    """(name, further words). Raises invalid-argument, with the nearest name as the hint."""
    for size in (2, 1):
        name = " ".join(words[:size])
        if name in COMMANDS:
            return name, words[size:]
    hint = "see the commands with: scripto --help"
    if not words:
        raise refused("No command is given.", hint)
    typed = " ".join(words[:2] if words[0] in ("auth", "config") else words[:1])
    known = [name for name in COMMANDS if name.split()[-1] == typed]
    known = known[0] if known else nearest(typed, COMMANDS)
    hint = "did you mean: scripto %s" % known if known else hint
    what = "Unknown flag" if typed.startswith("-") else "Unknown command"
    raise refused("%s '%s'." % (what, readable(typed)), hint)


def parse(name, words):
    """The parsed arguments of a command."""
    parser = parser_for(name)
    args, extra = parser.parse_known_args(words)
    if args.help:
        return parser, args
    if extra:
        flags = COMMANDS[name][2].split() + ["--json", "--help"]
        known = nearest(extra[0].partition("=")[0], [f for f in flags if f.startswith("-")])
        hint = "did you mean %s? " % known if known and extra[0].startswith("-") else ""
        kind = "flag" if extra[0].startswith("-") else "argument"
        message = "Unknown %s '%s'." % (kind, readable(extra[0]))
        raise refused(message, hint + "see: %s --help" % parser.prog)
    for word in COMMANDS[name][2].split():
        value = getattr(args, word.lstrip("-").replace("-", "_"))
        if value == "" and word not in ("--email", "--code"):
            raise refused("%s needs a value." % word, "see: %s --help" % parser.prog)
    return parser, args


def run(ctx, words):
    """Finds the command, runs it, and returns its Reply, or None if it has shown it itself."""
    words = [word for word in words if word != "--json"]
    if words[:1] == ["--version"]:
        return Reply({"version": __version__}, ["scripto " + __version__])
    if words[:1] in (["--help"], ["-h"], ["help"]):
        return Reply({"help": overview()}, overview())
    if len(words) == 2 and words[0] in ("auth", "config") and words[1] in ("--help", "-h"):
        lines = overview(words[0] + " ")
        return Reply({"help": lines}, lines)
    name, rest = find_command(words)
    parser, args = parse(name, rest)
    if args.help:
        lines = parser.format_help().splitlines()
        return Reply({"help": lines}, lines)
    return COMMANDS[name][0](ctx, args)


def missing(error):
    """Some Pythons come without ssl, sqlite3 or, as Debian's python3-minimal, even json."""
    module = (error.name or str(error)).lstrip("_")
    return blocked(
        "This Python (%s) has no module '%s'." % (sys.executable, module),
        "install all of Python (Debian, Ubuntu: apt-get install python3; Fedora: dnf install "
        "python3; Alpine: apk add python3), or run scripto with another one",
    )


def main(argv=None):
    """Runs one command; returns the exit status. The command line's one edge: whatever is
    raised below becomes output here."""
    words = sys.argv[1:] if argv is None else argv
    ctx = Context(os.environ, sys.stdin, sys.stdout, sys.stderr, "--json" in words)
    try:
        reply = run(ctx, words)
        return 0 if reply is None else show(ctx, reply)
    except BrokenPipeError:
        return 141  # as the shell reports SIGPIPE
    except ScriptoError as error:
        return show_error(ctx, error)
    except ImportError as error:
        return show_error(ctx, missing(error))
    except KeyboardInterrupt:
        return show_error(ctx, ScriptoError("cancelled", "Interrupted.", "run it again"))
    except Exception as error:  # a bug: no traceback for a user, but enough to find it
        place = error.__traceback__
        while place.tb_next:
            place = place.tb_next
        message = "A bug in scripto: %s at line %d." % (type(error).__name__, place.tb_lineno)
        return show_error(ctx, ScriptoError("internal", message, "report it, with this line"))


if __name__ == "__main__":
    sys.exit(main())
