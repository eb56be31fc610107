"""PruMerge: outliers of [CLS] attention in its order, neighbours merged in, one token behind, all by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import best, entering, images_alone, keys, projected, queries, recorded, tower

from harness.core.budget import parse
from harness.core.errors import PrunebenchError
from harness.core.shape import SHAPES
from harness.method import build
from harness.proof.conformance.tiny import N_VISUAL, PROMPTS, ask, prompt, tiny_model
from methods.prumerge import PruMerge, fitting_step, grid, grid_step, n_outliers, n_patches

S7 = SHAPES["llava-1.5-7b"]


def attention(layer: int = -1) -> list[float]:
    """What [CLS] attends to in each patch, without a split into heads."""
    query = queries(layer)[0]
    logits = np.array([query @ key for key in [keys(layer, cls=True)[0], *keys(layer)]]) / len(query) ** 0.5
    probs = np.exp(logits - logits.max())
    return list(probs[1:] / probs.sum())


def merged(picked: list[int]) -> list[np.ndarray]:
    """Features of the picked patches with their neighbours, and of the last token, by plain loops."""
    weights, features = attention(), tower().hidden[-2][1:].astype(np.float64)
    unit = [key / np.linalg.norm(key) for key in keys(-1)]
    tokens = []
    for i in picked:
        near = best([-9.0 if j == i else float(unit[i] @ unit[j]) for j in range(len(unit))], 32)
        tokens.append(features[i] + sum(weights[j] * features[j] for j in near))
    dropped = [weights[j] * features[j] for j in range(len(unit)) if j not in picked]
    return [*tokens, np.sum(dropped, axis=0)]


def with_grid(top: list[int], step: int) -> list[int]:
    return top + [i for i in range(0, 575, step) if i not in top]


def adaptive(plus: bool) -> list[int]:
    scores = np.array(attention())
    q1, q3 = np.percentile(scores, [25, 75])
    ratio = float(np.mean(scores > q3 + 1.5 * (q3 - q1)))
    top = best(list(scores), int(len(scores) * ratio))
    return with_grid(top, int(int(1 / ratio) / 3)) if plus else top


def test_a_mini_sample_by_hand() -> None:
    wanted = best(attention(), 63)
    assert recorded("prumerge").kept == sorted(wanted)
    assert recorded("prumerge").added == 1
    assert recorded("fastervlm").kept != sorted(wanted)
    assert sorted(best(attention(-2), 63)) != sorted(wanted), "another layer chooses other patches"


@pytest.mark.parametrize("plus", [False, True])
def test_outliers_of_a_mini_sample_by_hand(plus: bool) -> None:
    wanted = adaptive(plus)
    assert 0 < len(wanted) < 400
    found = recorded("prumerge", "native", plus=plus)
    assert (found.kept, found.added) == (sorted(wanted), 1)


@pytest.mark.parametrize("plus", [False, True])
def test_tokens_enter_by_attention_with_their_neighbours(plus: bool) -> None:
    for method, picked in (
        (PruMerge(plus=plus), adaptive(plus)),
        (PruMerge(ratio=0.05, plus=plus), with_grid(best(attention(), 28), 6) if plus else best(attention(), 28)),
    ):
        stream = entering(method)
        assert stream.shape[0] == len(picked) + 1
        assert torch.allclose(stream, projected(merged(picked)), atol=1e-4)
        # in another order they are others
        assert not torch.allclose(stream, projected(merged(sorted(picked))), atol=1e-2)


@pytest.mark.parametrize("keep", [2, 4, 5, 64, 65, 128, 192])
def test_plus_meets_a_count_with_a_grid_that_fits(keep: int) -> None:
    """The most attended patches that with the grid of the largest fitting ratio make the count."""
    fitting = [k for k in range(1, 577) if k + len(range(0, 575, grid_step(k / 576))) <= keep - 1]
    step = grid_step(fitting[-1] / 576) if fitting else 10**6
    scores = attention()
    wanted = next(
        picked
        for k in range(1, 577)
        if len(picked := with_grid(best(scores, k), step) if fitting else best(scores, k)) == keep - 1
    )
    stream = entering(PruMerge(keep=keep, plus=True))
    assert torch.allclose(stream, projected(merged(wanted)), atol=1e-4)


def test_grids() -> None:
    assert fitting_step(576, 3) == 0
    assert fitting_step(576, 4) == grid_step(1 / 576) == 192
    assert len(grid(576, 192)) == 3
    assert list(grid(576, 1)) == list(range(575))
    assert list(grid(576, 0)) == []
    # 48 patches and their 144 of the grid are 192; with the last token 193
    assert fitting_step(576, 192) == grid_step(48 / 576) == 4
    # half of the patches: int(2 / 3) is 0 in the official code
    assert grid_step(0.5) == grid_step(1) == 1
    assert n_patches(576, 0.125) == 72
    assert n_patches(576, 0.001) == 1


def test_outliers_are_those_of_numpy() -> None:
    draw = np.random.RandomState(0)
    counts = [64, 50, 3]
    rows = torch.zeros(3, 64, dtype=torch.float64)
    for row, n in enumerate(counts):
        rows[row, :n] = torch.from_numpy(draw.standard_t(2, n) if n > 3 else np.ones(n))
    rows = rows.masked_fill(torch.arange(64) >= torch.tensor(counts)[:, None], -1e9).sort(1, descending=True).values
    wanted = []
    for row, n in zip(rows.numpy(), counts, strict=True):
        q1, q3 = np.percentile(row[:n], [25, 75])
        wanted.append(int((row[:n] > q3 + 1.5 * (q3 - q1)).sum()))
    assert n_outliers(rows, counts).tolist() == wanted
    assert wanted[0] > wanted[2] == 0


@pytest.mark.parametrize("plus", [False, True])
def test_without_an_outlier_one_patch_stays(monkeypatch: pytest.MonkeyPatch, plus: bool) -> None:
    monkeypatch.setattr("methods.prumerge.FENCE", 1e9)
    got = ask(tiny_model(), PruMerge(plus=plus), PROMPTS, steps=0)
    assert got.run.trace.notes["outliers"] == [0.0] * len(PROMPTS)
    least = {1} if not plus else {len(grid(N_VISUAL, grid_step(1 / N_VISUAL))), 4}
    assert {len([o for o in kept if o >= 0]) for kept in got.origins[0]} <= least


@pytest.mark.parametrize("keep", [1, 2, N_VISUAL - 1, N_VISUAL])
@pytest.mark.parametrize("plus", [False, True])
def test_any_count_is_met(keep: int, plus: bool) -> None:
    got = ask(tiny_model(), PruMerge(keep=keep, plus=plus), PROMPTS, steps=0)
    assert [got.run.trace.kept(row) for row in range(len(PROMPTS))] == [keep] * len(PROMPTS)
    assert got.origins[0][0].index(-2) == keep - 1


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize(("keep", "shares"), [(1, [0, 1]), (33, [16, 17]), (None, [None, None])])
def test_images_of_a_prompt_are_merged_alone(keep: int | None, shares: list[int | None], plus: bool) -> None:
    each = [PruMerge(keep=n, plus=plus) for n in shares if n != 0]
    together, alone = images_alone(PruMerge(keep=keep, plus=plus), each)
    assert together == ([[]] * shares.count(0)) + alone


def test_all_patches_by_ratio_leave_an_empty_last_token() -> None:
    got = ask(tiny_model(), PruMerge(ratio=1.0), PROMPTS[:1], steps=0)
    assert len(got.origins[0][0]) == N_VISUAL + 1


def test_plans_on_llava() -> None:
    assert build("prumerge", parse("native"), {}, S7).plan(S7) is None
    assert build("prumerge", parse(None), {"ratio": 0.125, "plus": True}, S7).plan(S7) is None
    assert build("prumerge", parse(None), {"ratio": 0.125}, S7).plan(S7) == [73] * 32
    method = build("prumerge", parse("64"), {}, S7)
    plan = method.plan(S7)
    assert plan == [64] * 32
    merging = 2 * (63 + 64) * 576 * 1024
    assert method.plan_scoring(S7, plan) == 2 * 1024 * 577 + merging + 2 * 64 * (1024 * 4096 + 4096 * 4096)


@pytest.mark.parametrize(
    ("asked", "knobs", "says"),
    [
        (None, {}, "prumerge needs a budget"),
        (None, {"keep": 64, "ratio": 0.1}, "expected one of keep .* and ratio .*, found keep=64 and ratio=0.1"),
        ("64", {"ratio": 0.1}, "knob 'ratio' is what the budget sets"),
        (None, {"ratio": 0}, "expected ratio above 0 and at most 1, found 0.0"),
        (None, {"ratio": 1.5}, "expected ratio above 0 and at most 1, found 1.5"),
        (None, {"ratio": "nan"}, "expected ratio above 0 and at most 1, found nan"),
        (None, {"keep": 0}, "expected keep >= 1"),
        ("64avg", {"keep": 3}, "knob 'keep' is what the budget sets"),
        (None, {"keep": "none"}, "expected keep, ratio or a budget, found none: .*native"),
    ],
)
def test_what_is_refused(asked: str | None, knobs: dict[str, Any], says: str) -> None:
    with pytest.raises(PrunebenchError, match=says):
        build("prumerge", parse(asked), knobs, S7)


def test_images_that_are_no_numbers_name_the_prompt() -> None:
    spoilt = prompt(4, 5, images=2)
    spoilt = replace(spoilt, pixels=spoilt.pixels.clone())
    spoilt.pixels[1] = float("nan")
    with pytest.raises(PrunebenchError, match=r"'prompt 4' \(row 1\): added tokens hold nan or inf"):
        ask(tiny_model(), PruMerge(), (PROMPTS[0], spoilt), steps=0)
