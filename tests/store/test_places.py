"""Results folders of every kind and name: used, or refused in one line before anything is measured."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from factories import keys, make_cell, make_record, sealed

from harness.core.errors import PrunebenchError
from harness.core.paths import TOP
from harness.store import lease
from harness.store.files import check_place, write_atomic
from harness.store.lease import ONE_RUNNER, NoLocks
from harness.store.store import Store
from harness.tables import leaderboard

NAMES = [
    "résultats",
    "результаты",
    "結果",
    "a b",
    " lead",
    "trail ",
    "it's",
    'say "so"',
    "$HOME",
    "`id`",
    "a;b",
    "a&b",
    "-r",
    "--results",
    "a*b?[c]",
    "new\nline",
    "tab\there",
    "back\\slash",
    "percent%20",
    "hash#mark",
    "emoji 🦙",
    "e\u0301",
    "x" * 200,
    os.fsdecode(b"not-utf8-\xff"),
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_folder_of_any_name_holds_results(tmp_path: Path, name: str) -> None:
    root = tmp_path / name / "r"
    check_place(root, *leaderboard.FILES)
    assert list(root.iterdir()) == []
    for cell in (make_cell(), make_cell(method="none", knobs={}, budget="none")):
        sealed(Store(root), cell)
    csv, markdown = leaderboard.write(Store(root).cells(), root)
    assert csv.read_bytes()
    assert markdown.read_bytes()
    assert len(Store(root).cells()) == 2


def dangling(path: Path) -> Path:
    path.symlink_to(path.with_name("nowhere"))
    return path


def loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


def file(path: Path) -> Path:
    path.write_text("mine")
    return path


def link_to_a_file(path: Path) -> Path:
    path.symlink_to(file(path.with_name("file")))
    return path


def folder_for_a_file(name: str):
    def make(path: Path) -> Path:
        (path / name).mkdir(parents=True)
        return path

    make.__name__ = f"a folder called {name}"
    return make


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


WRONG = {
    "/dev/null": lambda path: Path("/dev/null"),
    "/dev/full": lambda path: Path("/dev/full"),
    "/dev/null/below": lambda path: Path("/dev/null/below"),
    "/proc/self": lambda path: Path("/proc/self/results"),
    "dangling link": dangling,
    "loop": loop,
    "file": file,
    "below a file": lambda path: file(path) / "results",
    "link to a file": link_to_a_file,
    "fifo": fifo,
    "too long": lambda path: path / ("x" * 300),
    "too deep": lambda path: path.joinpath(*["d" * 100] * 50),
    **{name: folder_for_a_file(name) for name in leaderboard.FILES},
}


@pytest.mark.parametrize("what", WRONG)
def test_what_takes_no_results_is_refused_in_a_line(tmp_path: Path, what: str) -> None:
    root = WRONG[what](tmp_path / "r")
    before = root.read_bytes() if os.path.isfile(root) else None
    with pytest.raises(PrunebenchError) as error:
        check_place(root, *leaderboard.FILES)
    assert str(root) in str(error.value)
    assert "\n" not in str(error.value)
    assert before is None or root.read_bytes() == before


def test_a_link_to_a_folder_and_a_folder_that_is_there_are_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for root in (tmp_path / "real", tmp_path / "link"):
        check_place(root, *leaderboard.FILES)
    assert list((tmp_path / "real").iterdir()) == []


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EFBIG, errno.ESTALE]
)
@pytest.mark.parametrize("operation", ["write", "fsync", "replace"])
def test_a_failing_disk_is_a_line_and_loses_nothing_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, operation: str
) -> None:
    store = Store(tmp_path)
    done = sealed(store, make_cell())
    (tmp_path / "table.csv").write_text("old")

    def fails(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    with store.open(make_cell(seed=1), keys(4)) as writer:
        writer.append(make_record(0))
        with monkeypatch.context() as patch:
            patch.setattr(os, operation, fails)
            works = [lambda: write_atomic(tmp_path / "table.csv", b"new")]
            works += [] if operation == "replace" else [lambda: writer.append(make_record(1))]
            for work in works:
                with pytest.raises(PrunebenchError, match=os.strerror(number)) as error:
                    work()
                assert "\n" not in str(error.value)
    assert (tmp_path / "table.csv").read_text() == "old"
    assert store.sealed(make_cell()) == done
    with store.open(make_cell(seed=1), keys(4)) as writer:
        assert (writer.done[keys(1)[0]], writer.notes) == (make_record(0), ())
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("number", sorted(lease._NO_FLOCK))
def test_a_file_system_without_flock_is_said_and_there_is_a_way_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def none(handle: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    store = Store(tmp_path)
    with pytest.raises(NoLocks, match=rf"found one without .*set {ONE_RUNNER}=1 in the environment if no other"):
        sealed(store, make_cell())
    store.tidy()
    monkeypatch.setenv(ONE_RUNNER, "1")
    assert sealed(store, make_cell()).score == 0.5
    store.discard(make_cell())
    assert list((tmp_path / "locks").iterdir()) == []


ENVIRONMENTS = [
    {"LC_ALL": "C"},
    {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii:strict"},
    {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "latin-1"},
    {"LANG": "no_SUCH.locale", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {},
]


@pytest.mark.parametrize("variables", ENVIRONMENTS, ids=str)
def test_tables_are_written_and_printed_in_any_locale(tmp_path: Path, variables: dict[str, str]) -> None:
    root = tmp_path / "résultats 結果"
    for cell in (make_cell(), make_cell(method="none", knobs={}, budget="none", model="modèle")):
        sealed(Store(root), cell)
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", "leaderboard", "--no-figures", "--results", str(root)],
        cwd=TOP,
        env={"PATH": os.environ["PATH"], "HOME": "/dev/null", **variables},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert "modèle" in (root / "LEADERBOARD.md").read_text(encoding="utf-8")
