"""Devices and number formats: what a model runs on, and in what precision."""

from __future__ import annotations

import torch

from harness.core.errors import PrunebenchError
from harness.core.spelling import given

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises PrunebenchError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError:
        raise PrunebenchError(f"{given('device', device)}: expected auto, cpu, cuda or cuda:N") from None
    if picked.type == "cuda" and (not torch.cuda.is_available() or (picked.index or 0) >= torch.cuda.device_count()):
        raise PrunebenchError(
            f"{given('device', device)}: expected a CUDA device, found {torch.cuda.device_count()}: use"
            f" {given('device', 'cpu')}, "
            "or check the driver and the torch build with `prunebench doctor`"
        )
    if picked.type not in ("cpu", "cuda"):
        raise PrunebenchError(f"{given('device', device)} is not supported: expected auto, cpu, cuda or cuda:N")
    return picked
