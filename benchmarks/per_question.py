"""Seconds of a question: alone, and in a sweep over images with several questions each.

`python benchmarks/per_question.py` (random weights: 16 decoder layers of hidden size 1024, prompts of 650 tokens, of
which 576 are visual). An official run of a method in the same shape, at batch 1, can stand beside the column "alone".

* alone: batch 1, no features and no prefixes of other questions. Each question loads and encodes its image.
* in a sweep: the batches of `prunebench sweep` for one setting, with features and prefixes shared by an image's
  questions. Each measurement starts with nothing shared.

Both sides run once in each round, in turn; a ratio is that of a round, and the table has the median of rounds. Goals: 4
for `none`, 2 for `visipruner`. The last columns say where the sweep's time goes, by the clock.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # in a script's own folder, where Python looks first, `import methods` would find a benchmark
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from PIL import Image
from tabulate import tabulate

from harness.bench.measure import Contender, contenders
from harness.bench.random_model import random_config, random_model
from harness.bench.settings import Settings
from harness.core.errors import PrunebenchError
from harness.engine.prefix import PrefixCache
from harness.models.adapters import adapter_for
from harness.models.device import DTYPES, device_name, pick_device
from harness.models.load import LoadedModel, locate_model
from harness.runner.answering import Answerer, Prompt, batch_for
from harness.runner.clock import Clock
from harness.runner.features import FeatureCache

GOALS = {"none": 4.0, "visipruner": 2.0}
PARTS = ("prefill", "prefix", "vision", "decode", "load images", "account")
BATCH = 16


def model_of(args: argparse.Namespace) -> LoadedModel:
    """The mini model's tower, tokenizer and image processor around a random decoder of the sizes asked for."""
    config = random_config(Settings(model="mini", random_weights=True))
    text = config.text_config
    text.hidden_size, text.num_hidden_layers = args.hidden, args.layers
    text.intermediate_size = args.hidden * 11 // 4
    text.head_dim, text.num_attention_heads = args.hidden // args.heads, args.heads
    text.num_key_value_heads = args.heads
    located = locate_model("mini", args.device, args.dtype).load()
    model = random_model(config, pick_device(args.device), DTYPES[args.dtype], seed=0)
    usual, name = adapter_for(model).usual, f"random {args.hidden} x {args.layers}"
    return replace(located, model=model, stated=config, usual=usual, fingerprint=name, end_tokens=())


def question(loaded: LoadedModel, number: int, tokens: int) -> str:
    """A question whose whole prompt has about `tokens` tokens. Raises PrunebenchError where it cannot be so short."""
    text = f"{number}"
    if len(loaded.prompt_ids(text)) > tokens:
        raise PrunebenchError(
            f"--tokens {tokens}: expected at least {len(loaded.prompt_ids(text))}, the shortest prompt"
        )
    while len(loaded.prompt_ids(f"{text} is")) <= tokens:
        text += " is"
    return text


def picture(number: int) -> Image.Image:
    """An image that no other number has."""
    return Image.effect_mandelbrot((336, 336), (-2 + number / 50, -1.5, 1, 1.5), 50).convert("RGB")


def prompts(loaded: LoadedModel, args: argparse.Namespace) -> list[Prompt]:
    """The questions, image by image."""
    return [
        Prompt.of_one(
            f"{image}/{q}", question(loaded, q, args.tokens), partial(picture, image), str(image), args.new_tokens
        )
        for image in range(args.images)
        for q in range(args.questions)
    ]


def asked(
    loaded: LoadedModel,
    contender: Contender,
    some: Sequence[Prompt],
    shared: bool,
    clock: Clock,
    now: Callable[[], float],
) -> float:
    """Seconds per question, nothing of earlier ones at hand."""
    assert contender.method is not None
    batch = batch_for(contender.method, BATCH, loaded.device) if shared else 1
    began = now()
    for one in [some] if shared else [[prompt] for prompt in some]:
        answerer = Answerer(
            loaded,
            contender.method,
            batch_size=batch,
            features=FeatureCache(),
            prefixes=PrefixCache() if shared else None,
            clock=clock,
        )
        n = len(list(answerer.answer(one)))
        assert n == len(one)
    return (now() - began) / len(some)


def measured(loaded: LoadedModel, args: argparse.Namespace) -> list[list[str]]:
    """Lines of the table: contender, both times, their ratio, its goal, and where the sweep's time goes."""
    settings = Settings(
        model="mini", random_weights=True, methods=args.methods.split(","), budgets=(args.budget,), batches=(1,)
    )
    turns = [c for c in contenders(settings, loaded.usual, {}) if c.method is not None]
    turns = [c for c in turns if c.name in settings.methods]
    questions = prompts(loaded, args)
    alone: dict[str, list[float]] = {c.label: [] for c in turns}
    sweep: dict[str, list[float]] = {c.label: [] for c in turns}
    clocks = {c.label: Clock() for c in turns}
    few = [questions[i * args.questions] for i in range(min(args.alone, args.images))]
    now = time.process_time if args.processor_time else time.perf_counter
    for c in turns:  # warm up
        asked(loaded, c, few[:1], False, Clock(), now)
    for number in range(args.rounds):
        for c in turns:
            alone[c.label].append(asked(loaded, c, few, False, Clock(), now))
            sweep[c.label].append(asked(loaded, c, questions, True, clocks[c.label], now))
            print(f"round {number + 1} of {args.rounds}: {c.label}", end="\r", file=sys.stderr)
    rows = []
    for c in turns:
        one, many = alone[c.label], sweep[c.label]
        ratio = statistics.median(a / s for a, s in zip(one, many, strict=True))
        goal = GOALS.get(c.name)
        said = "" if goal is None else f"{goal:.0f}, {'met' if ratio >= goal else 'missed'}"
        spread = f"{statistics.median(one):.2f} ({min(one):.2f} to {max(one):.2f})"
        parts = [clocks[c.label].seconds.get(part, 0.0) for part in PARTS]
        shares = [f"{100 * part / sum(parts):.0f}" for part in parts]
        rows.append([f"`{c.label}`", spread, f"{statistics.median(many):.2f}", f"{ratio:.1f}", said, *shares])
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=650, help="of a prompt, the image's included")
    parser.add_argument("--methods", default="none,fastv,visipruner", help="names with commas")
    parser.add_argument("--budget", default="64")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--questions", type=int, default=6, help="questions an image")
    parser.add_argument("--new-tokens", type=int, default=1)
    parser.add_argument("--alone", type=int, default=4, help="questions that are asked alone in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="seconds of processors, not of the clock: on a CPU with other jobs; those of several threads add up",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args(arguments)
    try:
        loaded = model_of(args)
        rows = measured(loaded, args)
    except PrunebenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    head: list[Any] = ["method", "alone (s)", "in a sweep (s)", "ratio", "goal", *(f"{part} (%)" for part in PARTS)]
    n = len(loaded.prompt_ids(question(loaded, 0, args.tokens)))
    shape = f"hidden {args.hidden}, {args.layers} layers, {n} tokens"
    asked_of = f"{args.images} images with {args.questions} questions, {args.rounds} rounds"
    clock = "processor time" if args.processor_time else "wall time"
    print(f"{device_name(loaded.device)}, {args.dtype}, {clock}: {shape}, {asked_of}\n")
    print(tabulate(rows, head, tablefmt="github", disable_numparse=True))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
