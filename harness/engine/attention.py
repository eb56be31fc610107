"""One layer's attention under the engine: SDPA, exact edits without an n x n matrix, and softmax rows on demand.

Zeroing the probabilities of columns J after softmax is attention with v_j := 0 on J; sending them to a sink is
attention with v_j := v_sink. So an edit on a group of rows is one more SDPA call on just those rows with other values,
and nothing is renormalised. Scores are the softmax of the asked rows only, from the layer's own q and k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from harness.core.errors import PrunebenchError
from harness.engine.layout import Gathered, TokenLayout, gather_mask, take
from harness.engine.readback import PerRow, charged
from harness.method import AttentionEdit, Heads, Probabilities, Rows

#: (executed FLOPs on the padded batch, FLOPs per row without padding)
CountScoring = Callable[[int, PerRow], None]
#: `vector (..., n or 1, head_dim)` rotated at `positions (b, n, axes)`, in float32
Rotate = Callable[[Tensor, Tensor], Tensor]
#: rows whose probabilities are held at once where heads are reduced: all rows of a long prompt would be a matrix of n x
#: n a head
ROWS_AT_ONCE = 64


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
    """Which pairs an edit is about: its query `rows`, its key `cols (b, n)` bool, what those rows may attend, `allowed
    (b, r, n)` bool, and `silenced (b,)`: causal pairs that lose their probability."""

    rows: Gathered
    cols: Tensor
    allowed: Tensor
    silenced: Tensor


def sink_columns(edit: AttentionEdit, layout: TokenLayout) -> Tensor:
    """(b,) long: the column of each row's sink."""
    visual = layout.visual_tokens.columns
    if isinstance(edit.sink, int):
        return visual[:, edit.sink]
    return visual.gather(1, edit.sink[:, None])[:, 0]


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


def asked_rows(layout: TokenLayout, rows: Rows, of: Tensor | None = None) -> Gathered:
    """The columns of the asked query rows, (b, r); those of prompts outside `of (b,)` bool are no real rows. Raises
    PrunebenchError for others."""
    if isinstance(rows, str):
        if rows == "last":
            last = torch.full((layout.valid.shape[0], 1), layout.n - 1, device=layout.valid.device)
            asked = Gathered(last, torch.ones_like(last, dtype=torch.bool))
        elif rows in ("after", "visual"):
            asked = layout.after_tokens if rows == "after" else layout.visual_tokens
        else:
            raise PrunebenchError(
                f"expected rows last, after, visual, a bool mask over the text behind the image, or numbers of tokens,"
                f" found {rows!r}"
            )
    elif rows.dtype == torch.long:
        both = [layout.visual_tokens, layout.after_tokens]
        columns, valid = (torch.cat(parts, 1) for parts in zip(*both, strict=True))
        if rows.ndim != 2 or len(rows) != len(columns):
            raise PrunebenchError(f"expected rows as long ({len(columns)}, rows), found {tuple(rows.shape)}")
        asked = Gathered(columns.gather(1, rows), valid.gather(1, rows))
    else:
        after = layout.after_tokens
        if rows.shape != after.columns.shape or rows.dtype != torch.bool:
            raise PrunebenchError(
                f"expected rows as bool {tuple(after.columns.shape)} over the text behind the image, or long, found"
                f" {rows.dtype} {tuple(rows.shape)}"
            )
        chosen = gather_mask(rows & after.valid)
        asked = Gathered(after.columns.gather(1, chosen.columns), chosen.valid)
    if of is None:
        return asked
    if of.shape != asked.valid.shape[:1] or of.dtype != torch.bool:
        raise PrunebenchError(
            f"expected of as bool ({asked.valid.shape[0]},), one a prompt of the batch; found {of.dtype}"
            f" {tuple(of.shape)}"
        )
    return Gathered(asked.columns, asked.valid & of[:, None])


def softmax_rows(q: Tensor, k: Tensor, layout: TokenLayout, asked: Gathered, scaling: float) -> Tensor:
    """(b, heads, r, n) float32: softmax of the rows `q (b, heads, r, d)` over all columns; rows that are none hold
    column 0."""
    scores = (q @ repeat_heads(k, q.shape[1]).transpose(-1, -2)) * scaling
    key_index = torch.arange(layout.n, device=q.device)
    allowed = (key_index <= asked.columns[:, :, None]) & layout.valid[:, None, :]
    allowed = allowed | (~asked.valid[:, :, None] & (key_index == 0))
    return scores.float().masked_fill(~allowed[:, None], float("-inf")).softmax(-1)


def visual_probs(
    q: Callable[[Tensor], Tensor], k: Tensor, layout: TokenLayout, asked: Gathered, scaling: float, heads: Heads
) -> Probabilities:
    """The softmax rows at the visual columns. `q(columns (b, r))` gives the queries (b, heads, r, d) that stand there.

    Where heads are reduced, `ROWS_AT_ONCE` rows are computed at a time and the full matrix is never held.
    """
    if heads not in get_args(Heads):
        raise PrunebenchError(f"expected heads as one of {', '.join(get_args(Heads))}, found {heads!r}")
    visual = layout.visual_tokens
    size = max(asked.columns.shape[1], 1) if heads == "each" else ROWS_AT_ONCE
    parts = []
    for start in range(0, max(asked.columns.shape[1], 1), size):
        some = Gathered(asked.columns[:, start : start + size], asked.valid[:, start : start + size])
        probs = softmax_rows(q(some.columns), k, layout, some, scaling)
        values = probs.gather(3, visual.columns[:, None, None, :].expand(-1, probs.shape[1], probs.shape[2], -1))
        if heads != "each":
            values = values.mean(1, keepdim=True) if heads == "mean" else values.amax(1, keepdim=True)
        parts.append(values * (visual.valid[:, None, None, :] & some.valid[:, None, :, None]))
    return Probabilities(parts[0] if len(parts) == 1 else torch.cat(parts, 2), asked.valid)


def n_asked(layout: TokenLayout, rows: Rows, of: Tensor | None, asked: Gathered) -> list[int] | Tensor:
    """Real query rows of each prompt; (b,) long on the device where the layout does not know."""
    if isinstance(rows, str) and of is None:
        return {"last": [1] * layout.valid.shape[0], "after": layout.after_counts, "visual": layout.visual_counts}[rows]
    return asked.valid.sum(1)


def product_flops(layout: TokenLayout, width: int, heads: int, head_dim: int) -> tuple[int, list[int]]:
    """FLOPs of the product of query rows with all keys: of the batch padded to `width` rows, and of one row of each
    prompt without padding."""
    each = [2 * heads * head_dim * n for n in layout.counts]
    return 2 * len(each) * heads * width * layout.n * head_dim, each


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
        rotate: Rotate,
        queries: Callable[[], Tensor] | None = None,
        since: int = 0,
    ) -> None:
        """`q` and `out` hold the columns from `since` on, the text behind the image among them; `queries` makes the
        `(b, heads, n, d)` of all."""
        self._layout, self._q, self._k, self._v, self._out = layout, q, k, v, out
        self._scaling, self._count, self._rotate = scaling, count, rotate
        self._queries, self._since = queries, since

    @cached_property
    def _all_q(self) -> Tensor:
        return self._q if self._queries is None else self._queries()

    def visual_probs(self, rows: Rows, of: Tensor | None = None, heads: Heads = "each") -> Probabilities:
        asked = asked_rows(self._layout, rows, of)
        executed, each = product_flops(self._layout, asked.columns.shape[1], self._q.shape[1], self._q.shape[3])
        self._count(executed, charged(n_asked(self._layout, rows, of, asked), each))
        early = rows == "visual" if isinstance(rows, str) else rows.dtype == torch.long
        q = self._all_q if early else self._q
        return visual_probs(
            lambda columns: _gather_rows(q, columns), self._k, self._layout, asked, self._scaling, heads
        )

    @property
    def layout(self) -> TokenLayout:
        """Where the tokens of this layer stand; for observers, methods speak visual coordinates."""
        return self._layout

    def row_probs(self, asked: Gathered) -> Tensor:
        """(b, heads, r, n) float32: softmax of the asked rows over all columns; rows that are none hold column 0. Not
        charged to the trace."""
        early = bool((asked.valid & (asked.columns < self._since)).any())
        q = self._all_q if early else self._q
        return softmax_rows(_gather_rows(q, asked.columns), self._k, self._layout, asked, self._scaling)

    def _of_tokens(self, x: Tensor, tokens: Gathered) -> Tensor:
        return repeat_heads(_gather_rows(x, tokens.columns), self._q.shape[1]) * tokens.valid[:, None, :, None]

    def visual_values(self, heads: slice | None = None) -> Tensor:
        tokens = self._layout.visual_tokens
        if heads is None:
            return self._of_tokens(self._v, tokens)
        # the key-value head of each asked query head
        group = self._q.shape[1] // self._v.shape[1]
        of = torch.arange(self._q.shape[1], device=self._v.device)[heads] // group
        return _gather_rows(self._v[:, of], tokens.columns) * tokens.valid[:, None, :, None]

    def visual_keys(self) -> Tensor:
        return self._of_tokens(self._k, self._layout.visual_tokens)

    def after_keys(self) -> Tensor:
        return self._of_tokens(self._k, self._layout.after_tokens)

    def last_output(self) -> Tensor:
        return self._out[:, :, -1].clone()

    def rotated(self, vector: Tensor, at: Rows) -> Tensor:
        return self._rotate(vector, take(self._layout.positions, asked_rows(self._layout, at).columns))
