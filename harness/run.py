"""One evaluation, start to end: cells, answers into the journal, lmms-eval's score, sealed results, a table."""

from __future__ import annotations

import gc
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness import budget as budgets
from harness import leaderboard
from harness.answering import Clock, FeatureCache
from harness.cell import SHIPPED, Cell
from harness.engine import POSITION_POLICIES
from harness.errors import PrunebenchError, unknown
from harness.execute import Arm, Job, Pace, check_complete, execute, missed, prefix_budget
from harness.method import Method, check_budget, method_class, source_of
from harness.models import Front, LoadedModel, Located, calibrated_knobs, locate_model, model_config
from harness.provenance import device_name, git_state, versions
from harness.store import SealedCell, Store

if TYPE_CHECKING:
    from tasks.sources import DataSource

#: questions are drawn with this seed whatever SEED says, so that all seeds of a method answer the same questions
SUBSET_SEED = 0
PACKAGES = ("prunebench", "torch", "torchvision", "transformers", "lmms-eval", "datasets", "pillow")


@dataclass(frozen=True)
class Request:
    """What a user asks for; strings as typed. `limit` None = the model's default, "all" = every question."""

    method: str
    model: str = "mini"
    budget: str | None = None
    tasks: Sequence[str] = ("gqa", "mme", "pope", "textvqa")
    limit: str | int | None = None
    batch: int = 16
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    data: str | None = None
    positions: str = "method"
    knobs: Mapping[str, Any] = field(default_factory=dict)
    results: Path = Path("results/local")
    fresh: bool = False
    share: bool = True

    def pace(self, located: Located) -> Pace:
        """How to run it on the device of `located`."""
        return Pace(batch=self.batch, share=self.share, prefix_bytes=prefix_budget(located.device))


@dataclass(frozen=True)
class Finished:
    """`cells` of this request in table order, `reused` of which were sealed before; the files that were written."""

    cells: list[SealedCell]
    reused: int
    csv: Path
    markdown: Path


def parse_limit(limit: str | int | None, default: int | None) -> int | None:
    """LIMIT as a user writes it; None means every question."""
    if limit is None or limit == "":
        return default
    if str(limit).strip().lower() == "all":
        return None
    try:
        number = int(str(limit))
    except ValueError:
        number = 0
    if number < 1:
        raise PrunebenchError(f"LIMIT={limit!r}: expected a number of questions per task of at least 1, or all")
    return number


class Session:
    """What several requests share: loaded models, tasks and vision features. Answers do not depend on it."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str, str], LoadedModel] = {}
        self._tasks: dict[tuple[str, str, int | None], Any] = {}
        self.features = FeatureCache()
        self.clock = Clock()

    def model(self, located: Located) -> LoadedModel:
        key = (str(located.folder), str(located.device), located.dtype)
        if key not in self._models:
            with self.clock("load model"):
                self._models[key] = located.load()
        return self._models[key]

    def release(self) -> None:
        """Forget models and features, so that the next model finds the device as it was."""
        self._models.clear()
        self.features = FeatureCache()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def task(self, name: str, source: DataSource, limit: int | None) -> Any:
        from tasks import lmms  # heavy: lmms-eval

        key = (name, str(source), limit)
        if key not in self._tasks:
            with self.clock("load data"):
                self._tasks[key] = lmms.load_task(name, source, limit, SUBSET_SEED)
        return self._tasks[key]


def evaluate(request: Request, say: Callable[[str], None] = print, session: Session | None = None) -> Finished:
    """Run (or reuse) the cells of a request: per task the method and the unpruned model, and write the tables.

    Raises PrunebenchError for anything a user can mend; answers that were journalled by then are kept, and the same request continues.
    """
    # everything that can be refused is refused before weights or data are read
    budget = budgets.parse(request.budget)
    check_budget(method_class(request.method), budget, request.knobs)
    if request.positions not in POSITION_POLICIES:
        raise unknown("position policy", request.positions, POSITION_POLICIES)
    if request.batch < 1:
        raise PrunebenchError(f"BATCH={request.batch}: expected at least 1 prompt a batch")
    if not request.tasks:
        raise PrunebenchError("no task was named: give TASKS=gqa,mme,pope,textvqa or some of them")
    from tasks.sources import DataSource, task_spec

    for named in request.tasks:
        task_spec(named)
    calibration_exists(request)
    located = locate_model(request.model, request.device, request.dtype)
    limit = parse_limit(request.limit, located.config.default_limit)
    located.method(request.method, budget, request.knobs, n_text=0)
    source = DataSource.parse(request.data or ("mini" if located.config.name == "mini" else "hub"))

    where = f"{located.device} in {located.dtype}"
    plan = request.method if budget.unit == "none" else f"{request.method} at BUDGET={budget}"
    count = "every question" if limit is None else f"about {limit} questions (whole images)"
    say(
        f"{plan} on {located.config.name} ({where}), {source.name} data: {', '.join(request.tasks)}, {count} per task, beside the unpruned model. "
        + (
            f"The real thing, on a GPU with the Hugging Face hub: make eval METHOD={request.method} BUDGET={budget} MODEL=llava-1.5-7b"
            if located.config.name == "mini"
            else ""
        )
    )
    session = session or Session()
    jobs = prepare(request, session, located)
    store = Store(request.results)
    executed = execute(store, session.model(located), jobs, session.features, request.pace(located), fresh=request.fresh, clock=session.clock)
    check_complete(executed, jobs)
    for note in missed(jobs, executed.cells):
        say(f"note: {note}")
    csv, markdown = write_tables(store, say)
    return Finished([executed.cells[job.cell.identity()] for job in jobs], executed.reused, csv, markdown)


def write_tables(store: Store, say: Callable[[str], None]) -> tuple[Path, Path]:
    """The tables of all cells that are as they were sealed; `say` names those that are not. Raises as `leaderboard.write`."""
    damaged: list[str] = []
    written = leaderboard.write(store.cells(damaged), store.root)
    if damaged:
        say(f"note: {len(damaged)} cells, damaged or of another version, are left out of the tables; first: {damaged[0]}")
    return written


def calibration_exists(request: Request) -> None:
    """Raise PrunebenchError where BUDGET=calibrated has no knobs for the model: before its files are looked for."""
    if budgets.parse(request.budget).unit == "calibrated" and method_class(request.method).traits.calibrated:
        calibrated_knobs(request.method, model_config(request.model).name)


def prepare(request: Request, session: Session, located: Located) -> list[Job]:
    """The jobs of a request in table order: per task the unpruned model and the method. Loads data, and no weights.

    Raises PrunebenchError as `evaluate`; nothing has been run then.
    """
    from tasks.sources import DataSource

    budget = budgets.parse(request.budget)
    limit = parse_limit(request.limit, located.config.default_limit)
    source = DataSource.parse(request.data or ("mini" if located.config.name == "mini" else "hub"))
    tasks = [session.task(name, source, limit) for name in dict.fromkeys(request.tasks)]
    front = located.front
    # a share of the FLOPs is solved per task; what is out of reach without any text is out of reach with it
    method = located.method(request.method, budget, request.knobs, n_text=0)
    jobs: list[Job] = []
    for task in tasks:
        if budget.unit == "flops":
            method = located.method(request.method, budget, request.knobs, mean_text(front, task))
        pruned = _cell(request, front, method, str(budget), task)
        wanted = [(pruned, method)]
        if request.method != "none":
            wanted.insert(0, (pruned.baseline(), method_class("none")()))
        for cell, how in wanted:
            jobs.append(Job(cell, Arm(how, cell.seed, cell.positions), task, _provenance(request, located, cell)))
    return jobs


def mean_text(front: Front, task: Any) -> int:
    """Mean text length of a task's prompts in tokens, to the nearest whole one."""
    lengths = [len(front.prompt_ids(s.prompt)) - front.usual.n_visual for s in task.samples]
    return round(sum(lengths) / len(lengths))


def _cell(request: Request, front: Front, method: Method, budget: str, task: Any) -> Cell:
    return Cell(
        model=front.config.name,
        model_fingerprint=front.fingerprint,
        method=method.name,
        knobs=method.knobs(),
        method_source=source_of(type(method)),
        budget=budget,
        task=task.name,
        data_fingerprint=task.fingerprint,
        n_samples=len(task.samples),
        prompt_template=front.template_hash,
        dtype=front.dtype,
        image_backend=front.image_backend,
        device_type=front.device.type,
        # where nothing is removed all policies agree, and a method that draws nothing is the same at every seed: one cell
        positions="method" if method.name == "none" else request.positions,
        seed=request.seed if method.uses_seed else 0,
        max_new_tokens=task.max_new_tokens,
    )


def command_line(request: Request, cell: Cell) -> str:
    """The command that measures this cell again from nothing."""
    pruned = cell.method != "none" or request.method == "none"
    # by the name it was asked for, which may be a file and a class
    parts = ["make eval", f"METHOD={shlex.quote(request.method) if pruned else 'none'}"]
    if cell.budget != "none":
        parts.append(f"BUDGET={cell.budget}")
    parts += [f"MODEL={request.model}", f"TASKS={cell.task}"]
    if request.limit not in (None, ""):
        parts.append(f"LIMIT={request.limit}")
    if pruned and request.knobs:
        parts.append("SET='" + " ".join(f"{k}={v}" for k, v in request.knobs.items()) + "'")
    if cell.seed:
        parts.append(f"SEED={cell.seed}")
    if cell.positions != "method":
        parts.append(f"POSITIONS={cell.positions}")
    if request.data:
        parts.append(f"DATA={request.data}")
    if request.dtype != "auto":
        parts.append(f"DTYPE={request.dtype}")
    parts += [f"DEVICE={cell.device_type}", "FRESH=1"]
    # a file can change under its name
    return " ".join(parts) + (f"  # code {cell.method_source}" if cell.method_source != SHIPPED else "")


def _provenance(request: Request, located: Located, cell: Cell) -> dict[str, Any]:
    """Where a cell's numbers come from: how to measure it again, and with what it was measured."""
    front = located.front
    return {
        "command": command_line(request, cell),
        "limit": str(request.limit) if request.limit not in (None, "") else "default",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "batch_size": request.batch,
        "prefix_sharing": request.share,
        "device": device_name(front.device),
        "versions": dict(_versions()),
        "python": platform.python_version(),
        **_git(),
        "model_source": front.config.hub or front.config.name,
        "revision": front.revision,
        "decoder_layers": located.shape.depth,
    }


@cache
def _versions() -> Mapping[str, str]:
    return versions(PACKAGES)


@cache
def _git() -> Mapping[str, Any]:
    """Once per process: the code that runs is the code that was front."""
    return git_state()
