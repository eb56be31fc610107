"""What a prefill leaves on the device until its end, where the host reads all of it at once: each read waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Later:
    """FLOPs of each prompt, `fixed + n x each`: `n (b,)` long is on the device and read behind the prefill."""

    n: Tensor
    each: Sequence[int]
    fixed: Sequence[int]

    def known(self, n: NDArray[np.float64]) -> list[int]:
        """The FLOPs, now that `n` was read."""
        return [base + int(count) * one for base, count, one in zip(self.fixed, n, self.each, strict=True)]


#: FLOPs of each prompt
PerRow = Sequence[int] | Later


def charged(n: Sequence[int] | Tensor, each: Sequence[int], fixed: Sequence[int] | None = None) -> PerRow:
    """`fixed + n x each` of each prompt."""
    fixed = [0] * len(each) if fixed is None else fixed
    if isinstance(n, Tensor):
        return Later(n, each, fixed)
    return [base + count * one for base, count, one in zip(fixed, n, each, strict=True)]


def read_at_once(tensors: Sequence[Tensor]) -> list[NDArray[np.float64]]:
    """The numbers of some tensors on the host, each in its shape; whole numbers are exact below 2^53."""
    if not tensors:
        return []
    flat = torch.cat([x.double().flatten() for x in tensors]).cpu().numpy()
    ends = np.cumsum([x.numel() for x in tensors])
    return [part.reshape(x.shape) for part, x in zip(np.split(flat, ends[:-1]), tensors, strict=True)]
