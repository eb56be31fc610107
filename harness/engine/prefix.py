"""The states of an image in a decoder, computed once; all questions about the image start from them.

Attention is causal: until a method removes tokens, the streams, keys and values of the system prompt and the image do
not depend on the question. They are computed once per image (`EngineRun.capturing`) and put under every question
(`EngineRun.share`), which then runs its own tokens only, up to the first layer where its method reduces; from there on
it runs what is left, as ever. A method that edits the attention of visual rows has a prefix of its own
(`Method.prefix_key`), and an edit other than the captured one ends the sharing at its layer.

Methods that depend on the image only (`Traits.image_only`) and reduce before the first layer get a cached prefix of
their own, already reduced. If a question reduces in another way, sharing ends at that layer: a wrong declaration costs
time and changes no answer. Image-only methods that reduce at a later layer share the common prefix up to that layer: an
extra prefill per image would cost more than the few questions about the image save.

Costs are unaffected: a trace says what the prompt alone would run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicLayer

from harness.core.errors import PrunebenchError
from harness.core.shape import ImageShape, ModelShape, PromptShape
from harness.engine.layout import Reduced, take
from harness.method import Attention, AttentionEdit, Method, Reduction, Run, Stream, TowerLook, source_of


@dataclass(frozen=True)
class ReducedPrefix:
    """A reduction of a prefix: the `stream (p, d)` before it, and of the tokens it left the `source (p',)`, their place
    in that stream or -1 for added ones, and the RoPE `positions (p', axes)`.
    """

    stream: Tensor
    source: Tensor
    positions: Tensor


@dataclass(frozen=True)
class LayerBlock:
    """Layers of a prefix that hold the same p tokens, from layer `first` on: the `hidden (layers, p, d)` that they run
    on, and `keys_values (2, layers, kv_heads, p, head_dim)` after RoPE. In one piece, so that one copy serves all
    layers."""

    first: int
    hidden: Tensor
    keys_values: Tensor

    @property
    def end(self) -> int:
        return self.first + int(self.hidden.shape[0])


@dataclass(frozen=True)
class Prefix:
    """The first `p` tokens of a prompt, its image's last token included, at each decoder layer; fewer from a reduction
    on.

    `ids (p,)`, the `images` whose tokens are among them, and the tokens' RoPE `positions (p, axes)`. `deepstack`: per
    early layer the `(v, d)` that the model adds behind it to the visual tokens. `blocks`: the layers' states in order.
    Per layer: `edits` are those of its visual rows, `silenced` counts the causal pairs that they take. Of layers with a
    reduction, `reduced` says what it did.
    """

    ids: Tensor
    images: tuple[ImageShape, ...]
    positions: Tensor
    deepstack: Sequence[Tensor]
    blocks: Sequence[LayerBlock]
    edits: Sequence[AttentionEdit | None]
    silenced: Sequence[int]
    reduced: Mapping[int, ReducedPrefix]

    @property
    def length(self) -> int:
        return int(self.ids.shape[0])

    @property
    def nbytes(self) -> int:
        states = [part for block in self.blocks for part in (block.hidden, block.keys_values)]
        return sum(
            t.nbytes for part in (self.deepstack, states, [r.stream for r in self.reduced.values()]) for t in part
        )

    def block(self, layer: int) -> LayerBlock:
        """The block of a layer."""
        return next(block for block in self.blocks if layer < block.end)

    def hidden(self, layer: int) -> Tensor:
        """(p, d): the stream that a layer runs on."""
        block = self.block(layer)
        return block.hidden[layer - block.first]


@dataclass(frozen=True)
class OnVisualRows(Method):
    """What a method does to a prefix: its attention edits, without its eyes and reductions."""

    inner: Method

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.inner.name)

    def edit_attention(self, run: Run, layer: int) -> Sequence[AttentionEdit]:
        return self.inner.edit_attention(run, layer)


@dataclass(frozen=True)
class OnImage(OnVisualRows):
    """As OnVisualRows for a method that reduces by the image alone: with its eyes and reductions."""

    def looks(self, shape: ModelShape) -> Sequence[TowerLook]:
        return self.inner.looks(shape)

    def on_image(self, run: Run, tower: Mapping[TowerLook, Tensor]) -> None:
        self.inner.on_image(run, tower)

    def on_attention(self, run: Run, layer: int, attn: Attention) -> None:
        self.inner.on_attention(run, layer, attn)

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        return self.inner.at_boundary(run, layer, stream)


def on_prefix(method: Method, usual: PromptShape) -> Method:
    """What is attached while a prefix of `method` (as `for_model` made it) is captured; `usual`: a prompt as the model
    is asked them."""
    if method.image_only:
        plan = method.plan(usual.with_text(1))
        if plan is None or plan[0] < usual.n_visual:
            return OnImage(method)
    return OnVisualRows(method) if method.prefix_key() else Method()


def prefix_kind(method: Method, usual: PromptShape, positions: str) -> str:
    """Names the prefixes that questions to this method (as `for_model` made it) start from; methods of one kind share
    them."""
    if not isinstance(on_prefix(method, usual), OnImage):
        return method.prefix_key()
    return f"{method.name} {source_of(type(method))} {sorted(method.knobs().items())} {positions}"


def reach(method: Method, usual: PromptShape) -> int:
    """The layer at which a method (as `for_model` made it) first reduces, as its plan says; 0 where it does not say."""
    try:
        plan = method.plan(usual.with_text(1))
    except PrunebenchError:  # knobs that fit the asked prompts only; this is no more than how much is copied at once
        plan = None
    if plan is None:
        return 0
    return next((layer for layer, n in enumerate(plan) if n < usual.n_visual), len(plan))


class PrefixCache:
    """Prefixes by image and kind, least recently used out first; `limit` bytes. `captured` counts what was computed."""

    def __init__(self, limit: int = 4 << 30) -> None:
        self.limit, self.used, self.captured = limit, 0, 0
        self._items: OrderedDict[tuple[str, str], Prefix] = OrderedDict()

    def knows(self, kind: str, image: str) -> bool:
        """Whether the prefix of an image is here."""
        return (kind, image) in self._items

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


class Started(NamedTuple):
    """A layer's cache whose first columns are there, keys and values each: the whole `buffers (b, heads, columns, d)`,
    the `window` of columns that comes next, and what is `seen (b, heads, n, d)` with the window."""

    buffers: tuple[Tensor, Tensor]
    window: tuple[Tensor, Tensor]
    seen: tuple[Tensor, Tensor]


#: columns of a cache beside those of the prompt
ROOM = 8
#: layers that are made ready together where nobody says how far sharing will go
LAYERS_AT_ONCE = 8


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's cache with room to grow: a decode step writes one column instead of copying all of them."""

    def __init__(self, room: int = ROOM) -> None:
        super().__init__()
        self._room, self._length = room, 0
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._started: Started | None = None

    def start(self, started: Started) -> None:
        """Begin with columns that are there already."""
        self._started, self._buffers = started, started.buffers

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self._started is not None:
            for window, states in zip(self._started.window, (key_states, value_states), strict=True):
                window.copy_(states)
            seen, self._started = self._started.seen, None
            self._length = seen[0].shape[2]
            self._publish(seen, key_states)
            return self.keys, self.values
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
        keys, values = self._buffers
        self._publish((keys[:, :, :end], values[:, :, :end]), key_states)
        return self.keys, self.values

    def _allocate(self, like: Tensor, length: int) -> None:
        b, heads, _, d = like.shape
        self._buffers = (
            like.new_empty(b, heads, length + self._room, d),
            like.new_empty(b, heads, length + self._room, d),
        )

    def _publish(self, seen: tuple[Tensor, Tensor], like: Tensor) -> None:
        self.keys, self.values = seen
        self.dtype, self.device, self.is_initialized = like.dtype, like.device, True


def roomy_cache(depth: int) -> Cache:
    """An empty cache of `depth` layers."""
    return Cache(layers=[RoomyLayer() for _ in range(depth)])


class _Ready(NamedTuple):
    """The layers from `first` to before `end` of a batch that shares its prefixes: their `caches`, and per layer the
    `streams (b, w, d)` of the window, of its prefix tokens only."""

    first: int
    end: int
    caches: Sequence[Started]
    streams: Sequence[Tensor]


class Shared:
    """A batch whose prompts start with known prefixes: which columns are run (the `window`, as wide as the longest
    question) and what stands under the others.

    Prompts are left-padded to one width n: `valid (b, n)` bool, with `lengths` tokens a row. The window is the last w
    columns; rows with shorter questions have the end of their prefix in it, whose stream is set anew from the prefix at
    every layer. `reach`: the layer before which sharing is expected to end; its states are copied to the batch at once.
    `since`: the layer whose reduction left these columns, -1 for none.
    """

    def __init__(
        self, prefixes: Sequence[Prefix], valid: Tensor, lengths: Sequence[int], reach: int = 0, since: int = -1
    ) -> None:
        self.since = since
        known = [p.hidden(max(since, 0)).shape[0] if since >= 0 else p.length for p in prefixes]
        self.prefixes = list(prefixes)
        self.n = int(valid.shape[1])
        self.window = max(n - p for n, p in zip(lengths, known, strict=True))
        self.pads = [self.n - n for n in lengths]
        #: per row, prefix tokens under the window (`under`) and inside it (`inside`)
        self.inside = [self.window - (n - p) for n, p in zip(lengths, known, strict=True)]
        self.under = [p - i for p, i in zip(known, self.inside, strict=True)]
        # neighbouring rows with the same prefix and padding are filled by one broadcast copy
        self.groups: list[tuple[int, int]] = []
        for row in range(len(prefixes)):
            if row and prefixes[row] is prefixes[row - 1] and self.pads[row] == self.pads[row - 1]:
                self.groups[-1] = (self.groups[-1][0], row + 1)
            else:
                self.groups.append((row, row + 1))
        self._mask: Tensor | None = None
        self._valid = valid
        self._reach = reach
        self._ready: _Ready | None = None

    def _entering(self, prefix: Prefix, layer: int) -> Tensor:
        """The prefix's stream entering `layer` in these columns: before a reduction there, unless it is the one that
        left them."""
        reduced = prefix.reduced.get(layer)
        return prefix.hidden(layer) if reduced is None or layer == self.since else reduced.stream

    def reduced(self, layer: int, after: Reduced, added: Tensor | None) -> Shared | None:
        """The same batch behind a reduction with `added (b, m, d)` tokens; None where the prefixes were not reduced
        at this layer."""
        if any(layer not in p.reduced for p in self.prefixes):
            return None
        reach = min(p.block(layer).end for p in self.prefixes)
        shared = Shared(self.prefixes, after.layout.valid, after.layout.counts, reach, layer)
        if (shared.window, shared.inside) != (self.window, self.inside) or min(shared.under) < 0:
            return None
        for start, end in shared.groups:
            prefix, known = shared.prefixes[start], shared.prefixes[start].reduced[layer]
            at = slice(shared.pads[start], shared.pads[start] + len(known.source))
            columns, positions = after.source[start:end, at], after.layout.positions[start:end, at]
            old = columns < self.n
            places = torch.where(old, columns - torch.tensor(self.pads[start:end], device=columns.device)[:, None], -1)
            if not bool((places == known.source).all() & (positions == known.positions).all()):
                return None
            new = known.source < 0
            if added is not None and bool(new.any()):
                values = take(added[start:end], columns[:, new] - self.n)
                if not _close(values, prefix.hidden(layer)[new]):
                    return None
        return shared

    def goes_on(self, layer: int) -> bool:
        """Were no prefixes reduced at `layer`, or was this left by it?"""
        return layer == self.since or all(layer not in p.reduced for p in self.prefixes)

    @property
    def positions(self) -> Tensor:
        """(b, n, axes): a prefix stands where it was captured; text behind an image counts on by one, on every axis."""
        known = pad_sequence([prefix.positions for prefix in self.prefixes], batch_first=True, padding_value=-1)
        length = (known[:, :, 0] >= 0).sum(1)[:, None]
        place = torch.arange(self.n, device=known.device) - (~self._valid).sum(1)[:, None]
        behind = known.amax((1, 2))[:, None] + 1 + place - length
        there = take(known, place.clamp(0, known.shape[1] - 1))
        return torch.where((place < length)[:, :, None], there, behind[:, :, None]) * (place >= 0)[:, :, None]

    @property
    def mask(self) -> Tensor:
        """(b or 1, 1, window, n) bool: what the window's rows may attend."""
        if self._mask is None:
            device = self._valid.device
            row = torch.arange(self.n - self.window, self.n, device=device)
            allowed = torch.arange(self.n, device=device)[None] <= row[:, None]
            self._mask = (allowed[None] if not any(self.pads) else allowed[None] & self._valid[:, None, :])[:, None]
        return self._mask

    def started(self, layer: int) -> Started:
        """The cache of a layer with the keys and values of the columns before the window."""
        ready = self._ready
        if ready is None or not ready.first <= layer < ready.end:
            ready = self._made_ready(layer)
        return ready.caches[layer - ready.first]

    def _made_ready(self, layer: int) -> _Ready:
        """The states of the coming layers in the columns of this batch, with few operations for all of them."""
        blocks = [prefix.block(layer) for prefix in self.prefixes]
        end = min(self._reach if layer < self._reach else layer + LAYERS_AT_ONCE, *(block.end for block in blocks))
        like, width, before = blocks[0], blocks[0].hidden.shape[2], self.n - self.window
        heads, head_dim = like.keys_values.shape[2], like.keys_values.shape[4]
        both = like.keys_values.new_empty(2, end - layer, len(blocks), heads, self.n + ROOM, head_dim)
        both[..., : max(self.pads), :].zero_()  # masked, but 0 x nan would be nan
        inside = like.hidden.new_empty(end - layer, len(blocks), self.window, width)
        rows, streams = both.unbind(2), inside.unbind(1)
        for row, (block, pad, under) in enumerate(zip(blocks, self.pads, self.under, strict=True)):
            hidden, known = block.hidden, block.keys_values
            if (layer, end) != (block.first, block.end):
                these = slice(layer - block.first, end - block.first)
                hidden, known = hidden[these], known[:, these]
            rows[row][..., pad : pad + under, :].copy_(known[..., :under, :])
            if self.inside[row]:
                streams[row][:, : self.inside[row]].copy_(hidden[:, under:])
        parts = (both, both[..., before : self.n, :], both[..., : self.n, :])
        caches = zip(*(zip(*(x.unbind() for x in part.unbind()), strict=True) for part in parts), strict=True)
        self._ready = _Ready(layer, end, [Started(*of) for of in caches], inside.unbind())
        return self._ready

    def corrected(self, layer: int, hidden: Tensor) -> Tensor:
        """The window's stream `hidden (b, w, d)` entering `layer` with its prefix tokens from the prefix."""
        if not any(self.inside):
            return hidden
        ready, reduces = self._ready, layer != self.since and any(layer in p.reduced for p in self.prefixes)
        if not reduces and layer < self._reach and (ready is None or layer >= ready.end):
            ready = self._made_ready(layer)
        if reduces or ready is None or layer >= ready.end:  # sharing may end here
            hidden = hidden.clone()
            for row, (inside, under, prefix) in enumerate(zip(self.inside, self.under, self.prefixes, strict=True)):
                hidden[row, :inside] = self._entering(prefix, layer)[under:]
            return hidden
        return torch.where(self._in_prefix, ready.streams[layer - ready.first], hidden)

    @cached_property
    def _in_prefix(self) -> Tensor:
        """(b, w, 1) bool: the columns of the window that hold prefix tokens."""
        device, known = self._valid.device, [u + i for u, i in zip(self.under, self.inside, strict=True)]
        # equal lengths are no tensor, which would be an upload
        length = torch.tensor(known, device=device)[:, None] if len(set(known)) > 1 else known[0]
        place = torch.arange(self.n - self.window, self.n, device=device) - (~self._valid).sum(1)[:, None]
        return (place < length)[:, :, None]

    def whole(self, layer: int, hidden: Tensor) -> Tensor:
        """(b, n, d): the stream of all columns entering `layer`, padding zero."""
        out = hidden.new_zeros(hidden.shape[0], self.n, hidden.shape[2])
        out[:, self.n - self.window :] = hidden
        for start, end in self.groups:
            pad, under = self.pads[start], self.under[start]
            out[start:end, pad : pad + under] = self._entering(self.prefixes[start], layer)[:under]
        return out

    def queries(self, layer: int, q: Tensor, positions: Tensor, project: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """(b, heads, n, d): queries of all columns in `layer`, those of the window being `q (b, heads, w, d)` and
        padding zero. `project(stream (1, u, d), positions (1, u, axes))` makes those of a prefix, once for neighbours
        that share it."""
        out = self.widened(q)
        for start, end in self.groups:
            pad, under = self.pads[start], self.under[start]
            stream = self._entering(self.prefixes[start], layer)[None, :under]
            out[start:end, :, pad : pad + under] = project(stream, positions[start : start + 1, pad : pad + under])
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


def one_row(edit: AttentionEdit | None, row: int, visual: int | None = None) -> AttentionEdit | None:
    """A batch's edit as the edit of one of its rows, which has so many visual tokens."""
    if edit is None:
        return None
    cols = None if edit.cols is None else edit.cols[row : row + 1, :visual].clone()
    sink = int(edit.sink[row]) if isinstance(edit.sink, Tensor) else edit.sink
    return AttentionEdit(edit.rows, cols, edit.how, sink=sink)


def _close(added: Tensor, known: Tensor) -> bool:
    """Are merged tokens those of the prefix, up to the rounding of another batch?"""
    tolerance = 1e-5 if known.dtype == torch.float32 else 2 * torch.finfo(known.dtype).eps
    return bool(torch.allclose(added.to(known.dtype), known.expand_as(added), rtol=tolerance, atol=tolerance))


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
