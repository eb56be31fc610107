"""FLOPs and KV bytes of a second turn on a pruned cache, as a closed form over its trace; no torch.

The turn's tokens run through every layer and attend what that layer's cache holds, then themselves. `turn` and `decode`
are one sample's without padding. `turn_executed` and `decode_executed` are the batch's, with padding and with the
columns of rows that had ended their first answer. `lm_head` of harness/core/flops.py stands apart, as ever.
"""

from __future__ import annotations

from harness.core import flops
from harness.core.shape import ModelShape
from harness.core.trace import Trace, TurnTrace


def sample_turn(shape: ModelShape, trace: Trace, row: int, n_first: int, n_new_tokens: int) -> dict[str, float]:
    """What the second of two questions cost behind the first: columns of a sample, in FLOPs, bytes and tokens.

    `n_first`, `n_new_tokens`: tokens of the first and the second answer. Raises ValueError for a trace without a turn.
    """
    steps = max(n_new_tokens, 1) - 1
    return {
        "first_new_tokens": n_first,
        "turn_tokens": _turn(trace).tokens[row],
        "turn_flops": turn(shape, trace, row),
        "turn_decode_flops": decode(shape, trace, row, steps),
        "turn_lm_head_flops": flops.lm_head(shape, 1 + steps),
        "turn_kv_bytes": kv_bytes(shape, trace, row),
    }


def turn(shape: ModelShape, trace: Trace, row: int) -> int:
    """FLOPs of the turn's tokens of one sample, LM head excluded; each layer attends its own cache."""
    n, said = _turn(trace).tokens[row], _turn(trace).said[row]
    return sum(
        flops.linear_per_token(shape) * n + flops.attention_pairs(shape, n, t.tokens[row] + said + n)
        for t in trace.layers
    )


def turn_executed(shape: ModelShape, trace: Trace) -> int:
    """FLOPs of the turn of the whole batch as it ran, LM head excluded."""
    n = _turn(trace).columns
    return trace.batch * sum(
        flops.linear_per_token(shape) * n + flops.attention_pairs(shape, n, t.columns + trace.decode_steps + n)
        for t in trace.layers
    )


def decode(shape: ModelShape, trace: Trace, row: int, steps: int) -> int:
    """FLOPs of `steps` decode steps of one sample behind the turn, LM head excluded."""
    behind = _turn(trace).said[row] + _turn(trace).tokens[row]
    return sum(_step(shape, [t.tokens[row] + behind + step + 1 for t in trace.layers]) for step in range(steps))


def decode_executed(shape: ModelShape, trace: Trace) -> int:
    """FLOPs of the decode steps of the whole batch behind the turn as they ran, LM head excluded."""
    behind, steps = trace.decode_steps + _turn(trace).columns, _turn(trace).decode_steps
    return trace.batch * sum(
        _step(shape, [t.columns + behind + step + 1 for t in trace.layers]) for step in range(steps)
    )


def kv_bytes(shape: ModelShape, trace: Trace, row: int) -> int:
    """Bytes of one sample's KV cache behind the turn, over all layers, at the model's dtype."""
    behind = _turn(trace).said[row] + _turn(trace).tokens[row]
    per_token = 2 * shape.kv_heads * shape.head_dim * shape.bytes_per_value
    return sum(t.tokens[row] + behind for t in trace.layers) * per_token


def _step(shape: ModelShape, columns: list[int]) -> int:
    """FLOPs of one token through every layer, which attends so many `columns` there."""
    return sum(flops.linear_per_token(shape) + flops.attention_pairs(shape, 1, n) for n in columns)


def _turn(trace: Trace) -> TurnTrace:
    if trace.turn is None:
        raise ValueError("expected the trace of a dialogue with a second turn, found a prefill alone")
    return trace.turn
