"""Train the mini Qwen: `prunebench dev mini train --model mini-qwen --out DIR [--phase NAME]`.

Three phases on any device, resumable as those of the mini LLaVA (tasks/mini/train.py), whose loop, questions and
optimisers these are:

1. `symbols`: the decoder answers questions on symbolic scenes of all sizes, at M-RoPE's positions. It starts from the
   six trained layers of the mini LLaVA's decoder: keys and values averaged over grouped heads, the strongest 384 of 688
   hidden units.
2. `align`: tower and merger learn to produce those symbols from rendered, crowded scenes of all sizes.
3. `joint`: everything but the word embeddings is trained on rendered JPEG images, all visual tokens, lmms-eval's
   prompts. Last; no pruning-shaped training anywhere.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import Qwen2_5_VLForConditionalGeneration

from tasks.mini import symbols, world
from tasks.mini import train as llava
from tasks.mini.export import FOLDER as LLAVA_WEIGHTS
from tasks.mini.qwen import model as mini

#: layers of the mini LLaVA's decoder that were trained on symbols; those around them were grown as the identity
TRAINED = range(3, 9)
RECIPES = {
    "symbols": llava.Recipe(steps=560, lr=1e-3, images=8, background=48, full_prompt=0.5),
    "align": llava.Recipe(steps=700, lr=1e-3, images=6),
    "joint": llava.Recipe(steps=520, lr=4e-4, images=4, background=-1, full_prompt=1.0),
}
PHASES = tuple(RECIPES)


def scene(rng: random.Random) -> world.Scene:
    """A scene of any size from the training seeds."""
    seed = rng.randrange(1, 1 << 39)
    signs = (0, 4) if rng.random() < 0.4 else (0, 2)
    return world.make_scene(seed, n_signs=signs, lattice=world.lattice_of(seed))


def jpeg_inputs(processor: Any, scenes: list[world.Scene], compressed: bool) -> dict[str, Tensor]:
    """The processor's `pixel_values` and `image_grid_thw`; `compressed` goes through JPEG like the shipped data."""
    from io import BytesIO

    from PIL import Image

    images = [world.render(s) for s in scenes]
    if compressed:
        images = [Image.open(BytesIO(world.jpeg(i))).convert("RGB") for i in images]
    made = processor(images=images, return_tensors="pt")
    return {"hidden_states": made["pixel_values"], "grid_thw": made["image_grid_thw"]}


@torch.no_grad()
def from_llava(decoder: Any, weights: Mapping[str, Tensor]) -> None:
    """Fill the text model from the mini LLaVA's checkpoint; biases, which it does not have, are zero.

    A group of heads shares the mean of its heads' keys and of their values. Of the hidden units those of the largest
    product of their rows' and column's norms stay.
    """
    known = {
        name.removeprefix("language_model.").removeprefix("model."): value.float()
        for name, value in weights.items()
        if "vision" not in name and "projector" not in name
    }
    words = known["embed_tokens.weight"]
    decoder.embed_tokens.weight[: len(words)] = words
    decoder.norm.weight.copy_(known["norm.weight"])
    for layer, source in zip(decoder.layers, TRAINED, strict=True):
        own = {n.removeprefix(f"layers.{source}."): v for n, v in known.items() if n.startswith(f"layers.{source}.")}
        attention = layer.self_attn
        for name in ("q", "k", "v"):
            projection = getattr(attention, f"{name}_proj")
            value = own[f"self_attn.{name}_proj.weight"]
            heads = value.view(mini.HEADS, -1, value.shape[1])
            if name != "q":
                heads = heads.view(mini.KV_HEADS, -1, *heads.shape[1:]).mean(1)
            projection.weight.copy_(heads.flatten(0, 1))
            projection.bias.zero_()
        attention.o_proj.weight.copy_(own["self_attn.o_proj.weight"])
        gate, up, down = (own[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        strong = (gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)).topk(mini.MLP).indices.sort().values
        layer.mlp.gate_proj.weight.copy_(gate[strong])
        layer.mlp.up_proj.weight.copy_(up[strong])
        layer.mlp.down_proj.weight.copy_(down[:, strong])
        for norm in ("input_layernorm", "post_attention_layernorm"):
            getattr(layer, norm).weight.copy_(own[f"{norm}.weight"])


def forward_packed(
    decoder: Any, vocab: mini.QwenVocabulary, packed: symbols.PackedBatch, visual: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits (a, vocab) and targets (a,) at every answer position; `visual (b, v, hidden)` are the visual embeddings.

    A visual token stands at the time of the image's first, its row and its column; text goes on behind the longer side,
    as transformers places them.
    """
    b, v = packed.visual.shape
    device = visual.device
    prefix = torch.tensor(vocab.prefix, device=device)
    n = len(prefix)
    embeds = torch.cat(
        [decoder.embed_tokens(prefix).expand(b, -1, -1), visual, decoder.embed_tokens(packed.ids.flatten(1))], 1
    )
    grids = torch.tensor([one.grid for one in packed.scenes], device=device)
    place, width = packed.visual.clamp(min=0), grids[:, :1]
    image = n + torch.stack([torch.zeros_like(place), place // width, place % width])
    segment = torch.arange(packed.ids.shape[2], device=device).repeat(packed.ids.shape[1])
    text = n + grids.amax(1, keepdim=True) + segment
    before = torch.arange(n, device=device).expand(3, b, -1)
    symbols.PACKED.set(packed, n)
    hidden = decoder(
        inputs_embeds=embeds,
        attention_mask=None,
        position_ids=torch.cat([before, image, text.expand(3, -1, -1)], 2),
        use_cache=False,
    ).last_hidden_state
    hidden = hidden[:, n + v :].unflatten(1, packed.ids.shape[1:])
    return hidden[packed.answer] @ decoder.embed_tokens.weight.T, packed.ids.roll(-1, 2)[packed.answer]


class QwenPhase(llava.Phase):
    """The loop of the mini LLaVA's phases on the mini Qwen."""

    def __init__(self, name: str, out: Path, recipe: llava.Recipe, device: str, save_every: int) -> None:
        super().__init__(name, out, recipe, device, save_every)
        self.curriculum.unlocked = len(llava.CURRICULUM) + 1
        self.tokenizer = mini.build_tokenizer()
        self.vocab: mini.QwenVocabulary = mini.QwenVocabulary(self.tokenizer)
        self.qwen: Any = Qwen2_5_VLForConditionalGeneration(mini.config(self.tokenizer))
        self.decoder, self.tower = self.qwen.model.language_model, self.qwen.model.visual
        self.processor = mini.image_processor()
        self.decoder.set_attn_implementation("packed")
        self.decoder.embed_tokens.weight.requires_grad_(False)

    def seen(self, scenes: list[world.Scene], compressed: bool) -> list[Tensor]:
        """Per scene its visual tokens (v, hidden)."""
        made = {name: value.to(self.device) for name, value in jpeg_inputs(self.processor, scenes, compressed).items()}
        merged: Tensor = self.tower(**made).pooler_output
        return list(torch.split(merged.float(), [one.grid[0] * one.grid[1] for one in scenes]))


class Symbols(QwenPhase):
    """Phase `symbols`: the decoder alone."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        from_llava(self.decoder, load_file(LLAVA_WEIGHTS / "model.safetensors"))
        with torch.no_grad():
            self.decoder.embed_tokens.weight.copy_(self.vocab.embedding)
        self.modules = {"decoder": self.decoder}

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, list[float]]]:
        scenes = [scene(rng) for _ in range(self.recipe.images)]
        packed = self.pack(rng, scenes, self.curriculum.weights())
        rows = zip((self.vocab.shown(one) for one in scenes), packed.visual.cpu().clamp(min=0), strict=True)
        visual = torch.stack([every[places] for every, places in rows]).to(self.device)
        visual = visual + 0.03 * torch.randn_like(visual)
        with self.autocast():
            logits, targets = forward_packed(self.decoder, self.vocab, packed, visual)
        return cross_entropy(logits.float(), targets), llava.accuracy_per_kind(packed, logits, targets)


class QwenAlign(QwenPhase):
    """Phase `align`: tower and merger produce the symbols; no decoder."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.scale = nn.Module()
        self.scale.register_parameter("value", nn.Parameter(torch.tensor(5.0)))
        self.modules = {"tower": self.tower, "scale": self.scale}

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, list[float]]]:
        seeds = [rng.randrange(1, 1 << 39) for _ in range(self.recipe.images)]
        scenes = [world.dense_scene(seed, world.lattice_of(seed)) for seed in seeds]
        target = torch.cat([self.vocab.shown(one) for one in scenes]).to(self.device)
        labels = [world.patch_labels(one) for one in scenes]
        with self.autocast():
            features = torch.cat(self.seen(scenes, rng.random() < 0.5))
        total = ((features - target).square().sum(-1) / target.square().sum(-1)).mean()
        words = self.vocab.embedding
        stats: dict[str, list[float]] = {}
        names = {
            "shape": words[self.vocab.shapes],
            "colour": words[self.vocab.colours],
            "char": words[self.vocab.chars],
            "slot": self.vocab.slots,
        }
        for name, rows in names.items():
            rows = (rows / rows.norm(dim=-1, keepdim=True)).to(self.device)
            label = torch.from_numpy(np.concatenate([getattr(one, name) for one in labels])).to(self.device)
            known = label >= 0
            logits = self.scale.value * (features[known] @ rows.T)
            total = total + (0.5 if name == "shape" else 0.2) * cross_entropy(logits, label[known])
            stats[name] = [(logits.argmax(-1) == label[known]).float().mean().item()]
        carrying = torch.from_numpy(np.concatenate([one.colour for one in labels])).to(self.device) >= 0
        stats["cosine"] = [cosine_similarity(features[carrying], target[carrying], dim=-1).mean().item()]
        return total, stats


class QwenJoint(QwenPhase):
    """Phase `joint`: the whole model on rendered images, all visual tokens, lmms-eval's prompts."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.decoder.load_state_dict(llava.load(self.out, "symbols")["modules"]["decoder"])
        self.tower.load_state_dict(llava.load(self.out, "align")["modules"]["tower"])
        self.modules = {"qwen": self.qwen}
        self.slow = [self.tower]

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, list[float]]]:
        scenes = [scene(rng) for _ in range(self.recipe.images)]
        packed = self.pack(rng, scenes, llava.WEIGHTS)
        with self.autocast():
            seen = self.seen(scenes, True)
            visual = nn.utils.rnn.pad_sequence(seen, batch_first=True)
            visual = nn.functional.pad(visual, (0, 0, 0, packed.visual.shape[1] - visual.shape[1]))
            logits, targets = forward_packed(self.decoder, self.vocab, packed, visual)
        return cross_entropy(logits.float(), targets), llava.accuracy_per_kind(packed, logits, targets)


KINDS_OF_PHASE: dict[str, type[QwenPhase]] = {"symbols": Symbols, "align": QwenAlign, "joint": QwenJoint}
