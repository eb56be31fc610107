"""VScan: a share of every window, the best of the rest, means in the place of what leaves, and a stage in the
decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import best, recorded, tower
from decoder_by_hand import kept_by_layer

from harness.core.budget import parse
from harness.core.errors import PrunebenchError
from harness.core.shape import SHAPES, Grid
from harness.engine.attach import attach
from harness.method import Method, Run, build
from harness.proof.conformance.families import family_model
from harness.proof.conformance.family_models import ask_family
from harness.proof.conformance.tiny import PROMPTS, model_inputs, tiny_model
from methods.vscan import VScan, merged, places_within, windows

S7 = SHAPES["llava-1.5-7b"]
QWEN = family_model("Qwen2_5_VLForConditionalGeneration")
NEXT = family_model("LlavaNextForConditionalGeneration")


def cls_row(layer: int) -> list[float]:
    """What [CLS] attends to in each patch, mean over heads."""
    heads = tower().attentions[layer].astype(np.float64)
    return [float(value) for value in heads[:, 0, 1:].mean(0)]


def by_hand(keep: int, local_layer: int, side: int = 24, window: int = 6) -> list[int]:
    near, far, kept = cls_row(local_layer), cls_row(-2), list[int]()
    across = side // window
    each = keep // 2 // across**2
    for number in range(across**2):
        inside = [
            token
            for token in range(side * side)
            if (token // side // window, token % side // window) == divmod(number, across)
        ]
        kept += [inside[i] for i in best([near[token] for token in inside], each)]
    for token in best(far, side * side):
        if token not in kept and len(kept) < keep:
            kept.append(token)
    return sorted(kept)


def test_a_mini_sample_by_hand() -> None:
    """Three times 32 patches at the tower, six of sixteen local; the mini model's tower has four layers, and 6 of 24 is
    its first."""
    wanted = by_hand(96, 0)
    assert recorded("vscan", "32").kept == wanted
    assert recorded("vscan", "32", local_layer=1).kept == by_hand(96, 1) != wanted
    assert recorded("fastervlm", "96").kept != wanted
    stages = kept_by_layer("vscan", "32")
    assert list(stages) == [0, 6]
    assert stages[0] == wanted
    assert len(stages[6]) == 32
    assert set(stages[6]) < set(wanted)


def test_schedules() -> None:
    assert build("vscan", parse("native"), {}, S7).plan(S7) == [96] * 16 + [32] * 16
    assert build("vscan", parse("64"), {}, S7).plan(S7) == [192] * 16 + [64] * 16
    assert build("vscan", parse("64avg"), {}, S7).plan(S7) == [96] * 16 + [32] * 16
    assert build("vscan", parse("64"), {"layers": ()}, S7).plan(S7) == [64] * 32
    two = build("vscan", parse(None), {"counts": "200,100,30", "layers": "4,20"}, S7)
    assert two.plan(S7) == [200] * 4 + [100] * 16 + [30] * 12
    prompt = QWEN.shape_of(QWEN.prompts[1])  # two images of 18 and 14 tokens
    assert [image.tokens for image in prompt.images] == [18, 14]
    shares = build("vscan", parse(None), {"ratios": "0.5,0.25"}, prompt)
    assert shares.plan(prompt) == [9 + 7] * 6 + [4] * 6


def test_qwen_looks_at_its_first_layer_of_full_attention() -> None:
    built = build("vscan", parse("50%"), {}, QWEN.shape_of(QWEN.prompts[0]))
    assert isinstance(built, VScan)
    assert (built.official, built.local_layer, built.window) == ("qwen", 1, 4)
    assert [(look.what, look.layer) for look in built.looks(built_shape())] == [("column_sums", 1), ("column_sums", -1)]
    flash = build("vscan", parse("50%"), {"official": "qwen-flash"}, QWEN.shape_of(QWEN.prompts[0]))
    assert [look.what for look in flash.looks(built_shape())] == ["twice_rotated_sums"] * 2


def built_shape() -> object:
    return QWEN.shape_of(QWEN.prompts[0]).decoder


def test_rows_and_columns_left_over_belong_to_the_last_windows() -> None:
    found, n = windows([Grid(11, 9), Grid(3, 6), Grid(8, 8)], 4, 99)
    assert n == [4, 1, 4]
    wide = found[0].view(11, 9)
    assert wide[:4, :4].eq(0).all()
    assert wide[:4, 4:].eq(1).all()
    assert wide[4:, :4].eq(2).all()
    assert wide[4:, 4:].eq(3).all()
    assert found[1].tolist() == [0] * 18 + [-1] * 81  # a side under 4 tokens is one window


def test_places_within_windows_are_those_of_a_loop() -> None:
    draw = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 9, (3, 40), generator=draw).float()  # with ties
    window = torch.randint(0, 5, (3, 40), generator=draw)
    valid = torch.arange(40)[None] < torch.tensor([[40], [31], [7]])
    found = places_within(scores, window, valid)
    for row in range(3):
        for token in range(int(valid[row].sum())):
            mine = float(scores[row, token])
            ahead = [
                other
                for other in range(int(valid[row].sum()))
                if window[row, other] == window[row, token]
                and (float(scores[row, other]) > mine or (float(scores[row, other]) == mine and other < token))
            ]
            assert found[row, token] == len(ahead)


class Counting:
    """A run that multiplies and counts."""

    flops = 0

    def matmul(self, a: torch.Tensor, b: torch.Tensor, *, row: int) -> torch.Tensor:
        out = a @ b
        self.flops += 2 * out.numel() * a.shape[-1]
        return out


def test_other_tokens_are_averaged_into_the_most_similar_kept_one() -> None:
    draw = torch.Generator().manual_seed(1)
    tokens, kept = torch.randn(20, 6, generator=draw, dtype=torch.float64), torch.zeros(20, dtype=torch.bool)
    kept[[3, 8, 9, 15]] = True
    run = Counting()
    found = merged(run, 0, tokens, kept, 4)  # type: ignore[arg-type]
    assert run.flops == 4 * 6 * 4 * 16
    groups = {index: [tokens[index]] for index in (3, 8, 9, 15)}
    for index in range(20):
        if not kept[index]:
            cosines = {k: torch.cosine_similarity(tokens[index], tokens[k], dim=0).item() for k in groups}
            groups[max(cosines, key=lambda k: cosines[k])].append(tokens[index])
    for index, members in groups.items():
        torch.testing.assert_close(found[index], torch.stack(members).mean(0))
    assert torch.equal(found[~kept], tokens[~kept])


def refused(*, asked: str | None = None, of: object = S7, **knobs: object) -> str:
    with pytest.raises(PrunebenchError) as said:
        build("vscan", parse(asked), knobs, of).plan(of)  # type: ignore[arg-type]
    assert "\n" not in str(said.value)
    return str(said.value)


def test_what_does_not_fit_is_refused_before_a_run() -> None:
    qwen, tiles = QWEN.shape_of(QWEN.prompts[0]), NEXT.shape_of(NEXT.prompts[0])
    assert "needs a budget" in refused()
    assert "expected one of keep, counts and ratios, found counts=(9,), ratios=(0.5,)" in refused(
        counts="9", ratios="0.5"
    )
    assert "expected layers for 2 stages" in refused(counts="9,5,3")
    assert "expected 2 counts" in refused(counts="9,5,3", layers="4")
    assert "expected one of layers with keep" in refused(asked="64", layers="4,9")
    assert "expected ratios from 0 to 1" in refused(ratios="0.5,1.5")
    assert "expected counts of at least one token" in refused(counts="0,5")
    assert "expected window >= 1" in refused(asked="64", window="0")
    assert "local_layer=24 does not fit this model: expected 0 to 23" in refused(asked="64", local_layer="24")
    assert "is none: expected 0.0625 or more" in refused(of=qwen, ratios="0.01,0.5")
    assert "a ratio of 0.1 of a prompt of 8 tokens is none" in refused(of=qwen, ratios="0.5,0.1")
    assert "official=next: expected official=llava or qwen" in refused(asked="64", official="next")
    assert "official=llava: expected official=next or next-code" in refused(asked="25%", of=tiles, official="llava")
    assert "official=next-code: expected counts" in refused(asked="25%", of=tiles, official="next-code")
    assert "found ratios" in refused(of=tiles, ratios="0.5,0.5")
    assert "one image a prompt" in refused(
        of=NEXT.shape_of(NEXT.prompts[1]), counts="9,5", official="next-code", layers="6"
    )


def test_flash_attention_needs_a_tower_that_rotates() -> None:
    assert "looks at twice_rotated_sums of the vision tower: expected a vision tower with RoPE" in refused(
        asked="64", official="qwen-flash"
    )


def test_rows_by_number_are_those_rows() -> None:
    """Visual rows of `coming_probs` and text behind them, asked by number; and one row without RoPE is another."""
    model, seen = tiny_model(), dict[str, torch.Tensor]()

    class Asking(Method):
        name = "asking_rows"

        def at_boundary(self, run: Run, layer: int, stream: object) -> None:
            if layer != 2:
                return
            asked = stream.coming_probs  # type: ignore[attr-defined]
            v = run.visual_valid.shape[1]
            seen["visual"], seen["after"] = asked("visual").values, asked("after").values
            seen["some"] = asked(torch.tensor([[5, v + 1]])).values
            seen["last"], seen["plain"] = asked("last").values, asked("last", rotated=False).values

    with attach(model, Asking()), torch.inference_mode():
        model(**model_inputs(model, PROMPTS[:1]))
    torch.testing.assert_close(seen["some"][:, :, 0], seen["visual"][:, :, 5])
    torch.testing.assert_close(seen["some"][:, :, 1], seen["after"][:, :, 1])
    assert (seen["last"] - seen["plain"]).abs().max() > 1e-3


def test_tiles_keep_all_newlines_and_as_many_patches_as_asked() -> None:
    asked = NEXT.prompts[0]
    prompt = NEXT.shape_of(asked)
    (image,) = prompt.images
    for official, last in (("next", 3 * image.vision.tiles), ("next-code", None)):
        method = build("vscan", parse(None), {"counts": (8, 3), "layers": (4,), "official": official}, prompt)
        with attach(NEXT.model, method) as run:
            answer = ask_family(run, NEXT, (asked,), steps=0)
        first, later = answer.origins[0][0], answer.origins[4][0]
        side, width = image.views[0].rows ** 2, image.views[1].cols + 1
        ends = [token for token in first if token >= side and (token - side) % width == width - 1]
        assert len(ends) == image.views[1].rows
        assert len([token for token in first if token < side]) == 8
        assert len(later) == (last if last is not None else len(first) - 5)


def test_a_stage_beyond_the_last_layer_does_not_happen() -> None:
    within = build("vscan", parse("none"), {"counts": (50, 30), "layers": (2,)}, S7)
    beyond = build("vscan", parse("none"), {"counts": (50, 30, 10), "layers": (2, S7.decoder.depth)}, S7)
    assert beyond.plan(S7) == within.plan(S7) == [50, 50] + [30] * (S7.decoder.depth - 2)
