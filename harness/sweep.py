"""A sweep as flat YAML: models x methods (with knobs) x budgets x tasks x seeds, run in one pass over the samples.

    models: [mini]
    tasks: [gqa, mme, pope, textvqa]
    budgets: [192, 64]
    methods:
      - {method: none}
      - {method: random, seeds: [0, 1, 2]}
      - {method: fastv, knobs: {boundary: 3}, budgets: [64, native]}

Everything is expanded to cells and checked against the model before the first question is asked (`check`, `dry_run`); sealed cells are
reused, so the same command continues an interrupted sweep and a longer list of budgets runs the new cells only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness import budget as budgets
from harness import flops, yamlfile
from harness.answering import Clock
from harness.errors import PrunebenchError, unknown
from harness.execute import execute, missed
from harness.method import Method, build, check_budget, method_class
from harness.models import Located, locate_model, model_config
from harness.run import Finished, Request, Session, calibration_exists, mean_text, parse_limit, prepare, write_tables
from harness.shape import SHAPES, PromptShape
from harness.store import SealedCell, Store

#: text tokens of a prompt where data are not at hand
TEXT = 74


class Entry(BaseModel):
    """A method with knobs, or its name alone. `budgets` default to the sweep's, `seeds` to seed 0 (they matter to methods that draw)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    knobs: dict[str, Any] = {}
    budgets: tuple[str | int, ...] | None = None
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    positions: Literal["method", "original", "compact"] = "method"


class Sweep(BaseModel):
    """One YAML file. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[str, ...] = Field(("mini",), min_length=1)
    tasks: tuple[str, ...] = Field(("gqa", "mme", "pope", "textvqa"), min_length=1)
    limit: str | int | None = None
    budgets: tuple[str | int, ...] = ()
    methods: tuple[Entry, ...] = Field(min_length=1)
    dtype: str = "auto"
    data: str | None = None

    @field_validator("methods", mode="before")
    @classmethod
    def _names(cls, entries: Any) -> Any:
        """`fastv` is short for `{method: fastv}`."""
        return [{"method": e} if isinstance(e, str) else e for e in entries] if isinstance(entries, list) else entries


class Asked(NamedTuple):
    """One request of a sweep and how a person calls it."""

    request: Request
    label: str


def load(file: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep; `overrides` are `key=value` for its top-level keys, `methods=a,b` picks among its entries.

    Raises PrunebenchError where the file is missing, does not fit, or an override names no key.
    """
    if not file.is_file():
        raise PrunebenchError(f"expected a sweep as YAML at {file}, found no such file: try configs/mini.yaml")
    try:
        body = yamlfile.read(file, "a sweep")
        for item in " ".join(overrides).split():
            key, eq, value = item.partition("=")
            if not eq or not value:
                raise PrunebenchError(f"--set {item!r}: expected key=value, as in --set limit=50 --set budgets=64,32")
            if key not in Sweep.model_fields:
                raise unknown("sweep key", key, Sweep.model_fields)
            if key == "methods":
                body[key] = _picked(body.get(key) or [], value.split(","))
            else:
                body[key] = value.split(",") if key in ("models", "tasks", "budgets") else value
        return Sweep(**body)
    except ValidationError as error:
        raise PrunebenchError(f"{file}: {yamlfile.said(error, {'methods': Entry, '': Sweep})}") from None


def _picked(entries: Sequence[Any], names: Sequence[str]) -> list[Any]:
    def named(entry: Any) -> str:
        return str(entry.get("method") if isinstance(entry, dict) else entry)

    known = list(dict.fromkeys(map(named, entries)))
    for name in names:
        if name not in known:
            hint = "--set methods= picks among the methods of the file; others are added to the file"
            raise PrunebenchError(f"{unknown('method of this sweep', name, known)}: {hint}")
    return [e for e in entries if named(e) in names]


def requests(sweep: Sweep, shared: Request) -> Iterator[Asked]:
    """One request per model, method, budget and seed, in file order. Where a seed changes nothing, several share their cells."""
    for model in sweep.models:
        for entry in sweep.methods:
            cls = method_class(entry.method)
            wanted: Sequence[str | int | None] = entry.budgets if entry.budgets is not None else sweep.budgets
            without = entry.budgets is None and (not cls.budget_knobs or any(k in entry.knobs for k in cls.budget_knobs))
            if not without and not wanted:
                raise PrunebenchError(f"{entry.method} needs budgets: give the sweep or this entry some, as in budgets: [64]")
            for budget in (None,) if without else wanted:
                for seed in entry.seeds:
                    text = None if budget is None else str(budget)
                    request = replace(
                        shared, model=model, method=entry.method, knobs=entry.knobs, budget=text, seed=seed, tasks=sweep.tasks,
                        positions=entry.positions, dtype=sweep.dtype if shared.dtype == "auto" else shared.dtype, data=shared.data or sweep.data,
                        limit=sweep.limit if shared.limit is None else shared.limit,
                    )  # fmt: skip
                    knobs = "".join(f" {k}={v}" for k, v in entry.knobs.items())
                    yield Asked(request, f"{entry.method}{'@' + text if text else ''}{knobs}{f' seed {seed}' if seed else ''} on {model}")


def check(asked: Sequence[Asked]) -> None:
    """Check every request against its model's sizes, without weights or data. Raises PrunebenchError naming the first that does not fit."""
    from tasks.sources import task_spec

    if not asked:
        raise PrunebenchError("the sweep holds no cell: give methods and budgets")
    if asked[0].request.batch < 1:
        raise PrunebenchError(f"BATCH={asked[0].request.batch}: expected at least 1 prompt a batch")
    parse_limit(asked[0].request.limit, None)
    for request, label in asked:
        try:
            for task in request.tasks:
                task_spec(task)
            _static(request)
        except PrunebenchError as error:
            raise PrunebenchError(f"{label}: {error}") from None


def _static(request: Request) -> tuple[Method, PromptShape]:
    """The method of a request and a prompt as its model is asked them, from sizes alone."""
    budget = budgets.parse(request.budget)
    check_budget(method_class(request.method), budget, request.knobs)
    calibration_exists(request)
    if request.model in SHAPES:  # known without its files
        own = model_config(request.model).knobs.get(request.method, {})
        usual = SHAPES[request.model]
        if budget.unit != "calibrated":
            return build(request.method, budget, {**own, **request.knobs}, usual), usual
    located = locate_model(request.model, "cpu", request.dtype)
    return located.method(request.method, budget, request.knobs, n_text=0), located.usual


def run(sweep: Sweep, shared: Request, say: Callable[[str], None] = print, workers: int = 1) -> Finished:
    """Run what is not sealed, one pass per model; `workers` > 1 spreads the images over processes, one per GPU or CPU share.

    Cells that another process is running are left to it and named. Raises PrunebenchError naming the method and budget that does not fit.
    """
    from harness import workers as processes

    began = time.perf_counter()
    asked = list(requests(sweep, shared))
    check(asked)
    store, session = Store(shared.results), Session()
    cells: list[SealedCell] = []
    reused = busy = 0
    found = {model: locate_model(model, shared.device, asked[0].request.dtype) for model in sweep.models}
    failed: list[str] = []
    for model, located in found.items():
        mine = [a.request for a in asked if a.request.model == model]
        say(f"{model} ({located.device} in {located.dtype}): {len(mine)} settings x {len(sweep.tasks)} tasks")
        jobs = [job for request in mine for job in prepare(request, session, located)]
        answers = processes.spread(sweep, shared, model, workers) if workers > 1 else None
        try:
            executed = execute(
                store, session.model(located) if answers is None else None, jobs, session.features, mine[0].pace(located),
                fresh=shared.fresh, clock=session.clock, answers=answers,
            )  # fmt: skip
        except PrunebenchError as stopped:
            failed.append(f"{model}: {stopped}" if len(found) > 1 else str(stopped))
            continue
        finally:
            session.release()
        cells += executed.cells.values()
        reused += executed.reused
        busy += len(executed.busy)
        for job, error in executed.busy:
            say(f"left to another runner: {job.label}: {error}")
        for note in missed(jobs, executed.cells):
            say(f"note: {note}")
    try:
        with session.clock("tables"):
            csv, markdown = write_tables(store, say)
    except PrunebenchError as unwritten:
        if failed:  # what came first is what is to be mended
            raise PrunebenchError("; ".join(failed)) from unwritten
        raise
    if failed:
        raise PrunebenchError("; ".join(failed))
    say(f"{len(cells) - reused} cells run, {reused} sealed before" + (f", {busy} left to another runner" if busy else ""))
    say(spent(session.clock, time.perf_counter() - began))
    return Finished(cells, reused, csv, markdown)


def spent(clock: Clock, total: float) -> str:
    """Where the seconds went, largest first; `other` is what no part was charged with."""
    parts = {**clock.seconds, "other": total - sum(clock.seconds.values())}
    listed = ", ".join(f"{name} {seconds:.1f}" for name, seconds in sorted(parts.items(), key=lambda p: -p[1]) if seconds >= 0.05)
    return f"{total:.1f} s in this process: {listed}"


# ------------------------------------------------------------------------------------------------------------------- dry run


@dataclass(frozen=True)
class Line:
    """One request of a dry run: what it holds and what it would cost. `n` questions, `sealed` of `cells`; None where data are not here."""

    label: str
    cells: int
    n: int | None
    sealed: int | None
    flops: float
    upper: bool


def dry_run(sweep: Sweep, shared: Request) -> str:
    """The cells of a sweep, which of them are sealed, and an estimate of time, FLOPs and disk; nothing is run.

    Sizes are checked from the model's shape alone. Where a model's files or a task's data cannot be reached, the plan says so and leaves out
    what depends on them.
    """
    from tabulate import tabulate  # type: ignore[import-untyped, unused-ignore]

    asked = list(requests(sweep, shared))
    check(asked)
    store, session = Store(shared.results), Session()
    lines: list[Line] = []
    found: dict[str, Located] = {}
    missing: dict[str, str] = {}
    for model in sweep.models:
        try:
            found[model] = locate_model(model, shared.device, asked[0].request.dtype)
        except PrunebenchError as error:
            missing[model] = str(error)
    seen: set[str] = set()
    for request, label in asked:
        jobs = prepare(request, session, found[request.model]) if request.model in found else []
        fresh = [j for j in jobs if j.cell.identity() not in seen]
        seen |= {j.cell.identity() for j in fresh}
        method, usual = _static(request)
        each, upper = _flops(method, usual.with_text(TEXT))
        if request.model in missing:
            tasks = len(request.tasks)
            lines.append(Line(label, tasks, None, None, each, upper))
            continue
        done = {j.cell.identity(): None if shared.fresh else store.sealed(j.cell) for j in fresh}
        open_jobs = [j for j in fresh if done[j.cell.identity()] is None]
        n = sum(j.cell.n_samples for j in open_jobs)
        front = found[request.model].front
        total = sum(j.cell.n_samples * _flops(j.arm.method, usual.with_text(mean_text(front, j.task)))[0] for j in open_jobs)
        lines.append(Line(label, len(fresh), n, len(fresh) - len(open_jobs), total, upper))
    rows = [
        [line.label, line.cells, "?" if line.sealed is None else line.sealed, "?" if line.n is None else line.n,
         ("<= " if line.upper else "") + f"{line.flops / 1e12:.3g}" + (f" a question of {TEXT} text tokens" if line.n is None else "")]
        for line in lines
    ]  # fmt: skip
    text = tabulate(rows, headers=["setting", "cells", "sealed", "questions to ask", "prefill (TFLOPs)"], disable_numparse=True)
    known = [line for line in lines if line.n is not None]
    ask, cells, work = sum(line.n or 0 for line in known), sum(line.cells - (line.sealed or 0) for line in known), sum(x.flops for x in known)
    tail = [f"{sum(line.cells for line in lines)} cells"]
    if known:
        tail.append(f"to run: {cells} cells, {ask:,} questions, at most {work / 1e12:,.1f} TFLOPs of dense prefill, unshared")
        tail.append(f"disk: about {(cells * 12_000 + ask * 900) / 2**20:.1f} MiB while running, {cells * 14_000 / 2**20:.1f} MiB when sealed")
        # as fast as what was measured here before, whatever its questions were
        here = [c for c in store.cells() if c.cell.model in sweep.models and c.costs["prefill_dense_flops"] > 0]
        speeds = [(c.costs["prefill_dense_flops"] * c.cell.n_samples, c.provenance["wall_s"]) for c in here]
        if speeds and work:
            rate = sum(f for f, _ in speeds) / max(sum(s for _, s in speeds), 1e-9)
            tail.append(f"time: about {work / rate / 60:.1f} min, at {rate / 1e9:,.0f} GFLOP/s of dense prefill, as {len(speeds)} sealed cells ran")
        elif work:
            tail.append("time: no sealed cell to go by yet; run a small LIMIT first, or see the progress bar")
    tail += [f"{model}: cells and their state are unknown here: {why}" for model, why in missing.items()]
    return text + "\n\n" + "\n".join(tail)


def _flops(method: Method, prompt: PromptShape) -> tuple[float, bool]:
    """Dense prefill FLOPs of one prompt without scoring, and whether that is an upper bound (adaptive methods: as if nothing were dropped)."""
    plan = method.plan(prompt)
    return float(sum(flops.layer(prompt.decoder, n + prompt.n_text) for n in plan or [prompt.n_visual] * prompt.depth)), plan is None
