"""Sealed cells with samples, for tests of what reads answers: written as a store writes them, from scores given by
hand."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers import asked, make_cell

from harness.core import stats
from harness.core.cell import Cell
from harness.store.journal import Record
from harness.store.sealed import SampleScore, SealedCell, parquet

METRICS = {"mme": "mme_perception_score", "gqa": "exact_match", "textvqa_ocr": "exact_match"}


def answered(
    root: Path,
    method: str,
    budget: str,
    scores: Sequence[float],
    task: str = "pope",
    *,
    per_image: int = 2,
    answers: Sequence[str] | None = None,
    kinds: Sequence[str] = ("existence", "count"),
    **changes: Any,
) -> SealedCell:
    """A cell that got these scores on questions 0, 1, ... (`per_image` on an image); changes go to the cell or to the
    result.

    For MME, questions 2k and 2k+1 are the pair about image k, in the categories `kinds` by turns.
    """
    n = len(scores)
    headline = METRICS.get(task, f"{task}_accuracy")
    mme = task == "mme"
    image = [f"{task}-{i // (2 if mme else per_image)}" for i in range(n)]
    category = [kinds[i // 2 % len(kinds)] if mme else None for i in range(n)]
    question = [f"{i // 2}" if mme else f"{i}" for i in range(n)]
    units = stats.cluster(headline, scores, image, category, question)
    size = int(budget) if budget.isdigit() else 576
    result: dict[str, Any] = {
        "headline": headline,
        "metrics": {headline: units.point},
        "maximum": units.maximum,
        "interval": stats.interval(headline, units, n=50),
        "costs": {"kept": size, "mean_visual": size, "prefill_dense_flops": size * 1e7 + 1e9, "kv_bytes": size * 1e4},
        "counts": {"expected": n, "answered": n, "headline": sum(stats.in_headline(headline, category))},
        "method_info": {"query_aware": method == "fastv", "needs_vision_attention": False, "budget_knobs": ["keep"]},
        "provenance": {
            "request": asked(method=method, budget=budget, task=task),
            "device": "CPU",
            "started": "2026-01-01",
        },
    }
    fields = {f.name for f in dataclasses.fields(Cell)}
    of_cell = {name: value for name, value in changes.items() if name in fields}
    result |= {name: value for name, value in changes.items() if name not in fields}
    own = {
        "model": "mini",
        "method": method,
        "knobs": {},
        "budget": budget,
        "task": task,
        "data_fingerprint": f"data-{task}-{n}",
    }
    made = make_cell(n, **(own | of_cell))
    folder = root / made.identity()
    folder.mkdir(parents=True, exist_ok=True)
    said = answers or [("yes" if i % 3 else "no") if s >= 0.5 else f"wrong {i}" for i, s in enumerate(scores)]
    rows = [
        (
            Record(f"{task}/{i:06d}", image[i], said[i], 1, {}, 0.1),
            SampleScore(scores[i], question[i], category[i], "q", "t"),
        )
        for i in range(n)
    ]
    data = parquet(rows, {})
    (folder / "samples.parquet").write_bytes(data)
    return SealedCell(cell=made, samples_sha256=hashlib.sha256(data).hexdigest(), folder=folder, **result)
