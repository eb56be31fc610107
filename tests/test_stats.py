"""Intervals: the additive form equals a plain computation, and whole images are what is resampled."""

from __future__ import annotations

import numpy as np
import pytest

from harness import stats
from harness.errors import PrunebenchError


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
        "mme_perception_score", [1.0] * 20, [k for k in kinds for _ in "ab"], [k for k in kinds for _ in "ab"], ["q"] * 20
    )
    assert units.resamples(50).tolist() == [2000.0] * 50


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
