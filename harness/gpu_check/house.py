"""The only file of the check that speaks the interface of engine, models and answering: what changes there is changed
here."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from harness.bench import command, measure, random_model
from harness.bench.settings import Settings
from harness.core import budget as budgets
from harness.core.paths import TOP
from harness.engine.attach import attach
from harness.engine.prefix import PrefixCache
from harness.gpu_check.plan import MethodAtBudget
from harness.method import Method, registered
from harness.models.adapters import adapter_for
from harness.models.config import model_config
from harness.models.device import DTYPES, device_name, pick_device
from harness.models.load import LoadedModel, Located, locate_model
from harness.models.matrix import FAMILIES
from harness.proof import goldens
from harness.proof.conformance.family_models import family_model
from harness.proof.golden_compare import LOGIT_TOLERANCE
from harness.runner.answering import Answerer, Prompt

GOLDENS = TOP / "tests" / "goldens"


def shipped_methods() -> set[str]:
    """Names of the registered methods of methods/."""
    return {name for name, cls in registered().items() if cls.__module__.startswith("methods.")}


def knobs_of(arm: MethodAtBudget) -> dict[str, Any]:
    """All knobs of an arm on the mini model, as results record them."""
    return locate_model("mini", "cpu", "float32").method(arm.method, budgets.parse(arm.budget), arm.knobs).knobs()


def name_of(device: str) -> str:
    """The GPU's or the processor's name."""
    return device_name(pick_device(device))


def tf32() -> dict[str, bool]:
    """May float32 on a GPU be TF32, as torch stands?"""
    return {"matmul": torch.backends.cuda.matmul.allow_tf32, "convolutions": torch.backends.cudnn.allow_tf32}


@contextmanager
def exact_float32() -> Iterator[None]:
    """float32 means float32: no TF32 in matrix products or convolutions."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


class HouseReply:
    """The mini model on a device in a dtype, ready to be asked."""

    def __init__(self, device: str, dtype: str) -> None:
        self._located: Located = locate_model("mini", device, dtype)
        self._loaded: LoadedModel = self._located.load()

    def _method(self, arm: MethodAtBudget) -> Method:
        return self._located.method(arm.method, budgets.parse(arm.budget), arm.knobs)

    def answers(
        self, arm: MethodAtBudget, questions: Sequence[Prompt], batch: int = 8, share: bool = False
    ) -> dict[str, str]:
        """The answer by question; nothing is kept between calls."""
        answerer = Answerer(
            self._loaded, self._method(arm), batch_size=batch, prefixes=PrefixCache() if share else None
        )
        return {answer.key: answer.text for answer in answerer.answer(questions)}

    @torch.inference_mode()
    def logits(self, questions: Sequence[Prompt], arm: MethodAtBudget | None) -> Tensor:
        """(b, vocabulary) float32 on the CPU: the last position of a padded batch, under an arm or of the bare
        model."""
        rows = [self._loaded.prompt_ids(q.text) for q in questions]
        width = max(map(len, rows))
        given = {
            "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in rows], device=self._loaded.device),
            "attention_mask": torch.tensor(
                [[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self._loaded.device
            ),
            "pixel_values": torch.cat([self._loaded.pixels(q.images[0].load()) for q in questions]),
        }
        with nullcontext() if arm is None else attach(self._loaded.model, self._method(arm)):
            out: Tensor = self._loaded.model(**given, logits_to_keep=1).logits[:, -1]
        return out.float().cpu()


def questions_of(held: Mapping[str, Any], n: int) -> list[Prompt]:
    """The first `n` questions of the fixture."""

    def image(key: str) -> Callable[[], Image.Image]:
        return lambda: Image.open(io.BytesIO(held["images"][key])).convert("RGB")

    return [
        Prompt.of_one(q["key"], q["text"], image(q["image"]), q["image"], q["max_new_tokens"], tuple(q["until"]))
        for q in held["questions"][:n]
    ]


class Golden(NamedTuple):
    """One replayed case: the largest difference of its logits, and the first thing that differs."""

    case: str
    largest: float
    mismatch: str | None


def replayed(device: str, n: int, tolerance: float | None) -> Iterator[Golden]:
    """`n` recorded cases of all methods in their dtype; `tolerance` None: the replay's own."""
    for outcome in goldens.run_folder(GOLDENS, pick_device(device), tolerance or LOGIT_TOLERANCE, n):
        yield Golden(outcome.case, outcome.largest, outcome.mismatch)


def measured(settings: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """`prunebench bench` with these settings: what it writes to `out`/bench.json."""
    return command.run(Settings(**settings), out, lambda _: None)


class Prefill(NamedTuple):
    """A prefill that can be run again and again: `run()` gives its logits once the host has handed out its work."""

    label: str
    batch: int
    run: Callable[[], Tensor]


def of_family(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Settings of a bench whose model is the name of a family: a tiny one of it, by a config.json in `folder`; others
    as they are."""
    if settings["model"] not in FAMILIES:
        return dict(settings)
    folder.mkdir(parents=True, exist_ok=True)
    family_model(FAMILIES[settings["model"]].architectures[0]).model.config.save_pretrained(folder)
    return {**settings, "model": str(folder)}


def none_from_bare(settings: Mapping[str, Any]) -> float:
    """The largest difference between the logits of `none` and of the bare model, as a share of the largest logit."""
    first = islice(prefills({**settings, "methods": ("none",)}), 2)
    bare, none = (prefill.run().float() for prefill in first)
    return float((bare - none).abs().max() / bare.abs().max())


def prefills(settings: Mapping[str, Any]) -> Iterator[Prefill]:
    """Every contender of `measured` at every batch size, on one model with random weights. Call `run` before taking the
    next."""
    asked = Settings(**settings)
    device = pick_device(asked.device)
    dtype = asked.dtype if asked.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    model: Any = random_model.random_model(random_model.random_config(asked), device, DTYPES[dtype], asked.seed)
    adapter = adapter_for(model)
    knobs = model_config(asked.model).knobs
    for batch in asked.batches:
        given = random_model.random_input(model, batch, asked.text_tokens, asked.seed)
        usual = replace(adapter.usual, images=(random_model.image_of(type(adapter), model.config),))
        n_text = asked.text_tokens + random_model.marks_of(type(adapter), model.config)
        for contender in measure.contenders(asked, usual.with_text(n_text), knobs):
            with nullcontext() if contender.method is None else attach(model, contender.method, asked.seed) as engine:
                with torch.inference_mode():
                    features, seen = (
                        (adapter.encode(**given.images), None) if engine is None else engine.encode(**given.images)
                    )

                @torch.inference_mode()
                def once(
                    engine: Any = engine, features: Any = features, seen: Any = seen, given: Any = given
                ) -> Tensor:
                    if engine is not None:
                        engine.samples = [str(row) for row in range(given.batch)]
                        engine.see(seen)
                    logits: Tensor = model(
                        input_ids=given.ids,
                        attention_mask=torch.ones_like(given.ids),
                        **adapter.inputs(features, given.ids),
                        past_key_values=DynamicCache(config=model.config.text_config),
                        logits_to_keep=1,
                    ).logits
                    return logits

                yield Prefill(contender.label, batch, once)
