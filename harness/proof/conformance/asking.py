"""The conformance kit's properties of what a method asks: every answer equals a pass from scratch, and every product is
charged.

The answers that a method gets from `Attention`, `Stream` and the vision tower are written down while it runs and
computed again from the model's own weights: full probability matrices, no cache, no fused kernel, no padding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from harness.core import flops
from harness.core.shape import ModelShape
from harness.method import Method, TowerLook
from harness.models.adapters import Adapter, adapter_for
from harness.proof.conformance.reference import (
    Decisions,
    Inside,
    Spy,
    Token,
    causal_probs,
    projected,
    reference,
    spied,
    turned,
)
from harness.proof.conformance.subject import SAME, NotApplicableError, Subject, property_, require
from harness.proof.conformance.tiny import PROMPTS, KitPrompt, ask, difference, tiny_model

#: of what is asked: the hook and layer, the question, how often it was asked there before
Place = tuple[str, int, str, int]


class Answered(NamedTuple):
    """A question with what came back, a tensor with the batch in front."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    got: Tensor


class _Asking:
    """Stands before an `Attention` or a `Stream`, passes every question on and tells `note` what came back."""

    def __init__(
        self, inner: Any, note: Callable[[str, tuple[Any, ...], dict[str, Any], Tensor], None], prefix: str = ""
    ) -> None:
        self._inner, self._note, self._prefix = inner, note, prefix

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name == "normed":
            return _Asking(found, self._note, "normed.")
        if isinstance(found, Tensor):
            self._note(self._prefix + name, (), {}, found.clone())
            return found
        if not callable(found):
            return found

        def asked(*args: Any, **kwargs: Any) -> Any:
            got = found(*args, **kwargs)
            self._note(self._prefix + name, args, kwargs, (got if isinstance(got, Tensor) else got.values).clone())
            return got

        return asked


class _Listening(Spy):
    """A method, with every question that it asks and its answer in `log`."""

    def __init__(self, method: Method | Spy, log: dict[Place, Answered]) -> None:
        super().__init__(cast(Method, method), lambda *_: None)
        self._log, self._times = log, Counter[tuple[str, int, str]]()

    def for_model(self, shape: ModelShape) -> Spy:
        return _Listening(self._method.for_model(shape), self._log)

    def _asking(self, hook: str, layer: int, inner: Any) -> _Asking:
        def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], got: Tensor) -> None:
            self._log[hook, layer, name, self._times[hook, layer, name]] = Answered(args, kwargs, got)
            self._times[hook, layer, name] += 1

        return _Asking(inner, note)

    def on_attention(self, run: Any, layer: int, attn: Any) -> Any:
        return self._method.on_attention(run, layer, cast(Any, self._asking("attention", layer, attn)))

    def at_boundary(self, run: Any, layer: int, stream: Any) -> Any:
        return self._method.at_boundary(run, layer, cast(Any, self._asking("stream", layer, stream)))

    def on_image(self, run: Any, tower: Any) -> Any:
        for look in self._method.looks(run.shape):
            self._log["tower", look.layer, look.what, 0] = Answered((look,), {}, tower[look].clone())
        return self._method.on_image(run, tower)


def _listened(method: Method, prompts: Sequence[KitPrompt], decided: Decisions | None = None) -> dict[Place, Answered]:
    log: dict[Place, Answered] = {}
    inner = method if decided is None else spied(method, decided)
    ask(tiny_model(), cast(Method, _Listening(inner, log)), prompts, steps=0)
    return log


def _rows(tokens: list[Token], rows: Any) -> list[int]:
    """Places of the asked query rows in a pass from scratch."""
    if isinstance(rows, Tensor) and rows.dtype == torch.long:
        both = [*_rows(tokens, "visual"), *_rows(tokens, "after")]
        return [both[number] for number in rows[0].tolist()]
    if isinstance(rows, Tensor):
        behind = [i for i, t in enumerate(tokens) if t.behind]
        return [i for i, wanted in zip(behind, rows[0].tolist(), strict=True) if wanted]
    kinds = {
        "last": lambda i, t: i == len(tokens) - 1,
        "after": lambda i, t: t.behind,
        "visual": lambda i, t: t.origin != -1,
    }
    return [i for i, t in enumerate(tokens) if kinds[rows](i, t)]


def _on_visual(
    probs: Tensor, tokens: list[Token], rows: Any = "last", of: Tensor | None = None, heads: str = "each"
) -> Tensor:
    """(heads, r, v) of `probs (heads, n, n)`."""
    chosen = probs[:, _rows(tokens, rows)][:, :, _rows(tokens, "visual")]
    chosen = chosen if of is None or bool(of[0]) else torch.zeros_like(chosen)
    if heads == "each":
        return chosen
    return chosen.mean(0, keepdim=True) if heads == "mean" else chosen.amax(0, keepdim=True)


def _in_attention(asked: Answered, name: str, inside: Inside) -> Tensor:
    """What an `Attention` should have answered."""
    tokens = inside.tokens
    visual, after = _rows(tokens, "visual"), _rows(tokens, "after")
    if name == "visual_probs":
        return _on_visual(inside.probs, tokens, *asked.args, **asked.kwargs)
    if name == "rotated":
        vector, at = asked.args
        places = torch.tensor([tokens[i].position for i in _rows(tokens, at)])
        return turned(tiny_model(), places)(vector.expand(1, len(places), -1))[0]
    known = {"visual_values": inside.v[:, visual], "visual_keys": inside.k[:, visual], "after_keys": inside.k[:, after]}
    return known[name] if name in known else inside.out[-1].view(inside.v.shape[0], -1)  # last_output


def _in_stream(adapter: Adapter, layer: int, asked: Answered, name: str, tokens: list[Token], x: Tensor) -> Tensor:
    """What a `Stream` should have answered."""
    kind = name.rpartition(".")[2]
    if kind == "after_valid":
        return torch.ones(len(_rows(tokens, "after")), dtype=torch.bool)
    if kind == "coming_probs":
        places = torch.tensor([t.position for t in tokens])
        given = dict(asked.kwargs)
        turn = turned(tiny_model(), places) if given.pop("rotated", True) else lambda vectors: vectors
        q, k, _ = projected(adapter, layer, x, turn)
        return _on_visual(causal_probs(q, k), tokens, *asked.args, **given)
    return (adapter.text.norm(x) if name.startswith("normed.") else x)[_rows(tokens, kind)]


@property_("answers to its questions equal a pass from scratch")
def answers(subject: Subject) -> str:
    model, asked = tiny_model(), PROMPTS[0]
    adapter, counted = adapter_for(model), Counter[str]()
    for label, method in subject.variants().items():
        decided = Decisions()
        log = _listened(method, (asked,), decided)
        inside: dict[int, tuple[list[Token], Tensor, Inside]] = {}
        reference(model, asked, method, decided, "method", lambda layer, *seen, into=inside: into.update({layer: seen}))
        for (hook, layer, name, _), answer in log.items():
            if hook == "tower":
                continue
            tokens, x, in_layer = inside[layer]
            with torch.inference_mode():
                want = (
                    _in_attention(answer, name, in_layer)
                    if hook == "attention"
                    else _in_stream(adapter, layer, answer, name, tokens, x)
                )
            got = answer.got[0]
            where = f"{label}, {name} of layer {layer}"
            require(got.shape == want.shape, f"{where}: {tuple(got.shape)}, from scratch {tuple(want.shape)}")
            gap = difference(got.float(), want.float()) if want.numel() else 0.0
            require(gap <= SAME, f"{where}: differs from a pass from scratch by {gap:.2e} (tolerance {SAME:.0e})")
            counted[name] += 1
    if not counted:
        raise NotApplicableError("asks nothing of attention or stream")
    return ", ".join(f"{name} x {n}" for name, n in counted.items())


@property_("answers in a padded batch equal those alone")
def answers_in_batches(subject: Subject) -> str:
    compared = 0
    for label, method in subject.variants().items():
        together = _listened(method, PROMPTS)
        for row, asked in enumerate(PROMPTS):
            for place, alone in _listened(method, (asked,)).items():
                require(
                    place in together,
                    f"{label}, row {row}: asks {place[2]} of layer {place[1]} alone and not in a batch",
                )
                want = alone.got[0].float()
                got = together[place].got[row].float()
                require(
                    all(a >= b for a, b in zip(got.shape, want.shape, strict=True)),
                    f"{label}, row {row}, {place[2]} of layer {place[1]}: {tuple(got.shape)} in a batch,"
                    f" {tuple(want.shape)} alone",
                )
                mine = got[tuple(slice(n) for n in want.shape)]
                gap = difference(mine, want) if want.numel() else 0.0
                require(
                    gap <= SAME, f"{label}, row {row}, {place[2]} of layer {place[1]}: differs from alone by {gap:.2e}"
                )
                require(
                    bool(torch.isfinite(got).all()),
                    f"{label}, row {row}, {place[2]} of layer {place[1]}: nan or inf beyond its count",
                )
                compared += 1
    if not compared:
        raise NotApplicableError("asks nothing")
    return f"{compared} answers"


@property_("looks equal the tower's own")
def looks(subject: Subject) -> str:
    model, asked = tiny_model(), PROMPTS[0]
    adapter, seen = adapter_for(model), set[str]()
    for label, method in subject.variants().items():
        for answer in _listened(method, (asked,)).values():
            if not (answer.args and isinstance(answer.args[0], TowerLook)):
                continue
            look = answer.args[0]
            want = _looked(model, adapter, look, asked.pixels)
            require(
                answer.got[0].shape == want.shape,
                f"{label}, {look}: {tuple(answer.got[0].shape)}, the tower's {tuple(want.shape)}",
            )
            gap = difference(answer.got[0].float(), want.float())
            require(gap <= SAME, f"{label}, {look}: differs from the tower's own by {gap:.2e} (tolerance {SAME:.0e})")
            seen.add(look.what)
    if not seen:
        raise NotApplicableError("does not look at the vision tower")
    return ", ".join(sorted(seen))


@torch.inference_mode()
def _looked(model: Any, adapter: Adapter, look: TowerLook, pixels: Tensor) -> Tensor:
    """What a bare run of the tower with eager attention says, as a method gets it for one image."""
    layer: Any = adapter.tower_layers[look.layer]
    attention, kept = adapter.tower_attention(layer), dict[str, Tensor]()

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: Any, _args: Any, out: Any) -> None:
            kept[name] = (out if isinstance(out, Tensor) else out[0])[0]

        return hook

    modules = {"hidden": layer, "q": attention.q_proj, "k": attention.k_proj}
    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        adapter.tower(pixels)
    finally:
        for handle in handles:
            handle.remove()
    first = adapter.tower_prefix or 0
    if look.what in ("hidden", "mean_hidden", "keys"):
        return kept["k" if look.what == "keys" else "hidden"][first:]
    if look.what in ("cls_hidden", "cls_query", "cls_key"):
        return kept[{"cls_hidden": "hidden", "cls_query": "q", "cls_key": "k"}[look.what]][:1]
    q, k = (kept[name].view(len(kept[name]), attention.heads, -1).transpose(0, 1).double() for name in ("q", "k"))
    probs = (q @ k.transpose(1, 2) * attention.scaling).softmax(-1)
    return (probs[:, 0] if look.what == "cls_row" else probs.sum(1))[:, first:]


@property_("every product is charged")
def charged(subject: Subject) -> str:
    model = tiny_model()
    shape, counts = adapter_for(model).shape, []
    for label, method in subject.variants().items():
        # a fused kernel is one operator that the counter reads as 0
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run = ask(model, method, PROMPTS, steps=0).run
        images = [image for prompt in run.prompts for image in prompt.images]
        vision = sum(flops.vision_tower(image.vision) + flops.projector(shape, image.vision) for image in images)
        said = flops.prefill_executed(shape, run.trace) + flops.lm_head(shape, len(PROMPTS)) + vision
        counted = counter.get_total_flops()
        require(
            said == counted,
            f"{label}: the trace says {said} FLOPs, {counted} were counted: make matrix products with run.matmul",
        )
        require(
            sum(run.trace.scoring) <= run.trace.scoring_executed, f"{label}: more scoring without padding than with it"
        )
        counts.append(run.trace.scoring_executed)
    return f"{max(counts)} FLOPs of scoring" if max(counts) else "asks for no product"
