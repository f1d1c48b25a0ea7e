"""The README: its commands run as they are pasted, its tables against the program's own.

A block of `sh` is run. A word behind the language says where else it belongs: `server` and `clone`
need another machine, `code` needs the mailed code in the place of 123456.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from conftest import PROGRAM, PYTHONS, Scripto

ROOT = pathlib.Path(PROGRAM).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?m)^```(.+)\n((?:.*\n)*?)```$", README)
SITE = "https://scripto.codika.io"
NEWEST_CODE = "$(ls -t ~/Maildir/new/* | head -n 1 | xargs sed -n 's/^Subject: \\([0-9]\\{6\\}\\) .*/\\1/p')"


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """What the program says of itself."""
    return Scripto(PYTHONS[-1], tmp_path_factory.mktemp("home")).run("guide", "--json").data


def table_below(heading):
    """The rows of the first table below that heading, as lists of cells."""
    text = README[README.index("\n%s\n" % heading) :]
    table = re.search(r"(?m)(?:^\|.*\n)+", text).group()
    rows = [re.split(r" *(?<!\\)\| *", line)[1:-1] for line in table.splitlines()]
    return rows[2:]


@pytest.fixture
def newcomer(tmp_path, start_backend):
    """(an empty home with a python3 on the PATH, a backend whose mail goes to ~/Maildir there)."""
    machine = Scripto(PYTHONS[-1], tmp_path / "home")
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python3").symlink_to(PYTHONS[-1])
    machine.env["PATH"] = "%s:%s" % (folder, os.environ["PATH"])
    return machine, start_backend(mail="maildir:%s/Maildir" % machine.home)


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
@pytest.mark.slow
def test_every_command_runs_as_it_is_pasted(newcomer):
    """One after the other in one shell, with the test's backend in the place of Scripto's own."""
    machine, backend = newcomer
    scripts = [text.replace("123456", NEWEST_CODE) if kind == "sh code" else text
               for kind, text in BLOCKS if kind in ("sh", "sh code")]  # fmt: skip
    assert len(scripts) >= 9
    script = "\necho\n".join(["set -e", *scripts]).replace(SITE, backend.url)
    process = subprocess.run(["sh", "-c", script], env=machine.env, cwd=str(machine.home),
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, timeout=120)  # fmt: skip
    out = process.stdout.decode()
    assert process.returncode == 0, process.stderr.decode()[-2000:]
    assert out.count("✓ Signed in\n") == 4  # one of them is the demo's
    assert "✓ Signed in as me@example.com" in out, out
    assert (machine.home / ".claude/skills/scripto/SKILL.md").exists()


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_a_sign_in_by_hand_looks_as_it_is_shown(newcomer):
    import pty

    machine, backend = newcomer
    (shown,) = [text for kind, text in BLOCKS if kind == "console"]
    command, _, shown = shown.partition("\n")
    assert command.startswith("$ scripto auth login ")
    master, slave = pty.openpty()
    words = command.split()[2:] + ["--api-url", backend.url]
    process = machine.start(*words, stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    os.close(slave)
    out = b""
    while b"Code: " not in out:
        out += os.read(process.stdout.fileno(), 1000)
    os.write(master, backend_code(machine).encode() + b"\n")
    out = (out + process.communicate(timeout=60)[0]).decode()
    os.close(master)
    out = out.replace(" --api-url " + backend.url, "")
    shown = shown.replace("Code: 123456\n", "").replace("...\n", "")
    assert shown.strip() and out.replace("Code: ", "").startswith(shown)


def backend_code(machine):
    (mail,) = (machine.home / "Maildir" / "new").iterdir()
    return re.search(r"(?m)^Subject: (\d{6}) ", mail.read_text()).group(1)


def flags_of_commands():
    """{command: the flags that its row names}; of `serve` those of its own table."""
    common = {"": set(), "B": {"--api-url", "--profile"}}
    common["K"] = common["B"] | {"--api-key"}
    found = {}
    for synopses, mark, _ in table_below("## Commands"):
        for synopsis in re.findall("`([^`]+)`", synopses):
            name = re.match("(?:[a-z][a-z-]* ?)*", synopsis).group().strip() or name
            flags = re.findall(r"(?<![a-z-])--?[A-Za-z][a-z-]*", synopsis)
            found.setdefault(name, set()).update(flags, common[mark])
    served = " ".join(row[0] for row in table_below("### Flags of `serve`"))
    found["serve"].update(re.findall("--[a-z-]+", served))
    return found


def test_every_command_stands_in_the_table_with_the_flags_that_it_takes(described):
    said = {row["name"]: {word for word in row["takes"] if re.match("--?[A-Za-z]", word)}
            for row in described["commands"] if row["name"] != "users list"}  # fmt: skip
    shown = flags_of_commands()
    assert {name: shown.get(name) for name in said} == said
    assert set(shown) - set(said) == {"help"}


def test_every_variable_is_named(described):
    assert [name for name in described["environment"] if "`%s`" % name not in README] == []


def test_every_error_code_stands_in_the_table_with_its_exit_status(described):
    shown = {row[0].strip("`"): int(row[2]) for row in table_below("## Errors")}
    assert shown == {row["code"]: row["exitStatus"] for row in described["errors"]}


def test_every_route_stands_in_the_table():
    sys.path.insert(0, str(ROOT))
    try:
        import scripto
    finally:
        sys.path.remove(str(ROOT))
    shown = " ".join(row[0] for row in table_below("## The HTTP contract"))
    assert len(scripto.ROUTES) >= 9 and [path for path in scripto.ROUTES if path + "`" not in shown] == []


def test_it_takes_ten_minutes_to_read_and_installs_before_it_is_used():
    assert len(README.encode()) <= 18000
    assert README.index("## Install") < README.index("\nscripto ")


def test_the_test_command_is_the_one_of_ci():
    (command,) = [text for kind, text in BLOCKS if ".venv/bin/pip " in text]
    assert command.strip() in (ROOT / ".ci" / "run").read_text()


def test_commands_that_are_pasted_have_no_prompt():
    assert [text for kind, text in BLOCKS if kind.startswith("sh") and re.search(r"(?m)^\$ ", text)] == []


def test_installed_it_is_a_command_of_that_name():
    """Where it is: in the environment that the test command makes."""
    installed = pathlib.Path(sys.executable).parent / "scripto"
    if not installed.exists():
        pytest.skip("not installed here")
    shown = subprocess.run([str(installed), "--version"], stdout=subprocess.PIPE)
    asked = subprocess.run([sys.executable, PROGRAM, "--version"], stdout=subprocess.PIPE)
    assert shown.stdout == asked.stdout
