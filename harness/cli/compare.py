"""The command `prunebench compare`: method against method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options as given_as
from harness.cli.damage import naming_damaged
from harness.cli.options import RESULTS, listed
from harness.cli.say import put
from harness.core.errors import PrunebenchError
from harness.core.spelling import given

#: flipped answers that the terminal shows of each direction, and pictures on a page
FEW, PICTURES = 3, 40


def compare(
    sides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SIDES",
            help="two or more of method@budget[:knob=value,...], as fastv@64, or the beginning of a cell's identity",
            autocompletion=given_as.complete_method,
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        str,
        typer.Option(
            "--tasks",
            "--task",
            metavar="NAMES",
            help="tasks, with commas; default: all that both sides were measured on",
            autocompletion=given_as.complete_task,
        ),
    ] = "",
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="only cells of this model; default: all", autocompletion=given_as.complete_model
        ),
    ] = "",
    results: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help=f"the folder with the sealed cells; two folders: each side before and after; default: {RESULTS}",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write all flipped answers into this CSV file, as flips.csv")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write pictures of flipped answers as one page, as flips.html")
    ] = None,
    samples: Annotated[int, typer.Option(metavar="N", help="pictures on the page, at most")] = PICTURES,
    data: given_as.ImagesAt = "",
) -> None:
    """Compare methods question by question: difference, exact test, costs and flipped answers.

    No model is needed. The tests are those of the leaderboard, and Holm's correction is over all tasks and pairs asked.
    """
    from harness.store.files import write_atomic
    from harness.tables import sides as reading
    from harness.tables import versus_text
    from harness.tables.text import csv_text
    from harness.tables.versus import Reader, versus

    texts, folders = _parted(sides or [], results or [])
    if len(texts) < (1 if len(folders) == 2 else 2):
        raise PrunebenchError(
            f"compare: expected {'a side' if len(folders) == 2 else 'two sides or more'}, as in fastv@64 sparsevlm@64,"
            f" found {len(texts)}; one side is enough for two results folders ({given('results')})"
        )
    if samples < 1:
        raise PrunebenchError(f"{given('samples', samples)}: expected a number of pictures of at least 1")
    _check_files(out, page)
    with naming_damaged() as damaged:
        read = [reading.read_folder(folder) for folder in folders]
        damaged += [why for folder in read for why in folder.damaged]
        reader = Reader()
        try:
            found = versus(reading.resolve(texts, read, listed(tasks), model), reader)
        finally:
            damaged += reader.damaged
        put(versus_text.text(found, FEW))
        if out:
            frame = versus_text.flips_frame(found)
            write_atomic(out, csv_text(frame).encode(errors="backslashreplace"))
            put(f"\nflips   {out}  ({len(frame):,} answers)")
        if page:
            from harness.report import flips

            written = flips.page(found, samples, data)
            write_atomic(page, written.html.encode())
            put(f"\npage    {page}  ({written.shown:,} of {written.all:,} flipped answers)")
            for note in written.notes:
                put(f"note    {note}")


def _parted(words: list[str], results: list[Path]) -> tuple[list[str], list[Path]]:
    """The sides, and the results folders: `--results A B` leaves B among the sides."""
    folders = [Path(word) for word in words if results and "@" not in word and (Path(word) / "cells").is_dir()]
    texts = [word for word in words if Path(word) not in folders]
    found = [*results, *folders] or [RESULTS]
    if len(found) > 2:
        raise PrunebenchError(f"{given('results')}: expected one folder or two, found {len(found)}")
    if len(found) == 2 and found[0].resolve() == found[1].resolve():
        raise PrunebenchError(f"{given('results', found[0])}: expected two folders, found one twice")
    return texts, found


def _check_files(out: Path | None, page: Path | None) -> None:
    """Raises PrunebenchError for a file of another ending, one file for both, and one that cannot be written."""
    for name, path, endings in (("out", out, (".csv",)), ("page", page, (".html", ".htm"))):
        if path and not path.is_dir() and path.suffix.lower() not in endings:
            raise PrunebenchError(
                f"{given(name, path)}: expected a file that ends in {' or '.join(endings)}, found {path.name!r}:"
                f" {given('out')} takes CSV, {given('page')} a page"
            )
    if out and page and out.resolve() == page.resolve():  # a link
        raise PrunebenchError(f"{given('out', out)}, {given('page', page)}: expected two files, found one: name two")
    for file in filter(None, (out, page)):
        _writable(file)


def _writable(path: Path) -> None:
    if path.is_dir():
        raise PrunebenchError(f"{path}: expected a file to write, found a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PrunebenchError(
            f"cannot create {path.parent}: {error.strerror}; choose a file that you can write"
        ) from None
