"""Calls of a task's aggregations that leave nothing behind: some of lmms-eval's count in their module from one call to
the next, print tables, and write files."""

from __future__ import annotations

import argparse
import contextlib
import copy
import inspect
import io
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy

#: values of a module that code counts in; others are not taken for its memory
_COUNTERS = (dict, list, set, int, float, bool, str, type(None))


def arguments(folder: str) -> argparse.Namespace:
    """lmms-eval's own command line as aggregations see it: media is not decoded once more, and files go to `folder`."""
    return argparse.Namespace(process_with_media=False, reasoning_tags=None, output_path=folder)


@contextlib.contextmanager
def unchanged(task: Any) -> Iterator[None]:
    """Afterwards the modules of a task's functions hold the values that they held before, as do the process's random
    numbers, of which some scoring takes or which it seeds; and nothing was printed."""
    generators = random.getstate(), numpy.random.get_state()
    places = {id(f.__globals__): f.__globals__ for f in _functions(vars(task.config)) if hasattr(f, "__globals__")}
    before = [(place, _counted(place)) for place in places.values()]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for place, values in before:
            place.update(values)
        random.setstate(generators[0])
        numpy.random.set_state(generators[1])


def _functions(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _functions(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _functions(one)
    elif hasattr(value, "__globals__"):
        yield value


def _counted(place: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of what a module may count in."""
    found = {}
    for name, value in place.items():
        if name.startswith("__") or not isinstance(value, _COUNTERS):
            continue
        with contextlib.suppress(Exception):  # what cannot be copied is no counter
            found[name] = copy.deepcopy(value)
    return found


def aggregate(task: Any, metric: str, items: Sequence[Any], folder: str) -> Any:
    """A metric of logged samples, as lmms-eval calls it."""
    function = task.aggregation()[metric]
    items = copy.deepcopy(list(items))
    if "args" in inspect.signature(function).parameters:
        return function(items, args=arguments(folder))
    return function(items)
