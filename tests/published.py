"""Published folders for tests: good ones of real cells, and ones that somebody changed and sealed again."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from harness.core.cell import Cell
from harness.core.paths import TOP
from harness.store import submission
from harness.store.private import Private
from harness.store.publish import publication, write
from harness.store.sealed import SAMPLES, SEAL, SealedCell, compressed, load
from harness.store.sealed import sealed as as_written
from harness.store.store import Store

REFERENCE = TOP / "results" / "reference"
#: of the reference: unpruned and pruned
CELLS = ("none-none-d4c5b2fc41781c0b", "visipruner-128-9cc6a3e3a72140bf")
NOBODY = Private(())


def reference(name: str = CELLS[1]) -> SealedCell:
    """A cell of POPE on the mini model, as committed."""
    return load(REFERENCE / "cells" / "pope" / f"mini-{name}")


def published(out: Path, who: str = "Alice Lab", *names: str) -> Path:
    """A folder with some cells of the reference, as `results publish` writes it."""
    write(publication([reference(name) for name in names or CELLS], who, NOBODY), out, replace=False)
    return out


def place(folder: Path, method: str = "visipruner") -> Path:
    """The folder of the one cell of a method."""
    (found,) = (path.parent for path in folder.glob(f"cells/*/*/{SEAL}") if f"-{method}-" in path.parent.name)
    return found


def body(cell: Path) -> dict[str, Any]:
    """What a cell.json holds, without its checksum."""
    found: dict[str, Any] = json.loads((cell / SEAL).read_text())
    del found["checksum"]
    return found


def forged(folder: Path, change: Callable[[dict[str, Any]], object], samples: bytes | None = None) -> Path:
    """Change the pruned cell of a published folder and seal everything again, as somebody would who hides the change:
    identity, hashes, checksum, the names of folders, and the submission. Returns the cell's folder."""
    cell = place(folder)
    new = body(cell)
    change(new)
    if samples is not None:
        (cell / SAMPLES).write_bytes(samples)
        new["samples_sha256"] = __import__("hashlib").sha256(samples).hexdigest()
    made = Cell.from_dict(new["cell"])
    new["identity"] = made.identity()
    (cell / SEAL).write_bytes(as_written(new))
    moved = Store(folder).folder(made)
    if moved != cell:
        moved.parent.mkdir(exist_ok=True, parents=True)
        shutil.move(cell, moved)
        if not list(cell.parent.iterdir()):
            cell.parent.rmdir()
    resubmitted(folder)
    return moved


def resubmitted(folder: Path, who: str = "Mallory") -> None:
    """Write the submission.json of all cells in a folder that can be read."""
    lines = []
    for path in sorted(folder.glob(f"cells/*/*/{SEAL}")):
        try:
            lines.append(submission.entry(load(path.parent), path.read_bytes()))
        except ValueError:
            continue
    (folder / submission.NAME).write_bytes(submission.written(submission.body(who, lines)))


def samples_with(cell: Path, change: Callable[[pd.DataFrame], Any]) -> bytes:
    """The samples of a cell with a change, as a store writes them."""
    frame = pd.read_parquet(cell / SAMPLES)
    found = change(frame)
    frame = frame if found is None else found
    # texts that are all absent stay texts
    kinds = {field.name: field.type for field in pq.read_schema(cell / SAMPLES)}
    columns = {
        str(name): pa.array(frame[name].tolist(), kinds[name])
        if name in kinds and len(frame) and not isinstance(frame[name].iloc[0], list)
        else pa.array(frame[name].tolist())
        for name in frame
    }
    return bytes(compressed(pa.table(columns)))


def plain_parquet(table: pa.Table, **options: Any) -> bytes:
    """A table as Parquet with options of somebody else."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def resealed(cell: Path, new: dict[str, Any]) -> None:
    """Write a cell.json with the checksum of its content, in the bytes that prunebench writes."""
    (cell / SEAL).write_bytes(as_written(new))
