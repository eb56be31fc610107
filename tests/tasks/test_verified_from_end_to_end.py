"""All verified tasks through one `prunebench eval`, from a folder laid out as the hub's repositories to a table."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest
from helpers import run
from hubdata import HUB_TASKS, write

from harness.proof import recomputed
from harness.store.sealed import SealedCell
from harness.store.store import Store
from tasks.verified import VERIFIED

NAMES = list(HUB_TASKS)
Cells = Mapping[tuple[str, str], SealedCell]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data and results of one evaluation of all tasks on the mini model."""
    data, results = write(tmp_path_factory.mktemp("hub")), tmp_path_factory.mktemp("results")
    words = ["--method", "fastv", "--budget", "64", "--model", "mini", "--limit", "all", "--tasks", ",".join(NAMES)]
    patch, capture = pytest.MonkeyPatch(), _NoCapture()
    with patch.context() as patched:
        code, _, _ = run(capture, patched, "eval", *words, "--data", str(data), "--results", str(results))  # type: ignore[arg-type]
    assert code == 0
    return data, results


class _NoCapture:
    """In place of pytest's `capsys`, which lasts for one test only."""

    def readouterr(self) -> _NoCapture:
        return self

    out = err = ""


@pytest.fixture(scope="module")
def cells(evaluated: tuple[Path, Path]) -> Cells:
    return {(cell.cell.task, cell.cell.method): cell for cell in Store(evaluated[1]).cells()}


@pytest.mark.parametrize("name", NAMES)
def test_every_question_is_answered_and_scored(name: str, cells: Cells) -> None:
    questions, verified = len(HUB_TASKS[name].right), VERIFIED[name]
    for method in ("none", "fastv"):
        cell = cells[name, method]
        assert cell.counts["answered"] == questions
        assert cell.headline == verified.headline
        assert set(cell.metrics) >= {aggregation.metric for aggregation in verified.metrics}
        samples = cell.samples()
        assert len(samples) == questions
        headline = verified.metrics[0]
        if headline.kind == "mean":
            expected = headline.scale_of(questions) * samples["score"].mean()
            assert cell.score == pytest.approx(expected, abs=1e-9)
            assert samples["score"].notna().all()
        # pruned prompts keep 64 visual tokens, of one image or of several
        assert (samples["kept"].astype(str) != "").all()


def test_the_tables_hold_every_task(evaluated: tuple[Path, Path]) -> None:
    frame = pd.read_csv(evaluated[1] / "leaderboard.csv")
    assert set(zip(frame["task"], frame["method"], strict=True)) == {(n, m) for n in NAMES for m in ("none", "fastv")}
    assert (frame["answered"] == frame["expected"]).all()
    text = (evaluated[1] / "LEADERBOARD.md").read_text()
    assert [name for name in NAMES if name not in text] == []


def test_verify_scores_again_from_the_folder(
    evaluated: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the captions, whose scores take Java."""
    _, results = evaluated
    shutil.copytree(results, tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "cells" / "flickr30k_test_lite")
    code, out, err = run(capsys, monkeypatch, "results", "verify", "--results", str(tmp_path / "r"))
    assert code == 0, err
    assert out.splitlines()[-1] == f"{2 * (len(NAMES) - 1)} cells sealed and whole, 0 unfinished (0 answers), 0 wrong"
    assert "note:" not in out


def test_verify_says_where_the_folder_is_gone(
    evaluated: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, results = evaluated
    name, gone = "scienceqa_img", data / "lmms-lab-encoder" / "ScienceQA"
    shutil.copytree(results / "cells" / name, tmp_path / "r" / "cells" / name)
    gone.rename(gone.with_suffix(".away"))
    recomputed._task.cache_clear()
    try:
        code, out, _ = run(capsys, monkeypatch, "results", "verify", "--results", str(tmp_path / "r"))
    finally:
        gone.with_suffix(".away").rename(gone)
        recomputed._task.cache_clear()
    assert code == 0
    (note,) = [line for line in out.splitlines() if line.startswith("note: scores not recomputed")]
    assert note.startswith(f"note: scores not recomputed, data not at hand: {name}: ")
    assert note.endswith("(2 cells)")
