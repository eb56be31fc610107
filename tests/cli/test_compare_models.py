"""`prunebench compare-models` as a user types it: a table, files, and words that do not fit."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
from factories import drawn
from helpers import run

from harness.cli import rankings
from harness.core import stats
from harness.tables import in_common
from harness.upkeep.readme import draw_two_models, filled

METHODS = ("visipruner", "fastv", "sparsevlm", "uniform")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    for model in ("mini", "mini-qwen"):
        own = {"model": model, "model_fingerprint": f"w-{model}", "stands_for": model}
        for task in ("pope", "gqa"):
            drawn(root, "none", "none", task, 60, **own)
            for method in METHODS:
                for budget in ("128", "64") if model == "mini" else ("64", "16"):
                    drawn(root, method, budget, task, 60, **own)
    return root


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "DECISIVE", 1000)


def test_a_table_and_files(measured: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    where = ["--results", str(measured), "--out", str(tmp_path / "o")]
    code, out, err = run(capsys, monkeypatch, "compare-models", "mini", "mini-qwen", *where)
    assert (code, err) == (0, "")
    assert max(len(line) for line in out.splitlines() if str(tmp_path) not in line) <= 110
    names = ["ranks.csv", "ranks.png", "swaps.csv", "tau.csv", "tau.png"]
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == sorted(
        ["two-models.md", *(f"two-models-{name}" for name in names)]
    )
    taus = pd.read_csv(tmp_path / "o" / "two-models-tau.csv")
    assert taus["budget_second"].iloc[0] == "64"
    for row in taus.to_dict("records"):
        ends = "" if math.isnan(row["low"]) else f" [{row['low']:.2f}, {row['high']:.2f}]"
        assert f"{row['tau']:.2f}{ends}" in out
    assert taus["low"].notna().any()
    assert "left out  mini at 128: keeps 22.2 % of the tokens; 64 of mini-qwen keeps 11.1 %" in out
    assert "gqa, pope: the same images in both models, drawn together" in out
    assert not (measured / "cache").exists(), "a folder that is read stays as it is"


def test_words_choose_tasks_pairs_and_draws(measured: Path, capsys, monkeypatch) -> None:
    words = ["compare-models", "mini", "mini-qwen", "--results", str(measured), "--task", "pope"]
    code, out, _ = run(capsys, monkeypatch, *words, "--pairs", "128=16,64=64", "--seed", "3")
    assert code == 0
    assert "128 | 16" in out
    assert "gqa" not in out
    code, out, _ = run(capsys, monkeypatch, *words, "--tolerance", "9")
    assert code == 0
    assert "128 | 16" in out


WRONG = {
    "one model": (["mini"], "compare-models: expected two models, as in mini mini-qwen, found 1"),
    "three": (["mini", "mini-qwen", "x"], "found 3"),
    "unknown": (["mini", "mini-qwem"], "unknown model with pruned cells 'mini-qwem'; did you mean 'mini-qwen'?"),
    "twice": (["mini", "mini"], "mini and mini are the same cells: name two models"),
    "task": (["mini", "mini-qwen", "--task", "mme"], "mini: unknown task 'mme'"),
    "pair": (["mini", "mini-qwen", "--pairs", "128"], "--pairs 128: expected two budgets, as in --pairs 128=25%"),
    "budget": (["mini", "mini-qwen", "--pairs", "1x=64"], "1x"),
    "unmeasured": (
        ["mini", "mini-qwen", "--pairs", "32=64"],
        "expected a budget of kept tokens that mini was measured at",
    ),
    "tolerance": (["mini", "mini-qwen", "--tolerance", "0.5"], "--tolerance 0.5: expected a ratio of at least 1"),
    "seed": (["mini", "mini-qwen", "--seed", "-1"], "--seed -1: expected a whole number of at least 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_words_are_one_line(case: str, measured: Path, capsys, monkeypatch) -> None:
    words, says = WRONG[case]
    code, out, err = run(capsys, monkeypatch, "compare-models", *words, "--results", str(measured))
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


def test_files_are_not_written_over_a_file(measured: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    (tmp_path / "f").write_text("x")
    words = ["compare-models", "mini", "mini-qwen", "--results", str(measured), "--out", str(tmp_path / "f")]
    code, _, err = run(capsys, monkeypatch, *words)
    assert code == 2
    assert "expected a folder, found a file" in err


def test_a_damaged_cell_is_named_and_left_out(measured: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    shutil.copytree(measured, tmp_path / "r")
    cell = next((tmp_path / "r" / "cells" / "pope").glob("*mini-qwen*sparsevlm*/cell.json"), None)
    cell = cell or next((tmp_path / "r" / "cells" / "pope").glob("*sparsevlm*/cell.json"))
    cell.write_text(cell.read_text().replace("sparsevlm", "sparsevln"))
    code, out, err = run(capsys, monkeypatch, "compare-models", "mini", "mini-qwen", "--results", str(tmp_path / "r"))
    assert code == 1
    assert "left out: " in err
    assert cell.parent.name in err
    assert "64 | 64" in out


def test_the_help_names_the_tolerance_that_holds() -> None:
    assert rankings.TOLERANCE == in_common.TOLERANCE


PAGE = "# Head\n\n<!-- table:two_models -->\nof before\n<!-- /table:two_models -->\n"


def test_the_page_is_filled_and_its_figures_are_drawn(measured: Path, tmp_path: Path) -> None:
    text = filled(PAGE, measured)
    assert "of before" not in text
    assert "| 64 \\| 64 (11.1 % \\| 11.1 %) | gqa | 4 |" in text
    drawn_files = draw_two_models(measured, tmp_path / "images")
    for file in drawn_files:
        assert f"](images/{file.name})" in text
        assert file.stat().st_size > 5000
    assert len(drawn_files) == 2


def test_the_page_says_which_model_is_missing(tmp_path: Path) -> None:
    drawn(tmp_path, "fastv", "64", "pope", 20)
    drawn(tmp_path, "none", "none", "pope", 20, model="mini-qwen", model_fingerprint="q")
    assert "there are no pruned cells of `mini-qwen`." in filled(PAGE, tmp_path)
    assert draw_two_models(tmp_path, tmp_path / "images") == []
    assert not (tmp_path / "images").exists()
