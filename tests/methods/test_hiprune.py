"""HiPrune: anchors of a middle layer, their neighbours by index, registers of a deep layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from by_hand import best, images_alone, recorded, tower

from harness.core.budget import parse
from harness.core.errors import PrunebenchError
from harness.core.shape import SHAPES
from harness.method import build
from harness.proof.conformance.tiny import N_VISUAL
from methods.hiprune import HiPrune, neighbours

S7 = SHAPES["llava-1.5-7b"]


def attended(layer: int) -> list[float]:
    """The attention to each patch in a layer: mean over all queries and heads."""
    heads = tower().attentions[layer].astype(np.float64)
    n = heads.shape[1]
    return [float(sum(head[:, 1 + patch].sum() for head in heads)) / len(heads) / n for patch in range(n - 1)]


def by_hand(keep: int, alpha: float, object_layer: int, side: int = 24) -> list[int]:
    objects, everywhere = attended(object_layer - 1), attended(-2)
    n = side * side
    anchors = best(objects, round(keep * alpha / 5))
    buffers = set()
    for anchor in anchors:
        for step in (-1, 1, -side, side):
            buffers.add(min(max(anchor + step, 0), n - 1))
    kept = list(anchors)
    for token in [t for t in best(everywhere, n) if t in buffers] + best(everywhere, n):
        if token not in kept and len(kept) < keep:
            kept.append(token)
    return sorted(kept)


def test_a_mini_sample_by_hand() -> None:
    """The mini model's tower has four layers: 9 of 24 is its layer 2, counted from 1."""
    wanted = by_hand(64, 0.1, 2)
    assert recorded("hiprune").kept == wanted
    assert recorded("fastervlm").kept != wanted
    assert recorded("hiprune", object_layer=1).kept == by_hand(64, 0.1, 1) != wanted
    assert recorded("hiprune", alpha=0.0).kept == sorted(best(attended(-2), 64)) != wanted


def test_more_anchors_and_buffers_than_the_budget() -> None:
    """13 anchors of 64 tokens: anchors stay, and of the buffers those of the highest deep score."""
    assert recorded("hiprune", alpha=1.0).kept == by_hand(64, 1.0, 2)


def test_neighbours_are_clamped_and_do_not_stop_at_the_ends_of_rows() -> None:
    chosen = torch.zeros(3, 12, dtype=torch.bool)
    chosen[0, 3] = chosen[1, 0] = chosen[2, 5] = True
    # two images of 3 rows of 4, one of 2 rows of 3
    found = [row.nonzero().flatten().tolist() for row in neighbours(chosen, [12, 12, 6], [4, 4, 3])]
    assert found == [[0, 2, 4, 7], [0, 1, 4], [2, 4, 5]]


@pytest.mark.parametrize(("keep", "n"), [(64, 1), (192, 4), (125, 2), (175, 4), (12, 0)])
def test_halves_of_anchors_are_rounded_to_even(keep: int, n: int) -> None:
    assert HiPrune(keep).n_anchors(keep) == n


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("keep", "shares"), [(1, [0, 1]), (33, [16, 17]), (2 * N_VISUAL, [N_VISUAL] * 2)])
def test_images_of_a_prompt_keep_their_own(keep: int, shares: list[int], alpha: float) -> None:
    together, alone = images_alone(HiPrune(keep, alpha, 2), [HiPrune(n, alpha, 2) for n in shares if n])
    assert together == ([[]] * shares.count(0)) + alone


def test_native_and_the_layers_relative_depth() -> None:
    assert build("hiprune", parse("native"), {}, S7).knobs() == {"keep": 192, "alpha": 0.1, "object_layer": 9}
    (image,) = S7.images
    for depth, layer in ((12, 4), (2, 1), (1, 1)):
        other = replace(S7, images=(replace(image, vision=replace(image.vision, layers_used=depth)),))
        assert build("hiprune", parse("64"), {}, other).knobs()["object_layer"] == layer


def test_costs_of_scoring_on_llava() -> None:
    assert build("hiprune", parse("64"), {}, S7).plan_scoring(S7, []) == 2 * 2 * 1024 * 577**2


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"object_layer": 25}, "object_layer=25 does not fit this model: expected 1 to 24"),
        ({"object_layer": 0}, "object_layer=0 does not fit this model: expected 1 to 24"),
        ({"alpha": 1.5}, "expected alpha from 0 to 1, found 1.5"),
        ({"alpha": "nan"}, "expected alpha from 0 to 1, found nan"),
    ],
)
def test_knobs_that_are_refused(knobs: dict[str, object], says: str) -> None:
    with pytest.raises(PrunebenchError, match=says):
        build("hiprune", parse("64"), knobs, S7)


def test_a_relative_layer_without_a_tower_is_refused() -> None:
    with pytest.raises(PrunebenchError, match="object_layer=None is a relative depth"):
        HiPrune(64).looks(S7.decoder)
