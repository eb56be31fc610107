"""YAML files that people write, read as they wrote them: what YAML 1.1 would make something else of is text or refused.

A number is decimal, `true` and `false` are the only truth values, and everything else is text: `no`, `1:30`, `0x1F`,
dates. Refused, with file and line: a key given twice, merge keys, tags, numbers that begin with 0, deep nesting and
aliases that swell.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ValidationError

from harness.core.errors import PrunebenchError, unknown
from harness.core.shown import one_line

#: bytes of a file, levels of nesting, and values once every alias stands for what it names: far beyond any real file
LARGEST, DEEPEST, MOST = 1_000_000, 20, 20_000
#: clauses of one error
FEW = 5
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}
_WHOLE = re.compile(r"[-+]?[0-9]+")
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


def _no_truth(value: Any) -> Any:
    """Python counts with truth values, a person does not."""
    if isinstance(value, bool):
        raise ValueError(f"expected a number, found {str(value).lower()}")
    return value


#: fields of a file
Whole = Annotated[int, BeforeValidator(_no_truth)]
WholeOrText = Annotated[str | int, BeforeValidator(_no_truth)]
Number = Annotated[float, BeforeValidator(_no_truth)]


class _Loader(yaml.SafeLoader):
    """Composes what is asked for and nothing that would grow without bound."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if not isinstance(event, yaml.AliasEvent) and event.tag not in (None, "!"):
            raise _wrong("a tag: write the value alone, in quotes where it is text", event.start_mark)
        self.depth += 1
        if self.depth > DEEPEST:
            raise _wrong(f"values nested more than {DEEPEST} deep", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _size(node, {})
        return node


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """The values below a node, each alias counted as what it names. Raises for a node within itself, and too many."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise _wrong("an alias inside of what it names", node.start_mark)
        return known[id(node)]
    known[id(node)] = 0
    below: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        below = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        below = node.value
    known[id(node)] = 1 + sum(_size(part, known) for part in below)
    if known[id(node)] > MOST:
        raise _wrong(f"more than {MOST:,} values: aliases multiply what they name", node.start_mark)
    return known[id(node)]


def _wrong(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _scalar(loader: _Loader, node: yaml.ScalarNode) -> Any:
    text = str(node.value)
    if node.style is not None:  # quoted, or a block
        return text
    if text.lower() in _WORDS and text in (text.lower(), text.upper(), text.capitalize()):
        return _WORDS[text.lower()]
    if not _NUMBER.fullmatch(text):
        return text
    digits = text.lstrip("+-")
    if len(digits) > 1 and digits[0] == "0" and digits[1].isdigit():
        raise _wrong(f"{text[:20]} begins with 0: write it without, or in quotes where it is text", node.start_mark)
    if len(text) > 30:
        raise _wrong(f"a number of {len(text):,} characters", node.start_mark)
    number = int(text) if _WHOLE.fullmatch(text) else float(text)
    if not math.isfinite(number):
        raise _wrong(f"{text} is beyond all numbers", node.start_mark)
    return number


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.value:
        name = loader.construct_object(key, deep=True)
        if not isinstance(name, str):
            kind = "a list or a mapping" if isinstance(name, list | dict) else f"{key.value[:40]!r}, which is no text"
            raise _wrong(f"expected a name as key, found {kind}: put it in quotes", key.start_mark)
        if name == "<<":
            raise _wrong("a merge key (<<): write the keys out", key.start_mark)
        if name in found:
            raise _wrong(f"the key {name[:40]!r} stands twice", key.start_mark)
        found[name] = loader.construct_object(value, deep=True)
    return found


def _sequence(loader: _Loader, node: yaml.SequenceNode) -> list[Any]:
    return [loader.construct_object(value, deep=True) for value in node.value]


_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {
    yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG: _scalar,
    yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG: _mapping,
    yaml.resolver.BaseResolver.DEFAULT_SEQUENCE_TAG: _sequence,
}


def read(file: Path, what: str) -> dict[str, Any]:
    """The keys and values of a file. Raises PrunebenchError for one that is not `what` ("a sweep"), in one line that
    says at which line of the file."""
    try:
        if file.exists() and not file.is_file():
            raise PrunebenchError(f"{file}: not {what}: expected a file, found a folder or a device")
        if file.stat().st_size > LARGEST:
            raise PrunebenchError(f"{file}: not {what}: expected at most {LARGEST:,} bytes of YAML")
        data = file.read_bytes()
        body = yaml.load(data.decode("utf-8-sig"), _Loader)
    except OSError as error:
        raise PrunebenchError(f"{file}: not {what}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise PrunebenchError(f"{file}, line {line}: not {what}: expected text as UTF-8, found other bytes") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f", line {mark.line + 1}" if mark else ""
        problem = one_line(" ".join(filter(None, [error.context, error.problem])))
        raise PrunebenchError(f"{file}{at}: not {what}: {problem}") from None
    except yaml.YAMLError as error:
        raise PrunebenchError(f"{file}: not {what}: {one_line(error)}") from None
    if not isinstance(body, dict):
        found = "nothing" if body is None else f"one {'list' if isinstance(body, list) else 'value'}"
        raise PrunebenchError(f"{file}: not {what}: expected keys and values, found {found}")
    return body


def said(error: ValidationError, models: Mapping[str, type[BaseModel]]) -> str:
    """What does not fit, one clause per error. `models`: the class that holds the keys of a list ("methods"), and of
    the file ("")."""
    clauses = []
    found = error.errors()
    for one in found:
        if one["type"] == "too_short" and any(
            len(o["loc"]) > len(one["loc"]) and o["loc"][: len(one["loc"])] == one["loc"] for o in found
        ):
            continue  # a list whose entries were refused is not short
        *at, key = one["loc"] or ("",)
        where = ".".join(map(str, one["loc"]))
        if one["type"] == "extra_forbidden":
            known = models[str(at[0]) if at else ""].model_fields
            clauses.append(f"{'.'.join(map(str, at)) + ': ' if at else ''}{unknown('key', str(key), known)}")
        elif one["type"] == "missing":
            clauses.append(f"{where}: missing")
        else:
            message = one["msg"].replace("a valid tuple", "a list, as in [a, b]").removeprefix("Value error, ")
            clauses.append(
                f"{where + ': ' if where else ''}{message}" + (f"; found {str(one['input'])[:60]!r}" if where else "")
            )
    more = f"; and {len(clauses) - FEW} more" if len(clauses) > FEW else ""
    return "; ".join(clauses[:FEW]) + more
