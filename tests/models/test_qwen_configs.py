"""Published checkpoints of Qwen-VL by their config.json, and what of the families is refused before weights are
fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from qwens import FAMILIES, make
from transformers import AutoConfig, AutoModelForImageTextToText

from harness.core import flops
from harness.core.budget import Budget
from harness.core.errors import PrunebenchError
from harness.core.shape import PromptShape
from harness.method import build
from harness.models.adapters import ADAPTERS, adapter_class, adapter_for
from harness.models.load import locate_model
from harness.models.published import FOLDER, published_prompt
from harness.models.requirements import check

#: the number of parameters that the hub states for the weights, as remembered, like config.json: no test reaches the
#: hub, and that five numbers agree to the last digit is what is tested
PARAMETERS = {
    "qwen2-vl-7b": 8_291_375_616,
    "qwen2.5-vl-3b": 3_754_622_976,
    "qwen2.5-vl-7b": 8_292_166_656,
    "qwen3-vl-4b": 4_437_815_808,
    "qwen3-vl-8b": 8_767_123_696,
}


def stated_of(name: str) -> dict[str, Any]:
    """config.json of a published checkpoint."""
    body: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return body


def config_of(stated: dict[str, Any], folder: Path) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(stated))
    return AutoConfig.from_pretrained(folder)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_published_config_is_supported_and_has_the_published_parameters(name: str, tmp_path: Path) -> None:
    config = config_of(stated_of(name), tmp_path)
    adapter = adapter_class(config)
    check(stated_of(name), adapter.types, name)
    check(config, adapter.requirements, name)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    model.tie_weights()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    tensors = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    for end, shape in adapter.shapes_of(config).items():
        assert {found for key, found in tensors.items() if key.endswith(end)} == {shape}, end
    depths = {part: {key for key in tensors if key.startswith(start)} for part, start in PARTS.items()}
    for part, depth in adapter.depths_of(config).items():
        assert len({key.split(".")[3] for key in depths[part]}) == depth


PARTS = {"decoder": "model.language_model.layers.", "vision": "model.visual.blocks."}


def test_the_towers_share_of_a_request_is_that_of_the_literature(tmp_path: Path) -> None:
    """640 x 480 and 40 text tokens: 5.7 T and 2.07 T FLOPs on Qwen2.5-VL-7B, 4.8 T and 1.27 T on Qwen3-VL-8B."""
    expected = {"qwen2.5-vl-7b": (391, 34, 46, 5.7, 2.07), "qwen3-vl-8b": (300, 30, 40, 4.8, 1.27)}
    for name, (tokens, rows, columns, prefill, tower) in expected.items():
        config = config_of(stated_of(name), tmp_path)
        adapter = adapter_class(config)
        decoder, image = adapter.shape_of(config, 2), adapter.shape_at(config, rows, columns)  # type: ignore[attr-defined]
        assert image.tokens == tokens
        assert flops.prefill_unpruned(decoder, tokens + 40) / 1e12 == pytest.approx(prefill, abs=0.05)
        seen = flops.vision_tower(image.vision) + flops.projector(decoder, image.vision)
        assert seen / 1e12 == pytest.approx(tower, abs=0.005)


def test_sizes_are_known_without_files() -> None:
    """At the most pixels that lmms-eval gives: 2,048 tokens of 28 x 28 pixels, 1,568 of 32 x 32."""
    found = {name: published_prompt(name) for name in PARAMETERS}
    assert {name: prompt.n_visual for name, prompt in found.items() if prompt} == {
        name: 1568 if name.startswith("qwen3") else 2048 for name in PARAMETERS
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_of_sizes_has_these_sizes(name: str) -> None:
    """What models of random weights are made of; a head of 128 channels, as published."""
    config = config_of_published(name)
    adapter = adapter_class(config)
    usual = PromptShape(adapter.shape_of(config, 4), (adapter.image_of(config),))
    again = adapter.config_of(usual)
    assert adapter.shape_of(again, 4) == usual.decoder
    assert adapter.image_of(again) == usual.images[0]
    check(again, adapter.requirements, name)
    sections = again.text_config.rope_parameters["mrope_section"]
    assert sections == config.text_config.rope_parameters["mrope_section"]


def config_of_published(name: str) -> Any:
    shipped = {"qwen2_vl": "qwen2-vl-7b", "qwen2_5_vl": "qwen2.5-vl-7b", "qwen3_vl": "qwen3-vl-8b"}[name]
    stated = stated_of(shipped)
    return AutoConfig.for_model(stated.pop("model_type"), **stated)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("qwen2.5-vl-7b", {"use_sliding_window": True, "max_window_layers": 14}, "layers of sliding_attention"),
        ("qwen2.5-vl-7b", {"vision_config.out_hidden_size": 4096}, "4096 on a decoder of 3584"),
        ("qwen2.5-vl-7b", {"vision_config.fullatt_block_indexes": [7, 40]}, "[7, 40] in a tower of 32 layers"),
        ("qwen2.5-vl-7b", {"vision_config.window_size": 14}, "14 with joined patches of 28 pixels"),
        ("qwen2.5-vl-7b", {"image_token_id": 151656}, "151656 and 151656 in a vocabulary"),
        ("qwen2.5-vl-7b", {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24]}}, "mrope_section=[16, 24]"),
        ("qwen2-vl-7b", {"vision_config.num_heads": 7}, "7 heads in a width of 1280"),
        ("qwen2-vl-7b", {"vision_config.in_channels": 1}, "found 1"),
        ("qwen3-vl-8b", {"vision_config.deepstack_visual_indexes": [16, 8]}, "[16, 8] in a tower of 27 layers"),
        ("qwen3-vl-8b", {"text_config.num_hidden_layers": 3}, "at most 2 of them"),
    ],
)
def test_what_the_engine_does_not_compute_is_refused(
    name: str, change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    stated = stated_of(name)
    for place, value in change.items():
        part = stated
        *path, last = place.split(".")
        for key in path:
            part = part[key]
        part[last] = value
    config = config_of(stated, tmp_path)
    with pytest.raises(PrunebenchError) as refused:
        check(config, adapter_class(config).requirements, name)
    assert says in str(refused.value)


OTHERS = (
    "PaliGemmaForConditionalGeneration",
    "Gemma3ForConditionalGeneration",
    "VideoLlavaForConditionalGeneration",
    "LlavaNextVideoForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
    "Qwen2_5OmniForConditionalGeneration",
)


@pytest.mark.parametrize("architecture", OTHERS)
def test_other_classes_are_refused_before_weights_are_fetched(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def download(hub: str, *, allow_patterns: list[str], revision: str | None = None) -> str:
        fetched.extend(allow_patterns)
        (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(PrunebenchError, match=f"is a {architecture}; prunebench supports {', '.join(ADAPTERS)}"):
        locate_model("owner/model", "cpu")
    assert fetched == ["config.json"]


NO_CLS = ("visionzip", "fastervlm", "vispruner", "prumerge", "holov", "cdpruner")


@pytest.mark.parametrize("name", FAMILIES)
def test_methods_that_need_another_tower_are_refused_where_they_are_built(name: str) -> None:
    usual = adapter_for(make(name)).usual
    for method in NO_CLS:
        with pytest.raises(
            PrunebenchError, match=rf"{method} looks at .* of the vision tower: expected .* in this model"
        ):
            build(method, Budget("kept", 20), {}, usual)
    assert build("downsample", Budget("kept", 20), {}, usual).knobs() == {"keep": 20, "side": None}
    built = build("hiprune", Budget("kept", 20), {}, usual)
    assert built.knobs()["official"] == "qwen"
    assert built.plan(usual) is None
