"""What the page says of whole requests: the table's numbers by cell, and a figure."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from harness.core.requests import OUTPUTS, QUESTIONS
from harness.report import views
from harness.store.sealed import SealedCell
from harness.tables.request_figure import RequestCurve, draw_requests
from harness.tables.requests import of_cells
from harness.tables.sections import budget_order, mean

#: the budget that the page opens with, where it is there
USUAL = "64"


class Requests(NamedTuple):
    """By identity the percents of the unpruned FLOPs and cache of a cell's request; and the output lengths, numbers of
    questions and figure of a model."""

    cells: Mapping[str, Any]
    tables: Mapping[str, Any]


def of_protocol(protocol: views.Protocol, samples: Callable[[SealedCell], Any]) -> Requests:
    """The requests of a model's cells; `samples` gives the frame of a cell. Cells whose costs do not tell are left
    out."""
    known = {sealed.identity: sealed for sealed in protocol.cells}
    found = {
        identity: {
            "flops": [[round(100 * one.flops(n, q) / base.flops(n, q), 2) for n in OUTPUTS] for q in QUESTIONS],
            "kv": [round(100 * one.kv_at(n) / base.kv_at(n), 2) for n in OUTPUTS],
        }
        for identity, (one, base) in of_cells(protocol.cells, known, samples).items()
    }
    return Requests(found, {"outputs": OUTPUTS, "questions": QUESTIONS, "figure": _figure(protocol, found)})


def _figure(protocol: views.Protocol, found: Mapping[str, Any]) -> dict[str, str] | None:
    """The lines that every task has at the budget with most of them, means over tasks; None where there is no such
    line."""
    named, looks = views.lines(protocol), views.looks(protocol)
    sets = [questions for questions in views.compared(protocol) if questions.primary]
    lines: dict[tuple[str, str], list[SealedCell]] = {}
    for sealed in (s for questions in sets for s in questions.cells if s.cell.method != "none" and s.identity in found):
        lines.setdefault((sealed.cell.budget, named[sealed.identity]), []).append(sealed)
    whole = {key: cells for key, cells in lines.items() if len({s.cell.task for s in cells}) == len(sets)}
    if not whole:
        return None
    counts = Counter(budget for budget, _ in whole)
    budget = min(counts, key=lambda one: (-counts[one], one != USUAL, budget_order(one)))
    curves = []
    for (_, name), cells in sorted((key, cells) for key, cells in whole.items() if key[0] == budget):
        per_task = [[found[s.identity]["flops"] for s in cells if s.cell.task == q.task] for q in sets]
        percents = [
            [mean([mean([one[q][n] for one in seeds]) for seeds in per_task]) for n in range(len(OUTPUTS))]
            for q in range(len(QUESTIONS))
        ]
        curves.append(RequestCurve(cells[0].cell.method, name, looks[name]["setting"], percents))
    title = (
        f"{protocol.model}: FLOPs of a question at budget {budget}, vision tower included, means over {len(sets)} tasks"
    )
    drawn = draw_requests(curves, protocol.cells, title)
    said = "; ".join(f"{c.label}: {c.percents[0][0]:.0f} % at one new token, {c.percents[0][-1]:.0f} %" for c in curves)
    return {
        "src": f"data:image/svg+xml;base64,{base64.b64encode(drawn).decode()}",
        "title": f"At budget {budget}: FLOPs in % of the unpruned request against new tokens. Dotted: unpruned.",
        "alt": f"FLOPs against output length at budget {budget}. {said} at {OUTPUTS[-1]}.",
    }
