"""The workers on the nodes of a Ray cluster: started, compared with the driver, asked, and replaced when they die."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.core.errors import PrunebenchError
from harness.core.spelling import CALLER, given
from harness.runner.launch.ray_actor import RayWorker
from harness.runner.launch.ray_board import Board, Chunk
from harness.runner.launch.ray_cluster import Cluster, Node, nodes
from harness.store.journal import Record

#: batches of answers that a worker may be ahead of the driver
AHEAD = 8
#: between two looks at the nodes, and at a worker out of sight
LOOK_SECONDS = 1.0
#: for a node that fits to join where there is none, and for a worker to come back into sight
JOIN_SECONDS, UNSEEN_SECONDS = 60.0, 60.0
#: workers that may die on a node before they are ready; then the node is left out
STARTS = 3
#: how torch calls a fault of the card, after which its process can compute no more
CUDA_FAULT = "CUDA error"
#: such faults of a node that are taken for chance
FAULTS = 1


@dataclass
class Member:
    """A worker. `awaited`: what Ray will give us next, None while it is idle or out of sight; `chunk`: what it was
    asked; `unseen`: since when it is out of sight."""

    actor: Any
    node: Node
    awaited: Any = None
    ready: bool = False
    chunk: Chunk | None = None
    unseen: float | None = None

    @property
    def idle(self) -> bool:
        return self.ready and self.awaited is None and self.unseen is None


class Crew:
    """`surroundings` and `packed`: see `RayWorker.prepare`; `say` is told who is refused and who died."""

    def __init__(
        self,
        cluster: Cluster,
        device: str,
        surroundings: Mapping[str, str],
        packed: bytes,
        board: Board,
        say: Callable[[str], None],
    ) -> None:
        import ray

        self._ray, self._cluster, self._device, self._board, self._say = ray, cluster, device, board, say
        self._order = ray.put((surroundings, packed))
        self._members: list[Member] = []
        self._left_out: dict[str, str] = {}
        self._starts: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._began = self._manned = time.monotonic()
        self._looked, self._noted = -LOOK_SECONDS, False
        self.answers: Counter[str] = Counter()

    @property
    def asked(self) -> bool:
        """Has anyone a chunk?"""
        return any(member.chunk is not None for member in self._members)

    def look(self) -> None:
        """Start workers where nodes have room, and look after those that are out of sight.

        Raises PrunebenchError where no node can be used.
        """
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        if self._members:
            self._manned = self._looked
        for member in [one for one in self._members if one.unseen is not None]:
            if self._looked - (member.unseen or 0.0) > UNSEEN_SECONDS:
                self._died(member, f"out of sight for {UNSEEN_SECONDS:.0f} s")
            elif member.awaited is None:
                member.awaited = member.actor.seen.options(concurrency_group="look").remote()
        if self._board.waiting:
            self._recruit()
        if not self._noted and self._looked - self._began > JOIN_SECONDS and not any(m.ready for m in self._members):
            self._noted = True
            self._say(
                "note: no worker is ready yet: they load, or wait for CPUs or GPUs that others hold (`ray status`)"
            )

    def _recruit(self) -> None:
        fitting = nodes(self._cluster, self._device)
        held = Counter(member.node.id for member in self._members)
        most = self._cluster.workers or sum(node.slots for node in fitting)
        for node in fitting:
            for _ in range(node.slots - held[node.id]):
                if node.id not in self._left_out and len(self._members) < most:
                    self._start(node)
        if self._members:
            self._manned = time.monotonic()
            return
        if fitting and all(node.id in self._left_out for node in fitting):
            raise PrunebenchError(f"no node of the Ray cluster can be used: {'; '.join(self._left_out.values())}")
        if time.monotonic() - self._manned > JOIN_SECONDS:
            kind = "a GPU" if self._device == "cuda" else "a CPU"
            raise PrunebenchError(
                f"{given('executor', 'ray')}: expected a node with {kind} within {JOIN_SECONDS:.0f} s, found"
                f" none: run `ray start` where there is one, or give another {given('device')}"
            )

    def _start(self, node: Node) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        made = self._ray.remote(concurrency_groups={"work": 1, "look": 1})(RayWorker).options(
            num_cpus=0 if node.gpus else node.cpus,
            num_gpus=node.gpus,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        )
        actor = made.remote("cuda:0" if node.gpus else "cpu", max(1, node.cpus), os.environ.get(CALLER), os.getcwd())
        self._members.append(Member(actor, node, actor.prepare.options(concurrency_group="work").remote(self._order)))

    def hand_out(self) -> None:
        """Give chunks to those that are idle."""
        for member in self._members:
            while member.idle and self._board.waiting:
                chunk = self._board.next(len(self._members))
                asked = self._board.asked(chunk)
                if asked:
                    ask = member.actor.answers.options(
                        concurrency_group="work", num_returns="streaming", _generator_backpressure_num_objects=AHEAD
                    )
                    member.chunk, member.awaited = chunk, ask.remote(asked)

    def wait(self) -> list[Member]:
        """Those that have something for us, within a second."""
        waited = {member.awaited: member for member in self._members if member.awaited is not None}
        if not waited:
            time.sleep(LOOK_SECONDS)
            return []
        self._ray.wait(list(waited), num_returns=1, timeout=LOOK_SECONDS)
        # all that is there: of the first alone, one busy worker would hold up the others
        ready, _ = self._ray.wait(list(waited), num_returns=len(waited), timeout=0)
        return [waited[one] for one in ready]

    def hear(self, member: Member) -> Iterator[tuple[str, list[Record]]]:
        """Take what one of them has: (identity, answers that nobody gave before)."""
        errors = self._ray.exceptions
        asked = member.chunk is not None and member.unseen is None
        try:
            said = self._ray.get(next(member.awaited) if asked else member.awaited)
        except StopIteration:
            member.chunk = member.awaited = None
        except errors.ActorUnavailableError:
            member.unseen, member.awaited = member.unseen or time.monotonic(), None
        except errors.RayTaskError as error:
            if member.ready and CUDA_FAULT in str(error):
                self._fell_ill(member, str(error).strip().rpartition("\n")[2])
                return
            if member.ready:
                raise PrunebenchError(f"a worker on {member.node.name}: {error}") from None
            self._leave_out(member.node, str(error).strip().rpartition("\n")[2])
            self._drop(member)
        except errors.RayError as error:
            self._died(member, " ".join(str(error).split())[:240])
        else:
            if asked:
                yield from self._taken(member, *said)
            elif member.unseen is not None:
                self._again_in_sight(member)
            elif said:
                self._leave_out(member.node, said)
                self._drop(member)
            else:
                member.ready, member.awaited = True, None

    def _taken(self, member: Member, kind: str, identity: str, what: Any) -> Iterator[tuple[str, list[Record]]]:
        if kind == "failed":
            assert member.chunk is not None
            self._board.failed(member.chunk, what)
            return
        new = self._board.new(identity, what)
        self.answers[member.node.name] += len(new)
        if new:
            yield identity, new

    def _again_in_sight(self, member: Member) -> None:
        """What it was asked, or said meanwhile, may be lost."""
        member.unseen = member.awaited = None
        if member.chunk is not None:
            self._board.back(member.chunk)
            member.chunk = None
        elif not member.ready:
            self._died(member, "out of sight while it started")

    def _died(self, member: Member, why: str) -> None:
        where = member.node.name
        self._say(f"note: a worker on {where} ended: {why}")
        self._drop(member)
        if member.chunk is not None:
            self._board.back(member.chunk, f"on {where}")
        elif not member.ready:
            self._starts[member.node.id] += 1
            if self._starts[member.node.id] == STARTS:
                self._leave_out(member.node, f"{STARTS} workers ended before they were ready, the last: {why}")

    def _fell_ill(self, member: Member, why: str) -> None:
        """Its card failed: another worker answers, and after one more time the node gets no work."""
        self._died(member, why)
        self._faults[member.node.id] += 1
        if self._faults[member.node.id] > FAULTS:
            self._leave_out(member.node, f"its card fails again: {why}")

    def _leave_out(self, node: Node, why: str) -> None:
        if node.id not in self._left_out:
            self._left_out[node.id] = f"{node.name}: {why}"
            self._say(f"note: node {self._left_out[node.id]}: it gets no work")

    def _drop(self, member: Member) -> None:
        self._members.remove(member)
        try:
            self._ray.kill(member.actor)
        except Exception as error:  # the other workers answer on, whatever Ray says of this one
            self._say(f"note: a worker on {member.node.name} may still run: {' '.join(str(error).split())[:240]}")

    def dismiss(self) -> None:
        """End all workers."""
        for member in list(self._members):
            self._drop(member)
