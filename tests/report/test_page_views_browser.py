"""Pairs of methods, marks, equal cost and several models in a real, headless Chromium: wide and narrow, light and dark.

Needs what tests/report/test_browser.py needs, and is skipped like it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

import bigpage
import pytest
from factories import answered, drawn, gauntlet
from report_browser import BROWSED, Browser
from test_browser import CONTRAST, REFERENCE
from test_page_views import SHAPE, chunk_of, meta_of, pairs_of, plain

from harness.core.metric import Metric
from harness.report import page as report
from harness.report import views
from harness.store.sealed import SealedCell
from harness.store.store import Store
from harness.tables.compare import AVERAGE

pytestmark = BROWSED

SECTIONS = ("versus", "equal", "agreements")


@pytest.fixture(scope="module")
def seen(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The page of made cells of two models."""
    root = tmp_path_factory.mktemp("seen")
    cells = list(bigpage.cells(root / "answers", SHAPE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views.Pictures, "square", plain)
        html = report.fitting(cells, root, 30).html
    (root / "page.html").write_text(html)
    return root / "page.html", html


@pytest.fixture
def page(chromium: Browser, seen: tuple[Path, str]) -> Iterator[Browser]:
    chromium.scheme("light")
    chromium.open(seen[0])
    chromium.wait("return document.querySelector('#vs-table')")
    yield chromium
    assert chromium.errors() == []


def table(page: Browser, css: str) -> list[list[str]]:
    """The texts of a table's body, cell by cell."""
    found = page.js(
        "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map((r) => [...r.children].map((c) =>"
        " c.innerText.replace(/\\n/g, ' ').trim()))",
        css,
    )
    return list(found)


def test_two_lines_are_compared_and_turned(page: Browser, seen: tuple[Path, str]) -> None:
    model = meta_of(seen[1])["models"][0]
    pairs = {(b, x, y, t): c for b, x, y, t, c in pairs_of(seen[1], model)}
    page.choose("#vs-budget", "32")
    words = {"above": "A better", "below": "A worse", "indistinguishable": "not told apart", "undecided": "undecided"}
    for one, other in (("fastv", "visionzip"), ("visionzip", "fastv"), ("fastv", "random"), ("uniform", "fastv")):
        page.choose("#vs-a", one)
        page.choose("#vs-b", other)
        wanted = f"A, {one}, against B, {other}, at budget 32"
        page.wait(f"return document.querySelector('#vs-table caption')?.textContent === '{wanted}'")
        rows = table(page, "#vs-table")
        assert [row[0].split(" ")[0] for row in rows] == [*SHAPE.tasks, "Avg"]
        for task, row in zip([*SHAPE.tasks, AVERAGE], rows, strict=True):
            sign = 1 if ("32", one, other, task) in pairs else -1
            c = pairs["32", one, other, task] if sign == 1 else pairs["32", other, one, task]
            ends = sorted((sign * c["low"], sign * c["high"]))
            assert row[4] == f"{sign * c['difference']:+.1f} [{ends[0]:+.1f}, {ends[1]:+.1f}]".replace("-0.0", "+0.0")
            p = "<0.0001" if c["p_holm"] < 1e-4 else f"{c['p_holm']:.4f}"
            assert row[7] == p
            turned = {"above": "below", "below": "above"}
            assert row[8] == words[c["verdict"] if sign == 1 else turned.get(c["verdict"], c["verdict"])]
            if task != AVERAGE:
                counts = (c["better"], c["worse"])[::sign]
                assert row[5] == f"{counts[0]} : {counts[1]}"
    page.find("#vs-swap").click()
    page.wait(
        "return document.querySelector('#vs-table caption').textContent.startsWith('A, fastv, against B, uniform')"
    )
    assert [row[0] for row in table(page, "#vs-costs")] == ["A fastv", "B uniform"]
    page.choose("#vs-b", "fastv")
    assert page.texts("#vs-body") == ["A and B are the same line: choose two."]


def test_flips_open_the_samples_on_which_the_two_differ(page: Browser, seen: tuple[Path, str]) -> None:
    page.choose("#vs-budget", "64")
    page.choose("#vs-a", "fastv")
    page.choose("#vs-b", "visionzip")
    page.wait(
        "return document.querySelector('#vs-table caption')?.textContent.startsWith('A, fastv, against B, visio')"
    )
    page.js("document.querySelector('#vs-table tr[data-set=\"2\"] button').click()")
    page.wait("return document.querySelector('#ex-right').value === 'differ'")
    chosen = "return ['line', 'budget'].flatMap((n) => ['A', 'B'].map((p) => document.getElementById(`ex-${n}-${p}`)"
    assert page.js(f"{chosen}.selectedOptions[0].text))") == ["fastv", "visionzip", "64", "64"]
    model = meta_of(seen[1])["models"][0]
    data = chunk_of(seen[1], model["sets"][2]["chunk"])

    def right(name: str) -> list[bool]:
        line, budget = model["lines"].index(name), model["budgets"].index("64")
        own = [c for c in model["cells"] if c["set"] == 2]
        at = next(i for i, c in enumerate(own) if (c["line"], c["budget"]) == (line, budget))
        return [score >= 0.5 for score in data["cells"][at]["score"]]

    both = zip(data["samples"], right("fastv"), right("visionzip"), strict=True)
    wanted = [sample["key"] for sample, one, other in both if one != other]
    assert 0 < len(wanted) < len(data["samples"])
    assert page.texts("#ex-list .mono") == wanted
    assert page.js("return document.activeElement.id") == "ex-list"


def test_marks_and_the_interval_of_the_average_stand_in_table_and_figure(page: Browser, seen: tuple[Path, str]) -> None:
    model = meta_of(seen[1])["models"][0]
    rows = {(model["lines"][r[0]], model["budgets"][r[1]]): r for r in model["studies"][0]["rows"]}
    shown = {(row[0], row[1]): row for row in table(page, "#lb")}
    for (line, budget), (_, _, average, low, high, marks) in rows.items():
        if line == "none":
            continue
        cell = shown[line, budget][2 + len(SHAPE.tasks)]
        said = f"{average:.1f} {marks.get('-1', '')}".strip()
        assert cell == f"{said} [{low:.1f}, {high:.1f}]"
        for i, s in enumerate(model["studies"][0]["sets"]):
            assert ("≈" in shown[line, budget][2 + i]) == (str(s) in marks)
    points = [row for key, row in rows.items() if key[0] != "none" and row[3] is not None]
    assert page.js("return document.querySelectorAll('#plot .whisker').length") == len(points)
    assert "95 % intervals of the average" in page.texts("#plot-caption")[0]
    page.js("document.querySelector('#lb-tasks input').click()")  # without a task the tables have no such average
    assert all("[" not in row[1 + len(SHAPE.tasks)] for row in table(page, "#lb"))


def test_equal_cost_is_switched_and_says_what_is_interpolated(page: Browser, seen: tuple[Path, str]) -> None:
    model = meta_of(seen[1])["models"][0]
    rows = {(model["lines"][r[0]], model["budgets"][r[1]]): r for r in model["studies"][0]["rows"]}
    head = page.texts("#eq-table thead th")
    assert head == ["method", "128", "64", "32"]
    for row in table(page, "#eq-table"):
        for budget, cell in zip(head[1:], row[1:], strict=True):
            others = [f"{rows[name, budget][2]:.1f}" for name in SHAPE.methods]
            mine = f"{rows[row[0], budget][2]:.1f}"
            rank = 1 + sum(float(other) > float(mine) for other in others)
            assert cell.split(" ")[0] == mine
            assert cell.endswith(f"rank {rank}")
    page.choose("#eq-at", "prefill FLOPs")
    equal = model["studies"][0]["equal"]
    for line, found, (low, high) in equal["rows"]:
        row = next(row for row in table(page, "#eq-table") if row[0] == model["lines"][line])
        for cell, at in zip(row[1:], found, strict=False):
            assert cell.split(" ")[0] == ("–" if at is None else f"{'~' if len(at) == 3 else ''}{at[0]:.1f}")
        assert row[-1] == f"{low:.1f} to {high:.1f}"


def test_several_models_are_ranked_side_by_side(page: Browser, seen: tuple[Path, str]) -> None:
    (pair,) = meta_of(seen[1])["agreements"]
    page.choose("#ag-task", "pope")
    ranked = next(r for r in pair["ranked"] if r["task"] == "pope" and r["budget"] == len(pair["budgets"]) // 2)
    methods = sorted(ranked["methods"], key=lambda m: m["ranks"][0])
    shown = table(page, "#ag-scores")
    assert [row[:5] for row in shown] == [
        [m["name"], *(text for k in (0, 1) for text in (f"{m['percents'][k]:.1f}", f"{m['ranks'][k]:g}"))]
        for m in methods
    ]
    tau, low, high = ranked["tau"]
    assert (
        f"tau-b of the two rankings is {tau:.2f} [{low:.2f}, {high:.2f}]".replace("-0.00", "0.00")
        in page.texts("#ag-said")[0]
    )
    assert len(table(page, "#ag-taus")) == len(pair["ranked"]) + len(pair["means"])


def test_one_model_has_no_section_of_several_and_one_line_no_pairs(chromium: Browser, tmp_path: Path) -> None:
    cells = [answered(tmp_path, m, b, [1.0] * 24) for m, b in (("none", "none"), ("fastv", "64"))]
    (tmp_path / "page.html").write_text(report.fitting(cells, tmp_path, 0).html)
    chromium.scheme("light")
    chromium.open(tmp_path / "page.html", samples=False)
    assert chromium.js("return document.getElementById('agreements').checkVisibility()") is False
    assert chromium.js("return document.querySelector('[href=\"#agreements\"]').checkVisibility()") is False
    assert "no budget here has two" in chromium.texts("#vs-body")[0]
    assert [row[0] for row in table(chromium, "#eq-table")] == ["fastv"]
    assert chromium.errors() == []


def test_a_budget_of_too_many_lines_says_which_command_compares(chromium: Browser, tmp_path: Path) -> None:
    cells = [answered(tmp_path, f"m{i:02d}", "64", [float((i + j) % 3 > 0) for j in range(24)]) for i in range(33)]
    (tmp_path / "page.html").write_text(report.fitting(cells, tmp_path, 0).html)
    chromium.open(tmp_path / "page.html", samples=False)
    chromium.wait("return document.getElementById('vs-body').textContent.includes('33 lines have this budget')")
    assert chromium.errors() == []


def test_requests_are_means_over_seeds_then_tasks(chromium: Browser, tmp_path: Path) -> None:
    """Of measured cells: POPE has five seeds of `random`, and MME here one."""
    for task in ("mme", "pope"):
        for name in ("none", "fastv-64", "random-64"):
            found = sorted((REFERENCE / "cells" / task).glob(f"mini-{name}-*"))
            for cell in found[:1] if (task, name) == ("mme", "random-64") else found:
                shutil.copytree(cell, tmp_path / "cells" / task / cell.name)
    html = report.fitting(Store(tmp_path).cells(), tmp_path, 0).html
    (tmp_path / "page.html").write_text(html)
    model = meta_of(html)["models"][0]
    chromium.open(tmp_path / "page.html", samples=False)
    chromium.choose("#wr-questions", "6")
    rows = {row[0]: row[1:] for row in table(chromium, "#wr-table")}
    primary = [i for i, one in enumerate(model["sets"]) if one["primary"]]
    assert len(primary) == 2
    for line, name in enumerate(model["lines"]):
        by_task = [
            [
                c["request"]
                for c in model["cells"]
                if (c["line"], c["set"], model["budgets"][c["budget"]]) == (line, s, "64")
            ]
            for s in primary
        ]
        if not all(by_task):
            assert name not in rows
            continue
        flops, kv = (
            [mean([mean([value(r, n) for r in seeds]) for seeds in by_task]) for n in range(4)]
            for value in (lambda r, n: r["flops"][1][n], lambda r, n: r["kv"][n])
        )
        assert [float(text) for text in rows[name]] == pytest.approx([*flops, *kv], abs=0.051)
        if name.startswith("random"):
            assert max(map(len, by_task)) > min(map(len, by_task))
    assert {name.split(" ")[0] for name in rows} == {"fastv", "random"}
    assert chromium.errors() == []


def test_an_address_undoes_the_choices_of_several_models(page: Browser) -> None:
    texts = "return [...document.querySelectorAll('#ag-controls select, #eq-at')].map((s) => s.selectedOptions[0].text)"
    own = page.js(texts)
    page.driver.execute_async_script("setTimeout(arguments[0], 1000)")  # what comes before is no entry of the history
    page.choose("#ag-task", "pope")
    page.wait("return location.hash.includes('agreements-task=pope')")
    page.choose("#model", "mini-qwen")
    page.wait("return location.hash.includes('model=mini-qwen')")
    assert "agreements-task=pope" in page.js("return location.hash"), "the choice is of no model"
    page.js("location.hash = '#leaderboard'")  # as Back does, and without the entries of other tests
    page.wait("return document.getElementById('ag-task').selectedOptions[0].text !== 'pope'")
    assert page.js(texts) == own


def written(path: Path, cells: Sequence[SealedCell], samples: int) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views.Pictures, "square", plain)
        (path / "page.html").write_text(report.fitting(cells, path, samples).html)
    return path / "page.html"


def test_a_point_of_the_average_opens_a_task_that_has_it(chromium: Browser, tmp_path: Path) -> None:
    gauntlet(tmp_path, ("fastv", "visipruner"), (64,), ("gqa", "pope"), 24)
    gauntlet(tmp_path, ("fastv",), (64,), ("pope",), 12)
    chromium.open(written(tmp_path, Store(tmp_path).cells(), 4))
    chromium.choose("#ex-task", "pope (12 questions) (4 of 12)")
    chromium.wait("return document.querySelectorAll('#ex-line-A option').length === 2")
    point = chromium.find("[data-point='visipruner@64']")
    chromium.js("arguments[0].dispatchEvent(new Event('click', {bubbles: true}))", point)
    chromium.wait("return document.getElementById('ex-line-A')?.selectedOptions[0].text === 'visipruner'")
    chromium.wait("return location.hash.includes('a=visipruner')")
    assert chromium.errors() == []


def test_a_task_of_the_unpruned_model_alone_is_not_compared(chromium: Browser, tmp_path: Path) -> None:
    gauntlet(tmp_path, ("fastv", "visipruner"), (64, 32), ("pope",), 24)
    drawn(tmp_path, "none", "none", "gqa", 24)
    chromium.open(written(tmp_path, Store(tmp_path).cells(), 4))
    chromium.wait("return document.querySelector('#vs-table')")
    (lead,) = chromium.texts("#lead")
    assert lead.startswith("6 measured cells: 2 methods on pope (24 questions on ")
    assert "gqa" not in lead
    assert chromium.texts("#gaps") == [""]
    assert [row[0].split(" ")[0] for row in table(chromium, "#vs-table")] == ["pope", "Avg"]
    for section in ("#vs-body", "#eq-body"):
        assert "only the unpruned model answered gqa" in chromium.texts(section)[0]
    assert chromium.errors() == []


def test_equal_kept_tokens_are_budgets_of_kept_tokens(chromium: Browser, tmp_path: Path) -> None:
    budgets = ("64", "64avg", "0.35flops", "0.25kept", "native")
    cells = [answered(tmp_path, "none", "none", [1.0] * 24)]
    cells += [answered(tmp_path, m, b, [1.0] * 24) for m in ("fastv", "dart") for b in budgets]
    chromium.open(written(tmp_path, cells, 0), samples=False)
    assert sorted(chromium.texts("#eq-table thead th")[1:]) == ["0.25kept", "64"]
    assert chromium.errors() == []


def test_every_numbered_budget_is_on_the_curve_of_its_line(chromium: Browser, tmp_path: Path) -> None:
    cells = [answered(tmp_path, m, b, [1.0] * 24) for m, b in (("none", "none"), ("dart", "64"), ("dart", "native"))]
    cells += [answered(tmp_path, "fastv", b, [1.0] * 24) for b in ("64", "0.25kept", "64clamped", "0.5flops", "native")]
    chromium.open(written(tmp_path, cells, 0), samples=False)
    curves = chromium.js("return [...document.querySelectorAll('#plot .series')].map((n) => n.getAttribute('d'))")
    assert [curve.count("L") for curve in curves] == [3], "native stands alone, and one point is no curve"
    assert chromium.errors() == []


def test_fewer_errors_are_on_the_front(chromium: Browser, tmp_path: Path) -> None:
    errors = Metric("distance", higher_is_better=False)
    share = {("none", "none"): 0.1, ("fastv", "64"): 0.3, ("dart", "128"): 0.6}
    cells = [
        answered(tmp_path, m, b, [float(i < 20 * bad) for i in range(20)], "errors", metric=errors)
        for (m, b), bad in share.items()
    ]
    chromium.open(written(tmp_path, cells, 0), samples=False)
    points = chromium.js(
        "return Object.fromEntries([...document.querySelectorAll('#plot .point')].map((p) => [p.dataset.point,"
        " p.getAttribute('aria-label').includes('on the Pareto front')]))"
    )
    assert points == {"none@none": True, "fastv@64": True, "dart@128": False}
    chromium.js("document.querySelectorAll('#legend button:not([hidden])').forEach((b) => b.click())")
    assert chromium.js("return document.getElementById('fig-png').disabled"), "nothing is drawn"
    assert chromium.errors() == []


def test_answers_without_a_score_are_neither_right_nor_wrong(chromium: Browser, tmp_path: Path) -> None:
    corpus = Metric("cider", "corpus")
    pairs = (("none", "none"), ("fastv", "64"), ("dart", "64"))
    cells = [answered(tmp_path, m, b, [None] * 24, "cap", metric=corpus, value=0.5) for m, b in pairs]
    chromium.open(written(tmp_path, cells, 6))
    assert len(chromium.texts("#ex-list .mono")) == 6
    said = " ".join(chromium.texts("#samples"))
    assert "✗" not in said
    assert "✓" not in said
    assert "wrong," not in " ".join(chromium.texts("#ex-list .heard"))
    assert chromium.texts(".matrix button") == ["–", "–"]
    assert not any(chromium.find(css).is_displayed() for css in ("#ex-right", "#ex-flip", "#ex-flip-way"))
    assert "lost" not in chromium.texts("#ex-count")[0]
    assert chromium.errors() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_sections_are_legible_and_fit(chromium: Browser, seen: tuple[Path, str], scheme: str, width: int) -> None:
    metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    chromium.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        chromium.scheme(scheme)
        chromium.open(seen[0])
        chromium.wait("return document.querySelector('#vs-table')")
        chromium.js("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        checked, bad = chromium.js(CONTRAST)
        assert checked > 300
        assert bad == []
        assert chromium.js("return document.documentElement.scrollWidth <= innerWidth")
        for section in SECTIONS:
            chromium.js("document.getElementById(arguments[0]).scrollIntoView()", section)
            chromium.shot(f"{scheme}-{width}-{section}")
        assert chromium.errors() == []
    finally:
        chromium.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_new_controls_have_names_and_tables_captions_scopes_and_one_tab_stop_a_row(page: Browser) -> None:
    nameless = page.js(
        "return [...document.querySelectorAll('#versus, #equal, #agreements')].flatMap((s) =>"
        " [...s.querySelectorAll('select, button, [role=region]')]).filter((n) => !n.labels?.length &&"
        " !n.getAttribute('aria-label') && !n.textContent.trim()).map((n) => n.id || n.outerHTML.slice(0, 80))"
    )
    assert nameless == []
    tables = page.js(
        "return [...document.querySelectorAll('#versus table, #equal table, #agreements table')].map((t) => [t.id,"
        " t.caption?.textContent.length > 5, [...t.querySelectorAll('th')].every((h) => ['col',"
        " 'row'].includes(h.scope)), Math.max(...[...t.querySelectorAll('tr')].map((r) => r.querySelectorAll('button,"
        " a, input, select, [tabindex]').length))])"
    )
    assert [t[0] for t in tables] == ["vs-table", "vs-costs", "eq-table", "ag-scores", "ag-taus"]
    assert all(captioned and scoped and stops <= 1 for _, captioned, scoped, stops in tables)
