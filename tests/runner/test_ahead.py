"""Images are read ahead of the device, a bounded number of them, and a batch is accounted while the next one runs."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import torch
from PIL import Image

from harness.core import budget
from harness.core.errors import PrunebenchError
from harness.engine.prefix import PrefixCache
from harness.method import method_class
from harness.models.load import LoadedModel, locate_model
from harness.runner import answering
from harness.runner.ahead import MOST, Ahead, ahead
from harness.runner.answering import Answer, Answerer, Prompt
from harness.runner.features import TOGETHER, FeatureCache, Picture, stacked, together


@pytest.fixture(scope="module")
def mini() -> LoadedModel:
    return locate_model("mini", "cpu").load()


def picture(number: int) -> Image.Image:
    return Image.effect_mandelbrot((60, 40), (-2 + number / 20, -1.5, 1, 1.5), 50).convert("RGB")


def asked(n: int, load: Callable[[int], Image.Image] = picture) -> list[Prompt]:
    """Questions of one length, each about an image of its own."""
    return [Prompt.of_one(f"s/{i:02d}", "Is it red?", partial(load, i), f"{i:02d}", 2) for i in range(n)]


def answerer(mini: LoadedModel, batch: int, share: bool = False) -> Answerer:
    method = method_class("fastv")(keep=64)
    return Answerer(mini, method, batch_size=batch, prefixes=PrefixCache() if share else None)


def facts(answers: list[Answer]) -> list[tuple[object, ...]]:
    return [(a.key, a.text, a.n_new_tokens, a.cost, a.kept) for a in answers]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


# ------------------------------------------------------------------------------------------------------ results to come


def test_results_come_in_order_and_a_bounded_number_is_made_ahead() -> None:
    made: list[int] = []
    taken = 0
    full = threading.Event()

    def job(number: int) -> int:
        made.append(number)
        if len(made) == 3:
            full.set()
        return number

    with ahead({str(i): partial(job, i) for i in range(20)}, most=3) as results:
        assert full.wait(30)
        for i in range(20):
            assert results.take(str(i), lambda: -1) == i, "a thread made it"
            taken += 1
            assert len(made) <= taken + 3
    assert sorted(made) == list(range(20)), "each is made once"


def test_what_no_thread_began_is_made_where_it_is_asked_for() -> None:
    with ahead({str(i): partial(int, i) for i in range(9)}, most=2) as results:
        assert results.take("7", lambda: -7) == -7
        assert results.take("unknown", lambda: -1) == -1
        assert [results.take(str(i), lambda: -1) for i in (1, 0)] == [1, 0]


def test_an_error_is_raised_where_the_result_is_taken_and_the_rest_goes_on() -> None:
    def broken() -> int:
        raise OSError("truncated")

    with ahead({"a": partial(int, 1), "b": broken, "c": partial(int, 3)}) as results:
        assert results.take("a", lambda: -1) == 1
        with pytest.raises(OSError, match="truncated"):
            results.take("b", lambda: -1)
        assert results.take("c", lambda: -1) == 3


def test_no_thread_is_left_and_what_was_not_begun_is_dropped() -> None:
    made: list[int] = []
    with suppress(KeyError), ahead({str(i): partial(made.append, i) for i in range(99)}, most=4) as results:
        results.take("0", lambda: None)
        assert threads()
        raise KeyError
    assert not threads()
    assert len(made) <= 5


# -------------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("share", [False, True])
def test_answers_are_those_of_one_thread(mini: LoadedModel, monkeypatch: pytest.MonkeyPatch, share: bool) -> None:
    loaded_in: set[str] = set()

    def load(number: int) -> Image.Image:
        loaded_in.add(threading.current_thread().name[:5])
        return picture(number)

    found = facts(list(answerer(mini, 3, share).answer(asked(7, load))))
    assert loaded_in == {"ahead"}
    loaded_in.clear()
    monkeypatch.setattr(answering, "ahead", partial(ahead, most=0))
    assert found == facts(list(answerer(mini, 3, share).answer(asked(7, load))))
    assert loaded_in == {threading.main_thread().name[:5]}
    assert len({kept for *_, kept in found}) > 1, "the images tell answers apart"


def test_pictures_in_memory_are_bounded(mini: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most, lock, processed = 0, threading.Lock(), type(mini).processed

    def counted(self: LoadedModel, image: Image.Image, *more: Any) -> dict[str, torch.Tensor]:
        nonlocal most
        made = processed(self, image, *more)
        with lock:
            alive.append(weakref.ref(made["pixel_values"]))
            most = max(most, sum(ref() is not None for ref in alive))
        return made

    monkeypatch.setattr(type(mini), "processed", counted)
    assert len(list(answerer(mini, 4).answer(asked(MOST + 6)))) == len(alive) == MOST + 6
    assert 2 <= most <= MOST + 2, "those ahead, the one that is encoded, and the one before"


@pytest.mark.parametrize("share", [False, True])
def test_an_image_that_does_not_load_fails_its_own_sample(mini: LoadedModel, share: bool) -> None:
    def load(number: int) -> Image.Image:
        if number == 3:
            raise OSError("truncated")
        return picture(number)

    answers = answerer(mini, 1, share).answer(asked(6, load))
    assert [next(answers).key for _ in range(3)] == ["s/00", "s/01", "s/02"], "those before are answered"
    with pytest.raises(PrunebenchError, match=r"sample s/03: its image does not load \(OSError: truncated\)"):
        next(answers)
    assert not threads()


def test_a_caller_that_stops_early_leaves_no_thread(mini: LoadedModel) -> None:
    batches = answerer(mini, 1).batches(asked(12))
    assert [a.key for a in next(batches)] == ["s/00"]
    assert threads()
    assert isinstance(batches, Iterator)
    batches.close()  # type: ignore[attr-defined]
    assert not threads()


def test_known_images_are_not_read_again(mini: LoadedModel) -> None:
    read: list[int] = []

    def load(number: int) -> Image.Image:
        read.append(number)
        return picture(number)

    for features, prefixes in ((FeatureCache(), None), (FeatureCache(), PrefixCache())):
        read.clear()
        for name in ("none", "none"):
            again = Answerer(mini, method_class(name)(), batch_size=2, features=features, prefixes=prefixes)
            assert len(list(again.answer(asked(4, load)))) == 4
        assert sorted(read) == [0, 1, 2, 3]


# ------------------------------------------------------------------------------------------------- one batch to account


def test_the_next_prefill_begins_before_the_last_batch_is_accounted(
    mini: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    caches: list[weakref.ref[Any]] = []
    forward, cost = mini.model.forward, answering.dialogue_cost

    def model(*args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].shape[1] > 1:
            assert all(cache() is None for cache in caches), "the cache of the batch before is given up"
            caches.append(weakref.ref(kwargs["past_key_values"]))
            events.append(f"prefill {len(caches) - 1}")
        return forward(*args, **kwargs)

    def accounted(*args: Any) -> Any:
        events.append(f"account {sum(e.startswith('account') for e in events)}")
        return cost(*args)

    monkeypatch.setattr(mini.model, "forward", model)
    monkeypatch.setattr(answering, "dialogue_cost", accounted)
    for answer in answerer(mini, 1).answer(asked(3)):
        events.append(f"answer {answer.key[-1]}")
    one, two = ("account 0", "answer 0"), ("account 1", "answer 1")
    assert events == ["prefill 0", "prefill 1", *one, "prefill 2", *two, "account 2", "answer 2"]


def test_an_answer_is_kept_where_the_next_batch_changes_the_model() -> None:
    """`check_model` speaks of each batch before its answers are accounted."""
    spoilt = locate_model("mini", "cpu").load()

    class Spoils(method_class("none")):  # type: ignore[misc]
        def on_attention(self, run: Any, layer: int, view: Any) -> None:
            if layer == 0 and run.samples == ["s/01"]:
                weight = spoilt.adapter.head.weight
                weight.data = weight.data.clone()

    answers = Answerer(spoilt, Spoils(), batch_size=1).answer(asked(3))
    assert next(answers).key == "s/00"
    with pytest.raises(PrunebenchError, match="changed the model"):
        next(answers)


def test_no_thread_works_while_attach_tries_a_model(mini: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers changes torch's default dtype for a model that it makes, in all threads."""
    attach, during = answering.attach, []

    def attached(*args: Any, **kwargs: Any) -> Any:
        during.append(len(threads()))
        return attach(*args, **kwargs)

    monkeypatch.setattr(answering, "attach", attached)
    assert len(list(answerer(mini, 1).answer(asked(2)))) == 2
    assert during == [0]


def test_a_batch_whose_account_fails_for_want_of_memory_is_not_lost(
    mini: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost, fails = answering.dialogue_cost, [MemoryError("no memory")]

    def accounted(*args: Any) -> Any:
        if fails:
            raise fails.pop()
        return cost(*args)

    monkeypatch.setattr(answering, "dialogue_cost", accounted)
    assert [a.key for a in answerer(mini, 1).answer(asked(3))] == ["s/00", "s/01", "s/02"]


# --------------------------------------------------------------------------------------------------------------- vision


def test_pictures_of_one_shape_go_through_the_tower_together_on_a_gpu() -> None:
    shapes = [(2, 3)] * (TOGETHER + 2) + [(3, 3)] + [(2, 3)] * 2
    pictures = [
        Picture(str(i), {"pixel_values": torch.full((1, *s), float(i)), "sizes": torch.tensor([[i, i]])})
        for i, s in enumerate(shapes)
    ]
    parts = list(together(pictures, torch.device("cuda")))
    assert [len(part) for part in parts] == [TOGETHER, 2, 1, 2]
    assert [picture for part in parts for picture in part] == pictures
    whole = stacked(parts[0])
    assert whole["pixel_values"].shape == (TOGETHER, 2, 3)
    assert whole["sizes"][:, 0].tolist() == whole["pixel_values"][:, 0, 0].tolist() == list(range(TOGETHER))
    assert [len(part) for part in together(pictures, torch.device("cpu"))] == [1] * len(pictures)


@pytest.mark.parametrize("name", ["fastv", "visionzip"])
@pytest.mark.parametrize("share", [False, True])
def test_images_encoded_together_are_answered_as_alone(
    mini: LoadedModel, monkeypatch: pytest.MonkeyPatch, name: str, share: bool
) -> None:
    method = locate_model("mini", "cpu").method(name, budget.parse("64"))
    passes: list[int] = []
    encode = type(mini.adapter).encode

    def counted(self: Any, **inputs: torch.Tensor) -> Any:
        passes.append(len(inputs["pixel_values"]))
        return encode(self, **inputs)

    def answers() -> list[tuple[object, ...]]:
        prefixes = PrefixCache() if share else None
        return facts(list(Answerer(mini, method, batch_size=5, prefixes=prefixes).answer(asked(7))))

    monkeypatch.setattr(type(mini.adapter), "encode", counted)
    alone = answers()
    assert passes == [1] * 7
    passes.clear()
    monkeypatch.setattr(answering, "together", lambda pictures, _: together(pictures, torch.device("cuda")))
    assert answers() == alone
    assert passes == [5, 2]


def test_a_job_that_is_made_here_is_not_made_ahead() -> None:
    """Otherwise it would take room that no one gives back."""
    made: list[str] = []
    with ahead({name: partial(made.append, name) for name in "abcd"}, most=1) as results:
        assert isinstance(results, Ahead)
        results.take("d", lambda: made.append("d here"))
        for name in "abc":
            results.take(name, lambda: made.append("?"))
    assert sorted(made) == ["a", "b", "c", "d here"]
