"""Measured times as spreads, ratios and tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from tabulate import tabulate  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages

from harness.bench.measure import Times
from harness.bench.settings import BARE, NONE
from harness.core import flops
from harness.core.shape import PromptShape
from harness.core.shown import code, in_markdown

# -------------------------------------------------------------------------------------------------------------- results


#: quartiles this far apart, as a share of the median, say that something else was running
NOISY = 0.2


class Spread(NamedTuple):
    """Median, quartiles and extremes; quartiles by linear interpolation, equal to the extremes below three values."""

    median: float
    q1: float
    q3: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    low, high = min(values), max(values)
    q1, _, q3 = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 2 else (low, 0.0, high)
    return Spread(statistics.median(values), q1, q3, low, high)


def summary(measured: Times, bare: Times, none: Times, prompt: PromptShape, batch: int) -> dict[str, Any]:
    """One contender's row: times in ms, speed-ups over the bare model, FLOPs (1 multiply-add = 2), bytes; plain JSON
    values.

    `flops_ratio` is unpruned over own dense prefill FLOPs, what a speed-up would be if time were FLOPs;
    `realised_share` the prefill's speed-up over it. `kv_bytes` were measured, `kv_bytes_closed_form` follow from the
    trace.
    """
    trace, shape, n_prompt = measured.trace, prompt.decoder, prompt.n_visual + prompt.n_text
    times = {}
    for key, name in (("vision_s", "vision_ms"), ("prefill_s", "prefill_ms"), ("decode_s", "decode_ms_per_token")):
        values = [1000 * getattr(s, key) for s in measured.samples]
        times[name] = {**spread(values)._asdict(), "samples": values}

    def median(of: Times, key: str) -> float:
        return statistics.median([float(getattr(s, key)) for s in of.samples])

    unpruned = flops.prefill_unpruned(shape, n_prompt)
    if trace is None:
        schedule, dense, executed = [prompt.n_visual] * prompt.depth, float(unpruned), float(batch * unpruned)
        closed = batch * shape.depth * n_prompt * 2 * shape.kv_heads * shape.head_dim * shape.bytes_per_value
    else:
        schedule = [layer.visual[0] for layer in trace.layers]
        dense = sum(flops.prefill_dense(shape, trace, row) for row in range(batch)) / batch
        executed = float(flops.prefill_executed(shape, trace))
        closed = sum(flops.kv_bytes(shape, trace, row) for row in range(batch))
    speedup, ratio = median(bare, "prefill_s") / median(measured, "prefill_s"), unpruned / dense
    peaks = [s.peak_bytes for s in measured.samples if s.peak_bytes is not None]
    return {
        "name": measured.contender.name,
        "budget": measured.contender.budget,
        "knobs": None if measured.contender.method is None else measured.contender.method.knobs(),
        "choices": [] if measured.contender.method is None else list(measured.contender.method.choices(shape)),
        "visual_per_layer": schedule,
        "mean_visual": sum(schedule) / len(schedule),
        "notes": {} if trace is None else trace.notes,
        **times,
        "prefill_speedup": speedup,
        "prefill_speedup_over_none": median(none, "prefill_s") / median(measured, "prefill_s"),
        "decode_speedup": median(bare, "decode_s") / median(measured, "decode_s"),
        "prefill_dense_flops": dense,
        "prefill_unpruned_flops": unpruned,
        "prefill_executed_flops_of_batch": executed,
        "flops_ratio": ratio,
        "realised_share": speedup / ratio,
        "kv_bytes": measured.kv_bytes,
        "kv_bytes_closed_form": closed,
        "peak_bytes": max(peaks) if peaks else None,
    }


def overhead(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the engine costs without pruning: medians of `none` less the bare model's in ms, and as a share of the bare
    model's."""
    bare, none = (next(r for r in rows if r["name"] == name) for name in (BARE, NONE))
    out = {}
    for key in ("prefill_ms", "decode_ms_per_token"):
        more = none[key]["median"] - bare[key]["median"]
        out[key], out[key.replace("_ms", "") + "_share"] = more, more / bare[key]["median"]
    return out


def table(rows: Sequence[Mapping[str, Any]], style: str = "simple") -> str:
    """One batch size as text, for the terminal or (`style` "github") for Markdown."""
    join = "\n" if style == "simple" else " "
    head = [
        "method",
        "budget",
        f"mean visual{join}(tokens/layer)",
        f"vision{join}(ms)",
        f"prefill (ms){join}median [quartiles]",
        f"speed-up{join}(x)",
        f"FLOPs ratio{join}(x)",
        f"realised{join}(%)",
        f"decode (ms/token){join}median [quartiles]",
        f"speed-up{join}(x)",
        f"KV{join}(MiB)",
        f"peak{join}(MiB)",
    ]

    def time_cell(cell: Mapping[str, float]) -> str:
        return f"{cell['median']:.1f} [{cell['q1']:.1f}, {cell['q3']:.1f}]"

    body = [
        [
            r["name"],
            r["budget"] or "-",
            f"{r['mean_visual']:.1f}",
            f"{r['vision_ms']['median']:.1f}",
            time_cell(r["prefill_ms"]),
            f"{r['prefill_speedup']:.2f}",
            f"{r['flops_ratio']:.2f}",
            f"{100 * r['realised_share']:.0f}",
            time_cell(r["decode_ms_per_token"]),
            f"{r['decode_speedup']:.2f}",
            f"{r['kv_bytes'] / 2**20:.1f}",
            "not measured" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 2**20:,.0f}",
        ]
        for r in rows
    ]
    align = ["left", "left"] + ["right"] * (len(head) - 2)
    return str(tabulate(body, headers=head, tablefmt=style, disable_numparse=True, colalign=align))


def remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cost = overhead(rows)
    lines = [
        f"engine overhead of `none` over the bare model: prefill {cost['prefill_ms']:+.2f} ms"
        f" ({100 * cost['prefill_share']:+.1f} %), decode {cost['decode_ms_per_token']:+.2f} ms/token"
        f" ({100 * cost['decode_per_token_share']:+.1f} %)"
    ]
    differ = [
        f"{r['name']} {r['budget']}: {r['kv_bytes']} measured, {r['kv_bytes_closed_form']} expected"
        for r in rows
        if r["kv_bytes"] != r["kv_bytes_closed_form"]
    ]
    noisy = [
        f"{r['name']} {r['budget']}".strip()
        for r in rows
        if any(r[key]["q3"] - r[key]["q1"] > NOISY * r[key]["median"] for key in ("prefill_ms", "decode_ms_per_token"))
    ]
    if noisy:
        lines.append(
            f"NOISY, quote nothing of these: quartiles more than {100 * NOISY:.0f} % of the median apart in"
            f" {', '.join(noisy)}"
        )
    same = f"KV bytes of the cache tensors equal the closed form in all {len(rows)} rows"
    return [*lines, "KV bytes differ from the closed form: " + "; ".join(differ) if differ else same]


def schedules(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    def spelt(schedule: Sequence[int]) -> str:
        return ", ".join(f"{value} x {len(list(same))}" for value, same in groupby(schedule))

    lines = []
    for r in rows:
        forced = {k: v for k, v in (r["knobs"] or {}).items() if k in r["choices"] and v is not None}
        said = f" (forced: {', '.join(f'{k}={v}' for k, v in forced.items())})" if forced else ""
        lines.append(f"{r['name']} {r['budget']}".strip() + f": {spelt(r['visual_per_layer'])}{said}")
    return lines


def markdown(result: Mapping[str, Any]) -> str:
    """BENCH.md from what bench.json holds."""
    where, asked = result["where"], result["settings"]
    weights = "random weights" if asked["random_weights"] else "its own weights"
    slice_ = f", a slice of {asked['layers']} layers" if asked["layers"] else ""
    lines = [
        f"# {in_markdown(asked['model'])} on {where['device']}",
        "",
        code(result["command"]),
        "",
        (
            f"* model: {in_markdown(asked['model'])} with {weights}{slice_}: {result['shape']['depth']} decoder layers,"
            f" {where['dtype']}, {result['weights_bytes'] / 2**20:,.0f} MiB"
        ),
        f"* device: {where['device']} ({where['device_type']}), torch {where['torch']}"
        + (f", CUDA {where['cuda']}" if where["cuda"] else "")
        + f", transformers {where['versions']['transformers']}, Python {where['python']}",
        (
            f"* input: random pixels, {result['n_visual']} visual and {asked['text_tokens']} random text tokens a"
            f" prompt, seed {asked['seed']}; always {asked['new_tokens']} new tokens"
        ),
        (
            f"* {asked['warmup']} warm-up and {asked['repeats']} recorded repeats; each runs every row once, in"
            " rotating order; nothing is shared between rows"
        ),
        f"* {where['started']}, commit {where['git'] or 'unknown'}{' with changes' if where['dirty'] else ''}",
        "",
        (
            "Times are of the whole batch: vision is tower and projector, prefill the language model, decode one step."
            " Speed-ups are the bare model's median over the row's. FLOPs ratio is the unpruned over the row's dense"
            " prefill FLOPs, `realised` the prefill's speed-up in % of it. Peak is the CUDA allocator's, weights"
            " included; on a CPU it is not measured."
        ),
    ]
    for batch in result["batches"]:
        lines += ["", f"## Batch {batch['batch']}", "", table(batch["rows"], "github"), ""]
        lines += [f"* {remark}" for remark in remarks(batch["rows"])]
    lines += [
        "",
        "## Visual tokens per layer",
        "",
        *[f"* {line}" for line in schedules(result["batches"][0]["rows"])],
        "",
    ]
    return "\n".join(lines)
