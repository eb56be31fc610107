"""What a method may return: checked where the engine takes it, named by method, place and sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from harness.core.errors import PrunebenchError
from harness.engine.layout import TokenLayout
from harness.method import AttentionEdit, DecodePositions, Method, Positions, Reduction
from harness.method.fits import shrinks_pictures
from harness.method.registry import blaming


def check_mask(
    where: str,
    what: str,
    mask: object,
    shape: torch.Size,
    device: torch.device,
    axes: str = "batch, visual tokens present now",
) -> None:
    """Raise PrunebenchError unless `mask` is a bool tensor of this shape on this device."""
    if isinstance(mask, Tensor) and mask.shape == shape and mask.dtype == torch.bool and mask.device == device:
        return
    found = f"{mask.dtype} {tuple(mask.shape)} on {mask.device}" if isinstance(mask, Tensor) else type(mask).__name__
    raise PrunebenchError(f"{where}: expected {what} as bool {tuple(shape)} on {device} ({axes}); found {found}")


class Stays(NamedTuple):
    """Visual tokens of each row that a checked Reduction keeps, and how many it places beside them."""

    kept: list[int]
    placed: list[int]


class _Check(NamedTuple):
    """`good (b,)` bool on the device; `error` says what is wrong with a row that is not."""

    good: Tensor
    error: Callable[[int], PrunebenchError]


def check_reduction(
    where: str,
    reduction: object,
    layout: TokenLayout,
    hidden: Tensor,
    images: Callable[[], Tensor],
    sample: Callable[[int], str],
) -> Stays:
    """What stays behind a Reduction, read together with its checks: one wait for the device. Raises PrunebenchError for
    one that cannot be made.

    `hidden (b, n, d)` enters the layer; `images` says the image (b, v) of each visual token; `sample` names a row.
    """
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
    kept, order, checks = reduction.keep & expected, reduction.order, list[_Check]()
    if order is not None:
        _check_tensor(where, "order", order, expected.shape, expected.device)
        checks.append(_finite(where, "order", torch.where(kept, order, 0), sample))
    certain, counted = 0, [kept.sum(1)]
    for name, tokens, valid, image in (
        ("added", reduction.added, reduction.added_valid, reduction.added_image),
        ("front", reduction.front, reduction.front_valid, reduction.front_image),
    ):
        _check_tokens(where, name, tokens, valid, hidden)
        if image is not None:
            checks.append(_of_images(where, name, tokens, valid, image, images(), sample))
        if tokens is None:
            continue
        checks.append(_finite(where, f"{name} tokens", tokens, sample))
        if valid is None:
            certain += tokens.shape[1]
        else:
            counted.append(valid.sum(1))
    if reduction.values is not None:
        values = _check_tensor(where, "values", reduction.values, (*expected.shape, hidden.shape[2]), expected.device)
        checks.append(_finite(where, "values of kept tokens", torch.where(kept[:, :, None], values, 0), sample))
    read = torch.stack([*counted, *(check.good for check in checks)]).tolist()
    for check, good in zip(checks, read[len(counted) :], strict=True):
        if not all(good):
            raise check.error(good.index(0))
    placed = [certain + sum(row[1 : len(counted)]) for row in zip(*read, strict=True)]
    return Stays(read[0], placed)


def _check_tensor(where: str, what: str, values: object, shape: Sequence[int | str], device: torch.device) -> Tensor:
    """`values` if it is a tensor of real numbers of this shape (words stand for any size) on this device; raises
    PrunebenchError otherwise."""
    if isinstance(values, Tensor) and values.device == device and len(values.shape) == len(shape):
        sizes = all(isinstance(want, str) or have == want for have, want in zip(values.shape, shape, strict=True))
        if sizes and values.dtype != torch.bool and not values.is_complex():
            return values
    found = (
        f"{values.dtype} {tuple(values.shape)} on {values.device}"
        if isinstance(values, Tensor)
        else type(values).__name__
    )
    raise PrunebenchError(
        f"{where}: expected {what} as numbers ({', '.join(map(str, shape))}) on {device}; found {found}"
    )


def _check_tokens(where: str, name: str, tokens: object, valid: object, hidden: Tensor) -> None:
    if tokens is None:
        if valid is not None:
            raise PrunebenchError(
                f"{where}: expected {name}_valid beside {name} tokens, found it alone: leave it out, or give the tokens"
            )
        return
    added = _check_tensor(where, f"{name} tokens", tokens, (hidden.shape[0], "m", hidden.shape[2]), hidden.device)
    if valid is not None:
        check_mask(where, f"{name}_valid", valid, added.shape[:2], hidden.device, "as added")


def _of_images(
    where: str,
    name: str,
    tokens: object,
    valid: Tensor | None,
    image: object,
    images: Tensor,
    sample: Callable[[int], str],
) -> _Check:
    """`images (b, v)`: the image of each visual token present now."""
    if not isinstance(tokens, Tensor):
        raise PrunebenchError(
            f"{where}: expected {name}_image beside {name} tokens, found it alone: leave it out, or give the tokens"
        )
    of = _check_tensor(where, f"{name}_image", image, tokens.shape[:2], tokens.device)
    there = (images[:, None] == of[:, :, None]).any(2) & (of >= 0)
    bad = ~there if valid is None else ~there & valid

    def error(row: int) -> PrunebenchError:
        return PrunebenchError(
            f"{where}, {sample(row)}: expected in {name}_image the number of an image with visual tokens present, found"
            f" {of[row][bad[row]][0].item()}"
        )

    return _Check(~bad.any(1), error)


def _finite(where: str, what: str, values: Tensor, sample: Callable[[int], str]) -> _Check:
    return _Check(
        torch.isfinite(values).flatten(1).all(1),
        lambda row: PrunebenchError(f"{where}, {sample(row)}: {what} hold nan or inf"),
    )


def check_edits(where: str, edits: object, layout: TokenLayout, sample: Callable[[int], str]) -> None:
    """Raise PrunebenchError for what is no sequence of AttentionEdits, for columns that do not fit, and for a sink that
    is no visual token."""
    if not isinstance(edits, Sequence) or not all(isinstance(edit, AttentionEdit) for edit in edits):
        raise PrunebenchError(
            f"{where}: expected a list of AttentionEdits from edit_attention, () for none; found {type(edits).__name__}"
        )
    expected = layout.visual_tokens.valid
    for edit in edits:
        for name, word, known in (
            ("rows", edit.rows, ("after", "visual")),
            ("how", edit.how, ("mask", "zero", "redirect")),
        ):
            if word not in known:
                raise PrunebenchError(
                    f"{where}: expected {name} of an AttentionEdit as one of {', '.join(known)}; found {word!r}"
                )
        if edit.cols is not None:
            check_mask(where, "the cols of an AttentionEdit", edit.cols, expected.shape, expected.device)
        if edit.how != "redirect":
            continue
        counts = layout.visual_counts
        sinks = [edit.sink] * len(counts) if isinstance(edit.sink, int) else _sinks(where, edit.sink, expected)
        for row, (sink, count) in enumerate(zip(sinks, counts, strict=True)):
            if not 0 <= sink < count:
                raise PrunebenchError(
                    f"{where}, {sample(row)}: expected a sink from 0 to {count - 1} (visual tokens present now), found"
                    f" {sink}"
                )


def _sinks(where: str, sink: object, expected: Tensor) -> list[int]:
    if (
        not isinstance(sink, Tensor)
        or sink.shape != expected.shape[:1]
        or sink.dtype != torch.long
        or sink.device != expected.device
    ):
        found = (
            f"{sink.dtype} {tuple(sink.shape)} on {sink.device}" if isinstance(sink, Tensor) else type(sink).__name__
        )
        raise PrunebenchError(
            f"{where}: expected a sink as a whole number or long ({len(expected)},) on {expected.device}; found {found}"
        )
    return [int(index) for index in sink.tolist()]


def changed_pixels(method: Method, pixels: Tensor, one_size: bool) -> Tensor | None:
    """What the method makes of the pixels before the vision tower, checked; None for no change. Where images differ in
    tokens (not `one_size`), a method that shrinks pictures has done so before."""
    if not one_size and shrinks_pictures(method):
        return None
    with blaming(f"{method.name} at on_pixels"):
        changed = method.on_pixels(pixels)
    if changed is None:
        return None
    fits = isinstance(changed, Tensor) and changed.shape == pixels.shape and changed.dtype == pixels.dtype
    if not fits:
        found = f"{changed.dtype} {tuple(changed.shape)}" if isinstance(changed, Tensor) else type(changed).__name__
        raise PrunebenchError(
            f"{method.name}: expected pixels {pixels.dtype} {tuple(pixels.shape)} from on_pixels, found {found}"
        )
    return changed
