"""VisionZip: the patches that [CLS] attends to most, and a few means of the others.

Paper: https://arxiv.org/abs/2412.04467 (CVPR 2025). Official code: dvlab-research/VisionZip @ 3151f6d,
visionzip/clip_encoder.py. All of it happens before the language model, on the second-last layer of the vision tower:

* dominant: [CLS] itself comes first. The patches with the most [CLS] attention, summed over heads, follow in raster
  order.
* contextual: every s-th of the R other patches is a target, s = max(1, R // contextual). Each remaining patch joins the
  target with the most similar key (cosine of the mean over heads). A contextual token is its target plus the mean of
  the patches that joined.

[CLS] and contextual tokens go through the model's projector, which never saw a [CLS] in LLaVA's training.
`BUDGET=native` is the official function's default: dominant 191 and contextual 30, 221 tokens an image.
Differs: `keep` is ours. Of `keep` tokens, keep * 10 / 64 are contextual, halves rounded up, and the others dominant:
192 = 162 + 30, 128 = 108 + 20, 64 = 54 + 10, 32 = 27 + 5, 1 = [CLS] alone. contextual=0 adds no contextual token; it
stops the official code. Equal scores go to the lowest index. Scores and sums are made in float32 at least.
On tiles (LLaVA-NeXT) it is the official code there, visionzip/llava_arch.py: `dominant` + `contextual` tokens of each
tile, or an equal part of `keep`, without newlines and un-padding; the sequence is renumbered (methods/_tiles.py).
Differs there: kept patches are projected once more, which the costs count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from harness.core import flops
from harness.core.budget import Budget
from harness.core.errors import PrunebenchError
from harness.core.shape import ImageShape, ModelShape
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
from methods._tiles import ByTile, picked, plan_of, tile_quotas, tiled

ROW, KEYS, HIDDEN, CLS = (TowerLook(what, -2, tiles=True) for what in ("cls_row", "keys", "hidden", "cls_hidden"))
#: contextual tokens of every 64, as in the paper's pairs 162 + 30, 108 + 20 and 54 + 10
CONTEXTUAL, OF = 10, 64
#: defaults of the official function
NATIVE = {"dominant": 191, "contextual": 30}


class Parts(NamedTuple):
    """What one image becomes: `dominant` tokens, [CLS] counted, and `contextual` ones; none of either where it gets no
    token."""

    dominant: int
    contextual: int


def parts_of(keep: int) -> Parts:
    """`keep` tokens in the paper's proportion, contextual ones rounded half up."""
    contextual = (2 * keep * CONTEXTUAL + OF) // (2 * OF)
    return Parts(keep - contextual, contextual)


@register
@dataclass(frozen=True)
class VisionZip(Method):
    """Hands over [CLS], dominant patches and merged ones: `dominant` + `contextual` tokens an image, or `keep` in all.

    `dominant` counts [CLS]. A prompt of several images shares `keep` out by their tokens; `dominant` and `contextual`
    are meant for each image.
    """

    name = "visionzip"
    paper = "https://arxiv.org/abs/2412.04467"
    published = Published("CVPR 2025", "dvlab-research/VisionZip", "3151f6df", "Apache-2.0")
    traits = Traits(query_aware=False, needs_vision_attention=True, merges=True, image_only=True, per_image=True)
    budget_knobs = ("keep", "dominant", "contextual")

    keep: int | Share | None = None
    dominant: int | None = None
    contextual: int | None = None

    @classmethod
    def at_budget(cls, budget: Budget, knobs: Mapping[str, Any], prompt: PromptShape) -> Self:
        if budget.unit == "native":
            method = cls(**{**NATIVE, **knobs})
            method._parts(prompt)
            return method
        return super().at_budget(budget, knobs, prompt)

    def for_model(self, shape: ModelShape) -> VisionZip:
        pair = (self.dominant, self.contextual)
        if (self.keep is None) == (pair == (None, None)) or (self.keep is None and None in pair):
            raise PrunebenchError(
                "visionzip: expected keep (tokens in all) or dominant and contextual (54 and 10), found"
                f" keep={self.keep}, dominant={self.dominant}, contextual={self.contextual}: give one of the two ways"
            )
        if self.keep is not None:
            check_keep("visionzip", self.keep)
            return self
        for knob, value, least in (("dominant", self.dominant, 1), ("contextual", self.contextual, 0)):
            if type(value) is not int or value < least:
                raise PrunebenchError(
                    f"visionzip: expected {knob} as a whole number of at least {least}, found {value!r}: dominant"
                    " counts [CLS], contextual=0 merges nothing"
                )
        return self

    def looks(self, shape: ModelShape) -> tuple[TowerLook, ...]:
        return ROW, KEYS, HIDDEN, CLS

    def _parts(self, prompt: PromptShape) -> list[Parts]:
        """Of each image of a prompt, or of each tile. Raises PrunebenchError where an image has too few patches."""
        if self.keep is not None and tiled(prompt):
            return [parts_of(quota) for quota in tile_quotas(prompt, self.keep)]
        if self.keep is not None:
            return [parts_of(quota) for quota in image_quotas(prompt, self.keep)]
        assert self.dominant is not None
        assert self.contextual is not None
        wanted = self.dominant - 1 + self.contextual
        least = min(image.vision.patches if tiled(prompt) else image.tokens for image in prompt.images)
        if wanted > least:
            raise PrunebenchError(
                f"visionzip: dominant={self.dominant} and contextual={self.contextual} take {wanted} patches, found an"
                f" image of {least}: give less, or keep, the number of tokens in all"
            )
        return [Parts(self.dominant, self.contextual)] * sum(image.vision.tiles for image in prompt.images)

    def plan(self, prompt: PromptShape) -> list[int]:
        return plan_of(prompt, [sum(parts) for parts in self._parts(prompt)])

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int:
        def merging(image: ImageShape, parts: Parts) -> int:
            vision, tiles = image.vision, tiled(prompt)
            each = image.vision.patches if tiles else image.tokens
            merging = 2 * parts.contextual * each * (vision.hidden // vision.heads + vision.hidden)
            # on tiles the kept patches are projected once more
            projected = parts.contextual + (parts.dominant if tiles else parts.dominant > 0)
            return merging + flops.projector(prompt.decoder, vision, tokens=projected)

        units = [image for image in prompt.images for _ in range(image.vision.tiles)]
        looked = sum(flops.cls_row(image.vision) for image in prompt.images)
        return looked + sum(map(merging, units, self._parts(prompt)))

    def on_image(self, run: Run, tower: Mapping[TowerLook, Tensor]) -> None:
        heads = tower[ROW].shape[1]
        run.memo["attention"] = tower[ROW].sum(1)
        run.memo["metric"] = exact(tower[KEYS]).view(*tower[KEYS].shape[:2], heads, -1).mean(2)
        run.memo["features"], run.memo["cls"] = tower[HIDDEN], tower[CLS]

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer != 0:
            return None
        memo, by = run.memo, ByTile(run) if tiled(run.prompts[0]) else ByImage(run)
        parts = [part for prompt in run.prompts for part in self._parts(prompt)]
        attention, metric, features = (by.split(memo[what]) for what in ("attention", "metric", "features"))
        device = features.device
        keep = by.top(attention, [max(part.dominant - 1, 0) for part in parts])
        has_cls = torch.tensor([[part.dominant > 0] for part in parts], device=device)
        cls = by.projected(run, by.looked(memo["cls"])[:, None], has_cls)
        if isinstance(by, ByTile):
            return self._on_tiles(run, by, parts, keep, cls, has_cls)
        front = by.gathered(cls, has_cls)
        zipped = Reduction(
            by.join(keep),
            front=front[0],
            front_valid=front[1],
            front_image=front[2],
            positions="compact",
            decode_positions="compact",
        )
        if not any(part.contextual for part in parts):
            return zipped
        targets, real = spread(by, keep, parts)
        merged = merge(run, by, metric, exact(features), by.valid & ~keep, targets, real, parts)
        added = by.gathered(by.projected(run, merged.to(features.dtype), real), real)
        return replace(zipped, added=added[0], added_valid=added[1], added_image=added[2])

    def _on_tiles(
        self, run: Run, by: ByTile, parts: Sequence[Parts], keep: Tensor, cls: Tensor, has_cls: Tensor
    ) -> Reduction:
        """The overview's [CLS], dominant and contextual tokens; then the dominant ones of all tiles as one raster, the
        tiles' [CLS], and their contextual tokens tile by tile."""
        metric, features = by.split(run.memo["metric"]), by.split(run.memo["features"])
        run.memo["tiles"] = keep
        index, real = picked(keep)
        most, of = max(part.contextual for part in parts), by.overview()[:, None]
        tile, patch = torch.tensor(by.image, device=of.device)[:, None], 1 + by.places().gather(1, index)
        last = 2 + int(by.places().max()) + most
        tokens, valid = [cls, by.projected(run, at(features, index), real)], [has_cls, real]
        places = [torch.where(of, 0, last + tile), torch.where(of, patch, patch + most)]
        if most:
            targets, found = spread(by, keep, parts)
            merged = merge(run, by, metric, exact(features), by.valid & ~keep, targets, found, parts)
            behind = last + 1 + max(by.image) + tile * most
            tokens.append(by.projected(run, merged.to(features.dtype), found))
            valid.append(found)
            places.append(torch.where(of, 1 + by.counts[0], behind) + torch.arange(most, device=of.device)[None])
        return by.placed(torch.cat(tokens, 1), torch.cat(valid, 1), torch.cat(places, 1))


def spread(by: ByImage, keep: Tensor, parts: Sequence[Parts]) -> tuple[Tensor, Tensor]:
    """(u, c) long: targets, evenly among the patches of each image that are not kept; (u, c) bool: the real ones."""
    most = max(part.contextual for part in parts)
    steps = [
        max(1, (n - part.dominant + 1) // part.contextual) if part.contextual else 0
        for n, part in zip(by.counts, parts, strict=True)
    ]
    number = torch.arange(most)[None]
    real = number < torch.tensor([part.contextual for part in parts])[:, None]
    place = torch.where(real, number * torch.tensor(steps)[:, None], 0)
    # in raster order, those of the padding last
    others = (keep | ~by.valid).to(torch.uint8).argsort(dim=1, stable=True)
    return others.gather(1, place.to(keep.device)), real.to(keep.device)


def merge(
    run: Run,
    by: ByImage,
    metric: Tensor,
    features: Tensor,
    others: Tensor,
    targets: Tensor,
    real: Tensor,
    parts: Sequence[Parts],
) -> Tensor:
    """(u, c, width): the features of each target plus the mean of those that join it.

    `metric (u, p, k)` is compared by cosine, `others (u, p)` bool are the patches that are targets or join one.
    """
    metric = normalize(metric, dim=2)
    pairs = [n * part.contextual for n, part in zip(by.counts, parts, strict=True)]
    similarity = run.matmul(metric, at(metric, targets).transpose(1, 2), row=by.row, entries=pairs).masked_fill(
        ~real[:, None], float("-inf")
    )
    number = torch.arange(real.shape[1], device=real.device)
    # the first of equal targets, on any device
    nearest = torch.where(similarity == similarity.amax(2, keepdim=True), number, len(number)).amin(2)
    is_target = torch.zeros_like(nearest).scatter_add_(1, targets, real.long()) > 0
    joins = (nearest[:, None] == number[:, None]) & (others & ~is_target)[:, None] & real[:, :, None]
    sizes = [part.contextual * features.shape[2] for part in parts]
    sums = run.matmul(joins.to(features.dtype), features, row=by.row, entries=sizes)
    return at(features, targets) + sums / joins.sum(2, keepdim=True).clamp(min=1)
