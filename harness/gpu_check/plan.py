"""What is run, as data: stages, methods with budgets, how many questions, and the bounds that results are held to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.core.paths import TOP


@dataclass(frozen=True)
class MethodAtBudget:
    """A method with its budget as typed and its knobs. `answers`: whose committed answers it must give, if not its
    own."""

    method: str
    budget: str | None = None
    knobs: Mapping[str, Any] = field(default_factory=dict)
    answers: str | None = None

    @property
    def label(self) -> str:
        knobs = ",".join(f"{k}={v}" for k, v in self.knobs.items())
        return " ".join(part for part in (self.method, self.budget, knobs) if part)


NONE = MethodAtBudget("none")
#: the shipped methods, one a file: read without importing them, for that needs torch
SHIPPED = tuple(
    module.removeprefix("methods.")
    for module in json.loads((TOP / "methods" / "shipped.json").read_text())
    if not module.startswith("methods._")
)
#: what takes no budget, what takes no number of tokens or was measured at one alone, and knobs that reach other code
WITHOUT_BUDGET = ("none", "knockout")
OTHER_BUDGETS = {"vtw": ("native", "calibrated"), "vscan": ("64",), "mmtok": ("64",)}
OTHER_CODE = (
    MethodAtBudget("cdpruner", "64", {"relevance": "none"}),
    MethodAtBudget("prumerge", "64", {"plus": True}),
)
#: every shipped method at two budgets, where cells of both are kept; a method without a budget with the knobs that do
#: nothing, and with knobs that do
ARMS = (
    NONE,
    *(
        MethodAtBudget(method, budget)
        for method in SHIPPED
        if method not in WITHOUT_BUDGET
        for budget in OTHER_BUDGETS.get(method, ("64", "16"))
    ),
    *OTHER_CODE,
    MethodAtBudget("knockout", answers="none"),
    MethodAtBudget("knockout", knobs={"start": 1, "stop": 4, "vision_to_vision": True}, answers=""),
)
#: order and shares of the time; the longest stage comes last, so that a run cut off has the others
STAGES = {"goldens": 2, "equal": 3, "sweep": 1, "families": 1, "bench": 4}
#: seconds for all of them together, in a rehearsal on a CPU, and what is kept back for writing and leaving
LIMIT_S, REHEARSAL_S, RESERVE_S = 540, 1800, 15

#: answers in float32 that may differ from the committed ones, of all arms together: near ties between two words or two
#: tokens
NEAR_TIES = 4
#: shares of answers that must be equal in 16 bit, where rounding turns near ties: per arm, and over all arms (on a CPU
#: 0.96 and 0.99)
ARM_FLOOR, FLOOR = 0.75, 0.95
#: largest difference between the logits of `none` and of the bare model, as a share of the largest logit
LOGITS_SHARE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
#: largest difference from recorded logits on a GPU in float32 without TF32; on a CPU it is the replay's own tolerance
GOLDEN_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Size:
    """How much is run. `questions` are the first of the fixture, `singles` the first of these that are asked alone
    too."""

    dtypes: tuple[str, ...]
    arms: tuple[MethodAtBudget, ...]
    questions: int
    singles: int
    goldens: int
    sweep_arms: tuple[MethodAtBudget, ...]
    bench: Mapping[str, Any]
    #: settings of a bench of a family whose images differ in tokens; a family's name is a tiny model of it
    family: Mapping[str, Any]
    #: recorded runs at most, of a method in the bench, and of a piece of work whose busy time is measured
    repeats: int
    busy_repeats: int


SWEEP = (NONE, MethodAtBudget("fastv", "64"), MethodAtBudget("sparsevlm", "64"), MethodAtBudget("visipruner", "64"))
TINY_FAMILY: Mapping[str, Any] = {
    "model": "Qwen2.5-VL",
    "random_weights": True,
    "dtype": "float32",
    "budgets": ("25%",),
    "batches": (1,),
    "new_tokens": 2,
    "text_tokens": 8,
    "repeats": 1,
}
SIZES = {
    "full": Size(
        ("float32", "float16", "bfloat16"),
        ARMS,
        24,
        4,
        1000,
        (*SWEEP, MethodAtBudget("visionzip", "64"), MethodAtBudget("random", "64")),
        {
            "model": "llava-1.5-7b",
            "random_weights": True,
            "dtype": "bfloat16",
            "budgets": ("192", "128", "64"),
            "batches": (1, 8),
        },
        {
            "model": "qwen2.5-vl-7b",
            "random_weights": True,
            "dtype": "bfloat16",
            "methods": ("none", "random", "fastv", "visipruner", "hiprune", "divprune"),
            "budgets": ("25%", "11%"),
            "batches": (1,),
            "repeats": 5,
        },
        10,
        3,
    ),
    "small": Size(
        ("float32", "bfloat16"),
        tuple(arm for arm in ARMS if arm.budget != "64"),
        2,
        1,
        8,
        SWEEP,
        {
            "model": "mini",
            "random_weights": True,
            "budgets": ("64",),
            "batches": (1, 2),
            "new_tokens": 3,
            "text_tokens": 20,
        },
        {**TINY_FAMILY, "methods": ("none", "fastv", "visipruner", "hiprune")},
        2,
        1,
    ),
    "smallest": Size(
        ("float32",),
        (NONE, MethodAtBudget("fastv", "64"), MethodAtBudget("visipruner", "16")),
        2,
        1,
        1,
        SWEEP[1:2],
        {
            "model": "mini",
            "random_weights": True,
            "methods": ("none", "fastv"),
            "layers": 4,
            "budgets": ("64",),
            "batches": (1,),
            "new_tokens": 2,
            "text_tokens": 8,
        },
        {**TINY_FAMILY, "methods": ("none", "fastv")},
        1,
        1,
    ),
}
