"""InternVL as transformers has it: an image is cut into tiles by its aspect ratio, and the tower runs on each tile.

The tiles are a grid of at most 12, row by row, and behind them the whole image shrunk to one tile, where there are
several. The projector joins 2 x 2 patches into one visual token. The decoder gets the tokens of all tiles one tile
after the other, between a token in front of the image and one behind it.

The model is told the pixels of all tiles of a batch in a row, and never which tile is whose. So the number of an
image's tiles is a fact of the processor where features are made, and is read off the image's tokens in the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from math import isqrt
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import InternVLConfig, InternVLVisionConfig, Qwen2Config
from transformers.modeling_outputs import BaseModelOutputWithPooling

# of the processor that needs no torchvision, which a GPU check does not have
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from harness.core.errors import PrunebenchError
from harness.core.shape import Grid, ImageShape, PromptShape, Size, VisionShape
from harness.method import TowerLook
from harness.method.fits import PER_IMAGE
from harness.models.adapters.base import ROWS, Adapter, Features, TowerAttention
from harness.models.adapters.internvl_requirements import INTERNVL, JOINED, TYPES, square
from harness.models.adapters.tiles import of_prompts

#: the processor's output that says how many tiles each image has, the whole one counted
TILES = "num_patches"
#: of a prefill, (b, n) bool: the columns of image tokens
VISUAL = "visual"
#: tiles of an image beside the whole one, as InternVL's own evaluation and lmms-eval cut it
FEWEST, MOST = 1, 12


def tiles_at(image_processor: Any, tile: int, size: Size) -> int:
    """Tiles of an image of this size, the whole one counted, as an image processor cuts it into tiles of `tile` pixels
    a side."""
    columns, rows = get_optimal_tiled_canvas(
        size, (tile, tile), image_processor.min_patches, image_processor.max_patches
    )
    return with_whole(columns * rows)


def with_whole(tiles: int) -> int:
    """All tiles of an image that is cut into `tiles`: one more, the whole image, where there are several."""
    return tiles + (tiles > 1)


def joined(values: Tensor) -> Tensor:
    """(..., patches / 4): the mean of values (..., patches) over the 2 x 2 patches of each visual token of a tile."""
    side = isqrt(values.shape[-1]) // JOINED
    return values.view(*values.shape[:-1], side, JOINED, side, JOINED).mean((-3, -1)).flatten(-2)


class InternVLAdapter(Adapter):
    """`InternVLForConditionalGeneration`: every tile is a square grid of visual tokens."""

    title, checkpoint = "InternVL", "internvl3-8b"
    architectures = ("InternVLForConditionalGeneration",)
    types = TYPES
    requirements = INTERNVL
    image_facts = (TILES,)
    one_size = False
    several_images = True
    own_template = True
    limits = ("min_patches", "max_patches")
    # the image processor alone, as checkpoints' files have it, cuts nothing; their processor has it cut
    processor_settings: ClassVar[Mapping[str, Any]] = MappingProxyType({"crop_to_patches": True})

    # ------------------------------------------------------------------------------------------------------------ tower

    @property
    def tower(self) -> nn.Module:
        tower: nn.Module = self.model.model.vision_tower
        return tower

    @property
    def tower_layers(self) -> list[nn.Module]:
        return list(self.model.model.vision_tower.encoder.layer)

    @property
    def tower_prefix(self) -> int:
        return 1

    def tower_attention(self, layer: Any) -> TowerAttention:
        attention = layer.attention
        # behind the norms of queries and keys, which hand on what they get in a tower without `use_qk_norm`
        return TowerAttention(attention.q_norm, attention.k_norm, attention.num_heads, attention.scale)

    def per_image(self, what: str, values: Tensor, facts: Mapping[str, Any]) -> list[Tensor]:
        """The mean over the 2 x 2 patches of each visual token; [CLS] of the whole image, which is the last tile.

        No official code says what a row of [CLS] is on joined patches. Without facts of images, as in `generate`, each
        tile is an entry of its own, which `by_image` joins.
        """
        images = self.per_tile(what, values, facts)
        return [image[-1:] for image in images] if what in PER_IMAGE else images

    def per_tile(self, what: str, values: Tensor, facts: Mapping[str, Any]) -> list[Tensor]:
        values, axis = (joined(values), -1) if what in ROWS else (values, 0)
        tiles = [1] * len(values) if facts.get(TILES) is None else self._counts(facts, len(values))
        return [torch.cat(mine.unbind(), axis) for mine in torch.split(values, tiles)]

    def by_image(
        self, seen: Sequence[Mapping[TowerLook, Tensor]], images: Sequence[ImageShape]
    ) -> Sequence[Mapping[TowerLook, Tensor]]:
        tiles = [image.vision.tiles for image in images]
        if len(seen) != sum(tiles):  # of images already
            return seen
        left, found = iter(seen), []
        for n in tiles:
            mine = [next(left) for _ in range(n)]
            image = {}
            for look in mine[0]:
                parts = [tile[look] for tile in mine]
                whole = look.what in PER_IMAGE and not look.tiles
                image[look] = parts[-1] if whole else torch.cat(parts, -1 if look.what in ROWS else 0)
            found.append(image)
        return found

    def on_images(self, told: Callable[[Mapping[str, Any]], None]) -> Callable[[], None]:
        return lambda: None  # the model's own call is not told of images

    # ----------------------------------------------------------------------------------------------------------- images

    def encode(self, **inputs: Any) -> list[Features]:
        if inputs.get(TILES) is None:
            raise PrunebenchError(
                f"{type(self.model).__name__}: expected {TILES} of the image processor beside pixel_values, found none"
            )
        core: Any = self.core
        tiles: Tensor = core.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True).pooler_output
        images = torch.split(tiles, self._counts(inputs, len(tiles)))
        return [self.featured(image.flatten(0, 1), number, inputs) for number, image in enumerate(images)]

    def _counts(self, facts: Mapping[str, Any], n: int) -> list[int]:
        """Tiles of each image of `n` tiles. Raises PrunebenchError where they are not all of them."""
        counts = [int(count) for count in torch.as_tensor(facts[TILES]).tolist()]
        if sum(counts) != n or min(counts, default=1) < 1:
            raise PrunebenchError(
                f"{type(self.model).__name__}: expected {TILES} of {n} tiles in all, as pixel_values has, found"
                f" {counts}: give both as the image processor made them"
            )
        return counts

    def outputs(self, images: Sequence[Features]) -> dict[str, Any]:
        # one tensor for all images; the model puts its rows into the image tokens of the batch in order
        pooled = torch.cat([image.pooled for image in images])[None]
        return {"image": BaseModelOutputWithPooling(pooler_output=pooled)}

    def inputs(self, images: Sequence[Features], ids: Tensor) -> dict[str, Any]:
        return {"mm_encoder_outputs": self.outputs(images)}

    def checked(self, facts: Mapping[str, Any], ids: Tensor, positions: Tensor, visual: Tensor) -> Mapping[str, Any]:
        text = self.text.config
        kind = (text.rope_parameters or {}).get("rope_type")
        if kind == "dynamic" and ids.shape[1] > text.max_position_embeddings:
            raise PrunebenchError(
                f"{type(self.model).__name__}: expected a prompt of at most {text.max_position_embeddings:,} tokens, up"
                f" to which its rotary positions do not depend on the prompt's length, found {ids.shape[1]:,}"
            )
        return {**facts, VISUAL: visual}

    def images(self, counts: Sequence[int], facts: Mapping[str, Any]) -> list[tuple[ImageShape, ...]]:
        """Images by their tiles, or by the rows of image tokens of a prefill: each image has text around it."""
        config = self.model.config
        if facts.get(TILES) is not None:
            tiles = [int(n) for n in torch.as_tensor(facts[TILES]).tolist()]
        else:
            each = self._tile(config).tokens
            tiles = [_tiles_of(n, each) for n in _rows(facts[VISUAL])]
        return of_prompts(counts, [self.shape_of_tiles(config, n) for n in tiles])

    # ------------------------------------------------------------------------------------------------------------ sizes

    @staticmethod
    def _tile(config: Any) -> Grid:
        vision = config.vision_config
        side = square(vision.image_size) // square(vision.patch_size) // JOINED
        return Grid(side, side)

    @classmethod
    def shape_of_tiles(cls, config: Any, tiles: int) -> ImageShape:
        """An image of so many tiles, the whole one counted."""
        vision, grid = config.vision_config, cls._tile(config)
        tower = VisionShape(
            layers_used=vision.num_hidden_layers,
            hidden=vision.hidden_size,
            mlp=vision.intermediate_size,
            tokens=grid.tokens * JOINED**2 + 1,
            patch_inputs=3 * square(vision.patch_size) ** 2,
            projector_hidden=config.text_config.hidden_size,
            heads=vision.num_attention_heads,
            tiles=tiles,
            merge=JOINED**2,
        )
        return ImageShape((grid,) * tiles, tower)

    @classmethod
    def image_of(cls, config: Any) -> ImageShape:
        return cls.largest(config, cls.usual_processor(config))

    @classmethod
    def largest(cls, config: Any, processor: Any) -> ImageShape:
        return cls.shape_of_tiles(config, with_whole(processor.image_processor.max_patches))

    @classmethod
    def _tiles_at(cls, config: Any, processor: Any, size: Size) -> int:
        return tiles_at(processor.image_processor, square(config.vision_config.image_size), size)

    @classmethod
    def image_at(cls, config: Any, processor: Any, size: Size) -> ImageShape:
        return cls.shape_of_tiles(config, cls._tiles_at(config, processor, size))

    @classmethod
    def tokens_at(cls, config: Any, processor: Any, size: Size) -> int:
        return cls._tiles_at(config, processor, size) * cls._tile(config).tokens

    @classmethod
    def usual_processor(cls, config: Any) -> Any:
        return SimpleNamespace(image_processor=SimpleNamespace(min_patches=FEWEST, max_patches=MOST))

    @classmethod
    def placeholders(cls, processor: Any, token: int, image: ImageShape) -> list[int]:
        return [processor.start_image_token_id, *[token] * image.tokens, processor.end_image_token_id]

    @classmethod
    def facts_of(cls, config: Any) -> Mapping[str, Tensor]:
        return {TILES: torch.tensor([cls.image_of(config).vision.tiles])}

    @classmethod
    def facts_at(cls, config: Any, processor: Any, size: Size) -> dict[str, Tensor]:
        return {TILES: torch.tensor([cls._tiles_at(config, processor, size)])}

    @classmethod
    def pixels_of(cls, config: Any) -> tuple[int, ...]:
        return cls._pixels(config, cls.image_of(config).vision.tiles)

    @classmethod
    def pixels_at(cls, config: Any, processor: Any, size: Size) -> tuple[int, ...]:
        return cls._pixels(config, cls._tiles_at(config, processor, size))

    @staticmethod
    def _pixels(config: Any, tiles: int) -> tuple[int, ...]:
        side = square(config.vision_config.image_size)
        return tiles, 3, side, side

    @classmethod
    def sample(cls, config: Any, n: int) -> dict[str, Tensor]:
        made = super().sample(config, n)
        return {**made, "pixel_values": made["pixel_values"].flatten(0, 1)}

    @classmethod
    def shapes_of(cls, config: Any) -> dict[str, tuple[int, ...]]:
        vision, shape = config.vision_config, cls.shape_of(config, 2)
        width, patch = vision.hidden_size, square(vision.patch_size)
        found = {
            **super().shapes_of(config),
            "encoder.layer.0.mlp.fc1.weight": (vision.intermediate_size, width),
            "encoder.layer.0.attention.q_proj.weight": (width, width),
            "patch_embeddings.projection.weight": (width, 3, patch, patch),
            "multi_modal_projector.linear_1.weight": (shape.hidden, width * JOINED**2),
        }
        if vision.use_absolute_position_embeddings:
            found["embeddings.position_embeddings"] = (1, cls._tile(config).tokens * JOINED**2 + 1, width)
        return found

    @classmethod
    def config_of(cls, usual: PromptShape, **text: Any) -> InternVLConfig:
        shape, tower = usual.decoder, usual.images[0].vision
        patch = isqrt(tower.patch_inputs // 3)
        decoder = Qwen2Config(
            vocab_size=shape.vocab,
            hidden_size=shape.hidden,
            intermediate_size=shape.mlp,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            tie_word_embeddings=False,
            **text,
        )
        vision = InternVLVisionConfig(
            hidden_size=tower.hidden,
            intermediate_size=tower.mlp,
            num_hidden_layers=tower.layers_used,
            num_attention_heads=tower.heads,
            attention_bias=True,
            image_size=[patch * isqrt(tower.patches)] * 2,
            patch_size=[patch] * 2,
        )
        return InternVLConfig(
            text_config=decoder,
            vision_config=vision,
            image_token_id=shape.vocab - 1,
            image_seq_length=tower.patches // JOINED**2,
            tie_word_embeddings=False,
        )


def _rows(visual: Tensor) -> list[int]:
    """The lengths of the rows of image tokens of a batch, in order, from its marks (b, n)."""
    return [len(list(run)) for marks in visual.tolist() for marked, run in groupby(marks) if marked]


def _tiles_of(n: int, each: int) -> int:
    """Tiles of an image of `n` tokens in a row, `each` a tile. Raises PrunebenchError where they are no image's."""
    tiles = n // each
    # an image that is cut has two tiles at least, and the whole one
    if tiles * each != n or tiles == 2:
        raise PrunebenchError(
            f"InternVL: expected {each} image tokens in a row for a whole image, or {each} for each of three or more"
            f" tiles, found {n}: keep the tokens that the processor puts around each image"
        )
    return tiles
