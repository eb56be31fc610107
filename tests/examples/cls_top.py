"""Keep the patches to which the vision tower's [CLS] attends most: how methods that prune before the language model
look at the tower."""

from dataclasses import dataclass
from typing import ClassVar

from harness.core import flops
from harness.method import Ranking, TowerLook, Traits

ROW = TowerLook("cls_row", -2)  # of the layer whose output LLaVA-1.5 projects


@dataclass(frozen=True)
class ClsTop(Ranking):
    """Keeps `keep` visual tokens by [CLS] attention, mean over heads."""

    name = "cls_top"
    traits = Traits(query_aware=False, needs_vision_attention=True, image_only=True)
    boundary: ClassVar[int] = 0  # no knob: before the language model only

    def looks(self, shape):
        return (ROW,)

    def on_image(self, run, tower):
        run.memo["scores"] = tower[ROW].mean(1)

    def score(self, run, stream):
        return run.memo["scores"]

    def plan_scoring(self, prompt, visual):
        return sum(flops.cls_row(image.vision) for image in prompt.images)
