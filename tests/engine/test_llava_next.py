"""LLaVA-NeXT under the engine: images of four sizes, ragged batches, two images a prompt, through its own processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import families
import pytest
import torch
from checkpoints import refused
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
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
from harness.models.load import LoadedModel, locate_model
from harness.models.prompt import pad_to_square
from harness.runner.answering import Answer, Answerer, Prompt

#: kept tokens stand where they stood in these; the others are merged, or edit attention
DROPPING = {"none": "", "random": "25%", "fastv": "25%", "pyramiddrop": "60%", "uniform": "30%", "divprune": "25%"}
QUESTIONS = ("Is it red?", "What is in the image, and where?", "Is there a star?", "Which colour is it?")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return locate_model(str(families.llava_next(tmp_path_factory.mktemp("next") / "m")), "cpu").load()


def given(loaded: LoadedModel, *asked: Sequence[int]) -> dict[str, Any]:
    """A left-padded batch through the family's own processor: per prompt the numbers of its images among `SIZES`."""
    images = [[families.picture(*families.SIZES[i], seed=i) for i in numbers] for numbers in asked]
    texts = [f"USER: {'<image> and ' * len(mine)}{QUESTIONS[i]} ASSISTANT:" for i, mine in enumerate(images)]
    out = loaded.processor(images=images, text=texts, padding=True, return_tensors="pt")
    return {name: out[name] for name in ("input_ids", "attention_mask", "pixel_values", "image_sizes")}


def method_of(loaded: LoadedModel, name: str, asked: str = "", **knobs: Any) -> Method:
    located = locate_model(loaded.config.path or "", "cpu")
    return located.method(name, budgets.parse(asked or None), knobs)


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
    ids = inputs["input_ids"]
    ids = torch.cat([ids, torch.arange(7, 7 + step)[None]], 1)
    hidden = core.language_model.embed_tokens(ids).clone()
    features = core.get_image_features(inputs["pixel_values"], inputs["image_sizes"], return_dict=True).pooler_output
    visual = ids[0] == model.config.image_token_id
    hidden[0, visual] = torch.cat(list(features))
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


@pytest.mark.parametrize("policy", ["plain", "pad"])
@pytest.mark.parametrize(
    "size", [*families.SIZES, (640, 480), (2048, 1536), (57, 56), (333, 111), (400, 97), (61, 337)]
)
def test_a_prompt_has_the_tokens_that_the_processor_gives_it(
    loaded: LoadedModel, size: tuple[int, int], policy: Any
) -> None:
    ours = replace(loaded, config=loaded.config.model_copy(update={"image": policy}))
    image = families.picture(*size)
    shown = pad_to_square(image, loaded.processor.image_processor.image_mean) if policy == "pad" else image
    theirs = loaded.processor(images=shown, text=loaded.template.replace("{text}", "Is it?"))["input_ids"][0]
    assert ours.prompt_ids("Is it?", ((size[1], size[0]),)) == list(theirs)


@pytest.mark.parametrize("size", families.SIZES)
def test_the_grids_of_an_image_are_its_features(loaded: LoadedModel, size: tuple[int, int]) -> None:
    """A newline stands where the grid says, and nowhere else."""
    made = loaded.made(families.picture(*size))
    (features,) = loaded.adapter.encode(**made)
    image = loaded.image_at((size[1], size[0]))
    newline = (features.pooled == loaded.model.model.image_newline).all(1)
    prompt = replace(loaded.usual, images=(image,))
    assert newline.tolist() == [place[2] < 0 for place in prompt.places()]
    assert tuple(features.facts["image_sizes"][0].tolist()) == (size[1], size[0])


@torch.inference_mode()
@pytest.mark.parametrize("number", range(4))
def test_none_is_the_bare_model_exactly(loaded: LoadedModel, number: int) -> None:
    inputs = given(loaded, [number])
    bare = steps(loaded.model, inputs)
    wanted = loaded.model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=None)
    with attach(loaded.model, method_of(loaded, "none")) as run:
        for ours, theirs in zip(steps(loaded.model, inputs), bare, strict=True):
            assert float((ours - theirs).abs().max()) == 0.0
        assert torch.equal(
            loaded.model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=None), wanted
        )
        # `generate` keeps the sizes from the model's forward; the run knows the grids all the same
        assert [view.newline for view in run.prompts[0].images[0].views] == [False, True]
    assert "get_image_features" not in vars(loaded.model.model), "attach leaves nothing behind"


@torch.inference_mode()
@pytest.mark.parametrize("name", DROPPING)
def test_pruned_prefill_and_decode_are_a_loop_over_the_kept_tokens(loaded: LoadedModel, name: str) -> None:
    method, depth = method_of(loaded, name, DROPPING[name]), loaded.usual.depth
    for numbers in ([0], [1], [2], [3], [0, 3], [2, 1]):
        inputs = given(loaded, numbers)
        with attach(loaded.model, method, positions="original") as run:
            found = steps(loaded.model, inputs)
            stages = run.stages(0)
            assert len(run.prompts[0].images) == len(numbers)
        assert name == "none" or min(per_layer(stages, depth)) < run.prompts[0].n_visual
        for step, logits in enumerate(found):
            assert torch.allclose(logits[0], by_hand(loaded.model, inputs, stages, depth, step), atol=1e-4), (
                step,
                name,
            )


@torch.inference_mode()
@pytest.mark.parametrize("name", [*DROPPING, "pooling", "sparsevlm", "fastervlm", "hiprune", "visionzip", "vscan"])
def test_a_ragged_batch_is_its_prompts_alone(loaded: LoadedModel, name: str) -> None:
    asked: list[list[int]] = [[0], [3], [2, 1], [1]]
    method = method_of(loaded, name, DROPPING.get(name, "25%"))
    together = given(loaded, *asked)
    assert len(set(together["attention_mask"].sum(1).tolist())) == 4
    with attach(loaded.model, method) as run:
        run.samples = ["a", "b", "c", "d"]
        batch = steps(loaded.model, together)
        costs, counts = run.costs(), [layer.visual for layer in run.trace.layers]
    start = 0
    for row, numbers in enumerate(asked):
        one = {name: value[row : row + 1] for name, value in together.items()}
        kept = one["attention_mask"][0].bool()
        one["input_ids"], one["attention_mask"] = one["input_ids"][:, kept], one["attention_mask"][:, kept]
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


def answers(loaded: LoadedModel, method: Method, share: bool, size: int) -> tuple[dict[str, Answer], PrefixCache]:
    prompts = [
        Prompt.of_one(f"{i}-{n}", QUESTIONS[n], lambda i=i: families.picture(*families.SIZES[i], seed=i), str(i), 5)  # type: ignore[misc]
        for i in range(4)
        for n in range(3)
    ]
    prefixes = PrefixCache()
    answerer = Answerer(loaded, method, batch_size=size, prefixes=prefixes if share else None)
    return {answer.key: answer for answer in answerer.answer(prompts)}, prefixes


@pytest.mark.parametrize("name", [*DROPPING, "pooling", "fastervlm", "hiprune", "visionzip", "vscan"])
def test_shared_prefixes_of_unlike_length_give_the_answers_of_prompts_alone(loaded: LoadedModel, name: str) -> None:
    method = method_of(loaded, name, DROPPING.get(name, "25%"))
    alone, _ = answers(loaded, method, False, 1)
    shared, prefixes = answers(loaded, method, True, 8)
    assert prefixes.captured == 4
    for key, answer in alone.items():
        assert shared[key].text == answer.text, key
        assert shared[key].kept == answer.kept
        assert shared[key].cost == pytest.approx(answer.cost)


@torch.inference_mode()
@pytest.mark.parametrize("number", range(4))
def test_tower_and_projector_cost_what_the_counter_counts(loaded: LoadedModel, number: int) -> None:
    made = loaded.made(families.picture(*families.SIZES[number]))
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        loaded.adapter.encode(**made)
    width, height = families.SIZES[number]
    vision = loaded.image_at((height, width)).vision
    assert counter.get_total_flops() == flops.vision_tower(vision) + flops.projector(loaded.usual.decoder, vision)
    assert vision.tiles == (5, 5, 5, 3)[number]


@torch.inference_mode()
def test_looks_stand_in_the_order_of_the_language_models_tokens(loaded: LoadedModel) -> None:
    """What the tower says of a patch stands where the patch's feature stands: projected, it is the feature."""

    class Looking(Method):
        name = "looking"

        def looks(self, shape: Any) -> tuple[TowerLook, ...]:
            return TowerLook("hidden", -2), TowerLook("cls_row", -2), TowerLook("cls_hidden", -2)

        def on_image(self, run: Any, tower: Any) -> None:
            run.memo.update({look.what: value for look, value in tower.items()})

    inputs = given(loaded, [0, 3])
    with attach(loaded.model, Looking()) as run:
        loaded.model(**inputs)
        seen, prompt = dict(run.memo), run.prompts[0]
    features = loaded.model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
    newline = torch.tensor([place[2] < 0 for place in prompt.places()])
    projected = loaded.adapter.project(seen["hidden"][0])
    assert torch.allclose(projected[~newline], torch.cat(list(features))[~newline], atol=1e-5)
    assert bool((seen["hidden"][0][newline] == 0).all())
    assert bool((seen["cls_row"][0][:, newline] == 0).all())
    assert bool((seen["cls_row"][0][:, ~newline] > 0).all())
    # every row of a tile is a softmax without [CLS] itself; the overview comes first
    assert seen["cls_hidden"].shape[:2] == (1, 2)
    tower = loaded.model.model.vision_tower(inputs["pixel_values"][0, :1], output_hidden_states=True).hidden_states[-2]
    assert torch.allclose(seen["cls_hidden"][0, 0], tower[0, 0], atol=1e-5)
    assert torch.allclose(seen["hidden"][0, :16], tower[0, 1:], atol=1e-5)


#: what is said of methods that do not run on tiles
REFUSED = {
    "cdpruner": "one grid of patches",
    "holov": "one grid of patches",
    "mmtok": "one grid of patches",
    "prumerge": "one grid of patches",
    "vispruner": "one grid of patches",
    "vtw": "withdraws all visual tokens",
}


@pytest.mark.parametrize("name", sorted({*registered()} - {"downsample"}))  # tests/runner/test_shrunk_pictures.py
def test_every_method_runs_at_its_plan_or_says_why_not_where_it_is_built(loaded: LoadedModel, name: str) -> None:
    asked = "30%" if registered()[name].budget_knobs else ""
    knobs = {"relevance": "none"} if name == "cdpruner" else {}
    if name in REFUSED:
        assert REFUSED[name] in refused(lambda: method_of(loaded, name, asked, **knobs))
        return
    method = method_of(loaded, name, asked)
    prompts = [
        Prompt.of_one(f"{i}", QUESTIONS[i], lambda i=i: families.picture(*families.SIZES[i], seed=i), str(i), 2)  # type: ignore[misc]
        for i in range(4)
    ]
    for answer in Answerer(loaded, method, batch_size=3).answer(prompts):
        width, height = families.SIZES[int(answer.key)]
        prompt = replace(loaded.usual, images=(loaded.image_at((height, width)),), n_text=int(answer.cost["n_text"]))
        plan = method.plan(prompt)
        if plan is not None:
            assert answer.cost["mean_visual"] == pytest.approx(sum(plan) / len(plan))
            assert answer.cost["scoring_flops"] == (method.plan_scoring(prompt, plan) or answer.cost["scoring_flops"])
            assert asked == "" or plan[-1] <= prompt.quota(Share(0.3))


@torch.inference_mode()
def test_two_images_of_a_prompt_are_pruned_by_name_and_share(loaded: LoadedModel) -> None:
    inputs = given(loaded, [0, 3], [1])
    with prunebench.prune(loaded.model, "fastv", "25%") as run:
        loaded.model(**inputs)
        n = [prompt.n_visual for prompt in run.prompts]
        assert [len(prompt.images) for prompt in run.prompts] == [2, 1]
        assert run.trace.layers[-1].visual == [round(x / 4) for x in n]


@torch.inference_mode()
def test_features_without_sizes_are_refused(loaded: LoadedModel) -> None:
    inputs = given(loaded, [0])
    features = loaded.adapter.encode(pixel_values=inputs["pixel_values"], image_sizes=inputs["image_sizes"])
    outputs = loaded.adapter.outputs(features)
    with attach(loaded.model, method_of(loaded, "uniform", "25%")) as run:
        with pytest.raises(PrunebenchError, match="expected image_sizes"):
            loaded.model(input_ids=inputs["input_ids"], mm_encoder_outputs=outputs)
        loaded.model(input_ids=inputs["input_ids"], **loaded.adapter.inputs(features, inputs["input_ids"]))
        assert run.prompts[0].images[0].views == (Grid(4, 4), Grid(4, 8, newline=True))
        with pytest.raises(PrunebenchError, match="expected image_sizes"):  # those of the last prompt are no one else's
            loaded.model(input_ids=inputs["input_ids"], mm_encoder_outputs=outputs)
