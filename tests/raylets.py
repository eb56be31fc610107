"""Real raylets on this machine, and a method whose workers do what a test wants: wait for each other, or die."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import ray
from ray.cluster_utils import Cluster

from harness.runner import sweep
from harness.runner.launch.ray_cluster import Cluster as Asked
from harness.runner.pace import Pace
from harness.runner.run import Options
from harness.store.journal import Record
from harness.store.store import CellWriter, Store
from harness.store.verify import verify

# workers of Ray are nice to others, who would starve them on a busy machine
os.environ.setdefault("RAY_worker_niceness", "0")
STORE = {"object_store_memory": 80 << 20, "include_dashboard": False}
METHOD = '''
"""Keeps what is nearest to the centre. Files in FOLDER say what else its workers do."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from prunebench import Ranking, Traits

FOLDER = Path("FOLDER_NAME")
SCORED = []


def meet(n):
    """Wait until n workers are here."""
    (FOLDER / "here").mkdir(exist_ok=True)
    (FOLDER / "here" / str(os.getpid())).touch()
    until = time.monotonic() + 240
    while len(list((FOLDER / "here").iterdir())) < n and time.monotonic() < until:
        time.sleep(0.05)


def first(name):
    try:
        os.close(os.open(FOLDER / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@dataclass(frozen=True)
class Gate(Ranking):
    name = "gate"
    traits = Traits(query_aware=False, image_only=True)

    def score(self, run, stream):
        SCORED.append(1)
        if (FOLDER / "meet").exists():
            meet(int((FOLDER / "meet").read_text()))
        if (FOLDER / "pause").exists():
            time.sleep(float((FOLDER / "pause").read_text()))
        if (FOLDER / "kill").exists() and len(SCORED) == 2 and first("killed"):
            os.kill(os.getppid() if (FOLDER / "kill").read_text() == "raylet" else os.getpid(), signal.SIGKILL)
            time.sleep(120)
        if (FOLDER / "deadly").exists():
            sums = [f"{float(row.double().sum()):.2f}" for row in stream.visual]
            if first("chosen"):
                (FOLDER / "image").write_text(sums[0])
            elif not (FOLDER / "image").exists():
                time.sleep(1)
            if (FOLDER / "image").read_text() in sums:
                os._exit(3)
        at = run.places
        return -((at.row - (at.rows - 1) / 2) ** 2 + (at.col - (at.cols - 1) / 2) ** 2)
'''


@contextmanager
def raylets(*cpus: int) -> Iterator[Cluster]:
    """A head with cpus[0] CPUs and a node for each of the others; all are gone afterwards."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus[0], **STORE})
    try:
        for n in cpus[1:]:
            add(cluster, n)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def add(cluster: Cluster, cpus: int = 1) -> None:
    cluster.add_node(num_cpus=cpus, object_store_memory=STORE["object_store_memory"])


def plan(folder: Path, limit: int, **files: str) -> sweep.Sweep:
    """A sweep of `none` and the method above; `files` tell its workers what to do."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    method = folder / "gate.py"
    if not method.exists():
        method.write_text(METHOD.replace("FOLDER_NAME", str(folder)))
    file = folder / "sweep.yaml"
    file.write_text(f"models: [mini]\ntasks: [gqa]\nlimit: {limit}\nbudgets: [32]\nmethods: [none, '{method}:Gate']\n")
    return sweep.load(file)


def over_ray(cluster: Cluster, wanted: sweep.Sweep, results: Path, chunk: int = 2) -> list[str]:
    """Run it on the cluster, with chunks of at most `chunk` images; what was said."""
    said: list[str] = []
    sweep.run(wanted, Options(results, Pace(chunk=chunk)), said.append, cluster=Asked(cluster.address))
    return said


def counts(said: list[str]) -> list[int]:
    """Answers by node, as the last line about them says."""
    line = [text for text in said if text.startswith("ray: answers by node: ")][-1]
    return [int(part.rpartition(": ")[2]) for part in line.removeprefix("ray: answers by node: ").split(", ")]


def samples(results: Path) -> dict[str, pd.DataFrame]:
    return {cell.identity: cell.samples() for cell in Store(results).cells()}


def assert_equal(results: Path, alone: Path) -> None:
    """The same cells with the same answers, costs and kept tokens, all whole."""
    found, expected = samples(results), samples(alone)
    assert found.keys() == expected.keys()
    for identity, frame in expected.items():
        pd.testing.assert_frame_equal(found[identity], frame, check_exact=True)
    lines, fine = verify(results)
    assert fine, lines


@contextmanager
def journalled(patch: pytest.MonkeyPatch) -> Iterator[Counter[tuple[str, str]]]:
    """How often each answer went to a journal."""
    found: Counter[tuple[str, str]] = Counter()
    append = CellWriter.append

    def noted(self: CellWriter, *records: Record) -> None:
        found.update((self.cell.identity(), record.key) for record in records)
        append(self, *records)

    with patch.context() as inside:
        inside.setattr(CellWriter, "append", noted)
        yield found
