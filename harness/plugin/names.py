"""Names of tasks: lmms-eval's, those of the embedded models' data for its command line, and ours."""

from __future__ import annotations

from pathlib import PurePosixPath

from tasks.sources import TASKS

ENDINGS = {"_mini": "mini", "_mini_qwen": "mini-qwen"}
"""Of the names of tasks of the embedded models' data: a built-in task wins against an included one of the same name."""
SHIPPED = ("gqa", "mme", "pope", "textvqa")
"""Tasks that these data hold, by our names."""


def data_of(task: str) -> str | None:
    """The embedded model whose data a task of lmms-eval's command line reads; None for other tasks."""
    return next((data for ending, data in ENDINGS.items() if task in [name + ending for name in SHIPPED]), None)


def own(task: str) -> str:
    """The name under which a task of lmms-eval's command line is evaluated here: `textvqa` for textvqa_val,
    textvqa_mini and textvqa_mini_qwen. Samples are named by it, and random methods draw by the names of samples."""
    for ending in ENDINGS:
        if task in [name + ending for name in SHIPPED]:
            return task.removesuffix(ending)
    # the YAML files of these tasks are called as the tasks in them
    upstream = {PurePosixPath(TASKS[name].yaml).stem: name for name in SHIPPED}
    return upstream.get(task, task)
