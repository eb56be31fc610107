"""Train the mini model's CLIP text tower: `prunebench dev mini clip [--out DIR]`, a few minutes on one core.

As CLIP is trained, with the vision tower frozen: a text and its image attract each other, other images of the batch
repel it. The vision tower is the mini model's. Its [CLS] is taken where LLaVA takes features, one layer before the
last: the last layer was never trained, for LLaVA does not use it. Learned are a text tower of 2 layers and, on the
vision side, `post_layernorm` and `visual_projection`. Texts are lists of what a scene holds, and questions about it.

The checkpoint has CLIP's layout without the vision tower's layers, which would be a copy of the mini model's. Methods
that read the question through CLIP (CDPruner) need no more. One thread and fixed seeds: the same processor gives the
same weights.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import (
    AutoImageProcessor,
    CLIPConfig,
    CLIPModel,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from tasks.mini import questions, world
from tasks.mini import tokenizer as mini_tokenizer
from tasks.mini.export import FOLDER as MINI

FOLDER = Path(__file__).parent / "clip"
START, END = "<|startoftext|>", "<|endoftext|>"
SCENES, TEST_SCENES, STEPS, BATCH = 600, 100, 1000, 64
#: of the training scenes; those of the test lie as far above `TEST_SEED_BASE`, where the shipped data begin
FIRST_SEED = 1 << 36
#: kinds of questions that name something of the image
KINDS = ("exist", "colour", "shape", "relation", "side", "code")


class Scenes(NamedTuple):
    """Scenes with what the vision tower says of each: `features (n, width)`, its [CLS]."""

    scenes: list[world.Scene]
    features: Tensor


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of the world's texts in lower case; start and end token have the largest ids, as in CLIP."""
    core = Tokenizer(models.BPE(unk_token=None))
    core.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=510,
        min_frequency=20,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(0)
    captions = [caption(world.make_scene(seed), rng) for seed in range(400)]
    core.train_from_iterator([*mini_tokenizer.corpus(), *captions], trainer)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (START, END)])
    ends = [(token, core.token_to_id(token)) for token in (START, END)]
    core.post_processor = TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=START, eos_token=END, unk_token=END, pad_token=END, model_max_length=77
    )


def caption(scene: world.Scene, rng: random.Random, n: int | None = None) -> str:
    """`n` things of a scene (all of them by default) in any order: "a red circle, a blue star, a white sign"."""
    names = [questions.article(thing.name) for thing in scene.things]
    names += [questions.article(f"{sign.colour} sign") for sign in scene.signs]
    rng.shuffle(names)
    return ", ".join(names[:n])


def a_text(scene: world.Scene, rng: random.Random) -> str:
    """A caption of a part of the scene, or one time in four a question about something that is there."""
    if rng.random() < 0.25:
        question = questions.ask(rng.choice(KINDS), scene, rng, positive=True)
        if question is not None:
            return question.text
    return caption(scene, rng, rng.randint(2, 8))


@torch.inference_mode()
def seen(tower: nn.Module, images: Any, first: int, count: int) -> Scenes:
    """Scenes from seed `first` on, through the vision tower."""
    scenes = [world.make_scene(first + i) for i in range(count)]
    found = []
    for start in range(0, count, 8):
        pixels = images([world.render(scene) for scene in scenes[start : start + 8]], return_tensors="pt")
        found.append(tower(pixels["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 0])
    return Scenes(scenes, torch.cat(found).clone())


def embedded(model: Any, tok: PreTrainedTokenizerFast, texts: list[str], features: Tensor) -> tuple[Tensor, Tensor]:
    """Texts and images in the joint space, normalised, each (n, e)."""
    ids = tok(texts, padding=True, padding_side="right", return_tensors="pt")
    ends = ids["attention_mask"].sum(1) - 1
    states = model.text_model(**{name: ids[name] for name in ("input_ids", "attention_mask")}).last_hidden_state
    text = model.text_projection(states[torch.arange(len(texts)), ends])
    image = model.visual_projection(model.vision_model.post_layernorm(features))
    return normalize(text, dim=-1), normalize(image, dim=-1)


@torch.inference_mode()
def retrieval(model: Any, tok: PreTrainedTokenizerFast, test: Scenes) -> dict[str, float]:
    """How often a whole caption's image is the nearest of all test images, or among the five nearest."""
    rng = random.Random(1)
    text, image = embedded(model, tok, [caption(scene, rng) for scene in test.scenes], test.features)
    order = (text @ image.T).argsort(dim=1, descending=True, stable=True)
    place = (order == torch.arange(len(order))[:, None]).int().argmax(1)
    return {"first": float((place == 0).float().mean()), "first five": float((place < 5).float().mean())}


def train(out: Path, steps: int = STEPS, scenes: int = SCENES) -> dict[str, float]:
    """Train and write the checkpoint; returns `retrieval` on scenes that were not trained on."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    began, rng = time.monotonic(), random.Random(0)
    llava = LlavaForConditionalGeneration.from_pretrained(MINI, dtype=torch.float32, local_files_only=True).eval()
    images = AutoImageProcessor.from_pretrained(MINI, local_files_only=True)
    tower = llava.model.vision_tower
    known = seen(tower, images, FIRST_SEED, scenes)
    test = seen(tower, images, world.TEST_SEED_BASE + (1 << 36), TEST_SCENES)
    print(f"{scenes} scenes seen after {time.monotonic() - began:.0f} s", flush=True)
    tok = build_tokenizer()
    vision = llava.config.vision_config.to_dict() | {"projection_dim": 64}
    text = {
        "vocab_size": len(tok),
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "projection_dim": 64,
        "bos_token_id": tok.bos_token_id,
        "eos_token_id": tok.eos_token_id,
        "pad_token_id": tok.pad_token_id,
    }
    model: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))
    learned = [p for name, p in model.named_parameters() if _shipped(name)]
    optimiser = torch.optim.AdamW(learned, lr=2e-3, weight_decay=0.1, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=2e-3, total_steps=steps, pct_start=0.1)
    spread = known.features.std(0)
    for step in range(steps):
        chosen = rng.sample(range(scenes), BATCH)
        texts = [a_text(known.scenes[i], rng) for i in chosen]
        # noise in the images: these are few scenes for a projection
        features = known.features[chosen]
        features = features + 0.2 * spread * torch.randn_like(features)
        t, i = embedded(model, tok, texts, features)
        logits = model.logit_scale.exp().clamp(max=50) * t @ i.T
        target = torch.arange(BATCH)
        loss = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % 250 == 0:
            found = retrieval(model.eval(), tok, test)
            print(f"step {step + 1}: loss {loss.item():.3f}, {found}, {time.monotonic() - began:.0f} s", flush=True)
    model = model.half()
    weights = {name: value for name, value in model.state_dict().items() if _shipped(name)}
    model.save_pretrained(out, state_dict=weights)
    tok.save_pretrained(out)
    return retrieval(model.float(), tok, test)


def _shipped(name: str) -> bool:
    parts = ("text_model.", "text_projection.", "visual_projection.", "vision_model.post_layernorm.", "logit_scale")
    return name.startswith(parts) and "position_ids" not in name


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--scenes", type=int, default=SCENES)
    args = parser.parse_args(argv)
    found = train(args.out, args.steps, args.scenes)
    print(f"wrote {args.out}: {', '.join(f'{name} {value:.2f}' for name, value in found.items())}")


if __name__ == "__main__":
    main()
