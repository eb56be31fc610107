"""Intervals, exact tests and sample sizes. Images are what is resampled, because questions share images.

Every headline metric here is a sum over groups of (sum of values / number of units): one group for a mean of scores,
one per category for MME. So a resample of images is a vector of image weights, and all resamples are two matrix
products. Equal images, seed and number of resamples give equal weights: differences between two cells' resamples are
paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.core.errors import PrunebenchError
from harness.core.metric import Metric, as_metric

RESAMPLES = 2000
DECISIVE = 20_000
"""Resamples where a verdict hangs on an end or a p: 2,000 let the end of one in a few hundred intervals fall on the
wrong side of 0."""
LEVEL = 0.95
FEW = 10
"""Images below which there is no bootstrap interval and no verdict: so few say too little about spread."""
_Z = 2.08
"""Normal quantile of a score's interval. At 1.96 Wilson's interval covers only 91 % at 12 images (docs/results.md)."""
_PRIOR = 8.0
"""Weight of "all answers about one image are alike" in the design effect, in pairs of wrong answers."""
MME_PERCEPTION = frozenset(
    ["existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"]
)
"""MME's perception categories; every other category is cognition."""
TINY = 1e-9
"""Sums of scores that differ by less are equal."""
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

    values, counts: (groups, images) float64: sum of the unit values, number of units. A unit is a question (worth 0 to
    the metric's scale), or for MME a pair of questions (worth 0..200 points). `unit_max` is what one unit can be worth.
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
        """What the metric can reach: its scale for a mean, 200 points per MME category that is present."""
        return self.unit_max * len(self.values)

    @property
    def point(self) -> float:
        """The metric itself, on all rows."""
        return float((self.values.sum(axis=1) / self.counts.sum(axis=1)).sum())

    def unlike(self, level: float = LEVEL) -> float:
        """How far the metric may be from what images that are all alike gave: `unlike` of each group's images, together
        at `level`."""
        groups = (self.counts > 0).sum(axis=1)
        return self.unit_max * sum(unlike(int(n), 1.0 - (1.0 - level) / len(groups)) for n in groups)

    @property
    def design_effect(self) -> float:
        """The variance of the metric over that with independent units, between 1 and all units of an image alike.

        The estimate is the cluster-robust (linearised) one. Few wrong answers say little about likeness within images,
        so it is a weighted mean with the largest possible effect. Its weight is the number of pairs of wrong answers
        (or of right ones, if they are fewer). Below `FEW` images it is the largest possible effect.
        """
        images, total = self.n_clusters, self.counts.sum(axis=1, keepdims=True)
        share = self.counts / total / len(total)  # of each image in the metric; sums to 1
        units = self._units
        largest = max(1.0, units * float((share.sum(axis=0) ** 2).sum()))
        p = self.point / self.maximum
        if images < FEW or not 0.0 < p < 1.0:
            return largest
        away = (
            (
                self.values / self.unit_max
                - self.counts * (self.values.sum(axis=1, keepdims=True) / total / self.unit_max)
            )
            / total
            / len(total)
        )
        variance = float((away.sum(axis=0) ** 2).sum()) * images / (images - 1)
        found = min(max(variance * units / (p * (1.0 - p)), 1.0), largest)
        rare = min(p, 1.0 - p) * units
        pairs = max(rare * (rare - 1.0) / 2.0, 0.0)
        return (pairs * found + _PRIOR * largest) / (pairs + _PRIOR)

    @property
    def effective(self) -> float:
        """How many independent units are worth as much as these."""
        return self._units / self.design_effect

    @property
    def _units(self) -> float:
        """Units of a mean over all that has the same variance: for equal groups, all units."""
        return len(self.counts) ** 2 / float((1.0 / self.counts.sum(axis=1)).sum())

    def resamples(self, n: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
        """(n,) the metric on n draws of as many images as there are, with replacement."""
        return np.asarray(resample_together([self], draws(self.n_clusters, n, seed))[0], dtype=np.float64)


def draws(images: int, n: int, seed: int) -> NDArray[Any]:
    """(n, images) unsigned integers: how often each image is drawn, in n draws of as many images as there are, with
    replacement.

    Drawing is most of what resampling costs: 8 million binomial numbers at 398 images and 20,000 draws.
    """
    rng = np.random.default_rng(seed)
    even = np.full(images, 1.0 / images)
    drawn = np.concatenate(
        [
            rng.multinomial(images, even, size=min(_CHUNK, n - start)).astype(np.min_scalar_type(images))
            for start in range(0, n, _CHUNK)
        ]
    )
    return drawn.astype(np.min_scalar_type(int(drawn.max())), copy=False)


def resample_together(cells: Sequence[Clustered], drawn: NDArray[Any]) -> NDArray[np.float64]:
    """(cells, n) the metric of each cell on the same `draws` of images, so that differences between rows are paired.

    The cells must be over the same images. A row does not depend on the cells beside it, to the last bit. Sums of whole
    numbers are exact in any order: such cells share a matrix product. A cell with other values has a product of its
    own, because the order in which a product adds depends on its shape.

    A group that a draw misses altogether stands in with its value on all rows: dropping it would move a sum over
    categories by up to 200 points for no reason. It matters only for subsets with a few images per category.
    """
    n, images = drawn.shape
    # half the work where sums of whole numbers are exact in it too
    small = max(float(part.max()) for cell in cells for part in (cell.values, cell.counts)) * images < 2**24
    if any(cell.n_clusters != images for cell in cells):
        raise PrunebenchError(
            f"expected cells over the same images, found {sorted({cell.n_clusters for cell in cells} | {images})}"
            " images"
        )
    whole = [index for index, cell in enumerate(cells) if (cell.values == np.round(cell.values)).all()]
    alone = [[index] for index in range(len(cells)) if index not in set(whole)]
    out = np.empty((len(cells), n))
    for together in filter(None, [whole, *alone]):
        some = [cells[index] for index in together]
        kind = np.float32 if small and together is whole else np.float64
        out[together] = _weighted(some, drawn, kind)
    return out


def _weighted(cells: Sequence[Clustered], drawn: NDArray[Any], kind: type) -> NDArray[np.float64]:
    """(cells, n) the metric of each cell on the draws, with products in this type of float."""
    ends = np.cumsum([len(cell.values) for cell in cells])[:-1]
    values = np.concatenate([cell.values for cell in cells])
    alike = all(cell.counts is cells[0].counts for cell in cells)
    counts = cells[0].counts if alike else np.concatenate([cell.counts for cell in cells])
    point = values.sum(axis=1) / np.concatenate([cell.counts for cell in cells]).sum(axis=1)
    # both in one product, and never in one of a single column, which adds in another order
    columns: NDArray[Any] = np.concatenate([values, counts]).T.astype(kind)
    out = np.empty((len(cells), len(drawn)))
    for start in range(0, len(drawn), _CHUNK):
        sums = (drawn[start : start + _CHUNK].astype(kind) @ columns).astype(np.float64)
        total, count = sums[:, : len(values)], sums[:, len(values) :]
        count = np.tile(count, len(cells)) if alike else count
        groups = np.where(count > 0, total / np.maximum(count, 1.0), point)
        for row, group in enumerate(np.split(groups, ends, axis=1)):
            out[row, start : start + _CHUNK] = group.sum(axis=1)
    return out


def over_seeds(resamples: NDArray[np.float64], stream: int, seed: int = 0) -> NDArray[np.float64]:
    """(n,) the mean over seeds where every resample also draws the seeds anew: `resamples` is (seeds, n).

    So an interval of it covers both what other images and what other draws of a method's randomness could have given.
    `stream` numbers independent draws: two methods that are compared need different ones.
    """
    seeds, n = resamples.shape
    if seeds == 1:
        return np.asarray(resamples[0], dtype=np.float64)
    weights = np.random.default_rng([seed, stream]).multinomial(seeds, np.full(seeds, 1.0 / seeds), size=n).T / seeds
    return np.asarray((weights * resamples).sum(axis=0), dtype=np.float64)


def quantiles(resamples: NDArray[np.float64], level: float = LEVEL) -> tuple[float, float]:
    """The ends of the percentile interval."""
    low, high = np.quantile(resamples, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def bootstrap_p(resamples: NDArray[np.float64]) -> float:
    """Two-sided p of "the true value is 0": twice the share of resamples on the rarer side of it, never below 2 / (n +
    1)."""
    n = len(resamples)
    beyond = min(int((resamples <= TINY).sum()), int((resamples >= -TINY).sum()))
    return min(1.0, 2.0 * (beyond + 1) / (n + 1))


def unlike(images: int, level: float = LEVEL) -> float:
    """How many of all images (0..1) may be unlike `images` seen ones that were all alike: Clopper and Pearson's
    binomial limit.

    A bootstrap of images that do not differ knows of no other kind and gives an interval of no width.
    """
    return float(1.0 - ((1.0 - level) / 2.0) ** (1.0 / images))


def in_headline(metric: Metric | str, category: Sequence[str | None]) -> list[bool]:
    """Which questions a metric is computed from: all, but an MME score of perception or cognition has its own
    categories."""
    metric = as_metric(metric)
    if metric.kind != "mme" or not ("perception" in metric.name or "cognition" in metric.name):
        return [True] * len(category)
    return [(str(kind) in MME_PERCEPTION) == ("perception" in metric.name) for kind in category]


def cluster(
    metric: Metric | str,
    score: Sequence[float],
    image: Sequence[str],
    category: Sequence[str | None],
    question_id: Sequence[str],
) -> Clustered:
    """The additive form of `metric` from one row per question; raises as `units`."""
    return units(metric, image, category, question_id).clustered(np.asarray(score, dtype=np.float64))


@dataclass(frozen=True)
class Units:
    """What a metric counts, whatever the scores are: its units with their groups and images.

    rows: (units,) the question of each, or for MME (2, units) its pair. group, owner: (units,) which group, which image
    of those in order of their names. counts: (groups, images) float64, the number of units. scale: what a score of 1 is
    worth where units are questions.
    """

    rows: NDArray[np.int64]
    group: NDArray[np.int64]
    owner: NDArray[np.int64]
    counts: NDArray[np.float64]
    scale: float = 1.0

    def clustered(self, scores: NDArray[np.float64]) -> Clustered:
        """The metric of these scores, one per question. Metrics of the same units share the array `counts`."""
        if self.rows.ndim == 1:
            # a scale of 1 changes no bit
            return Clustered(self._sums(self.scale * scores), self.counts, unit_max=self.scale)
        first, second = self.rows
        # acc (both questions' mean) + acc_plus (both right), each in 0..100
        points = 50.0 * (scores[first] + scores[second]) + 100.0 * ((scores[first] == 1.0) & (scores[second] == 1.0))
        return Clustered(self._sums(points), self.counts, unit_max=200.0)

    def _sums(self, value: NDArray[np.float64]) -> NDArray[np.float64]:
        return _by_image(self.group, self.owner, self.counts.shape, value)


def units(
    metric: Metric | str, image: Sequence[str], category: Sequence[str | None], question_id: Sequence[str]
) -> Units:
    """The units of `metric` from one row per question.

    MME sums have pairs of questions ("perception" or "cognition" in the name picks the categories, else all); every
    other metric has questions. A name alone is read by `metric_of`. Raises PrunebenchError for no rows, and for an MME
    pair that is not two questions about one image.
    """
    asked = as_metric(metric)
    metric = asked.name
    if not len(image):
        raise PrunebenchError(f"{metric}: expected at least one scored sample, found none")
    if asked.kind != "mme":
        names, owner = np.unique(np.asarray(image, dtype=str), return_inverse=True)
        group = np.zeros(len(owner), dtype=np.int64)
        return Units(np.arange(len(owner)), group, owner, _by_image(group, owner, (1, len(names))), asked.scale)

    pairs: dict[tuple[str, str], list[int]] = {}
    for row, (kind, question, counts) in enumerate(
        zip(category, question_id, in_headline(asked, category), strict=True)
    ):
        if counts:
            pairs.setdefault((str(kind), str(question)), []).append(row)
    if not pairs:
        found = ", ".join(sorted(set(map(str, category))))
        raise PrunebenchError(f"{metric}: expected samples of a category that it sums, found only {found}")
    for (kind, question), rows in pairs.items():
        if len(rows) != 2 or image[rows[0]] != image[rows[1]]:
            found = f"{len(rows)} question(s) about {len({image[row] for row in rows})} image(s)"
            raise PrunebenchError(
                f"{metric}: expected two questions about one image for {kind}/{question}, found {found}; take whole"
                " pairs"
            )
    both = np.array(list(pairs.values())).T
    kinds, group = np.unique(np.array([kind for kind, _ in pairs]), return_inverse=True)
    names, owner = np.unique(np.asarray(image, dtype=str)[both[0]], return_inverse=True)
    return Units(both, group, owner, _by_image(group, owner, (len(kinds), len(names))))


def interval(metric: str, rows: Clustered) -> Interval | None:
    """The 95 % interval of `metric`: Wilson's (1927), with the number of questions divided by a design effect.

    One rule serves all scores, also those where every image is wholly right. None for one image, which says nothing
    about spread. tests/core/test_coverage.py simulates how often it covers the true score.
    """
    if rows.n_clusters < 2:
        return None
    p, n = rows.point / rows.maximum, rows.effective
    middle, reach = p + _Z**2 / (2 * n), _Z * math.sqrt(max(p * (1 - p), 0.0) / n + (_Z / (2 * n)) ** 2)
    low, high = ((middle + sign * reach) / (1 + _Z**2 / n) for sign in (-1, 1))
    # the ends are 0 and 1 but for the last bits of a float where all answers are alike
    low, high = 0.0 if low < TINY else low, 1.0 if high > 1 - TINY else high
    method = f"Wilson over images, design effect {rows.design_effect:.2f}"
    return Interval(metric, rows.maximum * low, rows.maximum * high, LEVEL, method, rows.n_clusters)


def mcnemar(better: int, worse: int) -> float:
    """Exact two-sided McNemar test from the discordant questions: is "better" as likely as "worse"?

    P(at most min(better, worse) of n = better + worse fair coins) twice, at most 1. Soft scores need no threshold: a
    question is better or worse by its score, which makes this the exact sign test; for scores of 0 and 1 the two are
    one. It takes questions for independent: read it beside an interval by image.
    """
    from scipy.special import bdtr

    n = better + worse
    return min(1.0, 2.0 * float(bdtr(float(min(better, worse)), n, 0.5))) if n else 1.0


def combined_p(values: Sequence[float]) -> float:
    """One p-value from several dependent ones: twice their median, at most 1; one value is itself.

    Valid whatever the dependence, as between tests against several seeds on the same questions: the k-th smallest of K
    times K/k is (Rueger 1978), and K/k is at most 2 at the median, of an even number the upper one.
    """
    if len(values) == 1:
        return values[0]
    return min(1.0, 2.0 * sorted(values)[len(values) // 2])


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values of one family, in the order given: below 0.05 holds for all with 5 % error in
    total."""
    adjusted = [0.0] * len(values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted


def design_effect(values: Sequence[float] | NDArray[np.float64], image: Sequence[str] | NDArray[np.int64]) -> float:
    """Variance of the mean with whole images as units, over that with independent questions. NaN where nothing varies.

    It is 1 + (questions per image - 1) x intra-image correlation for images of equal size (Kish 1965). Chance can take
    an estimate below 1: average several before planning with them.
    """
    away = np.asarray(values, dtype=np.float64)[None] - np.mean(values)
    _, owner = np.unique(np.asarray(image), return_inverse=True)
    return float(design_effects(away, np.bincount(owner, weights=away[0]).astype(np.float64)[None])[0])


def design_effects(away: NDArray[np.float64], sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """(m,) the `design_effect` of m rows of values less their mean (m, questions), and of their sums by image (m,
    images)."""
    alone = (away**2).sum(axis=1)
    varies = alone > 1e-12
    return np.where(varies, (sums**2).sum(axis=1) / np.where(varies, alone, 1.0), np.nan)


def questions_needed(
    difference: float, discordant: float, effect: float = 1.0, power: float = 0.8, level: float = LEVEL
) -> int:
    """Questions for a paired test to find a true `difference` (0.01 = one point) with this power.

    `discordant` is the share of questions on which the two differ. n = (z_a sqrt(d) + z_b sqrt(d - D^2))^2 / D^2
    (Connor 1987, Biometrics 43, 207-211, for McNemar's test), times the design effect. A difference above the
    discordance cannot be: then the discordance is taken to be the difference itself.
    """
    from scipy.special import ndtri

    d = max(discordant, difference)
    z_a, z_b = float(ndtri((1.0 + level) / 2.0)), float(ndtri(power))
    n = (z_a * math.sqrt(d) + z_b * math.sqrt(d - difference**2)) ** 2 / difference**2
    return math.ceil(effect * n - 1e-9)


def detectable(n: int, discordant: float, effect: float = 1.0, power: float = 0.8, level: float = LEVEL) -> float:
    """The smallest difference that `n` questions find with this power: `questions_needed` turned round; NaN where even
    1 needs more."""
    low, high = 1e-6, 1.0
    if questions_needed(high, discordant, effect, power, level) > n:
        return math.nan
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if questions_needed(middle, discordant, effect, power, level) > n else (low, middle)
    return high


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Which points are on the front, cheapest first: none other costs no more and is worth no less, and one of the two
    strictly.

    Points with equal cost and value are on it together; a point with NaN is never.
    """
    points = [
        (c, v, i) for i, (c, v) in enumerate(zip(costs, values, strict=True)) if not (math.isnan(c) or math.isnan(v))
    ]
    front: list[int] = []
    best, best_cost = -math.inf, -math.inf
    for cost, value, index in sorted(points, key=lambda p: (p[0], -p[1], p[2])):
        if value > best or (value == best and cost == best_cost):
            front.append(index)
            best, best_cost = value, cost
    return front


def _by_image(
    group: NDArray[np.int64],
    owner: NDArray[np.int64],
    shape: tuple[int, ...],
    value: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """(groups, images) float64: sum of the units' values, or their number."""
    n_groups, n_images = shape
    found = np.bincount(group * n_images + owner, weights=value, minlength=n_groups * n_images)
    return found.astype(np.float64).reshape(shape)
