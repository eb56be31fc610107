"""Leases: which runner may write a cell, on one results folder that several processes or machines share.

    locks/runner-<id>.json    one per running process: host, pid, how long its lease lasts; modified at each renewal
    locks/<cell>.lock         one per cell that is being run: the runner's id and this lease's token

A lock is free once its runner's lease has expired, once its process is known to be dead (same machine, so that a run
that was killed continues at once), or once its runner's file is gone. Whoever takes, checks or gives back a lock, and
whoever writes under it, holds a flock on the lock file for that moment: two takers cannot both win, and a runner that
was suspended past its expiry finds another token in its lock before it can write a byte.

One thread per process renews all its leases: one `utime` per results folder every 15 s. Ages are differences of
modification times within the folder, so clocks of different machines need not agree.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import json
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.core.errors import PrunebenchError
from harness.store.alive import bury, is_dead, machine, mine, pid_start

_PATIENCE_S = 5.0  # for the moment that another runner takes, checks or writes under a lock
_MODE = 0o644
#: set to 1 by a person who knows that no two runners share a results folder on a file system without flock
ONE_RUNNER = "PRUNEBENCH_ONE_RUNNER"
#: how a file system, as some network mounts, says that it has no flock
_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EREMOTE}


class CellBusy(PrunebenchError):  # noqa: N818 - a state, not a fault
    """Another runner holds the cell: not a fault, skip it or come back later."""


class NoLocks(PrunebenchError):  # noqa: N818 - of a file system, not of a cell
    """The file system of the results folder has no flock."""


@dataclass(frozen=True)
class Timing:
    """How long a silent runner keeps its cells and how often it speaks, in seconds."""

    expires_s: float = 60.0
    renew_s: float = 15.0

    def __post_init__(self) -> None:
        if not 0 < self.renew_s < self.expires_s:
            raise PrunebenchError(
                f"expected a lease to be renewed before it expires, found renew_s={self.renew_s},"
                f" expires_s={self.expires_s}"
            )


class Lease:
    """The right to write one cell; `guard` proves it each time."""

    def __init__(self, path: Path, what: str, token: str, runner: _Runner):
        self._path = path
        self._what = what
        self._token = token
        self._runner = runner

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Inside, the lease is ours and nobody can take it. Raises PrunebenchError if it was lost, OSError if it cannot
        be checked."""
        with _flocked(self._path, create=False) as handle:
            if handle is None or _read(handle).get("lease") != self._token:
                taker = None if handle is None else _describe(self._path.parent, _read(handle).get("runner"))
                raise PrunebenchError(
                    f"this process no longer holds {self._what}: its lease of {self._runner.timing.expires_s:g} s ran"
                    f" out (was it suspended?) or its lock was removed, and {taker or 'another runner'} may have"
                    " continued it; nothing was written, answers before are safe; run the same command again"
                )
            yield

    def give_back(self) -> None:
        """Remove the lock if it is still ours. Never raises: a lock that stays is free once this process is gone."""
        with suppress(OSError, CellBusy), _flocked(self._path, create=False) as handle:
            if handle is not None and _read(handle).get("lease") == self._token:
                os.unlink(self._path)


@contextmanager
def leased(folder: Path, name: str, what: str, timing: Timing) -> Iterator[Lease]:
    """Hold `<folder>/<name>.lock` for `what` (as messages call it).

    Raises CellBusy naming the holder if another runner's lease, or an earlier one of this process, is alive; OSError if
    the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _running(folder, timing) as runner:
        path = folder / f"{name}.lock"
        token = secrets.token_hex(8)
        with _flocked(path, create=True) as handle:
            assert handle is not None  # it is made where it is missing
            found = _read(handle)
            if found.get("lease") in runner.held or (
                found.get("runner") != runner.id and _alive(folder, found.get("runner"), runner)
            ):
                holder = _describe(folder, found.get("runner")) or "another runner"
                raise CellBusy(f"{what} is being run by {holder}; wait for it or stop it (lock: {path})")
            try:
                os.ftruncate(handle, 0)
                with open(handle, "wb", closefd=False) as file:
                    file.write(json.dumps({"runner": runner.id, "lease": token}).encode())
            except BaseException:
                with suppress(OSError):
                    os.unlink(path)
                raise
            lease = runner.held[token] = Lease(path, what, token, runner)
        try:
            yield lease
        finally:
            lease.give_back()
            runner.held.pop(token, None)


def tidy(folder: Path, timing: Timing) -> None:
    """Remove what killed runners left in a locks folder, also where nothing is left to run. Never raises: it is
    housekeeping."""
    with suppress(OSError, CellBusy, NoLocks):
        if folder.is_dir() and any(folder.iterdir()):
            with _running(folder, timing):
                pass  # whoever comes first to a folder buries the dead


def holder(folder: Path, name: str) -> str | None:
    """Who holds `<folder>/<name>.lock`, as messages name a runner; None if nobody alive does. Takes and writes nothing.

    Here ages are differences to this machine's clock.
    """
    try:
        found = json.loads((folder / f"{name}.lock").read_bytes())
    except (OSError, ValueError):
        return None
    runner = found.get("runner") if isinstance(found, dict) else None
    return None if dead(folder, runner) else _describe(folder, runner)


def dead(folder: Path, runner: Any) -> bool:
    """Whether a runner's lease ran out, or its process is known to be gone. Takes and writes nothing."""
    try:
        who = _card(folder, runner)
        if who is None or (who["machine"] == machine() and is_dead(who["pid"], who["pid_start"])):
            return True
        return time.time() - os.stat(folder / f"runner-{runner}.json").st_mtime > float(who["expires_s"])
    except FileNotFoundError:
        return True
    except OSError:
        return False  # one that cannot be read may be alive


class _Runner:
    """This process towards one locks folder."""

    def __init__(self, folder: Path, timing: Timing):
        self.id = secrets.token_hex(6)
        self.folder = folder
        self.path = folder / f"runner-{self.id}.json"
        self.timing = timing
        self.held: dict[str, Lease] = {}
        self.users = 0
        self.since = datetime.now(UTC).isoformat(timespec="seconds")

    def introduce(self) -> None:
        """Write the runner's file, whole or not at all."""
        pid = os.getpid()
        temporary = self.path.with_name(f".{self.path.name}.{mine()}.tmp")
        body = {
            "host": socket.gethostname(),
            "machine": machine(),
            "pid": pid,
            "pid_start": pid_start(pid),
            "started": self.since,
            "expires_s": self.timing.expires_s,
        }
        try:
            temporary.write_text(json.dumps(body) + "\n")
            os.replace(temporary, self.path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise

    def renew(self) -> None:
        """A sign of life. An OSError passes in silence: if they go on the lease runs out, which every write checks."""
        with suppress(OSError):
            try:
                os.utime(self.path)
            except FileNotFoundError:
                self.introduce()  # taken for dead while it was suspended; it is not

    def now(self) -> float:
        """The folder's own clock: the modification time of a file touched now."""
        self.renew()
        return os.stat(self.path).st_mtime


_LOCK = threading.Lock()
_RUNNERS: dict[tuple[str, Timing], _Runner] = {}
_WAKE = threading.Event()
_HEART: threading.Thread | None = None


@contextmanager
def _running(folder: Path, timing: Timing) -> Iterator[_Runner]:
    """This process's runner for the folder; its file exists from the first lease to the last."""
    global _HEART
    key = str(folder.resolve()), timing
    with _LOCK:
        runner = _RUNNERS.get(key)
        if runner is None:
            runner = _Runner(folder.resolve(), timing)
            runner.introduce()
            _RUNNERS[key] = runner
            _bury(runner)
            if _HEART is None or not _HEART.is_alive():
                _HEART = threading.Thread(target=_beat, name="prunebench-leases", daemon=True)
                _HEART.start()
            else:
                _WAKE.set()  # this runner may want to be renewed sooner than the others
        runner.users += 1
    try:
        yield runner
    finally:
        with _LOCK:
            runner.users -= 1
            if not runner.users and _RUNNERS.get(key) is runner:
                del _RUNNERS[key]
                with suppress(OSError):
                    runner.path.unlink()


def _beat() -> None:
    """Renew this process's leases until it ends. A folder that nobody runs in costs nothing."""
    while True:
        with _LOCK:
            for runner in _RUNNERS.values():
                runner.renew()
            pause = min((runner.timing.renew_s for runner in _RUNNERS.values()), default=None)
        _WAKE.wait(pause)
        _WAKE.clear()


def _bury(runner: _Runner) -> None:
    """Remove what dead runners left behind, so that the folder does not fill up over many kills."""
    bury(runner.folder, ".runner-", ".tmp")
    alive: set[Any] = set()
    for path in runner.folder.glob("runner-*.json"):
        name: Any = path.name.removeprefix("runner-").removesuffix(".json")
        with suppress(OSError):
            if _alive(runner.folder, name, runner):
                alive.add(name)
            else:
                path.unlink()
    for path in runner.folder.glob("*.lock"):
        with suppress(OSError, CellBusy), _flocked(path, create=False, patience_s=0.0) as handle:
            if (
                handle is not None
                and (name := _read(handle).get("runner")) not in alive
                and not _alive(runner.folder, name, runner)
            ):
                os.unlink(path)


def _after_fork() -> None:
    """A child holds none of its parent's leases and has no thread: it starts from nothing."""
    global _LOCK, _WAKE, _HEART
    _LOCK, _WAKE, _HEART = threading.Lock(), threading.Event(), None
    _RUNNERS.clear()


def _at_exit() -> None:
    """For a `with` that was never left, as in a generator that nobody finished."""
    with _LOCK:
        for runner in _RUNNERS.values():
            for lease in list(runner.held.values()):
                lease.give_back()
            with suppress(OSError):
                runner.path.unlink()
        _RUNNERS.clear()  # or the thread would write the file again


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)


def _alive(folder: Path, name: Any, asking: _Runner) -> bool:
    """Whether the named runner still holds what names it."""
    if name == asking.id:
        return True
    who = _card(folder, name)
    if who is None or (who["machine"] == machine() and is_dead(who["pid"], who["pid_start"])):
        return False
    try:
        renewed = os.stat(folder / f"runner-{name}.json").st_mtime
    except FileNotFoundError:
        return False
    return asking.now() - renewed <= float(who["expires_s"])


def _card(folder: Path, name: Any) -> dict[str, Any] | None:
    """What a runner says of itself; None if it is gone. It is written in one piece, so anything else was not written by
    one."""
    try:
        who = json.loads((folder / f"runner-{name}.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    known = {"host", "machine", "pid", "pid_start", "started", "expires_s"}
    return who if isinstance(who, dict) and known <= set(who) else None


def _describe(folder: Path, name: Any) -> str | None:
    """The runner as messages name it."""
    with suppress(OSError):
        if who := _card(folder, name):
            return f"process {who['pid']} on {who['host']} since {who['started']}"
    return None


@contextmanager
def _flocked(path: Path, *, create: bool, patience_s: float = _PATIENCE_S) -> Iterator[int | None]:
    """The lock file, open and flocked, or None if it does not exist and is not to be made.

    Raises CellBusy if somebody else keeps it flocked for longer than a write takes.
    """
    until = time.monotonic() + patience_s
    handle: int | None = None
    try:
        while True:
            try:
                handle = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), _MODE)
            except FileNotFoundError:
                if create:
                    raise
                break
            try:
                _flock(handle, path)
                # its last holder may have removed the file between our open and our flock: then flock the new one
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(handle), os.stat(path)):
                        break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise CellBusy(
                        f"{path} has been in use by another process for {patience_s:g} s; wait for it or stop it"
                    ) from None
                time.sleep(0.005)
            os.close(handle)
            handle = None
        yield handle
    finally:
        if handle is not None:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)  # explicitly: a forked child may share the handle
            os.close(handle)


def check_locks(folder: Path) -> None:
    """Raise NoLocks where the file system of a folder has no flock, OSError where the folder takes no file."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        _flock(probe.fileno(), folder)


def _flock(handle: int, path: Path) -> None:
    """Take the file's flock. Raises BlockingIOError where another has it, NoLocks where there is none to take."""
    if os.environ.get(ONE_RUNNER) == "1":
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        raise NoLocks(
            f"{path}: expected a file system with flock, found one without ({error.strerror}): choose a results folder"
            f" on a local disk, or set {ONE_RUNNER}=1 in the environment if no other runner uses this folder"
        ) from None


def _read(handle: int) -> dict[str, Any]:
    """A lock's content; empty where its writer was killed before it had the lock."""
    try:
        found = json.loads(os.pread(handle, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
