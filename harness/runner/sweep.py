"""A sweep as flat YAML: models x methods (with knobs) x budgets x tasks x seeds, run in one pass over the samples.

    models: [mini]
    tasks: [gqa, mme, pope, textvqa]
    budgets: [192, 64]
    methods:
      - {method: none}
      - {method: random, seeds: [0, 1, 2]}
      - {method: fastv, knobs: {boundary: 3}, budgets: [64, native]}

Everything is expanded to cells and checked against the model before the first question is asked (`check`, `dry_run`);
sealed cells are reused, so the same command continues an interrupted sweep and a longer list of budgets runs the new
cells only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness.core import budget as budgets
from harness.core import flops, paths, yamlfile
from harness.core.errors import PrunebenchError, naming, unknown
from harness.core.shape import PromptShape
from harness.core.spelling import command, given
from harness.method import Method, method_class
from harness.runner import run as runner
from harness.runner.clock import Clock
from harness.runner.jobs import Job, prepare
from harness.runner.launch.launchers import check_alone
from harness.runner.launch.processes import executor
from harness.runner.launch.ray_cluster import Cluster
from harness.runner.launch.ray_executor import on_ray
from harness.runner.request import TASKS, Checked, Request, resolve_each, settings_of
from harness.runner.request import check as check_request
from harness.runner.run import Finished, Options, Say
from harness.runner.session import Session
from harness.runner.sizes import mean_prompt
from harness.store.store import Store

#: text tokens of a prompt where data are not at hand
TEXT = 74


class Entry(BaseModel):
    """A method with knobs, or its name alone. `budgets` default to the sweep's, `seeds` to seed 0 (they matter to
    methods that draw)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    knobs: dict[str, Any] = {}
    budgets: tuple[yamlfile.WholeOrText, ...] | None = None
    seeds: tuple[yamlfile.Whole, ...] = Field((0,), min_length=1)
    positions: Literal["method", "original", "compact"] = "method"


class Sweep(BaseModel):
    """One YAML file. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[str, ...] = Field(("mini",), min_length=1)
    tasks: tuple[str, ...] = Field(TASKS, min_length=1)
    limit: yamlfile.WholeOrText | None = None
    budgets: tuple[yamlfile.WholeOrText, ...] = ()
    methods: tuple[Entry, ...] = Field(min_length=1)
    dtype: str = "auto"
    data: str | None = None
    prompt: str | None = None
    image: str | None = None
    stands_for: str | None = None
    include: str | None = None
    judge: bool = False
    follow_up: bool = False

    def clamped(self) -> Sweep:
        """The same with numbers of tokens clamped to each prompt's own. Raises as `budgets.clamped`."""
        lists = [self.budgets, *(entry.budgets or () for entry in self.methods)]
        asked = [str(text) for some in lists for text in some]
        spelt = dict(zip(asked, budgets.clamped(asked), strict=True))

        def now(some: Sequence[str | int]) -> tuple[str, ...]:
            return tuple(spelt[str(text)] for text in some)

        methods = tuple(
            e if e.budgets is None else e.model_copy(update={"budgets": now(e.budgets)}) for e in self.methods
        )
        return self.model_copy(update={"budgets": now(self.budgets), "methods": methods})

    @field_validator("methods", mode="before")
    @classmethod
    def _names(cls, entries: Any) -> Any:
        """`fastv` is short for `{method: fastv}`."""
        return [{"method": e} if isinstance(e, str) else e for e in entries] if isinstance(entries, list) else entries


def load(file: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep; `overrides` are `key=value` for its top-level keys, `methods=a,b` picks among its entries.

    Raises PrunebenchError where the file is missing, is an ablation, does not fit, or an override names no key.
    """
    file = paths.resolved(file)
    if not file.is_file():
        raise PrunebenchError(f"expected a sweep as YAML at {file}, found no such file: try configs/mini.yaml")
    try:
        body = yamlfile.read(file, "a sweep")
        if "variants" in body and "methods" not in body:
            raise PrunebenchError(f"{file}: this is an ablation: use `{command('ablate', config=str(file))}`")
        seen: set[str] = set()
        for item in " ".join(overrides).split():
            key, eq, value = item.partition("=")
            if not eq or not value:
                raise PrunebenchError(f"{given('set', item)}: expected key=value, as in {given('set', 'limit=50')}")
            if key not in Sweep.model_fields:
                raise unknown("sweep key", key, Sweep.model_fields)
            if key in seen:
                raise PrunebenchError(
                    f"{given('set', item)}: {key} is given twice: give it once, several values with commas"
                )
            seen.add(key)
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
            hint = f"{given('set', 'methods=')} picks among the methods of the file; others are added to the file"
            raise PrunebenchError(f"{unknown('method of this sweep', name, known)}: {hint}")
    return [e for e in entries if named(e) in names]


def requests(sweep: Sweep, device: str = "auto", limit: str = "") -> list[Request]:
    """One request per model, method, budget and seed, in file order; `limit` in place of the file's.

    Where a seed changes nothing, several share their cells. Raises PrunebenchError where a method has no budget, and
    where there is no cell.
    """
    found: list[Request] = []
    for model in sweep.models:
        for entry in sweep.methods:
            cls = method_class(entry.method)
            budgets: Sequence[str | int] = entry.budgets if entry.budgets is not None else sweep.budgets
            without = entry.budgets is None and (
                not cls.budget_knobs or any(k in entry.knobs for k in cls.budget_knobs)
            )
            if not without and not budgets:
                raise PrunebenchError(
                    f"{entry.method} needs budgets: give the sweep or this entry some, as in budgets: [64]"
                )
            request = Request(
                methods=(entry.method,),
                model=model,
                budgets=() if without else tuple(map(str, budgets)),
                tasks=sweep.tasks,
                limit=limit or sweep.limit,
                seeds=tuple(map(str, entry.seeds)),
                device=device,
                dtype=sweep.dtype,
                data=sweep.data,
                include=sweep.include,
                judge=sweep.judge,
                follow_up=sweep.follow_up,
                prompt=sweep.prompt,
                image=sweep.image,
                stands_for=sweep.stands_for,
                positions=entry.positions,
                knobs=entry.knobs,
            )
            found += request.each()
    if not found:
        raise PrunebenchError("the sweep holds no cell: give methods and budgets")
    return found


def check(asked: Sequence[Request]) -> list[Checked]:
    """Every request, checked without weights or data. Raises PrunebenchError naming the first that does not fit."""
    found = []
    for one in asked:
        with naming(one.label):
            found.append(check_request(one))
    return found


def run(
    sweep: Sweep,
    options: Options,
    say: Say = print,
    *,
    workers: int = 1,
    cluster: Cluster | None = None,
    device: str = "auto",
    limit: str = "",
) -> Finished:
    """Run what is not sealed, one pass per model; `workers` > 1 spreads the images over processes, one per GPU or CPU
    share, and `cluster` over the nodes of a Ray cluster.

    Cells that another process is running are left to it and named. Raises PrunebenchError naming the method and budget
    that does not fit.
    """
    check_alone()  # before data and models are looked for
    began = time.perf_counter()
    session = Session()
    asked = requests(sweep, device, limit)
    found = [setting for mine in resolve_each([(one.label, one) for one in asked], session) for setting in mine]
    for model in sweep.models:
        located = next(s.located for s in found if s.asked.model == model)
        n = sum(one.model == model for one in asked)
        say(f"{model} ({located.spoken}): {n} settings x {len(sweep.tasks)} tasks")
    with on_ray(cluster, session, say) if cluster else nullcontext(executor(workers, session)) as answering:
        finished = runner.run(found, session, answering, options, say)
    ran, busy = len(finished.cells) - finished.reused, len(finished.busy)
    say(f"{ran} cells run, {finished.reused} sealed before" + (f", {busy} left to another runner" if busy else ""))
    say(spent(session.clock, time.perf_counter() - began))
    return finished


def spent(clock: Clock, total: float) -> str:
    """Where the seconds went, largest first; `other` is what no part was charged with."""
    parts = {**clock.seconds, "other": total - sum(clock.seconds.values())}
    listed = ", ".join(
        f"{name} {seconds:.1f}" for name, seconds in sorted(parts.items(), key=lambda p: -p[1]) if seconds >= 0.05
    )
    return f"{total:.1f} s in this process: {listed}"


# -------------------------------------------------------------------------------------------------------------- dry run


@dataclass(frozen=True)
class PlannedCell:
    """One request of a dry run: what it holds and what it would cost. `n` questions, `sealed` of `cells`; None where
    data are not here."""

    label: str
    cells: int
    n: int | None
    sealed: int | None
    flops: float
    upper: bool


def dry_run(sweep: Sweep, options: Options, *, device: str = "auto", limit: str = "") -> str:
    """The cells of a sweep, which of them are sealed, and an estimate of time, FLOPs and disk; nothing is run.

    Sizes are checked from the model's shape alone. Where a model's files or a task's data cannot be reached, the plan
    says so and leaves out what depends on them.
    """
    from tabulate import tabulate  # type: ignore[import-untyped, unused-ignore]

    asked = requests(sweep, device, limit)
    checked = check(asked)
    store, session = Store(options.results), Session()
    missing: dict[str, str] = {}  # a model, or a model and a task -> why
    for model in sweep.models:
        try:
            session.locate(
                model, device, sweep.dtype, prompt=sweep.prompt, image=sweep.image, stands_for=sweep.stands_for
            )
        except PrunebenchError as error:
            missing[model] = str(error)
    lines: list[PlannedCell] = []
    seen: set[str] = set()
    for one in checked:
        label, usual = one.request.label, one.usual
        each, upper = _flops(one.method, usual.with_text(TEXT))
        if one.request.model in missing:
            lines.append(PlannedCell(label, len(one.request.tasks), None, None, each, upper))
            continue
        jobs = {job.identity: job for job in _reached(one, session, missing) if job.identity not in seen}
        if all(_place(one, task) in missing for task in one.request.tasks):
            lines.append(PlannedCell(label, len(one.request.tasks), None, None, each, upper))
            continue
        seen |= set(jobs)
        left = [job for job in jobs.values() if options.fresh or store.sealed(job.cell) is None]
        total = sum(
            j.cell.n_samples * _flops(j.setting.method, mean_prompt(j.setting.located, j.task))[0] for j in left
        )
        lines.append(
            PlannedCell(label, len(jobs), sum(j.cell.n_samples for j in left), len(jobs) - len(left), total, upper)
        )
    rows = [
        [
            line.label,
            line.cells,
            "?" if line.sealed is None else line.sealed,
            "?" if line.n is None else line.n,
            ("<= " if line.upper else "")
            + f"{line.flops / 1e12:.3g}"
            + (f" a question of {TEXT} text tokens" if line.n is None else ""),
        ]
        for line in lines
    ]
    text = tabulate(
        rows, headers=["setting", "cells", "sealed", "questions to ask", "prefill (TFLOPs)"], disable_numparse=True
    )
    known = [line for line in lines if line.n is not None]
    ask, cells, work = (
        sum(line.n or 0 for line in known),
        sum(line.cells - (line.sealed or 0) for line in known),
        sum(x.flops for x in known),
    )
    tail = [f"{sum(line.cells for line in lines)} cells"]
    if known:
        tail.append(
            f"to run: {cells} cells, {ask:,} questions, at most {work / 1e12:,.1f} TFLOPs of dense prefill, unshared"
        )
        tail.append(
            f"disk: about {(cells * 12_000 + ask * 900) / 2**20:.1f} MiB while running, {cells * 14_000 / 2**20:.1f}"
            " MiB when sealed"
        )
        # as fast as what was measured here before, whatever its questions were
        here = [c for c in store.cells([]) if c.cell.model in sweep.models and c.costs["prefill_dense_flops"] > 0]
        speeds = [(c.costs["prefill_dense_flops"] * c.cell.n_samples, c.provenance["wall_s"]) for c in here]
        if speeds and work:
            rate = sum(f for f, _ in speeds) / max(sum(s for _, s in speeds), 1e-9)
            tail.append(
                f"time: about {work / rate / 60:.1f} min, at {rate / 1e9:,.0f} GFLOP/s of dense prefill, as"
                f" {len(speeds)} sealed cells ran"
            )
        elif work:
            tail.append(
                f"time: no sealed cell to go by yet; run a small {given('limit')} first, or see the progress bar"
            )
    tail += [f"{place}: cells and their state are unknown here: {why}" for place, why in missing.items()]
    return text + "\n\n" + "\n".join(tail)


def _place(checked: Checked, task: str) -> str:
    """Whose data they are, as a plan names them."""
    return f"{checked.request.model}, {task}"


def _reached(checked: Checked, session: Session, missing: dict[str, str]) -> list[Job]:
    """The jobs of the tasks whose data can be read. The others enter `missing`, with the reason, and are tried once."""
    found: list[Job] = []
    for task in checked.request.tasks:
        place = _place(checked, task)
        if place in missing:
            continue
        try:
            found += prepare(
                settings_of(replace(checked, request=replace(checked.request, tasks=(task,))), session), session
            )
        except PrunebenchError as error:
            missing[place] = str(error)
    return found


def _flops(method: Method, prompt: PromptShape) -> tuple[float, bool]:
    """Dense prefill FLOPs of one prompt without scoring, and whether that is an upper bound (adaptive methods: as if
    nothing were dropped)."""
    plan = method.plan(prompt)
    return (
        float(sum(flops.layer(prompt.decoder, n + prompt.n_text) for n in plan or [prompt.n_visual] * prompt.depth)),
        plan is None,
    )
