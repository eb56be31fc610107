"""The page's shell in a real browser: how it opens, its header, its tables under the keyboard, copies, downloads, and
what it does not offer.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from factories import N_VISUAL, drawn, gauntlet
from PIL import Image
from report_browser import BROWSED, SIZES, Browser

from harness.core import keeps
from harness.report import page as report
from harness.store.sealed import SealedCell
from harness.store.store import Store

pytestmark = BROWSED

CHOSEN = "return document.querySelector('#ex-list [aria-selected=true] .mono')?.textContent"
LAYER = "return Number(document.getElementById('ex-layer').value)"


@pytest.fixture(params=SIZES)
def sized(request, page) -> Browser:
    page.size(*SIZES[request.param])
    page.js("scrollTo(0, 0)")
    return page


def of(root: Path, task: str, method: str, budget: str = "64") -> SealedCell:
    return next(s for s in Store(root).cells() if (s.cell.task, s.cell.method, s.cell.budget) == (task, method, budget))


def differing(a: SealedCell, b: SealedCell) -> list[str]:
    """Keys of the samples at which exactly one of the two is right."""
    one, other = (s.samples().set_index("key")["score"] >= 0.5 for s in (a, b))
    return list(one.index[one != other])


def last_layer(key: str, *sealed: SealedCell) -> int:
    """The last layer at which one of the cells changes the sample's tokens and leaves some."""
    found = [keeps.decode(s.samples().set_index("key").loc[key]["keeps"], N_VISUAL) for s in sealed]
    return max(stage.layer for stages in found for stage in stages if int(stage.keep.sum()) + stage.added)


def test_opens_where_the_panels_differ_at_the_last_change(page, big):
    opens_late = 0
    for task in ("mme", "pope", "textvqa", "gqa"):
        page.choose("#ex-task", f"{task} (100 of 100)")
        page.wait(f"return document.querySelector('#ex-list .mono')?.textContent.startsWith('{task}')")
        first, second = of(big, task, "visipruner"), of(big, task, "fastv")
        wanted = differing(first, second)
        opens_late += wanted[0] != first.samples()["key"].iloc[0]
        assert page.js(CHOSEN) == wanted[0]
    assert opens_late, "the first sample alone would prove nothing"
    assert page.js(LAYER) == last_layer(wanted[0], first, second) > 0
    assert "0 of 576" not in "".join(page.texts(".kept-line"))
    # another method, and another filter, choose anew
    page.choose("#ex-line-B", "random")
    assert page.js(CHOSEN) == differing(first, of(big, "gqa", "random"))[0]
    page.choose("#ex-line-B", "fastv")
    page.choose("#ex-right", "unpruned wrong")
    base = of(big, "gqa", "none", "none").samples().set_index("key")["score"]
    assert page.js(CHOSEN) == next(key for key in wanted if base[key] < 0.5)
    page.choose("#ex-right", "all")


def test_the_readers_sample_and_layer_stay(page, big):
    page.js("document.querySelectorAll('#ex-list li')[41].click()")
    chosen = page.js(CHOSEN)
    both = of(big, "gqa", "visipruner"), of(big, "gqa", "fastv")
    assert page.js(LAYER) == last_layer(chosen, *both), "each sample shows what was kept in the end"
    page.choose("#ex-line-B", "uniform")
    assert page.js(CHOSEN) == chosen
    page.js("document.querySelector('.matrix button[aria-label^=\"sparsevlm at 32\"]').click()")
    assert page.js(CHOSEN) == chosen
    assert page.js("return document.activeElement.dataset.cell") is not None, "the focus stays in the matrix"
    page.layer(1)
    page.js("document.querySelectorAll('#ex-list li')[42].click()")
    assert page.js(LAYER) == 1, "a layer that the reader chose stays for the next sample"
    page.find("#ex-last").click()
    assert page.js(LAYER) > 1


def test_panels_without_a_difference_open_at_the_first_sample(chromium, tmp_path):
    drawn(tmp_path, "none", "none", "pope", 6)
    report.write(tmp_path, say=lambda _: None)
    chromium.open(tmp_path / "report" / "index.html")
    assert chromium.js(CHOSEN) == chromium.texts("#ex-list .mono")[0]
    assert chromium.js(LAYER) == 0
    assert chromium.errors() == []


def test_header_stays_and_marks_the_section_in_view(sized):
    names = ["leaderboard", "figure", "requests", "samples", "analysis"]
    shown = "return [...document.querySelectorAll('#nav a')].filter((a) => !a.hidden).map((a) => a.hash.slice(1))"
    assert [name for name in sized.js(shown) if name in names] == names
    assert "follow-ups" not in sized.js(shown), "a section that is not there has no link"
    for name in [*names, "figure"]:
        sized.js("document.querySelector(`#nav a[href='#${arguments[0]}']`).click()", name)
        sized.wait(
            "const t = document.getElementById(arguments[0] + '-title').getBoundingClientRect(), h ="
            " document.getElementById('top').getBoundingClientRect(); return h.top === 0 && t.top >= h.bottom &&"
            " t.bottom <= innerHeight".replace("arguments[0]", f"'{name}'")
        )
        assert sized.js("return [...document.querySelectorAll('#nav [aria-current]')].map((a) => a.hash)") == [
            f"#{name}"
        ]
        inside = sized.js(
            "const n = document.getElementById('nav').getBoundingClientRect(), a = document.querySelector('#nav"
            " [aria-current]').getBoundingClientRect(); return a.left >= n.left - 1 && a.right <= n.right + 1"
        )
        assert inside, f"the link of {name} is in sight"
    assert sized.js("return document.getElementById('top').offsetHeight") <= 60
    # what gets the focus comes out from below the header
    sized.js("document.getElementById('ex-search').scrollIntoView({block: 'end'}); scrollBy(0, 3000)")
    sized.js("document.getElementById('ex-task').focus()")
    covered = (
        "return document.getElementById('ex-task').getBoundingClientRect().top <"
        " document.getElementById('top').getBoundingClientRect().bottom"
    )
    assert not sized.js(covered)
    # and by scrolling alone
    sized.js("scrollTo(0, 0)")
    sized.wait("return document.querySelector('#nav [aria-current]')?.hash !== '#figure'")


def test_head_row_and_method_column_stay_in_the_table(sized):
    sized.js("const b = document.getElementById('lb-scroll'); b.scrollTop = 300; b.scrollLeft = 120;")
    at = sized.js(
        "const b = document.getElementById('lb-scroll').getBoundingClientRect(), r = document.querySelectorAll('#lb"
        " tbody tr')[12].cells[0].getBoundingClientRect(), h = document.querySelectorAll('#lb thead"
        " th')[3].getBoundingClientRect(); return [r.left - b.left, h.top - b.top,"
        " document.getElementById('lb-scroll').scrollTop]"
    )
    assert at[2] > 0
    assert abs(at[0]) <= 2
    assert abs(at[1]) <= 2
    # a cell that gets the focus is not below them
    sized.js("document.querySelector('[data-sort=average]').focus()")
    from selenium.webdriver.common.keys import Keys

    for key in [Keys.ARROW_DOWN] * 9 + [Keys.ARROW_UP] * 8 + [Keys.ARROW_LEFT] * 4:
        sized.driver.switch_to.active_element.send_keys(key)
        clear = sized.js(
            "const c = document.activeElement.getBoundingClientRect(), k ="
            " document.querySelector('#lb thead th').getBoundingClientRect(), at ="
            " document.activeElement.closest('td, th'); return [`${c.left} ${c.top}`, at.tagName === 'TH' || (c.top >="
            " k.bottom - 1 && c.left >= k.right - 1), c.top >= 0 && c.bottom <= innerHeight + 1]"
        )
        assert clear[1], clear
        assert clear[2], clear


STOPS = """
const stops = (root) => [...root.querySelectorAll("*")].filter((n) => n.tabIndex >= 0 && n.checkVisibility()).length;
return [...document.querySelectorAll(arguments[0])].map(stops);
"""


def test_tables_and_legend_are_one_stop_of_the_tab_key(page):
    from selenium.webdriver.common.keys import Keys

    for css in ("#lb", ".matrix", "#legend"):
        assert page.js(STOPS, css) == [1], css
    assert max(page.js(STOPS, "main tr")) <= 1
    assert page.js("return document.querySelector('#lb').getAttribute('role')") == "grid"
    page.js("document.querySelector('#lb [tabindex=\"0\"]').focus()")
    press = lambda *keys: [page.driver.switch_to.active_element.send_keys(key) for key in keys]  # noqa: E731
    press(Keys.ARROW_DOWN, Keys.END)
    assert page.js("return document.activeElement.dataset.commands") is not None
    assert page.js("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    press(Keys.ENTER)
    assert page.js("return document.activeElement.getAttribute('aria-expanded')") == "true"
    assert len(page.texts("#lb tr.commands")) == 4
    assert max(page.js(STOPS, "main tr")) <= 1
    press(Keys.ARROW_DOWN)
    assert page.js("return document.activeElement.className") == "copy"
    press(Keys.ARROW_UP, Keys.ENTER)
    assert page.texts("#lb tr.commands") == []
    press(Keys.CONTROL + Keys.HOME)
    assert page.js("return document.activeElement.dataset.sort") == "method"
    page.js("document.querySelector('#legend [tabindex=\"0\"]').focus()")
    press(Keys.END)
    assert page.js("return document.activeElement === document.querySelector('#legend').lastChild")
    assert page.js(STOPS, "#legend") == [1]
    page.js("document.querySelector('.matrix [tabindex=\"0\"]').focus()")
    before = page.js("return document.activeElement.dataset.cell")
    press(Keys.ARROW_LEFT, Keys.ENTER)
    now = page.js("return document.activeElement.dataset.cell")
    assert now != before
    assert page.js("return document.activeElement.getAttribute('aria-pressed')") == "true"


def test_commands_are_legible_and_copied(page, big):
    page.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"]})
    page.js("document.querySelector('[data-commands][aria-label*=\"fastv at 64\"]').click()")
    wanted = page.texts("#lb tr.commands code")
    assert len(wanted) == 4
    assert all("METHOD=fastv" in text for text in wanted)
    wide = page.js(
        "return [...document.querySelectorAll('#lb tr.commands code')].map((n) => [n.offsetWidth, n.scrollWidth <="
        " n.clientWidth, getComputedStyle(n).whiteSpace])"
    )
    assert all(width <= 920 and fits and space == "pre-wrap" for width, fits, space in wide), wide
    read = "const done = arguments[0]; navigator.clipboard.readText().then(done, (e) => done(String(e)))"
    names = page.js("return [...document.querySelectorAll('#lb tr.commands button')].map((b) => b.ariaLabel)")
    assert names[2] == "Copy the command of fastv at 64 on pope"
    page.driver.find_elements("css selector", "#lb tr.commands button")[2].click()
    page.wait("return document.getElementById('toast').textContent")
    assert page.texts("#toast") == ["Copied the command of fastv at 64 on pope."]
    assert page.driver.execute_async_script(read) == wanted[2]
    # where the clipboard is refused, a selection is copied
    page.js("navigator.clipboard.writeText = () => Promise.reject(new Error('no'))")
    page.driver.find_elements("css selector", "#lb tr.commands button")[0].click()
    page.wait("return document.getElementById('toast').textContent.includes('gqa')")
    assert page.driver.execute_async_script(read) == wanted[0]
    page.js("document.execCommand = () => false")
    page.driver.find_elements("css selector", "#lb tr.commands button")[1].click()
    page.wait("return document.getElementById('toast').textContent.includes('select the text')")


def test_leaderboard_is_saved_as_it_is_shown(page, tmp_path):
    page.downloads(tmp_path)
    page.find("#lb-search").send_keys("fast")
    page.find("[data-sort=pct_flops]").click()
    page.driver.find_elements("css selector", "#lb-tasks input")[0].click()
    page.find("#lb-csv").click()
    rows = list(csv.DictReader(io.StringIO(page.saved(tmp_path, ".csv").read_text(encoding="utf-8-sig"))))
    assert [row["Budget"] for row in rows] == page.texts("#lb tbody td:nth-child(2)") == ["192", "128", "64", "32"]
    shown = page.js("return [...document.querySelectorAll('#lb tbody tr')].map((r) => r.cells[3].firstChild.data)")
    name = next(name for name in rows[0] if name.startswith("pope (pope accuracy, %"))
    assert [row[name] for row in rows] == shown
    assert rows[0]["pope: interval or spread"].startswith("[")
    assert "gqa" not in "".join(rows[0])
    assert rows[0]["Command"].count("make eval METHOD=fastv") == 3


def test_a_saved_table_computes_nothing(chromium, tmp_path):
    method = '=HYPERLINK("x").py:Evil, "quoted"'
    drawn(tmp_path, "none", "none", "pope", 6)
    drawn(tmp_path, method, "64", "pope", 6)
    report.write(tmp_path, say=lambda _: None)
    chromium.open(tmp_path / "report" / "index.html")
    chromium.downloads(tmp_path)
    chromium.find("#lb-csv").click()
    text = chromium.saved(tmp_path, ".csv").read_text(encoding="utf-8-sig")
    assert [row["Method"] for row in csv.DictReader(io.StringIO(text))] == ["none", f"'{method}"]
    assert chromium.errors() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figure_is_saved_in_the_pages_colours(page, tmp_path, scheme):
    page.scheme(scheme)
    page.downloads(tmp_path)
    page.js("[...document.querySelectorAll('#legend button')].find((b) => b.textContent === 'random').click()")
    width, height = page.js("const b = document.querySelector('#plot svg').viewBox.baseVal; return [b.width, b.height]")
    page.find("#fig-png").click()
    picture = Image.open(page.saved(tmp_path, ".png")).convert("RGB")
    assert picture.width == 2 * width
    assert 2 * height < picture.height < 2 * height + 400, "with a title and the names of the methods"
    paper = {"light": (252, 251, 248), "dark": (23, 24, 27)}[scheme]
    corners = [picture.getpixel((x, y)) for x in (0, picture.width - 1) for y in (0, picture.height - 1)]
    assert corners == [paper] * 4
    painted = {colour for _, colour in picture.getcolors(1 << 20)}
    hidden = page.js(
        "const c = document.createElement('canvas').getContext('2d', {willReadFrequently: true}); const at = (name) =>"
        " { c.fillStyle ="
        " getComputedStyle([...document.querySelectorAll('#legend button')].find((b) => b.textContent ==="
        " name).querySelector('path')).fill; c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data]"
        ".slice(0, 3); }; return [at('fastv'), at('random')]"
    )
    assert tuple(hidden[0]) in painted
    assert tuple(hidden[1]) not in painted
    page.shot(f"saved-{scheme}")


def test_analysis_figures_are_saved(page, tmp_path):
    page.downloads(tmp_path)
    page.find("#analysis figure button").click()
    picture = Image.open(page.saved(tmp_path, ".png"))
    assert picture.getpixel((0, 0))[:3] == (255, 255, 255)
    assert page.js("return window.hacked === undefined")


def test_nothing_without_results_is_offered(chromium, tmp_path):
    gauntlet(tmp_path, ("fastv",), (64,), ("gqa", "pope"), 12)
    drawn(tmp_path, "uniform", "32", "pope", 12)
    # as an analysis asks them: other questions of a task and a whole task, of the unpruned model alone
    drawn(tmp_path, "none", "none", "gqa", 30)
    drawn(tmp_path, "none", "none", "mme", 12)
    report.write(tmp_path, say=lambda _: None)
    chromium.open(tmp_path / "report" / "index.html")
    assert chromium.texts("#lb-tasks label") == ["gqa", "pope"]
    assert chromium.texts("#ex-task option") == ["gqa (12 of 12)", "pope (12 of 12)"]
    assert [text.split(":")[0] for text in chromium.texts("#fig-y option")] == ["all tasks", "gqa", "pope"]
    # uniform has no average; it is there for the task that it was measured on
    shown = "return [...document.querySelectorAll('#legend button')].filter((b) => !b.hidden).map((b) => b.textContent)"
    assert chromium.js(shown) == ["none", "fastv"]
    chromium.choose("#fig-y", "pope: pope_accuracy")
    assert chromium.js(shown) == ["none", "fastv", "uniform"]
    assert chromium.texts("#lb-budget option") == ["all", "none", "64", "32"]
    chromium.choose("#lb-budget", "32")
    chromium.driver.find_elements("css selector", "#lb-tasks input")[1].click()
    assert chromium.texts("#lb-budget option") == ["all", "none", "64"]
    assert chromium.texts("#lb tbody th") == ["none", "fastv"]
    assert chromium.texts(".matrix tbody th") == ["fastv"]
    chromium.choose("#ex-task", "pope (12 of 12)")
    chromium.wait("return document.querySelectorAll('.matrix tbody th').length === 2")
    chromium.choose("#ex-flip", "uniform")
    assert chromium.texts("#ex-flip-budget option") == ["any", "32"]
    assert chromium.errors() == []


def test_a_task_without_embedded_samples_says_so(chromium, tmp_path):
    gauntlet(tmp_path, ("fastv",), (64,), ("pope",), 12)
    report.write(tmp_path, samples=0, say=lambda _: None)
    chromium.open(tmp_path / "report" / "index.html", samples=False)
    chromium.wait("return document.getElementById('ex-count').textContent")
    assert chromium.texts("#ex-task option") == ["pope (none in this report)"]
    assert "holds no samples of pope" in chromium.texts("#ex-count")[0]
    assert f"make report RESULTS={tmp_path} SAMPLES=100" in chromium.texts("#ex-detail")[0]
    assert not chromium.find("#ex-list").is_displayed()
    assert not chromium.find("#ex-search").is_displayed()
    assert chromium.errors() == []


def test_a_method_looks_the_same_everywhere(page):
    """One mark and one colour by name: legend, table, matrix and points."""
    found = page.js(
        "const of = (css, name) => { const n = [...document.querySelectorAll(css)].find(name), p ="
        " n.querySelector('path'); return [p.getAttribute('d'), getComputedStyle(p).fill]; }; return"
        " ['visipruner', 'fastv', 'random'].map((m) => [of('#legend button', (n) => n.textContent === m),"
        " of('#lb tbody tr', (n) => n.cells[0].textContent === m), of('.matrix tbody tr', (n) =>"
        " n.cells[0].textContent === m), of('#plot .point', (n) => n.dataset.point.startsWith(m + '@'))])"
    )
    for looks in found:
        assert all(look == looks[0] for look in looks)
    assert len({str(looks[0]) for looks in found}) == 3
