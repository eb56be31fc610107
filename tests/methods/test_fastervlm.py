"""FasterVLM: the patches of the highest [CLS] attention, per image."""

from __future__ import annotations

from dataclasses import replace

import pytest
from by_hand import best, cls_attention, images_alone, recorded

from harness.core.budget import parse
from harness.core.errors import PrunebenchError
from harness.core.shape import SHAPES
from harness.method import build
from harness.proof.conformance.tiny import N_VISUAL, ask, prompt, tiny_model
from methods.fastervlm import FasterVLM

S7 = SHAPES["llava-1.5-7b"]


def test_a_mini_sample_by_hand() -> None:
    wanted = sorted(best(cls_attention(), 64))
    assert recorded("fastervlm").kept == wanted
    assert recorded("fastervlm").added == 0
    assert recorded("random").kept != wanted
    assert sorted(best(cls_attention(layer=-1), 64)) != wanted, "another layer chooses other patches"


@pytest.mark.parametrize(("keep", "shares"), [(1, [0, 1]), (33, [16, 17]), (2 * N_VISUAL, [N_VISUAL] * 2)])
def test_images_of_a_prompt_keep_their_own_best(keep: int, shares: list[int]) -> None:
    together, alone = images_alone(FasterVLM(keep=keep), [FasterVLM(keep=n) for n in shares if n])
    assert together == ([[]] * shares.count(0)) + alone


def test_costs_of_scoring_on_llava() -> None:
    method = build("fastervlm", parse("64"), {}, S7)
    assert method.plan(S7) == [64] * 32
    assert method.plan_scoring(S7, [64] * 32) == 2 * 1024 * 577


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ("native", "fastervlm has no published defaults"),
        ("577", "expected 1 to 576"),
    ],
)
def test_budgets_that_are_refused(budget: str, says: str) -> None:
    with pytest.raises(PrunebenchError, match=says):
        build("fastervlm", parse(budget), {}, S7)


def test_scores_that_are_no_numbers_name_the_prompt() -> None:
    model = tiny_model()
    spoilt = prompt(4, 5, images=2)
    spoilt = replace(spoilt, pixels=spoilt.pixels.clone())
    spoilt.pixels[1] = float("nan")
    with pytest.raises(PrunebenchError, match=r"'prompt 4' \(row 1\): expected a number as score"):
        ask(model, FasterVLM(keep=9), (prompt(1, 6), spoilt), steps=0)
