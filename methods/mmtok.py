"""MMTok: the visual tokens that together cover the question's tokens and all visual tokens best.

Paper: https://arxiv.org/abs/2508.18264 (ICLR 2026). Official code: Ironieser/MMTok @ d1522cda, mmtok/qwen. Before the
language model, greedily: the next token is the one that adds most to the coverage, and a row's coverage is the largest
of its values among the picked tokens. Rows are of two kinds, a softmax over all visual tokens each:

* every token of the question: its cosines to visual tokens by `text_temperature`, divided by the number of rows. The
  tokens are those of "Question:" and the question, cut word by word, as input embeddings; visual tokens are as they
  enter the language model.
* every visual token: its cosines to visual tokens by `vision_temperature`, divided by the number of rows and weighted
  with `alpha`. Here visual tokens are the mean of their patches in the stream that leaves the tower.

Kept tokens stand in the order of the image at their positions. `ratio` is the official share of a prompt's tokens,
rounded down. The official code compares the number of tokens with a constant of its constructor and never prunes 64
tokens or fewer, whatever the ratio: `spared` is that number, and holds with `ratio` alone. `keep` is ours and exact.
`select` "tower-distance" is what the repository calls DivPrune: picks that lie furthest from each other, by the cosines
of the tower's stream, where DivPrune compares tokens in the language model's space. Nothing is spared there, and the
question is not read.
Differs: a ratio that rounds to no token is refused, where the official code removes the image and says nothing. Several
images are covered together, as one set of visual tokens, where it stops. Cosines are float32 at least. Equal gains go
to the lower index. On LLaVA-1.5, whose code there leaves out words of a list and was not run, it is what Qwen2.5-VL
gets: the question's words are all read, and the tower's stream is that of its second-last layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from harness.core.budget import Budget
from harness.core.errors import PrunebenchError
from harness.core.shape import ModelShape
from harness.method import (
    Method,
    PromptShape,
    Published,
    Reduction,
    Run,
    ScoresError,
    Share,
    Stream,
    TowerLook,
    Traits,
    check_keep,
    register,
)
from methods._select import exact, first_of, furthest, least_ratio, marked

#: what the official code puts in front of the question
BEFORE = "Question:"


@register
@dataclass(frozen=True)
class MMTok(Method):
    """Keeps `keep` visual tokens of a prompt, or the share `ratio`.

    `tower_layer`: the layer whose stream is compared, counted from 0; None: the one that the model projects.
    """

    name = "mmtok"
    paper = "https://arxiv.org/abs/2508.18264"
    published = Published("ICLR 2026", "Ironieser/MMTok", "d1522cda", "Apache-2.0")
    traits = Traits(query_aware=True)
    budget_knobs = ("keep", "ratio")
    variant_knobs = ("select",)
    needs_grid: ClassVar[bool] = True

    keep: int | Share | None = None
    ratio: float | None = None
    alpha: float = 0.5
    text_temperature: float = 0.01
    vision_temperature: float = 0.2
    spared: int = 64
    select: Literal["coverage", "tower-distance"] = "coverage"
    tower_layer: int | None = None

    @classmethod
    def at_budget(cls, budget: Budget, knobs: Mapping[str, Any], prompt: PromptShape) -> Self:
        built, vision = super().at_budget(budget, knobs, prompt), prompt.images[0].vision
        # LLaVA projects the stream that enters the last layer; a tower without [CLS] projects what leaves it
        own = max(0, vision.layers_used - (2 if vision.prefix else 1))
        layer = own if built.tower_layer is None else built.tower_layer
        if not 0 <= layer < vision.layers_used:
            raise PrunebenchError(
                f"mmtok: tower_layer={layer} does not fit this model: expected 0 to {vision.layers_used - 1}, a layer"
                " of the vision tower"
            )
        return replace(built, tower_layer=layer)

    def for_model(self, shape: ModelShape) -> MMTok:
        if (self.keep is None) == (self.ratio is None):
            raise PrunebenchError(
                "mmtok: give exactly one of keep (a number of tokens) and ratio (a share of a prompt's own, as 0.2)"
            )
        if self.ratio is None:
            check_keep(self.name, self.keep)
        elif not 0 < self.ratio <= 1:
            raise PrunebenchError(
                f"mmtok: ratio={self.ratio:g}: expected a share of a prompt's tokens, more than 0 and at most 1"
            )
        for knob, value in (
            ("text_temperature", self.text_temperature),
            ("vision_temperature", self.vision_temperature),
        ):
            if not value > 0:
                raise PrunebenchError(f"mmtok: expected {knob} above 0, found {value:g}: cosines are divided by it")
        for knob, least in (("alpha", self.alpha), ("spared", self.spared)):
            if not least >= 0:
                raise PrunebenchError(f"mmtok: expected {knob} of 0 or more, found {least:g}")
        return self

    def n_kept(self, prompt: PromptShape) -> int:
        """Visual tokens of the prompt that stay. Raises PrunebenchError where the ratio of them is none."""
        n = prompt.n_visual
        if self.ratio is None:
            assert self.keep is not None
            return prompt.quota(self.keep)
        if self.select == "coverage" and n <= self.spared:
            return n
        found = int(self.ratio * n)
        if not found:
            raise PrunebenchError(
                f"mmtok: ratio={self.ratio:g} of a prompt of {n} tokens is none: expected {least_ratio(n):g} or more"
            )
        return found

    def plan(self, prompt: PromptShape) -> list[int]:
        return [self.n_kept(prompt)] * prompt.depth

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int | None:
        # how many tokens the question has decides what its rows cost
        whole = self.n_kept(prompt) == prompt.n_visual
        return self.known_scoring(prompt, visual) if whole or self.select == "tower-distance" else None

    def known_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int:
        if self.n_kept(prompt) == prompt.n_visual:
            return 0
        return 2 * prompt.n_visual**2 * prompt.images[0].vision.hidden

    def looks(self, shape: ModelShape) -> Sequence[TowerLook]:
        if self.tower_layer is None:
            raise PrunebenchError(
                "mmtok: tower_layer=None is the layer that a model projects, which is known where a budget is set: use"
                " build(), or give the layer (22 of LLaVA-1.5, 31 of Qwen2.5-VL)"
            )
        return (TowerLook("mean_hidden", self.tower_layer),)

    def on_image(self, run: Run, tower: Mapping[TowerLook, Tensor]) -> None:
        (run.memo["features"],) = tower.values()

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer:
            return None
        valid, quotas = run.visual_valid, [self.n_kept(prompt) for prompt in run.prompts]
        counts = [prompt.n_visual for prompt in run.prompts]
        if quotas == counts:
            return None
        # a prompt that keeps all of its tokens asks for no product
        asks = [k < n for k, n in zip(quotas, counts, strict=True)]
        alike = self._alike(run, asks)
        if self.select == "tower-distance":
            picks = furthest(1 - alike, valid, max(quotas))
        else:
            rows = torch.cat([self._of_question(run, stream, asks), self._of_image(alike, valid)], 1)
            picks = covering(rows, valid, max(quotas))
        run.memo["picks"] = picks
        kept = marked(picks, first_of(quotas, valid), valid)
        return Reduction(kept, positions="compact", decode_positions="compact")

    def _alike(self, run: Run, asks: Sequence[bool]) -> Tensor:
        """(b, v, v): cosines of the tower's stream."""
        units = normalize(exact(run.memo["features"]), dim=-1)
        pairs = [prompt.n_visual**2 * asked for prompt, asked in zip(run.prompts, asks, strict=True)]
        return checked(run.matmul(units, units.transpose(1, 2), entries=pairs), run.visual_valid)

    def _of_image(self, alike: Tensor, valid: Tensor) -> Tensor:
        """(b, v, v): what each visual token is covered by."""
        rows = (alike / self.vision_temperature).masked_fill(~valid[:, None], float("-inf")).softmax(2)
        return rows * (self.alpha * valid[:, :, None] / valid.sum(1)[:, None, None])

    def _of_question(self, run: Run, stream: Stream, asks: Sequence[bool]) -> Tensor:
        """(b, t, v): what each of the question's tokens is covered by."""
        valid, question = run.visual_valid, run.question_tokens(BEFORE)
        text, visual = (normalize(exact(x), dim=-1) for x in (question.embeddings, stream.visual))
        n_tokens = question.valid.sum(1)
        counts = torch.tensor(
            [prompt.n_visual * asked for prompt, asked in zip(run.prompts, asks, strict=True)], device=n_tokens.device
        )
        cosines = run.matmul(text, visual.transpose(1, 2), entries=n_tokens * counts)
        rows = (checked(cosines, valid) / self.text_temperature).masked_fill(~valid[:, None], float("-inf")).softmax(2)
        return rows * (question.valid[:, :, None] / n_tokens[:, None, None])


def covering(rows: Tensor, valid: Tensor, n: int) -> Tensor:
    """(b, n) long: the first `n` picks of each prompt by `rows (b, r, v)`, in order: each adds most to the sum over
    rows of the largest value among the picks.

    All picks of a prompt are distinct as long as it has tokens; the lowest index wins a tie.
    """
    covered = torch.zeros_like(rows[:, :, :1])
    free = torch.where(valid, 0.0, float("-inf")).to(rows.dtype)
    picks = torch.empty(len(rows), n, dtype=torch.long, device=rows.device)
    for i in range(n):
        # argmax is the first of equal ones
        pick = ((rows - covered).clamp(min=0).sum(1) + free).argmax(1, keepdim=True)
        picks[:, i : i + 1] = pick
        free.scatter_(1, pick, float("-inf"))
        covered = torch.maximum(covered, rows.gather(2, pick[:, :, None].expand(-1, rows.shape[1], -1)))
    return picks


def checked(cosines: Tensor, valid: Tensor) -> Tensor:
    """The `cosines (b, r, v)`. Raises ScoresError where a visual token has none: nan would be picked first."""
    bad = cosines.isnan().any(1) & valid
    if bool(bad.any()):
        row = int(bad.any(1).nonzero()[0])
        raise ScoresError(row, f"expected a cosine of every visual token, found nan for {int(bad[row].sum())}")
    return cosines
