"""A cell that is being run, in the one process that owns its journal and seals it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.core.errors import PrunebenchError
from harness.method import Method
from harness.runner.answering import Clock
from harness.runner.execute import Work
from harness.runner.jobs import Job
from harness.runner.launch.launchers import without_launcher
from harness.store.journal import Record
from harness.store.sealed import SampleScore, SealedCell
from harness.store.store import CellWriter

if TYPE_CHECKING:
    from tasks.lmms import LoadedTask

#: answers that go to a journal with one fsync, and the seconds after which fewer do
FLUSH, FLUSH_SECONDS = 64, 10.0


class RunningCell:
    """Answers wait here until there are enough for one fsync. `provenance` is sealed with the cell, completed by what
    this run adds."""

    def __init__(self, job: Job, writer: CellWriter, provenance: Mapping[str, Any], clock: Clock) -> None:
        self.job, self.writer = job, writer
        self._provenance, self._clock = provenance, clock
        self._samples = {s.key: s for s in job.task.samples}
        self._pending: list[Record] = []
        self._waiting = 0.0

    @property
    def work(self) -> Work:
        """What is left to ask."""
        return Work(
            self.job.setting, self.job.identity, frozenset(key for key in self._samples if key not in self.writer.done)
        )

    @property
    def complete(self) -> bool:
        return len({*self.writer.done, *(r.key for r in self._pending)}) == len(self._samples)

    def add(self, records: Sequence[Record]) -> None:
        """Take answers; they survive a crash once `flush` has run."""
        if not self._pending:
            self._waiting = time.monotonic()
        self._pending += records
        if len(self._pending) >= FLUSH:
            self.flush()

    def flush_if_old(self) -> None:
        """`flush` what has waited for `FLUSH_SECONDS`."""
        if self._pending and time.monotonic() - self._waiting > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
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
            return self.writer.seal(metrics, scores, provenance, headline=self.job.task.headline, method_info=info)


def info_of(method: type[Method]) -> dict[str, Any]:
    """What a cell holds of its method."""
    traits = method.traits
    return {
        "query_aware": traits.query_aware,
        "needs_vision_attention": traits.needs_vision_attention,
        "adaptive": traits.adaptive,
        "budget_knobs": list(method.budget_knobs),
    }


def scored(task: LoadedTask, answers: Mapping[str, str]) -> tuple[dict[str, float], dict[str, SampleScore]]:
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
    return {**found.metrics, **{f"category/{name}": value for name, value in found.categories.items()}}, scores


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
