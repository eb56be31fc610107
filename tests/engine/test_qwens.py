"""Families of images of any size: the unpruned path is the bare model, a batch is its rows, a pruned run is a forward
over the kept tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from qwens import DEPTH, FAMILIES, GRIDS, IMAGE, ROWS, VIDEO, Asked, batch, image, make
from torch import Tensor
from transformers import DynamicCache

import prunebench
from harness.core.errors import PrunebenchError
from harness.core.shape import Grid, Share
from harness.engine.attach import attach
from harness.engine.layout import TokenLayout
from harness.engine.prefix import roomy_cache
from harness.method import Method, Reduction, Run, Stream, method_class

STEPS = 5
PIXELS = ("pixel_values", "image_grid_thw")
every_family = pytest.mark.parametrize("name", FAMILIES)


def method(name: str, keep: int | Share = 5) -> Method:
    knobs: dict[str, dict[str, Any]] = {
        "none": {},
        "random": {"keep": keep},
        "fastv": {"keep": keep, "boundary": 2},
        "visipruner": {"keep": keep, "shallow_mid_layer": 1},
    }
    return method_class(name)(**knobs[name])


def generate(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """New tokens (b, steps) and their logits (b, steps, vocabulary)."""
    out = model.generate(
        **inputs, max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    return out.sequences[:, -STEPS:], torch.stack(out.logits, 1)


# ------------------------------------------------------------------------------------------------------ nothing pruned


@pytest.mark.parametrize("asked", [ROWS[:1], ROWS[1:2], ROWS], ids=["one", "two images", "padded"])
@every_family
def test_unpruned_is_the_bare_model(name: str, asked: tuple[Asked, ...]) -> None:
    """Through `generate` and by a plain forward: exactly in a batch of one, nearly where rows are padded."""
    model, inputs = make(name), batch(name, asked)
    atol = 0.0 if len(asked) == 1 else 2e-5
    with torch.inference_mode():
        forward, bare = model(**inputs).logits[:, -1], generate(model, inputs)
        with attach(model, method("none")) as run:
            ours = generate(model, inputs)
            assert run.trace.n_prompt_visual == (inputs["input_ids"] == IMAGE).sum(1).tolist()
            grids = [[i.views for i in prompt.images] for prompt in run.prompts]
            again = model(**inputs).logits[:, -1]
        after = model(**inputs).logits[:, -1]
        with attach(model, method("fastv")):
            pruned = model(**inputs).logits[:, -1]
    assert torch.equal(bare[0], ours[0])
    torch.testing.assert_close(ours[1], bare[1], atol=atol, rtol=0)
    torch.testing.assert_close(again, forward, atol=atol, rtol=0)
    assert torch.equal(forward, after)
    assert not torch.allclose(pruned, forward, atol=1e-3)
    assert grids == [[(Grid(r // 2, c // 2),) for r, c in (GRIDS[i] for i in row.images)] for row in asked]


@pytest.mark.parametrize("which", ["none", "random", "fastv", "visipruner"])
@every_family
def test_a_batch_is_its_rows(name: str, which: str) -> None:
    model = make(name)
    with torch.inference_mode(), attach(model, method(which)) as run:
        run.samples = ["a", "b", "c"]
        tokens, logits = generate(model, batch(name, ROWS))
        visual = [layer.visual for layer in run.trace.layers]
        costs = run.costs()
        for row, one in enumerate(ROWS):
            run.samples = ["abc"[row]]
            alone = generate(model, batch(name, [one]))
            assert [layer.visual[0] for layer in run.trace.layers] == [v[row] for v in visual]
            assert {key: values[0] for key, values in run.costs().items()} == {key: v[row] for key, v in costs.items()}
            assert torch.equal(alone[0][0], tokens[row])
            torch.testing.assert_close(alone[1][0], logits[row], atol=5e-5, rtol=0)
    assert (visual[-1] == (batch(name, ROWS)["input_ids"] == IMAGE).sum(1).tolist()) == (which == "none")


# -------------------------------------------------------------------------------------------------- pruned, by hand


@dataclass(frozen=True)
class OutOfThree(Method):
    """Two of three tokens from `boundary` on; asks for compact positions, which M-RoPE does not have."""

    boundary: int = 0

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer != self.boundary:
            return None
        keep = run.visual_valid
        keep[:, 1::3] = False
        return Reduction(keep, positions="compact", decode_positions="compact")


@pytest.mark.parametrize("boundary", [0, 1, 2, 4])
@every_family
def test_pruned_is_a_forward_over_the_kept_tokens(name: str, boundary: int) -> None:
    """From scratch: the decoder's layers in a loop, tokens dropped and DeepStack added by hand, all tokens again for
    each new one."""
    model, inputs = make(name), batch(name, ROWS[1:2])
    with torch.inference_mode():
        with attach(model, OutOfThree(boundary)) as run:
            tokens, logits = generate(model, inputs)
            assert run.layouts[-1].positions.shape[2] == 3
        by_hand = decoded_by_hand(model, inputs, boundary, tokens[0])
    torch.testing.assert_close(logits[0], by_hand, atol=5e-5, rtol=0)


def decoded_by_hand(model: Any, inputs: dict[str, Tensor], boundary: int, tokens: Tensor) -> Tensor:
    """Logits of the prompt's last token and of each new token but the last: no cache, no engine."""
    text, called = model.model.language_model, dict[str, Any]()
    handle = text.register_forward_pre_hook(lambda _m, _a, kwargs: called.update(kwargs), with_kwargs=True)
    model.model(**inputs)
    handle.remove()
    new = text.embed_tokens(tokens[None, :-1])
    stream = torch.cat([called["inputs_embeds"], new], 1)
    places = called["position_ids"][-3:]
    later = places.max() + 1 + torch.arange(new.shape[1])
    positions = torch.cat([places, later.expand(3, 1, -1)], 2)
    is_image = torch.cat([inputs["input_ids"][0] == IMAGE, torch.zeros(new.shape[1], dtype=torch.bool)])
    kept = torch.ones_like(is_image)
    kept[is_image.nonzero().flatten()[1::3]] = False
    mine = kept[is_image]
    deep = called.get("deepstack_visual_embeds") or []
    for number, layer in enumerate(text.layers):
        if 0 < number <= len(deep):
            stream = stream.clone()
            stream[0, is_image] += deep[number - 1][mine] if number > boundary else deep[number - 1]
        if number == boundary:
            stream, positions, is_image = stream[:, kept], positions[:, :, kept], is_image[kept]
        n = stream.shape[1]
        mask = torch.full((1, 1, n, n), float("-inf")).triu(1)
        rotary = text.rotary_emb(stream, positions)
        stream = layer(stream, attention_mask=mask, position_embeddings=rotary, past_key_values=None)
    logits: Tensor = model.lm_head(text.norm(stream))[0, -len(tokens) :]
    return logits


@pytest.mark.parametrize("which", ["random", "fastv", "visipruner"])
@every_family
def test_a_share_is_of_the_prompts_own_tokens(name: str, which: str) -> None:
    model, inputs = make(name), batch(name, ROWS)
    with torch.inference_mode(), attach(model, method(which, Share(0.25))) as run:
        generate(model, inputs)
        own = (inputs["input_ids"] == IMAGE).sum(1).tolist()
        kept = [run.trace.kept(row) for row in range(3)]
    assert len(set(own)) == 3
    assert kept == [int(0.25 * n + 0.5) for n in own]


# --------------------------------------------------------------------------------------------- features and prefixes


@every_family
def test_features_made_once_are_the_same(name: str) -> None:
    model, inputs = make(name), batch(name, ROWS[1:2])
    with torch.inference_mode(), attach(model, method("fastv")) as run:
        direct = generate(model, inputs)[1]
        features, _ = run.encode(**{key: inputs[key] for key in PIXELS})
        call = {key: value for key, value in inputs.items() if key != "pixel_values"}
        cache = DynamicCache(config=model.config.text_config)
        out = model(**call, mm_encoder_outputs=run._adapter.outputs(features), past_key_values=cache)
        for step in range(STEPS):
            torch.testing.assert_close(out.logits[:, -1], direct[:, step], atol=2e-5, rtol=0)
            out = model(input_ids=out.logits[:, -1:].argmax(-1), past_key_values=cache)
        again = generate(model, {**call, "mm_encoder_outputs": run._adapter.outputs(features)})[1]
    torch.testing.assert_close(again, direct, atol=2e-5, rtol=0)


@every_family
def test_features_and_facts_go_together(name: str) -> None:
    """What an adapter hands over beside ids is all that the model needs."""
    model, inputs = make(name), batch(name, ROWS)
    with torch.inference_mode(), attach(model, method("none")) as run:
        direct = model(**inputs).logits[:, -1]
        features, _ = run.encode(**{key: inputs[key] for key in PIXELS})
        given = run._adapter.inputs(features, inputs["input_ids"])
        again = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **given).logits[:, -1]
    torch.testing.assert_close(again, direct, atol=1e-5, rtol=0)


@pytest.mark.parametrize("which", ["none", "fastv", "visipruner", "random"])
@every_family
def test_a_shared_prefix_changes_nothing(name: str, which: str) -> None:
    """Questions of two lengths on one image from one captured prefix, against both with their pixels."""
    model, asked = make(name), [ROWS[0]._replace(images=(2,)), ROWS[1]._replace(images=(2,))]
    both, one = batch(name, asked), batch(name, asked[:1])
    last = int((one["input_ids"][0] == IMAGE).nonzero()[-1]) + 1
    with torch.inference_mode(), attach(model, method(which)) as run:
        run.samples = ["a", "b"]
        alone = generate(model, both)[1]
        visual, costs = [layer.visual for layer in run.trace.layers], run.costs()
        features, _ = run.encode(**{key: one[key] for key in PIXELS})
        start = {key: one[key][:, :last] for key in ("input_ids", "attention_mask", "mm_token_type_ids")}
        with run.capturing(["a"]):
            model.model(
                **start,
                image_grid_thw=one["image_grid_thw"],
                mm_encoder_outputs=run._adapter.outputs(features),
                past_key_values=roomy_cache(DEPTH),
            )
            (prefix,) = run.prefixes()
        cache = roomy_cache(DEPTH)
        window = run.share([prefix, prefix], both["input_ids"], both["attention_mask"])
        out = model(input_ids=window, past_key_values=cache, logits_to_keep=1)
        assert [layer.visual for layer in run.trace.layers] == visual
        assert run.trace.layers[0].rows == (None if which == "random" else window.shape[1])
        for step in range(STEPS):
            torch.testing.assert_close(out.logits[:, -1], alone[:, step], atol=3e-5, rtol=0)
            if step < STEPS - 1:
                out = model(input_ids=out.logits[:, -1:].argmax(-1), past_key_values=cache)
        assert dict(run.costs()) == dict(costs)


def test_deepstack_goes_with_a_prefix() -> None:
    """A prefix without them is not what the model computes."""
    features = torch.ones(16, 48)
    layout = TokenLayout.of_prompt(torch.tensor([[1] + [IMAGE] * 16 + [2]]), None, (IMAGE,))
    added = layout.with_features(torch.zeros(1, 18, 48), features, torch.tensor([16]))
    assert added[0, :, 0].tolist() == [0.0] + [1.0] * 16 + [0.0]


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("lacks", ["mm_token_type_ids", "image_grid_thw", "both"])
@pytest.mark.parametrize("through", ["forward", "generate"])
@every_family
def test_features_without_facts_are_refused(name: str, through: str, lacks: str) -> None:
    """Qwen2.5-VL would count along one axis and say nothing."""
    model, inputs = make(name), batch(name, ROWS[:1])
    gone = ("mm_token_type_ids", "image_grid_thw") if lacks == "both" else (lacks,)
    with torch.inference_mode(), attach(model, method("none")) as run:
        features, _ = run.encode(**{key: inputs[key] for key in PIXELS})
        call = {key: value for key, value in inputs.items() if key not in ("pixel_values", *gone)}
        call["mm_encoder_outputs"] = run._adapter.outputs(features)
        with pytest.raises((PrunebenchError, ValueError), match="mm_token_type_ids"):
            model(**call) if through == "forward" else generate(model, call)


@every_family
def test_what_the_families_do_not_have_is_refused(name: str) -> None:
    model, inputs = make(name), batch(name, ROWS[:1])
    with pytest.raises(PrunebenchError, match="positions=compact: expected positions on one axis"):
        attach(model, method("random"), positions="compact").__enter__()
    with pytest.raises(PrunebenchError, match="fastervlm looks at cls_row of the vision tower: expected"):
        attach(model, method_class("fastervlm")(keep=3)).__enter__()
    with pytest.raises(PrunebenchError, match="downsample shrinks a picture before the processor"):
        attach(model, method_class("downsample")(keep=3)).__enter__()
    with pytest.raises(PrunebenchError, match="downsample"):  # pixels come cut into patches already
        prunebench.prune(model, "downsample", "25%").__enter__()
    with torch.inference_mode(), attach(model, method("none")) as run:
        with pytest.raises(PrunebenchError, match="expected image_grid_thw"):
            run.encode(pixel_values=image(name, 0)["pixel_values"])
        inputs["input_ids"][0, -1] = VIDEO
        with pytest.raises(PrunebenchError, match="videos are not supported"):
            model(**inputs)
