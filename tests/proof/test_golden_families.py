"""Every recorded case of a family other than LLaVA-1.5 reproduces; the unpruned model, another variant and another
method fail it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.core.budget import Budget
from harness.method import build, method_class
from harness.proof import golden_families
from harness.proof.golden_families import compare, cut, method_of, prepared, replay
from harness.proof.golden_files import load_index, read_case
from harness.proof.goldens import CPU, run_folder

FOLDER = Path(__file__).parents[1] / "goldens-families"
#: of families that are here
CASES = [entry["file"] for entry in load_index(FOLDER) if entry["family"] in golden_families.FAMILIES]
VSCAN = [file for file in CASES if file.startswith("cases/vscan/")]
HIPRUNE = [file for file in CASES if file.startswith("cases/hiprune/")]


def read(file: str) -> dict[str, Any]:
    return read_case(FOLDER, file)


def prefill_of(case: dict[str, Any]) -> dict[str, Any]:
    """The same case without its decode steps."""
    return {**case, "logits": case["logits"][:1], "decode": []}


@pytest.mark.parametrize("file", CASES, ids=[Path(file).stem for file in CASES])
def test_case_reproduces_and_another_method_fails_it(file: str) -> None:
    case = read(file)
    given = prepared(FOLDER, case, CPU)
    outcome = compare(case, replay(case, given, method_of(case, given)))
    assert outcome.mismatch is None, outcome
    start = prefill_of(case)
    whole = case["method"] == "vanilla" or case.get("order", 0) is None
    other = method_class("fastv")(keep=9) if whole else method_class("none")()
    assert compare(start, replay(start, given, other)).mismatch is not None


@pytest.mark.parametrize("file", HIPRUNE, ids=[Path(file).stem for file in HIPRUNE])
def test_anchors_of_another_layer_fail_hiprune(file: str) -> None:
    case = prefill_of(read(file))
    given = prepared(FOLDER, case, CPU)
    mine = method_of(case, given)
    other = replace(mine, object_layer=mine.object_layer + 1)  # type: ignore[attr-defined]
    assert compare(case, replay(case, given, other)).mismatch is not None


@pytest.mark.parametrize("file", HIPRUNE, ids=[Path(file).stem for file in HIPRUNE])
def test_the_ways_of_llava_fail_hiprune_on_qwen(file: str) -> None:
    """Registers of the second-last layer."""
    case = prefill_of(read(file))
    given = prepared(FOLDER, case, CPU)
    other = replace(method_of(case, given), official="llava")  # type: ignore[call-arg]
    assert compare(case, replay(case, given, other)).mismatch is not None


@pytest.mark.parametrize("file", [f for f in HIPRUNE if "_w_qa" in f or "_o3_qc" in f])
def test_windows_are_ignored_or_not(file: str) -> None:
    """Where the object layer attends within windows, the two official classes keep other tokens."""
    case = prefill_of(read(file))
    given = prepared(FOLDER, case, CPU)
    mine = method_of(case, given)
    other = {"qwen": "qwen-eager", "qwen-eager": "qwen"}[mine.official]  # type: ignore[attr-defined]
    assert "layer 0: kept" in (compare(case, replay(case, given, replace(mine, official=other))).mismatch or "")


def fails(file: str, **knobs: Any) -> str:
    """How a case differs from its method with other knobs; "" where it does not."""
    case = prefill_of(read(file))
    given = prepared(FOLDER, case, CPU)
    return compare(case, replay(case, given, replace(method_of(case, given), **knobs))).mismatch or ""


@pytest.mark.parametrize("file", [f for f in VSCAN if "vq_all" not in f], ids=lambda file: Path(file).stem)
def test_the_other_attention_of_the_tower_fails_vscan(file: str) -> None:
    """One rotation for two, and the other way round."""
    other = "qwen" if "_fa_" in file else "qwen-flash"
    assert ": kept" in fails(file, official=other)


@pytest.mark.parametrize("file", [f for f in CASES if f.startswith("cases/vscan_next/")], ids=lambda f: Path(f).stem)
def test_the_mended_ranking_fails_the_code_on_tiles(file: str) -> None:
    """The code ranks the first window alone and keeps what lies behind; ours keeps as many of each tile as it names."""
    assert fails(file, official="next").startswith("layer ")


@pytest.mark.parametrize("file", [f for f in CASES if f.startswith("cases/mmtok/")], ids=lambda f: Path(f).stem)
def test_a_neighbour_of_mmtok_fails_it(file: str) -> None:
    spared = "mq_10" in file
    assert "kept" in fails(file, **({"spared": 0} if spared else {"select": "tower-distance"}))
    if not spared:
        assert fails(file, alpha=0.0)


@pytest.mark.parametrize("file", [f for f in CASES if f.startswith("cases/divprune_mmtok/")])
def test_divprune_itself_fails_what_mmtok_calls_divprune(file: str) -> None:
    case = prefill_of(read(file))
    given = prepared(FOLDER, case, CPU)
    keep = len(case["kept"])
    other = build("divprune", Budget("kept", keep), {}, given.adapter.usual)
    assert f"kept {keep} tokens, recorded {keep}" in (compare(case, replay(case, given, other)).mismatch or "")


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("vscan/vq_off_qa", {"local": [1, 2]}, "local: kept 6 tokens"),
        ("vscan/vq_off_qa", {"local_scores": [1.0] * 80}, "local_scores differ"),
        ("vscan/vq_off_qa", {"global_scores": [1.0] * 80}, "global_scores differ"),
        ("vscan/vq_off_qa", {"merged_norm": [1.0] * 13}, "visual token 0: norm"),
        ("mmtok/mq_20_qa", {"order": [1, 2]}, "pick 1 is [6], recorded [1]"),
    ],
)
def test_each_recorded_field_of_the_newer_methods_is_compared(file: str, change: dict[str, Any], says: str) -> None:
    case = {**read(f"cases/{file}.json"), **change}
    given = prepared(FOLDER, case, CPU)
    assert says in (compare(case, replay(case, given, method_of(case, given))).mismatch or "")


def test_scores_and_sets_of_stages_are_compared() -> None:
    for file in ("vscan/vq_off_qa", "vscan_next/vn_64_20_nb"):
        case = prefill_of(read(f"cases/{file}.json"))
        given = prepared(FOLDER, case, CPU)
        run = replay(case, given, method_of(case, given))
        (stage,) = case["stages"]
        scored = {**stage, "scores": [9.0] * len(stage["scores"])}
        assert "scores of layer" in (compare({**case, "stages": [scored]}, run).mismatch or "")
        name = "kept" if "kept" in stage else "kept_window"
        assert "layer " in (compare({**case, "stages": [{**stage, name: [0, 1]}]}, run).mismatch or "")


def test_hiprune_keeps_fewer_than_asked() -> None:
    asked = [(case["budget"], case["n_kept"]) for case in map(read, HIPRUNE)]
    assert {(27, 26), (50, 49)} <= {*asked}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_norm": [1.0] * 14}, "norm of layer 0's output"),
        ({"q_len": [7] * 14}, "layer 0 holds 42 tokens, recorded 7"),
        ({"kept": [1, 2]}, "layer 0: kept 11 tokens, recorded 2"),
        ({"prefill_positions": [[0], [1], [2]]}, "the first layer's tokens stand at [0, 0, 0] and [41, 41, 41]"),
        ({"visual_norm": [1.0] * 11}, "visual token 0: norm"),
        ({"object_scores": [1.0] * 99}, "object_scores differ"),
        ({"register_scores": [1.0] * 99}, "register_scores differ"),
        ({"object_scores": [1.0]}, "no object_scores of 1 tokens"),
        ({"logits": [[0.0] * 600] * 5}, "logits differ by"),
    ],
)
def test_each_recorded_field_is_compared(change: dict[str, Any], says: str) -> None:
    case = {**read("cases/hiprune/hq_11_qc.json"), **change}
    given = prepared(FOLDER, case, CPU)
    assert says in (compare(case, replay(case, given, method_of(case, given))).mismatch or "")


def test_decode_places_are_compared_on_three_axes() -> None:
    case = read("cases/vanilla/va_q25_qb.json")
    given = prepared(FOLDER, case, CPU)
    run = replay(case, given, method_of(case, given))
    for axis in range(3):
        place = list(case["decode"][1]["position_id"])
        place[axis] += 1
        moved = [case["decode"][0], {"position_id": place}, *case["decode"][2:]]
        assert f"decode step 2 does not stand at {place}" in (compare({**case, "decode": moved}, run).mismatch or "")


def test_pivots_are_compared() -> None:
    case = read("cases/dart_qwen/dq25_778_qa.json")
    given = prepared(FOLDER, case, CPU)
    run = replay(case, given, method_of(case, given))
    assert compare(case, run).mismatch is None
    assert "pivots" in (compare({**case, "pivots_visual": [0, 1, 2, 3]}, run).mismatch or "")
    (stage,) = case["stages"]
    moved = {**stage, "kept_positions": [[0], [0], [0]]}
    assert "layer 2: kept tokens stand at" in (compare({**case, "stages": [moved]}, run).mismatch or "")
    other = build("fastv", Budget("kept", 20), {"boundary": 2}, given.adapter.usual)
    assert "layer 2: kept 20 tokens" in (compare(case, replay(case, given, other)).mismatch or "")


def test_patches_are_cut_as_the_processor_cuts_them() -> None:
    """The processor of transformers, on an image of whole cells, without resizing, rescaling and normalising."""
    import torch
    from transformers import Qwen2VLImageProcessor

    case = read("cases/hiprune/hq_11_qc.json")
    given = prepared(FOLDER, case, CPU)
    vision = given.adapter.model.config.vision_config
    coarse = torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(0))
    image = coarse.repeat_interleave(7, 1).repeat_interleave(7, 2)
    off = {"do_resize": False, "do_rescale": False, "do_normalize": False, "do_convert_rgb": False}
    made = Qwen2VLImageProcessor()(images=image, return_tensors="pt", **off)
    assert made["image_grid_thw"].tolist() == [[1, 4, 6]]
    assert torch.equal(cut(coarse, (4, 6), vision), made["pixel_values"])


def test_what_is_not_here_is_named(tmp_path: Path) -> None:
    case = read("cases/hiprune/hq_11_qc.json")
    (tmp_path / "cases" / "x").mkdir(parents=True)
    changes = [
        ({"method": "zooprune"}, "no rule says how a recording of 'zooprune' on qwen2_5_vl maps to knobs"),
        ({"family": "gemma3"}, "expected a family of qwen2_5_vl, qwen2_vl"),
        ({"vision_attention": "sdpa"}, "a recording of hiprune without the knobs that its rule reads"),
    ]
    files = []
    for number, (change, _) in enumerate(changes):
        files.append(f"cases/x/{number}.json")
        (tmp_path / files[-1]).write_text(json.dumps({**case, **change}))
    (tmp_path / "index.json").write_text(json.dumps([{"file": file} for file in files]))
    for outcome, (_, says) in zip(run_folder(tmp_path), changes, strict=True):
        assert f"not replayable: {says}" in (outcome.mismatch or "")
