"""`benchmarks/overhead.py` and `benchmarks/per_question.py`: what is compared computes the same, and verdicts follow
from the ratios."""

from __future__ import annotations

import importlib.util
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from harness.core.errors import PrunebenchError

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def script(name: str) -> ModuleType:
    """A script under a name of its own, which its classes look up."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def overhead() -> ModuleType:
    return script("overhead")


@pytest.fixture(scope="module")
def at(overhead: ModuleType) -> Any:
    sizes = {"layers": 2, "image_size": 56, "text_tokens": 8, "steps": 2}
    args = Namespace(**sizes, device="cpu", dtype="float32", processor_time=False)
    return overhead.prepared(args, "mini", 3)


def test_all_contenders_compute_the_same(overhead: ModuleType, at: Any) -> None:
    assert at.given.ids.shape == (3, 16 + 8)
    found = [overhead.once(name, at) for name in (overhead.ENGINE, overhead.BARE, overhead.LOOP)]
    overhead.check_alike(found)
    assert all(part > 0 for one in found for part in one.seconds)
    assert len(found[0].logits[1].argmax(-1).unique()) > 1, "a model that says one thing would pass anything"
    other = found[2]._replace(logits=(found[2].logits[0], found[2].logits[1] * 1.1))
    with pytest.raises(PrunebenchError, match="expected equal logits of all contenders"):
        overhead.check_alike([*found[:2], other])


def test_a_loop_without_a_causal_mask_is_found(overhead: ModuleType, at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fused = overhead.functional.scaled_dot_product_attention
    bare = overhead.once(overhead.BARE, at)
    monkeypatch.setattr(
        overhead.functional,
        "scaled_dot_product_attention",
        lambda q, k, v, is_causal, **more: fused(q, k, v, **more),
    )
    with pytest.raises(PrunebenchError, match="expected equal logits"):
        overhead.check_alike([bare, overhead.once(overhead.LOOP, at)])


def test_operations_are_exact_and_grow_with_layers(overhead: ModuleType, at: Any) -> None:
    bare = overhead.operations(overhead.BARE, at)
    assert bare == overhead.operations(overhead.BARE, at)
    loop = overhead.operations(overhead.LOOP, at)
    assert 0 < loop[0].total() < bare[0].total(), "a plain loop does less"
    counts = {overhead.ENGINE: (bare[0] + Counter(cat=2), bare[1]), overhead.BARE: bare}
    assert overhead.extra(counts, 0) == "cat +2"
    assert overhead.extra(counts, 1) == ""


def test_a_goal_is_met_where_the_whole_interval_is_below_it(overhead: ModuleType) -> None:
    median, low, high = overhead.interval([1.0, 1.02, 1.04] * 10)
    assert (median, low <= median <= high <= 1.04) == (1.02, True)
    noisy = overhead.interval([0.7, 1.0, 1.4] * 10)
    assert noisy[0] == 1.0
    assert noisy[2] > overhead.GOAL
    timed = overhead.Timed

    def times(mine: list[float]) -> dict[str, Any]:
        ones = [timed((1.0, 1.0), ())] * len(mine)
        return {
            overhead.ENGINE: [timed((m, 1.0), ()) for m in mine],
            overhead.BARE: ones,
            overhead.LOOP: ones,
        }

    counts = dict.fromkeys((overhead.ENGINE, overhead.BARE, overhead.LOOP), (Counter(mm=7), Counter(mm=1)))
    met = [row[7] for row in overhead.rows("m", 1, times([1.0, 1.02, 1.04] * 10), counts)]
    assert met == ["yes"] * 4
    met = [row[7] for row in overhead.rows("m", 1, times([0.7, 1.0, 1.4] * 10), counts)]
    assert met == ["no", "no", "yes", "yes"], "the median alone would be met"


def test_questions_have_the_length_that_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    per_question = script("per_question")
    small = ["--hidden", "64", "--layers", "4", "--heads", "4", "--images", "1", "--questions", "2", "--alone", "1"]
    assert per_question.main([*small, "--rounds", "1", "--methods", "none,fastv", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    lines = [line.split("|")[1].strip() for line in said.splitlines() if line.startswith("| `")]
    assert lines == ["`none`", "`fastv 64`"]
    assert "hidden 64, 4 layers, 650 tokens" in said
    assert per_question.main([*small, "--tokens", "20", "--device", "cpu"]) == 2
    assert "--tokens 20: expected at least" in capsys.readouterr().err


def test_the_model_is_random_and_of_the_sizes_asked_for() -> None:
    per_question = script("per_question")
    args = Namespace(hidden=64, layers=3, heads=4, device="cpu", dtype="float32")
    loaded = per_question.model_of(args)
    shape = loaded.usual.decoder
    assert (shape.hidden, shape.depth, shape.heads, shape.head_dim) == (64, 3, 4, 16)
    assert loaded.usual.n_visual == 576
    assert loaded.model.dtype == torch.float32
