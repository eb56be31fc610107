"""Which sealed cells may stand side by side: sections of one protocol and one set of questions, blocks of one budget,
lines of one method.

Everything that compares (tables, significance, figures) takes its cells from here, so nothing is ever compared across
models, data, numbers of questions, dtypes or devices. Reads cell.json only.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

from harness.core.cell import Cell, canonical_json
from harness.core.costs import request_flops, with_tower
from harness.store.sealed import SealedCell

NAN = float("nan")
#: characters of a fingerprint that tell two models of one name apart
SHORT = 6
#: questions about an image that a request's amortised cost is given for, as GQA's balanced split has
QUESTIONS = 6
#: of a section whose questions were asked behind the first one about their image
FOLLOW_UP = "follow-up questions"


@dataclass(frozen=True)
class Line:
    """A method at a budget, with its cells per task, one for each seed."""

    method: str
    name: str
    """The method, and what tells its lines apart."""
    budget: str
    positions: str
    split: Mapping[str, str]
    """The knobs that tell lines of this method apart in its block, with their values as JSON."""
    cells: Mapping[str, Sequence[SealedCell]]

    @property
    def label(self) -> str:
        """The name, and the number of seeds where it is not one."""
        return self.name if self.seeds == "1" else f"{self.name} ({self.seeds} seeds)"

    @property
    def seeds(self) -> str:
        """ "5", or "1 to 5" where tasks have unequally many."""
        numbers = sorted({len(seeds) for seeds in self.cells.values()})
        return " to ".join(str(n) for n in dict.fromkeys((numbers[0], numbers[-1])))

    @property
    def budget_knobs(self) -> frozenset[str]:
        """The knobs that a budget sets."""
        return frozenset(
            name for seeds in self.cells.values() for sealed in seeds for name in sealed.method_info["budget_knobs"]
        )

    def mean(self, value: Callable[[SealedCell], float]) -> float:
        """Over seeds, then over tasks."""
        return mean([mean([value(sealed) for sealed in seeds]) for seeds in self.cells.values()])


@dataclass(frozen=True)
class Block:
    """The lines of one asked budget."""

    budget: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class Series:
    """One setting of a method over budgets: what is a row of an overview and a curve of a figure."""

    method: str
    name: str
    """The method, and what tells its settings apart."""
    label: str
    """The name, and the number of seeds where it is not one."""
    variant: int
    """0 for the setting of the method with most budgets, 1 for the next, ..."""
    lines: Sequence[Line]


@dataclass(frozen=True)
class Section:
    """Cells that may stand in one table: same model, weights, prompt, dtype, device and numerics, one set of questions
    per task."""

    model: str
    facts: Sequence[str]
    """What they share, for people; the model first."""
    cells: Sequence[SealedCell]
    known: Mapping[str, SealedCell]
    """Every cell there is, by identity: where baselines are looked up."""
    weights: str = ""
    """The beginning of the model's fingerprint, where another model has its name."""

    @property
    def title(self) -> str:
        return ", ".join(self.facts)

    @property
    def limit(self) -> str:
        """The LIMIT that cut the questions of a try; "" for a full run."""
        return self.cells[0].limit

    @property
    def questions(self) -> int:
        """Of all tasks together."""
        return sum(self.of_task(task).cell.n_samples for task in self.tasks)

    @property
    def short(self) -> list[str]:
        """Model, dtype, device, and which questions: a heading, or the name of a file."""
        cell = self.cells[0].cell
        questions = [fact for fact in self.facts if fact.startswith(("LIMIT=", "set of questions", FOLLOW_UP))]
        name = f"{self.model} {self.weights}".strip()
        return [name, cell.dtype, cell.device_type, *questions]

    @cached_property
    def tasks(self) -> list[str]:
        return sorted(self._of_task)

    @cached_property
    def averaged(self) -> list[str]:
        """The tasks that Avg % is over: where higher is better, for a share of errors is no share of what is kept."""
        return [task for task in self.tasks if self.of_task(task).metric.higher_is_better]

    def of_task(self, task: str) -> SealedCell:
        """Any cell of the task: headline, maximum and number of questions are the same in all."""
        return self._of_task[task]

    @cached_property
    def _of_task(self) -> dict[str, SealedCell]:
        return {sealed.cell.task: sealed for sealed in reversed(self.cells)}

    def blocks(self) -> Sequence[Block]:
        """One per budget, in the order people read them."""
        return self._blocks

    @cached_property
    def _blocks(self) -> list[Block]:
        budgets = sorted({sealed.cell.budget for sealed in self.cells}, key=budget_order)
        codes: defaultdict[str, set[str]] = defaultdict(set)
        at: defaultdict[str, list[SealedCell]] = defaultdict(list)
        for sealed in self.cells:
            codes[sealed.cell.method].add(sealed.cell.method_source)
            at[sealed.cell.budget].append(sealed)
        several = {method for method, found in codes.items() if len(found) > 1}
        return [Block(budget, lines(at[budget], budget, several)) for budget in budgets]

    def series(self) -> list[Series]:
        """The lines strung together over budgets: same method, positions and knobs wherever a block had to name them.

        Knobs that are a budget's own number (`keep`) differ from budget to budget and string nothing apart: each cell
        says which they are.
        """
        members = [line for block in self.blocks() for line in block.lines]
        named: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        for line in members:
            named[line.method, line.positions].update(line.split)
        strung: defaultdict[tuple[str, str, str], list[Line]] = defaultdict(list)
        for line in members:
            names = sorted(named[line.method, line.positions] - line.budget_knobs)
            words = [f"{name}={_setting(line, name)}" for name in names]
            strung[
                line.method, "" if line.positions == "method" else f"positions={line.positions}", " ".join(words)
            ].append(line)
        found: list[Series] = []
        for (method, positions, knobs), same in sorted(strung.items()):
            seeds = sorted({line.seeds for line in same} - {"1"})
            name = " ".join(filter(None, [method, positions, knobs])).replace("|", "/")
            found.append(Series(method, name, f"{name} ({', '.join(seeds)} seeds)" if seeds else name, 0, same))
        most = sorted(found, key=lambda s: (-len(s.lines), s.label))
        return [
            replace(s, variant=[other.label for other in most if other.method == s.method].index(s.label))
            for s in found
        ]

    def line_name(self, line: Line) -> str:
        """A line of `blocks` as its series is called, so that it has one name over all budgets; by its own name where
        its series has two lines at a budget."""
        return self._line_names[id(line)]

    @cached_property
    def _line_names(self) -> dict[int, str]:
        names: dict[int, str] = {}
        for series in self.series():
            crowded = len({line.budget for line in series.lines}) < len(series.lines)
            names |= {id(line): line.name if crowded else series.name for line in series.lines}
        return names

    def baseline(self, task: str) -> SealedCell | None:
        """The unpruned cell of a task, if it was measured: same data, prompt, dtype, device, ..."""
        return self._baselines[task]

    @cached_property
    def _baselines(self) -> dict[str, SealedCell | None]:
        return {task: baseline(self.of_task(task), self.known) for task in self.tasks}


def _setting(line: Line, name: str) -> str:
    values = {settings(sealed, [name])[0] for seeds in line.cells.values() for sealed in seeds}
    return values.pop() if len(values) == 1 else "solved"


def distinct(cells: Iterable[SealedCell]) -> dict[str, SealedCell]:
    """Cells by identity in table order; of the same cell read from two folders, the first counts."""
    known: dict[str, SealedCell] = {}
    for sealed in cells:
        known.setdefault(sealed.identity, sealed)
    return dict(sorted(known.items(), key=lambda item: (_order(item[1].cell), item[0])))


def _order(cell: Cell) -> tuple[Any, ...]:
    return (
        cell.model,
        cell.task,
        budget_order(cell.budget),
        cell.method,
        cell.positions,
        cell.seed,
        canonical_json(cell.settings),
    )


def budget_order(budget: str) -> tuple[int, float, str]:
    """Sort key: none, then counts from large to small, shares of the tokens, averages, FLOPs shares, named budgets."""
    found = re.fullmatch(r"([0-9.]+)(|%|kept|avg|flops)(?:clamped)?", budget)
    if budget == "none" or not found:
        return (0 if budget == "none" else 5, 0.0, budget)
    number = float(found[1]) / (100 if found[2] == "%" else 1)
    return (1 + ("", "kept", "avg", "flops").index(found[2].replace("%", "kept")), -number, budget)


def baseline(sealed: SealedCell, known: Mapping[str, SealedCell]) -> SealedCell | None:
    """The unpruned cell to compare with: the one with the identity `cell.baseline().identity()`, or none at all."""
    return known.get(sealed.baseline_identity)


def sections(known: Mapping[str, SealedCell]) -> list[Section]:
    """The cells of `distinct` split into sections: full runs first, tries last.

    Within both, sections that compare something come before those of the unpruned model alone, and those with more
    questions before others. Where a task was measured on several sets of questions (other data, another code of the
    task), each set has a section of its own; they are numbered from the one that was measured last.
    """
    protocols: defaultdict[tuple[str, ...], list[SealedCell]] = defaultdict(list)
    for sealed in known.values():
        c = sealed.cell
        facts = [
            c.model,
            c.dtype,
            c.device_type,
            c.kernel,
            f"images by {sealed.images_by}",
            f"processing {c.processing}",
        ]
        facts += [f"as {c.stands_for}"] if c.stands_for not in ("", c.model) else []
        facts += [f"weights {c.model_fingerprint}", f"numerics {c.numerics_version}"]
        facts += [f"LIMIT={sealed.asked.limit or 'default'}"]
        facts += [FOLLOW_UP] if sealed.asked.follow_up else []
        protocols[tuple(facts)].append(sealed)
    prints: defaultdict[str, set[str]] = defaultdict(set)
    for sealed in known.values():
        prints[sealed.cell.model].add(sealed.cell.model_fingerprint)
    found: list[Section] = []
    for shared, members in sorted(protocols.items()):
        latest: dict[str, dict[tuple[Any, ...], str]] = {}  # task -> set of questions -> when it was last measured
        for sealed in members:
            seen = latest.setdefault(sealed.cell.task, {})
            started = str(sealed.provenance.get("started", ""))
            seen[_questions(sealed)] = max(started, seen.get(_questions(sealed), ""))
        rank = {
            (task, questions): position
            for task, seen in latest.items()
            for position, questions in enumerate(sorted(seen, key=lambda q: (seen[q], q), reverse=True))
        }
        for position in range(max(rank.values()) + 1):
            chosen = [s for s in members if rank[s.cell.task, _questions(s)] == position]
            again = [f"set of questions {position + 1}"] if position else []
            weights = chosen[0].cell.model_fingerprint[:SHORT] if len(prints[shared[0]]) > 1 else ""
            found.append(Section(shared[0], [*shared, *again], chosen, known, weights))
    alone = {id(section): all(s.cell.method == "none" for s in section.cells) for section in found}
    return sorted(found, key=lambda section: (bool(section.limit), alone[id(section)], -section.questions))


def _questions(sealed: SealedCell) -> tuple[Any, ...]:
    cell = sealed.cell
    stated = canonical_json(dict(sealed.stated)) if sealed.stated else ""
    return (cell.n_samples, cell.data_fingerprint, cell.max_new_tokens, cell.task_settings, sealed.headline, stated)


def lines(cells: Sequence[SealedCell], budget: str, several: Collection[str] = ()) -> list[Line]:
    """One line per method with all its seeds; positions and knobs split a method into several lines only where they
    must.

    The code of a method from elsewhere always does, and is named for the methods in `several`, which have more than
    one. So does a declared variant of a method (`Method.variant_knobs`), which is always named.
    """
    groups: defaultdict[tuple[Any, ...], list[SealedCell]] = defaultdict(list)
    for sealed in cells:
        cell = sealed.cell
        groups[cell.method, cell.positions, cell.method_source, variant_of(sealed)].append(sealed)
    found = []
    for (method, positions, source, variant), group in sorted(groups.items()):
        code = {**({"method_source": source} if method in several else {}), **dict(variant)}
        for by_knobs, same in _by_knobs(group, budget):
            split = {**code, **by_knobs}
            by_task: defaultdict[str, list[SealedCell]] = defaultdict(list)
            for sealed in same:
                by_task[sealed.cell.task].append(sealed)
            knobs = " ".join(f"{name}={value}" for name, value in split.items())
            parts = [method, "" if positions == "method" else f"positions={positions}", knobs]
            found.append(
                Line(method, " ".join(filter(None, parts)).replace("|", "/"), budget, positions, split, by_task)
            )
    return found


def variant_of(sealed: SealedCell) -> tuple[tuple[str, str], ...]:
    """The knobs that make a cell's method another one, with their values as JSON."""
    declared = sealed.method_info.get("variant_knobs", {})
    changed = sorted(name for name, usual in declared.items() if sealed.cell.knobs.get(name, usual) != usual)
    return tuple(zip(changed, settings(sealed, changed), strict=True))


def _by_knobs(cells: Sequence[SealedCell], budget: str) -> list[tuple[dict[str, str], list[SealedCell]]]:
    """The cells split so that no task has two settings of the knobs in one part; with each, the knobs that tell it
    apart.

    Knobs may differ by task within a part, so nothing is split unless a task has two settings. Then all knobs that
    differ split, but for a FLOPs budget only those that give the fewest parts: others are solved anew at each task's
    text length.
    """
    names = sorted({name for sealed in cells for name in sealed.cell.knobs})
    differing = tuple(name for name in names if len({settings(sealed, [name]) for sealed in cells}) > 1)
    sizes = range(len(differing) + 1) if budget.endswith("flops") else sorted({0, len(differing)})
    best: tuple[str, ...] = differing
    best_parts: Mapping[tuple[str, ...], list[SealedCell]] = {}
    for chosen in (option for size in sizes for option in combinations(differing, size)):
        parts: defaultdict[tuple[str, ...], list[SealedCell]] = defaultdict(list)
        for sealed in cells:
            parts[settings(sealed, chosen)].append(sealed)
        settled = all(
            len({(s.cell.task, settings(s, differing)) for s in part}) == len({s.cell.task for s in part})
            for part in parts.values()
        )
        # of equally few parts, the first with the most names: it says more
        if settled and (not best_parts or (len(parts), -len(chosen)) < (len(best_parts), -len(best))):
            best, best_parts = chosen, parts
    named = sorted(best_parts.items())
    return [(dict(zip(best, values, strict=True)), part) for values, part in named]


def settings(sealed: SealedCell, names: Iterable[str]) -> tuple[str, ...]:
    """The values of these knobs; a cell from before a knob existed is not one that set it to null."""
    cell = sealed.cell
    return tuple(
        (
            cell.method_source
            if name == "method_source"
            else canonical_json(cell.knobs[name])
            if name in cell.knobs
            else "unset"
        )
        for name in names
    )


def percent_of_unpruned(sealed: SealedCell, base: SealedCell | None) -> float:
    """The score over the unpruned score, in percent, above 100 for more errors where lower is better; NaN without
    one."""
    if base is None or base.headline != sealed.headline or base.score <= 0:
        return NAN
    return 100.0 * sealed.score / base.score


def percent_of_flops(sealed: SealedCell, base: SealedCell | None) -> float:
    """Dense prefill FLOPs over the unpruned ones, in percent; NaN without a baseline."""
    whole = base.costs.get("prefill_dense_flops", 0.0) if base else 0.0
    return 100.0 * sealed.costs.get("prefill_dense_flops", NAN) / whole if whole > 0 else NAN


def percent_with_tower(sealed: SealedCell, base: SealedCell | None) -> float:
    """FLOPs of tower, projector and dense prefill over the unpruned ones, in percent; NaN without a baseline."""
    whole = with_tower(base.costs) if base else 0.0
    return 100.0 * with_tower(sealed.costs) / whole if whole > 0 else NAN


def amortised_flops(sealed: SealedCell) -> float:
    """A request's FLOPs at `QUESTIONS` questions about an image; NaN for a method that reads the question, since its
    tokens are other ones for each."""
    return NAN if sealed.method_info.get("query_aware", True) else request_flops(sealed.costs, QUESTIONS)


def average(line: Line, section: Section) -> float:
    """Avg %: percent of unpruned, over seeds, then over the section's tasks where higher is better; NaN unless each of
    them and its baseline is there."""
    if any(task not in line.cells for task in section.averaged):
        return NAN
    percents = [
        [percent_of_unpruned(sealed, section.baseline(task)) for sealed in line.cells[task]]
        for task in section.averaged
    ]
    return mean([mean(seeds) for seeds in percents])


def mean(values: Sequence[float]) -> float:
    """NaN for no values, and as soon as one of them is."""
    return math.fsum(values) / len(values) if values else NAN
