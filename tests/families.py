"""Folders of tiny random models of families whose images differ in tokens, and questions on images of four sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import taskdata as tables
import torch
from checkpoints import change, copy
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

from tasks.sources import DataSource

#: (width, height) of images: one of each shape, and one as small as a tile
SIZES = ((100, 60), (60, 100), (130, 130), (40, 40))
TILE = 56
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


def llava_next(to: Path, depth: int = 4, seed: int = 0) -> Path:
    """A random LLaVA-NeXT of 4 x 4 patches a tile, on the mini model's tokenizer and chat template."""
    copy(to)
    (to / "model.safetensors").unlink()
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    text = LlamaConfig(
        **sizes, num_hidden_layers=depth, vocab_size=460, max_position_embeddings=4096, initializer_range=0.2
    )
    vision = CLIPVisionConfig(**sizes, num_hidden_layers=3, image_size=TILE, patch_size=14, initializer_range=0.2)
    config = LlavaNextConfig(
        text_config=text, vision_config=vision, image_token_index=4, image_grid_pinpoints=PINPOINTS
    )
    model = LlavaNextForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.image_newline, std=1.0)
    model.save_pretrained(to)
    change(
        to / "processor_config.json",
        {
            "processor_class": "LlavaNextProcessor",
            "image_processor.image_processor_type": "LlavaNextImageProcessor",
            "image_processor.crop_size": {"height": TILE, "width": TILE},
            "image_processor.size": {"shortest_edge": TILE},
            "image_processor.image_grid_pinpoints": PINPOINTS,
        },
    )
    change(to / "tokenizer_config.json", {"processor_class": "LlavaNextProcessor"})
    return to


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Random colours in cells of 10 pixels."""
    cells = torch.randint(
        256, ((height + 9) // 10, (width + 9) // 10, 3), generator=torch.Generator().manual_seed(seed)
    )
    return Image.fromarray(cells.byte().numpy()).resize((width, height), Image.Resampling.NEAREST)


def pope(folder: Path, n: int = 8, sizes: Sequence[tuple[int, int]] = SIZES, first: int = 0) -> DataSource:
    """`n` questions of POPE on images of `sizes` by turns, two on each image; images are counted from `first`."""
    table = tables.rows("pope", n)
    images = [picture(*sizes[i // 2 % len(sizes)], seed=first + i // 2) for i in range(n)]
    held = [{"bytes": tables.encoded(image), "path": "a.png"} for image in images]
    words = [
        "Is there a star?",
        "Is there a red circle in the image at all?",
        "Is it blue?",
        "Is the sky green or grey?",
    ]

    table = tables.changed(table, "image", pa.array(held, tables.IMAGE))
    table = tables.changed(table, "question", pa.array([words[i % 4] for i in range(n)]))
    table = tables.changed(table, "image_source", pa.array([f"i{first + i // 2}" for i in range(n)]))
    return tables.write(folder, "pope", [table])
