"""Leases: one runner per cell, dead runners hold nothing, and a runner that lost its cell writes nothing."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from factories import keys, make_cell, make_record, seal, sealed

from harness.core.errors import PrunebenchError
from harness.store import alive
from harness.store import lease as lease_module
from harness.store.lease import CellBusy, Timing, leased
from harness.store.store import Store

REPOSITORY = Path(__file__).parents[2]
#: what a child needs to import these tests
PATH = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(REPOSITORY)]
BRIEF = Timing(expires_s=0.6, renew_s=0.15)

HOLD = """
import sys, time
from pathlib import Path
sys.path[:0] = {path!r}
from factories import keys, make_cell, make_record
from harness.core.errors import PrunebenchError
from harness.store.lease import Timing
from harness.store.store import Store
store, cell = Store(Path(sys.argv[1]), Timing(float(sys.argv[2]), float(sys.argv[2]) / 4)), make_cell()
try:
    with store.open(cell, keys(4)) as writer:
        writer.append(make_record(0))
        print("ready", flush=True)
        sys.stdin.readline()
        writer.append(make_record(1, answer="from the child"))
        print("wrote", flush=True)
except PrunebenchError as error:
    print("refused", error, flush=True)
"""


def hold(root: Path, expires_s: float) -> subprocess.Popen[str]:
    """Another process that holds a cell until it is told to go on."""
    code = HOLD.format(path=PATH)
    process = subprocess.Popen([sys.executable, "-c", code, str(root), str(expires_s)], stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def names(root: Path) -> list[str]:
    return sorted(p.name for p in (root / "locks").iterdir())


def forge(root: Path, **changes: object) -> Path:
    """A lock by a runner of another machine, 5 s after its last sign of life."""
    folder = root / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    who = {"host": "far", "machine": "far 1", "pid": 1, "pid_start": "1", "started": "2026-01-01", "expires_s": 60.0}
    path = folder / "runner-other.json"
    path.write_text(json.dumps(who | changes))
    os.utime(path, (time.time() - 5,) * 2)
    lock = folder / f"{make_cell().identity()}.lock"
    lock.write_text(json.dumps({"runner": "other", "lease": "x"}))
    return lock


def test_files_say_who_and_are_gone_afterwards(tmp_path):
    store, cell = Store(tmp_path), make_cell()
    with store.open(cell, keys(4)), store.open(make_cell(seed=1), keys(4)):
        files = names(tmp_path)
        runner = json.loads((tmp_path / "locks" / files[-1]).read_text())
        assert files == [*sorted(f"{c.identity()}.lock" for c in (cell, make_cell(seed=1))), files[-1]]
        assert (runner["pid"], runner["expires_s"]) == (os.getpid(), 60.0)
        assert (
            json.loads((tmp_path / "locks" / files[0]).read_text())["runner"]
            == files[-1][len("runner-") : -len(".json")]
        )
    assert names(tmp_path) == []


def test_a_thousand_cells_are_open_at_once_on_few_file_descriptors(tmp_path):
    """256 descriptors are macOS's default; 1,024 that of most Linux systems."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    from contextlib import ExitStack

    store = Store(tmp_path)
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + 30, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        threads = threading.active_count()
        writers = [stack.enter_context(store.open(make_cell(seed=i), keys(4))) for i in range(1000)]
        for writer in writers[::20]:
            writer.append(make_record(0))
        assert threading.active_count() <= threads + 1
        assert sum(name.startswith("runner-") for name in names(tmp_path)) == 1
    assert names(tmp_path) == []


def test_a_living_holder_is_named_and_a_killed_one_holds_nothing_at_once(tmp_path):
    process = hold(tmp_path, 3600)
    store = Store(tmp_path)
    try:
        for attempt in (lambda: store.open(make_cell(), keys(4)).__enter__(), lambda: store.discard(make_cell())):
            with pytest.raises(
                CellBusy, match=rf"is being run by process {process.pid} on \S+ since 20.*lock: .*\.lock"
            ):
                attempt()
    finally:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead but not reaped: a zombie runs nothing
    began = time.monotonic()
    with store.open(make_cell(), keys(4)) as writer:
        assert list(writer.done) == keys(1)
        assert time.monotonic() - began < 5
        assert len(names(tmp_path)) == 2, "what the dead runner left is removed"
    process.communicate()


def test_a_runner_of_another_machine_holds_until_its_lease_expires(tmp_path):
    forge(tmp_path, expires_s=60.0)
    with pytest.raises(CellBusy, match="process 1 on far since 2026-01-01"), Store(tmp_path).open(make_cell(), keys(4)):
        pass
    forge(tmp_path, expires_s=4.0)
    with Store(tmp_path).open(make_cell(), keys(4)) as writer:
        writer.append(make_record(0))


@pytest.mark.parametrize(
    "left", ["", "{", "[]", '{"pid": 1, "host": "v1", "started": "x"}', '{"runner": "nobody", "lease": "x"}']
)
def test_a_lock_that_names_no_living_runner_is_free(tmp_path, left):
    """Torn by a kill, written by another version, or of a runner whose file is gone."""
    forge(tmp_path).write_text(left)
    sealed(Store(tmp_path), make_cell())
    (tmp_path / "locks" / "runner-other.json").write_text(left)
    sealed(Store(tmp_path), make_cell(seed=1))
    assert names(tmp_path) == []


def test_a_pid_that_is_used_again_is_not_the_runner(tmp_path):
    machine, start = alive.machine(), alive.pid_start(os.getpid())
    if start is None:
        pytest.skip("this system does not say when a process started")
    forge(tmp_path, machine=machine, pid=os.getpid(), pid_start=start)
    with pytest.raises(CellBusy), Store(tmp_path).open(make_cell(), keys(4)):
        pass
    forge(tmp_path, machine=machine, pid=os.getpid(), pid_start=str(int(start) - 1))
    with Store(tmp_path).open(make_cell(), keys(4)):
        pass


def test_the_heartbeat_keeps_a_cell_longer_than_its_lease(tmp_path):
    mine = Store(tmp_path, BRIEF)
    with mine.open(make_cell(), keys(4)) as writer:
        until = time.monotonic() + 3 * BRIEF.expires_s
        while time.monotonic() < until:
            with pytest.raises(CellBusy), Store(tmp_path).open(make_cell(), keys(4)):
                pass
            time.sleep(0.1)
        writer.append(make_record(0))


def test_without_a_heartbeat_the_cell_is_lost_and_nothing_more_is_written(tmp_path, monkeypatch):
    with Store(tmp_path, BRIEF).open(make_cell(), keys(4)) as old:
        old.append(make_record(0))
        monkeypatch.setattr(lease_module._Runner, "renew", lambda self: None)
        time.sleep(1.5 * BRIEF.expires_s)
        monkeypatch.undo()
        old.append(make_record(1))  # late, but nobody took it
        monkeypatch.setattr(
            lease_module._Runner, "renew", lambda self: None if self.timing == BRIEF else os.utime(self.path)
        )
        time.sleep(1.5 * BRIEF.expires_s)
        with Store(tmp_path).open(make_cell(), keys(4)) as new:
            assert list(new.done) == keys(2)
            new.append(make_record(2))
            journal = (new.folder / "journal.jsonl").read_bytes()
            for write in (lambda: old.append(make_record(3)), lambda: old.append(make_record(2, answer="other"))):
                with pytest.raises(
                    PrunebenchError, match=rf"no longer holds .*process {os.getpid()} .* may have continued"
                ):
                    write()
            assert (new.folder / "journal.jsonl").read_bytes() == journal
            new.append(make_record(3))
            result = seal(new)
        old.done.update({r.key: r for r in (make_record(2), make_record(3))})
        with pytest.raises(PrunebenchError, match="no longer holds"):
            seal(old)
    result.verify()
    assert names(tmp_path) == []


def test_who_lost_a_cell_leaves_the_lock_to_who_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(
        lease_module._Runner, "renew", lambda self: None if self.timing == BRIEF else os.utime(self.path)
    )
    old = Store(tmp_path, BRIEF).open(make_cell(), keys(4))
    old.__enter__()
    time.sleep(1.5 * BRIEF.expires_s)
    with Store(tmp_path).open(make_cell(), keys(4)) as new:
        old.__exit__(None, None, None)
        new.append(make_record(0))
        with pytest.raises(CellBusy), Store(tmp_path).open(make_cell(), keys(4)):
            pass


def test_a_suspended_process_notices_that_it_lost_its_cell(tmp_path):
    """The real thing: SIGSTOP past the expiry, another runner finishes, SIGCONT."""
    process = hold(tmp_path, 1.0)
    try:
        process.send_signal(signal.SIGSTOP)
        store, until = Store(tmp_path), time.monotonic() + 20
        while True:
            try:
                with store.open(make_cell(), keys(4)) as writer:
                    writer.append(*(make_record(i) for i in range(1, 4)))
                    result = seal(writer)
                break
            except CellBusy:
                assert time.monotonic() < until, "the lease must run out"
                time.sleep(0.1)
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate("go on\n", timeout=60)
    finally:
        end(process)
    assert output.startswith("refused this process no longer holds")
    assert result.samples()["answer"].tolist() == [make_record(i).answer for i in range(4)]
    assert sorted(p.name for p in result.folder.iterdir()) == ["cell.json", "samples.parquet"]
    assert names(tmp_path) == []


def test_of_many_takers_of_an_expired_lock_one_wins(tmp_path):
    """Threads with runners of their own: equal in every way that counts, because the flocks are per open file."""
    for round_ in range(10):
        root = tmp_path / str(round_)
        forge(root, expires_s=1.0)
        start, won, lost = threading.Barrier(8), [], []

        def take(i, root=root, start=start, won=won, lost=lost):
            start.wait()
            try:
                with leased(root / "locks", make_cell().identity(), "the cell", Timing(60 + i, 15)):
                    won.append(i)
                    start.wait()
            except CellBusy:
                lost.append(i)
                start.wait()

        threads = [threading.Thread(target=take, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 7)
        assert names(root) == []


def test_a_forked_child_does_not_give_back_its_parents_cell(tmp_path):
    with Store(tmp_path).open(make_cell(), keys(4)) as writer:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                lease_module._at_exit()
                with Store(tmp_path).open(make_cell(seed=1), keys(4)):
                    pass
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        writer.append(make_record(0))
        with pytest.raises(CellBusy), Store(tmp_path).open(make_cell(), keys(4)):
            pass


def test_an_unfinished_generator_leaves_nothing_at_exit(tmp_path):
    code = (
        f"import sys; sys.path[:0] = {PATH!r}\n"
        "from pathlib import Path\n"
        "from factories import keys, make_cell\n"
        "import harness.store.lease as module\n"
        "from harness.store.store import Store\n"
        "def cells():\n"
        "    with Store(Path(sys.argv[1])).open(make_cell(), keys(4)) as writer:\n"
        "        yield writer\n"
        "kept = cells(); next(kept); module.kept = kept\n"
        "assert len(list(Path(sys.argv[1], 'locks').iterdir())) == 2\n"
        "sys.exit(3)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 3
    assert names(tmp_path) == []


def test_a_lock_in_use_for_too_long_is_busy_not_waited_for(tmp_path):
    import fcntl

    lock = forge(tmp_path)
    with lock.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with (
            pytest.raises(CellBusy, match="in use by another process"),
            lease_module._flocked(lock, create=True, patience_s=0.1),
        ):
            pass


def test_timing_must_make_sense():
    with pytest.raises(PrunebenchError, match="renew_s=60"):
        Timing(60.0, 60.0)


def test_tidy_removes_what_a_killed_runner_left(tmp_path):
    """Also where nothing is left to run, and nothing of a runner that is alive."""
    script = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from factories import keys, make_cell
from harness.store.store import Store
with Store(Path(sys.argv[1])).open(make_cell(), keys(4)):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path), *PATH], check=False)
    locks = tmp_path / "locks"
    assert len(list(locks.iterdir())) == 2
    with Store(tmp_path).open(make_cell(seed=1), keys(4)):
        Store(tmp_path).tidy()
        assert (locks / f"{make_cell(seed=1).identity()}.lock").exists()
    Store(tmp_path).tidy()
    assert list(locks.iterdir()) == []
