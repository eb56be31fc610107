"""Mistakes that tiles with text between them invite, seeded one by one: each is caught by the tests of the Idefics
families."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import test_idefics as held
from idefics import ROWS, processor

from harness.core.errors import PrunebenchError
from harness.models import adapters
from harness.models.adapters.idefics import Idefics3Adapter, SmolVLMAdapter
from harness.proof.faults import Fault, seeded

HERE = f"{adapters.__name__}.idefics"


def unpruned() -> None:
    held.test_unpruned_is_the_bare_model("idefics3", ROWS[1:2])


def shared(which: str) -> Callable[[], None]:
    """Prompts on an image of two rows of one tile, whose prefix ends before the fence."""
    return lambda: held.test_a_shared_prefix_changes_nothing("smolvlm", which, 4)


def spelt(name: str, cut: tuple[int, int]) -> None:
    """An image as the family's own processor spells it."""
    own, adapter = processor(name), {"idefics3": Idefics3Adapter, "smolvlm": SmolVLMAdapter}[name]
    run = own.image_token * own.image_seq_len
    image = adapter.shape_at(adapter.config_class(vision_config={"image_size": 56, "patch_size": 14}), cut)
    mine = run.join("".join(adapter.spelling(mark, own) for mark in marks) for marks in adapter.frame(image))
    assert mine == own.replace_image_token({"rows": [[cut[0]]], "cols": [[cut[1]]]}, 0)


def looks() -> None:
    held.test_looks_come_in_the_order_of_visual_tokens("idefics3")


def cost() -> None:
    held.test_the_towers_cost_is_the_counters("smolvlm", (1, 3))


class Mistake(NamedTuple):
    """A piece of a function, what it becomes, and the test that sees it."""

    where: str
    old: str
    new: str
    check: Callable[[], None]


MISTAKES = {
    "the overview counted as a row": Mistake(
        f"{HERE}_frames:_cut", "*tiles, overview = rows", "tiles, overview = rows, 1", unpruned
    ),
    "two images as one": Mistake(f"{HERE}_frames:_cuts", "fences > 1", "fences > 9", unpruned),
    "rows as columns": Mistake(f"{HERE}_frames:_cuts", "images[-1].append(1)", "images[-1][-1] += 1", unpruned),
    "the fence of the first gap": Mistake(
        f"{HERE}_frames:_runs", "parts[last + 1][1][0]", "parts[last + 1][1][-1]", unpruned
    ),
    "tiles without the overview": Mistake(
        f"{HERE}_sizes:image_shape", "tiles = cut[0] * cut[1] + 1", "tiles = max(1, cut[0] * cut[1])", unpruned
    ),
    "line breaks behind the first column": Mistake(
        f"{HERE}_frames:frame", "if row and not col", "if col and not row", lambda: spelt("idefics3", (3, 2))
    ),
    "the overview in front": Mistake(
        f"{HERE}_frames:frame",
        "[*found, (*((",
        "[(FENCE, OVERVIEW), *found] if rows else [*found, (*((",
        lambda: spelt("smolvlm", (2, 2)),
    ),
    "what goes with features is lost": Mistake(
        f"{HERE}:IdeficsAdapter.featured",
        "{} if cuts is None else {CUTS: cuts[image : image + 1]}",
        "{}",
        shared("fastv"),
    ),
    "patches in a row as a visual token": Mistake(
        f"{HERE}:IdeficsAdapter.per_image",
        "side, scale, side, scale).mean((-3, -1))",
        "side, side, scale, scale).mean((-2, -1))",
        looks,
    ),
    "padding counted as tiles": Mistake(f"{HERE}:_tiles_in", ".any(2).sum(1)", ".any(2).sum(1).add(1)", looks),
    "a projector of two matrices": Mistake(
        f"{HERE}_sizes:image_shape", "projector_hidden=0", "projector_hidden=config.text_config.hidden_size", cost
    ),
    "a [CLS] that is not there": Mistake(f"{HERE}_sizes:image_shape", "prefix=0", "prefix=1", cost),
    "decode at the number of tokens that are left": Mistake(
        "harness.engine.run:EngineRun._decode_inputs",
        "last.positions[:, -1:] + step",
        "last.positions[:, -1:] * 0 + layout.n - 1 + step",
        lambda: held.test_pruned_is_a_forward_over_the_kept_tokens("idefics3", 0, False),
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_caught(name: str) -> None:
    where, old, new, check = MISTAKES[name]
    check()
    with (
        seeded(Fault(name, where, old, new, "none")),
        pytest.raises((AssertionError, PrunebenchError, RuntimeError, ValueError, pytest.fail.Exception)),
    ):
        check()
