"""VisionZip: [CLS] first, dominant patches in place, contextual tokens behind, all by hand from the tower."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import best, cls_attention, entering, images_alone, keys, projected, recorded, tower

from harness.core.budget import parse
from harness.core.errors import PrunebenchError
from harness.core.shape import SHAPES
from harness.method import Method, build
from harness.proof.conformance.tiny import N_VISUAL, PROMPTS, ask, prompt, tiny_model
from methods.visionzip import Parts, VisionZip, parts_of

S7 = SHAPES["llava-1.5-7b"]


def zipped(dominant: int, contextual: int) -> tuple[list[int], list[np.ndarray]]:
    """The kept patches of a mini image, and features of the contextual tokens, by plain loops."""
    kept = sorted(best(cls_attention(), dominant - 1))
    features, heads = tower().hidden[-2][1:].astype(np.float64), len(tower().attentions[-2])
    metric = [np.mean(np.split(key, heads), axis=0) for key in keys(-2)]
    others = [i for i in range(len(metric)) if i not in kept]
    targets = others[:: max(1, len(others) // contextual)][:contextual]
    joined: list[list[int]] = [[] for _ in targets]
    for i in others:
        if i not in targets:
            cosines = [metric[i] @ metric[t] / np.linalg.norm(metric[i]) / np.linalg.norm(metric[t]) for t in targets]
            joined[int(np.argmax(cosines))].append(i)
    means = [np.mean([features[i] for i in group], axis=0) if group else 0 for group in joined]
    return kept, [features[t] + mean for t, mean in zip(targets, means, strict=True)]


def test_a_mini_sample_by_hand() -> None:
    kept, contextual = zipped(54, 10)
    assert recorded("visionzip").kept == kept
    assert recorded("visionzip").added == 1 + len(contextual)
    assert recorded("fastervlm").kept != kept


@pytest.mark.parametrize("parts", [(54, 10), (27, 5), (1, 3), (6, 0)])
def test_tokens_enter_as_cls_then_patches_then_contextual(parts: tuple[int, int]) -> None:
    dominant, contextual = parts
    kept, merged = zipped(dominant, max(contextual, 1))
    features = tower().hidden[-2]
    tokens = [features[0], *(features[1 + i] for i in kept), *merged[:contextual]]
    stream = entering(VisionZip(dominant=dominant, contextual=contextual))
    assert stream.shape[0] == dominant + contextual
    assert torch.allclose(stream, projected(tokens), atol=1e-4)
    unmerged = entering(build("fastervlm", parse(str(dominant + contextual)), {}, S7))
    assert not torch.allclose(unmerged, stream, atol=1e-2)


def test_published_budgets_and_their_proportion() -> None:
    published = {192: (162, 30), 128: (108, 20), 64: (54, 10), 32: (27, 5), 1: (1, 0), 3: (3, 0), 4: (3, 1)}
    assert {keep: tuple(parts_of(keep)) for keep in published} == published
    assert all(sum(parts_of(keep)) == keep and parts_of(keep).dominant for keep in range(1, 577))
    assert parts_of(0) == Parts(0, 0)


@pytest.mark.parametrize("keep", [1, 2, 4, N_VISUAL - 1, N_VISUAL])
def test_any_count_is_met(keep: int) -> None:
    got = ask(tiny_model(), VisionZip(keep=keep), PROMPTS, steps=0)
    assert [got.run.trace.kept(row) for row in range(len(PROMPTS))] == [keep] * len(PROMPTS)
    first = got.origins[0][0]
    # [CLS] in front, patches in place, contextual tokens behind
    assert first == [-2, *sorted(o for o in first if o >= 0), *[-2] * parts_of(keep).contextual]


@pytest.mark.parametrize(("keep", "shares"), [(1, [0, 1]), (33, [16, 17]), (2 * N_VISUAL, [N_VISUAL] * 2)])
def test_images_of_a_prompt_are_zipped_alone(keep: int, shares: list[int]) -> None:
    together, alone = images_alone(VisionZip(keep=keep), [VisionZip(keep=n) for n in shares if n])
    assert together == ([[]] * shares.count(0)) + alone


def test_native_is_the_official_default() -> None:
    method = build("visionzip", parse("native"), {}, S7)
    assert (method.knobs()["dominant"], method.knobs()["contextual"]) == (191, 30)
    plan = method.plan(S7)
    assert plan == [221] * 32
    cls, similarity, sums = 2 * 1024 * 577, 2 * 30 * 576 * 64, 2 * 30 * 576 * 1024
    projector = 2 * 31 * (1024 * 4096 + 4096 * 4096)
    assert method.plan_scoring(S7, plan) == cls + similarity + sums + projector


def build_with(asked: str | None, knobs: dict[str, Any]) -> Method:
    return build("visionzip", parse(asked), knobs, S7)


@pytest.mark.parametrize(
    ("asked", "knobs", "says"),
    [
        (None, {}, "visionzip needs a budget"),
        (None, {"dominant": 54}, "expected keep .* or dominant and contextual .*, found keep=None, dominant=54"),
        ("64", {"contextual": 10}, "knob 'contextual' is what the budget sets"),
        (None, {"keep": 64, "dominant": 54}, "give one of the two ways"),
        (None, {"dominant": 0, "contextual": 10}, "expected dominant as a whole number of at least 1, found 0"),
        (None, {"dominant": 1, "contextual": -1}, "expected contextual as a whole number of at least 0, found -1"),
        (None, {"dominant": 570, "contextual": 8}, "take 577 patches, found an image of 576"),
        (None, {"keep": 0}, "expected keep >= 1"),
    ],
)
def test_what_is_refused(asked: str | None, knobs: dict[str, Any], says: str) -> None:
    with pytest.raises(PrunebenchError, match=says):
        build_with(asked, knobs)


def test_native_is_refused_where_images_are_too_small() -> None:
    model = ask(tiny_model(), VisionZip(keep=9), PROMPTS[:1], steps=0).run
    with pytest.raises(PrunebenchError, match="dominant=191 and contextual=30 take 220 patches, found an image of 64"):
        build("visionzip", parse("native"), {}, model.prompts[0])


def test_images_that_are_no_numbers_name_the_prompt() -> None:
    spoilt = prompt(4, 5, images=2)
    spoilt = replace(spoilt, pixels=spoilt.pixels.clone())
    spoilt.pixels[1] = float("nan")
    with pytest.raises(PrunebenchError, match=r"'prompt 4' \(row 1\): expected a number as score"):
        ask(tiny_model(), VisionZip(keep=9), (PROMPTS[0], spoilt), steps=0)
