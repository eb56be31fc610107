"""The cost of whole requests without a run: `prunebench cost METHODS --request`.

A method's schedule becomes a trace of one prompt (harness/cost/plan.py), and its columns become a `WholeRequest`. Where
the prompt decides the schedule, the cost is an upper bound: the most tokens of each layer and the least shared work
among all schedules that the method can choose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from harness.core.costs import sample_cost
from harness.core.errors import PrunebenchError
from harness.core.requests import Machine, TokenRates, WholeRequest
from harness.core.shape import PromptShape
from harness.core.spelling import given
from harness.cost import plan
from harness.method import Method

PLAN, BOUND, CELLS = "schedule", "upper bound", "cells"
NO_SCORING = "schedule, scoring not known"


@dataclass(frozen=True)
class Priced:
    """A request to a method at a budget; `source`: PLAN, NO_SCORING, BOUND or CELLS."""

    method: str
    budget: str
    request: WholeRequest
    source: str

    @property
    def bound(self) -> str:
        """The sign in front of a cost."""
        return "<= " if self.source == BOUND else ""


def unpruned(prompt: PromptShape, n_before: int) -> Priced:
    """A request to the model without pruning."""
    visual = [prompt.n_visual] * prompt.depth
    return Priced("none", "", _priced(Method(), prompt, visual, n_before, prompt.depth), PLAN)


def planned(
    method: Method, budget: str, prompt: PromptShape, n_before: int, shrunk: PromptShape | None = None
) -> Priced:
    """A request to a method as its schedule says; `shrunk`: the prompt with its picture shrunk by the method.

    Raises PrunebenchError where the schedule is not known and cannot be bounded.
    """
    own = shrunk or prompt
    visual = [own.n_visual] * own.depth if shrunk else method.plan(own)
    schedules = chosen(method, own) if visual is None else [visual]
    most = [max(layer) for layer in zip(*schedules, strict=True)]
    scoring = method.plan_scoring(own, most)
    if scoring is None and visual is None:
        raise _unbounded(method)
    source = BOUND if visual is None else NO_SCORING if scoring is None else PLAN
    fronts = [next((i for i, v in enumerate(s) if v != own.n_visual), own.depth) for s in schedules]
    return Priced(method.name, budget, _priced(method, own, most, n_before, min(fronts)), source)


def _priced(method: Method, prompt: PromptShape, visual: Sequence[int], n_before: int, reduced: int) -> WholeRequest:
    """`reduced`: layers in front of the first reduction."""
    trace = plan.planned_trace(method, prompt, visual, n_before)
    rates = TokenRates.of(prompt.decoder)
    front = rates.among(prompt.n_visual) * reduced / prompt.depth
    costs = sample_cost(prompt, trace, 0, 1)
    return WholeRequest.from_costs(costs, rates, query_aware=method.traits.query_aware, front_flops=front)


def chosen(method: Method, prompt: PromptShape) -> list[list[int]]:
    """The schedules of all choices that a prompt can lead an adaptive method to.

    Raises PrunebenchError where the method has no `choices` with a schedule.
    """
    names = list(method.choices(prompt.decoder))
    found = []
    for layers in product(range(-1, prompt.depth), repeat=len(names)):
        try:
            forced = replace(method, **dict(zip(names, layers, strict=True))).for_model(prompt.decoder)
            found.append(forced.plan(prompt))
        except PrunebenchError:
            continue  # no prompt leads there
    schedules = [visual for visual in found if visual is not None]
    if not schedules:
        raise _unbounded(method)
    return schedules


def _unbounded(method: Method) -> PrunebenchError:
    return PrunebenchError(
        f"{method.name}: expected a schedule, found that the prompt decides: give a number of tokens"
        f" ({given('budget', 64)}), or {given('results', 'FOLDER')} with cells of it"
    )


def machine(bandwidth: str, peak: str) -> Machine:
    """Of "4.8TB/s" and "989TFLOPS". Raises PrunebenchError for anything else."""
    return Machine(_rate("bandwidth", bandwidth, "B/s", "4.8TB/s"), _rate("peak", peak, "FLOPS", "989TFLOPS"))


def _rate(name: str, text: str, unit: str, example: str) -> float:
    found = re.fullmatch(rf"([0-9]{{1,9}}(?:\.[0-9]{{1,9}})?)\s*([GTP]){unit}", text.strip(), re.IGNORECASE)
    number = float(found[1]) * 10.0 ** {"G": 9, "T": 12, "P": 15}[found[2].upper()] if found else 0.0
    if number <= 0:
        raise PrunebenchError(f"{given(name, text[:80])}: expected a rate as in {given(name, example)}")
    return number


def records(
    priced: Sequence[Priced], outputs: Sequence[int], questions: Sequence[int], batches: Sequence[int], on: Machine
) -> Iterator[dict[str, str | int | float]]:
    """One row per request, output length, questions about an image and batch, each part in a column of its own."""
    base = priced[0].request
    for one, n, q, b in product(priced, outputs, questions, batches):
        r = one.request
        yield {
            "method": one.method,
            "budget": one.budget,
            "source": one.source,
            "new_tokens": n,
            "questions": q,
            "batch": b,
            "vision_flops": r.tower_flops,
            "projector_flops": r.projector_flops,
            "prefill_dense_flops": r.prefill_flops,
            "scoring_flops": r.scoring_flops,
            "shared_flops": r.shared_flops,
            "decode_flops": r.decode_flops(n),
            "lm_head_flops": r.head_flops(n),
            "request_flops": r.flops(n, q),
            "pct_of_unpruned_flops": 100 * r.flops(n, q) / base.flops(n, q),
            "kv_bytes": r.kv_bytes,
            "kv_bytes_at_end": r.kv_at(n),
            "weight_bytes": r.rates.weight_bytes,
            "last_step_bytes_of_batch": r.step_bytes(max(n - 1, 1), b),
            "least_seconds_of_batch": on.seconds(r, n, q, b),
        }
