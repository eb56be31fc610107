"""Devices and number formats: what a model runs on, and in what precision."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn

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
        raise PrunebenchError(
            f"{given('device', device)} is not supported: expected auto, cpu, cuda or cuda:N; use"
            f" {given('device', 'cpu')}"
        )
    return picked


def stated_dtype(config: Any) -> str | None:
    """The number format that a model's config names for its weights; None where it names none that is known here."""
    for part in (config, getattr(config, "text_config", None)):
        found = str(getattr(part, "dtype", None)).removeprefix("torch.")
        if found in DTYPES:
            return found
    return None


def pick_dtype(dtype: str, device: torch.device, config: Any) -> str:
    """`auto` is float32 on the CPU, and on CUDA the checkpoint's own format: float16 where it names none.

    A bfloat16 checkpoint runs in float16 on a card that has no bfloat16.
    """
    if dtype != "auto":
        return dtype
    if device.type == "cpu":
        return "float32"
    stated = stated_dtype(config) or "float16"
    if stated == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "float16"
    return stated


def check_whole(model: Any) -> None:
    """Raise PrunebenchError for a loaded model that is quantised, or that does not lie on one CPU or CUDA device."""
    if not isinstance(model, nn.Module):
        raise PrunebenchError(
            f"expected a loaded model of transformers, found {model!r}: load it with `from_pretrained` of its class"
        )
    check_quantised(getattr(model, "config", None), "the model")
    weights = list(model.parameters())
    if any(not w.is_floating_point() for w in weights):
        raise PrunebenchError(f"the model: expected weights in floating point, found a quantised model: {_UNQUANTISED}")
    found = sorted({str(w.device) for w in weights})
    if len(found) > 1:
        raise PrunebenchError(
            f"expected a model on one device, found one spread over {', '.join(found)}: load it without device_map and"
            " move it to one card with model.to('cuda:0')"
        )
    if found and weights[0].device.type not in ("cpu", "cuda"):
        raise PrunebenchError(f"expected a model on the CPU or on CUDA, found {found[0]}: move it with model.to('cpu')")


_UNQUANTISED = "use the unquantised checkpoint in bfloat16 or float16"


def check_quantised(config: Any, label: str) -> None:
    """Raise PrunebenchError where a model's config (an object, or config.json as a dict) says that its weights are
    quantised."""
    found = config.get("quantization_config") if isinstance(config, dict) else None
    found = found or getattr(config, "quantization_config", None)
    if found:
        stated = found if isinstance(found, dict) else found.to_dict() if hasattr(found, "to_dict") else {}
        kind = " ".join(name for name in ("load_in_4bit", "load_in_8bit") if stated.get(name))
        how = f"{stated.get('quant_method', 'an unnamed method')}{' ' + kind if kind else ''}"
        raise PrunebenchError(
            f"{label}: expected weights in floating point, found quantised ones ({how}): {_UNQUANTISED}"
        )


#: variables that hold MKL and oneDNN to some of their kernels, or let them compute in another format
_LIMITS = (
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    *(f"{library}_{limit}" for library in ("ONEDNN", "DNNL") for limit in ("MAX_CPU_ISA", "DEFAULT_FPMATH_MODE")),
)


def kernels(device: torch.device) -> str:
    """The set of kernels that computes, which decides the last bits of a number.

    On a CPU: torch's, as in AVX2 or AVX512, and limits of MKL and oneDNN that the environment sets. They choose by the
    processor where it sets none. On CUDA: the versions of CUDA and cuDNN, which choose by the card.
    """
    if device.type == "cuda":
        cudnn: Any = torch.backends.cudnn  # its functions have no types
        return f"CUDA {torch.version.cuda}, cuDNN {cudnn.version()}"
    limits = [f"{name}={os.environ[name]}" for name in _LIMITS if os.environ.get(name)]
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *limits])


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with torch's number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
        )
    except OSError:
        model = platform.processor() or platform.machine()
    return f"{model}, {torch.get_num_threads()} threads"
