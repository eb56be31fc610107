"""Sealed cells for the report's tests: the mini data's questions and images, made-up answers, and kept tokens that fit
their costs."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from helpers import asked

from harness.core import keeps, stats
from harness.core.cell import Cell
from harness.core.keeps import Stage
from harness.store.journal import Record
from harness.store.sealed import SampleScore, SealedCell
from harness.store.store import Store
from tasks import sources

DEPTH, N_VISUAL = 12, 576
HOSTILE = "<script>window.hacked=1</script></script><img src=x onerror='window.hacked=1'>&amp;\u2028\u2029 </textarea>"


@lru_cache
def rows(task: str) -> tuple[tuple[str, str, str, str, str, str], ...]:
    """Key, image key, question id, category, question, target of a task's rows in the mini data."""
    import hashlib

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


def seal(
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
    **changes: Any,
) -> SealedCell:
    """One sealed cell on the first `n` rows of a task; `changes` are the cell's, `request` what was asked, `image`
    replaces every image key."""
    keep = int(budget) if budget.isdecimal() else N_VISUAL
    chosen = [rows(task)[i] for i in keys or range(n)]
    fields: dict[str, Any] = {
        "model": "mini",
        "model_fingerprint": "w1",
        "method": method,
        "knobs": dict(knobs or ({"keep": keep} if method != "none" else {})),
        "budget": budget,
        "task": task,
        "data_fingerprint": f"{task}{n}",
        "n_samples": len(chosen),
        "prompt_template": "p1",
        "dtype": "float32",
        "image_backend": "CLIPImageProcessor+plain",
        "device_type": "cpu",
        "max_new_tokens": 16,
        "seed": seed,
    }
    cell = Cell(**(fields | changes))
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
    with Store(root).open(cell, [r.key for r in records]) as writer:
        writer.append(*records)
        words = {
            "method": method,
            "budget": None if budget == "none" else budget,
            "model": cell.model,
            "task": task,
            "limit": str(n),
        }
        origin = {
            "request": asked(**words | dict(request or {})),
            "started": "2026-01-01",
            "device": "cpu",
            "decoder_layers": DEPTH,
        }
        origin |= {"grids": [[24, 24, False]]}
        traits = {"query_aware": False, "needs_vision_attention": False, "budget_knobs": ["keep"]}
        return writer.seal({headline: point}, scores, origin, headline=headline, method_info=traits)


def gauntlet(
    root: Path,
    methods: Sequence[str] = ("visipruner", "fastv", "sparsevlm", "random", "uniform"),
    budgets: Sequence[int] = (192, 128, 64, 32),
    tasks: Sequence[str] = ("gqa", "mme", "pope", "textvqa"),
    n: int = 100,
    **changes: Any,
) -> Path:
    """Methods x budgets x tasks beside the unpruned model."""
    for task in tasks:
        seal(root, "none", "none", task, n, **changes)
        for method in methods:
            for budget in budgets:
                seal(root, method, str(budget), task, n, **changes)
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
