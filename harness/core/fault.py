"""An error that nobody foresaw: one line that says where, and its traceback in a file. Nothing here may raise."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from importlib import metadata

from harness.core.shown import one_line

#: longer messages are cut: the file has all of it
LONGEST = 300


def told(error: BaseException) -> str:
    """What it was, where, in which version, and which file holds the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({'/'.join(frames[-1].filename.split(os.sep)[-3:])}, line {frames[-1].lineno})" if frames else ""
    said = one_line(_text(error))
    said = said if len(said) <= LONGEST else f"{said[:LONGEST]} ..."
    what = f"{type(error).__name__}{': ' + said if said else ''}{at}"
    return f"a fault of prunebench {_version()}, please report it: {what}; {_kept(error)}"


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a class of a method's own may not even print
        return ""


def _version() -> str:
    try:
        return metadata.version("prunebench")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _kept(error: BaseException) -> str:
    """Write the traceback; says where it is, or that no file could be written."""
    body = [f"prunebench {_version()}, Python {sys.version}\n", f"{sys.argv}\n\n"]
    try:
        body += traceback.format_exception(error)
        handle, name = tempfile.mkstemp(prefix="prunebench-traceback-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(body)
    except Exception as second:
        return f"no file holds its traceback ({type(second).__name__}): --debug shows it"
    return f"the traceback is in {name}"
