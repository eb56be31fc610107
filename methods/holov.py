"""HoloV: every strip of the image gets tokens in proportion to the [CLS] attention that it holds.

Paper: https://arxiv.org/abs/2510.02912 (NeurIPS 2025). Official code: obananas/HoloV @ 1d2e65e9, utils.py, as
llava/model/llava_arch.py calls it. Pre-LLM. Strips are runs of the raster order; the first ones are one longer where
tokens do not divide. A strip gets floor(weight * budget) tokens; those left over go one each to the largest weights.
A strip keeps its patches of the highest attention (second-last layer, mean over heads), the highest first. A strip that
keeps all its patches keeps their order. What a strip cannot hold is not given to others: zero vectors stand in for it
at the end of the image's tokens. Positions are renumbered.
A strip's weight is the mean of 1000 x attention + alpha x variance of its cosines, over the sum of all strips. The
official code first scales the variances of a strip so that their mean is the mean of its attention. So every weight is
that of the attention alone, times 1 + alpha, and the similarities cancel: they are not computed here. `alpha` changes
nothing.
Differs: the official code's cancelling leaves a 1e-6 in a denominator, which is left out. It keeps 64 tokens in 16
strips, hard-coded, which is BUDGET=native. Equal attention goes to the lower patch. A prompt of several images shares
its budget among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from harness.core import flops
from harness.core.budget import Budget
from harness.core.errors import PrunebenchError
from harness.core.shape import ModelShape
from harness.method import (
    Method,
    PromptShape,
    Published,
    Reduction,
    Run,
    ScoresError,
    Share,
    Stream,
    TowerLook,
    Traits,
    check_keep,
    register,
)
from methods._select import ByImage, ranks


class Strips(NamedTuple):
    """The strips of images: `places (u, s, l)` long, those of each strip's tokens, 0 beyond its size; `valid (u, s, l)`
    bool."""

    places: Tensor
    valid: Tensor


@register
@dataclass(frozen=True)
class HoloV(Method):
    """Keeps `keep` patches in all, shared out among `strips` runs of each image. `alpha` weighs a term that cancels."""

    name = "holov"
    paper = "https://arxiv.org/abs/2510.02912"
    published = Published("NeurIPS 2025", "obananas/HoloV", "1d2e65e9", "none")
    traits = Traits(
        query_aware=False, needs_vision_attention=True, merges=True, reorders=True, image_only=True, per_image=True
    )
    needs_grid = True
    #: the layer whose output LLaVA-1.5 projects
    LOOK: ClassVar[TowerLook] = TowerLook("cls_row", -2)

    keep: int | Share
    strips: int = 16
    alpha: float = 0.09

    @classmethod
    def at_budget(cls, budget: Budget, knobs: Mapping[str, Any], prompt: PromptShape) -> Self:
        if budget.unit == "native":
            return cls(**{"keep": 64, **knobs})
        return super().at_budget(budget, knobs, prompt)

    def for_model(self, shape: ModelShape) -> HoloV:
        check_keep(self.name, self.keep)
        if self.strips < 1:
            raise PrunebenchError(f"holov: expected strips >= 1, found {self.strips}: give the number of runs (16)")
        if not self.alpha >= 0:
            raise PrunebenchError(f"holov: expected alpha >= 0, found {self.alpha:g}: leave it out, it changes nothing")
        return self

    def plan(self, prompt: PromptShape) -> list[int]:
        for image in prompt.images:
            self._sizes(image.tokens)
        return [prompt.quota(self.keep)] * prompt.depth

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int:
        return sum(flops.cls_row(image.vision) for image in prompt.images)

    def _sizes(self, count: int) -> list[int]:
        """Tokens of each strip of an image. Raises PrunebenchError where there are more strips than tokens."""
        if self.strips > count:
            raise PrunebenchError(
                f"holov: strips={self.strips} does not fit an image of {count} tokens: expected 1 to {count}"
            )
        return [count // self.strips + (i < count % self.strips) for i in range(self.strips)]

    def looks(self, shape: ModelShape) -> Sequence[TowerLook]:
        return (self.LOOK,)

    def on_image(self, run: Run, tower: Mapping[TowerLook, Tensor]) -> None:
        run.memo["scores"] = tower[self.LOOK].mean(1)

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer != 0:
            return None
        images = ByImage(run)
        scores = images.split(run.memo["scores"])
        bad = (scores.isnan() & images.valid).any(1)
        if bool(bad.any()):
            raise ScoresError(images.row[int(bad.nonzero()[0])], "expected a number as [CLS] attention, found nan")
        quotas = torch.tensor(images.quotas(self.keep), device=scores.device)
        strips = self._strips(images)
        attention = scores.gather(1, strips.places.flatten(1)).view(strips.places.shape)
        given = allotted(attention, strips.valid, quotas)
        chosen, order = within(attention, strips.valid, given)
        kept = _by_token(strips, chosen, images.valid)
        # images of a prompt stay in order
        number = torch.tensor(images.image, device=scores.device)[:, None]
        place = _by_token(strips, order, images.valid) + number * strips.places[0].numel()
        zeros = quotas - kept.sum(1)
        most = int(zeros.max())
        empty = stream.visual.new_zeros(len(scores), most, stream.visual.shape[2])
        added, valid, image = images.gathered(empty, torch.arange(most, device=zeros.device) < zeros[:, None])
        return Reduction(
            images.join(kept),
            added if most else None,
            valid if most else None,
            added_image=image if most else None,
            order=images.join(place),
            positions="compact",
            decode_positions="compact",
        )

    def _strips(self, images: ByImage) -> Strips:
        sizes = {count: self._sizes(count) for count in set(images.counts)}
        longest = max(size[0] for size in sizes.values())
        size = torch.tensor([sizes[count] for count in images.counts], device=images.valid.device)[:, :, None]
        place = torch.arange(longest, device=size.device)
        valid = place < size
        return Strips(torch.where(valid, size.cumsum(1) - size + place, 0), valid)


def allotted(attention: Tensor, valid: Tensor, quotas: Tensor) -> Tensor:
    """(u, s) long: tokens given to each strip of `attention (u, s, l)`, `quotas (u,)` in all; maybe more than it
    holds."""
    mean = attention.masked_fill(~valid, 0).sum(2) / valid.sum(2)
    weight = mean / mean.sum(1, keepdim=True)
    given = (weight * quotas[:, None]).floor().long()
    left = quotas - given.sum(1)
    return given + (ranks(weight) < left[:, None])


def within(attention: Tensor, valid: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    """Of `attention (u, s, l)`: which tokens stay, (u, s, l) bool, where strip `s` keeps `given (u, s)`; and (u, s, l)
    long, their order."""
    s, longest = attention.shape[1:]
    rank = ranks(attention.masked_fill(~valid, float("-inf")))
    place = torch.arange(longest, device=attention.device)
    whole = given >= valid.sum(2)
    order = torch.where(whole[:, :, None], place, rank) + torch.arange(s, device=attention.device)[:, None] * longest
    return (rank < given[:, :, None]) & valid, order


def _by_token(strips: Strips, values: Tensor, tokens: Tensor) -> Tensor:
    """(u, p): `values (u, s, l)` at their tokens; the shape is that of `tokens`."""
    u, p = tokens.shape
    at = torch.where(strips.valid, strips.places, p)  # what is no token goes to a spare slot
    return values.new_zeros(u, p + 1).scatter_(1, at.flatten(1), values.flatten(1))[:, :p]
