"""A uniform subset of the image grid: no content, no question, no chance; only coverage.

No canonical repository; pre-LLM as in `random`: positions renumbered, as LLaVA numbers a shorter sequence. The tokens
stand in rows that are as far apart as the tokens within a row; rows hold the same number, or one more, and rows with an
odd number lean left and right in turn. The number of rows is even wherever that fits, because a middle row belongs to
one half of the image. So 64 of 24 x 24 is every third token of every third row, and quadrants are covered alike at any
count. Prompts of several images or views: tokens are shared out in proportion to the patches of each; newline tokens
are never kept before a patch. Differs: nothing known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harness.method import PromptShape, Ranking, Run, Stream, Traits, register
from methods._select import centres, even_split, grids, shared_out


@register
@dataclass(frozen=True)
class Uniform(Ranking):
    """Keeps `keep` visual tokens, spread evenly over the image."""

    name = "uniform"
    traits = Traits(query_aware=False, image_only=True, per_image=True)
    boundary: ClassVar[int] = 0  # type: ignore[misc]  # no knob

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int:
        return 0

    def score(self, run: Run, stream: Stream) -> Tensor:
        valid = run.visual_valid
        marked = torch.zeros(valid.shape)
        for row, prompt in enumerate(run.prompts):
            found = grids(prompt)
            for (start, view), n in zip(
                found, shared_out(prompt.quota(self.keep), [view for _, view in found]), strict=True
            ):
                for place in spread(n, view.rows, view.cols) if n else ():
                    marked[row, start + place + (place // view.cols if view.newline else 0)] = 1.0
        return marked.to(valid.device)


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
