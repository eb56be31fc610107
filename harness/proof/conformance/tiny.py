"""Tiny random models and prompts of the conformance kit, and one pass through the engine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, DynamicCache

from harness.core.shape import Grid, ImageShape, ModelShape, PromptShape, VisionShape
from harness.engine.attach import attach
from harness.engine.run import EngineRun
from harness.method import Method
from harness.models.adapters import LlavaAdapter, adapter_for
from harness.models.adapters.llava import plant_beacon
from harness.models.adapters.text_encoder import EncodedText

GRID, PATCH = 8, 4
N_VISUAL = GRID * GRID
VOCAB, IMAGE_TOKEN = 128, 127
DEPTH = 12
#: decode steps that are compared, with given tokens: a greedy choice could flip on rounding
STEPS = 3


# --------------------------------------------------------------------------------------------------- models and prompts


@lru_cache(maxsize=8)
def tiny_model(depth: int = DEPTH, kv_heads: int = 4, dtype: torch.dtype = torch.float32, beacon: bool = False) -> Any:
    """A random LLaVA with peaked attention.

    `beacon`: two channels that no layer writes to carry a constant and a flag, and every head of every layer scores
    keys by the flag, so that the visual token flagged by `flagged` is what all later rows attend to most.
    """
    decoder = ModelShape(
        depth=depth, hidden=64, heads=4, kv_heads=kv_heads, head_dim=16, mlp=96, vocab=VOCAB, bytes_per_value=4
    )
    vision = VisionShape(
        layers_used=2, hidden=32, mlp=32, tokens=N_VISUAL + 1, patch_inputs=3 * PATCH**2, projector_hidden=64, heads=2
    )
    usual = PromptShape(decoder, (ImageShape((Grid(GRID, GRID),), vision),))
    config = LlavaAdapter.config_of(usual, image_token_id=IMAGE_TOKEN, max_position_embeddings=1024, rms_norm_eps=1e-6)
    with torch.random.fork_rng([]):
        torch.manual_seed(
            2
        )  # the library starts the tower's class embedding; of the first numbers, 1 to 3 leave no method at a tie
        model: Any = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    peaked(model, norms=False)
    if beacon:
        plant_beacon(model)
    return model.to(dtype).eval()


@torch.no_grad()
def peaked(model: Any, norms: bool) -> None:
    """Give a model random weights with which attention is peaked; only its length ends a generation.

    `norms`: norms and rows that the library starts at one number are random as well, or they would hide mistakes.
    """
    generator = torch.Generator().manual_seed(7)
    decoding = {id(weight) for weight in adapter_for(model).text.parameters()}
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            fan_in = 1 if "embed" in name and "patch" not in name else weight[0].numel()
            gain = 2.0 if name.endswith(("q_proj.weight", "k_proj.weight")) and id(weight) in decoding else 1.0
            weight.copy_(torch.randn(weight.shape, generator=generator) * gain / fan_in**0.5)
        elif norms and not name.endswith("bias"):
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0


@contextmanager
def flagged(model: Any, token: int) -> Iterator[None]:
    """Put the flag of a beacon model on visual token `token` of every image."""

    def flag(_module: Any, _args: Any, out: Tensor) -> Tensor:
        if out.shape[-2] != N_VISUAL:  # features of a method's own
            return out
        out = out.clone()
        out[..., token, 1] = 6.0
        return out

    handle = LlavaAdapter(model).projector.register_forward_hook(flag)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True, eq=False)
class KitPrompt:
    """`ids` with its image tokens, `pixels (images, 3, h, w)`, and the tokens fed as decode steps."""

    key: str
    ids: list[int]
    pixels: Tensor
    next_ids: list[int]


@cache
def prompt(number: int, n_after: int, images: int = 1) -> KitPrompt:
    """Random prompt `number`: three text tokens, the images with a token between them, `n_after` text tokens."""
    g = torch.Generator().manual_seed(number)

    def text(n: int) -> list[int]:
        return [int(t) for t in torch.randint(3, VOCAB - 8, (n,), generator=g)]

    ids = text(3)
    for image in range(images):
        ids += (text(1) if image else []) + [IMAGE_TOKEN] * N_VISUAL
    pixels = torch.randn(images, 3, GRID * PATCH, GRID * PATCH, generator=g)
    return KitPrompt(f"prompt {number}", ids + text(n_after), pixels, text(STEPS))


PROMPTS = (prompt(1, 6), prompt(2, 11), prompt(3, 9))


@dataclass(frozen=True)
class KitAnswer:
    """What the engine did with a batch.

    `logits (b, 1 + steps, vocab)`; `lengths`: KV columns per layer after the prefill; `origins`: per layer and row the
    visual tokens present, by their number in the prompt (-2: added by the method).
    """

    logits: Tensor
    lengths: list[int]
    origins: list[list[list[int]]]
    run: EngineRun


def _batch(prompts: Sequence[KitPrompt]) -> dict[str, Tensor]:
    width = max(len(p.ids) for p in prompts)
    ids = torch.tensor([[0] * (width - len(p.ids)) + p.ids for p in prompts])
    mask = torch.tensor([[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in prompts])
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.cat([p.pixels for p in prompts])}


def model_inputs(model: Any, prompts: Sequence[KitPrompt]) -> dict[str, Tensor]:
    batch = _batch(prompts)
    return batch | {"pixel_values": batch["pixel_values"].to(model.dtype)}


@torch.inference_mode()
def ask_in(run: EngineRun, model: Any, prompts: Sequence[KitPrompt], steps: int = STEPS) -> KitAnswer:
    """Prefill a batch inside an attached engine and feed `steps` of each prompt's next tokens."""
    run.samples = run.questions = [p.key for p in prompts]
    kv = DynamicCache(config=model.config.text_config)
    out = [model(**model_inputs(model, prompts), past_key_values=kv, logits_to_keep=1).logits[:, -1]]
    lengths = [int(layer.keys.shape[2]) for layer in kv.layers]
    for step in range(steps):
        out.append(
            model(input_ids=torch.tensor([[p.next_ids[step]] for p in prompts]), past_key_values=kv).logits[:, -1]
        )
    origins = [[o[m].tolist() for o, m in zip(layout.origin, layout.visual, strict=True)] for layout in run.layouts]
    return KitAnswer(torch.stack(out, 1).float(), lengths, origins, run)


def ask(
    model: Any,
    method: Method,
    prompts: Sequence[KitPrompt],
    *,
    seed: int = 0,
    positions: str = "method",
    steps: int = STEPS,
) -> KitAnswer:
    """`ask_in` with an engine of its own."""
    with attach(model, method, seed, positions, text_encoder=WordEncoder, tokenizer=word_numbers) as run:
        return ask_in(run, model, prompts, steps)


class WordEncoder:
    """Stands in for a CLIP text tower: a random projection of random word vectors, 32 wide, one piece a word. Patches
    get there by another random projection."""

    def encode(self, text: str) -> EncodedText:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
        words = torch.randn(len(text.split()), 8, generator=torch.Generator().manual_seed(seed))
        projection = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
        return EncodedText(words @ projection, 2 * 8 * 32 * len(words))

    def joint(self, features: Tensor) -> Tensor:
        projection = torch.randn(features.shape[-1], 32, generator=torch.Generator().manual_seed(3))
        return features @ projection.to(features)


def word_numbers(words: Sequence[str]) -> list[int]:
    """Stands in for the model's tokenizer: a token a word."""
    return [3 + int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") % 60 for word in words]


@torch.inference_mode()
def unpruned(model: Any, prompts: Sequence[KitPrompt]) -> Tensor:
    """(b, vocab): last-token logits of the bare model."""
    logits: Tensor = model(**model_inputs(model, prompts), logits_to_keep=1).logits[:, -1]
    return logits.float()


def difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()
