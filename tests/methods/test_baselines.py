"""The baselines: exact counts at any budget, even coverage, true averages, and an image that only loses detail."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import text_config, vision_config
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from harness.core.budget import Budget, parse
from harness.core.errors import PrunebenchError
from harness.core.shape import SHAPES, Grid, PromptShape
from harness.engine.attach import attach
from harness.engine.run import EngineRun
from harness.method import Method, build
from harness.models.adapters import adapter_for
from methods._select import centres, even_split, grids, shared_out
from methods.downsample import Downsample
from methods.pooling import Pooling, cells
from methods.uniform import Uniform, spread

S7 = SHAPES["llava-1.5-7b"]
SIDE, DEPTH, IMAGE = 24, 3, 4
TINY = PromptShape(
    replace(S7.decoder, depth=DEPTH),
    (replace(S7.images[0], vision=replace(S7.images[0].vision, patch_inputs=3 * 2 * 2)),),
    n_text=6,
)
BUDGETS = (1, 7, 16, 32, 64, 128, 192, 575, 576)
IDS = torch.tensor([[1, 10, 11, *[IMAGE] * SIDE**2, 20, 21, 22]])


@pytest.fixture(scope="module")
def model() -> Any:
    """A random LLaVA with LLaVA-1.5's 24 x 24 visual tokens and little else."""
    torch.manual_seed(0)
    text, vision = text_config(16, 16, DEPTH, 2, vocab_size=32), vision_config(16, 16, 2, 2, image=SIDE * 2, patch=2)
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE, image_seq_length=SIDE**2)
    return LlavaForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(1, 3, SIDE * 2, SIDE * 2, generator=torch.Generator().manual_seed(0))


def prefill(model: Any, method: Method, pixels: Tensor) -> tuple[EngineRun, Tensor, Tensor]:
    """The run, the stream that entered layer 0 (n, d), and the last token's logits."""
    seen: list[Tensor] = []
    with attach(model, method) as run, torch.inference_mode():
        first = model.model.language_model.layers[0]
        # after the engine's own hook, which hands the stream on as the first argument
        handle = first.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        try:
            logits = model(input_ids=IDS, pixel_values=pixels).logits[0, -1]
        finally:
            handle.remove()
    return run, seen[0][0], logits


def at(name: str, keep: int, prompt: PromptShape = S7, **knobs: Any) -> Method:
    """A method at a budget, for LLaVA-1.5-7B or the random model."""
    return build(name, Budget("kept", keep), knobs, prompt)


@pytest.mark.parametrize("keep", BUDGETS)
@pytest.mark.parametrize("name", ["uniform", "first", "pooling", "random"])
def test_exactly_the_asked_number_enters_the_language_model(model: Any, pixels: Tensor, name: str, keep: int) -> None:
    method = at(name, keep, TINY)
    run, stream, _ = prefill(model, method, pixels)
    visual = [layer.visual[0] for layer in run.trace.layers]
    assert visual == [keep] * DEPTH == method.plan(TINY)
    assert stream.shape[0] == keep + 6
    # as LLaVA numbers a shorter sequence; kept tokens in the order of the prompt
    assert run.layouts[0].positions[0, :, 0].tolist() == list(range(keep + 6))
    if name != "pooling":
        origins = run.layouts[0].origin[0][run.layouts[0].visual[0]].tolist()
        assert origins == sorted(set(origins))


@pytest.mark.parametrize("name", ["uniform", "first", "pooling", "random", "downsample"])
def test_a_full_budget_is_the_unpruned_model_and_a_small_one_is_not(model: Any, pixels: Tensor, name: str) -> None:
    unpruned = prefill(model, build("none", parse(None), {}, S7), pixels)[2]
    assert torch.allclose(prefill(model, at(name, 576, TINY), pixels)[2], unpruned, atol=1e-6)
    assert not torch.allclose(prefill(model, at(name, 16, TINY), pixels)[2], unpruned, atol=1e-6)


def test_random_at_fastvs_boundary_sees_everything_before_it(model: Any, pixels: Tensor) -> None:
    run, _, _ = prefill(model, at("random", 64, boundary=2), pixels)
    assert [layer.visual[0] for layer in run.trace.layers] == [576, 576, 64]
    kept = run.layouts[2]
    assert torch.equal(
        kept.positions[0, :, 0][kept.visual[0]], kept.origin[0][kept.visual[0]] + 3
    )  # original positions


# ---------------------------------------------------------------------------------------------------- which tokens stay


def quadrants(places: list[int]) -> list[int]:
    found = Counter((p // SIDE >= SIDE // 2, p % SIDE >= SIDE // 2) for p in places)
    return [found[a, b] for a in (False, True) for b in (False, True)]


def test_uniform_covers_every_quadrant_alike_at_every_count() -> None:
    for n in range(1, SIDE**2 + 1):
        places = spread(n, SIDE, SIDE)
        assert len(places) == n
        assert places == sorted(set(places))
        covered = quadrants(places)
        assert max(covered) - min(covered) <= (n % 4 > 0), (n, covered)


def test_uniform_is_a_regular_grid_where_the_budget_allows(model: Any, pixels: Tensor) -> None:
    run, _, _ = prefill(model, at("uniform", 64), pixels)
    origins = run.layouts[0].origin[0][run.layouts[0].visual[0]].tolist()
    assert origins == [y * SIDE + x for y in range(1, SIDE, 3) for x in range(1, SIDE, 3)]
    assert spread(144, SIDE, SIDE) == [y * SIDE + x for y in range(1, SIDE, 2) for x in range(1, SIDE, 2)]
    # the widest gap to a kept token, in either direction: no hole where tokens are spread thinly
    for n in (7, 32, 128, 192):
        places = torch.tensor([[p // SIDE, p % SIDE] for p in spread(n, SIDE, SIDE)]).float()
        grid = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).float()
        nearest = torch.cdist(grid, places).amin(1).max()
        assert nearest <= 1.2 * SIDE / n**0.5, (n, nearest)


def test_first_keeps_the_top_of_the_image(model: Any, pixels: Tensor) -> None:
    run, _, _ = prefill(model, at("first", 32), pixels)
    assert run.layouts[0].origin[0][run.layouts[0].visual[0]].tolist() == list(range(32))


# -------------------------------------------------------------------------------------------------------------- pooling


@pytest.mark.parametrize(
    ("keep", "rows", "columns"), [(1, 1, 1), (16, 4, 4), (32, 4, 8), (64, 8, 8), (96, 8, 12), (144, 12, 12)]
)
def test_pooling_is_the_average_over_regular_cells(
    model: Any, pixels: Tensor, keep: int, rows: int, columns: int
) -> None:
    _, whole, _ = prefill(model, build("none", parse(None), {}, S7), pixels)
    _, pooled, _ = prefill(model, at("pooling", keep), pixels)
    image = whole[3 : 3 + SIDE**2].reshape(rows, SIDE // rows, columns, SIDE // columns, -1)
    assert torch.allclose(pooled[3 : 3 + keep], image.mean((1, 3)).flatten(0, 1), atol=1e-6)
    assert torch.equal(pooled[:3], whole[:3])
    assert torch.equal(pooled[-3:], whole[-3:])


def test_pooling_at_a_prime_budget_cuts_bands_into_unequal_numbers(model: Any, pixels: Tensor) -> None:
    _, whole, _ = prefill(model, build("none", parse(None), {}, S7), pixels)
    _, pooled, _ = prefill(model, at("pooling", 7), pixels)
    image = whole[3 : 3 + SIDE**2].reshape(SIDE, SIDE, -1)
    bands = [(0, 2), (8, 2), (16, 3)]  # first row of the band, cells in it
    expected = [image[y : y + 8, i * SIDE // n : (i + 1) * SIDE // n].mean((0, 1)) for y, n in bands for i in range(n)]
    assert torch.allclose(pooled[3:10], torch.stack(expected), atol=1e-6)


def test_pooling_puts_every_token_in_one_cell_about_as_large_as_any_other() -> None:
    for n in range(1, SIDE**2 + 1):
        sizes = Counter(cells(n, SIDE, SIDE))
        assert set(sizes) == set(range(n))
        assert sum(sizes.values()) == SIDE**2
        assert max(sizes.values()) <= 4 * min(sizes.values()), n


# ----------------------------------------------------------------------------------------------------------- downsample


def resized(keep: int, image: Tensor) -> Tensor:
    out = at("downsample", keep).on_pixels(image)
    assert out is not None
    return out


@pytest.mark.parametrize("keep", BUDGETS[:-2])
def test_downsample_leaves_a_constant_image_and_the_shape_alone(keep: int) -> None:
    flat = torch.tensor([0.3, -1.7, 2.0])[None, :, None, None].expand(2, 3, 336, 336)
    out = resized(keep, flat)
    assert out.shape == flat.shape
    assert torch.allclose(out, flat, atol=1e-5)
    assert resized(keep, flat.half()).dtype == torch.float16


def test_downsample_at_a_full_budget_changes_no_pixel() -> None:
    assert at("downsample", 576).on_pixels(torch.zeros(1, 3, 336, 336)) is None
    assert at("downsample", 575).on_pixels(torch.zeros(1, 3, 336, 336)) is None  # 335.7 pixels are 336


def test_downsample_loses_fine_detail_without_aliasing_and_keeps_coarse() -> None:
    y, x = torch.meshgrid(torch.arange(336.0), torch.arange(336.0), indexing="ij")
    fine = (((x + y) % 2) * 2 - 1).expand(1, 3, -1, -1)
    coarse = (torch.sin(x * 6.28 / 168) + y / 336).expand(1, 3, -1, -1)
    inside = (..., slice(40, -40), slice(40, -40))
    for keep in (32, 64, 128, 192):
        assert resized(keep, fine)[inside].abs().max() < 0.05  # without antialiasing a moire of full contrast
        assert (resized(keep, coarse) - coarse)[inside].abs().max() < 0.05


def test_downsample_keeps_more_the_more_patches_it_may_keep() -> None:
    noise = torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    lost = [float((resized(keep, noise) - noise).square().mean()) for keep in (1, 16, 64, 192, 400)]
    assert lost == sorted(lost, reverse=True)
    assert at("downsample", 64).knobs()["side"] == 112


def test_downsample_shows_the_cost_of_all_tokens(model: Any, pixels: Tensor) -> None:
    run, _, _ = prefill(model, at("downsample", 64, TINY), pixels)
    assert [layer.visual[0] for layer in run.trace.layers] == [576] * DEPTH


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("name", ["uniform", "first", "pooling", "random", "downsample"])
def test_nothing_cannot_be_kept(name: str) -> None:
    with pytest.raises(PrunebenchError, match=f"{name}: expected keep >= 1, found 0"):
        build(name, parse(None), {"keep": 0}, S7)


# ---------------------------------------------------------------------------------------------------------- other grids


def prompt_of(*images: tuple[Grid, ...]) -> PromptShape:
    """A prompt of these images, each of one or several grids."""
    return PromptShape(S7.decoder, tuple(replace(S7.images[0], views=views) for views in images))


class Stub:
    """A run and a stream of `prompts`: every visual token's state is its own number."""

    def __init__(self, *prompts: PromptShape) -> None:
        self.prompts = prompts
        counts = [prompt.n_visual for prompt in prompts]
        self.visual_valid = torch.arange(max(counts))[None] < torch.tensor(counts)[:, None]
        self.visual = torch.arange(max(counts)).float()[None, :, None].expand(len(counts), -1, 1)

    def quota(self, keep: Any) -> Tensor:
        return torch.tensor([prompt.quota(keep) for prompt in self.prompts])


OBLONG = (Grid(20, 30),)
WITH_NEWLINES = (Grid(12, 12), Grid(10, 20, newline=True))


@pytest.mark.parametrize("keep", [1, 7, 64, 599, 600])
def test_an_oblong_image_is_covered_by_its_own_rows_and_columns(keep: int) -> None:
    prompt = prompt_of(OBLONG)
    run: Any = Stub(prompt)
    for name in ("uniform", "pooling", "first", "random"):
        assert at(name, keep, prompt).plan(prompt) == [keep] * 32
    kept = Uniform(keep=keep).at_boundary(run, 0, run)
    assert kept is not None
    assert kept.keep[0].nonzero().flatten().tolist() == spread(keep, 20, 30)
    pooled = Pooling(keep=keep).at_boundary(run, 0, run)
    assert pooled is not None
    assert pooled.added is not None
    members = torch.tensor(cells(keep, 20, 30))
    assert pooled.added[0, :, 0].tolist() == pytest.approx(
        [float(run.visual[0, members == c].mean()) for c in range(keep)]
    )


def test_uniform_spreads_over_an_oblong_image_as_evenly_in_both_directions() -> None:
    places = spread(24, 20, 30)
    assert len({p // 30 for p in places}) == 4, "four rows of six: as far apart as the tokens in a row"
    assert {sum(p // 30 == row for p in places) for row in {p // 30 for p in places}} == {6}


def test_tokens_are_shared_out_among_grids_and_newlines_are_left_out() -> None:
    prompt = prompt_of(WITH_NEWLINES, (Grid(24, 24),))
    assert grids(prompt) == [(0, WITH_NEWLINES[0]), (144, WITH_NEWLINES[1]), (354, Grid(24, 24))]
    views = [view for _, view in grids(prompt)]
    assert shared_out(92, views) == [14, 20, 58]  # 144, 200 and 576 patches of 920
    assert shared_out(2000, views) == [144, 200, 576]
    short = prompt_of(OBLONG)
    run: Any = Stub(prompt, short)
    kept = Uniform(keep=92).at_boundary(run, 0, run)
    assert kept is not None
    found = kept.keep[0].nonzero().flatten()
    assert [int(((found >= start) & (found < start + view.tokens)).sum()) for start, view in grids(prompt)] == [
        14,
        20,
        58,
    ]
    newlines = [144 + 21 * row + 20 for row in range(10)]
    assert not kept.keep[0, newlines].any()
    assert (found[(found >= 144) & (found < 354)] - 144).tolist() == [p + p // 20 for p in spread(20, 10, 20)]
    assert kept.keep[1].nonzero().flatten().tolist() == spread(92, 20, 30), "a row of the batch has its own grid"
    pooled = Pooling(keep=92).at_boundary(run, 0, run)
    assert pooled is not None
    assert pooled.added is not None
    whole = run.visual[0, 144:354].view(10, 21)
    members = torch.tensor(cells(20, 10, 20)).view(10, 20)
    assert pooled.added[0, 14:34, 0].tolist() == pytest.approx(
        [float(whole[:, :20][members == c].mean()) for c in range(20)]
    )


def test_downsample_has_a_side_where_images_have_one_size_and_a_model_whole_images(model: Any) -> None:
    for views in (OBLONG, (Grid(24, 24, newline=True),), (Grid(24, 24), Grid(24, 24))):
        prompt = replace(prompt_of(views), one_of_many=True)
        method = at("downsample", 64, prompt)
        assert method.knobs() == {"keep": 64, "side": None}
        assert method.plan(prompt) == [64] * S7.depth
        with pytest.raises(PrunebenchError, match="downsample: keep=64 makes side=None, found side=112"):
            at("downsample", 64, prompt, side=112)
    assert at("downsample", 64, fewest=False).knobs() == {"keep": 64, "side": 112}
    with pytest.raises(PrunebenchError, match="downsample: expected fewest where images differ in tokens"):
        at("downsample", 64, fewest=True)
    assert [len(images) for images in adapter_for(model).images([576, 2 * 576], {})] == [1, 2]
    with pytest.raises(PrunebenchError, match="expected whole images of 576 visual tokens in every prompt, found 600"):
        adapter_for(model).images([600], {})
    with pytest.raises(PrunebenchError, match="downsample: keep=64 makes side=112, found side=100"):
        at("downsample", 64, side=100)
    with pytest.raises(PrunebenchError, match="downsample: expected a side in pixels, found none: make it with build"):
        Downsample(keep=64).on_pixels(torch.zeros(1, 3, 336, 336))


def test_even_splits_are_even() -> None:
    for total, parts in ((24, 7), (7, 3), (5, 5), (3, 8)):
        split = even_split(total, parts)
        assert sum(split) == total
        assert max(split) - min(split) <= 1
    assert centres(24, 8) == list(range(1, 24, 3))
    assert centres(5, 5) == [0, 1, 2, 3, 4]
