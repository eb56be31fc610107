"""`prunebench bench`: what pruning saves on the clock, apart from every accuracy run.

Nothing is shared between contenders: each run encodes its own images, fills its own cache and decodes on its own, one after the
other in one process. The contenders are the bare model (no engine), `none` (the engine, no pruning) and every method at every
budget; each repeat runs all of them once, in an order that rotates by one from repeat to repeat, so that a device that warms up
or is slowed down by others slows all of them alike. Warm-up repeats are thrown away. Reported are medians and quartiles.

The input is random pixels and random text, and the weights may be random too (`--random-weights`: the real sizes, no download), so
content decides nothing; adaptive methods get what the prompt would decide from `Method.choices`, or from `--set`. Forward passes take the
same route as an evaluation's: features of the vision tower as `mm_encoder_outputs`, a `DynamicCache`, logits of the last position.
"""

from __future__ import annotations

import gc
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tabulate import tabulate  # type: ignore[import-untyped, unused-ignore]  # stubs are separate packages
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, DynamicCache, PreTrainedConfig
from transformers.initialization import no_init_weights

from harness.core import budget as budgets
from harness.core import flops
from harness.core.command import check_no_comma, rendered
from harness.core.errors import PrunebenchError, unknown
from harness.core.paths import REPOSITORY
from harness.core.provenance import device_name, git_state, versions
from harness.core.shape import SHAPES, PromptShape
from harness.core.trace import Trace
from harness.cost import papers as published
from harness.engine.attach import attach
from harness.method import Method, build, method_class
from harness.models.adapters import LlavaAdapter, adapter_class, adapter_for
from harness.models.load import DTYPES, locate_model, model_config, pick_device
from harness.runner.pace import check_batch

BARE, NONE = "bare model", "none"
#: standard deviation of random weights, the initializer range of Llama and LLaVA: activations stay finite at any depth
WEIGHT_STD = 0.02
PACKAGES = ("prunebench", "transformers")


@dataclass(frozen=True)
class Settings:
    """What a user asks for. `layers` None: the model's own depth."""

    model: str = "mini"
    random_weights: bool = False
    layers: int | None = None
    methods: Sequence[str] = ("none", "fastv", "sparsevlm", "visipruner")
    budgets: Sequence[str] = ("192", "128", "64")
    batches: Sequence[int] = (1, 8)
    text_tokens: int = 74
    new_tokens: int = 16
    repeats: int = 10
    warmup: int = 2
    knobs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by method
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"text_tokens": 2, "new_tokens": 2, "repeats": 1, "warmup": 0, "layers": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise PrunebenchError(f"--{name.replace('_', '-')} {value}: expected at least {low}")
        for option, listed in (("methods", self.methods), ("budgets", self.budgets), ("batch", self.batches)):
            if not listed or len(set(listed)) < len(listed):
                raise PrunebenchError(f"--{option}: expected one or several different ones, found {', '.join(map(str, listed)) or 'none'}")
        check_batch(min(self.batches))
        if self.layers is not None and not self.random_weights:
            raise PrunebenchError(f"--layers {self.layers} needs --random-weights: the slice of a trained model is no model")
        check_no_comma(self.methods)
        for name, knobs in self.knobs.items():
            if name not in self.methods:
                raise unknown("method in --set METHOD.knob=value", name, self.methods)
            for knob, value in knobs.items():
                _check_spelt(name, knob, value)

    def command(self) -> str:
        """The command line that gives these settings; defaults left out."""
        words = ["prunebench", "bench"]
        for f in fields(self):
            value, option = getattr(self, f.name), "--" + {"batches": "batch"}.get(f.name, f.name).replace("_", "-")
            if f.name == "knobs":
                words += [w for name, knobs in value.items() for k, v in knobs.items() for w in ("--set", f"{name}.{k}={v}")]
            elif f.name == "random_weights":
                words += [option] if value else []
            elif value != f.default:
                words += [option, ",".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)]
        return rendered(words)


def knobs_by_method(items: Sequence[str]) -> dict[str, dict[str, str]]:
    """`["fastv.boundary=3 random.boundary=2", "my file.py:Mine.keep=1"]` -> knobs by method. A method's name may hold blanks, and no =.

    Raises PrunebenchError for what is not METHOD.knob=value, and for a knob that stands twice.
    """
    found: dict[str, dict[str, str]] = {}
    for item in items:
        rest = item
        while rest.strip():
            pair = re.match(r"\s*([^=]*\S)\.([^=.\s]+)=(\S+)", rest)
            if pair is None:
                raise PrunebenchError(f"--set {rest.strip()}: expected METHOD.knob=value, as in --set fastv.boundary=3")
            name, knob, value = pair.groups()
            if knob in found.setdefault(name, {}):
                raise PrunebenchError(f"--set {name}.{knob}={value}: it is given twice, as {found[name][knob]} before: give it once")
            found[name][knob] = value
            rest = rest[pair.end() :]
    return found


def _check_spelt(name: str, knob: str, value: str) -> None:
    """Raise PrunebenchError for a knob that `Settings.command` could not say."""
    said = f"{name}.{knob}={value}"
    with suppress(PrunebenchError):
        if knobs_by_method([said]) == {name: {knob: value}}:
            return
    raise PrunebenchError(f"--set {said!r} cannot be spelt: expected a method's name without =, and a value without blanks: rename the file")


@dataclass(frozen=True)
class Contender:
    """What takes its turn: a method at a budget, or, with `method` None, the bare model without the engine."""

    name: str
    budget: str
    method: Method | None

    @property
    def label(self) -> str:
        return self.name if self.budget in ("", "none") else f"{self.name} {self.budget}"


@dataclass(frozen=True)
class Input:
    """A batch of random prompts of one length, without padding: `ids (b, n)` with image tokens, `pixels (b, 3, h, w)`."""

    ids: Tensor
    pixels: Tensor

    @property
    def batch(self) -> int:
        return int(self.ids.shape[0])


class Sample(NamedTuple):
    """One run on the clock, in seconds: the batch's images encoded, its prefill (language model and logits of the last position), and
    one decode step for the whole batch, the mean of `new_tokens - 1`. `peak_bytes`: the allocator's peak over all three, weights
    included; None where nothing can tell."""

    vision_s: float
    prefill_s: float
    decode_s: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Run:
    """A sample and what the run did; `trace` is None for the bare model, `kv_bytes` those of the cache tensors after the prefill."""

    sample: Sample
    kv_bytes: int
    trace: Trace | None


class Device:
    """What timing needs of a device. A CPU runs what it is given before it returns, and has no allocator that counts."""

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


# ------------------------------------------------------------------------------------------------------------------ model


def random_config(settings: Settings) -> PreTrainedConfig:
    """The configuration of a model that gets random weights: sizes from `SHAPES`, or from the config.json of a local folder.

    Raises PrunebenchError where there is neither.
    """
    if settings.model in SHAPES:
        config = LlavaAdapter.config_of(SHAPES[settings.model])
    else:
        known = model_config(settings.model)
        folder = None if known.path is None else REPOSITORY / known.path
        if folder is None or not (folder / "config.json").is_file():
            raise PrunebenchError(
                f"--random-weights --model {settings.model}: expected {', '.join(SHAPES)}, mini or a local folder with a config.json; "
                f"found {'a hub id' if folder is None else f'no config.json in {folder}'}"
            )
        config = AutoConfig.from_pretrained(folder)
        adapter_class(config)  # raises where the family is not supported
    if settings.layers is not None:
        depth = config.text_config.num_hidden_layers
        if settings.layers > depth:
            raise PrunebenchError(f"--layers {settings.layers}: expected at most {depth}, the depth of {settings.model}")
        config.text_config.num_hidden_layers = settings.layers
    return config


def random_model(config: PreTrainedConfig, device: torch.device, dtype: torch.dtype, seed: int) -> nn.Module:
    """The model with random weights, made on the device in its dtype: no file, no copy, no other precision on the way.

    Raises PrunebenchError where the memory that is free does not hold it.
    """
    with torch.device("meta"):
        n_weights = sum(p.numel() for p in AutoModelForImageTextToText.from_config(config).parameters())
    _check_memory(n_weights * dtype.itemsize, device, dtype)
    with torch.device(device), no_init_weights():
        model: nn.Module = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
    generator = torch.Generator(device).manual_seed(seed)
    limit = WEIGHT_STD * 3**0.5
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.uniform_(-limit, limit, generator=generator)
            else:
                weight.fill_(1.0 if "norm" in name.split(".")[-2] and name.endswith("weight") else 0.0)
    return model.eval()


def _check_memory(weights: int, device: torch.device, dtype: torch.dtype) -> None:
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        try:
            lines = Path("/proc/meminfo").read_text().splitlines()
        except OSError:
            return  # no such file outside Linux; the allocator will say
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    needed = weights * 1.1  # activations, logits and caches want about a tenth on top
    if needed > free:
        raise PrunebenchError(
            f"expected about {needed / 2**30:.1f} GiB of free memory on {device} for {weights / 2**30:.1f} GiB of "
            f"{str(dtype).removeprefix('torch.')} weights, found {free / 2**30:.1f}: use a slice (--layers 4), --dtype bfloat16 or a larger device"
        )


def random_input(model: Any, batch: int, text_tokens: int, seed: int) -> Input:
    """Random pixels and prompts of `text_tokens` text tokens, the image behind as many of them as Vicuna's system prompt has."""
    adapter, config = adapter_for(model), model.config
    weight = next(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(config.text_config.vocab_size - 1, (batch, text_tokens), generator=generator)
    token, usual = adapter.image_token_ids[0], adapter.usual
    ids += ids >= token  # every token but the image's
    before = min(published.N_SYSTEM, text_tokens // 2)
    images = torch.full((batch, usual.n_visual), token)
    pixels = torch.randn(batch, *adapter.pixels_of(config), generator=generator)
    ids = torch.cat([ids[:, :before], images, ids[:, before:]], 1)
    return Input(ids.to(weight.device), pixels.to(weight.device, weight.dtype))


# ------------------------------------------------------------------------------------------------------------- contenders


def contenders(settings: Settings, prompt: PromptShape, own: Mapping[str, Mapping[str, Any]]) -> list[Contender]:
    """The bare model, `none`, and every other method at every budget, checked against the sizes; `own`: the model's knobs by method.

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
                raise PrunebenchError(f"bench of {name} at {budget} on {prompt.depth} layers: {error}; {mend}") from None
            out.append(Contender(name, str(budget), method))
    return out


def _built(name: str, budget: budgets.Budget, knobs: Mapping[str, Any], prompt: PromptShape) -> Method:
    method = build(name, budget, knobs, prompt)
    if not method.traits.adaptive:
        return method
    choices = method.choices(prompt.decoder)
    if not choices:
        raise PrunebenchError("it lets the prompt decide, which is random here, and its choices() names no knobs that force it")
    method = build(name, budget, {**choices, **knobs}, prompt)
    if method.plan(prompt) is None:
        raise PrunebenchError(
            "how much it keeps depends on the prompt, which is random here: give a number of tokens (--budgets 64)"
        )
    return method


# ------------------------------------------------------------------------------------------------------------ measurement


def order(n: int, repeat: int) -> list[int]:
    """The turn of `n` contenders in a repeat: all of them once, begun one later than in the repeat before."""
    return [(repeat + i) % n for i in range(n)]


@torch.inference_mode()
def run_once(model: Any, contender: Contender, given: Input, device: Device, new_tokens: int, seed: int) -> Run:
    """One request from pixels to `new_tokens` tokens a row, on the clock. Raises PrunebenchError for logits that are not finite."""
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
            features = adapter.encode(pixel_values=given.pixels)
            device.wait()
            encoded = time.perf_counter()
            logits = model(
                input_ids=given.ids,
                attention_mask=mask,
                mm_encoder_outputs=adapter.outputs(features),
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
        raise PrunebenchError(f"bench of {contender.label}: nan or inf in the logits of random input; try --dtype bfloat16 or float32")
    return Run(Sample(encoded - began, filled - encoded, (ended - resumed) / (new_tokens - 1), peak), kv_bytes, trace)


@dataclass(frozen=True)
class Measured:
    """A contender's samples at one batch size, in the order of the repeats, and what its last run did."""

    contender: Contender
    samples: Sequence[Sample]
    kv_bytes: int
    trace: Trace | None


def measure(
    once: Callable[[Contender], Run], turns: Sequence[Contender], repeats: int, warmup: int, say: Callable[[str], None] = lambda _: None
) -> list[Measured]:
    """Run all contenders `warmup` times unrecorded and `repeats` times recorded, interleaved in the order of `order`."""
    samples: list[list[Sample]] = [[] for _ in turns]
    last: dict[int, Run] = {}
    for repeat in range(warmup + repeats):
        for turn in order(len(turns), repeat):
            last[turn] = once(turns[turn])
            if repeat >= warmup:
                samples[turn].append(last[turn].sample)
        say(f"warm-up {repeat + 1} of {warmup}" if repeat < warmup else f"repeat {repeat - warmup + 1} of {repeats}")
    return [Measured(c, samples[i], last[i].kv_bytes, last[i].trace) for i, c in enumerate(turns)]


# ---------------------------------------------------------------------------------------------------------------- results


#: quartiles this far apart, as a share of the median, say that something else was running
NOISY = 0.2


class Spread(NamedTuple):
    """Median, quartiles and extremes; quartiles by linear interpolation, equal to the extremes below three values."""

    median: float
    q1: float
    q3: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    low, high = min(values), max(values)
    q1, _, q3 = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 2 else (low, 0.0, high)
    return Spread(statistics.median(values), q1, q3, low, high)


def summary(measured: Measured, bare: Measured, none: Measured, prompt: PromptShape, batch: int) -> dict[str, Any]:
    """One contender's row: times in ms, speed-ups over the bare model, FLOPs (1 multiply-add = 2), bytes; plain JSON values.

    `flops_ratio` is unpruned over own dense prefill FLOPs, what a speed-up would be if time were FLOPs; `realised_share` the
    prefill's speed-up over it. `kv_bytes` were measured, `kv_bytes_closed_form` follow from the trace.
    """
    trace, shape, n_prompt = measured.trace, prompt.decoder, prompt.n_visual + prompt.n_text
    times = {}
    for key, name in (("vision_s", "vision_ms"), ("prefill_s", "prefill_ms"), ("decode_s", "decode_ms_per_token")):
        values = [1000 * getattr(s, key) for s in measured.samples]
        times[name] = {**spread(values)._asdict(), "samples": values}

    def median(of: Measured, key: str) -> float:
        return statistics.median([float(getattr(s, key)) for s in of.samples])

    unpruned = flops.prefill_unpruned(shape, n_prompt)
    if trace is None:
        schedule, dense, executed = [prompt.n_visual] * prompt.depth, float(unpruned), float(batch * unpruned)
        closed = batch * shape.depth * n_prompt * 2 * shape.kv_heads * shape.head_dim * shape.bytes_per_value
    else:
        schedule = [layer.visual[0] for layer in trace.layers]
        dense = sum(flops.prefill_dense(shape, trace, row) for row in range(batch)) / batch
        executed = float(flops.prefill_executed(shape, trace))
        closed = sum(flops.kv_bytes(shape, trace, row) for row in range(batch))
    speedup, ratio = median(bare, "prefill_s") / median(measured, "prefill_s"), unpruned / dense
    peaks = [s.peak_bytes for s in measured.samples if s.peak_bytes is not None]
    return {
        "name": measured.contender.name,
        "budget": measured.contender.budget,
        "knobs": None if measured.contender.method is None else measured.contender.method.knobs(),
        "choices": [] if measured.contender.method is None else list(measured.contender.method.choices(shape)),
        "visual_per_layer": schedule,
        "mean_visual": sum(schedule) / len(schedule),
        "notes": {} if trace is None else trace.notes,
        **times,
        "prefill_speedup": speedup,
        "prefill_speedup_over_none": median(none, "prefill_s") / median(measured, "prefill_s"),
        "decode_speedup": median(bare, "decode_s") / median(measured, "decode_s"),
        "prefill_dense_flops": dense,
        "prefill_unpruned_flops": unpruned,
        "prefill_executed_flops_of_batch": executed,
        "flops_ratio": ratio,
        "realised_share": speedup / ratio,
        "kv_bytes": measured.kv_bytes,
        "kv_bytes_closed_form": closed,
        "peak_bytes": max(peaks) if peaks else None,
    }


def overhead(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the engine costs without pruning: medians of `none` less the bare model's in ms, and as a share of the bare model's."""
    bare, none = (next(r for r in rows if r["name"] == name) for name in (BARE, NONE))
    out = {}
    for key in ("prefill_ms", "decode_ms_per_token"):
        more = none[key]["median"] - bare[key]["median"]
        out[key], out[key.replace("_ms", "") + "_share"] = more, more / bare[key]["median"]
    return out


def table(rows: Sequence[Mapping[str, Any]], style: str = "simple") -> str:
    """One batch size as text, for the terminal or (`style` "github") for Markdown."""
    join = "\n" if style == "simple" else " "
    head = [
        "method", "budget", f"mean visual{join}(tokens/layer)", f"vision{join}(ms)", f"prefill (ms){join}median [quartiles]",
        f"speed-up{join}(x)", f"FLOPs ratio{join}(x)", f"realised{join}(%)", f"decode (ms/token){join}median [quartiles]",
        f"speed-up{join}(x)", f"KV{join}(MiB)", f"peak{join}(MiB)",
    ]  # fmt: skip

    def time_cell(cell: Mapping[str, float]) -> str:
        return f"{cell['median']:.1f} [{cell['q1']:.1f}, {cell['q3']:.1f}]"

    body = [
        [
            r["name"], r["budget"] or "-", f"{r['mean_visual']:.1f}", f"{r['vision_ms']['median']:.1f}", time_cell(r["prefill_ms"]),
            f"{r['prefill_speedup']:.2f}", f"{r['flops_ratio']:.2f}", f"{100 * r['realised_share']:.0f}",
            time_cell(r["decode_ms_per_token"]), f"{r['decode_speedup']:.2f}", f"{r['kv_bytes'] / 2**20:.1f}",
            "not measured" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 2**20:,.0f}",
        ]
        for r in rows
    ]  # fmt: skip
    align = ["left", "left"] + ["right"] * (len(head) - 2)
    return str(tabulate(body, headers=head, tablefmt=style, disable_numparse=True, colalign=align))


def _remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cost = overhead(rows)
    lines = [
        f"engine overhead of `none` over the bare model: prefill {cost['prefill_ms']:+.2f} ms ({100 * cost['prefill_share']:+.1f} %), "
        f"decode {cost['decode_ms_per_token']:+.2f} ms/token ({100 * cost['decode_per_token_share']:+.1f} %)"
    ]
    differ = [
        f"{r['name']} {r['budget']}: {r['kv_bytes']} measured, {r['kv_bytes_closed_form']} expected"
        for r in rows
        if r["kv_bytes"] != r["kv_bytes_closed_form"]
    ]
    noisy = [
        f"{r['name']} {r['budget']}".strip()
        for r in rows
        if any(r[key]["q3"] - r[key]["q1"] > NOISY * r[key]["median"] for key in ("prefill_ms", "decode_ms_per_token"))
    ]
    if noisy:
        lines.append(f"NOISY, quote nothing of these: quartiles more than {100 * NOISY:.0f} % of the median apart in {', '.join(noisy)}")
    same = f"KV bytes of the cache tensors equal the closed form in all {len(rows)} rows"
    return [*lines, "KV bytes differ from the closed form: " + "; ".join(differ) if differ else same]


def _schedules(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    def spelt(schedule: Sequence[int]) -> str:
        return ", ".join(f"{value} x {len(list(same))}" for value, same in groupby(schedule))

    lines = []
    for r in rows:
        forced = {k: v for k, v in (r["knobs"] or {}).items() if k in r["choices"] and v is not None}
        said = f" (forced: {', '.join(f'{k}={v}' for k, v in forced.items())})" if forced else ""
        lines.append(f"{r['name']} {r['budget']}".strip() + f": {spelt(r['visual_per_layer'])}{said}")
    return lines


def markdown(result: Mapping[str, Any]) -> str:
    """BENCH.md from what bench.json holds."""
    where, asked = result["where"], result["settings"]
    weights = "random weights" if asked["random_weights"] else "its own weights"
    slice_ = f", a slice of {asked['layers']} layers" if asked["layers"] else ""
    lines = [
        f"# {asked['model']} on {where['device']}",
        "",
        f"`{result['command']}`",
        "",
        f"* model: {asked['model']} with {weights}{slice_}: {result['shape']['depth']} decoder layers, {where['dtype']}, "
        f"{result['weights_bytes'] / 2**20:,.0f} MiB",
        f"* device: {where['device']} ({where['device_type']}), torch {where['torch']}"
        + (f", CUDA {where['cuda']}" if where["cuda"] else "")
        + f", transformers {where['versions']['transformers']}, Python {where['python']}",
        f"* input: random pixels, {result['n_visual']} visual and {asked['text_tokens']} random text tokens a prompt, "
        f"seed {asked['seed']}; always {asked['new_tokens']} new tokens",
        f"* {asked['warmup']} warm-up and {asked['repeats']} recorded repeats; each runs every row once, in rotating order; "
        "nothing is shared between rows",
        f"* {where['started']}, commit {where['git'] or 'unknown'}{' with changes' if where['dirty'] else ''}",
        "",
        "Times are of the whole batch: vision is tower and projector, prefill the language model, decode one step. Speed-ups are the bare model's "
        "median over the row's. FLOPs ratio is the unpruned over the row's dense prefill FLOPs, `realised` the prefill's speed-up in % of it. "
        "Peak is the CUDA allocator's, weights included; on a CPU it is not measured.",
    ]
    for batch in result["batches"]:
        lines += ["", f"## Batch {batch['batch']}", "", table(batch["rows"], "github"), ""]
        lines += [f"* {remark}" for remark in _remarks(batch["rows"])]
    lines += ["", "## Visual tokens per layer", "", *[f"* {line}" for line in _schedules(result["batches"][0]["rows"])], ""]
    return "\n".join(lines)


def run(settings: Settings, out: Path, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure and write `out`/bench.json and `out`/BENCH.md; what the JSON holds. Bad settings raise before a model is built."""
    device = pick_device(settings.device)
    dtype = settings.dtype if settings.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    config = random_config(settings) if settings.random_weights else None
    located = None if settings.random_weights else locate_model(settings.model, settings.device, dtype)
    if config is not None:
        adapter = adapter_class(config)
        usual = PromptShape(adapter.shape_of(config, DTYPES[dtype].itemsize), (adapter.image_of(config),))
    else:
        assert located is not None
        usual = located.usual
    prompt = usual.with_text(settings.text_tokens)
    turns = contenders(settings, prompt, model_config(settings.model).knobs)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    if config is not None:
        model = random_model(config, device, DTYPES[dtype], settings.seed)
    else:
        assert located is not None
        model = located.load().model
    clock = device_of(device)
    batches: list[dict[str, Any]] = []
    for batch in settings.batches:
        given = random_input(model, batch, settings.text_tokens, settings.seed)
        try:
            measured = measure(
                lambda c, given=given: run_once(model, c, given, clock, settings.new_tokens, settings.seed),  # type: ignore[misc]
                turns, settings.repeats, settings.warmup, lambda text, b=batch: print(f"batch {b}: {text}", file=sys.stderr, flush=True),  # type: ignore[misc]
            )  # fmt: skip
        except torch.OutOfMemoryError:
            raise PrunebenchError(f"--batch {batch} does not fit the memory of {device}: use smaller batches or a slice (--layers 4)") from None
        rows = [summary(m, measured[0], measured[1], prompt, batch) for m in measured]
        batches.append({"batch": batch, "rows": rows, "overhead": overhead(rows)})
        say(f"\nbatch {batch}\n{table(rows)}")
        for remark in _remarks(rows):
            say(remark)
    say("\nvisual tokens per layer")
    for line in _schedules(batches[0]["rows"]):
        say(f"  {line}")
    result = {
        "command": settings.command(),
        "settings": asdict(settings),
        "where": {
            "device": device_name(device),
            "device_type": device.type,
            "dtype": dtype,
            "threads": torch.get_num_threads(),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "torch": torch.__version__,
            "versions": versions(PACKAGES),
            "cuda": torch.version.cuda if device.type == "cuda" else None,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "started": started,
            **git_state(),
        },
        "shape": asdict(prompt.decoder),
        "n_visual": prompt.n_visual,
        "weights_bytes": sum(p.nbytes for p in model.parameters()),
        "batches": batches,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "BENCH.md").write_text(markdown(result))
    say(f"\nwritten  {out / 'BENCH.md'}  {out / 'bench.json'}")
    return result
