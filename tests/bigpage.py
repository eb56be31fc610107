"""A large set of made results for the page: cells of many methods, with kept tokens that do not compress, and images
with as much detail as photographs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from factories import DEPTH, PROCESSING, TASK_SETTINGS, answered, asked
from numpy.typing import NDArray
from PIL import Image

from harness.core import keeps
from harness.core.keeps import Stage
from harness.core.metric import metric_of
from harness.store.journal import Record
from harness.store.sealed import SampleScore, SealedCell, parquet

TASKS = ("gqa", "mme", "pope", "textvqa", "mmstar", "chartqa", "docvqa", "vizwiz")
METHODS = (
    *("visionzip", "fastervlm", "vispruner", "divprune", "cdpruner", "prumerge", "hiprune", "holov", "vscan", "mmtok"),
    *("fastv", "sparsevlm", "pyramiddrop", "dart", "vtw", "fitprune", "v2drop", "visipruner", "random", "uniform"),
)
BUDGETS = (192, 128, 64, 32, 16)
MODELS = ("mini", "mini-qwen")
STAGED = ("sparsevlm", "pyramiddrop", "fitprune")
"""Methods that drop tokens in several layers."""
SIDE = 24  # of the grid of visual tokens
N_VISUAL = SIDE * SIDE


class Shape(NamedTuple):
    """How much there is."""

    methods: Sequence[str] = METHODS
    budgets: Sequence[int] = BUDGETS
    tasks: Sequence[str] = TASKS
    models: Sequence[str] = MODELS
    samples: int = 100


WHOLE = Shape()


def cells(root: Path, shape: Shape = WHOLE) -> Iterator[SealedCell]:
    """The unpruned model and every method at every budget, on every task and model; answers below `root`."""
    for m, model in enumerate(shape.models):
        for t, task in enumerate(shape.tasks):
            hard = np.random.default_rng([m, t]).random(shape.samples)
            yield _cell(
                root, model, task, "none", "none", hard < 0.9, [[Stage(0, _mask(range(N_VISUAL)), 0)]] * shape.samples
            )
            for k, method in enumerate(shape.methods):
                rng = np.random.default_rng([m, t, k])
                order = rng.permuted(np.tile(np.arange(N_VISUAL), (shape.samples, 1)), axis=1)
                for budget in shape.budgets:
                    right = hard + rng.normal(0, 0.2, shape.samples) < 0.95 * (budget / N_VISUAL) ** (0.1 + 0.02 * k)
                    stages = [_stages(method, row[: 2 * budget], budget, rng) for row in order]
                    yield _cell(root, model, task, method, str(budget), right, stages)


def _mask(tokens: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bool_]:
    mask = np.zeros(N_VISUAL, dtype=bool)
    mask[list(tokens)] = True
    return mask


def _stages(method: str, tokens: NDArray[np.int64], budget: int, rng: np.random.Generator) -> list[Stage]:
    """Kept tokens that only a list of them can tell: before the model, in one layer, or in three."""
    full, some = Stage(0, _mask(range(N_VISUAL)), 0), _mask(tokens[:budget])
    if method in STAGED:
        last = rng.choice(tokens[:budget], budget // 2, replace=False)
        return [full, Stage(2, _mask(tokens), 0), Stage(6, some, 0), Stage(9, _mask(last), 0)]
    if method == "visipruner":
        return [full, Stage(4, some, 0), Stage(8, _mask([]), 0)]
    return [full, Stage(2, some, 0)] if METHODS.index(method) >= METHODS.index("fastv") else [Stage(0, some, 0)]


def _cell(
    root: Path, model: str, task: str, method: str, budget: str, right: NDArray[np.bool_], stages: Sequence[list[Stage]]
) -> SealedCell:
    """A result of these answers and kept tokens; every question has an image of its own, which MME asks twice about."""
    n = len(right)
    kept = [keeps.per_layer(found, DEPTH) for found in stages]
    costs = {
        "kept": [layers[-1] for layers in kept],
        "mean_visual": [sum(layers) / DEPTH for layers in kept],
        "n_visual": [N_VISUAL] * n,
        "n_text": [40] * n,
    }
    costs["prefill_dense_flops"] = [2.6e7 * (mean + 40) for mean in costs["mean_visual"]]
    costs["kv_bytes"] = [24576.0 * (mean + 40) for mean in costs["mean_visual"]]
    made = answered(
        root,
        method,
        budget,
        right.astype(float).tolist(),
        task,
        per_image=1,
        metric=None if task in ("gqa", "mme", "pope") else metric_of("exact_match"),
        model=model,
        model_fingerprint=f"weights of {model}",
        knobs={} if method == "none" else {"keep": int(budget)},
        costs={name: float(np.mean(values)) for name, values in costs.items()},
        provenance={
            "request": asked(method=method, budget=None if method == "none" else budget, task=task, model=model),
            "device": "CPU",
            "started": "2026-01-01",
            "processing": PROCESSING,
            "task_settings": TASK_SETTINGS,
            "decoder_layers": DEPTH,
            "grids": [[SIDE, SIDE, False]],
        },
    )
    table = made.samples()
    rows = [
        (
            Record(row.key, row.image, row.answer, 1, {}, 0.1, keeps.encode(stages[i])),
            SampleScore(
                row.score, row.question_id, row.category, f"What is on picture {i} of {task}?", f"word{i % 37}"
            ),
        )
        for i, row in enumerate(table.itertuples())
    ]
    data = parquet(rows, costs)
    (made.folder / "samples.parquet").write_bytes(data)
    return replace(made, samples_sha256=hashlib.sha256(data).hexdigest())


class Photographs:
    """Pictures with the spectrum of photographs, so that they take as many bytes: crops of one noise whose amplitudes
    fall with frequency."""

    def __init__(self, size: int = 2048) -> None:
        rng = np.random.default_rng(0)
        frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij"))
        frequency[0, 0] = 1.0
        noise = [np.fft.irfft2(np.fft.rfft2(rng.normal(size=(size, size))) / frequency**1.2) for _ in range(3)]
        grey = noise[0] / noise[0].std()
        colours = [grey + 0.25 * other / other.std() for other in (noise[1], -noise[1], noise[2])]
        self._canvas = np.clip(128 + 52 * np.stack(colours, axis=-1), 0, 255).astype(np.uint8)

    def square(self, _: Any, key: str, image: str, side: int) -> Image.Image:
        """As `views.Pictures.square`: the picture of an image's name."""
        seed = int.from_bytes(hashlib.sha256(image.encode()).digest()[:4])
        top, left = np.random.default_rng(seed).integers(0, len(self._canvas) - side, 2)
        return Image.fromarray(self._canvas[top : top + side, left : left + side])
