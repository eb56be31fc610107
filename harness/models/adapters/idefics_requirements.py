"""What config.json and the processor of an Idefics3 or a SmolVLM must say for the engine to compute the model, and for
its costs to be exact."""

from __future__ import annotations

from typing import Any

from harness.models.adapters.idefics_sizes import tile_side
from harness.models.requirements import DECODER, Requirement, activation, size


def _heads(config: Any) -> str | None:
    heads, width = config.vision_config.num_attention_heads, config.vision_config.hidden_size
    return f"{heads} heads in a width of {width}" if width % heads else None


def _blocks(config: Any) -> str | None:
    vision, scale = config.vision_config, config.scale_factor
    side = vision.image_size // vision.patch_size
    fit = side >= scale and side % scale == 0
    return None if fit else f"{side} x {side} patches and scale_factor {scale}"


def _image_token(config: Any) -> str | None:
    token, vocabulary = config.image_token_id, config.text_config.vocab_size
    return None if type(token) is int and 0 <= token < vocabulary else f"{token!r} in a vocabulary of {vocabulary}"


def _channels(config: Any) -> str | None:
    return None if config.vision_config.num_channels == 3 else f"{config.vision_config.num_channels}"


REQUIREMENTS = (
    *DECODER,
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
    size("scale_factor"),
    Requirement("vision_config.num_channels 3", _channels),
    Requirement("heads that share the tower's width evenly", _heads),
    Requirement("a tile whose patches scale_factor joins evenly", _blocks),
    activation("vision_config.hidden_act"),
    Requirement("an image token of the vocabulary", _image_token),
)
#: pixels; tiles of a larger one fill the memory
LARGEST_SIDE = 8192


def misfit(processor: Any, config: Any) -> str | None:
    """The first thing that a processor says or does and the model does not expect, as "expected ..., found ..."; None
    where it fits."""
    image, side = processor.image_processor, config.vision_config.image_size
    tile, longest = (dict(getattr(image, name, None) or {}).get("longest_edge") for name in ("max_image_size", "size"))
    if tile != side:
        return (
            f"expected max_image_size of {side} pixels in its image processor, as the model's tiles are, found {tile!r}"
        )
    if type(longest) is not int or not 0 < longest <= LARGEST_SIDE:
        return f"expected size as a longest_edge up to {LARGEST_SIDE} in its image processor, found {image.size!r}"
    for name in ("do_resize", "do_rescale", "do_normalize"):
        if getattr(image, name, None) is not True:
            return f"expected {name} true of its image processor, found {getattr(image, name, None)!r}"
    scale, means = getattr(image, "rescale_factor", None), getattr(image, "image_mean", None)
    if not isinstance(scale, float) or not isinstance(means, list | tuple) or not all(type(m) is float for m in means):
        return (
            f"expected rescale_factor as a number and image_mean as one number a channel, found {scale!r} and {means!r}"
        )
    empty = _empty(image)
    if empty is not None:
        return (
            f"expected pixels that are no exact zeros, which the model takes for padding, found image_mean"
            f" {list(image.image_mean)}, under which the colour {empty} is one"
        )
    tokens, stated = tile_side(config) ** 2, getattr(processor, "image_seq_len", None)
    if stated != tokens:
        return (
            f"expected image_seq_len {tokens} in the processor's settings, as the model's tiles have, found {stated!r}"
        )
    return _fence(processor)


def _empty(image: Any) -> tuple[int, ...] | None:
    """The colour of 8 bits whose pixels become exactly 0 in every channel; None for none."""
    zeros = [
        next((value for value in range(256) if abs(value * image.rescale_factor - mean) < 1e-6), None)
        for mean in image.image_mean
    ]
    return None if None in zeros else tuple(value for value in zeros if value is not None)


def _fence(processor: Any) -> str | None:
    token = getattr(processor, "fake_image_token", None)
    if not isinstance(token, str) or token not in processor.tokenizer.get_vocab():
        return f"expected the mark around images as a token of the tokenizer, found {token!r}"
    (one, *more), _ = (processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (token, "\n"))
    text = processor.tokenizer(f"Is{token}it", add_special_tokens=False)["input_ids"]
    return None if not more and text.count(one) == 1 else f"expected {token!r} as one special token, found a text"
