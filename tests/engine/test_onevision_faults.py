"""Mistakes that LLaVA-OneVision invites, seeded one by one: each is caught by the tests of this family."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import onevisions
import pytest
import test_onevision as held

from harness.core.errors import PrunebenchError
from harness.models.adapters import LlavaOnevisionAdapter
from harness.models.load import LoadedModel, locate_model
from harness.models.published import published_config
from harness.proof.faults import Fault, seeded

ADAPTERS = "harness.models.adapters"
ONEVISION = f"{ADAPTERS}.llava_onevision"

Check = Callable[[LoadedModel], None]


def unpruned(*numbers: int) -> Check:
    return lambda loaded: held.test_none_is_the_bare_model_exactly(loaded, list(numbers))


def looks(number: int) -> Check:
    return lambda loaded: held.test_looks_stand_in_the_order_of_the_language_models_tokens(loaded, number)


def tokens(*numbers: int) -> Check:
    return lambda loaded: held.test_a_prompt_has_the_tokens_that_the_processor_gives_it(loaded, list(numbers))


def costs(*numbers: int) -> Check:
    return lambda loaded: held.test_tower_and_projector_cost_what_the_counter_counts(loaded, list(numbers))


def barely_larger(_loaded: LoadedModel) -> None:
    """Ten tiles of the published configuration, for nine: the processor leaves them as they are."""
    config = published_config("llava-onevision-qwen2-7b-ov")
    assert LlavaOnevisionAdapter.tokens_at(config, None, (768, 1920)) == 729 + 54 * 136


class Mistake(NamedTuple):
    """A piece of a function, what it becomes, and the test that sees it."""

    where: str
    old: str
    new: str
    check: Check


MISTAKES = {
    "a raster that is never shrunk": Mistake(
        f"{ADAPTERS}.anyres:raster_of", "if ratio <= SLACK:", "if ratio <= 100 * SLACK:", tokens(2)
    ),
    "shrunk as soon as it is larger": Mistake(
        f"{ADAPTERS}.anyres:raster_of", "if ratio <= SLACK:", "if ratio <= 1:", barely_larger
    ),
    "shrunk to rounded lengths": Mistake(
        f"{ADAPTERS}.anyres:raster_of", "int(grid.rows // ratio)", "round(grid.rows / ratio)", tokens(3)
    ),
    "tiles in the order of the tower": Mistake(
        f"{ADAPTERS}.tiles:Cutting.order", "patches.transpose(1, 2)", "patches", looks(2)
    ),
    "looks at the nearest patch": Mistake(
        f"{ADAPTERS}.anyres:resampled", 'mode="bilinear"', 'mode="nearest"', looks(2)
    ),
    "looks without a newline's place": Mistake(
        f"{ADAPTERS}.anyres:resampled", "pad(values, (0, 1))", "pad(values, (1, 0))", looks(1)
    ),
    "images of several cut like one": Mistake(
        f"{ONEVISION}:LlavaOnevisionAdapter.images",
        "(LlavaOnevisionAdapter if alone else UncutOnevision)",
        "LlavaOnevisionAdapter",
        unpruned(1, 2),
    ),
    "no newline behind an image that is not cut": Mistake(
        f"{ONEVISION}:UncutOnevision.shape_at", "(Grid(side, side), NEWLINE)", "(Grid(side, side),)", tokens(1, 2)
    ),
    "the overview is not charged": Mistake(
        f"{ONEVISION}:LlavaOnevisionAdapter.shape_at", "cut.tiles, resampled", "cut.tiles - 1, resampled", costs(3)
    ),
    "a newline for each image of a prompt's number": Mistake(
        f"{ONEVISION}:numbers_of",
        "[len(mine)] * bool(mine)",
        "[1] * len(mine)",
        lambda loaded: held.test_features_made_once_give_the_logits_of_pixels(loaded),
    ),
    "every image made as if it were alone": Mistake(
        f"{ONEVISION}:LlavaOnevisionAdapter.featured",
        "1 if alone_of(inputs)[image] else SEVERAL",
        "1",
        lambda loaded: held.test_features_made_once_give_the_logits_of_pixels(loaded),
    ),
    "features of one kind for both": Mistake(
        "harness.models.prompt:Prompter.way_of",
        '" of several"',
        '""',
        lambda loaded: held.test_answers_are_those_of_the_engine_on_the_processors_own_prompt(loaded, "none"),
    ),
    "decode at the number of tokens left": Mistake(
        "harness.engine.run:EngineRun._decode_inputs",
        "last.positions[:, -1:] + step",
        "last.positions[:, -1:] * 0 + layout.n - 1 + step",
        lambda loaded: held.test_pruned_prefill_and_decode_are_a_loop_over_the_kept_tokens(loaded, "random"),
    ),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return locate_model(str(onevisions.folder(tmp_path_factory.mktemp("onevision") / "m")), "cpu").load()


def fresh(loaded: LoadedModel) -> LoadedModel:
    """The model with nothing remembered of images."""
    return locate_model(loaded.config.path or "", "cpu").load()


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_caught(name: str, loaded: LoadedModel) -> None:
    where, old, new, check = MISTAKES[name]
    check(fresh(loaded))
    with (
        seeded(Fault(name, where, old, new, "none")),
        pytest.raises((AssertionError, PrunebenchError, RuntimeError, ValueError, pytest.fail.Exception)),
    ):
        check(fresh(loaded))
