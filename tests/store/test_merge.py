"""Merging and tidying results folders: nothing that is there is ever lost, killed or not, alone or two at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from factories import keys, make_cell, make_record, seal, sealed
from test_every_step import DONE, KILLED, ends_at, state

from harness.core.errors import PrunebenchError
from harness.store import merge as merging
from harness.store.alive import mine
from harness.store.merge import merge
from harness.store.sealed import SAMPLES, SEAL, SealedCell
from harness.store.store import Store
from harness.store.verify import survey
from harness.store.waste import CACHE, HALF, JOURNALS, LOCK, TEMPORARY, clear, waste


def measured(root: Path, *seeds: int, answer: str = "yes", started: str = "2026-01-01") -> list[SealedCell]:
    """Sealed cells that differ in their seeds."""
    found = []
    for seed in seeds:
        store, cell = Store(root), make_cell(seed=seed)
        with store.open(cell, keys(4)) as writer:
            writer.append(*(make_record(i, answer=answer) for i in range(4)))
            found.append(seal(writer))
    return found


def cells(root: Path) -> dict[str, dict[str, str]]:
    """Every file below cells/ with its digest."""
    return {name: found for name, found in state(root).items() if name.startswith("cells/") and found != "folder"}


def damage(sealed: SealedCell) -> None:
    path = sealed.folder / SEAL
    path.write_bytes(path.read_bytes()[:99])


# -------------------------------------------------------------------------------------------------------------- merge


def test_what_is_missing_is_copied_as_it_is_and_the_rest_stays(tmp_path: Path) -> None:
    measured(tmp_path / "a", 0, 1, 2)
    measured(tmp_path / "b", 2, 3)
    before, mine = state(tmp_path / "a"), cells(tmp_path / "b")
    done = merge(tmp_path / "a", tmp_path / "b")
    assert (done.copied, done.there, done.unfinished, done.left) == (2, 1, 0, [])
    assert state(tmp_path / "a") == before
    after = cells(tmp_path / "b")
    assert mine.items() <= after.items()
    assert cells(tmp_path / "a").items() <= after.items(), "byte for byte"
    assert len(Store(tmp_path / "b").cells()) == 4
    assert not list((tmp_path / "b" / "locks").iterdir())
    again = merge(tmp_path / "a", tmp_path / "b")
    assert (again.copied, again.there) == (0, 3)
    assert cells(tmp_path / "b") == after


def test_a_new_folder_is_made_and_other_folders_are_refused(tmp_path: Path) -> None:
    measured(tmp_path / "a", 0)
    (tmp_path / "empty").mkdir()
    for name in ("new/deep", "empty", "results \u6a21 [x] *"):
        assert merge(tmp_path / "a", tmp_path / name).copied == 1
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(PrunebenchError, match="expected a results folder, an empty folder or a new one, found other"):
        merge(tmp_path / "a", tmp_path / "home")
    with pytest.raises(PrunebenchError, match=r"expected a results folder with cells/ in it, found none at .*home"):
        merge(tmp_path / "home", tmp_path / "a")
    with pytest.raises(PrunebenchError, match=r"cannot write results to .*letter\.txt: it is no folder"):
        merge(tmp_path / "a", tmp_path / "home" / "letter.txt")
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["letter.txt"]


def test_one_folder_under_two_names_is_refused(tmp_path: Path) -> None:
    measured(tmp_path / "a", 0)
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "view").mkdir()
    (tmp_path / "view" / "cells").symlink_to(tmp_path / "a" / "cells")
    before = state(tmp_path / "a")
    for other in ("a", "link", "view", "a/../a"):
        with pytest.raises(PrunebenchError, match="are the same"):
            merge(tmp_path / "a", tmp_path / other)
    assert state(tmp_path / "a") == before


def test_one_identity_with_other_samples_is_named_and_left(tmp_path: Path) -> None:
    measured(tmp_path / "a", 0, 1, answer="no")
    measured(tmp_path / "b", 0, answer="yes")
    mine = cells(tmp_path / "b")
    done = merge(tmp_path / "a", tmp_path / "b")
    (why,) = done.left
    assert "expected the samples that" in why
    assert str(tmp_path / "b") in why
    assert done.copied == 1
    assert mine.items() <= cells(tmp_path / "b").items()


def test_one_cell_measured_twice_with_the_same_samples_is_no_conflict(tmp_path: Path) -> None:
    sealed(Store(tmp_path / "a"), make_cell())
    (other,) = measured(tmp_path / "b", 0, answer="x")
    shutil.rmtree(other.folder)
    with Store(tmp_path / "b").open(make_cell(), keys(4)) as writer:
        writer.append(*(make_record(i, wall_s=9.0) for i in range(4)))
        seal(writer)
    (mine,) = Store(tmp_path / "b").cells()
    assert (mine.folder / SEAL).read_bytes() != next((tmp_path / "a").glob(f"cells/*/*/{SEAL}")).read_bytes()
    before = cells(tmp_path / "b")
    assert merge(tmp_path / "a", tmp_path / "b").there == 1
    assert cells(tmp_path / "b") == before


@pytest.mark.parametrize("side", ["a", "b"])
def test_a_damaged_cell_is_named_and_never_copied_or_replaced(tmp_path: Path, side: str) -> None:
    first, _ = measured(tmp_path / "a", 0, 1)
    measured(tmp_path / "b", 0)
    damage(first if side == "a" else Store(tmp_path / "b").cells()[0])
    mine = cells(tmp_path / "b")
    done = merge(tmp_path / "a", tmp_path / "b")
    assert len(done.left) == 1
    assert "not a cell file" in done.left[0]
    assert done.copied == 1
    assert mine.items() <= cells(tmp_path / "b").items()


def test_cut_samples_and_foreign_files_stay_behind(tmp_path: Path) -> None:
    first, second = measured(tmp_path / "a", 0, 1)
    (first.folder / SAMPLES).write_bytes((first.folder / SAMPLES).read_bytes()[:-5])
    (second.folder / "notes.txt").write_text("mine")
    (tmp_path / "a" / "cells" / "readme").write_text("x")
    (tmp_path / "a" / "cells" / "pope" / "other").mkdir()
    done = merge(tmp_path / "a", tmp_path / "b")
    assert (done.copied, len(done.left)) == (1, 1)
    assert "expected sha256" in done.left[0]
    assert not list((tmp_path / "b").rglob("notes.txt"))
    assert [found.wrong for found in survey(tmp_path / "b", deep=False)] == [()]


def test_links_are_read_through_and_their_targets_are_never_written(tmp_path: Path) -> None:
    (one,) = measured(tmp_path / "a", 0)
    (tmp_path / "b" / "cells" / "pope").mkdir(parents=True)
    (tmp_path / "b" / "cells" / "pope" / one.folder.name).symlink_to("nowhere")
    done = merge(tmp_path / "a", tmp_path / "b")
    assert done.copied == 0
    assert "cannot create" in done.left[0]
    (tmp_path / "c" / "cells").mkdir(parents=True)
    (tmp_path / "c" / "cells" / "pope").symlink_to(tmp_path / "a" / "cells" / "pope")
    assert merge(tmp_path / "c", tmp_path / "d").copied == 1, "a folder of links is read"
    place = tmp_path / "e" / one.folder.relative_to(tmp_path / "a")
    place.mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (place / SAMPLES).symlink_to(outside)
    assert merge(tmp_path / "a", tmp_path / "e").copied == 1
    assert outside.read_text() == "mine"


def test_a_half_copied_folder_is_completed_and_a_journal_stays(tmp_path: Path) -> None:
    one, other = measured(tmp_path / "a", 0, 1)
    place = tmp_path / "b" / one.folder.relative_to(tmp_path / "a")
    place.mkdir(parents=True)
    (place / SAMPLES).write_bytes(b"half")
    with Store(tmp_path / "b").open(make_cell(seed=1), keys(4)) as writer:
        writer.append(make_record(0))
    journal = Store(tmp_path / "b").folder(make_cell(seed=1)) / "journal.jsonl"
    before = journal.read_bytes()
    assert merge(tmp_path / "a", tmp_path / "b").copied == 2
    assert {sealed.identity for sealed in Store(tmp_path / "b").cells()} == {one.identity, other.identity}
    assert journal.read_bytes() == before


def test_unfinished_cells_stay_where_they_are(tmp_path: Path) -> None:
    measured(tmp_path / "a", 0)
    with Store(tmp_path / "a").open(make_cell(seed=1), keys(4)) as writer:
        writer.append(make_record(0))
    done = merge(tmp_path / "a", tmp_path / "b")
    assert (done.copied, done.unfinished) == (1, 1)


def test_a_cell_that_a_runner_holds_is_named_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "PATIENCE_S", 0.1)
    measured(tmp_path / "a", 0, 1)
    with Store(tmp_path / "b").open(make_cell(seed=1), keys(4)) as writer:
        done = merge(tmp_path / "a", tmp_path / "b")
        assert done.copied == 1
        assert "is being run by process" in done.left[0]
        writer.append(make_record(0))
    assert merge(tmp_path / "a", tmp_path / "b").copied == 1


def test_a_merge_that_ends_at_any_file_operation_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    measured(tmp_path / "a", 0, 1)
    source = state(tmp_path / "a")
    merge(tmp_path / "a", tmp_path / "calm")
    calm, root = cells(tmp_path / "calm"), tmp_path / "b"
    for step in range(1, 1000):
        shutil.rmtree(root, ignore_errors=True)
        code = ends_at(step, "torn", lambda: merge(tmp_path / "a", root))
        assert code in (KILLED, DONE), (step, code)
        if (root / "cells").exists():
            assert not [found.wrong for found in survey(root, deep=False) if found.wrong], step
        merge(tmp_path / "a", root)
        Store(root).tidy()
        assert cells(root) == calm, step
        assert not list((root / "locks").glob("*")), step
        if code == DONE:
            break
    assert code == DONE
    assert step > 20, "the operations were counted"
    assert state(tmp_path / "a") == source


def test_two_merges_at_once_copy_every_cell_once(tmp_path: Path) -> None:
    measured(tmp_path / "a", *range(12))
    measured(tmp_path / "b", *range(6, 18))
    start = time.time() + 3
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom harness.store.merge import merge\n"
        f"time.sleep(max(0, {start!r} - time.time()))\n"
        "done = merge(Path(sys.argv[1]), Path(sys.argv[2]))\nprint(done.copied, done.there, len(done.left))"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / name), str(tmp_path / "c")], stdout=-1, stderr=-1, text=True
        )
        for name in ("a", "b")
    ]
    told = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], told
    counts = [list(map(int, out.split())) for out, _ in told]
    assert [sum(column) for column in zip(*counts, strict=True)] == [18, 6, 0]
    assert len(Store(tmp_path / "c").cells()) == 18
    assert all(not found.wrong for found in survey(tmp_path / "c", deep=False))


# -------------------------------------------------------------------------------------------------------------- waste


def littered(root: Path) -> dict[str, Path]:
    """A results folder with one thing of each kind, and things that must stay."""
    (whole,) = measured(root, 0)
    (whole.folder / "journal.jsonl").write_bytes(b"killed between sealing and tidying")
    with Store(root).open(make_cell(seed=1), keys(4)) as writer:
        writer.append(make_record(0), make_record(1))
    dead = mine().partition("-")[0] + "-999999999"
    temporary = root / f".leaderboard.csv.{dead}.tmp"
    temporary.write_text("torn")
    (root / "cache").mkdir()
    (root / "cache" / "statistics.json").write_text("{}")
    (root / "locks").mkdir(exist_ok=True)
    lock = root / "locks" / "0123456789abcdef.lock"
    lock.write_text(json.dumps({"runner": "gone", "lease": "x"}))
    own = root / f".leaderboard.csv.{mine()}.tmp"  # of a process that lives
    own.write_text("mine")
    kept = root / "figures"
    kept.mkdir()
    half = Store(root).folder(make_cell(seed=1))
    return {
        HALF: half,
        JOURNALS: whole.folder / "journal.jsonl",
        TEMPORARY: temporary,
        LOCK: lock,
        CACHE: root / "cache",
    }


def test_each_kind_of_waste_is_named_with_its_size_and_removed(tmp_path: Path) -> None:
    things = littered(tmp_path)
    stays: list[str] = []
    before = state(tmp_path)
    found = waste(tmp_path, stays)
    assert state(tmp_path) == before, "looking changes nothing"
    assert stays == []
    assert {one.kind: one.path for one in found} == things
    assert len(found) == len(things)
    assert all(one.size > 0 for one in found)
    assert next(one.more for one in found if one.kind == HALF) == "2 answers"
    freed, left = clear(tmp_path, found)
    assert left == []
    assert freed == sum(one.size for one in found)
    assert not any(path.exists() for path in things.values())
    assert {path.name for path in tmp_path.iterdir()} == {"cells", "figures", "locks", f".leaderboard.csv.{mine()}.tmp"}
    assert len(Store(tmp_path).cells()) == 1
    assert waste(tmp_path, stays) == []


def test_what_a_living_process_needs_is_no_waste(tmp_path: Path) -> None:
    measured(tmp_path, 0)
    with Store(tmp_path).open(make_cell(seed=1), keys(4)) as writer:
        writer.append(make_record(0))
        stays: list[str] = []
        assert waste(tmp_path, stays) == []
        assert "runs it" in stays[0]
        writer.append(make_record(1), make_record(2), make_record(3))
        seal(writer)
    assert len(Store(tmp_path).cells()) == 2


def test_a_cell_that_begins_between_looking_and_removing_stays(tmp_path: Path) -> None:
    with Store(tmp_path).open(make_cell(), keys(4)) as writer:
        writer.append(make_record(0))
    found = waste(tmp_path, [])
    with Store(tmp_path).open(make_cell(), keys(4)) as writer:
        freed, left = clear(tmp_path, found)
        assert freed == 0
        assert "is being run by" in left[0]
        assert (writer.folder / "journal.jsonl").is_file()
        writer.append(*(make_record(i) for i in range(1, 4)))
        seal(writer)
    assert clear(tmp_path, found) == (0, []), "sealed in the meantime"
    assert len(Store(tmp_path).cells()) == 1


def test_a_file_of_a_person_in_a_half_run_cell_stays(tmp_path: Path) -> None:
    with Store(tmp_path).open(make_cell(), keys(4)) as writer:
        writer.append(make_record(0))
    (writer.folder / "notes.txt").write_text("mine")
    clear(tmp_path, waste(tmp_path, []))
    assert [path.name for path in writer.folder.iterdir()] == ["notes.txt"]


def test_a_wrong_folder_has_no_waste_but_a_message(tmp_path: Path) -> None:
    with pytest.raises(PrunebenchError, match="expected a results folder with cells/ in it, found none"):
        waste(tmp_path, [])
