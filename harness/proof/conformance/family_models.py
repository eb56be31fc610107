"""Tiny random models of every family for the conformance kit, and prompts of images of unlike sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, DynamicCache

from harness.core.shape import Grid, ImageShape, ModelShape, PromptShape, Size, VisionShape
from harness.engine.run import EngineRun
from harness.engine.tower import Seen
from harness.models.adapters import ADAPTERS, Adapter, Features, adapter_for
from harness.proof.conformance.tiny import STEPS, peaked

VOCAB = 128
#: of the vocabulary: an image, a video, and what stands around them where the family has it
IMAGE_TOKEN, VIDEO_TOKEN, START_TOKEN, END_TOKEN = 127, 126, 125, 124
DECODER = ModelShape(depth=12, hidden=64, heads=2, kv_heads=1, head_dim=32, mlp=96, vocab=VOCAB, bytes_per_value=4)
#: sides in pixels: of a patch, and of an image or tile of a tower of one size
PATCH, SIDE = 14, 56
#: (height, width) of the images; families of one size have the same number of tokens for all
SIZES: tuple[Size, ...] = ((112, 112), (84, 168), (196, 56), (140, 140))
#: (height, width) in pixels into which an image may be cut
RESOLUTIONS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
#: what the configuration of a family may have
TOKENS = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": VIDEO_TOKEN,
    "vision_start_token_id": START_TOKEN,
    "vision_end_token_id": END_TOKEN,
    "image_grid_pinpoints": RESOLUTIONS,
    "vision_aspect_ratio": "anyres_max_3",
}


@dataclass(frozen=True, eq=False)
class FamilyPrompt:
    """`ids` with the tokens of its images, numbers of `SIZES`, and the tokens fed as decode steps."""

    key: str
    ids: list[int]
    images: tuple[int, ...]
    next_ids: list[int]


@dataclass(frozen=True, eq=False)
class FamilyModel:
    """A tiny random model of one family, with what its processor would say of images."""

    family: str
    model: Any

    @property
    def adapter(self) -> Adapter:
        return adapter_for(self.model)

    @property
    def processor(self) -> Any:
        """What a processor says of sizes: no limits of pixels, tiles as usual."""
        usual = self.adapter.usual_processor(self.model.config)
        if not (self.adapter.joined or self.adapter.framed) and usual is not None:
            return usual
        vision = self.model.config.vision_config
        # images that are framed are brought to three tiles along the longer side
        limits = {"shortest_edge": 1, "longest_edge": 3 * SIDE if self.adapter.framed else 1 << 30}
        merge = getattr(vision, "spatial_merge_size", 1)
        tiles = {"do_image_splitting": True, "max_image_size": {"longest_edge": SIDE}}
        return SimpleNamespace(
            image_processor=SimpleNamespace(patch_size=vision.patch_size, merge_size=merge, size=limits, **tiles)
        )

    def image(self, number: int, n_images: int = 1) -> ImageShape:
        """The shape of image `number` of `SIZES` in a prompt of `n_images`."""
        return self.adapter.among(n_images).image_at(self.model.config, self.processor, SIZES[number])

    def shape_of(self, asked: FamilyPrompt) -> PromptShape:
        """The shape of a prompt."""
        images = tuple(self.image(number, len(asked.images)) for number in asked.images)
        n_text = len(asked.ids) - sum(image.tokens for image in images)
        return self.adapter.prompt(self.adapter.shape, *images, n_text=n_text)

    def inputs(self, number: int, n_images: int = 1) -> dict[str, Tensor]:
        """What a processor would make of image `number` in a prompt of `n_images`: random pixels, and facts."""
        config, size, adapter = self.model.config, SIZES[number], self.adapter.among(n_images)
        generator = torch.Generator().manual_seed(100 + number)
        pixels = torch.randn(adapter.pixels_at(config, self.processor, size), generator=generator)
        return {"pixel_values": pixels, **adapter.facts_at(config, self.processor, size)}

    @cache  # noqa: B019  models are few and live as long
    def prompt(self, number: int, n_after: int, images: tuple[int, ...]) -> FamilyPrompt:
        """Random prompt `number`: three text tokens, the images with text between them, `n_after` text tokens."""
        generator = torch.Generator().manual_seed(number)

        def text(n: int) -> list[int]:
            return [int(t) for t in torch.randint(3, END_TOKEN, (n,), generator=generator)]

        ids = text(3)
        for place, image in enumerate(images):
            shape = self.image(image, len(images))
            own = self.adapter.image_ids(shape, IMAGE_TOKEN, partial(_mark, self.adapter.frame(shape)[-1]))
            ids += [*(text(2) if place else []), START_TOKEN, *own, END_TOKEN]
        return FamilyPrompt(f"prompt {number}", ids + text(n_after), images, text(STEPS))

    @property
    def prompts(self) -> tuple[FamilyPrompt, ...]:
        """One image, two images, and another one, of unlike text."""
        return self.prompt(1, 6, (0,)), self.prompt(2, 11, (1, 2)), self.prompt(3, 9, (3,))


def _mark(behind: Sequence[str], name: str) -> int:
    """The token of a mark around an image's tokens; that of a mark that stands `behind` them is no token of text."""
    return VIDEO_TOKEN if name in behind else 3 + sum(map(ord, name)) % (END_TOKEN - 3)


@lru_cache(maxsize=len(ADAPTERS))
def family_model(family: str) -> FamilyModel:
    """The tiny model of the family that has this class name; its attention is peaked, so that no selection is near a
    tie."""
    adapter = ADAPTERS[family]
    config = adapter.config_of(_usual(adapter), pad_token_id=0, bos_token_id=1, eos_token_id=None)
    for name, value in TOKENS.items():
        if hasattr(config, name):
            setattr(config, name, value)
    with torch.random.fork_rng([]):
        torch.manual_seed(2)
        model: Any = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    peaked(model, norms=True)
    return FamilyModel(family, model.eval())


def _usual(adapter: type[Adapter]) -> PromptShape:
    side = SIDE // PATCH
    vision = VisionShape(
        layers_used=4,
        hidden=32,
        mlp=48,
        tokens=side**2 + 1,
        patch_inputs=3 * PATCH**2,
        projector_hidden=DECODER.hidden,
        heads=2,
    )
    if adapter.joined:  # neighbouring patches of two frames become one visual token
        vision = replace(
            vision,
            tokens=side**2,
            patch_inputs=2 * vision.patch_inputs,
            prefix=0,
            merge=4,
            projectors=4,
            one_row=True,
            whole_layers=(1, 3),
        )
    if adapter.framed:
        vision = replace(vision, tokens=side**2, prefix=0, merge=4, projector_hidden=0)
    return PromptShape(DECODER, (ImageShape((Grid(side, side),), vision),))


@dataclass(frozen=True)
class FamilyAnswer:
    """What the engine did with a batch: `logits (b, 1 + steps, vocab)`, and the features of each prompt's images.

    `origins`: per layer and row the visual tokens present, by their number in the prompt (-2: added by the method).
    """

    logits: Tensor
    origins: list[list[list[int]]]
    run: EngineRun
    features: list[list[Features]]


def padded(prompts: Sequence[list[int]]) -> dict[str, Tensor]:
    """Ids and mask of prompts, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def encoded(run: EngineRun, tiny: FamilyModel, prompts: Sequence[FamilyPrompt]) -> list[list[tuple[Features, Seen]]]:
    """Features of the images of each prompt, and what the tower showed."""
    found = []
    for asked in prompts:
        mine = []
        for number in asked.images:
            features, seen = run.encode(**tiny.inputs(number, len(asked.images)))
            mine.append((features[0], seen[0]))
        found.append(mine)
    return found


@torch.inference_mode()
def ask_family(run: EngineRun, tiny: FamilyModel, prompts: Sequence[FamilyPrompt], steps: int = STEPS) -> FamilyAnswer:
    """Prefill a batch inside an attached engine and feed `steps` of each prompt's next tokens."""
    run.samples = run.questions = [p.key for p in prompts]
    images = encoded(run, tiny, prompts)
    flat = [image for mine in images for image in mine]
    run.see([seen for _, seen in flat])
    inputs = padded([p.ids for p in prompts])
    inputs |= tiny.adapter.inputs([features for features, _ in flat], inputs["input_ids"])
    model = tiny.model
    kv = DynamicCache(config=model.config.text_config)
    out = [model(**inputs, past_key_values=kv, logits_to_keep=1).logits[:, -1]]
    for step in range(steps):
        fed = torch.tensor([[p.next_ids[step]] for p in prompts])
        out.append(model(input_ids=fed, past_key_values=kv).logits[:, -1])
    origins = [[o[m].tolist() for o, m in zip(layout.origin, layout.visual, strict=True)] for layout in run.layouts]
    return FamilyAnswer(torch.stack(out, 1), origins, run, [[features for features, _ in mine] for mine in images])
