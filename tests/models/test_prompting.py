"""How a checkpoint is asked: prompt, padding, number format, end tokens, context, and the digest of all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import REMOVED, WEIGHTS, change, copy, refused
from PIL import Image

from harness.core.command import evaluation
from harness.core.errors import PrunebenchError
from harness.core.paths import TOP
from harness.models.device import pick_dtype
from harness.models.load import LoadedModel, locate_model
from harness.models.prompt import VICUNA_V1, check_prompts
from harness.runner.answering import Answerer, Prompt
from harness.runner.request import Request, resolve
from harness.runner.session import Session
from harness.runner.sweep import Sweep, requests

#: a chat template whose prompt is Vicuna's, to the letter
VICUNA_TEMPLATE = (
    VICUNA_V1.partition("USER:")[0] + "{% for m in messages %}USER: {% for c in m['content'] if c['type'] == 'image' %}"
    "<image>\n{% endfor %}{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")


def test_a_copy_of_a_model_is_asked_as_the_model(tmp_path: Path) -> None:
    mine, mini = locate_model(str(copy(tmp_path / "m")), "cpu"), locate_model("mini", "cpu")
    assert mine.prompter.processing == mini.prompter.processing
    assert mine.prompter.template_hash == mini.prompter.template_hash
    assert mine.fingerprint == mini.fingerprint


def test_prompt_and_padding_are_the_checkpoints_own_or_as_asked(tmp_path: Path) -> None:
    folder = copy(tmp_path / "m")

    def decided(**words: str) -> tuple[str | None, str | None]:
        config = locate_model(str(folder), "cpu", **words).config
        return config.prompt, config.image

    assert decided() == ("chat_template", "plain")
    assert decided(image="pad") == ("chat_template", "pad")
    assert decided(prompt="vicuna_v1") == ("vicuna_v1", "pad")
    assert decided(prompt="vicuna_v1", image="plain") == ("vicuna_v1", "plain")
    assert decided(stands_for="mini", image="pad") == ("chat_template", "pad")
    (folder / "chat_template.jinja").write_text(VICUNA_TEMPLATE)
    assert decided() == ("vicuna_v1", "pad")
    assert decided(image="plain") == ("vicuna_v1", "plain")
    (folder / "chat_template.jinja").unlink()
    assert "give prompt='vicuna_v1'" in refused(decided)
    assert decided(prompt="vicuna_v1") == ("vicuna_v1", "pad")
    assert "unknown prompt 'vicuna'; did you mean 'vicuna_v1'" in refused(lambda: decided(prompt="vicuna"))
    assert "unknown image 'crop'" in refused(lambda: decided(image="crop"))


def test_the_first_line_says_prompt_padding_and_format(tmp_path: Path) -> None:
    folder = str(copy(tmp_path / "m"))
    assert (
        locate_model(folder, "cpu").spoken == "cpu in float32, its own chat template, images as its processor cuts them"
    )
    asked = locate_model(folder, "cpu", "bfloat16", prompt="vicuna_v1", stands_for="mini", image="pad")
    assert asked.spoken == "cpu in bfloat16, Vicuna v1's prompt, images padded to a square, as mini"


def test_words_of_the_model_are_sealed_and_said_again(tmp_path: Path) -> None:
    words = {"prompt": "vicuna_v1", "image": "plain", "stands_for": "mini"}
    request = Request("none", str(copy(tmp_path / "m")), tasks="pope", limit=9, device="cpu", data="mini", **words)  # type: ignore[arg-type]
    asked = resolve(request, Session())[0].asked
    assert {name: getattr(asked, name) for name in words} == words
    assert evaluation(asked).endswith("DATA=mini PROMPT=vicuna_v1 IMAGE=plain AS=mini DEVICE=cpu")
    plain = resolve(replace(request, prompt=None, image=None, stands_for=None), Session())[0].asked
    assert not {"PROMPT", "IMAGE", "AS"} & {part.partition("=")[0] for part in evaluation(plain).split()}


def test_a_sweep_says_them_for_all_its_models() -> None:
    words = {"prompt": "vicuna_v1", "image": "plain", "stands_for": "mini"}
    asked = requests(Sweep(methods=["none", "fastv"], budgets=(64,), **words))  # type: ignore[arg-type]
    assert [one.model_words for one in asked] == [words, words]


def test_a_template_that_spells_the_start_token_gets_no_second_one(tmp_path: Path) -> None:
    folder = copy(tmp_path / "m")
    once = locate_model(str(folder), "cpu").prompter.prompt_ids("Is it?")
    template = folder / "chat_template.jinja"
    template.write_text("{{ bos_token }}" + template.read_text())
    twice = locate_model(str(folder), "cpu").prompter.prompt_ids("Is it?")
    assert (once.count(1), twice.count(1)) == (1, 1)


# ------------------------------------------------------------------------------------------------------- number formats


@pytest.mark.parametrize(
    ("stated", "device", "card_has_it", "expected"),
    [
        ("float16", CUDA, True, "float16"),
        ("bfloat16", CUDA, True, "bfloat16"),
        ("bfloat16", CUDA, False, "float16"),
        ("float32", CUDA, True, "float32"),
        (REMOVED, CUDA, True, "float16"),
        ("float64", CUDA, True, "float16"),
        ("float16", CPU, True, "float32"),
        ("bfloat16", CPU, False, "float32"),
        (REMOVED, CPU, True, "float32"),
    ],
)
def test_auto_is_the_checkpoints_own_format_on_a_card(
    stated: Any, device: torch.device, card_has_it: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: card_has_it)
    monkeypatch.setattr("harness.models.load.pick_device", lambda name: device)
    folder = copy(tmp_path / "m")
    for key in ("dtype", "torch_dtype"):
        change(folder / "config.json", {"dtype": REMOVED, "torch_dtype": REMOVED, key: stated})
        located = locate_model(str(folder))
        assert (located.dtype, located.shape.bytes_per_value) == (expected, 4 if expected == "float32" else 2)
    assert locate_model(str(folder), dtype="bfloat16").dtype == "bfloat16"


def test_a_format_that_was_asked_for_holds() -> None:
    assert [pick_dtype(name, CUDA, None) for name in ("float32", "float16")] == ["float32", "float16"]


# ----------------------------------------------------------------------------------------------------------- end tokens


@pytest.fixture(scope="module")
def mini() -> LoadedModel:
    return locate_model("mini", "cpu").load()


ENDS: list[tuple[Any, str, set[int]]] = [
    (2, "</s>", {2}),
    ([0, 2], "</s>", {0, 2}),
    ([0, 2], "<unk>", {0, 2}),
    (2, "<unk>", {0, 2}),
    ([], "</s>", {2}),
    (None, "</s>", {2}),
    (REMOVED, "</s>", {2}),
    ([0, 2, 3], "</s>", {0, 2, 3}),
]


@pytest.mark.parametrize(("stated", "own", "expected"), ENDS)
def test_every_end_token_is_known(stated: Any, own: str, expected: set[int], tmp_path: Path) -> None:
    folder = copy(tmp_path / "m")
    change(folder / "generation_config.json", {"eos_token_id": stated})
    change(folder / "tokenizer_config.json", {"eos_token": own})
    assert set(locate_model(str(folder), "cpu").prompter.end_tokens) == expected


def test_without_generation_config_the_decoders_end_token_counts(tmp_path: Path) -> None:
    folder = copy(tmp_path / "m")
    (folder / "generation_config.json").unlink()
    change(folder / "config.json", {"text_config.eos_token_id": [5, 6]})
    assert locate_model(str(folder), "cpu").prompter.end_tokens == (2, 5, 6)


def test_a_second_end_token_ends_answers_as_generate_does(mini: LoadedModel, tmp_path: Path) -> None:
    folder = copy(tmp_path / "m")
    change(folder / "tokenizer_config.json", {"eos_token": "<unk>"})
    change(folder / "generation_config.json", {"eos_token_id": [0, 2]})
    mine, prompt = locate_model(str(folder), "cpu").load(), asking("a", "Is there a star in the image?", 128)
    method = locate_model("mini", "cpu").method("none", _none())
    (answer,) = Answerer(mine, method).answer([prompt])
    ids = torch.tensor([mine.prompt_ids(prompt.text)])
    stock = mine.model.generate(input_ids=ids, pixel_values=mine.pixels(prompt.images[0].load()), max_new_tokens=128)
    assert answer.text == mine.processor.tokenizer.decode(stock[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert answer.n_new_tokens < 8


def asking(key: str, text: str, tokens: int = 24) -> Prompt:
    return Prompt.of_one(key, text, lambda: Image.new("RGB", (336, 336), "gray"), "gray", tokens)


def test_an_answer_ends_at_each_end_token(mini: LoadedModel) -> None:
    """An end token that only generation_config.json names ends an answer, as with generate."""
    prompt = asking("a", "Is there a star in the image?")
    method = locate_model("mini", "cpu").method("none", _none())
    (usual,) = Answerer(mini, method).answer([prompt])
    tokenizer = mini.processor.tokenizer
    words = [i for i in tokenizer.get_vocab().values() if tokenizer.decode([i]).strip() == usual.text]
    assert words, "the answer is one token"
    (nothing,) = Answerer(_with(mini, end_tokens=(*mini.end_tokens, *words)), method).answer([prompt])
    assert (nothing.text, nothing.n_new_tokens) == ("", 0)
    # the only end token is one that is not the tokenizer's
    (forever,) = Answerer(_with(mini, end_tokens=()), method).answer([prompt])
    assert forever.n_new_tokens == 24


def _none() -> Any:
    from harness.core.budget import NONE

    return NONE


def _with(model: LoadedModel, **changes: Any) -> LoadedModel:
    return replace(model, **changes)


# -------------------------------------------------------------------------------------------------------------- context


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 4096),
        ({"text_config.max_position_embeddings": 700}, 700),
        ({"text_config.rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}}, 4 * 4096),
        (
            {
                "text_config.rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "rope_theta": 1e6,
                    "original_max_position_embeddings": 1024,
                }
            },
            4096,
        ),
    ],
)
def test_the_context_is_the_decoders(changes: dict[str, Any], expected: int, tmp_path: Path) -> None:
    folder = copy(tmp_path / "m")
    change(folder / "config.json", changes)
    assert locate_model(str(folder), "cpu").context == expected


LONG = "ABC " * 3000
WRONG: list[tuple[str, str, str]] = [
    ("Does the sign read <image>?", "expected one image token in the prompt, found 2", "holds the token"),
    ("<image>", "found 2", "is the token"),
    ("<image><image>", "found 3", "holds two"),
    (LONG, "a context of 4,096 less 24 to answer with", "is long"),
]


@pytest.mark.parametrize(("text", "named", "_"), WRONG, ids=[w[2] for w in WRONG])
def test_a_prompt_that_cannot_be_asked_names_its_sample(text: str, named: str, _: str, mini: LoadedModel) -> None:
    several = [("pope/000022", "Is it?", None), ("pope/000023", text, None)]
    prompts = [asking(*asked[:2]) for asked in several]
    for call in (
        lambda: check_prompts(mini, several, 24),
        lambda: list(Answerer(mini, locate_model("mini", "cpu").method("none", _none())).answer(prompts)),
    ):
        said = refused(call)
        assert said.startswith("sample pope/000023: ")
        assert named in said


def test_a_prompt_is_tokenised_as_the_processor_does_it(mini: LoadedModel) -> None:
    image = Image.new("RGB", (336, 336), "gray")
    for question in ("Is it?", "", " ", "\u00e9t\u00e9 \u4e2d 12\n\n", "USER: ASSISTANT:", "</s> a"):
        text = mini.template.replace("{text}", question)
        assert mini.prompt_ids(question) == mini.processor(images=image, text=text)["input_ids"][0], question


def test_a_prompt_may_fill_the_context_and_no_more(mini: LoadedModel) -> None:
    n = len(mini.prompt_ids("Is it?"))
    check_prompts(_with(mini, context=n + 8), [("a", "Is it?", None)], 8)
    assert "sample a" in refused(lambda: check_prompts(_with(mini, context=n + 8), [("a", "Is it?", None)], 9))
    check_prompts(_with(mini, context=None), [("a", LONG, None)], 8)


# ----------------------------------------------------------------------------------------------------------- processing

EDITS: dict[str, Callable[[Path], None]] = {
    "template": lambda f: (f / "chat_template.jinja").write_text(
        (f / "chat_template.jinja").read_text().replace("USER", "HUMAN")
    ),
    "crop": lambda f: change(f / "processor_config.json", {"image_processor.size": {"shortest_edge": 400}}),
    "resample": lambda f: change(f / "processor_config.json", {"image_processor.resample": 2}),
    "mean": lambda f: change(f / "processor_config.json", {"image_processor.image_mean": [0.5, 0.5, 0.5]}),
    "deviation": lambda f: change(f / "processor_config.json", {"image_processor.image_std": [0.5, 0.5, 0.5]}),
    "rescale": lambda f: change(f / "processor_config.json", {"image_processor.rescale_factor": 0.01}),
    "no normalising": lambda f: change(f / "processor_config.json", {"image_processor.do_normalize": False}),
    "no rescaling": lambda f: change(f / "processor_config.json", {"image_processor.do_rescale": False}),
    "end tokens": lambda f: change(f / "generation_config.json", {"eos_token_id": [0, 2]}),
    "no start token": lambda f: _post_processor(f),
    "lower case": lambda f: _lower(f),
}


def _tokenizer(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    body = json.loads((folder / "tokenizer.json").read_text())
    edit(body)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").write_text(json.dumps(body))


def _post_processor(folder: Path) -> None:
    _tokenizer(folder, lambda body: body.update(post_processor=None))


def _lower(folder: Path) -> None:
    _tokenizer(folder, lambda body: body.update(normalizer={"type": "Lowercase"}))


@pytest.mark.parametrize("name", EDITS)
def test_the_digest_tells_what_processes_a_sample(name: str, tmp_path: Path) -> None:
    before = locate_model("mini", "cpu").prompter.processing
    folder = copy(tmp_path / "m")
    EDITS[name](folder)
    assert locate_model(str(folder), "cpu").prompter.processing != before


def test_the_digest_is_plain_and_the_same_in_every_process_and_folder(tmp_path: Path) -> None:
    code = (
        "import json, sys; from harness.models.load import locate_model\n"
        "print(json.dumps(locate_model(sys.argv[1], 'cpu').prompter.processing, sort_keys=True))"
    )
    here = json.dumps(locate_model("mini", "cpu").prompter.processing, sort_keys=True, allow_nan=False)
    done = subprocess.run(
        [sys.executable, "-c", code, str(copy(tmp_path / "elsewhere"))], cwd=TOP, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == here
    assert str(WEIGHTS) not in here
    assert json.loads(here)["image"]["n_tokens"] == 576
    assert [4, 576] in json.loads(here)["prompt_ids"]


#: how a template may look at the question, in place of `{{ c['text'] }}`
LOOKS = (
    "{{ c['text'] | trim }}",
    "{{ c['text'] | tojson }}",
    "{{ c['text'] | lower }}",
    "{{ c['text'] | upper | trim }}",
    "{{ c['text'] | e }}",
    "{{ c['text'] | replace('?', '') }}",
    "{{ c['text'].split('\n')[0] }}",
    "{% if 'sign' in c['text'] %}Short. {% endif %}{{ c['text'] }}",
    "{% if c['text'] | length > 20 %}Think. {% endif %}{{ c['text'] }}",
    "{{ c['text'] }}{% if not c['text'].endswith('.') %}.{% endif %}",
)


@pytest.mark.parametrize("look", LOOKS)
def test_a_template_that_looks_at_the_question_renders_each_one(look: str, tmp_path: Path) -> None:
    folder = copy(tmp_path / "m")
    file = folder / "chat_template.jinja"
    before = file.read_text()
    assert before.count("{{ c['text'] }}") == 1
    file.write_text(before.replace("{{ c['text'] }}", look))
    prompter = locate_model(str(folder), "cpu").prompter
    for text in ('  What is on the sign?\nAnswer with "one" word & no more. ', "yes or no", "A <b>"):
        content = [{"type": "image"}, {"type": "text", "text": text}]
        chat = [{"role": "user", "content": content}]
        full = prompter.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        spelt = full.startswith(prompter.processor.tokenizer.bos_token or "\0")
        bare = prompter.processor.tokenizer(full, add_special_tokens=not spelt)["input_ids"]
        ours = prompter.prompt_ids(text)
        assert [t for t in ours if t != prompter.image_token_id] == [t for t in bare if t != prompter.image_token_id]


def test_a_template_that_renders_by_chance_is_refused(tmp_path: Path) -> None:
    folder = copy(tmp_path / "m")
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text() + "{{ range(0, 99999) | random }}")
    with pytest.raises(PrunebenchError, match="renders another prompt each time"):
        _ = locate_model(str(folder), "cpu").prompter
