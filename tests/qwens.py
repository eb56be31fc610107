"""Tiny random Qwen-VLs with prompts of one or more images of unlike sizes; no two sizes of a model are alike."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from checkpoints import WEIGHTS
from torch import Tensor
from transformers import (
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

IMAGE, VIDEO, START, END = 4, 5, 6, 7
DEPTH, HIDDEN, VOCABULARY = 6, 48, 64
#: rows and columns of images in patches; joined by four they are 8, 6, 16 and 15 visual tokens
GRIDS = ((4, 8), (6, 4), (8, 8), (6, 10))
TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}


def _text(sections: list[int], **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 56,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": 0,
        "initializer_range": 0.2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": sections},
        **more,
    }


def _qwen2_vl() -> Any:
    vision = {"depth": 3, "embed_dim": 16, "hidden_size": HIDDEN, "num_heads": 2, "patch_size": 14, "mlp_ratio": 2}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(text_config=_text([2, 2, 2]), vision_config={**vision, "initializer_range": 0.2}, **TOKENS)
    )


def _qwen25_vl() -> Any:
    vision = {"depth": 4, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 14}
    windows = {"window_size": 84, "fullatt_block_indexes": [1, 3], "out_hidden_size": HIDDEN, "initializer_range": 0.2}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=_text([2, 2, 2]), vision_config={**vision, **windows}, **TOKENS)
    )


def _qwen3_vl() -> Any:
    vision = {"depth": 4, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 16}
    deep = {"deepstack_visual_indexes": [0, 1, 2], "num_position_embeddings": 64, "out_hidden_size": HIDDEN}
    text = _text([3, 3, 2], head_dim=16)
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text, vision_config={**vision, **deep, "initializer_range": 0.2}, **TOKENS)
    )


class Family(NamedTuple):
    """How a model is made, and the side of its patches in pixels."""

    make: Callable[[], Any]
    patch: int


FAMILIES = {"qwen2_vl": Family(_qwen2_vl, 14), "qwen2_5_vl": Family(_qwen25_vl, 14), "qwen3_vl": Family(_qwen3_vl, 16)}


def make(name: str, seed: int = 0) -> Any:
    """A model of a family; norms and parts that start at zero are random as well, or they would hide mistakes."""
    torch.manual_seed(seed)
    model = FAMILIES[name].make().eval()
    with torch.no_grad():
        for label, weight in model.named_parameters():
            if weight.ndim == 1 and "norm" in label and label.endswith("weight"):
                weight.add_(0.2 * torch.randn_like(weight))
            elif float(weight.abs().max()) == 0:
                weight.copy_(0.2 * torch.randn_like(weight))
    return model


class Asked(NamedTuple):
    """A prompt: the question's ids, and numbers of images in `GRIDS`."""

    question: Sequence[int]
    images: Sequence[int]


#: prompts of one image, of two images with text between, and of another one
ROWS = (Asked((20, 21, 22, 23), (0,)), Asked((30, 31, 32, 33, 34, 35, 36), (1, 2)), Asked((40, 41), (3,)))


def image(name: str, number: int) -> dict[str, Tensor]:
    """What a processor makes of an image."""
    rows, columns = GRIDS[number]
    draw = torch.Generator().manual_seed(100 + number)
    pixels = torch.randn(rows * columns, 3 * 2 * FAMILIES[name].patch ** 2, generator=draw)
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, rows, columns]])}


def batch(name: str, asked: Sequence[Asked]) -> dict[str, Tensor]:
    """Left-padded prompts with their images, as a processor makes them."""
    prompts, images = [], []
    for question, numbers in asked:
        ids = [1, 10, 11]
        for place, number in enumerate(numbers):
            rows, columns = GRIDS[number]
            images.append(image(name, number))
            ids += [*([12, 13] if place else []), START, *[IMAGE] * (rows * columns // 4), END]
        prompts.append([*ids, *question])
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    joined = {key: torch.cat([one[key] for one in images]) for key in images[0]}
    return {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == IMAGE).int(), **joined}


# ------------------------------------------------------------------------------------------------------------- folders

#: of the toy tokenizer, in order; the mini model's vocabulary ends before them
SPECIAL = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|im_start|>", "<|im_end|>")
#: as Qwen's templates are: roles between marks, an image between its own
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: fewest and most pixels of an image: 8 to 40 joined patches of 28 x 28
LIMITS = (8 * 28**2, 40 * 28**2)


def folder(name: str, to: Path, penalty: float | None = None) -> Path:
    """A random model of a family with its processor, as a checkpoint: the mini model's tokenizer with Qwen's marks."""
    marks = {"image_token": SPECIAL[2], "video_token": SPECIAL[3]}
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS, extra_special_tokens=marks)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL))
    model = make(name)
    config = model.config
    config.text_config.vocab_size = max(ids) + 3
    config.text_config.max_position_embeddings = 4096
    config.image_token_id, config.video_token_id = ids[2], ids[3]
    config.vision_start_token_id, config.vision_end_token_id = ids[0], ids[1]
    torch.manual_seed(1)
    model = type(model)(config).eval()
    model.save_pretrained(to)
    image = Qwen2VLImageProcessor(
        patch_size=FAMILIES[name].patch, size={"shortest_edge": LIMITS[0], "longest_edge": LIMITS[1]}
    )
    video = (Qwen3VLVideoProcessor if name == "qwen3_vl" else Qwen2VLVideoProcessor)()
    processor = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor, "qwen3_vl": Qwen3VLProcessor}[name]
    processor(image, tokenizer, video, chat_template=TEMPLATE).save_pretrained(to)
    said = {"eos_token_id": [ids[5]], **({} if penalty is None else {"repetition_penalty": penalty})}
    (to / "generation_config.json").write_text(json.dumps(said))
    return to
