"""Variables of launchers are looked at before anything is measured, and hidden from lmms-eval while it scores."""

from __future__ import annotations

import os
import re
import sys

import pytest

from harness.core.errors import PrunebenchError
from harness.core.paths import TOP
from harness.core.spelling import CALLER, COMMAND
from harness.runner.launch.launchers import check_alone, without_launcher

SEVERAL = [
    {"WORLD_SIZE": "2"},
    {"WORLD_SIZE": "8", "RANK": "0", "LOCAL_RANK": "0"},
    {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "29500"},
    {"RANK": "3"},
    {"LOCAL_RANK": "1"},
    {"LOCAL_WORLD_SIZE": "4"},
    {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
    {"OMPI_COMM_WORLD_RANK": "1"},
    {"PMI_SIZE": "16"},
    {"PMI_RANK": "2"},
    {"MV2_COMM_WORLD_SIZE": "2"},
    {"PMIX_RANK": "1"},
    # as srun sets them
    {"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"},
    {"WORLD_SIZE": "two"},
    {"WORLD_SIZE": "2.0"},
    {"WORLD_SIZE": "$WORLD_SIZE"},
    {"RANK": "garbage"},
    {"RANK": "0x1"},
    {"RANK": "٣"},
    {"WORLD_SIZE": "1e3"},
    {"WORLD_SIZE": "9" * 5000},
    {"LOCAL_RANK": "--1"},
    {"WORLD_SIZE": "1,1"},
]
ONE = [
    {},
    {"WORLD_SIZE": "1"},
    {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "nowhere.example", "MASTER_PORT": "x"},
    {"WORLD_SIZE": "", "RANK": ""},
    {"WORLD_SIZE": " 1 "},
    {"LOCAL_RANK": "-1"},
    {"OMPI_COMM_WORLD_SIZE": "1"},
    # in a batch script, and in a step of one task
    {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"},
    {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7", "PMIX_RANK": "0"},
    {"ACCELERATE_USE_CPU": "perhaps", "ACCELERATE_MIXED_PRECISION": "no"},
    {"MASTER_ADDR": "\x01", "MASTER_PORT": "-5"},
]
#: of a job, not of its steps
KEPT = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_JOB_ID")


def given(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {name for one in (*SEVERAL, *ONE) for name in one}:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("variables", SEVERAL, ids=lambda v: " ".join(f"{k}={x[:9]}" for k, x in v.items()))
def test_one_of_several_processes_is_refused_in_a_line(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given(variables, monkeypatch)
    with pytest.raises(PrunebenchError, match="expected one process, found ") as error:
        check_alone()
    text = str(error.value)
    assert any(f"found {name}={value[:40]} " in text for name, value in variables.items())
    assert re.search(r"workers=[0-9]+ of an evaluation or a sweep uses several processes", text)
    assert len(text) < 400


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("eval --method fastv --budget 64", "`prunebench eval --method fastv --budget 64 --workers 3` uses several"),
        ("sweep my.yaml --workers=4", "`prunebench sweep my.yaml --workers=4` uses several"),
        ("sweep --debug my.yaml", "`prunebench sweep my.yaml --workers 3` uses several"),
        ("ablate my.yaml", "as `prunebench ablate my.yaml`"),
    ],
)
def test_a_command_is_told_how_it_is_started_once(typed: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given({"WORLD_SIZE": "3", "RANK": "0"}, monkeypatch)
    monkeypatch.setenv(CALLER, COMMAND)
    monkeypatch.setattr(sys, "argv", ["anything.py", *typed.split()])
    with pytest.raises(PrunebenchError, match="found WORLD_SIZE=3 ") as error:
        check_alone()
    assert said in str(error.value)


def test_a_task_of_srun_is_shown_what_uses_all_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    given({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}, monkeypatch)
    with pytest.raises(PrunebenchError, match=r"found SLURM_STEP_NUM_TASKS=4 .* docs/clusters\.md") as error:
        check_alone()
    (script,) = re.findall(r"start (\S+\.sbatch)", str(error.value))
    assert (TOP / script).is_file()


@pytest.mark.parametrize("variables", ONE, ids=repr)
def test_one_process_is_fine_however_it_was_started(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    given(variables, monkeypatch)
    check_alone()


@pytest.mark.parametrize("variables", [*ONE, *SEVERAL], ids=range(len(ONE) + len(SEVERAL)))
def test_lmms_eval_scores_as_a_process_of_its_own(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    given({**variables, "HOME": "/here", "RANKS": "kept"}, monkeypatch)
    before = dict(os.environ)
    with without_launcher():
        left = {name for name in variables if name in os.environ and name not in KEPT}
        assert left == set()
        assert (os.environ["HOME"], os.environ["RANKS"]) == ("/here", "kept")
    assert dict(os.environ) == before


def test_scores_do_not_depend_on_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage in any of them made lmms-eval fail after all inference, or give nothing."""
    from harness.runner.running import scored
    from tasks import lmms
    from tasks.sources import DataSource

    task = lmms.load_task("pope", DataSource.parse("mini"), 9, 0)
    answers = {sample.key: "yes" for sample in task.samples}
    alone = scored(task, answers)
    for variables in (
        {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "1"},
        {"RANK": "1", "WORLD_SIZE": "2"},
        {"RANK": "x", "WORLD_SIZE": "y", "LOCAL_RANK": "z"},
        {"MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "x"},
    ):
        given(variables, monkeypatch)
        assert scored(task, answers) == alone


def test_an_evaluation_and_a_sweep_look_before_they_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.runner import sweep
    from harness.runner.evaluate import evaluate
    from harness.runner.request import Request
    from harness.runner.run import Options, run
    from harness.runner.session import Session

    given({"WORLD_SIZE": "2"}, monkeypatch)
    with pytest.raises(PrunebenchError, match="WORLD_SIZE=2"):
        run([], Session(), None, Options(), print)  # type: ignore[arg-type]
    with pytest.raises(PrunebenchError, match="WORLD_SIZE=2"):
        evaluate(Request("fastv", model="a-model-that-is-not-there"))
    with pytest.raises(PrunebenchError, match="WORLD_SIZE=2"):
        sweep.run(None, Options())  # type: ignore[arg-type]
