"""Figures: what is drawn is what was measured, legible in grey, and the same bytes for the same cells."""

from __future__ import annotations

import dataclasses
import random
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from factories import answered, sealed_cell
from helpers import run
from PIL import Image

from harness.core.paths import TOP
from harness.method import registered
from harness.method.about import about
from harness.store.sealed import SealedCell
from harness.tables import compare, figures, leaderboard, style
from harness.tables import sections as blocks
from harness.tables.relevant import Relevant

REFERENCE = TOP / "results" / "reference"
TASKS = ("gqa", "pope")
METHODS = ("fastv", "sparsevlm", "visipruner", "uniform", "first", "pooling", "downsample", "somebody's")


def board(root: Path, methods: tuple[str, ...] = METHODS, seeds: int = 3) -> list[SealedCell]:
    """Methods on crossing lines, with scores that lie close together."""
    draw = random.Random(0)
    cells = [answered(root, "none", "none", [1.0] * 60, t) for t in TASKS]
    for budget in (192, 128, 64, 32, 16):
        share = 0.3 + 0.6 * budget / 192
        for t in TASKS:
            cells += [
                answered(root, m, str(budget), [float(draw.random() < share) for _ in range(60)], t) for m in methods
            ]
            cells += [
                answered(root, "random", str(budget), [float(draw.random() < share) for _ in range(60)], t, seed=s)
                for s in range(seeds)
            ]
    return cells


def section_of(cells: list[SealedCell]) -> tuple[blocks.Section, compare.Findings]:
    (section,) = blocks.sections(blocks.distinct(cells))
    return section, compare.study(section)


def test_files_are_whole_small_and_shown_in_the_leaderboard(tmp_path: Path) -> None:
    markdown = leaderboard.write(board(tmp_path / "cells"), tmp_path, figures=True)[1].read_text()
    names = {
        f"mini-float32-cpu-limit-default-{kind}-{axis}" for kind in ("average", "tasks") for axis in ("flops", "visual")
    }
    drawn = sorted((tmp_path / "figures").iterdir())
    assert {p.stem for p in drawn} == names
    assert {p.suffix for p in drawn} == {".svg", ".png"}
    for path in drawn:
        if path.suffix == ".png":
            image = Image.open(path)
            assert min(image.size) > 500
            assert path.stat().st_size < 250_000
            assert "Software" not in image.info
            assert f"](figures/{path.name})" in markdown
        else:
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
            assert "<dc:date>" not in path.read_text()
    assert sum(path.stat().st_size for path in drawn) < 1_500_000


def test_equal_cells_give_equal_bytes_whatever_their_order_and_the_users_style(tmp_path: Path) -> None:
    import matplotlib

    cells = [
        c
        for c in board(tmp_path / "cells", ("fastv", "uniform"))
        if c.cell.task == "pope" and c.cell.budget in ("none", "64", "16")
    ]
    leaderboard.write(cells, tmp_path / "a", figures=True)
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9, "svg.fonttype": "none"}):
        leaderboard.write(cells[::-1], tmp_path / "b", figures=True)
        assert matplotlib.rcParams["font.size"] == 20, "a user's settings are left as they were"
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / x / "figures").iterdir()} for x in "ab")
    assert first == second
    assert len(first) == 8


def test_points_are_the_measured_ones(tmp_path: Path) -> None:
    cells = [answered(tmp_path, "none", "none", [1.0] * 40, t) for t in TASKS]
    cells += [
        answered(tmp_path, "fastv", b, [float(i < 40 * s) for i in range(40)], t)
        for b, s in (("64", 0.5), ("16avg", 0.25))
        for t in TASKS
    ]
    cells += [answered(tmp_path, "fastv", "native", [1.0] * 40, t) for t in TASKS]
    cells += [
        answered(tmp_path, "random", "64", [float(i < 4 * n) for i in range(40)], t, seed=n)
        for n in (2, 3, 4)
        for t in TASKS
    ]
    section, found = section_of(cells)
    flops, visual = figures._axes(section)
    drawn = {c.label: c for c in figures.curves(section, figures._at_average(section, found, visual))}
    assert set(drawn) == {"unpruned", "fastv", "fastv at native", "random (3 seeds)"}
    assert [(p.budget, p.x, p.y) for p in drawn["fastv"].points] == [
        ("64", 64, 50),
        ("16avg", 576, 25),
    ], "by cost, whatever the unit"
    point = drawn["fastv"].points[0]
    assert (point.low, point.high) == found.averages["64", "fastv"]
    assert not point.spread
    (point,) = drawn["random (3 seeds)"].points
    assert (point.y, point.low, point.high, point.spread) == (
        pytest.approx(30),
        pytest.approx(20),
        pytest.approx(40),
        True,
    )
    (point,) = drawn["unpruned"].points
    assert (point.x, point.y) == (576, 100)
    one = {c.label: c for c in figures.curves(section, figures._at_task("pope", flops))}
    assert one["fastv"].points[0].x == pytest.approx(1.64)  # GFLOPs
    interval = next(c.interval for c in cells if (c.cell.method, c.cell.budget, c.cell.task) == ("fastv", "64", "pope"))
    assert interval is not None
    assert (one["fastv"].points[0].low, one["fastv"].points[0].high) == (100 * interval.low, 100 * interval.high)


def test_a_line_without_every_task_is_in_its_task_and_not_in_the_average(tmp_path: Path) -> None:
    cells = [answered(tmp_path, "none", "none", [1.0] * 40, t) for t in TASKS] + [
        answered(tmp_path, "fastv", "64", [1.0, 0.0] * 20, "pope")
    ]
    section, found = section_of(cells)
    axis = figures._axes(section)[0]
    assert [c.label for c in figures.curves(section, figures._at_average(section, found, axis))] == ["unpruned"]
    assert [c.label for c in figures.curves(section, figures._at_task("pope", axis))] == ["fastv", "unpruned"]


def test_sections_without_a_pruned_cell_have_no_figure_and_others_share_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lone = [answered(tmp_path, "none", "none", [1.0] * 20)]
    leaderboard.write(lone, tmp_path / "none", figures=True)
    assert not (tmp_path / "none" / "figures").exists()
    two = [
        answered(tmp_path, m, b, [1.0, 0.0] * 10, model_fingerprint=w)
        for m, b in (("none", "none"), ("fastv", "64"))
        for w in ("w1", "w2")
    ]
    drawn: list[str] = []
    monkeypatch.setattr(figures, "_average", lambda *_: "a figure")
    monkeypatch.setattr(figures, "_tasks", lambda *_: "a figure")
    monkeypatch.setattr(figures, "_save", lambda _, folder, name: drawn.append(name) or [name])
    figures.draw([(s, None) for s in blocks.sections(blocks.distinct(two))], tmp_path)
    assert len(set(drawn)) == len(drawn) == 8


def test_every_method_has_a_look_of_its_own_that_does_not_need_colour() -> None:
    known = style.LOOKS.values()
    assert len({one.marker for one in known}) == len({one.colour for one in known}) == len(style.LOOKS)
    assert not {one.marker for one in known} & set(style.SPARE_MARKERS)
    assert style.look("somebody's") == style.look("somebody's")
    assert len({style.look(f"method{i}") for i in range(200)}) == len(style.SPARE_COLOURS) * len(style.SPARE_MARKERS)
    listed = {name for name, cls in registered().items() if cls.__module__.startswith("methods.")}
    assert listed <= set(style.LOOKS), "a shipped method has no look of its own"
    assert all((one.kind in style.KINDS) != (name == "none") for name, one in style.LOOKS.items())


def test_the_panel_of_a_shipped_method_is_that_of_its_kind() -> None:
    """The table is typed, for tables load no torch; the method's own words say the kind."""
    panels = {
        **dict.fromkeys(("image", "tower"), style.TOWER),
        **dict.fromkeys(("control", "study"), style.CONTROL),
        "language model": style.DECODER,
        "adaptive": style.ADAPTIVE,
    }
    for name, cls in registered().items():
        if cls.__module__.startswith("methods.") and name != "none":
            assert style.LOOKS[name].kind == panels[about(cls).kind], name


@pytest.mark.parametrize(
    ("mean_visual", "adaptive", "kind"),
    [
        (64, False, style.TOWER),
        (64, True, style.TOWER),
        (149.3, False, style.DECODER),
        (149.3, True, style.ADAPTIVE),
    ],
)
def test_a_method_that_is_not_in_the_table_is_placed_by_its_cells(
    mean_visual: float, adaptive: bool, kind: str
) -> None:
    info = {"adaptive": adaptive, "query_aware": True, "budget_knobs": ["keep"]}
    cells = [
        sealed_cell("somebody's", "64", costs={"kept": 64, "mean_visual": mean_visual}, method_info=info),
        sealed_cell("fastv", "64", costs={"kept": 64, "mean_visual": 80}),
    ]
    assert style.kind_of("somebody's", cells) == kind
    assert style.kind_of("fastv", cells[:1]) == style.DECODER, "the table has the last word on its own names"


def test_colours_survive_the_palette_of_a_png(tmp_path: Path) -> None:
    leaderboard.write(board(tmp_path / "cells"), tmp_path, figures=True)
    image = Image.open(tmp_path / "figures" / "mini-float32-cpu-limit-default-average-flops.png").convert("RGB")
    found = {colour for _, colour in image.getcolors(256) or ()}
    assert image.getpixel((2, image.height // 2)) == (255, 255, 255)
    for method in METHODS:
        colour = style.look(method)[0]
        wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        assert tuple(wanted) in found, method
    assert (230, 230, 230) in found, "the grid is grey"


def test_each_kind_has_a_panel_with_the_unpruned_model_in_it(tmp_path: Path) -> None:
    cells = board(tmp_path)
    cells += [answered(tmp_path, m, "native", [1.0, 0.0] * 30, t) for m in ("fastv", "prumerge") for t in TASKS]
    section, found = section_of(cells)
    drawn = figures.curves(section, figures._at_average(section, found, figures._axes(section)[0]))
    parts = figures.panels(section, drawn)
    assert list(parts) == [kind for kind in style.KINDS if kind in parts]
    assert {c.method for c in parts[style.ADAPTIVE]} == {"none", "visipruner"}
    assert {c.method for c in parts[style.CONTROL]} == {"none", "random", "uniform", "first", "pooling", "downsample"}
    assert sorted(c.label for c in parts[style.DECODER] if c.method == "fastv") == ["", "fastv"]
    assert "prumerge at native" in [c.label for c in parts[style.TOWER]], "no other line of it says the name"
    lone = [c for c in drawn if c.method == "none"]
    assert figures.panels(section, lone) == {"": lone}


@pytest.mark.parametrize("half", ["full", "top", "left"])
def test_every_marker_can_be_drawn_and_half_filled(half: str) -> None:
    from matplotlib.markers import MarkerStyle

    for marker in [one.marker for one in style.LOOKS.values()] + list(style.SPARE_MARKERS):
        drawn = MarkerStyle(style.shape(marker, half), fillstyle=half)
        if marker != "*":
            assert (drawn.get_alt_path() is not None) == (half != "full"), marker


def test_settings_of_one_method_share_its_colour_and_differ_in_fill(tmp_path: Path) -> None:
    cells = [answered(tmp_path, "random", b, [1.0, 0.0] * 10, knobs={"boundary": 0}) for b in ("64", "32")]
    cells += [
        answered(tmp_path, "random", "64", [1.0, 0.0] * 10, knobs={"boundary": 2}),
        answered(tmp_path, "none", "none", [1.0] * 20),
    ]
    section, found = section_of(cells)
    drawn = figures.curves(section, figures._at_average(section, found, figures._axes(section)[0]))
    assert [(c.label, c.variant, len(c.points)) for c in drawn if c.method == "random"] == [
        ("random boundary=0", 0, 2),
        ("random boundary=2", 1, 1),
    ]


def test_labels_of_twenty_lines_do_not_cover_each_other_or_leave_the_picture(tmp_path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    methods = tuple(name for name in style.LOOKS if name not in ("none", "random", "knockout"))
    section, found = section_of(board(tmp_path, (*methods, "somebody's"), seeds=2))
    for axis in figures._axes(section):
        with style.style():
            figure = figures._average(section, found, axis)
            renderer = FigureCanvasAgg(figure).get_renderer()
            parts = figures.panels(section, figures.curves(section, figures._at_average(section, found, axis)))
            assert len(figure.axes) == len(parts) == 4
            boxes = []
            for axes, mine in zip(figure.axes, parts.values(), strict=True):
                assert {text.get_text().split("\n")[0] for text in axes.texts} == {
                    c.label.split(" (")[0] for c in mine if c.label
                }
                boxes += [(text.get_text(), text.get_window_extent(renderer)) for text in axes.texts]
            assert len(boxes) == len(methods) + 2 + len(parts), "random and somebody's; the unpruned model in each"
            for i, (name, box) in enumerate(boxes):
                assert not any(box.overlaps(other) for _, other in boxes[:i]), name
                assert box.x0 >= 0
                assert box.x1 <= figure.bbox.x1
                assert box.y1 <= figure.bbox.y1


def test_relevant_patches_are_drawn_beside_a_random_draw(tmp_path: Path) -> None:
    section, found = section_of(board(tmp_path, ("fastv",), seeds=1))
    axis = figures._axes(section)[1]
    assert figures._relevant(section, found, axis) is None, "no cell says"
    shares = {c.identity: Relevant(5, 0.0, 10.0 + len(c.cell.task)) for c in section.cells if c.cell.method == "fastv"}
    with style.style():
        figure = figures._relevant(section, dataclasses.replace(found, relevant=shares), axis)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["fastv"], "the others have no share"
    (line,) = [one for one in axes.lines if one.get_marker() == "o" and len(one.get_xdata()) > 1]
    assert set(line.get_ydata()) == {13.5}, "the mean of gqa and pope"


def test_the_front_is_drawn_as_steps_of_the_points_on_it(tmp_path: Path) -> None:
    section, found = section_of(board(tmp_path, ("fastv",), seeds=1))
    with style.style():
        figure = figures._average(section, found, figures._axes(section)[0])
    (front,) = [line for line in figure.axes[0].lines if line.get_drawstyle() == "steps-post"]
    points = {
        (p.x, p.y)
        for c in figures.curves(section, figures._at_average(section, found, figures._axes(section)[0]))
        for p in c.points
    }
    xs, ys = front.get_xdata(), front.get_ydata()
    assert set(zip(xs[:-1], ys[:-1], strict=True)) <= points
    assert (np.diff(xs) >= 0).all()
    assert (np.diff(ys) >= 0).all()
    for x, y in points:
        assert y <= max(v for u, v in zip(xs, ys, strict=True) if u <= x)


@pytest.mark.parametrize("methods", [("fastv",), ("fastv", "dart")], ids=len)
def test_cells_without_an_unpruned_one_are_drawn_by_the_command(
    methods: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each line is one point without a bar in the figure of relevant patches: its labels have no stroke to keep off."""
    for method in methods:
        folder = sorted((REFERENCE / "cells" / "pope").glob(f"mini-{method}-64-*"))[0]
        shutil.copytree(folder, tmp_path / "cells" / "pope" / folder.name)
    code, _, err = run(capsys, monkeypatch, "leaderboard", "--results", str(tmp_path))
    assert (code, err) == (0, "")
    names = {"-".join(path.stem.split("-")[-2:]) for path in (tmp_path / "figures").iterdir()}
    assert names == {"tasks-flops", "tasks-visual", "relevant-visual"}


def test_cells_without_a_cost_have_no_figure_of_it(tmp_path: Path) -> None:
    cells = [answered(tmp_path, m, "64", [1.0] * 60, costs={"mean_visual": 64.0}) for m in ("fastv", "dart")]
    written = leaderboard.write(cells, tmp_path, figures=True)[1].read_text()
    assert "tasks visual" in written
    assert "tasks flops" not in written
