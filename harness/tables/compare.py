"""What only the answers can tell: agreement with the unpruned model, the hard subset, and whether a difference is one.

Reads the samples of a section's cells, by key, after checking their hash. Every rule of a comparison is written here
once:

* a line is compared with the unpruned model and with `random` at the same asked budget, task by task;
* the difference has an interval from a bootstrap over whole images (paired: both sides on the same draws; several seeds
  are drawn anew in each resample too) of the headline metric itself, so an MME sum stays a sum;
* the questions are those that the metric is computed from: MME's perception score knows nothing of its cognition
  questions;
* the test is an exact McNemar test on questions, at the average a bootstrap test of the difference; both are
  Holm-corrected over all comparisons of their kind with the same reference in the section;
* the average of one task is that task: same test, same verdict;
* below `stats.FEW` images there is no interval and no verdict;
* where lower is better, fewer errors are ahead, and no average has such a task;
* a metric that is made of all answers at once has no interval, test or verdict, and no average with it has one;
* a difference is called one only if the corrected p is below 0.05, the interval excludes 0 and both point the same way;
  two scores are called indistinguishable only if neither sees a difference; what is left is undecided.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.core import stats
from harness.store.sealed import SealedCell
from harness.tables.answers import TaskAnswers
from harness.tables.difference import ends_of, tested
from harness.tables.kept import Kept
from harness.tables.relevant import Relevant, relevant
from harness.tables.sections import NAN, Block, Line, Section, average, mean

ALPHA = 0.05
RIGHT = 0.5  # a soft score below this is a wrong answer
NEAR, FLOOR = 0.05, 0.05
"""Two lines this close in their score, one of which at least answers this much, are what a one-point claim is about."""
AVERAGE = "average"
"""Stands for the task where all of them are averaged."""
ABOVE, BELOW, SAME, OPEN = "above", "below", "indistinguishable", "undecided"
TOO_FEW = f"fewer than {stats.FEW} images"
"""In place of a verdict."""
OTHERS = 128
"""Lines of a block that each line is paired with for `Power`: all of up to 129 lines, so work grows with lines."""
TOGETHER = 32
"""Lines of a block that are resampled at once, so memory does not grow with the section: they hold 160 kB a cell."""


@dataclass(frozen=True)
class Comparison:
    """One line against a reference at one task, or at their average."""

    budget: str
    line: str
    task: str
    against: str
    """"none", or the label of the line of `random`."""
    n: int
    """Questions that the metric is computed from."""
    images: int
    difference: float
    """Of the headline metric as printed: points of 100, or MME points; at the average, points of Avg %. Positive: the
    line is ahead."""
    low: float
    high: float
    better: float
    """Questions that the line answers better than the reference; mean over pairs of seeds. NaN at the average."""
    worse: float
    p: float
    """Exact McNemar, over pairs of seeds combined; at the average twice the share of resamples on the rarer side of
    0."""
    p_holm: float
    verdict: str


@dataclass(frozen=True)
class Hard:
    """The questions that `downsample` at the same budget gets wrong, and the share that a line gets right."""

    n: int
    percent: float
    """NaN where there are none."""


@dataclass(frozen=True)
class Power:
    """What a claim of one point at a task takes."""

    task: str
    pairs: int
    """Pairs of lines that the next two are medians over: at one budget and near each other, off the floor. Each line
    has `OTHERS` others at most."""
    discordant: float
    """Share of questions, 0..1, on which the two of a pair differ."""
    effect: float
    """Design effect of their difference, at least 1."""
    n: int
    images: int
    needed: int
    """Questions for one planned comparison at 5 %."""
    needed_images: int
    detectable: float
    """Points that `n` questions find then; NaN where none."""
    tests: int
    """Comparisons of the section's larger family, which Holm's correction is over."""
    needed_in_family: int
    """Questions where the comparison is the first that Holm's correction looks at: at 5 % over `tests`."""
    detectable_in_family: float


@dataclass(frozen=True)
class Findings:
    """All of it, for one section. Mappings are keyed by identity, or by (budget, line name)."""

    relevant: Mapping[str, Relevant]
    """identity -> share of answer-relevant patches kept, of cells where it can be known."""
    agreement: Mapping[str, float]
    """identity -> percent of questions answered as the unpruned model does (stripped, case folded)."""
    hard: Mapping[tuple[str, str], Hard]
    """(budget, identity) -> the hard subset of the budget; the unpruned model has an entry at every budget."""
    averages: Mapping[tuple[str, str], tuple[float, float]]
    """(budget, line name) -> interval of Avg %."""
    references: Mapping[str, str]
    """budget -> label of the line of `random` that others are compared with."""
    comparisons: Sequence[Comparison]
    power: Sequence[Power]

    def verdict(self, budget: str, line: str, task: str, against_none: bool) -> str | None:
        """None where nothing was compared."""
        return self._verdicts.get((budget, line, task, against_none))

    @cached_property
    def _verdicts(self) -> dict[tuple[str, str, str, bool], str]:
        return {(c.budget, c.line, c.task, c.against == "none"): c.verdict for c in self.comparisons}


def study(section: Section, kept: Kept | None = None, further: Further | None = None) -> Findings:
    """Everything about one section; what `kept` knows is not computed again, and what `further` names is computed with
    it. Raises PrunebenchError where cells that should share their questions do not."""
    kept = kept or Kept()
    tasks = {task: TaskAnswers(section, task, kept) for task in section.tasks}
    blocks = section.blocks()
    comparisons: list[Comparison] = []
    averages: dict[tuple[str, str], tuple[float, float]] = {}
    references: dict[str, str] = {}
    sizes = sum(tasks[t].n for t in section.averaged), sum(tasks[t].images for t in section.averaged)
    lines: list[_Asked] = []
    for block in blocks:
        here = [_Asked(line, block, reference_line(block), tasks, kept) for line in block.lines]
        lines += here
        more = further(block, tasks) if further else []
        for start in range(0, len(here), TOGETHER):
            some = [one for asked in here[start : start + TOGETHER] for one in asked.statistics]
            _compute([*some, *(more if not start else [])], tasks, kept)
    for asked in lines:
        line, reference = asked.line, asked.reference
        if reference:
            references[line.budget] = reference.label
        averaged = asked.average and kept.of(*asked.average[:2])
        if averaged:
            low, high = averaged["ends"]
            averages[line.budget, line.name] = low, high
        if line.method == "none":
            continue
        mine = [shown(kept.of(key, compute)) for (key, compute, _), shown in asked.comparisons]
        comparisons += mine
        if averaged and len(section.averaged) == 1:
            comparisons += [as_average(c, tasks[c.task]) for c in mine if c.task in section.averaged]
        elif averaged:
            point = average(line, section)
            at = line.budget, line.name, AVERAGE
            comparisons.append(at_average(at, "none", sizes, point - 100.0, averaged["none"]))
            if reference and averaged["reference"]:
                apart = point - average(reference, section)
                comparisons.append(at_average(at, reference.label, sizes, apart, averaged["reference"]))
    return Findings(
        relevant={sealed.identity: found for sealed in section.cells if (found := _relevant(sealed, kept))},
        agreement={identity: percent for task in tasks.values() for identity, percent in task.agreement.items()},
        hard={key: found for block in blocks for task in tasks.values() for key, found in _hard(task, block).items()},
        averages=averages,
        references=references,
        comparisons=judged(comparisons, _family),
        power=_powers(tasks, blocks, comparisons),
    )


def _relevant(sealed: SealedCell, kept: Kept) -> Relevant | None:
    read = [sealed.provenance.get("decoder_layers"), sealed.provenance.get("grids"), sealed.costs.get("n_visual")]
    found = kept.of(kept.key("relevant", [sealed], json.dumps(read)), lambda: relevant(sealed))
    return Relevant(*found) if found else None


def reference_line(block: Block) -> Line | None:
    """The line of `random` that the others of a block are compared with: most seeds, then the method's own positions,
    then by name.

    None in the block without a budget: there is no equal budget to compare at.
    """
    found = [line for line in block.lines if line.method == "random" and block.budget != "none"]
    return min(
        found,
        key=lambda line: (-sum(map(len, line.cells.values())), line.positions != "method", line.name),
        default=None,
    )


class Statistic(NamedTuple):
    """A statistic: the key under which it is kept, how it is computed, and the cells whose resamples that needs."""

    key: str
    compute: Callable[[], Any]
    needs: Sequence[tuple[TaskAnswers, SealedCell]]


Further = Callable[[Block, Mapping[str, TaskAnswers]], Sequence[Statistic]]
"""What else is to be computed of the lines of a block, while their resamples are there."""


class _Asked:
    """A line, and what there is to compute of it: comparisons task by task, and its average."""

    def __init__(self, line: Line, block: Block, reference: Line | None, tasks: Mapping[str, TaskAnswers], kept: Kept):
        self.line = line
        self.reference = reference
        self.comparisons: list[tuple[Statistic, Callable[[Any], Comparison]]] = []
        self.average: Statistic | None = None
        """None where a task is missing."""
        other = reference if reference and reference.name != line.name else None
        for task, seeds in line.cells.items() if line.method != "none" else ():
            read = tasks[task]
            if not read.tested:
                continue
            if read.base:
                self.comparisons.append(paired(read, line, seeds, [read.base], "none", "none", kept))
            if other and task in other.cells:
                self.comparisons.append(paired(read, line, seeds, other.cells[task], other.name, other.label, kept))
        tasks = {task: read for task, read in tasks.items() if read.averaged}
        if whole_line(line, tasks):
            other = other if other and whole_line(other, tasks) else None
            cells = [(read, s) for read in tasks.values() for one in (line, other) if one for s in one.cells[read.task]]
            cells += [(read, read.base) for read in tasks.values() if read.base]
            shape = [
                [task, len(line.cells[task]), len(other.cells[task]) if other else 0, read.unlike]
                for task, read in tasks.items()
            ]
            key = kept.key("average", [s for _, s in cells], json.dumps(shape), line.name, other.name if other else "")
            self.average = Statistic(key, lambda: _average(line, other, tasks), cells)

    @property
    def statistics(self) -> list[Statistic]:
        return [*(job for job, _ in self.comparisons), *([self.average] if self.average else [])]


def _compute(asked: Sequence[Statistic], tasks: Mapping[str, TaskAnswers], kept: Kept) -> None:
    """Compute what is not kept: one matrix product resamples all cells of a task."""
    fresh = [statistic for statistic in asked if statistic.key not in kept]
    needs: dict[str, list[SealedCell]] = {task: [] for task in tasks if fresh}
    for statistic in fresh:
        for read, sealed in statistic.needs:
            needs[read.task].append(sealed)
    for task, cells in needs.items():
        tasks[task].draw(cells)
    for statistic in fresh:
        kept.of(statistic.key, statistic.compute)
    for task in needs:
        tasks[task].forget()


def whole_line(line: Line, tasks: Mapping[str, TaskAnswers]) -> bool:
    """Whether every task and its unpruned cell is there, with enough images and scores of questions."""
    enough = all(read.base and read.tested and read.images >= stats.FEW for read in tasks.values())
    return enough and bool(tasks) and all(task in line.cells for task in tasks)


def paired(
    read: TaskAnswers,
    line: Line,
    seeds: Sequence[SealedCell],
    others: Sequence[SealedCell],
    name: str,
    against: str,
    kept: Kept,
) -> tuple[Statistic, Callable[[Any], Comparison]]:
    """What is to be computed of a line and its reference, and the comparison that comes of it; its Holm-corrected p and
    verdict are still open."""
    unit = 100.0 if seeds[0].maximum == 1 else 1.0

    def compute() -> list[float]:
        return tested(
            [read.scores(s) for s in seeds],
            [read.scores(s) for s in others],
            lambda: unit * (read.line(line.name, seeds) - read.line(name, others)),
            read.images,
            unit * read.unlike,
        )

    def shown(numbers: Sequence[float]) -> Comparison:
        apart = unit * (mean([s.ahead for s in seeds]) - mean([s.ahead for s in others]))
        low, high, better, worse, p = numbers
        sizes = read.n, read.images
        return Comparison(
            line.budget, line.name, read.task, against, *sizes, apart, low, high, better, worse, p, NAN, SAME
        )

    words = [read.task, str(len(seeds)), str(read.unlike), line.name, name]
    key = kept.key("comparison", [*seeds, *others], *words)
    needs = [(read, s) for s in (*seeds, *others)] if read.images >= stats.FEW else []
    return Statistic(key, compute, needs), shown


def _average(line: Line, reference: Line | None, tasks: Mapping[str, TaskAnswers]) -> dict[str, Any] | None:
    """The interval of Avg %, and [low, high, p] of its differences from 100 and from the reference's; None where a draw
    of an unpruned cell scores 0. At the average there are no questions to count: the p is the bootstrap's own."""
    mine, other = percents(line, tasks), percents(reference, tasks) if reference else None
    if mine is None:
        return None
    apart = {"none": mine - 100.0} | ({"reference": mine - other} if other is not None else {})
    said = {name: [*ends(d, tasks), stats.bootstrap_p(d)] for name, d in apart.items()}
    return {"ends": ends(mine, tasks), "reference": None} | said


def percents(line: Line, tasks: Mapping[str, TaskAnswers]) -> NDArray[np.float64] | None:
    """(n,) resamples of Avg %; None where a draw of an unpruned cell scores 0."""
    bases = [read.resampled(read.base) for read in tasks.values() if read.base]
    if not all((whole > 0).all() for whole in bases):
        return None
    drawn = [read.line(line.name, line.cells[task]) for task, read in tasks.items()]
    parts = [100.0 * mine / whole for mine, whole in zip(drawn, bases, strict=True)]
    return np.asarray(np.mean(parts, axis=0), dtype=np.float64)


def ends(resampled: NDArray[np.float64], tasks: Mapping[str, TaskAnswers]) -> tuple[float, float]:
    """The interval of an average of these tasks, or of a difference of two."""
    return ends_of(resampled, lambda: [100.0 * read.unlike / read.base.score for read in tasks.values() if read.base])


def as_average(c: Comparison, read: TaskAnswers) -> Comparison:
    """The comparison at the only task, in points of Avg %."""
    assert read.base is not None  # there is no Avg % without
    return in_percent(c, read.base.score, read.base.maximum)


def in_percent(c: Comparison, unpruned: float, maximum: float) -> Comparison:
    """The comparison at the only averaged task, where the unpruned model has this score of this maximum."""
    unit = (100.0 if maximum == 1 else 1.0) * unpruned / 100.0
    return replace(c, task=AVERAGE, difference=c.difference / unit, low=c.low / unit, high=c.high / unit)


def at_average(
    at: tuple[str, str, str], against: str, sizes: tuple[int, int], apart: float, numbers: Sequence[float]
) -> Comparison:
    low, high, p = numbers
    return Comparison(*at, against, *sizes, apart, low, high, NAN, NAN, p, NAN, SAME)


def _hard(read: TaskAnswers, block: Block) -> dict[tuple[str, str], Hard]:
    """For every cell of the block, and the unpruned one. Nothing without `downsample` at the budget, or with several
    settings of it."""
    found = [
        s
        for line in block.lines
        if line.method == "downsample" and line.positions == "method"
        for s in line.cells.get(read.task, ())
    ]
    if len(found) != 1 or block.budget == "none" or not read.tested:
        return {}

    def compute(sealed: SealedCell) -> list[float]:
        wrong = read.scores(found[0]) < RIGHT
        n = int(wrong.sum())
        return [n, 100.0 * float(read.scores(sealed)[wrong].mean()) if n else NAN]

    hard = {}
    for s in [*(s for line in block.lines for s in line.cells.get(read.task, ())), *([read.base] if read.base else [])]:
        n, percent = read.kept.of(read.kept.key("hard", [s, found[0]]), lambda s=s: compute(s))  # type: ignore[misc]
        hard[block.budget, s.identity] = Hard(n, percent)
    return hard


def judged(comparisons: Sequence[Comparison], family_of: Callable[[Comparison], Any]) -> list[Comparison]:
    """With Holm-corrected p and verdict; comparisons of which `family_of` says the same are corrected together."""
    found = list(comparisons)
    families: dict[Any, list[int]] = {}
    for i, c in enumerate(found):
        if c.images >= stats.FEW:
            families.setdefault(family_of(c), []).append(i)
    for family in families.values():
        for i, p in zip(family, stats.holm([found[i].p for i in family]), strict=True):
            found[i] = replace(found[i], p_holm=p)
    return [replace(c, verdict=verdict_of(c)) for c in found]


def _family(c: Comparison) -> tuple[bool, bool]:
    """A family per reference over all budgets, lines and tasks of the section, and one over their averages."""
    return c.against == "none", c.task == AVERAGE


def verdict_of(c: Comparison) -> str:
    if c.images < stats.FEW:
        return TOO_FEW
    apart = c.low > stats.TINY or c.high < -stats.TINY
    ahead = c.low > stats.TINY
    tested = c.p_holm < ALPHA
    if apart and tested and (c.task == AVERAGE or (c.better > c.worse) == ahead):
        return ABOVE if ahead else BELOW
    return OPEN if apart or tested else SAME


def _pairs(read: TaskAnswers, blocks: Sequence[Block]) -> list[tuple[float, float]]:
    """(share of discordant questions, design effect or NaN) of the pairs of lines that a one-point claim would be
    about: at one budget, with scores within `NEAR` of each other and not both below `FLOOR`. Where none are near, of
    all pairs; with one line at a budget, of it and the unpruned model. The first seed stands for a line."""
    found: list[tuple[bool, float, float]] = []
    for block in blocks:
        one = [line.cells[read.task][0] for line in block.lines if line.method != "none" and read.task in line.cells]
        one += [read.base] if len(one) == 1 and read.base else []
        if len(one) > 1:
            kept = read.kept.of(read.kept.key("pairs", one), lambda one=one: _apart(read, one))  # type: ignore[misc]
            found += [(near, discordant, effect) for near, discordant, effect in kept]
    near = [(d, effect) for close, d, effect in found if close]
    return near or [(d, effect) for _, d, effect in found]


def _apart(read: TaskAnswers, cells: Sequence[SealedCell]) -> list[tuple[bool, float, float]]:
    """(near and off the floor, share of discordant questions, design effect) of pairs of cells."""
    scores = np.stack([read.scores(s) for s in cells])
    counts = np.bincount(read.owner)
    sums = np.stack([np.bincount(read.owner, weights=row) for row in scores])
    means = np.array([float(row.mean()) for row in scores])
    found = []
    for first, others in partners(len(cells)):
        away = scores[first] - scores[others]
        high, low = np.maximum(means[first], means[others]), np.minimum(means[first], means[others])
        near = (high - low <= NEAR) & (high > FLOOR)
        discordant = (np.abs(away) > stats.TINY).mean(axis=1)
        middle = away.mean(axis=1, keepdims=True)
        effects = stats.design_effects(away - middle, sums[first] - sums[others] - middle * counts)
        found += list(zip(near.tolist(), discordant.tolist(), effects.tolist(), strict=True))
    return found


def partners(lines: int) -> Iterator[tuple[int, list[int]]]:
    """Each line with the lines that it is paired with, every pair once: all of them, or of more than `OTHERS` lines as
    many steps ahead as spread evenly over the block."""
    if lines <= OTHERS + 1:
        yield from ((i, list(range(i + 1, lines))) for i in range(lines - 1))
        return
    half, most = OTHERS // 2, (lines - 1) // 2
    steps = [1 + step * (most - 1) // (half - 1) for step in range(half)]
    yield from ((i, [(i + step) % lines for step in steps]) for i in range(lines))


def _powers(
    tasks: Mapping[str, TaskAnswers], blocks: Sequence[Block], comparisons: Sequence[Comparison]
) -> list[Power]:
    """For the tasks where two pruned lines differ at all."""
    sizes = Counter(_family(c) for c in comparisons if c.task != AVERAGE)
    tests = max(sizes.values(), default=1)
    found = []
    for task, read in tasks.items():
        pairs = _pairs(read, blocks) if read.tested else []
        if not pairs:
            continue
        discordant = statistics.median(d for d, _ in pairs)
        effect = max([1.0, statistics.median([e for _, e in pairs if not math.isnan(e)] or [1.0])])
        needed, within = (stats.questions_needed(0.01, discordant, effect, level=1.0 - ALPHA / m) for m in (1, tests))
        alone, corrected = (
            100.0 * stats.detectable(read.n, discordant, effect, level=1.0 - ALPHA / m) for m in (1, tests)
        )
        images = math.ceil(needed * read.images / read.n)
        found.append(
            Power(
                task,
                len(pairs),
                discordant,
                effect,
                read.n,
                read.images,
                needed,
                images,
                alone,
                tests,
                within,
                corrected,
            )
        )
    return found
