"""Idefics3 and SmolVLM from images of four shapes to sealed cells: prompts as their own processors make them, answers
of the bare model, batches and shared prefixes that change nothing, several images a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import idefics
import pytest
import several
import torch
from checkpoints import refused
from torch import Tensor

import prunebench
from harness.bench.random_model import marks_of, random_input
from harness.core import budget as budgets
from harness.core import grids
from harness.core.errors import PrunebenchError
from harness.core.shape import Grid
from harness.engine.attach import attach
from harness.engine.prefix import PrefixCache
from harness.method import Method
from harness.models.load import LoadedModel, Located, locate_model
from harness.proof.recomputed import again
from harness.report import show
from harness.runner.answering import Answer, Answerer, Prompt
from harness.runner.evaluate import evaluate
from harness.runner.execute import prompts_of
from harness.runner.features import FeatureCache
from harness.runner.request import Request
from harness.runner.run import Options
from harness.runner.sizes import visual_tokens
from harness.store.verify import verify
from tasks import lmms

QUESTIONS = ("Is it red?", "What is in the image, and where is it then?", "Is there a star at all?")
#: (width, height): one of each shape, one that is made larger, one far longer than wide
SIZES = ((140, 90), (90, 140), (60, 60), (400, 50))
METHODS = {"none": "", "random": "25%", "fastv": "25%", "visipruner": "25%", "uniform": "30%", "pooling": "30%"}


@pytest.fixture(
    scope="module", params=[("idefics3", False), ("smolvlm", True)], ids=["idefics3, tags of text", "smolvlm"]
)
def located(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Located:
    name, tags = request.param
    return locate_model(str(idefics.folder(name, tmp_path_factory.mktemp("idefics") / name, tags)), "cpu")


@pytest.fixture(scope="module")
def loaded(located: Located) -> LoadedModel:
    return located.load()


def picture(number: int) -> Any:
    return families.picture(*SIZES[number], seed=number)


def theirs(loaded: LoadedModel, images: list[Any], content: tuple[str | None, ...]) -> dict[str, Tensor]:
    """A prompt as the family's processor makes it of text and images."""
    parts = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in content]
    turn = loaded.processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    return dict(loaded.processor(text=[turn], images=[images], return_tensors="pt"))


def method_of(located: Located, name: str, asked: str) -> Method:
    return located.method(name, budgets.parse(asked or None))


# -------------------------------------------------------------------------------------------------------------- prompts


def test_a_prompt_is_what_the_processor_makes(loaded: LoadedModel) -> None:
    for number, (width, height) in enumerate(SIZES):
        for text in QUESTIONS:
            wanted = theirs(loaded, [picture(number)], (None, text))
            assert loaded.prompt_ids(text, ((height, width),)) == wanted["input_ids"][0].tolist()
        made = loaded.made(picture(number))
        assert torch.equal(made["pixel_values"], wanted["pixel_values"])
        assert bool(wanted["pixel_attention_mask"].all())
        (features,) = loaded.adapter.encode(**made)
        assert loaded.image_at((height, width)).tokens == loaded.tokens_at((height, width)) == len(features.pooled)
        assert loaded.image_at((height, width)).cut == tuple(made["image_cuts"][0].tolist())


def test_prompts_of_several_images_are_what_the_processor_makes(loaded: LoadedModel) -> None:
    for turn in several.TURNS:
        content = tuple(part and part.format("Is it \n\nred?") for part in turn)
        images = [picture(i) for i in range(content.count(None))]
        sizes = tuple((image.height, image.width) for image in images)
        assert loaded.prompt_ids(content, sizes) == theirs(loaded, images, content)["input_ids"][0].tolist()


def test_images_of_four_shapes_differ_in_tokens(loaded: LoadedModel) -> None:
    assert [loaded.image_at((height, width)).cut for width, height in SIZES] == [(2, 3), (3, 2), (3, 3), (1, 3)]
    assert loaded.usual.n_visual == 40
    contiguous = loaded.prompt_ids(QUESTIONS[0], ((90, 140),))
    first = contiguous.index(loaded.image_token_id)
    assert contiguous[first : first + 28].count(loaded.image_token_id) < 28, "text stands between an image's tokens"


def test_what_the_family_is_never_asked_is_refused(located: Located) -> None:
    folder, prompter = located.config.path or "", located.prompter
    assert "expected its own chat template" in refused(lambda: locate_model(folder, "cpu", prompt="vicuna_v1"))
    assert "images as its processor cuts them" in refused(lambda: locate_model(folder, "cpu", image="pad"))
    assert "hold '<image>'" in refused(lambda: prompter.asked("a", "Is <image> red?", 8, ((60, 50),)))
    assert "expected the size of each image" in refused(lambda: prompter.prompt_ids("Is it?"))
    if hasattr(prompter.processor, "video_token"):
        said = refused(lambda: prompter.prompt_ids("Is <video> red?", ((60, 50),)))
        assert "found '<video>' in the prompt: videos are not supported" in said


# -------------------------------------------------------------------------------------------------------------- answers


def prompts() -> list[Prompt]:
    return [
        Prompt.of_one(f"{i}-{n}", QUESTIONS[n], lambda i=i: picture(i), str(i), 5)  # type: ignore[misc]
        for i in range(4)
        for n in range(3)
    ]


def answers(
    loaded: LoadedModel, method: Method, asked: list[Prompt], share: bool, size: int
) -> tuple[dict[str, Answer], PrefixCache]:
    prefixes = PrefixCache()
    answerer = Answerer(loaded, method, batch_size=size, features=FeatureCache(), prefixes=prefixes if share else None)
    return {answer.key: answer for answer in answerer.answer(asked)}, prefixes


@torch.inference_mode()
def test_none_is_the_bare_model_exactly(loaded: LoadedModel, located: Located) -> None:
    """Logits of prefill and decode, of the bare model on what its processor makes, and text of its `generate`."""
    none = method_of(located, "none", "")
    ours, _ = answers(loaded, none, prompts(), False, 1)
    for number in range(4):
        for n, text in enumerate(QUESTIONS):
            given = theirs(loaded, [picture(number)], (None, text))
            words = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
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
    method = method_of(located, name, METHODS[name])
    alone, _ = answers(loaded, method, prompts(), False, 1)
    together, _ = answers(loaded, method, prompts(), False, 8)
    shared, prefixes = answers(loaded, method, prompts(), True, 8)
    assert prefixes.captured == 4
    assert len({answer.cost["n_visual"] for answer in alone.values()}) == 3
    for key, answer in alone.items():
        for other in (together[key], shared[key]):
            assert (other.text, other.kept) == (answer.text, answer.kept), key
            assert other.cost == pytest.approx(answer.cost)
    if name != "none":
        for answer in alone.values():
            assert answer.cost["kept"] == share_of(METHODS[name], answer.cost["n_visual"])


def share_of(share: str, n: float) -> int:
    return int(float(share.rstrip("%")) / 100 * n + 0.5)


@torch.inference_mode()
def test_the_library_prunes_by_name_and_share(loaded: LoadedModel) -> None:
    """On what the processor makes, which says nothing of how images are cut."""
    for method, asked in (("fastv", "25%"), ("uniform", "40%"), ("none", None)):
        given = theirs(loaded, [picture(0), picture(3)], (None, "and", None, QUESTIONS[1]))
        with prunebench.prune(loaded.model, method, asked) as run:
            loaded.model.generate(**given, max_new_tokens=3, do_sample=False)
            images, kept = run.prompts[0].images, run.trace.layers[-1].visual[0]
            assert [image.cut for image in images] == [(2, 3), (1, 3)]
            assert kept == (44 if asked is None else share_of(asked, 44))
            assert run.costs()["vision_flops"][0] > 0
    with pytest.raises(PrunebenchError, match="fastervlm looks at cls_row"):
        prunebench.prune(loaded.model, "fastervlm", 8).__enter__()


# ---------------------------------------------------------------------------------------------------------------- cells


def asked(model: str, folder: Path, methods: str, budget: str) -> Request:
    """Eight questions of POPE on images of four sizes, read from files."""
    families.pope(folder / "data", 8)
    return Request(methods=methods, budgets=budget, model=model, tasks="pope", device="cpu", data=str(folder / "data"))


def test_an_evaluation_from_files_to_sealed_cells(located: Located, tmp_path: Path) -> None:
    said: list[str] = []
    request = asked(located.config.path or "", tmp_path, "fastv,uniform", "40%")
    finished = evaluate(request, Options(tmp_path / "results"), said.append)
    cells = {cell.cell.method: cell for cell in finished.cells.values()}
    assert set(cells) == {"none", "fastv", "uniform"}
    for method, cell in cells.items():
        rows = cell.columns("key", "image", "n_visual", "kept", "vision_flops", "n_text")
        assert len(rows["key"]) == 8
        assert {*rows["n_visual"]} == {28, 40}
        assert [n / 4 for n in rows["n_visual"]] == pytest.approx(
            [f / min(rows["vision_flops"]) * 7 for f in rows["vision_flops"]]
        )
        share = "100%" if method == "none" else "40%"
        assert [*rows["kept"]] == [share_of(share, n) for n in rows["n_visual"]]
        own = [grids.of_image(cell.provenance["grids"], key) for key in rows["image"]]
        assert own == [[Grid(2, 2)] * (n // 4) for n in rows["n_visual"]]
    lines, sound = verify(tmp_path / "results", again)
    assert sound, lines
    _, sample = show.write(tmp_path / "results", "pope/000000", ["fastv"], "0.4kept", data=str(tmp_path / "data"))
    assert sample.methods[0].raster == (Grid(2, 2), 24), "the overview, behind six tiles"
    repeated = evaluate(request, Options(tmp_path / "results"), said.append)
    assert set(repeated.cells) == set(finished.cells)
    assert "cdpruner looks at hidden" in refused(
        lambda: evaluate(replace(request, methods="cdpruner"), Options(tmp_path / "other"), said.append)
    )
    assert "downsample: keep=0.4kept: expected at least" in refused(
        lambda: evaluate(replace(request, methods="downsample"), Options(tmp_path / "other"), said.append)
    )


def test_an_evaluation_of_prompts_of_several_images(
    located: Located, loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several.patch(monkeypatch)
    said: list[str] = []
    request = asked(located.config.path or "", tmp_path, "fastv", "30%")
    finished = evaluate(request, Options(tmp_path / "results"), said.append)
    task = lmms.load_task("pope", families.pope(tmp_path / "again", 8), None, 0)
    counts = visual_tokens(located, task)
    cells: Mapping[str, Any] = {cell.cell.method: cell for cell in finished.cells.values()}
    for method, cell in cells.items():
        frame = cell.samples()
        assert frame["n_visual"].tolist() == counts
        assert frame["kept"].tolist() == [n if method == "none" else share_of("30%", n) for n in counts]
        own = [grids.by_image(cell.provenance["grids"], key) for key in frame["image"]]
        assert [len(images) for images in own] == [len(sample.images) for sample in task.samples]
    assert not [line for line in said if "was trained on prompts of one image" in line]
    lines, sound = verify(tmp_path / "results", again)
    assert sound, lines
    # each answer is that of `generate` on what the processor makes of all images together
    method = located.method("fastv", budgets.parse("30%"))
    found, _ = answers(loaded, method, prompts_of(task, 5, task.sizes), True, 8)
    for sample in task.samples:
        given = theirs(loaded, [image.load() for image in sample.images], sample.content)
        with torch.inference_mode(), attach(loaded.model, method):
            new = loaded.model.generate(
                **given, max_new_tokens=5, do_sample=False, eos_token_id=list(loaded.end_tokens)
            )[0, given["input_ids"].shape[1] :]
        text = loaded.processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        assert found[sample.key].text == text


def test_random_prompts_for_measuring_have_the_marks_of_an_image(loaded: LoadedModel) -> None:
    adapter, config = loaded.adapter, loaded.model.config
    given = random_input(loaded.model, 2, 8, 0)
    with torch.inference_mode(), attach(loaded.model, Method()) as run:
        features, _ = run.encode(**given.images)
        loaded.model(input_ids=given.ids, **adapter.inputs(features, given.ids))
        (prompt, _) = run.prompts
        assert prompt.images[0].cut == (3, 4)
        assert given.ids.shape[1] == prompt.n_visual + 8 + marks_of(type(adapter), config)
