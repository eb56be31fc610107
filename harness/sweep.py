"""A sweep as flat YAML: methods x budgets x seeds on some tasks of one model, run like single evaluations that share what they can."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness import budget as budgets
from harness.errors import PrunebenchError
from harness.method import check_budget, method_class
from harness.models import locate_model
from harness.run import Finished, Request, Session, evaluate


class Entry(BaseModel):
    """A method with knobs. `budgets` and `seeds` default to the sweep's budgets and to seed 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    knobs: dict[str, Any] = {}
    budgets: tuple[str | int, ...] | None = None
    seeds: tuple[int, ...] = (0,)


class Sweep(BaseModel):
    """One YAML file. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "mini"
    tasks: tuple[str, ...] = ("gqa", "mme", "pope", "textvqa")
    limit: str | int | None = None
    budgets: tuple[str | int, ...] = ()
    methods: tuple[Entry, ...] = Field(min_length=1)


def load(file: Path) -> Sweep:
    """Read a sweep. Raises PrunebenchError where the file is missing or does not fit."""
    if not file.is_file():
        raise PrunebenchError(f"expected a sweep as YAML at {file}, found no such file: try configs/gauntlet.yaml")
    try:
        return Sweep(**yaml.safe_load(file.read_text()))
    except ValidationError as error:
        first = error.errors()[0]
        raise PrunebenchError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (yaml.YAMLError, TypeError) as error:
        raise PrunebenchError(f"{file}: not a sweep: {error}") from None


def requests(sweep: Sweep, shared: Request) -> Iterator[Request]:
    """One request per method, budget and seed, in file order."""
    for entry in sweep.methods:
        wanted = entry.budgets if entry.budgets is not None else sweep.budgets
        without = not method_class(entry.method).budget_knobs
        for budget in (None,) if without else wanted:
            for seed in entry.seeds:
                text = None if budget is None else str(budget)
                yield replace(shared, method=entry.method, knobs=entry.knobs, budget=text, seed=seed, tasks=sweep.tasks)


def run(sweep: Sweep, shared: Request, say: Callable[[str], None] = print) -> Finished:
    """Evaluate everything; sealed cells are reused. All of it is checked against the model before the first question is asked.

    Raises PrunebenchError naming the method and budget that does not fit.
    """
    shared = replace(shared, model=sweep.model, limit=sweep.limit if shared.limit is None else shared.limit)
    located = locate_model(shared.model, shared.device, shared.dtype)
    asked = list(requests(sweep, shared))
    for request in asked:
        budget = budgets.parse(request.budget)
        check_budget(method_class(request.method), budget, request.knobs)
        located.method(request.method, budget, request.knobs, n_text=0)
    session = Session()
    finished: Finished | None = None
    for i, request in enumerate(asked, 1):
        say(f"[{i} of {len(asked)}] {request.method} {request.budget or ''} {request.knobs or ''} seed {request.seed}")
        finished = evaluate(request, say=lambda _: None, session=session)
    if finished is None:
        raise PrunebenchError("the sweep holds no cell: give budgets")
    return finished
