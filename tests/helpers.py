"""The command as a user types it."""

from __future__ import annotations

import sys

import pytest

from harness import cli


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
