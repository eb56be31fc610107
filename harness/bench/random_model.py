"""A model of real size with random weights, and an input for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedConfig
from transformers.initialization import no_init_weights

from harness.bench.settings import Settings
from harness.core.errors import PrunebenchError
from harness.core.shape import SHAPES, ImageShape, Size
from harness.cost import papers as published
from harness.models.adapters import Adapter, LlavaAdapter, adapter_for
from harness.models.config import model_config
from harness.models.load import read_config
from harness.models.published import published_config, published_models

#: standard deviation of random weights, the initializer range of Llama and LLaVA: activations stay finite at any depth
WEIGHT_STD = 0.02
#: (height, width) in pixels of an image that is measured, where images differ in tokens
SIZE: Size = (480, 640)
#: names under which a config has tokens of images and videos
SPECIAL = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


@dataclass(frozen=True)
class Input:
    """A batch of random prompts of one image and one length, without padding: `ids (b, n)` with image tokens, `images`
    what a processor makes of the images of all."""

    ids: Tensor
    images: dict[str, Tensor]

    @property
    def batch(self) -> int:
        return int(self.ids.shape[0])


# ---------------------------------------------------------------------------------------------------------------- model


def random_config(settings: Settings) -> PreTrainedConfig:
    """The configuration of a model that gets random weights: sizes from `SHAPES`, or from the config.json of a local
    folder.

    Raises PrunebenchError where there is neither.
    """
    sized = sorted({*SHAPES, *published_models()})
    stated = published_config(settings.model)
    if stated is not None:
        config = stated
    elif settings.model in SHAPES:
        config = LlavaAdapter.config_of(SHAPES[settings.model])
    else:
        known = model_config(settings.model)
        folder = known.folder
        if folder is None or not (folder / "config.json").is_file():
            raise PrunebenchError(
                f"--random-weights --model {settings.model}: expected {', '.join(sized)}, mini or a local folder with"
                f" a config.json; found {'a hub id' if folder is None else f'no config.json in {folder}'}"
            )
        config = read_config(folder, f"model {known.name}")  # raises where the family is not supported
    if settings.layers is not None:
        depth = config.text_config.num_hidden_layers
        if settings.layers > depth:
            raise PrunebenchError(
                f"--layers {settings.layers}: expected at most {depth}, the depth of {settings.model}"
            )
        config.text_config.num_hidden_layers = settings.layers
    return config


def random_model(config: PreTrainedConfig, device: torch.device, dtype: torch.dtype, seed: int) -> nn.Module:
    """The model with random weights, made on the device in its dtype: no file, no copy, no other precision on the way.

    Raises PrunebenchError where the memory that is free does not hold it.
    """
    with torch.device("meta"):
        n_weights = sum(p.numel() for p in AutoModelForImageTextToText.from_config(config).parameters())
    _check_memory(n_weights * dtype.itemsize, device, dtype)
    with torch.device(device), no_init_weights():
        model: nn.Module = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
    generator = torch.Generator(device).manual_seed(seed)
    limit = WEIGHT_STD * 3**0.5
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.uniform_(-limit, limit, generator=generator)
            else:
                weight.fill_(1.0 if "norm" in name.split(".")[-2] and name.endswith("weight") else 0.0)
    return model.eval()


def _check_memory(weights: int, device: torch.device, dtype: torch.dtype) -> None:
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        try:
            lines = Path("/proc/meminfo").read_text().splitlines()
        except OSError:
            return  # no such file outside Linux; the allocator will say
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    needed = weights * 1.1  # activations, logits and caches want about a tenth on top
    if needed > free:
        raise PrunebenchError(
            f"expected about {needed / 2**30:.1f} GiB of free memory on {device} for {weights / 2**30:.1f} GiB of"
            f" {str(dtype).removeprefix('torch.')} weights, found {free / 2**30:.1f}: use a slice (--layers 4), --dtype"
            " bfloat16 or a larger device"
        )


def random_input(model: Any, batch: int, text_tokens: int, seed: int) -> Input:
    """Random pixels and prompts of `text_tokens` text tokens beside `marks_of` the image, which stands behind as many
    of them as Vicuna's system prompt has. Where images differ in tokens, all are of `SIZE`."""
    adapter, config = adapter_for(model), model.config
    weight = next(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    token, processor = adapter.image_token_ids[0], adapter.usual_processor(config)
    # no token that stands for an image or a video, or around one
    special = {getattr(config, name, None) for name in SPECIAL}
    text = torch.tensor([t for t in range(config.text_config.vocab_size) if t not in special])
    ids = text[torch.randint(len(text), (batch, text_tokens), generator=generator)]
    before = min(published.N_SYSTEM, text_tokens // 2)
    image = image_of(type(adapter), config)
    behind = adapter.frame(image)[-1]
    # marks around the image's tokens: one token of text for those behind them, another for all others
    own = adapter.image_ids(image, token, lambda name: int(text[0 if name in behind else 1]))
    visual = torch.tensor([own] * batch)
    n, *shape = adapter.pixels_at(config, processor, SIZE)
    pixels = torch.randn(batch * n, *shape, generator=generator)
    ids = torch.cat([ids[:, :before], visual, ids[:, before:]], 1)
    facts = adapter.facts_at(config, processor, SIZE)
    images = {
        "pixel_values": pixels.to(weight.device, weight.dtype),
        **{name: torch.cat([fact] * batch).to(weight.device) for name, fact in facts.items()},
    }
    return Input(ids.to(weight.device), images)


def image_of(adapter: type[Adapter], config: Any) -> ImageShape:
    """The image that is measured: the family's own, or one of `SIZE` where images differ in tokens."""
    return adapter.image_at(config, adapter.usual_processor(config), SIZE)


def marks_of(adapter: type[Adapter], config: Any) -> int:
    """Text tokens of a prompt that a family's processor puts around the tokens of the image that is measured."""
    image = image_of(adapter, config)
    return len(adapter.image_ids(image, 0, lambda name: 0)) - image.tokens
