"""Answers reach the disk by time, whatever the main thread does; two threads never write one twice."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from factories import keys, make_cell, make_record

from harness.core.errors import PrunebenchError
from harness.runner import running
from harness.runner.clock import Clock
from harness.runner.running import Flusher, RunningCell
from harness.store.store import CellWriter, Store


def cell_of(writer: CellWriter, n: int) -> RunningCell:
    job: Any = SimpleNamespace(task=SimpleNamespace(samples=[SimpleNamespace(key=key) for key in keys(n)]))
    return RunningCell(job, writer, {}, Clock())


def journalled(root: Path, n: int) -> list[str]:
    """Keys that another process would continue from."""
    lines = (Store(root).folder(make_cell(n)) / "journal.jsonl").read_bytes().splitlines()
    return [line.split(b'"')[3].decode() for line in lines if line.startswith(b'{"key"')]


@pytest.mark.parametrize("n", [1, 2, 5, 63])
def test_answers_are_written_while_a_batch_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(running, "FLUSH_SECONDS", 0.1)
    monkeypatch.setattr(running, "LOOK_SECONDS", 0.02)
    with Store(tmp_path).open(make_cell(64), keys(64)) as writer:
        one = cell_of(writer, 64)
        with Flusher([one]) as flusher:
            one.add([make_record(i) for i in range(n)])
            assert journalled(tmp_path, 64) == []
            until = time.monotonic() + 20
            while not journalled(tmp_path, 64) and time.monotonic() < until:  # inference, in one call
                time.sleep(0.02)
            assert journalled(tmp_path, 64) == keys(n)
            flusher.check()


def test_an_answer_is_on_disk_within_ten_seconds() -> None:
    assert running.FLUSH_SECONDS + running.LOOK_SECONDS < 10


def test_what_waits_is_written_on_the_way_out_of_any_error(tmp_path: Path) -> None:
    class Ends(BaseException):
        pass

    def ended(one: RunningCell) -> None:
        with Flusher([one]):
            one.add([make_record(0), make_record(1)])
            raise Ends

    with Store(tmp_path).open(make_cell(64), keys(64)) as writer, pytest.raises(Ends):
        ended(cell_of(writer, 64))
    assert journalled(tmp_path, 64) == keys(2)


def test_a_disk_that_fails_stops_the_run_and_the_other_cells_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(running, "LOOK_SECONDS", 0.02)
    with Store(tmp_path).open(make_cell(64), keys(64)) as good, Store(tmp_path / "b").open(make_cell(), keys(4)) as bad:
        cells = [cell_of(bad, 4), cell_of(good, 64)]

        def full(*records: object) -> None:
            raise PrunebenchError("cannot append: No space left on device")

        monkeypatch.setattr(bad, "append", full)

        def answering() -> None:
            with Flusher(cells) as flusher:
                cells[0].add([make_record(0)])
                cells[1].add([make_record(0)])
                until = time.monotonic() + 20
                while time.monotonic() < until:
                    flusher.check()
                    time.sleep(0.01)
                raise AssertionError("the run went on")

        with pytest.raises(PrunebenchError, match="No space left"):
            answering()
    assert journalled(tmp_path, 64) == keys(1)


def test_threads_write_each_answer_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(running, "LOOK_SECONDS", 0.0005)
    n = 300
    with Store(tmp_path).open(make_cell(n), keys(n)) as writer:
        one = cell_of(writer, n)
        with Flusher([one]):
            adders = [
                threading.Thread(target=lambda part=part: [one.add([make_record(i)]) for i in range(part, n, 3)])
                for part in range(3)
            ]
            for thread in adders:
                thread.start()
            for thread in adders:
                thread.join()
        assert one.complete
    assert sorted(journalled(tmp_path, n)) == keys(n)
    with Store(tmp_path).open(make_cell(n), keys(n)) as writer:
        assert (len(writer.done), writer.notes) == (n, ())
