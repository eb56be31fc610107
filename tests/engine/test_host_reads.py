"""`benchmarks/host_reads.py`: how often the host waits for the device in a prefill, behind it and in a decode step."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "host_reads.py"
#: method -> reads of a prefill at the benchmark's depth; a rise fails, write down less where it fell
READS = {"none": 1, "uniform": 3, "visionzip": 3, "fastv": 3, "pyramiddrop": 7, "visipruner": 21, "sparsevlm": 10}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("host_reads_benchmark", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def narrow(script: ModuleType) -> Any:
    return script.narrow_model()


@pytest.mark.parametrize("name", READS)
def test_a_batch_of_unlike_prompts_reads_no_more_than_it_did(script: ModuleType, narrow: Any, name: str) -> None:
    found = script.waits(narrow, name, script.prompts(images=3, batch=3, new_tokens=3))
    assert found.reads["prefill"] <= READS[name], found.sites
    assert found.reads["after"] == 1, found.sites
    assert found.reads["decode"] == 3, found.sites


def test_sharing_prefixes_starts_no_more_operations_than_asking_alone(script: ModuleType, narrow: Any) -> None:
    asked = script.prompts(images=3, batch=3, new_tokens=3)
    alone, shared = (script.operations(narrow, "none", asked, shares) for shares in (False, True))
    assert shared.names.total() <= alone.names.total()
    assert shared.kernels <= alone.kernels


@pytest.mark.parametrize(("name", "each_layer"), [("none", False), ("uniform", False), ("sparsevlm", True)])
def test_the_layers_of_a_new_token_share_their_rotary_embeddings(
    script: ModuleType, narrow: Any, monkeypatch: pytest.MonkeyPatch, name: str, each_layer: bool
) -> None:
    steps = []
    kind = type(narrow.adapter)
    rotary = kind.rotary

    def counted(self: Any, hidden: Any, positions: Any) -> Any:
        steps.extend([None] * (hidden.shape[1] == 1))
        return rotary(self, hidden, positions)

    monkeypatch.setattr(kind, "rotary", counted)
    list(script.answerer(narrow, name, False).answer(script.prompts(images=1, batch=1, new_tokens=4)))
    assert len(steps) == 3 * (script.DEPTH if each_layer else 1), "a token each behind the prefill's"
