"""A folder of one's own cells that may be sent: nothing in it names a folder, a user or a machine.

Scores, answers, costs and kept tokens stay as they were sealed, and so does everything that the identity covers: where
one of these holds a path or a name, the cell is refused. Words of provenance that nothing depends on are rewritten to
base names. Such a cell is sealed anew, and says so with the checksum of the cell that was measured. A cell without
such words is copied byte for byte.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.core.errors import PrunebenchError
from harness.core.shown import printable
from harness.core.spelling import given
from harness.store.alive import bury
from harness.store.files import check_place, few, saying, sync_folder, there, write_atomic
from harness.store.private import REMOVED, Private, base, rewritten, texts
from harness.store.sealed import SAMPLES, SEAL, SealedCell, damaged, load
from harness.store.sealed import sealed as as_written
from harness.store.strict import MODEL_WORD, check_published
from harness.store.submission import NAME, body, checked_who, entry, written

PUBLISHED = "published"
"""In the provenance of a cell whose words were rewritten: its `checksum` before, and which words."""
#: parts of provenance that a digest of the identity, or the samples, depend on
_FIXED = ("processing", "task_settings", "grids", "decoder_layers")


@dataclass
class Publication:
    """What is published, or would be."""

    files: dict[str, bytes] = field(default_factory=dict)
    """Content by path inside the folder, the submission last."""
    rewrote: dict[str, list[str]] = field(default_factory=dict)
    """By identity, the words of provenance that were rewritten."""
    left: list[str] = field(default_factory=list)
    """Cells that cannot be published, and why."""

    @property
    def cells(self) -> int:
        """How many cells are in it."""
        return sum(name.endswith(f"/{SEAL}") for name in self.files)


def publication(cells: Sequence[SealedCell], who: str, private: Private) -> Publication:
    """The content of a folder with these cells. Raises PrunebenchError for a name that is none, and where no cell can
    be published."""
    found, entries = Publication(), []
    who = checked_who(who)
    for cell in sorted(cells, key=lambda one: one.identity):
        try:
            seal, samples, places = _cell(cell, private)
        except PrunebenchError as error:
            found.left.append(f"{cell.folder}: {error}")
            continue
        folder = f"cells/{cell.folder.parent.name}/{cell.folder.name}"
        found.files |= {f"{folder}/{SAMPLES}": samples, f"{folder}/{SEAL}": seal}
        if places:
            found.rewrote[cell.identity] = places
        entries.append((cell, seal))
    if not entries:
        why = f"{few(found.left)}" if found.left else "none was named"
        raise PrunebenchError(f"expected cells that can be published, found none of {len(cells)}: {why}")
    lines = [entry(_as_sealed(cell, seal), seal) for cell, seal in entries]
    found.files[NAME] = written(body(who, lines))
    return found


def write(found: Publication, out: Path, *, replace: bool) -> tuple[int, int]:
    """Write a publication; how many files were written, and how many were there with the same bytes.

    Raises PrunebenchError before anything is written where the folder holds other files. `replace`: cells of an earlier
    publication that differ, or are no longer in it, are replaced and removed.
    """
    old = _earlier(out, found)
    differ = [name for name in old if old[name] != found.files.get(name)]
    if differ and not replace:
        raise PrunebenchError(
            f"{out}: expected an empty folder, or the same publication, found {len(differ)} files that differ, as"
            f" {printable(differ[0])}: give another folder, or {given('replace', True)}"
        )
    check_place(out, named="OUT")
    if differ and there(out / NAME):
        (out / NAME).unlink()  # a folder without it is no publication: killed in between, nobody takes it for one
    for name in differ:
        if name not in found.files:
            (out / name).unlink()
    for folder in (*out.glob("cells/*/*"), *out.glob("cells/*")):  # also of a publication that was stopped
        if folder.is_symlink() or folder.parent.is_symlink():
            continue
        for name in (SEAL, SAMPLES):
            bury(folder, f".{name}.", ".tmp")
        with suppress(OSError):  # one that holds files stays
            folder.rmdir()
    fresh = 0
    for name, data in found.files.items():
        if old.get(name) == data and not (name == NAME and differ):
            continue
        with saying("create", (out / name).parent):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out / name, data)
        fresh += 1
    sync_folder(out)
    return fresh, len(found.files) - fresh


def _earlier(out: Path, found: Publication) -> dict[str, bytes]:
    """The files of an earlier publication in a folder. Raises PrunebenchError for any other file."""
    if not there(out):
        return {}
    if not out.is_dir():
        raise PrunebenchError(f"OUT {out}: expected a folder or nothing, found a file: give another")
    old: dict[str, bytes] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        parts = name.split("/")
        if path.is_dir() and not path.is_symlink() and parts[0] == "cells" and len(parts) <= 3:
            continue
        stopped = path.name.startswith(".") and (path.name.endswith(".tmp") or name.startswith(".try-"))
        if stopped and not path.is_symlink():
            continue  # of a publication that was stopped
        own = name == NAME or (len(parts) == 4 and parts[0] == "cells" and parts[3] in (SEAL, SAMPLES))
        if not own or path.is_symlink() or not path.is_file():
            raise PrunebenchError(
                f"{out}: expected an empty folder, or one that `prunebench results publish` wrote, found"
                f" {printable(name)}: give another folder"
            )
        with saying("read", path):
            old[name] = path.read_bytes()
    return old


# ------------------------------------------------------------------------------------------------------------- a cell


def _cell(cell: SealedCell, private: Private) -> tuple[bytes, bytes, list[str]]:
    """cell.json and samples.parquet as they may be sent, and the words that were rewritten. Raises PrunebenchError for
    a cell that cannot be sent as it was measured."""
    _check_names(cell)
    with saying("read", cell.folder):
        seal, samples = (cell.folder / SEAL).read_bytes(), (cell.folder / SAMPLES).read_bytes()
    now = load(cell.folder)
    if now.samples_sha256 != hashlib.sha256(samples).hexdigest():
        raise damaged(cell.folder / SAMPLES, "it is not the file that was sealed")
    told = json.loads(seal)
    checksum = told.pop("checksum")
    provenance = told["provenance"]
    free = {name: value for name, value in provenance.items() if name not in _FIXED}
    fixed = {
        **{name: value for name, value in told.items() if name != "provenance"},
        "provenance": {name: value for name, value in provenance.items() if name in _FIXED},
    }
    for place, text in texts(fixed):
        word = private.found(text)
        if word:
            raise _refused("/".join(place), word, f"{_instead('/'.join(place))}, and measure the cell again")
    _check_samples(samples, private)
    if PUBLISHED in free:  # a collected cell may be published once more
        check_published(free[PUBLISHED])
    named = _named(free, cell)
    # a key may be a path itself
    places = {"/".join(map(private.without, place)) for place, text in texts(free) if private.without(text) != text}
    places |= {f"request/{name}" for name in ("model", "data") if named["request"][name] != free["request"][name]}
    if places:
        first = free.get(PUBLISHED, {}).get("checksum", checksum)
        mark = {PUBLISHED: {"checksum": first, "rewrote": sorted(places)}}
        seal = as_written({**told, "provenance": {**rewritten(named, private), **fixed["provenance"], **mark}})
    left = next((word for _, text in texts(json.loads(seal)) if (word := private.found(text))), None)
    if left:
        raise _refused(SEAL, left, "no rule rewrites it")
    return seal, samples, sorted(places)


def _as_sealed(cell: SealedCell, seal: bytes) -> SealedCell:
    """The cell with the provenance of the bytes that are published."""
    return dataclasses.replace(cell, provenance=json.loads(seal)["provenance"])


def _named(free: Mapping[str, Any], cell: SealedCell) -> dict[str, Any]:
    """Provenance with the names of folders in place of folders, in a request for a model or for data in one."""
    request = dict(free["request"])
    for name in ("model", "data"):
        word = request[name]
        # a hub id has a / too, and is what the model was loaded from
        known = (cell.cell.model, free.get("model_source"))
        if word and re.search(r"[/\\]|^[~.]", word) and word not in known:
            short = re.sub(r"[^A-Za-z0-9_.+-]+", "_", base(word)).lstrip("._+-")
            request[name] = cell.cell.model if name == "model" else "data" if short in ("", REMOVED) else short
    return {**free, "request": request}


def _check_names(cell: SealedCell) -> None:
    """Raise PrunebenchError where a cell was asked for by a file, which nobody else has."""
    method, task, model = cell.asked.method, cell.asked.task, cell.cell.model
    if not MODEL_WORD.fullmatch(model):
        raise PrunebenchError(
            f"expected a model's name of at most 96 letters, digits and _.+-, found {printable(model[:80])!r}: give the"
            " folder of the model another name, and measure the cell again"
        )
    if re.search(r"[/\\:]|\.py$", method):
        raise PrunebenchError(
            f"expected a method by its name, found the file {printable(Path(method).name)}: whoever gets the cell does"
            " not have that code. Install the method as a plug-in (docs/adding-a-method.md) and measure again by its"
            " name"
        )
    for word in (task, cell.cell.task):
        if "/" in word or "\\" in word or word.endswith((".yaml", ".yml")):
            raise PrunebenchError(
                f"expected a task by its name, found the file {printable(Path(word).name)}: a task in a file cannot be"
                " published; contribute the task first (docs/adding-a-task.md)"
            )


def _check_samples(samples: bytes, private: Private) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(samples))
    for name in table.column_names:
        word = private.found(name)
        if word:
            raise _refused(f"{SAMPLES}: the name of a column", word, "say which word is the data's own")
        if not pa.types.is_string(table.schema.field(name).type) or name == "keeps":
            continue
        for key, text in zip(table["key"].to_pylist(), table[name].to_pylist(), strict=True):
            word = private.found(text, of_data=True) if text else None
            if word:
                raise _refused(f"{SAMPLES}: {name} of {printable(key)}", word, "answers and questions are never edited")


def _refused(place: str, word: str, instead: str) -> PrunebenchError:
    return PrunebenchError(
        f"{printable(place)}: expected no path, user or machine, found {printable(word)!r}: {instead}; if that is no"
        f" secret, say {given('allow', word)}"
    )


def _instead(place: str) -> str:
    """What to use in place of a path, by the field that holds one."""
    if place == "cell/model":
        return "give the folder of the model another name"
    if place.startswith("cell/knobs"):
        return "give the knob a value that is no path"
    if "processing" in place or "task_settings" in place:
        return "the model's prompt or processor names it: change the checkpoint's configuration"
    return "the identity covers this field"
