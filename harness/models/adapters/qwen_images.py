"""Images of Qwen-VL by their size alone: grids, tokens, pixels and facts, as the processor makes them."""

from __future__ import annotations

from abc import abstractmethod
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from harness.core.shape import ImageShape, Size
from harness.models.adapters.qwen_sizes import (
    LEAST_PIXELS,
    MOST_PIXELS,
    TowerSizes,
    grid_at,
    image_shape,
    largest_grid,
    patch_inputs,
)
from harness.models.adapters.qwen_tower import GRIDS, QwenTower


class QwenImages(QwenTower):
    """The part of an adapter that speaks of images without their pixels."""

    @classmethod
    @abstractmethod
    def tower_sizes(cls, vision: Any) -> TowerSizes:
        """The tower's sizes from its config."""

    @classmethod
    def shape_at(cls, config: Any, rows: int, columns: int) -> ImageShape:
        """An image of `rows` x `columns` patches."""
        return image_shape(config.vision_config, cls.tower_sizes(config.vision_config), rows, columns)

    @classmethod
    def image_of(cls, config: Any) -> ImageShape:
        return cls.shape_at(config, *largest_grid(config.vision_config))

    @classmethod
    def largest(cls, config: Any, processor: Any) -> ImageShape:
        return cls.shape_at(config, *largest_grid(config.vision_config, processor.image_processor.size["longest_edge"]))

    @classmethod
    def image_at(cls, config: Any, processor: Any, size: Size) -> ImageShape:
        return cls.shape_at(config, *grid_at(processor.image_processor, size))

    @classmethod
    def tokens_at(cls, config: Any, processor: Any, size: Size) -> int:
        rows, columns = grid_at(processor.image_processor, size)
        return int(rows * columns // config.vision_config.spatial_merge_size**2)

    @classmethod
    def usual_processor(cls, config: Any) -> Any:
        vision = config.vision_config
        limits = {"shortest_edge": LEAST_PIXELS, "longest_edge": MOST_PIXELS}
        sizes = {"patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size, "size": limits}
        return SimpleNamespace(image_processor=SimpleNamespace(**sizes))

    @classmethod
    def facts_at(cls, config: Any, processor: Any, size: Size) -> dict[str, Tensor]:
        return {GRIDS: torch.tensor([[1, *grid_at(processor.image_processor, size)]])}

    @classmethod
    def pixels_of(cls, config: Any) -> tuple[int, ...]:
        rows, columns = largest_grid(config.vision_config)
        return rows * columns, patch_inputs(config.vision_config)

    @classmethod
    def pixels_at(cls, config: Any, processor: Any, size: Size) -> tuple[int, ...]:
        rows, columns = grid_at(processor.image_processor, size)
        return rows * columns, patch_inputs(config.vision_config)

    @classmethod
    def sample(cls, config: Any, n: int) -> dict[str, Tensor]:
        """Small images, for a tower is quadratic in their patches."""
        vision = config.vision_config
        rows, columns = 2 * vision.spatial_merge_size, 3 * vision.spatial_merge_size
        inputs = patch_inputs(vision)
        pixels = torch.linspace(-1, 1, n * rows * columns * inputs).view(-1, inputs)
        return {"pixel_values": pixels, GRIDS: torch.tensor([[1, rows, columns]] * n)}

    @classmethod
    def depths_of(cls, config: Any) -> dict[str, int]:
        return {"decoder": config.text_config.num_hidden_layers, "vision": config.vision_config.depth}

    @classmethod
    def shapes_of(cls, config: Any) -> dict[str, tuple[int, ...]]:
        hidden = cls.tower_sizes(config.vision_config).hidden
        return {**super().shapes_of(config), "visual.blocks.0.attn.qkv.weight": (3 * hidden, hidden)}
