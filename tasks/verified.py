"""Tasks of lmms-eval that are verified on fixtures: columns follow the task's code; not compared with the hub.

A test holds for each: the metrics here equal those of lmms-eval's own evaluator to 1e-9, on rows with the columns that
the task's code reads. `at` names the lines of the installed lmms-eval, relative to `lmms_eval`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

NOTE = "columns follow the task's code; not compared with the hub"


@dataclass(frozen=True)
class Aggregation:
    """How lmms-eval makes one metric of a task from the logged samples.

    A "mean" is `scale` times the mean over every question of the task; its intervals and tests need each question's
    score. Anything else is "corpus": an average of averages, a mean over some of the questions, a score of the whole.
    """

    metric: str
    at: str  # file:line of the installed lmms-eval that makes the number
    kind: Literal["mean", "corpus"]
    maximum: float | None  # the best value; none where no bound is known
    scale: float = 1.0  # the metric's value where every question scores 1
    #: where a question's score, 0 to 1, is found: the logged number; its field "score"; the aggregation of it alone
    score: Literal["value", "field", "alone"] | None = "value"
    #: the sum is divided by this number of questions, however many were asked: the scale is questions / total
    total: int | None = None

    def scale_of(self, n_questions: int) -> float:
        """The metric's value where each of `n_questions` scores 1."""
        return self.scale if self.total is None else n_questions / self.total


@dataclass(frozen=True)
class VerifiedTask:
    """A verified task; the first of its metrics is its headline, as in lmms-eval's own list."""

    name: str
    metrics: tuple[Aggregation, ...]
    #: the metric that papers print, where lmms-eval lists another one first
    papers: str | None = None

    @property
    def headline(self) -> str:
        return self.metrics[0].metric


_MEAN = "api/metrics.py:23"  # the aggregation registered as `mean`


def _mean(metric: str) -> tuple[Aggregation]:
    """A registered mean over every question."""
    return (Aggregation(metric, _MEAN, "mean", 1.0),)


def _some(metric: str) -> Aggregation:
    """A registered mean over the questions that have the metric."""
    return Aggregation(metric, _MEAN, "corpus", 1.0)


def _mmstar() -> tuple[Aggregation, ...]:
    """Averages over the finer categories of the means within each: every finer category counts the same."""
    parts = ("coarse perception", "fine-grained perception", "instance reasoning", "logical reasoning")
    return tuple(
        Aggregation(metric, "tasks/mmstar/utils.py:126", "corpus", 1.0, score="field")
        for metric in (*parts, "science & technology", "math", "average")
    )


def _seedbench() -> tuple[Aggregation, ...]:
    at = "tasks/seedbench/utils.py:27"
    parts = (Aggregation(name, at, "corpus", 1.0, score="alone") for name in ("seed_image", "seed_video"))
    return (*parts, Aggregation("seed_all", at, "mean", 1.0, score="alone"))


def _refcoco() -> tuple[Aggregation, ...]:
    """Means of the overlap, of "overlap at least x", and of "the box's middle lies inside"."""
    names = ("IoU", "ACC@0.1", "ACC@0.3", "ACC@0.5", "ACC@0.7", "ACC@0.9", "Center_ACC")
    at = "tasks/refcoco/utils_rec.py:163"
    return tuple(Aggregation(f"refcoco_{name}", at, "mean", 1.0, score="alone") for name in names)


def _flickr30k() -> tuple[Aggregation, ...]:
    """Scores of all captions together. CIDEr has no bound worth a percentage: it weighs words by how rare they are."""
    bounded = ("Bleu_4", "Bleu_3", "Bleu_2", "Bleu_1", "METEOR", "ROUGE_L")
    at = "tasks/flickr30k/utils.py:41"
    return tuple(
        Aggregation(f"flickr_{name}", at, "corpus", 1.0 if name in bounded else None, score=None)
        for name in (*bounded, "CIDEr")
    )


_ALL = (
    # right in every circular copy of the question, times 100: a question may stand in several rows
    VerifiedTask(
        "mmbench_en_dev_static",
        (Aggregation("gpt_eval_score", "tasks/mmbench/mmbench_evals.py:252", "corpus", 100.0, score=None),),
    ),
    VerifiedTask("mmstar", _mmstar(), papers="average"),
    VerifiedTask("scienceqa_img", _mean("exact_match")),
    VerifiedTask("seedbench", _seedbench()),
    VerifiedTask("vqav2_val_lite", _mean("exact_match")),
    VerifiedTask("ok_vqa_val2014_lite", _mean("exact_match")),
    VerifiedTask("vizwiz_vqa_val", _mean("exact_match")),
    VerifiedTask("ai2d", _mean("exact_match")),
    VerifiedTask(
        "chartqa",
        (*_mean("relaxed_overall"), _some("relaxed_human_split"), _some("relaxed_augmented_split")),
    ),
    VerifiedTask("docvqa_val", _mean("anls")),
    VerifiedTask("infovqa_val", _mean("anls")),
    # the number of right answers over 1,000, the size of the whole data set
    VerifiedTask(
        "ocrbench",
        (Aggregation("ocrbench_accuracy", "tasks/ocrbench/utils.py:82", "mean", 1.0, score="field", total=1000),),
    ),
    VerifiedTask("realworldqa", _mean("exact_match")),
    # the subjects' means weighted by their questions, rounded to five digits
    VerifiedTask("mmmu_val", (Aggregation("mmmu_acc", "tasks/mmmu/utils.py:249", "mean", 1.0, score="alone"),)),
    VerifiedTask("refcoco_bbox_rec_val", _refcoco(), papers="refcoco_ACC@0.5"),
    VerifiedTask("flickr30k_test_lite", _flickr30k(), papers="flickr_CIDEr"),
)

VERIFIED: Mapping[str, VerifiedTask] = {task.name: task for task in _ALL}
