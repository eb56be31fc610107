"""VisPruner: patches by [CLS] attention, and of the others those that rounds of pairing leave."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import best, cls_attention, images_alone, recorded, tower
from numpy.typing import NDArray

from harness.core.budget import parse
from harness.core.errors import PrunebenchError
from harness.core.shape import SHAPES
from harness.method import build
from harness.proof.conformance.tiny import N_VISUAL
from methods.vispruner import VisPruner, thin

S7 = SHAPES["llava-1.5-7b"]


def rounds(cosines: NDArray[np.float64], pool: list[int], target: int) -> list[int]:
    """What is left of a pool: 8 of every other entry go, those of the largest cosine to the entries between."""
    pool = list(pool)
    while len(pool) > target:
        a, b = pool[::2], pool[1::2]
        value = {token: max(cosines[token][other] for other in b) for token in a}
        n = min(8, len(pool) - target, len(a))
        pool = sorted(a, key=lambda token: -value[token])[n:] + b
    return pool


def by_hand(keep: int, important: int, in_raster_order: bool = False) -> list[int]:
    order = best(cls_attention(), 576)
    first, pool = order[:important], order[important:]
    features = tower().hidden[-2][1:].astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    pool = sorted(pool) if in_raster_order else pool
    return sorted(first + rounds(features @ features.T, pool, keep - important))


def test_a_mini_sample_by_hand() -> None:
    wanted = by_hand(64, 32)
    assert recorded("vispruner").kept == wanted
    assert recorded("fastervlm").kept != wanted
    assert by_hand(64, 32, in_raster_order=True) != wanted, "the order of the pool decides"


def test_a_pool_of_odd_size() -> None:
    """576 - int(50 * 0.5) = 551: side a is one longer."""
    assert recorded("vispruner", "50").kept == by_hand(50, 25)


def test_all_by_attention_is_fastervlm() -> None:
    assert recorded("vispruner", important_ratio=1.0).kept == recorded("fastervlm").kept


@pytest.mark.parametrize("target", [1, 2, 3, 7, 8, 30, 36, 37])
@pytest.mark.parametrize("n", [37, 38])
def test_rounds_down_to_small_pools(n: int, target: int) -> None:
    generator = torch.Generator().manual_seed(n)
    cosines = torch.rand(3, n, n, generator=generator, dtype=torch.float64)
    cosines = cosines + cosines.transpose(1, 2)
    left = thin(cosines, target).tolist()
    assert left == [rounds(one.numpy(), list(range(n)), target) for one in cosines]


def test_equal_entries_leave_in_the_order_of_the_pool() -> None:
    assert thin(torch.ones(1, 20, 20, dtype=torch.float64), 12).tolist() == [[16, 18, *range(1, 20, 2)]]


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("keep", "shares"), [(1, [0, 1]), (33, [16, 17]), (2 * N_VISUAL, [N_VISUAL] * 2)])
def test_images_of_a_prompt_keep_their_own(keep: int, shares: list[int], ratio: float) -> None:
    """Images of unlike shares run in groups."""
    together, alone = images_alone(VisPruner(keep, ratio), [VisPruner(n, ratio) for n in shares if n])
    assert together == ([[]] * shares.count(0)) + alone


def test_the_number_by_attention_is_truncated_in_floats() -> None:
    assert VisPruner(180, 0.7).n_important(180) == 125


def test_costs_of_scoring_on_llava() -> None:
    def scoring(budget: str, **knobs: float) -> int | None:
        return build("vispruner", parse(budget), knobs, S7).plan_scoring(S7, [])

    row = 2 * 1024 * 577
    assert scoring("64") == row + 2 * 1024 * (576 - 32) ** 2
    assert scoring("64", important_ratio=1) == row, "no pool to thin"
    assert scoring("576") == row


@pytest.mark.parametrize(
    ("budget", "knobs", "says"),
    [
        ("native", {}, "vispruner has no published defaults"),
        ("64", {"important_ratio": 1.5}, "expected important_ratio from 0 to 1, found 1.5"),
        ("64", {"important_ratio": "nan"}, "expected important_ratio from 0 to 1, found nan"),
    ],
)
def test_budgets_and_knobs_that_are_refused(budget: str, knobs: dict[str, object], says: str) -> None:
    with pytest.raises(PrunebenchError, match=says):
        build("vispruner", parse(budget), knobs, S7)
