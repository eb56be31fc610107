"""InternVL before its weights: the published configurations, the tokens of images by their size, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import internvls
import pytest
import torch
from checkpoints import REMOVED, change, refused
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from harness.core import flops
from harness.core.shape import PromptShape
from harness.models.adapters import InternVLAdapter
from harness.models.config import ModelConfig, model_config
from harness.models.load import LoadedModel, locate_model
from harness.models.published import FOLDER, published_config, published_prompt
from harness.models.requirements import check

#: parameters in billions as the hub shows them, as remembered: no test reaches the hub
BILLIONS = {"internvl3-8b": 7.94, "internvl3-2b": 2.09}
#: parameters of the configurations kept here
PARAMETERS = {"internvl3-8b": 7_944_373_760, "internvl3-2b": 2_088_957_440}
#: (width, height) -> tokens of InternVL's processor at 448 pixels with 1 to 12 tiles, as recorded from it
TOKENS = {
    (640, 480): 3328,
    (480, 640): 3328,
    (1024, 768): 3328,
    (336, 336): 256,
    (224, 224): 256,
    (2048, 1536): 3328,
    (100, 100): 256,
    (1600, 400): 1280,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_published_configuration_is_supported_and_has_the_published_parameters(name: str) -> None:
    config = published_config(name)
    assert config is not None
    check(json.loads((FOLDER / f"{name}.json").read_text()), InternVLAdapter.types, name)
    check(config, InternVLAdapter.requirements, name)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    model.tie_weights()
    n = sum(p.numel() for p in model.parameters())
    assert (n, round(n / 1e9, 2)) == (PARAMETERS[name], BILLIONS[name])
    tensors = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    for end, shape in InternVLAdapter.shapes_of(config).items():
        assert {found for key, found in tensors.items() if key.endswith(end)} == {shape}, end
    usual = published_prompt(name)
    assert usual is not None
    assert (usual.n_visual, len(usual.images[0].views), usual.one_of_many) == (3328, 13, True)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_shipped_config_asks_as_lmms_eval_does(name: str) -> None:
    config = model_config(name)
    assert (config.hub or "").lower() == f"opengvlab/{name}-hf"
    assert (config.prompt, config.image, config.system) == ("chat_template", "plain", None)
    assert (config.min_patches, config.max_patches) == (1, 12)


def test_an_image_costs_what_the_closed_form_says() -> None:
    """InternVL3-8B at 40 text tokens: 48.5 T and 9.59 T FLOPs for 13 tiles, 3.9 T and 0.74 T for one."""
    config = published_config("internvl3-8b")
    decoder = InternVLAdapter.shape_of(config, 2)
    for tiles, prefill, tower in ((13, 48.5, 9.59), (1, 3.9, 0.738)):
        image = InternVLAdapter.shape_of_tiles(config, tiles)
        assert flops.prefill_unpruned(decoder, image.tokens + 40) / 1e12 == pytest.approx(prefill, abs=0.05)
        seen = flops.vision_tower(image.vision) + flops.projector(decoder, image.vision)
        assert seen / 1e12 == pytest.approx(tower, abs=0.005)


@pytest.mark.parametrize(("size", "tokens"), TOKENS.items())
def test_tokens_of_a_published_size_are_those_recorded(size: tuple[int, int], tokens: int) -> None:
    config = published_config("internvl3-8b")
    processor = InternVLAdapter.usual_processor(config)
    assert InternVLAdapter.tokens_at(config, processor, size[::-1]) == tokens
    assert InternVLAdapter.image_at(config, processor, size[::-1]).tokens == tokens


def test_a_config_of_sizes_has_these_sizes() -> None:
    config = published_config("internvl3-8b")
    usual = PromptShape(InternVLAdapter.shape_of(config, 4), (InternVLAdapter.image_of(config),))
    again = InternVLAdapter.config_of(usual)
    assert InternVLAdapter.shape_of(again, 4) == usual.decoder
    assert InternVLAdapter.image_of(again) == usual.images[0]
    check(again, InternVLAdapter.requirements, "again")


# -------------------------------------------------------------------------------------------------------------- folders


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return locate_model(str(internvls.folder(tmp_path_factory.mktemp("internvl") / "m")), "cpu").load()


#: (width, height): each number of tiles, long strips both ways, tiny and large, and ties of the ratio
SIZES = (
    *families.SIZES,
    *((84 * wide, 84 * high) for wide in range(1, 7) for high in range(1, 7) if wide * high <= 6),
    (1, 1), (3, 2), (7, 11), (83, 85), (2000, 20), (20, 2000), (1999, 1000), (1000, 1999), (641, 479), (333, 111),
    (400, 97), (61, 337), (5000, 4000), (119, 119), (120, 120), (118, 236), (205, 206),
)  # fmt: skip


def test_a_prompt_has_the_tokens_and_tiles_that_the_processor_gives_it(loaded: LoadedModel) -> None:
    """Over many sizes; `<img>` and `</img>` stand around an image, as the processor puts them."""
    prompt, seen = loaded.template.replace("{text}", "Is it?"), set()
    for size in SIZES:
        image = families.picture(*size)
        theirs = loaded.processor(images=image, text=prompt, return_tensors="pt", min_patches=1, max_patches=6)
        size = size[1], size[0]
        assert loaded.prompt_ids("Is it?", (size,)) == theirs["input_ids"][0].tolist(), size
        made, shape = loaded.made(image), loaded.image_at(size)
        assert torch.equal(made["pixel_values"], theirs["pixel_values"]), size
        assert made["num_patches"].tolist() == [shape.vision.tiles] == [len(made["pixel_values"])]
        assert loaded.tokens_at(size) == shape.tokens
        seen.add(shape.vision.tiles)
    assert seen == {1, 3, 4, 5, 6, 7}


def test_limits_of_tiles_are_part_of_what_is_asked(tmp_path: Path) -> None:
    located = locate_model(str(internvls.folder(tmp_path / "m")), "cpu")

    def of(**changes: Any) -> Any:
        return replace(located, config=located.config.model_copy(update=changes)).prompter

    plain, fewer, more = of(), of(max_patches=2), of(min_patches=3, max_patches=4)
    size = 130, 130
    assert [p.image_at(size).vision.tiles for p in (plain, fewer, more)] == [5, 1, 5]
    assert (fewer.usual.n_visual, more.usual.n_visual, plain.usual.n_visual) == (27, 45, 63)
    image = families.picture(100, 220)
    assert [len(p.made(image)["pixel_values"]) for p in (plain, fewer, more)] == [3, 3, 4]
    assert more.made(image)["num_patches"].tolist() == [4]
    assert len({str(p.processing) for p in (plain, fewer, more)}) == 3
    assert len({p.image_backend for p in (plain, fewer, more)}) == 3
    assert more.image_backend == "GotOcr2ImageProcessor+plain 3 to 4 tiles"


CONFIG, PROCESSOR = "config.json", "processor_config.json"
#: as a checkpoint has it whose positions depend on the prompt's length from the start
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "long_factor": [1.0] * 6,
    "short_factor": [1.0] * 6,
    "original_max_position_embeddings": 512,
}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (CONFIG, {"text_config.model_type": "gemma2"}, "text_config of type llama, qwen2, qwen3, found 'gemma2'"),
    (CONFIG, {"vision_config.model_type": "siglip_vision_model"}, "vision_config of type internvl_vision"),
    (CONFIG, {"downsample_ratio": 0.25}, "downsample_ratio 0.5"),
    (CONFIG, {"vision_feature_layer": -2}, "vision_feature_layer -1"),
    (CONFIG, {"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy default"),
    (CONFIG, {"vision_config.image_size": [84, 56]}, "square tiles of an even number"),
    (CONFIG, {"vision_config.image_size": [70, 70]}, "square tiles of an even number"),
    (CONFIG, {"vision_config.patch_size": [14, 28]}, "square tiles of an even number"),
    (CONFIG, {"vision_config.num_attention_heads": 3}, "heads that share the tower's width evenly"),
    (CONFIG, {"vision_config.num_channels": 1}, "vision_config.num_channels 3"),
    (CONFIG, {"vision_config.norm_type": "batch_norm"}, "vision_config.norm_type layer_norm or rms_norm"),
    (CONFIG, {"image_seq_length": 16}, "image_seq_length as the visual tokens of a tile, found 16 with 9"),
    (CONFIG, {"image_token_id": 100_000}, "an image token of the vocabulary"),
    (CONFIG, {"text_config.rope_parameters": LONGROPE}, "rope_type 'longrope'"),
    (CONFIG, {"text_config.use_sliding_window": True, "text_config.sliding_window": 8}, "full attention in every"),
    (CONFIG, {"image_token_id": 5}, "'<IMG_CONTEXT>' to be token 5"),
    (PROCESSOR, {"image_seq_length": 16}, "image_seq_length 9 in the processor's settings"),
    (PROCESSOR, {"image_processor.size": {"height": 56, "width": 56}}, "tiles of [84, 84] pixels"),
    (PROCESSOR, {"image_processor.size": {"height": 84, "width": 90_000}}, "whole numbers up to 8192"),
    (PROCESSOR, {"image_processor.max_patches": 0}, "min_patches and max_patches of 1 to 64 tiles, found 1 and 0"),
    (PROCESSOR, {"image_processor.max_patches": 500}, "min_patches and max_patches of 1 to 64 tiles"),
    (PROCESSOR, {"image_processor.do_resize": False, "image_processor.image_processor_type": "CLIPImageProcessor",
                 "image_processor.crop_size": {"height": 84, "width": 84}}, "to make pixels of (7, 3, 84, 84)"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "changes", "named"), REFUSED, ids=[f"{n}-{r[2][:20]}" for n, r in enumerate(REFUSED)])
def test_another_way_is_refused_before_weights(
    file: str, changes: dict[str, Any], named: str, tmp_path: Path, loaded: LoadedModel
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for one in Path(loaded.config.path or "").iterdir():
        (folder / one.name).write_bytes(one.read_bytes())
    if file == CONFIG and "token 5" not in named:
        (folder / "model.safetensors").write_bytes(b"not read")
    change(folder / file, changes)
    said = refused(lambda: locate_model(str(folder), "cpu"))
    assert named in said
    assert "\n" not in said


def test_what_the_family_is_never_asked_is_refused(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = loaded.config.path or ""
    for option, value in (("prompt", "vicuna_v1"), ("image", "pad")):
        said = refused(lambda option=option, value=value: locate_model(folder, "cpu", **{option: value}))  # type: ignore[misc]
        assert f"{option}='{value}': expected its own chat template and images as its processor cuts them" in said
    assert "hold '<IMG_CONTEXT>'" in refused(lambda: loaded.asked("a", "Is <IMG_CONTEXT> red?", 8, ((60, 50),)))
    # its video token lies beyond the vocabulary, as InternVL3's does
    assert loaded.processor.tokenizer.video_token_id == loaded.usual.decoder.vocab
    said = refused(lambda: loaded.asked("a", "Is <video> red?", 8, ((60, 50),)))
    assert "expected a prompt without videos, found '<video>' in it" in said
    assert "expected the size of each image" in refused(lambda: loaded.prompt_ids("Is it?"))
    for limit in ("min_pixels", "max_pixels"):
        config = loaded.config.model_copy(update={limit: 9})
        monkeypatch.setattr("harness.models.load.model_config", lambda *_, config=config: config)
        assert "min_pixels and max_pixels are limits of families" in refused(lambda: locate_model(folder, "cpu"))
    config = loaded.config.model_copy(update={"min_patches": 3, "max_patches": 2})
    monkeypatch.setattr("harness.models.load.model_config", lambda *_: config)
    assert "expected min_patches of at most max_patches, found 3 and 2" in refused(lambda: locate_model(folder, "cpu"))
    mini = model_config("mini").model_copy(update={"max_patches": 4})
    monkeypatch.setattr("harness.models.load.model_config", lambda *_: mini)
    assert "min_patches and max_patches are limits of families" in refused(lambda: locate_model("mini", "cpu"))
    assert ModelConfig(name="a", max_patches=3).limits == {"tiles": (None, 3)}


def test_a_folder_as_the_hub_has_it_is_the_same(tmp_path: Path) -> None:
    """The image processor's settings in a file of their own, its class by its old name, and nothing said of ties."""
    new = locate_model(str(internvls.folder(tmp_path / "new")), "cpu")
    folder = internvls.folder(tmp_path / "old")
    stated = json.loads((folder / PROCESSOR).read_text())
    image = {**stated.pop("image_processor"), "crop_size": None, "do_center_crop": None}
    image |= {"processor_class": "InternVLProcessor", "image_processor_type": "GotOcr2ImageProcessorFast"}
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    (folder / PROCESSOR).write_text(
        json.dumps({"image_seq_length": internvls.TOKENS, "processor_class": "InternVLProcessor"})
    )
    assert {name.split(".")[0] for name in load_file(folder / "model.safetensors")} == {
        *("language_model", "vision_tower", "multi_modal_projector")
    }
    change(folder / CONFIG, {"tie_word_embeddings": REMOVED})
    located = locate_model(str(folder), "cpu")
    assert located.prompter.processing == new.prompter.processing
    ours, theirs = (one.load().model.state_dict() for one in (located, new))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    change(folder / CONFIG, {"vision_config.num_hidden_layers": 4})
    assert "expected 4 vision layers in the weights" in refused(lambda: locate_model(str(folder), "cpu"))
