"""prunebench: evaluate and run visual-token pruning of multimodal language models.

`prune(model, "fastv", budget=64)` prunes a model inside a `with` block. `results(folder)`, `samples(folder)` and
`compare(side, side)` read what was measured. Everything that the author of a method needs is here too. torch is
imported with the first name that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prunebench import _own

_own.refuse()

if TYPE_CHECKING:
    from harness.core.costs import Costs
    from harness.core.errors import PrunebenchError
    from harness.engine.run import EngineRun
    from harness.library.frames import compare, results, samples
    from harness.library.pruning import prune
    from harness.library.version import __version__
    from harness.method import (
        Attention,
        AttentionEdit,
        DecodePositions,
        Heads,
        Method,
        PictureError,
        Places,
        Positions,
        Probabilities,
        PromptShape,
        Published,
        Question,
        Ranking,
        Reduction,
        Rows,
        Run,
        ScoresError,
        Share,
        Stream,
        TextTower,
        TowerLook,
        Traits,
        What,
        build,
        check_budget,
        check_keep,
        check_layer,
        keep_top,
        method_class,
        raised,
        record_shipped,
        register,
        registered,
        source_of,
        typed_knobs,
    )

#: name -> the module that it comes from; every other name of `__all__` comes from harness.method
_ELSEWHERE = {
    "Costs": "harness.core.costs",
    "EngineRun": "harness.engine.run",
    "PrunebenchError": "harness.core.errors",
    "__version__": "harness.library.version",
    "compare": "harness.library.frames",
    "prune": "harness.library.pruning",
    "results": "harness.library.frames",
    "samples": "harness.library.frames",
}

__all__ = [
    "Attention",
    "AttentionEdit",
    "Costs",
    "DecodePositions",
    "EngineRun",
    "Heads",
    "Method",
    "PictureError",
    "Places",
    "Positions",
    "Probabilities",
    "PromptShape",
    "PrunebenchError",
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
    "__version__",
    "build",
    "check_budget",
    "check_keep",
    "check_layer",
    "compare",
    "keep_top",
    "method_class",
    "prune",
    "raised",
    "record_shipped",
    "register",
    "registered",
    "results",
    "samples",
    "source_of",
    "typed_knobs",
]


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'prunebench' has no attribute {name!r}")
    found = getattr(import_module(_ELSEWHERE.get(name, "harness.method")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*globals(), *__all__]
