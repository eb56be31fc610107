"""Values of knobs that are no plain numbers or words, and how a cell's identity holds a value."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.errors import PrunebenchError
from harness.core.shape import Share


@dataclass(frozen=True)
class TextTower:
    """A knob's CLIP checkpoint, whose text tower `Run.question` reads with: `source`, a hub id or a folder.

    A knob of type `TextTower | None` that is not given is the model's own `text_encoder`, where its config names one.
    `fingerprint`: the commit of a hub id, the hash of a folder's files. A cell's identity holds the fingerprint and,
    for a hub id, its name; a folder's path is in the command alone. The harness looks it up before it loads weights.
    """

    source: str
    fingerprint: str | None = None

    def __str__(self) -> str:
        return self.source


def plain(knob: str, value: Any) -> Any:
    """A knob's value as a cell's identity holds it."""
    if isinstance(value, Path):
        try:
            return {"file": value.name, "sha256": hashlib.sha256(value.read_bytes()).hexdigest()}
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise PrunebenchError(f"knob {knob}={str(value)!r}: expected a file that can be read: {why}") from None
    if isinstance(value, TextTower):
        hub = {} if Path(value.source).is_dir() else {"hub": value.source}
        return {**hub, "fingerprint": value.fingerprint}
    return str(value) if isinstance(value, Share) else value
