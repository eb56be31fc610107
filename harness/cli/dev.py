"""Commands for maintainers of methods/, results/ and the mini world: `prunebench dev`."""

from __future__ import annotations

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


def readme(results: given_as.ReadFrom = Path("results/reference")) -> None:
    """Fill the tables of README.md, docs/ and the model card from sealed cells and schedules, and draw docs/images."""
    from harness.upkeep.readme import FILES, IMAGES, draw_two_models, filled

    for file in map(Path, FILES):
        file.write_text(filled(file.read_text(), results))
        put(f"filled  {file}")
    for file in draw_two_models(results, Path("docs") / IMAGES):
        put(f"drawn   {file}")


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
