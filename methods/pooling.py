"""Average pooling of the image grid: every visual token counts, none is looked at.

The control of published comparisons (144 tokens: GQA 59.1 on LLaVA-1.5-7B, arXiv 2502.11501), and the analogue of a
smaller image for a model of one resolution (VTC-Bench, arXiv 2510.07143). Pre-LLM: cell means replace the tokens,
positions are renumbered. Cells: rows x columns = `keep` with the pair nearest to square, if its cells are at most twice
as long as wide (64 = 8 x 8, 32 = 4 x 8). No such pair (7, 575): round(sqrt(keep)) bands of rows, each cut into the same
number of cells or one more. A cell edge falls on whole tokens, so cells may differ by a token per side; each token is
in one cell. Prompts of several images or views: cells are shared out in proportion to the patches of each, and stand
where their image stood; newline tokens are dropped. Differs: no canonical repository.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.core.shape import ModelShape
from harness.method import Method, PromptShape, Reduction, Run, Share, Stream, Traits, check_keep, register
from methods._select import even_split, grids, shared_out


@register
@dataclass(frozen=True)
class Pooling(Method):
    """Replaces the visual tokens by the means of `keep` cells of the image."""

    name = "pooling"
    traits = Traits(query_aware=False, merges=True, image_only=True, per_image=True)

    keep: int | Share

    def for_model(self, shape: ModelShape) -> Pooling:
        check_keep("pooling", self.keep)
        return self

    def plan(self, prompt: PromptShape) -> list[int]:
        return [sum(self._cells(prompt))] * prompt.depth

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int:
        return 0

    def _cells(self, prompt: PromptShape) -> list[int]:
        """Cells of each of the prompt's grids."""
        return shared_out(prompt.quota(self.keep), [view for _, view in grids(prompt)])

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer != 0:
            return None
        visual, valid = stream.visual, run.visual_valid
        counts = [self._cells(prompt) for prompt in run.prompts]
        width = max(map(sum, counts))
        means = visual.new_zeros(visual.shape[0], width, visual.shape[2])
        images = torch.zeros(visual.shape[0], width, dtype=torch.long)
        for row, prompt in enumerate(run.prompts):
            done = 0
            of = [i for i, image in enumerate(prompt.images) for _ in image.views]
            for (start, view), n, image in zip(grids(prompt), counts[row], of, strict=True):
                if n:
                    patches = visual[row, start : start + view.tokens].view(view.rows, -1, visual.shape[2])[
                        :, : view.cols
                    ]
                    cell = torch.tensor(cells(n, view.rows, view.cols), device=visual.device)
                    images[row, done : done + n] = image
                    means[row, done : done + n] = cell_means(patches.flatten(0, 1), cell, n)
                done += n
        means_valid = torch.arange(width)[None] < torch.tensor([sum(n) for n in counts])[:, None]
        none = torch.zeros_like(valid)
        return Reduction(
            none,
            means,
            means_valid.to(valid.device),
            # one image a prompt: said by None, without an upload
            added_image=images.to(valid.device) if bool(images.any()) else None,
            positions="compact",
            decode_positions="compact",
        )


def cells(n: int, height: int, width: int) -> list[int]:
    """The cell, 0..n-1 in raster order, of every place of the grid."""
    counts = _bands(n, height, width)
    out: list[int] = []
    start = 0
    for thickness, count in zip(even_split(height, len(counts)), counts, strict=True):
        band = [start + i for i, size in enumerate(even_split(width, count)) for _ in range(size)]
        out += band * thickness
        start += count
    return out


def _bands(n: int, height: int, width: int) -> list[int]:
    """Cells in each band of rows, from the top."""

    def elongation(rows: int) -> float:
        ratio = (height / rows) / (width / (n // rows))
        return max(ratio, 1 / ratio)

    fitting = [r for r in range(1, height + 1) if n % r == 0 and n // r <= width and elongation(r) <= 2]
    if fitting:
        rows = min(fitting, key=elongation)
        return [n // rows] * rows
    n_bands = min(max(round((n * height / width) ** 0.5), 1, -(-n // width)), height)
    return even_split(n, n_bands)


def cell_means(tokens: Tensor, cell: Tensor, n: int) -> Tensor:
    """Means (n, d) of `tokens (v, d)` by `cell (v,)`; summed in float32, exact where a cell holds one token."""
    sums = torch.zeros(n, tokens.shape[1], dtype=torch.float32, device=tokens.device).index_add_(
        0, cell, tokens.float()
    )
    return (sums / torch.bincount(cell, minlength=n)[:, None]).to(tokens.dtype)
