"""Idefics3 and SmolVLM: `Idefics3ForConditionalGeneration` and `SmolVLMForConditionalGeneration`, a SigLIP tower on
tiles, a pixel shuffle that joins neighbouring patches, and a Llama-like decoder.

An image is cut into rows of tiles, and the whole image shrunk to one tile, the overview, comes last. Text stands
between the tiles. No input of the model says how an image is cut. Features that the engine makes carry the cut; without
them the cut is read off the text between the tiles. To the model, a frame of a video is an image of one tile.

A processor makes whole tiles, so the tower's mask of padding is not asked for. Tiles of zeros, which pad a batch, are
left out by the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isqrt
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Idefics3Config, LlamaConfig, SmolVLMConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from harness.core.errors import PrunebenchError
from harness.core.shape import ImageShape, PromptShape, Size
from harness.models.adapters.base import Adapter, Features, TowerAttention
from harness.models.adapters.idefics_frames import FENCE, OVERVIEW, Cut, cuts_of, frame
from harness.models.adapters.idefics_requirements import REQUIREMENTS, misfit
from harness.models.adapters.idefics_sizes import USUAL, cut_at, image_shape, tile_side
from harness.models.adapters.llava import DECODERS, part
from harness.models.adapters.tiles import of_prompts
from harness.models.requirements import one_of

#: our fact of an image: (rows, cols) of its tiles beside the overview
CUTS = "image_cuts"
#: of a prefill without that fact: what the cuts are read from
SPELT = "image_text"


class IdeficsAdapter(Adapter):
    """What both have: an image is a grid of patches for each tile, and one for the overview behind them."""

    title, checkpoint = "Idefics3/SmolVLM", "idefics3-8b-llama3"
    config_class: ClassVar[type[Any]]
    requirements = REQUIREMENTS
    image_facts = (CUTS,)
    one_size = False
    several_images = True
    framed = True
    own_template = True

    @property
    def text(self) -> Any:
        return self.model.model.text_model

    @property
    def tower(self) -> nn.Module:
        tower: nn.Module = self.model.model.vision_model
        return tower

    @property
    def tower_layers(self) -> list[nn.Module]:
        return list(self.model.model.vision_model.encoder.layers)

    def tower_attention(self, layer: Any) -> TowerAttention:
        attention = layer.self_attn
        return TowerAttention(attention.q_proj, attention.k_proj, attention.num_heads, attention.scale)

    # ----------------------------------------------------------------------------------------------------------- images

    def encode(self, **inputs: Any) -> list[Features]:
        """One entry an image where each stands in a row of its own, as the engine gives them; else one a prompt."""
        core: Any = self.core
        given = {name: value for name, value in inputs.items() if name != CUTS}
        found = core.get_image_features(**given, return_dict=True).pooler_output
        if isinstance(found, Tensor):  # (tiles, tokens, hidden), as transformers 5.19 has all rows in one
            found = [tiles.flatten(0, 1) for tiles in torch.split(found, _tiles_in(inputs["pixel_values"]).tolist())]
        return [self.featured(pooled, image, inputs) for image, pooled in enumerate(found)]

    def featured(
        self, pooled: Tensor, image: int, inputs: Mapping[str, Any], deepstack: tuple[Tensor, ...] = ()
    ) -> Features:
        cuts = inputs.get(CUTS)
        return Features(pooled, deepstack, {} if cuts is None else {CUTS: cuts[image : image + 1]})

    def inputs(self, images: Sequence[Features], ids: Tensor) -> dict[str, Any]:
        known = [image.facts[CUTS] for image in images if CUTS in image.facts]
        cuts = {CUTS: torch.cat(known)} if len(known) == len(images) else {}
        return {"mm_encoder_outputs": self.outputs(images), **cuts}

    def outputs(self, images: Sequence[Features]) -> dict[str, Any]:
        # tile by tile in one tensor, which every version takes; transformers 5.19 takes no list
        rows, tokens = torch.cat([image.pooled for image in images]), tile_side(self.model.config) ** 2
        # the prefill refuses tokens that are no whole tiles
        tiles = rows.view(-1, tokens if len(rows) % tokens == 0 else len(rows), rows.shape[-1])
        return {"image": BaseModelOutputWithPooling(pooler_output=tiles)}

    def on_images(self, told: Callable[[Mapping[str, Any]], None]) -> Callable[[], None]:
        """Tells the number of tiles of each row of pixels, (rows,), for the arguments do not say how they are cut."""
        return super().on_images(lambda given: told({CUTS: _tiles_in(given["pixel_values"])}))

    def checked(self, facts: Mapping[str, Any], ids: Tensor, positions: Tensor, visual: Tensor) -> Mapping[str, Any]:
        return {**facts, SPELT: (ids, visual)}

    def images(self, counts: Sequence[int], facts: Mapping[str, Any]) -> list[tuple[ImageShape, ...]]:
        config, cuts = self.model.config, facts.get(CUTS)
        if cuts is not None and cuts.ndim == 2:
            found = [(int(rows), int(cols)) for rows, cols in cuts.tolist()]
        else:
            ids, visual = facts[SPELT]
            found = cuts_of(ids, visual, tile_side(config) ** 2, type(self.model).__name__)
        return of_prompts(counts, [image_shape(config, cut) for cut in found])

    def per_image(self, what: str, values: Tensor, facts: Mapping[str, Any]) -> list[Tensor]:
        scale, config = self.model.config.scale_factor, self.model.config.vision_config
        side = config.image_size // config.patch_size // scale
        # a visual token is a block of patches; other looks than rows there are not, for patches are joined
        blocks = values.view(*values.shape[:-1], side, scale, side, scale).mean((-3, -1)).flatten(-2)
        cuts = facts[CUTS]
        tiles = cuts if cuts.ndim == 1 else cuts.prod(1) + 1
        return [torch.cat(mine.unbind(), -1) for mine in torch.split(blocks, tiles.tolist())]

    # ------------------------------------------------------------------------------------------------------------ sizes

    @classmethod
    def frame(cls, image: ImageShape) -> Sequence[tuple[str, ...]]:
        return frame(image.cut)

    @classmethod
    def spelling(cls, mark: str, processor: Any) -> str:
        # the class of each family has another name for the overview's
        tags = (getattr(processor, name, None) for name in ("global_image_token", "global_image_tag"))
        own = {FENCE: processor.fake_image_token, OVERVIEW: next(filter(None, tags), OVERVIEW)}
        return str(own.get(mark, mark))

    @classmethod
    def misfit(cls, processor: Any, config: Any) -> str | None:
        return misfit(processor, config)

    @classmethod
    def shape_at(cls, config: Any, cut: Cut) -> ImageShape:
        """An image that is cut so."""
        return image_shape(config, cut)

    @classmethod
    def image_of(cls, config: Any) -> ImageShape:
        return image_shape(config, (USUAL, USUAL))

    @classmethod
    def largest(cls, config: Any, processor: Any) -> ImageShape:
        # no shape has more tiles than a square
        return image_shape(config, cut_at(processor.image_processor, (1, 1)))

    @classmethod
    def image_at(cls, config: Any, processor: Any, size: Size) -> ImageShape:
        return image_shape(config, cut_at(processor.image_processor, size))

    @classmethod
    def tokens_at(cls, config: Any, processor: Any, size: Size) -> int:
        rows, cols = cut_at(processor.image_processor, size)
        return (rows * cols + 1) * tile_side(config) ** 2

    @classmethod
    def usual_processor(cls, config: Any) -> Any:
        side = config.vision_config.image_size
        settings = {
            "do_image_splitting": True,
            "size": {"longest_edge": USUAL * side},
            "max_image_size": {"longest_edge": side},
        }
        return SimpleNamespace(image_processor=SimpleNamespace(**settings))

    @classmethod
    def facts_of(cls, config: Any) -> Mapping[str, Tensor]:
        return {CUTS: torch.tensor([[USUAL, USUAL]])}

    @classmethod
    def facts_at(cls, config: Any, processor: Any, size: Size) -> dict[str, Tensor]:
        return {CUTS: torch.tensor([cut_at(processor.image_processor, size)])}

    @classmethod
    def facts_made(cls, made: Mapping[str, Any], config: Any, processor: Any, size: Size) -> dict[str, Tensor]:
        expected, found = cls.pixels_at(config, processor, size), tuple(made["pixel_values"].shape)
        if expected != found:
            raise PrunebenchError(
                f"expected {expected[1]} tiles of an image of {size[1]} x {size[0]} pixels, found pixels of {found}:"
                " use the transformers release that prunebench was tested with"
            )
        return cls.facts_at(config, processor, size)

    @classmethod
    def pixels_of(cls, config: Any) -> tuple[int, ...]:
        side = int(config.vision_config.image_size)
        return cls.image_of(config).vision.tiles, 3, side, side

    @classmethod
    def pixels_at(cls, config: Any, processor: Any, size: Size) -> tuple[int, ...]:
        side = int(config.vision_config.image_size)
        return 1, cls.image_at(config, processor, size).vision.tiles, 3, side, side

    @classmethod
    def shapes_of(cls, config: Any) -> dict[str, tuple[int, ...]]:
        vision, joined = config.vision_config, config.vision_config.hidden_size * config.scale_factor**2
        return {
            **super().shapes_of(config),
            "encoder.layers.0.mlp.fc1.weight": (vision.intermediate_size, vision.hidden_size),
            "encoder.layers.0.self_attn.q_proj.weight": (vision.hidden_size, vision.hidden_size),
            "patch_embedding.weight": (vision.hidden_size, 3, vision.patch_size, vision.patch_size),
            "position_embedding.weight": ((vision.image_size // vision.patch_size) ** 2, vision.hidden_size),
            "modality_projection.proj.weight": (config.text_config.hidden_size, joined),
        }

    @classmethod
    def config_of(cls, usual: PromptShape, **text: Any) -> Any:
        shape, vision = usual.decoder, usual.images[0].vision
        patch = isqrt(vision.patch_inputs // 3)
        given = {"max_position_embeddings": 16384, "rms_norm_eps": 1e-5, **text}
        decoder = LlamaConfig(
            vocab_size=shape.vocab,
            hidden_size=shape.hidden,
            intermediate_size=shape.mlp,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            tie_word_embeddings=False,
            **given,
        )
        tower = {
            "hidden_size": vision.hidden,
            "intermediate_size": vision.mlp,
            "num_hidden_layers": vision.layers_used,
            "num_attention_heads": vision.heads,
            "image_size": patch * isqrt(vision.patches),
            "patch_size": patch,
        }
        return cls.config_class(
            text_config=decoder,
            vision_config=tower,
            scale_factor=isqrt(vision.merge),
            image_token_id=shape.vocab - 1,
            tie_word_embeddings=False,
        )


class Idefics3Adapter(IdeficsAdapter):
    """`Idefics3ForConditionalGeneration`, which SmolVLM's first generation is as well."""

    architectures = ("Idefics3ForConditionalGeneration",)
    config_class = Idefics3Config
    types = (one_of("model_type", ("idefics3",)), part("text_config", DECODERS, "llama"))


class SmolVLMAdapter(IdeficsAdapter):
    """`SmolVLMForConditionalGeneration`, SmolVLM2: the same layers under names of their own."""

    architectures = ("SmolVLMForConditionalGeneration",)
    config_class = SmolVLMConfig
    types = (one_of("model_type", ("smolvlm",)), part("text_config", DECODERS, "llama"))
    packages = ("num2words",)


def _tiles_in(pixels: Tensor) -> Tensor:
    """(rows,): the tiles of `pixels (rows, tiles, 3, h, w)` that are no padding, as the model tells them."""
    return (pixels != 0).flatten(2).any(2).sum(1).clamp(min=1)
