"""The text around the tiles of Idefics3 and SmolVLM: how a processor spells an image, and how a prompt is read back.

Every tile is a run of image tokens. Marks stand before each run and behind the last: a fence token, a tag that names
the tile, and line breaks behind each row of tiles. So an image's visual tokens are in no one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from torch import Tensor

from harness.core.errors import PrunebenchError

#: a mark by its own name: the fence, whose spelling a processor states
FENCE = "<fence>"
OVERVIEW = "<global-img>"

#: rows and columns of tiles beside the overview; (0, 0) for an image that is one tile
Cut = tuple[int, int]


def frame(cut: Cut) -> list[tuple[str, ...]]:
    """The marks before each tile of an image, in order, and those behind the last tile, the overview."""
    rows, cols = cut
    found: list[tuple[str, ...]] = []
    for row in range(rows):
        for col in range(cols):
            breaks = ("\n",) if row and not col else ()
            found.append((*breaks, FENCE, f"<row_{row + 1}_col_{col + 1}>"))
    return [*found, (*(("\n", "\n") if rows else ()), FENCE, OVERVIEW), (FENCE,)]


class _Runs(NamedTuple):
    """Of a prompt: the lengths of its runs of image tokens, the ids between one and the next, and the id behind the
    last; None where nothing is there."""

    lengths: list[int]
    gaps: list[list[int]]
    behind: int | None


def cuts_of(ids: Tensor, visual: Tensor, tile: int, name: str) -> list[Cut]:
    """How every image of a batch is cut, in order, from `ids` and `visual (b, n)` alone; `tile`: tokens of a tile;
    `name` of the model.

    The fence is the token behind a prompt's last image. A gap that begins with the fence and holds it once lies within
    a row of tiles; one that begins otherwise ends a row; two fences lie between images. Raises PrunebenchError where a
    prompt is spelt in another way.
    """
    found = []
    for row, marks in zip(ids.tolist(), visual.tolist(), strict=True):
        found += _cuts(_runs(row, marks), tile, name)
    return found


def _runs(ids: Sequence[int], visual: Sequence[bool]) -> _Runs:
    parts = [
        (mark, [token for token, _ in part]) for mark, part in groupby(zip(ids, visual, strict=True), lambda t: t[1])
    ]
    images = [i for i, (mark, _) in enumerate(parts) if mark]
    first, last = images[0], images[-1]
    gaps = [part for mark, part in parts[first:last] if not mark]
    behind = parts[last + 1][1][0] if last + 1 < len(parts) else None
    return _Runs([len(parts[i][1]) for i in images], gaps, behind)


def _cuts(runs: _Runs, tile: int, name: str) -> list[Cut]:
    odd = next((n for n in runs.lengths if n != tile), None)
    if odd is not None:
        raise PrunebenchError(
            f"{name}: expected tiles of {tile} image tokens side by side, found {odd}: let the model's processor make"
            " the prompt"
        )
    if runs.behind is None:
        raise PrunebenchError(
            f"{name}: expected the mark behind the last image, found the end of the prompt: let the model's processor"
            " make the prompt"
        )
    images: list[list[int]] = [[1]]
    for gap in runs.gaps:
        fences = gap.count(runs.behind)
        if gap[0] == runs.behind and fences > 1:
            images.append([1])
        elif gap[0] == runs.behind and fences == 1:
            images[-1][-1] += 1
        elif fences == 1:
            images[-1].append(1)
        else:
            raise PrunebenchError(
                f"{name}: expected one mark {runs.behind} between the tiles of an image, found {gap[:8]}: let the"
                " model's processor make the prompt"
            )
    return [_cut(rows, name) for rows in images]


def _cut(rows: Sequence[int], name: str) -> Cut:
    """Of the tiles of each line of an image, the overview's line last."""
    *tiles, overview = rows
    if overview != 1 or len(set(tiles)) > 1:
        raise PrunebenchError(
            f"{name}: expected rows of equally many tiles and the overview behind them, found lines of {list(rows)}"
            " tiles: let the model's processor make the prompt"
        )
    return (len(tiles), tiles[0]) if tiles else (0, 0)
