"""Commands for maintainers of methods/, results/ and the mini world: `prunebench dev`."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options as given_as
from harness.cli.options import RESULTS
from harness.cli.say import put
from harness.core.errors import PrunebenchError, unknown


def mutations(
    out: Annotated[Path, typer.Option(metavar="FILE", help="the table, as Markdown")] = Path(
        "results/local/mutations.md"
    ),
) -> None:
    """Seed faults and write which test caught each; minutes; exit code 1 if one survives."""
    import torch

    from harness.proof.faults import FAULTS, markdown, try_fault, try_sound

    torch.manual_seed(0)
    try_sound()
    caught = []
    for fault in FAULTS:
        caught.append(try_fault(fault))
        put(f"{'SURVIVED' if caught[-1].survived else 'caught  '}  {fault.name}", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(markdown(caught))
    put(f"table  {out}")
    if any(c.survived for c in caught):
        raise typer.Exit(1)


def published(
    source: Annotated[
        Path,
        typer.Argument(metavar="CSV", help="collected results: model, method, budget_label, budget_semantics, ..."),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="the cleaned table")] = Path("results/published.csv"),
) -> None:
    """Clean collected published results into tidy columns with our names and budget units."""
    from harness.store.files import write_atomic
    from harness.tables import published as published_results

    text, dropped = published_results.clean(source)
    write_atomic(out, text.encode())
    put(
        f"wrote  {out}: {text.count(chr(10)) - 1} numbers; {dropped} rows left out, whose source names nothing that one"
        " could look up"
    )


def shipped() -> None:
    """Declare the present files in methods/ as the released ones.

    For a change that moves no result. A change that moves one bumps NUMERICS_VERSION.
    """
    from harness.method import record_shipped

    put(f"wrote {record_shipped()}")


def licences() -> None:
    """Write docs/licences.md: the licence of every package in requirements.lock, read where it is installed."""
    from harness.core.paths import checkout
    from harness.upkeep.licences import FILE, LOCK, page

    checkout("the licence list")
    FILE.write_text(page(LOCK.read_text()))
    put(f"wrote  {FILE}")


def migrate(results: given_as.ReadFrom = RESULTS) -> None:
    """Seal cells of the schema before anew, in today's; identities, samples and numbers stay.

    Can be interrupted and run again.
    """
    from harness.upkeep.migrate import migrate as renew

    lines, fine = renew(results)
    put("\n".join(lines))
    if not fine:
        raise typer.Exit(1)


def readme(
    results: given_as.ReadFrom = Path("results/reference"),
    check: Annotated[
        bool, typer.Option("--check", help="write nothing; exit code 1 where a page would change")
    ] = False,
) -> None:
    """Fill the tables of README.md, docs/ and the model cards from sealed cells and schedules, count the numbers of
    their sentences, and draw docs/images."""
    from harness.core.paths import checkout
    from harness.upkeep.readme import IMAGES, PAGES, draw_two_models, made

    top = checkout("the README")
    lacking = next((page for page in PAGES if not Path(page).is_file()), None)
    if lacking:
        raise PrunebenchError(
            f"expected the top of a checkout as working directory, found no {lacking} in {Path.cwd()}: run the command"
            f" in {top}"
        )
    stale = False
    for page in PAGES:
        before = Path(page).read_text()
        after = made(page, before, results)
        if check and after != before:
            stale = True
            put(f"stale   {page}, from line {_first_difference(before, after)}: run `prunebench dev readme`")
        elif not check:
            Path(page).write_text(after)
            put(f"filled  {page}")
    if stale:
        raise typer.Exit(1)
    for file in () if check else draw_two_models(results, Path("docs") / IMAGES):
        put(f"drawn   {file}")


def screenshots(
    results: given_as.ReadFrom = Path("results/reference"),
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="where the pictures go")] = Path("docs/images"),
) -> None:
    """Photograph the report's page, and draw the other pictures of the documentation.

    Needs Chromium, its driver and selenium.
    """
    from harness.core.paths import make_folder
    from harness.upkeep.chromium import require
    from harness.upkeep.screenshots import screenshots as write

    require("screenshots")
    make_folder(out)
    for file in write(results, out):
        put(f"picture {file}  ({file.stat().st_size / 1e3:.0f} KB)")


def _first_difference(before: str, after: str) -> int:
    """The number of the first line in which two texts differ, from 1."""
    pairs = zip_longest(before.splitlines(), after.splitlines())
    return next((n for n, (one, other) in enumerate(pairs, 1) if one != other), 1)


def mini(
    context: typer.Context,
    part: Annotated[str, typer.Argument(help="data, train, export or clip")],
    model: Annotated[str, typer.Option(metavar="NAME", help="the embedded model: mini or mini-qwen")] = "mini",
) -> None:
    """Rebuild a part of the mini world.

    PART data rebuilds the data sets, bit-identical; of mini-qwen it rebuilds their manifest. PART train trains the
    model by the same recipe. PART export writes the shipped files from a checkpoint. PART clip trains the text tower
    that belongs to mini's vision tower.
    """
    if model not in ("mini", "mini-qwen"):
        raise unknown("embedded model", model, ("mini", "mini-qwen"))
    if part == "data" and model == "mini":
        from tasks.mini import data

        put(f"wrote {data.build(data.FOLDER)}")
    elif part == "data":
        from tasks.mini.qwen import data as qwen

        put(f"wrote {qwen.remake()}")
    elif part == "train":
        from tasks.mini import train

        train.main(list(context.args), model)
    elif part == "export":
        from tasks.mini import export

        export.main(list(context.args), model)
    elif part == "clip" and model == "mini":
        from tasks.mini import clip

        clip.main(list(context.args))
    elif part == "clip":
        raise PrunebenchError("mini clip: the vision tower of mini-qwen has no text tower: leave it out")
    else:
        raise PrunebenchError(f"mini {part!r}: expected data, train, export or clip")
