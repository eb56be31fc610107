"""`attach(model, method)`: prune every prefill inside the block, measure what ran, leave nothing behind.

How it holds on to a transformers 5 model without forking a file: pre-hooks on the decoder layers own the residual
stream and hand every layer its own mask, positions and rotary embeddings (what a hook passes reaches that layer only);
the attention function is ours through `AttentionInterface`, so q, k, v are the model's own, after RoPE. A prefill is
recognised by an empty cache at layer 0. In decode every layer has its own cache length, hence its own mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from harness.core.errors import PrunebenchError, unknown
from harness.engine import doors
from harness.engine.run import EngineRun, HookInputs
from harness.engine.tower import TowerEye
from harness.engine.view import Tokenizer
from harness.method import Method, TowerLook
from harness.method.fits import check_fits, check_pictures
from harness.models.adapters import adapter_for
from harness.models.adapters.text_encoder import TextEncoder
from harness.models.device import check_whole

KERNEL = "prunebench"
#: decoder attention modules under an attached engine; found by module, since hook kwargs do not reach the attention
#: function
_ACTIVE: dict[int, EngineRun] = {}
#: keywords of an attention function that change its arithmetic in a way that ours does not do
_REFUSED = ("sliding_window", "softcap", "s_aux")


def _engine_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **others: object,
) -> tuple[Tensor, None]:
    for name in _REFUSED:
        if others.get(name) is not None:
            raise PrunebenchError(
                f"decoder layer {module.layer_idx}: expected plain softmax attention, found {name}={others[name]},"
                " which prunebench does not compute: use a model without it"
            )
    run = _ACTIVE.get(id(module))
    if run is None:
        raise RuntimeError(f"attention kernel {KERNEL!r} is set on a module that no engine is attached to")
    return run._attention(int(module.layer_idx), query, key, value, attention_mask, scaling), None  # type: ignore[arg-type]


AttentionInterface.register(KERNEL, _engine_attention)
# the mask of transformers is built for one length for all layers; ours are per layer, so theirs is not built at all
AttentionMaskInterface.register(KERNEL, lambda *args, **kwargs: None)


POSITION_POLICIES = ("method", "original", "compact")


@contextmanager
def attach(
    model: nn.Module,
    method: Method,
    seed: int = 0,
    positions: str = "method",
    looks: Iterable[TowerLook] = (),
    text_encoder: Callable[[], TextEncoder] | None = None,
    pictures: bool = False,
    tokenizer: Tokenizer | None = None,
) -> Iterator[EngineRun]:
    """Prune every prefill of `model` inside the block with `method`; restores the model on exit, also after an
    exception.

    `positions` overrides where kept tokens stand: "original" keeps their RoPE positions, "compact" renumbers after
    every reduction (each layer then decodes at its own cache length), "method" leaves it to the method. `looks`: more
    of the vision tower than the method sees, for `EngineRun.encode`. `text_encoder` gives what `Run.question` encodes
    with, when it is first asked, and `tokenizer` the ids of words for `Run.question_tokens`. `pictures`: who attaches
    asks `Method.picture` before the processor. Works with `forward` and with `generate` (KV cache of different length
    per layer, left-padded batches). Raises PrunebenchError for unsupported models, for a transformers without the doors
    that this goes through (harness/engine/doors.py), for a second attach, and at the end if the method has changed the
    model.
    """
    if positions not in POSITION_POLICIES:
        raise unknown("position policy", str(positions), POSITION_POLICIES)
    if isinstance(method, str | type):  # whatever has the hooks is a method: tests wrap them
        raise PrunebenchError(
            f"expected a method object, found {method!r}: prunebench.prune(model, 'fastv', budget=64) takes names and"
            " budgets"
        )
    check_whole(model)
    adapter = adapter_for(model)
    if positions == "compact" and adapter.axes > 1:
        raise PrunebenchError(
            "positions=compact: expected positions on one axis, found a model that rotates by three (M-RoPE), where no"
            " official code renumbers: use positions=original"
        )
    doors.check(adapter)
    method = method.for_model(adapter.shape)
    check_fits(method, adapter.usual)
    if not pictures:
        check_pictures(method, adapter.one_size)
    attentions = [layer.self_attn for layer in adapter.layers]
    if any(id(a) in _ACTIVE for a in attentions):
        raise PrunebenchError(
            "a method is already attached to this model: leave its attach() block before entering another"
        )
    run = EngineRun(adapter, method, seed, positions, text_encoder, tokenizer)
    text_config = adapter.text.config
    before = text_config._attn_implementation
    eye = TowerEye(adapter, {*method.looks(adapter.shape), *looks}, run.see, lambda: run._said)
    handles: list[Any] = []
    deaf = adapter.on_images(run._hears)

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
        handles += [
            module.register_forward_pre_hook(pre_hook(i), with_kwargs=True) for i, module in enumerate(adapter.layers)
        ]
        yield run
    finally:
        eye.remove()
        deaf()
        for handle in handles:
            handle.remove()
        text_config._attn_implementation = before
        for attention in attentions:
            _ACTIVE.pop(id(attention), None)
        run._untouched.look()
    run.check_model()
