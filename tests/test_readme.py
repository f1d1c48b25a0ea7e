"""What the README promises: its quick start, run and compared; its tables, against the program."""
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from conftest import PROGRAM, PYTHONS, Scripto

ROOT = pathlib.Path(PROGRAM).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SPEC_BLOCKS = re.findall(r"```console\n(.*?)```", README, re.S)


def without_chances(text):
    """The text with what differs from run to run made the same."""
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text)
    return re.sub(r"\b\d{6}\b", "CODE", text)


def test_the_first_command_does_what_it_shows(python, tmp_path):
    """In a folder that holds the file alone; `...` in the README stands for any lines."""
    shutil.copy(PROGRAM, str(tmp_path))
    shown = SPEC_BLOCKS[0].split("\n", 1)[1]
    assert SPEC_BLOCKS[0].startswith("$ python3 scripto.py demo\n")
    machine = Scripto(python, tmp_path / "home")
    run = machine.run("demo", program=str(tmp_path / "scripto.py"), cwd=str(tmp_path))
    pattern = re.escape(without_chances(shown)).replace(re.escape("...\n"), "(?:.*\n)+?")
    assert re.fullmatch(pattern, without_chances(run.out)), run.out


def test_it_is_found_within_thirty_lines():
    assert "python3 scripto.py demo" in "\n".join(README.splitlines()[:30])


def test_the_test_command_is_the_one_of_ci():
    (command,) = [block for block in SPEC_BLOCKS if ".venv/bin/pip" in block]
    assert command.strip()[2:] in (ROOT / ".ci" / "run").read_text()


@pytest.fixture(scope="module")
def newest(tmp_path_factory):
    return Scripto(PYTHONS[-1], tmp_path_factory.mktemp("home"))


def test_every_command_stands_in_the_table(newest):
    commands = re.findall(r"(?m)^  ((?:auth |config )?[a-z-]+) {2,}", newest.run("--help").out)
    table = README[README.index("## Commands") :]
    assert len(commands) >= 12
    assert [name for name in commands if "| `%s" % name not in table] == []


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
