"""Who measured which cells: `submission.json` of a published folder, and the records that `results collect` keeps.

    OUT/submission.json                    of `results publish`: who, and a line for each cell
    RESULTS/submissions/<digest>.json      of `results collect`: who, and the cells measured or reproduced

A cell file holds no name of a person. A record lies beside the cells, so that no seal is broken by it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.cell import canonical_json
from harness.core.command import evaluation
from harness.core.errors import PrunebenchError
from harness.core.spelling import given
from harness.store import strict
from harness.store.files import saying, write_changed
from harness.store.sealed import SealedCell

NAME = "submission.json"
FOLDER = "submissions"
VERSION = 1
#: bytes of a submission.json, and of a record
MOST = 32 * 2**20
#: characters of a name
LONGEST = 60
#: letters and marks without a shape: fillers of Hangul, joiners, selectors of variants
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef]|  "
)
_SUMMARY = ("submission_version", "who", "count", "started", "devices", "prunebench", "commits", "cells")
_RECORD = {"submission": dict, "cells": dict}
_FILE = re.compile(r"[0-9a-f]{16}\.json")


def checked_who(who: Any) -> str:
    """The public name of who measured. Raises PrunebenchError for what is no name in one short line."""
    fine = isinstance(who, str) and 0 < len(who) <= LONGEST and who == who.strip() and who[0].isalnum()
    # letters of any script with their marks, digits, and what stands in names of people and groups; two names that
    # look the same are one: nothing in it is invisible, and each letter has one spelling
    seen = fine and not _INVISIBLE.search(who) and unicodedata.normalize("NFC", who) == who
    if not seen or not all(unicodedata.category(c)[0] in "LMN" or c in " .,'&+-_()" for c in who):
        raise PrunebenchError(
            f"{given('who', str(who)[:80])}: expected a public name of at most {LONGEST} characters, that begins with"
            " a letter or digit and holds visible letters, digits, blanks and .,'&+-_() only: give another"
        )
    return str(who)


def entry(cell: SealedCell, seal: bytes) -> dict[str, Any]:
    """The line of one cell; `seal`: its cell.json. Everything in it follows from the cell."""
    provenance = cell.provenance
    versions = provenance.get("versions")
    return {
        "identity": cell.identity,
        "task": cell.cell.task,
        "model": cell.cell.model,
        "method": cell.cell.method,
        "budget": cell.cell.budget,
        "device": provenance.get("device"),
        "started": provenance.get("started"),
        "prunebench": versions.get("prunebench") if isinstance(versions, Mapping) else None,
        "commit": provenance.get("git"),
        "dirty": provenance.get("dirty"),
        "samples_sha256": cell.samples_sha256,
        "cell_sha256": hashlib.sha256(seal).hexdigest(),
        "command": evaluation(cell.asked, fresh=True, source=cell.cell.method_source),
    }


def body(who: str, entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What a submission.json holds. It names no time of its own: equal cells give equal bytes."""
    lines = sorted((dict(one) for one in entries), key=lambda one: str(one["identity"]))

    def each(name: str) -> list[str]:
        return sorted({str(one[name]) for one in lines if one.get(name) is not None})

    started = each("started")
    return {
        "submission_version": VERSION,
        "who": checked_who(who),
        "count": len(lines),
        "started": {"first": started[0], "last": started[-1]} if started else None,
        "devices": each("device"),
        "prunebench": each("prunebench"),
        "commits": each("commit"),
        "cells": lines,
    }


def written(found: Mapping[str, Any]) -> bytes:
    """The bytes of a submission.json."""
    return (json.dumps(found, indent=1) + "\n").encode("ascii")


def checked(found: Any) -> tuple[str, dict[str, dict[str, Any]]]:
    """Who measured, and the lines by identity, of the value in a submission.json from elsewhere.

    Raises PrunebenchError where a part has another type, or where the summary is not that of its lines.
    """
    if not isinstance(found, dict) or set(found) != set(_SUMMARY):
        names = sorted(map(str, found))[:12] if isinstance(found, dict) else type(found).__name__
        raise PrunebenchError(f"{NAME}: expected the keys {', '.join(_SUMMARY)}, found {names}")
    if found["submission_version"] != VERSION:
        raise PrunebenchError(
            f"{NAME}: expected submission_version {VERSION}, found {found['submission_version']!r}: publish the cells"
            " with the prunebench that reads them"
        )
    who, lines = checked_who(found["who"]), found["cells"]
    if not isinstance(lines, list) or not all(
        isinstance(one, dict)
        and isinstance(one.get("identity"), str)
        and re.fullmatch(r"[0-9a-f]{16}", one["identity"])
        and all(value is None or isinstance(value, str | bool) for value in one.values())
        for one in lines
    ):
        raise PrunebenchError(f"{NAME}: expected cells, a list of lines of texts, each with an identity of 16 digits")
    by_identity = {one["identity"]: one for one in lines}
    if len(by_identity) != len(lines):
        raise PrunebenchError(f"{NAME}: expected each identity once, found {len(lines) - len(by_identity)} twice")
    summary = body(who, lines)
    wrong = [name for name in _SUMMARY if summary[name] != found[name]]
    if wrong:
        raise PrunebenchError(f"{NAME}: its {wrong[0]} is not that of its lines: it was edited; publish it again")
    return who, by_identity


# ------------------------------------------------------------------------------------------------- records of a collect


@dataclass(frozen=True)
class Measurers:
    """Who a cell is from, as collected submissions say. Each name once, in order of the alphabet."""

    measured: tuple[str, ...] = ()
    reproduced: tuple[str, ...] = ()


def run_of(cell: SealedCell) -> str:
    """16 digits that name the run behind a cell: the answers, its start to the second and its milliseconds.

    A copy of a cell has the same ones, and is no reproduction, also where its samples are encoded anew.
    """
    answers = cell.columns("key", "answer")
    told = [answers["key"], answers["answer"], *(str(cell.provenance.get(name)) for name in ("started", "wall_s"))]
    return hashlib.sha256(canonical_json(told).encode("ascii")).hexdigest()[:16]


def place(root: Path, submission: bytes) -> Path:
    """The record of a submission in a results folder; `submission`: its submission.json."""
    return root / FOLDER / f"{hashlib.sha256(submission).hexdigest()[:16]}.json"


def record(path: Path, who: str, lines: Iterable[Mapping[str, Any]], cells: Mapping[str, Mapping[str, str]]) -> None:
    """Write which cells a submission measured (`run`) or reproduced (`run`, and `equals`: the samples that are here).

    `lines`: those of the submission about these cells; nothing else of its text is kept. Cells of an earlier record of
    the same submission stay in it. Raises PrunebenchError where a file there is no record, or another one's.
    """
    with saying("create", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    by_identity, all_cells = {str(one["identity"]): dict(one) for one in lines}, {n: dict(cells[n]) for n in cells}
    if os.path.lexists(path):
        old = _read(path)
        other = [name for name in by_identity if by_identity[name] != old.lines.get(name, by_identity[name])]
        if old.who != who or other:
            about = f" about {other[0]}" if other else f" by {old.who}"
            raise PrunebenchError(
                f"{path}: expected a record of the same submission by {who}, found another one{about}: delete the one"
                " that is wrong, and collect its submission again"
            )
        by_identity, all_cells = {**old.lines, **by_identity}, {**old.cells, **all_cells}
    text = {
        "submission": body(who, by_identity.values()),
        "cells": {name: all_cells[name] for name in sorted(all_cells)},
    }
    write_changed(path, written(text))


@dataclass(frozen=True)
class Attribution:
    """The record of one submission."""

    path: Path
    who: str
    lines: dict[str, dict[str, Any]]
    """What the submission says of each cell, by identity."""
    cells: dict[str, dict[str, str]]
    """The run of each cell, and the samples that it `equals` where it reproduced them."""

    def says(self, cell: SealedCell, run: str) -> str:
        """What it says of who made a cell, `run_of` which is given: "measured", "reproduced" or "". A record of samples
        that are no longer here says nothing."""
        mine = self.cells.get(cell.identity)
        if mine is None:
            return ""
        if mine["run"] == run:
            return "measured" if self.lines[cell.identity].get("samples_sha256") == cell.samples_sha256 else ""
        return "reproduced" if mine.get("equals") == cell.samples_sha256 else ""


@dataclass(frozen=True)
class Records:
    """All records of a results folder."""

    found: Sequence[Attribution]

    def __bool__(self) -> bool:
        return bool(self.found)

    def origin(self, cell: SealedCell) -> Measurers:
        """Who a cell is from."""
        mine = [one for one in self.found if cell.identity in one.cells]
        run = run_of(cell) if mine else ""  # the samples of the others are not read
        measured, reproduced = (
            {one.who for one in mine if one.says(cell, run) == word} for word in ("measured", "reproduced")
        )
        return Measurers(tuple(sorted(measured)), tuple(sorted(reproduced - measured)))

    def check_run(self, identity: str, run: str, who: str) -> None:
        """Raise PrunebenchError where somebody else's record names a run."""
        names = {one.who for one in self.found if identity in one.cells and one.cells[identity]["run"] == run}
        if names and who not in names:
            raise PrunebenchError(
                f"{identity}: expected a run of {who}, found a copy of the cell that {min(names)} measured: its start"
                " and its time are the same; a reproduction is measured again"
            )


def records(root: Path, damaged: list[str] | None = None) -> Records:
    """The records below a results folder; none where nothing was collected.

    Raises PrunebenchError for the first file that is no record, and for two that give one run to two people; with a
    list, all of them are said there, and say nothing of who measured.
    """
    wrong: list[str] = []
    folder, found = root / FOLDER, []
    with saying("read", folder):
        names = []
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            wrong.append(f"{folder}: expected a folder of records, found a link or a file: remove it")
        elif folder.exists():
            names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))
    for name in names:
        try:
            found.append(_read(folder / name))
        except PrunebenchError as error:
            wrong.append(str(error))
    by_run: dict[tuple[str, str], list[Attribution]] = {}
    for one in found:
        for identity, cell in one.cells.items():
            by_run.setdefault((identity, cell["run"]), []).append(one)
    for (identity, _), those in by_run.items():
        other = next((one for one in those if one.who != those[0].who), None)
        if other is not None:
            wrong.append(
                f"{other.path}: expected each run of one person, found that {other.who} and, in {those[0].path.name},"
                f" {those[0].who} measured {identity}: delete the one that is wrong"
            )
            for one in those:
                del one.cells[identity]
    if wrong and damaged is None:
        raise PrunebenchError(wrong[0])
    if damaged is not None:
        damaged += wrong
    return Records(found)


def _read(path: Path) -> Attribution:
    """A record. Raises PrunebenchError for a file that is none."""
    try:
        with saying("read", path):
            is_now = path.lstat()
            if not stat.S_ISREG(is_now.st_mode) or is_now.st_size > MOST:
                raise PrunebenchError(f"expected a file of at most {MOST:,} bytes, no link")
            data = path.read_bytes()
        value = strict.parsed(data, "its text")
        if not _FILE.fullmatch(path.name):
            raise PrunebenchError("expected a name of 16 digits")
        if not isinstance(value, dict) or {n: type(v) for n, v in value.items()} != _RECORD:
            raise PrunebenchError(f"expected {' and '.join(_RECORD)}")
        who, lines = checked(value["submission"])
        cells: dict[str, dict[str, str]] = value["cells"]
        if cells.keys() != lines.keys() or not all(map(_is_run, cells.values())):
            raise PrunebenchError("expected a run for each cell of its submission")
    except PrunebenchError as error:
        raise PrunebenchError(
            f"{path}: expected a record that `prunebench results collect` wrote, found another text ({error}):"
            " restore it, or delete it and collect the submission again"
        ) from None
    return Attribution(path, who, lines, cells)


def _is_run(found: Any) -> bool:
    """Whether this is what a record says of one cell."""
    return (
        isinstance(found, dict)
        and {"run"} <= found.keys() <= {"run", "equals"}
        and all(isinstance(value, str) for value in found.values())
        and bool(re.fullmatch("[0-9a-f]{16}", found["run"]))
    )
