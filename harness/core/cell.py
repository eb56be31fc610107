"""A cell: everything that may change a number, and nothing else, with the hash that names it.

The identity is the first 16 hex digits of the SHA-256 of the canonical JSON of all fields plus `KEY_VERSION`. Batch
size, cell order, caching, worker count, paths and time are not part of it: answers do not depend on them (a test
elsewhere holds the engine to that), so a cell measured at batch 8 is the cell measured at batch 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from harness.core.errors import PrunebenchError, unknown

SHIPPED = "prunebench"
"""`Cell.method_source` of our own methods as released (methods/shipped.json), whose changes of a number
`numerics_version` names."""

KEY_VERSION = 2
"""Version of the identity itself: bump when a field is added, renamed or read differently."""

NUMERICS_VERSION = 1
"""Version of what the harness computes: bump when the same cell would give other answers or costs than before."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The unit that is run, resumed, sealed and reported.

    Raises PrunebenchError for a field of the wrong type, a negative count or knobs that JSON cannot hold.
    """

    model: str
    """Name as the user gave it, resolved: "mini", a hub id or a folder's name (never an absolute path)."""
    model_fingerprint: str
    """Hash of the weights, or the hub revision."""
    stands_for: str = ""
    """The shipped model configuration whose knobs, calibration and published rows go with the model; "" for none."""
    method: str
    knobs: Mapping[str, Any] = field(hash=False)
    """Every knob of the method with its resolved value, defaults included; JSON values only."""
    method_source: str = SHIPPED
    """Hash of the code of a method from elsewhere, or of ours edited: another cell. Not part of the identity where it
    is `SHIPPED`."""
    budget: str
    """Canonical: "64", "64avg", "0.35flops", "native", "calibrated", "none"."""
    task: str
    data_fingerprint: str
    """Hash over the selected samples in order, so two subsets of equal size differ."""
    n_samples: int
    """Questions in the cell."""
    processing: str
    """Digest of everything that the model's side makes of a sample: prompt, end tokens, padding, the image processor's
    settings. `processing_digest` makes it of an open description, which is sealed beside the cell: a further step needs
    no new version of the identity."""
    task_settings: str
    """The same of what the task's side says about an answer beside its length: stop strings."""
    dtype: str
    kernel: str = "sdpa"
    positions: str = "method"
    """Position policy of the run: "method" leaves it to the method."""
    device_type: str
    """"cpu" or "cuda"; which GPU it was is provenance."""
    seed: int = 0
    max_new_tokens: int
    numerics_version: int = NUMERICS_VERSION

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type == "str" and not (isinstance(value, str) and (value or f.default == "")):
                raise PrunebenchError(f"cell field {f.name!r}: expected a non-empty string, found {value!r}")
            if f.type == "int" and (type(value) is not int or value < (f.name in ("n_samples", "max_new_tokens"))):
                raise PrunebenchError(
                    f"cell field {f.name!r}: expected a whole number that is not negative, found {value!r}"
                )
        if not isinstance(self.knobs, Mapping) or not all(isinstance(name, str) for name in self.knobs):
            raise PrunebenchError(
                f"cell field 'knobs': expected a mapping from knob names to values, found {self.knobs!r}"
            )
        object.__setattr__(self, "knobs", plain_knobs(self.method, self.knobs))

    def identity(self) -> str:
        """The 16 hex digits that name this cell; equal for an object and for the dictionary it was written as."""
        text = canonical_json({"key_version": KEY_VERSION, **self._values()})
        return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]

    def baseline(self) -> Cell:
        """The unpruned cell this one is compared with: method "none", same everything else.

        The seed is 0 whatever this cell's is: `none` draws nothing, so every seed shares one baseline. Its position
        policy is "method" because nothing is removed and all policies agree.
        """
        return replace(self, method="none", knobs={}, method_source=SHIPPED, budget="none", positions="method", seed=0)

    @property
    def settings(self) -> dict[str, Any]:
        """What tells cells of one method apart: its knobs, and for a method from elsewhere its code."""
        return (
            dict(self.knobs) if self.method_source == SHIPPED else {**self.knobs, "method_source": self.method_source}
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values, knobs copied; `method_source` only where the method is not ours."""
        return self._values() | {"knobs": plain_knobs(self.method, self.knobs)}

    def _values(self) -> dict[str, Any]:
        """`to_dict` with the knobs themselves."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.method_source == SHIPPED:
            del values["method_source"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Cell:
        """The cell that `to_dict` wrote; unknown and missing fields are refused: another version meant something
        else."""
        names = [f.name for f in fields(cls)]
        for name in values:
            if name not in names:
                raise unknown("cell field", str(name), names)
        missing = [name for name in names if name not in values and name != "method_source"]
        if missing:
            raise PrunebenchError(f"a cell needs the fields {', '.join(missing)}, which are missing")
        return cls(**values)


def processing_digest(processing: Mapping[str, Any]) -> str:
    """16 hex digits that name what was done to every sample; `processing` holds JSON values."""
    return hashlib.sha256(canonical_json(processing).encode("ascii")).hexdigest()[:16]


def plain_knobs(method: str, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """A private copy of knobs in JSON's own types: tuples equal the lists that are read back.

    Raises PrunebenchError for values that JSON cannot hold.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(knobs), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise PrunebenchError(f"knobs of {method!r} are not plain JSON values ({error}): {knobs!r}") from None
    return plain


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, ASCII, and 2.0 written as 2, because a knob given as 2 is the knob
    2.0."""
    return json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value
