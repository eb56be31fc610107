"""What a fixture of a task is made of: columns, rows, answers and small pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
from PIL import Image, ImageDraw
from taskdata import encoded

TEXT, WHOLE, REAL = datasets.Value("string"), datasets.Value("int64"), datasets.Value("float64")
TEXTS, PICTURE = datasets.List(TEXT), datasets.Image()
SIZES = ((96, 64), (64, 96), (128, 128), (200, 50), (64, 64))


@dataclass(frozen=True)
class Column:
    """A column of a task: its type, and where the task's code reads it (`file:line`, relative to `lmms_eval/tasks`).

    `reads` is a piece of that line; where it is empty the line holds the column's own name in quotes."""

    type: Any
    at: str
    reads: str = ""


@dataclass(frozen=True)
class HubTask:
    """A task of lmms-eval with its fixture: rows of `columns`, and a right and a wrong answer per question."""

    name: str
    repository: str
    config: str | None
    split: str
    columns: Mapping[str, Column]
    rows: Sequence[Mapping[str, Any]]
    right: Sequence[str]
    wrong: Sequence[str]

    @property
    def file(self) -> str:
        """The parquet file within the repository."""
        return f"{self.config or 'data'}/{self.split}-00000-of-00001.parquet"


def picture(number: int, kind: str = "PNG") -> dict[str, Any]:
    """An encoded picture: the number decides size and content."""
    width, height = SIZES[number % len(SIZES)]
    image = Image.new("RGB", (width, height), (37 * number % 256, 91 * number % 256, 151 * number % 256))
    ImageDraw.Draw(image).ellipse((8, 8, width // 2, height // 2), fill=(255, 64 * number % 256, 0))
    return {"bytes": encoded(image, kind), "path": f"{number}.{kind.lower()}"}


def size(number: int) -> tuple[int, int]:
    """Width and height of that picture, in pixels."""
    return SIZES[number % len(SIZES)]


NOTHING_RIGHT = "seven zebras and two quokkas"
LETTERS = "ABCD"


def another(letters: Sequence[str], options: int = 4) -> list[str]:
    """For each letter the next one among the options."""
    return [LETTERS[(LETTERS.index(letter) + 1) % options] for letter in letters]


def task(
    name: str,
    hub: str,
    columns: Mapping[str, Column],
    rows: Sequence[Mapping[str, Any]],
    right: Sequence[str],
    wrong: Sequence[str] | None = None,
) -> HubTask:
    """`hub` is "owner/name config split", with - for no config."""
    repository, config, split = hub.split()
    return HubTask(
        name,
        repository,
        None if config == "-" else config,
        split,
        columns,
        rows,
        right,
        wrong or [NOTHING_RIGHT] * len(right),
    )
