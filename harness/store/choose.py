"""Cells by what a person names: filters over settings, and identities by their beginnings."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from harness.core.errors import PrunebenchError, unknown
from harness.store.files import few
from harness.store.sealed import SEAL, SealedCell, load
from harness.store.verify import Found, survey

#: digits of an identity that a list shows at least
SHOWN = 8


@dataclass(frozen=True)
class Wanted:
    """Filters; an empty one takes every cell."""

    task: Sequence[str] = ()
    model: Sequence[str] = ()
    method: Sequence[str] = ()
    budget: Sequence[str] = ()
    limit: Sequence[str] = ()
    """LIMIT as it was asked for."""
    full: bool = False
    """Full runs only."""

    def __bool__(self) -> bool:
        return any(getattr(self, f.name) for f in fields(self))

    def of(self, cells: Sequence[SealedCell]) -> list[SealedCell]:
        """Those that all filters take. Raises PrunebenchError for a name that no cell has, and where nothing is
        left."""
        for name in ("task", "model", "method", "budget", "limit"):
            known = {_value(sealed, name) for sealed in cells}
            for word in getattr(self, name):
                if name == "limit" and word not in known and known == {""}:
                    raise PrunebenchError(
                        f"expected tries with LIMIT={word}, found full runs alone: leave the limit out"
                    )
                if word not in known:
                    raise unknown(f"{name} of these cells", word, known - {""})
        found = [sealed for sealed in cells if self._takes(sealed)]
        if cells and not found:
            raise PrunebenchError(f"expected cells that all filters take, found none of {len(cells)}: give fewer")
        return found

    def _takes(self, sealed: SealedCell) -> bool:
        names = ("task", "model", "method", "budget", "limit")
        given = {name: words for name in names if (words := getattr(self, name))}
        return not (self.full and sealed.limit) and all(_value(sealed, name) in given[name] for name in given)


def _value(sealed: SealedCell, name: str) -> str:
    return sealed.limit if name == "limit" else str(getattr(sealed.cell, name))


def everything(root: Path) -> list[Found]:
    """What lies under cells/, looked through but not computed again. A cell beside other files, or in a folder of
    another name, counts as whole, as it does for tables. Raises PrunebenchError if there is nothing."""
    found = [_as_tables_do(one) for one in survey(root, deep=False)]
    if not found:
        raise PrunebenchError(f"{root}: expected cells below cells/, found none: `prunebench eval` makes some")
    return found


def _as_tables_do(found: Found) -> Found:
    if not found.wrong or not (found.path / SEAL).is_file():
        return found
    try:
        cell = load(found.path)
        cell.verify()
    except PrunebenchError:
        return found
    return replace(found, cell=cell, wrong=())


def by_identity(found: Sequence[Found], beginning: str, root: Path) -> Found:
    """The one folder in a results folder `root` whose identity begins so. Raises PrunebenchError where there is none,
    or more than one."""
    folders = [one for one in found if one.path.is_dir()]
    same = [one for one in folders if beginning and identity(one).startswith(beginning.lower())]
    if not same:
        raise PrunebenchError(
            f"cell {beginning!r}: expected the beginning of an identity, found none that begins so among"
            f" {len(folders)}: `prunebench results list --results {shlex.quote(str(root))}` shows them"
        )
    if len({identity(one) for one in same}) == 1 and sum(not one.wrong for one in same) == 1:
        return next(one for one in same if not one.wrong)  # beside a copy under another name
    if len(same) > 1:
        raise PrunebenchError(
            f"cell {beginning!r}: expected one cell, found {len(same)} that begin so:"
            f" {few([f'{identity(one)} ({one.path.parent.name}/{one.path.name[:-17]})' for one in same])}: give more"
            " digits"
        )
    return same[0]


def identity(found: Found) -> str:
    """As the name of the folder states it; all of a shorter name."""
    return found.path.name[-16:]


def digits(found: Sequence[Found]) -> int:
    """How many first digits tell all identities apart, at least `SHOWN`."""
    names = [identity(one) for one in found]
    return next((n for n in range(SHOWN, 16) if len({name[:n] for name in names}) == len({*names})), 16)
