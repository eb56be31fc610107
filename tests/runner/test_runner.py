"""The one runner: who else holds a cell, what an executor may be, and what a failure leaves."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers import run
from safetensors.torch import load_file, save_file

from harness.core.errors import PrunebenchError
from harness.core.paths import TOP as REPOSITORY
from harness.runner import run as runner
from harness.runner.environment import environment
from harness.runner.evaluate import evaluate
from harness.runner.execute import Batches, InProcess, Work
from harness.runner.jobs import Job, prepare
from harness.runner.pace import Pace
from harness.runner.request import Request, resolve
from harness.runner.run import Options
from harness.runner.session import Session
from harness.store.journal import Record
from harness.store.store import Store

ASK = Request("random", budgets="32", tasks="pope", limit=6, knobs={"boundary": "2"})


@contextmanager
def held(root: Path, job: Job) -> Iterator[None]:
    """Another process runs this cell meanwhile."""
    script = f"""
import sys
from pathlib import Path
from harness.core.cell import Cell
from harness.store.store import Store
with Store(Path({str(root)!r})).open(Cell.from_dict({job.cell.to_dict()!r}), {[s.key for s in job.task.samples]!r}):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "held\n"
        yield
        other.stdin.close()


def jobs_of(request: Request) -> list[Job]:
    session = Session()
    return prepare(resolve(request, session), session)


def few(results: Path) -> list[str]:
    """The words for six questions of POPE."""
    return ["--tasks", "pope", "--limit", "6", "--results", str(results)]


def test_an_evaluation_leaves_a_held_cell_and_fails_with_its_name(tmp_path, capsys, monkeypatch) -> None:
    words = ["--method", "random", "--budget", "32", "--set", "boundary=2", *few(tmp_path)]
    with held(tmp_path, jobs_of(ASK)[1]):
        code, out, err = run(capsys, monkeypatch, "eval", *words)
    assert code == 2
    assert "left to another runner: pope random@32: " in out
    (unpruned,) = Store(tmp_path).cells()
    assert f"sealed  {unpruned.folder}" in out
    assert re.search(r"^pope +100\.0 %", out, re.MULTILINE), "what could be had is shown"
    assert err.splitlines()[-1].startswith("prunebench: 1 of 2 cells are another runner's: ")
    code, _, _ = run(capsys, monkeypatch, "eval", *words)
    assert code == 0


def test_an_ablation_needs_all_of_its_cells(tmp_path, capsys, monkeypatch) -> None:
    file = tmp_path / "a.yaml"
    lines = "".join(f"  - {{name: b{b}, method: random, budget: 32, knobs: {{boundary: {b}}}}}\n" for b in (0, 2))
    file.write_text(f"title: t\nsource: s\nlimit: 6\ntasks: [pope]\nvariants:\n{lines}")
    words = ("ablate", str(file), "--results", str(tmp_path / "r"))
    with held(tmp_path / "r", jobs_of(ASK)[1]):
        code, out, err = run(capsys, monkeypatch, *words)
    assert (code, "published: s" in out) == (2, False)
    assert "1 of 3 cells are another runner's" in err
    code, out, _ = run(capsys, monkeypatch, *words)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if line.startswith("b")] == ["b0", "b2"]


def test_two_models_of_one_name_are_each_asked_themselves(tmp_path: Path) -> None:
    """A folder's name is the model's; the second one has other weights."""
    for folder in ("a/model", "b/model"):
        shutil.copytree(REPOSITORY / "tasks" / "mini" / "weights", tmp_path / folder)
    weights = tmp_path / "b" / "model" / "model.safetensors"
    tensors = load_file(weights)
    head = next(name for name in tensors if "lm_head" in name or "embed_tokens" in name)
    save_file(tensors | {head: tensors[head].flip(0).contiguous()}, weights, {"format": "pt"})
    session = Session()
    asked = [Request("none", str(tmp_path / folder / "model"), tasks="pope", limit=6, data="mini") for folder in "ab"]
    settings = [setting for one in asked for setting in resolve(one, session)]
    finished = runner.run(settings, session, InProcess(session), Options(tmp_path / "r"), lambda _: None)
    first, second = finished.cells.values()
    assert first.cell.model == second.cell.model == "model"
    assert first.samples()["answer"].tolist() != second.samples()["answer"].tolist()


def test_data_of_one_model_that_cannot_be_read_cost_no_other_its_cells(tmp_path: Path) -> None:
    folder, data = tmp_path / "model", tmp_path / "data"
    shutil.copytree(REPOSITORY / "tasks" / "mini" / "weights", folder)
    shutil.copytree(REPOSITORY / "tasks" / "mini" / "data", data)
    (table,) = (data / "POPE").rglob("*.parquet")
    table.write_bytes(table.read_bytes()[:-50])
    session = Session()
    broken, fine = (
        resolve(one, session) for one in (Request("none", str(folder), tasks="pope", limit=6, data=str(data)), ASK)
    )
    for order in (broken + fine, fine + broken):
        with pytest.raises(PrunebenchError, match=rf"^{folder}: .*{table.name}"):
            runner.run(order, session, InProcess(session), Options(tmp_path / "r"), lambda _: None)
        assert {(c.cell.model, c.cell.method) for c in Store(tmp_path / "r").cells()} == {
            ("mini", "none"),
            ("mini", "random"),
        }
        assert "random" in (tmp_path / "r" / "LEADERBOARD.md").read_text()
        shutil.rmtree(tmp_path / "r")


def test_one_evaluation_takes_lists(tmp_path, capsys, monkeypatch) -> None:
    words = ["--method", "random,first", "--budget", "64,32", "--seed", "0,1", *few(tmp_path)]
    code, out, err = run(capsys, monkeypatch, "eval", *words)
    assert code == 0, err
    assert out.startswith(
        "random, first at budget 64, 32 with seeds 0, 1 on mini (cpu in float32, its own chat template, images as"
    )
    assert out.count("sealed  ") == 1 + 2 * 2 + 2
    again = sorted((c.cell.method, c.cell.budget, c.cell.seed) for c in Store(tmp_path).cells())
    random = [("random", budget, seed) for budget in ("32", "64") for seed in (0, 1)]
    assert again == [("first", "32", 0), ("first", "64", 0), ("none", "none", 0), *random]


class Recorded:
    """An executor of a test's own: answers of this process, and what it was given."""

    def __init__(self, session: Session, batches: int = 1000) -> None:
        self.inner, self.batches = InProcess(session), batches
        self.work: list[Work] = []
        self.closed = False

    def answers(self, work: Sequence[Work], pace: Pace) -> Batches:
        self.work += work
        try:
            for number, batch in enumerate(self.inner.answers(work, pace)):
                if number == self.batches:
                    raise PrunebenchError("the power is gone")
                yield batch
        finally:
            self.closed = True


def test_any_executor_serves_and_gets_what_is_left_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session()
    settings = resolve(ASK, session)
    options = Options(tmp_path, Pace(2))
    stopped = Recorded(session, batches=2)
    with pytest.raises(PrunebenchError, match="the power is gone"):
        runner.run(settings, session, stopped, options, lambda _: None)
    assert stopped.closed
    asked = {one.identity: one.left for one in stopped.work}
    assert len(asked) == 2
    assert (tmp_path / "LEADERBOARD.md").is_file(), "tables of what is there"
    more = Recorded(session)
    finished = runner.run(settings, session, more, options, lambda _: None)
    left = {one.identity: one.left for one in more.work}
    assert sum(map(len, left.values())) == sum(map(len, asked.values())) - 4, "two batches of two were journalled"
    assert all(left[identity] <= asked[identity] for identity in left)
    assert list(finished.cells) == [job.identity for job in prepare(settings, session)]
    assert [c.cell.method for c in finished.of(settings[1:])] == ["random"]
    idle = Recorded(session)
    assert runner.run(settings, session, idle, options, lambda _: None).reused == 2
    assert idle.work == []


def test_an_executor_that_forgets_answers_is_found_out(tmp_path: Path) -> None:
    class Lazy:
        def answers(self, work: Sequence[Work], pace: Pace) -> Batches:
            yield from ()

    session = Session()
    with pytest.raises(PrunebenchError, match="2 of 2 cells lack answers after the pass, as pope none: run it again"):
        runner.run(resolve(ASK, session), session, Lazy(), Options(tmp_path), lambda _: None)


def test_a_sealed_cell_is_hashed_before_it_is_reused(tmp_path: Path) -> None:
    """Another score than the one that was sealed is never printed as if it were."""
    asked = Request("uniform", budgets="64", tasks="pope", limit=6)
    finished = evaluate(asked, Options(tmp_path), lambda line: None)
    samples = next(cell for cell in finished.cells.values() if cell.cell.method == "uniform").folder / "samples.parquet"
    whole = samples.read_bytes()
    for damage in (whole[:-9], b"", whole[:99] + bytes([whole[99] ^ 1]) + whole[100:], whole + b"\0"):
        samples.write_bytes(damage)
        with pytest.raises(PrunebenchError, match=r"samples\.parquet: expected sha256 .*fresh=True"):
            evaluate(asked, Options(tmp_path), lambda line: None)
    again = evaluate(asked, Options(tmp_path, fresh=True), lambda line: None)
    assert (samples.read_bytes(), again.reused) == (whole, 0)


def test_another_environment_begins_a_cell_anew_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Request("none", tasks="pope", limit=6)
    (done,) = evaluate(asked, Options(tmp_path), lambda line: None).cells.values()
    here = environment(torch.device("cpu"))
    frame = done.samples()
    others = [{name: "another"} for name in ("torch", "code", "device", "kernels")]
    for change, kept in (({}, 2), *((other, 0) for other in others)):
        Store(tmp_path).discard(done.cell)
        with Store(tmp_path).open(done.cell, frame["key"].tolist(), here | change) as writer:
            for row in frame.to_dict("records")[:2]:
                cost = {name: row[name] for name in frame.columns[10:]}
                writer.append(Record(row["key"], row["image"], "old", 1, cost, 0.1, row["keeps"]))
        said: list[str] = []
        (again,) = evaluate(asked, Options(tmp_path), said.append).cells.values()
        assert again.samples()["answer"].tolist().count("old") == kept
        notes = [line for line in said if "2 answers are discarded and asked again" in line]
        assert len(notes) == (not kept), said
        assert all(f"{name} another (now {here[name]})" in notes[0] for name in change)
