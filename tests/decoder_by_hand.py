"""A question of the mini data in the library's own decoder, layer by layer, without the engine.

Tests of methods inside the language model choose tokens by plain loops over what enters these layers.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from by_hand import mini, question
from torch import Tensor

from harness.core import budget, keeps
from harness.method import build
from harness.models.adapters import adapter_for
from harness.runner.answering import Answerer


@cache
def kept_by_layer(method: str, asked: str | None, number: int = 0, **knobs: Any) -> dict[int, list[int]]:
    """What the runner records of a question: by layer, the image's tokens from there on."""
    loaded = mini()
    built = build(method, budget.parse(asked), knobs, loaded.usual)
    (answer,) = Answerer(loaded, built, batch_size=1).answer([question(number)])
    stages = keeps.decode(answer.kept, loaded.usual.n_visual)
    assert not any(stage.added for stage in stages)
    return {stage.layer: np.flatnonzero(stage.keep).tolist() for stage in stages}


class Sequence(NamedTuple):
    """The stream (tokens, d) entering a layer, with a position for each token; the image's tokens that are there stand
    from `first` on, by their numbers `visual`."""

    hidden: Tensor
    positions: list[int]
    first: int
    visual: list[int]

    def only(self, keep: list[int], renumbered: bool) -> Sequence:
        """The sequence with these of the image's tokens."""
        places = [self.first + i for i, token in enumerate(self.visual) if token in keep]
        behind = self.first + len(self.visual)
        rows = [*range(self.first), *places, *range(behind, len(self.hidden))]
        positions = list(range(len(rows))) if renumbered else [self.positions[row] for row in rows]
        return Sequence(self.hidden[rows], positions, self.first, [self.visual[p - self.first] for p in places])

    @property
    def n_after(self) -> int:
        return len(self.hidden) - self.first - len(self.visual)


@cache
def start(number: int = 0) -> Sequence:
    """The unpruned prompt as it enters the decoder."""
    loaded, seen = mini(), list[Tensor]()
    asked = question(number)
    ids = loaded.asked(asked.key, asked.text, 1)
    handle = layer(0).register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    try:
        with torch.inference_mode():
            loaded.model(input_ids=torch.tensor([ids]), pixel_values=loaded.pixels(asked.images[0].load()))
    finally:
        handle.remove()
    first, n = ids.index(loaded.image_token_id), ids.count(loaded.image_token_id)
    return Sequence(seen[0][0], list(range(len(ids))), first, list(range(n)))


def layer(number: int) -> Any:
    return adapter_for(mini().model).layers[number]


def text_model() -> Any:
    return adapter_for(mini().model).text


def through(number: int, entering: Sequence) -> Sequence:
    """The sequence behind a layer."""
    positions = torch.tensor([entering.positions])
    with torch.inference_mode():
        turned = text_model().rotary_emb(entering.hidden[None], positions)
        out = layer(number)(
            entering.hidden[None], attention_mask=None, position_ids=positions, position_embeddings=turned
        )
    return entering._replace(hidden=(out[0] if isinstance(out, tuple) else out).view_as(entering.hidden))


def projected(number: int, entering: Sequence, name: str) -> list[Tensor]:
    """By token: what a projection ("q_proj", "k_proj") of a layer says under its norm, (heads, head_dim), rotated."""
    block = layer(number)
    with torch.inference_mode():
        flat = getattr(block.self_attn, name)(block.input_layernorm(entering.hidden)).double()
        cos, sin = text_model().rotary_emb(entering.hidden[None], torch.tensor([entering.positions]))
    found = []
    for token, vector in enumerate(flat):
        heads = vector.view(-1, block.self_attn.head_dim)
        half = heads.shape[1] // 2
        turned = torch.cat([-heads[:, half:], heads[:, :half]], 1)
        found.append(heads * cos[0, token].double() + turned * sin[0, token].double())
    return found


def normed(entering: Sequence) -> Tensor:
    """(tokens, d) float64: the stream under the model's final norm."""
    with torch.inference_mode():
        states: Tensor = text_model().norm(entering.hidden).double()
    return states
