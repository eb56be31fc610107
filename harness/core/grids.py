"""How a cell's provenance records the grids of its images' tokens. No torch.

One list of [rows, columns, newline] where every image has the same grids and every prompt one image; else a mapping of
grids to the keys of the prompts' images that have them. Grids of an image are spelt as in "24x24 36x48+1", where "+1"
says that each row ends with a newline token; " | " parts the images of a prompt. Where every image has the same grids
and prompts have several, "2 of 24x24" says it of two images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from harness.core.errors import PrunebenchError
from harness.core.shape import Grid

_SPELT = re.compile(r"([0-9]{1,6})x([0-9]{1,6})(\+1)?")
_ALIKE = re.compile(r"([0-9]{1,4}) of (.+)")
_BETWEEN = " | "

Images = Sequence[Sequence[Grid]]
"""The grids of each image of a prompt, in order."""


def recorded(prompts: Mapping[str, Images], one_size: bool = False) -> Any:
    """The record of prompts' images by the key that names them together. `one_size`: every image has the same grids,
    whatever its size."""
    if one_size and all(len(images) == 1 for images in prompts.values()):
        return next(([list(grid) for grid in images[0]] for images in prompts.values()), [])
    found: dict[str, list[str]] = {}
    for key, images in prompts.items():
        parts = [" ".join(map(_spelt, own)) for own in images]
        found.setdefault(f"{len(parts)} of {parts[0]}" if one_size else _BETWEEN.join(parts), []).append(key)
    return found


def _spelt(grid: Grid) -> str:
    return f"{grid.rows}x{grid.cols}" + ("+1" if grid.newline else "")


def read(record: Any) -> Mapping[str, list[list[Grid]]] | list[Grid]:
    """The grids of every image, or those of each image by the key of a prompt's images. Raises PrunebenchError for what
    is no record of grids."""
    try:
        if not isinstance(record, Mapping):
            return [Grid(int(rows), int(cols), bool(newline)) for rows, cols, newline in record or ()]
        by_prompt: dict[str, list[list[Grid]]] = {}
        for spelt, keys in record.items():
            several = _ALIKE.fullmatch(spelt)
            parts = [several[2]] * int(several[1]) if several else spelt.split(_BETWEEN)
            images = [[_read(word) for word in part.split(" ")] for part in parts]
            by_prompt |= dict.fromkeys(keys, images)
        return by_prompt
    except (TypeError, ValueError, OverflowError) as error:
        raise PrunebenchError(
            f"provenance: expected grids as [rows, columns, newline] or by image, found {str(record)[:80]} ({error})"
        ) from None


def _read(word: str) -> Grid:
    matched = _SPELT.fullmatch(word)
    if matched is None:
        raise ValueError(word)
    return Grid(int(matched[1]), int(matched[2]), matched[3] is not None)


def by_image(record: Any, key: str) -> list[list[Grid]]:
    """The grids of each image of a prompt, in the order of its tokens; none where they are not recorded."""
    found = read(record)
    if isinstance(found, list):
        return [found] if found else []
    return found.get(key, [])


def of_image(record: Any, key: str) -> list[Grid]:
    """The grids of a prompt's images one after the other; none where they are not recorded."""
    return own(read(record), key)


def own(found: Mapping[str, list[list[Grid]]] | list[Grid], key: str) -> list[Grid]:
    """Of what `read` gave, the grids of a prompt's images one after the other."""
    return found if isinstance(found, list) else [grid for image in found.get(key, []) for grid in image]


def one_size(record: Any) -> bool:
    """Whether every image has the same grids, whatever its size."""
    return not isinstance(record, Mapping) or all(_ALIKE.fullmatch(str(spelt)) for spelt in record)
