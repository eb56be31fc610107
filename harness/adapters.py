"""Model families: the only place that spells attribute paths (decoder layers, tower, projector, image token)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from harness.errors import PrunebenchError
from harness.shape import ModelShape, VisionShape


class TowerAttention(NamedTuple):
    """The parts of a tower layer's attention from which a softmax row follows."""

    q_proj: nn.Module
    k_proj: nn.Module
    heads: int
    scaling: float


@dataclass(frozen=True)
class LlavaAdapter:
    """`LlavaForConditionalGeneration` (LLaVA-1.5): CLIP tower, projector, Llama-like decoder."""

    model: Any

    @property
    def core(self) -> nn.Module:
        """The module whose forward takes `input_ids` and merges image features."""
        core: nn.Module = self.model.model
        return core

    @property
    def tower(self) -> nn.Module:
        """The vision tower; its forward takes `pixel_values`."""
        tower: nn.Module = self.model.model.vision_tower
        return tower

    @property
    def tower_layers(self) -> list[nn.Module]:
        """The tower's encoder layers."""
        return list(self.model.model.vision_tower.encoder.layers)

    @property
    def tower_prefix(self) -> int:
        """Tokens of the tower before the patches; the first is [CLS]."""
        return 1

    @staticmethod
    def tower_attention(layer: Any) -> TowerAttention:
        attention = layer.self_attn
        return TowerAttention(attention.q_proj, attention.k_proj, attention.num_heads, attention.scale)

    @property
    def text(self) -> Any:
        return self.model.model.language_model

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.text.layers)

    @property
    def image_token_id(self) -> int:
        return int(self.model.config.image_token_id)

    def rotary(self, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin), each (b, n, head_dim), in the dtype of `like`."""
        cos, sin = self.text.rotary_emb(like, position_ids=positions)
        return cos, sin

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Projected image features, (images, n_visual, hidden)."""
        features = self.model.model.get_image_features(pixel_values=pixel_values, return_dict=True).pooler_output
        return torch.stack(list(features))

    @property
    def shape(self) -> ModelShape:
        weight = next(self.text.layers[0].parameters())
        return self.shape_of(self.model.config, weight.element_size())

    @staticmethod
    def shape_of(config: Any, bytes_per_value: int) -> ModelShape:
        """The sizes from a model config alone, without weights."""
        text, vision = config.text_config, config.vision_config
        n_patches = (vision.image_size // vision.patch_size) ** 2
        return ModelShape(
            depth=text.num_hidden_layers,
            hidden=text.hidden_size,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            mlp=text.intermediate_size,
            vocab=text.vocab_size,
            n_visual=n_patches,
            bytes_per_value=bytes_per_value,
            vision=VisionShape(
                # transformers runs the whole tower, also the layers behind `vision_feature_layer`
                layers_used=vision.num_hidden_layers,
                hidden=vision.hidden_size,
                mlp=vision.intermediate_size,
                tokens=n_patches + 1,
                patch_inputs=3 * vision.patch_size**2,
                projector_hidden=text.hidden_size,
            ),
        )


ADAPTERS = {"LlavaForConditionalGeneration": LlavaAdapter}


def adapter_for(model: nn.Module) -> LlavaAdapter:
    """The adapter of a loaded model. Raises PrunebenchError naming what is supported."""
    name = type(model).__name__
    if name not in ADAPTERS:
        raise PrunebenchError(f"expected a model of one of {', '.join(ADAPTERS)}; found {name}, which prunebench does not support yet")
    return ADAPTERS[name](model)
