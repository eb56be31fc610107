"""VisiPruner: silence vision in shallow layers, keep only what changes the answer at the fusion layer, drop vision when it is done.

Paper: https://arxiv.org/abs/2510.17205 (EMNLP 2025). Official code: EIT-NLP/VisiPruner @ d778622, custom_modeling_llama.py.
Three switchable stages, on the attention of the last prompt token (before o_proj, heads concatenated):

* shallow, layers < S: layer 0 by `layer0`; layers 1..S-1 text gets nothing from vision. Nothing is renormalised, nothing is skipped.
* middle, layers > S (strictly; layer S is neither): with C_i the contribution of visual token i to the output O, the first layer in
  which any cos(O - C_i, O) < `layer_threshold` is the fusion layer; from the next layer on only tokens with |C_i| > `tokens_threshold` stay.
* deep, after it: a layer votes to exit when every kept token has cos >= `exit_threshold`; after `exit_votes` votes in total, not
  necessarily consecutive, all visual tokens leave. If all tokens were kept, they never leave.

Differs: the code reads the layer-0 variant from the checkpoint's folder name ("7b" or "13b"), here it is the knob `layer0`. S = 6 of 32
scales with depth unless given. VisiPruner has no published budget: at `BUDGET=k` the k tokens with the largest |C_i| stay in place of
the norm threshold, and where no layer has fired by `last_fusion_layer` (default: half the depth) selection happens there, so that
the budget is always met; results record how often that was forced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from harness.budget import Budget
from harness.errors import PrunebenchError
from harness.method import Attention, AttentionEdit, Method, Reduction, Run, Stream, Traits, check_layer, register
from harness.shape import ModelShape
from methods._select import keep_top


@register
@dataclass(frozen=True)
class VisiPruner(Method):
    """`keep` set: a budget of that many tokens; None: the paper's thresholds (`BUDGET=native`)."""

    name = "visipruner"
    paper = "https://arxiv.org/abs/2510.17205"
    traits = Traits(query_aware=True, adaptive=True, edits_attention=True)

    keep: int | None = None
    shallow: bool = True
    middle: bool = True
    deep: bool = True
    shallow_mid_layer: int | None = None  # S
    layer0: Literal["merge", "half"] = "merge"  # what the code does for "7b" / for "13b"
    layer_threshold: float = 0.995
    tokens_threshold: float = 0.2
    exit_threshold: float = 0.999
    exit_votes: int = 2
    last_fusion_layer: int | None = None

    @classmethod
    def at_budget(cls, budget: Budget, knobs: Mapping[str, Any], shape: ModelShape) -> Self:
        if budget.unit == "native":
            return cls(**knobs)
        if budget.unit == "kept" and knobs.get("middle") is False:
            raise PrunebenchError("visipruner: a budget is met by its middle stage; found middle=false: switch it on or use BUDGET=native")
        return super().at_budget(budget, knobs, shape)

    def for_model(self, shape: ModelShape) -> VisiPruner:
        s = shape.scaled_layer(6) if self.shallow_mid_layer is None else self.shallow_mid_layer
        check_layer("visipruner", "shallow_mid_layer", s, 0, shape.depth)
        last = max(shape.depth // 2, s + 1) if self.last_fusion_layer is None else self.last_fusion_layer
        if self.keep is not None:
            if self.keep < 1:
                raise PrunebenchError(f"visipruner: expected keep >= 1, found {self.keep}")
            check_layer("visipruner", "last_fusion_layer", last, s + 1, shape.depth - 1)
        for name in ("layer_threshold", "exit_threshold"):
            if not -1 <= getattr(self, name) <= 1:
                raise PrunebenchError(f"visipruner: expected {name} as a cosine in [-1, 1], found {getattr(self, name)}")
        return replace(self, shallow_mid_layer=s, last_fusion_layer=last)

    def edit_attention(self, run: Run, layer: int) -> Sequence[AttentionEdit]:
        assert self.shallow_mid_layer is not None
        if not self.shallow or layer >= self.shallow_mid_layer:
            return ()
        if layer > 0:
            return (AttentionEdit("after", None, "zero"),)
        if self.layer0 == "merge":
            return (AttentionEdit("visual", None, "zero"), AttentionEdit("after", None, "redirect", sink=0))
        valid = run.visual_valid
        first_half = torch.arange(valid.shape[1], device=valid.device) < (valid.sum(1, keepdim=True) // 2)
        return (AttentionEdit("visual", None, "zero"), AttentionEdit("after", first_half, "zero"))

    def on_attention(self, run: Run, layer: int, attn: Attention) -> None:
        assert self.shallow_mid_layer is not None
        assert self.last_fusion_layer is not None
        if not self.middle or layer <= self.shallow_mid_layer:
            return
        memo, valid = run.memo, run.visual_valid
        if "fusion" not in memo:
            start = torch.full((valid.shape[0],), -1, device=valid.device)
            memo.update(fusion=start, exit=start.clone(), votes=start.clone() + 1, forced=start.clone() + 1, kept=valid.sum(1), log=[])
        searching, voting = memo["fusion"] < 0, (memo["fusion"] >= 0) & (memo["exit"] < 0)
        if not bool((searching | (voting & self.deep)).any()):
            return
        norm, cosine = contributions(attn)
        lowest = torch.where(valid, cosine, 1.0).amin(1) if valid.shape[1] else torch.ones(valid.shape[0], device=valid.device)
        fires = searching & (lowest < self.layer_threshold)
        if self.keep is not None and layer == self.last_fusion_layer:
            memo["forced"] += searching & ~fires
            fires = searching
        chosen = norm > self.tokens_threshold if self.keep is None else keep_top(norm, self.keep, valid)
        memo["keep"] = torch.where(fires[:, None], chosen & valid, valid)
        memo["fusion"] = torch.where(fires, layer, memo["fusion"])
        memo["kept"] = torch.where(fires, memo["keep"].sum(1), memo["kept"])
        vote = voting & (lowest >= self.exit_threshold)
        memo["votes"] += vote
        memo["log"].append((layer, voting, vote, lowest))
        if self.deep and layer < run.shape.depth - 1:
            # the official code cannot tell "all kept" from "not pruned yet", so it never exits then
            done = voting & (memo["votes"] >= self.exit_votes) & (memo["kept"] > 0) & (memo["kept"] < run.n_prompt_visual)
            memo["exit"] = torch.where(done, layer + 1, memo["exit"])
            memo["keep"] = memo["keep"] & ~done[:, None]

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer == run.shape.depth - 1 and "fusion" in run.memo:
            # a layer that fires in the very last layer has nothing left to prune
            for name, key in (("fusion_layer", "fusion"), ("exit_layer", "exit"), ("forced", "forced"), ("kept", "kept")):
                run.note(name, run.memo[key])
        keep = run.memo.pop("keep", None)
        return None if keep is None else Reduction(keep)


def contributions(attn: Attention) -> tuple[Tensor, Tensor]:
    """Per visual token (b, v), float32: |C_i| and cos(O - C_i, O) for the last prompt token.

    C_i = attention to i times its value vector, heads concatenated; O = the attention output before o_proj.
    """
    probs = attn.visual_probs("last").values[:, :, 0]  # (b, heads, v)
    each = (probs[..., None] * attn.visual_values().float()).transpose(1, 2).flatten(2)  # (b, v, heads x d)
    output = attn.last_output().float().flatten(1)[:, None]
    return each.norm(dim=-1), cosine_similarity(output - each, output, dim=-1)
