"""One layer's attention under the engine: SDPA, exact edits without an n x n matrix, and softmax rows on demand.

Zeroing the probabilities of columns J after softmax is attention with v_j := 0 on J; sending them to a sink is attention with
v_j := v_sink. So an edit on a group of rows is one more SDPA call on just those rows with other values, and nothing is
renormalised. Scores are the softmax of the asked rows only, from the layer's own q and k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from harness.errors import PrunebenchError
from harness.layout import Gathered, TokenLayout, gather_mask
from harness.method import AttentionEdit, Probabilities

#: (executed FLOPs on the padded batch, FLOPs per row without padding)
CountScoring = Callable[[int, Sequence[int]], None]


def repeat_heads(x: Tensor, n_heads: int) -> Tensor:
    """(b, kv_heads, n, d) -> (b, n_heads, n, d)."""
    return x if x.shape[1] == n_heads else x.repeat_interleave(n_heads // x.shape[1], dim=1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, causal: bool) -> Tensor:
    """Plain SDPA, (b, heads, rows, d); grouped key-value heads are repeated."""
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, is_causal=causal and mask is None)


def _rows_of(layout: TokenLayout, rows: str) -> Gathered:
    if rows == "after":
        return layout.after_tokens
    if rows == "visual":
        return layout.visual_tokens
    raise PrunebenchError(f"expected rows 'after' or 'visual' in an AttentionEdit, found {rows!r}")


def _gather_rows(x: Tensor, columns: Tensor) -> Tensor:
    """`x (b, h, n, d)` at `columns (b, r)` -> (b, h, r, d)."""
    return x.gather(2, columns[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[-1]))


@dataclass(frozen=True)
class EditTrace:
    rows: int
    silenced: Tensor  # (b,) causal pairs that lost their probability


class EditedPairs(NamedTuple):
    """Which pairs an edit is about: its query `rows`, its key `cols (b, n)` bool, what those rows may attend, `allowed (b, r, n)`
    bool, and `silenced (b,)`: causal pairs that lose their probability."""

    rows: Gathered
    cols: Tensor
    allowed: Tensor
    silenced: Tensor


def sink_columns(edit: AttentionEdit, layout: TokenLayout) -> Tensor:
    """(b,) long: the column of each row's sink."""
    visual = layout.visual_tokens.columns
    sink = torch.as_tensor(edit.sink, device=visual.device).expand(visual.shape[0])
    return visual.gather(1, sink[:, None])[:, 0]


def edited_pairs(edit: AttentionEdit, layout: TokenLayout) -> EditedPairs:
    """The pairs of one edit, from the layout alone."""
    rows = _rows_of(layout, edit.rows)
    cols = layout.visual if edit.cols is None else layout.visual_to_columns(edit.cols)
    key_index = torch.arange(layout.n, device=layout.valid.device)
    allowed = (key_index <= rows.columns[:, :, None]) & layout.valid[:, None, :]
    taken = allowed & cols[:, None, :] & rows.valid[:, :, None]
    if edit.how == "redirect":
        taken = taken & (key_index != sink_columns(edit, layout)[:, None])[:, None]
    return EditedPairs(rows, cols, allowed, taken.sum((1, 2)))


def apply_edits(
    edits: Sequence[AttentionEdit], layout: TokenLayout, q: Tensor, k: Tensor, v: Tensor, out: Tensor, scaling: float
) -> tuple[Tensor, list[EditTrace]]:
    """Replace the outputs of the edited rows; `out (b, heads, n, d)` is the unedited attention output."""
    traces: list[EditTrace] = []
    touched: set[str] = set()
    for edit in edits:
        if edit.rows in touched:
            raise PrunebenchError(f"two attention edits of one layer share the rows {edit.rows!r}; join them into one")
        touched.add(edit.rows)
        rows, cols, allowed, silenced = edited_pairs(edit, layout)
        if rows.columns.shape[1] == 0:
            continue
        n = layout.n
        values = v
        if edit.how == "mask":
            allowed = allowed & ~cols[:, None, :]
        elif edit.how == "zero":
            values = v.masked_fill(cols[:, None, :, None], 0)
        elif edit.how == "redirect":
            sink = sink_columns(edit, layout)
            values = torch.where(cols[:, None, :, None], _gather_rows(v, sink[:, None]), v)
        else:
            raise PrunebenchError(f"expected an edit 'mask', 'zero' or 'redirect', found {edit.how!r}")
        # a padded slot of the row list attends its own column 0, so that its softmax is defined; it is not written back
        allowed = allowed | (~rows.valid[:, :, None] & (torch.arange(n, device=q.device) == 0))
        edited = attend(_gather_rows(q, rows.columns), k, values, allowed[:, None], scaling, causal=False)
        keep_old = _gather_rows(out, rows.columns)
        edited = torch.where(rows.valid[:, None, :, None], edited, keep_old)
        target = torch.where(rows.valid, rows.columns, n)  # invalid slots write to a spare column
        wide = torch.cat([out, out[:, :, :1]], 2)
        out = wide.scatter(2, target[:, None, :, None].expand_as(edited), edited)[:, :, :n]
        traces.append(EditTrace(rows.columns.shape[1], silenced))
    return out, traces


class LayerAttention:
    """`harness.method.Attention` for one layer of a prefill."""

    def __init__(
        self,
        layout: TokenLayout,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        scaling: float,
        count: CountScoring,
        rotate_ones: Callable[[Tensor], Tensor],
    ) -> None:
        self._layout, self._q, self._k, self._v, self._out = layout, q, k, v, out
        self._scaling, self._count, self._rotate_ones = scaling, count, rotate_ones

    def _asked(self, rows: Literal["last"] | Tensor) -> Gathered:
        layout = self._layout
        if isinstance(rows, str):
            if rows != "last":
                raise PrunebenchError(f"expected rows 'last' or a bool mask over the text behind the image, found {rows!r}")
            last = torch.full((layout.valid.shape[0], 1), layout.n - 1, device=layout.valid.device)
            return Gathered(last, torch.ones_like(last, dtype=torch.bool))
        after = layout.after_tokens
        if rows.shape != after.columns.shape or rows.dtype != torch.bool:
            raise PrunebenchError(
                f"expected rows as bool {tuple(after.columns.shape)} over the text behind the image, "
                f"found {rows.dtype} {tuple(rows.shape)}"
            )
        asked = gather_mask(rows & after.valid)
        return Gathered(after.columns.gather(1, asked.columns), asked.valid)

    def visual_probs(self, rows: Literal["last"] | Tensor, of: Tensor | None = None) -> Probabilities:
        layout = self._layout
        asked = self._asked(rows)
        if of is not None:
            asked = Gathered(asked.columns, asked.valid & of[:, None])
        b, heads, _, d = self._q.shape
        r = asked.columns.shape[1]
        per_row = [2 * heads * d * n_rows * n for n_rows, n in zip(asked.valid.sum(1).tolist(), layout.counts, strict=True)]
        self._count(2 * b * heads * r * layout.n * d, per_row)
        probs = self.row_probs(asked)
        visual = layout.visual_tokens
        values = probs.gather(3, visual.columns[:, None, None, :].expand(b, heads, r, -1))
        values = values * (visual.valid[:, None, None, :] & asked.valid[:, None, :, None])
        return Probabilities(values, asked.valid)

    @property
    def layout(self) -> TokenLayout:
        """Where the tokens of this layer stand; for observers, methods speak visual coordinates."""
        return self._layout

    def row_probs(self, asked: Gathered) -> Tensor:
        """(b, heads, r, n) float32: softmax of the asked rows over all columns; rows that are none hold column 0. Not charged to the trace."""
        layout = self._layout
        q = _gather_rows(self._q, asked.columns)
        scores = (q @ repeat_heads(self._k, q.shape[1]).transpose(-1, -2)) * self._scaling
        key_index = torch.arange(layout.n, device=q.device)
        allowed = (key_index <= asked.columns[:, :, None]) & layout.valid[:, None, :]
        allowed = allowed | (~asked.valid[:, :, None] & (key_index == 0))
        return scores.float().masked_fill(~allowed[:, None], float("-inf")).softmax(-1)

    def visual_values(self) -> Tensor:
        visual = self._layout.visual_tokens
        return repeat_heads(_gather_rows(self._v, visual.columns), self._q.shape[1]) * visual.valid[:, None, :, None]

    def last_output(self) -> Tensor:
        return self._out[:, :, -1].clone()

    def ones_rotated(self, rows: Tensor) -> Tensor:
        # q and k of all ones at every column's position; the product of two rotations depends on the distance only
        layout = self._layout
        asked, visual = self._asked(rows), layout.visual_tokens
        ones = self._rotate_ones(layout.positions)  # (b, n, d) float32
        d = ones.shape[-1]
        a = ones.gather(1, asked.columns[:, :, None].expand(-1, -1, d))
        c = ones.gather(1, visual.columns[:, :, None].expand(-1, -1, d))
        per_row = [2 * d * n_rows * n for n_rows, n in zip(asked.valid.sum(1).tolist(), layout.visual_counts, strict=True)]
        self._count(2 * a.shape[0] * a.shape[1] * c.shape[1] * d, per_row)
        bias: Tensor = a @ c.transpose(-1, -2) / d**0.5
        return bias
