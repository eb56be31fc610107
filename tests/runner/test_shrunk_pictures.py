"""`downsample` where images differ in tokens: the picture is shrunk before the processor, and everything that is said
of it afterwards is said of the smaller picture."""

from __future__ import annotations

import base64
import gzip
import json
import pickle
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import families
import pandas as pd
import pytest
import qwens
import torch
from checkpoints import refused
from PIL import Image
from torch import Tensor

import prunebench
from harness.core import budget as budgets
from harness.core import flops, grids
from harness.core.errors import PrunebenchError
from harness.core.shape import Share
from harness.core.spelling import from_a_terminal
from harness.engine.attach import attach
from harness.engine.prefix import PrefixCache
from harness.method import Method, PictureError, Traits
from harness.method.fits import check_pictures, shrinks_pictures
from harness.models.adapters import ADAPTERS, adapter_class, adapter_for
from harness.models.load import LoadedModel, Located, locate_model
from harness.models.matrix import FAMILIES, OWN, fitted
from harness.models.pictures import pixels_key, shown_size
from harness.models.published import published_config, published_models, published_prompt
from harness.proof.conformance.families import fits
from harness.proof.recomputed import again
from harness.report import show
from harness.report.page import write as write_page
from harness.runner.answering import Answer, Answerer, Prompt
from harness.runner.evaluate import evaluate
from harness.runner.features import FeatureCache
from harness.runner.request import Request, resolve
from harness.runner.run import Finished, Options
from harness.runner.session import Session
from harness.runner.sizes import mean_prompt, visual_tokens
from harness.store.verify import verify
from methods.downsample import Downsample

QUESTIONS = ("Is it red?", "What is in the image, and where is it then?", "Is there a star at all?")
#: (width, height) of pictures that have fewer tokens at a smaller size
SIZES = {
    "llava_next": ((130, 130), (130, 100), (60, 100), (100, 60)),
    **dict.fromkeys(qwens.FAMILIES, ((400, 300), (140, 90), (130, 130), (90, 140))),
}
#: a share of the tokens that is in reach of each, and a smaller one that is not
SHARE = {"llava_next": "85%", **dict.fromkeys(qwens.FAMILIES, "67%")}
BELOW = "20%"
#: of the FLOPs of short prompts, where text counts
FLOPS = {"llava_next": 0.85, **dict.fromkeys(qwens.FAMILIES, 0.9)}
FOUND: dict[tuple[str, int], Image.Image] = {}


@pytest.fixture(scope="module", params=list(SIZES))
def located(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Located:
    folder = tmp_path_factory.mktemp("shrunk") / request.param
    made = families.llava_next(folder) if request.param == "llava_next" else qwens.folder(request.param, folder)
    return locate_model(str(made), "cpu")


@pytest.fixture(scope="module")
def loaded(located: Located) -> LoadedModel:
    return located.load()


@pytest.fixture(scope="module")
def name(located: Located) -> str:
    return located.folder.name


@cache
def picture(name: str, number: int) -> Image.Image:
    return families.picture(*SIZES[name][number], seed=number)


def share(name: str, n: int) -> int:
    return int(float(SHARE[name].rstrip("%")) / 100 * n + 0.5)


def downsample(located: Located, asked: str, **knobs: Any) -> Method:
    return located.method("downsample", budgets.parse(asked), knobs)


def theirs(loaded: LoadedModel, image: Image.Image, text: str) -> dict[str, Tensor]:
    """A prompt as the family's processor makes it of text and image."""
    prompt = loaded.template.replace("{text}", text)
    return dict(loaded.processor(text=[prompt], images=[image], return_tensors="pt").items())


def counted(loaded: LoadedModel, image: Image.Image) -> int:
    """Visual tokens of the image, by the family's processor."""
    return int((theirs(loaded, image, "Is it?")["input_ids"] == loaded.image_token_id).sum())


def by_hand(loaded: LoadedModel, name: str, number: int) -> Image.Image:
    """The largest picture of the same shape with at most the share of its tokens, found by the processor itself."""
    if (name, number) not in FOUND:
        FOUND[name, number] = _by_hand(loaded, name, number)
    return FOUND[name, number]


def _by_hand(loaded: LoadedModel, name: str, number: int) -> Image.Image:
    image = picture(name, number)
    most = share(name, counted(loaded, image))
    for height, width in smaller_sizes(*image.size):
        smaller = image.resize((width, height), Image.Resampling.BICUBIC)
        if counted(loaded, smaller) <= most:
            return smaller
    raise AssertionError(f"{name} {number}: no smaller picture has {most} tokens")


def smaller_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """(height, width) of all smaller pictures of a shape, the largest first; rounding may change it by half a
    percent."""
    longer = max(width, height)
    sizes = [(int(height * s / longer + 0.5), int(width * s / longer + 0.5)) for s in range(longer - 1, 0, -1)]
    return [(h, w) for h, w in sizes if h and w and abs(h / w / (height / width) - 1) <= 0.005]


def prompts(name: str, of: Any = picture, tag: str = "") -> list[Prompt]:
    return [
        Prompt.of_one(f"{i}-{n}", QUESTIONS[n], lambda i=i: of(name, i), f"{tag}{i}", 5)  # type: ignore[misc]
        for i in range(4)
        for n in range(3)
    ]


def answers(loaded: LoadedModel, method: Method, asked: list[Prompt], **caches: Any) -> dict[str, Answer]:
    answerer = Answerer(loaded, method, **{"batch_size": 1, **caches})
    return {answer.key: answer for answer in answerer.answer(asked)}


def same(one: Answer, other: Answer) -> None:
    assert (one.text, one.kept, one.n_input_tokens) == (other.text, other.kept, other.n_input_tokens)
    assert one.cost == pytest.approx(other.cost)


# -------------------------------------------------------------------------------------------------------------- answers


def test_a_picture_has_the_size_that_its_processor_says_is_the_largest(
    loaded: LoadedModel, located: Located, name: str
) -> None:
    method = downsample(located, SHARE[name])
    for number in range(4):
        image, smaller = picture(name, number), by_hand(loaded, name, number)
        shown = loaded.shown(method, (image.height, image.width))
        assert shown == (smaller.height, smaller.width) < (image.height, image.width)
        assert loaded.tokens_at(shown) == loaded.image_at(shown).tokens == counted(loaded, smaller)
        assert loaded.tokens_at((image.height, image.width)) == counted(loaded, image) > counted(loaded, smaller)


@torch.inference_mode()
def test_answers_are_those_of_the_bare_model_on_the_shrunk_picture(
    loaded: LoadedModel, located: Located, name: str
) -> None:
    method = downsample(located, SHARE[name])
    ours = answers(loaded, method, prompts(name))
    unlike = 0
    for number in range(4):
        smaller = by_hand(loaded, name, number)
        n = counted(loaded, smaller)
        vision = loaded.image_at((smaller.height, smaller.width)).vision
        for i, text in enumerate(QUESTIONS):
            given, answer = theirs(loaded, smaller, text), ours[f"{number}-{i}"]
            words = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": list(loaded.end_tokens)}
            new = loaded.model.generate(**given, **words)[0, given["input_ids"].shape[1] :]
            assert answer.text == loaded.processor.tokenizer.decode(new, skip_special_tokens=True).strip()
            assert answer.n_input_tokens == given["input_ids"].shape[1]
            assert answer.cost["n_visual"] == answer.cost["kept"] == answer.cost["mean_visual"] == n
            assert answer.cost["vision_flops"] == flops.vision_tower(vision)
            whole = theirs(loaded, picture(name, number), text)
            other = loaded.model.generate(**whole, **words)[0, whole["input_ids"].shape[1] :]
            unlike += new.tolist() != other.tolist()
    assert unlike, "a test that the whole picture would pass as well"


def test_costs_are_those_of_the_unpruned_model_on_the_shrunk_picture(
    loaded: LoadedModel, located: Located, name: str
) -> None:
    none = located.method("none", budgets.NONE)
    ours = answers(loaded, downsample(located, SHARE[name]), prompts(name))
    bare = answers(loaded, none, prompts(name, lambda name, i: by_hand(loaded, name, i)))
    whole = answers(loaded, none, prompts(name))
    for key, answer in ours.items():
        same(answer, bare[key])
        for column in ("prefill_dense_flops", "kv_bytes", "n_visual"):
            assert answer.cost[column] < whole[key].cost[column]
        assert answer.cost["vision_flops"] <= whole[key].cost["vision_flops"]
    assert sum(a.cost["vision_flops"] for a in ours.values()) < sum(a.cost["vision_flops"] for a in whole.values())


def test_batches_and_shared_prefixes_change_no_answer(loaded: LoadedModel, located: Located, name: str) -> None:
    method = downsample(located, SHARE[name])
    alone, prefixes = answers(loaded, method, prompts(name)), PrefixCache()
    together = answers(loaded, method, prompts(name), batch_size=8)
    shared = answers(loaded, method, prompts(name), batch_size=8, prefixes=prefixes)
    assert prefixes.captured == 4
    for key, answer in alone.items():
        same(together[key], answer)
        same(shared[key], answer)


def test_methods_share_no_features_and_no_prefix_with_a_shrunk_picture(
    loaded: LoadedModel, located: Located, name: str
) -> None:
    """Methods by turns on one cache: each answers as it does on a cache of its own."""
    arms = [
        located.method("none", budgets.NONE),
        downsample(located, SHARE[name]),
        downsample(located, BELOW, fewest="true"),
        located.method("fastv", budgets.parse("50%")),
    ]
    features, prefixes = FeatureCache(), PrefixCache()
    for _ in range(2):
        for method in arms:
            mine = answers(loaded, method, prompts(name), features=features, prefixes=prefixes, batch_size=4)
            for key, answer in answers(loaded, method, prompts(name), batch_size=4).items():
                same(mine[key], answer)
    assert features.encoded == 3 * 4, "none and fastv share theirs"
    assert len({pixels_key(method) for method in arms}) == 3


# ---------------------------------------------------------------------------------------------------------------- cells


def run(located: Located, place: Path, budget: str = "", said: list[str] | None = None, **others: Any) -> Finished:
    """Eight questions of POPE on four pictures, read from files."""
    name = located.folder.name
    if not (place / "data").exists():
        families.pope(place / "data", 8, others.pop("sizes", SIZES[name]))
    others.pop("sizes", None)
    request = Request(
        others.pop("methods", "downsample"),
        model=str(located.folder),
        budgets=budget,
        tasks="pope",
        device="cpu",
        data=str(place / "data"),
        **others,
    )
    return evaluate(request, Options(place / "r"), (said if said is not None else []).append)


def cell(finished: Finished, method: str = "downsample") -> Any:
    (found,) = [sealed for sealed in finished.cells.values() if sealed.cell.method == method]
    return found


def test_a_share_is_sealed_with_what_the_shrunk_pictures_have(
    loaded: LoadedModel, located: Located, name: str, tmp_path: Path
) -> None:
    said: list[str] = []
    finished = run(located, tmp_path, SHARE[name], said, methods="downsample,fastv")
    sealed, unpruned = cell(finished), cell(finished, "none")
    frame, whole = (one.samples().set_index("key") for one in (sealed, unpruned))
    for number in range(4):
        smaller = by_hand(loaded, name, number)
        for key in frame.index[2 * number : 2 * number + 2]:
            row = frame.loc[key]
            assert row["n_visual"] == row["kept"] == counted(loaded, smaller)
            own = grids.of_image(sealed.provenance["grids"], row["image"])
            assert tuple(own) == loaded.image_at((smaller.height, smaller.width)).views
    assert (frame["prefill_dense_flops"] < whole["prefill_dense_flops"]).all()
    assert frame["vision_flops"].sum() < whole["vision_flops"].sum()
    assert sealed.cell.knobs == {"keep": str(budgets.parse(SHARE[name])), "side": None}
    lines, sound = verify(tmp_path / "r", again)
    assert sound, lines
    assert not [line for line in lines if "not recomputed" in line]
    # of the unpruned cell's, the tower's share too
    row = pd.read_csv(finished.csv).set_index("method").loc["downsample"]
    expected = 100 * frame["prefill_dense_flops"].mean() / whole["prefill_dense_flops"].mean()
    assert float(row["pct_of_unpruned_flops"]) == pytest.approx(expected, rel=1e-3)
    towers = [
        sum(one[column].mean() for column in ("vision_flops", "projector_flops", "prefill_dense_flops"))
        for one in (frame, whole)
    ]
    assert float(row["pct_of_unpruned_tower_and_prefill"]) == pytest.approx(100 * towers[0] / towers[1], rel=1e-3)
    asked = float(SHARE[name].rstrip("%")) / 100 * whole["n_visual"].mean()
    notes = [line for line in said if "downsample" in line and "were asked" in line]
    assert notes == [
        line for line in notes if f"kept {frame['kept'].mean():.1f} visual tokens on average, {asked:g} were" in line
    ]
    assert len(notes) == 1, said


def test_a_forged_tower_is_found(located: Located, name: str, tmp_path: Path) -> None:
    sealed = cell(run(located, tmp_path, SHARE[name]))
    frame = sealed.samples()
    assert again(sealed, frame) == ([], [])
    wrong, _ = again(sealed, frame.assign(vision_flops=frame["vision_flops"] + 1))
    assert "vision_flops" in wrong[0]


def test_a_count_is_the_same_for_all(loaded: LoadedModel, located: Located, name: str, tmp_path: Path) -> None:
    """A number of tokens that the smallest picture just has: it stays as it is, the others are shrunk to it."""
    counts = [counted(loaded, picture(name, number)) for number in range(4)]
    frame = cell(run(located, tmp_path, str(min(counts)))).samples()
    assert (frame["kept"] <= min(counts)).all()
    assert frame["kept"].max() == min(counts) < max(counts)
    said = refused(lambda: run(located, tmp_path, str(min(counts) + 1)))
    assert f"expected at most {min(counts)}, the fewest of a prompt" in said
    clamped = cell(run(located, tmp_path, f"{min(counts) + 1}clamped")).samples()
    assert (clamped["kept"] <= min(counts) + 1).all()


@pytest.mark.parametrize("unit", ["avg", "flops"])
def test_means_and_flops_are_met_within_one_step_of_a_picture(
    loaded: LoadedModel, located: Located, name: str, tmp_path: Path, unit: str
) -> None:
    """Solved to a share at the mean prompt: each picture has the most tokens that a size of its shape gives."""
    ratio = FLOPS[name] if unit == "flops" else float(SHARE[name].rstrip("%")) / 100
    finished = run(located, tmp_path, f"{ratio:g}{unit}")
    sealed, unpruned = cell(finished), cell(finished, "none")
    session = Session()
    settings = resolve(
        Request("downsample", model=str(located.folder), budgets=f"{ratio:g}{unit}", tasks="pope", device="cpu",
                data=str(tmp_path / "data")), session)  # fmt: skip
    (setting,) = [one for one in settings if one.method.name == "downsample"]
    task = session.task("pope", setting.source, None)
    prompt = mean_prompt(setting.located, task)
    keep = setting.method.knobs()["keep"]
    solved = budgets.amount(keep)
    assert isinstance(solved, Share)
    found = budgets.cost_of(setting.method, prompt)
    assert found is not None
    step = 1 / prompt.n_visual
    assert (found.mean_visual / prompt.n_visual if unit == "avg" else found.ratio) == pytest.approx(ratio, abs=step)
    columns = {"avg": "mean_visual", "flops": "prefill_dense_flops"}
    mine, whole = (one.samples()[columns[unit]].mean() for one in (sealed, unpruned))
    most = above = 0.0
    counts = visual_tokens(setting.located, task)
    for own, (_, row) in zip(counts, sealed.samples().iterrows(), strict=True):
        height, width = task.sizes[row["image"]]
        reach = [loaded.tokens_at(size) for size in smaller_sizes(width, height)]
        assert row["kept"] == next(n for n in reach if n <= int(solved.ratio * own + 0.5))
        most, above = most + row["kept"], above + min(n for n in [*reach, own] if n > row["kept"])
    assert mine <= (ratio + step) * whole
    assert above / sum(counts) >= ratio - step, "one step more is at least what was asked"
    assert most / sum(counts) == pytest.approx(sealed.samples()["kept"].sum() / sum(counts))


def test_out_of_reach_is_refused_before_anything_runs(
    loaded: LoadedModel, located: Located, name: str, tmp_path: Path
) -> None:
    with from_a_terminal():
        said = refused(lambda: run(located, tmp_path, BELOW))
    assert not list(tmp_path.rglob("cell.json"))
    assert "\n" not in said
    assert f"downsample: keep={budgets.parse(BELOW)}: expected at least" in said
    assert "8 of 8 prompts of pope" in said
    assert ("min_pixels" in said) == (name != "llava_next")
    least = int(said.split("out of reach; ")[1].split("%")[0])
    assert run(located, tmp_path, f"{least}%").cells
    half = 50 / min(counted(loaded, picture(name, number)) for number in range(4))  # of a token, in percent
    assert "is in reach of all" in refused(lambda: run(located, tmp_path, f"{least - half - 1:.1f}%"))
    assert "is in reach of all" in refused(lambda: run(located, tmp_path, "0.7flops"))
    assert "is in reach of all" in refused(lambda: run(located, tmp_path, "3"))


def test_fewest_takes_what_is_in_reach_and_is_another_cell(
    loaded: LoadedModel, located: Located, name: str, tmp_path: Path
) -> None:
    said: list[str] = []
    sealed = cell(run(located, tmp_path, BELOW, said, knobs={"fewest": "true"}))
    assert sealed.cell.knobs["fewest"] is True
    frame = sealed.samples()
    for number in range(4):
        width, height = SIZES[name][number]
        reach = [loaded.tokens_at(size) for size in smaller_sizes(width, height)]
        assert frame["kept"].iloc[2 * number] == frame["kept"].iloc[2 * number + 1] == min(reach)
    assert any("visual tokens on average" in line for line in said), said
    lines, sound = verify(tmp_path / "r", again)
    assert sound, lines
    plain, spoken = (cell(run(located, tmp_path, SHARE[name], knobs=k)) for k in ({}, {"fewest": "true"}))
    assert plain.identity != spoken.identity
    assert plain.samples()["answer"].tolist() == spoken.samples()["answer"].tolist()


def test_a_picture_that_stays_is_the_unpruned_model(located: Located, name: str, tmp_path: Path) -> None:
    finished = run(located, tmp_path, "100%")
    mine, whole = (cell(finished, method).samples() for method in ("downsample", "none"))
    for column in ("answer", "n_visual", "kept", "prefill_dense_flops", "vision_flops"):
        assert mine[column].tolist() == whole[column].tolist()


def test_pictures_show_what_the_model_saw(located: Located, name: str, tmp_path: Path) -> None:
    finished = run(located, tmp_path, SHARE[name], methods="downsample,uniform")
    _, sample = show.write(
        tmp_path / "r",
        "pope/000004",
        ["uniform", "downsample"],
        str(budgets.parse(SHARE[name])),
        data=str(tmp_path / "data"),
    )
    uniform, shrunk = sample.methods
    assert shrunk.n_visual < uniform.n_visual
    for one, method in ((uniform, "uniform"), (shrunk, "downsample")):
        own = cell(finished, method).samples().set_index("key").loc["pope/000004"]
        assert one.n_visual == own["n_visual"]
        assert one.raster is not None
        assert one.raster.start + one.raster.grid.tokens == one.n_visual
        show.shaded(sample.image, one.stages[-1], one.raster)
    assert int(shrunk.stages[-1].keep.sum()) == shrunk.n_visual
    page = write_page(tmp_path / "r", data=str(tmp_path / "data"), say=lambda line: None).read_text()
    chunks = [gzip.decompress(base64.b64decode(found)) for found in re.findall(r">(H4sI[\w+/=]+)<", page)]
    (held,) = [data for chunk in chunks if isinstance(data := json.loads(chunk), dict) and "cells" in data]
    told = [
        [one.get("seen", {}).get(str(i), held["samples"][i])["n_visual"] for i in range(8)] for one in held["cells"]
    ]
    assert sorted(told) == sorted(sealed.samples()["n_visual"].tolist() for sealed in finished.cells.values())
    assert any("seen" in one for one in held["cells"])


# ----------------------------------------------------------------------------------------------------- without pictures


@torch.inference_mode()
def test_pixels_that_a_processor_made_are_refused(loaded: LoadedModel, located: Located, name: str) -> None:
    for budget in ("50%", "20"):
        with pytest.raises(PrunebenchError, match="downsample shrinks a picture before the processor") as found:
            prunebench.prune(loaded.model, "downsample", budget).__enter__()
        assert "give the processor a smaller picture" in str(found.value)
        assert "\n" not in str(found.value)
    method = downsample(located, SHARE[name])
    assert shrinks_pictures(method)
    assert not shrinks_pictures(located.method("fastv", budgets.parse("50%")))
    with attach(loaded.model, method, pictures=True) as run:
        run.encode(**loaded.made(picture(name, 0)))  # whose pixels stay as they are


def test_the_kit_says_so_and_the_matrix_knows_a_control() -> None:
    found = {fit.family: fit for fit in fits(Downsample)}
    assert set(found) == set(ADAPTERS)
    for family, fit in found.items():
        assert ("before the processor" in fit.refused) == (not ADAPTERS[family].one_size)
        assert not fit.failed
        assert fit.refused or fit.verdicts
    for family in FAMILIES:
        assert fitted(Downsample, family) == (OWN, "")


def test_a_prompt_says_whether_others_have_other_tokens(loaded: LoadedModel) -> None:
    assert adapter_for(loaded.model).usual.one_of_many
    for checkpoint in ("llava-1.5-7b", *published_models()):
        prompt, config = published_prompt(checkpoint), published_config(checkpoint)
        assert prompt is not None
        assert prompt.one_of_many == (config is not None and not adapter_class(config).one_size)


def test_images_of_one_size_are_shrunk_as_pixels() -> None:
    mini = locate_model("mini", "cpu")
    method = mini.method("downsample", budgets.parse("64"))
    assert mini.prompter.shown(method, (480, 640)) == (480, 640)
    assert method.knobs() == {"keep": 64, "side": 112}
    check_pictures(method, True)
    assert method.on_pixels(torch.zeros(1, 3, 336, 336)) is not None
    assert json.loads(json.dumps(method.knobs()))


# -------------------------------------------------------------------------------------------------------- other methods


@dataclass(frozen=True)
class Halved(Method):
    """A method of one's own: half of each side."""

    name = "halved"
    paper = "https://example.org"
    traits = Traits(query_aware=False)
    answer: Any = None

    def picture(self, size: Any, tokens: Any) -> Any:
        if self.answer == "raise":
            raise ValueError("no")
        return self.answer or (size[0] // 2, size[1] // 2)


def test_another_method_shrinks_pictures_too(loaded: LoadedModel, name: str) -> None:
    def halved(name: str, number: int) -> Image.Image:
        image = picture(name, number)
        return image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)

    ours, bare = answers(loaded, Halved(), prompts(name)), answers(loaded, Method(), prompts(name, halved))
    for key, answer in ours.items():
        same(answer, bare[key])
    assert pixels_key(Halved()) != pixels_key(replace(Halved(), answer=(3, 3))) != ""


@pytest.mark.parametrize("answer", [(20, 10), (0, 5), [5, 5], (5.0, 5), 7, (5, 5, 5), "raise"])
def test_what_is_no_smaller_size_is_refused(answer: Any) -> None:
    said = refused(lambda: shown_size(Halved(answer), (10, 10), lambda size: 4))
    assert said.startswith("halved")
    assert ("ValueError: no" if answer == "raise" else "expected a (height, width) within (10, 10)") in said
    assert shown_size(Halved((10, 9)), (10, 10), lambda size: 4) == (10, 9)


def test_a_picture_out_of_reach_says_the_same_from_another_process() -> None:
    again = pickle.loads(pickle.dumps(PictureError(5, 9, "halved: 9 are in reach")))
    assert (again.asked, again.fewest, str(again)) == (5, 9, "halved: 9 are in reach")
