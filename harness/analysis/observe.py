"""Measured passes as tables: layers, sinks, knock-outs and samples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.analysis import stages
from harness.analysis.asker import Asker
from harness.analysis.eye import COSINE, LENS_TOKENS, NORM, OF_TOKENS, RANKS, SINK_DRAW, SINK_NORM, Observer, watching
from harness.analysis.stages import Cut, Outcome
from harness.models.load import LoadedModel


def observe(asker: Asker, seen: Callable[[], object] = lambda: None) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Arrays (samples, depth, ...) by name, in the order of the asker's keys, and the unpruned answers.

    Where prompts differ in visual tokens, the last axis of `OF_TOKENS` is the largest prompt's; `n_visual (samples,)`
    says how many each one has.
    """
    adapter = asker.loaded.adapter
    observer = Observer(adapter=adapter)
    with watching(adapter, observer):
        texts = {key: a.text for key, a in asker.ask(observer, seen).items()}
    rows = [observer.into.samples[key] for key in asker.keys]
    arrays = {name: _stacked([row[name] for row in rows], name) for name in rows[0]}
    arrays["n_visual"] = np.array([row["state_norm"].shape[-1] for row in rows])
    return _with_sinks(arrays), texts


def _stacked(parts: Sequence[NDArray[Any]], name: str) -> NDArray[Any]:
    """One array of what was observed of each sample; only what has an axis of tokens may differ in length."""
    return padded(parts, OF_TOKENS[name]) if name in OF_TOKENS else np.stack(parts)


def padded(parts: Sequence[NDArray[Any]], value: float) -> NDArray[Any]:
    """The arrays (..., v) on a new first axis, `value` behind the end of those that are shorter than the longest."""
    width = max(part.shape[-1] for part in parts)
    return np.stack(
        [
            np.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, width - part.shape[-1])], constant_values=value)
            for part in parts
        ]
    )


def token_counts(counts: NDArray[Any]) -> dict[str, Any]:
    """For a document: how many visual tokens the prompts have; where they differ their mean, fewest and most, and the
    mean entropy (nats) of even attention to all of them."""
    fewest, most = int(counts.min()), int(counts.max())
    if fewest == most:
        return {"n_visual": most}
    even = float(np.log(counts).mean())
    return {"n_visual": float(counts.mean()), "n_visual_range": [fewest, most], "entropy_uniform": even}


def _of_real(numbers: NDArray[Any], counts: NDArray[Any], what: Callable[..., Any]) -> NDArray[Any]:
    """(samples, depth): `what` of each sample's real tokens, the first of `numbers (samples, depth, v)`."""
    return np.stack([what(one[:, :n], axis=-1) for one, n in zip(numbers, counts, strict=True)])


def _with_sinks(seen: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Adds what follows from the rule for sinks: their number, share of the last row's visual attention, and value
    norms."""
    draw = seen["attention_last"] / np.maximum(seen["attention_last"].sum(-1, keepdims=True), 1e-30)
    counts, width = seen["n_visual"], draw.shape[-1]
    there = (np.arange(width) < counts[:, None])[:, None]  # (samples, 1, v)
    # a prompt's fair share is one of its own tokens; a place that it does not have draws nothing there
    fair = (counts / width).astype(draw.dtype)[:, None, None]
    shared = np.median(draw * fair, axis=0) * width > SINK_DRAW
    usual = _of_real(seen["state_norm"], counts, np.median)[..., None]
    sink = ((seen["state_norm"] > SINK_NORM * usual) | shared[None]) & there
    seen["n_sinks"] = sink.sum(-1)
    seen["sink_share"] = (draw * sink).sum(-1)
    for name in ("value_l1", "value_l2"):
        for kind, where in (("sink", sink), ("other", ~sink & there)):
            count = where.sum(-1)
            total = (seen[name] * where).sum(-1)
            seen[f"{name}_{kind}"] = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    norms = -np.sort(-seen["contribution"], axis=-1)
    seen["contribution_ranked"] = np.where(there, norms, np.nan)
    seen["norm_max"], seen["norm_mean"] = norms[..., 0], _of_real(norms, counts, np.mean)
    seen["cosine_lowest"] = seen["cosine"].min(-1)
    seen["n_cosine_below"] = (seen["cosine"] < COSINE).sum(-1)
    seen["n_norm_above"] = (seen["contribution"] > NORM).sum(-1)
    return seen


def with_bounds(found: tuple[Any, Any, Any]) -> dict[str, float | None]:
    mean, low, high = (None if np.isnan(x) else float(x) for x in found)
    return {"mean": mean, "low": low, "high": high}


def by_layer(
    seen: Mapping[str, NDArray[Any]], weights: NDArray[np.float64], loaded: LoadedModel
) -> list[dict[str, Any]]:
    """One entry per layer; every mean with its interval."""
    tokenizer = loaded.processor.tokenizer
    n, depth = seen["n_sinks"].shape

    def word(token: int) -> str:
        return str(tokenizer.decode([token])).strip() or "(space)"

    def common(tokens: NDArray[Any]) -> list[list[Any]]:
        # by count, then by token, so that ties have an order
        counts = sorted(Counter(int(t) for t in tokens).items(), key=lambda item: (-item[1], item[0]))
        return [[word(t), c / n] for t, c in counts[:LENS_TOKENS]]

    ranks = [r for r in RANKS if r <= seen["n_visual"].min()]  # those that every prompt has
    out = []
    for layer in range(depth):
        entry: dict[str, Any] = {"layer": layer}

        def add(name: str, values: NDArray[Any], entry: dict[str, Any] = entry) -> None:
            three = with_bounds(stages.interval(weights, values))
            entry.update({name: three["mean"], f"{name}_low": three["low"], f"{name}_high": three["high"]})

        for rows in ("last", "question"):
            for g, group in enumerate(("visual", "before", "after")):
                add(f"mass_{group}_{rows}", seen[f"mass_{rows}"][:, layer, g])
        add("entropy", seen["entropy_last"][:, layer])
        add("entropy_question", seen["entropy_question"][:, layer])
        for name in ("sink_share", "n_sinks"):
            add(name, seen[name][:, layer])
        for kind in ("sink", "other"):
            add(f"value_norm_{kind}", seen[f"value_l2_{kind}"][:, layer])
            add(f"value_norm_l1_{kind}", seen[f"value_l1_{kind}"][:, layer])
        # behind this layer: boundary 0 is the input
        entry["lens_top"] = common(seen["lens_top"][:, layer + 1])
        add("lens_answer_p", seen["lens_answer_p"][:, layer + 1])
        entry["value_lens_top"] = common(seen["value_lens_top"][:, layer])
        add("value_lens_answer_p", seen["value_lens_answer_p"][:, layer])
        contribution: dict[str, Any] = {}
        for name in ("norm_max", "norm_mean", "cosine_lowest", "n_cosine_below", "n_norm_above"):
            add(name, seen[name][:, layer], contribution)
        ranked = seen["contribution_ranked"][:, layer]
        contribution["norm_at_rank"] = {str(r): float(ranked[:, r - 1].mean()) for r in ranks}
        entry["contribution"] = contribution
        out.append(entry)
    return out


def knockout_row(kind: str, start: int, end: int, outcome: Outcome, weights: NDArray[np.float64]) -> dict[str, Any]:
    accuracy, low, high = stages.interval(weights, outcome.score)
    flips, flips_low, flips_high = stages.interval(weights, outcome.flipped)
    return {
        "kind": kind,
        "start": start,
        "end": end,
        "accuracy": float(accuracy),
        "low": float(low),
        "high": float(high),
        "flips": float(flips),
        "flips_low": float(flips_low),
        "flips_high": float(flips_high),
        "n": len(outcome.score),
    }


def sample_table(seen: Mapping[str, NDArray[Any]], asker: Asker, loaded: LoadedModel) -> Any:
    """One row per sample and layer; nan for the norm at a rank that a prompt has too few visual tokens for."""
    import pandas as pd

    n, depth = seen["n_sinks"].shape
    columns: dict[str, Any] = {
        "key": np.repeat(asker.keys, depth),
        "image": np.repeat(asker.images, depth),
        "layer": np.tile(np.arange(depth, dtype=np.int16), n),
    }
    for rows in ("last", "question"):
        for g, group in enumerate(("visual", "before", "after")):
            columns[f"mass_{group}_{rows}"] = seen[f"mass_{rows}"][:, :, g].ravel()
        columns[f"entropy_{rows}"] = seen[f"entropy_{rows}"].ravel()
    for name in (
        "sink_share",
        "n_sinks",
        "value_l1_sink",
        "value_l1_other",
        "value_l2_sink",
        "value_l2_other",
        "norm_max",
        "norm_mean",
        "cosine_lowest",
        "n_cosine_below",
        "n_norm_above",
    ):
        columns[name] = seen[name].ravel()
    for rank in (r for r in RANKS if r <= seen["contribution"].shape[-1]):
        columns[f"norm_rank_{rank}"] = seen["contribution_ranked"][:, :, rank - 1].ravel()
    vocabulary = loaded.processor.tokenizer.convert_ids_to_tokens
    for prefix, first in (("lens", 1), ("value_lens", 0)):
        columns[f"{prefix}_top"] = vocabulary([int(t) for t in seen[f"{prefix}_top"][:, first:].ravel()])
        for name in ("top_p", "answer_p"):
            columns[f"{prefix}_{name}"] = seen[f"{prefix}_{name}"][:, first:].ravel()
    frame = pd.DataFrame(columns)
    narrow = {
        c: "int32" if c.startswith("n_") else "float32"
        for c in frame.columns
        if frame[c].dtype in (np.float64, np.int64)
    }
    return frame.astype(narrow)


def knockout_table(
    asker: Asker,
    texts: Mapping[str, str],
    unpruned: Outcome,
    answers: Mapping[Cut, Mapping[str, str]],
    outcomes: Mapping[Cut, Outcome],
) -> Any:
    """One row per sample and cut."""
    import pandas as pd

    parts = [("none", 0, 0, texts, unpruned), *((*cut, answers[cut], outcome) for cut, outcome in outcomes.items())]
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "kind": kind,
                    "start": np.int16(start),
                    "end": np.int16(end),
                    "key": asker.keys,
                    "answer": [said[key] for key in asker.keys],
                    "score": outcome.score.astype(np.float32),
                    "flipped": outcome.flipped,
                }
            )
            for kind, start, end, said, outcome in parts
        ],
        ignore_index=True,
    )


def rounded(value: Any) -> Any:
    """Six significant digits, and null for what is not a number."""
    if isinstance(value, Mapping):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
