"""`prunebench cost --image`: what an image of a size costs on families whose images differ in tokens."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.core import flops
from harness.core.errors import PrunebenchError
from harness.cost import plan

T = 1e12
TEXT = 40


@pytest.mark.parametrize(
    ("model", "image", "tokens", "prefill", "tower"),
    [
        # LLM prefill and tower + projector in TFLOPs at 40 text tokens, by closed forms that a counter was held to
        ("llava-1.5-7b", "640x480", 576, 8.2, 0.41),
        ("llava-v1.6-vicuna-7b", "640x480", 2340, 33.8, 2.03),
        ("qwen2.5-vl-7b", "640x480", 391, 5.7, 2.07),
        ("qwen2.5-vl-7b", "1024x768", 999, 14.0, 5.50),
        ("qwen3-vl-8b", "640x480", 300, 4.8, 1.27),
        ("qwen3-vl-8b", "1024x768", 768, 11.6, 3.96),
    ],
)
def test_an_image_costs_what_the_closed_form_says(
    model: str, image: str, tokens: int, prefill: float, tower: float
) -> None:
    prompt = plan.usual_prompt(model, plan.size_of(image))
    assert prompt.n_visual == tokens
    assert flops.prefill_unpruned(prompt.decoder, tokens + TEXT) / T == pytest.approx(prefill, abs=0.051)
    vision = prompt.images[0].vision
    found = flops.vision_tower(vision) + flops.projector(prompt.decoder, vision)
    assert found / T == pytest.approx(tower, abs=0.0051)


def test_width_comes_first() -> None:
    assert plan.size_of(" 640X480 ") == (480, 640)
    tall, wide = (plan.usual_prompt("llava-v1.6-vicuna-7b", plan.size_of(s)).n_visual for s in ("480x640", "640x480"))
    assert (tall, wide) == (2352, 2340)


@pytest.mark.parametrize("image", ["640", "640x", "0x10", "-3x4", "640x480x3", "1e3x4", "100000x100000", "six by four"])
def test_what_is_no_size_is_refused(image: str) -> None:
    with pytest.raises(PrunebenchError, match="expected width and height in pixels, as in 640x480"):
        plan.size_of(image)


def test_the_command_takes_a_share_and_an_image() -> None:
    asked = ["cost", "fastv", "--budget", "25%", "--model", "qwen2.5-vl-7b", "--image", "640x480"]
    said = CliRunner().invoke(app, asked)
    assert said.exit_code == 0, said.output
    assert "28 layers, 391 visual and 74 text tokens" in said.output
    assert "visual tokens per layer: 391 x 2, 98 x 26" in said.output
    line = next(line for line in said.output.splitlines() if line.startswith("vision tower + projector + prefill"))
    # the tower stays, and the share falls less than that of the prefill: 41.2 %
    assert line.split()[-2] == "56.0"
    assert isinstance(CliRunner().invoke(app, [*asked[:-1], "3000x4"]).exception, PrunebenchError)


def test_a_shrunk_picture_costs_a_smaller_tower() -> None:
    """640 x 480 at 70 % is 266 tokens, 14 x 19: `downsample` costs what the unpruned model does on that picture."""
    asked = ["cost", "downsample", "--budget", "70%", "--model", "qwen2.5-vl-7b"]
    said = CliRunner().invoke(app, [*asked, "--image", "640x480"])
    assert said.exit_code == 0, said.output
    assert "28 layers, 391 visual and 74 text tokens" in said.output
    assert "visual tokens per layer: 266 x 28" in said.output
    rows = {line[:40].strip(): line[40:].split()[:2] for line in said.output.splitlines()}
    whole, shrunk = (plan.usual_prompt("qwen2.5-vl-7b", size) for size in ((480, 640), (392, 532)))
    assert (whole.n_visual, shrunk.n_visual) == (391, 266)
    for column, prompt in enumerate((shrunk, whole)):
        vision = prompt.images[0].vision
        tower = flops.vision_tower(vision) / T
        every = tower + flops.projector(prompt.decoder, vision) / T
        every += flops.prefill_unpruned(prompt.decoder, prompt.n_visual + 74) / T
        assert float(rows["vision tower"][column]) == pytest.approx(tower, rel=1e-3)
        assert float(rows["vision tower + projector + prefill dense"][column]) == pytest.approx(every, rel=1e-3)
    said = CliRunner().invoke(app, asked)
    assert "expected --image WIDTHxHEIGHT" in str(said.exception)
    said = CliRunner().invoke(app, [*asked[:3], "30%", *asked[4:], "--image", "640x480"])
    assert "expected at least 266 of the 391 visual tokens" in str(said.exception)
