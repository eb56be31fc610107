"""SparseVLM: question words ("raters") score visual tokens at three stages; a part of what is pruned is clustered and
recycled.

Paper: https://arxiv.org/abs/2410.04417 (ICML 2025). Official code: Gumpest/SparseVLMs @ 26a5f48 (v1.5, USE_VERSION=1_0)
and its SparseVLM+ (USE_VERSION=2_0): no recycling, original positions, scores divided by RoPE's own bias, the heads
with most mass. Differs: the noise that breaks ties between cluster densities is seeded per (seed, sample). `plus` uses
min(14, heads) heads, the official 14 being written for 28-head models. Budgets outside the official table are ours, see
`stage_counts`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from harness.core.budget import Budget
from harness.core.errors import PrunebenchError
from harness.core.shape import ModelShape
from harness.method import (
    Attention,
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

#: official top-k per stage, by RETAIN_TOKN; recycled tokens come on top
OFFICIAL = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}
OFFICIAL_PLUS = {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)}
STAGES = (2, 6, 15)
#: share of the pruned tokens, best first, that are recycled, and tokens per cluster
RECYCLED_RATIO, TOKENS_PER_CLUSTER = 0.3, 10


def n_recycled(pruned: int) -> int:
    """How many pruned tokens are clustered."""
    return min(int(RECYCLED_RATIO * pruned) + 1, pruned)


def n_clusters(pruned: int) -> int:
    return int(n_recycled(pruned) / TOKENS_PER_CLUSTER) + 1 if pruned else 0


@register
@dataclass(frozen=True)
class SparseVLM(Method):
    """`retain` = 192, 128, 96 or 64 is the official stage table (`BUDGET=native` is retain=64); `keep` is any other
    budget.

    `stages` are the decoder layers whose output is pruned: None moves the official ones to the same relative depth of
    this model, layers given by hand are literal, and those beyond the last layer but one do not happen, as in the
    official code. `scale_stages` reads layers given by hand as layers of a 32-layer model. `plus` is SparseVLM+.
    """

    name = "sparsevlm"
    paper = "https://arxiv.org/abs/2410.04417"
    published = Published("ICML 2025", "Gumpest/SparseVLMs", "26a5f488", "Apache-2.0")
    traits = Traits(query_aware=True, merges=True, keeps_most_attended=True)
    budget_knobs = ("keep", "retain")

    keep: int | Share | None = None
    retain: int | None = None
    stages: tuple[int, ...] | None = None
    scale_stages: bool = False
    plus: bool = False
    max_heads: int = 14
    tie_noise: float = 1e-6

    @classmethod
    def at_budget(cls, budget: Budget, knobs: Mapping[str, Any], prompt: PromptShape) -> Self:
        if budget.unit == "native":
            return cls(**{"retain": 64, **knobs})
        return super().at_budget(budget, knobs, prompt)

    def for_model(self, shape: ModelShape) -> SparseVLM:
        if (self.keep is None) == (self.retain is None):
            raise PrunebenchError(
                "sparsevlm: give exactly one of keep (any number of tokens) and retain (192, 128, 96 or 64)"
            )
        if self.retain is not None and self.retain not in OFFICIAL:
            raise PrunebenchError(
                f"sparsevlm: retain={self.retain} has no official stage table: expected one of"
                f" {', '.join(map(str, OFFICIAL))}, or keep={self.retain} for our schedule"
            )
        if self.keep is not None:
            check_keep("sparsevlm", self.keep)
        stages = STAGES if self.stages is None else self.stages
        if list(stages) != sorted(set(stages)) or not 1 <= len(stages) <= 3 or min(stages) < 0:
            raise PrunebenchError(f"sparsevlm: expected one to three ascending layers in stages, found {stages}")
        if self.scale_stages or self.stages is None:
            # on few layers stages can fall together; one layer is one stage
            stages = tuple(dict.fromkeys(shape.scaled_layer(s) for s in stages))
        if not [s for s in stages if s < shape.depth - 1]:
            raise PrunebenchError(
                f"sparsevlm: stages={stages} do not fit this model: expected layers 0 to {shape.depth - 2} "
                f"(it has {shape.depth} decoder layers); leave stages out, which scales the official ones"
            )
        return replace(self, stages=stages, scale_stages=False)

    @property
    def uses_seed(self) -> bool:
        return not self.plus  # the noise that breaks ties between densities

    def stage_counts(self, prompt: PromptShape) -> list[int]:
        """Visual tokens after each stage that happens, recycled ones included where `keep` is set, top-k only for
        `retain`.

        For `keep` the last stage keeps exactly that many, earlier ones the proportions of the official 192 schedule
        with its recycled tokens (309 : 204 : 113); a stage that would not shrink is skipped.
        """
        assert self.stages is not None
        happening = [i for i, s in enumerate(self.stages) if s < prompt.depth - 1]
        if self.retain is not None:
            return [(OFFICIAL_PLUS if self.plus else OFFICIAL)[self.retain][i] for i in happening]
        assert self.keep is not None
        proportions = ((300, 200, 118) if self.plus else (309, 204, 113))[-len(happening) :]
        return [round(prompt.quota(self.keep) * p / proportions[-1]) for p in proportions]

    def plan(self, prompt: PromptShape) -> list[int]:
        assert self.stages is not None
        counts, targets = [prompt.n_visual], self.stage_counts(prompt)
        for layer in range(prompt.depth - 1):
            present = counts[-1]
            counts.append(
                self._after_stage(present, targets[self.stages.index(layer)]) if layer in self.stages else present
            )
        return counts

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer == 0:
            run.memo["raters"] = self._raters(run, stream)
        scores = run.memo.pop("scores", None)
        if scores is None:
            return None
        assert self.stages is not None
        stage = self.stages.index(layer - 1)
        valid = run.visual_valid
        # kept on the host, which a count of `valid` would make wait for the device
        present: list[int] = run.memo.setdefault("present", [prompt.n_visual for prompt in run.prompts])
        targets = [self.stage_counts(prompt)[stage] for prompt in run.prompts]
        shrinks = [v > self._shrinks_above(target) for v, target in zip(present, targets, strict=True)]
        if not any(shrinks):
            return None
        top = [self._top_k(v, target) if less else v for v, target, less in zip(present, targets, shrinks, strict=True)]
        run.memo["present"] = [self._after_stage(v, target) for v, target in zip(present, targets, strict=True)]
        keep = keep_top(scores, on_device(top, valid.device), valid)
        if self.plus:
            return Reduction(keep)
        pruned = [v - k for v, k in zip(present, top, strict=True)]
        added, added_valid = self._recycle(
            run, stage, stream.visual, scores.masked_fill(~valid | keep, -math.inf), pruned
        )
        return Reduction(keep, added, added_valid, positions="compact", decode_positions="per_layer")

    def on_attention(self, run: Run, layer: int, attn: Attention) -> None:
        if layer not in (self.stages or ()) or layer >= run.shape.depth - 1:
            return
        raters: Tensor = run.memo["raters"]
        probs, rows = attn.visual_probs(raters)
        if self.plus:
            bias = self._rope_bias(run, attn, raters, rows)[:, None]
            probs = torch.where(rows[:, None, :, None] & run.visual_valid[:, None, None, :], probs / bias, 0)
            mass = probs.sum((2, 3))
            best = mass.topk(min(self.max_heads, mass.shape[1]), dim=1).indices
            probs = probs.gather(1, best[:, :, None, None].expand(-1, -1, *probs.shape[2:]))
        run.memo["scores"] = probs.mean(1).sum(1) / rows.sum(1)[:, None]

    def _rope_bias(self, run: Run, attn: Attention, raters: Tensor, rows: Tensor) -> Tensor:
        """(b, r, v) float32: the dot product of rotated all-ones query and key over sqrt(head_dim)."""
        ones = torch.ones(run.shape.head_dim, device=raters.device)
        queries, keys = attn.rotated(ones, raters), attn.rotated(ones, "visual")
        real = rows.sum(1) * run.visual_valid.sum(1)
        bias: Tensor = run.matmul(queries, keys.transpose(-1, -2), entries=real) / run.shape.head_dim**0.5
        return bias

    def _raters(self, run: Run, stream: Stream) -> Tensor:
        """(b, t) bool: question tokens that the visual tokens match more than average, on the input embeddings."""
        text, text_valid = stream.after, stream.after_valid
        real = run.n_prompt_visual * text_valid.sum(1)
        match = run.matmul(stream.visual, text.transpose(1, 2), entries=real).float()
        probs = match.masked_fill(~text_valid[:, None, :], float("-inf")).softmax(-1)
        visual = run.visual_valid[:, :, None]
        relevance = (probs * visual).sum(1) / visual.sum(1)
        mean = relevance.sum(1, keepdim=True) / text_valid.sum(1, keepdim=True)
        return (relevance > mean) & text_valid

    def _shrinks_above(self, target: int) -> int:
        """A stage prunes where more visual tokens than this are present; the official code drops at least one of any
        two."""
        return target if self.plus or self.retain is None else 1

    def _after_stage(self, present: int, target: int) -> int:
        """Visual tokens after a stage, recycled ones included."""
        if present <= self._shrinks_above(target):
            return present
        top = self._top_k(present, target)
        return top if self.plus else top + n_clusters(present - top)

    def _top_k(self, present: int, target: int) -> int:
        """How many to keep by score so that the stage ends at `target` (recycled included for `keep`, on top for
        `retain`)."""
        if self.plus or self.retain is not None:
            return min(target, present - 1)
        for k in range(min(target, present), -1, -1):
            if k + n_clusters(present - k) <= target:
                return k
        raise PrunebenchError(
            f"sparsevlm cannot end a stage with {target} of {present} visual tokens: its recycled tokens alone are"
            f" {n_clusters(present)}; expected a budget of at least {n_clusters(present)}, or plus=true, which recycles"
            " none"
        )

    def _recycle(
        self, run: Run, stage: int, visual: Tensor, scores: Tensor, pruned: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Cluster means (b, m, d) of the best of each row's `pruned` tokens, by `scores (b, v)`, -inf for all others;
        and which are real, (b, m) bool."""
        ranked = scores.argsort(dim=1, descending=True, stable=True)
        recycled, clusters = [n_recycled(n) for n in pruned], [n_clusters(n) for n in pruned]
        # one upload for all rows
        noise = pad_sequence([self.density_noise(run, row, stage, n) for row, n in enumerate(recycled)], True)
        noise = noise.to(visual.device)
        added = visual.new_zeros(visual.shape[0], max(clusters), visual.shape[2])
        for row, (n, of) in enumerate(zip(clusters, recycled, strict=True)):
            if n:
                added[row, :n] = cluster_means(run, row, visual[row, ranked[row, :of]], n, noise[row, :of])
        slots = torch.arange(max(clusters), device=visual.device)
        return added, slots[None] < on_device(clusters, visual.device)[:, None]

    def density_noise(self, run: Run, row: int, stage: int, n: int) -> Tensor:
        """(n,) tie-breaking noise for one row's densities at one stage; a stage's draw does not depend on the
        others."""
        generator = run.generator(row)
        draws = [torch.rand(n, generator=generator) for _ in range(stage + 1)]
        return draws[-1] * self.tie_noise


def cluster_means(run: Run, row: int, x: Tensor, n: int, noise: Tensor) -> Tensor:
    """Density-peak clustering of `x (m, d)` into `n` clusters, (n, d) means, by descending peak score.

    Density from the n nearest neighbours; a peak is dense and far from anything denser; every token joins its nearest
    peak.
    """
    points = x.float()
    squares = points.square().sum(1)
    squared = squares[:, None] + squares[None] - 2 * run.matmul(points, points.T, row=row)
    distance = squared.clamp(min=0).fill_diagonal_(0).sqrt() / points.shape[1] ** 0.5
    nearest = distance.topk(n, dim=1, largest=False).values
    density = (-nearest.square().mean(1)).exp() + noise
    denser = density[None, :] > density[:, None]
    to_denser = torch.where(denser, distance, distance.max()).amin(1)
    peaks = (to_denser * density).topk(n).indices
    member = distance[peaks].argmin(0)
    member[peaks] = torch.arange(n, device=x.device)
    sums = torch.zeros(n, x.shape[1], dtype=points.dtype, device=x.device).index_add_(0, member, points)
    # not bincount, which waits for the device
    sizes = torch.zeros(n, dtype=points.dtype, device=x.device).index_add_(0, member, torch.ones_like(density))
    return (sums / sizes[:, None]).to(x.dtype)


def on_device(numbers: Sequence[int], device: torch.device) -> Tensor:
    """(b,) long; equal ones are made there, for an upload waits."""
    if len(set(numbers)) == 1:
        return torch.full((len(numbers),), numbers[0], device=device)
    return torch.tensor(numbers, device=device)
