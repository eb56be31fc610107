"""A setting with its data: the cell that it is, the questions, and where its numbers come from."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from harness.core import grids
from harness.core.budget import Budget
from harness.core.cell import Cell, processing_digest
from harness.core.errors import PrunebenchError
from harness.core.provenance import git_now, versions_now
from harness.method import Method, source_of
from harness.models.device import device_name, kernels
from harness.models.load import Located
from harness.models.pictures import pixels_key
from harness.models.prompt import PROBE, Content, Prompter, Sizes, check_prompts
from harness.models.second_turn import turn_ids
from harness.runner.pace import Pace
from harness.runner.session import Session
from harness.runner.setting import Setting
from harness.runner.sizes import sizes_of

if TYPE_CHECKING:
    from tasks.lmms import LoadedTask


@dataclass(frozen=True)
class Job:
    """What is run: a setting, its questions, and the cell that both make."""

    setting: Setting
    task: LoadedTask = field(repr=False)
    cell: Cell
    identity: str


def prepare(settings: Iterable[Setting], session: Session) -> list[Job]:
    """One job per setting, in order; several may be the same cell. Loads data and no weights; raises PrunebenchError
    where data are broken, or a question does not fit the model."""
    jobs = [_job(setting, session) for setting in settings]
    unlike = {}
    for one in jobs:
        located, pictures = one.setting.located, pixels_key(one.setting.method)
        unlike[id(located), one.task.name, one.task.fingerprint, "" if located.one_size else pictures] = one
    for job in unlike.values():
        check_prompts(job.setting.located.prompter, asked_of(job.setting, job.task), job.task.max_new_tokens)
        if job.task.openers:
            _check_dialogues(job)
    return jobs


def _check_dialogues(job: Job) -> None:
    """Raise PrunebenchError for a follow-up of several images, and where a dialogue does not fit the model."""
    prompter, task = job.setting.located.prompter, job.task
    for sample, (key, content, sizes) in zip(task.samples, asked_of(job.setting, task), strict=True):
        if len(sample.images) != 1:
            raise PrunebenchError(f"{key}: expected one image in a follow-up question, found {len(sample.images)}")
        turn = turn_ids(prompter, content, sample.prompt)
        prompter.asked(key, content, 2 * task.max_new_tokens + len(turn), sizes)


def _job(setting: Setting, session: Session) -> Job:
    task = session.task(setting.task, setting.source, setting.limit, bool(setting.asked.follow_up))
    values = setting_values(setting.located, setting.method, setting.budget, setting.positions, setting.seed)
    values["processing"] = processing_digest(_processing(setting.located.prompter, bool(setting.asked.follow_up)))
    cell = cell_with(values, task)
    return Job(setting, task, cell, cell.identity())


def asked_of(setting: Setting, task: LoadedTask) -> Iterator[tuple[str, Content, Sizes]]:
    """(key, content, sizes of images as the method shows them) of a task's questions, or of those in front of
    follow-ups."""
    prompter = setting.located.prompter
    for sample in task.samples:
        yield (
            sample.key,
            (task.openers.first[sample.key] if task.openers else sample).content,
            prompter.all_shown(setting.method, sizes_of(setting.located, task, sample)),
        )


def task_settings(task: LoadedTask) -> dict[str, Any]:
    """The open description that `Cell.task_settings` is a digest of; `sampling` only where the task asks for it.

    `follow_up`, only where questions are: what stands in front of each, and the same task asked afresh.
    """
    asked: dict[str, Any] = {}
    if task.sampling:
        asked["sampling"] = f"greedy, though the task asks for {task.sampling}"
    if task.openers:
        afresh = task.openers.afresh
        asked["follow_up"] = {
            "behind": "the first question about the image, and the answer as generated",
            "data_fingerprint": afresh.fingerprint,
            "n_samples": len(afresh.samples),
        }
    return {"stop_strings": list(task.until), **asked}


def _processing(prompter: Prompter, follow_up: bool) -> dict[str, Any]:
    """The open description that `Cell.processing` is a digest of; `turn_ids`, a probe's second turn, only for
    follow-ups."""
    if not follow_up:
        return dict(prompter.processing)
    return {**prompter.processing, "turn_ids": turn_ids(prompter, (None, PROBE), PROBE)}


def setting_values(located: Located, method: Method, budget: Budget, positions: str, seed: int) -> dict[str, Any]:
    """The fields of `Cell` that a model and a method decide, by name."""
    prompter = located.prompter
    return {
        "model": prompter.config.name,
        "model_fingerprint": prompter.fingerprint,
        "stands_for": prompter.config.stands_for,
        "method": method.name,
        "knobs": method.knobs(),
        "method_source": source_of(type(method)),
        "budget": str(budget),
        "processing": processing_digest(prompter.processing),
        "dtype": prompter.dtype,
        "device_type": prompter.device.type,
        "positions": positions,
        "seed": seed,
    }


def cell_with(values: Mapping[str, Any], task: LoadedTask) -> Cell:
    """The cell of `setting_values` on a task's questions."""
    return Cell(
        **values,
        task=task.name,
        data_fingerprint=task.fingerprint,
        n_samples=len(task.samples),
        task_settings=processing_digest(task_settings(task)),
        max_new_tokens=task.max_new_tokens,
    )


def provenance(setting: Setting, task: LoadedTask, pace: Pace) -> dict[str, Any]:
    """Where a cell's numbers come from: what was asked, and with what it is measured."""
    return {
        "request": setting.asked.to_dict(),
        **measured_with(setting.located, setting.method, pace),
        "processing": _processing(setting.located.prompter, bool(setting.asked.follow_up)),
        "task_settings": task_settings(task),
        "grids": _grids(setting, task),
    }


def measured_with(located: Located, method: Method, pace: Pace) -> dict[str, Any]:
    """What `provenance` says that no task decides."""
    prompter = located.prompter
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "batch_size": pace.batch,
        "prefix_sharing": pace.share,
        "device": device_name(prompter.device),
        "kernels": kernels(prompter.device),
        "versions": versions_now(),
        "python": platform.python_version(),
        **git_now(),
        "model_source": prompter.config.hub or prompter.config.name,
        "revision": prompter.revision,
        "processing": dict(prompter.processing),
        "decoder_layers": located.shape.depth,
        **({"unproven": family} if (family := located.unproven(method)) else {}),
    }


def _grids(setting: Setting, task: LoadedTask) -> Any:
    """The grids of the images' tokens, as harness/core/grids.py records them."""
    located, prompter, method = setting.located, setting.located.prompter, setting.method
    prompts = {sample.image_key: sample for sample in task.samples}
    return grids.recorded(
        {
            key: [
                image.views for image in prompter.images_at(prompter.all_shown(method, sizes_of(located, task, sample)))
            ]
            for key, sample in prompts.items()
        },
        located.one_size,
    )
