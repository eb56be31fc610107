"""FasterVLM: keep the patches that the vision tower's [CLS] token attends to most.

Paper: https://arxiv.org/abs/2412.01818v1 (arXiv, December 2024). Official code: Theia-4869/FasterVLM @ f5d5f121,
llava/model/llava_arch.py. Pre-LLM: the score is the [CLS] row of the tower's second-last layer, mean over heads. The
`keep` best patches stay in the order of the image, positions are renumbered.
Differs: the official code casts the attention to the dtype of the features before the mean over heads, here it is
float32. Equal scores go to the lower patch. A prompt of several images shares its budget among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from harness.core import flops
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
from methods._select import ByImage


@register
@dataclass(frozen=True)
class FasterVLM(Method):
    """Keeps the `keep` patches (the paper's T) of the highest [CLS] attention."""

    name = "fastervlm"
    paper = "https://arxiv.org/abs/2412.01818v1"
    published = Published("arXiv 2024", "Theia-4869/FasterVLM", "f5d5f121", "Apache-2.0")
    traits = Traits(query_aware=False, needs_vision_attention=True, image_only=True, per_image=True)
    #: the layer whose output LLaVA-1.5 projects
    LOOK: ClassVar[TowerLook] = TowerLook("cls_row", -2)

    keep: int | Share

    def for_model(self, shape: ModelShape) -> FasterVLM:
        check_keep(self.name, self.keep)
        return self

    def plan(self, prompt: PromptShape) -> list[int]:
        return [prompt.quota(self.keep)] * prompt.depth

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int:
        return sum(flops.cls_row(image.vision) for image in prompt.images)

    def looks(self, shape: ModelShape) -> Sequence[TowerLook]:
        return (self.LOOK,)

    def on_image(self, run: Run, tower: Mapping[TowerLook, Tensor]) -> None:
        run.memo["scores"] = tower[self.LOOK].mean(1)

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer != 0:
            return None
        images = ByImage(run)
        kept = images.top(images.split(run.memo["scores"]), images.quotas(self.keep))
        return Reduction(images.join(kept), positions="compact", decode_positions="compact")
