"""Keep the patches to which the vision tower's [CLS] attends most: how methods that prune before the language model look at the tower."""

from dataclasses import dataclass

from harness import flops
from harness.method import Method, Reduction, TowerLook, Traits
from methods._select import keep_top

ROW = TowerLook("cls_row", -2)  # of the layer whose output LLaVA-1.5 projects


@dataclass(frozen=True)
class ClsTop(Method):
    """Keeps `keep` visual tokens by [CLS] attention, mean over heads."""

    name = "cls_top"
    traits = Traits(query_aware=False, needs_vision_attention=True, image_only=True)

    keep: int

    def looks(self, shape):
        return (ROW,)

    def on_image(self, run, tower):
        run.memo["scores"] = tower[ROW].mean(1)

    def at_boundary(self, run, layer, stream):
        if layer:
            return None
        keep = keep_top(run.memo["scores"], self.keep, run.visual_valid)
        return Reduction(keep, positions="compact", decode_positions="compact")

    def plan(self, shape, n_text):
        return [self.keep] * shape.depth

    def plan_scoring(self, shape, n_text, visual):
        return flops.cls_row(shape.vision)
