"""LLaVA-NeXT before its weights: the published configurations, the tokens of images by their size, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import REMOVED, change, refused
from families import PINPOINTS, llava_next
from transformers import LlavaNextForConditionalGeneration

from harness.core import budget, flops
from harness.models.adapters import LlavaNextAdapter
from harness.models.config import model_config
from harness.models.load import locate_model
from harness.models.published import published_config, published_prompt

#: LLaVA-1.5's published counts (tests/bench/test_bench.py) and one newline vector of the decoder's width
PARAMETERS = {"llava-v1.6-vicuna-7b": 7_063_427_072 + 4096, "llava-v1.6-vicuna-13b": 13_351_494_656 + 5120}
#: (width, height) -> tokens of LLaVA-NeXT's processor at 336 pixels with five resolutions, as recorded from it
TOKENS = {
    (640, 480): 2340,
    (480, 640): 2352,
    (1024, 768): 2340,
    (336, 336): 1176,
    (224, 224): 1176,
    (2048, 1536): 2340,
    (100, 100): 1176,
    (1600, 400): 1890,
}


def published(name: str) -> Any:
    return published_config(name)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_published_configuration_is_the_shipped_shape(name: str) -> None:
    config = published(name)
    with torch.device("meta"):
        model = LlavaNextForConditionalGeneration(config)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    usual = published_prompt(name)
    assert usual is not None
    # the overview, and 2 x 2 tiles without padding: an image of the most tokens
    assert (usual.n_visual, usual.images[0].cut, usual.one_of_many) == (576 + 48 * 49, (2, 2), True)
    shipped = model_config(name)
    assert (shipped.hub, shipped.image) == (f"llava-hf/{name}-hf", "plain")
    tensors = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for end, shape in LlavaNextAdapter.shapes_of(config).items():
        assert shape in [found for key, found in tensors.items() if key.endswith(end.removeprefix("model."))], end


def test_an_image_of_640_x_480_costs_what_the_closed_form_says() -> None:
    """33.8 T for the decoder at 40 text tokens, and 2.03 T for tower and projector, of which tiles are five."""
    prompt = published_prompt("llava-v1.6-vicuna-7b")
    assert prompt is not None
    image = LlavaNextAdapter.image_at(published("llava-v1.6-vicuna-7b"), None, (480, 640))
    assert image.vision.tiles == 5
    assert flops.prefill_unpruned(prompt.decoder, image.tokens + 40) / 1e12 == pytest.approx(33.8, abs=0.05)
    vision = flops.vision_tower(image.vision) + flops.projector(prompt.decoder, image.vision)
    assert vision / 1e12 == pytest.approx(2.03, abs=0.01)


@pytest.mark.parametrize(("size", "tokens"), TOKENS.items())
def test_tokens_of_an_image_follow_from_its_size(size: tuple[int, int], tokens: int) -> None:
    width, height = size
    assert LlavaNextAdapter.image_at(published("llava-v1.6-vicuna-7b"), None, (height, width)).tokens == tokens


CONFIG, PROCESSOR = "config.json", "processor_config.json"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (CONFIG, {"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy default"),
    (CONFIG, {"vision_feature_layer": [-2, -5]}, "vision_feature_layer as one layer"),
    (CONFIG, {"vision_config.model_type": "siglip_vision_model"}, "clip_vision_model"),
    (CONFIG, {"image_grid_pinpoints": []}, "image_grid_pinpoints"),
    (CONFIG, {"image_grid_pinpoints": [[56, 100]]}, "image_grid_pinpoints"),
    (CONFIG, {"image_grid_pinpoints": [[56]]}, "image_grid_pinpoints"),
    (CONFIG, {"image_grid_pinpoints": PINPOINTS[:2]}, "image_grid_pinpoints"),
    (CONFIG, {"mm_patch_merge_type": "spatial"}, "mm_patch_merge_type"),
    (CONFIG, {"image_aspect_ratio": "pad"}, "image_aspect_ratio"),
    (CONFIG, {"use_image_newline_parameter": False}, "use_image_newline_parameter"),
    (CONFIG, {"image_token_index": 5}, "token"),
    (PROCESSOR, {"image_processor.image_grid_pinpoints": PINPOINTS[:4]}, "image_grid_pinpoints"),
    (PROCESSOR, {"image_processor.size": {"shortest_edge": 28}}, "pixels"),
    (PROCESSOR, {"image_processor.image_processor_type": "CLIPImageProcessor"}, "pixels"),
    (PROCESSOR, {"patch_size": 7}, "patch_size"),
]


@pytest.mark.parametrize(("file", "changes", "named"), REFUSED, ids=[f"{n}-{r[2][:20]}" for n, r in enumerate(REFUSED)])
def test_another_way_of_cutting_is_refused_before_weights(
    file: str, changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    folder = llava_next(tmp_path / "m")
    if file == CONFIG and named not in ("token", "image_grid_pinpoints"):  # those are held against the processor
        (folder / "model.safetensors").write_bytes(b"not read")
    change(folder / file, changes)
    assert named in refused(lambda: locate_model(str(folder), "cpu"))


def test_a_folder_is_read_as_its_files_say(tmp_path: Path) -> None:
    located = locate_model(str(llava_next(tmp_path / "m")), "cpu")
    assert (located.one_size, located.usual.n_visual) == (False, 16 + 8 * 9)
    image = located.prompter.processing["image"]
    assert image["settings"]["image_grid_pinpoints"] == PINPOINTS
    assert image["policy"] == "plain"
    # a share of the FLOPs is a share of each prompt's own tokens
    assert str(located.method("fastv", budget.parse("0.6flops"), n_text=20).knobs()["keep"]).endswith("kept")
    change(located.folder / CONFIG, {"image_grid_pinpoints": REMOVED})
    assert "image_grid_pinpoints" in refused(lambda: locate_model(str(located.folder), "cpu"))
