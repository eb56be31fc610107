"""A worker's first and last act: it ends within a second of its parent, whatever it does at that moment.

This module imports nothing heavy, because it is the first one that a worker imports: it is guarded before torch loads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from multiprocessing import parent_process
from multiprocessing.connection import wait
from typing import Any

_PR_SET_PDEATHSIG = 1


def guarded(parent: int, module: str, function: str, *args: Any) -> None:
    """Run `module.function(*args)` in a worker of the process `parent`, which may be gone already."""
    end_with_parent(parent)
    work: Callable[..., None] = getattr(import_module(module), function)
    work(*args)


def end_with_parent(parent: int) -> None:
    """End this process when its parent ends. On Linux the kernel does it, even inside a call that holds Python's lock;
    elsewhere a thread waits for the parent's end of a pipe."""
    family = parent_process()
    if family is not None:
        threading.Thread(target=_follow, args=(family.sentinel,), name="prunebench-parent", daemon=True).start()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked to be told
        os._exit(1)


def _follow(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
