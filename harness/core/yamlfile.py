"""YAML files that people write: a key given twice is refused, and errors say where they are and what would have
fitted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from harness.core.errors import PrunebenchError, unknown


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping: the last one would win, silently."""


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen = set()
    for key, _ in node.value:
        name = loader.construct_object(key, deep=True)
        if name in seen:
            raise yaml.MarkedYAMLError(problem=f"the key {name!r} stands twice", problem_mark=key.start_mark)
        seen.add(name)
    return loader.construct_mapping(node, deep)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read(file: Path, what: str) -> dict[str, Any]:
    """The keys and values of a file. Raises PrunebenchError for one that is not `what` ("a sweep")."""
    try:
        body = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError) as error:  # TypeError: a list as key
        raise PrunebenchError(f"{file}: not {what}: {error}") from None
    if not isinstance(body, dict) or not all(isinstance(key, str) for key in body):
        raise PrunebenchError(f"{file}: not {what}: expected keys and values, found {type(body).__name__}")
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
    return "; ".join(clauses)
