"""The unpruned baseline, run through the same engine as every method.

Differs: nothing; an explicit mask takes another kernel than plain causal attention, so the baseline must take the engine's path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from harness.budget import Budget
from harness.errors import PrunebenchError
from harness.method import Method, Traits, register
from harness.shape import ModelShape


@register
@dataclass(frozen=True)
class Unpruned(Method):
    """Keeps everything. It takes no budget."""

    name = "none"
    traits = Traits(query_aware=False)
    budget_knobs = ()

    @classmethod
    def at_budget(cls, budget: Budget, knobs: Mapping[str, Any], shape: ModelShape) -> Self:
        if budget.unit != "none":
            raise PrunebenchError(f"none prunes nothing, so it takes no budget; found {budget}: leave BUDGET out")
        return cls(**knobs)
