"""The name of the kernels that compute, in a process whose environment holds them to some."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.models.device import kernels
from harness.runner.environment import environment
from harness.runner.evaluate import evaluate
from harness.runner.request import Request
from harness.runner.run import Options

LIMITS = {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def said(code: str, **set_to: str) -> str:
    """What a process prints that has these kernels' variables and no others."""
    rest = {name: value for name, value in os.environ.items() if not name.startswith(("ATEN_", "MKL_", "ONEDNN_"))}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=rest | set_to, capture_output=True, text=True, check=True).stdout.strip()


HERE = "import torch; from harness.models.device import kernels; print(kernels(torch.device('cpu')))"


def test_kernels_are_those_of_the_process() -> None:
    assert said(HERE, ATEN_CPU_CAPABILITY="default") == "DEFAULT"
    assert said(HERE, ATEN_CPU_CAPABILITY="default", **LIMITS) == (
        "DEFAULT, MKL_ENABLE_INSTRUCTIONS=AVX2, ONEDNN_MAX_CPU_ISA=AVX2"
    )


def test_commands_that_compare_numbers_say_which_kernels_they_hold() -> None:
    held = said(f"from harness.cli import kernels; kernels.hold(); {HERE}")
    if "AVX" in said(HERE):
        assert held == "AVX2, MKL_ENABLE_INSTRUCTIONS=AVX2, ONEDNN_MAX_CPU_ISA=AVX2"
    else:
        assert held.startswith(said(HERE))


def test_a_card_is_named_by_the_versions_that_choose_for_it() -> None:
    assert kernels(torch.device("cuda")) == f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"


def test_a_cell_and_doctor_say_which_kernels_compute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from harness.install.doctor import report

    cpu = torch.device("cpu")
    (cell,) = evaluate(Request("none", tasks="pope", limit=6), Options(tmp_path), lambda _: None).cells.values()
    assert cell.provenance["kernels"] == environment(cpu)["kernels"] == kernels(cpu)
    assert report()
    assert f"kernels        {kernels(cpu)}\n" in capsys.readouterr().out
