"""What several test files need: the command as a user types it, and a cell."""

from __future__ import annotations

import sys

import pytest

from harness import cli
from harness.core.cell import Cell


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `prunebench ARGS`."""
    monkeypatch.setattr(sys, "argv", ["prunebench", *args])
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out = capsys.readouterr()
    return code, out.out, out.err


def asked(**changes: object) -> dict[str, object]:
    """The words of a request as a cell holds them, with changes."""
    values = {
        "method": "fastv",
        "budget": "64",
        "model": "mini",
        "task": "pope",
        "limit": None,
        "knobs": {},
        "seed": 0,
        "positions": "method",
    }
    return values | {"data": None, "device": "cpu", "dtype": None} | changes


def make_cell(n: int = 4, **changes: object) -> Cell:
    """A cell of `n` samples, with changes."""
    values = {
        "model": "org/tiny",
        "model_fingerprint": "w1",
        "method": "fastv",
        "knobs": {"boundary": 2, "keep": 64},
        "budget": "64",
        "task": "pope",
        "data_fingerprint": "d1",
        "n_samples": n,
        "prompt_template": "p1",
        "dtype": "float32",
        "image_backend": "pil",
        "device_type": "cpu",
        "max_new_tokens": 16,
    }
    return Cell(**(values | changes))
