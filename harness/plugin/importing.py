"""`prunebench import`: runs of lmms-eval's own command line become sealed cells.

A cell is what it would be had `prunebench eval` measured it: the identity holds model, method, data and settings, and
none of them says who asked. The data are read here, and every prompt, image and stop string of the log must be the one
that these data make. Answers are scored here, and lmms-eval's metrics must come out again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core import grids
from harness.core.asked import Asked
from harness.core.budget import parse
from harness.core.cell import Cell
from harness.core.errors import PrunebenchError, naming
from harness.core.spelling import given
from harness.plugin import log, names
from harness.plugin.logged import LoggedTask, read_run
from harness.runner.jobs import cell_with, task_settings
from harness.runner.run import write_tables
from harness.runner.running import scored
from harness.runner.session import SUBSET_SEED
from harness.store.files import check_place, few, there
from harness.store.journal import JOURNAL, Record, read_journal
from harness.store.sealed import SampleScore, SealedCell
from harness.store.store import Store
from harness.tables import leaderboard
from tasks import lmms
from tasks.sources import EMBEDDED, MINI, source_of_data

if TYPE_CHECKING:
    from tasks.lmms import LoadedTask

ORIGIN = "imported from lmms-eval's command line"
"""In the provenance of an imported cell."""


@dataclass(frozen=True)
class Arrival:
    """A cell that is ready to be sealed."""

    logged: LoggedTask
    task: LoadedTask
    cell: Cell
    records: Mapping[str, Record]
    metrics: Mapping[str, float | None]
    scores: Mapping[str, SampleScore]
    provenance: Mapping[str, Any]


def import_run(path: Path, results: Path, data: str | None, say: Callable[[str], None]) -> list[SealedCell]:
    """Seal the cells of the run at `path` in the folder `results`, and write its tables.

    Everything is read and checked before the first cell is written. A cell that is sealed already stays as it is.
    Raises PrunebenchError for a run that is not whole, or that the data here did not make.
    """
    check_place(results, *leaderboard.FILES)
    arrivals = [_arrival(one, data) for one in read_run(path)]
    store = Store(results)
    for one in arrivals:
        _check_unfinished(store, one)
    cells = [_seal(store, one, say) for one in arrivals]
    store.tidy()
    write_tables(store, say)
    return cells


def _arrival(logged: LoggedTask, data: str | None) -> Arrival:
    name, run = names.own(logged.name), logged.run
    settings, request = run["settings"], run["request"]
    named = names.data_of(logged.name)
    if data is None and named == MINI and settings["stands_for"] in EMBEDDED and settings["stands_for"] != MINI:
        raise PrunebenchError(
            f"{logged.file}: {logged.name} reads the data of mini, and `mini` are {settings['stands_for']}'s own data"
            f" where that model is asked: say {given('data', 'FOLDER')} with the data of mini (tasks/mini/data)"
        )
    source = source_of_data(data or named, settings["stands_for"])
    task = lmms.load_task(name, source, None, SUBSET_SEED)
    with naming(str(logged.file)):
        _check_whole(logged, task)
        _check_budget(logged, task)
        records, shown = _records(logged, task)
        metrics, scores = scored(task, {key: record.answer for key, record in records.items()})
        _check_metrics(logged, metrics)
        asked_of = data or (named if named != settings["stands_for"] else None)
        provenance = {
            "request": Asked.from_dict({**request, "task": name, "data": asked_of}).to_dict(),
            **run["provenance"],
            "task_settings": task_settings(task),
            "grids": grids.recorded(shown, run["one_size"]),
            "origin": ORIGIN,
            "imported": {"task": logged.name, "date": logged.date},
            "wall_s": round(math.fsum(record.wall_s for record in records.values()), 3),
        }
        return Arrival(logged, task, cell_with(settings, task), records, metrics, scores, provenance)


def _check_whole(logged: LoggedTask, task: LoadedTask) -> None:
    """Raise PrunebenchError unless every question of the data was answered."""
    found, expected = set(logged.lines), {sample.index for sample in task.samples}
    if found != expected:
        cut = f" with {logged.limited}" if logged.limited else ""
        surplus = sorted(found - expected)
        what = f", among them document {surplus[0]}, which the data lack" if surplus else ""
        raise PrunebenchError(
            f"expected every one of the {len(expected)} questions of {task.name}, found {len(found)}{what}{cut}: run"
            f" the whole task, or name its data with {given('data', 'FOLDER')}"
        )


def _check_budget(logged: LoggedTask, task: LoadedTask) -> None:
    """Raise PrunebenchError for a budget that an evaluation solves on the prompts of its task, and that a run without
    a task in hand took for the model's usual prompt."""
    text = str(logged.run["settings"]["budget"])
    budget = parse(text)
    if budget.unit == "none" or (budget.unit == "kept" and isinstance(budget.tokens, int)):
        return
    several = any(len(sample.images) > 1 for sample in task.samples)
    own = not logged.run["one_size"] and not logged.run["shrinks_pictures"]  # a share is each prompt's own
    if (several and not own) or (budget.unit == "avg" and (several or not logged.run["one_size"])):
        raise PrunebenchError(
            f"{given('budget', text)} is solved for each task where prompts differ in visual tokens: expected a number"
            " of kept tokens; measure it with `prunebench eval`"
        )


def _records(logged: LoggedTask, task: LoadedTask) -> tuple[dict[str, Record], dict[str, grids.Images]]:
    """The answers by key, and the grids of each prompt's images by the key of these. Raises PrunebenchError for the
    first question that these data do not make."""
    until, most = list(task.until), task.max_new_tokens
    pixels: dict[str, str] = {}
    shown: dict[str, grids.Images] = {}
    records = {}
    for sample in task.samples:
        answer, entry = logged.lines[sample.index]
        for image in sample.images:
            if image.key not in pixels:
                picture = image.load()
                pixels[image.key] = log.pixels(picture.mode, picture.size, picture.tobytes())
        shown.setdefault(sample.image_key, [grids.spelt(words) for words in entry["grids"]])
        asked = log.asked(sample.content, [pixels[image.key] for image in sample.images])
        told = {"until": entry["until"], "max_new_tokens": entry["max_new_tokens"]}
        if told != {"until": until, "max_new_tokens": most}:
            raise PrunebenchError(
                f"{sample.key}: expected answers that end at {until} or after {most} tokens, found {told['until']} and"
                f" {told['max_new_tokens']}: run it without --gen_kwargs and max_new_tokens"
            )
        if entry["asked"] != asked:
            raise PrunebenchError(
                f"{sample.key}: expected the question and image of these data, found others in the log: name the data"
                f" that it was asked of with {given('data', 'FOLDER')}"
            )
        if entry["sample"] != sample.key and logged.run["uses_seed"]:
            raise PrunebenchError(
                f"{sample.key}: expected draws at random by this name, found {entry['sample']}: the task's code leaves"
                " out rows of its data or moves them; measure it with `prunebench eval`"
            )
        records[sample.key] = Record(
            key=sample.key,
            image=sample.image_key,
            answer=answer,
            n_new_tokens=entry["output_tokens"],
            cost=log.costs_of(entry),
            wall_s=entry["wall_s"],
            kept=entry["keeps"],
        )
    return records, shown


def _check_metrics(logged: LoggedTask, metrics: Mapping[str, float | None]) -> None:
    """Raise PrunebenchError unless lmms-eval's own numbers come out of the answers again; a run of --predict_only has
    none."""
    compared = 0
    for name, theirs in logged.metrics.items():
        alone = name.partition(",")[0]  # without its filter, where a task has one
        ours = next((metrics[n] for n in (f"lmms_eval/{name}", name, alone) if n in metrics), None)
        if ours is None:
            continue
        compared += 1
        if not math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-9):
            raise PrunebenchError(
                f"expected {name} {theirs}, as the results file says, found {ours} for the answers in the log: one of"
                " the files was edited, or the task scores at random"
            )
    if logged.metrics and not compared:
        raise PrunebenchError(
            f"expected one of the metrics {', '.join(sorted(metrics)[:4])} in the results file, found"
            f" {', '.join(logged.metrics)}: another task of this name was run"
        )


def _check_unfinished(store: Store, one: Arrival) -> None:
    """Raise PrunebenchError where the cell holds answers of a run that is not finished: they would be lost."""
    path = store.folder(one.cell) / JOURNAL
    if not there(path):
        return
    mine = read_journal(path, one.logged.run["environment"]).done
    strange = [key for key, record in read_journal(path).done.items() if _plain(mine.get(key)) != _plain(record)]
    strange += [key for key, record in mine.items() if _plain(record) != _plain(one.records.get(key))]
    if strange:
        raise PrunebenchError(
            f"{path}: expected no unfinished cell, found answers of another run ({few(strange)}): finish it with"
            " `prunebench eval`, or delete its folder"
        )


def _plain(record: Record | None) -> Any:
    """A record without its wall time."""
    return record and (record.key, record.image, record.answer, record.n_new_tokens, dict(record.cost), record.kept)


def _seal(store: Store, one: Arrival, say: Callable[[str], None]) -> SealedCell:
    found = store.sealed(one.cell)
    if found is not None:
        _say_same(found, one, say)
        return found
    run = one.logged.run
    keys = [sample.key for sample in one.task.samples]
    with store.open(one.cell, keys, run["environment"]) as writer:
        for note in writer.notes:
            say(f"note: {note}")
        writer.append(*one.records.values())
        sealed = writer.seal(
            one.metrics,
            one.scores,
            one.provenance,
            headline=one.task.metric,
            method_info=run["method_info"],
        )
    say(f"sealed  {sealed.folder}")
    return sealed


def _say_same(found: SealedCell, one: Arrival, say: Callable[[str], None]) -> None:
    columns = found.columns("key", "answer")
    before = dict(zip(columns["key"], columns["answer"], strict=True))
    other = [key for key, record in one.records.items() if before.get(key) != record.answer]
    same = "with the same answers" if not other else f"and {len(other)} of its answers are others ({few(other)})"
    say(f"note: {one.logged.name}: the cell is sealed already, {same}; it stays as it is: {found.folder}")
