"""Files written whole or not at all, and short texts for messages about files."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from harness.core.cell import canonical_json
from harness.core.errors import PrunebenchError
from harness.core.spelling import given
from harness.store.alive import bury, mine


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file's content whole or not at all, and durably. Raises PrunebenchError naming the path."""
    temporary = path.with_name(f".{path.name}.{mine()}.tmp")
    bury(path.parent, f".{path.name}.", ".tmp")
    with saying("write", path):
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                write_all(handle, data)
                os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)


def write_changed(path: Path, data: bytes) -> None:
    """`write_atomic`, but a file that holds these bytes already stays untouched, its times included."""
    with suppress(OSError):  # one that cannot be read is written, and that says why not
        if path.stat().st_size == len(data) and path.is_file() and path.read_bytes() == data:
            return
    write_atomic(path, data)


def check_place(root: Path, *files: str, named: str = "") -> None:
    """Raise PrunebenchError unless this folder, made where it is missing, takes files, and those of these names. It is
    asked before anything is measured for it. `named`: what the command calls the folder, where not `results`."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        bury(root, ".try-")
        probe = root / f".try-{mine()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        # of os.path, because pathlib's raise for a name that is too long
        there_is = os.path.exists(root)
        found = "it is no folder" if there_is and not os.path.isdir(root) else error.strerror or error
        if os.path.islink(root) and not there_is:
            found = f"it is a link to {os.readlink(root)}, which is not there"
        raise PrunebenchError(
            f"cannot write results to {root}: {found}; choose a folder that you can write ({named or given('results')})"
        ) from None
    for name in files:
        if (root / name).is_dir():
            raise PrunebenchError(f"{root / name}: expected a file or nothing, found a folder: move it elsewhere")


def write_all(handle: int, data: bytes) -> None:
    """All of the data: os.write may stop early."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def sync_folder(folder: Path) -> None:
    """Make names that were created, replaced or removed in the folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(folder: Path, *patterns: str) -> None:
    with saying("tidy", folder):
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)
        sync_folder(folder)


def there(path: Path) -> bool:
    """Whether it exists; a folder that may not be looked into is an error, not an absence."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextmanager
def saying(action: str, path: Path, kept: str = "") -> Iterator[None]:
    """Turn an OSError into a message that names the path and what to do."""
    try:
        yield
    except OSError as error:
        raise PrunebenchError(
            f"cannot {action} {path}: {error.strerror or error}{kept}; make room or choose a results folder that you"
            " can write, then run the same command again: it continues"
        ) from None


def checksum(body: Mapping[str, Any]) -> str:
    """Hash of a cell file's content, `checksum` itself aside."""
    return hashlib.sha256(canonical_json(body).encode("ascii")).hexdigest()


def slug(name: str) -> str:
    """Fit for a file name on any system, at most 60 characters."""
    return re.sub(r"[^A-Za-z0-9._+]+", "_", name)[:60].strip(".") or "_"


def few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
