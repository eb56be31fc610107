"""Runs of lmms-eval's own command line: what its log says of each answer, and which cells they become."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import littledata
import pytest
from helpers import run

from harness.core.errors import PrunebenchError
from harness.plugin import log
from harness.plugin.importing import ORIGIN, import_run
from harness.runner.evaluate import evaluate
from harness.runner.request import Request
from harness.runner.run import Options
from harness.store.journal import JOURNAL
from harness.store.sealed import SealedCell
from harness.store.store import Store
from harness.store.verify import verify

TASKS = {"gqa": 3, "mme": 4, "pope": 5, "textvqa": 3}
MODEL_ARGS = "pretrained=mini,method=fastv,budget=64"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    littledata.write(folder, TASKS)
    return folder


@pytest.fixture(scope="module")
def logged(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose name holds what a shell and a comma-separated list would read."""
    out = tmp_path_factory.mktemp("out") / "a run's 1st folder é"
    done = littledata.lmms_eval(
        data, "--output_path", str(out), "--log_samples", "--batch_size", "3", "--model_args", MODEL_ARGS
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def measured(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SealedCell]:
    """The cells that `prunebench eval` seals for the same questions, by task."""
    root = tmp_path_factory.mktemp("measured")
    asked = Request("fastv", budgets="64", tasks=tuple(TASKS), data=str(data), limit="all", device="cpu")
    finished = evaluate(asked, Options(root), lambda line: None)
    return {cell.cell.task: cell for cell in finished.cells.values() if cell.cell.method == "fastv"}


@pytest.fixture
def copy(logged: Path, tmp_path: Path) -> Path:
    shutil.copytree(logged, tmp_path / "copy")
    return tmp_path / "copy"


def entries(folder: Path, task: str) -> list[dict[str, Any]]:
    lines = next(folder.rglob(f"*_samples_{task}.jsonl")).read_text().splitlines()
    return [json.loads(line)["token_counts"][0] for line in lines]


def imported(folder: Path, data: Path, results: Path) -> tuple[list[SealedCell], list[str]]:
    said: list[str] = []
    return import_run(folder, results, str(data), said.append), said


@pytest.mark.parametrize("task", TASKS)
def test_the_log_holds_every_cost_of_every_answer(task: str, logged: Path, measured: dict[str, SealedCell]) -> None:
    frame = measured[task].samples().set_index("key")
    found = {one["sample"]: one for one in entries(logged, littledata.UPSTREAM[task])}
    assert sorted(found) == sorted(frame.index)
    for key, entry in found.items():
        assert log.costs_of(entry) == {name: frame.loc[key, name] for name in measured[task].costs}
        assert (entry["keeps"], entry["output_tokens"]) == tuple(frame.loc[key, ["keeps", "n_new_tokens"]])
        assert {"kept", "mean_visual", "prefill_dense_flops", "vision_flops", "kv_bytes"} <= set(entry)
    assert len({entry["settings"] for entry in found.values()}) == 1
    assert sum(log.RUN in entry for entry in found.values()) == 1


def test_a_run_becomes_the_cells_that_an_evaluation_seals(
    logged: Path, data: Path, measured: dict[str, SealedCell], tmp_path: Path
) -> None:
    cells, said = imported(logged, data, tmp_path)
    assert {cell.cell.task for cell in cells} == set(TASKS)
    for cell in cells:
        own = measured[cell.cell.task]
        assert cell.identity == own.identity
        assert cell.samples_sha256 == own.samples_sha256
        for what in ("cell", "headline", "metrics", "maximum", "interval", "costs", "counts", "method_info"):
            assert getattr(cell, what) == getattr(own, what), what
        there, here = cell.provenance, own.provenance
        assert there["origin"] == ORIGIN
        where = ("versions", "python", "device", "kernels", "git")
        for what in (*where, "processing", "task_settings", "decoder_layers", "grids"):
            assert there[what] == here[what], what
        assert cell.asked == own.asked
    assert len(said) == len(TASKS)
    assert all(line.startswith("sealed  ") for line in said)
    lines, whole = verify(tmp_path)
    assert whole, lines
    assert "imported" not in (tmp_path / "leaderboard.csv").read_text()
    assert (tmp_path / "leaderboard.csv").read_text().count("\n") == 1 + len(TASKS)

    before = {path: path.read_bytes() for path in (tmp_path / "cells").rglob("*") if path.is_file()}
    again, said = imported(logged, data, tmp_path)
    assert [cell.identity for cell in again] == [cell.identity for cell in cells]
    assert all("sealed already, with the same answers" in line for line in said)
    assert len(said) == len(TASKS)
    assert {path: path.read_bytes() for path in (tmp_path / "cells").rglob("*") if path.is_file()} == before


def test_the_command_shows_the_cells(
    logged: Path, data: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = next(logged.rglob("*_results.json"))
    code, out, err = run(
        capsys, monkeypatch, "import", str(file), "--data", str(data), "--results", str(tmp_path / "r")
    )
    assert code == 0, err
    assert out.count("sealed  ") == len(TASKS)
    assert "mme" in out.rpartition("task")[2]
    code, out, err = run(capsys, monkeypatch, "import", str(tmp_path / "nothing"), "--results", str(tmp_path / "r"))
    assert code == 2
    assert err.splitlines()[-1].endswith("found nothing there; check the path")


# ------------------------------------------------------------------------------------------------ what is no whole run


def results_of(folder: Path) -> Path:
    return next(folder.rglob("*_results.json"))


def lines_of(folder: Path, task: str = "pope") -> tuple[Path, list[str]]:
    path = next(folder.rglob(f"*_samples_{task}.jsonl"))
    return path, path.read_text().splitlines(keepends=True)


def edit_results(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = results_of(folder)
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return damage


def edit_lines(change: Callable[[list[str]], list[str]], task: str = "pope") -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path, lines = lines_of(folder, task)
        path.write_text("".join(change(lines)))

    return damage


def edit_first(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def changed(lines: list[str]) -> list[str]:
        values = json.loads(lines[1])
        change(values)
        return [lines[0], json.dumps(values) + "\n", *lines[2:]]

    return edit_lines(changed)


def signed(values: dict[str, Any]) -> None:
    """Sign an edited entry anew, as a person can."""
    entry = values["token_counts"][0]
    entry.pop(log.SUM)
    entry[log.SUM] = log.digest(values["filtered_resps"], entry)


def set_entry(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        values["token_counts"][0].update(changes)
        signed(values)

    return change


def other_run(folder: Path) -> None:
    shutil.copy(results_of(folder), results_of(folder).with_name("20300101_000000_results.json"))


def another_answer(values: dict[str, Any]) -> None:
    values["filtered_resps"] = {"yes": "no", "no": "yes"}[values["filtered_resps"]]
    signed(values)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no results": (lambda folder: results_of(folder).unlink(), "expected one *_results.json of lmms-eval, found none"),
    "two runs": (other_run, "expected one *_results.json of lmms-eval, found 2: "),
    "no samples": (
        lambda folder: lines_of(folder)[0].unlink(),
        "expected the log of pope beside it, ",
    ),
    "damaged results": (lambda folder: results_of(folder).write_text("{"), "expected JSON, found damage"),
    "another model": (
        edit_results(lambda values: values["config"].update(model="llava_hf")),
        "expected a run of --model prunebench, found --model llava_hf",
    ),
    "repeats": (
        edit_results(lambda values: values["config"]["resolved_cli_args"].update(repeats=2)),
        "expected one answer a question, found --repeats 2",
    ),
    "no metrics": (
        edit_results(lambda values: values["results"]["pope"].clear()),
        "expected metrics of pope, found none",
    ),
    "an edited metric": (
        edit_results(lambda values: values["results"]["pope"].update({"pope_accuracy,none": 0.99})),
        "expected pope_accuracy 0.99, as the results file says, found ",
    ),
    "cut in a line": (edit_lines(lambda lines: [*lines[:-1], lines[-1][:50]]), "its last line has no end"),
    "cut at a line": (edit_lines(lambda lines: lines[:-1]), "expected 5 questions, as "),
    "an empty log": (edit_lines(lambda lines: []), "expected answers, found an empty file"),
    "no description": (edit_lines(lambda lines: lines[1:]), "expected the description of the run"),
    "a damaged line": (edit_lines(lambda lines: [lines[0], "{]\n", *lines[2:]]), "line 2: expected JSON, found damage"),
    "a line twice": (edit_lines(lambda lines: [*lines, lines[2]]), "expected document 2 once, found it again"),
    "two runs in one log": (edit_lines(lambda lines: [*lines, *lines]), "once, found it again: runs that start in one"),
    "an edited answer": (
        edit_first(lambda values: values.update(filtered_resps="perhaps")),
        "line 2: the answer to document 1, or its costs, are not as they were written",
    ),
    "an edited cost": (
        edit_first(lambda values: values["token_counts"][0].update(kept=1)),
        "the answer to document 1, or its costs, are not as they were written",
    ),
    "an edited answer, signed": (edit_first(another_answer), "as the results file says, found "),
    "another document": (edit_first(lambda values: values.update(doc_id=9)), "expected one answer to document 9"),
    "cached answers": (
        edit_first(lambda values: values.update(token_counts=[None])),
        "line 2: expected costs beside the answer, found none: run it again without --use_cache",
    ),
    "an earlier prunebench": (
        edit_first(lambda values: values.update(token_counts=[{"input_tokens": 1, "output_tokens": 1}])),
        "expected an entry of prunebench in token_counts, found ['input_tokens', 'output_tokens']",
    ),
    "a later prunebench": (edit_first(set_entry(prunebench=2)), "expected version 1 of the log, found 2"),
    "two settings": (edit_first(set_entry(settings="0" * 16)), "expected answers of one setting, found 2"),
    "another question": (
        edit_first(set_entry(asked="0" * 16)),
        "pope/000001: expected the question and image of these",
    ),
    "another length": (edit_first(set_entry(max_new_tokens=3)), "pope/000001: expected answers that end at "),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_anything_but_one_whole_run_is_refused_in_a_line(what: str, copy: Path, data: Path, tmp_path: Path) -> None:
    damage, said = DAMAGE[what]
    damage(copy)
    with pytest.raises(PrunebenchError) as refused:
        imported(copy, data, tmp_path / "r")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not Store(tmp_path / "r").cells(), "nothing is sealed where one task of a run is refused"


def other_version(lines: list[str]) -> list[str]:
    values = json.loads(lines[0])
    values["token_counts"][0][log.RUN]["environment"]["lmms-eval"] = "0.7.2"
    signed(values)
    return [json.dumps(values) + "\n", *lines[1:]]


def test_another_version_of_lmms_eval_is_refused(copy: Path, data: Path, tmp_path: Path) -> None:
    edit_lines(other_version)(copy)
    with pytest.raises(
        PrunebenchError, match=r"expected a run of lmms-eval [0-9.]+, which scores here, found one of 0"
    ):
        imported(copy, data, tmp_path / "r")


def test_a_part_of_a_task_and_other_data_are_refused(copy: Path, logged: Path, data: Path, tmp_path: Path) -> None:
    def limited(values: dict[str, Any]) -> None:
        values["config"]["resolved_cli_args"]["limit"] = 4.0
        values["n-samples"]["pope"]["effective"] = 4

    edit_results(limited)(copy)
    edit_lines(lambda lines: lines[:4])(copy)
    with pytest.raises(PrunebenchError, match="every one of the 5 questions of pope, found 4 with --limit 4: run the"):
        imported(copy, data, tmp_path / "r")
    with pytest.raises(PrunebenchError, match=r"expected every one of the [0-9]+ questions of gqa, found 3: run"):
        imported(logged, Path("mini"), tmp_path / "r")
    other = tmp_path / "other"
    littledata.write(other, TASKS, skip=40)
    with pytest.raises(PrunebenchError, match="expected the question and image of these data, found others in the log"):
        imported(logged, other, tmp_path / "r")


def test_a_run_of_answers_alone_is_scored_here(
    copy: Path, data: Path, measured: dict[str, SealedCell], tmp_path: Path
) -> None:
    def predicted(values: dict[str, Any]) -> None:
        values["config"]["resolved_cli_args"]["predict_only"] = True
        values["results"] = {name: {"alias": name, "bypass,none": 999} for name in values["results"]}

    edit_results(predicted)(copy)
    cells, _ = imported(copy, data, tmp_path / "r")
    assert {cell.cell.task: cell.samples_sha256 for cell in cells} == {
        task: cell.samples_sha256 for task, cell in measured.items()
    }


# ---------------------------------------------------------------------------------------- what is in the folder stays


def test_a_sealed_cell_with_other_answers_stays(
    copy: Path, data: Path, measured: dict[str, SealedCell], tmp_path: Path
) -> None:
    results = tmp_path / "r"
    shutil.copytree(measured["pope"].folder.parents[2], results)
    edit_results(lambda values: values["config"]["resolved_cli_args"].update(predict_only=True))(copy)
    edit_first(another_answer)(copy)
    cells, said = imported(copy, data, results)
    assert "sealed already, and 1 of its answers are others (pope/000001)" in " ".join(said)
    assert {cell.samples_sha256 for cell in cells} == {cell.samples_sha256 for cell in measured.values()}


def test_answers_of_an_unfinished_run_are_not_lost(
    logged: Path, data: Path, measured: dict[str, SealedCell], tmp_path: Path
) -> None:
    cells, _ = imported(logged, data, tmp_path / "first")
    pope = next(cell for cell in cells if cell.cell.task == "pope")
    store, keys = Store(tmp_path / "r"), list(pope.columns("key")["key"])
    record = littledata.record_of(pope, keys[0])
    with store.open(pope.cell, keys, {"code": "another"}) as writer:
        writer.append(record)
    journal = store.folder(pope.cell) / JOURNAL
    before = journal.read_bytes()
    with pytest.raises(PrunebenchError, match=r"expected no unfinished cell, found answers of another run \(pope/0"):
        imported(logged, data, tmp_path / "r")
    assert journal.read_bytes() == before
    assert not store.cells()

    journal.unlink()  # as if an import had been killed between its answers and the seal
    with store.open(pope.cell, keys, entries(logged, "pope")[0][log.RUN]["environment"]) as writer:
        writer.append(record)
    again, _ = imported(logged, data, tmp_path / "r")
    assert [cell.samples_sha256 for cell in again] == [cell.samples_sha256 for cell in cells]


# ------------------------------------------------------------------------------------------------------ several ranks

BROKEN = '''"""FastV, which fails on the second rank."""
import os
from dataclasses import dataclass
from methods.fastv import FastV
@dataclass(frozen=True)
class Broken(FastV):
    name = "broken"
    def score(self, run, stream):
        if os.environ["RANK"] == "1":
            raise RuntimeError("on the second rank")
        return super().score(run, stream)
'''


def ranked(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """lmms-eval as two ranks on gloo."""
    return littledata.lmms_eval(folder, *args, launcher=(*littledata.TWO_RANKS, "-m"))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["torchrun", "accelerate"])
def test_two_ranks_log_every_sample_once_as_one_process_does(
    how: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, launcher = tmp_path / "out", littledata.TWO_RANKS
    if how == "accelerate":
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        launcher = littledata.ACCELERATE
    done = littledata.lmms_eval(
        data,
        *("--output_path", str(out), "--log_samples", "--batch_size", "2"),
        *("--model_args", "pretrained=mini,method=random,budget=64,seed=3"),
        launcher=(*launcher, "-m"),
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for task, n in TASKS.items():
        numbers = [entry["doc_id"] for entry in entries(out, littledata.UPSTREAM[task])]
        assert sorted(numbers) == list(range(n))
        assert numbers != sorted(numbers), "each rank had a share"
    cells, _ = imported(out, data, tmp_path / "r")
    asked = Request("random", budgets="64", tasks=tuple(TASKS), data=str(data), limit="all", device="cpu", seeds="3")
    finished = evaluate(asked, Options(tmp_path / "own"), lambda line: None)
    for cell in cells:
        assert cell.samples_sha256 == finished.cells[cell.identity].samples_sha256


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_others(data: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    args = f"pretrained=mini,method={tmp_path / 'broken.py'}:Broken,budget=64"
    done = ranked(data, "--output_path", str(tmp_path / "out"), "--log_samples", "--model_args", args)
    assert done.returncode != 0
    assert "RuntimeError: on the second rank" in done.stdout + done.stderr
    assert not list(tmp_path.rglob("*_results.json"))


@pytest.mark.slow
def test_an_evaluation_as_two_ranks_says_the_command_that_does_the_same(
    data: Path, measured: dict[str, SealedCell], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["eval", "--method", "fastv", "--budget", "64", "--tasks", "pope", "--data", str(data)]
    words += ["--limit", "all", "--results", str(tmp_path / "r"), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, *littledata.TWO_RANKS, "-m", "harness.cli", *words],
        capture_output=True,
        text=True,
        timeout=littledata.SECONDS,
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("prunebench: expected one process")]
    assert len(set(said)) == 1
    assert not (tmp_path / "r").exists()
    command = said[0].split("`")[-2].split()
    assert command == ["prunebench", *words, "--workers", "2"]
    code, _, err = run(capsys, monkeypatch, *command[1:])
    assert code == 0, err
    cell = next(cell for cell in Store(tmp_path / "r").cells() if cell.cell.method == "fastv")
    assert cell.samples_sha256 == measured["pope"].samples_sha256


@pytest.mark.slow
def test_answers_of_the_cache_and_answers_alone_as_lmms_eval_writes_them(
    data: Path, measured: dict[str, SealedCell], tmp_path: Path
) -> None:
    cached = ("--log_samples", "--use_cache", str(tmp_path / "cache"), "--model_args", MODEL_ARGS)
    for out in ("first", "again"):
        done = littledata.lmms_eval(data, "--output_path", str(tmp_path / out), "--batch_size", "4", *cached)
        assert done.returncode == 0, done.stdout[-3000:]
    with pytest.raises(PrunebenchError, match="found none: run it again without --use_cache"):
        imported(tmp_path / "again", data, tmp_path / "r")
    args = ("--predict_only", "--model_args", MODEL_ARGS)
    done = littledata.lmms_eval(data, "--output_path", str(tmp_path / "alone"), "--batch_size", "4", *args)
    assert done.returncode == 0, done.stdout[-3000:]
    for folder in ("first", "alone"):
        cells, _ = imported(tmp_path / folder, data, tmp_path / f"{folder}-r")
        for cell in cells:
            assert cell.samples_sha256 == measured[cell.cell.task].samples_sha256


# ------------------------------------------------------------------------------------------------------------ the page

PAGE = Path(__file__).parents[2] / "docs" / "lmms-eval.md"


@pytest.mark.slow
def test_the_commands_of_the_page_run_as_they_stand(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that need no hub."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.S | re.M)
    typed = [shlex.split(block.replace("\\\n", " ")) for block in blocks if ".venv/bin/prunebench" in block]
    assert [words[1] for words in typed] == ["lmms-eval", "import"]
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", *typed[0][1:]], capture_output=True, text=True, timeout=littledata.SECONDS
    )
    assert done.returncode == 0, done.stderr[-3000:]
    code, out, err = run(capsys, monkeypatch, *typed[1][1:])
    assert code == 0, err
    assert "sealed  results/local/cells/pope/mini-fastv-64-" in out
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.S | re.M)
    shutil.copy(next(tmp_path.rglob("*_samples_pope_mini.jsonl")), "samples.jsonl")
    found: dict[str, Any] = {}
    exec(code, found)
    assert set(found["kept"]) == {64}
