"""Names of files and text under any locale."""

from __future__ import annotations

import codecs
import os
import sys


def settle() -> None:
    """Begin anew in Python's UTF-8 mode where the locale knows ASCII only.

    Python does so itself for the C locale unless it is told not to. Without, a folder called "résultats" is a name that
    no library which takes UTF-8 can open, and that no table can hold.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii" and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
