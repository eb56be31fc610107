"""The answers of a section's cells at one task: scores, agreement, and resamples, read once and then kept.

Samples are read only for cells whose scores are not kept (harness/tables/kept.py). Every cell's file is compared with
the one that was hashed before, and hashed again where it is another.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.core import stats
from harness.core.errors import PrunebenchError
from harness.core.spelling import given
from harness.store.sealed import SealedCell
from harness.tables.kept import Kept
from harness.tables.sections import Section

COLUMNS = ("key", "image", "question_id", "category", "answer", "score")


class _Read(NamedTuple):
    """What a cell's samples say, of the questions that its headline metric is computed from, sorted by key."""

    questions: str
    """Digest of their keys and images."""
    layout: str
    """Digest of all that `stats.units` reads."""
    table: Any
    """pyarrow, with the columns `COLUMNS`."""


class TaskAnswers:
    """The answers of a section's cells at one task, aligned by key.

    `stream` names independent draws of images and seeds: answers about other images than another section's need
    draws of their own.
    """

    def __init__(self, section: Section, task: str, kept: Kept, stream: str = ""):
        self.task = task
        self.stream = stream
        self.base = section.baseline(task)
        self.kept = kept
        self.cells = [s for s in section.cells if s.cell.task == task]
        self.cells += [self.base] if self.base and all(s is not self.base for s in self.cells) else []
        self.tested = self.cells[0].metric.tested
        """Do scores of questions say how sure the metric is? Else nothing is compared but answers."""
        self.averaged = self.cells[0].metric.higher_is_better
        """Is the task in Avg %?"""
        self.agreement: dict[str, float] = {}
        """identity -> percent of questions answered as the unpruned model does."""
        # By the object: an identity is text, and comparisons look thousands of times.
        self._layouts: dict[int, str] = {}
        self._packed: dict[int, Any] = {}
        self._scores: dict[int, NDArray[np.float64]] = {}
        self._resamples: dict[int, NDArray[np.float64]] = {}
        self._lines: dict[tuple[str, tuple[int, ...]], NDArray[np.float64]] = {}
        self._units: dict[tuple[str, str], stats.Units] = {}
        self._base: tuple[_Read, NDArray[Any]] | None = None
        self.n = self.images = 0
        self.unlike = float("nan")
        questions = ""
        for sealed in self.cells:
            found, layout, packed = self._look(sealed)
            if questions and found != questions:
                raise PrunebenchError(
                    f"{sealed.folder}: expected the {self.n} questions of {self.cells[0].folder}, since both cells name"
                    f" the data {sealed.cell.data_fingerprint[:16]}, found other keys or images. Measure the"
                    f" wrong one again ({given('fresh', True)}), or remove it (`prunebench results rm`)"
                )
            self._layouts[id(sealed)], self._packed[id(sealed)] = layout, packed
            self.kept.hold(self._layout_key(sealed))  # the next new cell needs it
            if not questions:
                questions = found
                # of the first cell: all have the same images
                shape = self.kept.of(self.kept.key("shape", [sealed]), lambda s=sealed: self._shape(s))  # type: ignore[misc]
                self.n, self.images = shape["questions"], shape["images"]
                self.unlike = shape["unlike"]
        self._base = None

    def scores(self, sealed: SealedCell) -> NDArray[np.float64]:
        """(questions,) 0..1, sorted by key: how well each is answered, which is 1 less the score where lower is better.
        NaN where a question has no score."""
        if id(sealed) not in self._scores:
            scores = _unpacked(self._packed[id(sealed)])
            self._scores[id(sealed)] = scores if sealed.metric.higher_is_better else 1.0 - scores
        return self._scores[id(sealed)]

    @cached_property
    def owner(self) -> NDArray[np.int64]:
        """(questions,) which image each is about."""
        image = self._columns(self.cells[0])[0]
        return np.unique(np.asarray(image, dtype=str), return_inverse=True)[1]

    @cached_property
    def image_names(self) -> frozenset[str]:
        """The images that the questions are about."""
        return frozenset(self._columns(self.cells[0])[0])

    def draw(self, cells: Iterable[SealedCell]) -> None:
        """Resample these cells; equal seeds at two tasks would draw the same images' numbers, so the task is a seed."""
        missing = list({id(s): s for s in cells if id(s) not in self._resamples}.values())
        if missing:
            metrics = [self._units_of(s).clustered(_unpacked(self._packed[id(s)])) for s in missing]
            seed = zlib.crc32(f"{self.stream}{self.task}".encode())
            drawn = stats.resample_together(metrics, self.kept.draws(self.images, seed))
            self._resamples |= {
                id(s): row if s.metric.higher_is_better else -row for s, row in zip(missing, drawn, strict=True)
            }

    def resampled(self, sealed: SealedCell) -> NDArray[np.float64]:
        """(n,) resamples of a cell's headline metric, negative where lower is better."""
        self.draw([sealed])
        return self._resamples[id(sealed)]

    def line(self, name: str, seeds: Sequence[SealedCell]) -> NDArray[np.float64]:
        """(n,) resamples of a line's mean over seeds; `name` decides its draws of seeds, whatever other lines there
        are."""
        if len(seeds) == 1:
            return self.resampled(seeds[0])
        key = name, tuple(map(id, seeds))
        if key not in self._lines:
            stacked = np.stack([self.resampled(s) for s in seeds])
            self._lines[key] = stats.over_seeds(stacked, zlib.crc32(f"{self.stream}{name}".encode()))
        return self._lines[key]

    def forget(self) -> None:
        """Free resamples and scores of all cells but the unpruned one."""
        held = [i for i in {*self._resamples, *self._scores} if not self.base or i != id(self.base)]
        for i in held:
            self._resamples.pop(i, None)
            self._scores.pop(i, None)
        self._lines.clear()

    def _look(self, sealed: SealedCell) -> tuple[str, str, Any]:
        """Digests of a cell's questions and layout, and its packed scores; agreement on the way."""
        key = self.kept.key("scores", [sealed])
        asked = self.base and self.kept.key("agreement", [sealed, self.base])
        read: _Read | None = None
        if key in self.kept and (not asked or asked in self.kept):
            self.kept.check(sealed)
        else:
            read = self._base[0] if self._base and sealed is self.base else self.kept.check(sealed, _read)
            read = read or _read(sealed)
        found = self.kept.of(key, lambda: _pack(read or _read(sealed)))
        if asked:
            self.agreement[sealed.identity] = self.kept.of(asked, lambda: self._agreement(read or _read(sealed), found))
        return found["questions"], found["layout"], found["scores"]

    def _agreement(self, read: _Read, found: Any) -> float:
        """Percent of answers that are the unpruned model's, stripped and case folded."""
        assert self.base is not None
        if self._base is None:
            base = self.kept.check(self.base, _read) or _read(self.base)
            self._base = base, _said(base.table)
        base, whole = self._base
        if base.questions != read.questions:
            return float("nan")  # `__init__` refuses these cells
        return 100.0 * int((_said(read.table) == whole).sum()) / len(whole)

    def _shape(self, sealed: SealedCell) -> dict[str, Any]:
        units = self._units_of(sealed)
        metric = units.clustered(_unpacked(self._packed[id(sealed)]))
        image = self._columns(sealed)[0]
        return {"questions": len(image), "images": len(set(image)), "unlike": metric.unlike()}

    def _units_of(self, sealed: SealedCell) -> stats.Units:
        layout = self._layouts[id(sealed)], repr(sealed.metric)
        if layout not in self._units:
            self._units[layout] = stats.units(sealed.metric, *self._columns(sealed))
        return self._units[layout]

    def _columns(self, sealed: SealedCell) -> tuple[list[str], list[str | None], list[str]]:
        """image, category, question_id."""
        data = self.kept.of(self._layout_key(sealed), lambda: _layout(sealed))
        image, category, question_id = json.loads(zlib.decompress(base64.b64decode(data)))
        return image, category, question_id

    def _layout_key(self, sealed: SealedCell) -> str:
        return self.kept.key("layout", [], self._layouts[id(sealed)])


def _read(sealed: SealedCell) -> _Read:
    """Raises PrunebenchError if the samples are not those that were sealed."""
    table = sealed.table(*COLUMNS)
    category = table["category"].to_pylist() if sealed.metric.kind == "mme" else []
    counts = stats.in_headline(sealed.metric, category)
    if not all(counts):
        table = table.filter(np.asarray(counts))
    questions, layout = hashlib.sha256(), hashlib.sha256()
    for name in ("key", "image"):
        _add(questions, table[name])
    for name in ("image", "category", "question_id"):
        _add(layout, table[name])
    return _Read(questions.hexdigest()[:32], layout.hexdigest()[:32], table)


def _add(digest: Any, column: Any) -> None:
    """The column's texts into a digest: lengths, bytes and what is missing, however they are laid out in memory."""
    import pyarrow as pa

    texts = (column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column).cast(pa.string())
    digest.update(texts.is_null().to_numpy(zero_copy_only=False).tobytes())
    _, places, data = texts.fill_null("").buffers()
    ends = np.frombuffer(places, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    digest.update(np.diff(ends).tobytes())
    digest.update(memoryview(data)[ends[0] : ends[-1]] if data else b"")


def _pack(read: _Read) -> dict[str, Any]:
    """JSON values: the distinct scores, and which of them each question got."""
    values, codes = np.unique(read.table["score"].to_numpy(), return_inverse=True)
    data = zlib.compress(codes.astype(np.min_scalar_type(len(values))).tobytes(), 1)
    packed = [values.tolist(), base64.b64encode(data).decode()]
    return {"questions": read.questions, "layout": read.layout, "scores": packed}


def _unpacked(packed: Any) -> NDArray[np.float64]:
    values, text = packed
    codes = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.min_scalar_type(len(values)))
    return np.asarray(np.asarray(values, dtype=np.float64)[codes])


def _layout(sealed: SealedCell) -> str:
    table = _read(sealed).table
    columns = [table[name].to_pylist() for name in ("image", "category", "question_id")]
    return base64.b64encode(zlib.compress(json.dumps(columns, separators=(",", ":")).encode())).decode()


def _said(table: Any) -> NDArray[Any]:
    """Answers as they are compared; each different one is stripped and case folded once."""
    encoded = table["answer"].combine_chunks().dictionary_encode()
    distinct = np.array([text.strip().casefold() for text in encoded.dictionary.to_pylist()], dtype=object)
    return np.asarray(distinct[encoded.indices.to_numpy(zero_copy_only=False)])
