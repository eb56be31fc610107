"""Which tasks the installed lmms-eval has, by name: its YAML files, read without importing lmms-eval.

A file is resolved as lmms-eval resolves it: `include:` first, its own keys over them. What stands behind `!function`
stays a name here (`Function`); `tasks/upstream.py` has it imported by lmms-eval's own loader. A person names a task by
a word: `mmstar`, `mmstar:average` (its headline metric), `a_group`, `path/to/task.yaml`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from harness.core.errors import PrunebenchError, unknown
from harness.core.spelling import given

#: keys of a YAML that say where a task stands among others, and nothing of the task
PLACING = ("tag", "group", "group_alias", "task_alias")
#: what a group's entry for a member may hold beside the member's name
_GROUP_KEYS = frozenset({"group", "group_alias", "task", "task_alias", "tag", "aggregate_metric_list", "metadata"})
#: tokens of an answer where a task's file names no length: lmms-eval's own models take this for it
MAX_NEW_TOKENS = 1024
#: folders that lmms-eval passes over
_PASSED_OVER = ("__pycache__", ".ipynb_checkpoints")
_SUFFIX = ".yaml"


class Function(str):
    """The dotted name behind `!function`, and the folder of the file that names it."""

    folder: Path

    @classmethod
    def at(cls, name: str, folder: Path) -> Function:
        self = cls(name)
        self.folder = folder
        return self


class _TaskLoader(yaml.CSafeLoader):
    folder = Path()


def _function(loader: _TaskLoader, node: Any) -> Function:
    return Function.at(str(loader.construct_scalar(node)), loader.folder)


_TaskLoader.add_constructor("!function", _function)


def read_yaml(path: Path) -> dict[str, Any]:
    """One file as it stands, `include:` not yet followed. Raises PrunebenchError for what is no mapping in YAML."""
    try:
        with path.open("rb") as stream:
            loader = _TaskLoader(stream)
            loader.folder = path.parent
            try:
                body = loader.get_single_data()
            finally:
                loader.dispose()
    except OSError as error:
        raise PrunebenchError(f"{path}: expected a task as YAML, found {error.strerror or error}") from None
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise PrunebenchError(f"{path}: expected a task as YAML: {where}") from None
    if not isinstance(body, dict):
        raise PrunebenchError(f"{path}: expected a task as YAML, that is keys with values; found {type(body).__name__}")
    return body


def resolved(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file with everything that it includes. Raises PrunebenchError where an included file is missing or includes
    itself."""
    body = read_yaml(path)
    names = body.pop("include", None)
    found: dict[str, Any] = {}
    for name in reversed([names] if isinstance(names, str) else list(names or [])):
        other = path.parent / str(name)
        if not other.is_file() or other in (*seen, path):
            raise PrunebenchError(f"{path}: expected the file that it includes at {other}, found no such file; add it")
        found.update(resolved(other, (*seen, path)))
    return found | body


def upstream_folder() -> Path:
    """The folder `tasks` of the installed lmms-eval. Raises PrunebenchError where it is not installed."""
    spec = importlib.util.find_spec("lmms_eval")
    if spec is None or not spec.submodule_search_locations:
        raise PrunebenchError("expected the package lmms-eval, found none: see `prunebench doctor`")
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"


# ------------------------------------------------------------------------------------------------------------ the index


class Index(NamedTuple):
    """Files by the name of their task or group, and names of tasks by tag. A name is in one of them."""

    tasks: Mapping[str, Path]
    groups: Mapping[str, Path]
    tags: Mapping[str, tuple[str, ...]]
    """Also `group:` in the YAML of a task, as lmms-eval reads it."""
    classes: Mapping[str, Path]
    """Tasks that are a class of their own in Python."""
    members: Mapping[str, Sequence[Any]]
    """What the file of a group lists."""

    def names(self) -> Iterator[str]:
        yield from self.tasks
        yield from self.groups
        yield from self.tags
        yield from self.classes


@lru_cache(maxsize=8)
def index(folder: Path) -> Index:
    """Every YAML file below a folder, in the order in which lmms-eval walks it: of two with one name the later counts.

    lmms-eval's own 2,000 files take half a second. Raises PrunebenchError for a file that is no YAML.
    """
    tasks: dict[str, Path] = {}
    groups: dict[str, Path] = {}
    classes: dict[str, Path] = {}
    tags: dict[str, list[str]] = {}
    members: dict[str, Sequence[Any]] = {}
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _PASSED_OVER]
        for file in files:
            path = Path(root, file)
            if path.suffix != _SUFFIX:
                continue
            body = resolved(path)
            task, group = body.get("task"), body.get("group")
            if "class" in body:
                classes[str(task)] = path
            elif isinstance(task, list):
                groups[str(group)], members[str(group)] = path, task
            elif isinstance(task, str):
                tasks[task] = path
                for attribute in ("tag", "group"):
                    named = body.get(attribute) or []
                    for tag in [named] if isinstance(named, str) else named:
                        tags.setdefault(str(tag), []).append(task)
    kept = {tag: tuple(dict.fromkeys(some)) for tag, some in tags.items() if tag not in tasks and tag not in groups}
    return Index(tasks, groups, kept, classes, members)


# ------------------------------------------------------------------------------------------------------------ one task


@dataclass(frozen=True)
class NamedTask:
    """A task by its word: its file, and its configuration with functions by name."""

    word: str
    name: str
    """The task's own name; a headline that was named stands behind it, as cells and tables name the task."""
    file: Path
    shipped: bool
    """Whether it is one of the installed lmms-eval's."""
    headline: str | None = None
    """The metric that was named, as `metric` or `metric,filter`."""

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The resolved file. Raises PrunebenchError as `resolved`."""
        return resolved(self.file)

    @property
    def task(self) -> str:
        """The name in the file."""
        return str(self.config["task"])

    @property
    def split(self) -> str | None:
        """The split that is evaluated: the test split, else the one for validation."""
        return self.config.get("test_split") or self.config.get("validation_split")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics in the order of the file."""
        listed = self.config.get("metric_list") or []
        return tuple(str(entry["metric"]) for entry in listed if isinstance(entry, Mapping) and "metric" in entry)

    @property
    def usual_headline(self) -> str:
        """The first metric that is no file to be handed in elsewhere; "" where the file names none."""
        return next((m for m in self.metrics if "submission" not in m), next(iter(self.metrics), ""))

    @property
    def filters(self) -> tuple[str, ...]:
        """Names of the filters; lmms-eval's `none` where the file has none."""
        listed = self.config.get("filter_list") or []
        return tuple(str(entry["name"]) for entry in listed if isinstance(entry, Mapping)) or ("none",)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Every metric by the name that results have: with its filter where there are several."""
        if len(self.filters) == 1:
            return self.metrics
        return tuple(f"{metric},{name}" for metric in self.metrics for name in self.filters)

    @property
    def generation(self) -> Mapping[str, Any]:
        found = self.config.get("generation_kwargs")
        return found if isinstance(found, Mapping) else {}


def _split_word(word: str) -> tuple[str, str | None]:
    """`"mmstar:average"` -> name and headline; a second colon names a filter."""
    name, colon, metric = word.partition(":")
    return name.strip(), metric.strip().replace(":", ",") if colon else None


def looks_like_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) or os.sep in name


@cache
def _shipped(word: str, name: str, metric: str | None, file: Path) -> NamedTask:
    return _checked(NamedTask(word, _called(name, metric), file, True, metric))


def find(word: str) -> NamedTask:
    """The task that a word names: one of lmms-eval's, or a file. Groups are no task (`expand`).

    Raises PrunebenchError for an unknown name, a file that is no task, and a metric that the task has not.
    """
    name, metric = _split_word(word)
    if looks_like_file(name):
        file = Path(name).expanduser().resolve()
        body = resolved(file)
        if not isinstance(body.get("task"), str):
            raise PrunebenchError(f"{name}: expected a task, with its name as `task: NAME`; found {body.get('task')!r}")
        own = body["task"]
        if own in known_names():
            raise PrunebenchError(
                f"{name}: its task is called {own}, as one of lmms-eval's own: give it another name in the file"
                f" (`task: my_{own}`), for tables tell tasks apart by name"
            )
        return _checked(NamedTask(word, _called(own, metric), file, False, metric))
    shipped = index(upstream_folder())
    if name in shipped.classes:
        raise PrunebenchError(
            f"task {name}: it is a Python class of lmms-eval's, not a YAML file, and runs under its own command line"
            " only: choose another task"
        )
    if name not in shipped.tasks:
        raise unknown_task(name)
    return _shipped(word, name, metric, shipped.tasks[name])


def find_shipped(name: str) -> NamedTask:
    """lmms-eval's own task of a name, also of one that has a specification here."""
    return _shipped(name, name, None, index(upstream_folder()).tasks[_files.get(name, name)])


#: names of ours that lmms-eval has by another
_files = {"textvqa": "textvqa_val", "textvqa_ocr": "textvqa_val"}


def short(file: Path) -> str:
    """A file below lmms-eval's folder from there on; others in full."""
    top = upstream_folder().parent.parent
    return file.relative_to(top).as_posix() if file.is_relative_to(top) else str(file)


def _called(name: str, metric: str | None) -> str:
    return name if metric is None else f"{name}:{metric.replace(',', ':')}"


def _checked(task: NamedTask) -> NamedTask:
    if task.headline is not None and task.headline not in task.metric_names:
        raise PrunebenchError(
            f"task {task.task}: expected one of its metrics behind the colon, {', '.join(task.metric_names)};"
            f" found {task.headline!r}"
        )
    usual = task.usual_headline, f"{task.usual_headline},{task.filters[0]}"
    if task.headline in usual:  # the same task, and not another one beside it
        return replace(task, name=task.name.partition(":")[0], headline=None)
    return task


def known_names() -> frozenset[str]:
    """Tasks, groups and tags of the installed lmms-eval."""
    return frozenset(index(upstream_folder()).names())


def unknown_task(name: str, ours: Iterable[str] = ()) -> PrunebenchError:
    """The error for a name that no task has, with the nearest one. It lists no 2,000 names."""
    own = tuple(ours)
    text = str(unknown("task", name, {*known_names(), *own}))
    near = text.partition(" (known: ")[0].removesuffix("?")
    return PrunebenchError(
        f"{near}{'?' if 'mean' in near else ''} `prunebench tasks WORD` lists the tasks with WORD in their name"
    )


def stop_strings(generation: Mapping[str, Any]) -> tuple[str, ...]:
    """What the file of a task names under `until`. lmms-eval's own default, a blank line, is not taken over."""
    stops = generation.get("until") or ()
    return (stops,) if isinstance(stops, str) else tuple(map(str, stops))


def sampling(generation: Mapping[str, Any]) -> str:
    """How a task asks for answers to be drawn at random, for people; "" for greedy, which is what runs here."""
    asked = []
    # without a temperature transformers draws at 1; at 0 it does not draw
    if generation.get("do_sample") and generation.get("temperature", 1):
        asked = ["do_sample"]
        asked += [f"{key}={generation[key]}" for key in ("temperature", "top_p", "top_k") if generation.get(key)]
    if (generation.get("num_beams") or 1) != 1:
        asked.append(f"num_beams={generation['num_beams']}")
    return ", ".join(asked)


# -------------------------------------------------------------------------------------------------- groups and folders


def expand(words: Sequence[str], ours: Iterable[str] = (), include: Path | None = None) -> tuple[str, ...]:
    """Words of tasks, with groups and tags as their members, in order and once each.

    `ours` are names that are not lmms-eval's to look up. Names of tasks and groups in the folder `include` become words
    of files. Raises PrunebenchError for an unknown name, and for a group that changes its members.
    """
    own = frozenset(ours)
    included = None if include is None else _included(include)
    found: dict[str, None] = {}
    for word in words:
        name, metric = _split_word(word)
        members = [name] if name in own or looks_like_file(name) else _members(name, included, own, ())
        for member in members:
            found[member if metric is None else f"{member}:{metric.replace(',', ':')}"] = None
    return tuple(found)


def _included(folder: Path) -> Index:
    if not folder.is_dir():
        raise PrunebenchError(f"{given('include', folder)}: expected a folder with tasks as YAML, found no such folder")
    found = index(folder)
    twice = sorted(known_names() & set(found.tasks))
    if twice:
        raise PrunebenchError(
            f"{given('include', folder)}: {len(twice)} of its tasks have a name of lmms-eval's own, the first"
            f" {twice[0]}: give them other names (`task: my_{twice[0]}`)"
        )
    return found


def _members(name: str, included: Index | None, own: frozenset[str], above: tuple[str, ...]) -> list[str]:
    """The words of the tasks of a name, a group's or tag's one by one."""
    shipped = index(upstream_folder())
    if name in own:
        return [name]
    if included is not None and name in included.tasks:
        return [str(included.tasks[name])]  # as `include` was typed
    if name in shipped.tasks or name in shipped.classes:
        return [name]
    if name in above:
        raise PrunebenchError(f"group {name}: it holds itself, by way of {', '.join(above)}: name its tasks instead")
    for found in (included, shipped):
        if found is not None and name in found.groups:
            listed = [m for entry in found.members[name] for m in _member(name, entry)]
            return [task for m in listed for task in _members(m, included, own, (*above, name))]
        if found is not None and name in found.tags:
            return [task for m in found.tags[name] for task in _members(m, included, own, (*above, name))]
    raise unknown_task(name, (*own, *(included.names() if included else ())))


def _member(group: str, entry: Any) -> list[str]:
    """Names in an entry of a group's list, which is a name or a mapping."""
    if isinstance(entry, str):
        return [entry]
    task, extra = entry.get("task"), sorted(set(entry) - _GROUP_KEYS)
    if extra:
        raise PrunebenchError(
            f"group {group}: it changes its member {task} ({', '.join(extra)}): expected names alone; write the change"
            " into a YAML file of its own (`include: ...`) and name that file"
        )
    return [task] if isinstance(task, str) else [name for one in task or [] for name in _member(group, one)]
