"""Tiny random LLaVA-OneVisions as folders with processor and chat template, and prompts of one or more images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import families
import torch
from checkpoints import WEIGHTS
from PIL import Image
from transformers import (
    AutoTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2Config,
    SiglipVisionConfig,
)

from harness.core.shape import Size

TILE, SIDE = 60, 4
#: (height, width): 1 to 12 tiles, so that rasters of more than two tiles are shrunk
PINPOINTS = [[TILE * rows, TILE * cols] for rows in (1, 2, 3) for cols in (1, 2, 3, 4)]
ASPECT = "anyres_max_2"
#: (width, height): one tile, two, twelve that are shrunk, six with padding at the sides that are shrunk
SIZES = ((50, 50), (130, 70), (300, 230), (110, 170))
SPECIAL = ("<video>", "<|im_start|>", "<|im_end|>")
#: as the converted checkpoints have it: images in front, roles between marks
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def config(vocabulary: int, image: int, video: int, **more: Any) -> LlavaOnevisionConfig:
    """A decoder with grouped heads on a SigLIP tower of 4 x 4 patches, which leave a rim of 4 pixels unread."""
    text = Qwen2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        initializer_range=0.2,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=TILE,
        patch_size=14,
        vision_use_head=False,
    )
    return LlavaOnevisionConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=image,
        video_token_index=video,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=ASPECT,
        tie_word_embeddings=False,
        **more,
    )


def make(of: LlavaOnevisionConfig, seed: int = 0) -> Any:
    """A random model; norms, biases and SigLIP's small weights are random as well, or they would hide mistakes."""
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(of).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1 and "norm" in name and name.endswith("weight"):
                weight.add_(0.2 * torch.randn_like(weight))
            elif "vision_tower" in name or "projector" in name or weight.ndim == 1:
                weight.copy_(0.2 * torch.randn_like(weight))
        model.model.image_newline.normal_()
    return model


def folder(to: Path, seed: int = 0) -> Path:
    """A random model with its processor, as a checkpoint: the mini model's tokenizer with the marks of Qwen2."""
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    video, _, end = tokenizer.convert_tokens_to_ids(list(SPECIAL))
    image = tokenizer.convert_tokens_to_ids("<image>")
    make(config(end + 3, image, video), seed).save_pretrained(to)
    LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(
            size={"height": TILE, "width": TILE},
            image_grid_pinpoints=PINPOINTS,
            image_mean=[0.5, 0.4, 0.6],
            image_std=[0.5, 0.5, 0.5],
        ),
        tokenizer,
        LlavaOnevisionVideoProcessor(size={"height": TILE, "width": TILE}),
        num_image_tokens=SIDE**2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=ASPECT,
        chat_template=TEMPLATE,
    ).save_pretrained(to)
    (to / "generation_config.json").write_text(f'{{"eos_token_id": [{end}]}}')
    return to


def picture(number: int) -> Image.Image:
    """Image `number` of `SIZES`."""
    return families.picture(*SIZES[number], seed=number)


def size_of(number: int) -> Size:
    """(height, width) of image `number`."""
    width, height = SIZES[number]
    return height, width


def asked(processor: Any, *prompts: tuple[str, Sequence[int]]) -> dict[str, Any]:
    """A left-padded batch through the family's own processor: per prompt its question, and the numbers of its images,
    with text between them."""
    texts = []
    for question, numbers in prompts:
        front = "and ".join(["<image>\n"] * len(numbers))
        texts.append(f"<|im_start|>user\n{front}{question}<|im_end|>\n<|im_start|>assistant\n")
    images = [[picture(number) for number in numbers] for _, numbers in prompts]
    return dict(processor(images=images, text=texts, padding=True, return_tensors="pt"))
