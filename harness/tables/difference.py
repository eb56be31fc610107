"""The numbers of a difference between two lines on the same questions: the interval, the exact test, and the average.

Tables and `prunebench compare` both come here, so that a pair has one interval and one p wherever it is read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from harness.core import stats
from harness.tables.sections import NAN, mean


def tested(
    seeds: Sequence[NDArray[np.float64]],
    others: Sequence[NDArray[np.float64]],
    drawn: Callable[[], NDArray[np.float64]],
    images: int,
    unlike: float,
) -> list[float]:
    """[low, high, better, worse, p] of a line against another.

    `seeds`, `others`: the scores of each seed's questions, (questions,) each, 0..1. `drawn`: resamples of the
    difference, in the unit that is shown. `unlike`: how far it may be where no question differs, in the same unit.
    Below `stats.FEW` images the interval is NaN, and `drawn` is not asked.
    """
    away = [one - other for one, other in itertools.product(seeds, others)]
    better, worse = ([int((sign * d > stats.TINY).sum()) for d in away] for sign in (1, -1))
    low, high = NAN, NAN
    if images < stats.FEW:
        pass
    elif not any(better) and not any(worse):  # a bootstrap sees no other kind of image
        low, high = -unlike, unlike
    else:
        low, high = stats.quantiles(drawn())
    p = stats.combined_p([stats.mcnemar(b, w) for b, w in zip(better, worse, strict=True)])
    return [low, high, mean([float(b) for b in better]), mean([float(w) for w in worse]), p]


def ends_of(resampled: NDArray[np.float64], widths: Callable[[], Sequence[float]]) -> tuple[float, float]:
    """The interval of an average, or of a difference of two. Where no resample differs, the mean of the `widths` of its
    tasks, their binomial limits, to both sides."""
    if np.ptp(resampled) > stats.TINY:
        return stats.quantiles(resampled)
    width = mean(widths())
    return float(resampled[0]) - width, float(resampled[0]) + width
