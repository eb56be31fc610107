"""The words in which a person gives a value: `--budget 64` to the command, BUDGET=64 to make, budget=64 in Python.

The command states at its start who calls it, in the environment, so that its worker processes use the same words.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

#: the environment's variable; the Makefile sets it to "make", and nothing sets it for a caller in Python
CALLER = "PRUNEBENCH_CALLER"
MAKE, COMMAND = "make", "command"
#: values that the command takes by position, and make by name
BY_POSITION = ("config",)


@contextmanager
def from_a_terminal() -> Iterator[None]:
    """Names are spelt as the command takes them, or as make does if make is the caller; as before afterwards."""
    before = os.environ.get(CALLER)
    os.environ[CALLER] = MAKE if before == MAKE else COMMAND
    try:
        yield
    finally:
        if before is None:
            del os.environ[CALLER]
        else:
            os.environ[CALLER] = before


def given(name: str, value: object = "") -> str:
    """A value beside its name, as the caller types both: `--seed 3`, SEED=3 or seed=3. `value` True: a switch; "": the
    name alone."""
    caller, on = os.environ.get(CALLER), value is True
    text = str(value)
    if caller == MAKE:
        return _variable(name, "1" if on else text) if text else name.upper()
    if caller == COMMAND:
        option = name.upper() if name in BY_POSITION else f"--{name.replace('_', '-')}"
        if not text or on:
            return option
        return shlex.quote(text) if name in BY_POSITION else f"{option} {shlex.quote(text)}"
    return f"{name}={value if isinstance(value, int) else repr(text)}" if text else name


def command(name: str, **values: str | None) -> str:
    """A command as the caller types it: `prunebench eval --method fastv`, or `make eval METHOD=fastv`."""
    named = {key: value for key, value in values.items() if value}
    if os.environ.get(CALLER) == MAKE:
        return " ".join(["make", name, *(_variable(key, value) for key, value in named.items())])
    words = [f"--{key.replace('_', '-')} {shlex.quote(v)}" for key, v in named.items() if key not in BY_POSITION]
    words += [shlex.quote(value) for key, value in named.items() if key in BY_POSITION]
    return " ".join(["prunebench", name, *words])


def _variable(name: str, value: str) -> str:
    quoted = shlex.quote(value)
    return f"{name.upper()}=" + (f"'{value}'" if quoted == value and "=" in value else quoted)
