"""VTW: from one decoder layer on, all visual tokens are gone.

Paper: https://arxiv.org/abs/2405.05803 (AAAI 2025). Official code: lzhxmu/VTW @ a3d8cfc, its LLaVA model class and the
rule for K in lmms_eval/__main__.py. Layers before K see all tokens, and layer K is the first without visual tokens.
Text keeps its positions, and generated tokens stand where they would stand in the unpruned prompt. Differs: K = 0 and
K = the number of layers are refused, for the official code cannot decode with the first and prunes nothing with the
second. BUDGET=native is the K = 15 of its README; its command line has 16. No number of tokens stays, so a budget is a
mean per layer or a share of the FLOPs, and the nearest K is taken. BUDGET=calibrated is the official rule on this model
(`first_within`) on questions of our tasks; official are 20 questions of ScienceQA. Where no K qualifies, the official
code ends in an IndexError, and ours says so and writes no config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from harness.core.budget import Budget, nearest
from harness.core.errors import PrunebenchError
from harness.core.shape import ModelShape
from harness.core.spelling import given
from harness.method import Method, PromptShape, Published, Reduction, Run, Stream, Traits, check_layer, register

#: K of the official README, of 32 layers
OFFICIAL = 15
#: the first K that the official rule tries, whatever the depth
FIRST_TRIED = 5
#: official bounds of the mean divergence: LLaVA-1.5-7B and unknown models, LLaVA-1.5-13B, LLaVA-1.6-vicuna-7B
ETA, ETA_13B, ETA_NEXT = 0.003, 0.0005, 0.0001


@register
@dataclass(frozen=True)
class VTW(Method):
    """Withdraws all visual tokens from decoder layer `layer` (the paper's K, 15 of 32) on.

    `renumber`: from there on positions count from 0 without gaps, and a generated token stands at the length of its
    layer's cache; the official `pe_type` other than "keep".
    """

    name = "vtw"
    paper = "https://arxiv.org/abs/2405.05803"
    published = Published("AAAI 2025", "lzhxmu/VTW", "a3d8cfc3", "none")
    traits = Traits(query_aware=False, image_only=True, calibrated=True)
    budget_knobs = ("layer",)
    usual_budget = "native"
    solves_budgets = True

    layer: int | None = None
    renumber: bool = False

    @classmethod
    def at_budget(cls, budget: Budget, knobs: Mapping[str, Any], prompt: PromptShape) -> Self:
        if budget.unit == "kept":
            raise PrunebenchError(
                f"vtw withdraws all visual tokens, so none stays and {given('budget', budget)} means nothing: give"
                f" {given('budget', 'native')}, calibrated, a mean per layer ({given('budget', '192avg')}) or a share"
                f" of the FLOPs ({given('budget', '0.5flops')}), or the knob layer"
            )
        if budget.unit in ("avg", "flops"):
            others = {k: v for k, v in knobs.items() if k != "layer"}
            layers = range(1, prompt.depth)
            return cls(
                **others, layer=nearest(budget, lambda k: cls(**others, layer=k), layers, prompt, "vtw", "layer")
            )
        return cls(**knobs)

    def for_model(self, shape: ModelShape) -> VTW:
        layer = shape.scaled_layer(OFFICIAL) if self.layer is None else self.layer
        check_layer("vtw", "layer", layer, 1, shape.depth)
        return replace(self, layer=layer)

    def plan(self, prompt: PromptShape) -> list[int]:
        assert self.layer is not None
        return [prompt.n_visual] * self.layer + [0] * (prompt.depth - self.layer)

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int:
        return 0

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer != self.layer:
            return None
        none = torch.zeros_like(run.visual_valid)
        return Reduction(none, positions="compact", decode_positions="per_layer") if self.renumber else Reduction(none)


def first_within(divergences: Sequence[float], eta: float) -> int | None:
    """The official rule: the first K, counted from `FIRST_TRIED`, whose mean divergence is at most `eta`; None for
    none.

    Divergences do not fall with every K, so the first one decides and not the last above `eta`.
    """
    return next((FIRST_TRIED + i for i, mean in enumerate(divergences) if mean <= eta), None)
