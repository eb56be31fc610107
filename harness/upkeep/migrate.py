"""Seals cells of schema 3 anew in schema 4, and is the only place that reads schema 3.

Schema 3 kept a request as the command that renders it and as a text of its LIMIT. It did not say which knobs a budget
sets, nor which grid an image's tokens form. Identity, numbers and samples.parquet stay. Each cell.json is replaced
whole or not at all, so an interrupted migration is run again.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.core.asked import Asked
from harness.core.cell import Cell
from harness.core.errors import PrunebenchError, naming
from harness.store.files import checksum
from harness.store.sealed import SAMPLES, SEAL, load
from harness.store.store import Store

OLD, NEW = 3, 4
_NAMES = ("METHOD", "BUDGET", "MODEL", "TASKS", "LIMIT", "SET", "SEED", "POSITIONS", "DATA", "DTYPE", "DEVICE", "FRESH")
#: knobs that tables took for a budget's own number before methods said so
_SIZES = ("keep", "retain", "side")


def migrate(root: Path) -> tuple[list[str], bool]:
    """Lines for people, and whether all cells under `root` are of the new schema. Raises PrunebenchError where there
    are none."""
    files = sorted((root / "cells").glob(f"*/*/{SEAL}"))
    if not files:
        raise PrunebenchError(f"expected a results folder with sealed cells, found none at {root}: give --results")
    lines: list[str] = []
    done = wrong = 0
    for file in files:
        try:
            notes = _migrated(root, file)
        except PrunebenchError as error:
            wrong += 1
            lines.append(f"WRONG  {error}")
            continue
        done += notes is not None
        lines += notes or []
    lines.append(f"{done} cells sealed anew in schema {NEW}, {len(files) - done - wrong} were already, {wrong} wrong")
    return lines, not wrong


def _migrated(root: Path, file: Path) -> list[str] | None:
    """What to know of a cell that was sealed anew; None for one of the new schema. Raises PrunebenchError for a cell
    that is not whole."""
    try:
        body = json.loads(file.read_bytes())
        found = body["schema_version"]
        if type(found) is not int or found not in (OLD, NEW):
            raise PrunebenchError(
                f"{file}: expected schema {OLD}, found {found!r}: read it with the prunebench that wrote it"
            )
        if found == NEW:
            load(file.parent)
            return None
        if body.pop("checksum") != checksum(body):
            raise PrunebenchError(
                f"{file}: it was edited since it was sealed: restore it, or delete {file.parent} and measure again"
            )
        with naming(str(file)):
            cell = Cell.from_dict(body["cell"])
            asked = _asked(body["provenance"], cell)
            knobs, notes = _budget_knobs(asked, cell, file)
            new = _resealed(body, asked, knobs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise (
            error
            if isinstance(error, PrunebenchError)
            else PrunebenchError(f"{file}: not a cell file ({type(error).__name__}: {error})")
        ) from None
    if not (file.parent / SAMPLES).is_file():
        raise PrunebenchError(
            f"{file.parent / SAMPLES}: it is missing beside {SEAL}: restore it, or delete {file.parent} and measure"
            " again"
        )
    Store(root).reseal(cell, file.parent, new)
    load(file.parent)  # what was written is a cell of the new schema
    return notes


def _resealed(body: Mapping[str, Any], asked: Asked, knobs: tuple[str, ...]) -> dict[str, Any]:
    origin = {name: value for name, value in body["provenance"].items() if name not in ("command", "limit")}
    # every model of schema 3 had one square grid of tokens an image, and every prompt one image
    n_visual = body["costs"]["n_visual"]
    side = math.isqrt(round(n_visual))
    if side * side != n_visual:
        raise PrunebenchError(
            f"expected the visual tokens of one square grid as costs.n_visual, found {n_visual:g}: measure it again"
        )
    return {
        **body,
        "schema_version": NEW,
        "method_info": {**body["method_info"], "budget_knobs": list(knobs)},
        "provenance": {"request": asked.to_dict(), **origin, "grids": [[side, side, False]]},
    }


def _asked(origin: Mapping[str, Any], cell: Cell) -> Asked:
    """The request that schema 3 wrote as a command: METHOD and SET were quoted for a shell, other values were not.

    Raises PrunebenchError for a command that is none, and for one that says another thing than the cell.
    """
    command = origin["command"].partition("  # code ")[0]
    parts = re.split(rf"(?:^| )({'|'.join(_NAMES)})=", command)
    names, words = parts[1::2], dict(zip(parts[1::2], parts[2::2], strict=True))
    if parts[0] != "make eval" or not {"METHOD", "MODEL", "TASKS", "DEVICE"} <= words.keys():
        raise PrunebenchError(f"expected a `make eval METHOD=...` as the cell's command, found {command!r}")
    if names != [name for name in _NAMES if name in words]:
        raise PrunebenchError(
            f"the command {command!r} says {', '.join(names)}, in this order: a value holds another's name, so measure"
            " it again"
        )
    limit = None if origin["limit"] == "default" else origin["limit"]
    _compare(words, cell, limit, command)
    knobs = dict(item.split("=", 1) for item in words["SET"].strip("'").split(" ")) if "SET" in words else {}
    return Asked(
        method=shlex.split(words["METHOD"])[0],
        budget=words.get("BUDGET"),
        model=words["MODEL"],
        task=cell.task,
        limit=limit,
        knobs=knobs,
        seed=cell.seed,
        positions=cell.positions,
        data=words.get("DATA"),
        device=cell.device_type,
        dtype=words.get("DTYPE"),
    )


def _compare(words: Mapping[str, str], cell: Cell, limit: str | None, command: str) -> None:
    """Raise PrunebenchError where the command's words are not those of the cell, as where a folder is called "my
    LIMIT=5"."""
    expected = {
        "BUDGET": cell.budget if cell.budget != "none" else None,
        "TASKS": cell.task,
        "LIMIT": limit,
        "SEED": str(cell.seed) if cell.seed else None,
        "POSITIONS": cell.positions if cell.positions != "method" else None,
        "DTYPE": cell.dtype if "DTYPE" in words else None,
        "DEVICE": cell.device_type,
    }
    for name, value in expected.items():
        if words.get(name) != value:
            said, meant = words.get(name, "no value"), value or "no value"
            raise PrunebenchError(
                f"the command {command!r} says {name}: {said}, and the cell {meant}: measure it again"
            )


def _budget_knobs(asked: Asked, cell: Cell, file: Path) -> tuple[tuple[str, ...], list[str]]:
    """The knobs that a budget sets, and what to know about them."""
    from harness.method import method_class

    try:
        return method_class(asked.method).budget_knobs, []
    except PrunebenchError as error:
        known = tuple(name for name in _SIZES if name in cell.knobs)
        said = (
            f"note: {file.parent}: {error}; the knobs that a budget sets are taken to be {', '.join(known) or 'none'},"
            " as tables did before"
        )
        return known, [said]
