"""Tiles whose raster is shrunk: LLaVA-OneVision's `anyres_max_9`, in which no image has many more tokens than 9 tiles.

The arithmetic is that of `pack_image_features` in transformers' modeling_llava_onevision.py, and of its processor.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from math import sqrt

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from harness.core.shape import Grid, Size
from harness.models.adapters.tiles import Cutting, cut_of

#: a raster that is at most so many times as long and as wide as is allowed stays as it is
SLACK = 1.1
#: of an image that is not cut: the one newline behind its patches, in a row without any
NEWLINE = Grid(1, 0, newline=True)
_ASPECT = re.compile(r"anyres_max_([1-9][0-9]{0,3})")


def most_tiles(vision_aspect_ratio: str) -> int:
    """How many tiles' tokens the raster may have: 9 of "anyres_max_9". Raises ValueError for another word."""
    found = _ASPECT.fullmatch(vision_aspect_ratio)
    if found is None:
        raise ValueError(vision_aspect_ratio)
    return int(found[1])


def raster_of(cut: Cutting, most: int) -> Grid:
    """The tokens of an image's tiles without padding, shrunk to about those of `most` tiles, and a newline behind each
    row."""
    grid = cut.raster
    ratio = sqrt(grid.rows * grid.cols / (most * cut.side**2))
    if ratio <= SLACK:
        return grid
    return Grid(int(grid.rows // ratio), int(grid.cols // ratio), newline=True)


def resampled(patches: Tensor, cut: Cutting, grid: Grid) -> Tensor:
    """(c, v): values of patches as the image's tokens have them; 0 for newlines.

    `patches (c, tiles * side * side)`: those of the overview, then tile by tile. Where the model shrinks the raster to
    `grid`, a value is the weighted mean of the patches of which it makes the token, by its own bilinear weights.
    """
    overview, own = cut.side**2, cut.raster
    raster = cut.order()[overview:].view(own.rows, -1)[:, : own.cols]
    values = patches[:, raster.flatten().to(patches.device)].view(len(patches), own.rows, own.cols)
    if (grid.rows, grid.cols) != (own.rows, own.cols):
        exact = values.to(torch.promote_types(values.dtype, torch.float32))
        values = interpolate(exact[None], (grid.rows, grid.cols), mode="bilinear")[0].to(values.dtype)
    return torch.cat([patches[:, :overview], pad(values, (0, 1)).flatten(1)], 1)


@lru_cache(maxsize=64)
def largest_size(resolutions: tuple[tuple[int, int], ...], tile: int, side: int, most: int) -> Size:
    """(height, width) of an image of the most tokens: of every resolution in which an image fills the height or the
    width, with each number of patches of padding that there may be."""
    sizes: dict[Size, None] = {}
    for height, width in resolutions:
        rows, cols = height // tile * side, width // tile * side
        sizes |= {(height, width * left // cols): None for left in range(cols, 0, -1)}
        sizes |= {(height * left // rows, width): None for left in range(rows, 0, -1)}
    return max(sizes, key=lambda size: _tokens(size, resolutions, tile, side, most))


def _tokens(size: Size, resolutions: Sequence[tuple[int, int]], tile: int, side: int, most: int) -> int:
    return raster_of(cut_of(size, resolutions, tile, side), most).tokens
