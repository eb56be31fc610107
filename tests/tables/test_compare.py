"""What is said about differences: who is compared with whom, by which rule, and what the answers agree on."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import scipy.stats
from factories import answered

from harness.core import stats
from harness.core.errors import PrunebenchError
from harness.store.sealed import SealedCell
from harness.tables import compare
from harness.tables import sections as blocks


def study(*cells: SealedCell) -> compare.Findings:
    (section,) = blocks.sections(blocks.distinct(cells))
    return compare.study(section)


def one(found: compare.Findings, line: str, task: str, against: str) -> compare.Comparison:
    (c,) = [c for c in found.comparisons if (c.line, c.task, c.against) == (line, task, against)]
    return c


def pattern(n: int, right: float) -> list[float]:
    """n answers of which the first share is right."""
    return [float(i < right * n) for i in range(n)]


def test_a_comparison_has_the_numbers_of_a_hand_count(tmp_path: Path) -> None:
    base = pattern(100, 0.9)
    pruned = [1 - s if i < 20 or i == 95 else s for i, s in enumerate(base)]  # 20 lost, 1 gained
    found = study(answered(tmp_path, "none", "none", base), answered(tmp_path, "fastv", "64", pruned))
    c = one(found, "fastv", "pope", "none")
    assert (c.n, c.images, c.better, c.worse) == (100, 50, 1, 20)
    assert c.difference == pytest.approx(-19)
    assert c.p == pytest.approx(scipy.stats.binomtest(1, 21).pvalue)
    assert c.p_holm == c.p, "a family of one"
    assert c.low < -19 < c.high < 0
    assert c.verdict == compare.BELOW
    # the interval is about as wide as the normal approximation over 50 images says: 10 images lose both, one gains one
    by_image = [-2.0] * 10 + [1.0] + [0.0] * 39
    sd = math.sqrt(sum((d + 0.38) ** 2 for d in by_image) / 50)
    assert c.high - c.low == pytest.approx(2 * 1.96 * sd / math.sqrt(50) / 2 * 100, rel=0.12)


def test_equal_answers_are_indistinguishable_whatever_the_score(tmp_path: Path) -> None:
    scores = pattern(60, 0.5)
    found = study(*(answered(tmp_path, m, b, scores) for m, b in (("none", "none"), ("fastv", "64"), ("random", "64"))))
    for against in ("none", "random"):
        c = one(found, "fastv", "pope", against)
        assert (c.difference, c.p, c.verdict) == (0, 1, compare.SAME)
        # 30 images on which nothing differs: up to 11.6 % of all images may be of another kind
        assert (c.low, c.high) == pytest.approx((-11.57, 11.57), abs=0.01)


def test_an_average_that_never_differs_has_the_width_of_its_tasks(tmp_path: Path) -> None:
    base = pattern(60, 0.5)
    found = study(
        *(answered(tmp_path, m, b, base, t) for t in ("pope", "gqa") for m, b in (("none", "none"), ("fastv", "64")))
    )
    c = one(found, "fastv", compare.AVERAGE, "none")
    per_task = one(found, "fastv", "pope", "none").high
    assert (c.difference, c.p, c.verdict) == (0, 1, compare.SAME)
    assert (c.low, c.high) == pytest.approx((-per_task / 0.5, per_task / 0.5)), "in % of a score of 50 %"
    low, high = found.averages["64", "fastv"]
    assert (low, high) == pytest.approx((100 + c.low, 100 + c.high))


def test_a_small_p_alone_or_a_clear_interval_alone_is_not_a_difference(tmp_path: Path) -> None:
    """8 questions on one image: McNemar takes them for 8 facts, the interval for one. 4 lost on 4 images: the other way
    round."""
    base = [1.0] * 240
    one_image = [0.0] * 8 + [1.0] * 232
    spread = [float(i not in (0, 8, 16, 24)) for i in range(240)]
    for lost, small_p, clear in ((one_image, True, False), (spread, False, True)):
        root = tmp_path / str(small_p)
        found = study(
            answered(root, "none", "none", base, per_image=8), answered(root, "fastv", "64", lost, per_image=8)
        )
        c = one(found, "fastv", "pope", "none")
        assert ((c.p_holm < 0.05), (c.high < 0)) == (small_p, clear)
        assert c.verdict == compare.OPEN


def test_holm_spans_budgets_and_tasks_of_one_reference(tmp_path: Path) -> None:
    tasks, base = ("pope", "gqa"), [1.0] * 40
    lost = [0.0] * 6 + [1.0] * 34  # p = 2 / 2^6 = 0.03125
    cells = [answered(tmp_path, "none", "none", base, t) for t in tasks]
    cells += [answered(tmp_path, "random", b, base, t) for b in ("64", "32") for t in tasks]
    cells += [answered(tmp_path, "fastv", b, lost, t) for b in ("64", "32") for t in tasks]
    found = study(*cells)
    with_random = [c for c in found.comparisons if c.against == "random" and c.task != compare.AVERAGE]
    assert [c.p for c in with_random] == [pytest.approx(0.03125)] * 4
    assert [c.p_holm for c in with_random] == [pytest.approx(4 * 0.03125)] * 4
    # and against the unpruned model: 4 like these and 4 of random with p = 1
    assert {
        c.p_holm for c in found.comparisons if c.against == "none" and c.line == "fastv" and c.task != compare.AVERAGE
    } == {8 * 0.03125}


def test_mme_compares_the_sum_over_categories_and_not_the_share_of_questions(tmp_path: Path) -> None:
    base = [1.0] * 40  # 20 pairs, 10 of each category: 400 points
    lost = [0.0 if i < 8 and i % 2 == 0 else 1.0 for i in range(40)]  # one question of 4 pairs, 2 of each category
    found = study(answered(tmp_path, "none", "none", base, "mme"), answered(tmp_path, "fastv", "64", lost, "mme"))
    c = one(found, "fastv", "mme", "none")
    # such a pair is worth 50 of 200: 2 categories x 2 of 10 pairs x 150 points lost
    assert c.difference == pytest.approx(-60)
    assert (c.worse, c.better, c.n, c.images) == (4, 0, 40, 20)
    assert -130 < c.low < -60 < c.high <= 0


def test_soft_scores_count_by_their_sign(tmp_path: Path) -> None:
    base = [0.9, 0.6, 0.3, 1.0, 0.0, 1.0] * 10
    pruned = [0.6, 0.9, 0.3, 0.3, 0.0, 1.0] * 10
    found = study(answered(tmp_path, "none", "none", base), answered(tmp_path, "fastv", "64", pruned))
    c = one(found, "fastv", "pope", "none")
    assert (c.better, c.worse) == (10, 20)
    assert c.p == pytest.approx(scipy.stats.binomtest(10, 30).pvalue)


def test_random_counts_with_all_its_seeds(tmp_path: Path) -> None:
    """The mean over seeds is what is compared; p is twice the median over seeds; the seeds' spread is in the
    interval."""
    base, n = [1.0] * 80, 80
    drawn = [pattern(n, share) for share in (0.9, 0.5, 0.4)]
    method = pattern(n, 0.7)
    cells = [answered(tmp_path, "none", "none", base), answered(tmp_path, "fastv", "64", method)]
    cells += [answered(tmp_path, "random", "64", s, seed=i) for i, s in enumerate(drawn)]
    c = one(study(*cells), "fastv", "pope", "random (3 seeds)")
    assert c.difference == pytest.approx(100 * (0.7 - 0.6))
    each = sorted(scipy.stats.binomtest(0, k).pvalue for k in (16, 16, 24))
    assert c.p == pytest.approx(min(1, 2 * each[1]))
    assert (c.better, c.worse) == (pytest.approx(40 / 3), pytest.approx(16 / 3))
    assert c.low < 0 < c.high, "three seeds that disagree so much settle nothing"
    assert c.verdict == compare.OPEN
    alone = one(study(*cells[:2], answered(tmp_path, "random", "64", pattern(n, 0.6))), "fastv", "pope", "random")
    assert alone.low > 0, "one seed with their mean would have"


def test_the_reference_is_the_setting_of_random_with_most_seeds(tmp_path: Path) -> None:
    scores = pattern(20, 0.5)
    cells = [answered(tmp_path, "random", "64", scores, knobs={"boundary": 0}, seed=i) for i in range(2)]
    cells += [
        answered(tmp_path, "random", "64", scores, knobs={"boundary": 2}),
        answered(tmp_path, "fastv", "64", scores),
    ]
    found = study(*cells, answered(tmp_path, "fastv", "32", scores))
    assert found.references == {"64": "random boundary=0 (2 seeds)"}
    compared = {(c.budget, c.line) for c in found.comparisons if c.against.startswith("random")}
    assert compared == {("64", "fastv"), ("64", "random boundary=2")}, "no comparison across budgets, nor with itself"


def test_nothing_is_compared_across_models_data_or_numbers_of_questions(tmp_path: Path) -> None:
    scores = pattern(20, 0.5)
    for i, change in enumerate(
        ({"model": "other"}, {"data_fingerprint": "other"}, {"dtype": "bfloat16"}, {"processing": "p2"})
    ):
        root = tmp_path / str(i)
        cells = [
            answered(root, "fastv", "64", scores),
            *(answered(root, m, b, scores, **change) for m, b in (("none", "none"), ("random", "64"))),
        ]
        for section in blocks.sections(blocks.distinct(cells)):
            assert not [c for c in compare.study(section).comparisons if c.line == "fastv"], change
    few = answered(tmp_path, "fastv", "64", scores[:10])
    sections = blocks.sections(blocks.distinct([few, answered(tmp_path, "none", "none", scores)]))
    assert [c for s in sections for c in compare.study(s).comparisons] == []


def test_cells_that_claim_equal_data_but_hold_other_questions_are_refused(tmp_path: Path) -> None:
    scores = pattern(20, 0.5)
    cells = [answered(tmp_path, "none", "none", scores), answered(tmp_path, "fastv", "64", scores, per_image=4)]
    with pytest.raises(PrunebenchError, match="other keys or images"):
        study(*cells)


def test_edited_samples_are_refused(tmp_path: Path) -> None:
    cell = answered(tmp_path, "none", "none", pattern(20, 0.5))
    path = cell.folder / "samples.parquet"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(PrunebenchError, match="expected sha256"):
        study(cell)


def test_agreement_is_with_the_unpruned_answer_right_or_wrong(tmp_path: Path) -> None:
    base = answered(tmp_path, "none", "none", [1.0, 0.0, 1.0, 0.0], answers=["Yes", "two cats", "no", "red"])
    pruned = answered(tmp_path, "fastv", "64", [1.0, 0.0, 0.0, 1.0], answers=[" yes ", "TWO CATS", "yes", "blue"])
    found = study(base, pruned)
    assert found.agreement == {base.identity: 100, pruned.identity: 50}
    assert study(pruned).agreement == {}, "nothing to agree with"


def test_the_hard_subset_is_what_downsample_gets_wrong_at_that_budget(tmp_path: Path) -> None:
    base = answered(tmp_path, "none", "none", [1.0] * 10)
    small = answered(tmp_path, "downsample", "64", [1.0] * 4 + [0.4, 0.3, 0.0, 0.0, 0.0, 0.6])
    fastv = answered(tmp_path, "fastv", "64", [0.0] * 4 + [1.0, 1.0, 1.0, 0.5, 0.0, 0.0])
    other = answered(tmp_path, "fastv", "32", [1.0] * 10)
    found = study(base, small, fastv, other)
    assert found.hard["64", fastv.identity] == compare.Hard(5, pytest.approx(70))
    assert found.hard["64", base.identity] == compare.Hard(5, 100)
    assert found.hard["64", small.identity] == compare.Hard(5, pytest.approx(14))
    assert ("32", other.identity) not in found.hard, "no downsample at that budget"
    perfect = answered(tmp_path, "downsample", "32", [1.0] * 10)
    none_left = study(base, other, perfect).hard["32", other.identity]
    assert none_left.n == 0
    assert math.isnan(none_left.percent)


def test_the_average_has_an_interval_over_images_of_every_task(tmp_path: Path) -> None:
    tasks = ("pope", "gqa")
    base = {"pope": pattern(80, 1.0), "gqa": pattern(80, 0.8)}
    cells = [answered(tmp_path, "none", "none", base[t], t) for t in tasks]
    cells += [answered(tmp_path, "fastv", "64", [s * (i % 4 > 0) for i, s in enumerate(base[t])], t) for t in tasks]
    cells += [answered(tmp_path, "random", "64", [s * (i % 2 > 0) for i, s in enumerate(base[t])], t) for t in tasks]
    found = study(*cells)
    low, high = found.averages["64", "fastv"]
    assert 65 < low < 75 < high < 85
    assert one(found, "fastv", compare.AVERAGE, "none").difference == pytest.approx(-25)
    c = one(found, "fastv", compare.AVERAGE, "random")
    assert (c.difference, c.verdict) == (pytest.approx(25), compare.ABOVE)
    assert c.p == c.p_holm == pytest.approx(2 / 20_001), "no draw is beyond 0"
    assert c.n == 160
    one_task = study(*[c for c in cells if (c.cell.method, c.cell.task) != ("fastv", "gqa")])
    assert not [c for c in one_task.comparisons if (c.line, c.task) == ("fastv", compare.AVERAGE)]
    assert ("64", "fastv") not in one_task.averages


@pytest.mark.parametrize("images", [1, 2, stats.FEW - 1])
def test_few_images_give_no_verdict_and_no_interval(images: int, tmp_path: Path) -> None:
    """Also not at the average, where a bootstrap of so few images would find p = 0.0001."""
    asked = {"per_image": 12 if images == 2 else 20}
    n = images * asked["per_image"]
    found = study(
        answered(tmp_path, "none", "none", [1.0] * n, **asked), answered(tmp_path, "fastv", "64", [0.0] * n, **asked)
    )
    (c,) = found.comparisons
    assert (c.task, c.verdict) == ("pope", compare.TOO_FEW)
    assert math.isnan(c.low)
    assert math.isnan(c.p_holm)
    assert c.p < 0.001
    assert found.averages == {}


@pytest.mark.parametrize("lost", [0, 1, 6, 30])
@pytest.mark.parametrize("task", ["pope", "mme"])
def test_the_average_of_one_task_is_that_task(task: str, lost: int, tmp_path: Path) -> None:
    base = pattern(80, 0.9)
    worse = [s * (i >= 2 * lost) for i, s in enumerate(base)]
    found = study(
        answered(tmp_path, "none", "none", base, task),
        answered(tmp_path, "random", "64", pattern(80, 0.6), task),
        answered(tmp_path, "fastv", "64", worse, task),
    )
    for against in ("none", "random"):
        alone, average = (one(found, "fastv", t, against) for t in (task, compare.AVERAGE))
        assert (average.verdict, average.p, average.p_holm) == (alone.verdict, alone.p, alone.p_holm)
        assert (average.better, average.worse, average.images) == (alone.better, alone.worse, alone.images)
        assert math.copysign(1, average.low) == math.copysign(1, alone.low)


def test_power_comes_from_pruned_models_and_counts_images(tmp_path: Path) -> None:
    """8 questions per image that are lost together: a design effect of 8, so 8 times the questions."""
    base = [1.0] * 320
    lost = [float(i // 8 % 10 != 0) for i in range(320)]  # every tenth image
    cells = [
        answered(tmp_path, "none", "none", base, per_image=8),
        answered(tmp_path, "fastv", "64", lost, per_image=8),
    ]
    (power,) = study(*cells).power
    assert (power.n, power.images, power.discordant) == (320, 40, pytest.approx(0.1))
    assert power.effect == pytest.approx(8)
    assert power.needed == math.ceil(8 * 7846.53)
    assert power.needed_images == math.ceil(power.needed / 8)
    assert 1 < power.detectable < 100
    assert (power.tests, power.needed_in_family) == (1, power.needed)
    # further pruned lines: one far away, one near that loses other images, one on the floor beside another
    cells.append(answered(tmp_path, "random", "64", [0.0] * 160 + [1.0] * 160, per_image=8))
    (far,) = study(*cells).power
    assert (far.pairs, far.discordant) == (1, pytest.approx(0.5)), "none is near: all pairs of pruned lines"
    cells.append(answered(tmp_path, "first", "64", [float(i // 8 % 10 != 1) for i in range(320)], per_image=8))
    cells += [
        answered(tmp_path, m, "64", [float(i == at) for i in range(320)], per_image=8)
        for m, at in (("pooling", 3), ("uniform", 5))
    ]
    (near,) = study(*cells).power
    assert (near.pairs, near.discordant) == (1, pytest.approx(0.2)), "fastv and first, a fifth of the questions"
    assert near.tests == 5, "with the unpruned model"
    assert near.needed_in_family > 1.3 * near.needed
    assert near.detectable_in_family > near.detectable


def test_cognition_questions_are_in_no_number_of_a_perception_score(tmp_path: Path) -> None:
    """Every other pair is one of cognition, on which the methods differ; on perception they are equal."""
    kinds = ("existence", "code_reasoning")
    whole, lost = [1.0] * 80, [float(i // 2 % 2 == 0) for i in range(80)]
    asked = (("none", "none", whole), ("fastv", "64", lost), ("downsample", "64", lost))
    cells = [answered(tmp_path, m, b, s, "mme", kinds=kinds) for m, b, s in asked]
    found = study(*cells)
    c = one(found, "fastv", "mme", "none")
    assert (c.n, c.images, c.difference, c.better, c.worse, c.verdict) == (40, 20, 0, 0, 0, compare.SAME)
    assert found.agreement[cells[1].identity] == 100
    assert found.hard["64", cells[1].identity].n == 0
    both = study(*(answered(tmp_path, m, b, s, "mme") for m, b, s in asked))
    assert one(both, "fastv", "mme", "none").worse == 40, "the same answers on perception pairs do count"


def test_averages_are_corrected_for_how_many_they_are(tmp_path: Path) -> None:
    """A line that is just apart alone is not once forty others were looked at as well."""
    base = pattern(200, 1.0)
    just = [s * (i % 80 != 0) for i, s in enumerate(base)]  # 3 of 100 images, one of two questions
    tasks = ("pope", "gqa")
    cells = [
        answered(tmp_path, m, b, s, t) for t in tasks for m, b, s in (("none", "none", base), ("fastv", "64", just))
    ]
    alone = one(study(*cells), "fastv", compare.AVERAGE, "none")
    assert alone.verdict == compare.BELOW
    many = study(
        *cells, *(answered(tmp_path, f"m{i}", "64", just, t, knobs={"i": i}) for i in range(40) for t in tasks)
    )
    among = one(many, "fastv", compare.AVERAGE, "none")
    assert (among.low, among.high, among.p) == (alone.low, alone.high, alone.p)
    assert among.p_holm == pytest.approx(min(1, 41 * alone.p))
    assert among.verdict == compare.OPEN


def test_a_line_does_not_move_because_another_one_is_there(tmp_path: Path) -> None:
    scores = [pattern(60, s) for s in (0.5, 0.6, 0.7)]
    cells = [answered(tmp_path, "none", "none", [1.0] * 60), answered(tmp_path, "fastv", "64", pattern(60, 0.8))]
    cells += [answered(tmp_path, "random", "64", s, seed=i) for i, s in enumerate(scores)]
    few = study(*cells)
    more = study(*cells, *(answered(tmp_path, m, "64", pattern(60, 0.2)) for m in ("first", "uniform", "a-method")))
    for c in few.comparisons:
        other = one(more, c.line, c.task, c.against)
        assert (c.low, c.high, c.difference, c.p) == pytest.approx(
            (other.low, other.high, other.difference, other.p), nan_ok=True
        )


def test_methods_without_a_budget_are_not_compared_with_random(tmp_path: Path) -> None:
    """They were given their knobs, so `random` beside them has no equal size."""
    cells = [
        answered(tmp_path, m, "none", pattern(40, s))
        for m, s in (("none", 1.0), ("random", 0.5), ("fastv", 0.7), ("downsample", 0.6))
    ]
    found = study(*cells)
    assert found.references == {}
    assert {c.against for c in found.comparisons} == {"none"}
    assert {c.line for c in found.comparisons} == {"random", "fastv", "downsample"}
    assert found.hard == {}
