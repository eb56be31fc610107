"""Shapes of prompts, shares of their tokens, and budgets in shares: one number means the same on prompts of any
size."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tiny import GRID, IMAGE_TOKEN, prompts, tiny_llava

from harness.core.budget import NONE, Budget, amount, cost_of, parse
from harness.core.errors import PrunebenchError
from harness.core.shape import SHAPES, Grid, ImageShape, PromptShape, Share, quota
from harness.engine.attach import attach
from harness.method import build, registered, typed_knobs
from methods.fastv import FastV
from methods.sparsevlm import SparseVLM
from methods.visipruner import VisiPruner

ONE = SHAPES["llava-1.5-7b"]
TWO = replace(ONE, images=ONE.images * 2)


# -------------------------------------------------------------------------------------------------------------- a share


@pytest.mark.parametrize("ratio", [0, -0.1, 1.2, float("nan")])
def test_a_share_is_more_than_nothing_and_at_most_all(ratio: float) -> None:
    with pytest.raises(PrunebenchError, match=r"expected more than 0 and at most 1 \(100%\), found"):
        Share(ratio)


@pytest.mark.parametrize(
    ("keep", "n_visual", "tokens"),
    [
        (Share(0.25), 576, 144),
        (Share(0.25), 10, 3),  # 2.5: halves are rounded up
        (Share(0.25), 14, 4),  # 3.5
        (Share(0.25), 9, 2),  # 2.25
        (Share(0.005), 100, 1),  # 0.5
        (Share(1), 577, 577),
        (Share(1), 1, 1),
        (1, 576, 1),
        (64, 576, 64),
        (64, 10, 10),  # a prompt of fewer tokens keeps all
    ],
)
def test_quota_is_the_share_of_a_prompt_or_the_count(keep: int | Share, n_visual: int, tokens: int) -> None:
    assert quota(keep, n_visual) == tokens


def test_a_share_that_rounds_to_no_token_is_refused_with_one_that_does_not() -> None:
    with pytest.raises(
        PrunebenchError,
        match=r"budget 0\.004kept: expected at least one token, found a prompt of 100 visual tokens: give 0\.5%",
    ):
        quota(Share(0.004), 100)
    for n_visual in range(1, 3000):
        with pytest.raises(PrunebenchError) as error:
            quota(Share(0.49 / n_visual), n_visual)
        assert quota(amount(str(error.value).split("give ")[1].split(" or")[0]), n_visual) == 1


# ----------------------------------------------------------------------------------------------------------- its budget


@pytest.mark.parametrize(
    ("text", "budget", "written"),
    [
        ("0.25kept", Budget("kept", Share(0.25)), "0.25kept"),
        (".25kept", Budget("kept", Share(0.25)), "0.25kept"),
        ("25%", Budget("kept", Share(0.25)), "0.25kept"),
        ("25%kept", Budget("kept", Share(0.25)), "0.25kept"),
        ("33.3%", Budget("kept", Share(0.333)), "0.333kept"),
        ("0.002%", Budget("kept", Share(0.00002)), "0.00002kept"),
        ("100%", Budget("kept", Share(1.0)), "100%"),
        ("1.0kept", Budget("kept", Share(1.0)), "100%"),
        ("1kept", Budget("kept", 1), "1"),
        ("64kept", Budget("kept", 64), "64"),
        ("0.25avg", Budget("avg", Share(0.25)), "0.25avg"),
        ("50%avg", Budget("avg", Share(0.5)), "0.5avg"),
        ("100%avg", Budget("avg", Share(1.0)), "100%avg"),
        ("35%flops", Budget("flops", ratio=0.35), "0.35flops"),
    ],
)
def test_a_budget_in_shares_is_read_and_written_canonically(text: str, budget: Budget, written: str) -> None:
    assert parse(text) == budget
    assert str(budget) == written
    assert parse(written) == budget


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0%", "expected a share of a prompt's visual tokens above 0 and at most 1 (100%); found 0%"),
        ("120%", "above 0 and at most 1 (100%); found 120%"),
        ("-25%", "above 0 and at most 1 (100%); found -25%"),
        ("0.0kept", "above 0 and at most 1 (100%); found 0.0"),
        ("64.5kept", "above 0 and at most 1 (100%); found 64.5"),
        ("64.0avg", "above 0 and at most 1 (100%); found 64.0"),
        ("1.5avg", "above 0 and at most 1 (100%); found 1.5"),
        ("0.25", "is not a whole number of tokens (a share has a unit: 0.25kept)"),
        ("64.5", "is not a whole number of tokens"),
        ("0kept", "keeps no visual token"),
        ("25%%", "unknown unit '%'"),
        ("25%agv", "unknown unit 'agv'; did you mean 'avg'?"),
        ("120%flops", "above 0 and at most 1, as in 0.35flops; found 120%"),
    ],
)
def test_what_is_no_share_is_refused_in_words(text: str, says: str) -> None:
    with pytest.raises(PrunebenchError) as error:
        parse(text)
    assert says in str(error.value)
    assert f"budget {text!r}" in str(error.value)


# --------------------------------------------------------------------------------------------------- methods at a share


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, cls in registered().items()
        if cls.budget_knobs and not cls.traits.adaptive and isinstance(cls.usual_budget, int)
    ],
)
def test_a_share_is_a_share_of_each_prompt(name: str) -> None:
    method = build(name, parse("25%"), {}, ONE)
    plans = [method.plan(prompt.with_text(74)) for prompt in (ONE, TWO)] if name != "downsample" else []
    # a withdrawal that leaves one token comes behind the selection
    kept = [min(count for count in plan if count > 1) for plan in plans if plan]
    assert kept == ([] if name == "downsample" else [144, 288])
    counted = build(name, parse("144"), {}, ONE)
    assert counted.plan(ONE) == method.plan(ONE)


def test_all_is_all_of_each_prompt_and_a_count_at_most_that() -> None:
    for asked in ("100%", "576"):
        assert build("uniform", parse(asked), {}, ONE).plan(ONE) == [576] * 32
    assert build("uniform", parse("100%"), {}, ONE).plan(TWO) == [1152] * 32
    assert build("uniform", parse("576"), {}, ONE).plan(TWO) == [576] * 32
    assert build("uniform", parse("1000"), {}, TWO).plan(ONE) == [576] * 32


def test_the_engine_keeps_the_share_of_each_prompt_of_a_batch() -> None:
    model, given = tiny_llava(), prompts([20, 21], [22])
    image = [IMAGE_TOKEN] * GRID**2
    rows = [[1, 10, *image, 20, 21], [1, *image, 11, *image, 22]]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + r for r in rows])
    pixels = torch.cat([given["pixel_values"], given["pixel_values"][:1]])
    for name, kept in (("fastv", [4, 8]), ("uniform", [4, 8]), ("pooling", [4, 8])):
        method = build(
            name, parse("25%"), {}, PromptShape(ONE.decoder, (ImageShape((Grid(GRID, GRID),), ONE.images[0].vision),))
        )
        with attach(model, replace(method, boundary=1) if name == "fastv" else method) as run, torch.inference_mode():
            model(input_ids=ids, attention_mask=(ids != 0).long(), pixel_values=pixels)
        assert run.trace.layers[-1].visual == kept, name
        assert [prompt.n_visual for prompt in run.prompts] == [16, 32]
        assert run.quota(Share(0.25)).tolist() == [4, 8]
        assert run.quota(20).tolist() == [16, 20]


@pytest.mark.parametrize("text", ["0.25avg", "50%avg"])
def test_an_average_in_shares_is_solved_on_a_prompt_and_holds_for_others(text: str) -> None:
    budget = parse(text)
    method = build("fastv", budget, {}, ONE)
    assert isinstance(method.keep, Share)  # type: ignore[attr-defined]
    for prompt in (ONE, TWO):
        found = cost_of(method, prompt)
        assert found is not None
        assert found.mean_visual == pytest.approx(budget.asked(prompt.n_visual), abs=1)
    counted = build("fastv", Budget("avg", round(budget.asked(576))), {}, ONE)
    assert counted.plan(ONE) == method.plan(ONE)
    assert isinstance(counted.knobs()["keep"], int), "what was asked as a count stays one"
    with pytest.raises(
        PrunebenchError, match=r"fastv with boundary=2 cannot average 5\.76 of 576 tokens: its floor is 36\.0"
    ):
        build("fastv", parse("1%avg"), {}, ONE)


def test_knobs_hold_a_share_as_text_that_is_read_back() -> None:
    for cls in (FastV, SparseVLM, VisiPruner):
        name = cls.name
        method = build(name, parse("25%"), {}, ONE)
        assert method.knobs()["keep"] == "0.25kept"
        assert dict(typed_knobs(cls, method.knobs()))["keep"] == Share(0.25)
        assert build(name, NONE, method.knobs(), ONE) == method
        assert build(name, NONE, {"keep": "25%"}, ONE).knobs()["keep"] == "0.25kept"
    assert dict(typed_knobs(FastV, {"keep": "64"})) == {"keep": 64}
    for wrong, says in (
        ("64avg", "expected a number of visual tokens"),
        ("0.25", "which has a unit"),
        ("none", "knob keep='none' is not valid"),
    ):
        with pytest.raises(PrunebenchError, match=says):
            dict(typed_knobs(FastV, {"keep": wrong}))


# ---------------------------------------------------------------------------------------------------- shapes of prompts


def test_a_prompt_has_the_tokens_of_all_its_grids() -> None:
    vision = ONE.images[0].vision
    assert Grid(2, 3).tokens == 6
    assert Grid(2, 3, newline=True).tokens == 8
    tiled = ImageShape((Grid(24, 24), Grid(36, 48, newline=True)), vision)
    assert tiled.tokens == 576 + 36 * 49
    prompt = PromptShape(ONE.decoder, (tiled, ONE.images[0], tiled), n_text=5)
    assert prompt.n_visual == 2 * tiled.tokens + 576
    assert prompt.with_text(9) == replace(prompt, n_text=9)
    assert (prompt.with_text(9).n_visual, prompt.depth) == (prompt.n_visual, 32)
    assert PromptShape(ONE.decoder, ()).n_visual == 0
    assert [usual.n_visual for usual in SHAPES.values()] == [576, 576]


def test_a_layer_scales_with_the_depth_and_is_never_the_first() -> None:
    assert [ONE.decoder.scaled_layer(layer) for layer in (2, 6, 15)] == [2, 6, 15]
    twelve = replace(ONE.decoder, depth=12)
    assert [twelve.scaled_layer(layer) for layer in (1, 2, 6, 15)] == [1, 1, 2, 6]
    assert build("sparsevlm", parse(64), {}, replace(ONE, decoder=twelve)).knobs()["stages"] == (1, 2, 6)
    assert build("sparsevlm", parse(64), {"stages": "2,6,15"}, replace(ONE, decoder=twelve)).knobs()["stages"] == (
        2,
        6,
        15,
    )
    literal = build("sparsevlm", parse(64), {"stages": "2,6,15"}, replace(ONE, decoder=twelve)).plan(
        replace(ONE, decoder=twelve)
    )
    assert literal is not None
    assert [layer for layer, (a, b) in enumerate(pairwise(literal)) if b < a] == [
        2,
        6,
    ], "a stage beyond the depth does not happen"
