"""examples/slurm/sweep.sbatch, run by a SLURM that is this machine (fakeslurm.py)."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from helpers import run

from harness.core.paths import TOP
from harness.runner.launch import launchers
from harness.store.store import Store

SCRIPT = TOP / "examples" / "slurm" / "sweep.sbatch"
HERE = Path(__file__).parent
PATIENCE_S = 60
#: a head listens and a node does not; both end by SIGTERM as `ray start --block` does
RAY = """\
import os, socket, sys, time
open(os.environ["SEEN"], "a").write(f"ray {' '.join(sys.argv[1:])}\\n")
if os.environ.get("NO_RAY"):
    sys.exit("no Ray here")
if "--head" in sys.argv:
    port = next(int(word.partition("=")[2]) for word in sys.argv if word.startswith("--port="))
    listening = socket.create_server(("127.0.0.1", port))
    folder = next(word.partition("=")[2] for word in sys.argv if word.startswith("--temp-dir="))
    open(os.path.join(folder, "ray_current_cluster"), "w").write(f"127.0.0.1:{port}")
time.sleep(600)
"""
#: a sweep that needs two starts where it is asked to wait, and ends in order by SIGTERM
PRUNEBENCH = """\
import os, signal, sys, time
from harness.runner.launch.launchers import check_alone
check_alone()
seen = open(os.environ["SEEN"], "a")
def end(number, frame):
    print("answers written", file=seen, flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
print("sweep", *sys.argv[1:], file=seen, flush=True)
if "wait" in sys.argv and "SLURM_RESTART_COUNT" not in os.environ:
    time.sleep(600)
sys.exit(int(os.environ.get("ENDS_WITH", "0")))
"""


class Cluster:
    """A folder for the state, and commands in front of PATH. `seen`: what the fake ray and prunebench were given."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state, self.bin = folder, folder / "state", folder / "bin"
        self.state.mkdir()
        self.bin.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as some:
            free = some.getsockname()[1]
        for port in range(20000 + free % 9000, 30000):  # as the script derives it from the number
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)):
                    self.job = str(port - 20000)
                    break
        for name in ("sbatch", "srun", "scancel", "scontrol"):
            self.add(name, [sys.executable, str(HERE / "fakeslurm.py"), name])
        self.environment = {
            **os.environ,
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "FAKE_SLURM": str(self.state),
            "FAKE_JOB": self.job,
            "HEAD_IP": "127.0.0.1",
            "SEEN": str(folder / "seen"),
            "PYTHONPATH": str(TOP),
        }
        self.started: list[subprocess.Popen[str]] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{20000 + int(self.job)}"

    @property
    def log(self) -> str:
        return (self.folder / f"prunebench-{self.job}.log").read_text()

    @property
    def seen(self) -> list[str]:
        file = self.folder / "seen"
        return file.read_text().splitlines() if file.exists() else []

    def add(self, name: str, command: list[str]) -> None:
        """A command `name` that runs another one."""
        (self.bin / name).write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        (self.bin / name).chmod(0o755)

    def submit(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        job = subprocess.Popen(
            ["sbatch", *words],
            cwd=self.folder,
            env={**self.environment, **variables},
            text=True,
            start_new_session=True,
        )
        self.started.append(job)
        return job

    def until(self, done: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
        end = time.monotonic() + patience_s
        while not done():
            assert time.monotonic() < end, (self.seen, self.log)
            time.sleep(0.05)

    def close(self) -> None:
        for job in self.started:
            if job.poll() is None:
                subprocess.run(["scancel", "--signal=TERM", self.job], env=self.environment, check=False)
                os.kill(int((self.state / "batch").read_text()), signal.SIGKILL)
                job.wait(PATIENCE_S)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    for name, code in (("ray", RAY), ("prunebench", PRUNEBENCH)):
        (tmp_path / f"{name}.py").write_text(code)
        made.add(name, [sys.executable, str(tmp_path / f"{name}.py")])
    yield made
    made.close()


def test_the_script_is_one_for_bash() -> None:
    assert os.access(SCRIPT, os.X_OK)
    done = subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_head_the_nodes_and_the_sweep_start_and_end(cluster: Cluster) -> None:
    job = cluster.submit("--nodes=3", str(SCRIPT), "my sweep.yaml", "--limit", "9", "wait", SLURM_RESTART_COUNT="1")
    assert job.wait(PATIENCE_S) == 0, cluster.log
    heads = [line for line in cluster.seen if line.startswith("ray start --head --block")]
    assert len(heads) == 1
    assert "--disable-usage-stats" in heads[0]
    assert "--include-dashboard=false" in heads[0]
    (sweep,) = [line for line in cluster.seen if line.startswith("sweep")]
    assert sweep == f"sweep sweep my sweep.yaml --limit 9 wait --executor ray --address {cluster.address}"
    assert list(cluster.state.glob("task.*")) == []


def test_variables_of_a_group_end_in_the_script(cluster: Cluster) -> None:
    """The fake prunebench looks at them as the real one does."""
    names = (*launchers._SIZES, *launchers._RANKS)
    job = cluster.submit("--nodes=2", str(SCRIPT), "my.yaml", **dict.fromkeys(names, "2"))
    assert job.wait(PATIENCE_S) == 0, cluster.log
    assert any(line.startswith("sweep") for line in cluster.seen)


def test_nodes_join_the_head(cluster: Cluster) -> None:
    job = cluster.submit("--nodes=3", str(SCRIPT), "my.yaml", "wait")
    cluster.until(lambda: sum(f"ray start --block --address={cluster.address}" in line for line in cluster.seen) == 2)
    os.kill(int((cluster.state / "batch").read_text()), signal.SIGTERM)
    assert job.wait(PATIENCE_S) == 0, cluster.log


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("whom", ["batch script", "tasks"])
def test_a_pre_empted_job_is_queued_again_and_continues(whom: str, nodes: int, cluster: Cluster) -> None:
    """SLURM signals the batch script before the time limit, and the tasks where a partition has a GraceTime."""
    job = cluster.submit(f"--nodes={nodes}", str(SCRIPT), "my.yaml", "wait")
    cluster.until(lambda: any(line.startswith("sweep") for line in cluster.seen))
    time.sleep(0.3)  # its handler is there
    if whom == "tasks":
        subprocess.run(["scancel", "--signal=TERM", cluster.job], env=cluster.environment, check=True)
    else:
        os.kill(int((cluster.state / "batch").read_text()), signal.SIGTERM)
    assert job.wait(PATIENCE_S) == 0, cluster.log
    sweeps = [line for line in cluster.seen if line.startswith("sweep")]
    assert len(sweeps) == 2
    assert sweeps[0] == sweeps[1]
    assert cluster.seen.count("answers written") == 1
    assert "queued again" in cluster.log


def test_a_job_that_was_cancelled_stays_so(cluster: Cluster) -> None:
    job = cluster.submit("--nodes=2", str(SCRIPT), "my.yaml", "wait")
    cluster.until(lambda: any(line.startswith("sweep") for line in cluster.seen))
    time.sleep(0.3)
    (cluster.state / "cancelled").touch()
    subprocess.run(["scancel", "--signal=TERM", cluster.job], env=cluster.environment, check=True)
    assert job.wait(PATIENCE_S) == 143
    assert "queued again" not in cluster.log


def test_a_sweep_that_fails_gives_the_job_its_exit_code(cluster: Cluster) -> None:
    job = cluster.submit("--nodes=2", str(SCRIPT), "my.yaml", ENDS_WITH="2")
    assert job.wait(PATIENCE_S) == 2
    assert "queued again" not in cluster.log
    assert sum(line.startswith("sweep") for line in cluster.seen) == 1


def test_a_head_that_does_not_start_ends_the_job_with_its_words(cluster: Cluster) -> None:
    job = cluster.submit("--nodes=2", str(SCRIPT), "my.yaml", NO_RAY="1")
    assert job.wait(PATIENCE_S) == 1
    assert "no Ray here" in cluster.log
    assert not any(line.startswith("sweep") for line in cluster.seen)


#: a method that takes a second a question until the job is queued again, so that there is a middle
SLOW = """\
import os, time
from dataclasses import dataclass
from prunebench import Ranking, Traits

@dataclass(frozen=True)
class Slow(Ranking):
    name = "slow"
    traits = Traits(query_aware=False, image_only=True)

    def score(self, run, stream):
        if "PAUSE" in os.environ and "SLURM_RESTART_COUNT" not in os.environ:
            time.sleep(1)
        return -run.places.row.float()
"""
SWEEP = """\
models: [mini]
tasks: [pope]
limit: 36
budgets: [64]
methods: ["FOLDER/slow.py:Slow"]
"""
ONE_BY_ONE = ("--no-share", "--batch", "1")


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Cluster]:
    """Ray and prunebench themselves."""
    made = Cluster(tmp_path)
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "sweep.yaml").write_text(SWEEP.replace("FOLDER", str(tmp_path)))
    made.add("ray", [sys.executable, "-c", "from ray.scripts.scripts import main; main()"])
    made.add("prunebench", [sys.executable, "-m", "prunebench"])
    yield made
    made.close()


def samples(results: Path) -> dict[str, pd.DataFrame]:
    return {cell.identity: cell.samples() for cell in Store(results).cells()}


@pytest.mark.slow
@pytest.mark.parametrize("pre_empted", [False, True], ids=["undisturbed", "pre-empted"])
def test_a_sweep_on_real_ray_nodes_gives_the_samples_of_one_process(
    pre_empted: bool, real: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, there = real.folder / "one", real.folder / "there"
    file = str(real.folder / "sweep.yaml")
    code, _, err = run(capsys, monkeypatch, "sweep", file, "--results", str(one), *ONE_BY_ONE)
    assert code == 0, err
    asked = ("sweep.yaml", "--results", str(there), "--device", "cpu", *ONE_BY_ONE)
    variables = {"FAKE_COPY": str(there), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    variables |= {"PAUSE": "1"} if pre_empted else {}
    job = real.submit("--nodes=2", "--cpus-per-task=1", str(SCRIPT), *asked, **variables)
    if pre_empted:
        real.until(lambda: bool(journalled(there)), 300)
        subprocess.run(["scancel", "--signal=TERM", real.job], env=real.environment, check=True)
    assert job.wait(600) == 0, real.log
    expected, found = samples(one), samples(there)
    assert found.keys() == expected.keys()
    for identity, frame in expected.items():
        pd.testing.assert_frame_equal(found[identity], frame, check_exact=True)
    if pre_empted:
        assert real.log.count("queued again") == 1
        keys = journalled(real.state / "copy")
        assert 0 < len(keys) == len(set(keys)) < sum(map(len, expected.values()))


def journalled(results: Path) -> list[tuple[str, str]]:
    """(cell, key) of every answer in a journal, in order."""
    found = []
    for file in results.glob("cells/*/*/journal.jsonl"):
        whole = file.read_bytes().rpartition(b"\n")[0]
        found += [(file.parent.name, json.loads(line)["key"]) for line in whole.splitlines()[1:]]
    return found
