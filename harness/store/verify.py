"""What lies in a results folder, and whether all of it still is what was measured.

Everything that follows from the samples is computed again here. What needs a task's data or a model's sizes is
harness/proof/recomputed.py's. Nothing but the run itself knows the answers and their lengths, what a method's scoring
and edits cost, its notes, wall times, and where a cell was measured: these are stated, and only hashed.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.core import grids, keeps
from harness.core.cell import processing_digest
from harness.core.errors import PrunebenchError
from harness.store.journal import JOURNAL, read_journal
from harness.store.sealed import COLUMNS, SAMPLES, SEAL, SealedCell, cost_means, headline_of, load
from harness.store.store import Store
from harness.store.submission import records

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
    left: tuple[str, ...] = ()
    """What could not be computed again, and why."""


class Again(Protocol):
    """Computes again what needs data and a model's sizes, which this room does not know."""

    def __call__(self, cell: SealedCell, frame: pd.DataFrame) -> tuple[list[str], list[str]]:
        """What is wrong, and what could not be computed."""


def survey(root: Path, *, deep: bool, again: Again | None = None) -> Iterator[Found]:
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
                yield examined(root, folder, deep, again)
            else:
                yield Found(folder, None, None, ("it belongs to no cell",))


def verify(root: Path, again: Again | None = None) -> tuple[list[str], bool]:
    """Lines for people, and whether everything is as it was measured."""
    lines, sealed, unfinished, answers, wrong = [], 0, 0, 0, 0
    left: Counter[str] = Counter()
    for found in survey(root, deep=True, again=again):
        left.update(found.left)
        for why in found.wrong:
            lines.append(f"WRONG  {found.path}: {why}")
        wrong += bool(found.wrong)
        sealed += found.cell is not None and not found.wrong
        if found.answered is not None and not found.wrong:
            unfinished += 1
            answers += found.answered
            lines.append(f"unfinished  {found.path}: {found.answered} answers; the command that began it continues it")
    broken: list[str] = []
    records(root, broken)
    lines += [f"WRONG  {why}" for why in broken]
    wrong += len(broken)
    lines += [f"note: {why} ({n} cells)" for why, n in sorted(left.items())]
    lines.append(f"{sealed} cells sealed and whole, {unfinished} unfinished ({answers} answers), {wrong} wrong")
    return lines, not wrong


def examined(root: Path, folder: Path, deep: bool, again: Again | None) -> Found:
    """One folder of a cell, as `survey` looks at each. What a kill leaves behind (half a cell, temporary files) is a
    state, everything else unexpected is wrong."""
    wrong: list[str] = []
    left: list[str] = []
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
                untrue, left = _untrue(cell, again)
                wrong += untrue
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
    return Found(folder, None if wrong else cell, answered, tuple(wrong), tuple(left))


def _untrue(cell: SealedCell, again: Again | None) -> tuple[list[str], list[str]]:
    """What a sealed cell says that its samples do not bear out, and what could not be computed again."""
    try:
        cell.verify()
        frame = cell.samples()
    except PrunebenchError as error:
        return [str(error)], []
    except Exception as error:  # pyarrow raises classes of its own for a file that is not Parquet
        return [f"{SAMPLES} cannot be read: {type(error).__name__}: {error}"], []
    costs = dict.fromkeys(name.removesuffix("_share") if name.endswith("_layer_share") else name for name in cell.costs)
    missing = [name for name in (*COLUMNS, *costs) if name not in frame.columns]
    if missing:
        return [f"{SAMPLES} lacks the columns {', '.join(missing)}"], []
    wrong: list[str] = []
    try:
        wrong += _counted(cell, frame)
        wrong += _headline(cell, frame)
        wrong += _kept(cell, frame)
        means = cost_means({name: frame[name].tolist() for name in costs})
        for name in sorted({*means, *cell.costs}):
            stated, mean = cell.costs.get(name, math.nan), means.get(name, math.nan)
            if not math.isclose(mean, stated, rel_tol=1e-12, abs_tol=0.0):
                wrong.append(f"cost {name} is {stated}, but its column's mean is {mean}")
        wrong += _origin(cell)
        wrong += _processed(cell)
        if wrong or again is None:
            return wrong, []
        return again(cell, frame)
    except PrunebenchError as error:
        return [*wrong, str(error)], []
    except (TypeError, ValueError, KeyError, OverflowError) as error:  # values of a kind that nothing of ours writes
        return [*wrong, f"its numbers cannot be computed again ({type(error).__name__}: {error})"], []


def _processed(cell: SealedCell) -> list[str]:
    """The open descriptions of what was done to samples, beside the digests in the identity."""
    wrong = []
    for name in ("processing", "task_settings"):
        stated, found = getattr(cell.cell, name), processing_digest(cell.provenance[name])
        if stated != found:
            wrong.append(f"{name} has the digest {found}, but its identity says {stated}")
    return wrong


def _counted(cell: SealedCell, frame: pd.DataFrame) -> list[str]:
    counted = {name: n for name, n in cell.counts.items() if name not in ("headline", "images")}
    rows = {"cell": cell.cell.n_samples, **counted, "keys": int(frame["key"].nunique())}
    if set(rows.values()) != {len(frame)}:
        return [f"expected {len(frame)} samples, as {SAMPLES} has, everywhere; found {rows}"]
    return []


def _headline(cell: SealedCell, frame: pd.DataFrame) -> list[str]:
    columns: list[Sequence[Any]] = [frame[name].tolist() for name in ("score", "image", "category", "question_id")]
    found = headline_of(cell.metric, columns[0], columns[1], columns[2], columns[3], cell.score)
    wrong = []
    if found.questions != cell.counts.get("headline"):
        wrong.append(
            f"{cell.headline} is said to be of {cell.counts.get('headline')} questions, but its categories have"
            f" {found.questions}"
        )
    if cell.counts.get("images", found.images) != found.images:
        wrong.append(f"it is said to be of {cell.counts['images']} images, but its samples have {found.images}")
    if cell.metric.tested and not math.isclose(found.point, cell.score, rel_tol=0.0, abs_tol=1e-6 * found.maximum):
        wrong.append(f"{cell.headline} is {cell.score}, but the samples' scores add up to {found.point}")
    if found.maximum != cell.maximum and not (math.isnan(found.maximum) and math.isnan(cell.maximum)):
        wrong.append(f"the maximum of {cell.headline} is {cell.maximum}, but the samples allow {found.maximum}")
    stated, computed = (spread and asdict(spread) for spread in (cell.interval, found.interval))
    if not same(stated, computed, 1e-9 * found.maximum if cell.metric.tested else 0.0):
        wrong.append(f"the interval is {stated}, but the {found.images} images of the samples give {computed}")
    return wrong


def same(one: Any, other: Any, within: float = 1e-12) -> bool:
    """Whether two values, or two mappings of values, are equal up to rounding."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[name], other[name], within) for name in one)
    if isinstance(one, float | int) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=1e-12, abs_tol=within)
    return bool(one == other)


def _kept(cell: SealedCell, frame: pd.DataFrame) -> list[str]:
    """What the record of kept tokens says of the columns beside it. Raises PrunebenchError where it is none."""
    wrong = []
    if "n_visual" in frame.columns:
        record = grids.read(cell.provenance.get("grids"))
        depth = cell.provenance.get("decoder_layers")
        names = ("key", "image", "keeps", "n_visual", "kept", "mean_visual")
        for key, image, text, n_visual, kept, mean in zip(*(frame[name].tolist() for name in names), strict=True):
            own = grids.own(record, image)
            tokens = sum(grid.tokens for grid in own)
            if n_visual != tokens:
                shown = [list(grid) for grid in own]
                wrong.append(f"n_visual of {key} is {n_visual}, but the grids {shown} have {tokens} tokens")
                continue
            stages = keeps.decode(text, int(n_visual))
            if not stages or not isinstance(depth, int):
                continue
            counts = keeps.per_layer(stages, depth)
            if not same(mean, sum(counts) / depth):
                wrong.append(
                    f"mean_visual of {key} is {mean}, but its record of kept tokens says {sum(counts) / depth}"
                )
            if kept not in counts:
                wrong.append(f"kept of {key} is {kept}, but its record says that layers have {sorted(set(counts))}")
    if not frame["n_new_tokens"].between(0, cell.cell.max_new_tokens).all():
        wrong.append(f"n_new_tokens is not always 0 to {cell.cell.max_new_tokens}, which ends an answer")
    return wrong[:3]


def _origin(cell: SealedCell) -> list[str]:
    provenance, asked = cell.provenance, cell.asked
    missing = [name for name in PROVENANCE if name not in provenance]
    versions = provenance.get("versions") or {}
    missing += [f"versions/{name}" for name in VERSIONS if name not in versions]
    wrong = [f"its provenance does not say {', '.join(missing)}"] if missing else []
    # a task of a file is asked for by the file, and measured under the name that the file gives
    of_file = asked.task.endswith((".yaml", ".yml")) or os.sep in asked.task
    names = ("seed", "positions") if of_file else ("task", "seed", "positions")
    measured, request = ({name: getattr(one, name) for name in names} for one in (cell.cell, asked))
    if measured != request:
        wrong.append(f"its request asks for {request}, and it is {measured}")
    return wrong
