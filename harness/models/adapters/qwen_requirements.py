"""What config.json of a Qwen-VL must say for the engine to compute the model and for its costs to be exact."""

from __future__ import annotations

from typing import Any

from harness.models.requirements import DECODER, Requirement, activation, at, one_of, size


def _tower_heads(config: Any) -> str | None:
    vision = config.vision_config
    width = getattr(vision, "embed_dim", None) or vision.hidden_size
    each = width // vision.num_heads
    return f"{vision.num_heads} heads in a width of {width}" if width % vision.num_heads or each % 4 else None


def _width(name: str) -> Requirement:
    """The projector's output is the decoder's width; the families name it unlike."""

    def found(config: Any) -> str | None:
        out, hidden = at(config, f"vision_config.{name}"), config.text_config.hidden_size
        return None if out == hidden else f"{out!r} on a decoder of {hidden}"

    return Requirement(f"vision_config.{name} as wide as the decoder", found)


def _tokens(config: Any) -> str | None:
    vocabulary, tokens = config.text_config.vocab_size, (config.image_token_id, config.video_token_id)
    fit = all(type(token) is int and 0 <= token < vocabulary for token in tokens) and tokens[0] != tokens[1]
    return None if fit else f"{tokens[0]!r} and {tokens[1]!r} in a vocabulary of {vocabulary}"


def _sections(config: Any) -> str | None:
    text = config.text_config
    half = (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads) // 2
    sections = text.rope_parameters.get("mrope_section")
    fit = isinstance(sections, list | tuple) and len(sections) == 3 and sum(sections) == half
    return None if fit else f"mrope_section={sections!r} for half a head of {half}"


def _layers(name: str, below_decoder: bool = False) -> Requirement:
    """Different layers of the tower, in order; fewer than the decoder has where each adds to one of its layers."""

    def found(config: Any) -> str | None:
        layers, depth = list(at(config, f"vision_config.{name}")), config.vision_config.depth
        fit = layers == sorted({*layers}) and all(type(i) is int and 0 <= i < depth for i in layers)
        most = config.text_config.num_hidden_layers - 1 if below_decoder else depth
        if fit and len(layers) <= most:
            return None
        return f"{layers} in a tower of {depth} layers, at most {most} of them"

    return Requirement(f"{name} as layers of the tower, in order", found)


def _window(config: Any) -> str | None:
    vision = config.vision_config
    side = vision.patch_size * vision.spatial_merge_size
    fit = type(vision.window_size) is int and vision.window_size >= side
    return None if fit else f"{vision.window_size!r} with joined patches of {side} pixels"


def _common(out: str, *sizes: str) -> tuple[Requirement, ...]:
    names = ("depth", "num_heads", "patch_size", "spatial_merge_size", "temporal_patch_size", *sizes)
    return (
        *DECODER,
        *(size(f"vision_config.{name}") for name in names),
        one_of("vision_config.in_channels", (3,)),
        Requirement("heads that share the tower's width evenly, of a width that two axes rotate", _tower_heads),
        activation("vision_config.hidden_act"),
        _width(out),
        Requirement("image and video tokens of the vocabulary", _tokens),
        Requirement("an mrope_section of three axes over half a head", _sections),
    )


QWEN2_VL = _common("hidden_size", "embed_dim", "mlp_ratio")
QWEN25_VL = (
    *_common("out_hidden_size", "hidden_size", "intermediate_size"),
    _layers("fullatt_block_indexes"),
    Requirement("window_size of at least one joined patch", _window),
)
QWEN3_VL = (
    *_common("out_hidden_size", "hidden_size", "intermediate_size", "num_position_embeddings"),
    _layers("deepstack_visual_indexes", below_decoder=True),
)
