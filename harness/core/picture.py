"""Limits of an image's size, held before its pixels are in memory.

A file of a hundred bytes may hold any number of pixels. Two steps multiply them further: padding makes a square of the
long side, and a resize by the short side makes a thin image as long as it is thin.
"""

from __future__ import annotations

from harness.core.errors import PrunebenchError

LONGEST_SIDE = 8192
"""Pixels. A photograph of 8K has 7,680. Padded to a square and through CLIP's image processor, 8,192 take 0.9 GiB."""
THINNEST = 100
"""Long side by short side. At 100, an image resized to 336 pixels on its short side takes 0.1 GiB."""


def check_size(width: int, height: int) -> None:
    """Raise PrunebenchError for an image that is empty, too large or too thin to be handled in bounded memory."""
    short, long = sorted((width, height))
    if short < 1:
        raise PrunebenchError(f"the image is empty: expected pixels, found {width} x {height}; replace the data file")
    if long > LONGEST_SIDE or long > THINNEST * short:
        raise PrunebenchError(
            f"the image is too {'large' if long > LONGEST_SIDE else 'thin'}: expected sides of at most"
            f" {LONGEST_SIDE} pixels and at most {THINNEST} : 1, found {width} x {height}; make it smaller or crop it"
        )
