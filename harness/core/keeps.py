"""Which visual tokens were there in which layer, as one short text per sample: what a picture of a prune needs.

`0:0:*;5:0:AAAB...` reads: from layer 0 on all of the prompt's visual tokens, from layer 5 on those of the bit mask
(base64 of `numpy.packbits` over the prompt's visual tokens in raster order), no merged tokens added in either. The
empty text means that nothing was recorded.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.core.errors import PrunebenchError

ALL = "*"


class Stage(NamedTuple):
    """From decoder layer `layer` on: `keep (n_visual,)` bool over the prompt's visual tokens, and `added` merged
    tokens."""

    layer: int
    keep: NDArray[np.bool_]
    added: int


def encode(stages: Iterable[Stage]) -> str:
    """The text of some stages, in order of layers."""
    return ";".join(
        f"{s.layer}:{s.added}:{ALL if s.keep.all() else base64.b64encode(np.packbits(s.keep).tobytes()).decode()}"
        for s in stages
    )


def decode(text: str, n_visual: int) -> list[Stage]:
    """The stages of a text. Raises PrunebenchError where it is not one that `encode` wrote for `n_visual` tokens."""
    stages = []
    try:
        for part in text.split(";") if text else []:
            layer, added, mask = part.split(":")
            if mask == ALL:
                keep = np.ones(n_visual, dtype=bool)
            else:
                packed = np.frombuffer(base64.b64decode(mask, validate=True), dtype=np.uint8)
                if len(packed) != (n_visual + 7) // 8:
                    raise ValueError(f"a mask of {8 * len(packed)} bits for {n_visual} visual tokens")
                keep = np.unpackbits(packed, count=n_visual).astype(bool)
            stages.append(Stage(int(layer), keep, int(added)))
    except (ValueError, binascii.Error) as error:
        raise PrunebenchError(
            f"expected kept tokens as harness.core.keeps writes them, found {text[:60]!r} ({error})"
        ) from None
    return stages


def per_layer(stages: Iterable[Stage], depth: int) -> list[int]:
    """Visual tokens in each of `depth` layers."""
    counts: list[int] = []
    for stage in stages:
        counts += [counts[-1] if counts else 0] * (stage.layer - len(counts))
        counts.append(int(stage.keep.sum()) + stage.added)
    return counts + [counts[-1] if counts else 0] * (depth - len(counts))
