"""Texts that may be sent: no absolute path, no name of a user or of a machine.

Paths are known by their shape, whoever's they are. Names are known for this machine only; a person adds others.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

REMOVED = "removed"
#: accounts and machines that many people have: they name nobody
_ANYBODY = frozenset(
    [
        "root",
        "user",
        "users",
        "admin",
        "guest",
        "test",
        "nobody",
        "home",
        "localhost",
        "ubuntu",
        "debian",
        "docker",
        "runner",
        "jovyan",
        "local",
        "host",
        "node",
    ]
)
#: of a name: a shorter one is a part of many words
SHORTEST = 3
_REST = r"[^\s\"'`<>|;,()\[\]{}]*"
#: folders at the top of a system in which people's files lie: one of them alone is a path already
_ROOTS = "home|root|Users|mnt|media|tmp|var|opt|srv|data|scratch|workspace|work|usr|etc|private|Volumes|nfs|gpfs|lustre"
_PATH = re.compile(
    "|".join(
        (
            rf"file:/+{_REST}",
            rf"(?<![\w.~/<-])~[\w.-]*/{_REST}",
            rf"(?<![\w.\\/<~-])/(?:{_ROOTS})(?=[/\s\"'`;,:)\]}}]|$){_REST}",
            rf"(?<![\w.\\/<~-])/[A-Za-z._][^\s/\"'`<>|;,()\[\]{{}}]*/{_REST}",
            rf"(?<![A-Za-z0-9])[A-Za-z]:[\\/]+(?=[\w.]){_REST}",
            rf"\\\\[\w.$-]+\\{_REST}",
        )
    )
)


@dataclass(frozen=True)
class Private:
    """The words that a published text may not hold, beside every absolute path."""

    words: Sequence[str]
    allowed: Sequence[str] = ()
    """Words and paths that stay, because they are the data's own."""

    @cached_property
    def _names(self) -> re.Pattern[str] | None:
        names = sorted({word for word in self.words if word and word not in self.allowed}, key=lambda w: (-len(w), w))
        if not names:
            return None
        return re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, names))})(?![A-Za-z0-9])", re.IGNORECASE)

    def found(self, text: str) -> str | None:
        """The first path or name in a text; None where there is none."""
        for match in _PATH.finditer(text):
            if match[0] not in self.allowed:
                return match[0]
        match_of_name = self._names.search(text) if self._names else None
        return match_of_name[0] if match_of_name else None

    def without(self, text: str) -> str:
        """The text with base names in place of paths, and `REMOVED` in place of names."""
        for _ in range(8):  # a base name may be a path in another spelling
            shorter = _PATH.sub(lambda match: match[0] if match[0] in self.allowed else _base(match[0]), text)
            if shorter == text:
                break
            text = shorter
        return self._names.sub(REMOVED, text) if self._names else text


def here(more: Sequence[str] = (), allowed: Sequence[str] = ()) -> Private:
    """The names of this machine and of who works on it, and `more`. A name of everybody's or of one or two letters is
    none."""
    names: list[str] = [Path.home().name, *(os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME"))]
    with suppress(OSError, KeyError):  # a user without an entry
        names.append(getpass.getuser())
    with suppress(OSError):
        host = socket.gethostname()
        names += [host, host.partition(".")[0]]
    return Private([n for n in names if len(n) >= SHORTEST and n.lower() not in _ANYBODY] + list(more), tuple(allowed))


def texts(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """(place, text) of every text in plain JSON, names of keys included; a place is the keys that lead there."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield (*place, str(name)), str(name)
            yield from texts(inner, (*place, str(name)))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from texts(inner, (*place, str(number)))


def rewritten(value: Any, private: Private) -> Any:
    """Plain JSON with every text as `Private.without` gives it."""
    if isinstance(value, str):
        return private.without(value)
    if isinstance(value, Mapping):
        return {private.without(str(name)): rewritten(inner, private) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rewritten(inner, private) for inner in value]
    return value


def _base(path: str) -> str:
    parts = [part for part in re.split(r"[\\/]+", path) if part not in ("", ".", "..")]
    named = parts[-1] if len(parts) > 1 or not re.match(r"~|[A-Za-z]:|file:", path) else ""
    return named if named and not _PATH.search(named) else REMOVED
