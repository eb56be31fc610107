"""Which tasks there are and where their rows come from: the data of the embedded models, the hub, or a local folder of
copies.

Rows are read and checked here, before lmms-eval sees them: its own loader repeats every failure five times and then
reports a RetryError without the cause. Images stay encoded (`Image(decode=False)`); nothing here imports lmms-eval or
torch.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness.core.errors import PrunebenchError, unknown
from tasks import columns
from tasks.columns import Kind, Naming, Part
from tasks.mini import data as mini_data
from tasks.mini.qwen import data as qwen_data

if TYPE_CHECKING:
    from datasets import Dataset

#: an image as parquet holds it
Encoded = dict[str, bytes | str | None] | None
HUB_OWNER = "lmms-lab-encoder"
MINI = "mini"
#: data sources of ours, each called as the embedded model that is asked on it: square images, and images of many sizes
EMBEDDED = (MINI, "mini-qwen")


@dataclass(frozen=True)
class Table:
    """One split of a hub repository: `folder` is the configuration (or "data"), files are
    `<folder>/<split>-*.parquet`."""

    folder: str
    split: str
    columns: Mapping[str, Kind]
    once: tuple[str, ...] = ()  # columns that no two rows share; the last of them names a row in messages

    @property
    def key(self) -> str:
        return self.once[-1] if self.once else next(iter(self.columns))

    @property
    def required(self) -> list[str]:
        return [column for column, kind in self.columns.items() if kind not in columns.OPTIONAL]

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
    images: Table | None = None  # GQA keeps its images in a table of their own

    @property
    def hub_id(self) -> str:
        return f"{HUB_OWNER}/{self.dataset}"


GQA_IMAGES = Table("testdev_balanced_images", "testdev", {"id": Kind.NAME, "image": Kind.IMAGE}, ("id",))
_TEXTVQA = Table(
    "data",
    "validation",
    {
        "question_id": Kind.NAME,
        "image_id": Kind.NAME,
        "image": Kind.IMAGE,
        "question": Kind.TEXT,
        "answers": Kind.ANSWERS,
        "ocr_tokens": Kind.WORDS,
    },
    ("question_id",),
)
TASKS: Mapping[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        TaskSpec(
            "gqa",
            "gqa/gqa.yaml",
            "GQA",
            Table(
                "testdev_balanced_instructions",
                "testdev",
                {
                    "id": Kind.NAME,
                    "imageId": Kind.NAME,
                    "question": Kind.TEXT,
                    "answer": Kind.TEXT,
                    "types": Kind.SEMANTIC,
                },
                ("id",),
            ),
            "exact_match",
            "imageId",
            images=GQA_IMAGES,
        ),
        TaskSpec(
            "mme",
            "mme/mme.yaml",
            "MME",
            Table(
                "data",
                "test",
                {
                    "question_id": Kind.NAME,
                    "image": Kind.IMAGE,
                    "question": Kind.TEXT,
                    "answer": Kind.YES_NO,
                    "category": Kind.TEXT,
                },
            ),
            "mme_perception_score",
            "question_id",
        ),
        TaskSpec(
            "pope",
            "pope/pope.yaml",
            "POPE",
            Table(
                "data",
                "test",
                {
                    "question_id": Kind.NAME,
                    "image_source": Kind.NAME,
                    "image": Kind.IMAGE,
                    "question": Kind.TEXT,
                    "answer": Kind.YES_NO,
                    "category": Kind.SUBSET,
                },
                ("category", "question_id"),  # each of POPE's three subsets numbers its questions from 1
            ),
            "pope_accuracy",
            "image_source",
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
        """ "mini", "mini-qwen", "hub", or a folder with GQA/, MME/, POPE/ and textvqa/ in it.

        Nothing is drawn yet: `ready` does.
        """
        if text in EMBEDDED:
            return cls(text, mini_data.FOLDER if text == MINI else qwen_data.folder())
        if text == "hub":
            return cls("hub", None)
        with contextlib.suppress(OSError, RuntimeError):  # a name that no folder can have: too long, or ~nobody
            root = Path(text).expanduser()
            if root.is_dir():
                return cls("local", root.resolve())
        if os.sep not in text:
            known = unknown("data source", text, (*EMBEDDED, "hub"))
            raise PrunebenchError(f"{known}, and no folder of this name is here")
        raise PrunebenchError(
            f"data source {text!r}: expected `mini`, `mini-qwen`, `hub` or a folder with {', '.join(_dataset_names())}"
            " in it, found no such folder; check the path"
        )

    @property
    def embedded(self) -> bool:
        """Whether the data are those of an embedded model."""
        return self.name in EMBEDDED

    def ready(self) -> None:
        """See that the data of an embedded model are there and whole; other sources are looked at where they are read.

        Raises PrunebenchError where they are not, and cannot be drawn.
        """
        if self.name == MINI and self.root is not None:
            mini_data.verify(self.root)
        elif self.embedded:
            qwen_data.ready()

    @property
    def mend(self) -> str:
        """What to do about a file that is missing or broken."""
        if self.name == MINI:
            return "run `make mini` to rebuild the mini data"
        if self.embedded:
            return f"remove the folder {self.root}, which is drawn again"
        return (
            "mend the file, or copy the data set again (same layout as its hub repository), or use the data source"
            " `hub` or `mini`"
        )


def source_of_data(data: str | None, model: str) -> DataSource:
    """Where the data are: as typed, else its own data for an embedded model and the hub for every other.

    `model`: the shipped config that it stands for. "mini" are an embedded model's own data.
    """
    if model in EMBEDDED and data in (None, "", MINI):
        return DataSource.parse(model)
    return DataSource.parse(data or "hub")


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
    columns.check_whole(spec.name, found, source.mend)
    return found


class _Split(NamedTuple):
    """A table that was checked: what is text in it, and its column `image`, still encoded, where it has one."""

    docs: Dataset
    images: Dataset | None


def _naming(spec: TaskSpec, table: Table, mend: str) -> Naming:
    return Naming(spec.name, table.key, table is spec.table, mend)


def _checked(spec: TaskSpec, table: Table, parts: Sequence[Part], naming: Naming) -> Dataset:
    """What is text in a table, one type for each kind; raises PrunebenchError at the first thing that is wrong."""
    from datasets import Dataset

    filled = [part for part in parts if len(part.table)]  # a file without rows says nothing about types
    if not filled:
        raise PrunebenchError(f"task {spec.name}: expected rows in {table.pattern}, found none; {naming.mend}")
    columns.check_types(filled, table.columns, naming)
    values = columns.texts(filled, table.columns, naming)
    if table.once:
        columns.check_once(filled, values, table.once, naming)
    if spec.name == "mme":
        columns.check_pairs(filled, values, ("category", "question_id"), naming)
    return Dataset(columns.table(values, table.columns))


def _read_local(spec: TaskSpec, table: Table, source: DataSource) -> _Split:
    """The table read into memory, so that what was checked is what is used.

    `datasets`' own cache is left out: it is keyed by path and README and has returned rows of an earlier build.
    """
    from datasets import Dataset, DatasetInfo, Features, Image

    naming = _naming(spec, table, source.mend)
    parts = [columns.read_file(spec.name, path, table.columns, naming) for path in files(spec, table, source)]
    docs = _checked(spec, table, parts, naming)
    if "image" not in table.columns:
        return _Split(docs, None)
    # the image type is known here, so neither schema metadata nor a guess decides it
    encoded = columns.images([part for part in parts if len(part.table)])
    return _Split(docs, Dataset(encoded, info=DatasetInfo(features=Features({"image": Image(decode=False)}))))


def hub_error(spec: TaskSpec, table: Table, error: Exception, instead: str) -> PrunebenchError:
    """The error of a table that the hub did not give; `instead`: how to go on without the hub."""
    reason = (str(error).splitlines() or [""])[0]
    return PrunebenchError(
        f"task {spec.name}: cannot load {spec.hub_id} ({table.folder}, split {table.split}) from the hub:"
        f" {type(error).__name__}: {reason}; check the network and HF_HUB_OFFLINE, or {instead}"
    )


def _read_hub(spec: TaskSpec, table: Table) -> _Split:
    import datasets

    name = None if table.folder == "data" else table.folder
    try:
        # token=None: upstream's `token: True` needs a login although the data sets are public
        rows = datasets.load_dataset(spec.hub_id, name, split=table.split, token=None)
    except Exception as error:
        raise hub_error(spec, table, error, "give a folder with a copy, or use the data source `mini`") from None
    naming = _naming(spec, table, "the data set has changed; use a folder with a copy of the version you know")
    columns.check_names(spec.hub_id, table.columns, rows.column_names, naming)
    there = [c for c, kind in table.columns.items() if c in rows.column_names and kind is not Kind.IMAGE]
    text = rows.select_columns(there).with_format("arrow")[:]
    docs = _checked(spec, table, [Part(spec.hub_id, text)], naming)
    if "image" not in table.columns:
        return _Split(docs, None)
    images = rows.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    return _Split(docs, images)


def _positions(questions: Dataset, images: Dataset) -> list[int]:
    """For each of GQA's questions the row of its image; raises on a question whose image is missing."""
    position = {str(key): i for i, key in enumerate(images["id"])}
    wanted = [str(key) for key in questions["imageId"]]
    lost = [key for key in wanted if key not in position]
    if lost:
        raise PrunebenchError(
            f"task gqa: {len(lost)} of {len(wanted)} questions name an image that is not among the {len(position)} of"
            f" the image table, the first {lost[0]!r}; both tables must come from the same data set"
        )
    return [position[key] for key in wanted]


def join_gqa_mini(questions: Dataset) -> Dataset:
    """`process_docs` of the CLI's gqa_mini: the images as a column, as upstream's code expects them."""
    return _join_gqa(questions, DataSource.parse(MINI))


def join_gqa_mini_qwen(questions: Dataset) -> Dataset:
    """The same of gqa_mini_qwen."""
    return _join_gqa(questions, DataSource.parse("mini-qwen"))


def _join_gqa(questions: Dataset, source: DataSource) -> Dataset:
    import datasets

    spec = TASKS["gqa"]
    assert spec.images is not None
    images = _read_local(spec, spec.images, source)
    assert images.images is not None
    column = images.images.select(_positions(questions, images.docs))
    return datasets.concatenate_datasets([questions, column], axis=1).cast_column("image", datasets.Image())


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
    source.ready()

    def table(t: Table) -> _Split:
        return _read_hub(spec, t) if source.root is None else _read_local(spec, t, source)

    docs, images = table(spec.table)
    if images is not None:
        return Rows(docs, images, tuple(range(len(docs))))
    assert spec.images is not None
    named, images = table(spec.images)
    assert images is not None
    return Rows(docs, images, tuple(_positions(docs, named)))
