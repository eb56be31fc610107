"""Two sides on the questions that both answered: which cells a side names, the numbers, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from factories import answered, asked, make_cell

from harness.core.errors import PrunebenchError
from harness.store.sealed import SealedCell, compressed
from harness.tables import compare, pairs, sides, versus, versus_text
from harness.tables import sections as blocks
from harness.tables.sides import Folder, Side
from harness.tables.versus import Reader, Versus


def right(n: int, wrong: int) -> list[float]:
    """n answers of which the first `wrong` are wrong."""
    return [float(i >= wrong) for i in range(n)]


def folder(*cells: SealedCell, root: Path = Path("nowhere")) -> Folder:
    return Folder(root, blocks.distinct(cells), [])


def resolved(*texts: str, at: Folder, tasks: tuple[str, ...] = (), model: str = "") -> list[tuple[Side, Side]]:
    return sides.resolve(texts, [at], tasks, model)


def compared(*texts: str, at: Folder, tasks: tuple[str, ...] = (), model: str = "") -> list[Versus]:
    return versus.versus(resolved(*texts, at=at, tasks=tasks, model=model))


def one(*texts: str, at: Folder) -> Versus:
    (found,) = compared(*texts, at=at)
    return found


def three(root: Path, task: str = "pope") -> list[SealedCell]:
    """Lines that lose none, 6 and 16 of 100 questions; p of each pair is 2 / 2^(questions apart)."""
    return [answered(root, m, "64", right(100, w), task) for m, w in (("dart", 0), ("fastv", 6), ("first", 16))]


# ------------------------------------------------------------------------------------------------------- the numbers


def test_a_pair_has_the_numbers_of_a_hand_count(tmp_path: Path) -> None:
    base = right(100, 10)
    other = [1 - s if i < 5 or i >= 80 else s for i, s in enumerate(base)]  # 5 gained, 20 lost
    v = one(
        "fastv@64",
        "dart@64",
        at=folder(*(answered(tmp_path, m, "64", s) for m, s in (("fastv", base), ("dart", other)))),
    )
    c = v.comparisons["pope"]
    assert (c.n, c.images, c.better, c.worse, c.difference) == (100, 50, 20, 5, pytest.approx(15))
    assert c.p == c.p_holm == pytest.approx(scipy.stats.binomtest(5, 25).pvalue)
    # 10 images lose both questions, 3 gain (two of them both): as wide as the normal approximation over 50 images says
    by_image = [2.0] * 10 + [-2.0, -2.0, -1.0] + [0.0] * 37
    assert sum(by_image) == 15
    width = 2 * 1.96 * float(np.std(by_image)) / math.sqrt(50) / 2 * 100
    assert c.low < 15 < c.high
    assert c.high - c.low == pytest.approx(width, rel=0.12)
    assert v.tasks[0].points == (pytest.approx(0.9), pytest.approx(0.75))


def test_the_other_order_says_the_reverse(tmp_path: Path) -> None:
    at = folder(*three(tmp_path))
    ab, ba = one("dart@64", "first@64", at=at), one("first@64", "dart@64", at=at)
    c, d = ab.comparisons["pope"], ba.comparisons["pope"]
    assert (c.better, c.worse, c.p, c.difference) == (d.worse, d.better, d.p, -d.difference)
    assert (c.low, c.high) == pytest.approx((-d.high, -d.low))
    assert (c.verdict, d.verdict) == (compare.ABOVE, compare.BELOW)
    assert [(f.key, f.answers, f.scores) for f in ab.flips] == [
        (f.key, f.answers[::-1], f.scores[::-1]) for f in ba.flips
    ]


def test_holm_is_over_all_tasks_and_pairs_that_were_asked(tmp_path: Path) -> None:
    at = folder(*three(tmp_path))
    alone = one("dart@64", "fastv@64", at=at).comparisons["pope"]
    assert (alone.p, alone.p_holm) == (pytest.approx(2 / 2**6), pytest.approx(2 / 2**6))
    found = compared("dart@64", "fastv@64", "first@64", at=at)
    assert [(v.one.label, v.other.label) for v in found] == [
        ("dart@64", "fastv@64"),
        ("dart@64", "first@64"),
        ("fastv@64", "first@64"),
    ]
    by_hand = [2 / 2**6, 6 / 2**16, 4 / 2**10]
    assert [v.comparisons["pope"].p_holm for v in found] == pytest.approx(by_hand)
    both = folder(*three(tmp_path), *three(tmp_path, "gqa"))
    at_tasks = one("dart@64", "fastv@64", at=both).comparisons
    assert [c.p_holm for c in at_tasks.values()] == pytest.approx([2 * 2 / 2**6] * 2)
    asked_one = compared("dart@64", "fastv@64", at=both, tasks=("gqa",))[0].comparisons
    assert {task: c.p_holm for task, c in asked_one.items()} == {"gqa": pytest.approx(2 / 2**6)}


def test_a_pair_has_the_numbers_of_the_tables(tmp_path: Path) -> None:
    """Interval, p and average are those of significance.csv, for lines with one seed and with several."""
    cells = [answered(tmp_path, "none", "none", right(80, 4), t) for t in ("pope", "gqa")]
    cells += [answered(tmp_path, "dart", "64", right(80, 16), t) for t in ("pope", "gqa")]
    for boundary in (0, 2):
        for seed in range(3 + boundary):
            wrong = 20 + 7 * seed
            drawn = {"knobs": {"boundary": boundary}, "seed": seed}
            cells += [answered(tmp_path, "random", "64", right(80, wrong), t, **drawn) for t in ("pope", "gqa")]
    (section,) = blocks.sections(blocks.distinct(cells))
    in_tables = {c.task: c for c in pairs.study_pairs(section)[1] if c.against == "random boundary=0"}
    here = one("dart@64", "random@64:boundary=0", at=folder(*cells)).comparisons
    assert set(in_tables) == set(here) == {"pope", "gqa", compare.AVERAGE}
    for task, c in here.items():
        t = in_tables[task]
        assert (c.low, c.high, c.p, c.difference) == pytest.approx((t.low, t.high, t.p, t.difference), rel=1e-12)
        assert (c.better, c.worse) == pytest.approx((t.better, t.worse), nan_ok=True)


def test_only_common_questions_count_and_their_number_is_said(tmp_path: Path) -> None:
    """One side lost its 12 first questions, which the other has on 40 more."""
    few = answered(tmp_path, "fastv", "64", right(60, 12), data_fingerprint="try")
    many = answered(tmp_path, "dart", "64", right(100, 0), data_fingerprint="whole")
    v = one("fastv@64", "dart@64", at=folder(few, many))
    (on,) = v.tasks
    assert (on.n, on.common, on.images, on.points) == ((60, 100), 60, 30, (0.8, 1.0))
    assert v.comparisons["pope"].difference == pytest.approx(-20)
    assert "pope: 60 of 100 questions are in both (fastv@64 has 60, dart@64 has 100; data try and whole)" in v.notes


def test_an_mme_sum_stays_a_sum_and_half_pairs_are_left_out(tmp_path: Path) -> None:
    lost = [0.0 if i < 8 and i % 2 == 0 else 1.0 for i in range(40)]
    cells = [answered(tmp_path, m, "64", s, "mme") for m, s in (("dart", [1.0] * 40), ("fastv", lost))]
    c = one("dart@64", "fastv@64", at=folder(*cells)).comparisons["mme"]
    assert (c.difference, c.better, c.worse) == (pytest.approx(60), 4, 0)
    keys = cells[1].columns("key")["key"]
    cut = changed(cells[1], tmp_path / "cut", "key", [*keys[:-1], "mme/000139"])
    v = one("dart@64", "fastv@64", at=folder(cells[0], cut))
    assert "mme: 1 questions are left out, whose pair is not in both" in v.notes
    assert v.tasks[0].common == 38


def stored(sealed: SealedCell, root: Path, table: pa.Table) -> SealedCell:
    data = compressed(table)
    root.mkdir(parents=True, exist_ok=True)
    (root / "samples.parquet").write_bytes(data)
    return dataclasses.replace(sealed, folder=root, samples_sha256=hashlib.sha256(data).hexdigest())


def changed(sealed: SealedCell, root: Path, column: str, values: list[object]) -> SealedCell:
    table = sealed.table("key", "image", "question_id", "category", "question", "target", "answer", "score")
    at = table.column_names.index(column)
    return stored(sealed, root, table.set_column(at, column, pa.array(values, table.schema.field(column).type)))


def test_the_average_is_of_each_sides_own_unpruned_cell_and_needs_all(tmp_path: Path) -> None:
    tasks = {"pope": 0, "gqa": 50}
    bases = [answered(tmp_path, "none", "none", right(100, w), t) for t, w in tasks.items()]
    cells = [
        answered(tmp_path, m, "64", right(100, w + x), t)
        for t, w in tasks.items()
        for m, x in (("dart", 0), ("fastv", 25))
    ]
    v = one("dart@64", "fastv@64", at=folder(*bases, *cells))
    c = v.comparisons[compare.AVERAGE]
    assert c.difference == pytest.approx((25 + 50) / 2)
    assert c.low < 37.5 < c.high
    assert c.p == pytest.approx(2 / 20_001)
    bare = one("dart@64", "fastv@64", at=folder(bases[0], *cells))
    assert compare.AVERAGE not in bare.comparisons
    assert bare.notes == ["Avg % is not compared (gqa: no unpruned cell of the same questions)"]


def test_few_images_have_no_interval_and_no_verdict(tmp_path: Path) -> None:
    cells = [answered(tmp_path, m, "64", right(9, w), per_image=1) for m, w in (("dart", 0), ("fastv", 9))]
    c = one("dart@64", "fastv@64", at=folder(*cells)).comparisons["pope"]
    assert (c.verdict, math.isnan(c.low), math.isnan(c.p_holm)) == (compare.TOO_FEW, True, True)
    assert "few images" in versus_text.text(compared("dart@64", "fastv@64", at=folder(*cells)), 3)


def test_equal_answers_are_not_told_apart(tmp_path: Path) -> None:
    cells = [answered(tmp_path, m, "64", right(60, 30)) for m in ("dart", "fastv")]
    v = one("dart@64", "fastv@64", at=folder(*cells))
    c = v.comparisons["pope"]
    assert (c.difference, c.p, c.verdict, v.flips) == (0, 1, compare.SAME, [])
    assert (c.low, c.high) == pytest.approx((-11.57, 11.57), abs=0.01)


@pytest.mark.parametrize(
    ("column", "values", "why"),
    [
        ("score", [None] * 40, "is computed over all answers, and its questions have no scores of their own"),
        ("score", [0.0] * 40, "is no mean of its questions' scores"),
    ],
)
def test_a_metric_over_all_answers_has_no_test(column: str, values: list[object], why: str, tmp_path: Path) -> None:
    plain = [answered(tmp_path, m, "64", right(40, w)) for m, w in (("dart", 4), ("fastv", 20))]
    odd = [changed(cell, tmp_path / cell.cell.method, column, values) for cell in plain]
    v = one("dart@64", "fastv@64", at=folder(*odd))
    assert v.comparisons == {}
    assert v.tasks[0].untested == f"pope_accuracy {why}"
    assert v.tasks[0].points == (pytest.approx(0.9), pytest.approx(0.5)), "the metric itself is there"
    frame = versus_text.frame([v])
    assert frame["verdict"].tolist() == [f"no test: pope_accuracy {why}"]
    text = versus_text.text([v], 3)
    assert "no test" in text
    assert f"note    pope has no test: pope_accuracy {why}" in text


# ------------------------------------------------------------------------------------------------------ flips, costs


def test_flips_hold_both_answers_and_the_image(tmp_path: Path) -> None:
    cells = [
        answered(tmp_path, "dart", "64", [1.0, 1.0, 0.0, 0.3] * 5, answers=["yes", "no", "dog", "cat"] * 5),
        answered(tmp_path, "fastv", "64", [1.0, 0.0, 0.0, 0.6] * 5, answers=["yes", "yes", "rat", "cow"] * 5),
    ]
    v = one("dart@64", "fastv@64", at=folder(*cells))
    assert [f.key for f in v.flips] == [f"pope/{i:06d}" for i in range(20) if i % 4 in (1, 3)]
    frame = versus_text.flips_frame([v])
    first, second = frame.to_dict("records")[:2]
    assert first == {
        "a": "dart@64",
        "b": "fastv@64",
        "task": "pope",
        "key": "pope/000001",
        "image": "pope-0",
        "question": "q",
        "target": "t",
        "answer_a": "no",
        "answer_b": "yes",
        "score_a": 1.0,
        "score_b": 0.0,
        "better": "a",
    }
    assert (second["key"], second["score_a"], second["score_b"], second["better"]) == ("pope/000003", 0.3, 0.6, "b")
    text = versus_text.text([v], 2)
    assert "A : B  10 answers flipped, on 10 images: A is better on 5, B on 5" in text
    assert text.count("A better  pope/") == text.count("B better  pope/") == 2
    assert "A better  3 more" in text


@pytest.mark.parametrize(
    ("kept", "flops", "said"),
    [
        ((64, 64), (2e9, 1e9), "Equal tokens, unequal FLOPs: A and B both keep 64.0 tokens, and A 2.00 B"),
        ((64, 32), (1e9, 1e9), "Equal FLOPs, unequal tokens: the prefills of A and B cost the same, and kept."),
        ((64, 64), (1e9, 1.005e9), "A and B: equal tokens and equal prefill FLOPs, within 1%."),
        ((64, 32), (1e9, 3e9), "Neither tokens nor FLOPs are equal: kept; B 3.00 A"),
        ((64, None), (1e9, 3e9), "A and B: whether tokens and FLOPs are equal is not known, for a cell lacks a cost."),
    ],
)
def test_equal_tokens_and_equal_flops_are_both_stated(
    kept: tuple[float, float | None], flops: tuple[float, float], said: str, tmp_path: Path
) -> None:
    cells = []
    for method, k, f in zip(("dart", "fastv"), kept, flops, strict=True):
        costs = {"prefill_dense_flops": f, "mean_visual": 80.0, "vision_flops": 1e9} | ({"kept": k} if k else {})
        cells.append(answered(tmp_path, method, "64", right(40, 4), costs=costs))
    base = answered(tmp_path, "none", "none", right(40, 0), costs={"kept": 576, "prefill_dense_flops": 4e9})
    found = compared("dart@64", "fastv@64", at=folder(base, *cells))
    said = said.replace("kept", "A keeps 64.0 tokens, B 32.0")
    said = re.sub(r"([AB]) (\d\.\d\d) ([AB])", r"the prefill of \1 costs \2 times that of \3.", said)
    assert said in versus_text.text(found, 3).splitlines()
    (row,) = versus_text.frame(found).to_dict("records")
    assert (row["pct_of_unpruned_flops_a"], row["prefill_dense_gflops_b"]) == (25 * flops[0] / 1e9, flops[1] / 1e9)


def test_text_keeps_to_the_width_of_a_terminal(tmp_path: Path) -> None:
    long = {"answers": ["a very long answer " * 9] * 40}
    cells = [
        answered(tmp_path, m, "64", right(40, w), t, **long)
        for m, w in (("dart", 4), ("fastv", 20))
        for t in ("pope", "gqa")
    ]
    text = versus_text.text(compared("dart@64", "fastv@64", at=folder(*cells)), 3)
    assert max(map(len, text.splitlines())) <= 110


def test_three_sides_with_sums_fit_and_show_the_average_of_each(tmp_path: Path) -> None:
    tasks = ("gqa", "mme", "a_task_with_long_name")
    lost = {"dart": 30, "fastv": 120, "first": 60}
    cells = [answered(tmp_path, "none", "none", right(200, 20), t) for t in tasks]
    cells += [answered(tmp_path, m, "64", right(200, w), t) for t in tasks for m, w in lost.items()]
    at = folder(*cells)
    found = compared("dart@64", "fastv@64", "first@64", at=at)
    text = versus_text.text(found, 3)
    assert max(map(len, text.splitlines())) <= 110
    (row,) = versus_text.frame(found[:1]).query("task == 'average'").to_dict("records")
    assert row["score_a"] - row["score_b"] == pytest.approx(row["difference"])
    line = next(line for line in text.splitlines() if line.startswith("A : B  Avg %"))
    assert f"  {row['score_a']:.1f}    {row['score_b']:.1f}  " in line
    section = found[0].one.section
    averages = [blocks.average(side.line, section) for side in (found[0].one, found[0].other)]
    assert [row["score_a"], row["score_b"]] == pytest.approx(averages)
    huge = dataclasses.replace(found[0].comparisons["mme"], difference=-1190.9, low=-1281.3, high=-1101.1)
    wide = [dataclasses.replace(v, comparisons={**v.comparisons, "mme": huge}) for v in found]
    assert "[-1281.3, -1101.1]" in versus_text.text(wide, 0)
    assert max(map(len, versus_text.text(wide, 0).splitlines())) <= 110


# ------------------------------------------------------------------------------------------------- what a side names


def test_a_side_is_a_line_with_all_its_seeds(tmp_path: Path) -> None:
    cells = [answered(tmp_path, "random", "64", right(40, w), seed=w, knobs={"boundary": 0}) for w in (1, 2, 3)]
    cells += [answered(tmp_path, "random", "64", right(40, 9), knobs={"boundary": 2, "stages": [2, 5], "x": None})]
    at = folder(*cells, answered(tmp_path, "fastv", "64", right(40, 4)))

    def seeds(text: str) -> list[int]:
        ((side, _),) = resolved(text, "fastv@64", at=at)
        return [s.cell.seed for s in side.cells["pope"]]

    assert seeds("random@64:boundary=0") == [1, 2, 3]
    assert seeds("random@64:boundary=0,seed=2") == [2]
    assert seeds("random@64:seed=2") == [2]
    for text in ("boundary=2", "stages=2,5", "stages=2,5,x=none", "x=null", "stages=[2,5]"):
        assert seeds(f"random@64:{text}") == [0], text
    assert seeds("random boundary=0 stages=unset x=unset@64") == [1, 2, 3], "as a table prints the line"
    assert seeds(" random@64:boundary=2 ") == [0]
    assert seeds(cells[1].identity[:9]) == [2]


def test_a_budget_is_read_as_everywhere_and_left_out_where_there_is_one(tmp_path: Path) -> None:
    at = folder(
        *(answered(tmp_path, "fastv", b, right(40, 4)) for b in ("64", "0.25kept")),
        answered(tmp_path, "downsample", "64", right(40, 5)),
        answered(tmp_path, "none", "none", right(40, 0)),
    )
    assert [s.line.budget for s in resolved("fastv@25%", "downsample", at=at)[0]] == ["0.25kept", "64"]
    assert [s.line.method for s in resolved("none", "fastv@64", at=at)[0]] == ["none", "fastv"]


def test_two_versions_of_a_file_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").touch()
    cells = [
        answered(
            tmp_path,
            "mine",
            "64",
            right(40, w),
            method_source=source,
            provenance={"request": asked(method="my.py:Mine"), "processing": {"image": {}}, "started": ""},
        )
        for source, w in (("aaaa11112222", 4), ("aaab11112222", 20))
    ]
    at = folder(*cells)
    with pytest.raises(
        PrunebenchError,
        match=r"differ in method_source \(aaaa11, aaab11\): write my\.py:Mine@64:method_source=aaaa11 or",
    ):
        resolved("my.py:Mine@64", "my.py:Mine@64", at=at)
    v = one("my.py:Mine@64:method_source=aaaa", f"{tmp_path}/my.py:Mine@64:method_source=aaab", at=at)
    assert v.comparisons["pope"].difference == pytest.approx(40)
    assert v.one.label == "my.py:Mine@64:method_source=aaaa"
    with pytest.raises(PrunebenchError, match=r"unknown method of these cells 'other\.py:Mine'"):
        resolved("other.py:Mine@64", "mine@64", at=at)


def test_two_folders_compare_a_side_before_and_after(tmp_path: Path) -> None:
    before = folder(*three(tmp_path / "x"), root=Path("before"))
    after = folder(
        *(answered(tmp_path / "y", m, "64", right(100, w), dtype="bfloat16") for m, w in (("dart", 10), ("fastv", 6))),
        root=Path("after"),
    )
    found = versus.versus(sides.resolve(["dart@64", "fastv@64"], [before, after]))
    assert [(v.one.label, v.other.label) for v in found] == [
        ("dart@64 in before", "dart@64 in after"),
        ("fastv@64 in before", "fastv@64 in after"),
    ]
    first, second = (v.comparisons["pope"] for v in found)
    assert (first.difference, first.better, first.p_holm) == (pytest.approx(10), 10, pytest.approx(2 * 2 / 2**10))
    assert (second.difference, second.verdict) == (0, compare.SAME)
    assert found[0].notes == ["the two differ in dtype: float32 and bfloat16"]
    text = versus_text.text(found, 3)
    assert "A  mini, float32, cpu, LIMIT=default in before" in text
    assert "A, B: the two differ in dtype" in text


def test_two_models_are_compared_where_a_side_names_one(tmp_path: Path) -> None:
    cells = [
        answered(tmp_path, method, "64", right(40, w), model=m, model_fingerprint=m, processing=m)
        for m, w in (("org/a", 0), ("org/b", 20))
        for method in ("fastv", "dart")
    ]
    at = folder(*cells)
    said = refused("fastv@64", "dart@64", at=at)
    assert "expected one set of cells, found 2, which differ in model (org/a, org/b); weights (org/a, org/b)" in said
    assert "name one, as in fastv@64:model=org/a, or with model" in said
    assert len(compared("fastv@64", "dart@64", at=at, model="org/a")) == 1
    v = one("fastv@64:model=org/a", "fastv@64:model=org/b", at=at)
    assert v.comparisons["pope"].difference == pytest.approx(50)
    assert v.notes[0] == "the two differ in model: org/a and org/b"


# ---------------------------------------------------------------------------------------------------------- refusals


def refused(*texts: str, at: Folder, tasks: tuple[str, ...] = (), model: str = "") -> str:
    with pytest.raises(PrunebenchError) as caught:
        compared(*texts, at=at, tasks=tasks, model=model)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_unknown_sides_name_the_nearest(tmp_path: Path) -> None:
    at = folder(*three(tmp_path), answered(tmp_path, "fastv", "32", right(100, 9), knobs={"boundary": 2}))
    assert "unknown method of these cells 'fastw'; did you mean 'fastv'?" in refused("fastw@64", "dart@64", at=at)
    assert "a budget at which fastv was measured (64, 32), found 65; write one as in fastv@64" in refused(
        "fastv@65", "dart@64", at=at
    )
    assert "found none; write one as in fastv@64" in refused("fastv", "dart@64", at=at)
    unpruned = folder(*at.known.values(), answered(tmp_path, "none", "none", right(100, 0)))
    assert refused("none@64", "dart@64", at=unpruned).endswith("none was measured (none), found 64; write none")
    assert "unknown setting 'bondary'; did you mean 'boundary'?" in refused("fastv@32:bondary=2", "dart@64", at=at)
    assert "expected boundary to be one of 2, as measured, found 7" in refused("fastv@32:boundary=7", "dart@64", at=at)
    told = refused("fastv@64", "dart@64", at=at, tasks=("pop",))
    assert "unknown task of these cells 'pop'; did you mean 'pope'?" in told
    told = refused("fastv@64", "dart@64", at=at, model="minn")
    assert "unknown model of these cells 'minn'; did you mean 'mini'?" in told
    assert "expected one cell whose identity begins so, found none" in refused("0" * 16, "dart@64", at=at)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    at = folder(*three(tmp_path))
    for text in ("@64", "fastv@", ""):
        assert f"side {text!r}: expected method@budget, as in fastv@64" in refused(text, "dart@64", at=at)
    assert "expected a value behind seed=, found none" in refused("fastv@64:seed=", "dart@64", at=at)
    assert "seed is given twice" in refused("fastv@64:seed=0,seed=1", "dart@64", at=at)
    assert "keeps no visual token" in refused("fastv@0", "dart@64", at=at)
    assert "are the same cells" in refused("fastv@64", "fastv@64", at=at)
    assert "no cell has all of these settings" in refused(
        "random@64:seed=1,boundary=0",
        "dart@64",
        at=folder(
            *at.known.values(),
            answered(tmp_path, "random", "64", right(100, 1), seed=1, knobs={"boundary": 2}),
            answered(tmp_path, "random", "64", right(100, 1), seed=0, knobs={"boundary": 0}),
        ),
    )


def test_ambiguous_sides_list_what_differs(tmp_path: Path) -> None:
    knobs = [answered(tmp_path, "random", "64", right(40, 4), knobs={"boundary": b}) for b in (0, 2)]
    other = answered(tmp_path, "dart", "64", right(40, 4))
    assert "found 2, which differ in boundary (0, 2): write random@64:boundary=0 or random@64:boundary=2" in refused(
        "random@64", "dart@64", at=folder(*knobs, other)
    )
    moved = [answered(tmp_path, "fastv", "64", right(40, 4), positions=p) for p in ("method", "compact")]
    said = refused("fastv@64", "dart@64", at=folder(*moved, other))
    assert (
        "differ in positions (compact, method): write fastv@64:positions=compact or fastv@64:positions=method" in said
    )
    limits = [
        answered(tmp_path, m, "64", right(n, 4), data_fingerprint=f"d{n}", provenance=_limit(limit))
        for m in ("fastv", "dart")
        for n, limit in ((40, None), (20, "20"))
    ]
    said = refused("fastv@64", "dart@64", at=folder(*limits))
    assert said == (
        "sides fastv@64, dart@64: expected one set of cells, found 2, which differ in limit (20, default): name one, as"
        " in fastv@64:limit=20"
    )
    v = one("fastv@64:limit=20", "dart@64:limit=20", at=folder(*limits))
    assert v.tasks[0].n == (20, 20)
    said = refused("0", "dart@64", at=folder(*limits))
    assert "unknown method of these cells '0'" in said
    ids = [f"abcd{i}" for i in range(2)]
    at = Folder(Path("x"), {ids[0] + "0" * 11: limits[0], ids[1] + "0" * 11: limits[1]}, [])
    assert "found 2: abcd00000000 (pope, fastv@64), abcd10000000" in refused("abcd", "dart@64", at=at)


def test_each_suggestion_for_an_ambiguous_side_names_one_line(tmp_path: Path) -> None:
    """A default knob, another value of it, other positions, and a cell from before the knob."""
    lines = [
        *({"knobs": {"relevance": r, "chunk": 8}, "positions": "method"} for r in ("clip", "none")),
        {"knobs": {"relevance": "clip", "chunk": 8}, "positions": "compact"},
        {"knobs": {"relevance": "clip", "chunk": 4}, "positions": "compact"},
        {"knobs": {"chunk": 2}},
    ]
    cells = [answered(tmp_path, "cdpruner", "64", right(40, 4), **line) for line in lines]
    at = folder(*cells, answered(tmp_path, "dart", "64", right(40, 4)))
    said = refused("cdpruner@64", "dart@64", at=at)
    assert "differ in chunk (2, 4, 8), relevance (clip, none), positions (compact, method): write " in said
    ways = said.rpartition(": write ")[2].split(" or ")
    chosen = [resolved(way.strip("'"), "dart@64", at=at)[0][0] for way in ways]
    assert {s.identity for side in chosen for s in side.cells["pope"]} == {s.identity for s in cells}
    assert len(ways) == len(cells)
    ways = refused("cdpruner@64:chunk=8", "dart@64", at=at).rpartition(": write ")[2].split(" or ")
    assert len({*(resolved(way, "dart@64", at=at)[0][0].identities for way in ways)}) == len(ways) == 3


def _limit(limit: str | None) -> dict[str, object]:
    return {"request": asked(limit=limit), "processing": {"image": {}}, "started": "2026"}


def test_sides_measured_in_another_way_are_refused_unless_a_side_names_it(tmp_path: Path) -> None:
    at = folder(
        answered(tmp_path, "fastv", "64", right(40, 4)),
        answered(tmp_path, "dart", "64", right(40, 20), dtype="bfloat16"),
    )
    said = refused("fastv@64", "dart@64", at=at)
    assert "expected one dtype, found float32 and bfloat16" in said
    v = one("fastv@64", "dart@64:dtype=bfloat16", at=at)
    assert v.notes == ["the two differ in dtype: float32 and bfloat16"]
    assert v.comparisons["pope"].difference == pytest.approx(40)


def test_no_common_task_or_question_is_refused(tmp_path: Path) -> None:
    fastv = answered(tmp_path, "fastv", "64", right(40, 4))
    said = refused("fastv@64", "dart@64", at=folder(fastv, answered(tmp_path, "dart", "64", right(40, 4), "gqa")))
    assert "expected a task that both were measured on, found pope and gqa" in said
    dart = answered(tmp_path, "dart", "64", right(40, 4), data_fingerprint="other")
    renamed = changed(dart, tmp_path / "r", "key", [f"pope/{i:06d}" for i in range(100, 140)])
    said = refused("fastv@64", "dart@64", at=folder(fastv, renamed))
    assert "expected questions that both answered, found none: pope: no question is in both" in said


@pytest.mark.parametrize(("column", "what"), [("image", "image"), ("question", "question"), ("target", "target")])
def test_other_data_under_the_same_names_are_no_common_questions(column: str, what: str, tmp_path: Path) -> None:
    fastv = answered(tmp_path, "fastv", "64", right(40, 4))
    dart = answered(tmp_path, "dart", "64", right(40, 4), data_fingerprint="other")
    values = dart.columns("key", column)[column]
    strange = changed(dart, tmp_path / "r", column, [*values[:-1], "strange"])
    said = refused("fastv@64", "dart@64", at=folder(fastv, strange))
    assert f"pope/000039 has another {what} on each side, so the data differ (data data-p and other)" in said
    # another task goes on
    more = [answered(tmp_path, m, "64", right(40, 4), "gqa") for m in ("fastv", "dart")]
    v = one("fastv@64", "dart@64", at=folder(fastv, strange, *more))
    assert set(v.comparisons) == {"gqa"}


def test_a_damaged_cell_is_named_and_left_out(tmp_path: Path) -> None:
    cells = [*three(tmp_path), *three(tmp_path, "gqa")]
    path = cells[1].folder / "samples.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    reader = Reader()
    (v,) = versus.versus(resolved("dart@64", "fastv@64", at=folder(*cells)), reader)
    assert set(v.comparisons) == {"gqa"}
    assert v.notes[0] == "pope is not compared: the samples of fastv@64 are damaged"
    (why,) = reader.damaged
    assert str(path) in why


def test_other_settings_of_the_task_are_noted(tmp_path: Path) -> None:
    cells = three(tmp_path)
    longer = answered(tmp_path, "uniform", "64", right(100, 0), max_new_tokens=32, data_fingerprint="d2")
    v = one("fastv@64", "uniform@64", at=folder(cells[1], longer))
    assert v.notes == ["pope: the two differ in max_new_tokens: 16 and 32"]


def test_another_metric_is_said(tmp_path: Path) -> None:
    cells = three(tmp_path)
    odd = dataclasses.replace(cells[1], headline="pope_f1_score", metrics={"pope_f1_score": 0.94})
    assert "its metric is pope_accuracy on one side and pope_f1_score on the other" in refused(
        "dart@64", "fastv@64", at=folder(cells[0], odd)
    )


def test_a_task_of_one_side_alone_is_named(tmp_path: Path) -> None:
    cells = [*three(tmp_path), answered(tmp_path, "dart", "64", right(40, 1), "gqa")]
    v = one("dart@64", "fastv@64", at=folder(*cells))
    assert v.notes == ["only dart@64 was measured on gqa"]
    assert make_cell().task == "pope"
