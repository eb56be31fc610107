"""Whether a checkpoint's processor and tokenizer fit its model: pixels, image token and vocabulary."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from itertools import product
from typing import Any

from PIL import Image

from harness.core.errors import PrunebenchError
from harness.core.spelling import given
from harness.models.adapters import Adapter
from harness.models.config import ModelConfig

#: (width, height) of images that every processor has to bring to the tower's size
PROBES = ((64, 48), (48, 64), (120, 40))
#: pixels
LARGEST_SIDE = 8192
#: of one image; the tower runs on each
MOST_TILES = 64


def check_processor(processor: Any, config: Any, adapter: type[Adapter], label: str) -> None:
    """Raise PrunebenchError for the first thing that the processor does and the model does not expect."""
    stated = (
        _limits
        if adapter.joined
        else adapter.misfit
        if adapter.framed
        else _tiles
        if "max_patches" in adapter.limits
        else _stated
    )
    wrong = (
        _parts(processor)
        or (None if adapter.joined else _sides(processor))
        or stated(processor, config)
        or _tokens(processor, config, any_token=adapter.own_template)
    )
    if wrong is not None:
        raise PrunebenchError(f"{label}: {wrong}: use the processor's files that belong to this checkpoint")
    # a family may cut images of a prompt of several in a way of their own
    for probe, family in product(PROBES, dict.fromkeys((adapter, adapter.among(2)))):
        # an axis of one image is no news
        expected = tuple(family.pixels_at(config, processor, (probe[1], probe[0])))
        expected = expected[1:] if expected[0] == 1 else expected
        try:
            made = family.processed(processor, Image.new("RGB", probe))["pixel_values"]
            shape = tuple(made.shape)
            found = str(shape[1:] if shape[0] == 1 else shape)
        except Exception as error:  # settings of the checkpoint's author, in code of transformers
            found = f"{type(error).__name__} ({' '.join(str(error).split())[:120]})"
        if found != str(expected):
            raise PrunebenchError(
                f"{label}: expected its image processor to make pixels of {expected} for the vision tower, found"
                f" {found} from an image of {probe[0]} x {probe[1]}: use the processor's files that belong to this"
                " checkpoint"
            )


def check_packages(adapter: type[Adapter], label: str) -> None:
    """Raise PrunebenchError where a package that the family's processor needs is not installed."""
    for package in adapter.packages:
        if find_spec(package) is None:
            raise PrunebenchError(
                f"{label}: its processor needs the package {package}, found none: install it"
                f" (`python -m pip install {package}`)"
            )


def check_asked(config: ModelConfig, adapter: type[Adapter], label: str) -> None:
    """Raise PrunebenchError where a model is to be asked as its family is not."""
    for unit, how in (("pixels", "resizes within them, as Qwen-VL's"), ("patches", "cuts tiles, as InternVL's")):
        names = (f"min_{unit}", f"max_{unit}")
        least, most = (getattr(config, name) for name in names)
        if names != adapter.limits and (least, most) != (None, None):
            raise PrunebenchError(
                f"{label}: {names[0]} and {names[1]} are limits of families whose processor {how}; take them out of its"
                " config"
            )
        if least and most and least > most:
            raise PrunebenchError(f"{label}: expected {names[0]} of at most {names[1]}, found {least} and {most}")
    if not adapter.own_template:
        return
    for option, value in (("prompt", config.prompt), ("image", config.image)):
        if value in ("vicuna_v1", "pad"):
            raise PrunebenchError(
                f"{label}: {given(option, value)}: expected its own chat template and images as its processor cuts"
                f" them, for it was never asked otherwise: leave {given(option)} out"
            )


def limited(processor: Any, config: ModelConfig, adapter: type[Adapter]) -> Any:
    """The processor with the limits of a model's config, and with what its family gives the image processor in each
    call; what is read from files stays as it is."""
    limits = {"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels}
    patches = {"min_patches": config.min_patches, "max_patches": config.max_patches}
    settings = {**adapter.processor_settings, **{name: n for name, n in patches.items() if n is not None}}
    if not settings and all(limit is None for limit in limits.values()):
        return processor
    if getattr(processor, "image_processor", None) is None:
        return processor
    made = copy.copy(processor)
    made.image_processor = copy.deepcopy(processor.image_processor)
    own = dict(made.image_processor.size or {})
    if any(limit is not None for limit in limits.values()):
        made.image_processor.size = {name: own.get(name) if limit is None else limit for name, limit in limits.items()}
    for name, value in settings.items():
        setattr(made.image_processor, name, value)
    return made


def _parts(processor: Any) -> str | None:
    lacking = [part for part in ("image_processor", "tokenizer") if getattr(processor, part, None) is None]
    if lacking:
        return f"expected a processor with {lacking[0]}, found a {type(processor).__name__} without"
    return None


def _sides(processor: Any) -> str | None:
    """Before an image is made of them: pixels of a huge side fill the memory."""
    for name in ("size", "crop_size", "pad_size"):
        for side, pixels in dict(getattr(processor.image_processor, name, None) or {}).items():
            if pixels is not None and not (isinstance(pixels, int) and 0 < pixels <= LARGEST_SIDE):
                return f"expected {name} as whole numbers up to {LARGEST_SIDE}, found {side}={pixels!r}"
    return None


def _stated(processor: Any, config: Any) -> str | None:
    """What the processor says of the model, where it says anything: older files do not."""
    known = {
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": 1,
    }
    if getattr(config, "vision_aspect_ratio", None) is not None:  # how far the raster of tiles is shrunk
        side = config.vision_config.image_size // config.vision_config.patch_size
        known |= {"vision_aspect_ratio": config.vision_aspect_ratio, "num_image_tokens": side**2}
    crops = getattr(config, "image_grid_pinpoints", None)
    stated = getattr(processor.image_processor, "image_grid_pinpoints", None)
    if crops is not None and [list(one) for one in stated or ()] != [list(one) for one in crops]:
        return f"expected image_grid_pinpoints {crops} in its image processor, as the model has them, found {stated}"
    sides = {side for side in dict(getattr(processor.image_processor, "size", None) or {}).values() if side is not None}
    if crops is not None and sides != {config.vision_config.image_size}:
        return (
            f"expected tiles of {config.vision_config.image_size} pixels in its image processor, found {sorted(sides)}"
        )
    for name, expected in known.items():
        found = getattr(processor, name, None)
        # 0 is what transformers puts for a file that does not say
        if found not in (None, expected) and (name, found) != ("num_additional_image_tokens", 0):
            return f"expected {name} {expected!r} in the processor's settings, as the model has it, found {found!r}"
    return None


def _tiles(processor: Any, config: Any) -> str | None:
    """Of a processor that cuts an image into tiles by its aspect ratio: their size and number, and their tokens."""
    image, vision = processor.image_processor, config.vision_config
    least, most = (getattr(image, name, None) for name in ("min_patches", "max_patches"))
    if type(least) is not int or type(most) is not int or not 1 <= least <= most <= MOST_TILES:
        return f"expected min_patches and max_patches of 1 to {MOST_TILES} tiles, found {least!r} and {most!r}"
    size, tile = dict(image.size or {}), list(vision.image_size)
    if [size.get("height"), size.get("width")] != tile:
        return f"expected tiles of {tile} pixels in its image processor, found {size}"
    if processor.image_seq_length != config.image_seq_length:
        return (
            f"expected image_seq_length {config.image_seq_length} in the processor's settings, as the model has it,"
            f" found {processor.image_seq_length!r}"
        )
    return None


def _limits(processor: Any, config: Any) -> str | None:
    """Of a processor that resizes within limits of pixels: the limits, and how it cuts."""
    image, vision = processor.image_processor, config.vision_config
    least, most = (dict(image.size or {}).get(name) for name in ("shortest_edge", "longest_edge"))
    if type(least) is not int or type(most) is not int or not 0 < least <= most <= LARGEST_SIDE**2:
        return f"expected size as the fewest and most pixels, up to {LARGEST_SIDE**2:,}, found {image.size}"
    known = {
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    for name, expected in known.items():
        if getattr(image, name, None) != expected:
            return f"expected {name} {expected!r} of its image processor, found {getattr(image, name, None)!r}"
    return None


def _tokens(processor: Any, config: Any, any_token: bool = False) -> str | None:
    """`any_token`: the image token may be spelt in any way."""
    tokenizer, vocabulary = processor.tokenizer, config.text_config.vocab_size
    token = getattr(processor, "image_token", None)
    if token != "<image>" and not (any_token and isinstance(token, str)):
        return f"expected '<image>' as the image token, found {token!r}"
    ids = tokenizer.get_vocab()
    if ids.get(token) != config.image_token_id:
        return f"expected {token!r} to be token {config.image_token_id} of the tokenizer, found {ids.get(token)}"
    one, three = (tokenizer(f"USER: {token * n}\nIs it? ASSISTANT:")["input_ids"] for n in (1, 3))
    place = one.index(config.image_token_id) if config.image_token_id in one else 0
    if one[:place] + [config.image_token_id] * 3 + one[place + 1 :] != three:
        return f"expected {token!r} as one special token of the tokenizer, found a text that is cut into pieces"
    # InternVL3's vocabulary ends before its video token, and a prompt with one is refused
    video = getattr(processor, "video_token", None)
    largest = max(number for text, number in ids.items() if text != video)
    if largest >= vocabulary:
        return f"expected tokens below {vocabulary}, the model's vocabulary, found token {largest} in the tokenizer"
    return None
