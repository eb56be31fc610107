"""How much memory does loading take? `python benchmarks/load_memory.py` (minutes; 3 GB of disk, 7 GB of memory).

Random float16 weights of LLaVA-1.5-7B's sizes are written to a temporary folder, with names and shards as on the hub.
`--full` writes all 32 decoder layers: 14 GB of disk, 19 GB of memory. A fresh process for each dtype finds and loads
the model as `prunebench eval` does, fingerprint included. Its memory is read 200 times a second:

* anonymous: pages that no file backs. The system can only swap them.
* file: mapped pages of files, torch's libraries among them. Processes share them, and the system may drop them.
* peak: the most of both at once, as the system counted it (VmHWM).

Weights are the model's bytes in that dtype. Met: the peak is at most the weights and 2 GB (1 GB = 10^9 bytes).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE
from typing import Any

import torch
from safetensors.torch import save_file
from tabulate import tabulate
from transformers import AutoModelForImageTextToText, PreTrainedConfig

from harness.core.paths import TOP
from harness.core.shape import SHAPES
from harness.models.adapters import LlavaAdapter

GB, GOAL = 1e9, 2.0
#: from transformers' names of tensors to those of the hub's file
NAMES = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)
LOAD = """
import sys
from harness.models.load import locate_model
located = locate_model(sys.argv[1], "cpu", sys.argv[2])
located.fingerprint
print("found", flush=True)
print(sum(p.nbytes for p in located.load().model.parameters()), flush=True)
sys.stdin.readline()  # until its memory was read
"""


def config_of(layers: int) -> PreTrainedConfig:
    """LLaVA-1.5-7B's, with this many decoder layers, and the mini model's tokens."""
    config = LlavaAdapter.config_of(SHAPES["llava-1.5-7b"], image_token_id=4)
    config.text_config.num_hidden_layers = layers
    config.architectures, config.dtype = ["LlavaForConditionalGeneration"], torch.float16
    return config


def stand_in(folder: Path, layers: int, shard: float) -> None:
    """Write a checkpoint of random weights in shards of at most `shard` GB; one shard is in memory at a time."""
    mini = TOP / "tasks" / "mini" / "weights"
    shutil.copytree(mini, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    config = config_of(layers)
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float16)
    parts = list(_shards({_on_the_hub(name): p for name, p in model.named_parameters()}, shard * GB))
    places: dict[str, str] = {}
    generator = torch.Generator().manual_seed(0)
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors"
        made = {name: torch.empty(p.shape, dtype=p.dtype).normal_(0, 0.02, generator=generator) for name, p in part}
        save_file(made, folder / file, {"format": "pt"})
        places |= dict.fromkeys(made, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _on_the_hub(name: str) -> str:
    return next((name.replace(ours, theirs, 1) for ours, theirs in NAMES if name.startswith(ours)), name)


def _shards(weights: dict[str, Any], most: float) -> Iterator[list[tuple[str, Any]]]:
    part: list[tuple[str, Any]] = []
    for name, weight in weights.items():
        if part and sum(p.nbytes for _, p in part) + weight.nbytes > most:
            yield part
            part = []
        part.append((name, weight))
    yield part


def measured(folder: Path, dtype: str) -> list[Any]:
    """A row of the table: find and load in a process of its own, and watch its memory."""
    command = [sys.executable, "-c", LOAD, str(folder), dtype]
    aside = {**os.environ, "XDG_CACHE_HOME": str(folder.parent / dtype)}  # the fingerprint of before is not known there
    began, most = time.perf_counter(), {"RssAnon": 0.0, "RssFile": 0.0}
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True, env=aside) as process:
        assert process.stdout is not None
        with ThreadPoolExecutor(1) as pool:
            lines = pool.submit(lambda: (process.stdout.readline(), time.perf_counter(), process.stdout.readline()))
            while not lines.done():
                now = memory(process.pid)
                most = {name: max(size, now.get(name, 0.0)) for name, size in most.items()}
                time.sleep(0.005)
        _, found, said = lines.result()
        ended, now = time.perf_counter(), memory(process.pid)
    if process.returncode:
        raise SystemExit(f"loading in {dtype} ended with exit code {process.returncode}")
    weights, peak = float(said) / GB, now["VmHWM"]
    met = "met" if peak <= weights + GOAL else "missed"
    return [dtype, weights, peak, most["RssAnon"], most["RssFile"], peak - weights, met, found - began, ended - found]


def memory(pid: int) -> dict[str, float]:
    """GB of a process by the name that Linux gives them; empty once it ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 / GB for line in lines if line.endswith(" kB")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="decoder layers (default 4)")
    parser.add_argument("--shard", type=float, default=1.0, help="GB of a file of weights at most (default 1)")
    parser.add_argument("--full", action="store_true", help="all 32 layers in files of 5 GB, without float32")
    args = parser.parse_args()
    layers, shard = (32, 5.0) if args.full else (args.layers, args.shard)
    dtypes = ("float16", "bfloat16", "float32")[: 2 if args.full else 3]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "llava"
        stand_in(folder, layers, shard)
        files = [file.stat().st_size / GB for file in folder.glob("*.safetensors")]
        print(f"{layers} decoder layers, {sum(files):.2f} GB in {len(files)} files of float16\n", flush=True)
        rows = []
        for dtype in dtypes:
            rows.append(measured(folder, dtype))
            print(*(f"{value:.2f}" if isinstance(value, float) else value for value in rows[-1]), "\n", flush=True)
    head = ["dtype", "weights (GB)", "peak (GB)", "anonymous (GB)", "file (GB)", "peak less weights (GB)", "goal"]
    print(tabulate(rows, headers=[*head, "find and hash (s)", "load (s)"], tablefmt="github", floatfmt=".2f"))


if __name__ == "__main__":
    main()
