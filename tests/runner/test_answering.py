"""Asking a model: the greedy loop, stop strings, feature sharing, prompts and what a sample costs."""

import pytest
import torch
from PIL import Image

from harness.core import budget as budgets
from harness.core import flops
from harness.core.errors import PrunebenchError
from harness.method import method_class
from harness.models.adapters import Features
from harness.models.load import LoadedModel, locate_model
from harness.models.prompt import VICUNA_V1, pad_to_square
from harness.runner.answering import Answerer, Prompt
from harness.runner.features import EncodedImage, FeatureCache


@pytest.fixture(scope="module")
def mini() -> LoadedModel:
    return locate_model("mini", "cpu").load()


def prompts(n: int = 3, until: tuple[str, ...] = (), max_new_tokens: int = 4) -> list[Prompt]:
    from tasks import lmms
    from tasks.sources import DataSource

    task = lmms.load_task("textvqa", DataSource.parse("mini"), 6, 0)
    return [Prompt.of_one(s.key, s.prompt, s.load_image, s.image_key, max_new_tokens, until) for s in task.samples[:n]]


def test_greedy_loop_equals_generate(mini: LoadedModel) -> None:
    ask = prompts(3, max_new_tokens=6)
    answers = {a.key: a.text for a in Answerer(mini, method_class("none")()).answer(ask)}
    for p in ask:
        ids = torch.tensor([mini.prompt_ids(p.text)])
        out = mini.model.generate(
            input_ids=ids, pixel_values=mini.pixels(p.images[0].load()), max_new_tokens=6, do_sample=False
        )
        assert (
            mini.processor.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip() == answers[p.key]
        )
    assert len(set(answers.values())) > 1, "a model that says one thing would pass anything"


def test_answers_end_at_stop_strings_and_limits(mini: LoadedModel) -> None:
    full = next(iter(Answerer(mini, method_class("none")()).answer(prompts(1, max_new_tokens=6))))
    assert len(full.text) >= 2
    cut = next(iter(Answerer(mini, method_class("none")()).answer(prompts(1, until=(full.text[1],), max_new_tokens=6))))
    assert cut.text == full.text[:1]
    assert cut.n_new_tokens < full.n_new_tokens
    short = next(iter(Answerer(mini, method_class("none")()).answer(prompts(1, max_new_tokens=1))))
    assert short.n_new_tokens <= 1


def test_every_image_is_encoded_once_across_questions_and_methods(mini: LoadedModel) -> None:
    cache, ask = FeatureCache(), prompts(6)
    for name in ("none", "random"):
        method = method_class(name)() if name == "none" else method_class(name)(keep=32)
        assert len(list(Answerer(mini, method, features=cache).answer(ask))) == 6
    assert cache.encoded == len({p.image_key for p in ask}) < 6
    pixels = Answerer(mini, locate_model("mini", "cpu").method("downsample", budgets.parse("64")), features=cache)
    list(pixels.answer(ask))
    assert cache.encoded == 2 * len({p.image_key for p in ask}), "a method that changes pixels has features of its own"


def test_feature_cache_drops_the_least_recently_used() -> None:
    cache = FeatureCache(limit=2 * 400)
    made = []

    def encode(names: list[str]) -> list[EncodedImage]:
        made.extend(names)
        return [EncodedImage(Features(torch.zeros(100)), {}) for _ in names]

    for name in "abacab":
        cache.get([name], encode)
    assert made == ["a", "b", "c", "b"]


def test_cost_of_a_sample_is_what_the_trace_says(mini: LoadedModel) -> None:
    shape, n_visual = mini.adapter.shape, mini.usual.n_visual
    method = locate_model("mini", "cpu").method("fastv", budgets.parse("64"))
    answer = next(iter(Answerer(mini, method).answer(prompts(1))))
    text = answer.n_input_tokens - n_visual
    scored = 2 * shape.heads * shape.head_dim * answer.n_input_tokens
    expected = 2 * flops.layer(shape, n_visual + text) + (shape.depth - 2) * flops.layer(shape, 64 + text) + scored
    assert answer.cost["prefill_dense_flops"] == expected
    assert answer.cost["prefill_unpruned_flops"] == shape.depth * flops.layer(shape, n_visual + text)
    per_token = 2 * shape.kv_heads * shape.head_dim * 4
    assert answer.cost["kv_bytes"] == per_token * (2 * (n_visual + text) + (shape.depth - 2) * (64 + text))


def test_budgets_of_visipruner_are_always_met_and_forced_ones_noted(mini: LoadedModel) -> None:
    method = locate_model("mini", "cpu").method("visipruner", budgets.parse("40"))
    for answer in Answerer(mini, method).answer(prompts(4)):
        assert answer.cost["kept"] == 40
        assert answer.cost["forced"] in (0, 1)
        assert 0 <= answer.cost["fusion_layer"] <= method.last_fusion_layer


def test_question_that_holds_an_image_token_is_refused(mini: LoadedModel) -> None:
    with pytest.raises(PrunebenchError, match="expected one image token in the prompt, found 2"):
        mini.prompt_ids("what is <image>?")


def test_image_that_does_not_load_names_the_sample(mini: LoadedModel) -> None:
    def broken() -> Image.Image:
        raise OSError("truncated")

    ask = [Prompt.of_one("pope/000007", "Is there a dog?", broken, "k", 2)]
    with pytest.raises(PrunebenchError, match=r"sample pope/000007: its image does not load \(OSError: truncated\)"):
        list(Answerer(mini, method_class("none")()).answer(ask))


def test_llava_prompt_is_vicunas_with_its_system_prompt_and_images_are_padded() -> None:
    assert VICUNA_V1.startswith("A chat between a curious user and an artificial intelligence assistant.")
    assert VICUNA_V1.endswith("USER: <image>\n{text} ASSISTANT:")
    square = pad_to_square(Image.new("RGB", (30, 10), (255, 0, 0)), [0.5, 0.25, 0.0])
    assert square.size == (30, 30)
    assert square.getpixel((0, 0)) == (127, 63, 0)
    assert square.getpixel((15, 15)) == (255, 0, 0)
