"""Take the cells of published folders into one results folder: what holds, byte for byte, with who measured it.

A record is written before the cells that it names (harness/store/submission.py). A record whose cell is not there says
nothing, so a collect that was killed continues with the same command. Nothing in a published folder is followed or run
(harness/store/foreign.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.core.errors import PrunebenchError
from harness.store.files import there
from harness.store.foreign import ForeignCell, ForeignFolder, ForeignJudge, check_there, opened, without
from harness.store.merge import check_target, merge
from harness.store.sealed import SEAL, SealedCell, load
from harness.store.store import Store
from harness.store.submission import Records, record, records, run_of

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
    known, taken = records(target), {}
    for one in holding:
        try:
            taken[one.place] = _decided(one, found.who, target, known, done)
        except PrunebenchError as error:
            done.left.append(f"{found.source}/{one.place}: {error}")
    if not taken:
        return done
    cells = {one.cell.identity: taken[one.place] for one in holding if one.place in taken and one.cell}
    record(found.submission, found.who, [found.listed[identity] for identity in cells], cells, target)
    # those that are there already stay as they are, whatever the bytes of their copy
    old = [place for place, words in taken.items() if "equals" in words]
    unfit = [one.place for one in found.cells if one.place not in taken]
    without(found, [*old, *unfit])
    if len(old) < len(taken):
        merged = merge(found.copy, target)
        done.copied += merged.copied
        done.there += merged.there
        done.left += [f"{found.source}: {why.replace(f'{found.copy}/', '')}" for why in merged.left]
    return done


def _decided(one: ForeignCell, who: str, target: Path, known: Records, done: Collected) -> dict[str, str]:
    """What the record of a submission says of one cell. Raises PrunebenchError where the cell is left."""
    assert one.cell is not None
    mine, place = {"run": run_of(one.cell)}, Store(target).folder(one.cell.cell)
    if not there(place / SEAL):
        return mine
    here = load(place)
    here.verify()
    measured = known.origin(here).measured
    if run_of(here) == mine["run"]:
        if measured and who not in measured:
            raise PrunebenchError(
                f"expected a run of {who}, found a copy of the cell that {measured[0]} measured: its start and its time"
                " are the same; a reproduction is measured again"
            )
        done.there += 1
        return {**mine, "equals": here.samples_sha256}
    _check_equal(one.cell, here, place)
    if who in measured:
        done.there += 1
    else:
        done.reproduced += 1
    return {**mine, "equals": here.samples_sha256}


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
