"""The registry of methods: ours in methods/, third parties' by entry point, a file's by `path/to/file.py:Class`."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType

import torch

from harness.core.errors import Interrupted, PrunebenchError, naming, unknown
from harness.method.interface import Method
from harness.method.ranking import Ranking
from harness.method.source import FILE_MODULE, in_file, source_of

_REGISTRY: dict[str, type[Method]] = {}
_PLUGINS_LOADED = False
ENTRY_POINT_GROUP = "prunebench.methods"
#: plug-ins that cannot be used, by name: why
BROKEN: dict[str, str] = {}
#: what no code of a method raised
NOBODYS = (Interrupted, KeyboardInterrupt)


def register(cls: type[Method]) -> type[Method]:
    """Class decorator: enrol a method under its `name`. A clash raises.

    A class of a notebook or of text that was executed prunes like any other. Results are filed for a class in a file
    only.
    """
    _check_class(cls)
    _REGISTRY[cls.name] = cls
    return cls


def _check_class(cls: type[Method]) -> None:
    """Raise PrunebenchError for a class that cannot be a method, and for a name that another method has."""
    where = f"{cls.__module__}.{cls.__qualname__}"
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.+-]*", cls.name):
        raise PrunebenchError(
            f"{where}: expected a `name` of lower-case letters, digits, _ . + and -, found {cls.name!r}"
        )
    # a subclass of a dataclass looks like one without being one
    if "__dataclass_params__" not in vars(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise PrunebenchError(
            f"{where}: a method is a frozen dataclass; decorate the class with @dataclass(frozen=True)"
        )
    if cls.traits.image_only and (cls.traits.query_aware or cls.traits.random):
        raise PrunebenchError(
            f"{where}: its traits say image_only, and query_aware or random as well: it cannot be both, drop one"
        )
    _check_interface(cls, where)
    knobs = {f.name for f in dataclasses.fields(cls)}
    if in_file(cls):  # a notebook's class prunes, and files no results: `source_of` refuses it
        source_of(cls)  # of what was just imported, not of what may stand in the file by the time a result is filed
    lacking = [knob for knob in cls.budget_knobs if knob not in knobs]
    if lacking:
        raise PrunebenchError(
            f"{where}: a budget sets the knob {lacking[0]!r}, and the class has no such field: add `{lacking[0]}: int`,"
            " or set `budget_knobs` to the fields that a budget sets, () for none, and override at_budget"
        )
    if issubclass(cls, Ranking) and cls.score is Ranking.score:
        raise PrunebenchError(
            f"{where}: a Ranking needs a method score(self, run, stream) -> (b, v): a number for each visual token"
        )
    other = _REGISTRY.get(cls.name)
    if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        both = f"{other.__module__}.{other.__qualname__} and {where}"
        raise PrunebenchError(f"two methods are called {cls.name!r}: {both}; give one of them another `name`")


#: what 0.1 called otherwise: hook, how 0.2 calls it, what to write
_CHANGED = (
    ("plan", ("self", "prompt"), "prompt.n_visual, prompt.n_text and prompt.depth stand for shape and n_text"),
    ("plan_scoring", ("self", "prompt", "visual"), "prompt.decoder and prompt.n_text stand for shape and n_text"),
)


def _check_interface(cls: type[Method], where: str) -> None:
    """Raise PrunebenchError for a class written for the interface of prunebench 0.1, saying what to change."""
    for hook, wanted, write in _CHANGED:
        found = tuple(inspect.signature(getattr(cls, hook)).parameters)
        if len(found) != len(wanted):
            now, was = f"{hook}({', '.join(wanted)})", f"{hook}({', '.join(found)})"
            raise PrunebenchError(
                f"{where}: expected {now}, found {was} as in prunebench 0.1: {write}; see docs/migrating.md"
            )
    if hasattr(cls, "plan_with"):
        now = (
            "knobs that force what the prompt decides, named by choices(self, shape), and plan(self, prompt) under them"
        )
        raise PrunebenchError(f"{where}: expected {now}, found plan_with as in prunebench 0.1; see docs/migrating.md")


def registered() -> dict[str, type[Method]]:
    """All methods by name: ours, and third parties' through the entry-point group `prunebench.methods`."""
    global _PLUGINS_LOADED
    if not _PLUGINS_LOADED:
        _PLUGINS_LOADED = True
        import methods  # noqa: F401  (importing it registers every file in methods/)

        for point in sorted(metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda one: (one.name, one.value)):
            _load_plugin(point)
    return dict(sorted(_REGISTRY.items()))


def _load_plugin(point: metadata.EntryPoint) -> None:
    """Enrol the method of an entry point. One that cannot be is remembered under its name: only who asks for it
    fails."""
    package = f"the package {point.dist.name}" if point.dist else "a package"
    where = f"plug-in {point.name!r} of {package} ({point.value})"
    before = dict(_REGISTRY)
    try:
        with blaming(where), naming(where):
            loaded = point.load()
            if not (isinstance(loaded, type) and issubclass(loaded, Method)):
                if isinstance(loaded, ModuleType):  # a module enrols its methods with `register`
                    return
                raise PrunebenchError(f"expected a subclass of prunebench.Method, found {loaded!r:.80}")
            register(loaded)
    except PrunebenchError as error:
        _REGISTRY.clear()
        _REGISTRY.update(before)  # nothing of a module that broke half way
        BROKEN[point.name] = str(error)


def method_class(name: str | type[Method]) -> type[Method]:
    """The method registered under `name`, or the class behind `path/to/file.py:Class` or `package.module:Class`.

    A class is checked and comes back itself.
    """
    if isinstance(name, type):
        if not issubclass(name, Method):
            raise PrunebenchError(f"expected a subclass of prunebench.Method, found {name!r}")
        registered()
        _check_class(name)
        return name
    if ":" in name:
        return _load(name)
    known = registered()
    if name.endswith(".py"):
        raise PrunebenchError(f"{name!r} is a file: name the class in it as well, as in {name}:Class")
    if name not in known and name in BROKEN:
        raise PrunebenchError(f"{BROKEN[name]}: mend or uninstall the package")
    if name not in known:
        raise unknown("method", name, known)
    return known[name]


def _load(spec: str) -> type[Method]:
    where, _, attribute = spec.rpartition(":")  # a path may hold colons, a class's name none
    is_file = where.endswith(".py")
    if not where or not attribute.isidentifier() or not (is_file or all(map(str.isidentifier, where.split(".")))):
        raise PrunebenchError(f"{spec!r}: expected path/to/file.py:Class or package.module:Class")
    if is_file and not Path(where).is_file():
        what = "is no file" if Path(where).exists() else "does not exist"
        raise PrunebenchError(f"expected a Python file before ':' in {spec!r}; {Path(where).absolute()} {what}")
    try:
        module = (
            _file_module(Path(where).resolve(), Path(where).read_bytes()) if is_file else importlib.import_module(where)
        )
    except NOBODYS:
        raise
    except BaseException as error:
        beside = (
            isinstance(error, ModuleNotFoundError)
            and error.name
            and Path(where).with_name(f"{error.name}.py").is_file()
        )
        hint = f"; it lies beside the file: set PYTHONPATH={Path(where).parent}" if beside else ""
        raise PrunebenchError(f"{spec!r} does not load: {raised(error)}{hint}") from error
    cls = getattr(module, attribute, None)
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        there = [n for n, c in vars(module).items() if isinstance(c, type) and c.__module__ == module.__name__]
        own = [n for n in there if issubclass(vars(module)[n], Method)]
        found = f"{cls!r}" if hasattr(module, attribute) else f"{', '.join(own) or 'no method'} in it"
        raise PrunebenchError(f"{spec!r}: expected a subclass of prunebench.Method called {attribute!r}, found {found}")
    registered()
    _check_class(cls)
    return cls


@contextmanager
def blaming(who: str) -> Iterator[None]:
    """Whatever a method's own code raises, SystemExit included, as a PrunebenchError: `who`, and where in its file."""
    try:
        yield
    except (PrunebenchError, torch.OutOfMemoryError, *NOBODYS):
        raise
    except BaseException as error:
        raise PrunebenchError(f"{who}: {raised(error)}") from error


def raised(error: BaseException) -> str:
    """What went wrong and where, in one line: `IndexError: ... (mine.py, line 12)`."""
    frames = traceback.extract_tb(error.__traceback__)
    # neither ours, nor of Python or a package
    others = (str(Path(__file__).parents[1]), str(Path(ast.__file__).parent), "<frozen ")
    own = [f for f in frames if not f.filename.startswith(others) and "site-packages" not in f.filename]
    if isinstance(error, SyntaxError):
        file, line = error.filename, error.lineno
    else:
        file, line = (own[-1].filename, own[-1].lineno) if own else (None, None)
    try:
        said = str(error).strip().splitlines()
    except Exception:  # a class of a method's own may not even print
        said = []
    place = f" ({Path(file).name}, line {line})" if file else ""
    return f"{type(error).__name__}{': ' + said[0] if said else ''}{'' if isinstance(error, SyntaxError) else place}"


@cache
def _file_module(file: Path, _content: bytes) -> ModuleType:
    """The module in a file, loaded once for what is in it; files of one name in two folders are two modules."""
    name = f"{FILE_MODULE}{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    found = importlib.util.spec_from_file_location(name, file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
