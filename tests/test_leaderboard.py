"""Tables: a pure function of sealed cells that never shows a number it does not have."""

from __future__ import annotations

import dataclasses
import math
import random
import re
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

from harness import leaderboard
from harness.cell import Cell
from harness.errors import PrunebenchError
from harness.stats import Interval
from harness.store import SealedCell

N = {"pope": 100, "gqa": 100, "mme": 100}


def sealed(method: str, budget: str, task: str = "pope", score: float = 0.8, **changes) -> SealedCell:
    """A sealed cell as a store would return it; `changes` go to the cell, or to the result if it has such a field."""
    metric, maximum = ("mme_perception_score", 2000.0) if task == "mme" else (f"{task}_accuracy", 1.0)
    cell = {
        "model": "mini",
        "model_fingerprint": "w1",
        "method": method,
        "knobs": {} if method == "none" else {"keep": 64},
        "budget": budget,
        "task": task,
        "data_fingerprint": f"data-{task}",
        "n_samples": 100,
        "prompt_template": "p1",
        "dtype": "float32",
        "image_backend": "pil",
        "device_type": "cpu",
        "max_new_tokens": 16,
    }
    pruned = method != "none"
    result = {
        "headline": metric,
        "metrics": {metric: score},
        "maximum": maximum,
        "interval": Interval(metric, score - 0.05 * maximum, score + 0.05 * maximum, 0.95, "bootstrap", 50),
        "costs": {
            "kept": 64 if pruned else 576,
            "mean_visual": 80.5 if pruned else 576,
            "prefill_dense_flops": 1.25e9 if pruned else 5e9,
            "vision_flops": 3e9,
            "kv_bytes": 3 * 2**20,
        },
        "counts": {"expected": 100, "answered": 100},
        "method_info": {"query_aware": pruned, "needs_vision_attention": False},
        "provenance": {"command": f"make eval METHOD={method}", "device": "CPU", "started": "2026-01-01"},
        "samples_sha256": "0",
        "folder": Path("nowhere"),
    }
    fields = {f.name for f in dataclasses.fields(Cell)}
    cell |= {name: value for name, value in changes.items() if name in fields}
    result |= {name: value for name, value in changes.items() if name not in fields}
    return SealedCell(cell=Cell(**cell), **result)


def board() -> list[SealedCell]:
    scores = {
        "none": (0.9, 0.8, 1600.0),
        "fastv": (0.81, 0.6, 1200.0),
        "visipruner": (0.855, 0.7, 1200.0),
        "random": (0.5, 0.4, 800.0),
    }
    return [
        sealed(method, "none" if method == "none" else "64", task, score)
        for method, row in scores.items()
        for task, score in zip(("pope", "gqa", "mme"), row, strict=True)
    ]


def written(cells: list[SealedCell], folder: Path) -> tuple[str, str]:
    return tuple(path.read_text() for path in leaderboard.write(cells, folder))  # type: ignore[return-value]


def lines(markdown: str, method: str) -> list[list[str]]:
    """The Markdown rows whose first column is the method."""
    found = [[part.strip() for part in line.strip("|").split("|")] for line in markdown.splitlines() if line.startswith("| ")]
    return [row for row in found if row[0] == method]


def test_rows_hold_what_was_measured():
    df = leaderboard.rows(board())
    assert tuple(df.columns) == (*leaderboard.COLUMNS, "vision_flops")
    row = df[(df.method == "fastv") & (df.task == "pope")].iloc[0]
    assert (row.score, row["max"]) == (0.81, 1)
    assert (row.low, row.high) == pytest.approx((0.76, 0.86))
    assert row.pct_of_unpruned == pytest.approx(90)
    assert row.pct_of_unpruned_flops == pytest.approx(25)
    assert (row.prefill_dense_gflops, row.kv_mib, row.kept, row.mean_visual, row.vision_flops) == (1.25, 3, 64, 80.5, 3e9)
    assert (row.answered, row.expected, row.seed, row["dtype"], row.device) == (100, 100, 0, "float32", "CPU")
    assert (row.knobs, row.command) == ('{"keep":64}', "make eval METHOD=fastv")
    assert bool(row.query_aware)
    assert not row.needs_vision_attention
    assert row.identity == sealed("fastv", "64", score=0.81).identity


def test_only_the_very_same_setting_is_a_baseline():
    pruned = sealed("fastv", "64", score=0.4)
    fits = sealed("none", "none", score=0.8)
    assert leaderboard.rows([fits, pruned]).pct_of_unpruned.tolist() == [100, 50]
    other = {"dtype": "bfloat16", "n_samples": 99, "data_fingerprint": "other", "device_type": "cuda", "prompt_template": "p2"}
    for name, value in other.items():
        df = leaderboard.rows([sealed("none", "none", score=0.8, **{name: value}), pruned])
        row = df[df.method == "fastv"].iloc[0]
        assert math.isnan(row.pct_of_unpruned), name
        assert math.isnan(row.pct_of_unpruned_flops), name
    for bad in ({"score": 0.0}, {"score": 0.8, "headline": "f1", "metrics": {"f1": 0.8}}):
        df = leaderboard.rows([sealed("none", "none", **bad), pruned])
        assert math.isnan(df[df.method == "fastv"].iloc[0].pct_of_unpruned)


def test_rows_of_nothing_and_of_repeats():
    assert leaderboard.rows([]).columns.tolist() == list(leaderboard.COLUMNS)
    assert leaderboard.table(leaderboard.rows([])) == "no sealed cells yet"
    assert len(leaderboard.rows([sealed("none", "none"), sealed("none", "none")])) == 1


def test_a_cost_may_not_hide_a_column():
    with pytest.raises(PrunebenchError, match="score"):
        leaderboard.rows([sealed("none", "none", costs={"score": 1.0})])


def test_terminal_table():
    text = leaderboard.table(leaderboard.rows([c for c in board() if c.cell.method in ("none", "visipruner")]))
    head, body = text.split("---", 1)
    for unit in ("(tokens)", "(tokens/layer)", "(GFLOPs)", "(MiB)", "score [95 % interval]", "% of unpruned", "answered"):
        assert unit in head
    assert "method" in head
    assert "seed" not in head, "only what varies is a column"
    row = next(line for line in body.splitlines() if "visipruner" in line and "pope" in line)
    assert re.split(r"\s{2,}", row.strip()) == [
        *("visipruner", "64", "pope", "pope_accuracy", "85.5 [80.5, 90.5] %", "95.0"),
        *("64.0", "80.5", "1.25", "25.0", "3.00", "100/100"),
    ]
    row = next(line for line in body.splitlines() if "visipruner" in line and "mme" in line)
    assert "1200.0 [1100.0, 1300.0] of 2000" in row


def test_terminal_table_without_baseline_or_interval():
    text = leaderboard.table(leaderboard.rows([sealed("fastv", "64", interval=None, costs={"kept": 64})]))
    cells = re.split(r"\s{2,}", text.splitlines()[-1].strip())
    assert cells == ["pope", "pope_accuracy", "80.0 %", "-", "64.0", "-", "-", "-", "-", "100/100"]


def test_markdown_has_a_block_per_budget_and_an_average(tmp_path):
    cells = [*board(), sealed("fastv", "native"), sealed("fastv", "128"), sealed("fastv", "64avg")]
    _, markdown = written(cells, tmp_path)
    titles = [line for line in markdown.splitlines() if line.startswith("### ")]
    assert titles == ["### unpruned", "### budget 128", "### budget 64", "### budget 64avg", "### budget native"]
    assert "pope: pope_accuracy (%, n=100)" in markdown
    assert "mme: mme_perception_score (points of 2000, n=100)" in markdown
    assert "prefill dense (GFLOPs)" in markdown
    costs = ["64.0", "80.5", "1.25", "25.0", "3.00"]
    assert ["fastv", "<u>60.0</u>", "**1200.0**", "<u>81.0</u>", *costs, "<u>80.0</u>"] in lines(markdown, "fastv")
    assert lines(markdown, "none") == [["none", "80.0", "1600.0", "90.0", "576.0", "576.0", "5.00", "100.0", "3.00", "100.0"]]
    # 0.855/0.9, 0.7/0.8, 1200/1600
    assert lines(markdown, "visipruner")[0][-1] == f"**{(95 + 87.5 + 75) / 3:.1f}**"
    assert lines(markdown, "random")[0][1:4] == ["40.0", "<u>800.0</u>", "50.0"], "third only where the best tie"


def test_a_missing_task_is_a_dash_and_no_average(tmp_path):
    cells = [c for c in board() if (c.cell.method, c.cell.task) != ("visipruner", "gqa")]
    _, markdown = written(cells, tmp_path)
    row = lines(markdown, "visipruner")[0]
    assert row[1] == "-"
    assert row[3] == "**85.5**"
    assert row[-1] == "-"
    assert lines(markdown, "fastv")[0][-1] == "**80.0**", "the best of those that have an average"


def test_no_baseline_is_a_dash_everywhere(tmp_path):
    csv, markdown = written([c for c in board() if c.cell.method != "none"], tmp_path)
    assert all(row[-1] == "-" and row[-3] == "-" for row in lines(markdown, "fastv"))
    assert pd.read_csv(StringIO(csv)).pct_of_unpruned.isna().all()
    assert "nan" not in (csv + markdown).lower()


def test_marks_by_printed_number_with_ties():
    assert leaderboard._marked(["1.0", "3.0", "3.0", "2.0", "-"]) == ["1.0", "**3.0**", "**3.0**", "<u>2.0</u>", "-"]
    assert leaderboard._marked(["1,000", "900"]) == ["**1,000**", "<u>900</u>"]
    assert leaderboard._marked(["1.0", "-"]) == ["1.0", "-"]
    assert leaderboard._marked(["2.0", "2.0"]) == ["**2.0**", "**2.0**"]


def test_seeds_positions_and_knobs_get_lines_of_their_own(tmp_path):
    cells = [sealed("none", "none", score=1.0)]
    cells += [sealed("random", "64", score=0.5 + seed / 10, seed=seed) for seed in (0, 1)]
    cells += [sealed("fastv", "64", score=0.7), sealed("fastv", "64", score=0.6, positions="compact")]
    cells += [sealed("sparsevlm", "64", score=s, knobs={"keep": 64, "heads": h}) for s, h in ((0.4, 14), (0.3, 32))]
    _, markdown = written(cells, tmp_path)
    for label, score in {
        "random seed=0": "50.0",
        "random seed=1": "60.0",
        "fastv": "70.0",
        "fastv positions=compact": "60.0",
        "sparsevlm heads=14": "40.0",
        "sparsevlm heads=32": "30.0",
    }.items():
        assert [row[1].strip("*</u>") for row in lines(markdown, label)] == [score], label


def test_knobs_that_differ_by_task_stay_one_line(tmp_path):
    """A FLOPs budget is solved at each task's text length."""
    cells = [sealed("fastv", "0.35flops", task, knobs={"keep": keep}) for task, keep in (("pope", 60), ("gqa", 61))]
    _, markdown = written(cells, tmp_path)
    assert [row[1:3] for row in lines(markdown, "fastv")] == [["80.0", "80.0"]]


def test_different_settings_and_question_sets_never_share_a_table(tmp_path):
    smoke = {"n_samples": 10, "data_fingerprint": "few", "provenance": {"started": "2025-12-31"}}
    cells = [*board(), sealed("fastv", "64", score=0.99, dtype="bfloat16"), sealed("fastv", "64", score=0.98, **smoke)]
    _, markdown = written(cells, tmp_path)
    sections = markdown.split("\n## ")[1:]
    assert len(sections) == 3
    bfloat, main, few = sections
    assert "bfloat16" in bfloat
    assert lines(bfloat, "fastv")[0][1] == "99.0"
    assert lines(main, "fastv")[0][1:4] == ["<u>60.0</u>", "**1200.0**", "<u>81.0</u>"]
    assert lines(few, "fastv")[0][1] == "98.0"
    assert "n=10)" in few
    limited = sealed("fastv", "64", score=0.98, **(smoke | {"provenance": {"started": "2027", "limit": 10}}))
    _, markdown = written([*board(), limited], tmp_path)
    assert [("LIMIT=10" in part, lines(part, "fastv")[0][-1] == "-") for part in markdown.split("\n## ")[1:]] == [
        (False, False),
        (True, True),
    ]


def test_the_same_cells_give_the_same_bytes(tmp_path):
    cells = [*board(), sealed("random", "32", seed=1), sealed("random", "32", seed=2), sealed("fastv", "0.35flops")]
    first = written(cells, tmp_path / "a")
    for i in range(3):
        shuffled = random.Random(i).sample(cells, len(cells))
        assert written(shuffled, tmp_path / "b") == first
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["LEADERBOARD.md", "leaderboard.csv"]
    frame = pd.read_csv(StringIO(first[0]))
    pd.testing.assert_frame_equal(frame, leaderboard.rows(cells), check_dtype=False)


def test_an_empty_store_gives_an_empty_leaderboard(tmp_path):
    csv, markdown = written([], tmp_path)
    assert csv == ",".join(leaderboard.COLUMNS) + "\n"
    assert "No sealed cells yet." in markdown


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PrunebenchError, match=r"cannot create .*file/results"):
        leaderboard.write([], tmp_path / "file" / "results")


def test_numbers_of_every_size_are_readable():
    shown = {8271.6: "8,272", 12345678.0: "12,345,678", 154.26: "154", 3.82: "3.82", 0.0123: "0.0123", 0.0: "0", math.nan: "-"}
    assert {value: leaderboard._significant(value) for value in shown} == shown


def test_budgets_are_ordered_as_people_read_them():
    order = ["none", "192", "128", "64", "64avg", "0.5flops", "0.35flops", "calibrated", "native"]
    assert sorted(random.Random(0).sample(order, len(order)), key=leaderboard.budget_order) == order
