"""The page under axe-core's rules, on a desk's screen and a phone's, light and dark.

`.ci/axe FOLDER` fetches the rules; PRUNEBENCH_AXE names the folder. Without it these tests are skipped.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from factories import analysis, drawn, gauntlet
from report_browser import BROWSED, SIZES, Browser

from harness.report import page as report

RULES = Path(os.environ.get("PRUNEBENCH_AXE", "")) / "axe.min.js"
REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"

pytestmark = [
    *BROWSED,
    pytest.mark.skipif(
        not os.environ.get("PRUNEBENCH_AXE") or not RULES.is_file(),
        reason="PRUNEBENCH_AXE names no folder with axe.min.js; `.ci/axe FOLDER` fetches it",
    ),
]

RUN = """
const done = arguments[0];
axe.run(document, { resultTypes: ["violations"] }).then(
  (found) => done(found.violations.map((v) => [v.impact, v.id, v.nodes.slice(0, 3).map((n) => n.html)])),
  (error) => done([["critical", String(error), []]]));
"""


def broken(browser: Browser) -> list[Any]:
    """The rules that the page breaks now."""
    if not browser.js("return typeof axe !== 'undefined'"):
        browser.js(RULES.read_text(encoding="utf-8"))
    browser.driver.set_script_timeout(120)
    return list(browser.driver.execute_async_script(RUN))


def serious(browser: Browser) -> list[Any]:
    """Those that keep somebody from reading or using the page."""
    return [rule for rule in broken(browser) if rule[0] in ("serious", "critical")]


@pytest.fixture(scope="module")
def committed(tmp_path_factory) -> Path:
    """The page of the committed results."""
    return report.write(REFERENCE, tmp_path_factory.mktemp("committed") / "page.html", 20, say=lambda _: None)


def show_all(browser: Browser) -> None:
    """Open what a reader can open."""
    browser.js("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    browser.js("document.querySelectorAll('[data-commands]')[2].click()")
    browser.js("document.querySelectorAll('#ex-list li')[3]?.click()")


def whole_width(browser: Browser) -> bool:
    return bool(browser.js("return document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


def test_the_rules_find_a_fault(page):
    page.js("document.querySelector('#lb-search').labels[0].remove()")
    assert [rule[1] for rule in serious(page)] == ["label"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_committed_page_breaks_no_rule(chromium, committed, size, scheme):
    chromium.scheme(scheme)
    chromium.size(*SIZES[size])
    try:
        chromium.driver.get("about:blank")
        chromium.open(committed)
        assert serious(chromium) == []
        show_all(chromium)
        assert serious(chromium) == []
        assert whole_width(chromium), "the body scrolls sideways"
        # by an address, with its note
        chromium.driver.get("about:blank")
        chromium.driver.get(f"file://{committed}#samples&model=mini-qwen&a=dart&b=nobody&layer=2")
        chromium.wait("return document.querySelector('#ex-list li') && !document.getElementById('link-note').hidden")
        show_all(chromium)
        assert serious(chromium) == []
        assert whole_width(chromium), "the body scrolls sideways"
        chromium.shot(f"axe-{size}-{scheme}")
        assert chromium.errors() == []
    finally:
        chromium.own_size()


@pytest.mark.parametrize("size", SIZES)
def test_pages_that_lack_something_break_no_rule(chromium, tmp_path, size):
    """Without samples, without an unpruned cell, without a figure's point, with an analysis of other weights."""
    chromium.scheme("light")
    chromium.size(*SIZES[size])
    gauntlet(tmp_path / "bare", ("fastv",), (64,), ("pope",), 6)
    drawn(tmp_path / "alone", "fastv", "64", "pope", 6, recorded=False)
    analysis(tmp_path / "alone", fingerprint="w9")
    try:
        for name, samples in (("bare", 0), ("alone", 6)):
            path = report.write(tmp_path / name, samples=samples, say=lambda _: None)
            chromium.open(path, samples=samples > 0)
            chromium.wait("return document.getElementById('ex-count').textContent")
            chromium.js("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
            chromium.js("document.querySelectorAll('#legend button').forEach((b) => b.click())")
            assert serious(chromium) == [], name
            assert whole_width(chromium), name
        assert chromium.errors() == []
    finally:
        chromium.own_size()
