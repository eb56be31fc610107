"""What a prefill of prompts that end with their image leaves for others to start from (harness/engine/prefix.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.core.shape import ImageShape
from harness.engine.layout import TokenLayout
from harness.engine.prefix import LayerBlock, Prefix, ReducedPrefix, one_row
from harness.method import AttentionEdit


@dataclass
class CapturedLayer:
    """What one layer of a prefill leaves for others to start from; keys and values come with its attention."""

    hidden: Tensor
    edit: AttentionEdit | None
    layout: TokenLayout
    #: before a reduction here, with its layout, and where its columns went
    unreduced: tuple[Tensor, TokenLayout, Tensor] | None
    keys: Tensor = field(init=False)
    values: Tensor = field(init=False)
    silenced: list[int] = field(init=False)


def captured_prefixes(
    captured: Sequence[CapturedLayer],
    ids: Tensor,
    prompt: TokenLayout,
    deepstack: Sequence[Tensor],
    images: Sequence[tuple[ImageShape, ...]],
) -> list[Prefix]:
    """One prefix a row of `ids (b, n)`, from every layer of their prefill; `prompt` is their layout before any
    reduction, `deepstack` per early layer the features of all their visual tokens."""
    found, counts = [], prompt.visual_counts
    for row in range(ids.shape[0]):
        layers, reduced = [], {}
        for layer, c in enumerate(captured):
            # images of one size may be reduced to unlike lengths
            pad = c.layout.n - c.layout.counts[row]
            edit = one_row(c.edit, row, c.layout.visual_counts[row])
            layers.append((c.hidden[row, pad:], c.keys[row, :, pad:], c.values[row, :, pad:], edit, c.silenced[row]))
            if c.unreduced is not None:
                stream, before, source = c.unreduced
                was, source = before.n - before.counts[row], source[row, pad:]
                places = torch.where(source < before.n, source - was, -1)
                reduced[layer] = ReducedPrefix(stream[row, was:], places, c.layout.positions[row, pad:])
        hidden, keys, values, edits, silenced = zip(*layers, strict=True)
        starts = [n for n, c in enumerate(captured) if not n or c.layout is not captured[n - 1].layout]
        blocks = [
            LayerBlock(
                first,
                torch.stack(hidden[first:end]),
                torch.stack([*keys[first:end], *values[first:end]]).view(2, end - first, *keys[first].shape),
            )
            for first, end in zip(starts, [*starts[1:], len(captured)], strict=True)
        ]
        mine = slice(sum(counts[:row]), sum(counts[: row + 1]))
        found.append(
            Prefix(
                ids[row],
                images[row],
                prompt.positions[row],
                [features[mine] for features in deepstack],
                blocks,
                edits,
                silenced,
                reduced,
            )
        )
    return found
