"""Sealed cells and their answers as data frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages

from harness.core import keeps
from harness.core.errors import PrunebenchError
from harness.store.sealed import SealedCell
from harness.store.store import Store
from harness.tables import versus_text
from harness.tables.frame import rows
from harness.tables.kept import Kept
from harness.tables.leaderboard import whole_rows
from harness.tables.sides import read_folder, resolve
from harness.tables.versus import versus

Names = str | Sequence[str] | None
#: what tells cells apart, in front of the columns of their samples
_CELL = ("model", "task", "method", "budget", "seed", "identity")


def results(folder: str | Path = "results/local", *, answers: bool = False) -> pd.DataFrame:
    """The sealed cells of a results folder: one row per cell, with the columns of leaderboard.csv.

    `answers` adds those that come from the answers (`agreement_pct`, `hard_n`, `hard_pct`, `relevant_...`). It takes
    seconds where hundreds of cells are in no table yet: statistics that the tables kept are not computed again. The
    frame is made from the cells as they are now. Raises PrunebenchError where the folder holds no sealed cell, or a
    damaged one.
    """
    cells = _cells(folder)
    return whole_rows(cells, Kept(Path(folder), write=False)) if answers else rows(cells)


def samples(
    folder: str | Path = "results/local",
    *,
    model: Names = None,
    task: Names = None,
    method: Names = None,
    budget: str | int | Sequence[str | int] | None = None,
    identity: Names = None,
) -> pd.DataFrame:
    """The answers of the sealed cells of a results folder: one row per sample and cell; each filter takes one value or
    several.

    Columns: model, task, method, budget, seed and identity of the cell; key, image, question_id, category, question,
    target, answer, score (0 to 1) and n_new_tokens of the sample; its costs as in `Costs`. `kept_tokens` is a dict from
    a decoder layer to an index array: from this layer on these of the prompt's visual tokens are there, numbered from 0
    in raster order. `added_tokens` is a dict from the same layers to the number of merged tokens that were added. Both
    are None where a cell did not record them.

    Raises PrunebenchError where a filter names nothing that is there, and for damaged cells.
    """
    cells = _cells(folder)
    for name, wanted in (
        ("model", model),
        ("task", task),
        ("method", method),
        ("budget", budget),
        ("identity", identity),
    ):
        if wanted is not None:
            cells = _only(cells, name, [wanted] if isinstance(wanted, str | int) else wanted)
    return pd.concat([_answers(sealed) for sealed in cells], ignore_index=True)


def compare(
    *sides: str,
    folder: str | Path | Sequence[str | Path] = "results/local",
    task: Names = None,
    model: str = "",
    flips: bool = False,
) -> pd.DataFrame:
    """Methods against one another on the questions that both answered, as `prunebench compare` does.

    A side is `method@budget`, as `fastv@64` or `random@64:boundary=2`, or the beginning of a cell's identity. Of one
    `folder` all pairs of sides are compared, of two folders each side with itself.

    One row per pair and task, and one for the average of several tasks. `difference` is a less b in points, between
    `low` and `high` with 95 %; `better` and `worse` are questions; `p` is McNemar's, `p_holm` corrected over all rows
    of tasks. Costs end in `_a` and `_b`. With `flips`: one row per question that one side answers better.

    Raises PrunebenchError for a side that is unknown or that several settings answer to, and for sides that may not be
    compared.
    """
    folders = [folder] if isinstance(folder, str | Path) else list(folder)
    least = {1: 2, 2: 1}.get(len(folders))
    if least is None or len(sides) < least:
        raise PrunebenchError(
            f"compare: expected two sides or more of one folder, or one side or more of two folders, found {len(sides)}"
            f" of {len(folders)}"
        )
    tasks = [task] if isinstance(task, str) else list(task or ())
    found = versus(resolve(sides, [read_folder(Path(one)) for one in folders], tasks, model))
    return versus_text.flips_frame(found) if flips else versus_text.frame(found)


def _cells(folder: str | Path) -> list[SealedCell]:
    if not isinstance(folder, str | Path):
        raise PrunebenchError(f"folder: expected a path, found {folder!r} ({type(folder).__name__})")
    cells = Store(Path(folder)).cells()
    if not cells:
        raise PrunebenchError(
            f"{folder}: expected sealed cells below cells/, found none: `prunebench eval` and `prunebench sweep` make"
            " them"
        )
    return cells


def _value(sealed: SealedCell, name: str) -> str:
    return str(sealed.identity if name == "identity" else getattr(sealed.cell, name))


def _only(cells: Sequence[SealedCell], name: str, wanted: Sequence[str | int]) -> list[SealedCell]:
    known = {_value(sealed, name) for sealed in cells}
    missing = [str(value) for value in wanted if str(value) not in known]
    if missing:
        raise PrunebenchError(f"no cell with {name} {missing[0]!r}; there are {', '.join(sorted(known))}")
    return [sealed for sealed in cells if _value(sealed, name) in {str(value) for value in wanted}]


def _answers(sealed: SealedCell) -> pd.DataFrame:
    frame = sealed.samples()
    stages = [
        keeps.decode(text, int(n)) if text else None
        for text, n in zip(frame.pop("keeps"), frame["n_visual"], strict=True)
    ]
    at = list(frame.columns).index("n_new_tokens") + 1
    kept: list[Any] = [None if s is None else {stage.layer: np.flatnonzero(stage.keep) for stage in s} for s in stages]
    added: list[Any] = [None if s is None else {stage.layer: stage.added for stage in s} for s in stages]
    frame.insert(at, "kept_tokens", pd.Series(kept, dtype=object, index=frame.index))
    frame.insert(at + 1, "added_tokens", pd.Series(added, dtype=object, index=frame.index))
    for place, name in enumerate(_CELL):
        frame.insert(place, name, sealed.cell.seed if name == "seed" else _value(sealed, name))
    return frame
