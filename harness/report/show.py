"""One sample as a picture: the image, and per method the visual tokens that were kept wherever the kept set changed.

Read from sealed cells; no model is loaded.
"""

from __future__ import annotations

import difflib
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from harness.core import keeps
from harness.core.command import whole_number
from harness.core.errors import PrunebenchError, unknown
from harness.core.shown import printable
from harness.core.spelling import command, given
from harness.report import views
from harness.report.embedded import text_of
from harness.store.sealed import SealedCell
from harness.store.store import Store
from harness.tables.sections import budget_order

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

SIDE = 336  # pixels of a panel
_GAP, _MARGIN, _LINE = 18, 28, 24
_PAPER, _INK, _MUTED, _GOOD, _BAD = (252, 251, 248), (29, 28, 26), (94, 90, 83), (26, 107, 60), (163, 33, 43)
PREFERRED_BUDGET = "64"


@dataclass(frozen=True)
class Shown:
    """A method's row of the picture: what it answered and where its kept set changed."""

    name: str
    answer: str
    right: bool
    flipped: bool
    score: float
    notes: str
    n_visual: int
    """Tokens of the image as the model saw it: a method may have shrunk the picture."""
    raster: views.Raster | None
    """The finest grid of these tokens; None where the cell records none, or the prompt has several images."""
    stages: tuple[keeps.Stage, ...]
    """Empty where the cell recorded none."""


@dataclass(frozen=True)
class ShownSample:
    """One sample under several methods."""

    key: str
    question: str
    target: str
    image: Image.Image
    unpruned: Shown | None
    methods: tuple[Shown, ...]


def find(
    cells: Sequence[SealedCell], key: str, methods: Sequence[str], budget: str = "", model: str = "", data: str = ""
) -> ShownSample:
    """The sample under the methods at a budget. Raises PrunebenchError for what was not measured, with the command that
    measures it.

    Without `budget` it is the one that the methods were measured at, 64 where there are several. Where several
    models have all of these, `model` says which.
    """
    if not cells:
        raise PrunebenchError(
            f"expected sealed cells, found none; `{command('eval', method='visipruner', budget='64')}` makes"
            f" some; {given('results')} names another folder"
        )
    if not methods:
        raise PrunebenchError(f"no method was named: give {given('method', 'visipruner,fastv')} or one of them")
    from harness.method import method_class  # torch

    # a method from a file is measured under its name
    known_as = {sealed.cell.method: sealed.asked.method for sealed in cells}
    spelt = {method_class(name).name if ":" in name else name: known_as.get(name, name) for name in methods}
    methods = list(spelt)
    protocols = views.protocols(cells)
    models = sorted({p.model for p in protocols})
    if model and model not in models:
        raise unknown("model", model, models)
    task = key.partition("/")[0]
    if not model and len(models) > 1:
        having = _having(cells, task, methods, budget) or models
        if len(having) > 1:
            raise PrunebenchError(
                f"the results hold cells of several models: name one with {given('model')} (of {', '.join(having)})"
            )
        model = having[0]
    of_task = [(p, q) for p in protocols if p.model == (model or models[0]) for q in p.questions if q.task == task]
    if not of_task:
        tasks = sorted({s.cell.task for s in cells})
        known_tasks = f"(tasks: {', '.join(tasks)}); a sample is named as in {tasks[0]}/000012"
        raise PrunebenchError(f"sample {key!r}: no cell of task {task!r} is sealed {known_tasks}")
    frames: dict[str, pd.DataFrame] = {}

    def rows(sealed: SealedCell) -> pd.DataFrame:
        if sealed.identity not in frames:
            frames[sealed.identity] = sealed.samples().set_index("key")
        return frames[sealed.identity]

    holding = [(p, q) for p, q in of_task if key in rows(q.cells[0]).index]
    if not holding:
        known = sorted({k for _, q in of_task for k in rows(q.cells[0]).index})
        raise PrunebenchError(
            f"no sample {key!r} was measured; near it: {', '.join(_near(key, known))} ({len(known)} samples of {task})"
        )
    # of several sets with this sample, the one asked afresh, then where most of the methods were measured, then the
    # primary set
    holding.sort(
        key=lambda pq: (
            bool(pq[1].cells[0].asked.follow_up),
            -sum(m in {s.cell.method for s in pq[1].cells} for m in methods),
            not pq[1].primary,
        )
    )
    protocol, questions = holding[0]
    named = views.lines(protocol)
    picked = [sealed for name in methods for sealed in _pick(questions, named, name, budget, spelt[name])]
    base = questions.baseline

    was = _right(base, rows(base).loc[key].to_dict()) if base else None

    def named_row(sealed: SealedCell) -> Shown:
        at = "" if sealed.cell.budget == "none" else f" at {sealed.cell.budget}"
        seed = f", seed {sealed.cell.seed}" if sealed.cell.seed else ""
        return shown(f"{named[sealed.identity]}{at}{seed}", sealed, rows(sealed).loc[key].to_dict(), was)

    row = rows(picked[0]).loc[key].to_dict()
    image = views.Pictures(partial(views.data_of, data)).square(picked[0], key, str(row["image"]), SIDE)
    return ShownSample(
        key,
        str(row["question"]),
        str(row["target"]),
        image.resize((SIDE, SIDE)),
        named_row(base) if base else None,
        tuple(named_row(sealed) for sealed in picked),
    )


def _having(cells: Sequence[SealedCell], task: str, methods: Sequence[str], budget: str) -> list[str]:
    """The models on which every method was measured on this task, at this budget where one is named."""
    found: dict[str, set[str]] = {}
    for sealed in cells:
        cell = sealed.cell
        if cell.task == task and (cell.method == "none" or budget in ("", cell.budget)):
            found.setdefault(cell.model, set()).add(cell.method)
    return sorted(model for model, known in found.items() if known.issuperset(methods))


def shown(name: str, sealed: SealedCell, row: Mapping[Any, Any], was: bool | None) -> Shown:
    """A cell's row of the picture under a name. `row`: its sample; `was`: whether the unpruned model was right, None
    where that is not known."""
    right, n_visual = _right(sealed, row), int(row["n_visual"])
    return Shown(
        name,
        str(row["answer"]),
        right,
        was is not None and right != was,
        float(row["score"]),
        _notes(row),
        n_visual,
        views.raster_of(sealed, str(row["image"]), n_visual),
        _changes(keeps.decode(text_of(row["keeps"]), n_visual)) if "keeps" in row else (),
    )


def _right(sealed: SealedCell, row: Mapping[Any, Any]) -> bool:
    return bool(sealed.metric.how_well(row["score"]) >= views.RIGHT)


def _pick(questions: views.Questions, named: dict[str, str], method: str, budget: str, spelt: str) -> list[SealedCell]:
    """The cells of a method (or of one of its lines, as the report names it) at a budget, one seed of each line.

    `spelt`: the method as a command names it, which may be a file and a class.
    """
    from harness.method import method_class, registered

    of = [s for s in questions.cells if method in (s.cell.method, named[s.identity])]
    root = questions.cells[0].folder.parents[2]
    results = None if root == Path("results/local") else str(root)
    if not of:
        known = {s.cell.method for s in questions.cells}
        if spelt == method and method not in registered():
            raise unknown("method", method, known | set(registered()))
        near = difflib.get_close_matches(method, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        example = next((s for s in questions.cells if s.asked.budget), questions.cells[0])
        takes = bool(method_class(spelt).budget_knobs)
        wanted = (budget or example.asked.budget or PREFERRED_BUDGET) if takes else ""
        other = views.command(example, unpruned=not takes, method=spelt, budget=wanted, results=results)
        measured = ", ".join(sorted(known))
        raise PrunebenchError(
            f"{questions.label} was not measured with {method!r}{hint}; measured: {measured}; `{other}` measures it"
        )
    budgets = sorted({s.cell.budget for s in of}, key=budget_order)
    at = budget or (budgets[0] if len(budgets) == 1 else PREFERRED_BUDGET)
    found = [s for s in of if s.cell.budget == at or s.cell.method == "none"]
    if not found:
        other = views.command(of[0], budget=at, results=results)
        raise PrunebenchError(
            f"{questions.label} was measured with {method} at {', '.join(budgets)}, not at {at}: name one with"
            f" {given('budget')}, or measure it with `{other}`"
        )
    one_seed: dict[str, SealedCell] = {}
    for sealed in sorted(found, key=lambda s: s.cell.seed):
        one_seed.setdefault(named[sealed.identity], sealed)
    return list(one_seed.values())


def _near(key: str, known: Sequence[str]) -> list[str]:
    """Up to three known keys: the nearest numbers, or the nearest spellings where the key has no number."""
    number = key.rpartition("/")[2]
    asked = whole_number(number)
    if asked is not None:
        by_distance = sorted(
            (k for k in known if whole_number(k.rpartition("/")[2]) is not None),
            key=lambda k: abs(int(k.rpartition("/")[2]) - asked),
        )
        return sorted(by_distance[:3])
    return difflib.get_close_matches(key, known, n=3, cutoff=0.0)


def _changes(stages: Sequence[keeps.Stage]) -> tuple[keeps.Stage, ...]:
    """The stages that differ from the one before: a method may select the same tokens again."""
    return tuple(
        s
        for i, s in enumerate(stages)
        if not i or s.added != stages[i - 1].added or bool((s.keep != stages[i - 1].keep).any())
    )


def _notes(row: Any) -> str:
    """The layers that a method noted: "fusion layer 3, no exit layer"."""
    noted = {name: name.replace("_", " ") for name in row if name.endswith("_layer")}
    return ", ".join(f"{words} {int(row[name])}" if row[name] >= 0 else f"no {words}" for name, words in noted.items())


def lines(sample: ShownSample) -> list[str]:
    """The picture's facts as text, for the terminal."""
    out = [f"{sample.key}  {printable(sample.question)}", f"expected  {printable(sample.target)}"]
    base = sample.unpruned
    for shown in ((base,) if base else ()) + tuple(m for m in sample.methods if not base or m.name != base.name):
        kept = ", ".join(f"{int(s.keep.sum()) + s.added} from layer {s.layer}" for s in shown.stages) or "not recorded"
        out.append(
            f"{printable(shown.name)}: {shown.answer!r} ({_verdict(shown)}); kept {kept}"
            + (f"; {shown.notes}" if shown.notes else "")
        )
    return out


def _verdict(shown: Shown) -> str:
    if math.isnan(shown.score):
        return "not scored by itself"
    words = "right" if shown.right else "wrong"
    words += f", score {shown.score:.2f}" if 0 < shown.score < 1 else ""
    return words + (", flipped" if shown.flipped else "")


def picture(sample: ShownSample) -> Image.Image:
    """The sample as one image: the whole picture beside question and answers, then a row of panels per method."""
    widest = max([1, *(len(m.stages) for m in sample.methods)])
    width = 2 * _MARGIN + max(widest * (SIDE + _GAP) - _GAP, 2 * SIDE + _GAP + 120)
    columns = (width - 2 * _MARGIN) // 10
    row = _LINE * 2 + SIDE + _LINE + _GAP * 2
    heights = [row if m.stages else _LINE * 4 for m in sample.methods]
    sheet = Image.new("RGB", (width, 2 * _MARGIN + SIDE + _GAP + sum(heights)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    small, normal, large = (_font(size) for size in (15, 17, 23))
    sheet.paste(sample.image, (_MARGIN, _MARGIN))
    left, top = _MARGIN + SIDE + _GAP, _MARGIN
    draw.text((left, top), sample.key, _MUTED, small)
    top += _LINE
    for line in _wrapped(sample.question, max(24, (columns * 10 - SIDE) // 12), 6):
        draw.text((left, top), line, _INK, large)
        top += 30
    top += 8
    for line in _wrapped(f"expected: {sample.target}", max(24, (columns * 10 - SIDE) // 9), 3):
        draw.text((left, top), line, _INK, normal)
        top += _LINE
    if sample.unpruned:
        for line in _wrapped(
            f"unpruned: {sample.unpruned.answer} ({_verdict(sample.unpruned)})", max(24, (columns * 10 - SIDE) // 9), 3
        ):
            draw.text((left, top), line, _GOOD if sample.unpruned.right else _BAD, normal)
            top += _LINE
    top = _MARGIN + SIDE + _GAP
    for shown, height in zip(sample.methods, heights, strict=True):
        draw.line((_MARGIN, top, width - _MARGIN, top), _MUTED)
        title = _wrapped(
            f"{shown.name}: {shown.answer} ({_verdict(shown)})" + (f"; {shown.notes}" if shown.notes else ""),
            columns,
            1,
        )[0]
        draw.text((_MARGIN, top + 8), title, _GOOD if shown.right else _BAD, normal)
        if not shown.stages:
            draw.text(
                (_MARGIN, top + 8 + _LINE),
                "kept tokens were not recorded for this cell; measure it again with " + given("fresh", True),
                _MUTED,
                small,
            )
        for i, stage in enumerate(shown.stages):
            x, y = _MARGIN + i * (SIDE + _GAP), top + 8 + _LINE + 6
            sheet.paste(shaded(sample.image, stage, shown.raster), (x, y))
            merged = f" + {stage.added} merged" if stage.added else ""
            draw.text(
                (x, y + SIDE + 5),
                f"from layer {stage.layer}: {int(stage.keep.sum())}{merged} of {shown.n_visual} tokens",
                _INK,
                small,
            )
        top += height
    return sheet


def shaded(image: Image.Image, stage: keeps.Stage, raster: views.Raster | None) -> Image.Image:
    """The image with the patches of its finest grid that were dropped faded. Raises PrunebenchError where no grid is
    known."""
    if raster is None or raster.start + raster.grid.tokens > len(stage.keep):
        raise PrunebenchError(
            f"expected the grids of the visual tokens, found {len(stage.keep)} tokens on others; a picture of them"
            " cannot be drawn"
        )
    grid, own = raster.grid, stage.keep[raster.start : raster.start + raster.grid.tokens]
    mask = Image.new("L", (grid.cols, grid.rows))
    # a newline at the end of a row is no part of the image
    mask.putdata([0 if kept else 220 for kept in own.reshape(grid.rows, -1)[:, : grid.cols].flatten()])
    return Image.composite(
        Image.new("RGB", image.size, _PAPER), image, mask.resize(image.size, Image.Resampling.NEAREST)
    )


def _wrapped(text: str, columns: int, most: int) -> list[str]:
    found = textwrap.wrap(printable(" ".join(text.split())), columns, break_long_words=True) or [""]
    return found if len(found) <= most else [*found[: most - 1], found[most - 1][: columns - 1] + "…"]


def _font(size: int) -> ImageFont.FreeTypeFont:
    # the one of matplotlib, a dependency, has far more scripts than Pillow's own
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def write(
    results: Path,
    key: str,
    methods: Sequence[str],
    budget: str = "",
    model: str = "",
    data: str = "",
    out: Path | None = None,
    damaged: list[str] | None = None,
) -> tuple[Path, ShownSample]:
    """Write the picture of a sample and return its path; default `<results>/show/<sample>-<methods>-<budget>.png`.

    `out` ends in .png, or in .jpg for half of the bytes; another ending is a PNG.
    `damaged` takes what is said of damaged cells, which are left out.
    """
    sample = find(Store(results).cells([] if damaged is None else damaged), key, methods, budget, model, data)
    path = (
        out
        or results
        / "show"
        / f"{'-'.join(re.sub(r'[^A-Za-z0-9_.]+', '-', part) for part in (key, *methods, budget) if part)}.png"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = picture(sample)
        if path.suffix.lower() in (".jpg", ".jpeg"):
            drawn.save(path, "JPEG", quality=80, optimize=True)
        else:  # a palette takes half of the bytes, and no difference is seen
            drawn.quantize(96).save(path, "PNG", optimize=True)
    except OSError as error:
        raise PrunebenchError(
            f"cannot write {path}: {error.strerror or error}; choose a file that you can write with --out"
        ) from None
    except ValueError as error:
        if isinstance(error, PrunebenchError):
            raise
        raise PrunebenchError(f"cannot write {path}: {error}; give a name that ends in .png") from None
    return path, sample
