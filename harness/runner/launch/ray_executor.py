"""Answers by the workers of a Ray cluster: whoever is idle gets the next chunk, this process keeps journals and seals.

Workers send answers back batch by batch and wait where nobody takes them, so no node needs the results folder. What a
worker sent before it died is kept; the rest of its chunk goes to another. A node that joins gets workers.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from harness.runner.environment import environment
from harness.runner.execute import Batches, Executor, Work
from harness.runner.jobs import prepare
from harness.runner.launch.ray_board import Board
from harness.runner.launch.ray_cluster import Cluster, connected
from harness.runner.launch.ray_crew import Crew
from harness.runner.pace import CHUNK, Pace
from harness.runner.session import Session


@contextmanager
def on_ray(cluster: Cluster, session: Session, say: Callable[[str], None]) -> Iterator[Executor]:
    """An executor on a cluster that is joined inside. Raises as `connected`."""
    with connected(cluster):
        yield OnRay(cluster, session, say)


class OnRay:
    """`say` is told who is refused, who died, and at the end how many answers each node gave."""

    def __init__(self, cluster: Cluster, session: Session, say: Callable[[str], None]) -> None:
        self._cluster, self._session, self._say = cluster, session, say

    def answers(self, work: Sequence[Work], pace: Pace) -> Batches:
        """As `Executor.answers`. Raises PrunebenchError where no node can be used, and at the end where a setting
        failed or a chunk was set aside."""
        jobs = prepare([one.setting for one in work], self._session)
        questions: dict[str, list[tuple[str, str]]] = {}
        for one, job in zip(work, jobs, strict=True):
            for sample in job.task.samples:
                if sample.key in one.left:
                    questions.setdefault(sample.image_key, []).append((one.identity, sample.key))
        board = Board(questions, pace.chunk or CHUNK)
        cells = {job.identity: asdict(job.cell) for job in jobs}
        packed = pickle.dumps(([one._replace(left=frozenset()) for one in work], cells, pace))
        device = work[0].setting.located.device
        crew = Crew(self._cluster, device.type, environment(device), packed, board, self._say)
        try:
            while board.waiting or crew.asked:
                crew.look()
                crew.hand_out()
                with self._session.clock("workers"):
                    ready = crew.wait()
                for member in ready:
                    yield from crew.hear(member)
        finally:
            crew.dismiss()
        self._say("ray: answers by node: " + ", ".join(f"{name}: {n}" for name, n in sorted(crew.answers.items())))
        board.check()
