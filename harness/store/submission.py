"""Who measured which cells: `submission.json` of a published folder, and the records that `results collect` keeps.

    OUT/submission.json                    of `results publish`: who, and a line for each cell
    RESULTS/submissions/<digest>.json      of `results collect`: who, and the cells measured or reproduced

A cell file holds no name of a person. A record lies beside the cells, so that no seal is broken by it.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.cell import canonical_json
from harness.core.command import evaluation
from harness.core.errors import PrunebenchError
from harness.core.spelling import given
from harness.store.files import saying, there, write_changed
from harness.store.sealed import SealedCell

NAME = "submission.json"
FOLDER = "submissions"
VERSION = 1
#: characters of a name
LONGEST = 60
#: letters and marks without a shape: fillers of Hangul, joiners, selectors of variants
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef]|  "
)
_SUMMARY = ("submission_version", "who", "count", "started", "devices", "prunebench", "commits", "cells")
_RECORD = {"submission": dict, "cells": dict}


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


def record(
    submission: bytes,
    who: str,
    lines: Iterable[Mapping[str, Any]],
    cells: Mapping[str, Mapping[str, str]],
    root: Path,
) -> Path:
    """Write which cells a submission measured (`run`) or reproduced (`run`, and `equals`: the samples that are here).

    `lines`: those of the submission about these cells; nothing else of its text is kept. Cells of an earlier record of
    the same submission stay in it. Raises PrunebenchError where a file there is no record.
    """
    path = root / FOLDER / f"{hashlib.sha256(submission).hexdigest()[:16]}.json"
    with saying("create", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    by_identity, all_cells = {str(one["identity"]): one for one in lines}, {name: dict(cells[name]) for name in cells}
    if there(path):
        with saying("read", path):
            data = path.read_bytes()
        _, earlier, old = _of_record(path, data)
        by_identity, all_cells = {**earlier, **by_identity}, {**old, **all_cells}
    text = {
        "submission": body(who, by_identity.values()),
        "cells": {name: all_cells[name] for name in sorted(all_cells)},
    }
    write_changed(path, written(text))
    return path


@dataclass(frozen=True)
class Records:
    """All records of a results folder."""

    found: Sequence[tuple[str, Mapping[str, Mapping[str, str]]]]
    """(who, cells) of each submission."""

    def __bool__(self) -> bool:
        return bool(self.found)

    def origin(self, cell: SealedCell) -> Measurers:
        """Who a cell is from. A record of samples that are no longer here says nothing."""
        identity = cell.identity
        mine = [(who, cells[identity]) for who, cells in self.found if identity in cells]
        run = run_of(cell) if mine else ""  # the samples of the others are not read
        measured = {who for who, one in mine if one["run"] == run}
        reproduced = {who for who, one in mine if one["run"] != run and one.get("equals") == cell.samples_sha256}
        return Measurers(tuple(sorted(measured)), tuple(sorted(reproduced - measured)))


def records(root: Path) -> Records:
    """The records below a results folder; none where nothing was collected. Raises PrunebenchError for a file that is
    no record."""
    folder, found = root / FOLDER, []
    with saying("read", folder):
        files = sorted(path for path in folder.glob("*.json") if path.is_file()) if there(folder) else []
        texts = [(path, path.read_bytes()) for path in files]
    for path, text in texts:
        who, _, cells = _of_record(path, text)
        found.append((who, cells))
    return Records(found)


def _of_record(path: Path, text: bytes) -> tuple[str, dict[str, dict[str, Any]], dict[str, dict[str, str]]]:
    """Who, lines and cells of a record. Raises PrunebenchError for a file that is none."""
    try:
        value = json.loads(text)
        if not isinstance(value, dict) or {n: type(v) for n, v in value.items()} != _RECORD:
            raise PrunebenchError(f"expected {' and '.join(_RECORD)}")
        who, lines = checked(value["submission"])
        cells: dict[str, dict[str, str]] = value["cells"]
        if not all(isinstance(one, dict) and isinstance(one.get("run"), str) for one in cells.values()):
            raise PrunebenchError("expected a run for each cell")
    except (ValueError, RecursionError) as error:
        raise PrunebenchError(
            f"{path}: expected a record that `prunebench results collect` wrote, found another text ({error}):"
            " restore it, or delete it and collect the submission again"
        ) from None
    return who, lines, cells
