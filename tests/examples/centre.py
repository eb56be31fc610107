"""Keep the visual tokens nearest to the image's centre. The README's worked example of a method."""

from dataclasses import dataclass

import torch

from harness.method import Method, Reduction, Traits, check_layer
from methods._select import keep_top


@dataclass(frozen=True)
class Centre(Method):
    """Keeps `keep` visual tokens from decoder layer `boundary` on."""

    name = "centre"
    traits = Traits(query_aware=False, image_only=True)  # the question has no say, so questions about an image can share work

    keep: int
    boundary: int = 0

    def for_model(self, shape):
        check_layer(self.name, "boundary", self.boundary, 0, shape.depth)
        return self

    def at_boundary(self, run, layer, stream):
        if layer != self.boundary:
            return None
        valid = run.visual_valid  # (b, v): which visual tokens each row has
        side = int(run.shape.n_visual**0.5)
        index = torch.arange(valid.shape[1], device=valid.device) % run.shape.n_visual  # place in its image
        away = (index // side - (side - 1) / 2) ** 2 + (index % side - (side - 1) / 2) ** 2
        return Reduction(keep_top(-away.expand(valid.shape), self.keep, valid))

    def plan(self, shape, n_text):
        return [shape.n_visual] * self.boundary + [self.keep] * (shape.depth - self.boundary)
