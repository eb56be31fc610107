"""The command `tasks`: tasks with a specification here, verified ones, and all others of the installed lmms-eval."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options as given_as
from harness.cli.say import put
from harness.core.errors import PrunebenchError

if TYPE_CHECKING:
    from tasks.named import NamedTask

_USUAL = given_as.TASKS.split(",")
#: tasks of a list that are looked at for a judge, which takes some milliseconds each
_LOOKED_AT = 60

Word = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="a task, a group or a YAML file to describe; or a part of names, as in mmbench or '*_lite'",
        autocompletion=given_as.complete_task,
    ),
]


def tasks(name: Word = "") -> None:
    """List the tasks with data sets, metrics and numbers of questions, or describe one."""
    if not name:
        _overview()
    else:
        from tasks import named
        from tasks.sources import TASKS

        known = named.index(named.upstream_folder())
        own = name.partition(":")[0]
        if own in TASKS or own in known.tasks or own in known.classes or named.looks_like_file(own):
            _describe(name)
        elif own in known.groups or own in known.tags:
            members = named.expand([own])
            _list(f"group {own}", members)
            if more := len(set(_named_like(own)) - set(members)):
                put(f"{more} more tasks have {own} in their name: `prunebench tasks '*{own}*'`")
        else:
            _matching(name)


def _table(rows: list[list[Any]], head: list[str], align: tuple[str, ...] | None = None) -> None:
    from tabulate import tabulate  # type: ignore[import-untyped, unused-ignore]

    put(tabulate(rows, headers=head, disable_numparse=True, colalign=align or ("left",) * len(head)))


def _overview() -> None:
    from tasks import named, refusals
    from tasks.sources import TASKS, mini_rows
    from tasks.verified import NOTE, VERIFIED

    head = ["name", "metric", "questions\nof mini", "data set on the hub", "by default"]
    rows = [
        [name, spec.headline, mini_rows(spec), f"{spec.hub_id} ({spec.table.split})", "yes" if name in _USUAL else "no"]
        for name, spec in TASKS.items()
    ]
    _table(rows, head, ("left", "left", "right", "left", "left"))
    put(
        "\nThe embedded models (mini, mini-qwen) read data of their own. Every other model reads data sets on the hub,"
        " or a folder of copies: --data FOLDER."
    )
    put(f"\nverified on fixtures ({NOTE}):\n")
    found = [named.find(name) for name in VERIFIED]
    _table([[task.name, VERIFIED[task.name].headline, _data(task)] for task in found], ["name", "metric", "data set"])
    known = named.index(named.upstream_folder())
    others = [named.find(name) for name in known.tasks if name not in VERIFIED and name not in TASKS]
    fixed = sum(refusals.fixed_reason(task) is not None for task in others)
    put(
        f"\n{len(others) - fixed:,} more tasks of the installed lmms-eval run by name, unless a service judges their"
        f" answers. {fixed:,} do not: they take likelihoods, videos, several turns or no image."
        f" {len(known.groups) + len(known.tags)} groups stand for their members."
        "\n`prunebench tasks WORD` lists the tasks with WORD in their name; `prunebench tasks NAME` describes one."
    )


def _data(task: NamedTask) -> str:
    name = task.config.get("dataset_name")
    return f"{task.config.get('dataset_path')} ({', '.join([*([str(name)] if name else []), str(task.split)])})"


def _matching(word: str) -> None:
    from tasks import named
    from tasks.sources import TASKS

    found = _named_like(word)
    if not found:
        raise named.unknown_task(word, TASKS)
    _list(f"tasks with {word} in their name", found)


def _named_like(word: str) -> list[str]:
    """The tasks with a word in their name, or of a pattern."""
    from tasks import named
    from tasks.sources import TASKS

    known = sorted({*TASKS, *named.index(named.upstream_folder()).tasks})
    return fnmatch.filter(known, word if any(c in word for c in "*?[") else f"*{word}*")


def _list(what: str, names: list[str] | tuple[str, ...]) -> None:
    from tasks import named, refusals
    from tasks.sources import TASKS

    rows = []
    for name in names:
        if name in TASKS:
            rows.append([name, TASKS[name].headline, TASKS[name].hub_id, "yes"])
            continue
        try:
            task = named.find(name)
        except PrunebenchError as error:
            rows.append([name, "", "", _short(str(error).partition(": ")[2])])
            continue
        why = refusals.reason(task, judge=len(names) > _LOOKED_AT)
        rows.append(
            [name, _headline(task), str(task.config.get("dataset_path")), "yes" if why is None else _short(why)]
        )
    _table(rows, ["name", "metric", "data set", "runs"])
    judged = "" if len(names) <= _LOOKED_AT else "; judges are looked for in lists of fewer"
    put(f"\n{what}: {len(names)}{judged}")


def _short(text: str) -> str:
    return "no: " + text.partition(" (")[0].partition(", ")[0]


def _headline(task: NamedTask) -> str:
    return task.headline or task.usual_headline or "none"


def _describe(word: str) -> None:
    """Everything that is known of a task without its data."""
    from tasks import named, refusals
    from tasks.sources import TASKS
    from tasks.verified import NOTE, VERIFIED

    task = named.find(word) if word not in TASKS else named.find_shipped(word)
    config, generation = task.config, task.generation
    why = refusals.fixed_reason(task)
    judge = None if why else refusals.judge_reason(task)
    verified = VERIFIED.get(task.task) if task.shipped else None
    length = generation.get("max_new_tokens")
    stops = ", ".join(map(repr, named.stop_strings(generation))) or "none"
    lines = {
        "task": task.name,
        "file": named.short(task.file),
        "data set": _data(task),
        "metrics": ", ".join(_metric(entry) for entry in config.get("metric_list") or []),
        "headline": _headline(task),
        "filters": ", ".join(task.filters) if task.filters != ("none",) else "",
        "length": f"{length} tokens" if length else f"{named.MAX_NEW_TOKENS} tokens, as its file names none",
        "stops at": stops,
        "sampling": f"greedy, though its file asks for {s}" if (s := named.sampling(generation)) else "",
        "runs": "no: " + why if why else "yes",
    }
    if judge:
        lines["runs"] = f"with --allow-judge: {judge}"
    if word in TASKS:
        lines |= {"headline": TASKS[word].headline, "runs": "yes, with rows, subsets and metrics specified here"}
        lines["columns"] = ", ".join(TASKS[word].table.required)
        lines["length"] = f"{length or TASKS[word].max_new_tokens} tokens"
    elif verified:
        lines["headline"] += _how(verified, task)
        lines["verified"] = f"on a fixture: {NOTE}"
    width = max(map(len, lines))
    put("\n".join(f"{label:<{width}}  {text}" for label, text in lines.items() if text))


def _metric(entry: Mapping[str, Any]) -> str:
    return f"{entry.get('metric')}" + ("" if entry.get("higher_is_better", True) else " (lower is better)")


def _how(verified: Any, task: NamedTask) -> str:
    own = (task.headline or verified.headline).partition(",")[0]
    found = next((a for a in verified.metrics if a.metric == own), None)
    if found is None:
        return ""
    kind = "a mean of its questions' scores" if found.kind == "mean" else "a number of all answers together"
    papers = f"; papers print {verified.papers}" if verified.papers and verified.papers != own else ""
    return f", {kind} ({found.at}{papers})"
