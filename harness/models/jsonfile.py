"""JSON files of a checkpoint, read as files that anybody may have written: one object, or one line on what is wrong."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, NoReturn

from harness.core.errors import PrunebenchError

#: bytes; no configuration comes near, and a file without end is not read to its end
MOST = 64 << 20
_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


def check_regular(file: Path, label: str) -> None:
    """Raise PrunebenchError for what is no regular file, links followed: reading a pipe would wait for ever."""
    try:
        mode = file.stat().st_mode
    except (OSError, ValueError) as error:
        raise PrunebenchError(f"{label}: {file} cannot be read ({type(error).__name__}): restore the file") from None
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS.items() if test(mode)), "something else")
        raise PrunebenchError(f"{label}: expected {file} to be a regular file, found {kind}: put the file there")


def read(file: Path, label: str) -> dict[str, Any]:
    """The object in a file. Raises PrunebenchError for every other content, and for a key that stands twice."""
    check_regular(file, label)
    if file.stat().st_size > MOST:
        raise PrunebenchError(f"{label}: {file} is larger than {MOST >> 20} MiB: fetch the file again")
    try:
        body = json.loads(file.read_bytes(), object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise PrunebenchError(
            f"{label}: {file} is not JSON that can be read ({reason}): fetch the file again"
        ) from None
    if not isinstance(body, dict):
        raise PrunebenchError(
            f"{label}: expected keys and values in {file}, found {kind_of(body)}: fetch the file again"
        )
    return body


def kind_of(value: Any) -> str:
    """For people: what a JSON value is."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")
