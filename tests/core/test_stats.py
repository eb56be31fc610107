"""Intervals: the additive form equals a plain computation, and whole images are what is resampled."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from harness.core import stats
from harness.core.errors import PrunebenchError


def mme_rows(pairs_per_category: int = 12, seed: int = 0) -> dict[str, list]:
    """Shuffled rows of four categories, two pairs per image, with an image that two categories share."""
    rng = np.random.default_rng(seed)
    rows = []
    for category in ("OCR", "count", "code_reasoning", "text_translation"):
        for pair in range(pairs_per_category):
            image = "shared" if pair == 0 else f"{category}-{pair // 2}"
            rows += [(float(rng.random() < 0.6), image, category, f"q{pair}") for _ in range(2)]
    order = rng.permutation(len(rows))
    score, image, category, question = zip(*(rows[i] for i in order), strict=True)
    return {"score": list(score), "image": list(image), "category": list(category), "question_id": list(question)}


def plain_mme(rows: dict[str, list], categories: set[str]) -> float:
    """The metric spelt out with dictionaries, as the benchmark defines it."""
    by_category: dict[str, dict[str, list[float]]] = {}
    for score, category, question in zip(rows["score"], rows["category"], rows["question_id"], strict=True):
        if category in categories:
            by_category.setdefault(category, {}).setdefault(question, []).append(score)
    total = 0.0
    for pairs in by_category.values():
        worth = [100 * sum(pair) / 2 + 100 * (sum(pair) == 2) for pair in pairs.values()]
        total += sum(worth) / len(worth)
    return total


def test_mean_point_is_the_mean():
    score = [0.0, 1.0, 0.3, 1.0, 0.6]
    units = stats.cluster("exact_match", score, ["a", "b", "a", "c", "b"], [None] * 5, list("12345"))
    assert units.point == pytest.approx(sum(score) / 5)
    assert (units.n_clusters, units.maximum) == (3, 1.0)


@pytest.mark.parametrize(
    ("metric", "categories"),
    [
        ("mme_perception_score", {"OCR", "count"}),
        ("mme_cognition_score", {"code_reasoning", "text_translation"}),
        ("mme_total_score", {"OCR", "count", "code_reasoning", "text_translation"}),
    ],
)
def test_mme_point_equals_the_plain_computation(metric, categories):
    rows = mme_rows()
    units = stats.cluster(metric, **rows)
    assert units.point == pytest.approx(plain_mme(rows, categories))
    assert units.maximum == 200 * len(categories)


def test_mme_of_a_perfect_model_is_its_maximum():
    rows = mme_rows() | {"score": [1.0] * 96}
    units = stats.cluster("mme_perception_score", **rows)
    assert units.point == units.maximum == 400


def test_resamples_equal_a_plain_bootstrap_over_images():
    """One draw of weights, applied row by row, gives the vectorised number."""
    rows = mme_rows()
    units = stats.cluster("mme_total_score", **rows)
    images = sorted(set(rows["image"]))
    weights = np.random.default_rng(3).multinomial(len(images), np.full(len(images), 1 / len(images)), size=5)
    for draw, value in zip(weights, units.resamples(5, seed=3), strict=True):
        drawn: dict[str, list] = {name: [] for name in rows}
        for image, times in zip(images, draw, strict=True):
            for copy in range(times):
                for i in (i for i, name in enumerate(rows["image"]) if name == image):
                    for name in rows:
                        drawn[name].append(f"{rows[name][i]}#{copy}" if name == "question_id" else rows[name][i])
        assert value == pytest.approx(plain_mme(drawn, set(rows["category"])))


@pytest.mark.parametrize("n", [1, 250, 601])
def test_as_many_resamples_as_asked(n):
    units = stats.cluster("mme_total_score", **mme_rows())
    assert units.resamples(n).shape == (n,)


def test_questions_on_one_image_widen_the_interval():
    """Answers that agree within an image carry one image's worth of information, so naive intervals are too narrow."""
    rng = np.random.default_rng(0)
    score = np.repeat((rng.random(60) < 0.7).astype(float), 18)
    args = ([None] * len(score), [str(i) for i in range(len(score))])
    by_image = stats.interval("m", stats.cluster("m", score, [f"i{i // 18}" for i in range(len(score))], *args))
    by_row = stats.interval("m", stats.cluster("m", score, [f"i{i}" for i in range(len(score))], *args))
    assert by_image is not None
    assert by_row is not None
    assert (by_image.n_clusters, by_row.n_clusters) == (60, 1080)
    ratio = (by_image.high - by_image.low) / (by_row.high - by_row.low)
    assert 0.8 * 18**0.5 < ratio < 1.2 * 18**0.5  # design effect sqrt(18)
    # and it is about as wide as the normal approximation over 60 independent images says
    assert by_image.high - by_image.low == pytest.approx(2 * 1.96 * np.std(score) / 60**0.5, rel=0.1)


def test_interval_does_not_depend_on_row_order_and_is_repeatable():
    rows = mme_rows(seed=1)
    backwards = {name: column[::-1] for name, column in rows.items()}
    first, second = (stats.interval("mme_total", stats.cluster("mme_total", **r)) for r in (rows, backwards))
    assert first is not None
    assert first == second
    assert first.low < stats.cluster("mme_total", **rows).point < first.high


def test_a_category_that_a_draw_misses_does_not_cost_its_points():
    """Ten categories with one image each, all perfect: every resample must be the full score."""
    kinds = sorted(stats.MME_PERCEPTION)
    units = stats.cluster(
        "mme_perception_score",
        [1.0] * 20,
        [k for k in kinds for _ in "ab"],
        [k for k in kinds for _ in "ab"],
        ["q"] * 20,
    )
    assert units.resamples(50).tolist() == [2000.0] * 50


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_images_that_are_all_alike_keep_an_interval(score):
    """A bootstrap would say 100 to 100. Two questions on each of 12 images are worth 12."""
    units = stats.cluster(
        "m", [score] * 24, [f"i{i // 2}" for i in range(24)], [None] * 24, [str(i) for i in range(24)]
    )
    found = stats.interval("m", units)
    assert (units.resamples() == score).all()
    assert units.effective == pytest.approx(12)
    assert found.high - found.low == pytest.approx(1 - 12 / (12 + 2.08**2), abs=1e-4)
    rows = mme_rows()
    perfect = stats.cluster(
        "mme_total_score", [score] * len(rows["score"]), rows["image"], rows["category"], rows["question_id"]
    )
    sums = stats.interval("mme_total_score", perfect)
    assert sums.low <= perfect.point <= sums.high
    assert 0 < sums.high - sums.low < 0.5 * perfect.maximum


def test_the_design_effect_is_that_of_the_images():
    """Between independent questions and questions that are all alike within an image; not estimated for few images."""
    rng = np.random.default_rng(0)
    own = (rng.random(1080) < 0.7).astype(float)
    args = [f"i{i // 18}" for i in range(1080)], [None] * 1080, [str(i) for i in range(1080)]
    assert stats.cluster("m", list(own), *args).design_effect < 1.5
    alike = np.repeat((rng.random(60) < 0.7).astype(float), 18)
    assert stats.cluster("m", list(alike), *args).design_effect == pytest.approx(18, rel=0.03)
    few = 18 * (stats.FEW - 1)
    assert stats.cluster("m", list(own[:few]), *(a[:few] for a in args)).design_effect == pytest.approx(18)


def test_bootstrap_p_is_the_share_on_the_rarer_side_twice():
    draws = np.arange(-3.0, 96.0)  # 99 draws, of which 4 are not above 0
    assert stats.bootstrap_p(draws) == pytest.approx(2 * 5 / 100)
    assert stats.bootstrap_p(-draws) == stats.bootstrap_p(draws)
    assert stats.bootstrap_p(draws + 10) == pytest.approx(2 / 100), "never 0"
    assert stats.bootstrap_p(np.full(99, 1e-16)) == 1, "dust is no difference"


def test_a_metric_is_of_its_own_questions():
    kinds = ["existence", "commonsense_reasoning", "OCR", None]
    assert stats.in_headline("mme_perception_score", kinds) == [True, False, True, False]
    assert stats.in_headline("mme_cognition_score", kinds) == [False, True, False, True]
    assert all(stats.in_headline("mme_total_score", kinds) + stats.in_headline("pope_accuracy", kinds))


def test_one_image_has_no_interval():
    assert stats.interval("m", stats.cluster("m", [0.0, 1.0], ["a", "a"], [None, None], ["1", "2"])) is None


@pytest.mark.parametrize(
    ("rows", "found"), [([0, 0, 1], "1 question(s) about 1 image(s)"), ([0, 1], "2 question(s) about 2 image(s)")]
)
def test_an_mme_pair_must_be_two_questions_about_one_image(rows, found):
    ids = ["p", "p", "q"] if len(rows) == 3 else ["p", "p"]
    with pytest.raises(PrunebenchError, match="take whole pairs") as error:
        stats.cluster("mme_perception_score", [1.0] * len(rows), [f"i{r}" for r in rows], ["OCR"] * len(rows), ids)
    assert found in str(error.value)


def test_no_rows_and_no_fitting_category_are_errors():
    with pytest.raises(PrunebenchError, match="at least one"):
        stats.cluster("m", [], [], [], [])
    with pytest.raises(PrunebenchError, match="found only OCR"):
        stats.cluster("mme_cognition_score", [1.0, 1.0], ["a", "a"], ["OCR", "OCR"], ["q", "q"])


def test_resampling_together_pairs_the_draws_and_equals_resampling_alone():
    first, second = (stats.cluster("mme_total_score", **mme_rows(seed=s)) for s in (0, 0))
    other = stats.cluster("m", **(mme_rows() | {"score": [1.0] * 96}))
    mean = stats.cluster("m", **mme_rows())
    soft = stats.cluster("m", **(mme_rows() | {"score": [0.1 * (i % 8) for i in range(96)]}))
    draws = stats.draws(first.n_clusters, 300, 5)
    assert (draws.sum(axis=1) == first.n_clusters).all()
    cells = [first, second, mean, other, soft]
    drawn = stats.resample_together(cells, draws)
    assert (drawn[0] == drawn[1]).all(), "equal cells on equal draws differ by nothing"
    for row, units in zip(drawn, cells, strict=True):
        assert (row == units.resamples(300, seed=5)).all(), "to the last bit, whatever cells are beside it"
    assert (stats.resample_together([soft, mean, soft, other], draws)[[0, 2, 1]] == drawn[[4, 4, 2]]).all()
    with pytest.raises(PrunebenchError, match="same images"):
        stats.resample_together([mean, stats.cluster("m", [1.0], ["a"], [None], ["1"])], draws)


def test_several_seeds_widen_an_interval_by_what_the_seeds_do():
    """Images that all score alike: only the draw of seeds can move the mean, by the variance of a mean over 4 seeds."""
    flat = np.repeat(np.array([[0.2], [0.4], [0.6], [0.8]]), 20_000, axis=1)
    drawn = stats.over_seeds(flat, stream=1)
    assert drawn.mean() == pytest.approx(0.5, abs=0.005)
    assert drawn.std() == pytest.approx(np.std([0.2, 0.4, 0.6, 0.8]) / 2, rel=0.02)
    assert (stats.over_seeds(flat, 1) == drawn).all()
    assert not (stats.over_seeds(flat, 2) == drawn).all()
    assert stats.over_seeds(flat[:1], 1).tolist() == flat[0].tolist()


def test_mcnemar_equals_hand_computed_values():
    assert stats.mcnemar(0, 0) == 1
    assert stats.mcnemar(5, 0) == pytest.approx(2 / 32)
    assert stats.mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert stats.mcnemar(2, 8) == stats.mcnemar(8, 2)
    assert stats.mcnemar(3, 3) == 1, "twice the tail would be above 1"


def test_mcnemar_equals_scipy():
    for better in (0, 1, 4, 7, 40, 600):
        for worse in (0, 2, 5, 30, 512):
            if better + worse:
                expected = scipy.stats.binomtest(better, better + worse, 0.5).pvalue
                assert stats.mcnemar(better, worse) == pytest.approx(expected, rel=1e-9), (better, worse)


def test_holm_equals_hand_computed_values():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.5, 0.9]) == [1.0, 1.0]
    assert stats.holm([0.04]) == [0.04]
    assert stats.holm([]) == []


def test_p_values_of_several_seeds_are_combined_safely():
    assert stats.combined_p([0.3]) == 0.3
    assert stats.combined_p([0.01, 0.5, 0.02]) == 0.04
    assert stats.combined_p([0.01, 0.2]) == 0.4, "of two, the larger"
    assert stats.combined_p([0.7, 0.8, 0.9]) == 1.0
    rng = np.random.default_rng(0)
    shared = rng.random((4000, 1))
    for p in (rng.random((4000, 5)), np.repeat(shared, 5, axis=1), np.concatenate([shared, 1 - shared] * 2, axis=1)):
        wrong = np.mean([stats.combined_p(list(row)) < 0.05 for row in p])
        assert wrong < 0.05 + 3 * (0.05 * 0.95 / 4000) ** 0.5, "true nulls, independent, equal or opposed"


def test_design_effect_counts_images_where_they_answer_as_one():
    image = [f"i{i // 18}" for i in range(1080)]
    rng = np.random.default_rng(0)
    whole = np.repeat(rng.choice([-1.0, 0.0, 1.0], 60), 18)
    assert stats.design_effect(list(whole), image) == pytest.approx(18)
    assert stats.design_effect(list(rng.permutation(whole)), image) == pytest.approx(1, abs=0.5)
    assert stats.design_effect([1.0, -1.0] * 540, image) == pytest.approx(0), "an estimate; planning takes 1 at least"
    assert math.isnan(stats.design_effect([0.0] * 1080, image))


def test_questions_needed_equals_the_formula():
    # (1.959964 sqrt(0.1) + 0.841621 sqrt(0.1 - 0.0001))^2 / 0.0001
    assert stats.questions_needed(0.01, 0.1) == 7847
    assert stats.questions_needed(0.01, 0.1, effect=3) == math.ceil(3 * 7846.53)
    assert stats.questions_needed(0.1, 0.3) == 234
    assert stats.questions_needed(0.01, 0.001) == stats.questions_needed(0.01, 0.01), (
        "a difference needs that much discordance"
    )


def test_questions_needed_have_the_power_they_promise():
    rng = np.random.default_rng(0)
    n = stats.questions_needed(0.1, 0.3)
    for size, least, most in ((n, 0.74, 0.84), (n // 2, 0.35, 0.6)):
        counts = rng.multinomial(size, [0.2, 0.1, 0.7], size=3000)
        power = np.mean([stats.mcnemar(b, c) < 0.05 for b, c, _ in counts])
        assert least < power < most, size  # exact tests fall a little short of the formula


def test_what_a_number_of_questions_can_find_is_the_same_formula_turned_round():
    for n in (200, 1000, 9000):
        smallest = stats.detectable(n, 0.2, 1.5)
        assert stats.questions_needed(smallest, 0.2, 1.5) <= n < stats.questions_needed(0.99 * smallest, 0.2, 1.5)
    assert math.isnan(stats.detectable(3, 0.2, 5.0))


def test_pareto_front():
    cost, value = [4.0, 1.0, 2.0, 3.0, 2.0], [90.0, 50.0, 70.0, 60.0, 65.0]
    assert stats.pareto(cost, value) == [1, 2, 0]
    assert stats.pareto([1.0, 1.0, 2.0], [5.0, 5.0, 5.0]) == [0, 1], "equal points share it; the same for more is off"
    assert stats.pareto([1.0, 1.0], [5.0, 6.0]) == [1]
    assert stats.pareto([math.nan, 2.0, 1.0], [99.0, math.nan, 1.0]) == [2]
    assert stats.pareto([], []) == []


@pytest.mark.slow
def test_the_interval_by_image_covers_and_the_naive_one_does_not():
    """9 questions on each of 60 images whose difficulty differs: the true mean is known, so coverage can be counted."""
    rng = np.random.default_rng(0)
    hits = {"image": 0, "row": 0}
    for _ in range(400):
        easy = rng.beta(0.7, 0.3, size=60)  # mean 0.7
        score = (rng.random((60, 9)) < easy[:, None]).astype(float).ravel()
        ids, none = [str(i) for i in range(540)], [None] * 540
        for name, owner in (("image", [f"i{i // 9}" for i in range(540)]), ("row", ids)):
            found = stats.interval("m", stats.cluster("m", list(score), owner, none, ids))
            hits[name] += found is not None and found.low <= 0.7 <= found.high
    assert 0.91 < hits["image"] / 400 < 0.98
    assert hits["row"] / 400 < 0.75
