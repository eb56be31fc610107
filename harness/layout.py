"""Where every token of the current sequence stands: which columns are visual, which are text, which are padding.

A layout describes the residual stream at one boundary for every row of a batch. Methods never see its columns: they speak
*visual* coordinates 0..v-1 and named text rows, and the engine translates. Sequences are padded on the left, so the last
column is every row's last token, before and after a reduction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from harness.errors import PrunebenchError


class Gathered(NamedTuple):
    """Columns of some tokens per row: `columns (b, k)` long, 0 beyond a row's count; `valid (b, k)` bool."""

    columns: Tensor
    valid: Tensor


class Reduced(NamedTuple):
    """A new layout and where its columns come from: `source (b, n')` indexes [old columns | added tokens]."""

    layout: TokenLayout
    source: Tensor


@dataclass(frozen=True)
class TokenLayout:
    """All tensors are (b, n), on the model's device.

    `valid` is False on padding. `visual` marks slots that came from an image (merged tokens included), `after` the text
    behind the last image. `positions` are RoPE positions. `origin` is a visual token's number in the prompt, -1 for text
    and -2 for tokens a method added.
    """

    valid: Tensor
    visual: Tensor
    after: Tensor
    positions: Tensor
    origin: Tensor

    @classmethod
    def of_prompt(cls, input_ids: Tensor, attention_mask: Tensor | None, image_token_id: int) -> TokenLayout:
        """The layout of a prompt batch; visual tokens are found by their id, never by a constant.

        Raises PrunebenchError for right padding, and for rows without an image token.
        """
        valid = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if not bool(valid[:, -1].all()):
            raise PrunebenchError("expected prompts padded on the left; found a row that ends in padding: set padding_side='left'")
        visual = (input_ids == image_token_id) & valid
        without = (~visual.any(1)).nonzero().flatten().tolist()
        if without:
            raise PrunebenchError(
                f"expected an image in every prompt; row(s) {without} hold no image token (id {image_token_id}): "
                "add the image placeholder to the prompt, or run text-only prompts outside attach()"
            )
        count = visual.long().cumsum(1)
        after = valid & ~visual & (count == count[:, -1:])
        positions = (valid.long().cumsum(1) - 1).clamp(min=0)
        return cls(valid, visual, after, positions, torch.where(visual, count - 1, -1))

    @property
    def n(self) -> int:
        """Columns, padding included."""
        return int(self.valid.shape[1])

    @cached_property
    def counts(self) -> list[int]:
        """Tokens per row, without padding."""
        return [int(c) for c in self.valid.sum(1).tolist()]

    @cached_property
    def visual_counts(self) -> list[int]:
        """Visual tokens per row."""
        return [int(c) for c in self.visual.sum(1).tolist()]

    @cached_property
    def padded(self) -> bool:
        return min(self.counts) < self.n

    @cached_property
    def visual_tokens(self) -> Gathered:
        """(b, v): columns of the visual tokens in order, v = the largest count in the batch."""
        return gather_mask(self.visual, max(self.visual_counts))

    @cached_property
    def after_tokens(self) -> Gathered:
        """(b, t): columns of the text tokens behind the image, in order."""
        return gather_mask(self.after)

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

    def visual_to_columns(self, chosen: Tensor) -> Tensor:
        """(b, v) bool over visual tokens -> (b, n) bool over columns."""
        tokens = self.visual_tokens
        out = torch.zeros_like(self.valid)
        return out.scatter_(1, tokens.columns, chosen & tokens.valid) & self.visual

    def reduce(self, keep: Tensor, added: Tensor | None, compact: bool) -> Reduced:
        """Drop the visual tokens that `keep (b, v)` does not mark; `added (b, m)` bool marks valid added tokens.

        Added tokens stand behind the last kept visual token (where the first visual token stood, if none is kept) and take
        the position after it. `compact` renumbers positions 0..n-1, otherwise tokens keep theirs.
        """
        b, n = self.valid.shape
        device = self.valid.device
        stays = self.valid & ~self.visual | self.visual_to_columns(keep)
        kept_visual = stays & self.visual
        column = torch.arange(n, device=device).expand(b, n)
        last = torch.where(kept_visual, column, -1).amax(1)
        first = torch.where(self.visual, column, n).amin(1)
        anchor = torch.where(last >= 0, last, first - 1)
        order_key = torch.where(stays, 2 * (column + 1), 0)
        positions, visual, after, origin = self.positions, self.visual, self.after, self.origin
        if added is not None:
            m = added.shape[1]
            order_key = torch.cat([order_key, torch.where(added, (2 * (anchor + 1) + 1)[:, None], 0)], 1)
            stays = torch.cat([stays, added], 1)
            at = torch.where(last >= 0, self.positions.gather(1, last.clamp(min=0)[:, None])[:, 0] + 1, 0)
            at = torch.where(last >= 0, at, self.positions.gather(1, first.clamp(max=n - 1)[:, None])[:, 0])
            positions = torch.cat([positions, at[:, None].expand(b, m)], 1)
            visual = torch.cat([visual, torch.ones_like(added)], 1)
            after = torch.cat([after, torch.zeros_like(added)], 1)
            origin = torch.cat([origin, torch.full((b, m), -2, device=device)], 1)
        n_new = int(stays.sum(1).max())
        source = order_key.argsort(dim=1, stable=True)[:, -n_new:]
        valid = stays.gather(1, source)
        new_positions = positions.gather(1, source)
        if compact:
            new_positions = (valid.long().cumsum(1) - 1).clamp(min=0)
        layout = TokenLayout(
            valid, visual.gather(1, source) & valid, after.gather(1, source) & valid, new_positions, origin.gather(1, source)
        )
        return Reduced(layout, source)


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
