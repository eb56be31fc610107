"""Texts that may be sent: no absolute path, no name of a user or of a machine.

Paths, addresses of mail and `~name` are known by their shape, whoever's they are. Other names are known for this
machine only; a person adds those of other machines and people.
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
            rf"(?<![\w.\\/<~-])/(?=\d*[^\W\d]|\.)[^\s/\"'`<>|;,()\[\]{{}}]*/{_REST}",
            rf"(?<![A-Za-z0-9])[A-Za-z]:[\\/]+(?=[\w.]){_REST}",
            rf"\\\\[\w.$-]+\\{_REST}",
        )
    )
)
#: folders whose direct children are named as their users
_PEOPLE = "home|homes|users|scratch|work|workspace|gpfs|nfs|lustre|media|export|people|staff"
#: more shapes, which questions and answers may have for reasons of their own
_MORE = re.compile(
    "|".join(
        (
            rf"(?<![\w:/])//[\w.-]+/{_REST}",
            rf"(?<=-[a-z])/(?=[^\W\d]|\.)[^\s/\"'`<>|;,()\[\]{{}}]*/{_REST}",
            rf"(?<![\w.\\/<~-])/(?:{_ROOTS})(?=[/\s\"'`;,:)\]}}]|$){_REST}",
            rf"(?<![\w.])(?:\.\.?[\\/])+{_REST}",
            rf"[^\s\"'`<>|;,()\[\]{{}}]*(?<![a-z0-9])(?:file:|(?:home|homes|users|scratch)[\\/])[\\/]*(?=[^\s\\/]){_REST}",
        )
    ),
    re.IGNORECASE,
)
#: an address of mail, and a home by its user
_WHO = re.compile(r"[\w.+-]+@[A-Za-z][\w-]{2,}(?:\.[\w-]+)*|(?<![\w.~/<-])~[A-Za-z_][\w.-]{2,}")
#: words behind a blank that belong to a path, because a separator follows them
_GOES_ON = re.compile(rf"(?: +[^\s\"'`<>|;,()\[\]{{}}\\/]+){{1,3}}[\\/]{_REST}")
_TO_THE_END = re.compile(r"[^\"'`<>|;,()\[\]{}]*")


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

    def found(self, text: str, *, of_data: bool = False) -> str | None:
        """The first path or name in a text; None where there is none. `of_data`: a question or an answer, which may
        hold addresses of mail and of the web."""
        for pattern in (_PATH,) if of_data else (_PATH, _MORE, _WHO):
            for match in pattern.finditer(text):
                if match[0] not in self.allowed:
                    return match[0]
        match_of_name = self._names.search(text) if self._names else None
        return match_of_name[0] if match_of_name else None

    def without(self, text: str) -> str:
        """The text with base names in place of paths, and `REMOVED` in place of names."""
        for _ in range(8):  # a base name may be a path in another spelling
            shorter = self._shortened(self._shortened(text, _PATH), _MORE)
            if shorter == text:
                break
            text = shorter
        text = _WHO.sub(lambda match: match[0] if match[0] in self.allowed else REMOVED, text)
        return self._names.sub(REMOVED, text) if self._names else text

    def _shortened(self, text: str, paths: re.Pattern[str]) -> str:
        """The text with a base name in place of each path. A blank may be a part of a path: too much goes, not too
        little."""
        done, end = "", 0
        for match in paths.finditer(text):
            if match.start() < end or match[0] in self.allowed:
                continue
            done, end = done + text[end : match.start()], match.end()
            while more := _GOES_ON.match(text, end):
                end = more.end()
            short = base(text[match.start() : end])
            if short == REMOVED and (rest := _TO_THE_END.match(text, end)):
                end = rest.end()
            done += short
        return done + text[end:]


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


def base(path: str) -> str:
    """The base name of a path; `REMOVED` where that is the name of a user or nothing."""
    parts = [part for part in re.split(r"[\\/]+", path) if part not in ("", ".", "..")]
    named = parts[-1] if len(parts) > 1 or not re.match(r"~|[A-Za-z]:|file:", path) else ""
    if len(parts) > 1 and re.fullmatch(_PEOPLE, parts[-2], re.IGNORECASE):
        return REMOVED
    return named if named and not _PATH.search(named) else REMOVED
