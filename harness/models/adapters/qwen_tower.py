"""The vision towers of Qwen-VL: the patches of all images of a batch in one row, without [CLS], joined by four at the
end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import PrunebenchError
from harness.models.adapters.base import Adapter, Features, TowerAttention

#: the processor's output, and the model's argument, that says (frames, rows, columns) of each image in patches
GRIDS = "image_grid_thw"


class QwenTower(Adapter):
    """The part of an adapter that speaks of the tower."""

    joined = True
    own_template = True
    limits = ("min_pixels", "max_pixels")

    @property
    def tower(self) -> nn.Module:
        tower: nn.Module = self.model.model.visual
        return tower

    @property
    def tower_layers(self) -> list[nn.Module]:
        return list(self.model.model.visual.blocks)

    def tower_attention(self, layer: Any) -> TowerAttention:
        raise PrunebenchError(
            f"{type(self.model).__name__}: expected queries and keys of single images, found a tower that projects"
            " those of all images at once"
        )

    def watch_attention(
        self, layer: Any, give: Callable[[Tensor, Tensor, list[int]], None], turns: int = 1
    ) -> list[Any]:
        attention, called = layer.attn, dict[str, Any]()

        def before(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
            called.update(kwargs)

        def projected(_module: nn.Module, _args: Any, out: Tensor) -> None:
            cos, sin = (part[:, None].float() for part in called["position_embeddings"])
            q, k, _ = out.view(len(out), 3, attention.num_heads, -1).unbind(1)
            for _ in range(turns):
                q, k = (self.rotate(x.float(), cos, sin).to(x.dtype) for x in (q, k))
            give(q.transpose(0, 1), k.transpose(0, 1), called["cu_seqlens"].diff().tolist())
            called.clear()

        return [
            attention.register_forward_pre_hook(before, with_kwargs=True),
            attention.qkv.register_forward_hook(projected),
        ]

    def tower_scaling(self, layer: Any) -> float:
        return float(layer.attn.scaling)

    def tower_order(self, tower_kwargs: Mapping[str, Any]) -> list[Tensor]:
        merge = self.model.config.vision_config.spatial_merge_size**2
        grids = tower_kwargs["grid_thw"]
        counts = [t * h * w for t, h, w in grids.tolist()]
        patches = torch.arange(sum(counts), device=grids.device).view(-1, merge)[self.reordered(grids)]
        return list(torch.split(patches, [count // merge for count in counts]))

    def reordered(self, grids: Tensor) -> Tensor | slice:
        """Where the joined patches stand in the tower's row that become visual tokens 0, 1, ... of all images."""
        return slice(None)

    def encode(self, **inputs: Any) -> list[Features]:
        if inputs.get(GRIDS) is None:
            raise PrunebenchError(
                f"{type(self.model).__name__}: expected {GRIDS} of the processor beside pixel_values, found none"
            )
        return super().encode(**inputs)

    def inputs(self, images: Sequence[Features], ids: Tensor) -> dict[str, Any]:
        types = (ids == self.image_token_ids[0]).int()
        return {**super().inputs(images, ids), "mm_token_type_ids": types}
