"""Labels of points in a figure: placed where they hide nothing, by trying places around each point."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.tables.style import DPI, Curve, look

LEADER = 10.0  # points: a label further from its marker than this gets a line to it


def label(figure: Any, axes: Any, drawn: Sequence[Curve]) -> None:
    """The label of each series where it covers the least: a greedy search over places around its points.

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
    strokes += [
        dot
        for s in drawn
        for p in s.points
        if not math.isnan(p.low)
        for dot in _dots([pixels(p.x, p.low), pixels(p.x, p.high)])
    ]
    for s in drawn:
        if s.method == "none":
            y = pixels(s.points[0].x, s.points[0].y)[1]
            strokes += _dots([(frame.x0, y), (frame.x1, y)])
    traced = np.array(strokes).reshape(-1, 2)  # none where each line is one point without a bar
    taken = [_box(text.get_window_extent(renderer).extents) for text in axes.texts]
    rise = DPI / 72.0
    # the longest lines first: they have the fewest good places
    for index, s in sorted(enumerate(drawn), key=lambda item: (-len(item[1].points), item[1].label)):
        if not s.label:
            continue
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
                cost = 400.0 * sum(_meet(box, other, 2 * rise) for other in taken)
                cost += 1.0 * gap / rise + 3.0 * preference
                cost += 1000.0 * (
                    min(box[0] - frame.x0, frame.x1 - box[2], box[1] - frame.y0, frame.y1 + 8 * rise - box[3]) < 0
                )
                if best is not None and cost >= best[0]:
                    continue  # the other terms only add, and take most of the time
                to_marks = _gap(marks, box)
                # a label that is nearer to another series' marker is read as that one's
                stranger = float(to_marks[owner != index].min()) if len(drawn) > 1 else math.inf
                cost += 60.0 * int((to_marks < 4 * rise).sum()) + 12.0 * int((_gap(traced, box) < rise).sum())
                cost += 30.0 * (stranger < 1.3 * gap)
                if gap > LEADER * rise:
                    path = np.array(_dots([(px, py), _nearest((px, py), box)]))
                    apart = (
                        np.hypot(*(path[:, None, :] - marks[owner != index][None]).transpose(2, 0, 1))
                        if len(drawn) > 1
                        else path
                    )
                    cost += 60.0 * bool((apart < 4 * rise).any())
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
        text.set(
            transform=axes.transData,
            position=inverse((cx, cy)),
            horizontalalignment="center",
            verticalalignment="center",
        )


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
