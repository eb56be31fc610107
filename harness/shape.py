"""The sizes of a model that costs and schedules depend on; plain numbers, no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VisionShape:
    """A ViT tower and its projector: `layers_used` are the layers that run, `tokens` includes [CLS]."""

    layers_used: int
    hidden: int
    mlp: int
    tokens: int
    patch_inputs: int  # channels x patch x patch: the patch embedding's fan-in
    projector_hidden: int


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only language model with SwiGLU feed-forward, and the vision tower before it."""

    depth: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    n_visual: int  # visual tokens per image
    bytes_per_value: int
    vision: VisionShape

    def scaled_layer(self, layer: int, of: int = 32) -> int:
        """`layer` of an `of`-layer model at the same relative depth of this one, never below 1: 6 of 32 -> 2 of 12."""
        return max(1, round(layer * self.depth / of))


_CLIP_L_336 = {"layers_used": 24, "hidden": 1024, "mlp": 4096, "tokens": 577, "patch_inputs": 3 * 14 * 14}
#: models whose sizes are known without their config file; 16 bit values
SHAPES = {
    "llava-1.5-7b": ModelShape(
        depth=32, hidden=4096, heads=32, kv_heads=32, head_dim=128, mlp=11008, vocab=32064, n_visual=576, bytes_per_value=2,
        vision=VisionShape(**_CLIP_L_336, projector_hidden=4096),
    ),
    "llava-1.5-13b": ModelShape(
        depth=40, hidden=5120, heads=40, kv_heads=40, head_dim=128, mlp=13824, vocab=32064, n_visual=576, bytes_per_value=2,
        vision=VisionShape(**_CLIP_L_336, projector_hidden=5120),
    ),
}
