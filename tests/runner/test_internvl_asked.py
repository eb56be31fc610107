"""InternVL from images of four sizes to sealed cells: answers of the bare model, batches and shared prefixes that
change nothing, prompts of several images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import internvls
import pytest
import several
import torch
from checkpoints import refused

import prunebench
from harness.core import budget as budgets
from harness.core import grids
from harness.core.errors import PrunebenchError
from harness.engine.attach import attach
from harness.engine.prefix import PrefixCache
from harness.method import Method
from harness.models.load import LoadedModel, Located, locate_model
from harness.models.prompt import Content
from harness.proof.recomputed import again
from harness.runner.answering import Answer, Answerer, Prompt
from harness.runner.evaluate import evaluate
from harness.runner.features import FeatureCache
from harness.runner.request import Request
from harness.runner.run import Finished, Options
from harness.store.verify import verify

QUESTIONS = ("Is it red?", "What is in the image, and where is it then?", "Is there a star at all?")
#: (width, height) of images of 3, 5, 1 and 7 tiles
SIZES = ((160, 80), (130, 130), (60, 50), (170, 250))
TILES = (3, 5, 1, 7)
METHODS = {"none": "", "random": "25%", "fastv": "25%", "visipruner": "25%", "fastervlm": "40%", "uniform": "30%"}


@pytest.fixture(scope="module")
def located(tmp_path_factory: pytest.TempPathFactory) -> Located:
    return locate_model(str(internvls.folder(tmp_path_factory.mktemp("asked") / "m")), "cpu")


@pytest.fixture(scope="module")
def loaded(located: Located) -> LoadedModel:
    return located.load()


def picture(number: int) -> Any:
    return families.picture(*SIZES[number], seed=number)


def turn(loaded: LoadedModel, content: Content) -> str:
    """The turn as the checkpoint's own chat template renders it."""
    parts = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in content]
    said: str = loaded.processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    return said


def theirs(loaded: LoadedModel, content: Content, numbers: tuple[int, ...]) -> dict[str, Any]:
    """The prompt as the family's own processor makes it, asked as lmms-eval asks it."""
    images = [picture(number) for number in numbers]
    made = loaded.processor(images=images, text=turn(loaded, content), return_tensors="pt", min_patches=1)
    return dict(made.items())


def method_of(located: Located, name: str) -> Method:
    return located.method(name, budgets.parse(METHODS[name] or None))


def prompts() -> list[Prompt]:
    return [
        Prompt.of_one(f"{i}-{n}", QUESTIONS[n], lambda i=i: picture(i), str(i), 5)  # type: ignore[misc]
        for i in range(4)
        for n in range(3)
    ]


def answers(loaded: LoadedModel, method: Method, share: bool, size: int) -> tuple[dict[str, Answer], PrefixCache]:
    prefixes = PrefixCache()
    answerer = Answerer(loaded, method, batch_size=size, features=FeatureCache(), prefixes=prefixes if share else None)
    return {answer.key: answer for answer in answerer.answer(prompts())}, prefixes


@torch.inference_mode()
def test_none_is_the_bare_model_exactly(loaded: LoadedModel, located: Located) -> None:
    """Logits of prefill and decode, of the bare model on what its processor makes, and text of its `generate`."""
    none = method_of(located, "none")
    ours, _ = answers(loaded, none, False, 1)
    words = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    for number in range(4):
        for n, text in enumerate(QUESTIONS):
            given = theirs(loaded, (None, text), (number,))
            bare = loaded.model.generate(**given, **words, eos_token_id=list(loaded.end_tokens))
            with attach(loaded.model, none):
                same = loaded.model.generate(**given, **words, eos_token_id=list(loaded.end_tokens))
            for mine, other in zip(same.logits, bare.logits, strict=True):
                assert torch.equal(mine, other)
            new = bare.sequences[0, given["input_ids"].shape[1] :]
            said = loaded.processor.tokenizer.decode(new, skip_special_tokens=True).strip()
            assert ours[f"{number}-{n}"].text == said


@pytest.mark.parametrize("name", METHODS)
def test_a_ragged_batch_and_shared_prefixes_give_the_answers_of_prompts_alone(
    loaded: LoadedModel, located: Located, name: str
) -> None:
    method = method_of(located, name)
    alone, _ = answers(loaded, method, False, 1)
    together, _ = answers(loaded, method, False, 8)
    shared, prefixes = answers(loaded, method, True, 8)
    assert prefixes.captured == 4
    assert {answer.cost["n_visual"] for answer in alone.values()} == {internvls.TOKENS * n for n in TILES}
    for key, answer in alone.items():
        for other in (together[key], shared[key]):
            assert (other.text, other.kept) == (answer.text, answer.kept), key
            assert other.cost == pytest.approx(answer.cost)
    if name != "none":
        part = float(METHODS[name].rstrip("%")) / 100
        for answer in alone.values():
            assert answer.cost["kept"] == int(part * answer.cost["n_visual"] + 0.5)


@pytest.mark.parametrize(
    ("content", "numbers"),
    [
        ((None, None, "Is it?"), (0, 1)),
        (("Image 1:", None, "Image 2:", None, "Is it?"), (1, 2)),
        (("Is it?", None, None, None), (3, 0, 2)),
    ],
)
@torch.inference_mode()
def test_a_prompt_of_several_images_is_what_the_processor_makes(
    loaded: LoadedModel, located: Located, content: Content, numbers: tuple[int, ...]
) -> None:
    """Ids and pixels, and logits of the bare model from features that were made of each image alone."""
    wanted = theirs(loaded, content, numbers)
    ids = loaded.prompt_ids(content, tuple(SIZES[number][::-1] for number in numbers))
    assert ids == wanted["input_ids"][0].tolist()
    assert torch.equal(torch.cat([loaded.made(picture(n))["pixel_values"] for n in numbers]), wanted["pixel_values"])
    bare = loaded.model(**wanted).logits[:, -1]
    with attach(loaded.model, method_of(located, "none")) as run:
        features = [run.encode(**loaded.made(picture(number)))[0][0] for number in numbers]
        given = loaded.adapter.inputs(features, wanted["input_ids"])
        ours = loaded.model(input_ids=wanted["input_ids"], **given).logits[:, -1]
        assert [image.vision.tiles for image in run.prompts[0].images] == [TILES[number] for number in numbers]
    torch.testing.assert_close(ours, bare, atol=1e-5, rtol=0)


# ---------------------------------------------------------------------------------------------------------------- cells


def run(located: Located, folder: Path, methods: str, budget: str = "", results: str = "r", **knobs: str) -> Finished:
    """Eight questions of POPE on images of four sizes, read from files."""
    families.pope(folder / "data", 8, SIZES)
    model = located.config.path or ""
    request = Request(
        methods, model=model, budgets=budget, tasks="pope", device="cpu", data=str(folder / "data"), knobs=knobs
    )
    return evaluate(request, Options(folder / results), lambda line: None)


def test_an_evaluation_from_files_to_sealed_cells(located: Located, tmp_path: Path) -> None:
    finished = run(located, tmp_path, "fastv,fastervlm,uniform", "40%")
    assert len(finished.cells) == 4
    family = "InternVLForConditionalGeneration"
    unproven = {c.cell.method: c.unproven for c in finished.cells.values()}
    assert unproven == {"none": "", "uniform": "", "fastv": family, "fastervlm": family}
    for sealed in finished.cells.values():
        frame = sealed.samples()
        assert sorted({*frame["n_visual"]}) == sorted(internvls.TOKENS * n for n in TILES)
        assert len({*frame["vision_flops"]}) == len({*frame["projector_flops"]}) == 4
        if sealed.cell.method != "none":
            assert (frame["kept"] == (0.4 * frame["n_visual"] + 0.5).astype(int)).all()
        for image, n in zip(frame["image"], frame["n_visual"], strict=True):
            views = grids.of_image(sealed.provenance["grids"], image)
            assert [tuple(view) for view in views] == [(3, 3, False)] * (n // internvls.TOKENS)
    lines, sound = verify(tmp_path / "r", again)
    assert sound, lines
    assert not [line for line in lines if "costs not recomputed" in line]
    assert set(run(located, tmp_path, "fastv,fastervlm,uniform", "40%").cells) == set(finished.cells)


def test_a_share_of_the_flops_and_downsampling_run_too(located: Located, tmp_path: Path) -> None:
    """The tiles of most shapes do not depend on an image's size, so that no smaller picture has fewer."""
    flops = run(located, tmp_path, "fastv", "0.7flops")
    (cell,) = [cell for cell in flops.cells.values() if cell.cell.method == "fastv"]
    assert (cell.samples()["kept"] < cell.samples()["n_visual"]).all()
    assert "expected at least 63 of the 63 visual tokens" in refused(
        lambda: run(located, tmp_path, "downsample", "60%", "out")
    )
    shrunk = run(located, tmp_path, "downsample", "60%", fewest="true").cells
    (cell,) = [cell for cell in shrunk.values() if cell.cell.method == "downsample"]
    n = dict(zip(TILES, (3, 1, 1, 7), strict=True))
    own = [int(n_visual) // internvls.TOKENS for n_visual in _none(flops)["n_visual"]]
    assert [int(n_visual) // internvls.TOKENS for n_visual in cell.samples()["n_visual"]] == [n[one] for one in own]


def _none(finished: Finished) -> Any:
    (none,) = [cell for cell in finished.cells.values() if cell.cell.method == "none"]
    return none.samples()


def test_questions_with_several_images_run_end_to_end(
    located: Located, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two, two, one and three images; costs of all of them, and no note that the family does not know them."""
    several.patch(monkeypatch)
    said: list[str] = []
    several.data(tmp_path / "data")
    model = located.config.path or ""
    request = Request("fastv", model=model, budgets="30%", tasks="pope", device="cpu", data=str(tmp_path / "data"))
    finished = evaluate(request, Options(tmp_path / "r"), said.append)
    assert not [line for line in said if "trained on prompts of one image" in line]
    tiles = [located.prompter.image_at(size[::-1]).vision.tiles for size in families.SIZES]
    shown = [(0, 1), (0, 1), (1, 2), (1, 2), (2,), (2,), (3, 0, 1), (3, 0, 1)]
    for sealed in finished.cells.values():
        frame = sealed.samples()
        wanted = [sum(tiles[number] for number in numbers) * internvls.TOKENS for numbers in shown]
        assert list(frame["n_visual"]) == wanted
        if sealed.cell.method == "fastv":
            assert list(frame["kept"]) == [int(0.3 * n + 0.5) for n in wanted]
    lines, sound = verify(tmp_path / "r", again)
    assert sound, lines


@torch.inference_mode()
def test_the_library_prunes_by_name_and_share(loaded: LoadedModel) -> None:
    for method, asked in (("fastv", "25%"), ("fastervlm", "40%"), ("none", None)):
        given = theirs(loaded, (None, QUESTIONS[1]), (3,))
        with prunebench.prune(loaded.model, method, asked) as run:
            loaded.model.generate(**given, max_new_tokens=3, do_sample=False)
            n, kept = run.prompts[0].n_visual, run.trace.layers[-1].visual[0]
            assert n == 7 * internvls.TOKENS
            assert kept == n if asked is None else kept == int(float(asked.rstrip("%")) / 100 * n + 0.5)
            assert run.costs()["vision_flops"][0] > 0
    with pytest.raises(PrunebenchError, match="visionzip looks at"):
        prunebench.prune(loaded.model, "visionzip", 8).__enter__()


def test_a_count_that_some_prompt_does_not_have_is_refused(located: Located, tmp_path: Path) -> None:
    assert "expected at most 9" in refused(lambda: run(located, tmp_path, "fastv", "20", "none")).replace("  ", " ")
