"""Damaged cells: each is named on stderr and left out, and the exit code of the command is 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from harness.cli.say import tell
from harness.core.errors import PrunebenchError
from harness.core.shown import one_line
from harness.core.spelling import command

if TYPE_CHECKING:
    from harness.store.sealed import SealedCell


@contextmanager
def naming_damaged() -> Iterator[list[str]]:
    """Inside, put what is wrong into the list. Afterwards every line of it is printed, and the exit code is 1; an error
    inside comes after the lines, with its own exit code."""
    found: list[str] = []
    try:
        yield found
    finally:
        for why in found:
            tell(f"left out: {one_line(why)}")
    if found:
        raise typer.Exit(1)


def sound(results: Path, damaged: list[str], check: Callable[[SealedCell], None] | None = None) -> list[SealedCell]:
    """The sealed cells of a results folder that are as they were sealed; the others are said in `damaged`. Raises
    PrunebenchError where none is left.

    `check`: in place of hashing the samples of every cell.
    """
    from harness.store.sealed import SealedCell
    from harness.store.store import Store

    cells = Store(results).cells(damaged, check or SealedCell.check)
    if not cells:
        one = command("eval", method="visipruner", budget="64")
        raise PrunebenchError(f"{results}: expected sealed cells, found none: `{one}` makes some")
    return cells
