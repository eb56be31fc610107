"""DivPrune: tokens far from each other, picked one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import images_alone, projected, recorded, tower
from numpy.typing import NDArray

from harness.core.budget import parse
from harness.core.errors import PrunebenchError
from harness.core.shape import SHAPES
from harness.method import Share, build
from harness.proof.conformance.tiny import N_VISUAL
from methods._select import furthest
from methods.divprune import DivPrune

S7 = SHAPES["llava-1.5-7b"]


def by_hand(n: int) -> list[int]:
    """Picks in order, by plain loops in float64 over the projected tokens of a mini sample."""
    tokens = projected(list(tower().hidden[-2][1:])).double().numpy()
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    return picks(1 - tokens @ tokens.T, n)


def picks(distance: NDArray[np.float64], n: int) -> list[int]:
    tokens = range(len(distance))
    chosen = [max(tokens, key=lambda j: (min(distance[j, i] for i in tokens if i != j), -j))]
    nearest = distance[chosen[0]].copy()
    while len(chosen) < n:
        chosen.append(max((j for j in tokens if j not in chosen), key=lambda j: (nearest[j], -j)))
        nearest = np.minimum(nearest, distance[chosen[-1]])
    return chosen


def test_a_mini_sample_by_hand() -> None:
    assert recorded("divprune").kept == sorted(by_hand(64))
    assert recorded("uniform").kept != sorted(by_hand(64))
    assert recorded("divprune", "native").kept == sorted(by_hand(56)), "0.098 of 576"


def test_picks_of_a_batch_are_those_of_each_image() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.nn.functional.normalize(torch.randn(3, 20, 6, generator=generator, dtype=torch.float64), dim=2)
    counts = [20, 12, 1]
    valid = torch.arange(20)[None] < torch.tensor(counts)[:, None]
    distance = 1 - tokens @ tokens.transpose(1, 2)
    got = furthest(distance.clone(), valid, 20)
    for row, count in enumerate(counts):
        assert got[row, :count].tolist() == (picks(distance[row, :count, :count].numpy(), count) if count > 1 else [0])


def test_equal_tokens_are_picked_once_and_the_lowest_first() -> None:
    assert furthest(torch.zeros(1, 6, 6), torch.ones(1, 6, dtype=torch.bool), 6)[0].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("keep", "shares"), [(1, [0, 1]), (33, [16, 17]), (2 * N_VISUAL, [N_VISUAL] * 2)])
def test_images_of_a_prompt_keep_their_own(keep: int, shares: list[int]) -> None:
    together, alone = images_alone(DivPrune(keep), [DivPrune(n) for n in shares if n])
    assert together == [[]] * shares.count(0) + alone


@pytest.mark.parametrize(("ratio", "n"), [(0.1640625, 94), (0.0390625, 22), (0.098, 56), (1.0, 576)])
def test_a_ratio_rounds_halves_to_even(ratio: float, n: int) -> None:
    assert build("divprune", parse(None), {"ratio": ratio}, S7).plan(S7) == [n] * 32


def test_costs_of_scoring_on_llava() -> None:
    assert DivPrune(Share(0.25)).plan(S7) == [144] * 32
    assert DivPrune(64).plan_scoring(S7, []) == 2 * 576**2 * 4096


@pytest.mark.parametrize(
    ("budget", "knobs", "says"),
    [
        ("64", {"ratio": 0.1}, "knob 'ratio' is what the budget sets"),
        ("", {"ratio": 0.1, "keep": 64}, "give exactly one of keep"),
        ("", {"ratio": 1.5}, "ratio=1.5: expected a share"),
        ("", {"ratio": 0.0}, "ratio=0: expected a share"),
        ("", {"ratio": 0.0001}, "of an image of 576 tokens is none"),
        ("", {"keep": 0}, "expected keep >= 1"),
    ],
)
def test_budgets_and_knobs_that_are_refused(budget: str, knobs: dict[str, object], says: str) -> None:
    with pytest.raises(PrunebenchError, match=says):
        build("divprune", parse(budget or None), knobs, S7)
