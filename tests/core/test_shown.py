"""Text from elsewhere does nothing in a terminal, a spreadsheet or Markdown, and comes back whole."""

import ast
import csv
import html
import io
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from harness.core.paths import TOP
from harness.core.shown import code, fenced, from_csv, in_csv, in_markdown, one_line, printable, printable_lines

HOSTILE = [
    "\x1b[31mred\x1b[2J",
    "\x1b]8;;http://evil/\x07link\x1b]8;;\x07",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\x9d0;t\x9c",
    "\x08\x08\x08hidden",
    "a\rb",
    "a\nb",
    "a\x0b\x0cb",
    "\x7f",
    "\u202egnp.exe",
    "\u2066x\u2069",
    "\u200b\u200e\u200f\ufeff",
    "\u2028\u2029\x85",
    "\U000e0041\U000e0001",
    "\udc80\ud800",
    "\xad",
    "\0",
    "=HYPERLINK(1)",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "\uff1d1",
    "'=1",
    "''",
    "%0A=1",
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "</details><b>",
    "<!-- -->",
    "&lt;b&gt;",
    "[x](javascript:alert(1))",
    "![x](http://evil/y.png)",
    "[x][y]",
    "[x]: http://evil",
    "<http://evil>",
    "http://evil",
    "www.evil.com",
    "a@b.c",
    "a|b",
    "`a`",
    "```",
    "``` \n</details>",
    "**a** __b__ _c_ *d*",
    "~~a~~",
    "# a #",
    "\\",
    "\\|",
    "a\\",
    "$x$ $$y$$",
    "$\\frac{1}$",
    "snake_case_name",
    "1. a",
    "- a",
]
TEXTS = st.text(max_size=30) | st.sampled_from(HOSTILE) | st.text("`*_[](){}<>|&$~#@!\\:/'\"=+-.w \n", max_size=20)


def harmless(text: str) -> bool:
    return all(unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)


@given(TEXTS)
@example("\x1b")
def test_a_terminal_gets_no_control_character(text: str) -> None:
    for shown in (printable(text), one_line(text), in_markdown(text), printable_lines(text).replace("\n", "")):
        assert harmless(shown)
    assert "\n" not in one_line(text)
    if text.isprintable():
        assert printable(text) == text


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_each_hostile_text_is_shown_harmlessly(text: str) -> None:
    assert harmless(printable(text))
    assert from_csv(in_csv(text)) == text
    assert not re.match(r"\s*[=+\-@\t\r\n＝＋－＠]", in_csv(text))


@given(TEXTS)
def test_a_spreadsheet_computes_nothing_and_the_text_comes_back(text: str) -> None:
    cell = in_csv(text)
    assert from_csv(cell) == text
    assert not cell.lstrip() or cell.lstrip()[0] not in "=+-@＝＋－＠"
    if "\0" not in text and harmless(text):
        file = io.StringIO()
        csv.writer(file).writerow([cell, "x"])
        assert next(csv.reader(io.StringIO(file.getvalue())))[0] == cell


def _plain(page: str) -> str:
    """The text of a page, every entity once undone."""
    return re.sub(r"\s+", " ", html.unescape(page)).strip()


@given(TEXTS)
@example("a_b _c_")
@example("[a](b)")
def test_markdown_shows_the_text_and_nothing_else(text: str) -> None:
    page = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    heading = page.render(f"## a{in_markdown(text)}z")
    assert _plain(heading) == re.sub(r"\s+", " ", f"<h2>a{printable(text)}z</h2>")
    table = page.render(f"| a | b |\n| --- | --- |\n| x{in_markdown(text)}z | y |")
    cells = re.findall(r"<td>(.*?)</td>", table, re.S)
    assert len(cells) == 2
    assert _plain(cells[0]) == re.sub(r"\s+", " ", f"x{printable(text)}z")
    assert not re.search(r"<(?!/?(table|thead|tbody|tr|th|td)>)", table)


@pytest.mark.parametrize(
    "text", ["http://evil", "https://evil", "ftp://x", "www.evil.com", "WWW.evil.com", "a@b.c", "$x$"]
)
def test_what_only_github_reads_as_a_link_or_mathematics_is_broken_up(text: str) -> None:
    assert not re.search(r"(?<!\\)(://|\$|@)|www\.", in_markdown(text), re.I)


def test_usual_names_stay_as_they_are() -> None:
    for name in (
        "llava-1.5-7b",
        "llava-hf/llava-1.5-7b-hf",
        "fastv boundary=2 (5 seeds)",
        "visipruner stages=[2,5]",
        "prompt vicuna_v1",
        "LIMIT=108",
        '7B "x" 50 % ±1.2 sd, {a}',
    ):
        assert in_markdown(name) == in_csv(name) == printable(name) == name


@given(TEXTS)
def test_code_ends_where_it_ends(text: str) -> None:
    page = MarkdownIt("commonmark")
    block = page.render(f"{fenced(text, 'sh')}\n\nafter")
    assert block.endswith("<p>after</p>\n")
    assert block.count("<code") == 1
    if text.strip("` "):
        line = page.render(f"{code(text)} after")
        assert line.endswith("</code> after</p>\n")
        assert line.count("<code>") == 1


def test_the_command_prints_through_one_function() -> None:
    """`put` and `tell` escape; a plain print in harness/cli would not."""
    for file in (TOP / "harness" / "cli").glob("*.py"):
        calls = [
            node
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        ]
        allowed = {"say.py": 2, "guard.py": 2}.get(file.name, 0)
        assert len(calls) <= allowed, file
