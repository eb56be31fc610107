"""The last guard of a command: whatever happens inside, a line on stderr and a documented exit code come out."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import TextIO

from harness.cli.signals import Ended
from harness.core import fault
from harness.core.errors import Interrupted
from harness.core.shown import one_line

EXIT_BAD_INPUT, EXIT_FAULT, EXIT_INTERRUPTED, EXIT_READER_GONE = 2, 70, 130, 141
#: characters of a word that is quoted whole
LONGEST = 400
#: any value but 0 shows tracebacks, as --debug does
DEBUG = "PRUNEBENCH_DEBUG"


def guarded(run: Callable[[], int], may_exit: bool) -> int:
    """The exit code of `run`, or of the error that it ended with. `may_exit`: it may raise SystemExit for its own."""
    try:
        code = run()
        sys.stdout.flush()
    except Interrupted as stop:
        print(file=sys.stderr)
        tell(
            f"{stop if isinstance(stop, Ended) else 'interrupted'}; answers so far are kept, the same command continues"
        )
        code = stop.exit_code if isinstance(stop, Ended) else EXIT_INTERRUPTED
    except BrokenPipeError:
        code = EXIT_READER_GONE
    except OSError as error:
        _debugged()
        code = EXIT_BAD_INPUT
        if error.errno is None:
            tell(fault.told(error))
            code = EXIT_FAULT
        elif error.filename is not None:
            tell(f"{error.filename}: {error.strerror}: mend this, or name another file or folder; --debug shows more")
        else:
            full = " (the disk or the output is full)" if error.errno == errno.ENOSPC else ""
            tell(f"cannot read or write: {error.strerror}{full}; --debug shows more")
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # the parser's own answer to it
            code = EXIT_READER_GONE
        elif may_exit:
            raise
        else:
            _debugged()
            tell(fault.told(stop))
            code = EXIT_FAULT
    except BaseException as error:
        _debugged()
        tell(fault.told(error))
        code = EXIT_FAULT
    _settle(sys.stdout)
    _settle(sys.stderr)
    return code


def refused(text: str) -> int:
    """Say what a user can mend, inside its `except` block. The exit code."""
    _debugged()
    tell(text)
    return EXIT_BAD_INPUT


def tell(text: str) -> None:
    """One line on stderr; of a word without an end, its beginning."""
    short = re.sub(rf"\S{{{LONGEST},}}", lambda found: f"{found[0][:80]}... ({len(found[0]):,} characters)", text)
    try:
        print(f"prunebench: {one_line(short)}", file=sys.stderr, flush=True)
    except OSError:
        _settle(sys.stderr)


def sturdy() -> None:
    """Standard streams that exist, and that spell what they cannot encode."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for as long as the process lives)
        reconfigure = getattr(getattr(sys, name), "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _debugged() -> None:
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        try:
            traceback.print_exc()
        except OSError:
            _settle(sys.stderr)


def _settle(stream: TextIO) -> None:
    """Flush a stream; one that cannot be written is led to nowhere, for Python would flush it again at its end."""
    try:
        stream.flush()
    except (OSError, ValueError):
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            return
