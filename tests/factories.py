"""Cells, records and results for every suite: one maker of each, whose defaults a test changes by name.

A cell: `make_cell`. A record: `make_record`. A result in memory: `sealed_cell`; with answers beside it: `answered`.
A result on disk, written by a store: `sealed`; on the mini data's questions and images: `drawn`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from harness.core import keeps, stats
from harness.core.cell import Cell, processing_digest
from harness.core.keeps import Stage
from harness.core.metric import Metric, metric_of
from harness.core.stats import Interval
from harness.proof.gate.snapshot import Row, SnapshotCell
from harness.store.journal import Record
from harness.store.sealed import SampleScore, SealedCell, headline_of, parquet
from harness.store.store import CellWriter, Store
from tasks import sources

# ------------------------------------------------------------------------------------------------- cells and records


PROCESSING = {"image": {"processor": "CLIPImageProcessor", "policy": "plain"}}
TASK_SETTINGS: dict[str, Any] = {"stop_strings": []}


def asked(**changes: object) -> dict[str, object]:
    """The words of a request as a cell holds them, with changes."""
    values = {
        "method": "fastv",
        "budget": "64",
        "model": "mini",
        "task": "pope",
        "limit": None,
        "knobs": {},
        "seed": 0,
        "positions": "method",
    }
    return values | dict.fromkeys(("data", "dtype", "prompt", "image", "stands_for")) | {"device": "cpu"} | changes


def make_cell(n: int = 4, **changes: Any) -> Cell:
    """A cell of `n` samples, with changes."""
    values: dict[str, Any] = {
        "model": "org/tiny",
        "model_fingerprint": "w1",
        "method": "fastv",
        "knobs": {"boundary": 2, "keep": 64},
        "budget": "64",
        "task": "pope",
        "data_fingerprint": "d1",
        "n_samples": n,
        "processing": processing_digest(PROCESSING),
        "task_settings": processing_digest(TASK_SETTINGS),
        "dtype": "float32",
        "device_type": "cpu",
        "max_new_tokens": 16,
    }
    return Cell(**(values | changes))


def keys(n: int) -> list[str]:
    """The keys of the first `n` samples of POPE."""
    return [f"pope/{i:06d}" for i in range(n)]


def make_record(i: int, **changes: Any) -> Record:
    """The answer to sample `i` of POPE; two samples share an image."""
    values = {
        "key": f"pope/{i:06d}",
        "image": f"image{i // 2}",
        "answer": f"yes {i}\n\u2028é",
        "n_new_tokens": 1 + i,
        "cost": {"kept": 64 + i, "mean_visual": 64.5, "kv_bytes": 1024 * i},
        "wall_s": 0.25,
        "kept": f"0:0:*;2:{i}:AAAB",
    }
    return Record(**(values | changes))


def make_scores(n: int) -> dict[str, SampleScore]:
    """Key -> score of the first `n` samples of POPE: wrong and right by turns."""
    return {key: SampleScore(float(i % 2), str(i), "random", f"q{i}?", "yes") for i, key in enumerate(keys(n))}


# ---------------------------------------------------------------------------------------------------- results on disk


def seal(writer: CellWriter, n: int = 4, **changes: Any) -> SealedCell:
    """Seal a cell of `n` answers that `writer` has, with changes to what `CellWriter.seal` is given."""
    values: dict[str, Any] = {
        "metrics": {"pope_accuracy": sum(s.score for s in make_scores(n).values()) / n, "pope_f1_score": float("nan")},
        "scores": make_scores(n),
        "provenance": {
            "request": asked(),
            "started": "2026-01-01",
            "processing": PROCESSING,
            "task_settings": TASK_SETTINGS,
        },
        "headline": "pope_accuracy",
        "method_info": {"query_aware": True, "budget_knobs": ["keep"]},
    }
    return writer.seal(**(values | changes))


def sealed(store: Store, cell: Cell, records: Sequence[Record] | int = 4, **changes: Any) -> SealedCell:
    """A cell that `store` wrote: `records`, or as many of `make_record`; changes go to `seal`."""
    rows = [make_record(i) for i in range(records)] if isinstance(records, int) else records
    with store.open(cell, [row.key for row in rows]) as writer:
        writer.append(*rows)
        return seal(writer, len(rows), **changes)


# -------------------------------------------------------------------------------------------------- results in memory

METRICS = {"mme": "mme_perception_score", "gqa": "exact_match", "textvqa_ocr": "exact_match"}
CELL_FIELDS = {f.name for f in dataclasses.fields(Cell)}


def sealed_cell(
    method: str, budget: str, task: str = "pope", score: float = 0.8, n: int = 100, **changes: Any
) -> SealedCell:
    """A result of `n` samples as a store would return it, with no answers; `changes` go to the cell, or to the result
    where the cell has no such field."""
    metric, maximum = METRICS.get(task, f"{task}_accuracy"), 2000.0 if task == "mme" else 1.0
    pruned = method != "none"
    cell = {
        "model": "mini",
        "method": method,
        "knobs": {"keep": 64} if pruned else {},
        "budget": budget,
        "task": task,
        "data_fingerprint": f"data-{task}-{n}",
    }
    result: dict[str, Any] = {
        "headline": metric,
        "metrics": {metric: score},
        "maximum": maximum,
        "interval": Interval(metric, score - 0.05 * maximum, score + 0.05 * maximum, 0.95, "bootstrap", 50),
        "costs": {
            "kept": 64 if pruned else 576,
            "mean_visual": 80.5 if pruned else 576,
            "prefill_dense_flops": 1.25e9 if pruned else 5e9,
            "vision_flops": 3e9,
            "kv_bytes": 3 * 2**20,
        },
        "counts": {"expected": n, "answered": n, "headline": n},
        "method_info": {"query_aware": pruned, "needs_vision_attention": False, "budget_knobs": ["keep"]},
        "provenance": {
            "request": asked(method=method, budget=budget if pruned else None, task=task),
            "device": "CPU",
            "started": "2026-01-01",
            "processing": PROCESSING,
            "task_settings": TASK_SETTINGS,
        },
        "samples_sha256": "0",
        "folder": Path("nowhere"),
    }
    cell |= {name: value for name, value in changes.items() if name in CELL_FIELDS}
    result |= {name: value for name, value in changes.items() if name not in CELL_FIELDS}
    return SealedCell(cell=make_cell(n, **cell), **result)


def answered(
    root: Path,
    method: str,
    budget: str,
    scores: Sequence[float | None],
    task: str = "pope",
    *,
    per_image: int = 2,
    answers: Sequence[str] | None = None,
    kinds: Sequence[str] = ("existence", "count"),
    metric: Metric | None = None,
    value: float | None = None,
    pictures: str = "",
    **changes: Any,
) -> SealedCell:
    """A result that got these scores on questions 0, 1, ... (`per_image` on an image), with its answers below `root`.

    `pictures` begins the name of every image.

    For MME, questions 2k and 2k+1 are the pair about image k, in the categories `kinds` by turns. `metric`: the
    headline, where it is not the task's own, and of one that is made of all answers its `value`; its scores may be NaN.
    `changes` as in `sealed_cell`.
    """
    n, mme = len(scores), task == "mme"
    metric = metric or metric_of(METRICS.get(task, f"{task}_accuracy"))
    headline = metric.name
    image = [f"{pictures}{task}-{i // (2 if mme else per_image)}" for i in range(n)]
    category = [kinds[i // 2 % len(kinds)] if mme else None for i in range(n)]
    question = [f"{i // 2}" if mme else f"{i}" for i in range(n)]
    found = headline_of(metric, scores, image, category, question, value)
    size = int(budget) if budget.isdigit() else 576
    own = {
        "knobs": {},
        "headline": headline,
        "stated": metric.stated(),
        "metrics": {headline: found.point},
        "maximum": found.maximum,
        "interval": found.interval,
        "costs": {"kept": size, "mean_visual": size, "prefill_dense_flops": size * 1e7 + 1e9, "kv_bytes": size * 1e4},
        "counts": {"expected": n, "answered": n, "headline": found.questions}
        | ({} if metric.tested else {"images": found.images}),
        "method_info": {"query_aware": method == "fastv", "needs_vision_attention": False, "budget_knobs": ["keep"]},
    }
    made = sealed_cell(method, budget, task, found.point, n, **(own | changes))
    right = [s is None or s >= 0.5 for s in scores]
    said = answers or [("yes" if i % 3 else "no") if right[i] else f"wrong {i}" for i in range(n)]
    rows = [
        (
            Record(f"{task}/{i:06d}", image[i], said[i], 1, {}, 0.1),
            SampleScore(scores[i], question[i], category[i], "q", "t"),
        )
        for i in range(n)
    ]
    data, folder = parquet(rows, {}), root / made.cell.identity()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "samples.parquet").write_bytes(data)
    return dataclasses.replace(made, samples_sha256=hashlib.sha256(data).hexdigest(), folder=folder)


# ------------------------------------------------------------------------------ results on the mini data, with images

DEPTH, N_VISUAL = 12, 576
HOSTILE = "<script>window.hacked=1</script></script><img src=x onerror='window.hacked=1'>&amp;\u2028\u2029 </textarea>"


@lru_cache
def rows(task: str) -> tuple[tuple[str, str, str, str, str, str], ...]:
    """Key, image key, question id, category, question, target of a task's rows in the mini data."""
    read = sources.read(sources.task_spec(task), sources.DataSource.parse("mini"))
    out = []
    for i, doc in enumerate(read.docs):
        encoded = read.encoded(i)
        assert encoded
        data = encoded["bytes"]
        assert isinstance(data, bytes)
        answer = doc["answers"][0] if "answers" in doc else doc["answer"]
        category = doc.get("category") or (doc.get("types") or {}).get("semantic") or ""
        question_id = str(doc.get("question_id", doc.get("id")))
        out.append(
            (f"{task}/{i:06d}", hashlib.sha256(data).hexdigest()[:16], question_id, category, doc["question"], answer)
        )
    return tuple(out)


def schedule(method: str, keep: int, rng: np.random.Generator) -> list[Stage]:
    """Kept tokens like the method's own: nothing dropped, dropped at once, at layer 2, or at a fusion layer with an
    exit."""
    full, some = np.ones(N_VISUAL, dtype=bool), np.zeros(N_VISUAL, dtype=bool)
    some[rng.permutation(N_VISUAL)[:keep]] = True
    if method == "none":
        return [Stage(0, full, 0)]
    if method in ("random", "uniform"):
        return [Stage(0, some, 0)]
    if method == "visipruner":
        return [Stage(0, full, 0), Stage(4, some, 0), Stage(8, np.zeros(N_VISUAL, dtype=bool), 0)]
    return [Stage(0, full, 0), Stage(2, some, 3 if method == "sparsevlm" else 0)]


def drawn(
    root: Path,
    method: str,
    budget: str,
    task: str,
    n: int,
    *,
    hostile: bool = False,
    recorded: bool = True,
    image: str = "",
    seed: int = 0,
    request: Mapping[str, Any] | None = None,
    knobs: Mapping[str, Any] | None = None,
    keys: Sequence[int] | None = None,
    padding: str = "plain",
    **changes: Any,
) -> SealedCell:
    """A result on disk on the first `n` rows of a task in the mini data: made-up answers, kept tokens that fit their
    costs; `changes` are the cell's, `request` is what was asked, `image` replaces every image key."""
    keep = int(budget) if budget.isdecimal() else N_VISUAL
    chosen = [rows(task)[i] for i in keys or range(n)]
    own = {
        "model": "mini",
        "method": method,
        "knobs": dict(knobs or ({"keep": keep} if method != "none" else {})),
        "budget": budget,
        "task": task,
        "data_fingerprint": f"{task}{n}",
        "seed": seed,
    }
    cell = make_cell(len(chosen), **(own | changes))
    rng, luck = np.random.default_rng(abs(hash((keep, seed))) % 1000), random.Random(f"{method}{budget}{task}{seed}")
    chance = 0.97 if method == "none" else 0.35 + 0.6 * (keep / N_VISUAL) ** 0.3
    records, scores = [], {}
    for number, (key, image_key, question_id, category, question, target) in enumerate(chosen):
        right = luck.random() < chance
        answer = target if right else {"yes": "no", "Yes": "No", "no": "yes", "No": "Yes"}.get(target, "something else")
        if hostile:
            answer, question, target = (HOSTILE + str(number) for _ in range(3))
            category = category if task == "mme" else HOSTILE
        found = schedule(method, keep, rng)
        counts = [int(s.keep.sum()) + s.added for s in found]
        ends = [*(s.layer for s in found[1:]), DEPTH]
        mean = sum(c * (end - s.layer) for c, s, end in zip(counts, found, ends, strict=True)) / DEPTH
        kept = counts[1] if method == "visipruner" else counts[-1]
        cost = {"kept": kept, "mean_visual": mean, "n_visual": N_VISUAL, "n_text": 25}
        cost |= {"prefill_dense_flops": 2.6e7 * (mean + 25), "kv_bytes": 24576.0 * (mean + 25)}
        if method == "visipruner":
            cost |= {"fusion_layer": 3, "exit_layer": 8, "forced": number % 2}
        records.append(Record(key, image or image_key, answer, 1, cost, 0.01, keeps.encode(found) if recorded else ""))
        scores[key] = SampleScore(float(right), question_id, category, question, target)
    headline = sources.task_spec(task).headline
    ordered = [scores[r.key] for r in records]
    categories, question_ids = [s.category for s in ordered], [s.question_id for s in ordered]
    point = stats.cluster(
        headline, [s.score for s in ordered], [r.image for r in records], categories, question_ids
    ).point
    words = {
        "method": method,
        "budget": None if budget == "none" else budget,
        "model": cell.model,
        "task": task,
        "limit": str(n),
    }
    origin = {
        "request": asked(**words | dict(request or {})),
        "processing": {"image": {"processor": "CLIPImageProcessor", "policy": padding}},
        "task_settings": TASK_SETTINGS,
        "started": "2026-01-01",
        "device": "cpu",
        "decoder_layers": DEPTH,
        "grids": [[24, 24, False]],
    }
    return sealed(
        Store(root),
        cell,
        records,
        metrics={headline: point},
        scores=scores,
        provenance=origin,
        headline=headline,
        method_info={"query_aware": False, "needs_vision_attention": False, "budget_knobs": ["keep"]},
    )


def gauntlet(
    root: Path,
    methods: Sequence[str] = ("visipruner", "fastv", "sparsevlm", "random", "uniform"),
    budgets: Sequence[int] = (192, 128, 64, 32),
    tasks: Sequence[str] = ("gqa", "mme", "pope", "textvqa"),
    n: int = 100,
    **changes: Any,
) -> Path:
    """Methods x budgets x tasks beside the unpruned model, each made by `drawn`."""
    for task in tasks:
        drawn(root, "none", "none", task, n, **changes)
        for method in methods:
            for budget in budgets:
                drawn(root, method, str(budget), task, n, **changes)
    return root


def analysis(root: Path, **changes: Any) -> None:
    """The analysis of the mini model, as `prunebench analyze` writes it; `changes` replace parts of the document."""
    folder = root / "analysis" / "mini"
    folder.mkdir(parents=True)
    (folder / "a.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>window.hacked=1</script></svg>")
    body = {
        "model": "mini",
        "n_samples": 4,
        "tasks": ["pope"],
        "command": "make analyze",
        "fingerprint": "w1",
        "depth": DEPTH,
        "stages": {
            "shallow_end": 2,
            "fusion": [3, 4],
            "not_needed_from": 8,
            "rule": {"fusion": "a rule"},
            "uncertainty": {"shallow_end": {"2": 0.9, "1": 0.1}, "fusion": {}, "not_needed_from": {}},
        },
        "layers": [{"layer": 0, "entropy": 0.5, "entropy_low": 0.25, "entropy_high": 0.75, "lens_top": [["a", 1]]}],
        "knockouts": [{"kind": "leave", "start": 0, "end": 12, "accuracy": 0.5, "low": 0.25, "high": 0.75}],
        "figures": [{"file": "a.svg", "title": HOSTILE, "alt": "an alternative"}],
    }
    (folder / "analysis.json").write_text(json.dumps(body | changes))


# --------------------------------------------------------------------------------------- cells of the gate's snapshot

#: a right answer as the gate's snapshot holds it
RIGHT = Row("yes", 1.0, "0a0b0c0d", (64.0, 149.25, 7168000.0, 7.5e9, 7.4e9))


def snapshot_cell(
    method: str = "fastv",
    task: str = "pope",
    *,
    fixed: bool = True,
    knobs: Mapping[str, Any] | None = None,
    seconds: float = 2.0,
    budget: str = "64",
    rows: Iterable[Row] = (),
    positions: str = "method",
    n: int = 24,
) -> SnapshotCell:
    """A cell of `n` right answers, the first ones replaced by `rows`."""
    mine = [*rows, *[RIGHT] * n][:n]
    return SnapshotCell(
        ("mini", task, method, budget, positions, 0),
        knobs or {"keep": 64, "boundary": 2},
        fixed,
        fixed,
        {f"{task}/{i:06d}": row for i, row in enumerate(mine)},
        seconds,
    )
