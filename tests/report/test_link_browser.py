"""The page's address in a real browser: what it holds, that it leads back, and that no fragment breaks the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from factories import gauntlet
from report_browser import BROWSED, Browser

from harness.report import page as report

pytestmark = BROWSED

# what a reader sees of the state that an address holds
SEEN = """
const text = (id) => document.getElementById(id)?.selectedOptions[0]?.text ?? null;
const of = (css, what) => [...document.querySelectorAll(css)].map(what);
return {
  model: text("model"), search: document.getElementById("lb-search").value, budget: text("lb-budget"),
  tasks: of("#lb-tasks input", (n) => n.checked), rows: of("#lb tbody th", (n) => n.textContent),
  sort: of("#lb thead th", (n) => n.getAttribute("aria-sort")),
  y: text("fig-y"), x: text("fig-x"), hidden: of("#legend [aria-pressed=false]", (n) => n.textContent),
  boxes: ["fig-intervals", "fig-pareto", "ex-whole"].map((id) => document.getElementById(id)?.checked),
  points: of("#plot .point", (n) => n.dataset.point),
  explorer: ["task", "category", "right", "flip", "flip-budget", "flip-way"].map((n) => text(`ex-${n}`)),
  question: document.getElementById("ex-search").value,
  panels: ["line-A", "budget-A", "line-B", "budget-B"].map((n) => text(`ex-${n}`)),
  sample: document.querySelector("#ex-list [aria-selected=true] .mono")?.textContent ?? null,
  layer: document.getElementById("ex-layer")?.value ?? null,
  section: document.querySelector("#nav [aria-current]")?.hash ?? null,
};
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """A page of two models."""
    root = tmp_path_factory.mktemp("two")
    gauntlet(root, ("fastv", "visipruner"), (64, 32), ("gqa", "pope"), 24)
    other: dict[str, Any] = {"model": "other", "model_fingerprint": "w2", "request": {"data": "mini"}}
    gauntlet(root, ("uniform", "random"), (64, 16), ("pope",), 12, **other)
    report.write(root, say=lambda _: None)
    return root / "report" / "index.html"


@pytest.fixture
def browser(chromium) -> Iterator[Browser]:
    chromium.scheme("light")
    chromium.own_size()
    yield chromium
    assert chromium.errors() == []


def arrive(browser: Browser, page: Path, fragment: str) -> None:
    """Open the page as a link from elsewhere does."""
    browser.driver.get("about:blank")
    browser.driver.get(f"file://{page}{fragment}")
    settle(browser)


def settle(browser: Browser) -> None:
    browser.wait("return document.documentElement.dataset.ready && document.querySelector('#ex-list li')")
    # what an address asks for is drawn at once, and entries of the history follow a quarter of a second after a scroll
    browser.driver.execute_async_script("setTimeout(arguments[0], 500)")


def seen(browser: Browser) -> dict[str, Any]:
    return dict(browser.js(SEEN))


def hash_of(browser: Browser) -> str:
    return str(browser.js("return location.hash"))


def arrange(browser: Browser) -> None:
    """Change everything that an address holds, as a reader would."""
    browser.find("#lb-search").send_keys("v")
    browser.choose("#lb-budget", "64")
    browser.driver.find_elements("css selector", "#lb-tasks input")[0].click()
    browser.find("[data-sort=set-1]").click()
    browser.find("[data-sort=set-1]").click()
    browser.choose("#fig-y", "pope: pope_accuracy")
    browser.choose("#fig-x", "KV cache, MiB")
    browser.js("[...document.querySelectorAll('#legend button')].find((b) => b.textContent === 'fastv').click()")
    browser.find("#fig-pareto").click()
    browser.choose("#ex-task", "pope (24 of 24)")
    browser.wait("return document.querySelector('#ex-list .mono')?.textContent.startsWith('pope')")
    browser.choose("#ex-line-A", "fastv")
    browser.choose("#ex-budget-A", "32")
    browser.choose("#ex-line-B", "none")
    browser.choose("#ex-flip", "fastv")
    browser.js("document.querySelectorAll('#ex-list li')[1].click()")
    browser.layer(3)
    browser.js("document.getElementById('ex-whole').click()")
    browser.js("document.querySelector(`#nav a[href='#samples']`).click()")
    settle(browser)


def test_an_address_leads_back_to_everything(browser, two):
    arrive(browser, two, "")
    fresh = seen(browser)
    arrange(browser)
    then, fragment = seen(browser), hash_of(browser)
    assert then["layer"] == "3"
    assert then["section"] == "#samples"
    differs = {name for name in then if then[name] != fresh[name]}
    assert differs == set(then) - {"model", "question"}, "each part was changed"
    # by name, and not by a place in a list
    for part in ("model=mini", "task=pope", "y=pope", "hide=fastv", "a=fastv", "a-budget=32", "b=none", "sample=pope"):
        assert part in fragment, part
    arrive(browser, two, fragment)
    assert seen(browser) == then
    assert not browser.find("#link-note").is_displayed()
    browser.driver.refresh()
    settle(browser)
    assert seen(browser) == then
    assert hash_of(browser) == fragment
    # the section is where the reader looks
    top = browser.js("return document.getElementById('samples-title').getBoundingClientRect().top")
    assert 0 < top < 200
    browser.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"]})
    browser.find("#copy-link").click()
    browser.wait("return document.getElementById('toast').textContent.startsWith('Copied the link')")
    read = "const done = arguments[0]; navigator.clipboard.readText().then(done, (e) => done(String(e)))"
    assert browser.driver.execute_async_script(read) == f"file://{two}{fragment}"


def test_another_model_by_its_name(browser, two):
    arrive(browser, two, "#figure&model=other&hide=random")
    now = seen(browser)
    assert (now["model"], now["section"], now["hidden"]) == ("other", "#figure", ["random"])
    assert set(now["rows"]) == {"none", "uniform", "random"}
    arrive(browser, two, "#leaderboard")
    assert seen(browser)["section"] == "#leaderboard"
    browser.choose("#model", "other")
    settle(browser)
    assert "model=other" in hash_of(browser)
    browser.driver.back()
    browser.wait("return document.getElementById('model').value === '0'")
    assert set(seen(browser)["rows"]) == {"none", "fastv", "visipruner"}


def test_back_and_forward_undo_and_redo(browser, two):
    arrive(browser, two, "")
    first = seen(browser)
    browser.choose("#fig-x", "Prefill GFLOPs")
    settle(browser)
    second = seen(browser)
    browser.find("#lb-search").send_keys("fastv")
    settle(browser)
    third = seen(browser)
    browser.layer(1)
    browser.layer(2)
    browser.layer(1)
    browser.js("document.getElementById('ex-layer').dispatchEvent(new Event('change', {bubbles: true}))")
    settle(browser)
    assert seen(browser)["layer"] == "1"
    parts = ("x", "search", "rows", "layer", "sample", "panels", "points")
    for wanted in (third, second, first):  # five letters and three layers are one step each
        browser.driver.back()
        settle(browser)
        assert {name: seen(browser)[name] for name in parts} == {name: wanted[name] for name in parts}
    browser.driver.forward()
    settle(browser)
    assert seen(browser)["x"] == second["x"] == "Prefill GFLOPs"


def test_names_that_the_page_lacks_are_said(browser, two):
    lacking = {
        "model": "gone",
        "budget": "7",
        "sort": "task vqav2",
        "y": "vqav2",
        "x": "dollars",
        "hide": "no-such",
        "set": "vqav2",
        "a": "lost-method",
        "sample": "vqav2/000001",
        "layer": "99",
        "flipped": "nobody",
        "colour": "red",
    }
    arrive(browser, two, "#nowhere&" + "&".join(f"{name}={quote(value)}" for name, value in lacking.items()))
    assert browser.find("#link-note").is_displayed()
    said = browser.texts("#link-text")[0]
    for name in ("nowhere", "gone", "7"):
        assert f"“{name}”" in said
    assert "and 7 more" in said
    plain = seen(browser)
    # the note does not cover what the link leads to
    arrive(browser, two, "#leaderboard&y=vqav2")
    covered = browser.js(
        "return document.getElementById('leaderboard-title').getBoundingClientRect().top <"
        " document.getElementById('top').getBoundingClientRect().bottom"
    )
    assert not covered
    browser.find("#link-close").click()
    assert not browser.find("#link-note").is_displayed()
    arrive(browser, two, "")
    fresh = seen(browser)
    assert {n: plain[n] for n in plain if n != "section"} == {n: fresh[n] for n in fresh if n != "section"}
    # one at a time, each is named
    for name, value in lacking.items():
        arrive(browser, two, f"#samples&{name}={quote(value)}")
        said = browser.texts("#link-text")[0]
        assert f"“{name if name == 'colour' else value}”" in said, name
        assert "more" not in said
    # a method that was not measured at a budget
    arrive(browser, two, "#samples&model=other&a=uniform&a-budget=none")
    assert "“uniform at none”" in browser.texts("#link-text")[0]


EVIL = "<img src=x onerror=window.hacked=1>"
HOSTILE_FRAGMENTS = [
    f"#{EVIL}",
    f"#{quote(EVIL)}&model={quote(EVIL)}&a={quote(EVIL)}",
    f"#samples&sample={quote(EVIL)}&layer=-1&a-seed={quote(EVIL)}",
    "#samples&layer=1e3&layer=0x2&task=&task=&hide=__proto__&model=constructor",
    "#%E0%A4%A&model=%&y=%ff&sort=%00",
    "#&&&===&=&",
    "#javascript:window.hacked=1",
    "#leaderboard&method=" + "x" * 20_000,
    "#" + "&".join(f"n{i}={i}" for i in range(2_000)),
    "#__proto__&__proto__=1&toString=2&sort=toString&y=__proto__",
    '#"]&hide="],*',
]


@pytest.mark.parametrize("fragment", HOSTILE_FRAGMENTS, ids=range(len(HOSTILE_FRAGMENTS)))
def test_hostile_fragments_are_text_only(browser, two, fragment):
    arrive(browser, two, fragment)
    assert browser.js("return window.hacked === undefined && ({}).polluted === undefined")
    assert browser.js("return document.querySelectorAll('#top img').length") == 0
    assert browser.texts("#ex-question")[0]
    assert browser.js("return document.documentElement.scrollWidth <= innerWidth")
    # the page goes on working
    browser.choose("#fig-x", "Prefill GFLOPs")
    browser.js("document.querySelector('#ex-list li').click()")
    settle(browser)
    assert "x=gflops" in hash_of(browser)


def test_an_address_typed_into_the_open_page_is_followed(browser, two):
    arrive(browser, two, "")
    browser.js("location.hash = '#figure&x=gflops&hide=fastv'")
    settle(browser)
    now = seen(browser)
    assert (now["x"], now["hidden"], now["section"]) == ("Prefill GFLOPs", ["fastv"], "#figure")


def test_links_of_the_header_keep_the_state(browser, two):
    arrive(browser, two, "#leaderboard&method=fastv")
    browser.js("document.querySelector(`#nav a[href='#samples']`).click()")
    settle(browser)
    assert hash_of(browser).startswith("#samples&")
    assert seen(browser)["search"] == "fastv"
    browser.js("document.getElementById('skip').click()")
    settle(browser)
    assert seen(browser)["search"] == "fastv"
    assert browser.js("return document.activeElement.id") == "main"
