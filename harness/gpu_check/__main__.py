"""`python -m harness.gpu_check`: see docs/gpu-check.md. Exit code 0: all is well, 1: something failed, 2: nothing was
run."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from harness.gpu_check import plan, requirements


def main(arguments: list[str] | None = None) -> int:
    """Run the check as the command line says; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.gpu_check", description="What only a GPU can settle, in nine minutes."
    )
    parser.add_argument("--out", type=Path, default=Path("results/local/gpu-check"), help="folder for the JSON files")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal with a small shape")
    parser.add_argument("--size", choices=tuple(plan.SIZES), help="default: full on cuda, small on a CPU")
    parser.add_argument("--stages", help=f"some of {','.join(plan.STAGES)}; default: all")
    parser.add_argument(
        "--limit",
        type=float,
        help=f"seconds for all stages together; default: {plan.LIMIT_S} on cuda, {plan.REHEARSAL_S} on a CPU",
    )
    parser.add_argument("--wheels", action="store_true", help="print the packages that are needed, and nothing else")
    parser.add_argument(
        "--write-answers", action="store_true", help="make the file of committed answers again from results/reference"
    )
    asked = parser.parse_args(arguments)
    if asked.wheels:
        print(requirements.wheel_list())
        return 0
    versions = requirements.installed()
    refused, doubtful = requirements.problems(versions)
    for problem in [*refused, *doubtful]:
        print(f"{'error' if problem in refused else 'note'}: {problem}", file=sys.stderr, flush=True)
    if refused:
        return 2
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if asked.write_answers:
        from harness.gpu_check import fixture

        print(fixture.write())
        return 0
    names = asked.stages.split(",") if asked.stages else list(plan.STAGES)
    unknown = [name for name in names if name not in plan.STAGES]
    if unknown:
        parser.error(f"--stages {unknown[0]}: expected some of {', '.join(plan.STAGES)}")
    return _run(asked, names, versions, doubtful)


def _run(asked: argparse.Namespace, names: list[str], versions: dict[str, str], doubtful: list[str]) -> int:
    import torch

    if asked.device == "cuda" and not torch.cuda.is_available():
        print(
            "error: expected a CUDA device, found none: run it where one is, or rehearse with DEVICE=cpu (--device"
            " cpu)",
            file=sys.stderr,
        )
        return 2
    from harness.gpu_check import run, stages

    size = asked.size or ("full" if asked.device == "cuda" else "small")
    command = [
        "python",
        "-m",
        "harness.gpu_check",
        "--device",
        asked.device,
        "--size",
        size,
        "--out",
        str(asked.out),
        "--stages",
        ",".join(names),
    ]
    command += ["--limit", f"{asked.limit:g}"] if asked.limit else []
    limit = asked.limit or (plan.LIMIT_S if asked.device == "cuda" else plan.REHEARSAL_S)
    about = run.described(command, versions, doubtful, asked.device, size)
    print(
        f"{'REHEARSAL, no result: ' if about['rehearsal'] else ''}{size} size on {about['device']}, at most"
        f" {limit:.0f} s",
        flush=True,
    )
    well = run.run(
        {name: stages.STAGES[name] for name in names}, plan.SIZES[size], asked.device, asked.out, about, limit
    )
    print(f"written  {asked.out}/*.json")
    return 0 if well else 1


if __name__ == "__main__":
    raise SystemExit(main())
