"""A question of the mini data twice: as the runner answers it, and as the library's own vision tower sees its image.

Tests of vision-side methods choose tokens from the latter by plain loops, without the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.core import budget, keeps
from harness.engine.attach import attach
from harness.method import Method, build
from harness.models.adapters import adapter_for
from harness.models.load import LoadedModel, locate_model
from harness.proof.conformance.kit import one_thread
from harness.proof.conformance.tiny import N_VISUAL, ask, prompt, tiny_model
from harness.runner.answering import Answerer, Prompt
from tasks import lmms
from tasks.sources import DataSource


@cache
def mini() -> LoadedModel:
    return locate_model("mini", "cpu", "float32").load()


@cache
def question(number: int = 0) -> Prompt:
    """A question of TextVQA in the mini data."""
    sample = lmms.load_task("textvqa", DataSource.parse("mini"), 24, 0).samples[number]
    return Prompt.of_one(sample.key, sample.prompt, sample.load_image, sample.image_key, 1)


class Recorded(NamedTuple):
    """`kept`: numbers of the image's tokens that reach the language model, ascending; `added`: how many others do."""

    kept: list[int]
    added: int


@cache
def recorded(method: str, asked: str | None = "64", number: int = 0, **knobs: Any) -> Recorded:
    """What the runner records of a question."""
    loaded = mini()
    built = build(method, budget.parse(asked), knobs, loaded.usual)
    (answer,) = Answerer(loaded, built, batch_size=1).answer([question(number)])
    first = keeps.decode(answer.kept, loaded.usual.n_visual)[0]
    return Recorded(np.flatnonzero(first.keep).tolist(), first.added)


class Tower(NamedTuple):
    """Of each layer of the tower: `attentions` (heads, tokens, tokens), and `hidden` (tokens, width) entering it, the
    last one leaving it. Token 0 is [CLS]."""

    attentions: list[NDArray[np.float32]]
    hidden: list[NDArray[np.float32]]


@cache
def tower(number: int = 0) -> Tower:
    """The library's own eager vision tower on the image of a question."""
    loaded = mini()
    vision = loaded.model.model.vision_tower
    before = vision.config._attn_implementation
    vision.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            out = vision(
                loaded.pixels(question(number).images[0].load()), output_attentions=True, output_hidden_states=True
            )
    finally:
        vision.set_attn_implementation(before)
    return Tower([a[0].numpy() for a in out.attentions], [h[0].numpy() for h in out.hidden_states])


def cls_attention(number: int = 0, layer: int = -2) -> list[float]:
    """The attention of [CLS] to each patch in a layer, mean over heads."""
    heads = tower(number).attentions[layer].astype(np.float64)
    return [float(sum(head[0, 1 + patch] for head in heads)) / len(heads) for patch in range(heads.shape[1] - 1)]


def _projections(name: str, layer: int, number: int) -> NDArray[np.float64]:
    """(tokens, width): what a projection of one layer's attention says, heads side by side."""
    loaded = mini()
    adapter = adapter_for(loaded.model)
    block: Any = adapter.tower_layers[layer]
    with torch.inference_mode():
        states = block.layer_norm1(torch.from_numpy(tower(number).hidden[len(adapter.tower_layers) + layer]))
        projected: NDArray[np.float64] = getattr(block.self_attn, name)(states).double().numpy()
    return projected


def keys(layer: int, number: int = 0, cls: bool = False) -> NDArray[np.float64]:
    """(patches, width): keys of a layer, counted from the last; `cls`: (1, width), that of [CLS]."""
    found = _projections("k_proj", layer, number)
    return found[:1] if cls else found[1:]


def queries(layer: int, number: int = 0) -> NDArray[np.float64]:
    """(tokens, width): queries of a layer, counted from the last."""
    return _projections("q_proj", layer, number)


def projected(features: Sequence[NDArray[Any]]) -> Tensor:
    """(m, d): features of the tower through the model's projector."""
    with torch.inference_mode():
        tokens: Tensor = mini().model.model.multi_modal_projector(torch.from_numpy(np.stack(features)).float())
    return tokens


def entering(method: Method, number: int = 0) -> Tensor:
    """(m, d): the visual tokens that enter the language model, of a question's image."""
    loaded, seen = mini(), list[Tensor]()
    token, n = loaded.model.config.image_token_id, loaded.usual.n_visual
    ids = torch.tensor([[1, 2, *[token] * n, 3, 5]])
    method = method.for_model(loaded.usual.decoder)
    with one_thread(), attach(loaded.model, method) as run, torch.inference_mode():
        # after the engine's own hook, which hands the stream on as the first argument
        layer = adapter_for(loaded.model).layers[0]
        handle = layer.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        try:
            loaded.model(input_ids=ids, pixel_values=loaded.pixels(question(number).images[0].load()))
        finally:
            handle.remove()
        return seen[0][0][run.layouts[0].visual[0]]


def best(scores: list[float], n: int) -> list[int]:
    """The numbers of the `n` highest scores, the highest first; the lower number wins a tie."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:n]


def images_alone(method: Method, each: Sequence[Method]) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens that reach the tiny model's decoder, in its order: of a prompt with two images by image, where a method
    looks at both; and of the last images alone, under a method of their own."""
    model, both = tiny_model(), prompt(7, 5, images=2)
    with one_thread():
        kept = ask(model, method, (both,), steps=0).origins[0][0]
        together = [[o - i * N_VISUAL for o in kept if o >= 0 and o // N_VISUAL == i] for i in range(2)]
        alone = []
        for image, own in enumerate(each, start=2 - len(each)):
            single = replace(prompt(7, 5), pixels=both.pixels[image : image + 1])
            alone.append([o for o in ask(model, own, (single,), steps=0).origins[0][0] if o >= 0])
    return together, alone
