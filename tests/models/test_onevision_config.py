"""LLaVA-OneVision before its weights: the published configuration, tokens of images by their size and company, and
refusals."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import onevisions
import pytest
import torch
from checkpoints import REMOVED, WEIGHTS, change, refused
from onevisions import ASPECT, PINPOINTS, SIDE, SIZES, folder, picture, size_of
from PIL import Image
from transformers import (
    AutoTokenizer,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
)

from harness.core import budget, flops, grids
from harness.core.shape import Grid, Size
from harness.models.adapters import LlavaOnevisionAdapter
from harness.models.adapters.anyres import largest_size, most_tiles, raster_of
from harness.models.adapters.tiles import cut_of
from harness.models.config import model_config
from harness.models.load import locate_model
from harness.models.published import published_config, published_prompt

NAME = "llava-onevision-qwen2-7b-ov"
#: of LLaVA's own checkpoint, whose vocabulary is Qwen2-7B-Instruct's 152,064; the converted one has 64 rows more, each
#: of embeddings and head (its conversion adds two tokens and pads to 64)
PARAMETERS = 8_030_348_832 + 64 * 2 * 3584
#: (width, height) -> tokens of the processor at 384 pixels with 36 resolutions, as recorded from it
TOKENS = {
    (640, 480): 2929,
    (480, 640): 2943,
    (1024, 768): 4725,
    (336, 336): 1485,
    (224, 224): 1485,
    (2048, 1536): 7309,
    (100, 100): 1485,
    (1600, 400): 5353,
}


def published() -> Any:
    return published_config(NAME)


@pytest.fixture(scope="module")
def processor() -> LlavaOnevisionProcessor:
    """As the conversion of the checkpoints makes it, but for tokenizer and colours."""
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    image, video = LlavaOnevisionImageProcessor(), LlavaOnevisionVideoProcessor()
    return LlavaOnevisionProcessor(image, tokenizer, video, num_image_tokens=729, vision_feature_select_strategy="full")


def test_the_published_configuration_is_the_shipped_shape() -> None:
    config = published()
    with torch.device("meta"):
        model = LlavaOnevisionForConditionalGeneration(config)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS
    usual = published_prompt(NAME)
    assert usual is not None
    # the overview, and 3 x 4 tiles un-padded to just the size that is not shrunk: an image of the most tokens
    assert usual.images[0].views == (Grid(27, 27), Grid(98, 81, newline=True))
    assert (usual.n_visual, usual.one_of_many, usual.images[0].vision.tiles) == (8765, True, 13)
    shipped = model_config(NAME)
    assert (shipped.hub, shipped.image, shipped.system) == (f"llava-hf/{NAME}-hf", "plain", None)
    tensors = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for end, shape in LlavaOnevisionAdapter.shapes_of(config).items():
        assert shape in [found for key, found in tensors.items() if key.endswith(end.removeprefix("model."))], end


def test_an_image_of_640_x_480_costs_what_the_closed_form_says() -> None:
    """42.3 T for the decoder at 40 text tokens, and 3.33 T for tower and projector on five tiles of 729 patches."""
    prompt = published_prompt(NAME)
    assert prompt is not None
    image = LlavaOnevisionAdapter.image_at(published(), None, (480, 640))
    assert image.vision.tiles == 5
    assert flops.prefill_unpruned(prompt.decoder, image.tokens + 40) / 1e12 == pytest.approx(42.3, abs=0.05)
    vision = flops.vision_tower(image.vision) + flops.projector(prompt.decoder, image.vision)
    assert vision / 1e12 == pytest.approx(3.33, abs=0.01)
    among = LlavaOnevisionAdapter.among(2).image_at(published(), None, (480, 640))
    assert (among.tokens, 5 * flops.vision_tower(among.vision)) == (730, flops.vision_tower(image.vision))


@pytest.mark.parametrize(("size", "tokens"), TOKENS.items())
def test_tokens_of_an_image_follow_from_its_size(size: tuple[int, int], tokens: int) -> None:
    width, height = size
    assert LlavaOnevisionAdapter.image_at(published(), None, (height, width)).tokens == tokens


def unlike_sizes(n: int) -> list[Size]:
    """Sizes of every shape from 1 x 100 to 8,192 pixels."""
    draw = random.Random(0)
    sides = [round(10 ** draw.uniform(0, 3.91)) for _ in range(n)]
    shapes = [min(8192, max(1, round(side * 10 ** draw.uniform(-2, 2)))) for side in sides]
    return [
        *zip(sides, shapes, strict=True),
        (1, 1),
        (1, 100),
        (100, 1),
        (82, 8192),
        (8192, 82),
        (384, 385),
        (768, 1920),
        (2304, 2304),
    ]


def test_tokens_are_those_of_the_processor_at_many_sizes(processor: LlavaOnevisionProcessor) -> None:
    """By its own count, of which placeholders are made; and every image has at most as many as the usual one."""
    config, sizes, most = published(), unlike_sizes(1500), published_prompt(NAME)
    theirs = processor._get_num_multimodal_tokens(image_sizes=[list(size) for size in sizes])["num_image_tokens"]
    ours = [LlavaOnevisionAdapter.image_at(config, processor, size).tokens for size in sizes]
    assert ours == theirs
    assert [LlavaOnevisionAdapter.tokens_at(config, processor, size) for size in sizes] == ours
    assert most is not None
    assert max(ours) <= most.n_visual
    assert len({*ours}) > 200
    unshrunk = [27 * 27 + LlavaOnevisionAdapter.cut(config, size).raster.tokens for size in sizes]
    assert sum(a != b for a, b in zip(ours, unshrunk, strict=True)) > 100, "NeXT's count would be wrong for many"


@pytest.mark.parametrize("size", [(640, 480), (100, 100), (1600, 400), (1200, 13)])
def test_pixels_are_those_of_the_processor(processor: LlavaOnevisionProcessor, size: tuple[int, int]) -> None:
    image, (width, height) = Image.new("RGB", size), size
    for n in (1, 2):
        adapter = LlavaOnevisionAdapter.among(n)
        made = adapter.processed(processor, image)
        assert tuple(made["pixel_values"].shape) == adapter.pixels_at(published(), processor, (height, width))
        for name, fact in adapter.facts_at(published(), processor, (height, width)).items():
            assert made[name].tolist() == fact.tolist(), name


def test_the_largest_image_is_the_largest() -> None:
    """By every size in a coarse net, for pinpoints and limits of several kinds."""
    pins = tuple((height, width) for height, width in PINPOINTS)
    for resolutions, most in ((pins, 2), (pins, 5), (pins, 9), (pins[:3], 1), (pins[4:9], 3)):
        best = largest_size(resolutions, 60, 4, most)
        found = {
            (h, w): raster_of(cut_of((h, w), resolutions, 60, 4), most).tokens
            for h in range(10, 700, 7)
            for w in range(10, 700, 7)
        }
        assert max(found.values()) <= raster_of(cut_of(best, resolutions, 60, 4), most).tokens


CONFIG, PROCESSOR = "config.json", "processor_config.json"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (CONFIG, {"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy full"),
    (CONFIG, {"vision_feature_layer": [-2, -1]}, "vision_feature_layer as one layer"),
    (CONFIG, {"vision_feature_layer": -4}, "-4 in a tower of 3 layers"),
    (CONFIG, {"vision_config.model_type": "clip_vision_model"}, "siglip_vision_model"),
    (CONFIG, {"vision_config.vision_use_head": True}, "vision_use_head"),
    (CONFIG, {"vision_config.vision_use_head": REMOVED}, "vision_use_head"),
    (CONFIG, {"vision_config.num_attention_heads": 3}, "3 heads in a width of 16"),
    (CONFIG, {"vision_config.image_size": 13}, "patches of 14 on images of 13"),
    (CONFIG, {"vision_config.hidden_act": "no_such"}, "'no_such'"),
    (CONFIG, {"vision_aspect_ratio": "anyres"}, "anyres_max_"),
    (CONFIG, {"vision_aspect_ratio": "anyres_max_0"}, "anyres_max_"),
    (CONFIG, {"vision_aspect_ratio": "pad"}, "anyres_max_"),
    (CONFIG, {"image_grid_pinpoints": [[60, 100]]}, "image_grid_pinpoints"),
    (CONFIG, {"image_grid_pinpoints": []}, "image_grid_pinpoints"),
    (CONFIG, {"image_grid_pinpoints": REMOVED}, "image_grid_pinpoints"),
    (CONFIG, {"use_image_newline_parameter": False}, "use_image_newline_parameter"),
    (CONFIG, {"video_token_index": 4}, "image and video tokens"),
    (CONFIG, {"video_token_index": 9999}, "image and video tokens"),
    (CONFIG, {"text_config.model_type": "gemma2"}, "'gemma2'"),
    (CONFIG, {"text_config.use_sliding_window": True, "text_config.layer_types": ["sliding_attention"] * 5}, "sliding"),
    (CONFIG, {"projector_hidden_act": "no_such"}, "'no_such'"),
    (CONFIG, {"image_token_index": 5}, "token"),
    (PROCESSOR, {"image_processor.image_grid_pinpoints": PINPOINTS[:4]}, "image_grid_pinpoints"),
    (PROCESSOR, {"image_processor.size": {"height": 30, "width": 30}}, "tiles of 60 pixels"),
    (PROCESSOR, {"image_processor.image_processor_type": "CLIPImageProcessor"}, "pixels"),
    (PROCESSOR, {"vision_aspect_ratio": "anyres_max_9"}, "vision_aspect_ratio 'anyres_max_2'"),
    (PROCESSOR, {"num_image_tokens": 729}, "num_image_tokens 16"),
    (PROCESSOR, {"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy 'full'"),
]
#: held against the processor's files, which are read behind the head of the weights
LATE = ("token", "tiles of 60 pixels", "pixels")


@pytest.mark.parametrize(("file", "changes", "named"), REFUSED, ids=[f"{n}-{r[2][:20]}" for n, r in enumerate(REFUSED)])
def test_another_way_of_cutting_is_refused_before_weights(
    file: str, changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    made = folder(tmp_path / "m")
    if file == CONFIG and named not in LATE and changes.get("image_grid_pinpoints") is not REMOVED:
        (made / "model.safetensors").write_bytes(b"not read")
    change(made / file, changes)
    assert named in refused(lambda: locate_model(str(made), "cpu"))


def test_families_of_other_limits_take_no_limits_of_pixels(tmp_path: Path) -> None:
    made = folder(tmp_path / "m")
    located = locate_model(str(made), "cpu", prompt="chat_template", image="pad")
    assert located.prompter.image_at((50, 130)).views == located.prompter.image_at((130, 130)).views


def test_a_folder_is_read_as_its_files_say(tmp_path: Path) -> None:
    located = locate_model(str(folder(tmp_path / "m")), "cpu")
    assert (located.one_size, located.usual.n_visual, located.config.prompt) == (False, 56, "chat_template")
    prompter = located.prompter
    image = prompter.processing["image"]
    assert (image["policy"], image["n_tokens_of_several"]) == ("plain", SIDE**2 + 1)
    assert prompter.template == "<|im_start|>user\n<image>\n{text}<|im_end|>\n<|im_start|>assistant\n"
    # one tile, rasters that are shrunk and one that is not
    rasters = [prompter.image_at(size_of(number)).views[1] for number in range(len(SIZES))]
    assert [tuple(raster) for raster in rasters] == [(4, 4, True), (4, 8, True), (4, 6, True), (6, 4, True)]
    assert [image.tokens for image in prompter.images_at([size_of(0), size_of(1)])] == [17, 17]
    assert most_tiles(ASPECT) == 2
    # a share of the FLOPs is a share of each prompt's own tokens
    assert str(located.method("fastv", budget.parse("0.6flops"), n_text=20).knobs()["keep"]).endswith("kept")


def test_the_grids_of_several_images_are_recorded_and_read_back(tmp_path: Path) -> None:
    """The one newline of an image that is not cut is a row without patches."""
    prompter = locate_model(str(folder(tmp_path / "m")), "cpu").prompter
    one, two = prompter.images_at([size_of(1)]), prompter.images_at([size_of(1), size_of(2)])
    record = grids.recorded({"a": [i.views for i in one], "b": [i.views for i in two]})
    assert set(record) == {"4x4 4x8+1", "4x4 1x0+1 | 4x4 1x0+1"}
    assert grids.by_image(record, "b") == [[Grid(4, 4), Grid(1, 0, newline=True)]] * 2
    prompt = LlavaOnevisionAdapter.prompt(prompter.usual.decoder, *two)
    assert [place[2] < 0 for place in prompt.places()] == ([False] * 16 + [True]) * 2


def test_images_of_a_prompt_of_several_are_made_as_the_processor_makes_them_together(tmp_path: Path) -> None:
    prompter = locate_model(str(folder(tmp_path / "m")), "cpu").prompter
    together = onevisions.asked(prompter.processor, ("Is it?", [1, 2, 3]))
    assert together["batch_num_images"].tolist() == [3]
    for place, number in enumerate((1, 2, 3)):
        alone = prompter.processed(picture(number), 3)
        assert torch.equal(alone["pixel_values"][0], together["pixel_values"][place])
        cut = prompter.processed(picture(number))
        assert cut["pixel_values"].shape[1] > 1
        assert torch.equal(
            cut["pixel_values"], onevisions.asked(prompter.processor, ("Is it?", [number]))["pixel_values"]
        )
