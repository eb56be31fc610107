"""The page's address in a real browser: what it holds, that it leads back, and that no fragment breaks the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from factories import answered, gauntlet
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
  versus: ["study", "budget", "a", "b"].map((n) => text(`vs-${n}`)), equal: ["study", "at"].map((n) => text(`eq-${n}`)),
  agreements: ["pair", "budget", "task"].map((n) => text(`ag-${n}`)),
  panels: ["line-A", "budget-A", "line-B", "budget-B"].map((n) => text(`ex-${n}`)),
  sample: document.querySelector("#ex-list [aria-selected=true] .mono")?.textContent ?? null,
  layer: document.getElementById("ex-layer")?.value ?? null,
  section: document.querySelector("#nav [aria-current]")?.hash ?? null,
};
"""


#: method and budget of two cells
PAIR = (("none", "none"), ("fastv", "64"))


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
    """Open the page as a link from elsewhere does, with no history before."""
    browser.driver.get("about:blank")
    # Chromium keeps 50 entries. From a full list it drops the oldest that no touch or key made: here the page's own.
    browser.driver.execute_cdp_cmd("Page.resetNavigationHistory", {})
    browser.driver.get(f"file://{page}{fragment}")
    settle(browser)


def settle(browser: Browser) -> None:
    browser.wait("return document.documentElement.dataset.ready && document.querySelector('#ex-list li')")
    # what an address asks for is drawn at once, and entries of the history follow a quarter of a second after a scroll
    browser.driver.execute_async_script("setTimeout(arguments[0], 500)")


def step_back(browser: Browser) -> None:
    """Go to the entry before this one. The browser's own button passes over entries that no touch or key made."""
    found = browser.driver.execute_cdp_cmd("Page.getNavigationHistory", {})
    before = found["entries"][found["currentIndex"] - 1]
    browser.driver.execute_cdp_cmd("Page.navigateToHistoryEntry", {"entryId": before["id"]})
    browser.wait(f"return location.href === {json.dumps(before['url'])}")


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
    browser.choose("#vs-budget", "32")
    browser.find("#vs-swap").click()
    browser.choose("#eq-at", "prefill FLOPs")
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
    assert differs == set(then) - {"model", "question", "agreements"}, "each part was changed"
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
    parts = ("x", "search", "rows", "layer", "sample", "panels", "points", "versus", "equal")
    for wanted in (third, second, first):  # five letters and three layers are one step each
        browser.driver.back()
        settle(browser)
        assert {name: seen(browser)[name] for name in parts} == {name: wanted[name] for name in parts}
    browser.driver.forward()
    settle(browser)
    assert seen(browser)["x"] == second["x"] == "Prefill GFLOPs"


def test_back_undoes_the_choices_of_the_comparisons(browser, two):
    """The page's own choice is the one of a fresh page, and not the one before the address was followed."""
    arrive(browser, two, "")
    steps = [seen(browser)]
    for css, text in (("#vs-budget", "32"), ("#vs-a", "fastv"), ("#vs-b", "visipruner"), ("#eq-at", "prefill FLOPs")):
        browser.choose(css, text)
        settle(browser)
        steps.append(seen(browser))
    assert steps[0]["versus"][1:] == ["64", "visipruner", "fastv"]
    assert steps[-1]["versus"][1:] == ["32", "fastv", "visipruner"]
    fragment = hash_of(browser)
    assert "versus-budget=32&versus-a=fastv&versus-b=visipruner&equal=prefill+FLOPs" in fragment
    for wanted in reversed(steps[:-1]):
        step_back(browser)
        settle(browser)
        now = seen(browser)
        assert [now["versus"], now["equal"]] == [wanted["versus"], wanted["equal"]]
    assert "versus" not in hash_of(browser)
    arrive(browser, two, fragment)
    assert seen(browser) == steps[-1]


def test_a_column_that_is_not_shown_is_in_no_link(browser, two):
    arrive(browser, two, "")
    browser.find("[data-sort=set-0]").click()
    settle(browser)
    assert "sort=task+gqa" in hash_of(browser)
    browser.driver.find_elements("css selector", "#lb-tasks input")[0].click()
    settle(browser)
    assert "sort" not in hash_of(browser)
    arrive(browser, two, hash_of(browser))
    assert not browser.find("#link-note").is_displayed()


def test_another_model_before_the_linked_samples_are_read_lacks_nothing(browser, two):
    arrive(browser, two, "")
    browser.js(
        "location.hash = '#samples&model=mini&set=pope&sample=pope%2F000001&layer=2';"
        "window.addEventListener('hashchange', () => { const s = document.getElementById('model'); s.value = '1';"
        " s.dispatchEvent(new Event('change', {bubbles: true})); }, {once: true})"
    )
    browser.wait("return document.getElementById('title').textContent.endsWith('other')")
    settle(browser)
    assert not browser.find("#link-note").is_displayed()
    assert "model=other" in hash_of(browser)


def test_a_category_may_be_called_all(browser, tmp_path):
    cells = [answered(tmp_path, m, b, [1.0] * 12, "mme", kinds=("all", "count")) for m, b in PAIR]
    (tmp_path / "page.html").write_text(report.fitting(cells, tmp_path, 12).html)
    arrive(browser, tmp_path / "page.html", "")
    browser.choose("#ex-category", "count")
    browser.js("const s = document.getElementById('ex-category'); s.value = '0'; s.dispatchEvent(new Event('change'))")
    browser.js("document.querySelector('#ex-list li').click()")
    settle(browser)
    assert "category=all" in hash_of(browser)
    assert len(browser.texts("#ex-list .mono")) == 6
    arrive(browser, tmp_path / "page.html", hash_of(browser))
    assert len(browser.texts("#ex-list .mono")) == 6


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
