"""Tables: a pure function of sealed cells that never shows a number it does not have."""

from __future__ import annotations

import dataclasses
import math
import random
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from factories import PROCESSING, answered, asked, sealed_cell

from harness import cli
from harness.core.errors import PrunebenchError
from harness.core.paths import TOP as REPOSITORY
from harness.core.stats import Interval
from harness.store.sealed import SealedCell
from harness.tables import compare, frame, leaderboard, terminal, text
from harness.tables import markdown as words_of
from harness.tables import sections as blocks
from harness.tables.compare import Comparison
from harness.tables.frame import rows
from harness.tables.kept import Kept
from harness.tables.relevant import Relevant

N = {"pope": 100, "gqa": 100, "mme": 100}


def board() -> list[SealedCell]:
    scores = {
        "none": (0.9, 0.8, 1600.0),
        "fastv": (0.81, 0.6, 1200.0),
        "visipruner": (0.855, 0.7, 1200.0),
        "random": (0.5, 0.4, 800.0),
    }
    return [
        sealed_cell(method, "none" if method == "none" else "64", task, score)
        for method, row in scores.items()
        for task, score in zip(("pope", "gqa", "mme"), row, strict=True)
    ]


def written(cells: list[SealedCell], folder: Path) -> tuple[str, str]:
    """From what cell.json holds: these cells have no samples."""
    return tuple(path.read_text() for path in leaderboard.write(cells, folder, samples=False))  # type: ignore[return-value]


def tables(markdown: str) -> list[list[list[str]]]:
    """Every Markdown table as rows of cells, its header first."""
    found: list[list[list[str]]] = [[]]
    for line in markdown.splitlines():
        if line.startswith("| "):
            found[-1].append([part.strip() for part in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [[table[0], *table[2:]] for table in found if table]


def of_method(markdown: str, method: str, column: str) -> list[list[str]]:
    """The rows of a method in the tables that have the column."""
    return [row for table in tables(markdown) if column in table[0] for row in table[1:] if row[0] == method]


def lines(markdown: str, method: str) -> list[list[str]]:
    """The rows of a method in the tables of scores."""
    return of_method(markdown, method, "Avg %")


def costs(markdown: str, method: str) -> list[list[str]]:
    return of_method(markdown, method, "kept (tokens)")


def points(row: list[str]) -> list[str]:
    """The cells of a row without their intervals."""
    return [re.sub(r" \[.*\]$", "", cell) for cell in row]


def test_rows_hold_what_was_measured():
    df = frame.rows(board())
    assert tuple(df.columns) == (*frame.COLUMNS, "vision_flops")
    row = df[(df.method == "fastv") & (df.task == "pope")].iloc[0]
    assert (row.score, row["max"]) == (0.81, 1)
    assert (row.low, row.high) == pytest.approx((0.76, 0.86))
    assert row.pct_of_unpruned == pytest.approx(90)
    assert row.pct_of_unpruned_flops == pytest.approx(25)
    assert (row.prefill_dense_gflops, row.kv_mib, row.kept, row.mean_visual, row.vision_flops) == (
        1.25,
        3,
        64,
        80.5,
        3e9,
    )
    assert (row.answered, row.expected, row.seed, row["dtype"], row.device) == (100, 100, 0, "float32", "CPU")
    assert (row.knobs, row.command) == (
        '{"keep":64}',
        "make eval METHOD=fastv BUDGET=64 MODEL=mini TASKS=pope DEVICE=cpu FRESH=1",
    )
    assert bool(row.query_aware)
    assert not row.needs_vision_attention
    assert row.identity == sealed_cell("fastv", "64", score=0.81).identity


def test_a_request_is_amortised_where_the_question_is_not_read(tmp_path: Path) -> None:
    """The unpruned prompt has 5 GFLOPs of prefill here, of which its visual tokens alone are 4."""
    spent = {
        **dict.fromkeys(("vision_flops", "projector_flops"), 1e9),
        "prefill_dense_flops": 5e9,
        "prefill_paper_macs": 2e9,
        **dict.fromkeys(("scoring_flops", "lm_head_flops", "decode_flops"), 0.0),
    }
    cells = [sealed_cell("none", "none", costs=spent), sealed_cell("fastv", "64", costs=spent)]
    df = frame.rows(cells).set_index("method")
    assert df.request_gflops.tolist() == [7, 7]
    assert df.request_gflops_6["none"] == pytest.approx(1 + 6 / 6)
    assert math.isnan(df.request_gflops_6["fastv"]), "its tokens are other ones for each question"
    assert math.isnan(frame.rows([sealed_cell("none", "none")]).request_gflops[0]), "no sum of what is not there"
    _, markdown = written(cells, tmp_path)
    assert costs(markdown, "none")[0][7:9] == ["7.00", "2.00"]
    assert costs(markdown, "fastv")[0][7:9] == ["7.00", "-"]


def test_the_tower_is_a_column_beside_the_language_model(tmp_path: Path) -> None:
    """A method that halves the prefill saves less of both together: the tower stays."""
    vision = {"vision_flops": 2e9, "projector_flops": 1e9}
    whole, half = ({**vision, "prefill_dense_flops": prefill} for prefill in (6e9, 3e9))
    cells = [sealed_cell("none", "none", costs=whole), sealed_cell("fastv", "64", costs=half)]
    df = frame.rows(cells).set_index("method")
    assert df.tower_and_prefill_gflops.tolist() == [9, 6]
    assert df.pct_of_unpruned_flops["fastv"] == pytest.approx(50)
    assert df.pct_of_unpruned_tower_and_prefill["fastv"] == pytest.approx(100 * 6 / 9)
    _, markdown = written(cells, tmp_path)
    assert costs(markdown, "fastv")[0][3:7] == ["3.00", "50.0", "6.00", "66.7"]
    for wide in (False, True):
        row = terminal.table(frame.rows(cells), wide=wide).splitlines()[-1].split()
        assert {"50.0", "66.7"} <= set(row)
    without = frame.rows([sealed_cell("none", "none", costs={"prefill_dense_flops": 6e9})])
    assert math.isnan(without.tower_and_prefill_gflops[0]), "no sum of what is not there"


def test_a_method_that_is_not_proven_on_a_family_is_named(tmp_path: Path) -> None:
    where = sealed_cell("fastv", "64").provenance
    there = {**where, "unproven": "SomeFamily"}
    cells = [sealed_cell("none", "none"), sealed_cell("fastv", "64", provenance=there), sealed_cell("random", "64")]
    csv, markdown = written(cells, tmp_path)
    said = "Not proven against official code on SomeFamily: fastv."
    assert said in markdown
    for wide in (False, True):
        assert terminal.table(frame.rows(cells), wide=wide).endswith(f"\n\n{said}")
        assert "Not proven" not in terminal.table(frame.rows([cells[0], cells[2]]), wide=wide)
    assert set(pd.read_csv(StringIO(csv)).unproven) == {"SomeFamily", "none"}


def test_budgets_stand_in_the_order_people_read_them() -> None:
    asked = ["native", "0.35flops", "25%", "64avg", "0.5kept", "64", "100%", "192", "none", "0.1kept"]
    read = ["none", "192", "64", "100%", "0.5kept", "25%", "0.1kept", "64avg", "0.35flops", "native"]
    assert sorted(asked, key=blocks.budget_order) == read


def test_relevant_patches_are_columns_where_a_cell_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [answered(tmp_path / "cells", m, b, [1.0, 0.0] * 10) for m, b in (("none", "none"), ("fastv", "64"))]
    leaderboard.write(cells, tmp_path)
    assert "relevant" not in (tmp_path / "LEADERBOARD.md").read_text().split("## Reading this")[0]
    df = pd.read_csv(tmp_path / "leaderboard.csv")
    assert df[["relevant_n", "relevant_kept_pct", "relevant_layers_pct"]].isna().all().all()
    known = Relevant(9, 25.0, 50.0)
    monkeypatch.setattr(compare, "relevant", lambda sealed: known if sealed.cell.method == "fastv" else None)
    leaderboard.write(cells, tmp_path, kept=Kept())  # the folder's own keeps what was found above
    df = pd.read_csv(tmp_path / "leaderboard.csv").set_index("method")
    names = ["relevant_n", "relevant_kept_pct", "relevant_layers_pct"]
    assert df.loc["fastv", names].tolist() == [9, 25, 50]
    assert df.loc["none", names].isna().all()
    markdown = (tmp_path / "LEADERBOARD.md").read_text()
    (table,) = [t for t in tables(markdown) if "kept (tokens)" in t[0] and t[1][0] == "fastv"]
    row = dict(zip(table[0], table[1], strict=True))
    assert row["relevant patches kept (%)"] == "25.0"
    assert row["relevant patches, mean over layers (%)"] == "50.0"
    assert (row["positions"], row["seeds"]) == ("method", "1")


def test_a_caveat_stands_where_its_method_and_model_do(tmp_path: Path) -> None:
    for method, model, said in (("prumerge", "mini", 1), ("fastv", "mini", 0), ("prumerge", "org/large", 0)):
        cells = [sealed_cell(m, b, model=model) for m, b in (("none", "none"), (method, "64"))]
        assert written(cells, tmp_path)[1].count(words_of.UNTRAINED) == said, (method, model)


def test_only_the_very_same_setting_is_a_baseline():
    pruned = sealed_cell("fastv", "64", score=0.4)
    fits = sealed_cell("none", "none", score=0.8)
    assert frame.rows([fits, pruned]).pct_of_unpruned.tolist() == [100, 50]
    other = {
        "dtype": "bfloat16",
        "n_samples": 99,
        "data_fingerprint": "other",
        "device_type": "cuda",
        "processing": "p2",
    }
    for name, value in other.items():
        df = frame.rows([sealed_cell("none", "none", score=0.8, **{name: value}), pruned])
        row = df[df.method == "fastv"].iloc[0]
        assert math.isnan(row.pct_of_unpruned), name
        assert math.isnan(row.pct_of_unpruned_flops), name
    for bad in ({"score": 0.0}, {"score": 0.8, "headline": "f1", "metrics": {"f1": 0.8}}):
        df = frame.rows([sealed_cell("none", "none", **bad), pruned])
        assert math.isnan(df[df.method == "fastv"].iloc[0].pct_of_unpruned)


def test_rows_of_nothing_and_of_repeats():
    assert frame.rows([]).columns.tolist() == list(frame.COLUMNS)
    assert terminal.table(frame.rows([])) == "no sealed cells yet"
    assert len(frame.rows([sealed_cell("none", "none"), sealed_cell("none", "none")])) == 1


def test_a_cost_may_not_hide_a_column():
    with pytest.raises(PrunebenchError, match="score"):
        frame.rows([sealed_cell("none", "none", costs={"score": 1.0})])


def test_terminal_table():
    text = terminal.table(frame.rows([c for c in board() if c.cell.method in ("none", "visipruner")]))
    head, body = text.split("---", 1)
    for words in (
        "[95 % interval]",
        "unpruned",
        "tokens",
        "tokens/",
        "layer",
        "FLOPs",
        "tower +",
        "% of",
        "answers",
        "method",
    ):
        assert words in head
    assert "seed" not in head, "only what varies is a column"
    row = next(line for line in body.splitlines() if "visipruner" in line and "pope" in line)
    assert re.split(r"\s{2,}", row.strip()) == [
        *("visipruner", "64", "pope", "85.5 [80.5, 90.5] %", "95.0", "64.0", "80.5", "25.0", "-", "100")
    ]
    row = next(line for line in body.splitlines() if "visipruner" in line and "mme" in line)
    assert "1200.0 [1100.0, 1300.0]/2000" in row
    assert max(map(len, text.splitlines())) <= terminal.WIDTH


def test_the_wide_terminal_table_has_every_column():
    text = terminal.table(frame.rows([c for c in board() if c.cell.method in ("none", "visipruner")]), wide=True)
    head, body = text.split("---", 1)
    for unit in ("metric", "(tokens/layer)", "(GFLOPs)", "(MiB)", "score [95 % interval]", "% of unpruned", "answered"):
        assert unit in head
    row = next(line for line in body.splitlines() if "visipruner" in line and "pope" in line)
    assert re.split(r"\s{2,}", row.strip()) == [
        *("visipruner", "64", "pope", "pope_accuracy", "85.5 [80.5, 90.5] %", "95.0"),
        *("64.0", "80.5", "1.25", "25.0", "-", "-", "3.00", "100/100"),
    ]
    assert max(map(len, text.splitlines())) > terminal.WIDTH


def test_terminal_table_without_baseline_or_interval():
    text = terminal.table(frame.rows([sealed_cell("fastv", "64", interval=None, costs={"kept": 64})]))
    cells = re.split(r"\s{2,}", text.splitlines()[-1].strip())
    assert cells == ["pope", "80.0 %", "-", "64.0", "-", "-", "-", "100"]


def test_rows_that_differ_in_settings_or_seed_alone_are_told_apart():
    """And a name that is in the way of the width is wrapped, whole."""
    cells = [sealed_cell("fastv", "64", knobs={"boundary": n, "keep": 64, "scores": "sum,of,heads"}) for n in (2, 3)]
    text = terminal.table(frame.rows(cells))
    assert [re.split(r"\s{2,}", line)[0] for line in text.splitlines()[-2:]] == ["fastv boundary=2", "fastv boundary=3"]
    drawn = terminal.table(frame.rows([sealed_cell("random", "64", seed=n) for n in (0, 1)]))
    assert [re.split(r"\s{2,}", line)[0] for line in drawn.splitlines()[-2:]] == ["random seed=0", "random seed=1"]
    assert "seed" in terminal.table(frame.rows([sealed_cell("random", "64", seed=n) for n in (0, 1)]), wide=True)
    models = [
        sealed_cell("fastv", "64", model=f"an-owner/a-model-of-many-words-{size}b-instruct-hf") for size in (7, 13)
    ]
    table = terminal.table(frame.rows([*models, sealed_cell("mme", "64"), *cells]))
    assert max(map(len, table.splitlines())) <= terminal.WIDTH
    column = "".join(line.split("  ")[0].strip() for line in table.splitlines())
    for size in (7, 13):
        assert f"an-owner/a-model-of-many-words-{size}b-instruct-hf" in column


def test_a_table_that_cannot_fit_goes_wider_and_says_so():
    long = "m" * 90
    text = terminal.table(frame.rows([sealed_cell("fastv", "64", model=long), sealed_cell("fastv", "64")]))
    assert long in text
    assert re.search(r"has \d{3} columns of characters and not 110, for its names are long", text)


def test_markdown_has_a_block_per_budget_and_an_average(tmp_path):
    cells = [*board(), sealed_cell("fastv", "native"), sealed_cell("fastv", "128"), sealed_cell("fastv", "64avg")]
    _, markdown = written(cells, tmp_path)
    titles = [line for line in markdown.splitlines() if line.startswith("### ")]
    assert titles[:3] == ["### Avg % at a glance", "### Avg % at equal FLOPs", "### Pareto front"]
    assert titles[3:] == ["### unpruned", "### budget 128", "### budget 64", "### budget 64avg", "### budget native"]
    assert "pope: pope_accuracy (%, n=100)" in markdown
    assert "mme: mme_perception_score (points of 2000, n=100)" in markdown
    assert "prefill dense (GFLOPs)" in markdown
    scores = ["<u>60.0</u> [55.0, 65.0]", "**1200.0** [1100.0, 1300.0]", "<u>81.0</u> [76.0, 86.0]"]
    assert ["fastv", *scores, "<u>80.0</u>"] in lines(markdown, "fastv")
    spent = ["64.0", "80.5", "1.25", "25.0", "-", "-", "-", "-", "3.00"]
    assert costs(markdown, "fastv")[0] == ["fastv", *spent, "method", "yes", "no", "1"]
    scores = ["80.0 [75.0, 85.0]", "1600.0 [1500.0, 1700.0]", "90.0 [85.0, 95.0]"]
    assert lines(markdown, "none") == [["none", *scores, "100.0"]]
    assert costs(markdown, "none") == [
        ["none", "576.0", "576.0", "5.00", "100.0", "-", "-", "-", "-", "3.00", "method", "no", "no", "1"]
    ]
    # 0.855/0.9, 0.7/0.8, 1200/1600
    assert lines(markdown, "visipruner")[0][-1] == f"**{(95 + 87.5 + 75) / 3:.1f}**"
    assert points(lines(markdown, "random")[0][1:4]) == [
        "40.0",
        "<u>800.0</u>",
        "50.0",
    ], "third only where the best tie"


def test_a_missing_task_is_a_dash_and_no_average(tmp_path):
    cells = [c for c in board() if (c.cell.method, c.cell.task) != ("visipruner", "gqa")]
    _, markdown = written(cells, tmp_path)
    row = lines(markdown, "visipruner")[0]
    assert row[1] == "-"
    assert points(row)[3] == "**85.5**"
    assert row[-1] == "-"
    assert lines(markdown, "fastv")[0][-1] == "**80.0**", "the best of those that have an average"


def test_no_baseline_is_a_dash_everywhere(tmp_path):
    csv, markdown = written([c for c in board() if c.cell.method != "none"], tmp_path)
    assert [row[-1] for row in lines(markdown, "fastv")] == ["-"]
    assert [row[4] for row in costs(markdown, "fastv")] == ["-"]
    assert pd.read_csv(StringIO(csv)).pct_of_unpruned.isna().all()
    assert "nan" not in (csv + markdown).lower()


def test_marks_by_printed_number_with_ties():
    def marked(*texts: str, unranked: int = -1) -> list[str]:
        return text.mark_best(texts, [i != unranked for i in range(len(texts))])

    assert marked("1.0", "3.0", "3.0", "2.0", "-") == ["1.0", "**3.0**", "**3.0**", "<u>2.0</u>", "-"]
    assert marked("1,000", "900") == ["**1,000**", "<u>900</u>"]
    assert marked("1.0", "-") == ["1.0", "-"]
    assert marked("2.0", "2.0") == ["**2.0**", "**2.0**"]
    assert marked("3.0", "2.0", "1.0", unranked=0) == ["3.0", "**2.0**", "<u>1.0</u>"]
    assert marked("3.0", "2.0", unranked=0) == ["3.0", "2.0"]


def test_none_is_not_marked(tmp_path):
    """Also where it shares a block, with methods that were given their knobs and no budget."""
    cells = [
        sealed_cell("none", "none", score=0.9),
        *(sealed_cell(m, "none", score=s) for m, s in (("fastv", 0.8), ("random", 0.7))),
    ]
    _, markdown = written(cells, tmp_path)
    rows = {m: lines(markdown, m)[0] for m in ("none", "fastv", "random")}
    assert [(points(row)[1], row[-1]) for row in rows.values()] == [
        ("90.0", "100.0"),
        ("**80.0**", "**88.9**"),
        ("<u>70.0</u>", "<u>77.8</u>"),
    ]


def test_one_seed_is_shown_with_its_interval(tmp_path):
    interval = Interval("x", 0.66, 0.768, 0.95, "bootstrap", 50)
    cells = [sealed_cell("none", "none", score=1.0), sealed_cell("fastv", "64", score=0.714, interval=interval)]
    points_of_mme = Interval("x", 1034.25, 1366.0, 0.95, "bootstrap", 50)
    cells += [
        sealed_cell("fastv", "64", "mme", 1200.0, interval=points_of_mme),
        sealed_cell("fastv", "32", interval=None),
    ]
    _, markdown = written(cells, tmp_path)
    assert [row[1:3] for row in lines(markdown, "fastv")] == [
        ["1200.0 [1034.2, 1366.0]", "71.4 [66.0, 76.8]"],
        ["-", "80.0"],
    ]


def test_marks_go_by_the_score_and_not_by_its_interval(tmp_path):
    wide = Interval("x", 0.1, 0.99, 0.95, "bootstrap", 50)
    cells = [sealed_cell("fastv", "64", score=0.8), sealed_cell("visipruner", "64", score=0.7, interval=wide)]
    _, markdown = written(cells, tmp_path)
    assert lines(markdown, "fastv")[0][1] == "**80.0** [75.0, 85.0]"
    assert lines(markdown, "visipruner")[0][1] == "<u>70.0</u> [10.0, 99.0]"


def test_seeds_are_one_line_with_mean_and_spread(tmp_path):
    cells = [
        sealed_cell("none", "none", score=1.0),
        sealed_cell("none", "none", "mme", 1600.0),
        sealed_cell("fastv", "64", score=0.55),
    ]
    for seed, (pope, mme) in enumerate([(0.5, 800.0), (0.6, 840.0), (0.7, 760.0)]):
        spent = {
            "kept": 64 + seed,
            "mean_visual": 80,
            "prefill_dense_flops": (1 + seed) * 1e9,
            "kv_bytes": (1 + seed) * 2**20,
        }
        cells += [
            sealed_cell("random", "64", t, score, seed=seed, costs=spent) for t, score in (("pope", pope), ("mme", mme))
        ]
    csv, markdown = written(cells, tmp_path)
    assert not lines(markdown, "random")
    row = ["random (3 seeds)", "800.0 ±40.0 sd", "**60.0** ±10.0 sd", "55.0"]
    assert lines(markdown, "random (3 seeds)") == [row], "Avg %: (60 / 100 + 800 / 1600) / 2"
    assert costs(markdown, "random (3 seeds)") == [
        ["random (3 seeds)", "65.0", "80.0", "2.00", "40.0", "-", "-", "-", "-", "2.00", "method", "yes", "no", "3"]
    ]
    frame = pd.read_csv(StringIO(csv))
    assert len(frame) == len(cells), "the CSV keeps one row per cell"
    assert sorted(frame[(frame.method == "random") & (frame.task == "pope")].score) == [0.5, 0.6, 0.7]


def test_unequal_numbers_of_seeds_are_said(tmp_path):
    cells = [sealed_cell("random", "64", score=s, seed=i) for i, s in enumerate((0.5, 0.7))] + [
        sealed_cell("random", "64", "gqa", 0.4, seed=7)
    ]
    _, markdown = written(cells, tmp_path)
    (row,) = lines(markdown, "random (1 to 2 seeds)")
    assert row[1:3] == ["40.0 [35.0, 45.0]", "60.0 ±14.1 sd"]


def test_positions_and_knobs_get_lines_of_their_own(tmp_path):
    cells = [sealed_cell("none", "none", score=1.0)]
    cells += [sealed_cell("fastv", "64", score=0.7), sealed_cell("fastv", "64", score=0.6, positions="compact")]
    cells += [
        sealed_cell("sparsevlm", "64", score=s, knobs={"keep": 64, "heads": h}) for s, h in ((0.4, 14), (0.3, 32))
    ]
    _, markdown = written(cells, tmp_path)
    for label, score in {
        "fastv": "70.0",
        "fastv positions=compact": "60.0",
        "sparsevlm heads=14": "40.0",
        "sparsevlm heads=32": "30.0",
    }.items():
        assert [row[1].split()[0].strip("*</u>") for row in lines(markdown, label)] == [score], label


@pytest.mark.parametrize("lone_seed", [0, 9])
def test_seeds_and_knobs_compose(tmp_path, lone_seed):
    """Two settings are never averaged, whether or not their seeds clash."""
    cells = [
        sealed_cell("random", "64", score=0.5 + seed / 10, seed=seed, knobs={"keep": 64, "boundary": 0})
        for seed in range(5)
    ]
    cells += [sealed_cell("random", "64", score=0.2, seed=lone_seed, knobs={"keep": 64, "boundary": 2})]
    _, markdown = written(cells, tmp_path)
    assert [row[1] for row in lines(markdown, "random boundary=0 (5 seeds)")] == ["**70.0** ±15.8 sd"]
    assert [row[1] for row in lines(markdown, "random boundary=2")] == ["<u>20.0</u> [15.0, 25.0]"]
    assert sum(row[0].startswith("random") for table in tables(markdown) if "Avg %" in table[0] for row in table) == 2


def test_a_knob_that_a_cell_does_not_have_is_not_null(tmp_path):
    cells = [
        sealed_cell("random", "64", score=0.5),
        sealed_cell("random", "64", score=0.7, knobs={"keep": 64, "late": None}),
    ]
    _, markdown = written(cells, tmp_path)
    assert [len(lines(markdown, f"random late={value}")) for value in ("null", "unset")] == [1, 1]


def test_knobs_that_differ_by_task_stay_one_line(tmp_path):
    """A FLOPs budget is solved at each task's text length."""
    cells = [
        sealed_cell("fastv", "0.35flops", task, knobs={"keep": keep}) for task, keep in (("pope", 60), ("gqa", 61))
    ]
    _, markdown = written(cells, tmp_path)
    assert [points(row[1:3]) for row in lines(markdown, "fastv")] == [["80.0", "80.0"]]


def test_variants_of_a_method_at_a_solved_budget_keep_their_tasks_together(tmp_path):
    keeps = {("pope", 0): 60, ("gqa", 0): 61, ("pope", 2): 40, ("gqa", 2): 42}
    cells = [
        sealed_cell("random", "0.35flops", task, seed=seed, knobs={"keep": keep, "boundary": boundary})
        for (task, boundary), keep in keeps.items()
        for seed in (0, 1)
    ]
    _, markdown = written(cells, tmp_path)
    for boundary in (0, 2):
        (row,) = lines(markdown, f"random boundary={boundary} (2 seeds)")
        assert row[1:3] == ["**80.0** ±0.0 sd"] * 2
    _, markdown = written([c for c in cells if c.cell.task == "pope"], tmp_path)
    assert len(lines(markdown, "random boundary=2 keep=40 (2 seeds)")) == 1, (
        "with one task, every knob that differs is named"
    )
    fixed = [sealed_cell("random", "64", c.cell.task, knobs=c.cell.knobs) for c in cells if c.cell.seed == 0]
    _, markdown = written(fixed, tmp_path)
    names = [row[0] for table in tables(markdown) if "Avg %" in table[0] for row in table[1:]]
    assert len([name for name in names if name.startswith("random boundary=")]) == 4, (
        "at a count, every knob that differs was asked for"
    )


def halves(
    root: Path, *lines: tuple[str, str, float], tasks: tuple[str, ...] = ("pope", "gqa"), n: int = 120
) -> list[SealedCell]:
    """Cells with samples: a line gets the first share of the questions of every task right."""
    return [answered(root, m, b, [float(i < share * n) for i in range(n)], t) for m, b, share in lines for t in tasks]


def said(markdown: str) -> list[str]:
    """What stands under the tables about differences."""
    return [line for line in markdown[: markdown.index("## Reading this")].splitlines() if line.startswith("* **")]


def test_what_cannot_be_told_from_random_is_said_and_marked(tmp_path):
    cells = halves(
        tmp_path, ("none", "none", 1.0), ("random", "64", 0.5), ("visipruner", "64", 0.9), ("first", "64", 0.1)
    )
    # half of the questions, but other ones
    cells += [answered(tmp_path, "fastv", "64", [float(i >= 58) for i in range(120)], task) for task in ("pope", "gqa")]
    _, path = leaderboard.write(cells, tmp_path)
    markdown = path.read_text()
    assert said(markdown)[:3] == [
        "* **indistinguishable from random**: fastv (all 2 tasks, Avg %)",
        "* **below random**: first (all 2 tasks, Avg %)",
        "* **above random**: visipruner (all 2 tasks, Avg %)",
    ]
    assert said(markdown)[3:] == [
        "* **below the unpruned model**: fastv (all 2 tasks, Avg %); first (all 2 tasks, Avg %);"
        " random (all 2 tasks, Avg %); visipruner (all 2 tasks, Avg %)"
    ]
    for method, sign in {"fastv": " ≈R", "visipruner": "", "first": "", "random": ""}.items():
        (row,) = lines(markdown, method)
        assert all(cell.endswith("]" + sign) for cell in row[1:]), row
    same = halves(tmp_path / "same", ("none", "none", 1.0), ("random", "64", 0.5), ("fastv", "64", 1.0))
    (row,) = lines(leaderboard.write(same, tmp_path / "same")[1].read_text(), "fastv")
    assert all(cell.endswith(" ≈U") for cell in row[1:]), row


def test_without_random_or_with_a_task_missing_that_is_said(tmp_path):
    cells = halves(tmp_path, ("none", "none", 1.0), ("fastv", "64", 0.5))
    markdown = leaderboard.write(cells, tmp_path)[1].read_text()
    assert "Not compared with random: there is no cell of it at budget 64." in markdown
    more = [*cells, *halves(tmp_path, ("random", "64", 0.5)), *halves(tmp_path, ("first", "64", 0.9), tasks=("pope",))]
    markdown = leaderboard.write(more, tmp_path)[1].read_text()
    assert "* **above random**: first (pope)" in said(markdown)
    assert "* Avg % not compared, a task is missing or has fewer than 10 images: first" in markdown
    assert (
        "indistinguishable from random"
        not in leaderboard.write(cells[:1], tmp_path)[1].read_text().split("## Reading this")[0]
    )


def test_agreement_and_the_hard_subset_have_a_table_with_the_unpruned_model(tmp_path):
    cells = halves(
        tmp_path, ("none", "none", 1.0), ("downsample", "64", 0.75), ("fastv", "64", 0.9), ("fastv", "32", 0.5)
    )
    csv, path = leaderboard.write(cells, tmp_path)
    found = [table for table in tables(path.read_text()) if "agreement (%)" in table[0]]
    assert found[0] == [
        ["method", "agreement (%)", "hard: gqa (%, n=30)", "hard: pope (%, n=30)"],
        ["none", "100.0", "100.0", "100.0"],
        ["downsample", "<u>75.0</u>", "<u>0.0</u>", "<u>0.0</u>"],
        ["fastv", "**90.0**", "**60.0**", "**60.0**"],
    ]
    assert found[1] == [
        ["method", "agreement (%)", "hard: gqa (%, n=-)", "hard: pope (%, n=-)"],
        ["none", "100.0", "-", "-"],
        ["fastv", "50.0", "-", "-"],
    ]
    frame = pd.read_csv(csv).set_index(["method", "budget", "task"])
    row = frame.loc[("fastv", "64", "pope")]
    assert (row.agreement_pct, row.hard_n, row.hard_pct, row.images) == (pytest.approx(90), 30, pytest.approx(60), 60)
    assert math.isnan(frame.loc[("fastv", "32", "pope")].hard_n)


def test_every_comparison_is_in_a_file(tmp_path):
    leaderboard.write(halves(tmp_path, ("none", "none", 1.0), ("random", "64", 0.5), ("fastv", "64", 0.9)), tmp_path)
    frame = pd.read_csv(tmp_path / "significance.csv")
    assert list(frame.columns) == ["section", *(f.name for f in dataclasses.fields(Comparison))]
    row = frame[(frame.line == "fastv") & (frame.task == "pope") & (frame.against == "random")].iloc[0]
    assert (row.n, row.images, row.difference, row.better, row.worse, row.verdict) == (
        120,
        60,
        pytest.approx(40),
        48,
        0,
        "above",
    )
    assert row.p < row.p_holm < 0.05
    assert 25 < row.low < 40 < row.high < 55


def test_the_overview_has_a_row_per_setting_and_a_column_per_budget(tmp_path):
    cells = halves(
        tmp_path, ("none", "none", 1.0), ("fastv", "64", 0.9), ("fastv", "32", 0.6), ("visipruner", "64", 0.8)
    )
    markdown = leaderboard.write(cells, tmp_path)[1].read_text()
    (table,) = [t for t in tables(markdown) if t[0] == ["method", "64", "32"]]
    assert table[1:] == [["fastv", "**90.0** †", "60.0 †"], ["visipruner", "<u>80.0</u>", "-"]]
    (front,) = [
        t for t in tables(markdown) if t[0] == ["method", "budget", "prefill dense (GFLOPs)", "Avg (% of unpruned)"]
    ]
    assert front[1:] == [
        ["fastv", "32", "1.32", "60.0"],
        ["fastv", "64", "1.64", "90.0"],
        ["none", "-", "6.76", "100.0"],
    ]


def test_the_power_line_says_how_many_questions_a_point_takes(tmp_path):
    cells = halves(tmp_path, ("none", "none", 1.0), ("random", "64", 0.5), ("fastv", "64", 0.6), tasks=("pope",))
    (table,) = [t for t in tables(leaderboard.write(cells, tmp_path)[1].read_text()) if "**questions needed**" in t[0]]
    # a tenth of the questions differ, two on an image go together: 2 x 7,846.53
    assert table[1][:8] == ["pope", "120", "60", "1", "10.0", "2.00", "15,694", "7,847"]
    assert table[0][-2:] == ["questions needed among 2 tests", "smallest detectable among 2 tests (points)"]


def test_commands_of_a_block_are_folded_away(tmp_path):
    _, markdown = written(board(), tmp_path)
    assert markdown.count("<details><summary>commands</summary>") == markdown.count("</details>") == 2
    cells = halves(tmp_path, ("none", "none", 1.0), ("fastv", "64", 0.9))
    markdown = leaderboard.write(cells, tmp_path)[1].read_text()
    assert "make eval METHOD=fastv BUDGET=64 MODEL=mini TASKS=gqa,pope DEVICE=cpu FRESH=1\n" in markdown


def test_the_footer_explains_what_is_shown_and_names_the_page_of_all_words(tmp_path):
    _, written_there = written(board(), tmp_path)
    footer = written_there[written_there.index("Every number comes") :]
    for words in ("95 % interval", "±1.2 sd", "standard deviation", "**Avg %**", "**≈R**", "page docs/leaderboard.md"):
        assert words in footer, words
    page = (REPOSITORY / "docs" / "leaderboard.md").read_text()
    for words in ("Wilson", "draws of whole images", "McNemar", "Holm", "design effect", "downsample", "Pareto front"):
        assert words in page, words


def test_the_footer_links_the_page_inside_a_checkout():
    for folder in ("results/local", "results/reference/deep/er"):
        link = re.search(r"\]\((.*)\)", words_of.footer(REPOSITORY / folder))[1]
        assert (REPOSITORY / folder / link).resolve() == REPOSITORY / "docs" / "leaderboard.md"


def origin(started: str, **words: Any) -> dict[str, Any]:
    return {"request": asked(**words), "started": started, "processing": PROCESSING}


def test_different_settings_and_question_sets_never_share_a_table(tmp_path):
    smoke = {"n_samples": 10, "data_fingerprint": "few", "provenance": origin(started="2025-12-31")}
    smoke["counts"] = {"expected": 10, "answered": 10, "headline": 8}
    cells = [
        *board(),
        sealed_cell("fastv", "64", score=0.99, dtype="bfloat16"),
        sealed_cell("fastv", "64", score=0.98, **smoke),
    ]
    _, markdown = written(cells, tmp_path)
    sections = markdown.split("\n## ")[1:-1]
    assert len(sections) == 3
    main, bfloat, few = sections
    assert "bfloat16" in bfloat
    assert points(lines(bfloat, "fastv")[0])[1] == "99.0"
    assert points(lines(main, "fastv")[0][1:4]) == ["<u>60.0</u>", "**1200.0**", "<u>81.0</u>"]
    assert points(lines(few, "fastv")[0])[1] == "98.0"
    assert "n=8)" in few, "the questions that the metric is computed from"
    limited = sealed_cell("fastv", "64", score=0.98, **(smoke | {"provenance": origin(limit="10", started="2027")}))
    _, markdown = written([*board(), limited], tmp_path)
    assert [("LIMIT=10" in part, lines(part, "fastv")[0][-1] == "-") for part in markdown.split("\n## ")[1:-1]] == [
        (False, False),
        (True, True),
    ]


def test_the_same_cells_give_the_same_bytes(tmp_path):
    cells = [
        *board(),
        sealed_cell("random", "32", seed=1),
        sealed_cell("random", "32", seed=2),
        sealed_cell("fastv", "0.35flops"),
    ]
    first = written(cells, tmp_path / "a")
    for i in range(3):
        shuffled = random.Random(i).sample(cells, len(cells))
        assert written(shuffled, tmp_path / "b") == first
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [
        "LEADERBOARD.md",
        "equal_flops.csv",
        "leaderboard.csv",
    ]
    frame = pd.read_csv(StringIO(first[0]))
    pd.testing.assert_frame_equal(frame, rows(cells), check_dtype=False)
    answers = halves(
        tmp_path, ("none", "none", 1.0), ("random", "64", 0.5), ("downsample", "64", 0.7), ("fastv", "64", 0.9)
    )
    for i in range(2):
        leaderboard.write(random.Random(i).sample(answers, len(answers)), tmp_path / str(i))
    for name in ("LEADERBOARD.md", "leaderboard.csv", "significance.csv"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes(), name


def test_an_empty_store_gives_an_empty_leaderboard(tmp_path):
    csv, markdown = written([], tmp_path)
    assert csv == ",".join(frame.COLUMNS) + "\n"
    assert "No sealed cells yet." in markdown


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        PrunebenchError, match=r"file/results': expected a folder, or a place where one can be made: Not a directory"
    ):
        leaderboard.write([], tmp_path / "file" / "results")


def test_numbers_of_every_size_are_readable():
    shown = {
        8271.6: "8,272",
        12345678.0: "12,345,678",
        154.26: "154",
        3.82: "3.82",
        0.0123: "0.0123",
        0.0: "0",
        math.nan: "-",
    }
    assert {value: text.significant(value) for value in shown} == shown


def test_budgets_are_ordered_as_people_read_them():
    order = ["none", "192", "128", "64", "64avg", "0.5flops", "0.35flops", "calibrated", "native"]
    assert sorted(random.Random(0).sample(order, len(order)), key=blocks.budget_order) == order


def test_the_command_writes_tables_and_on_request_no_figures(tmp_path, monkeypatch, capsys):
    cells = halves(
        tmp_path / "cells", ("none", "none", 1.0), ("random", "64", 0.5), ("fastv", "64", 0.9), tasks=("pope",)
    )
    monkeypatch.setattr("harness.store.store.Store.cells", lambda self, *_: cells)
    for flags, drawn in ((["--no-figures"], False), ([], True)):
        monkeypatch.setattr("sys.argv", ["prunebench", "leaderboard", "--results", str(tmp_path), *flags])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        assert (tmp_path / "figures").exists() is drawn
        assert ("![" in (tmp_path / "LEADERBOARD.md").read_text()) is drawn
    assert f"{tmp_path}/leaderboard.csv" in capsys.readouterr().out


def test_a_budget_of_a_third_partys_own_knob_is_one_row_at_a_glance(tmp_path):
    """Two boundaries at two budgets: two rows, whatever the knob is called that the budget sets."""

    def cells(knob, listed):
        info = {"query_aware": False, "needs_vision_attention": False, "budget_knobs": listed}
        return [
            sealed_cell(
                "mine", f"{budget}avg", knobs={"boundary": boundary, knob: 2 * budget + boundary}, method_info=info
            )
            for boundary in (0, 3)
            for budget in (200, 300)
        ]

    def rows(found):
        _, markdown = written([*board(), *found], tmp_path)
        glance = markdown[markdown.index("at a glance") :].split("\n\n")[1]
        return [line.split(" | ")[0].strip("| ") for line in glance.splitlines() if line.startswith("| mine")]

    assert rows(cells("tokens", ["tokens"])) == ["mine boundary=0", "mine boundary=3"]
    assert rows(cells("keep", ["keep"])) == ["mine boundary=0", "mine boundary=3"]
    assert len(rows(cells("tokens", []))) == 4, "a knob that no budget sets tells settings apart"
