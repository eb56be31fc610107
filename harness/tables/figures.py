"""Figures of sealed cells: score against dense prefill FLOPs and against mean visual tokens, averaged and task by task.

Every file is a function of the cells alone: SVG with a fixed salt and no date, PNG without metadata and with a fixed
palette, so equal cells give equal bytes with one version of matplotlib. A method has one colour and one marker
everywhere; a second setting of it has hollow markers and a broken line. Nothing is told by colour alone. Each kind of
method has a panel of its own, with the lines of the other kinds in grey behind.
"""

from __future__ import annotations

import io
import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from harness.core import stats
from harness.core.paths import make_folder
from harness.core.shown import printable
from harness.store.files import write_changed
from harness.store.sealed import SealedCell
from harness.tables.kept import Kept
from harness.tables.labels import label
from harness.tables.sections import NAN, Line, Section, average, mean, percent_of_unpruned
from harness.tables.style import DPI, HALVES, KINDS, STROKES, Curve, Point, kind_of, look, palette, shape, style
from harness.tables.text import unit_of

if TYPE_CHECKING:
    from harness.tables.compare import Findings

FOLDER = "figures"


class Axis(NamedTuple):
    """What a figure has along its x axis."""

    name: str
    title: str
    short: str
    value: Callable[[SealedCell], float]


def draw(studied: Sequence[tuple[Section, Findings | None]], folder: Path, kept: Kept | None = None) -> list[list[str]]:
    """Draw the figures of every full run that has pruned cells; returns their paths relative to `folder`, per section.

    With `kept`, a section whose figures are in the folder, drawn from the same cells by the same code, is not drawn
    again.
    """
    names: dict[str, int] = {}
    drawn: list[list[str]] = []
    for section, found in studied:
        if section.limit or all(s.cell.method == "none" for s in section.cells):
            drawn.append([])
            continue
        stem = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(section.short)).strip("-").lower()
        names[stem] = names.get(stem, 0) + 1  # sections that differ in their weights or prompt only
        stem += f"-{names[stem]}" if names[stem] > 1 else ""
        again = kept or Kept()
        drawn.append(again.figures(section, found is not None, folder, stem, partial(_section, section, found)))
    return drawn


def _section(section: Section, found: Findings | None, folder: Path, stem: str) -> Iterator[str]:
    for axis in _axes(section):
        with style():
            drawn = [("average", _average(section, found, axis)), ("tasks", _tasks(section, axis))]
            drawn += [("relevant", _relevant(section, found, axis))] if axis.name == "visual" else []
            for kind, figure in drawn:
                if figure is not None:
                    yield from _save(figure, folder, f"{stem}-{kind}-{axis.name}")


def _axes(section: Section) -> list[Axis]:
    most = max((s.costs.get("prefill_dense_flops", NAN) for s in section.cells), default=NAN)
    unit, name = (1e12, "TFLOPs") if most >= 1e12 else (1e9, "GFLOPs")
    return [
        Axis(
            "flops",
            f"language-model prefill, dense ({name}, 1 multiply-add = 2)",
            f"prefill, dense ({name})",
            lambda s: s.costs.get("prefill_dense_flops", NAN) / unit,
        ),
        Axis(
            "visual",
            "mean visual tokens (per decoder layer)",
            "mean visual tokens (per layer)",
            lambda s: s.costs.get("mean_visual", NAN),
        ),
    ]


def curves(section: Section, point: Callable[[Line], Point]) -> list[Curve]:
    """The series of a section as points by rising cost, without those that lack a coordinate.

    `64`, `64avg` and `0.35flops` ask for points of one curve; a budget without a number is another schedule and stands
    alone.
    """
    found = []
    for s in section.series():
        parts: dict[str, list[Point]] = {}
        for line in s.lines:
            p = point(line)
            if not (math.isnan(p.x) or math.isnan(p.y)):
                parts.setdefault("" if line.budget[0].isdigit() or line.budget == "none" else line.budget, []).append(p)
        label = "unpruned" if s.method == "none" else printable(s.label)
        found += [
            Curve(
                s.method, f"{label} at {name}" if name else label, s.variant, sorted(points, key=lambda p: (p.x, p.y))
            )
            for name, points in parts.items()
        ]
    return found


def _at_average(section: Section, found: Findings | None, axis: Axis) -> Callable[[Line], Point]:
    """Avg % of a line: the bar is the standard deviation over seeds where it has several in every task, else the
    interval."""

    def point(line: Line) -> Point:
        y, x = average(line, section), line.mean(axis.value)
        numbers = {sealed.cell.seed for seeds in line.cells.values() for sealed in seeds}
        if (
            len(numbers) > 1
            and not math.isnan(y)
            and all({s.cell.seed for s in seeds} == numbers for seeds in line.cells.values())
        ):
            each = [
                mean(
                    [
                        percent_of_unpruned(s, section.baseline(s.cell.task))
                        for task in section.averaged
                        for s in line.cells[task]
                        if s.cell.seed == n
                    ]
                )
                for n in numbers
            ]
            sd = statistics.stdev(each)
            return Point(line.budget, x, y, y - sd, y + sd, True)
        low, high = (
            found.averages.get((line.budget, line.name), (NAN, NAN)) if found and line.method != "none" else (NAN, NAN)
        )
        return Point(line.budget, x, y, low, high, False)

    return point


def _at_task(task: str, axis: Axis) -> Callable[[Line], Point]:
    def point(line: Line) -> Point:
        seeds = line.cells.get(task, ())
        if not seeds:
            return Point(line.budget, NAN, NAN, NAN, NAN, False)
        unit = 100.0 if seeds[0].maximum == 1 else 1.0
        x, y = mean([axis.value(s) for s in seeds]), unit * mean([s.score for s in seeds])
        if len(seeds) > 1:
            sd = unit * statistics.stdev(s.score for s in seeds)
            return Point(line.budget, x, y, y - sd, y + sd, True)
        interval = seeds[0].interval
        low, high = (unit * interval.low, unit * interval.high) if interval else (NAN, NAN)
        return Point(line.budget, x, y, low, high, False)

    return point


def panels(section: Section, drawn: Sequence[Curve]) -> dict[str, list[Curve]]:
    """The curves of each kind of method, in the order of `KINDS`; the unpruned model is in all of them.

    A schedule without a number has no label beside a line of its method and setting: its marker says both.
    """
    kinds = {c.method: kind_of(c.method, section.cells) for c in drawn}
    lines = {(c.method, c.variant) for c in drawn if c.points[0].budget[0].isdigit()}
    named = [
        c if c.points[0].budget[0].isdigit() or (c.method, c.variant) not in lines else c._replace(label="")
        for c in drawn
    ]
    found = {kind: [c for c in named if kinds[c.method] in (kind, "")] for kind in KINDS}
    return {kind: curves for kind, curves in found.items() if any(c.method != "none" for c in curves)} or {
        "": list(drawn)
    }


def _average(section: Section, found: Findings | None, axis: Axis) -> Any:
    """A panel per kind of method, labels beside the lines; None where no line has an average."""
    from matplotlib.figure import Figure

    drawn = curves(section, _at_average(section, found, axis))
    if not drawn:
        return None
    count = len(section.tasks)
    title = f"{printable(section.short[0])}: {', '.join(section.tasks)}"
    figure = Figure(dpi=DPI, layout="constrained")
    return _small_multiples(
        figure,
        panels(section, drawn),
        drawn,
        axis,
        f"Avg % of the unpruned score, {count} task{'s' if count > 1 else ''}",
        title,
    )


def _small_multiples(
    figure: Any,
    parts: Mapping[str, list[Curve]],
    drawn: Sequence[Curve],
    axis: Axis,
    y: str,
    title: str,
    chance: float = NAN,
) -> Any:
    """The panels side by side on the same axes, with a label beside each line; `chance`: as many tokens are all, and a
    dashed line shows the share of a random draw."""
    across = min(2, len(parts))
    down = math.ceil(len(parts) / across)
    figure.set_size_inches(5.6 * across if across > 1 else 7.2, 4.5 * down + 0.3)
    shared: Any = None
    placed = []
    for index, (kind, mine) in enumerate(parts.items()):
        axes = shared = figure.add_subplot(down, across, index + 1, sharex=shared, sharey=shared)
        _panel(axes, mine, axis, drawn)
        if not math.isnan(chance):
            left, right = axes.get_xlim()
            xs = [left * (right / left) ** (i / 60) for i in range(61)]
            axes.plot(xs, [min(100.0 * x / chance, 100.0) for x in xs], color="0.5", linewidth=0.9, linestyle="--")
            axes.set_xlim(left, right)
        axes.set_title(kind, loc="left", fontsize=9, fontweight="bold")
        if index % across == 0:
            axes.set_ylabel(y)
        if index >= len(parts) - across:  # the last of its column
            axes.set_xlabel(axis.title)
        placed.append((axes, mine))
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    note = _note(axis, drawn) + ("" if math.isnan(chance) else "; dashed: a random draw of as many tokens")
    figure.supxlabel(note, x=0.99, ha="right", fontsize=7, color="0.35")
    for axes, mine in placed:
        label(figure, axes, mine)
    return figure


def _relevant(section: Section, found: Findings | None, axis: Axis) -> Any:
    """Share of answer-relevant patches in the layers against visual tokens; None where no cell says."""
    from matplotlib.figure import Figure

    if found is None or not found.relevant:
        return None

    def share(sealed: SealedCell) -> float:
        one = found.relevant.get(sealed.identity)
        return one.layers if one else NAN

    def point(line: Line) -> Point:
        whole = len(line.cells) == len(section.tasks)
        return Point(line.budget, line.mean(axis.value), line.mean(share) if whole else NAN, NAN, NAN, False)

    drawn = curves(section, point)
    if not drawn:
        return None
    most = max((s.costs.get("n_visual", NAN) for s in section.cells), default=NAN)
    return _small_multiples(
        Figure(dpi=DPI, layout="constrained"),
        panels(section, drawn),
        drawn,
        axis,
        "answer-relevant patches present (%, mean over layers)",
        f"{printable(section.short[0])}: {', '.join(section.tasks)}",
        chance=most,
    )


def _tasks(section: Section, axis: Axis) -> Any:
    """A row of panels per task, a column per kind of method with its legend below; None where no cell has the cost."""
    from matplotlib.figure import Figure

    drawn = {task: mine for task in section.tasks if (mine := curves(section, _at_task(task, axis)))}
    if not drawn:
        return None
    tasks = list(drawn)
    parts = {task: panels(section, mine) for task, mine in drawn.items()}
    kinds = [kind for kind in (*KINDS, "") if any(kind in mine for mine in parts.values())]
    figure = Figure(figsize=(3.1 * len(kinds) + 0.4, 2.2 * len(tasks) + 2.6), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(len(tasks) + 1, len(kinds), height_ratios=[1.0] * len(tasks) + [0.85])
    handles: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
    first: Any = None
    for row, task in enumerate(tasks):
        beside: Any = None
        for column, kind in enumerate(kinds):
            if kind not in parts[task]:
                continue
            axes = figure.add_subplot(grid[row, column], sharex=first, sharey=beside)
            first, beside = first or axes, axes
            handles[kind] = _panel(axes, parts[task][kind], axis, drawn[task]) | handles[kind]
            cell = section.of_task(task)
            unit = unit_of(cell)
            axes.set_title(f"{task}, n={cell.counts['headline']:,}: {kind}", loc="left", fontsize=8, fontweight="bold")
            axes.tick_params(labelleft=column == 0, labelbottom=row == len(tasks) - 1)
            if column == 0:
                axes.set_ylabel(f"{cell.headline.replace('_', ' ')}\n({unit})", fontsize=8)
            if row == len(tasks) - 1:
                axes.set_xlabel(axis.short)
    for column, kind in enumerate(kinds):
        below = figure.add_subplot(grid[len(tasks), column])
        below.axis("off")
        shown = {name: handle for name, handle in handles[kind].items() if name}
        below.legend(shown.values(), shown.keys(), loc="upper left", frameon=False, fontsize=8, handlelength=2.6)
    figure.supxlabel(
        _note(axis, [c for mine in drawn.values() for c in mine]), x=0.99, ha="right", fontsize=7, color="0.35"
    )
    return figure


def _panel(axes: Any, drawn: Sequence[Curve], axis: Axis, everything: Sequence[Curve]) -> dict[str, Any]:
    """Lines, bars and the unpruned model over the front and the other lines of `everything`, which are grey; returns
    the handles of a legend."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    points = [p for s in everything for p in s.points]
    handles: dict[str, Any] = {}
    front = [points[i] for i in stats.pareto([p.x for p in points], [p.y for p in points])]
    right = max(p.x for p in points)
    if axis.name == "flops" and len(front) > 1:
        xs, ys = [*(p.x for p in front), right], [*(p.y for p in front), front[-1].y]
        axes.plot(
            xs,
            ys,
            drawstyle="steps-post",
            color="0.82",
            linewidth=5,
            solid_joinstyle="miter",
            solid_capstyle="butt",
            zorder=1,
        )
        handles["Pareto front of all"] = Line2D([], [], color="0.82", linewidth=5)
    shown = {s.method for s in drawn}
    for s in everything:
        if s.method not in shown and len(s.points) > 1:
            axes.plot([p.x for p in s.points], [p.y for p in s.points], color="0.86", linewidth=0.8, zorder=1.2)
    for s in drawn:
        colour, marker = look(s.method)
        if s.method == "none":
            axes.axhline(s.points[0].y, color="black", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1.5)
        stroke = STROKES[min(s.variant, len(STROKES) - 1)]
        fill = colour if s.variant == 0 else "white"
        for spread in (False, True):
            bars = [p for p in s.points if p.spread is spread and not math.isnan(p.low)]
            if bars:
                # a percentile interval may leave the point out by a hair
                ends = [[max(0.0, p.y - p.low) for p in bars], [max(0.0, p.high - p.y) for p in bars]]
                style = {
                    "ecolor": colour,
                    "elinewidth": 0.8,
                    "alpha": 0.55,
                    "capsize": 2.2 if spread else 0,
                    "capthick": 0.8,
                    "zorder": 2,
                }
                axes.errorbar([p.x for p in bars], [p.y for p in bars], ends, fmt="none", **style)
        look_of: dict[str, Any] = {
            "color": colour,
            "marker": shape(marker),
            "markerfacecolor": fill,
            "markeredgecolor": colour,
            "markeredgewidth": 0.9,
        }
        budget = s.points[0].budget
        if s.method != "none" and not budget[0].isdigit():
            half = HALVES.get(budget, "left")
            look_of |= {
                "marker": shape(marker, half),
                "fillstyle": half,
                "markerfacecolor": colour,
                "markerfacecoloralt": "white",
            }
        look_of |= {
            "markersize": 11 if s.method == "none" else 5.2,
            "linestyle": stroke if len(s.points) > 1 else "none",
            "linewidth": 1.2,
        }
        axes.plot([p.x for p in s.points], [p.y for p in s.points], zorder=3, **look_of)
        handles[s.label] = Line2D([], [], **(look_of | {"markersize": 8 if s.method == "none" else 5.2}))
    axes.set_xscale("log")
    left = min(p.x for p in points)
    axes.set_xlim(left / 1.18, right * 1.18)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)
    return handles


def _note(axis: Axis, drawn: Sequence[Curve]) -> str:
    """What the marks mean, for the figure's foot."""
    points = [p for s in drawn for p in s.points]
    parts = []
    if any(not math.isnan(p.low) for p in points):
        seeds = ", with caps ± sd over seeds" if any(p.spread for p in points) else ""
        parts.append(f"bars: 95 % interval over images{seeds}")
    parts += [
        f"{half} half of a marker filled: BUDGET={budget}"
        for budget, half in HALVES.items()
        if any(p.budget == budget for p in points)
    ]
    parts += ["thick grey: Pareto front of all"] if axis.name == "flops" else []
    return "; ".join([*parts, "thin grey: other kinds"])


def _save(figure: Any, folder: Path, name: str) -> list[str]:
    """Write name.svg and name.png; returns their paths relative to `folder`."""
    place = folder / FOLDER
    make_folder(place, "results")
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    # Digits beyond a thousandth of a point and indentation are half the file. Numbers below 1 may be scales: they stay.
    text = re.sub(
        r"\d+\.\d{4,}",
        lambda m: m[0] if float(m[0]) < 1 else f"{float(m[0]):.3f}".rstrip("0").rstrip("."),
        svg.getvalue().decode(),
    )
    text = re.sub(r"\n\s+", "\n", text)
    write_changed(place / f"{name}.svg", text.encode())
    write_changed(place / f"{name}.png", png(figure))
    return [f"{FOLDER}/{name}.svg", f"{FOLDER}/{name}.png"]


def png(figure: Any) -> bytes:
    """The figure as PNG, without metadata and in the colours of `palette`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    raw, out = io.BytesIO(), io.BytesIO()
    FigureCanvasAgg(figure).print_png(raw, metadata={"Software": None})
    _flat(Image.open(raw).convert("RGB")).save(out, format="png", optimize=True)
    return out.getvalue()


def _flat(image: Any) -> Any:
    """The image in the colours of `palette`, which take a third of the bytes; Pillow's own choice of colours forgets
    those that few pixels have, and its mapping is a few levels off."""
    from PIL import Image

    pixels = np.asarray(image, dtype=np.int64)
    seen, place = np.unique(pixels @ np.array([1 << 16, 1 << 8, 1]), return_inverse=True)
    colours = np.stack([seen >> 16, seen >> 8 & 255, seen & 255], axis=1)
    known = np.array(palette(), dtype=np.int64).reshape(-1, 3)
    apart = ((colours[:, None] - known[None]) ** 2).sum(axis=2)
    flat = Image.fromarray(apart.argmin(axis=1).astype(np.uint8)[place].reshape(pixels.shape[:2]))
    flat.putpalette(palette())  # makes the grey image one of palette entries
    return flat
