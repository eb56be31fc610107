"""Methods from elsewhere: their code is part of what a cell is, and a cell's command names the file they came from."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
from factories import answered, make_cell
from helpers import run as prunebench

from harness.core.budget import Budget
from harness.core.cell import SHIPPED, Cell
from harness.core.command import evaluation
from harness.core.errors import PrunebenchError
from harness.core.shape import PromptShape
from harness.method import build, method_class, registered, source_of
from harness.models.adapters import adapter_for
from harness.proof.conformance import tiny
from harness.proof.gate import command
from harness.report import views
from harness.runner import sweep
from harness.runner.evaluate import evaluate
from harness.runner.request import Request
from harness.runner.run import Options
from harness.store.sealed import SealedCell
from harness.store.store import Store
from harness.tables import sections as blocks

CENTRE = (Path(__file__).parents[1] / "examples" / "centre.py").read_text()
EDGE = CENTRE.replace("return -(", "return +(")


def measure(file: Path, results: Path, **asked: object) -> list[SealedCell]:
    """The pruned cells of a folder after one more evaluation."""
    evaluate(
        Request(f"{file}:Centre", budgets="32", tasks="pope", limit="18", **asked), Options(results), lambda _: None
    )
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
    commands = [evaluation(c.asked, source=c.cell.method_source) for c in both]
    assert commands[0].startswith(f"make eval METHOD={file}:Centre BUDGET=32 ")
    assert "SET='boundary=1'" in commands[0]
    codes = [command.rpartition("  # code ")[2] for command in commands]
    assert codes == [c.cell.method_source for c in both], "the file has changed under its name since"
    assert next(c for c in Store(tmp_path / "results").cells() if c.cell.method == "none").asked.method == "none"
    (section,) = blocks.sections(blocks.distinct(Store(tmp_path / "results").cells()))
    names = {line.name for block in section.blocks() for line in block.lines} - {"none"}
    assert names == {f"centre method_source={c.cell.method_source}" for c in both}, (
        "they are not two seeds of one method"
    )
    (protocol,) = views.protocols(Store(tmp_path / "results").cells())
    assert set(views.lines(protocol).values()) - {"none"} == names


def test_two_files_that_call_their_method_alike_are_asked_apart(tmp_path: Path) -> None:
    """In one sweep, in one pass, and again by two processes."""
    for name, text in (("a", CENTRE), ("b", EDGE)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(text)
    methods = "".join(f"  - {{method: {tmp_path / name / 'mine.py'}:Centre}}\n" for name in "ab")
    (tmp_path / "sweep.yaml").write_text(
        f"models: [mini]\ntasks: [pope]\nlimit: 18\nbudgets: [32]\nmethods:\n{methods}"
    )
    kept = []
    for workers in (1, 2):
        results = tmp_path / f"results{workers}"
        sweep.run(sweep.load(tmp_path / "sweep.yaml"), Options(results), lambda _: None, workers=workers)
        found = {
            c.cell.method_source: c.samples().set_index("key")["keeps"]
            for c in Store(results).cells()
            if c.cell.method == "centre"
        }
        assert len(found) == 2
        kept.append(found)
    one, other = kept[0].values()
    assert not one.equals(other)
    assert all(kept[0][source].equals(kept[1][source]) for source in kept[0])


def test_a_helper_that_is_imported_counts_and_a_stranger_beside_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for number, (name, text) in enumerate(
        (("helper", "SIGN = 1\n"), ("helper", "SIGN = -1\n"), ("stranger", "X = 1\n"))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "helper.py").write_text("SIGN = 1\n")
        (folder / f"{name}.py").write_text(text)
        (folder / "mine.py").write_text(
            "from helper import SIGN\n" + CENTRE.split('"""', 2)[2].replace("return -(", "return -SIGN * (")
        )
        with pytest.raises(
            PrunebenchError,
            match=rf"No module named 'helper' \(mine.py, line 1\); it lies beside the file: set PYTHONPATH={folder}",
        ):
            method_class(f"{folder / 'mine.py'}:Centre")
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(folder))
            found.append(source_of(method_class(f"{folder / 'mine.py'}:Centre")))
            del sys.modules["helper"]
    assert found[0] == found[2] != found[1]


def test_an_edited_or_added_file_in_methods_is_not_ours_as_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fastv = method_class("fastv")
    file = Path(__file__).parents[2] / "methods" / "shipped.json"
    known = json.loads(file.read_text())
    assert set(known) == {f"methods.{p.stem}" for p in file.parent.glob("*.py")} - {"methods.__init__"}
    uniform = method_class("uniform")
    monkeypatch.setattr("harness.method.source._SHIPPED_FILES", tmp_path / "shipped.json")
    for cls, edited in ((fastv, "methods.fastv"), (uniform, "methods.uniform"), (uniform, "methods._select")):
        (tmp_path / "shipped.json").write_text(json.dumps(known | {edited: "0"}))
        monkeypatch.setattr("harness.method.source._SOURCES", {})
        assert source_of(cls) != SHIPPED, "its own code, and what it selects with"
    (tmp_path / "shipped.json").write_text(json.dumps(known | {"methods.uniform": "0"}))
    monkeypatch.setattr("harness.method.source._SOURCES", {})
    assert source_of(fastv) == SHIPPED, "whatever other methods are"
    assert source_of(uniform) != SHIPPED


def test_an_ablation_of_a_method_from_a_file_has_its_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(CENTRE)
    lines = "".join(
        f"  - {{name: b{i}, method: {tmp_path}/mine.py:Centre, budget: 32, knobs: {{boundary: {i}}}}}\n" for i in (0, 3)
    )
    file = tmp_path / "ablation.yaml"
    file.write_text(f"title: t\nsource: s\nlimit: 18\ntasks: [pope]\nvariants:\n{lines}")
    code, out, err = prunebench(capsys, monkeypatch, "ablate", str(file), "--results", str(tmp_path / "results"))
    assert code == 0, err
    rows = [line.split() for line in out.splitlines() if line.startswith("b")]
    assert [row[0] for row in rows] == ["b0", "b3"]
    assert float(rows[0][4]) == 32
    assert float(rows[1][4]) == 168
    file.write_text(file.read_text() + f"  - {{name: far, method: {tmp_path}/mine.py:Centre, budget: 0.01flops}}\n")
    code, out, err = prunebench(capsys, monkeypatch, "ablate", str(file), "--results", str(tmp_path / "none"))
    assert (code, out) == (2, ""), "nothing runs where one variant is out of reach"
    assert "variant 'far': centre with boundary=0 cannot cost 0.01" in err


def test_the_gate_takes_methods_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.py"
    file.write_text(CENTRE)
    config = tmp_path / "gate.yaml"
    config.write_text(f"models: [mini]\ntasks: [pope]\nlimit: 18\nbudgets: [32]\nmethods: [none, '{file}:Centre']\n")
    monkeypatch.setattr(command, "changed_files", lambda _: [])
    baseline, out, said = tmp_path / "baseline.json", tmp_path / "out", []
    command.renew(config, baseline, out, say=lambda _: None)
    assert command.regress(config, baseline, out, say=lambda _: None).passed
    file.write_text(EDGE)
    assert not command.regress(config, baseline, out, say=said.append).passed
    assert f"make baseline CONFIG={config} BASELINE={baseline}" in "\n".join(said)
    (tmp_path / "other.py").write_text(EDGE)
    config.write_text(
        f"models: [mini]\ntasks: [pope]\nlimit: 18\nbudgets: [32]\nmethods: ['{file}:Centre',"
        f" '{tmp_path}/other.py:Centre']\n"
    )
    with pytest.raises(PrunebenchError, match="are both called 'centre'"):
        command.regress(config, baseline, out, say=lambda _: None)


def test_two_versions_of_a_method_are_never_one_line(tmp_path: Path) -> None:
    """Where no task and no budget has both: a knob that differs like that would not split a line."""
    seen = [("none", "none", "gqa", ""), ("none", "none", "pope", "")]
    seen += [("mine", "64", "gqa", "aaaa"), ("mine", "64", "pope", "bbbb"), ("mine", "32", "pope", "aaaa")]
    cells = [
        answered(tmp_path, m, b, [1.0, 0.0] * 6, t, **({"method_source": code} if code else {}))
        for m, b, t, code in seen
    ]
    (section,) = blocks.sections(blocks.distinct(cells))
    found = {
        (line.name, line.budget): sorted(line.cells)
        for block in section.blocks()
        for line in block.lines
        if line.method == "mine"
    }
    a, b = ("mine method_source=aaaa", "mine method_source=bbbb")
    assert found == {(a, "64"): ["gqa"], (b, "64"): ["pope"], (a, "32"): ["pope"]}
    assert {s.name: [line.budget for line in s.lines] for s in section.series() if s.method == "mine"} == {
        a: ["64", "32"],
        b: ["64"],
    }
    alone = blocks.sections(blocks.distinct(cells[:3]))[0]
    assert [s.name for s in alone.series()] == ["mine", "none"], "one version needs no name"


def test_a_class_without_a_file_is_refused() -> None:
    """As in a notebook: an edit of its cell would go unseen, and it is no code of ours."""
    code = CENTRE + "\nfrom harness.method import source_of\nprint(source_of(Centre))\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 1
    assert "Centre: expected a class in a file, whose code its results are filed under: put it in one" in done.stderr


def test_what_was_imported_counts_and_not_what_stands_in_the_file_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sign.py").write_text("SIGN = 1\n")
    (tmp_path / "mine.py").write_text(
        "from sign import SIGN\n" + CENTRE.split('"""', 2)[2].replace("return -(", "return -SIGN * (")
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    cls = method_class(f"{tmp_path / 'mine.py'}:Centre")
    (tmp_path / "sign.py").write_text("SIGN = -1\n")
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text() + "# edited\n")
    again = method_class(f"{tmp_path / 'mine.py'}:Centre")  # its module `sign` is still the one that was imported
    before = source_of(cls)
    del sys.modules["sign"]
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text() + "# once more\n")
    renewed = method_class(f"{tmp_path / 'mine.py'}:Centre")
    del sys.modules["sign"]
    assert len({before, source_of(again), source_of(renewed)}) == 3
    (tmp_path / "sign.py").write_text("SIGN = 1\n")
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text().replace("# edited\n# once more\n", ""))
    assert source_of(method_class(f"{tmp_path / 'mine.py'}:Centre")) == before


def test_a_base_from_another_file_counts_and_a_compiled_module_is_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for number, base in enumerate((CENTRE, EDGE)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "base.py").write_text(base)
        (folder / "mine.py").write_text(
            "from dataclasses import dataclass\nfrom harness.method import method_class\nBase ="
            f" method_class({str(folder / 'base.py:Centre')!r})\n\n@dataclass(frozen=True)\nclass Mine(Base):\n    name"
            " = 'mine'\n"
        )
        found.append(source_of(method_class(f"{folder / 'mine.py'}:Mine")))
    sources = [source_of(method_class(f"{tmp_path / str(number) / 'base.py'}:Centre")) for number in (0, 1)]
    assert len({*found, *sources}) == 4
    compiled = types.ModuleType("compiled")
    compiled.__file__ = str(tmp_path / "compiled.so")
    (tmp_path / "compiled.so").write_bytes(b"\0\1")
    monkeypatch.setitem(sys.modules, "compiled", compiled)
    (tmp_path / "fast.py").write_text("import compiled\n" + CENTRE)
    assert source_of(method_class(f"{tmp_path / 'fast.py'}:Centre")) != source_of(
        method_class(f"{tmp_path / '1' / 'base.py'}:Centre")
    )


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
        (('name = "centre"', ""), "expected a `name` of lower-case letters"),
        (('name = "centre"', 'name = "../up"'), "expected a `name` of lower-case letters"),
        (
            ("@dataclass(frozen=True)", "@dataclass(frozen=False)"),
            r"does not load: TypeError: cannot inherit non-frozen .* \(mine.py, line",
        ),
        (("@dataclass(frozen=True)\n", ""), "decorate the class with @dataclass"),
        (("Ranking", "Method"), "a budget sets the knob 'keep', and the class has no such field: add `keep: int`"),
        (("def score(self", "def score(self,,"), r"does not load: SyntaxError: .*\(mine.py, line \d+\)"),
        (
            ("from prunebench", "import torcj\nfrom prunebench"),
            r"does not load: ModuleNotFoundError: No module named 'torcj' \(mine.py, line 5\)",
        ),
    ],
)
def test_a_file_that_holds_no_method_is_refused_in_words(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    text = CENTRE.replace(*change)
    assert text != CENTRE
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(PrunebenchError, match=message):
        method_class(f"{tmp_path / 'mine.py'}:Centre")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tests/examples/centre.py", "is a file: name the class in it as well, as in tests/examples/centre.py:Class"),
        (":Centre", "expected path/to/file.py:Class or package.module:Class"),
        ("nowhere/mine.py:Centre", r"/nowhere/mine.py does not exist"),
        ("tests/examples/centre.py:Center", "called 'Center', found Centre in it"),
        ("no_such_module:Centre", "does not load: ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_a_name_that_is_no_method_is_refused_in_words(spec: str, message: str) -> None:
    with pytest.raises(PrunebenchError, match=message):
        method_class(spec)


def test_show_names_the_file_in_what_it_suggests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(CENTRE)
    (cell,) = measure(file, tmp_path)
    key = cell.samples()["key"].iloc[0]
    code, _, err = prunebench(
        capsys, monkeypatch, "show", "--results", str(tmp_path), "--sample", key, "--method", "centre", "--budget", "64"
    )
    assert code == 2
    assert f"METHOD={file}:Centre BUDGET=64" in err
    code, out, err = prunebench(
        capsys, monkeypatch, "show", "--results", str(tmp_path), "--sample", key, "--method", f"{file}:Centre"
    )
    assert code == 0, err
    assert "centre at 32" in out
    code, _, err = prunebench(
        capsys, monkeypatch, "show", "--results", str(tmp_path), "--sample", key, "--method", "fastv"
    )
    assert code == 2
    assert "METHOD=fastv BUDGET=32" in err


FROM_A_FILE = CENTRE.replace('    name = "centre"', '    name = "centre"\n    table: Path = Path("absent")')


def test_a_file_given_as_a_knob_is_part_of_the_cell(tmp_path: Path) -> None:
    usual = tiny_usual()
    (tmp_path / "mine.py").write_text(f"from pathlib import Path\n{FROM_A_FILE}")
    cls, table = method_class(f"{tmp_path}/mine.py:Centre"), tmp_path / "table.txt"
    found = []
    for content in ("1", "-1", "1"):
        table.write_text(content)
        found.append(build(cls, Budget("kept", 16), {"table": str(table)}, usual).knobs())
    assert found[0] == found[2] != found[1]
    assert found[0]["table"] == {"file": "table.txt", "sha256": hashlib.sha256(b"1").hexdigest()}
    assert make_cell(knobs=found[0]).identity() != make_cell(knobs=found[1]).identity()
    for wrong in (tmp_path, tmp_path / "absent", "a\0b", ""):
        with pytest.raises(PrunebenchError, match=r"centre: knob table=.* is not valid"):
            build(cls, Budget("kept", 16), {"table": str(wrong)}, usual)
    table.unlink()
    with pytest.raises(PrunebenchError, match="expected a file that can be read"):
        cls(keep=16, table=table).knobs()  # type: ignore[call-arg]


def tiny_usual() -> PromptShape:
    return adapter_for(tiny.tiny_model()).usual
