"""The share of answer-relevant patches that a cell kept, where its data say which patches those are (the mini data)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from harness.core import keeps
from harness.store.sealed import SealedCell


class Relevant(NamedTuple):
    """Means over the questions of a cell that name something in their image, in percent of its patches.

    Kept tokens count. A merged token counts for none of the patches in it.
    """

    questions: int
    kept: float
    """In the last decoder layer that has visual tokens."""
    layers: float
    """Mean over all decoder layers."""


def relevant(sealed: SealedCell) -> Relevant | None:
    """The share of answer-relevant patches that a cell kept; None where it cannot be known.

    It is known for images of the mini data on their own grid, in cells that recorded their kept tokens. Raises
    PrunebenchError where the samples are not those that were sealed.
    """
    from tasks.mini.relevant import SIDE, patches

    depth, grids = sealed.provenance.get("decoder_layers"), sealed.provenance.get("grids")
    own = [tuple(grid) for grid in grids or ()] == [(SIDE, SIDE, False)]
    if not own or not depth or sealed.costs.get("n_visual") != SIDE * SIDE:
        return None
    rows = sealed.columns("key", "image", "question", "keeps")
    kept, layers = [], []
    for _, image, question, text in zip(*rows.values(), strict=True):
        found = patches(image, question)
        if found is None or not text:
            return None
        if not found:
            continue
        stages = keeps.decode(text, SIDE * SIDE)
        shares = [float(stage.keep[list(found)].mean()) for stage in stages]
        ends = [*(stage.layer for stage in stages[1:]), int(depth)]
        lasting = [end - stage.layer for stage, end in zip(stages, ends, strict=True)]
        layers.append(float(np.dot(shares, lasting)) / int(depth))
        kept.append(next(share for share, s in zip(shares[::-1], stages[::-1], strict=True) if s.keep.any() or s.added))
    if not kept:
        return None
    return Relevant(len(kept), 100.0 * float(np.mean(kept)), 100.0 * float(np.mean(layers)))
