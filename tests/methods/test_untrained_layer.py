"""The figures that PruMerge's card gives for the mini model."""

from __future__ import annotations

import re

import numpy as np
import torch
from transformers import AutoImageProcessor, LlavaForConditionalGeneration

from harness.method import method_class
from harness.method.about import about
from tasks.mini import relevant, world
from tasks.mini.export import FOLDER

SCENES = 24


def auc(scores: np.ndarray, shown: np.ndarray) -> float:
    """How often a patch that shows something scores above one that does not."""
    return float((scores[shown][:, None] > scores[~shown][None]).mean())


def test_the_last_tower_layer_of_mini_ranks_worse_than_the_one_before() -> None:
    llava = LlavaForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32, local_files_only=True).eval()
    images = AutoImageProcessor.from_pretrained(FOLDER, local_files_only=True)
    tower = llava.model.vision_tower
    layers = [module for name, module in tower.named_modules() if re.search(r"encoder\.layers\.\d+$", name)]
    found: dict[int, list[float]] = {-1: [], -2: []}
    for scene in [*relevant.scenes().values()][: SCENES * 19 : 19]:
        labels = world.patch_labels(scene)
        shown = (labels.shape >= 0) | (labels.char >= 0)
        pixels = images([world.render(scene)], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            states = tower(pixels, output_hidden_states=True).hidden_states
            for layer, areas in found.items():
                # one row of [CLS] over all patches without a split into heads; a softmax changes no order
                x = layers[layer].layer_norm1(states[layer - 1])
                query, key = layers[layer].self_attn.q_proj(x)[0, 0], layers[layer].self_attn.k_proj(x)[0, 1:]
                areas.append(auc((key @ query).numpy(), shown))
    last, before = (float(np.mean(areas)) for areas in found.values())
    told = [float(number) for number in re.findall(r"0\.\d\d", about(method_class("prumerge")).on_mini)]
    assert told == [0.77, 0.99]
    assert abs(last - told[0]) < 0.02
    assert abs(before - told[1]) < 0.01
