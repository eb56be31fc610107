"""One schedule, counted as each paper counted its own: why "FLOPs" of two papers cannot be compared. No torch.

All papers here call one multiply-add a FLOP. With n tokens in a layer of width d and feed-forward width m they count

    c(n, f) = 4 n d^2 + 2 n^2 d + f n d m        projections, QK^T and AV (n x n), f feed-forward matrices

LLaMA has f = 3 (SwiGLU); FastV and DivPrune count 2. None counts vision tower, projector, LM head, scoring or decoding.
They also differ in which tokens are n. `visual` is the number of visual tokens entering each decoder layer, as in a
trace or from `Method.plan`; fractions are welcome (means over samples, though n^2 of a mean is a little below the mean
of n^2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.core.shape import ModelShape

#: text tokens before the image in LLaVA-1.5's vicuna_v1 prompt, <s> included
N_SYSTEM = 35


@dataclass(frozen=True)
class Reported:
    """One paper's number for a run: multiply-adds of the prefill or of its mean layer (`per`), and the unpruned
    model's."""

    who: str
    macs: float
    unpruned: float
    per: str
    formula: str
    source: str

    @property
    def change(self) -> float:
        """Relative change to the unpruned model, -0.54 for 54 % less."""
        return self.macs / self.unpruned - 1


def layer_macs(shape: ModelShape, n: float, ffn_matrices: int, attention: bool = True) -> float:
    """c(n, f), multiply-adds; without its n^2 term where `attention` is False."""
    d = shape.hidden
    return 4 * n * d * d + (2 * n * n * d if attention else 0) + ffn_matrices * n * d * shape.mlp


def _total(shape: ModelShape, visual: Sequence[float], others: float, ffn_matrices: int) -> float:
    return sum(layer_macs(shape, v + others, ffn_matrices) for v in visual)


def fastv(shape: ModelShape, visual: Sequence[float], n_system: int = N_SYSTEM + 1) -> float:
    """Mean multiply-adds of one layer; FastV counts 36 system tokens and no question."""
    return _total(shape, visual, n_system, 2) / len(visual)


def pyramiddrop(shape: ModelShape, visual: Sequence[float]) -> float:
    return _total(shape, visual, 0, 3)


def sparsevlm(shape: ModelShape, visual: Sequence[float], n_text: float) -> float:
    return _total(shape, visual, n_text, 3)


def divprune(shape: ModelShape, visual: Sequence[float], n_question: float) -> float:
    return _total(shape, visual, n_question, 2)


def visipruner(shape: ModelShape, visual: Sequence[float]) -> float:
    """Layers that still hold all visual tokens are counted without attention, as if the shallow stage skipped it up to
    the filter layer, which neither its code nor the method does: text has to attend vision for the filter layer to be
    found."""
    full = max(visual)
    if min(visual) == full:
        return pyramiddrop(shape, visual)
    return sum(layer_macs(shape, v, 3, attention=v < full) for v in visual)


def honest(shape: ModelShape, visual: Sequence[float], n_text: float) -> float:
    """All tokens, dense attention in every layer, f = 3: half of what column `dense` says without scoring."""
    return _total(shape, visual, n_text, 3)


def visual_attention(visual: Sequence[float], n_text: float, n_visual: int) -> float:
    """VisiPruner's "visual attention" of a run over that of the unpruned model: mean over layers of v^2 + v n_text; in
    [0, 1]."""

    def pairs(v: float) -> float:
        return v * v + v * n_text

    return sum(pairs(v) for v in visual) / (len(visual) * pairs(n_visual))


def reports(
    shape: ModelShape, visual: Sequence[float], n_text: float, n_visual: int, n_system: int = N_SYSTEM
) -> list[Reported]:
    """The run with `visual[l]` of `n_visual` visual tokens in layer l and `n_text` text tokens (`n_system` before the
    image), as each paper would have reported it, and last as it is."""
    unpruned = [float(n_visual)] * len(visual)
    n_question = n_text - n_system

    def of(
        who: str, count: Callable[[Sequence[float]], float], formula: str, source: str, per: str = "prefill"
    ) -> Reported:
        return Reported(who, count(visual), count(unpruned), per, formula, source)

    return [
        of("FastV", lambda v: fastv(shape, v), "mean layer of c(visual + 36, f=2)", "arXiv 2403.06764", "layer"),
        of("PyramidDrop", lambda v: pyramiddrop(shape, v), "sum of c(visual, f=3)", "arXiv 2410.17247"),
        of(
            "SparseVLM",
            lambda v: sparsevlm(shape, v, n_text),
            f"sum of c(visual + {n_text:g} text, f=3)",
            "arXiv 2410.04417, by its code; the formula in the paper is another",
        ),
        of(
            "DivPrune",
            lambda v: divprune(shape, v, n_question),
            f"sum of c(visual + {n_question:g} question, f=2)",
            "arXiv 2503.02175, its code",
        ),
        of(
            "VisiPruner",
            lambda v: visipruner(shape, v),
            "sum of c(visual, f=3), no attention while all visual tokens are there",
            "arXiv 2510.17205, appendix M",
        ),
        of(
            "as it runs",
            lambda v: honest(shape, v, n_text),
            f"sum of c(visual + {n_text:g} text, f=3), dense",
            "prunebench",
        ),
    ]
