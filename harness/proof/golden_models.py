"""What the cases of a golden folder were recorded on: text models, vision towers with projectors, inputs.

A text model gets the recorded tower in front where the input holds pixels. Where the input holds the rows of the visual
tokens, a tower that is never run stands there. Models are kept: one for each text model, tower and dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor
from transformers import AutoModelForImageTextToText

from harness.core.errors import PrunebenchError
from harness.core.shape import Grid, ImageShape, ModelShape, PromptShape, VisionShape
from harness.models.adapters import LlavaAdapter
from harness.models.adapters.llava import load_text, load_vision
from harness.models.adapters.text_encoder import ClipTextEncoder
from harness.proof.golden_files import MEND, read_bytes, read_json

DTYPES = {"float32": torch.float32, "float64": torch.float64}
#: the tower that is never run, where an input holds the rows of its 24 x 24 visual tokens
STAND_IN: Mapping[str, Any] = {
    "image_size": 336,
    "patch_size": 14,
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_attention_heads": 1,
}


class NotReplayableError(PrunebenchError):
    """A case that this replay has no method, model or rule for; says which."""


class Setup(NamedTuple):
    """What one case was recorded on. `tower` is None where the input holds the rows of the visual tokens."""

    text: str
    tower: str | None
    dtype: torch.dtype
    inputs: Mapping[str, Tensor]


def setup_of(folder: Path, case: Mapping[str, Any]) -> Setup:
    """Raises NotReplayableError where the case names none that is here."""
    text, name, dtype = case.get("model"), case.get("input"), case.get("dtype", "float32")
    lacks = [field for field, value in (("model", text), ("input", name)) if value is None]
    if lacks:
        raise NotReplayableError(f"the case records no {', '.join(lacks)}")
    if not isinstance(text, str) or not isinstance(name, str):
        raise NotReplayableError(f"expected the names of a model and an input, found {text!r} and {name!r}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise NotReplayableError(f"expected the dtype {' or '.join(DTYPES)}, found {dtype!r}")
    inputs = tensors(folder / "inputs" / f"{name}.safetensors")
    kinds = {"inputs_embeds", "pixel_values", "coarse"} & set(inputs)
    if len(kinds) != 1 or not {"pre_ids", "post_ids"} <= set(inputs):
        raise NotReplayableError(
            f"the input {name!r} holds {', '.join(sorted(inputs))}: expected pre_ids, post_ids, and one of"
            " inputs_embeds, pixel_values and coarse"
        )
    tower = None if "inputs_embeds" in inputs else _tower_of(folder, case, "coarse" in inputs)
    return Setup(text, tower, DTYPES[dtype], inputs)


def _tower_of(folder: Path, case: Mapping[str, Any], coarse: bool) -> str:
    """The tower that a case names, or the only one that takes pixels of its input's kind."""
    towers = read_json(folder / "models" / "models.json").get("towers", {})
    named = case.get("vision", case.get("tower"))
    fit = [name for name, spec in towers.items() if named == name or (named is None and ("pixels" in spec) == coarse)]
    if len(fit) != 1:
        asked = repr(named) if named is not None else "coarse pixels" if coarse else "pixel_values"
        raise NotReplayableError(f"models/models.json has {len(fit) or 'no'} `towers` for {asked}")
    return str(fit[0])


def prompt_of(folder: Path, setup: Setup) -> PromptShape:
    """Sizes of the prompt and of the model that is asked it, without weights."""
    known = _text_spec(folder, setup.text)["config"]
    decoder = ModelShape(
        depth=known["num_hidden_layers"],
        hidden=known["hidden_size"],
        heads=known["num_attention_heads"],
        kv_heads=known["num_key_value_heads"],
        head_dim=known["hidden_size"] // known["num_attention_heads"],
        mlp=known["intermediate_size"],
        vocab=known["vocab_size"],
        bytes_per_value=setup.dtype.itemsize,
    )
    vision = STAND_IN if setup.tower is None else tower_spec(folder, setup.tower)["vision_config"]
    patch = vision["patch_size"]
    grid = Grid(vision["image_size"] // patch, vision["image_size"] // patch)
    tower = VisionShape(
        layers_used=vision["num_hidden_layers"],
        hidden=vision["hidden_size"],
        mlp=vision["intermediate_size"],
        tokens=grid.tokens + 1,
        patch_inputs=3 * patch**2,
        projector_hidden=decoder.hidden,
        heads=vision["num_attention_heads"],
    )
    n_text = setup.inputs["pre_ids"].numel() + setup.inputs["post_ids"].numel()
    return PromptShape(decoder, (ImageShape((grid,), tower),), n_text)


def model_of(folder: Path, setup: Setup, device: torch.device) -> LlavaAdapter:
    """A LLaVA whose decoder and head, and whose tower and projector where the case has pixels, hold the recorded
    weights."""
    usual = prompt_of(folder, setup).with_text(0)
    return made(folder, setup.text, setup.tower, setup.dtype, device, usual, image_token(usual))


@lru_cache(maxsize=16)
def made(
    folder: Path,
    text: str,
    tower: str | None,
    dtype: torch.dtype,
    device: torch.device,
    usual: PromptShape,
    token: int,
    family: type[LlavaAdapter] = LlavaAdapter,
) -> LlavaAdapter:
    """A model of a family with LLaVA's parts, with recorded weights; `token` stands for a visual token."""
    spec = _text_spec(folder, text)
    known, vision = spec["config"], STAND_IN if tower is None else tower_spec(folder, tower)["vision_config"]
    config = family.config_of(
        usual,
        image_token_id=token,
        rope_parameters={"rope_type": "default", "rope_theta": known["rope_theta"]},
        rms_norm_eps=known["rms_norm_eps"],
        max_position_embeddings=known["max_position_embeddings"],
    )
    config.vision_config.hidden_act = vision.get("hidden_act", "quick_gelu")
    config.vision_config.layer_norm_eps = vision.get("layer_norm_eps", 1e-5)
    adapter = family(AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").eval())
    load_text(adapter, {k: v.float() for k, v in tensors(folder / spec["weights"]).items()})
    if tower is not None:
        load_vision(adapter, {k: v.float() for k, v in tower_weights(folder, tower).items()})
    adapter.model.to(device=device, dtype=dtype)
    return adapter


def image_token(usual: PromptShape) -> int:
    """The id that stands for a visual token: the last of the vocabulary."""
    return usual.decoder.vocab - 1


def tower_weights(folder: Path, tower: str) -> dict[str, Tensor]:
    """All that is recorded with a tower: `vision_model.*`, `mm_projector.*`, and more where its cases need it."""
    return tensors(folder / tower_spec(folder, tower)["weights"])


def text_encoder_of(
    folder: Path, tower: str, question: Mapping[str, Any], dtype: torch.dtype, device: torch.device
) -> ClipTextEncoder:
    """The text tower that is recorded with a tower, with a tokenizer that knows one question: its recorded ids.

    Raises NotReplayableError where there is none.
    """
    spec = tower_spec(folder, tower)
    if "clip_text_config" not in spec:
        raise NotReplayableError(f"models/models.json has no `clip_text_config` for the tower {tower!r}")
    encoder = ClipTextEncoder.of_weights(
        spec["clip_text_config"],
        spec["vision_config"],
        {k: v.float() for k, v in tower_weights(folder, tower).items()},
        RecordedTokens(question),
    )
    return encoder.to(device, dtype)


class RecordedTokens:
    """Stands in for a tokenizer: the recorded ids of one question, start and end token included."""

    def __init__(self, question: Mapping[str, Any]) -> None:
        self._text, ids = question["clip_text"], question["ids"]
        self.bos_token_id, self._words, self.eos_token_id = ids[0], ids[1:-1], ids[-1]

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        if text != self._text or add_special_tokens:
            raise NotReplayableError(
                f"expected the question as it was recorded, {self._text!r:.60}, found {text!r:.60}"
            )
        return {"input_ids": self._words}


def pixels_of(setup: Setup, side: int) -> Tensor:
    """(1, 3, side, side): the recorded pixels in the case's dtype; coarse ones with every cell repeated."""
    if "pixel_values" in setup.inputs:
        return setup.inputs["pixel_values"].to(setup.dtype)
    coarse = setup.inputs["coarse"]
    times = side // coarse.shape[-1]
    return coarse.repeat_interleave(times, -1).repeat_interleave(times, -2)[None].to(setup.dtype)


def _text_spec(folder: Path, name: str) -> dict[str, Any]:
    spec = read_json(folder / "models" / "models.json").get(name, {})
    if "config" not in spec:
        raise NotReplayableError(f"models/models.json has no Llama `config` for the model {name!r}")
    return dict(spec)


def tower_spec(folder: Path, name: str) -> dict[str, Any]:
    """What models/models.json says of a tower."""
    return dict(read_json(folder / "models" / "models.json")["towers"][name])


def tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, plain or packed; kept until the file changes. Raises PrunebenchError where it is
    damaged."""
    found = next((p for p in (path, path.with_name(f"{path.name}.xz")) if p.is_file()), None)
    return _loaded(path, found, found.stat().st_mtime_ns if found else 0)


@lru_cache(maxsize=16)
def _loaded(path: Path, _found: Path | None, _stamp: int) -> dict[str, Tensor]:
    try:
        loaded: dict[str, Tensor] = load(read_bytes(path))
    except SafetensorError as error:
        raise PrunebenchError(f"{path}: expected safetensors, found a damaged or cut file ({error}): {MEND}") from None
    return loaded
