"""What the engine asks of a model family. One file per family implements it, and no other module spells class names or
attribute paths.

A family that lays its modules out as LLaVA does overrides little: `core`, `text`, `tower` and `layers` name modules
that are hooked, `positions` and `rotary` speak of places of tokens, `encode` and `outputs` carry an image's features,
`images` says which grids they form, `image_at` the same of an image that is known by its size alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from math import prod
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from harness.core.errors import PrunebenchError
from harness.core.shape import ImageShape, ModelShape, PromptShape, Size
from harness.method import TowerLook
from harness.models.requirements import DECODER, Requirement

#: kinds of looks at the tower that hold one number a patch and head
ROWS = ("cls_row", "column_sums", "whole_column_sums", "twice_rotated_sums")


class TowerAttention(NamedTuple):
    """The parts of a tower layer's attention from which a softmax row follows."""

    #: the modules that put out queries and keys, each (b, tokens, heads x d)
    q_proj: nn.Module
    k_proj: nn.Module
    heads: int
    scaling: float


class Features(NamedTuple):
    """One image as the language model gets it: `pooled (v, hidden)`, and DeepStack's features.

    `deepstack`: (v, hidden) for each early decoder layer behind which the model adds features to the image's tokens.
    `facts`: this image's row, (1, ...), of each of the family's `image_facts`.
    """

    pooled: Tensor
    deepstack: tuple[Tensor, ...] = ()
    facts: Mapping[str, Tensor] = MappingProxyType({})

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.pooled, *self.deepstack, *self.facts.values()))


@dataclass(frozen=True)
class Adapter(ABC):
    """A loaded model of one family. `model` is the transformers object; sizes that need no weights are class methods on
    its config."""

    model: Any

    #: the family's name for people, and our name for a published checkpoint of it, whose sizes are known
    title: ClassVar[str] = ""
    checkpoint: ClassVar[str] = ""
    #: class names of transformers that this adapter is for
    architectures: ClassVar[tuple[str, ...]] = ()
    #: what config.json, a dict, must say before transformers reads it
    types: ClassVar[tuple[Requirement, ...]] = ()
    #: what a model config must say for the engine to compute the model and for its costs to be exact
    requirements: ClassVar[tuple[Requirement, ...]] = DECODER
    #: axes of the decoder's rotary positions: 1, or 3 for M-RoPE
    axes: ClassVar[int] = 1
    #: names of processor outputs, one row an image, that say how it was cut; they go to the model with its features
    image_facts: ClassVar[tuple[str, ...]] = ()
    #: names of methods whose recorded official runs on this family are replayed; None: nothing is said of any
    proven: ClassVar[tuple[str, ...] | None] = ()
    #: the tower runs the patches of all images in one row, in an order of its own, and its projector joins neighbours;
    #: images are resized within limits of pixels, and never padded
    joined: ClassVar[bool] = False
    #: text stands between an image's visual tokens, as `frame` says; images are never padded, and the prompt is the
    #: checkpoint's own
    framed: ClassVar[bool] = False
    #: packages that the family's processor needs beside those of every model
    packages: ClassVar[tuple[str, ...]] = ()
    #: whether every image has the same tokens, whatever its size
    one_size: ClassVar[bool] = True
    #: asked with the checkpoint's own chat template alone, on images as its processor cuts them
    own_template: ClassVar[bool] = False
    #: keys of configs/models/ that limit how the family's processor cuts an image
    limits: ClassVar[tuple[str, ...]] = ()
    #: settings that the family's processor gives its image processor in each call, whatever that one's file says
    processor_settings: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    #: whether the family was trained on prompts of several images; transformers runs them in every family
    several_images: ClassVar[bool] = False

    # ---------------------------------------------------------------------------------------------------------- modules

    @property
    def core(self) -> nn.Module:
        """The module whose forward takes `input_ids` and merges image features."""
        core: nn.Module = self.model.model
        return core

    @property
    def text(self) -> Any:
        """The language model without its head: has `layers`, `norm`, `rotary_emb` and `config`; its forward takes what
        `core` computed."""
        return self.model.model.language_model

    @property
    @abstractmethod
    def tower(self) -> nn.Module:
        """The vision tower; its forward takes pixels as first argument."""

    @property
    @abstractmethod
    def tower_layers(self) -> list[nn.Module]:
        """The tower's encoder layers."""

    @property
    def tower_prefix(self) -> int | None:
        """Tokens of the tower before the patches, the first of them [CLS]; None: no [CLS]."""
        return None

    @abstractmethod
    def tower_attention(self, layer: Any) -> TowerAttention:
        """The attention of one of `tower_layers`. Raises PrunebenchError where no softmax row follows from it."""

    def watch_attention(
        self, layer: Any, give: Callable[[Tensor, Tensor, list[int]], None], turns: int = 1
    ) -> list[Any]:
        """Of a tower that is `joined`: hooks on one of `tower_layers` that call `give(q, k, parts)` in each pass.

        `q`, `k (heads, patches, d)` under the tower's RoPE, `turns` times, in its own order; `parts`: the patches, one
        part after the other, within which the layer attends.
        """
        raise NotImplementedError

    def tower_scaling(self, layer: Any) -> float:
        """What a layer of a tower that is `joined` multiplies QK^T with."""
        raise NotImplementedError

    def tower_order(self, tower_kwargs: Mapping[str, Any]) -> list[Tensor]:
        """Of a tower that is `joined`: per image the places (v, patches joined) of the patches that visual token 0, 1,
        ... is made of; `tower_kwargs` are what the tower was called with."""
        raise NotImplementedError

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers; each has `self_attn` with `layer_idx`."""
        return list(self.text.layers)

    @property
    def head(self) -> nn.Module:
        """The language-model head."""
        head: nn.Module = self.model.get_output_embeddings()
        return head

    # --------------------------------------------------------------------------------------------- tokens and positions

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        """Ids of placeholders in `input_ids`, images first."""
        return (int(self.model.config.image_token_id),)

    def positions(self, text_kwargs: Mapping[str, Any]) -> Tensor | None:
        """(b or 1, n, axes): where the model puts the tokens of this prefill, from what its text model is called with;
        None: counted."""
        given = text_kwargs.get("position_ids")
        return None if given is None else given[:, :, None]

    def checked(self, facts: Mapping[str, Any], ids: Tensor, positions: Tensor, visual: Tensor) -> Mapping[str, Any]:
        """The `facts` of a prefill, with what the places of its image tokens say: `ids`, `visual (b, n)`, `positions
        (b, n, axes)`.

        Raises PrunebenchError where the model was called without what it needs to place them.
        """
        return facts

    def forget_places(self) -> None:
        """Before a prefill that comes without facts of images, as from a shared prefix: let the model not go on from
        the places of the prompts before. The engine places every token itself."""
        return None

    def rotary(self, like: Tensor, positions: Tensor, layer: int = 0) -> tuple[Tensor, Tensor]:
        """(cos, sin), each (b, n, head_dim), in the dtype of `like`, at `positions (b, n, axes)`; `layer` for families
        with several rotaries."""
        cos, sin = self.text.rotary_emb(like, position_ids=positions[:, :, 0])
        return cos, sin

    @staticmethod
    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`x (..., head_dim)` rotated by (cos, sin) of the same trailing shape: halves of the vector are a pair."""
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def take_deepstack(self, text_kwargs: dict[str, Any]) -> list[Tensor]:
        """Take over what the text model would add to visual tokens behind its first layers: per layer (visual tokens of
        the batch, hidden)."""
        return []

    def embedded(self, ids: Tensor) -> Tensor:
        """(..., hidden): the input embeddings of token `ids (...)`."""
        found: Tensor = self.model.get_input_embeddings()(ids)
        return found

    # ------------------------------------------------------------------------------------------------- parts of a layer

    def queries(self, layer: int, states: Tensor) -> Tensor:
        """(b, heads, n, head_dim): the queries of `states (b, n, d)` in a decoder layer, its norms included, not
        rotated."""
        return self._projected(layer, states, "q")

    def keys(self, layer: int, states: Tensor) -> Tensor:
        """(b, kv_heads, n, head_dim): the keys of `states (b, n, d)` in a decoder layer, its norms included, not
        rotated."""
        return self._projected(layer, states, "k")

    def values(self, layer: int, states: Tensor) -> Tensor:
        """(b, kv_heads, n, head_dim): the values of `states (b, n, d)` in a decoder layer."""
        return self._projected(layer, states, "v")

    def feed_forward(self, layer: int, states: Tensor) -> Tensor:
        """(..., d): what the feed-forward part of a decoder layer adds to the stream, its norm included."""
        module: Any = self.layers[layer]
        out: Tensor = module.mlp(module.post_attention_layernorm(states))
        return out

    def _projected(self, layer: int, states: Tensor, part: str) -> Tensor:
        module: Any = self.layers[layer]
        attention = module.self_attn
        x: Tensor = getattr(attention, f"{part}_proj")(module.input_layernorm(states))
        x = x.view(*x.shape[:2], -1, attention.head_dim)
        norm = getattr(attention, f"{part}_norm", None)
        x = x if norm is None else norm(x)
        return x.transpose(1, 2)

    def attention_output(self, layer: int, heads: Tensor) -> Tensor:
        """(..., d): what attention adds to the stream, of `heads (..., heads x head_dim)` side by side."""
        attention: Any = self.layers[layer].self_attn
        out: Tensor = attention.o_proj(heads)
        return out

    def scaling(self, layer: int) -> float:
        """What the decoder layer multiplies QK^T with."""
        attention: Any = self.layers[layer].self_attn
        return float(attention.scaling)

    # ----------------------------------------------------------------------------------------------------------- images

    def encode(self, **inputs: Any) -> list[Features]:
        """One entry an image, from what the processor made of the images: their pixels and facts."""
        core: Any = self.core
        out = core.get_image_features(**inputs, return_dict=True)
        deep = list(zip(*(getattr(out, "deepstack_features", None) or ()), strict=True)) or [()] * len(
            out.pooler_output
        )
        return [self.featured(pooled, image, inputs, deep[image]) for image, pooled in enumerate(out.pooler_output)]

    def featured(
        self, pooled: Tensor, image: int, inputs: Mapping[str, Any], deepstack: tuple[Tensor, ...] = ()
    ) -> Features:
        """The features of one image of several, with its rows of what the processor said of them in `inputs`."""
        facts = {name: inputs[name][image : image + 1] for name in self.image_facts}
        return Features(pooled, deepstack, facts)

    def on_images(self, told: Callable[[Mapping[str, Any]], None]) -> Callable[[], None]:
        """Let `told` hear what every call that makes features of pixels is given; returns what ends it.

        `generate` makes features before the model's forward and keeps their facts from it, so no module's hook sees
        them. A family without `image_facts` has nothing to tell.
        """
        core: Any = self.core
        if not self.image_facts:
            return lambda: None
        make = core.get_image_features
        names = signature(make)

        @wraps(make)
        def heard(*args: Any, **kwargs: Any) -> Any:
            told(names.bind(*args, **kwargs).arguments)
            return make(*args, **kwargs)

        core.get_image_features = heard  # on this object alone
        return lambda: core.__dict__.pop("get_image_features", None)

    def outputs(self, images: Sequence[Features]) -> dict[str, Any]:
        """Features as the model takes them: its `mm_encoder_outputs`."""
        return {"image": BaseModelOutputWithPooling(pooler_output=[image.pooled for image in images])}

    def inputs(self, images: Sequence[Features], ids: Tensor) -> dict[str, Any]:
        """Everything that the model's forward needs beside `ids (b, n)` and their mask, for the images of a batch in
        order: features and facts."""
        facts = {name: torch.cat([image.facts[name] for image in images]) for name in self.image_facts}
        return {"mm_encoder_outputs": self.outputs(images), **facts}

    def project(self, features: Tensor) -> Tensor:
        """(..., hidden): `features (..., width)` of the tower through the projector. Raises PrunebenchError where it
        works on groups of patches."""
        raise PrunebenchError(
            f"{type(self.model).__name__}: expected a projector of single patches, found one that joins several"
        )

    @abstractmethod
    def images(self, counts: Sequence[int], facts: Mapping[str, Any]) -> list[tuple[ImageShape, ...]]:
        """The images of each prompt of a batch with `counts` visual tokens, in order; `facts` as `image_facts` names
        them, one row an image, None where the prefill came without.

        Raises PrunebenchError where the tokens are no whole images.
        """

    def plain(self, look: TowerLook) -> TowerLook:
        """The look as it is kept: by tiles only where images are cut into tiles, so that methods share it elsewhere."""
        return look if self.usual.images[0].vision.tiles > 1 else look._replace(tiles=False)

    def per_image(self, what: str, values: Tensor, facts: Mapping[str, Any]) -> list[Tensor]:
        """What the tower showed to a look of kind `what`, one entry an image, in the order of its visual tokens.

        `values` has a row for each entry of the tower's batch, [CLS] parted from the patches; `facts` as for `images`.
        """
        return list(values)

    def per_tile(self, what: str, values: Tensor, facts: Mapping[str, Any]) -> list[Tensor]:
        """`per_image` as the tower ran: the patches of an image's tiles one after the other, and [CLS] of each."""
        return self.per_image(what, values, facts)

    def by_image(
        self, seen: Sequence[Mapping[TowerLook, Tensor]], images: Sequence[ImageShape]
    ) -> Sequence[Mapping[TowerLook, Tensor]]:
        """What the tower showed, one entry for each of a batch's `images`: where a pass of the tower was not told how
        many entries an image has, `seen` has one for each of them."""
        return seen

    # ------------------------------------------------------------------------------------------------------------ sizes

    @property
    def shape(self) -> ModelShape:
        """The decoder's sizes."""
        weight = next(self.text.layers[0].parameters())
        return self.shape_of(self.model.config, weight.element_size())

    @property
    def usual(self) -> PromptShape:
        """A prompt of one image as this model is usually asked, without text: what plans before a run are made from."""
        return self.prompt(self.shape, self.image_of(self.model.config))

    @classmethod
    def prompt(cls, decoder: ModelShape, *images: ImageShape, n_text: int = 0) -> PromptShape:
        """A prompt of these images for a model of this family."""
        return PromptShape(decoder, images, n_text, one_of_many=not cls.one_size)

    @classmethod
    def shape_of(cls, config: Any, bytes_per_value: int) -> ModelShape:
        """The decoder's sizes from a model config alone, without weights."""
        text = config.text_config
        return ModelShape(
            depth=text.num_hidden_layers,
            hidden=text.hidden_size,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            mlp=text.intermediate_size,
            vocab=text.vocab_size,
            bytes_per_value=bytes_per_value,
        )

    @classmethod
    def depths_of(cls, config: Any) -> dict[str, int]:
        """Layers of each part, as tensors of a checkpoint are counted: "vision" and "decoder"."""
        return {"decoder": config.text_config.num_hidden_layers, "vision": config.vision_config.num_hidden_layers}

    @classmethod
    def shapes_of(cls, config: Any) -> dict[str, tuple[int, ...]]:
        """Shapes of tensors that tell sizes, by the end of their names in a checkpoint: config.json may name others,
        and room would be made for them."""
        text, shape = config.text_config, cls.shape_of(config, 2)
        first = "model.layers.0"
        return {
            "embed_tokens.weight": (text.vocab_size, shape.hidden),
            f"{first}.mlp.gate_proj.weight": (shape.mlp, shape.hidden),
            f"{first}.self_attn.q_proj.weight": (shape.heads * shape.head_dim, shape.hidden),
            f"{first}.self_attn.k_proj.weight": (shape.kv_heads * shape.head_dim, shape.hidden),
        }

    @classmethod
    @abstractmethod
    def image_of(cls, config: Any) -> ImageShape:
        """An image of usual size from a model config alone; where sizes differ, one of the most tokens."""

    @classmethod
    def largest(cls, config: Any, processor: Any) -> ImageShape:
        """An image of the most tokens that the processor makes."""
        return cls.image_of(config)

    @classmethod
    def image_at(cls, config: Any, processor: Any, size: Size) -> ImageShape:
        """An image of this size, from the model config and what the processor does, without its pixels."""
        return cls.image_of(config)

    @classmethod
    def tokens_at(cls, config: Any, processor: Any, size: Size) -> int:
        """Visual tokens of an image of this size; asked of hundreds of sizes of one picture."""
        return cls.image_at(config, processor, size).tokens

    @classmethod
    def placeholders(cls, processor: Any, token: int, image: ImageShape) -> list[int]:
        """The ids that stand in a prompt for an image, as the processor puts them in place of one image `token`."""
        return [token] * image.tokens

    @classmethod
    def among(cls, n_images: int) -> type[Adapter]:
        """What speaks of an image by its size alone where its prompt has `n_images`; another class where a family cuts
        images of one prompt unlike a single one."""
        return cls

    @classmethod
    def processed(cls, processor: Any, image: Any) -> Mapping[str, Any]:
        """What the processor makes of one PIL image: `pixel_values`, and a row of each of `image_facts`."""
        made: Mapping[str, Any] = processor.image_processor(images=image, return_tensors="pt")
        return made

    @classmethod
    def usual_processor(cls, config: Any) -> Any:
        """What a processor of this family says of sizes in an evaluation, where no processor is at hand."""
        return None

    @classmethod
    def facts_at(cls, config: Any, processor: Any, size: Size) -> dict[str, Tensor]:
        """One row, (1, ...), of each of `image_facts` for an image of this size, as the processor makes them."""
        return {}

    @classmethod
    def facts_made(cls, made: Mapping[str, Any], config: Any, processor: Any, size: Size) -> dict[str, Tensor]:
        """One row of each of `image_facts`, from what a processor made of one image of this size. Raises
        PrunebenchError where that is not what its size says."""
        return {name: made[name] for name in cls.image_facts}

    @classmethod
    def frame(cls, image: ImageShape) -> Sequence[tuple[str, ...]]:
        """The marks before each run of an image's visual tokens and behind the last run, by names of the family; runs
        are equally long."""
        return (), ()

    @classmethod
    def spelling(cls, mark: str, processor: Any) -> str:
        """How a processor spells a mark of `frame`."""
        return mark

    @classmethod
    def image_ids(cls, image: ImageShape, token: int, mark: Callable[[str], int]) -> list[int]:
        """Ids of an image in a prompt: the image token `token` for each visual token, and those of its marks."""
        *before, behind = cls.frame(image)
        run = [token] * (image.tokens // len(before))
        return [*(one for marks in before for one in [*map(mark, marks), *run]), *map(mark, behind)]

    @classmethod
    def misfit(cls, processor: Any, config: Any) -> str | None:
        """Of a family whose images are `framed`: the first thing that a processor says and the model does not expect,
        as "expected ..., found ..."; None where it fits."""
        return None

    @classmethod
    @abstractmethod
    def pixels_of(cls, config: Any) -> tuple[int, ...]:
        """The shape of the pixels of an image of usual size, as the processor makes them, without the axis of
        images."""

    @classmethod
    def facts_of(cls, config: Any) -> Mapping[str, Tensor]:
        """The facts of an image of usual size, one row each."""
        return {}

    @classmethod
    def pixels_at(cls, config: Any, processor: Any, size: Size) -> tuple[int, ...]:
        """The shape of `pixel_values` of one image of this size, as the processor makes them."""
        return 1, *cls.pixels_of(config)

    @classmethod
    def sample(cls, config: Any, n: int) -> dict[str, Tensor]:
        """What a processor would make of `n` images of usual size: unlike pixels of plain numbers, and facts."""
        pixels = torch.linspace(-1, 1, n * prod(cls.pixels_of(config))).view(n, *cls.pixels_of(config))
        return {"pixel_values": pixels, **{name: torch.cat([fact] * n) for name, fact in cls.facts_of(config).items()}}

    @classmethod
    @abstractmethod
    def config_of(cls, usual: PromptShape, **text: Any) -> Any:
        """A transformers config of these sizes, for models with random weights; `text` goes to the decoder's part."""
