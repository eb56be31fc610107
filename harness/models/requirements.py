"""What a checkpoint must be for the engine to compute it and for its costs to be exact: one list per family.

Every point is read from the configuration alone. A point that does not hold is refused in one line, before weights are
fetched or loaded. `DECODER` holds for every family with a Llama-like decoder; an adapter adds its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from transformers.activations import ACT2FN

from harness.core.errors import PrunebenchError

#: a size beyond it is a mistake in the file, and would only be found when memory runs out
LARGEST = 1 << 24
#: rotary embeddings that depend on a token's place alone; the others ("dynamic", "longrope") depend on how long the
#: prompt is, so that a reduced prompt would be rotated unlike the whole one
ROPES = ("default", "linear", "llama3", "yarn")


class Requirement(NamedTuple):
    """`found`: what a configuration says against `expected`, as a person reads it; None where it fits."""

    expected: str
    found: Callable[[Any], str | None]


def unmet(config: Any, requirements: Iterable[Requirement]) -> str | None:
    """The first point that does not hold, as "expected ..., found ..."; None where all do."""
    for requirement in requirements:
        try:
            found = requirement.found(config)
        except (AttributeError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            found = f"a configuration in which that cannot be read ({type(error).__name__}: {error})"
        if found is not None:
            return f"expected {requirement.expected}, found {' '.join(found.split())[:160]}"
    return None


def check(config: Any, requirements: Iterable[Requirement], label: str) -> None:
    """Raise PrunebenchError naming the first point that does not hold."""
    found = unmet(config, requirements)
    if found is not None:
        raise PrunebenchError(
            f"{label}: {found}; prunebench does not support that: use a checkpoint without it, or mend config.json"
        )


# --------------------------------------------------------------------------------------------------------------- makers


def at(config: Any, place: str) -> Any:
    """`text_config.head_dim` of a configuration; None where there is nothing."""
    for name in place.split("."):
        config = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    return config


def size(place: str, least: int = 1, optional: bool = False) -> Requirement:
    """A whole number at `place` from `least` on."""

    def found(config: Any) -> str | None:
        value = at(config, place)
        if value is None and optional:
            return None
        return None if type(value) is int and least <= value <= LARGEST else f"{value!r}"

    return Requirement(f"{place} as a whole number from {least} to {LARGEST:,}", found)


def one_of(place: str, values: tuple[Any, ...], why: str = "") -> Requirement:
    """One of some values at `place`."""

    def found(config: Any) -> str | None:
        value = at(config, place)
        return None if any(type(value) is type(v) and value == v for v in values) else f"{value!r}"

    return Requirement(f"{place} {' or '.join(map(str, values))}{why}", found)


def absent(place: str, what: str) -> Requirement:
    """Nothing at `place`."""

    def found(config: Any) -> str | None:
        value = at(config, place)
        return None if value is None or value is False else f"{place}={value!r}"

    return Requirement(f"no {what}", found)


def activation(place: str) -> Requirement:
    """An activation that transformers knows at `place`."""
    return Requirement(
        f"{place} as an activation that transformers has",
        lambda config: None if at(config, place) in ACT2FN else f"{at(config, place)!r}",
    )


# -------------------------------------------------------------------------------------------------------------- decoder


def _window(config: Any) -> str | None:
    text = config.text_config
    kinds = sorted({str(kind) for kind in getattr(text, "layer_types", None) or []} - {"full_attention"})
    if kinds:
        return f"layers of {', '.join(kinds)}"
    window = getattr(text, "sliding_window", None)
    return (
        None if window is None or getattr(text, "use_sliding_window", True) is False else f"sliding_window={window!r}"
    )


def _causal(config: Any) -> str | None:
    return "is_causal=False" if getattr(config.text_config, "is_causal", True) is False else None


def _heads(config: Any) -> str | None:
    text = config.text_config
    if text.num_attention_heads % text.num_key_value_heads:
        return f"{text.num_attention_heads} heads on {text.num_key_value_heads} heads of keys"
    head_dim = getattr(text, "head_dim", None)
    if head_dim is None and text.hidden_size % text.num_attention_heads:
        return f"{text.num_attention_heads} heads in a width of {text.hidden_size}"
    width = head_dim or text.hidden_size // text.num_attention_heads
    return f"a head of {width}" if width % 2 else None


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The rotary parameters: one set, or one per kind of layer."""
    stated = getattr(config.text_config, "rope_parameters", None) or {}
    several = [value for value in stated.values() if isinstance(value, dict)]
    return several or [stated]


def _rope(config: Any, kinds: tuple[str, ...]) -> str | None:
    for rope in _ropes(config):
        kind = rope.get("rope_type", "default")
        if kind not in kinds:
            return f"rope_type {kind!r}"
        for name in ("rope_theta", "factor"):
            value = rope.get(name, 1.0)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
                return f"{name}={value!r}"
        if rope.get("partial_rotary_factor", 1.0) not in (None, 1, 1.0):
            return f"partial_rotary_factor={rope['partial_rotary_factor']!r}"
    return None


def _plain_outputs(config: Any) -> str | None:
    for part in ("", "text_config.", "vision_config."):
        for name in ("return_dict", "use_cache"):
            if at(config, part + name) is False:
                return f"{part}{name} false"
    return None


def rotary(kinds: tuple[str, ...]) -> Requirement:
    """Rotary embeddings of one of some types."""
    expected = f"rotary positions of type {', '.join(kinds)} over whole heads"
    return Requirement(expected, partial(_rope, kinds=kinds))


ROTARY = rotary(ROPES)
DECODER: tuple[Requirement, ...] = (
    *(
        size(f"text_config.{name}")
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "vocab_size",
        )
    ),
    size("text_config.head_dim", optional=True),
    size("text_config.max_position_embeddings", optional=True),
    Requirement("heads that share keys evenly, of an even width", _heads),
    Requirement("full attention in every decoder layer", _window),
    Requirement("causal attention", _causal),
    absent("text_config.attn_logit_softcapping", "softcap of attention"),
    absent("text_config.final_logit_softcapping", "softcap of logits"),
    ROTARY,
    activation("text_config.hidden_act"),
    Requirement("return_dict and use_cache as they are by default", _plain_outputs),
)


def context_of(config: Any) -> int | None:
    """Tokens that the decoder's positions were made for; None where the configuration does not say."""
    text = config.text_config
    stated = getattr(text, "max_position_embeddings", None)
    if stated is None:
        return None
    # a linear or yarn scale stretches the length that it names, which the stated one may or may not include
    stretched = [
        int((rope.get("original_max_position_embeddings") or stated) * rope.get("factor", 1.0))
        for rope in _ropes(config)
        if rope.get("rope_type") in ("linear", "yarn")
    ]
    return max([int(stated), *stretched])
