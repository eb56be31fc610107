"""Tasks whose answers a service judges are refused by name, in one line that says what they need, before anything
else."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import run

#: task or group -> the tasks that stand for it in the message
JUDGED = {
    "hallusion_bench_image": ["hallusion_bench_image"],
    "mmvet": ["mmvet"],
    "mmvetv2": ["mmvetv2"],
    "mathvista_testmini_cot": ["mathvista_testmini_cot"],
    "mathvista_testmini_cot_reasoning": ["mathvista_testmini_cot_reasoning"],
    "mathvista_testmini_format": ["mathvista_testmini_format"],
    "mathvista_testmini_solution": ["mathvista_testmini_solution"],
    "mathvista_testmini": ["mathvista_testmini_cot", "mathvista_testmini_solution", "mathvista_testmini_format"],
    "mathvista": ["mathvista_testmini_cot", "mathvista_test"],
}


def refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The line that `prunebench eval` ends with, without data and without results."""
    words = ("eval", "--method", "fastv", "--budget", "64", "--model", "mini", "--tasks", name)
    code, out, err = run(capsys, monkeypatch, *words, "--data", str(tmp_path), "--results", str(tmp_path / "r"))
    assert (code, out) == (2, "")
    *before, line = err.splitlines()
    assert all(text.startswith("loading torch") for text in before), before
    assert not (tmp_path / "r").exists()
    return line


@pytest.mark.parametrize("name", JUDGED)
def test_a_judged_task_is_refused_by_name(name, tmp_path, capsys, monkeypatch) -> None:
    line = refused(name, tmp_path, capsys, monkeypatch)
    first, *others = JUDGED[name]
    assert line.startswith(f"prunebench: task {first} cannot run: a judge scores its answers, a service that lmms-eval")
    assert all(other in line for other in others)
    assert "environment variables " in line
    assert "_API_KEY" in line
    assert "YOUR_" not in line
    assert line.endswith("give --judge to let it be called, or choose other tasks")


def test_mathvistas_test_split_has_no_scores(tmp_path, capsys, monkeypatch) -> None:
    line = refused("mathvista_test", tmp_path, capsys, monkeypatch)
    assert line.startswith("prunebench: task mathvista_test cannot run: its answers are handed in elsewhere")
