"""Qwen2-VL: a tower of full attention and a feed-forward part of two matrices."""

from __future__ import annotations

from math import isqrt
from typing import Any

from transformers import Qwen2VLConfig

from harness.core.shape import PromptShape
from harness.models.adapters.qwen_requirements import QWEN2_VL
from harness.models.adapters.qwen_sizes import TowerSizes, decoder_sizes
from harness.models.adapters.qwen_vl import QwenVLAdapter
from harness.models.requirements import one_of


class Qwen2VLAdapter(QwenVLAdapter):
    """`Qwen2VLForConditionalGeneration`."""

    title, checkpoint = "Qwen2-VL", "qwen2-vl-7b"
    architectures = ("Qwen2VLForConditionalGeneration",)
    proven = ("dart",)
    types = (one_of("model_type", ("qwen2_vl",)),)
    requirements = QWEN2_VL

    @classmethod
    def tower_sizes(cls, vision: Any) -> TowerSizes:
        return TowerSizes(vision.embed_dim, int(vision.embed_dim * vision.mlp_ratio), 2, 1, None)

    @classmethod
    def config_of(cls, usual: PromptShape, **text: Any) -> Qwen2VLConfig:
        tower = usual.images[0].vision
        vision = {
            "depth": tower.layers_used,
            "embed_dim": tower.hidden,
            "hidden_size": usual.decoder.hidden,
            "mlp_ratio": tower.mlp // tower.hidden,
            "num_heads": tower.heads,
            "patch_size": isqrt(tower.patch_inputs // 6),
            "spatial_merge_size": isqrt(tower.merge),
        }
        return Qwen2VLConfig(text_config=decoder_sizes(usual.decoder, (2, 3, 3), text), vision_config=vision)
