"""A cell that is being run, in the one process that owns its journal and seals it."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from harness.core.errors import PrunebenchError
from harness.method import Method
from harness.runner.clock import Clock
from harness.runner.execute import Work
from harness.runner.jobs import Job
from harness.runner.launch.launchers import without_launcher
from harness.store.journal import Record
from harness.store.sealed import SampleScore, SealedCell
from harness.store.store import CellWriter

if TYPE_CHECKING:
    from tasks.lmms import LoadedTask

#: answers that go to a journal with one fsync
FLUSH = 64
#: seconds after which fewer do, and between two looks: an answer is on disk within ten
FLUSH_SECONDS, LOOK_SECONDS = 7.0, 1.0


class RunningCell:
    """Answers wait here until there are enough for one fsync, or until `Flusher` comes by. `provenance` is sealed with
    the cell, completed by what this run adds."""

    def __init__(self, job: Job, writer: CellWriter, provenance: Mapping[str, Any], clock: Clock) -> None:
        self.job, self.writer = job, writer
        self._provenance, self._clock = provenance, clock
        self._samples = {s.key: s for s in job.task.samples}
        self._pending: list[Record] = []
        self._waiting = 0.0
        self._lock = threading.RLock()  # the answers that wait and the writer: two threads come to both

    @property
    def work(self) -> Work:
        """What is left to ask."""
        return Work(
            self.job.setting, self.job.identity, frozenset(key for key in self._samples if key not in self.writer.done)
        )

    @property
    def complete(self) -> bool:
        with self._lock:
            return len({*self.writer.done, *(r.key for r in self._pending)}) == len(self._samples)

    def add(self, records: Sequence[Record]) -> None:
        """Take answers; they survive a crash once `flush` has run."""
        with self._lock:
            if not self._pending:
                self._waiting = time.monotonic()
            self._pending += records
            if len(self._pending) >= FLUSH:
                self.flush()

    def flush_if_old(self) -> None:
        """`flush` what has waited for `FLUSH_SECONDS`."""
        with self._lock:
            if self._pending and time.monotonic() - self._waiting > FLUSH_SECONDS:
                self.flush()

    def flush(self) -> None:
        with self._lock:
            if self._pending:
                with self._clock("write"):
                    self.writer.append(*self._pending)
                self._pending = []

    def seal(self) -> SealedCell:
        """Score with lmms-eval and seal."""
        self.flush()
        with self._clock("score"):
            metrics, scores = scored(self.job.task, {key: record.answer for key, record in self.writer.done.items()})
        info = info_of(type(self.job.setting.method))
        provenance = {**self._provenance, "wall_s": round(sum(r.wall_s for r in self.writer.done.values()), 3)}
        with self._clock("write"):
            return self.writer.seal(metrics, scores, provenance, headline=self.job.task.metric, method_info=info)


class Flusher:
    """A thread that writes what has waited long enough, also while the inference of one batch takes minutes.

    On leaving, everything that waits in any cell is written, also where writing one of them fails; then the first
    failure is raised.
    """

    def __init__(self, cells: Collection[RunningCell]) -> None:
        self._cells = list(cells)
        self._failed: PrunebenchError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prunebench-flush", daemon=True)

    def check(self) -> None:
        """Raise what went wrong in the thread."""
        if self._failed is not None:
            raise self._failed

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            for one in self._cells:
                try:
                    one.flush_if_old()
                except PrunebenchError as error:
                    self._failed = error
                    return

    def __enter__(self) -> Flusher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        flush_all(self._cells)


def info_of(method: type[Method]) -> dict[str, Any]:
    """What a cell holds of its method."""
    traits = method.traits
    defaults = {f.name: f.default for f in fields(method) if f.name in method.variant_knobs}
    return {
        "query_aware": traits.query_aware,
        "needs_vision_attention": traits.needs_vision_attention,
        "adaptive": traits.adaptive,
        "budget_knobs": list(method.budget_knobs),
        **({"variant_knobs": defaults} if defaults else {}),
    }


def scored(task: LoadedTask, answers: Mapping[str, str]) -> tuple[dict[str, float | None], dict[str, SampleScore]]:
    """Metrics by name and the scores by key, as a cell holds them; sealing and verifying both come here.

    Raises PrunebenchError where an answer is missing.
    """
    from tasks import lmms

    with without_launcher():
        found = lmms.score(task, answers)
    scores = {
        s.key: SampleScore(found.scores[s.key], s.question_id, s.category, s.prompt, s.targets[0] if s.targets else "")
        for s in task.samples
    }
    metrics: dict[str, float | None] = {**found.metrics}
    return metrics | {f"category/{name}": value for name, value in found.categories.items()}, scores


def flush_all(cells: Iterable[RunningCell]) -> None:
    """Write what waits in every cell, also where writing one of them fails; then raise the first failure."""
    failed: PrunebenchError | None = None
    for one in cells:
        try:
            one.flush()
        except PrunebenchError as error:
            failed = failed or error
    if failed is not None:
        raise failed
