"""What lmms-eval loads: its entry point `lmms_eval.models`, and the model class behind it.

`manifests` tells lmms-eval about our model class without importing it, or torch.
"""

from __future__ import annotations

from typing import Any

MODEL_ID = "prunebench"
CLASS_PATH = "harness.plugin.model.PrunebenchLmms"


def manifests() -> list[Any]:
    """Called by lmms-eval while it builds its registry; an exception here would only be logged there."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id=MODEL_ID, chat_class_path=CLASS_PATH)]
