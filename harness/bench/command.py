"""`prunebench bench`: what pruning saves on the clock, apart from every accuracy run.

Nothing is shared between contenders: each run encodes its own images, fills its own cache and decodes on its own, one
after the other in one process. The contenders are the bare model (no engine), `none` (the engine, no pruning) and every
method at every budget; each repeat runs all of them once, in an order that rotates by one from repeat to repeat, so
that a device that warms up or is slowed down by others slows all of them alike. Warm-up repeats are thrown away.
Reported are medians and quartiles.

The input is random pixels and random text, and the weights may be random too (`--random-weights`: the real sizes, no
download), so content decides nothing; adaptive methods get what the prompt would decide from `Method.choices`, or from
`--set`. Forward passes take the same route as an evaluation's: features of the vision tower as `mm_encoder_outputs`, a
`DynamicCache`, logits of the last position.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from harness.bench.measure import contenders, device_of, measure, run_once
from harness.bench.random_model import image_of, marks_of, random_config, random_input, random_model
from harness.bench.settings import PACKAGES, Settings
from harness.bench.tables import markdown, overhead, remarks, schedules, summary, table
from harness.core.errors import PrunebenchError, unknown
from harness.core.paths import make_folder
from harness.core.provenance import git_state, versions
from harness.core.shown import printable_lines
from harness.models.adapters import adapter_class
from harness.models.config import model_config
from harness.models.device import DTYPES, device_name, pick_device
from harness.models.load import locate_model


def run(settings: Settings, out: Path, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure and write `out`/bench.json and `out`/BENCH.md; what the JSON holds. Bad settings raise before a model is
    built."""
    make_folder(out)
    device = pick_device(settings.device)
    if settings.dtype not in ("auto", *DTYPES):
        raise unknown("dtype", settings.dtype, DTYPES)
    config = random_config(settings) if settings.random_weights else None
    located = None if settings.random_weights else locate_model(settings.model, settings.device, settings.dtype)
    # random weights were stored in no format
    auto = "bfloat16" if device.type == "cuda" else "float32"
    dtype = located.dtype if located is not None else auto if settings.dtype == "auto" else settings.dtype
    if config is not None:
        stated, adapter = config, adapter_class(config)
        usual = adapter.prompt(adapter.shape_of(config, DTYPES[dtype].itemsize), image_of(adapter, config))
    else:
        assert located is not None
        stated = located.prompter.stated
        usual = replace(located.usual, images=(image_of(adapter_class(stated), stated),))
    prompt = usual.with_text(settings.text_tokens + marks_of(adapter_class(stated), stated))
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
                turns,
                settings.repeats,
                settings.warmup,
                lambda text, b=batch: print(printable_lines(f"batch {b}: {text}"), file=sys.stderr, flush=True),  # type: ignore[misc]
            )
        except torch.OutOfMemoryError:
            raise PrunebenchError(
                f"--batch {batch} does not fit the memory of {device}: use smaller batches or a slice (--layers 4)"
            ) from None
        rows = [summary(m, measured[0], measured[1], prompt, batch) for m in measured]
        batches.append({"batch": batch, "rows": rows, "overhead": overhead(rows)})
        say(f"\nbatch {batch}\n{table(rows)}")
        for remark in remarks(rows):
            say(remark)
    say("\nvisual tokens per layer")
    for line in schedules(batches[0]["rows"]):
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
    (out / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "BENCH.md").write_text(markdown(result))
    say(f"\nwritten  {out / 'BENCH.md'}  {out / 'bench.json'}")
    return result
