"""Sealed cells and their answers as data frames."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages

from harness.core import keeps
from harness.core.errors import PrunebenchError, unknown
from harness.store.sealed import SealedCell
from harness.store.store import Store
from harness.tables import versus_text
from harness.tables.frame import rows
from harness.tables.kept import Kept
from harness.tables.leaderboard import whole_rows
from harness.tables.sides import read_folder, resolve
from harness.tables.versus import Reader, versus

Names = str | Sequence[str] | None
#: what tells cells apart, in front of the columns of their samples
_CELL = ("section", "model", "task", "method", "setting", "budget", "seed", "identity")
#: what names a question in the wide form
_QUESTION = ("section", "model", "task", "key", "question", "target")


def results(folder: str | Path = "results/local", *, answers: bool = False) -> pd.DataFrame:
    """The sealed cells of a results folder: one row per cell, with the columns of leaderboard.csv.

    `answers` adds those that come from the answers (`agreement_pct`, `hard_n`, `hard_pct`, `relevant_...`). It takes
    seconds where hundreds of cells are in no table yet: statistics that the tables kept are not computed again. The
    frame is made from the cells as they are now. A damaged cell is left out, with a warning that names it. Raises
    PrunebenchError where the folder holds no sealed cell.
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
    limit: str | int | Sequence[str | int] | None = None,
    identity: Names = None,
    key: Names = None,
    wide: str | None = None,
) -> pd.DataFrame:
    """The answers of the sealed cells of a results folder: one row per sample and cell; each filter takes one value or
    several.

    `limit` is LIMIT as it was asked for: "all", a number, or "default" where none was. `key` takes the answers of one
    question, or of several, over all cells: `samples(folder, key="pope/000123")`. Cells stand in the order of
    `results`.

    Columns: section, model, task, method, setting, budget, seed and identity of the cell, where setting and section are
    those of `results`; key, image, question_id, category, question,
    target, answer, score (0 to 1) and n_new_tokens of the sample; its costs as in `Costs`. `kept_tokens` is a dict from
    a decoder layer to an index array: from this layer on these of the prompt's visual tokens are there, numbered from 0
    in raster order. `added_tokens` is a dict from the same layers to the number of merged tokens that were added. Both
    are None where a cell did not record them.

    `wide` names one of the columns, as "answer" or "score": then there is one row per question and section, and the
    column of a cell is called as `fastv@64`, by setting and budget.

    A damaged cell is left out, with a warning that names it. Raises PrunebenchError where a filter names nothing that
    is there.
    """
    cells = every = _cells(folder)
    for name, wanted in (
        ("model", model),
        ("task", task),
        ("method", method),
        ("budget", budget),
        ("limit", limit),
        ("identity", identity),
    ):
        if wanted is not None:
            cells = _only(cells, name, _several(name, wanted))
    facts = {str(row["identity"]): row for row in rows(every).to_dict("records")}
    order = {one: place for place, one in enumerate(facts)}
    cells = sorted(cells, key=lambda sealed: order[sealed.identity])
    keys = None if key is None else {str(one) for one in _several("key", key)}
    if keys is not None:
        cells = _asking(cells, keys)
    frame = pd.concat([_answers(sealed, facts[sealed.identity], keys) for sealed in cells], ignore_index=True)
    return frame if wide is None else _spread(frame, wide)


def _spread(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """One row per question and section, with a column for each setting at each budget. Raises PrunebenchError for a
    column that frames of samples lack."""
    taken = (*_CELL, *_QUESTION)
    if column not in frame or column in taken:
        raise unknown("column for the wide form", column, [str(name) for name in frame if name not in taken])
    lines = frame["setting"] + "@" + frame["budget"]
    lines = lines.where(frame["budget"] != "none", frame["setting"])
    # texts that are missing would drop their rows
    indexed = frame.assign(line=lines, **{name: frame[name].fillna("") for name in ("question", "target")})
    found = indexed.pivot(index=list(_QUESTION), columns="line", values=column)
    # pandas sorts both: back to the order of the cells and of their questions
    asked = pd.MultiIndex.from_frame(indexed[list(_QUESTION)].drop_duplicates())
    found = found.loc[asked, list(dict.fromkeys(lines))]
    found.columns.name = None
    return found.reset_index()


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

    A damaged cell is left out, with a warning that names it. What two sides differ in, and what is not compared, are
    warnings too. Raises PrunebenchError for a side that is unknown or that several settings answer to, and for sides
    that may not be compared.
    """
    folders = [folder] if isinstance(folder, str | Path) else list(folder)
    least = {1: 2, 2: 1}.get(len(folders))
    if least is None or len(sides) < least:
        raise PrunebenchError(
            f"compare: expected two sides or more of one folder, or one side or more of two folders, found {len(sides)}"
            f" of {len(folders)}"
        )
    tasks = [task] if isinstance(task, str) else list(task or ())
    read, reader = [read_folder(Path(one)) for one in folders], Reader()
    said = [f"left out: {why}" for one in read for why in one.damaged]
    try:
        found = versus(resolve(sides, read, tasks, model), reader)
        said += [f"{v.one.label} and {v.other.label}: {note}" for v in found for note in v.notes]
    finally:
        for text in dict.fromkeys([*said, *(f"left out: {why}" for why in reader.damaged)]):
            warnings.warn(text, stacklevel=2)
    return versus_text.flips_frame(found) if flips else versus_text.frame(found)


def _cells(folder: str | Path) -> list[SealedCell]:
    if not isinstance(folder, str | Path):
        raise PrunebenchError(f"folder: expected a path, found {folder!r} ({type(folder).__name__})")
    damaged: list[str] = []
    cells = Store(Path(folder)).cells(damaged)
    for why in damaged:
        warnings.warn(f"left out: {why}", stacklevel=3)
    if not cells:
        raise PrunebenchError(
            f"{folder}: expected sealed cells below cells/, found none: `prunebench eval` and `prunebench sweep` make"
            " them"
        )
    return cells


def _value(sealed: SealedCell, name: str) -> str:
    if name == "limit":
        return str(sealed.asked.limit or "default")
    return str(sealed.identity if name == "identity" else getattr(sealed.cell, name))


def _several(name: str, wanted: str | int | Sequence[str | int]) -> Sequence[str | int]:
    """The values of a filter. Raises PrunebenchError where there are none."""
    found = [wanted] if isinstance(wanted, str | int) else list(wanted)
    if not found:
        raise PrunebenchError(f"{name}: expected one value or more, found none: leave {name} out to take all")
    return found


def _only(cells: Sequence[SealedCell], name: str, wanted: Sequence[str | int]) -> list[SealedCell]:
    known = {_value(sealed, name) for sealed in cells}
    missing = [str(value) for value in wanted if str(value) not in known]
    if missing:
        raise PrunebenchError(f"no cell with {name} {missing[0]!r}; there are {', '.join(sorted(known))}")
    return [sealed for sealed in cells if _value(sealed, name) in {str(value) for value in wanted}]


def _asking(cells: Sequence[SealedCell], keys: set[str]) -> list[SealedCell]:
    """The cells that ask one of these questions. Raises PrunebenchError for a key that none of them has."""
    asked: dict[str, frozenset[str]] = {}  # by the digest of a cell's questions, which says them in their order
    for sealed in cells:
        if sealed.cell.data_fingerprint not in asked:
            asked[sealed.cell.data_fingerprint] = frozenset(sealed.columns("key")["key"])
    missing = sorted(keys.difference(*asked.values()))
    if missing:
        example = min(asked[cells[0].cell.data_fingerprint])
        raise PrunebenchError(f"no answer with key {missing[0]!r}: expected the key of a question, as {example!r}")
    return [sealed for sealed in cells if asked[sealed.cell.data_fingerprint] & keys]


def _answers(sealed: SealedCell, row: Mapping[Any, Any], keys: set[str] | None) -> pd.DataFrame:
    """The samples of a cell, those of `keys` alone if given; `row` is the cell's row of the leaderboard."""
    frame = sealed.samples()
    if keys is not None:
        frame = frame[frame["key"].isin(keys)].reset_index(drop=True)
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
        frame.insert(place, name, sealed.identity if name == "identity" else row[name])
    return frame
