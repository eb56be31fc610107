"""What the page shows of a set of questions: samples with their images, and what each cell answered and kept."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from harness.core.errors import PrunebenchError
from harness.report import views
from harness.report.embedded import finite, text_of
from harness.report.masks import MaskPacker
from harness.store.sealed import SealedCell
from harness.tables.sections import budget_order

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

_PER_SAMPLE = ("kept", "mean_visual", "forced")


class ImageSize(NamedTuple):
    """How an image enters the page."""

    side: int
    """Pixels at most, of a square."""
    form: str
    """As Pillow spells it."""
    quality: int


SIZES = (
    ImageSize(336, "JPEG", 75),
    ImageSize(336, "WEBP", 60),
    ImageSize(288, "WEBP", 50),
    ImageSize(224, "WEBP", 50),
)
"""The usual size first; the next where the page would be too large with all of its samples."""


def _raster(sealed: SealedCell, image: str, n_visual: int) -> list[int] | None:
    """[rows, cols, newline, start] of the finest grid of a sample's tokens, as the page draws them."""
    found = views.raster_of(sealed, image, n_visual)
    return found and [*map(int, found.grid), found.start]


def _flips(base: pd.Series, well: pd.Series) -> dict[str, int]:
    """How many answers the cell lost and gained; of the questions that both score, and nothing where there is none."""
    scored = base.notna() & well.notna()
    was, right = base[scored] >= views.RIGHT, well[scored] >= views.RIGHT
    return {"lost": int((was & ~right).sum()), "gained": int((~was & right).sum())} if scored.any() else {}


def _pack_masks(
    sealed: Sequence[SealedCell], cells: Sequence[dict[str, Any]], named: Mapping[str, str]
) -> dict[str, Any]:
    """The masks of all cells, each once; `keeps` of the cells refers to them from then on. The budgets of a line stand
    together, for the larger ones hold the tokens of the smaller ones."""
    groups: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for i, one in enumerate(sealed):
        if cells[i]["keeps"]:
            groups[named[one.identity], one.cell.seed].append(i)
    packer = MaskPacker()
    for _, members in sorted(groups.items()):
        members.sort(key=lambda i: budget_order(sealed[i].cell.budget))
        for i, texts in zip(members, packer.add([cells[i]["keeps"] for i in members]), strict=True):
            cells[i]["keeps"] = texts
    return packer.packed()


class SamplesReader:
    """Reads the samples of cells, and their images, once: pages of several sizes come from one reading."""

    def __init__(self, data: str) -> None:
        self._pictures = views.Pictures(partial(views.data_of, data))
        self._frames: dict[str, pd.DataFrame] = {}
        self._encoded: dict[tuple[str, ImageSize], bytes] = {}
        self._lost: dict[tuple[str, str], str] = {}  # table whose images cannot be had -> why

    def frame(self, sealed: SealedCell) -> pd.DataFrame:
        """The samples of a cell."""
        if sealed.identity not in self._frames:
            self._frames[sealed.identity] = sealed.samples()
        return self._frames[sealed.identity]

    def chunk(
        self, questions: views.Questions, samples: int, images: dict[str, int], named: Mapping[str, str]
    ) -> tuple[dict[str, Any], dict[str, dict[str, int]], str]:
        """What the page shows of a set's samples, how often each cell flips (over all samples), and why images lack, if
        they do. `named`: the line of each cell, by identity."""
        first = self.frame(questions.cells[0]).set_index("key")
        # evenly over the questions, so that a task's last categories are seen as well
        n = min(samples, len(first))
        keys = [first.index[i * len(first) // n] for i in range(n)]
        shown: list[dict[str, Any]] = []
        lost = ""
        for key in keys:
            row = first.loc[key]
            try:
                picture = self._picture(questions.cells[0], key, row["image"], images)
            except PrunebenchError as error:
                picture, lost = -1, lost or str(error)
            shown.append(
                {
                    "key": key,
                    "image": picture,
                    **{name: text_of(row[name]) for name in ("category", "question", "target")},
                    "n_visual": (n_visual := int(row["n_visual"]) if "n_visual" in row else 0),
                    "grid": _raster(questions.cells[0], str(row["image"]), n_visual),
                }
            )
        base = (
            questions.baseline.metric.how_well(self.frame(questions.baseline).set_index("key")["score"])
            if questions.baseline
            else None
        )
        cells, flips = [], {}
        for sealed in questions.cells:
            frame = self.frame(sealed).set_index("key")
            well = sealed.metric.how_well(frame["score"])
            flips[sealed.identity] = _flips(base.loc[well.index], well) if base is not None else {}
            part = frame.loc[keys]
            # equal grids and tokens make an equal raster
            like = sealed.provenance.get("grids") == questions.cells[0].provenance.get("grids")
            own = {
                i: {"n_visual": int(n), "grid": _raster(sealed, str(image), int(n))}
                for i, (image, n) in enumerate(zip(part["image"], part.get("n_visual", ()), strict=False))
                if not (like and int(n) == shown[i]["n_visual"])
            }
            own = {i: seen for i, seen in own.items() if any(seen[name] != shown[i][name] for name in seen)}
            cells.append(
                {
                    "answer": [text_of(a) for a in part["answer"]],
                    "score": [finite(s) for s in well.loc[keys]],
                    "keeps": [text_of(k) for k in part["keeps"]] if "keeps" in part else [],
                    # of samples whose picture this cell's method has shrunk, by their number
                    **({"seen": own} if own else {}),
                    # what a method notes of layers, as a layer that it chose
                    **{
                        name: [finite(v) for v in part[name]]
                        for name in part.columns
                        if name in _PER_SAMPLE or name.endswith("_layer")
                    },
                }
            )
        masks = _pack_masks(questions.cells, cells, named)
        return {"samples": shown, "cells": cells, "masks": masks}, flips, lost

    def _picture(self, sealed: SealedCell, key: str, image: str, images: dict[str, int]) -> int:
        """The number of the sample's image in the page; read once, however many samples and pages show it."""
        views.check_one_image(sealed, key, image)
        where = self._pictures.table(sealed)
        if where in self._lost:
            raise PrunebenchError(self._lost[where])
        if (image, SIZES[0]) not in self._encoded:
            try:
                square = self._pictures.square(sealed, key, image, SIZES[0].side)
            except PrunebenchError as error:
                self._lost[where] = str(error)  # hundreds of samples of one table would say the same
                raise
            self._encoded[image, SIZES[0]] = _written(square, SIZES[0])
        return images.setdefault(image, len(images))

    def encoded(self, image: str, size: ImageSize) -> str:
        """The file of an image that a chunk shows, as base64; made once of each size."""
        if (image, size) not in self._encoded:
            # of the usual size, so that decoded images need not be held
            with Image.open(io.BytesIO(self._encoded[image, SIZES[0]])) as usual:
                self._encoded[image, size] = _written(usual, size)
        return base64.b64encode(self._encoded[image, size]).decode()


def _written(picture: Image.Image, size: ImageSize) -> bytes:
    if max(picture.size) > size.side:
        picture = picture.resize((size.side, size.side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, size.form, quality=size.quality, optimize=True)
    return buffer.getvalue()
