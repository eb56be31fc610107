"""`prunebench dev screenshots`: sizes, limits, and what is said where a program lacks; slow tests open a browser."""

from __future__ import annotations

import importlib.util
import io
import random
import re
import shlex
import shutil
from pathlib import Path

import pytest
from helpers import run
from PIL import Image

from harness.core.errors import PrunebenchError
from harness.core.paths import TOP
from harness.report import page as report
from harness.upkeep import screenshots
from harness.upkeep.chromium import lacking
from harness.upkeep.screenshots import LIMIT, REGIONS, SHOWN, WIDTH, Region, packed

REFERENCE = TOP / "results" / "reference"
needs_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(lacking()), reason=f"not installed: {', '.join(lacking())}"),
]


def noise(width: int, height: int) -> Image.Image:
    return Image.frombytes("RGB", (width, height), random.Random(0).randbytes(3 * width * height))


def test_a_picture_fits_the_limit_or_is_refused() -> None:
    image = noise(144, 86)
    content = packed(image, "x.png", ((144, 64), (72, 64), (72, 16)), limit=5_000)
    assert len(content) <= 5_000
    assert Image.open(io.BytesIO(content)).size == (72, 43)
    assert Image.open(io.BytesIO(packed(image, "x.png", ((144, 64),)))).size == (144, 86)
    with pytest.raises(PrunebenchError, match=r"x\.png: expected a picture of at most 100 bytes, found [\d,]+"):
        packed(image, "x.png", ((144, 64), (72, 16)), limit=100)


def test_small_bright_marks_keep_their_colours() -> None:
    image = Image.new("RGB", (400, 300), (252, 251, 248))
    image.paste(noise(200, 200).resize((300, 200), Image.Resampling.BICUBIC), (0, 0))
    for n, colour in enumerate(((43, 166, 64), (36, 82, 235), (250, 210, 30))):
        image.paste(colour, (320, 20 + 40 * n, 340, 40 + 40 * n))
    shown = Image.open(io.BytesIO(packed(image, "x.png"))).convert("RGB")
    for y in (30, 70, 110, 280):
        wanted, found = image.getpixel((330, y)), shown.getpixel((330, y))
        assert isinstance(wanted, tuple)
        assert isinstance(found, tuple)
        assert max(abs(a - b) for a, b in zip(wanted, found, strict=True)) <= 24, (y, wanted, found)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("chromium", "found no chromium: `apt-get install chromium chromium-driver` the browser"),
        ("chromedriver", "found no chromedriver: `apt-get install"),
        ("selenium", "found no selenium: `make venv` installs selenium"),
    ],
)
def test_what_lacks_is_named_before_anything_is_written(
    missing: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = {"chromium": "/bin/chromium", "chromedriver": "/bin/chromedriver", missing: None}
    monkeypatch.setattr(shutil, "which", there.get)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else object())
    code, out, err = run(capsys, monkeypatch, "dev", "screenshots", "--out", str(tmp_path / "new"))
    assert (code, out) == (2, "")
    assert said in err
    assert not (tmp_path / "new").exists()


def test_the_picture_of_the_readme_is_that_of_its_command() -> None:
    block = re.search(r"^make show (.*?)^```", (TOP / "README.md").read_text(), re.S | re.M)
    assert block is not None
    typed = dict(word.split("=", 1) for word in shlex.split(block[1].replace("\\\n", " ")))
    key, methods, budget, _ = SHOWN
    assert typed == {
        "SAMPLE": key,
        "METHOD": ",".join(methods),
        "BUDGET": budget,
        "RESULTS": "results/reference",
        "OUT": "docs/images/show.jpg",
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "page.html"
    return report.write(REFERENCE, file, screenshots.SAMPLES, say=lambda _: None)


class TestInABrowser:
    pytestmark = needs_browser

    def test_the_regions_fit_and_have_one_size(self, page: Path) -> None:
        first, second = screenshots.photographed(page), screenshots.photographed(page)
        assert first.keys() == second.keys() == {region.name for region in REGIONS}
        for region in REGIONS:
            shots = [Image.open(io.BytesIO(shot[region.name])) for shot in (first, second)]
            width, height = shots[0].size
            assert shots[1].size == (width, height)
            assert width <= WIDTH
            assert height == round(region.height * width / WIDTH)
            assert len(first[region.name]) <= LIMIT
            colours = shots[0].convert("RGB").getcolors()
            assert colours is not None
            assert len(colours) > 30, "the region is not empty"

    @pytest.mark.parametrize(
        ("region", "said"),
        [
            (Region("x.png", "nowhere", 100), "expected an element #nowhere on the page, found none"),
            (Region("x.png", "samples", 100, "return false"), "expected what sets up x.png on the page, found none"),
        ],
    )
    def test_a_page_without_the_region_is_named(self, region: Region, said: str, page: Path) -> None:
        with pytest.raises(PrunebenchError, match=said):
            screenshots.photographed(page, [region])

    def test_the_command_writes_the_regions_and_the_committed_pictures(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shots = {region.name: b"x" for region in REGIONS}
        monkeypatch.setattr(screenshots, "photographed", lambda file: shots)
        code, out, err = run(capsys, monkeypatch, "dev", "screenshots", "--out", str(tmp_path / "new"))
        assert code == 0, err
        drawn = ("show.jpg", "two-models-ranks.png", "two-models-tau.png")
        assert {file.name for file in (tmp_path / "new").iterdir()} == {*shots, *drawn}
        assert len(out.splitlines()) == 5
        for name in drawn:
            committed = Image.open(TOP / "docs" / "images" / name).convert("RGB")
            assert Image.open(tmp_path / "new" / name).convert("RGB").tobytes() == committed.tobytes(), name
