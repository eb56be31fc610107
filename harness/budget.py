"""Budgets with units: what "64" means, spelt out, and the solver that turns a mean or a cost into a count. No torch.

    64          kept: 64 visual tokens after the method's selection (default unit)
    64avg       mean visual tokens per decoder layer is 64; solved for `keep`
    0.35flops   dense prefill FLOPs are 0.35 of the unpruned prefill's, at the task's mean text length; solved for `keep`
    native      the method's published defaults
    calibrated  knobs derived for this model (configs/<method>/<model>.yaml)
    none        no pruning (the baseline)

`avg` and `flops` are solved on the schedule that a method states before it runs (`Method.plan`), by bisection: the nearest
whole token, so the result is off by at most half of what one token is worth.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from harness import flops
from harness.errors import PrunebenchError, unknown
from harness.shape import ModelShape

UNITS = ("avg", "flops")
WORDS = ("native", "calibrated", "none")
_SPELT = (
    "expected 64 (visual tokens kept), 64avg (mean visual tokens per layer), 0.35flops (share of the unpruned prefill's FLOPs), "
    "native, calibrated or none"
)


@dataclass(frozen=True)
class Budget:
    """`tokens` is set where the unit is "kept" or "avg", `ratio` in (0, 1] where it is "flops"."""

    unit: Literal["kept", "avg", "flops", "native", "calibrated", "none"]
    tokens: int | None = None
    ratio: float | None = None

    def __str__(self) -> str:
        if self.unit == "kept":
            return str(self.tokens)
        if self.unit == "avg":
            return f"{self.tokens}avg"
        if self.unit == "flops":
            return f"{self.ratio!r}flops".replace(".0flops", "flops")
        return self.unit


NONE = Budget("none")


def parse(text: str | int | None) -> Budget:
    """Read a budget as a user writes it. Raises PrunebenchError for 0, negative, nan, fractions of a token and unknown units."""
    if text is None:
        return NONE
    word = str(text).strip().lower()
    for unit in ("native", "calibrated"):
        if word == unit:
            return Budget(unit)
    if word == "none":
        return NONE
    if word in ("nan", "inf", "-inf", "infinity"):
        raise PrunebenchError(f"budget {text!r} is not a number of tokens; {_SPELT}")
    found = re.fullmatch(r"([+-]?(?:\d+\.?\d*|\.\d+))(.*)", word)
    if found is None:
        raise PrunebenchError(f"budget {text!r}: {unknown('budget', word, WORDS)}; {_SPELT}")
    number, unit = found[1], found[2]
    if unit == "flops":
        ratio = float(number)
        if not 0 < ratio <= 1:
            share = "a share of the unpruned FLOPs above 0 and at most 1, as in 0.35flops"
            raise PrunebenchError(f"budget {text!r}: expected {share}; found {number}")
        return Budget("flops", ratio=ratio)
    if unit not in ("", "avg"):
        raise PrunebenchError(f"budget {text!r}: {unknown('unit', unit, UNITS)}; {_SPELT}")
    if not re.fullmatch(r"[+-]?\d+", number):
        raise PrunebenchError(f"budget {text!r} is not a whole number of tokens; {_SPELT}")
    tokens = int(number)
    if tokens < 1:
        raise PrunebenchError(f"budget {text!r} keeps no visual token: expected at least 1; {_SPELT}")
    return Budget("avg" if unit else "kept", tokens)


class Scheduled(Protocol):
    """A method that can say what it will do, see `harness.method.Method`."""

    def plan(self, shape: ModelShape, n_text: int) -> Sequence[int] | None: ...

    def plan_scoring(self, shape: ModelShape, n_text: int, visual: Sequence[int]) -> int | None: ...


class Cost(NamedTuple):
    """What a schedule costs: visual tokens in the last layer and per layer; dense prefill FLOPs, absolute and of the unpruned."""

    kept: int
    mean_visual: float
    prefill_flops: int
    ratio: float


def cost(plan: Sequence[int], shape: ModelShape, n_text: int, scoring: int = 0) -> Cost:
    """The cost of a schedule (visual tokens entering each layer) for one image and `n_text` text tokens; `scoring` in FLOPs."""
    spent = sum(flops.layer(shape, visual + n_text) for visual in plan) + scoring
    unpruned = flops.prefill_unpruned(shape, shape.n_visual + n_text)
    return Cost(plan[-1], sum(plan) / len(plan), spent, spent / unpruned)


def cost_of(method: Scheduled, shape: ModelShape, n_text: int) -> Cost | None:
    """The cost of a method's own schedule, scoring included; None where the prompt decides."""
    plan = method.plan(shape, n_text)
    return None if plan is None else cost(plan, shape, n_text, method.plan_scoring(shape, n_text, plan) or 0)


def solve(budget: Budget, at: Callable[[int], Scheduled], shape: ModelShape, n_text: int | None, label: str) -> int:
    """The `keep` with which `at(keep)` comes nearest to an `avg` or `flops` budget; the smaller one of two as near.

    `at` or its plan may raise PrunebenchError for counts that the method cannot keep, below some count. `label` names the method
    in errors. Raises PrunebenchError where the prompt decides the schedule, and where the budget is out of reach, with what is in
    reach.
    """
    if budget.unit == "flops" and n_text is None:
        raise PrunebenchError(
            f"BUDGET={budget} is solved at a task's mean text length, and no task is known here: "
            "use `prunebench eval`, or give a number of tokens (BUDGET=64 or BUDGET=64avg)"
        )
    average, text, highest = budget.unit == "avg", n_text or 0, shape.n_visual
    if cost_of(at(highest), shape, text) is None:
        raise PrunebenchError(
            f"{label.split()[0]} does not say before it runs how many tokens each layer will see (it has no plan(), or the prompt decides), so "
            f"BUDGET={budget} cannot be solved: give the number of tokens to keep (BUDGET=64)"
        )

    def value(keep: int) -> float:
        found = cost_of(at(keep), shape, text)
        assert found is not None
        return found.mean_visual if average else found.ratio

    target = float((budget.tokens if average else budget.ratio) or 0)
    least = lowest(at, shape)
    low, high = value(least), value(highest)
    if low <= target <= high:
        above = _first(lambda keep: value(keep) >= target, least, highest)
        below = max(above - 1, least)
        return below if target - value(below) <= value(above) - target else above

    n, depth = shape.n_visual, shape.depth
    digits, step = (1, 1) if average else (3, 1000)
    asked = f"cost {target:g} of the unpruned FLOPs at {text} text tokens"
    if average:
        asked = f"average {budget.tokens} of {n} tokens"
    if low == high:
        raise PrunebenchError(
            f"{label} cannot {asked}: whatever it keeps it {'averages' if average else 'costs'} {high:.{digits}f}; "
            "give the number of tokens to keep (BUDGET=64)"
        )
    # what the layers before the first selection cost cannot be saved by keeping less
    plan = at(least).plan(shape, text) or ()
    n_full = next((i for i, visual in enumerate(plan) if visual < n), depth)
    fixed = cost([n] * n_full + [0] * (depth - n_full), shape, text)
    floor = fixed.mean_visual if average else fixed.ratio
    why = f"its floor is {floor:.{digits}f}" + (f" ({n_full} of {depth} layers see all {n})" if n_full else "")
    spelt = [f"{number / step:g}{budget.unit}" for number in (math.ceil(low * step), math.floor(high * step))]
    raise PrunebenchError(
        f"{label} cannot {asked}: {why}; keeping {least} to {n} tokens it reaches {low:.{digits}f} to {high:.{digits}f}: "
        f"give BUDGET={spelt[0]} to {spelt[1]}, or the number of tokens to keep (BUDGET={least} to {n})"
    )


def lowest(at: Callable[[int], Scheduled], shape: ModelShape) -> int:
    """The fewest tokens that a method can keep: the smallest `keep` whose schedule does not raise PrunebenchError."""

    def possible(keep: int) -> bool:
        try:
            at(keep).plan(shape, 0)
        except PrunebenchError:
            return False
        return True

    return _first(possible, 1, shape.n_visual)


def _first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The smallest number in [low, high] for which a monotone predicate holds; `high` where it holds for none below."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high
