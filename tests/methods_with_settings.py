"""Every registered method with the knobs that reach other code than its defaults: the list that all suites use.

A suite chooses how many tokens stay. The suite of costs runs all of `SETTINGS`. The conformance kit, the mini model and
the pretend device take seconds a method: they run the settings that are `everywhere`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from harness.core import budget as budgets
from harness.core.shape import PromptShape
from harness.method import Method, build, registered


class MethodSetting(NamedTuple):
    """A method by name. `budget`: "count" for a number of tokens, "native" for its published defaults, "" for none.

    `everywhere` is False where another setting reaches the same code of the engine.
    """

    method: str
    budget: str = "count"
    knobs: Mapping[str, Any] = {}
    everywhere: bool = True

    def asked(self, tokens: int) -> str | None:
        """The budget as a user writes it."""
        return {"count": str(tokens), "native": "native", "": None}[self.budget]

    def build(self, tokens: int, prompt: PromptShape) -> Method:
        """The method ready for a model; `tokens` stay where the budget is a count."""
        return build(self.method, budgets.parse(self.asked(tokens)), self.knobs, prompt)


#: layers fit a decoder of eight
SETTINGS: dict[str, MethodSetting] = {
    "none": MethodSetting("none", ""),
    "random": MethodSetting("random"),
    "random in the model": MethodSetting("random", knobs={"boundary": 3}),
    "uniform": MethodSetting("uniform"),
    "first": MethodSetting("first"),
    "pooling": MethodSetting("pooling"),
    "downsample": MethodSetting("downsample"),
    "fastv": MethodSetting("fastv"),
    "fastv native": MethodSetting("fastv", "native"),
    "fastv at layer 7": MethodSetting("fastv", knobs={"boundary": 7}, everywhere=False),
    "sparsevlm": MethodSetting("sparsevlm"),
    "sparsevlm native": MethodSetting("sparsevlm", "native"),
    "sparsevlm official table": MethodSetting("sparsevlm", "", {"retain": 64}, everywhere=False),
    "sparsevlm plus": MethodSetting("sparsevlm", knobs={"plus": True}),
    "sparsevlm plus official": MethodSetting(
        "sparsevlm", "", {"retain": 64, "plus": True, "max_heads": 3}, everywhere=False
    ),
    "sparsevlm in the first layers": MethodSetting("sparsevlm", knobs={"stages": (0, 1, 2)}, everywhere=False),
    "pyramiddrop": MethodSetting("pyramiddrop"),
    "pyramiddrop native": MethodSetting("pyramiddrop", "native"),
    "pyramiddrop down to none": MethodSetting(
        "pyramiddrop", "", {"layers": (1, 2, 5, 9), "ratios": (1.0, 0.33, 0.0, 0.0)}, everywhere=False
    ),
    "dart": MethodSetting("dart"),
    "dart native": MethodSetting("dart", "native", everywhere=False),
    "dart official": MethodSetting("dart", "", {"truncation": 29, "layer": 3, "visual_pivots": 3, "text_pivots": 6}),
    "dart ratio": MethodSetting("dart", "", {"reduction_ratio": 0.778, "text_pivots": 0}, everywhere=False),
    "v2drop": MethodSetting("v2drop"),
    "v2drop native": MethodSetting("v2drop", "native"),
    "v2drop layer by layer": MethodSetting(
        "v2drop", "", {"layers": (1, 2, 3, 6), "ratios": (0.9, 0.5, 1.0, 0.4)}, everywhere=False
    ),
    "visionzip": MethodSetting("visionzip"),
    "visionzip official": MethodSetting("visionzip", "", {"dominant": 11, "contextual": 5}),
    "visionzip without contextual": MethodSetting("visionzip", "", {"dominant": 9, "contextual": 0}, everywhere=False),
    "prumerge": MethodSetting("prumerge"),
    "prumerge native": MethodSetting("prumerge", "native"),
    "prumerge plus": MethodSetting("prumerge", knobs={"plus": True}),
    "prumerge plus native": MethodSetting("prumerge", "native", {"plus": True}, everywhere=False),
    "prumerge ratio": MethodSetting("prumerge", "", {"ratio": 0.2}, everywhere=False),
    "visipruner": MethodSetting("visipruner"),
    "visipruner native": MethodSetting("visipruner", "native"),
    "visipruner paper": MethodSetting("visipruner", knobs={"variant": "paper"}),
    "visipruner half": MethodSetting("visipruner", knobs={"layer0": "half"}),
    "visipruner without shallow": MethodSetting("visipruner", knobs={"shallow": False}),
    "visipruner shallow only": MethodSetting("visipruner", "native", {"middle": False}, everywhere=False),
    "visipruner without deep": MethodSetting(
        "visipruner", knobs={"deep": False, "shallow_mid_layer": 0}, everywhere=False
    ),
    "visipruner fires and exits": MethodSetting(
        "visipruner", knobs={"layer_threshold": 1.0, "exit_threshold": -1.0}, everywhere=False
    ),
    "visipruner thresholds": MethodSetting(
        "visipruner",
        "native",
        {"layer_threshold": 1.0, "tokens_threshold": 0.5, "exit_threshold": -1.0},
        everywhere=False,
    ),
    "visipruner paper, fires and exits": MethodSetting(
        "visipruner", knobs={"variant": "paper", "layer_threshold": 1.0, "exit_threshold": -1.0}, everywhere=False
    ),
    "knockout": MethodSetting("knockout", ""),
    "knockout mask both ways": MethodSetting("knockout", "", {"start": 1, "stop": 6, "vision_to_vision": True}),
    "knockout mask": MethodSetting("knockout", "", {"start": 2, "stop": 7, "how": "mask"}),
    "knockout redirect, drop": MethodSetting(
        "knockout",
        "",
        {"start": 1, "stop": 6, "how": "redirect", "sink": 3, "vision_to_vision": True, "drop_from": 7},
    ),
    "knockout zero": MethodSetting("knockout", "", {"start": 1, "stop": 4, "how": "zero", "vision_to_vision": True}),
    "knockout first redirect, then zero, then drop": MethodSetting(
        "knockout",
        "",
        {"stop": 5, "how": "zero", "first_how": "redirect", "sink": 3, "vision_to_vision": True, "drop_from": 6},
        everywhere=False,
    ),
    "knockout redirect from layer 0": MethodSetting(
        "knockout", "", {"stop": 4, "how": "redirect", "sink": 2, "drop_from": 6}
    ),
    "knockout drops at once": MethodSetting("knockout", "", {"drop_from": 0}, everywhere=False),
    "fastervlm": MethodSetting("fastervlm"),
    "vispruner": MethodSetting("vispruner"),
    "vispruner without important": MethodSetting("vispruner", knobs={"important_ratio": 0.0}, everywhere=False),
    "vispruner without rounds": MethodSetting("vispruner", knobs={"important_ratio": 1.0}, everywhere=False),
    "divprune": MethodSetting("divprune"),
    "divprune native": MethodSetting("divprune", "native"),
    "divprune ratio": MethodSetting("divprune", "", {"ratio": 0.2}, everywhere=False),
    "cdpruner": MethodSetting("cdpruner"),
    "cdpruner without the question": MethodSetting("cdpruner", knobs={"relevance": "none"}),
    "hiprune": MethodSetting("hiprune"),
    "hiprune native": MethodSetting("hiprune", "native"),
    "hiprune more buffers than room": MethodSetting(
        "hiprune", knobs={"alpha": 1.0, "object_layer": 2}, everywhere=False
    ),
    "holov": MethodSetting("holov"),
    "holov native": MethodSetting("holov", "native"),
    "holov uneven strips": MethodSetting("holov", knobs={"strips": 5, "alpha": 1.0}, everywhere=False),
    "vscan": MethodSetting("vscan"),
    "vscan native": MethodSetting("vscan", "native"),
    "vscan two stages": MethodSetting(
        "vscan", "", {"counts": (40, 20, 9), "layers": (2, 5), "window": 3, "local_layer": 0}, everywhere=False
    ),
    "vscan before the model": MethodSetting("vscan", knobs={"layers": ()}, everywhere=False),
    "mmtok": MethodSetting("mmtok"),
    "mmtok ratio": MethodSetting("mmtok", "", {"ratio": 0.3, "spared": 0, "alpha": 2.0}, everywhere=False),
    "mmtok by distance": MethodSetting("mmtok", knobs={"select": "tower-distance"}),
    "fitprune": MethodSetting("fitprune"),
    "fitprune scheme": MethodSetting("fitprune", "", {"scheme": (5, 0, 9, 1, 0, 12, 3)}),
    "vtw": MethodSetting("vtw", "native"),
    "vtw renumbered": MethodSetting("vtw", "", {"layer": 3, "renumber": True}),
    "vtw at once": MethodSetting("vtw", "", {"layer": 1}, everywhere=False),
}
#: settings that every suite runs
EVERYWHERE = {label: setting for label, setting in SETTINGS.items() if setting.everywhere}
#: settings with a knob that is not its default
WITH_KNOBS = {label: setting for label, setting in SETTINGS.items() if setting.knobs}


def shipped() -> dict[str, type[Method]]:
    """The registered methods of methods/, without those that a test registered."""
    return {name: cls for name, cls in registered().items() if cls.__module__.startswith("methods.")}


def reached(method: str, knobs: Mapping[str, Any]) -> set[tuple[str, ...]]:
    """What of a method these knobs reach: each knob, and its value where values are words or switches."""
    return {
        (method, knob, str(value)) if isinstance(value, bool | str) else (method, knob) for knob, value in knobs.items()
    }
