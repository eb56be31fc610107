"""Answers by several processes: worker i answers every n-th image, the parent keeps the journals and seals.

Workers are started afresh (spawn), load the model and the data themselves and send answers back; so every journal has
one writer, and what a worker sent before it died is kept. One worker per GPU, or CPU processes that share the cores.
"""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any, cast

import torch
from torch import multiprocessing

from harness.core.errors import PrunebenchError
from harness.models.device import pick_device
from harness.runner.clock import Clock
from harness.runner.execute import Batches, Executor, InProcess, Work
from harness.runner.jobs import prepare
from harness.runner.launch.guarded import guarded
from harness.runner.pace import Pace
from harness.runner.session import Session


def executor(workers: int, session: Session) -> Executor:
    """One for that many processes; one process is this one."""
    return Processes(workers, session.clock) if workers > 1 else InProcess(session)


def device_of(worker: int, device: torch.device) -> str:
    """The device of one worker: GPUs in turn where none was named."""
    if device.type == "cuda" and device.index is None:
        return f"cuda:{worker % torch.cuda.device_count()}"
    return str(device)


def threads_each(workers: int) -> int:
    """CPU threads of each of `workers` processes: more of them than cores spin against each other."""
    return max(
        1, (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) // workers
    )


class Processes:
    """`workers` processes on this machine. `clock` is charged with the wait for them."""

    def __init__(self, workers: int, clock: Clock) -> None:
        self.workers, self._clock = workers, clock

    def answers(self, work: Sequence[Work], pace: Pace) -> Batches:
        """As `Executor.answers`. Raises PrunebenchError where a worker fails or ends."""
        context = multiprocessing.get_context("spawn")
        # read by the worker itself, so that what does not load there is an error with its reason, and so that a worker
        # that still imports torch is guarded already
        packed = pickle.dumps((list(work), pace))
        processes: list[Any] = []
        # a pipe each: the end of a process, also in the middle of a message, is an EOFError here
        inboxes: dict[Connection, int] = {}
        failed: str | None = None
        refused: dict[str, int] = {}
        try:
            for i in range(self.workers):
                receiving, sending = context.Pipe(duplex=False)
                device = device_of(i, work[0].setting.located.device)
                mine = os.getpid(), __name__, _work.__name__, packed, device, i, self.workers, sending
                process = context.Process(target=guarded, args=mine, daemon=True)
                process.start()
                sending.close()
                processes.append(process)
                inboxes[receiving] = i
            while inboxes and failed is None:
                with self._clock("workers"):
                    ready = cast(list[Connection], wait(list(inboxes)))
                for inbox in ready:
                    worker = inboxes[inbox]
                    try:
                        kind, who, what = inbox.recv()
                    except EOFError:
                        processes[worker].join()
                        failed = self._ended(worker, processes[worker].exitcode)
                        continue
                    if kind == "answers":
                        yield who, what
                    elif kind in ("done", "refused"):
                        del inboxes[inbox]
                        if kind == "refused":
                            refused.setdefault(what, worker)
                    else:
                        failed = f"worker {worker} of {self.workers}: {what}"
            if failed is None and refused:  # what the others can do is done
                failed = "; ".join(f"worker {worker} of {self.workers}: {what}" for what, worker in refused.items())
            if failed is not None:
                raise PrunebenchError(failed)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.join()

    def _ended(self, worker: int, code: int | None) -> str:
        return (
            f"worker {worker} of {self.workers} ended with exit code {code} before its share was done (out of "
            "memory?); answers so far are kept: run the same command again, perhaps with fewer --workers"
        )


def _work(packed: bytes, device: str, shard: int, workers: int, outbox: Connection) -> None:
    """What a worker runs."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    with suppress(BrokenPipeError):  # the parent is gone, and so is the reason to go on
        try:
            torch.set_num_threads(threads_each(workers))
            session = Session()
            work, pace = pickle.loads(packed)
            work, pace = here(work, device, session), replace(pace, shard=(shard, workers))
            for identity, records in InProcess(session).answers(work, pace):
                outbox.send(("answers", identity, records))
            outbox.send(("done", shard, None))
        except BrokenPipeError:
            raise
        except PrunebenchError as error:
            outbox.send(("refused", shard, str(error)))
        except BaseException:
            outbox.send(("error", shard, traceback.format_exc()))


def here(work: Sequence[Work], device: str, session: Session) -> list[Work]:
    """The work of a parent on a device of this process. Raises PrunebenchError where a setting makes another cell
    here."""
    located = replace(work[0].setting.located, device=pick_device(device))
    mine = [one._replace(setting=replace(one.setting, located=located)) for one in work]
    for one, job in zip(mine, prepare([one.setting for one in mine], session), strict=True):
        if job.identity != one.identity:
            why = "were model, data or the code of a method changed meanwhile?"
            raise PrunebenchError(
                f"expected the cells of the parent, found {job.identity} for {one.identity} ({one.setting.label}):"
                f" {why}"
            )
    return mine
