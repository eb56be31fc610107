"""`Ranking`: the narrow base of methods that keep the visual tokens of the highest score at one layer. The author
writes `score`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from harness.core.shape import ModelShape, PromptShape, Share
from harness.method.checks import check_keep, check_layer
from harness.method.failures import ScoresError
from harness.method.interface import Method, Reduction, Run, Stream


def keep_top(scores: Tensor, k: int | Tensor, valid: Tensor) -> Tensor:
    """(b, v) bool: the `k` (int or (b,) long) highest-scored valid tokens of each row; the lowest index wins a tie.

    Invalid slots are excluded from the candidates rather than given a low score, which a real score could tie with.
    Raises ScoresError where a valid token's score is nan, which would sort before everything, ValueError for scores of
    another shape or kind.
    """
    if (
        not isinstance(scores, Tensor)
        or scores.shape != valid.shape
        or scores.is_complex()
        or scores.device != valid.device
    ):
        found = (
            f"{scores.dtype} {tuple(scores.shape)} on {scores.device}"
            if isinstance(scores, Tensor)
            else type(scores).__name__
        )
        raise ValueError(
            f"expected scores as real numbers {tuple(valid.shape)} on {valid.device}, one a visual token; found {found}"
        )
    bad = scores.isnan() & valid
    if bool(bad.any()):
        row = int(bad.any(1).nonzero()[0])
        where = bad[row].nonzero().flatten().tolist()
        found = f"found nan for {len(where)} of {int(valid[row].sum())}, first at {where[:5]}"
        raise ScoresError(row, f"expected a number as score of every visual token; {found}")
    ranked = torch.where(valid, scores, float("-inf")).argsort(dim=1, descending=True, stable=True)
    # valid slots first whatever their score, then by score
    ranked = ranked.gather(1, (~valid.gather(1, ranked)).to(torch.uint8).argsort(dim=1, stable=True))
    rank = torch.empty_like(ranked).scatter_(
        1, ranked, torch.arange(scores.shape[1], device=scores.device).expand_as(ranked)
    )
    limit = torch.as_tensor(k, device=scores.device).reshape(-1, 1)
    return (rank < limit) & valid


@dataclass(frozen=True)
class Ranking(Method):
    """Keeps the `keep` visual tokens of the highest `score` from decoder layer `boundary` on.

    Before the language model (boundary 0) positions are renumbered, as LLaVA numbers a shorter sequence; at a later
    boundary tokens keep theirs. Subclasses write `score`, and `plan_scoring` so that its cost is known before a run.
    `official`: the published boundary of a 32-layer model, which `boundary=None` moves to the same relative depth;
    `least`: the first boundary at which there is a score. A method that exists before the language model only has no
    such knob: `boundary: ClassVar[int] = 0`.
    """

    official: ClassVar[int] = 0
    least: ClassVar[int] = 0

    keep: int | Share
    boundary: int | None = None

    def score(self, run: Run, stream: Stream) -> Tensor:
        """(b, v): a number for each visual token at the boundary; the highest are kept, the lowest index wins a tie."""
        raise NotImplementedError(
            f"{self.name or type(self).__name__} is a Ranking: it needs a method score(self, run, stream) -> (b, v)"
        )

    def for_model(self, shape: ModelShape) -> Self:
        check_keep(self.name, self.keep)
        boundary = self.boundary
        if boundary is None:
            boundary = shape.scaled_layer(self.official) if self.official else 0
        check_layer(self.name, "boundary", boundary, self.least, shape.depth)
        return self if boundary == self.boundary else replace(self, boundary=boundary)

    def plan(self, prompt: PromptShape) -> list[int]:
        boundary = self.boundary or 0
        return [prompt.n_visual] * boundary + [prompt.quota(self.keep)] * (prompt.depth - boundary)

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int | None:
        """Not known: what a `score` asks for, and so what it costs, only its author can say. 0 where it makes no matrix
        product."""
        return None

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer != self.boundary:
            return None
        keep = keep_top(self.score(run, stream), run.quota(self.keep), run.visual_valid)
        return Reduction(keep) if layer else Reduction(keep, positions="compact", decode_positions="compact")
