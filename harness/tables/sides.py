"""The sides of a comparison: from a person's words to the sealed cells of one line.

A side is `method@budget`, with settings behind a colon where they tell lines apart (`random@64:boundary=2,limit=all`);
or the identity of a cell, or the beginning of one. A method from a file is named as it was measured, `my/file.py:Mine`.
Cells of several seeds are one side. Reads cell.json only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from harness.core import budget as budgets
from harness.core.cell import canonical_json
from harness.core.command import word
from harness.core.errors import PrunebenchError, unknown
from harness.core.spelling import command, given
from harness.store.files import slug
from harness.store.sealed import SealedCell
from harness.store.store import Store
from harness.tables.sections import SHORT, Line, Section, budget_order, distinct, sections

#: settings that a message advises for one line at most
MOST = 3
#: where a damaged cell lies, as its message names it: tables call it so, and nothing else of it can be trusted
_PLACE = re.compile(r"cells/(?P<task>[^/]+)/(?P<name>[^/]+)-(?P<identity>[0-9a-f]{16})(?=[/:])")
_ID = re.compile(r"[0-9a-f]{4,16}")
_SETTINGS = re.compile(r"(?P<head>.*?)(?::(?P<settings>[A-Za-z_]\w*=.*))?", re.DOTALL)

#: what a side may name beside a method's knobs: how a cell says it. Digests are compared by their beginning
FIELDS: Mapping[str, Callable[[SealedCell], str]] = {
    "model": lambda s: s.cell.model,
    "weights": lambda s: s.cell.model_fingerprint,
    "stands_for": lambda s: s.cell.stands_for,
    "dtype": lambda s: s.cell.dtype,
    "device": lambda s: s.cell.device_type,
    "kernel": lambda s: s.cell.kernel,
    "processing": lambda s: s.cell.processing,
    "numerics": lambda s: str(s.cell.numerics_version),
    "limit": lambda s: s.asked.limit or "default",
    "data": lambda s: s.cell.data_fingerprint,
    "seed": lambda s: str(s.cell.seed),
    "positions": lambda s: s.cell.positions,
    "method_source": lambda s: s.cell.method_source,
}
DIGESTS = frozenset({"weights", "processing", "data", "method_source"})


@dataclass(frozen=True)
class Folder:
    """A results folder: its cells, and those that are damaged and left out, with the reason."""

    root: Path
    known: Mapping[str, SealedCell]
    damaged: Sequence[str]

    @cached_property
    def sections(self) -> list[Section]:
        return sections(self.known)

    def lost(self, *, tasks: Collection[str] = (), method: str = "", budget: str = "", beginning: str = "") -> str:
        """The folders of damaged cells of these tasks, this method, budget and identity, with commas; "" for none. A
        damaged cell says no more than the name of its folder."""
        end = f"-{slug(method)}-{slug(budget)}" if budget else f"-{slug(method)}-"
        found = [place for why in self.damaged if (place := _PLACE.search(why))]
        return ", ".join(
            f"{one['task']}/{one['name']}-{one['identity']}"
            for one in found
            if (not tasks or one["task"] in {slug(task) for task in tasks})
            and (not method or (one["name"].endswith(end) if budget else end in f"{one['name']}-"))
            and one["identity"].startswith(beginning)
        )


@dataclass(frozen=True)
class Words:
    """What a person wrote of a side."""

    text: str
    method: str
    budget: str | None
    """None where none was given."""
    settings: Mapping[str, str]
    identity: str = ""
    """The beginning of a cell's identity; then there is nothing else."""


@dataclass(frozen=True)
class Side:
    """The cells of one line, and where they come from."""

    label: str
    line: Line
    section: Section
    folder: Folder
    named: frozenset[str]
    """Of `FIELDS`, those that the words chose: they may differ from the other side's. A cell named by its identity
    names all."""

    @property
    def cells(self) -> Mapping[str, Sequence[SealedCell]]:
        """task -> one cell a seed."""
        return self.line.cells

    @property
    def identities(self) -> frozenset[tuple[str, str]]:
        """Folder and identity of every cell."""
        return frozenset((str(self.folder.root.resolve()), s.identity) for seeds in self.cells.values() for s in seeds)


@dataclass(frozen=True)
class _Candidate:
    section: Section
    line: Line


def read_folder(root: Path) -> Folder:
    """The cells of a results folder; a damaged one is left out and named. Raises PrunebenchError where none is left."""
    damaged: list[str] = []
    cells = Store(root).cells(damaged, check=lambda sealed: None)  # samples are hashed where they are read
    if not cells:
        one = command("eval", method="fastv", budget="64")
        said = f"; damaged: {damaged[0]}" if damaged else ""
        raise PrunebenchError(f"{root}: expected sealed cells, found none: `{one}` makes some{said}")
    return Folder(root, distinct(cells), damaged)


def read_words(text: str, folder: Folder) -> Words:
    """Raises PrunebenchError for a side that cannot be read."""
    text = text.strip()
    methods = {s.cell.method for s in folder.known.values()}
    if _ID.fullmatch(text) and text not in methods:
        return Words(text, "", None, {}, text)
    method, at, rest = text.rpartition("@")
    found = _SETTINGS.fullmatch(rest)
    assert found is not None  # it matches any text
    head, settings = found["head"], found["settings"] or ""
    if not at:
        method, head = head, ""
    if not method or (at and not head):
        raise PrunebenchError(
            f"side {text!r}: expected method@budget, as in fastv@64 or random@64:boundary=2, or the identity of a cell"
        )
    budget = str(budgets.parse(head)) if at else ("none" if method == "none" else None)
    return Words(text, method, budget, _settings(text, settings))


def _settings(text: str, settings: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in re.split(r",(?=[A-Za-z_]\w*=)", settings) if settings else ():
        name, _, value = part.partition("=")
        if not value:
            raise PrunebenchError(f"side {text!r}: expected a value behind {name}=, found none")
        if name in found:
            raise PrunebenchError(f"side {text!r}: {name} is given twice: give {name} once")
        found[name] = value
    return found


def resolve(
    texts: Sequence[str], folders: Sequence[Folder], tasks: Sequence[str] = (), model: str = ""
) -> list[tuple[Side, Side]]:
    """The pairs of sides to compare: of one folder all pairs, of two folders each side with itself.

    Raises PrunebenchError for a side that is unknown, or that several lines answer to.
    """
    folders = [_only_model(folder, model) for folder in folders]
    _check_tasks(tasks, folders)
    if len(folders) == 2:
        pairs = [_before_and_after(text, folders, tasks) for text in texts]
    else:
        sides = _together(texts, folders[0], tasks)
        pairs = [(one, other) for i, one in enumerate(sides) for other in sides[i + 1 :]]
    for one, other in pairs:
        if one.identities == other.identities:
            raise PrunebenchError(
                f"{one.label} and {other.label} are the same cells: name two methods, budgets or settings"
            )
    return pairs


def _only_model(folder: Folder, model: str) -> Folder:
    if not model:
        return folder
    known = {i: s for i, s in folder.known.items() if s.cell.model == model}
    if not known:
        raise unknown("model of these cells", model, {s.cell.model for s in folder.known.values()})
    return replace(folder, known=known)


def _check_tasks(tasks: Sequence[str], folders: Sequence[Folder]) -> None:
    for folder in folders:
        there = {s.cell.task for s in folder.known.values()}
        for task in tasks:
            if task not in there:
                raise PrunebenchError(
                    f"{unknown('task of these cells', task, there)}{in_refusal(folder.lost(tasks=[task]))}"
                )


def _together(texts: Sequence[str], folder: Folder, tasks: Sequence[str]) -> list[Side]:
    """One side for each text: of the one section that holds all of them, else of the only one that each has."""
    read = [read_words(text, folder) for text in texts]
    found = [_candidates(words, folder, tasks) for words in read]
    shared = [s for s in _sections(found) if all(any(c.section is s for c in mine) for mine in found)]
    if len(shared) > 1:
        _refuse_sections(read, shared)
    chosen = [[c for c in mine if c.section is shared[0]] for mine in found] if shared else found
    return [_side(words, _one(words, mine), folder) for words, mine in zip(read, chosen, strict=True)]


def _before_and_after(text: str, folders: Sequence[Folder], tasks: Sequence[str]) -> tuple[Side, Side]:
    """The same side of two folders: where several lines answer, the one that both folders have."""
    read = [read_words(text, folder) for folder in folders]
    found = [_candidates(words, folder, tasks) for words, folder in zip(read, folders, strict=True)]
    alike = [
        (one, other)
        for one in found[0]
        for other in found[1]
        if (one.section.facts, one.line.name) == (other.section.facts, other.line.name)
    ]
    first, second = alike[0] if len(alike) == 1 else map(_one, read, found)
    return _in(read[0], first, folders[0]), _in(read[1], second, folders[1])


def _in(words: Words, one: _Candidate, folder: Folder) -> Side:
    return replace(_side(words, one, folder), label=f"{words.text} in {folder.root}")


def _sections(found: Iterable[Sequence[_Candidate]]) -> list[Section]:
    return list({id(c.section): c.section for mine in found for c in mine}.values())


def _side(words: Words, one: _Candidate, folder: Folder) -> Side:
    named = frozenset(FIELDS) if words.identity else frozenset(words.settings) & frozenset(FIELDS)
    label = words.text
    if words.identity:
        label = f"{one.line.name}@{one.line.budget} {next(iter(one.line.cells.values()))[0].identity[:8]}"
    return Side(label, one.line, one.section, folder, named)


# ------------------------------------------------------------------------------------------------- which lines answer


def _candidates(words: Words, folder: Folder, tasks: Sequence[str]) -> list[_Candidate]:
    """The lines that answer to a side, with the cells of `tasks` alone where there are any. Raises PrunebenchError
    where none does."""
    lines = [
        _Candidate(section, line) for section in folder.sections for block in section.blocks() for line in block.lines
    ]
    if words.identity:
        return _by_identity(words, lines, folder)
    of = [c for c in lines if _is_method(c, words.method)]
    if not of:
        said = unknown("method of these cells", words.method, {c.line.method for c in lines})
        raise PrunebenchError(f"side {words.text!r}: {said}{in_refusal(folder.lost(method=words.method))}")
    at = [c for c in of if words.budget in (None, c.line.budget)]
    there = sorted({c.line.budget for c in of}, key=budget_order)
    if not at or (words.budget is None and len(there) > 1):
        example = "none" if words.method == "none" else f"one as in {words.method}@{there[0]}"
        lost = "" if at else folder.lost(method=words.method, budget=words.budget or "")
        raise PrunebenchError(
            f"side {words.text!r}: expected a budget at which {words.method} was measured ({', '.join(there)}), found"
            f" {words.budget or 'none'}; write {example}{in_refusal(lost)}"
        )
    chosen = [c for c in (_filtered(c, words, tasks) for c in at) if c.line.cells]
    if not chosen:
        _refuse_settings(words, at, tasks, folder)
    return chosen


def _is_method(c: _Candidate, method: str) -> bool:
    """Whether a line is called so: by its method, by its name at a budget or over all, or by the file and class it was
    asked as."""
    line = c.line
    if method in (line.method, line.name, c.section.line_name(line)):
        return True
    path, colon, cls = method.rpartition(":")
    if not colon:
        return False
    asked = {s.asked.method for seeds in line.cells.values() for s in seeds}
    return any(a == method or (a.endswith(f":{cls}") and _same_file(a.rpartition(":")[0], path)) for a in asked)


def _same_file(one: str, other: str) -> bool:
    with suppress(OSError, ValueError):
        return Path(one).resolve() == Path(other).resolve()
    return False


def _filtered(c: _Candidate, words: Words, tasks: Sequence[str]) -> _Candidate:
    cells = {
        task: [s for s in seeds if all(_says(s, name, value) for name, value in words.settings.items())]
        for task, seeds in c.line.cells.items()
        if not tasks or task in tasks
    }
    return _Candidate(c.section, replace(c.line, cells={task: seeds for task, seeds in cells.items() if seeds}))


def _by_identity(words: Words, lines: Sequence[_Candidate], folder: Folder) -> list[_Candidate]:
    found = sorted(i for i in folder.known if i.startswith(words.identity))
    if len(found) != 1:
        named = [f"{i[:12]} ({s.cell.task}, {s.cell.method}@{s.cell.budget})" for i in found if (s := folder.known[i])]
        what = f"found {len(found)}: {', '.join(named[:8])}; write more digits" if found else "found none"
        where = "" if found else f"; `prunebench results list --results {folder.root}` lists all"
        where += in_refusal(folder.lost(beginning=words.identity))
        raise PrunebenchError(f"side {words.text!r}: expected one cell whose identity begins so, {what}{where}")
    for c in lines:
        for task, seeds in c.line.cells.items():
            mine = [s for s in seeds if s.identity == found[0]]
            if mine:
                return [_Candidate(c.section, replace(c.line, cells={task: mine}))]
    raise AssertionError("every cell is in a section")


def _says(sealed: SealedCell, name: str, value: str) -> bool:
    """Whether a cell has this setting; a digest may be cut short."""
    if name in sealed.cell.knobs:
        return _is_value(sealed.cell.knobs[name], value)
    if name not in FIELDS:
        return False
    mine = FIELDS[name](sealed)
    return mine.startswith(value) if name in DIGESTS else mine == value


def _is_value(knob: Any, value: str) -> bool:
    """Whether a person's text is a knob's value, as `--set` takes it or as tables print it."""
    if value in (word(knob), canonical_json(knob)) or value.lower() == word(knob).lower():
        return True
    with suppress(ValueError):
        return bool(canonical_json(json.loads(value)) == canonical_json(knob))
    return False


# ----------------------------------------------------------------------------------------------------------- refusals


def _one(words: Words, found: Sequence[_Candidate]) -> _Candidate:
    """The only line. Raises PrunebenchError that says in what several differ."""
    if len(found) == 1:
        return found[0]
    if len(_sections([found])) > 1:
        _refuse_sections([words], _sections([found]))
    differing = _differing(found)
    said = [f"{name} ({', '.join(sorted({v for v in values if v is not None}))})" for name, values in differing.items()]
    raise PrunebenchError(
        f"side {words.text!r}: expected one setting, found {len(found)}, which differ in {', '.join(said)}: write"
        f" {' or '.join(_way(words, c, i, differing, found) for i, c in enumerate(found))}"
    )


def _differing(found: Sequence[_Candidate]) -> dict[str, list[str | None]]:
    """The settings in which lines differ, with the value of each line; None where its cells have several, or one has
    none. Those that tables name come first."""
    cells = [[s for seeds in c.line.cells.values() for s in seeds] for c in found]
    split = {name for c in found for name in c.line.split}
    knobs = {name for mine in cells for s in mine for name in s.cell.knobs}
    names = [*sorted(split), "positions", *sorted(knobs - split)]
    values = {name: [_value({_setting(s, name) for s in mine}) for mine in cells] for name in dict.fromkeys(names)}
    return {name: each for name, each in values.items() if len({*each}) > 1}


def _setting(sealed: SealedCell, name: str) -> str | None:
    """A setting as a side names it; None where the cell has no such knob."""
    if name in sealed.cell.knobs:
        knob = sealed.cell.knobs[name]
        return canonical_json(knob) if isinstance(knob, Mapping) else word(knob)
    value = FIELDS[name](sealed) if name in FIELDS else None
    return value[:SHORT] if value and name in DIGESTS else value


def _value(values: Collection[str | None]) -> str | None:
    return next(iter(values)) if len(values) == 1 else None


def _way(
    words: Words, c: _Candidate, i: int, differing: Mapping[str, Sequence[str | None]], found: Sequence[_Candidate]
) -> str:
    """A side's words with the fewest settings that name line `i` alone; else the line as tables call it."""
    mine = {name: value for name, values in differing.items() if (value := values[i]) is not None}
    for size in range(1, min(len(mine), MOST) + 1):
        for names in combinations(mine, size):
            more = {name: mine[name] for name in names}
            if [one for one in found if _filtered(one, replace(words, settings=more), ()).line.cells] == [c]:
                return _with(words, more)
    settings = ",".join(f"{name}={value}" for name, value in words.settings.items())
    return f"'{c.line.name}@{c.line.budget}{':' if settings else ''}{settings}'"


def _with(words: Words, more: Mapping[str, str]) -> str:
    """The words with these settings; one that they name is replaced."""
    named = {**words.settings, **more}
    head = words.text.removesuffix(":" + ",".join(f"{name}={value}" for name, value in words.settings.items()))
    return f"{head}:{','.join(f'{name}={value}' for name, value in named.items())}"


def _refuse_sections(read: Sequence[Words], found: Sequence[Section]) -> None:
    """Raise PrunebenchError that says in what the sections differ in which the sides stand."""
    texts = [words.text for words in read]
    seen: dict[str, list[str]] = {}
    for name, of in FIELDS.items():
        if name not in ("seed", "positions", "method_source", "data"):
            seen[name] = sorted({of(section.cells[0]) for section in found})
    differing = {name: values for name, values in seen.items() if len(values) > 1}
    if not differing:  # the same request, asked of other data
        tasks = {t for section in found for t in section.tasks}
        data = [sorted({FIELDS["data"](s.of_task(t)) for s in found if t in s.tasks}) for t in sorted(tasks)]
        differing = {"data": next((one for one in data if len(one) > 1), data[0])}
    said = [
        f"{name} ({', '.join(v[:SHORT] if name in DIGESTS else v or 'none' for v in values)})"
        for name, values in differing.items()
    ]
    name, values = next(iter(differing.items()))
    value = values[0][:SHORT] if name in DIGESTS else values[0]
    example = f"{texts[0]}{',' if read[0].settings else ':'}{name}={value}"
    which = f"side {texts[0]!r}" if len(texts) == 1 else f"sides {', '.join(texts)}"
    raise PrunebenchError(
        f"{which}: expected one set of cells, found {len(found)}, which differ in {'; '.join(said)}: name one, as in"
        f" {example}" + (f", or with {given('model')}" if name == "model" else "")
    )


def in_refusal(*lost: str) -> str:
    """What a refusal adds where damaged cells may be what is missing."""
    return f"; damaged and left out: {', '.join(filter(None, lost))}" if any(lost) else ""


def _refuse_settings(words: Words, at: Sequence[_Candidate], tasks: Sequence[str], folder: Folder) -> None:
    """Raise PrunebenchError for settings, or tasks, that no cell of the method and budget has."""
    cells = [s for c in at for task, seeds in c.line.cells.items() for s in seeds if not tasks or task in tasks]
    if not cells:
        there = sorted({task for c in at for task in c.line.cells})
        lost = folder.lost(tasks=tasks, method=at[0].line.method, budget=at[0].line.budget)
        raise PrunebenchError(
            f"side {words.text!r}: expected cells of {', '.join(tasks)}, found cells of {', '.join(there)} alone"
            f"{in_refusal(lost)}"
        )
    for name, value in words.settings.items():
        has = sorted(
            {
                word(s.cell.knobs[name]) if name in s.cell.knobs else FIELDS[name](s)
                for s in cells
                if name in s.cell.knobs or name in FIELDS
            }
        )
        if not has:
            known = {knob for s in cells for knob in s.cell.knobs} | set(FIELDS)
            raise PrunebenchError(f"side {words.text!r}: {unknown('setting', name, known)}")
        if not any(_says(s, name, value) for s in cells):
            raise PrunebenchError(
                f"side {words.text!r}: expected {name} to be one of {', '.join(has)}, as measured, found {value}"
            )
    raise PrunebenchError(f"side {words.text!r}: no cell has all of these settings: leave one out")
