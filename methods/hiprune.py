"""HiPrune: patches that a middle layer of the vision tower attends to, their neighbours, and those that a deep layer
attends to.

Paper: https://arxiv.org/abs/2508.00553 (AAAI 2026, student abstract). Official code: Danielement321/HiPrune @ 6e83a124,
llava/model/multimodal_encoder/clip_encoder.py. Pre-LLM. A patch's score in a layer is the attention to it, mean over
heads and over all queries, [CLS] included. Of N kept patches round(N * alpha / 5), halves to even, are anchors: the
best of the object layer. Buffers are the four neighbours of each anchor, at index -1, +1, -columns, +columns. An index
is clamped to the image and does not stop at the end of a row: a neighbour may lie at the other side of the image.
Registers fill up to N: the best of the second-last layer. Kept patches stay in the order of the image.
Differs: scores are sums over queries instead of means, which ranks alike. Where anchors and buffers are more than N,
the official code fails; here the anchors stay, and of the buffers those of the best second-last layer's score.

Qwen2.5-VL (Qwen2_5_VL/qwen2_5_vl_HiPrune.py) is a variant, and the default where the tower has no [CLS]: `official` is
"qwen". Scores are means over heads and the patches of a visual token, the object layer is 16 of 32, and registers are
the best of the last layer. Chosen anchors and buffers lose 1 of their score there, and column sums are 1 on average: a
strong one is chosen twice, so that fewer than N tokens stay. Windows are ignored, as in the official flash class;
"qwen-eager" scores within them, as its eager class. Official counts are round(n * ratio), halves to even.
BUDGET=native is N = 192, the first of the three published defaults (192, 128, 64) and that of the official script.
Equal scores go to the lower patch. A prompt of several images shares its budget among them.
On tiles `official` is "next" (LLaVA/llava/model/llava_arch.py on LLaVA-NeXT): each tile alone keeps int(N / tiles) of
its patches, without newlines and un-padding, and the sequence is renumbered (methods/_tiles.py).
Differs there: kept patches are projected once more, which the costs count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

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
    Share,
    Stream,
    TowerLook,
    Traits,
    What,
    check_keep,
    register,
)
from methods._select import ByImage, at
from methods._tiles import ByTile, picked, plan_of, tile_quotas, tiled

#: by variant, the official object layer, counted from 1, and the layers of the tower that it is one of
OBJECT_LAYERS = {"llava": (9, 24), "next": (9, 24), "qwen": (16, 32), "qwen-eager": (16, 32)}
#: what the model projects
FEATURES = TowerLook("hidden", -2, tiles=True)
#: an anchor and its four neighbours
GROUP = 5


@register
@dataclass(frozen=True)
class HiPrune(Method):
    """Keeps `keep` patches (the paper's N'), of them about the share `alpha` as anchors and buffers.

    `object_layer` chooses the anchors; it is counted from 1, as the official environment variable is. None moves the
    official 9 of 24 (16 of 32) to the same relative depth of this tower. `official`: the code whose ways it goes; a
    budget chooses it by the tower.
    """

    name = "hiprune"
    paper = "https://arxiv.org/abs/2508.00553"
    published = Published("AAAI 2026", "Danielement321/HiPrune", "6e83a124", "MIT")
    traits = Traits(query_aware=False, needs_vision_attention=True, image_only=True, per_image=True)

    variant_knobs = ("official",)
    later_knobs: ClassVar[Mapping[str, Any]] = {"official": "llava"}

    keep: int | Share
    alpha: float = 0.1
    object_layer: int | None = None
    official: Literal["llava", "next", "qwen", "qwen-eager"] = "llava"

    @classmethod
    def at_budget(cls, budget: Budget, knobs: Mapping[str, Any], prompt: PromptShape) -> Self:
        vision = prompt.images[0].vision
        own = "next" if tiled(prompt) else "llava" if vision.prefix else "qwen"
        given = {"official": own, **knobs}
        built = cls(**{"keep": 192, **given}) if budget.unit == "native" else super().at_budget(budget, given, prompt)
        built._check_tiles(prompt)
        depth, (official, of) = vision.layers_used, OBJECT_LAYERS[built.official]
        layer = max(1, round(official * depth / of)) if built.object_layer is None else built.object_layer
        if not 1 <= layer <= depth:
            raise PrunebenchError(
                f"hiprune: object_layer={layer} does not fit this model: expected 1 to {depth}, a layer of the vision"
                " tower"
            )
        return replace(built, object_layer=layer)

    @property
    def _tiled(self) -> bool:
        return self.official == "next"

    def _check_tiles(self, prompt: PromptShape) -> None:
        if self._tiled != tiled(prompt):
            found, fits = ("tiles", "next") if tiled(prompt) else ("no tiles", "llava or qwen")
            raise PrunebenchError(
                f"hiprune: official={self.official}: expected official={fits}, found a model with {found}: a budget"
                " chooses it, as build() does"
            )

    def for_model(self, shape: ModelShape) -> HiPrune:
        check_keep(self.name, self.keep)
        if not 0 <= self.alpha <= 1:
            raise PrunebenchError(
                f"hiprune: expected alpha from 0 to 1, found {self.alpha:g}: give the share of the kept tokens that are"
                " anchors and buffers"
            )
        return self

    def n_anchors(self, quota: int) -> int:
        """How many of an image's `quota` tokens are anchors; halves to even."""
        return round(quota * self.alpha / GROUP)

    def plan(self, prompt: PromptShape) -> list[int] | None:
        if self._tiled:
            return plan_of(prompt, tile_quotas(prompt, self.keep))
        if self.official != "llava":
            return None  # how many are chosen twice, the image decides
        return [prompt.quota(self.keep)] * prompt.depth

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int:
        looked = sum(
            flops.look(image.vision, look.what, look.layer)
            for look in self.looks(prompt.decoder)
            for image in prompt.images
        )
        if not self._tiled:
            return looked
        return looked + flops.projector(prompt.decoder, prompt.images[0].vision, tokens=visual[0])

    def looks(self, shape: ModelShape) -> Sequence[TowerLook]:
        if self.object_layer is None:
            raise PrunebenchError(
                "hiprune: object_layer=None is a relative depth of the vision tower, which is known where a budget is"
                " set: use build(), or give the layer (9 of 24)"
            )
        if self._tiled:
            sums = (TowerLook("column_sums", layer, tiles=True) for layer in (self.object_layer - 1, -2))
            return (*sums, FEATURES)
        what: What = "whole_column_sums" if self.official == "qwen" else "column_sums"
        return (TowerLook(what, self.object_layer - 1), TowerLook(what, -2 if self.official == "llava" else -1))

    def on_image(self, run: Run, tower: Mapping[TowerLook, Tensor]) -> None:
        objects, everywhere, *features = self.looks(run.shape)
        run.memo.update(objects=tower[objects].mean(1), scores=tower[everywhere].mean(1))
        run.memo["features"] = tower[features[0]] if features else None

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer != 0:
            return None
        self._check_tiles(run.prompts[0])
        if self._tiled:
            tiles = ByTile(run)
            kept = self._kept(run, tiles, [q for prompt in run.prompts for q in tile_quotas(prompt, self.keep)])
            run.memo["tiles"] = kept
            index, real = picked(kept)
            features = at(tiles.split(run.memo["features"]), index)
            return tiles.placed(tiles.projected(run, features, real), real, tiles.places().gather(1, index))
        images = ByImage(run)
        kept = self._kept(run, images, images.quotas(self.keep))
        return Reduction(images.join(kept), positions="compact", decode_positions="compact")

    def _kept(self, run: Run, images: ByImage, quotas: Sequence[int]) -> Tensor:
        """(u, p) bool: the patches that each of `images`, or of tiles, keeps."""
        objects, scores = images.split(run.memo["objects"]), images.split(run.memo["scores"])
        anchors = images.top(objects, [self.n_anchors(quota) for quota in quotas])
        shapes = [image for prompt in run.prompts for image in prompt.images]
        columns = [shape.views[0].cols for shape in shapes for _ in range(shape.vision.tiles if self._tiled else 1)]
        buffers = neighbours(anchors, images.counts, columns)
        # anchors are never more than the budget; buffers may be
        ranked = scores.masked_fill(anchors, float("inf"))
        first = images.top(ranked, quotas, anchors | buffers)
        left = torch.tensor(quotas, device=first.device) - first.sum(1)
        if not self.official.startswith("qwen"):
            registers = images.top(scores, left, images.valid & ~first)
        else:  # not excluded: a score above 1 may be chosen again
            scores = run.memo["registers"] = scores - first.to(scores)
            registers = images.top(scores, left, images.valid)
        return first | registers


def neighbours(chosen: Tensor, counts: Sequence[int], columns: Sequence[int]) -> Tensor:
    """(u, p) bool: tokens beside, above or below those `chosen (u, p)`, by index in images of `counts` tokens in
    `columns`.

    An index beyond the image is its first or last token; the ends of rows are not looked at.
    """
    device = chosen.device
    last, below = (torch.tensor(n, device=device)[:, None] for n in ([count - 1 for count in counts], columns))
    place = torch.arange(chosen.shape[1], device=device)
    marks = chosen.long()
    hits = torch.zeros_like(marks)
    for step in (-torch.ones_like(below), torch.ones_like(below), -below, below):
        hits.scatter_add_(1, torch.minimum((place + step).clamp(min=0), last), marks)
    return hits > 0
