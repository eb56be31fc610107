"""What Qwen2-VL, Qwen2.5-VL and Qwen3-VL share: images of any size, and M-RoPE positions on three axes.

Images are found by the positions of their tokens (time, row, column), which the model makes of `image_grid_thw` and
`mm_token_type_ids`. Without the types Qwen2.5-VL counts along one axis and says nothing: such a prefill is refused
here. Videos are refused as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.core.errors import PrunebenchError
from harness.core.shape import ImageShape
from harness.models.adapters.qwen_images import QwenImages
from harness.models.adapters.qwen_places import grids_of
from harness.models.adapters.qwen_tower import GRIDS
from harness.models.adapters.tiles import of_prompts


class QwenVLAdapter(QwenImages):
    """The modules and the arithmetic that the three families share."""

    axes = 3
    image_facts = (GRIDS,)
    one_size = False
    several_images = True

    def positions(self, text_kwargs: Mapping[str, Any]) -> Tensor | None:
        given: Tensor | None = text_kwargs.get("position_ids")
        if given is None:
            return None
        if given.ndim == 2:
            return given[:, :, None].expand(-1, -1, 3)
        return given[-3:].permute(1, 2, 0)  # a fourth row in front is the text's own count

    def forget_places(self) -> None:
        # kept from the last prefill with grids, a row a prompt of that batch: a step of another number of rows crashes
        self.model.model.rope_deltas = None

    def rotary(self, like: Tensor, positions: Tensor, layer: int = 0) -> tuple[Tensor, Tensor]:
        cos, sin = self.text.rotary_emb(like, position_ids=positions.expand(-1, -1, 3).permute(2, 0, 1))
        return cos, sin

    def checked(self, facts: Mapping[str, Any], ids: Tensor, positions: Tensor, visual: Tensor) -> Mapping[str, Any]:
        name, merge = type(self.model).__name__, self.model.config.vision_config.spatial_merge_size
        if bool((ids == self.model.config.video_token_id).any()):
            raise PrunebenchError(
                f"{name}: expected images, found a video token in the prompt: videos are not supported"
            )
        grids = grids_of(positions, visual, name)
        return {**facts, GRIDS: [(1, merge * rows, merge * columns) for rows, columns in grids]}

    def images(self, counts: Sequence[int], facts: Mapping[str, Any]) -> list[tuple[ImageShape, ...]]:
        left = [self.shape_at(self.model.config, h, w) for _, h, w in torch.as_tensor(facts[GRIDS]).tolist()]
        return of_prompts(counts, left)
