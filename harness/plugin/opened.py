"""A model and a method as `--model_args` names them, with the description of the run that the log carries."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from harness.core.asked import Asked
from harness.core.budget import Budget
from harness.core.cell import KEY_VERSION, NUMERICS_VERSION
from harness.core.errors import PrunebenchError
from harness.core.grids import in_words
from harness.core.shape import Size
from harness.method.build import from_anywhere
from harness.method.fits import shrinks_pictures
from harness.method.registry import method_class
from harness.models.device import pick_device
from harness.models.load import Located, locate_model
from harness.models.prompt import PROBED
from harness.runner.answering import Answerer, Prompt
from harness.runner.environment import environment
from harness.runner.jobs import measured_with, setting_values
from harness.runner.launch.launchers import check_alone
from harness.runner.pace import Pace
from harness.runner.running import info_of


@dataclass(frozen=True)
class Opened:
    """What answers, and where it comes from. `asked`: the words of the request, whose task stands for all of a run."""

    answerer: Answerer
    located: Located
    budget: Budget
    asked: Asked

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The fields of a cell that model and method decide."""
        method = self.answerer.method
        return setting_values(self.located, method, self.budget, self.asked.positions, self.asked.seed)

    @cached_property
    def run(self) -> dict[str, Any]:
        """The open description of a run, as JSON values."""
        located, method = self.located, self.answerer.method
        return {
            "key_version": KEY_VERSION,
            "numerics_version": NUMERICS_VERSION,
            "settings": self.settings,
            "request": {name: value for name, value in self.asked.to_dict().items() if name != "task"},
            "method_info": info_of(type(method)),
            "uses_seed": method.uses_seed,
            "shrinks_pictures": shrinks_pictures(method),
            "provenance": measured_with(located, method, Pace(self.answerer.batch_size, share=False)),
            "environment": environment(located.device),
            "one_size": located.one_size,
        }

    def check(self, prompts: Iterable[Prompt]) -> None:
        """Tokenise every prompt before the first is answered. Raises PrunebenchError naming the sample that the model
        cannot be asked."""
        prompter, method = self.located.prompter, self.answerer.method
        for prompt in prompts:
            sizes = prompter.all_shown(method, [image.size or PROBED for image in prompt.images])
            prompter.asked(prompt.key, prompt.content, prompt.max_new_tokens, sizes)

    def grids(self, sizes: Sequence[Size]) -> list[str]:
        """The grids of the tokens of a prompt's images of these (height, width), as harness/core/grids.py spells
        them."""
        prompter, method = self.located.prompter, self.answerer.method
        return [in_words(image.views) for image in prompter.images_at(prompter.all_shown(method, sizes))]


def opened(
    model: str,
    *,
    method: str,
    budget: Budget,
    knobs: Mapping[str, Any],
    device: str,
    dtype: str,
    batch_size: int,
    seed: int,
    positions: str,
    prompt: str | None,
    image: str | None,
    stands_for: str | None,
) -> Opened:
    """Load `model` and build `method` at `budget`, on the device of this rank. Raises PrunebenchError as `locate_model`
    and `Located.method` do."""
    place = device_of_rank(device)
    located = locate_model(model, place, dtype, prompt=prompt, image=image, stands_for=stands_for)
    knobs = from_anywhere(method_class(method), knobs)
    built = located.method(method, budget, knobs)
    request = Asked(
        method=method,
        budget=None if budget.unit == "none" else str(budget),
        model=model,
        task="",
        limit="all",
        knobs=knobs,
        seed=seed if built.uses_seed else 0,
        positions="method" if built.name == "none" else positions,
        data=None,
        device=located.device.type,
        dtype=None if dtype == "auto" else dtype,
        prompt=prompt or None,
        image=image or None,
        stands_for=stands_for or None,
    )
    answerer = Answerer(located.load(), built, batch_size=batch_size, seed=request.seed, positions=request.positions)
    return Opened(answerer, located, budget, request)


def ranks() -> tuple[int, int]:
    """(this rank, number of ranks) of the group that lmms-eval has joined; (0, 1) where it runs alone.

    Raises PrunebenchError where a launcher started several processes that lmms-eval does not know to be a group.
    """
    group = torch.distributed
    if group.is_available() and group.is_initialized():
        return group.get_rank(), group.get_world_size()
    check_alone("start lmms-eval with `torchrun --nproc_per_node 2 -m lmms_eval ...` or `accelerate launch`")
    return 0, 1


def device_of_rank(device: str) -> str:
    """The device of this rank: GPUs in turn where none was named by its number. Raises PrunebenchError where there are
    fewer GPUs than ranks, or where ranks of a GPU's group are to work on the CPU."""
    rank, n_ranks = ranks()
    target = pick_device(device)
    if n_ranks == 1:
        return str(target)
    if target.type == "cpu":
        if torch.distributed.get_backend() == "nccl":
            raise PrunebenchError(
                f"device: expected GPUs for a group of {n_ranks} ranks on nccl, found cpu: set ACCELERATE_USE_CPU=true"
            )
        return str(target)
    local = int(os.environ.get("LOCAL_RANK", rank))
    if target.index is not None:
        raise PrunebenchError(
            f"device: expected cuda without a number for {n_ranks} ranks, found {target}: every rank takes its own GPU"
        )
    if local >= torch.cuda.device_count():
        raise PrunebenchError(
            f"device: expected a GPU for each rank of this machine, found {torch.cuda.device_count()} and rank {local}:"
            " start as many ranks as there are GPUs"
        )
    return f"cuda:{local}"
