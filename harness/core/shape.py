"""The sizes that costs and schedules depend on: of a decoder, of an image, of a prompt; plain numbers, no torch.

A decoder has no number of visual tokens: a prompt has one, and each of its images. Plans and budgets are made from a
`PromptShape`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from typing import Any, NamedTuple

from harness.core.errors import PrunebenchError


@dataclass(frozen=True)
class Share:
    """A share of a prompt's own visual tokens, above 0 and at most 1; 1 means all. A count of tokens is an int, never a
    share."""

    ratio: float

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise PrunebenchError(
                f"a share of the visual tokens: expected more than 0 and at most 1 (100%), found {self.ratio:g}"
            )

    def __str__(self) -> str:
        # never as 1e-05, which no budget is spelt as
        return f"{Decimal(repr(self.ratio)):f}kept" if self.ratio < 1 else "100%"


def quota(keep: int | Share, n_visual: int) -> int:
    """How many of a prompt's `n_visual` visual tokens `keep` is: a count, at most all of them, or a share, halves
    rounded up.

    The one place that turns either into a number. Raises PrunebenchError where a share of the tokens rounds to none.
    """
    if isinstance(keep, int):
        return min(keep, n_visual)
    tokens = math.floor(
        Decimal(repr(keep.ratio)) * n_visual + Decimal("0.5")
    )  # as it is spelt: 0.29 x 50 is 14.5, which floats miss
    if tokens < 1 <= n_visual:
        least = f"{math.ceil(5000 / n_visual) / 100:g}%"
        raise PrunebenchError(
            f"budget {keep}: expected at least one token, found a prompt of {n_visual} visual tokens: give {least} or"
            " more"
        )
    return tokens


#: of an image, (height, width) in pixels
Size = tuple[int, int]


class Grid(NamedTuple):
    """A grid of an image's tokens in raster order; `newline`: every row ends with one more token, which is no patch."""

    rows: int
    cols: int
    newline: bool = False

    @property
    def tokens(self) -> int:
        return self.rows * (self.cols + self.newline)


@dataclass(frozen=True)
class VisionShape:
    """What a ViT tower and its projector run for one image: `layers_used` are the layers that run, `tokens` those of a
    tile, [CLS] included, `tiles` how often it runs on one.

    `windows`: patches of each window in which layers attend, other than the `whole_layers`, which attend over the whole
    image; () for a tower without windows.
    """

    layers_used: int
    hidden: int
    mlp: int
    tokens: int
    patch_inputs: int  # channels x frames x patch x patch: the patch embedding's fan-in
    projector_hidden: int  # between its two matrices; 0: it is one
    heads: int  # of attention; they share `hidden` evenly
    tiles: int = 1
    prefix: int = 1  # tokens before the patches, the first of them [CLS]; 0: no [CLS]
    mlp_matrices: int = 2  # 3: SwiGLU
    merge: int = 1  # neighbouring patches that the projector joins into one visual token
    projectors: int = 1  # one more for each layer of DeepStack
    windows: tuple[int, ...] = ()
    whole_layers: tuple[int, ...] = ()
    resampled: bool = False  # the model may shrink the raster of an image's tiles to fewer tokens than patches
    one_row: bool = False  # patches of all images run in one row, under RoPE

    @property
    def patches(self) -> int:
        """Patches of a tile."""
        return self.tokens - self.prefix

    def attended(self, layer: int) -> tuple[int, ...]:
        """Tokens of each part of a tile within which a layer attends, counted from 0 or back from -1."""
        windowed = self.windows and layer % self.layers_used not in self.whole_layers
        return self.windows if windowed else (self.tokens,)


@dataclass(frozen=True)
class ImageShape:
    """One image of a prompt: the grids that its tokens form, in order, and the work of the vision tower on it.

    `cut`: rows and columns of tiles beside the overview, where the image is cut into tiles.
    """

    views: tuple[Grid, ...]
    vision: VisionShape
    cut: tuple[int, int] = (0, 0)

    @property
    def tokens(self) -> int:
        """Visual tokens, newlines included."""
        return sum(view.tokens for view in self.views)

    @property
    def whole(self) -> bool:
        """Is the image one grid of patches in raster order, without newlines?"""
        return len(self.views) == 1 and not self.views[0].newline


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only language model with SwiGLU feed-forward. It has no number of visual tokens: see `PromptShape`."""

    depth: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    bytes_per_value: int

    def scaled_layer(self, layer: int, of: int = 32) -> int:
        """`layer` of an `of`-layer model at the same relative depth of this one, never below 1: 6 of 32 -> 2 of 12."""
        return max(1, round(layer * self.depth / of))

    def __getattr__(self, name: str) -> Any:
        # reached for names that a decoder does not have; methods written for 0.1 ask it for these two
        if name in ("n_visual", "vision"):
            raise AttributeError(
                f"a decoder has no {name} since prunebench 0.2: ask the prompt (plan(prompt), run.prompts); see"
                " docs/migrating.md"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


@dataclass(frozen=True)
class PromptShape:
    """What plans and budgets are made from: the decoder, the images of a prompt in order, and its text tokens.

    `one_of_many`: other prompts of the model have other numbers of visual tokens, so what is meant for all of them is a
    `Share`.
    """

    decoder: ModelShape
    images: tuple[ImageShape, ...]
    n_text: int = 0
    one_of_many: bool = False

    @property
    def depth(self) -> int:
        """Decoder layers."""
        return self.decoder.depth

    @cached_property
    def n_visual(self) -> int:
        """Visual tokens of all images before any reduction."""
        return sum(image.tokens for image in self.images)

    def quota(self, keep: int | Share) -> int:
        """How many of this prompt's visual tokens `keep` is; raises as `quota`."""
        return quota(keep, self.n_visual)

    def places(self) -> list[tuple[int, int, int, int, int, int]]:
        """(image, view, row, col, rows and cols of the view) of every visual token, in order; row and col -1 for a
        newline."""
        found = []
        for i, image in enumerate(self.images):
            for j, view in enumerate(image.views):
                for row in range(view.rows):
                    found += [(i, j, row, col, view.rows, view.cols) for col in range(view.cols)]
                    found += [(i, j, -1, -1, view.rows, view.cols)] * view.newline
        return found

    def __getattr__(self, name: str) -> Any:
        if name in ModelShape.__dataclass_fields__ or name == "scaled_layer":
            raise AttributeError(
                f"a prompt has no {name}: ask its decoder (prompt.decoder.{name}); see docs/migrating.md"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def with_text(self, n_text: int) -> PromptShape:
        """The same images with another number of text tokens."""
        return replace(self, n_text=n_text)


_CLIP_L_336: dict[str, Any] = {
    "layers_used": 24,
    "hidden": 1024,
    "mlp": 4096,
    "tokens": 577,
    "heads": 16,
    "patch_inputs": 3 * 14**2,
}


def _llava15(decoder: ModelShape) -> PromptShape:
    return PromptShape(
        decoder, (ImageShape((Grid(24, 24),), VisionShape(**_CLIP_L_336, projector_hidden=decoder.hidden)),)
    )


_VICUNA_7B = ModelShape(
    depth=32, hidden=4096, heads=32, kv_heads=32, head_dim=128, mlp=11008, vocab=32064, bytes_per_value=2
)
_VICUNA_13B = ModelShape(
    depth=40, hidden=5120, heads=40, kv_heads=40, head_dim=128, mlp=13824, vocab=32064, bytes_per_value=2
)


#: a prompt of one image, without text, for models whose sizes are known without their config file; 16 bit values
SHAPES = {
    "llava-1.5-7b": _llava15(_VICUNA_7B),
    "llava-1.5-13b": _llava15(_VICUNA_13B),
}
