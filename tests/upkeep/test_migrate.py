"""Cells of the schema before: named with the command that mends them, sealed anew without touching a number, and read
by nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from factories import asked, make_cell, make_record, sealed
from helpers import run

from harness.core.cell import Cell
from harness.core.errors import PrunebenchError
from harness.store.files import checksum
from harness.store.sealed import load
from harness.store.store import Store
from harness.upkeep import migrate as migration
from harness.upkeep.migrate import migrate

COMMAND = (
    "make eval METHOD=fastv BUDGET=64 MODEL=org/tiny TASKS=pope LIMIT=40 SET='boundary=2' DATA=/data/my data"
    " DTYPE=float32 DEVICE=cpu FRESH=1"
)
WORDS = asked(model="org/tiny", limit="40", knobs={"boundary": "2"}, data="/data/my data", dtype="float32")


def old(root: Path, command: str = COMMAND, limit: str = "40", n_visual: int = 576, **changes: Any) -> Path:
    """A folder with a cell as schema 3 wrote it."""
    cell = make_cell(**changes)
    command = command.replace(" DATA=", f" SEED={cell.seed} DATA=") if cell.seed else command
    records = [make_record(i, cost={"kept": 64, "n_visual": n_visual}) for i in range(4)]
    folder = sealed(Store(root), cell, records).folder
    body = json.loads((folder / "cell.json").read_text())
    del body["method_info"]["budget_knobs"], body["checksum"]
    body |= {"schema_version": 3, "provenance": {"command": command, "limit": limit, "started": "2026-01-01"}}
    write(folder, body)
    return folder


def write(folder: Path, body: dict[str, Any]) -> None:
    (folder / "cell.json").write_text(json.dumps({**body, "checksum": checksum(body)}, indent=1) + "\n")


def test_an_old_cell_names_the_command_that_mends_it(tmp_path: Path) -> None:
    folder = old(tmp_path)
    message = (
        rf"cell.json: expected schema 4, found 3: run `prunebench dev migrate --results {re.escape(str(tmp_path))}`$"
    )
    with pytest.raises(PrunebenchError, match=message):
        load(folder)


def test_everything_but_the_two_changes_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = old(tmp_path)
    before, samples = json.loads((folder / "cell.json").read_text()), (folder / "samples.parquet").read_bytes()
    code, out, err = run(capsys, monkeypatch, "dev", "migrate", "--results", str(tmp_path))
    assert (code, err) == (0, "")
    assert out == "1 cells sealed anew in schema 4, 0 were already, 0 wrong\n"
    after = json.loads((folder / "cell.json").read_text())
    assert after.pop("schema_version") == 4
    assert after["method_info"].pop("budget_knobs") == ["keep"]
    assert after["provenance"].pop("request") == WORDS
    assert after["provenance"].pop("grids") == [[24, 24, False]]
    for body in (before, after):
        del body["checksum"]
    del before["schema_version"], before["provenance"]["command"], before["provenance"]["limit"]
    assert after == before
    assert (folder / "samples.parquet").read_bytes() == samples
    (sealed,) = Store(tmp_path).cells()
    sealed.verify()
    assert not list((tmp_path / "locks").iterdir())
    written = (folder / "cell.json").read_bytes()
    assert migrate(tmp_path) == (["0 cells sealed anew in schema 4, 1 were already, 0 wrong"], True)
    assert (folder / "cell.json").read_bytes() == written


@pytest.mark.parametrize(
    ("command", "cell", "limit", "words"),
    [
        (
            "make eval METHOD=none MODEL=mini TASKS=pope DEVICE=cpu FRESH=1",
            {"method": "none", "budget": "none", "knobs": {}},
            "default",
            asked(method="none", budget=None),
        ),
        (
            "make eval METHOD=random BUDGET=64 MODEL=mini TASKS=pope SEED=3 POSITIONS=compact DEVICE=cuda FRESH=1",
            {"method": "random", "seed": 3, "positions": "compact", "device_type": "cuda"},
            "default",
            asked(method="random", seed=3, positions="compact", device="cuda"),
        ),
        (
            (
                "make eval METHOD='my file.py:Mine' BUDGET=64 MODEL=mini TASKS=pope SET='a=1 b=x=y' DEVICE=cpu FRESH=1 "
                " # code 0123"
            ),
            {},
            "default",
            asked(method="my file.py:Mine", knobs={"a": "1", "b": "x=y"}),
        ),
    ],
)
def test_every_word_of_a_command_is_found(
    command: str, cell: dict[str, Any], limit: str, words: dict[str, Any]
) -> None:
    assert migration._asked({"command": command, "limit": limit}, make_cell(**cell)).to_dict() == words


def test_a_method_that_is_gone_is_said(tmp_path: Path) -> None:
    old(tmp_path, COMMAND.replace("METHOD=fastv", "METHOD=gone.py:Mine"), method="mine")
    lines, fine = migrate(tmp_path)
    assert fine
    assert "gone.py does not exist; the knobs that a budget sets are taken to be keep" in lines[0]
    assert Store(tmp_path).cells()[0].method_info["budget_knobs"] == ["keep"]


def test_a_cell_that_is_not_whole_is_named_and_left(tmp_path: Path) -> None:
    good, edited, strange, foreign = (old(tmp_path, seed=i) for i in range(4))
    (edited / "cell.json").write_text((edited / "cell.json").read_text().replace('"answered": 4', '"answered": 5'))
    (strange / "samples.parquet").write_bytes(b"other")
    body = json.loads((foreign / "cell.json").read_text())
    del body["checksum"]
    write(foreign, body | {"schema_version": 2})
    before = {folder: (folder / "cell.json").read_bytes() for folder in (edited, strange, foreign)}
    lines, fine = migrate(tmp_path)
    assert not fine
    assert lines[-1] == "1 cells sealed anew in schema 4, 0 were already, 3 wrong"
    said = "\n".join(lines)
    wrong = (
        edited / "cell.json: it was edited",
        strange / "samples.parquet: expected sha256",
        foreign / "cell.json: expected schema 3, found 2",
    )
    for words in map(str, wrong):
        assert words in said
    assert {folder: (folder / "cell.json").read_bytes() for folder in before} == before
    load(good)
    with pytest.raises(PrunebenchError, match="expected a results folder with sealed cells"):
        migrate(tmp_path / "none")


def test_an_interrupted_migration_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        old(tmp_path, seed=seed)
    reseal = Store.reseal
    calls: list[Cell] = []

    def stops(self: Store, cell: Cell, folder: Path, body: dict[str, Any]) -> None:
        calls.append(cell)
        if len(calls) == 2:
            raise KeyboardInterrupt
        reseal(self, cell, folder, body)

    monkeypatch.setattr(Store, "reseal", stops)
    with pytest.raises(KeyboardInterrupt):
        migrate(tmp_path)
    assert migrate(tmp_path) == (["2 cells sealed anew in schema 4, 1 were already, 0 wrong"], True)
    assert len(Store(tmp_path).cells()) == 3


def test_no_disk_leaves_the_old_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = old(tmp_path)
    before = (folder / "cell.json").read_bytes()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.store.files.write_all", full)
    lines, fine = migrate(tmp_path)
    assert not fine
    assert "No space left on device" in lines[0]
    assert (folder / "cell.json").read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["cell.json", "samples.parquet"]
    monkeypatch.undo()
    assert migrate(tmp_path)[1]


def test_a_cell_that_another_runner_holds_is_left(tmp_path: Path) -> None:
    old(tmp_path)
    with Store(tmp_path)._locked(make_cell()):
        lines, fine = migrate(tmp_path)
    assert not fine
    assert lines[-1] == "0 cells sealed anew in schema 4, 0 were already, 1 wrong"
    assert migrate(tmp_path)[1]


@pytest.mark.parametrize(
    ("command", "limit", "says"),
    [
        ("prunebench eval", "40", "expected a `make eval METHOD=...` as the cell's command"),
        (COMMAND.replace(" LIMIT=40", "").replace("my data", "my LIMIT=5"), "default", "a value holds another's name"),
        (COMMAND.replace("my data", "my LIMIT=5"), "40", "a value holds another's name"),
        (COMMAND.replace(" LIMIT=40", "").replace("org/tiny", "my LIMIT=5"), "default", "a value holds another's name"),
        (COMMAND.replace("LIMIT=40", "LIMIT=5"), "default", "says LIMIT: 5, and the cell no value"),
        (COMMAND.replace("LIMIT=40", "LIMIT=41"), "40", "says LIMIT: 41, and the cell 40"),
        (COMMAND.replace("BUDGET=64", "BUDGET=32"), "40", "says BUDGET: 32, and the cell 64"),
        (COMMAND.replace("TASKS=pope", "TASKS=pope,gqa"), "40", "says TASKS: pope,gqa, and the cell pope"),
        (COMMAND.replace("DATA=", "SEED=1 DATA="), "40", "says SEED: 1, and the cell no value"),
        (COMMAND.replace("DATA=", "POSITIONS=compact DATA="), "40", "says POSITIONS: compact, and the cell no value"),
        (COMMAND.replace("DTYPE=float32", "DTYPE=float16"), "40", "says DTYPE: float16, and the cell float32"),
        (COMMAND.replace("DEVICE=cpu", "DEVICE=cuda"), "40", "says DEVICE: cuda, and the cell cpu"),
    ],
)
def test_a_command_that_says_another_thing_than_its_cell_is_wrong(
    tmp_path: Path, command: str, limit: str, says: str
) -> None:
    folder = old(tmp_path, command, limit)
    before = (folder / "cell.json").read_bytes()
    lines, fine = migrate(tmp_path)
    assert not fine
    assert lines[0].startswith(f"WRONG  {folder / 'cell.json'}: ")
    assert says in lines[0]
    assert (folder / "cell.json").read_bytes() == before


def test_what_does_not_fit_is_said_as_it_is(tmp_path: Path) -> None:
    odd, text, bare, empty = (old(tmp_path, seed=i, n_visual=577 if i == 0 else 576) for i in range(4))
    (bare / "samples.parquet").unlink()
    for folder, change in ((text, {"schema_version": "3"}), (empty, {"headline": "nothing"})):
        body = json.loads((folder / "cell.json").read_text())
        del body["checksum"]
        write(folder, body | change)
    lines, fine = migrate(tmp_path)
    assert not fine
    said = sorted(line.removeprefix("WRONG  ") for line in lines[:-1])
    wanted = {
        odd: "cell.json: expected the visual tokens of one square grid as costs.n_visual, found 577: measure it again",
        text: "cell.json: expected schema 3, found '3': read it with the prunebench that wrote it",
        bare: f"samples.parquet: it is missing beside cell.json: restore it, or delete {bare} and measure again",
        empty: "cell.json: its headline metric 'nothing' has no value",
    }
    for line, words in zip(said, sorted(f"{folder}/{words}" for folder, words in wanted.items()), strict=True):
        assert line.startswith(words)
    assert lines[-1] == "0 cells sealed anew in schema 4, 0 were already, 4 wrong"
    assert migrate(tmp_path)[0][-1] == lines[-1], "a cell that does not load is not done"
