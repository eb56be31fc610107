"""Where a measurement was made: package versions and the commit of this checkout."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from harness.core.paths import CHECKOUT

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
    """The commit this checkout is at, and whether tracked files outside results/ were changed.

    None where prunebench is installed, and where its files lie in another project's repository: the commit of a user's
    repository says nothing about our code.
    """

    def git(*args: str) -> str | None:
        try:
            return subprocess.run(
                ["git", *args], cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=20
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    top = None if CHECKOUT is None else git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != CHECKOUT:
        return {"git": None, "dirty": None}
    commit, status = (
        git("rev-parse", "HEAD"),
        git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results"),
    )
    return {"git": commit, "dirty": None if status is None else bool(status)}


@cache
def versions_now() -> dict[str, str]:
    """The versions of `PACKAGES`, asked once per process."""
    return versions(PACKAGES)


@cache
def git_now() -> dict[str, Any]:
    """`git_state`, asked once per process: the code that runs is the code that was imported."""
    return git_state()
