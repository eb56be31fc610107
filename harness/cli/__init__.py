"""The command `prunebench`."""

from harness.cli.app import app, main

__all__ = ["app", "main"]
