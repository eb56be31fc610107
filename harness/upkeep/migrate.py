"""Seals cells of schema 4 anew in schema 5, and is the only place that reads schema 4.

Answers, kept tokens and costs stay. All that follows from the answers is computed again: scores and metrics by the
task's own code, the interval, and the identity, whose fields are others (KEY_VERSION 2). The model's files and
the task's data must be those of then. A cell is written whole before its old folder goes. An interrupted migration is
run again.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.asked import Asked
from harness.core.cell import KEY_VERSION
from harness.core.errors import PrunebenchError, naming
from harness.store.files import checksum, remove, write_atomic
from harness.store.sealed import SAMPLES, SCHEMA_VERSION, SEAL, compressed, defined, headline_of, load, sealed
from harness.store.store import Store

if TYPE_CHECKING:
    from harness.runner.jobs import Job
    from harness.runner.session import Session

OLD = (4, 1)
"""Schema and key version."""
_MOVED = ("prompt_template", "image_backend", "model_fingerprint", "device_type")
"""Fields of a cell of then that are compared in another way, or that this machine need not share."""


def migrate(root: Path) -> tuple[list[str], bool]:
    """Lines for people, and whether all cells under `root` are of the new schema. Raises PrunebenchError where there
    are none."""
    from harness.runner.session import Session

    files = sorted((root / "cells").glob(f"*/*/{SEAL}"))
    if not files:
        raise PrunebenchError(f"expected a results folder with sealed cells, found none at {root}: give --results")
    store, session = Store(root), Session()
    lines: list[str] = []
    done = moved = wrong = spelt = 0
    for file in files:
        try:
            note = _migrated(store, file, session)
            spelt += note is None and _spelt_anew(store, file)
        except PrunebenchError as error:
            wrong += 1
            lines.append(f"WRONG  {error}")
            continue
        done += note is not None
        if note:
            moved += 1
            lines.append(note)
    lines.append(
        f"{done} cells sealed anew in schema {SCHEMA_VERSION}, {moved} of them with other scores or metrics,"
        f" {len(files) - done - wrong} were already, {wrong} wrong"
    )
    if spelt:
        lines.append(f"{SEAL} of {spelt} cells written in today's lines, with the same content and checksum")
    return lines, not wrong


def _spelt_anew(store: Store, file: Path) -> bool:
    """Write a whole cell's file as a run would write it; whether its bytes were others. Its content stays."""
    was = file.read_bytes()
    body = json.loads(was)
    del body["checksum"]
    new = sealed(body)
    if new == was:
        return False
    with store.locked(file.parent) as lease, lease.guard():
        write_atomic(file, new)
    return True


def _migrated(store: Store, file: Path, session: Session) -> str | None:
    """What moved in a cell that was sealed anew, "" for nothing; None for a cell of the new schema. Raises
    PrunebenchError for a cell that is not whole, or whose model or data are not at hand."""
    try:
        body = json.loads(file.read_bytes())
        versions = body["schema_version"], body["key_version"]
        if versions == (SCHEMA_VERSION, KEY_VERSION):
            load(file.parent)
            return None
        if versions != OLD:
            raise PrunebenchError(
                f"{file}: expected schema {OLD[0]}, found {versions[0]!r}: read it with the prunebench that wrote it"
            )
        if body.pop("checksum") != checksum(body):
            raise PrunebenchError(
                f"{file}: it was edited since it was sealed: restore it, or delete {file.parent} and measure again"
            )
        table = (file.parent / SAMPLES).read_bytes()
        found = hashlib.sha256(table).hexdigest()
        if found != body["samples_sha256"]:
            raise PrunebenchError(
                f"{file.parent / SAMPLES}: expected sha256 {body['samples_sha256']}, found {found}: restore it, or"
                f" delete {file.parent} and measure again"
            )
        with naming(str(file)):
            job = _job(body, session)
            new, table, note = _derived(body, table, job)
        store.reseal(job.cell, new, table)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise (
            error
            if isinstance(error, PrunebenchError)
            else PrunebenchError(f"{file}: not a cell file ({type(error).__name__}: {error})")
        ) from None
    load(store.folder(job.cell))
    remove(file.parent, SEAL, SAMPLES, ".*.tmp")
    file.parent.rmdir()
    return f"{file}: {note}" if note else ""


def _job(body: Mapping[str, Any], session: Session) -> Job:
    """The cell of today that was asked for in the same words, with its data.

    Raises PrunebenchError where model or data are not at hand, or are others than those measured.
    """
    from harness.runner.jobs import Job, prepare
    from harness.runner.request import Request, resolve

    was = body["cell"]
    words = body["provenance"]["request"]
    # folders and hub ids without a configuration were asked in Vicuna's words and padded, whatever they said themselves
    tried: list[str] = []
    for prompt, image in ((None, None), ("vicuna_v1", "pad")):
        asked = Asked.from_dict({**words, "prompt": prompt, "image": image, "stands_for": None})
        request = Request(
            methods=[asked.method],
            model=asked.model,
            budgets=[asked.budget] if asked.budget else [],
            tasks=[asked.task],
            limit=asked.limit,
            seeds=[str(asked.seed)],
            device="cpu",
            dtype=was["dtype"],
            data=asked.data,
            positions=asked.positions,
            knobs=asked.knobs,
            prompt=prompt,
            image=image,
        )
        setting = next(s for s in resolve(request, session) if (s.method.name == "none") == (was["method"] == "none"))
        prompter = setting.located.prompter
        here = prompter.template_hash, prompter.image_backend
        if here == (was["prompt_template"], was["image_backend"]):
            break
        tried.append(" ".join(here))
    else:
        raise PrunebenchError(
            f"expected the prompt and images {was['prompt_template']} {was['image_backend']}, found"
            f" {' and '.join(tried)}: measure it again"
        )
    weights = prompter.revision or _weights(setting.located.folder)
    if weights != was["model_fingerprint"]:
        raise PrunebenchError(
            f"expected a model with weights {was['model_fingerprint']} as {asked.model}, found {weights}: measure it"
            " again"
        )
    (job,) = prepare([replace(setting, asked=asked)], session)
    # where it was measured need not be where it is migrated
    cell = replace(job.cell, device_type=was["device_type"])
    now = cell.to_dict()
    for name, value in was.items():
        if name not in _MOVED and now.get(name) != value:
            raise PrunebenchError(
                f"expected {name} {value!r}, found {now.get(name)!r} for the same request: measure it again"
            )
    return Job(job.setting, job.task, cell, cell.identity())


@lru_cache(maxsize=8)
def _weights(folder: Path) -> str:
    """A folder's fingerprint by the rule of then: all safetensors, JSON and Jinja files."""
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json", ".jinja")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _derived(body: Mapping[str, Any], table: bytes, job: Job) -> tuple[dict[str, Any], bytes, str]:
    """The cell file and the samples anew, and what moved in them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from harness.runner.jobs import task_settings
    from harness.runner.running import scored

    rows = pq.read_table(io.BytesIO(table))
    columns = {name: rows[name].to_pylist() for name in ("key", "answer", "score", "image", "category", "question_id")}
    answers = dict(zip(columns["key"], columns["answer"], strict=True))
    if answers.keys() != {s.key for s in job.task.samples}:
        raise PrunebenchError(f"expected answers to the {len(job.task.samples)} questions of the data, found others")
    metrics, scores = scored(job.task, answers)
    moved = [key for key, score in zip(columns["key"], columns["score"], strict=True) if scores[key].score != score]
    if moved:
        now = pa.array([scores[key].score for key in columns["key"]], pa.float64())
        table = compressed(rows.set_column(rows.column_names.index("score"), "score", now))
    per_sample = [scores[key].score for key in columns["key"]]
    found = headline_of(body["headline"], per_sample, columns["image"], columns["category"], columns["question_id"])
    plain = defined(metrics)
    other = [
        f"{name} {value} -> {plain.get(name)}"
        for name, value in body["metrics"].items()
        if not _alike(value, plain.get(name))
    ]
    note = "; ".join(([f"{len(moved)} scores, first {moved[0]}"] if moved else []) + other)
    new = {
        **body,
        "schema_version": SCHEMA_VERSION,
        "key_version": KEY_VERSION,
        "identity": job.identity,
        "cell": job.cell.to_dict(),
        "metrics": plain,
        "maximum": found.maximum,
        "interval": found.interval and asdict(found.interval),
        "counts": {**body["counts"], "headline": found.questions},
        "provenance": {
            **body["provenance"],
            "request": job.setting.asked.to_dict(),
            "processing": dict(job.setting.located.prompter.processing),
            "task_settings": task_settings(job.task),
        },
        "samples_sha256": hashlib.sha256(table).hexdigest(),
    }
    return new, table, note


def _alike(before: float | None, now: float | None) -> bool:
    """Equal but for the last bits of a float."""
    if before is None or now is None:
        return before is now
    return math.isclose(before, now, abs_tol=1e-12)
