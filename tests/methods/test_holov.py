"""HoloV: tokens for each strip by its [CLS] attention, in that order, and zero vectors for what does not fit."""

from __future__ import annotations

from math import floor

import pytest
import torch
from by_hand import cls_attention, images_alone, recorded

from harness.core.budget import parse
from harness.core.errors import PrunebenchError
from harness.core.shape import SHAPES
from harness.method import Method, build
from harness.proof.conformance.kit import one_thread
from harness.proof.conformance.tiny import N_VISUAL, PROMPTS, ask, tiny_model
from methods.holov import HoloV, allotted, within

S7 = SHAPES["llava-1.5-7b"]


def by_hand(scores: list[float], keep: int, n_strips: int, redistribute: bool = True) -> tuple[list[int], list[int]]:
    """Tokens in the order that the language model gets them, and what each strip was given."""
    n, start, strips = len(scores), 0, []
    for i in range(n_strips):
        size = n // n_strips + (1 if i < n % n_strips else 0)
        strips.append(list(range(start, start + size)))
        start += size
    means = [sum(scores[t] for t in strip) / len(strip) for strip in strips]
    weights = [mean / sum(means) for mean in means]
    given = [floor(weight * keep) for weight in weights]
    by_weight = sorted(range(n_strips), key=lambda i: -weights[i])
    for i in by_weight[: keep - sum(given)] if redistribute else []:
        given[i] += 1
    order: list[int] = []
    for strip, k in zip(strips, given, strict=True):
        order += strip if k >= len(strip) else sorted(strip, key=lambda t: -scores[t])[:k]
    return order, given


def test_a_mini_sample_by_hand() -> None:
    order, given = by_hand(cls_attention(), 64, 16)
    got = recorded("holov")
    assert (got.kept, got.added) == (sorted(order), 0)
    assert max(given) < 36
    assert recorded("fastervlm").kept != got.kept
    assert recorded("holov", strips=1).kept == recorded("fastervlm").kept
    assert sorted(by_hand(cls_attention(), 64, 16, redistribute=False)[0]) != got.kept


def test_alpha_changes_nothing() -> None:
    assert recorded("holov", alpha=5.0).kept == recorded("holov").kept


def tiny(method: Method) -> tuple[list[list[int]], list[list[float]]]:
    """The visual tokens of the kit's prompts in the decoder, and their scores."""
    scores = []

    class Listening(type(method)):  # type: ignore[misc]
        def on_image(self, run, tower):  # type: ignore[no-untyped-def]
            super().on_image(run, tower)
            scores.extend(run.memo["scores"].double().tolist())

    with one_thread():
        got = ask(tiny_model(), Listening(**method.knobs()), PROMPTS, steps=0)
    return got.origins[0], scores


@pytest.mark.parametrize("keep", [1, 5, 16, 47, 60, N_VISUAL])
@pytest.mark.parametrize("strips", [1, 5, 16, N_VISUAL])
def test_order_and_zero_vectors(keep: int, strips: int) -> None:
    for origins, scores in zip(*tiny(HoloV(keep, strips)), strict=True):
        order, given = by_hand(scores, keep, strips)
        assert origins == order + [-2] * (keep - len(order))
        assert sum(given) == keep


def test_added_tokens_are_zeros() -> None:
    model, method = tiny_model(), HoloV(N_VISUAL)
    seen: list[torch.Tensor] = []
    norm = model.model.language_model.layers[0].input_layernorm
    handle = norm.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    try:
        with one_thread():
            run = ask(model, method, PROMPTS[:1], steps=0).run
    finally:
        handle.remove()
    layout = run.layouts[0]
    added = layout.visual[0] & (layout.origin[0] == -2)
    kept = layout.visual[0] & ~added
    assert added.any()
    assert not seen[0][0][added].any()
    assert seen[0][0][kept].norm(dim=1).min() > 0
    assert int(kept.nonzero().max()) < int(added.nonzero().min())


@pytest.mark.parametrize(("keep", "shares"), [(1, [0, 1]), (33, [16, 17]), (2 * N_VISUAL, [N_VISUAL] * 2)])
def test_images_of_a_prompt_keep_their_own(keep: int, shares: list[int]) -> None:
    together, alone = images_alone(HoloV(keep), [HoloV(n) for n in shares if n])
    assert together == ([[]] * shares.count(0)) + alone


def test_strips_by_hand() -> None:
    attention = torch.tensor([[[4.0, 4.0, 4.0], [1.0, 3.0, 0.0]]])
    valid = torch.tensor([[[True, True, True], [True, True, False]]])
    # means 4 and 2, weights 2/3 and 1/3
    assert allotted(attention, valid, torch.tensor([4])).tolist() == [[3, 1]]
    chosen, order = within(attention, valid, torch.tensor([[2, 1]]))
    assert chosen.tolist() == [[[True, True, False], [False, True, False]]]
    assert order[chosen].tolist() == [0, 1, 3]
    whole, order = within(attention, valid, torch.tensor([[4, 2]]))
    assert whole.tolist() == valid.tolist()
    assert order[whole].tolist() == [0, 1, 2, 3, 4], "a strip that stays whole keeps its order"


def test_native_is_the_official_call() -> None:
    assert build("holov", parse("native"), {}, S7).knobs() == {"keep": 64, "strips": 16, "alpha": 0.09}


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"strips": 0}, "expected strips >= 1, found 0"),
        ({"strips": 577}, "^holov: strips=577 does not fit an image of 576 tokens: expected 1 to 576"),
        ({"alpha": -1}, "expected alpha >= 0, found -1"),
    ],
)
def test_knobs_that_are_refused(knobs: dict[str, object], says: str) -> None:
    with pytest.raises(PrunebenchError, match=says):
        build("holov", parse("64"), knobs, S7)
