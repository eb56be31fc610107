"""The entry point of the group `lmms_eval.models`: tells lmms-eval about our model class without importing it, or torch."""

from __future__ import annotations

from typing import Any

MODEL_ID = "prunebench"
CLASS_PATH = "tasks.lmms.PrunebenchLmms"


def manifests() -> list[Any]:
    """Called by lmms-eval while it builds its registry; an exception here would only be logged there."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id=MODEL_ID, chat_class_path=CLASS_PATH)]
