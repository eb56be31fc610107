"""PyramidDrop: at three layers, keep the visual tokens that the last prompt token is about to attend to most.

Paper: https://arxiv.org/abs/2410.17247 (CVPR 2025). Official code: Cooperx521/PyramidDrop @ 6444f30,
llava/model/modeling_llama_pdrop.py. Before layer p the last token of the prompt attends under the norm, projections and
RoPE of layer p itself, softmax over all keys, mean over heads. The int(n * ratio) best visual tokens stay, n being the
prompt's own count before any stage. Then all positions are renumbered, and each layer decodes at its own cache length.
`BUDGET=native` is the released schedule: layers 8, 16 and 24 of 32 keep 0.5, 0.25 and 0.125.

`BUDGET=k` is ours: k tokens stay after the last stage, and each stage before it keeps twice as many as the next one, as
in the released schedule. Means and FLOPs are solved for k, with these proportions. The layers before the first stage
see all tokens, which sets a floor: 8 of 32 layers make 144 of 576 on average. Earlier `layers` lower the floor.
Differs: a stage beyond the last layer does not happen, where the official code fails. The official code generates for
one prompt at a time, without grouped-query heads. A later ratio may not be larger than the one before it.
Softmax and mean are float32 at least, the official ones of the model's precision. Equal scores go to the lower index.
The published rows for 192, 128 and 64 name no schedule; no budget here claims to be theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

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
    Traits,
    check_keep,
    keep_top,
    register,
)
from methods._stages import check_one_of, check_ratios, stage_layers

LAYERS, RATIOS = (8, 16, 24), (0.5, 0.25, 0.125)


@register
@dataclass(frozen=True)
class PyramidDrop(Method):
    """`ratios[i]` of the prompt's visual tokens stay from decoder layer `layers[i]` on, or `keep` after the last."""

    name = "pyramiddrop"
    paper = "https://arxiv.org/abs/2410.17247"
    published = Published("CVPR 2025", "Cooperx521/PyramidDrop", "6444f304", "MIT")
    traits = Traits(query_aware=True, keeps_most_attended=True)
    budget_knobs = ("keep", "ratios")

    keep: int | Share | None = None
    ratios: tuple[float, ...] | None = None
    layers: tuple[int, ...] | None = None

    @classmethod
    def at_budget(cls, budget: Budget, knobs: Mapping[str, Any], prompt: PromptShape) -> Self:
        if budget.unit == "native":
            return cls(**{"ratios": RATIOS, **knobs})
        return super().at_budget(budget, knobs, prompt)

    def for_model(self, shape: ModelShape) -> PyramidDrop:
        check_one_of(self.name, self.keep, self.ratios)
        layers = stage_layers(self.name, self.layers, LAYERS, shape)
        if self.ratios is None:
            check_keep(self.name, self.keep)
        else:
            check_ratios(self.name, self.ratios, layers)
            if list(self.ratios) != sorted(self.ratios, reverse=True):
                raise PrunebenchError(
                    f"{self.name}: expected ratios that do not grow, for each is of the tokens before any stage; found"
                    f" {','.join(f'{ratio:g}' for ratio in self.ratios)}"
                )
        return replace(self, layers=layers)

    def stages(self, prompt: PromptShape) -> dict[int, int]:
        """By layer: visual tokens that stay from there on."""
        happening, n = [layer for layer in self.layers or () if layer < prompt.depth], prompt.n_visual
        if self.ratios is not None:
            return {layer: int(n * ratio) for layer, ratio in zip(happening, self.ratios, strict=False)}
        keep, last = prompt.quota(self.keep or 0), len(happening) - 1
        return {layer: min(n, keep * 2 ** (last - i)) for i, layer in enumerate(happening)}

    def plan(self, prompt: PromptShape) -> list[int]:
        stages, counts = self.stages(prompt), [prompt.n_visual]
        for layer in range(1, prompt.depth):
            counts.append(stages.get(layer, counts[-1]))
        return counts

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int:
        shape, cost = prompt.decoder, 0
        for layer in self.stages(prompt):
            tokens = visual[layer - 1] + prompt.n_text
            projections = shape.hidden * (shape.kv_heads * tokens + shape.heads)  # all keys, one query
            cost += 2 * shape.head_dim * (projections + shape.heads * tokens)
        return cost

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer not in (self.layers or ()):
            return None
        scores = stream.coming_probs("last", heads="mean").values[:, 0, 0]
        counts = torch.tensor([self.stages(prompt)[layer] for prompt in run.prompts], device=scores.device)
        keep = keep_top(scores, counts, run.visual_valid)
        return Reduction(keep, positions="compact", decode_positions="per_layer")
