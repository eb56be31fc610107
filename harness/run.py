"""One evaluation, start to end: cells, answers into the journal, lmms-eval's score, sealed results, a table."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from harness import budget as budgets
from harness import leaderboard
from harness.answering import Answerer, FeatureCache, Prompt
from harness.cell import Cell
from harness.engine import POSITION_POLICIES
from harness.errors import PrunebenchError, unknown
from harness.method import Method, check_budget, method_class
from harness.models import REPOSITORY, LoadedModel, Located, locate_model
from harness.store import Record, SampleScore, SealedCell, Store

if TYPE_CHECKING:
    from tasks.sources import DataSource

#: questions are drawn with this seed whatever SEED says, so that all seeds of a method answer the same questions
SUBSET_SEED = 0
#: answers that go to the journal with one fsync
FLUSH = 16
PACKAGES = ("prunebench", "torch", "torchvision", "transformers", "lmms-eval", "datasets", "pillow")


@dataclass(frozen=True)
class Request:
    """What a user asks for; strings as typed. `limit` None = the model's default, "all" = every question."""

    method: str
    model: str = "mini"
    budget: str | None = None
    tasks: Sequence[str] = ("gqa", "mme", "pope", "textvqa")
    limit: str | int | None = None
    batch: int = 8
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    data: str | None = None
    positions: str = "method"
    knobs: Mapping[str, Any] = field(default_factory=dict)
    results: Path = Path("results/local")
    fresh: bool = False


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

    def model(self, located: Located) -> LoadedModel:
        key = (str(located.folder), str(located.device), located.dtype)
        if key not in self._models:
            self._models[key] = located.load()
        return self._models[key]

    def task(self, name: str, source: DataSource, limit: int | None) -> Any:
        from tasks import lmms  # heavy: lmms-eval

        key = (name, str(source), limit)
        if key not in self._tasks:
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
    located = locate_model(request.model, request.device, request.dtype)
    limit = parse_limit(request.limit, located.config.default_limit)
    # a share of the FLOPs is solved per task below; what is out of reach without any text is out of reach with it
    method = located.method(request.method, budget, request.knobs, n_text=0)
    source = DataSource.parse(request.data or ("mini" if located.config.name == "mini" else "hub"))

    where = f"{located.device} in {located.dtype}"
    plan = request.method if budget.unit == "none" else f"{request.method} at BUDGET={budget}"
    count = "every question" if limit is None else f"up to {limit} questions"
    say(
        f"{plan} on {located.config.name} ({where}), {source.name} data: {', '.join(request.tasks)}, {count} per task, beside the unpruned model. "
        + (
            f"The real thing, on a GPU with the Hugging Face hub: make eval METHOD={request.method} BUDGET={budget} MODEL=llava-1.5-7b"
            if located.config.name == "mini"
            else ""
        )
    )
    store = Store(request.results)
    session = session or Session()
    tasks = [session.task(name, source, limit) for name in dict.fromkeys(request.tasks)]
    loaded = session.model(located)
    methods = {task.name: method for task in tasks}
    if budget.unit == "flops":
        methods = {task.name: located.method(request.method, budget, request.knobs, _mean_text(loaded, task)) for task in tasks}
    cells: list[SealedCell] = []
    reused = 0
    for task in tasks:
        method = methods[task.name]
        pruned = _cell(request, loaded, method, str(budget), task)
        wanted = [(pruned.baseline(), method_class("none")()), (pruned, method)] if request.method != "none" else [(pruned, method)]
        for cell, how in wanted:
            if request.fresh:
                store.discard(cell)
            sealed = store.sealed(cell)
            if sealed is None:
                command = command_line(request, cell)
                sealed = _run_cell(store, cell, how, loaded, task, session.features, request, command)
            else:
                reused += 1
            cells.append(sealed)
    csv, markdown = leaderboard.write(store.cells(), request.results)
    return Finished(cells, reused, csv, markdown)


def _mean_text(loaded: LoadedModel, task: Any) -> int:
    """Mean text length of a task's prompts in tokens, to the nearest whole one."""
    lengths = [len(loaded.prompt_ids(s.prompt)) - loaded.adapter.shape.n_visual for s in task.samples]
    return round(sum(lengths) / len(lengths))


def _cell(request: Request, loaded: LoadedModel, method: Method, budget: str, task: Any) -> Cell:
    return Cell(
        model=loaded.config.name,
        model_fingerprint=loaded.fingerprint,
        method=method.name,
        knobs=method.knobs(),
        budget=budget,
        task=task.name,
        data_fingerprint=task.fingerprint,
        n_samples=len(task.samples),
        prompt_template=loaded.template_hash,
        dtype=loaded.dtype,
        image_backend=loaded.image_backend,
        device_type=loaded.device.type,
        # where nothing is removed all policies agree, and a method that draws nothing is the same at every seed: one cell
        positions="method" if method.name == "none" else request.positions,
        seed=request.seed if method.uses_seed else 0,
        max_new_tokens=task.max_new_tokens,
    )


def command_line(request: Request, cell: Cell) -> str:
    """The command that measures this cell again from nothing."""
    parts = ["make eval", f"METHOD={cell.method}"]
    if cell.budget != "none":
        parts.append(f"BUDGET={cell.budget}")
    parts += [f"MODEL={request.model}", f"TASKS={cell.task}"]
    if request.limit not in (None, ""):
        parts.append(f"LIMIT={request.limit}")
    if cell.method == request.method and request.knobs:
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
    return " ".join(parts)


def _run_cell(
    store: Store, cell: Cell, method: Method, loaded: LoadedModel, task: Any, features: FeatureCache, request: Request, command: str
) -> SealedCell:
    from tasks import lmms

    samples = {s.key: s for s in task.samples}
    started, began = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    with store.open(cell, list(samples)) as writer:
        left = [
            Prompt(s.key, s.prompt, s.load_image, s.image_key, task.max_new_tokens, tuple(task.until))
            for s in task.samples
            if s.key not in writer.done
        ]
        label = f"{cell.task} {cell.method}" + ("" if cell.budget == "none" else f"@{cell.budget}")
        answerer = Answerer(loaded, method, batch_size=request.batch, seed=cell.seed, positions=cell.positions, features=features)
        pending: list[Record] = []
        with tqdm(total=len(samples), initial=len(writer.done), desc=label, unit="q", file=sys.stderr, dynamic_ncols=True) as bar:
            try:
                for answer in answerer.answer(left):
                    sample = samples[answer.key]
                    pending.append(Record(answer.key, sample.image_key, answer.text, answer.n_new_tokens, answer.cost, answer.wall_s))
                    bar.update()
                    if len(pending) >= FLUSH:
                        writer.append(*pending)
                        pending = []
            finally:
                if pending:
                    writer.append(*pending)
        answers = {key: record.answer for key, record in writer.done.items()}
        scored = lmms.score(task, answers)
        scores = {
            key: SampleScore(scored.scores[key], s.question_id, s.category, s.prompt, s.targets[0] if s.targets else "")
            for key, s in samples.items()
        }
        provenance = {
            "command": command,
            "limit": str(request.limit) if request.limit not in (None, "") else "default",
            "started": started,
            "wall_s": round(time.perf_counter() - began, 3),
            "batch_size": request.batch,
            "device": device_name(loaded.device),
            "versions": versions(),
            "python": platform.python_version(),
            **git_state(),
            "model_source": loaded.config.hub or loaded.config.name,
            "revision": loaded.revision,
        }
        traits = method.traits
        info = {"query_aware": traits.query_aware, "needs_vision_attention": traits.needs_vision_attention, "adaptive": traits.adaptive}
        metrics = {**scored.metrics, **{f"category/{name}": value for name, value in scored.categories.items()}}
        return writer.seal(metrics, scores, provenance, headline=task.headline, method_info=info)


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_state() -> dict[str, Any]:
    """The commit this checkout is at, and whether tracked files outside results/ were changed; None outside a checkout."""

    def git(*args: str) -> str | None:
        try:
            return subprocess.run(["git", *args], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    commit, status = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results")
    return {"git": commit, "dirty": None if status is None else bool(status)}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    except OSError:
        model = platform.processor() or platform.machine()
    return f"{model}, {torch.get_num_threads()} threads"
