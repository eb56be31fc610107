"""The command `prunebench`."""

from harness.cli.main import app, main

__all__ = ["app", "main"]
