"""The conformance kit across families, `prunebench check METHOD --families`: every method on a tiny model of every
family, on prompts of unlike images.

A method that does not run on a family says why in one line where it is built. Every other method is held to `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from harness.core import flops
from harness.core.errors import PrunebenchError
from harness.core.shape import Share
from harness.engine.attach import attach
from harness.engine.prefix import Prefix, roomy_cache
from harness.engine.run import EngineRun
from harness.method import Method
from harness.method.build import usually
from harness.method.fits import check_pictures
from harness.method.registry import NOBODYS
from harness.models.adapters import ADAPTERS, Features
from harness.proof.conformance.family_models import (
    FamilyAnswer,
    FamilyModel,
    FamilyPrompt,
    ask_family,
    encoded,
    family_model,
    padded,
)
from harness.proof.conformance.reference import Decisions, Start, Token, Turned, spied, walked
from harness.proof.conformance.subject import CHANGED, SAME, Subject, Verdict, ViolatedError, few, require
from harness.proof.conformance.tiny import WordEncoder, difference, word_numbers

SHARE = Share(0.5)


@dataclass(frozen=True)
class Pairing:
    """One method on one family: a tiny model, the method at half of each prompt's tokens (or as it stands, where no
    budget says how many), and the class."""

    cls: type[Method]
    tiny: FamilyModel
    method: Method

    @property
    def by_budget(self) -> bool:
        """Whether a budget says how many tokens stay."""
        return bool(self.cls.budget_knobs) and not self.cls.solves_budgets


class FamilyVerdicts(NamedTuple):
    """Whether a method runs on a family, or why not, in one line; and its verdicts there."""

    method: str
    family: str
    refused: str
    verdicts: Sequence[Verdict]

    @property
    def failed(self) -> int:
        """Properties that do not hold."""
        return sum(verdict.status == "FAIL" for verdict in self.verdicts)


def built(cls: type[Method], tiny: FamilyModel, amount: Share = SHARE) -> Method:
    """The method as an evaluation builds it for prompts of this family. Raises PrunebenchError where it does not fit,
    or takes no budget that it could be asked at."""
    method = usually(cls, tiny.shape_of(tiny.prompts[0]), amount)
    check_pictures(method, tiny.adapter.one_size)
    return method


def fits(cls: type[Method], families: Iterable[str] = ADAPTERS) -> Iterator[FamilyVerdicts]:
    """The method on each family, checked."""
    for family in families:
        tiny = family_model(family)
        try:
            pairing = Pairing(cls, tiny, built(cls, tiny))
        except PrunebenchError as refusal:
            yield FamilyVerdicts(cls.name, family, str(refusal), ())
            continue
        yield FamilyVerdicts(cls.name, family, "", [judged(name, check, pairing) for name, check in CHECKS.items()])


def judged(name: str, check: Callable[[Pairing], str], pairing: Pairing) -> Verdict:
    """The verdict of one property."""
    try:
        said = check(pairing)
    except NOBODYS:
        raise
    except BaseException as error:  # a kit that dies of one method's bug reports nothing
        family_model.cache_clear()  # a method may have changed the model
        return Verdict(
            name, "FAIL", str(error) if isinstance(error, ViolatedError) else f"{type(error).__name__}: {error}"
        )
    return Verdict(name, "n/a" if said.startswith("n/a") else "ok", said.removeprefix("n/a: "))


def _attached(pairing: Pairing, method: Method | None = None) -> Any:
    return attach(pairing.tiny.model, method or pairing.method, text_encoder=WordEncoder, tokenizer=word_numbers)


# ---------------------------------------------------------------------------------------------------------- properties


def full_budget(pairing: Pairing) -> str:
    """All tokens of each prompt are the unpruned model, up to traits that say otherwise; half of them are not."""
    tiny = pairing.tiny
    with _attached(pairing, Method()) as run:
        unpruned = ask_family(run, tiny, tiny.prompts).logits
    with _attached(pairing) as run:
        pruned = ask_family(run, tiny, tiny.prompts).logits
    changed = difference(pruned, unpruned)
    if pairing.by_budget:
        require(changed >= CHANGED, f"half of the tokens change logits by {changed:.1e} only")
    excused = Subject(pairing.cls, {}).excused
    if not pairing.by_budget or excused:
        return f"n/a: {excused or 'no budget says how many tokens stay'}"
    whole = built(pairing.cls, tiny, Share(1.0))
    for prompt in map(tiny.shape_of, tiny.prompts):
        plan = whole.plan(prompt)
        if plan is not None and plan[-1] < prompt.n_visual:
            return f"n/a: its official code keeps {plan[-1]} of {prompt.n_visual} tokens at most"
    with _attached(pairing, whole) as run:
        gap = difference(ask_family(run, tiny, tiny.prompts).logits, unpruned)
    require(gap <= SAME, f"at all tokens the logits differ by {gap:.1e} from the unpruned model (tolerance {SAME:.0e})")
    return f"differs by {gap:.1e} at all tokens, by {changed:.1f} at half"


def share_kept(pairing: Pairing) -> str:
    """Half of each prompt's own tokens stay, or less by the rounding of each tile, and as many as planned in each
    layer."""
    tiny = pairing.tiny
    with _attached(pairing) as run:
        answer = ask_family(run, tiny, tiny.prompts, steps=0)
    shapes = [tiny.shape_of(asked) for asked in tiny.prompts]
    require(
        [prompt.images for prompt in run.prompts] == [shape.images for shape in shapes],
        f"the engine found images {[p.images for p in run.prompts]}, expected {[s.images for s in shapes]}",
    )
    kept = [run.trace.kept(row) for row in range(len(shapes))]
    if Subject(pairing.cls, {}).edits_pixels:
        return f"n/a: works on the image; kept {kept}"
    for row, prompt in enumerate(shapes):
        plan = pairing.method.plan(prompt)
        traced = [layer.visual[row] for layer in run.trace.layers]
        require(plan is None or list(plan) == traced, f"prompt {row + 1}: planned {plan}, traced {traced}")
    _intact(answer, tiny)
    if not pairing.by_budget:
        return f"n/a: no budget says how many tokens stay; kept {kept}"
    asked = [shape.quota(SHARE) for shape in shapes]
    for k, most, prompt in zip(kept, asked, shapes, strict=True):
        # codes that prune tile by tile round down in each tile
        slack = sum(image.vision.tiles for image in prompt.images if image.vision.tiles > 1)
        require(most - slack < k <= most or k == most, f"kept {kept}, asked {asked}")
    return f"kept {kept} of {[prompt.n_visual for prompt in shapes]}" + (
        f", {asked} were asked" if kept != asked else ""
    )


def _intact(answer: FamilyAnswer, tiny: FamilyModel) -> None:
    """Text is all there in every layer, and no visual token twice."""
    for layer, (layout, rows) in enumerate(zip(answer.run.layouts, answer.origins, strict=True)):
        for row, (asked, present) in enumerate(zip(tiny.prompts, rows, strict=True)):
            n_text = tiny.shape_of(asked).n_text
            require(
                layout.counts[row] - len(present) == n_text,
                f"layer {layer}: {layout.counts[row] - len(present)} text tokens, expected {n_text}",
            )
            own = [token for token in present if token >= 0]
            require(len(own) == len(set(own)), f"layer {layer} holds a visual token twice: {few(present)}")


def batch(pairing: Pairing) -> str:
    """A padded batch of prompts of one and of two unlike images is its rows, alone."""
    tiny, largest = pairing.tiny, 0.0
    with _attached(pairing) as run:
        together = ask_family(run, tiny, tiny.prompts)
        for row, asked in enumerate(tiny.prompts):
            alone = ask_family(run, tiny, (asked,))
            largest = max(largest, _same(asked.key, together, row, alone))
    return f"one, two and one images; largest difference {largest:.1e}"


def _same(label: str, got: FamilyAnswer, row: int, want: FamilyAnswer) -> float:
    for layer, (a, b) in enumerate(zip(got.origins, want.origins, strict=True)):
        require(a[row] == b[0], f"{label}: layer {layer} holds {few(a[row])}, alone {few(b[0])}")
    gap = difference(got.logits[row], want.logits[0])
    require(gap <= SAME, f"{label}: logits differ by {gap:.1e} (tolerance {SAME:.0e})")
    return gap


def from_scratch(pairing: Pairing) -> str:
    """Prefill and decode equal a loop over the kept tokens: no cache, no engine, DeepStack added by hand."""
    tiny, largest = pairing.tiny, 0.0
    for asked in tiny.prompts[:2]:
        decided = Decisions()
        with _attached(pairing, spied(pairing.method, decided)) as run:
            got = ask_family(run, tiny, (asked,))
        policy = "original" if tiny.adapter.axes > 1 else "method"
        with torch.inference_mode():
            want = walked(tiny.adapter, _start(tiny, asked, got.features[0]), decided, policy, _turn(tiny))
        for layer, (a, b) in enumerate(zip(got.origins, want.origins, strict=True)):
            require(a[0] == b, f"{asked.key}: layer {layer} holds {few(a[0])}, from scratch {few(b)}")
        gap = difference(got.logits[0], want.logits)
        require(gap <= SAME, f"{asked.key}: logits differ from a pass from scratch by {gap:.1e} (tolerance {SAME:.0e})")
        largest = max(largest, gap)
    return f"largest difference {largest:.1e}"


def _start(tiny: FamilyModel, asked: FamilyPrompt, features: Sequence[Features]) -> Start:
    """What enters the decoder: features where the model puts them, and the positions that the model gives."""
    adapter, called = tiny.adapter, dict[str, Any]()
    inputs = padded([asked.ids])
    handle = adapter.text.register_forward_pre_hook(lambda _m, _a, given: called.update(given), with_kwargs=True)
    try:
        adapter.core(**inputs, **adapter.inputs(features, inputs["input_ids"]))
    finally:
        handle.remove()
    places = adapter.positions(called)
    n = len(asked.ids)
    positions = [(i,) for i in range(n)] if places is None else [tuple(one) for one in places[0].tolist()]
    image_of = [image for image, one in enumerate(features) for _ in range(len(one.pooled))]
    tokens, visual = [], 0
    last = max(i for i, token in enumerate(asked.ids) if token == adapter.image_token_ids[0])
    for i, token in enumerate(asked.ids):
        if token == adapter.image_token_ids[0]:
            tokens.append(Token(visual, positions[i], False, image_of[visual]))
            visual += 1
        else:
            tokens.append(Token(-1, positions[i], i > last))
    later = tiny.model.get_input_embeddings()(torch.tensor(asked.next_ids))
    deep = [torch.cat(layer) for layer in zip(*(one.deepstack for one in features), strict=True)]
    return Start(torch.cat([called["inputs_embeds"][0], later]), tokens, deep)


def _turn(tiny: FamilyModel) -> Callable[[Tensor], Turned]:
    adapter = tiny.adapter

    def turn(positions: Tensor) -> Turned:
        cos, sin = adapter.rotary(torch.zeros(1, len(positions), 1), positions[None])
        return lambda x: adapter.rotate(x, cos[0], sin[0])

    return turn


def shared(pairing: Pairing) -> str:
    """Questions of two lengths on one image from one captured prefix, against both alone."""
    tiny = pairing.tiny
    prompts = [tiny.prompt(4, n_after, (1,)) for n_after in (6, 10)]
    # the prefix of both is one: the numbers of a prompt decide its text in front of the image too
    prompts[1] = FamilyPrompt("the second", prompts[0].ids + prompts[1].ids[-4:], (1,), prompts[1].next_ids)
    with torch.inference_mode(), _attached(pairing) as run:
        alone = [ask_family(run, tiny, (asked,), steps=0) for asked in prompts]
        run.samples = run.questions = [asked.key for asked in prompts]
        ((features, seen),) = encoded(run, tiny, prompts[:1])[0]
        prefix = _captured(run, tiny, prompts[0], features, seen)
        inputs = padded([asked.ids for asked in prompts])
        run.see([seen, seen])
        window = run.share([prefix, prefix], inputs["input_ids"], inputs["attention_mask"])
        kv = roomy_cache(tiny.adapter.shape.depth)
        logits = tiny.model(input_ids=window, past_key_values=kv, logits_to_keep=1).logits[:, -1]
        visual = [layer.visual for layer in run.trace.layers]
        rows = [layer.rows for layer in run.trace.layers]
    for row, one in enumerate(alone):
        for layer, present in enumerate(one.origins):
            require(
                visual[layer][row] == len(present[0]),
                f"layer {layer}: {visual[layer][row]} tokens, alone {few(present[0])}",
            )
        gap = difference(logits[row], one.logits[0, 0])
        require(gap <= SAME, f"logits differ by {gap:.1e} from the prompt alone (tolerance {SAME:.0e})")
    return f"{sum(n is not None for n in rows)} of {len(rows)} layers shared"


def _captured(run: EngineRun, tiny: FamilyModel, asked: FamilyPrompt, features: Features, seen: Any) -> Prefix:
    adapter = tiny.adapter
    last = max(i for i, token in enumerate(asked.ids) if token == adapter.image_token_ids[0])
    inputs = padded([asked.ids[: last + 1]])
    run.see([seen])
    with run.capturing([asked.key]):
        kv = roomy_cache(adapter.shape.depth)
        adapter.core(**inputs, **adapter.inputs([features], inputs["input_ids"]), past_key_values=kv)
        (prefix,) = run.prefixes()
    return prefix


def charged(pairing: Pairing) -> str:
    """Tower, projector and prefill of one prompt cost what torch's counter counts, to the integer."""
    tiny = pairing.tiny
    asked = tiny.prompts[1]
    shape = tiny.adapter.shape
    with _attached(pairing) as run, torch.inference_mode():
        ask_family(run, tiny, (asked,), steps=0)  # what is made once
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            ask_family(run, tiny, (asked,), steps=0)
        trace = run.trace
        images = [image.vision for image in run.prompts[0].images]
    found = counter.get_total_flops()
    vision = sum(flops.vision_tower(image) + flops.projector(shape, image) for image in images)
    stated = vision + flops.prefill_executed(shape, trace) + flops.lm_head(shape, 1)
    require(found == stated, f"the counter counts {found:,} FLOPs, the costs say {stated:,}")
    return f"{found:,} FLOPs, {100 * vision / found:.0f} % of them the tower's"


CHECKS: dict[str, Callable[[Pairing], str]] = {
    "full budget equals unpruned, half does not": full_budget,
    "share of each prompt's own tokens kept": share_kept,
    "padded batch of unlike images equals singles": batch,
    "prefill and decode equal a pass from scratch": from_scratch,
    "shared prefix equals alone": shared,
    "every product is charged": charged,
}
