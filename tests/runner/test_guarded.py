"""Workers end with their parent, also one that is killed while they load, wait, or compute in one long call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.core.paths import TOP
from harness.store.alive import pid_start

#: a parent with two workers that do one thing for minutes
PARENT = """
import os, sys, time
from multiprocessing import get_context
sys.path.insert(0, {here!r})
from harness.runner.launch.guarded import guarded
if __name__ == "__main__":
    context = get_context("spawn")
    for i in range(2):
        worker = context.Process(
            target=guarded, args=(os.getpid(), "worker_of_a_test", {what!r}, {here!r} + f"/{{i}}"), daemon=True
        )
        worker.start()
    time.sleep(600)
"""
WORKER = """
import os, time
def said(file):
    open(file + ".half", "w").write(str(os.getpid()))
    os.replace(file + ".half", file)
def sleeps(file):
    said(file); time.sleep(600)
def counts(file):
    said(file); sum(range(10**13))
def loads(file):
    said(file); import slow_module_of_a_test
def deaf(file):
    import signal
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(number, signal.SIG_IGN)
    said(file); time.sleep(600)
def stubborn(file):
    said(file)
    while True:
        try: time.sleep(600)
        except BaseException: pass
def reads(file):
    said(file); os.read(os.pipe()[0], 1)
"""
KINDS = ["sleeps", "counts", "loads", "deaf", "stubborn", "reads"]


def gone(pid: int) -> bool:
    return pid_start(pid) in (None, "gone")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="a process's state is read from /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("what", KINDS)
def test_workers_are_gone_within_a_second_of_their_parent(tmp_path: Path, what: str, number: signal.Signals) -> None:
    (tmp_path / "worker_of_a_test.py").write_text(WORKER)
    (tmp_path / "slow_module_of_a_test.py").write_text("import time\ntime.sleep(600)")
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(here=str(tmp_path), what=what))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TOP), str(tmp_path)])}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment)
    files = [tmp_path / str(i) for i in range(2)]
    until = time.monotonic() + 60
    while not all(file.exists() for file in files):
        assert time.monotonic() < until
        assert parent.poll() is None
        time.sleep(0.02)
    workers = [int(file.read_text()) for file in files]
    assert not any(map(gone, workers)), "they are at it"
    parent.send_signal(number)
    parent.wait()
    ended = time.monotonic()
    while not all(map(gone, workers)):
        assert time.monotonic() - ended < 10, "they outlived their parent"
        time.sleep(0.02)


def test_a_worker_whose_parent_is_gone_before_it_starts_does_nothing() -> None:
    code = "from harness.runner.launch.guarded import guarded; guarded(1, 'builtins', 'print', 'worked')"
    done = subprocess.run([sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


def test_what_guards_a_worker_is_there_before_torch() -> None:
    code = "import sys, harness.runner.launch.guarded; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=TOP, text=True) == "False\n"
