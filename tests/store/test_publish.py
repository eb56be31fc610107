"""`results publish`: nothing private leaves, nothing measured changes, and nothing is overwritten unasked."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from published import CELLS, body, reference, samples_with

from harness.core.cell import Cell
from harness.core.errors import PrunebenchError
from harness.store import private as privacy
from harness.store.private import REMOVED, Private, here, texts
from harness.store.publish import PUBLISHED, Publication, publication, write
from harness.store.sealed import SAMPLES, SEAL, SealedCell, load
from harness.store.sealed import sealed as as_written
from harness.store.store import Store

USER, HOST = "pbuser7", "pbhost9.example.edu"
MINE = Private((USER, HOST, "pbhost9"))
PLANTED = (
    f"/home/{USER}/models/x",
    f"/Users/{USER}",
    "/mnt/vol3/data",
    f"~{USER}/notes",
    f"C:\\Users\\{USER}\\x",
    f"\\\\pbhost9\\share\\{USER}",
    f"file:///srv/{USER}/x",
    f"run by {USER} on {HOST}",
    f"scp pbhost9:/home/{USER}/x y",
    f"PATH=/usr/bin:/home/{USER}/bin",
)
SIGNS = (USER, "pbhost9", "/home", "/Users", "/mnt", "/srv", "/usr", "\\Users", "vol3")


@pytest.fixture
def cell(tmp_path: Path) -> SealedCell:
    """A copy of a real cell in a results folder."""
    return copied(tmp_path / "r")


def copied(root: Path, change: Any = None, samples: bytes | None = None) -> SealedCell:
    """A real cell with a change, sealed in a results folder."""
    one = reference()
    new = body(one.folder)
    if change:
        change(new)
    made = Cell.from_dict(new["cell"])
    new["identity"] = made.identity()
    folder = Store(root).folder(made)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data = (one.folder / SAMPLES).read_bytes() if samples is None else samples
    new["samples_sha256"] = hashlib.sha256(data).hexdigest()
    (folder / SAMPLES).write_bytes(data)
    (folder / SEAL).write_bytes(as_written(new))
    return load(folder)


def leaks(made: Publication) -> list[str]:
    """Signs of what was planted in any file that would be sent."""
    found = []
    for name, data in made.files.items():
        parts = [name]
        if name.endswith(".parquet"):
            parts += [str(v) for column in pd.read_parquet(__import__("io").BytesIO(data)).items() for v in column[1]]
        else:
            parts += [text for _, text in texts(json.loads(data))]
        found += [f"{name}: {part}" for part in parts for sign in SIGNS if sign.lower() in part.lower()]
    return found


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every text, and to every object that could have one more key."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, dict):
        yield (*path, None)
        for name, inner in value.items():
            yield from places(inner, (*path, name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from places(inner, (*path, number))


def planted(new: dict[str, Any], path: tuple[Any, ...], text: str) -> None:
    at: Any = new
    for name in path[:-1]:
        at = at[name]
    if path[-1] is None:
        at[text] = 1
    else:
        at[path[-1]] = text


CANNOT = ("schema_version", "key_version", "samples_sha256", "identity")  # a store refuses any other text there
EVERYWHERE = [
    path
    for path in places(body(reference().folder))
    if path[0] not in CANNOT and path != (None,) and len(path) > 1 and path[:2] != ("provenance", "grids")
]


def test_a_path_or_a_name_in_any_text_of_a_cell_never_leaves(tmp_path: Path) -> None:
    """Every place of a real cell times every kind of text: the cell is refused, or the text is not in what is sent."""
    sent = refused = 0
    for number, path in enumerate(EVERYWHERE):
        for text in (PLANTED[number % len(PLANTED)], PLANTED[(number + 3) % len(PLANTED)]):
            try:
                one = copied(tmp_path / "r", lambda new, path=path, text=text: planted(new, path, text))
            except PrunebenchError:
                continue  # no cell at all with such a text
            try:
                made = publication([one], "Alice", MINE)
            except PrunebenchError:
                refused += 1
                continue
            assert leaks(made) == [], (path, text)
            sent += 1
            published = json.loads(made.files[f"cells/pope/{one.folder.name}/{SEAL}"])
            assert published["provenance"][PUBLISHED]["rewrote"], (path, text)
    assert sent > 30
    assert refused > 30


@pytest.mark.parametrize("column", ["image", "question_id", "category", "question", "target", "answer"])
def test_a_path_or_a_name_in_samples_refuses_the_cell(tmp_path: Path, column: str) -> None:
    for text in PLANTED:

        def change(frame: Any, text: str = text) -> None:
            frame.loc[3, column] = text

        one = copied(tmp_path / "r", None, samples_with(reference().folder, change))
        with pytest.raises(
            PrunebenchError, match=rf"samples\.parquet: {column} of pope/000003: expected no path, user"
        ):
            publication([one], "Alice", MINE)


def test_a_column_with_a_name_refuses_the_cell(tmp_path: Path) -> None:
    one = copied(tmp_path / "r", None, samples_with(reference().folder, lambda f: f.assign(**{USER: 1})))
    with pytest.raises(
        PrunebenchError, match="the name of a column: expected no path, user or machine, found 'pbuser7'"
    ):
        publication([one], "Alice", MINE)


def test_a_cell_without_private_words_is_sent_byte_for_byte(cell: SealedCell) -> None:
    made = publication([cell], "Alice", MINE)
    assert made.rewrote == {}
    folder = f"cells/pope/mini-{CELLS[1]}"
    assert set(made.files) == {f"{folder}/{SAMPLES}", f"{folder}/{SEAL}", "submission.json"}
    for name in (SAMPLES, SEAL):
        assert made.files[f"{folder}/{name}"] == (cell.folder / name).read_bytes()


def test_provenance_is_rewritten_to_base_names_and_says_so(tmp_path: Path) -> None:
    def change(new: dict[str, Any]) -> None:
        said = new["provenance"]
        said["device"] = f"NVIDIA H200 of {HOST}"
        said["kernels"] = "AVX512, libraries in /opt/intel/mkl-2025"
        said["request"]["data"] = f"/home/{USER}/sets/pope copy"
        said["request"]["model"] = "../checkpoints/mini"

    one = copied(tmp_path / "r", change)
    made = publication([one], "Alice", MINE)
    said = json.loads(made.files[f"cells/pope/{one.folder.name}/{SEAL}"])
    old = json.loads((one.folder / SEAL).read_text())
    new = said["provenance"]
    assert new["device"] == f"NVIDIA H200 of {REMOVED}"
    assert new["kernels"] == "AVX512, libraries in mkl-2025"
    assert (new["request"]["data"], new["request"]["model"]) == ("pope_copy", "mini")
    assert new[PUBLISHED] == {
        "checksum": old["checksum"],
        "rewrote": ["device", "kernels", "request/data", "request/model"],
    }
    untouched = set(said) - {"provenance", "checksum"}
    assert {name: said[name] for name in untouched} == {name: old[name] for name in untouched}
    line = json.loads(made.files["submission.json"])["cells"][0]
    assert line["device"] == f"NVIDIA H200 of {REMOVED}"
    assert "DATA=pope_copy" in line["command"]
    write(made, tmp_path / "out", replace=False)
    again = publication([load(tmp_path / "out" / "cells" / "pope" / one.folder.name)], "Alice", MINE)
    assert again.files == made.files, "what is published already stays as it is"


NONE = "expected no path, user or machine, found"
COVERED: dict[str, tuple[Any, str]] = {
    "model": (
        lambda new: new["cell"].update(model=USER),
        f"cell/model: {NONE} 'pbuser7': give the folder of the model another name, and measure the cell again",
    ),
    "knob": (
        lambda new: new["cell"]["knobs"].update(sink="/data/x/y.pt"),
        f"cell/knobs/sink: {NONE} '/data/x/y.pt': give the knob a value that is no path",
    ),
    "processing": (
        lambda new: new["provenance"]["processing"]["image"].update(policy=f"/home/{USER}/p"),
        f"provenance/processing/image/policy: {NONE}",
    ),
    "method": (
        lambda new: new["provenance"]["request"].update(method="mine/centre.py:Centre"),
        "expected a method by its name, found the file centre.py:Centre: whoever gets",
    ),
    "task": (
        lambda new: new["provenance"]["request"].update(task="sets/mine.yaml"),
        "expected a task by its name, found the file mine.yaml",
    ),
}


@pytest.mark.parametrize("kind", COVERED)
def test_what_the_identity_covers_is_refused_and_the_message_says_what_to_use(tmp_path: Path, kind: str) -> None:
    change, expected = COVERED[kind]
    with pytest.raises(PrunebenchError) as caught:
        publication([copied(tmp_path / "r", change)], "Alice", MINE)
    assert expected in str(caught.value)


def test_a_word_of_the_data_can_be_allowed_and_others_can_be_added(tmp_path: Path) -> None:
    def change(frame: Any) -> None:
        frame.loc[0, "question"] = f"Is {USER} here?"

    one = copied(tmp_path / "r", None, samples_with(reference().folder, change))
    with pytest.raises(PrunebenchError, match="if that is no secret, say allow='pbuser7'"):
        publication([one], "Alice", MINE)
    assert publication([one], "Alice", Private(MINE.words, [USER])).cells == 1
    with pytest.raises(PrunebenchError, match="found 'here'"):
        publication([one], "Alice", Private(("here",), ()))


def test_words_that_only_look_like_paths_stay() -> None:
    for text in (
        "USER: <image>\n{text} ASSISTANT:</s>",
        "[INST] x [/INST]",
        "and/or, 24/7, 3/4 of 1/2, n/a, w/o",
        "https://example.org/a/b and llava-hf/llava-1.5-7b-hf",
        "pope/000123",
        "What is written on the sign / the door?",
        "km/h /12/2020",
        "a: b",
    ):
        assert MINE.found(text) is None, text
        assert MINE.without(text) == text
    for text in PLANTED:
        assert MINE.found(text), text
        assert MINE.found(MINE.without(text)) is None, text


def test_names_of_this_machine_are_known_and_those_of_everybody_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", USER)
    monkeypatch.setenv("LOGNAME", "root")
    monkeypatch.setenv("HOME", f"/srv/homes/{USER}x")
    monkeypatch.setattr(privacy.socket, "gethostname", lambda: HOST)
    found = here(("extra",)).words
    assert {USER, f"{USER}x", HOST, "pbhost9", "extra"} <= set(found)
    assert "root" not in found


# ------------------------------------------------------------------------------------------------------- the folder


def test_publishing_twice_gives_the_same_bytes_and_nothing_is_overwritten_unasked(
    tmp_path: Path, cell: SealedCell
) -> None:
    out = tmp_path / "out"
    made = publication([cell], "Alice", MINE)
    assert write(made, out, replace=False) == (3, 0)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert write(publication([cell], "Alice", MINE), out, replace=False) == (0, 3)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == times
    other = publication([reference(CELLS[0])], "Alice", MINE)
    with pytest.raises(PrunebenchError, match="expected an empty folder, or the same publication, found 3 files that"):
        write(other, out, replace=False)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == times
    write(other, out, replace=True)
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == set(other.files)
    (out / "mine.txt").write_text("x")
    with pytest.raises(PrunebenchError, match=r"found mine\.txt: give another folder"):
        write(other, out, replace=True)
    assert (out / "mine.txt").read_text() == "x"


def test_a_publication_that_was_stopped_continues(tmp_path: Path, cell: SealedCell) -> None:
    made = publication([cell, reference(CELLS[0])], "Alice", MINE)
    for n in range(len(made.files)):
        out = tmp_path / str(n)
        part = Publication(dict([*made.files.items()][:n]))
        if n:
            write(part, out, replace=False)
        assert not (out / "submission.json").exists(), "the last file: a folder without it is no publication"
        write(made, out, replace=False)
        assert {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()} == made.files


@pytest.mark.parametrize("who", ["", " a", "-a", "a" * 61, "a\nb", "<b>", "=1", "a/b", "a|b", "a`b", "\u202ea", "a;b"])
def test_a_name_that_is_none_is_refused(cell: SealedCell, who: str) -> None:
    with pytest.raises(PrunebenchError, match="expected a public name of at most 60 characters"):
        publication([cell], who, MINE)


@pytest.mark.parametrize("who", ["Alice", "A. B. O'Neill & Co. (Lab 3)", "Zoë Müller", "張三", "vlm-group_2"])
def test_names_of_people_are_names(cell: SealedCell, who: str) -> None:
    assert json.loads(publication([cell], who, MINE).files["submission.json"])["who"] == who


@pytest.mark.parametrize("what", ["file", "folder below a file"])
def test_a_place_that_takes_no_folder_is_named_as_the_command_names_it(
    tmp_path: Path, cell: SealedCell, what: str
) -> None:
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" if what == "file" else tmp_path / "file" / "out"
    with pytest.raises(PrunebenchError, match=r"^OUT \S+file: expected a folder" if what == "file" else r"\(OUT\)$"):
        write(publication([cell], "Alice", MINE), out, replace=False)


def test_an_edited_cell_is_not_published(cell: SealedCell) -> None:
    (cell.folder / SAMPLES).write_bytes(b"x")
    with pytest.raises(PrunebenchError, match="it is not the file that was sealed"):
        publication([cell], "Alice", MINE)
