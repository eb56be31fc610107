"""Run stages one after the other within a limit; each leaves its file whatever happens to it or to the next."""

from __future__ import annotations

import json
import shlex
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.core.errors import Interrupted
from harness.gpu_check import plan
from harness.gpu_check.plan import Size


class TimeUp(Interrupted):
    """A stage has had its time; no `Exception`, which the code that it interrupts may take for its own."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeUp inside the block after `seconds`."""

    def ring(_signal: int, _frame: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class StageReport:
    """What a stage has found so far, and the file that `save` writes it to."""

    name: str
    device: str
    size: Size
    out: Path
    about: Mapping[str, Any]
    seconds: float
    began: float = field(default_factory=time.monotonic)
    result: dict[str, Any] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    finished: bool = False

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def save(self) -> None:
        took = round(time.monotonic() - self.began, 1)
        what = {
            "stage": self.name,
            "finished": self.finished,
            "failed": self.failed,
            "seconds": took,
            **self.about,
            "result": self.result,
        }
        write(self.out / f"{self.name}.json", what)


def write(file: Path, what: Mapping[str, Any]) -> None:
    """Write a JSON file at once, so that a run that is cut off leaves no half of one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_suffix(".part")
    half.write_text(json.dumps(what, indent=1) + "\n")
    half.replace(file)


def run_stage(report: StageReport, work: Callable[[Any], None]) -> None:
    """Run one stage to its end, its error or its time, and write its file."""
    try:
        with time_limit(report.left()):
            work(report)
        report.finished = True
    except TimeUp:
        report.failed.append(f"cut off after its {report.seconds:.0f} s; the result holds what was found by then")
    except Exception as error:
        report.failed.append(f"{type(error).__name__}: {error}".splitlines()[0])
        report.result["traceback"] = traceback.format_exc().splitlines()[-30:]
    finally:
        report.save()


def run(
    stages: Mapping[str, Callable[[Any], None]],
    size: Size,
    device: str,
    out: Path,
    about: Mapping[str, Any],
    limit: float = plan.LIMIT_S,
    say: Callable[[str], None] = print,
) -> bool:
    """Run `stages` in order, a stage's unused time going to the next; True if nothing failed. `about` stands in every
    file."""
    began = time.monotonic()
    done: list[dict[str, Any]] = []
    names = list(stages)
    for i, name in enumerate(names):
        left = limit - plan.RESERVE_S - (time.monotonic() - began)
        share = plan.STAGES[name] / sum(plan.STAGES[later] for later in names[i:])
        report = StageReport(name, device, size, out, about, left * share)
        run_stage(report, stages[name])
        took = time.monotonic() - report.began
        done.append({"stage": name, "seconds": round(took, 1), "failed": report.failed})
        write(
            out / "gpu-check.json",
            {**about, "seconds": round(time.monotonic() - began, 1), "stages": done, "to_come": names[i + 1 :]},
        )
        say(
            f"{name:8} {took:5.0f} s  "
            + (f"FAILED ({len(report.failed)}): {report.failed[0]}" if report.failed else "ok")
        )
    return not any(stage["failed"] for stage in done)


def described(
    command: Sequence[str], versions: Mapping[str, str], doubtful: Sequence[str], device: str, size: str
) -> dict[str, Any]:
    """What every file says of the run: device, versions, command, and whether it was a rehearsal."""
    from harness.core.provenance import git_state
    from harness.gpu_check import house

    return {
        "rehearsal": device != "cuda" or size != "full",
        "size": size,
        "device": house.name_of(device),
        "command": shlex.join(command),
        "versions": dict(versions),
        "doubtful_versions": list(doubtful),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **git_state(),
    }
