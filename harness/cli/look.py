"""Commands that read what is there: leaderboard, report, show, methods, models and tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options as given_as
from harness.cli.damage import naming_damaged, sound
from harness.cli.options import RESULTS, listed, one_budget
from harness.cli.say import loading, put, put_or_write
from harness.core.errors import PrunebenchError, unknown
from harness.core.spelling import given


def leaderboard(
    results: given_as.ReadFrom = RESULTS,
    figures: Annotated[bool, typer.Option(help="draw the figures too, as SVG and PNG")] = True,
    form: Annotated[
        str,
        typer.Option("--format", metavar="NAME", help="one wide table instead: markdown, csv, latex or html"),
    ] = "",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="file of the wide table, as table.tex; default: the terminal")
    ] = None,
    task: given_as.OnlyTask = "",
    model: given_as.OnlyModel = "",
    method: given_as.OnlyMethod = "",
    budget: given_as.OnlyBudget = "",
    limit: given_as.OnlyLimit = "",
    full: given_as.OnlyFull = False,
) -> None:
    """Write the tables, comparisons and figures of a results folder; no model is needed.

    The files are leaderboard.csv, LEADERBOARD.md, equal_flops.csv, significance.csv and figures/. With --format or
    --out the command writes one table for a paper instead: rows are methods, columns are tasks.
    """
    from harness.tables import leaderboard, paper
    from harness.tables.kept import Kept

    wanted = given_as.wanted(task, model, method, budget, limit, full)
    with naming_damaged() as damaged:
        if form or out:
            form = form or paper.ending(str(out))
            if form not in paper.FORMATS:
                raise unknown("format", form, paper.FORMATS)
            cells = sound(results, damaged)
            put_or_write(paper.render(wanted.of(cells), form, cells), out)
            return
        if wanted:
            raise PrunebenchError(
                f"leaderboard: filters are for the wide table: expected {given('format')} or {given('out')}"
                " beside them, found neither"
            )
        kept = Kept(results)
        cells = sound(results, damaged, kept.check)
        csv, markdown = leaderboard.write(cells, results, figures=figures, kept=kept, damaged=damaged)
        put(f"tables  {csv}  {markdown}")
        if figures:
            put(f"figures {results / 'figures'}")


def report(
    results: given_as.ReadFrom = RESULTS,
    samples: Annotated[int, typer.Option(metavar="N", help="samples per task on the page; 0 for none")] = 100,
    data: given_as.ImagesAt = "",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="the page; default: RESULTS/report/index.html")
    ] = None,
) -> None:
    """Write all results as one page: leaderboard, samples with kept tokens, analysis.

    The page holds everything itself: no server and no network are needed to read it.
    """
    from harness.report import page

    with naming_damaged() as damaged:
        page.write(results, out, samples, data, put, damaged)


def show(
    sample: Annotated[str, typer.Option(metavar="KEY", help="a task and a sample of it, as pope/000123")],
    method: Annotated[
        str,
        typer.Option(metavar="NAMES", help="a method, or several with commas", autocompletion=given_as.complete_method),
    ] = "visipruner",
    budget: Annotated[
        str, typer.Option(metavar="BUDGET", help="a budget that was measured, as 64; default: the only one, else 64")
    ] = "",
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="a model, needed if the results hold several", autocompletion=given_as.complete_model
        ),
    ] = "",
    data: given_as.ImagesAt = "",
    results: given_as.ReadFrom = RESULTS,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="the picture; default: RESULTS/show/SAMPLE.png")
    ] = None,
) -> None:
    """Draw one sample as a picture: the tokens that each method keeps, and its answer."""
    from harness.core import budget as budgets
    from harness.report import show

    one_budget(budget, "show")
    budget = str(budgets.parse(budget)) if budget else ""
    with naming_damaged() as damaged:
        path, found = show.write(results, sample.strip(), list(listed(method)), budget, model, data, out, damaged)
        put("\n".join(show.lines(found)))
        put(f"picture  {path}")


def methods(
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD",
            help="a method to describe: a name, or path/to/file.py:Class",
            autocompletion=given_as.complete_method,
            show_default=False,
        ),
    ] = "",
    families: Annotated[
        bool, typer.Option("--families", help="list on which families of models each method runs")
    ] = False,
) -> None:
    """List the methods, or describe one: source, needs, settings, known differences.

    The tokens that native settings keep are those of LLaVA-1.5-7B.
    """
    if method and families:
        raise PrunebenchError(f"methods: expected a method ({method}) or --families, found both")
    loading()
    from harness.method import method_class, registered
    from harness.method.about import about, card, table
    from harness.method.registry import BROKEN

    if method:
        put(card(about(method_class(method))))
        return
    if families:
        from harness.models import matrix

        put(matrix.matrix(registered().values()))
        put(f"\n{matrix.LEGEND}")
        return
    put(table(map(about, registered().values())))
    put("\n`prunebench methods NAME` says all of one: official code, licence there, settings, differences.")
    for why in BROKEN.values():
        put(f"\nnot usable: {why}")


def models() -> None:
    """List the models with a name, their sizes and their calibrated settings."""
    loading()
    from tabulate import tabulate  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages

    from harness.cost.plan import usual_prompt
    from harness.models.adapters import ADAPTERS
    from harness.models.config import calibrated_methods, known_models, model_config

    rows = []
    for name in known_models():
        config, usual = model_config(name), usual_prompt(name)
        knobs = "; ".join(
            f"{method} {', '.join(f'{knob}={value}' for knob, value in found.items())}"
            for method, found in calibrated_methods(name).items()
        )
        place = config.hub or f"shipped, {config.path}"
        rows.append([name, place, usual.decoder.depth, usual.n_visual, knobs or "none"])
    head = ["name", "weights", "layers", "visual tokens\nan image", "calibrated settings"]
    put(tabulate(rows, headers=head, disable_numparse=True, maxcolwidths=[None, None, None, None, 40]))
    put(f"\nAny hub id or local folder of {', '.join(sorted(ADAPTERS))} is a model too.")
