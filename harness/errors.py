"""Errors a user can mend, and the suggestion of the nearest known name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PrunebenchError(ValueError):
    """Something the user can mend: says what was expected, what was found and what to do.

    The command line prints its message without a traceback and exits with code 2.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> PrunebenchError:
    """The error for an unknown name, with the nearest known one suggested: `unknown("method", "fastw", [...])`."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return PrunebenchError(f"unknown {kind} {name!r}{hint} (known: {', '.join(options)})")
