"""Do rankings of methods agree between two models? From sealed cells of both, task by task and budget by budget.

* A method's number is its score in per cent of the unpruned score of the same model, task and questions.
* Budgets are paired by the share of visual tokens that their cells kept as measured, never by their names.
* A method enters a pair of budgets where both models have it there, with the same settings, on every task.
* Intervals come from draws of whole images, of each model its own. Where both models were asked about the same images,
  the draws are the same too.

The statistics are in harness/core/ranks.py. Whatever does not enter is listed with its reason.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.core import ranks, stats
from harness.core.errors import PrunebenchError
from harness.core.ranks import Agreement, Scores
from harness.core.spelling import given
from harness.tables.answers import TaskAnswers
from harness.tables.compare import AVERAGE
from harness.tables.in_common import (
    FEWEST,
    TOLERANCE,
    Both,
    BudgetPair,
    Left,
    check_unpruned,
    given_pairs,
    members_of,
    name_of,
    paired,
    shared_tasks,
    shares_of,
)
from harness.tables.kept import Kept
from harness.tables.sections import Line, mean, percent_of_unpruned

ALL = "all"
"""Stands for the task where the mean is over all tasks and pairs of budgets."""


class RankedMethod(NamedTuple):
    """A method as it is named and drawn."""

    name: str
    method: str
    variant: int
    """As in `Series`, of the first model."""


@dataclass(frozen=True)
class Ranked:
    """The methods of a pair of budgets at one task, or at their average."""

    pair: BudgetPair
    task: str
    entries: Sequence[RankedMethod]
    percents: tuple[NDArray[np.float64], NDArray[np.float64]]
    """(methods,) of each model: % of the unpruned score."""
    agreement: Agreement
    questions: tuple[int, int]
    images: tuple[int, int]

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.entries]


@dataclass(frozen=True)
class Rankings:
    """All of a comparison of two models."""

    sides: Both
    tasks: Sequence[str]
    ranked: Sequence[Ranked]
    """By pair of budgets, most tokens first, then by task; behind several tasks their average."""
    means: Mapping[str, tuple[float, float, float]]
    """task, `AVERAGE` or `ALL` -> mean tau over the pairs, with the ends of its interval. `ALL` is over tasks too."""
    left: Sequence[Left]
    notes: Sequence[str]

    @property
    def models(self) -> tuple[str, str]:
        """The models, as the user wrote them."""
        return self.sides[0].text, self.sides[1].text

    @property
    def pairs(self) -> list[BudgetPair]:
        return list(dict.fromkeys(one.pair for one in self.ranked))

    def whole(self, pair: BudgetPair) -> Ranked:
        """The ranking of a pair at the average, or at the only task."""
        return next(one for one in reversed(self.ranked) if one.pair == pair)


def rankings(
    sides: Both,
    tasks: Sequence[str] = (),
    pairs: Sequence[tuple[str, str]] = (),
    tolerance: float = TOLERANCE,
    seed: int = 0,
    kept: Kept | None = None,
) -> Rankings:
    """How the rankings of two models agree. `tasks`: only these. `pairs`: these budgets, whatever their shares.

    Raises PrunebenchError where the models have no task, no pair of budgets or no three methods in common, and where
    the unpruned model is missing.
    """
    if not math.isfinite(tolerance) or tolerance < 1:
        raise PrunebenchError(f"{given('tolerance', tolerance)}: expected a ratio of at least 1, as 1.25")
    if sides[0].section is sides[1].section:
        raise PrunebenchError(f"{sides[0].text} and {sides[1].text} are the same cells: name two models")
    left: list[Left] = []
    shared = shared_tasks(sides, tasks, left)
    check_unpruned(sides, shared)
    shares = shares_of(sides[0].section, shared), shares_of(sides[1].section, shared)
    found = given_pairs(sides, pairs, shares) if pairs else paired(sides, shares, tolerance, left)
    members = {pair: members_of(sides, pair, shared, tolerance, left) for pair in found}
    members = {pair: both for pair, both in members.items() if both}
    if not members:
        why = "; ".join(f"{one.where}: {one.what} {one.why}" for one in left if one.where)
        raise PrunebenchError(
            f"{sides[0].text} and {sides[1].text}: expected {FEWEST} methods or more that both models have at a pair of"
            f" budgets, found none such: {why}"
        )
    reads = _answers(sides, shared, members, seed, kept or Kept())
    variants = {
        id(line): series.variant for series in sides[0].section.series() for line in series.lines
    }  # lines of a section are the same objects in its blocks
    ranked = []
    for pair, both in members.items():
        entries = [RankedMethod(name_of(sides, *lines), lines[0].method, variants[id(lines[0])]) for lines in both]
        ranked += _ranked(pair, entries, both, reads)
    means = {
        task: ranks.mean([one.agreement for one in ranked if one.task == task])
        for task in dict.fromkeys(one.task for one in ranked)
    }
    means[ALL] = ranks.mean([one.agreement for one in ranked if one.task != AVERAGE])
    notes = [side.note for side in sides if side.note] + _about_images(reads)
    return Rankings(sides, shared, ranked, means, left, notes)


_Reads = Mapping[str, TaskAnswers]
"""The answers of a model by task."""


def _answers(
    sides: Both,
    tasks: Sequence[str],
    members: Mapping[BudgetPair, Sequence[tuple[Line, Line]]],
    seed: int,
    kept: Kept,
) -> list[_Reads]:
    """Of each model, the answers by task, of the cells that enter alone."""
    found: list[_Reads] = []
    for k, side in enumerate(sides):
        lines = [both[k] for pair in members.values() for both in pair]
        cells = [s for line in lines for task in tasks for s in line.cells[task]]
        section = replace(side.section, cells=list({id(s): s for s in cells}.values()))
        found.append({task: TaskAnswers(section, task, kept, f"seed {seed}: " if seed else "") for task in tasks})
    for task, read in found[1].items():
        # equal images are drawn together, others apart, also where they are as many
        read.stream += "" if read.image_names == found[0][task].image_names else "second model: "
    return found


def _about_images(reads: Sequence[_Reads]) -> list[str]:
    """Notes on tasks with few images, and on images that both models were asked about."""
    notes = []
    same: defaultdict[str, list[str]] = defaultdict(list)
    for task, read in reads[0].items():
        other = reads[1][task]
        both = len(read.image_names & other.image_names)
        if min(read.images, other.images) < stats.FEW:
            notes.append(f"{task}: no interval, for a model has fewer than {stats.FEW} images of it")
        if both:
            whole = read.image_names == other.image_names
            said = "the same images in both models, drawn together" if whole else "partly the same images, drawn apart"
            same[said].append(task)
    return notes + [f"{', '.join(tasks)}: {said}" for said, tasks in same.items()]


def _ranked(
    pair: BudgetPair, entries: Sequence[RankedMethod], both: Sequence[tuple[Line, Line]], reads: Sequence[_Reads]
) -> list[Ranked]:
    """The rankings of a pair of budgets: of each task, then of their average."""
    found = []
    by_task: list[tuple[Scores, Scores]] = []
    for task, read in reads[0].items():
        other = reads[1][task]
        images, questions = (read.images, other.images), (read.n, other.n)
        enough = min(images) >= stats.FEW
        one, two = (_scores(r, [lines[k] for lines in both], enough) for k, r in enumerate((read, other)))
        by_task.append((one, two))
        percents = one.points, two.points
        found.append(Ranked(pair, task, entries, percents, ranks.study(one, two), questions, images))
        read.forget()
        other.forget()
    if len(found) > 1:
        one, two = (_mean([scores[k] for scores in by_task]) for k in (0, 1))
        questions, images = (
            (sum(size[0] for size in sizes), sum(size[1] for size in sizes))
            for sizes in ([ranked.questions for ranked in found], [ranked.images for ranked in found])
        )
        percents = one.points, two.points
        found.append(Ranked(pair, AVERAGE, entries, percents, ranks.study(one, two), questions, images))
    return found


def _scores(read: TaskAnswers, lines: Sequence[Line], enough: bool) -> Scores:
    """% of the unpruned score; without resamples where a model has few images, or a draw of the unpruned model scores
    0."""
    base = read.base
    assert base is not None  # refused before
    mine = [line.cells[read.task] for line in lines]
    points = np.array([mean([percent_of_unpruned(s, base) for s in seeds]) for seeds in mine])
    if not enough:
        return Scores(points, None)
    read.draw([base, *(s for seeds in mine for s in seeds)])
    whole = read.resampled(base)
    if not (whole > 0).all():
        return Scores(points, None)
    drawn = [100.0 * read.line(line.name, seeds) / whole for line, seeds in zip(lines, mine, strict=True)]
    return Scores(points, np.stack(drawn, axis=1))


def _mean(scores: Sequence[Scores]) -> Scores:
    """The average over tasks."""
    points = np.mean([one.points for one in scores], axis=0)
    drawn = [one.resampled for one in scores if one.resampled is not None]
    return Scores(points, np.mean(drawn, axis=0) if len(drawn) == len(scores) else None)
