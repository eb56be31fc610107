"""What the tokens up to the end of an image leave in a decoder, so that all questions about the image can start from it.

Attention is causal: until a method removes tokens, the streams, keys and values of the system prompt and the image do not depend on the
question. They are computed once per image (`EngineRun.capturing`) and put under every question (`EngineRun.share`), which then runs its
own tokens only, up to the first layer where its method reduces; from there on it runs what is left, as ever. A method that edits the
attention of visual rows has a prefix of its own (`Method.prefix_key`), and an edit other than the captured one ends the sharing at its layer.

Costs are unaffected: a trace says what the prompt alone would run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicLayer

from harness.method import AttentionEdit, Method, Run


@dataclass(frozen=True)
class Prefix:
    """The first `p` tokens of a prompt, its image's last token included, at each decoder layer.

    `ids (p,)`; per layer `hidden (p, d)` entering it, `keys` and `values (kv_heads, p, head_dim)` after RoPE, the `edits` of its visual
    rows and the causal pairs they `silenced`.
    """

    ids: Tensor
    hidden: Sequence[Tensor]
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    edits: Sequence[AttentionEdit | None]
    silenced: Sequence[int]

    @property
    def length(self) -> int:
        return int(self.ids.shape[0])

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for part in (self.hidden, self.keys, self.values) for t in part)


@dataclass(frozen=True)
class OnVisualRows(Method):
    """What a method does to a prefix: its attention edits, without its eyes and reductions."""

    inner: Method

    def edit_attention(self, run: Run, layer: int) -> Sequence[AttentionEdit]:
        return self.inner.edit_attention(run, layer)


class PrefixCache:
    """Prefixes by image and kind, least recently used out first; `limit` bytes. `captured` counts what was computed."""

    def __init__(self, limit: int = 4 << 30) -> None:
        self.limit, self.used, self.captured = limit, 0, 0
        self._items: OrderedDict[tuple[str, str], Prefix] = OrderedDict()

    def get(self, kind: str, images: Sequence[str], capture: Callable[[list[str]], list[Prefix]]) -> list[Prefix]:
        """The prefixes of `images`, in order; those that are missing come from one call of `capture`."""
        missing = [i for i in dict.fromkeys(images) if (kind, i) not in self._items]
        if missing:
            for image, prefix in zip(missing, capture(missing), strict=True):
                self._items[(kind, image)] = prefix
                self.used += prefix.nbytes
            self.captured += len(missing)
        found = []
        for image in images:
            self._items.move_to_end((kind, image))
            found.append(self._items[(kind, image)])
        wanted = {(kind, i) for i in images}
        while self.used > self.limit and len(self._items) > len(wanted):
            oldest = next(iter(self._items))
            if oldest in wanted:
                break
            self.used -= self._items.pop(oldest).nbytes
        return found

    def clear(self) -> None:
        """Forget everything: the next images are others."""
        self._items.clear()
        self.used = 0


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's cache with room to grow: a decode step writes one column instead of copying all of them."""

    def __init__(self, room: int = 8) -> None:
        super().__init__()
        self._room, self._length = room, 0
        self._buffers: tuple[Tensor, Tensor] | None = None

    def start(self, like: Tensor, length: int, fill: Callable[[Tensor, Tensor], None], more: int) -> None:
        """Begin with `length` columns that `fill(keys, values)` writes; `more` columns are coming next."""
        self._allocate(like, length + more)
        assert self._buffers is not None
        fill(self._buffers[0][:, :, :length], self._buffers[1][:, :, :length])
        self._length = length
        self._publish(like)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        end = self._length + key_states.shape[-2]
        if self._buffers is None:
            self._allocate(key_states, end)
        elif end > self._buffers[0].shape[2]:
            old = self._buffers
            self._room *= 4
            self._allocate(key_states, end)
            assert self._buffers is not None
            for new, was in zip(self._buffers, old, strict=True):
                new[:, :, : self._length] = was[:, :, : self._length]
        assert self._buffers is not None
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self._length : end] = states
        self._length = end
        self._publish(key_states)
        return self.keys, self.values

    def _allocate(self, like: Tensor, length: int) -> None:
        b, heads, _, d = like.shape
        self._buffers = (like.new_empty(b, heads, length + self._room, d), like.new_empty(b, heads, length + self._room, d))

    def _publish(self, like: Tensor) -> None:
        assert self._buffers is not None
        self.keys, self.values = (x[:, :, : self._length] for x in self._buffers)
        self.dtype, self.device, self.is_initialized = like.dtype, like.device, True


def roomy_cache(depth: int) -> Cache:
    """An empty cache of `depth` layers."""
    return Cache(layers=[RoomyLayer() for _ in range(depth)])


class Shared:
    """A batch whose prompts start with known prefixes: which columns are run (the `window`, as wide as the longest question) and
    what stands under the others.

    Prompts are left-padded to one width n. The window is the last w columns; rows with shorter questions have the end of their prefix in it,
    whose stream is set anew from the prefix at every layer.
    """

    def __init__(self, prefixes: Sequence[Prefix], valid: Tensor) -> None:
        lengths = [int(x) for x in valid.sum(1).tolist()]
        self.prefixes = list(prefixes)
        self.n = int(valid.shape[1])
        self.window = max(n - p.length for n, p in zip(lengths, prefixes, strict=True))
        self.pads = [self.n - n for n in lengths]
        #: per row, prefix tokens under the window (`under`) and inside it (`inside`)
        self.inside = [self.window - (n - p.length) for n, p in zip(lengths, prefixes, strict=True)]
        self.under = [p.length - i for p, i in zip(prefixes, self.inside, strict=True)]
        # neighbouring rows with the same prefix and padding are filled by one broadcast copy
        self.groups: list[tuple[int, int]] = []
        for row in range(len(prefixes)):
            if row and prefixes[row] is prefixes[row - 1] and self.pads[row] == self.pads[row - 1]:
                self.groups[-1] = (self.groups[-1][0], row + 1)
            else:
                self.groups.append((row, row + 1))
        self._mask: Tensor | None = None
        self._valid = valid

    @property
    def mask(self) -> Tensor:
        """(b or 1, 1, window, n) bool: what the window's rows may attend."""
        if self._mask is None:
            device = self._valid.device
            row = torch.arange(self.n - self.window, self.n, device=device)
            allowed = torch.arange(self.n, device=device)[None] <= row[:, None]
            self._mask = (allowed[None] if not any(self.pads) else allowed[None] & self._valid[:, None, :])[:, None]
        return self._mask

    def fill(self, layer: int) -> Callable[[Tensor, Tensor], None]:
        """Writes the keys and values of the columns before the window."""

        def write(keys: Tensor, values: Tensor) -> None:
            for start, end in self.groups:
                pad, under, prefix = self.pads[start], self.under[start], self.prefixes[start]
                for buffer, known in ((keys, prefix.keys[layer]), (values, prefix.values[layer])):
                    buffer[start:end, :, :pad] = 0  # masked, but 0 x nan would be nan
                    buffer[start:end, :, pad:] = known[:, :under]

        return write

    def corrected(self, layer: int, hidden: Tensor) -> Tensor:
        """The window's stream `hidden (b, w, d)` entering `layer` with its prefix tokens from the prefix."""
        if not any(self.inside):
            return hidden
        hidden = hidden.clone()
        for row, (inside, under, prefix) in enumerate(zip(self.inside, self.under, self.prefixes, strict=True)):
            hidden[row, :inside] = prefix.hidden[layer][under:]
        return hidden

    def whole(self, layer: int, hidden: Tensor) -> Tensor:
        """(b, n, d): the stream of all columns entering `layer`, padding zero."""
        out = hidden.new_zeros(hidden.shape[0], self.n, hidden.shape[2])
        out[:, self.n - self.window :] = hidden
        for start, end in self.groups:
            pad, under = self.pads[start], self.under[start]
            out[start:end, pad : pad + under] = self.prefixes[start].hidden[layer][:under]
        return out

    def widened(self, x: Tensor) -> Tensor:
        """(b, heads, w, d) of the window's rows -> (b, heads, n, d), zero elsewhere."""
        out = x.new_zeros(x.shape[0], x.shape[1], self.n, x.shape[3])
        out[:, :, self.n - self.window :] = x
        return out

    def knows(self, layer: int, edit: AttentionEdit | None) -> bool:
        """Was every row's prefix captured under this edit of its visual rows?"""
        return all(_same(p.edits[layer], edit, row) for row, p in enumerate(self.prefixes))


def visual_edit(edits: Sequence[AttentionEdit]) -> AttentionEdit | None:
    """The edit of the visual rows among those of one layer."""
    return next((e for e in edits if e.rows == "visual"), None)


def one_row(edit: AttentionEdit | None, row: int) -> AttentionEdit | None:
    """A batch's edit as the edit of one of its rows."""
    if edit is None:
        return None
    cols = None if edit.cols is None else edit.cols[row : row + 1].clone()
    sink = int(edit.sink[row]) if isinstance(edit.sink, Tensor) else edit.sink
    return AttentionEdit(edit.rows, cols, edit.how, sink=sink)


def _same(known: AttentionEdit | None, edit: AttentionEdit | None, row: int) -> bool:
    mine = one_row(edit, row)
    if known is None or mine is None:
        return known is mine
    if known.how != mine.how or (known.how == "redirect" and known.sink != mine.sink):
        return False
    if known.cols is None or mine.cols is None:
        return known.cols is mine.cols
    width = known.cols.shape[1]
    return bool((known.cols == mine.cols[:, :width]).all()) and not bool(mine.cols[:, width:].any())
