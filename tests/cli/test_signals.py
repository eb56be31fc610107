"""Signals that ask the command to end let it write first; the exit code names the signal."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from harness.core.paths import TOP

#: a command that holds answers, and takes a while to write them
COMMAND = """
import signal, sys, time
import harness.cli.main
command = sys.modules["harness.cli.main"]
# whoever runs the tests may ignore the signal, which is inherited
signal.signal(signal.SIGHUP, signal.SIG_IGN if "nohup" in sys.argv else signal.SIG_DFL)

def run(words):
    try:
        print("ready", flush=True)
        try:
            time.sleep(3 if "nohup" in sys.argv else 60)
        except Exception:
            print("swallowed", flush=True)
    finally:
        time.sleep(0.3)
        print("written", flush=True)
    return 0

command._run = run
command.main()
"""


def ended(*numbers: signal.Signals, nohup: bool = False) -> tuple[int, str, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *(["nohup"] if nohup else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=TOP,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for number in numbers:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("numbers", "code", "name"),
    [
        ((signal.SIGTERM,), 143, "SIGTERM"),
        ((signal.SIGHUP,), 129, "SIGHUP"),
        ((signal.SIGTERM, signal.SIGTERM, signal.SIGTERM), 143, "SIGTERM"),
        ((signal.SIGINT,), 130, "interrupted"),
    ],
)
def test_what_waits_is_written_and_the_code_is_the_signals(
    numbers: tuple[signal.Signals, ...], code: int, name: str
) -> None:
    returned, out, err = ended(*numbers)
    assert (returned, out) == (code, "written\n")
    assert name in err
    assert "answers so far are kept, the same command continues" in err
    assert "Traceback" not in err


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    """As nohup has it."""
    assert ended(signal.SIGHUP, nohup=True)[:2] == (0, "written\n")
