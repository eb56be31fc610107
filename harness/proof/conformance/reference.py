"""A pass from scratch over the tokens that a method kept, as plain loops: the engine must agree with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from harness.core.shape import ModelShape
from harness.engine.contract import changed_pixels
from harness.method import AttentionEdit, Method, Reduction
from harness.models.adapters import Adapter, adapter_for
from harness.proof.conformance.tiny import IMAGE_TOKEN, N_VISUAL, KitPrompt

# ------------------------------------------------------------------------------------------------------------ reference


@dataclass
class Decisions:
    """What a method returned in one prefill, by layer."""

    reductions: dict[int, Reduction] = field(default_factory=dict)
    edits: dict[int, Sequence[AttentionEdit]] = field(default_factory=dict)
    hidden: dict[int, Tensor] = field(default_factory=dict)


class Spy:
    """Stands in for a method, passes everything on, and runs `watch(hook, layer, returned)` after each hook."""

    def __init__(self, method: Method, watch: Callable[[str, int, Any], None]) -> None:
        self._method, self._watch = method, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def for_model(self, shape: ModelShape) -> Spy:
        return Spy(self._method.for_model(shape), self._watch)

    def _passed_on(self, hook: str, run: Any, layer: int, *rest: Any) -> Any:
        returned = getattr(self._method, hook)(run, layer, *rest)
        self._watch(hook, layer, returned)
        return returned

    def edit_attention(self, run: Any, layer: int) -> Any:
        return self._passed_on("edit_attention", run, layer)

    def on_attention(self, run: Any, layer: int, attn: Any) -> Any:
        return self._passed_on("on_attention", run, layer, attn)

    def hide_in_decode(self, run: Any, layer: int) -> Any:
        return self._passed_on("hide_in_decode", run, layer)

    def at_boundary(self, run: Any, layer: int, stream: Any) -> Any:
        return self._passed_on("at_boundary", run, layer, stream)


def spied(method: Method, decided: Decisions) -> Method:
    """`method`, writing down what it returns."""

    def watch(hook: str, layer: int, returned: Any) -> None:
        if hook == "at_boundary" and returned is not None:
            decided.reductions[layer] = returned
        elif hook == "edit_attention" and returned:
            decided.edits[layer] = returned
        elif hook == "hide_in_decode" and returned is not None:
            decided.hidden[layer] = returned

    return cast(Method, Spy(method, watch))


def bomb(method: Method, hook: str, layer: int) -> Method:
    """`method`, whose `hook` raises RuntimeError at `layer`."""

    def watch(at_hook: str, at_layer: int, _returned: Any) -> None:
        if (at_hook, at_layer) == (hook, layer):
            raise RuntimeError("raised by the conformance kit")

    return cast(Method, Spy(method, watch))


class Referred(NamedTuple):
    """`logits (1 + steps, vocab)`, tokens per layer, and visual tokens per layer by number (-2: added)."""

    logits: Tensor
    lengths: list[int]
    origins: list[list[int]]


@dataclass
class Token:
    """A token of a pass from scratch."""

    origin: int  # a visual token's number in the prompt, -2 if added by the method, -1 for text
    position: tuple[int, ...]  # one number an axis of the decoder's rotary positions
    behind: bool  # text behind the image
    image: int = -1  # of a visual token of the prompt


class Start(NamedTuple):
    """What enters a decoder: the stream `x (n + next, d)` of a prompt and of the tokens fed behind it, and the prompt's
    tokens.

    `deepstack`: per early layer (v, d), what is added behind it to the visual tokens of the prompt.
    """

    x: Tensor
    tokens: list[Token]
    deepstack: Sequence[Tensor] = ()


#: `x (..., n, head_dim)` under the decoder's RoPE
Turned = Callable[[Tensor], Tensor]
#: the same at positions (n, axes)
Turn = Callable[[Tensor], Turned]


@dataclass(frozen=True)
class Inside:
    """One layer of a pass from scratch, prompt tokens only.

    The stream `x (n, d)` that enters it after a reduction; rotated `q`, `k` and `v (heads, n, head_dim)` with grouped
    heads repeated; probabilities `probs (heads, n, n)` before any edit; attention outputs `out (n, heads x head_dim)`.
    """

    tokens: list[Token]
    x: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    probs: Tensor
    out: Tensor


Visit = Callable[[int, list[Token], Tensor, Inside], None]


@torch.inference_mode()
def reference(
    model: Any, asked: KitPrompt, method: Method, decided: Decisions, policy: str, visit: Visit | None = None
) -> Referred:
    """The same prompt and next tokens from scratch: one pass over all layers with the full probability matrix and no KV
    cache.

    It drops, adds and edits what `decided` says. `policy`: "method" as the reductions say, "original" or "compact".
    `visit` is called for each layer with the tokens and their stream before a reduction there, and what the layer did.
    """
    adapter = adapter_for(model)
    pixels = asked.pixels.to(model.dtype)
    changed = changed_pixels(method, pixels, adapter.one_size)
    features = [image.pooled for image in adapter.encode(pixel_values=pixels if changed is None else changed)]
    image = [i for i, t in enumerate(asked.ids) if t == IMAGE_TOKEN]
    x = model.get_input_embeddings()(torch.tensor(asked.ids + asked.next_ids))
    x[image] = torch.cat(features).to(x.dtype)
    number = {column: i for i, column in enumerate(image)}
    tokens = []
    for i in range(len(asked.ids)):
        origin = number.get(i, -1)
        tokens.append(Token(origin, (i,), i > image[-1], origin // N_VISUAL))
    return walked(adapter, Start(x, tokens), decided, policy, partial(turned, model), visit)


def walked(
    adapter: Adapter, start: Start, decided: Decisions, policy: str, turn: Turn, visit: Visit | None = None
) -> Referred:
    """`reference` from what enters the decoder; `turn` is the model's RoPE."""
    x, tokens = start.x, start.tokens
    n_prompt, steps = len(tokens), x.shape[0] - len(tokens)
    last = max(decided.reductions, default=None)
    decode = "original" if last is None else decided.reductions[last].decode_positions
    if policy != "method":
        decode = "original" if policy == "original" else "per_layer"
    final = n_prompt
    for reduction in decided.reductions.values():
        final += _n_added(reduction) - int((~reduction.keep[0]).sum())
    ends = {
        "original": tuple(p + 1 for p in tokens[-1].position),
        "compact": (final,),
    }
    lengths, origins = [], []
    for index in range(len(adapter.layers)):
        if 0 < index <= len(start.deepstack):
            here = [i for i, t in enumerate(tokens) if t.origin >= 0]
            more_of = start.deepstack[index - 1][[tokens[i].origin for i in here]]
            x = x.index_add(0, torch.tensor(here, dtype=torch.long), more_of.to(x.dtype))
        before = tokens, x[: len(tokens)]
        if index in decided.reductions:
            x, tokens = _reduced(x, tokens, decided.reductions[index], policy)
        n = len(tokens)
        base = ends.get(decode, (n,))
        later = [tuple(p + step for p in base) for step in range(steps)]
        positions = torch.tensor([t.position for t in tokens] + later)
        edits, hidden = decided.edits.get(index, ()), decided.hidden.get(index)
        x, inside = _layer(adapter, index, x, turn(positions), tokens, edits, hidden)
        if visit is not None:
            visit(index, *before, inside)
        lengths.append(n)
        origins.append([t.origin for t in tokens if t.origin != -1])
    logits: Tensor = adapter.head(adapter.text.norm(x[len(tokens) - 1 :]))
    return Referred(logits.float(), lengths, origins)


def _n_added(reduction: Reduction) -> int:
    return sum(len(real(tokens, valid)) for tokens, valid in more(reduction))


def more(reduction: Reduction) -> tuple[tuple[Tensor | None, Tensor | None], ...]:
    return (reduction.added, reduction.added_valid), (reduction.front, reduction.front_valid)


def real(tokens: Tensor | None, valid: Tensor | None) -> Tensor:
    """(m, d): the added tokens of the first row that are real."""
    if tokens is None:
        return torch.zeros(0)
    return tokens[0] if valid is None else tokens[0][valid[0]]


def _reduced(x: Tensor, tokens: list[Token], reduction: Reduction, policy: str) -> tuple[Tensor, list[Token]]:
    visual = [i for i, t in enumerate(tokens) if t.origin != -1]
    kept = [i for i, keep in zip(visual, reduction.keep[0].tolist(), strict=True) if keep]
    if reduction.values is not None:
        x = x.clone()
        x[visual] = reduction.values[0, : len(visual)].to(x.dtype)
    in_order = kept
    if reduction.order is not None:
        rank = dict(zip(visual, reduction.order[0].tolist(), strict=True))
        in_order = sorted(kept, key=lambda i: rank[i])  # stable: equal ones stay in their old order
    text = [i for i, t in enumerate(tokens) if t.origin == -1]
    # text between images stays between the columns of the kept tokens around it
    moved = dict(zip(kept, in_order, strict=True))
    out = [(float(i), x[moved.get(i, i)], tokens[moved.get(i, i)]) for i in sorted([*text, *kept])]
    for behind, (new, valid), image in (
        (False, (reduction.front, reduction.front_valid), reduction.front_image),
        (True, (reduction.added, reduction.added_valid), reduction.added_image),
    ):
        if new is None:
            continue
        for slot, token in enumerate(new[0].to(x.dtype)):
            if valid is not None and not valid[0, slot]:
                continue
            mine = [i for i in visual if image is None or tokens[i].image == int(image[0, slot])]
            stay = [i for i in mine if i in moved]
            # behind the last kept one at the position after it, before the first one where the first visual token
            # stood, or there if none is kept
            if behind and stay:
                place, position = stay[-1] + 0.5, tuple(p + 1 for p in tokens[stay[-1]].position)
            else:
                at = stay[0] if stay else mine[0]
                place, position = at - (0.25 if behind else 0.5), tokens[mine[0]].position
            out.append((place, token, Token(-2, position, False)))
    out.sort(key=lambda item: item[0])  # stable
    after = [token for _, _, token in out]
    if policy == "compact" or (policy == "method" and reduction.positions == "compact"):
        after = [dataclasses.replace(t, position=(i,)) for i, t in enumerate(after)]
    return torch.cat([torch.stack([row for _, row, _ in out]), x[len(tokens) :]]), after


def projected(adapter: Adapter, layer: int, x: Tensor, turn: Turned) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys under `turn`, and values, of `x (n, d)` in a decoder layer, each (heads, n, head_dim) float32,
    grouped heads repeated."""
    q, k, v = (part(layer, x[None])[0].float() for part in (adapter.queries, adapter.keys, adapter.values))
    groups = q.shape[0] // k.shape[0]
    return turn(q), turn(k).repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)


def causal_probs(q: Tensor, k: Tensor) -> Tensor:
    """(heads, n, n): softmax of QK^T over earlier keys."""
    scores: Tensor = (q @ k.transpose(1, 2)) / q.shape[-1] ** 0.5
    return scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), float("-inf")).softmax(-1)


def _layer(
    adapter: Adapter,
    index: int,
    x: Tensor,
    turn: Turned,
    tokens: list[Token],
    edits: Sequence[AttentionEdit],
    hidden: Tensor | None,
) -> tuple[Tensor, Inside]:
    total, n = x.shape[0], len(tokens)
    q, k, v = projected(adapter, index, x, turn)
    scores = (q @ k.transpose(1, 2)) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(torch.ones(total, total, dtype=torch.bool).triu(1), float("-inf"))
    untouched = scores[:, :n, :n].softmax(-1)
    visual = torch.tensor([i for i, t in enumerate(tokens) if t.origin != -1], dtype=torch.long)
    if hidden is not None:
        scores[:, n:, visual[hidden[0]]] = float("-inf")
    rows = {"visual": visual, "after": torch.tensor([i for i, t in enumerate(tokens) if t.behind], dtype=torch.long)}
    columns = [visual if e.cols is None else visual[e.cols[0]] for e in edits]
    for edit, cols in zip(edits, columns, strict=True):
        if edit.how == "mask":
            scores[:, rows[edit.rows][:, None], cols] = float("-inf")
    probs = scores.softmax(-1)
    for edit, cols in zip(edits, columns, strict=True):
        if edit.how in ("zero", "redirect"):
            at = rows[edit.rows][:, None]
            mass = probs[:, at, cols].sum(-1)
            probs[:, at, cols] = 0.0
            if edit.how == "redirect":
                probs[:, rows[edit.rows], int(visual[edit.sink])] += mass
    out = (probs @ v).transpose(0, 1).reshape(total, -1).to(x.dtype)
    inside = Inside(tokens, x[:n], q[:, :n], k[:, :n], v[:, :n], untouched, out[:n])
    x = x + adapter.attention_output(index, out)
    return x + adapter.feed_forward(index, x), inside


def turned(model: Any, positions: Tensor) -> Turned:
    """RoPE on one axis, of float32, at `positions (n, 1)`."""
    theta = adapter_for(model).text.config.rope_parameters["rope_theta"]

    def turn(x: Tensor) -> Tensor:
        angles = positions * theta ** -(torch.arange(0, x.shape[-1], 2) / x.shape[-1])
        first, second = x.float().chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    return turn
