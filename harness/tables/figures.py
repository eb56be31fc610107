"""Figures of sealed cells: score against dense prefill FLOPs and against mean visual tokens, averaged and task by task.

Every file is a function of the cells alone: SVG with a fixed salt and no date, PNG without metadata and with a fixed palette, so equal
cells give equal bytes with one version of matplotlib. A method has one colour and one marker everywhere; a second setting of it has hollow
markers and a broken line. Nothing is told by colour alone.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import statistics
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.core import stats
from harness.core.errors import PrunebenchError
from harness.store.files import write_atomic
from harness.store.sealed import SealedCell
from harness.tables.sections import NAN, Line, Section, average, mean, percent_of_unpruned

if TYPE_CHECKING:
    from harness.tables.compare import Findings

FOLDER = "figures"
DPI = 150
LOOKS = {
    "none": ("#000000", "*"),
    "fastv": ("#0072B2", "o"),
    "sparsevlm": ("#D55E00", "s"),
    "visipruner": ("#009E73", "^"),
    "random": ("#6E6E6E", "X"),
    "uniform": ("#C98A00", "D"),
    "first": ("#4AA3DF", "<"),
    "pooling": ("#C0609A", "P"),
    "downsample": ("#7A5C2E", "v"),
}
"""Colour and marker of the shipped methods; others take spare ones, by name."""
SPARE_COLOURS = ("#332288", "#882255", "#2E8B8B", "#8A8A1F", "#AA4499", "#117733")
SPARE_MARKERS = ("p", "h", "d", ">", "8")
LEADER = 10.0  # points: a label further from its marker than this gets a line to it
HALVES = {"native": "top", "calibrated": "bottom"}
"""Which half of a marker is filled at a budget without a number; others fill the left one."""
STROKES = ("-", (0, (4, 2)), (0, (1, 1.5)))  # first, second and any further setting of a method
RC = {
    "svg.hashsalt": "prunebench",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
}


class Point(NamedTuple):
    """A line of a table as a point; `low` and `high` are the ends of its bar, NaN where it has none."""

    budget: str
    x: float
    y: float
    low: float
    high: float
    spread: bool
    """The bar is a standard deviation over seeds, not an interval."""


class Curve(NamedTuple):
    """One setting of one method over budgets."""

    method: str
    label: str
    variant: int
    """As in `Series`."""
    points: Sequence[Point]


class Axis(NamedTuple):
    """What a figure has along its x axis."""

    name: str
    title: str
    short: str
    value: Callable[[SealedCell], float]


def draw(studied: Sequence[tuple[Section, Findings | None]], folder: Path) -> list[list[str]]:
    """Draw the figures of every section that has pruned cells; returns their paths relative to `folder`, per section."""
    names: dict[str, int] = {}
    drawn: list[list[str]] = []
    for section, found in studied:
        if all(s.cell.method == "none" for s in section.cells):
            drawn.append([])
            continue
        stem = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(section.short)).strip("-").lower()
        names[stem] = names.get(stem, 0) + 1  # sections that differ in their weights or prompt only
        stem += f"-{names[stem]}" if names[stem] > 1 else ""
        drawn.append(list(_section(section, found, folder, stem)))
    return drawn


def _section(section: Section, found: Findings | None, folder: Path, stem: str) -> Iterator[str]:
    for axis in _axes(section):
        with _style():
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
        Axis("visual", "mean visual tokens (per decoder layer)", "mean visual tokens (per layer)", lambda s: s.costs.get("mean_visual", NAN)),
    ]


def curves(section: Section, point: Callable[[Line], Point]) -> list[Curve]:
    """The series of a section as points by rising cost, without those that lack a coordinate.

    `64`, `64avg` and `0.35flops` ask for points of one curve; a budget without a number is another schedule and stands alone.
    """
    found = []
    for s in section.series():
        parts: dict[str, list[Point]] = {}
        for line in s.lines:
            p = point(line)
            if not (math.isnan(p.x) or math.isnan(p.y)):
                parts.setdefault("" if line.budget[0].isdigit() or line.budget == "none" else line.budget, []).append(p)
        label = "unpruned" if s.method == "none" else s.label
        found += [
            Curve(s.method, f"{label} at {name}" if name else label, s.variant, sorted(points, key=lambda p: (p.x, p.y)))
            for name, points in parts.items()
        ]
    return found


def _at_average(section: Section, found: Findings | None, axis: Axis) -> Callable[[Line], Point]:
    """Avg % of a line: the bar is the standard deviation over seeds where it has several in every task, else the interval."""

    def point(line: Line) -> Point:
        y, x = average(line, section), line.mean(axis.value)
        numbers = {sealed.cell.seed for seeds in line.cells.values() for sealed in seeds}
        if len(numbers) > 1 and not math.isnan(y) and all({s.cell.seed for s in seeds} == numbers for seeds in line.cells.values()):
            each = [
                mean([percent_of_unpruned(s, section.baseline(s.cell.task)) for seeds in line.cells.values() for s in seeds if s.cell.seed == n])
                for n in numbers
            ]
            sd = statistics.stdev(each)
            return Point(line.budget, x, y, y - sd, y + sd, True)
        low, high = found.averages.get((line.budget, line.name), (NAN, NAN)) if found and line.method != "none" else (NAN, NAN)
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


def look(method: str) -> tuple[str, str]:
    """Colour and marker of a method, the same in every figure whatever else is in it."""
    number = zlib.crc32(method.encode())
    return LOOKS.get(method) or (SPARE_COLOURS[number % len(SPARE_COLOURS)], SPARE_MARKERS[number // len(SPARE_COLOURS) % len(SPARE_MARKERS)])


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
    axes.set_title(f"{section.model}: {', '.join(section.tasks)}", loc="left", fontsize=9, fontweight="bold")
    _notes(axes, axis, any(p.spread for s in drawn for p in s.points))
    _label(figure, axes, drawn)
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
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8, handlelength=2.6)
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
        axes.plot(xs, ys, drawstyle="steps-post", color="0.82", linewidth=5, solid_joinstyle="miter", solid_capstyle="butt", zorder=1)
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
                style = {"ecolor": colour, "elinewidth": 0.8, "alpha": 0.55, "capsize": 2.2 if spread else 0, "capthick": 0.8, "zorder": 2}
                axes.errorbar([p.x for p in bars], [p.y for p in bars], ends, fmt="none", **style)
        look_of: dict[str, Any] = {"color": colour, "marker": marker, "markerfacecolor": fill, "markeredgecolor": colour, "markeredgewidth": 0.9}
        budget = s.points[0].budget
        if s.method != "none" and not budget[0].isdigit():
            look_of |= {"fillstyle": HALVES.get(budget, "left"), "markerfacecolor": colour, "markerfacecoloralt": "white"}
        look_of |= {"markersize": 11 if s.method == "none" else 5.2, "linestyle": stroke if len(s.points) > 1 else "none", "linewidth": 1.2}
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


def _label(figure: Any, axes: Any, drawn: Sequence[Curve]) -> None:
    """A label beside each series, where it covers the least: a greedy search over places around its points.

    Deterministic: places are tried in a fixed order and the first of the best wins. Far ones get a leader.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()  # settles the layout, which the places of labels depend on
    figure.set_layout_engine("none")
    frame = axes.get_window_extent(renderer)

    def pixels(x: float, y: float) -> tuple[float, float]:
        px, py = axes.transData.transform((x, y))
        return float(px), float(py)

    owner = np.array([index for index, s in enumerate(drawn) for _ in s.points])
    marks = np.array([pixels(p.x, p.y) for s in drawn for p in s.points])
    strokes = [dot for s in drawn for dot in _dots([pixels(p.x, p.y) for p in s.points])]
    strokes += [dot for s in drawn for p in s.points if not math.isnan(p.low) for dot in _dots([pixels(p.x, p.low), pixels(p.x, p.high)])]
    for s in drawn:
        if s.method == "none":
            y = pixels(s.points[0].x, s.points[0].y)[1]
            strokes += _dots([(frame.x0, y), (frame.x1, y)])
    traced = np.array(strokes)
    taken = [_box(text.get_window_extent(renderer).extents) for text in axes.texts]
    rise = DPI / 72.0
    # the longest lines first: they have the fewest good places
    for index, s in sorted(enumerate(drawn), key=lambda item: (-len(item[1].points), item[1].label)):
        colour = "black" if s.method == "none" else look(s.method)[0]
        text = axes.text(0, 0, s.label.replace(" (", "\n("), fontsize=8, color=colour, zorder=5, transform=None)
        size = text.get_window_extent(renderer)
        width, height = size.width, size.height
        best: tuple[float, float, float, float, float] | None = None
        for preference, p in enumerate([s.points[0], s.points[-1], *s.points[1:-1]]):
            px, py = pixels(p.x, p.y)
            for away, turn in itertools.product((6.0, 8.0, 11.0, 15.0, 20.0, 28.0, 38.0, 50.0), range(16)):
                dx, dy = math.cos(turn * math.pi / 8), math.sin(turn * math.pi / 8)
                cx, cy = px + dx * (away * rise + width / 2), py + dy * (away * rise + height / 2)
                box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
                gap = float(_gap(np.array([[px, py]]), box)[0])
                to_marks = _gap(marks, box)
                # a label that is nearer to another series' marker is read as that one's
                stranger = float(to_marks[owner != index].min()) if len(drawn) > 1 else math.inf
                cost = 400.0 * sum(_meet(box, other, 2 * rise) for other in taken)
                cost += 60.0 * int((to_marks < 4 * rise).sum()) + 12.0 * int((_gap(traced, box) < rise).sum())
                cost += 30.0 * (stranger < 1.3 * gap) + 1.0 * gap / rise + 3.0 * preference
                if gap > LEADER * rise:
                    path = np.array(_dots([(px, py), _nearest((px, py), box)]))
                    apart = np.hypot(*(path[:, None, :] - marks[owner != index][None]).transpose(2, 0, 1)) if len(drawn) > 1 else path
                    cost += 60.0 * bool((apart < 4 * rise).any())
                cost += 1000.0 * (min(box[0] - frame.x0, frame.x1 - box[2], box[1] - frame.y0, frame.y1 + 8 * rise - box[3]) < 0)
                if best is None or cost < best[0] - 1e-9:
                    best = (cost, cx, cy, px, py)
        assert best is not None  # a series has points
        _, cx, cy, px, py = best
        box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
        taken.append(box)
        inverse = axes.transData.inverted().transform
        if _gap(np.array([[px, py]]), box)[0] > LEADER * rise:
            (x0, y0), (x1, y1) = inverse(_nearest((px, py), box)), inverse((px, py))
            axes.plot([x0, x1], [y0, y1], color=colour, linewidth=0.6, zorder=2.5)
        # Pixels are this canvas's and an SVG has others: the place is kept in data.
        text.set(transform=axes.transData, position=inverse((cx, cy)), horizontalalignment="center", verticalalignment="center")


def _dots(corners: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Points every few pixels along a polyline."""
    found: list[tuple[float, ...]] = []
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        steps = max(1, int(math.hypot(x1 - x0, y1 - y0) // 6))
        found += [(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps) for i in range(steps + 1)]
    return found


def _box(extents: Sequence[float]) -> tuple[float, ...]:
    return tuple(map(float, extents))


def _meet(a: Sequence[float], b: Sequence[float], gap: float) -> bool:
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


def _nearest(dot: Sequence[float], box: Sequence[float]) -> tuple[float, float]:
    """The point of a box that is nearest to a dot."""
    return min(max(dot[0], box[0]), box[2]), min(max(dot[1], box[1]), box[3])


def _gap(dots: NDArray[np.float64], box: Sequence[float]) -> NDArray[np.float64]:
    """Pixels from each dot (n, 2) to the nearest edge of a box; 0 inside."""
    x, y = dots[:, 0], dots[:, 1]
    across = np.maximum(np.maximum(box[0] - x, x - box[2]), 0.0)
    return np.asarray(np.hypot(across, np.maximum(np.maximum(box[1] - y, y - box[3]), 0.0)))


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change a figure
        matplotlib.rcParams.update(RC)
        yield


def _save(figure: Any, folder: Path, name: str) -> list[str]:
    """Write name.svg and name.png; returns their paths relative to `folder`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    place = folder / FOLDER
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PrunebenchError(f"cannot create {place}: {error.strerror}; choose a results folder that you can write") from None
    svg, raw, png = io.BytesIO(), io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    FigureCanvasAgg(figure).print_png(raw, metadata={"Software": None})
    # a few flat colours: a palette says the same in a third of the bytes
    Image.open(raw).convert("RGB").quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(png, format="png", optimize=True)
    # Digits beyond a thousandth of a point and indentation are half the file. Numbers below 1 may be scales: they stay.
    text = re.sub(r"\d+\.\d{4,}", lambda m: m[0] if float(m[0]) < 1 else f"{float(m[0]):.3f}".rstrip("0").rstrip("."), svg.getvalue().decode())
    text = re.sub(r"\n\s+", "\n", text)
    write_atomic(place / f"{name}.svg", text.encode())
    write_atomic(place / f"{name}.png", png.getvalue())
    return [f"{FOLDER}/{name}.svg", f"{FOLDER}/{name}.png"]
