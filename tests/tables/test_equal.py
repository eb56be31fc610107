"""Avg % at equal FLOPs: between two measured points of one line, and nowhere else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from factories import sealed_cell

from harness.store.sealed import SealedCell
from harness.tables import equal, leaderboard
from harness.tables import sections as blocks
from harness.tables.sections import Section

#: budget -> share of FLOPs, score of a model that scores 0.8 unpruned
POINTS = {"16": (0.05, 0.4), "64": (0.15, 0.6), "192": (0.30, 0.72), "native": (0.6, 0.8)}


def cell(method: str, budget: str, flops: float, score: float, **changes: Any) -> SealedCell:
    return sealed_cell(method, budget, score=score, costs={"prefill_dense_flops": flops * 1e9}, **changes)


def section(*more: SealedCell) -> Section:
    cells = [cell("none", "none", 1, 0.8), *more]
    (found,) = blocks.sections(blocks.distinct(cells))
    return found


def line(found: Section, method: str = "fastv") -> list[equal.Measured]:
    (series,) = [s for s in found.series() if s.method == method]
    return equal.measured(found, series)


def test_a_line_is_read_between_its_neighbours() -> None:
    points = line(section(*(cell("fastv", b, flops, score) for b, (flops, score) in POINTS.items())))
    assert [p.budget for p in points] == ["16", "64", "192"], "native is another schedule"
    found = equal.at(points, 10)
    assert (found.average, found.interpolated) == (pytest.approx((50 + 75) / 2), True)
    assert [p.budget for p in found.between] == ["16", "64"]
    assert equal.at(points, 20).average == pytest.approx(75 + (90 - 75) / 3)


def test_a_measured_share_is_the_measured_number() -> None:
    points = [equal.Measured(10.0, 60.0, "32"), equal.Measured(20.0, 70.0, "64")]
    found = equal.at(points, 20)
    assert (found.average, found.interpolated, found.between) == (70.0, False, (points[1],))


@pytest.mark.parametrize("share", [4.9, 30.1, 50, 100])
def test_nothing_is_extrapolated(share: float) -> None:
    points = line(section(*(cell("fastv", b, flops, score) for b, (flops, score) in POINTS.items())))
    found = equal.at(points, share)
    assert math.isnan(found.average)
    assert found.between == ()
    assert not found.interpolated


def test_two_settings_are_two_lines() -> None:
    """Or a number would lie between points of which no method has both."""
    cells = [
        cell("random", budget, flops, score, knobs={"boundary": boundary})
        for boundary, points in ((0, ((0.05, 0.4), (0.15, 0.5))), (2, ((0.25, 0.6), (0.35, 0.7))))
        for budget, (flops, score) in zip(("16", "64"), points, strict=True)
    ]
    found = section(*cells)
    at_twenty = [equal.at(equal.measured(found, s), 20) for s in found.series() if s.method == "random"]
    assert [one.between for one in at_twenty] == [(), ()]


def test_the_tables_mark_and_name_the_neighbours(tmp_path: Path) -> None:
    cells = [cell("none", "none", 1, 0.8)]
    cells += [cell("fastv", budget, flops, score) for budget, (flops, score) in POINTS.items()]
    cells += [cell("random", "64", 0.1, 0.4), cell("random", "16", 0.05, 0.2)]
    markdown = leaderboard.write(cells, tmp_path, samples=False)[1].read_text()
    rows = [row.strip("| ").split(" | ") for row in markdown.splitlines() if row.startswith("| fastv | ~")]
    assert rows == [["fastv", "~**62.5**", "~80.0", "90.0", "-", "5.0 to 30.0"]]
    assert "| random | <u>50.0</u> | - | - | - | 5.0 to 10.0 |" in markdown
    frame = pd.read_csv(tmp_path / "equal_flops.csv")
    assert len(frame) == 2 * len(equal.SHARES)
    row = frame[(frame.line == "fastv") & (frame.pct_of_unpruned_flops == 10)].iloc[0]
    assert (row.avg_pct, row.interpolated, row.low_budget, row.high_budget) == (62.5, True, 16, 64)
    assert (row.low_pct_of_unpruned_flops, row.high_avg_pct) == (pytest.approx(5), pytest.approx(75))
    outside = frame[frame.pct_of_unpruned_flops == 50]
    assert outside[["avg_pct", "interpolated", "low_budget"]].isna().all().all()
