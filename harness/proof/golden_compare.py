"""Everything that a case recorded against what its replay did; the first difference is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.engine.run import EngineRun
from harness.proof.golden_models import NotReplayableError

LOGIT_TOLERANCE = 1e-4
NORM_TOLERANCE = 1e-3
#: of the largest number in the list, for the rows of visual tokens that the first decoder layer receives
VISUAL_TOLERANCE = 2e-5
Case = Mapping[str, Any]


@dataclass(frozen=True)
class CaseOutcome:
    """`mismatch` is the first thing that differs, None where everything agrees; `largest` is the largest logit
    difference."""

    case: str
    largest: float
    mismatch: str | None


@dataclass(frozen=True)
class Replayed:
    """What one run of a case did: logits of prefill and decode steps, and what the engine recorded.

    By decoder layer: `lengths`, `hidden_norms` and `last_norms` (of its output, all rows and the last),
    `entered_norms` (of its input, all rows), `positions`, and `origins`: the number of each visual token in the prompt,
    -2 for an added one. `visual (v, d)` float64: the visual tokens as the first layer receives them. `probe (d,)`:
    recorded with a tower, None without.
    """

    logits: list[Tensor]
    kept: list[int]
    lengths: list[int]
    hidden_norms: list[float]
    entered_norms: list[float]
    last_norms: list[float]
    positions: list[list[int]]
    decode_positions: list[list[int]]
    run: EngineRun
    origins: list[list[int]]
    visual: Tensor
    probe: Tensor | None
    tower: bool


def compare(case: Case, got: Replayed, tolerance: float = LOGIT_TOLERANCE) -> CaseOutcome:
    """Everything a case recorded against a run: kept sets, layers, votes, lengths, positions, norms, logits within
    `tolerance`; with a tower, kept tokens in their order and each visual row as well.
    """
    wanted = case["logits"]
    # FastV's variants that rank again at every token agree at prefill only; the masking one also keeps all tokens in
    # place
    prefill_only = case["method"] == "fastv" and case["variant"] in ("inplace", "mask")
    steps = 1 if prefill_only else len(wanted)
    apart = [(got.logits[t] - torch.tensor(wanted[t])).abs().max() for t in range(steps)]
    largest = float(torch.stack(apart).max())  # nan if one is
    found = _tower_difference(case, got, tolerance) if got.tower else _first_difference(case, got, steps)
    if found is None:
        found = _unlike_steps(case, got, steps)
    if found is None and not largest <= tolerance:
        found = f"logits differ by {largest:.2e}, tolerance {tolerance:.0e}"
    return CaseOutcome(str(case["id"]), largest, found)


# ------------------------------------------------------------------------------------------- methods inside the decoder


def _first_difference(case: Case, got: Replayed, steps: int) -> str | None:
    masked = case.get("variant") == "mask"
    first = case.get("first_pruned_layer")
    q_len = case["q_len"] if "q_len" in case else case["steps"][0]["q_len"]
    if not masked and (unlike := unlike_lengths(got.lengths, q_len)):
        return unlike
    if case["method"] == "sparsevlm":
        for stage in case["stages"]:
            kept = [o for o in got.origins[stage["first_pruned_layer"]] if o >= 0]
            recorded = [o for o in stage["vis_ids_after"] if o < 1000]
            if kept != recorded:
                return f"stage after layer {stage['layer']}: {sets_apart(kept, recorded)}"
    elif case["method"] == "fitprune":
        if unlike := _unlike_deletions(case, got):
            return unlike
    elif "stages" in case:
        for stage in case["stages"]:
            if unlike := _unlike_stage(stage, got):
                return unlike
    elif first is not None and first < len(got.origins):
        if got.origins[first] != case["kept"]:
            return f"layer {first}: {sets_apart(got.origins[first], case['kept'])}"
        if len(got.origins[first - 1]) != got.run.prompts[0].n_visual:
            return f"layer {first - 1} already lost visual tokens"
        if "pivot_order" in case and (unlike := _unlike_turns(case, got)):
            return unlike
    for vote in case.get("exit_votes") or []:
        logged = {layer: bool(v[0]) for layer, voting, v, _ in got.run.memo.get("log", []) if bool(voting[0])}
        if logged.get(vote["layer"]) != vote["vote"]:
            return f"exit vote at layer {vote['layer']}: {logged.get(vote['layer'])}, recorded {vote['vote']}"
    if not masked:
        norms = case["hidden_norm"] if "hidden_norm" in case else case["steps"][0]["hidden_norm"]
        found = got.hidden_norms
        if case["method"] == "fitprune":
            # recorded over the rows that survive a layer, which are those that enter the next one
            end = [] if case["scheme"][-1] else found[-1:]
            found, norms = [*got.entered_norms[1:], *end], norms[: len(found) - 1 + len(end)]
        return unlike_norms("norm of layer {}'s output", found, norms)
    return None


def _unlike_turns(case: Case, got: Replayed) -> str | None:
    """DART's pivots in turn, and the tokens that each of them took."""
    start, memo = case["DART_config"]["image_token_start_index"], got.run.memo
    if "pivots" not in memo:
        return "no pivots were chosen"
    order = [start + pivot for pivot in memo["pivots"][0].tolist()]
    if order != case["pivot_order"]:
        return f"pivots in turn {order}, recorded {case['pivot_order']}"
    for turn, pick in zip(memo["picks"], case["picks"], strict=True):
        taken = turn[0].nonzero().flatten().tolist()
        if taken != sorted(pick["selected"]):
            return f"pivot {pick['pivot']}: {sets_apart(taken, pick['selected'])}"
    return None


def _unlike_stage(stage: Mapping[str, Any], got: Replayed) -> str | None:
    """The tokens that a stage left, and the positions of its sequence where they are recorded."""
    layer = stage["first_pruned_layer"]
    if got.origins[layer] != stage["kept"]:
        return f"layer {layer}: {sets_apart(got.origins[layer], stage['kept'])}"
    if len(got.origins[layer - 1]) != stage["v_token_num_before"]:
        return f"layer {layer - 1}: {len(got.origins[layer - 1])} visual tokens, recorded {stage['v_token_num_before']}"
    if "positions_after" in stage:
        first, last = stage["positions_after"]
        if got.positions[layer] != list(range(first, last + 1)):
            return f"layer {layer} does not stand at positions {first} to {last}, as recorded"
    return None


def _unlike_deletions(case: Case, got: Replayed) -> str | None:
    """FitPrune's deletions by layer; those of the last layer change nothing and are not made."""
    for stage in case["stages"]:
        first = stage["first_pruned_layer"]
        if first < len(got.origins):
            gone = sorted(set(got.origins[first - 1]) - set(got.origins[first]))
            if gone != sorted(stage["deleted"]):
                return f"deleted in layer {stage['layer']}: {sets_apart(gone, stage['deleted'])}"
    return unlike_norms("norm of the last row of layer {}'s output", got.last_norms, case["hidden_last_norm"])


# ------------------------------------------------------------------------------------------ methods before the decoder

#: what a case with a tower must hold, and of what type
FIELDS: dict[str, Any] = {
    "id": str,
    "method": str,
    "kept": list[int],
    "seq_len": int,
    "visual_norm": list[float],
    "hidden_norm": list[float],
    "hidden_last_norm": list[float],
    "tokens": list[int],
    "logits": list[list[float]],
    "decode": list[dict[str, Any]],
}
#: what it may hold
OPTIONAL: dict[str, Any] = {
    "order": list[int],
    "n_visual": int,
    "n_zero_tokens": int,
    "visual_dot": list[float],
    "q_len": list[int],
    "prefill_positions": list[int],
    "prefill_position": str,
    "question": dict[str, Any],
}


def check_fields(case: Case) -> None:
    """Raise NotReplayableError for a case with a tower of which a field is missing or holds something else."""
    from pydantic import TypeAdapter, ValidationError

    lacks = [name for name in FIELDS if name not in case]
    if lacks:
        raise NotReplayableError(f"the case records no {', '.join(lacks)}")
    for name, hint in {**FIELDS, **OPTIONAL}.items():
        if name in case:
            try:
                TypeAdapter(hint).validate_python(case[name], strict=True)
            except ValidationError as error:
                first = error.errors()[0]
                where = "".join(f"[{part}]" for part in first["loc"])
                raise NotReplayableError(f"{name}{where}: {first['msg']}, found {first['input']!r:.40}") from None
    sizes = {len(row) for row in case["logits"]}
    if len(sizes) != 1 or not len(case["tokens"]) >= len(case["logits"]) == len(case["decode"]) + 1:
        raise NotReplayableError(
            f"expected logits of one size for the prefill and each decode step, found {len(case['logits'])} rows of"
            f" {' and '.join(map(str, sorted(sizes)))}, {len(case['tokens'])} tokens and {len(case['decode'])} steps"
        )


def _tower_difference(case: Case, got: Replayed, tolerance: float) -> str | None:
    n, depth = case["seq_len"], len(got.lengths)
    received = [o for o in got.origins[0] if o >= 0]
    # HoloV's `kept` is sorted; the `order` of greedy methods is that of their picks
    recorded = case["order"] if case["method"] == "holov" and "order" in case else case["kept"]
    if sorted(received) != sorted(recorded):
        return sets_apart(received, recorded)
    if received != recorded:
        at = next(i for i, (a, b) in enumerate(zip(received, recorded, strict=True)) if a != b)
        return f"kept the recorded tokens in another order: from place {at} on {received[at]}, recorded {recorded[at]}"
    if unlike := unlike_lengths(got.lengths, case.get("q_len", [n] * depth)):
        return unlike
    if "n_visual" in case and len(got.visual) != case["n_visual"]:
        return f"{len(got.visual)} visual tokens, recorded {case['n_visual']}"
    zeros = int((got.visual == 0).all(1).sum())
    if zeros != case.get("n_zero_tokens", 0):
        return f"{zeros} visual tokens are zero, recorded {case.get('n_zero_tokens', 0)}"
    share = VISUAL_TOLERANCE * tolerance / LOGIT_TOLERANCE
    rows = [("norm", got.visual.norm(dim=1))]
    if "visual_dot" in case:
        if got.probe is None:
            raise NotReplayableError("visual_dot: expected a `probe` among the weights of the tower, found none")
        rows.append(("product with the probe", got.visual @ got.probe))
    for what, values in rows:
        listed = case["visual_norm" if what == "norm" else "visual_dot"]
        if unlike := unlike_rows(what, values.tolist(), listed, share):
            return unlike
    wanted = _positions(case)
    for layer, positions in enumerate(got.positions):
        if positions != wanted:
            at = next((i for i, (a, b) in enumerate(zip(positions, wanted, strict=False)) if a != b), 0)
            return f"layer {layer}: its token {at} at position {positions[at]}, recorded {wanted[at]}"
    return unlike_norms("norm of layer {}'s output", got.hidden_norms, case["hidden_norm"]) or unlike_norms(
        "norm of the last row of layer {}'s output", got.last_norms, case["hidden_last_norm"]
    )


def _positions(case: Case) -> list[int]:
    """Where the tokens of the prefill stand, the same in every layer."""
    if "prefill_positions" in case:
        first, last = case["prefill_positions"]
        return list(range(first, last + 1))
    if case.get("prefill_position") == "compact":
        return list(range(case["seq_len"]))
    raise NotReplayableError(
        f"expected prefill_positions, or prefill_position 'compact', found {case.get('prefill_position', 'neither')!r}"
    )


# ---------------------------------------------------------------------------------------------------------- of any kind


def unlike_lengths(got: Sequence[int], recorded: Sequence[int]) -> str | None:
    for layer, (a, b) in enumerate(zip(got, recorded, strict=True)):
        if a != b:
            return f"layer {layer} holds {a} tokens, recorded {b}"
    return None


def unlike_rows(what: str, got: Sequence[float], recorded: Sequence[float], share: float) -> str | None:
    if len(got) != len(recorded):
        return f"{len(got)} visual tokens, recorded the {what} of {len(recorded)}"
    most = share * max(map(abs, recorded), default=0.0)
    for i, (a, b) in enumerate(zip(got, recorded, strict=True)):
        if not abs(a - b) <= most:
            return f"visual token {i}: {what} {a:.7g}, recorded {b:.7g}"
    return None


def unlike_norms(what: str, got: Sequence[float], recorded: Sequence[float]) -> str | None:
    if len(got) != len(recorded):
        return f"{len(got)} decoder layers, recorded the {what.replace('layer {}', 'each layer')} of {len(recorded)}"
    for layer, (a, b) in enumerate(zip(got, recorded, strict=True)):
        if not abs(a - b) <= NORM_TOLERANCE * max(1.0, abs(b)):
            return f"{what.format(layer)} {a:.4f}, recorded {b:.4f}"
    return None


def _unlike_steps(case: Case, got: Replayed, steps: int) -> str | None:
    """Where generated tokens stand, and what the caches hold then (where that was recorded with a tower)."""
    if steps == 1:
        return None
    depth = len(got.lengths)
    for step, recorded in enumerate(case.get("decode") or []):
        expected = _by_layer(recorded["position_id"], depth)
        if got.decode_positions[step] != expected:
            return (
                f"decode step {step + 1} at positions {got.decode_positions[step][:4]}..., recorded {expected[:4]}..."
            )
        held = [n + step + 1 for n in got.lengths]
        if got.tower and held != (cached := _by_layer(recorded["kv_len"], depth)):
            return f"decode step {step + 1}: caches hold {held[:4]}... tokens, recorded {cached[:4]}..."
    return None


def _by_layer(value: Any, depth: int) -> list[int]:
    return value if isinstance(value, list) else [value] * depth


def sets_apart(got: Sequence[int], recorded: Sequence[int]) -> str:
    extra, missing = sorted(set(got) - set(recorded)), sorted(set(recorded) - set(got))
    return f"kept {len(got)} tokens, recorded {len(recorded)}; not recorded: {extra[:5]}, missing: {missing[:5]}"
