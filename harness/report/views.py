"""Sealed cells arranged for looking at them: what may stand side by side, what tells lines apart, and the images of
samples.

The report and `prunebench show` share this. Nothing here imports torch, a model or lmms-eval.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image, ImageOps

from harness.core import grids
from harness.core.command import evaluation
from harness.core.errors import PrunebenchError
from harness.core.shape import Grid
from harness.store.sealed import SealedCell
from harness.tables.sections import FOLLOW_UP, Section, Series
from harness.tables.style import look, outline

if TYPE_CHECKING:
    from tasks.sources import DataSource

RIGHT = 0.5
"""A sample counts as answered right from this score on; only TextVQA has scores between 0 and 1."""
_PADDING = (122, 116, 104)  # CLIP's mean colour, which is what LLaVA pads with
_FACTS = {
    "model_fingerprint": "weights",
    "dtype": "dtype",
    "device_type": "device",
    "kernel": "kernel",
    "processing": "processing",
    "numerics_version": "numerics",
}


@dataclass(frozen=True)
class Questions:
    """A task on one set of questions: all its cells have the same unpruned cell, measured or not."""

    task: str
    label: str
    baseline: SealedCell | None
    cells: tuple[SealedCell, ...]
    primary: bool
    """The set of its task that most cells have; of equals, the one measured last."""

    @property
    def n(self) -> int:
        """Questions."""
        return self.cells[0].cell.n_samples


@dataclass(frozen=True)
class Protocol:
    """Cells that may be compared: one model asked in one way."""

    model: str
    label: str
    facts: Mapping[str, str]
    questions: tuple[Questions, ...]

    @property
    def cells(self) -> list[SealedCell]:
        return [sealed for questions in self.questions for sealed in questions.cells]


def protocols(cells: Iterable[SealedCell]) -> list[Protocol]:
    """The cells by model and measurement, then by set of questions, in a fixed order whatever the input's."""
    groups: defaultdict[tuple[str, ...], defaultdict[str, list[SealedCell]]] = defaultdict(lambda: defaultdict(list))
    known = {sealed.identity: sealed for sealed in cells}
    for _, sealed in sorted(known.items()):
        cell = sealed.cell
        groups[(cell.model, *(str(getattr(cell, name)) for name in _FACTS))][cell.baseline().identity()].append(sealed)
    asked = {key: any(s.asked.follow_up for some in sets.values() for s in some) for key, sets in groups.items()}
    found = []
    for key, sets in sorted(groups.items()):
        same_model = [other for other in groups if other[0] == key[0] and asked[other] == asked[key]]
        differing = [i for i in range(1, len(key)) if len({other[i] for other in same_model}) > 1]
        label = ", ".join([key[0], *(f"{list(_FACTS.values())[i - 1]} {key[i]}" for i in differing)])
        label += f", {FOLLOW_UP}" if asked[key] else ""
        facts = dict(zip(_FACTS.values(), key[1:], strict=True))
        found.append(Protocol(key[0], label, facts, tuple(_questions(sets, known))))
    return found


def _questions(sets: Mapping[str, list[SealedCell]], known: Mapping[str, SealedCell]) -> list[Questions]:
    by_task: defaultdict[str, list[tuple[str, list[SealedCell]]]] = defaultdict(list)
    for baseline, members in sets.items():
        by_task[members[0].cell.task].append((baseline, members))
    out = []
    for task, alternatives in sorted(by_task.items()):

        def weight(item: tuple[str, list[SealedCell]]) -> tuple[int, str, str]:
            return (len(item[1]), max(str(s.provenance.get("started", "")) for s in item[1]), item[0])

        sizes = Counter(members[0].cell.n_samples for _, members in alternatives)
        for rank, (baseline, members) in enumerate(sorted(alternatives, key=weight, reverse=True)):
            cell = members[0].cell
            label = task if rank == 0 else f"{task} ({cell.n_samples} questions)"
            if rank and sizes[cell.n_samples] > 1:
                label = f"{task} ({cell.n_samples} questions, data {cell.data_fingerprint[:6]}, {baseline[:6]})"
            out.append(Questions(task, label, known.get(baseline), tuple(members), rank == 0))
    return out


def compared(protocol: Protocol) -> tuple[Questions, ...]:
    """The sets of questions that compare something: those with a pruned cell. Where nothing is pruned, the primary set
    of each task. `offered` of the page's script has the same rule."""
    pruned = tuple(q for q in protocol.questions if any(s.cell.method != "none" for s in q.cells))
    return pruned or tuple(q for q in protocol.questions if q.primary)


def lines(protocol: Protocol) -> dict[str, str]:
    """Identity of each cell -> the name of its line, as in the leaderboard: the method, and what tells its settings
    apart."""
    return {
        sealed.identity: series.name
        for series in _series(protocol)
        for line in series.lines
        for seeds in line.cells.values()
        for sealed in seeds
    }


def looks(protocol: Protocol) -> dict[str, dict[str, Any]]:
    """The name of each line -> its method; the method's colour and marker as in the figures (an SVG path of size 1);
    and which of the method's settings it is, from 0."""
    found = {}
    for series in _series(protocol):
        colour, _ = look(series.method)
        found[series.name] = {
            "method": series.method,
            "colour": colour,
            "mark": outline(series.method),
            "setting": series.variant,
        }
    return found


def _series(protocol: Protocol) -> list[Series]:
    return Section(protocol.model, [protocol.model], protocol.cells, {}).series()


def command(
    sealed: SealedCell,
    *,
    unpruned: bool = False,
    tasks: Sequence[str] = (),
    method: str = "",
    budget: str = "",
    results: str | None = None,
) -> str:
    """The command that makes a cell like this one: the unpruned one of the same questions, or the same with other
    tasks, method or budget."""
    asked = sealed.asked.unpruned() if unpruned else sealed.asked
    if method:
        asked = replace(asked, method=method, knobs={})
    if budget:
        sizes = sealed.method_info["budget_knobs"]
        asked = replace(
            asked, budget=budget, knobs={name: value for name, value in asked.knobs.items() if name not in sizes}
        )
    return evaluation(asked, tasks=tasks, results=results)


class Raster(NamedTuple):
    """The finest grid of an image's tokens, and the number of its first token among them."""

    grid: Grid
    start: int


def raster_of(sealed: SealedCell, image: str, n_visual: int) -> Raster | None:
    """The finest of the grids over the whole image that the `n_visual` tokens of a sample form; None where the cell
    names none that add up to them, and for several images. Of grids that are all alike, the last is over the whole
    image: the others are its tiles."""
    if len(grids.by_image(sealed.provenance.get("grids"), image)) > 1:
        return None
    own = grids.of_image(sealed.provenance.get("grids"), image)
    if sum(grid.tokens for grid in own) != n_visual or not own:
        return None
    tiles = len(own) > 1 and len(set(own)) == 1
    finest = len(own) - 1 if tiles else max(range(len(own)), key=lambda i: own[i].rows * own[i].cols)
    return Raster(own[finest], sum(grid.tokens for grid in own[:finest]))


def check_one_image(sealed: SealedCell, key: str, image: str) -> None:
    """Raise PrunebenchError for a sample of several images."""
    n = len(grids.by_image(sealed.provenance.get("grids"), image))
    if n > 1:
        raise PrunebenchError(
            f"{key}: expected a sample of one image, found {n}: kept tokens are drawn on one image."
            f" The file samples.parquet of {sealed.folder} records those of all {n}, in order."
        )


def depth(protocol: Protocol) -> int | None:
    """Decoder layers of the model, as its cells say."""
    return next((int(s.provenance["decoder_layers"]) for s in protocol.cells if "decoder_layers" in s.provenance), None)


def data_of(data: str, sealed: SealedCell) -> DataSource:
    """The data of a measured cell: where a user says they are now, else as they were asked for."""
    from tasks.sources import source_of_data

    return source_of_data(data or sealed.asked.data, sealed.cell.stands_for or sealed.cell.model)


class Pictures:
    """The images of samples, from the data that their cells were measured on. Tables are read once.

    `source` says where the data of a cell are.
    """

    def __init__(self, source: Callable[[SealedCell], DataSource]) -> None:
        self._source = source
        self._rows: dict[tuple[str, str], Any] = {}

    def table(self, sealed: SealedCell) -> tuple[str, str]:
        """Which table holds the images of a cell: the data, by name or folder, and the task."""
        source = self._source(sealed)
        return source.name if source.name != "local" else str(source.root), sealed.cell.task

    def encoded(self, sealed: SealedCell, key: str, image: str) -> bytes:
        """The image's file of sample `key`. Raises PrunebenchError where it is not the one with the image key `image`,
        and for a sample of several images."""
        from tasks import sources

        check_one_image(sealed, key, image)

        table = name, _ = self.table(sealed)
        if table not in self._rows:
            self._rows[table] = sources.read(sources.task_spec(sealed.cell.task), self._source(sealed))
        rows = self._rows[table]
        row = key.rpartition("/")[2]
        found = rows.encoded(int(row)) if row.isdecimal() and int(row) < len(rows.docs) else None
        data = (found or {}).get("bytes")
        if not isinstance(data, bytes):
            raise PrunebenchError(
                f"{key}: expected a row with an image in the {name} data, found none; name the data that was measured"
                " with --data"
            )
        if hashlib.sha256(data).hexdigest()[:16] != image:
            raise PrunebenchError(
                f"{key}: the image in the {name} data is not the one that was measured: expected image key {image}, "
                f"found {hashlib.sha256(data).hexdigest()[:16]}. Name the data that was measured with --data."
            )
        return data

    def _upright(self, sealed: SealedCell, key: str, image: str) -> Image.Image:
        from tasks.choice import is_ours

        if not is_ours(sealed.asked.task):
            return self._by_name(sealed, key, image)
        data = self.encoded(sealed, key, image)
        try:
            with Image.open(io.BytesIO(data)) as opened:
                return ImageOps.exif_transpose(opened).convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise PrunebenchError(f"{key}: the image does not decode ({error}); replace the data file") from None

    def _by_name(self, sealed: SealedCell, key: str, image: str) -> Image.Image:
        """The image of a task that lmms-eval's own code shows. Raises PrunebenchError for a prompt of several."""
        from tasks import lmms  # heavy: lmms-eval

        table = name, _ = self.table(sealed)
        if table not in self._rows:
            limit = sealed.asked.limit
            task = lmms.load_task(
                sealed.asked.task, self._source(sealed), int(limit) if limit and limit.isdecimal() else None, 0
            )
            self._rows[table] = {sample.key: sample for sample in task.samples}
        sample = self._rows[table].get(key)
        if sample is None or sample.image_key != image:
            raise PrunebenchError(
                f"{key}: expected a question with image key {image} in the {name} data, found"
                f" {sample.image_key if sample else 'no such question'}; name the data that was measured with --data"
            )
        picture: Image.Image = sample.load_image()
        return picture

    def square(self, sealed: SealedCell, key: str, image: str, side: int) -> Image.Image:
        """What the model saw, RGB, at most `side` pixels: padded to a square or cut to one, as its image processor
        does; stretched to one of `side` where the model saw all of an image of any shape."""
        picture = self._upright(sealed, key, image)
        if not grids.one_size(sealed.provenance.get("grids")) and not sealed.images_by.endswith("+pad"):
            return picture.resize((side, side), Image.Resampling.LANCZOS)  # seen whole, whatever its shape
        if sealed.images_by.endswith("+pad"):
            size = max(picture.size)
            padded = Image.new("RGB", (size, size), _PADDING)
            padded.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
        else:
            size = min(picture.size)
            left, top = (picture.width - size) // 2, (picture.height - size) // 2
            padded = picture.crop((left, top, left + size, top + size))
        return padded if size <= side else padded.resize((side, side), Image.Resampling.LANCZOS)
