"""FastV: after layer K, keep the visual tokens that the last prompt token attends to most in layer K-1.

Paper: https://arxiv.org/abs/2403.06764 (ECCV 2024). Official code: pkunlp-icler/FastV @ d165972,
src/FastV/lmms-eval/fastv_kvcache.py (pruned once at prefill).
Differs: decode follows the cached variant, where the kept set stays; the official `inplace` and `mask` variants rank again at
every generated token and agree with this one at prefill. The official cached variant stores layer K-1's keys twice, which cancels
in the softmax; here they are stored once. The paper says "attention from all tokens", the code and this file use the last row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from harness.budget import Budget
from harness.errors import PrunebenchError
from harness.method import Attention, Method, Reduction, Run, Stream, Traits, check_layer, register
from harness.shape import ModelShape
from methods._select import keep_top


@register
@dataclass(frozen=True)
class FastV(Method):
    """Keeps `keep` visual tokens from decoder layer `boundary` (the paper's K) on; positions stay."""

    name = "fastv"
    paper = "https://arxiv.org/abs/2403.06764"
    traits = Traits(query_aware=True, keeps_most_attended=True)

    keep: int
    boundary: int = 2

    @classmethod
    def at_budget(cls, budget: Budget, knobs: Mapping[str, Any], shape: ModelShape) -> Self:
        if budget.unit == "native":  # the paper's K = 2, R = 50 %
            return cls(**{"keep": shape.n_visual // 2, **knobs})
        return super().at_budget(budget, knobs, shape)

    def for_model(self, shape: ModelShape) -> FastV:
        if self.keep < 1:
            raise PrunebenchError(f"fastv: expected keep >= 1, found {self.keep}")
        check_layer("fastv", "boundary", self.boundary, 1, shape.depth)
        return self

    def plan(self, shape: ModelShape, n_text: int) -> list[int]:
        return [shape.n_visual] * self.boundary + [min(self.keep, shape.n_visual)] * (shape.depth - self.boundary)

    def plan_scoring(self, shape: ModelShape, n_text: int, visual: Sequence[int]) -> int:
        return 2 * shape.heads * shape.head_dim * (visual[self.boundary - 1] + n_text)  # one row of QK^T

    def on_attention(self, run: Run, layer: int, attn: Attention) -> None:
        if layer == self.boundary - 1:
            run.memo["scores"] = attn.visual_probs("last").values.mean(1)[:, 0]

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer != self.boundary:
            return None
        return Reduction(keep_top(run.memo["scores"], self.keep, run.visual_valid))
