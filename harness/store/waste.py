"""What a results folder can do without: half-run cells, journals of sealed ones, temporary files, locks, the cache.

Nothing that a living process may need is named: a cell that a runner holds, a temporary file whose process lives, or a
lock whose lease runs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from harness.core.errors import PrunebenchError
from harness.store.alive import left_behind
from harness.store.files import remove, saying, there
from harness.store.journal import JOURNAL, read_journal
from harness.store.lease import dead, holder
from harness.store.sealed import SAMPLES, SEAL
from harness.store.store import Store

HALF, JOURNALS, TEMPORARY, LOCK, CACHE = "half-run cell", "journal of a sealed cell", "temporary file", "lock", "cache"
#: names of temporary files and folders: how they begin and end
_TEMPORARY = ((".", ".tmp"), (".run-", ""), (".try-", ""))


class Waste(NamedTuple):
    """One thing that may go."""

    kind: str
    path: Path
    size: int
    """Bytes."""
    more: str = ""


def waste(root: Path, stays: list[str]) -> list[Waste]:
    """Everything that may go; half-run cells that somebody runs, or that cannot be read, are said in `stays`. Writes
    nothing.

    Raises PrunebenchError if this is no results folder, or cannot be read.
    """
    if not (root / "cells").is_dir():
        raise PrunebenchError(f"expected a results folder with cells/ in it, found none at {root}: give --results")
    with saying("read", root):
        found = list(_cells(root, stays))
        inside = tuple(one.path for one in found if one.kind == HALF)
        found += [one for one in _temporary(root) if not one.path.is_relative_to(root / "cache")]
        found = [one for one in found if one.kind == HALF or not any(one.path.is_relative_to(p) for p in inside)]
        found += _locks(root)
        if (root / "cache").is_dir() and not (root / "cache").is_symlink():
            found.append(Waste(CACHE, root / "cache", _size(root / "cache")))
    return found


def clear(root: Path, found: list[Waste]) -> tuple[int, list[str]]:
    """Remove what `waste` found; bytes that are free now, and what stayed, with the reason."""
    store, freed, stayed = Store(root), 0, []
    for one in found:
        try:
            with saying("remove", one.path):
                freed += one.size if _removed(store, one) else 0
        except PrunebenchError as error:
            stayed.append(str(error))
    store.tidy()
    freed += sum(one.size for one in found if one.kind == LOCK and not there(one.path))
    for task in (root / "cells").iterdir():
        with suppress(OSError):
            task.rmdir()  # only where nothing is in it
    return freed, stayed


def _removed(store: Store, one: Waste) -> bool:
    """Whether it is gone now; locks go at the end, all together."""
    if one.kind == HALF:
        return store.discard_folder(one.path, sealed=False)
    if one.kind == JOURNALS:
        with store.locked(one.path.parent) as lease, lease.guard():
            if there(one.path.parent / SEAL):
                remove(one.path.parent, JOURNAL)
    elif one.kind == CACHE:
        shutil.rmtree(one.path, ignore_errors=True)  # another writer may fill it at the same time
        return not there(one.path)
    elif one.kind == TEMPORARY and one.path.is_dir() and not one.path.is_symlink():
        shutil.rmtree(one.path)
    elif one.kind == TEMPORARY:
        one.path.unlink(missing_ok=True)
    return one.kind != LOCK


def _cells(root: Path, stays: list[str]) -> Iterator[Waste]:
    for folder in sorted(path for path in (root / "cells").glob("*/*") if path.is_dir()):
        try:
            with saying("read", folder):
                one = _cell(root, folder, stays)
        except PrunebenchError as error:
            stays.append(str(error))
            continue
        if one:
            yield one


def _cell(root: Path, folder: Path, stays: list[str]) -> Waste | None:
    journal, sealed = there(folder / JOURNAL), there(folder / SEAL)
    if sealed and not journal:
        return None
    who = holder(root / "locks", folder.name[-16:])
    if who:
        stays.append(f"{folder}: {who} runs it")
        return None
    if sealed:
        return Waste(JOURNALS, folder / JOURNAL, _size(folder / JOURNAL))
    answers = f"{len(read_journal(folder / JOURNAL).done)} answers" if journal else "no answers"
    own = [folder / JOURNAL, folder / SAMPLES, *folder.glob(".*.tmp")]
    return Waste(HALF, folder, sum(map(_size, own)), answers)


def _temporary(root: Path) -> Iterator[Waste]:
    for at, folders, files in os.walk(root):  # links are not followed
        for name in sorted([*folders, *files]):
            ending = next((end for start, end in _TEMPORARY if name.startswith(start) and name.endswith(end)), None)
            path = Path(at) / name
            if ending is not None:
                with suppress(FileNotFoundError):
                    if left_behind(path, ending):
                        yield Waste(TEMPORARY, path, _size(path))


def _locks(root: Path) -> Iterator[Waste]:
    folder = root / "locks"
    for path in sorted(folder.glob("*.lock")):
        if holder(folder, path.stem) is None:
            yield Waste(LOCK, path, _size(path))
    for path in sorted(folder.glob("runner-*.json")):
        if dead(folder, path.stem.removeprefix("runner-")):
            yield Waste(LOCK, path, _size(path))


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    with suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            return path.lstat().st_size
        return sum(_size(one) for one in path.iterdir())
    return 0
