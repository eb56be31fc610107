"""Which code a method is: the digest under which results of a third party's method, or of an edited one of ours, are
filed.

A change of a file in methods/ that moves no number is recorded with `prunebench dev shipped` in the same commit; one
that moves a number bumps `harness.core.cell.NUMERICS_VERSION` as well. Until then results of the edited file are filed
under its digest, apart from the released ones.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from pathlib import Path
from types import ModuleType

from harness.core.cell import SHIPPED
from harness.core.errors import PrunebenchError

#: modules in a file carry this before the file's name
FILE_MODULE = "prunebench_method_"
#: ours, whose changes of a number `numerics_version` names: no part of a method's own code
OWN = ("harness", "prunebench")
_SOURCES: dict[type, str] = {}
_DIGESTS: dict[tuple[int, str], tuple[ModuleType, str]] = {}
_SHIPPED_FILES = Path(__file__).resolve().parents[2] / "methods" / "shipped.json"


def source_of(cls: type) -> str:
    """Names the code of a method: `SHIPPED` for ours as released, else 12 hex of SHA-256 over the Python files behind
    it.

    Those are the files of the class and its bases and what they import outside functions, except Python's own,
    installed packages and the harness; of a package, all its files. Ours are as released if they are as
    methods/shipped.json says. Raises PrunebenchError for a class without a file, as in a notebook.
    """
    if cls not in _SOURCES:
        digests: dict[str, str] = {}
        for base in _bases(cls):
            if not _has_file(base):
                raise PrunebenchError(
                    f"{base.__qualname__}: expected a class in a file, whose code its results are filed under: put it"
                    f" in one and name it as path/to/file.py:{base.__qualname__}"
                )
            _add_files(base.__module__, digests, installed=True)
        known = json.loads(_SHIPPED_FILES.read_text())
        released = all(known.get(name) == digest for name, digest in digests.items())
        _SOURCES[cls] = (
            SHIPPED if released else hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:12]
        )
    return _SOURCES[cls]


def in_file(cls: type) -> bool:
    """Whether a class and its bases stand in files; false for a class of a notebook, or of text that was executed."""
    return all(map(_has_file, _bases(cls)))


def _bases(cls: type) -> list[type]:
    """The class and its bases, without ours and Python's own."""

    def python_has(base: type) -> bool:  # text that is executed may call its module "builtins"
        return getattr(sys.modules.get(base.__module__), base.__name__, None) is base

    return [
        base
        for base in cls.__mro__
        if (top := base.__module__.partition(".")[0]) not in OWN
        and not (top in sys.stdlib_module_names and python_has(base))
    ]


def _has_file(cls: type) -> bool:
    return Path(getattr(sys.modules.get(cls.__module__), "__file__", None) or "").is_file()


def record_shipped() -> Path:
    """Declare the current files in methods/ as the released version: only if no result changes.

    A change that moves a result raises `NUMERICS_VERSION` as well."""
    files = sorted(p for p in _SHIPPED_FILES.parent.glob("*.py") if p.name != "__init__.py")
    _SHIPPED_FILES.write_text(json.dumps({f"methods.{p.stem}": _digest(p) for p in files}, indent=1) + "\n")
    return _SHIPPED_FILES


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def _digest_of(module: ModuleType, file: Path) -> str:
    """Of the file as it was when this module was first looked at: an edit changes the module only once it is imported
    again."""
    # the module is kept with it: its id would be another's one day
    return _DIGESTS.setdefault((id(module), str(file)), (module, _digest(file)))[1]


def _add_files(name: str, digests: dict[str, str], installed: bool = False) -> None:
    """Put the digest of a loaded module's file into `digests` under its name, with those that it imports; of a package,
    of all files.

    Installed packages count where the method is one of them.
    """
    module, top = sys.modules.get(name), name.partition(".")[0]
    where = getattr(module, "__file__", None)
    if module is None or where is None or top in (*OWN, "tasks") or top in sys.stdlib_module_names:
        return
    file = Path(where)
    if not installed and {"site-packages", "dist-packages"} & set(file.parts):
        return
    if name.startswith(FILE_MODULE):  # a name made from a path would tell folders apart
        name = f"{file.name} {_digest_of(module, file)}"
    if name in digests:
        return
    folders = () if top == "methods" else getattr(sys.modules[top], "__path__", ())
    for folder in folders:
        digests |= {f"{top}/{p.relative_to(folder)}": _digest_of(module, p) for p in Path(folder).rglob("*.py")}
    if folders:
        return
    digests[name] = _digest_of(module, file)
    todo = list(ast.parse(file.read_bytes()).body) if file.suffix == ".py" else []
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                _add_files(alias.name, digests)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for imported in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                _add_files(imported, digests)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo += ast.iter_child_nodes(node)  # type: ignore[arg-type]
