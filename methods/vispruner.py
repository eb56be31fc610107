"""VisPruner: the patches that [CLS] attends to most, and of the others those least like any other.

Paper: https://arxiv.org/abs/2412.01818 (ICCV 2025). Official code: Theia-4869/VisPruner @ aefa01ad,
llava/model/llava_arch.py. Pre-LLM: int(T * r) of the T kept patches are the best of FasterVLM's score, the others form
a pool in descending order of score. Rounds thin the pool: its 1st, 3rd, 5th, ... entries are side a, the others side b.
The value of an a-entry is its largest cosine to side b, on the features before the projector. The 8 of the largest
values go, fewer in the last round. The pool of the next round is what is left of side a by descending value, then side
b. So the order of the survivors decides the next pairs. Kept patches stay in the order of the image.
Differs: the official code fails at a pool of odd size; here side a is one longer than side b. A round drops no more
than side a holds, which matters below 16 entries. Cosines are float64 and sorting is stable: the same features give the
same set on every device and at every batch size. The official code in float32 or float16 does not repeat its own set.
Noise of 4e-7 on features and attention changes the set in 92 % of 1,424 recorded settings. So equality with the
official set cannot be had beyond the recorded cases. A prompt of several images shares its budget among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harness.core import flops
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
    check_keep,
    register,
)
from methods._select import ByImage, at, image_quotas

#: entries of the pool that a round drops
DROPPED = 8


@register
@dataclass(frozen=True)
class VisPruner(Method):
    """Keeps `keep` patches (the paper's T): int(keep * `important_ratio`) by [CLS] attention, the others unlike each
    other.

    `important_ratio` is the paper's r; 1 keeps what `fastervlm` keeps.
    """

    name = "vispruner"
    paper = "https://arxiv.org/abs/2412.01818"
    published = Published("ICCV 2025", "Theia-4869/VisPruner", "aefa01ad", "Apache-2.0")
    traits = Traits(query_aware=False, needs_vision_attention=True, image_only=True, per_image=True)
    needs_grid = True
    #: of the layer whose output LLaVA-1.5 projects
    ROW: ClassVar[TowerLook] = TowerLook("cls_row", -2)
    FEATURES: ClassVar[TowerLook] = TowerLook("hidden", -2)

    keep: int | Share
    important_ratio: float = 0.5

    def for_model(self, shape: ModelShape) -> VisPruner:
        check_keep(self.name, self.keep)
        if not 0 <= self.important_ratio <= 1:
            raise PrunebenchError(
                f"vispruner: expected important_ratio from 0 to 1, found {self.important_ratio:g}: give the share of"
                " the kept tokens that attention chooses"
            )
        return self

    def n_important(self, quota: int) -> int:
        """How many of an image's `quota` tokens attention chooses: truncated, in the official arithmetic (125 of 180 at
        0.7)."""
        return int(quota * self.important_ratio)

    def plan(self, prompt: PromptShape) -> list[int]:
        return [prompt.quota(self.keep)] * prompt.depth

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int:
        total = 0
        for image, quota in zip(prompt.images, image_quotas(prompt, self.keep), strict=True):
            pool = image.tokens - self.n_important(quota)
            thinned = 0 < quota - self.n_important(quota) < pool
            total += flops.cls_row(image.vision) + 2 * pool**2 * image.vision.hidden * thinned
        return total

    def looks(self, shape: ModelShape) -> Sequence[TowerLook]:
        return (self.ROW, self.FEATURES)

    def on_image(self, run: Run, tower: Mapping[TowerLook, Tensor]) -> None:
        run.memo.update(scores=tower[self.ROW].mean(1), features=tower[self.FEATURES])

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer != 0:
            return None
        images = ByImage(run)
        scores, features = images.split(run.memo["scores"]), images.split(run.memo["features"])
        quotas = images.quotas(self.keep)
        kept = images.top(scores, [self.n_important(quota) for quota in quotas])
        alike: dict[tuple[int, int], list[int]] = {}
        for image, sizes in enumerate(zip(images.counts, quotas, strict=True)):
            alike.setdefault(sizes, []).append(image)
        for (count, quota), some in alike.items():
            n_important = self.n_important(quota)
            ranked = scores[some, :count].argsort(dim=1, descending=True, stable=True)
            pool = ranked[:, n_important:]
            left = self._thinned(run, [images.row[i] for i in some], features[some, :count], pool, quota - n_important)
            kept[some] = kept[some].scatter(1, left, True)
        return Reduction(images.join(kept), positions="compact", decode_positions="compact")

    def _thinned(self, run: Run, rows: list[int], features: Tensor, pool: Tensor, target: int) -> Tensor:
        """(g, target) long: what is left of `pool (g, n)`, tokens of images with `features (g, count, d)` in `rows` of
        the batch."""
        if not 0 < target < pool.shape[1]:
            return pool[:, :target]
        whole = features.double()
        unit = whole / whole.norm(dim=2, keepdim=True).clamp(min=torch.finfo(whole.dtype).tiny)
        unit = at(unit, pool)
        return pool.gather(1, thin(run.matmul(unit, unit.transpose(1, 2), row=rows), target))


def thin(cosines: Tensor, target: int) -> Tensor:
    """(g, target) long: the entries of a pool that its rounds leave; `cosines (g, n, n)` of the pool in its order."""
    group, n = cosines.shape[:2]
    each = torch.arange(group, device=cosines.device)[:, None, None]
    pool = torch.arange(n, device=cosines.device).expand(group, n)
    while pool.shape[1] > target:
        a, b = pool[:, ::2], pool[:, 1::2]
        dropped = min(DROPPED, pool.shape[1] - target, a.shape[1])
        value = cosines[each, a[:, :, None], b[:, None, :]].amax(2)
        by_value = value.argsort(dim=1, descending=True, stable=True)
        pool = torch.cat([a.gather(1, by_value[:, dropped:]), b], 1)
    return pool
