"""Which tasks of lmms-eval cannot be measured here, each with its reason in one line: read off the configuration and
the code, before data or weights are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from harness.core.errors import PrunebenchError
from harness.core.spelling import given
from tasks import judges
from tasks.named import NamedTask

#: lmms-eval's kinds of tasks other than `generate_until`, and what they would take
KINDS: Mapping[str, str] = {
    "loglikelihood": "it compares likelihoods of given answers, and pruning is measured on generated ones",
    "multiple_choice": "it compares likelihoods of given answers, and pruning is measured on generated ones",
    "generate_until_multi_round": "it asks in several rounds, and one answer is measured",
    "generate_until_agentic": "it asks in several rounds, and one answer is measured",
    "generate_visual_cot": "it has the model draw an image, and answers are text",
}


def fixed_reason(task: NamedTask) -> str | None:
    """Why a task cannot run, whatever is allowed; None where its file speaks of no reason."""
    config = task.config
    kind = str(config.get("output_type") or "generate_until")
    if kind != "generate_until":
        return f"its kind is {kind}: {KINDS.get(kind, 'expected generate_until')}"
    if _video(config.get("dataset_kwargs") or {}):
        return "it shows videos, and images are measured"
    if not config.get("doc_to_visual") and not config.get("doc_to_messages"):
        return "its prompts have no image"
    if _number(config.get("num_fewshot")) > 0:
        return f"it shows {config['num_fewshot']} examples before each question, and one turn is measured"
    if _number(config.get("repeats")) > 1:
        return f"it asks for {config['repeats']} answers a question, and one is measured"
    if task.split is None:
        return "its file names no test_split and no validation_split"
    if not task.metrics:
        return "its file names no metric"
    if all("submission" in metric for metric in task.metrics):
        return "its answers are handed in elsewhere and have no score here"
    return _strange(task.generation)


def _video(kwargs: Mapping[str, Any]) -> bool:
    return bool(kwargs.get("video") or kwargs.get("From_YouTube"))


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _strange(generation: Mapping[str, Any]) -> str | None:
    """What is no length of an answer, or no number, among the settings of a generation."""
    for name, least in (("max_new_tokens", 1), ("num_beams", 0)):
        value = generation.get(name, least)
        if type(value) is not int or value < least:
            return f"its {name} is {value!r}: expected a whole number of at least {least}"
    value = generation.get("temperature")
    return None if isinstance(value, int | float | None) else f"its temperature is {value!r}: expected a number"


def judge_reason(task: NamedTask) -> str | None:
    """What a task's judge is and needs; None where its answers are scored without a service."""
    found = judges.judge(task)
    if found is None:
        return None
    needs = f"environment variables {', '.join(found.variables)}" if found.variables else "a login that its code names"
    return f"a judge scores its answers, a service that lmms-eval calls ({found.at}; {needs})"


def reason(task: NamedTask, judge: bool = False) -> str | None:
    """Why a task cannot run; None where it may. `judge`: a service may score answers."""
    return fixed_reason(task) or (None if judge else judge_reason(task))


def check(tasks: Iterable[NamedTask], judge: bool) -> None:
    """Raise PrunebenchError for the tasks that cannot run, and where two have one name."""
    found = list(tasks)
    why = [(task, text) for task in found if (text := reason(task, judge)) is not None]
    if why:
        task, text = why[0]
        others = f"; nor can {len(why) - 1} more: {', '.join(t.name for t, _ in why[1:4])}" if len(why) > 1 else ""
        others += ", ..." if len(why) > 4 else ""
        mend = "choose other tasks"
        if fixed_reason(task) is None:
            mend = f"give {given('judge', True)} to let it be called, or {mend}"
        raise PrunebenchError(f"task {task.name} cannot run: {text}{others}; {mend}")
    by_name: dict[str, NamedTask] = {}
    for task in found:
        other = by_name.setdefault(task.name, task)
        if other.file != task.file:
            raise PrunebenchError(
                f"two tasks are called {task.name}, in {other.file} and {task.file}: give one of them another name"
            )
