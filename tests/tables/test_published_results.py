"""Published numbers: cleaned without guessing, shown only where everything agrees, and never mixed with measured
ones."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest
from factories import answered

from harness import cli
from harness.core.errors import PrunebenchError
from harness.store.sealed import SealedCell
from harness.tables import leaderboard
from harness.tables import published as published_results

LAYERS = "layer-averaged visual tokens"
LABELLED = "as labelled in the table (in-LLM methods: layer average; pre-LLM methods: exact)"


def raw(path: Path, *rows: dict[str, str]) -> Path:
    usual = dict.fromkeys(published_results.RAW, "") | {
        "model": "LLaVA-1.5-7B",
        "method": "FastV",
        "budget_label": "64",
        "budget_semantics": LAYERS,
        "task": "GQA",
        "metric": "acc",
        "value": "46.1",
        "source": "arXiv 1 Table 1",
    }
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, published_results.RAW)
        writer.writeheader()
        writer.writerows(usual | row for row in rows)
    return path


def cleaned(tmp_path: Path, *rows: dict[str, str]) -> list[published_results.Printed]:
    text, _ = published_results.clean(raw(tmp_path / "raw.csv", *rows))
    (tmp_path / "published.csv").write_text(text)
    return published_results.load(tmp_path / "published.csv")


@pytest.mark.parametrize(
    ("method", "label", "semantics", "ours"),
    [
        ("vanilla", "576", "no pruning", "none"),
        ("FastV", "192", LAYERS, "192avg"),
        ("FastV", "172 avg", LAYERS, "172avg"),
        ("FastV", "22%", LAYERS, ""),
        ("FastV", "64", LABELLED, "64avg"),
        ("VisionZip", "64", LABELLED, "64"),
        ("SomethingNew", "64", LABELLED, ""),
        ("VisionZip", "64", "exact visual tokens fed to all LLM layers (pre-LLM)", "64"),
        ("DivPrune", "9.8%", "exact visual tokens fed to all LLM layers (pre-LLM)", ""),
        ("Random", "144", "144 retained (75% pruned); pruning layer as in FastV for in-LLM rows", "144"),
        ("FastV", "K=3,R=0.75", "144 kept after layer 3 (184.5 layer average)", ""),
        ("FastV (official code)", "K=2, keep 144", "144 after layer 2 = 171 layer average", "144"),
        ("FastV", "K=2,R=50%", "288 kept after layer 2", "native"),
        ("DART", "64", "kept after layer 2 (+4 pivots)", "68"),
        ("DART", "192", "192 (+4 image pivots) kept after layer 2", "196"),
        ("DART", "128", "kept after layer 2 (+4 pivots)", "native"),
        ("DART", "128", "as labelled in the table (in-LLM methods: layer average)", ""),
        ("FastV", "~15% FLOPs", "FLOPs-matched", ""),
        ("VisiPruner", "dynamic", "dynamic: ~10.3 visual tokens after the filter layer", "native"),
        ("VisiPruner middle+deep", "dynamic", "dynamic: ~10.3 visual tokens after the filter layer", ""),
        ("HiPrune", "25%", "share of the prompt's visual tokens, before the language model", "0.25kept"),
        ("VisionZip", "33.3%", "share of the prompt's visual tokens, before the language model", "0.333kept"),
        ("FastV", "25%", "share of the prompt's visual tokens, behind layer 0 of the language model", ""),
        ("HiPrune", "25%", "tokens dropped", ""),
    ],
)
def test_a_budget_gets_our_unit_only_where_the_source_says_which(
    method: str, label: str, semantics: str, ours: str
) -> None:
    assert published_results.budget(method, label, semantics) == ours


def test_names_and_metrics_are_ours_where_they_are_the_same(tmp_path: Path) -> None:
    rows = [
        {"task": "MME", "metric": "total", "value": "1862"},
        {"task": "POPE", "metric": "F1"},
        {"task": "POPE", "metric": "F1", "source": "arXiv 3 Table 1; lmms-eval"},
        {"task": "POPE", "metric": "F1", "note": "POPE popular split, user re-run"},
        {"task": "POPE", "metric": "F1/acc as reported"},
        {"task": "TextVQA", "value": "58.2", "source": "a"},
        {"task": "TextVQA", "value": "44.0", "source": "a", "method": "ToMe"},
        {"task": "TextVQA", "value": "46.1", "source": "b"},
        {"task": "MMStar"},
    ]
    found = cleaned(tmp_path, *rows)
    assert [(p.method, p.task, p.metric) for p in found] == [
        ("fastv", "mme", "mme_total_score"),
        ("fastv", "pope", "pope_f1_score_mean"),
        ("fastv", "pope", "lmms_eval/pope_f1_score"),
        ("fastv", "pope", "pope_f1_score/popular"),
        ("fastv", "pope", ""),
        ("fastv", "textvqa_ocr", "exact_match"),
        ("", "textvqa_ocr", "exact_match"),
        ("fastv", "textvqa", "exact_match"),
        ("fastv", "", ""),
    ]
    assert {p.model for p in found} == {"llava-1.5-7b"}
    assert [p.task_as_published for p in found][-1] == "MMStar"
    qwen = cleaned(tmp_path, {"task": "TextVQA", "value": "82.7", "model": "Qwen2.5-VL-7B"})
    assert [(p.model, p.task) for p in qwen] == [("qwen2.5-vl-7b", "")], "whether OCR tokens were in the prompt is open"


def test_sources_can_be_looked_up_and_repeats_go(tmp_path: Path) -> None:
    sources = [
        "EADP (2026) Table 1, index id 59513877125 (baseline rows)",
        "T README, index ids 1 + 2",
        "arXiv 1 Table 1, via two reading notes (index ids 5, 6)",
        "arXiv 2 Table 1 via index id 7",
        "arXiv 1 Table 1",
        "arXiv 1 Table 1",
        "independent reproduction, index id 8 (official scripts)",
        "index id 9, table at 128 tokens",
    ]
    text, dropped = published_results.clean(raw(tmp_path / "raw.csv", *({"source": s} for s in sources)))
    assert dropped == 2
    kept = [row["source"] for row in csv.DictReader(text.splitlines())]
    assert kept == [
        "EADP (2026) Table 1 (baseline rows)",
        "T README",
        "arXiv 1 Table 1, via two reading notes",
        "arXiv 2 Table 1, at second hand",
        "arXiv 1 Table 1",
    ]


def test_a_table_that_is_not_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrunebenchError, match="expected a number, found 'n/a'"):
        published_results.clean(raw(tmp_path / "raw.csv", {"value": "n/a"}))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(PrunebenchError, match=r"expected the columns model, .*found a, b"):
        published_results.clean(tmp_path / "other.csv")
    with pytest.raises(PrunebenchError, match="restore"):
        published_results.load(tmp_path / "other.csv")
    with pytest.raises(PrunebenchError, match="cannot read"):
        published_results.load(tmp_path / "missing.csv")


def test_the_command_writes_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = raw(tmp_path / "raw.csv", {}, {"source": "index id 1"})
    monkeypatch.setattr("sys.argv", ["prunebench", "dev", "published", str(source), "--out", str(tmp_path / "out.csv")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert "1 numbers; 1 rows left out" in capsys.readouterr().out
    assert len(published_results.load(tmp_path / "out.csv")) == 1


def test_the_committed_file_is_whole() -> None:
    found = published_results.load()
    assert len(found) > 2000
    assert published_results.PATH.stat().st_size < 400_000
    assert all(p.source and "index id" not in p.source for p in found)
    frame = pd.DataFrame(found)
    assert pd.to_numeric(frame["value"]).between(0, 2800).all()
    unpruned = frame[
        (frame.model == "llava-1.5-7b")
        & (frame.method == "none")
        & (frame.task == "gqa")
        & (frame.metric == "exact_match")
    ]
    assert pd.to_numeric(unpruned.value).between(61.5, 62.5).all()
    assert set(frame[frame.method == "none"].budget) <= {"none", ""}
    qwen = frame[frame.model == "qwen2.5-vl-7b"]
    assert set(qwen.budget) == {"none", "0.25kept", "0.1kept", ""}, "the unit is a share of each prompt's tokens"
    assert set(qwen[qwen.budget == ""].method) == {"fastv"}, "it pruned behind another layer than FastV's paper"


def llava(root: Path, method: str, budget: str, score: float, task: str = "gqa", **changes) -> SealedCell:
    return answered(
        root,
        method,
        budget,
        [float(i < 100 * score) for i in range(100)],
        task,
        **{"model": "llava-1.5-7b", "stands_for": "llava-1.5-7b"} | changes,
    )


def published_block(markdown: str) -> str:
    return markdown.partition("### Published beside measured")[2].partition("## Reading this")[0]


@pytest.fixture
def cells(tmp_path: Path) -> list[SealedCell]:
    return [
        llava(tmp_path, "none", "none", 0.62),
        llava(tmp_path, "fastv", "64avg", 0.46),
        llava(tmp_path, "fastv", "64", 0.5),
    ]


def test_published_numbers_stand_beside_measured_ones_where_all_agrees(
    tmp_path: Path, cells: list[SealedCell], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"value": "46.1"}, {"value": "47.5", "source": "arXiv 2 Table 3"}, {"value": "46.1", "source": "arXiv 3"}]
    rows += [{"value": "99.9", "task": "POPE", "metric": "F1/acc as reported"}]
    rows += [
        {"value": "11.1", "model": "LLaVA-1.5-13B"},
        {"value": "22.2", "method": "DART"},
        {"value": "33.3", "budget_label": "128"},
    ]
    rows += [{"value": "44.4", "budget_semantics": "FLOPs-matched"}]
    table = cleaned(tmp_path, *rows)
    monkeypatch.setattr(published_results, "load", lambda: table)
    markdown = leaderboard.write(cells, tmp_path / "out")[1].read_text()
    block = published_block(markdown)
    assert "| fastv | 64avg | gqa: exact_match | 100 | 46.0 [" in block
    assert "46.1 [1, 3]; 47.5 [2] |" in block
    assert "1. arXiv 1 Table 1\n2. arXiv 2 Table 3\n3. arXiv 3\n" in block
    for value in ("99.9", "11.1", "22.2", "33.3", "44.4", "| fastv | 64 |"):
        assert value not in block, value
    rest = markdown.replace(block, "")
    assert not any(value in rest for value in ("46.1", "47.5")), "never mixed in"


def test_mme_totals_are_sums_of_parts_and_seeds_have_no_interval(tmp_path: Path) -> None:
    parts = {"mme_perception_score": 1500.0, "mme_cognition_score": 350.0}
    lines = [
        llava(tmp_path, "random", "144", 0.5, "mme", metrics=parts, headline="mme_perception_score", seed=s)
        for s in (0, 1)
    ]
    (row,) = cleaned(
        tmp_path,
        {
            "method": "Random",
            "task": "MME",
            "metric": "total",
            "value": "1736",
            "budget_label": "144",
            "budget_semantics": "144 retained (75% pruned)",
        },
    )
    from harness.tables.sections import distinct, sections

    (section,) = sections(distinct(lines))
    (match,) = published_results.beside([row], "llava-1.5-7b", section.blocks()[0].lines)
    assert (match.line, match.metric, match.measured, match.values) == (
        "random (2 seeds)",
        "mme_total_score",
        1850,
        [("1736", "arXiv 1 Table 1")],
    )
    assert match.low != match.low


def test_a_knob_that_makes_another_method_has_its_own_published_rows(tmp_path: Path) -> None:
    exact = {"budget_semantics": "exact visual tokens fed to all LLM layers (pre-LLM)"}
    names = ("PruMerge", "PruMerge+", "PruMerge-LoRA (finetuned)", "CDPruner", "VisionZip", "VisionZip+FastV")
    rows = cleaned(tmp_path, *({"method": m, "value": str(40 + i), **exact} for i, m in enumerate(names)))
    ours = ["prumerge", "prumerge plus=true", "", "cdpruner", "visionzip", ""]
    assert [row.method for row in rows] == ours
    from harness.tables.sections import distinct, sections

    lines = [
        llava(tmp_path, "prumerge", "64", 0.5, knobs={"plus": False}),
        llava(tmp_path, "prumerge", "64", 0.5, knobs={"plus": True}),
        llava(tmp_path, "cdpruner", "64", 0.5, knobs={"relevance": "none"}),
        llava(tmp_path, "visionzip", "64", 0.5, knobs={}),
    ]
    (section,) = sections(distinct(lines))
    found = published_results.beside(rows, "llava-1.5-7b", [x for b in section.blocks() for x in b.lines])
    assert sorted((match.line.split()[0], match.values[0][0]) for match in found) == [
        ("prumerge", "40"),
        ("prumerge", "41"),
        ("visionzip", "44"),
    ]


def test_other_models_and_positions_get_nothing(tmp_path: Path) -> None:
    assert published_results.ours("llava-1.5-13b") == "llava-1.5-13b"
    assert published_results.ours("mini") is published_results.ours("") is None
    # a folder may have any name
    named = [llava(tmp_path, m, b, 0.5, stands_for="") for m, b in (("none", "none"), ("fastv", "64avg"))]
    assert not published_block(leaderboard.write(named, tmp_path)[1].read_text())
    mini = [llava(tmp_path, m, b, 0.5, stands_for="mini") for m, b in (("none", "none"), ("fastv", "64avg"))]
    assert not published_block(leaderboard.write(mini, tmp_path)[1].read_text())
    moved = [llava(tmp_path, "fastv", "64avg", 0.5, positions="compact")]
    assert not published_block(leaderboard.write(moved, tmp_path)[1].read_text())
    assert published_block(leaderboard.write([llava(tmp_path, "fastv", "64avg", 0.5)], tmp_path)[1].read_text()), (
        "from the committed file"
    )
