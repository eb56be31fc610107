"""Commands as a person types them, rendered from structure and quoted for a shell. Nothing is ever read back out of one. No torch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from harness.asked import Asked
from harness.cell import SHIPPED


def rendered(words: Sequence[str], values: Mapping[str, str | None] | None = None, comment: str = "") -> str:
    """`make eval METHOD=fastv`: `words`, then NAME=value for every value that is given, each part quoted where a shell needs it.

    A value that holds an = is quoted too, for people. `shlex.split(..., comments=True)` gives the parts back.
    """
    parts = [shlex.quote(word) for word in words]
    parts += [f"{name}={_quoted(value)}" for name, value in (values or {}).items() if value]
    return " ".join(parts) + (f"  # {comment}" if comment else "")


def _quoted(value: str) -> str:
    quoted = shlex.quote(value)
    return f"'{value}'" if quoted == value and "=" in value else quoted


def evaluation(asked: Asked, *, tasks: Sequence[str] = (), fresh: bool = False, source: str = SHIPPED) -> str:
    """The `make eval` that measures this again, or the same for other `tasks`; `fresh`: also where it is sealed.

    `source`: the cell's `method_source`, named behind the command of a method from elsewhere, for a file can change under its name.
    """
    knobs = " ".join(f"{name}={_knob(value)}" for name, value in asked.knobs.items())
    values = {
        "METHOD": asked.method,
        "BUDGET": asked.budget,
        "MODEL": asked.model,
        "TASKS": ",".join(tasks) or asked.task,
        "LIMIT": asked.limit,
        "SET": knobs,
        "SEED": str(asked.seed) if asked.seed else None,
        "POSITIONS": asked.positions if asked.positions != "method" else None,
        "DATA": asked.data,
        "DTYPE": asked.dtype,
        "DEVICE": asked.device,
        "FRESH": "1" if fresh else None,
    }
    return rendered(["make", "eval"], values, "" if source == SHIPPED else f"code {source}")


def _knob(value: Any) -> str:
    """As `--set knob=value` takes it: a list with commas."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
