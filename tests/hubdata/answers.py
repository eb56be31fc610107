"""Answers to the fixtures in several ways, and lmms-eval's own scores of them, from a process of their own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hubdata import HUB_TASKS

Answers = Mapping[str, Sequence[str]]  # task -> an answer per question
Scores = Mapping[str, Mapping[str, float]]  # task -> lmms-eval's "metric,filter" -> value

#: odd shapes of a right answer, and answers that say nothing
ODD = ("{}.", "", "({})", "?!", "{}. because of the hut", "the", " {}\n", "A.", "{lower}", "[0.1, 0.1, 0.6, 0.5]")
SEED = 7


def mixed(name: str) -> list[str]:
    """Right, wrong, and right within a sentence, in turn."""
    made = HUB_TASKS[name]
    ways = [lambda right, _: right, lambda _, wrong: wrong, lambda right, _: f"The answer is {right}."]
    return [ways[i % 3](right, wrong) for i, (right, wrong) in enumerate(zip(made.right, made.wrong, strict=True))]


def spoiled(name: str) -> list[str]:
    """`mixed` with one of its right answers, drawn by a seed, made wrong."""
    answers, wrong = mixed(name), HUB_TASKS[name].wrong
    drawn = random.Random(SEED).choice(range(0, len(answers), 3))
    answers[drawn] = wrong[drawn]
    return answers


def odd(name: str) -> list[str]:
    return [ODD[i % len(ODD)].format(right, lower=right.lower()) for i, right in enumerate(HUB_TASKS[name].right)]


WAYS = {"right": lambda name: list(HUB_TASKS[name].right), "mixed": mixed, "odd": odd, "spoiled": spoiled}


def given(names: Sequence[str] = tuple(HUB_TASKS), ways: Sequence[str] = tuple(WAYS)) -> dict[str, dict[str, Any]]:
    """Way -> task -> answers."""
    return {way: {name: WAYS[way](name) for name in names} for way in ways}


def lmms_eval_scores(root: Path, scratch: Path, answers: Mapping[str, Answers]) -> Mapping[str, Scores]:
    """Way -> lmms-eval's own scores, with the data of `root`; `scratch` is an empty folder."""
    asked, found = scratch / "answers.json", scratch / "scores.json"
    asked.write_text(json.dumps(answers))
    # a cache of its own: a folder with the same README would read the rows of an earlier one
    ranks = {"RANK", "LOCAL_RANK", "WORLD_SIZE"}
    environment = {name: value for name, value in os.environ.items() if name not in ranks}
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(scratch / "home"),
        "HF_DATASETS_CACHE": str(scratch / "cache"),
    }
    script = Path(__file__).parents[1] / "reference_scores.py"
    done = subprocess.run(
        [sys.executable, script, asked, found], cwd=root, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"lmms-eval's own evaluation failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    scores: Mapping[str, Scores] = json.loads(found.read_text())
    return scores
