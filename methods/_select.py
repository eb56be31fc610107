"""Selections that more than one method makes; pure functions of tensors."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor

from harness.errors import PrunebenchError
from harness.method import ScoresError
from harness.shape import ModelShape


def keep_top(scores: Tensor, k: int | Tensor, valid: Tensor) -> Tensor:
    """(b, v) bool: the `k` (int or (b,) long) highest-scored valid tokens of each row; the lowest index wins a tie.

    Invalid slots are excluded from the candidates rather than given a low score, which a real score could tie with.
    Raises ScoresError where a valid token's score is nan, which would sort before everything.
    """
    bad = scores.isnan() & valid
    if bool(bad.any()):
        row = int(bad.any(1).nonzero()[0])
        where = bad[row].nonzero().flatten().tolist()
        found = f"found nan for {len(where)} of {int(valid[row].sum())}, first at {where[:5]}"
        raise ScoresError(row, f"expected a number as score of every visual token; {found}")
    ranked = torch.where(valid, scores, float("-inf")).argsort(dim=1, descending=True, stable=True)
    # valid slots first whatever their score, then by score
    ranked = ranked.gather(1, (~valid.gather(1, ranked)).to(torch.uint8).argsort(dim=1, stable=True))
    rank = torch.empty_like(ranked).scatter_(1, ranked, torch.arange(scores.shape[1], device=scores.device).expand_as(ranked))
    limit = torch.as_tensor(k, device=scores.device).reshape(-1, 1)
    return (rank < limit) & valid


def grid_of(method: str, n_tokens: int, shape: ModelShape) -> tuple[int, int]:
    """(height, width) in tokens of a prompt's images, raster order, one square grid under the other.

    Raises PrunebenchError where the tokens of the model or of the prompt are no whole square grids.
    """
    side = isqrt(shape.n_visual)
    if side * side != shape.n_visual:
        raise PrunebenchError(f"{method}: expected images as a square grid of visual tokens, found {shape.n_visual} per image")
    if n_tokens % shape.n_visual:
        raise PrunebenchError(f"{method}: expected whole images of {shape.n_visual} visual tokens, found {n_tokens} tokens")
    return n_tokens // side, side


def even_split(total: int, parts: int) -> list[int]:
    """`total` as `parts` whole numbers that differ by at most one, the larger ones spread evenly: (8, 3) -> [2, 3, 3]."""
    return [(i + 1) * total // parts - i * total // parts for i in range(parts)]


def centres(length: int, n: int) -> list[int]:
    """`n` of `length` places, evenly: the middle of each of n equal stretches; distinct for n <= length."""
    return [(2 * i + 1) * length // (2 * n) for i in range(n)]
