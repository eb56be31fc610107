"""Images of Qwen-VL by the places of their tokens: (time, row, column), counted from the same number."""

from __future__ import annotations

from itertools import groupby

from torch import Tensor

from harness.core.errors import PrunebenchError


def grids_of(positions: Tensor, visual: Tensor, name: str) -> list[tuple[int, int]]:
    """Rows and columns of every image of a batch in order, from `positions (b, n, axes)` and `visual (b, n)`; `name` of
    the model.

    Raises PrunebenchError where tokens stand in no grid, as they do where the model was called without what says so.
    """
    grids = []
    for places, marks in zip(positions.tolist(), visual.tolist(), strict=True):
        for is_image, run in groupby(zip(places, marks, strict=True), key=lambda token: token[1]):
            if is_image:
                grids.append(_grid([place for place, _ in run], name))
    return grids


def _grid(places: list[list[int]], name: str) -> tuple[int, int]:
    """Rows and columns of an image whose tokens stand at `places`. Raises PrunebenchError where they are no grid."""
    start = places[0][0]
    rows, columns = (max(place[axis % len(place)] for place in places) - start + 1 for axis in (1, 2))
    grid = ([start, start + i // columns, start + i % columns] for i in range(len(places)))
    if rows * columns != len(places) or any(a != b for a, b in zip(places, grid, strict=True)):
        raise PrunebenchError(
            f"{name}: expected {len(places)} image tokens at the positions of a grid (time, row, column), found tokens"
            f" from {places[0]} to {places[-1]}: give the model mm_token_type_ids and image_grid_thw of the"
            " processor, also beside features"
        )
    return rows, columns
