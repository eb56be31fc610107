"""Sizes of Qwen-VL's images and towers, from a config and a grid of patches alone."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any, NamedTuple

# of the processor that needs no torchvision, which a GPU check does not have
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from harness.core.errors import PrunebenchError
from harness.core.shape import Grid, ImageShape, ModelShape, Size, VisionShape

#: pixels of the smallest and of the largest image that lmms-eval gives these models
LEAST_PIXELS, MOST_PIXELS = 200_704, 1_605_632


class TowerSizes(NamedTuple):
    """What the configs of the families name unlike: width, feed-forward width and its matrices, projectors, and the
    layers that attend over whole images (None: all)."""

    hidden: int
    mlp: int
    mlp_matrices: int
    projectors: int
    whole_layers: tuple[int, ...] | None


def largest_grid(vision: Any, most: int = MOST_PIXELS) -> tuple[int, int]:
    """Patches (rows, columns) of an image of the most tokens within `most` pixels, as near to a square as they
    allow."""
    merge = vision.spatial_merge_size
    tokens = max(1, most // (vision.patch_size * merge) ** 2)
    rows = next(n for n in range(isqrt(tokens), 0, -1) if tokens % n == 0)
    return rows * merge, tokens // rows * merge


def grid_at(image_processor: Any, size: Size) -> tuple[int, int]:
    """Patches (rows, columns) of an image of this size, as a processor resizes it within its own limits. Raises
    PrunebenchError for a strip, which it refuses."""
    patch, merge, limits = image_processor.patch_size, image_processor.merge_size, image_processor.size
    try:
        height, width = smart_resize(*size, patch * merge, limits["shortest_edge"], limits["longest_edge"])
    except ValueError:
        raise PrunebenchError(
            f"expected an image at most 200 times as long as wide, found {size[1]} x {size[0]}: leave it out"
        ) from None
    return height // patch, width // patch


def patch_inputs(vision: Any) -> int:
    """Numbers of a patch: channels x frames x patch x patch; an image stands in every frame."""
    return int(vision.in_channels * vision.temporal_patch_size * vision.patch_size**2)


def windows_of(vision: Any, rows: int, cols: int) -> tuple[int, ...]:
    """Patches of each window of a grid of `rows` x `cols` patches, in the order of windows; what is left over at the
    ends of rows and columns makes smaller windows."""
    merge = vision.spatial_merge_size
    side = vision.window_size // merge // vision.patch_size
    heights, widths = ([min(side, n // merge - start) for start in range(0, n // merge, side)] for n in (rows, cols))
    return tuple(h * w * merge**2 for h in heights for w in widths)


def image_shape(vision: Any, sizes: TowerSizes, rows: int, cols: int) -> ImageShape:
    """An image of `rows` x `cols` patches: one grid of joined patches, without [CLS] and newlines."""
    merge = vision.spatial_merge_size
    return ImageShape(
        (Grid(rows // merge, cols // merge),),
        VisionShape(
            layers_used=vision.depth,
            hidden=sizes.hidden,
            mlp=sizes.mlp,
            tokens=rows * cols,
            patch_inputs=patch_inputs(vision),
            projector_hidden=sizes.hidden * merge**2,
            heads=vision.num_heads,
            prefix=0,
            mlp_matrices=sizes.mlp_matrices,
            merge=merge**2,
            one_row=True,
            projectors=sizes.projectors,
            windows=() if sizes.whole_layers is None else windows_of(vision, rows, cols),
            whole_layers=sizes.whole_layers or (),
        ),
    )


def decoder_sizes(shape: ModelShape, axes: tuple[int, int, int], more: Mapping[str, Any]) -> dict[str, Any]:
    """The text part of a config of these sizes; `axes`: how many of 8 or 16 equal parts of half a head each axis
    rotates. `more` goes to the config as it is."""
    half, parts = shape.head_dim // 2, sum(axes)
    if half % parts:
        raise PrunebenchError(
            f"expected a head of a multiple of {2 * parts} channels, which three axes rotate, found {shape.head_dim}"
        )
    return {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [axis * half // parts for axis in axes],
        },
        **more,
    }
