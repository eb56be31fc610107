"""Commands as a person types them, rendered from structure and quoted for a shell. Nothing is ever read back out of
one. No torch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.core.asked import Asked
from harness.core.cell import SHIPPED
from harness.core.errors import PrunebenchError


def rendered(words: Sequence[str], values: Mapping[str, str | None] | None = None, comment: str = "") -> str:
    """`make eval METHOD=fastv`: `words`, then NAME=value for every value that is given, each part quoted where a shell
    needs it.

    A value that holds an = is quoted too, for people. `shlex.split(..., comments=True)` gives the parts back.
    """
    parts = [shlex.quote(word) for word in words]
    parts += [f"{name}={_quoted(value)}" for name, value in (values or {}).items() if value]
    return " ".join(parts) + (f"  # {comment}" if comment else "")


def whole_number(value: object) -> int | None:
    """The whole number of at least 0 that a user wrote, in digits from 0 to 9 and at most 18 of them; None for any
    other text."""
    text = str(value).strip()
    return int(text) if re.fullmatch(r"\+?[0-9]{1,18}", text) and not isinstance(value, bool) else None


def natural(value: object) -> int | None:
    """`whole_number` from 1 on."""
    return whole_number(value) or None


def _quoted(value: str) -> str:
    quoted = shlex.quote(value)
    return f"'{value}'" if quoted == value and "=" in value else quoted


def evaluation(
    asked: Asked, *, tasks: Sequence[str] = (), fresh: bool = False, source: str = SHIPPED, results: str | None = None
) -> str:
    """The `make eval` that measures this again, or the same for other `tasks`; `fresh`: also where it is sealed.

    `source`: the cell's `method_source`, named behind the command of a method from elsewhere, for a file can change
    under its name.
    """
    values = {
        "METHOD": asked.method,
        "BUDGET": asked.budget,
        "MODEL": asked.model,
        "TASKS": ",".join(tasks) or asked.task,
        "LIMIT": asked.limit,
        "SET": pairs(asked.knobs),
        "SEED": str(asked.seed) if asked.seed else None,
        "POSITIONS": asked.positions if asked.positions != "method" else None,
        "DATA": asked.data,
        "PROMPT": asked.prompt,
        "IMAGE": asked.image,
        "AS": asked.stands_for,
        "JUDGE": asked.judge,
        "FOLLOW_UP": asked.follow_up,
        "DTYPE": asked.dtype,
        "DEVICE": asked.device,
        "FRESH": "1" if fresh else None,
        "RESULTS": results,
    }
    return rendered(["make", "eval"], values, "" if source == SHIPPED else f"code {source}")


def pairs(knobs: Mapping[str, Any]) -> str:
    """As `--set` takes them: `boundary=3 stages=2,5`."""
    return " ".join(f"{name}={word(value)}" for name, value in knobs.items())


def word(value: Any) -> str:
    """A knob's value in one word: a list with commas, None as none. What it cannot say is refused where a request is
    checked."""
    if isinstance(value, list | tuple):
        return ",".join(map(word, value))
    return "none" if value is None else str(value)


def _is_file_with_comma(path: str) -> bool:
    return "," in path and Path(path).is_file()


def check_no_comma(methods: Sequence[str]) -> None:
    """Raise PrunebenchError for a method whose path holds a comma, in one piece or in those that a list of methods made
    of it."""
    for end, name in enumerate(methods, 1):
        whole = [",".join(methods[start:end]) for start in reversed(range(end))]
        found = [one for one in whole if "," in one and ("," in name or _is_file_with_comma(one.rpartition(":")[0]))]
        if end < len(methods) and "/" in name and ":" not in name and not name.endswith(".py"):
            found.append(f"{name},{methods[end]}")
        if found:
            raise PrunebenchError(
                f"a method's path holds a comma ({found[0]!r}), which parts the methods of a list: rename the file or"
                " the folder"
            )
