"""Selections that more than one method makes; pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_top(scores: Tensor, k: int | Tensor, valid: Tensor) -> Tensor:
    """(b, v) bool: the `k` (int or (b,) long) highest-scored valid tokens of each row; the lowest index wins a tie.

    Invalid slots are excluded from the candidates rather than given a low score, which a real score could tie with.
    """
    ranked = torch.where(valid, scores, float("-inf")).argsort(dim=1, descending=True, stable=True)
    # valid slots first whatever their score, then by score
    ranked = ranked.gather(1, (~valid.gather(1, ranked)).to(torch.uint8).argsort(dim=1, stable=True))
    rank = torch.empty_like(ranked).scatter_(1, ranked, torch.arange(scores.shape[1], device=scores.device).expand_as(ranked))
    limit = torch.as_tensor(k, device=scores.device).reshape(-1, 1)
    return (rank < limit) & valid
