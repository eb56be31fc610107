"""What does the engine cost where nothing is pruned? Method `none` beside the bare model and a plain loop.

`python benchmarks/overhead.py` (a slice of LLaVA-1.5-7B's sizes, then the mini model's; random weights). The plain
loop runs the same weights with one fused attention a layer and a cache of its own. The logits of all three are
compared. In each repeat all three run once, in rotating order, so that a slow minute hits them alike. The ratio of a
repeat is the engine's time by the other's. The interval of the median ratio is a bootstrap's, 95 %. The goal is met
where its upper end is at most 1.05. Vision is encoded beforehand, and `attach` is entered before the clock starts.

Dispatched operations are those that reach torch's dispatcher in a prefill and in a decode step. They do not depend on
the machine's other jobs.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    # in a script's own folder, where Python looks first, `import methods` would find a benchmark
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from harness.bench.measure import Device, device_of, order
from harness.bench.random_model import Input, random_config, random_input, random_model
from harness.bench.settings import Settings
from harness.core.errors import PrunebenchError
from harness.engine.attach import attach
from harness.method import method_class
from harness.models.adapters import Features, adapter_for
from harness.models.device import DTYPES, device_name, pick_device

GOAL = 1.05
ENGINE, BARE, LOOP = "engine `none`", "bare model", "plain loop"
PARTS = ("prefill", "decode step")
RESAMPLES = 4000


class Timed(NamedTuple):
    """Seconds of each of `PARTS`, and the logits (b, vocab) at the end of each."""

    seconds: tuple[float, float]
    logits: tuple[Tensor, ...]


class Prepared(NamedTuple):
    """A model and a batch whose images are encoded; `steps` are decoded."""

    model: Any
    given: Input
    features: list[Features]
    device: Device
    steps: int
    now: Callable[[], float] = time.perf_counter


# ------------------------------------------------------------------------------------------------------- the contenders


class Loop:
    """A decoder of Llama's kind on the model's own weights: no hooks, no masks, one list of keys and values a layer."""

    def __init__(self, model: Any) -> None:
        self.adapter = adapter_for(model)
        self.layers = [dict(layer.named_parameters()) for layer in self.adapter.layers]
        self.embed, self.shape = model.get_input_embeddings(), self.adapter.shape
        text = self.adapter.text
        self.norm, self.eps = text.norm.weight, float(text.config.rms_norm_eps)
        self.cache: list[tuple[Tensor, Tensor]] = []

    def prefill(self, ids: Tensor, features: Sequence[Features]) -> Tensor:
        """(b, vocab): the logits behind the prompts `ids (b, n)`."""
        self.cache, x = [], self.embed(ids)
        pooled = torch.cat([image.pooled for image in features])
        x = x.masked_scatter((ids == self.adapter.image_token_ids[0])[:, :, None], pooled.to(x.dtype))
        return self._through(x, 0)

    def step(self, tokens: Tensor) -> Tensor:
        """(b, vocab): the logits behind `tokens (b, 1)`."""
        return self._through(self.embed(tokens), self.cache[0][0].shape[2])

    def _through(self, x: Tensor, seen: int) -> Tensor:
        places = torch.arange(seen, seen + x.shape[1], device=x.device)[None, :, None].expand(x.shape[0], -1, -1)
        cos, sin = (part[:, None] for part in self.adapter.rotary(x, places))
        for number, weights in enumerate(self.layers):
            h = functional.rms_norm(x, x.shape[-1:], weights["input_layernorm.weight"], self.eps)
            q, k, v = (
                functional.linear(h, weights[f"self_attn.{name}_proj.weight"])
                .view(*x.shape[:2], -1, self.shape.head_dim)
                .transpose(1, 2)
                for name in "qkv"
            )
            q, k = self.adapter.rotate(q, cos, sin), self.adapter.rotate(k, cos, sin)
            if seen:
                before = self.cache[number]
                k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
                self.cache[number] = k, v
            else:
                self.cache.append((k, v))
            out = functional.scaled_dot_product_attention(
                q, k, v, is_causal=not seen, enable_gqa=q.shape[1] != k.shape[1]
            )
            x = x + functional.linear(out.transpose(1, 2).flatten(2), weights["self_attn.o_proj.weight"])
            h = functional.rms_norm(x, x.shape[-1:], weights["post_attention_layernorm.weight"], self.eps)
            gate, up = (functional.linear(h, weights[f"mlp.{name}_proj.weight"]) for name in ("gate", "up"))
            x = x + functional.linear(functional.silu(gate) * up, weights["mlp.down_proj.weight"])
        logits: Tensor = self.adapter.head(functional.rms_norm(x[:, -1], x.shape[-1:], self.norm, self.eps))
        return logits


@contextmanager
def passes(name: str, at: Prepared) -> Iterator[tuple[Callable[[], Tensor], Callable[[Tensor], Tensor]]]:
    """How contender `name` prefills, and how it decodes a step."""
    if name == LOOP:
        loop = Loop(at.model)
        yield lambda: loop.prefill(at.given.ids, at.features), loop.step
        return
    adapter, cache = adapter_for(at.model), DynamicCache(config=at.model.config.text_config)
    mask = torch.ones_like(at.given.ids)

    def prefill() -> Tensor:
        inputs = adapter.inputs(at.features, at.given.ids)
        given = {"input_ids": at.given.ids, "attention_mask": mask, **inputs}
        logits: Tensor = at.model(**given, past_key_values=cache, logits_to_keep=1).logits[:, -1]
        return logits

    def step(tokens: Tensor) -> Tensor:
        logits: Tensor = at.model(input_ids=tokens, past_key_values=cache).logits[:, -1]
        return logits

    with attach(at.model, method_class("none")()) if name == ENGINE else nullcontext():
        yield prefill, step


# -------------------------------------------------------------------------------------------------------------- measure


@torch.inference_mode()
def once(name: str, at: Prepared) -> Timed:
    """One prefill and `steps` decode steps of a contender, on the clock."""
    gc.collect()
    gc.disable()
    try:
        with passes(name, at) as (prefill, step):
            at.device.wait()
            began = at.now()
            first = logits = prefill()
            at.device.wait()
            filled = at.now()
            for _ in range(at.steps):
                logits = step(logits.argmax(-1)[:, None])
            at.device.wait()
            ended = at.now()
    finally:
        gc.enable()
    return Timed((filled - began, (ended - filled) / at.steps), (first, logits))


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what reaches the dispatcher inside, by operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[str(func.overloadpacket).removeprefix("aten.")] += 1
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def operations(name: str, at: Prepared) -> tuple[Counter[str], Counter[str]]:
    """Dispatched operations of a prefill and of one decode step."""
    with passes(name, at) as (prefill, step):
        with Counted() as filled:
            logits = prefill()
        tokens = logits.argmax(-1)[:, None]
        with Counted() as stepped:
            step(tokens)
    return filled.found, stepped.found


def interval(ratios: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """The median and the ends of its bootstrap interval, 95 %."""
    values = np.asarray(ratios)
    drawn = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[drawn], axis=1), (0.025, 0.975))
    return float(np.median(values)), float(low), float(high)


def check_alike(found: Sequence[Timed]) -> None:
    """Raise PrunebenchError unless all contenders computed the same logits, up to rounding."""
    for other in found[1:]:
        for mine, theirs in zip(found[0].logits, other.logits, strict=True):
            apart, size = float((mine - theirs).abs().max()), float(mine.abs().max())
            if not apart <= 0.02 * size:
                raise PrunebenchError(
                    f"expected equal logits of all contenders, found {apart:.3g} apart at a size of {size:.3g}"
                )


def measured(at: Prepared, repeats: int, say: Callable[[str], None]) -> dict[str, list[Timed]]:
    """`repeats` runs of each contender behind one that warms up, in rotating order."""
    names = (ENGINE, BARE, LOOP)
    times: dict[str, list[Timed]] = {name: [] for name in names}
    check_alike([once(name, at) for name in names])
    for repeat in range(repeats):
        for turn in order(len(names), repeat):
            found = once(names[turn], at)
            times[names[turn]].append(found._replace(logits=()))
        say(f"repeat {repeat + 1} of {repeats}")
    return times


def rows(label: str, batch: int, times: dict[str, list[Timed]], counts: dict[str, tuple[Any, Any]]) -> list[list[str]]:
    """Lines of the table: a part of a request against another contender."""
    found = []
    for part, name in enumerate(PARTS):
        for other in (BARE, LOOP):
            pairs = zip(times[ENGINE], times[other], strict=True)
            ratios = [mine.seconds[part] / theirs.seconds[part] for mine, theirs in pairs]
            median, low, high = interval(ratios)
            ms = float(np.median([mine.seconds[part] for mine in times[ENGINE]])) * 1e3
            ops = [f"{counts[who][part].total():,}" for who in (ENGINE, other)]
            verdict = "yes" if high <= GOAL else "no"
            ends = f"{low:.3f} to {high:.3f}"
            found.append([label, str(batch), name, other, f"{ms:,.1f}", f"{median:.3f}", ends, verdict, *ops])
    return found


def extra(counts: dict[str, tuple[Counter[str], Counter[str]]], part: int) -> str:
    """Operations that the engine has more, or fewer, than the bare model."""
    mine, theirs = counts[ENGINE][part], counts[BARE][part]
    apart = {name: mine[name] - theirs[name] for name in mine | theirs if mine[name] != theirs[name]}
    return ", ".join(f"{name} {n:+d}" for name, n in sorted(apart.items(), key=lambda item: (-item[1], item[0])))


def prepared(args: argparse.Namespace, model: str, batch: int) -> Prepared:
    """A model of these sizes with random weights, and a batch. Raises PrunebenchError as `random_config`."""
    config = random_config(Settings(model=model, random_weights=True, layers=None if model == "mini" else args.layers))
    if args.image_size:
        config.vision_config.image_size = args.image_size
        config.image_seq_length = (args.image_size // config.vision_config.patch_size) ** 2
    config.vision_config.num_hidden_layers = 2  # the tower is not timed
    device = pick_device(args.device)
    made = random_model(config, device, DTYPES[args.dtype], seed=0)
    given = random_input(made, batch, args.text_tokens, seed=0)
    with torch.inference_mode():
        features = adapter_for(made).encode(**given.images)
    now = time.process_time if args.processor_time else time.perf_counter
    return Prepared(made, given, features, device_of(device), args.steps, now)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="llava-1.5-7b,mini", help="names with known sizes, mini or local folders")
    parser.add_argument("--layers", type=int, default=2, help="decoder layers; the mini model has all of its own")
    parser.add_argument("--image-size", type=int, help="pixels of an image's side; fewer are fewer visual tokens")
    parser.add_argument("--text-tokens", type=int, default=74)
    parser.add_argument("--batch", default="1,8", help="sizes with commas")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--steps", type=int, default=4, help="decode steps of a run")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="seconds of processors, not of the clock: on a CPU with other jobs; those of several threads add up",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args(arguments)
    table, lines = [], []
    try:
        for model in args.models.split(","):
            for batch in map(int, args.batch.split(",")):
                at = prepared(args, model, batch)
                n = at.given.ids.shape[1]
                label = f"{model}, {len(adapter_for(at.model).layers)} layers, {n} tokens"
                counts = {name: operations(name, at) for name in (ENGINE, BARE, LOOP)}
                times = measured(at, args.repeats, lambda said: print(said, end="\r", file=sys.stderr))
                table += rows(label, batch, times, counts)
                for part, name in enumerate(PARTS):
                    lines.append(f"{label}, batch {batch}, {name}, engine less bare model: {extra(counts, part)}")
                del at
    except PrunebenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    head = ["model", "batch", "part", "against", "engine (ms)", "ratio", "95 %", "met", "ops engine", "ops other"]
    clock = "processor time" if args.processor_time else "wall time"
    where = f"{device_name(pick_device(args.device))}, {args.dtype}, {clock}"
    print(f"{where}, {args.repeats} interleaved repeats, {args.steps} decode steps each\n")
    print(tabulate(table, head, tablefmt="github", disable_numparse=True, colalign=("left", "right", "left", "left")))
    print("\nDispatched operations by name:\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
