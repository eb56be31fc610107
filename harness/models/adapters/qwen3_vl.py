"""Qwen3-VL: a tower of full attention, some of whose inner layers are added to visual tokens in the decoder
(DeepStack)."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

from torch import Tensor
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from harness.core.shape import PromptShape
from harness.models.adapters.base import Features
from harness.models.adapters.qwen_requirements import QWEN3_VL
from harness.models.adapters.qwen_sizes import TowerSizes, decoder_sizes
from harness.models.adapters.qwen_vl import QwenVLAdapter
from harness.models.requirements import one_of


class Qwen3VLAdapter(QwenVLAdapter):
    """`Qwen3VLForConditionalGeneration`: DeepStack's features of an image go with it, and the engine adds them to the
    tokens that are still there. Merged tokens get none."""

    title, checkpoint = "Qwen3-VL", "qwen3-vl-8b"
    architectures = ("Qwen3VLForConditionalGeneration",)
    types = (one_of("model_type", ("qwen3_vl",)),)
    requirements = QWEN3_VL

    def take_deepstack(self, text_kwargs: dict[str, Any]) -> list[Tensor]:
        taken = text_kwargs.get("deepstack_visual_embeds")
        text_kwargs["visual_pos_masks"] = text_kwargs["deepstack_visual_embeds"] = None
        return list(taken or ())

    def outputs(self, images: Sequence[Features]) -> dict[str, Any]:
        deep = [list(layer) for layer in zip(*(image.deepstack for image in images), strict=True)]
        pooled = [image.pooled for image in images]
        return {"image": BaseModelOutputWithDeepstackFeatures(pooler_output=pooled, deepstack_features=deep)}

    @classmethod
    def tower_sizes(cls, vision: Any) -> TowerSizes:
        projectors = 1 + len(vision.deepstack_visual_indexes)
        return TowerSizes(vision.hidden_size, vision.intermediate_size, 2, projectors, None)

    @classmethod
    def config_of(cls, usual: PromptShape, **text: Any) -> Qwen3VLConfig:
        tower = usual.images[0].vision
        deep, depth = tower.projectors - 1, tower.layers_used
        vision = {
            "depth": depth,
            "hidden_size": tower.hidden,
            "intermediate_size": tower.mlp,
            "num_heads": tower.heads,
            "patch_size": isqrt(tower.patch_inputs // 6),
            "spatial_merge_size": isqrt(tower.merge),
            "out_hidden_size": usual.decoder.hidden,
            "deepstack_visual_indexes": [(i + 1) * depth // (deep + 1) - 1 for i in range(deep)],
        }
        return Qwen3VLConfig(text_config=decoder_sizes(usual.decoder, (6, 5, 5), text), vision_config=vision)
