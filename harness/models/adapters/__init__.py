"""Model families, one file each: the only place that spells class names of transformers and attribute paths of
models."""

from __future__ import annotations

from typing import Any

from torch import nn

from harness.core.errors import PrunebenchError
from harness.models.adapters.base import Adapter, Features, TowerAttention
from harness.models.adapters.idefics import Idefics3Adapter, SmolVLMAdapter
from harness.models.adapters.internvl import InternVLAdapter
from harness.models.adapters.llava import ORIGINAL_CLASSES, LlavaAdapter
from harness.models.adapters.llava_next import LlavaNextAdapter
from harness.models.adapters.llava_onevision import LlavaOnevisionAdapter
from harness.models.adapters.qwen2_vl import Qwen2VLAdapter
from harness.models.adapters.qwen3_vl import Qwen3VLAdapter
from harness.models.adapters.qwen25_vl import Qwen25VLAdapter

#: one a family
_FAMILIES: tuple[type[Adapter], ...] = (
    LlavaAdapter,
    LlavaNextAdapter,
    LlavaOnevisionAdapter,
    Qwen2VLAdapter,
    Qwen25VLAdapter,
    Qwen3VLAdapter,
    InternVLAdapter,
    SmolVLMAdapter,
    Idefics3Adapter,
)

#: adapters by class name of transformers, as config.json names it under "architectures"
ADAPTERS: dict[str, type[Adapter]] = {name: cls for cls in _FAMILIES for name in cls.architectures}


def adapter_class(config: Any) -> type[Adapter]:
    """The adapter of a model config's first architecture, or of a model type; raises PrunebenchError naming what is
    supported."""
    names = list(getattr(config, "architectures", None) or [])
    return _known(names[0] if names else type(config).__name__.removesuffix("Config") + "ForConditionalGeneration")


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter of a loaded model. Raises PrunebenchError naming what is supported."""
    return _known(type(model).__name__)(model)


def _known(name: str) -> type[Adapter]:
    if name not in ADAPTERS:
        raise PrunebenchError(
            f"expected a model of one of {', '.join(ADAPTERS)}; found {name}, which prunebench does not support yet"
        )
    return ADAPTERS[name]


__all__ = [
    "ADAPTERS",
    "ORIGINAL_CLASSES",
    "Adapter",
    "Features",
    "Idefics3Adapter",
    "InternVLAdapter",
    "LlavaAdapter",
    "LlavaNextAdapter",
    "LlavaOnevisionAdapter",
    "Qwen2VLAdapter",
    "Qwen3VLAdapter",
    "Qwen25VLAdapter",
    "SmolVLMAdapter",
    "TowerAttention",
    "adapter_class",
    "adapter_for",
]
