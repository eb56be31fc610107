"""Prompts of one, two and three images, with text between and in front of them, from questions to sealed cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest
import qwens
import several
import torch
from checkpoints import refused
from PIL import Image

from harness.analysis import study
from harness.core import budget as budgets
from harness.core import grids, keeps
from harness.engine.attach import attach
from harness.engine.prefix import PrefixCache
from harness.method import Method
from harness.models.load import LoadedModel, locate_model
from harness.models.prompt import Content, Sizes
from harness.proof.recomputed import again
from harness.report import page, show
from harness.runner.answering import Answer, Answerer, Prompt
from harness.runner.evaluate import evaluate
from harness.runner.execute import prompts_of
from harness.runner.features import FeatureCache
from harness.runner.request import Request, resolve
from harness.runner.run import Finished, Options
from harness.runner.session import Session
from harness.runner.sizes import mean_prompt, visual_tokens
from harness.store.store import Store
from harness.store.verify import verify
from tasks import lmms

FAMILIES = ("qwen2_5_vl", "llava_next")
#: of the eight questions
N_IMAGES = (2, 2, 2, 2, 1, 1, 3, 3)
PICTURES = tuple(families.picture(*size, seed=i) for i, size in enumerate(families.SIZES))
#: numbers of `PICTURES` in each question
SHOWN = ((0, 1), (0, 1), (1, 2), (1, 2), (2,), (2,), (3, 0, 1), (3, 0, 1))


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("several")
    several.data(found / "data")
    families.llava_next(found / "llava_next")
    qwens.folder("qwen2_5_vl", found / "qwen2_5_vl")
    return found


@pytest.fixture(scope="module")
def task(top: Path) -> lmms.LoadedTask:
    return several.with_several(lmms.load_task("pope", several.data(top / "data"), None, 0))


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, top: Path) -> LoadedModel:
    return locate_model(str(top / request.param), "cpu").load()


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    several.patch(monkeypatch)


@pytest.fixture(scope="module")
def cells(top: Path) -> Iterator[Mapping[str, tuple[Finished, list[str]]]]:
    """Both families' cells of `none` and `fastv`, and what was said."""
    with pytest.MonkeyPatch.context() as patch:
        several.patch(patch)
        found = {}
        for name in FAMILIES:
            said: list[str] = []
            found[name] = evaluate(asked(top, name, "fastv", "30%"), Options(top / f"{name}-r"), said.append), said
        yield found


def asked(top: Path, model: str, method: str, budget: str = "", **more: Any) -> Request:
    place = model if model == "mini" else str(top / model)
    words = {"tasks": "pope", "data": str(top / "data"), "device": "cpu"} | more
    return Request(method, model=place, budgets=budget, **words)


def turn(loaded: LoadedModel, content: Content) -> str:
    """The turn as the checkpoint's own chat template renders it."""
    parts = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in content]
    said: str = loaded.processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    return said


def moves(loaded: LoadedModel) -> bool:
    """Does the chat template leave images where they stand? The mini model's, which is LLaVA's, puts all in front."""
    return turn(loaded, ("a", None)) != turn(loaded, (None, "a"))


def theirs(loaded: LoadedModel, content: Content, images: list[Image.Image]) -> dict[str, Any]:
    """The prompt as the family's own processor makes it."""
    return dict(loaded.processor(text=[turn(loaded, content)], images=images, return_tensors="pt"))


def sizes_of(images: list[Image.Image]) -> Sizes:
    return tuple((image.height, image.width) for image in images)


def pictures(row: int) -> list[Image.Image]:
    return [PICTURES[number] for number in SHOWN[row]]


def method_of(loaded: LoadedModel, name: str) -> Method:
    budget = budgets.parse(None if name == "none" else "30%")
    return locate_model(str(loaded.config.path), "cpu").method(name, budget)


def answers(
    loaded: LoadedModel, method: Method, prompts: list[Prompt], size: int, share: bool
) -> tuple[dict[str, Answer], PrefixCache]:
    cache = PrefixCache()
    answerer = Answerer(
        loaded, method, batch_size=size, features=FeatureCache(), prefixes=cache if share else None, seed=3
    )
    return {answer.key: answer for answer in answerer.answer(prompts)}, cache


# -------------------------------------------------------------------------------------------------------------- prompts


def test_the_questions_have_one_to_three_images(task: lmms.LoadedTask) -> None:
    assert tuple(len(sample.images) for sample in task.samples) == N_IMAGES
    first, other, one = task.samples[0], task.samples[2], task.samples[4]
    assert one.image_key == one.images[0].key
    assert one.load_image().size == (130, 130)
    assert first.image_key == task.samples[1].image_key
    assert len({s.image_key for s in task.samples}) == 4
    assert len(first.image_key) == 16
    backwards = replace(first, images=first.images[::-1])
    assert backwards.image_key != first.image_key
    assert first.image_key not in {image.key for image in first.images}
    assert other.prompt.startswith("Image 1:\nImage 2:\n")
    assert len(task.sizes) == 4
    assert "expected a sample of one image, found 2" in refused(first.load_image)
    assert "expected a sample of one image, found 2" in refused(first.image_size)


def test_images_stand_where_the_task_put_them(loaded: LoadedModel, task: lmms.LoadedTask) -> None:
    """As the checkpoint's own chat template and processor put them."""
    for row, sample in enumerate(task.samples):
        wanted = theirs(loaded, sample.content, pictures(row))["input_ids"][0].tolist()
        assert loaded.prompt_ids(sample.content, sizes_of(pictures(row))) == wanted, row
    between, sizes = task.samples[2].content, sizes_of(pictures(2))
    moved = (None, None, *(part for part in between if part is not None))
    assert (loaded.prompt_ids(between, sizes) != loaded.prompt_ids(moved, sizes)) == moves(loaded)
    assert loaded.prompt_ids("Is it?", sizes[:1]) == loaded.prompt_ids((None, "Is it?"), sizes[:1])


def test_vicuna_puts_each_image_on_a_line_of_its_own(top: Path) -> None:
    mini = locate_model("mini", "cpu", prompt="vicuna_v1").prompter
    head = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed,"
        " and polite answers to the user's questions. USER: "
    )
    for content, middle in {
        (None, "Is it?"): "<image>\nIs it?",
        (None, None, "Is it?"): "<image>\n<image>\nIs it?",
        ("One:", None, "Two:", None, "Is it?"): "One:\n<image>\nTwo:\n<image>\nIs it?",
        ("Is it?", None): "Is it?\n<image>",
    }.items():
        ids = mini.processor.tokenizer(f"{head}{middle} ASSISTANT:")["input_ids"]
        whole = [t for token in ids for t in [token] * (576 if token == mini.image_token_id else 1)]
        assert mini.prompt_ids(content) == whole


def test_what_is_no_prompt_of_images_is_refused(loaded: LoadedModel) -> None:
    sizes = sizes_of([PICTURES[0], PICTURES[1]])
    token = loaded.processor.image_token
    assert "found 0 image(s)" in refused(lambda: loaded.prompt_ids(("Is it?",), ()))
    assert "found 2 image(s) and 1 size(s)" in refused(lambda: loaded.prompt_ids((None, None, "Is it?"), sizes[:1]))
    assert "found 1 image(s) and 2 size(s)" in refused(lambda: loaded.prompt_ids((None, "Is it?"), sizes))
    said = refused(lambda: loaded.prompt_ids((None, f"and {token}", None, "Is it?"), sizes))
    assert "expected 2 image tokens in the prompt, found 3" in said
    assert "expected the size of each image" in refused(lambda: loaded.prompt_ids((None, None, "Is it?")))


def test_the_context_counts_the_tokens_of_all_images(loaded: LoadedModel) -> None:
    content, sizes = (None, None, "Is it?"), sizes_of([PICTURES[0], PICTURES[1]])
    n = len(loaded.prompt_ids(content, sizes))
    narrow = replace(loaded, context=n + 4)
    assert len(narrow.asked("a", content, 4, sizes)) == n
    said = refused(lambda: narrow.asked("a", content, 5, sizes))
    assert f"found a prompt of {n:,} tokens with 2 images: shorten" in said


# -------------------------------------------------------------------------------------------------------------- answers


@torch.inference_mode()
@pytest.mark.parametrize("name", ["none", "fastv", "uniform"])
def test_answers_are_those_of_the_engine_on_the_processors_own_prompt(
    loaded: LoadedModel, task: lmms.LoadedTask, name: str
) -> None:
    """Text, kept tokens and costs, by `generate` on what the processor makes of all images together."""
    method, prompts = method_of(loaded, name), prompts_of(task, 5, task.sizes)
    found, _ = answers(loaded, method, prompts, 1, False)
    for row, sample in enumerate(task.samples):
        given = theirs(loaded, sample.content, pictures(row))
        words = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": list(loaded.end_tokens)}
        with attach(loaded.model, method, seed=3) as run:
            new = loaded.model.generate(**given, **words)[0, given["input_ids"].shape[1] :]
            kept, n_visual = keeps.encode(run.stages(0)), run.prompts[0].n_visual
        mine = found[sample.key]
        assert mine.text == loaded.processor.tokenizer.decode(new, skip_special_tokens=True).strip(), row
        assert (mine.kept, mine.cost["n_visual"]) == (kept, n_visual), row
        assert mine.cost["n_text"] + n_visual == given["input_ids"].shape[1]
    assert len({answer.text for answer in found.values()}) > 1


@pytest.mark.parametrize("name", ["none", "random", "fastv", "visipruner", "hiprune", "divprune"])
def test_batches_and_shared_prefixes_give_the_answers_of_prompts_alone(
    loaded: LoadedModel, task: lmms.LoadedTask, name: str
) -> None:
    method, prompts = method_of(loaded, name), prompts_of(task, 5, task.sizes)
    alone, _ = answers(loaded, method, prompts, 1, False)
    together, _ = answers(loaded, method, prompts, 8, False)
    shared, prefixes = answers(loaded, method, prompts, 8, True)
    # two questions each about four sets of images; a question in front of its images has a prefix of its own
    assert prefixes.captured == (5 if moves(loaded) else 4)
    for key, answer in alone.items():
        for other in (together[key], shared[key]):
            assert (other.text, other.kept) == (answer.text, answer.kept), key
            assert other.cost == pytest.approx(answer.cost), key


def test_an_image_is_encoded_once_however_many_prompts_show_it(loaded: LoadedModel, task: lmms.LoadedTask) -> None:
    features = FeatureCache()
    method = method_of(loaded, "none")
    found = {
        answer.key: answer
        for answer in Answerer(loaded, method, batch_size=3, features=features).answer(prompts_of(task, 2, task.sizes))
    }
    assert features.encoded == 4
    alone = [loaded.image_at(size).tokens for size in sizes_of(list(PICTURES))]
    counts = [found[sample.key].cost["n_visual"] for sample in task.samples]
    assert counts == [sum(alone[number] for number in numbers) for numbers in SHOWN]
    one, three = found[task.samples[4].key].cost, found[task.samples[6].key].cost
    assert three["vision_flops"] > 2 * one["vision_flops"] / 5
    assert three["n_text"] != one["n_text"]


def test_text_between_the_images_changes_an_answers_prefix_alone(loaded: LoadedModel, task: lmms.LoadedTask) -> None:
    """The same images under another turn start from another prefix."""
    prompts = prompts_of(task, 5, task.sizes)
    first = prompts[0]
    other = replace(first, key="other", content=(None, "and another:", None, first.content[-1]))
    method = method_of(loaded, "none")
    alone = {p.key: answers(loaded, method, [p], 1, False)[0][p.key] for p in (first, other)}
    shared, prefixes = answers(loaded, method, [first, other, prompts[1]], 4, True)
    assert prefixes.captured == (2 if moves(loaded) else 1)
    for key, answer in alone.items():
        assert shared[key].text == answer.text
        assert shared[key].cost == pytest.approx(answer.cost)


# ---------------------------------------------------------------------------------------------------------------- cells


@pytest.mark.parametrize("name", FAMILIES)
def test_an_evaluation_is_sealed_with_the_tokens_of_all_images(
    top: Path, cells: Mapping[str, tuple[Finished, list[str]]], task: lmms.LoadedTask, name: str, patched: None
) -> None:
    finished, said = cells[name]
    located = locate_model(str(top / name), "cpu")
    counts = visual_tokens(located, task)
    assert mean_prompt(located, task).n_visual == round(sum(counts) / len(counts))
    for sealed in finished.cells.values():
        frame = sealed.samples()
        assert frame["key"].tolist() == [sample.key for sample in task.samples]
        assert frame["image"].tolist() == [sample.image_key for sample in task.samples]
        assert frame["n_visual"].tolist() == counts
        own = [grids.by_image(sealed.provenance["grids"], key) for key in frame["image"]]
        assert tuple(map(len, own)) == N_IMAGES
        assert [sum(grid.tokens for image in images for grid in image) for images in own] == counts
        if sealed.cell.method != "none":
            assert frame["kept"].tolist() == [int(0.3 * n + 0.5) for n in counts]
        assert sealed.interval is not None
        assert sealed.interval.n_clusters == 4
    several_said = [line for line in said if "prompts of pope have several images" in line]
    if name == "llava_next":
        assert several_said == [
            "note: 6 of 8 prompts of pope have several images, up to 3: LLaVA-NeXT was trained on prompts of one image,"
            " and runs them as transformers does"
        ]
    else:
        assert not several_said
    lines, sound = verify(top / f"{name}-r", again)
    assert sound, lines
    assert not [line for line in lines if "not recomputed" in line]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_forged_cost_of_several_images_is_found(
    cells: Mapping[str, tuple[Finished, list[str]]], name: str, patched: None
) -> None:
    (sealed,) = [cell for cell in cells[name][0].cells.values() if cell.cell.method != "none"]
    frame = sealed.samples()
    assert again(sealed, frame) == ([], [])
    one = frame.assign(vision_flops=[min(frame["vision_flops"])] * len(frame))
    assert "vision_flops" in again(sealed, one)[0][0]
    other = frame.assign(image=frame["image"].tolist()[::-1])
    assert "image of pope/000000" in again(sealed, other)[0][0]


def test_a_picture_of_several_images_is_refused_and_of_one_is_drawn(
    top: Path, cells: Mapping[str, tuple[Finished, list[str]]]
) -> None:
    results, data = top / "llava_next-r", str(top / "data")
    said = refused(lambda: show.write(results, "pope/000006", ["fastv"], "0.3kept", data=data))
    assert "pope/000006: expected a sample of one image, found 3" in said
    path, sample = show.write(results, "pope/000004", ["fastv"], "0.3kept", data=data)
    assert path.is_file()
    assert sample.methods[0].raster is not None
    built = page.fitting(Store(results).cells(), results, samples=8, data=data)
    assert built.n_samples == 8
    assert [note for note in built.notes if "expected a sample of one image" in note]


def test_a_count_is_of_all_images_of_a_prompt(top: Path, task: lmms.LoadedTask, patched: None) -> None:
    fewest = min(visual_tokens(locate_model(str(top / "qwen2_5_vl"), "cpu"), task))
    most = max(visual_tokens(locate_model(str(top / "qwen2_5_vl"), "cpu"), task))
    said = refused(lambda: resolve(asked(top, "qwen2_5_vl", "fastv", str(fewest + 1)), Session()))
    assert f"expected at most {fewest}" in said
    assert f"{fewest} to {most}" in said
    clamped = evaluate(
        asked(top, "qwen2_5_vl", "fastv", f"{fewest + 1}clamped"), Options(top / "clamped"), lambda line: None
    )
    (sealed,) = [cell for cell in clamped.cells.values() if cell.cell.method == "fastv"]
    frame = sealed.samples()
    assert (frame["kept"] == frame["n_visual"].clip(upper=fewest + 1)).all()


def test_shares_are_of_each_prompts_own_tokens_where_images_have_one_size(
    top: Path, task: lmms.LoadedTask, patched: None
) -> None:
    session = Session()

    def method(budget: str, name: str = "fastv") -> Method:
        return resolve(asked(top, "mini", name, budget), session)[-1].method

    assert str(method("25%").knobs()["keep"]) == "0.25kept"
    assert method("64").knobs()["keep"] == 64
    located = locate_model("mini", "cpu")
    prompt = mean_prompt(located, task)
    assert prompt.n_visual == 576 * sum(N_IMAGES) / 8
    solved = budgets.cost_of(method("300avg"), prompt)
    assert solved is not None
    assert solved.mean_visual == pytest.approx(300, abs=1)
    shared = budgets.cost_of(method("0.5flops"), prompt)
    assert shared is not None
    assert shared.ratio == pytest.approx(0.5, rel=0.02)
    assert method("25%", "downsample").knobs()["side"] == 168
    for budget, knobs in (("64", {}), ("", {"keep": "64"})):
        said = refused(
            lambda budget=budget, knobs=knobs: resolve(asked(top, "mini", "downsample", budget, knobs=knobs), session)
        )
        assert "expected a share of the tokens" in said
        assert "6 of 8 prompts of pope" in said


def test_the_mini_model_is_asked_several_images(top: Path, task: lmms.LoadedTask, patched: None) -> None:
    said: list[str] = []
    finished = evaluate(asked(top, "mini", "uniform", "25%", dtype="float32"), Options(top / "mini-r"), said.append)
    for sealed in finished.cells.values():
        frame = sealed.samples()
        assert frame["n_visual"].tolist() == [576 * n for n in N_IMAGES]
        if sealed.cell.method != "none":
            assert frame["kept"].tolist() == [144 * n for n in N_IMAGES]
        assert set(sealed.provenance["grids"]) == {"1 of 24x24", "2 of 24x24", "3 of 24x24"}
    assert any("LLaVA-1.5 was trained on prompts of one image" in line for line in said)
    lines, sound = verify(top / "mini-r", again)
    assert sound, lines


def test_an_analysis_speaks_of_one_image(top: Path, patched: None) -> None:
    request = study.AnalysisRequest(model="mini", tasks=("pope",), data=str(top / "data"), limit="all", out=top / "a")
    said = refused(lambda: study.analyse(request, lambda line: None))
    assert "pope/000000: expected questions about one image each" in said
