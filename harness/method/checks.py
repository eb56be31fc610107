"""Knobs that methods have in common, checked: layers and counts."""

from __future__ import annotations

from harness.core.errors import PrunebenchError
from harness.core.shape import Share


def check_layer(method: str, knob: str, layer: int, low: int, depth: int) -> None:
    """Raise PrunebenchError unless `layer` is a whole number with `low <= layer < depth`."""
    if type(layer) is not int:
        raise PrunebenchError(f"{method}: {knob}={layer!r}: expected a layer as a whole number")
    if not low <= layer < depth:
        expected = f"expected {low} to {depth - 1}" if low < depth else f"it takes at least {low + 1} layers"
        raise PrunebenchError(
            f"{method}: {knob}={layer} does not fit this model: {expected} (it has {depth} decoder layers)"
        )


def check_keep(method: str, keep: object) -> None:
    """Raise PrunebenchError for a count below 1, and for what is neither a count nor a Share."""
    if type(keep) is not int and not isinstance(keep, Share):
        raise PrunebenchError(
            f"{method}: expected keep as a number of tokens (64) or a Share (0.25 of a prompt's own), found {keep!r}"
        )
    if isinstance(keep, int) and keep < 1:
        raise PrunebenchError(f"{method}: expected keep >= 1, found {keep}")
