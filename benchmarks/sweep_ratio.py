"""What does one sweep cost against its cells run one by one? `python benchmarks/sweep_ratio.py` (about 20 minutes on
two cores).

Mini model, GQA and POPE, 5 methods x 4 budgets + none, about 100 questions each, float32. One by one: every cell as a
command of its own (`prunebench eval` of one method, budget and task; batch 1, nothing shared), as somebody without a
sweep would run them. The unpruned cell that such a command also needs is sealed beforehand and reused, so it is counted
once. Both sides get the same threads, one after the other on an otherwise idle machine; to keep the run short, every
third cell is measured one by one and the sum is scaled by the number of cells (`--every 1` measures all). The last line
reads `ratio N.Nx`: seconds one by one over seconds in one sweep, process start-up included.

`--wide`: 20 arms x 5 budgets in place of those, as a leaderboard has; `--every 21` then measures 10 cells, two of each
budget. How the ratio grows is measured with `--methods`, `--budgets` and `--limit`: a mini data set has about 36
images, so a larger limit means more questions an image.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from math import gcd
from pathlib import Path
from typing import Any

METHODS = ("random", "uniform", "fastv", "sparsevlm", "visipruner")
BUDGETS = (192, 128, 64, 32)
TASKS = ("gqa", "pope")
#: name and knobs; every method that takes a number of tokens, and five settings that papers list beside them
WIDE: tuple[tuple[str, dict[str, Any]], ...] = (
    *((name, {}) for name in (*METHODS, "first", "pooling", "downsample", "visionzip", "fastervlm", "vispruner")),
    *((name, {}) for name in ("divprune", "hiprune", "holov", "prumerge", "pyramiddrop", "dart", "v2drop")),
    ("sparsevlm", {"plus": True}),
    ("cdpruner", {"relevance": "none"}),
)
WIDE_BUDGETS = (192, 128, 64, 32, 16)


def timed(arguments: list[str]) -> tuple[float, str]:
    """Wall seconds of a prunebench command, and what it printed; raises where it fails."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", *arguments], capture_output=True, text=True, env=os.environ
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - began, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=100, help="questions per task")
    parser.add_argument("--every", type=int, default=3, help="measure every n-th cell one by one")
    parser.add_argument("--wide", action="store_true", help="20 arms x 5 budgets")
    parser.add_argument("--methods", type=int, help="only so many of the arms")
    parser.add_argument("--budgets", type=int, help="only so many of the budgets")
    parser.add_argument(
        "--swept", type=float, nargs=2, metavar=("SECONDS", "SEALED"), help="those of a sweep that was timed before"
    )
    args = parser.parse_args()
    arms = (WIDE if args.wide else tuple((name, {}) for name in METHODS))[: args.methods]
    budgets = (WIDE_BUDGETS if args.wide else BUDGETS)[: args.budgets]
    if args.every > 1 and gcd(args.every, len(budgets) * len(TASKS)) > 1:
        raise SystemExit(
            f"--every {args.every}: expected a number without a common factor with {len(budgets)} budgets x"
            f" {len(TASKS)} tasks, or some budgets and tasks are never measured; try {args.every + 1}"
        )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = root / "sweep.yaml"
        config.write_text(
            json.dumps(
                {
                    "tasks": TASKS,
                    "limit": args.limit,
                    "budgets": budgets,
                    "methods": [{"method": name, "knobs": knobs} for name, knobs in (("none", {}), *arms)],
                }
            )
        )
        sweep = ["sweep", str(config), "--results", str(root / "sweep")]
        if args.swept:
            swept, idle = args.swept
        else:
            swept, said = timed(sweep)
            idle, _ = timed(sweep)  # everything is sealed: what starting, loading and the tables cost
            print("  " + next(line for line in said.splitlines() if "in this process:" in line))
        print(f"one sweep: {swept:.1f} s, of which {idle:.1f} s is a run that finds everything sealed", flush=True)

        single = ["eval", "--limit", str(args.limit), "--batch", "1", "--no-share", "--results", str(root / "single")]

        def one(method: str, knobs: dict[str, Any], budget: int | None, task: str) -> tuple[float, float]:
            """Seconds of a cell's own process, and of the same command when it finds the cell sealed."""
            command = [*single, "--method", method, "--tasks", task, *(["--budget", str(budget)] if budget else [])]
            command += [word for name, value in knobs.items() for word in ("--set", f"{name}={str(value).lower()}")]
            took, again = timed(command)[0], timed(command)[0]
            print(
                f"one by one: {task} {method} {knobs or ''} {budget or ''} {took:.1f} s, again {again:.1f} s",
                flush=True,
            )
            return took, again

        unpruned = [one("none", {}, None, task) for task in TASKS]
        cells = [(name, knobs, b, t) for name, knobs in arms for b in budgets for t in TASKS]
        measured = [one(*cell) for cell in cells[:: args.every]]
        scale = len(cells) / len(measured)
        whole = sum(took for took, _ in unpruned) + scale * sum(took for took, _ in measured)
        inside = sum(took - again for took, again in unpruned) + scale * sum(took - again for took, again in measured)
        print(
            f"one by one: {whole:.0f} s for {len(cells) + 2} cells ({len(measured)} of {len(cells)} pruned ones"
            f" measured, scaled by {scale:.2f})"
        )
        print(f"ratio without process start-up {inside / (swept - idle):.1f}x")
        print(f"ratio {whole / swept:.1f}x")


if __name__ == "__main__":
    main()
