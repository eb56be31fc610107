"""Properties of what a method makes of images: one image's share does not depend on another, merged tokens are the
prompt's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.engine.attach import attach
from harness.method import Method, Reduction
from harness.models.adapters import LlavaAdapter, adapter_for
from harness.proof.conformance.reference import Decisions, spied
from harness.proof.conformance.subject import SAME, NotApplicableError, Subject, few, property_, require
from harness.proof.conformance.tiny import (
    N_VISUAL,
    KitPrompt,
    WordEncoder,
    ask,
    ask_in,
    prompt,
    tiny_model,
    word_numbers,
)

#: dimensions in which features and visual tokens lie where combinations are told from other vectors
RANK = 6


class _Share(NamedTuple):
    """What a reduction before layer 0 does to one image: `keep (tokens,)`, their `order`, and the tokens it makes."""

    keep: Tensor
    order: list[int]
    new: Tensor


@property_("images of a prompt decided one by one")
def one_by_one(subject: Subject) -> str:
    if not subject.cls.traits.per_image:
        raise NotApplicableError("does not declare per_image")
    both = prompt(7, 5, images=2)
    other = prompt(8, 5, images=2)
    for label, method in subject.variants().items():
        for layer, (present,) in enumerate(ask(tiny_model(), method, (both,), steps=0).origins):
            of = [origin // N_VISUAL for origin in present if origin >= 0]
            require(of == sorted(of), f"{label}, layer {layer}: kept tokens of two images stand mixed: {few(present)}")
        for image in (0, 1):
            pixels = [other.pixels[0], other.pixels[1]]
            pixels[image] = both.pixels[image]
            # the key stays: it is the question too
            changed = dataclasses.replace(both, pixels=torch.stack(pixels))
            mine, theirs = (_shares(method, asked) for asked in (both, changed))
            require(mine.keys() == theirs.keys(), f"{label}: reduces at {sorted(mine)}, then at {sorted(theirs)}")
            for layer, reduction in mine.items():
                one, two = (_share(r, image) for r in (reduction, theirs[layer]))
                kept = [few(s.keep.nonzero().flatten().tolist()) for s in (one, two)]
                where = f"{label}, image {image}, layer {layer}"
                require(torch.equal(one.keep, two.keep), f"{where}: keeps {kept[0]}, beside another image {kept[1]}")
                require(
                    one.order == two.order, f"{where}: {one.order[:6]} in order, beside another image {two.order[:6]}"
                )
                same = one.new.shape == two.new.shape and torch.allclose(one.new, two.new, atol=SAME)
                require(same, f"{where}: makes other tokens beside another image")
    return "the first of two and the second"


def _shares(method: Method, asked: KitPrompt) -> dict[int, Reduction]:
    decided = Decisions()
    ask(tiny_model(), spied(method, decided), (asked,), steps=0)
    return decided.reductions


def _share(reduction: Reduction, image: int) -> _Share:
    mine = slice(image * N_VISUAL, (image + 1) * N_VISUAL)
    keep = reduction.keep[0, mine]
    order = torch.arange(N_VISUAL) if reduction.order is None else reduction.order[0, mine]
    ranked = [i for i in order.argsort(stable=True).tolist() if keep[i]]
    new = [torch.zeros(0, tiny_model().config.text_config.hidden_size)]
    if reduction.values is not None:
        new.append(reduction.values[0, mine][keep])
    for tokens, valid, of in (
        (reduction.added, reduction.added_valid, reduction.added_image),
        (reduction.front, reduction.front_valid, reduction.front_image),
    ):
        if tokens is None:
            continue
        require(of is not None, "adds tokens without saying of which image each is (added_image, front_image)")
        assert of is not None
        real = (of[0] == image) & (valid[0] if valid is not None else True)
        new.append(tokens[0, real])
    return _Share(keep, ranked, torch.cat(new))


@property_("merged tokens are combinations of the prompt's")
def combinations(subject: Subject) -> str:
    """On features and visual tokens that lie in a few dimensions, sums of them lie there too, and little else does."""
    if not subject.cls.traits.merges:
        raise NotApplicableError("does not declare merges")
    model, found = tiny_model(), 0
    for label, method in subject.variants().items():
        decided = Decisions()
        with (
            flat(model) as (features, tokens),
            attach(model, spied(method, decided), text_encoder=WordEncoder, tokenizer=word_numbers) as run,
        ):
            given = _watched(run)
            with torch.inference_mode():
                ask_in(run, model, (prompt(7, 5, images=2), prompt(1, 6)), steps=0)
        for x, valid in given:
            gap = _outside(x[valid], features)
            require(
                gap <= SAME, f"{label}: projects features that are no sums of the image's, by {gap:.1e} of their length"
            )
        reduction = decided.reductions.get(0)
        if reduction is None:
            continue
        new = [
            t[torch.ones(t.shape[:2], dtype=torch.bool) if valid is None else valid]
            for t, valid in (
                (reduction.added, reduction.added_valid),
                (reduction.front, reduction.front_valid),
                (reduction.values, reduction.keep),
            )
            if t is not None
        ]
        if not new:
            continue
        gap = _outside(torch.cat(new), tokens)
        require(gap <= SAME, f"{label}: makes tokens that are no sums of visual ones, by {gap:.1e} of their length")
        found += sum(map(len, new))
    if not found:
        raise NotApplicableError("merges nothing before the language model")
    return f"{found} tokens"


@contextmanager
def flat(model: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """The model with the stream of its tower's layers, and its visual tokens, flattened to RANK dimensions; both
    bases, (width, RANK)."""
    adapter = adapter_for(model)
    generator = torch.Generator().manual_seed(5)

    def basis(width: int) -> Tensor:
        orthonormal: Tensor = torch.linalg.qr(torch.randn(width, RANK, generator=generator))[0]
        return orthonormal

    features, tokens = basis(model.config.vision_config.hidden_size), basis(model.config.text_config.hidden_size)

    def flatten(to: Tensor) -> Any:
        def hook(_module: Any, _args: Any, out: Any) -> Any:
            x: Tensor = out if isinstance(out, Tensor) else out[0]
            return x @ to @ to.T if isinstance(out, Tensor) else (x @ to @ to.T, *out[1:])

        return hook

    hooks = [layer.register_forward_hook(flatten(features)) for layer in adapter.tower_layers]
    hooks.append(LlavaAdapter(model).projector.register_forward_hook(flatten(tokens)))
    try:
        yield features, tokens
    finally:
        for hook in hooks:
            hook.remove()


def _watched(run: Any) -> list[tuple[Tensor, Tensor]]:
    """What the method of `run` will project, with which of it is real."""
    given: list[tuple[Tensor, Tensor]] = []
    project = run.project

    def watched(features: Tensor, valid: Tensor) -> Any:
        given.append((features, valid))
        return project(features, valid)

    run.project = watched
    return given


def _outside(x: Tensor, basis: Tensor) -> float:
    """The largest part of a row of `x (n, width)` outside the space of `basis`, as a share of the row's length."""
    if not len(x):
        return 0.0
    rest = (x - x @ basis @ basis.T).norm(dim=1)
    share: Tensor = rest / x.norm(dim=1).clamp(min=1e-6)
    return share.max().item()
