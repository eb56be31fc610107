"""FitPrune's schedule for a model: the statistics of its unpruned attention, and the bisection of one share of them.

Source: llava/eval/statistical_analysis.py of ywh187/FitPrune @ d28e418. In each layer a visual token is given two
means of attention at its maximum over heads: over the text rows behind the image, and over the visual rows. Under a share alpha, every layer drops the tokens that are among the least by both means, where
what stays holds 1 - alpha of the unpruned layer's mass. Where the forecast of the FLOPs meets the budget, later layers
drop nothing. The schedule is the mean over samples, rounded down. Alpha is halved in until its interval is small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from harness.engine.run import EngineRun
from harness.method import Attention, Method, Reduction, Run, Stream
from methods.fitprune import sums

#: where the bisection ends
INTERVAL = 0.01


class Sizes(NamedTuple):
    """Of the decoder whose FLOPs are counted. The official script counts those of LLaVA-1.5-7B, whatever the model."""

    hidden: int
    mlp: int


class Masses(NamedTuple):
    """Attention mass of one sample's visual tokens by layer, unpruned."""

    cross: list[float]
    own: list[float]


class Deleted(NamedTuple):
    """Tokens that one sample lost in each layer, and whether the forecast met the budget."""

    by_layer: list[int]
    reached: bool


class Step(NamedTuple):
    """One alpha of the bisection; `reached`: the budget, in every sample."""

    alpha: float
    reached: bool
    scheme: tuple[int, ...]


class Fit(NamedTuple):
    """`steps` in the order tried. `last`: the official result, that of the last one. `met`: the last scheme that met
    the budget, None where none did."""

    steps: list[Step]

    @property
    def last(self) -> tuple[int, ...]:
        return self.steps[-1].scheme

    @property
    def met(self) -> Step | None:
        return next((step for step in reversed(self.steps) if step.reached), None)


def _of_row(run: EngineRun, row: int) -> str:
    return run.samples[row] if run.samples is not None else str(row)


@dataclass(frozen=True)
class Statistics(Method):
    """Records the masses of every sample, and drops nothing. Not registered."""

    name = "statistics"
    budget_knobs = ()

    into: dict[str, Masses] = field(default_factory=dict)

    def on_attention(self, run: Run, layer: int, attn: Attention) -> None:
        assert isinstance(run, EngineRun)
        after = run.layout.after_counts
        if not any(after):
            return  # the prefill of an image alone, for the cache
        cross, own = (part.sum(1).tolist() for part in sums(attn))
        found = run.memo.setdefault("masses", [Masses([], []) for _ in after])
        for row, (masses, n) in enumerate(zip(found, after, strict=True)):
            masses.cross.append(cross[row] / n)
            masses.own.append(own[row] / run.layout.visual_counts[row])
            if layer == run.shape.depth - 1:
                self.into[_of_row(run, row)] = masses


@dataclass(frozen=True)
class Fitting(Method):
    """Prunes by one `alpha` until the forecast of `sizes` meets `ratio` of the FLOPs saved. Not registered."""

    name = "fitting"
    budget_knobs = ()

    alpha: float = 0.0
    ratio: float = 0.0
    sizes: Sizes = Sizes(0, 0)
    masses: Mapping[str, Masses] = field(default_factory=dict)
    into: dict[str, Deleted] = field(default_factory=dict)

    def on_attention(self, run: Run, layer: int, attn: Attention) -> None:
        assert isinstance(run, EngineRun)
        layout = run.layout
        if not any(layout.after_counts):
            return
        memo, depth = run.memo, run.shape.depth
        if layer == 0:
            n = len(layout.after_counts)
            memo.update(deleted=[[] for _ in range(n)], spent=[0.0] * n, reached=[False] * n)
        cross, own = (part.cpu() for part in sums(attn))
        gone = torch.zeros(cross.shape, dtype=torch.bool)
        prompt_counts = run.n_prompt_visual.tolist()
        for row, now in enumerate(layout.visual_counts):
            budget = (1 - self.ratio) * depth * cost(self.sizes, prompt_counts[row])
            forecast = memo["spent"][row] + (depth - layer) * cost(self.sizes, now)
            memo["reached"][row] = memo["reached"][row] or forecast <= budget
            known = self.masses[_of_row(run, row)]
            if not memo["reached"][row]:
                text = least(cross[row, :now] / layout.after_counts[row], (1 - self.alpha) * known.cross[layer])
                image = least(own[row, :now] / now, (1 - self.alpha) * known.own[layer])
                gone[row, :now] = text & image
            left = int(gone[row].sum())
            memo["deleted"][row].append(left)
            memo["spent"][row] += cost(self.sizes, now, now - left)
            if layer == depth - 1:
                self.into[_of_row(run, row)] = Deleted(memo["deleted"][row], memo["reached"][row])
        memo["gone"] = gone.to(layout.valid.device) if bool(gone.any()) else None

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        gone = run.memo.pop("gone", None)
        return None if gone is None else Reduction(run.visual_valid & ~gone)


def cost(sizes: Sizes, tokens: int, behind: int | None = None) -> float:
    """Multiply-adds of a decoder layer over its visual tokens; `behind`: how many its output projection and
    feed-forward see."""
    later = tokens if behind is None else behind
    d = sizes.hidden
    return 3 * tokens * d * d + 2 * tokens * tokens * d + later * d * d + 3 * later * d * sizes.mlp


def least(scores: Tensor, stays: float) -> Tensor:
    """(v,) bool: as many of the lowest `scores (v,)` as leave at least `stays` of their sum."""
    ordered, order = scores.double().sort(stable=True)
    left = ordered.sum() - ordered.cumsum(0)
    chosen = torch.zeros(len(scores), dtype=torch.bool)
    chosen[order[: int((left >= stays).sum())]] = True
    return chosen


def scheme_of(samples: Sequence[Deleted]) -> tuple[int, ...]:
    """The mean over samples, rounded down."""
    return tuple(sum(of_layer) // len(samples) for of_layer in zip(*(s.by_layer for s in samples), strict=True))


def bisect(at: Callable[[float], Sequence[Deleted]]) -> Fit:
    """The official search for alpha in [0, 1]; `at(alpha)` says what each sample lost."""
    low, high, steps = 0.0, 1.0, list[Step]()
    while high - low > INTERVAL:
        alpha = (low + high) / 2
        lost = at(alpha)
        steps.append(Step(alpha, all(sample.reached for sample in lost), scheme_of(lost)))
        low, high = (low, alpha) if steps[-1].reached else (alpha, high)
    return Fit(steps)
