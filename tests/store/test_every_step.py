"""A process that ends at any single file operation: the same call continues, and no reader calls it damage."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from factories import keys, make_cell, make_record, seal, sealed

from harness.store.alive import mine, pid_start, scratch
from harness.store.files import write_atomic
from harness.store.store import Store
from harness.store.verify import survey, verify

OPERATIONS = (
    *("open", "write", "fsync", "replace", "rename", "unlink", "ftruncate", "rmdir", "mkdir", "utime", "close"),
    *("link", "truncate", "pwrite"),
)
KILLED, DONE = 7, 0


def measure(root: Path) -> None:
    """Everything that a run does with a cell: look, open, append, be interrupted, continue, seal, tidy."""
    store, cell = Store(root), make_cell()
    if store.sealed(cell) is None:
        with store.open(cell, keys(4), {"torch": "2"}) as writer:
            writer.append(make_record(1), make_record(0))
        with store.open(cell, keys(4), {"torch": "2"}) as writer:
            writer.append(make_record(2))
            writer.append(make_record(3))
            seal(writer)
    store.tidy()


def again(root: Path) -> None:
    """FRESH=1."""
    Store(root).discard(make_cell())
    measure(root)


def half(root: Path) -> None:
    """Go on where another environment had begun."""
    measure(root)


def prepared(kind: Callable[[Path], None], root: Path) -> None:
    if kind is again:
        measure(root)
    elif kind is half:
        with Store(root).open(make_cell(), keys(4), {"torch": "1"}) as writer:
            writer.append(make_record(0, answer="old"))


def state(root: Path) -> dict[str, str]:
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in sorted(root.rglob("*"))
    }


def ends_at(step: int, how: str, work: Callable[[], None]) -> int:
    """The exit code of a process that does `work` and dies at that file operation: before, after, or in the middle of
    a write."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        count = 0

        def dying(original: Callable[..., object]) -> Callable[..., object]:
            def call(*args, **kwargs):
                nonlocal count
                count += 1
                if count != step:
                    return original(*args, **kwargs)
                if how == "torn" and original.__name__ == "write":
                    original(args[0], bytes(args[1])[: max(1, len(args[1]) // 2)])
                elif how == "after":
                    with suppress(OSError):
                        original(*args, **kwargs)
                os._exit(KILLED)

            return call

        for name in OPERATIONS:
            setattr(os, name, dying(getattr(os, name)))
        work()
        os._exit(DONE)
    finally:
        os._exit(9)


@pytest.mark.parametrize("how", ["torn", pytest.param("after", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "kind", [measure, again, pytest.param(half, marks=pytest.mark.slow)], ids=lambda kind: kind.__name__
)
def test_ending_at_every_file_operation_heals(tmp_path, monkeypatch, kind, how):
    """Torn: in the middle of a write, and before any other operation. fsync counts, and is not waited for."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    measure(tmp_path / "calm")
    calm = state(tmp_path / "calm")
    root = tmp_path / "results"
    for step in range(1, 1000):
        shutil.rmtree(root, ignore_errors=True)
        prepared(kind, root)
        code = ends_at(step, how, lambda: kind(root))
        assert code in (KILLED, DONE), (step, code)
        if (root / "cells").exists():
            assert not [found.wrong for found in survey(root, deep=False) if found.wrong], step
        measure(root)
        assert state(root) == calm, (step, "nothing is lost and nothing is left")
        if code == DONE:
            break
    assert code == DONE
    assert step > 40, "the operations were counted"


def test_samples_that_lost_their_cell_file_are_an_unfinished_cell(tmp_path):
    """So discard leaves them for a moment; the same command measures anew."""
    (sealed(Store(tmp_path), make_cell()).folder / "cell.json").unlink()
    lines, fine = verify(tmp_path)
    assert fine, lines
    assert "unfinished" in lines[0]
    measure(tmp_path)
    assert len(Store(tmp_path).cells()) == 1


def test_files_of_killed_writers_are_removed_by_the_next_and_those_of_living_ones_stay(tmp_path):
    path = tmp_path / "a [b] *.csv"
    for how in ("torn", "after"):
        for step in range(1, 20):
            if ends_at(step, how, lambda: write_atomic(path, b"one")) == DONE:
                break
            write_atomic(path, b"two")
            assert [p.name for p in tmp_path.iterdir()] == [path.name]
    where = mine().partition("-")[0]
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    kept = [
        tmp_path / f".{path.name}.{where}-{living.pid}.tmp",
        tmp_path / f".{path.name}.00000000-1.tmp",
        tmp_path / f".other.csv.{where}-999999999.tmp",
        tmp_path / f"{path.name}.{where}-999999999.tmp",
    ]
    for file in kept:
        file.write_text("")
    write_atomic(path, b"three")
    assert all(file.exists() for file in kept), "of a living process, of another machine, of other files"
    living.kill()
    while pid_start(living.pid) != "gone":
        time.sleep(0.01)
    os.utime(kept[1], (time.time() - 1e6,) * 2)
    write_atomic(path, b"three")  # not yet waited for: dead all the same
    assert [file.exists() for file in kept] == [False, False, True, True]
    living.communicate()


def test_the_folder_of_a_killed_gate_is_removed_by_the_next(tmp_path):
    for _ in range(3):

        def killed() -> None:
            with scratch(tmp_path) as folder:
                (folder / "run" / "cells").mkdir(parents=True)
                os._exit(KILLED)

        assert ends_at(0, "", killed) == KILLED
    assert len(list(tmp_path.iterdir())) == 1, "one takes away the one before"
    with scratch(tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder]
        assert list(folder.iterdir()) == []
        with scratch(tmp_path / "other"):
            assert folder.is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other"]
