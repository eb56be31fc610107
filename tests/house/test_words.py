"""Whatever a user reads has short sentences: help, tables, the page, notebooks and cards, beside README and docs/."""

from __future__ import annotations

import re

import pytest
import typer
from sentences import LONGEST, literals, long, newest, of_help, of_html, of_notebook, of_script, sentences, words

from harness.cli import app
from harness.core.paths import TOP

HELP = dict(of_help(typer.main.get_command(app)))
MODULES = [file for room in ("tables", "report", "cli") for file in sorted((TOP / "harness" / room).glob("*.py"))]
SCRIPTS = sorted((TOP / "harness" / "report" / "assets" / "script").glob("*.js"))
PAGES = [
    *sorted(TOP.glob("tasks/mini/**/MODEL_CARD.md")),
    *sorted(TOP.glob("examples/**/*.md")),
    TOP / ".github" / "PULL_REQUEST_TEMPLATE.md",
]


def _said(found: list[str]) -> str:
    return f"{len(found)} sentences of more than {LONGEST} words: {found}"


def test_help_is_short() -> None:
    found = [f"{name}: {sentence}" for name, text in HELP.items() for sentence in long([text])]
    assert not found, _said(found)
    assert {"prunebench eval", "prunebench eval --budget", "prunebench results diff", "prunebench dev mini"} <= {*HELP}
    assert len(HELP) > 200


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_fixed_words_are_short(path: object) -> None:
    found = long(literals(path.read_text()))  # type: ignore[attr-defined]
    assert not found, _said(found)


def test_the_page_of_the_report_is_short() -> None:
    blocks = of_html((TOP / "harness" / "report" / "assets" / "page.html").read_text())
    assert any("what was asked for" in block for block in blocks)
    found = long(blocks)
    assert not found, _said(found)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_what_the_scripts_of_the_page_say_is_short(path: object) -> None:
    strings = of_script(path.read_text())  # type: ignore[attr-defined]
    assert strings
    found = long(strings)
    assert not found, _said(found)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(TOP).as_posix())
def test_cards_and_lists_are_short(path: object) -> None:
    found = long([path.read_text()])  # type: ignore[attr-defined]
    assert not found, _said(found)


def test_the_committed_leaderboard_is_short() -> None:
    lines = (TOP / "results" / "reference" / "LEADERBOARD.md").read_text().splitlines()
    # these name methods, and as many of them as there are
    of_names = ("* **", "* Avg", "Protocol:", "<details>")
    found = long(["\n\n".join(line for line in lines if not line.startswith(of_names))])
    assert not found, _said(found)


def test_notebooks_are_short() -> None:
    books = sorted((TOP / "examples").glob("**/*.ipynb"))
    assert books
    for book in books:
        found = long(of_notebook(book))
        assert not found, _said(found)


def test_the_newest_section_of_the_changelog_is_short() -> None:
    text = (TOP / "CHANGELOG.md").read_text()
    found = long([newest(text)])
    assert not found, _said(found)


def test_what_a_budget_costs_is_a_row_of_the_table() -> None:
    """docs/budgets.md explains 64 by numbers of FastV; its generated table holds the same numbers."""
    page = (TOP / "docs" / "budgets.md").read_text()
    section = page.partition("## What a budget of 64 costs")[2].partition("\n## ")[0]
    mean, share = re.search(r"\| ([\d.]+): layers 0 and 1.*\| ([\d.]+) \|", section, re.S).groups()  # type: ignore[union-attr]
    assert float(mean) == (2 * 576 + 30 * 64) / 32
    assert re.search(rf"^\| `64` +\| fastv +\| keep=64 +\| +{mean} \|.*\| +{share} \|$", page, re.M)


LONG = "one two three four five six seven eight nine ten " * 3


def test_long_sentences_are_found_wherever_they_stand() -> None:
    assert long([LONG]) == [LONG.strip()]
    assert long([f"{LONG[:100]}. {LONG[:100].capitalize()}."]) == []
    source = f'"""{LONG}"""\nx = f"{{a}} {LONG}"\ndef f():\n    """{LONG}"""\n    return "short", "{LONG}"\n'
    assert len(long(literals(source))) == 2, "docstrings are no words for users, and values are one word"
    assert literals('f"{a} of {b:.1f} questions"') == ["X of X questions"]
    script = f'f("a " + // "no"\n  `b ${{n ? `c ${{"d"}}` : "e"}} {LONG}`);'
    assert of_script(script) == ["d", "c X", "e", f"a b X {LONG}"]
    html = f"<p>one two</p><script>{LONG}</script><ul><li>three <b>four</b></li><li>{LONG}</li></ul>"
    assert of_html(html) == ["one two", "three four", LONG.strip()]
    with pytest.raises(ValueError, match="found none"):
        newest("# Changelog\n")
    assert newest("# Changelog\n\n## 1 (unreleased)\n\n* x\n\n## 0\n\n* y\n") == "## 1 (unreleased)\n\n* x\n\n"


def test_sentences_of_a_page_are_told_apart() -> None:
    assert [words(s) for s in sentences("One two. Three four five:\n\n* six")] == [2, 3, 1]
