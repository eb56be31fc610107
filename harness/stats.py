"""Confidence intervals of headline metrics: a percentile bootstrap over whole images, because questions share images.

Every headline metric here is a sum over groups of (sum of values / number of units): one group for a mean of scores, one
per category for MME. So a resample of images is a vector of image weights, and all resamples are two matrix products.
Equal images, seed and number of resamples give equal weights: differences between two cells' resamples are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.errors import PrunebenchError

RESAMPLES = 2000
LEVEL = 0.95
MME_PERCEPTION = frozenset(
    ["existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"]
)
"""MME's perception categories; every other category is cognition."""
_CHUNK = 250  # resamples per matrix product: 250 x 10,000 images of weights are 20 MB


@dataclass(frozen=True)
class Interval:
    """A confidence interval of `metric`, in the metric's own unit."""

    metric: str
    low: float
    high: float
    level: float
    method: str
    n_clusters: int


@dataclass(frozen=True)
class Clustered:
    """A metric's additive form: what each image contributes to each group.

    values, counts: (groups, images) float64: sum of the unit values, number of units. A unit is a question (worth 0..1), or
    for MME a pair of questions (worth 0..200 points). `unit_max` is what one unit can be worth.
    """

    values: NDArray[np.float64]
    counts: NDArray[np.float64]
    unit_max: float

    @property
    def n_clusters(self) -> int:
        """Images."""
        return int(self.values.shape[1])

    @property
    def maximum(self) -> float:
        """What a perfect model scores: 1 for a mean, 200 points per MME category that is present."""
        return self.unit_max * len(self.values)

    @property
    def point(self) -> float:
        """The metric itself, on all rows."""
        return float((self.values.sum(axis=1) / self.counts.sum(axis=1)).sum())

    def resamples(self, n: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
        """(n,) the metric on n draws of as many images as there are, with replacement.

        A group that a draw misses altogether stands in with its value on all rows: dropping it would move a sum over
        categories by up to 200 points for no reason. It matters only for subsets with a few images per category.
        """
        rng = np.random.default_rng(seed)
        images = self.n_clusters
        whole = self.values.sum(axis=1) / self.counts.sum(axis=1)
        parts = []
        for start in range(0, n, _CHUNK):
            weights = rng.multinomial(images, np.full(images, 1.0 / images), size=min(_CHUNK, n - start)).astype(np.float64)
            total, count = weights @ self.values.T, weights @ self.counts.T
            parts.append(np.where(count > 0, total / np.maximum(count, 1.0), whole).sum(axis=1))
        return np.concatenate(parts)


def cluster(
    metric: str,
    score: Sequence[float],
    image: Sequence[str],
    category: Sequence[str | None],
    question_id: Sequence[str],
) -> Clustered:
    """The additive form of `metric` from one row per question.

    Names that start with "mme_" are MME sums ("perception" or "cognition" in the name picks the categories, else all);
    every other name is the mean of `score` (0..1). Raises PrunebenchError for no rows, and for an MME pair that is not two
    questions about one image.
    """
    scores = np.asarray(score, dtype=np.float64)
    if not len(scores):
        raise PrunebenchError(f"{metric}: expected at least one scored sample, found none")
    if not metric.startswith("mme_"):
        names, owner = np.unique(np.asarray(image, dtype=str), return_inverse=True)
        return Clustered(*_sums(scores, np.zeros(len(scores), dtype=np.int64), owner, 1, len(names)), unit_max=1.0)

    pairs: dict[tuple[str, str], list[int]] = {}
    for row, (kind, question) in enumerate(zip(category, question_id, strict=True)):
        pairs.setdefault((str(kind), str(question)), []).append(row)
    if "perception" in metric or "cognition" in metric:
        pairs = {key: rows for key, rows in pairs.items() if (key[0] in MME_PERCEPTION) == ("perception" in metric)}
    if not pairs:
        found = ", ".join(sorted(set(map(str, category))))
        raise PrunebenchError(f"{metric}: expected samples of a category that it sums, found only {found}")
    for (kind, question), rows in pairs.items():
        if len(rows) != 2 or image[rows[0]] != image[rows[1]]:
            found = f"{len(rows)} question(s) about {len({image[row] for row in rows})} image(s)"
            raise PrunebenchError(
                f"{metric}: expected two questions about one image for {kind}/{question}, found {found}; take whole pairs"
            )
    first, second = np.array(list(pairs.values())).T
    # acc (both questions' mean) + acc_plus (both right), each in 0..100
    points = 50.0 * (scores[first] + scores[second]) + 100.0 * ((scores[first] == 1.0) & (scores[second] == 1.0))
    kinds, group = np.unique(np.array([kind for kind, _ in pairs]), return_inverse=True)
    names, owner = np.unique(np.asarray(image, dtype=str)[first], return_inverse=True)
    return Clustered(*_sums(points, group, owner, len(kinds), len(names)), unit_max=200.0)


def interval(metric: str, rows: Clustered, *, level: float = LEVEL, n: int = RESAMPLES, seed: int = 0) -> Interval | None:
    """The percentile interval of `metric` over resampled images; None for one image, which says nothing about spread."""
    if rows.n_clusters < 2:
        return None
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(rows.resamples(n, seed), [tail, 1.0 - tail])
    method = f"percentile bootstrap by image, {n} resamples, seed {seed}"
    return Interval(metric, float(low), float(high), level, method, rows.n_clusters)


def _sums(
    value: NDArray[np.float64], group: NDArray[np.int64], owner: NDArray[np.int64], n_groups: int, n_images: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(groups, images) sum of value and number of units."""
    flat = group * n_images + owner
    shape = n_groups, n_images
    values = np.bincount(flat, weights=value, minlength=n_groups * n_images).astype(np.float64)
    counts = np.bincount(flat, minlength=n_groups * n_images).astype(np.float64)
    return values.reshape(shape), counts.reshape(shape)
