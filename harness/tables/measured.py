"""Who measured each line, and who reproduced it: only where a results folder holds collected submissions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.core.shown import in_markdown
from harness.store.submission import Records
from harness.tables.frame import MEASURED, REPRODUCED
from harness.tables.sections import Line, Section
from harness.tables.text import DASH, grid

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

    from harness.store.sealed import SealedCell

NOTE = (
    "Names are stated by the submissions. A name under *reproduced by* measured the same cells again and got equal"
    " answers. - says that no submission names anybody."
)


def with_names(frame: pd.DataFrame, cells: Sequence[SealedCell], known: Records) -> None:
    """Add `measured_by` and `reproduced_by` to the frame of `rows`, several names with "; ". Without records the frame
    stays as it is."""
    if not known:
        return
    origins = {sealed.identity: known.origin(sealed) for sealed in cells}
    frame[MEASURED] = ["; ".join(origins[identity].measured) for identity in frame["identity"]]
    frame[REPRODUCED] = ["; ".join(origins[identity].reproduced) for identity in frame["identity"]]


def measured_text(sections: Sequence[Section], known: Records) -> str:
    """The part of LEADERBOARD.md: a row for each line at a budget, of each section; "" without records."""
    if not known:
        return ""
    parts = ["## Measured by", NOTE]
    for section in sections:
        rows = [_row(section, line, known) for block in section.blocks() for line in block.lines]
        heading = f"### {in_markdown(', '.join(section.short))}"
        parts += [
            heading,
            grid(["method", "budget", "cells", "measured by", "reproduced by"], list(zip(*rows, strict=True)), 5),
        ]
    return "\n\n".join(parts) + "\n"


def _row(section: Section, line: Line, known: Records) -> tuple[str, str, str, str, str]:
    cells = [sealed for seeds in line.cells.values() for sealed in seeds]
    origins = [known.origin(sealed) for sealed in cells]
    return (
        in_markdown(section.line_name(line)),
        DASH if line.budget == "none" else in_markdown(line.budget),
        str(len(cells)),
        _names([name for one in origins for name in one.measured], len(cells)),
        _names([name for one in origins for name in one.reproduced], len(cells)),
    )


def _names(names: Sequence[str], of: int) -> str:
    """Each name, and of how many cells where that is not all of them."""
    counted = sorted(Counter(names).items())
    return ", ".join(in_markdown(name) + ("" if n == of else f" ({n} of {of})") for name, n in counted) or DASH
