"""Cells of the schema before: named with the command that mends them, sealed anew with their answers untouched, and
read by nothing else."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import run

from harness.core.errors import PrunebenchError
from harness.store.files import checksum
from harness.store.sealed import SealedCell, load
from harness.store.store import Store
from harness.upkeep.migrate import migrate

NEW_KEYS = ("prompt", "image", "stands_for")


def write(folder: Path, body: dict[str, Any]) -> None:
    body = {name: value for name, value in body.items() if name != "checksum"}
    (folder / "cell.json").write_text(json.dumps({**body, "checksum": checksum(body)}, indent=1) + "\n")


def body_of(folder: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((folder / "cell.json").read_text())
    return body


def aged(sealed: SealedCell, root: Path) -> Path:
    """The cell as schema 4 wrote it: other fields in the identity, other intervals, upstream's metrics alone."""
    from harness.models.load import locate_model

    body, prompter = body_of(sealed.folder), locate_model("mini", "cpu").prompter
    cell = body["cell"]
    for name in ("processing", "task_settings"):
        del cell[name], body["provenance"][name]
    del cell["stands_for"]
    cell |= {"prompt_template": prompter.template_hash, "image_backend": prompter.image_backend}
    for name in NEW_KEYS:
        del body["provenance"]["request"][name]
    body["metrics"] = {sealed.headline: sealed.score}
    body["interval"] = {**body["interval"], "low": 0.0, "method": "percentile bootstrap by image"}
    body |= {"schema_version": 4, "key_version": 1, "identity": "0123456789abcdef"}
    folder = root / "cells" / cell["task"] / f"{cell['method']}-0123456789abcdef"
    shutil.copytree(sealed.folder, folder)
    write(folder, body)
    return folder


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[SealedCell]:
    """Four cells of today: two methods on two tasks, one of them with soft scores."""
    from typer.testing import CliRunner

    from harness.cli.main import app

    root = tmp_path_factory.mktemp("measured")
    words = ["eval", "--method", "first", "--budget", "64", "--tasks", "pope,textvqa", "--limit", "24"]
    done = CliRunner().invoke(app, [*words, "--results", str(root)])
    assert done.exit_code == 0, done.output
    return Store(root).cells()


@pytest.fixture
def old(measured: list[SealedCell], tmp_path: Path) -> Callable[..., Path]:
    def make(task: str = "pope", method: str = "first") -> Path:
        return aged(next(s for s in measured if (s.cell.task, s.cell.method) == (task, method)), tmp_path)

    return make


def test_an_old_cell_names_the_command_that_mends_it(old: Callable[..., Path], tmp_path: Path) -> None:
    folder = old()
    message = (
        rf"cell.json: expected schema 5, found 4: run `prunebench dev migrate --results {re.escape(str(tmp_path))}`$"
    )
    with pytest.raises(PrunebenchError, match=message):
        load(folder)


def test_a_migrated_cell_is_the_measured_one(
    measured: list[SealedCell],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also what the old cell lacked or had wrong: intervals, metrics, identity."""
    for sealed in measured:
        aged(sealed, tmp_path)
    code, out, err = run(capsys, monkeypatch, "dev", "migrate", "--results", str(tmp_path))
    assert (code, err) == (0, "")
    assert out.endswith(
        "4 cells sealed anew in schema 5, 0 of them with other scores or metrics, 0 were already, 0 wrong\n"
    )
    found = {cell.identity: cell for cell in Store(tmp_path).cells()}
    assert found.keys() == {cell.identity for cell in measured}
    for sealed in measured:
        assert body_of(found[sealed.identity].folder) == body_of(sealed.folder)
        assert found[sealed.identity].samples().equals(sealed.samples())
    assert len(list((tmp_path / "cells").glob("*/*"))) == 4, "old folders are gone"
    assert migrate(tmp_path) == (
        ["0 cells sealed anew in schema 5, 0 of them with other scores or metrics, 4 were already, 0 wrong"],
        True,
    )


def test_answers_stay_and_scores_follow_them(old: Callable[..., Path], tmp_path: Path) -> None:
    """A score that the answer does not have today is said, and mended."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from harness.store.sealed import compressed

    folder = old("textvqa", "none")
    rows = pq.read_table(folder / "samples.parquet")
    scores = rows["score"].to_pylist()
    lied = [1.0 - scores[0], *scores[1:]]
    changed = compressed(rows.set_column(rows.column_names.index("score"), "score", pa.array(lied, pa.float64())))
    (folder / "samples.parquet").write_bytes(changed)
    import hashlib

    write(folder, body_of(folder) | {"samples_sha256": hashlib.sha256(changed).hexdigest()})
    lines, fine = migrate(tmp_path)
    assert fine
    assert "1 scores, first textvqa/" in lines[0]
    assert "1 of them with other scores" in lines[-1]
    (cell,) = Store(tmp_path).cells()
    frame = cell.samples()
    assert frame["score"].tolist() == scores
    assert frame["answer"].tolist() == rows["answer"].to_pylist()


CHANGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "weights": (lambda b: b["cell"].update(model_fingerprint="f" * 16), "expected a model with weights ffff"),
    "data": (lambda b: b["cell"].update(data_fingerprint="d" * 64), "expected data_fingerprint 'dddd"),
    "prompt": (lambda b: b["cell"].update(prompt_template="p1"), "expected the prompt and images p1 "),
    "padding": (lambda b: b["cell"].update(image_backend="Other+plain"), "Other\\+plain, found"),
    "knobs": (lambda b: b["cell"].update(knobs={"keep": 63}), "expected knobs"),
    "model": (lambda b: b["provenance"]["request"].update(model="gone/away"), "could not be fetched|expected"),
    "task": (lambda b: b["provenance"]["request"].update(task="nothing"), "unknown task"),
    "schema 3": (lambda b: b.update(schema_version=3), "expected schema 4, found 3: read it with the prunebench"),
    "schema as text": (lambda b: b.update(schema_version="4"), "expected schema 4, found '4'"),
    "no request": (lambda b: b["provenance"].pop("request"), "not a cell file"),
    "samples": (lambda b: b.update(samples_sha256="0" * 64), "expected sha256 0000"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_cell_that_cannot_be_made_again_is_named_and_left(
    what: str, old: Callable[..., Path], tmp_path: Path
) -> None:
    change, message = CHANGED[what]
    folder = old()
    body = body_of(folder)
    change(body)
    write(folder, body)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    lines, fine = migrate(tmp_path)
    assert not fine
    assert re.search(message, lines[0]), lines[0]
    assert lines[-1].startswith("0 cells sealed anew")
    assert lines[-1].endswith("1 wrong")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_an_edited_cell_is_left(old: Callable[..., Path], tmp_path: Path) -> None:
    folder = old()
    file = folder / "cell.json"
    file.write_text(file.read_text().replace('"maximum": 1.0', '"maximum": 2.0'))
    lines, fine = migrate(tmp_path)
    assert not fine
    assert f"{file}: it was edited" in lines[0]
    with pytest.raises(PrunebenchError, match="expected a results folder with sealed cells"):
        migrate(tmp_path / "none")


@pytest.mark.parametrize("stop", ["before the seal", "before the old folder goes"])
def test_an_interrupted_migration_goes_on(
    stop: str, old: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old()

    def stops(*_: object) -> None:
        raise KeyboardInterrupt

    where = "harness.store.store.sealed" if stop == "before the seal" else "harness.upkeep.migrate.remove"
    monkeypatch.setattr(where, stops)
    with pytest.raises(KeyboardInterrupt):
        migrate(tmp_path)
    monkeypatch.undo()
    assert migrate(tmp_path)[1]
    (cell,) = Store(tmp_path).cells()
    cell.verify()
    assert len(list((tmp_path / "cells").glob("*/*"))) == 1


def test_no_disk_leaves_the_old_cell(old: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = old()
    before = (folder / "cell.json").read_bytes()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.store.files.write_all", full)
    lines, fine = migrate(tmp_path)
    assert not fine
    assert "No space left on device" in lines[0]
    assert (folder / "cell.json").read_bytes() == before
    monkeypatch.undo()
    assert migrate(tmp_path)[1]


def test_a_cell_of_today_in_other_lines_is_spelt_anew_with_its_content(
    measured: list[SealedCell], tmp_path: Path
) -> None:
    folder = tmp_path / "cells" / "pope" / measured[0].folder.name
    shutil.copytree(measured[0].folder, folder)
    today = (folder / "cell.json").read_bytes()
    assert migrate(tmp_path)[0] == [
        "0 cells sealed anew in schema 5, 0 of them with other scores or metrics, 1 were already, 0 wrong"
    ]
    write(folder, body_of(folder))
    assert (folder / "cell.json").read_bytes() != today, "one key a line at every depth"
    lines, well = migrate(tmp_path)
    assert well
    assert lines[1:] == ["cell.json of 1 cells written in today's lines, with the same content and checksum"]
    assert (folder / "cell.json").read_bytes() == today
    load(folder)
