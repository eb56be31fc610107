"""Replay recorded outputs of official implementations through the engine: `prunebench goldens DIR`.

A folder holds index.json, models/ (Llama weights), inputs/ (prompt embeddings) and cases/ (one JSON per case, as
described in its README), plain or packed (harness/proof/golden_files.py). Every case runs through the same engine and
hooks as an evaluation: a `LlavaForConditionalGeneration` whose text model holds the recorded weights, with the recorded
visual rows passed as encoder outputs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor
from transformers import AutoModelForImageTextToText, DynamicCache

from harness import method as registry
from harness.core.errors import PrunebenchError
from harness.core.shape import Grid, ImageShape, ModelShape, PromptShape, VisionShape
from harness.core.shown import one_line
from harness.engine.attach import attach
from harness.engine.run import EngineRun
from harness.method import Method, Run
from harness.models.adapters import Features, LlavaAdapter
from harness.models.adapters.llava import load_text
from harness.proof.golden_files import MEND, load_index, main, read_bytes, read_case, read_json

LOGIT_TOLERANCE = 1e-4
NORM_TOLERANCE = 1e-3
IMAGE_TOKEN = 511
CPU = torch.device("cpu")


@dataclass(frozen=True)
class CaseOutcome:
    """`mismatch` is the first thing that differs, None where everything agrees; `largest` is the largest logit
    difference."""

    case: str
    largest: float
    mismatch: str | None


@dataclass(frozen=True)
class Replayed:
    """What one run of a case did: logits of prefill and decode steps, and what the engine recorded."""

    logits: list[Tensor]
    kept: list[int]
    lengths: list[int]
    hidden_norms: list[float]
    decode_positions: list[list[int]]
    run: EngineRun
    origins: list[list[int]]


class NotReplayableError(PrunebenchError):
    """A case that this replay has no method, model or rule for; says which."""


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load(read_bytes(path))
    except SafetensorError as error:
        raise PrunebenchError(f"{path}: expected safetensors, found a damaged or cut file ({error}): {MEND}") from None
    return tensors


@lru_cache(maxsize=4)
def _model(folder: Path, name: str, device: torch.device) -> LlavaAdapter:
    """A LLaVA whose decoder and head hold the recorded weights; its tower is never run."""
    spec = read_json(folder / "models" / "models.json").get(name, {})
    if "config" not in spec:
        raise NotReplayableError(f"models/models.json has no Llama `config` for the model {name!r}")
    known = dict(spec["config"])
    decoder = ModelShape(
        depth=known["num_hidden_layers"],
        hidden=known["hidden_size"],
        heads=known["num_attention_heads"],
        kv_heads=known["num_key_value_heads"],
        head_dim=known["hidden_size"] // known["num_attention_heads"],
        mlp=known["intermediate_size"],
        vocab=known["vocab_size"],
        bytes_per_value=4,
    )
    tower = VisionShape(
        layers_used=2,
        hidden=8,
        mlp=8,
        tokens=24 * 24 + 1,
        patch_inputs=3 * 14**2,
        projector_hidden=decoder.hidden,
        heads=1,
    )
    config = LlavaAdapter.config_of(
        PromptShape(decoder, (ImageShape((Grid(24, 24),), tower),)),
        image_token_id=IMAGE_TOKEN,
        rope_parameters={"rope_type": "default", "rope_theta": known["rope_theta"]},
        rms_norm_eps=known["rms_norm_eps"],
        max_position_embeddings=known["max_position_embeddings"],
    )
    adapter = LlavaAdapter(AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").eval())
    load_text(adapter, {k: v.float() for k, v in _tensors(folder / spec["weights"]).items()})
    adapter.model.to(device)
    return adapter


def _with_noise(method: Method, case: dict[str, Any]) -> Method:
    """SparseVLM with the tie-breaking noise of the recording in place of its own."""
    stages = [s.get("density_noise") for s in case["stages"]]

    class Recorded(type(method)):  # type: ignore[misc]
        def density_noise(self, run: Run, row: int, stage: int, n: int) -> Tensor:
            drawn = stages[stage]
            return torch.zeros(n) if drawn is None else torch.tensor(drawn, dtype=torch.float32) * 1e-6

    return Recorded(**method.knobs())


def method_of(case: dict[str, Any]) -> Method:
    """The method and knobs that a case recorded. Raises NotReplayableError if there is no such method here, or no rule
    for its knobs."""
    name = case.get("method")
    if name == "vanilla":
        return registry.method_class("none")()
    if name not in registry.registered():
        raise NotReplayableError(f"no registered method is called {name!r} (`prunebench methods` lists them)")
    cls = registry.method_class(name)
    if name == "fastv":
        k = case["K"] if "K" in case else (case.get("fastv_config") or {}).get("fast_v_agg_layer")
        return cls() if k is None else cls(keep=case["n_kept"], boundary=k)  # type: ignore[call-arg]
    if name == "sparsevlm":
        # the official layers as they are, whatever the depth
        return _with_noise(cls(retain=case["retain"], plus=case["version"] == "2_0", stages=(2, 6, 15)), case)  # type: ignore[call-arg]
    if name != "visipruner":
        raise NotReplayableError(f"no rule says how a recording of {name!r} maps to knobs")
    config = case["pruning_config"]
    if config is None:
        return registry.method_class("none")()
    mode = config["mode"]
    given = {k: config[k] for k in ("shallow_mid_layer", "layer_threshold", "tokens_threshold") if k in config}
    stages = {name: name in mode for name in ("shallow", "middle", "deep")}
    return cls(**stages, **given, layer0="merge" if case["size"] == "7b" else "half")  # type: ignore[call-arg]


def replay(folder: Path, case: dict[str, Any], method: Method, device: torch.device = CPU) -> Replayed:
    """Run a case's prompt and its recorded decode tokens with `method`; the logits come back to the CPU.

    Raises NotReplayableError if the case is of another kind.
    """
    lacks = [field for field in ("model", "input", "tokens", "logits") if field not in case]
    if lacks:
        raise NotReplayableError(f"the case records no {', '.join(lacks)}")
    adapter = _model(folder, case["model"], device)
    model = adapter.model
    inputs = _tensors(folder / "inputs" / f"{case['input']}.safetensors")
    if "inputs_embeds" not in inputs:
        raise NotReplayableError(f"the input {case['input']!r} holds {', '.join(sorted(inputs))} and no inputs_embeds")
    embeds, pre, post = inputs["inputs_embeds"], inputs["pre_ids"].long(), inputs["post_ids"].long()
    n_visual = embeds.shape[1] - pre.numel() - post.numel()
    ids = torch.cat([pre, torch.full((n_visual,), IMAGE_TOKEN), post])[None].to(device)
    features = adapter.outputs([Features(embeds[0, pre.numel() : pre.numel() + n_visual].to(device))])
    norms: list[float] = []
    positions: list[list[int]] = []
    with attach(model, method) as run, torch.inference_mode():
        handles = [
            layer.register_forward_hook(
                lambda _m, _a, out: norms.append(float((out[0] if isinstance(out, tuple) else out).norm()))
            )
            for layer in adapter.layers
        ]
        handles += [
            layer.register_forward_pre_hook(
                lambda _m, _a, kw: positions[-1].append(int(kw["position_ids"][0, -1])), with_kwargs=True
            )
            for layer in adapter.layers
        ]
        cache = DynamicCache(config=model.config.text_config)
        positions.append([])
        try:
            out = model(input_ids=ids, mm_encoder_outputs=features, past_key_values=cache)
            prefill_norms, layouts = list(norms), run.layouts
            logits = [out.logits[0, -1].cpu()]
            for token in case["tokens"][: len(case["logits"]) - 1]:
                positions.append([])
                logits.append(
                    model(input_ids=torch.tensor([[token]], device=device), past_key_values=cache).logits[0, -1].cpu()
                )
        finally:
            for handle in handles:
                handle.remove()
        lengths = [layer.keys.shape[2] - len(logits) + 1 for layer in cache.layers]
        origins = [layout.origin[0][layout.visual[0]].tolist() for layout in layouts]
        return Replayed(logits, origins[-1], lengths, prefill_norms, positions[1:], run, origins)


def compare(case: dict[str, Any], got: Replayed, tolerance: float = LOGIT_TOLERANCE) -> CaseOutcome:
    """Everything a case recorded against a run: kept sets, layers, votes, lengths, positions, norms, logits within
    `tolerance`."""
    wanted = case["logits"]
    # FastV's variants that rank again at every token agree at prefill only; the masking one also keeps all tokens in
    # place
    prefill_only = case["method"] == "fastv" and case["variant"] in ("inplace", "mask")
    steps = 1 if prefill_only else len(wanted)
    largest = max(float((got.logits[t] - torch.tensor(wanted[t])).abs().max()) for t in range(steps))
    return CaseOutcome(case["id"], largest, _first_difference(case, got, steps, largest, tolerance))


def _first_difference(case: dict[str, Any], got: Replayed, steps: int, largest: float, tolerance: float) -> str | None:
    masked = case.get("variant") == "mask"
    first = case.get("first_pruned_layer")
    q_len = case["q_len"] if "q_len" in case else case["steps"][0]["q_len"]
    if not masked and got.lengths != q_len:
        layer = next(i for i, (a, b) in enumerate(zip(got.lengths, q_len, strict=True)) if a != b)
        return f"layer {layer} holds {got.lengths[layer]} tokens, recorded {q_len[layer]}"
    if case["method"] == "sparsevlm":
        for stage in case["stages"]:
            kept = [o for o in got.origins[stage["first_pruned_layer"]] if o >= 0]
            recorded = [o for o in stage["vis_ids_after"] if o < 1000]
            if kept != recorded:
                return f"stage after layer {stage['layer']}: {_sets(kept, recorded)}"
    elif first is not None and first < len(got.origins):
        if got.origins[first] != case["kept"]:
            return f"layer {first}: {_sets(got.origins[first], case['kept'])}"
        if len(got.origins[first - 1]) != 576:
            return f"layer {first - 1} already lost visual tokens"
    for vote in case.get("exit_votes") or []:
        logged = {layer: bool(v[0]) for layer, voting, v, _ in got.run.memo.get("log", []) if bool(voting[0])}
        if logged.get(vote["layer"]) != vote["vote"]:
            return f"exit vote at layer {vote['layer']}: {logged.get(vote['layer'])}, recorded {vote['vote']}"
    if not masked:
        norms = case["hidden_norm"] if "hidden_norm" in case else case["steps"][0]["hidden_norm"]
        for layer, (a, b) in enumerate(zip(got.hidden_norms, norms, strict=True)):
            if abs(a - b) > NORM_TOLERANCE * max(1.0, abs(b)):
                return f"norm of layer {layer}'s output {a:.4f}, recorded {b:.4f}"
    if steps > 1:
        for step, recorded_step in enumerate(case.get("decode") or []):
            at = recorded_step["position_id"]
            expected = at if isinstance(at, list) else [at] * len(got.lengths)
            if got.decode_positions[step] != expected:
                return (
                    f"decode step {step + 1} at positions {got.decode_positions[step][:4]}..., recorded"
                    f" {expected[:4]}..."
                )
    if not largest <= tolerance:
        return f"logits differ by {largest:.2e}, tolerance {tolerance:.0e}"
    return None


def _sets(got: list[int], recorded: list[int]) -> str:
    extra, missing = sorted(set(got) - set(recorded)), sorted(set(recorded) - set(got))
    return f"kept {len(got)} tokens, recorded {len(recorded)}; not recorded: {extra[:5]}, missing: {missing[:5]}"


def run_folder(
    folder: Path, device: torch.device = CPU, tolerance: float = LOGIT_TOLERANCE, n: int | None = None
) -> Iterator[CaseOutcome]:
    """Replay the first `n` cases of a folder (None: all), in index order, in float32 on a device.

    A case that cannot be replayed counts as a mismatch and says why.
    """
    for entry in load_index(folder)[:n]:
        case = read_case(folder, entry["file"])
        try:
            outcome = compare(case, replay(folder, case, method_of(case), device), tolerance)
        except NotReplayableError as error:
            outcome = CaseOutcome(str(case.get("id", entry["file"])), float("nan"), f"not replayable: {error}")
        except (LookupError, TypeError, AttributeError, RuntimeError) as error:
            # a field that is there and holds something else
            why = f"not replayable: a damaged case ({type(error).__name__}: {one_line(error)}): {MEND}"
            outcome = CaseOutcome(str(case.get("id", entry["file"])), float("nan"), why)
        yield outcome


if __name__ == "__main__":
    main(sys.argv[1:])
