"""What Qwen2-VL, Qwen2.5-VL and Qwen3-VL share: images of any size, and M-RoPE positions on three axes.

Images are found by the positions of their tokens (time, row, column), which the model makes of `image_grid_thw` and
`mm_token_type_ids`. Without the types Qwen2.5-VL counts along one axis and says nothing: such a prefill is refused
here. Videos are refused as well.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import PrunebenchError
from harness.core.shape import ImageShape
from harness.models.adapters.qwen_sizes import TowerSizes, image_shape, patch_inputs, usual_grid
from harness.models.adapters.qwen_tower import GRIDS, QwenTower


class QwenVLAdapter(QwenTower):
    """The modules and the arithmetic that the three families share."""

    axes = 3
    image_facts = (GRIDS, "mm_token_type_ids")
    evaluated = False

    @property
    def core(self) -> nn.Module:
        core: nn.Module = self.model.model
        return core

    @property
    def text(self) -> Any:
        return self.model.model.language_model

    def positions(self, text_kwargs: Mapping[str, Any]) -> Tensor | None:
        given: Tensor | None = text_kwargs.get("position_ids")
        if given is None:
            return None
        if given.ndim == 2:
            return given[:, :, None].expand(-1, -1, 3)
        return given[-3:].permute(1, 2, 0)  # a fourth row in front is the text's own count

    def rotary(self, like: Tensor, positions: Tensor, layer: int = 0) -> tuple[Tensor, Tensor]:
        cos, sin = self.text.rotary_emb(like, position_ids=positions.expand(-1, -1, 3).permute(2, 0, 1))
        return cos, sin

    def checked(self, facts: Mapping[str, Any], ids: Tensor, positions: Tensor, visual: Tensor) -> Mapping[str, Any]:
        name, merge = type(self.model).__name__, self.model.config.vision_config.spatial_merge_size
        if bool((ids == self.model.config.video_token_id).any()):
            raise PrunebenchError(
                f"{name}: expected images, found a video token in the prompt: videos are not supported"
            )
        grids = []
        for places, marks in zip(positions.tolist(), visual.tolist(), strict=True):
            for is_image, run in groupby(zip(places, marks, strict=True), key=lambda token: token[1]):
                if is_image:
                    grids.append(_grid([place for place, _ in run], name))
        return {**facts, GRIDS: [(1, merge * rows, merge * columns) for rows, columns in grids]}

    def images(self, counts: Sequence[int], facts: Mapping[str, Any]) -> list[tuple[ImageShape, ...]]:
        left = [self.image_at(self.model.config, h, w) for _, h, w in torch.as_tensor(facts[GRIDS]).tolist()]
        found = []
        for count in counts:
            images: list[ImageShape] = []
            while sum(image.tokens for image in images) < count:
                images.append(left.pop(0))
            found.append(tuple(images))
        return found

    @classmethod
    @abstractmethod
    def tower_sizes(cls, vision: Any) -> TowerSizes:
        """The tower's sizes from its config."""

    @classmethod
    def image_at(cls, config: Any, rows: int, columns: int) -> ImageShape:
        """An image of `rows` x `columns` patches."""
        return image_shape(config.vision_config, cls.tower_sizes(config.vision_config), rows, columns)

    @classmethod
    def image_of(cls, config: Any) -> ImageShape:
        return cls.image_at(config, *usual_grid(config.vision_config))

    @classmethod
    def pixels_of(cls, config: Any) -> tuple[int, ...]:
        rows, columns = usual_grid(config.vision_config)
        return rows * columns, patch_inputs(config.vision_config)

    @classmethod
    def sample(cls, config: Any, n: int) -> dict[str, Tensor]:
        patches, inputs = cls.pixels_of(config)
        pixels = torch.linspace(-1, 1, n * patches * inputs).view(n * patches, inputs)
        return {"pixel_values": pixels, GRIDS: torch.tensor([[1, *usual_grid(config.vision_config)]] * n)}

    @classmethod
    def depths_of(cls, config: Any) -> dict[str, int]:
        return {"decoder": config.text_config.num_hidden_layers, "vision": config.vision_config.depth}

    @classmethod
    def shapes_of(cls, config: Any) -> dict[str, tuple[int, ...]]:
        hidden = cls.tower_sizes(config.vision_config).hidden
        return {**super().shapes_of(config), "visual.blocks.0.attn.qkv.weight": (3 * hidden, hidden)}


def _grid(places: list[list[int]], name: str) -> tuple[int, int]:
    """Rows and columns of an image whose tokens stand at `places`. Raises PrunebenchError where they are no grid."""
    start = places[0][0]
    rows, columns = (max(place[axis % len(place)] for place in places) - start + 1 for axis in (1, 2))
    grid = ([start, start + i // columns, start + i % columns] for i in range(len(places)))
    if rows * columns != len(places) or any(a != b for a, b in zip(places, grid, strict=True)):
        raise PrunebenchError(
            f"{name}: expected {len(places)} image tokens at the positions of a grid (time, row, column), found tokens"
            f" from {places[0]} to {places[-1]}: give the model mm_token_type_ids and {GRIDS} of the processor, also"
            " beside features"
        )
    return rows, columns
