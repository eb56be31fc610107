"""Our entry in lmms-eval's per-sample log (`--log_samples`): what one answer cost, and what it was made with.

lmms-eval writes the token counts of every answer into the log, as their class spells them. Ours spells out more: every
cost column of a cell, the kept tokens, and the digest of the settings. The first answer of a task on every rank also
carries the open description of the run, because no other place of the log is ours. A sum covers each entry together
with its answer, so that an edited line is found. No torch here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from harness.core.cell import canonical_json
from harness.core.errors import PrunebenchError
from harness.store.journal import Record, number

#: of the entry's layout
VERSION = 1
#: what an entry holds beside the costs
FIELDS = (
    *("prunebench", "task", "doc_id", "sample", "settings", "asked", "until", "max_new_tokens"),
    *("grids", "keeps", "wall_s"),
)
UPSTREAM = ("input_tokens", "output_tokens", "reasoning_tokens")
RUN, SUM = "run", "sum"


def digest(*values: Any) -> str:
    """16 hex of SHA-256 over JSON values."""
    return hashlib.sha256(canonical_json(list(values)).encode("ascii")).hexdigest()[:16]


def asked(content: Sequence[str | None], images: Sequence[str]) -> str:
    """Names a user's turn: its texts in order, None for the next image, and the digests of the images' pixels."""
    return digest(list(content), list(images))


def pixels(mode: str, size: tuple[int, int], data: bytes) -> str:
    """Names a decoded image: 16 hex over mode, (width, height) and pixels."""
    parts = (mode.encode(), str(tuple(size)).encode(), data)
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.hexdigest()[:16]


def entry(
    record: Record,
    *,
    task: str,
    doc_id: int,
    settings: str,
    asked: str,
    until: Sequence[str],
    max_new_tokens: int,
    n_input_tokens: int,
    grids: Sequence[str],
    run: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The entry of an answer, as JSON values. `record.image` says nothing here. `grids`: of each image's tokens as
    harness/core/grids.py spells them. `run`: what `Opened.run` gives.

    Raises PrunebenchError for a cost that is no number or has the name of another field.
    """
    costs = {name: number(value) if hasattr(value, "item") else value for name, value in record.cost.items()}
    values = {
        "prunebench": VERSION,
        "task": task,
        "doc_id": doc_id,
        "sample": record.key,
        "settings": settings,
        "asked": asked,
        "until": list(until),
        "max_new_tokens": max_new_tokens,
        "keeps": record.kept,
        "wall_s": record.wall_s,
        "grids": list(grids),
        **({RUN: dict(run)} if run is not None else {}),
    }
    counts = {"input_tokens": n_input_tokens, "output_tokens": record.n_new_tokens}
    taken = {*values, *counts, RUN, SUM, *UPSTREAM} & set(costs)
    if taken:
        raise PrunebenchError(f"{record.key}: expected costs of other names, found {', '.join(sorted(taken))}")
    whole = {**counts, **costs, **values}
    record.line()  # refuses what no journal could hold
    return {**whole, SUM: _sum(whole, record.answer)}


def _sum(values: Mapping[str, Any], answer: str) -> str:
    try:
        return digest(answer, dict(values))
    except (TypeError, ValueError) as error:
        raise PrunebenchError(f"{values.get('sample')}: its entry cannot be written to the log: {error}") from None


def whole(found: Mapping[str, Any], answer: str) -> bool:
    """Whether an entry and its answer are as they were written."""
    values = {name: value for name, value in found.items() if name != SUM}
    try:
        return found.get(SUM) == digest(answer, values)
    except (TypeError, ValueError):
        return False


def costs_of(found: Mapping[str, Any]) -> dict[str, float]:
    """The cost columns of an entry."""
    others = {*FIELDS, *UPSTREAM, RUN, SUM}
    return {name: value for name, value in found.items() if name not in others}
