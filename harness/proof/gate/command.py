"""The regression gate: run configs/regress.yaml afresh and compare every sample with the committed baseline (`make
regress`).

Nothing is taken from sealed cells: a stale one would hide a regression. What must be equal, and how far it may be off
because another processor or another build of torch may round otherwise:

* visual tokens kept per layer, as numbers, and bytes of cache: exactly, where the method states its schedule
  (`Method.plan`).
* prefill FLOPs: exactly, where it also states its scoring (`Method.plan_scoring`).
* which tokens were kept, and the two above where the prompt decides: in all but `TIES` of a cell's samples (one at
  least), and all but `TIES_IN_ALL` of all samples: scores that are equal up to rounding may be ranked otherwise.
* answers: in all but `FLIPS` of a cell's samples (one at least), and in all but `FLIPS_IN_ALL` of all.
* right or wrong: exact McNemar test per cell (stats.mcnemar), Holm over cells, in either direction.

The commands hold torch, MKL and oneDNN to AVX2 kernels on x86 (harness/cli/kernels.py): with AVX-512 kernels of one
processor VisPruner kept other tokens in 37 of 90 samples, for its set hangs on the last bit. The allowance is for real
ties, and small: MKL's compatible kernels and prompts in batches of 5, not 16, changed no answer, no kept token and no
cost of 1,800 samples. The caps stand beside the test because a test of a few samples is weak. Among 88 cells, 12 of 24
samples must change in the same direction before the test is significant. Times are shown beside the unpruned model's of
the same run and never fail: cells share prefixes, so they are no measurement.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.core.command import rendered
from harness.core.errors import PrunebenchError
from harness.core.paths import make_folder
from harness.proof.gate.compare import GateResult, compare
from harness.proof.gate.report import report, report_markdown, write_pictures
from harness.proof.gate.snapshot import Snapshot, dump, load, snapshot
from harness.store.alive import scratch
from harness.store.files import write_atomic

CONFIG = Path("configs/regress.yaml")
BASELINE = Path("results/reference/regress/baseline.json")
OUT = Path("results/local/regress")


def measure(
    config: Path,
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    batch: int = 16,
    workers: int = 1,
    say: Callable[[str], None] = print,
) -> Snapshot:
    """Run a sweep on the CPU into `folder`, which must hold no cells yet."""
    from harness.method import method_class
    from harness.runner import sweep
    from harness.runner.pace import Pace
    from harness.runner.run import Options

    if (folder / "cells").exists():
        raise PrunebenchError(f"expected a results folder without cells for a fresh run, found some in {folder}")
    plan = sweep.load(config, overrides)
    specs: dict[str, str] = {}
    for entry in plan.methods:
        name = method_class(entry.method).name
        if specs.setdefault(name, entry.method) != entry.method:
            raise PrunebenchError(
                f"{config}: {specs[name]} and {entry.method} are both called {name!r}, and a baseline goes by names:"
                " rename one"
            )
    finished = sweep.run(plan, Options(folder, Pace(batch), fresh=True), say, workers=workers, device="cpu")
    finished.check_whole()
    return snapshot(finished.cells.values())


# ------------------------------------------------------------------------------------------------------------- commands


def regress(
    config: Path = CONFIG,
    baseline: Path = BASELINE,
    out: Path = OUT,
    *,
    batch: int = 16,
    workers: int = 1,
    say: Callable[[str], None] = print,
) -> GateResult:
    """Run the sweep afresh and compare; `out` gets regress.md, the images of changed answers and the run itself under
    run/.

    Raises PrunebenchError where there is no baseline, before anything is run.
    """
    old = load(baseline)
    new = _fresh_run(config, out, batch, workers, say)
    found = compare(old, new)
    shutil.rmtree(out / "images", ignore_errors=True)
    pictures = write_pictures(found.flips, config, (), out / "images") if found.flips else {}
    whole = out / "regress.md"
    write_atomic(whole, report_markdown(found, pictures).encode())
    say("")
    say(report(found, pictures, whole))
    if not found.passed:
        say(f"If this is meant, commit the change and renew the baseline: {_command('baseline', config, baseline)}")
    say(f"written  {whole}")
    return found


def _command(target: str, config: Path, baseline: Path) -> str:
    """How a person calls a target of the gate on these files."""
    asked = [("CONFIG", config, CONFIG), ("BASELINE", baseline, BASELINE)]
    return rendered(["make", target], {name: str(path) for name, path, default in asked if path != default})


def renew(
    config: Path = CONFIG,
    baseline: Path = BASELINE,
    out: Path = OUT,
    *,
    batch: int = 16,
    workers: int = 1,
    say: Callable[[str], None] = print,
) -> None:
    """Run the sweep afresh, say how it differs from the old baseline and write the new one.

    Raises PrunebenchError, before anything is run, where this checkout holds changes that no commit has: nobody could
    measure it again.
    """
    from harness.core.paths import checkout

    dirty = changed_files(checkout("renewing the baseline"))
    if dirty:
        names = ", ".join(dirty[:5]) + (f" and {len(dirty) - 5} more" if len(dirty) > 5 else "")
        raise PrunebenchError(
            f"a baseline is made from a commit; expected no uncommitted changes outside results/, found {names}: commit"
            " them first"
        )
    new = _fresh_run(config, out, batch, workers, say)
    say("")
    if baseline.is_file():
        try:
            found = compare(load(baseline), new)
            say(report(found, {}))
        except PrunebenchError as error:
            say(f"the old baseline cannot be compared with: {error}")
    else:
        say(f"no baseline before: {len(new.cells)} cells, {sum(len(cell.rows) for cell in new.cells)} samples")
    baseline.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(baseline, dump(new).encode("ascii"))
    say(f"written  {baseline}: commit it with what it belongs to")


def changed_files(repository: Path) -> list[str]:
    """Files outside results/ that differ from the last commit, new Python files of the packages included.

    Raises PrunebenchError outside a git checkout.
    """

    def git(*args: str) -> list[str]:
        try:
            done = subprocess.run(
                ["git", *args], cwd=repository, capture_output=True, text=True, check=True, timeout=60
            )
        except (OSError, subprocess.SubprocessError) as error:
            detail = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            why = detail[0] if detail else error
            raise PrunebenchError(
                f"a baseline is made from a commit; expected a git checkout at {repository}: {why}"
            ) from None
        return done.stdout.splitlines()

    tracked = git("diff", "--name-only", "HEAD", "--", ".", ":(exclude)results")
    packages = [
        name for name in ("harness", "methods", "tasks", "prunebench", "configs") if (repository / name).is_dir()
    ]
    new = git("ls-files", "--others", "--exclude-standard", "--", *packages) if packages else []
    return sorted({*tracked, *(name for name in new if name.endswith((".py", ".yaml")))})


def _fresh_run(config: Path, out: Path, batch: int, workers: int, say: Callable[[str], None]) -> Snapshot:
    """Measure into an empty folder, which then replaces `out`/run."""
    make_folder(out)
    with scratch(out) as temporary:
        found = measure(config, temporary / "run", batch=batch, workers=workers, say=say)
        shutil.rmtree(out / "run", ignore_errors=True)
        (temporary / "run").rename(out / "run")
    return found
