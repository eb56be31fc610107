"""Which tasks of lmms-eval send answers to a service to have them judged: read off their code, nothing is run.

A walk starts at the functions that score: `process_results`, the aggregation of each metric, the filters. It follows
every name that a function speaks of to functions, methods and values of the same module and of lmms-eval's modules that
are imported there. Methods are followed by name alone. It may find a service where none is called; it does not miss one
that a name leads to.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from harness.core.errors import PrunebenchError
from tasks.named import Function, NamedTask, upstream_folder

#: packages that speak to a service over the network
SERVICES = frozenset(
    {
        "aiohttp",
        "anthropic",
        "boto3",
        "dashscope",
        "genai",
        "google",
        "httpx",
        "ollama",
        "openai",
        "requests",
        "zhipuai",
    }
)
#: lmms-eval's own doors to a service
_DOORS = {
    "lmms_eval.llm_judge": frozenset({"get_server", "ProviderFactory", "ServerInterface"}),
    "lmms_eval.verifiers.openai": frozenset({"OpenAIVerifier"}),
}
#: what lmms-eval's doors read from the environment
_VARIABLES = ("API_TYPE", "OPENAI_API_KEY", "OPENAI_API_URL", "MODEL_VERSION")
#: names of settings; `YOUR_API_KEY` and the like stand where a value belongs
_SETTING = re.compile(r"(?!YOUR_)[A-Z][A-Z0-9_]*(KEY|TOKEN|URL|TYPE|VERSION|ENDPOINT|BASE)[A-Z0-9_]*")


class Judge(NamedTuple):
    """A service that a task's scoring reaches."""

    at: str
    """File and name, relative to the folder of lmms-eval or the task."""
    variables: tuple[str, ...]
    """Names in the environment that the code reads for it."""


@dataclass
class _Module:
    """What a file defines, by bare name, and what it imports."""

    path: Path
    nodes: dict[str, list[ast.AST]] = field(default_factory=dict)
    """Functions, methods and assigned values; also those of classes and of `self`."""
    services: dict[str, str] = field(default_factory=dict)
    """Imported name -> the package it speaks to."""
    imported: dict[str, tuple[Path, str | None]] = field(default_factory=dict)
    """Imported name -> lmms-eval's file and the name there; None for the module itself."""
    variables: list[str] = field(default_factory=list)


def judge(task: NamedTask) -> Judge | None:
    """The service that judges a task's answers; None where its code reaches none."""
    return _of_shipped(task) if task.shipped else _judge(task)


@cache
def _of_shipped(task: NamedTask) -> Judge | None:
    return _judge(task)


def _judge(task: NamedTask) -> Judge | None:
    for function in _roots(task.config):
        module, name = _place(function)
        if module is not None and (found := _walk(module, name)) is not None:
            return found
    return None


def _roots(config: Mapping[str, Any]) -> Iterator[Function]:
    """The functions that score."""
    for key in ("process_results", "doc_to_target"):
        if isinstance(config.get(key), Function):
            yield config[key]
    for entry in config.get("metric_list") or []:
        yield from (value for value in (entry or {}).values() if isinstance(value, Function))
    for entry in config.get("filter_list") or []:
        for part in (entry or {}).get("filter") or []:
            yield from (value for value in part.values() if isinstance(value, Function))


def _place(function: Function) -> tuple[Path | None, str]:
    """File and name of a function, as lmms-eval looks for it: beside the YAML, else as a module."""
    *parts, name = function.split(".")
    beside = function.folder / (".".join(parts) + ".py")
    if beside.is_file():
        return beside.resolve(), name
    return _file_of(".".join(parts)), name


def _file_of(dotted: str) -> Path | None:
    """The file of a module of lmms-eval; None for every other."""
    first, *rest = dotted.split(".")
    if first != "lmms_eval":
        return None
    base = upstream_folder().parent.joinpath(*rest)
    return next((f for f in (base.with_suffix(".py"), base / "__init__.py") if f.is_file()), None)


@cache
def _module(path: Path) -> _Module:
    found = _Module(path)
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise PrunebenchError(
            f"{path}: expected Python, found {getattr(error, 'msg', error)}" + (f" in line {line}" if line else "")
        ) from None
    lasting = {id(n) for owner in ast.walk(tree) if isinstance(owner, ast.Module | ast.ClassDef) for n in _own(owner)}
    shared = {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.nodes.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.ClassDef):
            made = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
            found.nodes.setdefault(node.name, []).extend([*made, *node.bases])
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                # a local name of one function is none of another's
                if isinstance(target, ast.Name) and (id(node) in lasting or target.id in shared):
                    found.nodes.setdefault(target.id, []).append(node.value)
                elif isinstance(target, ast.Attribute):
                    found.nodes.setdefault(target.attr, []).append(node.value)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                _import(found, alias.asname or alias.name.split(".")[0], alias.name, None)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                _import(found, alias.asname or alias.name, node.module, alias.name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _SETTING.fullmatch(node.value):
            found.variables.append(node.value)
    return found


def _own(owner: ast.AST) -> Iterator[ast.AST]:
    """What stands in a module or class itself, also below `if`, `try` and `with`, and in no function."""
    waiting = list(ast.iter_child_nodes(owner))
    while waiting:
        node = waiting.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield node
            waiting += ast.iter_child_nodes(node)


def _import(module: _Module, name: str, dotted: str, member: str | None) -> None:
    if member in _DOORS.get(dotted, ()) or dotted.split(".")[0] in SERVICES:
        module.services[name] = dotted
    elif (file := _file_of(dotted if member is None else f"{dotted}.{member}")) is not None:
        module.imported[name] = (file, None)
    elif member is not None and (file := _file_of(dotted)) is not None and dotted not in _DOORS:
        module.imported[name] = (file, member)


def _walk(start: Path, name: str) -> Judge | None:
    waiting: list[tuple[Path, str]] = [(start, name)]
    seen = set(waiting)
    while waiting:
        path, name = waiting.pop()
        module = _module(path)
        for spoken, whole in _spoken(module.nodes.get(name, ())):
            if spoken in module.services:
                return Judge(f"{_shown(path)}: {name}", _variables(module, module.services[spoken]))
            nexts = [(path, spoken)] if spoken in module.nodes else []
            if spoken in module.imported:
                file, member = module.imported[spoken]
                nexts += [(file, member)] if member else []
            if not whole:  # an attribute: of an object whose class may stand in any module that is imported here
                nexts += [(f, spoken) for f, _ in module.imported.values() if spoken in _module(f).nodes]
            fresh = [one for one in nexts if one not in seen]
            seen.update(fresh)
            waiting += fresh
    return None


def _spoken(nodes: Sequence[ast.AST]) -> Iterator[tuple[str, bool]]:
    """Names in code, and whether each is a name rather than an attribute. A call that asks for static rules by word
    (`eval_method="static"`) reaches no service, whatever else its function can."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Call) and any(
            isinstance(k.value, ast.Constant) and k.value.value == "static" for k in node.keywords
        ):
            continue
        if isinstance(node, ast.Name):
            yield node.id, True
        elif isinstance(node, ast.Attribute):
            yield node.attr, False
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name.split(".")[0], True
        waiting += ast.iter_child_nodes(node)


def _variables(module: _Module, service: str) -> tuple[str, ...]:
    named = [*module.variables, *(_VARIABLES if service in _DOORS else ())]
    return tuple(dict.fromkeys(named))


def _shown(path: Path) -> str:
    top = upstream_folder().parent.parent
    return path.relative_to(top).as_posix() if path.is_relative_to(top) else path.name
