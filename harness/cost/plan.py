"""What a method will cost, without weights and without running: `prunebench cost METHOD --budget 64 --model
llava-1.5-7b`.

A method with a known schedule says how many visual tokens enter each layer (`Method.plan`); that schedule becomes a
trace of one prompt, and every number comes from the trace by the functions that also count real runs. Adaptive methods
are asked with the layers that they would choose, as the knobs that force them (`Method.choices`); several prompts may
be given, and their costs are averaged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any, get_args, get_origin, get_type_hints

import torch
from tabulate import tabulate  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages

from harness.core import flops
from harness.core.errors import PrunebenchError
from harness.core.shape import ImageShape, ModelShape, PromptShape, Share, Size
from harness.core.trace import LayerTrace, Trace
from harness.cost import papers as published
from harness.engine.attention import edited_pairs
from harness.engine.layout import TokenLayout
from harness.method import Method, Places
from harness.method.fits import shrinks_pictures
from harness.models.adapters import adapter_class
from harness.models.config import model_config
from harness.models.load import locate_model
from harness.models.pictures import shown_size
from harness.models.published import published_config, published_prompt


class _PlannedRun:
    """What a method may ask of a run while it says which attention it edits; there is no content to look at."""

    def __init__(self, prompt: PromptShape, layout: TokenLayout) -> None:
        self.prompts, self.memo, self.layout = (prompt,), dict[str, object](), layout

    @property
    def shape(self) -> ModelShape:
        return self.prompts[0].decoder

    @property
    def visual_valid(self) -> torch.Tensor:
        return self.layout.visual_tokens.valid.clone()

    @property
    def n_prompt_visual(self) -> torch.Tensor:
        return torch.tensor([self.prompts[0].n_visual])

    @property
    def places(self) -> Places:
        return Places(*torch.tensor(self.prompts[0].places())[None].unbind(2))

    def quota(self, keep: int | Share) -> torch.Tensor:
        return torch.tensor([self.prompts[0].quota(keep)])

    def generator(self, row: int) -> torch.Generator:
        return torch.Generator().manual_seed(row)


def usual_prompt(name: str, size: Size | None = None) -> PromptShape:
    """A prompt of one image for a model by name: of a published checkpoint, otherwise from its config file. Raises as
    `locate_model` does.

    `size`: of the image, (height, width) in pixels; None: of the most tokens, where images differ in tokens.
    """
    usual = published_prompt(name) or locate_model(name, "cpu").usual
    return usual if size is None or not usual.one_of_many else replace(usual, images=(_image_at(name)(size),))


def _image_at(name: str) -> Callable[[Size], ImageShape]:
    """What makes an image of a size to a model by name."""
    config = published_config(name)
    if config is None:
        return locate_model(name, "cpu").prompter.image_at
    adapter = adapter_class(config)
    return partial(adapter.image_at, config, adapter.usual_processor(config))


def seen_prompts(name: str, methods: Sequence[Method], size: Size | None) -> list[PromptShape]:
    """Per method the prompt of one image of `size` as it is after the method has shrunk the picture; none where no
    method shrinks pictures of this model. Raises PrunebenchError without a size, and as `Method.picture`."""
    usual = usual_prompt(name)
    if not usual.one_of_many or not any(map(shrinks_pictures, methods)):
        return []
    if size is None:
        raise PrunebenchError(
            f"{methods[0].name}: expected --image WIDTHxHEIGHT, for it shrinks the picture before the processor, found"
            " none: give --image 640x480"
        )
    at = _image_at(name)
    sizes = (shown_size(method, size, lambda shown: at(shown).tokens) for method in methods)
    return [replace(usual, images=(at(shown),)) for shown in sizes]


def size_of(text: str) -> Size:
    """(height, width) of an image as a user writes it, "640x480". Raises PrunebenchError for anything else."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text.strip().lower())
    if found is None:
        raise PrunebenchError(f"--image {text[:80]!r}: expected width and height in pixels, as in 640x480")
    return int(found[2]), int(found[1])


def check_text_before(n_before: int, n_text: int) -> None:
    """Raise PrunebenchError unless some of the text stands behind the image."""
    if not 0 <= n_before < n_text:
        raise PrunebenchError(
            f"expected some text behind the image: fewer text tokens before it (--text-before, found {n_before}) than"
            f" in all (--text-tokens, found {n_text})"
        )


def model_knobs(name: str, method: str) -> dict[str, object]:
    """The knobs that the model's configuration sets for a method, as an evaluation would."""
    return dict(model_config(name).knobs.get(method, {}))


def each_prompt(cls: type[Method], knobs: Mapping[str, str]) -> list[dict[str, Any]]:
    """The knobs of each prompt, where one that holds a single value was given several: {"force_fusion_layer": "13,14"}
    are two prompts.

    One value stands for all prompts. Raises PrunebenchError for lists of unlike length.
    """
    hints = get_type_hints(cls)

    def holds_several(knob: str) -> bool:
        kinds = get_args(hints[knob]) or (hints[knob],)
        return any(get_origin(kind) is tuple or kind is tuple for kind in kinds)

    lists = {k: v.split(",") for k, v in knobs.items() if "," in v and k in hints and not holds_several(k)}
    longest = max(map(len, lists.values()), default=1)
    unlike = {k: len(values) for k, values in lists.items() if len(values) != longest}
    if unlike:
        found = ", ".join(f"{len(values)} of {k}" for k, values in lists.items())
        raise PrunebenchError(
            f"--set: expected as many values of each knob that has several (one prompt each); found {found}"
        )
    return [{k: lists[k][i].strip() if k in lists else v for k, v in knobs.items()} for i in range(longest)]


def schedule(method: Method, prompt: PromptShape) -> list[int]:
    """Visual tokens per layer. Raises PrunebenchError where the method cannot say, with the knobs that would force what
    the prompt decides."""
    plan = method.plan(prompt)
    if plan is not None:
        return plan
    forced = " ".join(f"--set {name}={value}" for name, value in method.choices(prompt.decoder).items())
    if forced:
        raise PrunebenchError(
            f"{method.name} lets the prompt decide: give a number of tokens (--budget 64) and force its choices, once"
            f" or for several prompts (13,14,15), as in {forced}; or add --request, which bounds them"
        )
    raise PrunebenchError(f"{method.name} has no plan(): what it costs is known only after a run, from its cells")


def planned_trace(method: Method, prompt: PromptShape, visual: Sequence[int], n_before: int) -> Trace:
    """The trace of one prompt: `visual[l]` visual tokens enter layer l, `n_before` of its text tokens before them.

    Edits are those the method asks for; scoring is what `plan_scoring` says, 0 where the prompt decides. Raises
    PrunebenchError where edits depend on the prompt.
    """
    layers = []
    for layer, v in enumerate(visual):
        layout = _layout(n_before, v, prompt.n_text - n_before)
        try:
            edits = method.edit_attention(_PlannedRun(prompt, layout), layer)  # type: ignore[arg-type]  # no matmul, no note
        except (KeyError, AttributeError) as missing:
            raise PrunebenchError(
                f"{method.name}: its attention edits in layer {layer} depend on the prompt ({missing}): run it, and see"
                " its cells"
            ) from None
        pairs = [edited_pairs(edit, layout) for edit in edits]
        rows = [p.rows.columns.shape[1] for p in pairs]
        silenced = sum(int(p.silenced[0]) for p in pairs)
        behind = [prompt.n_text + visual[layer + 1]] if method.drops_inside and layer + 1 < len(visual) else []
        edited = [r for r in rows if r]
        layers.append(LayerTrace(layout.n, [layout.n], [v], None, edited, [silenced], behind))
    scoring = method.plan_scoring(prompt, visual) or 0
    return Trace(1, layers, [prompt.n_visual], scoring, [scoring])


def _layout(n_before: int, n_visual: int, n_after: int) -> TokenLayout:
    kind = torch.tensor([[0] * n_before + [1] * n_visual + [2] * n_after])
    visual = kind == 1
    origin = torch.where(visual, visual.long().cumsum(1) - 1, -1)
    return TokenLayout(torch.ones_like(visual), visual, kind == 2, torch.arange(kind.shape[1])[None, :, None], origin)


def report(
    methods: Sequence[Method],
    prompt: PromptShape,
    n_before: int = published.N_SYSTEM,
    shrunk: Sequence[PromptShape] = (),
) -> str:
    """The costs of a method as text: every column beside the unpruned model's, and what papers would have reported.

    `methods`: one method, as it would treat each of several prompts of this shape; their costs are averaged. `shrunk`:
    per method the prompt with the picture shrunk, as `seen_prompts` says.
    """
    method, shape, n_text = methods[0], prompt.decoder, prompt.n_text
    check_text_before(n_before, n_text)
    owns = [own.with_text(n_text) for own in shrunk] or [prompt] * len(methods)
    schedules = [
        [own.n_visual] * own.depth if shrunk else schedule(each, own) for each, own in zip(methods, owns, strict=True)
    ]
    traces = [planned_trace(m, own, v, n_before) for m, own, v in zip(methods, owns, schedules, strict=True)]
    base = planned_trace(Method(), prompt, [prompt.n_visual] * prompt.depth, n_before)
    lines = [f"{prompt.depth} layers, {prompt.n_visual} visual and {n_text} text tokens ({n_before} before the image)"]
    lines += [f"visual tokens per layer: {_runs(visual)}" for visual in schedules]

    images = {id(base): prompt.images, **{id(t): own.images for t, own in zip(traces, owns, strict=True)}}

    def tower(trace: Trace) -> int:
        return sum(flops.vision_tower(image.vision) for image in images[id(trace)])

    def projector(trace: Trace) -> int:
        return sum(flops.projector(shape, image.vision) for image in images[id(trace)])

    def with_tower(trace: Trace) -> float:
        return tower(trace) + projector(trace) + flops.prefill_dense(shape, trace, 0)

    def mean(value: Callable[[Trace], float], of: Sequence[Trace]) -> float:
        return sum(map(value, of)) / len(of)

    columns: list[tuple[str, Callable[[Trace], float], float, str]] = [
        ("mean visual tokens per layer", lambda t: t.mean_visual(0), 1, ""),
        ("prefill executed, batch 1", lambda t: flops.prefill_executed(shape, t), 1e12, "TFLOPs"),
        ("prefill dense", lambda t: flops.prefill_dense(shape, t, 0), 1e12, "TFLOPs"),
        ("prefill ideal", lambda t: flops.prefill_ideal(shape, t, 0), 1e12, "TFLOPs"),
        ("prefill paper_macs (visual only)", lambda t: flops.prefill_paper_macs(shape, t, 0), 1e12, "TMACs"),
        ("scoring, part of the prefill", lambda t: t.scoring[0], 1e9, "GFLOPs"),
        ("decode, first new token", lambda t: flops.decode(shape, t, 0, 1), 1e9, "GFLOPs"),
        ("LM head, per position", lambda t: flops.lm_head(shape, 1), 1e9, "GFLOPs"),
        ("vision tower", tower, 1e12, "TFLOPs"),
        ("projector", projector, 1e12, "TFLOPs"),
        ("vision tower + projector + prefill dense", with_tower, 1e12, "TFLOPs"),
        ("KV cache after the prefill", lambda t: flops.kv_bytes(shape, t, 0), 2**20, "MiB"),
    ]
    unknown_scoring = any(
        each.plan_scoring(prompt, visual) is None for each, visual in zip(methods, schedules, strict=True)
    )
    body = []
    for name, value, unit, word in columns:
        mine, whole = mean(value, traces) / unit, value(base) / unit
        share = f"{100 * mine / whole:.1f}" if whole else "-"
        if unknown_scoring and name.startswith("scoring"):
            body.append([name, "not known", "0", "-", word])
        else:
            body.append([name, f"{mine:,.4g}", f"{whole:,.4g}", share, word])
    head = ["", method.name, "unpruned", "% of unpruned", "unit"]
    lines += [
        "",
        str(tabulate(body, headers=head, disable_numparse=True, colalign=["left", "right", "right", "right", "left"])),
    ]
    if unknown_scoring:
        lines.append(
            "(the rows above leave out this method's scoring: it depends on the prompt, or the method has no"
            " plan_scoring())"
        )
    lines += ["", "One multiply-add counted as one FLOP, the papers would have reported for this run:"]
    body = []
    for same in zip(
        *(published.reports(shape, visual, n_text, prompt.n_visual, n_before) for visual in schedules), strict=True
    ):
        macs, first = sum(r.macs for r in same) / len(same), same[0]
        scale, unit_name = (1e12, "T") if first.per == "prefill" else (1e9, "G a layer")
        change = f"{100 * (macs / first.unpruned - 1):+.1f} %"
        ours, theirs = (f"{x / scale:,.4g} {unit_name}" for x in (macs, first.unpruned))
        body.append([first.who, ours, theirs, change, first.formula, first.source])
    head = ["", method.name, "unpruned", "change", "formula", "source"]
    align = ["left", "right", "right", "right", "left", "left"]
    lines.append(str(tabulate(body, headers=head, disable_numparse=True, colalign=align)))
    seen = sum(published.visual_attention(visual, n_text, prompt.n_visual) for visual in schedules) / len(schedules)
    lines.append(
        f"visual attention as VisiPruner counts it: {100 * (seen - 1):+.2f} %   c(n, f) = 4nd^2 + 2n^2 d + fndm"
    )
    return "\n".join(lines)


def _runs(visual: Sequence[int]) -> str:
    """`[576, 576, 64]` -> "576 x 2, 64 x 1"."""
    return ", ".join(f"{value} x {len(list(same))}" for value, same in groupby(visual))
