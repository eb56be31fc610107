"""Figures of sealed cells: score against dense prefill FLOPs and against mean visual tokens, averaged and task by task.

Every file is a function of the cells alone: SVG with a fixed salt and no date, PNG without metadata and with a fixed
palette, so equal cells give equal bytes with one version of matplotlib. A method has one colour and one marker
everywhere; a second setting of it has hollow markers and a broken line. Nothing is told by colour alone.
"""

from __future__ import annotations

import io
import math
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.core import stats
from harness.core.paths import make_folder
from harness.core.shown import printable
from harness.store.files import write_changed
from harness.store.sealed import SealedCell
from harness.tables.kept import Kept
from harness.tables.labels import label
from harness.tables.sections import NAN, Line, Section, average, mean, percent_of_unpruned
from harness.tables.style import DPI, HALVES, STROKES, Curve, Point, look, shape, style

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
    """Draw the figures of every section that has pruned cells; returns their paths relative to `folder`, per section.

    With `kept`, a section whose figures are in the folder, drawn from the same cells by the same code, is not drawn
    again.
    """
    names: dict[str, int] = {}
    drawn: list[list[str]] = []
    for section, found in studied:
        if all(s.cell.method == "none" for s in section.cells):
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
            for kind, figure in (("average", _average(section, found, axis)), ("tasks", _tasks(section, axis))):
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
                        for seeds in line.cells.values()
                        for s in seeds
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


def _average(section: Section, found: Findings | None, axis: Axis) -> Any:
    """One panel, labels beside the lines; None where no line has an average."""
    from matplotlib.figure import Figure

    drawn = curves(section, _at_average(section, found, axis))
    if not drawn:
        return None
    figure = Figure(figsize=(7.2, 4.6), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    _panel(axes, drawn, axis)
    count = len(section.tasks)
    axes.set_ylabel(f"Avg % of the unpruned score, {count} task{'s' if count > 1 else ''}")
    axes.set_xlabel(axis.title)
    axes.set_title(
        f"{printable(section.short[0])}: {', '.join(section.tasks)}", loc="left", fontsize=9, fontweight="bold"
    )
    _notes(axes, axis, any(p.spread for s in drawn for p in s.points))
    label(figure, axes, drawn)
    return figure


def _tasks(section: Section, axis: Axis) -> Any:
    """A panel per task under one legend."""
    from matplotlib.figure import Figure

    tasks = section.tasks
    across = min(2, len(tasks))
    down = math.ceil(len(tasks) / across)
    figure = Figure(figsize=(3.7 * across if across > 1 else 5.0, 2.7 * down + 0.9), dpi=DPI, layout="constrained")
    handles: dict[str, Any] = {}
    for index, task in enumerate(tasks):
        axes = figure.add_subplot(down, across, index + 1)
        drawn = curves(section, _at_task(task, axis))
        handles = _panel(axes, drawn, axis) | handles
        cell = section.of_task(task)
        unit = "%" if cell.maximum == 1 else f"points of {cell.maximum:g}"
        axes.set_ylabel(f"{cell.headline.replace('_', ' ')} ({unit})")
        axes.set_title(f"{task}, n={cell.counts['headline']:,}", loc="left", fontsize=9, fontweight="bold")
        if index >= len(tasks) - across:  # the last of its column
            axes.set_xlabel(axis.short)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8,
        handlelength=2.6,
    )
    return figure


def _panel(axes: Any, drawn: Sequence[Curve], axis: Axis) -> dict[str, Any]:
    """Front, lines, bars and the unpruned model; returns the handles of a legend."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    points = [p for s in drawn for p in s.points]
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
        handles["Pareto front"] = Line2D([], [], color="0.82", linewidth=5)
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


def _notes(axes: Any, axis: Axis, seeds: bool) -> None:
    text = "bars: 95 % interval over images" + ("; with caps: ± sd over seeds" if seeds else "")
    text += "; grey: Pareto front" if axis.name == "flops" else ""
    axes.text(0.995, 0.012, text, transform=axes.transAxes, ha="right", va="bottom", fontsize=7, color="0.35")


def _save(figure: Any, folder: Path, name: str) -> list[str]:
    """Write name.svg and name.png; returns their paths relative to `folder`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    place = folder / FOLDER
    make_folder(place, "results")
    svg, raw, png = io.BytesIO(), io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    FigureCanvasAgg(figure).print_png(raw, metadata={"Software": None})
    # a few flat colours: a palette says the same in a third of the bytes
    Image.open(raw).convert("RGB").quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        png, format="png", optimize=True
    )
    # Digits beyond a thousandth of a point and indentation are half the file. Numbers below 1 may be scales: they stay.
    text = re.sub(
        r"\d+\.\d{4,}",
        lambda m: m[0] if float(m[0]) < 1 else f"{float(m[0]):.3f}".rstrip("0").rstrip("."),
        svg.getvalue().decode(),
    )
    text = re.sub(r"\n\s+", "\n", text)
    write_changed(place / f"{name}.svg", text.encode())
    write_changed(place / f"{name}.png", png.getvalue())
    return [f"{FOLDER}/{name}.svg", f"{FOLDER}/{name}.png"]
