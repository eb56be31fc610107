"""LLaVA-OneVision under the engine: images of four sizes, shrunk and not, ragged batches, several images a prompt,
through its own processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import onevisions
import pytest
import torch
from checkpoints import refused
from onevisions import picture, size_of
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import interpolate
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

import prunebench
from harness.core import budget as budgets
from harness.core import flops
from harness.core.errors import PrunebenchError
from harness.core.keeps import per_layer
from harness.core.shape import Grid, Share
from harness.engine.attach import attach
from harness.engine.prefix import PrefixCache
from harness.method import Method, TowerLook, registered
from harness.models.adapters.llava_onevision import NUMBERS
from harness.models.load import LoadedModel, locate_model
from harness.runner.answering import Answer, Answerer, Prompt, PromptImage

#: kept tokens stand where they stood in these; the others are merged, or edit attention
DROPPING = {"none": "", "random": "25%", "fastv": "25%", "pyramiddrop": "60%", "uniform": "30%", "divprune": "25%"}
QUESTIONS = ("Is it red?", "What is in the image, and where?", "Is there a star?", "Which colour is it?")
#: of prompts: one image of each size, two and three together
ASKED = ([0], [1], [2], [3], [1, 2], [0, 3, 2])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return locate_model(str(onevisions.folder(tmp_path_factory.mktemp("onevision") / "m")), "cpu").load()


def given(loaded: LoadedModel, *asked: Sequence[int]) -> dict[str, Any]:
    """A left-padded batch of the family's own processor: per prompt the numbers of its images."""
    return onevisions.asked(loaded.processor, *((QUESTIONS[i % 4], numbers) for i, numbers in enumerate(asked)))


def method_of(loaded: LoadedModel, name: str, asked: str = "", **knobs: Any) -> Method:
    located = locate_model(loaded.config.path or "", "cpu")
    return located.method(name, budgets.parse(asked or None), knobs)


def pixels_of(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: inputs[name] for name in ("pixel_values", "image_sizes", NUMBERS)}


def steps(model: Any, inputs: dict[str, Any], n: int = 4) -> list[Tensor]:
    """Logits (b, vocabulary) of a prefill and of `n` decode steps after the tokens 7, 8, ..."""
    cache = DynamicCache(config=model.config.text_config)
    found = [model(**inputs, past_key_values=cache, logits_to_keep=1).logits[:, -1]]
    mask = inputs["attention_mask"]
    for step in range(n):
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        ids = torch.full((mask.shape[0], 1), 7 + step)
        found.append(model(input_ids=ids, attention_mask=mask, past_key_values=cache).logits[:, -1])
    return found


@torch.inference_mode()
def by_hand(model: Any, inputs: dict[str, Any], keeps: Sequence[Any], depth: int, step: int) -> Tensor:
    """Logits (vocabulary,) after `step` decode tokens: the decoder's layers one by one over the kept tokens at the
    positions of the prompt, without cache and engine. `keeps`: the stages of what is kept."""
    core = model.model
    ids = torch.cat([inputs["input_ids"], torch.arange(7, 7 + step)[None]], 1)
    hidden = core.language_model.embed_tokens(ids).clone()
    visual = ids[0] == model.config.image_token_id
    hidden[0, visual] = torch.cat(list(core.get_image_features(**pixels_of(inputs), return_dict=True).pooler_output))
    positions = torch.arange(ids.shape[1])
    index = torch.full_like(positions, -1)
    index[visual] = torch.arange(int(visual.sum()))
    by_layer = {stage.layer: torch.as_tensor(stage.keep) for stage in keeps}
    for layer in range(depth):
        if layer in by_layer:
            stays = (index < 0) | by_layer[layer][index.clamp(min=0)]
            hidden, positions, index = hidden[:, stays], positions[stays], index[stays]
        n = hidden.shape[1]
        mask = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
        rotary = core.language_model.rotary_emb(hidden, position_ids=positions[None])
        out = core.language_model.layers[layer](hidden, attention_mask=mask, position_embeddings=rotary)
        hidden = out[0] if isinstance(out, tuple) else out
    logits: Tensor = model.lm_head(core.language_model.norm(hidden[:, -1]))[0]
    return logits


# -------------------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("numbers", ASKED)
def test_a_prompt_has_the_tokens_that_the_processor_gives_it(loaded: LoadedModel, numbers: list[int]) -> None:
    """Images in front of the text, as the checkpoint's template puts them."""
    content = (*[None] * len(numbers), "Is it?")
    parts = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in content]
    text = loaded.processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    images = [picture(number) for number in numbers]
    theirs = loaded.processor(text=[text], images=[images])["input_ids"][0]
    assert loaded.prompt_ids(content, tuple(size_of(number) for number in numbers)) == list(theirs)
    if len(numbers) > 1:  # in one flat list each is cut like one, and has more tokens
        assert len(loaded.processor(text=[text], images=images)["input_ids"][0]) > len(theirs)


@pytest.mark.parametrize(
    "size", [(640, 480), (2048, 1536), (61, 60), (333, 111), (400, 97), (61, 337), (1, 1), (100, 1), (3, 300)]
)
def test_a_prompt_of_any_size_has_the_tokens_that_the_processor_gives_it(
    loaded: LoadedModel, size: tuple[int, int]
) -> None:
    image = Image.new("RGB", size)
    theirs = loaded.processor(images=image, text=loaded.template.replace("{text}", "Is it?"))["input_ids"][0]
    assert loaded.prompt_ids("Is it?", ((size[1], size[0]),)) == list(theirs)
    (features,) = loaded.adapter.encode(**loaded.made(image))
    assert len(features.pooled) == loaded.tokens_at((size[1], size[0]))


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("n_images", [1, 2])
def test_the_grids_of_an_image_are_its_features(loaded: LoadedModel, number: int, n_images: int) -> None:
    """A newline stands where the grid says, and nowhere else."""
    made = loaded.uploaded(loaded.processed(picture(number), n_images))
    (features,) = loaded.adapter.encode(**made)
    image = loaded.image_at(size_of(number), n_images)
    newline = (features.pooled == loaded.model.model.image_newline).all(1)
    prompt = replace(loaded.usual, images=(image,))
    assert newline.tolist() == [place[2] < 0 for place in prompt.places()]
    assert newline.any()
    assert tuple(features.facts["image_sizes"][0].tolist()) == size_of(number)
    assert features.facts[NUMBERS].tolist() == [n_images]


# ------------------------------------------------------------------------------------------------------ nothing pruned


@torch.inference_mode()
@pytest.mark.parametrize("numbers", ASKED)
def test_none_is_the_bare_model_exactly(loaded: LoadedModel, numbers: list[int]) -> None:
    inputs = given(loaded, numbers)
    words = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    bare = steps(loaded.model, inputs)
    wanted = loaded.model.generate(**inputs, **words, output_logits=True, return_dict_in_generate=True)
    with attach(loaded.model, method_of(loaded, "none")) as run:
        for ours, theirs in zip(steps(loaded.model, inputs), bare, strict=True):
            assert float((ours - theirs).abs().max()) == 0.0
        found = loaded.model.generate(**inputs, **words, output_logits=True, return_dict_in_generate=True)
        assert torch.equal(found.sequences, wanted.sequences)
        assert all(torch.equal(a, b) for a, b in zip(found.logits, wanted.logits, strict=True))
        # `generate` keeps sizes and numbers from the model's forward; the run knows the grids all the same
        assert run.prompts[0].images == loaded.images_at([size_of(number) for number in numbers])
    assert "get_image_features" not in vars(loaded.model.model), "attach leaves nothing behind"
    with attach(loaded.model, method_of(loaded, "fastv", "25%")):
        pruned = loaded.model.generate(**inputs, **words, output_logits=True, return_dict_in_generate=True)
    assert not torch.allclose(pruned.logits[0], wanted.logits[0], atol=1e-3)


@torch.inference_mode()
def test_a_padded_batch_of_none_is_the_bare_batch(loaded: LoadedModel) -> None:
    inputs = given(loaded, *ASKED)
    assert inputs["pixel_values"].shape[:2] == (9, 13), "images with fewer tiles are padded with zeros"
    bare = steps(loaded.model, inputs)
    with attach(loaded.model, method_of(loaded, "none")) as run:
        ours = steps(loaded.model, inputs)
        shapes = [loaded.images_at([size_of(number) for number in numbers]) for numbers in ASKED]
        assert [prompt.images for prompt in run.prompts] == shapes
    for a, b in zip(ours, bare, strict=True):
        assert torch.allclose(a, b, atol=2e-5)


@torch.inference_mode()
def test_features_made_once_give_the_logits_of_pixels(loaded: LoadedModel) -> None:
    """Made image by image with the facts of their prompts, in another order, and used in a batch."""
    inputs = given(loaded, *ASKED)
    bare = steps(loaded.model, inputs)
    made = {
        (number, len(numbers) > 1): loaded.uploaded(loaded.processed(picture(number), len(numbers)))
        for numbers in reversed(ASKED)
        for number in numbers
    }
    with attach(loaded.model, method_of(loaded, "none")) as run:
        features = {key: run.encode(**one)[0][0] for key, one in made.items()}
        flat = [features[number, len(numbers) > 1] for numbers in ASKED for number in numbers]
        more = loaded.adapter.inputs(flat, inputs["input_ids"])
        assert more[NUMBERS].tolist() == inputs[NUMBERS].tolist() == [1, 1, 1, 1, 2, 3]
        assert more["image_sizes"].tolist() == inputs["image_sizes"].tolist()
        ours = steps(loaded.model, {name: inputs[name] for name in ("input_ids", "attention_mask")} | more)
    for a, b in zip(ours, bare, strict=True):
        assert torch.allclose(a, b, atol=2e-5)


@torch.inference_mode()
def test_several_images_in_one_flat_list_are_cut_each(loaded: LoadedModel) -> None:
    """As a processor makes them that is not told which images stand together: the model runs it, and so do we."""
    images = [picture(1), picture(3)]
    text = loaded.template.replace("<image>", "<image>\n<image>").replace("{text}", "Is it?")
    inputs = dict(loaded.processor(text=[text], images=images, return_tensors="pt"))
    assert inputs[NUMBERS].tolist() == [1, 1]
    bare = steps(loaded.model, inputs)
    with attach(loaded.model, method_of(loaded, "none")) as run:
        ours = steps(loaded.model, inputs)
        assert run.prompts[0].images == (loaded.image_at(size_of(1)), loaded.image_at(size_of(3)))
        features, _ = run.encode(**pixels_of(inputs))
        again = loaded.adapter.inputs(features, inputs["input_ids"])
        assert again[NUMBERS].tolist() == [1, 1]
        del inputs[NUMBERS]  # without, the model takes every image for one alone
        assert torch.equal(steps(loaded.model, inputs)[0], bare[0])
    assert all(torch.equal(a, b) for a, b in zip(ours, bare, strict=True))


# -------------------------------------------------------------------------------------------------------------- pruned


@torch.inference_mode()
@pytest.mark.parametrize("name", DROPPING)
def test_pruned_prefill_and_decode_are_a_loop_over_the_kept_tokens(loaded: LoadedModel, name: str) -> None:
    method, depth = method_of(loaded, name, DROPPING[name]), loaded.usual.depth
    for numbers in ASKED:
        inputs = given(loaded, numbers)
        unpruned = steps(loaded.model, inputs)
        with attach(loaded.model, method, positions="original") as run:
            found = steps(loaded.model, inputs)
            stages = run.stages(0)
            assert len(run.prompts[0].images) == len(numbers)
        assert name == "none" or min(per_layer(stages, depth)) < run.prompts[0].n_visual
        for step, logits in enumerate(found):
            assert torch.allclose(logits[0], by_hand(loaded.model, inputs, stages, depth, step), atol=1e-4), step
            assert (name == "none") == torch.allclose(logits, unpruned[step], atol=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("boundary", [0, 1, 2, 4])
def test_pruning_at_any_boundary_is_a_loop_over_the_kept_tokens(loaded: LoadedModel, boundary: int) -> None:
    method, depth = method_of(loaded, "random", "40%", boundary=boundary), loaded.usual.depth
    for numbers in ([2], [0, 3, 2]):
        inputs = given(loaded, numbers)
        with attach(loaded.model, method, positions="original") as run:
            found = steps(loaded.model, inputs)
            stages = run.stages(0)
        assert [n < run.prompts[0].n_visual for n in per_layer(stages, depth)] == [i >= boundary for i in range(depth)]
        for step, logits in enumerate(found):
            assert torch.allclose(logits[0], by_hand(loaded.model, inputs, stages, depth, step), atol=1e-4), step


@torch.inference_mode()
@pytest.mark.parametrize("name", [*DROPPING, "pooling", "sparsevlm", "visipruner", "dart"])
def test_a_ragged_batch_is_its_prompts_alone(loaded: LoadedModel, name: str) -> None:
    asked: list[list[int]] = [[1], [0], [2, 1], [3]]
    method = method_of(loaded, name, DROPPING.get(name, "25%"))
    together = given(loaded, *asked)
    assert len(set(together["attention_mask"].sum(1).tolist())) == 4
    with attach(loaded.model, method) as run:
        run.samples = ["a", "b", "c", "d"]
        batch = steps(loaded.model, together)
        costs, counts = run.costs(), [layer.visual for layer in run.trace.layers]
    start = 0
    for row, numbers in enumerate(asked):
        one = {name: value[row : row + 1] for name, value in together.items() if name in ("input_ids", NUMBERS)}
        one["input_ids"] = one["input_ids"][:, together["attention_mask"][row].bool()]
        one["attention_mask"] = torch.ones_like(one["input_ids"])
        for part in ("pixel_values", "image_sizes"):
            one[part] = together[part][start : start + len(numbers)]
        start += len(numbers)
        with attach(loaded.model, method) as run:
            run.samples = ["abcd"[row]]
            alone = steps(loaded.model, one)
            assert [layer.visual[0] for layer in run.trace.layers] == [layer[row] for layer in counts]
            for column, values in run.costs().items():
                assert values[0] == pytest.approx(costs[column][row]), column
        for ours, theirs in zip(batch, alone, strict=True):
            assert torch.allclose(ours[row], theirs[0], atol=1e-4)


def prompts_of(asked: Sequence[Sequence[int]], n: int = 3) -> list[Prompt]:
    return [
        Prompt(
            f"{'-'.join(map(str, numbers))} {question}",
            (*[None] * len(numbers), QUESTIONS[question]),
            tuple(PromptImage(str(i), lambda i=i: picture(i)) for i in numbers),  # type: ignore[misc]
            "-".join(map(str, numbers)),
            5,
        )
        for numbers in asked
        for question in range(n)
    ]


def answers(loaded: LoadedModel, method: Method, share: bool, size: int) -> tuple[dict[str, Answer], PrefixCache]:
    prefixes = PrefixCache()
    answerer = Answerer(loaded, method, batch_size=size, prefixes=prefixes if share else None)
    return {answer.key: answer for answer in answerer.answer(prompts_of(ASKED))}, prefixes


@pytest.mark.parametrize("name", [*DROPPING, "pooling", "visipruner"])
def test_shared_prefixes_of_unlike_length_give_the_answers_of_prompts_alone(loaded: LoadedModel, name: str) -> None:
    """Pictures that stand alone in one prompt and among others in the next have features of both kinds."""
    method = method_of(loaded, name, DROPPING.get(name, "25%"))
    alone, _ = answers(loaded, method, False, 1)
    shared, prefixes = answers(loaded, method, True, 8)
    assert prefixes.captured == len(ASKED)
    for key, answer in alone.items():
        assert shared[key].text == answer.text, key
        assert shared[key].kept == answer.kept
        assert shared[key].cost == pytest.approx(answer.cost)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["none", "fastv"])
def test_answers_are_those_of_the_engine_on_the_processors_own_prompt(loaded: LoadedModel, name: str) -> None:
    method = method_of(loaded, name, DROPPING[name])
    found = {answer.key: answer for answer in Answerer(loaded, method, batch_size=4).answer(prompts_of(ASKED, 1))}
    for prompt, numbers in zip(prompts_of(ASKED, 1), ASKED, strict=True):
        text = loaded.template.replace("<image>\n", "<image>\n" * len(numbers)).replace("{text}", QUESTIONS[0])
        images = [picture(number) for number in numbers]
        inputs = loaded.processor(text=[text], images=[images], return_tensors="pt")
        words = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": list(loaded.end_tokens)}
        with attach(loaded.model, method):
            new = loaded.model.generate(**inputs, **words)[0, inputs["input_ids"].shape[1] :]
        assert found[prompt.key].text == loaded.processor.tokenizer.decode(new, skip_special_tokens=True).strip()


# --------------------------------------------------------------------------------------------------------------- costs


@torch.inference_mode()
@pytest.mark.parametrize("numbers", ASKED)
def test_tower_and_projector_cost_what_the_counter_counts(loaded: LoadedModel, numbers: list[int]) -> None:
    """Also where the processor padded images to the tiles of the largest: those are not run."""
    shapes = loaded.images_at([size_of(number) for number in numbers])
    for inputs in (given(loaded, numbers), {k: v[: len(numbers)] for k, v in given(loaded, numbers).items()}):
        counter = FlopCounterMode(display=False)
        with counter, sdpa_kernel(SDPBackend.MATH):
            loaded.adapter.encode(**pixels_of(inputs))
        decoder = loaded.usual.decoder
        stated = sum(flops.vision_tower(i.vision) + flops.projector(decoder, i.vision) for i in shapes)
        assert counter.get_total_flops() == stated
    assert [image.vision.tiles for image in shapes] == (
        [1] * len(numbers) if len(numbers) > 1 else [(2, 7, 13, 7)[numbers[0]]]
    )


@torch.inference_mode()
@pytest.mark.parametrize("name", ["none", "fastv"])
def test_prefill_and_decode_cost_what_the_counter_counts(loaded: LoadedModel, name: str) -> None:
    inputs = given(loaded, [2])
    with attach(loaded.model, method_of(loaded, name, DROPPING[name])) as run:
        steps(loaded.model, inputs)  # what is made once
        counter = FlopCounterMode(display=False)
        with counter, sdpa_kernel(SDPBackend.MATH):
            steps(loaded.model, inputs)
        trace, (prompt,) = run.trace, run.prompts
    decoder, vision = prompt.decoder, prompt.images[0].vision
    stated = flops.prefill_executed(decoder, trace) + flops.decode_executed(decoder, trace) + flops.lm_head(decoder, 5)
    assert counter.get_total_flops() == stated + flops.vision_tower(vision) + flops.projector(decoder, vision)


# --------------------------------------------------------------------------------------------------------------- looks


class LookingOn(Method):
    name = "looking-on"

    def looks(self, shape: Any) -> tuple[TowerLook, ...]:
        return TowerLook("hidden", -1), TowerLook("keys", 1), TowerLook("column_sums", -2)

    def on_image(self, run: Any, tower: Any) -> None:
        run.memo.update({look.what: value for look, value in tower.items()})


def raster(loaded: LoadedModel, features: Tensor, number: int) -> Tensor:
    """(v, d): `features (tiles, patches, d)` of an image as the model lays them out, newlines as zeros."""
    core = loaded.model.model
    zeros = torch.zeros(features.shape[2])
    (packed,), _ = core.pack_image_features([features], torch.tensor([size_of(number)]), zeros, onevisions.ASPECT)
    return packed


@torch.inference_mode()
@pytest.mark.parametrize("number", range(4))
def test_looks_stand_in_the_order_of_the_language_models_tokens(loaded: LoadedModel, number: int) -> None:
    """What the tower says of patches is laid out, and shrunk, by the model's own weights, as their features are."""
    inputs = given(loaded, [number])
    with attach(loaded.model, LookingOn()) as run:
        loaded.model(**inputs)
        seen, prompt = dict(run.memo), run.prompts[0]
    tower = loaded.model.model.vision_tower
    states = tower(inputs["pixel_values"][0], output_hidden_states=True).hidden_states
    assert torch.allclose(seen["hidden"][0], raster(loaded, states[-1], number), atol=1e-5)
    attention = tower.encoder.layers[1]
    normed = attention.layer_norm1(states[1])
    assert torch.allclose(seen["keys"][0], raster(loaded, attention.self_attn.k_proj(normed), number), atol=1e-5)
    newline = torch.tensor([place[2] < 0 for place in prompt.places()])
    sums = seen["column_sums"][0]
    assert bool((seen["hidden"][0][newline] == 0).all())
    assert bool((sums[:, newline] == 0).all())
    assert bool((sums[:, ~newline] > 0).all())
    # all patches of a tile ask, and each asks once
    assert torch.allclose(sums[:, :16].sum(1), torch.tensor(16.0), atol=1e-4)
    assert torch.allclose(sums, column_sums(loaded, states[1], number), atol=1e-5)
    if prompt.images[0].views[1] == loaded.adapter.cut(loaded.model.config, size_of(number)).raster:
        features = loaded.adapter.encode(**pixels_of(inputs))[0].pooled
        projected = loaded.adapter.project(seen["hidden"][0])
        assert torch.allclose(projected[~newline], features[~newline], atol=1e-5), (
            "unshrunk, they are the feature's own"
        )


def column_sums(loaded: LoadedModel, states: Tensor, number: int) -> Tensor:
    """(heads, v): softmax rows of all patches of layer 1, summed over the rows, laid out with `interpolate` by hand."""
    layer = loaded.model.model.vision_tower.encoder.layers[1]
    normed = layer.layer_norm1(states)
    q, k = (
        p(normed).view(*states.shape[:2], 2, 8).transpose(1, 2)
        for p in (layer.self_attn.q_proj, layer.self_attn.k_proj)
    )
    sums = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1).sum(2)  # (tiles, heads, patches)
    cut, image = loaded.adapter.cut(loaded.model.config, size_of(number)), loaded.image_at(size_of(number))
    tiles = sums[1:].view(cut.rows, cut.cols, 2, 4, 4).permute(2, 0, 3, 1, 4).reshape(2, 4 * cut.rows, 4 * cut.cols)
    inside = tiles[:, cut.pad_rows : 4 * cut.rows - cut.pad_rows, cut.pad_cols : 4 * cut.cols - cut.pad_cols]
    rows, cols, _ = image.views[1]
    shrunk = interpolate(inside[None], (rows, cols), mode="bilinear")[0]
    whole = torch.cat([shrunk, torch.zeros(2, rows, 1)], 2).flatten(1)
    return torch.cat([sums[0], whole], 1)


@torch.inference_mode()
def test_looks_at_images_of_a_prompt_of_several_are_their_patches(loaded: LoadedModel) -> None:
    inputs = given(loaded, [1, 2])
    with attach(loaded.model, LookingOn()) as run:
        loaded.model(**inputs)
        hidden = run.memo["hidden"][0].view(2, 17, -1)
    tower = loaded.model.model.vision_tower
    states = tower(inputs["pixel_values"][:, 0], output_hidden_states=True).hidden_states[-1]
    assert torch.allclose(hidden[:, :16], states, atol=1e-5)
    assert bool((hidden[:, 16] == 0).all())


@pytest.mark.parametrize("what", ["cls_row", "cls_hidden", "cls_query", "cls_key"])
def test_looks_at_a_cls_are_refused(loaded: LoadedModel, what: Any) -> None:
    class OfCls(Method):
        name = "of-cls"

        def looks(self, shape: Any) -> tuple[TowerLook, ...]:
            return (TowerLook(what, -2),)

    assert "expected a vision tower with a [CLS] token" in refused(lambda: Answerer(loaded, OfCls()))


# ------------------------------------------------------------------------------------------------------------ refusals

#: what is said of methods that do not run on this family
REFUSED = {
    "cdpruner": "one grid of patches",
    "fastervlm": "[CLS]",
    "hiprune": "shrinks the raster of its tiles",
    "holov": "[CLS]",
    "mmtok": "one grid of patches",
    "prumerge": "[CLS]",
    "visionzip": "[CLS]",
    "vispruner": "[CLS]",
    "vscan": "[CLS]",
    "vtw": "withdraws all visual tokens",
}


@pytest.mark.parametrize("name", sorted({*registered()} - {"downsample"}))  # tests/runner/test_onevision_asked.py
def test_every_method_runs_at_its_plan_or_says_why_not_where_it_is_built(loaded: LoadedModel, name: str) -> None:
    asked = "30%" if registered()[name].budget_knobs else ""
    knobs = {"relevance": "none"} if name == "cdpruner" else {}
    if name in REFUSED:
        assert REFUSED[name] in refused(lambda: method_of(loaded, name, asked, **knobs))
        return
    method = method_of(loaded, name, asked)
    for answer in Answerer(loaded, method, batch_size=3).answer(prompts_of(ASKED, 1)):
        numbers = [int(number) for number in answer.key.split()[0].split("-")]
        images = loaded.images_at([size_of(number) for number in numbers])
        prompt = replace(loaded.usual, images=images, n_text=int(answer.cost["n_text"]))
        assert answer.cost["n_visual"] == prompt.n_visual
        plan = method.plan(prompt)
        if plan is not None:
            assert answer.cost["mean_visual"] == pytest.approx(sum(plan) / len(plan))
            assert answer.cost["scoring_flops"] == (method.plan_scoring(prompt, plan) or answer.cost["scoring_flops"])
            assert asked == "" or plan[-1] <= prompt.quota(Share(0.3))


@torch.inference_mode()
def test_images_of_a_prompt_are_pruned_by_name_and_share(loaded: LoadedModel) -> None:
    inputs = given(loaded, [1, 2], [3])
    with prunebench.prune(loaded.model, "fastv", "25%") as run:
        loaded.model(**inputs)
        n = [prompt.n_visual for prompt in run.prompts]
        assert (n, [len(prompt.images) for prompt in run.prompts]) == ([34, 46], [2, 1])
        assert run.trace.layers[-1].visual == [int(x / 4 + 0.5) for x in n]


@torch.inference_mode()
def test_features_without_facts_are_refused(loaded: LoadedModel) -> None:
    inputs = given(loaded, [1])
    features = loaded.adapter.encode(**pixels_of(inputs))
    outputs = loaded.adapter.outputs(features)
    with attach(loaded.model, method_of(loaded, "uniform", "25%")) as run:
        with pytest.raises(PrunebenchError, match="expected image_sizes"):
            loaded.model(input_ids=inputs["input_ids"], mm_encoder_outputs=outputs)
        loaded.model(input_ids=inputs["input_ids"], **loaded.adapter.inputs(features, inputs["input_ids"]))
        assert run.prompts[0].images[0].views == (Grid(4, 4), Grid(4, 8, newline=True))
        with pytest.raises(PrunebenchError, match="expected image_sizes"):  # those of the last prompt are no one else's
            loaded.model(input_ids=inputs["input_ids"], mm_encoder_outputs=outputs)


@torch.inference_mode()
def test_features_and_prompts_of_unlike_company_are_refused(loaded: LoadedModel) -> None:
    """An image that was made for a prompt of several stands in none of one, and the other way about."""
    two, one = given(loaded, [1, 2]), given(loaded, [1])
    pair = loaded.adapter.encode(**pixels_of(two))
    (cut,) = loaded.adapter.encode(**pixels_of(one))
    for images, inputs in (([cut, pair[1]], two), (pair[:1], one), (pair[:1], two), ([*pair, cut], two)):
        said = refused(lambda images=images, inputs=inputs: loaded.adapter.inputs(images, inputs["input_ids"]))
        assert "expected" in said
    wrong = {**pixels_of(two), NUMBERS: torch.tensor([3])}
    assert "found [3]" in refused(lambda: loaded.adapter.encode(**wrong))
    assert "found [2, 1]" in refused(lambda: loaded.adapter.encode(**{**pixels_of(two), NUMBERS: torch.tensor([2, 1])}))
    facts = {**loaded.adapter.inputs(pair, two["input_ids"]), NUMBERS: torch.tensor([1, 1])}
    with (
        attach(loaded.model, method_of(loaded, "uniform", "25%")),
        pytest.raises(PrunebenchError, match="expected whole images"),
    ):
        loaded.model(input_ids=two["input_ids"], attention_mask=two["attention_mask"], **facts)


def test_a_question_with_a_video_is_refused_by_its_sample(loaded: LoadedModel) -> None:
    with pytest.raises(PrunebenchError, match="expected a prompt without videos, found '<video>' in it"):
        loaded.prompt_ids("Is <video> red?", ((90, 140),))


@torch.inference_mode()
def test_a_prompt_with_a_video_is_refused(loaded: LoadedModel) -> None:
    inputs = given(loaded, [0])
    inputs["input_ids"][0, -2] = loaded.model.config.video_token_id
    with (
        attach(loaded.model, method_of(loaded, "none")),
        pytest.raises(PrunebenchError, match="videos are not supported"),
    ):
        loaded.model(**inputs)
