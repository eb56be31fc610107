"""Every recorded case of the official implementations reproduces, and the unpruned model (or, where that is what was
recorded, a pruned one) fails it."""

import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from harness.cli import app
from harness.core.budget import Budget
from harness.core.errors import PrunebenchError
from harness.method import Method, build, method_class
from harness.proof.golden_calibrations import outcome
from harness.proof.golden_compare import Replayed, compare
from harness.proof.golden_files import load_index, read_bytes, read_case
from harness.proof.golden_methods import RULES
from harness.proof.golden_models import prompt_of, setup_of
from harness.proof.goldens import CALIBRATIONS, CPU, method_of, replay, run_folder

FOLDER = Path(__file__).parents[1] / "goldens"
#: of runs of a method, and of how its knobs are derived
RECORDED = load_index(FOLDER)
CASES = [entry["file"] for entry in RECORDED if entry.get("variant") not in CALIBRATIONS]
DERIVED = [entry["file"] for entry in RECORDED if entry.get("variant") in CALIBRATIONS]
#: methods that act inside the decoder
INSIDE = {"fastv", "sparsevlm", "visipruner", "pyramiddrop", "dart", "v2drop", "vtw", "fitprune"}
#: cases of methods that act before it
BEFORE = [f for f in CASES if f.split("/")[1] in {*RULES} - INSIDE]
#: cases of methods that rank inside the decoder, at layers that a neighbour can be given
RANKING = [f for f in CASES if f.split("/")[1] in ("pyramiddrop", "dart", "v2drop", "fitprune")]


#: whose kept tokens a method's must not be; several methods are near FasterVLM
NEIGHBOURS = {"fastervlm": "visionzip", "vispruner": "visionzip", "cdpruner": "divprune"}


def read(file: str) -> dict:
    return read_case(FOLDER, file)


def prefill_of(case: dict) -> dict:
    """The same case without its decode steps."""
    return {**case, "logits": case["logits"][:1], "decode": []}


@cache
def kept_by(method: str, tokens: int | None, file: str) -> Replayed:
    """What a method makes of the prompt of a case; cases of one prompt share it."""
    case = prefill_of(read(file))
    budget = Budget("none") if tokens is None else Budget("kept", tokens)
    return replay(FOLDER, case, build(method, budget, {}, prompt_of(FOLDER, setup_of(FOLDER, case))))


def of_one_prompt(case: dict) -> str:
    """The first case of the index with the same model, input and dtype."""
    return next(
        entry["file"]
        for entry in load_index(FOLDER)
        if all(entry.get(name) == case.get(name) for name in ("model", "input", "dtype"))
    )


@pytest.mark.parametrize("file", CASES, ids=[Path(f).stem for f in CASES])
def test_case_reproduces_and_another_method_fails_it(file: str) -> None:
    case = read(file)
    method = method_of(FOLDER, case)
    got = replay(FOLDER, case, method)
    outcome = compare(case, got)
    assert outcome.mismatch is None, outcome
    start = prefill_of(case)
    # which recordings an unpruned model satisfies is what they recorded: vanilla runs, and modes that never prune
    never_prunes = min(got.lengths) == case["seq_len"] and not got.tower and not getattr(method, "shallow", False)
    if never_prunes or case["method"] == "vanilla":
        assert compare(start, replay(FOLDER, start, method_class("fastv")(keep=100))).mismatch is not None
    else:
        assert compare(start, kept_by("none", None, of_one_prompt(case))).mismatch is not None


@pytest.mark.parametrize("file", BEFORE, ids=[Path(f).stem for f in BEFORE])
def test_a_neighbour_keeps_other_tokens(file: str) -> None:
    """The same number of visual tokens by a method of a similar kind fails the case."""
    case = prefill_of(read(file))
    name, tokens = NEIGHBOURS.get(case["method"], "fastervlm"), len(case["visual_norm"])
    got = kept_by(name, tokens, of_one_prompt(case))
    assert len(got.visual) == tokens
    assert "kept" in (compare(case, got).mismatch or "")


def neighbour_of(case: dict) -> Method:
    """Another method that keeps as many tokens from the same layers on."""
    if "stages" not in case:
        prompt = prompt_of(FOLDER, setup_of(FOLDER, case))
        return build("fastv", Budget("kept", case["n_kept"]), {"boundary": case["first_pruned_layer"]}, prompt)
    name = "pyramiddrop" if case["method"] == "v2drop" else "v2drop"
    # behind the last layer nothing is left to rank for
    stages = [stage for stage in case["stages"] if stage["first_pruned_layer"] < len(case["q_len"])]
    layers = [stage["first_pruned_layer"] for stage in stages]
    counts = [stage["n_kept"] if "n_kept" in stage else stage["v_token_num_after"] for stage in stages]
    present = [stage["v_token_num_before"] if name == "v2drop" else 576 for stage in stages]
    # a hair more than the count, which int() cuts off
    ratios = [min(1.0, (count + 1e-6) / before) for count, before in zip(counts, present, strict=True)]
    return build(name, Budget("none"), {"layers": layers, "ratios": ratios}, prompt_of(FOLDER, setup_of(FOLDER, case)))


@pytest.mark.parametrize("file", RANKING, ids=[Path(f).stem for f in RANKING])
def test_a_neighbour_inside_the_decoder_keeps_other_tokens(file: str) -> None:
    """As many visual tokens in every layer by another ranking fail the case."""
    case = prefill_of(read(file))
    got = replay(FOLDER, case, neighbour_of(case))
    assert got.lengths == case["q_len"]
    first = case["stages"][0]["first_pruned_layer"] if "stages" in case else case["first_pruned_layer"]
    where = f"deleted in layer {first - 1}" if case["method"] == "fitprune" else f"layer {first}"
    assert (compare(case, got).mismatch or "").startswith(f"{where}: kept ")


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("da_b64_mha8_p24", lambda c: c["pivot_order"].reverse(), "pivots in turn [610, 611, 354,"),
        ("da_b64_mha8_p24", lambda c: c["picks"][2]["selected"].pop(), "pivot 354: kept 8 tokens, recorded 7"),
        ("pd_g3_gqa_p24", lambda c: c["stages"][1]["positions_after"].reverse(), "layer 6 does not stand at positions"),
        ("pd_g3_gqa_p24", lambda c: c["stages"][2]["kept"].pop(), "layer 9: kept 72 tokens, recorded 71"),
        ("v2_off_mha8_p24", lambda c: c["stages"][1].update(v_token_num_before=287), "layer 16: 288 visual tokens"),
    ],
)
def test_stages_pivots_and_picks_are_compared(file: str, change: Callable[[dict], object], says: str) -> None:
    case = prefill_of(json.loads(json.dumps(read(next(f for f in CASES if Path(f).stem == file)))))
    method = method_of(FOLDER, case)
    change(case)
    assert says in (compare(case, replay(FOLDER, case, method)).mismatch or "")


@pytest.mark.parametrize("file", DERIVED, ids=[Path(f).stem for f in DERIVED])
def test_a_calibration_reproduces(file: str) -> None:
    assert outcome(FOLDER, read(file), CPU).mismatch is None


@pytest.mark.parametrize(
    ("file", "changed", "says"),
    [
        ("cases/vtw/vt_findk_gqa_2.json", {"choices": [{"eta": 1.0, "k": 5}]}, "eta 1 chooses K = 7, recorded 5"),
        ("cases/fitprune/fp_calib50_gqa_2.json", {"flops_dims": {"hidden": 64, "intermediate": 4}}, "found Step"),
        ("cases/fitprune/fp_calib50_gqa_2.json", {"reduction_ratio": 0.6}, "found Step"),
        ("cases/fitprune/fp_calib50_gqa_2.json", {"inputs": ["p24"]}, "found Step"),
    ],
)
def test_another_calibration_is_told(file: str, changed: dict, says: str) -> None:
    assert says in (outcome(FOLDER, {**read(file), **changed}, CPU).mismatch or "")


def test_all_methods_of_the_index_are_covered() -> None:
    counts = Counter(read(f)["method"] for f in CASES)
    assert counts == {
        "vanilla": 4,
        "fastv": 19,
        "sparsevlm": 9,
        "visipruner": 26,
        "visionzip": 7,
        "fastervlm": 6,
        "vispruner": 9,
        "divprune": 8,
        "cdpruner": 6,
        "prumerge": 5,
        "hiprune": 7,
        "holov": 4,
        "pyramiddrop": 3,
        "dart": 5,
        "v2drop": 4,
        "vtw": 3,
        "fitprune": 3,
    }
    assert set(RULES) == {*counts} - {"vanilla"}, "a rule without a case"


@pytest.mark.parametrize(
    ("file", "knobs", "says"),
    [
        ("cases/fastv/fv_kvcache_k2_r144_mha8_p24.json", {"boundary": 3}, "layer 2 holds 635 tokens"),
        ("cases/fitprune/fp_c50_gqa_p24b.json", {"scheme": (85, 65, 62, 28, 48, 10, 49, 28, 1, 6, 0, 0)}, "layer 8"),
        ("cases/vtw/vt_k3_gqa_p24b.json", {"layer": 4}, "layer 3 holds 635 tokens, recorded 59"),
        ("cases/vtw/vt_k3_gqa_p24b.json", {"renumber": True}, "norm of layer"),
        ("cases/visipruner/vp_SMD_7b_t1_mha8_p24.json", {"exit_votes": 3}, "tokens, recorded"),
        ("cases/visipruner/vp_S_7b_t1_mha8_p24.json", {"layer0": "half", "sink": None}, "norm of layer 0"),
    ],
)
def test_comparison_names_the_first_difference(file: str, knobs: dict, says: str) -> None:
    case = read(file)
    method = method_of(FOLDER, case)
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
        replay(tmp_path, case, method_of(FOLDER, case))


def alone(tmp_path: Path, case: dict) -> Path:
    """A folder of one case on the committed models and inputs."""
    for part in ("models", "inputs"):
        (tmp_path / part).symlink_to(FOLDER / part)
    (tmp_path / "case.json").write_text(json.dumps(case))
    (tmp_path / "index.json").write_text(json.dumps([{"file": "case.json"}]))
    return tmp_path


FASTERVLM = "cases/fastervlm/fv_t32_gqa_c212.json"


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        (FASTERVLM, {"knobs": None}, "not replayable: a recording of fastervlm without the knobs that its rule reads"),
        (
            FASTERVLM,
            {"knobs": {"visual_token_num": "32"}},
            "visual_token_num: expected a number of tokens from 1, found",
        ),
        (FASTERVLM, {"knobs": {"visual_token_num": 577}}, "budget 577: expected 1 to 576"),
        (FASTERVLM, {"dtype": "float16"}, "not replayable: expected the dtype float32 or float64, found 'float16'"),
        (FASTERVLM, {"dtype": [1]}, "not replayable: expected the dtype float32 or float64, found [1]"),
        (FASTERVLM, {"model": ["gqa"]}, "not replayable: expected the names of a model and an input, found ['gqa']"),
        (FASTERVLM, {"input": "c1"}, "inputs/c1.safetensors or c1.safetensors.xz beside it, found neither"),
        (FASTERVLM, {"tower": "clip1"}, "not replayable: models/models.json has no `towers` for 'clip1'"),
        (FASTERVLM, {"kept": [0, "1"]}, "not replayable: kept[1]: Input should be a valid integer, found '1'"),
        (FASTERVLM, {"visual_norm": 3}, "not replayable: visual_norm: Input should be a valid list, found 3"),
        (FASTERVLM, {"visual_dot": [1.0]}, "32 visual tokens, recorded the product with the probe of 1"),
        (FASTERVLM, {"hidden_norm": ...}, "not replayable: the case records no hidden_norm"),
        (FASTERVLM, {"hidden_norm": [1.0]}, "12 decoder layers, recorded the norm"),
        (FASTERVLM, {"logits": [[1.0], []]}, "not replayable: expected logits of one size for the prefill and each"),
        (FASTERVLM, {"decode": [1, 2, 3, 4]}, "not replayable: decode[0]: Input should be a valid dictionary, found 1"),
        (FASTERVLM, {"decode": [{}] * 4}, "not replayable: a damaged case (KeyError"),
        (FASTERVLM, {"prefill_positions": ...}, "expected prefill_positions, or prefill_position 'compact', found"),
        (FASTERVLM, {"prefill_positions": [35, 118]}, "layer 0: its token 0 at position 0, recorded 35"),
        (FASTERVLM, {"n_zero_tokens": 2}, "0 visual tokens are zero, recorded 2"),
        (FASTERVLM, {"seq_len": 84}, "layer 0 holds 85 tokens, recorded 84"),
        ("cases/prumerge/pm_base_mha8_c277.json", {"kept": sorted}, "kept the recorded tokens in another order"),
        ("cases/holov/hv_440_mha8_h1.json", {"n_zero_tokens": 0}, "visual tokens are zero, recorded 0"),
        ("cases/holov/hv_440_mha8_h1.json", {"select_layer": -1}, "not replayable: select_layer: expected -2"),
        ("cases/visionzip/vz_d54c10_gqa_c277.json", {"knobs": {"dominant": "x", "contextual": 1}}, "knob dominant='x'"),
        ("cases/cdpruner/cd_t16_gqa_c212.json", {"question": ...}, "cdpruner reads the question"),
        (
            "cases/cdpruner/cd_t16_gqa_c212.json",
            {"question": 1},
            "not replayable: question: Input should be a valid dictionary, found 1",
        ),
    ],
)
def test_a_changed_case_with_a_tower_is_told_in_one_line(tmp_path: Path, file: str, changes: dict, says: str) -> None:
    case = read(file)
    for field, value in changes.items():
        case[field] = value(case[field]) if callable(value) else value
    case = {field: value for field, value in case.items() if value is not ...}
    (outcome,) = run_folder(alone(tmp_path, case))
    assert says in (outcome.mismatch or "")
    assert "\n" not in outcome.mismatch


@pytest.mark.parametrize("field", ["visual_norm", "visual_dot", "hidden_norm", "hidden_last_norm", "logits"])
def test_each_recorded_number_counts(tmp_path: Path, field: str) -> None:
    case = read(FASTERVLM)
    numbers = case[field] if field != "logits" else case[field][3]
    numbers[-1] += 1e-3 * max(map(abs, numbers)) * 2
    (outcome,) = run_folder(alone(tmp_path, case))
    assert outcome.mismatch is not None
    numbers[-1] = float("nan")
    (tmp_path / "case.json").write_text(json.dumps(case))
    (outcome,) = run_folder(tmp_path)
    assert outcome.mismatch is not None


def test_some_cases_of_a_folder_are_of_all_kinds() -> None:
    """What a short check replays is not one method's cases."""
    outcomes = list(run_folder(FOLDER, n=12))
    assert [o.mismatch for o in outcomes] == [None] * 12
    assert len({o.case.split("_")[0] for o in outcomes}) > 3
