"""Images that are cut into tiles: the overview, then the tiles of one of several resolutions, padding taken away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.image_processing_utils import select_best_resolution

from harness.core.errors import PrunebenchError
from harness.core.shape import Grid, ImageShape, Size


class Cutting(NamedTuple):
    """How an image is cut: `rows` x `cols` tiles beside the overview, each of `side` x `side` patches; `pad_rows` and
    `pad_cols` of patches at each end of the tiles' raster are padding and no tokens."""

    rows: int
    cols: int
    side: int
    pad_rows: int
    pad_cols: int

    @property
    def tiles(self) -> int:
        """The overview counted."""
        return 1 + self.rows * self.cols

    @property
    def raster(self) -> Grid:
        """The tokens of the tiles, a newline behind each row."""
        height, width = self.rows * self.side, self.cols * self.side
        return Grid(height - 2 * self.pad_rows, width - 2 * self.pad_cols, newline=True)

    def order(self) -> Tensor:
        """(v,) long: the patch behind each visual token of the image, counted through the overview and its tiles one
        after the other; -1 for a newline."""
        overview, side = self.side**2, self.side
        patches = overview + torch.arange(self.rows * self.cols * overview).view(self.rows, self.cols, side, side)
        raster = patches.transpose(1, 2).reshape(self.rows * side, self.cols * side)
        grid = self.raster
        inside = raster[self.pad_rows : self.pad_rows + grid.rows, self.pad_cols : self.pad_cols + grid.cols]
        return torch.cat([torch.arange(overview), pad(inside, (0, 1), value=-1).flatten()])


def cut_of(size: Size, resolutions: Sequence[Sequence[int]], tile: int, side: int) -> Cutting:
    """How an image of this size is cut: into tiles of `tile` pixels and `side` patches a side, for the best of some
    resolutions (height, width)."""
    rows, cols = (length // tile for length in select_best_resolution(size, [tuple(one) for one in resolutions]))
    height, width, (high, wide) = rows * side, cols * side, size
    # the model's own arithmetic, which rounds a length within 1e-7 of a whole number to it
    if wide / high > width / height:
        return Cutting(rows, cols, side, (height - int(round(high * (width / wide), 7))) // 2, 0)
    return Cutting(rows, cols, side, 0, (width - int(round(wide * (height / high), 7))) // 2)


def ordered(patches: Tensor, order: Tensor, axis: int) -> Tensor:
    """Values of patches along `axis`, one a visual token; 0 where `order` has -1."""
    padded = torch.cat([patches, torch.zeros_like(patches.narrow(axis, 0, 1))], axis)
    return padded.index_select(axis, torch.where(order < 0, patches.shape[axis], order).to(patches.device))


def sizes_of(facts: Mapping[str, Any]) -> list[Size]:
    """(height, width) of each image. Raises PrunebenchError where a prefill came without them."""
    if facts.get("image_sizes") is None:
        raise PrunebenchError(
            "expected image_sizes, (height, width) of each image, found none: give generate() pixel_values, or the"
            " model's forward both features and image_sizes"
        )
    return [(int(height), int(width)) for height, width in torch.as_tensor(facts["image_sizes"]).tolist()]


def of_prompts(counts: Sequence[int], images: Sequence[ImageShape]) -> list[tuple[ImageShape, ...]]:
    """The images of each prompt, in order, of a batch of prompts with `counts` visual tokens. Raises PrunebenchError
    where the tokens are no whole images."""
    left, found = list(images), []
    for n in counts:
        mine: list[ImageShape] = []
        while left and sum(image.tokens for image in mine) < n:
            mine.append(left.pop(0))
        if sum(image.tokens for image in mine) != n:
            raise PrunebenchError(
                f"expected whole images in every prompt, found {n} visual tokens for images"
                f" of {', '.join(str(image.tokens) for image in mine) or 'none'}"
            )
        found.append(tuple(mine))
    return found
