"""Names, folders and files of models that anybody may have written: found, or refused in one line without waiting."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import WEIGHTS, change, copy, refused

from harness.core.errors import PrunebenchError
from harness.models import files
from harness.models.config import known_models, model_config
from harness.models.files import loaded_files, weight_hash
from harness.models.load import locate_model

JSON_FILES = (
    "config.json",
    "processor_config.json",
    "generation_config.json",
    "tokenizer_config.json",
)
EVERY_FILE = (*JSON_FILES, "tokenizer.json", "chat_template.jinja", "model.safetensors")
DEEP = "[" * 100_000
BODIES = {
    "a list": "[1]",
    "null": "null",
    "a number": "3",
    "a text": '"llava"',
    "nothing": "",
    "cut": '{"a": {"b": 1',
    "deep": DEEP,
    "deep in an object": '{"a": ' + DEEP,
    "a key twice": '{"model_type": "llava", "model_type": "llama"}',
    "no number": '{"a": NaN}',
    "a huge number": '{"a": ' + "9" * 6000 + "}",
    "no UTF-8": b"\xff\xfe{\x00",
    "zeros": b"\0" * 64,
}


def put(file: Path, body: str | bytes) -> None:
    file.unlink()
    file.write_bytes(body if isinstance(body, bytes) else body.encode())


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", JSON_FILES)
def test_a_file_that_is_no_json_object_is_one_line(name: str, body: str, tmp_path: Path) -> None:
    folder = copy(tmp_path / "m")
    put(folder / name, BODIES[body])
    assert name in refused(lambda: locate_model(str(folder), "cpu"))


@pytest.mark.parametrize("body", [b for b in BODIES if b not in ("no number", "a huge number")])
def test_a_tokenizer_that_is_none_is_one_line(body: str, tmp_path: Path) -> None:
    folder = copy(tmp_path / "m")
    put(folder / "tokenizer.json", BODIES[body])
    assert "model m" in refused(lambda: locate_model(str(folder), "cpu").prompter)


def _folder(file: Path) -> None:
    file.mkdir()


def _pipe(file: Path) -> None:
    os.mkfifo(file)


def _device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def _dangling(file: Path) -> None:
    file.symlink_to(file.parent / "nowhere")


def _loop(file: Path) -> None:
    file.symlink_to(file)


@pytest.mark.parametrize("kind", [_folder, _pipe, _device, _dangling, _loop])
@pytest.mark.parametrize("name", [*EVERY_FILE, "model.safetensors.index.json", "preprocessor_config.json"])
def test_what_is_no_file_is_refused_and_never_waited_for(
    name: str, kind: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = copy(tmp_path / "m")
    if name.endswith("index.json"):
        (folder / "model.safetensors").unlink()
    (folder / name).unlink(missing_ok=True)
    kind(folder / name)
    assert name in refused(lambda: locate_model(str(folder), "cpu"))
    assert name in refused(lambda: weight_hash(folder))


@pytest.mark.parametrize("kind", [_folder, _pipe, _device, _dangling])
def test_files_that_are_not_read_may_be_anything(kind: Callable[[Path], None], tmp_path: Path) -> None:
    folder = copy(tmp_path / "m")
    for name in ("optimizer.safetensors", "notes.json", "other.jinja"):
        kind(folder / name)
    assert locate_model(str(folder), "cpu").fingerprint == weight_hash(WEIGHTS)


PROCESSOR, TOKENIZER, TEMPLATE = "processor_config.json", "tokenizer_config.json", "chat_template.jinja"
BROKEN: dict[str, Callable[[Path], None]] = {
    "image processor is a list": lambda f: change(f / PROCESSOR, {"image_processor": [1]}),
    "image processor of no class": lambda f: change(f / PROCESSOR, {"image_processor.image_processor_type": "Nothing"}),
    "a tokenizer as processor": lambda f: change(f / PROCESSOR, {"processor_class": "x"}),
    "processor of no class": lambda f: change(f / PROCESSOR, {"processor_class": 5}),
    "patch size is a text": lambda f: change(f / PROCESSOR, {"patch_size": "14"}),
    "crop is a text": lambda f: change(f / PROCESSOR, {"image_processor.crop_size": "336"}),
    "crop is negative": lambda f: change(f / PROCESSOR, {"image_processor.crop_size": {"height": -1, "width": 336}}),
    "resample of no filter": lambda f: change(f / PROCESSOR, {"image_processor.resample": 99}),
    "mean of two colours": lambda f: change(f / PROCESSOR, {"image_processor.image_mean": [0.5, 0.5]}),
    "tokenizer of no class": lambda f: change(f / TOKENIZER, {"tokenizer_class": ["a"]}),
    "remote code": lambda f: change(f / "config.json", {"model_type": "mine", "auto_map": {"AutoConfig": "a.B"}}),
    "text_config is a list": lambda f: change(f / "config.json", {"text_config": [1]}),
    "vision_config is null": lambda f: change(f / "config.json", {"vision_config": None}),
    "architectures of numbers": lambda f: change(f / "config.json", {"architectures": [1]}),
    "architectures of nothing": lambda f: change(f / "config.json", {"architectures": []}),
    "rope is a text": lambda f: change(f / "config.json", {"text_config.rope_parameters": "default"}),
    "image token is a text": lambda f: change(f / "config.json", {"image_token_index": "<image>"}),
    "image token is huge": lambda f: change(f / "config.json", {"image_token_index": 10**40}),
    "template of no syntax": lambda f: (f / TEMPLATE).write_text("{% for m in %}"),
    "template raises": lambda f: (f / TEMPLATE).write_text("{{ raise_exception('no\nimages') }}"),
    "template of no image": lambda f: (f / TEMPLATE).write_text("{{ messages[0]['content'][1]['text'] }}"),
    "template of no question": lambda f: (f / TEMPLATE).write_text("USER: <image>"),
    "template of nothing": lambda f: (f / TEMPLATE).write_text(""),
    "no template": lambda f: (f / TEMPLATE).unlink(),
    "an adapter": lambda f: (f / "adapter_config.json").write_text("{}"),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "weights cut": lambda f: put(f / "model.safetensors", (WEIGHTS / "model.safetensors").read_bytes()[:5000]),
    "weights of text": lambda f: put(f / "model.safetensors", "weights"),
    "no tokenizer": lambda f: (f / "tokenizer.json").unlink(),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_one_line(name: str, tmp_path: Path) -> None:
    folder = copy(tmp_path / "m")
    BROKEN[name](folder)
    assert "model m" in refused(lambda: locate_model(str(folder), "cpu"))


STRANGE = [None, [], {}, "x", -1, 0, True, 1.5, [1], {"a": 1}, 3]


def _leaves(body: dict[str, Any], above: str = "") -> Iterator[str]:
    for name, value in body.items():
        yield above + name
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{name}.")


PLACES = [(name, place) for name in JSON_FILES for place in _leaves(json.loads((WEIGHTS / name).read_text()))]


@pytest.mark.parametrize("seed", range(12))
def test_a_strange_value_anywhere_is_located_or_one_line(seed: int, tmp_path: Path) -> None:
    """Sixteen draws of a place in a file and a value: all 996 pairs were tried once."""
    draw = random.Random(seed)
    for turn in range(16):
        folder, (name, place) = copy(tmp_path / f"m{turn}"), draw.choice(PLACES)
        change(folder / name, {place: draw.choice(STRANGE)})
        said = ""
        try:
            assert locate_model(str(folder), "cpu").prompter.processing
        except PrunebenchError as error:
            said = str(error)
        assert "\n" not in said, (name, place)


INDEXES = {
    "of nothing": {},
    "a list": {"weight_map": ["a"]},
    "empty": {"weight_map": {}},
    "numbers": {"weight_map": {"a": 1}},
    "a path": {"weight_map": {"a": "../model.safetensors"}},
    "an absolute path": {"weight_map": {"a": "/dev/zero"}},
    "a file that is missing": {"weight_map": {"a": "model-00001-of-00002.safetensors"}},
    "no file name": {"weight_map": {"a": ""}},
}


@pytest.mark.parametrize("name", INDEXES)
def test_a_broken_index_is_one_line(name: str, tmp_path: Path) -> None:
    folder = copy(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(INDEXES[name]))
    assert "model m" in refused(lambda: locate_model(str(folder), "cpu"))


def sharded(folder: Path) -> Path:
    """The weights of a folder in two files and an index."""
    from safetensors.torch import load_file, save_file

    found = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(found)}
    for shard in set(places.values()):
        save_file({n: t for n, t in found.items() if places[n] == shard}, folder / shard, {"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards_load_and_a_missing_one_is_named(tmp_path: Path) -> None:
    folder = sharded(copy(tmp_path / "m"))
    locate_model(str(folder), "cpu").load()
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in refused(lambda: locate_model(str(folder), "cpu"))


# ---------------------------------------------------------------------------------------------------------------- names

IDS = [
    "a/..",
    "a/b c",
    "a/b.git",
    "a/b.ipynb",
    "a/" + "x" * 200,
    "x" * 5000,
    "a/" + "x" * 5000,
    "a/b/c",
    "a//b",
    "a/",
    "/",
    "/nowhere/at all",
    "./nowhere",
    "~/nowhere",
    "../nowhere",
    "a/b--c",
    "a/-b",
    "a/b.",
    "-a/b",
    "a/b\nc",
    "a/b\x00c",
    "\x00",
    "a\x1b[31m/b",
    "a/\udcff",
    "\u00fc/\u00fc",
    "http://host/a/b",
    "",
    " ",
    ".",
    "..",
    "mini.yaml",
    "../models/mini",
    "Mini",
]


@pytest.mark.parametrize("name", IDS, ids=lambda name: repr(name)[:30])
def test_a_name_that_is_none_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(lambda: locate_model(name, "cpu"))
    assert len(said) < 600
    said.encode()
    assert said.isprintable()


def test_a_folder_beside_a_yaml_file_is_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    copy(tmp_path / "my-model")
    (tmp_path / "my-model.yaml").write_text("models: [mini]\nmethods: [none]\n")
    for name in (str(tmp_path / "my-model"), "my-model", "./my-model", "my-model/"):
        assert model_config(name).name == "my-model"
        assert locate_model(name, "cpu").config.stands_for == ""


def test_a_link_has_its_own_name(tmp_path: Path) -> None:
    copy(tmp_path / "snapshots" / ("0123456789" * 4))
    (tmp_path / "my-llava").symlink_to(tmp_path / "snapshots" / ("0123456789" * 4))
    assert model_config(str(tmp_path / "my-llava")).name == "my-llava"
    assert model_config(f"{tmp_path}/my-llava/.").name == "my-llava"


def test_a_name_decides_nothing(tmp_path: Path) -> None:
    for name in ("mini", "llava-1.5-7b", "llava-1.5-13b"):
        config = locate_model(str(copy(tmp_path / name)), "cpu").config
        assert (config.stands_for, config.knobs, config.default_limit) == ("", {}, None)
    assert model_config("llava-hf/llava-1.5-7b-hf") == model_config("llava-1.5-7b")
    assert model_config(str(WEIGHTS)) == model_config("mini")
    assert {name: model_config(name).stands_for for name in known_models()} == {n: n for n in known_models()}


def test_a_folder_stands_for_a_shipped_model_by_hand(tmp_path: Path) -> None:
    folder = str(copy(tmp_path / "m"))
    config = locate_model(folder, "cpu", stands_for="mini").config
    assert (config.name, config.stands_for, config.default_limit) == ("m", "mini", 108)
    assert config.knobs == {"fastv": {"boundary": 2}}
    assert "unknown model 'min'; did you mean 'mini'" in refused(lambda: locate_model(folder, stands_for="min"))
    assert "a model of the sizes of llava-1.5-7b" in refused(lambda: locate_model(folder, stands_for="llava-1.5-7b"))


def test_calibration_goes_by_what_a_model_is(tmp_path: Path) -> None:
    one, other = copy(tmp_path / "a" / "mini"), copy(tmp_path / "b" / "mini")
    change(other / "config.json", {"text_config.rms_norm_eps": 1e-6})
    keys = [locate_model(str(folder), "cpu").calibration for folder in (one, other)]
    assert len({*keys, "mini"}) == 3
    assert all(key.startswith("mini-") for key in keys)
    assert locate_model("mini", "cpu").calibration == "mini"
    assert locate_model(str(one), "cpu", stands_for="mini").calibration == "mini"


# ----------------------------------------------------------------------------------------------------------------- hash


def test_the_fingerprint_is_of_what_is_read(tmp_path: Path) -> None:
    folder = copy(tmp_path / "m")
    before = weight_hash(folder)
    assert before == weight_hash(WEIGHTS), "links are followed, the folder's name says nothing"
    for name in ("extra.safetensors", "README.json", "notes.jinja"):
        (folder / name).write_text("{}")
    assert weight_hash(folder) == before
    for name in (*JSON_FILES, "chat_template.jinja", "tokenizer.json"):
        text = (folder / name).read_text()
        put(folder / name, text + " ")
        assert weight_hash(folder) != before, name
        put(folder / name, text)
    assert weight_hash(folder) == before
    (folder / "special_tokens_map.json").write_text("{}")
    assert weight_hash(folder) != before


def test_the_fingerprint_follows_the_index(tmp_path: Path) -> None:
    folder = sharded(copy(tmp_path / "m"))
    before = weight_hash(folder)
    assert {f.name for f in loaded_files(folder)} >= {
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
    }
    shard = folder / "model-00002-of-00002.safetensors"
    body = bytearray(shard.read_bytes())
    body[-1] ^= 1
    shard.write_bytes(bytes(body))
    assert weight_hash(folder) != before
    # transformers reads the single file where there is one
    shutil.copyfile(WEIGHTS / "model.safetensors", folder / "model.safetensors")
    single = weight_hash(folder)
    shard.unlink()
    assert weight_hash(folder) == single == weight_hash(WEIGHTS)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Counts how often the content of files is hashed, with a cache of its own on disk."""
    counted: list[int] = []
    hashed = files._hashed
    monkeypatch.setattr(files, "_hashed", lambda found: counted.append(len(found)) or hashed(found))
    monkeypatch.setattr(files, "_KNOWN", {})
    monkeypatch.setattr(files, "WORTH_KEEPING", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return counted


def test_a_known_hash_is_not_computed_again(tmp_path: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy(tmp_path / "m", linked=False)
    before = weight_hash(folder)
    assert [weight_hash(folder), len(reads)] == [before, 1]
    monkeypatch.setattr(files, "_KNOWN", {})  # another process
    assert [weight_hash(folder), len(reads)] == [before, 1]
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert [weight_hash(folder), len(reads)] == [before, 2]
    for kept in (tmp_path / "cache" / "prunebench" / "weights").iterdir():
        kept.write_text("damaged")
    monkeypatch.setattr(files, "_KNOWN", {})
    assert [weight_hash(folder), len(reads)] == [before, 3]


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, reads: list[int]) -> None:
    (tmp_path / "cache").write_text("a file")
    assert weight_hash(copy(tmp_path / "m")) == weight_hash(WEIGHTS)
    assert len(reads) == 2


def test_no_file_is_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(self: Path) -> bytes:
        assert self.suffix != ".safetensors", "read in pieces"
        return self.open("rb").read()

    folder = copy(tmp_path / "m", linked=False)
    monkeypatch.setattr(Path, "read_bytes", whole)
    weight_hash(folder)


def test_files_that_change_while_they_are_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy(tmp_path / "m", linked=False)

    def grown(found: list[Path]) -> str:
        with (folder / "model.safetensors").open("ab") as stream:
            stream.write(b"0")
        return "0" * 16

    monkeypatch.setattr(files, "_hashed", grown)
    with pytest.raises(PrunebenchError, match="changed while"):
        weight_hash(folder)
