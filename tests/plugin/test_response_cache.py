"""lmms-eval's response cache never serves our class an answer that something else decided."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lmms_eval.caching.response_cache import ResponseCache

from harness.method import method_class
from harness.plugin import cache
from harness.plugin.cache import identity_of, key_by


@pytest.fixture(autouse=True)
def unwrapped() -> Iterator[None]:
    before = ResponseCache.__dict__["create"]
    yield
    ResponseCache.create = before


LOADED = {
    "fingerprint": "f",
    "dtype": "float32",
    "image_backend": "pil",
    "template_hash": "t",
    "device": torch.device("cpu"),
}


def answerer(method: Any = None, seed: int = 0, positions: str = "method", **loaded: Any) -> Any:
    made = method_class("fastv")(keep=64) if method is None else method
    return SimpleNamespace(method=made, seed=seed, positions=positions, loaded=SimpleNamespace(**LOADED | loaded))


FASTV = method_class("fastv")(keep=64)
OTHERS = {
    "another budget": answerer(method_class("fastv")(keep=32)),
    "another knob": answerer(dataclasses.replace(FASTV, boundary=3)),
    "another method": answerer(method_class("random")(keep=64)),
    "no method": answerer(method_class("none")()),
    "another seed": answerer(seed=1),
    "another position policy": answerer(positions="compact"),
    "other weights": answerer(fingerprint="g"),
    "another dtype": answerer(dtype="bfloat16"),
    "another image backend": answerer(image_backend="torchvision"),
    "another prompt": answerer(template_hash="u"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_decides_an_answer_is_in_the_key(what: str) -> None:
    assert identity_of(OTHERS[what]) != identity_of(answerer())


def test_so_is_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity_of(answerer())
    assert before == identity_of(answerer()), "and nothing else is"
    monkeypatch.setattr(cache, "source_of", lambda cls: "edited")
    edited = identity_of(answerer())
    monkeypatch.undo()
    for name in ("torch", "transformers", "lmms-eval", "code", "device"):
        here = cache.environment(torch.device("cpu"))
        monkeypatch.setattr(cache, "environment", lambda device, name=name, here=here: {**here, name: "another"})
        assert identity_of(answerer()) not in (before, edited)
        monkeypatch.undo()
    assert edited != before


def keyed(folder: Path, identity: str, model: str = "prunebench") -> str:
    """The fingerprint that a cache of the same words has."""
    key_by(identity)
    made = ResponseCache.create(str(folder), model=model, model_args="pretrained=mini,method=mine.py:Mine")
    made.close()
    return str(made.model_fingerprint)


def test_the_same_words_with_another_method_behind_them_find_nothing(tmp_path: Path) -> None:
    assert keyed(tmp_path, "a") != keyed(tmp_path, "b")
    assert keyed(tmp_path, "a") == keyed(tmp_path, "a")
    assert keyed(tmp_path, "a", "llava_hf") == keyed(tmp_path, "b", "llava_hf"), "other models are left alone"
