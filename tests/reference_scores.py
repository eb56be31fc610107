"""lmms-eval's own scores of given answers: `python reference_scores.py ANSWERS RESULTS`, in a folder of data.

Its own `simple_evaluate` with its defaults, its own TaskManager and its own YAMLs, by name. Only the model is a
stand-in that returns the answers. `load_dataset("owner/name")` takes that folder below the working directory.

ANSWERS is JSON: {set: {task: [answer per question]}}. RESULTS: {set: {task: {"metric,filter": value}}}. Each set is
scored in a process of its own, because some tasks keep sums in globals from one evaluation to the next.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lmms_eval.api.model import lmms
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

#: MMMU guesses an option where an answer names none
ALONE = ("mmmu_val",)


class GivenAnswers(lmms):  # type: ignore[misc]
    """A model whose answer to question `doc_id` of a task is `answers[task][doc_id]`."""

    is_simple = False

    def __init__(self, answers: Mapping[str, list[str]]) -> None:
        super().__init__()
        self.answers = answers

    def generate_until(self, requests: list[Any]) -> list[str]:
        return [self.answers[request.task_name][request.doc_id] for request in requests]

    def loglikelihood(self, requests: list[Any]) -> Any:
        raise NotImplementedError

    def generate_until_multi_round(self, requests: list[Any]) -> Any:
        raise NotImplementedError


def scores(answers: Mapping[str, list[str]], manager: TaskManager) -> dict[str, dict[str, float]]:
    """Every number that lmms-eval's result has for each task, without its errors of estimate."""
    result = simple_evaluate(model=GivenAnswers(answers), tasks=list(answers), task_manager=manager, bootstrap_iters=0)
    numbers = {}
    for name, given in answers.items():
        n = len(result["samples"][name])
        if n != len(given):
            raise ValueError(f"{name}: {len(given)} answers for {n} questions")
        found = {key: value for key, value in result["results"][name].items() if "," in key and "_stderr" not in key}
        # upstream leaves what it cannot add up as it is: VizWiz's entries for a submission, which no list names
        numbers[name] = {
            key: float(value) for key, value in found.items() if isinstance(value, int | float | np.number)
        }
    return numbers


def scored(answers: Mapping[str, list[str]], manager: TaskManager) -> dict[str, dict[str, float]]:
    """As a command per task would score them: a task that draws random numbers is evaluated alone, after its seed."""
    alone = [{name: answers[name]} for name in ALONE if name in answers]
    together = {name: given for name, given in answers.items() if name not in ALONE}
    found: dict[str, dict[str, float]] = {}
    for part in (*alone, together):
        if part:
            found |= scores(part, manager)
    return found


def main(answers: Path, results: Path) -> int:
    sets = json.loads(answers.read_text())
    manager = TaskManager()
    done = {}
    for label, tasks in sets.items():
        with tempfile.NamedTemporaryFile("r", suffix=".json") as kept:
            child = os.fork()
            if child == 0:
                try:
                    Path(kept.name).write_text(json.dumps(scored(tasks, manager)))
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            if os.waitpid(child, 0)[1]:
                return 1
            done[label] = json.loads(kept.read())
    results.write_text(json.dumps(done, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:3])))
