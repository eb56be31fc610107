"""`prunebench doctor`: is this installation fit to measure with, and what mends it if not."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable

from harness.core.tested import untested

PINNED = (
    "torch",
    "torchvision",
    "transformers",
    "lmms-eval",
    "datasets",
    "pandas",
    "pyarrow",
    "pillow",
    "scipy",
    "tokenizers",
    "safetensors",
)
REINSTALL = "make clean-venv && make venv"


def torchvision_problem() -> str | None:
    """Why torchvision does not load, or None. A wheel for another torch breaks transformers' whole image stack."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        found = []
        for name in ("torch", "torchvision"):
            try:
                found.append(f"{name} {importlib.metadata.version(name)}")
            except importlib.metadata.PackageNotFoundError:
                found.append(f"{name} (not installed)")
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return f"{' and '.join(found)} do not fit together ({reason}); mend it with: {REINSTALL}"
    return None


def report(say: Callable[[str], None] = print) -> bool:
    """Print versions, device, image backend and what is wrong; True if everything is well."""
    say(f"python         {sys.version.split()[0]} ({sys.executable})")
    problems = []
    for name in PINNED:
        try:
            say(f"{name:<14} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{name} is not installed; mend it with: {REINSTALL}")
    for outside in untested():
        if outside.refused:
            problems.append(f"{outside.text}; mend it with: {REINSTALL}")
        else:
            say(f"note           {outside.text}")
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        problems.append(
            f"expected Python 3.11 to 3.13, found {sys.version.split()[0]}; mend it with: make clean-venv && make venv"
            " PYTHON=python3.12"
        )
    mismatch = torchvision_problem()
    say(f"torch pair     {'torch and torchvision do not match' if mismatch else 'torch and torchvision match'}")
    if mismatch:
        problems.append(mismatch)
    else:
        import torch

        if torch.cuda.is_available():
            for i in range(torch.cuda.device_count()):
                free, total = torch.cuda.mem_get_info(i)
                say(
                    f"device         cuda:{i} {torch.cuda.get_device_name(i)}, {free / 2**30:.1f} of"
                    f" {total / 2**30:.1f} GiB free"
                )
        else:
            say(f"device         cpu, {torch.get_num_threads()} threads (no CUDA device; torch {torch.__version__})")
        from harness.models.device import kernels, pick_device

        say(f"kernels        {kernels(pick_device('auto'))}")
        from transformers import CLIPImageProcessor

        backend = (
            "torchvision"
            if "Torchvision" in str(CLIPImageProcessor.__mro__) or "Fast" in CLIPImageProcessor.__name__
            else "PIL"
        )
        say(f"images         {CLIPImageProcessor.__name__} ({backend} backend)")
        try:
            from harness.models.config import EMBEDDED
            from harness.models.load import locate_model

            for name in EMBEDDED:
                located = locate_model(name, "cpu")
                most = f"{'' if located.one_size else 'at most '}{located.usual.n_visual}"
                title = "mini model" if name == "mini" else name
                say(
                    f"{title:<14} {located.shape.depth} layers, {most} visual tokens an image, in"
                    f" {located.folder.name}/"
                )
            from tasks.mini.data import verify

            verify()
            say("mini data      complete")
            from tasks.mini.qwen.data import state

            say(f"mini-qwen data {state()}")
        except ValueError as error:
            problems.append(str(error))
    for problem in problems:
        say(f"PROBLEM        {problem}")
    say("all well" if not problems else f"{len(problems)} problem(s)")
    return not problems
