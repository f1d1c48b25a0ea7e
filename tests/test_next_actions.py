"""What an error says to do next can be done: every command that it names, pasted with its
placeholders filled, is taken by the program, and has the flags that the call had."""
import json
import re
import shlex

import pytest

from conftest import PYTHONS, Scripto, http_reply

EMAIL, KEY = "you@example.com", "scripto_" + "k" * 43
VALUES = {"<your-email>": EMAIL, "<6-digit-code>": "123456", "<your-key>": KEY,
          "<your-api-key>": KEY, "<name>": "you", "<id>": "key_1", "<email>": EMAIL,
          "<your-command>": "true", "<path>": "api/keys", "<shell>": "bash", "<file>": "copy.db"}
SIGN_IN = "--email %s --api-url URL" % EMAIL
COMPLETE = "auth login-complete --code 123456 --name 'my laptop' --profile-name w " + SIGN_IN
KEYS = {"success": True, "data": {"keys": [{"id": "key_1", "start": "kkkkkk"}, {"id": "key_2"}]}}
LETTER = ("Pass --email", "request a new code", "sign in with", "fix or unset", "pass another")
NOTHING = {"profiles": {}}
NONE_ACTIVE = {"profiles": {"you": {"apiKey": KEY}}}
ELSEWHERE = dict(NONE_ACTIVE, activeProfile="you")
YOU = {"activeProfile": "you", "profiles": {"you": {"apiKey": KEY, "baseUrl": "URL"}}}
TAKEN = {"profiles": {"w": {"apiKey": KEY, "email": "me@c.d", "baseUrl": "URL"}}}
NO_PROFILE = "--profile him --api-url URL"

# name: (profile file, words, the backend's reply, environment)
ERRORS = {
    "no email": (NOTHING, "auth login-request --api-url URL"),
    "no email, second step": (NOTHING, "auth login-complete --code 123456 --api-url URL"),
    "no email, both steps": (NOTHING, "auth login --code-from cmd:false --api-url URL"),
    "bad email": (NOTHING, "auth login-request --email you --api-url URL"),
    "no code": (NOTHING, "auth login-complete " + SIGN_IN),
    "malformed code": (NOTHING, COMPLETE.replace("123456", "12345")),
    "a code in two words": (NOTHING, COMPLETE.replace("123456", "123 456")),
    "no terminal": (NOTHING, "auth login --name 'my laptop' --expires-in 7 " + SIGN_IN),
    "an unknown profile at a sign-in": (NOTHING, "auth login-request --profile him " + SIGN_IN),
    "a taken name": (TAKEN, COMPLETE),
    "wrong code": (NOTHING, COMPLETE, http_reply({}, 400)),
    "an email that is not taken": (NOTHING, "auth login-request " + SIGN_IN, http_reply({}, 400)),
    "no answer": (NOTHING, COMPLETE, b""),
    "an answer that is none": (NOTHING, COMPLETE, http_reply(b"<html>")),
    "no key": (NOTHING, "whoami --api-url URL"),
    "none active": (NONE_ACTIVE, "whoami --api-url URL"),
    "no profile yet": (NOTHING, "whoami", b"", {"SCRIPTO_PROFILE": "ci"}),
    "an unknown profile": (NOTHING, "whoami " + NO_PROFILE),
    "use of an unknown profile": (NOTHING, "use him"),
    "a key of another backend": (ELSEWHERE, "whoami --api-url URL"),
    "refused, of a profile": (YOU, "whoami", http_reply({}, 401)),
    "refused, of the environment": (YOU, "whoami", http_reply({}, 401), {"SCRIPTO_API_KEY": KEY}),
    "refused, of a flag": (YOU, "whoami --api-key %s" % KEY, http_reply({}, 401)),
    "bad request": (YOU, "keys list --profile you --api-url URL", http_reply({}, 400)),
    "not found": (YOU, "whoami --profile you --api-url URL", http_reply({}, 404)),
    "not found by api": (YOU, "api api/x --api-key %s --api-url URL" % KEY, http_reply({}, 404)),
    "no path": (YOU, "api --profile you"),
    "no command": (YOU, "run --profile you"),
    "no key to store": (NOTHING, "config set --profile-name w --api-url URL"),
    "a malformed key": (NOTHING, "config set --api-key hunter2 --profile-name w"),
    "a malformed key of the environment": (YOU, "whoami", b"", {"SCRIPTO_API_KEY": "hunter2"}),
    "which key": (YOU, "keys revoke --profile you --yes"),
    "an unknown key": (YOU, "keys revoke key_9 --profile you", http_reply(KEYS)),
    "the key in use": (YOU, "keys revoke key_1 --profile you", http_reply(KEYS)),
    "the key in use, given": (YOU, "keys revoke key_1 --api-key %s --api-url URL" % KEY,
                              http_reply(KEYS)),
    "all others": (YOU, "keys revoke --others --profile you --api-url URL", http_reply(KEYS)),
    "what to forget": (YOU, "config clear --yes"),
    "to forget one": (YOU, "config clear --profile you"),
    "to forget all": (YOU, "config clear --all"),
    "logout with none active": (NONE_ACTIVE, "logout"),
    "logout with none": (NOTHING, "logout --revoke"),
    "no shell": (NOTHING, "completion"),
    "an unknown flag": (NOTHING, "whoami --nonsense"),
    "a flag mistyped": (NOTHING, "whoami --api-keys x"),
    "a command mistyped": (NOTHING, "whoam"),
    "half a command": (NOTHING, "auth logn"),
}


def commands_in(action, words):
    """The words of each command that a next action names. `Pass ... to:` means this same call."""
    for placeholder, value in VALUES.items():
        action = action.replace(placeholder, value)
    for part in re.split(r"; |, ", action):
        found = re.search(r"(?:Pass (.*) to: |(did you mean): )?scripto (.*)", part)
        if found and found.group(1):
            yield words + shlex.split(found.group(1))
        elif found:
            yield shlex.split(found.group(3)) + ["--help"] * bool(found.group(2))


@pytest.fixture(scope="module")
def takes(tmp_path_factory):
    """The flags of each command."""
    commands = Scripto(PYTHONS[-1], tmp_path_factory.mktemp("home")).run("guide", "--json").data
    return {each["name"]: set(each["takes"]) for each in commands["commands"]}


def command_of(words, takes):
    return next((name for name in (" ".join(words[:2]), words[0]) if name in takes), "")


@pytest.mark.parametrize("name", ERRORS)
def test_every_command_that_an_error_names_is_taken(name, tmp_path, raw_server, takes):
    scripto = Scripto(PYTHONS[-1], tmp_path / "home")
    state, line, reply, env = (ERRORS[name] + (b"", {})[len(ERRORS[name]) - 4 :])[:4]
    server = raw_server(reply)
    url = server.url
    scripto.write_config(json.dumps(state).replace("URL", url))
    words = shlex.split(line.replace("URL", url))
    action = scripto.run(*words, "--json", env=env).error["nextAction"]
    server.answer = http_reply({}, 500)  # what the next command says is its own, and no usage error
    for command in commands_in(action, words):
        if command == ["auth", "login-request"]:  # auth.md's own words leave the email out
            command += ["--email", EMAIL]
        elif not action.startswith(LETTER) and "--help" not in command:
            flags = {word for word in words if word.startswith("--")} - {"--code", "--json"}
            wanted = flags & takes.get(command_of(command, takes), set())
            assert wanted <= set(command), action
        result = scripto.run(*command, "--json", timeout=20)
        assert result.status != 2, (action, command, result.out)


def test_a_key_is_not_repeated(tmp_path, raw_server):
    scripto, server = Scripto(PYTHONS[-1], tmp_path / "home"), raw_server(http_reply(KEYS))
    words = ["keys", "revoke", "--others", "--api-key", KEY, "--api-url", server.url]
    action = scripto.run(*words, "--json").error["nextAction"]
    assert "--api-key <your-key>" in action and KEY not in action
