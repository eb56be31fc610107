"""LLaVA-PruMerge: patches whose [CLS] attention is an outlier stay, each with its most similar patches merged into it.

Paper: https://arxiv.org/abs/2403.15388 (ICCV 2025). Official code: 42Shawn/LLaVA-PruMerge @ 097c041,
llava/model/multimodal_encoder/clip_encoder.py. All of it happens before the language model. Queries and keys are those
of the last layer of the vision tower, features those of the second-last:

* select: one softmax row of [CLS] over all tokens, without a split into heads. The ratio is the share of patches above
  Q3 + 1.5 IQR; int(n * ratio) of them stay, the most attended first. The language model gets them in this order.
* `plus`: patches 0, s, 2s, ... follow, s = int(int(1 / ratio) / 3), as far as they are not there yet.
* merge: each kept patch adds its 32 nearest patches (cosine of keys, kept ones included), weighted by attention.
* one more token comes last: all patches that are not kept, weighted by attention.

`BUDGET=native` lets outliers decide; the note `outliers` counts them. `ratio` is the official function with
`if_adaptive=False`.
Differs: `keep` is ours and counts every token of an image, the last one included. With `plus` the grid is that of the
largest ratio whose patches and grid fit into `keep`; the most attended patches fill up the rest. Where the official
code divides by zero, ours goes on: without an outlier one patch stays, and a grid step is at least 1. With `ratio` and
`plus` a patch stays once; the official branch keeps duplicates. Equal attention goes to the lowest index. Scores and
sums are made in float32 at least, the official ones in float16.

On mini: The scores come from the last layer of the vision tower, and LLaVA's features from the layer before. So the
training of the mini model never changed this layer. Its [CLS] row tells patches with an object or sign from background
with an AUC of 0.77, and the row of the layer before with 0.99. Other methods here read that layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from harness.core import flops
from harness.core.budget import Budget
from harness.core.errors import PrunebenchError
from harness.core.shape import ImageShape, ModelShape
from harness.core.spelling import given
from harness.method import (
    Method,
    PromptShape,
    Published,
    Reduction,
    Run,
    Share,
    Stream,
    TowerLook,
    Traits,
    check_keep,
    register,
)
from methods._select import ByImage, at, exact, image_quotas

QUERY, KEY, KEYS = (TowerLook(what, -1) for what in ("cls_query", "cls_key", "keys"))
HIDDEN = TowerLook("hidden", -2)
#: patches merged into a kept one; grid patches of every patch kept by attention; width of the fence in IQRs
NEIGHBOURS, GRID_PER_PATCH, FENCE = 32, 3, 1.5


def n_patches(n: int, ratio: float) -> int:
    """How many of `n` patches attention keeps: in the official floats, at least one."""
    return max(int(n * ratio), 1)


def grid_step(ratio: float) -> int:
    """Every how many-th patch is of the grid, at least 1."""
    return max(int(int(1 / ratio) / GRID_PER_PATCH), 1)


def grid(n: int, step: int) -> range:
    """The patches of a grid, none for step 0; the last patch of the image is never one of them."""
    return range(0, n - 1, step) if step else range(0)


@lru_cache
def fitting_step(n: int, patches: int) -> int:
    """The step of the most outliers among `n` that fit into `patches` together with their grid; 0 where none fits."""
    steps = {k: grid_step(k / n) for k in range(1, n + 1)}
    fitting = [k for k, step in steps.items() if k + len(grid(n, step)) <= patches]
    return steps[fitting[-1]] if fitting else 0


class Picked(NamedTuple):
    """Kept patches of each image: `keep (u, p)` bool; `order (u, p)` long, ascending as they stand, others behind;
    `tokens`: how many, and the last token."""

    keep: Tensor
    order: Tensor
    tokens: list[int]


@register
@dataclass(frozen=True)
class PruMerge(Method):
    """Keeps attention outliers, or `keep` tokens in all, or the share `ratio` of patches; `plus` adds a grid of
    patches."""

    name = "prumerge"
    paper = "https://arxiv.org/abs/2403.15388"
    published = Published("ICCV 2025", "42Shawn/LLaVA-PruMerge", "097c0411", "Apache-2.0")
    traits = Traits(
        query_aware=False,
        needs_vision_attention=True,
        adaptive=True,
        merges=True,
        reorders=True,
        image_only=True,
        per_image=True,
    )
    needs_grid = True
    budget_knobs = ("keep", "ratio")

    keep: int | Share | None = None
    ratio: float | None = None
    plus: bool = False

    @classmethod
    def at_budget(cls, budget: Budget, knobs: Mapping[str, Any], prompt: PromptShape) -> Self:
        if budget.unit == "native":
            return cls(**knobs)
        method = super().at_budget(budget, knobs, prompt)
        if method.keep is None and method.ratio is None:
            raise PrunebenchError(
                f"prumerge: expected keep, ratio or a budget, found none: {given('budget', 'native')} lets attention"
                " decide"
            )
        return method

    def for_model(self, shape: ModelShape) -> PruMerge:
        if self.keep is not None and self.ratio is not None:
            raise PrunebenchError(
                f"prumerge: expected one of keep (tokens in all) and ratio (a share of patches), found keep={self.keep}"
                f" and ratio={self.ratio}: leave one out"
            )
        if self.keep is not None:
            check_keep("prumerge", self.keep)
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise PrunebenchError(
                f"prumerge: expected ratio above 0 and at most 1, found {self.ratio}: give a share of patches (0.125)"
            )
        return self

    def looks(self, shape: ModelShape) -> tuple[TowerLook, ...]:
        return QUERY, KEY, KEYS, HIDDEN

    def _tokens(self, prompt: PromptShape) -> list[int] | None:
        """Tokens of each image, the last one included; None where attention decides."""
        if self.keep is not None:
            return image_quotas(prompt, self.keep)
        if self.ratio is None or self.plus:
            return None
        return [n_patches(image.tokens, self.ratio) + 1 for image in prompt.images]

    def plan(self, prompt: PromptShape) -> list[int] | None:
        tokens = self._tokens(prompt)
        return None if tokens is None else [sum(tokens)] * prompt.depth

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int | None:
        def scoring(image: ImageShape, tokens: int) -> int:
            similarities, sums = max(tokens - 1, 0), tokens
            merging = 2 * (similarities + sums) * image.tokens * image.vision.hidden
            projected = flops.projector(prompt.decoder, image.vision, tokens=tokens)
            return flops.cls_row(image.vision) + merging + projected

        tokens = self._tokens(prompt)
        return None if tokens is None else sum(map(scoring, prompt.images, tokens))

    def on_image(self, run: Run, tower: Mapping[TowerLook, Tensor]) -> None:
        run.memo["tower"] = [tower[look] for look in self.looks(run.shape)]

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer != 0:
            return None
        by = ByImage(run)
        query, key, keys, features = run.memo.pop("tower")
        query, key = (exact(by.looked(x))[:, None] for x in (query, key))
        keys, features = exact(by.split(keys)), by.split(features)
        attention = cls_attention(run, by, query, key, keys)
        picked = self._pick(run, by, attention)

        most = max(*picked.tokens, 1) - 1
        index = picked.order.argsort(dim=1, stable=True)[:, :most]
        merged = merge(run, by, keys, exact(features), attention, picked, index)
        # the last slot is that of the last token, which an image without tokens lacks
        slot, n_tokens = torch.arange(most + 1)[None], torch.tensor(picked.tokens)[:, None]
        real = torch.where(slot < most, slot < n_tokens - 1, n_tokens > 0).to(index.device)
        tokens = by.projected(run, merged.to(features.dtype), real)
        kept = tokens[:, :most]
        values = kept.new_zeros(*by.valid.shape, kept.shape[2])
        values = values.scatter_(1, index[:, :, None].expand_as(kept), kept)
        added, added_valid, added_image = by.gathered(tokens[:, most:], real[:, most:])
        images_before = torch.tensor(by.image, device=index.device)[:, None]
        return Reduction(
            by.join(picked.keep),
            added=added,
            added_valid=added_valid,
            added_image=added_image,
            order=by.join(picked.order + images_before * 3 * by.valid.shape[1]),
            values=by.join(values),
            positions="compact",
            decode_positions="compact",
        )

    def _ratios(self, run: Run, by: ByImage, descending: Tensor) -> list[float]:
        """Of each image, from its attention in descending order where no ratio is given; read from the device once."""
        if self.ratio is not None:
            return [self.ratio] * len(by.counts)
        found: list[int] = n_outliers(descending, by.counts).tolist()
        of_prompts = [0] * len(run.prompts)
        for row, n in zip(by.row, found, strict=True):
            of_prompts[row] += n
        run.note("outliers", of_prompts)
        return [max(k, 1) / n for n, k in zip(by.counts, found, strict=True)]

    def _pick(self, run: Run, by: ByImage, attention: Tensor) -> Picked:
        valid, counts, device = by.valid, by.counts, attention.device
        best = attention.masked_fill(~valid, -1).argsort(dim=1, descending=True, stable=True)
        tokens = [n for prompt in run.prompts for n in self._tokens(prompt) or ()]
        if self.keep is not None:
            patches = [max(n - 1, 0) for n in tokens]
            steps = [fitting_step(n, k) for n, k in zip(counts, patches, strict=True)]
        else:
            ratios = self._ratios(run, by, attention.gather(1, best))
            patches = [n_patches(n, ratio) for n, ratio in zip(counts, ratios, strict=True)]
            steps = [grid_step(ratio) for ratio in ratios]
        if not self.plus:
            steps = [0] * len(steps)

        number = torch.arange(valid.shape[1], device=device).expand_as(best)
        rank = torch.empty_like(best).scatter_(1, best, number)
        step = torch.tensor(steps, device=device)[:, None]
        last = torch.tensor(counts, device=device)[:, None] - 1
        on_grid = (step > 0) & (number % step.clamp(min=1) == 0) & (number < last)
        top = torch.tensor(patches, device=device)[:, None]
        if self.keep is not None:
            # as many of the most attended as fill up the count beside the grid
            more = [k - len(grid(n, s)) for k, n, s in zip(patches, counts, steps, strict=True)]
            wanted = torch.tensor(more, device=device)[:, None]
            off_grid = (~on_grid).gather(1, best).cumsum(1)
            top = torch.where(wanted > 0, (off_grid < wanted).sum(1, keepdim=True) + 1, 0)
        keep = valid & ((rank < top) | on_grid)
        order = torch.where(rank < top, rank, number + valid.shape[1])
        order = torch.where(keep, order, number + 2 * valid.shape[1])
        return Picked(keep, order, tokens or [n + 1 for n in keep.sum(1).tolist()])


def cls_attention(run: Run, by: ByImage, query: Tensor, key: Tensor, keys: Tensor) -> Tensor:
    """(u, p): what [CLS] attends to in each patch, 0 beyond an image's count; softmax over [CLS] and all patches, one
    head of the full width."""
    logits = run.matmul(
        query, torch.cat([key, keys], 1).transpose(1, 2), row=by.row, entries=[n + 1 for n in by.counts]
    )[:, 0]
    seen = torch.cat([torch.ones_like(by.valid[:, :1]), by.valid], 1)
    probs: Tensor = (logits / query.shape[2] ** 0.5).masked_fill(~seen, float("-inf")).softmax(1)
    return probs[:, 1:]


def n_outliers(descending: Tensor, counts: Sequence[int]) -> Tensor:
    """(u,) long: of the first `counts` values of each row, how many are above Q3 + 1.5 IQR, by linear percentiles."""
    where = descending.device

    def ranked(places: list[int]) -> Tensor:
        """(u, 1): a value of each row, counted from the smallest."""
        from_largest = [[n - 1 - place] for n, place in zip(counts, places, strict=True)]
        return descending.gather(1, torch.tensor(from_largest, device=where))

    def percentile(share: float) -> Tensor:
        places = [share * (n - 1) for n in counts]
        low = ranked([int(place) for place in places])
        high = ranked([math.ceil(place) for place in places])
        part = torch.tensor([[place % 1] for place in places], dtype=descending.dtype, device=where)
        return low + (high - low) * part

    q1, q3 = percentile(0.25), percentile(0.75)
    real = torch.arange(descending.shape[1])[None] < torch.tensor(counts)[:, None]
    return ((descending > q3 + FENCE * (q3 - q1)) & real.to(where)).sum(1)


def merge(
    run: Run, by: ByImage, keys: Tensor, features: Tensor, attention: Tensor, picked: Picked, index: Tensor
) -> Tensor:
    """(u, k + 1, width): the kept patches `index (u, k)` with what merges into them, and the last token."""
    units, patches = normalize(keys, dim=2), [max(n - 1, 0) for n in picked.tokens]
    pairs = [n * k for n, k in zip(by.counts, patches, strict=True)]
    similarity = run.matmul(at(units, index), units.transpose(1, 2), row=by.row, entries=pairs)
    similarity = similarity.masked_fill(~by.valid[:, None], float("-inf")).scatter_(2, index[:, :, None], float("-inf"))
    near = similarity.argsort(dim=2, descending=True, stable=True)[:, :, :NEIGHBOURS]
    # an image may have less other patches than that
    others = similarity.gather(2, near) > float("-inf")
    near_attention = attention[:, None].expand_as(similarity).gather(2, near) * others
    weights = torch.zeros_like(similarity).scatter_(2, near, near_attention)
    dropped = (attention * (by.valid & ~picked.keep))[:, None]
    sizes = [n * features.shape[2] for n in picked.tokens]
    sums = run.matmul(torch.cat([weights, dropped], 1), features, row=by.row, entries=sizes)
    return torch.cat([at(features, index) + sums[:, :-1], sums[:, -1:]], 1)
