"""A real, headless Chromium for the tests of the report's page.

Needs Chromium and its driver (Debian: chromium, chromium-driver) and selenium; `BROWSED` skips a module with the reason
where one is missing. Screenshots go to the folder in PRUNEBENCH_SCREENSHOTS, otherwise nowhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.upkeep import chromium

#: the marks of a module of browser tests
BROWSED = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(chromium.lacking()), reason=f"not installed: {', '.join(chromium.lacking())}"),
]
#: width and height of a desk's window and of a phone's, in CSS pixels
SIZES = {"desk": (1440, 900), "phone": (390, 844)}


class Browser:
    """A page in Chromium, with shorthands for what the tests do."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, path: Path, samples: bool = True) -> dict[str, float]:
        """Load from disk; milliseconds from the start of navigation to the drawn table, and to the samples being
        there, where the page has some."""
        self.driver.get(f"file://{path}")
        there = " && document.querySelector('#ex-list li')" if samples else ""
        self.wait(f"return document.documentElement.dataset.ready{there}")
        drawn = self.js("return Number(document.documentElement.dataset.ready)")
        loaded = self.js("return performance.timing.loadEventEnd - performance.timing.navigationStart")
        return {"drawn": drawn, "loaded": loaded, "samples": self.js("return performance.now()")}

    def js(self, code: str, *args: Any) -> Any:
        return self.driver.execute_script(code, *args)

    def wait(self, code: str, seconds: float = 20.0) -> Any:
        end = time.monotonic() + seconds
        while not (found := self.js(code)):
            assert time.monotonic() < end, f"never became true: {code}"
            time.sleep(0.03)
        return found

    def find(self, css: str) -> Any:
        return self.driver.find_element("css selector", css)

    def texts(self, css: str) -> list[str]:
        return list(self.js("return [...document.querySelectorAll(arguments[0])].map((n) => n.textContent)", css))

    def choose(self, css: str, text: str) -> None:
        """Pick the option with that text, as a user's choice would."""
        found = self.js(
            "const s = document.querySelector(arguments[0]), o = [...s.options].find((o) => o.text === arguments[1]);"
            "if (!o) return [...s.options].map((o) => o.text);"
            "s.value = o.value; s.dispatchEvent(new Event('change', {bubbles: true})); return null;",
            css,
            text,
        )
        assert found is None, f"{css} has no option {text!r}, only {found}"

    def layer(self, layer: int) -> None:
        self.js(
            "const r = document.getElementById('ex-layer'); r.value = arguments[0]; r.dispatchEvent(new"
            " Event('input'))",
            layer,
        )

    def scheme(self, name: str) -> None:
        features = [
            {"name": "prefers-color-scheme", "value": name},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def shot(self, name: str) -> None:
        folder = os.environ.get("PRUNEBENCH_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def size(self, width: int, height: int) -> None:
        """The viewport in CSS pixels; a window of Chromium cannot be as narrow as a phone."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def own_size(self) -> None:
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def downloads(self, folder: Path) -> None:
        """Save what the page offers into `folder`."""
        self.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})

    def saved(self, folder: Path, suffix: str, seconds: float = 20.0) -> Path:
        """The one file with that suffix that a download leaves in `folder`."""
        end = time.monotonic() + seconds
        while not (found := list(folder.glob(f"*{suffix}"))):
            assert time.monotonic() < end, f"no {suffix} in {folder}"
            time.sleep(0.05)
        assert len(found) == 1, found
        return found[0]


@contextmanager
def opened() -> Iterator[Browser]:
    """A browser that ends with the block."""
    with chromium.started("tests of the page", 1360, 1000) as driver:
        yield Browser(driver)
