"""The first visual tokens in raster order, the top of the image: what a method with a position bias has to beat.

No canonical repository; pre-LLM as in `random`: positions renumbered, as LLaVA numbers a shorter sequence.
Differs: nothing known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from harness.errors import PrunebenchError
from harness.method import Method, Reduction, Run, Stream, Traits, register
from harness.shape import ModelShape


@register
@dataclass(frozen=True)
class First(Method):
    """Keeps the first `keep` visual tokens."""

    name = "first"
    traits = Traits(query_aware=False, image_only=True)

    keep: int

    def for_model(self, shape: ModelShape) -> First:
        if self.keep < 1:
            raise PrunebenchError(f"first: expected keep >= 1, found {self.keep}")
        return self

    def plan(self, shape: ModelShape, n_text: int) -> list[int]:
        return [min(self.keep, shape.n_visual)] * shape.depth

    def plan_scoring(self, shape: ModelShape, n_text: int, visual: Sequence[int]) -> int:
        return 0

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer != 0:
            return None
        valid = run.visual_valid
        keep = valid & (torch.arange(valid.shape[1], device=valid.device) < self.keep)
        return Reduction(keep, positions="compact", decode_positions="compact")
