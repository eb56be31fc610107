"""What two models have in common: sections of cells, tasks, pairs of budgets, and methods with the same settings.

For harness/tables/rankings.py. Whatever is left out is listed with its reason. Reads cell.json only.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from harness.core import stats
from harness.core.errors import PrunebenchError, unknown
from harness.core.spelling import command, given
from harness.store.sealed import SealedCell
from harness.tables.sections import (
    FOLLOW_UP,
    NAN,
    Block,
    Line,
    Section,
    budget_order,
    mean,
    settings,
    variant_of,
)
from harness.tables.sides import DIGESTS, FIELDS

TOLERANCE = 1.25
"""Budgets are paired where one keeps at most this many times the share of the other."""
FEWEST = 3
"""Methods below which a ranking is none."""
SETTINGS = ("weights", "stands_for", "dtype", "device", "kernel", "processing", "numerics", "limit")
"""What tells two ways of asking a model apart, and may be named behind it."""
_WORDS = re.compile(r"(?P<model>.*?)(?::(?P<settings>[a-z_]+=.*))?", re.DOTALL)


class AskedModel(NamedTuple):
    """A model, as it was asked."""

    text: str
    section: Section
    note: str
    """Which of several sets of questions was taken; "" for the only one."""


Both = tuple[AskedModel, AskedModel]


class BudgetPair(NamedTuple):
    """A budget of each model, and the share of visual tokens, 0..1, that the median method kept there."""

    budgets: tuple[str, str]
    shares: tuple[float, float]

    @property
    def label(self) -> str:
        return " | ".join(self.budgets)

    @property
    def ratio(self) -> float:
        """How many times the smaller share the larger one is."""
        return max(self.shares) / min(self.shares)


class Left(NamedTuple):
    """What did not enter."""

    where: str
    """A pair of budgets, or "" for all of them."""
    what: str
    why: str


def read_side(text: str, arranged: Sequence[Section]) -> AskedModel:
    """The section of a model, as in `mini` or `mini:dtype=bfloat16`: full runs before tries, then most questions.

    Raises PrunebenchError for a model or setting that no cells have, and where several ways of asking answer.
    """
    found = _WORDS.fullmatch(text.strip())
    assert found is not None  # it matches any text
    model, asked = found["model"], _settings(text, found["settings"] or "")
    there = [s for s in arranged if FOLLOW_UP not in s.facts]
    of = [s for s in there if s.model == model and any(c.cell.method != "none" for c in s.cells)]
    if not of:
        pruned = {s.model for s in there if any(c.cell.method != "none" for c in s.cells)}
        raise unknown("model with pruned cells", model, pruned)
    chosen = [s for s in of if all(_says(s.cells[0], name, value) for name, value in asked.items())]
    full = [s for s in chosen if not s.limit] or chosen
    if not full:
        raise PrunebenchError(f"model {text!r}: expected a way of asking that was measured: {_ways(of)}; found none so")
    ways = {tuple(FIELDS[name](s.cells[0]) for name in SETTINGS if name != "limit") for s in full}
    if len(ways) > 1:
        raise PrunebenchError(f"model {text!r}: expected one way of asking, found {len(ways)}: write {_ways(full)}")
    one = max(full, key=lambda s: s.questions)  # of equals the first: the one that was measured last
    note = f"{text}: {len(full)} sets of questions; the one with most, {one.questions:,}, is here"
    return AskedModel(text.strip(), one, note if len(full) > 1 else "")


# ------------------------------------------------------------------------------------------------- models and budgets


def _settings(text: str, words: str) -> dict[str, str]:
    found = {}
    for part in filter(None, words.split(",")):
        name, _, value = part.partition("=")
        if name not in SETTINGS or not value:
            raise PrunebenchError(
                f"model {text!r}: expected settings such as dtype=bfloat16, of {', '.join(SETTINGS)}; found {part!r}"
            )
        found[name] = value
    return found


def _says(sealed: SealedCell, name: str, value: str) -> bool:
    mine = FIELDS[name](sealed)
    return mine.startswith(value) if name in DIGESTS else mine == value


def _ways(of: Sequence[Section]) -> str:
    """The sections of a model by what tells them apart."""
    said = [{name: FIELDS[name](s.cells[0]) for name in SETTINGS} for s in of]
    telling = [name for name in SETTINGS if len({one[name] for one in said}) > 1]
    ways = [
        f"{s.model}:" + ",".join(f"{name}={one[name]}" for name in telling) for s, one in zip(of, said, strict=True)
    ]
    return " or ".join(dict.fromkeys(ways)) if telling else of[0].model


def shared_tasks(sides: Both, only: Sequence[str], left: list[Left]) -> list[str]:
    """The tasks that both models have and that can be ranked; the others go into `left`."""
    first, second = (side.section for side in sides)
    for task in only:
        for side in sides:
            if task not in side.section.tasks:
                raise PrunebenchError(f"{side.text}: {unknown('task', task, side.section.tasks)}")
    shared = []
    for task in sorted({*first.tasks, *second.tasks}):
        if only and task not in only:
            continue
        lacking = [side.text for side in sides if task not in side.section.tasks]
        if lacking:
            left.append(Left("", task, f"not measured on {lacking[0]}"))
            continue
        one, other = first.of_task(task), second.of_task(task)
        if one.headline != other.headline:
            left.append(Left("", task, f"other metrics, {one.headline} and {other.headline}"))
        elif not one.metric.higher_is_better:
            left.append(Left("", task, "lower is better, and a share of errors is no share of what is kept"))
        elif not one.metric.tested:
            left.append(Left("", task, "its metric is of all answers at once, which no draw of images repeats"))
        else:
            shared.append(task)
    if not shared:
        why = "; ".join(f"{one.what}: {one.why}" for one in left)
        raise PrunebenchError(
            f"{sides[0].text} and {sides[1].text}: expected a task that both models were measured on, found none: {why}"
        )
    return shared


def check_unpruned(sides: Both, tasks: Sequence[str]) -> None:
    """Raise PrunebenchError where a model has no unpruned cell of a task, or one that scores 0."""
    for side in sides:
        lacking = [task for task in tasks if side.section.baseline(task) is None]
        if lacking:
            asked = side.section.cells[0].asked
            measure = command("eval", method="none", model=asked.model, tasks=",".join(lacking), limit=asked.limit)
            raise PrunebenchError(
                f"{side.text}: expected cells of the unpruned model on {', '.join(lacking)}, found none: `{measure}`"
                f" measures them, and {given('tasks')} leaves tasks out"
            )
        for task in tasks:
            base = side.section.baseline(task)
            if base is not None and base.score <= 0:
                raise PrunebenchError(
                    f"{side.text}: expected an unpruned score above 0 on {task}, found {base.score:g}, of which there"
                    f" are no percents: leave the task out ({given('tasks')})"
                )


def _share(line: Line, section: Section, tasks: Sequence[str]) -> float:
    """The share of the unpruned model's visual tokens that a line kept, over seeds, then over those of the tasks that
    it has; NaN where a cell has no such cost."""
    found = []
    for task in tasks:
        base = section.baseline(task)
        if base is not None and task in line.cells:
            whole = base.costs.get("kept", NAN)
            found.append(mean([s.costs.get("kept", NAN) for s in line.cells[task]]) / whole if whole else NAN)
    return mean(found)


def _blocks(section: Section) -> dict[str, Block]:
    """The blocks whose budget is a number or share of kept tokens."""
    return {block.budget: block for block in section.blocks() if budget_order(block.budget)[0] in (1, 2)}


def shares_of(section: Section, tasks: Sequence[str]) -> dict[str, float]:
    """budget -> the share that the median line kept, of budgets that count kept tokens."""
    found = {}
    for budget, block in _blocks(section).items():
        known = [share for line in block.lines if (share := _share(line, section, tasks)) > 0]
        if known:
            found[budget] = statistics.median(known)
    return found


def paired(
    sides: Both,
    shares: tuple[Mapping[str, float], Mapping[str, float]],
    tolerance: float,
    left: list[Left],
) -> list[BudgetPair]:
    """The budgets of both models whose shares are nearest, each in one pair at most, most tokens first; those without
    a partner go into `left`. Raises PrunebenchError where none pair."""
    near = sorted(
        (round(BudgetPair((one, other), (mine, theirs)).ratio, 9), i, j, BudgetPair((one, other), (mine, theirs)))
        for i, (one, mine) in enumerate(shares[0].items())
        for j, (other, theirs) in enumerate(shares[1].items())
    )
    found: list[BudgetPair] = []
    for ratio, _, _, pair in near:
        free = all(pair.budgets[k] not in {other.budgets[k] for other in found} for k in (0, 1))
        if free and ratio <= tolerance:
            found.append(pair)
    alone = []
    for k, side in enumerate(sides):
        for budget, share in shares[k].items():
            mine = [pair for _, _, _, pair in near if pair.budgets[k] == budget]
            if budget in {pair.budgets[k] for pair in found}:
                continue
            nearest = mine[0] if mine else None
            why = f"keeps {100 * share:.1f} % of the tokens"
            if nearest is not None:
                other = nearest.budgets[1 - k]
                why += f"; {other} of {sides[1 - k].text} keeps {100 * nearest.shares[1 - k]:.1f} %"
                near_enough = nearest.ratio <= tolerance
                why += " and has a nearer partner" if near_enough else f", a ratio of {nearest.ratio:.2f}"
            alone.append(Left("", f"{side.text} at {budget}", why))
    if not found:
        there = "; ".join(f"{one.what} {one.why}" for one in alone) or "neither model has a budget of kept tokens"
        raise PrunebenchError(
            f"{sides[0].text} and {sides[1].text}: expected budgets whose shares of kept tokens differ by a ratio of at"
            f" most {tolerance:g}, found none: {there}; {given('tolerance', 1.5)} or {given('pairs', '128=25%')} pairs"
            " others"
        )
    left += alone
    return sorted(found, key=lambda pair: (-pair.shares[0], pair.budgets))


def given_pairs(
    sides: Both,
    pairs: Sequence[tuple[str, str]],
    shares: tuple[Mapping[str, float], Mapping[str, float]],
) -> list[BudgetPair]:
    """The pairs that a user named. Raises PrunebenchError for a budget that a model was not measured at, and for one
    that is named twice."""
    for k, side in enumerate(sides):
        for budget in (pair[k] for pair in pairs):
            if budget not in shares[k]:
                there = ", ".join(f"{name} ({100 * share:.1f} %)" for name, share in shares[k].items()) or "none"
                raise PrunebenchError(
                    f"{given('pairs')}: expected a budget of kept tokens that {side.text} was measured at ({there}),"
                    f" found {budget}"
                )
            if [pair[k] for pair in pairs].count(budget) > 1:
                raise PrunebenchError(
                    f"{given('pairs')}: {budget} of {side.text} is given twice: give each budget once"
                )
    found = [BudgetPair((one, other), (shares[0][one], shares[1][other])) for one, other in pairs]
    return sorted(found, key=lambda pair: (-pair.shares[0], pair.budgets))


# ------------------------------------------------------------------------------------------------- methods in both


def members_of(
    sides: Both, pair: BudgetPair, tasks: Sequence[str], tolerance: float, left: list[Left]
) -> list[tuple[Line, Line]]:
    """The lines that enter a pair, by name; empty where they are too few. The others go into `left`."""
    blocks = [_blocks(side.section)[budget] for side, budget in zip(sides, pair.budgets, strict=True)]
    found: list[tuple[Line, Line]] = []
    for method in sorted({line.method for block in blocks for line in block.lines}):
        first, second = ([line for line in block.lines if line.method == method] for block in blocks)
        for line, other in _matched(sides, pair, first, second, left):
            why = _why_not(sides, pair, (line, other), tasks, tolerance)
            if why:
                left.append(Left(pair.label, name_of(sides, line, other), why))
            else:
                found.append((line, other))
    if len(found) < FEWEST:
        left.append(Left(pair.label, f"{len(found)} methods", f"fewer than {FEWEST} make no ranking"))
        return []
    return found


def _matched(
    sides: Both,
    pair: BudgetPair,
    first: Sequence[Line],
    second: Sequence[Line],
    left: list[Left],
) -> list[tuple[Line, Line]]:
    """The lines of one method with the same settings in both models: of all knobs that tell lines apart in either, but
    for the budget's own."""
    lines = [*first, *second]
    own = frozenset[str]().union(*(line.budget_knobs for line in lines))
    names = sorted({name for line in lines for name in line.split} - own - {"method_source"})

    def value(line: Line) -> tuple[object, ...]:
        cells = [s for seeds in line.cells.values() for s in seeds]
        return line.positions, *sorted(
            {(s.cell.method_source, variant_of(s), settings(s, names)) for s in cells}
        )  # knobs may be solved for each task

    found, rest = [], list(second)
    for line in first:
        like = next((other for other in rest if value(other) == value(line)), None)
        if like is not None:
            rest.remove(like)
            found.append((line, like))
    for k, alone, others in (
        (0, [line for line in first if all(line is not one for one, _ in found)], second),
        (1, rest, first),
    ):
        other = sides[1 - k]
        called = ", ".join(other.section.line_name(line) for line in others)
        why = f"{other.text} has other settings of it: {called}" if others else f"not measured on {other.text}"
        left += [Left(pair.label, sides[k].section.line_name(line), why) for line in alone]
    return found


def _why_not(
    sides: Both,
    pair: BudgetPair,
    lines: tuple[Line, Line],
    tasks: Sequence[str],
    tolerance: float,
) -> str:
    """Why two lines do not enter a pair; "" where they do."""
    for side, line in zip(sides, lines, strict=True):
        lacking = [task for task in tasks if task not in line.cells]
        if lacking:
            return f"{side.text} has no cells of {', '.join(lacking)}"
    shares = [_share(line, side.section, tasks) for side, line in zip(sides, lines, strict=True)]
    if not all(share > 0 for share in shares):
        return "the cells do not say how many tokens were kept"
    # as unlike as the pair itself is, or a little more
    apart = abs(math.log(shares[0] / shares[1]) - math.log(pair.shares[0] / pair.shares[1]))
    if apart > math.log(tolerance) + stats.TINY:
        kept = [f"{100 * share:.1f} % on {side.text}" for side, share in zip(sides, shares, strict=True)]
        return f"keeps {' and '.join(kept)}, which is no equal share"
    return ""


def name_of(sides: Both, line: Line, other: Line) -> str:
    """What a method is called: the name that says more, of equals the first model's."""
    return max(sides[0].section.line_name(line), sides[1].section.line_name(other), key=len)
