"""A sealed cell: cell.json and samples.parquet, read and checked."""

from __future__ import annotations

import hashlib
import io
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.core import stats
from harness.core.asked import Asked
from harness.core.cell import KEY_VERSION, Cell
from harness.core.errors import PrunebenchError
from harness.core.metric import Metric, as_metric, metric_from
from harness.core.spelling import given
from harness.store import probe
from harness.store.files import checksum, saying, there
from harness.store.journal import Record
from harness.store.kinds import check_kinds

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

SCHEMA_VERSION = 5
OLDER = ((4, 1),)
"""(schema, key version) of cells that `prunebench dev migrate` reads."""
KEYS = frozenset(
    {
        *("schema_version", "key_version", "identity", "cell", "headline", "metrics", "maximum", "interval", "costs"),
        *("counts", "answering_wall_s", "method_info", "provenance", "samples_sha256"),
    }
)
"""Of a cell file, beside its checksum."""
METRIC = "metric"
"""Of a cell file whose headline metric is not what its name alone says: how it differs, as `Metric.stated` writes."""
SAMPLES, SEAL = "samples.parquet", "cell.json"
#: bytes of a cell.json
MOST = 64 * 2**20
COLUMNS = ("key", "image", "question_id", "category", "question", "target", "answer", "score", "n_new_tokens", "keeps")


class SampleScore(NamedTuple):
    """What scoring says about one sample."""

    score: float | None
    """0..1; None where the metric gives a sample none."""
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
    """What the headline metric can reach: 1 or its scale, or 200 points per MME category present; NaN where unknown."""
    interval: stats.Interval | None
    costs: Mapping[str, float]
    """Every cost column over the samples, as `cost_means` says."""
    counts: Mapping[str, int]
    """Samples `expected` and `answered`, and those that the `headline` metric is computed from; `images` where no
    interval says how many."""
    method_info: Mapping[str, Any]
    provenance: Mapping[str, Any]
    samples_sha256: str
    folder: Path
    stated: Mapping[str, Any] = field(default_factory=dict)
    """What the headline's name does not say of its metric."""

    @cached_property
    def metric(self) -> Metric:
        """The headline metric: its kind, unit and direction."""
        return metric_from(self.headline, self.stated)

    @cached_property
    def identity(self) -> str:
        """Of the cell; kept, because it is a hash over all of its fields and tables ask for it many times."""
        return self.cell.identity()

    @cached_property
    def baseline_identity(self) -> str:
        """Of the unpruned cell that this one is compared with."""
        return self.cell.baseline().identity()

    @cached_property
    def asked(self) -> Asked:
        """The words of the request that made it."""
        return Asked.from_dict(self.provenance.get("request"))

    @property
    def limit(self) -> str:
        """The LIMIT of a try; "" for all questions, or as many as the model's data are asked by default."""
        return "" if self.asked.limit in (None, "all") else str(self.asked.limit)

    @property
    def unproven(self) -> str:
        """The model's family, where no recorded official run of the method on it is replayed; else ""."""
        return str(self.provenance.get("unproven", ""))

    @property
    def images_by(self) -> str:
        """The image processor, and the padding before it."""
        image = self.provenance["processing"].get("image", {})
        return f"{image.get('processor', '?')}+{image.get('policy', '?')}"

    @property
    def score(self) -> float:
        """The headline metric, in its own unit."""
        value = self.metrics[self.headline]
        assert value is not None  # seal refuses it
        return value

    @property
    def ahead(self) -> float:
        """The score, negative where lower is better: of two cells the higher one is better."""
        return self.metric.ahead * self.score

    def samples(self) -> pd.DataFrame:
        """One row per sample: key, image, question_id, category, question, target, answer, score, n_new_tokens, keeps,
        costs.

        `keeps` is the text of harness.core.keeps (which visual tokens were there); the cost `kept` is a number of
        tokens. Raises PrunebenchError if the file is not the one that was sealed.
        """
        import pandas as pd  # half a second that tables of cells do not need

        return pd.read_parquet(io.BytesIO(self._verified()))

    def columns(self, *names: str) -> dict[str, list[Any]]:
        """Some columns of the samples, sorted by key. Raises as `samples`."""
        return dict(self.table(*names).to_pydict())

    def table(self, *names: str) -> Any:
        """Some columns of the samples as a pyarrow table, sorted by key. Raises as `samples`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        # as bytes: a path would have to be UTF-8
        return pq.read_table(pa.BufferReader(self._verified()), columns=list(names)).sort_by("key")

    def verify(self) -> None:
        """Re-hash the samples. Raises PrunebenchError if they are not the ones that were sealed."""
        self._verified()

    def check(self) -> None:
        """`verify`, and raise PrunebenchError unless the samples are of the kinds that a store writes: others would end
        every table."""
        data = self._verified()
        try:
            why = probe.unlike(data, self.cell.n_samples)
        except Exception as error:  # pyarrow raises classes of its own for a file that is not Parquet
            why = f"cannot be read as Parquet ({type(error).__name__}: {error})"
        if why:
            raise damaged(self.folder / SAMPLES, why)

    def _verified(self) -> bytes:
        path = self.folder / SAMPLES
        with saying("read", path):
            if there(path) and not path.is_file():  # a pipe would never end
                raise damaged(path, "expected a file, found something else")
            data = path.read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if found != self.samples_sha256:
            raise damaged(path, f"expected sha256 {self.samples_sha256}, found {found}")
        return data


class Headline(NamedTuple):
    """What samples say of the headline metric."""

    point: float
    maximum: float
    questions: int
    """Those that the metric is computed from."""
    images: int
    interval: stats.Interval | None


def headline_of(
    metric: Metric | str,
    scores: Sequence[float | None],
    images: Sequence[str],
    categories: Sequence[str | None],
    question_ids: Sequence[str],
    value: float | None = None,
) -> Headline:
    """The headline metric from one row per sample; sealing and verifying both come here. A metric that no scores make
    is taken as `value` says, without an interval. Raises as `stats.cluster`, and for a sample without its score."""
    metric = as_metric(metric)
    for n, score in enumerate(scores):
        missing = score is None or math.isnan(score)
        if not (missing and metric.kind == "corpus") and (score is None or not 0.0 <= score <= 1.0):
            raise PrunebenchError(f"{metric.name}: score of sample {n} is {score}, expected 0..1")
    if metric.kind == "corpus":
        most = math.nan if metric.maximum is None else metric.maximum
        return Headline(math.nan if value is None else value, most, len(scores), len(set(images)), None)
    known = [0.0 if score is None else score for score in scores]  # none is, as seen above
    units = stats.cluster(metric, known, images, categories, question_ids)
    questions = sum(stats.in_headline(metric, categories))
    return Headline(units.point, units.maximum, questions, units.n_clusters, stats.interval(metric.name, units))


def defined(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    """Metrics as a cell file holds them: None for one that is undefined."""
    return {name: None if v is None or not math.isfinite(v) else float(v) for name, v in metrics.items()}


def cost_means(columns: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean per sample of every cost. A layer (`*_layer`) that a sample does not have is -1: its mean is over those
    that have one, left out where none has, and `*_layer_share` says how many of all samples they are, 0..1."""
    means: dict[str, float] = {}
    for name, column in columns.items():
        had = [value for value in column if value >= 0] if name.endswith("_layer") else column
        if len(had):
            means[name] = math.fsum(had) / len(had)
        if name.endswith("_layer"):
            means[f"{name}_share"] = len(had) / len(column)
    return means


def load(folder: Path) -> SealedCell:
    """Read and check a sealed folder's cell.json: one that does not hang together is a PrunebenchError naming it, not a
    result."""
    path = folder / SEAL
    with saying("read", path):
        if there(path) and not path.is_file():
            raise damaged(path, "expected a file, found something else")
        size = path.stat().st_size
        if size > MOST:
            raise damaged(path, f"expected at most {MOST:,} bytes, found {size:,}")
        data = path.read_bytes()
        samples = there(folder / SAMPLES)
    try:
        body = json.loads(data)
        versions = body["schema_version"], body["key_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(path, f"not a cell file ({type(error).__name__}: {error})") from None
    if versions in OLDER:
        root = shlex.quote(str(folder.parent.parent.parent))
        raise PrunebenchError(
            f"{path}: expected schema {SCHEMA_VERSION}, found {versions[0]}: run `prunebench dev migrate --results"
            f" {root}`"
        )
    if versions != (SCHEMA_VERSION, KEY_VERSION):
        raise PrunebenchError(
            f"{path}: expected schema and key version {SCHEMA_VERSION} and {KEY_VERSION}, found {versions[0]} and"
            f" {versions[1]}; read it with the prunebench that wrote it, or move {folder} elsewhere"
        )
    try:
        stated = body.pop("checksum")
        if stated != checksum(body):
            raise damaged(path, f"its content has checksum {checksum(body)}, expected {stated}: it was edited")
        strange = sorted(body.keys() - KEYS - {METRIC})
        if strange:
            raise damaged(path, f"expected no key {strange[0]!r}")
        cell = Cell.from_dict(body["cell"])
        if not body["identity"] == cell.identity() == folder.name[-16:]:
            raise damaged(
                path, f"identity {body['identity']}, folder {folder.name[-16:]}, but its cell has {cell.identity()}"
            )
        if not samples:
            raise damaged(folder / SAMPLES, "it is missing beside cell.json")
        if body["metrics"].get(body["headline"]) is None:
            raise damaged(path, f"its headline metric {body['headline']!r} has no value")
        try:
            check_origin(body["provenance"], body["method_info"])
            metric_from(body["headline"], body.get(METRIC, {}))
            check_kinds(body)
        except PrunebenchError as error:
            raise damaged(path, str(error)) from None
        return SealedCell(
            cell=cell,
            headline=body["headline"],
            metrics=body["metrics"],
            maximum=math.nan if body["maximum"] is None else body["maximum"],
            interval=body["interval"] and stats.Interval(**body["interval"]),
            costs=body["costs"],
            counts=body["counts"],
            method_info=body["method_info"],
            provenance=body["provenance"],
            samples_sha256=body["samples_sha256"],
            folder=folder,
            stated=body.get(METRIC, {}),
        )
    except PrunebenchError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise damaged(path, f"not a cell file ({type(error).__name__}: {error})") from None


def check_origin(provenance: Mapping[str, Any], method_info: Mapping[str, Any]) -> None:
    """Raise PrunebenchError unless a cell says what was asked and which knobs a budget sets: tables and commands are
    made from both."""
    Asked.from_dict(provenance.get("request"))
    if not isinstance(provenance.get("processing"), Mapping):
        raise PrunebenchError(
            f"provenance: expected processing, what is done to every sample, found {provenance.get('processing')!r}"
        )
    knobs = method_info.get("budget_knobs")
    if not isinstance(knobs, list) or not all(isinstance(name, str) for name in knobs):
        raise PrunebenchError(
            f"method_info: expected budget_knobs, the names of the knobs that a budget sets, found {knobs!r}"
        )


def parquet(rows: Sequence[tuple[Record, SampleScore]], costs: Mapping[str, Sequence[float]]) -> bytes:
    """The samples as Parquet bytes, one row per sample, in the order given."""
    import pyarrow as pa

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
        "score": pa.array([None if scored.score is None else float(scored.score) for _, scored in rows], pa.float64()),
        "n_new_tokens": pa.array([record.n_new_tokens for record, _ in rows], pa.int64()),
        "keeps": text(record.kept for record, _ in rows),
    }
    for name, values in costs.items():
        whole = all(float(value).is_integer() and abs(value) < 2**62 for value in values)
        columns[name] = pa.array([int(v) if whole else float(v) for v in values], pa.int64() if whole else pa.float64())
    return compressed(pa.table(columns))


def compressed(table: Any) -> bytes:
    """A table of samples as the bytes of samples.parquet."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    # Thousands of small files are committed. 100 rows are 5.1 kB like this, 6.0 kB with dictionaries (zstd finds the
    # repeats of all columns itself), 11.2 kB by default: statistics and a second copy of the schema are most of a small
    # file.
    plain = {"use_dictionary": False, "write_statistics": False, "store_schema": False}
    pq.write_table(table, buffer, compression="zstd", compression_level=19, **plain)
    return buffer.getvalue()


def damaged(path: Path, why: str) -> PrunebenchError:
    return PrunebenchError(
        f"{path}: {why}; result files are never edited: restore it, or delete {path.parent}"
        f" ({given('fresh', True)} does) and measure again"
    )


def sealed(body: Mapping[str, Any]) -> bytes:
    """A cell file's content as it is written, with its checksum: one line for each key of the first level."""
    whole = {**body, "checksum": checksum(body)}
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in whole.items())
    return f"{{\n{lines}\n}}\n".encode("ascii")
