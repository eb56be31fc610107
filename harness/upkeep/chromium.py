"""A headless Chromium that selenium steers: for pictures, tests and timings of the report's page."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness.core.errors import PrunebenchError

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


def _programs() -> dict[str, str]:
    """The path of each program that a browser needs, empty where the machine lacks the program."""
    return {
        "chromium": next((path for name in BROWSERS if (path := shutil.which(name))), ""),
        "chromedriver": shutil.which("chromedriver") or "",
        "selenium": "selenium" if importlib.util.find_spec("selenium") else "",
    }


def lacking() -> list[str]:
    """The names of what a browser needs and this machine lacks."""
    return [name for name, path in _programs().items() if not path]


def require(what: str) -> None:
    """Raise PrunebenchError that begins with `what` and names everything that lacks."""
    if none := lacking():
        mends = ["`make venv` installs selenium"] if "selenium" in none else []
        mends += ["`apt-get install chromium chromium-driver` the browser"] if none != ["selenium"] else []
        raise PrunebenchError(
            f"{what}: expected chromium, chromedriver and selenium, found no {' and no '.join(none)}:"
            f" {', and '.join(mends)}"
        )


@contextmanager
def started(what: str, width: int, height: int, *flags: str) -> Iterator[Any]:
    """A selenium driver of a browser whose window has that size in pixels; the browser ends with the block.

    Raises PrunebenchError that begins with `what`, where a program lacks or does not start.
    """
    require(what)
    from selenium import webdriver
    from selenium.common.exceptions import WebDriverException

    programs, options = _programs(), webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--window-size={width},{height}", *flags):
        options.add_argument(flag)
    options.binary_location = programs["chromium"]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    try:
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs["chromedriver"]))
    except WebDriverException as error:
        why = (error.msg or type(error).__name__).splitlines()[0]
        pair = f"{programs['chromium']} and {programs['chromedriver']}"
        raise PrunebenchError(
            f"{what}: expected {pair} to start, found: {why}: install a pair of one version"
        ) from None
    try:
        yield driver
    finally:
        driver.quit()
