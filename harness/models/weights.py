"""The tensors of a checkpoint's files, each read when it is asked for, so that loading holds the weights once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

#: numbers that are looked at in one go
PIECE = 1 << 24
_STORED_AS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def stored(files: Sequence[Path], dtype: torch.dtype) -> dict[str, Any]:
    """The tensors of safetensors files by name, as the `state_dict` of `from_pretrained`: `found[name][...]` gets one.

    A tensor that is stored in `dtype` is mapped: the model's weight is the file's pages, which processes share. Any
    other is read into memory of its own. Mapped pages would stay beside the converted weights until all are loaded.
    """
    from safetensors import safe_open

    found: dict[str, Any] = {}
    for file in files:
        mapped: Any = safe_open(file, framework="pt")
        read: Any = safe_open(file, framework="pt", backend="pread")
        for name in mapped.keys():  # noqa: SIM118 - no mapping
            tensor = mapped.get_slice(name)
            found[name] = tensor if tensor.get_dtype() == _STORED_AS[dtype] else read.get_slice(name)
    return found


def not_finite(model: nn.Module) -> str | None:
    """The first weight that holds nan or inf, by name. It is looked at in pieces, because torch copies for a look."""
    for name, weight in model.named_parameters():
        pieces = torch.split(weight.detach().flatten(), PIECE)
        if not all(bool(torch.isfinite(piece).all()) for piece in pieces):
            return name
    return None
