"""A publish or a collect that is killed continues with the same command, to the same bytes."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
import test_every_step
from published import CELLS, NOBODY, published, reference
from test_every_step import DONE, KILLED, ends_at, state

from harness.core.errors import PrunebenchError
from harness.proof.foreign import Checker
from harness.store import foreign
from harness.store.collect import collect
from harness.store.publish import publication, write
from harness.store.submission import NAME


@pytest.mark.parametrize("replace", [False, True], ids=["fresh", "replace"])
@pytest.mark.parametrize("how", ["torn", "after"])
def test_a_publish_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool, how: str) -> None:
    """It ends at any file operation."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    old, new = (publication([reference(name) for name in names], "A", NOBODY) for names in (CELLS, CELLS[1:]))
    root, calm = tmp_path / "out", tmp_path / "calm"
    write(new, calm, replace=False)
    code = KILLED
    for step in range(1, 1000):
        shutil.rmtree(root, ignore_errors=True)
        if replace:
            write(old, root, replace=False)
        code = ends_at(step, how, lambda: write(new, root, replace=replace))
        if (root / NAME).exists() and (root / NAME).read_bytes() == new.files[NAME]:
            assert state(root) == state(calm), "the submission is last"
        write(new, root, replace=replace)
        assert state(root) == state(calm), step
        if code != KILLED:
            break
    assert code == DONE
    assert step > 10, "the operations were counted"


def test_a_publish_tidies_its_own_leavings_only(tmp_path: Path) -> None:
    """Files of others are old enough to be taken for forgotten ones."""
    found, mine, out = publication([reference(CELLS[0])], "A", NOBODY), tmp_path / "mine", tmp_path / "out"
    own = [mine / "sub" / ".draft.tmp", out / "cells" / "t" / ".notes.tmp"]
    for path in own:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        os.utime(path, (1, 1))
    (mine / "empty").mkdir()
    write(found, out, replace=False)
    (out / "cells" / ".link.tmp").symlink_to(mine)
    with pytest.raises(PrunebenchError, match=r"cells/\.link\.tmp"):
        write(found, out, replace=True)
    assert all(path.exists() for path in (*own, mine / "empty"))


def test_a_collect_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends between any two files: the record, and of each cell a lease and two files."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(test_every_step, "OPERATIONS", ("replace",))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(foreign._SamplesReader, "fault", lambda *words: "")  # a process of its own takes seconds
    alice, root, calm = published(tmp_path / "alice"), tmp_path / "r", tmp_path / "calm"
    collect([alice], calm, Checker())
    for step in range(1, 9):
        shutil.rmtree(root, ignore_errors=True)
        assert ends_at(step, "torn", lambda: collect([alice], root, Checker())) == (KILLED if step < 8 else DONE)
        assert collect([alice], root, Checker())[0].left == []
        for name in ("cells", "submissions"):
            assert state(root / name) == state(calm / name), step
