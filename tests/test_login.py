"""`auth login`: both steps in one, with the code from each of its sources but IMAP.

The backend is real, and so are pipes, commands and files."""
import os
import pathlib
import re
import shutil
import signal
import time

import pytest

from client import (  # fmt: skip
    EMAIL, LOGIN, ended, go_on, login, nothing_sent, requests_to, signed_in, start_login)
from conftest import PYTHONS, Scripto, Terminal, http_reply, wait_until, wrong_code

NEXT_CODE = "request a new code with: scripto auth login-request"


def deliver(maildir, text, name="1"):
    path = pathlib.Path(maildir) / "tmp" / name
    path.write_text(text)
    path.rename(pathlib.Path(maildir) / "new" / name)


def new_maildir(path):
    for part in ("tmp", "new", "cur"):
        (path / part).mkdir(parents=True)
    return path


def at_terminal(scripto, *words):
    """As a person has it, but for standard output."""
    return Terminal(scripto, *words, streams=("stdin", "stderr"))


# ---- From each source ----


def test_a_maildir(scripto, backend):
    run = login(scripto, backend, "maildir:%s" % backend.maildir)
    assert signed_in(run.data, backend)
    assert scripto.run("whoami", "--json").data["user"]["email"] == EMAIL
    assert len(backend.mails()) == 1  # where it was


def test_it_prints_what_login_complete_prints(scripto, backend):
    source = "maildir:%s" % backend.maildir
    run = scripto.run(*LOGIN, "--code-from", source, "--api-url", backend.url)
    assert run.out == ("✓ Signed in\n\n  Email:    you@example.com\n  Profile:  you (now active)\n"
                       "  API key:  scripto_••••••••\n\n  Try it:  scripto whoami\n")
    assert "  %s\n" % go_on("--api-url", backend.url) in run.err


def test_twice_in_a_row_the_new_mail_counts(scripto, backend):
    for _ in range(2):
        assert signed_in(login(scripto, backend, "maildir:%s" % backend.maildir).data, backend)
    wait_until(lambda: requests_to(backend, "/api/cli/login-complete") == 2)  # no old code was tried


def test_mail_that_a_reader_moves_to_cur(scripto, backend):
    maildir = backend.folder / "other"
    for part in ("tmp", "new", "cur"):
        (maildir / part).mkdir(parents=True)
    process = start_login(scripto, backend, "maildir:%s" % maildir)
    (mail,) = wait_until(backend.mails)
    (maildir / "cur" / "1.host:2,S").write_text(mail)
    assert ended(process)[0] == 0


def test_an_old_mail_that_a_reader_moves_is_not_new(newest, backend):
    login(newest, backend, "maildir:%s" % backend.maildir)
    (old,) = (backend.maildir / "new").iterdir()
    process = start_login(newest, backend, "maildir:%s" % backend.maildir)
    wait_until(lambda: len(backend.mails()) == 2)
    old.rename(backend.maildir / "cur" / (old.name + ":2,S"))
    assert ended(process)[0] == 0
    wait_until(lambda: requests_to(backend, "/api/cli/login-complete") == 2)


@pytest.mark.slow
def test_a_code_that_was_there_before_is_never_tried(newest, backend, tmp_path):
    login(newest, backend, "maildir:%s" % backend.maildir)
    other = tmp_path / "other"  # which gets no new mail
    shutil.copytree(str(backend.maildir), str(other))
    assert login(newest, backend, "maildir:%s" % other, "--timeout", "1").status == 3
    wait_until(lambda: requests_to(backend, "/api/cli/login-complete") == 1)


@pytest.mark.slow
def test_an_mbox(scripto, backend, tmp_path):
    path = tmp_path / "mbox"
    old = "From a@b Tue Nov 24\nTo: %s\nSubject: 111111 is your code\n\n.\n\n" % EMAIL
    path.write_text(old * 3)
    process = start_login(scripto, backend, "mbox:%s" % path)
    (mail,) = wait_until(backend.mails)
    with open(str(path), "a") as file:  # in two pieces, as a slow writer has it
        file.write("From c@d Tue Nov 24\nTo: x@x.example\n\nhello\n\nFrom e@f Tue Nov 24\n")
        file.flush()
        time.sleep(0.5)
        file.write(mail + "\n")
    status, envelope, _ = ended(process)
    assert status == 0 and signed_in(envelope["data"], backend)
    wait_until(lambda: requests_to(backend, "/api/cli/login-complete") == 1)


@pytest.mark.slow
def test_an_mbox_that_was_emptied_meanwhile(newest, backend, tmp_path):
    path = tmp_path / "mbox"
    path.write_text("From a@b\nTo: %s\nSubject: 111111 is your code\n\n.\n\n" % EMAIL * 9)
    process = start_login(newest, backend, "mbox:%s" % path)
    (mail,) = wait_until(backend.mails)
    path.write_text("")
    time.sleep(0.5)
    path.write_text("From a@b\n" + mail)
    assert ended(process)[0] == 0


def test_a_command(scripto, backend):
    """Run again until it yields a code; it knows whom it is for, and since when."""
    now = int(time.time())
    script = ('test "$SCRIPTO_EMAIL" = %s && test "$SCRIPTO_REQUESTED_AT" -ge %d && '
              'test "$SCRIPTO_REQUESTED_AT" -le %d && cat %s/new/*'
              % (EMAIL, now - 1, now + 60, backend.maildir))
    assert signed_in(login(scripto, backend, "cmd:" + script).data, backend)


def test_standard_input(scripto, backend):
    process = start_login(scripto, backend, "-")
    (code,) = wait_until(lambda: re.findall(r"Subject: (\d{6})", "".join(backend.mails())))
    process.stdin.write(b"Order 111111\n\nYour code: %s\n" % code.encode())
    process.stdin.flush()  # and it stays open
    process.stdin = None
    status, envelope, _ = ended(process)
    assert status == 0 and signed_in(envelope["data"], backend)


def test_the_source_may_stand_in_the_environment(scripto, backend):
    env = {"SCRIPTO_CODE_FROM": "maildir:%s" % backend.maildir, "SCRIPTO_API_BASE_URL": backend.url}
    assert signed_in(scripto.run(*LOGIN, "--json", env=env).data, backend)


def test_a_flag_wins_over_the_environment(newest, backend):
    env = {"SCRIPTO_CODE_FROM": "nonsense"}
    assert login(newest, backend, "maildir:%s" % backend.maildir, env=env).status == 0


def test_names_are_passed_on(scripto, backend):
    flags = ["--name", "a job", "--profile-name", "job"]
    data = login(scripto, backend, "maildir:%s" % backend.maildir, *flags).data
    assert data["profile"] == "job"
    key = scripto.state()["profiles"]["job"]["apiKey"]
    assert backend.request("GET", "/api/keys", key=key)[2]["data"]["keys"][0]["name"] == "a job"


@pytest.mark.slow
def test_the_next_step_has_every_flag_of_the_call(newest, backend):
    flags = ["--name", "a job", "--profile-name", "job", "--timeout", "1"]
    run = login(newest, backend, "cmd:true", *flags)
    expected = go_on("--name 'a job' --profile-name job --api-url", backend.url)
    assert run.error["nextAction"] == expected and "  %s\n" % expected in run.err


@pytest.mark.slow
def test_the_mailed_code_stays_good_for_the_second_step(newest, backend):
    error = login(newest, backend, "cmd:true", "--timeout", "1").error
    words = error["nextAction"].replace("<6-digit-code>", backend.code_for(EMAIL)).split()
    assert newest.run(*words[1:]).status == 0


def test_who_is_cut_off_has_read_how_to_go_on(newest, backend):
    """kill -9 while it waits: standard error is a file, and nothing of it is still buffered."""
    with open(str(backend.folder / "err"), "wb") as err:
        process = start_login(newest, backend, "cmd:true", stderr=err)
    wait_until(lambda: (backend.folder / "err").read_text())
    process.kill()
    process.communicate()
    assert go_on("--api-url", backend.url) in (backend.folder / "err").read_text()


def test_the_next_code_of_a_mail_is_tried_when_one_was_wrong(scripto, backend, tmp_path):
    new = tmp_path / "own" / "new"
    for name in ("new", "cur", "tmp"):
        (tmp_path / "own" / name).mkdir(parents=True)
    process = start_login(scripto, backend, "maildir:%s" % new.parent)
    (code,) = wait_until(lambda: re.findall(r"Subject: (\d{6})", "".join(backend.mails())))
    text = "To: %s\nSubject: Your code %s\n\nYour code: %s\n" % (EMAIL, wrong_code(code), code)
    (new / "1.mail").write_text(text)
    status, envelope, _ = ended(process)
    assert status == 0 and envelope["data"]["email"] == EMAIL


@pytest.mark.slow
def test_twenty_at_once_for_one_email(backend, tmp_path):
    """Each ends signed in or with a clear error."""
    machines = [Scripto(PYTHONS[-1], tmp_path / str(n)) for n in range(20)]
    source = "maildir:%s" % backend.maildir
    (backend.maildir / "new").mkdir(parents=True, exist_ok=True)
    running = [start_login(each, backend, source, "--timeout", "4") for each in machines]
    results = [ended(process) for process in running]
    codes = [envelope["error"]["code"] for status, envelope, _ in results if status]
    assert set(codes) <= {"resource-exhausted", "deadline-exceeded", "invalid-argument"}
    for machine, (status, _, _) in zip(machines, results):
        if status == 0:
            assert machine.run("whoami", "--json").data["user"]["email"] == EMAIL


@pytest.mark.slow
def test_ten_at_once_for_ten_emails(backend, tmp_path):
    """In one mailbox: each gets a code of its own."""
    (backend.maildir / "new").mkdir(parents=True, exist_ok=True)
    running = []
    for n in range(10):
        machine = Scripto(PYTHONS[-1], tmp_path / str(n))
        words = ["auth", "login", "--email", "n%d@example.com" % n, "--api-url", backend.url,
                 "--code-from", "maildir:%s" % backend.maildir, "--json"]
        running.append(machine.start(*words))
    for n, process in enumerate(running):
        assert ended(process)[1]["data"]["email"] == "n%d@example.com" % n
    wait_until(lambda: requests_to(backend, "/api/cli/login-complete") == 10)


# ---- A wrong code ----


def test_a_mailbox_with_a_wrong_code_is_read_on(newest, backend, tmp_path):
    maildir = new_maildir(tmp_path / "own")
    process = start_login(newest, backend, "maildir:%s" % maildir)
    code = wait_until(backend.mails) and backend.code_for(EMAIL)
    deliver(maildir, "To: %s\nSubject: Your code %s\n\n.\n" % (EMAIL, wrong_code(code)))
    wait_until(lambda: requests_to(backend, "/api/cli/login-complete") == 1)
    deliver(maildir, "To: %s\nSubject: Your code %s\n\n.\n" % (EMAIL, code), "2")
    status, _, err = ended(process)
    assert status == 0 and "2 tries are left" in err


@pytest.mark.slow
def test_a_code_that_was_refused_is_told_at_the_end(newest, backend, tmp_path):
    maildir = new_maildir(tmp_path / "own")
    process = start_login(newest, backend, "maildir:%s" % maildir, "--timeout", "3")
    code = wait_until(backend.mails) and backend.code_for(EMAIL)
    deliver(maildir, "To: %s\nSubject: Your code %s\n\n.\n" % (EMAIL, wrong_code(code)))
    status, envelope, _ = ended(process)
    assert (status, envelope["error"]["code"]) == (3, "deadline-exceeded")
    assert "1 came and was refused" in envelope["error"]["message"]
    assert envelope["error"]["nextAction"] == go_on("--api-url", backend.url)


@pytest.mark.slow
def test_a_command_that_prints_only_what_was_refused_ends_at_once(newest, backend):
    command = "cmd:sed -n 's/^Subject: \\([0-9]*\\) .*/\\1/p' %s/new/* | tr 0-9 1-90" % backend.maildir
    began = time.monotonic()
    run = login(newest, backend, command)
    assert time.monotonic() - began < 30
    assert (run.error["code"], run.status) == ("invalid-argument", 2)
    assert "2 tries are left" in run.error["message"]
    assert requests_to(backend, "/api/cli/login-complete") == 1


def test_standard_input_that_ends_with_a_wrong_code(newest, backend):
    process = start_login(newest, backend, "-")
    wait_until(backend.mails)
    status, envelope, err = ended(process, wrong_code(backend.code_for(EMAIL)).encode())
    assert (status, envelope["error"]["code"]) == (2, "invalid-argument")
    assert envelope["error"]["nextAction"] == NEXT_CODE and "2 tries are left" in err


def test_standard_input_that_ends_without_a_code(newest, backend):
    process = start_login(newest, backend, "-")
    wait_until(backend.mails)
    status, envelope, _ = ended(process, b"no code today\n")
    assert (status, envelope["error"]["nextAction"]) == (2, go_on("--api-url", backend.url))


@pytest.mark.slow
def test_three_are_tried_whatever_comes(newest, backend, tmp_path):
    """A backend grants no more; the most likely ones first, of all mails."""
    maildir = new_maildir(tmp_path / "own")
    process = start_login(newest, backend, "maildir:%s" % maildir)
    code = wait_until(backend.mails) and int(backend.code_for(EMAIL))
    wrong = ["%06d" % ((code + n) % 10**6) for n in range(1, 41)]
    deliver(maildir, "To: %s\nSubject: Codes\n\n%s\n" % (EMAIL, "\n".join(wrong)))
    status, envelope, _ = ended(process)
    assert (status, envelope["error"]["code"]) == (2, "invalid-argument")
    assert "used up" in envelope["error"]["message"]
    wait_until(lambda: requests_to(backend, "/api/cli/login-complete") == 3)


def test_newer_mails_with_other_numbers_hide_nothing(scripto, backend, tmp_path):
    """As programs deliver that fetch mail in batches: the right one is the oldest of nine."""
    maildir = new_maildir(tmp_path / "own")
    process = start_login(scripto, backend, "maildir:%s" % maildir)
    code = wait_until(backend.mails) and int(backend.code_for(EMAIL))
    batch = tmp_path / "batch"
    batch.mkdir()
    mail = "To: %s\nSubject: %s %06d\n\nHello\n"
    (batch / "1.M2P3_1.host").write_text(mail % (EMAIL, "Your code is", code))
    for n in range(2, 10):
        (batch / ("1.M2P3_%d.host" % n)).write_text(mail % (EMAIL, "Order", (code + n) % 10**6))
    (maildir / "new").rmdir()
    batch.rename(maildir / "new")
    assert ended(process)[0] == 0
    wait_until(lambda: requests_to(backend, "/api/cli/login-complete") == 1)


def test_at_equal_rank_the_newest_mail_comes_first(newest, backend, tmp_path):
    maildir = new_maildir(tmp_path / "own")
    process = start_login(newest, backend, "maildir:%s" % maildir)
    code = wait_until(backend.mails) and int(backend.code_for(EMAIL))
    batch = tmp_path / "batch"
    batch.mkdir()
    for n in (9, 10):  # which text would sort the other way round
        text = "To: %s\nSubject: Your code: %06d\n\n.\n" % (EMAIL, (code + 10 - n) % 10**6)
        (batch / ("1.M2P3_%d.host" % n)).write_text(text)
    (maildir / "new").rmdir()
    batch.rename(maildir / "new")
    assert ended(process)[0] == 0
    wait_until(lambda: requests_to(backend, "/api/cli/login-complete") == 1)


def test_an_unlikely_number_waits_for_a_better_one(newest, backend, tmp_path):
    maildir = new_maildir(tmp_path / "own")
    process = start_login(newest, backend, "maildir:%s" % maildir)
    code = wait_until(backend.mails) and backend.code_for(EMAIL)
    deliver(maildir, "To: %s\nSubject: Order %s\n\n.\n" % (EMAIL, wrong_code(code)))
    time.sleep(0.6)  # in which it is seen
    deliver(maildir, "To: %s\nSubject: Your code %s\n\n.\n" % (EMAIL, code), "2")
    assert ended(process)[0] == 0
    wait_until(lambda: requests_to(backend, "/api/cli/login-complete") == 1)


# ---- At a terminal ----


def test_the_prompt(scripto, backend):
    terminal = at_terminal(scripto, *LOGIN, "--api-url", backend.url)
    terminal.wait_for("Code: ")
    assert go_on("--api-url", backend.url) in terminal.screen
    code = backend.code_for(EMAIL)
    terminal.type(wrong_code(code).encode() + b"\n")
    terminal.wait_for("The code is wrong; 2 tries are left.")
    terminal.wait_for("Code: ")
    terminal.type(b"12345\n")
    terminal.wait_for("The code must be six digits.")
    terminal.wait_for("Code: ")
    terminal.type(b"\n")  # which asks again, and for no new code
    terminal.wait_for("Code: ")
    terminal.type(b"%s %s\n" % (code[:3].encode(), code[3:].encode()))
    status, out = terminal.end(), terminal.out
    assert status == 0 and "✓ Signed in" in out and "Code:" not in out
    assert len(backend.mails()) == 1


def test_the_last_try_at_the_prompt(newest, backend):
    terminal = at_terminal(newest, *LOGIN, "--api-url", backend.url)
    for left in ("2 tries are left", "1 try is left", "used up"):
        terminal.wait_for("Code: ")
        terminal.type(wrong_code(backend.code_for(EMAIL)).encode() + b"\n")
        terminal.wait_for(left)
    terminal.wait_for("next: " + NEXT_CODE)
    assert terminal.end() == 2


def test_the_end_of_input_at_the_prompt(newest, backend):
    terminal = at_terminal(newest, *LOGIN, "--api-url", backend.url)
    terminal.wait_for("Code: ")
    terminal.type(b"\x04")
    terminal.wait_for("next: " + go_on("--api-url", backend.url))
    assert terminal.end() == 130


def test_a_missing_email_is_asked_for(newest, backend):
    terminal = at_terminal(newest, "auth", "login", "--api-url", backend.url)
    terminal.wait_for("Email: ")
    terminal.type(EMAIL.encode() + b"\n")
    terminal.wait_for("Code: ")
    assert go_on("--api-url", backend.url) in terminal.screen
    terminal.type(backend.code_for(EMAIL).encode() + b"\n")
    assert terminal.end() == 0


@pytest.mark.parametrize("typed", [b"\n", b"nonsense\n"])
def test_an_email_that_is_asked_for_and_is_none(typed, newest, backend):
    terminal = at_terminal(newest, "auth", "login", "--api-url", backend.url)
    terminal.wait_for("Email: ")
    terminal.type(typed)
    terminal.wait_for("next: Pass --email <your-email> to: scripto auth login")
    assert terminal.end() == 2 and nothing_sent(backend)


def test_a_backend_that_takes_no_more_codes_ends_the_prompt(newest, raw_server):
    def answer(connection):
        if b"login-request" in server.requests[-1]:
            reply = http_reply({"success": True, "data": {"ok": True, "email": EMAIL}})
        else:
            error = {"code": "resource-exhausted", "message": "Too many.", "nextAction": "wait"}
            reply = http_reply({"success": False, "error": error}, 429)
        connection.sendall(reply)

    server = raw_server(answer)
    terminal = at_terminal(newest, *LOGIN, "--api-url", server.url)
    terminal.wait_for("Code: ")
    terminal.type(b"123456\n")
    terminal.wait_for("next: wait")
    assert terminal.end() == 3 and len(server.requests) == 2


@pytest.mark.parametrize("source", [None, "cmd:true", "-"])
def test_ctrl_c_stores_nothing_and_names_how_to_go_on(scripto, backend, source):
    flags = ["--code-from", source] if source else []
    terminal = at_terminal(scripto, *LOGIN, "--api-url", backend.url, "--name", "a job", *flags)
    terminal.wait_for("seconds left" if source else "Code: ")
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for("Interrupted.")
    terminal.wait_for("next: " + go_on("--name 'a job' --api-url", backend.url))
    assert terminal.end() == 130
    assert not scripto.config.exists() or scripto.state()["profiles"] == {}


@pytest.mark.parametrize("number, expected", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_it_waits(number, expected, newest, backend):
    process = start_login(newest, backend, "cmd:true")
    wait_until(backend.mails)
    line = process.stderr.readline() + process.stderr.readline()  # it waits by now
    process.send_signal(number)
    status, envelope, _ = ended(process)
    assert (status, envelope["error"]["code"]) == (expected, "cancelled")
    assert envelope["error"]["nextAction"] == go_on("--api-url", backend.url)
    assert envelope["error"]["nextAction"].encode() in line


@pytest.mark.slow
def test_a_line_at_the_terminal_counts_the_seconds(newest, backend):
    words = [*LOGIN, "--api-url", backend.url, "--code-from", "-", "--timeout", "3"]
    terminal = at_terminal(newest, *words)
    terminal.wait_for("Waiting for the code, 3 seconds left")
    terminal.wait_for("Waiting for the code, 1 seconds left")
    terminal.wait_for("No code came within 3 seconds")
    shown = terminal.screen
    assert shown.index("Sign-in code sent") < shown.index("Waiting for the code")
    before = terminal.screen[: terminal.screen.index("✗")]
    assert before.endswith("\r" + " " * 50 + "\r\x1b[31m")  # it has gone away
    assert terminal.end() == 3


@pytest.mark.slow
def test_without_a_terminal_no_line_counts(newest, backend):
    run = login(newest, backend, "cmd:true", "--timeout", "1")
    assert "seconds left" not in run.err and "\r" not in run.err


# ---- Refused before anything is sent ----

BAD_SOURCES = ["", "maildir", "maildir:", "cmd:", "mbox:", "imaps:", "-x", "-:x", "nonsense", "file:/x",
               "http://x", "maildir:/nonexistent/mail", "mbox:/nonexistent/mail", "mbox:/", "maildir:/etc/passwd",
               "imaps://example.com", "imaps://you@", "imaps://you:secret@example.com",
               "imaps://you@example.com:x", "imaps://you@example.com:99999999", "imap:you@example.com",
               "imaps://you@exa mple.com", "imaps://@example.com", "\u20ac"]


@pytest.mark.parametrize("source", BAD_SOURCES[1:])
def test_a_bad_source_is_refused(source, newest, backend):
    run = login(newest, backend, source, "--timeout", "2")
    assert (run.error["code"], run.status) == ("invalid-argument", 2)
    assert "--code-from" in run.error["nextAction"] and "secret" not in run.out + run.err
    assert nothing_sent(backend)


@pytest.mark.parametrize("value", ["0", "3601", "-1", "1.5", "x", "9" * 30])
def test_a_bad_time_out_is_refused(value, newest, backend):
    run = login(newest, backend, "-", "--timeout=" + value)
    assert (run.error["code"], run.status) == ("invalid-argument", 2)
    assert "1 to 3600" in run.error["message"] and nothing_sent(backend)


@pytest.mark.parametrize("flags", [[], ["--code-from", ""]])
def test_no_source_and_no_terminal(flags, scripto, backend):
    words = [*LOGIN, "--api-url", backend.url, "--name", "n", *flags, "--json"]
    run = scripto.run(*words)
    assert (run.error["code"], run.status) == ("invalid-argument", 2)
    hint = run.error["nextAction"]
    assert "--code-from" in hint and nothing_sent(backend)
    assert hint.endswith("; then: " + go_on("--name n --api-url", backend.url))
    words = re.search("scripto (auth login-request .*?);", hint).group(1).split()
    assert scripto.run(*words).status == 0  # as it stands


@pytest.mark.parametrize("flags, named", [
    (["--email", "nonsense"], "--email <your-email> to: scripto auth login"),
    (["--email", ""], "--email <your-email> to: scripto auth login"),
    (["--profile-name", "a b"], "letters"),
    (["--name", "x" * 101], "--name"),
    (["--profile", "none"], "scripto use"),
], ids=repr)  # fmt: skip
def test_what_login_complete_would_refuse(flags, named, newest, backend):
    run = login(newest, backend, "maildir:%s" % backend.maildir, *flags)
    assert run.status in (1, 2) and named in run.error["nextAction"]
    assert nothing_sent(backend)


def test_a_profile_file_that_cannot_be_written(newest, backend):
    newest.write_config("not JSON")
    run = login(newest, backend, "maildir:%s" % backend.maildir)
    assert run.error["code"] == "failed-precondition" and nothing_sent(backend)


# ---- While it waits ----


@pytest.mark.parametrize("kind, name", [("maildir", "mail"), ("mbox", "mbox"), ("mbox", ".")])
def test_what_cannot_be_read_is_named(kind, name, newest, backend, tmp_path):
    place = tmp_path / "nowhere" / name if name != "." else tmp_path
    error = login(newest, backend, "%s:%s" % (kind, place)).error
    assert "mailbox %s cannot be read: " % place in error["message"] and nothing_sent(backend)


@pytest.mark.parametrize("kind", ["maildir", "mbox"])
def test_a_mailbox_that_disappears(kind, newest, backend, tmp_path):
    (tmp_path / "in").mkdir()
    process = start_login(newest, backend, "%s:%s" % (kind, tmp_path / "in" / "gone"))
    wait_until(backend.mails)
    (tmp_path / "in").rmdir()
    status, envelope, _ = ended(process)
    assert (status, envelope["error"]["code"]) == (1, "failed-precondition")
    assert envelope["error"]["nextAction"] == go_on("--api-url", backend.url)
    assert "mailbox %s cannot be read" % (tmp_path / "in") in envelope["error"]["message"]


def test_a_maildir_that_is_yet_to_come(scripto, backend, tmp_path):
    """Neither its folders nor itself are there when the code is asked for."""
    process = start_login(scripto, backend, "maildir:%s" % (tmp_path / "mail"))
    (mail,) = wait_until(backend.mails)
    (tmp_path / "mail" / "new").mkdir(parents=True)
    (tmp_path / "mail" / "new" / "1").write_text(mail)
    assert ended(process)[0] == 0


def test_an_mbox_that_comes_with_the_first_mail(scripto, backend, tmp_path):
    process = start_login(scripto, backend, "mbox:%s" % (tmp_path / "mbox"))
    (mail,) = wait_until(backend.mails)
    (tmp_path / "mbox").write_text("From a@b\n" + mail)
    assert ended(process)[0] == 0


@pytest.mark.slow
def test_a_line_from_a_body_begins_no_mail(newest, backend, tmp_path):
    """In an mbox, of a mail to somebody else: a line that begins so, without an empty one before."""
    process = start_login(newest, backend, "mbox:%s" % (tmp_path / "mbox"), "--timeout", "2")
    wait_until(backend.mails)
    text = "From a@b\nTo: x@x.example\n\nLook:\nFrom here on\nTo: %s\n\nYour code: 111111\n"
    (tmp_path / "mbox").write_text(text % EMAIL)
    assert "1 new messages, none to" in ended(process)[1]["error"]["message"]


def test_what_cannot_be_read_in_a_maildir_is_skipped(scripto, backend, tmp_path):
    """A FIFO, a loop of links, a folder, a link to nothing."""
    maildir = new_maildir(tmp_path / "own")
    process = start_login(scripto, backend, "maildir:%s" % maildir)
    (mail,) = wait_until(backend.mails)
    new = maildir / "new"
    os.mkfifo(str(new / "9.fifo"))
    (new / "8.loop").symlink_to("8.loop")
    (new / "7.nothing").symlink_to("nothing")
    (new / "6.folder").mkdir()
    deliver(maildir, mail)
    assert ended(process)[0] == 0


@pytest.mark.parametrize("at", ["front", "back"])
def test_a_code_beside_megabytes(at, newest, backend, tmp_path):
    maildir = new_maildir(tmp_path / "own")
    process = start_login(newest, backend, "maildir:%s" % maildir)
    code = wait_until(backend.mails) and backend.code_for(EMAIL)
    text = "--x\nContent-Type: text/plain\n\nYour code: %s\n" % code
    image = "--x\nContent-Type: image/png\nContent-Transfer-Encoding: base64\n\n"
    image += ("QUJD" * 18 + "\n") * 200000
    head = "To: %s\nContent-Type: multipart/mixed; boundary=x\n\n" % EMAIL
    deliver(maildir, head + (text + image if at == "front" else image + text) + "--x--\n")
    assert ended(process)[0] == 0


@pytest.mark.slow
def test_it_pauses_between_two_looks(newest, backend):
    path = backend.folder / "ran"
    login(newest, backend, "cmd:echo >> %s" % path, "--timeout", "2")
    assert 1 <= len(path.read_text()) <= 3


COMMANDS = {
    "fails": ("exit 7", "exit status 7"),
    "is not there": ("no-such-program-anywhere", "exit status 127"),
    "prints a megabyte": ("head -c 3000000 /dev/zero | tr '\\0' x", "none in the output"),
    "prints bytes": ("printf '\\377\\376'", "none in the output"),
    "never ends": ("sleep 1000", "no"),
    "prints for ever": ("yes", "none in the output"),
    "tells a secret on standard error": ("echo hush >&2; exit 3", "exit status 3"),
}


@pytest.mark.parametrize("kind", sorted(COMMANDS))
@pytest.mark.slow
def test_a_command_that(kind, newest, backend):
    command, seen = COMMANDS[kind]
    began = time.monotonic()
    run = login(newest, backend, "cmd:" + command, "--timeout", "1")
    assert time.monotonic() - began < 20
    assert (run.error["code"], run.status) == ("deadline-exceeded", 3)
    assert "within 1 second" in run.error["message"] and seen in run.error["message"]
    assert "hush" not in run.out + run.err


def alive(pid):
    try:
        with open("/proc/%d/stat" % pid) as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("how", ["time-out", "Ctrl-C"])
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks into /proc")
@pytest.mark.slow
def test_a_command_is_ended_with_what_it_started(how, newest, backend):
    path = backend.folder / "pid"
    command = "cmd:sleep 1000 & echo $! > %s; wait" % path
    process = start_login(newest, backend, command, "--timeout", "1" if how == "time-out" else "60")
    pid = int(wait_until(lambda: path.exists() and path.read_text()))
    assert alive(pid)
    if how == "Ctrl-C":
        process.send_signal(signal.SIGINT)
    assert ended(process)[0] == (130 if how == "Ctrl-C" else 3)
    wait_until(lambda: not alive(pid))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks into /proc")
def test_what_a_command_leaves_behind_ends_with_it(newest, backend):
    path = backend.folder / "pid"
    leave = "sleep 1000 > /dev/null & echo $! > %s; cat %s/new/*" % (path, backend.maildir)
    assert login(newest, backend, "cmd:" + leave).status == 0
    wait_until(lambda: not alive(int(path.read_text())))


def test_the_code_is_not_waited_for_when_none_was_sent(newest, raw_server, tmp_path):
    server = raw_server(http_reply({"success": False, "error": {
        "code": "internal", "message": "No mail.", "nextAction": "retry shortly"}}, 500))
    words = [*LOGIN, "--code-from", "cmd:echo 123456 > %s" % (tmp_path / "ran"), "--json"]
    run = newest.run(*words, "--api-url", server.url)
    assert run.error["nextAction"] == "retry shortly" and len(server.requests) == 1


@pytest.mark.slow
def test_what_came_is_counted(newest, backend, tmp_path):
    maildir = tmp_path / "counted"
    for part in ("tmp", "new", "cur"):
        (maildir / part).mkdir(parents=True)
    run = login(newest, backend, "maildir:%s" % maildir, "--timeout", "1")
    assert ": no new messages;" in run.error["message"] and "spam" in run.error["message"]
    process = start_login(newest, backend, "maildir:%s" % maildir, "--timeout", "2")
    wait_until(lambda: len(backend.mails()) == 2)
    deliver(maildir, "To: x@x.example\nSubject: 123456 is your code\n\n.\n")
    assert ": 1 new messages, none to you@example.com;" in ended(process)[1]["error"]["message"]


# ---- What it costs the others ----


@pytest.mark.parametrize("words", [["whoami"], ["config", "show"]])
@pytest.mark.slow
def test_other_commands_load_nothing_of_it(words, newest, backend):
    newest.sign_in(backend)
    run = newest.run(*words, flags=["-X", "importtime"])
    loaded = set(re.findall(r"\| +([\w.]+)$", run.err, re.M))
    assert run.status == 0 and "argparse" in loaded
    only_this = {"imaplib", "subprocess", "difflib", "html.parser", "html.entities",
                 "email.policy", "email.headerregistry"}
    assert loaded & only_this == set()


def test_a_timeout_that_is_none_touches_nothing(newest, backend):
    run = login(newest, backend, "cmd:true", "--timeout", "soon")
    assert run.error["code"] == "invalid-argument" and nothing_sent(backend)
    assert not newest.config.exists()
