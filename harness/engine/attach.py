"""`attach(model, method)`: prune every prefill inside the block, measure what ran, leave nothing behind.

How it holds on to a transformers 5 model without forking a file: pre-hooks on the decoder layers own the residual stream and
hand every layer its own mask, positions and rotary embeddings (what a hook passes reaches that layer only); the attention
function is ours through `AttentionInterface`, so q, k, v are the model's own, after RoPE. A prefill is recognised by an empty
cache at layer 0. In decode every layer has its own cache length, hence its own mask.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from harness.core import flops
from harness.core.errors import PrunebenchError, unknown
from harness.core.keeps import Stage
from harness.core.shape import ModelShape, PromptShape, Share, quota
from harness.core.trace import LayerTrace, Trace
from harness.engine.attention import EditTrace, LayerAttention, apply_edits, attend
from harness.engine.contract import changed_pixels, check_edits, check_mask, check_reduction
from harness.engine.layout import TokenLayout, take
from harness.engine.prefix import Prefix, ReducedPrefix, RoomyLayer, Shared, on_prefix, one_row, visual_edit
from harness.engine.stream import BoundaryStream
from harness.engine.tower import Seen, TowerEye, batched
from harness.method import AttentionEdit, DecodePositions, Method, Places, Question, ScoresError, TowerLook, raised
from harness.models.adapters import Adapter, Features, adapter_for
from harness.models.adapters.text_encoder import TextEncoder

KERNEL = "prunebench"
#: what a pre-hook hands on: positional and keyword arguments of the module
HookInputs = tuple[tuple[Any, ...], dict[str, Any]]
#: decoder attention modules under an attached engine; found by module, since hook kwargs do not reach the attention function
_ACTIVE: dict[int, EngineRun] = {}


#: keywords of an attention function that change its arithmetic in a way that ours does not do
_REFUSED = ("sliding_window", "softcap", "s_aux")


def _engine_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **others: object
) -> tuple[Tensor, None]:
    for name in _REFUSED:
        if others.get(name) is not None:
            raise PrunebenchError(
                f"decoder layer {module.layer_idx}: expected plain softmax attention, found {name}={others[name]}, which prunebench does not "
                "compute: use a model without it"
            )
    run = _ACTIVE.get(id(module))
    if run is None:
        raise RuntimeError(f"attention kernel {KERNEL!r} is set on a module that no engine is attached to")
    return run._attention(int(module.layer_idx), query, key, value, attention_mask, scaling), None  # type: ignore[arg-type]


AttentionInterface.register(KERNEL, _engine_attention)
# the mask of transformers is built for one length for all layers; ours are per layer, so theirs is not built at all
AttentionMaskInterface.register(KERNEL, lambda *args, **kwargs: None)


@dataclass
class _CapturedLayer:
    """What one layer of a prefill leaves for others to start from; keys and values come with its attention."""

    hidden: Tensor
    edit: AttentionEdit | None
    layout: TokenLayout
    #: before a reduction here, with its layout, and where its columns went
    unreduced: tuple[Tensor, TokenLayout, Tensor] | None
    keys: Tensor = field(init=False)
    values: Tensor = field(init=False)
    silenced: list[int] = field(init=False)


class EngineRun:
    """An attached engine; `harness.method.Run` to the method, and `trace` to everyone else.

    Set `samples` (one key per row) before each batch where the method is random: its draws depend on (seed, sample key) only.
    Without keys a row's number in the batch stands in. Set `questions` (one text per row) where the method reads them.
    """

    def __init__(self, adapter: Adapter, method: Method, seed: int, positions: str, text_encoder: Callable[[], TextEncoder] | None) -> None:
        self._adapter, self._method, self._seed, self._positions = adapter, method, seed, positions
        self._text_encoder = text_encoder
        self._shape = adapter.shape
        self._depth = len(adapter.layers)
        self.samples: Sequence[str] | None = None
        self.questions: Sequence[str] | None = None
        self.memo: MutableMapping[str, Any] = {}
        self._input_ids: Tensor | None = None
        self._attention_mask: Tensor | None = None
        self._facts: dict[str, Any] = {}
        #: (b or 1, n, axes), where the model put the tokens of the prefill that is coming; None: counted
        self._given_positions: Tensor | None = None
        #: per early layer, what the model adds behind it to each visual token of the batch
        self._deepstack: Sequence[Tensor] = ()
        self._layout: TokenLayout | None = None
        self._prompts: Sequence[PromptShape] | None = None
        self._prompt_places: Tensor | None = None
        self._rotary: tuple[Tensor, Tensor] | None = None
        self._per_layer: list[TokenLayout] = []
        self._silenced: list[list[Tensor]] = []
        self._notes: dict[str, list[float]] = {}
        self._trace: Trace | None = None
        self._decode_positions: DecodePositions = "original"
        self._hidden_in_decode: list[Tensor | None] = []
        self._prefilling = False
        self._steps = 0
        self._announced: tuple[Shared, Tensor, Tensor] | None = None
        self._shared: Shared | None = None
        self._edits: Sequence[AttentionEdit] = ()
        self._seen: Sequence[Seen] | None = None
        #: the layers of a prefill inside `capturing`
        self._captured: list[_CapturedLayer] | None = None
        self._unreduced: tuple[Tensor, TokenLayout, Tensor] | None = None

    # ---------------------------------------------------------------------------------------------------- the method's view

    @property
    def shape(self) -> ModelShape:
        return self._shape

    @property
    def layout(self) -> TokenLayout:
        """The layout at the current boundary; raises outside a prefill."""
        if self._layout is None:
            raise PrunebenchError("no prefill has run inside attach() yet")
        return self._layout

    @property
    def visual_valid(self) -> Tensor:
        # a copy: `keep = run.visual_valid; keep[...] = False` is a natural thing to write
        return self.layout.visual_tokens.valid.clone()

    @property
    def n_prompt_visual(self) -> Tensor:
        return self._per_layer_prompt.visual.sum(1)

    @property
    def prompts(self) -> Sequence[PromptShape]:
        if self._prompts is None:
            layout = self._per_layer_prompt
            images = self._adapter.images(layout.visual_counts, self._facts)
            texts = [n - v for n, v in zip(layout.counts, layout.visual_counts, strict=True)]
            self._prompts = [PromptShape(self._shape, of, n_text) for of, n_text in zip(images, texts, strict=True)]
        return self._prompts

    @property
    def places(self) -> Places:
        layout = self.layout
        if self._prompt_places is None:
            rows = [torch.tensor(prompt.places(), dtype=torch.long).view(-1, len(Places._fields)) for prompt in self.prompts]
            # one more slot, for tokens that are no token of the prompt
            padded = nn.utils.rnn.pad_sequence([torch.cat([row, -torch.ones_like(row[:1])]) for row in rows], batch_first=True, padding_value=-1)
            self._prompt_places = padded.to(layout.valid.device)
        tokens = layout.visual_tokens
        origin = torch.where(tokens.valid, layout.origin.gather(1, tokens.columns), -1)
        index = torch.where(origin >= 0, origin, self.n_prompt_visual[:, None])
        return Places(*take(self._prompt_places, index).unbind(2))

    def quota(self, keep: int | Share) -> Tensor:
        counts, device = self._per_layer_prompt.visual_counts, self._per_layer_prompt.valid.device
        quotas = [quota(keep, n) for n in counts]
        if len(set(quotas)) == 1:  # made on the device: an upload waits for it
            return torch.full((len(quotas),), quotas[0], device=device)
        return torch.tensor(quotas, device=device)

    def generator(self, row: int) -> torch.Generator:
        self._check_row(row)
        key = self.samples[row] if self.samples is not None else str(row)
        digest = hashlib.sha256(f"{self._seed}\0{key}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def matmul(self, a: Tensor, b: Tensor, *, row: int | None = None, entries: Sequence[int] | None = None) -> Tensor:
        out = a @ b
        inner, batch = a.shape[-1], self.layout.valid.shape[0]
        per_row = [0] * batch
        if row is not None:
            self._check_row(row)
            per_row[row] = 2 * out.numel() * inner
        elif out.ndim < 3 or out.shape[0] != batch:
            raise PrunebenchError(
                f"{self._method.name}: expected a product over the batch of {batch}, found shape {tuple(out.shape)}: "
                "say whose row= it is"
            )
        else:
            real = [out.numel() // batch] * batch if entries is None else entries
            per_row = [2 * n * inner for n in real]
        self._count_scoring(2 * out.numel() * inner, per_row)
        return out

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.layout.valid.shape[0]:
            raise PrunebenchError(f"{self._method.name}: expected a row from 0 to {self.layout.valid.shape[0] - 1} of the batch, found {row}")

    def project(self, features: Tensor, valid: Tensor) -> Tensor:
        vision = self.prompts[0].images[0].vision
        per_token, (b, m) = flops.projector(self._shape, vision, tokens=1), features.shape[:2]
        self._count_scoring(b * m * per_token, [int(n) * per_token for n in valid.sum(1).tolist()])
        projected: Tensor = self._adapter.project(features)
        return projected

    def question(self) -> Question:
        if self._text_encoder is None or self.questions is None:
            raise PrunebenchError(
                f"{self._method.name} reads the question through a text encoder, and this run has none: name one in the model's config "
                "(text_encoder: a CLIP checkpoint), or give attach() text_encoder= and set run.questions"
            )
        encoded = [self._text_encoder().encode(text) for text in self.questions]
        self._count_scoring(sum(e.flops for e in encoded), [e.flops for e in encoded])
        device = self.layout.valid.device
        valid = [torch.ones(len(e.pieces), dtype=torch.bool, device=device) for e in encoded]
        pad = nn.utils.rnn.pad_sequence
        return Question(pad([e.pieces.to(device) for e in encoded], batch_first=True), pad(valid, batch_first=True))

    def note(self, name: str, values: Tensor | Sequence[float | int | bool]) -> None:
        listed = values.tolist() if isinstance(values, Tensor) else list(values)
        if len(listed) != self.layout.valid.shape[0]:
            raise PrunebenchError(f"{self._method.name}: note {name!r}: expected one number a row, {self.layout.valid.shape[0]}, found {len(listed)}")
        self._notes[name] = [float(x) for x in listed]

    # -------------------------------------------------------------------------------------------------------------- results

    @property
    def trace(self) -> Trace:
        """What the last prefill and the decode steps since then did. Raises before the first prefill is complete."""
        if self._trace is None or self._prefilling:
            raise PrunebenchError("no complete prefill has run inside attach() yet")
        edited = [torch.stack(silenced).sum(0) for silenced in self._silenced if silenced]
        read = iter(torch.stack(edited).tolist() if edited else ())  # at once: each read waits for the device
        for layer, silenced in zip(self._trace.layers, self._silenced, strict=True):
            layer.silenced = [int(s) for s in next(read)] if silenced else [0] * self._trace.batch
        self._trace.notes = dict(self._notes)
        self._trace.decode_steps = self._steps
        return self._trace

    @property
    def layouts(self) -> list[TokenLayout]:
        """The layout of the tokens each decoder layer saw in the last prefill."""
        return list(self._per_layer)

    def stages(self, row: int) -> list[Stage]:
        """Which of the prompt's visual tokens were there from which layer on in the last prefill, and how many merged ones."""
        found: list[Stage] = []
        n = int(self._per_layer_prompt.visual_counts[row])
        seen: TokenLayout | None = None
        for layer, layout in enumerate(self._per_layer):
            if layout is seen:
                continue
            seen = layout
            origin = layout.origin[row][layout.visual[row]].tolist()
            keep = np.zeros(n, dtype=bool)
            keep[[o for o in origin if o >= 0]] = True
            stage = Stage(layer, keep, sum(o < 0 for o in origin))
            # a new layout may be new for other rows only
            if not found or stage.added != found[-1].added or not np.array_equal(keep, found[-1].keep):
                found.append(stage)
        return found

    # --------------------------------------------------------------------------------------------------------------- images

    def encode(self, **inputs: Any) -> tuple[list[Features], Sequence[Seen]]:
        """Features of what the processor made of images, and what was seen of the tower, per image.

        For features that are used again: give the model `adapter.outputs(features)` as `mm_encoder_outputs`, and `see` the rest.
        """
        features = self._adapter.encode(**inputs)
        seen, self._seen = self._seen, None
        return features, seen if seen is not None else [{} for _ in features]

    def see(self, images: Sequence[Seen]) -> None:
        """Announce what the tower showed of the next prefill's images, in the order of the prompts, whose features are given."""
        self._seen = images

    def _show(self, seen: Sequence[Seen] | None) -> None:
        """`Method.on_image`, with what the tower showed of the prompts' images."""
        looks = self._method.looks(self._shape)
        if not looks:
            return
        name = self._method.name
        if seen is None or any(look not in one for look in looks for one in seen):
            raise PrunebenchError(
                f"{name} looks at the vision tower, but this prefill came with features made elsewhere: pass pixel_values, "
                "or make the features with encode() of this attach() and announce what it saw with see()"
            )
        images = [len(prompt.images) for prompt in self.prompts]
        if sum(images) != len(seen):
            raise PrunebenchError(f"{name}: expected one vision-tower output for each of the prompts' {sum(images)} images, found {len(seen)}")
        costs = {"cls_row": flops.cls_row, "column_sums": flops.column_sums}
        per_row = [sum(costs[look.what](i.vision) for look in looks if look.what in costs for i in prompt.images) for prompt in self.prompts]
        self._count_scoring(sum(per_row), per_row)
        with self._naming("on_image"):
            self._method.on_image(self, batched(seen, images, looks))

    # -------------------------------------------------------------------------------------------------------------- sharing

    def share(self, prefixes: Sequence[Prefix], input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Announce that the next prefill starts from known prefixes, one per row; -> ids (b, w) to call the model with, and nothing else.

        `input_ids`, `attention_mask (b, n)` are the whole left-padded prompts. The cache must be a `prefix.roomy_cache`. Raises
        PrunebenchError where a prompt does not start with its prefix or ends with it.
        """
        lengths = attention_mask.sum(1).tolist()
        for row, (prefix, n) in enumerate(zip(prefixes, lengths, strict=True)):
            start = input_ids.shape[1] - n
            known = input_ids[row, start : start + prefix.length]
            if n <= prefix.length or not torch.equal(known, prefix.ids):
                raise PrunebenchError(
                    f"{self._sample(row)}: expected a prompt that goes on after its {prefix.length} prefix tokens; found other tokens "
                    "(text in front of the image differs between questions?): run with --no-share"
                )
        shared = Shared(prefixes, attention_mask.bool())
        self._announced = (shared, input_ids, attention_mask)
        return input_ids[:, -shared.window :]

    def prefixes(self) -> list[Prefix]:
        """What the last prefill, of prompts that end with their image and run inside `capturing`, left for others to start from."""
        assert self._captured is not None
        assert self._input_ids is not None
        if self._per_layer_prompt.padded:
            raise PrunebenchError("expected prefixes of one length in a batch, found padding: capture images of one size together")
        found, counts = [], self._per_layer_prompt.visual_counts
        for row in range(self._input_ids.shape[0]):
            layers, reduced = [], {}
            for layer, c in enumerate(self._captured):
                # images of one size may be reduced to unlike lengths
                pad = c.layout.n - c.layout.counts[row]
                edit = one_row(c.edit, row, c.layout.visual_counts[row])
                layers.append((c.hidden[row, pad:], c.keys[row, :, pad:], c.values[row, :, pad:], edit, c.silenced[row]))
                if c.unreduced is not None:
                    stream, before, source = c.unreduced
                    was, source = before.n - before.counts[row], source[row, pad:]
                    places = torch.where(source < before.n, source - was, -1)
                    reduced[layer] = ReducedPrefix(stream[row, was:], places, c.layout.positions[row, pad:])
            hidden, keys, values, edits, silenced = zip(*layers, strict=True)
            mine = slice(sum(counts[:row]), sum(counts[: row + 1]))
            deepstack = [features[mine] for features in self._deepstack]
            positions = self._per_layer_prompt.positions[row]
            found.append(Prefix(self._input_ids[row], positions, deepstack, hidden, keys, values, edits, silenced, reduced))
        return found

    @contextmanager
    def capturing(self, samples: Sequence[str]) -> Iterator[None]:
        """Keep what `prefixes` needs of the prefill inside, of prompts of these samples; the method does there what `on_prefix` says."""
        method, others = self._method, self.samples
        self._captured = []
        self._method, self.samples = on_prefix(method, self._adapter.usual), samples
        try:
            yield
        finally:
            self._captured, self._method, self.samples = None, method, others

    # ---------------------------------------------------------------------------------------------------------------- hooks

    def _on_core(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HookInputs:
        self._input_ids = kwargs.get("input_ids", args[0] if args else None)
        self._attention_mask = kwargs.get("attention_mask")
        if _empty(kwargs.get("past_key_values")):  # a decode step comes without them
            self._facts = {name: kwargs.get(name) for name in self._adapter.image_facts}
        return args, kwargs

    def _on_text(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HookInputs:
        if _empty(kwargs.get("past_key_values")):
            self._given_positions = self._adapter.positions(kwargs)
            self._deepstack = self._adapter.take_deepstack(kwargs)
            if len(self._deepstack) >= self._depth:
                raise PrunebenchError(
                    f"expected more decoder layers than the {len(self._deepstack)} behind which visual features are added, found {self._depth}"
                )
        return args, kwargs

    def _on_tower(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HookInputs:
        # `generate` runs the tower before the model's forward, so pixels are changed at the tower and not at the core
        pixels = args[0] if args else kwargs.pop("pixel_values")
        changed = changed_pixels(self._method, pixels)
        return (pixels if changed is None else changed, *args[1:]), kwargs

    def _before_layer(self, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        if layer == 0:
            cache = kwargs.get("past_key_values")
            if _empty(cache):
                if getattr(cache, "is_compileable", False):
                    raise PrunebenchError(
                        f"expected a cache that grows, found {type(cache).__name__}, whose length is fixed: layers hold unlike numbers of tokens; "
                        "use a DynamicCache"
                    )
                self._begin_prefill(hidden)
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
            if self._rotary is None:
                self._rotary = self._adapter.rotary(hidden, layout.positions)
            self._per_layer.append(layout)
            if self._shared is None:
                kwargs["attention_mask"], kwargs["position_ids"] = layout.mask, layout.positions[:, :, 0]
                kwargs["position_embeddings"] = self._rotary
            else:
                w = self._shared.window
                kwargs["attention_mask"], kwargs["position_ids"] = self._shared.mask, layout.positions[:, -w:, 0]
                kwargs["position_embeddings"] = (self._rotary[0][:, -w:], self._rotary[1][:, -w:])
                self._put_prefix_into_cache(layer, kwargs["past_key_values"], hidden)
                assert self._trace is not None
                self._trace.layers[-1].rows = w
            if self._captured is not None:
                self._captured.append(_CapturedLayer(hidden, visual_edit(self._edits), layout, self._unreduced))
        else:
            self._decode_inputs(layer, hidden, kwargs)
        return hidden

    def _put_prefix_into_cache(self, layer: int, cache: Any, hidden: Tensor) -> None:
        assert self._shared is not None
        entry = cache.layers[layer] if layer < len(cache.layers) else None
        if not isinstance(entry, RoomyLayer):
            raise PrunebenchError("expected a cache made by harness.engine.prefix.roomy_cache for a prefill that shares its prefix")
        known = self._shared.prefixes[0].keys[layer]
        like = known.new_empty(hidden.shape[0], known.shape[0], 0, known.shape[2])
        entry.start(like, self._shared.n - self._shared.window, self._shared.fill(layer), self._shared.window)

    def _begin_prefill(self, hidden: Tensor) -> None:
        ids = self._input_ids
        if self._announced is not None:
            self._shared, self._input_ids, self._attention_mask = self._announced
            self._announced = None
            ids = self._input_ids
            if hidden.shape[:2] != (ids.shape[0], self._shared.window):
                raise PrunebenchError(
                    f"expected the window {(ids.shape[0], self._shared.window)} that share() returned, found {tuple(hidden.shape[:2])}"
                )
        else:
            self._shared = None
        if ids is None:
            raise PrunebenchError("expected input_ids (image tokens are found by their id), found inputs_embeds: pass input_ids")
        if self._shared is None and ids.shape != hidden.shape[:2]:
            raise PrunebenchError(f"expected input_ids of shape {tuple(hidden.shape[:2])}, found {tuple(ids.shape)}")
        self.memo = {}
        self._notes = {}
        self._per_layer, self._rotary, self._steps = [], None, 0
        self._silenced = [[] for _ in range(self._depth)]
        self._hidden_in_decode = []
        self._decode_positions = "original"
        self._prefilling = True
        mask = self._attention_mask
        mask = mask if mask is not None and mask.ndim == 2 else None
        given = self._given_positions
        if self._shared is not None:
            given = self._shared.positions
            self._deepstack = [torch.cat(features) for features in zip(*(p.deepstack for p in self._shared.prefixes), strict=True)]
        elif given is not None:
            given = given.expand(ids.shape[0], -1, -1)
        self._layout = TokenLayout.of_prompt(ids, mask, self._adapter.image_token_ids, given)
        self._prompts, self._prompt_places = None, None
        if self.samples is not None and len(self.samples) != ids.shape[0]:
            raise PrunebenchError(f"expected one sample key per row, found {len(self.samples)} keys for {ids.shape[0]} rows")
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
            hidden = self._with_deepstack(hidden, self._deepstack[layer - 1])
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
            check_reduction(f"{self._method.name} at boundary {layer}", reduction, layout, hidden, self._sample)
            keep = reduction.keep & layout.visual_tokens.valid
            positions, self._decode_positions = reduction.positions, reduction.decode_positions
            if self._positions == "original":
                positions, self._decode_positions = "original", "original"
            elif self._positions == "compact":
                positions, self._decode_positions = "compact", "per_layer"
            more = [tokens for tokens in (reduction.added, reduction.front) if tokens is not None]
            if more or reduction.order is not None or bool((keep != layout.visual_tokens.valid).any()):
                added = torch.cat(more, 1) if more else None
                valid = _valid(reduction.added, reduction.added_valid), _valid(reduction.front, reduction.front_valid)
                reduced = layout.reduce(keep, valid[0], positions == "compact", reduction.order, valid[1])
                self._shared = None if shared is None else shared.reduced(layer, reduced, added)
                if self._shared is not None:
                    hidden = self._shared.corrected(layer, hidden)
                else:
                    hidden = everything()
                    if self._captured is not None:
                        self._unreduced = hidden, layout, reduced.source
                    hidden = take(hidden if added is None else torch.cat([hidden, added.to(hidden.dtype)], 1), reduced.source)
                self._layout, self._rotary = reduced.layout, None
        if self._shared is not None and not self._shared.goes_on(layer):
            hidden, self._shared = everything(), None
        assert self._trace is not None
        layout = self.layout
        self._trace.layers.append(LayerTrace(layout.n, layout.counts, layout.visual_counts))
        return hidden

    def _sample(self, row: int) -> str:
        return f"sample {self.samples[row]!r} (row {row})" if self.samples is not None else f"row {row}"

    @contextmanager
    def _naming(self, where: str) -> Iterator[None]:
        """What a method's hook raises, and scores that hold nan: here it is known by whom, where and for which sample."""
        try:
            yield
        except ScoresError as error:
            raise PrunebenchError(f"{self._method.name} at {where}, {self._sample(error.row)}: {error}") from None
        except (PrunebenchError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            batch = f"a batch of {self.layout.valid.shape[0]} from {self._sample(0)}"
            raise PrunebenchError(f"{self._method.name} at {where}, {batch}: {raised(error)}") from error

    def _edited_in_place(self, layer: int, name: str, now: Tensor, was: Tensor) -> PrunebenchError:
        rows = (now != was).flatten(1).any(1).nonzero().flatten().tolist() or [0]
        row = int(rows[0])
        mean_was, mean_now = was[row].float().mean().item(), now[row].float().mean().item()
        return PrunebenchError(
            f"{self._method.name} at boundary {layer}, {self._sample(row)}: stream.{name} was changed in place "
            f"(mean {mean_was:.4g}, now {mean_now:.4g}), which the model would not see: work on a clone and return a Reduction "
            "with `added` tokens"
        )

    def _with_deepstack(self, hidden: Tensor, features: Tensor) -> Tensor:
        """The stream with `features (visual tokens of the batch's prompts, d)` added to those that are still here; merged tokens get nothing."""
        layout, counts = self.layout, self._per_layer_prompt.visual.sum(1)
        here = layout.visual & (layout.origin >= 0)
        index = (counts.cumsum(0) - counts)[:, None] + layout.origin.clamp(min=0)
        return torch.where(here[:, :, None], hidden + features.to(hidden)[index], hidden)

    def _decode_inputs(self, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        layout = self._per_layer[layer]
        if self._decode_positions == "original":
            last = self._per_layer_prompt
        elif self._decode_positions == "compact":
            last = self._per_layer[-1].compact
        else:
            last = layout.compact
        # a prompt ends in text, which counts by one on every axis
        positions = last.positions[:, -1:] + self._steps
        kwargs["position_ids"] = positions[:, :, 0]
        kwargs["position_embeddings"] = self._adapter.rotary(hidden, positions)
        seen, hidden_tokens = layout.valid, self._hidden_in_decode[layer]
        if hidden_tokens is not None:
            seen = seen & ~layout.visual_to_columns(hidden_tokens)
        mask = None
        if layout.padded or hidden_tokens is not None:
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
            if shared is not None and (edits or looks):
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
                seen.silenced = torch.stack(self._silenced[layer]).sum(0).tolist() if self._silenced[layer] else [0] * k.shape[0]
            view = LayerAttention(layout, q, k, v, out, scaling, self._count_scoring, self._rotated)
            with self._naming(f"layer {layer}"):
                self._method.on_attention(self, layer, view)
                hide = self._method.hide_in_decode(self, layer)
            if hide is not None:
                expected = layout.visual_tokens.valid
                check_mask(f"{self._method.name} at layer {layer}", "hide_in_decode", hide, expected.shape, expected.device)
            self._hidden_in_decode.append(hide)
            if layer == self._depth - 1:
                self._prefilling = False
        if out.shape[2] != wanted:
            out = out[:, :, -wanted:]
        return out.transpose(1, 2)

    def _rotate(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """`vectors (b, heads, n, head_dim)` under RoPE at `positions (b, n, axes)`, in their own dtype, as the model rotates."""
        cos, sin = self._adapter.rotary(vectors, positions)
        return self._adapter.rotate(vectors, cos[:, None], sin[:, None])

    def _rotated(self, vector: Tensor, positions: Tensor) -> Tensor:
        """(b, n, head_dim) float32: `vector (head_dim,)` under RoPE at `positions (b, n, axes)`."""
        cos, sin = self._adapter.rotary(vector.float()[None, None], positions)
        return self._adapter.rotate(vector.float().expand_as(cos), cos, sin)

    def _count_scoring(self, executed: int, per_row: Sequence[int]) -> None:
        assert self._trace is not None
        self._trace.scoring_executed += executed
        self._trace.scoring = [a + b for a, b in zip(self._trace.scoring, per_row, strict=True)]


def _valid(tokens: Tensor | None, valid: Tensor | None) -> Tensor | None:
    """(b, m) bool: which of some added tokens are real; None where there are none."""
    if tokens is None:
        return None
    return valid if valid is not None else torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


def _empty(cache: Any) -> bool:
    """Is this call a prefill?"""
    return cache is None or cache.get_seq_length(0) == 0


POSITION_POLICIES = ("method", "original", "compact")


@contextmanager
def attach(
    model: nn.Module,
    method: Method,
    seed: int = 0,
    positions: str = "method",
    looks: Iterable[TowerLook] = (),
    text_encoder: Callable[[], TextEncoder] | None = None,
) -> Iterator[EngineRun]:
    """Prune every prefill of `model` inside the block with `method`; restores the model on exit, also after an exception.

    `positions` overrides where kept tokens stand: "original" keeps their RoPE positions, "compact" renumbers after every
    reduction (each layer then decodes at its own cache length), "method" leaves it to the method. `looks`: more of the vision tower than
    the method sees, for `EngineRun.encode`. `text_encoder` gives what `Run.question` encodes with, when it is first asked.
    Works with `forward` and with `generate` (KV cache of different length per layer, left-padded batches). Raises PrunebenchError for
    unsupported models and for a second attach.
    """
    if positions not in POSITION_POLICIES:
        raise unknown("position policy", positions, POSITION_POLICIES)
    adapter = adapter_for(model)
    method = method.for_model(adapter.shape)
    attentions = [layer.self_attn for layer in adapter.layers]
    if any(id(a) in _ACTIVE for a in attentions):
        raise PrunebenchError("a method is already attached to this model: leave its attach() block before entering another")
    run = EngineRun(adapter, method, seed, positions, text_encoder)
    text_config = adapter.text.config
    before = text_config._attn_implementation
    eye = TowerEye(adapter, {*method.looks(adapter.shape), *looks}, run.see)
    handles: list[Any] = []

    def pre_hook(layer: int) -> Callable[..., HookInputs]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HookInputs:
            hidden = args[0] if args else kwargs.pop("hidden_states")
            return (run._before_layer(layer, hidden, kwargs), *args[1:]), kwargs

        return hook

    try:
        for attention in attentions:
            _ACTIVE[id(attention)] = run
        # only the text config: the vision tower keeps its own kernel
        text_config._attn_implementation = KERNEL
        handles.append(adapter.core.register_forward_pre_hook(run._on_core, with_kwargs=True))
        handles.append(adapter.text.register_forward_pre_hook(run._on_text, with_kwargs=True))
        handles.append(adapter.tower.register_forward_pre_hook(run._on_tower, with_kwargs=True))
        handles += [module.register_forward_pre_hook(pre_hook(i), with_kwargs=True) for i, module in enumerate(adapter.layers)]
        yield run
    finally:
        eye.remove()
        for handle in handles:
            handle.remove()
        text_config._attn_implementation = before
        for attention in attentions:
            _ACTIVE.pop(id(attention), None)
