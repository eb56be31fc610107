"""The command line as a user meets it: the main job on a few questions, resuming, and what it says to bad input."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from helpers import run

from harness.core.command import evaluation
from harness.core.errors import PrunebenchError
from harness.core.paths import TOP as REPOSITORY
from harness.models.config import model_config
from harness.models.load import locate_model
from harness.store.store import Store

WEIGHTS = REPOSITORY / "tasks" / "mini" / "weights"
DATA = REPOSITORY / "tasks" / "mini" / "data"


def ev(results: Path, *args: str) -> tuple[str, ...]:
    return ("eval", "--results", str(results), *args)


def test_main_job_reuses_sealed_cells_and_measures_again_when_asked(tmp_path, capsys, monkeypatch) -> None:
    ask = ev(tmp_path, "--method", "fastv", "--budget", "64", "--tasks", "pope,mme", "--limit", "10", "--batch", "4")
    code, out, err = run(capsys, monkeypatch, *ask)
    assert code == 0, err
    assert out.startswith("fastv at budget 64 on mini (cpu in float32, its own chat template,")
    assert "GPU" not in out, "nothing is advertised"
    frame = pd.read_csv(tmp_path / "leaderboard.csv").set_index(["task", "method"])
    assert set(frame.index) == {("mme", "none"), ("mme", "fastv"), ("pope", "none"), ("pope", "fastv")}
    assert (frame["answered"] == frame["expected"]).all()
    assert frame.loc[("pope", "fastv"), "kept"] == 64
    assert frame.loc[("pope", "fastv"), "mean_visual"] == pytest.approx((2 * 576 + 10 * 64) / 12)
    assert frame.loc[("pope", "none"), "mean_visual"] == 576
    assert frame.loc[("mme", "none"), "answered"] == 10
    assert (tmp_path / "LEADERBOARD.md").is_file()
    first = {c.identity: c.provenance["started"] for c in Store(tmp_path).cells()}
    assert len(first) == 4
    code, out, _ = run(capsys, monkeypatch, *ask)
    assert code == 0
    assert "4 of 4 cells were sealed before" in out
    assert {c.identity: c.provenance["started"] for c in Store(tmp_path).cells()} == first
    time.sleep(1.1)  # provenance has seconds
    code, _, _ = run(capsys, monkeypatch, *ask, "--fresh")
    again = {c.identity: c.provenance["started"] for c in Store(tmp_path).cells()}
    assert code == 0
    assert again.keys() == first.keys()
    assert all(again[k] != first[k] for k in first)
    command = next(c for c in Store(tmp_path).cells() if c.cell.method == "fastv" and c.cell.task == "pope").asked
    assert (
        evaluation(command, fresh=True)
        == "make eval METHOD=fastv BUDGET=64 MODEL=mini TASKS=pope LIMIT=10 DEVICE=cpu FRESH=1"
    )


@pytest.mark.parametrize("method", ["random", "visipruner", "sparsevlm"])
def test_answers_do_not_depend_on_the_batch_size(method: str, tmp_path, capsys, monkeypatch) -> None:
    answers = []
    for batch in ("1", "5"):
        results = tmp_path / batch
        ask = ev(results, "--method", method, "--budget", "48", "--tasks", "gqa", "--limit", "7", "--batch", batch)
        code, _, err = run(capsys, monkeypatch, *ask)
        assert code == 0, err
        sealed = next(c for c in Store(results).cells() if c.cell.method == method)
        answers.append(
            (
                sealed.identity,
                sealed.samples().sort_values("key")[["key", "answer", "kept", "prefill_dense_flops"]].values.tolist(),
            )
        )
    assert answers[0] == answers[1]


def test_killed_run_continues_and_counts_nothing_twice(tmp_path) -> None:
    command = [
        sys.executable,
        "-m",
        "harness.cli",
        *ev(tmp_path, "--method", "none", "--tasks", "gqa", "--limit", "100", "--batch", "1"),
    ]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=REPOSITORY)
    deadline = time.time() + 120
    journal: list[Path] = []
    while time.time() < deadline and not (journal and journal[0].stat().st_size):
        journal = list(tmp_path.glob("cells/*/*/journal.jsonl"))
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = [json.loads(line) for line in journal[0].read_bytes().splitlines() if line.endswith(b"}")]
    kept = [line["key"] for line in lines if "key" in line]  # the first line is the header
    assert 0 < len(kept) < 90, "the run was to be killed in the middle"
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert f"{len(kept)}/" in done.stderr, "the progress bar starts where the killed run stopped"
    sealed = Store(tmp_path).cells()
    assert len(sealed) == 1
    assert sealed[0].counts["answered"] == sealed[0].counts["expected"] > 90
    keys = sealed[0].samples()["key"]
    assert keys.is_unique
    assert set(kept) <= set(keys)


BAD = {
    "method": (("--method", "fastw", "--budget", "64"), "unknown method 'fastw'; did you mean 'fastv'?"),
    "task": (("--method", "fastv", "--budget", "64", "--tasks", "popee"), "unknown task 'popee'; did you mean 'pope'?"),
    "no task": (("--method", "fastv", "--budget", "64", "--tasks", ","), "no task was named"),
    "model": (
        ("--method", "none", "--model", "lava-1.5-7b"),
        "unknown model 'lava-1.5-7b'; did you mean 'llava-1.5-7b'?",
    ),
    "budget 0": (("--method", "fastv", "--budget", "0"), "budget '0'"),
    "budget negative": (("--method", "fastv", "--budget", "-5"), "budget '-5'"),
    "budget nan": (("--method", "fastv", "--budget", "nan"), "budget 'nan'"),
    "budget above": (("--method", "fastv", "--budget", "577"), "576 visual tokens"),
    "budget unit": (("--method", "fastv", "--budget", "64foo"), "foo"),
    "budget missing": (
        (
            "--method",
            "fastv",
        ),
        "fastv needs a budget",
    ),
    "budget for none": (("--method", "none", "--budget", "64"), "none prunes nothing"),
    "budget native": (("--method", "random", "--budget", "native"), "no published defaults"),
    "budget unreachable": (("--method", "sparsevlm", "--budget", "2"), "expected a budget of at least"),
    "budget twice": (("--method", "fastv", "--budget", "64", "--set", "keep=5"), "'keep' is what the budget sets"),
    "layer": (
        ("--method", "fastv", "--budget", "64", "--set", "boundary=12"),
        "boundary=12 does not fit this model: expected 1 to 11",
    ),
    "knob": (("--method", "fastv", "--budget", "64", "--set", "boundry=3"), "did you mean 'boundary'?"),
    "knob type": (("--method", "fastv", "--budget", "64", "--set", "boundary=two"), "boundary='two' is not valid"),
    "knob twice": (
        ("--method", "fastv", "--budget", "64", "--set", "boundary=3 boundary=4"),
        "boundary is given twice, as 3 before",
    ),
    "knob syntax": (("--method", "fastv", "--budget", "64", "--set", "boundary"), "expected knob=value"),
    "budget for nobody": (("--method", "none,knockout", "--budget", "64"), "none of none, knockout takes a budget"),
    "budget unread": (("--method", "none,knockout", "--budget", "foo"), "budget 'foo'"),
    "comma": (("--method", "/tmp/a,b.py:X", "--budget", "64"), "a method's path holds a comma ('/tmp/a,b.py:X')"),
    "limit": (("--method", "fastv", "--budget", "64", "--limit", "0"), "--limit 0: expected a number of questions"),
    "batch": (
        ("--method", "fastv", "--budget", "64", "--batch", "0"),
        "--batch 0: expected a whole number of at least 1",
    ),
    "seed": (("--method", "random", "--budget", "64", "--seed", "1,x"), "--seed x: expected a whole number"),
    "device": (
        ("--method", "fastv", "--budget", "64", "--device", "cuda:63"),
        "--device cuda:63: expected a CUDA device",
    ),
    "device name": (
        ("--method", "fastv", "--budget", "64", "--device", "gpu"),
        "--device gpu: expected auto, cpu, cuda or cuda:N",
    ),
    "dtype": (("--method", "fastv", "--budget", "64", "--dtype", "float23"), "did you mean 'float32'?"),
    "data": (("--method", "fastv", "--budget", "64", "--data", "mimi"), "did you mean 'mini'?"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_says_what_to_do(case: str, tmp_path, capsys, monkeypatch) -> None:
    args, says = BAD[case]
    code, _, err = run(capsys, monkeypatch, *ev(tmp_path, *args))
    assert code == 2, err
    line = err.removeprefix("loading torch, transformers and lmms-eval ...\n")
    assert line.startswith("prunebench: ")
    assert line.count("\n") == 1
    assert says in line
    assert not list(tmp_path.rglob("journal.jsonl")), "refused before anything ran"


def test_no_hub_is_said_before_anything_is_loaded(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    code, out, err = run(
        capsys, monkeypatch, *ev(tmp_path, "--method", "fastv", "--budget", "64", "--model", "llava-1.5-7b")
    )
    assert code == 2
    assert "llava-hf/llava-1.5-7b-hf could not be fetched from the Hugging Face hub" in err
    assert "--model mini needs no hub" in err
    assert out == ""


def test_what_takes_one_budget_says_so(capsys, monkeypatch) -> None:
    for words in (("cost", "fastv"), ("show", "--sample", "pope/000000")):
        code, _, err = run(capsys, monkeypatch, *words, "--budget", "10,20")
        assert (code, err) == (
            2,
            (
                f"prunebench: --budget 10,20: {words[0]} takes one budget: give one of them, and call {words[0]} again"
                " for the others\n"
            ),
        )


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json", "processor_config.json"])
def test_corrupt_and_missing_model_files_are_named(file: str, tmp_path: Path) -> None:
    folder = copy_of(WEIGHTS, tmp_path / "model")
    (folder / file).write_bytes((folder / file).read_bytes()[:100])
    with pytest.raises(PrunebenchError, match="model model"):
        locate_model(str(folder), "cpu").load()
    (folder / file).unlink()
    with pytest.raises(PrunebenchError, match="expected"):
        locate_model(str(folder), "cpu")


def test_weights_that_lack_a_tensor_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy_of(WEIGHTS, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    gone = next(k for k in tensors if "layers.3.mlp.down_proj" in k)
    del tensors[gone]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(PrunebenchError, match=r"layers\.3\.mlp\.down_proj"):
        locate_model(str(folder), "cpu").load()


def test_unsupported_architecture_and_bad_config_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy_of(WEIGHTS, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(
        PrunebenchError, match="is a GPT2LMHeadModel; prunebench supports LlavaForConditionalGeneration"
    ):
        locate_model(str(folder), "cpu")
    monkeypatch.setattr("harness.models.config.MODEL_CONFIGS", tmp_path)
    (tmp_path / "odd.yaml").write_text("name: odd\npromt: vicuna_v1\n")
    with pytest.raises(PrunebenchError, match="promt"):
        model_config("odd")


def test_broken_data_is_named_and_nothing_is_lost(tmp_path, capsys, monkeypatch) -> None:
    data = copy_of(DATA, tmp_path / "data")
    parquet = next((data / "POPE").rglob("*.parquet"))
    table = pq.read_table(parquet)
    images = table.column("image").to_pylist()
    target = table.column("question_id")[3].as_py()
    images[3] = {**images[3], "bytes": b"not a jpeg"}
    kinds = table.schema.field("image").type
    import pyarrow as pa

    table = table.set_column(
        table.schema.get_field_index("image"), table.schema.field("image"), pa.array(images, kinds)
    )
    pq.write_table(table, parquet)
    ask = ev(
        tmp_path / "r", "--method", "none", "--tasks", "pope", "--limit", "all", "--data", str(data), "--batch", "2"
    )
    code, _, err = run(capsys, monkeypatch, *ask)
    assert code == 2
    assert "pope/" in err
    assert "image" in err
    assert target is not None
    parquet.write_bytes(parquet.read_bytes()[:-50])
    code, _, err = run(capsys, monkeypatch, *ask)
    assert code == 2
    assert parquet.name in err


def test_a_folder_with_a_blank_is_found_again_and_its_command_runs(tmp_path, capsys, monkeypatch) -> None:
    data = tmp_path / "my $data; it's"
    data.symlink_to(DATA)
    ask = ("--method", "first", "--budget", "64", "--tasks", "pope", "--limit", "6", "--data", str(data))
    code, _, err = run(capsys, monkeypatch, *ev(tmp_path / "r", *ask))
    assert code == 0, err
    sealed = next(c for c in Store(tmp_path / "r").cells() if c.cell.method == "first")
    key = sealed.samples()["key"][0]
    code, out, err = run(
        capsys, monkeypatch, "show", "--results", str(tmp_path / "r"), "--sample", key, "--method", "first"
    )
    assert code == 0, err
    assert "picture  " in out
    words = dict(part.split("=", 1) for part in shlex.split(evaluation(sealed.asked))[2:])
    again = [part for name, value in words.items() for part in (f"--{name.lower()}", value)]
    code, out, err = run(capsys, monkeypatch, *ev(tmp_path / "r", *again))
    assert code == 0, err
    assert "2 of 2 cells were sealed before" in out


def test_results_folder_that_cannot_be_written(tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run(
        capsys, monkeypatch, *ev(tmp_path / "file" / "results", "--method", "none", "--tasks", "pope", "--limit", "9")
    )
    assert code == 2
    assert str(tmp_path / "file") in err


def test_interruption_says_how_to_continue(capsys, monkeypatch) -> None:
    """A real signal in the middle of a real command: typer would end it without a word."""
    from harness.runner import sweep

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sweep, "load", lambda *_: os.kill(os.getpid(), signal.SIGINT) or time.sleep(5))
    code, _, err = run(capsys, monkeypatch, "sweep", "any.yaml")
    assert code == 130
    assert "the same command continues" in err
    assert signal.getsignal(signal.SIGINT) is before


def test_doctor_reports_a_pair_that_does_not_match(capsys, monkeypatch) -> None:
    from harness.install import doctor

    assert doctor.torchvision_problem() is None
    monkeypatch.setitem(sys.modules, "torchvision", None)
    problem = doctor.torchvision_problem()
    assert problem is not None
    assert "do not fit together" in problem
    assert not doctor.report()
    out = capsys.readouterr().out
    assert "PROBLEM        torch" in out
    assert out.splitlines()[-1] == "1 problem, mended by: make clean-venv && make venv"


def test_methods_lists_the_registry(capsys, monkeypatch) -> None:
    code, out, _ = run(capsys, monkeypatch, "methods")
    assert code == 0
    assert all(name in out for name in ("none", "random", "fastv", "sparsevlm", "visipruner"))
    assert max(map(len, out.splitlines())) <= 110
    code, out, _ = run(capsys, monkeypatch, "methods", "visionzip")
    assert code == 0
    assert re.search(r"^official code +https://github.com/dvlab-research/VisionZip/tree/3151f6df$", out, re.M)
    assert re.search(r"^licence there +Apache-2.0$", out, re.M)
    assert run(capsys, monkeypatch, "methods", "visionzap")[0] == 2
