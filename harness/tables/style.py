"""How figures look: a colour, a marker and a panel per method, everywhere the same."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from harness.store.sealed import SealedCell

DPI = 110
TOWER, DECODER, ADAPTIVE, CONTROL = KINDS = (
    "before the language model",
    "inside the language model",
    "adaptive",
    "controls",
)
"""The panels of a figure, in order. The first holds methods that read the vision tower or the image's tokens."""


class Look(NamedTuple):
    """How a method is drawn everywhere; `kind` is the panel that it stands in."""

    colour: str
    marker: str
    kind: str


UNPRUNED = Look("#000000", "*", "")
"""The unpruned model stands in every panel."""
LOOKS = {
    "none": UNPRUNED,
    "visionzip": Look("#B2182B", "H", TOWER),
    "fastervlm": Look("#1B7837", "D-", TOWER),
    "vispruner": Look("#5E3C99", "o-", TOWER),
    "divprune": Look("#0B8494", "o|", TOWER),
    "cdpruner": Look("#E36BAE", "s-", TOWER),
    "prumerge": Look("#4D4D00", "s|", TOWER),
    "hiprune": Look("#F4742B", ">", TOWER),
    "holov": Look("#2C5AA0", "p", TOWER),
    "vscan": Look("#6B4226", "d-", TOWER),
    "mmtok": Look("#5B8C00", "*|", TOWER),
    "fastv": Look("#0072B2", "o", DECODER),
    "sparsevlm": Look("#D55E00", "s", DECODER),
    "pyramiddrop": Look("#8C2D8C", "^-", DECODER),
    "dart": Look("#3B3B98", "<|", DECODER),
    "vtw": Look("#A6761D", "v|", DECODER),
    "fitprune": Look("#E7298A", "P|", DECODER),
    "v2drop": Look("#1B9E77", ">-", DECODER),
    "visipruner": Look("#009E73", "^", ADAPTIVE),
    "random": Look("#6E6E6E", "X", CONTROL),
    "uniform": Look("#C98A00", "D", CONTROL),
    "first": Look("#4AA3DF", "<", CONTROL),
    "pooling": Look("#C0609A", "P", CONTROL),
    "downsample": Look("#7A5C2E", "v", CONTROL),
    "knockout": Look("#9E0142", "X|", CONTROL),
}
"""Colour, marker and panel of the shipped methods, by name. Other names take spare colours and markers, by the name
alone; `kind_of` says their panel. A dash behind a marker of matplotlib makes it wide, a bar makes it tall."""
STRETCHED = {"-": (1.3, 0.6), "|": (0.6, 1.3)}
SPARE_COLOURS = ("#332288", "#882255", "#2E8B8B", "#8A8A1F", "#AA4499", "#117733")
SPARE_MARKERS = ("h", "d", "8", "^|", "v-")
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
    """Colour and marker of a method, the same in every figure and on the page whatever else is in it."""
    known = LOOKS.get(method)
    if known:
        return known.colour, known.marker
    number = zlib.crc32(method.encode())
    return (
        SPARE_COLOURS[number % len(SPARE_COLOURS)],
        SPARE_MARKERS[number // len(SPARE_COLOURS) % len(SPARE_MARKERS)],
    )


def kind_of(method: str, cells: Iterable[SealedCell]) -> str:
    """The panel of a method. One that `LOOKS` does not name is placed by its cells.

    Where no layer saw more visual tokens than stayed, the method reduced before the language model. Else an adaptive
    method stands with the adaptive ones, and any other inside the language model.
    """
    known = LOOKS.get(method)
    if known:
        return known.kind
    mine = [sealed for sealed in cells if sealed.cell.method == method]
    if all(sealed.costs.get("mean_visual") == sealed.costs.get("kept") for sealed in mine):
        return TOWER
    return ADAPTIVE if any(sealed.method_info.get("adaptive") for sealed in mine) else DECODER


def palette() -> list[int]:
    """256 colours as 768 numbers: greys, and each method's colour with its tints on white."""
    known = [one.colour for one in LOOKS.values() if one is not UNPRUNED] + list(SPARE_COLOURS)
    levels = (1.0, 0.78, 0.6, 0.42, 0.26, 0.12)
    tints = [
        [round(255 - share * (255 - int(colour[at : at + 2], 16))) for at in (1, 3, 5)]
        for colour in known
        for share in levels
    ]
    levels_of_grey = {*range(0, 256, 15), *(round(255 * share) for share in (0.9, 0.86, 0.82, 0.5, 0.35))}
    greys = [[level] * 3 for level in sorted(levels_of_grey)]
    spare = [[255] * 3] * (256 - len(greys) - len(tints))
    return [number for colour in (*greys, *tints, *spare) for number in colour]


def outline(method: str) -> str:
    """The marker of a method as the `d` of an SVG path, at most 1 from the centre, y downwards: for the page."""
    from matplotlib.path import Path

    marker = shape(look(method)[1])
    if isinstance(marker, str):
        from matplotlib.markers import MarkerStyle

        marker = MarkerStyle(marker)
    path = marker.get_path().transformed(marker.get_transform())
    if path.codes is None:
        path = Path(path.vertices, [Path.MOVETO, *[Path.LINETO] * (len(path.vertices) - 1)])
    largest = float(abs(path.vertices).max())
    letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "z"}
    parts = []
    for corners, code in path.iter_segments(simplify=False, curves=True):
        numbers = [f"{value:.3f}" for value in (corners.reshape(-1, 2) / largest * (1, -1) + 0.0).ravel()]
        parts.append(letters[code] + ("" if code == Path.CLOSEPOLY else ",".join(numbers)))
    return "".join(parts)


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
