"""Refuse to run where a folder of the user's hides our packages harness, methods or tasks.

The installed names are common ones. Python finds a user's package `tasks` first where its folder stands first on
sys.path, as with `python -m` and in notebooks. Nothing here changes sys.path, and nothing but Python's own is imported.
"""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path

OWN = ("harness", "methods", "tasks")
HOME = Path(__file__).resolve().parents[1]


class ForeignPackageError(ImportError):
    """A package of the user's stands in front of one of ours; the message names its folder and the way on."""


def problem() -> str | None:
    """Why our packages cannot be imported, in one line; None where all of them are ours."""
    for name in OWN:
        spec = find_spec(name)
        origin = None if spec is None else spec.origin
        if origin is None:
            return f"expected our package {name!r} in {HOME}, found none: install prunebench again"
        folder = Path(origin).parent.parent if Path(origin).name == "__init__.py" else Path(origin).parent
        if folder.resolve() != HOME:
            return (
                f"{folder.resolve()} has a package {name!r} of its own, which hides ours in {HOME}: call the command"
                " `prunebench` or `python -P -m ...` there, or start Python in another folder"
            )
    return None


def refuse() -> None:
    """Raise ForeignPackageError where one of our packages is hidden; a command prints the line and exits with code
    2."""
    found = problem()
    if found is None:
        return
    if _command(sys.argv, sys.orig_argv):
        print(f"prunebench: {found}", file=sys.stderr)
        sys.exit(2)
    raise ForeignPackageError(found)


def _command(argv: list[str], asked: list[str]) -> bool:
    """Whether this process is our command, or lmms-eval that was asked for our model; `argv` is sys.argv, `asked` the
    words that Python was called with."""
    if argv[:1] == ["-m"]:  # Python has not found the module's file yet
        return re.search(r" -[A-Za-z]*m ?prunebench( |$)", " ".join(asked)) is not None
    program = Path(argv[0] if argv else "")
    if program.stem == "lmms-eval" or program.parts[-2:-1] == ("lmms_eval",):
        return re.search(r" --model[ =]prunebench( |$)", " ".join(argv)) is not None
    ours = (HOME / "prunebench" / "__main__.py", HOME / "harness" / "cli" / "__main__.py")
    return program.stem == "prunebench" or program in ours
