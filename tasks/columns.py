"""Columns of a task's tables: each has a kind, and every row is held to it before anything is asked.

Parquet files say the same thing in several types: string, large_string and dictionary are all text. Types are read by
meaning, so files of one table may differ in them. Values are then checked one by one, and the first wrong one is named
by row and column. Nothing here decodes an image or knows a task.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.core.errors import PrunebenchError

if TYPE_CHECKING:
    import pyarrow as pa

#: lmms-eval's TextVQA scores an answer by how many of the other annotators gave it; three make it fully right
FEWEST_ANSWERS = 4
#: how much of a strange value a message shows
SHOWN = 60


class Kind(StrEnum):
    """One meaning of a column; the value says what is expected in a row."""

    NAME = "a text or a whole number"
    TEXT = "a text that is not blank"
    YES_NO = "yes or no"
    SUBSET = "adversarial, popular or random"
    ANSWERS = f"a list of at least {FEWEST_ANSWERS} texts, one an annotator"
    WORDS = "a list of texts"
    SEMANTIC = "a struct with a text `semantic`"
    IMAGE = "an Image feature, that is a struct of bytes and path"


#: kinds that a table may lack
OPTIONAL = frozenset({Kind.SEMANTIC})


class Part(NamedTuple):
    """Some rows of a table and where they were read: a file, or a repository on the hub."""

    where: str
    table: pa.Table


class Naming(NamedTuple):
    """Words of a message about a table of a task."""

    task: str
    key: str
    """Column whose value names a row."""
    asked: bool
    """Whether each row is a question, so that its sample has a key."""
    mend: str

    def row(self, where: str, row: int, index: int, name: object) -> str:
        """`row` counts within the file, `index` over all files."""
        known = [f"{self.task}/{index:06d}"] if self.asked else []
        known += [f"{self.key} {shown(name)}"] if isinstance(name, str | int) else []
        return f"task {self.task}: row {row} of {where}" + (f" ({', '.join(known)})" if known else "")

    def value(self, at: str, column: str, expected: str, found: str) -> PrunebenchError:
        return PrunebenchError(f"{at}, column {column}: expected {expected}, found {found}; {self.mend}")


def shown(value: object) -> str:
    """A value as a message shows it: short, on one line, null by its name."""
    if value is None:
        return "null"
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


# ---------------------------------------------------------------------------------------------------------------- files

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.parquet")


def check_whole(task: str, paths: Sequence[Path], mend: str) -> None:
    """Raise PrunebenchError where file names that count themselves (`-00001-of-00003`) are not one whole set: a part of
    a data set, or two versions of it together, would give another score without a word."""
    counted = {path: (int(m[1]), int(m[2])) for path in paths if (m := _SHARD.search(path.name))}
    if not counted:
        return
    folder, totals = paths[0].parent, sorted({total for _, total in counted.values()})
    if len(totals) > 1 or len(counted) != len(paths):
        raise PrunebenchError(
            f"task {task}: {folder} holds files of more than one set, {_few(p.name for p in paths)}: expected one set;"
            f" move the others away, or {mend}"
        )
    absent = sorted(set(range(totals[0])) - {index for index, _ in counted.values()})
    if absent:
        raise PrunebenchError(
            f"task {task}: {folder} holds {len(counted)} of {totals[0]} files, number {absent[0]:05d} is missing:"
            f" expected all; {mend}, or rename the files where a part is wanted"
        )


def _few(names: Iterable[str], most: int = 4) -> str:
    listed = [" ".join(name.split()) for name in names]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def check_names(where: str, columns: Mapping[str, Kind], found: Sequence[str], naming: Naming) -> None:
    """Raise PrunebenchError where a column is missing, or there twice."""
    required = [column for column, kind in columns.items() if kind not in OPTIONAL]
    lacking = [column for column in required if column not in found]
    if lacking:
        raise PrunebenchError(
            f"task {naming.task}: {where} lacks the column(s) {', '.join(lacking)}: expected {', '.join(required)},"
            f" found {_few(found, 12)}; {naming.mend}"
        )
    twice = [column for column in columns if found.count(column) > 1]
    if twice:
        raise PrunebenchError(
            f"task {naming.task}: {where} has {found.count(twice[0])} columns {twice[0]}: expected one; {naming.mend}"
        )


def read_file(task: str, path: Path, columns: Mapping[str, Kind], naming: Naming) -> Part:
    """Those columns of a parquet file; raises PrunebenchError for whatever is not one, without waiting on it."""
    import pyarrow.parquet as pq

    def unreadable(found: str, size: str = "") -> PrunebenchError:
        return PrunebenchError(f"task {task}: {path}{size} cannot be read as parquet: {found}; {naming.mend}")

    try:
        status = path.stat()
    except OSError as error:  # a link to nothing, or to itself
        link = f" (a link to {os.readlink(path)})" if path.is_symlink() else ""
        raise unreadable(f"{error.strerror}{link}") from None
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise unreadable(f"expected a file, found {kind}")
    try:
        # not read_table: it takes folder names like `split=test` for columns; opened here for names that are no UTF-8
        with path.open("rb") as stream, pq.ParquetFile(stream) as file:
            names = file.schema_arrow.names
            check_names(str(path), columns, names, naming)
            table = file.read(columns=[c for c in columns if c in names])
    except PrunebenchError:
        raise
    except Exception as error:  # damage ends in many classes: ArrowException, OSError, ValueError, MemoryError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise unreadable(reason, f" ({status.st_size} bytes)") from None
    return Part(str(path), table)


# ---------------------------------------------------------------------------------------------------------------- types


def _decoded(kind: pa.DataType) -> pa.DataType:
    import pyarrow.types as types

    return kind.value_type if types.is_dictionary(kind) else kind


def meaning(kind: pa.DataType) -> str:
    """The type by its meaning: equal for types that differ only in how values are stored."""
    import pyarrow.types as types

    kind = _decoded(kind)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "text"
    if types.is_integer(kind):
        return "whole number"
    if _is_list(kind):
        return f"list of {meaning(kind.value_type)}"
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return "bytes"
    if types.is_fixed_size_binary(kind):
        return "bytes"
    if types.is_struct(kind):
        return "struct"
    return str(kind)


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    return bool(
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
    )


def _fits(kind: Kind, found: pa.DataType) -> bool:
    said = meaning(found)
    match kind:
        case Kind.NAME:
            return said in ("text", "whole number")
        case Kind.TEXT | Kind.YES_NO | Kind.SUBSET:
            return said == "text"
        case Kind.ANSWERS | Kind.WORDS:
            return said in ("list of text", "list of null")
        case Kind.SEMANTIC:
            return said == "null" or (
                said == "struct" and meaning(_fields(found).get("semantic", found)) in ("text", "null")
            )
        case Kind.IMAGE:
            fields = _fields(found) if said == "struct" else {}
            return {"bytes", "path"} <= set(fields) and meaning(fields["bytes"]) in ("bytes", "null")


def _fields(kind: pa.DataType) -> dict[str, pa.DataType]:
    return {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}


def _alike(a: pa.DataType, b: pa.DataType) -> bool:
    """Whether two files say the same with these types; lists without an entry in any row are like all lists."""
    return meaning(a) == meaning(b) or ("list of null" in (meaning(a), meaning(b)) and _is_list(a) and _is_list(b))


def check_types(parts: Sequence[Part], columns: Mapping[str, Kind], naming: Naming) -> None:
    """Raise PrunebenchError where a column has another meaning in another file, or one that its kind does not allow."""
    for column, kind in columns.items():
        held = [(p.where, p.table.schema.field(column).type) for p in parts if column in p.table.column_names]
        # a file without a value in the column has it as null; its rows are named later
        held = [(where, found) for where, found in held if meaning(found) != "null"]
        for where, found in held[1:]:
            if not _alike(found, held[0][1]):
                raise PrunebenchError(
                    f"task {naming.task}: column {column} is {held[0][1]} in {held[0][0]} and {found} in {where}:"
                    f" expected the same in every file; {naming.mend}"
                )
        for where, found in held:
            if not _fits(kind, found):
                raise PrunebenchError(
                    f"task {naming.task}: column {column} of {where} is {found}: expected {kind.value} in every"
                    f" row; {naming.mend}"
                )


# ----------------------------------------------------------------------------------------------------------------- rows


class NotText(NamedTuple):
    """Bytes in a column of text that are no UTF-8."""

    reason: str

    def __repr__(self) -> str:
        return f"bytes that are not UTF-8 ({self.reason})"


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Python values; a text that is none is a `NotText`."""
    try:
        values: list[Any] = column.to_pylist()
        return values
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return NotText(f"{error.reason} at byte {error.start}")


def _speaks(value: object) -> bool:
    """Whether it is a text with something to see in it."""
    return isinstance(value, str) and any(c.isprintable() and not c.isspace() for c in value)


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


#: whether a value is one of its kind
_HOLDS: Mapping[Kind, Callable[[Any], bool]] = {
    Kind.NAME: lambda v: _speaks(v) or isinstance(v, int),
    Kind.TEXT: _speaks,
    Kind.YES_NO: lambda v: isinstance(v, str) and v.strip().lower() in ("yes", "no"),
    Kind.SUBSET: lambda v: v in ("adversarial", "popular", "random"),
    Kind.ANSWERS: lambda v: _texts(v) and len(v) >= FEWEST_ANSWERS and any(map(_speaks, v)),
    Kind.WORDS: _texts,
    Kind.SEMANTIC: lambda v: v is None or (isinstance(v, dict) and isinstance(v["semantic"], str | None)),
}


def texts(parts: Sequence[Part], columns: Mapping[str, Kind], naming: Naming) -> dict[str, list[Any]]:
    """Column -> its values in the order of the parts, names as text; raises PrunebenchError at the first wrong one."""
    out: dict[str, list[Any]] = {
        c: [] for c in columns if any(c in part.table.column_names for part in parts) and columns[c] is not Kind.IMAGE
    }
    index = 0
    for part in parts:
        n = len(part.table)
        found = {c: _values(part.table[c]) if c in part.table.column_names else [None] * n for c in out}
        for column, values in found.items():
            for row, value in enumerate(values):
                if not _HOLDS[columns[column]](value):
                    at = naming.row(part.where, row, index + row, found.get(naming.key, [None] * n)[row])
                    raise naming.value(at, column, columns[column].value, shown(value))
            out[column] += [str(v) for v in values] if columns[column] is Kind.NAME else values
        index += n
    return out


def images(parts: Sequence[Part]) -> pa.Table:
    """The column `image` of the parts as struct<bytes: binary, path: string>, without paths: nothing reads them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    chunks = []
    for part in parts:
        column = part.table["image"]
        none = pa.chunked_array([pa.nulls(len(column), pa.binary())])
        encoded = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else none
        for chunk in encoded.cast(pa.binary()).chunks:
            chunks.append(pa.StructArray.from_arrays([chunk, pa.nulls(len(chunk), pa.string())], ["bytes", "path"]))
    return pa.table({"image": pa.chunked_array(chunks)})


def table(values: Mapping[str, list[Any]], columns: Mapping[str, Kind]) -> pa.Table:
    """What `texts` gave as an Arrow table, with one type for each kind."""
    import pyarrow as pa

    one, many = pa.string(), pa.list_(pa.string())
    kinds = {Kind.ANSWERS: many, Kind.WORDS: many, Kind.SEMANTIC: pa.struct([("semantic", one)])}
    return pa.table({c: pa.array(listed, kinds.get(columns[c], one)) for c, listed in values.items()})


def places(parts: Sequence[Part]) -> Iterator[tuple[str, int]]:
    """(where, row there) of every row of the parts."""
    for part in parts:
        yield from ((part.where, row) for row in range(len(part.table)))


def check_once(parts: Sequence[Part], values: Mapping[str, list[Any]], once: Sequence[str], naming: Naming) -> None:
    """Raise PrunebenchError where two rows have the same values in the columns `once`: a file that lies there twice
    would count double."""
    seen: dict[tuple[Any, ...], int] = {}
    for index, named in enumerate(zip(*(values[c] for c in once), strict=True)):
        if named in seen:
            where = list(places(parts))
            (first, row), (again, other) = where[seen[named]], where[index]
            raise PrunebenchError(
                f"{naming.row(first, row, seen[named], named[-1])} and row {other} of {again} have the same"
                f" {' and '.join(once)}, {', '.join(map(shown, named))}: expected every row once; {naming.mend}"
            )
        seen[named] = index


def check_pairs(parts: Sequence[Part], values: Mapping[str, list[Any]], of: Sequence[str], naming: Naming) -> None:
    """Raise PrunebenchError unless every value of the columns `of` is that of exactly two rows: upstream asserts it
    after all inference."""
    rows: dict[tuple[Any, ...], list[int]] = {}
    for index, named in enumerate(zip(*(values[c] for c in of), strict=True)):
        rows.setdefault(named, []).append(index)
    for (category, name), found in rows.items():
        if len(found) != 2:
            where, row = list(places(parts))[found[0]]
            raise PrunebenchError(
                f"{naming.row(where, row, found[0], name)}: {naming.key} {shown(name)} ({category}) has {len(found)}"
                f" row(s): expected a pair; {naming.mend}"
            )
