"""What a task's own images and questions are to a model, before anything runs: its mean prompt, and whether a number of
tokens is there to be kept in every prompt.

All of it is of images as they are: a method that shrinks pictures keeps a share of these tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.core.errors import PrunebenchError
from harness.core.shape import Grid, ImageShape, PromptShape, Size
from harness.core.spelling import given
from harness.method import Method, PictureError
from harness.models.load import Located
from harness.models.prompt import PROBED, Prompter, Sizes

if TYPE_CHECKING:
    from tasks.lmms import LoadedTask, Sample


def sizes_of(located: Located, task: LoadedTask, sample: Sample) -> Sizes:
    """(height, width) of each of a sample's images as its file has it; `PROBED` for a model to which they say
    nothing."""
    if located.one_size:
        return (PROBED,) * len(sample.images)
    return tuple(task.sizes[image.key] for image in sample.images)


def visual_tokens(located: Located, task: LoadedTask) -> list[int]:
    """Visual tokens of each of a task's prompts, of images whose sizes are read and whose pixels are not."""
    images_at = located.prompter.images_at
    return [sum(image.tokens for image in images_at(sizes_of(located, task, sample))) for sample in task.samples]


def mean_text(located: Located, task: LoadedTask) -> int:
    """Mean text length of a task's prompts in tokens, to the nearest whole one."""
    prompter = located.prompter
    texts = []
    for sample in task.samples:
        ids = prompter.prompt_ids(sample.content, sizes_of(located, task, sample))
        texts.append(len(ids) - ids.count(prompter.image_token_id))
    return round(sum(texts) / len(texts))


def alike(located: Located, task: LoadedTask) -> bool:
    """Has every prompt of the task the same visual tokens, those of one image of a model with one size?"""
    return located.one_size and all(len(sample.images) == 1 for sample in task.samples)


def several_images(prompter: Prompter, task: LoadedTask) -> str:
    """What a person should know, before a task runs, of its prompts of several images on a model that was trained on
    one; "" for nothing."""
    several = [len(sample.images) for sample in task.samples if len(sample.images) > 1]
    if not several or prompter.family.several_images:
        return ""
    return (
        f"{len(several)} of {len(task.samples)} prompts of {task.name} have several images, up to {max(several)}:"
        f" {prompter.family.title} was trained on prompts of one image, and runs them as transformers does"
    )


def mean_prompt(located: Located, task: LoadedTask) -> PromptShape:
    """A prompt of the task's mean visual tokens and mean text tokens, to the nearest whole ones: budgets in `avg` and
    `flops` are solved on it. Where prompts differ, its visual tokens are one row, for no one image has them."""
    usual = located.usual.with_text(mean_text(located, task))
    if alike(located, task):
        return usual
    counts = visual_tokens(located, task)
    row = Grid(1, round(sum(counts) / len(counts)))
    return replace(usual, images=(ImageShape((row,), usual.images[0].vision),), one_of_many=True)


def check_counts(method: Method, located: Located, task: LoadedTask) -> None:
    """Raise PrunebenchError where a method is to keep a number of visual tokens that a prompt of the task does not
    have."""
    if method.solves_budgets:  # no number of tokens decides
        return
    knobs = method.knobs()
    asked = [(name, knobs[name]) for name in method.budget_knobs if type(knobs.get(name)) is int]
    counts = visual_tokens(located, task)
    for name, number in asked:
        if number > min(counts):
            raise PrunebenchError(_too_many(method.name, name, number, task.name, counts, located.config.name))


def _too_many(method: str, knob: str, number: int, task: str, counts: Sequence[int], model: str) -> str:
    fewest, most = min(counts), max(counts)
    return (
        f"{method}: {knob}={number} visual tokens: expected at most {fewest}, the fewest of a prompt of {task} on"
        f" {model}, whose prompts have {fewest} to {most} (mean {sum(counts) / len(counts):.1f}): give a share of each"
        f" prompt's own ({given('budget', '0.25kept')}), {given('clamp', True)}, or a number up to {fewest}"
    )


def check_shares(method: Method, shares: bool, task: LoadedTask) -> None:
    """Raise PrunebenchError where a method that shrinks each picture is to keep a number of a prompt's tokens, and
    prompts have several pictures. `shares`: it is to keep a share, which each picture can."""
    several = sum(len(sample.images) > 1 for sample in task.samples)
    if several and not shares:
        raise PrunebenchError(
            f"{method.name}: expected a share of the tokens ({given('budget', '0.25kept')}) where prompts have several"
            f" images, for each image is shrunk by itself; found another budget, and {several} of"
            f" {len(task.samples)} prompts of {task.name} with several"
        )


def check_reach(method: Method, located: Located, task: LoadedTask) -> None:
    """Raise PrunebenchError where a method that shrinks pictures cannot shrink one of the task's as far as it is to,
    with what all of them can do."""
    prompter = located.prompter
    prompts = [[(task.sizes[image.key], len(sample.images)) for image in sample.images] for sample in task.samples]
    #: by size, and images of the prompt
    refused: dict[tuple[Size, int], PictureError] = {}
    for size, n_images in dict.fromkeys(picture for pictures in prompts for picture in pictures):
        try:
            prompter.shown(method, size, n_images)
        except PictureError as error:
            refused[size, n_images] = error
    if not refused:
        return
    share, worst = max((error.fewest / prompter.tokens_at(*one), one) for one, error in refused.items())
    n = sum(any(picture in refused for picture in pictures) for pictures in prompts)
    mend = ", as is a smaller min_pixels in the model's config" if prompter.family.joined else ""
    raise PrunebenchError(
        f"{refused[worst]} ({n} of {len(task.samples)} prompts of {task.name} on {located.config.name} are out of"
        f" reach; {math.ceil(100 * share)}% or more is in reach of all{mend})"
    )
