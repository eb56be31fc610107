"""Which questions are open, which chunk of images is answered next, and what became of chunks whose workers died.

Knows nothing of Ray. A chunk is asked for all open settings at once; chunks shrink towards the end, so that workers end
together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.core.errors import PrunebenchError
from harness.store.journal import Record

#: workers that a chunk may take with it before it is set aside
DEATHS = 3

Asked = dict[str, frozenset[str]]
"""Keys of samples, by identity of the cell."""


@dataclass
class Chunk:
    """Images that one worker is asked about. `deaths`: how each worker ended that had this chunk."""

    images: Sequence[str]
    deaths: list[str] = field(default_factory=list)


class Board:
    """`questions`: per image the (identity, key) that lack an answer. `most`: images of the largest chunk."""

    def __init__(self, questions: Mapping[str, Sequence[tuple[str, str]]], most: int) -> None:
        self._questions, self._most = questions, most
        self._images = deque(sorted(questions))
        self._again: deque[Chunk] = deque()
        self._open = {pair for pairs in questions.values() for pair in pairs}
        self._failed: dict[str, str] = {}
        self._aside: list[Chunk] = []

    @property
    def waiting(self) -> bool:
        """Is there a chunk that no worker has?"""
        return bool(self._images or self._again)

    def next(self, n_workers: int) -> Chunk:
        """A chunk of which a quarter of the images that are left would give every worker one; of those that lost their
        worker last."""
        if not self._images:
            return self._again.popleft()
        size = min(self._most, max(1, len(self._images) // (4 * n_workers)), len(self._images))
        return Chunk([self._images.popleft() for _ in range(size)])

    def asked(self, chunk: Chunk) -> Asked:
        """What a chunk's questions are now: neither those with an answer nor those of a setting that failed."""
        found: dict[str, set[str]] = {}
        for image in chunk.images:
            for identity, key in self._questions[image]:
                if (identity, key) in self._open and identity not in self._failed:
                    found.setdefault(identity, set()).add(key)
        return {identity: frozenset(keys) for identity, keys in found.items()}

    def new(self, identity: str, records: Sequence[Record]) -> list[Record]:
        """The answers that nobody gave before."""
        found = [record for record in records if (identity, record.key) in self._open]
        self._open -= {(identity, record.key) for record in found}
        return found

    def failed(self, chunk: Chunk, why: str) -> None:
        """Settings whose answers a worker did not give are asked no more."""
        for identity in self.asked(chunk):
            self._failed[identity] = why

    def back(self, chunk: Chunk, death: str = "") -> None:
        """A worker gave a chunk up; `death`: how the worker ended, if it did. Sets the chunk aside after `DEATHS`."""
        if death:
            chunk.deaths.append(death)
        if not self.asked(chunk):
            return
        if len(chunk.deaths) < DEATHS:
            self._again.append(chunk)
        else:
            self._aside.append(chunk)

    def check(self) -> None:
        """Raise PrunebenchError naming the settings that failed and the chunks that were set aside."""
        said = list(dict.fromkeys(self._failed.values()))
        for chunk in self._aside:
            keys = sorted({key for some in self.asked(chunk).values() for key in some})
            said.append(
                f"{len(keys)} questions on {len(chunk.images)} images ended {len(chunk.deaths)} workers and were set"
                f" aside: {', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''} ({'; '.join(chunk.deaths)})"
            )
        if said:
            more = f"; and {len(said) - 3} more" if len(said) > 3 else ""
            raise PrunebenchError(
                "; ".join(said[:3]) + more + "; the other answers are kept: run the same command again"
            )
