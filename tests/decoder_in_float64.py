"""The mini model's decoder in float64 by plain loops, without the engine and without the library's layers.

Tests of methods inside the language model say between the layers which tokens go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from by_hand import entering, mini, question
from numpy.typing import NDArray

from harness.core.budget import NONE
from harness.engine.attach import attach
from harness.method import Method, build
from harness.models.adapters import adapter_for
from harness.proof.conformance.kit import one_thread

Floats = NDArray[np.float64]
BEFORE, AFTER = [1, 2, 7], [3, 5, 11, 13]


class Seen(NamedTuple):
    """One layer's attention (heads, n, n), and the columns of the visual tokens and of the text behind them."""

    layer: int
    attention: Floats
    visual: list[int]
    after: list[int]


class Walked(NamedTuple):
    """`logits` of the last token; `entering`: the image's tokens that enter each layer."""

    logits: Floats
    entering: list[list[int]]


#: the columns that leave behind a layer
Leaving = Callable[[Seen], Sequence[int]]


def _array(x: Any) -> Floats:
    found: Floats = x.detach().double().numpy()
    return found


def _normed(x: Floats, norm: Any) -> Floats:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + norm.variance_epsilon) * _array(norm.weight)


def _rotated(x: Floats, positions: Sequence[int], theta: float) -> Floats:
    """`x (heads, n, d)` under RoPE, the two halves of a vector paired."""
    half = x.shape[-1] // 2
    angle = np.array(positions)[:, None] / theta ** (np.arange(half) / half)[None]
    first, second = x[..., :half], x[..., half:]
    return np.concatenate(
        [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)], -1
    )


def walk(leaving: Leaving, renumber: bool = False, number: int = 0) -> Walked:
    """The decoder on a short prompt about the image of a question. `renumber`: positions without gaps after a loss."""
    loaded = mini()
    adapter = adapter_for(loaded.model)
    config, n_visual = loaded.model.config.text_config, loaded.usual.n_visual
    embedded = _array(loaded.model.get_input_embeddings()(torch.tensor(BEFORE + AFTER)))
    image = _array(entering(build("none", NONE, {}, loaded.usual), number))
    x = np.concatenate([embedded[: len(BEFORE)], image, embedded[len(BEFORE) :]])
    kind = [-1] * len(BEFORE) + list(range(n_visual)) + [-2] * len(AFTER)
    positions = list(range(len(kind)))
    found, theta = [], config.rope_parameters["rope_theta"]
    for number_of_layer, block in enumerate(adapter.layers):
        found.append([k for k in kind if k >= 0])
        normed, n = _normed(x, block.input_layernorm), len(kind)
        q, k, v = (
            (normed @ _array(getattr(block.self_attn, f"{name}_proj").weight).T).reshape(n, heads, -1).swapaxes(0, 1)
            for name, heads in (
                ("q", config.num_attention_heads),
                ("k", config.num_key_value_heads),
                ("v", config.num_key_value_heads),
            )
        )
        q, k = (_rotated(part, positions, theta) for part in (q, k))
        k, v = (part.repeat(len(q) // len(part), 0) for part in (k, v))
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out = (weights @ v).swapaxes(0, 1).reshape(n, -1)
        x = x + out @ _array(block.self_attn.o_proj.weight).T
        normed = _normed(x, block.post_attention_layernorm)
        gate, up = (normed @ _array(getattr(block.mlp, f"{name}_proj").weight).T for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ _array(block.mlp.down_proj.weight).T
        columns = {
            wanted: [i for i, one in enumerate(kind) if (one >= 0 if wanted else one == -2)] for wanted in (1, 0)
        }
        gone = set(leaving(Seen(number_of_layer, weights, columns[1], columns[0])))
        stays = [i for i in range(n) if i not in gone]
        x, kind, positions = x[stays], [kind[i] for i in stays], [positions[i] for i in stays]
        if gone and renumber:
            positions = list(range(len(kind)))
    logits = _normed(x[-1], adapter.text.norm) @ _array(loaded.model.get_output_embeddings().weight).T
    return Walked(logits, found)


def engine(method: Method, number: int = 0) -> Walked:
    """The same prompt through the engine."""
    loaded = mini()
    ids = torch.tensor([[*BEFORE, *[loaded.model.config.image_token_id] * loaded.usual.n_visual, *AFTER]])
    method = method.for_model(loaded.usual.decoder)
    with one_thread(), attach(loaded.model, method) as run, torch.inference_mode():
        logits = loaded.model(input_ids=ids, pixel_values=loaded.pixels(question(number).images[0].load())).logits[
            0, -1
        ]
    return Walked(_array(logits), [layout.origin[0][layout.visual[0]].tolist() for layout in run.layouts])
