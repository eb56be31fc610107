"""The GPU check, rehearsed on a CPU: with the listed packages alone, with stages that fail or hang, and against the
committed cells."""

from __future__ import annotations

import ast
import gzip
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.gpu_check import __main__ as command
from harness.gpu_check import fixture, house, plan, requirements, run, stages, timing

ROOT = Path(__file__).resolve().parents[2]
#: import name by requirement, where they differ
IMPORTED_AS = {
    "pillow": "PIL",
    "PyYAML": "yaml",
    "annotated-types": "annotated_types",
    "typing-inspection": "typing_inspection",
}
#: what the listed packages ask for and the check never imports: command lines, a faster download, certificates
#: (truststore has the system's)
NOT_IMPORTED = {"typer", "click", "hf-xet", "certifi", "tomli"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def asked_by(name: str) -> set[str]:
    """What a package asks for on this platform, extras left out; names in their canonical form."""
    from packaging.requirements import Requirement

    found = [Requirement(text) for text in importlib.metadata.requires(name) or []]
    return {canonical(r.name) for r in found if r.marker is None or r.marker.evaluate({"extra": ""})}


def closure(names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    todo = [canonical(name) for name in names]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += asked_by(name)
    return found


# --------------------------------------------------------------------------------------------------------- requirements


def imports(module: str, seen: set[str]) -> set[str]:
    """Top-level names of the packages that a module of ours imports when it is loaded, and those of ours that it
    loads."""
    if module in seen:
        return set()
    seen.add(module)
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found: set[str] = set()
    todo: list[ast.AST] = list(ast.parse(file.read_text()).body) if file.is_file() else []
    while todo:
        node = todo.pop()
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            typing_only = (
                isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            )
            todo += [] if typing_only else list(ast.iter_child_nodes(node))
        for name in names:
            top = name.split(".")[0]
            found |= imports(name, seen) if top in ("harness", "methods", "tasks") else {top}
    return found


def test_the_wheel_list_holds_what_the_stages_import() -> None:
    loaded: set[str] = set()
    found = imports("harness.gpu_check.stages", loaded)
    for file in (ROOT / "methods").glob("*.py"):  # the registry loads them by name
        found |= imports(f"methods.{file.stem}", loaded)
    assert {
        "harness.engine.attach",
        "harness.bench.measure",
        "harness.proof.goldens",
        "harness.runner.answering",
        "methods.fastv",
    } <= loaded
    assert "lmms_eval" not in found
    listed = {IMPORTED_AS.get(name, name) for name in requirements.WHEELS}
    assert found - set(sys.stdlib_module_names) - {"torch", "numpy"} <= listed


def test_the_wheel_list_holds_what_its_packages_ask_for() -> None:
    listed = {canonical(name) for name in requirements.WHEELS}
    there = closure(["torch", "numpy"])
    for name in requirements.WHEELS:
        assert asked_by(name) - there - NOT_IMPORTED <= listed, name


def test_what_a_machine_lacks_is_pinned_as_the_constraints_pin_it(capsys: pytest.CaptureFixture[str]) -> None:
    pinned = {
        canonical(line.split("==")[0]): line.split("==")[1]
        for line in (ROOT / "constraints.txt").read_text().split("\n")
        if "==" in line
    }
    for name, spec in requirements.LACKING.items():
        assert spec == f"=={pinned[canonical(name)]}", name
    assert command.main(["--wheels"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        name + spec for name, spec in requirements.WHEELS.items()
    ]


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"transformers": "5.17.0"}, "transformers 5.17.0: before 5.18 LLaVA ignores image features"),
        ({"torch": "2.13.0+cpu"}, r"torch 2\.13\.0\+cpu: .*CPU-only"),
        ({"torch": "2.10.1"}, "expected torch 2.11 or later"),
        ({"python": "3.10.9"}, "expected Python 3.11 to 3.13"),
        ({"pydantic": None, "tabulate": None}, "not installed: pydantic, tabulate; `make gpu-check WHEELS=1`"),
        ({"httpx2": None}, "not installed: httpx2;"),
    ],
)
def test_versions_that_are_no_good_are_named_before_anything_else(
    found: dict[str, str | None], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    versions = {k: v for k, v in {**requirements.installed(), **found}.items() if v is not None}
    monkeypatch.setattr(requirements, "installed", lambda: versions)
    monkeypatch.setattr(command, "_run", lambda *_: pytest.fail("the stages were reached"))
    assert command.main([]) == 2
    assert re.search(f"error: .*{says}", capsys.readouterr().err)


def test_versions_in_doubt_are_named_and_the_check_goes_on() -> None:
    refused, doubtful = requirements.problems({**requirements.installed(), "torch": "2.14.1+cu130"})
    assert not refused
    assert doubtful == ["torch 2.14.1+cu130: nothing was measured with torch 2.13 or later yet"]
    assert requirements.problems(requirements.installed()) == ([], [])
    with_hub_1 = {k: v for k, v in requirements.installed().items() if k not in requirements.OF_HUB_2} | {
        "huggingface_hub": "1.33.0"
    }
    assert requirements.problems(with_hub_1) == ([], [])


# ----------------------------------------------------------------------------------------------------------- the runner


@pytest.mark.slow
def test_the_smallest_rehearsal_runs_with_the_listed_packages_alone(tmp_path: Path) -> None:
    packages, out = tmp_path / "packages", tmp_path / "out"
    packages.mkdir()
    for name in closure(["torch", "numpy"]) | set(requirements.WHEELS):
        for file in importlib.metadata.files(name) or ():
            top = Path(file).parts[0]
            if top != ".." and not (packages / top).exists():
                (packages / top).symlink_to(Path(str(file.locate())).parents[len(Path(file).parts) - 1] / top)
    alone = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (packages, ROOT))), "KINETO_LOG_LEVEL": "5"}
    code = (
        "import sys, importlib.util as u; sys.exit(' '.join(m for m in ('lmms_eval', 'pyarrow', 'pandas', 'typer',"
        " 'scipy') if u.find_spec(m)))"
    )
    assert subprocess.run([sys.executable, "-S", "-c", code], env=alone, capture_output=True, text=True).stderr == "\n"
    arguments = ["--device", "cpu", "--size", "smallest", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-S", "-m", "harness.gpu_check", *arguments],
        env=alone,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("REHEARSAL, no result: smallest size on ")
    files = [p.relative_to(out) for p in out.rglob("*") if p.is_file()]
    assert len(files) <= 11
    assert max(len(p.parts) for p in files) <= 2
    for name in plan.STAGES:
        said = json.loads((out / f"{name}.json").read_text())
        assert (said["finished"], said["failed"], said["rehearsal"]) == (True, [], True)
        assert said["device"]
        assert said["versions"]["torch"] == importlib.metadata.version("torch")
        assert said["command"].startswith("python -m harness.gpu_check --device cpu")
        assert said["seconds"] > 0
        assert said["result"]
    assert json.loads((out / "gpu-check.json").read_text())["to_come"] == []


def test_a_failing_stage_gives_exit_code_1_and_the_others_keep_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(report: stages.Report) -> None:
        report.result["so far"] = 3
        raise RuntimeError("CUDA error: seeded")

    monkeypatch.setattr(
        stages, "STAGES", {**stages.STAGES, "equal": broken, "sweep": lambda report: report.result.update(seen=True)}
    )
    arguments = ["--device", "cpu", "--size", "smallest", "--out", str(tmp_path), "--stages", "goldens,equal,sweep"]
    assert command.main(arguments) == 1
    said = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("goldens", "equal", "sweep")}
    assert [said[name]["finished"] for name in said] == [True, False, True]
    assert said["equal"]["failed"] == ["RuntimeError: CUDA error: seeded"]
    assert said["equal"]["result"]["so far"] == 3
    assert "broken" in "\n".join(said["equal"]["result"]["traceback"])
    assert said["sweep"]["result"] == {"seen": True}
    assert "equal        0 s  FAILED (1): RuntimeError: CUDA error: seeded" in capsys.readouterr().out


def test_a_stage_that_takes_too_long_is_cut_off_and_the_next_one_runs(tmp_path: Path) -> None:
    def slow(report: Any) -> None:
        try:
            report.result["began"] = True
            time.sleep(30)
        except Exception:  # as an engine that names what a hook raised
            pytest.fail("the time limit was taken for an error")

    began = time.monotonic()
    size = plan.SIZES["smallest"]
    works = {"goldens": slow, "bench": lambda report: report.result.update(left=report.left())}
    assert not run.run(works, size, "cpu", tmp_path, {}, limit=plan.RESERVE_S + 2.0, say=lambda _: None)
    assert time.monotonic() - began < 20
    said = json.loads((tmp_path / "goldens.json").read_text())
    assert said["failed"] == ["cut off after its 1 s; the result holds what was found by then"]
    assert said["result"] == {"began": True}
    assert json.loads((tmp_path / "bench.json").read_text())["finished"]


def test_time_that_a_stage_leaves_goes_to_the_later_ones(tmp_path: Path) -> None:
    had: dict[str, float] = {}
    works = {name: lambda report: had.update({report.name: report.seconds}) for name in plan.STAGES}
    assert run.run(works, plan.SIZES["smallest"], "cpu", tmp_path, {}, limit=plan.LIMIT_S, say=lambda _: None)
    assert had["bench"] == pytest.approx(plan.LIMIT_S - plan.RESERVE_S, abs=1)
    assert had["goldens"] == pytest.approx(
        (plan.LIMIT_S - plan.RESERVE_S) * plan.STAGES["goldens"] / sum(plan.STAGES.values()), abs=1
    )


def test_without_a_gpu_it_refuses_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--out", str(tmp_path)]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert (
        out.err
        == "error: expected a CUDA device, found none: run it where one is, or rehearse with DEVICE=cpu (--device"
        " cpu)\n"
    )
    assert not list(tmp_path.iterdir())


def test_make_finds_a_python_that_has_torch() -> None:
    done = subprocess.run(
        ["make", "-s", "gpu-check", "WHEELS=1", f"PYTHON={sys.executable}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == requirements.wheel_list() + "\n"


# ----------------------------------------------------------------------------------------------------------- the stages


def test_every_shipped_method_is_compared_at_two_budgets() -> None:
    assert set(plan.SHIPPED) == house.shipped_methods(), "a file of methods/ is not called as its method"
    assert {arm.method for arm in plan.ARMS} == house.shipped_methods()
    for name in house.shipped_methods() - {"none"}:
        expected = 1 if name in ("mmtok", "vscan") else 2  # mini was measured at 64 tokens alone with these
        assert len([arm for arm in plan.ARMS if arm.method == name]) >= expected, name
    assert set(plan.STAGES) == set(stages.STAGES)


def test_the_committed_answers_are_those_of_the_cells() -> None:
    assert json.loads(gzip.decompress(fixture.FILE.read_bytes())) == fixture.make()
    held = fixture.read()
    assert {q["key"].split("/")[0] for q in held["questions"][:4]} == set(fixture.TASKS)
    assert len({tuple(answers.values()) for answers in held["answers"].values()}) > 10, (
        "methods that answer alike compare nothing"
    )


class Reported:
    """A report in memory."""

    def __init__(self, **size: Any) -> None:
        import dataclasses

        self.size = dataclasses.replace(plan.SIZES["smallest"], **size)
        self.result: dict[str, Any] = {}
        self.failed: list[str] = []
        self.device = "cpu"

    def save(self) -> None:
        pass


def test_answers_that_differ_from_the_committed_ones_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    held = fixture.read()
    keys = [q["key"] for q in held["questions"][:2]]
    for key in keys:
        held["answers"]["none"][key] = "something else"
    monkeypatch.setattr(fixture, "read", lambda: held)
    monkeypatch.setattr(plan, "NEAR_TIES", 1)
    report = Reported(arms=(plan.NONE,))
    stages.equal(report)  # type: ignore[arg-type]
    assert report.failed == ["float32: 2 answers differ (committed), allowed 1 near ties; first none"]
    (row,) = report.result["dtypes"]["float32"]["arms"]
    assert {e["question"] for e in row["examples"]} == set(keys)


def test_a_share_below_the_floors_fails_in_16_bit() -> None:
    of = {"committed": 10, "batched": 4, "shared": 10}
    rows = [{"arm": name, "of": of, "committed": n, "batched": 0, "shared": 0} for name, n in (("a", 1), ("b", 3))]
    rows.append({"arm": "c", "of": {**of, "committed": 0}, "committed": 0, "batched": 1, "shared": 0})
    sums, of = {"committed": 4, "batched": 1, "shared": 0}, {"committed": 20, "batched": 12, "shared": 30}
    assert stages._too_many("float16", rows, sums, of) == [
        "float16: b: 0.70 of the answers equal (committed), floor 0.75",
        "float16: 0.80 of all answers equal (committed), floor 0.95",
        "float16: 0.92 of all answers equal (batched), floor 0.95",
    ]
    assert stages._too_many("float32", rows, sums, of) == []


def test_a_recorded_case_that_does_not_replay_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        house,
        "replayed",
        lambda *_: iter([house.Golden("a case", 2e-2, "logits differ"), house.Golden("another", 1e-6, None)]),
    )
    report = Reported()
    stages.goldens(report)  # type: ignore[arg-type]
    assert report.failed == ["a case: logits differ"]
    assert report.result["largest"]["case"] == "a case"


def test_busy_time_is_the_union_of_what_ran() -> None:
    assert timing.union([(0, 2), (1, 3), (5, 6), (5, 5.5)]) == 4
    assert timing.union([]) == 0
    assert timing.BusyTime(10.0, 4.0, 3).busy_share == 0.4
    assert stages._unseen("a", timing.BusyTime(1.0, 0.0, 0)) == [
        "a: expected kernels in the profile, found none: the profiler does not see this device"
    ]


def bench_result(device: str, **row: Any) -> dict[str, Any]:
    rows = [{"name": "fastv", "budget": "64", "kv_bytes": 10, "kv_bytes_closed_form": 10, "peak_bytes": None, **row}]
    return {"where": {"device_type": device}, "weights_bytes": 100, "batches": [{"batch": 8, "rows": rows}]}


def test_a_bench_result_that_cannot_be_is_named() -> None:
    assert timing.bench_faults(bench_result("cpu")) == []
    assert timing.bench_faults(bench_result("cuda", peak_bytes=111)) == []
    assert timing.bench_faults(bench_result("cuda", peak_bytes=110))[0].startswith(
        "fastv 64 at batch 8: expected a peak above"
    )
    assert timing.bench_faults(bench_result("cuda"))[0].endswith("found None")
    assert timing.bench_faults(bench_result("cpu", kv_bytes=11))[0].endswith("holds 11 bytes, the trace says 10")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", plan.STAGES)
def test_a_stage_holds_on_a_gpu(name: str, tmp_path: Path) -> None:
    assert run.run({name: stages.STAGES[name]}, plan.SIZES["small"], "cuda", tmp_path, {}), (
        tmp_path / f"{name}.json"
    ).read_text()
