"""The share of answer-relevant patches that a cell kept, where its data say which patches those are (the data of
the embedded models)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from harness.core import grids, keeps
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

    It is known for images of the embedded models' data on their own grids, in cells that recorded their kept tokens.
    Raises PrunebenchError where the samples are not those that were sealed.
    """
    from tasks.mini.relevant import patches, ragged

    depth, recorded = sealed.provenance.get("decoder_layers"), sealed.provenance.get("grids")
    shown = grids.read(recorded)
    if isinstance(shown, list):  # every image has the same grid
        alike = len(shown) == 1 and not shown[0].newline
        if not alike or sealed.costs.get("n_visual") != shown[0].rows * shown[0].cols:
            return None
    elif not shown or not ragged().keys() >= shown.keys():
        return None
    if not depth:
        return None
    rows = sealed.columns("key", "image", "question", "keeps")
    kept, layers = [], []
    for _, image, question, text in zip(*rows.values(), strict=True):
        own = grids.own(shown, image)
        if len(own) != 1 or own[0].newline:
            return None
        height, width = own[0].rows, own[0].cols
        found = patches(image, question, height, width)
        if found is None or not text:
            return None
        if not found:
            continue
        stages = keeps.decode(text, height * width)
        shares = [float(stage.keep[list(found)].mean()) for stage in stages]
        ends = [*(stage.layer for stage in stages[1:]), int(depth)]
        lasting = [end - stage.layer for stage, end in zip(stages, ends, strict=True)]
        layers.append(float(np.dot(shares, lasting)) / int(depth))
        kept.append(next(share for share, s in zip(shares[::-1], stages[::-1], strict=True) if s.keep.any() or s.added))
    if not kept:
        return None
    return Relevant(len(kept), 100.0 * float(np.mean(kept)), 100.0 * float(np.mean(layers)))
