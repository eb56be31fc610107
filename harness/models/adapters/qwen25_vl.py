"""Qwen2.5-VL: a tower that attends within windows in most layers, in an order of its own, with SwiGLU."""

from __future__ import annotations

from math import isqrt
from typing import Any

from torch import Tensor
from transformers import Qwen2_5_VLConfig
from transformers.vision_utils import get_vision_window_index

from harness.core.shape import PromptShape
from harness.models.adapters.qwen_requirements import QWEN25_VL
from harness.models.adapters.qwen_sizes import TowerSizes, decoder_sizes
from harness.models.adapters.qwen_vl import QwenVLAdapter
from harness.models.requirements import one_of


class Qwen25VLAdapter(QwenVLAdapter):
    """`Qwen2_5_VLForConditionalGeneration`: layers run window by window, and visual tokens are put back in raster
    order behind the projector."""

    title, checkpoint = "Qwen2.5-VL", "qwen2.5-vl-7b"
    architectures = ("Qwen2_5_VLForConditionalGeneration",)
    proven = ("dart", "hiprune", "mmtok", "vscan")
    types = (one_of("model_type", ("qwen2_5_vl",)),)
    requirements = QWEN25_VL

    def reordered(self, grids: Tensor) -> Tensor:
        vision = self.model.config.vision_config
        sizes = {name: getattr(vision, name) for name in ("spatial_merge_size", "window_size", "patch_size")}
        order, _ = get_vision_window_index(grids, **sizes)
        back: Tensor = order.to(grids.device).argsort()
        return back

    @classmethod
    def tower_sizes(cls, vision: Any) -> TowerSizes:
        return TowerSizes(vision.hidden_size, vision.intermediate_size, 3, 1, tuple(vision.fullatt_block_indexes))

    @classmethod
    def config_of(cls, usual: PromptShape, **text: Any) -> Qwen2_5_VLConfig:
        tower = usual.images[0].vision
        vision = {
            "depth": tower.layers_used,
            "hidden_size": tower.hidden,
            "intermediate_size": tower.mlp,
            "num_heads": tower.heads,
            "patch_size": isqrt(tower.patch_inputs // 6),
            "spatial_merge_size": isqrt(tower.merge),
            "fullatt_block_indexes": list(tower.whole_layers),
            "out_hidden_size": usual.decoder.hidden,
        }
        return Qwen2_5_VLConfig(text_config=decoder_sizes(usual.decoder, (2, 3, 3), text), vision_config=vision)
