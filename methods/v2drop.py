"""V2Drop: at three layers, keep the visual tokens that the layer before changed most; the last time a single one.

Paper: https://arxiv.org/abs/2509.01552 (CVPR 2026). Official code: xuyang-liu16/V2Drop @ 219e03e. Before layer l the
score of a token is the L2 norm of (stream entering l) - (stream entering l-1). Of n tokens max(1, int(n * ratio)) stay.
`BUDGET=native` is the released schedule: layers 3, 17 and 22 of 32 keep 0.5, 0.5 and 0 of the tokens present. Positions
stay.

`BUDGET=k` is ours, for a budget in the paper's tables is a mean over the layers. The last layer is the withdrawal, as
published: one token stays. After the layers before it k tokens stay, and each of them keeps the same share of the
tokens present, as in the released schedule: 576, 288, 144, 1. `kept` in tables is k, the count before the withdrawal. A
budget of all tokens withdraws none. So no schedule averages between a late withdrawal and all tokens.
Differs: the table in the paper drops 50, 70 and 100 %, the released code 50, 50 and 100 %; `ratios` takes either. Norms
are float32 at least, the official ones of the model's precision. Equal changes go to the lower index. A text-only
prompt of more than 576 tokens loses none; the official code prunes such a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor

from harness.core.budget import Budget
from harness.core.shape import ModelShape
from harness.method import (
    Method,
    PromptShape,
    Published,
    Reduction,
    Run,
    Share,
    Stream,
    Traits,
    check_keep,
    keep_top,
    register,
)
from methods._select import exact
from methods._stages import check_happens, check_one_of, check_ratios, stage_layers

LAYERS, RATIOS = (3, 17, 22), (0.5, 0.5, 0.0)


@register
@dataclass(frozen=True)
class V2Drop(Method):
    """`ratios[i]` of the tokens present stay from decoder layer `layers[i]` on, or `keep` before the withdrawal."""

    name = "v2drop"
    paper = "https://arxiv.org/abs/2509.01552"
    published = Published("CVPR 2026", "xuyang-liu16/V2Drop", "219e03ed", "Apache-2.0")
    traits = Traits(query_aware=False, image_only=True)
    budget_knobs = ("keep", "ratios")

    keep: int | Share | None = None
    ratios: tuple[float, ...] | None = None
    layers: tuple[int, ...] | None = None

    @classmethod
    def at_budget(cls, budget: Budget, knobs: Mapping[str, Any], prompt: PromptShape) -> Self:
        if budget.unit == "native":
            return cls(**{"ratios": RATIOS, **knobs})
        return super().at_budget(budget, knobs, prompt)

    def for_model(self, shape: ModelShape) -> V2Drop:
        check_one_of(self.name, self.keep, self.ratios)
        layers = stage_layers(self.name, self.layers, LAYERS, shape)
        if self.ratios is not None:
            check_ratios(self.name, self.ratios, layers)
        else:
            check_keep(self.name, self.keep)
            check_happens(self.name, layers[:-1], shape, "a layer before the last one, the withdrawal,")
        return replace(self, layers=layers)

    def selections(self, prompt: PromptShape) -> list[tuple[int, int]]:
        """(layer, visual tokens that stay from there on) of each stage that happens, the withdrawal left out."""
        layers, n = self.layers or (), prompt.n_visual
        if self.ratios is not None:
            counts = list(accumulate(self.ratios, lambda present, r: min(present, max(1, int(present * r))), initial=n))
            found = list(zip(layers, counts[1:], strict=True))
            found = found[: len(found) - self._withdraws]
        else:
            keep, happening = prompt.quota(self.keep or 0), [layer for layer in layers[:-1] if layer < prompt.depth]
            share = (keep / n) ** (1 / len(happening)) if n else 1.0
            found = [(layer, keep) for layer in happening[-1:]]
            found = [(layer, round(n * share**i)) for i, layer in enumerate(happening[:-1], 1)] + found
        return [(layer, count) for layer, count in found if layer < prompt.depth]

    @property
    def _withdraws(self) -> bool:
        """Is the last stage a withdrawal? A selection stands before it."""
        return self.ratios is None or (len(self.ratios) > 1 and self.ratios[-1] == 0)

    def stages(self, prompt: PromptShape) -> dict[int, int]:
        """By layer: visual tokens that stay from there on."""
        found, last = self.selections(prompt), (self.layers or (0,))[-1]
        left = found[-1][1] if found else prompt.n_visual
        stays_whole = self.keep is not None and left == prompt.n_visual
        if self._withdraws and not stays_whole and last < prompt.depth:
            found.append((last, min(1, left)))
        return dict(found)

    def plan(self, prompt: PromptShape) -> list[int]:
        stages, counts = self.stages(prompt), [prompt.n_visual]
        for layer in range(1, prompt.depth):
            counts.append(stages.get(layer, counts[-1]))
        return counts

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int:
        return 0  # differences and norms: no matrix product

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        layers, entered, reduction = self.layers or (), run.memo.pop("entered", None), None
        if layer not in layers and layer + 1 not in layers:
            return None
        visual = stream.visual
        if entered is not None:
            plans = [self.plan(prompt)[layer] for prompt in run.prompts]
            change = (exact(visual) - exact(entered)).norm(dim=2)
            keep = keep_top(change, torch.tensor(plans, device=visual.device), run.visual_valid)
            reduction, visual = Reduction(keep), compacted(visual, keep, max(plans))
            run.note("kept", [self._kept(prompt) for prompt in run.prompts])
        if layer + 1 in layers:
            run.memo["entered"] = visual
        return reduction

    def _kept(self, prompt: PromptShape) -> int:
        """Visual tokens before the withdrawal."""
        found = self.selections(prompt)
        return found[-1][1] if found else self.plan(prompt)[-1]


def compacted(x: Tensor, keep: Tensor, most: int) -> Tensor:
    """(b, most, d): the rows of `x (b, v, d)` that `keep (b, v)` marks, in order; `most` is the largest count."""
    first = (~keep).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    return x.gather(1, first[:, :, None].expand(-1, -1, x.shape[2]))
