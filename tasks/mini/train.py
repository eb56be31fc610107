"""Train the mini model: `prunebench dev mini train --out DIR [--phase NAME]`.

Five phases, in LLaVA's own order (language, alignment, joint), on any device and resumable: the same command continues
after an interruption from the last checkpoint (every `--save-every` steps). Accuracy per kind of question goes to
`DIR/<phase>.csv`.

1. `language`: a decoder of 6 layers answers questions on symbolic scenes (see `symbols.py`), one token per object and 8
  background
   tokens. Skills are unlocked one after another (`CURRICULUM`), since each has its own plateau and those still at
   chance only add noise.
2. `crowd`: the same with every patch of an object, more background, and the prompts that lmms-eval sends.
3. `deep`: the decoder is grown to 12 layers; the new ones stand before and behind the trained ones and start as the
  identity.
4. `align`: vision tower and projector learn to produce those symbols from rendered, crowded images.
5. `joint`: everything is trained on rendered JPEG images with all 576 visual tokens. Last; no pruning-shaped training
  anywhere near the end.

What was learned (2 CPU cores): Muon for the matrices instead of AdamW turned hours into minutes (alignment: characters
1.00 after 175 steps of 8 images, shapes 0.94 after 900; decoder: yes/no 0.93 and colours 0.99 after 550 steps of 128
questions). Mixing all skills from the start left place, relations and counts at chance; place alone with rehearsal of
colours took 150 steps, relations then 450. A place code made of the words it is asked with (right - left, below -
above) is learned by the copying circuit that colours already built. Reading a code is learned within 300 steps,
comparing it with one that the question names is not (0.50 after 1,300 steps with half of all questions): the shipped
data asks for codes, but not whether a code is right. Joined without any joint training, aligned tower and decoder
already answered: colours 0.92, shapes 0.8 with all 576 tokens.

On a CPU, set MALLOC_MMAP_THRESHOLD_=4294967296 and MALLOC_TRIM_THRESHOLD_=8589934592: glibc otherwise returns every
large buffer to the system and a third of the time goes into page faults.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    LlamaForCausalLM,
    LlamaModel,
    LlavaForConditionalGeneration,
)

from tasks.mini import model as mini
from tasks.mini import symbols, tokenizer, world

#: order in which skills are unlocked; a skill is passed at this accuracy, or after `patience` steps
CURRICULUM = ("colour", "exist", "shape", "side", "relation", "position", "code", "verify", "count", "same")
PASS = 0.9
#: the final mix
WEIGHTS = {
    "colour": 2,
    "exist": 3,
    "shape": 2.5,
    "side": 1.5,
    "relation": 3,
    "position": 2.5,
    "code": 4,
    "verify": 1.5,
    "count": 3,
    "same": 1,
}
LOG_EVERY = 50
PHASES = ("language", "crowd", "deep", "align", "joint")


@dataclass(frozen=True)
class Recipe:
    """One phase: `lr` is the peak learning rate of the matrices (Muon), `images` scenes a step, `background` visible
    background patches."""

    steps: int
    lr: float
    images: int
    background: int = 8
    one_per_object: bool = False
    full_prompt: float = 0.0
    questions: int = 16
    patience: int = 600


RECIPES = {
    "language": Recipe(steps=1300, lr=1e-3, images=8, one_per_object=True),
    "crowd": Recipe(steps=1300, lr=6e-4, images=8, background=64, full_prompt=0.5),
    "deep": Recipe(steps=200, lr=6e-4, images=6, one_per_object=True),
    "align": Recipe(steps=1800, lr=1e-3, images=8),
    "joint": Recipe(steps=700, lr=4e-4, images=4, background=-1, full_prompt=1.0),
}


# --------------------------------------------------------------------------------------------------------- small pieces


def _plain(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, scaling: float, **_: object
) -> tuple[Tensor, None]:
    return ((q * scaling) @ k.transpose(-1, -2)).softmax(-1).matmul(v).transpose(1, 2), None


# on CPUs, bfloat16 matrix products beat SDPA with 32-dimensional heads
AttentionInterface.register("plain", _plain)
AttentionMaskInterface.register("plain", lambda *args, **kwargs: None)


def init_decoder(lm: LlamaForCausalLM, vocab: symbols.Vocabulary) -> None:
    """Queries equal keys at the start, so that equal embeddings attend to each other; embeddings are the vocabulary's
    and stay."""
    with torch.no_grad():
        lm.model.embed_tokens.weight.copy_(vocab.embedding)
        for layer in lm.model.layers:
            nn.init.normal_(layer.self_attn.q_proj.weight, std=0.06)
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)


def grow(shallow: LlamaForCausalLM, deep: LlamaModel) -> None:
    """Copy a decoder into the middle of a deeper one; the layers before and behind start as the identity (their outputs
    are zero)."""
    known = len(shallow.model.layers)
    before = (len(deep.layers) - known) // 2
    with torch.no_grad():
        deep.embed_tokens.load_state_dict(shallow.model.embed_tokens.state_dict())
        deep.norm.load_state_dict(shallow.model.norm.state_dict())
        for i, layer in enumerate(deep.layers):
            if before <= i < before + known:
                layer.load_state_dict(shallow.model.layers[i - before].state_dict())
                continue
            nn.init.normal_(layer.self_attn.q_proj.weight, std=0.06)
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
            nn.init.zeros_(layer.self_attn.o_proj.weight)
            nn.init.zeros_(layer.mlp.down_proj.weight)


def forward_packed(
    decoder: LlamaModel, vocab: symbols.Vocabulary, packed: symbols.PackedBatch, visual: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits (a, vocab) and targets (a,) at every answer position; `visual (b, v, hidden)` are the visual
    embeddings."""
    b, v = packed.visual.shape
    device = visual.device
    prefix = torch.tensor(vocab.prefix, device=device)
    n_prefix = len(prefix)
    embeds = torch.cat(
        [decoder.embed_tokens(prefix).expand(b, -1, -1), visual, decoder.embed_tokens(packed.ids.flatten(1))], 1
    )
    start = n_prefix + world.GRID**2
    text = torch.arange(start, start + packed.ids.shape[2], device=device).repeat(packed.ids.shape[1]).expand(b, -1)
    image = n_prefix + packed.visual.clamp(min=0)
    positions = torch.cat([torch.arange(n_prefix, device=device).expand(b, -1), image, text], 1)
    symbols.PACKED.set(packed, n_prefix)
    hidden = decoder(
        inputs_embeds=embeds, attention_mask=None, position_ids=positions, use_cache=False
    ).last_hidden_state
    hidden = hidden[:, n_prefix + v :].unflatten(1, packed.ids.shape[1:])
    targets = packed.ids.roll(-1, 2)[packed.answer]
    return hidden[packed.answer] @ decoder.embed_tokens.weight.T, targets


def accuracy_per_kind(packed: symbols.PackedBatch, logits: Tensor, targets: Tensor) -> dict[str, list[float]]:
    """Whether every token of an answer was the arg max, per kind; on fresh scenes, so it is an honest estimate."""
    wrong = torch.zeros(packed.ids.shape, dtype=torch.bool)
    wrong[packed.answer.cpu()] = (logits.argmax(-1) != targets).cpu()
    right = ~wrong.any(-1)
    out: dict[str, list[float]] = defaultdict(list)
    for row, kinds in enumerate(packed.kinds):
        for segment, kind in enumerate(kinds):
            out[kind].append(float(right[row, segment]))
    return out


def pixels(scenes: Iterable[world.Scene], compressed: bool) -> Tensor:
    """(b, 3, 336, 336) normalised as CLIP's processor does; `compressed` goes through JPEG like the shipped data."""
    from io import BytesIO

    from PIL import Image
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    images = [world.render(s) for s in scenes]
    if compressed:
        images = [Image.open(BytesIO(world.jpeg(i))) for i in images]
    x = torch.from_numpy(np.stack([np.asarray(i) for i in images])).float().div(255)
    return x.sub(torch.tensor(OPENAI_CLIP_MEAN)).div(torch.tensor(OPENAI_CLIP_STD)).permute(0, 3, 1, 2)


class Curriculum:
    """Which kinds are drawn, and how often: the newest as often as all before it together."""

    def __init__(self, patience: int, unlocked: int = 1) -> None:
        self.patience, self.unlocked, self.since = patience, unlocked, 0

    def weights(self) -> dict[str, float]:
        if self.unlocked > len(CURRICULUM):
            return dict(WEIGHTS)
        known = dict.fromkeys(CURRICULUM[: self.unlocked], 1.0)
        known[CURRICULUM[self.unlocked - 1]] = max(2.0, 0.8 * (self.unlocked - 1))
        return known

    def report(self, steps: int, accuracy: dict[str, float]) -> None:
        self.since += steps
        if self.unlocked <= len(CURRICULUM):
            newest = accuracy.get(CURRICULUM[self.unlocked - 1], 0.0)
            if newest > PASS or self.since >= self.patience:
                self.unlocked, self.since = self.unlocked + 1, 0


def schedule(step: int, steps: int, warmup: int = 50, floor: float = 0.02) -> float:
    """Warm-up, constant for half, then cosine decay."""
    if step < warmup:
        return (step + 1) / warmup
    hold = steps // 2
    if step < hold:
        return 1.0
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - hold) / max(1, steps - hold)))


class Optimisers:
    """Muon for matrices, AdamW for the rest; `slow` modules at a fifth of the rate."""

    def __init__(self, modules: Iterable[nn.Module], lr: float, slow: Iterable[nn.Module] = ()) -> None:
        slow_ids = {id(p) for m in slow for p in m.parameters()}
        matrices: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        self.parameters: list[nn.Parameter] = []
        for name, p in (item for m in modules for item in m.named_parameters()):
            if not p.requires_grad:
                continue
            self.parameters.append(p)
            rate = lr * (0.2 if id(p) in slow_ids else 1.0)
            (matrices if p.ndim == 2 and "embed" not in name else others).append({"params": [p], "base": rate})
        self.all = [
            torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    def step(self, loss: Tensor, factor: float) -> None:
        for o in self.all:
            o.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for o in self.all:
            for group in o.param_groups:
                group["lr"] = group["base"] * factor
            o.step()


# --------------------------------------------------------------------------------------------------------------- phases


class Phase:
    """The loop that all phases share: checkpoint, resume, log; a phase gives `modules` and `step(rng) -> (loss,
    stats)`."""

    def __init__(self, name: str, out: Path, recipe: Recipe, device: str, save_every: int) -> None:
        self.name, self.out, self.recipe, self.device, self.save_every = name, out, recipe, device, save_every
        self.curriculum = Curriculum(recipe.patience)
        self.tokenizer = tokenizer.build()
        self.vocab = symbols.Vocabulary(self.tokenizer, mini.HIDDEN)
        self.modules: dict[str, nn.Module] = {}
        self.slow: list[nn.Module] = []

    def autocast(self) -> torch.autocast:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, list[float]]]:
        raise NotImplementedError

    def run(self) -> None:
        checkpoint = self.out / f"{self.name}.pt"
        for m in self.modules.values():
            m.to(self.device)
        optimisers = Optimisers(self.modules.values(), self.recipe.lr, self.slow)
        step = 0
        if checkpoint.is_file():
            state = torch.load(checkpoint, map_location=self.device, weights_only=True)
            step = state["step"]
            for key, m in self.modules.items():
                m.load_state_dict(state["modules"][key])
            for o, s in zip(optimisers.all, state["optimisers"], strict=True):
                o.load_state_dict(s)
            self.curriculum.unlocked, self.curriculum.since = state["curriculum"]
            print(f"{self.name}: continues at step {step} of {self.recipe.steps}", flush=True)
        log = self.out / f"{self.name}.csv"
        stats: dict[str, list[float]] = defaultdict(list)
        began, logged = time.time(), step
        while step < self.recipe.steps:
            rng = random.Random(f"{self.name}-{step}")  # a step's data does not depend on where the run was interrupted
            torch.manual_seed(step)
            loss, new = self.loss(rng)
            if not torch.isfinite(loss):
                raise RuntimeError(
                    f"{self.name}: the loss is {loss.item()} at step {step}; the last checkpoint is {checkpoint}"
                )
            optimisers.step(loss, schedule(step, self.recipe.steps))
            step += 1
            for key, values in {**new, "loss": [loss.item()]}.items():
                stats[key] += values
            if step % LOG_EVERY == 0 or step == self.recipe.steps:
                means = {k: sum(v) / len(v) for k, v in sorted(stats.items()) if v}
                self.curriculum.report(step - logged, means)
                with log.open("a", newline="") as f:
                    writer = csv.writer(f)
                    writer.writerows([step, round(time.time() - began, 1), k, round(v, 4)] for k, v in means.items())
                print(
                    f"{self.name} {step} {time.time() - began:.0f}s",
                    *(f"{k}={v:.3f}" for k, v in means.items()),
                    flush=True,
                )
                stats.clear()
                logged = step
            if step % self.save_every == 0 or step == self.recipe.steps:
                state = {
                    "step": step,
                    "modules": {k: m.state_dict() for k, m in self.modules.items()},
                    "optimisers": [o.state_dict() for o in optimisers.all],
                    "curriculum": (self.curriculum.unlocked, self.curriculum.since),
                }
                torch.save(state, checkpoint.with_suffix(".tmp"))
                checkpoint.with_suffix(".tmp").replace(checkpoint)

    def pack(self, rng: random.Random, scenes: list[world.Scene], weights: dict[str, float]) -> symbols.PackedBatch:
        r = self.recipe
        packed = symbols.pack(
            self.vocab, rng, scenes, r.questions, weights, r.background, r.one_per_object, r.full_prompt
        )
        return packed._replace(**{k: getattr(packed, k).to(self.device) for k in ("visual", "ids", "answer")})


def train_scene(rng: random.Random) -> world.Scene:
    return world.make_scene(rng.randrange(1, 1 << 39), n_signs=(0, 4) if rng.random() < 0.4 else (0, 2))


class Language(Phase):
    """Phases `language`, `crowd` and `deep`: the decoder on symbols."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        depth = mini.N_LAYERS if self.name == "deep" else mini.N_LAYERS // 2
        self.lm = LlamaForCausalLM(mini.text_config(self.tokenizer, depth))
        self.lm.set_attn_implementation("packed")
        if self.name == "language":
            init_decoder(self.lm, self.vocab)
        else:
            before = load(self.out, PHASES[PHASES.index(self.name) - 1])
            shallow = LlamaForCausalLM(mini.text_config(self.tokenizer, mini.N_LAYERS // 2))
            shallow.load_state_dict(before["modules"]["decoder"])
            grow(shallow, self.lm.model)
            self.curriculum.unlocked, self.curriculum.since = before["curriculum"]
        self.lm.model.embed_tokens.weight.requires_grad_(False)
        self.modules = {"decoder": self.lm}

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, list[float]]]:
        scenes = [train_scene(rng) for _ in range(self.recipe.images)]
        packed = self.pack(rng, scenes, self.curriculum.weights())
        every = self.vocab.targets(scenes).to(self.device)
        visual = every.gather(1, packed.visual.clamp(min=0)[:, :, None].expand(-1, -1, every.shape[-1]))
        visual = visual + 0.03 * torch.randn_like(visual)
        with self.autocast():
            logits, targets = forward_packed(self.lm.model, self.vocab, packed, visual)
        return cross_entropy(logits.float(), targets), accuracy_per_kind(packed, logits, targets)


class Align(Phase):
    """Phase `align`: vision tower and projector produce the symbols; no decoder."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.llava = LlavaForConditionalGeneration(mini.llava_config(self.tokenizer))
        self.tower, self.projector = self.llava.model.vision_tower, self.llava.model.multi_modal_projector
        self.tower.set_attn_implementation("plain")
        self.scale = nn.Module()
        self.scale.register_parameter("value", nn.Parameter(torch.tensor(5.0)))
        self.modules = {"tower": self.tower, "projector": self.projector, "scale": self.scale}

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, list[float]]]:
        scenes = [world.dense_scene(rng.randrange(1, 1 << 39)) for _ in range(self.recipe.images)]
        target = self.vocab.targets(scenes).to(self.device)
        labels = [world.patch_labels(s) for s in scenes]
        with self.autocast():
            hidden = self.tower(
                pixels(scenes, rng.random() < 0.5).to(self.device), output_hidden_states=True
            ).hidden_states[-2]
            features = self.projector(hidden[:, 1:])
        features = features.float()
        total = ((features - target).square().sum(-1) / target.square().sum(-1)).mean()
        e = self.vocab.embedding
        stats: dict[str, list[float]] = {}
        names = {
            "shape": e[self.vocab.shapes],
            "colour": e[self.vocab.colours],
            "char": e[self.vocab.chars],
            "slot": self.vocab.slots,
        }
        for name, rows in names.items():
            rows = (rows / rows.norm(dim=-1, keepdim=True)).to(self.device)
            label = torch.from_numpy(np.stack([getattr(x, name) for x in labels])).to(self.device)
            known = label >= 0
            logits = self.scale.value * (features[known] @ rows.T)
            total = total + (0.5 if name == "shape" else 0.2) * cross_entropy(logits, label[known])
            stats[name] = [(logits.argmax(-1) == label[known]).float().mean().item()]
        carrying = torch.from_numpy(np.stack([x.colour for x in labels])).to(self.device) >= 0
        stats["cosine"] = [cosine_similarity(features[carrying], target[carrying], dim=-1).mean().item()]
        return total, stats


class Joint(Phase):
    """Phase `joint`: the whole LLaVA on rendered images, all visual tokens, lmms-eval's prompts."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.llava = LlavaForConditionalGeneration(mini.llava_config(self.tokenizer))
        decoder = LlamaForCausalLM(mini.text_config(self.tokenizer))
        decoder.load_state_dict(load(self.out, "deep")["modules"]["decoder"])
        self.llava.model.language_model.load_state_dict(decoder.model.state_dict())
        aligned = load(self.out, "align")["modules"]
        self.llava.model.vision_tower.load_state_dict(aligned["tower"])
        self.llava.model.multi_modal_projector.load_state_dict(aligned["projector"])
        self.llava.model.vision_tower.set_attn_implementation("plain")
        self.llava.model.language_model.set_attn_implementation("packed")
        self.llava.get_input_embeddings().weight.requires_grad_(False)
        self.modules = {"llava": self.llava}
        self.slow = [self.llava.model.vision_tower, self.llava.model.multi_modal_projector]

    def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, list[float]]]:
        scenes = [train_scene(rng) for _ in range(self.recipe.images)]
        packed = self.pack(rng, scenes, WEIGHTS)
        core = self.llava.model
        with self.autocast():
            hidden = core.vision_tower(pixels(scenes, True).to(self.device), output_hidden_states=True).hidden_states[
                -2
            ]
            visual = core.multi_modal_projector(hidden[:, 1:]).float()
            logits, targets = forward_packed(core.language_model, self.vocab, packed, visual)
        return cross_entropy(logits.float(), targets), accuracy_per_kind(packed, logits, targets)


def load(out: Path, phase: str) -> dict[str, Any]:
    path = out / f"{phase}.pt"
    if not path.is_file():
        raise SystemExit(f"expected the checkpoint of phase {phase!r} at {path}: run that phase first")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


KINDS_OF_PHASE: dict[str, Callable[..., Phase]] = {
    "language": Language,
    "crowd": Language,
    "deep": Language,
    "align": Align,
    "joint": Joint,
}


def recipes_of(model: str) -> tuple[dict[str, Recipe], Mapping[str, Callable[..., Phase]]]:
    """By phase, in order: its recipe, and its class."""
    if model == "mini":
        return RECIPES, KINDS_OF_PHASE
    from tasks.mini.qwen import train as qwen  # it imports this file

    return qwen.RECIPES, qwen.KINDS_OF_PHASE


def main(argv: list[str] | None = None, model: str = "mini") -> None:
    """Train an embedded model, `mini` or `mini-qwen`."""
    recipes, kinds = recipes_of(model)
    parser = argparse.ArgumentParser(description=f"Train {model}: phases {', '.join(recipes)}, each resumable.")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints and logs")
    parser.add_argument("--phase", choices=tuple(recipes), help="one phase; default: all, in order")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = torch's choice")
    parser.add_argument("--save-every", type=int, default=100, help="steps")
    for name in ("steps", "images", "background"):
        parser.add_argument(f"--{name}", type=int, help="override the recipe")
    parser.add_argument("--lr", type=float, help="override the recipe")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    for phase in [args.phase] if args.phase else recipes:
        overrides = {k: v for k in ("steps", "images", "background", "lr") if (v := getattr(args, k)) is not None}
        recipe = Recipe(**{**recipes[phase].__dict__, **overrides})
        kinds[phase](phase, args.out, recipe, args.device, args.save_every).run()


if __name__ == "__main__":
    main()
