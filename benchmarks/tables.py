"""What do the tables of a results folder cost? `python benchmarks/tables.py` (many minutes on two cores; `--small`: one
minute).

Folders of synthetic cells: 100, 1,000 and 10,000 of 100 questions on 20 images, and 101 of 12,578 questions on 398
images, GQA's numbers. Every folder is one section at five budgets, so lines per budget grow with the cells: the worst
case for anything that compares lines. Scores and answers are random. Four numbers of each:

* all: the tables without a cache, as after it was deleted;
* nothing new: again, with every statistic kept;
* one more: the same after one cell was added;
* per added cell: the time of several added cells at once, less that of nothing new, over their number.

What is timed is all that `prunebench eval` does for its tables: reading and checking every cell, and writing
leaderboard.csv, LEADERBOARD.md and significance.csv. Figures are drawn by `prunebench leaderboard` only, and not here.
Times are of the processor, so other jobs on the machine do not enter; waiting for the disk does not either.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tabulate import tabulate

from harness.core import stats
from harness.core.asked import Asked
from harness.core.cell import KEY_VERSION, Cell, processing_digest
from harness.runner.run import write_tables
from harness.store.files import checksum
from harness.store.sealed import SAMPLES, SCHEMA_VERSION, SEAL, compressed, headline_of
from harness.store.store import Store
from harness.tables.leaderboard import FILES

BUDGETS = (192, 128, 64, 32, 16)
NAMED = ("random", "downsample")  # lines that others are compared with
PROCESSING = {"image": {"processor": "CLIPImageProcessor", "policy": "plain"}}
METRICS = {"gqa": "exact_match", "pope": "pope_accuracy", "vqa": "accuracy", "textvqa": "exact_match"}


@dataclass(frozen=True)
class Shape:
    """A folder: `lines` methods at each of the budgets, and the unpruned model, at each of the tasks."""

    tasks: tuple[str, ...]
    lines: int
    questions: int
    images: int
    added: int
    """Lines that come last, in the first budgets."""

    @property
    def settings(self) -> list[tuple[str, str]]:
        """(method, budget) of every line."""
        names = [*NAMED, *(f"method{i:03d}" for i in range(self.lines - len(NAMED)))]
        return [("none", "none"), *itertools.product(names, map(str, BUDGETS))]


def folders(root: Path, shape: Shape) -> Iterator[Path]:
    """Write the cells; yields the folder of each."""
    rng = np.random.default_rng(0)
    image = [
        hashlib.sha256(f"{i * shape.images // shape.questions}".encode()).hexdigest()[:16]
        for i in range(shape.questions)
    ]
    for task in shape.tasks:
        columns: dict[str, Any] = {
            "key": [f"{task}/{i:06d}" for i in range(shape.questions)],
            "image": image,
            "question_id": [str(i) for i in range(shape.questions)],
            "category": [None] * shape.questions,
            "question": [f"Is there a thing {i % 97} here?" for i in range(shape.questions)],
            "target": ["yes"] * shape.questions,
        }
        texts = {name: pa.array(values, pa.string()) for name, values in columns.items()}
        hardness = rng.random(shape.questions)
        for method, budget in shape.settings:
            ability = 0.8 if method == "none" else rng.uniform(0.5, 0.8)
            right = rng.random(shape.questions) * 0.4 + hardness * 0.6 < ability
            yield _write(root, task, method, budget, texts, image, right.astype(float))


def _write(
    root: Path, task: str, method: str, budget: str, texts: dict[str, Any], image: list[str], score: Any
) -> Path:
    """One cell as a store would have sealed it."""
    n, metric = len(image), METRICS[task]
    answers = pa.array(np.where(score == 1.0, "yes", "no").tolist(), pa.string())
    keep = 576 if method == "none" else int(budget)
    costs = {"kept": keep, "mean_visual": keep, "prefill_dense_flops": keep * 10_000_000, "kv_bytes": keep * 1024}
    numbers = {name: pa.array([value] * n, pa.int64()) for name, value in costs.items()}
    table = pa.table({**texts, "answer": answers, "score": pa.array(score), **numbers})
    samples = compressed(table)
    cell = Cell(
        model="synthetic",
        model_fingerprint="weights",
        method=method,
        knobs={} if method == "none" else {"keep": keep},
        budget=budget,
        task=task,
        data_fingerprint=f"{task}-{n}",
        n_samples=n,
        processing=processing_digest(PROCESSING),
        task_settings=processing_digest({"stop_strings": []}),
        dtype="float32",
        device_type="cpu",
        max_new_tokens=16,
    )
    nothing: dict[str, Any] = dict.fromkeys(("limit", "data", "dtype", "prompt", "image", "stands_for"))
    asked = Asked(
        method=method,
        budget=None if method == "none" else budget,
        model="synthetic",
        task=task,
        knobs={},
        seed=0,
        positions="method",
        device="cpu",
        **nothing,
    )
    found = headline_of(metric, score.tolist(), image, [None] * n, [str(i) for i in range(n)])
    body = {
        "schema_version": SCHEMA_VERSION,
        "key_version": KEY_VERSION,
        "identity": cell.identity(),
        "cell": cell.to_dict(),
        "headline": metric,
        "metrics": {metric: found.point},
        "maximum": found.maximum,
        "interval": found.interval and asdict(found.interval),
        "costs": costs,
        "counts": {"expected": n, "answered": n, "headline": n},
        "answering_wall_s": 1.0,
        "method_info": {"query_aware": False, "needs_vision_attention": False, "budget_knobs": ["keep"]},
        "provenance": {
            "request": asked.to_dict(),
            "started": "2026-01-01",
            "device": "CPU",
            "processing": PROCESSING,
            "task_settings": {"stop_strings": []},
        },
        "samples_sha256": hashlib.sha256(samples).hexdigest(),
    }
    folder = Store(root).folder(cell)
    folder.mkdir(parents=True)
    (folder / SAMPLES).write_bytes(samples)
    (folder / SEAL).write_text(json.dumps({**body, "checksum": checksum(body)}))
    return folder


def timed(root: Path) -> float:
    """Seconds of CPU that writing the tables of a folder takes."""
    began = time.process_time()
    write_tables(Store(root), lambda why: print(why, flush=True))
    return time.process_time() - began


def measured(shape: Shape, place: Path) -> list[Any]:
    """A row of the table."""
    root, aside = place / "results", place / "aside"
    began = time.perf_counter()
    made = list(folders(root, shape))
    print(f"{len(made)} cells of {shape.questions} questions, built in {time.perf_counter() - began:.0f} s", flush=True)
    last = [folder for folder in made if f"method{shape.lines - len(NAMED) - 1:03d}" in folder.name]
    held = [folder for folder in last if folder.name.rsplit("-", 2)[1] in map(str, BUDGETS[: shape.added])]
    whole = timed(root)
    written = {name: (root / name).read_bytes() for name in FILES}
    for folder in held:
        (aside / folder.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder, aside / folder.relative_to(root))
    timed(root)  # keeps all but those set aside
    nothing = min(timed(root), timed(root))
    one, *others = held
    shutil.move(aside / one.relative_to(root), one)
    first = timed(root)
    for folder in others:
        shutil.move(aside / folder.relative_to(root), folder)
    more = timed(root)
    for name, data in written.items():
        if (root / name).read_bytes() != data:
            raise SystemExit(f"{name} is another with an empty cache than with a full one")
    size = sum(file.stat().st_size for file in (root / "cache").iterdir())
    each = (more - nothing) / len(others)
    print(f"all {whole:.1f} s, nothing new {nothing:.2f} s, one more {first:.2f} s, each of {len(others)} {each:.3f} s")
    shutil.rmtree(place)
    row = [len(made), shape.questions, shape.images, whole, 1000 * whole / len(made), nothing, first - nothing, each]
    return [*row, size / 1e6]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="folders of 60 and 120 cells, and 11 of 12,578 questions")
    args = parser.parse_args()
    tasks = tuple(METRICS)
    sizes = (3, 6) if args.small else (5, 50, 500)
    shapes = [Shape(("gqa",), 3 if args.small else 20, 12_578, 398, added=5)]
    shapes += [Shape(tasks, lines, 100, 20, added=2) for lines in sizes]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        measured(Shape(tasks, 3, 100, 20, added=1), Path(folder) / "imports")  # not a row: it pays for the imports
        for shape in shapes:
            rows.append(measured(shape, Path(folder) / "one"))
    head = ["cells", "questions", "images", "all (s)", "all, per cell (ms)", "nothing new (s)"]
    head += ["one more (s)", "per added cell (s)", "cache (MB)"]
    print(f"\n{stats.DECISIVE:,} resamples\n")
    formats = ("", "", "", ".1f", ".1f", ".2f", ".2f", ".3f", ".1f")
    print(tabulate(rows, headers=head, tablefmt="github", floatfmt=formats, intfmt=","))
    for before, after in itertools.pairwise(rows[1:]):
        growth = (after[3] / before[3]) ** (1 / np.log2(after[0] / before[0]))
        print(f"a full rebuild takes {growth:.2f} times as long per doubling from {before[0]:,} to {after[0]:,} cells")


if __name__ == "__main__":
    main()
