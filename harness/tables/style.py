"""How figures look: a colour and a marker per method, everywhere the same."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

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
    "visionzip": ("#B2182B", "H"),
    "fastervlm": ("#1B7837", "D-"),
    "vispruner": ("#5E3C99", "o-"),
    "divprune": ("#0B8494", "o|"),
    "cdpruner": ("#E36BAE", "s-"),
    "prumerge": ("#4D4D00", "s|"),
    "hiprune": ("#F4742B", ">"),
    "holov": ("#2C5AA0", "p"),
    "vtw": ("#8C564B", "v-"),
    "fitprune": ("#17A398", "^|"),
}
"""Colour and marker of the shipped methods; others take spare ones, by name. A dash behind a marker of matplotlib makes
it wide, a bar makes it tall."""
STRETCHED = {"-": (1.3, 0.6), "|": (0.6, 1.3)}
SPARE_COLOURS = ("#332288", "#882255", "#2E8B8B", "#8A8A1F", "#AA4499", "#117733")
SPARE_MARKERS = ("h", "d", "8")
HALVES = {"native": "top", "calibrated": "bottom"}
"""Which half of a marker is filled at a budget without a number; others fill the left one."""
STROKES = ("-", (0, (4, 2)), (0, (1, 1.5)))  # first, second and any further setting of a method
RC = {
    "svg.hashsalt": "prunebench",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 8.5,
    "text.parse_math": False,  # a name may hold dollars
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


def look(method: str) -> tuple[str, str]:
    """Colour and marker of a method, the same in every figure whatever else is in it."""
    number = zlib.crc32(method.encode())
    return LOOKS.get(method) or (
        SPARE_COLOURS[number % len(SPARE_COLOURS)],
        SPARE_MARKERS[number // len(SPARE_COLOURS) % len(SPARE_MARKERS)],
    )


def shape(marker: str, filled: str = "full") -> Any:
    """A marker of `look` as matplotlib takes it; `filled`: which half, or "full"."""
    stretch = STRETCHED.get(marker[1:])
    if stretch is None:
        return marker
    from matplotlib.markers import MarkerStyle
    from matplotlib.transforms import Affine2D

    return MarkerStyle(marker[0], fillstyle=filled, transform=Affine2D().scale(*stretch))


@contextmanager
def style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change a figure
        matplotlib.rcParams.update(RC)
        yield
