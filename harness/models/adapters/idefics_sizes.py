"""Images of Idefics3 and SmolVLM by their size alone: how they are cut into tiles, and the work of the tower on
them."""

from __future__ import annotations

from math import ceil
from typing import Any

from harness.core.shape import Grid, ImageShape, Size, VisionShape
from harness.models.adapters.idefics_frames import Cut

#: pixels of a side beyond which the processor shrinks an image, whatever its settings say
LARGEST_EDGE = 4096
#: tiles along the longer side in the published checkpoints
USUAL = 4


def cut_at(image_processor: Any, size: Size) -> Cut:
    """How a processor cuts an image of this size (height, width).

    It brings the longer side to its `longest_edge`, then both sides to whole tiles. The arithmetic is that of
    transformers 5.23 (image_processing_idefics3.py), floats and all; its own prediction of the number of tiles leaves
    out that the shorter side is computed anew.
    """
    if not image_processor.do_image_splitting:
        return 0, 0
    tile = image_processor.max_image_size["longest_edge"]
    height, width = _resized(size, image_processor.size["longest_edge"])
    ratio = width / height
    if width >= height:
        width = ceil(width / tile) * tile
        height = ceil(int(width / ratio) / tile) * tile
    else:
        height = ceil(height / tile) * tile
        width = ceil(int(height * ratio) / tile) * tile
    return (height // tile, width // tile) if max(height, width) > tile else (0, 0)


def _resized(size: Size, longest: int) -> Size:
    """The first resize: the longer side to `longest`, the other to an even number, then both below the bound."""
    height, width = size
    ratio = width / height
    if width >= height:
        height, width = int(longest / ratio), longest
        height += height % 2
    else:
        height, width = longest, int(longest * ratio)
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    ratio = width / height
    if width >= height and width > LARGEST_EDGE:
        height, width = int(LARGEST_EDGE / ratio), LARGEST_EDGE
    elif height > width and height > LARGEST_EDGE:
        height, width = LARGEST_EDGE, int(LARGEST_EDGE * ratio)
    return max(height, 1), max(width, 1)


def tile_side(config: Any) -> int:
    """Visual tokens along a side of a tile."""
    vision = config.vision_config
    return int(vision.image_size // vision.patch_size // config.scale_factor)


def image_shape(config: Any, cut: Cut) -> ImageShape:
    """An image that is cut so: each tile is a grid, row by row, and the overview is the last one."""
    vision, side = config.vision_config, tile_side(config)
    tiles = cut[0] * cut[1] + 1
    return ImageShape(
        (Grid(side, side),) * tiles,
        VisionShape(
            layers_used=vision.num_hidden_layers,
            hidden=vision.hidden_size,
            mlp=vision.intermediate_size,
            tokens=(vision.image_size // vision.patch_size) ** 2,
            patch_inputs=3 * vision.patch_size**2,
            projector_hidden=0,
            heads=vision.num_attention_heads,
            tiles=tiles,
            prefix=0,
            merge=config.scale_factor**2,
        ),
        cut,
    )
