"""Everything that the author of a method imports.

`interface` documents the hooks, `ranking` the narrow base of methods that rank.
"""

from harness.core.shape import PromptShape, Share
from harness.method.build import build, check_budget, typed_knobs
from harness.method.checks import check_keep, check_layer
from harness.method.failures import PictureError, ScoresError
from harness.method.interface import (
    Attention,
    AttentionEdit,
    DecodePositions,
    Heads,
    Method,
    Places,
    Positions,
    Probabilities,
    Published,
    Question,
    Reduction,
    Rows,
    Run,
    Stream,
    TowerLook,
    Traits,
    What,
)
from harness.method.knob_values import TextTower
from harness.method.ranking import Ranking, keep_top
from harness.method.registry import method_class, raised, register, registered
from harness.method.source import record_shipped, source_of

__all__ = [
    "Attention",
    "AttentionEdit",
    "DecodePositions",
    "Heads",
    "Method",
    "PictureError",
    "Places",
    "Positions",
    "Probabilities",
    "PromptShape",
    "Published",
    "Question",
    "Ranking",
    "Reduction",
    "Rows",
    "Run",
    "ScoresError",
    "Share",
    "Stream",
    "TextTower",
    "TowerLook",
    "Traits",
    "What",
    "build",
    "check_budget",
    "check_keep",
    "check_layer",
    "keep_top",
    "method_class",
    "raised",
    "record_shipped",
    "register",
    "registered",
    "source_of",
    "typed_knobs",
]
