"""Properties of batches: padding, ragged counts, state and seeds."""

from __future__ import annotations

from typing import Any

from harness.core.errors import PrunebenchError
from harness.engine.attach import attach
from harness.models.adapters import adapter_for
from harness.proof.conformance.counts import batch_equals_singles
from harness.proof.conformance.subject import NotApplicableError, Subject, few, property_, require, same
from harness.proof.conformance.tiny import (
    DEPTH,
    N_VISUAL,
    PROMPTS,
    WordEncoder,
    ask,
    ask_in,
    difference,
    prompt,
    tiny_model,
    word_numbers,
)


@property_("padded batch equals singles")
def batch(subject: Subject) -> str:
    gaps = [batch_equals_singles(tiny_model(), label, method, PROMPTS) for label, method in subject.variants().items()]
    return f"{len(PROMPTS)} text lengths; largest difference {max(gaps):.1e}"


@property_("ragged counts: one and two images")
def ragged(subject: Subject) -> str:
    prompts = (prompt(4, 7), prompt(5, 5, images=2), prompt(6, 9))
    counts = set()
    for tokens in (subject.budget, N_VISUAL + 7):
        try:
            method = subject.at(tokens)
            alone = ask(tiny_model(), method, prompts[1:2])
        except (NotApplicableError, PrunebenchError) as error:
            method = subject.any()
            try:
                alone = ask(tiny_model(), method, prompts[1:2])
            except PrunebenchError:
                raise NotApplicableError(f"refuses two images: {error}") from None
        together = ask(tiny_model(), method, prompts)
        same(f"at {tokens}, two images in a batch against alone", together, 1, alone)
        for row in (0, 2):
            same(
                f"at {tokens}, row {row} beside two images against alone",
                together,
                row,
                ask(tiny_model(), method, prompts[row : row + 1]),
            )
        counts |= {tuple(len(o) for o in rows) for rows in together.origins}
    return f"visual tokens per row: {', '.join('/'.join(map(str, c)) for c in sorted(counts, reverse=True)[:4])}"


@property_("no state between prompts")
def state(subject: Subject) -> str:
    model, layer = tiny_model(), adapter_for(tiny_model()).layers[DEPTH // 2]

    def interrupt(_module: Any, _args: Any) -> None:
        raise RuntimeError("raised by the conformance kit")

    for label, method in subject.variants().items():
        with attach(model, method, text_encoder=WordEncoder, tokenizer=word_numbers) as run:
            first = ask_in(run, model, PROMPTS[:1])
            ask_in(run, model, PROMPTS[1:2])
            same(f"{label}, after another prompt", ask_in(run, model, PROMPTS[:1]), 0, first, tolerance=0)
            ask_in(run, model, PROMPTS[1:])
            same(f"{label}, after a batch", ask_in(run, model, PROMPTS[:1]), 0, first, tolerance=0)
            handle = layer.register_forward_pre_hook(interrupt)
            try:
                ask_in(run, model, PROMPTS[1:2])
            except RuntimeError:
                pass
            finally:
                handle.remove()
            same(f"{label}, after an interrupted prefill", ask_in(run, model, PROMPTS[:1]), 0, first, tolerance=0)
        same(f"{label}, in a new attach()", ask(model, method, PROMPTS[:1]), 0, first, tolerance=0)
    return "after a prompt, a batch, an interrupted prefill"


@property_("same seed same result")
def seeds(subject: Subject) -> str:
    for label, method in subject.variants().items():
        one = ask(tiny_model(), method, PROMPTS[:1], seed=1)
        same(f"{label}, seed 1 twice", ask(tiny_model(), method, PROMPTS[:1], seed=1), 0, one, tolerance=0)
        two = ask(tiny_model(), method, PROMPTS[:1], seed=2)
        gap = difference(one.logits, two.logits)
        if subject.cls.traits.random:
            require(
                two.origins != one.origins,
                f"{label}: declared random, but seeds 1 and 2 keep the same: {few(one.origins[-1][0])}",
            )
        elif not method.uses_seed:
            require(gap == 0, f"{label}: uses_seed is false, but seeds 1 and 2 differ by {gap:.2e}")
    if subject.cls.traits.random:
        return "and another one for another seed"
    return "the seed may break ties" if subject.any().uses_seed else "the seed changes nothing, as declared"
