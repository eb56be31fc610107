"""Sealed cells as rows of one frame: the columns of leaderboard.csv."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages

from harness.core.cell import canonical_json
from harness.core.command import evaluation
from harness.core.costs import request_flops, with_tower
from harness.core.errors import PrunebenchError
from harness.store.sealed import SealedCell
from harness.tables.sections import (
    NAN,
    amortised_flops,
    baseline,
    distinct,
    percent_of_flops,
    percent_of_unpruned,
    percent_with_tower,
)

COLUMNS = (
    "model",
    "task",
    "metric",
    "score",  # the metric's own unit: 0..1, or points for MME
    "low",
    "high",
    "max",
    "pct_of_unpruned",  # percent
    "method",
    "knobs",
    "budget",
    "kept",  # tokens
    "mean_visual",  # tokens per layer
    "prefill_dense_gflops",  # 1e9 FLOPs, 1 multiply-add = 2
    "pct_of_unpruned_flops",  # percent, of the language model's prefill
    "tower_and_prefill_gflops",  # 1e9 FLOPs of vision tower, projector and prefill
    "pct_of_unpruned_tower_and_prefill",  # percent
    "request_gflops",  # 1e9 FLOPs of a whole request
    "request_gflops_6",  # of one of six questions about an image, for methods that do not read the question
    "kv_mib",
    "answered",
    "expected",
    "images",
    "positions",
    "query_aware",
    "needs_vision_attention",
    "unproven",  # "none", or the model's family, where no recorded official run of the method on it is replayed
    "dtype",
    "device",
    "seed",
    "identity",
    "command",
    "model_fingerprint",  # of the weights: models of one name may differ
)
"""Columns of `rows`; every other cost column of the cells follows them under its own name (mean per sample)."""
_SHOWN_COSTS = ("kept", "mean_visual", "prefill_dense_flops", "kv_bytes")  # these have a column of their own above


def rows(cells: Iterable[SealedCell]) -> pd.DataFrame:
    """One row per cell with the columns `COLUMNS` and then the further cost columns, in a fixed order whatever the
    input's."""
    known = distinct(cells)
    further = sorted({name for sealed in known.values() for name in sealed.costs} - set(_SHOWN_COSTS))
    clash = sorted(set(further) & set(COLUMNS))
    if clash:
        raise PrunebenchError(
            f"cost columns {', '.join(clash)} have the name of a leaderboard column; rename them in the engine"
        )
    records = [
        _row(sealed, known) | {name: sealed.costs.get(name, NAN) for name in further} for sealed in known.values()
    ]
    return pd.DataFrame(records, columns=[*COLUMNS, *further])


def _row(sealed: SealedCell, known: Mapping[str, SealedCell]) -> dict[str, Any]:
    cell, costs, interval = sealed.cell, sealed.costs, sealed.interval
    return {
        "model": cell.model,
        "task": cell.task,
        "metric": sealed.headline,
        "score": sealed.score,
        "low": interval.low if interval else NAN,
        "high": interval.high if interval else NAN,
        "max": sealed.maximum,
        "pct_of_unpruned": percent_of_unpruned(sealed, baseline(sealed, known)),
        "method": cell.method,
        "knobs": canonical_json(cell.settings),
        "budget": cell.budget,
        "kept": costs.get("kept", NAN),
        "mean_visual": costs.get("mean_visual", NAN),
        "prefill_dense_gflops": costs.get("prefill_dense_flops", NAN) / 1e9,
        "pct_of_unpruned_flops": percent_of_flops(sealed, baseline(sealed, known)),
        "tower_and_prefill_gflops": with_tower(costs) / 1e9,
        "pct_of_unpruned_tower_and_prefill": percent_with_tower(sealed, baseline(sealed, known)),
        "request_gflops": request_flops(costs) / 1e9,
        "request_gflops_6": amortised_flops(sealed) / 1e9,
        "kv_mib": costs.get("kv_bytes", NAN) / 2**20,
        "answered": sealed.counts["answered"],
        "expected": sealed.counts["expected"],
        "images": interval.n_clusters if interval else sealed.counts.get("images", 1),
        "positions": cell.positions,
        "query_aware": sealed.method_info.get("query_aware"),
        "needs_vision_attention": sealed.method_info.get("needs_vision_attention"),
        "unproven": sealed.unproven or "none",
        "dtype": cell.dtype,
        "device": sealed.provenance.get("device", cell.device_type),
        "seed": cell.seed,
        "identity": sealed.identity,
        "command": evaluation(sealed.asked, fresh=True, source=sealed.cell.method_source),
        "model_fingerprint": cell.model_fingerprint,
    }
