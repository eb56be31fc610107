"""SigLIP's vision tower: a ViT without [CLS], of images of one size.

Its attention rows are those of CLIP's layers, over patches alone. Looks at [CLS] are refused by
`harness.method.fits.unseen`, which reads `VisionShape.prefix`. The pooling head is refused, because it would run for
nothing and its cost is in no column.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

from torch import nn
from transformers import SiglipVisionConfig

from harness.core.shape import Grid, VisionShape
from harness.models.adapters.base import Adapter, TowerAttention
from harness.models.adapters.llava import TOWER
from harness.models.requirements import Requirement, at, one_of

MODEL_TYPE = "siglip_vision_model"


def _kind(config: Any) -> str | None:
    found = at(config, "vision_config.model_type")
    return None if found == MODEL_TYPE else f"{found!r}"


#: points of a SigLIP tower in `vision_config`
SIGLIP: tuple[Requirement, ...] = (
    *TOWER,
    Requirement(f"a tower of type {MODEL_TYPE}", _kind),
    one_of("vision_config.vision_use_head", (False,), " (a pooling head runs for nothing, and is not in the costs)"),
)


class SiglipTower(Adapter):
    """The part of an adapter that speaks of a SigLIP `tower`."""

    @property
    def tower_layers(self) -> list[nn.Module]:
        tower: Any = self.tower
        return list(tower.encoder.layers)

    @property
    def tower_prefix(self) -> int | None:
        return None

    def tower_attention(self, layer: Any) -> TowerAttention:
        attention = layer.self_attn
        return TowerAttention(attention.q_proj, attention.k_proj, attention.num_heads, attention.scale)


def patches_of(vision: Any) -> Grid:
    """The patches of an image or a tile; pixels behind the last whole patch are not read."""
    side = vision.image_size // vision.patch_size
    return Grid(side, side)


def vision_shape(vision: Any, projector_hidden: int, tiles: int = 1, resampled: bool = False) -> VisionShape:
    """A SigLIP tower on `tiles` tiles, from its config, before a two-layer projector."""
    return VisionShape(
        # transformers runs the whole tower, also layers behind the one whose states are projected
        layers_used=vision.num_hidden_layers,
        hidden=vision.hidden_size,
        mlp=vision.intermediate_size,
        tokens=patches_of(vision).tokens,
        patch_inputs=3 * vision.patch_size**2,
        projector_hidden=projector_hidden,
        heads=vision.num_attention_heads,
        tiles=tiles,
        prefix=0,
        resampled=resampled,
    )


def tower_shapes(vision: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors that tell the tower's sizes, by the end of their names in a checkpoint."""
    hidden = vision.hidden_size
    return {
        "encoder.layers.0.mlp.fc1.weight": (vision.intermediate_size, hidden),
        "encoder.layers.0.self_attn.q_proj.weight": (hidden, hidden),
        "patch_embedding.weight": (hidden, 3, vision.patch_size, vision.patch_size),
        "position_embedding.weight": (patches_of(vision).tokens, hidden),
    }


def tower_config(vision: VisionShape, rows: int) -> SiglipVisionConfig:
    """A config of these sizes, for images of `rows` x `rows` patches."""
    patch = isqrt(vision.patch_inputs // 3)
    return SiglipVisionConfig(
        hidden_size=vision.hidden,
        intermediate_size=vision.mlp,
        num_hidden_layers=vision.layers_used,
        num_attention_heads=vision.heads,
        image_size=patch * rows,
        patch_size=patch,
        vision_use_head=False,
    )
