"""The rooms of harness/: what each is for, which may import which, and how long a file may be."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import HEAVY, imported_with

ROOT = Path(__file__).resolve().parents[2]
#: room -> the rooms, and folders beside harness/, that it may import
ROOMS: dict[str, set[str]] = {
    "core": set(),
    "method": {"core", "methods"},
    "models": {"core", "method"},
    "engine": {"core", "method", "models"},
    "store": {"core"},
    "cost": {"core", "method", "models", "engine"},
    "tables": {"core", "store", "tasks"},
    "runner": {"core", "method", "models", "engine", "store", "tables", "tasks"},
    "plugin": {"core", "method", "models", "engine", "store", "runner", "tables", "tasks"},
    "report": {"core", "method", "store", "tables", "tasks"},
    "analysis": {"core", "method", "models", "engine", "runner", "tasks", "methods"},
    "bench": {"core", "method", "models", "engine", "cost", "runner"},
    "proof": {"core", "method", "models", "engine", "store", "runner", "analysis", "tasks", "methods"},
    "gpu_check": {"core", "method", "models", "engine", "store", "runner", "bench", "proof", "tasks"},
    "library": {"core", "method", "models", "engine", "store", "tables"},
    "upkeep": {"core", "method", "models", "store", "cost", "tables", "runner", "report", "proof", "install", "tasks"},
    "install": {"core", "method", "models", "store", "tasks"},
}
#: every room, and nothing imports it
TOP = "cli"
BESIDE: dict[str, set[str]] = {"methods": {"core", "method"}, "tasks": {"core"}}
#: rooms that work without torch, transformers and lmms-eval
TORCH_FREE = {"core", "store", "tables", "report"}
LONGEST = 500


def modules(*folders: str) -> Iterator[tuple[Path, str]]:
    """(file, dotted name) of every module below these folders of the repository."""
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield file, ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(source: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that a module imports, wherever in it; a name of a module as that module's."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("import_module")
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.lineno, str(node.args[0].value)


def room_of(name: str) -> str | None:
    """ "harness.core.cell.Cell" -> "core", "methods.fastv" -> "methods"; None for what is no room of ours."""
    first, *rest = name.split(".")
    if first == "harness":
        return rest[0] if rest else None
    return first if first in BESIDE else None


def forbidden(source: str, room: str) -> list[str]:
    """The imports of a module in `room` that its room may not make."""
    allowed = {**ROOMS, **BESIDE}[room] | {room}
    return [
        f"line {line}: {name}" for line, name in imported(source) if (other := room_of(name)) and other not in allowed
    ]


def test_every_folder_is_a_room_and_says_what_it_is_for() -> None:
    folders = {p.name for p in (ROOT / "harness").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders == {*ROOMS, TOP}
    assert {p.name for p in (ROOT / "harness").glob("*.py")} == {"__init__.py"}, "a module of harness/ lives in a room"
    for room in sorted(folders):
        purpose = ast.get_docstring(ast.parse((ROOT / "harness" / room / "__init__.py").read_text()))
        assert purpose, room
        assert purpose.splitlines()[0].endswith("."), (room, "one sentence says what the room is for")


@pytest.mark.parametrize("room", [*ROOMS, *BESIDE])
def test_a_room_imports_only_what_it_may(room: str) -> None:
    folder = room if room in BESIDE else f"harness/{room}"
    found = {name: wrong for file, name in modules(folder) if (wrong := forbidden(file.read_text(), room))}
    assert found == {}


def test_the_rules_have_no_circle() -> None:
    left = {room: {other for other in may if other in ROOMS} for room, may in ROOMS.items()}
    while left:
        free = [room for room, may in left.items() if not may & set(left)]
        assert free, f"these import one another: {sorted(left)}"
        for room in free:
            del left[room]


@pytest.mark.parametrize(
    "source",
    [
        "from harness.runner.run import run",
        "from harness.runner import run",
        "import harness.runner.run",
        "def f():\n    from harness.runner.run import run",
        "from tasks import sources",
        "import_module('harness.runner')",
    ],
)
def test_a_wrong_import_is_found(source: str) -> None:
    assert forbidden(source, "store")
    assert not forbidden(
        "from harness.core.errors import PrunebenchError\nfrom harness.store.lease import Lease\nimport os", "store"
    )


def test_some_rooms_work_without_torch() -> None:
    names = [name for room in sorted(TORCH_FREE) for _, name in modules(f"harness/{room}")]
    assert imported_with("".join(f"import {name}\n" for name in names), *HEAVY) == []


def test_no_file_is_long() -> None:
    long = {
        name: n
        for file, name in modules("harness", "methods", "tasks", "prunebench")
        if (n := len(file.read_text().splitlines())) > LONGEST
    }
    assert long == {}


def test_a_class_name_means_one_thing() -> None:
    found: dict[str, list[str]] = {}
    for file, name in modules("harness", "methods", "tasks"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(name)
    assert {cls: where for cls, where in found.items() if len(where) > 1} == {}
    assert found["Reduction"] == ["harness.method.interface"], "classes were found"
