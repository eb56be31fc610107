"""How often does the host wait for the device, and how many operations does it hand over? Exact counts, no timings.

`python benchmarks/host_reads.py` asks a batch of 16 prompts of unlike length of a random LLaVA with 32 decoder layers.
A read takes a value from the device, an upload copies host memory to it. Both are counted on the pretend CUDA device of
tests/fakecuda.py, so no GPU is needed. Operations are those that torch dispatches; views start no kernel.

Counts do not depend on the width of the model, so it is narrow. Its tower, its 576 visual tokens and its processor are
those of a LLaVA-1.5. Layers of adaptive methods are forced to the published ones.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    # in a script's own folder, where Python looks first, `import methods` would find a file of that name
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import fakecuda
import torch
from PIL import Image
from tabulate import tabulate
from torch.utils._python_dispatch import TorchDispatchMode

from harness.bench.random_model import random_model
from harness.core import budget as budgets
from harness.engine.prefix import PrefixCache
from harness.method import Method, build
from harness.models.load import LoadedModel, locate_model
from harness.runner.answering import Answerer, Prompt
from harness.runner.clock import Clock
from harness.runner.features import FeatureCache

DEPTH, BATCH, NEW_TOKENS = 32, 16, 4
#: method -> knobs; a vision-side method each way, then those that prune inside the model
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "uniform": {},
    "visionzip": {},
    "fastervlm": {},
    "hiprune": {},
    "divprune": {},
    "fastv": {},
    "pyramiddrop": {},
    "visipruner": {"force_fusion_layer": 14, "force_exit_layer": 24},
    "sparsevlm": {},
}
BUDGET = "64"
PHASES = ("prefill", "decode", "after")


class Counted(NamedTuple):
    """Waits of the host for one batch by phase; `sites`: (phase, kind, line of ours) -> how often."""

    reads: Counter[str]
    uploads: Counter[str]
    sites: Counter[tuple[str, str, str]]


class Phases(Clock):
    """A clock that tells the device where it is: `prefill` with all before it, `decode`, `after`."""

    def __init__(self, gpu: Any) -> None:
        super().__init__()
        self._gpu = gpu
        gpu.phase = "prefill"

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if name == "decode":
            self._gpu.phase = "decode"
        with super().__call__(name):
            yield
        if name == "decode":
            self._gpu.phase = "after"


class Operations(TorchDispatchMode):
    """Counts what torch dispatches, and of this what is more than a view."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[str(func)] += 1
        self.kernels += not func.is_view
        return func(*args, **(kwargs or {}))


def narrow_model(depth: int = DEPTH) -> LoadedModel:
    """The mini model's prompt and processor around a narrow random LLaVA of `depth` decoder layers."""
    loaded = locate_model("mini", "cpu", "float32").load()
    config = copy.deepcopy(loaded.model.config)
    config.text_config.num_hidden_layers = depth
    config.text_config.update({"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16})
    config.text_config.update({"intermediate_size": 48})
    config.vision_config.update({"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48})
    narrow = random_model(config, torch.device("cpu"), torch.float32, 0)
    return dataclasses.replace(loaded, model=narrow)


def prompts(images: int, batch: int = BATCH, new_tokens: int = NEW_TOKENS) -> list[Prompt]:
    """Questions of unlike length, in turn about each of so many images."""
    return [
        Prompt.of_one(
            f"q{number}",
            "is there a red square" + " and a blue circle" * (number % 5) + " ?",
            lambda at=number % images: Image.new("RGB", (336, 336), (40 * at % 256, 90, 20 * at % 256)),
            f"image {number % images}",
            new_tokens,
        )
        for number in range(batch)
    ]


def built(loaded: LoadedModel, name: str) -> Method:
    """The method at the benchmark's budget, for this model."""
    return build(name, budgets.parse("none" if name == "none" else BUDGET), METHODS[name], loaded.adapter.usual)


def answerer(loaded: LoadedModel, name: str, shares: bool, clock: Clock | None = None) -> Answerer:
    return Answerer(
        loaded, built(loaded, name), batch_size=BATCH, prefixes=PrefixCache() if shares else None, clock=clock,
        features=FeatureCache(),
    )  # fmt: skip


def waits(loaded: LoadedModel, name: str, asked: Sequence[Prompt], shares: bool = False) -> Counted:
    """The waits of one batch whose images, and prefixes where it `shares` them, are already known."""
    with fakecuda.device() as gpu:
        moved = dataclasses.replace(loaded, model=gpu.moved(loaded.model), device=fakecuda.CUDA)
        asks = answerer(moved, name, shares, Phases(gpu))
        list(asks.answer(asked))
        gpu.waits.clear()
        gpu.phase = "prefill"
        list(asks.answer(asked))
        found = [w for w in gpu.waits if w.ours]
    return Counted(
        Counter(w.phase for w in found if w.kind == "read"),
        Counter(w.phase for w in found if w.kind == "upload"),
        Counter((w.phase, w.kind, w.where) for w in found),
    )


def operations(loaded: LoadedModel, name: str, asked: Sequence[Prompt], shares: bool) -> Operations:
    """What one batch dispatches, its images and prefixes known."""
    asks = answerer(loaded, name, shares)
    list(asks.answer(asked))
    counted = Operations()
    with counted:
        list(asks.answer(asked))
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=",".join(METHODS), help="some of them, with commas")
    parser.add_argument("--sites", action="store_true", help="also print the lines that wait")
    args = parser.parse_args()
    loaded, rows = narrow_model(), []
    for name in args.methods.split(","):
        found = waits(loaded, name, prompts(BATCH))
        per_token = [kind["decode"] / NEW_TOKENS for kind in (found.reads, found.uploads)]
        rows.append(
            [f"`{name}`", found.reads["prefill"], found.uploads["prefill"], found.reads["after"], f"{per_token[0]:g}"]
        )
        if args.sites:
            print(name)
            for (phase, kind, where), n in sorted(found.sites.items()):
                print(f"  {phase:8} {kind:7} {n:4}  {where}")
    head = ["method", "reads a prefill", "uploads a prefill", "reads after it", "reads a new token"]
    print(tabulate(rows, head, tablefmt="github"))
    rows = []
    for name in ("none", "fastv"):
        for images in (BATCH, 4):
            alone, shared = (operations(loaded, name, prompts(images), shares) for shares in (False, True))
            rows.append([f"`{name}`", images, alone.names.total(), shared.names.total(), alone.kernels, shared.kernels])
            if args.sites:
                print(name, images, (shared.names - alone.names).most_common(12))
    head = ["method", "images a batch", "operations", "shared", "more than views", "shared"]
    print(tabulate(rows, head, tablefmt="github"))


if __name__ == "__main__":
    main()
