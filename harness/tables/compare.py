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
* a difference is called one only if the corrected p is below 0.05, the interval excludes 0 and both point the same way;
  two scores are called indistinguishable only if neither sees a difference; what is left is undecided.
"""

from __future__ import annotations

import itertools
import math
import statistics
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.core import stats
from harness.core.errors import PrunebenchError
from harness.core.spelling import given
from harness.store.sealed import SealedCell
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
    """Pairs of lines that the next two are medians over: at one budget and near each other, off the floor."""
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
        for c in self.comparisons:
            if (c.budget, c.line, c.task, c.against == "none") == (budget, line, task, against_none):
                return c.verdict
        return None


def study(section: Section) -> Findings:
    """Everything about one section. Raises PrunebenchError where cells that should share their questions do not."""
    tasks = {task: _Task(section, task) for task in section.tasks}
    blocks = section.blocks()
    comparisons: list[Comparison] = []
    averages: dict[tuple[str, str], tuple[float, float]] = {}
    references: dict[str, str] = {}
    for block in blocks:
        reference = reference_line(block)
        if reference:
            references[block.budget] = reference.label
        drawn = {line.name: _average_resamples(line, tasks) for line in block.lines}
        for line in block.lines:
            resampled = drawn[line.name]
            if resampled is not None:
                averages[block.budget, line.name] = _ends(resampled, tasks)
            if line.method == "none":
                continue
            mine: list[Comparison] = []
            for task, seeds in line.cells.items():
                read = tasks[task]
                if read.base:
                    mine.append(read.compare(line, seeds, [read.base], "none", "none"))
                if reference and reference.name != line.name and task in reference.cells:
                    mine.append(read.compare(line, seeds, reference.cells[task], reference.name, reference.label))
            comparisons += mine
            if resampled is not None and len(tasks) == 1:
                comparisons += [_alone(c, tasks[c.task]) for c in mine]
            elif resampled is not None:
                point, counts = (
                    average(line, section),
                    (
                        sum(t.n for t in tasks.values()),
                        sum(t.images for t in tasks.values()),
                    ),
                )
                comparisons.append(_at_average(line, "none", point - 100.0, resampled - 100.0, counts, tasks))
                other = drawn[reference.name] if reference and reference.name != line.name else None
                if reference and other is not None:
                    comparisons.append(
                        _at_average(
                            line, reference.label, point - average(reference, section), resampled - other, counts, tasks
                        )
                    )
    return Findings(
        relevant={sealed.identity: kept for sealed in section.cells if (kept := relevant(sealed)) is not None},
        agreement={identity: percent for task in tasks.values() for identity, percent in task.agreement().items()},
        hard={key: found for block in blocks for task in tasks.values() for key, found in task.hard(block).items()},
        averages=averages,
        references=references,
        comparisons=_judged(comparisons),
        power=_powers(tasks, blocks, comparisons),
    )


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


class _Task:
    """The samples of a section's cells at one task, aligned by key: those that the headline metric is computed from."""

    def __init__(self, section: Section, task: str):
        self.task = task
        self.base = section.baseline(task)
        # By the object: an identity is a hash over the whole cell, which comparisons would compute thousands of times.
        self.cells = {
            id(s): s for s in [*(s for s in section.cells if s.cell.task == task), *([self.base] if self.base else [])]
        }
        self.answers: dict[int, list[str]] = {}
        self.scores: dict[int, NDArray[np.float64]] = {}
        self.keys: list[str] = []
        self.image: list[str] = []
        units = []
        for sealed in self.cells.values():
            rows = _read(sealed)
            counts = stats.in_headline(sealed.headline, rows["category"])
            rows = {name: list(itertools.compress(column, counts)) for name, column in rows.items()}
            if self.keys and (rows["key"], rows["image"]) != (self.keys, self.image):
                raise PrunebenchError(
                    f"{sealed.folder}: expected the {len(self.keys)} questions of"
                    f" {next(iter(self.cells.values())).folder}, since both cells name the data"
                    f" {sealed.cell.data_fingerprint[:16]}, found other keys or images; measure again"
                    f" ({given('fresh', True)})"
                )
            self.keys, self.image = rows["key"], rows["image"]
            self.answers[id(sealed)] = [answer.strip().casefold() for answer in rows["answer"]]
            self.scores[id(sealed)] = np.asarray(rows["score"], dtype=np.float64)
            units.append(
                stats.cluster(sealed.headline, rows["score"], rows["image"], rows["category"], rows["question_id"])
            )
        self.n, self.images = len(self.keys), len(set(self.image))
        self.owner: NDArray[np.int64] = np.unique(self.image, return_inverse=True)[1]
        # A seed per task: equal ones would draw the same images' numbers at two tasks with equally many images.
        self.unlike = units[0].unlike()
        drawn = stats.resample_together(units, stats.DECISIVE, zlib.crc32(task.encode()))
        self.resamples = dict(zip(self.cells, drawn, strict=True))

    def drawn(self, name: str, seeds: Sequence[SealedCell]) -> NDArray[np.float64]:
        """(n,) resamples of a line's mean over seeds; `name` decides its draws of seeds, whatever other lines there
        are."""
        return stats.over_seeds(np.stack([self.resamples[id(s)] for s in seeds]), zlib.crc32(name.encode()))

    def compare(
        self, line: Line, seeds: Sequence[SealedCell], others: Sequence[SealedCell], name: str, against: str
    ) -> Comparison:
        """The comparison, its Holm-corrected p and verdict still open."""
        unit = 100.0 if seeds[0].maximum == 1 else 1.0
        apart = unit * (mean([s.score for s in seeds]) - mean([s.score for s in others]))
        away = [self.scores[id(s)] - self.scores[id(o)] for s, o in itertools.product(seeds, others)]
        better, worse = ([int((sign * d > stats.TINY).sum()) for d in away] for sign in (1, -1))
        low, high = NAN, NAN
        if self.images < stats.FEW:
            pass
        elif not any(better) and not any(worse):  # a bootstrap sees no other kind of image
            low, high = -unit * self.unlike, unit * self.unlike
        else:
            low, high = stats.quantiles(unit * (self.drawn(line.name, seeds) - self.drawn(name, others)))
        p = stats.combined_p([stats.mcnemar(b, w) for b, w in zip(better, worse, strict=True)])
        counts = mean([float(b) for b in better]), mean([float(w) for w in worse])
        return Comparison(
            line.budget, line.name, self.task, against, self.n, self.images, apart, low, high, *counts, p, NAN, SAME
        )

    def pairs(self, blocks: Iterable[Block]) -> list[tuple[float, float]]:
        """(share of discordant questions, design effect or NaN) of the pairs of lines that a one-point claim would be
        about: at one budget, with scores within `NEAR` of each other and not both below `FLOOR`. Where none are near,
        of all pairs; with one line at a budget, of it and the unpruned model. The first seed stands for a line."""
        found: list[tuple[bool, float, float]] = []
        for block in blocks:
            one = [
                self.scores[id(line.cells[self.task][0])]
                for line in block.lines
                if line.method != "none" and self.task in line.cells
            ]
            one += [self.scores[id(self.base)]] if len(one) == 1 and self.base else []
            for first, second in itertools.combinations(one, 2):
                away = first - second
                discordant = float((np.abs(away) > stats.TINY).mean())
                high, low = (pick(float(first.mean()), float(second.mean())) for pick in (max, min))
                found.append((high - low <= NEAR and high > FLOOR, discordant, stats.design_effect(away, self.owner)))
        near = [(d, effect) for close, d, effect in found if close]
        return near or [(d, effect) for _, d, effect in found]

    def agreement(self) -> dict[str, float]:
        if not self.base:
            return {}
        whole = self.answers[id(self.base)]
        return {
            self.cells[i].identity: 100.0 * sum(map(str.__eq__, answers, whole)) / self.n
            for i, answers in self.answers.items()
        }

    def hard(self, block: Block) -> dict[tuple[str, str], Hard]:
        """For every cell of the block, and the unpruned one. Nothing without `downsample` at the budget, or with
        several settings of it."""
        found = [
            s
            for line in block.lines
            if line.method == "downsample" and line.positions == "method"
            for s in line.cells.get(self.task, ())
        ]
        if len(found) != 1 or block.budget == "none":
            return {}
        wrong = self.scores[id(found[0])] < RIGHT
        cells = [s for line in block.lines for s in line.cells.get(self.task, ())] + ([self.base] if self.base else [])
        n = int(wrong.sum())
        return {
            (block.budget, s.identity): Hard(n, 100.0 * float(self.scores[id(s)][wrong].mean()) if n else NAN)
            for s in cells
        }


def _read(sealed: SealedCell) -> dict[str, Any]:
    """The columns that comparisons need, sorted by key, from the samples that were sealed."""
    return sealed.columns("key", "image", "question_id", "category", "answer", "score")


def _average_resamples(line: Line, tasks: Mapping[str, _Task]) -> NDArray[np.float64] | None:
    """(n,) resamples of Avg %; None where a task or its baseline is missing or has too few images, or a draw of the
    baseline scores 0."""
    parts = []
    for task, read in tasks.items():
        if task not in line.cells or not read.base or read.images < stats.FEW:
            return None
        whole = read.resamples[id(read.base)]
        if not (whole > 0).all():
            return None
        parts.append(100.0 * read.drawn(line.name, line.cells[task]) / whole)
    return np.asarray(np.mean(parts, axis=0), dtype=np.float64)


def _ends(resampled: NDArray[np.float64], tasks: Mapping[str, _Task]) -> tuple[float, float]:
    """The interval of an average, or of a difference of two. Where no resample differs, what the tasks' binomial limits
    come to."""
    if np.ptp(resampled) > stats.TINY:
        return stats.quantiles(resampled)
    width = mean([100.0 * read.unlike / read.base.score for read in tasks.values() if read.base])
    return float(resampled[0]) - width, float(resampled[0]) + width


def _alone(c: Comparison, read: _Task) -> Comparison:
    """The comparison at the only task, in points of Avg %."""
    assert read.base is not None  # there is no Avg % without
    unit = (100.0 if read.base.maximum == 1 else 1.0) * read.base.score / 100.0
    return replace(c, task=AVERAGE, difference=c.difference / unit, low=c.low / unit, high=c.high / unit)


def _at_average(
    line: Line,
    against: str,
    apart: float,
    resampled: NDArray[np.float64],
    counts: tuple[int, int],
    tasks: Mapping[str, _Task],
) -> Comparison:
    """At the average there are no questions to count: the p is the bootstrap's own."""
    low, high = _ends(resampled, tasks)
    return Comparison(
        line.budget,
        line.name,
        AVERAGE,
        against,
        *counts,
        apart,
        low,
        high,
        NAN,
        NAN,
        stats.bootstrap_p(resampled),
        NAN,
        SAME,
    )


def _judged(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """With Holm-corrected p and verdict: a family per reference over all budgets, lines and tasks of the section, and
    one over their averages."""
    found = list(comparisons)
    enough = [i for i, c in enumerate(found) if c.images >= stats.FEW]
    for kind in sorted({_family(c) for c in found}):
        family = [i for i in enough if _family(found[i]) == kind]
        for i, p in zip(family, stats.holm([found[i].p for i in family]), strict=True):
            found[i] = replace(found[i], p_holm=p)
    return [replace(c, verdict=_verdict(c)) for c in found]


def _family(c: Comparison) -> tuple[bool, bool]:
    return c.against == "none", c.task == AVERAGE


def _verdict(c: Comparison) -> str:
    if c.images < stats.FEW:
        return TOO_FEW
    apart = c.low > stats.TINY or c.high < -stats.TINY
    ahead = c.low > stats.TINY
    tested = c.p_holm < ALPHA
    if apart and tested and (c.task == AVERAGE or (c.better > c.worse) == ahead):
        return ABOVE if ahead else BELOW
    return OPEN if apart or tested else SAME


def _powers(tasks: Mapping[str, _Task], blocks: Sequence[Block], comparisons: Sequence[Comparison]) -> list[Power]:
    """For the tasks where two pruned lines differ at all."""
    sizes = Counter(_family(c) for c in comparisons if c.task != AVERAGE)
    tests = max(sizes.values(), default=1)
    found = []
    for task, read in tasks.items():
        pairs = read.pairs(blocks)
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
