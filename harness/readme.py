"""Fill the README's tables from sealed cells and schedules: `prunebench readme`. No number in it is typed by hand."""

from __future__ import annotations

import re
from pathlib import Path

from harness import leaderboard
from harness.errors import PrunebenchError
from harness.shape import SHAPES
from harness.store import Store
from harness.units import units_table

#: the main job of the README's first screen
METHOD, BUDGET = "visipruner", "64"
TEXT_TOKENS = 74


def main_table(results: Path) -> str:
    """The terminal table of the main job, from the cells in `results`. Raises PrunebenchError where one is missing."""
    cells = [c for c in Store(results).cells() if (c.cell.method, c.cell.budget) in ((METHOD, BUDGET), ("none", "none"))]
    table = leaderboard.rows(cells)
    for task in ("gqa", "mme", "pope", "textvqa"):
        found = set(table.loc[table["task"] == task, "method"])
        if found != {METHOD, "none"}:
            command = f"make eval METHOD={METHOD} BUDGET={BUDGET} RESULTS={results}"
            raise PrunebenchError(f"{results}: expected cells of none and {METHOD} for {task}, found {sorted(found)}: run `{command}`")
    order = {"gqa": 0, "mme": 1, "pope": 2, "textvqa": 3}
    return leaderboard.table(table[table["task"].isin(order)].sort_values("task", key=lambda s: s.map(order), kind="stable"))


def filled(text: str, results: Path) -> str:
    """`text` with its marked tables made anew."""
    tables = {"main": f"```\n{main_table(results)}\n```", "units": units_table(SHAPES["llava-1.5-7b"], TEXT_TOKENS)}
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- /table:{name} -->)", re.S)
        if not pattern.search(text):
            raise PrunebenchError(f"README.md: expected the markers <!-- table:{name} --> and <!-- /table:{name} -->")
        text = pattern.sub(lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text)  # type: ignore[misc]
    return text
