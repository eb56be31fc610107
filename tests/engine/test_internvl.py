"""InternVL under the engine: the unpruned path is the bare model, a batch is its rows, a pruned run is a forward over
the kept tokens, and what the tower shows stands in the order of visual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from internvls import DEPTH, IMAGE, KINDS, PATCH, ROWS, START, TILE, TILES, TOKENS, Asked, batch, image, images, make
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from harness.bench.random_model import random_input
from harness.core import budget as budgets
from harness.core import flops
from harness.core.errors import PrunebenchError
from harness.core.shape import Grid, Share
from harness.engine.attach import attach
from harness.engine.prefix import roomy_cache
from harness.method import Method, Reduction, Run, Stream, TowerLook, build, method_class, registered
from harness.models.adapters import Features, adapter_for

STEPS = 5
SIDE = TILE // PATCH
every_kind = pytest.mark.parametrize("kind", KINDS)


def method(name: str, keep: int | Share = 5) -> Method:
    knobs: dict[str, dict[str, Any]] = {
        "none": {},
        "random": {"keep": keep},
        "uniform": {"keep": keep},
        "fastv": {"keep": keep, "boundary": 2},
        "visipruner": {"keep": keep, "shallow_mid_layer": 1},
    }
    return method_class(name)(**knobs[name])


def generate(model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """New tokens (b, steps) and their logits (b, steps, vocabulary)."""
    out = model.generate(
        **inputs, max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    return out.sequences[:, -STEPS:], torch.stack(out.logits, 1)


# ------------------------------------------------------------------------------------------------------ nothing pruned


@pytest.mark.parametrize("asked", [ROWS[:1], ROWS[1:2], ROWS], ids=["one", "two images", "padded"])
@every_kind
def test_unpruned_is_the_bare_model(kind: str, asked: tuple[Asked, ...]) -> None:
    """Through `generate` and by a plain forward: exactly in a batch of one, nearly where rows are padded."""
    model, inputs = make(kind), batch(asked)
    atol = 0.0 if len(asked) == 1 else 2e-5
    with torch.inference_mode():
        forward, bare = model(**inputs).logits[:, -1], generate(model, inputs)
        with attach(model, method("none")) as run:
            ours = generate(model, inputs)
            views = [[shape.views for shape in prompt.images] for prompt in run.prompts]
            again = model(**inputs).logits[:, -1]
        after = model(**inputs).logits[:, -1]
        with attach(model, method("fastv")):
            pruned = model(**inputs).logits[:, -1]
    assert torch.equal(bare[0], ours[0])
    torch.testing.assert_close(ours[1], bare[1], atol=atol, rtol=0)
    torch.testing.assert_close(again, forward, atol=atol, rtol=0)
    assert torch.equal(forward, after)
    assert not torch.allclose(pruned, forward, atol=1e-3)
    assert views == [[(Grid(3, 3),) * TILES[number] for number in row.images] for row in asked]


@pytest.mark.parametrize("which", ["none", "random", "fastv", "visipruner", "uniform"])
@every_kind
def test_a_batch_is_its_rows(kind: str, which: str) -> None:
    model = make(kind)
    with torch.inference_mode(), attach(model, method(which)) as run:
        run.samples = ["a", "b", "c"]
        tokens, logits = generate(model, batch(ROWS))
        visual, costs = [layer.visual for layer in run.trace.layers], run.costs()
        for row, one in enumerate(ROWS):
            run.samples = ["abc"[row]]
            alone = generate(model, batch([one]))
            assert [layer.visual[0] for layer in run.trace.layers] == [v[row] for v in visual]
            assert {key: values[0] for key, values in run.costs().items()} == {key: v[row] for key, v in costs.items()}
            assert torch.equal(alone[0][0], tokens[row])
            torch.testing.assert_close(alone[1][0], logits[row], atol=5e-5, rtol=0)
    assert (visual[-1] == [TOKENS * 4, TOKENS * 4, TOKENS * 5]) == (which == "none")


# -------------------------------------------------------------------------------------------------- pruned, by hand


@dataclass(frozen=True)
class OutOfThree(Method):
    """Two of three tokens from `boundary` on."""

    boundary: int = 0

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer != self.boundary:
            return None
        keep = run.visual_valid
        keep[:, 1::3] = False
        return Reduction(keep)


@pytest.mark.parametrize("boundary", [0, 1, 2, 4])
@every_kind
def test_pruned_is_a_forward_over_the_kept_tokens(kind: str, boundary: int) -> None:
    """From scratch: the decoder's layers in a loop, tokens dropped by hand, all tokens again for each new one."""
    model, inputs = make(kind), batch(ROWS[1:2])
    with torch.inference_mode():
        with attach(model, OutOfThree(boundary)):
            tokens, logits = generate(model, inputs)
        by_hand = decoded_by_hand(model, inputs, boundary, tokens[0])
        unpruned = decoded_by_hand(model, inputs, DEPTH, tokens[0])
    torch.testing.assert_close(logits[0], by_hand, atol=5e-5, rtol=0)
    assert float((unpruned - by_hand).abs().max()) > 1e-2


def decoded_by_hand(model: Any, inputs: dict[str, Tensor], boundary: int, tokens: Tensor) -> Tensor:
    """Logits of the prompt's last token and of each new token but the last: no cache, no engine."""
    text = model.model.language_model
    ids = torch.cat([inputs["input_ids"][0], tokens[:-1]])
    stream = text.embed_tokens(ids)[None].clone()
    is_image = ids == IMAGE
    is_image[len(inputs["input_ids"][0]) :] = False  # a random model may say it
    stream[0, is_image] = model.model.get_image_features(inputs["pixel_values"]).pooler_output.flatten(0, 1)
    positions = torch.arange(len(ids))[None]
    kept = torch.ones_like(is_image)
    kept[is_image.nonzero().flatten()[1::3]] = False
    for number, layer in enumerate(text.layers):
        if number == boundary:
            stream, positions = stream[:, kept], positions[:, kept]
        n = stream.shape[1]
        mask = torch.full((1, 1, n, n), float("-inf")).triu(1)
        rotary = text.rotary_emb(stream, positions)
        stream = layer(stream, attention_mask=mask, position_embeddings=rotary, past_key_values=None)
    logits: Tensor = model.lm_head(text.norm(stream))[0, -len(tokens) :]
    return logits


@pytest.mark.parametrize("which", ["random", "fastv", "visipruner"])
def test_a_share_is_of_the_prompts_own_tokens(which: str) -> None:
    model, inputs = make(), batch(ROWS)
    with torch.inference_mode(), attach(model, method(which, Share(0.25))) as run:
        generate(model, inputs)
        kept = [run.trace.kept(row) for row in range(3)]
    assert kept == [int(0.25 * n + 0.5) for n in (TOKENS * 4, TOKENS * 4, TOKENS * 5)]


# --------------------------------------------------------------------------------------------- features and prefixes


def test_features_made_once_are_the_same() -> None:
    """In prefill and decode, with all that an adapter hands over beside ids; in another order they are not."""
    model, inputs = make(), batch(ROWS)
    with torch.inference_mode(), attach(model, method("fastv")) as run:
        direct = generate(model, inputs)[1]
        features, _ = run.encode(**images(ROWS))
        assert [len(one.pooled) for one in features] == [TOKENS * TILES[n] for row in ROWS for n in row.images]
        assert [one.facts["num_patches"].tolist() for one in features] == [[4], [3], [1], [5]]
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        cache = DynamicCache(config=model.config.text_config)
        given = run._adapter.inputs(features, ids)
        out = model(input_ids=ids, attention_mask=mask, **given, past_key_values=cache)
        for step in range(STEPS):
            torch.testing.assert_close(out.logits[:, -1], direct[:, step], atol=2e-5, rtol=0)
            out = model(input_ids=out.logits[:, -1:].argmax(-1), past_key_values=cache)
        again = generate(model, {"input_ids": ids, "attention_mask": mask, **run._adapter.inputs(features, ids)})[1]
        swapped = run._adapter.inputs([features[i] for i in (3, 1, 2, 0)], ids)
        other = model(input_ids=ids, attention_mask=mask, **swapped).logits[:, -1]
    torch.testing.assert_close(again, direct, atol=2e-5, rtol=0)
    assert not torch.allclose(other, direct[:, 0], atol=1e-3)


@pytest.mark.parametrize("which", ["none", "fastv", "visipruner", "random"])
def test_a_shared_prefix_changes_nothing(which: str) -> None:
    """Questions of two lengths on one image from one captured prefix, against both with their pixels."""
    model, asked = make(), [ROWS[0], ROWS[1]._replace(images=ROWS[0].images)]
    both, one = batch(asked), batch(asked[:1])
    last = int((one["input_ids"][0] == IMAGE).nonzero()[-1]) + 1
    with torch.inference_mode(), attach(model, method(which)) as run:
        run.samples = ["a", "b"]
        alone = generate(model, both)[1]
        visual, costs = [layer.visual for layer in run.trace.layers], run.costs()
        features, _ = run.encode(**images(asked[:1]))
        start = {key: one[key][:, :last] for key in ("input_ids", "attention_mask")}
        with run.capturing(["a"]):
            given = run._adapter.inputs(features, start["input_ids"])
            model.model(**start, **given, past_key_values=roomy_cache(DEPTH))
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


# ------------------------------------------------------------------------------------------------------------ the tower


@dataclass(frozen=True)
class Looking(Method):
    """Keeps all it sees of the tower."""

    tiles: bool = False
    name = "looking"

    def looks(self, shape: Any) -> tuple[TowerLook, ...]:
        rows = ("cls_row", "column_sums", "cls_hidden", "cls_query", "cls_key")
        return tuple(TowerLook(what, -2, tiles=self.tiles) for what in rows)

    def on_image(self, run: Any, tower: Any) -> None:
        run.memo.update({look.what: value for look, value in tower.items()})


def attended(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(tiles, heads, tokens, tokens) softmax of the second-last tower layer, and (tiles, tokens, d) behind it, from the
    library's own eager attention."""
    tower = model.model.vision_tower
    tower.set_attn_implementation("eager")
    try:
        out = tower(pixels, output_attentions=True, output_hidden_states=True)
    finally:
        tower.set_attn_implementation("sdpa")
    return out.attentions[-2], out.hidden_states[-2]


def per_token(rows: Tensor) -> Tensor:
    """(heads, tiles x tokens): of numbers (tiles, heads, patches), the mean over the four patches of each visual
    token."""
    found = []
    for tile in rows:
        for row in range(SIDE // 2):
            for column in range(SIDE // 2):
                corners = [(2 * row + i) * SIDE + 2 * column + j for i in (0, 1) for j in (0, 1)]
                found.append(sum(tile[:, corner] for corner in corners) / 4)
    return torch.stack(found, -1)  # type: ignore[arg-type]


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("through", ["generate", "features"])
@every_kind
@torch.inference_mode()
def test_looks_stand_in_the_order_of_visual_tokens(kind: str, through: str, tiles: bool) -> None:
    """The mean over the four patches of each token; [CLS] of an image is that of the whole one, its last tile."""
    model, inputs = make(kind), batch(ROWS)
    with attach(model, Looking(tiles)) as run:
        if through == "generate":
            generate(model, inputs)
        else:
            features, seen = run.encode(**images(ROWS))
            assert len(seen) == 4
            run.see(seen)
            ids = inputs["input_ids"]
            model(input_ids=ids, attention_mask=inputs["attention_mask"], **run._adapter.inputs(features, ids))
        memo = dict(run.memo)
    start = 0
    for row, one in enumerate(ROWS):
        n = sum(TILES[number] for number in one.images)
        softmax, behind = attended(model, inputs["pixel_values"][start : start + n])
        ends = [sum(TILES[i] for i in one.images[: k + 1]) - 1 for k in range(len(one.images))]
        start += n
        wanted = {"cls_row": per_token(softmax[:, :, 0, 1:]), "column_sums": per_token(softmax.sum(2)[:, :, 1:])}
        for what, rows in wanted.items():
            torch.testing.assert_close(memo[what][row][:, : n * TOKENS], rows, atol=1e-5, rtol=1e-5)
            assert bool((memo[what][row][:, n * TOKENS :] == 0).all())
        whole = behind[:, 0] if tiles else behind[ends, 0]
        torch.testing.assert_close(memo["cls_hidden"][row][: len(whole)], whole, atol=1e-5, rtol=1e-5)
        assert memo["cls_key"].shape == memo["cls_query"].shape == memo["cls_hidden"].shape


@torch.inference_mode()
def test_a_visual_token_is_made_of_its_four_patches() -> None:
    """What the looks' order rests on: another feature of one patch changes that token alone."""
    model = make()
    pixels, states = image(1)["pixel_values"], list[Tensor]()
    core, changed = model.model, list[tuple[int, int]]()

    def behind(_module: Any, _args: Any, out: Any) -> Any:
        states.append(out.last_hidden_state)
        out.last_hidden_state = out.last_hidden_state.clone()
        for tile, patch in changed:
            out.last_hidden_state[tile, 1 + patch] += 1
        return out

    handle = core.vision_tower.register_forward_hook(behind)
    plain = core.get_image_features(pixels).pooler_output
    for tile, row, column in ((0, 0, 0), (1, 3, 2), (2, 5, 5), (3, 4, 1)):
        changed[:] = [(tile, row * SIDE + column)]
        other = core.get_image_features(pixels).pooler_output
        moved = ((other - plain).abs().amax(-1) > 1e-6).nonzero().tolist()
        assert moved == [[tile, row // 2 * (SIDE // 2) + column // 2]]
    handle.remove()


@every_kind
@pytest.mark.parametrize("numbers", [(0,), (1,), (3, 0, 2)])
@torch.inference_mode()
def test_tower_and_projector_cost_what_the_counter_counts(kind: str, numbers: tuple[int, ...]) -> None:
    model = make(kind)
    adapter, made = adapter_for(model), images([Asked((), numbers)])
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        adapter.encode(**made)
    shapes = [adapter.shape_of_tiles(model.config, TILES[n]) for n in numbers]  # type: ignore[attr-defined]
    stated = [flops.vision_tower(one.vision) + flops.projector(adapter.shape, one.vision) for one in shapes]
    assert counter.get_total_flops() == sum(stated)
    assert stated[0] != flops.vision_tower(shapes[0].vision), "a tower alone is not all"


@torch.inference_mode()
def test_places_are_the_grids_of_tiles() -> None:
    model = make()
    with attach(model, method("none")) as run:
        model(**batch(ROWS[1:2]))
        places = run.places
    wanted = [
        (number, tile, row, column, 3, 3)
        for number, image_number in enumerate(ROWS[1].images)
        for tile in range(TILES[image_number])
        for row in range(3)
        for column in range(3)
    ]
    assert [tuple(place) for place in torch.stack(list(places), -1)[0].tolist()] == wanted


# ---------------------------------------------------------------------------------------------------------- all methods

#: methods that need one patch a visual token, or one grid an image -> what is said of that
REFUSED = {
    "visionzip": "one patch a visual token",
    "hiprune": "one patch a visual token",
    "vispruner": "one patch a visual token",
    "cdpruner": "one patch a visual token",
    "prumerge": "one patch a visual token",
    "holov": "one grid of patches an image, found 13 grids",
    "mmtok": "runs the patches of all images in one row",
    "vscan": "one patch a visual token",
}
BUDGETS = {"none": None, "knockout": None, "vtw": "native"}


def built(name: str) -> Method:
    return build(name, budgets.parse(BUDGETS.get(name, "40%")), {}, adapter_for(make()).usual)


@pytest.mark.parametrize("name", REFUSED)
def test_a_method_that_does_not_fit_says_why(name: str) -> None:
    with pytest.raises(PrunebenchError) as refused:
        built(name)
    said = str(refused.value)
    assert said.startswith(name)
    assert REFUSED[name] in said
    assert "\n" not in said


@pytest.mark.parametrize("name", [m for m in registered() if m not in (*REFUSED, "downsample")])
@torch.inference_mode()
def test_every_other_method_runs_and_a_batch_is_its_rows(name: str) -> None:
    model, chosen = make(), built(name)
    with attach(model, chosen) as run:
        run.samples, run.questions = ["a", "b", "c"], ["What?"] * 3
        together = model(**batch(ROWS)).logits[:, -1]
        costs, visual = run.costs(), [layer.visual for layer in run.trace.layers]
    for row, one in enumerate(ROWS):
        with attach(model, chosen) as run:
            run.samples, run.questions = ["abc"[row]], ["What?"]
            alone = model(**batch([one])).logits[0, -1]
            assert [layer.visual[0] for layer in run.trace.layers] == [layer[row] for layer in visual]
            assert {key: v[0] for key, v in run.costs().items()} == pytest.approx({k: v[row] for k, v in costs.items()})
        torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=0)
    prunes = method_class(name).budget_knobs or name == "vtw"
    assert bool(prunes) == (visual[-1] != visual[0] or visual[0] != [36, 36, 45])


@torch.inference_mode()
def test_random_prompts_of_the_bench_have_whole_images() -> None:
    model = make()
    given = random_input(model, 2, 20, 0)
    with attach(model, method("uniform", Share(0.5))) as run:
        features, _ = run.encode(**given.images)
        model(input_ids=given.ids, **run._adapter.inputs(features, given.ids))
        # 640 x 480 in 4 x 3 tiles, and the whole image
        assert [[image.vision.tiles for image in prompt.images] for prompt in run.prompts] == [[13], [13]]


# ------------------------------------------------------------------------------------------------------------ refusals


@torch.inference_mode()
def test_images_without_their_tiles_are_refused() -> None:
    model = make()
    made = images(ROWS[1:2])
    with attach(model, method("none")) as run:
        with pytest.raises(PrunebenchError, match="expected num_patches of the image processor"):
            run.encode(pixel_values=made["pixel_values"])
        for wrong in ([3], [3, 2], [4, 0]):
            with pytest.raises(PrunebenchError, match="expected num_patches of 4 tiles in all"):
                run.encode(pixel_values=made["pixel_values"], num_patches=torch.tensor(wrong))


@pytest.mark.parametrize("tokens", [TOKENS * 2, TOKENS * 3 + 1, TOKENS - 1])
@torch.inference_mode()
def test_rows_of_image_tokens_that_are_no_image_are_refused(tokens: int) -> None:
    """Two images of one tile with nothing between them, and parts of tiles."""
    model = make()
    ids = torch.tensor([[1, START, *[IMAGE] * tokens, 20, 21]])
    features = torch.randn(tokens, model.config.text_config.hidden_size)
    says = f"expected {TOKENS} image tokens in a row for a whole image"
    with attach(model, method("uniform")), pytest.raises(PrunebenchError, match=says):
        model(input_ids=ids, mm_encoder_outputs=adapter_for(model).outputs([Features(features)]))


@torch.inference_mode()
def test_a_dynamic_rotary_is_the_default_one_up_to_the_context() -> None:
    """A longer prompt is refused, for its tokens would stand elsewhere than in its captured prefix."""
    model, plain = make("qwen2"), make("qwen2")
    rope = plain.model.language_model.rotary_emb
    rope.rope_type = "default"
    like, context = torch.zeros(1, 1, 1), model.config.text_config.max_position_embeddings
    every = torch.arange(context + 1)[None]
    dynamic = model.model.language_model.rotary_emb
    assert torch.equal(dynamic(like, every[:, :-1])[0], rope(like, every[:, :-1])[0])
    assert not torch.equal(dynamic(like, every)[0], rope(like, every)[0])
    asked = Asked(tuple(range(20, 40)) * 30, (1,))
    with attach(model, method("none")), pytest.raises(PrunebenchError, match="expected a prompt of at most 512 tokens"):
        model(**batch([asked]))
    other = make("qwen3")
    with attach(other, method("none")):
        other(**batch([asked]))
