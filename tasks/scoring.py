"""Scores of answers by lmms-eval's own evaluation, as often as wanted.

Nothing carries over from one call to the next. Two things are mended for our own tasks, with lmms-eval's numbers beside
them: an answer that says nothing is wrong (`says_nothing`), and POPE's metrics count an unread answer as wrong.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import string
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lmms_eval.api.model import lmms
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor
from lmms_eval.tasks.mme.utils import eval_type_dict as MME_CATEGORIES

from harness.core.errors import PrunebenchError
from tasks import pope
from tasks.aggregate import arguments, unchanged
from tasks.unread import names_as_images

if TYPE_CHECKING:
    from tasks.lmms import LoadedTask
    from tasks.rules import Rules


@dataclass(frozen=True)
class Scored:
    """What lmms-eval makes of a set of answers.

    `metrics` are in lmms-eval's units (0 to 1; MME sums 0 to 200 per category) under its names without the filter
    suffix; a task with several filters keeps it. Where a number of lmms-eval's is mended here, its own stands beside it
    as `lmms_eval/NAME`. `categories` holds the same unit per category; `scores` is each sample's own score in [0, 1] by
    key, None where a metric gives samples none.
    """

    headline: float
    metrics: dict[str, float | None]
    categories: dict[str, float]
    scores: dict[str, float | None]


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


#: the process's generators are not lmms-eval's to reset
_NO_SEEDS: Mapping[str, int | None] = {"random_seed": None, "numpy_random_seed": None}
#: as lmms-eval's own command seeds a scoring that guesses, as MMMU's does where an answer names no option
_SEEDS = {name: inspect.signature(simple_evaluate).parameters[name].default for name in _NO_SEEDS}


def score(loaded: LoadedTask, answers: Mapping[str, str]) -> Scored:
    """Score answers (by sample key) with lmms-eval's own evaluation; raises on a missing or a surplus answer."""
    _check_answers(loaded, answers)
    texts = [answers[s.key] for s in loaded.samples]
    return _ours(loaded, answers, texts) if loaded.rules is None else _named(loaded, loaded.rules, texts)


def _evaluated(
    loaded: LoadedTask, texts: Sequence[str], seeds: Mapping[str, int | None] = _NO_SEEDS
) -> tuple[dict[str, Any], list[Mapping[str, Any]]]:
    """Results by metric and filter, and the logged samples, question by question and within each filter by filter."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stderr(io.StringIO()),
    ):  # two progress bars per call
        result = simple_evaluate(
            model=_Replay(texts),
            tasks=[loaded._task],
            task_manager=_no_tasks(),
            cli_args=arguments(folder),  # not None: TextVQA's submission would go into the folder of the command
            bootstrap_iters=0,
            process_docs_parallel=1,
            torch_random_seed=None,
            **seeds,
        )
    if result is None:
        raise PrunebenchError(
            "lmms-eval gave no result: RANK or WORLD_SIZE is set; run one process per cell instead of torchrun"
        )
    name = loaded._task.task_name
    return result["results"][name], sorted(result["samples"][name], key=lambda s: s["doc_id"])


def _ours(loaded: LoadedTask, answers: Mapping[str, str], texts: Sequence[str]) -> Scored:
    results, logged = _evaluated(loaded, texts)
    if [(s["doc_id"], s["filtered_resps"]) for s in logged] != [(i, [t]) for i, t in enumerate(texts)]:
        raise RuntimeError(
            f"task {loaded.name}: lmms-eval scored {len(logged)} other answers than the {len(texts)} it was given"
        )
    metrics: dict[str, float | None] = {}
    for key, value in results.items():
        metric = key.removesuffix(",none")
        if metric != key and "_stderr" not in metric and value is not None:  # submission is None
            metrics[metric] = float(value)
    headline = _headline(loaded, metrics)
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
    return Scored(headline, metrics, _per_category(loaded, logged, scores), {**scores})


def _headline(loaded: LoadedTask, metrics: Mapping[str, float | None]) -> float:
    headline = metrics.get(loaded.headline)
    if headline is None:
        raise PrunebenchError(
            f"task {loaded.name}: no {loaded.headline} in lmms-eval's result, found {', '.join(metrics)}"
        )
    return headline


#: a mean that lmms-eval rounds for its tables is the same mean
_ROUNDED = 1e-4


def _named(loaded: LoadedTask, rules: Rules, texts: Sequence[str]) -> Scored:
    """Scores of a task by name: every metric that is a number, under upstream's own name."""
    from tasks.rules import number

    try:
        with unchanged(loaded._task), names_as_images():
            results, logged = _evaluated(loaded, texts, _SEEDS)
    except PrunebenchError:
        raise
    except Exception as error:
        raise PrunebenchError(
            f"task {loaded.name}: lmms-eval's own scoring failed after inference: {type(error).__name__}:"
            f" {' '.join(str(error).split())[:200]}; the answers are kept, and the same command scores them again; a"
            " changed file of your own is another task, and is asked anew"
        ) from None
    n = len(rules.filters)
    expected = [i for i in range(len(texts)) for _ in range(n)]
    if [s["doc_id"] for s in logged] != expected or [s["resps"] for s in logged] != [[[texts[i]]] for i in expected]:
        raise RuntimeError(
            f"task {loaded.name}: lmms-eval scored {len(logged)} other answers than the {len(texts)} it was given"
        )
    metrics: dict[str, float | None] = {}
    for metric in loaded._task.aggregation():
        for name in rules.filters:
            value = results.get(f"{metric},{name}")
            parts = {f"/{part}": v for part, v in value.items()} if isinstance(value, Mapping) else {"": value}
            for part, one in parts.items():
                if (worth := number(one)) is not None:
                    metrics[rules.shown(metric, name) + part] = worth
    mine = logged[rules.filters.index(rules.filter) :: n]
    with unchanged(loaded._task), tempfile.TemporaryDirectory() as folder:
        found = [rules.score(loaded._task, entry, len(texts), folder) for entry in mine]
    headline = _headline(loaded, metrics)
    if rules.how.kind == "mean":
        scores = _shares(loaded, found)
        own = rules.how.scale_of(len(texts)) * sum(scores) / len(scores)
        if abs(own - headline) > _ROUNDED * max(1.0, rules.how.scale):
            raise PrunebenchError(
                f"task {loaded.name}: its metric {loaded.headline} is {headline}, expected the mean of its questions'"
                f" scores, {own}; name another metric, as in TASKS={loaded._task.task_name}:METRIC"
            )
        if abs(own - headline) > 1e-9:  # rounded: a mean and its interval come from the scores themselves
            metrics[f"lmms_eval/{loaded.headline}"] = headline
            headline = metrics[loaded.headline] = own
        found = [*scores]
    kept = {
        s.key: None if one is None or not 0 <= one <= 1 else one for s, one in zip(loaded.samples, found, strict=True)
    }
    known = {key: value for key, value in kept.items() if value is not None}
    return Scored(headline, metrics, _mean_by_category(loaded, known), kept)


def _shares(loaded: LoadedTask, found: Sequence[float | None]) -> list[float]:
    """The scores of a mean, each of which has to be a number from 0 to 1."""
    for sample, value in zip(loaded.samples, found, strict=True):
        if value is None or not -1e-12 <= value <= 1 + 1e-12:
            raise PrunebenchError(
                f"{sample.key}: expected its {loaded.headline} as a number from 0 to 1, found {value}: its mean has no"
                f" interval; name another metric, as in TASKS={loaded._task.task_name}:METRIC"
            )
    return [min(1.0, max(0.0, value)) for value in found if value is not None]


def _mean_by_category(loaded: LoadedTask, scores: Mapping[str, float]) -> dict[str, float]:
    """Mean score of the questions with a score, per category that the data name."""
    members: dict[str, list[float]] = {}
    for s in loaded.samples:
        if s.category and s.key in scores:
            members.setdefault(s.category, []).append(scores[s.key])
    return {category: sum(values) / len(values) for category, values in members.items()}


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
        return _mean_by_category(loaded, scores)
    out = {}
    for category, rows in members.items():
        metric = "mme_perception_score" if category in MME_CATEGORIES["Perception"] else "mme_cognition_score"
        out[category] = float(loaded._task.aggregation()[metric]([logged[i][metric] for i in rows]))
    return out
