"""Milliseconds of whole requests, from what `prunebench bench` measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from harness.core.errors import PrunebenchError
from harness.core.spelling import given

BARE = "bare model"


class TimedRequest(NamedTuple):
    """A row of bench.json: the medians of a batch in ms."""

    method: str
    budget: str
    batch: int
    vision_ms: float
    prefill_ms: float
    step_ms: float

    def ms(self, new_tokens: int, questions: int = 1) -> float:
        """Of a batch; the questions about an image share the vision tower only, for the bench shares no prefill. Each
        step takes what the bench's steps took."""
        return self.vision_ms / questions + self.prefill_ms + (new_tokens - 1) * self.step_ms


def read(file: Path, model: str, methods: Sequence[str]) -> list[TimedRequest]:
    """The bare model and `methods` at every batch size. Raises PrunebenchError for another file, another model, and for
    a method that was not timed."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        asked = str(raw["settings"]["model"])
        rows = [
            TimedRequest(
                str(row["name"]),
                str(row["budget"]),
                int(group["batch"]),
                *(float(row[name]["median"]) for name in ("vision_ms", "prefill_ms", "decode_ms_per_token")),
            )
            for group in raw["batches"]
            for row in group["rows"]
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PrunebenchError(
            f"{given('times', file)}: expected the bench.json of `prunebench bench`, found {type(error).__name__}:"
            f" {error}"
        ) from None
    if asked != model:
        raise PrunebenchError(f"{given('times', file)}: expected times of {model}, found those of {asked}")
    lacking = [name for name in methods if name not in {row.method for row in rows}]
    if lacking:
        raise PrunebenchError(f"{given('times', file)}: expected times of {', '.join(lacking)}, found none: bench them")
    return [row for row in rows if row.method in (BARE, *methods)]


def lines(timed: Sequence[TimedRequest], outputs: Sequence[int], questions: Sequence[int]) -> Iterator[list[str]]:
    """Method, budget, batch, questions, then ms and % of the bare model for each output length."""
    bare = {row.batch: row for row in timed if row.method == BARE}
    for row, q in product(timed, questions):
        whole = bare[row.batch]
        shown = [f"{row.ms(n, q):,.4g} ({100 * row.ms(n, q) / whole.ms(n, q):.1f})" for n in outputs]
        yield [row.method, row.budget or "-", str(row.batch), str(q), *shown]
