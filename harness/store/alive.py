"""Which process of which machine: who left a file behind, and whether it is certainly gone."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: seconds after which what a process of another machine or boot left is taken to be forgotten
_FORGOTTEN_S = 24 * 3600.0
_TAG = re.compile(r"([0-9a-f]{8})-([0-9]+)$")


def machine() -> str:
    """Names the set of processes among which a pid means the same: this boot of this host, this pid namespace."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def is_dead(pid: int, start: str | None) -> bool:
    """Whether the process of this machine that began at `start` is certainly gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's
    found = pid_start(pid)
    return found == "gone" or (found is not None and start is not None and found != start)


def pid_start(pid: int) -> str | None:
    """When a process started, in clock ticks since boot: with the pid it names a process for good, because pids are
    used again.

    "gone" for one that is dead and not yet reaped; None where the system does not say (no /proc, or one that hides
    other users').
    """
    try:
        # the name, in brackets, may hold anything; after it come the state and, as field 22 of the whole, the start
        state, *rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return "gone" if state in "ZX" else rest[18]


def mine() -> str:
    """Names this process in the name of what it may leave behind: `<machine>-<pid>`, digits and letters."""
    return f"{hashlib.sha256(machine().encode()).hexdigest()[:8]}-{os.getpid()}"


def bury(folder: Path, before: str, after: str = "") -> None:
    """Remove files and folders named `<before>...<mine()><after>` whose process is gone. Never raises: it is
    housekeeping."""
    with suppress(OSError):
        for path in list(folder.iterdir()):
            if not (path.name.startswith(before) and path.name.endswith(after)):
                continue
            with suppress(OSError):
                gone = left_behind(path, after)
                if gone and path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif gone:
                    path.unlink()


def left_behind(path: Path, after: str = "") -> bool:
    """Whether the process is gone that made `path`, which is named `...<mine()><after>`. Raises OSError."""
    here, _, own = mine().partition("-")
    named = _TAG.search(path.name.removesuffix(after))
    if named is not None and named[1] == here:
        return named[2] != own and is_dead(int(named[2]), None)
    return time.time() - path.lstat().st_mtime > _FORGOTTEN_S


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """An empty folder in `folder`, gone afterwards; a process that was killed in between loses it to the next."""
    bury(folder, ".run-")
    made = folder / f".run-{mine()}"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
