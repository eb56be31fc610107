"""What the page says of methods beside each other: every number is the tables' own, and stands at its place."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import bigpage
import numpy as np
import pandas as pd
import pytest
from factories import answered, drawn, gauntlet
from numpy.typing import NDArray
from PIL import Image

from harness.core.errors import PrunebenchError
from harness.core.metric import Metric
from harness.report import page as report
from harness.report import studies, views
from harness.report.masks import MaskPacker
from harness.store.sealed import SealedCell
from harness.store.store import Store
from harness.tables import leaderboard
from harness.tables.compare import AVERAGE
from harness.tables.in_common import read_side
from harness.tables.rankings import ALL, rankings
from harness.tables.rankings_text import ranks_frame, taus_frame
from harness.tables.sections import distinct, sections

SHAPE = bigpage.Shape(
    ("random", "fastv", "visionzip", "sparsevlm", "uniform"), (128, 64, 32), ("gqa", "mme", "pope"), samples=60
)


def meta_of(html: str) -> dict[str, Any]:
    found = re.search(r'id="meta">(.*?)</script>', html, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def chunk_of(html: str, number: int) -> dict[str, Any]:
    found = re.search(rf'id="chunk-{number}">([^<]*)<', html)
    assert found
    data: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(found[1])))
    return data


def plain(self: object, sealed: object, key: str, image: str, side: int) -> Image.Image:
    """In place of `views.Pictures.square`."""
    return Image.new("RGB", (side, side))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[SealedCell], Path, str]:
    """Cells of two models, the folder with their tables, and their page."""
    root = tmp_path_factory.mktemp("made")
    cells = list(bigpage.cells(root / "answers", SHAPE))
    leaderboard.write(cells, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views.Pictures, "square", plain)
        return cells, root, report.fitting(cells, root, 20).html


def pairs_of(html: str, model: dict[str, Any]) -> Iterator[tuple[str, str, str, str, dict[str, Any]]]:
    """budget, line, other line, task and numbers of every comparison that the page holds of a model's first study."""
    study = model["studies"][0]
    data = chunk_of(html, study["chunk"])
    for block in data["blocks"]:
        names = [model["lines"][line] for line in block["lines"]]
        tasks = [AVERAGE if s < 0 else model["sets"][s]["task"] for s in block["tasks"]]
        at = itertools.product(itertools.combinations(names, 2), tasks)
        for i, ((first, second), task) in enumerate(at):
            numbers = {name: column[i] for name, column in block["columns"].items()}
            if numbers["difference"] is not None:
                numbers["verdict"] = data["verdicts"][numbers["verdict"]]
                yield model["budgets"][block["budget"]], first, second, task, numbers


def test_pairs_are_those_of_significance_csv(made: tuple[list[SealedCell], Path, str]) -> None:
    _, root, html = made
    table = pd.read_csv(root / leaderboard.SIGNIFICANCE, dtype={"budget": str})
    for model in meta_of(html)["models"]:
        mine = table[table["section"].str.startswith(f"{model['model']},")]
        mine = mine[mine["against"] != "none"]
        rows = {(r.budget, r.line, r.against, r.task): r for r in mine.itertuples()}
        seen = 0
        for budget, first, second, task, numbers in pairs_of(html, model):
            turned = (budget, first, second, task) not in rows
            row = rows[budget, second, first, task] if turned else rows[budget, first, second, task]
            sign = -1 if turned else 1
            seen += 1
            ends = sorted([sign * row.low, sign * row.high])
            wanted = [row.n, row.images, sign * row.difference, *ends, row.p, row.p_holm]
            found = [numbers[name] for name in ("n", "images", "difference", "low", "high", "p", "p_holm")]
            assert found == pytest.approx(wanted, abs=1e-4, rel=1e-3)
            counts = [row.worse, row.better] if turned else [row.better, row.worse]
            assert [math.nan if c is None else c for c in (numbers["better"], numbers["worse"])] == pytest.approx(
                counts, nan_ok=True
            )
            other_way = {"above": "below", "below": "above"}
            assert numbers["verdict"] == (other_way.get(row.verdict, row.verdict) if turned else row.verdict)
        assert seen == len(rows) == 3 * 10 * 4, (
            "each pair of five lines at three budgets, at three tasks and the average"
        )
        assert len({row.verdict for row in rows.values()}) > 1


def test_a_turned_comparison_is_turned_back(made: tuple[list[SealedCell], Path, str]) -> None:
    cells, root, _ = made
    (found, *_) = studies.studied(cells, report.Kept(root))
    for c in found.pairs:
        assert studies.turned(c).low == -c.high
        if c.task != AVERAGE:  # whose counts are NaN
            assert studies.turned(studies.turned(c)) == c


def scores_of(text: str, budget: str) -> dict[str, list[str]]:
    """method -> the cells of its row in the first table below the heading of a budget, without marks of the best."""
    part = text.split(f"### budget {budget}\n")[1]
    rows = [line for line in part.splitlines() if line.startswith("|")]
    end = next(i for i, line in enumerate(rows) if i > 1 and "| method" in line)
    bare = [re.sub(r"\*\*|</?u>", "", line).strip("|").split("|") for line in rows[2:end]]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in bare}


def test_marks_and_intervals_are_those_of_the_leaderboard(made: tuple[list[SealedCell], Path, str]) -> None:
    _, root, html = made
    text = (root / leaderboard.MARKDOWN).read_text()
    marked = 0
    for model in meta_of(html)["models"]:
        part = next(p for p in text.split("\n## ") if p.startswith(f"{model['model']}, float32"))
        study = model["studies"][0]
        assert [model["sets"][s]["task"] for s in study["sets"]] == list(SHAPE.tasks)
        for line, budget, average, low, high, marks in study["rows"]:
            if model["lines"][line] == "none":
                assert low is high is None
                continue
            row = scores_of(part, model["budgets"][budget])[model["lines"][line]]
            said = f"{average:.1f} [{low:.1f}, {high:.1f}] {marks.get('-1', '')}".strip()
            assert said == row[-1]
            for s, cell in zip(study["sets"], row, strict=False):
                assert " ".join(re.findall("≈[RU]", cell)) == marks.get(str(s), "")
            marked += len(marks)
    assert marked


def test_equal_flops_are_those_of_the_csv(made: tuple[list[SealedCell], Path, str]) -> None:
    _, root, html = made
    table = pd.read_csv(root / leaderboard.EQUAL_FLOPS)
    interpolated = 0
    for model in meta_of(html)["models"]:
        equal = model["studies"][0]["equal"]
        for line, row, _ in equal["rows"]:
            mine = table[
                table["section"].str.startswith(f"{model['model']},") & (table["line"] == model["lines"][line])
            ]
            for share, found in zip(equal["shares"], row, strict=True):
                (wanted,) = mine[mine["pct_of_unpruned_flops"] == share].to_dict("records")
                if found is None:
                    assert math.isnan(wanted["avg_pct"])
                    continue
                assert found[0] == pytest.approx(wanted["avg_pct"])
                assert (len(found) == 3) == wanted["interpolated"]
                assert found[1][0] == pytest.approx(wanted["low_pct_of_unpruned_flops"])
                assert str(found[-1][2]) == str(int(wanted["high_budget"]))
                interpolated += len(found) == 3
        assert len(equal["rows"]) == len(SHAPE.methods)
    assert interpolated


def test_rankings_are_those_of_compare_models(made: tuple[list[SealedCell], Path, str]) -> None:
    cells, _, html = made
    (pair,) = meta_of(html)["agreements"]
    arranged = sections(distinct(cells))
    found = rankings((read_side("mini", arranged), read_side("mini-qwen", arranged)))
    taus, ranks = taus_frame(found), ranks_frame(found)
    assert pair["models"] == ["mini", "mini-qwen"]
    for row, mine in zip(taus[taus["budget_first"] != ALL].to_dict("records"), pair["ranked"], strict=True):
        assert pair["budgets"][mine["budget"]]["label"] == f"{row['budget_first']} | {row['budget_second']}"
        assert mine["task"] == row["task"]
        assert mine["tau"] == pytest.approx([row["tau"], row["low"], row["high"]])
        assert mine["itself"] == pytest.approx([row["itself_first"], row["itself_second"]])
        assert mine["opposite"] == [row["opposite_pairs"], row["opposite_steady"], row["opposite_beyond_noise"]]
    for row, mine in zip(taus[taus["budget_first"] == ALL].to_dict("records"), pair["means"], strict=True):
        assert mine == [row["task"], *map(pytest.approx, (row["tau"], row["low"], row["high"]))]
    methods = [m for one in pair["ranked"] for m in one["methods"]]
    for row, mine in zip(ranks.to_dict("records"), methods, strict=True):
        assert mine["name"] == row["method"]
        assert mine["percents"] == pytest.approx([row["pct_of_unpruned_first"], row["pct_of_unpruned_second"]])
        assert mine["ranks"] == [row["rank_first"], row["rank_second"]]
        assert mine["beyond"] == row["beyond_noise"]


def test_one_model_has_no_agreement_and_models_with_nothing_in_common_say_why(tmp_path: Path) -> None:
    gauntlet(tmp_path, ("fastv",), (64,), ("pope",), 6)
    alone = report.fitting(Store(tmp_path).cells(), tmp_path, 0)
    assert meta_of(alone.html)["agreements"] == []
    assert not any("rankings" in note for note in alone.notes)
    gauntlet(tmp_path, ("fastv",), (64,), ("pope",), 6, model="other", model_fingerprint="w2", request={"data": "mini"})
    both = report.fitting(Store(tmp_path).cells(), tmp_path, 0)
    assert meta_of(both.html)["agreements"] == []
    assert any("rankings: mini and other: expected 3 methods or more" in note for note in both.notes)
    gauntlet(tmp_path, ("fastv",), (64,), ("pope",), 6, dtype="bfloat16")
    three = report.fitting(Store(tmp_path).cells(), tmp_path, 0)
    said = [note for note in three.notes if note.startswith("rankings: ")]
    assert len(said) == 2, "number formats of one model are no two models"


def test_a_line_that_the_page_arranges_otherwise_has_no_numbers(tmp_path: Path) -> None:
    """Two sets of questions of a task are two sections of the tables and two columns of the page; a line that the page
    shows with a cell more than the tables gets no mark of theirs."""
    cells = [
        answered(tmp_path, m, b, [1.0] * 60, "pope") for m, b in (("none", "none"), ("fastv", "64"), ("dart", "64"))
    ]
    (one,) = studies.studied(cells, report.Kept(tmp_path, write=False))
    places = {s.identity: studies.Place(0, i, int(i > 0)) for i, s in enumerate(cells)}
    whole = studies.of_page(one, places)
    assert whole
    assert [row[:2] for row in whole.meta["rows"]] == [[0, 0], [2, 1], [1, 1]]
    merged = studies.of_page(one, {**places, cells[2].identity: places[cells[1].identity]})
    assert merged
    assert [row[:2] for row in merged.meta["rows"]] == [[0, 0]], "two lines of the tables are one of this page"
    assert merged.chunk["blocks"] == []
    assert studies.of_page(one, {}) is None, "another model's section"


def test_more_lines_than_pairs_are_made_of_are_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cells = [answered(tmp_path, "none", "none", [1.0] * 24)]
    cells += [answered(tmp_path, f"m{i:02d}", "64", list(rng.integers(0, 2, 24).astype(float))) for i in range(33)]
    html = report.fitting(cells, tmp_path, 0).html
    (model,) = meta_of(html)["models"]
    (block,) = chunk_of(html, model["studies"][0]["chunk"])["blocks"]
    assert (len(block["lines"]), block["tasks"], block["columns"]) == (33, [], {})


def test_without_a_pair_there_is_no_chunk_of_pairs(tmp_path: Path) -> None:
    for budget in ("64", "32"):
        drawn(tmp_path, "fastv", budget, "pope", 24)
    html = report.fitting(Store(tmp_path).cells(), tmp_path, 4).html
    (model,) = meta_of(html)["models"]
    assert [(s["budgets"], s.get("chunk")) for s in model["studies"]] == [([], None)]
    assert html.count('id="chunk-') == 1


@pytest.fixture
def ghost(tmp_path: Path) -> tuple[Path, report.Page]:
    """Three methods on POPE, of GQA the unpruned cell alone, and POPE's first questions once more."""
    gauntlet(tmp_path, ("fastv", "visipruner"), (64, 32), ("pope",), 24)
    drawn(tmp_path, "none", "none", "gqa", 24)
    return tmp_path, report.fitting(Store(tmp_path).cells(), tmp_path, 4)


def test_a_task_without_a_pruned_cell_lacks_nothing(ghost: tuple[Path, report.Page]) -> None:
    _, page = ghost
    (model,) = meta_of(page.html)["models"]
    assert model["missing"] == []
    assert not any("missing" in note for note in page.notes)
    assert {s["task"]: s["shown"] for s in model["sets"]} == {"gqa": 0, "pope": 4}


def test_nothing_pruned_shows_the_main_set_of_each_task(tmp_path: Path) -> None:
    for task, n in (("pope", 12), ("pope", 6), ("gqa", 6)):
        drawn(tmp_path, "none", "none", task, n)
    (protocol,) = views.protocols(Store(tmp_path).cells())
    assert sorted(q.label for q in views.compared(protocol)) == ["gqa", "pope"]


def test_texts_that_a_table_lacks_are_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pandas reads a null of a column of texts as NaN, which JSON does not know."""
    monkeypatch.setattr(views.Pictures, "square", plain)
    read = SealedCell.samples

    def lacking(self: SealedCell) -> pd.DataFrame:
        frame = read(self)
        for name in ("category", "question", "target", "answer", "keeps"):
            frame[name] = frame[name].astype(object) if name in frame else ""
            frame.loc[frame.index[0], name] = math.nan
        return frame

    monkeypatch.setattr(SealedCell, "samples", lacking)
    cells = [answered(tmp_path, m, b, [1.0] * 6) for m, b in (("none", "none"), ("fastv", "64"))]
    (model,) = meta_of(html := report.fitting(cells, tmp_path, 6).html)["models"]
    data = chunk_of(html, model["sets"][0]["chunk"])
    assert [data["samples"][0][name] for name in ("category", "question", "target")] == [""] * 3
    assert [cell["answer"][0] for cell in data["cells"]] == [cell["keeps"][0] for cell in data["cells"]] == [""] * 2


def test_flips_are_of_answers_with_a_score(tmp_path: Path) -> None:
    corpus = Metric("cider", "corpus")
    pairs = (("none", "none"), ("fastv", "64"))
    cells = [answered(tmp_path, m, b, [None] * 6, "cap", metric=corpus, value=0.5) for m, b in pairs]
    cells += [answered(tmp_path, m, b, [1.0, 0.0] * 3, "pope") for m, b in pairs]
    (model,) = meta_of(report.fitting(cells, tmp_path, 0).html)["models"]
    told = {(model["sets"][c["set"]]["task"], c["unpruned"]): c.get("lost") for c in model["cells"]}
    assert told == {("cap", True): None, ("cap", False): None, ("pope", True): 0, ("pope", False): 0}


def test_a_page_without_samples_names_the_command_of_this_very_page(tmp_path: Path) -> None:
    gauntlet(tmp_path, ("fastv",), (64,), ("pope",), 6)
    out = tmp_path / "a page.html"
    report.write(tmp_path, out, 0, "mini", say=lambda _: None)
    made = meta_of(out.read_text())["make_samples"]
    assert shlex.split(made) == ["make", "report", f"RESULTS={tmp_path}", f"OUT={out}", "DATA=mini", "SAMPLES=100"]


# kept tokens


def unpacked(packed: dict[str, Any], rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """The texts that `MaskPacker` was given, by the rules that it states."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(packed["bits"]), np.uint8))
    masks: list[NDArray[np.uint8]] = []
    sizes, at = iter(packed["sizes"]), 0
    for number, back in enumerate(packed["back"]):
        parent = masks[number - back] if back else np.ones(8 * next(sizes), np.uint8)
        tokens = np.flatnonzero(parent)
        mask = np.zeros_like(parent)
        mask[tokens[bits[at : at + len(tokens)] == 1]] = 1
        at += -(-len(tokens) // 8) * 8
        masks.append(mask)
    assert at == len(bits), "no bit is left over"
    found = []
    for row in rows:
        last, texts = 0, []
        for text in row:
            parts = []
            for part in text.split(";") if text else []:
                head, _, mask = part.rpartition(":")
                if mask not in "*-":
                    last += int(mask)
                    mask = base64.b64encode(np.packbits(masks[last]).tobytes()).decode()
                parts.append(f"{head}:{mask}")
            texts.append(";".join(parts))
        found.append(texts)
    return found


def test_packed_masks_come_back_and_each_is_there_once(made: tuple[list[SealedCell], Path, str]) -> None:
    cells, _, html = made
    (model, _) = meta_of(html)["models"]
    for number, of in enumerate(model["sets"]):
        data = chunk_of(html, of["chunk"])
        own = [c for c in model["cells"] if c["set"] == number]
        texts = unpacked(data["masks"], [cell["keeps"] for cell in data["cells"]])
        keys = [s["key"] for s in data["samples"]]
        assert len(keys) == 20
        for cell, got in zip(own, texts, strict=True):
            name, budget = model["lines"][cell["line"]], model["budgets"][cell["budget"]]
            sealed = next(
                s
                for s in cells
                if (s.cell.model, s.cell.task, s.cell.method, s.cell.budget) == ("mini", of["task"], name, budget)
            )
            assert got == sealed.samples().set_index("key").loc[keys, "keeps"].tolist()
        masks = {part.rpartition(":")[2] for row in texts for text in row for part in text.split(";")} - {"*"}
        assert len(data["masks"]["back"]) == len(masks)
        nested = sum(back > 0 for back in data["masks"]["back"])
        assert nested > len(masks) / 2, "smaller budgets are bits of larger ones"


def test_masks_of_other_lengths_nothing_and_all_are_told_apart() -> None:
    def text(*tokens: int, size: int) -> str:
        mask = np.zeros(8 * size, np.uint8)
        mask[list(tokens)] = 1
        return base64.b64encode(np.packbits(mask).tobytes()).decode()

    rows = [
        [f"0:0:*;2:1:{text(1, 5, 9, size=2)}", "", f"0:0:{text(20, size=3)}"],
        [f"0:0:{text(5, 9, size=2)};3:0:{text(9, size=2)}", "0:0:*", f"0:0:{text(20, size=3)}"],
    ]
    packer = MaskPacker()
    packed = packer.add(rows)
    assert packed[1][1] == "0:0:*"
    assert unpacked(packer.packed(), packed) == rows
    assert packer.packed()["sizes"] == [2, 3], "the others have a parent"
    packer = MaskPacker()
    mixed = [[f"0:0:{text(9, 20, size=3)}"], [f"0:0:{text(1, size=2)}"]]
    packed = packer.add(mixed)
    assert unpacked(packer.packed(), packed) == mixed
    assert packer.packed()["back"] == [0, 0], "a mask of other pictures is no parent"
    assert MaskPacker().add([[f"0:0:*;8:0:{text(size=2)}"]]) == [["0:0:*;8:0:-"]]
    with pytest.raises(
        PrunebenchError, match=r"expected kept tokens as harness.core.keeps writes them, found '0:0:\?\?'"
    ):
        MaskPacker().add([["0:0:??"]])
