"""Tables from sealed cells: a pure function of their cell.json files, without torch, a model or the samples.

A number that cannot be had (no baseline, a task missing) is NaN in the frame, empty in the CSV and "-" in text; it is
never filled in. The baseline of a cell is the sealed `none` cell with identity `cell.baseline().identity()`: same data,
prompt, dtype and device, or none at all.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages
from tabulate import tabulate  # type: ignore[import-untyped, unused-ignore]

from harness.cell import Cell, canonical_json
from harness.errors import PrunebenchError
from harness.store import SealedCell, write_atomic

NAN = float("nan")
DASH = "-"
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
    "pct_of_unpruned_flops",  # percent
    "kv_mib",
    "answered",
    "expected",
    "positions",
    "query_aware",
    "needs_vision_attention",
    "dtype",
    "device",
    "seed",
    "identity",
    "command",
)
"""Columns of `rows`; every other cost column of the cells follows them under its own name (mean per sample)."""
_SHOWN_COSTS = ("kept", "mean_visual", "prefill_dense_flops", "kv_bytes")  # these have a column of their own above

_FOOTER = """\
Every number is read from sealed cells (one JSON file per model, method, budget, task and seed); intervals, knobs, commands
and further costs are in leaderboard.csv.

* **budget**: what was asked for. `64`: visual tokens after the method's selection; `64avg`: mean per layer; `0.35flops`:
  share of the unpruned dense prefill FLOPs; `native`: the method's published defaults; `none`: unpruned.
* **task columns**: the task's headline metric on n questions; a mean of scores in %, MME as the sum over its categories in
  points (200 each).
* **kept (tokens)**: visual tokens after the last content-based selection, merged ones included.
* **mean visual (tokens/layer)**: visual tokens present per decoder layer, averaged over layers.
* **prefill dense (GFLOPs)**: column `prefill_dense_flops`, language-model prefill with ordinary kernels over the tokens
  present plus the method's scoring, 1 multiply-add = 2 FLOPs; vision tower, projector, LM head and decode are separate
  columns of the CSV.
* **of unpruned FLOPs (%)**: that, over the same column of the unpruned cell of the same task.
* **KV (MiB)**: key-value cache after the prefill, 2^20 bytes.
* Costs are means over samples, then over the tasks that the row has.
* **Avg %**: score over the unpruned score, mean over all tasks of the table; "-" unless every task and its baseline is there.
* **bold** is best and <u>underlined</u> second within a block, by the number as printed; equal numbers share the mark.
* **-**: not measured, or no unpruned cell with the same data, prompt, dtype and device to compare with.
"""


def rows(cells: Iterable[SealedCell]) -> pd.DataFrame:
    """One row per cell with the columns `COLUMNS` and then the further cost columns, in a fixed order whatever the input's."""
    known = _distinct(cells)
    further = sorted({name for sealed in known.values() for name in sealed.costs} - set(_SHOWN_COSTS))
    clash = sorted(set(further) & set(COLUMNS))
    if clash:
        raise PrunebenchError(f"cost columns {', '.join(clash)} have the name of a leaderboard column; rename them in the engine")
    records = [_row(sealed, known) | {name: sealed.costs.get(name, NAN) for name in further} for sealed in known.values()]
    return pd.DataFrame(records, columns=[*COLUMNS, *further])


def table(df: pd.DataFrame) -> str:
    """The frame of `rows` as a table for the terminal; model, method, budget, knobs and seed are shown where they differ."""
    if df.empty:
        return "no sealed cells yet"
    records: list[dict[str, Any]] = [{str(name): value for name, value in row.items()} for row in df.to_dict("records")]
    varying = [name for name in ("model", "method", "budget", "positions", "seed") if len({row[name] for row in records}) > 1]
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
            _score_with_interval(row),
            _decimal(row["pct_of_unpruned"]),
            _decimal(row["kept"]),
            _decimal(row["mean_visual"]),
            _significant(row["prefill_dense_gflops"]),
            _decimal(row["pct_of_unpruned_flops"]),
            _significant(row["kv_mib"]),
            f"{row['answered']}/{row['expected']}",
        ]
        for row in records
    ]
    align = ["left"] * (len(varying) + 2) + ["right"] * (len(head) - len(varying) - 2)
    return str(tabulate(body, headers=head, disable_numparse=True, colalign=align))


def write(cells: Iterable[SealedCell], folder: Path) -> tuple[Path, Path]:
    """Write leaderboard.csv (one row per cell) and LEADERBOARD.md into the folder, each atomically; returns their paths.

    Equal cells give equal bytes. Raises PrunebenchError if the folder cannot be written.
    """
    known = _distinct(cells)
    csv, markdown = folder / "leaderboard.csv", folder / "LEADERBOARD.md"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PrunebenchError(f"cannot create {folder}: {error.strerror}; choose a results folder that you can write") from None
    write_atomic(csv, rows(known.values()).to_csv(index=False, lineterminator="\n").encode())
    write_atomic(markdown, _markdown(known).encode())
    return csv, markdown


@dataclass(frozen=True)
class _Line:
    """One row of the Markdown table: a method at a budget, with its cell per task."""

    label: str
    budget: str
    cells: Mapping[str, SealedCell]


def _distinct(cells: Iterable[SealedCell]) -> dict[str, SealedCell]:
    """Cells by identity in table order; of the same cell read from two folders, the first counts."""
    known: dict[str, SealedCell] = {}
    for sealed in cells:
        known.setdefault(sealed.identity, sealed)
    return dict(sorted(known.items(), key=lambda item: (_order(item[1].cell), item[0])))


def _order(cell: Cell) -> tuple[Any, ...]:
    return (cell.model, cell.task, budget_order(cell.budget), cell.method, cell.positions, cell.seed, canonical_json(cell.knobs))


def budget_order(budget: str) -> tuple[int, float, str]:
    """Sort key: none, then counts from large to small, then averages, FLOPs shares, and named budgets."""
    found = re.fullmatch(r"([0-9.]+)(|avg|flops)", budget)
    if budget == "none" or not found:
        return (0 if budget == "none" else 4, 0.0, budget)
    return (1 + ("", "avg", "flops").index(found[2]), -float(found[1]), budget)


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
        "pct_of_unpruned": _percent_of_baseline(sealed, known),
        "method": cell.method,
        "knobs": canonical_json(cell.knobs),
        "budget": cell.budget,
        "kept": costs.get("kept", NAN),
        "mean_visual": costs.get("mean_visual", NAN),
        "prefill_dense_gflops": costs.get("prefill_dense_flops", NAN) / 1e9,
        "pct_of_unpruned_flops": _percent_of_flops(sealed, known),
        "kv_mib": costs.get("kv_bytes", NAN) / 2**20,
        "answered": sealed.counts["answered"],
        "expected": sealed.counts["expected"],
        "positions": cell.positions,
        "query_aware": sealed.method_info.get("query_aware"),
        "needs_vision_attention": sealed.method_info.get("needs_vision_attention"),
        "dtype": cell.dtype,
        "device": sealed.provenance.get("device", cell.device_type),
        "seed": cell.seed,
        "identity": sealed.identity,
        "command": sealed.provenance.get("command"),
    }


def _baseline(sealed: SealedCell, known: Mapping[str, SealedCell]) -> SealedCell | None:
    return known.get(sealed.cell.baseline().identity())


def _percent_of_baseline(sealed: SealedCell, known: Mapping[str, SealedCell]) -> float:
    base = _baseline(sealed, known)
    if base is None or base.headline != sealed.headline or base.score <= 0:
        return NAN
    return 100.0 * sealed.score / base.score


def _percent_of_flops(sealed: SealedCell, known: Mapping[str, SealedCell]) -> float:
    base = _baseline(sealed, known)
    whole = base.costs.get("prefill_dense_flops", 0.0) if base else 0.0
    return 100.0 * sealed.costs.get("prefill_dense_flops", NAN) / whole if whole > 0 else NAN


def _markdown(known: Mapping[str, SealedCell]) -> str:
    parts = ["# Leaderboard\n"]
    if not known:
        parts.append("No sealed cells yet.\n")
    for title, section in _sections(known.values()):
        parts.append(f"## {title}\n\n{_section(section, known)}\n")
    return "\n".join([*parts, _FOOTER])


def _sections(cells: Iterable[SealedCell]) -> list[tuple[str, list[SealedCell]]]:
    """Cells that may stand in one table: same model, dtype, device, ... and one set of questions per task.

    Where a task was measured on several sets of questions (other data, another LIMIT), the one measured last comes first
    and the others follow in tables of their own.
    """
    protocols: defaultdict[tuple[str, ...], list[SealedCell]] = defaultdict(list)
    for sealed in cells:
        c = sealed.cell
        limit = sealed.provenance.get("limit")
        facts = [c.model, c.dtype, c.device_type, c.kernel, f"images by {c.image_backend}", f"prompt {c.prompt_template}"]
        facts += [f"weights {c.model_fingerprint}", f"numerics {c.numerics_version}"]
        facts += [] if limit is None else [f"LIMIT={limit}"]
        protocols[tuple(facts)].append(sealed)
    sections: list[tuple[str, list[SealedCell]]] = []
    for shared, members in sorted(protocols.items()):
        latest: dict[str, dict[tuple[Any, ...], str]] = {}  # task -> set of questions -> when it was last measured
        for sealed in members:
            seen = latest.setdefault(sealed.cell.task, {})
            started = str(sealed.provenance.get("started", ""))
            seen[_questions(sealed)] = max(started, seen.get(_questions(sealed), ""))
        rank = {
            (task, questions): position
            for task, seen in latest.items()
            for position, questions in enumerate(sorted(seen, key=lambda q: (seen[q], q), reverse=True))
        }
        for position in range(max(rank.values()) + 1):
            chosen = [s for s in members if rank[s.cell.task, _questions(s)] == position]
            again = f" ({position + 1}: other questions)" if position else ""
            sections.append((", ".join(shared) + again, chosen))
    return sections


def _questions(sealed: SealedCell) -> tuple[Any, ...]:
    cell = sealed.cell
    return (cell.n_samples, cell.data_fingerprint, cell.max_new_tokens, sealed.headline)


def _section(cells: Sequence[SealedCell], known: Mapping[str, SealedCell]) -> str:
    """One table per budget, under one header."""
    tasks = sorted({sealed.cell.task for sealed in cells})
    of_task = {sealed.cell.task: sealed for sealed in cells}
    head = ["method", *(_task_header(of_task[task]) for task in tasks)]
    head += ["kept (tokens)", "mean visual (tokens/layer)", "prefill dense (GFLOPs)", "of unpruned FLOPs (%)", "KV (MiB)"]
    head += ["Avg %"]
    blocks = []
    for budget in sorted({sealed.cell.budget for sealed in cells}, key=budget_order):
        lines = _lines([sealed for sealed in cells if sealed.cell.budget == budget], budget)
        columns = [[line.label for line in lines]]
        for task in tasks:
            found = [line.cells.get(task) for line in lines]
            columns.append(_marked([_score(s.score, s.maximum) if s else DASH for s in found]))
        for shown, value in (
            (_decimal, lambda s: s.costs.get("kept", NAN)),
            (_decimal, lambda s: s.costs.get("mean_visual", NAN)),
            (_significant, lambda s: s.costs.get("prefill_dense_flops", NAN) / 1e9),
            (_decimal, lambda s: _percent_of_flops(s, known)),
            (_significant, lambda s: s.costs.get("kv_bytes", NAN) / 2**20),
        ):
            columns.append([shown(_mean(line.cells.values(), value)) for line in lines])
        averages = [
            _mean(line.cells.values(), lambda s: _percent_of_baseline(s, known)) if len(line.cells) == len(tasks) else NAN
            for line in lines
        ]
        columns.append(_marked([_decimal(average) for average in averages]))
        body = [head, ["---"] + ["---:"] * (len(head) - 1), *(list(row) for row in zip(*columns, strict=True))]
        title = "unpruned" if budget == "none" else f"budget {budget}"
        blocks.append(f"### {title}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in body) + "\n")
    return "\n".join(blocks)


def _lines(cells: Sequence[SealedCell], budget: str) -> list[_Line]:
    """One line per method; positions, seeds and knobs split a method into several lines only where they must.

    Knobs may differ by task within one line (a FLOPs budget is solved per task), so they split only if a task has two.
    """
    methods: defaultdict[str, list[SealedCell]] = defaultdict(list)
    for sealed in cells:
        methods[sealed.cell.method].append(sealed)
    lines = []
    for method, members in sorted(methods.items()):
        many_seeds = len({s.cell.seed for s in members}) > 1
        groups: defaultdict[tuple[Any, ...], list[SealedCell]] = defaultdict(list)
        for sealed in members:
            groups[sealed.cell.positions, sealed.cell.seed].append(sealed)
        for (positions, seed), group in sorted(groups.items()):
            label = method + (f" positions={positions}" if positions != "method" else "")
            label += f" seed={seed}" if many_seeds else ""
            if len({s.cell.task for s in group}) == len(group):
                lines.append(_Line(label.replace("|", "/"), budget, {s.cell.task: s for s in group}))
                continue
            by_knobs: defaultdict[str, list[SealedCell]] = defaultdict(list)
            for sealed in group:
                by_knobs[canonical_json(sealed.cell.knobs)].append(sealed)
            names = sorted({name for s in group for name in s.cell.knobs})
            differing = [n for n in names if len({canonical_json(s.cell.knobs.get(n)) for s in group}) > 1]
            for _, same in sorted(by_knobs.items()):
                knobs = " ".join(f"{name}={canonical_json(same[0].cell.knobs.get(name))}" for name in differing)
                lines.append(_Line(f"{label} {knobs}".replace("|", "/"), budget, {s.cell.task: s for s in same}))
    return lines


def _task_header(sealed: SealedCell) -> str:
    unit = "%" if sealed.maximum == 1 else f"points of {sealed.maximum:g}"
    return f"{sealed.cell.task}: {sealed.headline} ({unit}, n={sealed.cell.n_samples})"


def _mean(cells: Iterable[SealedCell], value: Callable[[SealedCell], float]) -> float:
    """NaN as soon as one value is."""
    values = [value(sealed) for sealed in cells]
    return math.fsum(values) / len(values) if values and not any(map(math.isnan, values)) else NAN


def _marked(texts: Sequence[str]) -> list[str]:
    """Best bold, second underlined, by the printed number; nothing is marked among fewer than two."""
    numbers = [None if text == DASH else float(text.replace(",", "")) for text in texts]
    ranked = sorted({number for number in numbers if number is not None}, reverse=True)
    if sum(number is not None for number in numbers) < 2:
        return list(texts)
    marks = dict(zip(ranked, ("**{}**", "<u>{}</u>"), strict=False))
    return [text if number is None else marks.get(number, "{}").format(text) for text, number in zip(texts, numbers, strict=True)]


def _score_with_interval(row: Mapping[str, Any]) -> str:
    scale = 100.0 if row["max"] == 1 else 1.0
    interval = "" if math.isnan(row["low"]) else f" [{_decimal(scale * row['low'])}, {_decimal(scale * row['high'])}]"
    unit = " %" if row["max"] == 1 else f" of {row['max']:g}"
    return _score(row["score"], row["max"]) + interval + unit


def _score(score: float, maximum: float) -> str:
    """A mean of scores in %, a sum in points; one decimal."""
    return _decimal(100.0 * score if maximum == 1 else score)


def _decimal(value: float) -> str:
    return DASH if math.isnan(value) else f"{value:.1f}"


def _significant(value: float) -> str:
    """At least three digits, never an exponent: GFLOPs run from 0.1 (mini) to 10,000."""
    if math.isnan(value):
        return DASH
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0}f}"
