"""Completion, tried in the shells themselves: bash, zsh and fish, where they are installed."""
import json
import os
import pty
import re
import select
import shutil
import subprocess

import pytest

from conftest import PROGRAM, PYTHONS, Scripto, wait_until

pytestmark = pytest.mark.slow
SHELLS = ("bash", "zsh", "fish")
NAMES = ["you", "a.b", "-dash", "A_z-9.", ".dot", "0"]  # every kind of character that is allowed
# Prints what Tab would offer, one word a line, for the line that stands in LINE.
BASH = r"""
IFS=' ' read -ra COMP_WORDS <<< "$LINE"
case $LINE in *' '|*=) COMP_WORDS+=('') ;; esac
COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
spec=$(complete -p -- "${COMP_WORDS##*/}")
[[ $spec =~ -F\ ([^ ]+) ]]
"${BASH_REMATCH[1]}" "$COMP_WORDS" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\n' "${COMPREPLY[@]}"
"""
FISH = 'complete -C "$LINE" | string replace -r "\\t.*" ""'


class Shell:
    """A shell in a home of its own, where `scripto` is on the PATH."""

    def __init__(self, name, folder):
        if not shutil.which(name):
            pytest.skip("no " + name)
        self.name, self.scripto = name, Scripto(PYTHONS[-1], folder / "home")
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.install()
        self.env = dict(self.scripto.env, TERM="dumb", LINES="40", COLUMNS="200",
                        PATH="%s:%s" % (self.bin, os.environ["PATH"]))  # fmt: skip
        profile = {"apiKey": "scripto_" + "k" * 43, "email": 'x"name": "no"@example.com'}
        self.scripto.write_config({"activeProfile": "you", "profiles": {
            name: profile for name in NAMES + ["not a name", "nor\"this"]}})  # fmt: skip

    def install(self):
        """The program as `scripto`: a copy, which a test may change."""
        (self.bin.parent / "copies").mkdir()
        copy = shutil.copy(PROGRAM, str(self.bin.parent / "copies" / "scripto"))
        program = self.bin / "scripto"
        program.write_text('#!/bin/sh\nexec %s %s "$@"\n' % (PYTHONS[-1], copy))
        program.chmod(0o755)

    def script(self):
        return subprocess.check_output(
            [str(self.bin / "scripto"), "completion", self.name], env=self.env).decode()

    def offers(self, line, before=""):
        """What Tab offers at the end of the line, by the shell's own means."""
        env = dict(self.env, LINE=line, SCRIPT=self.script())
        if self.name == "zsh":
            return zsh_offers(self, line, before or ZSH_EVAL)
        command = {
            "bash": ["bash", "--norc", "-c", before + 'eval "$SCRIPT"\n' + BASH],
            "fish": ["fish", "--no-config", "-c", 'echo "$SCRIPT" | source\n' + FISH],
        }[self.name]
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, cwd=str(self.bin.parent))  # fmt: skip
        out, err = process.communicate()
        assert err == b"", err.decode()
        return set(out.decode().split())


ZSH_EVAL = 'autoload -Uz compinit; compinit -u -D; eval "$(scripto completion zsh)"'
# Notes each match before it is shown: what compadd would add, by its own flag -O; then "done".
ZSH_CAPTURE = r"""
compadd() {
  local -a found; local each
  [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]] && { builtin compadd "$@"; return }
  builtin compadd -O found "$@"
  for each in "$found[@]"; do print -r -- "<$each>" >> offered; done
  builtin compadd "$@"
}
note_tab() { zle expand-or-complete; print done >> offered }
zle -N note_tab; bindkey '^I' note_tab
"""


class Session:
    """An interactive shell on a terminal of its own."""

    def __init__(self, shell, *command):
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.chdir(str(shell.bin.parent))
            os.execvpe(command[0], command, dict(shell.env, PS1="ready> "))
        self.screen = ""

    def read(self):
        while select.select([self.master], [], [], 0.01)[0]:
            try:
                self.screen += os.read(self.master, 65536).decode("utf-8", "replace")
            except OSError:
                break
        return self.screen

    def type(self, text):
        os.write(self.master, text.encode())

    def do(self, line):
        """Runs a line, and waits for what it prints at its end."""
        self.type(line + "; print -r do''ne; rm -f offered\n")
        wait_until(lambda: "done" in self.read(), what="the shell")
        self.screen = ""

    def close(self):
        os.close(self.master)
        os.waitpid(self.pid, 0)


def zsh_offers(shell, line, before):
    session, offered = Session(shell, "zsh", "-f", "-i"), shell.bin.parent / "offered"
    try:
        session.do("unsetopt zle; PS1='ready> '")
        session.do("setopt zle; " + before.replace("\n", "; "))
        session.do(ZSH_CAPTURE)
        session.type(line + "\t")
        wait_until(lambda: session.read() and offered.exists() and "done" in offered.read_text(),
                   what="the end of the Tab")  # fmt: skip
        assert "_scripto" not in session.screen, session.screen
        return set(re.findall("<(.*)>", offered.read_text()))
    finally:
        session.close()


@pytest.fixture(params=SHELLS)
def shell(request, tmp_path):
    return Shell(request.param, tmp_path)


@pytest.fixture
def bash(tmp_path):
    return Shell("bash", tmp_path)


@pytest.fixture
def zsh(tmp_path):
    return Shell("zsh", tmp_path)


OFFERS = {  # None: whatever, but no error
    "scripto lo": {"logout"},
    "scripto --json lo": {"logout"},
    "scripto -": {"--help", "--version", "--json"},
    "scripto help auth login-c": {"login-complete"},
    "scripto api a -": None,
    "scripto auth login-c": {"login-complete"},
    "scripto config ": {"set", "show", "clear"},
    "scripto keys revoke --y": {"--yes"},
    "scripto whoami --api-": {"--api-key", "--api-url"},
    "scripto whoami ": set(),
    "scripto auth login-request --email x --pro": {"--profile"},
    "scripto completion ": {"bash", "zsh", "fish"},
    "scripto completion --json f": {"fish"},
    "scripto auth login-request --email ": set(),
    "scripto nonsense ": None,
    "scripto '*' ": None,
    "scripto users ": {"list", "remove"},
}


@pytest.mark.parametrize("line", OFFERS)
def test_commands_flags_and_values_are_offered(bash, line):
    offers = bash.offers(line)
    assert OFFERS[line] is None or offers == OFFERS[line]


@pytest.mark.parametrize("line", ["scripto lo", "scripto keys revoke --y", "scripto completion ",
                                  "scripto whoami "])  # fmt: skip
def test_by_every_shell(shell, line):
    assert shell.offers(line) == OFFERS[line]


def test_every_command_is_offered(shell):
    """What the overview names, groups by their first word."""
    overview = shell.scripto.run("--help").out
    assert shell.offers("scripto ") == set(re.findall(r"(?m)^  ([a-z]+)", overview))


def test_profile_names_are_read_when_tab_is_pressed(shell):
    offers = shell.offers("scripto use ")
    assert offers | {".dot"} == set(NAMES)  # fish hides what begins with a dot until that is typed
    assert "a.b" in shell.offers("scripto use a")  # and fish takes A for a
    shell.scripto.write_config({"profiles": {"new.one": {}}})
    assert shell.offers("scripto use ") == {"new.one"}


@pytest.mark.parametrize("line", ["scripto whoami --profile ", "scripto logout --revoke ",
                                  "scripto --json use "])  # fmt: skip
def test_profile_names_are_offered_where_one_is_wanted(bash, line):
    assert bash.offers(line) == set(NAMES) and bash.offers(line + ".") == {".dot"}


def test_flags_of_a_command_that_takes_a_name(bash):
    assert bash.offers("scripto use --") == {"--json", "--help"}


def test_files_are_offered_where_a_file_is_wanted(shell):
    """In bash it is readline that does it: the pty test below."""
    if shell.name == "bash":
        pytest.skip("see test_at_a_terminal")
    (shell.bin.parent / "data.db").write_text("")
    assert shell.offers("scripto serve --db data") == {"data.db"}
    assert shell.offers("scripto run -- cat data") == {"data.db"}


def test_a_broken_profile_file_offers_nothing(bash):
    bash.scripto.write_config("{")
    assert bash.offers("scripto use ") == set()


def test_it_works_for_a_path_too(shell):
    assert "a.b" in shell.offers("%s/scripto use " % shell.bin)


def test_help_texts_cannot_break_out(shell, tmp_path):
    """A program whose help holds what shells like to expand."""
    copy = tmp_path / "copies" / "scripto"
    text = copy.read_text(encoding="utf-8")
    nasty = "it's `touch hurt`, $(touch hurt), \\\"quoted\\\" \\\\ [x] {a} *"
    copy.write_text(text.replace('"the database ', '"%s ' % nasty), encoding="utf-8")
    assert nasty.replace("\\\"", '"').split(",")[0] in shell.scripto.run(
        "serve", "--help", program=str(copy)).out  # fmt: skip
    assert shell.offers("scripto serve --d") == {"--db"}
    assert list(tmp_path.glob("**/hurt")) == []


# ---- bash ----


@pytest.mark.parametrize("before", [
    "set -u\n", "set -o posix\n", "IFS=o\n",
    "alias grep='grep --color=always' ls='ls --color=always'\nshopt -s expand_aliases\n",
    "file=/usr/share/bash-completion/bash_completion\n[ ! -r $file ] || . $file\n",
])  # fmt: skip
def test_bash_as_people_have_it(bash, before):
    assert bash.offers("scripto auth login-c", before) == {"login-complete"}
    assert "a.b" in bash.offers("scripto whoami --profile ", before)


def test_bash_breaks_words_at_an_equals_sign(bash):
    """COMP_WORDBREAKS holds it, so the words are the flag, the sign and the value."""
    words = 'COMP_WORDS=(scripto whoami --profile = a) COMP_CWORD=4\n_scripto scripto a =\n'
    env = dict(bash.env, SCRIPT=bash.script())
    out = subprocess.check_output(["bash", "--norc", "-c", 'eval "$SCRIPT"\n' + words
                                   + 'echo "${COMPREPLY[@]}"'], env=env)  # fmt: skip
    assert out == b"a.b\n"


def test_at_a_terminal(bash):
    (bash.bin.parent / "a file.db").write_text("")
    session = Session(bash, "bash", "--norc", "-i")
    try:
        session.type('eval "$(scripto completion bash)"; echo do""ne\n')
        wait_until(lambda: "done" in session.read(), what="the shell")
        for typed, shown in (("scripto auth login-c\t", "login-complete "),
                             ("scripto whoami --profile=a\t", "--profile=a.b "),
                             ("scripto serve --db a\t", "a\\ file.db ")):  # fmt: skip
            session.screen = ""
            session.type(typed)
            wait_until(lambda: shown in session.read(), what=shown)
            session.type("\x15")
    finally:
        session.close()


# ---- zsh ----


WAYS = {
    "a file in fpath": ('mkdir f; scripto completion zsh > f/_scripto; fpath=($PWD/f $fpath); '
                        'autoload -Uz compinit; compinit -u -D'),
    "twice": ZSH_EVAL + '; eval "$(scripto completion zsh)"',
    "odd options": "setopt ksh_arrays sh_word_split no_glob; " + ZSH_EVAL,
}  # fmt: skip


@pytest.mark.parametrize("how", WAYS)
def test_zsh_as_people_have_it(zsh, how):
    assert zsh.offers("scripto auth login-c", WAYS[how]) == {"login-complete"}


def test_a_file_for_fpath_says_so_in_its_first_line(zsh):
    assert zsh.script().startswith("#compdef scripto\n")


# ---- The command ----


@pytest.mark.parametrize("name", SHELLS)
def test_the_script_is_the_whole_output(name, tmp_path):
    scripto = Scripto(PYTHONS[-1], tmp_path)
    result = scripto.run("completion", name)
    assert (result.status, result.err) == (0, "")
    assert scripto.run("completion", name, "--json").data["script"] + "\n" == result.out


@pytest.mark.parametrize("words", [[], ["tcsh"], ["bash", "zsh"]], ids=str)
def test_an_unknown_shell_is_refused(words, tmp_path):
    error = Scripto(PYTHONS[-1], tmp_path).run("completion", *words, "--json").error
    assert error["code"] == "invalid-argument" and json.dumps(error)


@pytest.mark.parametrize("words", [[], [""], ["tcsh", "wh"]])
def test_a_call_back_by_no_shell_is_refused(words, tmp_path):
    run = Scripto(PYTHONS[-1], tmp_path).run("__complete", *words)
    assert run.status == 2 and run.out == "" and "no such shell" in run.err
