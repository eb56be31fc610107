"""A few questions of the mini data in a folder, and the same as tasks of lmms-eval's command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq

from harness.plugin.names import SHIPPED
from tasks.mini import data as mini_data
from tasks.sources import TASKS

GROUP = "few"
#: lmms-eval's names of our tasks
UPSTREAM = {name: Path(TASKS[name].yaml).stem for name in SHIPPED}


def write(folder: Path, tasks: Mapping[str, int]) -> None:
    """The first rows of these tasks (GQA with all images), as `--data` takes them, and a group of tasks that
    `--include_path` takes."""
    members = []
    for name, n in tasks.items():
        spec = TASKS[name]
        for table in (spec.table, *([spec.images] if spec.images else [])):
            path = next((mini_data.FOLDER / spec.dataset).glob(table.pattern))
            there = folder / path.relative_to(mini_data.FOLDER)
            there.parent.mkdir(parents=True, exist_ok=True)
            rows = pq.read_table(path)
            pq.write_table(rows.slice(0, n) if table is spec.table else rows, there)
        own = {
            "task": UPSTREAM[name],
            "dataset_path": "parquet",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {spec.table.split: [str(folder / spec.dataset / spec.table.pattern)]}},
        }
        members.append(own)
    (folder / "few.yaml").write_text(json.dumps({"group": GROUP, "task": members}))
