"""Recorded calibrations: VTW's layer by divergences, FitPrune's schedule by statistics and bisection.

They run through the functions of harness/analysis/, which `prunebench analyze` uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from harness.analysis import fitting, withdrawal
from harness.engine.attach import attach
from harness.method import Method
from harness.models.adapters import Features
from harness.models.adapters.llava import LlavaAdapter
from harness.proof import golden_models
from harness.proof.golden_compare import CaseOutcome
from harness.proof.golden_models import NotReplayableError, image_token
from methods.vtw import first_within

#: of recorded divergences, which hold seven digits, and of attention masses
KL_TOLERANCE, MASS_TOLERANCE = 1e-4, 1e-4
Case = Mapping[str, Any]


def outcome(folder: Path, case: Case, device: torch.device) -> CaseOutcome:
    """Everything that a calibration recorded against what ours finds; `largest`: of KLs the largest difference, of
    masses the largest relative one. Raises NotReplayableError for a calibration of another kind."""
    kinds = {("vtw", "findk"): _withdrawal, ("fitprune", "calibrate"): _fitting}
    kind = kinds.get((str(case.get("method")), str(case.get("variant"))))
    if kind is None:
        raise NotReplayableError(f"no calibration {case.get('variant')!r} of {case.get('method')!r} is known here")
    largest, mismatch = kind(Inputs(folder, case, device), case)
    return CaseOutcome(str(case["id"]), largest, mismatch)


class Inputs:
    """The recorded prompts of a calibration, and their model."""

    def __init__(self, folder: Path, case: Case, device: torch.device) -> None:
        self.names: Sequence[str] = case["inputs"]
        self._setups = {name: golden_models.setup_of(folder, {**case, "input": name}) for name in self.names}
        self._device = device
        self.adapter: LlavaAdapter = golden_models.model_of(folder, self._setups[self.names[0]], device)

    @property
    def depth(self) -> int:
        return self.adapter.shape.depth

    def ask(self, method: Method) -> None:
        """One prefill of every prompt, whose sample key is its name."""
        for name, setup in self._setups.items():
            pre, post = setup.inputs["pre_ids"].long(), setup.inputs["post_ids"].long()
            rows = setup.inputs["inputs_embeds"][0, pre.numel() : -post.numel()].to(self._device, setup.dtype)
            ids = torch.cat([pre, torch.full((len(rows),), image_token(self.adapter.usual)), post])[None]
            recording = (
                withdrawal.recording(self.adapter, method)
                if isinstance(method, withdrawal.Withdrawal)
                else nullcontext()
            )
            with recording, attach(self.adapter.model, method) as run, torch.inference_mode():
                run.samples = [name]
                self.adapter.model(
                    input_ids=ids.to(self._device), mm_encoder_outputs=self.adapter.outputs([Features(rows)])
                )


def _withdrawal(inputs: Inputs, case: Case) -> tuple[float, str | None]:
    def distributions(layer: int) -> Mapping[str, torch.Tensor]:
        method = withdrawal.Withdrawal(layer=layer)
        inputs.ask(method)
        return method.into.samples

    full = distributions(inputs.depth)
    found = withdrawal.divergences([distributions(k) for k in withdrawal.tried_layers(inputs.depth)], full)
    largest = 0.0
    for name, ours, recorded in zip(inputs.names, found, case["kl"], strict=True):
        for layer, a, b in zip(withdrawal.tried_layers(inputs.depth), ours, recorded, strict=True):
            largest = max(largest, abs(a - b))
            if not abs(a - b) <= KL_TOLERANCE:
                return largest, f"{name}: divergence of K = {layer} {a:.7g}, recorded {b:.7g}"
    means = withdrawal.means(found)
    for choice in case["choices"]:
        if (k := first_within(means, choice["eta"])) != choice["k"]:
            return largest, f"eta {choice['eta']:g} chooses K = {k}, recorded {choice['k']}"
    return largest, None


def _fitting(inputs: Inputs, case: Case) -> tuple[float, str | None]:
    statistics = fitting.Statistics()
    inputs.ask(statistics)
    largest = 0.0
    for name, masses in statistics.into.items():
        for field, ours in (("weightsum_cross", masses.cross), ("weightsum_self", masses.own)):
            for layer, (a, b) in enumerate(zip(ours, case[field][name], strict=True)):
                largest = max(largest, abs(a - b) / abs(b))
                if not abs(a - b) <= MASS_TOLERANCE * abs(b):
                    return largest, f"{name}: {field} of layer {layer} {a:.7g}, recorded {b:.7g}"

    def at(alpha: float) -> list[list[int]]:
        method = fitting.Fitting(alpha=alpha, masses=statistics.into)
        inputs.ask(method)
        return list(method.into.values())

    dims = case["flops_dims"]
    sizes = fitting.Sizes(dims["hidden"], dims["intermediate"])
    fit = fitting.bisect(at, case["reduction_ratio"], sizes, inputs.adapter.usual.n_visual)
    for step, recorded in zip(fit.steps, case["steps"], strict=True):
        wanted = fitting.Step(recorded["alpha"], recorded["budget_reached"], tuple(recorded["scheme"]))
        if step != wanted:
            return largest, f"found {step}, recorded {wanted}"
    if list(fit.last) != case["scheme"]:
        return largest, f"the last scheme is {fit.last}, recorded {case['scheme']}"
    return largest, None
