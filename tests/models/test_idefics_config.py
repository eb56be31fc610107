"""Idefics3 and SmolVLM before their weights: the published configurations, the tokens of images by their size, how
their processors spell an image, and refusals."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import idefics
import pytest
import torch
from checkpoints import change, refused
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from harness.core import flops
from harness.core.errors import PrunebenchError
from harness.core.shape import PromptShape
from harness.models.adapters import adapter_class
from harness.models.adapters.idefics import Idefics3Adapter
from harness.models.adapters.idefics_frames import FENCE, frame
from harness.models.adapters.idefics_sizes import cut_at
from harness.models.config import model_config
from harness.models.load import locate_model
from harness.models.processor import check_processor
from harness.models.published import FOLDER, published_prompt
from harness.models.requirements import check

#: the number of parameters that the hub states, to the digits that are known of it
PARAMETERS = {"idefics3-8b-llama3": (8_460_000_000, 5_000_000), "smolvlm2-2.2b": (2_246_784_880, 0)}
#: visual tokens of a tile, and of an image of most tiles
TOKENS = {"idefics3-8b-llama3": (169, 2873), "smolvlm2-2.2b": (81, 1377)}


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
    stated, known_to = PARAMETERS[name]
    assert abs(sum(p.numel() for p in model.parameters()) - stated) <= known_to
    tensors = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    for end, shape in adapter.shapes_of(config).items():
        assert {found for key, found in tensors.items() if key.endswith(end)} == {shape}, end
    parts = {"decoder": "model.text_model.layers.", "vision": "model.vision_model.encoder.layers."}
    for part, depth in adapter.depths_of(config).items():
        start = parts[part]
        assert len({key.removeprefix(start).split(".")[0] for key in tensors if key.startswith(start)}) == depth


@pytest.mark.parametrize("name", TOKENS)
def test_sizes_are_known_without_files(name: str) -> None:
    prompt, shipped = published_prompt(name), model_config(name)
    assert prompt is not None
    image = prompt.images[0]
    assert ({view.tokens for view in image.views}, image.tokens, image.cut) == (
        {TOKENS[name][0]},
        TOKENS[name][1],
        (4, 4),
    )
    assert (shipped.prompt, shipped.image) == ("chat_template", "plain")
    assert prompt.one_of_many


def test_an_image_of_640_x_480_costs_what_the_closed_form_says() -> None:
    """Thirteen tiles of 169 tokens; a tower of 27 layers on 676 patches a tile, and one matrix behind it."""
    prompt = published_prompt("idefics3-8b-llama3")
    assert prompt is not None
    processor = Idefics3Adapter.usual_processor(AutoConfig.for_model(**stated_of("idefics3-8b-llama3")))
    image = Idefics3Adapter.image_at(AutoConfig.for_model(**stated_of("idefics3-8b-llama3")), processor, (480, 640))
    assert (image.tokens, image.vision.tiles) == (2197, 13)
    n, d, m = 676, 1152, 4304
    a_tile = 2 * n * 588 * d + 27 * (2 * n * (4 * d * d + 2 * d * m) + 4 * n * n * d)
    assert flops.vision_tower(image.vision) == 13 * a_tile
    assert flops.projector(prompt.decoder, image.vision) == 13 * 2 * 169 * (4 * d) * 4096


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_config_of_sizes_has_these_sizes(name: str) -> None:
    """What models of random weights are made of."""
    config = AutoConfig.for_model(**stated_of(name))
    adapter = adapter_class(config)
    usual = PromptShape(adapter.shape_of(config, 4), (adapter.image_of(config),))
    again = adapter.config_of(usual)
    assert adapter.shape_of(again, 4) == usual.decoder
    assert adapter.image_of(again) == usual.images[0]
    check(again, adapter.requirements, name)


# ------------------------------------------------------------------------------------------------------------- by size

#: (width, height): usual ones, strips of both kinds, and the tiny
SIZES = (
    *((640, 480), (480, 640), (1024, 768), (336, 336), (1600, 400), (57, 56), (56, 57)),
    *((1, 1), (1, 2), (2, 1), (3, 500), (500, 3), (1, 700), (900, 1), (333, 334), (100, 99), (777, 1001)),
)
#: pixels of a tile and of the longer side: whole tiles, others, one tile, and beyond the bound of the processor
EDGES = ((56, 224), (56, 200), (56, 57), (56, 56), (56, 30), (64, 4200))


@pytest.mark.parametrize(("tile", "longest"), EDGES)
@pytest.mark.parametrize("name", idefics.FAMILIES)
def test_tiles_follow_from_the_size_of_an_image(name: str, tile: int, longest: int) -> None:
    """As both processors of each family make them: the one on torchvision, and the one without."""
    settings = {"size": {"longest_edge": longest}, "max_image_size": {"longest_edge": tile}}
    usual = idefics.processor(name).image_processor
    pil = {"idefics3": Idefics3ImageProcessorPil, "smolvlm": SmolVLMImageProcessorPil}[name]
    made = [type(usual)(**settings), pil(**settings)]
    sizes = SIZES if longest < 1000 else SIZES[4:9]
    for width, height in sizes:
        image = Image.new("RGB", (width, height), (90, 120, 30))
        for processor in made:
            out = processor(images=image, return_tensors="pt", return_row_col_info=True)
            rows, cols = (int(torch.as_tensor(out[key]).flatten()[0]) for key in ("rows", "cols"))
            assert cut_at(processor, (height, width)) == (rows, cols), (width, height)
            assert tuple(out["pixel_values"].shape) == (1, rows * cols + 1, 3, tile, tile)
            assert bool(out["pixel_attention_mask"].all())


@pytest.mark.parametrize("name", idefics.FAMILIES)
def test_an_image_that_is_not_split_is_one_tile(name: str, tmp_path: Path) -> None:
    folder = idefics.folder(name, tmp_path / "m", do_image_splitting=False)
    located = locate_model(str(folder), "cpu")
    assert (located.usual.n_visual, located.prompter.image_at((60, 100)).cut) == (4, (0, 0))
    out = located.prompter.processor(
        text=[located.prompter.template.replace("{text}", "Is it?")],
        images=[[Image.new("RGB", (100, 60), (9, 8, 7))]],
        return_tensors="pt",
    )
    assert located.prompter.prompt_ids("Is it?", ((60, 100),)) == out["input_ids"][0].tolist()


@pytest.mark.parametrize("cut", [(0, 0), (1, 2), (2, 1), (3, 2), (4, 4), (11, 1)])
@pytest.mark.parametrize("name", idefics.FAMILIES)
def test_an_image_is_spelt_as_its_processor_spells_it(name: str, cut: tuple[int, int]) -> None:
    processor = idefics.processor(name)
    adapter = {"idefics3": Idefics3Adapter}.get(name, adapter_class(idefics.make("smolvlm").config))
    run = processor.image_token * processor.image_seq_len
    mine = run.join("".join(adapter.spelling(mark, processor) for mark in marks) for marks in frame(cut))
    assert mine == processor.replace_image_token({"rows": [[cut[0]]], "cols": [[cut[1]]]}, 0)
    assert FENCE not in mine


# ------------------------------------------------------------------------------------------------------------- refusals

CONFIG, PROCESSOR = "config.json", "processor_config.json"
IMAGES = f"{PROCESSOR}:image_processor"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (CONFIG, {"scale_factor": 3}, "4 x 4 patches and scale_factor 3"),
    (CONFIG, {"scale_factor": 8}, "4 x 4 patches and scale_factor 8"),
    (CONFIG, {"scale_factor": 0}, "scale_factor as a whole number"),
    (CONFIG, {"vision_config.num_attention_heads": 3}, "3 heads in a width of 16"),
    (CONFIG, {"vision_config.image_size": [56, 56]}, "vision_config.image_size as a whole number"),
    (CONFIG, {"vision_config.num_channels": 1}, "num_channels 3, found 1"),
    (CONFIG, {"vision_config.hidden_act": "none"}, "vision_config.hidden_act as an activation"),
    (CONFIG, {"image_token_id": 90000}, "90000 in a vocabulary of"),
    (CONFIG, {"image_token_id": 5}, "to be token 5 of the tokenizer"),
    (CONFIG, {"text_config.model_type": "gemma2"}, "text_config of type llama"),
    (CONFIG, {"text_config.sliding_window": 8, "text_config.model_type": "mistral"}, "full attention in every decoder"),
    (PROCESSOR, {"image_seq_len": 9}, "expected image_seq_len 4 in the processor's settings"),
    (PROCESSOR, {"image_processor.max_image_size": {"longest_edge": 64}}, "expected max_image_size of 56 pixels"),
    (PROCESSOR, {"image_processor.size": {"height": 90, "width": 90}}, "expected size as a longest_edge"),
    (PROCESSOR, {"image_processor.size": {"longest_edge": 90000}}, "up to 8192"),
    (PROCESSOR, {"image_processor.do_resize": False}, "expected do_resize true"),
    (PROCESSOR, {"image_processor.do_normalize": False}, "expected do_normalize true"),
    (PROCESSOR, {"image_processor.image_mean": [0.0, 0.2, 0.0]}, "which the model takes for padding"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)), ids=[f"{n}-{r[2][:24]}" for n, r in enumerate(REFUSED)])
def test_what_the_engine_does_not_compute_is_refused_before_weights(number: int, tmp_path: Path) -> None:
    file, changes, says = REFUSED[number]
    folder = idefics.folder("idefics3" if number % 2 else "smolvlm", tmp_path / "m")
    locate_model(str(folder), "cpu")
    change(folder / file, changes)
    assert says in refused(lambda: locate_model(str(folder), "cpu"))


def test_black_is_no_padding_and_a_black_image_is_answered() -> None:
    """Under the published mean no colour of 8 bits is zero; under a mean of zero the model drops a black tile."""
    model = idefics.make("idefics3")
    black = Image.new("RGB", (112, 56))
    for mean, tiles in ((0.5, 3), (0.0, 0)):
        processor = idefics.processor("idefics3", longest=112, image_mean=[mean] * 3)
        pixels = processor.image_processor(images=black, return_tensors="pt")["pixel_values"]
        assert int((pixels != 0).flatten(2).any(2).sum()) == tiles
        if tiles:
            (features,) = Idefics3Adapter(model).encode(pixel_values=pixels)
            assert len(features.pooled) == 4 * tiles


def test_another_familys_processor_is_refused() -> None:
    config = idefics.make("idefics3").config
    config.text_config.vocab_size = 600
    config.image_token_id = 4
    fits = idefics.processor("idefics3")
    check_processor(fits, config, Idefics3Adapter, "model m")
    lacking = copy.copy(fits)
    lacking.fake_image_token = "<not a token>"
    with pytest.raises(
        PrunebenchError, match="expected the mark around images as a token of the tokenizer, found '<not"
    ):
        check_processor(lacking, config, Idefics3Adapter, "model m")
    lacking.fake_image_token = "s"
    with pytest.raises(PrunebenchError, match="expected 's' as one special token, found a text"):
        check_processor(lacking, config, Idefics3Adapter, "model m")


def test_a_missing_package_of_the_processor_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = idefics.folder("smolvlm", tmp_path / "m")
    monkeypatch.setattr("harness.models.processor.find_spec", lambda name: None)
    said = refused(lambda: locate_model(str(folder), "cpu"))
    assert (
        "its processor needs the package num2words, found none: install it (`python -m pip install num2words`)" in said
    )
    monkeypatch.undo()
    assert locate_model(str(folder), "cpu").usual.n_visual == 40
    other = idefics.folder("idefics3", tmp_path / "n")
    monkeypatch.setattr("harness.models.processor.find_spec", lambda name: None)
    assert locate_model(str(other), "cpu").usual.n_visual == 40
