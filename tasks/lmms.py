"""The bridge to lmms-eval: real prompts and real metrics. harness/plugin/ serves users of its own command line.

`load_task` gives the samples of a seeded subset with the exact prompts. `score` runs lmms-eval's real `simple_evaluate`
on answers that were computed elsewhere, as often as wanted. Written against lmms-eval 0.7.3; comments name the quirks
that shape the code.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import io
import json
import random
import string
import sys
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from PIL import Image, ImageFile

from harness.core.errors import PrunebenchError, naming
from harness.core.metric import Metric, metric_of
from harness.core.picture import check_size
from harness.core.shape import Size
from tasks import pope
from tasks import sources as src
from tasks.pictures import SampleImage, check_image, cluster_key, image_size, undecodable

_FIRST_IMPORT = "lmms_eval.models" not in sys.modules
import lmms_eval  # noqa: E402
from lmms_eval.api.model import lmms  # noqa: E402
from lmms_eval.api.task import ConfigurableMessagesTask, ConfigurableTask  # noqa: E402
from lmms_eval.evaluator import simple_evaluate  # noqa: E402
from lmms_eval.tasks import TaskManager  # noqa: E402
from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor  # noqa: E402
from lmms_eval.tasks.mme.utils import eval_type_dict as MME_CATEGORIES  # noqa: E402
from lmms_eval.utils import load_yaml_config  # noqa: E402
from loguru import logger  # noqa: E402

if TYPE_CHECKING:
    from datasets import Dataset

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
    _task: _RowsTask = field(repr=False, compare=False)

    @property
    def headline(self) -> str:
        """The name of the metric that tables show."""
        return self.metric.name

    @cached_property
    def sizes(self) -> Mapping[str, Size]:
        """(height, width) of each image, by `SampleImage.key`; each is read once."""
        return {key: image.size() for key, image in {i.key: i for s in self.samples for i in s.images}.items()}


@dataclass(frozen=True)
class Scored:
    """What lmms-eval makes of a set of answers.

    `metrics` are in lmms-eval's units (0 to 1; MME sums 0 to 200 per category) under its names without the filter
    suffix. Where a number of lmms-eval's is mended here, its own stands beside it as `lmms_eval/NAME`. `categories`
    holds the same unit per category; `scores` is each sample's own score in [0, 1] by key.
    """

    headline: float
    metrics: dict[str, float | None]
    categories: dict[str, float]
    scores: dict[str, float]


class _RowsTask(ConfigurableMessagesTask):  # type: ignore[misc]
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


def _named(value: Any) -> Any:
    """A configuration without memory addresses: functions by name."""
    if isinstance(value, Mapping):
        return {str(k): _named(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_named(v) for v in value]
    return value.__qualname__ if callable(value) else value


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


def one_image(messages: Any, key: str) -> tuple[str, Image.Image]:
    """Text and image of a prompt of one user turn with exactly one of each; anything else raises naming the sample."""
    kinds = [c["type"] for m in messages or [] for c in m["content"]]
    n = kinds.count("image")
    if n != 1:
        raise PrunebenchError(
            f"{key}: expected a prompt with exactly one image, found {n}; choose tasks with one per question"
        )
    if len(messages) != 1 or sorted(kinds) != ["image", "text"]:
        raise PrunebenchError(
            f"{key}: expected one user turn with an image and a text, found {len(messages)} turn(s) with"
            f" {', '.join(kinds)}"
        )
    parts = {c["type"]: c for c in messages[0]["content"]}
    image = parts["image"]["url"]
    if not isinstance(image, Image.Image):
        raise PrunebenchError(f"{key}: expected a decoded image in the prompt, found {type(image).__name__}")
    with naming(key):
        check_size(*image.size)
    return str(parts["text"]["text"]), image


def _load_image(task: _RowsTask, rows: src.Rows, row: int, index: int, key: str) -> Image.Image:
    encoded: Any = rows.encoded(row)  # `load_task` saw that it has bytes
    # set True by lmms_eval.api.task: half an image would be answered as if it were whole
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        doc = {**task.eval_docs[index], "image": datasets.Image().decode_example(encoded)}
        visuals = task.doc_to_messages(doc)
    except Exception as error:
        raise undecodable(key, encoded["bytes"], error) from None
    return one_image(visuals, key)[1]


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

    Raises PrunebenchError for an unknown task, unreadable data, an image of no bearable size or a limit below
    1. No image is decoded here.
    """
    spec = src.task_spec(name)
    rows = src.read(spec, source)
    chosen = _subset(spec, rows, limit, seed)
    config = _config(spec)
    # as config stands now: building the task merges defaults into it in place, and a stop string that no YAML names
    stops = config["generation_kwargs"].get("until") or ()
    until = (stops,) if isinstance(stops, str) else tuple(stops)
    identity = json.dumps(_named(config), sort_keys=True, default=str)
    task = _RowsTask(config, rows.docs.select(chosen))
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


# -------------------------------------------------------------------------------------------------------------- scoring


class _Replay(lmms):  # type: ignore[misc]
    """A model that has all its answers already."""

    is_simple = False

    def __init__(self, answers: Sequence[str]) -> None:
        super().__init__()
        self._answers = answers

    def generate_until(self, requests: list[Any]) -> list[str]:
        return [self._answers[request.doc_id] for request in requests]

    def loglikelihood(self, requests: list[Any]) -> Any:
        raise NotImplementedError("answers can be replayed, likelihoods cannot")

    def generate_until_multi_round(self, requests: list[Any]) -> Any:
        raise NotImplementedError("answers can be replayed, rounds cannot")

    def clean(self) -> None:
        """Nothing: upstream's would delete modules at the end of every evaluation."""


@lru_cache(maxsize=1)
def _no_tasks() -> TaskManager:
    """An empty index: without one, every call would parse 1,985 YAML files (4 s)."""
    return TaskManager(include_defaults=False)


def _check_answers(loaded: LoadedTask, answers: Mapping[str, str]) -> None:
    keys = [s.key for s in loaded.samples]
    missing = [k for k in keys if k not in answers]
    if missing:
        raise PrunebenchError(
            f"task {loaded.name}: {len(missing)} of {len(keys)} answers are missing, the first for {missing[0]}; "
            "answer every sample before scoring"
        )
    strange = sorted(set(answers) - set(keys))
    if strange:
        raise PrunebenchError(
            f"task {loaded.name}: {len(strange)} answer(s) to samples that are not in this subset, the first"
            f" {strange[0]}; score them with the subset that they were made for"
        )
    for key, text in answers.items():
        if not isinstance(text, str):
            raise PrunebenchError(f"{key}: expected the answer's text, found {type(text).__name__}")


def score(loaded: LoadedTask, answers: Mapping[str, str]) -> Scored:
    """Score answers (by sample key) with lmms-eval's own evaluation; raises on a missing or a surplus answer.

    Nothing carries over from one call to the next. Two things are mended, with lmms-eval's own numbers beside them: an
    answer that says nothing is wrong (`says_nothing`), and POPE's metrics count an unread answer as wrong (`pope`).
    """
    _check_answers(loaded, answers)
    texts = [answers[s.key] for s in loaded.samples]
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stderr(io.StringIO()),
    ):  # two progress bars per call
        result = simple_evaluate(
            model=_Replay(texts),
            tasks=[loaded._task],
            task_manager=_no_tasks(),
            # with None it would decode every image once more; output_path keeps TextVQA's submission out of the cwd
            cli_args=argparse.Namespace(process_with_media=False, reasoning_tags=None, output_path=folder),
            bootstrap_iters=0,
            process_docs_parallel=1,
            random_seed=None,  # the process's generators are not lmms-eval's to reset
            numpy_random_seed=None,
            torch_random_seed=None,
        )
    if result is None:
        raise PrunebenchError(
            "lmms-eval gave no result: RANK or WORLD_SIZE is set; run one process per cell instead of torchrun"
        )
    name = loaded._task.task_name
    logged = sorted(result["samples"][name], key=lambda s: s["doc_id"])
    if [(s["doc_id"], s["filtered_resps"]) for s in logged] != [(i, [t]) for i, t in enumerate(texts)]:
        raise RuntimeError(
            f"task {loaded.name}: lmms-eval scored {len(logged)} other answers than the {len(texts)} it was given"
        )
    metrics: dict[str, float | None] = {}
    for key, value in result["results"][name].items():
        metric = key.removesuffix(",none")
        if metric != key and "_stderr" not in metric and value is not None:  # submission is None
            metrics[metric] = float(value)
    headline = metrics.get(loaded.headline)
    if headline is None:
        raise PrunebenchError(
            f"task {loaded.name}: no {loaded.headline} in lmms-eval's result, found {', '.join(metrics)}"
        )
    scores = {s.key: _score_of(entry) for s, entry in zip(loaded.samples, logged, strict=True)}
    if loaded.headline == "exact_match":
        metrics["lmms_eval/exact_match"] = headline
        empty = [s.key for s in loaded.samples if scores[s.key] and says_nothing(answers[s.key], s.targets)]
        if empty:
            scores |= dict.fromkeys(empty, 0.0)
            headline = metrics["exact_match"] = sum(scores.values()) / len(scores)
    elif loaded.name == "pope":
        theirs = {f"lmms_eval/{metric}": value for metric, value in metrics.items() if metric != loaded.headline}
        targets, subsets = [s.targets[0] for s in loaded.samples], [s.category for s in loaded.samples]
        metrics = {**pope.metrics(texts, targets, subsets), loaded.headline: headline, **theirs}
    return Scored(headline, metrics, _per_category(loaded, logged, scores), scores)


def says_nothing(answer: str, targets: Sequence[str]) -> bool:
    """Whether nothing is left of an answer once lmms-eval's TextVQA or GQA has dropped articles and punctuation, and
    no target has the same text. To lmms-eval such an answer equals every target of which nothing is left, so an empty
    one is right where annotators wrote "a"."""
    spoken = answer.strip().lower()
    left = EvalAIAnswerProcessor()(spoken).translate(_NO_PUNCTUATION).strip()
    return not left and (not spoken or spoken not in {target.strip().lower() for target in targets})


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


#: where a logged sample holds its score, in the order tried (an MME sample has one of the two)
_SCORE_FIELDS = ("exact_match", "pope_accuracy", "mme_perception_score", "mme_cognition_score")


def _score_of(entry: Mapping[str, Any]) -> float:
    value = next(entry[name] for name in _SCORE_FIELDS if name in entry)
    return float(value["score"] if isinstance(value, Mapping) else value)


def _per_category(
    loaded: LoadedTask, logged: Sequence[Mapping[str, Any]], scores: Mapping[str, float]
) -> dict[str, float]:
    """Mean score per category; MME's by upstream's own aggregation (accuracy plus pairs right, 0 to 200), which only
    logs it."""
    members: dict[str, list[int]] = {}
    for s in loaded.samples:
        members.setdefault(s.category, []).append(s.index)
    if loaded.name != "mme":
        keys = [s.key for s in loaded.samples]
        return {c: sum(scores[keys[i]] for i in rows) / len(rows) for c, rows in members.items() if c}
    out = {}
    for category, rows in members.items():
        metric = "mme_perception_score" if category in MME_CATEGORIES["Perception"] else "mme_cognition_score"
        out[category] = float(loaded._task.aggregation()[metric]([logged[i][metric] for i in rows]))
    return out
