"""What the README promises: its quick start, run and compared; its tables, against the program."""
import http.server
import json
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse

import pytest

from conftest import PROGRAM, PYTHONS, Scripto

ROOT = pathlib.Path(PROGRAM).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SPEC_BLOCKS = re.findall(r"```console\n(.*?)```", README, re.S)


def without_chances(text):
    """The text with what differs from run to run made the same."""
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text)
    return re.sub(r"\b\d{6}\b", "CODE", text)


@pytest.fixture(scope="module")
def newest(tmp_path_factory):
    return Scripto(PYTHONS[-1], tmp_path_factory.mktemp("home"))


@pytest.mark.slow
def test_the_first_command_does_what_it_shows(edge, tmp_path):
    """In a folder that holds the file alone; `...` in the README stands for any lines."""
    shutil.copy(PROGRAM, str(tmp_path))
    (block,) = [each for each in SPEC_BLOCKS if each.startswith("$ python3 scripto.py demo\n")]
    shown = block.split("\n", 1)[1]
    machine = Scripto(edge, tmp_path / "home")
    run = machine.run("demo", program=str(tmp_path / "scripto.py"), cwd=str(tmp_path))
    pattern = re.escape(without_chances(shown)).replace(re.escape("...\n"), "(?:.*\n)+?")
    assert re.fullmatch(pattern, without_chances(run.out)), run.out


def test_one_command_signs_in_as_it_shows(python, tmp_path, backend):
    """Standard error and output as at a terminal, one after the other."""
    machine = Scripto(python, tmp_path / "home", SCRIPTO_API_BASE_URL=backend.url)
    (machine.home / "Maildir").symlink_to(backend.maildir)
    command, shown = SPEC_BLOCKS[0].split("\n", 1)
    assert command.startswith("$ python3 scripto.py auth login --email ")
    run = machine.run(*command.split()[3:])
    assert run.err + run.out == shown and run.status == 0


class Mailpit(http.server.BaseHTTPRequestHandler):
    """A stand-in for the two routes of Mailpit that the recipe asks, since Mailpit is not here."""

    def do_GET(self):
        parts = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(parts.query).get("query")
        mails = self.server.mails()
        if parts.path == "/api/v1/search" and query == ['to:"you@example.com"']:
            found = [{"ID": "x%d" % at, "MessageID": "m@x", "Size": 654321, "Tags": []}
                     for at, mail in enumerate(mails) if "To: you@example.com\n" in mail]
            body = json.dumps({"total": len(mails), "messages": found[::-1]})
        else:
            at = re.match(r"/view/x(\d+)\.txt$", parts.path)
            body = mails[int(at.group(1))].partition("\n\n")[2] if at else ""
        self.send_response(200 if body else 404)
        self.end_headers()
        self.wfile.write(body.replace('": "', '":"').encode())

    def log_message(self, *_):
        pass


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
@pytest.mark.slow
def test_the_recipe_for_mailpit(tmp_path, backend):
    """Twice, so that there is an old mail, too."""
    (recipe,) = re.findall(r"```sh\n(export SCRIPTO_CODE_FROM='cmd:.*?)```", README, re.S)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mailpit)
    server.mails = backend.mails
    threading.Thread(target=server.serve_forever, daemon=True).start()
    machine = Scripto(PYTHONS[-1], tmp_path / "home", SCRIPTO_API_BASE_URL=backend.url)
    scripto = "%s %s" % (machine.python, PROGRAM)
    recipe = recipe.replace("127.0.0.1:8025", "127.0.0.1:%d" % server.server_port)
    recipe = recipe.replace("\nscripto ", "\n%s " % scripto)
    try:
        for _ in range(2):
            run = subprocess.run(["sh", "-c", recipe], env=machine.env, timeout=120,
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
            assert run.returncode == 0 and "✓ Signed in".encode() in run.stdout
    finally:
        server.shutdown()
        server.server_close()


def test_every_source_and_variable_stands_in_a_table(newest):
    described = newest.run("guide", "--json").data
    for name in [*described["environment"], "cmd:COMMAND", "maildir:DIR", "mbox:FILE", "imaps://"]:
        assert "| `%s" % name in README or ", `%s" % name in README, name


def test_it_is_found_within_thirty_lines():
    assert "python3 scripto.py auth login" in "\n".join(README.splitlines()[:15])
    assert "python3 scripto.py demo" in "\n".join(README.splitlines()[:30])


def test_commands_that_are_pasted_have_no_prompt():
    """A prompt stands only where the output is shown as well."""
    for block in re.findall(r"```sh\n(.*?)```", README, re.S):
        assert not re.search(r"(?m)^\$ ", block), block
    for block in SPEC_BLOCKS:
        assert len([line for line in block.splitlines() if line[:2] != "$ "]) > 0, block


def test_every_command_stands_in_the_table(newest):
    commands = newest.run("guide", "--json").data["commands"]
    table = README[README.index("## Commands") :].replace("[list]", "").replace("[", "")
    missing = [row["name"] for row in commands if "`%s" % row["name"] not in table]
    assert len(commands) >= 20 and missing == ["users list"]  # which is `users` by another name


def test_every_route_stands_in_the_table():
    sys.path.insert(0, str(ROOT))
    try:
        import scripto
    finally:
        sys.path.remove(str(ROOT))
    table = README[README.index("## The HTTP contract") :]
    paths = [path for path in scripto.ROUTES if path != "*"]
    assert len(paths) >= 9 and [path for path in paths if path + "`" not in table] == []


def test_every_flag_of_serve_stands_in_the_table(newest):
    flags = set(re.findall(r"--[a-z-]+", newest.run("serve", "--help").out))
    table = README[README.index("## Run a backend") :]
    assert {flag for flag in flags if flag not in table} <= {"--json", "--help"}


def test_installed_it_is_a_command_of_that_name():
    """Where it is: in the environment that the test command makes."""
    installed = pathlib.Path(sys.executable).parent / "scripto"
    if not installed.exists():
        pytest.skip("not installed here")
    shown = subprocess.run([str(installed), "--version"], stdout=subprocess.PIPE)
    assert shown.stdout == subprocess.run(
        [sys.executable, PROGRAM, "--version"], stdout=subprocess.PIPE
    ).stdout
