"""A request for tasks by name: words become settings and cells, and are refused before anything is loaded."""

from __future__ import annotations

import json
import pickle
import shlex
from pathlib import Path

import pytest
from helpers import run
from yamltask import Tagged, write_task

from harness.core.asked import Asked
from harness.core.command import evaluation
from harness.core.errors import PrunebenchError
from harness.runner.evaluate import evaluate
from harness.runner.jobs import prepare, task_settings
from harness.runner.request import Request, resolve
from harness.runner.run import Options
from harness.runner.session import Session
from harness.runner.sweep import Sweep
from harness.store.store import Store


@pytest.fixture(scope="module")
def session() -> Session:
    return Session()


def asked(tasks: str, **words: object) -> Request:
    return Request("random", budgets="64", tasks=tasks, **words)  # type: ignore[arg-type]


def test_a_file_is_a_setting_and_a_cell(tmp_path: Path, session: Session) -> None:
    file = write_task(tmp_path)
    jobs = prepare(resolve(asked(f"{file},pope", limit=4), session), session)
    assert [(job.cell.task, job.cell.method) for job in jobs] == [
        ("colours", "none"),
        ("colours", "random"),
        ("pope", "none"),
        ("pope", "random"),
    ]
    assert (jobs[0].setting.asked.task, jobs[0].cell.n_samples, jobs[0].cell.max_new_tokens) == (str(file), 4, 8)
    assert pickle.loads(pickle.dumps(jobs[1].setting)).task == str(file)
    other = prepare(resolve(asked(f"{file}:length", limit=4), session), session)
    assert other[0].cell.task == "colours:length"
    assert other[0].identity != jobs[0].identity


def test_a_folder_gives_files_as_they_are_typed(
    tmp_path: Path, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_task(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    (setting, _) = resolve(asked("colours", include="mine"), session)
    assert setting.asked.task == "mine/colours.yaml"
    sealed = Asked.from_dict(json.loads(json.dumps(setting.asked.to_dict())))
    assert "judge" not in setting.asked.to_dict()
    assert "TASKS=mine/colours.yaml" in shlex.split(evaluation(sealed))


def test_a_judge_that_is_let_in_is_sealed_with_the_request(tmp_path: Path, session: Session) -> None:
    functions = "import requests\n\n\ndef judged(results):\n    return requests.post('place').json()\n"
    metrics = [{"metric": "exact_match", "aggregation": Tagged("judge.judged"), "higher_is_better": True}]
    file = write_task(tmp_path, metric_list=metrics)
    (tmp_path / "judge.py").write_text(functions)
    with pytest.raises(PrunebenchError, match=r"task colours cannot run: a judge scores its answers.*judge=True"):
        resolve(asked(str(file)), session)
    (setting, _) = resolve(asked(str(file), judge=True), session)
    words = setting.asked.to_dict()
    assert words["judge"] == "1"
    assert "JUDGE=1" in shlex.split(evaluation(Asked.from_dict(words)))
    assert session.task(str(file), setting.source, None).metric.kind == "corpus"


def test_the_settings_of_a_cell_say_that_sampling_is_left_out(tmp_path: Path, session: Session) -> None:
    sampled = {"max_new_tokens": 8, "do_sample": True, "temperature": 0.5}
    plain, drawn = (
        session.task(str(write_task(tmp_path / name, generation_kwargs=kwargs)), source, None)
        for name, kwargs in (("plain", {"max_new_tokens": 8}), ("drawn", sampled))
        for source in [resolve(asked("pope"), session)[0].source]
    )
    assert task_settings(plain) == {"stop_strings": []}
    assert task_settings(drawn) == {
        "stop_strings": [],
        "sampling": "greedy, though the task asks for do_sample, temperature=0.5",
    }


def test_a_sweep_takes_the_same_words(tmp_path: Path, session: Session) -> None:
    from harness.runner.sweep import requests  # type: ignore[attr-defined]

    write_task(tmp_path)
    body = {"tasks": ["colours"], "include": str(tmp_path), "budgets": [64], "methods": ["random"], "judge": True}
    made = requests(Sweep(**body))  # type: ignore[arg-type]
    assert all((one.include, one.judge) == (str(tmp_path), True) for one in made)


def test_a_task_of_ones_own_from_a_command_to_a_sealed_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled = {"max_new_tokens": 8, "until": "###", "num_beams": 2}
    file = write_task(tmp_path / "task", generation_kwargs=sampled)
    said: list[str] = []
    finished = evaluate(asked(str(file), limit=2), Options(tmp_path / "results"), said.append)
    note = "note: task colours asks for num_beams=2: answers are greedy here, as its cells say"
    assert said.count(note) == 1
    assert len(finished.cells) == 2
    sealed = next(cell for cell in Store(tmp_path / "results").cells() if cell.cell.method == "random")
    assert (sealed.cell.task, sealed.headline, sealed.counts["answered"]) == ("colours", "exact_match", 2)
    settings = {"stop_strings": ["###"], "sampling": "greedy, though the task asks for num_beams=2"}
    assert (sealed.provenance["task_settings"], sealed.asked.task) == (settings, str(file))
    code, _, err = run(
        capsys, monkeypatch, "show", "--sample", "colours/000000", "--method", "random", "--budget", "64",
        "--results", str(tmp_path / "results"), "--out", str(tmp_path / "one.png"),
    )  # fmt: skip
    assert code == 0, err
    assert (tmp_path / "one.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tasks", "mmvet", "--data", "hub"), "task mmvet cannot run: a judge scores its answers"),
        (("--tasks", "videomme"), "task videomme cannot run: it shows videos"),
        (("--tasks", "mmstar"), "task mmstar: the mini data hold gqa, mme, pope, textvqa, textvqa_ocr only"),
        (("--tasks", "colours", "--include-path", "/nowhere"), "--include /nowhere: expected a folder"),
        (("--tasks", "mmstar:none", "--data", "hub"), "expected one of its metrics behind the colon"),
    ],
)
def test_a_command_refuses_in_one_line(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = run(capsys, monkeypatch, "eval", "--method", "random", "--budget", "64", *words)
    assert code == 2
    assert said in err
    assert err.strip().splitlines()[-1].startswith("prunebench: ")
