"""Workers, nodes and the driver die in the middle of a sweep, and the cells end as if nobody had."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from raylets import add, assert_equal, counts, journalled, over_ray, plan, raylets, samples

from harness.core.errors import PrunebenchError
from harness.core.paths import TOP
from harness.runner import sweep
from harness.runner.launch import ray_crew, ray_executor
from harness.runner.launch.ray_board import Board
from harness.runner.launch.ray_cluster import Cluster as Asked
from harness.runner.launch.ray_cluster import Node
from harness.runner.launch.ray_crew import Crew, Member
from harness.runner.run import Options

LIMIT = 24
PATIENCE_S = 600


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the method and, in alone/, what this process measures with it."""
    folder = tmp_path_factory.mktemp("work")
    sweep.run(plan(folder, LIMIT), Options(folder / "alone"), lambda _: None)
    return folder


@pytest.fixture
def told(work: Path) -> Path:
    """The folder, without what an earlier test told the workers."""
    for file in work.iterdir():
        if file.name in ("meet", "pause", "kill", "killed", "deadly", "chosen", "image"):
            file.unlink()
        elif file.name == "here":
            for pid in file.iterdir():
                pid.unlink()
    return work


class Fake:
    """Stands for Ray: one worker, whose every call raises or gives what comes next in `script`."""

    exceptions = ray.exceptions

    def __init__(self, *script: Any) -> None:
        self.script, self.said = list(script), list[str]()
        self.actor = SimpleNamespace(seen=SimpleNamespace(options=lambda **_: SimpleNamespace(remote=object)))

    def put(self, what: object) -> None: ...

    def kill(self, actor: object) -> None: ...

    def get(self, what: object) -> Any:
        said = self.script.pop(0)
        if isinstance(said, Exception):
            raise said
        return said


def lone_worker(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> tuple[Crew, Member, Board]:
    """A crew of one worker that has a chunk."""
    monkeypatch.setattr(ray, "put", fake.put)
    board = Board({"image": [("a", "0")]}, 1)
    crew = Crew(Asked(), "cpu", {}, b"", board, fake.said.append)
    crew._ray = fake
    member = Member(fake.actor, Node("n", "n", 1, 1, 0), iter([object()]), True, board.next(1))
    crew._members.append(member)
    return crew, member, board


def unavailable() -> Exception:
    return ray.exceptions.ActorUnavailableError("gone", b"0" * 16)


def test_a_worker_that_comes_back_into_sight_has_not_died(monkeypatch: pytest.MonkeyPatch) -> None:
    crew, member, board = lone_worker(Fake(unavailable(), unavailable(), None), monkeypatch)
    chunk = member.chunk
    list(crew.hear(member))
    for _ in range(2):
        assert not member.idle
        crew._looked = -10.0
        crew.look()
        list(crew.hear(member))
    assert member.idle
    assert board.next(1) is chunk
    assert chunk is not None
    assert chunk.deaths == []


def test_a_worker_that_stays_out_of_sight_has_died(monkeypatch: pytest.MonkeyPatch) -> None:
    crew, member, board = lone_worker(Fake(unavailable()), monkeypatch)
    monkeypatch.setattr(ray_crew, "UNSEEN_SECONDS", 0.0)
    monkeypatch.setattr(Crew, "_recruit", lambda self: None)
    list(crew.hear(member))
    crew._looked = -10.0
    time.sleep(0.01)
    crew.look()
    assert not crew.asked
    assert board.next(1).deaths == ["on n"]


def test_a_card_that_fails_twice_gets_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = ray.exceptions.RayTaskError("answers", "Traceback\nRuntimeError: CUDA error: uncorrectable ECC", None)
    crew, member, board = lone_worker(Fake(fault, fault), monkeypatch)
    list(crew.hear(member))
    assert not crew._left_out
    chunk = board.next(1)
    assert chunk.deaths == ["on n"], "another worker answers"
    again = Member(member.actor, member.node, iter([object()]), True, chunk)
    crew._members.append(again)
    list(crew.hear(again))
    assert crew._left_out == {"n": "n: its card fails again: RuntimeError: CUDA error: uncorrectable ECC"}
    assert board.waiting


def test_an_error_of_the_code_ends_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = ray.exceptions.RayTaskError("answers", "Traceback\nKeyError: 'x'", None)
    crew, member, _ = lone_worker(Fake(fault), monkeypatch)
    with pytest.raises(PrunebenchError, match=r"a worker on n: (?s:.*)KeyError"):
        list(crew.hear(member))


def test_a_worker_that_ray_cannot_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()

    def kill(actor: object) -> None:
        raise ConnectionError("the cluster\nis gone")

    fake.kill = kill  # type: ignore[method-assign]
    crew, *_ = lone_worker(fake, monkeypatch)
    crew.dismiss()
    assert not crew.asked
    assert fake.said == ["note: a worker on n may still run: the cluster is gone"]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["raylet", "worker"])
def test_what_a_lost_node_or_worker_left_is_answered_by_others(
    told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    wanted = plan(told, LIMIT, meet="2", kill=victim)
    with raylets(0, 1, 1) as cluster, journalled(monkeypatch) as found:
        said = over_ray(cluster, wanted, tmp_path / "spread")
    assert (told / "killed").exists(), "nobody died"
    assert any(re.match(r"note: a worker on .* ended: ", text) for text in said), said
    assert_equal(tmp_path / "spread", told / "alone")
    assert set(found.values()) == {1}, "no answer went to a journal twice"
    assert sum(counts(said)) == sum(found.values())


@pytest.mark.slow
def test_a_chunk_that_ends_three_workers_is_set_aside_and_the_others_go_on(told: Path, tmp_path: Path) -> None:
    wanted = plan(told, LIMIT, deadly="")
    expected = r"questions on 1 images ended 3 workers and were set aside: gqa/\d+, .*on .* \([0-9a-f]{8}\); on "
    with raylets(0, 1) as cluster, pytest.raises(PrunebenchError, match=expected):
        over_ray(cluster, wanted, tmp_path / "spread", chunk=1)
    answered = {key for _, key in journal_keys(tmp_path / "spread")}
    frame = next(iter(samples(told / "alone").values()))
    left = frame[~frame["key"].isin(answered)]
    assert left["image"].nunique() == 1 < frame["image"].nunique(), "all but those on one image"
    (told / "deadly").unlink()
    sealed = samples(tmp_path / "spread")
    assert len(sealed) == 1, "the cell of the unpruned model has all of its answers"
    with raylets(0, 1) as cluster:
        over_ray(cluster, wanted, tmp_path / "spread")
    assert_equal(tmp_path / "spread", told / "alone")


@pytest.mark.slow
def test_a_node_that_joins_gets_workers(told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The method waits for two workers, so that one node alone answers nothing."""
    wanted = plan(told, LIMIT, meet="2")
    nodes, joined = ray_crew.nodes, []
    with raylets(0, 1) as cluster:

        def joining(asked: Asked, device: str) -> list[Node]:
            """Ray starts nodes in the main thread alone; the driver looks for them there."""
            if not joined and list((told / "here").glob("*")):
                joined.append(add(cluster))
            return nodes(asked, device)

        monkeypatch.setattr(ray_crew, "nodes", joining)
        said = over_ray(cluster, wanted, tmp_path / "spread")
    assert len(joined) == 1
    assert len(counts(said)) == 2
    assert_equal(tmp_path / "spread", told / "alone")


@pytest.mark.slow
def test_a_worker_of_another_environment_gets_no_work(
    told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ray_executor.environment
    wanted = plan(told, LIMIT)
    with raylets(1) as cluster:
        with monkeypatch.context() as inside:
            inside.setattr(ray_executor, "environment", lambda device: {**here(device), "transformers": "4.0"})
            with pytest.raises(PrunebenchError, match=r"no node .*: .*transformers: expected 4.0, found 5"):
                over_ray(cluster, wanted, tmp_path / "spread")
        with monkeypatch.context() as inside:
            inside.setattr(ray_executor, "asdict", lambda cell: {**vars(cell), "model_fingerprint": "0" * 16})
            with pytest.raises(PrunebenchError, match=r"gqa none: model_fingerprint: expected 0{16}, found [0-9a-f]"):
                over_ray(cluster, wanted, tmp_path / "spread")
    assert not samples(tmp_path / "spread")


@pytest.mark.slow
def test_a_driver_that_is_killed_goes_on_where_it_was(told: Path, tmp_path: Path) -> None:
    # two rounds of chunks at least, and a journal is written every few seconds
    plan(told, LIMIT, pause="20")
    results, log = tmp_path / "spread", tmp_path / "log"
    with raylets(0, 1, 1) as cluster:
        words = ["sweep", str(told / "sweep.yaml"), "--results", str(results), "--executor", "ray"]
        command = [sys.executable, "-m", "prunebench", *words, "--address", cluster.address]
        with log.open("w") as out:
            driver = subprocess.Popen(command, cwd=TOP, stdout=out, stderr=out)
        try:
            until = time.monotonic() + PATIENCE_S
            while not journal_keys(results):
                assert driver.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.1)
        finally:
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            (told / "pause").unlink()
        before = journal_keys(results)
        # continued by a driver that says which answers it journals
        with pytest.MonkeyPatch.context() as patch, journalled(patch) as found:
            said = over_ray(cluster, sweep.load(told / "sweep.yaml"), results)
    assert before
    assert not before & set(found), "what was in a journal is asked again"
    assert sum(counts(said)) == sum(found.values())
    assert set(found.values()) == {1}
    assert_equal(results, told / "alone")


def journal_keys(results: Path) -> set[tuple[str, str]]:
    """(identity, key) of all whole lines in the journals."""
    found = set()
    for file in results.glob("cells/*/*/journal.jsonl"):
        for line in file.read_bytes().split(b"\n")[1:-1]:
            found.add((file.parent.name.rpartition("-")[2], json.loads(line)["key"]))
    return found
