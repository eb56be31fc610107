"""Records of submissions in a results folder: broken and hostile ones name nobody, a merge takes the others along."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import run
from published import body, published, reference, resealed, samples_with
from test_collect import measured_again, origin

from harness.core.errors import PrunebenchError
from harness.proof.foreign import Checker
from harness.store.collect import collect
from harness.store.merge import merge
from harness.store.sealed import SAMPLES
from harness.store.store import Store
from harness.store.submission import FOLDER, MOST, records

ALICE, NOBODY = (("Alice Lab",), ()), ((), ())


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with two cells that Alice measured, and beside it a publication of Bob, who did too."""
    folder = tmp_path_factory.mktemp("collected")
    collect([published(folder / "alice")], folder / "r", Checker())
    measured_again(published(folder / "bob"), "Bob")
    return folder


@pytest.fixture
def root(collected: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(collected / "r", tmp_path / "r"))


def record_of(root: Path) -> Path:
    (path,) = (root / FOLDER).iterdir()
    return path


def edited(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Callable[[Path], object]:
    """A change of a record and of what it says of its first cell."""

    def edit(path: Path) -> None:
        value = json.loads(path.read_text())
        change(value, next(iter(value["cells"].values())))
        path.write_text(json.dumps(value))

    return edit


def instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        path.rename(path.parent.parent / "moved")
        make(path)

    return change


def named(who: Any) -> Callable[[Path], object]:
    return edited(lambda value, cell: value["submission"].update(who=who))


BROKEN: dict[str, Callable[[Path], object]] = {
    "half": lambda path: path.write_text(path.read_text()[:-9]),
    "deep": lambda path: path.write_text("[" * 99_999),
    "digits": lambda path: path.write_text("9" * 5000),
    "a key twice": lambda path: path.write_text(path.read_text().replace('"cells": {', '"cells": {}, "cells": {')),
    "cells of another type": edited(lambda value, cell: value.update(cells=[])),
    "a run of another type": edited(lambda value, cell: cell.update(run=["x"])),
    "a run that is none": edited(lambda value, cell: cell.update(run="\x1b[2J")),
    "equals of another type": edited(lambda value, cell: cell.update(equals=5)),
    "a cell without its line": edited(lambda value, cell: value["cells"].update({"0" * 16: cell})),
    "a name with escapes": named("\x1b[2JAlice"),
    "a name with markup": named("Alice <img src=x>"),
    "a name with a formula": named("=HYPERLINK(1)"),
    "a name of another type": named(["Alice"]),
    "an edited summary": edited(lambda value, cell: value["submission"].update(count=7)),
    "a link": instead(lambda path: path.symlink_to(path.parent.parent / "moved")),
    "a pipe": instead(os.mkfifo),
    "huge": lambda path: os.truncate(path, MOST + 1),
    "another name": lambda path: path.rename(path.with_name("\x1b[2J.json")),
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
def test_a_broken_record_is_named_and_names_nobody(
    collected: Path, root: Path, damage: Callable[[Path], object]
) -> None:
    damage(record_of(root))
    found: list[str] = []
    assert not records(root, found)
    assert len(found) == 1
    assert found[0].startswith(f"{record_of(root)}: expected a record that `prunebench results collect` wrote")
    with pytest.raises(PrunebenchError, match="expected a record that"):
        collect([collected / "bob"], root, Checker())  # else a copy would get Alice's cells


def test_tables_and_page_are_made_beside_a_broken_record(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, collected: Path, root: Path
) -> None:
    path, page = record_of(root), root / "p.html"
    collect([collected / "bob"], root, Checker())
    named("Alice\x1b[2J")(path)
    for command in ("leaderboard --no-figures", f"report --out {page}", "results verify"):
        code, out, err = run(capsys, monkeypatch, *command.split(), "--results", str(root))
        assert code == 1
        assert re.search(f"(left out: |WRONG  ){re.escape(str(path))}: expected a record", out + err)
        assert "\x1b" not in out + err
    assert "Alice" not in (root / "LEADERBOARD.md").read_text()
    assert '"measured":[],"reproduced":["Bob"]' in page.read_text()
    assert run(capsys, monkeypatch, "results", "list", "--results", str(root))[0] == 0
    (root / FOLDER).rename(root / "moved")
    (root / FOLDER).symlink_to("moved")
    with pytest.raises(PrunebenchError, match="expected a folder of records, found a link"):
        records(root)


@pytest.mark.parametrize("what", ["answer", "score", "started"])
def test_a_record_of_a_changed_cell_says_nothing(root: Path, what: str) -> None:
    """The change is sealed again: nothing but the record tells."""
    folder = root / "cells" / "pope" / reference().folder.name
    new = body(folder)
    if what == "started":
        new["provenance"]["started"] = "2026-12-01"
    else:
        data = samples_with(folder, lambda frame: frame.assign(**{what: "maybe" if what == "answer" else 0.5}))
        (folder / SAMPLES).write_bytes(data)
        new["samples_sha256"] = __import__("hashlib").sha256(data).hexdigest()
    resealed(folder, new)
    assert origin(root) == NOBODY
    assert origin(root, "none") == ALICE
    done = merge(root, root.parent / "into")
    assert (done.left, origin(root.parent / "into"), origin(root.parent / "into", "none")) == ([], NOBODY, ALICE)


def test_one_run_under_two_names_has_neither(root: Path) -> None:
    path, other = record_of(root), record_of(root).with_name("0" * 16 + ".json")
    shutil.copy(path, other)
    assert origin(root) == ALICE
    named("Mallory")(other)
    found: list[str] = []
    known = records(root, found)
    assert {known.origin(cell).measured for cell in Store(root).cells()} == {()}
    assert f"{path}: expected each run of one person, found that Alice Lab and, in {other.name}, Mallory" in found[0]
    shutil.copy(path, path.with_name("f" * 16 + ".json"))
    for digit in "0e":  # a second record of Alice, before or behind Mallory's, changes nothing
        other = other.rename(path.with_name(digit * 16 + ".json"))
        known = records(root, [])
        assert {known.origin(cell).measured for cell in Store(root).cells()} == {()}
    other.rename(path.with_name("f" * 16 + ".json"))
    shutil.copy(path, path.with_name("0" * 16 + ".json"))
    known = records(root, [])
    assert {known.origin(cell).measured for cell in Store(root).cells()} == {()}


def test_a_copy_of_a_run_is_refused_before_its_cell_is_there_and_after(collected: Path, root: Path) -> None:
    """A killed collect leaves a record without its cells, whose runs have their name already."""
    collect([collected / "bob"], root, Checker())
    copy = measured_again(published(root.parent / "copy"), "Mallory")
    for _ in range(2):
        (done,) = collect([copy], root, Checker())
        assert (done.copied, done.reproduced, len(done.left)) == (0, 0, 2)
        assert "expected a run of Mallory, found a copy of the cell that Bob measured" in done.left[0]
        shutil.rmtree(root / "cells", ignore_errors=True)
    assert collect([collected / "bob"], root, Checker())[0].copied == 2


def test_a_merge_takes_the_names_along(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, collected: Path, root: Path
) -> None:
    into, bob = root.parent / "into", root.parent / "bob"
    collect([collected / "bob"], bob, Checker())
    collect([collected / "bob"], root, Checker())
    for _ in range(2):
        code, out, _ = run(capsys, monkeypatch, "results", "merge", str(root), str(into))
        assert code == 0
        assert f"who measured or reproduced 2 cells is taken from the records of {root}" in out
        for path in (root / FOLDER).iterdir():
            assert (into / FOLDER / path.name).read_bytes() == path.read_bytes()
    assert "| Alice Lab | Bob |" in (into / "LEADERBOARD.md").read_text()
    assert merge(root, bob).left == []
    assert origin(bob) == (("Bob",), ("Alice Lab",)), "of the two runs, the one that is there was first"


def test_a_run_keeps_the_name_that_it_has(root: Path) -> None:
    into = Path(shutil.copytree(root, root.parent / "into"))
    named("Mallory")(path := record_of(root))
    path = path.rename(path.with_name("0" * 16 + ".json"))
    done = merge(root, into)
    assert "expected a run of Mallory, found a copy of the cell that Alice Lab measured" in done.left[0]
    assert origin(into) == ALICE
    path.rename(path.with_name(record_of(into).name))
    record_of(into).write_text("mine")
    done = merge(root, into)
    assert f"{record_of(into)}: expected a record that" in done.left[0]
    assert record_of(into).read_text() == "mine"
