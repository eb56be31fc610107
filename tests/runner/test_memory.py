"""Out of memory: smaller batches go on with the same answers, and where nothing helps one line says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from harness.core.errors import PrunebenchError
from harness.engine.prefix import PrefixCache
from harness.method import method_class, raised
from harness.models.load import LoadedModel, locate_model
from harness.runner import pace
from harness.runner.answering import Answer, Answerer, Prompt
from harness.runner.features import FeatureCache
from harness.runner.pace import cache_room, out_of_memory


@pytest.fixture(scope="module")
def mini() -> LoadedModel:
    return locate_model("mini", "cpu").load()


@pytest.fixture(scope="module")
def ask() -> list[Prompt]:
    from tasks import lmms
    from tasks.sources import DataSource

    task = lmms.load_task("pope", DataSource.parse("mini"), 18, 0)
    return [Prompt.of_one(s.key, s.prompt, s.load_image, s.image_key, 2, ()) for s in task.samples[::2]]


GPU = "CUDA out of memory. Tried to allocate 230.00 MiB. GPU 0 has a total capacity of 23.64 GiB"
CPU = (
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    " 9 bytes. Error code 12 (Cannot allocate memory)"
)


def wrapped(error: Exception, **how: Any) -> PrunebenchError:
    try:
        try:
            raise error
        except Exception as inner:
            if how.get("silent"):
                raise PrunebenchError(f"fastv in at_boundary(): {raised(inner)}") from None
            raise PrunebenchError(f"fastv in at_boundary(): {raised(inner)}") from inner
    except PrunebenchError as outer:
        return outer


OUT = [
    torch.OutOfMemoryError(GPU),
    torch.cuda.OutOfMemoryError(GPU),
    MemoryError(),
    MemoryError("Unable to allocate 8.00 GiB"),
    RuntimeError(CPU),
    RuntimeError(
        "[enforce fail at CPUAllocator.cpp:64] . DefaultCPUAllocator: not enough memory: you tried to allocate"
    ),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("HIP out of memory. Tried to allocate"),
    RuntimeError("MPS backend out of memory"),
    wrapped(torch.OutOfMemoryError(GPU)),
    wrapped(torch.OutOfMemoryError(GPU), silent=True),
    wrapped(RuntimeError(CPU), silent=True),
]
OTHER = [
    RuntimeError("shape mismatch"),
    RuntimeError("CUDA error: device-side assert triggered"),
    ValueError("out of memory"),
    KeyError("memory"),
    PrunebenchError("nan in the logits"),
    wrapped(RuntimeError("size mismatch")),
    IndexError("index out of range"),
]


@pytest.mark.parametrize("error", OUT, ids=lambda e: f"{type(e).__name__} {str(e)[:30]}")
def test_memory_that_ran_out_is_known(error: Exception) -> None:
    assert out_of_memory(error)


@pytest.mark.parametrize("error", OTHER, ids=repr)
def test_other_failures_are_not(error: Exception) -> None:
    assert not out_of_memory(error)


@dataclass
class Small:
    """A device whose memory ends above some prompts a batch, or with some bytes kept between batches."""

    error: Exception
    prompts: int = 1000
    kept: int = 1 << 60
    failures: int = 0


def answered(
    mini: LoadedModel, ask: Sequence[Prompt], monkeypatch: pytest.MonkeyPatch, small: Small | None, **options: Any
) -> dict[str, Answer]:
    method = method_class("fastv")(keep=64)
    share = options.pop("share", True)
    answerer = Answerer(
        mini, method, features=FeatureCache(), prefixes=PrefixCache() if share else None, batch_size=8, **options
    )
    forward = mini.model.forward

    def limited(*args: Any, **kwargs: Any) -> Any:
        if small is not None and "input_ids" in kwargs:
            kept = answerer.features.used + (answerer.prefixes.used if answerer.prefixes else 0)
            if kwargs["input_ids"].shape[0] > small.prompts or kept > small.kept:
                small.failures += 1
                raise small.error
        return forward(*args, **kwargs)

    monkeypatch.setattr(mini.model, "forward", limited)
    try:
        found = list(answerer.answer(ask))
    finally:
        monkeypatch.undo()
    assert len({a.key for a in found}) == len(found)
    return {a.key: a for a in found}


def facts(answers: dict[str, Answer]) -> dict[str, tuple[object, ...]]:
    return {key: (a.text, a.n_new_tokens, a.cost, a.kept) for key, a in answers.items()}


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(("most", "failures"), [(7, 1), (4, 1), (3, 2), (2, 2), (1, 3)])
def test_smaller_batches_give_the_same_answers(
    mini: LoadedModel,
    ask: list[Prompt],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    share: bool,
    most: int,
    failures: int,
) -> None:
    calm = answered(mini, ask, monkeypatch, None, share=share)
    capsys.readouterr()
    small = Small(torch.OutOfMemoryError(GPU), prompts=most)
    assert facts(answered(mini, ask, monkeypatch, small, share=share)) == facts(calm)
    assert small.failures == failures, "it stays at the size that fits"
    said = capsys.readouterr().err
    assert said.count("out of memory at") == failures
    assert "note: fastv: out of memory at 8 prompts a batch (CUDA out of memory. Tried to allocate 230.00 MiB" in said
    assert "it goes on with 4, and batch=4 begins so" in said


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(CPU)], ids=["MemoryError", "RuntimeError"])
def test_memory_of_a_cpu_too(
    mini: LoadedModel, ask: list[Prompt], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    assert len(answered(mini, ask, monkeypatch, Small(error, prompts=2))) == len(ask)


def test_what_is_kept_between_batches_goes_first(
    mini: LoadedModel, ask: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefixes of three images fill the device: each batch of its own fits."""
    one = PrefixCache()
    list(Answerer(mini, method_class("fastv")(keep=64), batch_size=1, prefixes=one).answer(ask[:1]))
    small = Small(torch.OutOfMemoryError(GPU), kept=one.used * 3 // 2)
    assert len(answered(mini, ask, monkeypatch, small)) == len(ask)
    assert small.failures


@pytest.mark.parametrize("share", [True, False])
def test_where_one_prompt_does_not_fit_one_line_says_what_helps(
    mini: LoadedModel, ask: list[Prompt], monkeypatch: pytest.MonkeyPatch, share: bool
) -> None:
    small = Small(torch.OutOfMemoryError(GPU + "\nSee documentation"), prompts=0)
    with pytest.raises(PrunebenchError, match=r"at one prompt a batch, sample pope/.*batch does not help") as error:
        answered(mini, ask, monkeypatch, small, share=share)
    assert "\n" not in str(error.value)
    assert small.failures == 5, "at 8, 4, 2, 1, and once more with nothing kept"


def test_other_failures_are_not_tried_again(
    mini: LoadedModel, ask: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Small(RuntimeError("shape mismatch"), prompts=0)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        answered(mini, ask, monkeypatch, small)
    assert small.failures == 1


@pytest.mark.parametrize("free", [0, 1 << 20, 1 << 30, 10 << 30, 80 << 30, 140 << 30])
@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_caches_share_a_quarter_of_what_is_free(monkeypatch: pytest.MonkeyPatch, free: int, kind: str) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    monkeypatch.setattr(pace, "_free_memory", lambda: free)
    room = cache_room(torch.device(kind))
    assert room.prefixes + room.features <= free // 4
    assert kind == "cuda" or room.prefixes <= 4 << 30


def test_a_machine_that_does_not_say_what_is_free_has_the_usual_room(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pace._free_memory() is None or pace._free_memory() > 0
    monkeypatch.setattr(pace, "_free_memory", lambda: None)
    assert cache_room(torch.device("cpu")) == (4 << 30, 2 << 30)


def test_features_and_prefixes_take_their_limits_together(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.runner.session import Session

    monkeypatch.setattr(pace, "_free_memory", lambda: 1600)
    session = Session()
    assert session.prefixes(torch.device("cpu")).limit == 300
    assert session.features.limit == 100
