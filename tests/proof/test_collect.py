"""`results collect`, and the round trip of publish, verify and collect on the command line."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import run
from published import CELLS, REFERENCE, body, forged, place, published, reference, resealed, resubmitted, samples_with

from harness.core.errors import PrunebenchError
from harness.proof.foreign import Checker
from harness.store import collect as collecting
from harness.store import submission
from harness.store.collect import collect
from harness.store.private import Private
from harness.store.publish import publication, write
from harness.store.sealed import SAMPLES, SEAL
from harness.store.store import Store
from harness.store.submission import FOLDER, NAME, records
from harness.tables import leaderboard

Prunebench = Callable[..., tuple[int, str, str]]


@pytest.fixture
def prunebench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Prunebench:
    return lambda *words: run(capsys, monkeypatch, *map(str, words))


def measured_again(folder: Path, who: str, **changes: Any) -> Path:
    """The same cells as another person's run has them: another time and another device."""
    for path in folder.glob(f"cells/*/*/{SEAL}"):
        new = body(path.parent)
        new["provenance"] |= {"started": "2026-12-01T08:00:00+00:00", "wall_s": 7.5, "device": "another CPU", **changes}
        resealed(path.parent, new)
    resubmitted(folder, who)
    return folder


def origin(root: Path, method: str = "visipruner") -> tuple[tuple[str, ...], tuple[str, ...]]:
    known = records(root)
    (cell,) = (one for one in Store(root).cells() if one.cell.method == method)
    found = known.origin(cell)
    return found.measured, found.reproduced


# ---------------------------------------------------------------------------------------------------------- round trip


def test_from_one_person_to_a_table_with_names(prunebench: Prunebench, tmp_path: Path) -> None:
    """Cells of the reference, published by two people; the second one measured again."""
    alice, into = tmp_path / "alice", tmp_path / "results"
    words = ("--results", REFERENCE, "--model", "mini", "--task", "pope", "--method", "none,visipruner", "--full")
    words = (*words, "--budget", "none,128")
    code, out, err = prunebench("results", "publish", alice, "--who", "Alice Lab", *words, "--dry-run")
    assert (code, err) == (0, "")
    assert re.search(r"\d cells, measured by Alice Lab, would be in .*: \d+ files, [\d,]+ bytes", out)
    assert not alice.exists()
    assert prunebench("results", "publish", alice, "--who", "Alice Lab", *words)[0] == 0
    before = {p: p.read_bytes() for p in alice.rglob("*") if p.is_file()}
    code, out, _ = prunebench("results", "publish", alice, "--who", "Alice Lab", *words)
    assert code == 0
    assert "0 files written" in out
    assert {p: p.read_bytes() for p in alice.rglob("*") if p.is_file()} == before
    code, out, _ = prunebench("results", "verify", "--foreign", alice)
    assert code == 0, out
    assert "measured by Alice Lab; 3 of 3 cells hold" in out
    assert out.count("not checked: answers, lengths, scoring costs") == 3

    bob = measured_again(shutil.copytree(alice, tmp_path / "bob"), "Bob & Co.")
    shutil.rmtree(place(bob))
    resubmitted(bob, "Bob & Co.")
    code, out, _ = prunebench("results", "collect", alice, bob, "--into", into)
    assert code == 0, out
    assert f"{alice} of Alice Lab: 3 cells copied, 0 were there, 0 reproduced, 0 left" in out
    assert f"{bob} of Bob & Co.: 0 cells copied, 0 were there, 2 reproduced, 0 left" in out
    for path in alice.glob(f"cells/*/*/{SEAL}"):
        for name in (SEAL, SAMPLES):
            assert (into / path.parent.relative_to(alice) / name).read_bytes() == (path.parent / name).read_bytes()
    frame = pd.read_csv(into / "leaderboard.csv", keep_default_na=False)
    assert set(frame["measured_by"]) == {"Alice Lab"}
    assert frame[frame["method"] == "none"]["reproduced_by"].tolist() == ["Bob & Co."] * 2
    assert frame[frame["method"] == "visipruner"]["reproduced_by"].tolist() == [""]
    text = (into / "LEADERBOARD.md").read_text()
    assert "| visipruner | 128 | 1 | Alice Lab | - |" in text
    assert "| none | - | 1 | Alice Lab | Bob &amp; Co. |" in text
    assert prunebench("results", "verify", "--results", into)[0] == 0, "no seal is broken"
    code, out, _ = prunebench("results", "collect", alice, bob, "--into", into)
    assert code == 0
    assert "0 cells copied, 3 were there, 0 reproduced, 0 left" in out
    assert (into / "LEADERBOARD.md").read_text() == text


def test_a_folder_without_records_has_the_tables_that_it_had(tmp_path: Path) -> None:
    for name in CELLS:
        one = reference(name)
        shutil.copytree(one.folder, tmp_path / "cells" / "pope" / one.folder.name)
    leaderboard.rewrite(tmp_path, [])
    plain = {name: (tmp_path / name).read_bytes() for name in leaderboard.FILES}
    assert b"measured" not in plain["leaderboard.csv"].splitlines()[0]
    (tmp_path / FOLDER).mkdir()
    leaderboard.rewrite(tmp_path, [])
    assert {name: (tmp_path / name).read_bytes() for name in leaderboard.FILES} == plain


def test_the_page_names_who_measured(prunebench: Prunebench, tmp_path: Path) -> None:
    root, page = tmp_path / "r", tmp_path / "page.html"
    collect([published(tmp_path / "alice", "Alice (Lab)")], root, Checker())
    collect([measured_again(published(tmp_path / "bob"), "Bob")], root, Checker())
    assert prunebench("report", "--results", root, "--samples", 1, "--out", page)[0] == 0
    assert page.read_text().count('"measured":["Alice (Lab)"],"reproduced":["Bob"]') == 2


@pytest.mark.parametrize("name", ["seed", "agreement_pct", "measured_by"])
def test_a_cell_that_would_end_every_table_is_left(prunebench: Prunebench, tmp_path: Path, name: str) -> None:
    """Its cost has the name of a column of the tables."""
    folder = published(tmp_path / "mallory", "Mallory")
    data = samples_with(place(folder), lambda frame: frame.assign(**{name: 1.0}))
    forged(folder, lambda new: new["costs"].update({name: 1.0}), data)
    code, out, err = prunebench("results", "collect", folder, "--into", tmp_path / "r")
    assert code == 1
    assert "1 cells copied" in out
    assert "no table can be made of it" in err


# -------------------------------------------------------------------------------------------- who measured, who again


def test_one_hostile_folder_does_not_stop_the_good_one(prunebench: Prunebench, tmp_path: Path) -> None:
    alice, mallory = published(tmp_path / "alice"), published(tmp_path / "mallory", "Mallory")
    forged(mallory, lambda new: new["costs"].update(kept=1.0))
    (mallory / "cells" / "pope" / f"mini-{CELLS[0]}" / "\x1b[2J").write_text("x")
    (tmp_path / "empty").mkdir()
    words = ("results", "collect", mallory, tmp_path / "empty", alice, "--into", tmp_path / "r")
    code, out, err = prunebench(*words)
    assert code == 1
    assert "\x1b" not in out + err
    assert f"left out: {mallory}/cells/pope/mini-{CELLS[1]}: refused: cost kept is 1.0, but its column's mean is" in err
    assert "\\x1b[2J" in err
    assert f"left out: {tmp_path / 'empty'}: submission.json: expected it beside cells/, found neither" in err
    assert f"{alice} of Alice Lab: 2 cells copied" in out
    assert origin(tmp_path / "r") == (("Alice Lab",), ())
    assert len(list((tmp_path / "r" / FOLDER).iterdir())) == 1


def test_a_copy_is_no_reproduction(tmp_path: Path) -> None:
    collect([published(tmp_path / "alice")], tmp_path / "r", Checker())
    (done,) = collect([published(tmp_path / "copy", "Copycat")], tmp_path / "r", Checker())
    assert (done.copied, done.there, done.reproduced, len(done.left)) == (0, 0, 0, 2)
    assert "expected a run of Copycat, found a copy of the cell that Alice Lab measured" in done.left[0]
    assert origin(tmp_path / "r") == (("Alice Lab",), ())


def test_the_same_person_again_is_no_reproduction(tmp_path: Path) -> None:
    collect([published(tmp_path / "alice")], tmp_path / "r", Checker())
    again = measured_again(published(tmp_path / "again"), "Alice Lab")
    (done,) = collect([again], tmp_path / "r", Checker())
    assert (done.copied, done.there, done.reproduced, done.left) == (0, 2, 0, [])
    assert origin(tmp_path / "r") == (("Alice Lab",), ())


def test_cells_of_ones_own_are_reproduced_by_others_and_nobody_measured_them(tmp_path: Path) -> None:
    root = tmp_path / "r"
    shutil.copytree(reference().folder, root / "cells" / "pope" / reference().folder.name)
    collect([measured_again(published(tmp_path / "bob", "Bob"), "Bob")], root, Checker())
    assert origin(root) == ((), ("Bob",))
    assert origin(root, "none") == (("Bob",), ())


def test_other_answers_under_one_identity_are_named_and_left(tmp_path: Path) -> None:
    root, one = tmp_path / "r", reference()
    mine = root / "cells" / "pope" / one.folder.name
    shutil.copytree(one.folder, mine)

    def other(frame: Any) -> None:
        frame.loc[[0, 5], "answer"] = "maybe"

    data = samples_with(mine, other)
    new = body(mine)
    (mine / SAMPLES).write_bytes(data)
    new["samples_sha256"] = __import__("hashlib").sha256(data).hexdigest()
    resealed(mine, new)
    before = {p.name: p.read_bytes() for p in mine.iterdir()}
    (done,) = collect([published(tmp_path / "alice")], root, Checker())
    assert (done.copied, len(done.left)) == (1, 1)
    assert "found 2 of 108 other ones under the same identity, as to pope/000000: both stay as they are" in done.left[0]
    assert {p.name: p.read_bytes() for p in mine.iterdir()} == before
    assert records(root).origin(Store(root).cells()[1]).measured == ()


@pytest.mark.parametrize("step", ["record", "merge"])
def test_a_collect_that_was_stopped_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    alice, root = published(tmp_path / "alice"), tmp_path / "r"

    def killed(*args: Any, **words: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(collecting, step, killed)
    with pytest.raises(KeyboardInterrupt):
        collect([alice], root, Checker())
    monkeypatch.undo()
    assert not list(root.glob("cells/*/*/cell.json"))
    leaderboard.rewrite(root, [])
    assert "Alice" not in (root / "LEADERBOARD.md").read_text(), "a record without its cell says nothing"
    (done,) = collect([alice], root, Checker())
    assert (done.copied, done.left) == (2, [])
    assert origin(root) == (("Alice Lab",), ())


def test_a_record_of_samples_that_are_gone_says_nothing(tmp_path: Path) -> None:
    alice, root = published(tmp_path / "alice"), tmp_path / "r"
    collect([alice], root, Checker())
    Store(root).discard(reference().cell)
    bob = measured_again(published(tmp_path / "bob", "Bob"), "Bob")
    collect([bob], root, Checker())
    assert origin(root) == (("Bob",), ())


def test_a_torn_record_is_named(prunebench: Prunebench, tmp_path: Path) -> None:
    root = tmp_path / "r"
    collect([published(tmp_path / "alice")], root, Checker())
    (path,) = (root / FOLDER).iterdir()
    for text in ("", "[]", "{}", path.read_text()[:-9], '{"submission": {}, "cells": {}}'):
        path.write_text(text)
        code, _, err = prunebench("leaderboard", "--results", root)
        assert code == 1
        assert f"{path}: expected a record that `prunebench results collect` wrote" in err


def test_a_target_that_is_no_results_folder_is_refused(tmp_path: Path) -> None:
    alice = published(tmp_path / "alice")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("x")
    with pytest.raises(PrunebenchError, match="expected a results folder, an empty folder or a new one"):
        collect([alice], tmp_path / "home", Checker())
    with pytest.raises(PrunebenchError, match="are the same"):
        collect([alice], alice, Checker())
    with pytest.raises(PrunebenchError, match="found none there"):
        collect([tmp_path / "no"], tmp_path / "r", Checker())


# ----------------------------------------------------------------------------------------------------- texts in the end


def test_texts_of_others_are_no_markup_no_formula_and_no_escape_anywhere(
    prunebench: Prunebench, tmp_path: Path
) -> None:
    evil, model = "=HYPERLINK(1)<script>alert(1)<", "org/evil"
    folder, root = published(tmp_path / "mallory", "Mallory"), tmp_path / "r"

    def change(new: dict[str, Any]) -> None:
        new["cell"]["model"] = new["provenance"]["request"]["model"] = model
        new["cell"]["stands_for"] = ""
        new["provenance"]["device"] = f"@SUM(1) | `x` <img src=x>{evil}"
        new["provenance"]["kernels"] = new["provenance"]["git"] = new["provenance"]["model_source"] = evil
        new["provenance"]["versions"] |= {evil: evil, "prunebench": evil}

    forged(folder, change)
    code, out, _ = prunebench("results", "collect", folder, "--into", root)
    assert code == 0, out
    # a block of code holds commands as they are typed, and nothing in one is markup
    text = re.sub(r"```.*?```", "", (root / "LEADERBOARD.md").read_text(), flags=re.DOTALL)
    assert "org/evil" in text
    assert "<script" not in text
    assert "<img" not in text
    with (root / "leaderboard.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "visipruner"]
    assert rows[0]["model"] == model
    assert rows[0]["device"].startswith("'@SUM")
    for form in ("csv", "json", "text"):
        code, out, _ = prunebench("results", "verify", "--foreign", folder, "--format", form)
        assert code == 0
        if form == "csv":
            found = list(csv.DictReader(out.splitlines()))
            assert model in {row["model"] for row in found}
        if form == "json":
            assert {row["state"] for row in json.loads(out)} == {"holds"}
            assert all(row["not_checked"] for row in json.loads(out)), "no cell passes silently"


def test_what_is_printed_of_a_refused_folder_has_no_escapes(prunebench: Prunebench, tmp_path: Path) -> None:
    folder = published(tmp_path / "mallory", "Mallory")
    (folder / "\x1b]0;x\x07\n\u202e").write_text("x")
    shutil.move(place(folder), place(folder).with_name("\x1b[31mred\n"))
    for form in ("text", "csv", "json"):
        code, out, err = prunebench("results", "verify", "--foreign", folder, "--format", form)
        assert code == 1
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out + err)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("verify", "--foreign"), "verify --foreign: expected folders that others published, found none: name some"),
        (("verify", "x"), "verify: expected --foreign beside folders, found none: add --foreign"),
        (("verify", "--format", "csv"), "verify: expected --foreign beside --format csv, found none"),
        (
            ("verify", "--foreign", "/nowhere/x"),
            "/nowhere/x: expected a folder that `prunebench results publish` wrote",
        ),
        (("verify", "--foreign", "x", "--format", "xml"), "unknown format 'xml'"),
        (
            ("verify", "--foreign", "x", "--data", "/nowhere"),
            "--data /nowhere: expected a folder with the data of tasks",
        ),
        (("publish", "out"), "publish: expected --who NAME, the public name of who measured, found none"),
        (("publish", "out", "--who", "<b>"), "--who '<b>': expected a public name"),
        (("collect", "/nowhere/x", "--into", "r"), "/nowhere/x: expected a folder that `prunebench results publish`"),
    ],
)
def test_wrong_words_are_one_line(
    prunebench: Prunebench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    own = ("--results", str(REFERENCE)) if words[0] == "publish" else ()
    code, _, err = prunebench("results", *words, *own)
    assert code == 2
    assert expected in err


def test_publish_into_the_results_themselves_is_refused(prunebench: Prunebench) -> None:
    code, _, err = prunebench("results", "publish", REFERENCE, "--who", "Alice", "--results", REFERENCE)
    assert code == 2
    assert "publish: expected another folder than" in err


def test_publish_names_the_cells_that_it_leaves(prunebench: Prunebench, tmp_path: Path) -> None:
    root = tmp_path / "r"
    for name in CELLS:
        shutil.copytree(reference(name).folder, root / "cells" / "pope" / reference(name).folder.name)
    cell = root / "cells" / "pope" / f"mini-{CELLS[1]}"
    new = body(cell)
    new["provenance"]["request"]["method"] = "mine.py:Mine"
    resealed(cell, new)
    code, out, err = prunebench("results", "publish", tmp_path / "o", "--who", "A", "--results", root)
    assert code == 1
    assert "1 cells, measured by A, are in" in out
    assert f"left out: {cell}: expected a method by its name, found the file mine.py:Mine" in err


def test_a_publication_has_what_the_policy_asks_for(tmp_path: Path) -> None:
    write(publication([reference(name) for name in CELLS], "Alice", Private(())), tmp_path / "a", replace=False)
    found = json.loads((tmp_path / "a" / NAME).read_text())
    assert (found["who"], found["count"]) == ("Alice", 2)
    assert found["devices"]
    assert found["prunebench"]
    assert all(re.fullmatch(r"[0-9a-f]{40}", commit) for commit in found["commits"])
    for line in found["cells"]:
        assert line["command"].startswith("make eval METHOD=")
        assert line["started"]
    assert submission.checked(found)[0] == "Alice"
