"""How a cell's provenance records the grids of its images' tokens. No torch.

One list of [rows, columns, newline] where every image has the same grids; else a mapping of grids, spelt as in
"24x24 36x48+1", to the keys of the images that have them. "+1": each row ends with a newline token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from harness.core.errors import PrunebenchError
from harness.core.shape import Grid

_SPELT = re.compile(r"([0-9]{1,6})x([0-9]{1,6})(\+1)?")


def recorded(images: Mapping[str, Sequence[Grid]]) -> dict[str, list[str]]:
    """The record of images by their keys."""
    found: dict[str, list[str]] = {}
    for image, grids in images.items():
        spelt = " ".join(f"{grid.rows}x{grid.cols}" + ("+1" if grid.newline else "") for grid in grids)
        found.setdefault(spelt, []).append(image)
    return found


def read(record: Any) -> Mapping[str, list[Grid]] | list[Grid]:
    """The grids of every image, or by image key. Raises PrunebenchError for what is no record of grids."""
    try:
        if not isinstance(record, Mapping):
            return [Grid(int(rows), int(cols), bool(newline)) for rows, cols, newline in record or ()]
        by_image: dict[str, list[Grid]] = {}
        for spelt, images in record.items():
            matched = [_SPELT.fullmatch(word) for word in spelt.split(" ")]
            grids = [Grid(int(m[1]), int(m[2]), m[3] is not None) for m in matched if m]
            if len(grids) != len(matched):
                raise ValueError(spelt)
            by_image |= dict.fromkeys(images, grids)
        return by_image
    except (TypeError, ValueError, OverflowError) as error:
        raise PrunebenchError(
            f"provenance: expected grids as [rows, columns, newline] or by image, found {str(record)[:80]} ({error})"
        ) from None


def of_image(record: Any, image: str) -> list[Grid]:
    """The grids of one image, in the order of its tokens; none where they are not recorded."""
    return own(read(record), image)


def own(found: Mapping[str, list[Grid]] | list[Grid], image: str) -> list[Grid]:
    """Of what `read` gave, the grids of one image."""
    return found if isinstance(found, list) else found.get(image, [])
