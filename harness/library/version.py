"""The version of the code that runs."""

from __future__ import annotations

import importlib.metadata
import tomllib

from harness.core.paths import CHECKOUT


def version() -> str:
    """A checkout's own, as pyproject.toml says, else that of the installed package."""
    if CHECKOUT is None:
        return importlib.metadata.version("prunebench")
    stated: str = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return stated


__version__ = version()
