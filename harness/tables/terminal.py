"""The table that a terminal shows."""

from __future__ import annotations

from typing import Any

import pandas as pd  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages
from tabulate import tabulate  # type: ignore[import-untyped, unused-ignore]

from harness.tables.text import decimal, score_with_interval, significant


def table(df: pd.DataFrame) -> str:
    """The frame of `rows` as a table for the terminal; model, method, budget, knobs and seed are shown where they
    differ."""
    if df.empty:
        return "no sealed cells yet"
    records: list[dict[str, Any]] = [{str(name): value for name, value in row.items()} for row in df.to_dict("records")]
    varying = [
        name for name in ("model", "method", "budget", "positions", "seed") if len({row[name] for row in records}) > 1
    ]
    head = [
        *varying,
        "task",
        "metric",
        "score [95 % interval]",
        "% of unpruned",
        "kept\n(tokens)",
        "mean visual\n(tokens/layer)",
        "prefill dense\n(GFLOPs)",
        "% of unpruned\nFLOPs",
        "KV\n(MiB)",
        "answered/\nexpected",
    ]
    body = [
        [
            *(str(row[name]) for name in varying),
            row["task"],
            row["metric"],
            score_with_interval(row),
            decimal(row["pct_of_unpruned"]),
            decimal(row["kept"]),
            decimal(row["mean_visual"]),
            significant(row["prefill_dense_gflops"]),
            decimal(row["pct_of_unpruned_flops"]),
            significant(row["kv_mib"]),
            f"{row['answered']}/{row['expected']}",
        ]
        for row in records
    ]
    align = ["left"] * (len(varying) + 2) + ["right"] * (len(head) - len(varying) - 2)
    return str(tabulate(body, headers=head, disable_numparse=True, colalign=align))
