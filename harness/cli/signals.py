"""Signals that ask the command to end: what was answered is written, and the exit code says which signal it was."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from harness.core.errors import Interrupted


class Ended(Interrupted):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """As a shell gives it: 143 for SIGTERM."""
        return 128 + self.number

    def __str__(self) -> str:
        return f"ended by {signal.Signals(self.number).name}"


#: what schedulers, `kill` and a terminal that is closed send
_ENDING = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]


@contextmanager
def ending() -> Iterator[None]:
    """Inside, the first of these signals raises `Ended`; the next ones find it busy writing and are left out.

    A signal that the caller has ignored stays so, as nohup does with SIGHUP.
    """
    before = {number: signal.getsignal(number) for number in _ENDING}
    mine = [number for number, handler in before.items() if handler == signal.SIG_DFL]

    def end(number: int, frame: object) -> None:
        for other in mine:
            signal.signal(other, signal.SIG_IGN)
        raise Ended(number)

    for number in mine:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)
