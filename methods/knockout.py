"""Attention knock-out: cut vision from text in some layers, or take it away for good, and see what the answer loses.

The analysis behind VisiPruner: https://arxiv.org/abs/2510.17205, Tables 3 and 9, and "discard all visual tokens from
layer l on"; its repository has no code for these. Configured in configs/ablations/, run by `prunebench ablate`. It
takes no budget.

In layers [start, stop), text behind the image (and with `vision_to_vision` each visual token) gets nothing from visual
tokens:

* mask: their columns are removed before softmax, the rest is renormalised; generated tokens do not see them there
  either.
* zero: their probability is removed after softmax, nothing renormalised; the prefill only, as VisiPruner's code does
  it.
* redirect: their probability goes to the visual token `sink`, the paper's "merge"; the prefill only. Visual rows are
  zeroed instead, because a sink behind a row would show it the future.

`first_how` is another `how` for layer `start` alone: the paper merges in the first layer and cuts in the others. From
layer `drop_from` on all visual tokens are gone, positions unchanged. `scale_layers`: the layers are those of a 32-layer
model and move to the same relative depth of this one. Layers that the model does not have are refused, also at the end
of a range: an ablation of layers that are not there says nothing. Differs: the paper does not say whether its masks
renormalise; configs/ablations/ uses zero, as VisiPruner's own code does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from harness.core.errors import PrunebenchError
from harness.core.shape import ModelShape
from harness.method import AttentionEdit, Method, PromptShape, Reduction, Run, Stream, Traits, check_layer, register

How = Literal["mask", "zero", "redirect"]


@register
@dataclass(frozen=True)
class Knockout(Method):
    """Cuts attention to visual tokens in layers [start, stop) and drops them from layer `drop_from` on; by default
    nothing."""

    name = "knockout"
    paper = "https://arxiv.org/abs/2510.17205"
    traits = Traits(query_aware=False, edits_attention=True)
    budget_knobs = ()

    start: int = 0
    stop: int = 0
    how: How = "mask"
    first_how: How | None = None
    sink: int = 0
    text_to_vision: bool = True
    vision_to_vision: bool = False
    drop_from: int | None = None
    scale_layers: bool = False

    def for_model(self, shape: ModelShape) -> Knockout:
        if self.scale_layers:
            start, stop = (shape.scaled_layer(x) if x else 0 for x in (self.start, self.stop))
            drop = shape.scaled_layer(self.drop_from) if self.drop_from else self.drop_from
            return replace(self, start=start, stop=stop, drop_from=drop, scale_layers=False).for_model(shape)
        if not 0 <= self.start <= self.stop <= shape.depth:
            raise PrunebenchError(
                f"knockout: expected 0 <= start <= stop <= {shape.depth} (decoder layers of this model), "
                f"found start={self.start}, stop={self.stop}"
            )
        if self.drop_from is not None:
            check_layer("knockout", "drop_from", self.drop_from, 0, shape.depth)
        return self

    def prefix_key(self) -> str:
        if not self.vision_to_vision or self.start == self.stop:
            return ""
        return f"knockout {self.start} {self.stop} {self.how} {self.first_how}"

    def plan(self, prompt: PromptShape) -> list[int]:
        if not 0 <= self.sink < prompt.n_visual:
            raise PrunebenchError(f"knockout: expected sink from 0 to {prompt.n_visual - 1}, found {self.sink}")
        gone = prompt.depth if self.drop_from is None else self.drop_from
        return [prompt.n_visual] * gone + [0] * (prompt.depth - gone)

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int:
        return 0

    def edit_attention(self, run: Run, layer: int) -> Sequence[AttentionEdit]:
        if not self._cuts(layer) or not run.visual_valid.shape[1]:  # no row has a visual token left
            return ()
        how = self._how(layer)
        edits = [AttentionEdit("after", None, how, self.sink)] if self.text_to_vision else []
        if self.vision_to_vision:
            edits.append(AttentionEdit("visual", None, "zero" if how == "redirect" else how))
        return edits

    def hide_in_decode(self, run: Run, layer: int) -> Tensor | None:
        return run.visual_valid if self._cuts(layer) and self.text_to_vision and self._how(layer) == "mask" else None

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        return Reduction(torch.zeros_like(run.visual_valid)) if layer == self.drop_from else None

    def _cuts(self, layer: int) -> bool:
        return self.start <= layer < self.stop

    def _how(self, layer: int) -> How:
        return self.first_how if self.first_how is not None and layer == self.start else self.how
