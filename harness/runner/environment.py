"""What else than its identity decides a cell's answers: our code, the packages below it, the processor and its kernels.

It is no part of the identity, because a sealed cell stays one when a library moves on, and its provenance names the
versions. But the answers of one cell come from one environment: a journal holds its digest on every line.
"""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from pathlib import Path

import torch

import harness
import tasks
from harness.core.provenance import versions_now
from harness.models.device import device_name, kernels

#: rooms of harness/ whose code an answer, its cost or its record passes through; methods are in the identity
ROOMS = ("core", "engine", "method", "models", "runner")


@cache
def code_digest() -> str:
    """12 hex of SHA-256 over the source files that answer, whatever commit they are at."""
    rooms = Path(harness.__file__).parent
    files = [file for room in ROOMS for file in (rooms / room).rglob("*.py")]
    files += Path(tasks.__file__).parent.glob("*.py")
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.parent.name}/{file.name}".encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def environment(device: torch.device) -> dict[str, str]:
    """What a journal's answers have in common, by name."""
    name = device_name(device)
    return {
        **versions_now(),
        "python": platform.python_version(),
        "code": code_digest(),
        # how many threads share the work is a matter of pace
        "device": name.rpartition(", ")[0] or name if device.type == "cpu" else name,
        "kernels": kernels(device),
    }
