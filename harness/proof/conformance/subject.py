"""The method under test, the verdicts about it, and how a property is enrolled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.core import budget as budgets
from harness.core.budget import Budget
from harness.core.errors import PrunebenchError
from harness.core.shape import ModelShape
from harness.method import Method, check_budget
from harness.method.fits import changes_pixels
from harness.method.registry import NOBODYS
from harness.models.adapters import adapter_for
from harness.proof.conformance.tiny import N_VISUAL, KitAnswer, difference, tiny_model

DEFAULT_BUDGET = 16
#: of logits, whose spread is about 1: the most that another order of float32 sums may change, and the least that is a
#: change
SAME, CHANGED = 1e-3, 1e-2


# ------------------------------------------------------------------------------------------------ verdicts and subjects


@dataclass(frozen=True)
class Verdict:
    """One property of one method; `detail` holds the values found, or why it does not apply."""

    name: str
    status: Literal["ok", "FAIL", "n/a"]
    detail: str


class NotApplicableError(Exception):
    """The property does not apply; the message says why."""


class ViolatedError(Exception):
    """The property does not hold; the message holds the values."""


@dataclass(frozen=True)
class Subject:
    """A method class under test with knobs given by hand and the budget to test at."""

    cls: type[Method]
    knobs: Mapping[str, Any]
    budget: int = DEFAULT_BUDGET

    @property
    def edits_pixels(self) -> bool:
        return changes_pixels(self.cls)

    @property
    def excused(self) -> str:
        """Why the method may differ from the unpruned model at full budget; "" where it may not."""
        traits = self.cls.traits
        reasons = {
            "edits attention": traits.edits_attention,
            "merges": traits.merges,
            "reorders": traits.reorders,
            "works on the image": self.edits_pixels,
        }
        return " and ".join(reason for reason, holds in reasons.items() if holds)

    def at(self, budget: Budget | int, shape: ModelShape | None = None) -> Method:
        """Raises NotApplicableError where the method refuses the budget."""
        usual = adapter_for(tiny_model()).usual
        shape = usual.decoder if shape is None else shape
        asked = Budget("kept", budget) if isinstance(budget, int) else budget
        try:
            check_budget(self.cls, asked, self.knobs)
            return self.cls.at_budget(asked, dict(self.knobs), dataclasses.replace(usual, decoder=shape)).for_model(
                shape
            )
        except PrunebenchError as error:
            raise NotApplicableError(str(error)) from None

    def variants(self, shape: ModelShape | None = None) -> dict[str, Method]:
        """The method at the budget and at its published defaults, as far as it takes them; else as it stands."""
        found: dict[str, Method] = {}
        refused = []
        for label, asked in ((f"budget {self.budget}", Budget("kept", self.budget)), ("native", Budget("native"))):
            try:
                found[label] = self.at(asked, shape)
            except NotApplicableError as error:
                refused.append(str(error))
        if not found:
            try:
                found["as it is"] = self.at(budgets.NONE, shape)
            except NotApplicableError as error:
                raise PrunebenchError(f"{self.cls.name} cannot be built: {'; '.join([*refused, str(error)])}") from None
        return found

    def any(self, shape: ModelShape | None = None) -> Method:
        return next(iter(self.variants(shape).values()))


Property = Callable[[Subject], Verdict]
#: by the name that the table shows, in its order
PROPERTIES: dict[str, Property] = {}


def property_(name: str) -> Callable[[Callable[[Subject], str]], Property]:
    """The function returns what it saw, raises ViolatedError or NotApplicableError; any other exception is a failure
    too."""

    def wrap(function: Callable[[Subject], str]) -> Property:
        def judged(subject: Subject) -> Verdict:
            try:
                return Verdict(name, "ok", function(subject))
            except NotApplicableError as reason:
                return Verdict(name, "n/a", str(reason))
            except NOBODYS:
                raise
            except BaseException as error:  # a kit that dies of one method's bug reports nothing
                tiny_model.cache_clear()  # a method may have changed the model
                said = str(error) if isinstance(error, ViolatedError) else f"{type(error).__name__}: {error}"
                return Verdict(name, "FAIL", said)

        PROPERTIES[name] = judged
        return judged

    return wrap


def require(holds: bool, values: str) -> None:
    if not holds:
        raise ViolatedError(values)


def same(label: str, got: KitAnswer, row: int, want: KitAnswer, want_row: int = 0, tolerance: float = SAME) -> float:
    """Row `row` of one batch did what row `want_row` of another did: same tokens in every layer, same logits; the
    difference."""
    for layer, (a, b) in enumerate(zip(got.origins, want.origins, strict=True)):
        require(a[row] == b[want_row], f"{label}: layer {layer} holds {few(a[row])}, expected {few(b[want_row])}")
    gap = difference(got.logits[row], want.logits[want_row])
    require(gap <= tolerance, f"{label}: logits differ by {gap:.2e} (tolerance {tolerance:.0e})")
    return gap


def few(tokens: Sequence[int]) -> str:
    return f"{len(tokens)} visual tokens {list(tokens[:6])}{'...' if len(tokens) > 6 else ''}"


def drops(got: KitAnswer) -> bool:
    return (
        any(rows != got.origins[0] for rows in got.origins)
        or any(len(o) % N_VISUAL for o in got.origins[0])
        or any(-2 in o for o in got.origins[0])
    )
