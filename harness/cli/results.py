"""The commands `prunebench results ...`: look at the cells of a results folder, check, merge and remove them.

Those that share cells with other people are in harness/cli/sharing.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options as given_as
from harness.cli import sharing
from harness.cli.damage import naming_damaged
from harness.cli.options import RESULTS, listed, wanted
from harness.cli.say import loading, put, tell
from harness.core.errors import PrunebenchError
from harness.core.shown import one_line
from harness.core.spelling import given

if TYPE_CHECKING:
    from harness.store.choose import Wanted
    from harness.store.sealed import SealedCell
    from harness.store.verify import Found

FORMATS = ("text", "csv", "json")
CellId = Annotated[str, typer.Argument(metavar="ID", help="the first digits of a cell's identity", show_default=False)]
SecondId = Annotated[
    str, typer.Argument(metavar="ID", help="the first digits of the other cell's identity", show_default=False)
]
Form = Annotated[str, typer.Option("--format", metavar="NAME", help="text, csv or json")]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="only list what would go")]


def results_verify(
    folders: sharing.Foreign = None,
    foreign: sharing.IsForeign = False,
    data: sharing.DataHere = "",
    results: given_as.ReadFrom = RESULTS,
    form: Form = "text",
) -> None:
    """Hash every cell, and compute its numbers again; exit code 1 if anything is wrong.

    Answers are scored again where the task's data are on this machine. Wall times, provenance and answers are hashed.
    --foreign reads published folders of others as data, and says for each cell what could not be checked.
    """
    if foreign:
        sharing.verify_foreign(folders or (), data, form)
        return
    if folders or data or form != "text":
        found = "folders" if folders else given("data", data) if data else given("format", form)
        raise PrunebenchError(
            f"verify: expected --foreign beside {found}, found none: add --foreign, or name one's own folder as"
            f" {given('results', 'FOLDER')}"
        )
    loading()
    from harness.proof.recomputed import again
    from harness.store.verify import verify

    lines, fine = verify(results, again)
    put("\n".join(lines))
    if not fine:
        raise typer.Exit(1)


def results_list(
    results: given_as.ReadFrom = RESULTS,
    task: given_as.OnlyTask = "",
    model: given_as.OnlyModel = "",
    method: given_as.OnlyMethod = "",
    budget: given_as.OnlyBudget = "",
    limit: given_as.OnlyLimit = "",
    full: given_as.OnlyFull = False,
    form: Form = "text",
) -> None:
    """List the cells: setting and score, one a line.

    Unfinished and damaged cells have lines of their own. With a filter only sealed cells are listed.
    """
    from harness.tables import lists

    lists.checked_format(form, FORMATS)
    only = wanted(task, model, method, budget, limit, full)
    with naming_damaged() as damaged:
        found, cells = _read(results, damaged)
        if only:
            chosen = {sealed.identity for sealed in only.of(cells)}
            found = [one for one in found if one.cell and one.cell.identity in chosen]
        if form == "text":
            put(lists.listing(found, cells, results, filtered=bool(only)))
        else:
            put(lists.exported(lists.listed(found, cells), form))


def results_show(cell: CellId, results: given_as.ReadFrom = RESULTS, form: Form = "text") -> None:
    """Show all of one cell: setting, scores, costs, provenance, and the command that measures it again."""
    from harness.tables import lists

    lists.checked_format(form, FORMATS)
    with naming_damaged() as damaged:
        found, cells = _read(results, damaged)
        sealed = _one(found, cell, results)
        parts = lists.facts(sealed, cells)
        if form == "text":
            put(lists.facts_text(parts))
        elif form == "csv":
            put(lists.exported(lists.facts_frame(parts), "csv"))
        else:
            put(lists.json_text(parts))


def results_samples(
    cell: CellId,
    key: Annotated[
        str, typer.Option(metavar="KEYS", help="only these samples, as pope/000123; several with commas")
    ] = "",
    wrong: Annotated[
        bool, typer.Option("--wrong", help="only answers with a score below 0.5, or above if lower is better")
    ] = False,
    right: Annotated[bool, typer.Option("--right", help="only the answers that --wrong leaves out")] = False,
    results: given_as.ReadFrom = RESULTS,
    form: Form = "text",
) -> None:
    """Print the answers of one cell.

    As text, long answers are cut to fit. As csv and json, answers are whole, with their costs.
    """
    from harness.tables import lists

    lists.checked_format(form, FORMATS)
    if wrong and right:
        raise PrunebenchError("samples: expected --wrong or --right, found both: give one, or neither for all")
    with naming_damaged() as damaged:
        found, _ = _read(results, damaged)
        sealed = _one(found, cell, results)
        frame = lists.answers(sealed, listed(key), wrong=wrong, right=right)
        if form != "text":
            put(lists.exported(frame, form))
            return
        if len(frame):
            put(lists.table_of_texts(frame, lists.ANSWER_WIDTHS))
        put(f"{len(frame)} of {sealed.cell.n_samples} answers of {sealed.cell.method} at {sealed.cell.budget}")


def results_diff(cell: CellId, other: SecondId, results: given_as.ReadFrom = RESULTS, form: Form = "text") -> None:
    """Show how two cells of one task differ: settings, processing, scores, costs, provenance, answers.

    As csv, the questions with other answers or scores are printed; as json, everything.
    """
    from harness.tables import lists

    lists.checked_format(form, FORMATS)
    with naming_damaged() as damaged:
        found, _ = _read(results, damaged)
        first, second = (_one(found, one, results) for one in (cell, other))
        difference = lists.difference(first, second)
        if form == "text":
            put(lists.difference_text(difference, first, second))
        elif form == "csv":
            put(lists.exported(difference.answers, "csv"))
        else:
            answers = json.loads(lists.exported(difference.answers, "json"))
            put(lists.json_text(difference._asdict() | {"answers": answers}))


def results_merge(
    source: Annotated[Path, typer.Argument(metavar="FROM", help="a results folder; it stays as it is")],
    target: Annotated[Path, typer.Argument(metavar="INTO", help="a results folder, or a new one")],
) -> None:
    """Copy the cells of one results folder that another lacks, and write the other's tables.

    A cell that is there already stays. Records of submissions are merged too. A merge that was stopped continues with
    the same command.
    """
    from harness.store.merge import merge
    from harness.tables import leaderboard

    with naming_damaged() as damaged:
        done = merge(source, target)
        damaged += done.left
        put(f"{done.copied} cells copied to {target}, {done.there} were there, {len(done.left)} left")
        if done.named:
            put(f"who measured or reproduced {len(done.named)} cells is taken from the records of {source}")
        if done.unfinished:
            put(
                f"{done.unfinished} unfinished cells stay in {source}: the command that began them continues them there"
            )
        torn: list[str] = []
        csv, markdown = leaderboard.rewrite(target, torn)
        damaged += [why for why in torn if why not in damaged]
        put(f"tables  {csv}  {markdown}")


def results_rm(
    cells: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="the first digits of each cell", show_default=False)
    ] = None,
    results: given_as.WriteTo = RESULTS,
    task: given_as.OnlyTask = "",
    model: given_as.OnlyModel = "",
    method: given_as.OnlyMethod = "",
    budget: given_as.OnlyBudget = "",
    limit: given_as.OnlyLimit = "",
    full: given_as.OnlyFull = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Remove cells by identity or by filters, then write the tables anew.

    The list of what goes comes first, then a question. A cell that a runner holds stays.
    """
    from harness.store.store import Store
    from harness.tables import leaderboard, lists

    only = wanted(task, model, method, budget, limit, full)
    if bool(cells) == bool(only):
        raise PrunebenchError(f"rm: expected identities or filters, found {'both' if cells else 'neither'}: give one")
    found, sealed = _read(results, [])
    goes = _chosen(found, sealed, cells or (), only, results)
    put(lists.listing(goes, sealed, results, filtered=bool(only)))
    if dry_run or not _confirmed(f"remove {len(goes)} cells", yes):
        return
    store, gone = Store(results), 0
    with naming_damaged() as damaged:
        for one in goes:
            try:
                store.discard_folder(one.path)
                gone += 1
                if one.path.exists():
                    put(f"note: {one.path} has other files, and stays")
            except PrunebenchError as error:
                damaged.append(str(error))
        store.tidy()
        put(f"{gone} cells removed")
        torn: list[str] = []
        csv, markdown = leaderboard.rewrite(results, torn)
        damaged += torn
        put(f"tables  {csv}  {markdown}")


def results_gc(results: given_as.WriteTo = RESULTS, yes: Yes = False, dry_run: DryRun = False) -> None:
    """Remove half-run cells, temporary files, dead locks and the cache, with their sizes.

    The list comes first, then a question. Sealed cells stay, and so does all that a living process needs.
    """
    from harness.store.waste import clear, waste

    stays: list[str] = []
    found = waste(results, stays)
    for why in stays:
        put(f"stays   {one_line(why)}")
    for one in found:
        more = f", {one.more}" if one.more else ""
        put(f"{one.kind}  {one.path.relative_to(results)}  ({_size(one.size)}{more})")
    if not found:
        put("nothing to remove")
        return
    put(f"{len(found)} things, {_size(sum(one.size for one in found))}")
    if dry_run or not _confirmed(f"remove {len(found)} things", yes):
        return
    freed, left = clear(results, found)
    put(f"{_size(freed)} free")
    with naming_damaged() as damaged:
        damaged += left


def _read(results: Path, damaged: list[str]) -> tuple[list[Found], list[SealedCell]]:
    """All folders of cells, and the sealed cells among them; what is wrong with the others is said in `damaged`."""
    from harness.store.choose import everything

    found = everything(results)
    damaged += [f"{one.path}: {one.wrong[0]}" for one in found if one.wrong]
    return found, [one.cell for one in found if one.cell]


def _one(cells: Sequence[Found], beginning: str, results: Path) -> SealedCell:
    """The sealed cell whose identity begins so. Raises PrunebenchError for any other cell."""
    from harness.store.choose import by_identity

    found = by_identity(cells, beginning, results)
    if found.wrong:
        raise PrunebenchError(f"{found.path}: expected a sealed cell, found a damaged one: {found.wrong[0]}")
    if found.cell is None:
        raise PrunebenchError(
            f"{found.path}: expected a sealed cell, found {found.answered} answers of an unfinished one: the command"
            " that began it continues it"
        )
    return found.cell


def _chosen(
    found: Sequence[Found], sealed: list[SealedCell], ids: Sequence[str], only: Wanted, results: Path
) -> list[Found]:
    """The folders that are to go, each once."""
    from harness.store.choose import by_identity, identity

    if ids:
        named = [by_identity(found, one, results) for one in ids]
        return [one for one in found if any(one is other for other in named)]
    taken = {one.identity for one in only.of(sealed)}
    return [one for one in found if one.cell and identity(one) in taken]


def _confirmed(what: str, yes: bool) -> bool:
    """Whether a person at a terminal agrees. Raises PrunebenchError where nobody can be asked."""
    if yes:
        return True
    if not sys.stdin or not sys.stdin.isatty():
        raise PrunebenchError(f"expected --yes to {what} without a terminal to ask at, found none: nothing was removed")
    tell(f"{what}? [y/N] ", end="")
    agreed = sys.stdin.readline().strip().lower() in ("y", "yes")
    if not agreed:
        put("nothing was removed")
    return agreed


def _size(number: int) -> str:
    """Bytes as a person reads them."""
    value: float = number
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


#: name of the command -> its function
COMMANDS: dict[str, Any] = {
    "list": results_list,
    "show": results_show,
    "samples": results_samples,
    "diff": results_diff,
    "verify": results_verify,
    "merge": results_merge,
    "publish": sharing.results_publish,
    "collect": sharing.results_collect,
    "rm": results_rm,
    "gc": results_gc,
}
