"""The first and the last lines of a command that evaluates."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli.options import RESULTS
from harness.core.errors import PrunebenchError
from harness.core.paths import make_folder
from harness.core.shown import printable_lines
from harness.core.spelling import command, given
from harness.core.tested import untested

if TYPE_CHECKING:
    from harness.runner.run import Finished

#: sealed folders that are named one by one
FEW = 8


def put(text: object = "", flush: bool = False) -> None:
    """Print text that may hold names from elsewhere: no character of theirs moves the cursor or colours anything."""
    print(printable_lines(text), flush=flush)


def tell(text: object, end: str = "\n") -> None:
    """`put` on stderr, at once: what is no result of the command."""
    print(printable_lines(text), end=end, file=sys.stderr, flush=True)


def put_or_write(text: str, out: Path | None) -> None:
    """Print a text that ends its last line, or write it into a file. Raises PrunebenchError if it cannot be written."""
    if out is None:
        put(text.removesuffix("\n"))
        return
    if out.is_dir():
        raise PrunebenchError(f"{given('out', out)}: expected a file, found a folder: add a name to it")
    from harness.store.files import write_atomic

    make_folder(out.parent)
    write_atomic(out, text.encode(errors="backslashreplace"))
    tell(f"written {out}")


def loading() -> None:
    """One line before torch, transformers and lmms-eval are imported, for the imports take seconds; before it, the
    versions that were not tested."""
    for outside in untested():
        tell(f"note: {outside.text}")
    if "torch" not in sys.modules:
        tell("loading torch, transformers and lmms-eval ...")


def finished(done: Finished, results: Path, wide: bool) -> None:
    """The table of the cells that were asked for, the files that were written, and the next command."""
    from harness.tables import frame, terminal

    cells = list(done.cells.values())
    put()
    if cells:
        put(terminal.table(frame.rows(cells), wide=wide))
        put()
    if done.reused:
        again = given("fresh", True)
        put(f"{done.reused} of {len(cells)} cells were sealed before and reused; {again} measures them again")
    for cell in cells[:FEW]:
        put(f"sealed  {cell.folder}")
    if len(cells) > FEW:
        put(f"sealed  {len(cells) - FEW} more: `prunebench results list --results {results}` lists all")
    put(f"tables  {done.csv}  {done.markdown}")
    for line in _next(done, results):
        put(f"next    {line}")


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
