"""Commands in a process: `prunebench` as a user types it, and Python afresh."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


#: packages that take seconds to import
HEAVY = ("torch", "transformers", "lmms_eval")


def imported_with(code: str, *packages: str) -> list[str]:
    """Those of `packages` that a fresh Python has imported after `code`, which may use `sys`."""
    script = f"import sys\n{code}\nprint(*(name for name in {packages!r} if name in sys.modules))"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()
