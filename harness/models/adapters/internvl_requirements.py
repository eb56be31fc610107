"""What config.json of an InternVL must say for the engine to compute the model and for its costs to be exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.models.adapters.llava import part
from harness.models.requirements import DECODER, ROPES, ROTARY, Requirement, activation, one_of, rotary, size

#: model types of decoders whose layers are laid out as Llama's: InternVL3's is Qwen2, InternVL3.5's is Qwen3
DECODERS = ("llama", "qwen2", "qwen3")
#: of the tower's patches, rows and columns that the projector joins into one visual token
JOINED = 2


def square(length: Any) -> int:
    """One side in pixels of a size that is a number or (height, width). Raises ValueError for no square."""
    sides = set(length) if isinstance(length, Sequence) and not isinstance(length, str) else {length}
    (side,) = sides if len(sides) == 1 else (None,)
    if type(side) is not int or side < 1:
        raise ValueError(f"no square: {length!r}")
    return side


def _tiles(config: Any) -> str | None:
    vision = config.vision_config
    try:
        tile, patch = square(vision.image_size), square(vision.patch_size)
    except ValueError:
        return f"image_size={vision.image_size!r} and patch_size={vision.patch_size!r}"
    whole = tile >= JOINED * patch and tile // patch % JOINED == 0
    return None if whole else f"tiles of {tile} pixels and patches of {patch}"


def _sequence(config: Any) -> str | None:
    vision, stated = config.vision_config, config.image_seq_length
    tokens = (square(vision.image_size) // square(vision.patch_size) // JOINED) ** 2
    return None if stated == tokens else f"{stated!r} with {tokens} visual tokens a tile"


def _tower_heads(config: Any) -> str | None:
    heads, width = config.vision_config.num_attention_heads, config.vision_config.hidden_size
    return f"{heads} heads in a width of {width}" if width % heads else None


def _image_token(config: Any) -> str | None:
    token, vocabulary = config.image_token_id, config.text_config.vocab_size
    return None if type(token) is int and 0 <= token < vocabulary else f"{token!r} in a vocabulary of {vocabulary}"


TYPES: tuple[Requirement, ...] = (
    one_of("model_type", ("internvl",)),
    part("text_config", DECODERS, "qwen2"),
    part("vision_config", ("internvl_vision",), "internvl_vision"),
)

INTERNVL: tuple[Requirement, ...] = (
    # a dynamic rotary embedding is the default one up to `max_position_embeddings`, and no longer prompt is run
    *(rotary((*ROPES, "dynamic")) if point is ROTARY else point for point in DECODER),
    *(
        size(f"vision_config.{name}")
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    ),
    one_of("vision_config.num_channels", (3,)),
    one_of("vision_config.norm_type", ("layer_norm", "rms_norm")),
    activation("vision_config.hidden_act"),
    activation("projector_hidden_act"),
    Requirement("heads that share the tower's width evenly", _tower_heads),
    one_of("downsample_ratio", (0.5,), " (2 x 2 patches are one visual token)"),
    Requirement("square tiles of an even number of square patches a side", _tiles),
    Requirement("image_seq_length as the visual tokens of a tile", _sequence),
    one_of("vision_feature_layer", (-1,), " (the tower's last layer)"),
    one_of("vision_feature_select_strategy", ("default",), " (the tower's tokens without [CLS])"),
    Requirement("an image token of the vocabulary", _image_token),
)
