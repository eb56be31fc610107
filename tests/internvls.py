"""Tiny random InternVLs with prompts of one or more images of unlike numbers of tiles, and their folders."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from checkpoints import WEIGHTS
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

IMAGE, START, END = 4, 6, 7
DEPTH, HIDDEN, VOCABULARY = 6, 48, 64
#: pixels of a tile and of a patch: 6 x 6 patches, joined into 3 x 3 visual tokens
TILE, PATCH, TOKENS = 84, 14, 9
#: tiles of images, the whole one counted
TILES = (1, 4, 3, 5)


class Kind(NamedTuple):
    """A decoder's config and fields of the tower's: norms of queries and keys as in the tower of 6B or none."""

    decoder: type[Any]
    rope: dict[str, Any]
    tower: dict[str, Any]


#: as InternVL3 has it, with a tower of 300M; with one of 6B; and as InternVL3.5
KINDS = {
    "qwen2": Kind(Qwen2Config, {"rope_type": "dynamic", "factor": 2.0}, {"attention_bias": True}),
    "llama": Kind(LlamaConfig, {"rope_type": "default"}, {"use_qk_norm": True, "norm_type": "rms_norm"}),
    "qwen3": Kind(Qwen3Config, {"rope_type": "default"}, {"attention_bias": True, "use_mean_pooling": False}),
}


def config_of(kind: str, vocabulary: int = VOCABULARY, image: int = IMAGE, context: int = 512) -> InternVLConfig:
    """A configuration; no two sizes are alike."""
    text = {
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": 56,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": 0,
        "initializer_range": 0.2,
        "rope_parameters": {"rope_theta": 100.0, **KINDS[kind].rope},
        "tie_word_embeddings": False,
    }
    vision = InternVLVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=[TILE, TILE],
        patch_size=[PATCH, PATCH],
        initializer_range=0.2,
        **KINDS[kind].tower,
    )
    decoder = KINDS[kind].decoder(**text, **({"head_dim": 16} if kind == "qwen3" else {}))
    return InternVLConfig(
        text_config=decoder,
        vision_config=vision,
        image_token_id=image,
        image_seq_length=TOKENS,
        tie_word_embeddings=False,
    )


def random(config: InternVLConfig, seed: int = 0) -> Any:
    """A model; norms, scales of layers, [CLS] and places are random as well, or they would hide mistakes."""
    torch.manual_seed(seed)
    model = InternVLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1 and ("norm" in name or "lambda" in name) and not name.endswith("bias"):
                weight.copy_(1 + 0.2 * torch.randn_like(weight))
            elif float(weight.abs().max()) == 0:
                weight.copy_(0.2 * torch.randn_like(weight))
    return model


def make(kind: str = "qwen2", seed: int = 0) -> Any:
    return random(config_of(kind), seed)


class Asked(NamedTuple):
    """A prompt: the question's ids, and numbers of images in `TILES`."""

    question: Sequence[int]
    images: Sequence[int]


#: prompts of one image, of two images with text between, and of another one
ROWS = (Asked((20, 21, 22, 23), (1,)), Asked((30, 31, 32, 33, 34, 35, 36), (2, 0)), Asked((40, 41), (3,)))


def image(number: int) -> dict[str, Tensor]:
    """What the image processor makes of an image."""
    draw = torch.Generator().manual_seed(100 + number)
    pixels = torch.randn(TILES[number], 3, TILE, TILE, generator=draw)
    return {"pixel_values": pixels, "num_patches": torch.tensor([TILES[number]])}


def images(asked: Sequence[Asked]) -> dict[str, Tensor]:
    """What the image processor makes of the images of prompts."""
    made = [image(number) for one in asked for number in one.images]
    return {key: torch.cat([one[key] for one in made]) for key in made[0]}


def batch(asked: Sequence[Asked]) -> dict[str, Tensor]:
    """Left-padded prompts with their pixels, as the processor makes them; it keeps the number of tiles to itself."""
    prompts = []
    for question, numbers in asked:
        ids = [1, 10, 11]
        for place, number in enumerate(numbers):
            ids += [*([12, 13] if place else []), START, *[IMAGE] * (TILES[number] * TOKENS), END]
        prompts.append([*ids, *question])
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": images(asked)["pixel_values"]}


# ------------------------------------------------------------------------------------------------------------- folders

#: of the toy tokenizer, by the names that the processor asks for
MARKS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
#: as InternVL's template is: roles between marks, an image on a line of its own
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<IMG_CONTEXT>\n{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: most tiles of an image beside the whole one, as its file says
MOST = 6


def folder(to: Path, kind: str = "qwen2", penalty: float | None = None) -> Path:
    """A random InternVL with its processor, as the hub's are: the image processor alone cuts nothing, and the
    vocabulary ends before the video token, the last one."""
    plain = AutoTokenizer.from_pretrained(WEIGHTS)
    plain.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    plain.save_pretrained(to)
    tokenizer = AutoTokenizer.from_pretrained(to, extra_special_tokens=MARKS)
    ids = tokenizer.convert_tokens_to_ids([*MARKS.values(), "<|im_end|>"])
    assert ids[3] == len(tokenizer) - 1
    random(config_of(kind, ids[3], ids[2], 4096), 1).save_pretrained(to)
    tiles = GotOcr2ImageProcessor(
        size={"height": TILE, "width": TILE}, crop_to_patches=False, min_patches=1, max_patches=MOST
    )
    made = InternVLProcessor(
        tiles, tokenizer, InternVLVideoProcessor(), image_seq_length=TOKENS, chat_template=TEMPLATE
    )
    made.save_pretrained(to)
    said = {"eos_token_id": [ids[4]], **({} if penalty is None else {"repetition_penalty": penalty})}
    (to / "generation_config.json").write_text(json.dumps(said))
    return to
