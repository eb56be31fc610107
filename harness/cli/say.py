"""The first and the last lines of a command that evaluates."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli.options import RESULTS
from harness.core.spelling import command, given

if TYPE_CHECKING:
    from harness.runner.run import Finished

#: sealed folders that are named one by one
FEW = 8


def loading() -> None:
    """One line before torch, transformers and lmms-eval are imported: the imports take seconds."""
    if "torch" not in sys.modules:
        print("loading torch, transformers and lmms-eval ...", file=sys.stderr, flush=True)


def finished(done: Finished, results: Path, wide: bool) -> None:
    """The table of the cells that were asked for, the files that were written, and the next command."""
    from harness.tables import frame, terminal

    cells = list(done.cells.values())
    print()
    if cells:
        print(terminal.table(frame.rows(cells), wide=wide))
        print()
    if done.reused:
        again = given("fresh", True)
        print(f"{done.reused} of {len(cells)} cells were sealed before and reused; {again} measures them again")
    for cell in cells[:FEW]:
        print(f"sealed  {cell.folder}")
    if len(cells) > FEW:
        print(f"sealed  {len(cells) - FEW} more: `prunebench results list --results {results}` lists all")
    print(f"tables  {done.csv}  {done.markdown}")
    for line in _next(done, results):
        print(f"next    {line}")


def _next(done: Finished, results: Path) -> list[str]:
    """The commands that look at these cells."""
    place = None if results == RESULTS else str(results)
    lines = [f"{command('report', results=place)}   # one page of all cells in {results}"]
    pruned = next((cell for cell in done.cells.values() if cell.asked.budget), None)
    if pruned is not None:
        with done.csv.open(newline="", encoding="utf-8") as file:
            several = len({row["model"] for row in csv.DictReader(file)}) > 1
        shown = {"sample": str(pruned.samples()["key"].iloc[0]), "method": pruned.asked.method}
        shown |= {"budget": str(pruned.asked.budget), "model": pruned.cell.model if several else ""}
        lines.append(f"{command('show', **shown, results=place)}   # one sample as a picture")
    return lines
