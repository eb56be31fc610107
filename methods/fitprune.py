"""FitPrune: some visual tokens leave in every layer by a calibrated schedule, the least attended ones first.

Paper: https://arxiv.org/abs/2409.10197 (AAAI 2025). Official code: ywh187/FitPrune @ d28e418, modeling_llama.py and
llava/eval/statistical_analysis.py. A layer's attention, at its maximum over heads, gives a visual token two sums: over
the text rows behind the image, and over the visual rows. The tokens with the lowest product leave. Positions stay.

Differs: the official code deletes inside a layer, between its attention and its output projection. Here tokens leave at
the next boundary, with the same result: `executed` is what ran, and `dense` counts the layer's output projection and
feed-forward as the official code runs them, without the deleted tokens. Deletions in the last layer cannot change an
answer and are neither made nor counted. Text-only prompts stop the official code. Its schedules hold for 32 layers;
BUDGET=native is its ratio of 60 and is refused at another depth. There BUDGET=calibrated takes a schedule that
`prunebench analyze MODEL --method fitprune` derives with the official statistics and bisection. The official script
prints the last schedule that it tried, also where that misses the budget. Ours takes the last one that met it.
Where images differ in tokens, only `keep` is taken: a schedule counts tokens. `keep` is ours: the deletions of ratio
60, stretched to the depth and scaled so that `keep` tokens enter the last layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor

from harness.core.budget import Budget
from harness.core.errors import PrunebenchError
from harness.core.shape import ModelShape, Share
from harness.core.spelling import given
from harness.method import (
    Attention,
    Method,
    PromptShape,
    Published,
    Reduction,
    Run,
    Stream,
    Traits,
    check_keep,
    keep_top,
    register,
)

#: tokens that leave in each layer of LLaVA-1.5-7B, by the official reduction_ratio in percent
OFFICIAL = {
    10: "0 0 1 2 1 0 1 4 5 5 11 4 2 2 0 0 1 1 2 4 2 10 1 1 1 2 1 1 0 1 0 0",
    20: "0 0 3 3 1 1 4 16 14 15 24 4 2 3 2 0 6 0 5 13 4 19 2 1 1 1 1 1 2 1 0 0",
    30: "0 0 7 6 4 5 16 40 24 21 24 4 2 3 4 0 16 0 11 26 6 32 3 1 0 1 2 2 4 0 0 0",
    40: "0 1 21 13 14 11 41 53 29 15 14 5 1 4 5 1 26 1 13 28 6 27 2 1 0 0 1 1 2 0 0 0",
    50: "3 7 49 24 29 17 59 41 26 8 10 6 2 5 7 2 30 3 13 27 5 23 2 1 0 0 1 1 2 0 0 0",
    55: "6 17 69 31 34 19 59 30 23 6 8 7 2 5 8 2 29 4 12 25 4 19 2 1 0 0 1 0 1 0 0 0",
    60: "14 33 89 36 36 20 55 21 18 4 7 5 2 5 7 4 26 5 11 24 4 18 2 1 0 0 1 0 1 0 0 0",
    70: "48 79 118 41 33 17 36 9 9 2 3 2 1 3 4 8 18 7 8 20 4 13 2 1 0 0 1 0 1 0 0 0",
    80: "128 127 118 35 26 8 13 3 2 1 0 0 0 2 1 8 7 8 5 11 2 6 1 1 0 0 0 1 0 0 0 0",
    90: "262 153 80 19 13 1 2 0 0 0 0 0 0 0 0 1 1 2 1 2 0 1 0 0 0 0 0 1 0 0 0 0",
}
SCHEMES = {ratio: tuple(map(int, row.split())) for ratio, row in OFFICIAL.items()}
#: layers of the official schedules, and the ratio of the official script
DEPTH, NATIVE = 32, 60


@register
@dataclass(frozen=True)
class FitPrune(Method):
    """Exactly one of `reduction_ratio`, an official schedule of 32 layers; `scheme`, the tokens that leave in layer
    0, 1, ..., none behind its end; and `keep`, how many enter the last layer.
    """

    name = "fitprune"
    paper = "https://arxiv.org/abs/2409.10197"
    published = Published("AAAI 2025", "ywh187/FitPrune", "d28e418c", "none")
    traits = Traits(query_aware=True, calibrated=True)
    budget_knobs = ("keep", "reduction_ratio", "scheme")
    drops_inside = True

    keep: int | Share | None = None
    reduction_ratio: int | None = None
    scheme: tuple[int, ...] | None = None

    @classmethod
    def at_budget(cls, budget: Budget, knobs: Mapping[str, Any], prompt: PromptShape) -> Self:
        if budget.unit == "native":
            if prompt.depth != DEPTH:
                raise PrunebenchError(
                    f"fitprune: its published schedules are those of {DEPTH} layers, and this model has {prompt.depth}:"
                    f" give {given('budget', 'calibrated')} (`prunebench analyze MODEL --method fitprune"
                    f" --write-config` derives a schedule) or a number ({given('budget', 64)})"
                )
            built = cls(**{"reduction_ratio": NATIVE, **knobs})
        else:
            built = super().at_budget(budget, knobs, prompt)
        if built.keep is None and prompt.one_of_many:
            raise PrunebenchError(
                "fitprune: a schedule counts the tokens that leave prompts of one size, and images of this model"
                f" differ: give a share of each prompt's own tokens ({given('budget', '0.25kept')})"
            )
        return built

    def for_model(self, shape: ModelShape) -> FitPrune:
        if sum(knob is not None for knob in (self.keep, self.reduction_ratio, self.scheme)) != 1:
            raise PrunebenchError(
                "fitprune: give exactly one of keep (any number of tokens), reduction_ratio (an official schedule) and"
                " scheme (the tokens that leave in each layer)"
            )
        if shape.depth < 2:
            raise PrunebenchError("fitprune: expected at least 2 decoder layers, found 1: nothing can leave")
        if self.keep is not None:
            check_keep("fitprune", self.keep)
        if self.reduction_ratio is not None and (self.reduction_ratio not in SCHEMES or shape.depth != DEPTH):
            raise PrunebenchError(
                f"fitprune: reduction_ratio={self.reduction_ratio} has no official schedule of {shape.depth} layers:"
                f" expected one of {', '.join(map(str, SCHEMES))} and {DEPTH} layers; give"
                f" {given('budget', 'calibrated')} or keep"
            )
        if self.scheme is not None and (len(self.scheme) > shape.depth or min(self.scheme, default=0) < 0):
            raise PrunebenchError(
                f"fitprune: expected scheme as at most {shape.depth} numbers from 0, one a decoder layer, found"
                f" {len(self.scheme)} from {min(self.scheme, default=0)}: {self.scheme}"
            )
        if self.scheme is not None and not any(self.scheme[: shape.depth - 1]):
            raise PrunebenchError(
                f"fitprune: scheme={self.scheme} deletes nothing before the last layer: expected a number above 0"
            )
        return self

    def plan(self, prompt: PromptShape) -> list[int]:
        n, depth = prompt.n_visual, prompt.depth
        if self.keep is not None:
            # the official curve of deletions at this depth; at 32 layers 127 of 576 tokens are the official ones
            target = prompt.quota(self.keep)
            deleted = [_official(boundary * DEPTH / depth) for boundary in range(depth)]
            return [n - round((n - target) * gone / deleted[-1]) for gone in deleted]
        scheme = SCHEMES[self.reduction_ratio] if self.reduction_ratio is not None else self.scheme
        assert scheme is not None
        counts = [n]
        for leaving in (*scheme, *[0] * (depth - len(scheme)))[:-1]:
            counts.append(max(counts[-1] - leaving, 0))
        return counts

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int | None:
        """Not known: how much of the text stands behind the image, only the prompt says."""
        return None

    def known_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int:
        """The visual rows."""
        row = 2 * prompt.decoder.heads * prompt.decoder.head_dim
        return sum(row * now * (now + prompt.n_text) for now, coming in pairwise(visual) if coming < now)

    def on_attention(self, run: Run, layer: int, attn: Attention) -> None:
        plans = run.memo.get("plans")
        if plans is None:
            plans = run.memo["plans"] = [self.plan(prompt) for prompt in run.prompts]
        if layer == run.shape.depth - 1:
            return
        leaving = [plan[layer + 1] < plan[layer] for plan in plans]
        if any(leaving):
            of = None if all(leaving) else torch.tensor(leaving, device=run.visual_valid.device)
            run.memo["scores"] = product(attn, run.visual_valid, of)

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        scores = run.memo.pop("scores", None)
        if scores is None:
            return None
        stay = [plan[layer] for plan in run.memo["plans"]]
        # made on the device: an upload waits for it
        keep = stay[0] if len(set(stay)) == 1 else torch.tensor(stay, device=scores.device)
        return Reduction(keep_top(scores, keep, run.visual_valid))


def product(attn: Attention, valid: Tensor, of: Tensor | None = None) -> Tensor:
    """(b, v): what all text rows behind the image attend to a visual token, times the mean of all visual rows."""
    cross, own = sums(attn, of)
    return cross * own / valid.sum(1, keepdim=True).clamp(min=1)


def sums(attn: Attention, of: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(b, v) each: attention to a visual token, at its maximum over heads, summed over the text rows behind the image
    and over the visual rows."""
    cross, own = (attn.visual_probs(rows, of, heads="max").values[:, 0].sum(1) for rows in ("after", "visual"))
    return cross, own


def _official(layer: float) -> float:
    """Tokens that the native schedule has deleted before `layer`, between layers in proportion."""
    scheme, whole = SCHEMES[NATIVE], int(layer)
    return sum(scheme[:whole]) + (layer - whole) * (scheme[whole] if whole < DEPTH else 0)
