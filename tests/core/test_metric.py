"""What a headline metric says of itself, and what is written of it."""

from __future__ import annotations

import json

import pytest
from checkpoints import refused

from harness.core import stats
from harness.core.metric import Metric, as_metric, metric_from, metric_of

ARGS = (["a", "a", "b", "c"], [None] * 4, list("1234"))
SCORES = [1.0, 0.0, 0.5, 0.25]


def test_a_name_alone_is_a_mean_or_a_sum_of_mme() -> None:
    assert metric_of("exact_match") == Metric("exact_match")
    assert metric_of("mme_total") == Metric("mme_total", "mme")
    assert as_metric("x") == as_metric(Metric("x")) == Metric("x")
    assert metric_of("exact_match").stated() == metric_of("mme_total").stated() == {}


@pytest.mark.parametrize(
    "metric",
    [
        Metric("anls"),
        Metric("accuracy", scale=100.0),
        Metric("edit_distance", higher_is_better=False),
        Metric("cider", "corpus"),
        Metric("f1", "corpus", maximum=1.0),
        Metric("wer", "corpus", higher_is_better=False),
        Metric("mme_like", "mean"),
    ],
)
def test_a_metric_is_read_back(metric: Metric) -> None:
    stated = json.loads(json.dumps(metric.stated()))
    assert metric_from(metric.name, stated) == metric
    assert set(stated) <= {"kind", "scale", "higher_is_better", "maximum"}
    assert metric.tested == (metric.kind != "corpus")
    assert metric.ahead == (1 if metric.higher_is_better else -1)


def test_what_is_no_metric_is_refused() -> None:
    for stated in (
        {"kind": "sum"},
        {"kind": 3},
        {"unit": "x"},
        {"scale": "2"},
        {"maximum": "1"},
        {"higher_is_better": 2},
    ):
        assert "metric m: expected" in refused(lambda stated=stated: metric_from("m", stated))
    assert "a scale above 0" in refused(lambda: Metric("m", scale=0.0))
    assert "a scale above 0" in refused(lambda: Metric("m", scale=float("nan")))
    assert "a scale of 1" in refused(lambda: Metric("m", "corpus", scale=100.0))
    assert "higher to be better" in refused(lambda: Metric("mme_x", "mme", higher_is_better=False))
    assert "no maximum" in refused(lambda: Metric("m", maximum=1.0))


def test_a_scale_is_the_unit_of_points_intervals_and_resamples() -> None:
    one, hundred = (stats.cluster(m, SCORES, *ARGS) for m in (Metric("m"), Metric("m", scale=100.0)))
    assert (one.point, hundred.point) == (0.4375, 43.75)
    assert (one.maximum, hundred.maximum) == (1.0, 100.0)
    first, second = stats.interval("m", one), stats.interval("m", hundred)
    assert first is not None
    assert second is not None
    assert (second.low, second.high) == (pytest.approx(100 * first.low), pytest.approx(100 * first.high))
    assert hundred.resamples(50) == pytest.approx(100 * one.resamples(50))
    assert hundred.unlike() == pytest.approx(100 * one.unlike())
    assert hundred.design_effect == pytest.approx(one.design_effect)


def test_the_kind_decides_and_not_the_name() -> None:
    """A mean whose name begins as MME's sums do has no pairs."""
    mean = stats.cluster(Metric("mme_like_perception", "mean"), SCORES, *ARGS)
    assert mean.point == 0.4375
    assert all(stats.in_headline(Metric("mme_like_perception", "mean"), ["OCR", "code"]))
    assert stats.in_headline("mme_like_perception", ["OCR", "code"]) == [True, False]
