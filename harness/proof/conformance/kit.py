"""The conformance kit, `prunebench check METHOD`: what every pruning method must do, on tiny random models, in seconds
on a CPU.

One function per property, each a verdict: ok, FAIL with the values found, or n/a with the reason. Exceptions are
granted only through the traits that a method declares. Models are random LLaVAs of 8 x 8 visual tokens whose query and
key weights are large, so that attention is peaked and no selection is near a tie. What the engine computes is compared
with `reference`, a plain layer loop over the tokens present, without cache, fused kernel or layouts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from harness.core.errors import PrunebenchError
from harness.method import Method, method_class, typed_knobs

# isort: off
# importing a module enrols its properties, in this order
from harness.proof.conformance import counts, images, batches, passes, variants, asking  # noqa: F401

# isort: on
from harness.proof.conformance.families import FamilyVerdicts, fits
from harness.proof.conformance.subject import DEFAULT_BUDGET, PROPERTIES, Subject, Verdict
from harness.proof.conformance.tiny import N_VISUAL


@contextmanager
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on many threads, and far slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check(cls: type[Method], budget: int = DEFAULT_BUDGET, knobs: Mapping[str, Any] | None = None) -> list[Verdict]:
    """All verdicts on one method, in a fixed order. Raises PrunebenchError where the method cannot be built at all."""
    if not 1 <= budget < N_VISUAL:
        raise PrunebenchError(
            f"budget {budget}: expected 1 to {N_VISUAL - 1}, the check models have {N_VISUAL} visual tokens"
        )
    subject = Subject(cls, dict(typed_knobs(cls, knobs or {})), budget)
    subject.variants()
    with one_thread():
        return [judge(subject) for judge in PROPERTIES.values()]


def check_named(name: str, budget: int = DEFAULT_BUDGET, knobs: Mapping[str, Any] | None = None) -> list[Verdict]:
    """`check` of a registered name, `path/to/file.py:Class` or `package.module:Class`."""
    return check(method_class(name), budget, knobs)


def check_families(cls: type[Method]) -> Iterator[FamilyVerdicts]:
    """Verdicts on one method on a tiny model of every family, or why it does not run there."""
    with one_thread():
        yield from fits(cls)


def table(verdicts: Sequence[Verdict], width: int = 100) -> str:
    """Verdicts for a terminal."""
    from tabulate import tabulate

    def shown(v: Verdict) -> str:
        return v.detail if v.status == "FAIL" or len(v.detail) <= width else v.detail[: width - 3] + "..."

    return tabulate(
        [(v.status, v.name, shown(v)) for v in verdicts], headers=("", "property", "found"), tablefmt="simple"
    )
