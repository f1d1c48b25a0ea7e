"""Draws the README's picture, .github/demo.svg, from a real run of the demo.

    python3 tests/picture.py

What differs from run to run (port, code, ids, date) is written as the same example each time, so
that the picture changes only when the wording does; tests/test_project.py says when it is stale.
"""
import html
import os
import pathlib
import re
import subprocess
import sys

TOP = pathlib.Path(__file__).resolve().parent.parent
PICTURE = TOP / ".github" / "demo.svg"
CHARACTER, LINE, MARGIN = 8.4, 20, 24  # pixels: a character's width, a line's height
EXAMPLES = (
    (r"http://127\.0\.0\.1:\d+", "http://127.0.0.1:8787"),
    (r"\b\d{6}\b", "123456"),
    (r"user_\w+", "user_4f1c0e7a9b52"),
    (r"(Date: ).*", r"\1Tue, 24 Nov 2026 03:00:00 +0000"),
    (r"(Message-ID: ).*", r"\1<7d1f0c8b5e2a@localhost>"),
    (r"until \d\d:\d\d UTC", "until 03:10 UTC"),
    (r"at \d{4}-\d\d-\d\d \d\d:\d\d UTC", "at 2026-11-24 03:00 UTC"),
)


def demo_lines():
    """What the demo prints, with the examples in place of what differs."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SCRIPTO_")}
    env["PYTHONIOENCODING"] = "utf-8"
    text = subprocess.check_output([sys.executable, str(TOP / "scripto.py"), "demo"], env=env)
    text = text.decode()
    for pattern, example in EXAMPLES:
        text = re.sub(pattern, example, text)
    return ["$ scripto demo"] + text.splitlines()


def drawn_line(number, line):
    kind = "command" if line.startswith("$ ") else "ok" if line.startswith("✓") else "plain"
    form = '<text class="%s" x="%d" y="%d" xml:space="preserve">%s</text>'
    return form % (kind, MARGIN, 48 + LINE * (number + 1), html.escape(line, quote=False))


def picture(lines):
    width = 2 * MARGIN + CHARACTER * max(map(len, lines))
    height = 48 + LINE * (len(lines) + 1) + MARGIN
    head = """<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" role="img">
<title>scripto demo in a terminal</title>
<style>
text { font: 14px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  fill: #d6deeb }
.command { fill: #ffffff; font-weight: bold }
.ok { fill: #7ee787 }
</style>
<rect width="100%%" height="100%%" rx="10" fill="#0d1117"/>
<circle cx="24" cy="24" r="6" fill="#ff5f57"/>
<circle cx="44" cy="24" r="6" fill="#febc2e"/>
<circle cx="64" cy="24" r="6" fill="#28c840"/>
""" % (width, height)
    drawn = [drawn_line(number, line) for number, line in enumerate(lines)]
    return head + "\n".join(drawn) + "\n</svg>\n"


def words_of(svg):
    """The lines that a picture shows."""
    return [html.unescape(text) for text in re.findall(r"<text [^>]*>(.*)</text>", svg)]


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_bytes(picture(demo_lines()).encode("utf-8"))
