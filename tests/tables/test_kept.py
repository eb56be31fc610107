"""Statistics that are kept between two writings of the tables: they change no byte, and nothing false is believed."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from factories import answered, make_cell, sealed

from harness.core import stats
from harness.core.errors import PrunebenchError
from harness.library.frames import results
from harness.runner.run import write_tables
from harness.store.files import write_changed
from harness.store.sealed import SealedCell
from harness.store.store import Store
from harness.tables import answers, compare, kept, leaderboard
from harness.tables.kept import Kept

TABLES = ("leaderboard.csv", "LEADERBOARD.md", "significance.csv")
CACHED = Path(kept.FOLDER) / kept.FILE


def scores(seed: int, n: int = 40, soft: bool = False) -> list[float]:
    rng = random.Random(seed)
    return [rng.choice((0.0, 0.3, 0.6, 1.0) if soft else (0.0, 1.0, 1.0)) for _ in range(n)]


def some(root: Path) -> list[SealedCell]:
    """Two tasks of which one has soft scores, two budgets, three seeds of `random`, and an MME sum."""
    made, count = [], itertools.count()
    lines = [("none", "none", 0), *(("random", "64", seed) for seed in (0, 1, 2)), ("downsample", "64", 0)]
    lines += [("fastv", "64", 0), ("first", "64", 0), ("random", "32", 0), ("fastv", "32", 0)]
    for method, budget, seed in lines:
        for task in ("pope", "textvqa_ocr", "mme"):
            made.append(answered(root, method, budget, scores(next(count), soft=task[0] == "t"), task, seed=seed))
    return made


def tables(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in TABLES}


def values(folder: Path) -> dict[str, Any]:
    """The values of a cache, as a file says them."""
    return dict(json.loads((folder / CACHED).read_bytes().partition(b"\n")[2]))


def put(folder: Path, found: dict[str, Any], **head: Any) -> None:
    """Write a cache as this code does, but for `head`."""
    data = json.dumps(found).encode()
    stated = json.loads((folder / CACHED).read_bytes().partition(b"\n")[0])
    stated |= {"sha256": hashlib.sha256(data).hexdigest()} | head
    (folder / CACHED).write_bytes(json.dumps(stated).encode() + b"\n" + data)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of all cells whose samples were read."""
    folders: list[Path] = []
    table = SealedCell.table

    def noted(self: SealedCell, *names: str) -> Any:
        folders.append(self.folder)
        return table(self, *names)

    monkeypatch.setattr(SealedCell, "table", noted)
    return folders


def test_tables_are_the_same_bytes_with_a_full_a_partial_and_no_cache(tmp_path: Path) -> None:
    cells, out = some(tmp_path / "cells"), tmp_path / "out"
    leaderboard.write(cells, out)
    whole, all_values = tables(out), values(out)
    assert len(all_values) > 100
    leaderboard.write(cells, out)
    assert tables(out) == whole, "a full cache"
    rng = random.Random(0)
    for share in (0.2, 0.5, 0.8):
        put(out, {key: value for key, value in all_values.items() if rng.random() < share})
        for name in TABLES:
            (out / name).unlink()
        leaderboard.write(cells, out)
        assert tables(out) == whole, share
        assert values(out) == all_values
    for i, name in enumerate(TABLES):
        (out / name).unlink()
        shutil.rmtree(out / kept.FOLDER)
        leaderboard.write(random.Random(i).sample(cells, len(cells)), out)
        assert tables(out) == whole, "no cache"


def test_cells_one_after_the_other_give_the_bytes_of_all_at_once(tmp_path: Path) -> None:
    """Every statistic of the last tables was computed among other cells than at once."""
    cells = some(tmp_path / "cells")
    leaderboard.write(cells, tmp_path / "once")
    shuffled = random.Random(1).sample(cells, len(cells))
    for n in (5, 6, 14, 15, len(cells)):
        leaderboard.write(shuffled[:n], tmp_path / "by turns")
    assert tables(tmp_path / "by turns") == tables(tmp_path / "once")
    assert values(tmp_path / "by turns").keys() == values(tmp_path / "once").keys(), "values of before are dropped"


def test_what_is_kept_is_not_computed_again(tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    cells, out = some(tmp_path / "cells"), tmp_path / "out"
    leaderboard.write(cells[:-1], out)
    read.clear()
    drawn: list[int] = []
    together, draws = stats.resample_together, stats.draws
    monkeypatch.setattr(
        stats, "resample_together", lambda cells, *args: drawn.append(len(cells)) or together(cells, *args)
    )
    monkeypatch.setattr(stats, "draws", lambda *args: pytest.fail("the draws are kept"))
    leaderboard.write(cells[:-1], out)
    assert (read, drawn) == ([], []), "nothing is new"
    leaderboard.write(cells, out)
    assert set(read) == {cells[-1].folder, cells[2].folder}, "the new cell, and the unpruned one for the agreement"
    assert 0 < sum(drawn) <= 10, "the new line's cells and what they are compared with"
    monkeypatch.setattr(stats, "draws", draws)
    (out / CACHED).unlink()
    leaderboard.write(cells, out)
    assert len(set(read)) == len(cells)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\x00\xff not json",
        lambda data: data.replace(b"0.5", b"0.6", 1),
        lambda data: b"[]\n{}",
        lambda data: b"[" * 100_000,
    ],
    ids=["torn", "empty", "foreign", "edited", "another JSON", "deep"],
)
def test_a_broken_file_is_ignored_and_made_again(tmp_path: Path, read: list[Path], spoil: Any) -> None:
    cells, out = some(tmp_path / "cells")[:12], tmp_path / "out"
    leaderboard.write(cells, out)
    whole, data = tables(out), (out / CACHED).read_bytes()
    assert spoil(data) != data
    (out / CACHED).write_bytes(spoil(data))
    for file in (out / kept.FOLDER).glob("draws-*"):
        file.write_bytes(spoil(file.read_bytes()) or b"x")
    read.clear()
    leaderboard.write(cells, out)
    assert len(set(read)) == len(cells)
    assert tables(out) == whole
    assert (out / CACHED).read_bytes() != spoil(data)
    assert values(out).keys() == json.loads(data.partition(b"\n")[2]).keys()


@pytest.mark.parametrize("head", [{"version": 0}, {"code": "of before"}, {"sha256": "0"}])
def test_values_of_other_code_are_discarded(tmp_path: Path, read: list[Path], head: dict[str, Any]) -> None:
    """The same file with the head of this code is believed: so it is the head that decides."""
    cells, out = some(tmp_path / "cells")[:12], tmp_path / "out"
    leaderboard.write(cells, out)
    whole, good = tables(out), values(out)
    false = {key: 12.5 if isinstance(value, float) else value for key, value in good.items()}
    assert false != good, "percentages of agreement are plain numbers"
    put(out, false)
    leaderboard.write(cells, out)
    assert tables(out) != whole
    put(out, false, **head)
    leaderboard.write(cells, out)
    assert tables(out) == whole


def test_the_version_names_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    kept._code.cache_clear()
    before = kept._code()
    monkeypatch.setattr(kept, "version", lambda name: "0")
    kept._code.cache_clear()
    assert kept._code() != before, "a library's version"
    monkeypatch.undo()
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"changed")
    kept._code.cache_clear()
    assert kept._code() != before, "a module's text"
    monkeypatch.undo()
    kept._code.cache_clear()
    assert kept._code() == before


def test_samples_that_were_changed_are_found_with_a_full_cache(tmp_path: Path) -> None:
    store = Store(tmp_path)
    found = [
        sealed(store, make_cell(4, method=method, knobs={}, budget=b))
        for method, b in (("none", "none"), ("fastv", "64"))
    ]
    said: list[str] = []
    write_tables(store, said.append)
    write_tables(store, said.append)
    assert said == []
    file = found[1].folder / "samples.parquet"
    good, times = file.read_bytes(), file.stat()
    file.write_bytes(good[:-9] + b"x" + good[-8:])
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(PrunebenchError, match=r"samples.parquet: expected sha256"):
        leaderboard.write(store.cells(), tmp_path)
    write_tables(store, said.append)
    (note,) = said
    assert "expected sha256" in note
    assert "1 cells, damaged" in note
    file.write_bytes(good)
    write_tables(store, said.append)
    assert len(said) == 1, "and they are good again"


def test_a_file_is_hashed_again_only_where_it_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    sealed(store, make_cell(4, method="none", knobs={}, budget="none"))
    hashed: list[Path] = []
    verified = SealedCell._verified
    monkeypatch.setattr(SealedCell, "_verified", lambda self: hashed.append(self.folder) or verified(self))
    write_tables(store, print)
    assert hashed
    hashed.clear()
    write_tables(store, print)
    assert hashed == []
    (folder,) = (tmp_path / "cells").glob("*/*")
    again = (folder / "samples.parquet").read_bytes()
    (folder / "samples.parquet").unlink()
    (folder / "samples.parquet").write_bytes(again)
    write_tables(store, print)
    assert set(hashed) == {folder}
    hashed.clear()
    write_tables(store, print)
    assert hashed == []


def test_cells_with_other_questions_are_refused_with_a_full_cache_too(tmp_path: Path) -> None:
    out = tmp_path / "out"
    base = answered(tmp_path, "none", "none", [1.0] * 40)
    other = answered(tmp_path, "fastv", "64", [1.0] * 40, per_image=4)
    for _ in range(2):
        with pytest.raises(PrunebenchError, match="expected the 40 questions of"):
            leaderboard.write([base, other], out)
        leaderboard.write([base], out)


def test_only_files_that_change_are_written(tmp_path: Path) -> None:
    cells, out = some(tmp_path / "cells")[:12], tmp_path / "out"
    leaderboard.write(cells, out, figures=True)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert len(before) > 10
    leaderboard.write(cells, out, figures=True)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    write_changed(out / "leaderboard.csv", b"other")
    assert (out / "leaderboard.csv").read_bytes() == b"other"
    leaderboard.write(cells, out, figures=True)
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert {path.name for path in after if after[path] != before[path]} == {"leaderboard.csv"}


def test_figures_are_drawn_again_only_where_their_cells_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.tables import figures

    cells, out = some(tmp_path / "cells")[:18], tmp_path / "out"
    elsewhere = [answered(tmp_path, m, b, scores(5), dtype="bfloat16") for m, b in (("none", "none"), ("fastv", "64"))]
    drawn: list[str] = []
    section = figures._section
    monkeypatch.setattr(
        figures, "_section", lambda s, found, folder, stem: drawn.append(stem) or section(s, found, folder, stem)
    )
    leaderboard.write([*cells, *elsewhere], out, figures=True)
    whole, pictures = tables(out), {path: path.read_bytes() for path in (out / "figures").iterdir()}
    assert sorted(drawn) == ["mini-bfloat16-cpu-limit-default", "mini-float32-cpu-limit-default"]
    drawn.clear()
    leaderboard.write([*cells, *elsewhere], out, figures=True)
    assert drawn == []
    assert tables(out) == whole, "pictures that were not drawn again are shown in the same order"
    gone = next(path for path in pictures if "bfloat16" in path.name)
    gone.unlink()
    leaderboard.write([*cells, *elsewhere], out, figures=True)
    assert drawn == ["mini-bfloat16-cpu-limit-default"]
    assert {path: path.read_bytes() for path in (out / "figures").iterdir()} == pictures
    drawn.clear()
    leaderboard.write([*cells[:-1], *elsewhere], out, figures=True)
    assert drawn == ["mini-float32-cpu-limit-default"]


def test_two_writers_leave_a_whole_file(tmp_path: Path) -> None:
    cells, out = some(tmp_path / "cells"), tmp_path / "out"
    first, second = Kept(out), Kept(out)
    leaderboard.write(cells[:12], out, kept=first)
    leaderboard.write(cells, out, kept=second)
    whole = tables(out)
    first.of("another", lambda: 1)
    first.save()
    assert "another" in values(out)
    leaderboard.write(cells, out)
    assert tables(out) == whole


def test_programs_read_what_is_kept_and_write_nothing(tmp_path: Path, read: list[Path]) -> None:
    store = Store(tmp_path)
    for method, budget in (("none", "none"), ("fastv", "64")):
        sealed(store, make_cell(4, method=method, knobs={}, budget=budget))
    fresh = results(tmp_path, answers=True)
    assert not (tmp_path / kept.FOLDER).exists()
    write_tables(store, print)
    read.clear()
    assert results(tmp_path, answers=True).equals(fresh)
    assert read == []


def test_every_line_is_paired_with_as_many_others_in_a_large_block() -> None:
    for lines in (2, 3, compare.OTHERS + 1, compare.OTHERS + 2, 500):
        pairs = [frozenset((i, j)) for i, others in compare.partners(lines) for j in others]
        assert len(set(pairs)) == len(pairs), "each pair once"
        assert all(len(pair) == 2 for pair in pairs)
        each = [sum(line in pair for pair in pairs) for line in range(lines)]
        assert set(each) == {min(lines - 1, compare.OTHERS)}


def test_scores_survive_packing_to_the_last_bit(tmp_path: Path) -> None:
    for found in (scores(1), scores(2, soft=True), [i / 300 for i in range(300)], [1.0] * 12):
        cell = answered(tmp_path, "none", "none", found)
        packed = json.loads(json.dumps(answers._pack(answers._read(cell))["scores"]))
        assert answers._unpacked(packed).tolist() == found
