"""What does it cost to choose? Each method's selection time beside the unpruned prefill, and where that time goes.

`python benchmarks/methods.py` (two decoder layers of LLaVA-1.5-7B's sizes on a CPU, all of them on a GPU; random
weights). Selection is the time inside the method's hooks, its looks at the vision tower, and the engine's reduction,
under timers that wait for the device. The unpruned prefill is the bare model's; of a slice it is scaled to all decoder
layers. Goals: at most 2 % for a ranking, at most 5 % for a method that picks one token after the other.

A second number needs no timers: encoding and prefill of the method less those of `uniform` at the same number of
tokens, which chooses nothing. Both are medians over repeats; in each repeat all methods run once, in rotating order.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # in a script's own folder, where Python looks first, `import methods` would find this file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tabulate import tabulate

from harness.bench import measure
from harness.bench.measure import Contender, TimedRun
from harness.bench.random_model import random_config, random_input, random_model
from harness.bench.settings import BARE, Settings, knobs_by_method
from harness.core.errors import PrunebenchError
from harness.engine import tower
from harness.engine.attention import LayerAttention
from harness.engine.run import EngineRun
from harness.engine.stream import BoundaryStream
from harness.method import Method, registered
from harness.method.about import about
from harness.models.adapters import adapter_for
from harness.models.config import model_config
from harness.models.device import DTYPES, device_name, pick_device

#: picks one token after the other, or works in rounds that depend on each other
GREEDY = {"divprune", "cdpruner", "vispruner"}
GOALS = {False: 2.0, True: 5.0}  # % of the unpruned prefill: rankings, greedy methods
PARTS = ("tower look", "products", "ranking or loop", "reduction")
HOOKS = ("on_image", "edit_attention", "on_attention", "hide_in_decode", "at_boundary")
#: chooses nothing: what a pruned prefill of this length costs without a selection
CONTROL = "uniform"
#: knobs without which a method asks for weights that random models do not have
USUAL_KNOBS = {"cdpruner": {"relevance": "none"}}


class Clock:
    """Seconds by part; a part inside another is taken from the outer one."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._wait, self._inner = wait, list[float]()

    def around(self, part: str, work: Callable[..., Any], counts: Callable[[Any], bool] = lambda _: True) -> Any:
        """`work`, its own time added to `part` if `counts` says so of what it returns."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._wait()
            began = time.perf_counter()
            self._inner.append(0.0)
            out = None
            try:
                out = work(*args, **kwargs)
                return out
            finally:
                self._wait()
                took = time.perf_counter() - began
                inside = self._inner.pop()
                if counts(out):
                    self.seconds[part] += took - inside
                if self._inner:
                    self._inner[-1] += took

        return timed


def timed_method(method: Method, clock: Clock) -> Method:
    """The method with timers around the hooks that it has."""
    cls = type(method)
    own = {
        name: clock.around("ranking or loop", getattr(cls, name))
        for name in HOOKS
        if getattr(cls, name) is not getattr(Method, name)
    }
    made: Method = object.__new__(type(cls.__name__, (cls,), own))
    made.__dict__.update(method.__dict__)
    return made


@contextmanager
def timers(clock: Clock) -> Iterator[None]:
    """Timers around what the engine does for a selection, inside the block."""
    reduced: list[bool] = []
    kept = EngineRun._boundary, EngineRun._show

    def boundary(self: Any, *args: Any) -> Any:
        layouts = self.layout
        out = kept[0](self, *args)
        reduced[:] = [self.layout is not layouts]
        return out

    changed: list[tuple[Any, str, Any]] = [
        (tower, "_summed_rows", clock.around("tower look", tower._summed_rows)),
        (EngineRun, "_show", clock.around("tower look", kept[1])),
        (EngineRun, "_boundary", clock.around("reduction", boundary, lambda _: reduced == [True])),
    ]
    for cls, names in (
        (EngineRun, ("matmul", "project", "question", "joint")),
        (LayerAttention, ("visual_probs", "visual_values", "visual_keys", "after_keys")),
        (BoundaryStream, ("coming_probs",)),
    ):
        changed += [(cls, name, clock.around("products", getattr(cls, name))) for name in names]
    before = [(owner, name, vars(owner).get(name)) for owner, name, _ in changed]
    try:
        for owner, name, now in changed:
            setattr(owner, name, now)
        yield
    finally:
        for owner, name, was in before:
            if was is None:
                delattr(owner, name)
            else:
                setattr(owner, name, was)


def chosen(names: list[str], sliced: bool) -> list[str]:
    """The methods to measure: those asked for, else all with official code; of a slice those before the language
    model."""
    if names:
        return names
    before = ("image", "tower")
    found = {name: about(cls).kind for name, cls in registered().items() if cls.published is not None}
    return [name for name, kind in found.items() if kind in before or not sliced]


class Row:
    """What was measured of one method."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.parts: list[dict[str, float]] = []
        self.passes: list[float] = []


def measured(args: argparse.Namespace) -> tuple[list[Row], list[float], dict[str, Any]]:
    """The rows, the seconds of the bare model's prefill, and what they were measured on."""
    device = pick_device(args.device)
    on_cpu = device.type == "cpu"
    layers = args.layers or (2 if on_cpu else None)
    names = chosen(args.methods.split(",") if args.methods else [], layers is not None)
    given = knobs_by_method(args.set or [])
    knobs = {name: {**USUAL_KNOBS.get(name, {}), **given.get(name, {})} for name in names}
    settings = Settings(
        model=args.model,
        random_weights=True,
        layers=layers,
        methods=("none", *(name for name in (CONTROL, *names) if name != "none")),
        budgets=(str(args.budget),),
        batches=(args.batch,),
        new_tokens=2,
        repeats=args.repeats,
        warmup=args.warmup,
        device=args.device,
        dtype=args.dtype,
    )
    config = random_config(settings)
    depth = random_config(Settings(model=args.model, random_weights=True)).text_config.num_hidden_layers
    dtype = args.dtype if args.dtype != "auto" else "float32" if on_cpu else "bfloat16"
    model: Any = random_model(config, device, DTYPES[dtype], settings.seed)
    prompt = adapter_for(model).usual.with_text(settings.text_tokens)
    own = {name: {**model_config(args.model).knobs.get(name, {}), **knobs.get(name, {})} for name in settings.methods}
    turns = [one for one in measure.contenders(settings, prompt, own) if one.name != "none"]
    inputs = random_input(model, args.batch, settings.text_tokens, settings.seed)
    waiting = measure.device_of(device)

    def once(contender: Contender) -> TimedRun:
        return measure.run_once(model, contender, inputs, waiting, settings.new_tokens, settings.seed)

    rows, bare = [Row(one) for one in turns], list[float]()
    for repeat in range(args.warmup + args.repeats):
        for turn in measure.order(len(turns), repeat):
            row, contender = rows[turn], turns[turn]
            clock = Clock(waiting.wait)
            if on_cpu and contender.method is not None:  # timers cost nothing there: one pass for both numbers
                sample = _under_timers(once, contender, clock)
            else:
                sample = once(contender).sample
                if contender.method is not None:
                    _under_timers(once, contender, clock)
            if repeat < args.warmup:
                continue
            row.parts.append(clock.seconds)
            row.passes.append(sample.vision_s + sample.prefill_s)
            if contender.name == BARE:
                bare.append(sample.prefill_s)
        print(f"repeat {repeat + 1} of {args.warmup + args.repeats}", file=sys.stderr, flush=True)
    where = {"device": device_name(device), "dtype": dtype, "depth": depth}
    return rows, bare, {**where, "layers": layers or depth, "knobs": knobs, "text": settings.text_tokens}


def _under_timers(once: Callable[[Contender], TimedRun], contender: Contender, clock: Clock) -> measure.PassTimes:
    assert contender.method is not None
    with timers(clock):
        return once(Contender(contender.name, contender.budget, timed_method(contender.method, clock))).sample


def report(args: argparse.Namespace, rows: list[Row], bare: list[float], where: Mapping[str, Any]) -> str:
    """The tables as Markdown."""
    unpruned = statistics.median(bare) * where["depth"] / where["layers"]
    control = next(row for row in rows if row.contender.name == CONTROL)
    body, spent = [], []
    for row in rows:
        name = row.contender.name
        if name == BARE or (row is control and CONTROL not in args.methods.split(",")):
            continue
        total = statistics.median(sum(parts.values()) for parts in row.parts)
        share, goal = 100 * total / unpruned, GOALS[name in GREEDY]
        more = [a - b for a, b in zip(row.passes, control.passes, strict=True)]
        said = " ".join([f"`{name}`", *(f"`{k}={v}`" for k, v in where["knobs"].get(name, {}).items())])
        body.append(
            [
                said,
                f"{1000 * total:.1f}",
                f"{share:.2f}",
                f"{goal:.0f}",
                "yes" if share <= goal else "no",
                f"{1000 * statistics.median(more):.1f}",
            ]
        )
        medians = [statistics.median(parts[part] for parts in row.parts) for part in PARTS]
        spent.append([said, *(f"{1000 * value:.1f}" for value in medians)])
    head = [
        "method",
        "selection (ms)",
        "of unpruned prefill (%)",
        "goal (%)",
        "met",
        f"more than `{CONTROL}` (ms)",
    ]
    sliced = where["layers"] < where["depth"]
    lines = [
        f"{args.model} with random weights, {where['dtype']}, {where['device']}, batch"
        f" {args.batch}, {args.budget} visual tokens kept, {where['text']} text tokens, medians of {args.repeats}"
        " repeats.",
        f"Unpruned prefill: {1000 * unpruned:.0f} ms"
        + (f", {where['layers']} decoder layers scaled to {where['depth']}." if sliced else "."),
        "",
        str(tabulate(body, head, tablefmt="github", disable_numparse=True, colalign=("left", *["right"] * 5))),
        "",
        "Where the time goes, in ms:",
        "",
        str(
            tabulate(
                spent, ["method", *PARTS], tablefmt="github", disable_numparse=True, colalign=("left", *["right"] * 4)
            )
        ),
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="llava-1.5-7b", help="sizes: a name with known sizes, mini or a local folder"
    )
    parser.add_argument("--layers", type=int, help="decoder layers; default: 2 on a CPU, all on a GPU")
    parser.add_argument("--methods", default="", help="names with commas; default: all with official code")
    parser.add_argument("--budget", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--set", action="append", metavar="METHOD.knob=value")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args(arguments)
    try:
        rows, bare, where = measured(args)
    except PrunebenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report(args, rows, bare, where))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
