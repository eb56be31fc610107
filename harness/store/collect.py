"""Take the cells of published folders into one results folder: what holds, byte for byte, with who measured it.

A record is written before the cells that it names (harness/store/submission.py). A record whose cell is not there says
nothing, so a collect that was killed continues with the same command. Nothing in a published folder is followed or run
(harness/store/foreign.py).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.core.errors import PrunebenchError
from harness.core.spelling import given
from harness.store.files import there
from harness.store.foreign import ForeignFolder, ForeignJudge, check_there, opened, without
from harness.store.merge import check_target, merge
from harness.store.sealed import SEAL, SealedCell, load
from harness.store.store import Store
from harness.store.submission import Records, place, record, records, run_of

#: columns that a second run must give again to the letter
SAME = ("key", "answer")


@dataclass
class Collected:
    """What a collect did with one folder."""

    source: Path
    who: str = ""
    copied: int = 0
    there: int = 0
    """Cells that were there from the same run."""
    reproduced: int = 0
    """Cells that were there from another person's run, with equal answers."""
    left: list[str] = field(default_factory=list)
    """Cells that were not taken, and faults of the folder."""


def collect(
    sources: Sequence[Path], target: Path, judge: ForeignJudge, say: Callable[[Collected], None] | None = None
) -> list[Collected]:
    """Check and take the cells of each folder in turn; what is wrong with one changes nothing for the others. `say`
    hears of each folder as it is done.

    Raises PrunebenchError where the target cannot take results, or a source is not there.
    """
    check_there(sources)
    for source in sources:
        check_target(source, target)
    done = []
    for source in sources:
        with opened(source, judge) as found:
            done.append(_one(found, target))
        if say:
            say(done[-1])
    return done


def _one(found: ForeignFolder, target: Path) -> Collected:
    done = Collected(found.source, found.who, left=[f"{found.source}: {why}" for why in found.faults])
    holding = found.holding
    done.left += [
        f"{found.source}/{one.place}: {one.state}: {'; '.join(one.wrong) or 'nobody says who measured it'}"
        for one in found.failing
    ]
    known, questions = records(target), _Questions(target)
    taken: dict[str, dict[str, str]] = {}
    old = []  # those that are there already stay as they are, whatever the bytes of their copy
    for one in holding:
        try:
            assert one.cell is not None
            folder, run = Store(target).folder(one.cell.cell), run_of(one.cell)
            known.check_run(one.cell.identity, run, found.who)
            if there(folder / SEAL):
                taken[one.place] = _compared(one.cell, run, load(folder), found.who, known, done)
                old.append(one.place)
            else:
                questions.check(one.cell)
                taken[one.place] = {"run": run}
        except PrunebenchError as error:
            done.left.append(f"{found.source}/{one.place}: {str(error).replace(f'{found.copy}/', '')}")
    if not taken:
        return done
    cells = {one.cell.identity: taken[one.place] for one in holding if one.place in taken and one.cell}
    record(place(target, found.submission), found.who, [found.listed[identity] for identity in cells], cells)
    unfit = [one.place for one in found.cells if one.place not in taken]
    without(found, [*old, *unfit])
    if len(old) < len(taken):
        merged = merge(found.copy, target)
        done.copied += merged.copied
        done.there += merged.there
        done.left += [f"{found.source}: {why.replace(f'{found.copy}/', '')}" for why in merged.left]
    return done


class _Questions:
    """The questions that cells of one fingerprint of data have in a results folder. One cell with others would end
    every table that holds both."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._first: dict[tuple[str, str], SealedCell] | None = None
        self._read: dict[tuple[str, str], list[tuple[str, str]]] = {}

    def check(self, cell: SealedCell) -> None:
        """Raise PrunebenchError unless a cell has the keys and images of the first cell of its data, which it is where
        there is none."""
        if self._first is None:
            self._first = {}
            for one in Store(self._root).cells([]):  # damaged ones are in no table
                self._first.setdefault(_data(one), one)
        first = self._first.get(_data(cell))
        mine = _asked(cell)
        if first is None:
            self._first[_data(cell)] = cell
            self._read[_data(cell)] = mine
            return
        if _data(cell) not in self._read:
            self._read[_data(cell)] = _asked(first)
        if mine != self._read[_data(cell)]:
            gone = f"prunebench results rm {first.identity} --results {shlex.quote(str(self._root))}"
            raise PrunebenchError(
                f"expected the questions of {first.folder}, since both cells name the data"
                f" {cell.cell.data_fingerprint[:16]}, found other keys or images: the cell that came first stays."
                f" `prunebench results verify --foreign` with {given('data', 'FOLDER')} shows whether this one holds."
                f" If so, `{gone}` removes the other: collect again"
            )


def _data(cell: SealedCell) -> tuple[str, str]:
    return cell.cell.task, cell.cell.data_fingerprint


def _asked(cell: SealedCell) -> list[tuple[str, str]]:
    """Key and image of each question, sorted by key."""
    found = cell.columns("key", "image")
    return list(zip(found["key"], found["image"], strict=True))


def _compared(
    mine: SealedCell, run: str, here: SealedCell, who: str, known: Records, done: Collected
) -> dict[str, str]:
    """What the record of a submission says of a cell that is there. Raises PrunebenchError where the cell is left."""
    here.verify()
    if run_of(here) == run:
        done.there += 1
        return {"run": run}
    _check_equal(mine, here, here.folder)
    if who in known.origin(here).measured:
        done.there += 1
    else:
        done.reproduced += 1
    return {"run": run, "equals": here.samples_sha256}


def _check_equal(one: SealedCell, here: SealedCell, place: Path) -> None:
    """Raise PrunebenchError unless two measurements of one identity have the same answers and the same scores."""
    mine, other = (cell.columns(*SAME, "score") for cell in (one, here))
    if mine["key"] != other["key"]:
        raise PrunebenchError(f"expected the questions that {place} has, found other ones: both stay as they are")
    differ = [key for key, a, b in zip(mine["key"], mine["answer"], other["answer"], strict=True) if a != b]
    if differ:
        raise PrunebenchError(
            f"expected the answers that {place} has, found {len(differ)} of {len(mine['key'])} other ones under the"
            f" same identity, as to {differ[0]}: both stay as they are; measure the cell again to see which is right"
        )
    if mine["score"] != other["score"]:
        raise PrunebenchError(f"expected the scores that {place} has for the same answers, found other ones")
