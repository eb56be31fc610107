"""Shrinking images of a model with native resolution: fewer tokens in truth, at the cost of fewer tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import qwens
from checkpoints import refused
from families import pope

import prunebench
from harness.core import flops
from harness.core.budget import parse
from harness.models.load import locate_model
from harness.proof.recomputed import again
from harness.runner.evaluate import evaluate
from harness.runner.request import Request
from harness.runner.run import Options
from harness.runner.sizes import shown_size
from harness.store.verify import verify


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("shrunk")
    qwens.folder("qwen2_5_vl", top / "m")
    pope(top / "data", sizes=((196, 140), (140, 196), (168, 168), (112, 140)))
    return top


def test_an_image_is_shrunk_until_it_has_the_tokens_of_its_budget(place: Path) -> None:
    given = {"model": str(place / "m"), "data": str(place / "data"), "device": "cpu", "tasks": "pope"}
    request = Request("downsample,uniform", budgets="50%", **given)
    finished = evaluate(request, Options(place / "r"), lambda line: None)
    cells = {cell.cell.method: cell for cell in finished.cells.values()}
    shrunk, whole, uniform = (cells[name].samples().set_index("key") for name in ("downsample", "none", "uniform"))
    assert (shrunk["n_visual"] < whole["n_visual"]).all()
    assert (shrunk["kept"] == shrunk["n_visual"]).all()
    assert (shrunk["kept"] <= uniform["kept"]).all(), "a larger scale would have more than was asked"
    assert (shrunk["prefill_dense_flops"] < whole["prefill_dense_flops"]).all()
    assert (shrunk["prefill_unpruned_flops"] == whole["prefill_unpruned_flops"]).all(), "of the image at its own size"
    assert (shrunk["vision_flops"] < whole["vision_flops"]).all()
    lines, sound = verify(place / "r", again)
    assert sound, lines
    assert "shown in other sizes" in again(cells["downsample"], cells["downsample"].samples())[1][0]
    located = locate_model(str(place / "m"), "cpu")
    prompter, decoder = located.prompter, located.shape
    for key, row in shrunk.iterrows():
        text = int(row["n_text"])
        assert row["prefill_dense_flops"] == decoder.depth * flops.layer(decoder, int(row["n_visual"]) + text), key
    method = located.method("downsample", parse("50%"))
    size = shown_size(prompter, method, (168, 168))
    assert size[0] == size[1] < 168


def test_a_budget_below_the_smallest_image_is_refused_before_anything_runs(place: Path) -> None:
    request = Request(
        "downsample", model=str(place / "m"), budgets="1", tasks="pope", data=str(place / "data"), device="cpu"
    )
    said = refused(lambda: evaluate(request, Options(place / "none"), lambda line: None))
    assert said.startswith("sample pope/000000: downsample: expected an image that shrinks to 1 of its")
    assert not list((place / "none").rglob("cell.json"))


def test_pixels_that_are_made_already_are_refused(place: Path) -> None:
    model = locate_model(str(place / "m"), "cpu").load().model
    said = refused(lambda: prunebench.prune(model, "downsample", "50%").__enter__())
    assert "shows images in other sizes" in said
