"""Recordings of official codes on LLaVA-NeXT: the model and the input of a case, what a user would type, and the
patches of each tile.

Decoders and towers are those of the recordings on LLaVA-1.5, which lie in the folder `goldens` beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.core.budget import Budget
from harness.engine.run import EngineRun
from harness.models.adapters import LlavaNextAdapter
from harness.proof.golden_compare import Case, sets_apart
from harness.proof.golden_files import read_json
from harness.proof.golden_methods import AsTyped
from harness.proof.golden_models import Setup, made, pixels_of, prompt_of, tensors


def prepared(folder: Path, case: Case, device: torch.device) -> tuple[LlavaNextAdapter, Mapping[str, Tensor]]:
    """The model of a case, and what its prefill is called with."""
    beside = folder.parent / "goldens"
    setup = Setup(
        case["model"], case["vision"], torch.float32, tensors(folder / "inputs" / f"{case['input']}.safetensors")
    )
    token = int(read_json(folder / "models" / "models.json")["next"]["image_token_index"])
    usual = prompt_of(beside, setup).with_text(0)
    adapter = made(beside, setup.text, setup.tower, setup.dtype, device, usual, token, LlavaNextAdapter)
    assert isinstance(adapter, LlavaNextAdapter)
    with torch.no_grad():
        adapter.newline.copy_(tensors(folder / "models" / "next.safetensors")["image_newline"])
    given = setup.inputs
    size = given["image_size"].long()[None]
    n = adapter.image_at(adapter.model.config, None, (int(size[0, 0]), int(size[0, 1]))).tokens
    ids = torch.cat([given["pre_ids"].long(), torch.full((n,), token), given["post_ids"].long()])[None]
    pixels = pixels_of(setup, adapter.model.config.vision_config.image_size)
    return adapter, {
        "input_ids": ids.to(device),
        "attention_mask": torch.ones_like(ids).to(device),
        "pixel_values": pixels.to(device),
        "image_sizes": size.to(device),
    }


def visionzip(case: Case) -> AsTyped:
    """Dominant and contextual tokens of each tile."""
    return AsTyped("visionzip", Budget("none"), {"dominant": case["dominant"], "contextual": case["contextual"]})


def hiprune(case: Case) -> AsTyped:
    """Tokens of all tiles."""
    knobs: dict[str, Any] = {"alpha": case["alpha"], "object_layer": case["object_layer"]}
    return AsTyped("hiprune", Budget("kept", case["retention"]), knobs)


def vscan(case: Case) -> AsTyped:
    """Tokens of each tile, and of all at layers of the decoder; the code reads layer 5 of any tower."""
    counts = (case["visual_token_num"], *case["image_token_list"])
    knobs = {"counts": counts, "layers": tuple(case["layer_list"]), "local_layer": 5, "official": "next-code"}
    return AsTyped("vscan", Budget("none"), knobs)


def unlike_window(stage: Case, origins: Sequence[Sequence[int]]) -> str | None:
    """A stage that keeps some of the first visual tokens and all others; `origins`: those of each layer."""
    layer, window = stage["rank_layer"], stage["window"]
    before = origins[layer - 1]
    wanted = [*(before[slot] for slot in stage["kept_window"]), *before[window:]]
    return None if list(origins[layer]) == wanted else f"layer {layer}: {sets_apart(list(origins[layer]), wanted)}"


def unlike_tiles(case: Case, run: EngineRun) -> str | None:
    """The first tile of which other patches were kept than were recorded."""
    kept = run.memo.get("tiles")
    if kept is None or len(kept) != len(case["kept_per_tile"]):
        return f"expected {len(case['kept_per_tile'])} tiles, found {0 if kept is None else len(kept)}"
    for tile, (mine, recorded) in enumerate(zip(kept, case["kept_per_tile"], strict=True)):
        found = mine.nonzero().flatten().tolist()
        if found != recorded:
            return f"tile {tile}: kept patches {sorted(set(found) ^ set(recorded))[:8]} differ"
    return None
