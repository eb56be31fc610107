"""What the tests of the tables say, for the page: marks, intervals of the average, method against method, equal cost.

Every number is one of LEADERBOARD.md, significance.csv or equal_flops.csv. Here they get the page's numbers of lines,
budgets and sets of questions. A line that the page arranges in another way than the tables has no entry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from harness.report.embedded import finite
from harness.store.sealed import SealedCell
from harness.tables import equal
from harness.tables.compare import ABOVE, AVERAGE, BELOW, OPEN, SAME, TOO_FEW, Comparison, Findings
from harness.tables.kept import Kept
from harness.tables.markdown import same_signs
from harness.tables.pairs import MOST, comparable, study_pairs, too_many
from harness.tables.sections import NAN, Block, Section, average, distinct, sections

VERDICTS = (ABOVE, BELOW, SAME, OPEN, TOO_FEW)
"""The page holds a verdict as its place here."""
COLUMNS = ("n", "images", "difference", "low", "high", "better", "worse", "p", "p_holm", "verdict")
_TURNED = {ABOVE: BELOW, BELOW: ABOVE}


class StudiedSection(NamedTuple):
    """A section of LEADERBOARD.md with its tests."""

    section: Section
    found: Findings
    pairs: Sequence[Comparison]


class Place(NamedTuple):
    """Where the page shows a cell: the numbers of its set of questions, line and budget."""

    set: int
    line: int
    budget: int


class StudyOfPage(NamedTuple):
    """What the page holds of a section: with the page's data, and in a chunk of its own."""

    meta: dict[str, Any]
    chunk: dict[str, Any]


def studied(cells: Iterable[SealedCell], kept: Kept) -> list[StudiedSection]:
    """All sections of these cells with what the tables say of them; what `kept` knows is not computed again.

    Raises PrunebenchError where samples are not those that were sealed.
    """
    return [StudiedSection(section, *study_pairs(section, kept)) for section in sections(distinct(cells))]


def of_page(one: StudiedSection, places: Mapping[str, Place]) -> StudyOfPage | None:
    """A section as the page holds it; `places` of the cells of one model, by identity. None for another model's
    section, and where the page shows no line as the section does."""
    section, found, _ = one
    lines = _placed(section, places)
    if not lines:
        return None
    sets = {task: _set_of(section, task, places) for task in section.tasks}
    rows = []
    for block in section.blocks():
        for line in block.lines:
            if (place := lines.get(id(line))) is None:
                continue
            # the unpruned model is its own measure: LEADERBOARD.md gives its average no interval
            known = found.averages if line.method != "none" else {}
            low, high = known.get((block.budget, line.name), (NAN, NAN))
            marks = {
                str(-1 if task == AVERAGE else sets[task]): signs
                for task in (*line.cells, AVERAGE)
                if (signs := same_signs(found, block.budget, line.name, task).strip())
            }
            rows.append([*place, *map(finite, (average(line, section), low, high)), marks])
    meta = {
        "title": ", ".join(section.short),
        "sets": [sets[task] for task in section.tasks],
        "averaged": [sets[task] for task in section.averaged],
        "rows": rows,
        "equal": _equal(section, lines),
        "most": MOST,
    }
    blocks = [
        found_pairs
        for block in section.blocks()
        if comparable(block) and (found_pairs := _pairs(one, block, lines, sets))
    ]
    chunk = {"columns": COLUMNS, "verdicts": VERDICTS, "blocks": blocks}
    meta["budgets"] = [[block["budget"], block["lines"]] for block in blocks]
    return StudyOfPage(meta, chunk)


def _placed(section: Section, places: Mapping[str, Place]) -> dict[int, tuple[int, int]]:
    """By id the line and budget of the page that a line of the section is: all of its cells, and no others."""
    shown: Counter[tuple[int, int, int]] = Counter(places.values())
    found = {}
    for block in section.blocks():
        for line in block.lines:
            mine = [places[s.identity] for seeds in line.cells.values() for s in seeds if s.identity in places]
            where = {(place.line, place.budget) for place in mine}
            whole = Counter(mine) == Counter({place: shown[place] for place in set(mine)})
            if len(where) == 1 and whole and len(mine) == sum(map(len, line.cells.values())):
                found[id(line)] = where.pop()
    return found


def _set_of(section: Section, task: str, places: Mapping[str, Place]) -> int:
    return next(places[s.identity].set for s in section.cells if s.cell.task == task and s.identity in places)


def _equal(section: Section, lines: Mapping[int, tuple[int, int]]) -> dict[str, Any]:
    """Avg % at equal shares of the unpruned dense prefill FLOPs, as in equal_flops.csv: of each line of the page
    [average, share and budget of the lower and of the upper neighbour], or null; and the measured range."""
    found = []
    for series in section.series():
        here = {lines[id(line)][0] for line in series.lines if id(line) in lines}
        points = equal.measured(section, series)
        if series.method == "none" or len(here) != 1 or not points:
            continue
        row = []
        for share in equal.SHARES:
            at = equal.at(points, share)
            ends = [[finite(p.flops), finite(p.average), p.budget] for p in at.between]
            row.append([finite(at.average), *ends] if at.between else None)
        found.append([here.pop(), row, [finite(points[0].flops), finite(points[-1].flops)]])
    return {"shares": equal.SHARES, "rows": found}


def _pairs(
    one: StudiedSection, block: Block, lines: Mapping[int, tuple[int, int]], sets: Mapping[str, int]
) -> dict[str, Any] | None:
    """Every two lines of a block, in columns: for each pair (first before second), a row per task and one for the
    average, in the order of `tasks`; null where nothing was compared. None where the block has no pair."""
    members = [line for line in comparable(block) if id(line) in lines]
    if len(members) < 2:
        return None
    tasks = [*one.section.tasks, AVERAGE]
    budget = lines[id(members[0])][1]
    numbers = {"budget": budget, "lines": [lines[id(line)][0] for line in members]}
    if too_many(block):
        return {**numbers, "tasks": [], "columns": {}}
    known = _by_pair(one, block)
    asked = [
        known.get((first.name, second.name, task))
        for i, first in enumerate(members)
        for second in members[i + 1 :]
        for task in tasks
    ]
    columns = {name: [_value(c, name) for c in asked] for name in COLUMNS}
    return {**numbers, "tasks": [-1 if task == AVERAGE else sets[task] for task in tasks], "columns": columns}


def _by_pair(one: StudiedSection, block: Block) -> dict[tuple[str, str, str], Comparison]:
    """(line, other, task) -> their comparison; of the line of `random` and another, the one with `random`."""
    reference = one.found.references.get(block.budget)
    name = {line.label: line.name for line in block.lines if line.label == reference}
    found = {}
    for c in (*one.pairs, *(c for c in one.found.comparisons if c.against in name)):
        if c.budget == block.budget:
            against = name.get(c.against, c.against)
            found[c.line, against, c.task] = c
            found[against, c.line, c.task] = turned(replace(c, against=against))
    return found


def turned(c: Comparison) -> Comparison:
    """The same comparison with its sides exchanged. `against` has to be a name of a line."""
    return replace(
        c,
        line=c.against,
        against=c.line,
        difference=-c.difference,
        low=-c.high,
        high=-c.low,
        better=c.worse,
        worse=c.better,
        verdict=_TURNED.get(c.verdict, c.verdict),
    )


def _value(c: Comparison | None, name: str) -> Any:
    if c is None:
        return None
    value = getattr(c, name)
    if name == "verdict":
        return VERDICTS.index(value)
    # a page shows one decimal, and four of a p
    return finite(float(f"{value:.4g}") if name.startswith("p") else round(value, 4))
