"""LLaVA-OneVision: `LlavaOnevisionForConditionalGeneration`, LLaVA-NeXT's way of cutting on a SigLIP tower.

An image that is alone in its prompt is an overview and the tiles of the best of 36 resolutions, as in LLaVA-NeXT; the
raster of the tiles is shrunk where it is larger than that of nine. Each image of a prompt of several is padded to a
square and not cut: its patches, and one newline. `batch_num_images`, the images of each prompt, says so to the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaOnevisionConfig, Qwen2Config

from harness.core.errors import PrunebenchError
from harness.core.shape import Grid, ImageShape, PromptShape, Size
from harness.models.adapters.anyres import NEWLINE, largest_size, most_tiles, raster_of, resampled
from harness.models.adapters.base import ROWS, Adapter, Features
from harness.models.adapters.llava import DECODERS, PROJECTED, part
from harness.models.adapters.llava_next import PINPOINTS, LlavaNextAdapter
from harness.models.adapters.siglip import MODEL_TYPE, SIGLIP, SiglipTower, tower_config, tower_shapes, vision_shape
from harness.models.adapters.tiles import of_prompts, sizes_of
from harness.models.requirements import DECODER, Requirement, one_of

#: images of each prompt, as processor and model name it
NUMBERS = "batch_num_images"
#: what stands there for an image that was made for a prompt of several, whatever their number
SEVERAL = 2


def _aspect(config: Any) -> str | None:
    most_tiles(config.vision_aspect_ratio)
    return None


def _tokens(config: Any) -> str | None:
    vocabulary, tokens = config.text_config.vocab_size, (config.image_token_id, config.video_token_id)
    fit = all(type(token) is int and 0 <= token < vocabulary for token in tokens) and tokens[0] != tokens[1]
    return None if fit else f"{tokens[0]!r} and {tokens[1]!r} in a vocabulary of {vocabulary}"


class LlavaOnevisionAdapter(SiglipTower, LlavaNextAdapter):
    """An image is the overview and a raster with a newline behind each row; or, among others, patches and a newline."""

    title, checkpoint = "LLaVA-OneVision", "llava-onevision-qwen2-7b-ov"
    architectures = ("LlavaOnevisionForConditionalGeneration",)
    proven = ()
    config_class = LlavaOnevisionConfig
    types = (
        one_of("model_type", ("llava_onevision",)),
        part("text_config", DECODERS, "qwen2"),
        part("vision_config", (MODEL_TYPE,), MODEL_TYPE),
    )
    requirements = (
        *DECODER,
        *SIGLIP,
        *PROJECTED,
        one_of("vision_feature_select_strategy", ("full",), " (all patches of a tower without [CLS])"),
        PINPOINTS,
        Requirement("vision_aspect_ratio anyres_max_ and a number of tiles", _aspect),
        Requirement("image and video tokens of the vocabulary", _tokens),
        one_of("use_image_newline_parameter", (None, True)),
    )
    image_facts = ("image_sizes", NUMBERS)
    several_images = True

    # ------------------------------------------------------------------------------------------------------------ sizes

    @classmethod
    def among(cls, n_images: int) -> type[Adapter]:
        return LlavaOnevisionAdapter if n_images == 1 else UncutOnevision

    @classmethod
    def shape_at(cls, config: Any, size: Size) -> ImageShape:
        cut = cls.cut(config, size)
        raster = raster_of(cut, most_tiles(config.vision_aspect_ratio))
        vision = vision_shape(config.vision_config, config.text_config.hidden_size, cut.tiles, resampled=True)
        return ImageShape((Grid(cut.side, cut.side), raster), vision, (cut.rows, cut.cols))

    @classmethod
    def tokens_at(cls, config: Any, processor: Any, size: Size) -> int:
        cut = cls.cut(config, size)
        return cut.side**2 + raster_of(cut, most_tiles(config.vision_aspect_ratio)).tokens

    @classmethod
    def facts_of(cls, config: Any) -> Mapping[str, Tensor]:
        vision = config.vision_config
        resolutions = tuple((height, width) for height, width in config.image_grid_pinpoints)
        side, most = vision.image_size // vision.patch_size, most_tiles(config.vision_aspect_ratio)
        return cls.facts_at(config, None, largest_size(resolutions, vision.image_size, side, most))

    @classmethod
    def facts_at(cls, config: Any, processor: Any, size: Size) -> dict[str, Tensor]:
        return {"image_sizes": torch.tensor([size]), NUMBERS: torch.tensor([1])}

    @classmethod
    def shapes_of(cls, config: Any) -> dict[str, tuple[int, ...]]:
        return {**super().shapes_of(config), **tower_shapes(config.vision_config)}

    @classmethod
    def config_of(cls, usual: PromptShape, *, image_token_id: int | None = None, **text: Any) -> Any:
        """LLaVA-OneVision's configuration at these sizes: the last tower layer, all patches. `text` goes to the
        decoder's configuration. The default of `image_token_id` is as LLaVA's; the video token is the next one."""
        shape, image = usual.decoder, usual.images[0]
        token = shape.vocab - 64 if image_token_id is None else image_token_id
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
        return cls.config_class(
            text_config=decoder,
            vision_config=tower_config(image.vision, image.views[0].rows),
            image_token_index=token,
            video_token_index=token + 1,
            vision_feature_layer=-1,
            tie_word_embeddings=False,
        )

    # ----------------------------------------------------------------------------------------------------------- images

    def checked(self, facts: Mapping[str, Any], ids: Tensor, positions: Tensor, visual: Tensor) -> Mapping[str, Any]:
        if bool((ids == self.model.config.video_token_id).any()):
            raise PrunebenchError(
                f"{type(self.model).__name__}: expected images, found a video token in the prompt: videos are not"
                " supported"
            )
        return facts

    def encode(self, **inputs: Any) -> list[Features]:
        """As the base's. `batch_num_images` has the number of each prompt's images, as the processor makes it, or a row
        an image, as `Features.facts` has it."""
        alone_of(inputs)
        return super().encode(**inputs)

    def featured(
        self, pooled: Tensor, image: int, inputs: Mapping[str, Any], deepstack: tuple[Tensor, ...] = ()
    ) -> Features:
        size = torch.as_tensor(inputs["image_sizes"])[image : image + 1]
        number = torch.tensor([1 if alone_of(inputs)[image] else SEVERAL], device=size.device)
        return Features(pooled, deepstack, {"image_sizes": size, NUMBERS: number})

    def inputs(self, images: Sequence[Features], ids: Tensor) -> dict[str, Any]:
        given = super().inputs(images, ids)
        counts = (ids == self.image_token_ids[0]).sum(1).tolist()
        numbers = numbers_of(counts, [len(image.pooled) for image in images], given[NUMBERS].tolist())
        return {**given, NUMBERS: torch.tensor(numbers, device=ids.device)}

    def images(self, counts: Sequence[int], facts: Mapping[str, Any]) -> list[tuple[ImageShape, ...]]:
        config, shapes = self.model.config, []
        for size, alone in zip(sizes_of(facts), alone_of(facts), strict=True):
            shapes.append((LlavaOnevisionAdapter if alone else UncutOnevision).shape_at(config, size))
        return of_prompts(counts, shapes)

    def per_image(self, what: str, values: Tensor, facts: Mapping[str, Any]) -> list[Tensor]:
        """A look in the order of the language model's tokens; where the model shrinks a raster, resampled as it is."""
        rows, config, found = what in ROWS, self.model.config, []
        most = most_tiles(config.vision_aspect_ratio)
        for patches, size, alone in zip(
            self.per_tile(what, values, facts), sizes_of(facts), alone_of(facts), strict=True
        ):
            flat = patches if rows else patches.T
            if alone:
                cut = self.cut(config, size)
                flat = resampled(flat, cut, raster_of(cut, most))
            else:
                flat = torch.nn.functional.pad(flat, (0, NEWLINE.tokens))
            found.append(flat if rows else flat.T)
        return found

    def per_tile(self, what: str, values: Tensor, facts: Mapping[str, Any]) -> list[Tensor]:
        pairs = zip(sizes_of(facts), alone_of(facts), strict=True)
        tiles = [self.cut(self.model.config, size).tiles if alone else 1 for size, alone in pairs]
        return [torch.cat(mine.unbind(), -1 if what in ROWS else 0) for mine in torch.split(values, tiles)]


class UncutOnevision(LlavaOnevisionAdapter):
    """What LLaVA-OneVision makes of an image of a prompt of several: padded to a square, and one newline behind its
    patches."""

    @classmethod
    def shape_at(cls, config: Any, size: Size) -> ImageShape:
        vision, side = config.vision_config, config.vision_config.image_size // config.vision_config.patch_size
        tower = vision_shape(vision, config.text_config.hidden_size, resampled=True)
        return ImageShape((Grid(side, side), NEWLINE), tower)

    @classmethod
    def tokens_at(cls, config: Any, processor: Any, size: Size) -> int:
        return cls.shape_at(config, size).tokens

    @classmethod
    def facts_at(cls, config: Any, processor: Any, size: Size) -> dict[str, Tensor]:
        return {"image_sizes": torch.tensor([size]), NUMBERS: torch.tensor([SEVERAL])}

    @classmethod
    def processed(cls, processor: Any, image: Any) -> Mapping[str, Any]:
        # images that stand in one list belong to one prompt; each is made by itself
        made = processor.image_processor(images=[[image, Image.new("RGB", (1, 1))]], return_tensors="pt")
        return {
            "pixel_values": made["pixel_values"][:1],
            "image_sizes": made["image_sizes"][:1],
            NUMBERS: torch.tensor([SEVERAL]),
        }


def alone_of(facts: Mapping[str, Any]) -> list[bool]:
    """Of each image: is it alone in its prompt, and thus cut? Without `batch_num_images` all are, as the model has it.

    Raises PrunebenchError where neither prompts nor images have a number each.
    """
    n, given = len(sizes_of(facts)), facts.get(NUMBERS)
    if given is None:
        return [True] * n
    numbers = [int(number) for number in torch.as_tensor(given).flatten().tolist()]
    if sum(numbers) == n and min(numbers, default=1) > 0:
        return [number == 1 for number in numbers for _ in range(number)]
    alone = [number == 1 for number in numbers]
    # a row an image; the model reads such rows in turn, so that it takes all of them for the same
    if len(numbers) == n and len({*alone}) == 1 and min(numbers) > 0:
        return alone
    raise PrunebenchError(
        f"expected {NUMBERS}, the number of each prompt's images, of {n} images in all, found {numbers}: give the model"
        " what its processor made of a list of images a prompt"
    )


def numbers_of(counts: Sequence[int], lengths: Sequence[int], marks: Sequence[int]) -> list[int]:
    """`batch_num_images` of prompts with `counts` image tokens, whose images in order have `lengths` tokens.

    `marks`: 1 for an image that was cut, `SEVERAL` for one that was not. A prompt of several images that were cut is to
    the model as many prompts of one. Raises PrunebenchError where tokens are no whole images, or where a prompt has
    images of both kinds.
    """
    numbers: list[int] = []
    left = list(zip(lengths, marks, strict=True))
    for n in counts:
        mine: list[int] = []
        rest = n
        while left and rest > 0:
            length, mark = left.pop(0)
            rest -= length
            mine.append(mark)
        if rest or len({*mine}) > 1 or mine == [SEVERAL]:
            raise PrunebenchError(
                "expected images that were all made as the only one of their prompt, or all for a prompt of several"
                f" ({NUMBERS}), found {len(mine)} image(s), {mine.count(1)} made as the only one, for a prompt of {n}"
                " image tokens: make features of what the processor makes of the whole prompt"
            )
        numbers += mine if 1 in mine else [len(mine)] * bool(mine)
    if left:
        raise PrunebenchError(
            f"expected the images of prompts with {sum(counts)} image tokens, found {len(left)} image(s) more: give the"
            " features of these prompts alone"
        )
    return numbers
