"""Variables that launchers set (torchrun, accelerate, mpirun, srun): looked at before anything is measured.

prunebench runs as one process that starts its own workers. As one of several it would measure everything once per
process, and lmms-eval's scoring, which takes part in such a group, would wait for the others or give no result.
Launchers of ours take these variables away from what they start, as examples/slurm/sweep.sbatch does.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from harness.core.errors import PrunebenchError
from harness.core.spelling import CALLER, COMMAND, given

_STEP = "SLURM_STEP_NUM_TASKS"
#: how many processes there are, by what says so; srun's and mpirun's count those of one step, which a batch script that
#: calls prunebench once does not have (its SLURM_NTASKS is what a step may have)
_SIZES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", _STEP)
#: which of them this one is
_RANKS = ("RANK", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "MV2_COMM_WORLD_RANK")
#: what else torch.distributed, accelerate and lmms-eval read of it
_GROUP = ("MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE", "GROUP_WORLD_SIZE")
#: commands that start processes themselves
_WITH_WORKERS = ("eval", "sweep", "regress", "baseline")
_PREFIXES = ("ACCELERATE_", "TORCHELASTIC_", "FSDP_", "DEEPSPEED_")


def check_alone(instead: str = "") -> None:
    """Raise PrunebenchError where a launcher says that this is one of several processes, or says what nobody can read.

    `instead`: what to do about it; "": the command that was typed, started once.
    """
    for names, most in ((_SIZES, 1), (_RANKS, 0)):
        for name in names:
            text = os.environ.get(name, "").strip()
            if not text:
                continue
            number = int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else None
            # a rank of -1 is what torch calls none
            if number is None or number > most:
                raise PrunebenchError(
                    f"expected one process, found {name}={text[:40]} in the environment: start prunebench once,"
                    f" without torchrun, accelerate, mpirun or srun (`unset {name}`); {instead or _once() + _nodes()}"
                )


def _once() -> str:
    """What does the same without a launcher: the command as it was typed, with as many workers as there are ranks."""
    text = os.environ.get("WORLD_SIZE", "").strip()
    n = int(text) if re.fullmatch(r"[0-9]{1,4}", text) and int(text) > 1 else 2
    words = [word for word in sys.argv[1:] if word != "--debug"]
    if os.environ.get(CALLER) != COMMAND or not words:
        return f"{given('workers', n)} of an evaluation or a sweep uses several processes or GPUs"
    if words[0] not in _WITH_WORKERS:
        return f"as `{shlex.join(['prunebench', *words])}`"
    own = any(word.partition("=")[0] == "--workers" for word in words)
    line = shlex.join(["prunebench", *words, *([] if own else ["--workers", str(n)])])
    return f"`{line}` uses several processes or GPUs itself"


def _nodes() -> str:
    """What uses all nodes of a SLURM job, for a task of srun."""
    return "; on several nodes start examples/slurm/sweep.sbatch, see docs/clusters.md" if _STEP in os.environ else ""


def _launchers(name: str) -> bool:
    return name in (*_SIZES, *_RANKS, *_GROUP) or name.startswith(_PREFIXES)


@contextmanager
def without_launcher() -> Iterator[None]:
    """Hide a launcher's variables inside: lmms-eval reads them while it scores."""
    hidden: Mapping[str, str] = {name: value for name, value in os.environ.items() if _launchers(name)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
