"""The matrix of a budget in LEADERBOARD.md: which method is told apart from which, at Avg %.

A row is read from the left: `>` the row's method is better than the column's, `<` worse, `≈` not told apart, and
nothing where a task is missing on one side. Columns are numbered as the rows are.
A line is called as in leaderboard.csv, by one name over all budgets; `prunebench compare` takes NAME@BUDGET.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from harness.core.shown import fenced, printable
from harness.tables.compare import ABOVE, AVERAGE, BELOW, TOO_FEW, Comparison, Findings
from harness.tables.pairs import MOST, comparable, too_many
from harness.tables.sections import Block, Section, average

WIDTH = 110
"""Columns of characters that a matrix keeps to: names are cut in their middle where they would not fit."""
BETTER, WORSE, ALIKE, NOTHING = ">", "<", "≈", ""
HEADING = "#### Method against method"
RULE = (
    "Rows and columns are the lines of this budget, from the highest Avg %. The number above a column is the number of"
    f" its row. At Avg %, `{BETTER}`: the row's method is better than the column's. `{WORSE}`: it is worse. `{ALIKE}`:"
    " not told apart with these questions, or undecided. `.`: a line against itself. Blank: not measured, or too few"
    " images. Pairs with `random` are corrected in a family of their own."
)
_TURNED = {BETTER: WORSE, WORSE: BETTER, ALIKE: ALIKE, NOTHING: NOTHING}


def sign(c: Comparison) -> str:
    """What a comparison says of its line, in one sign. Undecided is not told apart; few images say nothing."""
    return {ABOVE: BETTER, BELOW: WORSE, TOO_FEW: NOTHING}.get(c.verdict, ALIKE)


def signs(names: Sequence[str], comparisons: Iterable[Comparison]) -> list[list[str]]:
    """The sign of each name (row) against each name (column); `against` of the comparisons is a name."""
    at = {name: i for i, name in enumerate(names)}
    found = [[NOTHING] * len(names) for _ in names]
    for c in comparisons:
        if c.line in at and c.against in at:
            found[at[c.line]][at[c.against]] = sign(c)
            found[at[c.against]][at[c.line]] = _TURNED[sign(c)]
    return found


def matrix_text(section: Section, block: Block, found: Findings, pairs: Iterable[Comparison]) -> list[str]:
    """The heading, rule and matrix of a block, the highest Avg % first; nothing where fewer than two lines can
    be compared, and a sentence where there are too many."""
    lines = comparable(block)
    if too_many(block):
        return [
            f"No matrix: {len(lines)} lines have this budget, and pairs are made of at most {MOST}."
            " `prunebench compare` compares any two."
        ]
    # the comparisons with `random` name it by its label, which may hold its seeds
    reference = found.references.get(block.budget)
    label = {line.label: line.name for line in lines if line.label == reference}
    here = [c for c in pairs if c.budget == block.budget and c.task == AVERAGE]
    here += [
        replace(c, against=label[c.against])
        for c in found.comparisons
        if c.budget == block.budget and c.task == AVERAGE and c.against in label
    ]
    if not here:
        return []
    points = {line.name: average(line, section) for line in lines}
    names = sorted(points, key=lambda name: (math.isnan(points[name]), -points[name], name))
    called = {line.name: section.line_name(line) for line in lines}
    return [HEADING, RULE, fenced(drawn([called[name] for name in names], signs(names, here)))]


def drawn(names: Sequence[str], found: Sequence[Sequence[str]]) -> str:
    """Rows of names and signs, three characters a column; the diagonal is a dot."""
    number = len(str(len(names))) + 1
    room = WIDTH - number - 1 - 3 * len(names)
    shown = _cut([printable(name) for name in names], room)
    wide = max(map(len, shown))
    head = " " * (number + 1 + wide) + "".join(f"{i:>3}" for i in range(1, len(names) + 1))
    rows = [
        f"{i + 1:>{number}} {name:<{wide}}" + "".join(f"{'.' if i == j else s:>3}" for j, s in enumerate(row))
        for i, (name, row) in enumerate(zip(shown, found, strict=True))
    ]
    return "\n".join(row.rstrip() for row in [head, *rows])


def _cut(names: Sequence[str], room: int) -> list[str]:
    """Names of at most `room` characters. A longer name loses its middle; of all places to cut, the one nearest to the
    middle that keeps most names apart."""
    best = list(names)
    if max(map(len, names)) <= room:
        return best
    most = 0
    for end in sorted(range(room), key=lambda n: abs(2 * n - room + 1)):  # characters of a name's end
        cut = [n if len(n) <= room else f"{n[: room - 1 - end]}…{n[len(n) - end :]}" for n in names]
        if len({*cut}) > most:
            best, most = cut, len({*cut})
    return best
