"""Sealed cells as rows of one frame: the columns of leaderboard.csv."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages

from harness.core.cell import canonical_json
from harness.core.command import evaluation
from harness.core.costs import request_flops, with_tower
from harness.core.errors import PrunebenchError
from harness.store.sealed import SealedCell
from harness.tables.sections import (
    NAN,
    SHORT,
    Section,
    amortised_flops,
    baseline,
    distinct,
    percent_of_flops,
    percent_of_unpruned,
    percent_with_tower,
    sections,
)

COLUMNS = (
    "section",  # of LEADERBOARD.md: its protocol
    "model",
    "task",
    "limit",  # of a try; none for a full run
    "n",  # questions behind the headline metric
    "metric",
    "score",  # the metric's own unit: 0..1, or points for MME
    "low",
    "high",
    "max",
    "score_pct",  # percent of the maximum, as the next two
    "low_pct",
    "high_pct",
    "pct_of_unpruned",  # percent
    "method",
    "setting",  # the method, and what tells its cells apart: unique in a section at a budget and task
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
ANSWERED = ("agreement_pct", "hard_n", "hard_pct", "relevant_n", "relevant_kept_pct", "relevant_layers_pct")
"""Columns from the answers, behind the KV cache (harness/tables/leaderboard.py)."""
MEASURED, REPRODUCED = "measured_by", "reproduced_by"
"""Columns behind all others, only where submissions were collected (harness/tables/measured.py)."""
_SHOWN_COSTS = ("kept", "mean_visual", "prefill_dense_flops", "kv_bytes")  # these have a column of their own above


def rows(cells: Iterable[SealedCell], arranged: Sequence[Section] | None = None) -> pd.DataFrame:
    """One row per cell with the columns `COLUMNS` and then the further cost columns, in a fixed order whatever the
    input's: section by section.

    `arranged`: the sections of these cells, where they are known already.
    """
    known = distinct(cells)
    arranged = sections(known) if arranged is None else arranged
    place = {sealed.identity: i for i, section in enumerate(arranged) for sealed in section.cells}
    titles = [section.title for section in arranged]
    names = {identity: name for section in arranged for identity, name in setting_names(section).items()}
    further = sorted({name for sealed in known.values() for name in sealed.costs} - set(_SHOWN_COSTS))
    clash = sorted(set(further) & {*COLUMNS, *ANSWERED, MEASURED, REPRODUCED})
    if clash:
        named = next(sealed for sealed in known.values() if clash[0] in sealed.costs)
        raise PrunebenchError(
            f"{named.folder}: expected costs of names of their own, found columns of the tables, {', '.join(clash)}:"
            " rename the cost in its method, or move the cell elsewhere"
        )
    records = [
        {"section": titles[place[identity]], "setting": names[identity]}
        | _row(sealed, known)
        | {name: sealed.costs.get(name, NAN) for name in further}
        for identity, sealed in sorted(known.items(), key=lambda item: place[item[0]])  # stable
    ]
    frame = pd.DataFrame(records, columns=[*COLUMNS, *further])
    return frame.astype({"limit": "Int64"})


def setting_names(section: Section) -> dict[str, str]:
    """By identity: the line that a cell belongs to, as an overview names it, with the seed where the line has several.

    No two cells of a section have one name at the same budget and task.
    """
    found: dict[str, str] = {}
    for series in section.series():
        seeded = any(len(seeds) > 1 for line in series.lines for seeds in line.cells.values())
        for line in series.lines:
            name = section.line_name(line)
            for sealed in (one for seeds in line.cells.values() for one in seeds):
                found[sealed.identity] = f"{name} seed={sealed.cell.seed}" if seeded else name
    places = {s.identity: (found[s.identity], s.cell.budget, s.cell.task) for s in section.cells}
    taken = Counter(places.values())
    # two knobs may be spelt alike in a name; an identity never is
    return {i: f"{name} {i[:SHORT]}" if taken[places[i]] > 1 else name for i, name in found.items()}


def _percent(value: float, maximum: float) -> float:
    return 100.0 * value / maximum if maximum else NAN


def _row(sealed: SealedCell, known: Mapping[str, SealedCell]) -> dict[str, Any]:
    cell, costs, interval = sealed.cell, sealed.costs, sealed.interval
    return {
        "model": cell.model,
        "task": cell.task,
        "limit": int(sealed.limit) if sealed.limit.isdigit() else None,
        "n": sealed.counts["headline"],
        "metric": sealed.headline,
        "score": sealed.score,
        "low": interval.low if interval else NAN,
        "high": interval.high if interval else NAN,
        "max": sealed.maximum,
        "score_pct": _percent(sealed.score, sealed.maximum),
        "low_pct": _percent(interval.low, sealed.maximum) if interval else NAN,
        "high_pct": _percent(interval.high, sealed.maximum) if interval else NAN,
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
