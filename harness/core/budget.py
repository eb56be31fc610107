"""Budgets with units: what "64" means, spelt out, and the solver that turns a mean or a cost into a count. No torch.

    64          kept: 64 visual tokens after the method's selection (default unit)
    64clamped   the same, and all of a prompt that has fewer: for models whose images differ in tokens
    0.25kept    a share of each prompt's own visual tokens after the selection; also 25%; 100% means all
    64avg       mean visual tokens per decoder layer is 64; solved for `keep`
    0.25avg     the same as a share of the prompt's own visual tokens
    0.35flops   dense prefill FLOPs are 0.35 of the unpruned prefill's at the task's mean text; solved for `keep`
    native      the method's published defaults
    calibrated  knobs derived for this model (configs/<method>/<model>.yaml)
    none        no pruning (the baseline)

`avg` and `flops` are solved on the schedule that a method states before it runs (`Method.plan`), by bisection: the
nearest whole token, so the result is off by at most half of what one token is worth. Scoring that the prompt decides is
left out (`Method.known_scoring`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

from harness.core import flops
from harness.core.errors import PrunebenchError, unknown
from harness.core.shape import PromptShape, Share
from harness.core.spelling import given

UNITS = ("kept", "avg", "flops")
WORDS = ("native", "calibrated", "none")
_SPELT = (
    "expected 64 (visual tokens kept), 25% (share of a prompt's own), 64avg (mean visual tokens per layer), 0.35flops"
    " (share of the unpruned prefill's FLOPs), native, calibrated or none"
)


@dataclass(frozen=True)
class Budget:
    """`tokens`, a count or a share of each prompt's own, is set where the unit is "kept" or "avg", `ratio` in (0, 1]
    where it is "flops". `clamp`: a count of "kept" is at most a prompt's own tokens."""

    unit: Literal["kept", "avg", "flops", "native", "calibrated", "none"]
    tokens: int | Share | None = None
    ratio: float | None = None
    clamp: bool = False

    def __str__(self) -> str:
        if self.unit in ("kept", "avg"):
            amount = str(self.tokens)
            if self.unit == "kept":
                return amount + CLAMPED * self.clamp
            return amount.replace("kept", "avg") if amount.endswith("kept") else f"{amount}avg"
        if self.unit == "flops":
            return f"{self.ratio!r}flops".replace(".0flops", "flops")
        return self.unit

    def asked(self, n_visual: float) -> float:
        """`tokens` of a prompt of `n_visual` visual tokens, not rounded; 0 where the unit counts no tokens."""
        return self.tokens.ratio * n_visual if isinstance(self.tokens, Share) else float(self.tokens or 0)


NONE = Budget("none")
#: behind a count that is clamped to a prompt's own tokens
CLAMPED = "clamped"
_NUMBER = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(%?)(.*)", re.DOTALL)
#: characters of a number: more say nothing of a prompt's tokens
_LONGEST = 18


def parse(text: str | int | None) -> Budget:
    """Read a budget as a user writes it. Raises PrunebenchError for 0, negative, nan, fractions of a token and unknown
    units."""
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
    found = _NUMBER.fullmatch(word)
    if found is None:
        raise PrunebenchError(f"{unknown('budget', word, WORDS)}; {_SPELT}")
    number, percent, unit = found.groups()
    if len(number) > _LONGEST:
        raise PrunebenchError(f"budget {text!r}: expected a number of at most {_LONGEST} characters; {_SPELT}")
    if unit == "flops":
        ratio = _ratio(number, percent)
        if not 0 < ratio <= 1:
            share = "a share of the unpruned FLOPs above 0 and at most 1, as in 0.35flops"
            raise PrunebenchError(f"budget {text!r}: expected {share}; found {number}{percent}")
        return Budget("flops", ratio=ratio)
    if unit == CLAMPED:
        count = tokens(str(text), number, percent, True)
        if isinstance(count, Share):
            raise PrunebenchError(
                f"budget {text!r}: expected a number of tokens to clamp, found a share: drop {CLAMPED}"
            )
        return Budget("kept", count, clamp=True)
    if unit not in ("", "kept", "avg"):
        raise PrunebenchError(f"budget {text!r}: {unknown('unit', unit, UNITS)}; {_SPELT}")
    return Budget("avg" if unit == "avg" else "kept", tokens(str(text), number, percent, bool(unit)))


def clamped(texts: Sequence[str]) -> list[str]:
    """The budgets of `--clamp`: counts of tokens are clamped to each prompt's own, whatever else is asked stays. Raises
    PrunebenchError where none is a count."""
    read = [parse(text) for text in texts]
    counts = [budget.unit == "kept" and isinstance(budget.tokens, int) for budget in read]
    if not any(counts):
        raise PrunebenchError(
            f"{given('clamp')}: expected a number of tokens among the budgets ({given('budget', 64)}), found"
            f" {', '.join(texts) or 'none'}: leave {given('clamp')} out"
        )
    return [
        str(replace(budget, clamp=True)) if count else str(text)
        for text, budget, count in zip(texts, read, counts, strict=True)
    ]


def _ratio(number: str, percent: str) -> float:
    """The nearest float, so that 33.3% and 0.333 are one share: 33.3 / 100 is not."""
    return float(f"{number}e-2" if percent else number)


def tokens(text: str, number: str, percent: str, unit: bool) -> int | Share:
    """An amount of visual tokens in the budget or knob `text`: whole numbers count, a % or a fraction with a unit is a
    share."""
    whole = re.fullmatch(r"[+-]?[0-9]+", number) is not None
    if percent or (unit and not whole):
        ratio = _ratio(number, percent)
        if not 0 < ratio <= 1:
            share = "a share of a prompt's visual tokens above 0 and at most 1 (100%)"
            raise PrunebenchError(f"budget {text!r}: expected {share}; found {number}{percent}")
        return Share(ratio)
    if not whole:
        raise PrunebenchError(
            f"budget {text!r} is not a whole number of tokens (a share has a unit: {number}kept); {_SPELT}"
        )
    if int(number) < 1:
        raise PrunebenchError(f"budget {text!r} keeps no visual token: expected at least 1; {_SPELT}")
    return int(number)


def amount(text: str) -> int | Share:
    """A knob's amount of visual tokens as a user writes it: "64", "25%" or "0.25kept". Raises PrunebenchError as
    `parse`."""
    budget = parse(text)
    if budget.unit != "kept" or budget.tokens is None or budget.clamp:
        raise PrunebenchError(
            f"expected a number of visual tokens (64) or a share of a prompt's own (25%), found {text!r}"
        )
    return budget.tokens


class Scheduled(Protocol):
    """A method that can say what it will do, see `harness.method.Method`."""

    @property
    def drops_inside(self) -> bool: ...

    def plan(self, prompt: PromptShape) -> Sequence[int] | None: ...

    def known_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int: ...


class Cost(NamedTuple):
    """What a schedule costs: visual tokens in the last layer and per layer; dense prefill FLOPs, absolute and of the
    unpruned."""

    kept: int
    mean_visual: float
    prefill_flops: int
    ratio: float


def cost(plan: Sequence[int], prompt: PromptShape, scoring: int = 0, inside: bool = False) -> Cost:
    """The cost of a schedule (visual tokens entering each layer) for one prompt; `scoring` in FLOPs; `inside`: tokens
    leave inside the layer before (`Method.drops_inside`)."""
    behind = [*plan[1:], plan[-1]] if inside else plan
    spent = scoring + sum(
        flops.layer_dropping(prompt.decoder, now + prompt.n_text, later + prompt.n_text)
        for now, later in zip(plan, behind, strict=True)
    )
    unpruned = flops.prefill_unpruned(prompt.decoder, prompt.n_visual + prompt.n_text)
    return Cost(plan[-1], sum(plan) / len(plan), spent, spent / unpruned)


def cost_of(method: Scheduled, prompt: PromptShape) -> Cost | None:
    """The cost of a method's own schedule, with its scoring as far as it is known; None where the prompt decides."""
    plan = method.plan(prompt)
    return None if plan is None else cost(plan, prompt, method.known_scoring(prompt, plan), method.drops_inside)


def solve(budget: Budget, at: Callable[[int], Scheduled], prompt: PromptShape, label: str) -> int:
    """The `keep` with which `at(keep)` comes nearest to an `avg` or `flops` budget on this prompt; the smaller one of
    two as near.

    `at` or its plan may raise PrunebenchError for counts that the method cannot keep, below some count. `label` names
    the method in errors. Raises PrunebenchError where the prompt's content decides the schedule, and where the budget
    is out of reach, with what is in reach.
    """
    average, highest = budget.unit == "avg", prompt.n_visual
    if cost_of(at(highest), prompt) is None:
        raise PrunebenchError(
            f"{label.split()[0]} does not say before it runs how many tokens each layer will see (it has no plan(), or"
            f" the prompt decides), so {given('budget', budget)} cannot be solved: give the number of tokens to keep"
            f" ({given('budget', 64)})"
        )

    def value(keep: int) -> float:
        found = cost_of(at(keep), prompt)
        assert found is not None
        return found.mean_visual if average else found.ratio

    target = budget.asked(prompt.n_visual) if average else float(budget.ratio or 0)
    least = lowest(at, prompt)
    low, high = value(least), value(highest)
    if low <= target <= high:
        above = _first(lambda keep: value(keep) >= target, least, highest)
        below = max(above - 1, least)
        return below if target - value(below) <= value(above) - target else above

    n, depth = prompt.n_visual, prompt.depth
    digits, step = (1, 1) if average else (3, 1000)
    asked = f"cost {target:g} of the unpruned FLOPs at {prompt.n_text} text tokens"
    if average:
        asked = f"average {target:g} of {n} tokens"
    if low == high:
        raise PrunebenchError(
            f"{label} cannot {asked}: whatever it keeps it {'averages' if average else 'costs'} {high:.{digits}f}; "
            f"give the number of tokens to keep ({given('budget', 64)})"
        )
    # what the layers before the first selection cost cannot be saved by keeping less
    plan = at(least).plan(prompt) or ()
    n_full = next((i for i, visual in enumerate(plan) if visual < n), depth)
    fixed = cost([n] * n_full + [0] * (depth - n_full), prompt)
    floor = fixed.mean_visual if average else fixed.ratio
    why = f"its floor is {floor:.{digits}f}" + (f" ({n_full} of {depth} layers see all {n})" if n_full else "")
    spelt = [f"{number / step:g}{budget.unit}" for number in (math.ceil(low * step), math.floor(high * step))]
    either = f"give {given('budget', spelt[0])} to {spelt[1]}, or the number of tokens to keep"
    raise PrunebenchError(
        f"{label} cannot {asked}: {why}; keeping {least} to {n} tokens it reaches {low:.{digits}f} to"
        f" {high:.{digits}f}: {either} ({given('budget', least)} to {n})"
    )


def nearest(
    budget: Budget, at: Callable[[int], Scheduled], values: Sequence[int], prompt: PromptShape, label: str, knob: str
) -> int:
    """The one of `values` of a knob with which `at(value)` comes nearest to an `avg` or `flops` budget; the smaller one
    of two as near.

    For methods in which no number of tokens decides (`Method.solves_budgets`). `values` ascend, and so do their costs.
    Raises PrunebenchError where the budget is out of reach, with what is in reach.
    """
    average = budget.unit == "avg"
    reached = {}
    for value in values:
        found = cost_of(at(value), prompt)
        assert found is not None
        reached[value] = found.mean_visual if average else found.ratio
    target = budget.asked(prompt.n_visual) if average else float(budget.ratio or 0)
    low, high = reached[values[0]], reached[values[-1]]
    if low <= target <= high:
        return min(values, key=lambda value: (abs(reached[value] - target), value))
    digits, step = (1, 1) if average else (3, 1000)
    asked = f"average {target:g} of {prompt.n_visual} tokens" if average else f"cost {target:g} of the unpruned FLOPs"
    spelt = [f"{number / step:g}{budget.unit}" for number in (math.ceil(low * step), math.floor(high * step))]
    raise PrunebenchError(
        f"{label} cannot {asked}: with {knob}={values[0]} to {values[-1]} it reaches {low:.{digits}f} to"
        f" {high:.{digits}f}: give {given('budget', spelt[0])} to {spelt[1]}"
    )


def lowest(at: Callable[[int], Scheduled], prompt: PromptShape) -> int:
    """The fewest tokens that a method can keep: the smallest `keep` whose schedule does not raise PrunebenchError."""

    def possible(keep: int) -> bool:
        try:
            at(keep).plan(prompt)
        except PrunebenchError:
            return False
        return True

    return _first(possible, 1, prompt.n_visual)


def _first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The smallest number in [low, high] for which a monotone predicate holds; `high` where it holds for none below."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high
