"""Names of tasks: lmms-eval's, those of the mini data for its command line, and ours."""

from __future__ import annotations

from pathlib import PurePosixPath

from tasks.sources import TASKS

MINI = "_mini"
"""Ends the names of the tasks of the mini data: a built-in task wins against an included one of the same name."""
SHIPPED = ("gqa", "mme", "pope", "textvqa")
"""Tasks that the mini data hold, by our names."""


def is_mini(task: str) -> bool:
    """Whether a task of lmms-eval's command line is one of the mini data."""
    return task in [name + MINI for name in SHIPPED]


def own(task: str) -> str:
    """The name under which a task of lmms-eval's command line is evaluated here: `textvqa` for textvqa_val and
    textvqa_mini. Samples are named by it, and random methods draw by the names of samples."""
    if is_mini(task):
        return task.removesuffix(MINI)
    # the YAML files of these tasks are called as the tasks in them
    upstream = {PurePosixPath(TASKS[name].yaml).stem: name for name in SHIPPED}
    return upstream.get(task, task)
