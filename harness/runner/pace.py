"""How to run, without effect on any answer: sizes of batches and chunks, what is shared, and which share of the
images."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from harness.core.errors import PrunebenchError
from harness.core.spelling import given

#: images of one chunk, if their prefixes fit
CHUNK = 48


@dataclass(frozen=True)
class Pace:
    """`batch`: most prompts a batch (see `answering.batch_for`). `share`: prefill each image once for all its
    questions. `chunk`: most images that are asked about at a time, None: all. `shard` (i, n): every n-th image from the
    i-th on. Raises PrunebenchError for a batch below 1."""

    batch: int = 16
    share: bool = True
    chunk: int | None = CHUNK
    shard: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        check_batch(self.batch)


def check_batch(batch: int) -> None:
    """Raise PrunebenchError unless a batch holds a prompt."""
    if batch < 1:
        raise PrunebenchError(f"{given('batch', batch)}: expected at least 1 prompt a batch")


def prefix_budget(device: torch.device) -> int:
    """Bytes for prefixes: a quarter of what is free on the GPU, 4 GiB on a CPU."""
    if device.type != "cuda":
        return 4 << 30
    return int(torch.cuda.mem_get_info(device)[0] // 4)
