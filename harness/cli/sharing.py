"""The commands that share cells: `results publish`, `results collect`, and `results verify --foreign`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options as given_as
from harness.cli.damage import naming_damaged
from harness.cli.options import RESULTS, listed, wanted
from harness.cli.say import loading, put
from harness.core.errors import PrunebenchError
from harness.core.shown import one_line, printable
from harness.core.spelling import given

if TYPE_CHECKING:
    from harness.store.collect import Collected
    from harness.store.foreign import ForeignFolder
    from harness.store.sealed import SealedCell

FORMATS = ("text", "csv", "json")
Foreign = Annotated[
    list[Path] | None,
    typer.Argument(metavar="FOLDER", help="with --foreign: folders that others published", show_default=False),
]
IsForeign = Annotated[bool, typer.Option("--foreign", help="the folders are somebody else's: read them as data")]
DataHere = Annotated[
    str,
    typer.Option("--data", metavar="FOLDER", help="with --foreign: where this machine has the data of the tasks"),
]
Published = Annotated[
    list[Path], typer.Argument(metavar="FOLDER", help="folders that `results publish` wrote", show_default=False)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="only say what would be written")]


def verify_foreign(folders: Sequence[Path], data: str, form: str) -> None:
    """What in published folders holds, and what could not be checked. Exit code 1 unless every cell holds."""
    from harness.tables import lists

    lists.checked_format(form, FORMATS)
    if not folders:
        raise PrunebenchError("verify --foreign: expected folders that others published, found none: name some")
    loading()
    from harness.proof.foreign import Checker
    from harness.store.foreign import check_there, opened

    rows: list[dict[str, Any]] = []
    fine = True
    judge = Checker(_data(data), _trial)
    check_there(folders)
    for folder in folders:
        with opened(folder, judge) as found:
            fine = fine and found.fine
            if form == "text":
                put("\n".join(_lines(found)))
            rows += _rows(found)
    if form != "text":
        import pandas as pd  # type: ignore[import-untyped, unused-ignore]

        put(lists.exported(pd.DataFrame(rows), form))
    if not fine:
        raise typer.Exit(1)


def results_publish(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="a new folder, or one of an earlier publish")],
    who: Annotated[str, typer.Option("--who", metavar="NAME", help="the public name of who measured")] = "",
    results: given_as.ReadFrom = RESULTS,
    task: given_as.OnlyTask = "",
    model: given_as.OnlyModel = "",
    method: given_as.OnlyMethod = "",
    budget: given_as.OnlyBudget = "",
    limit: given_as.OnlyLimit = "",
    full: given_as.OnlyFull = False,
    private: Annotated[
        str, typer.Option("--private", metavar="WORDS", help="more names that must not be sent; with commas")
    ] = "",
    allow: Annotated[
        str, typer.Option("--allow", metavar="WORDS", help="words and paths that are no secret; with commas")
    ] = "",
    replace: Annotated[bool, typer.Option("--replace", help="replace an earlier publication in OUT")] = False,
    dry_run: DryRun = False,
) -> None:
    """Write cells into a folder that may be sent: no local path, no name of a user or machine.

    Scores, answers and costs stay as they are. A cell that cannot be sent is named and left out: exit code 1.
    """
    from harness.store.choose import everything
    from harness.store.private import here
    from harness.store.publish import publication, write

    if not who:
        raise PrunebenchError(
            f"publish: expected {given('who', 'NAME')}, the public name of who measured, found none: a row without one"
            " is not collected"
        )
    only = wanted(task, model, method, budget, limit, full)
    if out.resolve() == results.resolve():
        raise PrunebenchError(f"publish: expected another folder than {results}, which holds the cells: give another")
    with naming_damaged() as damaged:
        found = everything(results)
        damaged += [f"{one.path}: {one.wrong[0]}" for one in found if one.wrong]
        cells = only.of([one.cell for one in found if one.cell])
        made = publication(cells, who, here(listed(private), listed(allow)))
        damaged += made.left
        for identity, places in made.rewrote.items():
            put(f"rewrote  {identity}: {', '.join(places)}; it is sealed anew and says so")
        written = f"{made.cells} cells, measured by {who}"
        if dry_run:
            put(f"{written}, would be in {out}: {len(made.files)} files, {sum(map(len, made.files.values())):,} bytes")
            return
        fresh, same = write(made, out, replace=replace)
        put(f"{written}, are in {out}: {fresh} files written, {same} were there")


def results_collect(
    folders: Published,
    into: Annotated[
        Path, typer.Option("--into", metavar="RESULTS", help="a results folder, or a new one", show_default=False)
    ],
    data: Annotated[
        str, typer.Option("--data", metavar="FOLDER", help="where this machine has the data of the tasks")
    ] = "",
) -> None:
    """Check published folders, take the cells that hold, and note who measured or reproduced each.

    What does not hold is named and left: exit code 1. A collect that was stopped continues with the same command.
    """
    loading()
    from harness.proof.foreign import Checker
    from harness.store.collect import collect
    from harness.tables import leaderboard

    with naming_damaged() as damaged:
        for one in collect(folders, into, Checker(_data(data), _trial), lambda done: put(_summary(done))):
            damaged += one.left
        torn: list[str] = []
        csv, markdown = leaderboard.rewrite(into, torn)
        damaged += torn
        put(f"tables  {csv}  {markdown}")


def _data(folder: str) -> str | None:
    """A folder with data. Raises PrunebenchError where there is none."""
    if folder and not Path(folder).expanduser().is_dir():
        raise PrunebenchError(f"{given('data', folder)}: expected a folder with the data of tasks, found none there")
    return folder or None


def _trial(cell: SealedCell) -> None:
    """Make the tables of one cell, and throw them away."""
    from harness.tables import leaderboard

    with tempfile.TemporaryDirectory(prefix="prunebench-trial-") as folder:
        leaderboard.write([cell], Path(folder))


def _summary(done: Collected) -> str:
    who = f" of {done.who}" if done.who else ""
    parts = f"{done.copied} cells copied, {done.there} were there, {done.reproduced} reproduced, {len(done.left)} left"
    return one_line(f"{done.source}{who}: {parts}")


def _lines(found: ForeignFolder) -> list[str]:
    """A line for each fault and each cell, and below a cell what is wrong, or what could not be checked."""
    who = f"measured by {found.who}" if found.who else "nobody says who measured"
    lines = [one_line(f"{found.source}: {who}; {len(found.holding)} of {len(found.cells)} cells hold")]
    lines += [f"  fault         {one_line(why)}" for why in found.faults]
    for one in found.cells:
        cell = one.cell
        named = one.place
        if cell is not None:
            named = f"{cell.identity}  {cell.cell.task}  {cell.cell.method}  {cell.cell.budget}  {cell.cell.model}"
        lines.append(f"  {one.state:<12}  {one_line(named)}")
        lines += [f"    wrong: {one_line(why)}" for why in one.wrong]
        lines += [f"    not checked: {one_line(why)}" for why in one.unchecked]
    return lines


def _rows(found: ForeignFolder) -> list[dict[str, Any]]:
    """The same as records; a fault of the folder has a row without a cell."""

    def row(place: str, state: str, wrong: Sequence[str], unchecked: Sequence[str], cell: Any = None) -> dict[str, Any]:
        own = None if cell is None else cell.cell
        told = {name: "" if own is None else getattr(own, name) for name in ("task", "model", "method", "budget")}
        values = {
            "submission": str(found.source),
            "who": found.who,
            "place": place,
            "state": state,
            "identity": "" if cell is None else cell.identity,
            **told,
            "wrong": "; ".join(wrong),
            "not_checked": "; ".join(unchecked),
        }
        return {name: printable(value) for name, value in values.items()}

    faults = [row("", "fault", [why], ()) for why in found.faults]
    return faults + [row(one.place, one.state, one.wrong, one.unchecked, one.cell) for one in found.cells]
