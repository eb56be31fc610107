"""Properties on other models: bfloat16, grouped-query heads, depths, unfit knobs."""

from __future__ import annotations

import dataclasses

import torch

from harness.core import budget as budgets
from harness.core.budget import Budget
from harness.core.errors import PrunebenchError
from harness.core.shape import ModelShape
from harness.method import Method
from harness.models.adapters import adapter_for
from harness.proof.conformance.counts import batch_equals_singles
from harness.proof.conformance.passes import equals_reference
from harness.proof.conformance.subject import NotApplicableError, Subject, ViolatedError, property_, require
from harness.proof.conformance.tiny import DEPTH, N_VISUAL, PROMPTS, ask, difference, tiny_model, unpruned

DEPTHS = (4, 12, 40)


@property_("bfloat16")
def bfloat16(subject: Subject) -> str:
    model = tiny_model(dtype=torch.bfloat16)
    for label, method in subject.variants(adapter_for(model).shape).items():
        logits = ask(model, method, PROMPTS).logits
        require(bool(torch.isfinite(logits).all()), f"{label}: nan or inf in the logits")
    try:
        whole = subject.at(N_VISUAL)
    except NotApplicableError:
        return "finite"
    if subject.excused:
        return "finite"
    gap = difference(ask(model, whole, PROMPTS[:1], steps=0).logits[:, 0], unpruned(model, PROMPTS[:1]))
    require(gap <= 0.1, f"at full budget the logits differ from the bare model's by {gap:.2e}")
    return f"finite; full budget equals unpruned within {gap:.1e}"


@property_("grouped-query heads")
def grouped(subject: Subject) -> str:
    model = tiny_model(kv_heads=2)
    gaps = []
    for label, method in subject.variants(adapter_for(model).shape).items():
        gaps.append(batch_equals_singles(model, label, method, PROMPTS))
        gaps.append(equals_reference(model, label, method, PROMPTS[1], "method"))
    return f"batch, prefill and decode; largest difference {max(gaps):.1e}"


@property_("depth 4 to 40")
def depths(subject: Subject) -> str:
    shape = adapter_for(tiny_model()).shape
    by_hand = {name for name, _ in _layer_knobs(subject.cls)}
    subject = dataclasses.replace(subject, knobs={k: v for k, v in subject.knobs.items() if k not in by_hand})
    unfit = []
    for depth in range(min(DEPTHS), max(DEPTHS) + 1):
        deep = dataclasses.replace(shape, depth=depth)
        try:
            method = subject.any(deep)
            again = method.for_model(deep)
        except PrunebenchError as error:
            if depth == DEPTH or not _fits(dataclasses.replace(subject, knobs={}), deep):
                raise ViolatedError(f"{depth} layers: refuses its own defaults: {error}") from None
            unfit.append(depth)  # by the knobs that were given: a value for each layer, say
            continue
        require(again == method, f"{depth} layers: for_model() twice gives {again} after {method}")
    ran = [depth for depth in DEPTHS if depth not in unfit]
    for depth in ran:
        model = tiny_model(depth=depth)
        for label, method in subject.variants(adapter_for(model).shape).items():
            equals_reference(model, f"{depth} layers, {label}", method, PROMPTS[2], "method")
    said = f"; the knobs given do not fit {', '.join(map(str, unfit))}" if unfit else ""
    return f"defaults fit each; ran at {', '.join(map(str, ran))}{said}"


def _fits(subject: Subject, shape: ModelShape) -> bool:
    """Can the method be built for a decoder of these sizes?"""
    try:
        subject.any(shape)
    except PrunebenchError:
        return False
    return True


def _layer_knobs(cls: type[Method]) -> list[tuple[str, bool]]:
    """(name, is a tuple) of the knobs that hold decoder layers, by their name and type."""
    found = []
    for knob in dataclasses.fields(cls):
        annotation = str(knob.type)
        words = ("layer", "boundary", "stage", "start", "stop", "drop_from")
        if any(w in knob.name for w in words) and "int" in annotation and "Literal" not in annotation:
            found.append((knob.name, "tuple" in annotation))
    return found


@property_("unfit layer knob refused")
def unfit_knobs(subject: Subject) -> str:
    knobs = _layer_knobs(subject.cls)
    if not knobs:
        raise NotApplicableError("no knob holds a layer")
    label = next(iter(subject.variants()))
    asked = {f"budget {subject.budget}": Budget("kept", subject.budget), "native": Budget("native")}.get(
        label, budgets.NONE
    )
    for name, many in knobs:
        for layer in (-1, 1000):
            given = {**subject.knobs, name: (layer,) if many else layer}
            try:
                # a layer that is itself what a budget sets comes without one
                own = budgets.NONE if name in subject.cls.budget_knobs else asked
                method = dataclasses.replace(subject, knobs=given).at(own)
            except NotApplicableError as error:
                require(
                    name in str(error) and str(layer) in str(error),
                    f"{name}={layer} is refused without saying so: {error}",
                )
                continue
            raise ViolatedError(f"{name}={layer} on {DEPTH} layers is accepted: {method}")
    return ", ".join(name for name, _ in knobs)
