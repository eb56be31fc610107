"""Selections on grids of tokens that more than one method makes; plain Python."""

from __future__ import annotations

from harness.core.shape import Grid
from harness.method import PromptShape


def grids(prompt: PromptShape) -> list[tuple[int, Grid]]:
    """The grids of a prompt's images in order, each with the number of its first token among the prompt's visual
    tokens."""
    found, start = [], 0
    for view in (view for image in prompt.images for view in image.views):
        found.append((start, view))
        start += view.tokens
    return found


def shared_out(total: int, views: list[Grid]) -> list[int]:
    """`total` tokens among grids in proportion to their patches, at most all of each; newline tokens get none."""
    patches = [view.rows * view.cols for view in views]
    total = min(total, sum(patches))
    ends = [total * sum(patches[: i + 1]) // sum(patches) for i in range(len(views))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def even_split(total: int, parts: int) -> list[int]:
    """`total` as `parts` whole numbers that differ by at most one, the larger ones spread evenly: (8, 3) -> [2, 3,
    3]."""
    return [(i + 1) * total // parts - i * total // parts for i in range(parts)]


def centres(length: int, n: int) -> list[int]:
    """`n` of `length` places, evenly: the middle of each of n equal stretches; distinct for n <= length."""
    return [(2 * i + 1) * length // (2 * n) for i in range(n)]
