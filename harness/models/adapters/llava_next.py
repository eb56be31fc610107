"""LLaVA-1.6: `LlavaNextForConditionalGeneration`, LLaVA-1.5's parts on an image that is cut into tiles.

The tower runs on the image shrunk to one tile, the overview, and on the tiles of the best of five resolutions. The
decoder gets the overview's patches, then the patches of all tiles as one raster, without those of the padding, and a
newline token behind each row of the raster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import LlavaNextConfig

from harness.core.shape import ImageShape, Size
from harness.method.fits import PER_IMAGE
from harness.models.adapters.base import ROWS
from harness.models.adapters.llava import LlavaAdapter, types_of
from harness.models.adapters.tiles import Cutting, cut_of, of_prompts, ordered, sizes_of
from harness.models.requirements import Requirement, one_of


def _pinpoints(config: Any) -> str | None:
    side, found = config.vision_config.image_size, config.image_grid_pinpoints
    whole = all(
        len(one) == 2 and all(type(length) is int and length > 0 and length % side == 0 for length in one)
        for one in found
    )
    return None if found and whole else f"{found}"


#: the resolutions that tiles make
PINPOINTS = Requirement(
    "image_grid_pinpoints as (height, width) in whole tiles of vision_config.image_size", _pinpoints
)


class LlavaNextAdapter(LlavaAdapter):
    """An image is the overview, a square of patches, and a raster of patches with a newline behind each row."""

    title, checkpoint = "LLaVA-NeXT", "llava-v1.6-vicuna-7b"
    architectures = ("LlavaNextForConditionalGeneration",)
    proven: ClassVar[tuple[str, ...] | None] = ("hiprune", "visionzip", "vscan")
    config_class = LlavaNextConfig
    types = types_of("llava_next")
    requirements = (
        *LlavaAdapter.requirements,
        PINPOINTS,
        # keys of LLaVA's own code, where a converted file kept them
        one_of("mm_patch_merge_type", (None, "spatial_unpad"), " (one raster without padding, with newlines)"),
        one_of("image_aspect_ratio", (None, "anyres"), " (tiles of the best resolution)"),
        one_of("use_image_newline_parameter", (None, True)),
    )
    image_facts: ClassVar[tuple[str, ...]] = ("image_sizes",)
    one_size = False

    @property
    def newline(self) -> Tensor:
        """(hidden,): the token behind each row of the raster."""
        newline: Tensor = self.model.model.image_newline
        return newline

    @classmethod
    def cut(cls, config: Any, size: Size) -> Cutting:
        """How an image of this size is cut."""
        vision = config.vision_config
        return cut_of(size, config.image_grid_pinpoints, vision.image_size, vision.image_size // vision.patch_size)

    @classmethod
    def shape_at(cls, config: Any, size: Size) -> ImageShape:
        """An image of this size."""
        tile, cut = super().image_of(config), cls.cut(config, size)
        vision = replace(tile.vision, tiles=cut.tiles)
        return ImageShape((*tile.views, cut.raster), vision, (cut.rows, cut.cols))

    @classmethod
    def image_of(cls, config: Any) -> ImageShape:
        return cls.shape_at(config, sizes_of(cls.facts_of(config))[0])

    @classmethod
    def image_at(cls, config: Any, processor: Any, size: Size) -> ImageShape:
        return cls.shape_at(config, size)

    @classmethod
    def tokens_at(cls, config: Any, processor: Any, size: Size) -> int:
        cut = cls.cut(config, size)
        return cut.side**2 + cut.raster.tokens

    @classmethod
    def facts_of(cls, config: Any) -> Mapping[str, Tensor]:
        best = max(config.image_grid_pinpoints, key=lambda size: cls.shape_at(config, tuple(size)).tokens)
        return {"image_sizes": torch.tensor([best])}

    @classmethod
    def facts_at(cls, config: Any, processor: Any, size: Size) -> dict[str, Tensor]:
        return {"image_sizes": torch.tensor([size])}

    @classmethod
    def pixels_of(cls, config: Any) -> tuple[int, ...]:
        return cls.image_of(config).vision.tiles, *super().pixels_of(config)

    @classmethod
    def pixels_at(cls, config: Any, processor: Any, size: Size) -> tuple[int, ...]:
        return 1, cls.shape_at(config, size).vision.tiles, *super().pixels_of(config)

    def images(self, counts: Sequence[int], facts: Mapping[str, Any]) -> list[tuple[ImageShape, ...]]:
        return of_prompts(counts, [self.shape_at(self.model.config, size) for size in sizes_of(facts)])

    def per_image(self, what: str, values: Tensor, facts: Mapping[str, Any]) -> list[Tensor]:
        if what in PER_IMAGE:
            return [tiles[:1] for tiles in self.per_tile(what, values, facts)]
        axis, cuts = -1 if what in ROWS else 0, [self.cut(self.model.config, size) for size in sizes_of(facts)]
        images = zip(self.per_tile(what, values, facts), cuts, strict=True)
        return [ordered(patches, cut.order(), axis) for patches, cut in images]

    def per_tile(self, what: str, values: Tensor, facts: Mapping[str, Any]) -> list[Tensor]:
        cuts = [self.cut(self.model.config, size) for size in sizes_of(facts)]
        axis = -1 if what in ROWS else 0
        return [torch.cat(mine.unbind(), axis) for mine in torch.split(values, [cut.tiles for cut in cuts])]
