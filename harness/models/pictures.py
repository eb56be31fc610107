"""Pictures that a method changes before the vision tower sees them: the size that it shows, and its features' name."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from harness.core.errors import PrunebenchError
from harness.core.shape import Size
from harness.method import Method, source_of
from harness.method.fits import changes_pixels, shrinks_pictures
from harness.method.registry import blaming


def shown_size(method: Method, size: Size, tokens: Callable[[Size], int]) -> Size:
    """The size to which the method has a picture of `size` shrunk, checked; `size` itself where it stays. Raises
    PrunebenchError for an answer that is no smaller size."""
    with blaming(f"{method.name} at picture"):
        found = method.picture(size, tokens)
    if found is None:
        return size
    whole = isinstance(found, tuple) and len(found) == 2 and all(type(side) is int for side in found)
    if not whole or not all(1 <= side <= most for side, most in zip(found, size, strict=True)):
        raise PrunebenchError(
            f"{method.name}: expected a (height, width) within {size} from picture, in whole pixels, found {found!r}"
        )
    return found


def shrunk(image: Image.Image, size: Size) -> Image.Image:
    """The image at a smaller (height, width), by PIL's bicubic filter, as VTC-Bench shrinks its images."""
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


def pixels_key(method: Method) -> str:
    """Names what a method does to pixels and pictures, by its knobs; "" for nothing. One that changes them has features
    and prefixes of its own."""
    if not changes_pixels(method) and not shrinks_pictures(method):
        return ""
    return f"{method.name} {source_of(type(method))} {sorted(method.knobs().items())}"
