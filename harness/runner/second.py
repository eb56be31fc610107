"""The second question of a dialogue: asked on the cache that the first question pruned and its answer went on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor
from transformers import Cache

from harness.engine.run import EngineRun
from harness.models.load import LoadedModel
from harness.models.second_turn import turn_ids

if TYPE_CHECKING:
    from harness.runner.answering import Prompt

    #: the ids of a prompt as far as its dialogue goes
    Told = tuple[list[int], Prompt]


class Then(NamedTuple):
    """The question that follows, and whose answer counts. `first`: the key of the one in front, which prunes."""

    text: str
    first: str


def drawn_by(prompt: Prompt) -> str:
    """The key by which random methods draw: that of the question which prunes."""
    return prompt.then.first if prompt.then else prompt.key


def second_answers(
    loaded: LoadedModel,
    run: EngineRun,
    cache: Cache,
    batch: Sequence[Told],
    said: Sequence[list[int]],
    decode: Callable[[Tensor, Cache, Sequence[Told]], list[list[int]]],
) -> list[list[list[int]]]:
    """The tokens answered to the questions that follow the answers `said`, as one list over the batch; nothing where
    none follows. `decode` goes on from logits (b, vocabulary)."""
    thens = [prompt.then for _, prompt in batch if prompt.then]
    if not thens:
        return []
    turns = [turn_ids(loaded, p.content, then.text) for (_, p), then in zip(batch, thens, strict=True)]
    ids = run.follow(said, turns)
    logits = loaded.model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits[:, -1]
    told = [([*ids, *answer, *turn], p) for (ids, p), answer, turn in zip(batch, said, turns, strict=True)]
    return [decode(logits, cache, told)]
