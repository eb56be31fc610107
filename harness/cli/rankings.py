"""The command `prunebench compare-models`: do rankings of methods agree between two models?"""

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

#: as in harness/tables/in_common.py, which is not imported for a help
TOLERANCE = 1.25


def compare_models(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODELS",
            help="two models of the folder, as mini mini-qwen; mini:dtype=bfloat16 where one was asked in several ways",
            autocompletion=given_as.complete_model,
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        str,
        typer.Option(
            "--tasks",
            "--task",
            metavar="NAMES",
            help="tasks, with commas; default: all that both models were measured on",
            autocompletion=given_as.complete_task,
        ),
    ] = "",
    pairs: Annotated[
        str,
        typer.Option(
            metavar="PAIRS",
            help="budgets to compare, as 128=25%,64=12%; default: those that kept about the same share of tokens",
        ),
    ] = "",
    tolerance: Annotated[
        float, typer.Option(metavar="RATIO", help="largest ratio between the shares of two paired budgets")
    ] = TOLERANCE,
    seed: Annotated[int, typer.Option(metavar="N", help="seed of the draws of images")] = 0,
    results: given_as.ReadFrom = RESULTS,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="write tables (CSV, Markdown) and figures (PNG) into this folder"),
    ] = None,
) -> None:
    """Say whether two models rank the methods alike, and who changes places beyond noise.

    No model is needed. Budgets are paired by the share of visual tokens that the cells kept.
    """
    from harness.tables import rankings_text
    from harness.tables.in_common import read_side
    from harness.tables.kept import Kept
    from harness.tables.rankings import rankings
    from harness.tables.sides import read_folder

    words = models or []
    if len(words) != 2:
        raise PrunebenchError(f"compare-models: expected two models, as in mini mini-qwen, found {len(words)}")
    if seed < 0:
        raise PrunebenchError(f"{given('seed', seed)}: expected a whole number of at least 0")
    if out and out.exists() and not out.is_dir():
        raise PrunebenchError(f"{given('out', out)}: expected a folder, found a file: give another name")
    named = _pairs(pairs)
    with naming_damaged() as damaged:
        folder = read_folder(results)
        damaged += folder.damaged
        sides = read_side(words[0], folder.sections), read_side(words[1], folder.sections)
        found = rankings(sides, listed(tasks), named, tolerance, seed, Kept(results, write=False))
        put(rankings_text.text(found))
        if out:
            from harness.tables.rankings_files import write

            put()
            for file in write(found, out):
                put(f"written {file}")


def _pairs(text: str) -> list[tuple[str, str]]:
    """`128=25%,64=12%` -> budgets as cells spell them. Raises PrunebenchError for a word that is no pair of budgets."""
    from harness.core import budget as budgets

    found = []
    for part in listed(text):
        first, equals, second = part.partition("=")
        if not equals or not first or not second:
            raise PrunebenchError(f"{given('pairs', part)}: expected two budgets, as in {given('pairs', '128=25%')}")
        found.append((str(budgets.parse(first)), str(budgets.parse(second))))
    return found
