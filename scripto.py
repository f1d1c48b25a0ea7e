#!/usr/bin/env python3
"""Scripto on the command line: an email, a six-digit code, and this machine is signed in.

One file, standard library only, Python 3.6 or newer; `scripto serve` makes it its own backend.
Each section stands above those that use it, so the story starts at the bottom, in main():
Constants, Errors, Context, Terminal, Door, Profiles, Resolution, HTTP client, Mailbox, Account,
Scripts, Guide; the backend's Mail, Store, Log, Routes, Server and Operator; Doctor; Completion;
Command line.

Imports marked `lazy` would cost most commands more time than all their work.
"""
import sys

if __name__ == "__main__" and not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
    del sys.path[0]  # this file's folder: a download folder, say, with anybody's `email.py`

import errno
import os
import stat
import time

__version__ = "0.2.0"


class Lazy:
    """A module that is loaded when one of its names is used. These three would take as much time as
    the rest of a start."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        value = self.__dict__[name] = getattr(__import__(self._module), name)
        return value


collections, contextlib, re = map(Lazy, ("collections", "contextlib", "re"))


def context_manager(work):
    """contextlib's, which is loaded at the first call."""
    made = []

    def enter(*values):
        if not made:
            made.append(contextlib.contextmanager(work))
        return made[0](*values)

    return enter


# ---- Constants ------------------------

# A profile without `baseUrl` belongs to this one, also in a copy of this file from another backend.
PRODUCTION_URL = "https://scripto.codika.io"
BASE_URL = PRODUCTION_URL  # used when nothing names one; GET /scripto.py puts its own URL here

KEY_PREFIX = "scripto_"
MASKED_KEY = KEY_PREFIX + "•" * 8
KEY_NAME_LENGTH = 100  # the longest name that backends take
EMAIL_LENGTH = 254  # RFC 5321, 4.5.3.1.3, less the angle brackets
REPLY_BYTES = 1 << 20  # the most that the client reads of a reply
API_BYTES = 64 << 20  # the same for `api`
PIECE_BYTES = 64 << 10  # what is read at once
PROFILE_BYTES = 4 << 20  # the most that a profile file may have
HEAD_BYTES = 32 << 10  # the most that the backend reads of request line and header
HEAD_FIELDS = 100  # the most fields in a header
BODY_BYTES = 16 << 10  # the most that the backend reads of a body
TIMEOUT_SECONDS = "30"  # for one request, from name look-up to last byte
LOCK_SECONDS = 30  # to wait for another program that writes the profile file
NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # a FIFO in a file's place must not hang; not on Windows
BUSY = PermissionError if os.name == "nt" else ()  # what a file that others have open raises there
BUSY_SECONDS = 5

# The numbers are those of NIST SP 800-63B for out-of-band codes. They do not have its blessing: its
# revision 4 (3.1.3.1) does not count email as such a channel. A mailed code proves that somebody
# can read that mailbox now, and no more.
CODE_SECONDS = 10 * 60
CODE_ATTEMPTS = 3  # without the code's ticket, and as many with it
LIVE_CODES = 2  # the newest of an email: late mail does no harm
QUARTER, DAY = 15 * 60, 24 * 3600
LIMITS = {  # event: (whose, how many, in how many seconds)
    "wrong": (("email", 15, QUARTER), ("email", 60, DAY), ("address", 100, DAY)),
    "request": (("email from an address", 5, QUARTER), ("email", 10, QUARTER), ("email", 30, DAY),
                ("address", 100, DAY)),
}
KEY_DAYS = 36500  # that a key may last, if it is to end at all
READ_SECONDS = 10  # for a client to send its request, and to take the reply
WRITE_SECONDS = 5  # to wait for another writer of the database
WRITERS = 64  # that wait at once
MAIL_SECONDS = 20  # for a whole delivery
MAILS = 32  # under way at once
CONNECTIONS = 192  # open at once: macOS gives a program 256 descriptors, for mails as well

# ---- Errors ---------------------------
# There is one type. It is raised anywhere and becomes output at two edges: at status_of(), and at
# handle() for the backend.

ERRORS = {  # code: (HTTP status, exit status)
    "invalid-argument": (400, 2),
    "unauthenticated": (401, 4),
    "not-found": (404, 1),
    "failed-precondition": (412, 1),
    "resource-exhausted": (429, 3),
    "internal": (500, 3),
    "network-error": (502, 3),
    "deadline-exceeded": (504, 3),
    "invalid-response": (502, 1),
    "permission-denied": (403, 1),
    "cancelled": (499, 130),
}
NEXT_EMAIL = "Pass --email <your-email> to: scripto auth "
NEXT_CODE = "request a new code with: scripto auth login-request"
NEXT_RETRY = "retry shortly"
NEXT_SIGN_IN = "sign in with: scripto auth login-request --email <your-email>"
NEXT_BACKEND = "check that this is a Scripto backend, or pass another with --api-url"
NEXT_PROFILES = "see the profiles with: scripto use"
NEXT_DOCTOR = "see what is wrong with: "
NEXT_GUIDE = "see GET /llms.txt"


def masked(text):
    """The text, with whatever looks like a key hidden. Of a path that is one of its names only."""
    return re.sub(KEY_PREFIX + "[!-&(-.0-~]{8,}", MASKED_KEY, text)


class ScriptoError(Exception):
    """A key in the message is masked: a user may have mistyped it, a backend may quote it.
    http_status is given where it is not the table's; headers are for HTTP. A code that is not in
    the table exits by its HTTP status."""

    note = ""  # for the backend's log
    unseen = False  # whether there is no home, or no right to look into it
    answered = None  # the HTTP status, where a backend answered
    retry_after = None  # the seconds that the backend said to wait
    body = b""  # of the backend's answer, which `api` shows

    def __init__(self, code, message, next_action, http_status=None, headers=()):
        super().__init__(masked(message))
        self.code, self.message, self.next_action = code, masked(message), next_action
        self.headers = list(headers)
        usual, exit_status = ERRORS.get(code, (500, None))
        self.http_status = status = http_status or usual
        by_http = 4 if status == 401 else 3 if status == 429 or status >= 500 else 1
        self.exit_status = exit_status or by_http

    def envelope(self):
        error = {"code": self.code, "message": self.message, "nextAction": self.next_action}
        more = {"httpStatus": self.answered, "retryAfter": self.retry_after}
        error.update({name: value for name, value in more.items() if value is not None})
        return {"success": False, "error": error}

    def reply(self):
        """For HTTP: (status, object, headers)."""
        return self.http_status, self.envelope(), self.headers


def invalid(message, next_action, http_status=None):
    """invalid-argument: the user has to say it in another way."""
    return ScriptoError("invalid-argument", message, next_action, http_status)


def failed(message, next_action):
    """failed-precondition: something on this machine stands in the way."""
    return ScriptoError("failed-precondition", message, next_action)


def interrupted(cause, next_action):
    """The error `cancelled` for a KeyboardInterrupt, which holds a signal's number unless it is
    Python's own for Ctrl-C. The exit status is 128 plus that number, as in a shell. A second signal
    ends a program whose output is stuck."""
    import signal  # lazy

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    error = ScriptoError("cancelled", "Interrupted.", next_action)
    error.exit_status = 128 + (cause.args or (2,))[0]
    return error


def missing_module(error):
    """Some Pythons lack ssl or sqlite3. Debian's python3-minimal lacks even json."""
    module = (error.name or str(error)).lstrip("_")
    hint = "install all of it (Debian, Ubuntu: apt-get install python3), or use another Python"
    return failed(f"This Python ({sys.executable}) has no module '{module}'.", hint)


def bug(error):
    """What happened, where, and through which lines of this file. Only the system's and SQLite's
    words are quoted: others may hold what came from outside."""
    import traceback  # lazy

    words = [type(error).__name__, getattr(error, "strerror", None)]
    if "sqlite3" in type(error).__module__:
        words[1] = str(error)
    places = traceback.extract_tb(error.__traceback__)
    own = [str(place.lineno) for place in places if place.filename == bug.__code__.co_filename]
    words += ["at", f"{os.path.basename(places[-1].filename)}:{places[-1].lineno}, by line"]
    return " ".join(filter(None, words)) + " " + ", ".join(own)


# ---- Context --------------------------
# What a command may use of the world, and how the command that is to follow is written.


def shell_word(text):
    if os.name == "nt":
        import subprocess  # lazy

        return subprocess.list2cmdline([text])
    import shlex  # lazy

    return shlex.quote(text)


def flagged(flag, value):
    """As a shell takes it; a value that looks like a flag has to be tied to its own."""
    tie = "=" if value.startswith("-") and value != "-" else " "
    return f"{flag}{tie}{shell_word(value)}"


def arguments_of(command):
    """(an argument or flag, whether it is needed), for each that the command takes."""
    return [(word.rstrip("!"), word.endswith("!")) for word in command.takes.split()]


def flags_in(args, flags):
    """Those of these flags that the arguments hold, as a shell takes them. A code is never
    repeated, and a key only as a placeholder."""
    for flag in flags:
        value = getattr(args, flag.lstrip("-").replace("-", "_"), None)
        if flag == "--api-key" and value not in (None, "-"):
            yield "--api-key <your-key>"
        elif value is True:
            yield flag
        elif value and flag != "--code":
            yield flagged(flag, value)


class Context:
    """What a command may use of the world, passed along, so that nothing is global."""

    def __init__(self, commands, options):
        self.stdin, self.stdout, self.stderr = sys.stdin, sys.stdout, sys.stderr
        self.env = os.environ
        self.as_json = False  # until run() has read the command line
        self.warned = set()
        self.commands, self.options = commands, options  # the tables that the parser is made from
        self.command = self.args = None  # of this call, once run() has read them

    def then(self, command, *more):
        """The line that runs that command with those flags of this call that it takes. `more` are
        further words, quoted by the caller; they stand behind --email, as auth.md has it."""
        had = dict(arguments_of(self.commands[self.command])) if self.command else {}
        given = " ".join(more).split()
        flags = [word for word, _ in arguments_of(self.commands[command])
                 if word.startswith("-") and word in had and word not in given]
        words = list(flags_in(self.args, flags))
        place = int("--email" in flags and bool(self.args.email))  # no table has a flag before it
        return " ".join(["scripto", command, *words[:place], *more, *words[place:]])


# ---- Terminal -------------------------
# The only place that writes to the streams or reads standard input. What a person sees passes
# harmless().

ASCII_FORM = str.maketrans({"✓": "[ok]", "✗": "[error]", "●": "*", "•": "*"})
COLOURS = {"✓": "32", "✗": "31", "●": "36", "!": "33"}  # by the mark that a line begins with


def timestamp(seconds):
    """RFC 3339, in UTC; None stays None."""
    return seconds and time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def harmless(text):
    """Makes visible what could steer a terminal: escapes, line breaks, bidirectional marks."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def raw_of(stream):
    """The stream below Python's buffer; with python -u there is no buffer."""
    return getattr(stream.buffer, "raw", stream.buffer)


def is_terminal(stream):
    """On Windows isatty() holds for NUL, too; a real console has a class of its own (PEP 528)."""
    if stream is None or not stream.isatty():
        return False
    return os.name != "nt" or type(raw_of(stream)).__name__ == "_WindowsConsoleIO"


def emit(stream, content):
    """Writes text, or bytes as they are; at a terminal bytes become harmless text. It passes by
    Python's buffer, so that OSError is raised here, and not when Python ends."""
    if stream is None:  # the descriptor was closed before the program started
        raise OSError(errno.EBADF, "it is closed")
    if isinstance(content, bytes) and is_terminal(stream):
        lines = content.decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
        content = "\n".join(map(harmless, lines))
    if isinstance(content, str):
        try:
            content = content.encode(stream.encoding)
        except UnicodeEncodeError:
            plain = content.translate(ASCII_FORM)
            content = plain.encode(stream.encoding, "backslashreplace")
    while content:
        written = raw_of(stream).write(content)
        if written is None:  # a pipe that does not block is full for now
            time.sleep(0.01)
        content = content[written or 0 :]


def emit_lines(ctx, stream, lines, end="\n"):
    plain = "NO_COLOR" in ctx.env or ctx.env.get("TERM") == "dumb" or os.name == "nt"
    marks, shown = COLOURS if is_terminal(stream) and not plain else (), []
    for line in map(harmless, lines):
        if line[:1] in marks:
            line = f"\x1b[{COLOURS[line[0]]}m{line[0]}\x1b[0m{line[1:]}"
        shown.append(line + end)
    emit(stream, "".join(shown))


def answer(ctx, stream, envelope, lines):
    """The lines to that stream. With --json the envelope, in ASCII, and to standard output."""
    if not ctx.as_json:
        return emit_lines(ctx, stream, lines)
    import json  # lazy

    emit(ctx.stdout, json.dumps(envelope) + "\n")


def say(ctx, *lines, end="\n"):
    """To standard error, if that takes anything."""
    try:
        emit_lines(ctx, ctx.stderr, lines, end)
    except (OSError, ValueError):  # it is closed, or full
        pass


def progress(ctx, text):
    """One line at a terminal; the next one takes its place."""
    if is_terminal(ctx.stderr):
        say(ctx, f"{text:50}", end="\r")


def warn(ctx, text):
    """Once for each text: a command may read the profile file more than once."""
    if text not in ctx.warned:
        ctx.warned.add(text)
        say(ctx, "! " + text)


def show(ctx, data, lines, error=None):
    """Without lines the data are the bytes to write, in parts. An error is told in the lines
    already; it adds to the envelope, and its exit status is returned, else 0. Raises
    failed-precondition on a full disk."""
    try:
        if lines is None:
            for part in data:
                emit(ctx.stdout, part)
        else:
            head = error.envelope() if error else {"success": True}
            answer(ctx, ctx.stdout, dict(head, data=data), lines)
        return error.exit_status if error else 0
    except BrokenPipeError:  # nobody reads on, which is status_of()'s business
        raise
    except OSError as error:
        problem = f"The answer cannot be written: {error.strerror}."
        raise failed(problem, "look at where standard output goes") from error


def show_error(ctx, error):
    """Returns the exit status. Standard error is for a Python without json, too, and for a
    standard output that takes nothing."""
    lines = ["✗ " + error.message, "  next: " + error.next_action]
    if error.code == "cancelled" and is_terminal(ctx.stderr):
        say(ctx, "")  # the cursor stands behind ^C, or behind a prompt
    try:
        if not ctx.as_json:
            emit(ctx.stderr, error.body)
        answer(ctx, ctx.stderr, error.envelope(), lines)
    except (OSError, ImportError):
        say(ctx, *lines)
    return error.exit_status


def read_line(ctx, prompt, secret=False):
    """One line of standard input, "" for none. A terminal is prompted, and shows no secret; its end
    (Ctrl-D) is an interruption."""
    try:
        if is_terminal(ctx.stdin):
            if secret:
                import getpass  # lazy

                return getpass.getpass(prompt)
            say(ctx, prompt, end="")
        line = ctx.stdin.buffer.readline(64 << 10) if ctx.stdin else b""
    except (OSError, EOFError, UnicodeDecodeError):  # not for reading, gone, or no text
        return ""
    if not line and is_terminal(ctx.stdin):
        raise KeyboardInterrupt
    # PowerShell puts a byte order mark before it, and cmd a blank behind it.
    return line.decode("utf-8", "replace").strip("\ufeff \t\r\n")


def confirm(ctx, question, *words):
    """Raises cancelled, or invalid-argument where nobody can be asked. The words are those that
    this call has, besides flags."""
    if ctx.args.yes:
        return
    if not is_terminal(ctx.stdin):
        hint = "if you are sure: " + ctx.then(ctx.command, *words, "--yes")
        raise invalid("There is no terminal to ask at.", hint)
    if read_line(ctx, question + " [y/N] ").lower() not in ("y", "yes"):
        raise ScriptoError("cancelled", "Nothing was changed.", "answer y, or add --yes")


def next_bytes(ctx):
    """What has come on standard input, b"" at its end. It passes by Python's buffer: Python cannot
    end well while a thread waits in there."""
    return os.read(ctx.stdin.fileno(), 64 << 10) if ctx.stdin else b""


# ---- Door -----------------------------
# Every value from outside is checked here, once, before anything is read, written or sent. A check
# raises invalid-argument. It returns the value where it makes that plainer.


def misfit(text, what, hint):
    return invalid(f"'{text[:200]}' is not {what}.", hint)


def is_email(text):
    """By the contract's rule. What mail programs may read as another address is none, or the code
    would go to somebody else: comments, groups and quotes (RFC 5322), encoded words (RFC 2047), and
    `you%there@here` or `there!you@here`, which Postfix sends on to `there`."""
    if len(text) > EMAIL_LENGTH or not text.isprintable():
        return False
    local, _, domain = text.partition("@")
    plain = not re.search(r'[\ufffd <>()\[\],;:\\"%!]|=\?.*\?=', text)
    return bool(local) and all(domain.split(".")) and "@" not in domain and plain


def check_email(text, command):
    if not text:
        raise invalid("The email is missing.", NEXT_EMAIL + command)
    if not is_email(text):
        raise misfit(text, "an email address", NEXT_EMAIL + command)
    return text


def check_code(text, hint=NEXT_CODE):
    """The digits of `123456`, `123 456` or `123-456`. The hint is for a malformed code."""
    if not text:
        raise invalid("The code is missing.", NEXT_CODE)
    if not re.match(r"\s*[0-9](?:[ -]*[0-9]){5}\s*\Z", text):
        raise invalid("The code must be six digits.", hint)
    return re.sub("[^0-9]", "", text)


def is_key(text):
    """It has nothing in it that a header or a terminal would trip over."""
    return isinstance(text, str) and bool(re.match(KEY_PREFIX + r"[!-~]+\Z", text))


def check_key(ctx, text, source):
    """White space around a key is no part of it: many secrets end in a line feed. The error quotes
    nothing, since what was pasted by mistake may be another secret."""
    if text == "-" and source == "--api-key":
        text = read_line(ctx, "API key: ", True)
    if not is_key(text.strip()):
        rule = f"must start with '{KEY_PREFIX}' and hold no white space or control characters"
        hint = "pass --api-key <your-key>, or --api-key - for standard input"
        if source == "SCRIPTO_API_KEY":
            hint = "fix or unset SCRIPTO_API_KEY"
        raise invalid(f"The key from {source} {rule}.", hint)
    return text.strip()


PROFILE_NAME = r"[A-Za-z0-9._-]{1,64}\Z"


def check_profile_name(text):
    if text is not None and not re.match(PROFILE_NAME, text):
        raise misfit(text, "a profile name", "use 1 to 64 of: letters, digits, . _ -")


def check_key_name(text):
    if len(text) > KEY_NAME_LENGTH or not text.isprintable():
        rule = f"has at most {KEY_NAME_LENGTH} printable characters"
        raise invalid(f"A key's name {rule}.", "pass another --name")
    return text


def check_number(text, flag, most, least=0):
    if not re.match(r"[0-9]{1,9}\Z", text) or not least <= int(text) <= most:
        raise misfit(text, f"a whole number from {least} to {most}", "pass another " + flag)
    return int(text)


def timeout_of(ctx):
    text = ctx.env.get("SCRIPTO_TIMEOUT") or TIMEOUT_SECONDS
    if not re.match(r"[0-9]{1,5}(\.[0-9]+)?\Z", text) or not float(text):
        raise misfit(text, "a number of seconds (SCRIPTO_TIMEOUT)", "set it to one, or unset it")
    return float(text)


def is_loopback(host):
    """127.0.0.0/8, ::1 (RFC 1122, RFC 4291) and localhost. Names below localhost are none: the DNS
    may know them."""
    form = r"(::1|localhost|127(\.(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])){3})\Z"
    return bool(re.match(form, host))


def ipv6_bytes(host):
    """The address in bytes; None if it is none."""
    import socket  # lazy

    try:
        return socket.inet_pton(socket.AF_INET6, host)
    except OSError:
        return None


def origin_of(url):
    """(scheme, host, port). A key is bound to that."""
    from urllib.parse import urlsplit  # lazy

    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def without_password(url):
    return re.sub(r"^(\w+://)?.*@", r"\1", url)


def check_base_url(ctx, text, source, kind=invalid):
    """The URL with scheme and host in lower case and no slash at its end. Raises an error of that
    kind."""
    form = r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?(/[!$-&(->A-\[\]-~]*)?\Z"
    match = re.match(form, text, re.IGNORECASE | re.ASCII)
    scheme, host, port, path = match.groups("") if match else ("", "", "", "")
    bad = not match or not 0 < int(port[1:] or 1) < 65536
    if bad or (host[0] == "[" and not ipv6_bytes(host[1:-1])):
        shown = without_password(text)[:200]
        hint = "pass one like https://host[:port][/path], with no user in it, to --api-url"
        raise kind(f"From {source}: '{shown}' is not a base URL.", hint)
    scheme, host = scheme.lower(), host.lower()
    trusted = is_loopback(host.strip("[]")) or ctx.env.get("SCRIPTO_ALLOW_HTTP") == "1"
    if scheme == "http" and not trusted:
        problem = f"plain http to {host} would show codes and keys to the network"
        hint = "use https, or set SCRIPTO_ALLOW_HTTP=1 if you trust that network"
        raise kind(f"From {source}: {problem}.", hint)
    port = "" if port == (":443" if scheme == "https" else ":80") else port
    return f"{scheme}://{host}{port}" + path.rstrip("/")


def with_home(path):
    """The path with the home folder in place of `~`, if that is known."""
    try:
        return os.path.expanduser(path)
    except (KeyError, ImportError):  # before Python 3.8, for a user that is only a number
        return path


def xdg_folder(ctx, variable, below_home, otherwise):
    """The folder by the XDG specification: a variable that is empty or relative is ignored."""
    if os.path.isabs(ctx.env.get(variable, "")):
        return ctx.env[variable]
    # On Windows HOME may be Git Bash's /c/Users/you.
    home = with_home(ctx.env.get("USERPROFILE" if os.name == "nt" else "HOME", "~"))
    if not os.path.isabs(home):
        hint = f"set {variable} to a folder of your own, or {otherwise}"
        error = failed("There is no home folder.", hint)
        error.unseen = True
        raise error
    return os.path.join(home, below_home)


def text_of(thing, member):
    """The member; "" if it is no text, or is not there."""
    value = thing.get(member)
    return value if isinstance(value, str) else ""


def check_path(text):
    """The path with its first slash, which may be left out: Git Bash makes a Windows path of words
    that begin with one."""
    path = "/" + text[text[:1] == "/" :]
    if not re.match(r"/(?!/|[^/?]*:)[!\"$-\[\]-~]*\Z", path):
        raise misfit(text, "a path at the backend", "pass one like api/keys")
    return path


def check_header(text):
    """(name, value). A header must not change where a request goes, with which key, or how long it
    is."""
    fixed = "(?!(authorization|host|content-length|transfer-encoding):)"
    if not re.match(fixed + r"[!#-'*+.^`|~\w-]+:[\t -~]*\Z", text, re.IGNORECASE | re.ASCII):
        hint = "pass -H 'Name: value', but not Authorization, Host or Content-Length"
        raise invalid("A header is malformed, or set already.", hint)
    name, _, value = text.partition(":")
    return name, value.strip()


# ---- Profiles -------------------------
# The only place that knows the profile file. It is whole at every moment, 0600 from its first
# byte (main() sets the umask), and what cannot be understood is never overwritten.


def patiently(kinds, seconds, work, *values):
    """What work(*values) returns. While it raises one of these kinds, it is tried again."""
    give_up = time.monotonic() + seconds
    while True:
        try:
            return work(*values)
        except kinds:
            if time.monotonic() > give_up:
                raise
        time.sleep(0.02)


def lock(descriptor):
    """Waits until this process has the lock of that file, which dies with it. False where the file
    system has no locks. Raises TimeoutError."""
    try:
        import fcntl  # lazy

        held, work = BlockingIOError, (fcntl.flock, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # on Windows, where no other failure is known
        import msvcrt

        held, work = OSError, (msvcrt.locking, descriptor, msvcrt.LK_NBLCK, 1)
    try:
        patiently(held, LOCK_SECONDS, *work)
    except held as error:
        raise TimeoutError(errno.ETIMEDOUT, "another program is writing it") from error
    except OSError:
        return False
    return True


def remove(path):
    with contextlib.suppress(OSError):  # it is gone, or a folder, or not ours
        os.unlink(path)


def user_id():
    """-1 on Windows, which has no such numbers."""
    return os.geteuid() if hasattr(os, "geteuid") else -1


def give(path):
    """What root makes belongs to the owner of the folder it is in, so that nobody is locked out.
    Nothing happens for another user, or where the system does not let root do so."""
    with contextlib.suppress(OSError):
        folder = os.stat(os.path.dirname(path))
        if user_id() == 0 and folder.st_uid:
            os.chown(path, folder.st_uid, folder.st_gid, follow_symlinks=False)


def make_folders(folder):
    """Makes what is missing of it, with mode 0700. Raises OSError."""
    outer = os.path.dirname(folder)
    if outer != folder and not os.path.isdir(folder):
        make_folders(outer)
        with contextlib.suppress(FileExistsError):  # another program was faster
            os.mkdir(folder, 0o700)
            give(folder)


def refuse_links(path):
    """Raises failed-precondition for root, where a link is on that path, and it or a folder above
    it is somebody else's: such a link could lead what root writes anywhere."""
    step, linked = os.path.normpath(path), False
    while user_id() == 0 and step != os.path.dirname(step):
        linked = linked or os.path.islink(step)
        if linked and os.lstat(step).st_uid:
            hint = "run this as that folder's owner, or put what the link leads to in its place"
            raise failed(f"Root follows no link in somebody else's folder: {path}.", hint)
        step = os.path.dirname(step)


class ProfileFile:
    """Every failure is failed-precondition and names the path."""

    def __init__(self, ctx):
        otherwise = "SCRIPTO_API_KEY, which needs no file"
        self.ctx = ctx
        home = xdg_folder(ctx, "XDG_CONFIG_HOME", ".config", otherwise)
        self.folder = os.path.join(home, "scripto")
        self.shown = os.path.join(self.folder, "config.json")
        refuse_links(self.shown)
        self.path = os.path.realpath(self.shown)  # a link stays: its target is replaced

    def trouble(self, what, hint=None):
        move, paths = "move" if os.name == "nt" else "mv", (self.shown, self.shown + ".old")
        hint = hint or f"mend it, or move it away: {move} " + " ".join(map(shell_word, paths))
        return failed(f"The profile file {self.shown} {what}.", hint)

    def content(self):
        """The file's bytes, b"{}" without a file. Raises OSError."""
        try:
            flags = os.O_RDONLY | NONBLOCK
            descriptor = patiently(BUSY, BUSY_SECONDS, os.open, self.path, flags)
        except FileNotFoundError:
            return b"{}"
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > PROFILE_BYTES:
                raise self.trouble("is not a regular file, or is too large")
            if user_id() and status.st_uid not in (0, user_id()):  # it might name a thief's URL
                raise self.trouble(f"belongs to user {status.st_uid}, who is not trusted")
            if status.st_mode & 0o077 and os.name == "posix":
                warn(self.ctx, f"others have access to {self.shown}, until the next write")
            return file.read(PROFILE_BYTES)

    def read(self):
        """The file's object, with unknown members; "profiles" is always there."""
        import json  # lazy

        try:
            state = json.loads(self.content().decode("utf-8-sig"))
            profiles, active = state.setdefault("profiles", {}), state.get("activeProfile")
            sound = all(isinstance(each, dict) for each in [profiles, *profiles.values()])
            if not sound or active is not None and not text_of(state, "activeProfile"):
                raise ValueError
        except OSError as error:
            trouble = self.trouble("cannot be read: " + error.strerror)
            trouble.unseen = isinstance(error, (PermissionError, NotADirectoryError))
            raise trouble from error
        except (ValueError, RecursionError, AttributeError):  # no object where one has to be
            raise self.trouble("is not JSON that holds profiles")
        return state

    def open_lock(self):
        """The lock file, in the folder that is made for it. Raises OSError."""
        folder, path = os.path.dirname(self.path), self.path + ".lock"
        refuse_links(path)
        make_folders(folder)
        # What a link leads to may be for others, too.
        if folder == self.folder and os.stat(folder).st_mode & 0o077:
            with contextlib.suppress(OSError):  # it is somebody else's
                os.chmod(folder, 0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        give(path)
        return open(descriptor, "rb", 0)

    def replace(self, beside, content, spare):
        """Writes the content to the path `beside`, through to the disk, and renames that. For a
        moment it is so many bytes longer, which shows that there is room. Raises OSError."""
        remove(beside)  # a writer that died left it
        try:
            descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            give(beside)
            with open(descriptor, "wb") as file:
                file.write(content + b" " * spare)
                file.flush()
                os.fsync(descriptor)
                file.truncate(len(content))
            patiently(BUSY, BUSY_SECONDS, os.replace, beside, self.path)
        except OSError:
            remove(beside)
            raise
        with contextlib.suppress(OSError):  # no rename is lost; Windows opens no folders
            descriptor = os.open(os.path.dirname(self.path), os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def change(self, work, *values, spare=0):
        """Replaces the file after work(state, *values) under the lock, and returns what that
        returns. If it raises, nothing changes. A disk needs room for `spare` more bytes."""
        import json  # lazy

        try:
            with self.open_lock() as file:
                own = "" if lock(file.fileno()) else "." + os.urandom(4).hex()
                state = self.read()
                result = work(state, *values)
                content = (json.dumps(state, indent=2, allow_nan=False) + "\n").encode("ascii")
                if len(content) > PROFILE_BYTES:
                    raise ValueError
                self.replace(f"{self.path}{own}.tmp", content, spare)
            return result
        except (RecursionError, ValueError):
            raise self.trouble("is too large or nested too deeply, or has a number that is none")
        except OSError as error:
            hint = "make that possible, or set XDG_CONFIG_HOME or SCRIPTO_API_KEY instead"
            if error.errno == errno.EBUSY:  # a single file that is mounted into a container
                hint = "mount its folder instead of the file, or use SCRIPTO_API_KEY"
            raise self.trouble("cannot be written: " + error.strerror, hint) from error


IDENTITY = ("apiKey", "email", "userId", "keyId", "expiresAt")


def find_profile(state, name, hint=NEXT_PROFILES):
    """Raises not-found, invalid-argument for what can be no name."""
    if name not in state["profiles"]:
        check_profile_name(name)
        raise ScriptoError("not-found", f"There is no profile '{name}'.", hint)
    return state["profiles"][name]


def url_of(profile):
    """Where the profile's key was minted."""
    url = profile.get("baseUrl")
    return PRODUCTION_URL if url is None else str(url)


def name_for(state, named, identity, base_url):
    """The name of that identity's profile. The identity is the same where the email is (or the key,
    if no email is known) and the backend. A name given by hand that is another identity's is
    failed-precondition; one made from the email gets a number."""
    profiles = state["profiles"]
    known = "email" if identity.get("email") else "apiKey"
    own = [name for name, profile in profiles.items()
           if text_of(profile, known).lower() == identity[known].lower()
           and url_of(profile).rstrip("/") == base_url]
    if named in profiles and named not in own:
        problem = f"The profile '{named}' is another identity's, of {url_of(profiles[named])}."
        hint = f"remove it with: scripto logout {named}, or sign in with another --profile-name"
        raise failed(problem, hint)
    local = identity.get("email", "").partition("@")[0].lower()
    first = re.sub("[^a-z0-9._-]+", "-", local)[:60].strip("-") or "default"
    if named:
        return named
    if own:
        return first if first in own else own[0]
    numbered = (f"{first}-{number}" for number in range(2, len(profiles) + 2))
    return next(name for name in (first, *numbered) if name not in profiles)


def store_profile(state, name, identity, base_url):
    """Stores a key, with what is known of its IDENTITY, and makes it active. Returns (name, the
    profile as it was before, {} for a new one). Members that are not ours stay."""
    profile = state["profiles"].setdefault(name, {})
    former, now = dict(profile), timestamp(time.time())
    for member in IDENTITY + ("baseUrl",):
        profile.pop(member, None)
    profile.update(identity, updatedAt=now)
    if base_url != PRODUCTION_URL:
        profile["baseUrl"] = base_url
    profile.setdefault("createdAt", now)
    state["activeProfile"] = name
    return name, former


def activate(state, name):
    """Returns the state."""
    find_profile(state, name)
    state["activeProfile"] = name
    return state


def remove_profiles(state, names):
    """Returns the state. If the active profile goes, none is active: who acts as whom is never
    guessed."""
    for name in names:
        state["profiles"].pop(name, None)
    if state.get("activeProfile") not in state["profiles"]:
        state["activeProfile"] = None
    return state


# ---- Resolution -----------------------
# Which key and which base URL are in force, and why. Nothing is sent or written here.


class Target:
    """`name` is that of the profile in force, None for none. `profile` is the one that the key is
    from, {} for a key that was given."""

    def __init__(self, base_url, url_source, key, key_source, name, profile):
        self.base_url, self.url_source = base_url, url_source
        self.key, self.key_source = key, key_source
        self.name, self.profile = name, profile


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


def no_key(problem, hint=NEXT_SIGN_IN):
    return ScriptoError("unauthenticated", problem, hint)


def profile_in_force(ctx, named, needed, hint=NEXT_PROFILES):
    """(name, profile) by name, else by SCRIPTO_PROFILE, else the active one; (None, {}) for none.
    needed: its key is asked for. Without that, a file that may not be seen counts as none, and
    SCRIPTO_PROFILE may name a profile that is not there yet. The hint is for an unknown name."""
    try:
        state = ProfileFile(ctx).read()
    except ScriptoError as error:
        if needed or named is not None or not error.unseen:
            raise
        return None, {}
    if named is not None:
        return named, find_profile(state, named, hint)
    name, active = ctx.env.get("SCRIPTO_PROFILE"), state.get("activeProfile")
    if name and needed and name not in state["profiles"]:
        raise no_key(f"There is no profile '{name}' yet, which SCRIPTO_PROFILE names.")
    if name:
        return name, state["profiles"].get(name, {})
    if active is None and needed and state["profiles"]:
        raise no_key("No profile is active.", "choose one with: scripto use <name>")
    way_out = "choose one with: scripto use <name>, or sign in again with --api-url"
    return active, {} if active is None else find_profile(state, active, way_out)


def key_of(profile):
    key = text_of(profile, "apiKey").strip()
    if not is_key(key):
        raise no_key("There is no API key.")
    return key


def stored_url(ctx, name, profile):
    """Raises failed-precondition: a wrong one is the file's fault, not the user's."""
    return check_base_url(ctx, url_of(profile), f"profile '{name}'", failed)


def stored_target(ctx, name, profile, url=None, url_source=None):
    """The Target with the key of that profile, at that URL or its own. Raises failed-precondition
    where that URL is of another origin than its own."""
    key, own = key_of(profile), stored_url(ctx, name, profile)
    if url and origin_of(url) != origin_of(own):
        problem = f"belongs to {own} and is not sent to {url} (from {url_source})"
        way_in = NEXT_SIGN_IN + " " + flagged("--api-url", url)
        hint = f"drop {url_source}, pass a key of that backend to --api-key -, or {way_in}"
        raise failed(f"The key of profile '{name}' {problem}.", hint)
    return Target(url or own, url_source or "profile", key, "profile", name, profile)


def resolve(ctx, args, with_key=True):
    """The Target, by the contract's order. Raises unauthenticated without a key that is needed."""
    key = key_source = name = None
    profile, hint = {}, NEXT_PROFILES
    if not with_key:
        hint += "; to sign in as a new one, pass --profile-name instead of --profile"
    elif args.profile is None or args.api_key is not None:  # --profile goes before the environment
        words = "--api-key", args.api_key, "SCRIPTO_API_KEY"
        key, key_source = given(ctx, check_key, *words)
    url, url_source = given_url(ctx, args)
    stored = with_key and not key
    if stored or not url or args.profile is not None:
        name, profile = profile_in_force(ctx, args.profile, stored, hint)
    if stored:
        return stored_target(ctx, name, profile, url, url_source)
    if not url and "baseUrl" in profile:
        url, url_source = stored_url(ctx, name, profile), "profile"
    elif not url:
        url, url_source = default_url(ctx), "default"
    return Target(url, url_source, key, key_source, name, {})


def expiry_warning(target):
    """(what there is to say, next action) in the last seven days of the key, else None. Times in
    UTC can be compared as text (RFC 3339, 5.1)."""
    ends = text_of(target.profile, "expiresAt")
    if not ends or ends > timestamp(time.time() + 7 * DAY):
        return None
    email = text_of(target.profile, "email")
    email = flagged("--email", email) if email else "--email <your-email>"
    hint = f"sign in again with: scripto auth login-request {email} --profile {target.name}"
    return f"the key of profile '{target.name}' ends at {ends}", hint


# ---- HTTP client ----------------------
# The only place that sends a request. It follows no redirect, because every request carries a key,
# a code or an email.


def bad_reply(url, what, status=None):
    """invalid-response. status: of the reply, if there was one."""
    error = ScriptoError("invalid-response", f"{url} {what}.", NEXT_BACKEND)
    error.answered = status
    return error


def proxy_for(url):
    """The proxy that the environment names for the URL, by urllib's rules; None for loopback.
    Raises failed-precondition for a proxy that is not on plain http: urllib would speak http to it
    all the same, or quote it in an error, with its password."""
    import urllib.request as library  # lazy

    scheme, host, port = origin_of(url)
    if is_loopback(host) or library.proxy_bypass_environment(f"{host}:{port}"):
        return None
    proxy = library.getproxies_environment().get(scheme)
    if proxy and not re.match(r"(?i)(http://)?([^@/]*@)?(\[[^]@/]+\]|[^:@/]+)(:\d+)?/?\Z", proxy):
        hint = f"set {scheme}_proxy to http://host:port, or name {host} in no_proxy"
        raise failed(f"The proxy in {scheme}_proxy cannot be used.", hint)
    return proxy


def client_tls():
    """For a client: a certificate has to be known, and good for its name."""
    import ssl  # lazy

    try:
        return ssl.create_default_context()
    except OSError as error:
        hint = "check SSL_CERT_FILE, SSL_CERT_DIR and SSLKEYLOGFILE"
        raise failed(f"TLS cannot be set up: {error}.", hint) from error


def within(seconds, work, *values, meanwhile=None):
    """What work(*values) returns or raises, or socket.timeout. meanwhile() gets the seconds that
    are left, several times a second. The work is done in a thread, since the time-out of a socket
    bounds neither a name look-up nor a peer that sends a byte a second."""
    import socket  # lazy
    import threading

    results, errors, give_up = [], [socket.timeout()], time.monotonic() + seconds

    def run():
        try:
            results.append(work(*values))
        except Exception as error:  # whatever it is, it is raised below
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise failed("No thread can be started.", "allow more processes (ulimit -u)") from error
    while meanwhile and thread.is_alive() and time.monotonic() < give_up:
        meanwhile(give_up - time.monotonic())
        thread.join(0.2)
    thread.join(max(give_up - time.monotonic(), 0))
    if results:
        return results[0]
    raise errors[-1]


def body_of(reply, most):
    """The body, in pieces: one read() would ask for as much memory as the peer says it needs. Of a
    body with more than `most` bytes it is a start that has more bytes, too."""
    import http.client  # lazy

    body, read = bytearray(), reply.read1 if reply.chunked else reply.read
    while len(body) <= most:
        part = read(PIECE_BYTES)
        if not part and reply.length:
            raise http.client.IncompleteRead(body, reply.length)
        if not part:
            break
        body += part
    return bytes(body)


def exchange(method, url, headers, body, seconds, most):
    """One request. Returns (status, reason, headers, body as bytes), whatever the status is.
    Certificates are checked. Each wait for the network ends after `seconds`; within() bounds the
    whole. Raises invalid-response for a body of more than `most` bytes, and OSError, HTTPException
    or ValueError for what goes wrong on the way."""
    import urllib.request as library  # lazy

    scheme, proxy = origin_of(url)[0], proxy_for(url)
    opener = library.OpenerDirector()
    opener.add_handler(library.ProxyHandler({scheme: proxy} if proxy else {}))
    opener.add_handler(library.HTTPHandler())
    if scheme == "https":
        tls = client_tls()  # first: without ssl there is no HTTPSHandler either
        opener.add_handler(library.HTTPSHandler(context=tls))
    request = library.Request(url, body, headers, method=method)
    with opener.open(request, timeout=seconds) as reply:
        content = body_of(reply, most)
    if len(content) > most:
        raise bad_reply(url, "sent too large a reply", reply.status)
    return reply.status, reply.reason, reply.headers, content


def trouble_with(url, seconds, error):
    """The error for what the network, or whoever is there, did to a request."""
    import socket  # lazy

    reason = getattr(error, "reason", None)  # urllib wraps what happens before the reply
    error = reason if isinstance(reason, Exception) else error
    where = "%s:%d" % origin_of(url)[1:]
    why = getattr(error, "strerror", None) or error
    hint = "check that it runs there, the network, any proxy and the base URL (--api-url)"
    if "ssl" in type(error).__module__:  # some Pythons have no ssl to ask
        text = f"TLS with {where} failed: {why}."
        hint = "check the URL; install ca-certificates, or set SSL_CERT_FILE to who signed theirs"
    elif isinstance(error, socket.timeout):
        text = f"{where} did not answer within {seconds:g} seconds."
        hint = f"try again, or allow more time: SCRIPTO_TIMEOUT={seconds * 2:g}"
    elif isinstance(error, (OSError, UnicodeError)):
        text = f"{where} cannot be reached: {why}."
    else:
        return bad_reply(url, "broke off its reply, or sent what is not HTTP")
    return ScriptoError("network-error", text, hint)


def send(ctx, target, request, most=REPLY_BYTES):
    """Sends a request (method, path, headers, body or None) to the target. Its key, if it has one,
    goes along as a bearer token (RFC 6750). Returns what exchange() does. SCRIPTO_TIMEOUT bounds
    all of it. Raises network-error and invalid-response."""
    import http.client  # lazy

    method, path, more_headers, body = request
    headers = {"User-Agent": "scripto/" + __version__, "Accept": "application/json"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    headers.update(more_headers)
    if target.key is not None:
        headers["Authorization"] = "Bearer " + target.key
    url, seconds = target.base_url + path, timeout_of(ctx)
    try:
        return within(seconds, exchange, method, url, headers, body, seconds, most)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise trouble_with(url, seconds, error) from error


def number(text):
    """A JSON number from outside, as a float, since a huge integer would cost seconds. None for one
    that is too large: JSON has no word for infinity."""
    value = float(text)
    return value if abs(value) < float("inf") else None


def parse_json(content, number=number):
    """The JSON object; {} for another value, None for what is no JSON (RFC 8259: UTF-8, no NaN)."""
    import json  # lazy

    try:
        value = json.loads(content.decode("utf-8"), parse_int=number, parse_float=number,
                           parse_constant=int)  # int() refuses the word
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else {}


def backend_error(ctx, target, reply, hint=None):
    """The error that send() got as a reply, word for word. What it leaves out follows from the
    status. The hint is for a 400 without one."""
    status, _, headers, body = reply
    value = parse_json(body) or {}
    said = value["error"] if isinstance(value.get("error"), dict) else {}
    usual = {  # by the status, or by its first digit
        401: ("unauthenticated", NEXT_SIGN_IN), 403: ("permission-denied", None),
        404: ("not-found", None), 429: ("resource-exhausted", NEXT_RETRY),
        4: ("invalid-argument", hint), 5: ("internal", NEXT_RETRY),
    }
    code, next_action = (usual.get(status) or usual.get(status // 100)
                         or ("invalid-response", NEXT_BACKEND))  # a redirect, for one
    code = masked(text_of(said, "code")) or code
    plain = "refused the key." if status == 401 else f"answered HTTP {status}."
    # Beside the "Unauthorized" of /api/auth/me a message may stand.
    message = text_of(said, "message") or text_of(value, "message") or "The backend " + plain
    next_action = masked(text_of(said, "nextAction")) or next_action
    if (status, next_action) == (401, NEXT_SIGN_IN):
        instead = {"SCRIPTO_API_KEY": "fix or unset SCRIPTO_API_KEY, or ",
                   "--api-key": "pass another --api-key, or "}
        next_action = instead.get(target.key_source, "") + NEXT_SIGN_IN
    error = ScriptoError(code, message, next_action or NEXT_DOCTOR + ctx.then("doctor"), status)
    error.answered, wait = status, headers.get("Retry-After") or ""
    if re.match(r"[0-9]{1,9}\Z", wait):  # it may be a date, too (RFC 9110, 10.2.3)
        error.retry_after = int(wait)
    return error


def call(ctx, target, method, path, part, body=None, hint=None):
    """Returns that part of a success, which has to be an object. The hint is for a 400 without
    one. Raises the backend's error, and as send() does."""
    import json  # lazy

    url = target.base_url + path
    content = body and json.dumps(body).encode("ascii")
    reply = send(ctx, target, (method, path, {}, content))
    status, value = reply[0], parse_json(reply[-1])
    if value is None and status < 500 and status not in (401, 429):
        raise bad_reply(url, f"answered HTTP {status}, and not in the contract's JSON", status)
    if status >= 300 or value.get("success", True) is not True:
        raise backend_error(ctx, target, reply, hint)
    if not isinstance(value.get(part), dict):
        raise bad_reply(url, f"did not answer with '{part}' in JSON", status)
    return value[part]


# ---- Mailbox --------------------------
# Where `auth login` finds the code. A source is opened once and gives a function that looks: each
# call returns all that is new since then. Of a mail only six digits leave this section: what
# strangers write reaches neither screen nor log.

MAIL_BYTES = 2 << 20  # that are looked at of one mail, or of what a command prints
FILE_BYTES = 64 << 20  # that are read of one mail, or of what came to an mbox
FIELD_BYTES = 8 << 10  # of a header field
PARTS = 300  # of a mail
PAGE_LENGTH = 120000  # of a mail's HTML and plain text together, in characters
TEXT_LENGTH = 40000  # of what all that shows
LIKELY = 4  # the rank of a code that is tried at once;
UNLIKELY_SECONDS = 2  # others wait for a better one
RECIPIENTS = ("delivered-to", "envelope-to", "x-envelope-to", "x-original-to", "x-forwarded-to",
              "to", "cc")
NEXT_SOURCE = "see what --code-from takes: scripto auth login --help"
NEXT_MAIL_SERVER = "check --code-from; SSL_CERT_FILE may name who signed a certificate"
NEXT_PASSWORD = ("check USER and SCRIPTO_MAIL_PASSWORD; the server may want an app password, or an"
                 " OAuth token in SCRIPTO_MAIL_TOKEN")

# Stems of words, told apart by |, compared without case and accents. Where several begin at one
# place, a word for another number wins, then one for a code.
OTHER_WORDS = (
    r"(?:bar|qr.?|uni|en|de|zip.?|post|postal |promo |discount |voucher |coupon |error |area |"
    r"order |tracking )code|"
    r"order|invoice|receipt|\bref\b|referen|ticket|\bcase\b|booking|\bids?\b|\btel|phone|\bfax|"
    r"\bcall|\bbox\b|total|amount|balance|customer|account|number|\bno\b|\bnr\b|\bzip\b|parcel|"
    r"meeting|member|device|transaction|people|bestell|rechnung|kund|vorgang|mitglied|auftrag|"
    r"command|factur|faktur|client|colis|pedido|folio|operaci|reserva|fatura|protocolo|ordin|"
    r"fattura|klant|bestill|ordre|tilaus|lasku|asiakas|puhelin|zamowien|objednav|paczk|numer|"
    r"cislo|rendeles|szamla|comanda|siparis|islem|pesanan|tagihan|nomor|đon hang|заказ|счет|номер|"
    r"телефон|договор|замовл|рахун|παραγγελ|τιμολογ|τηλ|طلب|فاتور|هاتف|رقم|سفارش|فاکتور|شماره|"
    r"הזמנ|חשבונית|טלפון|מספר|ऑर्डर|สั่งซื้อ|โทร|注文|請求|電話|番号|주문|청구|전화|订单|訂單|发票|發票|手机|手機|电话|號碼|号码|"
    r"合同|编号|编码|邮编|尾号|设备")
CODE_WORDS = (
    r"code|codi|\bcodu?l?\b|kood|kod|koð|passwor|passord|kennwort|wachtwoord|losenord|"
    r"mot de passe|contrasena|\bclave|senha|palavra.passe|parol|has[lł]o|heslo|geslo|lozink|jelszo|"
    r"salasana|sifre|sandi|slaptazod|one.time|einmal|\botp|\bpin(?![a-z])|\b[ms]?tan(?![a-z])|"
    r"\btoken|2fa|two.factor|\bma (?:otp|xac|kiem|đang|truy|bao|cua|nay)|код|парол|κωδικ|կոդ|კოდ|"
    r"קוד|סיסמ|رمز|كود|كلمة.{0,3}مرور|کد|کوڈ|कोड|ओटीपी|पासवर्ड|কোড|કોડ|ਕੋਡ|குறியீ|కోడ్|ಕೋಡ್|കോഡ്|"
    r"කේත|รหัส|ລະຫັດ|កូដ|ကုဒ်|ኮድ|(?<![号號编編条條邮郵区區尺])[码碼]|口令|コード|パスワード|ワンタイム|(?:認証|確認|暗証)番号|코드|"
    r"(?:인증|확인|비밀) ?번호")
ENTRY_WORDS = (
    r"sign.?in|log.?in\b|\b(?:use|enter) (?=\d)|verif|confirm|conferm|authenti|activat|anmeld|"
    r"einlogg|bestatig|connexion|connecter|sesion|acced|access|acess|inlog|aanmeld|bevestig|"
    r"logga in|logge? (?:in|pa)|bekraft|kirjau|vahvist|logow|potwierd|prihlas|overen|potvrd|"
    r"prijav|belep|megeros|giris|dogrula|onay|oturum|đang nhap|\bxac |masuk|konfirm|вход|войти|"
    r"вхід|увійти|подтвер|підтвер|συνδε|επαληθ|επιβεβ|כניס|התחבר|אימות|دخول|التحقق|ورود|تایید|"
    r"लॉगिन|सत्याप|เข้าสู่ระบบ|ยืนยัน|ログイン|認証|確認|로그인|인증|확인|登录|登入|验证|驗證|认证|認證|确认|確認")
OTHER, CODE, ENTRY = KINDS = "\1\2\3"  # what such words become, so that each is looked for once
MARK, WORD = "[\1-\3]", "[^\\W_]|[\1-\3]"
SENTENCE = r"[.!?](?: |\Z)|。"  # where one ends

# A code is in no longer number, amount, address or path; G- or a few more letters may lead it in.
MONEY = "[$£¥\u20a0-\u20cf]"
CODE_FORM = (
    r"(?:(?<![\da-z])[a-z]{1,4} ?- ?|(?<![\da-z])(?<![\da-z]-))"
    r"(?<!\d[.,:/-])(?:(?<!\d )|(?<=[:.-]\d\d )|(?<=\b20\d\d ))(?<![+&@%/\\])(?<!\*\*\*)"
    rf"(?<!{MONEY})(?<!{MONEY} )(?<!\b(?:eur|usd|gbp|chf|inr) )(?<!\b(?:rs|rp)[ .])"
    r"(\d{6}|(?:\d{3}[\s-]{1,3}\d{3}|\d\d[ -]\d\d[ -]\d\d|\d(?:[\s-]{1,3}\d){5})(?! \d))"
    r"(?![\da-z]|-[\da-z]|[.,:]\d|\*+\d|[%/@])"
    rf"(?! ?(?:{MONEY}|(?:eur|usd|gbp|chf|inr|kr|zł|kc|ft|lei|tl|đ)\b|円|元|원|руб|грн|บาท|ريال))")
LINE_BREAKS = set(  # the tags that break a line
    "address article aside blockquote body br button caption center dd div dl dt fieldset footer"
    " form h1 h2 h3 h4 h5 h6 header hr input legend li main nav ol option p pre section table td"
    " th tr ul".split())
HIDING = ("div", "p", "span", "td", "tr", "table")  # the tags that hide something, if they are told


def shortened(content, most):
    """Bytes or text, at most so much, from both ends."""
    half = max(most, 0) // 2
    return content if len(content) <= most else content[:half] + content[len(content) - half :]


def decoded(content, charset):
    try:
        return content.decode(charset, "replace")
    except (LookupError, ValueError):  # unknown, or none at all
        return content.decode("utf-8", "replace")


class PageReader:
    """What html.parser's class, which it is joined with below, calls while it reads a page. `texts`
    gets what is shown, with line breaks as they look; `asides` what stands for pictures, and what
    is hidden."""

    def begin(self):
        self.texts, self.asides, self.code, self.depth = [], [], False, 0

    def set_cdata_mode(self, *tag, **more):
        """Is never entered: a style sheet without an end would swallow the rest."""

    def handle_starttag(self, tag, attributes):
        had = {name: value or "" for name, value in attributes}
        self.code = tag in ("style", "script", "title")
        if self.depth:
            self.depth += tag == self.hidden
        elif tag in HIDING and re.search(r"display\s*:\s*none", had.get("style", "")):
            self.hidden, self.depth = tag, 1
        value = had.get("value", "") if tag == "input" and had.get("type") != "hidden" else ""
        self.add("\n" * (tag in LINE_BREAKS) + value)
        self.asides.append(had.get("alt", ""))

    def handle_endtag(self, tag):
        self.code = False
        self.depth -= self.depth > 0 and tag == self.hidden
        self.add("\n" * (tag in LINE_BREAKS))

    def handle_data(self, text):
        self.add("" if self.code else re.sub(r"\s+", " ", text))

    def add(self, text):
        (self.asides if self.depth else self.texts).append(text)


def page_texts(page, most):
    """(the text of HTML, what is aside). What html.parser would look at again and again, or trip
    over, goes first: comments, declarations, endless tags and numbers, and a `<` that begins no
    tag."""
    from html.parser import HTMLParser  # lazy

    page = re.sub(r"(?s)<!--.*?(?:-->|\Z)|<[!?][^<>]*>|<[^<>]{2000,}>|&#\w{9,}", "", page)
    page = re.sub(r"<(?![^<>]*>)", "&lt;", shortened(page, most))
    reader = type("Reader", (PageReader, HTMLParser), {})()
    reader.begin()
    try:
        reader.feed(page)
        reader.close()
    except (AssertionError, NotImplementedError, ValueError):
        return re.sub("<[^<>]*>", "\n", page), ""
    return "".join(reader.texts), "\n".join(reader.asides)


def split_part(part):
    """({name in lower case: [field]}, body) of a mail, or of a part of one."""
    head, _, body = (re.split(rb"(\A\r?\n|\r?\n\r?\n)", part, 1) + [b"", b""])[:3]
    fields = collections.defaultdict(list)
    for field in re.split(rb"\r?\n(?![ \t])", head):
        name, _, value = field.partition(b":")
        fields[name.decode("latin-1").strip().lower()].append(value[:FIELD_BYTES])
    return fields, body


def parts_of(content):
    """Yields (fields, body) of a mail and of each part in it, however deep: what stands between
    any of its boundaries (RFC 2046). So a mail that lacks its end or its middle has parts, too."""
    form = rb'(?i)\bboundary[ \t]*=[ \t]*"?([^"\r\n;]{1,70})'
    names = {b"--" + name.strip() for name in re.findall(form, content)}
    ends = names | {name + b"--" for name in names}
    mark = os.urandom(16)

    def divide(line):
        return mark if line.group().strip() in ends else line.group()

    for part in re.sub(rb"(?m)^--[^\n]*\n?", divide, content).split(mark, PARTS):
        fields, body = split_part(part)
        yield fields, body
        if b"message/rfc822" in b"".join(fields["content-type"]).lower():
            yield split_part(body)


def header_text(field):
    """A header field's text, its encoded words decoded (RFC 2047)."""
    from email import errors, header  # lazy

    text = decoded(field, "utf-8")
    try:
        return "".join(part if isinstance(part, str) else decoded(part, charset or "utf-8")
                       for part, charset in header.decode_header(text))
    except (errors.MessageError, ValueError):
        return text


def body_text(fields, body):
    """Decoded by what its header says (RFC 2045, 6), as far as that is so."""
    import binascii  # lazy

    encoding = b"".join(fields["content-transfer-encoding"]).strip().lower()
    if encoding == b"base64":
        body = re.sub(rb"[^0-9A-Za-z+/]", b"", body)
        body = binascii.a2b_base64(body[: len(body) - (len(body) % 4 == 1)] + b"==")
    elif encoding == b"quoted-printable":
        body = binascii.a2b_qp(body)
    body = shortened(body, 4 * PAGE_LENGTH)
    # What is ruled out is for names: a text would take it for ever.
    form = rb"(?i)charset=[\"']?(?!idna|punycode)([^\s\"';]+)"
    charset = re.search(form, b"".join(fields["content-type"]))
    return decoded(body, charset.group(1).decode("latin-1") if charset else "utf-8")


def read_mail(content):
    """(whom a mail is to, its texts: subject, plain text, HTML, what is aside)."""
    plain, pages, asides, left = [], [], [], PAGE_LENGTH
    parts = list(parts_of(content))
    for fields, body in parts:
        kind = b"".join(fields["content-type"]).lower()
        if left <= 0 or kind and not re.search(b"text/|html|multipart/", kind):
            continue
        text = body_text(fields, body)
        if b"html" in kind:
            page, aside = page_texts(text, left)
            pages.append(page)
            asides.append(aside)
        else:
            plain.append(shortened(text, left))
        left -= 100 + len(text)  # a part takes time, however short it is
    fields = parts[0][0]
    to = [header_text(b", ".join(fields[name])[:FIELD_BYTES]) for name in RECIPIENTS]
    return ", ".join(to), [header_text(b"".join(fields["subject"][:1])), *plain, *pages, *asides]


def folded(text):
    """Text as it is compared: without case, accents and what has no width. Digits keep their
    script, which int() knows."""
    import unicodedata  # lazy

    def plain(text):
        return "".join(c for c in text if unicodedata.category(c) not in ("Mn", "Me", "Cf"))

    return plain(unicodedata.normalize("NFKD", plain(text)).lower())


def marked(text, most):
    """Text without links, with a mark in place of each word that tells what a number is."""
    text = folded(re.sub("[，：；！？]", r"\g<0> ", text))  # what is wide has a space in it
    text = shortened(text, most)
    text = re.sub(r"https?://[!-~]+|www\.[!-~]+|[0-9a-z]\.[a-z]{2,24}[/?#][!-~]*", " ", text)
    text = re.sub("[\u2010-\u2015\u2212]", "-", text)
    words = "|".join(f"({folded(each)})" for each in (OTHER_WORDS, CODE_WORDS, ENTRY_WORDS))
    text = re.sub("(?a)" + words, lambda word: KINDS[word.lastindex - 1], text)
    return re.sub(r"\s+", lambda space: "\n" if "\n" in space.group() else " ", text)


def candidates(text):
    """Yields (match, lead, behind, label, alone) of what may be a code in a marked text.

    The lead is what stands on its line before it, or, if that is no word, three lines more. What
    led to the candidate before leads to no other, unless that one has a word for another number.
    Behind it is the rest of its sentence; up to another candidate, the nearer half of that.
    The label is the mark next to it. Alone is what has a line of its own."""
    matches = list(re.finditer(folded(CODE_FORM), text))
    used = end = 0
    for match, following in zip(matches, matches[1:] + [None]):
        start, last = match.start(), end
        end = match.end()
        lines = text[max(start - 300, used) : start].split("\n")
        first = not re.search(WORD, lines[-1])
        lead = "\n".join(lines[-4:] if first else lines[-1:])
        rest = text[end : end + 80].partition("\n")[0]
        behind = re.split(SENTENCE, rest)[0]
        marks = re.findall(MARK, behind)
        near = re.findall(MARK, text[max(start - len(lead), last) : start])
        label = (near[-1:] + marks[:1] + [""])[0]
        if following and following.start() < end + len(behind) and marks[-1:] != [OTHER]:
            behind = behind[: (following.start() - end + 1) // 2]
        if label != OTHER:
            used = end + len(behind)
        yield match, lead, behind, label, first and not re.search(WORD, rest)


def rank_of(match, lead, behind, label, alone, words):
    """How likely a candidate is. None for what is none without a word near it, with a # before it,
    or without words in all of the mail: a date, or digits that stand apart and not alone."""
    sentence = re.split(SENTENCE, lead)[-1] + behind
    rank = max(6 * (CODE in sentence), 5 * (CODE in lead), 4 * (ENTRY in sentence),
               3 * (ENTRY in lead))
    date, whole = (re.match(form, match.group(1)) for form in (
        r"\d\d[ -][0-3]\d[ -]\d\d\Z", r"\d{6}|\d{3}[ -]{1,3}\d{3}\Z"))
    if not rank and (lead[-1:] == "#" or not words and (date or not (whole or alone))):
        return None
    led_in = match.start() < match.start(1)
    return rank + 2 * alone - 2 * (label == OTHER) + led_in + words


def ranked(texts):
    """{code: its rank} of a mail's texts, the subject first: the most likely first, at equal rank
    in the order of the texts."""
    left, found, marks = TEXT_LENGTH, {}, []
    for text in texts:
        marks.append(marked(text, left))
        left -= len(marks[-1])
    words = any(mark in text for text in marks for mark in (CODE, ENTRY))
    for number, text in enumerate(marks):
        for match, *context in candidates(text):
            rank = rank_of(match, *context, words)
            if rank is not None:
                code = "".join(str(int(c)) for c in match.group(1) if c.isdigit())
                found[code] = max(found.get(code, rank), rank + (number == 0))
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def is_to(email, recipients):
    """Whether mail with those header fields is to that email, whose domain may be there in ASCII
    (IDNA, RFC 5890)."""
    local, _, domain = email.lower().rpartition("@")
    words = re.split(r"[\s<>,;:()]+", recipients.replace('"', "").lower())
    wanted = {email.lower()}
    with contextlib.suppress(UnicodeError):
        wanted.add(f"{local}@{domain.encode('idna').decode()}")
    return any(word.strip("'") in wanted for word in words)


def examine(content, email):
    """(whether a mail is to that email, None for a text; {code: its rank} of what may be a code in
    it, the most likely first)."""
    if isinstance(content, str):
        return None, ranked(["", shortened(content, TEXT_LENGTH)])
    recipients, texts = read_mail(content)
    to_us = is_to(email, recipients)
    return to_us, ranked(texts) if to_us else {}


def open_input(ctx, place, email):
    """Each look waits for more to read, and returns all of it; None at the end."""
    said = b""

    def look():
        nonlocal said
        more = next_bytes(ctx)
        said = shortened(said + more, MAIL_BYTES)
        return {"standard input": said.decode("utf-8", "replace")} if more else None

    return look


def end_command(process):
    """With what it started."""
    try:
        os.kill(-process.pid, 9)
    except (OSError, OverflowError):  # it has ended; or this is Windows, which has no groups
        process.kill()


def open_command(ctx, command, email):
    """Each look runs it. Its standard error is not shown: that might quote a mail."""
    import atexit  # lazy
    import subprocess

    env = dict(ctx.env, SCRIPTO_REQUESTED_AT=str(int(time.time())),
               SCRIPTO_EMAIL=os.fsdecode(email.encode()))  # which an ASCII locale takes, too
    nothing = subprocess.DEVNULL

    def look():
        with subprocess.Popen(command, shell=True, env=env, stdin=nothing, stderr=nothing,
                              stdout=subprocess.PIPE, start_new_session=True) as process:
            atexit.register(end_command, process)
            output = process.stdout.read(MAIL_BYTES).decode("utf-8", "replace")
            atexit.unregister(end_command)
            end_command(process)
        return {f"the output of the command (exit status {process.returncode})": output}

    return look


def exists(place):
    """False for a mailbox that may come yet, into a folder that is there. Raises OSError."""
    os.stat(os.path.dirname(os.path.abspath(place)))
    return os.path.lexists(place)


def read_from(path, start):
    """(where, what) is in a file from there on, or from its end if that comes first. Raises
    OSError, also for what is no file: a FIFO would hang."""
    with open(path, "rb", opener=lambda path, flags: os.open(path, flags | NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no file")
        start = min(start, file.seek(0, os.SEEK_END))
        file.seek(start)
        return start, file.read(FILE_BYTES)


def open_maildir(ctx, folder, email):
    """new/, and cur/, where readers move what they have seen. A mail that cannot be read, or that
    is just being moved, is left out."""

    def listed():
        found = {}
        for part in ("new", "cur") if exists(folder) and os.listdir(folder) else ():
            with contextlib.suppress(FileNotFoundError):
                for name in os.listdir(os.path.join(folder, part)):
                    found[name.partition(":")[0]] = os.path.join(folder, part, name)
        return found

    known, mails = set(listed()), {}

    def look():
        for name, path in listed().items():
            if name not in known and name not in mails:
                with contextlib.suppress(OSError):
                    mails[name] = shortened(read_from(path, 0)[1], MAIL_BYTES)
        return mails

    return look


def open_mbox(ctx, path, email):
    """What came behind its former end: each time all of it, as the last mail may not have been
    whole. In a file that shrank nothing is known to be new. A mail begins behind an empty line."""
    start = read_from(path, sys.maxsize)[0] if exists(path) else 0

    def look():
        nonlocal start
        start, content = read_from(path, start) if exists(path) else (0, b"")
        mails = re.split(rb"(?:\A\s*|\n\r?\n)From ", content)[1:]
        return {str(at): shortened(b"From " + mail, MAIL_BYTES) for at, mail in enumerate(mails)}

    return look


def words_of(error, *secrets):
    """A mail server may say anything: harmless, short, and without what it was told."""
    words = (error.args or [""])[-1]
    words = words.decode("utf-8", "replace") if isinstance(words, bytes) else str(words)
    for secret in secrets:
        words = words.replace(secret, "...")
    return harmless(words)[:200]


def quoted(text):
    """For IMAP (RFC 3501, 9: quoted)."""
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def log_in(ctx, box, user, host):
    """By a token (SASL XOAUTH2, as Google and Microsoft have it), else by a password."""
    import base64  # lazy

    names = "SCRIPTO_MAIL_TOKEN", "SCRIPTO_MAIL_PASSWORD"
    token, password = (ctx.env.get(name, "").strip("\r\n") for name in names)
    if not token and not password:
        raise invalid(f"There is no password for {user} at {host}.", NEXT_PASSWORD)
    kind, reply = "PLAIN", f"\0{user}\0{password}"
    if token:
        kind, reply = "XOAUTH2", f"user={user}\1auth=Bearer {token}\1\1"
    try:
        if token or "AUTH=PLAIN" in box.capabilities:
            box.authenticate(kind, lambda challenge: b"" if challenge else reply.encode())
        else:
            box.login(quoted(user), password)
    except box.error as error:
        sent = base64.b64encode(reply.encode()).decode()
        words = words_of(error, sent, token or password)
        raise failed(f"{host} refused the log-in: {words}", NEXT_PASSWORD) from error


def imap_place(url):
    """(whether by TLS, user, host, port, folder)."""
    from urllib.parse import unquote, urlsplit  # lazy

    try:
        parts = urlsplit(url)
        secure, user, folder = parts.scheme == "imaps", parts.username or "", parts.path[1:]
        port = parts.port or (993 if secure else 143)
        user, folder = unquote(user), unquote(folder) or "INBOX"
        form = r"[ -~]+\n[a-z0-9_.:-]+\n[ -~]+\Z"
        if parts.password is None and re.match(form, f"{user}\n{parts.hostname}\n{folder}"):
            return secure, user, parts.hostname, port, folder
    except ValueError:  # no number is the port
        pass
    problem = "An IMAP mailbox has a user, a host and a folder in ASCII here, and no password."
    raise invalid(problem, NEXT_SOURCE)


@context_manager
def at_mail_server(host):
    """What the network does wrong in here, or a server that does not keep to the protocol, at
    which imaplib stumbles, is network-error."""
    import imaplib  # lazy

    try:
        yield
    except (OSError, OverflowError, ValueError, LookupError, AttributeError, TypeError,
            imaplib.IMAP4.error) as error:
        problem = f"The mail server {host} cannot be used: {words_of(error)}"
        raise ScriptoError("network-error", problem, NEXT_MAIL_SERVER) from error


def mails_from(box, first, known):
    """{UID: mail} of what is new: only peeked at, so that nothing there is changed."""
    found = {}
    for uid in box.uid("SEARCH", f"UID {first}:*")[1][0].decode().split():
        if int(uid) >= first and uid not in known:  # the last mail comes with any such search
            parts = box.uid("FETCH", uid, f"(BODY.PEEK[]<0.{FILE_BYTES}>)")[1]
            mail = next((part[1] for part in parts if isinstance(part, tuple)), b"")
            found[uid] = shortened(mail, MAIL_BYTES)
    return found


def open_imap(ctx, url, email):
    """By RFC 3501. EXAMINE: nothing there is changed."""
    import imaplib  # lazy

    secure, user, host, port, folder = imap_place(url)
    folder = quoted(folder)
    with at_mail_server(host):
        if secure:
            box = imaplib.IMAP4_SSL(host, port, ssl_context=client_tls())
        else:
            box = imaplib.IMAP4(host, port)
            if not is_loopback(host):
                box.starttls(client_tls())
        log_in(ctx, box, user, host)
        status, reply = box.status(folder, "(UIDNEXT)")
        if status != "OK" or box.select(folder, readonly=True)[0] != "OK":
            problem = f"{host} does not open that folder: {words_of(box.error(reply[-1]))}"
            raise invalid(problem, "pass another /FOLDER in --code-from")
        first, mails = int(re.search(rb"UIDNEXT (\d+)", reply[-1]).group(1)), {}

    def look():
        with at_mail_server(host):
            box.noop()
            mails.update(mails_from(box, first, mails))
        return mails

    return look


# kind: (what opens it, seconds between two looks)
SOURCES = {"-": (open_input, 0), "cmd": (open_command, 1), "maildir": (open_maildir, 0.2),
           "mbox": (open_mbox, 0.2), "imap": (open_imap, 1), "imaps": (open_imap, 1)}


def unread(place, error, next_action, kind=failed):
    return kind(f"The mailbox {place} cannot be read: {error.strerror}.", next_action)


def open_source(ctx, source, email):
    """(a function that looks, seconds between two looks). Raises invalid-argument, or what a mail
    server does wrong. A look returns {name: mail as bytes, or text}, None when no more can come."""
    kind, _, place = source.partition(":")
    if kind not in SOURCES or bool(place) == (kind == "-"):
        raise invalid("There is no such source of codes.", NEXT_SOURCE)
    opener, pause = SOURCES[kind]
    place = with_home(place) if pause < 1 else place if kind == "cmd" else source
    try:
        look = opener(ctx, place, email)
        if kind in ("maildir", "mbox") and not os.path.lexists(place):
            warn(ctx, f"There is no mailbox {place} yet; the code is awaited there.")
        return look, pause
    except OSError as error:
        raise unread(place, error, NEXT_SOURCE, invalid) from error


def codes_of_all(came):
    """[(code, rank)] of what came, the most likely first; at equal rank of the newest mail, by the
    numbers in its name."""
    newest = sorted(came, key=lambda name: list(map(int, re.findall("[0-9]+", name))))[::-1]
    codes = [each for name in newest for each in came[name][2].items()]
    return sorted(codes, key=lambda each: -each[1])


def codes_polled(source, email, came):
    """Yields each code once, as it comes, an unlikely one when no better one came meanwhile. It
    ends when no more can come, or when a command prints only what was refused. In `came` is what
    was found at last: {name: (mail, whether to that email, its codes)}."""
    (look, pause), tried, since = source, set(), {}
    while True:
        found = look()
        if found is None:
            return
        for name in set(came) - set(found):
            del came[name]
        for name, mail in found.items():
            if name not in came or came[name][0] != mail:
                came[name] = (mail, *examine(mail, email))
        codes = codes_of_all(came)
        texts = any(to_us is None for _, to_us, _ in came.values())
        if texts and pause and codes and tried.issuperset(dict(codes)):
            return
        for code, rank in codes:
            waited = time.monotonic() - since.setdefault(code, time.monotonic())
            if code not in tried and (texts or rank >= LIKELY or waited >= UNLIKELY_SECONDS):
                tried.add(code)
                yield code
        time.sleep(pause)


def what_came(came, email, tried):
    """In words, and none of them a mail's."""
    if tried:
        return "1 came and was refused" if tried == 1 else f"{tried} came and were refused"
    to_us = [each for _, each, _ in came.values()]
    if None in to_us:
        return "none in " + list(came)[-1]
    text = f"{len(to_us) or 'no'} new messages" + f", none to {email}" * bool(to_us)
    if any(to_us):
        text = f"{sum(to_us)} to {email}, with no code in it"
    return text + "; a spam folder is worth a look (for IMAP: .../Junk)"


def codes_awaited(ctx, source, email, seconds, then):
    """Yields each code as it comes, until no more can come. Raises deadline-exceeded when the time
    is over, or what is wrong with the source, with `then` as next action. Each look is bounded by
    within(), as no time-out of ours ends a server that sends a byte a second."""
    import socket  # lazy

    came, tried, give_up = {}, 0, time.monotonic() + seconds
    codes = codes_polled(source, email, came)
    try:
        while True:
            code = within(max(give_up - time.monotonic(), 0), next, codes, None, meanwhile=lambda
                          left: progress(ctx, f"Waiting for the code, {left:.0f} seconds left"))
            progress(ctx, "")
            if code is None:
                return
            tried += 1
            yield code
    except socket.timeout:
        what = "No right code" if tried else "No code"
        problem = f"{what} came within {seconds} seconds: {what_came(came, email, tried)}."
        raise ScriptoError("deadline-exceeded", problem, then) from None
    except OSError as error:
        raise unread(error.filename, error, then) from error
    except ScriptoError as error:
        error.next_action = then
        raise
    finally:
        progress(ctx, "")


# ---- Account --------------------------
# A command takes the context and the parsed arguments and returns (data for JSON, the same as lines
# for a person); where others have spoken already, an exit status.


def titled(rows):
    """A line for each (title, value) that has a value."""
    return [f"  {title + ':':9} {value}" for title, value in rows if value]


SECOND_STEP = ("auth login-complete", "--code <6-digit-code>")  # for ctx.then()


def request_code(ctx, target, email, command):
    """Has the backend mail a code, and returns what it answers: with a `ticket`, from some. An
    email that it does not take is that command's error."""
    hint = NEXT_EMAIL + command
    data = call(ctx, target, "POST", "/api/cli/login-request", "data", {"email": email}, hint)
    if data.get("ok") is not True:
        raise bad_reply(target.base_url, "did not say that a code was sent")
    return data


def name_by_hand(ctx, args):
    """What the new profile is to be called, by --profile-name or SCRIPTO_PROFILE; None without."""
    name = getattr(args, "profile_name", None)  # login-request has no such flag
    name = ctx.env.get("SCRIPTO_PROFILE") or None if name is None else name
    check_profile_name(name)
    return name


def cmd_login_request(ctx, args):
    check_email(args.email, "login-request")
    target = resolve(ctx, args, with_key=False)
    named = name_by_hand(ctx, args)
    if named:  # one that is another identity's is refused before a code is asked for
        name_for(ProfileFile(ctx).read(), named, {"email": args.email}, target.base_url)
    request_code(ctx, target, args.email, "login-request")
    then = ctx.then(*SECOND_STEP)
    lines = ["✓ Sign-in code sent to " + args.email, "", "  Then run:", "    " + then]
    return {"ok": True, "email": args.email, "nextAction": then}, lines


def prepare(ctx, args):
    """(target, profile file). All that can fail on this machine is tried: a code buys one key."""
    check_key_name(args.name or "")
    if args.expires_in is not None:
        check_number(args.expires_in, "--expires-in", 3650, 1)
    named = name_by_hand(ctx, args)
    target, file = resolve(ctx, args, with_key=False), ProfileFile(ctx)
    # The file is written as it is, where there is room for more.
    file.change(name_for, named, {"email": args.email}, target.base_url, spare=4096)
    return target, file


def warn_of_environment(ctx, name=None):
    """What overrides the active profile, unless it is that one."""
    if ctx.env.get("SCRIPTO_API_KEY"):
        warn(ctx, "SCRIPTO_API_KEY is set and overrides the key of the active profile")
    if ctx.env.get("SCRIPTO_PROFILE", "") not in ("", name):
        other = ctx.env["SCRIPTO_PROFILE"]
        warn(ctx, f"SCRIPTO_PROFILE is set: profile {other} is in force, whichever is active")


def answer_stored(ctx, kept, identity, base_url, lines):
    """(data, lines) of a command that has stored a key. `kept` is what store_profile() returns."""
    name, former = kept
    warn_of_environment(ctx, name)
    data = dict(identity, profile=name, active=True, baseUrl=base_url, apiKey=MASKED_KEY)
    ended = "" < text_of(former, "expiresAt") < timestamp(time.time())
    if former.get("apiKey", identity["apiKey"]) != identity["apiKey"] and not ended:
        key_id = text_of(former, "keyId")
        data.update({"formerKeyId": key_id} if key_id else {})
        how = "scripto keys revoke " + (shell_word(key_id) if key_id else "<id>")
        warn(ctx, f"the former key of profile {name} still works; end it with: {how}")
    rows = [("Profile", name + " (now active)"), ("API key", MASKED_KEY)]
    return data, [*lines, *titled(rows), "", "  Try it:  scripto whoami"]


def buy_key(ctx, args, target, code, ticket):
    """The new key's IDENTITY. Where the request may have been heard, the error says that the code
    may be used up."""
    import socket  # lazy

    machine = f"scripto-cli on {harmless(socket.gethostname())}"[:KEY_NAME_LENGTH]
    body = {"email": args.email, "otp": code, "name": args.name or machine, "ticket": ticket,
            "expiresIn": args.expires_in and int(args.expires_in) * DAY}
    body = {member: value for member, value in body.items() if value}
    used_up = "if the code is used up by now, request a new one with: "
    used_up += ctx.then("auth login-request")
    try:
        data = call(ctx, target, "POST", "/api/cli/login-complete", "data", body, NEXT_CODE)
        if not is_key(data.get("apiKey")):
            raise bad_reply(target.base_url, "sent no key")
    except KeyboardInterrupt as cause:
        raise interrupted(cause, "run it again; " + used_up) from None
    except ScriptoError as error:
        if error.code in ("network-error", "invalid-response"):
            error.next_action += "; " + used_up
        raise
    identity = {name: text_of(data, name) for name in IDENTITY if text_of(data, name)}
    return dict({"email": args.email}, **identity)


def sign_in(ctx, args, target, file, code, ticket=None):
    """Buys a key with the code and stores it; returns (data, lines) as a command does. If the key
    cannot be stored after all, the error hands it over, this once: its code is spent."""
    identity, url = buy_key(ctx, args, target, code, ticket), target.base_url
    try:
        kept = file.change(lambda state: store_profile(
            state, name_for(state, name_by_hand(ctx, args), identity, url), identity, url))
    except (ScriptoError, KeyboardInterrupt) as error:
        words = flagged("--api-key", identity["apiKey"]), flagged("--api-url", url)
        why = "Interrupted." if isinstance(error, KeyboardInterrupt) else error
        problem = f"Signed in, but the key could not be stored. {why}"
        raise failed(problem, "store it with: " + ctx.then("config set", *words)) from None
    if args.expires_in and "expiresAt" not in identity:
        warn(ctx, "the backend does not know --expires-in: this key lasts until it is revoked")
    lines = ["✓ Signed in", "", *titled([("Email", identity["email"])])]
    return answer_stored(ctx, kept, identity, url, lines)


def cmd_login_complete(ctx, args):
    check_email(args.email, "login-complete")  # the first that is wrong is named first
    code = read_line(ctx, "Code: ") if args.code == "-" else args.code
    code = check_code(code, "run it again: " + ctx.then(*SECOND_STEP))
    return sign_in(ctx, args, *prepare(ctx, args), code)


def codes_typed(ctx):
    """Yields each code that is typed at the terminal."""
    while True:
        text = read_line(ctx, "Code: ")
        try:
            if text:  # an empty line asks again
                yield check_code(text)
        except ScriptoError as error:
            say(ctx, "✗ " + error.message)


def code_source(ctx, args, seconds):
    """What was opened of the place that the call names, None for a terminal. What is wrong with it
    costs no code."""
    import socket  # lazy

    place = args.code_from or ctx.env.get("SCRIPTO_CODE_FROM")
    if not place and not is_terminal(ctx.stdin):
        first, then = ctx.then("auth login-request"), ctx.then(*SECOND_STEP)
        hint = f"pass --code-from, or in two steps: {first}; then: {then}"
        raise invalid("There is no terminal to ask for the code at.", hint)
    try:
        return within(seconds, open_source, ctx, place, args.email) if place else None
    except socket.timeout:
        problem = "The mailbox does not answer."
        raise ScriptoError("network-error", problem, NEXT_MAIL_SERVER) from None


def first_right(ctx, codes, buy):
    """What buy(code) returns for the first code that is right. A wrong one is not the end: a right
    one may come yet, until the attempts that a backend grants are over."""
    refused = invalid("Standard input ended, and there is no code in it.", ctx.then(*SECOND_STEP))
    for _, code in zip(range(CODE_ATTEMPTS), codes):
        try:
            return buy(code)
        except ScriptoError as error:
            if error.code != "invalid-argument":
                raise
            refused = error
        say(ctx, "✗ " + refused.message)
    raise refused


def cmd_login(ctx, args):
    """Both steps in one."""
    seconds = check_number(args.timeout or "90", "--timeout", 3600, 1)
    if not args.email and is_terminal(ctx.stdin):
        args.email = read_line(ctx, "Email: ")
    check_email(args.email, "login")
    target, file = prepare(ctx, args)
    source, then = code_source(ctx, args, seconds), ctx.then(*SECOND_STEP)
    try:
        ticket = request_code(ctx, target, args.email, "login").get("ticket")
        say(ctx, f"Sign-in code sent to {args.email}. If this is cut off, go on with:", "  " + then)
        codes = codes_typed(ctx)
        if source:
            codes = codes_awaited(ctx, source, args.email, seconds, then)
        return first_right(ctx, codes, lambda code: sign_in(ctx, args, target, file, code, ticket))
    except KeyboardInterrupt as cause:
        raise interrupted(cause, then) from None


def warn_of_end(ctx, target):
    """In the last days of its key."""
    warning = expiry_warning(target)
    if warning:
        warn(ctx, ": ".join(warning))


def cmd_whoami(ctx, args):
    """What the backend says just now; the profile fills a blank email."""
    target = resolve(ctx, args)
    said = call(ctx, target, "GET", "/api/auth/me", "user")
    if not text_of(said, "id"):
        raise bad_reply(target.base_url, "named no user")
    own, name = target.profile, target.name if target.profile else None
    user = {member: text_of(said, member) for member in ("id", "email", "name")}
    user["email"] = user["email"] or text_of(own, "email")
    ends = text_of(own, "expiresAt") or None
    warn_of_end(ctx, target)
    source = f"profile {name}" if name else target.key_source
    rows = [("Name", user["name"]), ("User ID", user["id"]),
            ("API key", f"{MASKED_KEY} (from {source})"), ("Key ends", ends),
            ("Backend", target.base_url)]
    data = {"user": user, "profile": name, "baseUrl": target.base_url,
            "keySource": target.key_source, "expiresAt": ends}
    return data, ["✓ Signed in as " + (user["email"] or user["id"]), "", *titled(rows)]


def cmd_token(ctx, args):
    """The one command that shows a key."""
    key = resolve(ctx, args).key
    return {"apiKey": key}, [key]


def cmd_use(ctx, args):
    file = ProfileFile(ctx)
    state = file.read() if args.name is None else file.change(activate, args.name)
    warn_of_environment(ctx)
    active = state.get("activeProfile")
    rows = [{"name": name, "active": name == active, "email": text_of(profile, "email"),
             "baseUrl": url_of(profile)} for name, profile in state["profiles"].items()]
    lines = ["{} {name:16}  {email:24}  {baseUrl}".format("●" if row["active"] else " ", **row)
             for row in rows] or ["No profile yet.", "  next: " + NEXT_SIGN_IN]
    lines = [f"✓ Profile {args.name} is now active"] if args.name else lines
    return {"activeProfile": active, "profiles": rows}, lines


def keys_of(ctx, target):
    """The user's keys. `current` is the one that asks: of a profile by its id, else by how it
    starts."""
    keys = call(ctx, target, "GET", "/api/keys", "data").get("keys")
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise bad_reply(target.base_url, "sent no list of keys")
    own = text_of(target.profile, "keyId")
    for key in keys:
        start = KEY_PREFIX + (text_of(key, "start") or " ")
        key["current"] = key.get("id") == own if own else target.key.startswith(start)
    return keys


def revoke(ctx, target, keys):
    """All of these keys. Raises not-found for none."""
    from urllib.parse import quote  # lazy

    if not keys:
        hint = "see the ids with: " + ctx.then("keys list")
        raise ScriptoError("not-found", f"There is no such key at {target.base_url}.", hint)
    for key in keys:
        path = "/api/keys/" + quote(text_of(key, "id"), safe="", errors="replace")
        if call(ctx, target, "DELETE", path, "data").get("revoked") is not True:
            raise bad_reply(target.base_url, "did not say that the key is revoked")


def revoke_stored(ctx, name, profile):
    """That profile's key at its own backend, whatever the environment says."""
    target = stored_target(ctx, name, profile)
    try:
        revoke(ctx, target, [key for key in keys_of(ctx, target) if key["current"]])
    except ScriptoError as error:
        if error.code != "unauthenticated":  # then it is revoked already, or has ended
            raise


def cmd_keys_list(ctx, args):
    keys = keys_of(ctx, resolve(ctx, args))
    form = "{} {:28}  {:32}  {:20}  {:20}  {}"
    lines = [form.format(" ", "ID", "NAME", "CREATED", "LAST USED", "ENDS")]
    for key in keys:
        members = ("id", "name", "createdAt", "lastUsedAt", "expiresAt")
        texts = [text_of(key, name) or "-" for name in members]
        lines.append(form.format("●" if key["current"] else " ", *texts))
    return {"keys": keys}, lines


def revoke_others(ctx, target, keys):
    """All but the one in use. Raises failed-precondition if that one is not known."""
    others = [key for key in keys if not key["current"]]
    if len(others) == len(keys):
        hint = "see the keys with: " + ctx.then("keys list")
        raise failed(f"The key in use is not in the list of {target.base_url}.", hint)
    if others:
        confirm(ctx, f"Revoke {len(others)} keys, all but the one in use?")
        revoke(ctx, target, others)
    return {"ids": [text_of(key, "id") for key in others], "revoked": True}, [
        f"✓ {len(others)} other keys are revoked at {target.base_url}"]


def cmd_keys_revoke(ctx, args):
    if (args.id is None) != args.others:
        problem = "Say which key: its ID, or --others for all but the one in use."
        raise invalid(problem, "see the ids with: " + ctx.then("keys list"))
    target = resolve(ctx, args)
    keys = keys_of(ctx, target)
    if args.others:
        return revoke_others(ctx, target, keys)
    keys = [key for key in keys if key.get("id") == args.id]
    if any(key["current"] for key in keys):
        confirm(ctx, "That is the key in use. Revoke it?", shell_word(args.id))
    revoke(ctx, target, keys)
    return {"id": args.id, "revoked": True}, [f"✓ Key {args.id} is revoked at {target.base_url}"]


def cmd_logout(ctx, args):
    file = ProfileFile(ctx)
    name, profile = profile_in_force(ctx, args.name, True)
    if name is None:
        raise no_key("No profile is active.")
    if args.revoke:
        revoke_stored(ctx, name, profile)
    state = file.change(remove_profiles, [name])
    url = url_of(profile)
    lines = [f"✓ Signed out: profile {name} is removed from this machine"]
    if args.revoke:
        lines.append("  Its key works no longer at " + url)
    else:
        key_id = text_of(profile, "keyId")
        how = "scripto keys revoke " + (shell_word(key_id) if key_id else "<id>")
        lines += ["  Its key is not revoked: copies of it still work at " + url,
                  "  To revoke it, sign in there again, then: " + how]
    warn_of_environment(ctx)
    data = {"removed": name, "revoked": args.revoke, "activeProfile": state["activeProfile"]}
    return data, lines


def cmd_config_set(ctx, args):
    """A name given by --profile-name is replaced, whoever it is."""
    identity = {"apiKey": check_key(ctx, args.api_key, "--api-key")}
    url, named = given_url(ctx, args)[0], name_by_hand(ctx, args)
    file = ProfileFile(ctx)
    old = {} if url else file.read()["profiles"].get(named, {})
    if not url:  # a new key for a profile is for the same backend
        url = stored_url(ctx, named, old) if old else default_url(ctx)
    kept = file.change(lambda state: store_profile(
        state, args.profile_name or name_for(state, named, identity, url), identity, url))
    return answer_stored(ctx, kept, identity, url, ["✓ Key stored", "", "  Backend:  " + url])


def cmd_config_show(ctx, args):
    """What is in force, and why. That there is no key is part of the answer."""
    try:
        path = ProfileFile(ctx).shown
    except ScriptoError:  # no home: resolve() knows whether one is needed
        path = "none"
    warn_of_environment(ctx)
    try:
        target = resolve(ctx, args)
    except ScriptoError as error:
        if error.code != "unauthenticated":
            raise
        lines = titled([("File", path), ("Key", "none. " + error.message)])
        return {"path": path, "problem": error.envelope()["error"]}, lines
    warn_of_end(ctx, target)
    chosen = "SCRIPTO_PROFILE" if ctx.env.get("SCRIPTO_PROFILE") else "active"
    by = chosen if args.profile is None else "--profile"
    profile = target.name and {"name": target.name, "source": by}
    key = {"apiKey": MASKED_KEY, "source": target.key_source,
           "profile": target.name if target.profile else None}
    ends = text_of(target.profile, "expiresAt") or None
    rows = [("File", path), ("Profile", profile and f"{target.name} ({by})"),
            ("Key", f"{MASKED_KEY} (from {target.key_source})"), ("Key ends", ends),
            ("Base URL", f"{target.base_url} (from {target.url_source})")]
    url = {"url": target.base_url, "source": target.url_source}
    data = {"path": path, "profile": profile, "key": key, "baseUrl": url, "expiresAt": ends}
    return data, titled(rows)


def cmd_config_clear(ctx, args):
    if (args.profile is None) != args.all:
        raise invalid("Say what to forget: --profile NAME, or --all.", NEXT_PROFILES)
    file = ProfileFile(ctx)
    state = file.read()
    names = list(state["profiles"]) if args.all else [args.profile]
    for name in names:
        find_profile(state, name)
    shown = ", ".join(names) or "nothing, there is no profile"
    confirm(ctx, f"Forget {shown}?")
    state = file.change(remove_profiles, names)
    return {"removed": names, "activeProfile": state["activeProfile"]}, ["✓ Forgotten: " + shown]


# ---- Scripts --------------------------
# What a script does with a key: it hands the key to another program, or sends its own request.


def not_run(command, why):
    text = f"'{command[0]}' cannot be run: {why}."
    return invalid(text, "look at the command behind --")


def cmd_run(ctx, args):
    """This process becomes that command. On Windows no process can; there it waits for it."""
    target = resolve(ctx, args)
    env = dict(ctx.env, SCRIPTO_API_KEY=target.key, SCRIPTO_API_BASE_URL=target.base_url)
    try:
        if os.name == "nt":
            import subprocess  # lazy

            return subprocess.call(args.command, env=env)
        import signal  # lazy

        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python, and so by the command
            signal.signal(number, signal.SIG_DFL)
        os.umask(ctx.umask)
        os.execvpe(args.command[0], args.command, env)
    except OSError as error:
        raise not_run(args.command, error.strerror) from error


def read_body(text):
    """What -d gives, as bytes."""
    if text != "-" and not text.startswith("@"):
        return os.fsencode(text)
    try:
        with open(text[1:] or 0, "rb") as file:  # 0: standard input
            return file.read()
    except OSError as error:
        raise invalid(f"The body cannot be read: {error}.", "pass another file with -d") from error


def head_of(reply):
    """Status and headers, as bytes."""
    status, reason, headers, _ = reply
    lines = [f"HTTP/1.1 {status} {reason}"]
    lines += [f"{name}: {value}" for name, value in headers.items()] + ["", ""]
    return "\r\n".join(lines).encode("latin-1", "replace")


def request_of(args):
    """(method, path, headers, body), all checked."""
    from urllib.parse import urlencode  # lazy

    path, headers, body = check_path(args.path), dict(map(check_header, args.H or ())), None
    if args.q:
        pairs = [text.partition("=")[::2] for text in args.q]
        path += ("&" if "?" in path else "?") + urlencode(pairs, errors="surrogateescape")
    if args.d is not None:
        body = read_body(args.d)
    method = args.X or ("GET" if body is None else "POST")
    if not re.match(r"[A-Za-z]{1,20}\Z", method):
        raise misfit(method, "a method", "pass one like -X DELETE")
    return method.upper(), path, headers, body


def reply_in_json(reply, with_head):
    """The reply as JSON in bytes. A body that is JSON stays as it came, so that no number loses
    digits. Another body becomes a text."""
    import json  # lazy

    status, _, headers, body = reply
    line = b" ".join(body.splitlines()) or b"null"  # within JSON's texts there are no line breaks
    if parse_json(line) is None:
        line = json.dumps(body.decode("utf-8", "replace")).encode("ascii")
    if not with_head:
        return line
    fields = {name.lower(): ", ".join(headers.get_all(name)) for name in headers}
    head = json.dumps({"status": status, "headers": fields})[:-1]
    return head.encode("ascii") + b', "body": ' + line + b"}"


def api_envelope(args, reply, error):
    """The envelope in parts of bytes. With -i an error's holds the reply, too."""
    import json  # lazy

    envelope = error.envelope() if error else {"success": True}
    parts = [json.dumps(envelope)[:-1].encode("ascii")]
    if args.i or not error:
        parts += [b', "data": ', reply_in_json(reply, args.i)]
    return parts + [b"}\n"]


def cmd_api(ctx, args):
    """Prints the reply as it came. The body of an error goes to standard error."""
    target = resolve(ctx, args)
    reply = send(ctx, target, request_of(args), API_BYTES)
    status, body = reply[0], reply[-1]
    error = None if 200 <= status < 300 else backend_error(ctx, target, reply)
    if ctx.as_json:
        return api_envelope(args, reply, error), None, error
    head = [head_of(reply)] if args.i else []
    if not error:
        return head + [body], None
    show(ctx, head, None)
    error.body = body.rstrip() + b"\n" if body else b""
    raise error


# ---- Guide ----------------------------
# What an agent reads that has seen nothing else.

EXIT_STATUSES = {
    0: "done",
    1: "not so: do what `nextAction` says",
    2: "a wrong flag, email, code or mailbox, or nobody to ask: mend what `message` names",
    3: "may work later (network, backend, too many tries, no mail yet): wait, then retry",
    4: "no valid key: do what `nextAction` says, mostly sign in",
    130: "interrupted, or declined at a prompt",
    143: "ended by SIGTERM",
}
ENVIRONMENT = {
    "SCRIPTO_API_KEY": "the key to use, without a profile",
    "SCRIPTO_API_BASE_URL": "the backend to use",
    "SCRIPTO_PROFILE": "the profile to use instead of the active one; a sign-in makes it",
    "SCRIPTO_CODE_FROM": "the SOURCE of `auth login`",
    "SCRIPTO_MAIL_PASSWORD": "for IMAP",
    "SCRIPTO_MAIL_TOKEN": "an OAuth access token instead",
    "SCRIPTO_TIMEOUT": "seconds for one request (30)",
    "SCRIPTO_ALLOW_HTTP": "1: plain http beyond loopback, too",
    "SCRIPTO_SMTP_PASSWORD": "for serve --mail smtp://user@host",
    "XDG_CONFIG_HOME": "the folder of scripto/config.json, the profiles (~/.config)",
    "XDG_DATA_HOME": "the folder of scripto/scripto.db, for serve (~/.local/share)",
    "HOME": "the home folder; on Windows USERPROFILE",
    "HTTP_PROXY": "a proxy, http://host:port, for a backend on plain http; none for loopback",
    "HTTPS_PROXY": "a proxy for a backend on https",
    "NO_PROXY": "hosts to reach without a proxy",
    "SSL_CERT_FILE": "certificates to trust instead of the system's",
    "SSL_CERT_DIR": "a folder of such",
    "NO_COLOR": "set: no colours",
    "TERM": "dumb: no colours",
    "TMPDIR": "where demo and serve -- COMMAND keep what they throw away",
}
SIGNED_IN = ("{profile, active, baseUrl, apiKey (masked), email?, userId?, keyId?, expiresAt?,"
             " formerKeyId?}")
DATA = {  # what --json holds of each command as `data`; ? marks what may be absent
    "auth login": SIGNED_IN,
    "auth login-request": "{ok, email, nextAction}",
    "auth login-complete": SIGNED_IN,
    "auth token": "{apiKey}",
    "whoami": "{user: {id, email, name}, profile, baseUrl, keySource, expiresAt}",
    "use": "{activeProfile, profiles: [{name, active, email, baseUrl}]}",
    "logout": "{removed, revoked, activeProfile}",
    "keys list": "{keys: [{id, name, start, createdAt, lastUsedAt, expiresAt, current}]}",
    "keys revoke": "{id, revoked}; with --others {ids, revoked}",
    "config set": SIGNED_IN,
    "config show": "{path, profile?: {name, source}, key?: {apiKey (masked), source, profile},"
                   " baseUrl?: {url, source}, expiresAt?, problem?: {code, message, nextAction}}",
    "config clear": "{removed: [name], activeProfile}",
    "serve": "{url, publicUrl}",
    "completion": "{script}",
    "api": "the body of the reply; with -i {status, headers, body}",
    "run": "none: the output is that command's",
    "users": "{users: [{email, id, createdAt, lastUsedAt, keys}]}",
    "users list": "{users: [{email, id, createdAt, lastUsedAt, keys}]}",
    "users remove": "{removed}",
    "backup": "{file}",
    "demo": "{ok, steps: [{command, output}]}",
    "guide": "{schemaVersion, version, baseUrl, commands, everyCommandTakes, options, errors,"
             " exitStatuses, environment}",
    "doctor": "{checks: [{name, status, message, nextAction}]} (beside an error, too)",
}
GUIDE = """# Scripto: sign this machine in, with no browser

You need Python 3.6 or newer and an email whose mail you can read. Signing in signs up a new one.
The backend is THIS_URL.

## Get it

```sh
mkdir -p ~/.local/bin && export PATH="$HOME/.local/bin:$PATH"
curl -fsSo ~/.local/bin/scripto THIS_URL/scripto.py && chmod +x ~/.local/bin/scripto
```

Without curl, instead of the second line:

```sh
python3 -c 'import os, urllib.request as u; os.chmod(u.urlretrieve("THIS_URL/scripto.py",
    os.path.expanduser("~/.local/bin/scripto"))[0], 0o755)'
```

In a new shell set PATH so again, or say `python3 ~/.local/bin/scripto` for `scripto`. Flags stand
behind the command. Every command takes `--json` and `--help`.

## Sign in

In one step, where a mailbox can be read:

```sh
scripto auth login --email you@example.com --code-from SOURCE --json
```

```json
{"success": true, "data": {"profile": "you", "active": true, "email": "you@example.com", \
"userId": "user_9d87", "keyId": "key_9aa1", "baseUrl": "THIS_URL", "apiKey": "MASKED_KEY"}}
```

SOURCE is `maildir:DIR`, `mbox:FILE`, `imaps://USER@HOST/INBOX` (password in SCRIPTO_MAIL_PASSWORD),
`cmd:COMMAND` (prints the code or the mail's text) or `-` (standard input). SCRIPTO_CODE_FROM may
hold it instead. It waits 90 seconds (--timeout). In two steps, where somebody tells you the code:

```sh
scripto auth login-request --email you@example.com --json
scripto auth login-complete --email you@example.com --code 123456 --json
```

`--name TEXT` names the key, for lists; `--expires-in 30` ends it in 30 days. After Ctrl-C, SIGTERM
(exit status 143) or a time-out of the first form the code is still good: `nextAction` is the
login-complete line to go on with. A mailbox that does not exist yet counts as empty.

## Read the answer

With --json standard output is exactly one line, `{"success": true, "data": ...}` or:

```json
{"success": false, "error": {"code": "unauthenticated", "message": "There is no API key.", \
"nextAction": "sign in with: scripto auth login-request --email <your-email>"}}
```

`error.httpStatus` is there where a backend answered, `error.retryAfter` (seconds) where it said so.
Do what nextAction says, or show it to your user word for word. One comes too early to obey:

- Wrong code (`invalid-argument`, httpStatus 400): the message says how many tries are left. Compare
  the digits with the mail and repeat login-complete. Ask for a new code when no try is left, and
  never in a loop: an email gets 5 in 15 minutes. A code works once, within 10 minutes.
- Malformed code (`invalid-argument`, no httpStatus): nothing was sent. nextAction is right.

Exit statuses:

EXIT_STATUSES
## Use the key

It is in ~/.config/scripto/config.json (in $XDG_CONFIG_HOME/scripto, if that is set). Never print it
or log it. It goes to the backend that made it only: with another `--api-url` a command is refused
(exit status 1) before anything is sent.

```sh
scripto whoami --json
```

```json
{"success": true, "data": {"user": {"id": "user_9d87", "email": "you@example.com", "name": ""}, \
"profile": "you", "baseUrl": "THIS_URL", "keySource": "profile", "expiresAt": null}}
```

```sh
scripto api api/keys
```

```json
{"success": true, "data": {"keys": [{"id": "key_9aa1", "name": "scripto-cli on host", \
"start": "_kD1Ka", "createdAt": "2026-11-24T03:00:00Z", "lastUsedAt": "2026-11-24T03:00:00Z", \
"expiresAt": null}]}}
```

`scripto api` prints the reply as it came. It takes `-d JSON` for a POST, `-X METHOD`, and `-i` for
status and headers. With `-i --json` `data` is `{status, headers, body}`, beside `error`, too.
Without --json the body of an error goes to standard error, before the lines that say what to do.

```sh
scripto api some/path -d '{"a": 1}' -i --json
```

Another program gets the key so. `run` ends with the exit status of that program:

```sh
scripto run -- COMMAND   # which finds SCRIPTO_API_KEY and SCRIPTO_API_BASE_URL
key=$(scripto auth token) && printf 'Authorization: Bearer %s' "$key" |
    curl -fsS -H @- THIS_URL/api/keys
```

SCRIPTO_API_KEY, if set, wins over a profile, unless --profile names one. `scripto keys revoke ID`
ends a key; for the one in use it needs `--yes`, as all that asks does where there is no terminal.

## Several identities

Each sign-in makes a profile, named after the email or by `--profile-name NAME`, and activates it.
`scripto use` lists them, `scripto use NAME` switches. `--profile NAME` or SCRIPTO_PROFILE=NAME is
for one command, or for agents side by side. `scripto logout [NAME]` forgets a key, and revokes it
only with --revoke; no other profile becomes active by that.

More: `scripto doctor` (what is wrong here), `scripto guide --json` (every command, flag, variable
and answer), `eval "$(scripto completion bash)"` in ~/.bashrc (or zsh, fish). As an agent skill:
`mkdir -p ~/.claude/skills/scripto && scripto guide --skill > ~/.claude/skills/scripto/SKILL.md`
"""
SKILL = """---
name: scripto
description: Sign in to Scripto (THIS_URL) by an emailed code and use its API key. \
For when one is needed, or scripto exits with status 4.
metadata:
  version: "VERSION"
---

"""


def guide_text(url, text=GUIDE):
    statuses = "".join(f"- {status}: {what}\n" for status, what in EXIT_STATUSES.items())
    for name, value in (("EXIT_STATUSES\n", statuses + "\n"), ("MASKED_KEY", MASKED_KEY),
                        ("VERSION", __version__), ("THIS_URL", url)):
        text = text.replace(name, value)
    return text


def cmd_guide(ctx, args):
    """The JSON is made of the tables that the program runs by."""
    url = given_url(ctx, args)[0] or default_url(ctx)
    data = {"schemaVersion": 1, "version": __version__, "baseUrl": url, "commands": [
        {"name": name, "purpose": command.purpose, "changes": command.changes,
         "takes": [word for word, _ in arguments_of(command)],
         "required": [word for word, needed in arguments_of(command) if needed],
         "data": DATA[name], "example": f"scripto {name} {command.example}".strip()}
        for name, command in ctx.commands.items()
    ], "everyCommandTakes": ["--json", "--help"], "options": [
        {"name": name, "takes": takes, "purpose": purpose}
        for name, (takes, purpose) in ctx.options.items()
    ], "errors": [
        {"code": code, "httpStatus": http, "exitStatus": status}
        for code, (http, status) in ERRORS.items()
    ], "exitStatuses": EXIT_STATUSES, "environment": ENVIRONMENT}
    return data, guide_text(url, SKILL * args.skill + GUIDE).splitlines()


# ---- Mail -----------------------------
# How the backend delivers a code. deliver(message, to) returns once the mail is out of its hands.
# It raises invalid-argument for an address that takes no mail, and another of MAIL_ERRORS for a
# mail that was not sent. It logs nothing.

# smtplib's errors are OSErrors. The others: an address that no command can hold; no thread.
MAIL_ERRORS = (OSError, ValueError, ScriptoError)

# RFC 5322, RFC 3834; addresses beyond ASCII as UTF-8 (RFC 6532). No line may begin with a dot,
# which SMTP would take for the end (RFC 5321, 4.5.2).
CODE_MAIL = """From: Scripto <{sender}>
To: {to}
Subject: {code} is your Scripto sign-in code
Date: {date}
Message-ID: <{unique}@{domain}>
Auto-Submitted: auto-generated
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8

Your code to sign in to Scripto at {url} is:

    {code}

It works once, within {minutes} minutes: until {until} UTC.
Asked for at {asked} UTC from {address}.

Type it only where you asked for it yourself. Give it to no person who
asks you for it, and to no program that you did not start: they could
sign in as you. If you did not ask for it, ignore this mail: without
the code nobody gets in.
"""


def code_mail(backend, email, code, address):
    """The message, as bytes. All that goes in has been checked: it holds no line break."""
    import secrets  # lazy

    now = time.time()
    asked, until = time.gmtime(now), time.gmtime(now + CODE_SECONDS)
    return CODE_MAIL.format(
        sender=backend.sender, to=email, code=code, url=backend.public_url, address=address,
        unique=secrets.token_hex(16), domain=backend.sender.rpartition("@")[2],
        date=time.strftime("%a, %d %b %Y %H:%M:%S +0000", asked), minutes=CODE_SECONDS // 60,
        asked=time.strftime("%Y-%m-%d %H:%M", asked), until=time.strftime("%H:%M", until),
    ).encode()


def deliver_to_console(ctx, message, to):
    """A stream that is closed, or that nobody reads, takes no mail."""
    import select  # lazy

    subject = re.search("(?m)^Subject: (.*)$", message.decode()).group(1)
    if os.name == "posix" and ctx.stderr and not select.select([], [ctx.stderr], [], 0)[1]:
        raise BlockingIOError(errno.EAGAIN, "nobody reads it")
    emit_lines(ctx, ctx.stderr, [f"mail to {to}: {subject}"])


def deliver_to_maildir(folder, message):
    import mailbox  # lazy

    for part in ("tmp", "new", "cur"):  # mailbox minds it if another program makes them, too
        os.makedirs(os.path.join(folder, part), exist_ok=True)
    mailbox.Maildir(folder, create=False).add(message)


def checked(reply, kind=2):
    """Raises unless a mail server's reply (status, words) is of that kind: 2 is yes, 3 is go on.
    What is no reply has a status of -1."""
    import smtplib  # lazy

    if reply[0] // 100 != kind:
        raise smtplib.SMTPResponseException(*reply)


class MailServer:
    """A server by its URL, smtp: or smtps:. TLS is used where the server offers it; on loopback
    only if a password is to be sent."""

    def __init__(self, ctx, url, sender):
        """The environment's password wins over the URL's, which the list of processes shows."""
        from urllib.parse import unquote  # lazy

        self.url, self.sender, self.tls = url, sender, None
        self.user = unquote(url.username or "")
        self.password = ctx.env.get("SCRIPTO_SMTP_PASSWORD") or unquote(url.password or "")
        if not re.match(r"[ -~]*\Z", self.user + self.password):  # smtplib sends no other
            raise invalid("The user or the password for SMTP is not ASCII.",
                          "take an ASCII one for --mail and SCRIPTO_SMTP_PASSWORD")
        near = is_loopback(url.hostname)
        if self.user or url.scheme == "smtps" or not near:
            self.tls = client_tls()
            if near:  # nobody stands in between, and Debian's Postfix signs its own certificate
                self.tls.check_hostname = False
                self.tls.verify_mode = 0  # ssl.CERT_NONE
        self.needs_tls = self.user and not near

    def deliver(self, message, to):
        """One deadline for all of it, name look-up and connecting included. Once the content has
        gone out, the mail counts as sent, unless the server says that it is not."""
        gone_out = []
        try:
            within(MAIL_SECONDS, self.talk, message, to, gone_out)
        except OSError as error:
            if getattr(error, "smtp_code", -1) >= 400 or not gone_out:
                raise

    def talk(self, message, to, gone_out):
        import smtplib  # lazy

        late = time.monotonic() + MAIL_SECONDS
        kind, more = smtplib.SMTP, {}
        if self.url.scheme == "smtps":
            kind, more = smtplib.SMTP_SSL, {"context": self.tls}
        own_name = self.sender.rpartition("@")[2]  # else it is looked up in the DNS
        with contextlib.closing(kind(self.url.hostname, self.url.port or 0, own_name,
                                     timeout=MAIL_SECONDS, **more)) as smtp:
            self.greet(smtp)
            self.address(smtp, to)
            if time.monotonic() < late:  # else nobody waits for it, and its code is no longer live
                smtp.send(message.replace(b"\n", b"\r\n") + b".\r\n")
                gone_out.append(True)
                checked(smtp.getreply())
                smtp.putcmd("quit")  # nobody waits for the answer

    def greet(self, smtp):
        """No password goes out in the clear, but on loopback."""
        smtp.ehlo_or_helo_if_needed()
        if self.tls and self.url.scheme == "smtp":
            if self.needs_tls or smtp.has_extn("starttls"):
                smtp.starttls(context=self.tls)  # an error where it is not offered, or declined
                smtp.ehlo_or_helo_if_needed()
        if self.user:
            smtp.login(self.user, self.password)

    def address(self, smtp, to):
        """All up to the content. smtplib's sendmail() would not tell how far it came."""
        refusal = invalid("The mail server takes no mail there.", NEXT_EMAIL + "login-request")
        beyond_ascii = max(self.sender + to) > "\x7f"
        if beyond_ascii and not smtp.has_extn("smtputf8"):
            raise refusal
        checked(smtp.mail(self.sender, ["SMTPUTF8", "BODY=8BITMIME"] if beyond_ascii else []))
        status, words = smtp.rcpt(to)
        if status >= 500:  # below, it is greylisting, say
            raise refusal
        checked((status, words))
        checked(smtp.docmd("DATA"), 3)


def delivery_for(ctx, how, bound_to, sender):
    """By --mail. A code on a console is for who sits there: only for a server bound to loopback."""
    from urllib.parse import urlsplit  # lazy

    kind, _, folder = how.partition(":")
    if how == "console" and is_loopback(bound_to):
        return lambda message, to: deliver_to_console(ctx, message, to)
    if kind == "maildir" and folder:
        folder = os.path.abspath(with_home(folder))
        return lambda message, to: deliver_to_maildir(folder, message)
    try:
        url = urlsplit(how)
        if kind in ("smtp", "smtps") and url.hostname and url.port != 0:
            return MailServer(ctx, url, sender).deliver
    except ValueError:
        pass  # a bad port, or half a bracket
    forms = "maildir:DIR, smtp://[user@]host[:port], smtps://..., console (on loopback only)"
    raise invalid(f"Mail cannot go by '{kind}' from {bound_to}.", "pass --mail with: " + forms)


# ---- Store ----------------------------
# The only place that knows SQL: users, keys, and the events that limits count. Codes, tickets and
# keys are stored as hashes only.

VERSION = 0x53637204  # "Scr" and 4; versions 1 to 3 were never released
# A code is stored with the event that asked for it, and its hash is removed when it is over. Tables
# without rowids have fewer pages to write for a sign-in.
SCHEMA = f"""
CREATE TABLE secret (value BLOB NOT NULL);
CREATE TABLE users (id TEXT PRIMARY KEY, email TEXT NOT NULL UNIQUE, created_at REAL NOT NULL)
    WITHOUT ROWID;
CREATE TABLE keys (id TEXT NOT NULL, user_id TEXT NOT NULL, hash BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL, start TEXT NOT NULL, created_at REAL NOT NULL, last_used_at REAL,
    expires_at REAL, PRIMARY KEY (user_id, id)) WITHOUT ROWID;
CREATE TABLE events (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, email TEXT NOT NULL,
    address TEXT NOT NULL, at REAL NOT NULL, hash BLOB, ticket BLOB,
    ticket_tries INTEGER NOT NULL DEFAULT {CODE_ATTEMPTS});
CREATE INDEX events_by_email ON events (email, kind, at);
CREATE INDEX events_by_address ON events (address, kind, at);
PRAGMA user_version = {VERSION}
"""
TABLES = {"secret": "value", "users": "email", "keys": "hash", "events": "email"}  # how it is read
CLOCK_SECONDS = 60  # that the clock may be set back by, with no effect on events and codes

# The codes of an email that have not expired, the newest first. Without a ticket, a wrong code
# costs a try of each code that was there before it.
CODES = f"""
SELECT id, hash, ticket, ticket_tries, address, {CODE_ATTEMPTS} - (
    SELECT count(*) FROM events AS wrong
    WHERE email = request.email AND kind = 'wrong' AND wrong.id > request.id) AS tries
FROM events AS request WHERE email = ? AND kind = 'request' AND hash IS NOT NULL
    AND at BETWEEN ? AND ? ORDER BY id DESC
"""


def window(seconds):
    """The first and the last moment at which an event counts. A later one is from a clock that was
    ahead."""
    return time.time() - seconds, time.time() + CLOCK_SECONDS


def noted(error, note):
    """The error, with a note for the log."""
    error.note = note
    return error


def too_many(what, seconds):
    """resource-exhausted, for so many seconds."""
    wait = int(seconds) + 1
    error = ScriptoError("resource-exhausted", f"Too many {what}.", f"retry in {wait} seconds",
                         headers=[("Retry-After", str(wait))])
    return noted(error, "too many " + what)


def wrong_code(left, note):
    """The refusal of a code. left: how many tries it has; below 0 if that is not to be told."""
    text = "The code is wrong or has expired."
    if left == 0:
        text = "The code is wrong. That was the last try: this code is used up."
    elif left > 0:
        tries = "1 try is" if left == 1 else f"{left} tries are"
        text = f"The code is wrong; {tries} left. Compare the digits and run it again."
    return noted(invalid(text, NEXT_CODE), note)


def hash_of(secret):
    """A plain hash is enough for a key or a ticket: nobody guesses so many random bytes."""
    import hashlib  # lazy

    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()


def shown(rows):
    """As objects for JSON, with points in time as text."""
    return [{name: timestamp(row[name]) if name.endswith("At") else row[name]
             for name in row.keys()} for row in rows]


class Store:
    """Each method that writes does so in a transaction, and what it returned survives a power cut.
    SQLite's own locks hold off other programs. Reads have a connection of their own, which waits
    for no writer. All rows are fetched: on PyPy a statement would stay open, and COMMIT fail."""

    def __init__(self, ctx, path, use):
        """use: "serve" makes a file that is not there, "change" does not, and "read" writes nothing
        at all. Raises failed-precondition."""
        import sqlite3  # lazy
        import threading

        self.lock, self.read_lock = threading.Lock(), threading.Lock()
        self.room = threading.BoundedSemaphore(WRITERS)
        if not path:
            home = xdg_folder(ctx, "XDG_DATA_HOME", ".local/share", "pass --db FILE")
            path = os.path.join(home, "scripto", "scripto.db")
        self.path = os.path.abspath(path)  # of `:memory:`, too, which would be lost at the end
        try:
            refuse_links(self.path)
            self.open(use)
        except (OSError, UnicodeError, sqlite3.Error) as error:
            raise self.trouble(error) from error

    def trouble(self, error):
        """failed-precondition, for what SQLite or the system said."""
        import sqlite3  # lazy

        hint = "mend that, or pass --db FILE if you mean another"
        if "locked" in str(error):
            hint = "another program holds it: wait for that program, or end it"
        elif type(error) is sqlite3.DatabaseError:  # it is damaged, or none
            hint = "restore a backup; sqlite3's command .recover may save what is in there"
        return failed(f"The database {self.path} cannot be used: {error}.", hint)

    def open(self, use):
        missing = not os.path.exists(self.path)
        if use == "serve":
            make_folders(os.path.dirname(self.path))
        elif missing:
            raise OSError("there is no such file")
        if use == "read":
            self.db = self.reader = self.connect_to_read()
            return self.check_version()
        self.db = self.connect("rwc")
        if missing:
            give(self.path)
        self.file = os.stat(self.path)
        self.run("PRAGMA synchronous = FULL")
        if use == "serve":
            self.make_tables()
        self.check_version()
        os.chmod(self.path, 0o600)  # SQLite gives that to the files beside it, too
        self.run("PRAGMA journal_mode = WAL")
        self.reader = self.connect("rw", 0)
        self.read("PRAGMA synchronous = NORMAL")
        self.secret = self.read("SELECT value FROM secret")[0][0]
        self.check()

    def connect(self, mode, seconds=WRITE_SECONDS):
        """mode: of the file, as SQLite's URIs have it. seconds: how long the connection waits for
        another program that writes."""
        import pathlib  # lazy
        import sqlite3

        self.uri = f"{pathlib.Path(self.path).as_uri()}?mode={mode}"
        db = sqlite3.connect(self.uri, uri=True, timeout=seconds, isolation_level=None,
                             check_same_thread=False)
        db.row_factory = sqlite3.Row
        return db

    def connect_to_read(self):
        """On a read-only mount SQLite reads only a file that it is told nobody changes. That is so
        where no write-ahead log is beside the file."""
        import sqlite3  # lazy

        db = self.connect("ro")
        try:
            db.execute("PRAGMA user_version").fetchall()
            return db
        except sqlite3.OperationalError:
            db.close()
            if os.path.exists(self.path + "-wal"):
                raise
        return self.connect("ro&immutable=1")

    def check_version(self):
        """Raises failed-precondition. Whoever started with a new file would lock everybody out, so
        no hint says to pass another."""
        if self.run("PRAGMA user_version")[0][0] != VERSION:
            raise failed(f"{self.path} is no database of this version of scripto.",
                         "keep it; update scripto, or use the version that made it")

    def make_tables(self):
        """Nothing happens to a file that has some."""
        with self.transaction():
            if not self.run("SELECT 1 FROM sqlite_master"):
                for statement in SCHEMA.split(";"):
                    self.run(statement)
                self.run("INSERT INTO secret (value) VALUES (?)", os.urandom(32))

    def close(self):
        self.reader.close()
        self.db.close()

    def run(self, sql, *values):
        return self.db.execute(sql, values).fetchall()

    def read(self, sql, *values):
        with self.read_lock:
            return self.reader.execute(sql, values).fetchall()

    @context_manager
    def transaction(self):
        """At its end all that was run is on the disk; if anything is raised, nothing is. Raises
        internal if too many wait already, since others need the connections."""
        busy = noted(ScriptoError("internal", "The database is busy.", NEXT_RETRY), "too many wait")
        if not self.room.acquire(blocking=False):
            raise busy
        try:
            if not self.lock.acquire(timeout=WRITE_SECONDS):
                raise busy
            try:
                self.run("BEGIN IMMEDIATE")
                yield
                self.run("COMMIT")
            finally:
                self.db.rollback()  # if it is still open, also where COMMIT failed
                self.lock.release()
        finally:
            self.room.release()

    def check(self):
        """Raises unless a row of each table can be read as requests do, and the file is still at
        its path: what is written to a deleted file is lost."""
        for table, column in TABLES.items():
            self.read(f"SELECT * FROM {table} ORDER BY {column} LIMIT 1")
        if not os.path.samestat(self.file, os.stat(self.path)):
            raise OSError(errno.ESTALE, "another database is in its place")

    def code_hash(self, email, code):
        """With a secret key, since a plain hash of six digits hides nothing."""
        import hmac  # lazy

        return hmac.new(self.secret, f"{email}\0{code}".encode(), "sha256").digest()

    def events(self, kind, column, value):
        """(time, address) of each within a day, the oldest first."""
        sql = (f"SELECT at, address FROM events WHERE {column} = ? AND kind = ?"
               " AND at BETWEEN ? AND ? ORDER BY at")
        return self.run(sql, value, kind, *window(DAY)) if value else []

    def check_limits(self, kind, email, address):
        """Raises resource-exhausted if a limit is reached. An email or address of "" has none."""
        events = {"email": self.events(kind, "email", email),
                  "address": self.events(kind, "address", address)}
        events["email from an address"] = [
            event for event in events["email"] if event["address"] == address]
        waits = [(events[whose][-most]["at"] + seconds - time.time(), whose)
                 for whose, most, seconds in LIMITS[kind] if len(events[whose]) >= most]
        wait, whose = max(waits, default=(0, ""))
        if wait > 0:
            what = "wrong codes" if kind == "wrong" else "code requests"
            raise too_many(f"{what} for this {whose.split()[0]}", wait)

    def add_event(self, kind, email, address, code_hash=None, ticket=None):
        """Returns its number. Some old events go: all of them might be millions."""
        self.run("DELETE FROM events WHERE id IN (SELECT id FROM events ORDER BY id LIMIT 100)"
                 " AND at NOT BETWEEN ? AND ?", *window(DAY))
        return self.db.execute(
            "INSERT INTO events (kind, email, address, at, hash, ticket) VALUES (?, ?, ?, ?, ?, ?)",
            (kind, email, address, time.time(), code_hash, ticket)).lastrowid

    def put_code(self, email, address, code, ticket):
        """Stores the request with its code, before a mail brings it, and returns its number. Other
        codes stay, so that a mail that fails has ended none."""
        with self.transaction():
            self.check_limits("request", email, address)
            return self.add_event("request", email, address, self.code_hash(email, code),
                                  hash_of(ticket))

    def take_back(self, number, charged):
        """Removes the code of a mail that failed and, unless it is charged, the request."""
        with self.transaction():
            if charged:
                self.run("UPDATE events SET hash = NULL WHERE id = ?", number)
            else:
                self.run("DELETE FROM events WHERE id = ?", number)

    def redeem(self, email, address, code, ticket, key):
        """Makes a key if the code is good, and returns what its owner gets: the key itself leaves
        only here. key: (name, how many seconds it lasts, None for good). Raises invalid-argument,
        but after the transaction, which would undo the count of the wrong code."""
        import hmac  # lazy

        entered, ticket = self.code_hash(email, code), hash_of(ticket)
        with self.transaction():
            codes = self.run(CODES, email, *window(CODE_SECONDS))
            own = [each for each in codes if each["ticket_tries"] > 0
                   and hmac.compare_digest(each["ticket"], ticket)]
            good = [each for each in codes[:LIVE_CODES] if each["tries"] > 0]
            self.check_limits("wrong", "" if own else email, address)
            if any([hmac.compare_digest(each["hash"], entered) for each in own + good]):
                return self.mint(email, *key)
            refusal = self.count_wrong(email, address, own, good)
        raise refusal

    def count_wrong(self, email, address, own, good):
        """Returns the refusal. One event is written whether a code is live or not, or the time
        would tell. Whoever asked for a code, from this address or with this ticket, is told how
        many tries are left. To a stranger the answer is the same whether a code is live or not."""
        self.add_event("wrong", email if good and not own else "", address)
        tries = [code["tries"] for code in good if code["address"] == address]
        if own:
            tries = [own[0]["ticket_tries"]]
            self.run("UPDATE events SET ticket_tries = ticket_tries - 1 WHERE id = ?", own[0]["id"])
        note = "wrong code" if own or good else "no live code"
        return wrong_code(max(tries, default=0) - 1, note)

    def mint(self, email, name, seconds):
        """Makes a key, and a user for a new email, and ends all codes of that email."""
        import secrets  # lazy

        now = time.time()
        expires = None if seconds is None else now + seconds
        key, key_id = KEY_PREFIX + secrets.token_urlsafe(32), "key_" + secrets.token_hex(12)
        self.run("UPDATE events SET hash = NULL WHERE email = ? AND kind = 'request'", email)
        self.run("INSERT OR IGNORE INTO users (id, email, created_at) VALUES (?, ?, ?)",
                 "user_" + secrets.token_hex(12), email, now)
        user_id = self.run("SELECT id FROM users WHERE email = ?", email)[0]["id"]
        self.run("INSERT INTO keys (id, user_id, hash, name, start, created_at, expires_at)"
                 " VALUES (?, ?, ?, ?, ?, ?, ?)", key_id, user_id, hash_of(key), name,
                 key[len(KEY_PREFIX) :][:6], now, expires)
        return {"apiKey": key, "keyId": key_id, "userId": user_id, "email": email,
                "expiresAt": timestamp(expires)}

    def find_key(self, key):
        """Its row, with its user's email; None if it is nobody's."""
        rows = self.read("SELECT keys.*, email FROM keys JOIN users ON users.id = user_id"
                         " WHERE hash = ?", hash_of(key))
        return rows[0] if rows else None

    def note_use(self, key):
        """At most once a minute. If it cannot be noted at once, the next use will be: neither a
        full disk nor another writer keeps anybody out."""
        import sqlite3  # lazy

        now = time.time()
        if not now - 60 < (key["last_used_at"] or 0) <= now:
            with contextlib.suppress(sqlite3.Error):
                self.read("UPDATE keys SET last_used_at = ? WHERE user_id = ? AND id = ?",
                          now, key["user_id"], key["id"])

    def keys_of(self, user_id):
        return shown(self.read(
            "SELECT id, name, start, created_at AS createdAt, last_used_at AS lastUsedAt,"
            " expires_at AS expiresAt FROM keys WHERE user_id = ? ORDER BY created_at, id",
            user_id))

    def delete_key(self, user_id, key_id):
        """False for a key that this user has not."""
        sql = "DELETE FROM keys WHERE user_id = ? AND id = ?"
        with self.transaction():
            return self.db.execute(sql, (user_id, key_id)).rowcount > 0

    def users(self):
        return shown(self.read(
            "SELECT email, users.id, users.created_at AS createdAt,"
            " max(last_used_at) AS lastUsedAt, count(keys.id) AS keys"
            " FROM users LEFT JOIN keys ON user_id = users.id"
            " GROUP BY users.id ORDER BY users.created_at"))

    def delete_user(self, email):
        """With all keys and live codes; what limits count stays. False if there is none."""
        with self.transaction():
            self.run("UPDATE events SET hash = NULL WHERE email = ? AND kind = 'request'", email)
            self.run("DELETE FROM keys WHERE user_id IN (SELECT id FROM users WHERE email = ?)",
                     email)
            return self.db.execute("DELETE FROM users WHERE email = ?", (email,)).rowcount > 0

    def copy_to(self, path):
        """Puts a copy at that path, of all as it is at one moment. Raises OSError, sqlite3.Error.
        Python 3.6 has no Connection.backup(), and SQLite before 3.27 no VACUUM INTO."""
        import sqlite3  # lazy
        import tempfile

        place, name = os.path.split(path)
        descriptor, beside = tempfile.mkstemp(prefix=name + ".", dir=place)  # with mode 0600
        os.close(descriptor)
        copies = [f"INSERT INTO {table} SELECT * FROM source.{table}" for table in TABLES]
        try:
            copy = sqlite3.connect(beside, isolation_level=None, uri=True)
            with contextlib.closing(copy):
                copy.execute("ATTACH ? AS source", (self.uri,)).fetchall()
                copy.executescript(";".join(["BEGIN", SCHEMA, *copies, "COMMIT"]))
            os.replace(beside, path)
        finally:
            remove(beside)  # if it is still there


# ---- Log ------------------------------
# The backend's log, on standard error. One thread writes it, so that a reader who is slow, or a
# terminal that nobody reads, holds up no request.

LOG_LINES = 1000  # that may wait to be written


class Log:
    def __init__(self, ctx):
        import queue  # lazy
        import threading

        self.ctx, self.lines, self.dropped = ctx, queue.Queue(), False
        self.thread = threading.Thread(target=self.write, daemon=True)

    def put(self, text):
        """Adds a line, if there is room."""
        if self.lines.qsize() < LOG_LINES:
            self.lines.put(f"{timestamp(time.time())} {text}")
        else:
            self.dropped = True

    def write(self):
        """Writes until close() puts None. A line that cannot be written is lost."""
        for line in iter(self.lines.get, None):
            with contextlib.suppress(OSError, ValueError):  # standard error is closed
                if self.dropped:
                    self.dropped = False
                    emit_lines(self.ctx, self.ctx.stderr, ["some lines of the log were dropped"])
                emit_lines(self.ctx, self.ctx.stderr, [line])

    def close(self):
        """Gives the thread a second to write what is left."""
        self.lines.put(None)
        self.thread.join(1)


# ---- Routes ---------------------------
# What the backend answers. A route takes the backend and a request and returns (status, object or
# bytes, headers), or raises ScriptoError. It knows neither sockets nor SQL.

RESOURCE = "/.well-known/oauth-protected-resource"  # RFC 9728, 3


def client_of(address):
    """What is limited as one: an IPv4 address, in either of its forms (RFC 4291, 2.5.5.2), or an
    IPv6 /64, which is one customer's (RFC 6177)."""
    packed = ipv6_bytes(address)
    if packed and packed.startswith(b"\0" * 10 + b"\xff\xff"):
        return ".".join(map(str, packed[12:]))
    return packed[:8].hex() + "/64" if packed else address


def check_rule(rule):
    """Of --allow: an email, or an @ and a domain. A `*` would match nobody."""
    if "*" in rule or not is_email("x" + rule):
        hint = "pass --allow you@example.com, or --allow @example.com for a domain"
        raise misfit(rule, "an email or a domain", hint)
    return rule


class Backend:
    """What routes share. What was said of it is checked here, before anything is opened."""

    def __init__(self, ctx, args):
        import threading  # lazy

        self.ctx = ctx
        self.args = args
        self.host = args.host or "127.0.0.1"
        self.recent = {}
        self.log = Log(ctx)
        self.guard, self.mails = threading.Lock(), threading.BoundedSemaphore(MAILS)
        self.rate_limit = check_number(args.rate_limit or "60", "--rate-limit", 10**9)
        days = args.key_days and check_number(args.key_days, "--key-days", KEY_DAYS, 1)
        self.key_seconds = days * DAY if days else None  # that a key lasts at most
        self.rules = {check_rule(rule.lower()) for rule in args.allow or ()}
        self.public_url, domain = args.public_url, "localhost"
        if args.public_url:
            self.public_url = check_base_url(ctx, args.public_url, "--public-url")
            host = origin_of(self.public_url)[1]
            domain = host if is_email("x@" + host) else domain
        self.sender = args.mail_from or "scripto@" + domain
        if not is_email(self.sender):
            raise misfit(self.sender, "an email address", "pass --mail-from <your-email>")
        self.deliver = delivery_for(ctx, args.mail or "console", self.host, self.sender)

    def count(self, client):
        """Raises resource-exhausted for one that asks too often in a sliding minute."""
        now = time.monotonic()
        with self.guard:
            times = [each for each in self.recent.pop(client, ()) if each > now - 60]
            self.recent[client] = times  # as the latest; the first has been quiet longest
            if len(self.recent) > 9999:
                del self.recent[next(iter(self.recent))]
            if len(times) >= self.rate_limit:
                raise too_many("requests from this address", times[0] + 60 - now)
            times.append(now)

    def admit(self, request, command):
        """(fields, email, client or "") of a public route, if its limit and --allow let it in. A
        page on the web could have its visitors send a form here: their browsers add an Origin."""
        if "origin" in request.headers:
            raise noted(ScriptoError("permission-denied", "Web pages cannot sign in here.",
                                     NEXT_GUIDE), "from a web page")
        client = client_of(request.address()) if self.rate_limit else ""
        if client:
            self.count(client)
        fields = parse_json(request.body, float)  # a huge number is not one that was left out
        if fields is None:
            raise invalid("The body is not a JSON object in UTF-8.", NEXT_EMAIL + command)
        email = check_email(text_of(fields, "email"), command).lower()
        if not self.allows(email):
            hint = f"ask the operator of {self.public_url} to allow it, or use another email"
            raise noted(ScriptoError("permission-denied", "That email is not allowed here.", hint),
                        "not allowed")
        return fields, email, client

    def allows(self, email):
        return not self.rules or bool({email, email[email.index("@") :]} & self.rules)

    def key_of(self, request):
        """The bearer's key (RFC 6750), with its user. Raises unauthenticated."""
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        text = text.strip() if scheme.lower() == "bearer" else ""
        key = self.store.find_key(text)
        if not key:
            raise self.refusal(text, "unknown key" if text else "no key")
        request.note = f"{key['user_id']} {key['id']}"
        if key["expires_at"] is not None and key["expires_at"] <= time.time():
            raise self.refusal(text, "expired", "The key has expired.")
        if not self.allows(key["email"]):
            raise self.refusal(text, "not allowed")
        self.store.note_use(key)
        return key

    def refusal(self, key, note, message="The key is missing or not valid."):
        """unauthenticated, with where it is told how to get in (RFC 6750, 3; RFC 9728, 5.1)."""
        challenge = f'Bearer realm="Scripto", resource_metadata="{self.public_url}{RESOURCE}"'
        if key:
            challenge += ', error="invalid_token"'
        return noted(ScriptoError("unauthenticated", message, NEXT_SIGN_IN,
                                  headers=[("WWW-Authenticate", challenge)]), note)


def success(data):
    return 200, {"success": True, "data": data}, []


def route_login_request(backend, request):
    """The code is live before its mail can arrive. If that fails, all is as before; but a request
    for an address that takes no mail counts, or this would be a way to list mailboxes."""
    import secrets  # lazy

    _, email, client = backend.admit(request, "login-request")
    code, ticket = "%06d" % secrets.randbelow(10**6), secrets.token_urlsafe(16)
    unsent = ScriptoError("internal", "The sign-in code could not be sent.", NEXT_RETRY)
    if not backend.mails.acquire(blocking=False):  # a slow mail server leaves connections to others
        raise noted(unsent, "too many mails under way")
    try:
        number = backend.store.put_code(email, client, code, ticket)
        try:
            backend.deliver(code_mail(backend, email, code, request.address()), email)
        except MAIL_ERRORS as error:
            refused = getattr(error, "code", "") == "invalid-argument"
            backend.store.take_back(number, charged=refused)
            status = getattr(error, "smtp_code", "")  # not its text, which may quote the address
            note = f"mail failed: {type(error).__name__} {status}"
            raise noted(error if refused else unsent, note)
    finally:
        backend.mails.release()
    return success({"ok": True, "email": email, "ticket": ticket})


def seconds_of(backend, fields):
    """How long the new key is to last; None for good."""
    seconds, most = fields.get("expiresIn"), backend.key_seconds
    if seconds is None:
        return most
    if not isinstance(seconds, float) or not 1 <= seconds <= KEY_DAYS * DAY:
        raise invalid(f"expiresIn is no number of seconds up to {KEY_DAYS} days.",
                      "pass another --expires-in")
    return min(seconds, most or seconds)


def route_login_complete(backend, request):
    fields, email, client = backend.admit(request, "login-complete")
    code, ticket = check_code(text_of(fields, "otp")), text_of(fields, "ticket")
    name = check_key_name(text_of(fields, "name")) or "scripto-cli"
    seconds = seconds_of(backend, fields)
    data = backend.store.redeem(email, client, code, ticket, (name, seconds))
    request.note = f"{data['userId']} {data['keyId']}"
    return success(data)


def route_me(backend, request):
    """Two odd shapes, the product's. The headers are for web servers that guard pages."""
    try:
        key = backend.key_of(request)
    except ScriptoError as error:
        request.note += " " + error.note
        more = {"message": error.message} if error.note == "expired" else {}
        return 401, dict(more, error="Unauthorized"), error.headers
    user_id, email = key["user_id"], key["email"]
    headers = [("X-Scripto-User", user_id), ("X-Scripto-Email", email.encode().decode("latin-1"))]
    return 200, {"user": {"id": user_id, "email": email, "name": ""}}, headers


def route_keys(backend, request):
    return success({"keys": backend.store.keys_of(backend.key_of(request)["user_id"])})


def route_key(backend, request):
    user_id = backend.key_of(request)["user_id"]
    key_id = request.path.rpartition("/")[2]
    if not backend.store.delete_key(user_id, key_id):
        raise ScriptoError("not-found", "There is no such key.", "see the ids at GET /api/keys")
    return success({"id": key_id, "revoked": True})


def route_health(backend, request):
    backend.store.check()
    return success({"ok": True, "version": __version__})


def route_resource(backend, request):
    """RFC 9728, 2 and 3.2."""
    url = backend.public_url
    return 200, {"resource": url, "resource_name": "Scripto",
                 "bearer_methods_supported": ["header"],
                 "resource_documentation": url + "/llms.txt"}, []


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


def route_guide(backend, request):
    return 200, guide_text(backend.public_url).encode(), []


ROUTES = {  # path: (methods, route); HEAD is a GET whose body is not sent (RFC 9110, 9.3.2)
    "/api/cli/login-request": ("POST", route_login_request),
    "/api/cli/login-complete": ("POST", route_login_complete),
    "/api/auth/me": ("GET, HEAD", route_me),
    "/api/keys": ("GET, HEAD", route_keys),
    "/api/keys/<id>": ("DELETE", route_key),
    "/healthz": ("GET, HEAD", route_health),
    RESOURCE: ("GET, HEAD", route_resource),
    "/scripto.py": ("GET, HEAD", route_source),
    "/llms.txt": ("GET, HEAD", route_guide),
    "/": ("GET, HEAD", route_guide),
}


def pattern_of(path):
    """The entry in ROUTES, or None. Logs name this: who knows what a path holds."""
    path = re.sub(r"^/api/keys/[^/]+$", "/api/keys/<id>", path)
    return path if path in ROUTES else None


def reply_to(backend, request):
    methods, route = ROUTES.get(pattern_of(request.path), ("GET, HEAD, POST, DELETE", None))
    if request.method not in methods.split(", "):
        raise ScriptoError("invalid-argument", f"This path takes only {methods}.", NEXT_GUIDE, 405,
                           [("Allow", methods)])
    if not route:
        raise ScriptoError("not-found", "There is nothing here.", NEXT_GUIDE)
    return route(backend, request)


# ---- Server ---------------------------
# A request's way: Server accepts the connection and makes room for it; Connection has a thread and
# a deadline for it; Request reads its head by one strict grammar; handle() is the edge, which calls
# reply_to() of the Routes.

FOREVER = float("inf")
BACKLOG = 128  # connections that the system keeps until they are accepted
SPARE = 8  # threads, or descriptors, that are left for mails where there are few
SHORT_SECONDS = 60  # after which it is tried again whether there are more
LINGER_SECONDS = 2  # for a client to hear a refusal, while it is still sending


def server_tls(args):
    if not args.tls_cert and not args.tls_key:
        return None
    import ssl  # lazy

    if not args.tls_cert or not args.tls_key:
        flag = "--tls-key" if args.tls_cert else "--tls-cert"
        raise invalid(f"The {flag[2:]} is missing.", f"pass {flag} <your-file>, too")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(args.tls_cert, args.tls_key)
    except (OSError, ValueError) as error:
        hint = "pass --tls-cert and --tls-key: PEM files that belong together"
        raise invalid(f"The certificate cannot be used: {error}.", hint) from error
    return context


class Request:
    """What a route gets: method, path (without its query), headers (names in lower case; values of
    repeated fields joined by ", "), body and address(). A route may set `note` for the log."""

    method, path, body, note = "-", "", b"", ""
    length, keep = 0, False  # of the body; whether the connection stays for the next request

    def __init__(self, peer, behind_proxy):
        self.peer, self.behind_proxy, self.headers = peer, behind_proxy, {}

    def parse(self, head):
        """Raises invalid-argument for a head that a proxy in front might read in another way, since
        the two could see different requests (RFC 9112, 11.2; also 2.2, 3.2, 5 and 6.3)."""
        form = (r"([A-Za-z]{1,9}) ([!-~]+) HTTP/1\.([01])\r\n"
                r"((?:[!#-'*+.^`|~0-9A-Z_a-z-]+:[\t -~\x80-\xff]*\r\n)*)\r\n\Z")
        match = re.match(form, head.decode("latin-1"))
        if not match:
            raise invalid("The request is not valid HTTP/1.1.", NEXT_GUIDE)
        self.method, target, minor, block = match.groups()
        self.path = re.sub("(?i)^https?://[^/?]*", "", target).partition("?")[0]
        fields = block.split("\r\n")[:-1]
        if len(fields) > HEAD_FIELDS:
            raise invalid("The header has too many fields.", NEXT_GUIDE, 431)
        headers = self.headers
        for field in fields:
            name, _, value = field.partition(":")
            name, value = name.lower(), value.strip(" \t")
            headers[name] = headers[name] + ", " + value if name in headers else value
        self.check(minor == "1")

    def check(self, persistent):
        """Two hosts, or two lengths, are one value with a comma here, which is refused."""
        headers = self.headers
        if "transfer-encoding" in headers:
            raise invalid("A body has to come with its length, not in chunks.", NEXT_GUIDE, 501)
        length, host = headers.get("content-length", "0"), headers.get("host", "")
        plain = re.match(r"[0-9]{1,9}\Z", length)
        if not plain or "," in host or (persistent and "host" not in headers):
            raise invalid("The header is malformed.", NEXT_GUIDE)
        self.length = int(length)
        if self.length > BODY_BYTES:
            raise invalid(f"The body is larger than {BODY_BYTES} bytes.", NEXT_GUIDE, 413)
        self.keep = persistent and "close" not in headers.get("connection", "").lower()

    def address(self):
        """The client's. With --behind-proxy it is what the nearest proxy saw."""
        if self.behind_proxy:
            last = self.headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
            ipv4 = re.match(r"[0-9]+\.[0-9.]+", last)  # some proxies add a port
            if ipv4 or ipv6_bytes(last):
                return ipv4.group() if ipv4 else last
        return self.peer


def handle(backend, request, refusal):
    """The reply, as (status, object or bytes, headers), and a line for the log. refusal: an error
    that read() found, or None. This is the edge: whatever is raised below becomes a reply."""
    note = ""
    try:
        if refusal:
            raise refusal
        reply = reply_to(backend, request)
    except ScriptoError as error:
        reply, note = error.reply(), error.note
    except Exception as error:
        status = 503 if request.path == "/healthz" else 500
        reply = ScriptoError("internal", "The backend failed.", NEXT_RETRY, status).reply()
        note = "fault: " + bug(error)
    words = [request.address(), request.method, pattern_of(request.path) or "-", str(reply[0])]
    return reply, " ".join(words + [each.strip() for each in (request.note, note) if each])


def reply_bytes(request, status, body, headers):
    """The reply in one piece, so that it is one packet if it fits."""
    import http  # lazy
    import json

    kind = "text/plain; charset=utf-8"
    if isinstance(body, dict):
        kind, body = "application/json", json.dumps(body).encode("ascii")
    lines = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if not request.keep:
        lines.append("Connection: close")
    now = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())  # RFC 9110, 5.6.7
    lines += [f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Cache-Control: no-store",
              f"Date: {now}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + (b"" if request.method == "HEAD" else body)


class Connection:
    """One client, with a thread of its own. `until` is the deadline for the client's part: to send
    a request, or to take a reply. While a route works there is none."""

    def __init__(self, server, plain, peer):
        import threading  # lazy

        self.server, self.socket, self.peer, self.client = server, plain, peer, client_of(peer)
        self.data = b""  # that has arrived, and belongs to no request yet
        self.until = time.monotonic() + READ_SECONDS
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        import socket  # lazy

        try:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.server.tls:  # the handshake comes with the first recv()
                self.socket = self.server.tls.wrap_socket(self.socket, True, False)
            while self.serve_one():
                pass
            self.linger()
        except OSError:
            pass  # the client has gone, was too slow, or had to make room
        except Exception as error:
            self.server.backend.log.put("fault in a connection: " + bug(error))
        finally:
            with self.server.guard:
                self.server.open.discard(self)
            self.socket.close()

    def serve_one(self):
        """One request and its reply. False: it was the last one."""
        backend = self.server.backend
        request = Request(self.peer, backend.args.behind_proxy)
        refusal = self.read(request)
        self.expect(FOREVER)
        reply, line = handle(backend, request, refusal)
        try:
            self.expect(READ_SECONDS)  # also for the next request to come
            request.keep = request.keep and not self.server.stopping
            self.in_time().sendall(reply_bytes(request, *reply))
        finally:
            backend.log.put(line)
        return request.keep

    def read(self, request):
        """Returns None, or an error if the request is refused. That request is the last one, since
        nobody knows where the next one would start. Raises OSError if no request comes."""
        try:
            request.parse(self.read_head())
        except ScriptoError as error:
            return error
        if "expect" in request.headers and request.length > len(self.data):
            self.in_time().sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        while request.length > len(self.data):
            self.receive()
        request.body, self.data = self.data[: request.length], self.data[request.length :]
        return None

    def read_head(self):
        """The bytes up to the empty line, and with it."""
        while b"\r\n\r\n" not in self.data[:HEAD_BYTES]:
            if len(self.data) >= HEAD_BYTES:
                raise invalid(f"The header is larger than {HEAD_BYTES} bytes.", NEXT_GUIDE, 431)
            self.receive()
        end = self.data.index(b"\r\n\r\n") + 4
        head, self.data = self.data[:end], self.data[end:]
        return head

    def expect(self, seconds):
        """Gives the next step so many seconds. Raises OSError if this client had to make room."""
        with self.server.guard:
            self.until = time.monotonic() + seconds
            if self not in self.server.open:
                raise ConnectionError

    def in_time(self):
        """The socket, whose next call has the time that is left (0 would mean not to wait)."""
        self.socket.settimeout(max(self.until - time.monotonic(), 0.001))
        return self.socket

    def receive(self):
        """Adds what comes to `data`. Raises OSError at the end, and when it is too late."""
        part = self.in_time().recv(BODY_BYTES)
        if not part:
            raise ConnectionError
        self.data += part

    def shut(self, how):
        """By the plain socket's shutdown(): after that of TLS a send() would be in the clear."""
        import socket  # lazy

        try:
            socket.socket.shutdown(self.socket, getattr(socket, how))
        except OSError:
            pass  # it has gone already

    def linger(self):
        """Reads on for a while: to close a connection with unread bytes resets it, and the client
        loses the reply (RFC 9112, 9.6). Raises OSError at its end."""
        self.shut("SHUT_WR")
        self.expect(LINGER_SECONDS)
        while True:
            self.receive()
            self.data = b""


class Server:
    """Listens, and starts a thread for each connection. `open` holds those that have a place,
    `most` is how many that may be. `url` names the address and the port that it listens at."""

    def __init__(self, backend, port, tls):
        """Raises OSError or UnicodeError if it cannot listen there."""
        import socket  # lazy
        import threading

        self.backend, self.tls, self.stopping = backend, tls, False
        self.open, self.most, self.guard = set(), CONNECTIONS, threading.Lock()
        self.short_until = 0
        host = backend.host
        self.listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if os.name == "posix":  # on Windows two servers would share the port
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind((host, port))
        self.listener.listen(BACKLOG)
        host = f"[{host}]" if ":" in host else host
        port = self.listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://{host}:{port}"
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        """Accepts until a signal comes, and then whoever is waiting already."""
        self.listener.settimeout(0.1)
        while not self.stopping:
            self.accept()
        self.listener.settimeout(0)
        for _ in range(BACKLOG):
            self.accept()
        self.listener.close()

    def accept(self):
        """Waits a moment for one connection."""
        import socket  # lazy

        try:
            plain, address = self.listener.accept()
            connection = Connection(self, plain, address[0])
        except (socket.timeout, BlockingIOError, ConnectionError):  # the last: it has gone again
            return
        except (OSError, MemoryError):  # most likely no descriptor is left
            return self.ran_out()
        self.start(connection)

    def start(self, connection):
        """Where no place or no thread is left, a client makes room, if need be this one."""
        if time.monotonic() > self.short_until:
            self.most = CONNECTIONS
        with self.guard:
            self.open.add(connection)
        while connection in self.open:
            try:
                if len(self.open) <= self.most:
                    return connection.thread.start()
                self.make_room()
            except (RuntimeError, MemoryError):  # no thread is left
                self.ran_out()
        connection.socket.close()

    def make_room(self):
        """The client with the most connections loses one: that with the earliest deadline, of those
        that no route works for."""
        with self.guard:
            held = collections.Counter(each.client for each in self.open)
            idle = [each for each in self.open if each.until < FOREVER]
            self.cut(sorted(idle, key=lambda each: (-held[each.client], each.until))[:1])

    def cut(self, connections):
        """Takes their places at once; their threads see that and end."""
        for connection in connections:
            self.open.discard(connection)
            connection.shut("SHUT_RDWR")

    def ran_out(self):
        """This machine has fewer threads or descriptors than CONNECTIONS, for now at least: leaves
        some for mails. The pause is for threads that were cut to end."""
        self.short_until = time.monotonic() + SHORT_SECONDS
        self.most = max(len(self.open) - SPARE, SPARE)
        self.make_room()
        time.sleep(0.05)

    def finish(self):
        """Answers what has arrived: for a second the threads read what is there, then the idle are
        cut off, and those at work are waited for."""
        self.stopping = True
        self.thread.join()
        with self.guard:
            left = list(self.open)
        for seconds in (1, MAIL_SECONDS + READ_SECONDS):
            late = time.monotonic() + seconds
            for connection in left:
                connection.thread.join(max(late - time.monotonic(), 0))
            with self.guard:
                self.cut([each for each in self.open if each.until < FOREVER])


# ---- Operator -------------------------
# The commands for whoever runs a backend. While it serves, the main thread only waits, so that a
# signal may raise an error there.

ENDINGS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGBREAK")  # the last: Windows' Ctrl-Break


def on_signals(handler):
    """Sets it for all that end a program, but for those that are ignored, as under nohup(1)."""
    import signal  # lazy

    for name in ENDINGS:
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def stop(number, _):
    """A handler. Later signals are ignored, since they would interrupt the cleaning up."""
    import signal  # lazy

    on_signals(signal.SIG_IGN)
    raise KeyboardInterrupt(number)


def server_for(ctx, args):
    """A server that listens, with its backend and database, but does not serve yet. The modules for
    requests are loaded here, since a request may come when no descriptor is left to read them."""
    import http  # noqa: F401  lazy
    import json  # noqa: F401
    import mailbox  # noqa: F401
    import secrets  # noqa: F401
    import traceback  # noqa: F401

    backend, tls = Backend(ctx, args), server_tls(args)
    port = check_number(args.port or "8787", "--port", 65535)
    backend.store = Store(ctx, args.db, "serve")
    try:
        server = Server(backend, port, tls)
    except (OSError, UnicodeError) as error:
        backend.store.close()
        hint = "pass another --host or --port; --port 0 takes a free one"
        raise failed(f"Cannot listen at {backend.host}, port {port}: {error}.", hint) from error
    backend.local_url = server.url.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")
    backend.public_url = backend.public_url or backend.local_url
    backend.source = own_source(backend.public_url)
    return server


@context_manager
def serving(ctx, args):
    """A server that serves while the block runs, in threads of its own."""
    import signal  # lazy

    server = server_for(ctx, args)
    backend = server.backend
    backend.log.thread.start()
    server.thread.start()
    try:
        yield server
    finally:
        on_signals(signal.SIG_IGN)
        server.finish()
        backend.store.close()
        backend.log.close()


def introduce(ctx, backend):
    """Says at a terminal how to sign in, and what would keep clients out."""
    if not is_terminal(ctx.stderr):
        return
    url = backend.public_url
    near = is_loopback(backend.host) and is_loopback(origin_of(url)[1])
    if url.startswith("http:") and not near:
        warn(ctx, "Clients refuse plain http beyond loopback: serve https (--tls-cert), or say what"
                  " does in front of it (--public-url).")
    say(ctx, f"{NEXT_SIGN_IN} --api-url {url}")


def throw_away(args):
    """A folder that is deleted at the end. Database and mail go there unless flags say otherwise,
    and the port is a free one."""
    import tempfile  # lazy

    try:
        folder = tempfile.TemporaryDirectory(prefix="scripto-")
    except OSError as error:
        problem = f"There is no place for temporary files: {error}."
        raise failed(problem, "set TMPDIR to one") from error
    args.port, args.db = args.port or "0", args.db or os.path.join(folder.name, "scripto.db")
    args.mail = args.mail or "maildir:" + os.path.join(folder.name, "mail")
    return folder


def start_command(ctx, args, url):
    """With this backend in its environment, and with the umask that this program was given."""
    import subprocess  # lazy

    env = dict(ctx.env, SCRIPTO_API_BASE_URL=url)
    kind, _, folder = args.mail.partition(":")
    if kind == "maildir":
        env["SCRIPTO_CODE_FROM"] = "maildir:" + os.path.abspath(with_home(folder))
    own = os.umask(ctx.umask)
    try:
        # In a group of its own, so that what it starts can be ended, too; at a terminal that would
        # take the keyboard from it.
        return subprocess.Popen(args.command, env=env, start_new_session=not is_terminal(ctx.stdin))
    except (OSError, ValueError) as error:
        raise not_run(args.command, error) from error
    finally:
        os.umask(own)


def pass_on(ctx, process, number):
    """Ctrl-C and Ctrl-\\ at a terminal reach it anyway, as all signals do on Windows."""
    if os.name == "posix" and not (number in (2, 3) and is_terminal(ctx.stdin)):
        try:
            os.kill(-process.pid, number)
        except OSError:  # at a terminal it has no group of its own
            process.send_signal(number)


def run_beside(ctx, args, url):
    """Runs the command, passes signals on to it, and ends what it started. Returns its exit status,
    as a shell has it."""
    signals = []
    on_signals(lambda number, _: signals.append(number))
    process = start_command(ctx, args, url)
    try:
        while process.poll() is None:
            time.sleep(0.05)  # no longer, since on Windows no signal would end it
            while signals:
                pass_on(ctx, process, signals.pop(0))
    finally:
        end_command(process)
    status = process.returncode
    return 128 - status if status < 0 else status


def cmd_serve(ctx, args):
    """Serves until a signal comes; with a command, in a folder of its own, until that ends."""
    try:
        with contextlib.ExitStack() as stack:
            if args.command:
                stack.enter_context(throw_away(args))
            server = stack.enter_context(serving(ctx, args))
            backend = server.backend
            urls = {"url": server.url, "publicUrl": backend.public_url}
            show(ctx, urls, ["listening on " + server.url])
            introduce(ctx, backend)
            if args.command:
                url = backend.public_url if server.tls else backend.local_url
                return run_beside(ctx, args, url)
            while True:
                time.sleep(0.5)
    except KeyboardInterrupt as cause:
        return interrupted(cause, "").exit_status if args.command else 0


@context_manager
def opened_store(ctx, args, use):
    """The database, while the block runs. Raises failed-precondition for what SQLite says in it."""
    import sqlite3  # lazy

    store = Store(ctx, args.db, use)
    try:
        yield store
    except sqlite3.Error as error:
        raise store.trouble(error) from error
    finally:
        store.close()


def cmd_users(ctx, args):
    """Beside a running server, or without."""
    with opened_store(ctx, args, "read") as store:
        rows = store.users()
    lines = [f"{row['email']:32}  {row['id']}  since {row['createdAt']}  last use"
             f" {row['lastUsedAt'] or 'never'}  keys {row['keys']}" for row in rows]
    return {"users": rows}, lines or ["Nobody has signed up yet."]


def cmd_users_remove(ctx, args):
    email = args.email.lower()
    with opened_store(ctx, args, "change") as store:
        confirm(ctx, f"Remove {email}, with every key?", shell_word(args.email))
        known = store.delete_user(email)
    if not known:
        hint = "see who has with: " + ctx.then("users list")
        raise ScriptoError("not-found", f"Nobody has signed up as '{email[:EMAIL_LENGTH]}'.", hint)
    return {"removed": email}, [f"✓ Removed: {email}, with every key"]


def check_replaceable(path, database):
    """Only an older backup, or an empty file, gives way to a backup: no device, and no part of a
    database that is in use, which has its log beside it. Raises OSError, invalid-argument."""
    if not os.path.exists(path):
        return
    if os.path.samefile(path, database):
        raise invalid("That is the database itself.", "pass another FILE")
    start = b"?"
    beside = path.endswith(("-wal", "-shm", "-journal"))  # a database; such a file may be empty
    if os.path.isfile(path) and not beside:  # to open a FIFO would hang
        with open(path, "rb") as file:
            start = file.read(16)
    if start not in (b"", b"SQLite format 3\0") or os.path.exists(path + "-wal"):
        raise OSError("what is there is no backup, or is in use")


def cmd_backup(ctx, args):
    """Beside a running server, or without. The last copy stays until the new one is whole; a link
    stays, too, as /dev/stdout has to."""
    import sqlite3  # lazy

    path = os.path.realpath(args.file)
    with opened_store(ctx, args, "read") as store:
        try:
            check_replaceable(path, store.path)
            store.copy_to(path)
        except (OSError, UnicodeError, sqlite3.Error) as error:
            problem = f"The backup {path} cannot be written: {error}."
            raise failed(problem, "mend that, or pass another FILE") from error
    return {"file": path}, [f"✓ Saved: {path}"]


def demo_steps(folder, program, env):
    """The two commands, with the mail in between, and whoami, each as {"command", "output"}. Raises
    internal unless it worked."""
    import subprocess  # lazy

    def step(words):
        process = subprocess.run([sys.executable, program] + words.split(), env=env,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output = process.stdout.decode("utf-8", "replace")
        if process.returncode:
            text = f"The demo failed at 'scripto {words}': " + " ".join(output.split())
            raise ScriptoError("internal", text, NEXT_DOCTOR + "scripto doctor")
        return {"command": "$ scripto " + words, "output": output}

    yield step("auth login-request --email you@example.com")
    (name,) = os.listdir(folder)
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        mail = file.read()
    yield {"command": "The mail that came:", "output": mail}
    code = re.search(r"Subject: (\d{6}) ", mail).group(1)
    yield step("auth login-complete --email you@example.com --code " + code)
    yield step("whoami")


def cmd_demo(ctx, args):
    """Real processes, HTTP and mail, in a home of their own."""
    import copy  # lazy

    program = os.path.abspath(globals().get("__file__", "scripto.py"))
    if not os.path.isfile(program):  # but standard input, or inside a zip file
        raise failed("The demo runs this program's file, and there is none.",
                      "save it as scripto.py, and run: python3 scripto.py demo")
    for flag, _ in arguments_of(ctx.commands["serve"]):  # none of which is given
        setattr(args, flag.strip("-").replace("-", "_"), None)
    silent = copy.copy(ctx)
    silent.stderr = None  # where the log would go
    env = {k: v for k, v in ctx.env.items() if not k.startswith(("SCRIPTO_", "XDG_"))}
    with throw_away(args) as home, serving(silent, args) as server:
        env.update(HOME=home, USERPROFILE=home, PYTHONIOENCODING="utf-8",
                   SCRIPTO_API_BASE_URL=server.url)
        steps = list(demo_steps(os.path.join(home, "mail", "new"), program, env))
    lines = ["A backend of its own, in a folder that is gone by now, listening on " + server.url]
    for step in steps:
        lines += ["", step["command"]] + step["output"].splitlines()
    done = "✓ This is how to sign in, tried with a backend and a home of its own"
    return {"ok": True, "steps": steps}, lines + ["", done]


# ---- Doctor ---------------------------
# What works on this machine and what does not. It only looks: nothing is changed here.
#
# Each function takes (context, arguments, findings so far) and returns (status, message, next
# action), or raises. What later ones need it puts into the findings, under its own name.

MARKS = {"ok": "✓", "skipped": "-", "warning": "!", "error": "✗"}


def examine_python(ctx, args, found):
    return "ok", f"{sys.version.split()[0]} at {sys.executable}", None


def examine_sqlite(ctx, args, found):
    try:
        import sqlite3  # lazy
    except ImportError as error:
        error = missing_module(error)
        return "warning", error.message + " Only serve needs it.", error.next_action
    return "ok", sqlite3.sqlite_version, None


def examine_profiles(ctx, args, found):
    try:
        file = ProfileFile(ctx)
        return "ok", f"{len(file.read()['profiles'])} in {file.shown}", None
    except ScriptoError as error:
        if not error.unseen:
            raise
        return "warning", error.message, error.next_action


def examine_access(ctx, args, found):
    """The key and the base URL in force. A machine at which nobody has signed in yet is well."""
    try:
        found["access"] = target = resolve(ctx, args)
    except ScriptoError as error:
        found["access"] = resolve(ctx, args, with_key=False)  # the backend can be asked without
        if error.code != "unauthenticated":
            raise
        return "warning", error.message, error.next_action
    source = f"profile {target.name}" if target.key_source == "profile" else target.key_source
    sources = f"key from {source}, base URL {target.base_url} from {target.url_source}"
    return "ok", sources, None


def examine_tls(ctx, args, found):
    if not found["access"].base_url.startswith("https"):
        return "skipped", "the base URL is plain http", None
    import ssl  # lazy

    client_tls()
    return "ok", ssl.OPENSSL_VERSION, None


def examine_proxy(ctx, args, found):
    url = found["access"].base_url
    return "ok", f"{without_password(proxy_for(url) or 'none')} for {origin_of(url)[1]}", None


def examine_backend(ctx, args, found):
    """A backend that answers 401 is well: that error is the key's."""
    target = found["access"]
    try:
        call(ctx, target, "GET", "/api/auth/me", "user")
        found["backend"] = None
    except ScriptoError as error:
        if error.answered != 401:
            raise
        found["backend"] = error
    return "ok", target.base_url + " answers", None


def examine_key(ctx, args, found):
    if found["access"].key is None:
        return "skipped", "there is none to ask with", None
    if found["backend"]:
        raise found["backend"]
    warning = expiry_warning(found["access"])
    return ("warning", *warning) if warning else ("ok", "accepted", None)


def examine_skill(ctx, args, found):
    """The skill files of this program that agents look for, in the home and in this folder."""
    import glob  # lazy

    for place in ("~/.*", "~/.config/*", ".*"):
        for path in glob.glob(with_home(place + "/skills/scripto/SKILL.md")):
            with contextlib.suppress(OSError):  # what cannot be read is of no version
                if f'version: "{__version__}"'.encode() in read_from(path, 0)[1]:
                    continue
            hint = "write it anew: scripto guide --skill > " + shell_word(path)
            return "warning", f"{path} is not of version {__version__}", hint
    return "ok", "no skill file of another version", None


CHECKS = {  # name: (its function, the earlier checks that it builds on)
    "python": (examine_python, ()),
    "sqlite": (examine_sqlite, ()),
    "profiles": (examine_profiles, ()),
    "access": (examine_access, ()),
    "tls": (examine_tls, ("access",)),
    "proxy": (examine_proxy, ("access",)),
    "backend": (examine_backend, ("access",)),
    "key": (examine_key, ("access", "backend")),
    "skill": (examine_skill, ()),
}


def finding(ctx, args, found, name):
    """({"name", "status", "message", "nextAction"}, the error that was raised or None)."""
    examine, needs = CHECKS[name]
    missing, error = [need for need in needs if need not in found], None
    try:
        result = "skipped", f"not looked at without {' and '.join(missing)}", None
        if not missing:
            result = examine(ctx, args, found)
    except (ScriptoError, ImportError) as caught:
        error = missing_module(caught) if isinstance(caught, ImportError) else caught
        result = "error", error.message, error.next_action
    return dict(zip(("name", "status", "message", "nextAction"), (name,) + result)), error


def cmd_doctor(ctx, args):
    """The first error is the error of the whole."""
    found, rows, lines, errors = {}, [], [], []
    for name in CHECKS:
        row, error = finding(ctx, args, found, name)
        rows.append(row)
        errors += [error] if error else []
        lines.append(f"{MARKS[row['status']]} {name:9} {row['message']}")
        lines += ["  next: " + row["nextAction"]] if row["nextAction"] else []
    return {"checks": rows}, lines, errors[0] if errors else None


# ---- Completion -----------------------
# Scripts for three shells. At a Tab they call the program back with the words up to the cursor, and
# by the tables it says what may follow. It says nothing with exit status 1 where files are wanted,
# which are the shell's own business.

SHELLS = {
    "bash": r"""_scripto() {
  local IFS=$'\n'
  COMPREPLY=($(scripto __complete bash "${COMP_WORDS[@]:1:COMP_CWORD-1}" "$2" 2>/dev/null)) ||
    compopt -o default 2>/dev/null
}
complete -F _scripto scripto""",
    # By eval behind compinit, or as a file in a folder of fpath.
    "zsh": r"""#compdef scripto
_scripto() {
  local -a found
  found=(${(f)"$(scripto __complete zsh "${(@Q)words[2,CURRENT-1]}" "$PREFIX" 2>/dev/null)"}) ||
    { _files; return }
  _describe scripto found
}
if [[ $funcstack[1] == _scripto ]]; then _scripto; else compdef _scripto scripto; fi""",
    "fish": r"""function __scripto
  set -l words (commandline -opc) (commandline -ct)
  scripto __complete fish $words[2..-1] 2>/dev/null
  or __fish_complete_path $words[-1]
end
complete -f -c scripto -a '(__scripto)'""",
}
FORMS = {"bash": "{}", "zsh": "{}:{}", "fish": "{}\t{}"}  # of a word and what it is for


def cmd_completion(ctx, args):
    script = SHELLS[args.shell]
    return {"script": script}, script.splitlines()


def values_of(ctx, takes):
    """{value: ""} for what an argument or a flag takes; None where files are wanted."""
    if takes in ("FILE", "COMMAND"):
        return None
    if takes != "NAME":
        return dict.fromkeys(takes.split("|") if "|" in takes else (), "")
    try:
        names = ProfileFile(ctx).read()["profiles"]
    except ScriptoError:
        return {}
    return {name: "" for name in names if re.match(PROFILE_NAME, name)}


def subcommands(ctx, before):
    """{the next word of a command that begins with those words: what it is for}."""
    found, start = {}, "".join(word + " " for word in before)
    for name, command in ctx.commands.items():
        if name.startswith(start):
            word, _, more = name[len(start) :].partition(" ")
            found.setdefault(word, "" if more else command.purpose)
    return found


def followers(ctx, before, word):
    """{what may follow those words, where `word` is begun: what it is for}; None for files."""
    if "--" in before:
        return None
    names = [" ".join(before[:size]) for size in (2, 1)]
    name = next((name for name in names if name in ctx.commands), None)
    takes = [each for each, _ in arguments_of(ctx.commands[name])] if name else []
    last = before[-1] if before else ""
    if last in takes and last[0] == "-" and ctx.options[last][0]:
        return values_of(ctx, ctx.options[last][0])
    if word[:1] == "-":
        flags = [each for each in takes if each[0] == "-" and each != "--"]
        flags += ["--json", "--help"] + ["--version"] * (not before)
        return {each: ctx.options[each][1] for each in flags}
    found = subcommands(ctx, before)
    for each in takes:
        values = values_of(ctx, ctx.options[each][0]) if each[0] != "-" else {}
        if values is None:
            return None
        found.update(values)
    return found if before else dict(found, help="show the commands")


def complete(ctx, shell="", *words):
    """What a shell gets that calls back: a reply, or exit status 1. The last word is begun only."""
    if shell not in FORMS:
        raise invalid("There is no such shell.", "see: scripto completion --help")
    *before, word = words or [""]
    before = [each for each in before if each not in ("help", "--json", "=")]  # bash breaks there
    found = followers(ctx, before, word)
    if found is None:
        return 1
    lines = [FORMS[shell].format(each, purpose) + "\n" for each, purpose in found.items()
             if each.startswith(word)]
    return ["".join(lines).encode("ascii")], None


# ---- Command line ---------------------
# One table of commands, of which parser, help, guide and completion are made; the way in and out.

OPTIONS = {  # flag: (what it takes, None for a switch; what it is for)
    "name": ("NAME", "a profile"),
    "email": ("EMAIL", "who has signed up"),
    "shell": ("bash|zsh|fish", "the shell"),
    "id": ("ID", "a key's id, as keys list has it"),
    "path": ("PATH", "a path at the backend"),
    "file": ("FILE", "where to put the copy"),
    "--email": ("EMAIL", "the email to sign in with"),
    "--code": ("CODE", "the six-digit code; - reads standard input"),
    "--code-from": ("SOURCE", "-, cmd:COMMAND, maildir:DIR, mbox:FILE or"
                    " imaps://USER@HOST[:PORT][/FOLDER] (else SCRIPTO_CODE_FROM, a prompt)"),
    "--timeout": ("SECONDS", "how long to wait for it (90)"),
    "--name": ("TEXT", "what to call the new key"),
    "--profile-name": ("NAME", "what to call the profile (else SCRIPTO_PROFILE, or by the email)"),
    "--api-url": ("URL", f"the backend (else SCRIPTO_API_BASE_URL, the profile's, {BASE_URL})"),
    "--profile": ("NAME", "the profile (else SCRIPTO_PROFILE, the active one)"),
    "--api-key": ("KEY", "the key (else SCRIPTO_API_KEY, the profile's); - reads standard input"),
    "--yes": (None, "do not ask"),
    "--expires-in": ("DAYS", "in how many days the new key ends (never)"),
    "--others": (None, "all but the one in use"),
    "--all": (None, "all profiles"),
    "-X": ("METHOD", "the method (GET; POST with -d)"),
    "-d": ("BODY", "JSON to send; @FILE or - reads a file or standard input"),
    "-q": ("NAME=VALUE", "a query parameter; may be given again"),
    "-H": ("HEADER", "a header, NAME: VALUE; may be given again"),
    "-i": (None, "print status and headers first"),
    "--revoke": (None, "revoke its key first; the profile stays if that fails"),
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
    "--allow": ("RULE", "let in only @domain or this address; may be given again"),
    "--key-days": ("DAYS", "how long a new key lasts at most (for good)"),
    "--skill": (None, "as an agent skill, SKILL.md (agentskills.io)"),
    "--": ("COMMAND", "a command, with words of its own"),
    "--json": (None, "answer in JSON"),
    "--help": (None, "show this and do nothing"),
    "--version": (None, "show the version, without a command"),
}
BACKEND = " --api-url --profile"
SIGN_IN, KEY = " --name --profile-name --expires-in" + BACKEND, "--api-key" + BACKEND


class Command:
    """The function, what it is for, the arguments and flags (! marks what is needed), an example of
    them, and where it changes something."""

    def __init__(self, work, purpose, takes, example="", changes=""):
        self.work, self.purpose, self.takes = work, purpose, takes
        self.example, self.changes = example, changes


COMMANDS = {
    "auth login": Command(
        cmd_login, "sign in, in one step; a new email signs up",
        "--email --code-from --timeout" + SIGN_IN,
        "--email you@example.com --code-from maildir:mail", "here, backend"),
    "auth login-request": Command(
        cmd_login_request, "email a six-digit sign-in code",
        "--email!" + BACKEND, "--email you@example.com", "backend"),
    "auth login-complete": Command(
        cmd_login_complete, "sign in with the code; a new email signs up",
        "--email! --code!" + SIGN_IN, "--email you@example.com --code 123456", "here, backend"),
    "auth token": Command(cmd_token, "print the API key in force", KEY),
    "whoami": Command(cmd_whoami, "ask the backend whose key this is", KEY),
    "use": Command(cmd_use, "list the profiles, or switch to one", "name", "you", "here"),
    "logout": Command(
        cmd_logout, "remove a profile (the active one); without --revoke its key works on",
        "name --revoke", "you", "here, backend"),
    "keys list": Command(cmd_keys_list, "list your keys at the backend", KEY),
    "keys revoke": Command(
        cmd_keys_revoke, "end one of your keys, or all others", "id --others --yes " + KEY,
        "key_1f2e3d", "backend"),
    "config set": Command(
        cmd_config_set, "store a key that you have as a profile",
        "--api-key! --profile-name --api-url", "--api-key -", "here"),
    "config show": Command(cmd_config_show, "show what is in force, and why", KEY),
    "config clear": Command(
        cmd_config_clear, "forget a profile, or all, on this machine; their keys are not revoked",
        "--profile --all --yes", "--profile you --yes", "here"),
    "serve": Command(
        cmd_serve, "run a backend",
        "--host --port --db --mail --mail-from --public-url --tls-cert --tls-key"
        " --behind-proxy --rate-limit --allow --key-days --", "--mail maildir:mail", "here"),
    "completion": Command(
        cmd_completion, "print a completion script, for the shell's start-up file: in ~/.bashrc or"
        " ~/.zshrc eval \"$(scripto completion bash)\", in fish scripto completion fish | source",
        "shell!", "bash"),
    "api": Command(
        cmd_api, "send a request with the key, and print the reply as it comes",
        "path! -X -d -q -H -i " + KEY, "api/keys/key_1f2e3d -X DELETE", "backend"),
    "run": Command(
        cmd_run, "run a command that finds the key in SCRIPTO_API_KEY", KEY + " --!",
        "-- deploy.sh production"),
    "users": Command(cmd_users, "list who has signed up at your backend", "--db"),
    "users list": Command(cmd_users, "the same", "--db"),
    "users remove": Command(
        cmd_users_remove, "remove one, with every key", "email! --db --yes", "you@example.com",
        "backend"),
    "backup": Command(
        cmd_backup, "copy your backend's database, also while it is served", "file! --db",
        "scripto-backup.db", "here"),
    "demo": Command(cmd_demo, "see the whole sign-in, in a throw-away folder", ""),
    "guide": Command(
        cmd_guide, "how an agent signs in; as JSON: all there is", "--skill --api-url"),
    "doctor": Command(cmd_doctor, "check what works on this machine", KEY),
}
GROUPS = ("auth", "config", "keys")
ELSEWHERE = {  # what gh calls it
    "auth list": "use", "auth logout": "logout", "auth status": "whoami", "auth switch": "use",
}


def argument_of(word, needed):
    """What argparse has to know of an argument or a flag. A missing email or code is the command's
    to tell, in the words of the contract."""
    takes, purpose = OPTIONS[word]
    more = {"help": purpose.replace("%", "%%")}
    if takes is None:
        return dict(more, action="store_true")
    more["metavar"] = takes
    if word in ("--email", "--code") or word[0] != "-" and not needed:
        more["nargs"] = "?"
    elif word[0] == "-":
        more["required"] = needed
    if word in ("--allow", "-q", "-H"):
        more["action"] = "append"
    if "|" in takes:
        more["choices"] = takes.split("|")
    return more


def parser_for(name):
    """The parser of that command's words. Its errors are raised as all others are."""
    import argparse  # lazy

    def error(message):
        raise invalid(message[:1].upper() + message[1:] + ".", f"see: scripto {name} --help")

    # A width of our own: argparse would ask a module that a minimal Python lacks.
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(
        "scripto " + name, description=command.purpose[0].upper() + command.purpose[1:] + ".",
        epilog=f"Example: scripto {name} {command.example}", add_help=False, allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=96))
    parser.error = error
    parser.color = False  # Python 3.14 would colour what is not yet known to go to a terminal
    for word, needed in arguments_of(command) + [("--json", False), ("--help", False)]:
        if word != "--":  # no flag: run() splits there
            parser.add_argument(word, **argument_of(word, needed))
    if "--" in dict(arguments_of(command)):
        parser.usage = parser.format_usage()[len("usage: ") :].rstrip() + " [-- COMMAND ...]"
    return parser


def overview(prefix=""):
    lines = [f"Usage: scripto {prefix}<command> [flags]", ""]
    shown = [name for name in COMMANDS if name.startswith(prefix)]
    lines += [f"  {name:20} {COMMANDS[name].purpose}" for name in shown]
    if not prefix:
        lines += [f"  {'help [COMMAND]':20} show this, or a command's flags",
                  f"  {'--version':20} show the version"]
    lines += ["", "Every command takes --json and --help. Try it with: scripto demo"]
    return {"help": lines}, lines


def unknown(kind, word, known, hint):
    """The refusal of a word. It names the most similar one of known = {word: its meaning}, if any
    is similar."""
    word = word.partition("=")[0]  # there may be a secret behind the sign
    try:
        import difflib  # lazy

        for alike in difflib.get_close_matches(word, known, 1):
            hint = "did you mean: " + known[alike]
    except ImportError:  # a minimal Python makes no suggestion
        pass
    return invalid(f"Unknown {'flag' if word.startswith('-') else kind} '{word}'.", hint)


def find_command(words):
    """(the command's name, the words behind it)."""
    for size in (2, 1):
        name = " ".join(words[:size])
        if name in COMMANDS:
            return name, words[size:]
    known = {word: "scripto " + name for word, name in ELSEWHERE.items()}
    for name in (*COMMANDS, *GROUPS, "help", "--help", "--version"):
        known[name] = known[name.split()[-1]] = "scripto " + name  # `logn` is like `auth login`
    flag = words[0].startswith("-")
    hint = "put flags behind the command" if flag else "see the commands with: scripto --help"
    typed = " ".join(words[: 1 + (words[0] in GROUPS)])
    raise unknown("command", typed, known, hint)


def check_extra(ctx, parser, takes, word):
    """Raises the error for a word that argparse does not know."""
    if getattr(ctx.args, "code", None) and word.isdigit():
        hint = "put it in quotes: " + ctx.then(SECOND_STEP[0], "--code '<6-digit-code>'")
        raise invalid("The code is in two words.", hint)
    hint = f"see: {parser.prog} --help"
    if "--" in takes and word[:1] != "-":
        hint = f"put a command behind two dashes: {parser.prog} -- COMMAND"
    known = {flag: flag for flag in (*takes, "--json", "--help") if re.match("--.", flag)}
    raise unknown("argument", word, known, hint)


def parse(ctx, name, words, behind):
    """The arguments by name. `behind` is `--` and what stands behind it, which belongs to another
    program."""
    parser, takes = parser_for(name), dict(arguments_of(COMMANDS[name]))
    try:
        args, extra = parser.parse_known_args(words)
    except IndexError:  # what Python up to 3.11 makes of `-i=`
        parser.error("a switch takes no value")
    ctx.command, ctx.args = name, args
    if extra:
        check_extra(ctx, parser, takes, extra[0])
    for value in vars(args).values():
        if value == [] or isinstance(value, list) and [] in value:  # up to 3.12, of `--name=--`
            parser.error("a value is missing")
    if behind and "--" not in takes:
        parser.error(f"'{parser.prog}' takes nothing behind --")
    args.command = behind[1:]
    if not args.command and (behind or takes.get("--")):
        parser.error("the command behind -- is missing")
    return args


def help_for(words):
    """(data, lines) with the help of a command, of a group, or of all."""
    name = " ".join(words)
    if not words:
        return overview()
    if name in GROUPS:
        return overview(name + " ")
    lines = parser_for(find_command(words)[0]).format_help().splitlines()
    return {"help": lines}, lines


def run(ctx, words):
    """What the command returns that the words name: (data, lines), or an exit status."""
    if words[:1] == ["__complete"]:
        return complete(ctx, *words[1:])
    split = words.index("--") if "--" in words else len(words)
    words, behind = words[:split], words[split:]
    ctx.as_json = "--json" in words
    words = [word for word in words if word != "--json"]
    asked = [word for word in words if word not in ("--help", "-h")]
    if "--version" in words:
        return {"version": __version__}, ["scripto " + __version__]
    if asked != words or words[:1] in ([], ["help"]) or words[0] in GROUPS and not words[1:]:
        return help_for([word for word in asked if word != "help"])
    name, rest = find_command(words)
    args = parse(ctx, name, rest, behind)
    if behind:
        import shutil  # lazy

        if not shutil.which(args.command[0]):  # before anything is served or said
            raise not_run(args.command, "there is no such program")
    on_signals(stop)
    return COMMANDS[name].work(ctx, args)


def status_of(ctx, words):
    """The exit status. This is the one edge: whatever was raised becomes output here."""
    try:
        reply = run(ctx, words)
        return show(ctx, *reply) if isinstance(reply, tuple) else reply or 0  # else a status
    except BrokenPipeError:
        return 141  # as a shell reports SIGPIPE
    except ScriptoError as error:
        return show_error(ctx, error)
    except ImportError as error:
        return show_error(ctx, missing_module(error))
    except KeyboardInterrupt as cause:
        return show_error(ctx, interrupted(cause, "run it again"))
    except Exception as error:
        text, hint = f"A bug in scripto: {bug(error)}.", "report it, with this line, at "
        return show_error(ctx, ScriptoError("internal", text, hint + PRODUCTION_URL))


def main():
    """Ends the process with the exit status."""
    ctx = Context(COMMANDS, OPTIONS)
    ctx.umask = os.umask(0o077)  # what is made here holds keys, codes and hashes
    sys.exit(status_of(ctx, sys.argv[1:]))


if __name__ == "__main__":
    main()
