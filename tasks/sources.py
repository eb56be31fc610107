"""Which tasks there are and where their rows come from: the shipped mini data, the hub, or a local folder of copies.

Rows are read and checked here, before lmms-eval sees them: its own loader repeats every failure five times and then
reports a RetryError without the cause. Images stay encoded (`Image(decode=False)`); nothing here imports lmms-eval or
torch.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.errors import PrunebenchError, unknown
from tasks.mini import data as mini_data

if TYPE_CHECKING:
    from datasets import Dataset

#: an image as parquet holds it
Encoded = dict[str, bytes | str | None] | None
HUB_OWNER = "lmms-lab-encoder"


@dataclass(frozen=True)
class Table:
    """One split of a hub repository: `folder` is the configuration (or "data"), files are
    `<folder>/<split>-*.parquet`."""

    folder: str
    split: str
    columns: tuple[str, ...]

    @property
    def pattern(self) -> str:
        return f"{self.folder}/{self.split}-*.parquet"


@dataclass(frozen=True)
class TaskSpec:
    """A task of ours: an lmms-eval YAML, its data set, and what a subset and a score need to know about them."""

    name: str
    yaml: str  # relative to lmms_eval/tasks
    dataset: str  # repository under HUB_OWNER and folder of a local copy
    table: Table
    headline: str
    group: str  # column that tells images apart without reading them
    ocr: bool = False
    max_new_tokens: int | None = None  # only where upstream's YAML names none
    yes_no: bool = False
    images: Table | None = None  # GQA keeps its images in a table of their own

    @property
    def hub_id(self) -> str:
        return f"{HUB_OWNER}/{self.dataset}"


_TEXTVQA = Table("data", "validation", ("question_id", "image_id", "image", "question", "answers", "ocr_tokens"))
TASKS: Mapping[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        TaskSpec(
            "gqa",
            "gqa/gqa.yaml",
            "GQA",
            Table("testdev_balanced_instructions", "testdev", ("id", "imageId", "question", "answer")),
            "exact_match",
            "imageId",
            images=Table("testdev_balanced_images", "testdev", ("id", "image")),
        ),
        TaskSpec(
            "mme",
            "mme/mme.yaml",
            "MME",
            Table("data", "test", ("question_id", "image", "question", "answer", "category")),
            "mme_perception_score",
            "question_id",
            yes_no=True,
        ),
        TaskSpec(
            "pope",
            "pope/pope.yaml",
            "POPE",
            Table("data", "test", ("question_id", "image_source", "image", "question", "answer", "category")),
            "pope_accuracy",
            "image_source",
            yes_no=True,
        ),
        # papers differ in whether TextVQA's prompt lists OCR tokens (58 against 46 for LLaVA-1.5-7B): two named tasks
        TaskSpec(
            "textvqa", "textvqa/textvqa_val.yaml", "textvqa", _TEXTVQA, "exact_match", "image_id", max_new_tokens=16
        ),
        TaskSpec(
            "textvqa_ocr",
            "textvqa/textvqa_val.yaml",
            "textvqa",
            _TEXTVQA,
            "exact_match",
            "image_id",
            ocr=True,
            max_new_tokens=16,
        ),
    )
}


def task_spec(name: str) -> TaskSpec:
    """The task of that name; an unknown one raises with the nearest suggested."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]


@dataclass(frozen=True)
class DataSource:
    """Where data sets are read: `root` is a folder laid out as tasks/mini/data, or None for the hub."""

    name: str
    root: Path | None

    @classmethod
    def parse(cls, text: str) -> DataSource:
        """ "mini", "hub", or a folder with GQA/, MME/, POPE/ and textvqa/ in it."""
        if text == "mini":
            return cls("mini", mini_data.FOLDER)
        if text == "hub":
            return cls("hub", None)
        root = Path(text).expanduser()
        if root.is_dir():
            return cls("local", root.resolve())
        if os.sep not in text:
            raise unknown("data source", text, ("mini", "hub"))
        raise PrunebenchError(
            f"data source {text!r}: expected `mini`, `hub` or a folder with {', '.join(_dataset_names())} in it, "
            "found no such folder; check the path"
        )

    @property
    def mend(self) -> str:
        """What to do about a file that is missing or broken."""
        if self.name == "mini":
            return "run `make mini` to rebuild the mini data"
        return "copy the data set again (same layout as its hub repository), or use the data source `hub` or `mini`"


def source_of_data(data: str | None, model: str) -> DataSource:
    """Where the data are: as typed, else the mini data for the mini model and the hub for every other."""
    return DataSource.parse(data or ("mini" if model == "mini" else "hub"))


def mini_rows(spec: TaskSpec) -> int:
    """How many questions of a task the shipped mini data hold, as their manifest states."""
    listed = json.loads((mini_data.FOLDER / "manifest.json").read_text(encoding="utf-8"))["files"]
    return sum(
        entry["rows"] for file, entry in listed.items() if Path(file).match(f"{spec.dataset}/{spec.table.pattern}")
    )


def _dataset_names() -> list[str]:
    return sorted({spec.dataset for spec in TASKS.values()})


def files(spec: TaskSpec, table: Table, source: DataSource) -> list[Path]:
    """The parquet files of a table in a local source; raises with pattern and folder content if there are none."""
    if source.root is None:
        raise ValueError("the hub has no local files; expected a source with a root")
    folder = source.root / spec.dataset
    found = sorted(folder.glob(table.pattern))
    if not found:
        there = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.parquet"))
        state = (
            f"found {', '.join(there[:6])}"
            if there
            else "found no parquet file"
            if folder.is_dir()
            else "no such folder"
        )
        raise PrunebenchError(f"task {spec.name}: expected {folder / table.pattern}, {state}; {source.mend}")
    return found


def _check_columns(spec: TaskSpec, table: Table, where: str, found: list[str], mend: str) -> None:
    missing = [c for c in table.columns if c not in found]
    if missing:
        raise PrunebenchError(
            f"task {spec.name}: {where} lacks the column(s) {', '.join(missing)}: expected {', '.join(table.columns)}, "
            f"found {', '.join(found)}; {mend}"
        )


def _read_local(spec: TaskSpec, table: Table, source: DataSource) -> Dataset:
    """The table read into memory, so that what was checked is what is used.

    `datasets`' own cache is left out: it is keyed by path and README and has returned rows of an earlier build.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset, DatasetInfo, Features, Image

    parts = []
    for path in files(spec, table, source):
        try:
            part = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise PrunebenchError(
                f"task {spec.name}: {path} ({path.stat().st_size} bytes) cannot be read as parquet: {reason};"
                f" {source.mend}"
            ) from None
        _check_columns(spec, table, str(path), part.column_names, source.mend)
        parts.append(part)
    try:
        rows = pa.concat_tables(parts)
    except pa.ArrowInvalid as error:
        raise PrunebenchError(
            f"task {spec.name}: the files {table.pattern} have different columns: {error}; {source.mend}"
        ) from None
    if "image" in table.columns:
        kind = rows.schema.field("image").type
        if not (pa.types.is_struct(kind) and {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}):
            raise PrunebenchError(
                f"task {spec.name}: column image of {table.pattern} is {kind}: expected an Image feature, that is a"
                f" struct of bytes and path; {source.mend}"
            )
    # the image type is known here, so neither schema metadata nor a guess decides it
    features = Features.from_arrow_schema(rows.schema.remove_metadata())
    if "image" in table.columns:
        features["image"] = Image(decode=False)
        try:
            rows = rows.cast(features.arrow_schema)
        except (pa.ArrowException, ValueError) as error:
            raise PrunebenchError(
                f"task {spec.name}: column image of {table.pattern} is {kind}, expected struct<bytes: binary, path:"
                f" string>: {error}; {source.mend}"
            ) from None
    return Dataset(rows, info=DatasetInfo(features=features))


def hub_error(spec: TaskSpec, table: Table, error: Exception, instead: str) -> PrunebenchError:
    """The error of a table that the hub did not give; `instead`: how to go on without the hub."""
    reason = (str(error).splitlines() or [""])[0]
    return PrunebenchError(
        f"task {spec.name}: cannot load {spec.hub_id} ({table.folder}, split {table.split}) from the hub:"
        f" {type(error).__name__}: {reason}; check the network and HF_HUB_OFFLINE, or {instead}"
    )


def _read_hub(spec: TaskSpec, table: Table) -> Dataset:
    import datasets

    name = None if table.folder == "data" else table.folder
    try:
        # token=None: upstream's `token: True` needs a login although the data sets are public
        rows = datasets.load_dataset(spec.hub_id, name, split=table.split, token=None)
    except Exception as error:
        raise hub_error(spec, table, error, "give a folder with a copy, or use the data source `mini`") from None
    mend = "the data set has changed; use a folder with a copy of the version you know"
    _check_columns(spec, table, spec.hub_id, rows.column_names, mend)
    return rows.cast_column("image", datasets.Image(decode=False)) if "image" in table.columns else rows


def _positions(questions: Dataset, images: Dataset) -> list[int]:
    """For each of GQA's questions the row of its image; raises on a question whose image is missing."""
    position = {key: i for i, key in enumerate(images["id"])}
    wanted = list(questions["imageId"])
    lost = [key for key in wanted if key not in position]
    if lost:
        raise PrunebenchError(
            f"task gqa: {len(lost)} of {len(wanted)} questions name an image that is not among the {len(position)} of"
            f" the image table, the first {lost[0]!r}; both tables must come from the same data set"
        )
    return [position[key] for key in wanted]


def join_gqa_mini(questions: Dataset) -> Dataset:
    """`process_docs` of the CLI's gqa_mini: the images as a column, as upstream's code expects them."""
    import datasets

    spec = TASKS["gqa"]
    assert spec.images is not None
    images = _read_local(spec, spec.images, DataSource.parse("mini"))
    column = images.select_columns(["image"]).select(_positions(questions, images))
    return datasets.concatenate_datasets([questions, column], axis=1).cast_column("image", datasets.Image())


def _check_rows(spec: TaskSpec, rows: Dataset, mend: str) -> None:
    """What upstream's metrics assert about rows, before anything is computed: they fail only after all inference."""
    if not len(rows):
        raise PrunebenchError(f"task {spec.name}: expected rows in {spec.table.pattern}, found none; {mend}")
    if spec.yes_no:
        for i, answer in enumerate(rows["answer"]):
            if str(answer).lower().strip() not in ("yes", "no"):
                raise PrunebenchError(
                    f"task {spec.name}: row {i} of {spec.table.pattern} has answer {answer!r}: expected yes or no;"
                    f" {mend}"
                )
    if spec.name == "mme":
        for (category, question_id), n in Counter(zip(rows["category"], rows["question_id"], strict=True)).items():
            if n != 2:
                raise PrunebenchError(
                    f"task mme: question_id {question_id!r} ({category}) has {n} row(s): expected a pair; {mend}"
                )


@dataclass(frozen=True)
class Rows:
    """A task's rows without pixels, and where each row's image is.

    GQA asks 31 questions per image: keeping images apart, rather than joining them as upstream does, reads, hashes and
    holds each one once (upstream's join decodes all of them and writes every question's copy).
    """

    docs: Dataset
    images: Dataset  # one column, `image`, still encoded
    image_index: tuple[int, ...]  # per row of docs

    def encoded(self, row: int) -> Encoded:
        """The encoded image of a row: `{"bytes": ..., "path": ...}`, either of which may be None in broken data."""
        encoded: Encoded = self.images[self.image_index[row]]["image"]
        return encoded


def read(spec: TaskSpec, source: DataSource) -> Rows:
    """All rows of a task in the source's order, checked for everything that upstream would trip over.

    Local and mini sources are held in memory; the hub's stay in `datasets`' memory-mapped cache.
    """
    if source.name == "mini" and source.root is not None:
        mini_data.verify(source.root)

    def table(t: Table) -> Dataset:
        return _read_hub(spec, t) if source.root is None else _read_local(spec, t, source)

    docs = table(spec.table)
    _check_rows(spec, docs, source.mend)
    if spec.images is None:
        return Rows(docs.remove_columns(["image"]), docs.select_columns(["image"]), tuple(range(len(docs))))
    images = table(spec.images)
    return Rows(docs, images.select_columns(["image"]), tuple(_positions(docs, images)))
