"""A figure of whole requests: FLOPs against output length, a row of panels per kind of method, a column per number of
questions about an image."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from harness.core.requests import OUTPUTS, QUESTIONS
from harness.core.shown import printable
from harness.store.sealed import SealedCell
from harness.tables.style import DPI, KINDS, STROKES, kind_of, look, shape, style


class RequestCurve(NamedTuple):
    """A line of a table: percent of the unpruned FLOPs at each of `OUTPUTS`, for each of `QUESTIONS`."""

    method: str
    label: str
    variant: int
    percents: Sequence[Sequence[float]]


def draw_requests(curves: Sequence[RequestCurve], cells: Iterable[SealedCell], title: str) -> bytes:
    """The figure as SVG; equal curves give equal bytes with one version of matplotlib. `cells` place the methods."""
    from matplotlib.figure import Figure

    cells = list(cells)
    kinds: Mapping[str, list[RequestCurve]] = {
        kind: [c for c in curves if kind_of(c.method, cells) == kind] for kind in KINDS
    }
    rows = {kind: mine for kind, mine in kinds.items() if mine}
    with style():
        figure = Figure(figsize=(11.2, 2.1 * len(rows) + 0.9), dpi=DPI, layout="constrained")
        grid = figure.add_gridspec(len(rows), len(QUESTIONS) + 1, width_ratios=[1.0] * len(QUESTIONS) + [0.62])
        first: Any = None
        for row, (kind, mine) in enumerate(rows.items()):
            handles: dict[str, Any] = {}
            for column, questions in enumerate(QUESTIONS):
                axes = figure.add_subplot(grid[row, column], sharex=first, sharey=first)
                first = first or axes
                handles = _panel(axes, mine, column)
                asked = "1 question" if questions == 1 else f"{questions} questions"
                axes.set_title(f"{asked} an image", loc="left", fontsize=8, fontweight="bold")
                axes.tick_params(labelleft=column == 0, labelbottom=row == len(rows) - 1)
                if column == 0:
                    axes.set_ylabel(f"{kind}\n% of unpruned", fontsize=8)
                if row == len(rows) - 1:
                    axes.set_xlabel("new tokens")
            beside = figure.add_subplot(grid[row, len(QUESTIONS)])
            beside.axis("off")
            beside.legend(handles.values(), handles.keys(), loc="upper left", frameon=False, fontsize=8)
        highest = max(value for curve in curves for values in curve.percents for value in values)
        first.set_ylim(0, 1.06 * max(highest, 100.0))
        figure.suptitle(printable(title), x=0.01, ha="left", fontsize=10, fontweight="bold")
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _panel(axes: Any, curves: Sequence[RequestCurve], column: int) -> dict[str, Any]:
    """The lines over the unpruned model's; returns the handles of a legend."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.axhline(100, color="black", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1.5)
    handles = {}
    for curve in curves:
        colour, marker = look(curve.method)
        (handles[printable(curve.label)],) = axes.plot(
            OUTPUTS,
            curve.percents[column],
            color=colour,
            marker=shape(marker),
            markersize=4.6,
            markerfacecolor=colour if curve.variant == 0 else "white",
            linestyle=STROKES[min(curve.variant, len(STROKES) - 1)],
            linewidth=1.2,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(OUTPUTS)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return handles
