"""Idefics3 and SmolVLM: the unpruned path is the bare model, a batch is its rows, a pruned run is a forward over the
kept tokens, though text stands between the tiles of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from idefics import CUTS, DEPTH, FAMILIES, FENCE, IMAGE, LINE, ROWS, TOKENS, Asked, batch, image, make, n_tiles, spelt
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from harness.core import flops
from harness.core.errors import PrunebenchError
from harness.core.shape import Grid, Share
from harness.engine.attach import attach
from harness.engine.prefix import roomy_cache
from harness.method import Method, Reduction, Run, Stream, TowerLook, method_class
from harness.models.adapters import adapter_for

STEPS = 5
every_family = pytest.mark.parametrize("name", FAMILIES)


def method(name: str, keep: int | Share = 5) -> Method:
    knobs: dict[str, dict[str, Any]] = {
        "none": {},
        "random": {"keep": keep},
        "uniform": {"keep": keep},
        "pooling": {"keep": keep},
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


def encoded(run: Any, numbers: tuple[int, ...]) -> list[Any]:
    """Features of images, each made alone."""
    return [run.encode(**image(number))[0][0] for number in numbers]


# ------------------------------------------------------------------------------------------------------ nothing pruned


@pytest.mark.parametrize("asked", [ROWS[:1], ROWS[1:2], ROWS], ids=["one", "two images", "padded"])
@every_family
def test_unpruned_is_the_bare_model(name: str, asked: tuple[Asked, ...]) -> None:
    """Through `generate` and by a plain forward: exactly in a batch of one, nearly where rows are padded."""
    model, inputs = make(name), batch(asked)
    atol = 0.0 if len(asked) == 1 else 2e-5
    with torch.inference_mode():
        forward, bare = model(**inputs).logits[:, -1], generate(model, inputs)
        with attach(model, method("none")) as run:
            ours = generate(model, inputs)
            assert run.trace.n_prompt_visual == (inputs["input_ids"] == IMAGE).sum(1).tolist()
            found = [[(i.views, i.cut) for i in prompt.images] for prompt in run.prompts]
            again = model(**inputs).logits[:, -1]
        after = model(**inputs).logits[:, -1]
        with attach(model, method("fastv")):
            pruned = model(**inputs).logits[:, -1]
    assert torch.equal(bare[0], ours[0])
    torch.testing.assert_close(ours[1], bare[1], atol=atol, rtol=0)
    torch.testing.assert_close(again, forward, atol=atol, rtol=0)
    assert torch.equal(forward, after)
    assert not torch.allclose(pruned, forward, atol=1e-3)
    assert found == [[((Grid(2, 2),) * n_tiles(i), CUTS[i]) for i in row.images] for row in asked]


@pytest.mark.parametrize("which", ["none", "random", "uniform", "pooling", "fastv", "visipruner"])
@every_family
def test_a_batch_is_its_rows(name: str, which: str) -> None:
    model = make(name)
    with torch.inference_mode(), attach(model, method(which)) as run:
        run.samples = ["a", "b", "c"]
        tokens, logits = generate(model, batch(ROWS))
        visual = [layer.visual for layer in run.trace.layers]
        costs = run.costs()
        for row, one in enumerate(ROWS):
            run.samples = ["abc"[row]]
            alone = generate(model, batch([one]))
            assert [layer.visual[0] for layer in run.trace.layers] == [v[row] for v in visual]
            assert {key: values[0] for key, values in run.costs().items()} == {key: v[row] for key, v in costs.items()}
            assert torch.equal(alone[0][0], tokens[row])
            torch.testing.assert_close(alone[1][0], logits[row], atol=5e-5, rtol=0)
    assert (visual[-1] == (batch(ROWS)["input_ids"] == IMAGE).sum(1).tolist()) == (which == "none")


# -------------------------------------------------------------------------------------------------- pruned, by hand


@dataclass(frozen=True)
class OfThree(Method):
    """Two of three tokens from `boundary` on, at their own places or renumbered."""

    boundary: int = 0
    renumbered: bool = False

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer != self.boundary:
            return None
        keep = run.visual_valid
        keep[:, 1::3] = False
        policy = "compact" if self.renumbered else "original"
        return Reduction(keep, positions=policy, decode_positions=policy)


@pytest.mark.parametrize(("boundary", "renumbered"), [(0, False), (1, False), (2, False), (4, False), (0, True)])
@every_family
def test_pruned_is_a_forward_over_the_kept_tokens(name: str, boundary: int, renumbered: bool) -> None:
    """From scratch: the decoder's layers in a loop, tokens dropped by hand, all tokens again for each new one."""
    model, inputs = make(name), batch(ROWS[1:2])
    with torch.inference_mode():
        unpruned = generate(model, inputs)[1]
        with attach(model, OfThree(boundary, renumbered)):
            tokens, logits = generate(model, inputs)
        by_hand = decoded_by_hand(model, inputs, boundary, renumbered, tokens[0])
    torch.testing.assert_close(logits[0], by_hand, atol=5e-5, rtol=0)
    assert not torch.allclose(unpruned[0, 0], by_hand[0], atol=1e-3)


def decoded_by_hand(model: Any, inputs: dict[str, Tensor], boundary: int, renumbered: bool, tokens: Tensor) -> Tensor:
    """Logits of the prompt's last token and of each new token but the last: no cache, no engine."""
    text, called = model.model.text_model, dict[str, Any]()
    handle = text.register_forward_pre_hook(lambda _m, _a, kwargs: called.update(kwargs), with_kwargs=True)
    model.model(**inputs)
    handle.remove()
    new = text.embed_tokens(tokens[None, :-1])
    stream = torch.cat([called["inputs_embeds"], new], 1)
    is_image = torch.cat([inputs["input_ids"][0] == IMAGE, torch.zeros(new.shape[1], dtype=torch.bool)])
    kept = torch.ones_like(is_image)
    kept[is_image.nonzero().flatten()[1::3]] = False
    positions = torch.arange(stream.shape[1])[None]
    for number, layer in enumerate(text.layers):
        if number == boundary:
            stream = stream[:, kept]
            positions = torch.arange(stream.shape[1])[None] if renumbered else positions[:, kept]
        n = stream.shape[1]
        mask = torch.full((1, 1, n, n), float("-inf")).triu(1)
        rotary = text.rotary_emb(stream, positions)
        stream = layer(stream, attention_mask=mask, position_embeddings=rotary, past_key_values=None)
    logits: Tensor = model.lm_head(text.norm(stream))[0, -len(tokens) :]
    return logits


@pytest.mark.parametrize("which", ["random", "fastv", "visipruner", "uniform"])
@every_family
def test_a_share_is_of_the_prompts_own_tokens(name: str, which: str) -> None:
    model, inputs = make(name), batch(ROWS)
    with torch.inference_mode(), attach(model, method(which, Share(0.25))) as run:
        generate(model, inputs)
        own = (inputs["input_ids"] == IMAGE).sum(1).tolist()
        kept = [run.trace.kept(row) for row in range(3)]
    assert len(set(own)) == 3
    assert kept == [int(0.25 * n + 0.5) for n in own]


# --------------------------------------------------------------------------------------------------- tiles and places


@every_family
def test_each_tile_is_a_view_and_the_overview_is_the_last(name: str) -> None:
    """By the number of each tile in the prompt's own order, and by the token's place in it."""
    model = make(name)
    with torch.inference_mode(), attach(model, method("none")) as run:
        model(**batch(ROWS[1:2]))
        places = run.prompts[0].places()
    expected = [
        (number, tile, token // 2, token % 2, 2, 2)
        for number, own in enumerate(ROWS[1].images)
        for tile in range(n_tiles(own))
        for token in range(TOKENS)
    ]
    assert places == expected


def test_a_visual_token_is_its_block_of_its_tile() -> None:
    """The feature at a place depends on the pixels of that place alone, where the tower's layers mix nothing."""
    model = make("idefics3")
    for layer in model.model.vision_model.encoder.layers:
        for part in (layer.self_attn.out_proj, layer.mlp.fc2):
            torch.nn.init.zeros_(part.weight)
            torch.nn.init.zeros_(part.bias)
    adapter, given = adapter_for(model), image(2)
    with torch.inference_mode():
        before = adapter.encode(**given)[0].pooled
        changed = given["pixel_values"].clone()
        changed[0, 3, :, 28:42, 0:14] += 1.0  # third row and first column of patches of the fourth tile
        after = adapter.encode(**{**given, "pixel_values": changed})[0].pooled
    moved = (before != after).any(1).nonzero().flatten().tolist()
    (place,) = moved
    prompt = adapter.prompt(adapter.shape, adapter.shape_at(model.config, CUTS[2]))  # type: ignore[attr-defined]
    assert prompt.places()[place][:4] == (0, 3, 1, 0)


@pytest.mark.parametrize("numbers", [(0,), (2,), (1, 3)], ids=["one tile", "five tiles", "two images"])
@every_family
def test_the_towers_cost_is_the_counters(name: str, numbers: tuple[int, ...]) -> None:
    model = make(name)
    adapter = adapter_for(model)
    counted, said = 0, 0
    for number in numbers:
        shape = adapter.shape_at(model.config, CUTS[number])  # type: ignore[attr-defined]
        said += flops.vision_tower(shape.vision) + flops.projector(adapter.shape, shape.vision)
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            adapter.encode(**image(number))
        counted += counter.get_total_flops()
    assert said == counted


@every_family
def test_looks_come_in_the_order_of_visual_tokens(name: str) -> None:
    """Column sums of a layer by hand, from queries and keys of whole tiles, for a prompt of two images in one row."""
    look, model = TowerLook("column_sums", 1), make(name)
    inputs, tower = batch(ROWS[1:2]), model.model.vision_model
    kept: dict[str, Tensor] = {}

    @dataclass(frozen=True)
    class Looking(Method):
        def looks(self, shape: Any) -> tuple[TowerLook, ...]:
            return (look,)

        def on_image(self, run: Any, seen: Any) -> None:
            kept["sums"] = seen[look]

    states: list[Tensor] = []
    handle = tower.encoder.layers[1].layer_norm1.register_forward_hook(lambda _m, _a, out: states.append(out))
    with torch.inference_mode(), attach(model, Looking()) as run:
        generate(model, inputs)
        joined = kept.pop("sums")
        flat = [run.encode(**image(number)) for number in ROWS[1].images]
        run.see([seen[0] for _, seen in flat])
        features = [made[0] for made, _ in flat]
        alone = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        model(**alone, **run._adapter.inputs(features, inputs["input_ids"]))
    handle.remove()
    attention = tower.encoder.layers[1].self_attn
    with torch.inference_mode():
        q, k = (
            project(states[0]).view(*states[0].shape[:2], 2, -1).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj)
        )
        sums = (q @ k.transpose(-1, -2) * attention.scale).softmax(-1).sum(2)  # (tiles, heads, patches)
    expected = []
    for tile in sums:
        grid = tile.view(2, 4, 4)
        expected += [grid[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean((1, 2)) for r in (0, 1) for c in (0, 1)]
    torch.testing.assert_close(joined[0], torch.stack(expected, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(kept["sums"], joined, atol=1e-5, rtol=0)


# --------------------------------------------------------------------------------------------- features and prefixes


@every_family
def test_features_made_once_are_the_same(name: str) -> None:
    """Each image alone, with and without what says how it is cut."""
    model, inputs = make(name), batch(ROWS[1:2])
    with torch.inference_mode(), attach(model, method("fastv")) as run:
        direct = generate(model, inputs)[1]
        shapes = [prompt.images for prompt in run.prompts]
        features = encoded(run, tuple(ROWS[1].images))
        call = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        cache = DynamicCache(config=model.config.text_config)
        out = model(**call, **run._adapter.inputs(features, inputs["input_ids"]), past_key_values=cache)
        assert [prompt.images for prompt in run.prompts] == shapes
        for step in range(STEPS):
            torch.testing.assert_close(out.logits[:, -1], direct[:, step], atol=2e-5, rtol=0)
            out = model(input_ids=out.logits[:, -1:].argmax(-1), past_key_values=cache)
        again = generate(model, {**call, "mm_encoder_outputs": run._adapter.outputs(features)})[1]
        assert [prompt.images for prompt in run.prompts] == shapes
    torch.testing.assert_close(again, direct, atol=2e-5, rtol=0)


@pytest.mark.parametrize("number", range(1, len(CUTS)))
@pytest.mark.parametrize("which", ["none", "fastv", "visipruner", "random", "pooling"])
@every_family
def test_a_shared_prefix_changes_nothing(name: str, which: str, number: int) -> None:
    """Questions of two lengths on one image from one captured prefix, which ends inside the image's marks, against both
    with their pixels."""
    model, asked = make(name), [ROWS[0]._replace(images=(number,)), ROWS[1]._replace(images=(number,))]
    both, one = batch(asked), batch(asked[:1])
    last = int((one["input_ids"][0] == IMAGE).nonzero()[-1]) + 1
    assert one["input_ids"][0, last] == FENCE
    with torch.inference_mode(), attach(model, method(which)) as run:
        run.samples = ["a", "b"]
        alone = generate(model, both)[1]
        visual, costs = [layer.visual for layer in run.trace.layers], run.costs()
        features = encoded(run, (number,))
        start = {key: one[key][:, :last] for key in ("input_ids", "attention_mask")}
        with run.capturing(["a"]):
            given = run._adapter.inputs(features, start["input_ids"])
            model.model(**start, **given, past_key_values=roomy_cache(DEPTH))
            (prefix,) = run.prefixes()
        cache = roomy_cache(DEPTH)
        window = run.share([prefix, prefix], both["input_ids"], both["attention_mask"])
        out = model(input_ids=window, past_key_values=cache, logits_to_keep=1)
        assert [prompt.images for prompt in run.prompts] == [prefix.images] * 2
        assert [layer.visual for layer in run.trace.layers] == visual
        assert run.trace.layers[0].rows == (None if which == "random" else window.shape[1])
        for step in range(STEPS):
            torch.testing.assert_close(out.logits[:, -1], alone[:, step], atol=3e-5, rtol=0)
            if step < STEPS - 1:
                out = model(input_ids=out.logits[:, -1:].argmax(-1), past_key_values=cache)
        assert dict(run.costs()) == dict(costs)


# ------------------------------------------------------------------------------------------------------------ refusals


def told(ids: list[int]) -> str:
    """What the engine says of a prompt of these ids on zeroed features."""
    model = make("idefics3")
    adapter = adapter_for(model)
    tensor = torch.tensor([ids])
    pooled = torch.zeros(int((tensor == IMAGE).sum()), model.config.text_config.hidden_size)
    with torch.inference_mode(), attach(model, method("none")) as run:
        model(input_ids=tensor, **adapter.inputs([adapter.featured(pooled, 0, {})], tensor))
        with pytest.raises(PrunebenchError) as refused:
            _ = run.prompts
    return str(refused.value)


def test_prompts_of_another_spelling_are_refused() -> None:
    whole = [1, 30, *spelt(2), 40, 41]
    first = whole.index(IMAGE)
    assert "expected tiles of 4 image tokens side by side, found 3" in told(whole[:first] + whole[first + 1 :])
    assert "expected tiles of 4 image tokens side by side, found 8" in told([1, *[IMAGE] * 8, FENCE, 40])
    assert "expected the mark behind the last image" in told(whole[: len(whole) - whole[::-1].index(IMAGE)])
    rows = [1, FENCE, 10, *[IMAGE] * 4, FENCE, 11, *[IMAGE] * 4, LINE, FENCE, 14, *[IMAGE] * 4]
    overview = [LINE, LINE, FENCE, 7, *[IMAGE] * 4, FENCE, 40]
    assert "found lines of [2, 1, 1] tiles" in told(rows + overview)
    assert "expected one mark 5 between the tiles" in told([1, *[IMAGE] * 4, 20, *[IMAGE] * 4, FENCE, 40])


@every_family
def test_methods_that_need_another_tower_say_why(name: str) -> None:
    model = make(name)
    for which in ("fastervlm", "vispruner", "prumerge", "holov"):
        with pytest.raises(PrunebenchError, match=rf"{which} looks at .* expected a vision tower with a .CLS. token"):
            attach(model, method_class(which)(keep=3)).__enter__()
    with pytest.raises(PrunebenchError, match=r"cdpruner looks at .* one patch a visual token, found one that joins 4"):
        attach(model, method_class("cdpruner")(keep=3)).__enter__()
    with pytest.raises(PrunebenchError, match="downsample shrinks a picture before the processor"):
        attach(model, method_class("downsample")(keep=3)).__enter__()
