"""CDPruner: keep visual tokens that are unlike each other, weighted by the question: a determinantal point process.

Paper: https://arxiv.org/abs/2506.10967 (NeurIPS 2025). Official code: Theia-4869/CDPruner @ 9541616c (Apache-2.0),
llava/model/llava_arch.py. The kernel is r_i cos_ij r_j, with cosines of the tokens as they enter the language model.
Relevance r compares a patch with the question in CLIP's joint space: the cosine is negated, averaged over the pieces of
the question and stretched to 0..1. So patches least like the question weigh most. Greedy MAP inference picks the token
of the largest remaining variance. Kept tokens stand in the order of the image, positions are renumbered.
Differs: relevance is stretched over each image; the official code does so over all crops and images of one call.
`relevance=none` leaves the question out, which the official code has no option for; the first pick is then the first
token, for all are alike. Beyond the rank of the tokens the official code repeats picks and keeps fewer tokens than
asked. Here the remaining places go to the tokens of the highest r that are left, the lowest index first. The sample's
note `filled` says how many. A greedy step counts as beyond the rank when the largest variance left is below 64 units of
the kernel's precision of the first. Cosines are float32 at least; the official ones are normalised in the model's
precision. Greedy inference is float64, the official one float32: variances fall to 1e-4 of the first within 64 picks,
where float32 rounding would leave the next token to the processor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from harness.core.errors import PrunebenchError
from harness.core.shape import ModelShape
from harness.core.spelling import given
from harness.method import (
    Method,
    PromptShape,
    Published,
    Reduction,
    Run,
    Share,
    Stream,
    TextTower,
    TowerLook,
    Traits,
    check_keep,
    keep_top,
    register,
)
from methods._select import ByImage, exact, first_of, image_quotas, marked

#: a variance of so many units of precision of the first is rounding: of tokens of rank 128, that of pick 125
ROUNDING = 64
#: added to the relevance of the official code, so that no token weighs nothing
LEAST = 1e-6


@register
@dataclass(frozen=True)
class CDPruner(Method):
    """Keeps `keep` visual tokens of a prompt by greedy MAP inference.

    `clip`: hub id or folder of the CLIP checkpoint that the vision tower was taken from; not given, the model's own
    `text_encoder`. `relevance`: "clip", or "none" for cosines alone, which needs no checkpoint.
    """

    name = "cdpruner"
    paper = "https://arxiv.org/abs/2506.10967"
    published = Published("NeurIPS 2025", "Theia-4869/CDPruner", "9541616c", "Apache-2.0")
    traits = Traits(query_aware=True, per_image=True)
    variant_knobs = ("relevance",)
    needs_grid = True
    #: the features that LLaVA projects
    PATCHES: ClassVar[TowerLook] = TowerLook("hidden", -2)

    keep: int | Share
    clip: TextTower | None = None
    relevance: Literal["clip", "none"] = "clip"

    def for_model(self, shape: ModelShape) -> CDPruner:
        check_keep("cdpruner", self.keep)
        # a checkpoint that is not read makes no other cell
        return replace(self, clip=None) if self.relevance == "none" and self.clip is not None else self

    def check_text_tower(self) -> None:
        if self.relevance == "clip" and self.clip is None:
            raise PrunebenchError(
                "cdpruner reads the question with the CLIP checkpoint that the vision tower was taken from, and this"
                f" model names none: give {given('set', 'clip=FOLDER')} (or a hub id), or leave the question out with"
                f" {given('set', 'relevance=none')}"
            )

    @property
    def image_only(self) -> bool:
        return self.relevance == "none"

    def plan(self, prompt: PromptShape) -> list[int]:
        return [sum(image_quotas(prompt, self.keep))] * prompt.depth

    def plan_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int | None:
        # the question's length in CLIP's tokens decides what its relevance costs
        return None if self.relevance == "clip" else self.known_scoring(prompt, visual)

    def known_scoring(self, prompt: PromptShape, visual: Sequence[int]) -> int:
        cosines = sum(2 * image.tokens**2 * prompt.decoder.hidden for image in prompt.images)
        quotas = image_quotas(prompt, self.keep)
        greedy = sum(n * (n - 1) * image.tokens for n, image in zip(quotas, prompt.images, strict=True))
        return cosines + greedy

    def looks(self, shape: ModelShape) -> Sequence[TowerLook]:
        return (self.PATCHES,) if self.relevance == "clip" else ()

    def on_image(self, run: Run, tower: Mapping[TowerLook, Tensor]) -> None:
        patches, valid = run.joint(tower[self.PATCHES], run.visual_valid), run.visual_valid
        question = run.question()
        pieces: list[int] = question.valid.sum(1).tolist()
        real = [prompt.n_visual * n for prompt, n in zip(run.prompts, pieces, strict=True)]
        text = normalize(exact(question.embeddings), dim=-1).transpose(1, 2)
        likeness = run.matmul(normalize(exact(patches), dim=-1), text, entries=real)
        unlike = -(likeness * question.valid[:, None]).sum(2) / question.valid.sum(1, keepdim=True)
        run.memo["unlike"] = unlike.masked_fill(~valid, 0)

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        if layer:
            return None
        images = ByImage(run)
        valid = images.valid
        quotas = images.quotas(self.keep)
        units = normalize(exact(images.split(stream.visual)), dim=-1)
        weight = torch.ones_like(units[:, :, 0])
        if self.relevance == "clip":
            weight = stretched(images.split(run.memo["unlike"]), valid).to(units.dtype)
        pairs = [n * n for n in images.counts]
        cosines = run.matmul(units, units.transpose(1, 2), row=images.row, entries=pairs)
        cosines.diagonal(dim1=1, dim2=2).fill_(1)  # so that rounding decides no first pick
        kernel = weight[:, :, None] * cosines * weight[:, None]
        picks, real = greedy_map(run, kernel, images, quotas)
        kept = marked(picks, real, valid)
        missing = torch.tensor(quotas, device=valid.device) - real.sum(1)
        rows = torch.tensor(images.row, device=valid.device)
        run.note("filled", torch.zeros_like(run.n_prompt_visual).index_add_(0, rows, missing))
        kept = kept | keep_top(weight, missing, valid & ~kept)
        return Reduction(images.join(kept), positions="compact", decode_positions="compact")


def stretched(unlike: Tensor, valid: Tensor) -> Tensor:
    """(u, p): `unlike` over an image's tokens from about 0 to about 1, as the official code stretches it; all 1 where
    they are alike."""
    low = unlike.masked_fill(~valid, float("inf")).amin(1, keepdim=True)
    span = unlike.masked_fill(~valid, float("-inf")).amax(1, keepdim=True) - low
    return torch.where(span > 0, (unlike - low + LEAST) / span, 1).masked_fill(~valid, 0)


class Picks(NamedTuple):
    """`picks (u, n)` long in order; `real (u, n)` bool: within the image's quota and the rank of its kernel."""

    picks: Tensor
    real: Tensor


def greedy_map(run: Run, kernel: Tensor, images: ByImage, quotas: Sequence[int]) -> Picks:
    """Greedy MAP inference on each image's `kernel (u, p, p)`: the largest variance given the picks before comes next.

    The lowest index wins a tie. Inference is float64 whatever the kernel is. Nothing is read from the device.
    """
    rounding = ROUNDING * torch.finfo(kernel.dtype).eps
    kernel = kernel.double()
    n, (u, p) = max(quotas), images.valid.shape
    variance = kernel.diagonal(dim1=1, dim2=2).masked_fill(~images.valid, float("-inf"))
    # rows of the Cholesky factor of the picked part, over all tokens
    factor = kernel.new_empty(u, n, p)
    picks = torch.empty(u, n, dtype=torch.long, device=kernel.device)
    largest = kernel.new_empty(u, n)
    for i in range(n):
        # the first of equal ones
        top, pick = variance.max(1, keepdim=True)
        picks[:, i : i + 1], largest[:, i : i + 1] = pick, top
        row = kernel.gather(1, pick[:, :, None].expand(-1, 1, p))
        if i:
            before = factor[:, :i]
            known = before.gather(2, pick[:, :, None].expand(-1, i, 1)).transpose(1, 2)
            entries = [count if i < quota else 0 for count, quota in zip(images.counts, quotas, strict=True)]
            row = row - run.matmul(known, before, row=images.row, entries=entries)
        factor[:, i] = row[:, 0] * top.rsqrt()
        variance = (variance - factor[:, i].square()).scatter(1, pick, float("-inf"))
    # behind the first variance that is rounding, picks mean nothing
    meaningful = (largest > rounding * largest[:, :1]).cumprod(1).bool()
    return Picks(picks, meaningful & first_of(quotas, images.valid))
