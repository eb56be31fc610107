"""What one cell was asked for, as plain values: sealed with the cell, and rendered as the command that measures it
again. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from harness.core.cell import plain_knobs
from harness.core.errors import PrunebenchError

_TYPES: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "Mapping[str, Any]": (dict,),
}
#: words that came later than the first sealed cells, which do without them
_LATER = {"judge", "follow_up"}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The words of a request that make one cell. None stands for a word that was not given, and so for the default.

    Raises PrunebenchError for knobs that JSON cannot hold.
    """

    method: str
    """By the name it was asked for, which may be a file and a class."""
    budget: str | None = None
    model: str
    task: str
    limit: str | None = None
    knobs: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    positions: str = "method"
    data: str | None = None
    device: str
    """Its kind, "cpu" or "cuda": which GPU it was makes no other cell."""
    dtype: str | None = None
    prompt: str | None = None
    image: str | None = None
    stands_for: str | None = None
    judge: str | None = None
    """ "1" where a service may score answers."""
    follow_up: str | None = None
    """ "1" where each question is asked behind the first one about its image."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "knobs", plain_knobs(self.method, self.knobs))

    def unpruned(self) -> Asked:
        """The same questions, asked of the unpruned model."""
        return replace(self, method="none", budget=None, knobs={}, seed=0, positions="method")

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values; those of `_LATER` only where they were given."""
        return {name: value for name, value in asdict(self).items() if name not in _LATER or value is not None}

    @classmethod
    def from_dict(cls, values: Any) -> Asked:
        """What `to_dict` wrote. Raises PrunebenchError where a field is missing, unknown or of another type."""
        names = {f.name: _TYPES[str(f.type)] for f in fields(cls)}
        if not isinstance(values, Mapping) or set(values) | _LATER != set(names):
            found = sorted(values) if isinstance(values, Mapping) else values
            known = ", ".join(name for name in names if name not in _LATER)
            raise PrunebenchError(f"a request as sealed holds {known}; found {found!r}")
        for name, kinds in ((name, kinds) for name, kinds in names.items() if name in values):
            if not isinstance(values[name], kinds) or isinstance(values[name], bool):
                raise PrunebenchError(
                    f"a request as sealed: {name} is {values[name]!r}, expected"
                    f" {' or '.join(kind.__name__ for kind in kinds)}"
                )
        return cls(**values)
