"""How the headline of a task of lmms-eval comes about: as a mean of its questions' scores, or otherwise.

A mean has an interval and tests; everything else has not. The rule is decided by the task and its rows before a
question is asked, never by a run's answers: by the list of verified tasks, else by the aggregation that the task's file
names. `mean` counts where scoring gives every question a number from 0 to 1, for an answer of no worth and for its
target.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lmms_eval.api.registry import get_aggregation

from harness.core.errors import PrunebenchError
from harness.core.metric import Metric
from tasks.aggregate import aggregate, unchanged
from tasks.named import NamedTask
from tasks.verified import VERIFIED, Aggregation

#: rows that scoring is tried on, spread over the task, where it need not be tried on all
TRIALS = 8


@dataclass(frozen=True)
class Rules:
    """What a headline is."""

    name: str
    """As results call it: with its filter where a task has several."""
    base: str
    """The metric alone."""
    filter: str
    filters: tuple[str, ...]
    how: Aggregation
    higher_is_better: bool

    def metric(self, n_questions: int) -> Metric:
        """For the tables, of a task of `n_questions`."""
        if self.how.kind == "mean":
            return Metric(self.name, "mean", self.how.scale_of(n_questions), self.higher_is_better)
        return Metric(self.name, "corpus", higher_is_better=self.higher_is_better, maximum=self.how.maximum)

    def shown(self, metric: str, filter_name: str) -> str:
        """A metric's name in results."""
        return metric if len(self.filters) == 1 else f"{metric},{filter_name}"

    def score(self, task: Any, entry: Mapping[str, Any], n_questions: int, folder: str) -> float | None:
        """A question's score, 0 to 1, from its logged sample; None where it has none."""
        value = entry.get(self.base)
        if value is None or self.how.score is None:
            return None
        if self.how.score == "field" and isinstance(value, Mapping):
            value = value.get("score")
        elif self.how.score == "alone":
            value = aggregate(task, self.base, [value], folder) / self.how.scale_of(n_questions)
        return number(value)


def number(value: Any) -> float | None:
    """A finite number as float; None for everything else."""
    try:
        found = float(value) if not isinstance(value, str) else math.nan
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def rules_of(
    task: NamedTask, loaded: Any, targets: Sequence[str], tried: Callable[..., Mapping[str, Any]], judged: bool
) -> Rules:
    """The rules of a task. Tries its scoring, unless a service is `judged` to score: `tried` takes a row, and an answer
    to it where it is not one of no worth; `targets` are the answers that the rows expect.

    Raises PrunebenchError where scoring fails on a row, gives the headline no number, or needs a package that is not
    installed.
    """
    base, _, filter_name = (task.headline or task.usual_headline).partition(",")
    filters = task.filters
    filter_name = filter_name or filters[0]
    name = base if len(filters) == 1 else f"{base},{filter_name}"
    higher = bool(loaded.higher_is_better().get(base, True))
    verified = VERIFIED.get(task.task) if task.shipped else None
    how = next((a for a in verified.metrics if a.metric == base), None) if verified else None
    mean = loaded.aggregation().get(base) is get_aggregation("mean")
    if judged:
        return Rules(name, base, filter_name, filters, how or _other(base), higher)
    every = how is None and (mean or not task.shipped)
    rows = range(len(targets)) if every else sorted({n * len(targets) // TRIALS for n in range(TRIALS)})
    with unchanged(loaded):
        results = [tried(row) for row in rows]
        right = [tried(row, targets[row]) for row in rows] if every else []
        if not any(base in found for found in results):  # a metric of some rows only
            every, results = True, [tried(row) for row in range(len(targets))]
    if how is None:
        shares = mean and all(_share(found.get(base)) for found in (*results, *right))
        how = _mean(base) if shares else _other(base)
    _check_aggregation(task, loaded, base, results, every)
    return Rules(name, base, filter_name, filters, how, higher)


def _share(value: Any) -> bool:
    found = number(value)
    return found is not None and 0 <= found <= 1


def _mean(metric: str) -> Aggregation:
    return Aggregation(metric, "api/metrics.py: mean", "mean", 1.0)


def _other(metric: str) -> Aggregation:
    """A number that no rule is known for; what a question's logged sample says is kept where it is from 0 to 1."""
    return Aggregation(metric, "", "corpus", None, score="field")


def _check_aggregation(
    task: NamedTask, loaded: Any, metric: str, results: Sequence[Mapping[str, Any]], every: bool
) -> None:
    """Call the aggregation of the headline once before inference, on what scoring gave for `every` row or for some.

    Some need more rows than a few, or both of a pair: of a few rows only what more rows cannot mend is an error, that
    is packages and programs, and a result that is no number.
    """
    items = [found[metric] for found in results if found.get(metric) is not None]
    if not items:
        others = sorted({name for found in results for name, value in found.items() if value is not None})
        raise PrunebenchError(
            f"task {task.name}: expected its metric {metric} from process_results, found"
            f" {', '.join(others) or 'nothing'} in all {len(results)} rows: name it there and in metric_list alike"
        )
    if not callable(loaded.aggregation().get(metric)):
        listed = [entry for entry in task.config["metric_list"] if entry.get("metric") == metric]
        raise PrunebenchError(
            f"task {task.name}: expected an aggregation of lmms-eval's or a function for its metric {metric}, as"
            f" `aggregation: mean`; found {listed[0].get('aggregation')!r}"
        )
    kind: Literal["package", "program"]
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None  # a scorer that lacks its program fails once more while it is thrown away
    try:
        with unchanged(loaded), tempfile.TemporaryDirectory() as folder:
            value = aggregate(loaded, metric, items, folder)
    except ModuleNotFoundError as error:
        kind, needed = "package", error.name
    except FileNotFoundError as error:
        kind, needed = "program", error.filename
    except Exception as error:
        if not every:
            return
        raise PrunebenchError(
            f"task {task.name}: the aggregation of its metric {metric} failed on answers of no worth:"
            f" {type(error).__name__}: {' '.join(str(error).split())[:200]}; mend it, or name another metric"
        ) from None
    else:
        if number(value) is None and not (isinstance(value, float) and math.isnan(value)):
            named = ", ".join(name for name in task.metrics if name != metric)
            raise PrunebenchError(
                f"task {task.name}: expected a number as its metric {metric}, found {type(value).__name__}; "
                + (f"name another, as in TASKS={task.task}:METRIC, of {named}" if named else "mend its aggregation")
            )
        return
    finally:
        sys.unraisablehook = hook
    raise PrunebenchError(
        f"task {task.name}: its metric {metric} needs the {kind} {needed}, which is not installed: install it, or"
        " choose another task or metric"
    )
