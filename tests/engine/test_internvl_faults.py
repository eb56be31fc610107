"""Mistakes that InternVL invites, seeded one by one: each is caught by the tests of this family."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import internvls
import pytest
import test_internvl as held
from families import picture
from internvls import ROWS

from harness.core.errors import PrunebenchError
from harness.models.load import LoadedModel, locate_model
from harness.proof.faults import Fault, seeded

ADAPTER = "harness.models.adapters.internvl"
OWN = f"{ADAPTER}:InternVLAdapter"


class Mistake(NamedTuple):
    """A piece of a function, what it becomes, and the test that sees it."""

    where: str
    old: str
    new: str
    check: Callable[..., Any]


looks = partial(held.test_looks_stand_in_the_order_of_visual_tokens, "qwen2", "generate", False)


def prompt(loaded: LoadedModel) -> None:
    """A prompt and its pixels are those of the processor."""
    image = picture(160, 80)
    theirs = loaded.processor(images=image, text=loaded.template.replace("{text}", "Is it?"), return_tensors="pt")
    loaded._prompts.clear()
    loaded._images.clear()
    assert loaded.prompt_ids("Is it?", ((80, 160),)) == theirs["input_ids"][0].tolist()


MISTAKES = {
    "patches column by column": Mistake(
        f"{ADAPTER}:joined", ".mean((-3, -1))", ".mean((-3, -1)).transpose(-1, -2)", looks
    ),
    "rows of patches that lie apart": Mistake(
        f"{ADAPTER}:joined", "side, JOINED, side, JOINED)", "JOINED, side, side, JOINED)", looks
    ),
    "[CLS] of the first tile": Mistake(
        f"{OWN}.per_image",
        "image[-1:]",
        "image[:1]",
        partial(held.test_looks_stand_in_the_order_of_visual_tokens, "qwen2", "features", False),
    ),
    "[CLS] of the first tile in generate": Mistake(f"{OWN}.by_image", "parts[-1] if", "parts[0] if", looks),
    "tiles of a batch as one image": Mistake(f"{OWN}.per_tile", "[1] * len(values) if", "[len(values)] if", looks),
    "queries and keys ahead of their norms": Mistake(
        f"{OWN}.tower_attention",
        "attention.q_norm, attention.k_norm",
        "attention.q_proj, attention.k_proj",
        partial(held.test_looks_stand_in_the_order_of_visual_tokens, "llama", "generate", False),
    ),
    "images from the last to the first": Mistake(
        f"{OWN}.outputs", "for image in images", "for image in images[::-1]", held.test_features_made_once_are_the_same
    ),
    "tiles of an image the last first": Mistake(
        f"{OWN}.encode", "image.flatten(0, 1)", "image.flip(0).flatten(0, 1)", held.test_features_made_once_are_the_same
    ),
    "without the whole image": Mistake(f"{ADAPTER}:with_whole", "tiles + (tiles > 1)", "tiles", prompt),
    "a whole image beside one tile": Mistake(
        f"{ADAPTER}:tiles_at", "return with_whole(columns * rows)", "return columns * rows + 2", prompt
    ),
    "nothing around an image": Mistake(
        f"{OWN}.placeholders",
        "[processor.start_image_token_id, *[token] * image.tokens, processor.end_image_token_id]",
        "[token] * image.tokens",
        prompt,
    ),
    "the images of a prompt as one": Mistake(
        f"{ADAPTER}:_rows",
        "len(list(run)) for marks in visual.tolist() for marked, run in groupby(marks) if marked",
        "sum(marks) for marks in visual.tolist()",
        partial(held.test_unpruned_is_the_bare_model, "qwen2", ROWS[1:2]),
    ),
    "patches as they came cost the projector": Mistake(
        f"{OWN}.shape_of_tiles",
        "merge=JOINED**2,",
        "merge=1,",
        partial(held.test_tower_and_projector_cost_what_the_counter_counts, "qwen2", (1,)),
    ),
    "decode a place too early": Mistake(
        "harness.engine.run:EngineRun._decode_inputs",
        "last.positions[:, -1:] + step",
        "last.positions[:, -1:] - 1 + step",
        partial(held.test_unpruned_is_the_bare_model, "qwen2", ROWS[1:2]),
    ),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder: Path = tmp_path_factory.mktemp("faults") / "m"
    return locate_model(str(internvls.folder(folder)), "cpu").load()


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_caught(name: str, loaded: LoadedModel) -> None:
    where, old, new, check = MISTAKES[name]
    given = (loaded,) if check is prompt else ()
    check(*given)
    with (
        seeded(Fault(name, where, old, new, "none")),
        pytest.raises((AssertionError, PrunebenchError, RuntimeError)),
    ):
        check(*given)
