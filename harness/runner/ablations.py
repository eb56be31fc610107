"""A paper's ablation as a file: a flat list of variants, run like any evaluation, printed as one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from tabulate import tabulate  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages

from harness.core import yamlfile
from harness.core.errors import PrunebenchError
from harness.core.paths import resolved
from harness.core.spelling import command
from harness.method import method_class
from harness.runner import run as runner
from harness.runner.launch.processes import executor
from harness.runner.request import Request, resolve_each
from harness.runner.run import Options, Say
from harness.runner.session import Session
from harness.store.sealed import SealedCell
from harness.tables.frame import rows


class Variant(BaseModel):
    """One line of the table. `published` is the paper's number for it, on the model that `source` names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    method: str
    knobs: dict[str, Any] = {}
    budget: yamlfile.WholeOrText | None = None
    published: yamlfile.Number | None = None


class Ablation(BaseModel):
    """One file of configs/ablations/. Unknown keys are refused, and two variants of one name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    source: str
    model: str = "mini"
    tasks: tuple[str, ...] = ("gqa",)
    limit: yamlfile.WholeOrText | None = None
    variants: tuple[Variant, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> Ablation:
        names = [v.name for v in self.variants]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two variants are called {twice[0]!r}")
        return self

    def changed(self, **fields: Any) -> Ablation:
        """With these fields in place of the file's, wherever they say something."""
        return self.model_copy(update={name: value for name, value in fields.items() if value})


@dataclass(frozen=True)
class MeasuredVariant:
    """A variant and its sealed cells, one per task, each after the unpruned cell it is compared with."""

    variant: Variant
    cells: list[SealedCell]


def load(file: Path) -> Ablation:
    """Read an ablation. Raises PrunebenchError where the file is missing, is a sweep or does not fit."""
    file = resolved(file)
    if not file.is_file():
        raise PrunebenchError(
            f"expected an ablation as YAML at {file}, found no such file: try one of configs/ablations/"
        )
    body = yamlfile.read(file, "an ablation")
    if "methods" in body and "variants" not in body:
        raise PrunebenchError(f"{file}: this is a sweep: use `{command('sweep', config=str(file))}`")
    try:
        return Ablation(**body)
    except ValidationError as error:
        raise PrunebenchError(f"{file}: {yamlfile.said(error, {'variants': Variant, '': Ablation})}") from None


def requests(
    ablation: Ablation, *, device: str = "auto", dtype: str = "auto", seed: str = "0", data: str | None = None
) -> list[Request]:
    """One request per variant."""
    return [
        Request(
            methods=(v.method,),
            model=ablation.model,
            budgets=() if v.budget is None else (str(v.budget),),
            tasks=ablation.tasks,
            limit=ablation.limit,
            seeds=seed,
            device=device,
            dtype=dtype,
            data=data,
            knobs=v.knobs,
        )
        for v in ablation.variants
    ]


def run(ablation: Ablation, asked: Sequence[Request], options: Options, say: Say = print) -> list[MeasuredVariant]:
    """Evaluate every variant, as `requests` gives them, in one pass; sealed cells are reused.

    Every variant is checked against the model before the first one runs. Raises PrunebenchError as
    `harness.runner.run.run`, and where another runner holds a cell, for the table needs all of them.
    """
    session = Session()
    settings = resolve_each(
        [(f"variant {variant.name!r}", one) for variant, one in zip(ablation.variants, asked, strict=True)], session
    )
    say(
        f"{len(settings)} variants x {len(ablation.tasks)} tasks on {ablation.model}:"
        f" {', '.join(v.name for v in ablation.variants)}"
    )
    finished = runner.run([s for each in settings for s in each], session, executor(1, session), options, say)
    finished.check_whole()
    return [
        MeasuredVariant(variant, finished.of(mine)) for variant, mine in zip(ablation.variants, settings, strict=True)
    ]


def table(ablation: Ablation, measured: list[MeasuredVariant]) -> str:
    """One line per variant and task: score, share of the unpruned score, tokens and FLOPs, beside the paper's
    number."""
    lines = []
    for item in measured:
        frame = rows(item.cells)
        for row in frame[frame["method"] == method_class(item.variant.method).name].to_dict("records"):
            lines.append(
                {
                    "variant": item.variant.name,
                    "task": row["task"],
                    "score": row["score"] * (100 if row["max"] == 1 else 1),
                    "% of unpruned": row["pct_of_unpruned"],
                    "mean visual\n(tokens/layer)": row["mean_visual"],
                    "% of unpruned\nLLM FLOPs": row["pct_of_unpruned_flops"],
                    "% of unpruned\ntower + LLM": row["pct_of_unpruned_tower_and_prefill"],
                    "n": row["answered"],
                    "published": item.variant.published,
                }
            )
    shown = tabulate(
        lines, headers="keys", floatfmt=("", "", ".4g", ".1f", ".1f", ".1f", ".1f", "", "g"), missingval="-"
    )
    return f"{ablation.title}\npublished: {ablation.source}\n\n{shown}"
