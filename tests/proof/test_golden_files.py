"""A packed golden folder holds what the plain one held, packs to the same bytes again, and says in one line what is
damaged."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from harness.core.errors import PrunebenchError
from harness.proof.golden_files import load_index, pack, read_bytes, read_case, read_json

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests" / "goldens"
CASES = {
    "cases/a/one.json": {
        "id": "one",
        "logits": [[-1.5944582, 1e-05, 0.1]],
        "exit": None,
        "text": "\u65e5 \u2028 '\"\n",
    },
    "cases/a/two.json": {"id": "two", "kept": [], "noise": [0.30000000000000004, -0.0, 12345678901234567890]},
    "cases/b/three.json": {"id": "three", "kept": [1, 2, 3]},
}


def folder_of(root: Path, cases: dict[str, dict]) -> Path:
    for file, case in cases.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(json.dumps(case, indent=1))
    (root / "index.json").write_text(json.dumps([{"file": file} for file in CASES]))
    for part in ("models", "inputs"):
        (root / part).mkdir(exist_ok=True)
        save_file(
            {"x": torch.randn(64, 8, generator=torch.Generator().manual_seed(0)).half()}, root / part / "x.safetensors"
        )
    (root / "models" / "models.json").write_text("{}")
    return root


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    pack(folder_of(tmp_path / "packed", CASES))
    return tmp_path / "packed"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_packed_folder_holds_what_the_plain_one_held(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, CASES)
    plain = files(folder)
    before, after = pack(folder)
    assert before == sum(map(len, plain.values()))
    assert after == sum(map(len, files(folder).values()))
    assert set(files(folder)) == {
        "index.json",
        "models/models.json",
        "cases/a.jsonl.xz",
        "cases/b.jsonl.xz",
        "models/x.safetensors.xz",
        "inputs/x.safetensors.xz",
    }
    for file, case in CASES.items():
        assert json.dumps(read_case(folder, file)) == json.dumps(case)
    for part in ("models", "inputs"):
        assert read_bytes(folder / part / "x.safetensors") == plain[f"{part}/x.safetensors"]
    assert read_json(folder / "models" / "models.json") == {}


def test_equal_content_packs_to_equal_bytes_in_any_order(packed: Path, tmp_path: Path) -> None:
    once = files(packed)
    pack(packed)
    assert files(packed) == once
    other = folder_of(tmp_path / "other", dict(reversed(CASES.items())))
    (other / "index.json").write_text(json.dumps([{"file": file} for file in reversed(CASES)]))
    pack(other)
    assert {k: v for k, v in files(other).items() if k != "index.json"} == {
        k: v for k, v in once.items() if k != "index.json"
    }


def test_a_plain_case_comes_before_the_archive_and_joins_it(packed: Path) -> None:
    new = {"id": "two", "kept": [7]}
    (packed / "cases" / "a").mkdir()
    (packed / "cases" / "a" / "two.json").write_text(json.dumps(new))
    assert read_case(packed, "cases/a/two.json") == new
    pack(packed)
    assert not (packed / "cases" / "a").exists()
    assert [read_case(packed, file) for file in CASES] == [CASES["cases/a/one.json"], new, CASES["cases/b/three.json"]]


def test_a_case_that_was_read_can_be_changed_without_harm(packed: Path) -> None:
    read_case(packed, "cases/a/one.json")["logits"][0][0] = 7
    assert read_case(packed, "cases/a/one.json") == CASES["cases/a/one.json"]


@pytest.mark.parametrize("stray", ["cases/a/four.json", "cases/c.jsonl.xz"])
def test_packing_loses_no_case_that_the_index_lacks(packed: Path, stray: str) -> None:
    (packed / stray).parent.mkdir(exist_ok=True)
    (packed / stray).write_text(json.dumps({"id": "four"}))
    before = files(packed)
    with pytest.raises(PrunebenchError, match=rf"{stray}: not in index.json .*add it there or remove it"):
        pack(packed)
    assert files(packed) == before


def test_a_case_under_another_id_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {**CASES, "cases/b/three.json": {"id": "four"}})
    with pytest.raises(PrunebenchError, match=r"cases/b/three.json: expected .* with that id, found the id 'four'"):
        pack(folder)
    assert (folder / "cases" / "a" / "one.json").is_file()


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
@pytest.mark.parametrize("file", ["cases/a.jsonl.xz", "models/x.safetensors.xz"])
def test_a_cut_archive_is_named_with_what_to_do(packed: Path, file: str, share: float) -> None:
    whole = (packed / file).read_bytes()
    (packed / file).write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(
        PrunebenchError, match=rf"{file}: expected a whole xz file, found a damaged or cut one .*restore it with git"
    ) as caught:
        read_case(packed, "cases/a/one.json") if "cases" in file else read_bytes(packed / "models" / "x.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("index.json", "[{", "index.json: expected JSON, found a damaged file"),
        ("index.json", '[{"id": "one"}]', "index.json: expected a list of cases with a `file` each"),
        ("cases/a/one.json", '{"id"', "cases/a/one.json: expected JSON"),
        ("cases/a/one.json", "[]", "cases/a/one.json: expected a case as a JSON object, found list"),
        ("models/models.json", "{", "models/models.json: expected JSON"),
    ],
)
def test_damaged_json_is_named(packed: Path, file: str, text: str, says: str) -> None:
    (packed / "cases" / "a").mkdir()
    (packed / file).write_text(text)
    with pytest.raises(PrunebenchError, match=says):
        [read_case(packed, entry["file"]) for entry in load_index(packed)] + [
            read_json(packed / "models" / "models.json")
        ]


def test_missing_files_are_named(packed: Path) -> None:
    with pytest.raises(PrunebenchError, match=r"a\.jsonl\.xz: expected the case nine, found none of that id"):
        read_case(packed, "cases/a/nine.json")
    with pytest.raises(
        PrunebenchError, match=r"expected the case cases/d/one\.json or its archive .*d\.jsonl\.xz, found neither"
    ):
        read_case(packed, "cases/d/one.json")
    with pytest.raises(
        PrunebenchError, match=r"expected .*y\.safetensors or y\.safetensors\.xz beside it, found neither"
    ):
        read_bytes(packed / "models" / "y.safetensors")


def test_the_committed_goldens_are_packed_and_survive_a_round_trip(tmp_path: Path) -> None:
    plain = [path for pattern in ("cases/**/*.json", "**/*.safetensors") for path in GOLDENS.glob(pattern)]
    assert not plain, "run `python -m harness.proof.goldens pack tests/goldens`"
    cases = {entry["file"]: read_case(GOLDENS, entry["file"]) for entry in load_index(GOLDENS)}
    shutil.copy(GOLDENS / "index.json", tmp_path)
    for file, case in cases.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(json.dumps(case))
    pack(tmp_path)
    assert {file: read_case(tmp_path, file) for file in cases} == cases
    for entry in load_index(GOLDENS):
        assert {**cases[entry["file"]], **entry} == {**cases[entry["file"]], "file": entry["file"]}
    assert load(read_bytes(GOLDENS / "models" / "gqa.safetensors"))["lm_head.weight"].shape == (512, 128)


@pytest.mark.slow
def test_the_command_packs_and_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "f", CASES)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "harness.proof.goldens", *arguments], cwd=ROOT, capture_output=True, text=True
        )

    done = run("pack", str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"packed  {folder}: ")
    nothing = run("pack", str(tmp_path / "nothing"))
    assert (nothing.returncode, nothing.stderr.count("\n")) == (2, 1)
    assert "index.json" in nothing.stderr
    assert run("unpack").returncode == 1
