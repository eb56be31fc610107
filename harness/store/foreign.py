"""A published folder of somebody else, read as data: what in it holds, what does not, and what nobody here can check.

Nothing of it is opened by its path. Every file is read once, from a folder that is held open, through no link, up to a
bound. What is well formed is copied into a folder of our own, and only that copy is looked at from then on: a file that
changes in the meantime changes nothing. `results verify --foreign` and `results collect` both come here.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from harness.core.errors import PrunebenchError
from harness.store import probe, strict, submission
from harness.store.sealed import KEYS, SAMPLES, SEAL, SealedCell, load
from harness.store.store import Store
from harness.store.submission import NAME, checked, entry
from harness.store.verify import Again, examined

#: bytes of a cell.json, a samples.parquet, a submission.json, and of all files of a folder
MOST = {SEAL: 16 * 2**20, SAMPLES: 64 * 2**20, NAME: submission.MOST}
MOST_IN_ALL = 2 * 2**30
#: names in one folder
MOST_NAMES = 20_000
#: memory and seconds of processor of the process that reads samples
PROBE_BYTES, PROBE_S = 3 * 2**30, 900
HOLDS, REFUSED, UNKNOWN = "holds", "refused", "unknown code"
ONLY_THE_RUN = (
    "answers, lengths, scoring costs, edits, notes, times, device and who measured: only the run knows, a second run"
    " tells"
)
_NAME = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9._+-]{0,239}")


class ForeignJudge(Again, Protocol):
    """Computes a cell's numbers again, and knows the methods here. It takes no word of a cell for a path, a module or
    an address."""

    def unknown_code(self, cell: SealedCell) -> str:
        """Why the method of a cell is none whose code is here; "" where it is."""

    def wrong_words(self, cell: SealedCell) -> list[str]:
        """Words of the request that are no plain names, or that are not those of the cell."""


@dataclass(frozen=True)
class ForeignCell:
    """One cell of a published folder."""

    place: str
    """Its folder inside the submission, as found."""
    state: str
    """`HOLDS`, `REFUSED` or `UNKNOWN`."""
    cell: SealedCell | None = None
    """The copy of ours; None where it could not be read."""
    wrong: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    """What could not be checked here, and why. A cell that holds has at least one line."""


@dataclass
class ForeignFolder:
    """One published folder as found."""

    source: Path
    copy: Path
    """A results folder of ours with the cells that could be read."""
    who: str = ""
    submission: bytes = b""
    listed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The lines of the submission by identity; none where it cannot be read."""
    faults: list[str] = field(default_factory=list)
    """What is wrong with the folder itself."""
    cells: list[ForeignCell] = field(default_factory=list)

    @property
    def holding(self) -> list[ForeignCell]:
        """The cells that hold; none where nobody says who measured them."""
        return [one for one in self.cells if one.state == HOLDS] if self.who else []

    @property
    def failing(self) -> list[ForeignCell]:
        """The others."""
        return [one for one in self.cells if not (self.who and one.state == HOLDS)]

    @property
    def fine(self) -> bool:
        """Whether all of it holds."""
        return not self.faults and len(self.holding) == len(self.cells) > 0


def check_there(sources: Sequence[Path]) -> None:
    """Raise PrunebenchError where one of these is not there; it is asked before the first one is read."""
    for source in sources:
        if not os.path.lexists(source):
            raise PrunebenchError(
                f"{source}: expected a folder that `prunebench results publish` wrote, found none there"
            )


@contextmanager
def opened(source: Path, judge: ForeignJudge) -> Iterator[ForeignFolder]:
    """Everything in a published folder, checked; the copy lasts as long as the `with`.

    Raises PrunebenchError where there is no folder of this name. All else that is wrong is said in the result.
    """
    check_there([source])
    with tempfile.TemporaryDirectory(prefix="prunebench-foreign-") as name:
        found = ForeignFolder(source, Path(name))
        copied = _copied(found)
        _read_submission(found)
        with _SamplesReader() as reader:
            found.cells = [_judged(found, place, why, reader, judge) for place, why in copied]
        names = {path.rpartition("-")[2] for path, _ in copied}
        missing = sorted(set(found.listed) - names)
        if missing:
            found.faults.append(f"{NAME}: it lists {missing[0]}, of which there is no folder ({len(missing)} cells)")
        if not copied and not found.faults:
            found.faults.append("it holds no cells")
        yield found


# ---------------------------------------------------------------------------------------------------- reading, bounded


class _Left:
    """Bytes that may still be read of one folder."""

    def __init__(self) -> None:
        self.bytes = MOST_IN_ALL


def _copied(found: ForeignFolder) -> list[tuple[str, str]]:
    """Copy what is a cell by its names and sizes; (place, why it cannot be read) of every folder of a cell."""
    places: list[tuple[str, str]] = []
    left = _Left()
    try:
        with _folder(os.fspath(found.source)) as top:
            names = _names(top)
            if NAME not in names:  # no advice about the rest: it may be somebody's own results folder
                if "cells" in names:
                    with _folder("cells", top):
                        raise PrunebenchError(
                            f"{NAME}: expected it beside cells/, found none: `prunebench results publish` writes a"
                            " folder with both"
                        )
                raise PrunebenchError(
                    f"{NAME}: expected it beside cells/, found neither: name each folder that `prunebench results"
                    " publish` wrote, not the one above"
                )
            for name in names:
                if name == NAME:
                    found.submission = _read(top, NAME, left)
                elif name != "cells":
                    found.faults.append(f"{_shown(name)}: expected {NAME} and cells/ alone: remove it")
            with _folder("cells", top) as cells:
                for task in _names(cells):
                    try:
                        _check_name(task)
                        with _folder(task, cells) as folder:
                            for name in _names(folder):
                                places.append((f"cells/{_shown(task)}/{_shown(name)}", ""))
                                try:
                                    _check_name(name)
                                    _copy(folder, name, found.copy / "cells" / task / name, left)
                                except PrunebenchError as error:
                                    places[-1] = (places[-1][0], str(error))
                                if len(places) > MOST_NAMES:
                                    raise PrunebenchError(f"expected at most {MOST_NAMES:,} cells, found more")
                    except PrunebenchError as error:
                        found.faults.append(f"cells/{_shown(task)}: {error}")
    except PrunebenchError as error:
        found.faults.append(str(error))
    return places


def _copy(folder: int, name: str, into: Path, left: _Left) -> None:
    """Copy the two files of a cell. Raises PrunebenchError for anything else in its folder."""
    with _folder(name, folder) as cell:
        names = _names(cell)
        if sorted(names) != [SEAL, SAMPLES]:
            raise PrunebenchError(
                f"expected {SEAL} and {SAMPLES} alone, found {', '.join(map(_shown, names)) or 'none'}"
            )
        files = {name: _read(cell, name, left) for name in names}
    into.mkdir(parents=True)
    for name, data in files.items():
        (into / name).write_bytes(data)


@contextmanager
def _folder(name: str, inside: int | None = None) -> Iterator[int]:
    """A folder held open, and no link. Raises PrunebenchError for anything else."""
    try:
        if os.stat(name, dir_fd=inside, follow_symlinks=False).st_mode & 0o170000 != stat.S_IFDIR:
            raise PrunebenchError(f"{_shown(name)}: expected a folder, found {_kind(name, inside)}")
        handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=inside)
    except OSError as error:
        raise PrunebenchError(f"{_shown(name)}: expected a folder, found none to read: {error.strerror}") from None
    try:
        yield handle
    finally:
        os.close(handle)


def _kind(name: str, inside: int | None) -> str:
    mode = os.stat(name, dir_fd=inside, follow_symlinks=False).st_mode
    kinds = {stat.S_IFLNK: "a link", stat.S_IFREG: "a file", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a folder" if stat.S_ISDIR(mode) else "a device")


def _names(folder: int) -> list[str]:
    """The names in an open folder, sorted. Raises PrunebenchError where they are too many."""
    found: list[str] = []
    with os.scandir(folder) as entries:
        for one in entries:
            found.append(one.name)
            if len(found) > MOST_NAMES:
                raise PrunebenchError(f"expected at most {MOST_NAMES:,} names in a folder, found more")
    return sorted(found)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or ".." in name:
        raise PrunebenchError("expected a name of letters, digits, . _ + and -, found another: publish the cells again")


def _read(folder: int, name: str, left: _Left) -> bytes:
    """The bytes of a plain file in an open folder. Raises PrunebenchError for a link, a pipe, a device, a file of
    several names, and for one beyond its bound."""
    try:
        if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise PrunebenchError(f"{name}: expected a file, found {_kind(name, folder)}")
        # what it was a moment ago is asked again of what was opened
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        raise PrunebenchError(f"{name}: expected a file, found none to read: {error.strerror}") from None
    with os.fdopen(handle, "rb") as file:
        is_now = os.fstat(handle)
        if not stat.S_ISREG(is_now.st_mode):
            raise PrunebenchError(f"{name}: expected a file, found something else")
        if is_now.st_nlink != 1:
            raise PrunebenchError(f"{name}: expected a file of one name, found {is_now.st_nlink} (hard links): copy it")
        most = min(MOST[name], left.bytes)
        data = file.read(most + 1) if is_now.st_size <= most else None
    if data is None or len(data) > most:
        bound = MOST[name] if most == MOST[name] else MOST_IN_ALL
        whole = "" if bound == MOST[name] else " in all files together"
        raise PrunebenchError(f"{name}: expected at most {bound:,} bytes{whole}, found {is_now.st_size:,}")
    left.bytes -= len(data)
    return data


def _shown(name: str) -> str:
    """A name from elsewhere for a message; what does not print is spelt by whoever prints the message."""
    return name if len(name) <= 120 else f"{name[:120]}..."


# ------------------------------------------------------------------------------------------------------------ judging


def _read_submission(found: ForeignFolder) -> None:
    """Who measured, and the lines of the submission.json; what is wrong with the file is a fault of the folder."""
    if not found.submission and found.faults:
        return  # they say why
    try:
        found.who, found.listed = checked(strict.parsed(found.submission, NAME))
    except PrunebenchError as error:
        found.faults.append(str(error))


def _judged(
    found: ForeignFolder,
    place: str,
    why: str,
    reader: _SamplesReader,
    judge: ForeignJudge,
) -> ForeignCell:
    """One cell, with everything that is wrong with it, or that could not be checked."""
    if why:
        return ForeignCell(place, REFUSED, wrong=(why,))
    folder, cell = found.copy / place, None
    try:
        data = (folder / SEAL).read_bytes()
        body = strict.parsed(data, SEAL)
        if isinstance(body, dict) and body.keys() >= KEYS:
            strict.check_cell(body, data)
        cell = load(folder)
        if Store(found.copy).folder(cell.cell) != folder:
            raise PrunebenchError(f"expected the name {Store(found.copy).folder(cell.cell).name}: it was renamed")
        told = reader.fault(folder / SAMPLES, cell.cell.n_samples)
        if told:
            raise PrunebenchError(f"{SAMPLES}: {told}")
        _check_listed(cell, data, found)
        code = judge.unknown_code(cell)
        if code:
            return ForeignCell(place, UNKNOWN, cell, (code,))
        wrong = judge.wrong_words(cell)
        if wrong:
            return ForeignCell(place, REFUSED, cell, tuple(wrong))
        told_of = examined(found.copy, folder, True, judge)
        if told_of.wrong:
            return ForeignCell(place, REFUSED, cell, tuple(_relabelled(found, line) for line in told_of.wrong))
        return ForeignCell(place, HOLDS, cell, (), (*told_of.left, ONLY_THE_RUN))
    except PrunebenchError as error:
        return ForeignCell(place, REFUSED, cell, (_relabelled(found, str(error)),))
    except (Exception, RecursionError) as error:  # a value of a kind that nothing of ours writes: somebody else's text
        return ForeignCell(place, REFUSED, cell, (f"its values cannot be read ({type(error).__name__}: {error})",))


def _relabelled(found: ForeignFolder, line: str) -> str:
    """A message about our copy, as one about the folder that it is a copy of."""
    return line.replace(f"{found.copy}/", "")


def _check_listed(cell: SealedCell, data: bytes, found: ForeignFolder) -> None:
    """Raise PrunebenchError unless the submission has the cell's own line."""
    if not found.who:
        return  # the folder's fault, said there
    mine, line = entry(cell, data), found.listed.get(cell.identity)
    if line is None:
        raise PrunebenchError(f"{NAME} has no line for it: publish the cells again")
    wrong = [name for name in sorted({*mine, *line}) if mine.get(name) != line.get(name)]
    if wrong:
        raise PrunebenchError(
            f"{NAME} says {wrong[0]} {str(line.get(wrong[0]))[:80]!r} of it, the cell {str(mine.get(wrong[0]))[:80]!r}"
        )


class _SamplesReader:
    """The process that reads samples, started when needed, and anew after a file that ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> _SamplesReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._process is None:
            return
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None

    def fault(self, path: Path, rows: int) -> str:
        """As `probe.fault`, or that the file ended the process."""
        if self._process is None:
            words = [sys.executable, "-I", probe.__file__, str(PROBE_BYTES), str(PROBE_S)]
            kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                errors="backslashreplace",
                env=kept | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8:backslashreplace"},
                cwd="/",
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        answer = ""
        with suppress(OSError):
            self._process.stdin.write(f"{rows} {path}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline().strip()
        if not answer:
            self._end()
            return "it ended the process that reads it: too much memory or time, or a broken file"
        return "" if answer == "ok" else answer


def without(found: ForeignFolder, places: Sequence[str]) -> None:
    """Take cells out of the copy: `collect` leaves these."""
    for place in places:
        for name in (SEAL, SAMPLES):
            (found.copy / place / name).unlink(missing_ok=True)
