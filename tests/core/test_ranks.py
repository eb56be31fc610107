"""Kendall's tau-b, its interval, and who changes places: by hand, against scipy, and against simulated truths."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from harness.core import ranks
from harness.core.errors import PrunebenchError
from harness.core.ranks import Scores


def points(*values: float) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


def noisy(scores: NDArray[np.float64], sd: float, seed: int, n: int = 2000) -> Scores:
    """Scores whose draws lie around them."""
    return Scores(scores, scores + sd * np.random.default_rng(seed).normal(size=(n, len(scores))))


def test_tau_has_the_number_of_a_hand_count() -> None:
    # 1 > 2 > 3 > 4 against 1 > 3 > 2 > 4: of six pairs one is opposite
    assert ranks.tau_b(points(9, 8, 7, 6), points(9, 7, 8, 6)) == pytest.approx((5 - 1) / 6)
    assert ranks.tau_b(points(1, 2, 3), points(1, 2, 3)) == 1
    assert ranks.tau_b(points(1, 2, 3), points(3, 2, 1)) == -1


def test_ties_count_for_neither_order() -> None:
    # a tie of the first two on one side: of three pairs two agree, and two and three of them are told apart
    assert ranks.tau_b(points(5, 5, 1), points(3, 2, 1)) == pytest.approx(2 / math.sqrt(2 * 3))
    # sums in another order are one score
    assert ranks.tau_b(points(0.1 + 0.2, 0.3, 0), points(3, 2, 1)) == ranks.tau_b(points(0.3, 0.3, 0), points(3, 2, 1))
    assert math.isnan(ranks.tau_b(points(5, 5, 5), points(3, 2, 1))), "no order on one side"


@pytest.mark.parametrize(("first", "second"), [(points(1), points(1)), (points(1, 2), points(1, 2, 3))])
def test_rankings_of_other_methods_are_refused(first: NDArray[np.float64], second: NDArray[np.float64]) -> None:
    with pytest.raises(PrunebenchError, match=f"found {len(first)} and {len(second)}"):
        ranks.tau_b(first, second)


def test_all_draws_at_once_have_scipys_numbers_with_and_without_ties() -> None:
    rng = np.random.default_rng(0)
    for levels in (3, 1000):
        first, second = rng.integers(0, levels, size=(2, 700, 7)).astype(float)  # more draws than are done at once
        found = ranks.resampled_taus(first, second)
        expected = [scipy.stats.kendalltau(a, b).statistic for a, b in zip(first, second, strict=True)]
        assert found == pytest.approx(np.nan_to_num(expected, nan=0.0), abs=1e-12)
    assert ranks.resampled_taus(np.ones((2, 4)), rng.normal(size=(2, 4))).tolist() == [0, 0]


def test_equal_rankings_have_tau_1_and_an_interval_up_to_1() -> None:
    scores = points(*range(8))
    same = noisy(scores, 1.5, 1)
    together = ranks.study(same, same)
    assert (together.tau, together.low, together.high) == pytest.approx((1, 1, 1))
    apart = ranks.study(same, noisy(scores, 1.5, 2))
    assert (apart.tau, apart.high) == pytest.approx((1, 1))
    assert 0 < apart.low < 0.8
    assert np.quantile(apart.resampled, 0.975) < 1, "the percentile interval would leave out the only sensible truth"
    assert not any(swap.steady or swap.beyond_noise for swap in apart.swaps)


def test_rankings_without_relation_have_an_interval_around_0() -> None:
    rng = np.random.default_rng(5)
    found = [
        ranks.study(noisy(rng.normal(size=20), 0.3, 2 * i), noisy(rng.normal(size=20), 0.3, 2 * i + 1))
        for i in range(12)
    ]
    assert sum(one.low < 0 < one.high for one in found) >= 6, "another 20 methods would have another tau"
    _, low, high = ranks.mean(found)
    assert low < 0 < high
    related = ranks.study(noisy(points(*range(20)), 0.3, 0), noisy(points(*range(20)), 0.3, 1))
    assert related.low > 0, "an interval may leave 0 out"


def test_the_interval_contains_the_point_and_mirrors_the_draws() -> None:
    draws = np.linspace(0.2, 0.6, 2001)
    assert ranks.interval(0.7, draws) == pytest.approx((0.21, 1.0))
    assert ranks.interval(0.5, draws) == pytest.approx((0.21, 0.79))
    assert ranks.interval(0.1, draws) == pytest.approx((-0.39, 0.59))
    assert ranks.interval(-0.9, draws)[0] == -1, "no tau is below -1"
    assert all(math.isnan(end) for end in ranks.interval(math.nan, draws))


def _simulated(images: int, seed: int) -> tuple[float, Scores, Scores]:
    """A true tau of 16 methods, and the scores that two models got on images of unlike difficulty."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=16)
    true = first, 0.9 * first + math.sqrt(1 - 0.9**2) * rng.normal(size=16)
    sides = []
    for skill in true:
        chance = 1 / (
            1 + np.exp(-(0.5 + 0.6 * skill[:, None] + rng.normal(size=images) + rng.normal(size=(16, images)) / 2))
        )
        right = rng.binomial(3, chance) / 3
        weights = rng.multinomial(images, np.full(images, 1 / images), size=400) / images
        sides.append(Scores(right.mean(axis=1), weights @ right.T))
    return ranks.tau_b(*true), *sides


def test_the_interval_covers_a_true_tau_that_percentiles_miss() -> None:
    covered = percentile = 0
    for seed in range(80):
        true, first, second = _simulated(60, seed)
        found = ranks.study(first, second)
        covered += found.low <= true <= found.high
        low, high = np.quantile(found.resampled, [0.025, 0.975])
        percentile += bool(low <= true <= high)
    assert covered >= 0.85 * 80
    assert percentile <= 0.6 * 80


def test_a_model_agrees_with_itself_as_far_as_noise_lets_it() -> None:
    scores = points(*range(10))
    quiet, loud = noisy(scores, 0.01, 1), noisy(scores, 5.0, 2)
    assert ranks.study(quiet, loud).itself == (1, pytest.approx(0.3, abs=0.15))
    assert ranks.study(loud, quiet).itself == (pytest.approx(0.3, abs=0.15), 1)


def test_places_by_hand() -> None:
    # the first method falls behind the next two beyond noise; the last two change places within it
    first, second = points(9, 7, 5, 1.0, 0.9), points(4, 7, 5, 0.9, 1.0)
    found = ranks.study(noisy(first, 0.1, 1), noisy(second, 0.1, 2))
    assert found.ranks[0].tolist() == [1, 2, 3, 4, 5]
    assert found.ranks[1].tolist() == [3, 1, 2, 5, 4]
    assert found.changes.tolist() == [-2, 1, 1, -1, 1]
    assert found.stays[:3].tolist() == [1, 1, 1]
    # each order stays in P(z > -0.1 / 0.14) of the draws
    assert found.stays[3] == found.stays[4] == pytest.approx(0.76**2, abs=0.05)
    assert [found.beyond_noise(i) for i in range(5)] == [True, True, True, False, False]
    assert [(s.ahead, s.behind, s.steady, s.beyond_noise) for s in found.swaps] == [
        (0, 1, True, True),
        (0, 2, True, True),
        (3, 4, False, False),
    ]
    assert found.swaps[0].p_holm == pytest.approx(10 * 2 / 2001), "the smallest p of 2,000 draws, ten pairs of methods"
    assert found.swaps[2].share == pytest.approx(0.76**2, abs=0.05)


def test_both_orders_must_be_sure() -> None:
    # sure on the first side alone
    found = ranks.study(noisy(points(9, 1, 0), 0.1, 1), noisy(points(1.0, 1.1, 0), 1.0, 2))
    (swap,) = found.swaps
    assert (swap.ahead, swap.behind) == (0, 1)
    assert swap.share == pytest.approx(0.53, abs=0.05)
    assert swap.p > 0.5
    assert not swap.steady


def test_tied_methods_share_a_rank_and_do_not_move() -> None:
    found = ranks.study(noisy(points(5, 5, 1), 0, 1), noisy(points(5, 5, 1), 0, 2))
    assert found.ranks[0].tolist() == [1.5, 1.5, 3]
    assert np.isnan(found.stays).all()
    assert not any(found.beyond_noise(i) for i in range(3))
    assert found.swaps == []


def test_without_draws_there_are_ranks_and_no_verdict() -> None:
    found = ranks.study(Scores(points(3, 2, 1), None), noisy(points(1, 2, 3), 0.1, 1))
    assert found.tau == -1
    assert found.changes.tolist() == [-2, 0, 2]
    assert all(math.isnan(x) for x in (found.low, found.high, *found.itself, *found.stays, *found.p_holm))
    assert [(s.ahead, s.behind) for s in found.swaps] == [(0, 1), (0, 2), (1, 2)]
    assert not any(s.steady or s.beyond_noise for s in found.swaps)


def test_a_mean_is_over_the_taus_that_there_are() -> None:
    up, down = noisy(points(3, 2, 1), 0.01, 1), noisy(points(1, 2, 3), 0.01, 2)
    one, other = ranks.study(up, up), ranks.study(up, down)
    tied = ranks.study(up, noisy(points(1, 1, 1), 0, 1))
    assert ranks.mean([one, other, tied])[0] == 0
    tau, low, high = ranks.mean([one, ranks.study(Scores(up.points, None), down)])
    assert tau == 0
    assert math.isnan(low)
    assert math.isnan(high)
    assert all(math.isnan(x) for x in ranks.mean([tied]))
