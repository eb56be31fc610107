"""The hooks of one attached engine: what happens to a prefill and to each decode step, and what is kept of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from harness.core import flops
from harness.core.costs import Costs, batch_costs
from harness.core.errors import PrunebenchError
from harness.core.keeps import Stage
from harness.core.trace import LayerTrace, Trace
from harness.engine.attention import EditTrace, LayerAttention, apply_edits, attend
from harness.engine.capture import CapturedLayer, captured_prefixes
from harness.engine.contract import changed_pixels, check_edits, check_mask, check_reduction
from harness.engine.layout import Placed, TokenLayout, take
from harness.engine.prefix import Prefix, RoomyLayer, Shared, on_prefix, reach, visual_edit
from harness.engine.stream import BoundaryStream
from harness.engine.tower import Seen, batched
from harness.engine.turn import Dialogue
from harness.method import Method
from harness.models.adapters import Features

#: what a pre-hook hands on: positional and keyword arguments of the module
HookInputs = tuple[tuple[Any, ...], dict[str, Any]]


class EngineRun(Dialogue):
    """An attached engine; `harness.method.Run` to the method, and `trace` to everyone else.

    Set `samples` (one key per row) before each batch where the method is random: its draws depend on (seed, sample key)
    only. Without keys a row's number in the batch stands in. Set `questions` (one text per row) where the method reads
    them.
    """

    # ---------------------------------------------------------------------------------------------------------- results

    @property
    def trace(self) -> Trace:
        """What the last prefill and the decode steps since then did. Raises before the first prefill is complete."""
        trace = self._settle()
        trace.decode_steps = self._steps
        trace.turn = self._turn.trace() if self._turn is not None and self._turn.calls else None
        return trace

    def costs(self) -> Costs:
        """What the last prefill and the decode steps since then cost. Raises before the first prefill is complete."""
        trace = self.trace
        return batch_costs(self.prompts, trace)

    def check_model(self) -> None:
        """Raise PrunebenchError where the method has changed the model: what it answered since then is worth
        nothing."""
        self._untouched.check()

    @property
    def layouts(self) -> list[TokenLayout]:
        """The layout of the tokens each decoder layer saw in the last prefill."""
        return list(self._per_layer)

    def stages(self, row: int) -> list[Stage]:
        """Which of the prompt's visual tokens were there from which layer on in the last prefill, and how many merged
        ones."""
        self._settle()
        assert self._origins is not None
        found: list[Stage] = []
        n = self._per_layer_prompt.visual_counts[row]
        for layer, numbers in self._origins:
            origin, keep = numbers[row].astype(int), np.zeros(n, dtype=bool)
            keep[origin[origin >= 0]] = True
            stage = Stage(layer, keep, int((origin == -2).sum()))
            # a new layout may be new for other rows only
            if not found or stage.added != found[-1].added or not np.array_equal(keep, found[-1].keep):
                found.append(stage)
        return found

    # ----------------------------------------------------------------------------------------------------------- images

    def encode(self, **inputs: Any) -> tuple[list[Features], Sequence[Seen]]:
        """Features of what the processor made of images, and what was seen of the tower, per image.

        For features that are used again: give the model `adapter.inputs(features, ids)`, and `see` the rest.
        """
        self._said = {name: inputs.get(name) for name in self._adapter.image_facts}
        try:
            features = self._adapter.encode(**inputs)
        finally:
            self._said = {}
        seen, self._seen = self._seen, None
        return features, seen if seen is not None else [{} for _ in features]

    def see(self, images: Sequence[Seen]) -> None:
        """Announce what the tower showed of the next prefill's images, in the order of the prompts, whose features are
        given."""
        self._seen = images

    def _show(self, seen: Sequence[Seen] | None) -> None:
        """`Method.on_image`, with what the tower showed of the prompts' images."""
        looks = self._method.looks(self._shape)
        if not looks:
            return
        name, plain = self._method.name, {look: self._adapter.plain(look) for look in looks}
        if seen is None or any(look not in one for look in plain.values() for one in seen):
            raise PrunebenchError(
                f"{name} looks at the vision tower, but this prefill came with features made elsewhere: pass"
                " pixel_values, or make the features with encode() of this attach() and announce what it saw with"
                " see()"
            )
        images = [len(prompt.images) for prompt in self.prompts]
        if self._adapter.framed and len(seen) == len(images):
            images = [1] * len(images)  # tiles of all images of a prompt come in one row of pixels
        seen = self._adapter.by_image(seen, [image for prompt in self.prompts for image in prompt.images])
        if sum(images) != len(seen):
            raise PrunebenchError(
                f"{name}: expected one vision-tower output for each of the prompts' {sum(images)} images, found"
                f" {len(seen)}"
            )
        per_row = [
            sum(flops.look(i.vision, look.what, look.layer) for look in looks for i in prompt.images)
            for prompt in self.prompts
        ]
        self._count_scoring(sum(per_row), per_row)
        with self._naming("on_image"):
            self._method.on_image(self, batched(seen, images, plain))

    # ---------------------------------------------------------------------------------------------------------- sharing

    def share(self, prefixes: Sequence[Prefix], input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Announce that the next prefill starts from known prefixes, one per row; -> ids (b, w) to call the model with,
        and nothing else.

        `input_ids`, `attention_mask (b, n)` are the whole left-padded prompts. The cache must be a
        `prefix.roomy_cache`. Raises PrunebenchError where a prompt does not start with its prefix or ends with it.
        """
        valid, n = attention_mask.bool(), input_ids.shape[1]
        known = pad_sequence([prefix.ids for prefix in prefixes], batch_first=True, padding_value=-1)
        column = torch.arange(known.shape[1], device=known.device) + (~valid).sum(1)[:, None]
        same = (input_ids.gather(1, column.clamp(max=n - 1)) == known) | (known < 0)
        lengths, alike = torch.stack([valid.sum(1), same.all(1)]).tolist()
        for row, (prefix, length) in enumerate(zip(prefixes, lengths, strict=True)):
            if length <= prefix.length or not alike[row]:
                raise PrunebenchError(
                    f"{self._sample(row)}: expected a prompt that goes on after its {prefix.length} prefix tokens;"
                    " found other tokens (text in front of the image differs between questions?): run with --no-share"
                )
        shared = Shared(prefixes, valid, lengths, reach(self._method, self._adapter.usual))
        self._announced = (shared, input_ids, attention_mask)
        return input_ids[:, -shared.window :]

    def prefixes(self) -> list[Prefix]:
        """What the last prefill, of prompts that end with their image and run inside `capturing`, left for others to
        start from."""
        assert self._captured is not None
        assert self._input_ids is not None
        if self._per_layer_prompt.padded:
            raise PrunebenchError(
                "expected prefixes of one length in a batch, found padding: capture images of one size together"
            )
        return captured_prefixes(
            self._captured, self._input_ids, self._per_layer_prompt, self._deepstack, [p.images for p in self.prompts]
        )

    @contextmanager
    def capturing(self, samples: Sequence[str]) -> Iterator[None]:
        """Keep what `prefixes` needs of the prefill inside, of prompts of these samples; the method does there what
        `on_prefix` says."""
        method, others = self._method, self.samples
        self._captured = []
        self._method, self.samples = on_prefix(method, self._adapter.usual), samples
        try:
            yield
        finally:
            self._captured, self._method, self.samples = None, method, others

    # ------------------------------------------------------------------------------------------------------------ hooks

    def _on_core(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HookInputs:
        self._input_ids = kwargs.get("input_ids", args[0] if args else None)
        self._attention_mask = kwargs.get("attention_mask")
        if _empty(kwargs.get("past_key_values")):  # a decode step comes without them
            given = {name: kwargs.get(name) for name in self._adapter.image_facts}
            self._facts = {name: self._said.get(name) if fact is None else fact for name, fact in given.items()}
            if all(fact is None for fact in given.values()):
                self._adapter.forget_places()
        return args, kwargs

    def _hears(self, given: Mapping[str, Any]) -> None:
        self._said = {name: given.get(name) for name in self._adapter.image_facts}

    def _on_text(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HookInputs:
        if _empty(kwargs.get("past_key_values")):
            self._said = {}  # of these images only
            self._given_positions = self._adapter.positions(kwargs)
            self._deepstack = self._adapter.take_deepstack(kwargs)
            if len(self._deepstack) >= self._depth:
                raise PrunebenchError(
                    f"expected more decoder layers than the {len(self._deepstack)} behind which visual features are"
                    f" added, found {self._depth}"
                )
        return args, kwargs

    def _on_tower(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HookInputs:
        # `generate` runs the tower before the model's forward, so pixels are changed at the tower and not at the core
        pixels = args[0] if args else kwargs.pop("pixel_values")
        changed = changed_pixels(self._method, pixels, self._adapter.one_size)
        return (pixels if changed is None else changed, *args[1:]), kwargs

    def _before_layer(self, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        if layer == 0:
            cache = kwargs.get("past_key_values")
            if _empty(cache):
                if getattr(cache, "is_compileable", False):
                    raise PrunebenchError(
                        f"expected a cache that grows, found {type(cache).__name__}, whose length is fixed: layers hold"
                        " unlike numbers of tokens; use a DynamicCache"
                    )
                self._begin_prefill(hidden)
            elif self._turn is not None:
                self._turn.begin(hidden.shape[:2])
            elif hidden.shape[1] != 1:
                raise PrunebenchError(
                    f"expected one new token per step on a pruned cache, found {hidden.shape[1]}: "
                    "start a new prompt with an empty cache"
                )
            elif len(self._per_layer) != self._depth or self._per_layer[-1].valid.shape[0] != hidden.shape[0]:
                raise PrunebenchError(
                    f"expected a cache that was filled inside this attach() by a prefill of {hidden.shape[0]} rows: "
                    "run the prefill inside the same block"
                )
            else:
                self._prefilling = False
                self._steps += 1
        if self._prefilling:
            hidden = self._boundary(layer, hidden)
            layout = self.layout
            with self._naming(f"layer {layer}"):
                self._edits = self._method.edit_attention(self, layer)
            if self._edits != ():
                check_edits(f"{self._method.name} at layer {layer}", self._edits, layout, self._sample)
            if self._shared is not None and not self._shared.knows(layer, visual_edit(self._edits)):
                hidden, self._shared = self._shared.whole(layer, hidden), None
            columns = layout.n if self._shared is None else self._shared.window
            if self._rotary is None:
                self._rotary, self._rotating = self._adapter.rotary(hidden, layout.positions), None
            if self._rotating is None or self._rotating[0].shape[1] != columns:
                cos, sin = (part[:, -columns:] for part in self._rotary)
                self._rotating = layout.positions[:, -columns:, 0], (cos, sin)
            self._per_layer.append(layout)
            kwargs["position_ids"], kwargs["position_embeddings"] = self._rotating
            if self._shared is None:
                kwargs["attention_mask"] = layout.mask
            else:
                kwargs["attention_mask"] = self._shared.mask
                self._put_prefix_into_cache(layer, kwargs["past_key_values"])
                assert self._trace is not None
                self._trace.layers[-1].rows = columns
            if self._captured is not None:
                self._captured.append(CapturedLayer(hidden, visual_edit(self._edits), layout, self._unreduced))
        else:
            self._decode_inputs(layer, hidden, kwargs)
        return hidden

    def _put_prefix_into_cache(self, layer: int, cache: Any) -> None:
        assert self._shared is not None
        entry = cache.layers[layer] if layer < len(cache.layers) else None
        if not isinstance(entry, RoomyLayer):
            raise PrunebenchError(
                "expected a cache made by harness.engine.prefix.roomy_cache for a prefill that shares its prefix"
            )
        entry.start(self._shared.started(layer))

    def _begin_prefill(self, hidden: Tensor) -> None:
        ids = self._input_ids
        if self._announced is not None:
            self._shared, self._input_ids, self._attention_mask = self._announced
            self._announced = None
            ids = self._input_ids
            if hidden.shape[:2] != (ids.shape[0], self._shared.window):
                raise PrunebenchError(
                    f"expected the window {(ids.shape[0], self._shared.window)} that share() returned, found"
                    f" {tuple(hidden.shape[:2])}"
                )
        else:
            self._shared = None
        if ids is None:
            raise PrunebenchError(
                "expected input_ids (image tokens are found by their id), found inputs_embeds: pass input_ids"
            )
        if self._shared is None and ids.shape != hidden.shape[:2]:
            raise PrunebenchError(f"expected input_ids of shape {tuple(hidden.shape[:2])}, found {tuple(ids.shape)}")
        self.memo = {}
        self._notes, self._later, self._origins = {}, [], None
        self._per_layer, self._rotary, self._steps, self._turn = [], None, 0, None
        self._silenced = [[] for _ in range(self._depth)]
        self._hidden_in_decode = []
        self._decode_positions = "original"
        self._prefilling = True
        mask = self._attention_mask
        mask = mask if mask is not None and mask.ndim == 2 else None
        given = self._given_positions
        if self._shared is not None:
            given = self._shared.positions
            self._deepstack = [
                torch.cat(features) for features in zip(*(p.deepstack for p in self._shared.prefixes), strict=True)
            ]
        elif given is not None:
            given = given.expand(ids.shape[0], -1, -1)
        layout = self._layout = TokenLayout.of_prompt(ids, mask, self._adapter.image_token_ids, given)
        self._facts = dict(self._adapter.checked(self._facts, ids, layout.positions, layout.visual))
        self._images = None if self._shared is None else [prefix.images for prefix in self._shared.prefixes]
        self._prompts, self._prompt_places = None, None
        if self.samples is not None and len(self.samples) != ids.shape[0]:
            raise PrunebenchError(
                f"expected one sample key per row, found {len(self.samples)} keys for {ids.shape[0]} rows"
            )
        self._per_layer_prompt = self._layout
        self._trace = Trace(
            batch=ids.shape[0], layers=[], n_prompt_visual=self._layout.visual_counts, scoring=[0] * ids.shape[0]
        )
        seen, self._seen = self._seen, None  # of these images only
        self._show(seen)

    def _boundary(self, layer: int, hidden: Tensor) -> Tensor:
        layout, shared = self.layout, self._shared
        if shared is not None:
            hidden = shared.corrected(layer, hidden)
        elif 0 < layer <= len(self._deepstack):
            # behind layers 0, 1, ...; merged tokens get nothing
            hidden = layout.with_features(hidden, self._deepstack[layer - 1], self.n_prompt_visual)
        self._unreduced = None
        whole: list[Tensor] = [] if shared is not None else [hidden]

        def everything() -> Tensor:
            if not whole:
                assert shared is not None
                whole.append(shared.whole(layer, hidden))
            return whole[0]

        stream = BoundaryStream(self._adapter, layer, layout, everything, self._count_scoring, self._rotate)
        with self._naming(f"boundary {layer}"):
            reduction = self._method.at_boundary(self, layer, stream)
        edited = stream.edited()
        if edited is not None:
            raise self._edited_in_place(layer, *edited)
        if reduction is not None:
            stays = check_reduction(
                f"{self._method.name} at boundary {layer}",
                reduction,
                layout,
                hidden,
                lambda: self.places.image,
                self._sample,
            )
            keep = reduction.keep & layout.visual_tokens.valid
            positions, self._decode_positions = reduction.positions, reduction.decode_positions
            if self._positions == "original" or self._adapter.axes > 1:  # no official code renumbers M-RoPE
                positions, self._decode_positions = "original", "original"
            elif self._positions == "compact":
                positions, self._decode_positions = "compact", "per_layer"
            new = (reduction.added, reduction.front, reduction.values)
            more = [tokens.to(hidden.dtype) for tokens in new if tokens is not None]
            if more or reduction.order is not None or stays.kept != layout.visual_counts:
                added = torch.cat(more, 1) if more else None
                reduced = layout.reduce(
                    keep,
                    self._placed(reduction.added, reduction.added_valid, reduction.added_image),
                    positions == "compact",
                    reduction.order,
                    self._placed(reduction.front, reduction.front_valid, reduction.front_image),
                    reduction.values is not None,
                    [kept + placed for kept, placed in zip(*stays, strict=True)],
                )
                self._shared = None if shared is None else shared.reduced(layer, reduced, added)
                if self._shared is not None:
                    hidden = self._shared.corrected(layer, hidden)
                else:
                    hidden = everything()
                    if self._captured is not None:
                        self._unreduced = hidden, layout, reduced.source
                    hidden = take(hidden if added is None else torch.cat([hidden, added], 1), reduced.source)
                self._layout, self._rotary = reduced.layout, None
        if self._shared is not None and not self._shared.goes_on(layer):
            hidden, self._shared = everything(), None
        assert self._trace is not None
        layout = self.layout
        if self._method.drops_inside and layer > 0:
            self._trace.layers[-1].behind = layout.counts
        self._trace.layers.append(LayerTrace(layout.n, layout.counts, layout.visual_counts))
        return hidden

    def _placed(self, tokens: Tensor | None, valid: Tensor | None, image: Tensor | None) -> Placed | None:
        """Some added tokens as the layout takes them; None where there are none."""
        if tokens is None:
            return None
        real = valid if valid is not None else torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Placed(real, None if image is None else self.places.image[:, None] == image[:, :, None])

    def _edited_in_place(self, layer: int, name: str, now: Tensor, was: Tensor) -> PrunebenchError:
        rows = (now != was).flatten(1).any(1).nonzero().flatten().tolist() or [0]
        row = int(rows[0])
        mean_was, mean_now = was[row].float().mean().item(), now[row].float().mean().item()
        return PrunebenchError(
            f"{self._method.name} at boundary {layer}, {self._sample(row)}: stream.{name} was changed in place (mean"
            f" {mean_was:.4g}, now {mean_now:.4g}), which the model would not see: work on a clone and return a"
            " Reduction with `added` tokens"
        )

    def _decode_inputs(self, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        layout = self._per_layer[layer]
        own = self._decode_positions == "per_layer"
        if layer == 0 or own:  # else all layers have the first one's
            if self._decode_positions == "original":
                last = self._per_layer_prompt
            else:
                last = layout.compact if own else self._per_layer[-1].compact
            step = self._steps if self._turn is None else self._turn.offsets()[:, :, None]
            # a prompt ends in text, which counts by one on every axis
            positions = last.positions[:, -1:] + step
            self._rotating = positions[:, :, 0], self._adapter.rotary(hidden, positions)
        assert self._rotating is not None
        kwargs["position_ids"], kwargs["position_embeddings"] = self._rotating
        seen, hidden_tokens = layout.valid, self._hidden_in_decode[layer]
        if hidden_tokens is not None:
            seen = seen & ~layout.visual_to_columns(hidden_tokens)
        mask = None
        if self._turn is not None:
            mask = self._turn.mask(seen)
        elif layout.padded or hidden_tokens is not None:
            new = torch.ones(layout.valid.shape[0], self._steps, dtype=torch.bool, device=layout.valid.device)
            mask = torch.cat([seen, new], 1)[:, None, None, :]
        kwargs["attention_mask"] = mask

    def _attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        wanted = q.shape[2]
        out = attend(q, k, v, mask, scaling, causal=self._prefilling)
        if self._prefilling:
            layout, shared = self.layout, self._shared
            edits = self._edits
            looks = type(self._method).on_attention is not Method.on_attention
            queries, since = None, 0
            if shared is not None and (edits or looks):
                queries, since = partial(self._prefix_queries, layer, q, shared), shared.n - shared.window
                q, out = shared.widened(q), shared.widened(out)
            if edits:
                mine = edits if shared is None else [e for e in edits if e.rows != "visual"]
                out, traces = apply_edits(mine, layout, q, k, v, out, scaling)
                assert self._trace is not None
                self._trace.layers[layer].edit_rows = [t.rows for t in traces]
                if len(mine) < len(edits):
                    assert shared is not None
                    known = [p.silenced[layer] for p in shared.prefixes]
                    traces.append(EditTrace(0, torch.tensor(known, device=out.device)))
                self._silenced[layer] = [t.silenced for t in traces]
            if self._captured is not None:
                seen = self._captured[layer]
                seen.keys, seen.values = k, v
                seen.silenced = (
                    torch.stack(self._silenced[layer]).sum(0).tolist() if self._silenced[layer] else [0] * k.shape[0]
                )
            view = LayerAttention(layout, q, k, v, out, scaling, self._count_scoring, self._rotated, queries, since)
            with self._naming(f"layer {layer}"):
                self._method.on_attention(self, layer, view)
                hide = self._method.hide_in_decode(self, layer)
            if hide is not None:
                expected = layout.visual_tokens.valid
                check_mask(
                    f"{self._method.name} at layer {layer}", "hide_in_decode", hide, expected.shape, expected.device
                )
            self._hidden_in_decode.append(hide)
            if layer == self._depth - 1:
                self._prefilling, self._shared = False, None  # its states would stay in memory beside the growing cache
        if out.shape[2] != wanted:
            out = out[:, :, -wanted:]
        return out.transpose(1, 2)


def _empty(cache: Any) -> bool:
    """Is this call a prefill?"""
    return cache is None or cache.get_seq_length(0) == 0
