"""What a method may return: checked where the engine takes it, named by method, place and sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor

from harness.errors import PrunebenchError
from harness.layout import TokenLayout
from harness.method import AttentionEdit, DecodePositions, Method, Positions, Reduction


def check_mask(where: str, what: str, mask: object, shape: torch.Size, device: torch.device, axes: str = "batch, visual tokens present now") -> None:
    """Raise PrunebenchError unless `mask` is a bool tensor of this shape on this device."""
    if isinstance(mask, Tensor) and mask.shape == shape and mask.dtype == torch.bool and mask.device == device:
        return
    found = f"{mask.dtype} {tuple(mask.shape)} on {mask.device}" if isinstance(mask, Tensor) else type(mask).__name__
    raise PrunebenchError(f"{where}: expected {what} as bool {tuple(shape)} on {device} ({axes}); found {found}")


def check_reduction(where: str, reduction: object, layout: TokenLayout, hidden: Tensor, sample: Callable[[int], str]) -> None:
    """Raise PrunebenchError for a Reduction that cannot be made. `hidden (b, n, d)` enters the layer; `sample` names a row."""
    expected = layout.visual_tokens.valid
    if not isinstance(reduction, Reduction):
        raise PrunebenchError(f"{where}: expected a Reduction or None, found {type(reduction).__name__}")
    check_mask(where, "keep", reduction.keep, expected.shape, expected.device)
    for knob, word, known in (
        ("positions", reduction.positions, get_args(Positions)),
        ("decode_positions", reduction.decode_positions, get_args(DecodePositions)),
    ):
        if word not in known:
            raise PrunebenchError(f"{where}: expected {knob} to be one of {', '.join(known)}; found {word!r}")
    order = reduction.order
    if order is not None:
        if order.shape != expected.shape or order.dtype == torch.bool or order.device != expected.device:
            found = f"{order.dtype} {tuple(order.shape)} on {order.device}"
            raise PrunebenchError(f"{where}: expected order as numbers {tuple(expected.shape)} on {expected.device}; found {found}")
        _check_finite(where, "order", torch.where(reduction.keep & expected, order, 0), sample)
    for name, tokens, valid in (("added", reduction.added, reduction.added_valid), ("front", reduction.front, reduction.front_valid)):
        _check_tokens(where, name, tokens, valid, hidden, sample)


def _check_tokens(where: str, name: str, tokens: Tensor | None, valid: Tensor | None, hidden: Tensor, sample: Callable[[int], str]) -> None:
    if tokens is None:
        return
    b, _, d = hidden.shape
    if tokens.ndim != 3 or tokens.device != hidden.device or (tokens.shape[0], tokens.shape[2]) != (b, d):
        raise PrunebenchError(
            f"{where}: expected {name} tokens ({b}, m, {d}) on {hidden.device}, found {tuple(tokens.shape)} on {tokens.device}"
        )
    if valid is not None:
        check_mask(where, f"{name}_valid", valid, tokens.shape[:2], hidden.device, "as added")
    _check_finite(where, f"{name} tokens", tokens, sample)


def _check_finite(where: str, what: str, values: Tensor, sample: Callable[[int], str]) -> None:
    finite = torch.isfinite(values).flatten(1).all(1)
    if not bool(finite.all()):
        raise PrunebenchError(f"{where}, {sample(int((~finite).nonzero()[0]))}: {what} hold nan or inf")


def check_edits(where: str, edits: Sequence[AttentionEdit], layout: TokenLayout, sample: Callable[[int], str]) -> None:
    """Raise PrunebenchError for an AttentionEdit whose columns do not fit, or whose sink is no visual token."""
    expected = layout.visual_tokens.valid
    for edit in edits:
        if edit.cols is not None:
            check_mask(where, "the cols of an AttentionEdit", edit.cols, expected.shape, expected.device)
        if edit.how != "redirect":
            continue
        counts = layout.visual_counts
        sinks = edit.sink.tolist() if isinstance(edit.sink, Tensor) else [edit.sink] * len(counts)
        for row, (sink, count) in enumerate(zip(sinks, counts, strict=True)):
            if not 0 <= sink < count:
                raise PrunebenchError(f"{where}, {sample(row)}: expected a sink from 0 to {count - 1} (visual tokens present now), found {sink}")


def changed_pixels(method: Method, pixels: Tensor) -> Tensor | None:
    """What the method makes of the pixels before the vision tower, checked; None for no change."""
    changed = method.on_pixels(pixels)
    if changed is not None and (changed.shape != pixels.shape or changed.dtype != pixels.dtype):
        raise PrunebenchError(
            f"{method.name}: expected pixels {pixels.dtype} {tuple(pixels.shape)} from on_pixels, "
            f"found {changed.dtype} {tuple(changed.shape)}"
        )
    return changed
