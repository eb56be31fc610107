"""Numbers as table cells: scores, intervals, significant digits."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.core.shown import in_csv, printable
from harness.store.sealed import SealedCell
from harness.tables.sections import mean

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

DASH = "-"


def unproven(family: str, methods: Iterable[str]) -> str:
    """What is said of methods whose official code was not recorded on a family."""
    return f"Not proven against official code on {family}: {', '.join(sorted(set(methods)))}."


def grid(head: Sequence[str], columns: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns are flush left."""
    body = [head, ["---"] * left + ["---:"] * (len(head) - left), *zip(*columns, strict=True)]
    return "\n".join("| " + " | ".join(row) + " |" for row in body)


BEST, SECOND = "best", "second"


def ranks(texts: Sequence[str], ranked: Sequence[bool], higher_is_better: bool = True) -> list[str]:
    """`BEST`, `SECOND` or "" by the printed number, among those ranked; nothing is marked among fewer than two."""
    numbers = [
        float(text.replace(",", "")) if rank and text != DASH else None
        for text, rank in zip(texts, ranked, strict=True)
    ]
    order = sorted({number for number in numbers if number is not None}, reverse=higher_is_better)
    if sum(number is not None for number in numbers) < 2:
        return [""] * len(texts)
    marks = dict(zip(order, (BEST, SECOND), strict=False))
    return ["" if number is None else marks.get(number, "") for number in numbers]


def mark_best(texts: Sequence[str], ranked: Sequence[bool], higher_is_better: bool = True) -> list[str]:
    """Best bold, second underlined, as `ranks` has them."""
    shapes = {BEST: "**{}**", SECOND: "<u>{}</u>", "": "{}"}
    marks = ranks(texts, ranked, higher_is_better)
    return [shapes[mark].format(text) for text, mark in zip(texts, marks, strict=True)]


def csv_text(frame: pd.DataFrame) -> str:
    """A frame as CSV; no cell is a formula to a spreadsheet (`harness.core.shown.from_csv` gives its text back)."""
    texts = [str(name) for name in frame if any(isinstance(value, str) for value in frame[name])]
    frame = frame.assign(**{name: [in_csv(v) if isinstance(v, str) else v for v in frame[name]] for name in texts})
    return str(frame.rename(columns=lambda name: in_csv(printable(name))).to_csv(index=False, lineterminator="\n"))


def unit_of(sealed: SealedCell) -> str:
    """What a task's scores are in, and which way is better where it is not up."""
    known = "points" if math.isnan(sealed.maximum) else f"points of {sealed.maximum:g}"
    unit = "%" if sealed.maximum == 1 else known
    return unit if sealed.metric.higher_is_better else f"{unit}, lower is better"


def seeds_score(seeds: Sequence[SealedCell]) -> str:
    """The score of a line at a task: the mean over seeds."""
    return _score(mean([sealed.score for sealed in seeds]), seeds[0].maximum) if seeds else DASH


def seeds_spread(seeds: Sequence[SealedCell]) -> str:
    """What follows the score: the sample standard deviation over seeds, or the interval of the only one."""
    if len(seeds) > 1:
        return f" ±{_score(statistics.stdev(sealed.score for sealed in seeds), seeds[0].maximum)} sd"
    interval = seeds[0].interval if seeds else None
    return interval_text(interval.low, interval.high, seeds[0].maximum) if interval else ""


def score_with_interval(row: Mapping[str, Any]) -> str:
    unit = " %" if row["max"] == 1 else "" if math.isnan(row["max"]) else f" of {row['max']:g}"
    return _score(row["score"], row["max"]) + interval_text(row["low"], row["high"], row["max"]) + unit


def interval_text(low: float, high: float, maximum: float) -> str:
    return "" if math.isnan(low) else f" [{_score(low, maximum)}, {_score(high, maximum)}]"


def _score(score: float, maximum: float) -> str:
    """A mean of scores in %, a sum in points; one decimal. Three digits where the maximum is unknown or below 1."""
    if math.isnan(maximum) or maximum < 1:
        return significant(score)
    return decimal(100.0 * score if maximum == 1 else score)


def decimal(value: float) -> str:
    return DASH if math.isnan(value) else f"{value:.1f}"


def significant(value: float) -> str:
    """At least three digits, never an exponent: GFLOPs run from 0.1 (mini) to 10,000."""
    if math.isnan(value):
        return DASH
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0}f}"
