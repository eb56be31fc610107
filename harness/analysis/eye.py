"""Eyes of the analysis: attention, norms and lenses of one pass, read and never changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.engine.attention import LayerAttention
from harness.engine.run import EngineRun
from harness.method import Attention, Method, Reduction, Run, Stream
from harness.models.adapters import Adapter
from methods.visipruner import VisiPruner, contributions

SINK_NORM, SINK_DRAW = 3.0, 5.0
#: ranks of |C_i| that samples.parquet holds
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
#: of VisiPruner, for counting tokens that pass
COSINE, NORM = 0.995, 0.2
#: knobs must hold on so many times the analysed questions, which alone cannot tell a loss of one point
KNOBS = 3
LENS_TOKENS = 5
#: one number a visual token, (depth, v); the value of tokens that a prompt does not have, where others have more
OF_TOKENS = {
    "state_norm": 0.0,
    "attention_last": 0.0,
    "attention_question": 0.0,
    "value_l1": 0.0,
    "value_l2": 0.0,
    "contribution": 0.0,
    "cosine": 1.0,
}


# -------------------------------------------------------------------------------------------------------------- the eye


@dataclass
class Observed:
    """What the eye saw, by sample key: arrays (depth, ...) on the host, of the sample's own visual tokens alone.
    `pending` is the prefill whose last layer has run."""

    samples: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)
    pending: Run | None = None


@dataclass(frozen=True)
class Observer(Method):
    """Looks at every layer and changes nothing. Not registered: it is no method, and its fields are no knobs."""

    name = "observer"
    budget_knobs = ()

    into: Observed = field(default_factory=Observed)
    adapter: Adapter | None = None

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        valid = stream.after_valid
        if not valid.shape[1]:
            return None  # the prefill of an image alone, for the cache
        if layer == 0:
            run.memo.update(state=[], state_norm=[], value_output=[], seen=[])
        run.memo["state"].append(stream.after[torch.arange(len(valid)), valid.sum(1) - 1])
        run.memo["state_norm"].append(stream.visual.float().norm(dim=-1))
        return None

    def on_attention(self, run: Run, layer: int, attn: Attention) -> None:
        if "seen" not in run.memo:
            return
        assert self.adapter is not None
        assert isinstance(attn, LayerAttention)
        run.memo["seen"].append(_reduced(attn))
        run.memo["value_output"].append(self.adapter.attention_output(layer, attn.last_output().flatten(1)))
        if layer == run.shape.depth - 1:
            self.into.pending = run

    def finish(self, final: Tensor) -> None:
        """`final (b, d)`: the last token's state behind the last layer. Takes one batch's numbers to the host."""
        run, self.into.pending = self.into.pending, None
        assert isinstance(run, EngineRun)
        assert self.adapter is not None
        assert run.samples is not None
        memo = run.memo
        read = _lenses(self.adapter, [*memo["state"], final], memo["value_output"])
        read["state_norm"] = torch.stack(memo["state_norm"])
        for name in memo["seen"][0]:
            read[name] = torch.stack([layer[name] for layer in memo["seen"]])
        host = {name: values.transpose(0, 1).cpu().numpy() for name, values in read.items()}
        for row, (key, n) in enumerate(zip(run.samples, run.layout.visual_counts, strict=True)):
            self.into.samples[key] = {
                name: values[row][:, :n] if name in OF_TOKENS else values[row] for name, values in host.items()
            }


def _reduced(attn: LayerAttention) -> dict[str, Tensor]:
    """One layer as small tensors: (b,), (b, 3) or (b, v)."""
    layout = attn.layout
    rows, visual = layout.after_tokens, layout.visual_tokens
    probs = attn.row_probs(rows)
    b, heads, _, _ = probs.shape
    last = probs[torch.arange(b), :, rows.valid.sum(1) - 1]  # (b, heads, n)
    real = rows.valid[:, None, :, None].float()
    question = (probs * real).sum(2) / real.sum(2)  # (b, heads, n), averaged over rows
    groups = torch.stack(
        [layout.visual, layout.valid & ~layout.visual & ~layout.after, layout.after], 1
    ).float()  # (b, 3, n)
    each = torch.einsum("bhrn,bgn->bhrg", probs, groups[:, :1])[..., 0]  # (b, heads, rows): visual mass
    on_visual = (
        probs.gather(3, visual.columns[:, None, None, :].expand(-1, heads, probs.shape[2], -1))
        * visual.valid[:, None, None, :]
    )
    within = on_visual / each.clamp(min=1e-30)[..., None]
    entropy = -(within * within.clamp(min=1e-30).log()).sum(-1)  # (b, heads, rows)
    values = attn.visual_values().float().transpose(1, 2).flatten(2)  # (b, v, heads x d)
    norm, cosine = contributions(attn)
    columns = visual.columns[:, None, :].expand(-1, heads, -1)
    return {
        "mass_last": torch.einsum("bhn,bgn->bg", last, groups) / heads,
        "mass_question": torch.einsum("bhn,bgn->bg", question, groups) / heads,
        "entropy_last": entropy[torch.arange(b), :, rows.valid.sum(1) - 1].mean(1),
        "entropy_question": ((entropy * real[..., 0]).sum(2) / real[..., 0].sum(2)).mean(1),
        "attention_last": last.gather(2, columns).mean(1),
        "attention_question": question.gather(2, columns).mean(1),
        "value_l1": values.abs().sum(-1),
        "value_l2": values.norm(dim=-1),
        "contribution": norm,
        "cosine": cosine,
    }


def lens(adapter: Adapter, state: Tensor) -> Tensor:
    """(b, vocab) float32: logits read from a residual stream `state (b, d)` through the final norm and the head."""
    logits: Tensor = adapter.head(adapter.text.norm(state))
    return logits.float()


def _lenses(adapter: Adapter, states: Sequence[Tensor], outputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Per boundary (depth + 1, b) and per layer (depth, b): top token, its probability, and the probability of the
    final answer token."""
    answer = lens(adapter, states[-1]).argmax(-1)
    read: dict[str, list[Tensor]] = {}
    for prefix, stream in (("lens", states), ("value_lens", outputs)):
        for state in stream:
            probs = lens(adapter, state).softmax(-1)
            top = probs.max(-1)
            read.setdefault(f"{prefix}_top", []).append(top.indices)
            read.setdefault(f"{prefix}_top_p", []).append(top.values)
            read.setdefault(f"{prefix}_answer_p", []).append(probs.gather(1, answer[:, None])[:, 0])
    return {name: torch.stack(parts) for name, parts in read.items()}


@contextmanager
def watching(adapter: Adapter, observer: Observer) -> Iterator[None]:
    """Hands the observer the state behind the last layer, which no boundary shows. Goes around the observer's
    attach()."""

    def hook(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        # not while decoding, and not when the lens itself uses the norm
        if observer.into.pending is not None:
            observer.finish(args[0][:, -1])

    handle = adapter.text.norm.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class ShallowProbe(VisiPruner):
    """VisiPruner's shallow stage alone, recording the lowest cosine (depth,) and falling norms (depth, v) of each
    sample's own visual tokens. Not registered."""

    into: dict[str, tuple[NDArray[Any], NDArray[Any]]] = field(default_factory=dict)

    def on_attention(self, run: Run, layer: int, attn: Attention) -> None:
        assert isinstance(run, EngineRun)
        if not bool(run.layout.after.any()):
            return
        if layer == 0:
            run.memo["probe"] = []
        norm, cosine = contributions(attn)
        own = cosine.masked_fill(~run.visual_valid, OF_TOKENS["cosine"])
        run.memo["probe"].append((norm.sort(1, descending=True).values, own.amin(1)))
        if layer == run.shape.depth - 1:
            assert run.samples is not None
            norms, lowest = (torch.stack(x, 1).cpu().numpy() for x in zip(*run.memo["probe"], strict=True))
            for row, (key, count) in enumerate(zip(run.samples, run.layout.visual_counts, strict=True)):
                self.into[key] = (lowest[row], norms[row][:, :count])

    def at_boundary(self, run: Run, layer: int, stream: Stream) -> Reduction | None:
        return None
