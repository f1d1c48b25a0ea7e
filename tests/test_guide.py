"""`guide`: all that somebody gets who has seen nothing of the program."""
import json
import re
import shutil
import subprocess

import pytest

from conftest import PROGRAM, PYTHONS, Scripto

EMAIL = "you@example.com"


def shell_blocks(text):
    return re.findall(r"```sh\n(.*?)```", text, re.S)


# ---- As Markdown ----


def test_it_is_short(scripto):
    text = scripto.run("guide").out
    assert 2000 < len(text.encode()) < 7000
    assert text.startswith("# Scripto") and "https://scripto.codika.io/scripto.py" in text
    assert not re.search("THIS_URL|EXIT_STATUSES|MASKED_KEY|VERSION", text)


def test_llms_txt_is_the_same_with_that_backends_url(newest, backend):
    text = newest.run("guide", env={"SCRIPTO_API_BASE_URL": backend.url}).out
    assert backend.request("GET", "/llms.txt")[2].decode() == text
    assert backend.url + "/scripto.py" in text and "codika" not in text


@pytest.mark.parametrize("words", [
    "auth token", "curl -fsS -H @-", "--yes", "--name", "XDG_CONFIG_HOME", "SIGTERM",
    "completion", "-d '{", "--api-url", "httpStatus", "retryAfter", "--help", "SCRIPTO_API_KEY", "SCRIPTO_API_BASE_URL", "scripto run", "scripto api", "/api/keys",
    "keys revoke", "scripto use", "SCRIPTO_PROFILE", "logout", "--revoke", "Never",
    "login-request", "login-complete", "--code-from", "maildir:", "mbox:", "imaps://", "cmd:",
    "python3 -c", "chmod +x", "nextAction", '{"success": true', '{"success": false',
    "~/.config/scripto/config.json",
])  # fmt: skip
def test_what_an_agent_looks_for_is_there(words, newest):
    assert words in newest.run("guide").out


def test_every_exit_status_stands_there(newest):
    data = newest.run("guide", "--json").data
    statuses = {each["exitStatus"] for each in data["errors"]} | {0, 143}
    text = newest.run("guide").out
    assert {int(status) for status in data["exitStatuses"]} == statuses
    assert all("\n- %d: %s\n" % (status, data["exitStatuses"][str(status)]) in text
               for status in statuses)


def shape(value):
    """The members of an object, down to the last; the values do not matter."""
    if isinstance(value, list):
        return [shape(each) for each in value]
    return {name: shape(each) for name, each in value.items()} if isinstance(value, dict) else 0


def test_its_examples_are_what_the_program_says(newest, backend):
    """Each stands under its command; what it shows has the members that there really are."""
    text = newest.run("guide").out
    login, refused, whoami, keys = map(json.loads, re.findall(r"(?m)^\{.*\}$", text))
    assert newest.run("whoami", "--json").envelope == refused
    signed_in = newest.sign_in(backend)
    assert shape(login["data"]) == shape(signed_in) and login["data"]["apiKey"] in text
    for command, shown in (("whoami --json", whoami), ("api api/keys", keys)):
        said = json.loads(newest.run(*command.split()).out)
        assert shape(said) == shape(shown)
        block = re.search(r"\n```sh\nscripto %s\n```\n\n```json\n(.*)\n```" % command, text)
        assert json.loads(block.group(1)) == shown


# ---- As JSON ----


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    return Scripto(PYTHONS[0], tmp_path_factory.mktemp("home")).run("guide", "--json").data


def test_it_is_versioned_and_whole(described, newest):
    assert described["schemaVersion"] == 1
    assert described["version"] == newest.run("--version", "--json").data["version"]
    overview = re.findall(r"(?m)^  ((?:[a-z]+ )?[a-z][a-z-]+)  ", newest.run("--help").out)
    assert [each["name"] for each in described["commands"]] == overview


@pytest.mark.slow
def test_every_flag_of_every_command_is_the_parsers(described, newest):
    options = {each["name"]: each for each in described["options"]}
    assert all(each["purpose"] for each in options.values())
    for command in described["commands"]:
        text = newest.run(*command["name"].split(), "--help").out
        flags = set(re.findall(r"(?m)^  (?:-\w[ ,].*)?(--[a-z-]+)", text))
        takes = {each for each in command["takes"] if re.match("--[a-z]", each)}
        assert takes == flags - {"--json", "--help"}
        assert set(command["takes"]) <= set(options) and command["purpose"]
        assert command["example"].startswith("scripto " + command["name"])
        assert set(command["changes"].split(", ")) <= {"", "here", "backend"}


def test_what_a_command_needs_is_what_its_parser_asks_for(described, newest):
    needed = {each["name"]: each["required"] for each in described["commands"]}
    assert described["everyCommandTakes"] == ["--json", "--help"]
    assert needed["auth login-complete"] == ["--email", "--code"] and needed["use"] == []
    assert needed["run"] == ["--"] and needed["serve"] == []
    for name, words in needed.items():
        error = newest.run(*name.split(), "--json").error if words else {"message": " is missing"}
        assert re.search("missing|required", error["message"]), name


def test_every_variable_that_the_program_reads_is_named(described):
    with open(PROGRAM, encoding="utf-8") as file:
        program = file.read()
    elsewhere = re.sub(r"(?ms)^ENVIRONMENT = \{.*?^\}", "", program)
    named = set(re.findall(r'"(SCRIPTO_[A-Z_]+)"', elsewhere))
    assert named <= set(described["environment"])
    assert all(each in elsewhere for each in described["environment"] if "SCRIPTO_" in each)
    assert {"XDG_CONFIG_HOME", "XDG_DATA_HOME", "NO_COLOR"} <= set(described["environment"])


@pytest.mark.slow
def test_the_data_of_a_command_are_as_it_says(described, newest, backend, tmp_path):
    """By the names of the outermost members; ? marks one that may be absent."""
    shapes = {each["name"]: each["data"] for each in described["commands"]}
    newest.sign_in(backend)
    db, copy = ["--db", str(backend.db)], str(tmp_path / "copy.db")
    calls = [["auth", "token"], ["whoami"], ["use"], ["keys", "list"], ["config", "show"],
             ["completion", "bash"], ["users", *db], ["users", "list", *db], ["guide"], ["doctor"],
             ["demo"], ["keys", "revoke", "--others", "--yes"], ["backup", copy, *db],
             ["users", "remove", "you@example.com", "--yes", *db], ["logout"],
             ["config", "clear", "--all", "--yes"],
             ["auth", "login-request", "--email", EMAIL, "--api-url", backend.url],
             ["config", "set", "--api-key", "scripto_" + "k" * 43]]  # fmt: skip
    for words in calls:
        shown = next(shapes[name] for name in (" ".join(words[:2]), words[0]) if name in shapes)
        for inner in (r"\[.*?\]", r"(?<=: )\{.*?\}", r"\(.*?\)"):
            shown = re.sub(inner, "", shown)
        data = set(newest.run(*words, "--json").data)
        kinds = [re.findall(r"\w+\??", kind) for kind in re.findall(r"\{(.*?)\}", shown)]
        assert any({each for each in kind if each[-1] != "?"} <= data
                   <= {each.rstrip("?") for each in kind} for kind in kinds), words


def test_every_code_is_there(described):
    errors = {each["code"]: (each["httpStatus"], each["exitStatus"]) for each in described["errors"]}
    assert errors["invalid-argument"] == (400, 2) and errors["cancelled"][1] == 130


def test_it_needs_no_home_and_no_sound_profile_file(newest):
    newest.write_config("not JSON")
    assert newest.run("guide").status == 0
    assert newest.run("guide", env={"HOME": None}).status == 0


# ---- As a skill ----


def test_the_skill_has_its_front_matter(scripto):
    """By agentskills.io: name as its folder, description of at most 1024 characters."""
    text = scripto.run("guide", "--skill").out
    front, _, rest = text[4:].partition("\n---\n\n")
    assert text.startswith("---\n") and rest == scripto.run("guide").out
    *lines, metadata, version = front.splitlines()
    assert (metadata, version) == ("metadata:", '  version: "%s"' % scripto.run("--version").out.split()[1])
    name, description = (line.split(": ", 1) for line in lines)
    assert name == ["name", "scripto"] and description[0] == "description"
    assert 50 < len(description[1]) <= 1024 and ": " not in description[1] and "<" not in front


# ---- By somebody who has only that text ----


class Newcomer:
    """A bare machine: an empty home, Python and the usual tools; and a shell for each command, as
    agents have it, so that what was exported is gone with the next."""

    def __init__(self, folder, python, **env):
        self.home = folder / "newcomer"
        (self.home / "bin").mkdir(parents=True)
        (self.home / "bin" / "python3").symlink_to(python)
        path = "%s:%s:/usr/bin:/bin" % (self.home / ".local/bin", self.home / "bin")
        self.env = dict({"HOME": str(self.home), "PATH": path}, **env)

    def sh(self, command, status=0):
        process = subprocess.run(["sh", "-c", command], env=self.env, cwd=str(self.home), timeout=120,
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE)
        out, err = process.stdout.decode(), process.stderr.decode()
        assert process.returncode == status, (command, out, err)
        assert "Traceback" not in err
        return out


@pytest.fixture(params=["curl", "python3"])
def newcomer(request, backend, tmp_path, edge):
    """Who has got the program as the guide says: with curl, or with nothing but Python."""
    if request.param == "curl" and not shutil.which("curl"):
        pytest.skip("needs curl")
    text = backend.request("GET", "/llms.txt")[2].decode()
    machine = Newcomer(tmp_path, edge)
    machine.text = text
    get = shell_blocks(text)[0]
    if request.param == "python3":
        get = "%s\n%s" % (get.splitlines()[0], shell_blocks(text)[1])
    machine.sh(get)
    return machine


@pytest.mark.slow
def test_the_commands_of_the_guide_as_they_stand(newcomer, backend):
    """Hands-free, then all that is said about the key; only what it leaves open is filled in."""
    _, _, one_step, two_steps, whoami, keys, post, use = shell_blocks(newcomer.text)
    answer = json.loads(newcomer.sh(one_step.replace("SOURCE", "maildir:%s" % backend.maildir)))
    assert answer["success"] and answer["data"]["baseUrl"] == backend.url
    key = json.loads((newcomer.home / ".config/scripto/config.json").read_text())
    key = key["profiles"]["you"]["apiKey"]
    assert json.loads(newcomer.sh(whoami))["data"]["user"]["email"] == EMAIL
    run, by_curl = use.split("\n", 1)
    for command in (keys, by_curl):
        out = newcomer.sh(command)
        assert json.loads(out)["data"]["keys"] and key not in out
    assert json.loads(newcomer.sh(post, status=1))["data"]["status"] == 404
    assert newcomer.sh(run.replace("COMMAND", "env")).count(key) == 1
    newcomer.sh(run.replace("COMMAND", "sh -c 'exit 7'"), status=7)
    newcomer.sh(by_curl.replace("auth token", "auth token --profile nobody"), status=1)
    request, complete = two_steps.splitlines()
    newcomer.sh(request.replace(EMAIL, "second@example.com"))
    code = backend.code_for("second@example.com")
    complete = complete.replace(EMAIL, "second@example.com")
    newcomer.sh(complete.replace("123456", "%06d" % ((int(code) + 1) % 10**6)), status=2)
    newcomer.sh(complete.replace("123456", code))  # still good
    assert "second" in newcomer.sh("scripto whoami")
    assert re.search("(?m)^[●*] second ", newcomer.sh("scripto use"))  # * in an ASCII locale
    newcomer.sh("scripto use you")
    assert EMAIL in newcomer.sh("scripto whoami")
    newcomer.sh("scripto logout second")


@pytest.mark.slow
def test_every_next_action_can_be_run_as_it_stands(newcomer, backend):
    missing = json.loads(newcomer.sh("scripto whoami --json", status=4))["error"]["nextAction"]
    words = missing[missing.index("scripto auth") :].replace("<your-email>", EMAIL)
    answer = json.loads(newcomer.sh(words + " --json"))["data"]["nextAction"]
    newcomer.sh(answer.replace("<6-digit-code>", backend.code_for(EMAIL)))
    backend.stop()
    error = json.loads(newcomer.sh("scripto whoami --json", status=3))["error"]
    assert error["code"] == "network-error" and error["nextAction"]


def test_the_longer_way_to_say_it(newcomer, backend):
    """`python3 ~/.local/bin/scripto` for `scripto`."""
    assert "python3 ~/.local/bin/scripto" in newcomer.text
    assert "scripto " in newcomer.sh("python3 ~/.local/bin/scripto --version")
