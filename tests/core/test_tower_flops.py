"""Closed forms of towers and whole requests on Qwen-VL, and of SigLIP's tower, equal torch's `FlopCounterMode` to the
integer under the math backend of SDPA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from qwens import DEPTH, FAMILIES, ROWS, Asked, batch, make
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, SiglipVisionConfig, SiglipVisionModel

from harness.core import flops
from harness.core.shape import VisionShape
from harness.engine.attach import attach
from harness.method import Method, method_class
from harness.models.adapters import adapter_for
from harness.models.adapters.qwen_sizes import windows_of
from harness.proof.conformance.kit import one_thread
from methods.hiprune import HiPrune
from methods.mmtok import MMTok
from methods.vscan import VScan

#: several sizes: whole windows, windows cut on either side, less than one window
SIZES = [((6, 6),), ((4, 8), (10, 14), (2, 4)), ((12, 12), (8, 6), (14, 2))]
every_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def counted(call: Callable[[], Any]) -> int:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def tower(name: str, grids: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """(counted, closed form) FLOPs of the features of images of these patches."""
    model = make(name)
    adapter = adapter_for(model)
    n = sum(rows * columns for rows, columns in grids)
    pixels = torch.randn(n, 3 * 2 * FAMILIES[name].patch ** 2)
    facts = {"image_grid_thw": torch.tensor([(1, rows, columns) for rows, columns in grids])}
    shapes = [adapter.shape_at(model.config, rows, columns) for rows, columns in grids]  # type: ignore[attr-defined]
    closed = sum(flops.vision_tower(i.vision) + flops.projector(adapter.shape, i.vision) for i in shapes)
    return counted(lambda: adapter.encode(pixel_values=pixels, **facts)), closed


@pytest.mark.parametrize("grids", SIZES, ids=["one", "three", "three others"])
@every_family
def test_tower_and_projectors_are_what_the_counter_says(name: str, grids: tuple[tuple[int, int], ...]) -> None:
    found, closed = tower(name, grids)
    assert found == closed > 0


#: wrong ideas of a tower, and the family that tells
WRONG: dict[str, tuple[str, Callable[[VisionShape], VisionShape]]] = {
    "[CLS]": ("qwen2_vl", lambda v: replace(v, prefix=1)),
    "two matrices": ("qwen2_5_vl", lambda v: replace(v, mlp_matrices=2)),
    "no windows": ("qwen2_5_vl", lambda v: replace(v, windows=())),
    "windows in every layer": ("qwen2_5_vl", lambda v: replace(v, whole_layers=())),
    "patches not joined": ("qwen2_vl", lambda v: replace(v, merge=1)),
    "no projectors of DeepStack": ("qwen3_vl", lambda v: replace(v, projectors=1)),
    "one frame": ("qwen3_vl", lambda v: replace(v, patch_inputs=v.patch_inputs // 2)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_shape_is_caught(wrong: str) -> None:
    name, change = WRONG[wrong]
    model = make(name)
    adapter = adapter_for(model)
    shape = adapter.shape_at(model.config, 10, 14).vision  # type: ignore[attr-defined]

    def total(vision: VisionShape) -> int:
        return flops.vision_tower(vision) + flops.projector(adapter.shape, vision)

    assert total(shape) == tower(name, ((10, 14),))[0] != total(change(shape))


@pytest.mark.parametrize("grid", [(2, 2), (6, 6), (8, 14), (26, 30)])
def test_windows_are_those_of_transformers(grid: tuple[int, int]) -> None:
    from transformers.vision_utils import get_vision_window_index

    vision = make("qwen2_5_vl").config.vision_config
    _, ends = get_vision_window_index(torch.tensor([[1, *grid]]), 2, vision.window_size, vision.patch_size)
    assert windows_of(vision, *grid) == tuple(ends.diff().tolist())


def test_siglip_has_no_prefix() -> None:
    config = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        vision_use_head=False,
    )
    model = SiglipVisionModel(config).eval()
    shape = VisionShape(
        layers_used=3, hidden=16, mlp=24, tokens=16, patch_inputs=3 * 14**2, projector_hidden=1, heads=2, prefix=0
    )
    assert counted(lambda: model(torch.randn(1, 3, 56, 56))) == flops.vision_tower(shape)


# ------------------------------------------------------------------------------------------------------- whole requests


def hiprune(official: str) -> Method:
    return HiPrune(keep=5, object_layer=1, official=official)  # type: ignore[arg-type]


METHODS: dict[str, Callable[[], Method]] = {
    "none": method_class("none"),
    "fastv": lambda: method_class("fastv")(keep=5, boundary=2),
    "hiprune": lambda: hiprune("qwen"),
    "hiprune, windows": lambda: hiprune("qwen-eager"),
    "vscan": lambda: VScan(keep=2, local_layer=1, official="qwen"),
    "vscan, twice": lambda: VScan(ratios=(0.5, 0.4), layers=(2,), local_layer=0, official="qwen-flash"),
    "mmtok by distance": lambda: MMTok(keep=5, select="tower-distance", tower_layer=2),
}


@pytest.mark.parametrize("which", METHODS)
@pytest.mark.parametrize("asked", [ROWS[:1], ROWS], ids=["one", "padded, several images"])
@every_family
def test_a_request_costs_what_the_counter_says(name: str, asked: tuple[Asked, ...], which: str) -> None:
    """Tower, projectors, looks, prefill, a decode step and the head."""
    model, inputs = make(name), batch(name, asked)
    cache = DynamicCache(config=model.config.text_config)
    with attach(model, METHODS[which]()) as run:

        def call() -> None:
            out = model(**inputs, past_key_values=cache, logits_to_keep=1)
            model(input_ids=out.logits[:, -1:].argmax(-1), past_key_values=cache)

        found = counted(call)
        costs = run.costs()
        trace, shape = run.trace, run.shape
    closed = (
        costs.prefill_executed_flops
        + costs.decode_executed_flops
        + int(sum(costs["vision_flops"]) + sum(costs["projector_flops"]))
        + flops.lm_head(shape, 2 * len(asked))
    )
    assert found == closed
    assert len(trace.layers) == DEPTH
    if len(asked) == 1:
        assert costs.prefill_executed_flops == costs["prefill_dense_flops"][0]


def test_a_look_within_windows_costs_less() -> None:
    model = make("qwen2_5_vl")
    vision = adapter_for(model).shape_at(model.config, 8, 8).vision  # type: ignore[attr-defined]
    assert vision.windows == (36, 12, 12, 4)
    whole, windows = (flops.look(vision, what, 0) for what in ("whole_column_sums", "column_sums"))
    assert whole == 2 * 16 * 64**2
    assert windows == 2 * 16 * sum(n * n for n in vision.windows)
    assert flops.look(vision, "column_sums", 1) == whole, "layer 1 attends over the whole image"
    assert flops.look(vision, "keys", 0) == 0
