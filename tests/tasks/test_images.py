"""Images: odd ones load as PIL reads them, hostile ones are one line that names the sample, and memory is bounded."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from taskdata import GREY, IMAGE, changed, encoded, rows, write

from harness.core.errors import PrunebenchError
from harness.core.picture import LONGEST_SIDE, THINNEST, check_size
from tasks import lmms


def loaded(folder: Path, data: bytes | None, row: int = 3) -> lmms.LoadedTask:
    """POPE with this image in one row."""
    images = [{"bytes": data if i == row else GREY, "path": "a.png"} for i in range(6)]
    return lmms.load_task(
        "pope", write(folder, "pope", [changed(rows("pope"), "image", pa.array(images, IMAGE))]), None, 0
    )


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says it has this size; its pixels are not even there."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


SIZES = [
    (4000, 1),
    (1, 4000),
    (101, 1),
    (1, 101),
    (8192, 81),
    (8193, 8193),
    (8193, 4000),
    (300, 9000),
    (100_000, 1),
    (1, 100_000),
    (100_000, 1_000),
    (10_000, 10_000),
    (12_000, 12_000),
    (20_000, 20_000),
    (30_000, 30_000),
    (65_500, 65_500),
    (1_000_000, 1_000_000),
    (2_000_000_000, 1),
    (2_000_000_000, 2_000_000_000),
    (16_384, 16_384),
    (505, 5),
]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_size_that_memory_cannot_hold_is_named_before_anything_runs(width: int, height: int, tmp_path: Path) -> None:
    data = bomb(width, height)
    assert len(data) < 100
    with pytest.raises(PrunebenchError, match=r"^pope/000003: the image is too (large|thin): ") as caught:
        loaded(tmp_path, data)
    assert "\n" not in str(caught.value)
    assert "make it smaller or crop it" in str(caught.value)


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (100, 1), (640, 480), (8192, 82), (82, 8192), (7680, 4320)])
def test_sizes_of_real_data_are_read(size: tuple[int, int], tmp_path: Path) -> None:
    assert loaded(tmp_path, encoded(Image.new("L", size))).samples[3].load_image().size == size


@given(st.integers(0, 20_000), st.integers(0, 20_000))
def test_size_limits(width: int, height: int) -> None:
    fits = min(width, height) > 0 and max(width, height) <= min(LONGEST_SIDE, THINNEST * min(width, height))
    if fits:
        check_size(width, height)
    else:
        with pytest.raises(PrunebenchError, match=f"found {width} x {height}"):
            check_size(width, height)


PEAK = """
import resource, sys
from PIL import Image
from harness.models.load import locate_model
from harness.core.errors import PrunebenchError
pixels = locate_model("mini").prompter.pixels
pixels(Image.new("RGB", (640, 480)))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
before = peak()
pixels(Image.new("RGB", (8192, 82)))
print("MiB", peak() - before)
for size in [(4000, 1), (1, 100_000), (8193, 4000)]:
    try:
        pixels(Image.new("RGB", size))
    except PrunebenchError as error:
        print("refused", error)
"""


def test_the_thinnest_image_takes_bounded_memory() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    first, *refused = done.stdout.splitlines()
    assert float(first.removeprefix("MiB ")) < 300
    assert len(refused) == 3


# -------------------------------------------------------------------------------------------------- what is no image

BROKEN: dict[str, bytes] = {
    "nothing": b"",
    "text": b"not an image",
    "html": b"<!DOCTYPE html><html>404</html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "zeros": bytes(5000),
    "png magic": b"\x89PNG\r\n\x1a\n",
    "png head": GREY[:30],
    "jpeg magic": b"\xff\xd8\xff\xe0",
    "gif magic": b"GIF89a",
    "webp magic": b"RIFF\x00\x00\x00\x00WEBP",
    "tiff magic": b"II*\x00\x08\x00\x00\x00",
    "bmp magic": b"BM" + bytes(20),
    "wrong way round": GREY[::-1],
    "empty png": bomb(0, 5),
    "negative png": bomb(2**31 + 5, 5),
    "pdf": b"%PDF-1.4\n1 0 obj\n",
    "zip": b"PK\x03\x04" + bytes(30),
    "parquet": b"PAR1" + bytes(30) + b"PAR1",
    "git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
    "one byte": b"\x00",
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_image_names_its_sample_before_anything_runs(what: str, tmp_path: Path) -> None:
    with pytest.raises(PrunebenchError, match=r"^pope/000003: the image ") as caught:
        loaded(tmp_path, BROKEN[what])
    assert "\n" not in str(caught.value)


def test_a_row_without_an_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrunebenchError, match="pope/000003, column image: expected an image embedded in the parquet"):
        loaded(tmp_path, None)


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))


@settings(max_examples=40, deadline=None)
@given(cut=st.floats(0.0, 1.0), kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]))
def test_part_of_an_image_is_never_answered(cut: float, kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = encoded(PHOTO, kind)
    try:
        sample = loaded(tmp_path_factory.mktemp("d"), whole[: int(cut * len(whole) * 0.9)]).samples[3]
        sample.load_image()
    except PrunebenchError as error:
        message = str(error)
    assert message.startswith("pope/000003")
    assert "\n" not in message


# --------------------------------------------------------------------------------------------------------- odd images


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(PHOTO, "JPEG", exif=exif)


def see_through() -> bytes:
    return encoded(PHOTO.quantize(16), "PNG", transparency=bytes(range(0, 256, 16)))


def film() -> bytes:
    return encoded(
        PHOTO.quantize(32), "GIF", save_all=True, append_images=[Image.new("RGB", (80, 60), "red").quantize()]
    )


ODD: dict[str, Callable[[], bytes]] = {
    "cmyk": lambda: encoded(PHOTO.convert("CMYK"), "JPEG"),
    "grey": lambda: encoded(PHOTO.convert("L"), "JPEG"),
    "black and white": lambda: encoded(PHOTO.convert("1"), "PNG"),
    "palette": lambda: encoded(PHOTO.quantize(8), "PNG"),
    "palette with transparency": see_through,
    "grey with alpha": lambda: encoded(PHOTO.convert("LA"), "PNG"),
    "alpha": lambda: encoded(PHOTO.convert("RGBA"), "PNG"),
    "16 bits": lambda: encoded(Image.fromarray(np.arange(4800, dtype=np.uint16).reshape(60, 80)), "PNG"),
    "32 bits": lambda: encoded(PHOTO.convert("I"), "TIFF"),
    "floats": lambda: encoded(PHOTO.convert("F"), "TIFF"),
    "moving gif": film,
    "webp": lambda: encoded(PHOTO, "WEBP", lossless=True),
    "bmp": lambda: encoded(PHOTO, "BMP"),
    "tiff": lambda: encoded(PHOTO, "TIFF"),
    "progressive": lambda: encoded(PHOTO, "JPEG", progressive=True),
    "interlaced": lambda: encoded(PHOTO, "PPM"),
    "one pixel": lambda: encoded(PHOTO.crop((0, 0, 1, 1))),
    **{f"exif {i}": (lambda i=i: turned(i)) for i in range(0, 10)},
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_images_are_what_pil_makes_of_them(odd: str, tmp_path: Path) -> None:
    """Turned as EXIF says, the first frame, and RGB: as lmms-eval gets them from `datasets`."""
    data = ODD[odd]()
    image = loaded(tmp_path, data).samples[3].load_image()
    with Image.open(io.BytesIO(data)) as opened:
        expected = ImageOps.exif_transpose(opened).convert("RGB")
    assert image.mode == "RGB"
    assert image.size == expected.size
    assert image.tobytes() == expected.tobytes()
    if odd == "moving gif":
        assert len({*image.getdata()}) > 1, "the second frame is all red"
    if odd in ("exif 5", "exif 6", "exif 7", "exif 8"):
        assert image.size == (60, 80)
