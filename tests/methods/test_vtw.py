"""VTW: full layers before K, text alone from K on; budgets are means and shares, for no number of tokens stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from decoder_in_float64 import Seen, engine, walk

from harness.core.budget import parse
from harness.core.errors import PrunebenchError
from harness.core.shape import SHAPES
from harness.method import build
from methods.vtw import VTW, first_within

S7, S13 = SHAPES["llava-1.5-7b"], SHAPES["llava-1.5-13b"]


@pytest.mark.parametrize("renumber", [False, True])
def test_a_mini_sample_by_hand(renumber: bool) -> None:
    def leaving(seen: Seen) -> list[int]:
        return seen.visual if seen.layer == 4 else []

    want, got = walk(leaving, renumber), engine(VTW(5, renumber))
    assert got.entering == want.entering
    assert [len(tokens) for tokens in got.entering] == [576] * 5 + [0] * 7
    assert np.abs(got.logits - want.logits).max() < 1e-3
    for other in (VTW(4, renumber), VTW(6, renumber), VTW(5, not renumber)):
        assert np.abs(engine(other).logits - want.logits).max() > 1e-2


@pytest.mark.parametrize(("prompt", "layer"), [(S7, 15), (S13, 19)])
def test_native_is_layer_15_of_32(prompt: Any, layer: int) -> None:
    method = build("vtw", parse("native"), {}, prompt)
    assert method.knobs() == {"layer": layer, "renumber": False}
    assert method.plan(prompt) == [576] * layer + [0] * (prompt.depth - layer)


@pytest.mark.parametrize(
    ("budget", "layer"),
    [("270avg", 15), ("192avg", 11), ("18avg", 1), ("558avg", 31), ("9.1%avg", 3), ("0.5flops", 14)],
)
def test_means_and_shares_choose_the_nearest_layer(budget: str, layer: int) -> None:
    assert build("vtw", parse(budget), {}, S7.with_text(74)).knobs()["layer"] == layer


def test_a_tie_goes_to_the_smaller_layer() -> None:
    assert build("vtw", parse("27avg"), {}, S7).knobs()["layer"] == 1


@pytest.mark.parametrize(
    ("budget", "knobs", "says"),
    [
        ("64", {}, r"^vtw withdraws all visual tokens, so none stays and .*64.* means nothing: give .*native.*, calib"),
        ("25%", {}, r"^vtw withdraws all visual tokens, so none stays and .*0.25kept.* means nothing"),
        (None, {}, r"^vtw needs a budget, as in .*native'?$"),
        ("native", {"layer": 3}, r"^vtw: knob 'layer' is what the budget sets"),
        (None, {"layer": 0}, r"^vtw: layer=0 does not fit this model: expected 1 to 31"),
        (None, {"layer": 32}, r"^vtw: layer=32 does not fit this model: expected 1 to 31"),
        ("17avg", {}, r"^vtw cannot average 17 of 576 tokens: with layer=1 to 31 it reaches 18.0 to 558.0: give"),
        ("0.01flops", {}, r"^vtw cannot cost 0.01 of the unpruned FLOPs: with layer=1 to 31 it reaches"),
    ],
)
def test_refusals_are_one_line_that_says_what_works(budget: str | None, knobs: dict[str, Any], says: str) -> None:
    with pytest.raises(PrunebenchError, match=says) as refused:
        build("vtw", parse(budget), knobs, S7.with_text(74))
    assert "\n" not in str(refused.value)


def test_the_first_layer_within_the_bound_counts() -> None:
    means = [0.9, 0.2, 0.5, 0.3, 0.1]
    assert first_within(means, 0.2) == 6
    assert first_within(means, 0.15) == 9
    assert first_within(means, 0.05) is None
