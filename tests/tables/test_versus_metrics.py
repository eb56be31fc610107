"""Method against method on metrics of any kind: a scale of 100, lower is better, and metrics over all answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from factories import answered

from harness.core.metric import Metric
from harness.store.sealed import SealedCell
from harness.tables import compare, pairs, sides, versus, versus_text
from harness.tables import sections as blocks
from harness.tables.sides import Folder
from harness.tables.versus import Versus


def right(n: int, wrong: int) -> list[float]:
    return [float(i >= wrong) for i in range(n)]


def cells(root: Path, metric: Metric, task: str = "pope", **changes: object) -> list[SealedCell]:
    lines = (("none", "none", 0), ("dart", "64", 6), ("fastv", "64", 30))
    return [answered(root, m, b, right(100, w), task, metric=metric, **changes) for m, b, w in lines]


def one(*made: SealedCell) -> Versus:
    pair = sides.resolve(["dart@64", "fastv@64"], [Folder(Path("nowhere"), blocks.distinct(made), [])])
    return versus.versus(pair)[0]


def in_tables(*made: SealedCell) -> dict[str, compare.Comparison]:
    (section,) = blocks.sections(blocks.distinct(made))
    return {c.task: c for c in pairs.study_pairs(section)[1]}


def test_a_scale_of_100_gives_the_same_points(tmp_path: Path) -> None:
    plain = one(*cells(tmp_path / "a", Metric("acc"))).comparisons["pope"]
    v = one(*cells(tmp_path / "b", Metric("acc", scale=100.0)))
    c = v.comparisons["pope"]
    assert (c.difference, c.low, c.high) == pytest.approx((plain.difference, plain.low, plain.high))
    assert (c.p, c.better, c.worse, c.verdict) == (plain.p, 24, 0, compare.ABOVE)
    assert v.tasks[0].points == (pytest.approx(94), pytest.approx(70))


def test_lower_is_better_turns_every_sign_and_stays_out_of_the_average(tmp_path: Path) -> None:
    errors = Metric("wer", higher_is_better=False)
    made = cells(tmp_path, errors)
    v = one(*made)
    c = v.comparisons["pope"]
    assert v.tasks[0].points == (pytest.approx(0.94), pytest.approx(0.7)), "as measured"
    assert (c.difference, c.better, c.worse, c.verdict) == (pytest.approx(-24), 0, 24, compare.BELOW)
    assert c.low < -24 < c.high < 0
    assert {flip.first for flip in v.flips} == {False}
    t = in_tables(*made)
    assert set(t) == {"pope"}
    assert (t["pope"].difference, t["pope"].low, t["pope"].high, t["pope"].p) == pytest.approx(
        (c.difference, c.low, c.high, c.p)
    )
    both = [*made, *cells(tmp_path, Metric("acc"), "gqa"), *cells(tmp_path, Metric("acc"), "textvqa")]
    v = one(*both)
    assert v.comparisons[compare.AVERAGE].difference == pytest.approx(24)
    assert "lower is better on pope, which is not in Avg %" in v.notes
    assert in_tables(*both)[compare.AVERAGE].difference == pytest.approx(24)
    assert "A worse" in versus_text.text([v], 3)


def test_a_metric_over_all_answers_has_no_pair_and_no_test(tmp_path: Path) -> None:
    made = cells(tmp_path, Metric("cider", "corpus"), value=0.5)
    v = one(*made)
    assert v.comparisons == {}
    assert v.tasks[0].points == (0.5, 0.5)
    assert "cider is computed over all answers" in v.tasks[0].untested
    assert in_tables(*made) == {}
    both = [*made, *cells(tmp_path, Metric("acc"), "gqa")]
    assert set(one(*both).comparisons) == set(in_tables(*both)) == {"gqa"}
    assert "no test" in versus_text.text([one(*both)], 3)


def test_the_average_of_one_task_beside_a_lower_one_has_that_tasks_test(tmp_path: Path) -> None:
    """As significance.csv has them: McNemar's p and the questions, in per cent of an unpruned score below 1."""
    lines = (("none", "none", 20), ("dart", "64", 22), ("fastv", "64", 30))
    made = [answered(tmp_path, m, b, right(100, w), "gqa", metric=Metric("acc")) for m, b, w in lines]
    made += cells(tmp_path, Metric("wer", higher_is_better=False))
    v = one(*made)
    task, average, tables = v.comparisons["gqa"], v.comparisons[compare.AVERAGE], in_tables(*made)[compare.AVERAGE]
    assert (average.p, average.better, average.worse) == (task.p, 8, 0) == (tables.p, tables.better, tables.worse)
    assert average.difference == pytest.approx(8 / 0.8)
    assert (average.difference, average.low, average.high) == pytest.approx(
        (tables.difference, tables.low, tables.high)
    )
    assert average.verdict == tables.verdict == task.verdict


def test_the_average_of_one_task_of_two_folders_is_a_share_of_each_ones_own(tmp_path: Path) -> None:
    """Unpruned scores of 0.8 and 1.0: what was 72 of 80 is as good as 90 of 100."""
    folders = []
    for name, unpruned, wrong in (("a", 20, 28), ("b", 0, 10)):
        root = tmp_path / name
        made = [answered(root, "none", "none", right(100, unpruned), "gqa", metric=Metric("acc"))]
        made += [answered(root, "dart", "64", right(100, wrong), "gqa", metric=Metric("acc"))]
        made += cells(root, Metric("wer", higher_is_better=False))
        folders.append(Folder(root, blocks.distinct(made), []))
    (v,) = versus.versus(sides.resolve(["dart@64"], folders))
    assert v.comparisons["gqa"].difference == pytest.approx(-18)
    assert v.comparisons[compare.AVERAGE].difference == pytest.approx(0)
    assert v.comparisons[compare.AVERAGE].verdict != v.comparisons["gqa"].verdict
