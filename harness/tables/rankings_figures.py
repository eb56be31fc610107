"""Figures of two models' rankings: a slope chart of ranks at one pair of budgets, and a dot plot of tau.

A method has its colour and marker of the other figures; its second setting has hollow markers and a broken line. Equal
rankings give equal bytes with one version of matplotlib.
"""

from __future__ import annotations

import math

import numpy as np

from harness.core.shown import printable
from harness.tables.compare import AVERAGE
from harness.tables.figures import png
from harness.tables.in_common import BudgetPair
from harness.tables.rankings import ALL, Ranked, Rankings
from harness.tables.style import STROKES, look, shape, style
from harness.tables.versus_text import AVERAGE_SHOWN

RESOLUTION = 110
"""Dots an inch: both files stay below 60 kB."""


def drawn_pair(found: Rankings) -> BudgetPair:
    """The pair of budgets of the slope chart: most methods, then fewest tokens."""
    return max(found.pairs, key=lambda pair: (len(found.whole(pair).entries), -pair.shares[0]))


def slopes(found: Rankings) -> bytes:
    """The ranks at the average of one pair of budgets as PNG: a line per method, its name and rank at both ends.

    Lines of methods whose move is beyond noise are thick. Tied methods stand one below the other, with one rank.
    """
    from matplotlib.figure import Figure

    pair = drawn_pair(found)
    one = found.whole(pair)
    methods = range(len(one.entries))
    places = [_places(one, side) for side in (0, 1)]
    with style():
        figure = Figure(figsize=(7.2, 0.24 * len(one.entries) + 1.3), dpi=RESOLUTION, layout="constrained")
        axes = figure.add_subplot()
        for i in methods:
            entry, sure = one.entries[i], one.agreement.beyond_noise(i)
            colour, marker = look(entry.method)
            ends = [places[0][i], places[1][i]]
            axes.plot(
                [0, 1],
                ends,
                color=colour,
                marker=shape(marker),
                markersize=6,
                markerfacecolor=colour if entry.variant == 0 else "white",
                linestyle=STROKES[min(entry.variant, len(STROKES) - 1)],
                linewidth=2.4 if sure else 0.9,
                zorder=3 if sure else 2,
            )
            for side, align in ((0, "right"), (1, "left")):
                rank = f"{one.agreement.ranks[side][i]:g}"
                name = printable(entry.name)
                said = f"{name}  {rank}" if side == 0 else f"{rank}  {name}"
                at = (side, ends[side])
                away = (-8 if side == 0 else 8, 0)
                weight = "bold" if sure else "normal"
                axes.annotate(
                    said, at, away, textcoords="offset points", ha=align, va="center", color=colour, weight=weight
                )
        axes.set_xlim(-0.75, 1.75)
        axes.set_ylim(len(one.entries) - 0.4, -1.4)
        axes.axis("off")
        for side in (0, 1):
            axes.text(side, -1.0, _head(found, pair, side), ha="center", va="center", fontweight="bold")
        title = f"Rank at {_task(one.task)} of {', '.join(found.tasks)}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        note = "thick and bold: the move is beyond noise (Holm-corrected p below 0.05)"
        figure.supxlabel(note, x=0.99, ha="right", fontsize=7, color="0.35")
        return png(figure)


def taus(found: Rankings) -> bytes:
    """Tau with its interval for each task and pair of budgets, and the means, as PNG."""
    from matplotlib.figure import Figure

    rows: list[tuple[str, str, tuple[float, float, float], tuple[float, float]]] = []
    for one in found.ranked:
        at = f"{one.pair.label}  ({_shares(one.pair)} kept, {len(one.entries)} methods)"
        numbers = one.agreement.tau, one.agreement.low, one.agreement.high
        rows.append((at, _task(one.task), numbers, one.agreement.itself))
    rows += [("mean over pairs of budgets", _task(task), n, (math.nan, math.nan)) for task, n in found.means.items()]
    groups = list(dict.fromkeys(at for at, *_ in rows))
    with style():
        figure = Figure(figsize=(7.2, 0.2 * len(rows) + 0.3 * len(groups) + 1.0), dpi=RESOLUTION, layout="constrained")
        axes = figure.add_subplot()
        y, ticks, names = 0.0, [], []
        for group in groups:
            axes.text(-1.02, y, printable(group), fontsize=8, fontweight="bold", va="center", ha="left")
            for _, task, (tau, low, high), itself in [row for row in rows if row[0] == group]:
                y += 1
                ticks.append(y)
                names.append(printable(task))
                if not math.isnan(low):
                    axes.plot([low, high], [y, y], color="0.35", linewidth=1.2, zorder=2)
                axes.plot([tau], [y], "o" if task != AVERAGE_SHOWN else "D", color="black", markersize=4.5, zorder=3)
                for value, marker in zip(itself, ("<", ">"), strict=True):
                    axes.plot([value], [y], marker, color="0.5", markerfacecolor="white", markersize=4, zorder=2.5)
            y += 1.5
        axes.set_yticks(ticks, names)
        axes.tick_params(axis="y", length=0)
        axes.axvline(0, color="0.5", linewidth=0.8)
        axes.set_xlim(-1.04, 1.04)
        axes.set_ylim(y - 0.6, -0.8)
        axes.set_xticks(np.arange(-1, 1.01, 0.5))
        axes.set_xlabel("Kendall's tau-b")
        first, second = map(printable, found.models)
        figure.suptitle(f"Rankings of {first} and {second}", x=0.01, ha="left", fontsize=10, fontweight="bold")
        note = f"bars: 95 % interval over images; triangles: {first} (left) and {second} (right) with itself"
        figure.supxlabel(note, x=0.99, ha="right", fontsize=7, color="0.35")
        return png(figure)


def _places(one: Ranked, side: int) -> list[int]:
    """The row of each method: by rank, ties by the order of their names."""
    order = sorted(range(len(one.entries)), key=lambda i: (one.agreement.ranks[side][i], one.names[i]))
    return [order.index(i) for i in range(len(order))]


def _head(found: Rankings, pair: BudgetPair, side: int) -> str:
    return printable(f"{found.models[side]}, {pair.budgets[side]} ({100 * pair.shares[side]:.1f} % kept)")


def _shares(pair: BudgetPair) -> str:
    return " | ".join(f"{100 * share:.1f} %" for share in pair.shares)


def _task(task: str) -> str:
    return {AVERAGE: AVERAGE_SHOWN, ALL: "mean over tasks"}.get(task, task)
