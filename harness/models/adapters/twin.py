"""A tiny twin of a model: its own classes with thin layers and random weights, to try what its library does with
them."""

from __future__ import annotations

import copy
from typing import Any

import torch

#: the layers of the twin's decoder and tower: a first one and one behind it
LAYERS = 2
WIDTH, HEADS, VOCABULARY = 16, 2, 8
#: of the twin's vocabulary: a token of text, and the one in place of visual tokens
TEXT_TOKEN, VIDEO_TOKEN, IMAGE_TOKEN = 3, VOCABULARY - 2, VOCABULARY - 1
#: channels of half a head that each of three axes rotates
SECTIONS = [2, 1, 1]
#: of towers that join patches; `_thin` sets what the family has
JOINED = {
    "embed_dim": WIDTH,
    "mlp_ratio": 1,
    "out_hidden_size": WIDTH,
    "fullatt_block_indexes": [1],
    "deepstack_visual_indexes": [0],
    "num_position_embeddings": 64,
}


def twin(model: Any) -> Any:
    """A model of the class and the kinds of decoder and tower of `model`, on the CPU in float32. The generator of torch
    stays as it was."""
    config = copy.deepcopy(model.config)
    _thin(config.text_config, vocab_size=VOCABULARY, head_dim=WIDTH // HEADS, num_key_value_heads=1)
    patch = config.vision_config.patch_size
    size = [2 * side for side in patch] if isinstance(patch, list | tuple) else 2 * patch
    _thin(config.vision_config, image_size=size, **JOINED)
    side = getattr(config.vision_config, "image_size", 0)
    if hasattr(config, "image_grid_pinpoints"):
        config.image_grid_pinpoints = [[side, 2 * side], [2 * side, side]]
    if hasattr(config, "scale_factor"):  # the patches of a tile become one visual token
        config.scale_factor = 2
    config.image_token_id = IMAGE_TOKEN
    if hasattr(config, "vision_feature_layer"):
        config.vision_feature_layer = -1
    if hasattr(config, "video_token_id"):
        config.video_token_id = VIDEO_TOKEN
    if "mrope_section" in (getattr(config.text_config, "rope_parameters", None) or {}):
        config.text_config.rope_parameters["mrope_section"] = SECTIONS
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return type(model)(config).float().eval()


def _thin(config: Any, **others: Any) -> None:
    """Make one part's config small in place; fields that a family does not have stay away."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": LAYERS}
    for name, value in {**sizes, "num_attention_heads": HEADS, **others}.items():
        if hasattr(config, name):
            setattr(config, name, value)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:LAYERS]
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):  # beyond the twin's vocabulary
        if hasattr(config, name):
            setattr(config, name, None)
