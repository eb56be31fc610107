"""FitPrune's schedule for a model: the statistics of its unpruned attention, and the bisection of one share of them.

Source: llava/eval/statistical_analysis.py of ywh187/FitPrune @ d28e418. In each layer a visual token is given two
means of attention at its maximum over heads: over the text rows behind the image, and over the visual rows. Under a
share alpha, every layer drops the tokens that are among the least by both means. What stays holds 1 - alpha of the
unpruned layer's mass, by either mean. Where the forecast of the FLOPs meets the budget, later layers drop nothing. The
schedule is the mean over samples, rounded down. The interval of alpha is halved until it is small.
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

Say = Callable[[str], None]
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


class Step(NamedTuple):
    """One alpha of the bisection; `reached`: the forecast met the budget."""

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
    """Prunes every layer by one `alpha` of the `masses`, and records how many tokens of each sample leave in each
    layer. Not registered."""

    name = "fitting"
    budget_knobs = ()

    alpha: float = 0.0
    masses: Mapping[str, Masses] = field(default_factory=dict)
    into: dict[str, list[int]] = field(default_factory=dict)

    def on_attention(self, run: Run, layer: int, attn: Attention) -> None:
        assert isinstance(run, EngineRun)
        layout = run.layout
        if not any(layout.after_counts):
            return
        cross, own = (part.cpu() for part in sums(attn))
        gone = torch.zeros(cross.shape, dtype=torch.bool)
        for row, (now, n_text) in enumerate(zip(layout.visual_counts, layout.after_counts, strict=True)):
            key = _of_row(run, row)
            known = self.masses[key]
            if now:
                text = least(cross[row, :now] / n_text, (1 - self.alpha) * known.cross[layer])
                image = least(own[row, :now] / now, (1 - self.alpha) * known.own[layer])
                gone[row, :now] = text & image
            if layer == 0:
                self.into[key] = []
            self.into[key].append(int(gone[row].sum()))
        if bool(gone.any()):
            run.memo["gone"] = gone.to(layout.valid.device)

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        gone = run.memo.pop("gone", None)
        return None if gone is None else Reduction(run.visual_valid & ~gone)


def cost(sizes: Sizes, tokens: float, behind: float | None = None) -> float:
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


def schedule(
    deleted: Sequence[Sequence[int]], ratio: float, sizes: Sizes, n_visual: int
) -> tuple[bool, tuple[int, ...]]:
    """Whether a forecast saves `ratio` of the FLOPs, and the mean of what samples lost in each layer, rounded down.

    The forecast stands before each layer: what the layers before cost, and the others at the tokens that are left, both
    by means that are not rounded. Where it meets the budget, that layer and later ones delete nothing.
    """
    means = [sum(of_layer) / len(deleted) for of_layer in zip(*deleted, strict=True)]
    depth, spent, now = len(means), 0.0, float(n_visual)
    budget = (1 - ratio) * depth * cost(sizes, n_visual)
    for layer, leaving in enumerate(means):
        if spent + (depth - layer) * cost(sizes, now) <= budget:
            return True, (*map(int, means[:layer]), *[0] * (depth - layer))
        spent += cost(sizes, now, now - leaving)
        now -= leaving
    return False, tuple(map(int, means))


def bisect(
    at: Callable[[float], Sequence[Sequence[int]]], ratio: float, sizes: Sizes, n_visual: int, say: Say = lambda _: None
) -> Fit:
    """The official search for alpha in [0, 1]; `at(alpha)` says what each sample lost in each layer."""
    low, high, steps = 0.0, 1.0, list[Step]()
    while high - low > INTERVAL:
        alpha = (low + high) / 2
        reached, scheme = schedule(at(alpha), ratio, sizes, n_visual)
        steps.append(Step(alpha, reached, scheme))
        say(f"alpha {alpha:g}: {sum(scheme)} tokens leave, the budget is {'met' if reached else 'missed'}")
        low, high = (low, alpha) if reached else (alpha, high)
    return Fit(steps)
