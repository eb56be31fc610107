"""Text towers that a method's knob names: found, named and checked before any weights are loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

from harness.core.errors import PrunebenchError
from harness.method import Method, TextTower
from harness.models import jsonfile
from harness.models.files import weight_hash

AnyMethod = TypeVar("AnyMethod", bound=Method)
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
#: older checkpoints of the hub have this alone; it is read as tensors, and nothing that it may hold is run
PICKLED = "pytorch_model.bin"
TOKENIZERS = ("tokenizer.json", "vocab.json")
#: what is read of a checkpoint on the hub, besides its weights
SMALL = ("*.json", "merges.txt")


def with_text_tower(method: AnyMethod, width: int) -> AnyMethod:
    """The method with the fingerprint of its text tower, for a vision tower of this width.

    Raises PrunebenchError where it needs one and none is named, and where the named one is not there or is that of
    another vision tower.
    """
    method.check_text_tower()
    known = {}
    for f in dataclasses.fields(method):
        value = getattr(method, f.name)
        if isinstance(value, TextTower):
            weights = SAFETENSORS if Path(value.source).is_dir() else (*SAFETENSORS, PICKLED)
            check_folder(folder_of(value.source), f"{method.name}: {f.name}={value.source}", width, weights)
            known[f.name] = dataclasses.replace(value, fingerprint=fingerprint(value))
    return dataclasses.replace(method, **known) if known else method


def fingerprint(tower: TextTower) -> str:
    """The commit of a hub id, the hash of a folder's files."""
    folder = folder_of(tower.source)
    return weight_hash(folder) if Path(tower.source).is_dir() else folder.name


def folder_of(source: str) -> Path:
    """The folder of a hub id or of a folder: for the hub, the files of one commit, whose name the folder has.

    Raises PrunebenchError where the hub cannot be reached and the cache does not hold them.
    """
    return Path(source) if Path(source).is_dir() else _fetched(source)


@cache
def _fetched(hub: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub, allow_patterns=[*SMALL, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(hub, revision=folder.name, allow_patterns=[*SMALL, PICKLED]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise PrunebenchError(
            f"text tower {hub}: could not be fetched from the Hugging Face hub ({type(error).__name__}): connect to"
            " the hub, set HF_HOME to a cache that holds it, or name a local folder"
        ) from None
    return folder


def check_folder(folder: Path, label: str, width: int, weights: Sequence[str]) -> None:
    """Raise PrunebenchError unless the folder holds a CLIP checkpoint of a vision tower of this width with one of
    `weights`, and a tokenizer.

    Tensors are looked at when they are loaded.
    """
    config = jsonfile.read(folder / "config.json", label) if (folder / "config.json").is_file() else {}
    vision = config.get("vision_config")
    found = vision.get("hidden_size") if isinstance(vision, dict) else None
    lacks = [
        what
        for what, there in (
            (
                "a config.json of model_type clip, with vision_config",
                config.get("model_type") == "clip" and found is not None,
            ),
            (f"weights ({' or '.join(weights)})", any((folder / name).is_file() for name in weights)),
            (f"a tokenizer ({' or '.join(TOKENIZERS)})", any((folder / name).is_file() for name in TOKENIZERS)),
        )
        if not there
    ]
    if lacks:
        raise PrunebenchError(f"{label}: expected a CLIP checkpoint, found none with {lacks[0]}: name another")
    if found != width:
        raise PrunebenchError(
            f"{label}: expected the CLIP checkpoint of this model's vision tower, of width {width}; found one of width"
            f" {found}: name the checkpoint that the tower was taken from"
        )
