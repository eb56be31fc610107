"""What methods with several stages inside the language model check and share: layers, and a ratio for each."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.errors import PrunebenchError
from harness.core.shape import ModelShape


def stage_layers(
    method: str, layers: Sequence[int] | None, official: Sequence[int], shape: ModelShape
) -> tuple[int, ...]:
    """The layers of a method's stages: those given, or the `official` ones at the same relative depth.

    On few layers official stages can fall together; the later one then takes the next layer. Raises PrunebenchError for
    layers that do not ascend from 1, and where no stage would happen.
    """
    if layers is None:
        found = list[int]()
        for layer in official:
            found.append(max([shape.scaled_layer(layer), *(before + 1 for before in found[-1:])]))
    else:
        found = list(layers)
    if found != sorted(set(found)) or not found or found[0] < 1:
        raise PrunebenchError(f"{method}: expected ascending layers from 1 in layers, found {_listed(found) or 'none'}")
    check_happens(method, found, shape)
    return tuple(found)


def check_happens(method: str, layers: Sequence[int], shape: ModelShape, which: str = "a stage") -> None:
    """Raise PrunebenchError where no stage at `layers` would happen."""
    if not [layer for layer in layers if layer < shape.depth]:
        raise PrunebenchError(
            f"{method}: layers={_listed(layers)} do not fit this model: expected {which} in layers 1 to"
            f" {shape.depth - 1} (it has {shape.depth} decoder layers); leave layers out, which scales the official"
            " ones"
        )


def check_ratios(method: str, ratios: Sequence[float], layers: Sequence[int]) -> None:
    """Raise PrunebenchError unless `ratios` holds a share of tokens, from 0 to 1, for each of `layers`."""
    if len(ratios) != len(layers):
        raise PrunebenchError(
            f"{method}: expected a ratio for each of the {len(layers)} layers {_listed(layers)}, found {len(ratios)}:"
            f" {_listed(ratios)}"
        )
    if not all(0 <= ratio <= 1 for ratio in ratios):
        raise PrunebenchError(f"{method}: expected ratios from 0 to 1, found {_listed(ratios)}")


def check_one_of(method: str, keep: object, ratios: object) -> None:
    """Raise PrunebenchError unless one of the two says how many tokens stay."""
    if (keep is None) == (ratios is None):
        found = "neither" if keep is None else f"keep={keep} and ratios={ratios}"
        raise PrunebenchError(
            f"{method}: expected exactly one of keep (a number of tokens) and ratios (a share for each layer), found"
            f" {found}"
        )


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
