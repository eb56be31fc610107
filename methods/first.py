"""The first visual tokens in raster order, the top of the image: what a method with a position bias has to beat.

No canonical repository; pre-LLM as in `random`: positions renumbered, as LLaVA numbers a shorter sequence.
Differs: nothing known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harness.method import PromptShape, Ranking, Run, Stream, Traits, register


@register
@dataclass(frozen=True)
class First(Ranking):
    """Keeps the first `keep` visual tokens."""

    name = "first"
    traits = Traits(query_aware=False, image_only=True)
    boundary: ClassVar[int] = 0  # type: ignore[misc]  # no knob

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int:
        return 0

    def score(self, run: Run, stream: Stream) -> Tensor:
        valid = run.visual_valid
        return -torch.arange(valid.shape[1], device=valid.device).expand(valid.shape).float()
