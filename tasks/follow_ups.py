"""Follow-up questions: the later questions about an image, each asked behind the image's first one and its answer.

The first question prunes, and the later one is answered from what it left. Both are questions of the task as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from harness.core.errors import PrunebenchError
from harness.core.spelling import given
from tasks.choice import is_ours
from tasks.lmms import LoadedTask, Openers, Sample, only, sha256
from tasks.sources import TASKS

#: tasks whose score is made of pairs of questions about an image, which a first question would break
_OF_PAIRS = ("mme",)


def check(words: Iterable[str]) -> None:
    """Raise PrunebenchError for the first word of a task whose questions cannot follow each other; reads no data."""
    able = [name for name in TASKS if name not in _OF_PAIRS]
    for word in words:
        if word in _OF_PAIRS:
            why = "its score counts pairs of questions, and a pair's first question is only asked in front"
        elif not is_ours(word):
            why = "it is a task by name, whose scoring takes all of its questions"
        else:
            continue
        raise PrunebenchError(
            f"task {word}: no follow-up questions: {why}: give {given('tasks', ','.join(able))} or some of them with"
            f" {given('follow_up', True)}"
        )


def follow_ups(task: LoadedTask) -> LoadedTask:
    """The questions about each image but its first one, in the order of the task. Raises PrunebenchError where no image
    has two."""
    first: dict[str, Sample] = {}
    later = []
    for sample in task.samples:
        opener = first.setdefault(sample.image_key, sample)
        if opener is not sample:
            later.append(sample)
    if not later:
        raise PrunebenchError(
            f"task {task.name}: expected several questions about an image, found {len(task.samples)} questions about"
            f" {len(first)} images: leave {given('follow_up')} out, or give a higher {given('limit')}"
        )
    name = sha256(b"follow-up", task.fingerprint.encode(), *(sample.key.encode() for sample in later))
    openers = Openers(task, {sample.key: first[sample.image_key] for sample in later})
    return replace(only(task, later, name), openers=openers)
