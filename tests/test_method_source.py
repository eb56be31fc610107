"""Methods from elsewhere: their code is part of what a cell is, and a cell's command names the file they came from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers import make_cell
from helpers import run as prunebench

from harness import blocks, sweep, views
from harness.cell import SHIPPED, Cell
from harness.errors import PrunebenchError
from harness.method import method_class, registered, source_of
from harness.run import Request, evaluate
from harness.store import SealedCell, Store

CENTRE = (Path(__file__).parent / "examples" / "centre.py").read_text()
EDGE = CENTRE.replace("keep_top(-away", "keep_top(away")


def measure(file: Path, results: Path, **asked: object) -> list[SealedCell]:
    """The pruned cells of a folder after one more evaluation."""
    evaluate(Request(f"{file}:Centre", results=results, tasks=("pope",), limit="18", budget="32", **asked), say=lambda _: None)
    return [c for c in Store(results).cells() if c.cell.method == "centre"]


def test_an_edited_file_is_measured_anew_and_named_as_another_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(CENTRE)
    (first,) = measure(file, tmp_path / "results", knobs={"boundary": "1"})
    assert measure(file, tmp_path / "results", knobs={"boundary": "1"}) == [first], "unedited code is not run again"
    file.write_text(EDGE)
    both = measure(file, tmp_path / "results", knobs={"boundary": "1"})
    assert len(both) == 2
    assert not both[0].samples()["keeps"].equals(both[1].samples()["keeps"])
    assert first.provenance["command"].startswith(f"make eval METHOD={file}:Centre BUDGET=32 ")
    assert "SET='boundary=1'" in first.provenance["command"]
    assert "METHOD=none" in next(c for c in Store(tmp_path / "results").cells() if c.cell.method == "none").provenance["command"]
    (section,) = blocks.sections(blocks.distinct(Store(tmp_path / "results").cells()))
    names = {line.name for block in section.blocks() for line in block.lines} - {"none"}
    assert names == {f'centre method_source="{c.cell.method_source}"' for c in both}, "they are not two seeds of one method"
    (protocol,) = views.protocols(Store(tmp_path / "results").cells())
    assert set(views.lines(protocol).values()) - {"none"} == names


def test_two_files_that_call_their_method_alike_are_asked_apart(tmp_path: Path) -> None:
    """In one sweep, in one pass, and again by two processes."""
    for name, text in (("a", CENTRE), ("b", EDGE)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(text)
    methods = "".join(f"  - {{method: {tmp_path / name / 'mine.py'}:Centre}}\n" for name in "ab")
    (tmp_path / "sweep.yaml").write_text(f"models: [mini]\ntasks: [pope]\nlimit: 18\nbudgets: [32]\nmethods:\n{methods}")
    kept = []
    for workers in (1, 2):
        results = tmp_path / f"results{workers}"
        sweep.run(sweep.load(tmp_path / "sweep.yaml"), Request("none", results=results), say=lambda _: None, workers=workers)
        found = {c.cell.method_source: c.samples().set_index("key")["keeps"] for c in Store(results).cells() if c.cell.method == "centre"}
        assert len(found) == 2
        kept.append(found)
    one, other = kept[0].values()
    assert not one.equals(other)
    assert all(kept[0][source].equals(kept[1][source]) for source in kept[0])


def test_our_own_methods_are_named_by_the_numerics_version() -> None:
    assert {source_of(cls) for cls in registered().values()} == {SHIPPED}
    ours = make_cell()
    assert "method_source" not in ours.to_dict()
    theirs = make_cell(method_source="0123456789ab")
    assert theirs.identity() != ours.identity()
    assert Cell.from_dict(theirs.to_dict()) == theirs != ours == Cell.from_dict(ours.to_dict())
    assert theirs.baseline() == ours.baseline()


def test_all_files_of_a_package_count_and_the_folder_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for place, helper in (("here", "A = 1\n"), ("there", "A = 1\n"), ("elsewhere", "A = 2\n")):
        folder = tmp_path / place / "pruners"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
        (folder / "centre.py").write_text(CENTRE)
        (folder / "helper.py").write_text(helper)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(tmp_path / place))
            for name in [n for n in sys.modules if n.partition(".")[0] == "pruners"]:
                patch.delitem(sys.modules, name)
            found.append(source_of(method_class("pruners.centre:Centre")))
            for name in [n for n in sys.modules if n.partition(".")[0] == "pruners"]:
                del sys.modules[name]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('name = "centre"', 'name = "fastv"'), "two methods are called 'fastv'"),
        (('name = "centre"', 'name = "none"'), "two methods are called 'none'"),
        (('name = "centre"', ""), "expected a lower-case `name`"),
        (("@dataclass(frozen=True)", "@dataclass(frozen=False)"), "non-frozen|frozen dataclass"),
    ],
)
def test_a_class_that_cannot_be_told_from_another_method_is_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    (tmp_path / "mine.py").write_text(CENTRE.replace(*change))
    with pytest.raises((PrunebenchError, TypeError), match=message):
        method_class(f"{tmp_path / 'mine.py'}:Centre")


def test_show_names_the_file_in_what_it_suggests(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.py"
    file.write_text(CENTRE)
    (cell,) = measure(file, tmp_path)
    key = cell.samples()["key"].iloc[0]
    code, _, err = prunebench(capsys, monkeypatch, "show", "--results", str(tmp_path), "--sample", key, "--method", "centre", "--budget", "64")
    assert code == 2
    assert f"METHOD={file}:Centre BUDGET=64" in err
    code, _, err = prunebench(capsys, monkeypatch, "show", "--results", str(tmp_path), "--sample", key, "--method", "fastv")
    assert code == 2
    assert "METHOD=fastv BUDGET=32" in err
