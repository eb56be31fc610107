"""From the knobs that a case recorded, in the names of its official code, to a method built as `make eval` builds it.

A rule gives the budget and our knobs. What the official code calls a number of tokens is the budget here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness import method as registry
from harness.core.budget import Budget
from harness.core.shape import PromptShape
from harness.method import Method, Run, build
from harness.proof.golden_models import NotReplayableError
from methods.fitprune import DEPTH, SCHEMES

Case = Mapping[str, Any]
_NO_BUDGET, _NATIVE = Budget("none"), Budget("native")


class AsTyped(NamedTuple):
    """What a user would type: method, budget and knobs."""

    method: str
    budget: Budget
    knobs: Mapping[str, Any]


def method_of(case: Case, prompt: PromptShape) -> Method:
    """The method and knobs that a case recorded, for prompts like this one (`golden_models.prompt_of`).

    Raises NotReplayableError if there is no such method here, or no rule for its knobs, and PrunebenchError for knobs
    that the method refuses.
    """
    name = case.get("method")
    asked = asked_of(case)
    method = build(asked.method, asked.budget, asked.knobs, prompt)
    return _with_noise(method, case) if name == "sparsevlm" else method


def asked_of(case: Case) -> AsTyped:
    """What a user would type to run a case's method. Raises as `method_of`."""
    name = case.get("method")
    if name == "vanilla":
        return _none(case)
    if not isinstance(name, str) or name not in registry.registered():
        raise NotReplayableError(f"no registered method is called {name!r} (`prunebench methods` lists them)")
    if name not in RULES:
        raise NotReplayableError(f"no rule says how a recording of {name!r} maps to knobs")
    try:
        return RULES[name](case)
    except NotReplayableError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise NotReplayableError(
            f"a recording of {name} without the knobs that its rule reads ({type(error).__name__}: {error})"
        ) from None


def _none(case: Case) -> AsTyped:
    return AsTyped("none", _NO_BUDGET, {})


def _count(name: str, among: Case) -> Budget:
    """A recorded number of tokens as a budget."""
    value = among[name]
    if type(value) is not int or value < 1:
        raise NotReplayableError(f"{name}: expected a number of tokens from 1, found {value!r}")
    return Budget("kept", value)


def _selected(case: Case) -> None:
    """Raise NotReplayableError unless the tower's layer is the one that LLaVA-1.5 projects."""
    if case.get("select_layer", -2) != -2:
        raise NotReplayableError(
            f"select_layer: expected -2, the layer that is projected, found {case['select_layer']}"
        )


def _fastv(case: Case) -> AsTyped:
    k = case["K"] if "K" in case else (case.get("fastv_config") or {}).get("fast_v_agg_layer")
    return _none(case) if k is None else AsTyped("fastv", _count("n_kept", case), {"boundary": k})


def _sparsevlm(case: Case) -> AsTyped:
    # the official layers as they are, whatever the depth
    knobs = {"retain": case["retain"], "plus": case["version"] == "2_0", "stages": (2, 6, 15)}
    return AsTyped("sparsevlm", _NO_BUDGET, knobs)


def _visipruner(case: Case) -> AsTyped:
    config = case["pruning_config"]
    if config is None:
        return _none(case)
    given = {k: config[k] for k in ("shallow_mid_layer", "layer_threshold", "tokens_threshold") if k in config}
    stages = {name: name in config["mode"] for name in ("shallow", "middle", "deep")}
    layer0 = "merge" if case["size"] == "7b" else "half"
    return AsTyped("visipruner", _NATIVE, {**stages, **given, "layer0": layer0})


def _visionzip(case: Case) -> AsTyped:
    return AsTyped("visionzip", _NO_BUDGET, {name: case["knobs"][name] for name in ("dominant", "contextual")})


def _fastervlm(case: Case) -> AsTyped:
    return AsTyped("fastervlm", _count("visual_token_num", case["knobs"]), {})


def _vispruner(case: Case) -> AsTyped:
    knobs = {"important_ratio": case["knobs"]["important_ratio"]}
    return AsTyped("vispruner", _count("visual_token_num", case["knobs"]), knobs)


def _divprune(case: Case) -> AsTyped:
    return AsTyped("divprune", _NO_BUDGET, {"ratio": case["knobs"]["subset_ratio"]})


def _cdpruner(case: Case) -> AsTyped:
    return AsTyped("cdpruner", _count("visual_token_num", case["knobs"]), {})


def _prumerge(case: Case) -> AsTyped:
    given = case["knobs"]
    plus = {"plus": given["plus"]}
    if given["adaptive"]:
        return AsTyped("prumerge", _NATIVE, plus)
    return AsTyped("prumerge", _NO_BUDGET, {**plus, "ratio": given["reduction_ratio"]})


def _hiprune(case: Case) -> AsTyped:
    _selected(case)
    knobs = {"alpha": case["alpha"], "object_layer": case["object_layer"]}
    return AsTyped("hiprune", _count("retention", case), knobs)


def _holov(case: Case) -> AsTyped:
    _selected(case)
    knobs = {"strips": case["num_patches"], "alpha": case["alpha"]}
    return AsTyped("holov", _count("new_image_token_num", case), knobs)


def _v2drop(case: Case) -> AsTyped:
    layers, ratios = (tuple(column) for column in zip(*case["schedule"], strict=True))
    return AsTyped("v2drop", _NO_BUDGET, {"layers": layers, "ratios": ratios})


def _dart(case: Case) -> AsTyped:
    config = case["DART_config"]
    limit, n = config["max_num_trunction"], config["image_token_length"]
    if case.get("text_length") is not None:  # the official branch for LLaVA-NeXT
        limit = min(config["retain_token_num_for_llava_next"], n - config["pivot_image_token"])
    tokens = {"reduction_ratio": config["reduction_ratio"]} if limit is None else {"truncation": limit}
    pivots = {"visual_pivots": config["pivot_image_token"], "text_pivots": config["pivot_text_token"]}
    return AsTyped("dart", _NO_BUDGET, {**tokens, **pivots, "layer": config["K"]})


def _pyramiddrop(case: Case) -> AsTyped:
    knobs = {"layers": case["layer_list"], "ratios": case["image_token_ratio_list"]}
    return AsTyped("pyramiddrop", _NO_BUDGET, knobs)


def _vtw(case: Case) -> AsTyped:
    # a K beyond the last layer is the official name of the unpruned model
    if case["k"] >= case["n_layers"]:
        return _none(case)
    return AsTyped("vtw", _NO_BUDGET, {"layer": case["k"], "renumber": case["pe_type"] != "keep"})


def _fitprune(case: Case) -> AsTyped:
    ratio = case["reduction_ratio"]
    # the official code takes the first layers of a schedule that was made for 32
    scheme = case["scheme"] if ratio is None else ((0,) * DEPTH if ratio == 0 else SCHEMES[ratio])[: case["n_layers"]]
    if not any(scheme[:-1]):
        return _none(case)
    return AsTyped("fitprune", _NO_BUDGET, {"scheme": tuple(scheme)})


#: by the method that a case names
RULES: dict[str, Callable[[Case], AsTyped]] = {
    "fastv": _fastv,
    "sparsevlm": _sparsevlm,
    "visipruner": _visipruner,
    "visionzip": _visionzip,
    "fastervlm": _fastervlm,
    "vispruner": _vispruner,
    "divprune": _divprune,
    "cdpruner": _cdpruner,
    "prumerge": _prumerge,
    "hiprune": _hiprune,
    "holov": _holov,
    "v2drop": _v2drop,
    "dart": _dart,
    "pyramiddrop": _pyramiddrop,
    "vtw": _vtw,
    "fitprune": _fitprune,
}


def _with_noise(method: Method, case: Case) -> Method:
    """SparseVLM with the tie-breaking noise of the recording in place of its own."""
    stages = [s.get("density_noise") for s in case["stages"]]

    class Recorded(type(method)):  # type: ignore[misc]
        def density_noise(self, run: Run, row: int, stage: int, n: int) -> Tensor:
            drawn = stages[stage]
            return torch.zeros(n) if drawn is None else torch.tensor(drawn, dtype=torch.float32) * 1e-6

    return Recorded(**method.knobs())
