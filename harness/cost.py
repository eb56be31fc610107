"""What a method will cost, without weights and without running: `prunebench cost METHOD --budget 64 --model llava-1.5-7b`.

A method with a known schedule says how many visual tokens enter each layer (`Method.plan`); that schedule becomes a trace of one
prompt, and every number comes from the trace by the functions that also count real runs. Adaptive methods are asked with the
layers that they would choose; several prompts may be given, and their costs are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from tabulate import tabulate  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages

from harness import flops, published
from harness.attention import edited_pairs
from harness.errors import PrunebenchError
from harness.layout import TokenLayout
from harness.method import Method
from harness.models import locate_model, model_config
from harness.shape import SHAPES, ModelShape
from harness.trace import LayerTrace, Trace


class Choice(NamedTuple):
    """The layers an adaptive method chose for one prompt; `exit_layer` is the first without visual tokens, None for never."""

    fusion_layer: int
    exit_layer: int | None


class _PlannedRun:
    """What a method may ask of a run while it says which attention it edits; there is no content to look at."""

    def __init__(self, shape: ModelShape, layout: TokenLayout) -> None:
        self.shape, self.memo, self.layout = shape, dict[str, object](), layout

    @property
    def visual_valid(self) -> torch.Tensor:
        return self.layout.visual_tokens.valid.clone()

    @property
    def n_prompt_visual(self) -> torch.Tensor:
        return torch.tensor([self.shape.n_visual])

    def generator(self, row: int) -> torch.Generator:
        return torch.Generator().manual_seed(row)


def model_shape(name: str) -> ModelShape:
    """Sizes of a model by name: from `SHAPES`, otherwise from its config file. Raises as `locate_model` does."""
    return SHAPES[name] if name in SHAPES else locate_model(name, "cpu").shape


def model_knobs(name: str, method: str) -> dict[str, object]:
    """The knobs that the model's configuration sets for a method, as an evaluation would."""
    return dict(model_config(name).knobs.get(method, {}))


def choices(fusion: str, exit_: str) -> list[Choice]:
    """`"13,14,15"` and `"24"` -> one choice a prompt; a single value stands for all, -1 or nothing as exit for never.

    Raises PrunebenchError for what is no list of layers and for lists of different length.
    """
    if not fusion:
        if exit_:
            raise PrunebenchError("--exit-layer needs --fusion-layer: a method exits only after it has chosen its tokens")
        return []
    lists = []
    for name, text in (("--fusion-layer", fusion), ("--exit-layer", exit_ or "-1")):
        try:
            lists.append([int(part) for part in text.split(",")])
        except ValueError:
            raise PrunebenchError(f"{name} {text!r}: expected a layer or several, as in 13,14,15") from None
    longest = max(map(len, lists))
    if any(len(one) not in (1, longest) for one in lists):
        found = " and ".join(str(len(one)) for one in lists)
        raise PrunebenchError(f"--fusion-layer and --exit-layer: expected as many of one as of the other, or one; found {found}")
    fusions, exits = (one * (longest if len(one) == 1 else 1) for one in lists)
    return [Choice(f, None if e == -1 else e) for f, e in zip(fusions, exits, strict=True)]


def plans(method: Method, shape: ModelShape, n_text: int, chosen: Sequence[Choice]) -> list[list[int]]:
    """Visual tokens per layer, one plan a prompt. Raises PrunebenchError where the method cannot say."""
    if chosen:
        return [method.plan_with(shape, n_text, c.fusion_layer, c.exit_layer) for c in chosen]
    plan = method.plan(shape, n_text)
    if plan is None and method.traits.adaptive:
        raise PrunebenchError(
            f"{method.name} chooses its layers by the prompt: give --fusion-layer (the layer that selects) and --exit-layer "
            "(the first layer without visual tokens; -1 for never), one or several, as in --fusion-layer 13,14,15 --exit-layer 24"
        )
    if plan is None:
        raise PrunebenchError(f"{method.name} has no plan(): what it costs is known only after a run, from its cells")
    return [plan]


def planned_trace(method: Method, shape: ModelShape, visual: Sequence[int], n_text: int, n_before: int) -> Trace:
    """The trace of one prompt: `visual[l]` visual tokens enter layer l, `n_before` of its `n_text` text tokens before them.

    Edits are those the method asks for; scoring is what `plan_scoring` says, 0 where the prompt decides. Raises PrunebenchError
    where edits depend on the prompt.
    """
    layers = []
    for layer, v in enumerate(visual):
        layout = _layout(n_before, v, n_text - n_before)
        try:
            edits = method.edit_attention(_PlannedRun(shape, layout), layer)  # type: ignore[arg-type]  # no matmul, no note
        except (KeyError, AttributeError) as missing:
            raise PrunebenchError(
                f"{method.name}: its attention edits in layer {layer} depend on the prompt ({missing}): run it, and see its cells"
            ) from None
        pairs = [edited_pairs(edit, layout) for edit in edits]
        rows = [p.rows.columns.shape[1] for p in pairs]
        silenced = sum(int(p.silenced[0]) for p in pairs)
        layers.append(LayerTrace(layout.n, [layout.n], [v], edit_rows=[r for r in rows if r], silenced=[silenced]))
    scoring = method.plan_scoring(shape, n_text, visual) or 0
    return Trace(1, layers, [shape.n_visual], scoring, [scoring])


def _layout(n_before: int, n_visual: int, n_after: int) -> TokenLayout:
    kind = torch.tensor([[0] * n_before + [1] * n_visual + [2] * n_after])
    visual = kind == 1
    origin = torch.where(visual, visual.long().cumsum(1) - 1, -1)
    return TokenLayout(torch.ones_like(visual), visual, kind == 2, torch.arange(kind.shape[1])[None], origin)


def report(
    method: Method, shape: ModelShape, n_text: int, chosen: Sequence[Choice] = (), n_before: int = published.N_SYSTEM
) -> str:
    """The costs of a method as text: every column beside the unpruned model's, and what papers would have reported."""
    if not 0 <= n_before < n_text:
        raise PrunebenchError(
            f"expected some text behind the image: fewer text tokens before it (--text-before, found {n_before}) than in all "
            f"(--text-tokens, found {n_text})"
        )
    schedules = plans(method, shape, n_text, chosen)
    traces = [planned_trace(method, shape, visual, n_text, n_before) for visual in schedules]
    base = planned_trace(Method(), shape, [shape.n_visual] * shape.depth, n_text, n_before)
    lines = [f"{shape.depth} layers, {shape.n_visual} visual and {n_text} text tokens ({n_before} before the image)"]
    lines += [f"visual tokens per layer: {_runs(visual)}" for visual in schedules]

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
        ("vision tower", lambda t: flops.vision_tower(shape.vision), 1e12, "TFLOPs"),
        ("projector", lambda t: flops.projector(shape), 1e12, "TFLOPs"),
        ("KV cache after the prefill", lambda t: flops.kv_bytes(shape, t, 0), 2**20, "MiB"),
    ]
    unknown_scoring = any(method.plan_scoring(shape, n_text, visual) is None for visual in schedules)
    body = []
    for name, value, unit, word in columns:
        mine, whole = mean(value, traces) / unit, value(base) / unit
        share = f"{100 * mine / whole:.1f}" if whole else "-"
        if unknown_scoring and name.startswith("scoring"):
            body.append([name, "not known", "0", "-", word])
        else:
            body.append([name, f"{mine:,.4g}", f"{whole:,.4g}", share, word])
    head = ["", method.name, "unpruned", "% of unpruned", "unit"]
    lines += ["", str(tabulate(body, headers=head, disable_numparse=True, colalign=["left", "right", "right", "right", "left"]))]
    if unknown_scoring:
        lines.append("(the rows above leave out this method's scoring: it depends on the prompt, or the method has no plan_scoring())")
    lines += ["", "One multiply-add counted as one FLOP, the papers would have reported for this run:"]
    body = []
    for same in zip(*(published.reports(shape, visual, n_text, n_before) for visual in schedules), strict=True):
        macs, first = sum(r.macs for r in same) / len(same), same[0]
        scale, unit_name = (1e12, "T") if first.per == "prefill" else (1e9, "G a layer")
        change = f"{100 * (macs / first.unpruned - 1):+.1f} %"
        ours, theirs = (f"{x / scale:,.4g} {unit_name}" for x in (macs, first.unpruned))
        body.append([first.who, ours, theirs, change, first.formula, first.source])
    head = ["", method.name, "unpruned", "change", "formula", "source"]
    align = ["left", "right", "right", "right", "left", "left"]
    lines.append(str(tabulate(body, headers=head, disable_numparse=True, colalign=align)))
    seen = sum(published.visual_attention(visual, n_text, shape.n_visual) for visual in schedules) / len(schedules)
    lines.append(f"visual attention as VisiPruner counts it: {100 * (seen - 1):+.2f} %   c(n, f) = 4nd^2 + 2n^2 d + fndm")
    return "\n".join(lines)


def _runs(visual: Sequence[int]) -> str:
    """`[576, 576, 64]` -> "576 x 2, 64 x 1"."""
    return ", ".join(f"{value} x {len(list(same))}" for value, same in groupby(visual))
