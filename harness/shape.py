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
