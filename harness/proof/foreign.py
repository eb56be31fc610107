"""Compute a cell from elsewhere again: as harness/proof/recomputed.py, and nothing that the cell names is looked for.

Of its words only plain names are used, and only those known here: methods that are registered with the same code, tasks
with a specification, models with a config. A path, a module, a hub id or an address is never followed. Where the data
of a task lie is for the person to say who checks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from harness.core.errors import PrunebenchError
from harness.method import registered, source_of
from harness.models.config import known_models
from harness.proof.foreign_request import NotHereError, data_of, knobs_unlike, misstated
from harness.proof.recomputed import again, located_here
from harness.store.sealed import SealedCell
from harness.store.strict import MODEL_WORD, PLAIN_WORD

if TYPE_CHECKING:
    import pandas as pd

    from harness.models.load import Located

_PLAIN, _MODEL = PLAIN_WORD, MODEL_WORD
_TASK = re.compile(r"[A-Za-z0-9][\w.+-]{0,95}(?::[A-Za-z0-9][\w.+-]{0,95})?", re.ASCII)
#: as `str(Budget)` spells one
_BUDGET = re.compile(
    r"none|native|calibrated|[0-9]{1,9}(?:clamped|avg)?|[0-9]{1,3}(?:\.[0-9]{1,17})?(?:kept|avg|flops)(?:clamped)?"
)
_LIMIT = re.compile(r"all|[0-9]{1,9}", re.IGNORECASE | re.ASCII)
_FILE = re.compile(r"\.(?:py|yaml|yml|json|so|pkl|pt|bin|npz?)(?::|$)", re.IGNORECASE)


class Checker:
    """The `ForeignJudge` of harness/store/foreign.py. `data`: a folder with the tasks' data, as the person who checks
    names it; None: the embedded data alone. `trial` makes tables of one cell, and raises for a cell that would end
    every table that holds it."""

    def __init__(self, data: str | None = None, trial: Callable[[SealedCell], object] | None = None) -> None:
        self._data, self._trial = data, trial

    def unknown_code(self, cell: SealedCell) -> str:
        """Why the method of a cell is none whose code is here; "" where it is."""
        name, told = cell.cell.method, cell.cell.method_source
        if not _PLAIN.fullmatch(name) or _FILE.search(name) or name not in registered():
            return f"the method {name[:80]!r} is none that this prunebench has: nothing was imported"
        here = source_of(registered()[name])
        if here != told:
            return f"the code of {name} was {told[:40]!r}, here it is {here!r}: nothing was imported"
        return ""

    def wrong_words(self, cell: SealedCell) -> list[str]:
        """Words that are no plain names, or that are not those of the cell."""
        asked, own, wrong = cell.asked, cell.cell, []
        if asked.method != own.method:
            wrong.append(f"its request names the method {asked.method[:80]!r}, and it is {own.method!r}")
        for what, word, known in (
            ("task", own.task, _TASK),
            ("model", own.model, _MODEL),
            ("model", asked.model, _MODEL),
            ("stands_for", own.stands_for or "mini", _PLAIN),
        ):
            if not known.fullmatch(word) or _FILE.search(word) or ".." in word:
                wrong.append(f"{what} is {word[:80]!r}, expected a name, no path: publish it from such a request")
        for name in ("data", "prompt", "image", "stands_for", "dtype", "positions", "device"):
            word = getattr(asked, name)
            if word and (not _PLAIN.fullmatch(word) or ".." in word):
                wrong.append(f"its request has {name} {word[:80]!r}, expected a name, no path")
        if not _BUDGET.fullmatch(own.budget) or (asked.budget or "none") != own.budget:
            wrong.append(f"its request asks for the budget {(asked.budget or 'none')[:40]!r}, and it is {own.budget!r}")
        if asked.limit is not None and not _LIMIT.fullmatch(asked.limit):
            wrong.append(f"its request has limit {asked.limit[:40]!r}, expected a number or all")
        if asked.device != own.device_type or asked.task != own.task:
            found = (asked.task, asked.device)
            wrong.append(f"its request asks for task and device {found}, and it is {(own.task, own.device_type)}")
        wrong += _wrong_knobs(cell)
        # what compares values takes words that are plain names
        return (wrong or misstated(cell))[:5]

    def __call__(self, cell: SealedCell, frame: pd.DataFrame) -> tuple[list[str], list[str]]:
        """What is wrong, and what could not be computed: what was asked for is known to be plain names by now."""
        asked, closed = cell.asked, {}
        if self._trial is not None:
            try:
                self._trial(cell)
            except Exception as error:  # whatever a table cannot take of somebody else's words
                return [f"no table can be made of it ({type(error).__name__}: {error})"], []
        task = located = None
        try:
            task, wrong = data_of(cell, self._data)
            if wrong:
                return wrong, []
        except NotHereError as error:
            closed["data"] = str(error)
        if asked.model not in known_models():
            closed["model"] = f"{asked.model} has no config here"
        else:
            # why it is not at hand is said with the costs, which look for it again
            with suppress(PrunebenchError):
                located = located_here(asked.model, cell.cell.dtype, cell.cell.model_fingerprint)
        wrong, left = again(cell, frame, closed, task)
        try:
            wrong += knobs_unlike(cell, located, task)
        except NotHereError as error:
            left.append(f"knobs of its budget not computed: {error}")
        if located is None:
            left.append("unproven not computed, model not at hand")
        else:
            wrong += _unproven(cell, located)
        return wrong, [*left, *_unrecorded(frame)]


def _unproven(cell: SealedCell, located: Located) -> list[str]:
    """A note about recorded runs of the method that is not the one of here. A run may have been recorded since."""
    found, told = located.unproven(registered()[cell.cell.method]), cell.unproven
    if told in (found, located.architecture):
        return []
    return [f"its provenance has unproven {told[:80]!r}, expected {found!r}"]


def _wrong_knobs(cell: SealedCell) -> list[str]:
    """Knobs that the method does not have, and texts that name a file: a knob of a method may be one."""
    method, own = registered()[cell.cell.method], cell.cell.knobs
    fields: Mapping[str, Any] = method.__dataclass_fields__
    wrong = [
        f"{cell.cell.method} has no knob {name[:60]!r}" for name in [*own, *cell.asked.knobs] if name not in fields
    ]
    for name, value in [*own.items(), *cell.asked.knobs.items()]:
        if any("/" in text or "\\" in text or _FILE.search(text) for text in _texts(value)):
            wrong.append(f"its knob {name} is {str(value)[:80]!r}, expected no path")
    return wrong


def _texts(value: Any) -> list[str]:
    if isinstance(value, list | tuple):
        return [text for inner in value for text in _texts(inner)]
    if isinstance(value, Mapping):
        return [text for pair in value.items() for inner in pair for text in _texts(inner)]
    return [value] if isinstance(value, str) else []


def _unrecorded(frame: pd.DataFrame) -> list[str]:
    """Samples whose costs cannot be computed, because nothing says which tokens were kept."""
    if "n_visual" not in frame.columns:
        return ["costs and kept tokens of all samples not recomputed: no column n_visual"]
    lacking = int((frame["keeps"].fillna("") == "").sum())
    return [f"costs of {lacking} samples not recomputed: no record of kept tokens"] if lacking else []
