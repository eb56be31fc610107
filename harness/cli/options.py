"""Arguments and options that several commands take, each declared once, and the names that a shell completes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.core.errors import PrunebenchError
from harness.core.paths import TOP
from harness.core.spelling import given

if TYPE_CHECKING:
    from harness.store.choose import Wanted

RESULTS = Path("results/local")
TASKS = "gqa,mme,pope,textvqa"
#: of prompts, tokens, layers and processes: far beyond what is sensible, and no memory is asked for beyond it
MOST = 1_000_000


# -------------------------------------------------------------------------------------------------- checks and readers


def at_least_one(context: typer.Context, parameter: typer.CallbackParam, value: int | None) -> int | None:
    """The value itself. Raises PrunebenchError below 1 and above `MOST`."""
    if value is not None and not 1 <= value <= MOST and not context.resilient_parsing:
        bound = "of at least 1" if value < 1 else f"of at most {MOST:,}"
        raise PrunebenchError(f"{given(str(parameter.name), value)}: expected a whole number {bound}")
    return value


def listed(text: str) -> tuple[str, ...]:
    """`"a, b"` -> `("a", "b")`."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def pairs(items: list[str]) -> dict[str, str]:
    """`["a=1 b=2", "c=3"]` -> a dict. Raises PrunebenchError for a word that is no pair, and for a name given twice."""
    out: dict[str, str] = {}
    for item in " ".join(items).split():
        key, eq, value = item.partition("=")
        if not eq or not key or not value:
            raise PrunebenchError(f"{given('set', item)}: expected knob=value, as in {given('set', 'boundary=3')}")
        if key in out:
            raise PrunebenchError(f"{given('set', item)}: {key} is given twice, as {out[key]} before: give {key} once")
        out[key] = value
    return out


def one_budget(text: str, command: str) -> None:
    """Raise PrunebenchError for a list of budgets."""
    if "," in text:
        raise PrunebenchError(
            f"{given('budget', text)}: {command} takes one budget: give one of them, and call {command} again for the"
            " others"
        )


def wanted(task: str, model: str, method: str, budget: str, limit: str, full: bool) -> Wanted:
    """The filters of a command. Raises PrunebenchError for a word that is no budget, or for a limit beside `full`."""
    from harness.core import budget as budgets
    from harness.store.choose import Wanted

    if limit and full:
        raise PrunebenchError(f"{given('limit', limit)}: expected a LIMIT or --full, found both: give one")
    asked = [word if word == "none" else str(budgets.parse(word)) for word in listed(budget)]
    return Wanted(listed(task), listed(model), listed(method), asked, listed(limit), full)


# ---------------------------------------------------------------------------------------------------------- completion


def _completed(incomplete: str, names: list[str]) -> list[str]:
    """The names that fit behind the last comma of an unfinished word."""
    head, comma, last = incomplete.rpartition(",")
    return [f"{head}{comma}{name}" for name in names if name.startswith(last)]


def complete_method(incomplete: str) -> list[str]:
    """Shipped methods, read from the text of methods/: their modules import torch."""
    texts = [file.read_text() for file in sorted((TOP / "methods").glob("*.py"))]
    return _completed(incomplete, [name for text in texts for name in re.findall(r'^    name = "(.+)"$', text, re.M)])


def complete_model(incomplete: str) -> list[str]:
    """The models that have a file in configs/models/."""
    from harness.models.config import known_models

    return _completed(incomplete, known_models())


def complete_task(incomplete: str) -> list[str]:
    """Every task: ours, and where none of them fits, lmms-eval's."""
    from tasks import named
    from tasks.sources import TASKS as KNOWN

    return _completed(incomplete, list(KNOWN)) or _completed(incomplete, sorted(named.known_names()))


# ----------------------------------------------------------------------------------------------- arguments and options

_METHODS = "a name from `prunebench methods`, or path/to/file.py:Class"
_MODELS = "a name from `prunebench models`, a hub id or a local folder"

MethodArgument = Annotated[
    str, typer.Argument(metavar="METHOD", help=_METHODS, autocompletion=complete_method, show_default=False)
]
Methods = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="NAMES",
        help=f"{_METHODS}; several with commas, as fastv,vtw",
        autocompletion=complete_method,
    ),
]
Budget = Annotated[
    str,
    typer.Option(
        metavar="BUDGETS",
        help="visual tokens kept, as 64 or 25%; 64avg (mean per layer), 0.35flops (share of FLOPs), native or"
        " calibrated; several with commas",
    ),
]
Model = Annotated[str, typer.Option(metavar="NAME", help=_MODELS, autocompletion=complete_model)]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=_MODELS, autocompletion=complete_model)]
ModelInstead = Annotated[
    str,
    typer.Option(
        "--model", metavar="NAME", help="a model in place of the file's, as mini", autocompletion=complete_model
    ),
]
Tasks = Annotated[
    str,
    typer.Option(
        "--tasks",
        "--task",
        metavar="NAMES",
        help="names from `prunebench tasks`, NAME:METRIC or path/to/task.yaml; with commas",
        autocompletion=complete_task,
    ),
]
TasksInstead = Annotated[
    str,
    typer.Option(
        "--tasks", metavar="NAMES", help="tasks in place of the file's, as pope,gqa", autocompletion=complete_task
    ),
]
Include = Annotated[
    str,
    typer.Option(
        "--include", "--include-path", metavar="FOLDER", help="a folder of tasks as YAML, which `--tasks` may then name"
    ),
]
Judge = Annotated[
    bool,
    typer.Option(
        "--judge", "--allow-judge", help="let a service over the network judge answers, where a task needs one"
    ),
]
FollowUp = Annotated[
    bool,
    typer.Option("--follow-up", help="ask later questions about an image on the cache that the first question pruned"),
]
Limit = Annotated[
    str,
    typer.Option(
        metavar="N",
        help="questions per task, as 100 (whole images), or all; default: the config's, else 108 for mini and all"
        " elsewhere",
    ),
]
Batch = Annotated[
    int,
    typer.Option(
        metavar="N",
        callback=at_least_one,
        help="most prompts in a batch (4 for adaptive methods on a CPU); no effect on answers in float32",
    ),
]
Seeds = Annotated[
    str, typer.Option("--seed", metavar="N", help="seed of the methods' randomness; several with commas, as 0,1,2")
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, or a GPU as cuda:1")]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="DTYPE",
        help="number format: auto (the checkpoint's own on CUDA, float32 on CPU), float32, bfloat16 or float16",
    ),
]
Data = Annotated[
    str,
    typer.Option(
        metavar="SOURCE",
        help="where data sets come from: mini (an embedded model's own), mini-qwen, hub or a folder; default: mini for"
        " embedded models, hub for others",
    ),
]
ImagesAt = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="SOURCE",
        help="where images come from: mini, mini-qwen, hub or a folder; default: as the cells were measured",
    ),
]
Prompt = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="prompt: vicuna_v1 or chat_template (the checkpoint's own); default: as the model says"
    ),
]
Padding = Annotated[
    str,
    typer.Option(
        "--image",
        metavar="RULE",
        help="how images are made: pad (to a square) or plain (by the checkpoint's processor alone); default: as the"
        " model says",
    ),
]
StandsFor = Annotated[
    str,
    typer.Option(
        "--as",
        metavar="NAME",
        help="a name from `prunebench models`, as llava-1.5-7b: its knobs and prompt hold for a folder or a hub id",
    ),
]
Positions = Annotated[
    str, typer.Option(metavar="RULE", help="positions of kept tokens: method (as the method does), original or compact")
]
Knobs = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KNOB=VALUE", help="a knob of the method, as boundary=3; repeatable"),
]
Workers = Annotated[
    int, typer.Option(metavar="N", callback=at_least_one, help="processes: one per GPU, or several that share the CPU")
]
WorkersOrAll = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        callback=at_least_one,
        help="processes: one per GPU, or several that share the CPU; default: 1, with ray as many as fit",
        show_default=False,
    ),
]
Executor = Annotated[
    str,
    typer.Option(metavar="NAME", help="processes (on this machine) or ray (on the nodes of a Ray cluster)"),
]
Address = Annotated[
    str,
    typer.Option(
        metavar="HOST:PORT",
        help="with ray: the cluster to join, as head:6379, or auto; default: a Ray is started on this machine",
    ),
]
GpusPerWorker = Annotated[
    float, typer.Option(metavar="SHARE", help="with ray: GPUs of a worker; 0.5 lets two workers share a GPU")
]
Share = Annotated[
    bool,
    typer.Option(
        "--share/--no-share", help="prefill each image once for all its questions; no effect on answers in float32"
    ),
]
Clamp = Annotated[
    bool,
    typer.Option("--clamp", help="where images differ in tokens: keep no more tokens than a prompt has"),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="measure cells again that are sealed already")]
Wide = Annotated[bool, typer.Option("--wide", help="print every column of the table, wider than 110 characters")]
TextTokens = Annotated[int, typer.Option(metavar="N", callback=at_least_one, help="text tokens of the prompt")]
OnlyTask = Annotated[str, typer.Option("--task", metavar="NAMES", help="only cells of these tasks, as pope,gqa")]
OnlyModel = Annotated[
    str, typer.Option("--model", metavar="NAMES", help="only cells of these models, as mini,mini-qwen")
]
OnlyMethod = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="NAMES",
        help="only cells of these methods, as fastv,vtw",
        autocompletion=complete_method,
    ),
]
OnlyBudget = Annotated[
    str,
    typer.Option(
        "--budget", metavar="BUDGETS", help="only cells at these budgets, as 64,25%; none is the unpruned model"
    ),
]
OnlyLimit = Annotated[
    str, typer.Option("--limit", metavar="N", help="only tries with this LIMIT, as 40; several with commas")
]
OnlyFull = Annotated[bool, typer.Option("--full", help="only full runs, no tries with LIMIT")]
WriteTo = Annotated[Path, typer.Option("--results", metavar="FOLDER", help="where cells and tables are written")]
ReadFrom = Annotated[Path, typer.Option("--results", metavar="FOLDER", help="the folder with the sealed cells")]
Config = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="a sweep as YAML, as configs/mini.yaml", show_default=False)
]
Baseline = Annotated[Path, typer.Option(metavar="FILE", help="the expected results, written by `prunebench baseline`")]
