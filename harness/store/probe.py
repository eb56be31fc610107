"""Read samples.parquet files from elsewhere in a process of their own, with little memory and time: run as a script.

    python -I probe.py MEMORY SECONDS    answers each line "ROWS PATH" with "ok", or with a line that says why not

A file may state that it is small and unpack to a hundred times the memory of a machine. It may also end the library
that reads it. Both end this process, and nothing else. The script imports nothing of ours: `-I` keeps the working
folder, which may be somebody else's, out of the places that modules come from.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

TEXTS = ("key", "image", "question_id", "category", "question", "target", "answer", "keeps")
COLUMNS = dict.fromkeys(TEXTS, ("string",)) | {"score": ("double",), "n_new_tokens": ("int64",)}
#: intervals resample whole images, and their time grows with the rows
MOST_ROWS = 250_000
MOST_COLUMNS = 128
MOST_GROUPS = 4096
#: bytes of all columns, unpacked
MOST_BYTES = 2**30
#: bytes of one text
LONGEST = 2**20
#: tokens of one prompt or answer
MOST_TOKENS = 10_000_000
#: visual tokens of one prompt: masks of this length are made
MOST_VISUAL = 1_000_000
MOST_LAYERS = 1000
#: of one prompt, in FLOPs or bytes: beyond it, axes of figures fail
MOST_COST = 1e21
_COST = re.compile(r"[a-z][a-z0-9_]{0,63}")
_COUNT = re.compile(r"n_\w+|\w+_tokens")
_KEEPS = re.compile(r"(?:[0-9]{1,3}:[0-9]{1,7}:(?:\*|[A-Za-z0-9+/]{1,200000}={0,2})(?:;(?!$)|$)){0,1000}")


def fault(path: Path, rows: int) -> str:
    """Why a file is not one that a store writes for this many samples; "" where it is."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    data = path.read_bytes()
    stated = pq.read_metadata(pa.BufferReader(data))
    if stated.metadata is not None:  # schemas of Arrow and pandas, which may name types that code makes
        names = ", ".join(repr(name)[:40] for name in sorted(stated.metadata)[:3])
        return f"expected no metadata beside its columns, found {names}"
    if stated.num_rows != rows or not 0 < rows <= MOST_ROWS:
        return f"expected {rows:,} rows as its cell says, and at most {MOST_ROWS:,}, found {stated.num_rows:,}"
    if stated.num_columns > MOST_COLUMNS or stated.num_row_groups > MOST_GROUPS:
        found = f"{stated.num_columns:,} and {stated.num_row_groups:,}"
        return f"expected at most {MOST_COLUMNS} columns and {MOST_GROUPS:,} row groups, found {found}"
    unpacked = sum(stated.row_group(i).total_byte_size for i in range(stated.num_row_groups))
    if not 0 <= unpacked <= MOST_BYTES:
        return f"expected at most {MOST_BYTES:,} bytes unpacked, found {unpacked:,}"
    why = _schema_fault(stated.schema.to_arrow_schema())
    if why:
        return why
    table = pq.read_table(pa.BufferReader(data), use_threads=False)
    if table.nbytes > MOST_BYTES or table.num_rows != rows:
        return f"expected {rows:,} rows and at most {MOST_BYTES:,} bytes, found {table.num_rows:,} and {table.nbytes:,}"
    table.validate(full=True)  # texts are UTF-8
    why = _values_fault(table)
    if why:
        return why
    for field in table.schema:
        column = table[field.name]
        if field.name in TEXTS and (pc.max(pc.binary_length(column)).as_py() or 0) > LONGEST:
            return f"{field.name}: expected texts of at most {LONGEST:,} bytes, found a longer one"
        most = MOST_VISUAL if field.name == "n_visual" else MOST_TOKENS
        if _COUNT.fullmatch(field.name):
            low, high = pc.min(column).as_py(), pc.max(column).as_py()
            if not 0 <= low <= high <= most:
                return f"{field.name}: expected numbers of tokens from 0 to {most:,}, found {low:,} to {high:,}"
        elif field.name not in COLUMNS:
            least = -1 if field.name.endswith("_layer") else 0  # a layer that there is none of is -1
            low, high = pc.min(column).as_py(), pc.max(column).as_py()
            if not least <= low <= high <= MOST_COST:
                return f"{field.name}: expected numbers from {least} to {MOST_COST:.0e}, found {low} to {high}"
    return ""


def unlike(data: bytes, rows: int) -> str:
    """Why the bytes of a file of one's own are no samples of this many rows, as tables compute with; "" where they
    are. Costs have any name here, and any number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(pa.BufferReader(data))
    unpacked = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
    if file.metadata.num_rows != rows or unpacked > MOST_BYTES:
        found = f"{file.metadata.num_rows:,} and {unpacked:,}"
        return f"expected {rows:,} rows and at most {MOST_BYTES:,} bytes unpacked, found {found}"
    return _kinds_fault(file.schema_arrow) or _values_fault(file.read(use_threads=False))


def _values_fault(table: Any) -> str:
    """Rows that lack a value, keys that come twice, and values that no table computes with."""
    import pyarrow.compute as pc

    for field in table.schema:
        column = table[field.name]
        if field.name not in ("category", "score") and column.null_count:
            return f"{field.name}: expected a value in every row, found none in {column.null_count:,}"
        if field.name not in COLUMNS and not pc.all(pc.is_finite(column)).as_py():
            return f"{field.name}: expected finite numbers, found another one"
    if len(table["key"].unique()) != len(table):
        return f"key: expected {len(table):,} different ones, found {len(table['key'].unique()):,}"
    for text in table["keeps"].to_pylist():
        if text and not _kept(text):
            return f"keeps: expected a record of kept tokens, found {text[:60]!r}"
    return ""


def _schema_fault(schema: Any) -> str:
    strange = [name for name in schema.names if name not in COLUMNS and not _COST.fullmatch(name)]
    if strange:
        return f"expected names of costs in small letters, digits and _, found the column {strange[0][:60]!r}"
    return _kinds_fault(schema)


def _kinds_fault(schema: Any) -> str:
    kinds = {field.name: str(field.type) for field in schema}
    if len(kinds) != len(schema):
        return "expected each column once, found one twice"
    lacking = [name for name in COLUMNS if name not in kinds]
    if lacking:
        return f"expected the column {lacking[0]!r}, found none"
    for name, kind in kinds.items():
        known = COLUMNS.get(name, ("int64", "double"))
        if kind not in known:
            return f"{name}: expected {' or '.join(known)}, found {kind[:60]}"
    return ""


def _kept(text: str) -> bool:
    """Whether a text reads as one that harness/core/keeps.py wrote: its layers rise, and there are few."""
    if not _KEEPS.fullmatch(text):
        return False
    layers = [int(part.partition(":")[0]) for part in text.split(";")]
    return layers == sorted(set(layers)) and layers[-1] < MOST_LAYERS


def bound(memory: int, seconds: int) -> None:
    """Bound what this process may take, where the system can."""
    try:
        import resource
    except ImportError:  # not on every system
        return
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
        try:
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):  # some systems bound no addresses
            continue


def main() -> None:
    """Answer the lines of stdin."""
    bound(int(sys.argv[1]), int(sys.argv[2]))
    for line in sys.stdin:
        rows, _, path = line.rstrip("\n").partition(" ")
        try:
            why = fault(Path(path), int(rows))
        except MemoryError:
            why = "it unpacks to more memory than a file of samples takes"
        except Exception as error:  # pyarrow raises classes of its own
            why = f"cannot be read as Parquet ({type(error).__name__}: {error})"
        sys.stdout.write((" ".join(why.split()) or "ok") + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
