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
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from harness import flops
from harness.adapters import LlavaAdapter, adapter_for
from harness.attention import EditTrace, LayerAttention, apply_edits, attend
from harness.errors import PrunebenchError, unknown
from harness.keeps import Stage
from harness.layout import Gathered, TokenLayout, take
from harness.method import AttentionEdit, DecodePositions, Method, Positions, Reduction, ScoresError, TowerLook, raised
from harness.prefix import Prefix, ReducedPrefix, RoomyLayer, Shared, on_prefix, one_row, visual_edit
from harness.shape import ModelShape
from harness.tower import Seen, TowerEye, batched
from harness.trace import LayerTrace, Trace

KERNEL = "prunebench"
#: what a pre-hook hands on: positional and keyword arguments of the module
HookInputs = tuple[tuple[Any, ...], dict[str, Any]]
#: decoder attention modules under an attached engine; found by module, since hook kwargs do not reach the attention function
_ACTIVE: dict[int, EngineRun] = {}


def _engine_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **_: object
) -> tuple[Tensor, None]:
    run = _ACTIVE.get(id(module))
    if run is None:
        raise RuntimeError(f"attention kernel {KERNEL!r} is set on a module that no engine is attached to")
    return run._attention(int(module.layer_idx), query, key, value, attention_mask, scaling), None  # type: ignore[arg-type]


AttentionInterface.register(KERNEL, _engine_attention)
# the mask of transformers is built for one length for all layers; ours are per layer, so theirs is not built at all
AttentionMaskInterface.register(KERNEL, lambda *args, **kwargs: None)


class _Stream:
    """`harness.method.Stream`, gathered on demand: copies, so a method cannot reach the model's own stream."""

    def __init__(self, layout: TokenLayout, hidden: Callable[[], Tensor]) -> None:
        self._layout, self._hidden = layout, hidden
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

    def _copy(self, name: str, tokens: Gathered) -> Tensor:
        # inference tensors have no version counter, by which an edit in place is found without comparing values
        with torch.inference_mode(False):
            copy = take(self._hidden(), tokens.columns) * tokens.valid[:, :, None]
        self._handed.append((name, copy, copy._version))
        return copy

    def edited(self) -> tuple[str, Tensor, Tensor] | None:
        """(name, what it is now, what it was) of a tensor that the method changed in place."""
        for name, copy, version in self._handed:
            if copy._version != version:
                return name, copy, getattr(_Stream(self._layout, self._hidden), name)
        return None


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
    Without keys a row's number in the batch stands in.
    """

    def __init__(self, adapter: LlavaAdapter, method: Method, seed: int, positions: str) -> None:
        self._adapter, self._method, self._seed, self._positions = adapter, method, seed, positions
        self._shape = adapter.shape
        self._depth = len(adapter.layers)
        self.samples: Sequence[str] | None = None
        self.memo: MutableMapping[str, Any] = {}
        self._input_ids: Tensor | None = None
        self._attention_mask: Tensor | None = None
        self._layout: TokenLayout | None = None
        self._rotary: tuple[Tensor, Tensor] | None = None
        self._per_layer: list[TokenLayout] = []
        self._silenced: list[list[Tensor]] = []
        self._notes: dict[str, list[float]] = {}
        self._trace: Trace | None = None
        self._decode_positions: DecodePositions = "original"
        self._prompt_lengths: Tensor | None = None
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

    def generator(self, row: int) -> torch.Generator:
        key = self.samples[row] if self.samples is not None else str(row)
        digest = hashlib.sha256(f"{self._seed}\0{key}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def matmul(self, a: Tensor, b: Tensor, *, row: int | None = None, entries: Sequence[int] | None = None) -> Tensor:
        out = a @ b
        inner, batch = a.shape[-1], self.layout.valid.shape[0]
        per_row = [0] * batch
        if row is not None:
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

    def note(self, name: str, values: Tensor | Sequence[float | int | bool]) -> None:
        listed = values.tolist() if isinstance(values, Tensor) else list(values)
        self._notes[name] = [float(x) for x in listed]

    # -------------------------------------------------------------------------------------------------------------- results

    @property
    def trace(self) -> Trace:
        """What the last prefill and the decode steps since then did. Raises before the first prefill is complete."""
        if self._trace is None or self._prefilling:
            raise PrunebenchError("no complete prefill has run inside attach() yet")
        for layer, silenced in zip(self._trace.layers, self._silenced, strict=True):
            layer.silenced = [int(s) for s in torch.stack(silenced).sum(0).tolist()] if silenced else [0] * self._trace.batch
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

    def encode(self, pixels: Tensor) -> tuple[Tensor, Sequence[Seen]]:
        """Projected features (images, n_visual, hidden) of `pixels (images, 3, h, w)`, and what was seen of the tower, per image.

        For features that are used again: give the model the features as `mm_encoder_outputs`, and `see` the rest.
        """
        features = self._adapter.encode(pixels)
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
        name, counts = self._method.name, self._per_layer_prompt.visual_counts
        if seen is None or any(look not in one for look in looks for one in seen):
            raise PrunebenchError(
                f"{name} looks at the vision tower, but this prefill came with features made elsewhere: pass pixel_values, "
                "or make the features with encode() of this attach() and announce what it saw with see()"
            )
        images = [n // self._shape.n_visual for n in counts]
        if sum(images) != len(seen) or any(n % self._shape.n_visual for n in counts):
            raise PrunebenchError(f"{name}: expected one vision-tower output for each of the prompts' {sum(images)} images, found {len(seen)}")
        rows = sum(look.what == "cls_row" for look in looks)
        per_image = rows * flops.cls_row(self._shape.vision)
        self._count_scoring(per_image * len(seen), [per_image * n for n in images])
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
        found = []
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
            found.append(Prefix(self._input_ids[row], hidden, keys, values, edits, silenced, reduced))
        return found

    @contextmanager
    def capturing(self, samples: Sequence[str]) -> Iterator[None]:
        """Keep what `prefixes` needs of the prefill inside, of prompts of these samples; the method does there what `on_prefix` says."""
        method, others = self._method, self.samples
        self._captured = []
        self._method, self.samples = on_prefix(method, self._shape), samples
        try:
            yield
        finally:
            self._captured, self._method, self.samples = None, method, others

    # ---------------------------------------------------------------------------------------------------------------- hooks

    def _on_core(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HookInputs:
        self._input_ids = kwargs.get("input_ids", args[0] if args else None)
        self._attention_mask = kwargs.get("attention_mask")
        return args, kwargs

    def _on_tower(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HookInputs:
        # `generate` runs the tower before the model's forward, so pixels are changed at the tower and not at the core
        pixels = args[0] if args else kwargs.pop("pixel_values")
        changed = changed_pixels(self._method, pixels)
        return (pixels if changed is None else changed, *args[1:]), kwargs

    def _before_layer(self, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        if layer == 0:
            cache = kwargs.get("past_key_values")
            if cache is None or cache.get_seq_length(0) == 0:
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
            if self._edits:
                self._check_edits(layer, self._edits)
            if self._shared is not None and not self._shared.knows(layer, visual_edit(self._edits)):
                hidden, self._shared = self._shared.whole(layer, hidden), None
            if self._rotary is None:
                self._rotary = self._adapter.rotary(hidden, layout.positions)
            self._per_layer.append(layout)
            if self._shared is None:
                kwargs["attention_mask"], kwargs["position_ids"] = layout.mask, layout.positions
                kwargs["position_embeddings"] = self._rotary
            else:
                w = self._shared.window
                kwargs["attention_mask"], kwargs["position_ids"] = self._shared.mask, layout.positions[:, -w:]
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
            raise PrunebenchError("expected a cache made by harness.prefix.roomy_cache for a prefill that shares its prefix")
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
        self._layout = TokenLayout.of_prompt(ids, mask, self._adapter.image_token_id)
        if self.samples is not None and len(self.samples) != ids.shape[0]:
            raise PrunebenchError(f"expected one sample key per row, found {len(self.samples)} keys for {ids.shape[0]} rows")
        self._per_layer_prompt = self._layout
        self._prompt_lengths = self._layout.valid.sum(1)
        self._trace = Trace(
            batch=ids.shape[0], layers=[], n_prompt_visual=self._layout.visual_counts, scoring=[0] * ids.shape[0]
        )
        seen, self._seen = self._seen, None  # of these images only
        self._show(seen)

    def _boundary(self, layer: int, hidden: Tensor) -> Tensor:
        layout, shared = self.layout, self._shared
        if shared is not None:
            hidden = shared.corrected(layer, hidden)
        self._unreduced = None
        whole: list[Tensor] = [] if shared is not None else [hidden]

        def everything() -> Tensor:
            if not whole:
                assert shared is not None
                whole.append(shared.whole(layer, hidden))
            return whole[0]

        stream = _Stream(layout, everything)
        with self._naming(f"boundary {layer}"):
            reduction = self._method.at_boundary(self, layer, stream)
        edited = stream.edited()
        if edited is not None:
            raise self._edited_in_place(layer, *edited)
        if reduction is not None:
            self._check_reduction(layer, reduction, layout, hidden)
            keep = reduction.keep & layout.visual_tokens.valid
            positions, self._decode_positions = reduction.positions, reduction.decode_positions
            if self._positions == "original":
                positions, self._decode_positions = "original", "original"
            elif self._positions == "compact":
                positions, self._decode_positions = "compact", "per_layer"
            if reduction.added is not None or bool((keep != layout.visual_tokens.valid).any()):
                added, added_valid = reduction.added, None
                if added is not None:
                    full = torch.ones(added.shape[:2], dtype=torch.bool, device=hidden.device)
                    added_valid = full if reduction.added_valid is None else reduction.added_valid
                reduced = layout.reduce(keep, added_valid, positions == "compact")
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

    def _check_mask(self, where: str, what: str, mask: object, shape: torch.Size, device: torch.device) -> None:
        if isinstance(mask, Tensor) and mask.shape == shape and mask.dtype == torch.bool and mask.device == device:
            return
        found = f"{mask.dtype} {tuple(mask.shape)} on {mask.device}" if isinstance(mask, Tensor) else type(mask).__name__
        raise PrunebenchError(
            f"{self._method.name} at {where}: expected {what} as bool {tuple(shape)} on {device} "
            f"({'batch, visual tokens present now' if what != 'added_valid' else 'as added'}); found {found}"
        )

    def _check_reduction(self, layer: int, reduction: Reduction, layout: TokenLayout, hidden: Tensor) -> None:
        name, where, expected = self._method.name, f"boundary {layer}", layout.visual_tokens.valid
        if not isinstance(reduction, Reduction):
            raise PrunebenchError(f"{name} at {where}: expected a Reduction or None, found {type(reduction).__name__}")
        self._check_mask(where, "keep", reduction.keep, expected.shape, expected.device)
        for knob, word, known in (
            ("positions", reduction.positions, get_args(Positions)),
            ("decode_positions", reduction.decode_positions, get_args(DecodePositions)),
        ):
            if word not in known:
                raise PrunebenchError(f"{name} at {where}: expected {knob} to be one of {', '.join(known)}; found {word!r}")
        added = reduction.added
        if added is None:
            return
        (b, _, d), fits = hidden.shape, added.ndim == 3 and added.device == hidden.device
        if not fits or (added.shape[0], added.shape[2]) != (b, d):
            raise PrunebenchError(
                f"{name} at {where}: expected added tokens ({b}, m, {d}) on {hidden.device}, "
                f"found {tuple(added.shape)} on {added.device}"
            )
        if reduction.added_valid is not None:
            self._check_mask(where, "added_valid", reduction.added_valid, added.shape[:2], hidden.device)
        finite = torch.isfinite(added).flatten(1).all(1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise PrunebenchError(f"{name} at {where}, {self._sample(row)}: added tokens hold nan or inf")

    def _check_edits(self, layer: int, edits: Sequence[AttentionEdit]) -> None:
        expected = self.layout.visual_tokens.valid
        for edit in edits:
            if edit.cols is not None:
                self._check_mask(f"layer {layer}", "the cols of an AttentionEdit", edit.cols, expected.shape, expected.device)
            if edit.how != "redirect":
                continue
            counts = self.layout.visual_counts
            sinks = edit.sink.tolist() if isinstance(edit.sink, Tensor) else [edit.sink] * len(counts)
            for row, (sink, count) in enumerate(zip(sinks, counts, strict=True)):
                if not 0 <= sink < count:
                    raise PrunebenchError(
                        f"{self._method.name} at layer {layer}, {self._sample(row)}: expected a sink from 0 to {count - 1} "
                        f"(visual tokens present now), found {sink}"
                    )

    def _decode_inputs(self, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        layout = self._per_layer[layer]
        assert self._prompt_lengths is not None
        if self._decode_positions == "original":
            base = self._prompt_lengths
        elif self._decode_positions == "compact":
            base = self._per_layer[-1].valid.sum(1)
        else:
            base = layout.valid.sum(1)
        positions = (base + self._steps - 1)[:, None]
        kwargs["position_ids"] = positions
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
            view = LayerAttention(layout, q, k, v, out, scaling, self._count_scoring, self._rotate_ones)
            with self._naming(f"layer {layer}"):
                self._method.on_attention(self, layer, view)
                hide = self._method.hide_in_decode(self, layer)
            if hide is not None:
                expected = layout.visual_tokens.valid
                self._check_mask(f"layer {layer}", "hide_in_decode", hide, expected.shape, expected.device)
            self._hidden_in_decode.append(hide)
            if layer == self._depth - 1:
                self._prefilling = False
        if out.shape[2] != wanted:
            out = out[:, :, -wanted:]
        return out.transpose(1, 2)

    def _rotate_ones(self, positions: Tensor) -> Tensor:
        like = torch.ones(1, 1, dtype=torch.float32, device=positions.device)
        cos, sin = self._adapter.rotary(like, positions)
        half = cos.shape[-1] // 2
        # rotate_half of all ones is (-1, ..., -1, 1, ..., 1)
        sign = torch.cat([-torch.ones(half, device=cos.device), torch.ones(half, device=cos.device)])
        return cos + sin * sign

    def _count_scoring(self, executed: int, per_row: Sequence[int]) -> None:
        assert self._trace is not None
        self._trace.scoring_executed += executed
        self._trace.scoring = [a + b for a, b in zip(self._trace.scoring, per_row, strict=True)]


def changed_pixels(method: Method, pixels: Tensor) -> Tensor | None:
    """What the method makes of the pixels before the vision tower, checked; None for no change."""
    changed = method.on_pixels(pixels)
    if changed is not None and (changed.shape != pixels.shape or changed.dtype != pixels.dtype):
        raise PrunebenchError(
            f"{method.name}: expected pixels {pixels.dtype} {tuple(pixels.shape)} from on_pixels, "
            f"found {changed.dtype} {tuple(changed.shape)}"
        )
    return changed


POSITION_POLICIES = ("method", "original", "compact")


@contextmanager
def attach(
    model: nn.Module, method: Method, seed: int = 0, positions: str = "method", looks: Iterable[TowerLook] = ()
) -> Iterator[EngineRun]:
    """Prune every prefill of `model` inside the block with `method`; restores the model on exit, also after an exception.

    `positions` overrides where kept tokens stand: "original" keeps their RoPE positions, "compact" renumbers after every
    reduction (each layer then decodes at its own cache length), "method" leaves it to the method. `looks`: more of the vision tower than
    the method sees, for `EngineRun.encode`. Works with `forward` and with `generate` (KV cache of different length per layer, left-padded
    batches). Raises PrunebenchError for unsupported models and
    for a second attach.
    """
    if positions not in POSITION_POLICIES:
        raise unknown("position policy", positions, POSITION_POLICIES)
    adapter = adapter_for(model)
    method = method.for_model(adapter.shape)
    attentions = [layer.self_attn for layer in adapter.layers]
    if any(id(a) in _ACTIVE for a in attentions):
        raise PrunebenchError("a method is already attached to this model: leave its attach() block before entering another")
    run = EngineRun(adapter, method, seed, positions)
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
