"""One sweep by several processes: worker i answers every n-th chunk of images, the parent keeps the journals and seals.

Workers are started afresh (spawn), load the model and the data themselves and send answers back; so every journal has one writer, and what a
worker sent before it died is kept. One worker per GPU, or CPU processes that share the cores.
"""

from __future__ import annotations

import os
import queue
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import multiprocessing

from harness.errors import PrunebenchError
from harness.execute import Open, run_pass
from harness.models import locate_model
from harness.run import Request, Session, prepare
from harness.store import Record

if TYPE_CHECKING:
    from harness.sweep import Sweep

Message = tuple[str, Any, Any]


def device_of(worker: int, device: str) -> str:
    """The device of one worker: GPUs in turn where there are any and none was named."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{worker % torch.cuda.device_count()}"
    return device


def threads_each(workers: int) -> int:
    """CPU threads of each of `workers` processes: more of them than cores spin against each other."""
    return max(1, (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) // workers)


def spread(sweep: Sweep, shared: Request, model: str, workers: int) -> Callable[[Mapping[str, Open]], Iterator[tuple[str, list[Record]]]]:
    """For `execute(answers=)`: runs the open cells of `model` in `workers` processes. Raises PrunebenchError where one of them fails."""

    def answers(opened: Mapping[str, Open]) -> Iterator[tuple[str, list[Record]]]:
        context = multiprocessing.get_context("spawn")
        inbox: Any = context.Queue(maxsize=1024)
        done = {identity: set(one.writer.done) for identity, one in opened.items()}
        arguments = [(i, workers, sweep, replace(shared, device=device_of(i, shared.device)), model, done, inbox) for i in range(workers)]
        running = {i: context.Process(target=_work, args=a, daemon=True) for i, a in enumerate(arguments)}
        try:
            for process in running.values():
                process.start()
            while running:
                try:
                    kind, who, what = inbox.get(timeout=1.0)
                except queue.Empty:
                    dead = [i for i, p in running.items() if p.exitcode is not None]
                    if dead:
                        code = running[dead[0]].exitcode
                        raise PrunebenchError(
                            f"worker {dead[0]} of {workers} ended with exit code {code} before its share was done (out of memory?); "
                            "answers so far are kept: run the same command again, perhaps with fewer --workers"
                        ) from None
                    continue
                if kind == "answers":
                    yield who, what
                elif kind == "done":
                    running.pop(who).join()
                else:
                    raise PrunebenchError(f"worker {who} of {workers}: {what}")
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.join()

    return answers


class _Share:
    """A cell as a worker sees it: which samples are left, and no journal."""

    def __init__(self, job: Any, done: set[str]) -> None:
        self.job, self.samples, self.writer = job, {s.key: s for s in job.task.samples}, self
        self.done = done

    @property
    def left(self) -> list[Any]:
        return [s for s in self.samples.values() if s.key not in self.done]


def _work(shard: int, workers: int, sweep: Sweep, shared: Request, model: str, done: dict[str, set[str]], outbox: Any) -> None:
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    try:
        from harness.sweep import requests

        torch.set_num_threads(threads_each(workers))
        session = Session()
        asked = [a.request for a in requests(sweep, shared) if a.request.model == model]
        located = locate_model(model, shared.device, asked[0].dtype)
        jobs = {j.cell.identity(): j for request in asked for j in prepare(request, session, located)}
        strange = sorted(set(done) - set(jobs))
        if strange:
            raise PrunebenchError(f"expected the cells of the parent, lacks {strange[0]}: were model or data changed meanwhile?")
        opened: Any = {identity: _Share(jobs[identity], keys) for identity, keys in done.items()}
        pace = replace(asked[0].pace(located), shard=(shard, workers))
        for identity, records in run_pass(session.model(located), opened, session.features, pace, session.clock):
            outbox.put(("answers", identity, records))
        outbox.put(("done", shard, None))
    except PrunebenchError as error:
        outbox.put(("error", shard, str(error)))
    except BaseException:
        outbox.put(("error", shard, traceback.format_exc()))
    finally:
        outbox.close()
        outbox.join_thread()
