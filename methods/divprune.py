"""DivPrune: keep the visual tokens that lie furthest from each other, whatever is asked.

Paper: https://arxiv.org/abs/2503.02175 (CVPR 2025). Official code: vbdi/divprune @ 799e2d95 (CC BY-NC 4.0, nothing of
it is copied), LLaVA/llava/model/language_model/llava_llama.py at layer 0. Distance is one less cosine, between tokens
as they enter the language model. The first pick is the token with the furthest nearest neighbour; each further pick is
the token furthest from its nearest pick. Kept tokens stand in the order of the image, positions are renumbered.
Differs: picks are distinct where tokens are equal, while the official code may pick one twice. Distances are float32 at
least, the official ones of the model's precision. Each image of a prompt is pruned on its own; the official code prunes
576 tokens from position 35 of the first prompt of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

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
    Share,
    Stream,
    Traits,
    check_keep,
    register,
)
from methods._select import ByImage, exact, first_of, furthest, image_quotas, marked

#: SUBSET_RATIO of the official scripts: 56 of 576 tokens
NATIVE = 0.098


@register
@dataclass(frozen=True)
class DivPrune(Method):
    """Keeps `keep` visual tokens of a prompt, or of each image the share `ratio`, halves rounded to even.

    `BUDGET=native` is the ratio 0.098 of the official scripts.
    """

    name = "divprune"
    paper = "https://arxiv.org/abs/2503.02175"
    published = Published("CVPR 2025", "vbdi/divprune", "799e2d95", "CC BY-NC 4.0")
    traits = Traits(query_aware=False, image_only=True, per_image=True)
    budget_knobs = ("keep", "ratio")

    keep: int | Share | None = None
    ratio: float | None = None

    @classmethod
    def at_budget(cls, budget: Budget, knobs: Mapping[str, Any], prompt: PromptShape) -> Self:
        if budget.unit == "native":
            return cls(**{"ratio": NATIVE, **knobs})
        return super().at_budget(budget, knobs, prompt)

    def for_model(self, shape: ModelShape) -> DivPrune:
        if (self.keep is None) == (self.ratio is None):
            raise PrunebenchError(
                "divprune: give exactly one of keep (a number of tokens) and ratio (a share of each image, as 0.098)"
            )
        if self.ratio is None:
            check_keep("divprune", self.keep)
        elif not 0 < self.ratio <= 1:
            raise PrunebenchError(
                f"divprune: ratio={self.ratio:g}: expected a share of each image's tokens, more than 0 and at most 1"
            )
        return self

    def plan(self, prompt: PromptShape) -> list[int]:
        return [sum(self._quotas(prompt))] * prompt.depth

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int:
        return sum(2 * image.tokens**2 * prompt.decoder.hidden for image in prompt.images)

    def _quotas(self, prompt: PromptShape) -> list[int]:
        """Of each image of a prompt."""
        if self.ratio is None:
            assert self.keep is not None
            return image_quotas(prompt, self.keep)
        found = [round(self.ratio * image.tokens) for image in prompt.images]
        if 0 in found:
            tokens = prompt.images[found.index(0)].tokens
            raise PrunebenchError(
                f"divprune: ratio={self.ratio:g} of an image of {tokens} tokens is none: expected {1 / tokens:.2g} or"
                " more"
            )
        return found

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer:
            return None
        images = ByImage(run)
        quotas = [n for prompt in run.prompts for n in self._quotas(prompt)]
        units = normalize(exact(images.split(stream.visual)), dim=-1)
        pairs = [n * n for n in images.counts]
        distance = 1 - run.matmul(units, units.transpose(1, 2), row=images.row, entries=pairs)
        picks = furthest(distance, images.valid, max(quotas))
        kept = marked(picks, first_of(quotas, images.valid), images.valid)
        return Reduction(images.join(kept), positions="compact", decode_positions="compact")
