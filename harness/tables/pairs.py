"""Method against method: every two lines of a section at one asked budget, by the rules of harness/tables/compare.py.

* Each pair stands once: the line whose name comes first, against the other.
* A pair with the line of `random` that others are compared with is a comparison with `random`, and is not made again.
* Holm corrects all pairs of a budget over all tasks as one family, and their averages as another. A family over several
  budgets would let no average differ: 1,500 averages times the smallest p of a bootstrap, 1 in 10,000, is 0.15.
* `native`, `calibrated` and no budget are other sizes for each line, so there is no equal budget to compare at.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.core import stats
from harness.tables.answers import TaskAnswers
from harness.tables.compare import (
    AVERAGE,
    TOGETHER,
    Comparison,
    Findings,
    Statistic,
    as_average,
    at_average,
    ends,
    judged,
    paired,
    percents,
    reference_line,
    study,
    whole_line,
)
from harness.tables.kept import Kept
from harness.tables.sections import Block, Line, Section, average

MOST = TOGETHER
"""Lines of a block of which all pairs are made. The averages of more are so many that Holm's correction lets none
differ: 496 pairs of 32 lines times the smallest p of a bootstrap, 1 in 10,000, is 0.0496."""


_Drawn = Callable[[Line], "NDArray[np.float64] | None"]
"""The resamples of a line's Avg %."""


class _Wanted(NamedTuple):
    """A statistic of two lines, and the comparison that comes of it."""

    statistic: Statistic
    shown: Callable[[Any], Comparison | None]


def comparable(block: Block) -> list[Line]:
    """The lines of a block of which pairs are made, by name; empty where the block has no equal budget."""
    if not block.budget[0].isdigit():
        return []
    return sorted((line for line in block.lines if line.method != "none"), key=lambda line: line.name)


def too_many(block: Block) -> bool:
    """Whether a block has more lines than pairs are made of."""
    return len(comparable(block)) > MOST


def study_pairs(section: Section, kept: Kept | None = None) -> tuple[Findings, list[Comparison]]:
    """What `compare.study` finds, and every pair of lines at an equal asked budget, at each task and at the average.

    Blocks of more than `MOST` lines have no pairs. What `kept` knows is not computed again. Raises as `compare.study`.
    """
    kept = kept or Kept()
    asked: list[tuple[str, Callable[[Any], Comparison | None]]] = []

    def further(block: Block, tasks: Mapping[str, TaskAnswers]) -> list[Statistic]:
        here = _of_block(section, block, tasks, kept)
        asked.extend((one.statistic.key, one.shown) for one in here)  # without the resamples that a statistic holds
        return [one.statistic for one in here]

    found = study(section, kept, further)
    made = [shown(kept.of(key, _never)) for key, shown in asked]
    return found, judged([c for c in made if c], lambda c: (c.budget, c.task == AVERAGE))


def _never() -> Any:
    raise AssertionError("expected every statistic of the blocks to be known: `study` computes what `further` names")


def _of_block(section: Section, block: Block, tasks: Mapping[str, TaskAnswers], kept: Kept) -> list[_Wanted]:
    reference = reference_line(block)
    drawn = _remembered({task: read for task, read in tasks.items() if read.averaged})
    return [
        one
        for line, other in itertools.combinations([] if too_many(block) else comparable(block), 2)
        if not reference or reference.name not in (line.name, other.name)
        for one in _of_two(section, line, other, tasks, kept, drawn)
    ]


def _remembered(tasks: Mapping[str, TaskAnswers]) -> _Drawn:
    """`percents` of each line once, as long as the statistics of its block are wanted."""
    found: dict[str, NDArray[np.float64] | None] = {}

    def drawn(line: Line) -> NDArray[np.float64] | None:
        if line.name not in found:
            found[line.name] = percents(line, tasks)
        return found[line.name]

    return drawn


def _of_two(
    section: Section, line: Line, other: Line, tasks: Mapping[str, TaskAnswers], kept: Kept, drawn: _Drawn
) -> list[_Wanted]:
    """The comparisons of two lines: at the tasks that both have, then at the average where both have all."""
    found = []
    for task, read in tasks.items():
        if not read.tested or task not in line.cells or task not in other.cells:
            continue
        seeds, others = line.cells[task], other.cells[task]
        found.append(_Wanted(*paired(read, line, seeds, others, other.name, other.name, kept)))
    tasks = {task: read for task, read in tasks.items() if read.averaged}
    if not (whole_line(line, tasks) and whole_line(other, tasks)):
        return found
    if len(tasks) == 1:
        (read,) = tasks.values()
        one = _Wanted(*paired(read, line, line.cells[read.task], other.cells[read.task], other.name, other.name, kept))
        return [*found, one._replace(shown=partial(_alone, one.shown, read))]
    cells = [(read, s) for read in tasks.values() for one in (line, other) for s in one.cells[read.task]]
    cells += [(read, read.base) for read in tasks.values() if read.base]
    shape = [[t, len(line.cells[t]), len(other.cells[t]), read.unlike] for t, read in tasks.items()]
    key = kept.key("average of two", [s for _, s in cells], json.dumps(shape), line.name, other.name)
    sizes = sum(read.n for read in tasks.values()), sum(read.images for read in tasks.values())
    apart = average(line, section) - average(other, section)

    def shown(numbers: Sequence[float] | None) -> Comparison | None:
        at = line.budget, line.name, AVERAGE
        return at_average(at, other.name, sizes, apart, numbers) if numbers else None

    return [*found, _Wanted(Statistic(key, lambda: _apart(drawn(line), drawn(other), tasks), cells), shown)]


def _alone(shown: Callable[[Any], Comparison | None], read: TaskAnswers, numbers: Any) -> Comparison | None:
    found = shown(numbers)
    return found and as_average(found, read)


def _apart(
    mine: NDArray[np.float64] | None, other: NDArray[np.float64] | None, tasks: Mapping[str, TaskAnswers]
) -> list[float] | None:
    """[low, high, p] of the difference of two averages; None where a draw of an unpruned cell scores 0."""
    if mine is None or other is None:
        return None
    return [*ends(mine - other, tasks), stats.bootstrap_p(mine - other)]
