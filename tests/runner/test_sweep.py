"""One pass gives what cell-by-cell runs give; a sweep is checked before it runs and runs nothing twice."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.core.errors import PrunebenchError
from harness.core.paths import TOP as REPOSITORY
from harness.runner import sweep
from harness.runner.evaluate import evaluate
from harness.runner.pace import Pace
from harness.runner.request import Request
from harness.runner.run import Options
from harness.store.store import Store

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = """
models: [mini]
tasks: [gqa, pope]
limit: 6
budgets: [32]
methods:
  - {method: none}
  - {method: random, seeds: [0, 1]}
  - {method: fastv, budgets: [32, 64]}
  - {method: downsample}
  - {method: visipruner, budgets: [32, native]}
  - {method: sparsevlm, positions: compact}
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "sweep.yaml"
    file.write_text(text)
    return file


def frames(root: Path) -> dict[str, pd.DataFrame]:
    return {c.identity: c.samples().drop(columns="wall_s", errors="ignore") for c in Store(root).cells()}


@pytest.fixture(scope="module")
def one_pass(tmp_path_factory):
    """The small sweep, run once in one pass."""
    root = tmp_path_factory.mktemp("one_pass")
    said: list[str] = []
    plan = sweep.load(write(root, SMALL))
    finished = sweep.run(plan, Options(root), say=said.append)
    return plan, root, finished, said


def test_one_pass_equals_cell_by_cell_runs(one_pass, tmp_path):
    """Separate evaluations at batch 1, without shared prefixes or features, give the same answers, costs and kept
    tokens."""
    plan, root, _, _ = one_pass
    for asked in sweep.requests(plan):
        evaluate(asked, Options(tmp_path, Pace(1, share=False)), say=lambda _: None)
    alone, shared = frames(tmp_path), frames(root)
    assert alone.keys() == shared.keys()
    assert len(alone) == 2 * 9
    for identity, frame in alone.items():
        pd.testing.assert_frame_equal(frame, shared[identity], check_exact=True)


def test_the_comparison_can_fail(one_pass):
    """Other cells of the same sweep differ: the test above compares something."""
    _, root, _, _ = one_pass
    found = {(c.cell.task, c.cell.method, c.cell.budget): c.samples() for c in Store(root).cells()}
    assert not found["gqa", "fastv", "32"]["keeps"].equals(found["gqa", "fastv", "64"]["keeps"])
    assert found["gqa", "none", "none"]["keeps"].str.endswith(":*").all()


def test_every_image_is_encoded_once(one_pass, tmp_path, monkeypatch):
    from harness.runner.features import FeatureCache

    seen: list[str] = []
    get = FeatureCache.get
    monkeypatch.setattr(
        FeatureCache,
        "get",
        lambda self, keys, encode, looks: get(self, keys, lambda some: seen.extend(some) or encode(some), looks),
    )
    looking = Path(__file__).parents[1] / "examples" / "cls_top.py"
    plan = sweep.load(
        write(tmp_path, f"{SMALL}  - {{method: {looking}:ClsTop}}\n"), [f"methods=none,random,fastv,{looking}:ClsTop"]
    )
    finished = sweep.run(plan, Options(tmp_path), say=lambda _: None)
    images = {i for cell in finished.cells.values() for i in cell.samples()["image"]}
    assert sorted(key.split("/")[0] for key in seen) == sorted(images)


def test_a_sweep_that_ran_is_reused_and_a_longer_one_runs_the_rest(one_pass):
    _, root, finished, said = one_pass
    assert finished.reused == 0
    assert "18 cells run, 0 sealed before" in said[-2]
    before = {c.identity: c.provenance["started"] for c in finished.cells.values()}
    longer = sweep.load(root / "sweep.yaml", ["budgets=32,16", "methods=none,random"])
    again = sweep.run(longer, Options(root), say=lambda _: None)
    assert again.reused == 2 * 3
    assert len(again.cells) == 2 * 5
    assert all(c.provenance["started"] == before[c.identity] for c in again.cells.values() if c.identity in before)


def test_dry_run_says_what_is_there_and_runs_nothing(one_pass, tmp_path):
    plan, root, _, _ = one_pass
    text = sweep.dry_run(plan, Options(root))
    assert "to run: 0 cells, 0 questions" in text
    fresh = sweep.dry_run(plan, Options(tmp_path))
    assert "to run: 18 cells, 135 questions" in fresh
    assert not list(tmp_path.iterdir())
    bigger = sweep.dry_run(sweep.load(root / "sweep.yaml", ["limit=40"]), Options(root))
    assert "time: about" in bigger, "sealed cells tell how fast this machine is"


def test_dry_run_leaves_out_what_hangs_on_data_that_cannot_be_reached(one_pass, tmp_path):
    _, root, _, _ = one_pass
    data = shutil.copytree(REPOSITORY / "tasks" / "mini" / "data", tmp_path / "data")
    shutil.rmtree(data / "POPE")
    plan = sweep.load(root / "sweep.yaml", [f"data={data}"])
    text = sweep.dry_run(plan, Options(root))
    assert "to run: 0 cells, 0 questions" in text, "the other task's are the cells that are sealed"
    assert text.count("mini, pope: cells and their state are unknown here: ") == 1
    flops = sweep.dry_run(
        sweep.load(root / "sweep.yaml", [f"data={data}", "methods=random", "budgets=0.5flops", "tasks=pope"]),
        Options(root),
    )
    assert all(re.search(r" mini +1 +\? +\? ", line) for line in flops.splitlines()[2:4])
    assert "2 cells\nmini, pope: " in flops


@pytest.mark.parametrize("name", sorted(p.name for p in CONFIGS.glob("*.yaml")))
def test_shipped_sweeps_fit_their_models(name):
    """Also those whose model is on the hub: methods, knobs and budgets are checked against its sizes."""
    result = CliRunner().invoke(app, ["sweep", str(CONFIGS / name), "--dry-run"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "cells" in result.output


def test_a_sweep_too_large_for_the_model_is_refused_before_it_runs(tmp_path):
    plan = sweep.load(write(tmp_path, "models: [llava-1.5-7b]\nbudgets: [577]\nmethods: [{method: fastv}]"))
    with pytest.raises(PrunebenchError, match=r"fastv@577 on llava-1\.5-7b: budget 577"):
        sweep.run(plan, Options(tmp_path))
    assert not (tmp_path / "cells").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods: [{method: fastv, budget: 64}]", "methods.0: unknown key 'budget'; did you mean 'budgets'"),
        ("methods: []", "methods"),
        ("methods: [{method: fastv}]\nspeed: 3", "speed"),
        ("- fastv", "not a sweep"),
        ("methods: [fastv]\nbudget: [64]\ntask: [gqa]", "did you mean 'budgets'.*did you mean 'tasks'"),
        ("methods: [fastv]\nbudgets: [64]\nlimit: some", "limit='some'"),
        ("methods: [{method: fastv}]", "fastv needs budgets"),
        ("methods: [{method: fastw}]\nbudgets: [64]", "did you mean 'fastv'"),
        ("methods: [{method: none}]\ntasks: [gqq]", "did you mean 'gqa'"),
        ("methods: [{method: random, knobs: {boundry: 2}}]\nbudgets: [64]", "did you mean 'boundary'"),
        ("methods: [{method: random, seeds: []}]\nbudgets: [64]", "seeds"),
        ("methods: [{method: random, positions: compct}]\nbudgets: [64]", "positions"),
        ("methods: [{method: fastv, knobs: {keep: 64}, budgets: [32]}]", "not both"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, text, message):
    with pytest.raises(PrunebenchError, match=message):
        sweep.check(sweep.requests(sweep.load(write(tmp_path, text))))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("limits=3", "did you mean 'limit'"),
        ("limit", "key=value"),
        ("limit=3 limit=4", "limit is given twice"),
        ("methods=fastw", "did you mean 'fastv'"),
    ],
)
def test_an_override_that_names_nothing_is_refused(tmp_path, override, message):
    with pytest.raises(PrunebenchError, match=message):
        sweep.load(write(tmp_path, SMALL), [override])


def test_a_method_is_named_by_its_name_alone(tmp_path):
    plan = sweep.load(write(tmp_path, "methods: [none, {method: fastv}]\nbudgets: [64]"), ["methods=none"])
    assert [e.method for e in plan.methods] == ["none"]


def test_overrides_replace_what_the_file_says(tmp_path):
    plan = sweep.load(write(tmp_path, SMALL), ["limit=3 budgets=64,16", "methods=fastv"])
    assert (plan.limit, plan.budgets, [e.method for e in plan.methods]) == ("3", ("64", "16"), ["fastv"])


def test_cells_of_another_runner_are_left_to_it(tmp_path):
    """Two runners on one folder: what one holds, the other leaves and names."""
    from harness.runner.jobs import prepare
    from harness.runner.request import resolve
    from harness.runner.session import Session

    plan = sweep.load(write(tmp_path, SMALL), ["methods=none,random", "tasks=gqa"])
    session = Session()
    job = prepare(resolve(Request("none", tasks="gqa", limit=6), session), session)[0]
    said: list[str] = []
    script = f"""
import sys, time
from pathlib import Path
from harness.core.cell import Cell
from harness.store.store import Store
cell = Cell.from_dict({job.cell.to_dict()!r})
with Store(Path({str(tmp_path)!r})).open(cell, {[s.key for s in job.task.samples]!r}):
    print("held", flush=True)
    sys.stdin.read()
"""
    import subprocess
    import sys

    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        finished = sweep.run(plan, Options(tmp_path), say=said.append)
        other.stdin.close()
    assert {c.cell.method for c in finished.cells.values()} == {"random"}
    assert any(line.startswith("left to another runner: gqa none") for line in said)


def test_two_budgets_that_mean_the_same_are_both_measured(tmp_path):
    """`64` and `64avg` of a method that prunes before the first layer: one method, two cells."""
    plan = sweep.load(write(tmp_path, SMALL), ["methods=none,random", "tasks=gqa", "budgets=64,64avg"])
    said: list[str] = []
    finished = sweep.run(plan, Options(tmp_path), say=said.append)
    assert sorted(c.cell.budget for c in finished.cells.values() if c.cell.method == "random") == [
        "64",
        "64",
        "64avg",
        "64avg",
    ]
    by_seed = {(c.cell.seed, c.cell.budget): c.samples()["answer"].tolist() for c in finished.cells.values()}
    assert by_seed[1, "64"] == by_seed[1, "64avg"]


def test_every_image_belongs_to_one_shard():
    """Also where processes find different amounts of free memory."""
    from harness.core.shape import SHAPES
    from harness.runner.execute import chunks

    images = {f"{i:04}" for i in range(200)}
    shards = [chunks(images, SHAPES["llava-1.5-7b"], Pace(shard=(i, 3)), (8 + 5 * i) << 30) for i in range(3)]
    asked = [image for shard in shards for chunk in shard for image in chunk]
    assert sorted(asked) == sorted(images)


@pytest.mark.slow
def test_two_workers_measure_the_same(one_pass, tmp_path):
    plan, root, finished, _ = one_pass
    sweep.run(plan, Options(tmp_path), say=lambda _: None, workers=2)
    alone, spread = frames(root), frames(tmp_path)
    assert spread.keys() == finished.cells.keys()
    for identity, frame in spread.items():
        pd.testing.assert_frame_equal(frame, alone[identity], check_exact=True)


@pytest.mark.slow
def test_a_worker_that_fails_says_why(tmp_path, monkeypatch):
    """A worker's error reaches the user, and nothing hangs."""
    plan = sweep.load(write(tmp_path, SMALL), ["methods=none", "tasks=gqa"])
    from harness.runner.launch import processes as workers

    monkeypatch.setattr(workers, "device_of", lambda worker, device: "cuda:7")
    with pytest.raises(PrunebenchError, match=r"worker \d of 2: device='cuda:7'"):
        sweep.run(plan, Options(tmp_path), say=lambda _: None, workers=2)


def method_file(folder: Path, name: str, change: tuple[str, str]) -> str:
    """The README's example under another name, with one thing changed."""
    text = (Path(__file__).parents[1] / "examples" / "centre.py").read_text()
    assert change[0] in text
    (folder / f"{name}.py").write_text(text.replace('"centre"', f'"{name}"').replace(*change))
    return f"{folder / name}.py:Centre"


@pytest.mark.parametrize(
    ("look", "message"),
    [
        ('TowerLook("cls_row", 40)', r"expected a layer from -4 to 3 \(of the vision tower\), found 40"),
        (
            'TowerLook("values", -2)',
            r"with what one of cls_row, .*, twice_rotated_sums; found TowerLook\(what='values'",
        ),
        ('("keys", -2)', r"expected TowerLook\(what, layer\)"),
    ],
)
def test_looks_that_do_not_fit_are_their_own_methods_failure(tmp_path, look, message):
    text = (Path(__file__).parents[1] / "examples" / "cls_top.py").read_text()
    (tmp_path / "looks.py").write_text(text.replace("return (ROW,)", f"return ({look},)"))
    file = write(
        tmp_path,
        f"models: [mini]\ntasks: [pope]\nlimit: 18\nbudgets: [32]\nmethods: [none, '{tmp_path}/looks.py:ClsTop',"
        " first]",
    )
    with pytest.raises(PrunebenchError, match=r"1 of 3 settings failed.*cls_top in looks\(\): .*" + message):
        sweep.run(sweep.load(file), Options(tmp_path), say=lambda _: None)
    assert {c.cell.method for c in Store(tmp_path).cells()} == {"none", "first"}
    assert (tmp_path / "LEADERBOARD.md").is_file(), "tables of what is there"


def test_looks_that_raise_are_refused_before_anything_runs(tmp_path: Path) -> None:
    """They are asked where a method is built: whether it fits the family's tower."""
    text = (Path(__file__).parents[1] / "examples" / "cls_top.py").read_text()
    (tmp_path / "looks.py").write_text(text.replace("return (ROW,)", "return (shape.nothing,)"))
    file = write(
        tmp_path, f"models: [mini]\ntasks: [pope]\nbudgets: [32]\nmethods: [none, '{tmp_path}/looks.py:ClsTop']"
    )
    with pytest.raises(PrunebenchError, match=r"cls_top: AttributeError: .* \(looks.py, line \d+\)"):
        sweep.run(sweep.load(file), Options(tmp_path), say=lambda _: None)
    assert not Store(tmp_path).cells()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_method_that_fails_does_not_take_the_others_with_it(tmp_path, workers):
    raises = method_file(tmp_path, "raises", ("return -((", "return [][0] - (("))
    nan = method_file(tmp_path, "nan", ("return -((", "return float('nan') * (("))
    file = write(
        tmp_path,
        f"models: [mini]\ntasks: [pope]\nlimit: 18\nbudgets: [32]\nmethods: [none, '{raises}', '{nan}', fastv]",
    )
    with pytest.raises(PrunebenchError) as error:
        sweep.run(sweep.load(file), Options(tmp_path), say=lambda _: None, workers=workers)
    assert "2 of 4 settings failed, the answers of the others are kept" in str(error.value)
    assert "raises at boundary 0, a batch of" in str(error.value)
    assert "IndexError: list index out of range (raises.py, line " in str(error.value)
    assert "nan at boundary 0, sample 'pope/" in str(error.value)
    assert {c.cell.method for c in Store(tmp_path).cells()} == {"none", "fastv"}


def test_a_method_that_misses_its_budget_is_named(tmp_path):
    more = method_file(
        tmp_path,
        "more",
        (
            "    def score(",
            (
                "    @classmethod\n    def at_budget(cls, budget, knobs, prompt):\n        return cls(budget.tokens +"
                " 5)\n\n    def score("
            ),
        ),
    )
    file = write(
        tmp_path,
        f"models: [mini]\ntasks: [pope]\nlimit: 18\nbudgets: [32]\nmethods: [none, '{more}', downsample, fastv]",
    )
    said: list[str] = []
    sweep.run(sweep.load(file), Options(tmp_path), say=said.append)
    assert [line for line in said if line.startswith("note")] == [
        "note: pope more@32 kept 37.0 visual tokens on average, 32 were asked"
    ]


def test_a_damaged_cell_of_another_run_costs_no_result(tmp_path, capsys):
    sealed = sweep.run(
        sweep.load(write(tmp_path, SMALL), ["methods=none", "tasks=gqa"]), Options(tmp_path), say=lambda _: None
    )
    file = next(iter(sealed.cells.values())).folder / "cell.json"
    file.write_text(file.read_text().replace('"answered": ', '"answered": 1'))
    said: list[str] = []
    done = evaluate(Request("none", tasks="pope", limit="6"), Options(tmp_path), said.append)
    (one,) = done.cells.values()
    assert one.cell.task == "pope"
    assert any(
        "1 cells, damaged or of another version, are left out of the tables; first: " in line and "edited" in line
        for line in said
    )
    with pytest.raises(
        PrunebenchError, match=r"it was edited.* `prunebench results verify --results .*` lists all that is wrong"
    ):
        Store(tmp_path).cells()
    samples = one.folder / "samples.parquet"
    samples.write_bytes(samples.read_bytes()[:-9] + b"x" + samples.read_bytes()[-8:])
    said.clear()
    evaluate(Request("none", tasks="textvqa", limit="6"), Options(tmp_path), said.append)
    assert any("2 cells, damaged" in line for line in said), "also one whose samples are others"


def test_a_key_that_stands_twice_is_refused(tmp_path):
    with pytest.raises(PrunebenchError, match=r"not a sweep: the key 'methods' stands twice"):
        sweep.load(write(tmp_path, "methods: [fastv]\nbudgets: [64]\nmethods: [random]"))
    with pytest.raises(PrunebenchError, match=r"models: Input should be a list, as in \[a, b\]; found 'mini'"):
        sweep.load(write(tmp_path, "models: mini\nmethods: [none]"))
    (tmp_path / "latin.yaml").write_bytes("models: [mini] # Größe".encode("latin-1"))
    with pytest.raises(PrunebenchError, match="not a sweep: expected text as UTF-8, found other bytes"):
        sweep.load(tmp_path / "latin.yaml")
