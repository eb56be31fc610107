"""How often the interval of a score covers the true score, by simulation. Slow: a minute."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from harness.core import stats

TRUE = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
#: correlation of the answers about one image
ALIKE = (0.0, 0.2, 0.5, 1.0)
DRAWS = 1500


def answers(rng: np.random.Generator, true: float, images: int, questions: int, alike: float) -> np.ndarray:
    """(draws, images) right answers about each image, beta-binomial with intra-image correlation `alike`."""
    shape = DRAWS, images
    if questions == 1 or alike == 0.0:
        chance = np.full(shape, true)
    elif alike == 1.0:
        chance = (rng.random(shape) < true).astype(float)
    else:
        spread = (1.0 - alike) / alike
        chance = rng.beta(true * spread, (1.0 - true) * spread, shape)
    return rng.binomial(questions, chance)


def covered(right: np.ndarray, questions: int, true: float) -> float:
    counts = np.full((1, right.shape[1]), float(questions))
    found = [stats.interval("m", stats.Clustered(row[None].astype(float), counts, 1.0)) for row in right]
    return float(np.mean([one.low - 1e-9 <= true <= one.high + 1e-9 for one in found]))


@pytest.mark.slow
@pytest.mark.parametrize("images", [12, 40, 400])
@pytest.mark.parametrize("questions", [1, 6, 18])
def test_a_score_s_interval_covers_the_true_score(images: int, questions: int) -> None:
    rng = np.random.default_rng(images + questions)
    likeness = ALIKE if questions > 1 else (0.0,)
    found = {(t, a): covered(answers(rng, t, images, questions, a), questions, t) for t in TRUE for a in likeness}
    lowest = min(found, key=found.__getitem__)
    error = 3.0 * (0.93 * 0.07 / DRAWS) ** 0.5
    assert found[lowest] >= 0.93 - error, (lowest, found[lowest])
    assert 0.93 <= np.mean(list(found.values())) <= 0.975, found


@pytest.mark.slow
@pytest.mark.parametrize("per_category", [2, 6, 20])
def test_mme_s_sum_has_an_interval_that_covers_it(per_category: int) -> None:
    """14 categories of pairs, each with a true value of its own."""
    rng = np.random.default_rng(per_category)
    found = []
    for centre in (0.5, 0.7, 0.9):
        both = np.clip(centre + np.linspace(-0.1, 0.1, 14), 0.0, 0.99)
        one = (1.0 - both) * 0.5  # exactly one of two right: 50 points
        true = float(np.sum(200.0 * both + 50.0 * one))
        images = 14 * per_category
        counts = np.kron(np.eye(14), np.ones(per_category))
        hits = []
        for _ in range(DRAWS):
            u = rng.random((14, per_category))
            points = np.where(u < both[:, None], 200.0, np.where(u < (both + one)[:, None], 50.0, 0.0))
            values = np.zeros((14, images))
            values[counts > 0] = points.ravel()
            spread = stats.interval("mme_total_score", stats.Clustered(values, counts, 200.0))
            hits.append(spread.low <= true <= spread.high)
        found.append(np.mean(hits))
    assert min(found) >= 0.93, found


@pytest.mark.parametrize(
    ("images", "questions", "low"), [(2, 9, 0.316), (12, 1, 0.735), (12, 18, 0.735), (40, 6, 0.902), (400, 1, 0.989)]
)
def test_the_width_at_a_perfect_score_is_that_of_the_images(images: int, questions: int, low: float) -> None:
    counts = np.full((1, images), float(questions))
    perfect = stats.interval("m", stats.Clustered(counts, counts, 1.0))
    nothing = stats.interval("m", stats.Clustered(0 * counts, counts, 1.0))
    assert (perfect.low, perfect.high) == (pytest.approx(low, abs=1e-3), 1.0)
    assert (nothing.low, nothing.high) == (0.0, pytest.approx(1.0 - low, abs=1e-3))


def test_one_wrong_answer_moves_the_interval_little() -> None:
    """No second rule begins at a perfect score."""
    counts = np.full((1, 12), 9.0)
    ends = []
    for wrong in range(4):
        values = counts.copy()
        values[0, :wrong] -= 1.0
        ends.append(stats.interval("m", stats.Clustered(values, counts, 1.0)))
    assert all(abs(b.low - a.low) < 0.12 for a, b in pairwise(ends)), ends
    assert all(one.high > 0.98 for one in ends)
