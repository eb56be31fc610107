"""Properties of the kept tokens: how many, which, in which order, and as planned."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from harness.core.errors import PrunebenchError
from harness.method import Method, Reduction
from harness.models.adapters import adapter_for
from harness.proof.conformance.reference import Decisions, more, real, spied
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
    GRID,
    N_VISUAL,
    PROMPTS,
    KitPrompt,
    ask,
    difference,
    flagged,
    model_inputs,
    tiny_model,
    unpruned,
)

# ----------------------------------------------------------------------------------------------------------- properties


@property_("full budget equals unpruned")
def full_budget(subject: Subject) -> str:
    model = tiny_model()
    try:
        method = subject.at(N_VISUAL)
    except NotApplicableError:
        method = subject.any()
        if drops(ask(model, method, PROMPTS[:1], steps=0)):
            raise
    gap = difference(ask(model, method, PROMPTS, steps=0).logits[:, 0], unpruned(model, PROMPTS))
    require(gap == gap and gap != float("inf"), f"logits differ by {gap}")
    if subject.excused and gap > SAME:
        raise NotApplicableError(f"{subject.excused}, so that it differs at full budget too, by {gap:.1e}; finite")
    require(gap <= SAME, f"logits differ from the bare model's by {gap:.2e} (tolerance {SAME:.0e})")
    return f"largest difference {gap:.1e}"


@property_("smaller budget changes logits")
def smaller_budget(subject: Subject) -> str:
    gap = difference(
        ask(tiny_model(), subject.at(subject.budget), PROMPTS[:1], steps=0).logits[:, 0],
        unpruned(tiny_model(), PROMPTS[:1]),
    )
    require(gap >= CHANGED, f"at {subject.budget} of {N_VISUAL} tokens the logits differ by {gap:.2e} only")
    return f"by {gap:.2f} at {subject.budget} of {N_VISUAL} tokens"


@property_("kept sorted, unique, in image; text intact")
def order(subject: Subject) -> str:
    for label, method in subject.variants().items():
        got = ask(tiny_model(), method, PROMPTS, steps=0)
        for row, asked in enumerate(PROMPTS):
            present = list(range(N_VISUAL))
            for layer, layout in enumerate(got.run.layouts):
                where = f"{label}, row {row}, layer {layer}"
                kept = [o for o in got.origins[layer][row] if o >= 0]
                require(len(set(kept)) == len(kept), f"{where}: kept {kept} is not unique")
                require(
                    subject.cls.traits.reorders or kept == sorted(kept),
                    f"{where}: kept {kept} does not ascend: declare the trait reorders",
                )
                require(set(kept) <= set(present), f"{where}: {sorted(set(kept) - set(present))} were not there before")
                present = kept
                valid = layout.valid[row]
                text = int((valid & ~layout.visual[row]).sum())
                behind = int(layout.after[row].sum())
                n_text = len(asked.ids) - N_VISUAL
                require(
                    (text, behind) == (n_text, n_text - 3),
                    f"{where}: {text} text tokens, {behind} behind the image; expected {n_text}, {n_text - 3}",
                )
                tail = layout.after[row, -behind:]
                require(bool(tail.all()), f"{where}: the prompt no longer ends with its text")
    return "in every layer"


@property_("asked budget met exactly")
def budget_met(subject: Subject) -> str:
    if subject.edits_pixels:
        got = ask(tiny_model(), subject.at(subject.budget), PROMPTS, steps=0)
        raise NotApplicableError(
            f"works on the image; the language model sees all {got.run.trace.kept(0)} tokens, as the trace says"
        )
    said, met = [], 0
    for tokens in dict.fromkeys((subject.budget, min(2 * subject.budget + 1, N_VISUAL), max(subject.budget // 3, 1))):
        try:
            method = subject.at(tokens)
        except NotApplicableError as error:
            if tokens == subject.budget:
                raise
            said.append(f"{tokens} refused ({error})")
            continue
        got = ask(tiny_model(), method, PROMPTS, steps=0)
        trace = got.run.trace
        kept = [trace.kept(row) for row in range(len(PROMPTS))]
        adaptive = subject.cls.traits.adaptive
        fits = all(k == tokens or (adaptive and 0 <= k <= tokens) for k in kept)
        require(fits, f"asked {tokens} visual tokens, kept {kept}")
        for row, k in enumerate(kept):
            seen = {layer.visual[row] for layer in trace.layers}
            require(k in seen, f"reports {k} kept, but its layers hold {sorted(seen)} visual tokens")
        met += 1
        forced = trace.notes.get("forced")
        said.append(f"{tokens}" + (f" (forced in {int(sum(forced))} of {len(PROMPTS)})" if forced else ""))
    return "kept " + ", ".join(said)


@property_("plan equals trace")
def planned(subject: Subject) -> str:
    unknown = 0
    variants = subject.variants()
    for label, method in variants.items():
        shape = adapter_for(tiny_model()).usual.with_text(len(PROMPTS[0].ids) - N_VISUAL)
        plan = method.plan(shape)
        if plan is None:
            unknown += 1
            continue
        trace = ask(tiny_model(), method, PROMPTS[:1], steps=0).run.trace
        visual = [layer.visual[0] for layer in trace.layers]
        require(plan == visual, f"{label}: planned {plan}, the trace says {visual}")
        scoring = method.plan_scoring(shape, plan)
        require(
            scoring in (None, trace.scoring[0]),
            f"{label}: planned {scoring} FLOPs of scoring, the trace says {trace.scoring[0]}",
        )
    if unknown == len(variants):
        raise NotApplicableError(
            "adaptive: the prompt decides" if subject.cls.traits.adaptive else "the method states no plan"
        )
    return "visual tokens in every layer"


@property_("most attended token kept")
def most_attended(subject: Subject) -> str:
    if not subject.cls.traits.keeps_most_attended:
        raise NotApplicableError("does not declare keeps_most_attended")
    model, asked = tiny_model(beacon=True), PROMPTS[0]
    method = subject.at(subject.budget)
    text = torch.arange(3 + N_VISUAL, len(asked.ids))
    tokens = range(0, N_VISUAL, GRID + 1)
    for token in tokens:
        with flagged(model, token), torch.inference_mode():
            got = ask(model, method, (asked,), steps=0)
            model.set_attn_implementation("eager")
            try:
                weights = model(**model_inputs(model, (asked,)), output_attentions=True).attentions
            finally:
                model.set_attn_implementation("sdpa")
        # the premise, from the bare model's own attention weights
        top = {int(t) for w in weights for t in w[0][:, text, 3 : 3 + N_VISUAL].argmax(-1).unique()}
        if top != {token}:
            raise PrunebenchError(
                f"the kit's beacon model attends to {sorted(top)} instead of {token}: a bug of the kit"
            )
        first = next((i for i, rows in enumerate(got.origins) if len(rows[0]) < N_VISUAL), None)
        if first is not None:
            require(
                token in got.origins[first][0],
                f"token {token} has the most attention of all text; layer {first} holds {few(got.origins[first][0])}",
            )
    return f"{len(tokens)} of {len(tokens)} planted tokens"


@property_("kept set depends on the prompt")
def depends(subject: Subject) -> str:
    method = subject.any()
    if not subject.cls.traits.query_aware or method.image_only:
        raise NotApplicableError("not query-aware")
    sets = [ask(tiny_model(), method, (p,), steps=0).origins for p in PROMPTS]
    if not any(rows[0] != list(range(N_VISUAL)) for origins in sets for rows in origins):
        raise NotApplicableError("drops nothing by itself")
    require(
        any(s != sets[0] for s in sets),
        f"the same tokens for {len(PROMPTS)} images and questions: {few(sets[0][-1][0])}",
    )
    return f"{len(PROMPTS)} prompts"


def batch_equals_singles(
    model: Any, label: str, method: Method, prompts: Sequence[KitPrompt], tolerance: float = SAME
) -> float:
    together = ask(model, method, prompts)
    return max(
        same(
            f"{label}, row {row} of a batch against alone", together, row, ask(model, method, (p,)), tolerance=tolerance
        )
        for row, p in enumerate(prompts)
    )


@property_("image alone decides")
def image_alone(subject: Subject) -> str:
    if not subject.any().image_only:
        raise NotApplicableError("does not declare image_only")
    for label, method in subject.variants().items():
        for first, other in pairwise(PROMPTS):
            image = 3 + N_VISUAL
            # the same image with another question and with none, as when questions share it; as other samples
            swapped = dataclasses.replace(
                first, key=f"{first.key} asked otherwise", ids=first.ids[:image] + other.ids[image:]
            )
            alone = dataclasses.replace(first, key=f"{first.key} not asked", ids=first.ids[:image])
            decided = [Decisions() for _ in range(3)]
            for asked, into in zip((first, swapped, alone), decided, strict=True):
                ask(tiny_model(), spied(method, into), (asked,), steps=0)
            mine = decided[0].reductions
            for theirs, what in ((decided[1].reductions, "another question"), (decided[2].reductions, "no question")):
                require(
                    mine.keys() == theirs.keys(),
                    f"{label}: reduces at {sorted(mine)} for a question, at {sorted(theirs)} for {what}",
                )
                for layer, a in mine.items():
                    b = theirs[layer]
                    kept = [few(r.keep[0].nonzero().flatten().tolist()) for r in (a, b)]
                    require(
                        torch.equal(a.keep, b.keep),
                        f"{label}: layer {layer} keeps {kept[0]} for a question, {kept[1]} for {what}",
                    )
                    one, two = (_merged(r) for r in (a, b))
                    same = one.shape == two.shape and torch.allclose(one, two, atol=SAME)
                    require(same, f"{label}: layer {layer} adds other tokens for {what}")
    return f"{len(PROMPTS) - 1} images with two questions and without"


def _merged(reduction: Reduction) -> Tensor:
    """(m, d): the tokens that a reduction of one row adds."""
    return torch.cat([real(*more) for more in more(reduction)])
