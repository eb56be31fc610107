"""The wide table of a paper: rows are methods, columns are tasks, blocks are budgets; as Markdown, CSV, LaTeX or HTML.

The numbers, the lines and the marks are those of LEADERBOARD.md. Best is bold and second is underlined within a block;
the unpruned model comes first and takes no part.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import pandas as pd  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages

from harness.core.errors import PrunebenchError
from harness.core.shown import in_markdown, printable
from harness.core.spelling import given
from harness.store.sealed import SealedCell
from harness.tables import latex
from harness.tables.sections import Block, Line, Section, average, distinct, mean, sections
from harness.tables.text import BEST, SECOND, csv_text, decimal, grid, ranks, seeds_score

AVERAGE = "Avg %"
MARKS = (
    "Best bold, second underlined, within a block. Avg %: score in per cent of the unpruned score, over all tasks where"
    " higher is better."
)


class PaperEntry(NamedTuple):
    """One number as printed, and its rank in the block."""

    text: str
    rank: str
    """`BEST`, `SECOND` or ""."""


class PaperRow(NamedTuple):
    """One method at one budget."""

    label: str
    entries: Sequence[PaperEntry]


class PaperBlock(NamedTuple):
    """The rows of one budget."""

    name: str
    """"" for the unpruned model."""
    rows: Sequence[PaperRow]


@dataclass(frozen=True)
class PaperTable:
    """One section as a table."""

    title: str
    tried: bool
    """Whether LIMIT cut the questions."""
    tasks: Sequence[str]
    units: Sequence[str]
    """Per task: the unit and the number of questions."""
    blocks: Sequence[PaperBlock]


def render(cells: Iterable[SealedCell], form: str, known: Iterable[SealedCell] = ()) -> str:
    """The tables of all sections of these cells as a text in one of `FORMATS`: full runs first. `known`: more cells,
    among which unpruned ones are looked up."""
    shown = distinct(cells)
    every = distinct([*shown.values(), *known])
    found = [replace(section, known=every) for section in sections(shown)]
    return _plain(found) if form == "csv" else RENDERED[form]([_table(section) for section in found])


def _table(section: Section) -> PaperTable:
    shown = [section.of_task(task) for task in section.tasks]
    units = [", ".join(filter(None, [_unit(s), f"n={s.counts['headline']:,}"])) for s in shown]
    title = ", ".join(map(printable, section.short)) + (" (a try)" if section.limit else "")
    blocks = [_block(section, block) for block in section.blocks()]
    return PaperTable(title, bool(section.limit), [printable(task) for task in section.tasks], units, blocks)


def _label(section: Section, line: Line) -> str:
    name = section.line_name(line)
    return name if line.seeds == "1" else f"{name} ({line.seeds} seeds)"


def _unit(sealed: SealedCell) -> str:
    """Of a score, and which way is better where it is not up; "" where nothing bounds the metric."""
    bound = "" if math.isnan(sealed.maximum) else "%" if sealed.maximum == 1 else f"of {sealed.maximum:g}"
    return ", ".join(filter(None, [bound, "" if sealed.metric.higher_is_better else "lower is better"]))


def _block(section: Section, block: Block) -> PaperBlock:
    ranked = [line.method != "none" for line in block.lines]
    columns = [[seeds_score(line.cells.get(task, ())) for line in block.lines] for task in section.tasks]
    upward = [section.of_task(task).metric.higher_is_better for task in section.tasks]
    averages = [decimal(average(line, section)) for line in block.lines]
    entries = [
        list(map(PaperEntry, shown, ranks(shown, ranked, up)))
        for shown, up in zip([*columns, averages], [*upward, True], strict=True)
    ]
    rows = [
        PaperRow(printable(_label(section, line)), row)
        for line, row in zip(block.lines, zip(*entries, strict=True), strict=True)
    ]
    return PaperBlock("" if block.budget == "none" else f"budget {printable(block.budget)}", rows)


# ------------------------------------------------------------------------------------------------------------- formats


def _markdown(tables: Sequence[PaperTable]) -> str:
    shapes = {BEST: "**{}**", SECOND: "<u>{}</u>", "": "{}"}
    parts = []
    for table in tables:
        rows = []
        for block in table.blocks:
            rows += [[f"*{in_markdown(block.name)}*", *[""] * (len(table.tasks) + 1)]] if block.name else []
            for row in block.rows:
                rows.append([in_markdown(row.label), *(shapes[e.rank].format(e.text) for e in row.entries)])
        head = ["method", *(f"{in_markdown(t)} ({u})" for t, u in zip(table.tasks, table.units, strict=True)), AVERAGE]
        parts += [f"## {in_markdown(table.title)}", grid(head, list(zip(*rows, strict=True)))]
    return "\n\n".join([*parts, MARKS]) + "\n"


def _html(tables: Sequence[PaperTable]) -> str:
    parts = []
    for table in tables:
        width = len(table.tasks) + 2
        head = "".join(
            f"<th>{html.escape(task)}<br><small>{html.escape(unit)}</small></th>"
            for task, unit in zip(table.tasks, table.units, strict=True)
        )
        lines = [f"<tr><th>method</th>{head}<th>{AVERAGE}</th></tr>"]
        for block in table.blocks:
            name = html.escape(block.name)
            lines += [f'<tr class="block"><td colspan="{width}">{name}</td></tr>'] if name else []
            for row in block.rows:
                shown = "".join(f"<td>{_HTML[e.rank].format(html.escape(e.text))}</td>" for e in row.entries)
                lines.append(f"<tr><td>{html.escape(row.label)}</td>{shown}</tr>")
        body = "<table>\n" + "\n".join(lines) + "\n</table>"
        title = html.escape(table.title)
        opened = f"<details><summary>{title}</summary>\n{body}\n</details>"
        parts.append(opened if table.tried else f"<h2>{title}</h2>\n{body}")
    return _PAGE.format(style=_STYLE, body="\n".join(parts), marks=html.escape(MARKS))


_HTML = {BEST: "<b>{}</b>", SECOND: "<u>{}</u>", "": "{}"}
_STYLE = (
    "body{font:15px/1.4 sans-serif;margin:2em}table{border-collapse:collapse}"
    "td,th{padding:.15em .8em;text-align:right}td:first-child,th:first-child{text-align:left}"
    "tr:first-child th{border-top:2px solid;border-bottom:1px solid;vertical-align:bottom}"
    "tr:last-child td{border-bottom:2px solid}tr.block td{border-top:1px solid;font-style:italic}"
)
_PAGE = (
    '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>Results</title>'
    "<style>{style}</style></head>\n<body>\n{body}\n<p>{marks}</p>\n</body>\n</html>\n"
)


def _latex(tables: Sequence[PaperTable]) -> str:
    return latex.document([_latex_table(table) for table in tables])


def _latex_table(table: PaperTable) -> str:
    blocks = [
        (
            block.name,
            [[latex.escaped(row.label), *(_LATEX[e.rank].format(e.text) for e in row.entries)] for row in block.rows],
        )
        for block in table.blocks
    ]
    caption = latex.escaped(f"Scores of {table.title}. {MARKS}")
    heads = [(task, *unit.split(", ")) for task, unit in zip(table.tasks, table.units, strict=True)]
    heads.append((AVERAGE,))
    return latex.table(caption, "method", heads, blocks)


_LATEX = {BEST: r"\textbf{{{}}}", SECOND: r"\underline{{{}}}", "": "{}"}
RENDERED: dict[str, Callable[[Sequence[PaperTable]], str]] = {"markdown": _markdown, "latex": _latex, "html": _html}
FORMATS = ("markdown", "csv", "latex", "html")
#: the format that the name of a file stands for
ENDINGS = {".md": "markdown", ".csv": "csv", ".tex": "latex", ".html": "html", ".htm": "html"}


def ending(file: str) -> str:
    """The format that a file's name stands for. Raises PrunebenchError for a name that stands for none."""
    known = [form for end, form in ENDINGS.items() if file.lower().endswith(end)]
    if not known:
        raise PrunebenchError(
            f"{given('out', file)}: expected a name that ends in {', '.join(ENDINGS)}, or {given('format')} beside it"
        )
    return known[0]


def _plain(found: Sequence[Section]) -> str:
    """Numbers and no marks: each task's score in its own unit, as leaderboard.csv has it."""
    tasks = sorted({task for section in found for task in section.tasks})
    records = [
        {
            "section": section.title,
            "limit": section.limit,
            "budget": line.budget,
            "method": section.line_name(line),
            "seeds": line.seeds,
        }
        | {task: _score(line, task) for task in tasks}
        | {"avg_pct": average(line, section)}
        for section in found
        for block in section.blocks()
        for line in block.lines
    ]
    return csv_text(pd.DataFrame(records, columns=["section", "limit", "budget", "method", "seeds", *tasks, "avg_pct"]))


def _score(line: Line, task: str) -> float:
    seeds = line.cells.get(task, ())
    return mean([sealed.score for sealed in seeds]) if seeds else math.nan
