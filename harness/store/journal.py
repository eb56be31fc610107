"""The journal of a cell: one fsync'd line per answered sample."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.core.errors import PrunebenchError
from harness.core.spelling import given

JOURNAL = "journal.jsonl"
_RECORD = {"key": str, "image": str, "answer": str, "n_new_tokens": int, "cost": dict, "wall_s": float, "kept": str}


@dataclass(frozen=True)
class Record:
    """One answered sample, as the journal holds it."""

    key: str
    """Sample within its task: "pope/000123"."""
    image: str
    """Image key: rows with the same one are resampled together."""
    answer: str
    n_new_tokens: int
    cost: Mapping[str, float]
    """Flat names with their unit (`prefill_dense_flops`, `kv_bytes`); every record of a cell has the same names."""
    wall_s: float
    """Seconds this sample took. Informative: it identifies nothing and is not in the samples."""
    kept: str = ""
    """Which visual tokens were present from which layer on, as harness.core.keeps writes it; the column `keeps` of the
    samples."""

    def line(self) -> bytes:
        """The journal line, ASCII, newline last. Raises PrunebenchError for a value that JSON cannot hold (NaN,
        objects)."""
        try:
            text = json.dumps(asdict(self), allow_nan=False, default=number)
            self.parse(text)
        except (TypeError, ValueError) as error:
            raise PrunebenchError(f"sample {self.key!r} cannot be written to the journal: {error}") from None
        return text.encode("ascii") + b"\n"

    @classmethod
    def parse(cls, text: str | bytes) -> Record:
        """The record of a journal line; ValueError says what is wrong with it."""
        raw = json.loads(text)
        if not isinstance(raw, dict) or set(raw) != set(_RECORD):
            raise ValueError(f"expected the fields {', '.join(_RECORD)}")
        for name, kind in _RECORD.items():
            if not isinstance(raw[name], (int, float) if kind is float else kind) or isinstance(raw[name], bool):
                raise ValueError(f"field {name!r}: expected {kind.__name__}, found {raw[name]!r}")
        for name, value in raw["cost"].items():
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ValueError(f"cost {name!r}: expected a number, found {value!r}")
        return cls(**raw)


def read_journal(path: Path, expected: frozenset[str] | None = None) -> tuple[dict[str, Record], int]:
    """The journal's records and the bytes that hold them: what follows the last newline was torn by a crash.

    Raises PrunebenchError naming the line that is no record, or not of a sample in `expected`; OSError.
    """
    data = path.read_bytes()
    size = data.rfind(b"\n") + 1
    done: dict[str, Record] = {}
    for number, line in enumerate(data[:size].split(b"\n")[:-1], start=1):
        try:
            record = Record.parse(line)
        except ValueError as error:
            raise PrunebenchError(
                f"{path}, line {number}: expected one JSON record per line, found {line[:80]!r} ({error});"
                f" delete that line to ask its sample again, or run with {given('fresh', True)}"
            ) from None
        if expected is not None and record.key not in expected:
            raise PrunebenchError(
                f"{path}, line {number}: sample {record.key!r} is not one of the {len(expected)} expected;"
                f" the journal belongs to other data: run with {given('fresh', True)}"
            )
        done.setdefault(record.key, record)
    return done, size


def number(value: Any) -> Any:
    """NumPy and tensor scalars as Python numbers; anything else JSON refuses."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a JSON value")
