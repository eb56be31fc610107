"""Folders shaped like checkpoints: the mini model's files with changes, and tiny random models of other decoders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, PreTrainedConfig

from harness.core.errors import PrunebenchError
from harness.core.paths import TOP

WEIGHTS = TOP / "tasks" / "mini" / "weights"
#: read and never written by tests, so a link does
LINKED = ("model.safetensors", "tokenizer.json")
REMOVED = object()


def copy(to: Path, *, linked: bool = True) -> Path:
    """The mini model's files in another folder; its weights and tokenizer as links."""
    to.mkdir(parents=True)
    for file in WEIGHTS.iterdir():
        if linked and file.name in LINKED:
            (to / file.name).symlink_to(file)
        else:
            shutil.copyfile(file, to / file.name)
    return to


def change(file: Path, changes: Mapping[str, Any]) -> None:
    """Set dotted keys of a JSON file; REMOVED takes one out."""
    body = json.loads(file.read_text())
    for place, value in changes.items():
        *path, last = place.split(".")
        part = body
        for name in path:
            part = part.setdefault(name, {})
        if value is REMOVED:
            part.pop(last, None)
        else:
            part[last] = value
    file.write_text(json.dumps(body))


def tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Write the weights of a folder anew, edited."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    found = load_file(file)
    edit(found)
    file.unlink()
    save_file({name: value.contiguous() for name, value in found.items()}, file, {"format": "pt"})


def tiny(to: Path, text: PreTrainedConfig, seed: int = 0, **changes: Any) -> Path:
    """A random LLaVA with a decoder `text`, on the mini model's tokenizer; 16 visual tokens. `changes` go to its
    config."""
    copy(to)
    (to / "model.safetensors").unlink()
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, image_size=56, patch_size=14, initializer_range=0.3)
    values = {"image_token_index": 4, "image_seq_length": 16, "vision_feature_layer": -2} | changes
    LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, **values)).save_pretrained(to)
    change(
        to / "processor_config.json",
        {"image_processor.crop_size": {"height": 56, "width": 56}, "image_processor.size": {"shortest_edge": 56}},
    )
    return to


def refused(call: Callable[[], Any]) -> str:
    """The one line with which a call refuses."""
    with pytest.raises(PrunebenchError) as error:
        call()
    said = str(error.value)
    assert "\n" not in said, said
    assert len(said) < 1200, said
    return said
