"""Run many cells in one pass over the samples, so that no work is done twice.

The order is image by image: a chunk of images is decoded and encoded once, their prefill is computed once per kind of prefix
(harness/prefix.py), and then every cell that still lacks answers about them asks its questions, in batches of like length. Answers go to
each cell's journal as they come; a cell is scored and sealed as soon as it is complete. Neither the order nor the sharing is part of a
cell's identity: answers do not depend on them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from tqdm import tqdm

from harness import budget as budgets
from harness.answering import Answerer, Clock, FeatureCache, Prompt, batch_for, pixels_key
from harness.cell import Cell, canonical_json
from harness.errors import PrunebenchError
from harness.method import Method, source_of
from harness.models import LoadedModel
from harness.prefix import PrefixCache, prefix_kind
from harness.shape import PromptShape
from harness.store import CellBusy, CellSealed, CellWriter, Record, SampleScore, SealedCell, Store

if TYPE_CHECKING:
    from tasks.lmms import LoadedTask, Sample

#: answers that go to a journal with one fsync, and the seconds after which fewer do
FLUSH, FLUSH_SECONDS = 64, 10.0
#: images of one chunk, if their prefixes fit
CHUNK = 48


class Arm(NamedTuple):
    """What answers: cells that differ in the task only share one."""

    method: Method
    seed: int
    positions: str


@dataclass(frozen=True)
class Job:
    """A cell and how to run it. `provenance` is sealed with it, completed by what this run adds."""

    cell: Cell
    arm: Arm
    task: LoadedTask
    provenance: Mapping[str, Any] = field(compare=False)

    @property
    def label(self) -> str:
        """For people: task, method and budget."""
        return f"{self.cell.task} {self.cell.method}" + ("" if self.cell.budget == "none" else f"@{self.cell.budget}")


@dataclass(frozen=True)
class Pace:
    """How to run, without effect on any answer: most prompts a batch (see `answering.batch_for`), whether prefixes are shared, bytes for
    prefixes, and `shard` (i, n): this process answers every n-th image from the i-th on."""

    batch: int = 16
    share: bool = True
    prefix_bytes: int = 4 << 30
    shard: tuple[int, int] = (0, 1)


class Executed(NamedTuple):
    """Sealed cells by identity, those `reused`, and the jobs that another runner holds, with who that is."""

    cells: dict[str, SealedCell]
    reused: int
    busy: list[tuple[Job, CellBusy]]


def execute(
    store: Store,
    loaded: LoadedModel | None,
    jobs: Sequence[Job],
    features: FeatureCache,
    pace: Pace,
    *,
    fresh: bool = False,
    clock: Clock | None = None,
    answers: Callable[[Mapping[str, Open]], Generator[tuple[str, list[Record]]]] | None = None,
) -> Executed:
    """Run the jobs of one model that are not sealed; cells that another process is running are left to it.

    `answers` yields (identity, records) for open cells and replaces the pass in this process, which then needs no model (see
    harness/workers.py). Raises PrunebenchError where a sample fails; what was answered by then is in the journals, and the same call continues.
    """
    clock = clock or Clock()
    unique = list({job.cell.identity(): job for job in jobs}.values())
    sealed: dict[str, SealedCell] = {}
    busy: list[tuple[Job, CellBusy]] = []
    with ExitStack() as stack:
        opened: dict[str, Open] = {}
        for job in unique:
            identity = job.cell.identity()
            found = None if fresh else store.sealed(job.cell)
            if found is not None:
                sealed[identity] = found
                continue
            try:
                if fresh:
                    store.discard(job.cell)
                samples = {s.key: s for s in job.task.samples}
                opened[identity] = Open(job, samples, stack.enter_context(store.open(job.cell, list(samples))), clock)
            except CellBusy as error:
                busy.append((job, error))
            except CellSealed:  # by another runner, since we looked
                found = store.sealed(job.cell)
                assert found is not None
                sealed[identity] = found
        reused = len(sealed)
        for identity, one in opened.items():  # all answers were there when a run ended
            if one.complete:
                sealed[identity] = one.seal()
        opened = {identity: one for identity, one in opened.items() if identity not in sealed}
        total = sum(o.job.cell.n_samples for o in opened.values())
        done = sum(len(o.writer.done) for o in opened.values())
        label = next(iter(opened.values())).job.label if len(opened) == 1 else f"{len(opened)} cells"
        if opened:
            # a log file gets a line now and then, a terminal a bar that moves
            often = 0.2 if sys.stderr.isatty() else 30.0
            with tqdm(total=total, initial=done, desc=label, unit="q", dynamic_ncols=True, smoothing=0.05, mininterval=often) as bar:
                if answers is None:
                    assert loaded is not None
                    source = run_pass(loaded, opened, features, pace, clock)
                else:
                    source = _waited(answers(opened), clock)
                try:
                    # closed at once on an error: it is inside attach(), or has processes
                    with closing(source):
                        for identity, records in source:
                            opened[identity].add(records)
                            bar.update(len(records))
                            if opened[identity].complete:
                                sealed[identity] = opened[identity].seal()
                            for one in opened.values():
                                one.flush_if_old()
                finally:
                    _flush_all(opened.values())
            unfinished = [one.job.label for identity, one in opened.items() if identity not in sealed]
            if unfinished:
                raise PrunebenchError(f"{len(unfinished)} of {len(opened)} cells lack answers after the pass, as {unfinished[0]}: run it again")
    store.tidy()
    return Executed(sealed, reused, busy)


def _waited(source: Generator[tuple[str, list[Record]]], clock: Clock) -> Generator[tuple[str, list[Record]]]:
    """`source`, with the time until it yields charged to "workers"."""
    with closing(source):
        while True:
            with clock("workers"):
                found = next(source, None)
            if found is None:
                return
            yield found


def _flush_all(cells: Iterable[Open]) -> None:
    """Write what waits in every cell, also where writing one of them fails; then raise the first failure."""
    failed: PrunebenchError | None = None
    for one in cells:
        try:
            one.flush()
        except PrunebenchError as error:
            failed = failed or error
    if failed is not None:
        raise failed


class Open:
    """A cell that is being run: answers wait here until there are enough for one fsync."""

    def __init__(self, job: Job, samples: Mapping[str, Sample], writer: CellWriter, clock: Clock) -> None:
        self.job, self.samples, self.writer, self._clock = job, samples, writer, clock
        self._pending: list[Record] = []
        self._waiting = 0.0

    @property
    def left(self) -> list[Sample]:
        """Samples without an answer."""
        return [s for s in self.samples.values() if s.key not in self.writer.done]

    @property
    def complete(self) -> bool:
        return len({*self.writer.done, *(r.key for r in self._pending)}) == len(self.samples)

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
        from tasks import lmms

        self.flush()
        task, job = self.job.task, self.job
        with self._clock("score"):
            scored = lmms.score(task, {key: record.answer for key, record in self.writer.done.items()})
        scores = {
            key: SampleScore(scored.scores[key], s.question_id, s.category, s.prompt, s.targets[0] if s.targets else "")
            for key, s in self.samples.items()
        }
        traits = job.arm.method.traits
        info = {"query_aware": traits.query_aware, "needs_vision_attention": traits.needs_vision_attention, "adaptive": traits.adaptive}
        metrics = {**scored.metrics, **{f"category/{name}": value for name, value in scored.categories.items()}}
        provenance = {**job.provenance, "wall_s": round(sum(r.wall_s for r in self.writer.done.values()), 3)}
        with self._clock("write"):
            return self.writer.seal(metrics, scores, provenance, headline=task.headline, method_info=info)


def run_pass(
    loaded: LoadedModel, opened: Mapping[str, Open], features: FeatureCache, pace: Pace, clock: Clock
) -> Generator[tuple[str, list[Record]]]:
    """One pass over the images: (identity, answers) of the open cells, a batch at a time.

    A method that fails is asked no more and the others go on; then raises PrunebenchError with what failed.
    """
    # cells of one arm are asked together; 64 and 64avg can be the same method with the same knobs, so an answer may go to several
    first: dict[str, Arm] = {}
    by_arm: dict[str, list[str]] = {}
    for identity, one in opened.items():
        arm = one.job.arm
        name = canonical_json([arm.method.name, source_of(type(arm.method)), arm.method.knobs(), arm.seed, arm.positions])
        first.setdefault(name, arm)
        by_arm.setdefault(name, []).append(identity)
    usual = loaded.usual
    # arms of one kind of prefix follow each other, so that one kind is in memory at a time
    kinds = {name: (prefix_kind(arm.method.for_model(usual.decoder), usual, arm.positions), pixels_key(arm.method)) for name, arm in first.items()}
    arms = sorted(by_arm, key=lambda name: kinds[name])
    prefixes = PrefixCache(pace.prefix_bytes) if pace.share else None
    answerers: dict[str, Answerer] = {}
    failed: dict[str, PrunebenchError] = {}
    shared: dict[str, Any] = {"features": features, "prefixes": prefixes, "clock": clock}
    for name, arm in first.items():
        try:
            most = batch_for(arm.method, pace.batch, loaded.device)
            answerers[name] = Answerer(loaded, arm.method, batch_size=most, seed=arm.seed, positions=arm.positions, **shared)
        except PrunebenchError as error:
            if len(arms) == 1:
                raise
            failed[name] = error
    for chunk in chunks(opened, usual, pace):
        previous = None
        for name in arms:
            if name in failed:
                continue
            asked: dict[str, list[str]] = {}
            prompts: dict[str, Prompt] = {}
            for identity in by_arm[name]:
                one = opened[identity]
                for s in one.samples.values():
                    if s.image_key in chunk and s.key not in one.writer.done:
                        asked.setdefault(s.key, []).append(identity)
                        prompts.setdefault(s.key, _prompt(s, one.job.task))
            if prefixes is not None and kinds[name] != previous:
                prefixes.clear()
            previous = kinds[name]
            try:
                for batch in answerers[name].batches(list(prompts.values())):
                    records: dict[str, list[Record]] = {}
                    for a in batch:
                        image = prompts[a.key].image_key
                        record = Record(a.key, image, a.text, a.n_new_tokens, a.cost, a.wall_s, a.kept)
                        for identity in asked[a.key]:
                            records.setdefault(identity, []).append(record)
                    yield from records.items()
            except PrunebenchError as error:
                if len(arms) == 1:
                    raise
                failed[name] = error
    if failed:
        said = [f"{opened[by_arm[name][0]].job.label}: {error}" for name, error in failed.items()]
        each = "; ".join(said[:3]) + (f"; and {len(said) - 3} more" if len(said) > 3 else "")
        kept = "" if len(failed) == len(arms) else ", the answers of the others are kept"
        raise PrunebenchError(f"{len(failed)} of {len(arms)} settings failed{kept}: {each}")


def _prompt(s: Sample, task: LoadedTask) -> Prompt:
    return Prompt(s.key, s.prompt, s.load_image, s.image_key, task.max_new_tokens, tuple(task.until))


def chunks(opened: Mapping[str, Open], usual: PromptShape, pace: Pace) -> Iterator[set[str]]:
    """Image keys with unanswered questions, in sets whose prefixes fit in memory; those of this shard."""
    shard, n_shards = pace.shard
    # shards are of images, not of chunks, whose size depends on the memory that each process finds
    images = sorted({s.image_key for one in opened.values() for s in one.left})[shard::n_shards]
    shape = usual.decoder
    per_layer = shape.hidden + 2 * shape.kv_heads * shape.head_dim
    # the system prompt is small beside the image
    one_prefix = shape.depth * per_layer * shape.bytes_per_value * (usual.n_visual + 64)
    size = max(1, min(CHUNK, pace.prefix_bytes // one_prefix if pace.share else CHUNK))
    for start in range(0, len(images), size):
        yield set(images[start : start + size])


def missed(jobs: Iterable[Job], cells: Mapping[str, SealedCell]) -> list[str]:
    """What a person should know about cells whose method did not keep what was asked. Methods that change pixels keep every token by design."""
    said = []
    for job in jobs:
        sealed, budget = cells.get(job.cell.identity()), budgets.parse(job.cell.budget)
        if sealed is None or type(job.arm.method).on_pixels is not Method.on_pixels:
            continue
        costs = sealed.costs
        share = costs["prefill_dense_flops"] / costs["prefill_unpruned_flops"]
        tokens = budget.asked(round(costs["n_visual"])) if "n_visual" in costs else budget.asked(0)
        if budget.unit == "kept" and abs(costs["kept"] - tokens) > 0.5:
            said.append(f"{job.label} kept {costs['kept']:.1f} visual tokens on average, {tokens:g} were asked")
        elif budget.unit == "avg" and abs(costs["mean_visual"] - tokens) > 1:
            said.append(f"{job.label} has {costs['mean_visual']:.1f} visual tokens per layer on average, {tokens:g} were asked")
        elif budget.unit == "flops" and abs(share - (budget.ratio or 0)) > 0.02:
            said.append(f"{job.label} costs {share:.3f} of the unpruned FLOPs, {budget.ratio} were asked")
    return said


def prefix_budget(device: torch.device) -> int:
    """Bytes for prefixes: a quarter of what is free on the GPU, 4 GiB on a CPU."""
    if device.type != "cuda":
        return 4 << 30
    return int(torch.cuda.mem_get_info(device)[0] // 4)


def check_complete(executed: Executed, jobs: Sequence[Job]) -> None:
    """Raise PrunebenchError naming who holds a cell, where all of them are needed."""
    if executed.busy:
        raise PrunebenchError(f"{len(executed.busy)} of {len(jobs)} cells are another runner's: {executed.busy[0][1]}")
