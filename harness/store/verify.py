"""What lies in a results folder, and whether all of it still is what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core import keeps, stats
from harness.core.errors import PrunebenchError
from harness.store.journal import JOURNAL, read_journal
from harness.store.sealed import COLUMNS, SAMPLES, SEAL, SealedCell, cost_means, load
from harness.store.store import Store

if TYPE_CHECKING:
    import pandas as pd

#: what a cell must say of where its numbers come from
PROVENANCE = (
    "request",
    "started",
    "wall_s",
    "device",
    "versions",
    "git",
    "dirty",
    "revision",
    "decoder_layers",
    "grids",
)
VERSIONS = ("prunebench", "torch", "transformers", "lmms-eval")


@dataclass(frozen=True)
class Found:
    """One folder under cells/, or a file that belongs to none."""

    path: Path
    cell: SealedCell | None
    """The measured cell; None if it is unfinished or damaged."""
    answered: int | None
    """Answers in the journal of an unfinished cell; None for everything else."""
    wrong: tuple[str, ...]
    """What is not as it was measured; empty if all is well."""


def survey(root: Path, *, deep: bool) -> Iterator[Found]:
    """Everything under `root`/cells, by name; `deep` reads samples too and computes every number again that can be.

    One damaged cell hides no other. Raises PrunebenchError if there are no cells to look at.
    """
    cells = root / "cells"
    if not cells.is_dir():
        raise PrunebenchError(f"expected a results folder with cells/ in it, found none at {root}: give --results")
    for task in sorted(cells.iterdir()):
        if not task.is_dir():
            yield Found(task, None, None, ("it belongs to no cell",))
            continue
        for folder in sorted(task.iterdir()):
            if folder.is_dir():
                yield _folder(root, folder, deep)
            else:
                yield Found(folder, None, None, ("it belongs to no cell",))


def verify(root: Path) -> tuple[list[str], bool]:
    """Lines for people, and whether everything is as it was measured."""
    lines, sealed, unfinished, answers, wrong = [], 0, 0, 0, 0
    for found in survey(root, deep=True):
        for why in found.wrong:
            lines.append(f"WRONG  {found.path}: {why}")
        wrong += bool(found.wrong)
        sealed += found.cell is not None and not found.wrong
        if found.answered is not None and not found.wrong:
            unfinished += 1
            answers += found.answered
            lines.append(f"unfinished  {found.path}: {found.answered} answers; the command that began it continues it")
    lines.append(f"{sealed} cells sealed and whole, {unfinished} unfinished ({answers} answers), {wrong} wrong")
    return lines, not wrong


def overview(root: Path) -> list[str]:
    """One line per cell: its state, its score, when and by what it was measured."""
    lines = []
    for found in survey(root, deep=False):
        where = found.path.relative_to(root / "cells")
        if found.wrong:
            lines.append(f"damaged     {where}: {found.wrong[0]}")
        elif found.cell is None:
            lines.append(f"unfinished  {where}  {found.answered} answers")
        else:
            cell, origin = found.cell, found.cell.provenance
            asked = cell.cell.settings | ({"seed": cell.cell.seed} if cell.cell.seed else {})
            setting = " ".join(f"{name}={value}" for name, value in asked.items()) or "-"
            said = (
                f"{cell.headline} {cell.score:.4f}  {cell.counts['answered']} answers  {origin.get('started', '')} "
                f" {origin.get('device', '')}"
            )
            lines.append(f"sealed      {where}  {setting}  {said}")
    return lines


def _folder(root: Path, folder: Path, deep: bool) -> Found:
    """One folder. What a kill leaves behind (half a cell, temporary files) is a state, everything else unexpected is
    wrong."""
    wrong: list[str] = []
    cell: SealedCell | None = None
    answered: int | None = None
    try:
        names = {path.name for path in folder.iterdir()}
        for name in sorted(names - {JOURNAL, SAMPLES, SEAL}):
            if not (name.startswith(".") and name.endswith(".tmp")):
                wrong.append(f"{name} does not belong to a cell: remove it")
        if SEAL in names:
            cell = load(folder)
            if Store(root).folder(cell.cell) != folder:
                wrong.append(
                    f"expected the folder's name to be {Store(root).folder(cell.cell).name}: it was renamed or moved"
                )
            if deep:
                wrong += _untrue(cell)
            else:
                cell.verify()
        elif JOURNAL in names:
            read = read_journal(folder / JOURNAL)
            answered = len(read.done)
            wrong += read.notes[: bool(read.damaged)]
        else:
            answered = 0  # killed before the first answer, or while an older measurement was discarded
    except PrunebenchError as error:
        wrong.append(str(error))
    except OSError as error:
        wrong.append(f"cannot be read: {error.strerror or error}")
    return Found(folder, None if wrong else cell, answered, tuple(wrong))


def _untrue(cell: SealedCell) -> list[str]:
    """What a sealed cell says that its samples do not bear out."""
    wrong: list[str] = []
    try:
        cell.verify()
        frame = cell.samples()
    except PrunebenchError as error:
        return [str(error)]
    except Exception as error:  # pyarrow raises classes of its own for a file that is not Parquet
        return [f"{SAMPLES} cannot be read: {type(error).__name__}: {error}"]
    costs = dict.fromkeys(name.removesuffix("_share") if name.endswith("_layer_share") else name for name in cell.costs)
    missing = [name for name in (*COLUMNS, *costs) if name not in frame.columns]
    if missing:
        return [f"{SAMPLES} lacks the columns {', '.join(missing)}"]

    counted = {name: n for name, n in cell.counts.items() if name != "headline"}
    rows = {"cell": cell.cell.n_samples, **counted, "keys": int(frame["key"].nunique())}
    if set(rows.values()) != {len(frame)}:
        wrong.append(f"expected {len(frame)} samples, as {SAMPLES} has, everywhere; found {rows}")
    try:
        wrong += _headline(cell, frame)
        _readable(frame)
    except PrunebenchError as error:
        wrong.append(str(error))
    means = cost_means({name: frame[name].tolist() for name in costs})
    for name in sorted({*means, *cell.costs}):
        stated, mean = cell.costs.get(name, math.nan), means.get(name, math.nan)
        if not math.isclose(mean, stated, rel_tol=1e-12, abs_tol=0.0):
            wrong.append(f"cost {name} is {stated}, but its column's mean is {mean}")
    return wrong + _origin(cell.provenance)


def _headline(cell: SealedCell, frame: pd.DataFrame) -> list[str]:
    texts: dict[str, Sequence[Any]] = {
        name: frame[name].tolist() for name in ("score", "image", "category", "question_id")
    }
    units = stats.cluster(cell.headline, texts["score"], texts["image"], texts["category"], texts["question_id"])
    wrong = []
    counted = sum(stats.in_headline(cell.headline, texts["category"]))
    if counted != cell.counts.get("headline"):
        wrong.append(
            f"{cell.headline} is said to be of {cell.counts.get('headline')} questions, but its categories have"
            f" {counted}"
        )
    if not math.isclose(units.point, cell.score, rel_tol=0.0, abs_tol=1e-6 * units.maximum):
        wrong.append(f"{cell.headline} is {cell.score}, but the samples' scores add up to {units.point}")
    if units.maximum != cell.maximum:
        wrong.append(f"the maximum of {cell.headline} is {cell.maximum}, but the samples allow {units.maximum}")
    spread = cell.interval
    if (spread is None) != (units.n_clusters < 2) or (spread is not None and spread.n_clusters != units.n_clusters):
        wrong.append(f"the interval {spread} is not one over the {units.n_clusters} images of the samples")
    return wrong


def _readable(frame: pd.DataFrame) -> None:
    """Raises PrunebenchError where the record of kept tokens is not one."""
    if "n_visual" in frame.columns:
        for text, n_visual in set(zip(frame["keeps"], frame["n_visual"], strict=True)):
            keeps.decode(text, int(n_visual))


def _origin(provenance: Mapping[str, Any]) -> list[str]:
    missing = [name for name in PROVENANCE if name not in provenance]
    versions = provenance.get("versions") or {}
    missing += [f"versions/{name}" for name in VERSIONS if name not in versions]
    return [f"its provenance does not say {', '.join(missing)}"] if missing else []
