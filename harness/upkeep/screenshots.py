"""The pictures in docs/images that commands make: `prunebench dev screenshots`.

Regions of the report's page are photographed by a headless Chromium that selenium steers. `show.jpg` and the figures of
docs/two-models.md are drawn from the same cells, without a browser.
"""

from __future__ import annotations

import base64
import io
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from harness.core.errors import PrunebenchError
from harness.report import page, show
from harness.store.files import write_atomic
from harness.upkeep.chromium import require, started
from harness.upkeep.readme import draw_two_models

#: pixels of CSS; a region is as wide as the window
WIDTH = 1440
#: bytes of a photographed region, at most
LIMIT = 60_000
#: tried in turn until a region fits the limit: its width in pixels at most, and the colours of its palette
SIZES = tuple((width, colours) for colours in (128, 96, 64) for width in (1440, 1320, 1200, 1080, 960))
#: samples per task in the page: the list of samples shows no more at once
SAMPLES = 12
#: seconds that a page may take until it is drawn
PATIENCE_S = 60.0
#: pictures that wait for a reader to scroll would move what stands below them as they come
LOADED = """
for (const image of document.images) image.loading = "eager";
return [...document.images].every((image) => image.complete);
"""
#: README's picture: its sample, methods, budget and model
SHOWN = ("textvqa/000010", ("visipruner", "fastv"), "64", "mini")


@dataclass(frozen=True)
class Region:
    """A part of the page: its file, the element at its upper edge, its height in pixels of CSS, and a script that
    sets the page up, which returns whether it could."""

    name: str
    element: str
    height: int
    script: str = "return true"


#: a layer behind the first selection, where the panels differ
LAYER = """
const layer = document.getElementById("ex-layer");
if (!layer) return false;
layer.value = Math.round(layer.max / 2);
layer.dispatchEvent(new Event("input", {bubbles: true}));
return true;
"""
REGIONS = (
    Region("page-leaderboard.png", "leaderboard", 720),
    Region("page-samples.png", "samples", 860, LAYER),
)


def screenshots(results: Path, folder: Path) -> list[Path]:
    """Write every picture of `folder` that a command makes, from the cells in `results`; returns the paths.

    Raises PrunebenchError where Chromium, its driver or selenium lack, before anything is written; where there are no
    cells; where a region of the page is not there or does not fit the limit.
    """
    require("screenshots")
    with tempfile.TemporaryDirectory() as kept:
        shots = photographed(page.write(results, Path(kept) / "page.html", SAMPLES, say=lambda _: None))
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in shots.items():
        write_atomic(folder / name, content)
    key, methods, budget, model = SHOWN
    shown, _ = show.write(results, key, methods, budget, model, out=folder / "show.jpg")
    return [*(folder / name for name in shots), shown, *draw_two_models(results, folder)]


def photographed(file: Path, regions: Sequence[Region] = REGIONS) -> dict[str, bytes]:
    """The regions of a page as PNGs, by their names. Raises as `screenshots`."""
    with opened(file) as window:
        return {region.name: packed(taken(window, region), region.name) for region in regions}


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A selenium driver of a headless Chromium that shows the file, drawn, in light colours and without motion."""
    flags = ("--hide-scrollbars", "--force-device-scale-factor=1", "--force-color-profile=srgb")
    with started("screenshots", WIDTH, 1000, *flags) as window:
        features = [
            {"name": "prefers-color-scheme", "value": "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        # what a window shows is less wide than the window
        metrics = {"width": WIDTH, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        window.get(file.as_uri())
        _wait(window, "return document.documentElement.dataset.ready && document.querySelector('#ex-list li')")
        _wait(window, LOADED)
        yield window


def _wait(window: Any, code: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not window.execute_script(code):
        if time.monotonic() > end:
            raise PrunebenchError(f"screenshots: the page was not drawn within {PATIENCE_S:g} s: run the command again")
        time.sleep(0.05)


def taken(window: Any, region: Region) -> Image.Image:
    """A region of the page: (`region.height`, `WIDTH`) pixels. Raises PrunebenchError where the page lacks the
    element."""
    code = (
        "const at = document.getElementById(arguments[0]); if (!at || !at.checkVisibility()) return null;"
        "window.scrollTo(0, 0); return at.getBoundingClientRect().top"  # what sticks to the window stays above
    )
    able = window.execute_script(region.script)
    top = window.execute_script(code, region.element)
    if top is None or not able:
        what = f"an element #{region.element}" if able else f"what sets up {region.name}"
        raise PrunebenchError(
            f"screenshots: expected {what} on the page, found none: change REGIONS in harness/upkeep/screenshots.py"
        )
    clip = {"x": 0, "y": top, "width": WIDTH, "height": region.height, "scale": 1}
    shot = window.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    return Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")


def packed(image: Image.Image, name: str, sizes: Sequence[tuple[int, int]] = SIZES, limit: int = LIMIT) -> bytes:
    """A PNG with a palette of at most `limit` bytes: the first of `sizes` that fits.

    Raises PrunebenchError where none does.
    """
    found = 0
    for widest, colours in sizes:
        width = min(widest, image.width)
        height = round(image.height * width / image.width)
        scaled = image if width == image.width else image.resize((width, height), Image.Resampling.LANCZOS)
        kept = io.BytesIO()
        # a palette of small bright marks as well, then moved to the nearest means: no colour is far from its own
        shown = scaled.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
        shown.save(kept, "PNG", optimize=True)
        found = kept.tell()
        if found <= limit:
            return kept.getvalue()
    raise PrunebenchError(
        f"{name}: expected a picture of at most {limit:,} bytes, found {found:,} at the smallest size: make the region"
        " lower in harness/upkeep/screenshots.py"
    )
