"""LLaVA-OneVision from questions to sealed cells: shares of each prompt's tokens, prompts of one to three images,
pictures that are shrunk before the processor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import families
import onevisions
import pytest
import several
from checkpoints import refused

from harness.core import budget as budgets
from harness.core import grids
from harness.core.shape import Grid
from harness.models.load import LoadedModel, locate_model
from harness.proof.recomputed import again
from harness.report import show
from harness.runner.answering import Answerer
from harness.runner.evaluate import evaluate
from harness.runner.execute import prompts_of
from harness.runner.features import FeatureCache
from harness.runner.request import Request, resolve
from harness.runner.run import Finished, Options
from harness.runner.session import Session
from harness.runner.sizes import mean_prompt, visual_tokens
from harness.store.verify import verify
from tasks import lmms
from tasks.sources import DataSource

#: images of each question of `several`
N_IMAGES = (2, 2, 2, 2, 1, 1, 3, 3)
SHARE = "0.25kept"


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("onevision")
    families.pope(found / "data", sizes=onevisions.SIZES)
    onevisions.folder(found / "m")
    return found


@pytest.fixture(scope="module")
def loaded(top: Path) -> LoadedModel:
    return locate_model(str(top / "m"), "cpu").load()


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    several.patch(monkeypatch)


@pytest.fixture(scope="module")
def cells(top: Path) -> Iterator[tuple[Finished, list[str]]]:
    """The cells of prompts of one to three images, and what was said."""
    with pytest.MonkeyPatch.context() as patch:
        several.patch(patch)
        said: list[str] = []
        yield evaluate(asked(top, "fastv,uniform", SHARE), Options(top / "several"), said.append), said


def asked(top: Path, method: str, budget: str = "", **more: Any) -> Request:
    words = {"tasks": "pope", "data": str(top / "data"), "device": "cpu"} | more
    return Request(method, model=str(top / "m"), budgets=budget, **words)


def task_of(top: Path) -> lmms.LoadedTask:
    """The questions of one to three images."""
    return several.with_several(lmms.load_task("pope", DataSource.parse(str(top / "data")), None, 0))


def counts_of(loaded: LoadedModel) -> list[int]:
    """Visual tokens of the images of `SIZES`, alone in their prompts."""
    return [loaded.tokens_at(onevisions.size_of(number)) for number in range(4)]


def test_an_evaluation_is_sealed_with_grids_and_costs_of_each_image(top: Path, loaded: LoadedModel) -> None:
    finished = evaluate(asked(top, "fastv,pooling", SHARE), Options(top / "one"), lambda line: None)
    family = "LlavaOnevisionForConditionalGeneration"
    assert {c.cell.method: c.unproven for c in finished.cells.values()} == {"none": "", "pooling": "", "fastv": family}
    for sealed in finished.cells.values():
        frame = sealed.samples()
        assert frame["n_visual"].tolist() == [n for n in counts_of(loaded) for _ in range(2)]
        assert len(set(frame["vision_flops"])) == 3, "two tiles, seven and thirteen"
        if sealed.cell.method != "none":
            assert (frame["kept"] == (frame["n_visual"] / 4 + 0.5).astype(int)).all()
        for image, n in zip(frame["image"], frame["n_visual"], strict=True):
            assert sum(grid.tokens for grid in grids.of_image(sealed.provenance["grids"], image)) == n
        assert sealed.provenance["processing"]["image"]["n_tokens_of_several"] == 17
    lines, sound = verify(top / "one", again)
    assert sound, lines
    assert not [line for line in lines if "costs not recomputed" in line]
    path, sample = show.write(top / "one", "pope/000004", ["fastv"], SHARE, data=str(top / "data"))
    assert path.is_file()
    assert sample.methods[0].raster == (Grid(4, 6, newline=True), 16)


def test_several_images_are_not_cut(top: Path, cells: tuple[Finished, list[str]], patched: None) -> None:
    """Each has its patches and one newline; the one question of one image is cut."""
    finished, said = cells
    located = locate_model(str(top / "m"), "cpu")
    task = task_of(top)
    alone = located.prompter.image_at(task.sizes[task.samples[4].images[0].key]).tokens
    counts = [17 * n if n > 1 else alone for n in N_IMAGES]
    assert visual_tokens(located, task) == counts
    assert mean_prompt(located, task).n_visual == round(sum(counts) / 8)
    for sealed in finished.cells.values():
        frame = sealed.samples()
        assert frame["n_visual"].tolist() == counts
        own = [grids.by_image(sealed.provenance["grids"], key) for key in frame["image"]]
        assert tuple(map(len, own)) == N_IMAGES
        assert own[0] == [[Grid(4, 4), Grid(1, 0, newline=True)]] * 2
        if sealed.cell.method != "none":
            assert frame["kept"].tolist() == [int(0.25 * n + 0.5) for n in counts]
    assert not [line for line in said if "have several images" in line], "the family was trained on them"
    lines, sound = verify(top / "several", again)
    assert sound, lines
    assert not [line for line in lines if "not recomputed" in line]


def test_a_forged_cost_of_several_images_is_found(cells: tuple[Finished, list[str]], patched: None) -> None:
    (sealed,) = [cell for cell in cells[0].cells.values() if cell.cell.method == "fastv"]
    frame = sealed.samples()
    assert again(sealed, frame) == ([], [])
    cut = frame.assign(vision_flops=[max(frame["vision_flops"])] * len(frame))
    assert "vision_flops" in again(sealed, cut)[0][0]


def test_an_image_has_features_of_both_kinds(top: Path, loaded: LoadedModel, patched: None) -> None:
    """One that stands alone in a question and among others in the next is encoded twice, and no more."""
    task = task_of(top)
    features = FeatureCache()
    method = locate_model(str(top / "m"), "cpu").method("none", budgets.parse(None))
    found = list(Answerer(loaded, method, batch_size=3, features=features).answer(prompts_of(task, 2, task.sizes)))
    kinds = {(image.key, len(s.images) > 1) for s in task.samples for image in s.images}
    assert features.encoded == len(kinds) == 5
    assert len(found) == 8


def test_a_count_above_the_fewest_tokens_is_refused(top: Path, loaded: LoadedModel, patched: None) -> None:
    said = refused(lambda: resolve(asked(top, "fastv", "35"), Session()))
    assert "expected at most 34, the fewest of a prompt of pope" in said


def test_pictures_are_shrunk_to_a_share_of_their_tokens(top: Path, loaded: LoadedModel) -> None:
    """Before the processor, where a smaller picture has fewer tokens; alone in its prompt, that is."""
    method = locate_model(str(top / "m"), "cpu").method("downsample", budgets.parse("0.8kept"), {"fewest": True})
    shown: Mapping[int, tuple[int, int]] = {
        number: loaded.shown(method, onevisions.size_of(number)) for number in range(4)
    }
    for number, size in shown.items():
        own, found = loaded.tokens_at(onevisions.size_of(number)), loaded.tokens_at(size)
        assert found <= own
        image = onevisions.picture(number).resize((size[1], size[0]))
        prompt = loaded.template.replace("{text}", "Is it?")
        ids = loaded.processor(text=[prompt], images=[image])["input_ids"][0]
        assert list(ids).count(loaded.image_token_id) == found
    assert any(loaded.tokens_at(size) < loaded.tokens_at(onevisions.size_of(n)) for n, size in shown.items())
    plain = locate_model(str(top / "m"), "cpu").method("downsample", budgets.parse("0.8kept"))
    assert "expected at least 17 of the 17 visual tokens" in refused(
        lambda: loaded.shown(plain, onevisions.size_of(1), 2)
    )
