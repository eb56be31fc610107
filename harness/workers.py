"""One sweep by several processes: worker i answers every n-th image, the parent keeps the journals and seals.

Workers are started afresh (spawn), load the model and the data themselves and send answers back; so every journal has one writer, and what a
worker sent before it died is kept. One worker per GPU, or CPU processes that share the cores.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import multiprocessing

from harness.errors import PrunebenchError
from harness.execute import Job, Open, run_pass
from harness.models import locate_model
from harness.run import Request, Session, prepare
from harness.store import Record

if TYPE_CHECKING:
    from harness.sweep import Sweep


def device_of(worker: int, device: str) -> str:
    """The device of one worker: GPUs in turn where there are any and none was named."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{worker % torch.cuda.device_count()}"
    return device


def threads_each(workers: int) -> int:
    """CPU threads of each of `workers` processes: more of them than cores spin against each other."""
    return max(1, (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) // workers)


def spread(sweep: Sweep, shared: Request, model: str, workers: int) -> Callable[[Mapping[str, Open]], Generator[tuple[str, list[Record]]]]:
    """For `execute(answers=)`: runs the open cells of `model` in `workers` processes. Raises PrunebenchError where one of them fails."""

    def answers(opened: Mapping[str, Open]) -> Generator[tuple[str, list[Record]]]:
        context = multiprocessing.get_context("spawn")
        done = {identity: set(one.writer.done) for identity, one in opened.items()}
        processes: list[Any] = []
        # a pipe each: the end of a process, also in the middle of a message, is an EOFError here
        inboxes: dict[Connection, int] = {}
        failed: str | None = None
        refused: dict[str, int] = {}
        try:
            for i in range(workers):
                receiving, sending = context.Pipe(duplex=False)
                device = replace(shared, device=device_of(i, shared.device))
                process = context.Process(target=_work, args=(i, workers, sweep, device, model, done, sending), daemon=True)
                process.start()
                sending.close()
                processes.append(process)
                inboxes[receiving] = i
            while inboxes and failed is None:
                for inbox in cast(list[Connection], wait(list(inboxes))):
                    worker = inboxes[inbox]
                    try:
                        kind, who, what = inbox.recv()
                    except EOFError:
                        processes[worker].join()
                        failed = (
                            f"worker {worker} of {workers} ended with exit code {processes[worker].exitcode} before its share was done (out of "
                            "memory?); answers so far are kept: run the same command again, perhaps with fewer --workers"
                        )
                        continue
                    if kind == "answers":
                        yield who, what
                    elif kind in ("done", "refused"):
                        del inboxes[inbox]
                        if kind == "refused":
                            refused.setdefault(what, worker)
                    else:
                        failed = f"worker {worker} of {workers}: {what}"
            if failed is None and refused:  # what the others can do is done
                failed = "; ".join(f"worker {worker} of {workers}: {what}" for what, worker in refused.items())
            if failed is not None:
                raise PrunebenchError(failed)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.join()

    return answers


class _Share:
    """A cell as a worker sees it: which samples are left, and no journal. Stands in for `Open` and its `writer`."""

    def __init__(self, job: Job, done: set[str]) -> None:
        self.job, self.samples, self.writer = job, {s.key: s for s in job.task.samples}, self
        self.done = done

    @property
    def left(self) -> list[Any]:
        return [s for s in self.samples.values() if s.key not in self.done]


def _work(shard: int, workers: int, sweep: Sweep, shared: Request, model: str, done: dict[str, set[str]], outbox: Connection) -> None:
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    with suppress(BrokenPipeError):  # the parent is gone, and so is the reason to go on
        try:
            from harness.sweep import requests

            torch.set_num_threads(threads_each(workers))
            session = Session()
            asked = [a.request for a in requests(sweep, shared) if a.request.model == model]
            located = locate_model(model, shared.device, asked[0].dtype)
            jobs = {j.cell.identity(): j for request in asked for j in prepare(request, session, located)}
            strange = sorted(set(done) - set(jobs))
            if strange:
                why = "were model, data or the code of a method changed meanwhile?"
                raise PrunebenchError(f"expected the cells of the parent, lacks {strange[0]}: {why}")
            opened: Any = {identity: _Share(jobs[identity], keys) for identity, keys in done.items()}
            loaded = session.model(located)
            pace = replace(asked[0].pace(located), shard=(shard, workers))
            for identity, records in run_pass(loaded, opened, session.features, pace, session.clock):
                outbox.send(("answers", identity, records))
            outbox.send(("done", shard, None))
        except BrokenPipeError:
            raise
        except PrunebenchError as error:
            outbox.send(("refused", shard, str(error)))
        except BaseException:
            outbox.send(("error", shard, traceback.format_exc()))
