"""The journal of a cell: one fsync'd line per answered sample, each with a checksum and the environment it was made in.

    {"journal": 2, "by": "<digest>", "environment": {...}, "sum": "..."}          the first line, for people
    {"key": "pope/000123", ..., "by": "<digest of the environment>", "sum": "..."}

The sum is over the bytes before it, so that a line with one bit changed is no line. The first line only says in words
what the digests stand for: without it every answer is still known to be of this environment or of another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from harness.core.cell import canonical_json
from harness.core.errors import PrunebenchError
from harness.core.spelling import given
from harness.store.files import few

JOURNAL = "journal.jsonl"
_VERSION = 2
_RECORD = {"key": str, "image": str, "answer": str, "n_new_tokens": int, "cost": dict, "wall_s": float, "kept": str}
_SUM = b', "sum": "'
#: numbers of a record are below this: a column of samples.parquet holds 64 bits
_MOST = 2.0**62


def digest_of(environment: Mapping[str, str]) -> str:
    """Names an environment on every line."""
    return hashlib.sha256(canonical_json(environment).encode("ascii")).hexdigest()[:12]


NOWHERE = digest_of({})


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

    def line(self, by: str = NOWHERE) -> bytes:
        """The journal line, ASCII, newline last. Raises PrunebenchError for a value that JSON cannot hold (NaN,
        objects)."""
        try:
            line = _signed({**asdict(self), "by": by})
            self.parse(_content(line[:-1]))
        except (TypeError, ValueError) as error:
            raise PrunebenchError(f"sample {self.key!r} cannot be written to the journal: {error}") from None
        return line

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Record:
        """The record of a journal line's content; ValueError says what is wrong with it."""
        fields = {name: value for name, value in raw.items() if name != "by"}
        if set(fields) != set(_RECORD):
            raise ValueError(f"expected the fields {', '.join(_RECORD)}")
        for name, kind in _RECORD.items():
            value = fields[name]
            if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
                raise ValueError(f"field {name!r}: expected {kind.__name__}, found {value!r}")
            if isinstance(value, str):
                value.encode()  # a lone surrogate is a ValueError: no table could hold it
        numbers = {**fields["cost"], "n_new_tokens": fields["n_new_tokens"], "wall_s": fields["wall_s"]}
        for name, value in numbers.items():
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ValueError(f"cost {name!r}: expected a number, found {value!r}")
            if not abs(value) < _MOST:  # neither does NaN
                raise ValueError(f"{name!r}: expected a number below 2^62, found {str(value)[:40]}")
        return cls(**fields)


class Read(NamedTuple):
    """What a journal holds."""

    done: dict[str, Record]
    """Answers of this environment, by key."""
    size: int
    """Bytes up to the last newline: what follows was torn by a crash."""
    keep: bytes | None
    """What the journal should hold instead of those bytes; None where it is as it should be."""
    damaged: tuple[int, ...]
    """Numbers of the lines that are not as they were written, from 1."""
    notes: tuple[str, ...]
    """Which answers are left out, and why; first of the damaged lines, if there are any."""


def header(environment: Mapping[str, str]) -> bytes:
    """The first line."""
    return _signed({"journal": _VERSION, "by": digest_of(environment), "environment": dict(environment)})


def read_journal(
    path: Path, environment: Mapping[str, str] | None = None, expected: frozenset[str] | None = None
) -> Read:
    """The answers that can be continued in `environment`; None: all whole ones.

    A damaged line, an answer of another environment and a journal of an earlier prunebench are left out with a note.
    Raises PrunebenchError naming the line whose sample is not in `expected`; OSError.
    """
    if not path.is_file():  # a pipe would never end
        raise PrunebenchError(f"{path}: expected a file, found something else: delete it")
    data = path.read_bytes()
    size = data.rfind(b"\n") + 1
    mine = None if environment is None else digest_of(environment)
    done: dict[str, Record] = {}
    keep: list[bytes] = []
    damaged: list[int] = []
    others: dict[str, int] = {}
    said: dict[str, Mapping[str, Any]] = {}  # digest -> environment
    old = 0
    for number, line in enumerate(data[:size].split(b"\n")[:-1], start=1):
        try:
            content = _content(line)
            if "journal" in content:
                said[str(content.get("by"))] = content["environment"]
                continue
            record = Record.parse(content)
        except (ValueError, KeyError, RecursionError):
            if _is_old(line):
                old += 1
            else:
                damaged.append(number)
            continue
        if mine is not None and content["by"] != mine:
            others[content["by"]] = others.get(content["by"], 0) + 1
            continue
        if expected is not None and record.key not in expected:
            raise PrunebenchError(
                f"{path}, line {number}: sample {record.key!r} is not one of the {len(expected)} expected;"
                f" the journal belongs to other data: run with {given('fresh', True)}"
            )
        if record.key not in done:
            keep.append(line + b"\n")
        done.setdefault(record.key, record)
    notes = []
    if damaged:
        notes.append(
            f"{path}, line {few([str(n) for n in damaged])}: damaged, so its sample is asked again; the other"
            f" {len(done)} answers are kept"
        )
    if old:
        notes.append(
            f"{path}: {old} answers of an earlier prunebench, which wrote no checksums, are discarded and asked again"
        )
    for by, n in others.items():
        notes.append(f"{path}: {n} answers are discarded and asked again: {_changed(said.get(by), environment or {})}")
    as_it_should = not notes and (size == 0 or mine in said or mine is None)
    return Read(
        done, size, None if as_it_should else header(environment or {}) + b"".join(keep), tuple(damaged), tuple(notes)
    )


def _signed(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, allow_nan=False, default=number).encode("ascii")[:-1]
    return text + _SUM + hashlib.sha256(text).hexdigest()[:16].encode() + b'"}\n'


def _content(line: bytes) -> dict[str, Any]:
    """What a line says; ValueError where its bytes are not those that were written."""
    text, _, _ = line.rpartition(_SUM)
    if line != text + _SUM + hashlib.sha256(text).hexdigest()[:16].encode() + b'"}':
        raise ValueError("its checksum is another")
    found = json.loads(text + b"}")
    if not isinstance(found, dict) or not isinstance(found.get("by"), str):
        raise ValueError("expected a JSON object that names its environment")
    return found


def _is_old(line: bytes) -> bool:
    """Whether an earlier prunebench wrote this line: the fields of a record and nothing else."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and set(found) == set(_RECORD)


def _changed(before: Mapping[str, Any] | None, now: Mapping[str, str]) -> str:
    """What tells two environments apart, for people."""
    if before is None:
        return "they were made in another environment, whose description is damaged"
    other = [
        f"{name} {before.get(name, 'none')} (now {now.get(name, 'none')})"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    return f"they were made with {', '.join(other)}"


def number(value: Any) -> Any:
    """NumPy and tensor scalars as Python numbers; anything else JSON refuses."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a JSON value")
