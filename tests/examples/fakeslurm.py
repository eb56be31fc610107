"""sbatch, srun, scancel and scontrol of a cluster that is this machine: `python fakeslurm.py sbatch ...`.

Measured against SLURM 22.05: which variables a batch script and a step have, whom a signal reaches (`scancel --signal`
every process of the steps, and not the batch script), what SIGTERM does to srun (it kills its tasks at once), and
how srun's exit code is made. An option that is not known here is refused.

FAKE_SLURM names a folder for its state. FAKE_JOB is the job's number. FAKE_COPY is a folder that is copied to
`state/copy` as it is when a job is queued again.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

STATE, JOB = Path(os.environ["FAKE_SLURM"]), os.environ["FAKE_JOB"]


def sbatch(words: list[str]) -> int:
    """Run the job to its end, again after each `scontrol requeue`; the last exit code."""
    parser = argparse.ArgumentParser()
    for name in ("job-name", "output", "open-mode", "gpus-per-node", "time", "signal"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--cpus-per-task", type=int)
    parser.add_argument("--requeue", action="store_true")
    parser.add_argument("--no-kill", action="store_true")
    parser.add_argument("script", nargs="?", type=Path)
    parser.add_argument("words", nargs=argparse.REMAINDER)
    asked = parser.parse_args(words)
    lines = [x.removeprefix("#SBATCH") for x in asked.script.read_text().splitlines() if x.startswith("#SBATCH")]
    settings = parser.parse_args([*shlex.split(" ".join(lines))])
    settings = parser.parse_args(words, settings)
    spooled = shutil.copy(asked.script, STATE / "slurm_script")
    job = {
        "SLURM_JOB_ID": JOB,
        "SLURM_JOB_NUM_NODES": str(settings.nodes),
        "SLURM_JOB_NODELIST": f"n[1-{settings.nodes}]",
        "SLURM_CPUS_ON_NODE": str(settings.cpus_per_task),
        "SLURMD_NODENAME": "n1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        # as some sites add for torch
        "WORLD_SIZE": str(settings.nodes),
        "RANK": "0",
    }
    code, starts = 0, 0
    while starts == 0 or (STATE / "requeue").exists():
        (STATE / "requeue").unlink(missing_ok=True)
        restarted = {"SLURM_RESTART_COUNT": str(starts)} if starts else {}
        with open(settings.output.replace("%j", JOB), "a" if settings.open_mode == "append" else "w") as log:
            batch = subprocess.Popen(
                ["bash", spooled, *settings.words],
                env={**os.environ, **job, **restarted},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            (STATE / "batch").write_text(str(batch.pid))
            code = batch.wait()
        starts += 1
    return code


def srun(words: list[str]) -> int:
    """The tasks of a step, one a node; the highest of their exit codes."""
    parser = argparse.ArgumentParser()
    for name in ("mpi", "export", "nodelist", "exclude", "wait", "kill-on-bad-exit"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--ntasks", type=int)
    parser.add_argument("--no-kill", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    step = parser.parse_args(words)
    every = [f"n{i + 1}" for i in range(int(os.environ["SLURM_JOB_NUM_NODES"]))]
    nodes = [n for n in every if n != step.exclude and step.nodelist in (None, n)]
    if not len(nodes) == step.nodes == step.ntasks:
        raise SystemExit(f"srun: expected {step.nodes} nodes and {step.ntasks} tasks, found {nodes}")
    tasks = []
    for rank, node in enumerate(nodes):
        variables = {
            "SLURM_STEP_ID": "0",
            "SLURM_STEP_NUM_TASKS": str(step.ntasks),
            "SLURM_NTASKS": str(step.ntasks),
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": "0",
            "SLURMD_NODENAME": node,
        }
        if step.mpi != "none":
            variables |= {"PMI_SIZE": str(step.ntasks), "PMI_RANK": str(rank)}
        task = subprocess.Popen(step.command, env={**os.environ, **variables}, start_new_session=True)
        tasks.append(task)
        (STATE / f"task.{task.pid}").touch()

    def kill(number: int, frame: object) -> None:
        for task in tasks:
            tell(task.pid, signal.SIGKILL)

    signal.signal(signal.SIGTERM, kill)
    codes = []
    for task in tasks:
        code = task.wait()
        codes.append(code if code >= 0 else 128 - code)
        tell(task.pid, signal.SIGKILL)  # what a task leaves behind
        (STATE / f"task.{task.pid}").unlink()
    return max(codes)


def tell(session: int, number: int) -> None:
    """Signal every process of a session."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[3]) == session:
                os.kill(int(stat.parent.name), number)
        except (OSError, IndexError):
            continue  # it has ended


def scancel(words: list[str]) -> int:
    if words != ["--signal=TERM", JOB]:
        raise SystemExit(f"scancel: expected --signal=TERM {JOB}, found {words}")
    for file in STATE.glob("task.*"):
        tell(int(file.suffix[1:]), signal.SIGTERM)
    return 0


def scontrol(words: list[str]) -> int:
    if words == ["show", "job", JOB]:
        state = "COMPLETING" if (STATE / "cancelled").exists() else "RUNNING"
        print(f"JobId={JOB} JobName=prunebench\n   JobState={state} Reason=None Dependency=(null)")
        return 0
    if words != ["requeue", JOB]:
        raise SystemExit(f"scontrol: expected show job or requeue of {JOB}, found {words}")
    if "FAKE_COPY" in os.environ:
        shutil.copytree(os.environ["FAKE_COPY"], STATE / "copy")
    (STATE / "requeue").touch()
    return 0


if __name__ == "__main__":
    sys.exit({"sbatch": sbatch, "srun": srun, "scancel": scancel, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:]))
