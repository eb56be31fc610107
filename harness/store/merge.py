"""Copy the cells of one results folder into another, each whole or not at all.

A cell that is there already stays, whatever is in it. Killed at any moment, a merge leaves whole cells and unfinished
folders, and the same merge continues. Nothing is ever removed, and the folder that is read stays as it is.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness.core.errors import PrunebenchError
from harness.store.files import check_place, saying, sync_folder, there, write_atomic
from harness.store.journal import JOURNAL
from harness.store.lease import CellBusy, Lease
from harness.store.sealed import SAMPLES, SEAL, SealedCell, damaged, load
from harness.store.store import Store

#: seconds for which a cell is waited for that another process writes: another merge needs a moment, a runner longer
PATIENCE_S = 2.0


@dataclass
class Merged:
    """What a merge did."""

    copied: int = 0
    there: int = 0
    """Cells that were there with the same samples."""
    unfinished: int = 0
    """Cells of the source that have answers and no cell file: they stay where they are."""
    left: list[str] = field(default_factory=list)
    """Cells that were not copied, and why."""


def merge(source: Path, target: Path) -> Merged:
    """Copy every sealed cell of `source` that `target` lacks. Raises PrunebenchError unless both can be results
    folders."""
    _check(source, target)
    store, done = Store(target), Merged()
    for folder in sorted(path for path in (source / "cells").glob("*/*") if path.is_dir()):
        try:
            with saying("read", folder):
                if there(folder / SEAL):
                    _one(folder, store, done)
                else:
                    done.unfinished += there(folder / JOURNAL)
        except PrunebenchError as error:
            done.left.append(str(error))
    return done


def _check(source: Path, target: Path) -> None:
    if not (source / "cells").is_dir():
        raise PrunebenchError(f"expected a results folder with cells/ in it, found none at {source}")
    check_target(source, target)


def check_target(source: Path, target: Path) -> None:
    """Raise PrunebenchError unless `target` can be a results folder, and another one than `source`."""
    places = [path.resolve() for path in (source, source / "cells")]
    if target.resolve() in places or (target / "cells").resolve() in places:
        raise PrunebenchError(f"expected two results folders, found one: {source} and {target} are the same")
    found = {path.name for path in target.iterdir()} if target.is_dir() else set()
    strange = {name for name in found if not name.startswith(".")}  # killed writers leave names with a dot
    if strange and not found & {"cells", "locks", "leaderboard.csv", "submissions"}:
        raise PrunebenchError(
            f"{target}: expected a results folder, an empty folder or a new one, found other files: give another"
        )
    check_place(target, "leaderboard.csv", named="INTO")


def _one(folder: Path, store: Store, done: Merged) -> None:
    """Copy one sealed cell. Raises PrunebenchError where it is left."""
    found = load(folder)
    samples, seal = (folder / SAMPLES).read_bytes(), (folder / SEAL).read_bytes()
    digest = hashlib.sha256(samples).hexdigest()
    if not digest == found.samples_sha256 == json.loads(seal)["samples_sha256"]:
        raise damaged(folder / SAMPLES, f"expected sha256 {found.samples_sha256}, found {digest}")
    place = store.folder(found.cell)
    if there(place / SEAL):  # most cells of a second merge: no lock is needed to see that
        _same(found, place, done)
        return
    with _patiently(store, place) as lease:
        with saying("create", place):
            place.mkdir(parents=True, exist_ok=True)
        if there(place / SEAL):  # another process was first
            _same(found, place, done)
            return
        with saying("copy to", place), lease.guard():
            write_atomic(place / SAMPLES, samples)
            write_atomic(place / SEAL, seal)  # the last: a folder without it is no result
            for parent in (place.parent, place.parent.parent):
                sync_folder(parent)
    done.copied += 1


def _same(found: SealedCell, place: Path, done: Merged) -> None:
    """Count a cell that is there. Raises PrunebenchError where its samples are other ones."""
    other = load(place)
    other.verify()
    if other.samples_sha256 != found.samples_sha256:
        raise PrunebenchError(
            f"{found.folder}: expected the samples that {place} has, found other ones under the same identity: both"
            " stay; measure the cell again to see which is right"
        )
    done.there += 1


@contextmanager
def _patiently(store: Store, place: Path) -> Iterator[Lease]:
    """The lease of a cell. Raises CellBusy where another process keeps the cell for longer than a copy takes."""
    until = time.monotonic() + PATIENCE_S
    while True:
        held = store.locked(place)
        try:
            lease = held.__enter__()
            break
        except CellBusy:
            if time.monotonic() >= until:
                raise
            time.sleep(0.05)
    try:
        yield lease
    finally:
        held.__exit__(None, None, None)
