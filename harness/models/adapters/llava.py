"""LLaVA-1.5: `LlavaForConditionalGeneration`, a CLIP tower, a two-layer projector and a Llama-like decoder; one image
size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from harness.core.errors import PrunebenchError
from harness.core.shape import Grid, ImageShape, PromptShape, VisionShape
from harness.models.adapters.base import Adapter, TowerAttention
from harness.models.requirements import DECODER, Requirement, activation, at, one_of, size

#: class names in the config.json of checkpoints in LLaVA's own format, which transformers does not load
ORIGINAL_CLASSES = ("LlavaLlamaForCausalLM",)
#: methods with recorded official runs on LLaVA-1.5
PROVEN = (
    "cdpruner",
    "dart",
    "divprune",
    "fastervlm",
    "fastv",
    "fitprune",
    "hiprune",
    "holov",
    "prumerge",
    "pyramiddrop",
    "sparsevlm",
    "v2drop",
    "visionzip",
    "visipruner",
    "vispruner",
    "vtw",
)
#: model types of decoders whose layers are laid out as Llama's; a test compares each with the bare model
DECODERS = ("llama", "mistral", "qwen2", "qwen3")


def part(name: str, types: tuple[str, ...], usual: str) -> Requirement:
    """One of some model types in a part `name` of config.json; `usual` is meant where none is named."""

    def unfit(stated: Any) -> str | None:
        found = stated.get(name, {})
        if not isinstance(found, dict):
            return f"{name} {found!r}"
        kind = found.get("model_type", usual)
        return None if kind in types else f"{kind!r}"

    return Requirement(f"{name} of type {', '.join(types)}", unfit)


def _layer(config: Any) -> str | None:
    layer, depth = config.vision_feature_layer, config.vision_config.num_hidden_layers
    # 0 and -depth - 1 are what stands before the first layer, which transformers takes for none
    return None if type(layer) is int and 1 <= abs(layer) <= depth else f"{layer!r} in a tower of {depth} layers"


def _image_token(config: Any) -> str | None:
    token, vocabulary = config.image_token_id, config.text_config.vocab_size
    return None if type(token) is int and 0 <= token < vocabulary else f"{token!r} in a vocabulary of {vocabulary}"


def _tower_heads(config: Any) -> str | None:
    vision = config.vision_config
    heads, width = vision.num_attention_heads, vision.hidden_size
    return f"{heads} heads in a width of {width}" if width % heads else None


def _patches(config: Any) -> str | None:
    image, patch = config.vision_config.image_size, config.vision_config.patch_size
    return f"patches of {patch} on images of {image}" if patch > image else None


def types_of(model_type: str) -> tuple[Requirement, ...]:
    """The model types of a family with LLaVA's parts. SigLIP's towers have no [CLS] and a pooling head, which the
    engine and the costs do not know."""
    return (
        one_of("model_type", (model_type,)),
        part("text_config", DECODERS, "llama"),
        part("vision_config", ("clip_vision_model",), "clip_vision_model"),
    )


#: points of a ViT tower in one `vision_config`, whatever its kind
TOWER = (
    *(
        size(f"vision_config.{name}")
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "image_size",
            "patch_size",
        )
    ),
    one_of("vision_config.num_channels", (3,)),
    Requirement("heads that share the tower's width evenly", _tower_heads),
    Requirement("patches no larger than an image", _patches),
    activation("vision_config.hidden_act"),
)
#: points of a projector on one layer of the tower, and of the image token
PROJECTED = (
    activation("projector_hidden_act"),
    Requirement("vision_feature_layer as one layer of the tower", _layer),
    Requirement("an image token of the vocabulary", _image_token),
)
_LLAVA = (
    *PROJECTED,
    one_of("vision_feature_select_strategy", ("default",), " (the tower's tokens without [CLS])"),
    Requirement(
        "a tower of type clip_vision_model",
        lambda config: None if at(config, "vision_config.model_type") == "clip_vision_model" else "another",
    ),
)


class LlavaAdapter(Adapter):
    """An image is a square grid of patches in raster order; its [CLS] is dropped before the projector."""

    title, checkpoint = "LLaVA-1.5", "llava-1.5-7b"
    architectures = ("LlavaForConditionalGeneration",)
    config_class: ClassVar[type[Any]] = LlavaConfig
    types = types_of("llava")
    requirements = (*DECODER, *TOWER, *_LLAVA)
    proven: ClassVar[tuple[str, ...] | None] = PROVEN

    @property
    def tower(self) -> nn.Module:
        tower: nn.Module = self.model.model.vision_tower
        return tower

    @property
    def tower_layers(self) -> list[nn.Module]:
        return list(self.model.model.vision_tower.encoder.layers)

    @property
    def projector(self) -> nn.Module:
        """Tower features to the decoder's width."""
        projector: nn.Module = self.model.model.multi_modal_projector
        return projector

    @property
    def tower_prefix(self) -> int | None:
        return 1

    def tower_attention(self, layer: Any) -> TowerAttention:
        attention = layer.self_attn
        return TowerAttention(attention.q_proj, attention.k_proj, attention.num_heads, attention.scale)

    def project(self, features: Tensor) -> Tensor:
        projected: Tensor = self.projector(features)
        return projected

    def images(self, counts: Sequence[int], facts: Mapping[str, Any]) -> list[tuple[ImageShape, ...]]:
        image = self.image_of(self.model.config)
        for n in counts:
            if n % image.tokens:
                raise PrunebenchError(
                    f"expected whole images of {image.tokens} visual tokens in every prompt, found {n} tokens"
                )
        return [(image,) * (n // image.tokens) for n in counts]

    @classmethod
    def image_of(cls, config: Any) -> ImageShape:
        vision = config.vision_config
        side = vision.image_size // vision.patch_size
        return ImageShape(
            (Grid(side, side),),
            VisionShape(
                # transformers runs the whole tower, also the layers behind `vision_feature_layer`
                layers_used=vision.num_hidden_layers,
                hidden=vision.hidden_size,
                mlp=vision.intermediate_size,
                tokens=side * side + 1,
                patch_inputs=3 * vision.patch_size**2,
                projector_hidden=config.text_config.hidden_size,
                heads=vision.num_attention_heads,
            ),
        )

    @classmethod
    def shapes_of(cls, config: Any) -> dict[str, tuple[int, ...]]:
        vision, image = config.vision_config, cls.image_of(config)
        return {
            **super().shapes_of(config),
            "encoder.layers.0.mlp.fc1.weight": (vision.intermediate_size, vision.hidden_size),
            "encoder.layers.0.self_attn.q_proj.weight": (vision.hidden_size, vision.hidden_size),
            "patch_embedding.weight": (vision.hidden_size, 3, vision.patch_size, vision.patch_size),
            "position_embedding.weight": (image.vision.tokens, vision.hidden_size),
        }

    @classmethod
    def pixels_of(cls, config: Any) -> tuple[int, ...]:
        side = int(config.vision_config.image_size)
        return 3, side, side

    @classmethod
    def config_of(cls, usual: PromptShape, *, image_token_id: int | None = None, **text: Any) -> Any:
        """LLaVA's configuration at these sizes: penultimate tower layer without [CLS]. `text` goes to the decoder's
        configuration.

        The last 64 rows of LLaVA-1.5's vocabulary are padding, and the image token is the first of them: the default of
        `image_token_id`.
        """
        shape, image = usual.decoder, usual.images[0]
        vision, patch = image.vision, isqrt(image.vision.patch_inputs // 3)
        given = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, **text}
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
        tower = CLIPVisionConfig(
            hidden_size=vision.hidden,
            intermediate_size=vision.mlp,
            num_hidden_layers=vision.layers_used,
            num_attention_heads=vision.heads,
            image_size=patch * image.views[0].rows,
            patch_size=patch,
        )
        return cls.config_class(
            text_config=decoder,
            vision_config=tower,
            image_token_index=shape.vocab - 64 if image_token_id is None else image_token_id,
            image_seq_length=image.tokens,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            tie_word_embeddings=False,
        )


def load_text(adapter: LlavaAdapter, weights: Mapping[str, Tensor]) -> None:
    """Put the weights of a Llama checkpoint (Hugging Face's names) into the decoder and the head of a LLaVA."""
    own = dict(weights)
    with torch.no_grad():
        adapter.model.lm_head.weight.copy_(own.pop("lm_head.weight"))
    adapter.text.load_state_dict({name.removeprefix("model."): value for name, value in own.items()})


def load_vision(adapter: LlavaAdapter, weights: Mapping[str, Tensor]) -> None:
    """Put a CLIP vision tower (names `vision_model.*`) and a projector (`mm_projector.0` and `.2`, as in LLaVA's own
    checkpoints) into a LLaVA."""
    parts = {"vision_model.": adapter.tower, "mm_projector.": adapter.projector}
    renamed = {"mm_projector.0.": "linear_1.", "mm_projector.2.": "linear_2."}
    for prefix, module in parts.items():
        own = {name: value for name, value in weights.items() if name.startswith(prefix)}
        for before, now in renamed.items():
            own = {name.replace(before, now): value for name, value in own.items()}
        module.load_state_dict({name.removeprefix(prefix): value for name, value in own.items()})


@torch.no_grad()
def plant_beacon(model: Any) -> None:
    """Let every head of every layer score keys by a flag: channel 1 of the stream, which no layer writes to, beside a
    constant in channel 0.

    A visual token with the flag set is what all later rows attend to most.
    """
    constant, flag = 0, 1
    adapter = LlavaAdapter(model)
    projector: Any = adapter.projector
    adapter.text.embed_tokens.weight[:, constant] = 4.0
    adapter.text.embed_tokens.weight[:, flag] = 0.0
    projector.linear_2.weight[:2] = 0.0
    projector.linear_2.bias[:2] = torch.tensor([4.0, 0.0])
    for layer in adapter.text.layers:
        attention = layer.self_attn
        # the pair of channels that RoPE turns least
        slow, partner = attention.head_dim // 2 - 1, attention.head_dim - 1
        attention.o_proj.weight[:2] = 0.0
        layer.mlp.down_proj.weight[:2] = 0.0
        for projection, channel in ((attention.q_proj, constant), (attention.k_proj, flag)):
            for dim in (slow, partner):
                projection.weight[dim :: attention.head_dim] = 0.0
            projection.weight[slow :: attention.head_dim, channel] = 10.0
