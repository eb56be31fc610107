"""Errors a user can mend, the suggestion of the nearest known name, and whose error it is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class PrunebenchError(ValueError):
    """Something the user can mend: says what was expected, what was found and what to do.

    The command line prints its message without a traceback and exits with code 2.
    """


class Interrupted(BaseException):
    """A signal ends the work: nobody's failure. Nothing catches it but to tidy up, and the command itself."""


def unknown(kind: str, name: str, known: Iterable[str]) -> PrunebenchError:
    """The error for an unknown name, with the nearest known one suggested: `unknown("method", "fastw", [...])`."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return PrunebenchError(f"unknown {kind} {name!r}{hint} (known: {', '.join(options)})")


@contextmanager
def naming(label: str) -> Iterator[None]:
    """Put `label` in front of what goes wrong inside; an empty one says nothing."""
    try:
        yield
    except PrunebenchError as error:
        raise (PrunebenchError(f"{label}: {error}") if label else error) from None
