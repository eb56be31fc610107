"""DART: few pivot tokens, and for each of them the visual tokens that are least like it.

Paper: https://arxiv.org/abs/2502.11494 (EMNLP 2025). Official code: ZichenWen1/DART, read as Chenfei-Liao/VTC-Bench @
983e443 holds it, external/DART. Before layer K (2 of 32), once:

* pivots: the visual tokens with the largest L1 norm of their rotated keys in layer K-1, and so of all text behind the
  image; four of each.
* the pivots take turns. Each takes the visual tokens of the lowest cosine to it that are neither visual pivots nor
  taken. Cosines are those of the stream entering layer K, under the model's final norm.
* the turns follow the iteration order of a Python set of the pivots' positions in the prompt, visual pivots added
  first. The order decides the kept set. It is that of CPython, 3.6 to 3.13 alike.

Visual pivots and taken tokens stay, at their positions. `truncation` is the official `max_num_trunction`: each of 4 + 4
pivots takes floor(truncation / 8) tokens, so 4 + 8 * floor(truncation / 8) stay, 132 of 128. `BUDGET=native` is 128.
`reduction_ratio` is the official one: of n tokens int(n * (1 - reduction_ratio)) are the truncation.

`BUDGET=k` is ours and keeps exactly k: the visual pivots, and k - 4 tokens shared evenly among all pivots; the first
pivots in turn take one more where k - 4 is no multiple.
Differs: where fewer text tokens stand behind the image than text pivots are asked, those there take all turns, and as
many tokens stay. The official LLaVA-NeXT branch is `truncation` = min(320, n - 4). Norms and cosines are float32 at
least, the official ones of the model's precision. Equal ones go to the lower index. Images of a prompt count as one run
of visual tokens before the text behind the last image; text between them gives no pivot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

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
    ScoresError,
    Share,
    Stream,
    Traits,
    check_keep,
    check_layer,
    register,
)
from methods._select import at, exact, marked, ranks

LAYER, TRUNCATION = 2, 128


@register
@dataclass(frozen=True)
class Dart(Method):
    """One of `keep`, `truncation` and `reduction_ratio` decides how many visual tokens stay from layer `layer`."""

    name = "dart"
    paper = "https://arxiv.org/abs/2502.11494"
    published = Published("EMNLP 2025", "Chenfei-Liao/VTC-Bench", "983e443e", "Apache-2.0")
    traits = Traits(query_aware=True)
    budget_knobs = ("keep", "truncation", "reduction_ratio")

    keep: int | Share | None = None
    truncation: int | None = None
    reduction_ratio: float | None = None
    layer: int | None = None
    visual_pivots: int = 4
    text_pivots: int = 4

    @classmethod
    def at_budget(cls, budget: Budget, knobs: Mapping[str, Any], prompt: PromptShape) -> Self:
        if budget.unit == "native":
            return cls(**{"truncation": TRUNCATION, **knobs})
        return super().at_budget(budget, knobs, prompt)

    def for_model(self, shape: ModelShape) -> Dart:
        given = {name: getattr(self, name) for name in self.budget_knobs if getattr(self, name) is not None}
        if len(given) != 1:
            found = ", ".join(f"{name}={value}" for name, value in given.items()) or "none"
            raise PrunebenchError(f"dart: expected one of keep, truncation and reduction_ratio, found {found}")
        if self.keep is not None:
            check_keep(self.name, self.keep)
        if self.truncation is not None and self.truncation < 0:
            raise PrunebenchError(f"dart: expected truncation >= 0, found {self.truncation}")
        if self.reduction_ratio is not None and not 0 <= self.reduction_ratio <= 1:
            raise PrunebenchError(f"dart: expected reduction_ratio from 0 to 1, found {self.reduction_ratio}")
        for name, least in (("visual_pivots", 1), ("text_pivots", 0)):
            if getattr(self, name) < least:
                raise PrunebenchError(f"dart: expected {name} >= {least}, found {getattr(self, name)}")
        layer = shape.scaled_layer(LAYER) if self.layer is None else self.layer
        check_layer(self.name, "layer", layer, 1, shape.depth)
        return replace(self, layer=layer)

    @property
    def n_pivots(self) -> int:
        return self.visual_pivots + self.text_pivots

    def n_kept(self, prompt: PromptShape) -> int:
        n = prompt.n_visual
        if self.keep is not None:
            return prompt.quota(self.keep)
        asked = int(n * (1 - (self.reduction_ratio or 0))) if self.truncation is None else self.truncation
        return min(n, self.visual_pivots + asked // self.n_pivots * self.n_pivots)

    def plan(self, prompt: PromptShape) -> list[int]:
        layer = self.layer or 0
        return [prompt.n_visual] * layer + [self.n_kept(prompt)] * (prompt.depth - layer)

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int:
        return 2 * prompt.decoder.hidden * prompt.n_visual * self.n_pivots

    def on_attention(self, run: Run, layer: int, attn: Attention) -> None:
        if self.layer is not None and layer == self.layer - 1:
            run.memo["norms"] = [exact(keys).abs().sum((1, 3)) for keys in (attn.visual_keys(), attn.after_keys())]

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer != self.layer:
            return None
        visual, after = run.memo["norms"]
        valid, after_valid = run.visual_valid, stream.after_valid
        longest = [_first(visual, valid, self.visual_pivots), _first(after, after_valid, self.text_pivots)]
        # the one place at which the host asks: the order of turns is that of a set of positions
        found: list[list[int]] = torch.cat([*longest, after_valid.sum(1, keepdim=True)], 1).tolist()
        turns = [self._turns(prompt, row, visual.shape[1]) for prompt, row in zip(run.prompts, found, strict=True)]
        pivots, takes, own = torch.tensor(turns, device=valid.device).unbind(1)
        states = normalize(exact(torch.cat([stream.normed.visual, stream.normed.after], 1)), dim=2)
        real = [self.n_pivots * prompt.n_visual for prompt in run.prompts]
        cosines = run.matmul(at(states, pivots), states[:, : visual.shape[1]].transpose(1, 2), entries=real)
        _check(cosines, valid)
        free = valid & ~marked(own, own < visual.shape[1], valid)
        run.memo["pivots"], run.memo["picks"] = pivots, []
        for turn in range(self.n_pivots):
            unlike = torch.where(free, -cosines[:, turn], float("-inf"))
            taken = (ranks(unlike) < takes[:, turn, None]) & free
            free = free & ~taken
            run.memo["picks"].append(taken)
        return Reduction(valid & ~free)

    def _turns(self, prompt: PromptShape, found: list[int], seen: int) -> tuple[list[int], list[int], list[int]]:
        """Of one prompt, each padded to the number of pivots: pivots in turn, visual ones as 0.. and text ones as
        `seen`..; how many tokens each takes; the visual pivots that stay, `seen` for none.

        `found`: visual pivots, text pivots, and the number of text tokens behind the image.
        """
        n, n_after = prompt.n_visual, found[-1]
        visual = found[: min(self.visual_pivots, n)]
        text = found[self.visual_pivots :][: min(self.text_pivots, n_after)]
        start = prompt.n_text - n_after
        positions = list(set([start + j for j in visual] + [start + n + j for j in text]))
        turns = [p - start if p < start + n else p - start - n + seen for p in positions]
        own = visual[: self.n_kept(prompt)]
        each, more = divmod(self.n_kept(prompt) - len(own), max(len(turns), 1))
        takes = [each + (i < more) for i in range(len(turns))]
        return self._padded(turns, 0), self._padded(takes, 0), self._padded(own, seen)

    def _padded(self, values: list[int], by: int) -> list[int]:
        return values + [by] * (self.n_pivots - len(values))


def _first(norms: Tensor, valid: Tensor, n: int) -> Tensor:
    """(b, n) long: the `n` largest norms of each row, the lower index first; what is beyond a row's count is no
    token."""
    best = torch.where(valid, norms, float("-inf")).argsort(dim=1, descending=True, stable=True)[:, :n]
    return pad(best, (0, n - best.shape[1]))


def _check(cosines: Tensor, valid: Tensor) -> None:
    """Raise ScoresError where a token has no cosine to a pivot: nan would sort before everything."""
    bad = cosines.isnan().any(1) & valid
    if bool(bad.any()):
        row = int(bad.any(1).nonzero()[0])
        raise ScoresError(row, f"expected a cosine of every visual token, found nan for {int(bad[row].sum())}")
