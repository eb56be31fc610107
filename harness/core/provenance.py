"""Where a measurement was made: device, package versions and the commit of this checkout."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from harness.core.paths import REPOSITORY

PACKAGES = ("prunebench", "torch", "torchvision", "transformers", "lmms-eval", "datasets", "pillow")


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed version by package, "not installed" where there is none."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_state() -> dict[str, Any]:
    """The commit this checkout is at, and whether tracked files outside results/ were changed; None outside a
    checkout."""

    def git(*args: str) -> str | None:
        try:
            return subprocess.run(
                ["git", *args], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=20
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    commit, status = (
        git("rev-parse", "HEAD"),
        git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results"),
    )
    return {"git": commit, "dirty": None if status is None else bool(status)}


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


@cache
def versions_now() -> dict[str, str]:
    """The versions of `PACKAGES`, asked once per process."""
    return versions(PACKAGES)


@cache
def git_now() -> dict[str, Any]:
    """`git_state`, asked once per process: the code that runs is the code that was imported."""
    return git_state()
