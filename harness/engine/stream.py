"""The residual stream at a boundary as a method sees it: copies by token kind, also under the final norm, and the
coming layer's attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from harness.engine import attention
from harness.engine.attention import CountScoring, Rotate
from harness.engine.layout import Gathered, TokenLayout, take
from harness.engine.readback import charged
from harness.method import Heads, Probabilities, Rows
from harness.models.adapters import Adapter


class BoundaryStream:
    """`harness.method.Stream`, gathered on demand: copies, so a method cannot reach the model's own stream."""

    def __init__(
        self,
        adapter: Adapter,
        layer: int,
        layout: TokenLayout,
        hidden: Callable[[], Tensor],
        count: CountScoring,
        rotate: Rotate,
        under_norm: bool = False,
    ) -> None:
        self._adapter, self._layer, self._layout, self._hidden = adapter, layer, layout, hidden
        self._count, self._rotate, self._under_norm = count, rotate, under_norm
        self._handed: list[tuple[str, Tensor, int]] = []

    @property
    def visual(self) -> Tensor:
        return self._copy("visual", self._layout.visual_tokens)

    @property
    def after(self) -> Tensor:
        return self._copy("after", self._layout.after_tokens)

    @property
    def after_valid(self) -> Tensor:
        return self._layout.after_tokens.valid.clone()

    @cached_property
    def normed(self) -> BoundaryStream:
        return BoundaryStream(
            self._adapter, self._layer, self._layout, self._hidden, self._count, self._rotate, under_norm=True
        )

    def coming_probs(
        self, rows: Rows = "last", of: Tensor | None = None, heads: Heads = "each", rotated: bool = True
    ) -> Probabilities:
        layout, adapter, layer, hidden = self._layout, self._adapter, self._layer, self._hidden()
        asked = attention.asked_rows(layout, rows, of)
        shape, n_rows = adapter.shape, attention.n_asked(layout, rows, of, asked)
        keys = adapter.keys(layer, hidden)
        if rotated:
            keys = self._rotate(keys, layout.positions)

        def queries(columns: Tensor) -> Tensor:
            vectors = adapter.queries(layer, take(hidden, columns))
            return self._rotate(vectors, take(layout.positions, columns)) if rotated else vectors

        a_key, a_query = (2 * shape.hidden * heads_ * shape.head_dim for heads_ in (shape.kv_heads, shape.heads))
        executed, each = attention.product_flops(layout, asked.columns.shape[1], shape.heads, shape.head_dim)
        executed += len(each) * (layout.n * a_key + asked.columns.shape[1] * a_query)
        self._count(executed, charged(n_rows, [cost + a_query for cost in each], [n * a_key for n in layout.counts]))
        return attention.visual_probs(queries, keys, layout, asked, adapter.scaling(layer), heads)

    def _copy(self, name: str, tokens: Gathered) -> Tensor:
        # inference tensors have no version counter, by which an edit in place is found without comparing values
        with torch.inference_mode(False), torch.no_grad():
            copy = self._gathered(tokens)
        self._handed.append((name, copy, copy._version))
        return copy

    def _gathered(self, tokens: Gathered) -> Tensor:
        states = take(self._hidden(), tokens.columns)
        if self._under_norm:
            states = self._adapter.text.norm(states)
        return states * tokens.valid[:, :, None]

    def edited(self) -> tuple[str, Tensor, Tensor] | None:
        """(name, what it is now, what it was) of a tensor that the method changed in place."""
        for name, copy, version in self._handed:
            if copy._version != version:
                return (
                    name,
                    copy,
                    self._gathered(self._layout.visual_tokens if name == "visual" else self._layout.after_tokens),
                )
        found = self.normed.edited() if "normed" in vars(self) else None
        return found and (f"normed.{found[0]}", *found[1:])
