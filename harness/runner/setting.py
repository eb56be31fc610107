"""A resolved request: everything that decides one cell's numbers, typed and checked. How it is run
(harness/runner/pace.py) is no part of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from harness.core.asked import Asked
from harness.core.budget import Budget
from harness.method import Method, method_class
from harness.models.load import Located

if TYPE_CHECKING:
    from tasks.sources import DataSource


@dataclass(frozen=True, eq=False)
class Setting:
    """One cell to be. Compared by identity: two settings may well be the same cell.

    `limit` None: every question. `seed` and `positions` are 0 and "method" where they change nothing. `asked` is what
    was typed, and is sealed with the cell. Pickles without what its model caches, and with its method as name and
    knobs, because a class from a file has no module that another process could import.
    """

    located: Located
    method: Method
    budget: Budget
    task: str
    source: DataSource
    limit: int | None
    seed: int
    positions: str
    asked: Asked

    @property
    def label(self) -> str:
        """For people: task, method and budget."""
        text = f"{self.task} {self.method.name}" + ("" if self.budget.unit == "none" else f"@{self.budget}")
        return f"{text} follow-up" if self.asked.follow_up else text

    def __reduce__(self) -> tuple[Any, ...]:
        state = {f.name: getattr(self, f.name) for f in fields(self)}
        knobs = {f.name: getattr(self.method, f.name) for f in fields(self.method) if f.init}
        return _restored, (state | {"located": replace(self.located), "method": knobs},)


def _restored(state: Mapping[str, Any]) -> Setting:
    return Setting(**{**state, "method": method_class(state["asked"].method)(**state["method"])})
