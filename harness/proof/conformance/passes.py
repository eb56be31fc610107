"""Properties of passes: caches, decoding, generate, and the model as it was found."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache

from harness.core.errors import PrunebenchError
from harness.engine.attach import attach
from harness.method import Method
from harness.models.adapters import adapter_for
from harness.proof.conformance.reference import Decisions, bomb, reference, spied
from harness.proof.conformance.subject import (
    CHANGED,
    SAME,
    NotApplicableError,
    Subject,
    drops,
    few,
    property_,
    require,
    same,
)
from harness.proof.conformance.tiny import (
    DEPTH,
    N_VISUAL,
    PROMPTS,
    STEPS,
    KitPrompt,
    WordEncoder,
    ask,
    ask_in,
    difference,
    model_inputs,
    tiny_model,
    unpruned,
    word_numbers,
)


@property_("KV length per layer equals trace")
def kv_lengths(subject: Subject) -> str:
    lengths: list[int] = []
    for label, method in subject.variants().items():
        got = ask(tiny_model(), method, PROMPTS, steps=0)
        for layer, (length, traced, layout) in enumerate(
            zip(got.lengths, got.run.trace.layers, got.run.layouts, strict=True)
        ):
            where = f"{label}, layer {layer}"
            require(
                length == traced.columns == max(traced.tokens),
                f"{where}: {length} keys cached, the trace says {traced}",
            )
            n_text = [len(p.ids) - N_VISUAL for p in PROMPTS]
            tokens = [v + t for v, t in zip(traced.visual, n_text, strict=True)]
            require(
                traced.tokens == tokens == layout.counts,
                f"{where}: {traced.tokens} tokens, expected text + visual = {tokens}",
            )
        lengths = lengths or got.lengths
    return f"{lengths[0]} to {lengths[-1]}"


def equals_reference(
    model: Any, label: str, method: Method, asked: KitPrompt, policy: str, tolerance: float = SAME
) -> float:
    decided = Decisions()
    got = ask(model, spied(method, decided), (asked,), positions=policy)
    want = reference(model, asked, method, decided, policy)
    label = f"{label}, positions {policy}"
    require(got.lengths == want.lengths, f"{label}: {got.lengths} tokens by layer, from scratch {want.lengths}")
    for layer, (a, b) in enumerate(zip(got.origins, want.origins, strict=True)):
        require(a[0] == b, f"{label}: layer {layer} holds {few(a[0])}, from scratch {few(b)}")
    gaps: list[float] = (got.logits[0] - want.logits).abs().amax(1).tolist()
    for step, gap in enumerate(gaps):
        what = "prefill" if step == 0 else f"decode step {step}"
        require(
            gap <= tolerance,
            f"{label}: logits of {what} differ from a pass from scratch by {gap:.2e} (tolerance {tolerance:.0e})",
        )
    return max(gaps)


@property_("prefill and decode equal a pass from scratch")
def decode(subject: Subject) -> str:
    gaps = [
        equals_reference(tiny_model(), label, method, PROMPTS[0], policy)
        for label, method in subject.variants().items()
        for policy in ("method", "original", "compact")
    ]
    return f"3 position policies, {STEPS} steps; largest difference {max(gaps):.1e}"


@property_("generate equals a greedy loop")
def generates(subject: Subject) -> str:
    model = tiny_model()
    with attach(model, subject.any(), text_encoder=WordEncoder, tokenizer=word_numbers) as run, torch.inference_mode():
        run.samples = run.questions = [p.key for p in PROMPTS]
        inputs = model_inputs(model, PROMPTS)
        whole = model.generate(**inputs, max_new_tokens=STEPS + 1, do_sample=False)
        kv = DynamicCache(config=model.config.text_config)
        chosen = [model(**inputs, past_key_values=kv, logits_to_keep=1).logits[:, -1].argmax(-1)]
        for _ in range(STEPS):
            chosen.append(model(input_ids=chosen[-1][:, None], past_key_values=kv).logits[:, -1].argmax(-1))
    loop, generated = torch.stack(chosen, 1).tolist(), whole[:, -STEPS - 1 :].tolist()
    require(loop == generated, f"generate() says {generated}, the loop {loop}")
    return f"{STEPS + 1} tokens, {len(PROMPTS)} rows"


def _left_behind(model: Any) -> str | None:
    adapter = adapter_for(model)
    hooked = [
        m
        for m in (adapter.core, adapter.text, adapter.tower, *adapter.layers)
        if m._forward_pre_hooks or m._forward_hooks
    ]
    if hooked:
        return f"{len(hooked)} modules still hold hooks"
    implementation = adapter.text.config._attn_implementation
    return None if implementation == "sdpa" else f"the attention implementation is {implementation!r}, expected 'sdpa'"


@property_("exception restores the model")
def restores(subject: Subject) -> str:
    model, method = tiny_model(), subject.any()
    bare, pruned = unpruned(model, PROMPTS[:1]), ask(model, method, PROMPTS[:1])
    places = [
        ("at_boundary", 0),
        ("at_boundary", DEPTH - 1),
        ("on_attention", DEPTH // 2),
        ("edit_attention", 1),
        ("hide_in_decode", DEPTH - 1),
    ]
    for hook, layer in places:
        raised = False
        try:
            ask(model, bomb(method, hook, layer), PROMPTS[:1])
        except PrunebenchError as error:
            raised = "raised by the conformance kit" in str(error)
        where = f"after an exception in {hook} of layer {layer}"
        require(raised, f"{where}: it was swallowed")
        left = _left_behind(model)
        require(left is None, f"{where}: {left}")
        gap = difference(unpruned(model, PROMPTS[:1]), bare)
        require(gap == 0, f"{where}: the bare model's logits differ by {gap:.2e}")
    same("attached again", ask(model, method, PROMPTS[:1]), 0, pruned, tolerance=0)
    return f"{len(places)} places"


@property_("the model stays as it is")
def untouched(subject: Subject) -> str:
    model = tiny_model.__wrapped__()  # no other property has had it
    unpruned(model, PROMPTS)  # transformers puts hooks of its own onto a model that runs first
    before = _numbers(model)
    for method in subject.variants().values():
        ask(model, method, PROMPTS)
    now = _numbers(model)
    changed = [name for name in before.keys() | now.keys() if not _equal(before.get(name), now.get(name))]
    require(not changed, f"{len(changed)} of {len(before)} parts of the model differ, {min(changed, default='')} first")
    left = _left_behind(model)
    require(left is None, str(left))
    return f"{len(before)} tensors and modules"


def _numbers(model: Any) -> dict[str, Any]:
    """A copy of every tensor of a model, and of each module its mode, hooks and functions of its own."""
    found: dict[str, Any] = {
        name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    for name, module in model.named_modules():
        hooks = (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
        own = sorted(key for key, value in vars(module).items() if callable(value) and not isinstance(value, type))
        found[f"module {name}"] = (id(module), module.training, hooks, own)
    return found


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else bool(a is b or a == b)


@property_("double attach refused")
def double_attach(subject: Subject) -> str:
    model, method = tiny_model(), subject.any()
    with attach(model, method, text_encoder=WordEncoder, tokenizer=word_numbers) as run:
        before = ask_in(run, model, PROMPTS[:1])
        refused = False
        try:
            with attach(model, method):
                pass
        except PrunebenchError:
            refused = True
        require(refused, "a second attach() to the same model was accepted")
        same("after the refusal", ask_in(run, model, PROMPTS[:1]), 0, before, tolerance=0)
    left = _left_behind(model)
    require(left is None, str(left))
    return "and the first keeps working"


@property_("position policies differ")
def policies(subject: Subject) -> str:
    method = subject.any()
    ran = {policy: ask(tiny_model(), method, PROMPTS[:1], positions=policy) for policy in ("original", "compact")}
    if not drops(ran["original"]):
        raise NotApplicableError("no token is dropped, so there is nothing to renumber")
    for policy, got in ran.items():
        for layer, (layout, rows) in enumerate(zip(got.run.layouts, got.origins, strict=True)):
            found = layout.positions[0, :, 0].tolist()
            if policy == "compact":
                require(found == list(range(layout.n)), f"compact, layer {layer}: positions {found}")
            else:
                at = [p for p, v in zip(found, layout.visual[0].tolist(), strict=True) if v]
                own = [(p, o + 3) for p, o in zip(at, rows[0], strict=True) if o >= 0]
                require(all(p == o for p, o in own), f"original, layer {layer}: visual tokens at {at}")
                require(
                    found[-1] == len(PROMPTS[0].ids) - 1,
                    f"original, layer {layer}: the last token stands at {found[-1]}",
                )
    gap = difference(ran["original"].logits, ran["compact"].logits)
    require(gap >= CHANGED, f"original and compact differ by {gap:.2e} only")
    return f"original and compact by {gap:.2f}"
