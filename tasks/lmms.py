"""The bridge to lmms-eval: real prompts and real metrics. harness/plugin/ serves users of its own command line.

`load_task` gives the samples of a seeded subset with the exact prompts; tasks without a specification here are
`tasks/upstream.py`'s. `score` (tasks/scoring.py) runs lmms-eval's real `simple_evaluate` on answers that were computed
elsewhere, as often as wanted. Written against lmms-eval 0.7.3; comments name the quirks
that shape the code.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import random
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import datasets
from PIL import Image, ImageFile

from harness.core.errors import PrunebenchError
from harness.core.metric import Metric, metric_of
from harness.core.shape import Size
from tasks import sources as src
from tasks.pictures import SampleImage, check_image, cluster_key, image_size, undecodable

_FIRST_IMPORT = "lmms_eval.models" not in sys.modules
import lmms_eval  # noqa: E402
from lmms_eval.api.task import ConfigurableMessagesTask, ConfigurableTask  # noqa: E402
from lmms_eval.tasks.mme.utils import eval_type_dict as MME_CATEGORIES  # noqa: E402
from lmms_eval.utils import load_yaml_config  # noqa: E402
from loguru import logger  # noqa: E402

from tasks.scoring import Scored, score  # noqa: E402
from tasks.turns import user_turn  # noqa: E402

if TYPE_CHECKING:
    from datasets import Dataset

    from tasks.rules import Rules
    from tasks.unread import EncodedImages

__all__ = ["LoadedTask", "Sample", "Scored", "load_task", "score"]

if _FIRST_IMPORT:
    # lmms_eval.models has just pointed loguru's sink at stdout, where our tables go; under lmms-eval's own command
    # line, which imports us late, its sink is left alone
    logger.remove()
    logger.add(sys.stderr, level="WARNING", format="lmms-eval: {message}")

UPSTREAM = Path(lmms_eval.__file__).parent / "tasks"


# ---------------------------------------------------------------------------------------------------- tasks and samples


@dataclass(frozen=True)
class Sample:
    """One question. `key` names its row in the source, so it is the same in every subset; `index` is its place in this
    one."""

    task: str
    key: str
    index: int
    question_id: str
    category: str  # MME's and POPE's category, GQA's semantic type, "" for TextVQA
    content: tuple[str | None, ...]
    """The parts of the user's turn in order; None stands for the next of `images`."""
    targets: tuple[str, ...]
    images: tuple[SampleImage, ...] = field(repr=False, compare=False)  # their content is in the fingerprint

    @property
    def prompt(self) -> str:
        """The texts of the prompt without its images."""
        return "\n".join(part for part in self.content if part is not None)

    @cached_property
    def image_key(self) -> str:
        """The cluster: of one image its key, of several a hash of their keys in order."""
        return cluster_key([image.key for image in self.images])

    def image_size(self) -> Size:
        """(height, width) in pixels of what `load_image` gives. Raises PrunebenchError for several images."""
        return self._only().size()

    def load_image(self) -> Image.Image:
        """The image as lmms-eval would hand it to a model (RGB); raises PrunebenchError where it does not decode, and
        for several images."""
        return self._only().load()

    def _only(self) -> SampleImage:
        if len(self.images) != 1:
            raise PrunebenchError(f"{self.key}: expected a sample of one image, found {len(self.images)}")
        return self.images[0]


@dataclass(frozen=True)
class LoadedTask:
    """A task of lmms-eval on a subset of rows. `fingerprint` covers prompts, answers, images and what decides a
    score."""

    name: str
    metric: Metric
    samples: tuple[Sample, ...]
    fingerprint: str
    max_new_tokens: int
    until: tuple[str, ...]
    _task: RowsTask = field(repr=False, compare=False)
    rules: Rules | None = field(default=None, repr=False)
    """How the headline of a task by name comes about; None for the tasks with a specification here."""
    sampling: str = ""
    """How the task asks for answers to be drawn at random, which are greedy here; "" where it does not."""
    _store: EncodedImages | None = field(default=None, repr=False, compare=False)
    openers: Openers | None = field(default=None, repr=False, compare=False)
    """What is asked in front of each question of a task of follow-ups; None elsewhere."""

    @property
    def headline(self) -> str:
        """The name of the metric that tables show."""
        return self.metric.name

    @cached_property
    def sizes(self) -> Mapping[str, Size]:
        """(height, width) of each image, by `SampleImage.key`; each is read once."""
        return {key: image.size() for key, image in {i.key: i for s in self.samples for i in s.images}.items()}


class Openers(NamedTuple):
    """By a sample's key, the sample whose question is asked first. `afresh`: the task that both are of."""

    afresh: LoadedTask
    first: Mapping[str, Sample]


class RowsTask(ConfigurableMessagesTask):  # type: ignore[misc]
    """lmms-eval's task on rows that were read and checked before; prompts and metrics are upstream's."""

    def __init__(self, config: dict[str, Any], rows: Dataset) -> None:
        self._rows = rows
        super().__init__(config=config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """In place of upstream's loader, whose retries hide the cause of every failure."""
        self.dataset = datasets.DatasetDict({self.config.test_split: self._rows})
        self.dataset_no_image = self.dataset

    # without upstream's five retries, two seconds apart: these are pure functions
    process_results = ConfigurableTask.process_results.__wrapped__


def only(task: LoadedTask, samples: Sequence[Sample], fingerprint: str) -> LoadedTask:
    """A task with a specification here on some of its samples, in their order; `fingerprint` names them."""
    rows = task._task._rows.select([sample.index for sample in samples])
    numbered = tuple(replace(sample, index=index) for index, sample in enumerate(samples))
    mine = RowsTask(_config(src.task_spec(task.name)), rows)
    return replace(task, samples=numbered, fingerprint=fingerprint, _task=mine)


def _config(spec: src.TaskSpec) -> dict[str, Any]:
    """The installed package's own YAML, minus where its data comes from, plus what `spec` says it lacks."""
    config: dict[str, Any] = load_yaml_config(str(UPSTREAM / spec.yaml), mode="full")
    for key in ("dataset_path", "dataset_name", "dataset_kwargs", "process_docs"):
        config.pop(key, None)
    # here, not by simple_evaluate(gen_kwargs=), which would stick to the task for all later calls
    generation = dict(config["generation_kwargs"])
    if spec.max_new_tokens is not None:
        generation.setdefault("max_new_tokens", spec.max_new_tokens)
    config["generation_kwargs"] = generation
    if spec.ocr:
        # the whole dict: upstream merges it shallowly, and model-specific entries must not win
        default = config["lmms_eval_specific_kwargs"]["default"]
        config["lmms_eval_specific_kwargs"] = {"default": {**default, "ocr": True}}
    return config


def named_config(value: Any) -> Any:
    """A configuration without memory addresses: functions by name."""
    if isinstance(value, Mapping):
        return {str(k): named_config(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [named_config(v) for v in value]
    return getattr(value, "__qualname__", type(value).__qualname__) if callable(value) else value


def sha256(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def choose(groups: Sequence[Hashable], strata: Sequence[Hashable] | None, limit: int | None, seed: int) -> list[int]:
    """Rows of a seeded subset of whole groups, ascending: as many rows as fit in `limit`, and at least one group.

    Groups are drawn in random order; one that no longer fits is passed over. With `strata` (per row; a group lies in
    one) the strata take turns, in the order in which they first appear.
    """
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    if limit is None:
        return list(range(len(groups)))
    if limit < 1:
        raise PrunebenchError(f"limit: expected a number of questions of at least 1 or `all`, found {limit}")
    order = list(members)
    random.Random(seed).shuffle(order)
    if strata is not None:
        turn = {stratum: n for n, stratum in enumerate(dict.fromkeys(strata))}
        round_of: dict[Hashable, int] = dict.fromkeys(turn, 0)
        ranked = []
        for group in order:
            stratum = strata[members[group][0]]
            ranked.append((round_of[stratum], turn[stratum], group))
            round_of[stratum] += 1
        order = [group for *_, group in sorted(ranked, key=lambda r: r[:2])]
    chosen: list[int] = []
    for group in order:
        if not chosen or len(chosen) + len(members[group]) <= limit:
            chosen += members[group]
    return sorted(chosen)


def _subset(spec: src.TaskSpec, rows: src.Rows, limit: int | None, seed: int) -> list[int]:
    groups: list[Hashable] = list(rows.docs[spec.group])
    if spec.name != "mme":
        return choose(groups, None, limit, seed)
    # whole pairs; perception comes first so that the headline exists in the smallest subset
    categories = list(rows.docs["category"])
    known = {name: n for n, name in enumerate(c for half in MME_CATEGORIES.values() for c in half)}
    strange = next((row for row, c in enumerate(categories) if c not in known), None)
    if strange is not None:
        raise PrunebenchError(
            f"mme/{strange:06d}, column category: expected one of {', '.join(known)}, found {categories[strange]!r};"
            " correct the data"
        )
    by_category = sorted(range(len(categories)), key=lambda row: known[categories[row]])  # stable
    pairs = [(categories[row], groups[row]) for row in by_category]
    picked = choose(pairs, [categories[row] for row in by_category], limit, seed)
    return sorted(by_category[i] for i in picked)


def _load_image(task: RowsTask, rows: src.Rows, row: int, index: int, key: str) -> Image.Image:
    encoded: Any = rows.encoded(row)  # `load_task` saw that it has bytes
    # set True by lmms_eval.api.task: half an image would be answered as if it were whole
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        doc = {**task.eval_docs[index], "image": datasets.Image().decode_example(encoded)}
        visuals = task.doc_to_messages(doc)
    except Exception as error:
        raise undecodable(key, encoded["bytes"], error) from None
    (image,) = user_turn(visuals, key)[1]
    return image


def _image_digests(name: str, rows: src.Rows, chosen: Sequence[int], mend: str) -> dict[int, str]:
    """Image of `rows.images` -> its sha256, for those that the chosen rows show; each is checked once."""
    digests: dict[int, str] = {}
    checked: set[str] = set()
    for row in chosen:
        where, key = rows.image_index[row], f"{name}/{row:06d}"
        if where in digests:
            continue
        encoded = (rows.encoded(row) or {}).get("bytes")
        if not isinstance(encoded, bytes):
            raise PrunebenchError(
                f"{key}, column image: expected an image embedded in the parquet file, found none; {mend}"
            )
        digests[where] = hashlib.sha256(encoded).hexdigest()
        if digests[where] not in checked:
            check_image(encoded, key)
        checked.add(digests[where])
    return digests


def load_task(name: str, source: src.DataSource, limit: int | None, seed: int) -> LoadedTask:
    """A task on a seeded subset of whole images (MME: whole pairs, categories in turn), in the order of the source.

    `name`: a task with a specification, or any word of `tasks/named.py`. Raises PrunebenchError for an unknown task,
    unreadable data, an image of no bearable size or a limit below 1. No image is decoded that a task shows as it is.
    """
    if name not in src.TASKS:
        from tasks import named, upstream

        return upstream.load(named.find(name), source, limit, seed)
    spec = src.task_spec(name)
    rows = src.read(spec, source)
    chosen = _subset(spec, rows, limit, seed)
    config = _config(spec)
    # as config stands now: building the task merges defaults into it in place, and a stop string that no YAML names
    stops = config["generation_kwargs"].get("until") or ()
    until = (stops,) if isinstance(stops, str) else tuple(stops)
    identity = json.dumps(named_config(config), sort_keys=True, default=str)
    task = RowsTask(config, rows.docs.select(chosen))
    digests = _image_digests(name, rows, chosen, source.mend)
    samples = []
    parts = [identity.encode(), importlib.metadata.version("lmms-eval").encode()]
    for index, (row, doc) in enumerate(zip(chosen, task.eval_docs, strict=True)):
        key = f"{name}/{row:06d}"
        where = rows.image_index[row]
        targets = (
            doc["answers"] if "answers" in doc else [doc["answer"]]
        )  # TextVQA's upstream target is the word "answer"
        image = SampleImage(
            digests[where][:16],
            partial(_load_image, task, rows, row, index, key),
            partial(image_size, partial(rows.encoded, row), key),
        )
        sample = Sample(
            task=name,
            key=key,
            index=index,
            question_id=str(doc["question_id"] if "question_id" in doc else doc["id"]),
            category=str(doc.get("category") or (doc.get("types") or {}).get("semantic") or ""),
            content=(None, task.doc_to_text(doc)),
            targets=tuple(str(t) for t in targets),
            images=(image,),
        )
        samples.append(sample)
        identified = [sample.key, sample.prompt, sample.question_id, sample.category, digests[where], *sample.targets]
        parts.append(json.dumps([*identified, str(task.doc_to_target(doc)), doc["question"]]).encode())
    return LoadedTask(
        name=name,
        metric=metric_of(spec.headline),
        samples=tuple(samples),
        fingerprint=sha256(*parts),
        max_new_tokens=int(task.config.generation_kwargs["max_new_tokens"]),
        until=until,
        _task=task,
    )
