"""VisiPruner: silence vision in shallow layers, keep what changes the answer at the fusion layer, drop vision when it
is done.

Paper: https://arxiv.org/abs/2510.17205 (EMNLP 2025). Official code: EIT-NLP/VisiPruner @ d778622,
custom_modeling_llama.py. Three switchable stages, on the attention of the last prompt token (before o_proj, heads
concatenated):

* shallow, layers < S: layer 0 by `layer0`; in layers 1..S-1 text gets nothing from vision. Nothing is renormalised or
  skipped.
* middle, layers > S (strictly; layer S is neither): with C_i the contribution of visual token i to the output O, the
  first layer in which any cos(O - C_i, O) < `layer_threshold` is the fusion layer; from the next layer on only tokens
  with |C_i| > `tokens_threshold` stay.
* deep, after it: a layer votes to exit when every kept token has cos >= `exit_threshold`; after `exit_votes` votes in
  total, not necessarily consecutive, all visual tokens leave. If all tokens were kept, they never leave.

Paper and code disagree, so there are two variants. `variant` sets the defaults of these knobs; one given by hand wins:

* `sink`: the visual token that gets layer 0's merged probability: "first" (code), "random" by seed and sample (paper),
  an index.
* `shallow_self_attention`: do visual tokens attend each other in layers 1..S-1? Yes (code), no (paper); in layer 0
  never.
* `consecutive_votes`: a layer that does not vote sets the count of votes back to 0: no (code), yes (paper).
* `decode_shallow_visual`: do generated tokens attend the visual keys and values of layers < S? Yes (code), no (paper).

Differs: the code reads the layer-0 variant from the checkpoint's folder name ("7b" or "13b"), here it is the knob
`layer0`, whose default is "half" from 40 decoder layers on. S = 6 of 32 scales with depth unless given. VisiPruner has
no published budget: at `BUDGET=k` the k tokens with the largest |C_i| stay in place of the norm threshold, and where no
layer has fired by `last_fusion_layer` (default: half the depth) selection happens there, so that the budget is always
met; results record how often that was forced. Hidden shallow keys and values stay in the cache and its cost.

Places are those of each prompt. The code's column 35 is the prompt's first visual token, which is the "first" sink. Its
column 611 is the first text behind the last visual token. "half" hides the first half of the prompt's own visual
tokens, rounded down. On LLaVA-NeXT the first token is the overview's first patch, and newlines are visual tokens.

For benchmarks on weights or inputs that decide nothing: `force_fusion_layer` and `force_exit_layer` (-1: never) put a
layer in place of the threshold and of the votes. What these look at is still computed, so that the cost is a real
run's; the note `forced` is then 1 for every prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from harness.core.budget import Budget
from harness.core.errors import PrunebenchError
from harness.core.shape import ModelShape
from harness.method import (
    Attention,
    AttentionEdit,
    Method,
    PromptShape,
    Published,
    Reduction,
    Run,
    Share,
    Stream,
    Traits,
    check_keep,
    check_layer,
    keep_top,
    register,
)

#: as in notes: a prompt whose visual tokens stay to the end
NEVER = -1
#: value vectors of so many heads are held in float32 at once: 19 MB at batch 16 and 576 tokens of 128
HEADS_AT_ONCE = 4
SHORTEST = 1e-8
#: decoder layers of LLaVA-1.5-13B
LAYERS_OF_13B = 40


@register
@dataclass(frozen=True)
class VisiPruner(Method):
    """`keep` set: a budget of that many tokens; None: the paper's thresholds (`BUDGET=native`)."""

    name = "visipruner"
    paper = "https://arxiv.org/abs/2510.17205"
    published = Published("EMNLP 2025", "EIT-NLP/VisiPruner", "d778622e", "Apache-2.0")
    traits = Traits(query_aware=True, adaptive=True, edits_attention=True, keeps_most_attended=True, calibrated=True)

    keep: int | Share | None = None
    shallow: bool = True
    middle: bool = True
    deep: bool = True
    shallow_mid_layer: int | None = None  # S
    layer0: Literal["merge", "half"] | None = None  # what the code does for "7b" / for "13b"; None: by depth
    layer_threshold: float = 0.995
    tokens_threshold: float = 0.2
    exit_threshold: float = 0.999
    exit_votes: int = 2
    last_fusion_layer: int | None = None
    variant: Literal["code", "paper"] = "code"
    sink: int | Literal["first", "random"] | None = None
    shallow_self_attention: bool | None = None
    consecutive_votes: bool | None = None
    decode_shallow_visual: bool | None = None
    force_fusion_layer: int | None = None  # None: the method decides
    force_exit_layer: int | None = None

    @classmethod
    def at_budget(cls, budget: Budget, knobs: Mapping[str, Any], prompt: PromptShape) -> Self:
        if budget.unit == "kept" and knobs.get("middle") is False:
            raise PrunebenchError(
                "visipruner: a budget is met by its middle stage; found middle=false: use BUDGET=native"
            )
        method = cls(**knobs) if budget.unit == "native" else super().at_budget(budget, knobs, prompt)
        if isinstance(method.sink, int) and not 0 <= method.sink < prompt.n_visual:
            raise PrunebenchError(
                f"visipruner: expected sink as first, random or 0 to {prompt.n_visual - 1}, found {method.sink}"
            )
        return method

    def for_model(self, shape: ModelShape) -> VisiPruner:
        s = shape.scaled_layer(6) if self.shallow_mid_layer is None else self.shallow_mid_layer
        check_layer("visipruner", "shallow_mid_layer", s, 0, shape.depth)
        last = max(shape.depth // 2, s + 1) if self.last_fusion_layer is None else self.last_fusion_layer
        if self.keep is not None:
            check_keep("visipruner", self.keep)
            check_layer("visipruner", "last_fusion_layer", last, s + 1, shape.depth - 1)
        for name in ("layer_threshold", "exit_threshold"):
            if not -1 <= getattr(self, name) <= 1:
                raise PrunebenchError(
                    f"visipruner: expected {name} as a cosine in [-1, 1], found {getattr(self, name)}"
                )
        code = self.variant == "code"
        sink = self.sink
        # the code asks whether the folder's name says 13b; of LLaVA-1.5 that is the model of 40 layers
        layer0 = self.layer0 or ("half" if shape.depth >= LAYERS_OF_13B else "merge")
        if layer0 == "half":
            if sink is not None:
                raise PrunebenchError(f"visipruner: layer0=half takes no sink; found sink={sink}: leave it out")
        elif sink is None:
            sink = "first" if code else "random"
        filled = replace(
            self,
            shallow_mid_layer=s,
            last_fusion_layer=last,
            layer0=layer0,
            sink=sink,
            shallow_self_attention=code if self.shallow_self_attention is None else self.shallow_self_attention,
            consecutive_votes=not code if self.consecutive_votes is None else self.consecutive_votes,
            decode_shallow_visual=code if self.decode_shallow_visual is None else self.decode_shallow_visual,
        )
        if self.force_fusion_layer is not None:
            filled._check_choice(shape.depth, self.force_fusion_layer, filled._forced_exit)
        elif self.force_exit_layer is not None:
            raise PrunebenchError(
                f"visipruner: force_exit_layer={self.force_exit_layer} needs force_fusion_layer: which layers can be"
                " left at depends on it"
            )
        return filled

    @property
    def uses_seed(self) -> bool:
        return self.shallow and self.sink == "random"

    def prefix_key(self) -> str:
        if not self.shallow:
            return ""
        return f"visipruner {self.shallow_mid_layer} {'' if self.shallow_self_attention else 'silent'}".strip()

    @property
    def _forced_exit(self) -> int | None:
        """The first layer without visual tokens; None for never."""
        return None if self.force_exit_layer == NEVER else self.force_exit_layer

    def choices(self, shape: ModelShape) -> Mapping[str, Any]:
        # of 32 layers: the paper reports a mean exit layer of 23.9 on LLaVA-1.5-7B
        fusion, exit_layer = shape.scaled_layer(14), shape.scaled_layer(24)
        if not self.deep or not fusion + 1 + max(self.exit_votes, 1) <= exit_layer < shape.depth:
            exit_layer = NEVER  # too few layers are left for the votes
        return {"force_fusion_layer": fusion, "force_exit_layer": exit_layer}

    def plan(self, prompt: PromptShape) -> list[int] | None:
        n, depth = prompt.n_visual, prompt.depth
        if not self.middle:
            return [n] * depth
        exit_known = self.force_exit_layer is not None or not self.deep
        if self.keep is None or self.force_fusion_layer is None or not exit_known:
            return None
        fusion, kept = self.force_fusion_layer, prompt.quota(self.keep)
        if self._forced_exit is not None and kept == n:
            raise PrunebenchError(
                f"visipruner: force_exit_layer={self._forced_exit}: expected fewer than {n} kept, for with all of them"
                f" it never exits; found {kept}: use force_exit_layer={NEVER} or a smaller budget"
            )
        exit_layer = depth if self._forced_exit is None else self._forced_exit
        return [n] * (fusion + 1) + [kept] * (exit_layer - fusion - 1) + [0] * (depth - exit_layer)

    def _check_choice(self, depth: int, fusion_layer: int, exit_layer: int | None) -> None:
        """Raise PrunebenchError for layers that no prompt can lead to, and for the last one, where nothing is left to
        prune."""
        first, last = self._fusion_range(depth)
        last = min(last, depth - 2)
        if not self.middle or not first <= fusion_layer <= last:
            raise PrunebenchError(
                f"visipruner: force_fusion_layer={fusion_layer}: expected {first} to {last} and middle=true"
            )
        if exit_layer is None:
            return
        least = fusion_layer + 1 + max(self.exit_votes, 1)
        if not self.deep or not least <= exit_layer < depth:
            raise PrunebenchError(
                f"visipruner: force_exit_layer={exit_layer}: expected {least} to {depth - 1} "
                f"after force_fusion_layer={fusion_layer} and {self.exit_votes} votes, and deep=true"
            )

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int | None:
        if not self.middle:
            return 0
        if not self.deep and visual[-1] == prompt.n_visual:
            return None  # without votes the search ends where a layer fires, which this plan does not tell
        looking = [
            v for v in visual[self._fusion_range(prompt.depth)[0] :] if v and (self.deep or v == prompt.n_visual)
        ]
        row = 2 * prompt.decoder.heads * prompt.decoder.head_dim  # of QK^T, per key
        return sum(row * (v + prompt.n_text) for v in looking)

    def _fusion_range(self, depth: int) -> tuple[int, int]:
        """First and last layer that can fire."""
        assert self.shallow_mid_layer is not None
        assert self.last_fusion_layer is not None
        return self.shallow_mid_layer + 1, depth - 1 if self.keep is None else self.last_fusion_layer

    def edit_attention(self, run: Run, layer: int) -> Sequence[AttentionEdit]:
        assert self.shallow_mid_layer is not None
        if not self.shallow or layer >= self.shallow_mid_layer:
            return ()
        silent = AttentionEdit("visual", None, "zero")
        if layer > 0:
            text = AttentionEdit("after", None, "zero")
            return (text,) if self.shallow_self_attention else (silent, text)
        valid = run.visual_valid
        if self.layer0 == "merge":
            return (silent, AttentionEdit("after", None, "redirect", sink=self._sink(run, valid)))
        first_half = torch.arange(valid.shape[1], device=valid.device) < (valid.sum(1, keepdim=True) // 2)
        return (silent, AttentionEdit("after", first_half, "zero"))

    def _sink(self, run: Run, valid: Tensor) -> int | Tensor:
        if self.sink != "random":
            return 0 if self.sink == "first" or self.sink is None else self.sink
        drawn = [
            int(torch.randint(prompt.n_visual, (1,), generator=run.generator(row)))
            for row, prompt in enumerate(run.prompts)
        ]
        return torch.tensor(drawn, device=valid.device)

    def hide_in_decode(self, run: Run, layer: int) -> Tensor | None:
        assert self.shallow_mid_layer is not None
        hidden = self.shallow and not self.decode_shallow_visual and layer < self.shallow_mid_layer
        return run.visual_valid if hidden else None

    def on_attention(self, run: Run, layer: int, attn: Attention) -> None:
        assert self.shallow_mid_layer is not None
        assert self.last_fusion_layer is not None
        memo, valid = run.memo, run.visual_valid
        if not self.middle or layer <= self.shallow_mid_layer or memo.get("over"):
            return
        if "fusion" not in memo:
            start = torch.full((valid.shape[0],), NEVER, device=valid.device)
            memo.update(fusion=start, exit=start.clone(), votes=start + 1, forced=start + 1, kept=valid.sum(1), log=[])
        searching, voting = memo["fusion"] < 0, (memo["fusion"] >= 0) & (memo["exit"] < 0)
        # who looks need not be said while all do: the engine would wait for the device to hear it
        norm, cosine = contributions(attn, searching | (voting & self.deep) if memo.get("some left") else None)
        lowest = (
            torch.where(valid, cosine, 1.0).amin(1)
            if valid.shape[1]
            else torch.ones(valid.shape[0], device=valid.device)
        )
        fires = searching & (lowest < self.layer_threshold)
        if self.force_fusion_layer is not None:
            fires = searching & (layer == self.force_fusion_layer)
            memo["forced"] += fires
        elif self.keep is not None and layer == self.last_fusion_layer:
            memo["forced"] += searching & ~fires
            fires = searching
        memo["fusion"] = torch.where(fires, layer, memo["fusion"])
        vote = voting & (lowest >= self.exit_threshold)
        memo["votes"] += vote
        if self.consecutive_votes:
            memo["votes"] = torch.where(voting & ~vote, 0, memo["votes"])
        memo["log"].append((layer, voting, vote, lowest))
        done = torch.zeros_like(fires)
        if self.deep and layer < run.shape.depth - 1:
            # the official code cannot tell "all kept" from "not pruned yet", so it never exits then
            ready = (
                layer + 1 == self.force_exit_layer
                if self.force_exit_layer is not None
                else (memo["votes"] >= self.exit_votes)
            )
            done = voting & ready & (memo["kept"] > 0) & (memo["kept"] < run.n_prompt_visual)
            memo["exit"] = torch.where(done, layer + 1, memo["exit"])
        looking = (memo["fusion"] < 0) | ((memo["exit"] < 0) & self.deep)
        # the one wait for the device in a layer
        fired, left, some, all_look = torch.stack([fires.any(), done.any(), looking.any(), looking.all()]).tolist()
        memo["over"], memo["some left"] = not some, not all_look
        if fired:
            chosen = norm > self.tokens_threshold if self.keep is None else keep_top(norm, run.quota(self.keep), valid)
            keep = torch.where(fires[:, None], chosen & valid, valid)
            memo["kept"] = torch.where(fires, keep.sum(1), memo["kept"])
        if fired or left:
            memo["keep"] = (keep if fired else valid) & ~done[:, None]

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer == run.shape.depth - 1 and "fusion" in run.memo:
            # a layer that fires in the very last layer has nothing left to prune
            of = {"fusion_layer": "fusion", "exit_layer": "exit", "forced": "forced", "kept": "kept"}
            for name, key in of.items():
                run.note(name, run.memo[key])
        keep = run.memo.pop("keep", None)
        return None if keep is None else Reduction(keep)


def contributions(attn: Attention, of: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Per visual token (b, v), float32: |C_i| and cos(O - C_i, O) for the last prompt token; 0 and 1 for prompts not in
    `of (b,)`, None for all.

    C_i = attention to i times its value vector, heads concatenated; O = the attention output before o_proj. Both follow
    from |C_i|^2 and C_i.O, which are summed over `HEADS_AT_ONCE` heads at a time: C itself is never held.
    """
    probs = attn.visual_probs("last", of).values[:, :, 0]  # (b, heads, v)
    output = attn.last_output().float()  # (b, heads, d)
    squares, products = torch.zeros_like(probs[:, 0]), torch.zeros_like(probs[:, 0])
    for start in range(0, probs.shape[1], HEADS_AT_ONCE):
        heads = slice(start, start + HEADS_AT_ONCE)
        values, share = attn.visual_values(heads).float(), probs[:, heads]
        squares += (share.square() * values.square().sum(-1)).sum(1)
        products += (share * (values * output[:, heads, None]).sum(-1)).sum(1)
    whole = output.square().sum((1, 2))[:, None]
    without = (whole - 2 * products + squares).clamp(min=0)
    # as torch's cosine_similarity, no length counts as less than this
    lengths = without.sqrt().clamp(min=SHORTEST) * whole.sqrt().clamp(min=SHORTEST)
    return squares.sqrt(), (whole - products) / lengths
