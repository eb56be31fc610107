"""VTW's rule for its layer K: what the next token loses where all visual tokens leave at a layer.

Source: lmms_eval/__main__.py of lzhxmu/VTW @ a3d8cfc. For every K from 5 on, the divergence KL(withdrawn || full) of
the distributions behind the last prompt token is taken, in nats. The first K whose mean over the prompts is within a
bound is chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.core.shape import ModelShape
from harness.engine.run import EngineRun
from harness.method import Attention, Run
from harness.models.adapters import Adapter
from methods.vtw import FIRST_TRIED, VTW


@dataclass
class Distributions:
    """Log-probabilities (vocab,) float64 of the next token, by sample key. `pending`: the prefill whose last layer has
    run."""

    samples: dict[str, Tensor] = field(default_factory=dict)
    pending: EngineRun | None = None


@dataclass(frozen=True)
class Withdrawal(VTW):
    """VTW whose next-token distributions are recorded; `layer` = the model's depth is the unpruned model. Not
    registered."""

    into: Distributions = field(default_factory=Distributions)

    def for_model(self, shape: ModelShape) -> Withdrawal:
        return self

    def on_attention(self, run: Run, layer: int, attn: Attention) -> None:
        if layer == run.shape.depth - 1:
            assert isinstance(run, EngineRun)
            self.into.pending = run


def tried_layers(depth: int) -> range:
    """The K that the rule tries, ascending."""
    return range(FIRST_TRIED, depth)


@contextmanager
def recording(adapter: Adapter, method: Withdrawal) -> Iterator[Withdrawal]:
    """`method`, which is shown the last token's state behind the last layer. Goes around its attach()."""

    def hook(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        run, method.into.pending = method.into.pending, None
        if run is None:  # while decoding, and where the head itself is asked
            return
        logits = adapter.head(adapter.text.norm(args[0][:, -1]))
        keys = run.samples if run.samples is not None else [str(row) for row in range(len(logits))]
        found = logits.double().log_softmax(-1).cpu()
        method.into.samples.update(zip(keys, found, strict=True))

    handle = adapter.text.norm.register_forward_pre_hook(hook)
    try:
        yield method
    finally:
        handle.remove()


def divergences(withdrawn: Sequence[Mapping[str, Tensor]], full: Mapping[str, Tensor]) -> list[list[float]]:
    """KL(withdrawn || full) in nats of each sample of `full`, for each of the layers tried."""
    return [[float((one[key].exp() * (one[key] - full[key])).sum()) for one in withdrawn] for key in full]


def means(of_samples: Sequence[Sequence[float]]) -> list[float]:
    """The mean over samples for each layer tried."""
    return [sum(of_layer) / len(of_layer) for of_layer in zip(*of_samples, strict=True)]
