"""A few questions of the mini data in a folder, the same as tasks of lmms-eval's command line, and that command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from harness.plugin.names import SHIPPED
from harness.store.journal import Record
from harness.store.sealed import SealedCell
from tasks.mini import data as mini_data
from tasks.sources import TASKS

GROUP = "few"
#: lmms-eval's names of our tasks
UPSTREAM = {name: Path(TASKS[name].yaml).stem for name in SHIPPED}
#: as torchrun does, on a free port
TWO_RANKS = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
)
#: after which a command hangs; torchrun ends the ranks that are left within 30
SECONDS = 300


def write(folder: Path, tasks: Mapping[str, int], skip: int = 0) -> None:
    """Some rows of these tasks (GQA with all images), as `--data` takes them, and a group of tasks that
    `--include_path` takes."""
    members = []
    for name, n in tasks.items():
        spec = TASKS[name]
        for table in (spec.table, *([spec.images] if spec.images else [])):
            path = next((mini_data.FOLDER / spec.dataset).glob(table.pattern))
            there = folder / path.relative_to(mini_data.FOLDER)
            there.parent.mkdir(parents=True, exist_ok=True)
            rows = pq.read_table(path)
            pq.write_table(rows.slice(skip, n) if table is spec.table else rows, there)
        own = {
            "task": UPSTREAM[name],
            "dataset_path": "parquet",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {spec.table.split: [str(folder / spec.dataset / spec.table.pattern)]}},
        }
        if spec.images is not None:  # upstream's own function would ask the hub for the images
            own["process_docs"] = "joined"
        members.append(own)
    text = json.dumps({"group": GROUP, "task": members})
    (folder / "few.yaml").write_text(text.replace('"joined"', "!function few.joined"))
    images = TASKS["gqa"].images
    assert images is not None
    (folder / "few.py").write_text(JOIN.format(files=str(folder / TASKS["gqa"].dataset / images.pattern)))


JOIN = """import datasets


def joined(docs):
    images = datasets.load_dataset("parquet", data_files={{"x": ["{files}"]}})["x"]
    place = {{name: i for i, name in enumerate(images["id"])}}
    column = images.select([place[i] for i in docs["imageId"]]).select_columns(["image"])
    return datasets.concatenate_datasets([docs, column], axis=1)
"""


def lmms_eval(data: Path, *args: str, launcher: Sequence[str] = ("-m",)) -> subprocess.CompletedProcess[str]:
    """lmms-eval's own command line with our model class on the tasks of a folder."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"HF_DATASETS_CACHE": str(data / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    words = ["--model", "prunebench", "--tasks", GROUP, "--include_path", str(data), "--device", "cpu", *args]
    return subprocess.run(
        [sys.executable, *launcher, "lmms_eval", *words],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=environment,
        cwd=data,
    )


def record_of(cell: SealedCell, key: str) -> Record:
    """A sample of a sealed cell, as a journal holds it."""
    frame = cell.samples().set_index("key")
    row = frame.loc[key]
    costs = {name: frame[name].tolist()[list(frame.index).index(key)] for name in cell.costs}
    return Record(key, row["image"], row["answer"], int(row["n_new_tokens"]), costs, 0.1, row["keeps"])
