"""Avg % at equal FLOPs: each line of a section read off at the same shares of the unpruned dense prefill.

Equal tokens flatter a method that prunes late, for its early layers see them all. Between two neighbouring measured
points of one line the number is interpolated; beyond a line's ends there is none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages

from harness.tables.sections import NAN, Section, Series, average, percent_of_flops

SHARES = (10, 20, 30, 50)
"""Percent of the unpruned dense prefill FLOPs."""


class Measured(NamedTuple):
    """A measured point of a line: its share of the unpruned dense prefill FLOPs, and its Avg %; both in percent."""

    flops: float
    average: float
    budget: str


class AtShare(NamedTuple):
    """A line at a share of FLOPs; `average` is NaN and `between` empty where the share is outside the measured
    range."""

    average: float
    between: tuple[Measured, ...]
    """The neighbours that it was interpolated between, or the one point that was measured there."""

    @property
    def interpolated(self) -> bool:
        return len(self.between) == 2


def measured(section: Section, series: Series) -> list[Measured]:
    """The points of a line by rising FLOPs. A budget without a number is another schedule and no point of the line."""
    found = [
        Measured(
            line.mean(lambda s: percent_of_flops(s, section.baseline(s.cell.task))), average(line, section), line.budget
        )
        for line in series.lines
        if line.budget[0].isdigit()
    ]
    return sorted(p for p in found if not math.isnan(p.flops + p.average))


def at(points: Sequence[Measured], share: float) -> AtShare:
    """The line of `points`, by rising FLOPs, at a share."""
    there = next((p for p in points if p.flops == share), None)
    if there is not None:
        return AtShare(there.average, (there,))
    for low, high in itertools.pairwise(points):
        if low.flops < share < high.flops:
            way = (share - low.flops) / (high.flops - low.flops)
            return AtShare(low.average + way * (high.average - low.average), (low, high))
    return AtShare(NAN, ())


def frame(sections: Iterable[Section]) -> pd.DataFrame:
    """One row per line and share: the content of equal_flops.csv."""
    records = []
    for section in sections:
        for series in section.series():
            if series.method == "none":
                continue
            points = measured(section, series)
            for share in SHARES:
                found = at(points, share)
                low, high = (found.between[0], found.between[-1]) if found.between else (Measured(NAN, NAN, ""),) * 2
                records.append(
                    (section.title, series.label, share, found.average, found.interpolated, *low, *high)
                    if found.between
                    else (section.title, series.label, share, NAN, None, *low, *high)
                )
    ends = [f"{end}_{name}" for end in ("low", "high") for name in ("pct_of_unpruned_flops", "avg_pct", "budget")]
    return pd.DataFrame(records, columns=["section", "line", "pct_of_unpruned_flops", "avg_pct", "interpolated", *ends])
