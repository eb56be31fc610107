"""The door for names of tasks: words that a person typed become tasks that can run, or one line that says why not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.core.errors import PrunebenchError
from harness.core.spelling import given
from tasks import named, refusals, repository
from tasks.sources import TASKS, DataSource


def is_ours(word: str) -> bool:
    """Whether it is one of the tasks with a specification here, whose rows, subsets and metrics are known."""
    return word in TASKS


def has_one_image(word: str) -> bool:
    """Whether each prompt of a task is known to show one image before any data are read, as those of our own are."""
    return is_ours(word)


def chosen(words: Sequence[str], include: str | None = None, judge: bool = False) -> tuple[str, ...]:
    """The words of single tasks, in order and once each: groups and tags as their members, `include` as its files.

    Raises PrunebenchError, before anything is read, for an unknown name and for a task that cannot run. `judge`: a
    service may score answers.
    """
    if include is None and all(map(is_ours, words)):
        return tuple(dict.fromkeys(words))
    for word in words:
        name, colon, metric = word.partition(":")
        if colon and is_ours(name):
            raise PrunebenchError(
                f"task {name}: its headline is {TASKS[name].headline}, and a cell holds all its metrics; found"
                f" {word!r}: give {name} alone, without {metric!r}"
            )
    found = named.expand(words, TASKS, None if include is None else Path(include).expanduser())
    refusals.check([named.find(word) for word in found if not is_ours(word)], judge)
    return found


def check_source(words: Sequence[str], source: DataSource) -> None:
    """Raise PrunebenchError where the data of an embedded model are asked for other tasks than theirs."""
    if not source.embedded:
        return
    for word in words:
        if not is_ours(word) and not repository.stands_alone(named.find(word)):
            raise PrunebenchError(
                f"task {word}: the {source.name} data hold {', '.join(TASKS)} only: give {given('data', 'hub')} or"
                f" {given('data', 'FOLDER')} with a copy of its data set"
            )


def name_of(word: str) -> str:
    """What cells and tables call the task of a word."""
    return word if is_ours(word) else named.find(word).name
