"""Questions on mini images with the answers that this repository committed for them, in one file that needs no package
to read.

`python -m harness.gpu_check --write-answers` makes it again from the mini data and the sealed cells of
results/reference.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

from harness.core.errors import PrunebenchError
from harness.core.paths import TOP, checkout
from harness.gpu_check.plan import ARMS

ROOT = TOP
FILE = ROOT / "tests" / "goldens" / "mini.json.gz"
TASKS = ("gqa", "mme", "pope", "textvqa")
#: questions of each task; the first images of the subset that the reference measured, whole where they fit
PER_TASK, SUBSET, SEED = 12, 108, 0


def read() -> dict[str, Any]:
    """`questions`: key, text, image, max_new_tokens, until; `images`: JPEG bytes by key; `answers`: by arm, then by
    question.

    Raises PrunebenchError where the file is missing.
    """
    checkout("the GPU check")
    if not FILE.is_file():
        raise PrunebenchError(f"expected {FILE.relative_to(ROOT)}, found none: restore it with `git checkout`")
    held: dict[str, Any] = json.loads(gzip.decompress(FILE.read_bytes()))
    held["images"] = {key: base64.b64decode(text) for key, text in held["images"].items()}
    return held


def write() -> Path:
    """Write the file; the same bytes for the same content."""
    FILE.write_bytes(gzip.compress(json.dumps(make(), indent=0).encode(), mtime=0))
    return FILE


def make() -> dict[str, Any]:
    """The content, from the mini data, lmms-eval's prompts and the sealed cells. Raises PrunebenchError where a cell is
    missing."""
    from harness.gpu_check.house import knobs_of
    from harness.store.store import Store
    from tasks import lmms
    from tasks.sources import DataSource

    chosen = []
    for name in TASKS:
        task = lmms.load_task(name, DataSource.parse("mini"), SUBSET, SEED)
        chosen.append([(task, sample) for sample in task.samples[:PER_TASK]])
    # tasks by turns, so that the first questions are of all of them
    mixed = [pair for pairs in zip(*chosen, strict=True) for pair in pairs]
    questions = [
        {
            "key": s.key,
            "text": s.prompt,
            "image": s.image_key,
            "max_new_tokens": task.max_new_tokens,
            "until": list(task.until),
        }
        for task, s in mixed
    ]
    keys = [q["key"] for q in questions]
    cells = Store(ROOT / "results" / "reference").cells()
    answers: dict[str, dict[str, str]] = {}
    for arm in ARMS:
        if arm.answers is not None:
            continue
        found: dict[str, str] = {}
        wanted = json.loads(
            json.dumps(["mini", arm.method, arm.budget or "none", knobs_of(arm), 0, "method", "float32", "cpu"])
        )
        for one in cells:
            c = one.cell
            is_of = json.loads(
                json.dumps([c.model, c.method, c.budget, c.knobs, c.seed, c.positions, c.dtype, c.device_type])
            )
            if is_of == wanted:
                found |= dict(zip(one.samples()["key"], one.samples()["answer"], strict=True))
        lacking = [key for key in keys if key not in found]
        if lacking:
            raise PrunebenchError(
                f"results/reference: expected answers of {arm.label}, found none for {lacking[0]} and"
                f" {len(lacking) - 1} more"
            )
        answers[arm.label] = {key: found[key] for key in keys}
    return {"questions": questions, "images": _images({str(q["image"]) for q in questions}), "answers": answers}


def _images(wanted: set[str]) -> dict[str, str]:
    import pyarrow.parquet as pq

    found = {}
    for file in sorted((ROOT / "tasks" / "mini" / "data").rglob("*.parquet")):
        if "image" not in pq.read_schema(file).names:
            continue
        for image in pq.read_table(file, columns=["image"])["image"].to_pylist():
            key = hashlib.sha256(image["bytes"]).hexdigest()[:16]
            if key in wanted:
                found[key] = base64.b64encode(image["bytes"]).decode()
    return dict(sorted(found.items()))
