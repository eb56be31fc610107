"""Text towers that a method's knob names, found before any weights are loaded."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import TypeVar

from harness.core.errors import PrunebenchError
from harness.method import Method, TextTower
from harness.models.files import weight_hash

AnyMethod = TypeVar("AnyMethod", bound=Method)


def with_text_tower(method: AnyMethod) -> AnyMethod:
    """The method with the fingerprint of its text tower. Raises PrunebenchError where it needs one and none is named,
    or the named one is not there."""
    method.check_text_tower()
    known = {
        f.name: dataclasses.replace(value, fingerprint=fingerprint(value))
        for f in dataclasses.fields(method)
        if isinstance(value := getattr(method, f.name), TextTower)
    }
    return dataclasses.replace(method, **known) if known else method


def fingerprint(tower: TextTower) -> str:
    """The commit of a hub id, the hash of a folder's files."""
    folder = Path(tower.source)
    return weight_hash(folder) if folder.is_dir() else _commit(tower.source)


@cache
def _commit(hub: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub, allow_patterns=["config.json"])).name
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise PrunebenchError(
            f"text tower {hub}: could not be fetched from the Hugging Face hub ({type(error).__name__}): connect to"
            " the hub, set HF_HOME to a cache that holds it, or name a local folder"
        ) from None
