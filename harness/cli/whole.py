"""`prunebench cost METHODS --request`: the options, where the costs come from, and what is said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import MOST, listed
from harness.cli.say import put, put_or_write
from harness.core.errors import PrunebenchError
from harness.core.requests import OUTPUTS, QUESTIONS
from harness.core.spelling import given

if TYPE_CHECKING:
    from harness.core.requests import Machine
    from harness.cost.request import Priced
    from harness.store.sealed import SealedCell

#: of new tokens; a step each is added up
MOST_NEW = 100_000
#: as a user types them
USUAL = {
    "new_tokens": ",".join(map(str, OUTPUTS)),
    "questions": ",".join(map(str, QUESTIONS)),
    "batch": "1,8,64",
    "saving": "10%",
    "bandwidth": "4.8TB/s",
    "peak": "989TFLOPS",
}


def _default(name: str, text: str) -> str:
    return f"with --request: {text}; default: {USUAL[name]}"


NewTokens = Annotated[str, typer.Option(metavar="N", help=_default("new_tokens", "output lengths, with commas"))]
Questions = Annotated[str, typer.Option(metavar="N", help=_default("questions", "questions an image, with commas"))]
Batches = Annotated[str, typer.Option(metavar="N", help=_default("batch", "requests at a time, with commas"))]
Saving = Annotated[str, typer.Option(metavar="SHARE", help=_default("saving", "saving that break-even asks for"))]
Bandwidth = Annotated[str, typer.Option(metavar="RATE", help=_default("bandwidth", "bandwidth of the device's memory"))]
Peak = Annotated[str, typer.Option(metavar="RATE", help=_default("peak", "peak rate of the device's arithmetic"))]
Measured = Annotated[
    Path | None,
    typer.Option("--results", metavar="FOLDER", help="with --request: take the costs of the cells in this folder"),
]
Times = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="with --request: add the times of a bench.json of `prunebench bench`"),
]
Out = Annotated[Path | None, typer.Option(metavar="FILE", help="with --request: write every number into this CSV file")]


@dataclass(frozen=True)
class RequestTables:
    """What tables are asked for."""

    outputs: Sequence[int]
    questions: Sequence[int]
    batches: Sequence[int]
    saving: float
    on: Machine


def read(words: Mapping[str, str], methods: str) -> RequestTables:
    """From what a user typed, "" for the default. Raises PrunebenchError for anything that is no such number, and
    without a method."""
    from harness.cost.request import machine

    if not listed(methods):
        raise PrunebenchError(f"cost {methods!r}: expected METHODS with commas, found none")
    told = {name: words[name] or usual for name, usual in USUAL.items()}
    return RequestTables(
        _numbers("new_tokens", told["new_tokens"], MOST_NEW),
        _numbers("questions", told["questions"], MOST),
        _numbers("batch", told["batch"], MOST),
        _share(told["saving"]),
        machine(told["bandwidth"], told["peak"]),
    )


def _numbers(name: str, text: str, most: int) -> list[int]:
    words = listed(text)
    if not words or not all(word.isascii() and word.isdecimal() and len(word) < 9 for word in words):
        raise PrunebenchError(f"{given(name, text[:80])}: expected whole numbers with commas, as in {USUAL[name]}")
    numbers = sorted({int(word) for word in words})
    if not 1 <= numbers[0] <= numbers[-1] <= most:
        raise PrunebenchError(f"{given(name, text[:80])}: expected whole numbers from 1 to {most:,}")
    return numbers


def _share(text: str) -> float:
    word = text.strip().removesuffix("%")
    whole, _, part = word.partition(".")
    digits = f"{whole}{part}"
    value = float(word) / 100 if digits.isascii() and digits.isdecimal() and len(digits) < 9 else 0.0
    if not (text.strip().endswith("%") and 0 < value < 1):
        raise PrunebenchError(f"{given('saving', text[:80])}: expected more than 0% and less than 100%, as in 10%")
    return value


def refuse_without_request(words: Mapping[str, object]) -> None:
    """Raise PrunebenchError for an option of whole requests, given without `--request`."""
    for name, value in words.items():
        if value not in ("", None):
            raise PrunebenchError(f"{given(name, value)}: expected {given('request', True)} beside it, found none")


def refuse_beside_results(own_prompt: bool) -> None:
    """Raise PrunebenchError for a prompt or a knob of the command's, which measured cells do not have."""
    if own_prompt:
        raise PrunebenchError(
            f"{given('results')}: cells have prompts and settings of their own: leave {given('text_tokens')},"
            f" {given('text_before')}, {given('image')} and {given('set')} out"
        )


def from_cells(cells: Iterable[SealedCell], model: str, methods: str, budgets: str) -> tuple[str, list[Priced]]:
    """A heading and the requests that cells measured, the unpruned one first."""
    from harness.core import budget as units
    from harness.cost.request import CELLS, Priced
    from harness.tables.requests import measured_lines

    asked = [str(units.parse(budget)) for budget in listed(budgets)]
    # the unpruned request is there whether or not anybody names it
    named = [name for name in listed(methods) if name != "none"] or listed(methods)
    head, unpruned, lines = measured_lines(cells, model, named, asked)
    return head, [Priced("none", "", unpruned, CELLS), *(Priced(*line, CELLS) for line in lines)]


def from_plans(
    model: str, methods: str, budgets: str, text_tokens: int, text_before: int, image: str, knobs: dict[str, str]
) -> tuple[str, list[Priced]]:
    """A heading and the requests as schedules say, the unpruned one first."""
    from harness.core import budget as units
    from harness.cost import plan
    from harness.cost.request import planned, unpruned
    from harness.method import build

    size = plan.size_of(image) if image else None
    prompt = plan.usual_prompt(model, size).with_text(text_tokens)
    plan.check_text_before(text_before, text_tokens)
    priced = [unpruned(prompt, text_before)]
    for name in listed(methods):
        for budget in listed(budgets) or ("",):
            asked = units.parse(budget or None)
            method = build(name, asked, {**plan.model_knobs(model, name), **knobs}, prompt)
            own = [shrunk.with_text(text_tokens) for shrunk in plan.seen_prompts(model, [method], size)]
            priced.append(planned(method, str(asked), prompt, text_before, *own))
    shape = f"{prompt.depth} layers, {prompt.n_visual} visual and {text_tokens} text tokens"
    return f"{model}: {shape} ({text_before} before the image)", priced


def say(found: tuple[str, list[Priced]], asked: RequestTables, out: Path | None) -> None:
    """Print the tables, and write every number into `out`."""
    from harness.cost import request, request_text

    head, priced = found
    put(head)
    put(request_text.tables(priced, asked.outputs, asked.questions, asked.batches, asked.on, asked.saving))
    if out is not None:
        import pandas as pd  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages

        from harness.tables.text import csv_text

        rows = request.records(priced, asked.outputs, asked.questions, asked.batches, asked.on)
        put_or_write(csv_text(pd.DataFrame(rows)), out)


def say_times(times: Path, model: str, methods: str, asked: RequestTables) -> None:
    """Print the milliseconds of requests that a bench measured."""
    from harness.cost import timed
    from harness.cost.request_text import grid

    rows = timed.read(times, model, listed(methods))
    put("\nmeasured ms of a batch (% of the bare model), by new tokens; the vision tower once an image, each prefill")
    head = ["method", "budget", "batch", "questions", *map(str, asked.outputs)]
    put(grid(head, list(timed.lines(rows, asked.outputs, asked.questions)), left=4))
