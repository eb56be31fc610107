"""FastV: after layer K, keep the visual tokens that the last prompt token attends to most in layer K-1.

Paper: https://arxiv.org/abs/2403.06764 (ECCV 2024). Official code: pkunlp-icler/FastV @ d165972,
src/FastV/lmms-eval/fastv_kvcache.py (pruned once at prefill).
Differs: decode follows the cached variant, where the kept set stays; the official `inplace` and `mask` variants rank
again at every generated token and agree with this one at prefill. The official cached variant stores layer K-1's keys
twice, which cancels in the softmax; here they are stored once. BUDGET=native keeps half of the tokens of the model's
usual image, also of a prompt of several; half of each prompt's own where images differ. The paper says "attention from
all tokens", the code and this file use the last row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from harness.core.budget import Budget
from harness.method import Attention, PromptShape, Published, Ranking, Run, Share, Stream, Traits, register


@register
@dataclass(frozen=True)
class FastV(Ranking):
    """Keeps `keep` visual tokens from decoder layer `boundary` (the paper's K, 2 of 32) on; positions stay."""

    name = "fastv"
    paper = "https://arxiv.org/abs/2403.06764"
    published = Published("ECCV 2024", "pkunlp-icler/FastV", "d1659729", "none")
    traits = Traits(query_aware=True, keeps_most_attended=True)
    official, least = 2, 1

    @classmethod
    def at_budget(cls, budget: Budget, knobs: Mapping[str, Any], prompt: PromptShape) -> Self:
        if budget.unit == "native":  # the paper's K = 2, R = 50 %
            return cls(**{"keep": Share(0.5) if prompt.one_of_many else prompt.n_visual // 2, **knobs})
        return super().at_budget(budget, knobs, prompt)

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int:
        seen = visual[(self.boundary or 0) - 1]
        return 2 * prompt.decoder.heads * prompt.decoder.head_dim * (seen + prompt.n_text)  # one row of QK^T

    def on_attention(self, run: Run, layer: int, attn: Attention) -> None:
        if self.boundary is not None and layer == self.boundary - 1:
            run.memo["scores"] = attn.visual_probs("last").values.mean(1)[:, 0]

    def score(self, run: Run, stream: Stream) -> Tensor:
        scores: Tensor = run.memo["scores"]
        return scores
