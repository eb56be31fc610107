"""How a request flows: its words are read at one door, and one evaluation takes few stops from the command to the
table."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path
from types import FrameType

import pytest
from helpers import run

from harness.runner.execute import Work
from harness.runner.jobs import Job
from harness.runner.request import Checked, Request
from harness.runner.setting import Setting

ROOT = Path(__file__).resolve().parents[2]
#: the door, and the commands in front of it, which have words of a user in hand; every other module is behind it
ABOVE = (
    "cli",
    "library",
    "plugin",
    "analysis",
    "bench",
    "proof.gate",
    "proof.gate_faults",
    "proof.faults",
    "report",
    "upkeep.migrate",  # asks again what a cell of before was asked
    "library.pruning",  # the door of programs
    "runner.request",
    "runner.evaluate",
    "runner.sweep",
    "runner.ablations",
)
#: what reads a user's words: modules and classes, with their functions
READERS = {
    ("budget", "parse"),
    ("budget", "amount"),
    ("DataSource", "parse"),
    ("request", "parse_limit"),
    ("sources", "source_of_data"),
    ("request", "listed"),
}
#: what reads such words behind the door after all, and why
EXCEPTIONS = {
    (
        "method.build",
        "amount",
    ): "only the type of a method's knob tells that its value is an amount of tokens; the door calls it",
    (
        "gpu_check.house",
        "budgets.parse",
    ): "the arms are the check's own, written down in gpu_check/plan.py, and no user's",
    (
        "gpu_check.fixture",
        "DataSource.parse",
    ): "the answers that are committed are those of the mini data, whatever a user asks",
    (
        "proof.recomputed",
        "source_of_data",
    ): "a sealed cell holds the words of its request, and its data are found again",
    (
        "tables.sides",
        "budgets.parse",
    ): "a side of a comparison is words for cells that are sealed, and the command and Python read them alike",
    ("proof.recomputed", "parse_limit"): "a sealed cell holds the words of its request, and its questions are, too",
    ("proof.foreign_request", "parse_limit"): "a sealed cell holds the words of its request, which may be untrue",
    ("proof.foreign_request", "DataSource.parse"): "the folder of who checks, or the embedded data, by fingerprint",
    ("proof.foreign_request", "budgets.parse"): "the budget of a sealed cell, to compare with its knobs",
}
MOST_STOPS = 25


def readers(source: str) -> list[str]:
    """What a module's source does that only the door may do: name `Request`, or call what reads a budget, a limit or a
    data source."""
    found = []
    tree = ast.parse(source)
    alias: dict[str, str] = {}  # name here -> module of ours, or "module.name" of what comes from one
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("harness", "tasks"):
            alias |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            alias |= {a.asname or a.name: a.name for a in node.names}
    for node in ast.walk(tree):
        if (isinstance(node, ast.Name) and node.id == "Request") or (
            isinstance(node, ast.Attribute) and node.attr == "Request"
        ):
            found.append(f"line {node.lineno} names Request")
        if isinstance(node, ast.ImportFrom) and any(a.name == "Request" for a in node.names):
            found.append(f"line {node.lineno} imports Request")
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.strip() == "Request":
            found.append(f"line {node.lineno} names Request")
        if isinstance(node, ast.Attribute | ast.Name):
            written = ast.unparse(node)
            first, _, rest = written.partition(".")
            whole = ".".join(filter(None, [alias.get(first, first), rest])).split(".")
            if tuple(whole[-2:]) in READERS:
                found.append(f"line {node.lineno} reads a user's words: {written}")
    return found


def above(module: str) -> bool:
    return any(f"{module}.".startswith(f"{name}.") for name in ABOVE)


def below() -> dict[str, Path]:
    """The modules behind the door, those in folders too, by name without `harness.`: "method.build", "method" for its
    __init__.py."""
    files = sorted((ROOT / "harness").rglob("*.py"))
    names = {
        ".".join(file.relative_to(ROOT / "harness").with_suffix("").parts).removesuffix("__init__").rstrip("."): file
        for file in files
    }
    return {name: file for name, file in names.items() if name and not above(name)}


@pytest.mark.parametrize("module", below())
def test_nothing_behind_the_door_reads_a_users_words(module: str) -> None:
    importlib.import_module(f"harness.{module}")
    allowed = tuple(f" reads a user's words: {written}" for name, written in EXCEPTIONS if name == module)
    found = readers(below()[module].read_text())
    assert [line for line in found if not line.endswith(allowed)] == []
    for said in allowed:
        assert any(line.endswith(said) for line in found), (
            f"harness.{module} no longer{said}: take it out of the exceptions"
        )


def test_the_walls_are_where_they_are_said_to_be() -> None:
    for name in ABOVE:
        file = ROOT / "harness" / name.replace(".", "/")
        assert file.is_dir() or file.with_suffix(".py").is_file(), "a module that is gone is on no side"
    assert {
        "runner.run",
        "runner.execute",
        "runner.launch.processes",
        "runner.jobs",
        "runner.setting",
        "store.store",
    } <= set(below())
    assert {
        "method",
        "method.build",
        "method.ranking",
        "models.adapters.llava",
        "gpu_check.house",
        "gpu_check.__main__",
    } <= set(below())
    assert {module for module, _ in EXCEPTIONS} <= set(below()), "an exception for a module that is gone"
    assert readers((ROOT / "harness" / "runner" / "request.py").read_text()), "the door reads them"


@pytest.mark.parametrize(
    "source",
    [
        "from harness.core import budget as budgets\nbudgets.parse('64')",
        "from harness.core.budget import parse\nparse('64')",
        "from harness.core.budget import amount\namount('25%')",
        "import harness.core.budget\nharness.core.budget.parse('64')",
        "from harness.core.budget import parse as read\nread('64')",
        "from tasks.sources import DataSource\nDataSource.parse('mini')",
        "from tasks import sources\nsources.DataSource.parse('mini')",
        "from harness.runner.request import parse_limit\nparse_limit('3', None)",
        "from harness.runner import request\nrequest.parse_limit('3', None)",
        "def f(request: 'Request') -> None: ...",
        "from harness.runner.request import Request as R",
        "from harness.runner import request\nrequest.Request('none')",
    ],
)
def test_a_reader_is_found(source: str) -> None:
    assert readers(source)
    assert (
        readers(
            "from harness.core.budget import Budget\nimport ast\nast.parse('64')\nparser.parse(x)\nasked ="
            " setting.asked"
        )
        == []
    )


def stops(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The functions of harness/ that are handed the request, a setting, several settings or what holds one while the
    command runs."""
    found: set[str] = set()
    folder = str(ROOT / "harness")

    def carries(value: object) -> bool:
        if isinstance(value, list | tuple) and value:
            value = value[0]
        return isinstance(value, Request | Checked | Setting | Job | Work)

    def watch(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(folder):
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            if any(carries(frame.f_locals.get(name)) for name in names):
                found.add(f"{Path(code.co_filename).stem}.{code.co_qualname}")

    sys.setprofile(watch)
    try:
        code, _, err = run(capsys, monkeypatch, *arguments)
    finally:
        sys.setprofile(None)
    assert code == 0, err
    return found


def test_one_evaluation_takes_few_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ("eval", "--method", "first", "--budget", "64", "--tasks", "pope", "--limit", "9", "--results", str(tmp_path))
    found = stops(ask, capsys, monkeypatch)
    assert {"evaluate.evaluate", "request.resolve", "run.run", "jobs.prepare"} <= found, "the walk was watched"
    assert len(found) <= MOST_STOPS, sorted(found)
