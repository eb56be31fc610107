"""The model class that lmms-eval's own command line runs, with an engine that answers at once."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image

from harness.core.budget import Budget
from harness.core.errors import PrunebenchError
from harness.plugin import cache, log, opened
from harness.plugin.model import PrunebenchLmms
from harness.plugin.names import own
from harness.runner.answering import Answer, Prompt


@dataclass
class FakeEngine:
    """Answers with the prompt's text and the shades of its images, last prompt first; `fault` names what goes wrong."""

    words: dict[str, Any] = field(default_factory=dict)
    calls: list[list[Prompt]] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    fault: str = ""
    settings: ClassVar = {"method": "fake"}
    run: ClassVar = {"settings": settings}
    located: ClassVar = types.SimpleNamespace(device=torch.device("cpu"))

    @property
    def answerer(self) -> FakeEngine:
        return self

    def check(self, prompts: Iterable[Prompt]) -> None:
        assert not self.calls, "every prompt is checked before the first is answered"
        self.checked += [prompt.key for prompt in prompts]

    def grids(self, sizes: Sequence[tuple[int, int]]) -> list[str]:
        return [f"{rows}x{cols}" for rows, cols in sizes]

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[Answer]:
        self.calls.append(list(prompts))
        for prompt in list(prompts)[::-1]:
            if self.fault == "engine":
                raise ValueError("boom")
            shades = [image.load().getpixel((0, 0))[0] for image in prompt.images]
            if self.fault != "lost" or prompt is not prompts[0]:
                text = " ".join(map(str, [prompt.text, *shades]))
                yield Answer(prompt.key, text, 600, 2, {"kept": 64, "kv_bytes": 1.5}, "0:0:*", 0.25)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    made = FakeEngine()

    def opening(model: str, **words: Any) -> FakeEngine:
        made.words = {"model": model, **words}
        if made.fault == "open":
            raise PrunebenchError("unknown model 'x'")
        return made

    monkeypatch.setattr(opened, "opened", opening)
    monkeypatch.setattr(cache, "identity_of", lambda answerer: "fake")
    return made


def messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
    images = [{"type": "image", "url": Image.new("RGB", (4, 6), (shade, 0, 0))} for shade in doc["shades"]]
    return [{"role": "user", "content": [*images, {"type": "text", "text": doc["text"]}]}]


def request(task: str, doc_id: int, settings: dict[str, Any] | None = None, turns: Any = messages) -> Any:
    settings = settings if settings is not None else {"max_new_tokens": 8, "until": ["\n\n"]}
    return types.SimpleNamespace(args=("", turns, settings, doc_id, task, "test"))


def model_with(docs: dict[str, list[list[int]]], **settings: Any) -> PrunebenchLmms:
    model = PrunebenchLmms(**settings)
    model.task_dict = {
        task: {"test": [{"text": f"{task}{i}", "shades": shades} for i, shades in enumerate(rows)]}
        for task, rows in docs.items()
    }
    return model


def test_model_arguments_reach_the_engine(engine: FakeEngine) -> None:
    args = "pretrained=mini,method=fastv,budget=64,boundary=3,seed=5"
    model = PrunebenchLmms.create_from_arg_string(args, {"batch_size": "4", "device": "cpu"})
    assert engine.words == {
        "model": "mini",
        "method": "fastv",
        "budget": Budget("kept", 64),
        "knobs": {"boundary": 3},
        "device": "cpu",
        "dtype": "auto",
        "batch_size": 4,
        "seed": 5,
        "positions": "method",
        **dict.fromkeys(("prompt", "image", "stands_for")),
    }
    assert model.is_simple is False
    assert model.device == torch.device("cpu"), "where ranks exchange tensors"


def test_answers_come_in_request_order_and_tasks_are_not_mixed(engine: FakeEngine) -> None:
    model = model_with({"a": [[10], [11]], "b": [[20], [21]]})
    short = {"max_new_tokens": 4, "until": ["\n\n"]}
    order = [("a", 0), ("b", 1), ("a", 1), ("b", 0), ("a", 0)]
    requests = [request(*r) for r in order] + [request("a", 1, short)]
    results = model.generate_until(requests)
    assert [r.text for r in results] == ["a0 10", "b1 21", "a1 11", "b0 20", "a0 10", "a1 11"]
    calls = [[p.key for p in call] for call in engine.calls]
    assert calls == [["a/000000", "a/000001"], ["b/000001", "b/000000"], ["a/000001"]]
    assert engine.checked == [key for call in calls for key in call]
    assert [call[0].max_new_tokens for call in engine.calls] == [8, 8, 4]
    assert len({p.image_key for call in engine.calls for p in call}) == 4


def test_the_log_says_what_an_answer_cost_and_what_it_was_made_with(engine: FakeEngine) -> None:
    model = model_with({"pope": [[10], [11]], "b": [[20]]})
    results = model.generate_until([request("pope", 0), request("pope", 1), request("b", 0)])
    entries = [result.token_counts.to_dict() for result in results]
    assert [log.RUN in entry for entry in entries] == [True, False, True], (
        "the first answer of a task describes the run"
    )
    first = entries[0]
    assert {
        name: first[name] for name in ("input_tokens", "output_tokens", "kept", "kv_bytes", "doc_id", "sample")
    } == {
        "input_tokens": 600,
        "output_tokens": 2,
        "kept": 64,
        "kv_bytes": 1.5,
        "doc_id": 0,
        "sample": "pope/000000",
    }
    assert log.costs_of(first) == {"kept": 64, "kv_bytes": 1.5}
    assert first["settings"] == log.digest(FakeEngine.settings)
    assert first["grids"] == ["6x4"]
    assert log.whole(first, results[0].text)
    assert not log.whole(first, results[1].text)
    engine.calls.clear()
    again = model.generate_until([request("pope", 1)])
    assert log.RUN in again[0].token_counts.to_dict(), "an instance may be evaluated several times"


def test_samples_have_the_names_of_an_evaluation() -> None:
    """Random methods draw by them."""
    names = ("pope", "pope_mini", "textvqa_val", "textvqa_mini", "mmstar", "other_mini")
    assert [own(name) for name in names] == ["pope", "pope", "textvqa", "textvqa", "mmstar", "other_mini"]


def test_settings_are_read_but_never_changed(engine: FakeEngine) -> None:
    settings: dict[str, Any] = {"until": ["ASSISTANT:"], "temperature": 0.0}
    model_with({"a": [[1]]}).generate_until([request("a", 0, settings)])
    assert settings == {"until": ["ASSISTANT:"], "temperature": 0.0}
    prompt = engine.calls.pop()[0]
    assert (prompt.max_new_tokens, prompt.until) == (1024, ("ASSISTANT:",))
    for name, words, most in (("textvqa_val", {}, 16), ("textvqa_val", {"max_new_tokens": 9}, 9), ("a", {}, 1024)):
        model_with({name: [[1]]}, **words).generate_until([request(name, 0, {})])
        assert engine.calls.pop()[0].max_new_tokens == most
    model_with({"a": [[1]]}).generate_until([request("a", 0, {"until": ["\n\n"]})])
    assert engine.calls[0][0].until == (), "lmms-eval's default, which no YAML names"
    with pytest.raises(SystemExit, match="a/000000: expected greedy decoding"):
        model_with({"a": [[1]]}).generate_until([request("a", 0, {"do_sample": True})])


def test_texts_and_images_keep_their_order(engine: FakeEngine) -> None:
    def mixed(doc: dict[str, Any]) -> list[dict[str, Any]]:
        (turn,) = messages(doc)
        first, second, text = turn["content"]
        return [{"role": "user", "content": [text, first, {"type": "text", "text": "and"}, second]}]

    (result,) = model_with({"a": [[1, 2]]}).generate_until([request("a", 0, turns=mixed)])
    prompt = engine.calls[0][0]
    assert prompt.content == ("a0", None, "and", None)
    assert [image.size for image in prompt.images] == [(6, 4), (6, 4)]
    assert len({image.key for image in prompt.images} | {prompt.image_key}) == 3
    assert result.text == "a0\nand 1 2"


def parts(*kinds: str) -> Any:
    values = {"image": Image.new("RGB", (4, 4)), "text": "why", "video": "a.mp4", "path": "a.png"}
    content = [{"type": k.replace("path", "image"), "url": values[k], "text": values[k]} for k in kinds]
    return lambda doc: [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        (parts("text"), "expected a prompt with an image, found text alone; choose"),
        (parts("video", "text"), "expected a prompt of images and text, found video in it; choose"),
        (parts("path", "text"), "expected an image in the prompt, found 'a.png'"),
        (lambda doc: [], "expected one turn of the user, found 0"),
        (
            lambda doc: [{"role": "system", "content": []}, *messages(doc)],
            "found 2 .system, user.; choose tasks of one turn",
        ),
    ],
)
def test_other_turns_are_refused_naming_the_sample(engine: FakeEngine, turns: Any, said: str) -> None:
    model = model_with({"a": [[1], [2]]})
    with pytest.raises(SystemExit, match=f"a/000001: .*{said}"):
        model.generate_until([request("a", 0), request("a", 1, turns=turns)])
    assert not engine.calls, "before any question is asked"


@pytest.mark.parametrize(
    ("fault", "message"), [("engine", "boom"), ("lost", "1 of 2 samples were not answered, the first a/0")]
)
def test_no_failure_can_be_swallowed(engine: FakeEngine, fault: str, message: str) -> None:
    model = model_with({"a": [[1], [2]]})
    engine.fault = fault

    def as_lmms_eval_does() -> None:
        with contextlib.suppress(Exception):
            model.generate_until([request("a", 0), request("a", 1)])

    with pytest.raises(SystemExit, match=message) as caught:
        as_lmms_eval_does()
    assert caught.value.code not in (0, None)


def test_bad_model_arguments_abort(engine: FakeEngine) -> None:
    with pytest.raises(SystemExit, match="batch_size: expected a whole number of at least 1, found 'auto'"):
        PrunebenchLmms(batch_size="auto")
    engine.fault = "open"
    with pytest.raises(SystemExit, match="prunebench: unknown model 'x'"):
        PrunebenchLmms()


def test_several_processes_that_are_no_group_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened.ranks() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match=r"expected one process, found WORLD_SIZE=2 .* start lmms-eval with `torchrun"):
        PrunebenchLmms(device="cpu")


@pytest.mark.parametrize(
    ("device", "gpus", "local", "backend", "found"),
    [
        ("auto", 2, "1", "nccl", "cuda:1"),
        ("cuda", 2, "0", "nccl", "cuda:0"),
        ("cuda:0", 2, "1", "nccl", "expected cuda without a number for 2 ranks, found cuda:0"),
        ("cuda", 1, "1", "nccl", "expected a GPU for each rank of this machine, found 1 and rank 1"),
        ("cpu", 2, "1", "nccl", "expected GPUs for a group of 2 ranks on nccl, found cpu"),
        ("cpu", 0, "1", "gloo", "cpu"),
        ("auto", 0, "1", "gloo", "cpu"),
    ],
)
def test_each_rank_has_a_device_of_its_own(
    device: str, gpus: int, local: str, backend: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = torch.distributed
    monkeypatch.setattr(group, "is_initialized", lambda: True)
    monkeypatch.setattr(group, "get_rank", lambda: 1)
    monkeypatch.setattr(group, "get_world_size", lambda: 2)
    monkeypatch.setattr(group, "get_backend", lambda: backend)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", local)
    if found.startswith("expected"):
        with pytest.raises(PrunebenchError, match=found):
            opened.device_of_rank(device)
    else:
        assert opened.device_of_rank(device) == found


def test_only_generation_of_one_turn_is_supported(engine: FakeEngine) -> None:
    model = PrunebenchLmms()
    with pytest.raises(SystemExit, match="log-likelihood"):
        model.loglikelihood([])
    with pytest.raises(SystemExit, match="multi-round"):
        model.generate_until_multi_round([])
    model.clean()
    assert model._opened is engine
