"""The regression gate: what it lets pass and what not, by cells written by hand, then as a user runs it, then under
seeded faults."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from factories import RIGHT, snapshot_cell
from helpers import run

from harness.core.cell import SHIPPED
from harness.core.errors import PrunebenchError
from harness.core.paths import TOP as REPOSITORY
from harness.method import registered, source_of
from harness.proof import gate_faults as regress_faults
from harness.proof.faults import FAULTS, seeded
from harness.proof.gate import command as gate
from harness.proof.gate import snapshot
from harness.proof.gate.command import BASELINE, CONFIG
from harness.proof.gate.compare import _labels, compare
from harness.proof.gate.report import report
from harness.proof.gate.snapshot import Row, Snapshot, SnapshotCell, dump, load
from harness.runner import sweep
from harness.store.store import Store

N = 24


def snap(*cells: SnapshotCell, **changes) -> Snapshot:
    keys = {key: f"{i // 3:016x}" for c in cells for i, key in enumerate(c.rows)}
    made = {"commit": "c0ffee", "device": "some CPU", "torch": "2.12.0"}
    fields = dict.fromkeys(snapshot.MODEL, "w1")
    base = Snapshot(
        made, {"mini": fields}, {c.task: f"data-{c.task}" for c in cells}, keys, cells, dict.fromkeys(keys, "yes")
    )
    return replace(base, **changes)


def replace_row(**changes) -> Row:
    return RIGHT._replace(**changes)


NONE = snapshot_cell("none", knobs={}, budget="none", seconds=4.0)


def failing(old: SnapshotCell, new: SnapshotCell) -> list[str]:
    """The failures where one cell became another, beside nine that stayed."""
    others = [snapshot_cell("uniform", knobs={"keep": k}, budget=str(k)) for k in range(1, 10)]
    return list(compare(snap(NONE, old, *others), snap(NONE, new, *others)).failures)


# ----------------------------------------------------------------------------------------------------------- what fails


def test_the_same_again_passes_whatever_the_time() -> None:
    old = snap(NONE, snapshot_cell())
    found = compare(old, snap(replace(NONE, seconds=1.0), snapshot_cell(seconds=99.0)))
    assert found.passed
    assert [c.seconds for c in found.cells] == [1.0, 99.0]
    text = report(found, {})
    assert "99.00" in text
    assert text.endswith(f"PASS: 2 cells, {2 * N} samples as in the baseline; nothing differs")


def test_one_answer_of_24_may_differ_and_two_may_not() -> None:
    flipped = replace_row(answer="no")
    assert failing(snapshot_cell(), snapshot_cell(rows=[flipped])) == []
    reasons = failing(snapshot_cell(), snapshot_cell(rows=[flipped, flipped]))
    assert reasons[0] == "pope fastv@64: 2 of 24 answers are others (at most 1 may)"


def test_kept_tokens_may_differ_in_one_sample() -> None:
    other = replace_row(keeps="ffffffff")
    assert failing(snapshot_cell(), snapshot_cell(rows=[other])) == []
    assert (
        failing(snapshot_cell(), snapshot_cell(rows=[other] * 2))[0]
        == "pope fastv@64: 2 of 24 samples keep other tokens (at most 1 may), as pope/000000"
    )


def test_counts_and_flops_of_a_stated_schedule_are_exact() -> None:
    fewer = replace_row(costs=(63.0, *RIGHT.costs[1:]))
    assert failing(snapshot_cell(), snapshot_cell(rows=[fewer])) == [
        "pope fastv@64: 1 of 24 samples have other tokens in the layers (none may, for its schedule is stated), as"
        " pope/000000: kept 64 -> 63"
    ]
    dearer = replace_row(costs=(*RIGHT.costs[:3], 7.5e9 + 2, 7.4e9))
    assert failing(snapshot_cell(), snapshot_cell(rows=[dearer])) == [
        "pope fastv@64: 1 of 24 samples have other FLOPs (none may, for its schedule is stated), as pope/000000: "
        "prefill_dense_flops 7,500,000,000 -> 7,500,000,002"
    ]


def test_where_the_prompt_decides_one_sample_may_choose_otherwise() -> None:
    later = replace_row(costs=(64.0, 192.0, 8e6, 8e9, 8e9), keeps="ffffffff")
    assert failing(snapshot_cell(fixed=False), snapshot_cell(fixed=False, rows=[later])) == []
    reasons = failing(snapshot_cell(fixed=False), snapshot_cell(fixed=False, rows=[later] * 2))
    assert [r.split(" have ")[-1].split(" (")[0] for r in reasons[:2]] == ["other tokens in the layers", "other FLOPs"]


def test_a_significant_change_fails_in_either_direction_after_holm() -> None:
    wrong = replace_row(answer="no", score=0.0)
    worse = failing(snapshot_cell(), snapshot_cell(rows=[wrong] * 12))
    assert (
        "pope fastv@64: 0 samples score higher and 12 lower: exact McNemar p = 0.0054 after Holm" in worse
    )  # 11 cells x 2 / 2**12
    better = failing(snapshot_cell(rows=[wrong] * 12), snapshot_cell())
    assert any("12 samples score higher and 0 lower" in r for r in better)
    few = failing(snapshot_cell(), snapshot_cell(rows=[wrong] * 6))  # p = 0.03 by itself
    assert few
    assert not any("McNemar" in r for r in few)


def test_ties_in_every_cell_are_no_ties() -> None:
    other = replace_row(keeps="ffffffff")
    old = [snapshot_cell("uniform", knobs={"keep": k}, budget=str(k)) for k in range(1, 31)]
    new = [snapshot_cell("uniform", knobs={"keep": k}, budget=str(k), rows=[other]) for k in range(1, 31)]
    found = compare(snap(*old), snap(*new))
    assert found.failures == ["all cells together: 30 of 720 samples have other kept tokens, at most 1 may"]


def test_cells_that_only_one_side_has_are_named() -> None:
    found = compare(snap(NONE, snapshot_cell()), snap(NONE, snapshot_cell("random", knobs={"keep": 64})))
    assert found.failures == [
        "cell of the baseline that was not run: pope fastv@64",
        "cell that the baseline lacks: pope random@64",
    ]
    assert "FAIL: 2 reasons" in report(found, {})


def test_a_knob_that_changed_is_named_and_the_rest_still_compared() -> None:
    reasons = failing(
        snapshot_cell(), snapshot_cell(knobs={"keep": 64, "boundary": 3}, rows=[replace_row(keeps="ffffffff")] * 9)
    )
    assert reasons[0] == "pope fastv@64: other knobs: boundary 2 -> 3"
    assert "9 of 24 samples keep other tokens" in reasons[1]


def test_other_samples_fail() -> None:
    assert (
        "other samples: 1 of the baseline's are missing ['pope/000023'], 0 are new []"
        in failing(snapshot_cell(), snapshot_cell(n=N - 1))[0]
    )


def test_other_weights_and_data_come_first_and_fail_while_versions_are_notes() -> None:
    fields = dict.fromkeys(snapshot.MODEL, "w1")
    old = snap(NONE, snapshot_cell())
    new = snap(
        NONE,
        snapshot_cell(),
        models={"mini": {**fields, "model_fingerprint": "w2"}},
        tasks={"pope": "data-2"},
        made_with={"torch": "2.13.1"},
    )
    found = compare(old, new)
    text = report(found, {})
    assert not found.passed
    assert text.startswith("FIRST: mini: weights w1 in the baseline, w2 now")
    assert text.splitlines()[1].startswith("FIRST: pope: other data or prompts")
    versions = compare(old, snap(NONE, snapshot_cell(), made_with={"torch": "2.13.1"}))
    assert versions.passed
    assert report(versions, {}).startswith("note: torch: 2.12.0 made the baseline, 2.13.1 this run")


def test_a_changed_answer_is_listed_with_old_new_and_image(tmp_path: Path) -> None:
    found = compare(snap(NONE, snapshot_cell()), snap(NONE, snapshot_cell(rows=[replace_row(answer="no", score=0.0)])))
    line = "  pope/000000  'yes' -> 'no'  (right: 'yes'; worse)  pope fastv@64  "
    assert line + str(tmp_path / "x.png") in report(found, {"pope/000000": tmp_path / "x.png"})
    assert line + f"image {0:016x}" in report(found, {})


def test_labels_tell_cells_apart_by_as_few_knobs_as_possible() -> None:
    knobs = [
        {"keep": 64, "shallow": s, "variant": v, "follows": v}
        for s, v in ((True, "code"), (False, "code"), (True, "paper"))
    ]
    cells = [snapshot_cell("visipruner", knobs=k) for k in knobs] + [
        snapshot_cell(),
        snapshot_cell(positions="compact"),
        snapshot_cell("random", knobs={"at": 0}),
    ]
    cells.append(replace(cells[-1], knobs={"at": 2}, named=(*cells[-1].named[:5], 1)))
    assert list(_labels(cells).values()) == [
        "pope visipruner@64 shallow=true variant=code",
        "pope visipruner@64 shallow=false variant=code",
        "pope visipruner@64 shallow=true variant=paper",
        "pope fastv@64",
        "pope fastv@64 positions=compact",
        "pope random@64 at=0",
        "pope random@64 at=2 seed 1",
    ]


# ------------------------------------------------------------------------------------------------------------- the file


def test_a_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [
        replace_row(answer=f"a {i} \u00e9", score=i / 7, keeps=f"{i:08x}", costs=(float(i % 3), i / 3, 1.0, 2.0, 3.0))
        for i in range(N)
    ]
    old = snap(NONE, snapshot_cell(rows=rows), snapshot_cell("fastv", "gqa", rows=rows[:3]))
    (tmp_path / "b.json").write_text(dump(old), encoding="ascii")
    new = load(tmp_path / "b.json")
    assert [replace(c, seconds=None) for c in old.cells] == new.cells
    assert (new.models, new.tasks, new.images, new.made_with) == (old.models, old.tasks, old.images, old.made_with)
    # one line per cell: a renewed cell is one line of the diff
    assert sum('"method":' in line for line in dump(old).splitlines()) == 3


def test_a_file_that_is_no_baseline_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    with pytest.raises(PrunebenchError, match="found none: `make baseline`"):
        load(file)
    text = dump(snap(NONE, snapshot_cell()))
    for broken, message in (
        (text[:-20], "not a baseline"),
        (text.replace('"format":1', '"format":0'), "expected format 1, found 0"),
        ("[]", "not a baseline"),
        (text.replace('"kv_bytes"', '"bytes"'), "expected the costs kept, mean_visual, kv_bytes"),
    ):
        file.write_text(broken)
        with pytest.raises(PrunebenchError, match=re.escape(message)):
            load(file)


def test_the_committed_baseline_is_small_and_of_the_committed_sweep() -> None:
    file = REPOSITORY / BASELINE
    plan = sweep.load(REPOSITORY / CONFIG)
    ours = {name for name, cls in registered().items() if source_of(cls) == SHIPPED}
    assert {e.method for e in plan.methods} >= ours, "every method that we ship is in the gate"
    cells = load(file).cells
    asked = sweep.requests(plan)
    assert {(c.method, c.named[3]) for c in cells} == {(*a.methods, *(a.budgets or ("none",))) for a in asked}
    assert len(cells) == len(asked) * len(plan.tasks)
    assert file.stat().st_size < 1_000 * len(cells)


# ----------------------------------------------------------------------------------------------------- a clean checkout


def test_changes_that_no_commit_has_are_found(tmp_path: Path) -> None:
    def git(*args: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b.example", *args],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    with pytest.raises(PrunebenchError, match="expected a git checkout"):
        gate.changed_files(tmp_path)
    git("init")
    for name in ("harness/a.py", "results/reference/x.json", "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "-m", "one")
    assert gate.changed_files(tmp_path) == []
    (tmp_path / "results/reference/x.json").write_text("2")
    (tmp_path / "notes.txt").write_text("mine")
    assert gate.changed_files(tmp_path) == []
    (tmp_path / "harness/a.py").write_text("2")
    (tmp_path / "harness/new.py").write_text("3")
    (tmp_path / "README.md").write_text("2")
    git("add", "README.md")
    assert gate.changed_files(tmp_path) == ["README.md", "harness/a.py", "harness/new.py"]


# ---------------------------------------------------------------------------------------------------- as a user runs it


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str]:
    """Exit code and all output of `prunebench ARGS`."""
    code, out, err = run(capsys, monkeypatch, *map(str, args))
    return code, out + err


def test_baseline_then_gate_then_a_fault(tmp_path: Path, monkeypatch, capsys) -> None:
    config, file, out = tmp_path / "small.yaml", tmp_path / "b" / "baseline.json", tmp_path / "out"
    config.write_text("{tasks: [gqa], limit: 12, methods: [{method: none}, {method: fastv, budgets: [24]}]}")
    where = (config, "--baseline", file, "--out", out)

    monkeypatch.setattr(gate, "changed_files", lambda repository: ["harness/engine/attach.py"])
    code, text = command(monkeypatch, capsys, "baseline", *where)
    assert code == 2
    assert "expected no uncommitted changes outside results/, found harness/engine/attach.py" in text
    assert not file.exists()
    assert not out.exists(), "refused before anything is run"

    code, text = command(monkeypatch, capsys, "regress", *where)
    assert code == 2
    assert "make baseline" in text
    assert not out.exists()

    monkeypatch.setattr(gate, "changed_files", lambda repository: [])
    code, text = command(monkeypatch, capsys, "baseline", *where)
    assert code == 0, text
    assert "no baseline before: 2 cells, 24 samples" in text
    code, text = command(monkeypatch, capsys, "regress", *where)
    assert code == 0, text
    assert "PASS: 2 cells, 24 samples as in the baseline; nothing differs" in text

    # the sealed cells of the run before are still there: they must not be taken for this one
    fault = next(f for f in FAULTS if f.name.startswith("top-k ascending"))
    with seeded(fault):
        code, text = command(monkeypatch, capsys, "regress", *where)
    assert code == 1, text
    assert "gqa fastv@24: 12 of 12 samples keep other tokens" in text

    # an answer that changed, whatever the model says: the baseline has others
    body = json.loads(file.read_text())
    key = body["tasks"]["gqa"]["keys"][4]
    fastv = next(c for c in body["cells"] if c["method"] == "fastv")
    answers = snapshot._decoded(fastv["answer"], 12)
    real = answers[4]
    fastv["answer"] = {"each": ["another", "thing", *answers[2:4], "said", *answers[5:]]}
    file.write_text(json.dumps(body))
    code, text = command(monkeypatch, capsys, "regress", *where)
    assert code == 1
    picture = out / "images" / f"{key}.png"
    assert f"{key}  'said' -> {real!r}" in text
    assert str(picture) in text
    from PIL import Image

    assert Image.open(picture).size[0] > 100
    assert "3 of 12 answers are others (at most 1 may)" in (out / "regress.md").read_text()

    # renewing says what changes
    code, text = command(monkeypatch, capsys, "baseline", *where)
    assert code == 0
    assert f"{key}  'said' -> {real!r}" in text
    assert compare(load(file), snapshot.snapshot(Store(out / "run").cells())).passed


def test_a_run_into_a_folder_with_cells_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    with pytest.raises(PrunebenchError, match="without cells for a fresh run"):
        gate.measure(CONFIG, tmp_path)


def test_the_workflow_runs_targets_that_there_are() -> None:
    jobs = yaml.safe_load((REPOSITORY / ".github/workflows/prunebench.yml").read_text())["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    asked = {target for step in steps for target in re.findall(r"make ([a-z-]+)", step.get("run", ""))}
    assert asked >= {"lint", "test", "regress", "report"}
    assert asked <= set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert any("upload-artifact" in step.get("uses", "") for step in steps)


# -------------------------------------------------------------------------------------------------------- seeded faults


def test_every_fault_said_to_be_invisible_is_one_and_has_a_reason() -> None:
    assert set(regress_faults.BLIND) <= {f.name for f in FAULTS}
    assert set(regress_faults.ELSEWHERE) <= {f.name for f in FAULTS}
    assert len(regress_faults.BLIND) < len(FAULTS) / 3
    blind = next(f for f in FAULTS if f.name in regress_faults.BLIND)
    seen = next(f for f in FAULTS if f.name not in regress_faults.BLIND)
    tried = [regress_faults.FaultInGate(blind, ("caught",)), regress_faults.FaultInGate(seen, ())]
    assert regress_faults.unexpected(tried) == [
        f"{blind.name}: caught, although listed as invisible",
        f"{seen.name}: not seen",
    ]
    assert "1 of 2 faults caught" in regress_faults.markdown(tried)
    assert "**unknown**" in regress_faults.markdown(tried)


@pytest.mark.slow
def test_the_gate_catches_the_seeded_faults() -> None:
    assert regress_faults.unexpected(regress_faults.try_all(REPOSITORY / CONFIG)) == []
