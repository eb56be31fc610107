"""Replay recordings of official codes on families other than LLaVA-1.5, through the same engine and `build`.

A case names its `family`. `RULES` say what a user would type for a method's recorded knobs, `FAMILIES` how a model and
the input of a case are made. Positions are lists of one or three numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, DynamicCache

from harness.core.budget import Budget
from harness.engine.attach import attach
from harness.engine.run import EngineRun
from harness.method import Method, build
from harness.models.adapters import Adapter, adapter_for
from harness.proof import golden_next
from harness.proof.golden_compare import (
    LOGIT_TOLERANCE,
    VISUAL_TOLERANCE,
    Case,
    CaseOutcome,
    sets_apart,
    unlike_lengths,
    unlike_norms,
    unlike_rows,
)
from harness.proof.golden_files import read_json
from harness.proof.golden_methods import AsTyped
from harness.proof.golden_models import NotReplayableError, tensors

#: of the largest score in a list
SCORE_TOLERANCE = 5e-5
#: scores of a case, and what a method calls them
SCORES = {
    "object_scores": "objects",
    "register_scores": "registers",
    "local_scores": "local",
    "global_scores": "global",
}
#: of these the method has sums over the queries of an image, its patches, and the case has means
SUMMED = ("local_scores", "global_scores")
#: ids in front of and behind an image's tokens, and of one token, in the recorded prompts of Qwen-VL
START, IMAGE, END = 592, 590, 593


class Prepared(NamedTuple):
    """A model, and what a prefill of the case is called with."""

    adapter: Adapter
    inputs: Mapping[str, Tensor]


class FamilyRun(NamedTuple):
    """What one run of a case did. Per decoder layer: `lengths`, `norms` and `last_norms` of its output, `origins` of
    its visual tokens. `visual (v, d)` float64: the visual tokens that the first layer receives. `places`: per axis, of
    the tokens that it receives; `decode`: per step, the (cos, sin) by which the new token is rotated there."""

    adapter: Adapter
    logits: list[Tensor]
    lengths: list[int]
    norms: list[float]
    last_norms: list[float]
    origins: list[list[int]]
    visual: Tensor
    places: list[list[int]]
    decode: list[tuple[Tensor, Tensor]]
    run: EngineRun


# --------------------------------------------------------------------------------------------------------------- models


def _qwen(folder: Path, case: Case, device: torch.device) -> Prepared:
    adapter = _qwen_model(folder, case["model"], device)
    vision = adapter.model.config.vision_config
    names = case["input"] if isinstance(case["input"], list) else [case["input"]]
    ids: list[int] = []
    pixels, grids = [], case["image_grid_thw"]
    for name, (_, rows, columns) in zip(names, grids, strict=True):
        given = tensors(folder / "inputs" / f"{name}.safetensors")
        n = rows * columns // vision.spatial_merge_size**2
        ids += [*given["pre_ids"].tolist(), START, *[IMAGE] * n, END, *given["post_ids"].tolist()]
        pixels.append(cut(given["coarse"].float(), (rows, columns), vision))
    row = torch.tensor([ids], device=device)
    return Prepared(
        adapter,
        {
            "input_ids": row,
            "mm_token_type_ids": (row == IMAGE).int(),
            "pixel_values": torch.cat(pixels).to(device),
            "image_grid_thw": torch.tensor(grids, device=device),
        },
    )


def cut(coarse: Tensor, grid: tuple[int, int], vision: Any) -> Tensor:
    """(patches, inputs): an image of `coarse (3, h, w)` cells as Qwen's processor cuts it: four neighbours stand
    together, and the image stands in every frame."""
    (rows, columns), patch, merge = grid, vision.patch_size, vision.spatial_merge_size
    times = rows * patch // coarse.shape[1]
    image = coarse.repeat_interleave(times, 1).repeat_interleave(times, 2)
    parts = image.view(3, rows // merge, merge, patch, columns // merge, merge, patch)
    patches = parts.permute(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
    return patches.expand(-1, -1, -1, -1, -1, vision.temporal_patch_size, -1, -1).reshape(rows * columns, -1)


@lru_cache(maxsize=4)
def _qwen_model(folder: Path, name: str, device: torch.device) -> Adapter:
    spec = read_json(folder / "models" / "models.json").get(name)
    if spec is None:
        raise NotReplayableError(f"models/models.json has no model {name!r}")
    given = {key: spec[key] for key in ("text_config", "vision_config", "image_token_id", "video_token_id")}
    given["text_config"] = {**given["text_config"], "bos_token_id": None, "eos_token_id": None}
    config = AutoConfig.for_model(spec["family"], **given)
    adapter = adapter_for(AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").eval())
    parts: dict[str, dict[str, Tensor]] = {}
    for file in spec["weights"]:  # a later file's tower stands in place of an earlier one's
        found: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors(folder / file.split()[0]).items():
            part, _, rest = key.partition(".")
            found.setdefault(part, {})[rest] = value.float()
        parts |= found
    adapter.text.load_state_dict(parts["model"])
    adapter.tower.load_state_dict(parts["visual"])
    adapter.head.load_state_dict(parts["lm_head"])
    adapter.model.to(device)
    return adapter


FAMILIES: dict[str, Callable[[Path, Case, torch.device], Prepared]] = {
    "qwen2_5_vl": _qwen,
    "qwen2_vl": _qwen,
    "llava_next": lambda folder, case, device: Prepared(*golden_next.prepared(folder, case, device)),
}


# ---------------------------------------------------------------------------------------------------------------- rules


def _vanilla(case: Case) -> AsTyped:
    return AsTyped("none", Budget("none"), {})


def _hiprune(case: Case) -> AsTyped:
    official = {"flash_attention_2": "qwen", "eager": "qwen-eager"}[case["vision_attention"]]
    knobs = {"alpha": case["alpha"], "object_layer": case["object_layer"], "official": official}
    return AsTyped("hiprune", Budget("kept", case["budget"]), knobs)


def _dart(case: Case) -> AsTyped:
    config = case["DART_config"]
    pivots = {"visual_pivots": config["pivot_image_token"], "text_pivots": config["pivot_text_token"]}
    # max_num_trunction is read there, and decides nothing
    return AsTyped(
        "dart", Budget("none"), {"reduction_ratio": config["reduction_ratio"], "layer": config["K"], **pivots}
    )


def _vscan(case: Case) -> AsTyped:
    official = {"flash_attention_2": "qwen-flash", "sdpa": "qwen"}[case["vision_attention"]]
    ratios = (case["image_token_ratio"], *case["image_token_ratio_list"])
    knobs = {"ratios": ratios, "layers": tuple(case["layer_list"]), "window": case["window_size"], "official": official}
    return AsTyped("vscan", Budget("none"), knobs)


def _mmtok(case: Case) -> AsTyped:
    knobs = {"ratio": case["retain_ratio"], "alpha": case["alpha"]}
    temperatures = {"text_temperature": case["tv_temperature"], "vision_temperature": case["vv_temperature"]}
    return AsTyped("mmtok", Budget("none"), {**knobs, **temperatures})


def _mmtok_by_distance(case: Case) -> AsTyped:
    """Called DivPrune there, and no DivPrune."""
    return AsTyped("mmtok", Budget("none"), {"ratio": case["retain_ratio"], "select": "tower-distance"})


#: by the folder of a method's cases
RULES: dict[str, Callable[[Case], AsTyped]] = {
    "vanilla": _vanilla,
    "hiprune": _hiprune,
    "dart_qwen": _dart,
    "visionzip_next": golden_next.visionzip,
    "hiprune_next": golden_next.hiprune,
    "mmtok": _mmtok,
    "divprune_mmtok": _mmtok_by_distance,
    "vscan": _vscan,
    "vscan_next": golden_next.vscan,
}


def asked_of(case: Case) -> AsTyped:
    """What a user would type to run a case's method. Raises NotReplayableError where no rule says so."""
    name = case.get("method")
    if name not in RULES:
        raise NotReplayableError(f"no rule says how a recording of {name!r} on {case.get('family')} maps to knobs")
    try:
        return RULES[name](case)
    except (LookupError, TypeError) as error:
        raise NotReplayableError(
            f"a recording of {name} without the knobs that its rule reads ({type(error).__name__}: {error})"
        ) from None


def prepared(folder: Path, case: Case, device: torch.device) -> Prepared:
    """The model and the input of a case. Raises NotReplayableError for a family that is not here."""
    family = case.get("family")
    if family not in FAMILIES:
        raise NotReplayableError(f"expected a family of {', '.join(FAMILIES)}, found {family!r}")
    return FAMILIES[family](folder, case, device)


def method_of(case: Case, given: Prepared) -> Method:
    """The method and knobs that a case recorded, built for its model as an evaluation builds it."""
    asked = asked_of(case)
    prompt = given.adapter.usual
    if asked.budget.unit == "kept":  # of this very image, which may be larger than a usual one
        facts = {name: given.inputs.get(name) for name in given.adapter.image_facts}
        counts = [int((given.inputs["input_ids"] == given.adapter.image_token_ids[0]).sum())]
        prompt = type(prompt)(prompt.decoder, given.adapter.images(counts, facts)[0])
    return build(asked.method, asked.budget, asked.knobs, prompt)


# ---------------------------------------------------------------------------------------------------------------- a run


def replay(case: Case, given: Prepared, method: Method) -> FamilyRun:
    """Run a case's prompt and its recorded decode tokens with `method`; the logits come back to the CPU."""
    adapter, inputs = given
    norms: list[tuple[float, float]] = []
    entered: list[Tensor] = []
    turned: list[tuple[Tensor, Tensor]] = []

    def left(_module: Any, _args: Any, out: Any) -> None:
        states = out[0] if isinstance(out, tuple) else out
        norms.append((float(states.norm()), float(states[0, -1].norm())))

    def enters(_module: Any, args: Any, kwargs: Any) -> None:
        entered.append(args[0])
        turned.append(kwargs["position_embeddings"])

    device = inputs["input_ids"].device
    # the recorded question is a list of tokens, the first of them in place of "Question:"
    asked = case.get("question_ids")
    with attach(adapter.model, method, tokenizer=lambda _words: asked or []) as run, torch.inference_mode():
        run.questions = None if asked is None else [""]
        handles = [layer.register_forward_hook(left) for layer in adapter.layers]
        handles.append(adapter.layers[0].register_forward_pre_hook(enters, with_kwargs=True))
        cache = DynamicCache(config=adapter.model.config.text_config)
        try:
            out = adapter.model(**inputs, past_key_values=cache)
            prefill, layouts, logits = list(norms), run.layouts, [out.logits[0, -1].cpu()]
            for token in case["tokens"][: len(case["logits"]) - 1]:
                out = adapter.model(input_ids=torch.tensor([[token]], device=device), past_key_values=cache)
                logits.append(out.logits[0, -1].cpu())
        finally:
            for handle in handles:
                handle.remove()
        lengths = [layer.keys.shape[2] - len(logits) + 1 for layer in cache.layers]
    first = layouts[0]
    return FamilyRun(
        adapter=adapter,
        logits=logits,
        lengths=lengths,
        norms=[whole for whole, _ in prefill],
        last_norms=[last for _, last in prefill],
        origins=[layout.origin[0][layout.visual[0]].tolist() for layout in layouts],
        visual=entered[0][0][first.visual[0]].double().cpu(),
        places=first.positions[0].T.tolist(),
        decode=turned[1:],
        run=run,
    )


def compare(case: Case, got: FamilyRun, tolerance: float = LOGIT_TOLERANCE) -> CaseOutcome:
    """Everything a case recorded against a run; the first thing that differs is named."""
    apart = [(mine - torch.tensor(wanted)).abs().max() for mine, wanted in zip(got.logits, case["logits"], strict=True)]
    largest = float(torch.stack(apart).max())
    found = _first_difference(case, got)
    if found is None and not largest <= tolerance:
        found = f"logits differ by {largest:.2e}, tolerance {tolerance:.0e}"
    return CaseOutcome(str(case["id"]), largest, found)


def _first_difference(case: Case, got: FamilyRun) -> str | None:
    stages = list(case.get("stages", ()))
    if "kept" in case:
        stages.append({"first_pruned_layer": 0, "kept": case["kept"]})
    for stage in stages:
        if "window" in stage:
            if unlike := golden_next.unlike_window(stage, got.origins):
                return unlike
            continue
        layer = stage["first_pruned_layer"]
        if got.origins[layer] != stage["kept"]:
            return f"layer {layer}: {sets_apart(got.origins[layer], stage['kept'])}"
        layout = got.run.layouts[layer]
        places = layout.positions[0][layout.visual[0]].T.tolist()
        if "kept_positions" in stage and places != stage["kept_positions"]:
            return f"layer {layer}: kept tokens stand at {_ends(places)}, recorded {_ends(stage['kept_positions'])}"
    if unlike := unlike_lengths(got.lengths, case["q_len"]):
        return unlike
    if "kept_per_tile" in case and (unlike := golden_next.unlike_tiles(case, got.run)):
        return unlike
    if "prefill_positions" in case and got.places != case["prefill_positions"]:
        return f"the first layer's tokens stand at {_ends(got.places)}, recorded {_ends(case['prefill_positions'])}"
    for name in ("visual_norm", "merged_norm"):
        norms = got.visual.norm(dim=1).tolist()
        if name in case and (unlike := unlike_rows("norm", norms, case[name], VISUAL_TOLERANCE)):
            return unlike
    for name, key in SCORES.items():
        rows = prod(case["image_grid_thw"][0]) if name in SUMMED and name in case else 1
        recorded = [rows * score for score in case.get(name, ())]
        if name in case and (unlike := _unlike_scores(name, got.run.memo.get(key), recorded)):
            return unlike
    for stage, scores in zip(case.get("stages", ()), got.run.memo.get("stages", ()), strict=False):
        scores = scores[:, : stage.get("window")]
        if unlike := _unlike_scores(f"scores of layer {stage['rank_layer']}", scores, stage["scores"]):
            return unlike
    if "local" in case and (unlike := _unlike_picks("local", got.run.memo.get("first"), case["local"])):
        return unlike
    if case.get("order") and (unlike := _unlike_order(got.run.memo.get("picks"), case["order"])):
        return unlike
    if "pivots_visual" in case and (unlike := _unlike_pivots(case, got)):
        return unlike
    for step, (turned, recorded) in enumerate(zip(got.decode, case["decode"], strict=False)):
        place = torch.tensor(recorded["position_id"], device=turned[0].device).view(1, 1, -1)
        if not all(map(torch.equal, turned, got.adapter.rotary(turned[0], place))):
            return f"decode step {step + 1} does not stand at {recorded['position_id']}, as recorded"
    return unlike_norms("norm of layer {}'s output", got.norms, case["hidden_norm"]) or unlike_norms(
        "norm of the last row of layer {}'s output", got.last_norms, case["hidden_last_norm"]
    )


def _ends(places: list[list[int]]) -> str:
    return " and ".join(str([axis[end] for axis in places]) for end in (0, -1))


def _unlike_scores(name: str, scores: Tensor | None, recorded: list[float]) -> str | None:
    if scores is None or scores.shape[1] != len(recorded):
        return f"no {name} of {len(recorded)} tokens were made"
    apart = (scores[0].double().cpu() - torch.tensor(recorded, dtype=torch.float64)).abs().max().item()
    most = SCORE_TOLERANCE * max(map(abs, recorded))
    return None if apart <= most else f"{name} differ by {apart:.2e}, tolerance {most:.0e}"


def _unlike_order(picks: Tensor | None, recorded: list[int]) -> str | None:
    """Tokens in the order of picking."""
    found = [] if picks is None else picks[0].tolist()
    if found == recorded:
        return None
    first = next((i for i, (a, b) in enumerate(zip(found, recorded, strict=False)) if a != b), len(found))
    return f"pick {first + 1} is {found[first : first + 1]}, recorded {recorded[first : first + 1]}"


def _unlike_picks(name: str, picks: Tensor | None, recorded: list[int]) -> str | None:
    """Tokens that were picked, in whatever order."""
    if picks is None:
        return f"no {name} tokens were picked"
    found = picks[0].nonzero().flatten().tolist()
    return None if found == sorted(recorded) else f"{name}: {sets_apart(found, sorted(recorded))}"


def _unlike_pivots(case: Case, got: FamilyRun) -> str | None:
    """DART's pivots, whatever their turn; text pivots are counted from the first token behind the image."""
    if "pivots" not in got.run.memo:
        return "no pivots were chosen"
    pivots, n = got.run.memo["pivots"][0].tolist(), case["n_visual"]
    recorded = sorted(case["pivots_visual"] + [n + text for text in case["pivots_text"]])
    return None if sorted(pivots) == recorded else f"pivots {sorted(pivots)}, recorded {recorded}"


def outcome(folder: Path, case: Case, device: torch.device, tolerance: float = LOGIT_TOLERANCE) -> CaseOutcome:
    """A case replayed with the method that it recorded. Raises NotReplayableError as `asked_of` and `prepared`."""
    asked_of(case)  # a method that is not here is named before a model that is not
    given = prepared(folder, case, device)
    return compare(case, replay(case, given, method_of(case, given)), tolerance)
