"""The measured cost of prompts, from the trace of a prefill: named columns with units. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.core import flops
from harness.core.shape import PromptShape
from harness.core.trace import Trace
from harness.core.turn_flops import sample_turn


def sample_cost(prompt: PromptShape, trace: Trace, row: int, n_new_tokens: int) -> dict[str, float]:
    """The measured cost of one prompt, from its trace: FLOPs (1 multiply-add = 2; `_macs`: multiply-adds), bytes,
    tokens.

    Vision tower and projector are what this prompt alone would run; sharing features between prompts does not hide
    them.
    """
    shape = prompt.decoder
    n_prompt = trace.layers[0].tokens[row] - trace.layers[0].visual[row] + trace.n_prompt_visual[row]
    steps = max(n_new_tokens, 1) - 1
    cost: dict[str, float] = {
        "kept": trace.kept(row),
        "mean_visual": trace.mean_visual(row),
        "n_visual": trace.n_prompt_visual[row],
        "n_text": n_prompt - trace.n_prompt_visual[row],
        "prefill_dense_flops": flops.prefill_dense(shape, trace, row),
        "prefill_ideal_flops": flops.prefill_ideal(shape, trace, row),
        "prefill_paper_macs": flops.prefill_paper_macs(shape, trace, row),
        "prefill_unpruned_flops": flops.prefill_unpruned(shape, n_prompt),
        "scoring_flops": trace.scoring[row],
        "vision_flops": sum(flops.vision_tower(image.vision) for image in prompt.images),
        "projector_flops": sum(flops.projector(shape, image.vision) for image in prompt.images),
        "lm_head_flops": flops.lm_head(shape, 1 + steps),
        "decode_flops": flops.decode(shape, trace, row, steps),
        "kv_bytes": flops.kv_bytes(shape, trace, row),
    }
    cost.update({name: values[row] for name, values in trace.notes.items() if name not in cost})
    return cost


def dialogue_cost(prompt: PromptShape, trace: Trace, row: int, n_tokens: Sequence[int]) -> dict[str, float]:
    """`sample_cost` of a prompt with its answer's tokens; with those of a second answer, what the second turn cost
    beside them (harness/core/turn_flops.py)."""
    cost = sample_cost(prompt, trace, row, n_tokens[0])
    return cost | sample_turn(prompt.decoder, trace, row, *n_tokens) if len(n_tokens) > 1 else cost


def with_tower(costs: Mapping[str, float]) -> float:
    """FLOPs of vision tower, projector and dense prefill of one prompt; NaN where a column is missing."""
    names = ("vision_flops", "projector_flops", "prefill_dense_flops")
    return math.nan if any(name not in costs for name in names) else sum(costs[name] for name in names)


def request_flops(costs: Mapping[str, float], questions: int = 1) -> float:
    """FLOPs of one question of `questions` about an image, for a method that does not read the question.

    A request is the vision tower, the projector, the dense prefill, the head and the decode steps. The questions about
    an image share the tower, the projector, the method's scoring and the visual tokens' own products in each layer
    (twice `prefill_paper_macs`). The text in front of the image is counted with each question. NaN where a column is
    missing.
    """
    names = ("vision_flops", "projector_flops", "prefill_dense_flops", "lm_head_flops", "decode_flops")
    if any(name not in costs for name in (*names, "scoring_flops", "prefill_paper_macs")):
        return math.nan
    shared = costs["vision_flops"] + costs["projector_flops"] + costs["scoring_flops"] + 2 * costs["prefill_paper_macs"]
    return sum(costs[name] for name in names) - shared * (1 - 1 / questions)


@dataclass(frozen=True)
class Costs(Mapping[str, Sequence[float]]):
    """The cost of a batch: a mapping from a column's name to one number per row, with the columns of samples.parquet.

    `kept` and `n_visual` are visual tokens, `mean_visual` visual tokens per decoder layer, `n_text` text tokens;
    columns in `_flops` are FLOPs (1 multiply-add = 2), `_macs` multiply-adds, `_bytes` bytes, `_layer` the number of a
    layer, from 0 and -1 for none. docs/costs.md defines each. `prefill_executed_flops` and `decode_executed_flops` are
    those of the whole batch as it ran, padding included.
    """

    columns: Mapping[str, Sequence[float]]
    prefill_executed_flops: int
    decode_executed_flops: int

    def __getitem__(self, name: str) -> Sequence[float]:
        return self.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def __str__(self) -> str:
        width = max(map(len, self.columns))
        return "\n".join(f"{name:<{width}}  {'  '.join(f'{v:,.10g}' for v in row)}" for name, row in self.items())


def batch_costs(prompts: Sequence[PromptShape], trace: Trace) -> Costs:
    """The cost of a prefill and of the decode steps behind it; every row is charged with all steps of its batch."""
    rows = [sample_cost(prompt, trace, row, 1 + trace.decode_steps) for row, prompt in enumerate(prompts)]
    shape = prompts[0].decoder
    return Costs(
        {name: tuple(row[name] for row in rows) for name in rows[0]},
        flops.prefill_executed(shape, trace),
        flops.decode_executed(shape, trace),
    )
