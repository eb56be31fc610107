"""A uniform subset of the image grid: no content, no question, no chance; only coverage.

No canonical repository; pre-LLM as in `random`: positions renumbered, as LLaVA numbers a shorter sequence.
The tokens stand in rows that are as far apart as the tokens within a row; rows hold the same number, or one more, and rows with
an odd number lean left and right in turn. The number of rows is even wherever that fits, because a middle row belongs to one half
of the image. So 64 of 24 x 24 is every third token of every third row, and quadrants are covered alike at any count.
Differs: nothing known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from harness.errors import PrunebenchError
from harness.method import Method, Reduction, Run, Stream, Traits, register
from harness.shape import ModelShape
from methods._select import centres, even_split, grid_of


@register
@dataclass(frozen=True)
class Uniform(Method):
    """Keeps `keep` visual tokens, spread evenly over the image."""

    name = "uniform"
    traits = Traits(query_aware=False, image_only=True)

    keep: int

    def for_model(self, shape: ModelShape) -> Uniform:
        if self.keep < 1:
            raise PrunebenchError(f"uniform: expected keep >= 1, found {self.keep}")
        grid_of("uniform", shape.n_visual, shape)
        return self

    def plan(self, shape: ModelShape, n_text: int) -> list[int]:
        return [min(self.keep, shape.n_visual)] * shape.depth

    def plan_scoring(self, shape: ModelShape, n_text: int, visual: Sequence[int]) -> int:
        return 0

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer != 0:
            return None
        valid = run.visual_valid
        keep = torch.zeros_like(valid)
        for row, n in enumerate(valid.sum(1).tolist()):
            keep[row, spread(min(self.keep, n), *grid_of("uniform", n, run.shape))] = True
        return Reduction(keep, positions="compact", decode_positions="compact")


def spread(n: int, height: int, width: int) -> list[int]:
    """`n` places of a grid in raster order, as even as they can be in both directions; exactly n, all different."""
    n_rows = 2 * round((n * height / width) ** 0.5 / 2) if n > 1 else 1
    n_rows = min(max(n_rows, 2 if n > 1 else 1, -(-n // width)), height)
    places, lean = [], 0
    for y, count in zip(centres(height, n_rows), even_split(n, n_rows), strict=True):
        xs = centres(width, count)
        if count % 2 == 1:
            xs = [width - 1 - x for x in reversed(xs)] if lean else xs
            lean = 1 - lean
        places += [y * width + x for x in xs]
    return places
