"""What the file of an image says before its pixels are decoded: its size, and whether it is an image at all."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from PIL import ExifTags, Image, UnidentifiedImageError

from harness.core.errors import PrunebenchError, naming
from harness.core.picture import check_size
from harness.core.shape import Size


class SampleImage(NamedTuple):
    """One image of a sample. `key`: the first 16 hex digits of the sha256 of the encoded image, under which its
    features are kept. `load` gives the image as a model gets it, RGB, and `size` its (height, width) in pixels."""

    key: str
    load: Callable[[], Image.Image]
    size: Callable[[], Size]


def cluster_key(keys: Sequence[str]) -> str:
    """What questions about the same images share: the key of one image, or 16 hex digits of a hash of several keys in
    order."""
    return keys[0] if len(keys) == 1 else hashlib.sha256(" ".join(keys).encode()).hexdigest()[:16]


def image_size(encode: Callable[[], Any], key: str) -> Size:
    """(height, width) of an image as it is decoded: turned upright, where its file says how. `encode` gives the row's
    image as the data hold it; `check_image` has seen its bytes."""
    encoded: bytes = encode()["bytes"]
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            # what the decoder of the data does; the value says by 5 to 8 that rows and columns change places
            turned = opened.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            width, height = opened.size
    except Exception as error:
        raise undecodable(key, encoded, error) from None
    return (width, height) if turned else (height, width)


def check_image(encoded: bytes, key: str) -> None:
    """Raise PrunebenchError unless the bytes begin as an image of a bearable size; no pixel is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow warns of is refused right here
            with Image.open(io.BytesIO(encoded)) as opened:
                size = opened.size
    except Image.DecompressionBombError as error:
        raise PrunebenchError(f"{key}: the image is too large: {error}; make it smaller or crop it") from None
    except Exception as error:
        raise undecodable(key, encoded, error) from None
    with naming(key):
        check_size(*size)


def undecodable(key: str, encoded: bytes, error: Exception) -> PrunebenchError:
    reason = "its format is not known" if isinstance(error, UnidentifiedImageError) else str(error)
    return PrunebenchError(
        f"{key}: the image does not decode ({len(encoded)} bytes): {reason}; expected a whole JPEG or PNG; replace the"
        " data file (`make mini` rebuilds the mini data)"
    )
