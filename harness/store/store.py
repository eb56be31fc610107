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
import io
import itertools
import json
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.core import stats
from harness.core.asked import Asked
from harness.core.cell import KEY_VERSION, Cell, canonical_json
from harness.core.errors import PrunebenchError
from harness.store.lease import CellBusy as CellBusy
from harness.store.lease import Lease, Timing, leased, tidy

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

SCHEMA_VERSION = 4
JOURNAL, SAMPLES, SEAL = "journal.jsonl", "samples.parquet", "cell.json"
COLUMNS = ("key", "image", "question_id", "category", "question", "target", "answer", "score", "n_new_tokens", "keeps")
_RECORD = {"key": str, "image": str, "answer": str, "n_new_tokens": int, "cost": dict, "wall_s": float, "kept": str}


class CellSealed(PrunebenchError):  # noqa: N818 - a state, not a fault
    """The cell is measured already, perhaps by another runner since `Store.sealed` was asked: ask it again."""


@dataclass(frozen=True)
class Record:
    """One answered sample, as the journal holds it."""

    key: str
    """Sample within its task: "pope/000123"."""
    image: str
    """Image key: rows with the same one are resampled together."""
    answer: str
    n_new_tokens: int
    cost: Mapping[str, float]
    """Flat names with their unit (`prefill_dense_flops`, `kv_bytes`); every record of a cell has the same names."""
    wall_s: float
    """Seconds this sample took. Informative: it identifies nothing and is not in the samples."""
    kept: str = ""
    """Which visual tokens were present from which layer on, as harness.core.keeps writes it; the column `keeps` of the samples."""

    def line(self) -> bytes:
        """The journal line, ASCII, newline last. Raises PrunebenchError for a value that JSON cannot hold (NaN, objects)."""
        try:
            text = json.dumps(asdict(self), allow_nan=False, default=_number)
            self.parse(text)
        except (TypeError, ValueError) as error:
            raise PrunebenchError(f"sample {self.key!r} cannot be written to the journal: {error}") from None
        return text.encode("ascii") + b"\n"

    @classmethod
    def parse(cls, text: str | bytes) -> Record:
        """The record of a journal line; ValueError says what is wrong with it."""
        raw = json.loads(text)
        if not isinstance(raw, dict) or set(raw) != set(_RECORD):
            raise ValueError(f"expected the fields {', '.join(_RECORD)}")
        for name, kind in _RECORD.items():
            if not isinstance(raw[name], (int, float) if kind is float else kind) or isinstance(raw[name], bool):
                raise ValueError(f"field {name!r}: expected {kind.__name__}, found {raw[name]!r}")
        for name, value in raw["cost"].items():
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ValueError(f"cost {name!r}: expected a number, found {value!r}")
        return cls(**raw)


class SampleScore(NamedTuple):
    """What scoring says about one sample."""

    score: float
    """0..1."""
    question_id: str
    category: str | None
    question: str
    target: str


@dataclass(frozen=True)
class SealedCell:
    """A measured cell, read from its cell.json; the samples are read on request."""

    cell: Cell
    headline: str
    """Name of the metric that tables show."""
    metrics: Mapping[str, float | None]
    """As the task's own code reports them; None where a metric is undefined."""
    maximum: float
    """What the headline metric can reach: 1, or 200 points per MME category present."""
    interval: stats.Interval | None
    costs: Mapping[str, float]
    """Every cost column over the samples, as `cost_means` says."""
    counts: Mapping[str, int]
    """Samples `expected` and `answered`, and those that the `headline` metric is computed from."""
    method_info: Mapping[str, Any]
    provenance: Mapping[str, Any]
    samples_sha256: str
    folder: Path

    @property
    def identity(self) -> str:
        return self.cell.identity()

    @property
    def asked(self) -> Asked:
        """The words of the request that made it."""
        return Asked.from_dict(self.provenance.get("request"))

    @property
    def score(self) -> float:
        """The headline metric, in its own unit."""
        value = self.metrics[self.headline]
        assert value is not None  # seal refuses it
        return value

    def samples(self) -> pd.DataFrame:
        """One row per sample: key, image, question_id, category, question, target, answer, score, n_new_tokens, keeps, costs.

        `keeps` is the text of harness.core.keeps (which visual tokens were there); the cost `kept` is a number of tokens. Raises
        PrunebenchError if the file is not the one that was sealed.
        """
        import pandas as pd  # half a second that tables of cells do not need

        return pd.read_parquet(io.BytesIO(self._verified()))

    def verify(self) -> None:
        """Re-hash the samples. Raises PrunebenchError if they are not the ones that were sealed."""
        self._verified()

    def _verified(self) -> bytes:
        path = self.folder / SAMPLES
        with _saying("read", path):
            data = path.read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if found != self.samples_sha256:
            raise _damaged(path, f"expected sha256 {self.samples_sha256}, found {found}")
        return data


class CellWriter:
    """The one writer of a cell that is being run; made by `Store.open`, valid inside its `with`."""

    def __init__(self, cell: Cell, folder: Path, expected: Sequence[str], lease: Lease, done: dict[str, Record], size: int):
        self.cell = cell
        self.folder = folder
        self.expected = tuple(expected)
        self.done: dict[str, Record] = done
        """Answered samples by key, those of earlier, interrupted runs included."""
        self._known = frozenset(expected)
        self._lease = lease
        self._named = False  # whether the journal's name is known to survive a power cut
        self._size = size  # bytes of the journal that hold whole, fsync'd lines
        self._open = True

    def append(self, *records: Record) -> None:
        """Write records with one fsync; on return they survive a crash. A key that is done already is left as it is.

        Raises PrunebenchError if the disk is full (earlier records are safe and the same run continues once there is space), and
        if this process lost the cell to another runner because it was suspended for longer than its lease.
        """
        path = self.folder / JOURNAL
        if not self._open:
            raise PrunebenchError(f"the writer of {self.folder} is closed: append before seal and inside `with store.open(...)`")
        fresh: dict[str, Record] = {}
        for record in records:
            if record.key not in self._known:
                raise PrunebenchError(f"sample {record.key!r} is not one of the {len(self.expected)} samples expected in {path}")
            first = next(itertools.chain(self.done.values(), fresh.values()), record)
            if set(record.cost) != set(first.cost) or set(record.cost) & set(COLUMNS):
                raise PrunebenchError(
                    f"sample {record.key!r}: expected the cost columns {sorted(first.cost)} of the answers before it (and none of"
                    f" {', '.join(COLUMNS)}), found {sorted(record.cost)}; if the harness changed since {path} was begun, run"
                    " with FRESH=1"
                )
            if record.key not in self.done:
                fresh.setdefault(record.key, record)
        if not fresh:
            return
        data = b"".join(record.line() for record in fresh.values())
        with _saying("append to", path, f"; the {len(self.done)} answers before are safe"), self._lease.guard():
            # opened each time: a sweep has more cells open at once than a process may have files
            journal = os.open(path, os.O_RDWR | os.O_APPEND)
            try:
                found = os.fstat(journal).st_size
                if found < self._size:
                    raise PrunebenchError(f"{path}: expected the {self._size} bytes written so far, found {found}: it was changed by hand; run again")
                os.ftruncate(journal, self._size)  # an append before this one may have been cut short
                _write(journal, data)
                os.fsync(journal)
            finally:
                os.close(journal)
            if not self._named:  # with the first answers, not when opened: a sweep opens hundreds of cells before it asks anything
                for folder in (self.folder, self.folder.parent, self.folder.parent.parent):
                    _sync_folder(folder)
                self._named = True
        self._size += len(data)
        self.done.update(fresh)

    def seal(
        self,
        metrics: Mapping[str, float | None],
        scores: Mapping[str, SampleScore],
        provenance: Mapping[str, Any],
        *,
        headline: str,
        method_info: Mapping[str, Any],
    ) -> SealedCell:
        """Turn the journal into samples.parquet and cell.json, the latter last and atomically; then the journal goes.

        The headline's interval is computed here from `scores`, and the headline must equal what `scores` add up to: a score
        that its own samples do not support is refused. `provenance` must hold everything needed to say where the numbers
        come from (request, versions, git, device, started, ...); of it tables read `request`, `device`, `started`.
        Raises PrunebenchError unless every expected sample was answered and scored, and if the cell was lost to another runner.
        """
        if not self._open:
            raise PrunebenchError(f"the writer of {self.folder} is closed: seal once and inside `with store.open(...)`")
        missing = [key for key in self.expected if key not in self.done]
        if missing:
            raise PrunebenchError(
                f"cannot seal {self.folder}: answered {len(self.done)} of {len(self.expected)} samples,"
                f" {_few(missing)} missing; run the same command again to continue"
            )
        if set(scores) != self._known:
            raise PrunebenchError(
                f"cannot seal {self.folder}: scores must name exactly the {len(self.expected)} expected samples;"
                f" {_few(sorted(self._known ^ set(scores)))} unscored or unexpected"
            )
        rows = [(self.done[key], scores[key]) for key in self.expected]
        for record, scored in rows:
            if not 0.0 <= scored.score <= 1.0:
                raise PrunebenchError(f"cannot seal {self.folder}: score of {record.key!r} is {scored.score}, expected 0..1")

        try:
            _check_origin(provenance, method_info)
        except PrunebenchError as error:
            raise PrunebenchError(f"cannot seal {self.folder}: {error}") from None
        units = stats.cluster(
            headline,
            [scored.score for _, scored in rows],
            [record.image for record, _ in rows],
            [scored.category for _, scored in rows],
            [str(scored.question_id) for _, scored in rows],
        )
        value = metrics.get(headline)
        if value is None or not math.isclose(value, units.point, rel_tol=0.0, abs_tol=1e-6 * units.maximum):
            raise PrunebenchError(
                f"cannot seal {self.folder}: metric {headline!r} is {value}, but the {len(rows)} sample scores add up to"
                f" {units.point}; the headline must be a mean of scores or an MME sum"
            )
        spread = stats.interval(headline, units)

        costs = {name: [record.cost[name] for record, _ in rows] for name in rows[0][0].cost}
        table = _parquet(rows, costs)
        body = {
            "schema_version": SCHEMA_VERSION,
            "key_version": KEY_VERSION,
            "identity": self.cell.identity(),
            "cell": self.cell.to_dict(),
            "headline": headline,
            "metrics": {name: None if v is None or not math.isfinite(v) else float(v) for name, v in metrics.items()},
            "maximum": units.maximum,
            "interval": spread and asdict(spread),
            "costs": cost_means(costs),
            "counts": {
                "expected": len(self.expected),
                "answered": len(rows),
                "headline": sum(stats.in_headline(headline, [scored.category for _, scored in rows])),
            },
            "answering_wall_s": math.fsum(record.wall_s for record, _ in rows),
            "method_info": dict(method_info),
            "provenance": dict(provenance),
            "samples_sha256": hashlib.sha256(table).hexdigest(),
        }
        try:
            body = json.loads(json.dumps(body, allow_nan=False, default=_number))
        except (TypeError, ValueError) as error:
            raise PrunebenchError(f"cannot seal {self.folder}: provenance and method_info must be plain JSON ({error})") from None
        with _saying("seal", self.folder), self._lease.guard():
            write_atomic(self.folder / SAMPLES, table)
            write_atomic(self.folder / SEAL, _sealed(body))
            self._open = False
            _remove(self.folder, JOURNAL, ".*.tmp")
        return load(self.folder)


def cost_means(columns: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean per sample of every cost. A layer (`*_layer`) that a sample does not have is -1: its mean is over those that have one, left
    out where none has, and `*_layer_share` says how many of all samples they are, 0..1."""
    means: dict[str, float] = {}
    for name, column in columns.items():
        had = [value for value in column if value >= 0] if name.endswith("_layer") else column
        if len(had):
            means[name] = math.fsum(had) / len(had)
        if name.endswith("_layer"):
            means[f"{name}_share"] = len(had) / len(column)
    return means


class Store:
    """All cells under one results folder. Reading never needs the folder to exist, writing makes it."""

    def __init__(self, root: Path = Path("results/local"), timing: Timing | None = None):
        """`timing` of the leases is for tests; every process tells the others its own."""
        self.root = Path(root)
        self._timing = timing or Timing()

    def folder(self, cell: Cell) -> Path:
        """Where the cell lives; names are for people, the identity at the end is what counts."""
        name = "-".join(_slug(part) for part in (cell.model, cell.method, cell.budget))
        return self.root / "cells" / _slug(cell.task) / f"{name}-{cell.identity()}"

    def sealed(self, cell: Cell) -> SealedCell | None:
        """The cell if it was measured to the end. Raises PrunebenchError if its files are damaged or edited."""
        folder = self.folder(cell)
        with _saying("read", folder):
            if not _there(folder / SEAL):
                return None
        found = load(folder)
        if _there(folder / JOURNAL):
            # Killed between sealing and tidying. Under the lock only: unlocked, it could be the journal of a fresh run.
            with suppress(PrunebenchError), self._locked(cell) as lease, lease.guard():
                if _there(folder / SEAL):
                    _remove(folder, JOURNAL, ".*.tmp")
        return found

    def cells(self, damaged: list[str] | None = None) -> list[SealedCell]:
        """Every sealed cell, in the order of the folders' names. Reads only JSON.

        Raises PrunebenchError for the first that is damaged, or of another version; with a list, all of them are said there and left out,
        those with other samples than were sealed included.
        """
        found = []
        for path in sorted((self.root / "cells").glob(f"*/*/{SEAL}")):
            try:
                sealed = load(path.parent)
                if damaged is not None:
                    sealed.verify()
                found.append(sealed)
            except PrunebenchError as error:
                if damaged is None:
                    raise PrunebenchError(f"{error}. `prunebench results verify --results {self.root}` lists all that is wrong") from None
                damaged.append(str(error))
        return found

    @contextmanager
    def open(self, cell: Cell, expected_keys: Sequence[str]) -> Iterator[CellWriter]:
        """The writer of an unsealed cell, with the answers of earlier runs in `done`. Any number may be open at once.

        Raises CellBusy if another runner has this cell, CellSealed if it is sealed; PrunebenchError if the journal holds anything
        but whole records of expected samples (a torn last line is dropped), or if the folder cannot be written.
        """
        if len(set(expected_keys)) != len(expected_keys) or len(expected_keys) != cell.n_samples:
            raise PrunebenchError(
                f"{cell.task}: expected {cell.n_samples} different sample keys, as the cell says, found"
                f" {len(set(expected_keys))} different of {len(expected_keys)}"
            )
        folder = self.folder(cell)
        with self._locked(cell) as lease:
            with _saying("create", folder):
                folder.mkdir(parents=True, exist_ok=True)
            if _there(folder / SEAL):
                raise CellSealed(f"{folder} is sealed already: use it, or run with FRESH=1 to measure again")
            path = folder / JOURNAL
            with _saying("open", path), lease.guard():
                journal = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
                try:
                    done, size = read_journal(path, frozenset(expected_keys))
                    os.ftruncate(journal, size)
                finally:
                    os.close(journal)
            writer = CellWriter(cell, folder, expected_keys, lease, done, size)
            try:
                yield writer
            finally:
                writer._open = False

    def tidy(self) -> None:
        """Remove the locks that killed runners left behind."""
        tidy(self.root / "locks", self._timing)

    def discard(self, cell: Cell) -> None:
        """Forget the cell, sealed or half run (FRESH=1). Raises CellBusy if another runner has it."""
        folder = self.folder(cell)
        with _saying("read", folder):
            if not _there(folder):
                return
        with self._locked(cell) as lease, _saying("tidy", folder), lease.guard():
            # The journal goes first: killed in between, old answers must not be continued as if they were fresh.
            for name in (JOURNAL, SEAL, SAMPLES, ".*.tmp"):
                _remove(folder, name)
            with suppress(OSError):
                folder.rmdir()  # stays if somebody put a file there

    def reseal(self, cell: Cell, folder: Path, body: Mapping[str, Any]) -> None:
        """Replace the cell.json in `folder` by another that states the same samples, whole or not at all.

        Raises CellBusy if another runner has the cell, PrunebenchError unless `folder` is the cell's and its samples are those stated.
        """
        with self._locked(cell) as lease, _saying("seal", folder), lease.guard():
            found = hashlib.sha256((folder / SAMPLES).read_bytes()).hexdigest()
            if found != body["samples_sha256"]:
                raise _damaged(folder / SAMPLES, f"expected sha256 {body['samples_sha256']}, found {found}")
            if not body["identity"] == cell.identity() == folder.name[-16:]:
                raise _damaged(folder / SEAL, f"identity {body['identity']}, folder {folder.name[-16:]}, but its cell has {cell.identity()}")
            write_atomic(folder / SEAL, _sealed(body))

    @contextmanager
    def _locked(self, cell: Cell) -> Iterator[Lease]:
        """Hold the cell's lease, or say who does."""
        folder = self.root / "locks"
        with ExitStack() as stack:
            with _saying("lock", folder / f"{cell.identity()}.lock"):
                lease = stack.enter_context(leased(folder, cell.identity(), str(self.folder(cell)), self._timing))
            yield lease


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file's content whole or not at all, and durably. Raises PrunebenchError naming the path."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _saying("write", path):
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                _write(handle, data)
                os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)


def read_journal(path: Path, expected: frozenset[str] | None = None) -> tuple[dict[str, Record], int]:
    """The journal's records and the bytes that hold them: what follows the last newline was torn by a crash.

    Raises PrunebenchError naming the line that is no record, or not of a sample in `expected`; OSError.
    """
    data = path.read_bytes()
    size = data.rfind(b"\n") + 1
    done: dict[str, Record] = {}
    for number, line in enumerate(data[:size].split(b"\n")[:-1], start=1):
        try:
            record = Record.parse(line)
        except ValueError as error:
            raise PrunebenchError(
                f"{path}, line {number}: expected one JSON record per line, found {line[:80]!r} ({error});"
                " delete that line to ask its sample again, or run with FRESH=1"
            ) from None
        if expected is not None and record.key not in expected:
            raise PrunebenchError(
                f"{path}, line {number}: sample {record.key!r} is not one of the {len(expected)} expected;"
                " the journal belongs to other data: run with FRESH=1"
            )
        done.setdefault(record.key, record)
    return done, size


def load(folder: Path) -> SealedCell:
    """Read and check a sealed folder's cell.json: one that does not hang together is a PrunebenchError naming it, not a result."""
    path = folder / SEAL
    with _saying("read", path):
        data = path.read_bytes()
        samples = _there(folder / SAMPLES)
    try:
        body = json.loads(data)
        versions = body["schema_version"], body["key_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"not a cell file ({type(error).__name__}: {error})") from None
    if versions == (3, KEY_VERSION):
        root = shlex.quote(str(folder.parent.parent.parent))
        raise PrunebenchError(f"{path}: expected schema {SCHEMA_VERSION}, found 3: run `prunebench dev migrate --results {root}`")
    if versions != (SCHEMA_VERSION, KEY_VERSION):
        raise PrunebenchError(
            f"{path}: expected schema and key version {SCHEMA_VERSION} and {KEY_VERSION}, found {versions[0]} and {versions[1]};"
            f" read it with the prunebench that wrote it, or move {folder} elsewhere"
        )
    try:
        stated = body.pop("checksum")
        if stated != checksum(body):
            raise _damaged(path, f"its content has checksum {checksum(body)}, expected {stated}: it was edited")
        cell = Cell.from_dict(body["cell"])
        if not body["identity"] == cell.identity() == folder.name[-16:]:
            raise _damaged(path, f"identity {body['identity']}, folder {folder.name[-16:]}, but its cell has {cell.identity()}")
        if not samples:
            raise _damaged(folder / SAMPLES, "it is missing beside cell.json")
        if body["metrics"].get(body["headline"]) is None:
            raise _damaged(path, f"its headline metric {body['headline']!r} has no value")
        try:
            _check_origin(body["provenance"], body["method_info"])
        except PrunebenchError as error:
            raise _damaged(path, str(error)) from None
        return SealedCell(
            cell=cell,
            headline=body["headline"],
            metrics=body["metrics"],
            maximum=body["maximum"],
            interval=body["interval"] and stats.Interval(**body["interval"]),
            costs=body["costs"],
            counts=body["counts"],
            method_info=body["method_info"],
            provenance=body["provenance"],
            samples_sha256=body["samples_sha256"],
            folder=folder,
        )
    except PrunebenchError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _damaged(path, f"not a cell file ({type(error).__name__}: {error})") from None


def _check_origin(provenance: Mapping[str, Any], method_info: Mapping[str, Any]) -> None:
    """Raise PrunebenchError unless a cell says what was asked and which knobs a budget sets: tables and commands are made from both."""
    Asked.from_dict(provenance.get("request"))
    knobs = method_info.get("budget_knobs")
    if not isinstance(knobs, list) or not all(isinstance(name, str) for name in knobs):
        raise PrunebenchError(f"method_info: expected budget_knobs, the names of the knobs that a budget sets, found {knobs!r}")


def _parquet(rows: Sequence[tuple[Record, SampleScore]], costs: Mapping[str, Sequence[float]]) -> bytes:
    """The samples as Parquet bytes, one row per sample, in the order given."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def text(values: Iterator[object]) -> Any:
        return pa.array([None if value is None else str(value) for value in values], pa.string())

    columns = {
        "key": text(record.key for record, _ in rows),
        "image": text(record.image for record, _ in rows),
        "question_id": text(scored.question_id for _, scored in rows),
        "category": text(scored.category for _, scored in rows),
        "question": text(scored.question for _, scored in rows),
        "target": text(scored.target for _, scored in rows),
        "answer": text(record.answer for record, _ in rows),
        "score": pa.array([float(scored.score) for _, scored in rows], pa.float64()),
        "n_new_tokens": pa.array([record.n_new_tokens for record, _ in rows], pa.int64()),
        "keeps": text(record.kept for record, _ in rows),
    }
    for name, values in costs.items():
        whole = all(float(value).is_integer() and abs(value) < 2**62 for value in values)
        columns[name] = pa.array([int(v) if whole else float(v) for v in values], pa.int64() if whole else pa.float64())
    buffer = io.BytesIO()
    # Thousands of small files are committed. 100 rows are 5.1 kB like this, 6.0 kB with dictionaries (zstd finds the repeats of
    # all columns itself), 11.2 kB by default: statistics and a second copy of the schema are most of a small file.
    plain = {"use_dictionary": False, "write_statistics": False, "store_schema": False}
    pq.write_table(pa.table(columns), buffer, compression="zstd", compression_level=19, **plain)
    return buffer.getvalue()


def _write(handle: int, data: bytes) -> None:
    """All of the data: os.write may stop early."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _sync_folder(folder: Path) -> None:
    """Make names that were created, replaced or removed in the folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(folder: Path, *patterns: str) -> None:
    with _saying("tidy", folder):
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)
        _sync_folder(folder)


def _there(path: Path) -> bool:
    """Whether it exists; a folder that may not be looked into is an error, not an absence."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextmanager
def _saying(action: str, path: Path, kept: str = "") -> Iterator[None]:
    """Turn an OSError into a message that names the path and what to do."""
    try:
        yield
    except OSError as error:
        raise PrunebenchError(
            f"cannot {action} {path}: {error.strerror or error}{kept}; make room or choose a results folder that you can"
            " write, then run the same command again: it continues"
        ) from None


def _damaged(path: Path, why: str) -> PrunebenchError:
    return PrunebenchError(
        f"{path}: {why}; result files are never edited: restore it, or delete {path.parent} (FRESH=1 does) and measure again"
    )


def _sealed(body: Mapping[str, Any]) -> bytes:
    """A cell file's content as it is written, with its checksum."""
    return (json.dumps({**body, "checksum": checksum(body)}, indent=1) + "\n").encode("ascii")


def checksum(body: Mapping[str, Any]) -> str:
    """Hash of a cell file's content, `checksum` itself aside."""
    return hashlib.sha256(canonical_json(body).encode("ascii")).hexdigest()


def _number(value: Any) -> Any:
    """NumPy and tensor scalars as Python numbers; anything else JSON refuses."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def _slug(name: str) -> str:
    """Fit for a file name on any system, at most 60 characters."""
    return re.sub(r"[^A-Za-z0-9._+]+", "_", name)[:60].strip(".") or "_"


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
