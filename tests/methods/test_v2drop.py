"""V2Drop: tokens that change most stay, a count before the withdrawal, and none leaves at a budget of all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from by_hand import best
from decoder_by_hand import kept_by_layer, start, through

from harness.core.budget import cost, parse
from harness.core.errors import PrunebenchError
from harness.core.shape import SHAPES
from harness.method import build
from harness.models.adapters import adapter_for
from harness.proof.conformance.kit import one_thread
from harness.proof.conformance.tiny import PROMPTS, ask, tiny_model
from methods.v2drop import V2Drop

S7 = SHAPES["llava-1.5-7b"]


def by_hand(counts: dict[int, int]) -> dict[int, list[int]]:
    """The tokens that stay from each of these layers on."""
    found, entering, before = {0: start().visual}, start(), start()
    for number in range(max(counts) + 1):
        if number in counts:
            first, n = entering.first, len(entering.visual)
            gaps = (entering.hidden[first : first + n] - before.hidden[first : first + n]).double()
            change = [sum(float(x) ** 2 for x in row) ** 0.5 for row in gaps.tolist()]
            keep = sorted(entering.visual[i] for i in best(change, counts[number]))
            found[number] = keep
            entering = entering.only(keep, renumbered=False)
        before, entering = entering, through(number, entering)
    return found


@pytest.mark.parametrize(
    ("asked", "knobs", "counts"),
    [
        ("native", {}, {1: 288, 6: 144, 8: 1}),
        ("64", {}, {1: 192, 6: 64, 8: 1}),
        (None, {"layers": (2, 3), "ratios": (0.3, 0.5)}, {2: 172, 3: 86}),
    ],
)
def test_a_mini_sample_by_hand(asked: str | None, knobs: dict, counts: dict[int, int]) -> None:
    with one_thread():
        assert kept_by_layer("v2drop", asked, **knobs) == by_hand(counts)


def test_native_is_the_released_schedule() -> None:
    method = build("v2drop", parse("native"), {}, S7)
    assert method.knobs() == {"keep": None, "ratios": (0.5, 0.5, 0.0), "layers": (3, 17, 22)}
    plan = method.plan(S7)
    assert plan == [576] * 3 + [288] * 14 + [144] * 5 + [1] * 10
    assert cost(plan, S7).mean_visual == pytest.approx(202.8125)


def test_the_papers_schedule_is_a_knob() -> None:
    plan = build("v2drop", parse(None), {"ratios": "0.5,0.3,0"}, S7).plan(S7)
    assert plan is not None
    assert cost(plan, S7).mean_visual == pytest.approx(193.75)


@pytest.mark.parametrize(
    ("keep", "counts"), [(64, (192, 64, 1)), (144, (288, 144, 1)), (1, (24, 1, 1)), (575, (575, 575, 1))]
)
def test_a_budget_is_the_count_before_the_withdrawal(keep: int, counts: tuple[int, ...]) -> None:
    plan = build("v2drop", parse(keep), {}, S7).plan(S7)
    assert plan is not None
    assert tuple(plan[layer] for layer in (3, 17, 22)) == counts


def test_a_budget_of_all_tokens_withdraws_none() -> None:
    assert build("v2drop", parse("100%"), {}, S7).plan(S7) == [576] * 32


@pytest.mark.parametrize(("method", "kept"), [(V2Drop(keep=9), 9), (V2Drop(ratios=(0.5, 0.5, 0.0)), 16)])
def test_tables_count_before_the_withdrawal(method: V2Drop, kept: int) -> None:
    with one_thread():
        trace = ask(tiny_model(), method.for_model(adapter_for(tiny_model()).shape), PROMPTS, steps=0).run.trace
    assert [trace.kept(row) for row in range(len(PROMPTS))] == [kept] * len(PROMPTS)
    assert trace.layers[-1].visual == [1] * len(PROMPTS)


def test_means_are_solved() -> None:
    method = build("v2drop", parse("192avg"), {}, S7)
    plan = method.plan(S7)
    assert plan is not None
    assert cost(plan, S7).mean_visual == pytest.approx(192, abs=0.5)
    with pytest.raises(PrunebenchError, match=r"layers=\(3, 17, 22\) cannot average 60 of 576 tokens: .* reaches 65"):
        build("v2drop", parse("60avg"), {}, S7)


@pytest.mark.parametrize(
    ("asked", "knobs", "says"),
    [
        ("64", {"ratios": "0.5,0.5,0"}, "ratios, not both"),
        ("64", {"layers": "3"}, "expected a layer before the last one, the withdrawal, in layers 1 to 31"),
        ("64", {"layers": "40,41"}, "expected a stage in layers 1 to 31"),
        ("64", {"layers": "0,3"}, "expected ascending layers from 1 in layers, found 0,3"),
        ("64", {"layers": "9,3"}, "expected ascending layers from 1 in layers, found 9,3"),
        (None, {"ratios": "0.5"}, "expected a ratio for each of the 3 layers 3,17,22, found 1: 0.5"),
        (None, {"ratios": "0.5,2,0"}, "expected ratios from 0 to 1, found 0.5,2,0"),
        ("calibrated", {}, "nothing to calibrate"),
    ],
)
def test_what_is_refused(asked: str | None, knobs: dict, says: str) -> None:
    with pytest.raises(PrunebenchError, match=says):
        build("v2drop", parse(asked), knobs, S7)


def test_one_of_keep_and_ratios() -> None:
    with pytest.raises(PrunebenchError, match=r"expected exactly one of keep .* and ratios .*, found neither"):
        V2Drop().for_model(S7.decoder)


def test_stages_that_fall_together_take_the_next_layer() -> None:
    assert V2Drop(keep=4).for_model(replace(S7.decoder, depth=5)).layers == (1, 3, 4)
    with pytest.raises(PrunebenchError, match="it has 1 decoder layers"):
        V2Drop(keep=4).for_model(replace(S7.decoder, depth=1))
