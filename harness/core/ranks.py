"""Do two rankings of the same methods agree? Kendall's tau-b, its interval over resamples, and who changes places.

Scores come as points and as resamples: `(methods,)` and `(n, methods)` float, higher is better. Row k of both sides is
one draw. Scores that differ by less than `stats.TINY` are tied. Nothing here knows of models or images.

A few images rank methods with noise, and noise looks like disagreement. So tau is biased towards 0, and its resamples
once more. Two things make that visible: the interval reaches as far above the point as below, and `itself` says how
well one side agrees with itself on other draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.core import stats
from harness.core.errors import PrunebenchError

ALPHA = 0.05
STEADY = 0.975
"""Share of the draws from which on an order counts as steady, without a correction for many pairs."""
_DIGITS = 9
"""Scores are rounded to as many, so that sums in another order are tied."""
_ROWS = 500  # draws at once: 500 x 4,950 pairs of 100 methods are 20 MB


class Scores(NamedTuple):
    """The scores of one side: (methods,) points and (n, methods) resamples; None where there are no resamples."""

    points: NDArray[np.float64]
    resampled: NDArray[np.float64] | None


class Swap(NamedTuple):
    """Two methods whose order is another one on each side."""

    ahead: int
    """Which method is ahead on the first side, and behind on the second."""
    behind: int
    share: float
    """Of the draws, 0..1, in which the first side has this order and the second side the opposite one."""
    p: float
    """The larger bootstrap p of the two orders: both must hold."""
    p_holm: float
    """Corrected over all pairs of methods."""

    @property
    def steady(self) -> bool:
        return self.share >= STEADY

    @property
    def beyond_noise(self) -> bool:
        return self.p_holm < ALPHA


@dataclass(frozen=True)
class Agreement:
    """Two rankings of the same methods. Without resamples, every number but tau and the ranks is NaN."""

    tau: float
    """Kendall's tau-b; NaN where all methods are tied on one side."""
    low: float
    high: float
    itself: tuple[float, float]
    """Mean tau-b of each side with itself on another draw."""
    ranks: tuple[NDArray[np.float64], NDArray[np.float64]]
    """(methods,) of each side, 1 for the best; tied methods share their mean rank."""
    stays: NDArray[np.float64]
    """(methods,) share of the draws, 0..1, in which a method's rank changes in the same direction; NaN for none."""
    p_holm: NDArray[np.float64]
    """(methods,) of "the rank does not change": bootstrap p, corrected over all methods."""
    swaps: Sequence[Swap]
    """The pairs of methods in opposite order, by p, then by order of the methods."""
    resampled: NDArray[np.float64] | None = field(repr=False)
    """(n,) tau-b of each draw."""

    @property
    def changes(self) -> NDArray[np.float64]:
        """(methods,) places that a method gains from the first side to the second; negative for a loss."""
        return np.asarray(self.ranks[0] - self.ranks[1])

    def beyond_noise(self, method: int) -> bool:
        """Whether the change of a method's rank is more than noise."""
        return bool(self.p_holm[method] < ALPHA and self.changes[method])


def tau_b(first: Sequence[float] | NDArray[np.float64], second: Sequence[float] | NDArray[np.float64]) -> float:
    """Kendall's tau-b of two rankings of the same methods, in -1..1; NaN where one side ties all of them.

    Kendall, "The Treatment of Ties in Ranking Problems", Biometrika 33 (1945). Raises PrunebenchError for fewer than
    two methods, and for sides of unequal length.
    """
    from scipy.stats import kendalltau

    if len(first) != len(second) or len(first) < 2:
        raise PrunebenchError(
            f"tau: expected the scores of the same two methods or more on both sides, found {len(first)} and"
            f" {len(second)}"
        )
    # the exact p of many methods is slow, and is not read
    found = kendalltau(_rounded(first), _rounded(second), variant="b", method="asymptotic")
    return float(found.statistic)


def resampled_taus(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) tau-b of each row of two (n, methods) arrays; 0 where one side ties all methods, for then there is no
    order to agree on."""
    return _taus(_signs(first), _signs(second))


def interval(point: float, resampled: NDArray[np.float64], level: float = stats.LEVEL) -> tuple[float, float]:
    """The ends of the interval of a tau: the percentile interval and its mirror image at the point, together, within
    -1..1. NaN for a point that is NaN.

    Resampled taus are closer to 0 than the point by about as much as the point is closer to 0 than the truth. So the
    percentile interval alone leaves out a true tau near 1. tests/core/test_ranks.py simulates the coverage.
    """
    if math.isnan(point):
        return math.nan, math.nan
    low, high = stats.quantiles(resampled, level)
    return max(-1.0, min(low, 2.0 * point - high)), min(1.0, max(high, 2.0 * point - low))


def study(first: Scores, second: Scores) -> Agreement:
    """How two rankings of the same methods agree. Raises as `tau_b`."""
    tau = tau_b(first.points, second.points)
    ranks = _ranks(first.points), _ranks(second.points)
    methods, nan = len(first.points), math.nan
    nothing = np.full(methods, nan)
    if first.resampled is None or second.resampled is None:
        points = _signs(first.points[None])[0], _signs(second.points[None])[0]
        swaps = [Swap(*_ordered(i, j, points[0][at]), nan, nan, nan) for at, i, j in _opposite(*points, methods)]
        return Agreement(tau, nan, nan, (nan, nan), ranks, nothing, nothing, swaps, None)
    signs = _signs(first.resampled), _signs(second.resampled)
    taus = _taus(*signs)
    low, high = interval(tau, taus)
    one, other = (float(_taus(side, np.roll(side, 1, axis=0)).mean()) for side in signs)
    stays, p = _moves(ranks, first.resampled, second.resampled)
    p_holm = np.array(stats.holm(p))
    return Agreement(tau, low, high, (one, other), ranks, stays, p_holm, _swaps(first, second, signs), taus)


def mean(found: Sequence[Agreement]) -> tuple[float, float, float]:
    """The mean tau of several agreements on the same draws, and the ends of its interval.

    Those without a tau do not count; NaN where none has one. Without resamples of one that counts there is no interval.
    """
    known = [one for one in found if not math.isnan(one.tau)]
    if not known:
        return math.nan, math.nan, math.nan
    point = math.fsum(one.tau for one in known) / len(known)
    drawn = [one.resampled for one in known if one.resampled is not None]
    if len(drawn) < len(known):
        return point, math.nan, math.nan
    return point, *interval(point, np.mean(drawn, axis=0))


def _rounded(scores: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.round(np.asarray(scores, dtype=np.float64), _DIGITS), dtype=np.float64)


def _ranks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Along the last axis: 1 for the highest score, mean ranks for ties."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(-_rounded(scores), method="average", axis=-1), dtype=np.float64)


def _pairs(methods: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    left, right = np.triu_indices(methods, 1)
    return left, right


def _signs(scores: NDArray[np.float64]) -> NDArray[np.int8]:
    """(n, pairs) 1 where the first method of a pair is ahead, -1 where it is behind, 0 for a tie."""
    left, right = _pairs(scores.shape[1])
    out = np.empty((len(scores), len(left)), dtype=np.int8)
    for start in range(0, len(scores), _ROWS):
        some = _rounded(scores[start : start + _ROWS])
        out[start : start + _ROWS] = np.sign(some[:, left] - some[:, right])
    return out


def _taus(first: NDArray[np.int8], second: NDArray[np.int8]) -> NDArray[np.float64]:
    agree = (first * second).sum(axis=1, dtype=np.int64)
    told = np.count_nonzero(first, axis=1) * np.count_nonzero(second, axis=1)
    return np.asarray(agree / np.sqrt(np.maximum(told, 1)), dtype=np.float64)


def _moves(
    ranks: tuple[NDArray[np.float64], NDArray[np.float64]],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
) -> tuple[NDArray[np.float64], list[float]]:
    """Of each method: the share of draws with a change in the same direction, NaN for none, and its bootstrap p."""
    changes = _ranks(first) - _ranks(second)
    way = np.sign(ranks[0] - ranks[1])
    stays = np.where(way != 0, (np.sign(changes) == way).mean(axis=0), math.nan)
    return stays, [stats.bootstrap_p(changes[:, i]) for i in range(changes.shape[1])]


def _swaps(first: Scores, second: Scores, signs: tuple[NDArray[np.int8], NDArray[np.int8]]) -> list[Swap]:
    """The opposite pairs. The change of places is claimed only where both orders are, so its p is the larger one."""
    points = _signs(first.points[None])[0], _signs(second.points[None])[0]
    each = [np.array([_p(side[:, at]) for at in range(side.shape[1])]) for side in signs]
    opposite = points[0] * points[1] < 0
    p = np.where(opposite, np.maximum(*each), 1.0)
    p_holm = stats.holm(p.tolist())
    found = []
    for at, i, j in _opposite(*points, len(first.points)):
        both = (signs[0][:, at] == points[0][at]) & (signs[1][:, at] == points[1][at])
        found.append(Swap(*_ordered(i, j, points[0][at]), float(both.mean()), float(p[at]), p_holm[at]))
    return sorted(found, key=lambda swap: (swap.p, -swap.share, swap.ahead, swap.behind))


def _p(signs: NDArray[np.int8]) -> float:
    return stats.bootstrap_p(signs.astype(np.float64))


def _opposite(first: NDArray[np.int8], second: NDArray[np.int8], methods: int) -> list[tuple[int, int, int]]:
    """(place among the pairs, first method, second method) of the pairs in opposite order."""
    left, right = _pairs(methods)
    return [(int(at), int(left[at]), int(right[at])) for at in np.flatnonzero(first.astype(int) * second < 0)]


def _ordered(i: int, j: int, sign: Any) -> tuple[int, int]:
    return (i, j) if sign > 0 else (j, i)
