"""Data to derive knobs on: like a task's test data, and proven disjoint from it.

For the mini world these are fresh scenes: same generators and columns, seeds that neither training (below
`world.TEST_SEED_BASE`) nor the shipped data draw. For other models it is a folder laid out as a copy of the test data,
or the hub's own split for training or validation, where a task has one, fetched into such a folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.core.errors import PrunebenchError
from tasks import sources as src
from tasks.mini import data as mini_data

#: seeds of `tasks.mini.data.build`, far above what anyone gives as SEED; every calibration seed is one above, and all
#: of the mini Qwen's lie below its data's
MINI_SEED = 1 << 16
QWEN_SEED = 1 << 20
#: calibration seeds that do not reach into another's
SEEDS = 1 << 16
#: the split of a hub data set that plays the test split's part; GQA's images stand in a table of their own
HUB_SPLITS: Mapping[str, tuple[src.Table, src.Table | None]] = {
    "gqa": (
        dataclasses.replace(src.TASKS["gqa"].table, folder="val_balanced_instructions", split="val"),
        dataclasses.replace(src.GQA_IMAGES, folder="val_balanced_images", split="val"),
    ),
    "textvqa": (dataclasses.replace(src.TASKS["textvqa"].table, split="train"), None),
    "textvqa_ocr": (dataclasses.replace(src.TASKS["textvqa_ocr"].table, split="train"), None),
}


def mini(folder: Path, questions: int, seed: int = 0, like: str = src.MINI) -> src.DataSource:
    """Fresh scenes with at least `questions` questions per task in `folder`, as a data source.

    `like`: the data of which embedded model they are like. Raises PrunebenchError for a seed that is not in [0, 65536).
    """
    if not 0 <= seed < SEEDS:
        raise PrunebenchError(f"seed {seed} of calibration scenes: expected 0 to {SEEDS - 1}")
    per_image = {"GQA": mini_data.GQA_PER_IMAGE, "MME": 2, "POPE": 3 * mini_data.POPE_PER_CATEGORY, "textvqa": 2}
    images = {name: -(-questions // n) for name, n in per_image.items()}
    first, kind = (MINI_SEED, mini_data.SQUARE) if like == src.MINI else (QWEN_SEED, mini_data.RAGGED)
    mini_data.build(folder, first + seed, images, kind)
    return src.DataSource("calibration", folder)


def hub(folder: Path, tasks: Sequence[str], questions: int) -> src.DataSource:
    """`questions` questions per task from the hub's train or val split, written to `folder` in the layout of the test
    data.

    Raises PrunebenchError for a task without such a split, and where the hub is out of reach.
    """
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    def rows(spec: src.TaskSpec, table: src.Table) -> Iterable[dict[str, Any]]:
        name = None if table.folder == "data" else table.folder
        try:
            stream = datasets.load_dataset(spec.hub_id, name, split=table.split, token=None, streaming=True)
            if "image" in table.columns:
                stream = stream.cast_column("image", datasets.Image(decode=False))
            yield from stream.select_columns(table.required)
        except Exception as error:
            raise src.hub_error(spec, table, error, "give a folder as --calibration-data") from None

    def write(spec: src.TaskSpec, table: src.Table, found: list[dict[str, Any]]) -> None:
        path = folder / spec.dataset / table.folder / f"{table.split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(found), path)

    for task in tasks:
        spec = src.task_spec(task)
        if task not in HUB_SPLITS:
            raise PrunebenchError(
                f"task {task}: the hub has a test split only, nothing to calibrate on: choose of"
                f" {', '.join(HUB_SPLITS)}, or give a folder"
            )
        table, images = HUB_SPLITS[task]
        if images is None:
            write(spec, spec.table, _first(rows(spec, table), questions, spec.group))
            continue
        assert spec.images is not None
        # the image table comes first: its order decides, so that it is read no further than needed
        wanted: dict[str, dict[str, Any]] = {}
        for row in rows(spec, images):
            wanted[row["id"]] = row
            if len(wanted) * 4 >= questions:
                break
        asked = _first((r for r in rows(spec, table) if r["imageId"] in wanted), questions, spec.group)
        write(spec, spec.table, asked)
        write(spec, spec.images, [wanted[key] for key in dict.fromkeys(r["imageId"] for r in asked)])
    return src.DataSource("calibration", folder)


def _first(rows: Iterable[dict[str, Any]], questions: int, group: str) -> list[dict[str, Any]]:
    """The first rows up to the end of the image with which `questions` is reached."""
    found: list[dict[str, Any]] = []
    for row in rows:
        if len(found) >= questions and row[group] != found[-1][group]:
            break
        found.append(row)
    return found


def check_disjoint(tasks: Sequence[str], calibration: src.DataSource, test: src.DataSource) -> int:
    """Raise PrunebenchError where an image of the calibration data is one of the test data, by content or by name; ->
    test images compared.

    Content is the SHA-256 of the encoded image, over all of these tasks; names are compared within a task.
    """
    seen: dict[bytes, str] = {}
    for task in tasks:
        digests, names = _images(task, test)
        for digest in digests:
            seen[digest] = task
        _, ours = _images(task, calibration)
        shared = sorted(names & ours)
        # the mini world's and MME's own names count from zero in every build
        if shared and task != "mme":
            raise PrunebenchError(
                f"task {task}: {len(shared)} image(s) of the calibration data carry a name of the test data, the first"
                f" {shared[0]!r}: knobs must not be derived on test images; give another split or folder"
            )
    for task in tasks:
        for digest in _images(task, calibration)[0]:
            if digest in seen:
                raise PrunebenchError(
                    f"task {task}: an image of the calibration data (sha256 {digest.hex()[:16]}) is one of"
                    f" {seen[digest]}'s test images: knobs must not be derived on test images; give another split or"
                    " folder"
                )
    return len(seen)


def _images(task: str, source: src.DataSource) -> tuple[set[bytes], set[str]]:
    """SHA-256 of the encoded images that the task's rows use, and the names its rows give them."""
    spec = src.task_spec(task)
    rows = src.read(spec, source)
    digests = set()
    for where in sorted(set(rows.image_index)):
        encoded = rows.images[where]["image"]
        if not encoded or not isinstance(encoded["bytes"], bytes):
            raise PrunebenchError(
                f"task {task}: expected an encoded image in row {where} of {source}, found none: it cannot be compared"
            )
        digests.add(hashlib.sha256(encoded["bytes"]).digest())
    return digests, {str(name) for name in rows.docs[spec.group]}
