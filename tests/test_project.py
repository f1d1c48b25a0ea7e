"""What stands around the program: the picture in the README, and the test command wherever it is
said."""
import re

import pytest

from conftest import PROGRAM
from picture import PICTURE, TOP, demo_lines, words_of


@pytest.mark.slow
def test_the_picture_is_not_stale():
    """Else draw it anew: python3 tests/picture.py"""
    assert words_of(PICTURE.read_text(encoding="utf-8")) == demo_lines()


def test_the_picture_is_in_the_readme():
    readme = (TOP / "README.md").read_text(encoding="utf-8")
    assert re.search(r"!\[[^\]]+\]\(\.github/demo\.svg\)", readme)
    assert (TOP / "scripto.py").samefile(PROGRAM)


def test_the_test_command_is_the_same_everywhere():
    """In the README, in CI, on Linux and macOS, and on Windows but for the folder of programs."""
    readme, ci, workflow = ((TOP / name).read_text("utf-8")
                            for name in ("README.md", ".ci/run", ".github/workflows/test.yml"))
    (command,) = re.findall(r"```sh.*\n(.*\.venv/bin/pip .*)\n```", readme)
    on_windows = command.replace("python3", "python").replace("/bin/", "/Scripts/")
    assert command in ci
    assert "run: %s\n" % command in workflow and "run: %s\n" % on_windows in workflow
