"""What more than one method selects by: grids of tokens, and the images of a batch one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.core.shape import Grid
from harness.method import PromptShape, Run, ScoresError, Share, keep_top


def grids(prompt: PromptShape) -> list[tuple[int, Grid]]:
    """The grids of a prompt's images in order, each with the number of its first token among the prompt's visual
    tokens."""
    found, start = [], 0
    for view in (view for image in prompt.images for view in image.views):
        found.append((start, view))
        start += view.tokens
    return found


def shared_out(total: int, views: list[Grid]) -> list[int]:
    """`total` tokens among grids in proportion to their patches, at most all of each; newline tokens get none."""
    patches = [view.rows * view.cols for view in views]
    total = min(total, sum(patches))
    ends = [total * sum(patches[: i + 1]) // sum(patches) for i in range(len(views))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def even_split(total: int, parts: int) -> list[int]:
    """`total` as `parts` whole numbers that differ by at most one, the larger ones spread evenly: (8, 3) -> [2, 3,
    3]."""
    return [(i + 1) * total // parts - i * total // parts for i in range(parts)]


def centres(length: int, n: int) -> list[int]:
    """`n` of `length` places, evenly: the middle of each of n equal stretches; distinct for n <= length."""
    return [(2 * i + 1) * length // (2 * n) for i in range(n)]


def image_quotas(prompt: PromptShape, keep: int | Share) -> list[int]:
    """What each image of a prompt keeps of `keep` in all: in proportion to its tokens, at most all of them."""
    sizes = [image.tokens for image in prompt.images]
    total = prompt.quota(keep)
    ends = [total * sum(sizes[: i + 1]) // sum(sizes) for i in range(len(sizes))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def least_ratio(n: int) -> float:
    """The smallest share, in steps of 1/10,000, of which `n` tokens make one when it is rounded down."""
    return math.ceil(10_000 / n) / 10_000


def first_of(quotas: Sequence[int], valid: Tensor) -> Tensor:
    """(u, n) bool: which of n picks belong to each image's quota, n being the largest."""
    return (torch.arange(max(quotas))[None] < torch.tensor(quotas)[:, None]).to(valid.device)


def marked(picks: Tensor, real: Tensor, valid: Tensor) -> Tensor:
    """(u, p) bool: the `picks (u, n)` among each image's tokens `valid (u, p)`; `real (u, n)` bool are picks."""
    kept = torch.zeros(valid.shape[0], valid.shape[1] + 1, dtype=torch.bool, device=valid.device)
    # what is no pick goes to a slot behind the last token
    return kept.scatter_(1, picks.masked_fill(~real, valid.shape[1]), True)[:, :-1]


class ByImage:
    """The images of a batch of prompts as a batch of their own, before any reduction: a selection sees one image alone.

    u images with up to p tokens each. `row`, `image`, `counts`: of each its prompt in the batch, its number in the
    prompt, and its tokens. `valid (u, p)` bool.
    """

    def __init__(self, run: Run) -> None:
        self._prompts = run.prompts
        self.row = [row for row, prompt in enumerate(run.prompts) for _ in prompt.images]
        self.image = [i for prompt in run.prompts for i in range(len(prompt.images))]
        self.counts = [image.tokens for prompt in run.prompts for image in prompt.images]
        self._batch = run.visual_valid
        b, v = self._batch.shape
        #: one image a prompt: as the batch stands
        self._alone = self.row == list(range(b))
        if self._alone:
            self.valid = self._batch
            return
        width, device = max(self.counts), self._batch.device
        starts = [sum(self.counts[i - self.image[i] : i]) for i in range(len(self.row))]
        place = torch.arange(width)[None]
        counts = torch.tensor(self.counts)[:, None]
        first = torch.tensor([r * v + start for r, start in zip(self.row, starts, strict=True)])[:, None]
        self.valid = (place < counts).to(device)
        #: (u, p) long: where each token stands in the flattened (b, v), 0 beyond a count
        self._at = torch.where(place < counts, first + place, 0).to(device)

    def quotas(self, keep: int | Share) -> list[int]:
        """What each image keeps of `keep` tokens a prompt: see `image_quotas`."""
        return [quota for prompt in self._prompts for quota in image_quotas(prompt, keep)]

    def split(self, x: Tensor) -> Tensor:
        """`x (b, v, ...)` -> (u, p, ...), 0 beyond an image's count."""
        if self._alone:
            return x
        parts = x.flatten(0, 1)[self._at]
        return parts.masked_fill(~self.valid.view(*self.valid.shape, *[1] * (x.ndim - 2)), 0)

    def top(self, scores: Tensor, k: Sequence[int] | Tensor, among: Tensor | None = None) -> Tensor:
        """(u, p) bool: of each image the `k` tokens with the highest `scores (u, p)`, `among (u, p)` bool or all of its
        own.

        Raises as `keep_top`; the row of the error is that of the prompt.
        """
        try:
            return keep_top(scores, torch.as_tensor(k, device=scores.device), self.valid if among is None else among)
        except ScoresError as error:
            raise ScoresError(self.row[error.row], str(error)) from None

    def join(self, x: Tensor) -> Tensor:
        """`x (u, p, ...)` -> (b, v, ...), 0 beyond a row's count."""
        if self._alone:
            return x
        b, v = self._batch.shape
        whole = x.new_zeros(b * v, *x.shape[2:])
        whole[self._at[self.valid]] = x[self.valid]
        return whole.view(b, v, *x.shape[2:])

    def gathered(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens made of each image, `x (u, m, d)` with `valid (u, m)`, as a Reduction takes them: (b, n, d), (b, n)
        bool, and (b, n) long, the image of each. In the order of images."""
        if self._alone:
            return x, valid, torch.zeros_like(valid, dtype=torch.long)
        b, m = len(self._batch), x.shape[1]
        most = max(self.image) + 1
        tokens = x.new_zeros(b, most, m, x.shape[2])
        real = valid.new_zeros(b, most, m)
        tokens[self.row, self.image], real[self.row, self.image] = x, valid
        image = torch.arange(most, device=x.device)[None, :, None].expand(b, -1, m)
        return tokens.flatten(1, 2), real.flatten(1, 2), image.flatten(1, 2)

    def projected(self, run: Run, x: Tensor, valid: Tensor) -> Tensor:
        """(u, m, d): tower features of each image, `x (u, m, width)`, through the projector; those of `valid (u, m)`
        are charged to their prompts."""
        features, real, _ = self.gathered(x, valid)
        tokens = run.project(features, real)
        return (
            tokens if self._alone else tokens.view(len(tokens), -1, x.shape[1], tokens.shape[2])[self.row, self.image]
        )

    def looked(self, x: Tensor) -> Tensor:
        """(u, width): what is per image, `x (b, images, width)`."""
        return x[:, 0] if self._alone else x[self.row, self.image]


def furthest(distance: Tensor, valid: Tensor, n: int) -> Tensor:
    """(u, n) long: the first `n` picks of each image by `distance (u, p, p)` of its `valid (u, p)` tokens, in order.

    All picks of an image are distinct as long as it has tokens; the lowest index wins a tie. `distance` is written on.
    """
    u, p = valid.shape
    distance.masked_fill_(~(valid[:, :, None] & valid[:, None]), float("inf"))
    itself = distance.diagonal(dim1=1, dim2=2)
    itself.fill_(float("inf"))
    first = distance.amin(2).masked_fill_(~valid, float("-inf")).argmax(1, keepdim=True)
    itself.fill_(float("-inf"))  # so that a picked token is no candidate any more
    nearest = torch.where(valid, float("inf"), float("-inf")).to(distance.dtype)
    picks = torch.empty(u, n, dtype=torch.long, device=valid.device)
    for i in range(n):
        # argmax is the first of equal ones
        pick = nearest.argmax(1, keepdim=True) if i else first
        picks[:, i : i + 1] = pick
        nearest = torch.minimum(nearest, distance.gather(1, pick[:, :, None].expand(-1, 1, p))[:, 0])
    return picks


def ranks(scores: Tensor) -> Tensor:
    """The rank of each along the last axis, 0 for the highest; the lower place wins a tie."""
    best = scores.argsort(dim=-1, descending=True, stable=True)
    return torch.empty_like(best).scatter_(-1, best, torch.arange(best.shape[-1], device=best.device).expand_as(best))


def exact(x: Tensor) -> Tensor:
    """In float32 at least, for scores and sums; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def at(x: Tensor, index: Tensor) -> Tensor:
    """(u, c, width): the rows `index (u, c)` of `x (u, p, width)`."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))
