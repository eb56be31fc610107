"""Nothing lost: sweeps that are killed, starved of disk, run twice at once, extended, or given other data."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.core.paths import TOP as REPOSITORY
from harness.store import alive
from harness.store.store import Store
from harness.store.verify import verify

LIMIT = "40"
CONFIG = """\
models: [mini]
tasks: [gqa, pope]
budgets: [{budgets}]
methods:
  - {{method: uniform}}
  - {{method: random, budgets: [64]}}
"""
BUDGETS = "32, 64"
PATIENCE_S = 600
FEW = 8
"""Answers a flush: with the default of 64 the small cells here would be journalled in one piece."""


class Zygote:
    """See tests/zygote.py."""

    def __init__(self) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, str(Path(__file__).parents[1] / "zygote.py")]
        self.process = subprocess.Popen(
            command, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True, cwd=REPOSITORY, env=environment
        )
        self.running: set[int] = set()
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def _say(self, **what: object) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return self._line()

    def start(self, folder: Path, *arguments: str, flush: int | None = FEW) -> int:
        """The process id of a `prunebench ARGUMENTS`, which is its process group too."""
        pid = int(self._say(arguments=arguments, log=str(folder / "log"), answers=str(folder / "answers"), flush=flush))
        self.running.add(pid)
        return pid

    def wait(self, pid: int) -> int:
        self.running.discard(pid)
        return int(self._say(wait=pid))

    def alive(self, pid: int) -> bool:
        """False for a child that ended and was not waited for yet, where the system tells."""
        return alive.pid_start(pid) != "gone"

    def run(self, folder: Path, *arguments: str) -> str:
        """Run to the end; what it printed."""
        code = self.wait(self.start(folder, *arguments))
        log = (folder / "log").read_text()
        assert code == 0, log
        return log

    def close(self) -> None:
        for pid in self.running:
            os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


def sweep(folder: Path, budgets: str = BUDGETS) -> tuple[str, ...]:
    """The arguments of a sweep into `folder`/results."""
    folder.mkdir(exist_ok=True)
    file = folder / "sweep.yaml"
    file.write_text(CONFIG.format(budgets=budgets))
    return "sweep", str(file), "--results", str(folder / "results"), "--limit", LIMIT


@pytest.fixture(scope="module")
def undisturbed(
    zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[dict[str, object], pd.DataFrame]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    zygote.run(folder, *sweep(folder))
    found = contents(folder)
    assert len(found) == 8
    return found


def contents(folder: Path) -> dict[str, tuple[dict[str, object], pd.DataFrame]]:
    """What was measured, by identity: all of cell.json that is no time and no provenance, and the samples."""
    cells = {}
    for cell in Store(folder / "results").cells():
        body = json.loads((cell.folder / "cell.json").read_text())
        kept = {k: v for k, v in body.items() if k not in ("provenance", "answering_wall_s", "checksum")}
        cells[cell.identity] = kept, cell.samples()
    return cells


def assert_as_undisturbed(folder: Path, undisturbed: dict[str, tuple[dict[str, object], pd.DataFrame]]) -> None:
    found = contents(folder)
    assert found.keys() == undisturbed.keys()
    for identity, (body, samples) in undisturbed.items():
        pd.testing.assert_frame_equal(found[identity][1], samples, check_exact=True)
        assert found[identity][0] == body
    lines, fine = verify(folder / "results")
    assert fine, lines
    assert lines == [f"{len(undisturbed)} cells sealed and whole, 0 unfinished (0 answers), 0 wrong"]
    left = sorted(p.name for p in (folder / "results" / "locks").iterdir())
    assert left == []


def answered(folder: Path) -> dict[str, bytes]:
    """By cell folder: the whole lines of its journal, or the sealed file."""
    found = {}
    for cell in (folder / "results").glob("cells/*/*"):
        for name in ("cell.json", "journal.jsonl"):
            try:
                data = (cell / name).read_bytes()
            except FileNotFoundError:
                continue
            found[cell.name] = data if name == "cell.json" else data[: data.rfind(b"\n") + 1]
            break
    return found


def n_answers(folder: Path, per_cell: int) -> int:
    return sum(per_cell if data.startswith(b"{\n") else data.count(b"\n") for data in answered(folder).values())


def assert_asked_once(folder: Path, unsure: int) -> None:
    """No sample was answered again once it was in a journal; `unsure` runs died between writing some and saying so."""
    asks: Counter[tuple[str, str]] = Counter()
    done: set[tuple[str, str]] = set()
    for line in (folder / "answers").read_text().splitlines():
        word, _, identity, key = line.split()
        if word == "ask":
            assert (identity, key) not in done, f"{key} of {identity} was in its journal and was asked again"
            asks[identity, key] += 1
        else:
            done.add((identity, key))
    again = {key: n for key, n in asks.items() if n > 1}
    assert len(again) <= 128 * unsure, again  # a flush holds a few batches at most


def kill_many(zygote: Zygote, folder: Path, moments: int, total: int) -> int:
    """Kill a sweep at random moments spread over its answers (and over start-up, where the answers are there already).

    After each kill, journals get half a line more, as if the machine had crashed too.
    """
    draw = random.Random(moments)
    cells = 8
    before: dict[str, bytes] = {}
    killed = inside = 0
    # not the last tenth: the run would be over before the signal
    for target in sorted(draw.sample(range(9 * total // 10), moments)):
        pid = zygote.start(folder, *sweep(folder))
        ready = n_answers(folder, total // cells) > target
        until = time.monotonic() + PATIENCE_S
        while n_answers(folder, total // cells) <= target:
            assert zygote.alive(pid), (folder / "log").read_text()[-2000:]
            assert time.monotonic() < until, (folder / "log").read_text()[-2000:]
            time.sleep(0.002)
        time.sleep(draw.random() * (1.0 if ready else 0.1))
        os.killpg(pid, signal.SIGKILL)
        code = zygote.wait(pid)
        killed += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL), (folder / "log").read_text()[-2000:]
        now = answered(folder)
        inside += any(data and not data.startswith(b"{\n") for data in now.values())
        for name, data in before.items():
            assert now[name].startswith(b"{\n") or now[name].startswith(data), (
                f"{name}: answers were lost or written again"
            )
        for journal in (folder / "results").glob("cells/*/*/journal.jsonl"):
            with journal.open("ab") as file:
                file.write(b'{"key": "gqa/0000')
        before = now
    assert killed >= moments - 2, "the kills are to hit a run, not its end"
    assert inside, "some kills are to hit a cell that is being answered"
    zygote.run(folder, *sweep(folder))
    return killed


def n_total(undisturbed: dict[str, tuple[dict[str, object], pd.DataFrame]]) -> int:
    sizes = {len(samples) for _, samples in undisturbed.values()}
    assert len(sizes) == 1, "the count of answers on disk takes all cells to be equal"
    return sizes.pop() * len(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("moments", [pytest.param(3, id="3-moments"), pytest.param(20, id="20-moments")])
def test_a_sweep_killed_at_random_moments_ends_as_if_undisturbed(moments, zygote, undisturbed, tmp_path):
    killed = kill_many(zygote, tmp_path, moments, n_total(undisturbed))
    assert_as_undisturbed(tmp_path, undisturbed)
    assert_asked_once(tmp_path, killed)


@pytest.mark.slow
def test_two_runners_on_one_folder_share_the_work(zygote, undisturbed, tmp_path):
    """Whoever comes second to a cell leaves it to the first and says so."""
    pids = [zygote.start(tmp_path, *sweep(tmp_path)) for _ in range(2)]
    codes = [zygote.wait(pid) for pid in pids]
    log = (tmp_path / "log").read_text()
    assert codes == [0, 0], log
    assert "left to another runner: " in log
    assert_as_undisturbed(tmp_path, undisturbed)
    asked = [line.split()[2:] for line in (tmp_path / "answers").read_text().splitlines() if line.startswith("ask")]
    assert len(asked) == len({tuple(a) for a in asked}) == n_total(undisturbed), (
        "each sample of each cell was asked by one of the two"
    )


@pytest.mark.slow
def test_one_more_budget_runs_only_its_cells(zygote, undisturbed, tmp_path):
    zygote.run(tmp_path, *sweep(tmp_path, "32"))
    before = {
        p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "results" / "cells").rglob("*") if p.is_file()
    }
    first = {line.split()[2] for line in (tmp_path / "answers").read_text().splitlines()}
    (tmp_path / "answers").unlink()
    zygote.run(tmp_path, *sweep(tmp_path))
    second = {line.split()[2] for line in (tmp_path / "answers").read_text().splitlines()}
    assert before == {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in before}
    assert (len(first), len(second)) == (6, 2), "uniform at 64 on two tasks is new"
    assert not first & second
    assert_as_undisturbed(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_full_disk_stops_a_sweep_that_continues_when_there_is_room(zygote, undisturbed, tmp_path):
    """No file may grow beyond 9,000 bytes: some journal does not fit. A real process, started as a user does."""
    start = f"from harness import cli; from harness.runner import running; running.FLUSH = {FEW}; cli.main()"
    command = [sys.executable, "-c", start, *sweep(tmp_path)]

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))

    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment,
        preexec_fn=small_disk,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    message = done.stderr.splitlines()[-1]
    assert message.startswith("prunebench: cannot append to ")
    assert "File too large; the " in message
    assert "then run the same command again: it continues" in message
    kept = answered(tmp_path)
    assert any(kept.values()), "some answers were journalled before"
    lines, fine = verify(tmp_path / "results")
    assert fine, lines
    zygote.run(tmp_path, *sweep(tmp_path))
    assert_as_undisturbed(tmp_path, undisturbed)
    for line in (tmp_path / "answers").read_text().splitlines():
        _, _, identity, key = line.split()
        mine = next((data for name, data in kept.items() if name.endswith(identity)), b"")
        assert json.dumps(key).encode() not in mine, "what was journalled before is not asked again"


@pytest.mark.slow
def test_other_data_is_another_cell_and_leaves_the_first_valid(zygote, tmp_path):
    import shutil

    data = tmp_path / "data"
    shutil.copytree(REPOSITORY / "tasks" / "mini" / "data", data)
    ask = ("eval", "--method", "uniform", "--budget", "64", "--tasks", "pope", "--limit", "10")
    ask = (*ask, "--data", str(data), "--results", str(tmp_path / "results"))
    zygote.run(tmp_path, *ask)
    before = contents(tmp_path)
    parquet = next((data / "POPE").rglob("*.parquet"))
    original = parquet.read_bytes()
    table = pq.read_table(parquet)
    column = table.schema.get_field_index("question")
    changed = pa.array([text.replace("Is there", "Is there also") for text in table.column("question").to_pylist()])
    pq.write_table(table.set_column(column, "question", changed), parquet)
    zygote.run(tmp_path, *ask)
    both = contents(tmp_path)
    assert (len(before), len(both)) == (2, 4), "two cells of the same names with other identities"
    for identity, (body, samples) in before.items():
        assert both[identity][0] == body
        pd.testing.assert_frame_equal(both[identity][1], samples)
    fingerprints = Counter(cell.cell.data_fingerprint for cell in Store(tmp_path / "results").cells())
    assert sorted(fingerprints.values()) == [2, 2]
    assert verify(tmp_path / "results")[1]
    parquet.write_bytes(original)
    assert "2 of 2 cells were sealed before and reused" in zygote.run(tmp_path, *ask)
