"""One timed pass, many times in turn: methods beside the unpruned model on one clock."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache

from harness.bench.random_model import Input
from harness.bench.settings import BARE, NONE, Settings
from harness.core import budget as budgets
from harness.core.errors import PrunebenchError
from harness.core.shape import PromptShape
from harness.core.trace import Trace
from harness.engine.attach import attach
from harness.method import Method, build, method_class
from harness.models.adapters import adapter_for


@dataclass(frozen=True)
class Contender:
    """What takes its turn: a method at a budget, or, with `method` None, the bare model without the engine."""

    name: str
    budget: str
    method: Method | None

    @property
    def label(self) -> str:
        return self.name if self.budget in ("", "none") else f"{self.name} {self.budget}"


class PassTimes(NamedTuple):
    """One run on the clock, in seconds: the batch's images encoded, its prefill (language model and logits of the last
    position), and one decode step for the whole batch, the mean of `new_tokens - 1`. `peak_bytes`: the allocator's peak
    over all three, weights included; None where nothing can tell."""

    vision_s: float
    prefill_s: float
    decode_s: float
    peak_bytes: int | None


@dataclass(frozen=True)
class TimedRun:
    """A sample and what the run did; `trace` is None for the bare model, `kv_bytes` those of the cache tensors after
    the prefill."""

    sample: PassTimes
    kv_bytes: int
    trace: Trace | None


class Device:
    """What timing needs of a device. A CPU runs what it is given before it returns, and has no allocator that
    counts."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait(self) -> None:
        """Return when everything that was started has ended."""

    def reset_peak(self) -> None:
        """Start a new peak."""

    def peak_bytes(self) -> int | None:
        """Most bytes held at one time since `reset_peak`; None where that cannot be said.

        A process's resident size is no substitute: it holds what the allocator kept back from earlier contenders.
        """
        return None


class CudaDevice(Device):
    """CUDA: kernels run behind the host's back, so both ends of a time wait for the device."""

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int | None:
        return torch.cuda.max_memory_allocated(self.device)


def device_of(device: torch.device) -> Device:
    return CudaDevice(device) if device.type == "cuda" else Device(device)


# ----------------------------------------------------------------------------------------------------------- contenders


def contenders(settings: Settings, prompt: PromptShape, own: Mapping[str, Mapping[str, Any]]) -> list[Contender]:
    """The bare model, `none`, and every other method at every budget, checked against the sizes; `own`: the model's
    knobs by method.

    Raises PrunebenchError, naming method and budget, for whatever cannot run.
    """
    out = [Contender(BARE, "", None), Contender(NONE, "", method_class(NONE)())]
    for name in settings.methods:
        cls = method_class(name)
        if cls.name == NONE:
            continue
        knobs = {**own.get(name, {}), **settings.knobs.get(name, {})}
        for spelt in settings.budgets if cls.budget_knobs else ("none",):
            budget = budgets.parse(spelt)
            try:
                method = _built(name, budget, knobs, prompt)
            except PrunebenchError as error:
                mend = f"leave {name} out of --methods, change --budgets, or set its knobs (--set {name}.knob=value)"
                raise PrunebenchError(
                    f"bench of {name} at {budget} on {prompt.depth} layers: {error}; {mend}"
                ) from None
            out.append(Contender(name, str(budget), method))
    return out


def _built(name: str, budget: budgets.Budget, knobs: Mapping[str, Any], prompt: PromptShape) -> Method:
    method = build(name, budget, knobs, prompt)
    # a method that lets the prompt decide may know its schedule at a number of tokens
    if not method.traits.adaptive or method.plan(prompt) is not None:
        return method
    choices = method.choices(prompt.decoder)
    if not choices:
        raise PrunebenchError(
            "it lets the prompt decide, which is random here, and its choices() names no knobs that force it"
        )
    method = build(name, budget, {**choices, **knobs}, prompt)
    if method.plan(prompt) is None:
        raise PrunebenchError(
            "how much it keeps depends on the prompt, which is random here: give a number of tokens (--budgets 64)"
        )
    return method


# ---------------------------------------------------------------------------------------------------------- measurement


def order(n: int, repeat: int) -> list[int]:
    """The turn of `n` contenders in a repeat: all of them once, begun one later than in the repeat before."""
    return [(repeat + i) % n for i in range(n)]


@torch.inference_mode()
def run_once(model: Any, contender: Contender, given: Input, device: Device, new_tokens: int, seed: int) -> TimedRun:
    """One request from pixels to `new_tokens` tokens a row, on the clock. Raises PrunebenchError for logits that are
    not finite."""
    adapter = adapter_for(model)
    mask = torch.ones_like(given.ids)
    cache = DynamicCache(config=model.config.text_config)
    gc.collect()
    gc.disable()
    try:
        with nullcontext() if contender.method is None else attach(model, contender.method, seed) as engine:
            if engine is not None:
                engine.samples = [str(row) for row in range(given.batch)]
            device.wait()
            device.reset_peak()
            began = time.perf_counter()
            features = adapter.encode(pixel_values=given.pixels, **given.facts)
            device.wait()
            encoded = time.perf_counter()
            logits = model(
                input_ids=given.ids,
                attention_mask=mask,
                **adapter.inputs(features, given.ids),
                past_key_values=cache,
                logits_to_keep=1,
            ).logits[:, -1]
            device.wait()
            filled = time.perf_counter()
            first, kv_bytes = logits, sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
            device.wait()
            resumed = time.perf_counter()
            for _ in range(new_tokens - 1):
                # chosen on the device: reading a token back would wait for it at every step
                logits = model(input_ids=logits.argmax(-1)[:, None], past_key_values=cache).logits[:, -1]
            device.wait()
            ended = time.perf_counter()
            peak = device.peak_bytes()
            trace = None if engine is None else engine.trace
    finally:
        gc.enable()
    if not bool(torch.isfinite(first).all() & torch.isfinite(logits).all()):
        raise PrunebenchError(
            f"bench of {contender.label}: nan or inf in the logits of random input; try --dtype bfloat16 or float32"
        )
    return TimedRun(
        PassTimes(encoded - began, filled - encoded, (ended - resumed) / (new_tokens - 1), peak), kv_bytes, trace
    )


@dataclass(frozen=True)
class Times:
    """A contender's samples at one batch size, in the order of the repeats, and what its last run did."""

    contender: Contender
    samples: Sequence[PassTimes]
    kv_bytes: int
    trace: Trace | None


def measure(
    once: Callable[[Contender], TimedRun],
    turns: Sequence[Contender],
    repeats: int,
    warmup: int,
    say: Callable[[str], None] = lambda _: None,
) -> list[Times]:
    """Run all contenders `warmup` times unrecorded and `repeats` times recorded, interleaved in the order of
    `order`."""
    samples: list[list[PassTimes]] = [[] for _ in turns]
    last: dict[int, TimedRun] = {}
    for repeat in range(warmup + repeats):
        for turn in order(len(turns), repeat):
            last[turn] = once(turns[turn])
            if repeat >= warmup:
                samples[turn].append(last[turn].sample)
        say(f"warm-up {repeat + 1} of {warmup}" if repeat < warmup else f"repeat {repeat - warmup + 1} of {repeats}")
    return [Times(c, samples[i], last[i].kv_bytes, last[i].trace) for i, c in enumerate(turns)]
