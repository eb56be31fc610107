"""The report's table and figure of whole requests: numbers of the cells, and nothing where cells do not tell."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path

import pytest
from factories import gauntlet

from harness.core.requests import OUTPUTS, QUESTIONS, TokenRates, WholeRequest
from harness.report import page as report
from harness.report import whole
from harness.store.store import Store
from harness.tables.request_figure import RequestCurve, draw_requests
from harness.tables.requests import token_rates

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"
SHOWN = ("none", "fastv-64", "visipruner-64", "visionzip-64", "fastv-32")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some cells of POPE and MME as they were measured."""
    root = tmp_path_factory.mktemp("few")
    for task in ("mme", "pope"):
        for name in SHOWN:
            for cell in (REFERENCE / "cells" / task).glob(f"mini-{name}-*"):
                shutil.copytree(cell, root / "cells" / task / cell.name)
    return root


def model_of(html: str) -> dict:
    return json.loads(re.search(r'id="meta">(.*?)</script>', html, re.DOTALL)[1])["models"][0]


def test_the_page_holds_the_shares_of_each_cell(few: Path) -> None:
    cells = Store(few).cells()
    model = model_of(report.fitting(cells, few, 0).html)
    assert (model["requests"]["outputs"], model["requests"]["questions"]) == ([*OUTPUTS], [*QUESTIONS])
    assert all(cell["request"] for cell in model["cells"])
    for cell in model["cells"]:
        flops, kv = cell["request"]["flops"], cell["request"]["kv"]
        if cell["unpruned"]:
            assert {x for row in flops for x in row} == {100.0}
            continue
        # a longer answer leaves a smaller share of the cost to save
        assert flops[0] == sorted(flops[0])
        assert kv == sorted(kv)
    sealed = next(s for s in cells if (s.cell.method, s.cell.budget, s.cell.task) == ("fastv", "64", "pope"))
    base = Store(few).sealed(sealed.cell.baseline())
    rates = token_rates(base, base.samples())
    number = [s["task"] for s in model["sets"]].index("pope")
    line, budget = model["lines"].index("fastv"), model["budgets"].index("64")
    mine = next(c for c in model["cells"] if (c["set"], c["line"], c["budget"]) == (number, line, budget))

    def by_hand(costs: dict, layers: int, new_tokens: int, questions: int) -> float:
        """Of a cell's means; POPE's prompts have one image of 576 tokens, shared in the first `layers` of 12."""
        visual = 576 * (rates.linear_flops + 576 * rates.pair_flops) * layers / 12
        shared = costs["vision_flops"] + costs["projector_flops"] + visual
        whole_ = costs["vision_flops"] + costs["projector_flops"] + costs["prefill_dense_flops"]
        decode = sum(
            rates.linear_flops + rates.pair_flops * (costs["kv_bytes"] / rates.kv_bytes + step)
            for step in range(1, new_tokens)
        )
        return whole_ - shared * (1 - 1 / questions) + decode + rates.head_flops * new_tokens

    boundary = sealed.cell.knobs["boundary"]
    for q, questions in enumerate(QUESTIONS):
        for n, new_tokens in enumerate(OUTPUTS):
            share = by_hand(sealed.costs, boundary, new_tokens, questions) / by_hand(
                base.costs, 12, new_tokens, questions
            )
            assert mine["request"]["flops"][q][n] == pytest.approx(100 * share, abs=0.01)


def test_the_figure_is_of_the_usual_budget_and_names_each_line(few: Path) -> None:
    model = model_of(report.fitting(Store(few).cells(), few, 0).html)
    figure = model["requests"]["figure"]
    assert figure["title"].startswith("At budget 64")
    assert "fastv: " in figure["alt"]
    svg = base64.b64decode(figure["src"].removeprefix("data:image/svg+xml;base64,")).decode()
    for name in ("fastv", "visionzip", "visipruner"):
        assert f"<!-- {name} -->" in svg, "matplotlib writes each text beside its glyphs"
    assert "<!-- 18 questions an image -->" in svg
    assert "dc:date" not in svg


def test_equal_curves_give_equal_bytes_and_others_do_not() -> None:
    curve = RequestCurve("fastv", "fastv", 0, [[30.0, 40.0, 50.0, 60.0]] * 3)
    moved = curve._replace(percents=[[30.0, 40.0, 50.0, 61.0]] * 3)
    first, again, other = (draw_requests([one], [], "a $title$") for one in (curve, curve, moved))
    assert first == again != other
    assert draw_requests([curve, moved._replace(variant=1)], [], "a $title$") not in (first, other)


def test_cells_that_do_not_tell_show_nothing(tmp_path: Path) -> None:
    root = gauntlet(tmp_path, ("fastv",), (64,), ("pope",), 6)
    model = model_of(report.fitting(Store(root).cells(), root, 0).html)
    assert model["requests"]["figure"] is None
    assert {cell["request"] for cell in model["cells"]} == {None}


def test_a_line_that_a_task_lacks_is_in_no_figure(few: Path) -> None:
    cells = [s for s in Store(few).cells() if (s.cell.method, s.cell.task) != ("fastv", "mme")]
    protocol = report.views.protocols(cells)[0]
    figure = whole.of_protocol(protocol, lambda sealed: sealed.samples()).tables["figure"]
    assert "visionzip" in figure["alt"]
    assert "fastv" not in figure["alt"]


def test_a_request_of_nothing_shared_is_dear() -> None:
    """The unpruned model shares every layer: where many ask, a method that shares few can cost more."""
    rates = TokenRates(100.0, 1.0, 10.0, 4.0, 2)
    base = WholeRequest(rates, 1000, 100, 50_000, 0, 46_000, 400)
    pruned = WholeRequest(rates, 1000, 100, 20_000, 0, 9_000, 120)
    assert pruned.flops(1) < base.flops(1)
    assert pruned.flops(1, 18) > base.flops(1, 18)
    assert pruned.flops(512, 18) / base.flops(512, 18) < pruned.flops(1, 18) / base.flops(1, 18)
