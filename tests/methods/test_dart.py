"""DART: pivots by the L1 norm of rotated keys, turns in the order of a set, and exactly the tokens of a budget."""

from __future__ import annotations

import random

import pytest
from by_hand import best
from decoder_by_hand import kept_by_layer, normed, projected, start, through

from harness.core.budget import parse
from harness.core.errors import PrunebenchError
from harness.core.shape import SHAPES
from harness.method import build
from harness.models.adapters import adapter_for
from harness.proof.conformance.kit import one_thread
from harness.proof.conformance.tiny import N_VISUAL, ask, prompt, tiny_model
from methods.dart import Dart

S7 = SHAPES["llava-1.5-7b"]


def in_a_set(positions: list[int]) -> list[int]:
    """The order in which a set of CPython holds up to 18 numbers below 2^31, from its table of slots."""

    def put(table: list[int | None], value: int) -> None:
        mask, perturb = len(table) - 1, value
        slot = value & mask
        while True:
            for probe in range(10 if slot + 9 <= mask else 1):  # nine neighbours, where all of them are in the table
                if table[slot + probe] is None:
                    table[slot + probe] = value
                    return
            perturb >>= 5
            slot = (slot * 5 + 1 + perturb) & mask

    table: list[int | None] = [None] * 8
    for n, value in enumerate(positions, 1):
        put(table, value)
        if n == 5:  # three fifths of 7 are passed
            table, old = [None] * 32, table
            for held in old:
                if held is not None:
                    put(table, held)
    return [value for value in table if value is not None]


def test_the_order_of_a_set_is_that_of_its_table() -> None:
    draw = random.Random(0)
    for _ in range(500):
        positions = draw.sample(range(3000), draw.randint(1, 18))
        assert list(set(positions)) == in_a_set(positions)
    assert in_a_set([610, 400, 354, 43, 611, 633, 629, 620]) == [610, 611, 354, 43, 620, 400, 629, 633]


def by_hand(layer: int, pivots: int, of_text: int, shares: list[int]) -> list[int]:
    """The tokens that stay: visual pivots, and `shares` of others in turn."""
    entering = start()
    for number in range(layer):
        keys = projected(number, entering, "k_proj")
        entering = through(number, entering)
    lengths = [sum(abs(float(x)) for x in key.flatten()) for key in keys]
    first, n = entering.first, len(entering.visual)
    own = best(lengths[first : first + n], pivots)
    text = best(lengths[first + n :], of_text)
    states = [row / row.norm() for row in normed(entering)]
    kept, taken = set(own), set(own)
    turns = in_a_set([first + j for j in own] + [first + n + j for j in text])
    for turn, share in zip(turns, shares, strict=True):
        left = [j for j in range(n) if j not in taken]
        unlike = best([-float(states[turn] @ states[first + j]) for j in left], share)
        taken |= {left[i] for i in unlike}
    return sorted(kept | taken)


@pytest.mark.parametrize(
    ("asked", "knobs", "expected"),
    [
        ("64", {}, (1, 4, 4, [8, 8, 8, 8, 7, 7, 7, 7])),
        ("native", {}, (1, 4, 4, [16] * 8)),
        (None, {"truncation": 50, "layer": 3, "visual_pivots": 2, "text_pivots": 5}, (3, 2, 5, [7] * 7)),
    ],
)
def test_a_mini_sample_by_hand(asked: str | None, knobs: dict, expected: tuple) -> None:
    with one_thread():
        got = kept_by_layer("dart", asked, **knobs)
        assert got[expected[0]] == by_hand(*expected)


def test_native_is_the_released_truncation() -> None:
    method = build("dart", parse("native"), {}, S7)
    assert (method.knobs()["truncation"], method.knobs()["layer"]) == (128, 2)
    assert method.plan(S7) == [576] * 2 + [132] * 30


@pytest.mark.parametrize(
    ("knobs", "kept"),
    [
        ({"truncation": 128}, 132),
        ({"truncation": 192}, 196),
        ({"truncation": 100}, 100),
        ({"truncation": 7}, 4),
        ({"reduction_ratio": 0.778}, 124),
        ({"truncation": 320}, 324),
        ({"truncation": 900}, 576),
        ({"truncation": 64, "visual_pivots": 2, "text_pivots": 3}, 62),
    ],
)
def test_what_the_official_parameters_keep(knobs: dict, kept: int) -> None:
    plan = build("dart", parse(None), knobs, S7).plan(S7)
    assert plan is not None
    assert plan[-1] == kept


@pytest.mark.parametrize("keep", [1, 3, 4, 5, 11, 12, 13, 63, N_VISUAL])
@pytest.mark.parametrize("n_after", [1, 3, 12])
def test_a_budget_is_met_exactly_with_few_text_tokens(keep: int, n_after: int) -> None:
    method = Dart(keep=keep).for_model(adapter_for(tiny_model()).shape)
    with one_thread():
        run = ask(tiny_model(), method, (prompt(3, n_after), prompt(4, 9)), steps=0).run
    assert run.trace.layers[-1].visual == [keep, keep]
    picks = [int(turn[0].sum()) for turn in run.memo["picks"]]
    own, turns = min(4, keep), 4 + min(4, n_after)
    assert sum(picks) == keep - own
    assert picks[turns:] == [0] * (8 - turns), "pivots that are not there take nothing"
    assert max(picks[:turns]) - min(picks[:turns]) <= 1
    assert picks[:turns] == sorted(picks[:turns], reverse=True), "the first in turn take one more"


def test_the_same_pivots_elsewhere_in_the_prompt_take_other_tokens() -> None:
    """The order of turns is that of positions: the same method with turns by norm keeps others."""

    class Given(Dart):
        def _turns(self, prompt, found, seen):  # type: ignore[no-untyped-def]
            pivots, takes, own = super()._turns(prompt, found, seen)
            return pivots[::-1], takes, own

    shape = adapter_for(tiny_model()).shape
    with one_thread():
        kept = [
            ask(tiny_model(), cls(keep=20).for_model(shape), (prompt(7, 9),), steps=0).origins[-1][0]
            for cls in (Dart, Given)
        ]
    assert kept[0] != kept[1]


@pytest.mark.parametrize(
    ("asked", "knobs", "says"),
    [
        ("64", {"truncation": "128"}, "not both"),
        (None, {"truncation": "-1"}, "expected truncation >= 0, found -1"),
        (None, {"reduction_ratio": "1.5"}, "expected reduction_ratio from 0 to 1, found 1.5"),
        (None, {"reduction_ratio": "0.5", "truncation": "9"}, "expected one of keep, truncation and reduction_ratio"),
        ("64", {"visual_pivots": "0"}, "expected visual_pivots >= 1, found 0"),
        ("64", {"text_pivots": "-1"}, "expected text_pivots >= 0, found -1"),
        ("64", {"layer": "0"}, "layer=0 does not fit this model: expected 1 to 31"),
        ("30avg", {}, "dart with layer=2, visual_pivots=4, text_pivots=4 cannot average 30 of 576 tokens"),
    ],
)
def test_what_is_refused(asked: str | None, knobs: dict, says: str) -> None:
    with pytest.raises(PrunebenchError, match=says):
        build("dart", parse(asked), knobs, S7)
