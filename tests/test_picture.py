"""The README's picture shows what the demo says."""
import re

import pytest
from conftest import PROGRAM
from picture import PICTURE, demo_lines, words_of


@pytest.mark.slow
def test_the_picture_is_not_stale():
    """Else draw it anew: python3 tests/picture.py"""
    assert words_of(PICTURE.read_text(encoding="utf-8")) == demo_lines()


def test_the_picture_is_in_the_readme():
    readme = PICTURE.parent.parent / "README.md"
    assert re.search(r"!\[[^\]]+\]\(\.github/demo\.svg\)", readme.read_text(encoding="utf-8"))
    assert readme.parent.joinpath("scripto.py").samefile(PROGRAM)
