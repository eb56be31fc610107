"""Tables from sealed cells: a pure function of their cell.json files, without torch, a model or the samples.

A number that cannot be had (no baseline, a task missing) is NaN in the frame, empty in the CSV and "-" in text; it is
never filled in. The baseline of a cell is the sealed `none` cell with identity `cell.baseline().identity()`: same data,
prompt, dtype and device, or none at all.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
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
Every number is read from sealed cells (one JSON file per model, method, budget, task and seed); leaderboard.csv has
a row for each, with its interval, knobs, command and further costs.

* **budget**: what was asked for. `64`: visual tokens after the method's selection; `64avg`: mean per layer; `0.35flops`:
  share of the unpruned dense prefill FLOPs; `native`: the method's published defaults; `none`: unpruned.
* **task columns**: the task's headline metric on n questions; a mean of scores in %, MME as the sum over its categories in
  points (200 each).
* **71.4 [66.0, 76.8]**: one seed, with its 95 % interval: a percentile bootstrap over whole images, because questions share
  images. It says what other images of the same kind could have given; it knows nothing of other seeds.
* **71.4 ±1.2 sd**: mean over seeds and their sample standard deviation on the same questions: what the draw alone changes.
  It is neither an interval nor an error of the mean. "(5 seeds)" says how many; "(1 to 5 seeds)", that tasks have unequally
  many.
* **kept (tokens)**: visual tokens after the last content-based selection, merged ones included.
* **mean visual (tokens/layer)**: visual tokens present per decoder layer, averaged over layers.
* **prefill dense (GFLOPs)**: column `prefill_dense_flops`, language-model prefill with ordinary kernels over the tokens
  present plus the method's scoring, 1 multiply-add = 2 FLOPs; vision tower, projector, LM head and decode are separate
  columns of the CSV.
* **of unpruned FLOPs (%)**: that, over the same column of the unpruned cell of the same task.
* **KV (MiB)**: key-value cache after the prefill, 2^20 bytes.
* Costs are means over samples, then over seeds, then over the tasks that the row has.
* **Avg %**: score over the unpruned score, mean over seeds, then over all tasks of the table; "-" unless every task and its
  unpruned cell is there.
* **below random**: an Avg % under that of `random` (mean over its seeds) at the same budget; level with it if both print the
  same. Said only where `random` has every task, once per setting of `random`. It compares the numbers, not their intervals.
* **bold** is best and <u>underlined</u> second within a block, by the number as printed, intervals aside; equal numbers share
  the mark, and `none` takes no part.
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
    """One row of the Markdown table: a method at a budget, with its cells per task, one for each seed."""

    method: str
    name: str
    """The method, and what tells its lines apart."""
    cells: Mapping[str, Sequence[SealedCell]]

    @property
    def label(self) -> str:
        """The name, and the number of seeds where it is not one."""
        numbers = sorted({len(seeds) for seeds in self.cells.values()})
        if numbers == [1]:
            return self.name
        return f"{self.name} ({' to '.join(str(n) for n in dict.fromkeys((numbers[0], numbers[-1])))} seeds)"

    def mean(self, value: Callable[[SealedCell], float]) -> float:
        """Over seeds, then over tasks."""
        return _mean([_mean([value(sealed) for sealed in seeds]) for seeds in self.cells.values()])


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
        ranked = [line.method != "none" for line in lines]
        columns = [[line.label for line in lines]]
        for task in tasks:
            found = [line.cells.get(task, ()) for line in lines]
            marked = _marked([_point(seeds) for seeds in found], ranked)
            columns.append([point + _spread(seeds) for point, seeds in zip(marked, found, strict=True)])
        for shown, value in (
            (_decimal, lambda s: s.costs.get("kept", NAN)),
            (_decimal, lambda s: s.costs.get("mean_visual", NAN)),
            (_significant, lambda s: s.costs.get("prefill_dense_flops", NAN) / 1e9),
            (_decimal, lambda s: _percent_of_flops(s, known)),
            (_significant, lambda s: s.costs.get("kv_bytes", NAN) / 2**20),
        ):
            columns.append([shown(line.mean(value)) for line in lines])
        averages = [
            line.mean(lambda s: _percent_of_baseline(s, known)) if len(line.cells) == len(tasks) else NAN for line in lines
        ]
        columns.append(_marked([_decimal(average) for average in averages], ranked))
        body = [head, ["---"] + ["---:"] * (len(head) - 1), *(list(row) for row in zip(*columns, strict=True))]
        unpruned = budget == "none"  # and methods without a budget, which have no random of equal size beside them
        parts = [f"### {'unpruned' if unpruned else f'budget {budget}'}", "\n".join("| " + " | ".join(row) + " |" for row in body)]
        parts += [] if unpruned else _against_random(lines, averages)
        blocks.append("\n\n".join(parts) + "\n")
    return "\n".join(blocks)


def _against_random(lines: Sequence[_Line], averages: Sequence[float]) -> list[str]:
    """One sentence per line of `random` with an Avg %: which methods do not beat it, by the Avg % as printed."""
    printed = [round(average, 1) for average in averages]
    others = [(line.name, n) for line, n in zip(lines, printed, strict=True) if line.method not in ("none", "random")]
    missing = [name for name, n in others if math.isnan(n)]
    said = []
    for line, bar in zip(lines, printed, strict=True):
        if line.method != "random" or math.isnan(bar):
            continue
        below, level = [name for name, n in others if n < bar], [name for name, n in others if n == bar]
        clauses = [f"below {line.name} at this budget: {', '.join(below)}"] if below else []
        clauses += [f"level with {line.name} at this budget: {', '.join(level)}"] if level else []
        if not clauses and len(missing) < len(others):
            clauses = [f"every method{' with an Avg %' if missing else ''} beats {line.name} here"]
        clauses += [f"not compared with {line.name}, a task is missing: {', '.join(missing)}"] if missing else []
        said += ["; ".join(clauses)] if clauses else []
    return said


def _lines(cells: Sequence[SealedCell], budget: str) -> list[_Line]:
    """One line per method with all its seeds; positions and knobs split a method into several lines only where they must."""
    groups: defaultdict[tuple[str, str], list[SealedCell]] = defaultdict(list)
    for sealed in cells:
        groups[sealed.cell.method, sealed.cell.positions].append(sealed)
    lines = []
    for (method, positions), group in sorted(groups.items()):
        for knobs, same in _by_knobs(group, budget):
            by_task: defaultdict[str, list[SealedCell]] = defaultdict(list)
            for sealed in same:
                by_task[sealed.cell.task].append(sealed)
            parts = [method, "" if positions == "method" else f"positions={positions}", knobs]
            lines.append(_Line(method, " ".join(filter(None, parts)).replace("|", "/"), by_task))
    return lines


def _by_knobs(cells: Sequence[SealedCell], budget: str) -> list[tuple[str, list[SealedCell]]]:
    """The cells split so that no task has two settings of the knobs in one part; with each, the knobs that tell it apart.

    Knobs may differ by task within a part, so nothing is split unless a task has two settings. Then all knobs that differ
    split, but for a FLOPs budget only those that give the fewest parts: others are solved anew at each task's text length.
    """
    names = sorted({name for sealed in cells for name in sealed.cell.knobs})
    differing = tuple(name for name in names if len({_settings(sealed, [name]) for sealed in cells}) > 1)
    sizes = range(len(differing) + 1) if budget.endswith("flops") else sorted({0, len(differing)})
    best: tuple[str, ...] = differing
    best_parts: Mapping[tuple[str, ...], list[SealedCell]] = {}
    for chosen in (option for size in sizes for option in combinations(differing, size)):
        parts: defaultdict[tuple[str, ...], list[SealedCell]] = defaultdict(list)
        for sealed in cells:
            parts[_settings(sealed, chosen)].append(sealed)
        settled = all(
            len({(s.cell.task, _settings(s, differing)) for s in part}) == len({s.cell.task for s in part})
            for part in parts.values()
        )
        # of equally few parts, the first with the most names: it says more
        if settled and (not best_parts or (len(parts), -len(chosen)) < (len(best_parts), -len(best))):
            best, best_parts = chosen, parts
    named = sorted(best_parts.items())
    return [(" ".join(f"{name}={value}" for name, value in zip(best, values, strict=True)), part) for values, part in named]


def _settings(sealed: SealedCell, names: Iterable[str]) -> tuple[str, ...]:
    """The values of these knobs; a cell from before a knob existed is not one that set it to null."""
    knobs = sealed.cell.knobs
    return tuple(canonical_json(knobs[name]) if name in knobs else "unset" for name in names)


def _task_header(sealed: SealedCell) -> str:
    unit = "%" if sealed.maximum == 1 else f"points of {sealed.maximum:g}"
    return f"{sealed.cell.task}: {sealed.headline} ({unit}, n={sealed.cell.n_samples})"


def _mean(values: Sequence[float]) -> float:
    """NaN for no values, and as soon as one of them is."""
    return math.fsum(values) / len(values) if values else NAN


def _marked(texts: Sequence[str], ranked: Sequence[bool]) -> list[str]:
    """Best bold, second underlined, by the printed number, among those ranked; nothing is marked among fewer than two."""
    numbers = [float(text.replace(",", "")) if rank and text != DASH else None for text, rank in zip(texts, ranked, strict=True)]
    order = sorted({number for number in numbers if number is not None}, reverse=True)
    if sum(number is not None for number in numbers) < 2:
        return list(texts)
    marks = dict(zip(order, ("**{}**", "<u>{}</u>"), strict=False))
    return [text if number is None else marks.get(number, "{}").format(text) for text, number in zip(texts, numbers, strict=True)]


def _point(seeds: Sequence[SealedCell]) -> str:
    """The score of a line at a task: the mean over seeds."""
    return _score(_mean([sealed.score for sealed in seeds]), seeds[0].maximum) if seeds else DASH


def _spread(seeds: Sequence[SealedCell]) -> str:
    """What follows the score: the sample standard deviation over seeds, or the interval of the only one."""
    if len(seeds) > 1:
        return f" ±{_score(statistics.stdev(sealed.score for sealed in seeds), seeds[0].maximum)} sd"
    interval = seeds[0].interval if seeds else None
    return _interval(interval.low, interval.high, seeds[0].maximum) if interval else ""


def _score_with_interval(row: Mapping[str, Any]) -> str:
    unit = " %" if row["max"] == 1 else f" of {row['max']:g}"
    return _score(row["score"], row["max"]) + _interval(row["low"], row["high"], row["max"]) + unit


def _interval(low: float, high: float, maximum: float) -> str:
    return "" if math.isnan(low) else f" [{_score(low, maximum)}, {_score(high, maximum)}]"


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
