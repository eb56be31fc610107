"""The summary of LEADERBOARD.md where a results folder has several models: a row per method and model at a budget.

Nothing is compared across models. A row's Avg % is of the score of its own unpruned model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.core.shown import in_markdown
from harness.tables.compare import Findings
from harness.tables.sections import NAN, Line, Section, average, budget_order, percent_of_flops
from harness.tables.text import DASH, decimal, grid

NOTE = (
    "Models stand side by side and are not compared: Avg % is in per cent of each model's own unpruned score, over the"
    " tasks of its section. A model with several sections is here with the section of most questions. Runs with a LIMIT"
    " are left out."
)


def models_text(studied: Sequence[tuple[Section, Findings | None]]) -> list[str]:
    """The summary, as parts of Markdown; none where there is one model."""
    chosen = _largest(
        [(s, found) for s, found in studied if not s.limit and any(c.cell.method != "none" for c in s.cells)]
    )
    if len({(s.model, s.weights) for s, _ in chosen}) < 2:
        return []
    names = _names([section for section, _ in chosen])
    rows = [
        (budget_order(line.budget), line.name, names[i], line, section, found)
        for i, (section, found) in enumerate(chosen)
        for block in section.blocks()
        for line in block.lines
        if line.method != "none"
    ]
    rows.sort(key=lambda row: row[:3])
    columns = [
        [DASH if line.budget == "none" else line.budget for *_, line, _, _ in rows],
        [in_markdown(line.label) for *_, line, _, _ in rows],
        [in_markdown(row[2]) for row in rows],
        [str(len(line.cells)) for *_, line, _, _ in rows],
        [_average(line, section, found) for *_, line, section, found in rows],
        [decimal(line.mean(lambda s: s.costs.get("kept", NAN))) for *_, line, _, _ in rows],
        [decimal(_flops(line, section)) for *_, line, section, _ in rows],
    ]
    head = ["budget", "method", "model", "tasks", "Avg %", "kept (tokens)", "of unpruned FLOPs (%)"]
    return ["## Models", NOTE, grid(head, columns, left=3)]


def _largest(studied: Sequence[tuple[Section, Findings | None]]) -> list[tuple[Section, Findings | None]]:
    """Of the sections of a model, dtype and device, the first with most questions."""
    best: dict[tuple[str, ...], tuple[Section, Findings | None]] = {}
    for section, found in studied:
        key = tuple(section.short[:3])
        if key not in best or section.questions > best[key][0].questions:
            best[key] = section, found
    return list(best.values())


def _names(sections: Sequence[Section]) -> list[str]:
    """Each section's model, with what else is not the same in all."""
    parts = [section.short for section in sections]
    shared = set.intersection(*(set(one[1:]) for one in parts))
    return [", ".join([one[0], *(part for part in one[1:] if part not in shared)]) for one in parts]


def _average(line: Line, section: Section, found: Findings | None) -> str:
    low, high = found.averages.get((line.budget, line.name), (NAN, NAN)) if found else (NAN, NAN)
    spread = "" if math.isnan(low) else f" [{decimal(low)}, {decimal(high)}]"
    return decimal(average(line, section)) + spread


def _flops(line: Line, section: Section) -> float:
    return line.mean(lambda s: percent_of_flops(s, section.baseline(s.cell.task)))
