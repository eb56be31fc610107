"""Fill the tables of README.md and the model card from sealed cells and schedules: `prunebench readme`. No number is typed by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import leaderboard
from harness.errors import PrunebenchError, unknown
from harness.shape import SHAPES
from harness.store import Store
from harness.units import units_table

#: the main job of the README's first screen
METHOD, BUDGET = "visipruner", "64"
TEXT_TOKENS = 74
TASKS = ["gqa", "mme", "pope", "textvqa"]
#: files with marked tables
FILES = ("README.md", "tasks/mini/MODEL_CARD.md")


def main_table(results: Path, shallow: bool = True) -> str:
    """The terminal table of the main job, from the cells in `results`; `shallow=False`: without VisiPruner's shallow stage.

    Raises PrunebenchError where a cell is missing.
    """
    cells = [
        c
        for c in Store(results).cells()
        if c.provenance.get("limit") == "default"
        and c.cell.positions == "method"
        and (c.cell.method == "none" or ((c.cell.method, c.cell.budget) == (METHOD, BUDGET) and c.cell.knobs["shallow"] is shallow))
    ]
    table = leaderboard.rows(cells)
    for task in TASKS:
        found = set(table.loc[table["task"] == task, "method"])
        if found != {METHOD, "none"}:
            command = f"make eval METHOD={METHOD} BUDGET={BUDGET} RESULTS={results}" + ("" if shallow else " SET='shallow=false'")
            raise PrunebenchError(f"{results}: expected cells of none and {METHOD} for {task}, found {sorted(found)}: run `{command}`")
    return leaderboard.table(_ordered(table))


def card_table(results: Path) -> str:
    """The unpruned model on every question. Raises PrunebenchError where a cell is missing."""
    cells = [c for c in Store(results).cells() if c.cell.method == "none" and c.provenance.get("limit") == "all"]
    if not set(TASKS) <= {c.cell.task for c in cells}:
        raise PrunebenchError(f"{results}: expected the unpruned model on all questions: run `make eval METHOD=none LIMIT=all RESULTS={results}`")
    return leaderboard.table(_ordered(leaderboard.rows(cells)))


def _ordered(table: Any) -> Any:
    return table[table["task"].isin(TASKS)].sort_values("task", key=lambda s: s.map(TASKS.index), kind="stable")


def filled(text: str, results: Path) -> str:
    """`text` with its marked tables made anew."""
    makers: dict[str, Callable[[], str]] = {
        "main": lambda: f"```\n{main_table(results)}\n```",
        "noshallow": lambda: f"```\n{main_table(results, shallow=False)}\n```",
        "units": lambda: units_table(SHAPES["llava-1.5-7b"], TEXT_TOKENS),
        "card": lambda: f"```\n{card_table(results)}\n```",
    }
    marked = re.findall(r"<!-- table:(\w+) -->", text)
    if not marked:
        raise PrunebenchError("expected markers such as <!-- table:main --> and <!-- /table:main --> in the text, found none")
    for name in marked:
        if name not in makers:
            raise unknown("table", name, makers)
        table = makers[name]()
        pattern = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- /table:{name} -->)", re.S)
        text = pattern.sub(lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text)  # type: ignore[misc]
    return text
