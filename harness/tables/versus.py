"""Two sides on the questions that both answered: the difference of the headline metric, whether it is one, and the
answers that flipped.

The rules are those of the tables (harness/tables/compare.py, harness/tables/difference.py): the same draws of whole
images, the same exact test. Holm corrects all tasks of all pairs that were asked for as one family, and the averages as
another. Samples are read of the asked cells only, and hashed as they are read.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.core import stats
from harness.core.errors import PrunebenchError
from harness.core.metric import Metric
from harness.store.sealed import SealedCell
from harness.tables.compare import AVERAGE, SAME, Comparison, in_percent, judged
from harness.tables.difference import ends_of, tested
from harness.tables.kept import Kept
from harness.tables.sections import NAN, SHORT, baseline, mean
from harness.tables.sides import DIGESTS, FIELDS, Side, in_refusal

COLUMNS = ("key", "image", "question_id", "category", "question", "target", "answer", "score")
ALIKE = ("model", "weights", "stands_for", "dtype", "device", "kernel", "processing", "numerics")
"""Of `FIELDS`, those in which two sides of one folder may differ only if a side names them."""
OF_MODEL = frozenset({"weights", "stands_for", "processing", "kernel"})
"""Of `ALIKE`, those that go with a model's name."""


class FlippedAnswer(NamedTuple):
    """A question that one side answers better than the other, by the first seed of each."""

    task: str
    key: str
    image: str
    question: str
    target: str
    answers: tuple[str, str]
    scores: tuple[float, float]
    first: bool
    """Whether the first side answers better."""


@dataclass(frozen=True)
class OnTask:
    """Two sides at a task."""

    task: str
    metric: str
    maximum: float
    n: tuple[int, int]
    """Questions of each side that its metric is computed from."""
    common: int
    """Those that both answered, and that are compared."""
    images: int
    points: tuple[float, float]
    """The metric of each side on the common questions, mean over seeds, in the metric's own unit; NaN where it cannot
    be had."""
    untested: str
    """Why there is no test; "" where there is one."""


@dataclass(frozen=True)
class Versus:
    """Two sides, and what is to be said of them."""

    one: Side
    other: Side
    tasks: Sequence[OnTask]
    comparisons: Mapping[str, Comparison]
    """task, or `AVERAGE` -> the comparison of `one` against `other`: positive where `one` is better."""
    flips: Sequence[FlippedAnswer]
    notes: Sequence[str]
    """What does not match, and what is left out."""
    percents: tuple[float, float] = (NAN, NAN)
    """Avg % of each side on the common questions; NaN where it is not compared."""


class _Table(NamedTuple):
    """The samples of a cell that its metric is computed from, by key; arrays of objects, and the scores."""

    columns: Mapping[str, NDArray[Any]]
    score: NDArray[np.float64]
    """NaN where a question has no score of its own."""

    def at(self, rows: NDArray[np.int64]) -> _Table:
        return _Table({name: column[rows] for name, column in self.columns.items()}, self.score[rows])


class Reader:
    """Samples of cells, each read once; what is damaged is said in `damaged` and stays None."""

    def __init__(self) -> None:
        self.damaged: list[str] = []
        self._read: dict[tuple[str, str], _Table | None] = {}

    def __call__(self, sealed: SealedCell) -> _Table | None:
        key = str(sealed.folder), sealed.identity
        if key not in self._read:
            try:
                self._read[key] = _read(sealed)
            except PrunebenchError as error:
                self.damaged.append(str(error))
                self._read[key] = None
        return self._read[key]


def _read(sealed: SealedCell) -> _Table:
    table = sealed.table(*COLUMNS)
    columns = {name: np.array(table[name].to_pylist(), dtype=object) for name in COLUMNS if name != "score"}
    score = np.array([NAN if value is None else value for value in table["score"].to_pylist()], dtype=np.float64)
    counts = np.flatnonzero(stats.in_headline(sealed.metric, columns["category"].tolist()))
    return _Table(columns, score).at(counts)


def versus(pairs: Sequence[tuple[Side, Side]], reader: Reader | None = None) -> list[Versus]:
    """Each pair compared, with Holm's correction over all of them.

    Raises PrunebenchError where two sides may not be compared, or have no question in common.
    """
    reader = reader or Reader()
    kept = Kept(pairs[0][0].folder.root, write=False)  # draws that the tables keep need not be drawn again
    made = [_Pair(one, other, reader, kept).compared() for one, other in pairs]
    flat = judged([c for v in made for c in v.comparisons.values()], lambda c: c.task == AVERAGE)
    later = iter(flat)
    return [replace(v, comparisons={task: next(later) for task in v.comparisons}) for v in made]


class _Shared(NamedTuple):
    """A task on the common questions: resamples and points of both sides, and of their unpruned cells if there are
    any."""

    drawn: tuple[NDArray[np.float64], NDArray[np.float64]]
    points: tuple[float, float]
    bases: tuple[tuple[NDArray[np.float64], float] | None, ...]
    unlike: float
    n: int
    images: int


class _Pair:
    """The work of comparing two sides."""

    def __init__(self, one: Side, other: Side, reader: Reader, kept: Kept):
        self.sides = one, other
        self.reader, self.kept = reader, kept
        self.notes: list[str] = []
        self.flips: list[FlippedAnswer] = []
        self.comparisons: dict[str, Comparison] = {}

    def compared(self) -> Versus:
        one, other = self.sides
        tasks = sorted(set(one.cells) & set(other.cells))
        damage = [self._note_alone(side, without) for side, without in ((one, other), (other, one))]
        if not tasks:
            raise PrunebenchError(
                f"{one.label} and {other.label}: expected a task that both were measured on, found"
                f" {', '.join(sorted(one.cells))} and {', '.join(sorted(other.cells))}{in_refusal(*damage)}"
            )
        self._check_alike(tasks)
        found: list[OnTask] = []
        shared: dict[str, _Shared] = {}
        for task in tasks:
            on, mine = self._task(task)
            found.append(on)
            if mine:
                shared[task] = mine
        if not any(on.common for on in found):
            raise PrunebenchError(
                f"{one.label} and {other.label}: expected questions that both answered, found none:"
                f" {'; '.join(f'{on.task}: {on.untested}' for on in found)}"
            )
        up = [on for on in found if one.cells[on.task][0].metric.higher_is_better]
        down = [on.task for on in found if on not in up]
        if down:
            self.notes.append(f"lower is better on {', '.join(down)}, which is not in Avg %")
        if len(found) > 1 and up:
            self._average(up, {on.task: shared[on.task] for on in up if on.task in shared})
        percents = _percents(shared[on.task] for on in up) if AVERAGE in self.comparisons else (NAN, NAN)
        return Versus(one, other, found, self.comparisons, self.flips, self.notes, percents)

    # ---------------------------------------------------------------------------------------- what may be compared

    def _note_alone(self, side: Side, without: Side) -> str:
        """Note the tasks that one side alone has. The damaged cells that the other may have had of them."""
        line, damage = without.line, {}
        alone = sorted(set(side.cells) - set(without.cells))
        for task in alone:
            lost = without.folder.lost(tasks=[task], method=line.method, budget=line.budget)
            if lost:
                damage[task] = lost
                self.notes.append(f"{task} is not compared: a cell of {without.label} is damaged ({lost})")
        measured = [task for task in alone if task not in damage]
        if measured:
            self.notes.append(f"only {side.label} was measured on {', '.join(measured)}")
        return ", ".join(damage.values())

    def _check_alike(self, tasks: Sequence[str]) -> None:
        """Note in what the two differ. Raises PrunebenchError where nobody asked for that."""
        one, other = self.sides
        named = one.named | other.named
        named |= OF_MODEL if "model" in named else frozenset()
        apart = one.folder is not other.folder
        firsts = one.cells[tasks[0]][0], other.cells[tasks[0]][0]
        for name in ALIKE:
            mine, theirs = (FIELDS[name](s) for s in firsts)
            if mine == theirs:
                continue
            if name in DIGESTS:
                mine, theirs = mine[:SHORT], theirs[:SHORT]
            if not apart and name not in named:
                raise PrunebenchError(
                    f"{one.label} and {other.label}: expected one {name}, found {mine or 'none'} and"
                    f" {theirs or 'none'}: measure both alike, or name the {name} of a side"
                    f" ({one.label}:{name}={mine or 'none'})"
                )
            self.notes.append(f"the two differ in {name}: {mine or 'none'} and {theirs or 'none'}")

    def _task(self, task: str) -> tuple[OnTask, _Shared | None]:
        one, other = self.sides
        seeds = [[s for s in side.cells[task] if self.reader(s)] for side in self.sides]
        first = one.cells[task][0]

        def no(why: str, n: tuple[int, int] = (0, 0), common: int = 0) -> tuple[OnTask, None]:
            self.notes.append(f"{task} is not compared: {why}")
            return OnTask(task, first.headline, first.maximum, n, common, 0, (NAN, NAN), why), None

        for side, left in zip(self.sides, seeds, strict=True):
            if not left:
                return no(f"the samples of {side.label} are damaged")
        cells = seeds[0][0].cell, seeds[1][0].cell
        for name in ("max_new_tokens", "task_settings"):
            mine, theirs = (getattr(cell, name) for cell in cells)
            if mine != theirs:
                self.notes.append(f"{task}: the two differ in {name}: {mine} and {theirs}")
        metrics = [mine[0].metric for mine in seeds]
        if metrics[0] != metrics[1]:
            said = [metric.name if metrics[0].name != metrics[1].name else repr(metric) for metric in metrics]
            return no(f"its metric is {said[0]} on one side and {said[1]} on the other")
        tables = [[t for s in mine if (t := self.reader(s)) is not None] for mine in seeds]
        keys = [mine[0].columns["key"] for mine in tables]
        n = len(keys[0]), len(keys[1])
        common, *rows = np.intersect1d(keys[0].astype(str), keys[1].astype(str), return_indices=True)
        if not len(common):
            return no("no question is in both", n)
        aligned = [[t.at(row) for t in mine] for mine, row in zip(tables, rows, strict=True)]
        for name in ("image", "question", "target"):
            strange = np.flatnonzero(aligned[0][0].columns[name] != aligned[1][0].columns[name])
            if len(strange):
                what = f"{common[strange[0]]} has another {name} on each side"
                return no(f"{what}, so the data differ ({self._data(task)})", n)
        whole = _whole_units(metrics[0], aligned[0][0])
        if len(whole) < len(common):
            self.notes.append(f"{task}: {len(common) - len(whole)} questions are left out, whose pair is not in both")
            aligned = [[t.at(whole) for t in mine] for mine in aligned]
        if len(whole) < max(n):
            self.notes.append(
                f"{task}: {len(whole):,} of {max(n):,} questions are in both ({one.label} has {n[0]:,},"
                f" {other.label} has {n[1]:,}; {self._data(task)})"
            )
        if not len(whole):
            return no("no whole pair of questions is in both", n)
        why = next((w for mine, ts in zip(seeds, tables, strict=True) if (w := _no_scores(mine[0], ts[0]))), "")
        if why:
            self.notes.append(f"{task} has no test: {why}")
            points = _mean_score(seeds) if n == (len(whole), len(whole)) else (NAN, NAN)
            return OnTask(task, first.headline, first.maximum, n, len(whole), 0, points, why), None
        return self._test(task, seeds, aligned, n)

    def _data(self, task: str) -> str:
        data = [side.cells[task][0].cell.data_fingerprint[:SHORT] for side in self.sides]
        return f"data {data[0]}" if data[0] == data[1] else f"data {data[0]} and {data[1]}"

    # -------------------------------------------------------------------------------------------------- the numbers

    def _test(
        self, task: str, seeds: Sequence[Sequence[SealedCell]], aligned: Sequence[Sequence[_Table]], n: tuple[int, int]
    ) -> tuple[OnTask, _Shared]:
        one, other = self.sides
        first, table = seeds[0][0], aligned[0][0]
        units = _units(first.metric, table)
        images = units.counts.shape[1]
        draws = self.kept.draws(images, zlib.crc32(task.encode()))
        unit, ahead = 100.0 if first.maximum == 1 else 1.0, first.metric.ahead
        # the seeds of two sides are drawn apart, also where both have one name
        names = one.line.name, other.line.name + (" of the other side" if other.line.name == one.line.name else "")
        points, drawn = [], []
        for mine, name in zip(aligned, names, strict=True):
            metrics = [units.clustered(t.score) for t in mine]
            points.append(mean([m.point for m in metrics]))
            stacked = stats.resample_together(metrics, draws) if images >= stats.FEW else np.zeros((1, 0))
            drawn.append(stats.over_seeds(stacked, zlib.crc32(name.encode())))
        unlike = units.clustered(table.score).unlike()
        numbers = tested(
            [ahead * t.score for t in aligned[0]],
            [ahead * t.score for t in aligned[1]],
            lambda: unit * ahead * (drawn[0] - drawn[1]),
            images,
            unit * unlike,
        )
        low, high, better, worse, p = numbers
        self.comparisons[task] = Comparison(
            one.line.budget,
            one.label,
            task,
            other.label,
            len(table.score),
            images,
            unit * ahead * (points[0] - points[1]),
            low,
            high,
            better,
            worse,
            p,
            NAN,
            SAME,
        )
        self.flips += _flips(task, aligned[0][0], aligned[1][0], ahead)
        on = OnTask(
            task, first.headline, first.maximum, n, len(table.score), images, (points[0], points[1]), untested=""
        )
        bases = tuple(self._base(side, task, table, units, draws) for side in self.sides)
        return on, _Shared((drawn[0], drawn[1]), (points[0], points[1]), bases, unlike, len(table.score), images)

    def _base(
        self, side: Side, task: str, table: _Table, units: stats.Units, draws: NDArray[Any]
    ) -> tuple[NDArray[np.float64], float] | None:
        """Resamples and point of a side's unpruned cell on the common questions."""
        base = baseline(side.cells[task][0], side.folder.known)
        read = self.reader(base) if base else None
        if base is None or read is None or units.counts.shape[1] < stats.FEW:
            return None
        keys = read.columns["key"].astype(str)
        rows = np.searchsorted(keys, table.columns["key"].astype(str)).clip(max=len(keys) - 1)
        if (keys[rows] != table.columns["key"].astype(str)).any():
            return None
        metric = units.clustered(read.score[rows])
        return stats.resample_together([metric], draws)[0], metric.point

    def _average(self, found: Sequence[OnTask], shared: Mapping[str, _Shared]) -> None:
        """The difference of Avg % over the tasks, where each has an unpruned cell on both sides.

        The average of one task is that task, with its test, unless the sides have unpruned cells of other scores.
        """
        missing = sorted({on.task for on in found} - set(shared))
        missing += sorted(t for t, s in shared.items() if s.images < stats.FEW)
        bare = sorted(t for t, s in shared.items() if s.images >= stats.FEW and not all(s.bases))
        if missing or bare:
            why = [f"{', '.join(missing)}: no test, or fewer than {stats.FEW} images"] if missing else []
            why += [f"{', '.join(bare)}: no unpruned cell of the same questions"] if bare else []
            self.notes.append(f"Avg % is not compared ({'; '.join(why)})")
            return
        percents = []
        for which in (0, 1):
            parts, point = [], []
            for task in shared.values():
                base = task.bases[which]
                assert base is not None
                if not (base[0] > 0).all():
                    self.notes.append("Avg % is not compared: the unpruned model scores 0 in a draw of images")
                    return
                parts.append(100.0 * task.drawn[which] / base[0])
                point.append(100.0 * task.points[which] / base[1])
            percents.append((np.asarray(np.mean(parts, axis=0), dtype=np.float64), mean(point)))
        if len(found) == 1 and _one_base(shared[found[0].task]):
            on = found[0]
            unpruned = shared[on.task].bases[0]
            assert unpruned is not None
            self.comparisons[AVERAGE] = in_percent(self.comparisons[on.task], unpruned[1], on.maximum)
            return
        (mine, here), (theirs, there) = percents
        low, high = ends_of(
            mine - theirs, lambda: [100.0 * s.unlike / s.bases[0][1] for s in shared.values() if s.bases[0]]
        )
        one, other = self.sides
        sizes = sum(s.n for s in shared.values()), sum(s.images for s in shared.values())
        self.comparisons[AVERAGE] = Comparison(
            one.line.budget,
            one.label,
            AVERAGE,
            other.label,
            *sizes,
            here - there,
            low,
            high,
            NAN,
            NAN,
            stats.bootstrap_p(mine - theirs),
            NAN,
            SAME,
        )


def _percents(shared: Iterable[_Shared]) -> tuple[float, float]:
    """Avg % of both sides over these tasks, each of which has unpruned cells."""
    each = [(task.points, [base[1] if base else NAN for base in task.bases]) for task in shared]
    one, other = (mean([100.0 * points[which] / bases[which] for points, bases in each]) for which in (0, 1))
    return one, other


def _one_base(task: _Shared) -> bool:
    """Whether both sides are shares of equal unpruned scores: then a task says the same of both shares."""
    one, other = task.bases
    return one is not None and other is not None and np.array_equal(one[0], other[0]) and one[1] == other[1]


def _units(metric: Metric, table: _Table) -> stats.Units:
    c = table.columns
    return stats.units(metric, c["image"].tolist(), c["category"].tolist(), c["question_id"].astype(str).tolist())


def _whole_units(metric: Metric, table: _Table) -> NDArray[np.int64]:
    """The rows of whole units: all, but of an MME sum those whose pair is there."""
    if metric.kind != "mme":
        return np.arange(len(table.score))
    pairs = Counter(zip(table.columns["category"], table.columns["question_id"], strict=True))
    both = [pairs[pair] == 2 for pair in zip(table.columns["category"], table.columns["question_id"], strict=True)]
    return np.flatnonzero(both)


def _no_scores(sealed: SealedCell, table: _Table) -> str:
    """Why the questions' scores say nothing of the metric; "" where they make it up."""
    if not sealed.metric.tested or np.isnan(table.score).any():
        return f"{sealed.headline} is computed over all answers, and its questions have no scores of their own"
    metric = _units(sealed.metric, table).clustered(table.score)
    if not math.isclose(metric.point, sealed.score, abs_tol=1e-6 * sealed.maximum):
        return f"{sealed.headline} is no mean of its questions' scores"
    return ""


def _mean_score(seeds: Sequence[Sequence[SealedCell]]) -> tuple[float, float]:
    one, other = (mean([s.score for s in mine]) for mine in seeds)
    return one, other


def _flips(task: str, one: _Table, other: _Table, ahead: float) -> Iterable[FlippedAnswer]:
    """The questions with unequal scores, by key."""
    for i in np.flatnonzero(np.abs(one.score - other.score) > stats.TINY):
        c = {name: str(column[i]) for name, column in one.columns.items()}
        answers = str(one.columns["answer"][i]), str(other.columns["answer"][i])
        scores = float(one.score[i]), float(other.score[i])
        yield FlippedAnswer(
            task, c["key"], c["image"], c["question"], c["target"], answers, scores, ahead * (scores[0] - scores[1]) > 0
        )
