"""Every recorded case of the official implementations reproduces, and the unpruned model (or, where that is what was
recorded, a pruned one) fails it."""

import json
from pathlib import Path

import pytest

from harness.cli import app
from harness.core.errors import PrunebenchError
from harness.method import method_class
from harness.proof.golden_files import load_index, read_bytes, read_case
from harness.proof.goldens import compare, method_of, replay, run_folder

FOLDER = Path(__file__).parents[1] / "goldens"
CASES = [entry["file"] for entry in load_index(FOLDER)]


def read(file: str) -> dict:
    return read_case(FOLDER, file)


@pytest.mark.parametrize("file", CASES, ids=[Path(f).stem for f in CASES])
def test_case_reproduces_and_another_method_fails_it(file: str) -> None:
    case = read(file)
    method = method_of(case)
    got = replay(FOLDER, case, method)
    outcome = compare(case, got)
    assert outcome.mismatch is None, outcome
    # which recordings an unpruned model satisfies is what they recorded: vanilla runs, and modes that never prune
    never_prunes = min(got.lengths) == case["seq_len"] and not getattr(method, "shallow", False)
    other = method_class("fastv")(keep=100) if never_prunes else method_class("none")()
    assert compare(case, replay(FOLDER, case, other)).mismatch is not None


def test_all_methods_of_the_index_are_covered() -> None:
    assert {read(f)["method"] for f in CASES} == {"vanilla", "fastv", "sparsevlm", "visipruner"}
    assert len(CASES) == 56


@pytest.mark.parametrize(
    ("file", "knobs", "says"),
    [
        ("cases/fastv/fv_kvcache_k2_r144_mha8_p24.json", {"boundary": 3}, "layer 2 holds 635 tokens"),
        ("cases/visipruner/vp_SMD_7b_t1_mha8_p24.json", {"exit_votes": 3}, "tokens, recorded"),
        ("cases/visipruner/vp_S_7b_t1_mha8_p24.json", {"layer0": "half"}, "norm of layer 0"),
    ],
)
def test_comparison_names_the_first_difference(file: str, knobs: dict, says: str) -> None:
    case = read(file)
    method = method_of(case)
    wrong = type(method)(**{**method.knobs(), **knobs})
    assert says in (compare(case, replay(FOLDER, case, wrong)).mismatch or "")


def test_a_folder_outside_the_repository_runs_and_a_changed_recording_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = read(CASES[0])
    for part in ("models", "inputs"):
        (tmp_path / part).symlink_to(FOLDER / part)
    (tmp_path / "case.json").write_text(json.dumps(case))
    (tmp_path / "index.json").write_text(json.dumps([{"file": "case.json"}]))
    assert [o.mismatch for o in run_folder(tmp_path)] == [None]
    case["logits"][0][0] += 0.01
    (tmp_path / "case.json").write_text(json.dumps(case))
    with pytest.raises(SystemExit) as stop:
        app(["goldens", str(tmp_path)])
    assert stop.value.code == 1
    assert "logits differ by 1.00e-02" in capsys.readouterr().out
    with pytest.raises(PrunebenchError, match=r"index\.json"):
        list(run_folder(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "fastw"}, "not replayable: no registered method is called 'fastw'"),
        (
            {"method": "tests/examples/centre.py:Centre"},
            "not replayable: no registered method is called 'tests/examples/centre.py:Centre'",
        ),
        ({"method": "uniform"}, "not replayable: no rule says how a recording of 'uniform' maps to knobs"),
        ({"model": "other"}, "not replayable: models/models.json has no Llama `config` for the model 'other'"),
        ({"method": None, "id": None}, "not replayable: no registered method is called None"),
        ({"logits": None}, "not replayable: the case records no logits"),
    ],
)
def test_a_case_of_another_kind_is_named_and_the_rest_is_replayed(
    tmp_path: Path, changes: dict, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    case = read(CASES[0])
    for part in ("models", "inputs"):
        (tmp_path / part).symlink_to(FOLDER / part)
    (tmp_path / "case.json").write_text(json.dumps(case))
    (tmp_path / "other.json").write_text(
        json.dumps({k: v for k, v in {**case, "id": "other", **changes}.items() if v is not None})
    )
    (tmp_path / "index.json").write_text(json.dumps([{"file": "other.json"}, {"file": "case.json"}]))
    with pytest.raises(SystemExit) as stop:
        app(["goldens", str(tmp_path)])
    assert stop.value.code == 1
    out = capsys.readouterr().out
    assert says in out.splitlines()[0]
    assert "1 of 2 cases reproduce" in out


def test_a_cut_plain_input_is_named(tmp_path: Path) -> None:
    case = read(CASES[0])
    (tmp_path / "models").symlink_to(FOLDER / "models")
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / f"{case['input']}.safetensors").write_bytes(
        read_bytes(FOLDER / "inputs" / f"{case['input']}.safetensors")[:1000]
    )
    with pytest.raises(
        PrunebenchError,
        match=rf"inputs/{case['input']}.safetensors: expected safetensors, found a damaged or cut file .*git",
    ):
        replay(tmp_path, case, method_of(case))
