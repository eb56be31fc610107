"""Names from folders in tables and figures: harmless in each medium, and two folders of one name are told apart."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pandas as pd
import pytest
from factories import PROCESSING, asked, sealed_cell

from harness.core.shown import from_csv
from harness.store.sealed import SealedCell
from harness.tables import figures, frame, leaderboard, terminal
from harness.tables.sections import distinct, sections

NAMES = [
    "=HYPERLINK(1)",
    "+1+1",
    "-1+1",
    "@SUM(1)",
    "\t=1",
    "'=1",
    "<img src=x onerror=alert(1)>",
    "a|b",
    "[x](javascript:alert(1))",
    "`a`",
    "```",
    "a\n## b",
    "\x1b[31mred",
    "\u202egnp.exe",
    "$x$ $\\frac{1",
    "$",
    "a_b $c",
    "**b**",
    "www.evil.com",
    "</details>",
    "a & b",
    "..",
]


def of(name: str, weights: str = "w1") -> list[SealedCell]:
    """An unpruned and a pruned cell of a model of this name."""
    where = f"/models/{weights}/{name}"
    return [
        sealed_cell(
            method,
            budget,
            model=name,
            model_fingerprint=weights,
            provenance={
                "request": asked(method=method, budget=None if budget == "none" else budget, model=where),
                "started": "2026-01-01",
                "processing": PROCESSING,
            },
        )
        for method, budget in (("none", "none"), ("fastv", "64"))
    ]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_does_nothing_in_a_table(name: str, tmp_path: Path) -> None:
    cells = of(name)
    csv, markdown = leaderboard.write(cells, tmp_path, samples=False)
    written = pd.read_csv(csv, keep_default_na=False)
    for column in ("model", "command"):
        found = list(written[column])
        assert not any(re.match(r"\s*[=+\-@]", text) for text in found)
        assert [from_csv(text) for text in found] == list(frame.rows(cells)[column])
    assert frame.rows(cells)["model"][0] == name, "prunebench.results gives the name itself"
    text = markdown.read_text()
    outside = re.sub(r"(?ms)^(```+)sh$.*?^\1$", "", text)  # inside a block of code nothing is markup
    assert len([line for line in outside.splitlines() if line.startswith("## ")]) == 2
    assert "<img" not in outside
    assert "](javascript" not in outside
    heading = next(line for line in text.splitlines() if line.startswith("## "))
    assert not re.search(r"(?<!\\)[|`$<]", heading)
    for wide in (False, True):
        shown = terminal.table(frame.rows([*cells, *of("another")]), wide=wide)
        assert all(c.isprintable() or c == "\n" for c in shown)


@pytest.mark.parametrize("name", ["$x$ $\\frac{1", "$", "\x1b\x00", "<a>&", "--", "a\nb", "é"])
def test_a_name_is_drawn_as_it_is(name: str, tmp_path: Path) -> None:
    for drawn in figures.draw([(section, None) for section in sections(distinct(of(name)))], tmp_path)[0]:
        assert Path(drawn).parent == Path("figures")
        if drawn.endswith(".svg"):
            ElementTree.parse(tmp_path / drawn)


def test_two_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    cells = [*of("checkpoint-500", "aaaaaa111"), *of("checkpoint-500", "bbbbbb222"), *of("mini", "cccccc333")]
    csv, markdown = leaderboard.write(cells, tmp_path, samples=False)
    written = pd.read_csv(csv)
    assert set(zip(written["model"], written["model_fingerprint"], strict=True)) == {
        ("checkpoint-500", "aaaaaa111"),
        ("checkpoint-500", "bbbbbb222"),
        ("mini", "cccccc333"),
    }
    summary, *headings = [line for line in markdown.read_text().splitlines() if line.startswith("## ")][:4]
    assert summary == "## Models"
    assert len(set(headings)) == 3
    assert headings[0].startswith("## checkpoint-500 aaaaaa, ")
    assert headings[2].startswith("## mini, "), "a name of its own needs nothing beside it"
    for wide in (False, True):
        shown = terminal.table(frame.rows(cells), wide=wide)
        assert "aaaaaa" in shown
        assert "bbbbbb" in shown
        assert "cccccc" not in shown
    drawn = figures.draw([(section, None) for section in sections(distinct(cells))], tmp_path)
    names = [name for part in drawn for name in part]
    assert len(names) == len(set(names)) > 0


def test_a_declared_variant_is_always_named() -> None:
    info = {"query_aware": True, "budget_knobs": ["keep"], "variant_knobs": {"relevance": "clip"}}
    cells = [
        sealed_cell("cdpruner", "64", knobs={"keep": 64, "relevance": relevance}, method_info=info)
        for relevance in ("clip", "none")
    ]
    (one, other) = cells
    for alone, name in ((one, "cdpruner"), (other, 'cdpruner relevance="none"')):
        (section,) = sections(distinct([alone]))
        assert [line.name for block in section.blocks() for line in block.lines] == [name]
    (section,) = sections(distinct(cells))
    assert [line.name for line in section.blocks()[0].lines] == ["cdpruner", 'cdpruner relevance="none"']
