"""Which methods run on which family, and which are proven there, from published sizes alone: no weights, no hub."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tabulate import tabulate  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages

from harness.core.errors import PrunebenchError
from harness.core.shape import Share
from harness.method import Method
from harness.method.build import usually
from harness.method.fits import UnfitError
from harness.models.adapters import ADAPTERS
from harness.models.published import published_prompt

#: families by their names for people
FAMILIES = {adapter.title: adapter for adapter in ADAPTERS.values()}
TEXT_TOKENS = 74
PROVEN, RUNS, OWN = "proven", "runs", "control"
LEGEND = (
    f"{PROVEN}: recorded runs of the official code on the family are replayed.\n"
    f"{RUNS}: not proven against official code there. {OWN}: runs, and has no official code.\n"
    "Else: why the method does not run."
)


class Fitted(NamedTuple):
    """Of one method on one family: a few words for a table, and the whole reason where it does not run, else ""."""

    short: str
    reason: str = ""


def fitted(cls: type[Method], family: str) -> Fitted:
    """Whether a method runs on a family of `FAMILIES`, at half of a prompt's tokens or as its defaults say."""
    adapter = FAMILIES[family]
    prompt = published_prompt(adapter.checkpoint)
    assert prompt is not None, f"sizes of {adapter.checkpoint} are kept in configs/published/"
    try:
        usually(cls, prompt.with_text(TEXT_TOKENS), Share(0.5))
    except PrunebenchError as refused:
        return Fitted(refused.short if isinstance(refused, UnfitError) else "does not fit", str(refused))
    if cls.published is None:
        return Fitted(OWN)
    return Fitted(PROVEN if adapter.proven is None or cls.name in adapter.proven else RUNS)


def matrix(methods: Iterable[type[Method]], form: str = "simple") -> str:
    """A row a method, a column a family."""
    body = [[cls.name, *(fitted(cls, family).short for family in FAMILIES)] for cls in methods]
    return str(tabulate(body, headers=["method", *FAMILIES], tablefmt=form, disable_numparse=True))
