"""The result store: a cell's answers go to an fsync'd journal line by line and are sealed, whole and atomically, last.

    root/cells/<task>/<model>-<method>-<budget>-<identity>/
        journal.jsonl       while running: one line per answered sample
        samples.parquet     once sealed: one row per sample
        cell.json           written last: a folder without it is not a result
    root/locks/             who runs what (harness.store.lease): a cell has one runner at a time; empty when nobody runs

Killing the process at any moment leaves a state from which the same call continues. What was fsync'd is never asked
again, what was torn is dropped and asked again, and a repeated line counts once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.core.cell import KEY_VERSION, Cell
from harness.core.errors import PrunebenchError
from harness.core.metric import Metric, as_metric
from harness.core.spelling import given
from harness.store.files import few, remove, saying, slug, sync_folder, there, write_all, write_atomic
from harness.store.journal import JOURNAL, Record, digest_of, header, number, read_journal
from harness.store.kinds import check_kinds
from harness.store.lease import Lease, Timing, leased, tidy
from harness.store.sealed import (
    COLUMNS,
    METRIC,
    SAMPLES,
    SCHEMA_VERSION,
    SEAL,
    SampleScore,
    SealedCell,
    check_origin,
    cost_means,
    defined,
    headline_of,
    load,
    parquet,
    sealed,
)


class CellSealed(PrunebenchError):  # noqa: N818 - a state, not a fault
    """The cell is measured already, perhaps by another runner since `Store.sealed` was asked: ask it again."""


class CellWriter:
    """The one writer of a cell that is being run; made by `Store.open`, valid inside its `with`."""

    def __init__(
        self,
        cell: Cell,
        folder: Path,
        expected: Sequence[str],
        lease: Lease,
        environment: Mapping[str, str],
        done: dict[str, Record],
        size: int,
        notes: Sequence[str],
    ):
        self.cell = cell
        self.folder = folder
        self.expected = tuple(expected)
        self.done: dict[str, Record] = done
        """Answered samples by key, those of earlier, interrupted runs included."""
        self.notes = tuple(notes)
        """Which answers of earlier runs are asked again, and why."""
        self._environment = environment
        self._known = frozenset(expected)
        self._lease = lease
        self._named = False  # whether the journal's name is known to survive a power cut
        self._size = size  # bytes of the journal that hold whole, fsync'd lines
        self._open = True

    def append(self, *records: Record) -> None:
        """Write records with one fsync; on return they survive a crash. A key that is done already is left as it is.

        Raises PrunebenchError if the disk is full (earlier records are safe and the same run continues once there is
        space), and if this process lost the cell to another runner because it was suspended for longer than its lease.
        """
        path = self.folder / JOURNAL
        if not self._open:
            raise PrunebenchError(
                f"the writer of {self.folder} is closed: append before seal and inside `with store.open(...)`"
            )
        fresh: dict[str, Record] = {}
        for record in records:
            if record.key not in self._known:
                raise PrunebenchError(
                    f"sample {record.key!r} is not one of the {len(self.expected)} samples expected in {path}"
                )
            first = next(itertools.chain(self.done.values(), fresh.values()), record)
            if set(record.cost) != set(first.cost) or set(record.cost) & set(COLUMNS):
                raise PrunebenchError(
                    f"sample {record.key!r}: expected the cost columns {sorted(first.cost)} of the answers before it"
                    f" (and none of {', '.join(COLUMNS)}), found {sorted(record.cost)}; if the harness changed since"
                    f" {path} was begun, run with {given('fresh', True)}"
                )
            if record.key not in self.done:
                fresh.setdefault(record.key, record)
        if not fresh:
            return
        by = digest_of(self._environment)
        data = b"".join(record.line(by) for record in fresh.values())
        if not self._size:
            data = header(self._environment) + data
        with saying("append to", path, f"; the {len(self.done)} answers before are safe"), self._lease.guard():
            # opened each time: a sweep has more cells open at once than a process may have files
            journal = os.open(path, os.O_RDWR | os.O_APPEND)
            try:
                found = os.fstat(journal).st_size
                if found < self._size:
                    raise PrunebenchError(
                        f"{path}: expected the {self._size} bytes written so far, found {found}: it was changed by"
                        " hand; run again"
                    )
                os.ftruncate(journal, self._size)  # an append before this one may have been cut short
                write_all(journal, data)
                os.fsync(journal)
            finally:
                os.close(journal)
            if (
                not self._named
            ):  # with the first answers, not when opened: a sweep opens hundreds of cells before it asks anything
                for folder in (self.folder, self.folder.parent, self.folder.parent.parent):
                    sync_folder(folder)
                self._named = True
        self._size += len(data)
        self.done.update(fresh)

    def seal(
        self,
        metrics: Mapping[str, float | None],
        scores: Mapping[str, SampleScore],
        provenance: Mapping[str, Any],
        *,
        headline: Metric | str,
        method_info: Mapping[str, Any],
    ) -> SealedCell:
        """Turn the journal into samples.parquet and cell.json, the latter last and atomically; then the journal goes.

        The headline's interval is computed here from `scores`, and the headline must equal what `scores` add up to: a
        score that its own samples do not support is refused. A metric that is computed from all answers at once has no
        interval, and samples may have no score. `provenance` must hold everything needed to say where the
        numbers come from (request, versions, git, device, started, ...); of it tables read `request`, `device`,
        `started`. Raises PrunebenchError unless every expected sample was answered and scored, and if the cell was lost
        to another runner.
        """
        if not self._open:
            raise PrunebenchError(f"the writer of {self.folder} is closed: seal once and inside `with store.open(...)`")
        missing = [key for key in self.expected if key not in self.done]
        if missing:
            raise PrunebenchError(
                f"cannot seal {self.folder}: answered {len(self.done)} of {len(self.expected)} samples,"
                f" {few(missing)} missing; run the same command again to continue"
            )
        if set(scores) != self._known:
            raise PrunebenchError(
                f"cannot seal {self.folder}: scores must name exactly the {len(self.expected)} expected samples;"
                f" {few(sorted(self._known ^ set(scores)))} unscored or unexpected"
            )
        metric = as_metric(headline)
        rows = [(self.done[key], scores[key]) for key in self.expected]
        for record, scored in rows:
            if scored.score is None and not metric.tested:
                continue
            if scored.score is None or not 0.0 <= scored.score <= 1.0:
                raise PrunebenchError(
                    f"cannot seal {self.folder}: score of {record.key!r} is {scored.score}, expected 0..1"
                )

        try:
            check_origin(provenance, method_info)
        except PrunebenchError as error:
            raise PrunebenchError(f"cannot seal {self.folder}: {error}") from None
        value = metrics.get(metric.name)
        found = headline_of(
            metric,
            [scored.score for _, scored in rows],
            [record.image for record, _ in rows],
            [scored.category for _, scored in rows],
            [str(scored.question_id) for _, scored in rows],
            value,
        )
        if value is None or not math.isfinite(value):
            raise PrunebenchError(
                f"cannot seal {self.folder}: metric {metric.name!r} is {value}, expected a number: the answers do not"
                " make one"
            )
        if metric.tested and not math.isclose(value, found.point, rel_tol=0.0, abs_tol=1e-6 * found.maximum):
            raise PrunebenchError(
                f"cannot seal {self.folder}: metric {metric.name!r} is {value}, but the {len(rows)} sample scores add"
                f" up to {found.point}; the headline must be a mean of scores or an MME sum"
            )

        costs = {name: [record.cost[name] for record, _ in rows] for name in rows[0][0].cost}
        table = parquet(rows, costs)
        body = {
            "schema_version": SCHEMA_VERSION,
            "key_version": KEY_VERSION,
            "identity": self.cell.identity(),
            "cell": self.cell.to_dict(),
            "headline": metric.name,
            **({METRIC: metric.stated()} if metric.stated() else {}),
            "metrics": defined(metrics),
            "maximum": None if math.isnan(found.maximum) else found.maximum,
            "interval": found.interval and asdict(found.interval),
            "costs": cost_means(costs),
            "counts": {
                "expected": len(self.expected),
                "answered": len(rows),
                "headline": found.questions,
                **({} if metric.tested else {"images": found.images}),  # no interval says it
            },
            "answering_wall_s": math.fsum(record.wall_s for record, _ in rows),
            "method_info": dict(method_info),
            "provenance": dict(provenance),
            "samples_sha256": hashlib.sha256(table).hexdigest(),
        }
        try:
            body = json.loads(json.dumps(body, allow_nan=False, default=number))
        except (TypeError, ValueError) as error:
            raise PrunebenchError(
                f"cannot seal {self.folder}: provenance and method_info must be plain JSON ({error})"
            ) from None
        try:
            check_kinds(body)
        except PrunebenchError as error:
            raise PrunebenchError(f"cannot seal {self.folder}: {error}; the answers stay in its journal") from None
        with saying("seal", self.folder), self._lease.guard():
            write_atomic(self.folder / SAMPLES, table)
            write_atomic(self.folder / SEAL, sealed(body))
            self._open = False
            remove(self.folder, JOURNAL, ".*.tmp")
        return load(self.folder)


class Store:
    """All cells under one results folder. Reading never needs the folder to exist, writing makes it."""

    def __init__(self, root: Path = Path("results/local"), timing: Timing | None = None):
        """`timing` of the leases is for tests; every process tells the others its own."""
        self.root = Path(root)
        self._timing = timing or Timing()

    def folder(self, cell: Cell) -> Path:
        """Where the cell lives; names are for people, the identity at the end is what counts."""
        name = "-".join(slug(part) for part in (cell.model, cell.method, cell.budget))
        return self.root / "cells" / slug(cell.task) / f"{name}-{cell.identity()}"

    def sealed(self, cell: Cell) -> SealedCell | None:
        """The cell if it was measured to the end. Raises PrunebenchError if one of its files is damaged or edited."""
        folder = self.folder(cell)
        with saying("read", folder):
            if not there(folder / SEAL):
                return None
        found = load(folder)
        found.verify()
        if there(folder / JOURNAL):
            # Killed between sealing and tidying. Under the lock only: unlocked, it could be the journal of a fresh run.
            with suppress(PrunebenchError), self._locked(cell) as lease, lease.guard():
                if there(folder / SEAL):
                    remove(folder, JOURNAL, ".*.tmp")
        return found

    def cells(
        self, damaged: list[str] | None = None, check: Callable[[SealedCell], None] = SealedCell.check
    ) -> list[SealedCell]:
        """Every sealed cell, in the order of the folders' names. Reads only JSON.

        Raises PrunebenchError for the first that is damaged, or of another version; with a list, all of them are said
        there and left out, those with other samples than were sealed included: `check` raises for such samples.
        """
        found = []
        for path in sorted((self.root / "cells").glob(f"*/*/{SEAL}")):
            try:
                sealed = load(path.parent)
                if damaged is not None:
                    check(sealed)
                found.append(sealed)
            except PrunebenchError as error:
                if damaged is None:
                    raise PrunebenchError(
                        f"{error}. `prunebench results verify --results {self.root}` lists all that is wrong"
                    ) from None
                damaged.append(str(error))
        return found

    @contextmanager
    def open(
        self, cell: Cell, expected_keys: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> Iterator[CellWriter]:
        """The writer of an unsealed cell, with the answers of earlier runs in `done`. Any number may be open at once.

        Earlier answers that are damaged, or that another `environment` made, are dropped; `CellWriter.notes` says
        which. Raises CellBusy if another runner has this cell, CellSealed if it is sealed; PrunebenchError if the
        journal holds samples that are not expected, or if the folder cannot be written.
        """
        environment = environment or {}
        if len(set(expected_keys)) != len(expected_keys) or len(expected_keys) != cell.n_samples:
            raise PrunebenchError(
                f"{cell.task}: expected {cell.n_samples} different sample keys, as the cell says, found"
                f" {len(set(expected_keys))} different of {len(expected_keys)}"
            )
        folder = self.folder(cell)
        with self._locked(cell) as lease:
            with saying("create", folder):
                folder.mkdir(parents=True, exist_ok=True)
            if there(folder / SEAL):
                raise CellSealed(
                    f"{folder} is sealed already: use it, or run with {given('fresh', True)} to measure again"
                )
            path = folder / JOURNAL
            with saying("open", path), lease.guard():
                journal = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
                try:
                    found = read_journal(path, environment, frozenset(expected_keys))
                    os.ftruncate(journal, found.size)
                finally:
                    os.close(journal)
                size = found.size
                if found.keep is not None:
                    write_atomic(path, found.keep)
                    size = len(found.keep)
            writer = CellWriter(cell, folder, expected_keys, lease, environment, found.done, size, found.notes)
            try:
                yield writer
            finally:
                writer._open = False

    def tidy(self) -> None:
        """Remove the locks that killed runners left behind."""
        tidy(self.root / "locks", self._timing)

    def discard(self, cell: Cell) -> None:
        """Forget the cell, sealed or half run (`--fresh`). Raises CellBusy if another runner has it."""
        self.discard_folder(self.folder(cell))

    def discard_folder(self, folder: Path, *, sealed: bool = True) -> bool:
        """`discard` by the folder of a cell, which may be damaged. Files that are not a cell's stay.

        `sealed=False` leaves a cell that was sealed in the meantime. Whether the cell is gone.
        """
        with saying("read", folder):
            if not there(folder):
                return True
        with self.locked(folder) as lease, saying("tidy", folder), lease.guard():
            if not sealed and there(folder / SEAL):
                return False
            # The journal goes first: killed in between, old answers must not be continued as if they were fresh. What
            # is left then, as samples without their cell file, is an unfinished cell to every reader.
            for name in (JOURNAL, SEAL, SAMPLES, ".*.tmp"):
                remove(folder, name)
            with suppress(OSError):
                folder.rmdir()  # stays if somebody put a file there
        return True

    def reseal(self, cell: Cell, body: Mapping[str, Any], samples: bytes) -> None:
        """Write the files of a cell that was measured under another schema, whole or not at all.

        Raises CellBusy if another runner has the cell.
        """
        folder = self.folder(cell)
        with self._locked(cell) as lease, saying("seal", folder), lease.guard():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / SAMPLES, samples)
            write_atomic(folder / SEAL, sealed(body))

    def _locked(self, cell: Cell) -> AbstractContextManager[Lease]:
        return self.locked(self.folder(cell))

    @contextmanager
    def locked(self, cell_folder: Path) -> Iterator[Lease]:
        """Hold the lease of the cell in this folder, or say who does. Raises CellBusy."""
        folder, identity = self.root / "locks", cell_folder.name[-16:]
        with ExitStack() as stack:
            with saying("lock", folder / f"{identity}.lock"):
                lease = stack.enter_context(leased(folder, identity, str(cell_folder), self._timing))
            yield lease
