"""What a whole request costs, as a function of its output length and of the questions about its image. No torch.

A request is the vision tower, the projector, the dense prefill with the method's scoring, the decode steps and the
logits. The prefill gives the first new token, so L new tokens take L - 1 decode steps. All costs are linear in the
fields of a `WholeRequest`, so means over prompts give mean costs.

Questions about one image share what no question changes. A method that does not read the question shares the tower, the
projector, its scoring and the visual tokens' own products in each layer (as `costs.request_flops` counts them). A
method that reads the question shares the tower, the projector, and these products in the layers before its first
reduction. The text in front of the image is counted with each question.

FLOPs count one multiply-add as 2, and leave out what harness/core/flops.py leaves out. Bytes of a decode step are those
that it must read: the matrices of the decoder and of the head once a batch, the keys and values of each prompt. Norms
and the embedding of one token are left out; activations stay on the chip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from harness.core import flops
from harness.core.shape import ModelShape

#: new tokens of a request, and questions about its image, that tables show
OUTPUTS = (1, 16, 128, 512)
QUESTIONS = (1, 6, 18)


@dataclass(frozen=True)
class TokenRates:
    """What a token costs in all layers of a decoder: FLOPs of the projections and feed-forward, FLOPs of one (query,
    key) pair in each layer, FLOPs of the logits of a position, bytes of keys and values; and bytes of one value."""

    linear_flops: float
    pair_flops: float
    head_flops: float
    kv_bytes: float
    value_bytes: int

    @classmethod
    def of(cls, shape: ModelShape) -> TokenRates:
        return cls(
            shape.depth * flops.linear_per_token(shape),
            shape.depth * flops.attention_pairs(shape, 1, 1),
            flops.lm_head(shape, 1),
            shape.depth * 2 * shape.kv_heads * shape.head_dim * shape.bytes_per_value,
            shape.bytes_per_value,
        )

    @property
    def weight_bytes(self) -> float:
        """Bytes of the matrices that a decode step reads: each value is one multiply-add of a token."""
        return (self.linear_flops + self.head_flops) / 2 * self.value_bytes

    def among(self, tokens: float) -> float:
        """FLOPs of all layers over `tokens` tokens alone, dense attention."""
        return self.linear_flops * tokens + self.pair_flops * tokens * tokens


@dataclass(frozen=True)
class WholeRequest:
    """One question about an image: FLOPs of its parts, those that other questions about the image can share, and bytes
    of the cache after the prefill. `prefill_flops` are dense and hold `scoring_flops`."""

    rates: TokenRates
    tower_flops: float
    projector_flops: float
    prefill_flops: float
    scoring_flops: float
    shared_flops: float
    kv_bytes: float

    @classmethod
    def from_costs(
        cls, costs: Mapping[str, float], rates: TokenRates, *, query_aware: bool, front_flops: float
    ) -> WholeRequest:
        """From the columns of `costs.sample_cost`; `front_flops`: of the visual tokens' own products in the layers
        before the first reduction. Raises KeyError where a column is missing."""
        seen = costs["vision_flops"] + costs["projector_flops"]
        own = front_flops if query_aware else costs["scoring_flops"] + 2 * costs["prefill_paper_macs"]
        return cls(
            rates,
            costs["vision_flops"],
            costs["projector_flops"],
            costs["prefill_dense_flops"],
            costs["scoring_flops"],
            seen + own,
            costs["kv_bytes"],
        )

    @property
    def cached(self) -> float:
        """Tokens in the cache after the prefill, averaged over layers."""
        return self.kv_bytes / self.rates.kv_bytes

    def before_decode(self, questions: int = 1) -> float:
        """FLOPs of tower, projector and prefill of one question of `questions` about the image."""
        whole = self.tower_flops + self.projector_flops + self.prefill_flops
        return whole - self.shared_flops * (1 - 1 / questions)

    def step_flops(self, step: int) -> float:
        """FLOPs of decode step `step`, from 1, without the head."""
        return self.rates.linear_flops + self.rates.pair_flops * (self.cached + step)

    def decode_flops(self, new_tokens: int) -> float:
        """FLOPs of the decode steps of `new_tokens` tokens, without the head."""
        steps = new_tokens - 1
        return steps * self.step_flops(0) + self.rates.pair_flops * steps * (steps + 1) / 2

    def head_flops(self, new_tokens: int) -> float:
        return self.rates.head_flops * new_tokens

    def flops(self, new_tokens: int, questions: int = 1) -> float:
        """FLOPs of one question of `questions` about the image that gets an answer of `new_tokens` tokens."""
        return self.before_decode(questions) + self.decode_flops(new_tokens) + self.head_flops(new_tokens)

    def kv_at(self, new_tokens: int) -> float:
        """Bytes of the cache when the last of `new_tokens` tokens is there; that token has no keys and values yet."""
        return self.kv_bytes + self.rates.kv_bytes * (new_tokens - 1)

    def step_bytes(self, step: int, batch: int = 1) -> float:
        """Bytes that decode step `step`, from 1, reads for a batch of such prompts."""
        return self.rates.weight_bytes + batch * self.kv_at(step + 1)


@dataclass(frozen=True)
class Machine:
    """An ideal device: bytes a second from memory, and FLOPs a second."""

    bandwidth: float
    peak: float

    def seconds(self, request: WholeRequest, new_tokens: int, questions: int = 1, batch: int = 1) -> float:
        """The least time of a batch of such requests: each pass takes its FLOPs at `peak` or its bytes at `bandwidth`,
        whichever takes longer. The prefill reads the weights once; the tower's weights and activations are free."""
        seen = (request.tower_flops + request.projector_flops) / questions
        filled = batch * (request.before_decode(questions) - seen + request.rates.head_flops)
        total = batch * seen / self.peak + max(filled / self.peak, request.rates.weight_bytes / self.bandwidth)
        for step in range(1, new_tokens):
            spent = batch * (request.step_flops(step) + request.rates.head_flops)
            total += max(spent / self.peak, request.step_bytes(step, batch) / self.bandwidth)
        return total


def saving_outputs(
    pruned: WholeRequest, unpruned: WholeRequest, saving: float, questions: int = 1
) -> tuple[int, int] | None:
    """The first and the last output length at which a request costs at most 1 - `saving` of the unpruned FLOPs; None
    where there is none.

    Pruning saves a constant and a constant for each step, and the unpruned cost grows with the square of the length: so
    the lengths are one stretch. `saving`: above 0 and below 1.
    """
    left = 1 - saving

    def short(steps: float) -> float:
        return left * unpruned.flops(int(steps) + 1, questions) - pruned.flops(int(steps) + 1, questions)

    rates = unpruned.rates
    constant = left * unpruned.flops(1, questions) - pruned.flops(1, questions)
    bend = saving * rates.pair_flops / 2
    slope = left * unpruned.step_flops(0) - pruned.step_flops(0) - saving * rates.head_flops - bend
    root = slope * slope + 4 * bend * constant
    if root < 0:
        return None
    ends = sorted((slope + sign * math.sqrt(root)) / (2 * bend) for sign in (-1, 1))
    # a rounded root may lie a step beside the true one
    last = next((s for s in range(math.floor(ends[1]) + 1, math.floor(ends[1]) - 2, -1) if s >= 0 <= short(s)), None)
    if last is None:
        return None
    start = max(0, math.ceil(ends[0]) - 1)
    first = next(s for s in range(start, last + 1) if short(s) >= 0)
    return first + 1, last + 1


def step_speedup(pruned: WholeRequest, unpruned: WholeRequest, batch: int, step: int = 1) -> float:
    """How many times fewer bytes decode step `step` reads: the most that pruning can speed up a step that waits for
    memory, whatever its bandwidth."""
    return unpruned.step_bytes(step, batch) / pruned.step_bytes(step, batch)


def saving_batch(pruned: WholeRequest, unpruned: WholeRequest, saving: float, step: int = 1) -> int | None:
    """The smallest batch at which decode step `step` reads at most 1 - `saving` of the unpruned bytes; None for no
    batch. `saving`: above 0 and below 1."""
    each = (1 - saving) * unpruned.kv_at(step + 1) - pruned.kv_at(step + 1)
    return max(1, math.ceil(saving * unpruned.rates.weight_bytes / each)) if each > 0 else None
