"""What a method notes of each prompt: one number a row, wherever the method keeps them."""

from __future__ import annotations

from typing import Any

import fakecuda
import pytest
import torch
from tiny import prompts, tiny_llava

from harness.core.errors import PrunebenchError
from harness.engine.attach import attach
from harness.method import method_class

BATCH = prompts([20, 21, 22], [30, 31, 32, 33])


def noting(values: Any) -> Any:
    class Notes(method_class("none")):  # type: ignore[misc]
        def on_attention(self, run: Any, layer: int, view: Any) -> None:
            if layer == 0:
                run.note("seen", values)

    return Notes()


@pytest.mark.parametrize("values", [[1, 2], torch.tensor([1.0, 2.0]), torch.tensor([1, 2])])
def test_one_number_a_row_is_taken(values: Any) -> None:
    model = tiny_llava()
    with torch.inference_mode(), attach(model, noting(values)) as run:
        model(**BATCH)
    assert run.trace.notes == {"seen": [1.0, 2.0]}


@pytest.mark.parametrize("values", [[1], torch.tensor(1.0), torch.ones(3), torch.ones(2, 2)])
def test_another_shape_is_refused_where_it_is_noted(values: Any) -> None:
    model = tiny_llava()
    with (
        torch.inference_mode(),
        attach(model, noting(values)),
        pytest.raises(PrunebenchError, match=r"note 'seen': expected one number a row, shape \(2,\), found \("),
    ):
        model(**BATCH)


def test_numbers_of_the_host_are_read_with_those_of_the_device() -> None:
    with fakecuda.device() as gpu:
        model = gpu.moved(tiny_llava())
        with torch.inference_mode(), attach(model, noting(torch.tensor([1.0, 2.0]))) as run:
            model(**{name: tensor.to(fakecuda.CUDA) for name, tensor in BATCH.items()})
        assert run.trace.notes == {"seen": [1.0, 2.0]}
