"""The kept tokens of a set of questions, packed: each mask once, and only the bits that its parent leaves open.

A method that keeps 64 tokens keeps most often some of the 128 that it keeps at a larger budget, and a later stage some
of an earlier one. Such a mask is one bit for each token of its parent. Of 576 tokens, budgets of 192, 128, 64, 32 and
16 take 124 bytes together instead of 360. `assets/script/packing.js` unpacks them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.core.errors import PrunebenchError
from harness.core.keeps import ALL

NOTHING = "-"
"""Stands for a mask that keeps no token."""


class _Known(NamedTuple):
    """A mask that was added: its bytes, its bits as a number, and the places of its tokens."""

    size: int
    bits: int
    tokens: NDArray[np.int64]


class MaskPacker:
    """Takes the texts of harness/core/keeps.py of one set of questions."""

    def __init__(self) -> None:
        self._number: dict[bytes, int] = {}
        self._known: list[_Known] = []
        self._back: list[int] = []  # to the parent; 0 for none
        self._sizes: list[int] = []  # bytes of a mask without parent
        self._bits: list[bytes] = []

    def add(self, group: Sequence[Sequence[str]]) -> list[list[str]]:
        """Texts of equal length for the texts of some cells, the largest budget first: one row per cell, one text per
        sample. A mask is the number of masks that it stands behind the one before in its row.

        Raises PrunebenchError for a text that `keeps.encode` does not write.
        """
        last = [0] * len(group)
        packed: list[list[str]] = [[] for _ in group]
        for sample in range(len(group[0]) if group else 0):
            larger: list[int] = []  # the masks of the next larger budget
            for cell, texts in enumerate(group):
                parts: list[str] = []
                own: list[int] = []
                for part in texts[sample].split(";") if texts[sample] else []:
                    head, _, mask = part.rpartition(":")
                    number = self._add(part, mask, [*own, *larger])
                    if number is None:
                        parts.append(f"{head}:{mask if mask == ALL else NOTHING}")
                        continue
                    parts.append(f"{head}:{number - last[cell]}")
                    last[cell] = number
                    own.append(number)
                larger = own
                packed[cell].append(";".join(parts))
        return packed

    def _add(self, part: str, mask: str, parents: Iterable[int]) -> int | None:
        """The number of a mask; None for all tokens and for none. `parents`: masks that may hold all of its tokens."""
        if mask == ALL:
            return None
        try:
            data = base64.b64decode(mask, validate=True)
        except binascii.Error:
            raise PrunebenchError(
                f"expected kept tokens as harness.core.keeps writes them, found {part[:60]!r}"
            ) from None
        if data in self._number:
            return self._number[data]
        value = int.from_bytes(data)
        if not value:
            return None
        bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
        whole = [n for n in parents if self._known[n].size == len(data) and value & ~self._known[n].bits == 0]
        number = self._number[data] = len(self._known)
        self._known.append(_Known(len(data), value, np.flatnonzero(bits)))
        if whole:
            parent = min(whole, key=lambda n: len(self._known[n].tokens))
            self._back.append(number - parent)
            self._bits.append(np.packbits(bits[self._known[parent].tokens]).tobytes())
        else:
            self._back.append(0)
            self._sizes.append(len(data))
            self._bits.append(data)
        return number

    def packed(self) -> dict[str, Any]:
        """All masks, as JSON values."""
        return {
            "back": self._back,
            "sizes": self._sizes,
            "bits": base64.b64encode(b"".join(self._bits)).decode(),
        }
