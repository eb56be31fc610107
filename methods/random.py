"""Uniformly random visual tokens, the first question a reviewer asks ("does it beat random?").

No canonical repository. At boundary 0 this is the pre-LLM random of UniPruneBench (sorted, positions renumbered, as
LLaVA numbers a shorter sequence); at a later boundary the in-LLM random of FastV's ablation (arXiv 2403.06764, Table
7), original positions. Differs: the draw depends on (seed, sample) only, not on batch, order or device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.method import PromptShape, Ranking, Run, Stream, Traits, register


@register
@dataclass(frozen=True)
class Random(Ranking):
    """Keeps `keep` random visual tokens from decoder layer `boundary` on."""

    name = "random"
    traits = Traits(query_aware=False, random=True)

    boundary: int | None = 0

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int:
        return 0

    def score(self, run: Run, stream: Stream) -> Tensor:
        valid = run.visual_valid
        # drawn per row at that row's own count, so that padding to a batch's width changes nothing
        draws = torch.zeros(valid.shape)
        for row, prompt in enumerate(run.prompts):
            draws[row, : prompt.n_visual] = torch.rand(prompt.n_visual, generator=run.generator(row))
        return draws.to(valid.device)
