"""Budgets with units: what "64" means, spelt out. No torch.

    64        kept: 64 visual tokens after the method's selection (default unit)
    native    the method's published defaults
    none      no pruning (the baseline)
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from harness.errors import PrunebenchError

_SPELT = "expected a whole number of visual tokens such as 64, or native"


@dataclass(frozen=True)
class Budget:
    """`tokens` is set where the unit is "kept"."""

    unit: Literal["kept", "native", "none"]
    tokens: int | None = None

    def __str__(self) -> str:
        return str(self.tokens) if self.unit == "kept" else self.unit


NONE = Budget("none")


def parse(text: str | int | None) -> Budget:
    """Read a budget as a user writes it. Raises PrunebenchError for 0, negative, nan, fractions and unknown units."""
    if text is None:
        return NONE
    word = str(text).strip().lower()
    if word in ("native", "none"):
        return Budget("native") if word == "native" else NONE
    if re.fullmatch(r"[+-]?\d+", word):
        tokens = int(word)
        if tokens < 1:
            raise PrunebenchError(f"budget {text!r} keeps no visual token: {_SPELT} (at least 1)")
        return Budget("kept", tokens)
    try:
        number = float(word)
    except ValueError:
        unit = re.fullmatch(r"[+-]?[\d.]+([a-z]+)", word)
        found = f"unknown unit {unit.group(1)!r}" if unit else "no number"
        raise PrunebenchError(f"budget {text!r}: {found}; {_SPELT}") from None
    kind = "not a number" if math.isnan(number) else "not a whole number"
    raise PrunebenchError(f"budget {text!r} is {kind}; {_SPELT}")
