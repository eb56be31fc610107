"""Work that threads do ahead of its use, a bounded part of it: images are read, decoded and resized while the device is
busy.

The threads are there while the block is entered. What goes wrong in one is raised where its result is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")

#: decoding and resizing release Python's lock; more threads would take processors from a model on a CPU
THREADS = 2
#: results that are made, or being made, and not taken yet
MOST = 8


class Ahead(Generic[T]):
    """Results of `jobs`, in the order in which they will be taken."""

    def __init__(self, jobs: Mapping[str, Callable[[], T]], pool: ThreadPoolExecutor, most: int = MOST) -> None:
        self._later, self._begun = dict(jobs), dict[str, Future[T]]()
        self._pool, self._most = pool, most
        self._fill()

    def take(self, key: str, make: Callable[[], T]) -> T:
        """The result of job `key`; it is made here, by `make`, where no thread has begun it. Raises what the job
        raised."""
        begun = self._begun.get(key)
        if begun is None:
            self._later.pop(key, None)
            return make()
        try:
            return begun.result()
        finally:
            del self._begun[key]
            self._fill()

    def _fill(self) -> None:
        while self._later and len(self._begun) < self._most:
            key = next(iter(self._later))
            self._begun[key] = self._pool.submit(self._later.pop(key))


@contextmanager
def ahead(jobs: Mapping[str, Callable[[], T]], most: int = MOST) -> Iterator[Ahead[T]]:
    """Threads that work on `jobs` inside the block; none is left behind it, and what was not begun is dropped."""
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="ahead")
    try:
        yield Ahead(jobs, pool, most)
    finally:
        pool.shutdown(cancel_futures=True)
