"""Statistics kept from one writing of the tables to the next, so that tables cost what is new.

    root/cache/
        statistics.json   one line that says what made it, then the values by key
        draws-*.zst       how often each image is drawn in each resample; the numbers of a seed, which anybody can draw

The folder may be deleted at any time: every value is computed again from the samples, and tables come out the same to
the last byte. A value's key is a hash over the cells that it comes from (identity, samples, headline) and the words
that enter it. All values are discarded when a module of core/, store/, tables/ or tasks/mini/ changes, or numpy or
scipy. So a new statistic needs no version of its own: give `of` a key that starts with its name.

A file that is torn, edited or foreign is not read. Writers at the same time replace the file whole; the last one's
values stay, and what is missing is computed again.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.core import stats
from harness.core.paths import make_folder
from harness.store.files import write_atomic, write_changed
from harness.store.sealed import SAMPLES, SealedCell
from harness.tables.sections import Section

FOLDER = "cache"
FILE = "statistics.json"
VERSION = 1
"""Of the files' layout; of the values, the code itself is the version."""


_FOREIGN = (OSError, ValueError, TypeError, KeyError, RecursionError)
"""Of a file that is not ours, or not there."""
MOST = 2**28
"""Bytes of draws in memory above which they are dropped: 3,000 images are 60 MB."""


class Kept:
    """Values by key; without a folder they are kept in memory only. `write=False` reads what a folder keeps and leaves
    the folder as it is."""

    def __init__(self, root: Path | None = None, *, write: bool = True):
        self._write = write
        self._folder = root / FOLDER if root else None
        self._before: dict[str, Any] = _read(self._folder / FILE) if self._folder else {}
        self._now: dict[str, Any] = {}
        self._names: dict[int, tuple[SealedCell, str]] = {}
        self._draws: dict[tuple[int, int], NDArray[Any]] = {}

    def key(self, kind: str, cells: Sequence[SealedCell], *words: str) -> str:
        """The key of the statistic `kind` of these cells in this order; `words` are all else that enters it."""
        text = json.dumps([kind, [self._name(sealed) for sealed in cells], words])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def of(self, key: str, compute: Callable[[], Any]) -> Any:
        """The value under a key, computed where it is not known: JSON values, lists for tuples."""
        if key not in self._now:
            # through JSON, so that a value just computed is the value that is read later
            self._now[key] = self._before[key] if key in self._before else json.loads(json.dumps(compute()))
        return self._now[key]

    def hold(self, key: str) -> None:
        """Keep a value on that is not asked for now, if it is known."""
        if key in self._before:
            self._now[key] = self._before[key]

    def __contains__(self, key: str) -> bool:
        """Whether `of` would compute nothing."""
        return key in self._now or key in self._before

    def check(self, sealed: SealedCell, read: Callable[[SealedCell], Any] = SealedCell.check) -> Any:
        """Raise PrunebenchError if a cell's samples are not those that were sealed, or of other kinds.

        A file is not hashed again while it is the one that was: same size, inode, and times of change. `read` must
        raise for other samples; it runs, and its value is returned, only where the file has to be hashed.
        """
        key = self.key("kinds of samples", [sealed], str(sealed.folder))
        found = _stat(sealed.folder / SAMPLES)
        if found is not None and self._now.get(key, self._before.get(key)) == found:
            self._now[key] = found
            return None
        value = read(sealed)
        if found is not None:
            self._now[key] = found
        return value

    def draws(self, images: int, seed: int) -> NDArray[Any]:
        """`stats.draws` of `stats.DECISIVE` resamples."""
        if (images, seed) not in self._draws:
            if sum(held.nbytes for held in self._draws.values()) > MOST:
                self._draws.clear()
            self._draws[images, seed] = self._drawn(images, seed)
        return self._draws[images, seed]

    def figures(
        self, section: Section, answers: bool, folder: Path, stem: str, draw: Callable[[Path, str], Iterable[str]]
    ) -> list[str]:
        """The paths, relative to `folder`, of the files that `draw` draws of a section; drawn only where they are not
        there as drawn from the same cells. `answers`: whether the samples were read for them."""
        bases = [base for base in map(section.baseline, section.tasks) if base]
        content = json.dumps([_content(sealed) for sealed in (*section.cells, *bases)])
        words = [stem, str(answers), str(folder.resolve()), section.weights, *section.facts]
        key = self.key("figures", section.cells, hashlib.sha256(content.encode()).hexdigest(), *words)
        there = self._before.get(key)
        if there is None or any(_digest(folder / path) != found for path, found in there):
            there = [[path, _digest(folder / path)] for path in draw(folder, stem)]
        self._now[key] = there
        return [path for path, _ in there]

    def save(self) -> None:
        """Write the values that were asked for since this was made: what nobody asks for any more is dropped. Raises
        PrunebenchError if the folder cannot be written."""
        if self._folder and self._write:
            make_folder(self._folder, "results")
            write_changed(self._folder / FILE, _packed(self._now))
        self._before = dict(self._now)

    def _name(self, sealed: SealedCell) -> str:
        """Of everything about a cell that a statistic of its samples can depend on."""
        known = self._names.get(id(sealed))
        if known is None:
            parts: list[Any] = [sealed.identity, sealed.samples_sha256, sealed.headline, sealed.maximum, sealed.score]
            parts += [dict(sealed.stated)] if sealed.stated else []
            known = sealed, hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
            self._names[id(sealed)] = known  # with the cell, which must live as long as its id is a key
        return known[1]

    def _drawn(self, images: int, seed: int) -> NDArray[Any]:
        import pyarrow as pa

        size = stats.DECISIVE, images
        path = self._folder and self._folder / f"draws-{images}-{seed:08x}.zst"
        if path:
            try:
                head, _, data = path.read_bytes().partition(b"\n")
                stated = json.loads(head)
                if stated == _head(data) | {"type": stated["type"]}:
                    kind = np.dtype(stated["type"])
                    raw = pa.decompress(data, decompressed_size=size[0] * size[1] * kind.itemsize, codec="zstd")
                    return np.frombuffer(raw, dtype=kind).reshape(size)
            except _FOREIGN:
                pass  # drawn again
        drawn = stats.draws(images, stats.DECISIVE, seed)
        if path and self._write:
            data = pa.compress(drawn.tobytes(), codec="zstd", asbytes=True)
            make_folder(path.parent, "results")
            write_atomic(path, json.dumps(_head(data) | {"type": drawn.dtype.str}).encode() + b"\n" + data)
        return drawn


@cache
def _code() -> str:
    """Names the code that computes and draws tables, and the libraries it computes with."""
    found = hashlib.sha256()
    root = Path(__file__).resolve().parents[2]
    rooms = ["harness/core", "harness/store", "harness/tables"]
    rooms += ["tasks/mini", "tasks/mini/qwen"]  # these know what an answer is about, the last by its manifest
    files = sorted(file for room in rooms for file in (root / room).glob("*.py"))
    for file in [*files, root / "tasks/mini/qwen/manifest.json"]:
        found.update(f"{file.name}\n".encode() + file.read_bytes())
    for name in ("numpy", "scipy", "matplotlib", "pillow"):
        found.update(f"{name} {version(name)}\n".encode())
    found.update(f"{platform.python_version()} {platform.machine()}\n".encode())
    with suppress(OSError):
        # the last bits of a sum of fractions are the processor's own
        described = Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0].splitlines()
        found.update(
            "".join(line for line in described if line.startswith(("model name", "flags", "Features"))).encode()
        )
    return found.hexdigest()[:32]


def _head(data: bytes) -> dict[str, Any]:
    return {"version": VERSION, "code": _code(), "sha256": hashlib.sha256(data).hexdigest()}


def _packed(values: dict[str, Any]) -> bytes:
    data = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps(_head(data)).encode() + b"\n" + data


def _read(path: Path) -> dict[str, Any]:
    """The values of a file of this code; none of any other file."""
    try:
        head, _, data = path.read_bytes().partition(b"\n")
        if json.loads(head) == _head(data):
            return dict(json.loads(data))
    except _FOREIGN:
        pass  # the values are computed again
    return {}


def _content(sealed: SealedCell) -> list[Any]:
    """All that tables read of a cell file."""
    interval = sealed.interval and vars(sealed.interval)
    facts = [sealed.headline, sealed.metrics, sealed.maximum, interval, sealed.costs, sealed.counts]
    facts += [dict(sealed.stated)] if sealed.stated else []
    return [sealed.identity, sealed.samples_sha256, *facts, sealed.method_info, sealed.provenance]


def _digest(path: Path) -> str:
    """Of a file's bytes; empty where there is none."""
    with suppress(OSError):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return ""


def _stat(path: Path) -> list[int] | None:
    try:
        found = path.stat()
    except OSError:
        return None  # whoever reads the file says why
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]
