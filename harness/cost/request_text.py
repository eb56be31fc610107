"""The tables of `prunebench cost --request`."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages

from harness.core.requests import Machine, saving_batch, saving_outputs, step_speedup
from harness.core.spelling import given
from harness.cost.request import BOUND, NO_SCORING, Priced

NEVER = "never"


def tables(
    priced: Sequence[Priced],
    outputs: Sequence[int],
    questions: Sequence[int],
    batches: Sequence[int],
    on: Machine,
    saving: float,
) -> str:
    """Every table as text; the first of `priced` is the unpruned model. `saving`: the share that break-even asks
    for."""
    base = priced[0].request
    scale, name = (1e12, "TFLOPs") if base.prefill_flops >= 1e12 else (1e9, "GFLOPs")
    parts = [
        f"{name} of the parts of a question; `shared`: what questions about an image can share",
        _parts(priced, scale),
        f"{name} of a question, tower included (% of unpruned), by new tokens",
        _totals(priced, outputs, questions, scale),
        "KV cache (MiB) at the last of so many new tokens (% of unpruned); 1: after the prefill",
        _caches(priced, outputs),
        "GB that the first decode step reads, by batch (times fewer than unpruned, the most that it can speed up)",
        _steps(priced, batches),
        f"break-even: new tokens at which a question costs at least {100 * saving:g} % fewer FLOPs, by questions an"
        f" image;\nbatch: the smallest whose first decode step reads at least {100 * saving:g} % fewer bytes",
        _break_even(priced, questions, saving),
        f"least ms of a batch at {_rate(on.bandwidth)}B/s and {_rate(on.peak)}FLOPS, one question an image (% of"
        " unpruned), by new tokens",
        _times(priced, outputs, batches, on),
    ]
    lines = [line for caption, table in zip(parts[::2], parts[1::2], strict=True) for line in ("", caption, table)]
    if any(one.source == BOUND for one in priced):
        more = given("results", "FOLDER")
        lines += ["", f"<= the prompt decides, and this is the most that it can cost: {more} gives measured means"]
    if any(one.source == NO_SCORING for one in priced):
        named = ", ".join(dict.fromkeys(one.method for one in priced if one.source == NO_SCORING))
        lines += ["", f"without scoring, which is not known before a run: {named}"]
    return "\n".join(lines)


def _rate(rate: float) -> str:
    return f"{rate / 1e12:g} T"


def grid(head: Sequence[str], body: Sequence[Sequence[str]], left: int = 2) -> str:
    align = ["left"] * left + ["right"] * (len(head) - left)
    return str(tabulate(body, headers=head, disable_numparse=True, colalign=align))


def _name(one: Priced) -> list[str]:
    return [one.method, one.budget or "-"]


def _of(one: Priced, value: float, whole: float, unit: float) -> str:
    return f"{one.bound}{value / unit:,.4g} ({100 * value / whole:.1f})"


def _parts(priced: Sequence[Priced], scale: float) -> str:
    head = ["method", "budget", "tower", "projector", "prefill", "of it scoring", "shared", "a decode step", "logits"]
    body = []
    for one in priced:
        r = one.request
        most, least = one.bound, one.bound.replace("<", ">")
        values = [("", r.tower_flops), ("", r.projector_flops), (most, r.prefill_flops), (most, r.scoring_flops)]
        values += [(least, r.shared_flops), (most, r.step_flops(1)), ("", r.head_flops(1))]
        body.append([*_name(one), *(f"{sign}{value / scale:,.4g}" for sign, value in values)])
    return grid(head, body)


def _totals(priced: Sequence[Priced], outputs: Sequence[int], questions: Sequence[int], scale: float) -> str:
    base = priced[0].request
    body = [
        [*_name(one), str(q), *(_of(one, one.request.flops(n, q), base.flops(n, q), scale) for n in outputs)]
        for q in questions
        for one in priced
    ]
    return grid(["method", "budget", "questions", *map(str, outputs)], body, left=3)


def _caches(priced: Sequence[Priced], outputs: Sequence[int]) -> str:
    base = priced[0].request
    body = [[*_name(one), *(_of(one, one.request.kv_at(n), base.kv_at(n), 2**20) for n in outputs)] for one in priced]
    return grid(["method", "budget", *map(str, outputs)], body)


def _steps(priced: Sequence[Priced], batches: Sequence[int]) -> str:
    base = priced[0].request
    body = [
        [
            *_name(one),
            *(
                f"{one.bound}{one.request.step_bytes(1, b) / 1e9:,.4g} ({step_speedup(one.request, base, b):.2f}x)"
                for b in batches
            ),
            f"{base.kv_at(2) / one.request.kv_at(2):.2f}x",
        ]
        for one in priced
    ]
    return grid(["method", "budget", *map(str, batches), "no end of batch"], body)


def _break_even(priced: Sequence[Priced], questions: Sequence[int], saving: float) -> str:
    base, body = priced[0].request, []
    for one in priced[1:]:
        found = [saving_outputs(one.request, base, saving, q) for q in questions]
        spelt = [NEVER if ends is None else f"{ends[0]:,} to {ends[1]:,}" for ends in found]
        batch = saving_batch(one.request, base, saving)
        before = base.prefill_flops - (one.request.prefill_flops - one.request.scoring_flops)
        share = f"{100 * one.request.scoring_flops / before:.2g} %" if before > 0 else NEVER
        body.append([*_name(one), *spelt, NEVER if batch is None else f"{batch:,}", share])
    return grid(["method", "budget", *map(str, questions), "batch", "scoring, of what it saves"], body)


def _times(priced: Sequence[Priced], outputs: Sequence[int], batches: Sequence[int], on: Machine) -> str:
    body = []
    for b in batches:
        whole = [1000 * on.seconds(priced[0].request, n, 1, b) for n in outputs]
        for one in priced:
            own = [1000 * on.seconds(one.request, n, 1, b) for n in outputs]
            body.append([*_name(one), str(b), *(_of(one, ms, all_, 1) for ms, all_ in zip(own, whole, strict=True))])
    return grid(["method", "budget", "batch", *map(str, outputs)], body, left=3)
