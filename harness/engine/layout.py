"""Where every token of the current sequence stands: which columns are visual, which are text, which are padding.

A layout describes the residual stream at one boundary for every row of a batch. Methods never see its columns: they
speak *visual* coordinates 0..v-1 and named text rows, and the engine translates. Sequences are padded on the left, so
the last column is every row's last token, before and after a reduction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from harness.core.errors import PrunebenchError


class Gathered(NamedTuple):
    """Columns of some tokens per row: `columns (b, k)` long, 0 beyond a row's count; `valid (b, k)` bool."""

    columns: Tensor
    valid: Tensor


class Placed(NamedTuple):
    """Tokens that a method places: `valid (b, m)` bool marks real ones; `among (b, m, v)` bool, never empty for a real
    one: the visual tokens behind or before whose kept ones each stands, None for all."""

    valid: Tensor
    among: Tensor | None = None


class TokenCounts(NamedTuple):
    """Of each row: tokens without padding, visual tokens, and text tokens behind the image."""

    tokens: list[int]
    visual: list[int]
    after: list[int]


class Reduced(NamedTuple):
    """A new layout and where its columns come from: `source (b, n')` indexes [old columns | added | front | values]."""

    layout: TokenLayout
    source: Tensor


@dataclass(frozen=True)
class TokenLayout:
    """All tensors are (b, n), on the model's device.

    `valid` is False on padding. `visual` marks slots that came from an image (merged tokens included), `after` the text
    behind the last image. `positions (b, n, axes)` are RoPE positions: one axis, or three (time, height, width) where
    the model rotates by M-RoPE. `origin` is a visual token's number in the prompt, -1 for text and -2 for tokens a
    method added.
    """

    valid: Tensor
    visual: Tensor
    after: Tensor
    positions: Tensor
    origin: Tensor
    #: known where the layout is made; None: read off the device when they are first asked for
    known: TokenCounts | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of_prompt(
        cls,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        image_token_ids: Sequence[int],
        positions: Tensor | None = None,
    ) -> TokenLayout:
        """The layout of a prompt batch; visual tokens are found by their ids, never by a constant.

        `positions (b, n, axes)`: where the model itself put the tokens; None: counted from each row's first token.
        Raises PrunebenchError for right padding, and for rows without an image token.
        """
        valid = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        visual = torch.stack([input_ids == token for token in image_token_ids]).any(0) & valid
        count = visual.long().cumsum(1)
        after = valid & ~visual & (count == count[:, -1:])
        # at once: each read waits for the device
        ends, *counted = torch.stack([valid[:, -1], *(x.sum(1) for x in (valid, visual, after))]).tolist()
        if not all(ends):
            raise PrunebenchError(
                "expected prompts padded on the left; found a row that ends in padding: set padding_side='left'"
            )
        counts = TokenCounts(*counted)
        without = [row for row, n in enumerate(counts.visual) if not n]
        if without:
            raise PrunebenchError(
                f"expected an image in every prompt; row(s) {without} hold no image token (id"
                f" {', '.join(map(str, image_token_ids))}): add the image placeholder to the prompt, or run text-only"
                " prompts outside attach()"
            )
        if positions is None:
            positions = (valid.long().cumsum(1) - 1).clamp(min=0)[:, :, None]
        return cls(valid, visual, after, positions, torch.where(visual, count - 1, -1), counts)

    @property
    def n(self) -> int:
        """Columns, padding included."""
        return int(self.valid.shape[1])

    @cached_property
    def _counted(self) -> TokenCounts:
        if self.known is not None:
            return self.known
        return TokenCounts(*torch.stack([x.sum(1) for x in (self.valid, self.visual, self.after)]).tolist())

    @property
    def counts(self) -> list[int]:
        """Tokens per row, without padding."""
        return self._counted.tokens

    @property
    def visual_counts(self) -> list[int]:
        """Visual tokens per row."""
        return self._counted.visual

    @property
    def after_counts(self) -> list[int]:
        """Text tokens behind the image per row."""
        return self._counted.after

    @cached_property
    def padded(self) -> bool:
        return min(self.counts) < self.n

    @cached_property
    def compact(self) -> TokenLayout:
        """The same tokens numbered 0 .. n-1, as the model numbers a sequence without gaps. Raises PrunebenchError on
        more than one axis."""
        if self.positions.shape[2] != 1:
            raise PrunebenchError(
                "positions=compact: expected positions on one axis, found a model that rotates by three (M-RoPE), where"
                " no official code renumbers: use positions=original"
            )
        return replace(self, positions=(self.valid.long().cumsum(1) - 1).clamp(min=0)[:, :, None])

    @cached_property
    def visual_tokens(self) -> Gathered:
        """(b, v): columns of the visual tokens in order, v = the largest count in the batch."""
        return gather_mask(self.visual, max(self.visual_counts))

    @cached_property
    def after_tokens(self) -> Gathered:
        """(b, t): columns of the text tokens behind the image, in order."""
        return gather_mask(self.after, max(self.after_counts))

    @cached_property
    def mask(self) -> Tensor | None:
        """(b, 1, n, n) bool for SDPA, True = may attend; None where plain causal attention says the same.

        A padded row attends itself, or its softmax would be NaN and spread.
        """
        if not self.padded:
            return None
        n = self.n
        causal = torch.ones(n, n, dtype=torch.bool, device=self.valid.device).tril()
        allowed = causal & self.valid[:, None, :]
        return (allowed | torch.eye(n, dtype=torch.bool, device=self.valid.device))[:, None]

    def with_features(self, hidden: Tensor, features: Tensor, counts: Tensor) -> Tensor:
        """`hidden (b, n, d)` with `features` added to the visual tokens that are still here: (tokens, d), one for each
        of the prompts' `counts (b,)` visual tokens in order. Added tokens get nothing."""
        here = self.visual & (self.origin >= 0)
        index = (counts.cumsum(0) - counts)[:, None] + self.origin.clamp(min=0)
        return torch.where(here[:, :, None], hidden + features.to(hidden)[index], hidden)

    def visual_to_columns(self, chosen: Tensor) -> Tensor:
        """(b, v) bool over visual tokens -> (b, n) bool over columns."""
        tokens = self.visual_tokens
        target = torch.where(tokens.valid, tokens.columns, self.n)  # slots beyond a row's count write to a spare column
        out = torch.zeros(self.valid.shape[0], self.n + 1, dtype=torch.bool, device=self.valid.device)
        return out.scatter_(1, target, chosen & tokens.valid)[:, : self.n]

    def reduce(
        self,
        keep: Tensor,
        added: Placed | None,
        compact: bool,
        order: Tensor | None = None,
        front: Placed | None = None,
        replaced: bool = False,
        n_visual: list[int] | None = None,
    ) -> Reduced:
        """Drop the visual tokens that `keep (b, v)` does not mark, and place others.

        Kept tokens stand in ascending `order (b, v)`, in the columns of kept tokens. Added tokens stand behind the last
        kept one of those they are placed among (where the first of them stood, if none is kept) at the position after
        it; front tokens before the first kept one, where the first of them stood. `compact` renumbers positions
        0..n-1, otherwise tokens keep theirs. `source` counts old columns, then added, then front; where `replaced`,
        kept visual tokens come from the (b, v) values that are counted last. `n_visual`: visual tokens of each row
        afterwards, placed ones included; None: they are counted on the device.
        """
        b, n = self.valid.shape
        device = self.valid.device
        stays = self.valid & ~self.visual | self.visual_to_columns(keep)
        kept_visual = stays & self.visual
        column = torch.arange(n, device=device).expand(b, n)
        if order is not None:
            column = self._reordered(order, kept_visual, column)
        order_key = torch.where(stays, 4 * (column + 1), 0)
        positions, visual, after, origin = self.positions, self.visual, self.after, self.origin
        for more, behind in ((added, True), (front, False)):
            if more is None:
                continue
            first, head, last = self._ends(kept_visual, more.among)
            some, place, real = last >= 0, take(self.positions, first), more.valid
            if behind:
                at = torch.where(some[:, :, None], take(positions, last.clamp(min=0)) + 1, place)
                key = torch.where(some, 4 * (last + 1) + 2, 4 * first + 2)
            else:
                at, key = place, torch.where(some, 4 * (head + 1) - 1, 4 * first + 1)
            m = real.shape[1]
            order_key = torch.cat([order_key, torch.where(real, key, 0)], 1)
            stays = torch.cat([stays, real], 1)
            positions = torch.cat([positions, at.expand(b, m, -1)], 1)
            visual = torch.cat([visual, torch.ones_like(real)], 1)
            after = torch.cat([after, torch.zeros_like(real)], 1)
            origin = torch.cat([origin, torch.full((b, m), -2, device=device)], 1)
        if n_visual is None:
            n_visual = (stays & visual).sum(1).tolist()
        tokens = [n - was + now for n, was, now in zip(self.counts, self.visual_counts, n_visual, strict=True)]
        source = order_key.argsort(dim=1, stable=True)[:, -max(tokens) :]
        valid = stays.gather(1, source)
        layout = TokenLayout(
            valid,
            visual.gather(1, source) & valid,
            after.gather(1, source) & valid,
            take(positions, source),
            origin.gather(1, source),
            TokenCounts(tokens, n_visual, self.after_counts),
        )
        if replaced:
            old = source.clamp(max=n - 1)
            index = (self.visual.long().cumsum(1) - 1).gather(1, old)
            source = torch.where((source < n) & kept_visual.gather(1, old), stays.shape[1] + index, source)
        return Reduced(layout.compact if compact else layout, source)

    def _ends(self, kept_visual: Tensor, among: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(b, m) columns: the first of the visual tokens that `among (b, m, v)` marks, the first kept one (n for none)
        and the last kept one (-1 for none). m is 1 where `among` is None."""
        tokens = self.visual_tokens
        present = tokens.valid[:, None] if among is None else tokens.valid[:, None] & among
        kept = present & kept_visual.gather(1, tokens.columns)[:, None]
        columns = tokens.columns[:, None]
        first = torch.where(present, columns, self.n).amin(2).clamp(max=self.n - 1)
        return first, torch.where(kept, columns, self.n).amin(2), torch.where(kept, columns, -1).amax(2)

    def _reordered(self, order: Tensor, kept_visual: Tensor, column: Tensor) -> Tensor:
        """(b, n): the column that each token moves to, where kept visual tokens trade theirs so as to ascend in
        `order`."""
        tokens = self.visual_tokens
        kept = kept_visual.gather(1, tokens.columns) & tokens.valid
        by_order = torch.where(kept, order.double(), float("inf")).argsort(dim=1, stable=True)
        by_column = (~kept).to(torch.uint8).argsort(dim=1, stable=True)
        # the i-th token by order gets the column of the i-th kept one
        moved = torch.empty_like(tokens.columns).scatter_(1, by_order, tokens.columns.gather(1, by_column))
        target = torch.where(kept, tokens.columns, self.n)  # the others write to a spare column
        return torch.cat([column, column[:, :1]], 1).scatter(1, target, moved)[:, : self.n]


def gather_mask(mask: Tensor, width: int | None = None) -> Gathered:
    """Columns where `mask (b, n)` is True, in order, padded at the end to `width` (default: the largest count)."""
    count = mask.sum(1)
    width = int(count.max()) if width is None else width
    columns = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    valid = torch.arange(width, device=mask.device)[None] < count[:, None]
    return Gathered(torch.where(valid, columns, 0), valid)


def take(x: Tensor, columns: Tensor) -> Tensor:
    """`x (b, n, d)` at `columns (b, k)` -> (b, k, d)."""
    return x.gather(1, columns[:, :, None].expand(-1, -1, x.shape[-1]))
