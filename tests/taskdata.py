"""Small data sets of every task as parquet files, to be damaged: a folder that `DataSource` reads."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tasks.sources import TASKS, DataSource

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


GREY = encoded(Image.new("RGB", (336, 336), "gray"))


def rows(task: str, n: int = 6, image: bytes = GREY) -> pa.Table:
    """`n` sound rows of the questions of a task; MME's come in pairs."""
    text, index = [f"r{i}" for i in range(n)], range(n)
    images = pa.array([{"bytes": image, "path": "a.png"}] * n, IMAGE)
    questions = [f"Is there star {i} in the image?" for i in index]
    yes_no = [("yes", "no")[i % 2] for i in index]
    columns: dict[str, Any] = {
        "gqa": {"id": text, "imageId": ["i"] * n, "question": questions, "answer": ["red"] * n},
        "mme": {
            "question_id": [f"existence/{i // 2}" for i in index],
            "image": images,
            "question": questions,
            "answer": yes_no,
            "category": ["existence"] * n,
        },
        "pope": {
            "question_id": text,
            "image_source": [f"i{i}" for i in index],
            "image": images,
            "question": questions,
            "answer": yes_no,
            "category": [("random", "popular", "adversarial")[i % 3] for i in index],
        },
        "textvqa": {
            "question_id": pa.array(index, pa.int32()),
            "image_id": [f"i{i}" for i in index],
            "image": images,
            "question": questions,
            "answers": [["stop"] * 10] * n,
            "ocr_tokens": [["stop"], []] * (n // 2),
        },
    }[task]
    return pa.table(columns)


def changed(table: pa.Table, column: str, values: Any) -> pa.Table:
    """The table with another column in that one's place."""
    return table.set_column(table.schema.get_field_index(column), column, values)


def with_value(table: pa.Table, row: int, column: str, value: Any) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = value
    return changed(table, column, pa.array(values, table.schema.field(column).type))


def not_utf8(table: pa.Table, column: str, row: int, value: bytes = b"\xff\xfe") -> pa.Table:
    """The table with bytes that are no text in one row of a column of text."""
    data = [text.encode() for text in table[column].to_pylist()]
    data[row] = value
    return changed(table, column, pa.Array.from_buffers(pa.string(), len(data), pa.array(data, pa.binary()).buffers()))


def path_of(folder: Path, task: str, shard: str = "-00000-of-00001") -> Path:
    spec = TASKS[task]
    path = folder / spec.dataset / spec.table.folder / f"{spec.table.split}{shard}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write(folder: Path, task: str, shards: Sequence[pa.Table], images: pa.Table | None = None) -> DataSource:
    """These shards of a task's questions, with GQA's table of images beside them."""
    for i, table in enumerate(shards):
        pq.write_table(table, path_of(folder, task, f"-{i:05d}-of-{len(shards):05d}"))
    spec = TASKS[task]
    if spec.images is not None:
        path = folder / spec.dataset / spec.images.folder / f"{spec.images.split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            images or pa.table({"id": ["i"], "image": pa.array([{"bytes": GREY, "path": "a"}], IMAGE)}), path
        )
    return DataSource("local", folder)


Change = Callable[[pa.Table], pa.Table]
#: task -> its columns that a person fills in, with their kinds
COLUMNS: Mapping[str, Mapping[str, str]] = {
    name: TASKS[name].table.columns for name in ("gqa", "mme", "pope", "textvqa")
}
