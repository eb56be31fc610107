"""The unpruned baseline, run through the same engine as every method.

Differs: nothing; an explicit mask takes another kernel than plain causal attention, so the baseline must take the
engine's path.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.method import Method, PromptShape, Traits, register


@register
@dataclass(frozen=True)
class Unpruned(Method):
    """Keeps everything. It takes no budget."""

    name = "none"
    traits = Traits(query_aware=False)
    budget_knobs = ()

    def plan(self, prompt: PromptShape) -> list[int]:
        return [prompt.n_visual] * prompt.depth
