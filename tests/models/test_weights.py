"""Weights as they come from files: the same numbers as transformers' own way, checked, and in memory once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import internvls
import pytest
import qwens
import torch
from checkpoints import change, copy, refused
from families import llava_next
from safetensors.torch import load_file, save_file
from tiny import text_config
from transformers import AutoModelForImageTextToText, LlavaConfig

from harness.models import weights
from harness.models.device import DTYPES
from harness.models.load import locate_model

#: finds and loads the mini model first, so that libraries are in memory; then prints the process's kB before and after
#: the model in question was loaded, and the size of the model
LOAD = """
import sys
from harness.models.load import locate_model

def memory():
    lines = open("/proc/self/status").read().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}

locate_model("mini", "cpu", sys.argv[2]).load()
located = locate_model(sys.argv[1], "cpu", sys.argv[2])
located.fingerprint
before = memory()
model = located.load().model
after, size = memory(), sum(p.nbytes for p in model.parameters()) // 1024
print(size, after["VmHWM"] - before["VmRSS"], after["RssAnon"] - before["RssAnon"])
"""


def sharded(folder: Path, parts: int) -> list[Path]:
    """The tensors of a folder's single file, dealt to shards of like size."""
    found = load_file(folder / "model.safetensors")
    whole, seen, places = sum(t.nbytes for t in found.values()), 0, {}
    for name, tensor in found.items():
        places[name] = f"model-{min(parts, 1 + seen * parts // whole):05d}-of-{parts:05d}.safetensors"
        seen += tensor.nbytes
    (folder / "model.safetensors").unlink()
    for file in set(places.values()):
        save_file({n: t for n, t in found.items() if places[n] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return [folder / file for file in sorted(set(places.values()))]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """200 MB of float16 in two shards; no tensor has more than 2 MB."""
    folder = copy(tmp_path_factory.mktemp("large") / "m")
    stated = LlavaConfig.from_pretrained(folder)
    text = text_config(512, 2048, 24, 8, vocab_size=stated.text_config.vocab_size, pad_token_id=3).to_dict()
    change(folder / "config.json", {"text_config": text, "tie_word_embeddings": False})
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(LlavaConfig.from_pretrained(folder))
    (folder / "model.safetensors").unlink()
    filled = {name: torch.ones(p.shape, dtype=torch.float16) for name, p in model.named_parameters()}
    save_file(filled, folder / "model.safetensors", {"format": "pt"})
    yield sharded(folder, 2)
    shutil.rmtree(folder)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a process's memory is read as Linux tells it")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_loading_holds_the_weights_once(dtype: str, large: list[Path]) -> None:
    shard = max(file.stat().st_size for file in large) // 1024
    command = [sys.executable, "-c", LOAD, str(large[0].parent), dtype]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    size, peak, anonymous = map(int, said.split())
    assert size / 2 < peak < size + shard, "another copy of what was read or converted"
    assert (anonymous < size / 4) == (dtype == "float16"), "weights of the asked format are pages of the file"


FOLDERS: dict[str, Callable[[Path], Any]] = {
    "llava": copy,
    "llava_next": llava_next,
    "internvl": partial(internvls.folder, penalty=1.1),
    **{name: partial(qwens.folder, name, penalty=1.1) for name in qwens.FAMILIES},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FOLDERS)
def test_a_model_is_the_one_that_transformers_loads(family: str, dtype: str, tmp_path: Path) -> None:
    """Of one shard in each format: names, numbers, formats, buffers, ties and both configurations."""
    folder = tmp_path / "m"
    FOLDERS[family](folder)
    for shard, stored in zip(sharded(folder, 3), DTYPES.values(), strict=True):
        save_file({name: tensor.to(stored) for name, tensor in load_file(shard).items()}, shard, {"format": "pt"})
    ours = locate_model(str(folder), "cpu", dtype).load().model
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=DTYPES[dtype], attn_implementation="sdpa")
    for got, expected in zip(everything(ours), everything(theirs), strict=True):
        assert got[0] == expected[0]
        assert got[1].dtype == expected[1].dtype
        assert torch.equal(got[1], expected[1]), got[0]
    assert len(list(ours.parameters())) == len(list(theirs.parameters()))  # the tied ones once
    assert ours.config.to_dict() == theirs.config.to_dict()
    assert ours.generation_config.to_dict() == theirs.generation_config.to_dict()
    assert (type(ours), ours.training, ours.name_or_path) == (type(theirs), False, theirs.name_or_path)


def everything(model: Any) -> list[tuple[str, torch.Tensor]]:
    return [*model.state_dict().items(), *model.named_buffers()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_wrong_number_in_the_last_shard_is_named(
    value: float, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(tmp_path / "m")
    last = sharded(folder, 3)[-1]
    found = load_file(last)
    name = max(found)
    found[name].view(-1)[-1] = value
    save_file(found, last, {"format": "pt"})
    monkeypatch.setattr(weights, "PIECE", 100)
    said = refused(lambda: locate_model(str(folder), "cpu", dtype).load())
    assert "hold nan or inf" in said
    assert name.rpartition("layers.")[2] in said
