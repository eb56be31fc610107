"""Cells whose headline is no plain mean: sealed, read back, and computed again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from checkpoints import refused
from factories import PROCESSING, TASK_SETTINGS, asked, keys, make_cell

from harness.core.metric import Metric
from harness.store import verify as verifying
from harness.store.journal import Record
from harness.store.sealed import SampleScore, SealedCell, load
from harness.store.store import Store

N = 12
ORIGIN = {
    "request": asked(task="pope"),
    "processing": PROCESSING,
    "task_settings": TASK_SETTINGS,
    "started": "2026-01-01",
    "wall_s": 1.0,
    "device": "cpu",
    "versions": dict.fromkeys(verifying.VERSIONS, "1"),
    "git": None,
    "dirty": None,
    "revision": None,
    "decoder_layers": 4,
    "grids": [[2, 2, False]],
}
COSTS = {"kept": 4, "mean_visual": 4.0, "n_visual": 4}


def sealed(root: Path, metric: Metric | str, scores: list[float | None], value: float | None) -> SealedCell:
    names = keys(len(scores))
    with Store(root).open(make_cell(len(scores), task="pope"), names) as writer:
        writer.append(*(Record(key, f"i{n // 2}", "yes", 1, dict(COSTS), 0.1) for n, key in enumerate(names)))
        rows = {key: SampleScore(s, str(n), "random", "q", "t") for n, (key, s) in enumerate(zip(names, scores))}  # noqa: B905
        name = metric if isinstance(metric, str) else metric.name
        info = {"budget_knobs": ["keep"]}
        return writer.seal({name: value}, rows, ORIGIN, headline=metric, method_info=info)


def body_of(cell: SealedCell) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((cell.folder / "cell.json").read_text())
    return found


def sound(root: Path) -> list[str]:
    lines, whole = verifying.verify(root)
    return [] if whole else lines


def test_a_plain_mean_is_written_as_it_always_was(tmp_path: Path) -> None:
    cell = sealed(tmp_path, "exact_match", [n % 2 for n in range(N)], 0.5)
    assert "metric" not in body_of(cell)
    assert set(body_of(cell)["counts"]) == {"expected", "answered", "headline"}
    assert (cell.maximum, cell.ahead, cell.metric) == (1.0, 0.5, Metric("exact_match"))
    assert sound(tmp_path) == []


def test_a_mean_with_a_scale(tmp_path: Path) -> None:
    metric = Metric("accuracy", scale=100.0)
    cell = sealed(tmp_path, metric, [n % 2 for n in range(N)], 50.0)
    assert body_of(cell)["metric"] == {"scale": 100.0}
    assert (cell.score, cell.maximum, cell.metric) == (50.0, 100.0, metric)
    assert cell.interval is not None
    assert cell.interval.low < 50 < cell.interval.high <= 100
    assert sound(tmp_path) == []
    assert load(cell.folder).metric == metric


def test_fewer_errors_are_ahead(tmp_path: Path) -> None:
    cell = sealed(tmp_path, Metric("distance", higher_is_better=False), [n % 2 for n in range(N)], 0.5)
    assert (cell.score, cell.ahead) == (0.5, -0.5)
    assert sound(tmp_path) == []


@pytest.mark.parametrize("maximum", [None, 1.0])
def test_a_metric_of_all_answers_has_no_interval_and_no_scores(tmp_path: Path, maximum: float | None) -> None:
    metric = Metric("cider", "corpus", maximum=maximum)
    cell = sealed(tmp_path, metric, [None] * N, 0.731)
    assert (cell.score, cell.interval, cell.metric) == (0.731, None, metric)
    assert math.isnan(cell.maximum) if maximum is None else cell.maximum == 1.0
    assert cell.counts == {"expected": N, "answered": N, "headline": N, "images": N // 2}
    assert cell.samples()["score"].isna().all()
    assert sound(tmp_path) == []
    json.loads((cell.folder / "cell.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_score_that_samples_do_not_bear_out_is_refused(tmp_path: Path) -> None:
    for metric, scores, value, said in (
        (Metric("accuracy", scale=100.0), [1.0] * N, 1.0, "add up to 100.0"),
        (Metric("accuracy", scale=100.0), [None, *[1.0] * (N - 1)], 100.0, "is None, expected 0..1"),
        (Metric("cider", "corpus"), [None] * N, None, "is None, expected a number"),
        (Metric("cider", "corpus"), [None] * N, math.nan, "is nan, expected a number"),
        (Metric("cider", "corpus"), [None, *[1.5] * (N - 1)], 0.3, "is 1.5, expected 0..1"),
    ):
        assert said in refused(lambda m=metric, s=scores, v=value: sealed(tmp_path / m.name, m, s, v))


def test_a_forged_metric_is_found(tmp_path: Path) -> None:
    from harness.store.sealed import sealed as written

    cell = sealed(tmp_path, Metric("cider", "corpus"), [None] * N, 0.731)
    body = body_of(cell)
    del body["checksum"]
    for change, said in (
        ({"metric": {"kind": "sum"}}, "expected a kind of mean, mme, corpus"),
        ({"metric": {"kind": "corpus", "unit": 1}}, "found unit=1"),
        ({"metric": {}}, "expected 0..1"),
        ({"maximum": 1.0}, "the maximum of cider is 1.0"),
        ({"counts": body["counts"] | {"images": 3}}, "said to be of 3 images"),
    ):
        (cell.folder / "cell.json").write_bytes(written(body | change))
        assert said in " ".join(sound(tmp_path)), change
    (cell.folder / "cell.json").write_bytes(written(body))
    assert sound(tmp_path) == []
