"""How to run, without effect on any answer: sizes of batches and chunks, what is shared, and which share of the
images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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


class Room(NamedTuple):
    """Bytes that may be kept between batches."""

    prefixes: int
    features: int


#: most bytes of either on a CPU
_MOST = Room(4 << 30, 2 << 30)


def cache_room(device: torch.device) -> Room:
    """A quarter of what is free, for both together: the batches need the rest. A chunk's features are small beside its
    prefixes."""
    if device.type == "cuda":
        there = int(torch.cuda.mem_get_info(device)[0])
        return Room(there * 3 // 16, there // 16)
    free = _free_memory()
    return _MOST if free is None else Room(min(free * 3 // 16, _MOST.prefixes), min(free // 16, _MOST.features))


def _free_memory() -> int | None:
    """Bytes that this machine can give away without swapping; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


#: how allocators and libraries say that they got no memory, beside torch's own class
_SIGNS = ("out of memory", "not enough memory", "cannot allocate memory", "can't allocate memory", "alloc_failed")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, also inside a method whose error was wrapped."""
    link: BaseException | None = error
    for _ in range(20):  # a chain of causes may be a circle
        if link is None:
            return False
        said = str(link).lower()
        if isinstance(link, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(link, RuntimeError) and any(sign in said for sign in _SIGNS):
            return True
        link = link.__cause__ or link.__context__
    return False
