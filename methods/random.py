"""Uniformly random visual tokens, the first question a reviewer asks ("does it beat random?").

No canonical repository. At boundary 0 this is the pre-LLM random of UniPruneBench (sorted, positions renumbered, as LLaVA
numbers a shorter sequence); at a later boundary the in-LLM random of FastV's ablation (arXiv 2403.06764, Table 7), original
positions.
Differs: the draw depends on (seed, sample) only, not on batch, order or device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from harness.errors import PrunebenchError
from harness.method import Method, Reduction, Run, Stream, Traits, check_layer, register
from harness.shape import ModelShape
from methods._select import keep_top


@register
@dataclass(frozen=True)
class Random(Method):
    """Keeps `keep` random visual tokens from decoder layer `boundary` on."""

    name = "random"
    traits = Traits(query_aware=False, random=True)

    keep: int
    boundary: int = 0

    def for_model(self, shape: ModelShape) -> Random:
        if self.keep < 1:
            raise PrunebenchError(f"random: expected keep >= 1, found {self.keep}")
        check_layer("random", "boundary", self.boundary, 0, shape.depth)
        return self

    def plan(self, shape: ModelShape, n_text: int) -> list[int]:
        return [shape.n_visual] * self.boundary + [min(self.keep, shape.n_visual)] * (shape.depth - self.boundary)

    def plan_scoring(self, shape: ModelShape, n_text: int, visual: Sequence[int]) -> int:
        return 0

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer != self.boundary:
            return None
        valid = run.visual_valid
        # drawn per row at that row's own count, so that padding to a batch's width changes nothing
        draws = torch.zeros(valid.shape)
        for row, n in enumerate(valid.sum(1).tolist()):
            draws[row, :n] = torch.rand(n, generator=run.generator(row))
        keep = keep_top(draws.to(valid.device), self.keep, valid)
        if self.boundary == 0:
            return Reduction(keep, positions="compact", decode_positions="compact")
        return Reduction(keep)
