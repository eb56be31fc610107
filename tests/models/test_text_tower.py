"""A text tower that a knob names is found at the door: its folder, the commit of a hub id, and what it must hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import PrunebenchError
from harness.method import TextTower
from harness.models import text_tower
from harness.models.config import model_config

CLIP = Path(model_config("mini").text_tower or "")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WIDTH = 192


class Hub:
    """Stands in for the hub: one repository whose main branch moves with every question for it."""

    def __init__(self, cache: Path, files: Sequence[str]) -> None:
        self.cache, self.files, self.asked = cache, files, list[tuple[str | None, list[str]]]()

    def snapshot_download(self, hub: str, *, allow_patterns: list[str], revision: str | None = None) -> str:
        folder = self.cache / (revision or (COMMIT if not self.asked else "moved"))
        self.asked.append((revision, allow_patterns))
        folder.mkdir(exist_ok=True)
        for file in self.files:
            if any(Path(file).match(pattern) for pattern in allow_patterns):
                (folder / file).write_bytes((CLIP / file).read_bytes() if (CLIP / file).is_file() else b"")
        return str(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Hub]:
    made = Hub(tmp_path, request.param)
    monkeypatch.setattr("huggingface_hub.snapshot_download", made.snapshot_download)
    text_tower._fetched.cache_clear()
    yield made
    text_tower._fetched.cache_clear()


SMALL = ["config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("hub", [[*SMALL, "model.safetensors"]], indirect=True)
def test_a_hub_id_is_the_commit_whose_files_are_read(hub: Hub) -> None:
    assert text_tower.fingerprint(TextTower("owner/clip")) == COMMIT
    assert text_tower.folder_of("owner/clip") == hub.cache / COMMIT
    assert len(hub.asked) == 1, "main is asked for once: it may move"


@pytest.mark.parametrize("hub", [[*SMALL, "pytorch_model.bin"]], indirect=True)
def test_older_weights_come_from_the_same_commit(hub: Hub) -> None:
    folder = text_tower.folder_of("owner/clip")
    assert (folder / "pytorch_model.bin").is_file()
    assert folder.name == COMMIT
    assert [revision for revision, _ in hub.asked] == [None, COMMIT]


def test_without_the_hub_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> str:
        raise OSError

    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    with pytest.raises(PrunebenchError, match=r"text tower owner/none: could not be fetched .* name a local folder"):
        text_tower.folder_of("owner/none")


@pytest.mark.parametrize(
    ("lost", "says"),
    [
        ("config.json", "found none with a config.json of model_type clip"),
        ("model.safetensors", "found none with weights"),
        ("tokenizer.json", "found none with a tokenizer"),
    ],
)
def test_what_a_folder_lacks_is_said(tmp_path: Path, lost: str, says: str) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(CLIP, folder)
    (folder / lost).unlink()
    with pytest.raises(PrunebenchError, match=f"^knob: expected a CLIP checkpoint, {says}"):
        text_tower.check_folder(folder, "knob", WIDTH, text_tower.SAFETENSORS)


def test_the_checkpoint_of_another_tower_is_refused(tmp_path: Path) -> None:
    text_tower.check_folder(CLIP, "knob", WIDTH, text_tower.SAFETENSORS)
    with pytest.raises(PrunebenchError, match="of width 1024; found one of width 192"):
        text_tower.check_folder(CLIP, "knob", 1024, text_tower.SAFETENSORS)
    config = json.loads((CLIP / "config.json").read_text()) | {"model_type": "siglip"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PrunebenchError, match="model_type clip"):
        text_tower.check_folder(tmp_path, "knob", WIDTH, text_tower.SAFETENSORS)
