"""Tiny random models of Idefics3 and SmolVLM with prompts of one or more images in unlike numbers of tiles."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from checkpoints import WEIGHTS
from torch import Tensor
from transformers import (
    AutoTokenizer,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

IMAGE, FENCE, LINE, OVERVIEW = 4, 5, 6, 7
DEPTH, HIDDEN, VOCABULARY = 6, 48, 64
#: pixels of a tile, and visual tokens: 4 x 4 patches of 14 pixels, joined by four
TILE, TOKENS = 56, 4
#: rows and columns of tiles of images beside the overview; they have 4, 12, 20, 16 and 12 visual tokens
CUTS = ((0, 0), (1, 2), (2, 2), (1, 3), (2, 1))

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 56,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": TILE,
    "patch_size": 14,
    "initializer_range": 0.2,
}


def _idefics3() -> Any:
    text = LlamaConfig(**TEXT)
    return Idefics3ForConditionalGeneration(
        Idefics3Config(text_config=text, vision_config=VISION, image_token_id=IMAGE, scale_factor=2)
    )


def _smolvlm() -> Any:
    text = LlamaConfig(**TEXT)
    return SmolVLMForConditionalGeneration(
        SmolVLMConfig(text_config=text, vision_config=VISION, image_token_id=IMAGE, scale_factor=2)
    )


FAMILIES: dict[str, Callable[[], Any]] = {"idefics3": _idefics3, "smolvlm": _smolvlm}


def make(name: str, seed: int = 0) -> Any:
    """A model of a family; norms and parts that start at zero are random as well, or they would hide mistakes."""
    torch.manual_seed(seed)
    model = FAMILIES[name]().eval()
    with torch.no_grad():
        for label, weight in model.named_parameters():
            if weight.ndim == 1 and "norm" in label and label.endswith("weight"):
                weight.add_(0.2 * torch.randn_like(weight))
            elif float(weight.abs().max()) == 0:
                weight.copy_(0.2 * torch.randn_like(weight))
    return model


class Asked(NamedTuple):
    """A prompt: the question's ids, and numbers of images in `CUTS`."""

    question: Sequence[int]
    images: Sequence[int]


#: prompts of one image, of two images with text between, and of another one
ROWS = (Asked((40, 41, 42, 43), (1,)), Asked((50, 51, 52, 53, 54, 55, 56), (0, 2)), Asked((60, 61), (3,)))


def n_tiles(number: int) -> int:
    rows, cols = CUTS[number]
    return rows * cols + 1


def spelt(number: int) -> list[int]:
    """An image in a prompt, as the processors spell it, written here once more."""
    rows, cols = CUTS[number]
    ids: list[int] = []
    for row in range(rows):
        for col in range(cols):
            ids += [FENCE, 10 + 4 * row + col, *[IMAGE] * TOKENS]
        ids.append(LINE)
    return [*ids, *([LINE] if rows else []), FENCE, OVERVIEW, *[IMAGE] * TOKENS, FENCE]


def pixels(number: int) -> Tensor:
    """(tiles, 3, h, w): what a processor makes of an image."""
    return torch.randn(n_tiles(number), 3, TILE, TILE, generator=torch.Generator().manual_seed(100 + number))


def image(number: int) -> dict[str, Tensor]:
    """What the engine is given of an image."""
    return {"pixel_values": pixels(number)[None], "image_cuts": torch.tensor([CUTS[number]])}


def batch(asked: Sequence[Asked]) -> dict[str, Tensor]:
    """Left-padded prompts with their images, as a processor makes them: the tiles of a prompt in one row, zeros behind
    them."""
    prompts, rows = [], []
    for question, numbers in asked:
        ids = [1, 30, 31]
        for place, number in enumerate(numbers):
            ids += [*([32, 33] if place else []), *spelt(number)]
        prompts.append([*ids, *question])
        rows.append(torch.cat([pixels(number) for number in numbers]))
    width, most = max(map(len, prompts)), max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    padded = torch.zeros(len(rows), most, 3, TILE, TILE)
    seen = torch.zeros(len(rows), most, TILE, TILE, dtype=torch.long)
    for row, tiles in enumerate(rows):
        padded[row, : len(tiles)], seen[row, : len(tiles)] = tiles, 1
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": padded, "pixel_attention_mask": seen}


# ------------------------------------------------------------------------------------------------------------- folders

#: of the toy tokenizer; the mini model's vocabulary has "<image>" and ends before them
SPECIAL = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|im_start|>")
#: as the published templates are: a colon behind the role, an image without marks
TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
    "{% if m['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
#: pixels of the longer side: three tiles
LONGEST = 3 * TILE


def processor(name: str, tags: bool = True, longest: int = LONGEST, **image: Any) -> Any:
    """A processor of a family on the mini model's tokenizer with the family's marks; `tags`: those of tiles are tokens
    too, as in SmolVLM, or text, as in Idefics3."""
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    names = [f"<row_{row}_col_{col}>" for row in (1, 2, 3) for col in (1, 2, 3)] if tags else []
    tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL, *names]})
    settings = {"size": {"longest_edge": longest}, "max_image_size": {"longest_edge": TILE}, **image}
    if name == "idefics3":
        made = Idefics3ImageProcessor(**settings)
        return Idefics3Processor(made, tokenizer, image_seq_len=TOKENS, chat_template=TEMPLATE)
    video = SmolVLMVideoProcessor()
    made = SmolVLMImageProcessor(**settings)
    return SmolVLMProcessor(made, tokenizer, video, image_seq_len=TOKENS, chat_template=TEMPLATE)


def folder(name: str, to: Path, tags: bool = True, **image: Any) -> Path:
    """A random model of a family with its processor, as a checkpoint."""
    made = processor(name, tags, **image)
    tokenizer = made.tokenizer
    config = make(name).config
    config.text_config.vocab_size = len(tokenizer) + 3
    config.text_config.max_position_embeddings = 4096
    config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(1)
    model = type(FAMILIES[name]())(config).eval()
    model.save_pretrained(to)
    made.save_pretrained(to)
    end = tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    (to / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    return to
