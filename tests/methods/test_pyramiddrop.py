"""PyramidDrop: stages by the coming layer's last row, halves before a budget, and a floor that layers set."""

from __future__ import annotations

from math import exp

import pytest
from by_hand import best
from decoder_by_hand import kept_by_layer, projected, start, through

from harness.core.budget import cost, parse
from harness.core.errors import PrunebenchError
from harness.core.shape import SHAPES
from harness.method import build, method_class
from harness.method.about import about
from harness.proof.conformance.kit import one_thread

S7 = SHAPES["llava-1.5-7b"]


def by_hand(counts: dict[int, int]) -> dict[int, list[int]]:
    """The tokens that stay from each of these layers on."""
    found, entering = {0: start().visual}, start()
    for number in range(max(counts) + 1):
        if number in counts:
            keys, query = projected(number, entering, "k_proj"), projected(number, entering, "q_proj")[-1]
            scores = [0.0] * len(entering.visual)
            group = len(query) // len(keys[0])
            for head, q in enumerate(query):
                logits = [float(q @ key[head // group]) / len(q) ** 0.5 for key in keys]
                weights = [exp(x - max(logits)) for x in logits]
                for i in range(len(scores)):
                    scores[i] += weights[entering.first + i] / sum(weights) / len(query)
            keep = sorted(entering.visual[i] for i in best(scores, counts[number]))
            found[number] = keep
            entering = entering.only(keep, renumbered=True)
        entering = through(number, entering)
    return found


@pytest.mark.parametrize(
    ("asked", "knobs", "counts"),
    [
        ("native", {}, {3: 288, 6: 144, 9: 72}),
        ("30", {}, {3: 120, 6: 60, 9: 30}),
        (None, {"layers": (2, 5), "ratios": (0.333, 0.111)}, {2: 191, 5: 63}),
    ],
)
def test_a_mini_sample_by_hand(asked: str | None, knobs: dict, counts: dict[int, int]) -> None:
    with one_thread():
        assert kept_by_layer("pyramiddrop", asked, **knobs) == by_hand(counts)


def test_native_is_the_released_schedule() -> None:
    method = build("pyramiddrop", parse("native"), {}, S7)
    assert method.knobs() == {"keep": None, "ratios": (0.5, 0.25, 0.125), "layers": (8, 16, 24)}
    plan = method.plan(S7)
    assert plan == [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8
    assert cost(plan, S7).mean_visual == 270


@pytest.mark.parametrize(("keep", "counts"), [(64, (256, 128, 64)), (192, (576, 384, 192)), (1, (4, 2, 1))])
def test_each_stage_keeps_twice_as_many_as_the_next(keep: int, counts: tuple[int, ...]) -> None:
    plan = build("pyramiddrop", parse(keep), {}, S7).plan(S7)
    assert plan is not None
    assert tuple(plan[layer] for layer in (8, 16, 24)) == counts


def test_a_share_is_of_each_prompts_own() -> None:
    plan = build("pyramiddrop", parse("12.5%"), {}, S7).plan(S7)
    assert plan == build("pyramiddrop", parse("native"), {}, S7).plan(S7)


def test_means_and_flops_are_solved() -> None:
    for asked, found in (("192avg", "mean_visual"), ("270avg", "mean_visual"), ("0.4flops", "ratio")):
        method = build("pyramiddrop", parse(asked), {}, S7.with_text(74))
        plan = method.plan(S7.with_text(74))
        assert plan is not None
        got = cost(plan, S7.with_text(74), method.plan_scoring(S7.with_text(74), plan) or 0)
        want = {"192avg": 192, "270avg": 270, "0.4flops": 0.4}[asked]
        assert getattr(got, found) == pytest.approx(want, rel=0.005)
    assert build("pyramiddrop", parse("270avg"), {}, S7).plan(S7) == build("pyramiddrop", parse("72"), {}, S7).plan(S7)


def test_the_floor_of_the_official_layers_is_said() -> None:
    with pytest.raises(
        PrunebenchError,
        match=r"pyramiddrop with layers=\(8, 16, 24\) cannot average 128 of 576 tokens: its floor is 144.0 \(8 of 32"
        r" layers see all 576\); .*, or earlier layers$",
    ):
        build("pyramiddrop", parse("128avg"), {}, S7)
    plan = build("pyramiddrop", parse("128avg"), {"layers": "2,10,20"}, S7).plan(S7)
    assert plan is not None
    assert cost(plan, S7).mean_visual == pytest.approx(128, abs=0.5)


@pytest.mark.parametrize(
    ("asked", "knobs", "says"),
    [
        (None, {"ratios": "0.5,0.6,0.1"}, "expected ratios that do not grow, .* found 0.5,0.6,0.1"),
        (None, {"ratios": "0.5,0.25"}, "expected a ratio for each of the 3 layers 8,16,24, found 2"),
        (None, {"ratios": "0.5", "layers": "33"}, "expected a stage in layers 1 to 31"),
        ("64", {"layers": "0,8"}, "expected ascending layers from 1"),
        ("native", {"ratios": "0.5,0.25,0.1"}, "not both"),
    ],
)
def test_what_is_refused(asked: str | None, knobs: dict, says: str) -> None:
    with pytest.raises(PrunebenchError, match=says):
        build("pyramiddrop", parse(asked), knobs, S7)


def test_its_card_names_the_rows_that_it_reads() -> None:
    assert about(method_class("pyramiddrop")).beside == "attention rows of the decoder"
    assert about(method_class("v2drop")).beside == "nothing"
