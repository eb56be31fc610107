"""The doors of transformers that an attached engine goes through, each tried on a tiny twin before the first method.

A signature can lie: where `forward` ends in **kwargs, a keyword that nobody reads is swallowed without a word. So a
prefill, a decode step and the tower of a twin (harness/models/adapters/twin.py) run once for each kind of model and
process, and each thing that the engine hands over is looked for where it must arrive.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, get_args

import torch
import transformers
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, StaticCache

from harness.core.errors import PrunebenchError
from harness.core.tested import tested
from harness.engine.prefix import roomy_cache
from harness.engine.tower import Seen, TowerEye
from harness.method import TowerLook, What
from harness.method.fits import unseen
from harness.models.adapters import Adapter, Features, adapter_for
from harness.models.adapters.twin import IMAGE_TOKEN, TEXT_TOKEN, twin

KERNEL = "prunebench-doors"
#: what every head of the pretended attention says, by which it is known again
SAID = 0.5
#: kinds of model whose doors were found in this process
passed: set[Hashable] = set()
_PROBES: dict[int, _Probe] = {}


def check(adapter: Adapter) -> None:
    """Raise PrunebenchError naming the first door that the installed transformers does not have, and what mends it."""
    layer: Any = adapter.layers[0]
    parts = (adapter.model, adapter.core, adapter.text, layer, layer.self_attn, adapter.tower)
    kind = tuple((type(part), type(part).forward) for part in parts)
    if kind in passed:
        return
    # a thread of its own, since counters and modes of the caller (FlopCounterMode) are a thread's
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_try, adapter.model).result()
    passed.add(kind)


class _Probe:
    """A twin under hooks that do what the engine's do, and what they saw."""

    def __init__(self, model: Any) -> None:
        self.adapter = adapter_for(model)
        self.core: dict[str, Any] = {}
        self.text: dict[str, Any] = {}
        self.deepstack: list[Tensor] = []
        self.streams: list[Tensor] = []
        self.handed: list[tuple[Tensor, Tensor | None, tuple[Tensor, Tensor]]] = []
        self.attended: list[dict[str, Any]] = []
        self.projected: list[Tensor] = []

    @contextmanager
    def attached(self) -> Iterator[None]:
        adapter = self.adapter
        handles = [
            adapter.core.register_forward_pre_hook(self._on_core, with_kwargs=True),
            adapter.text.register_forward_pre_hook(self._on_text, with_kwargs=True),
        ]
        for layer in adapter.layers:
            attention: Any = layer.self_attn
            _PROBES[id(attention)] = self
            handles.append(layer.register_forward_pre_hook(self._on_layer, with_kwargs=True))
            handles.append(attention.o_proj.register_forward_pre_hook(self._on_projection))
        adapter.text.config._attn_implementation = KERNEL
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for layer in adapter.layers:
                _PROBES.pop(id(layer.self_attn), None)

    def _on_core(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.core = {**({"input_ids": args[0]} if args else {}), **kwargs}

    def _on_text(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.text = dict(kwargs)
        self.deepstack = self.adapter.take_deepstack(kwargs)
        return args, kwargs

    def _on_layer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Of a prefill, layer 0 loses its first token; each layer gets places and a mask of its own."""
        hidden = args[0] if args else kwargs.pop("hidden_states", None)
        _expect(isinstance(hidden, Tensor), f"{_name(module)} to be called with hidden_states first", "something else")
        self.streams.append(hidden)
        if len(self.streams) == 1:
            hidden = hidden[:, 1:]
        n = hidden.shape[1]
        mask = torch.ones(1, 1, n, n, dtype=torch.bool).tril() if n > 1 else None
        positions = 3 + len(self.streams) + torch.arange(n)[None]
        rotary = self.adapter.rotary(hidden, positions[:, :, None])
        self.handed.append((hidden, mask, rotary))
        kwargs |= {"attention_mask": mask, "position_ids": positions, "position_embeddings": rotary}
        return (hidden, *args[1:]), kwargs

    def _on_projection(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.projected.append(args[0])


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    _PROBES[id(module)].attended.append(
        {"module": module, "q": query, "k": key, "v": value, "mask": attention_mask, "scaling": scaling}
    )
    return torch.full_like(query.transpose(1, 2), SAID), None


AttentionInterface.register(KERNEL, _attention)
AttentionMaskInterface.register(KERNEL, lambda *args, **kwargs: None)


@torch.no_grad()
def _try(model: Any) -> None:
    name = type(model).__name__
    with _through(f"{name} to be made from its config"):
        probe = _Probe(twin(model))
    adapter = probe.adapter
    _expect(getattr(StaticCache, "is_compileable", False), "StaticCache.is_compileable", "a class without it")
    text, image = TEXT_TOKEN, IMAGE_TOKEN
    given = {
        "input_ids": torch.tensor([[text, image, image, text]]),
        "attention_mask": torch.ones(1, 4, dtype=torch.long),
        "position_ids": torch.tensor([[0, 2, 3, 4]]),
        "past_key_values": roomy_cache(len(adapter.layers)),
    }
    pooled = torch.linspace(-1, 1, 2 * adapter.shape.hidden).sin().view(2, -1)
    deep = (pooled.cos(),) * (adapter.usual.images[0].vision.projectors - 1)
    with probe.attached():
        with _through(f"{name} to run a prefill from mm_encoder_outputs"):
            out = adapter.model(**given, mm_encoder_outputs=adapter.outputs([Features(pooled, deep)]), logits_to_keep=1)
        _expect(
            len(probe.deepstack) == len(deep) and all(map(torch.equal, probe.deepstack, deep)),
            f"{_name(adapter.text)} to be called with the DeepStack features of each image",
            "others",
        )
        _prefill(probe, given, pooled, out)
        with _through(f"{name} to run a decode step on a cache of our layers"):
            adapter.model(input_ids=given["input_ids"][:, :1], past_key_values=given["past_key_values"])
        _expect(
            probe.attended[-1]["k"].shape[2] == probe.attended[-1]["q"].shape[2] + probe.attended[0]["k"].shape[2],
            f"{_name(probe.attended[-1]['module'])} to attend to what past_key_values holds in a decode step",
            f"{probe.attended[-1]['k'].shape[2]} keys",
        )
    with _through(f"{name}.get_image_features to give the features of each image"):
        _tower(adapter)


def _prefill(probe: _Probe, given: dict[str, Any], pooled: Tensor, out: Any) -> None:
    """Look for everything that was handed to the first prefill."""
    adapter, layer = probe.adapter, probe.adapter.layers[0]
    core, text = _name(adapter.core), _name(adapter.text)
    for keyword in ("input_ids", "attention_mask", "past_key_values"):
        _expect(probe.core.get(keyword) is given[keyword], f"{core} to be called with {keyword}=", "a call without it")
    for keyword in ("past_key_values", "position_ids"):
        _expect(probe.text.get(keyword) is given[keyword], f"{text} to be called with {keyword}=", "a call without it")
    _expect(len(probe.streams) == len(adapter.layers), f"{text} to call each of its layers once", "another number")
    merged = probe.streams[0][0, 1:3]
    takes = "mm_encoder_outputs" in inspect.signature(type(adapter.core).forward).parameters
    _expect(
        merged.shape == pooled.shape and torch.equal(merged, pooled),
        f"{core}.forward to put the image features of mm_encoder_outputs in place of the image's tokens",
        f"a forward that {'does not use it' if takes else 'swallows it unread'}",
    )
    _expect(
        len(probe.attended) == len(adapter.layers),
        f"{_name(layer.self_attn)} to call the function that AttentionInterface registered, once a layer",
        f"{len(probe.attended)} calls in {len(adapter.layers)} layers",
    )
    for index, (seen, (hidden, mask, rotary)) in enumerate(zip(probe.attended, probe.handed, strict=True)):
        module = seen["module"]
        attention, decoder = _name(module), _name(layer)
        cos, sin = (part[:, None] for part in rotary)
        _expect(module.layer_idx == index, f"{attention}.layer_idx to count the layers", f"{module.layer_idx}")
        _expect(
            seen["q"].shape[2] == hidden.shape[1],
            f"{decoder} to run on the hidden_states that a forward pre-hook hands it",
            f"{seen['q'].shape[2]} queries for {hidden.shape[1]} tokens",
        )
        for part, projected in (("q", adapter.queries(index, hidden)), ("k", adapter.keys(index, hidden))):
            _expect(
                torch.allclose(seen[part], adapter.rotate(projected, cos, sin), rtol=1e-4, atol=1e-6),
                f"{decoder} to rotate {part}_proj of its input by the position_embeddings that a pre-hook hands it",
                "other values",
            )
        _expect(
            seen["mask"] is mask,
            f"{decoder} to hand attention_mask on to the attention function unchanged",
            f"{type(seen['mask']).__name__} in its place",
        )
        _expect(
            seen["scaling"] == adapter.scaling(index),
            f"{attention} to call its attention function with scaling=",
            f"scaling={seen['scaling']}",
        )
        entry = given["past_key_values"].layers[index]
        _expect(
            given["past_key_values"].get_seq_length(index) == hidden.shape[1] and torch.equal(entry.keys, seen["k"]),
            f"{attention} to keep its keys in past_key_values.layers[layer]",
            "others there",
        )
        said = probe.projected[index]
        _expect(
            said.shape[:2] == hidden.shape[:2] and bool((said == SAID).all()),
            f"{attention} to project with o_proj what its attention function returned",
            "something else",
        )
    _expect(
        tuple(out.logits.shape[:2]) == (1, 1),
        f"{type(adapter.model).__name__}.forward to keep logits_to_keep logits a prompt",
        f"logits of shape {tuple(out.logits.shape)}",
    )


def _tower(adapter: Adapter) -> None:
    """Look for changed pixels in the features, and for every kind of look at the tower."""
    name = type(adapter.model).__name__
    config = adapter.model.config
    images, vision = adapter.sample(config, 2), adapter.usual.images[0].vision
    facts = {name: images[name] for name in adapter.image_facts}
    plain = adapter.encode(**images)
    n_visual = len(images["pixel_values"]) // 2 // vision.merge if adapter.joined else adapter.image_of(config).tokens
    _expect(
        [tuple(one.pooled.shape) for one in plain] == 2 * [(n_visual, adapter.shape.hidden)],
        f"{name}.get_image_features to give pooler_output of each image, of {n_visual} visual tokens",
        f"shapes {[tuple(one.pooled.shape) for one in plain]}",
    )
    looks = [TowerLook(what, 0) for what in get_args(What) if unseen(what, vision) is None]
    seen: list[Seen] = []
    eye = TowerEye(adapter, looks, seen.extend, lambda: facts)

    def changed(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return (-(args[0] if args else kwargs.pop("pixel_values")), *args[1:]), kwargs

    handle = adapter.tower.register_forward_pre_hook(changed, with_kwargs=True)
    try:
        other = adapter.encode(**images)
    finally:
        handle.remove()
        eye.remove()
    _expect(
        not torch.equal(other[0].pooled, plain[0].pooled),
        f"{_name(adapter.tower)} to run on the pixels that a forward pre-hook hands it",
        "features of other pixels",
    )
    _expect(
        len(seen) == 2 and all(set(one) == set(looks) for one in seen),
        f"{_name(adapter.tower_layers[0])} to project queries and keys and to run its own forward on each image",
        f"{len(seen)} images seen",
    )


def _name(module: object) -> str:
    return type(module).__name__


def _expect(there: bool, door: str, found: str) -> None:
    if not there:
        raise PrunebenchError(
            f"expected {door}, found {found} in transformers {transformers.__version__}: {tested('transformers').mend}"
        )


@contextmanager
def _through(door: str) -> Iterator[None]:
    """What else goes wrong on the way is a door that is not there either."""
    try:
        yield
    except (PrunebenchError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        _expect(False, door, f"{type(error).__name__} ({reason})")
