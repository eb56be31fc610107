"""Copy the cells of one results folder into another, each whole or not at all, and who measured them.

A cell that is there already stays, whatever is in it. Killed at any moment, a merge leaves whole cells and unfinished
folders, and the same merge continues. Nothing is ever removed, and the folder that is read stays as it is.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness.core.errors import PrunebenchError
from harness.store.files import check_place, saying, sync_folder, there, write_atomic
from harness.store.journal import JOURNAL
from harness.store.lease import CellBusy, Lease
from harness.store.sealed import SAMPLES, SEAL, SealedCell, damaged, load
from harness.store.store import Store
from harness.store.submission import FOLDER, record, records, run_of

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
    """Cells that were not copied, names that were not taken, and why."""
    named: set[str] = field(default_factory=set)
    """Identities of the cells whose names were taken, or were there."""


def merge(source: Path, target: Path) -> Merged:
    """Copy every sealed cell of `source` that `target` lacks, then what the records of `source` say of cells that are
    in both. Raises PrunebenchError unless both can be results folders."""
    _check(source, target)
    store, done = Store(target), Merged()
    both: dict[str, SealedCell] = {}
    for folder in sorted(path for path in (source / "cells").glob("*/*") if path.is_dir()):
        try:
            with saying("read", folder):
                if there(folder / SEAL):
                    found = _one(folder, store, done)
                    both[found.identity] = found
                else:
                    done.unfinished += there(folder / JOURNAL)
        except PrunebenchError as error:
            done.left.append(str(error))
    _names(source, store, both, done)
    return done


def _names(source: Path, store: Store, both: Mapping[str, SealedCell], done: Merged) -> None:
    """Take over who measured and reproduced the cells in `both` folders. A name that does not hold in `source` is none,
    and a run that has another name in the target keeps that name."""
    theirs = records(source, done.left).found
    known = records(store.root, [])  # what is wrong with these is said when they are read for tables
    for one in theirs:
        taken: dict[str, dict[str, str]] = {}
        path = store.root / FOLDER / one.path.name
        for identity, cell in ((name, both[name]) for name in sorted(one.cells.keys() & both.keys())):
            try:
                here, run = load(store.folder(cell.cell)), one.cells[identity]["run"]
                if one.says(cell, run_of(cell)):
                    known.check_run(identity, run, one.who)
                    # the same samples are in both, perhaps of another run
                    equals = {} if run == run_of(here) else {"equals": here.samples_sha256}
                    taken[identity] = {"run": run, **equals}
            except PrunebenchError as error:
                done.left.append(f"{one.path}: {error}")
        if taken:
            try:
                with _patiently(store, path.with_suffix("")):
                    record(path, one.who, [one.lines[name] for name in taken], taken)
                done.named |= taken.keys()
            except PrunebenchError as error:
                done.left.append(f"{one.path}: {error}")


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


def _one(folder: Path, store: Store, done: Merged) -> SealedCell:
    """Copy one sealed cell, and return it. Raises PrunebenchError where it is left."""
    found = load(folder)
    samples, seal = (folder / SAMPLES).read_bytes(), (folder / SEAL).read_bytes()
    digest = hashlib.sha256(samples).hexdigest()
    if not digest == found.samples_sha256 == json.loads(seal)["samples_sha256"]:
        raise damaged(folder / SAMPLES, f"expected sha256 {found.samples_sha256}, found {digest}")
    place = store.folder(found.cell)
    if there(place / SEAL):  # most cells of a second merge: no lock is needed to see that
        _same(found, place, done)
        return found
    with _patiently(store, place) as lease:
        with saying("create", place):
            place.mkdir(parents=True, exist_ok=True)
        if there(place / SEAL):  # another process was first
            _same(found, place, done)
            return found
        with saying("copy to", place), lease.guard():
            write_atomic(place / SAMPLES, samples)
            write_atomic(place / SEAL, seal)  # the last: a folder without it is no result
            for parent in (place.parent, place.parent.parent):
                sync_folder(parent)
    done.copied += 1
    return found


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
