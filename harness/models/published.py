"""Published checkpoints by our name for them: config.json as on the hub, kept in configs/published/.

Sizes, costs and fits of these models are known without a hub: `prunebench cost`, `prunebench methods --families` and
random weights of real size are made from them.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from transformers import AutoConfig

from harness.core.paths import DATA
from harness.core.shape import SHAPES, PromptShape
from harness.models.adapters import adapter_class

FOLDER = DATA / "configs" / "published"
#: bytes of a value in the checkpoints' own format
BYTES = 2


def published_models() -> list[str]:
    """The names of checkpoints whose config.json is kept here."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def published_config(name: str) -> Any | None:
    """The configuration of a published checkpoint, a new object each time; None where it is not kept here."""
    if name not in published_models():
        return None
    return AutoConfig.for_model(**json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))


@cache
def published_prompt(name: str) -> PromptShape | None:
    """A prompt of one image as a named checkpoint is usually asked, without text; None where its sizes are not kept
    here."""
    if name in SHAPES:
        return SHAPES[name]
    config = published_config(name)
    if config is None:
        return None
    adapter = adapter_class(config)
    return adapter.prompt(adapter.shape_of(config, BYTES), adapter.image_of(config))
