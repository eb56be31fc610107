"""Qwen-VL from images of four sizes to sealed cells: prompts as its own processor makes them, answers of the bare
model, batches and shared prefixes that change nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest
import qwens
import torch
from checkpoints import refused
from torch import Tensor

import prunebench
from harness.core import budget as budgets
from harness.core.errors import PrunebenchError
from harness.engine.attach import attach
from harness.engine.prefix import PrefixCache
from harness.method import Method
from harness.models import config as configs
from harness.models.config import ModelConfig
from harness.models.load import LoadedModel, Located, locate_model
from harness.runner.answering import Answer, Answerer, Prompt
from harness.runner.evaluate import evaluate
from harness.runner.features import FeatureCache
from harness.runner.request import Request
from harness.runner.run import Options

QUESTIONS = ("Is it red?", "What is in the image, and where is it then?", "Is there a star at all?")
#: (width, height): one of each shape, one that is made larger, one that is made smaller
SIZES = ((140, 90), (90, 140), (60, 50), (400, 300))
METHODS = {"none": "", "random": "25%", "fastv": "25%", "visipruner": "25%", "hiprune": "40%", "uniform": "30%"}


@pytest.fixture(scope="module", params=list(qwens.FAMILIES))
def located(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Located:
    folder = tmp_path_factory.mktemp("qwens") / request.param
    return locate_model(str(qwens.folder(request.param, folder)), "cpu")


@pytest.fixture(scope="module")
def loaded(located: Located) -> LoadedModel:
    return located.load()


def picture(number: int) -> Any:
    return families.picture(*SIZES[number], seed=number)


def theirs(loaded: LoadedModel, number: int, text: str) -> dict[str, Tensor]:
    """A prompt as the family's processor makes it of text and image."""
    prompt = loaded.template.replace("{text}", text)
    out: dict[str, Tensor] = loaded.processor(text=[prompt], images=[picture(number)], return_tensors="pt")
    return out


def method_of(located: Located, name: str, asked: str) -> Method:
    return located.method(name, budgets.parse(asked or None))


# -------------------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("number", range(4))
def test_a_prompt_is_what_the_processor_makes(loaded: LoadedModel, number: int) -> None:
    width, height = SIZES[number]
    for text in QUESTIONS:
        wanted = theirs(loaded, number, text)
        ids = loaded.prompt_ids(text, ((height, width),))
        assert ids == wanted["input_ids"][0].tolist()
        made = loaded.made(picture(number))
        assert torch.equal(made["pixel_values"], wanted["pixel_values"])
        assert torch.equal(made["image_grid_thw"], wanted["image_grid_thw"])
        features = loaded.adapter.encode(**made)
        given = loaded.adapter.inputs(features, torch.tensor([ids]))
        assert torch.equal(given["mm_token_type_ids"], wanted["mm_token_type_ids"].int())
        assert loaded.image_at((height, width)).tokens == len(features[0].pooled)


def test_images_of_four_sizes_differ_in_tokens(loaded: LoadedModel) -> None:
    counts = [loaded.image_at((height, width)).tokens for width, height in SIZES]
    patch = loaded.adapter.model.config.vision_config.patch_size
    assert counts == ([15, 15, 12, 35] if patch == 14 else [12, 12, 9, 24])


def test_a_system_prompt_and_limits_are_part_of_what_is_asked(located: Located) -> None:
    """They change the prompt's ids, the pixels, and so the cell."""

    def of(**changes: Any) -> Any:
        return replace(located, config=located.config.model_copy(update=changes)).prompter

    plain, spoken = of(), of(system="You are a helpful assistant.")
    assert spoken.template.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n")
    assert plain.template in spoken.template
    smaller = of(max_pixels=10 * 28**2)
    assert smaller.image_at((300, 400)).tokens <= 10 < plain.image_at((300, 400)).tokens
    assert smaller.made(picture(3))["image_grid_thw"].prod() == 4 * smaller.image_at((300, 400)).tokens
    assert plain.image_at((300, 400)).tokens == of().image_at((300, 400)).tokens, "the first processor is as it was"
    kept = [str(prompter.processing) for prompter in (plain, spoken, smaller)]
    assert len({*kept}) == 3
    assert smaller.image_backend != plain.image_backend


def test_what_the_family_is_never_asked_is_refused(located: Located) -> None:
    folder = located.config.path or ""
    assert "prompt='vicuna_v1': expected its own chat template" in refused(
        lambda: locate_model(folder, "cpu", prompt="vicuna_v1")
    )
    assert "image='pad': expected its own chat template and images as its processor cuts them" in refused(
        lambda: locate_model(folder, "cpu", image="pad")
    )
    prompter = located.prompter
    assert "hold '<|image_pad|>'" in refused(lambda: prompter.asked("a", "Is <|image_pad|> red?", 8, ((60, 50),)))
    assert "at most 200 times as long as wide" in refused(lambda: prompter.image_at((10, 2001)))
    assert "expected the size of each image" in refused(lambda: prompter.prompt_ids("Is it?"))


@pytest.mark.parametrize("name", ["qwen2.5-vl-3b", "qwen2.5-vl-7b", "qwen3-vl-4b", "qwen3-vl-8b"])
def test_a_shipped_config_says_lmms_evals_limits_and_system_prompt(name: str) -> None:
    config = configs.model_config(name)
    assert (config.min_pixels, config.max_pixels) == (200_704, 1_605_632)
    assert config.system == "You are a helpful assistant."
    assert (config.prompt, config.image) == ("chat_template", "plain")
    assert config.hub is not None
    assert config.hub.lower().removesuffix("-instruct") == f"qwen/{name}"


def test_limits_are_refused_where_images_have_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    mini = configs.model_config("mini").model_copy(update={"max_pixels": 1000})
    monkeypatch.setattr("harness.models.load.model_config", lambda *_: mini)
    assert "min_pixels and max_pixels are limits of families" in refused(lambda: locate_model("mini", "cpu"))
    assert ModelConfig(name="a", min_pixels=3).min_pixels == 3


def test_a_folder_as_the_hub_has_it_is_the_same(tmp_path: Path) -> None:
    """Qwen's own files: limits of pixels under their old names, and no processor_config.json."""
    new = locate_model(str(qwens.folder("qwen2_5_vl", tmp_path / "new")), "cpu")
    folder = qwens.folder("qwen2_5_vl", tmp_path / "old")
    stated = json.loads((folder / "processor_config.json").read_text())
    image = stated["image_processor"]
    size = image.pop("size")
    image |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(image | {"processor_class": "Qwen2_5_VLProcessor"}))
    (folder / "processor_config.json").unlink()
    old = locate_model(str(folder), "cpu")
    assert old.prompter.processing == new.prompter.processing
    assert old.usual == new.usual
    limited = replace(old, config=old.config.model_copy(update={"min_pixels": 4 * 28**2, "max_pixels": 6 * 28**2}))
    assert limited.prompter.made(picture(3))["image_grid_thw"].tolist() == [[1, 4, 4]]
    (folder / "preprocessor_config.json").unlink()
    assert "expected processor_config.json in" in refused(lambda: locate_model(str(folder), "cpu"))


# -------------------------------------------------------------------------------------------------------------- answers


def prompts(questions: int = 3) -> list[Prompt]:
    return [
        Prompt.of_one(f"{i}-{n}", QUESTIONS[n], lambda i=i: picture(i), str(i), 5)  # type: ignore[misc]
        for i in range(4)
        for n in range(questions)
    ]


def answers(loaded: LoadedModel, method: Method, share: bool, size: int) -> tuple[dict[str, Answer], PrefixCache]:
    prefixes = PrefixCache()
    answerer = Answerer(loaded, method, batch_size=size, features=FeatureCache(), prefixes=prefixes if share else None)
    return {answer.key: answer for answer in answerer.answer(prompts())}, prefixes


@torch.inference_mode()
def test_none_is_the_bare_model_exactly(loaded: LoadedModel, located: Located) -> None:
    """Logits of prefill and decode, of the bare model on what its processor makes, and text of its `generate`."""
    none = method_of(located, "none", "")
    ours, _ = answers(loaded, none, False, 1)
    for number in range(4):
        for n, text in enumerate(QUESTIONS):
            given = dict(theirs(loaded, number, text).items())
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
    alone, _ = answers(loaded, method, False, 1)
    together, _ = answers(loaded, method, False, 8)
    shared, prefixes = answers(loaded, method, True, 8)
    assert prefixes.captured == 4
    assert len({answer.cost["n_visual"] for answer in alone.values()}) >= 3
    for key, answer in alone.items():
        for other in (together[key], shared[key]):
            assert (other.text, other.kept) == (answer.text, answer.kept), key
            assert other.cost == pytest.approx(answer.cost)
    if name not in ("none", "hiprune"):
        for answer in alone.values():
            assert answer.cost["kept"] == budgets_share(METHODS[name], answer.cost["n_visual"])


def test_a_batch_may_have_other_rows_than_the_prefixes_that_were_captured_before_it(
    loaded: LoadedModel, located: Located
) -> None:
    """Three images of one size are captured together, and eight questions are asked of them."""
    asked = [
        Prompt.of_one(f"{i}-{n}", QUESTIONS[n], lambda i=i: families.picture(140, 90, seed=i), str(i), 5)  # type: ignore[misc]
        for i in range(3)
        for n in range(3)
    ][:8]
    for name in ("none", "fastv"):
        method = method_of(located, name, METHODS[name])
        found = []
        for prefixes, size in ((None, 1), (PrefixCache(), 8)):
            answerer = Answerer(loaded, method, batch_size=size, features=FeatureCache(), prefixes=prefixes)
            found.append({answer.key: (answer.text, answer.kept) for answer in answerer.answer(asked)})
        assert found[0] == found[1]


def budgets_share(share: str, n: float) -> int:
    return int(float(share.rstrip("%")) / 100 * n + 0.5)


@torch.inference_mode()
def test_a_repetition_penalty_is_that_of_generate(tmp_path: Path) -> None:
    """Over the prompt and the answer, image tokens among them; it changes what is said."""
    folder = qwens.folder("qwen2_5_vl", tmp_path / "m", penalty=1.3)
    loaded = locate_model(str(folder), "cpu").load()
    none = method_of(locate_model(str(folder), "cpu"), "none", "")
    assert loaded.processing["repetition_penalty"] == 1.3
    tokenizer, stops = loaded.processor.tokenizer, list(loaded.end_tokens)
    wanted: dict[float, list[str]] = {1.3: [], 1.0: []}
    for penalty, said in wanted.items():
        for number in range(4):
            given = dict(theirs(loaded, number, QUESTIONS[0]).items())
            words = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": stops, "repetition_penalty": penalty}
            new = loaded.model.generate(**given, **words)[0, given["input_ids"].shape[1] :]
            said.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    assert wanted[1.3] != wanted[1.0]
    for share in (False, True):
        ours, _ = answers(loaded, none, share, 8)
        assert [ours[f"{number}-0"].text for number in range(4)] == wanted[1.3]


# ---------------------------------------------------------------------------------------------------------------- cells


def asked(located: Located, folder: Path, methods: str, budget: str) -> Request:
    """Eight questions of POPE on images of four sizes, read from files."""
    families.pope(folder / "data", 8)
    model = located.config.path or ""
    return Request(methods=methods, budgets=budget, model=model, tasks="pope", device="cpu", data=str(folder / "data"))


def test_an_evaluation_from_files_to_sealed_cells(located: Located, tmp_path: Path) -> None:
    said: list[str] = []
    request = asked(located, tmp_path, "fastv,hiprune", "40%")
    finished = evaluate(request, Options(tmp_path / "results"), said.append)
    cells = {cell.cell.method: cell for cell in finished.cells.values()}
    assert set(cells) == {"none", "fastv", "hiprune"}
    for method, cell in cells.items():
        rows = cell.columns("key", "n_visual", "kept", "vision_flops", "projector_flops", "keeps")
        assert len(rows["key"]) == 8
        assert len({*rows["n_visual"]}) >= 2
        assert len({*rows["vision_flops"]}) == len({*rows["n_visual"]})
        if method == "none":
            assert list(rows["kept"]) == list(rows["n_visual"])
        elif method == "fastv":
            assert [*rows["kept"]] == [budgets_share("40%", n) for n in rows["n_visual"]]
    assert cells["hiprune"].cell.knobs["official"] == "qwen"
    again = evaluate(request, Options(tmp_path / "results"), said.append)
    assert set(again.cells) == set(finished.cells)


@torch.inference_mode()
def test_the_library_prunes_by_name_and_share(loaded: LoadedModel) -> None:
    for method, asked in (("fastv", "25%"), ("hiprune", "40%"), ("none", None)):
        given = dict(theirs(loaded, 3, QUESTIONS[1]).items())
        with prunebench.prune(loaded.model, method, asked) as run:
            loaded.model.generate(**given, max_new_tokens=3, do_sample=False)
            n, kept = run.prompts[0].n_visual, run.trace.layers[-1].visual[0]
            assert kept == n if asked is None else kept <= budgets_share(asked, n)
            assert run.costs()["vision_flops"][0] > 0
    with pytest.raises(PrunebenchError, match="fastervlm looks at cls_row"):
        prunebench.prune(loaded.model, "fastervlm", 8).__enter__()


def test_a_count_that_some_prompt_does_not_have_is_refused(located: Located, tmp_path: Path) -> None:
    request = asked(located, tmp_path, "fastv", "20")
    assert "expected at most" in refused(lambda: evaluate(request, Options(tmp_path / "results"), lambda _: None))
