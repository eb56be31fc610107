"""Any task of lmms-eval as samples: its rows from wherever they lie, its prompts, targets and images by its own code.

Rows keep the number that they have in the source, whatever `process_docs` does with them. Images are known by the hash
of their file and stay encoded (`tasks/unread.py`). Everything that the task's code would trip over after hours of
inference is tried here on every row: prompt, target and images, and the scoring with an answer of no worth. Where a
metric may be a mean of scores, the scoring is tried with each row's target as well.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import io
import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from lmms_eval.utils import load_yaml_config
from PIL import Image

from harness.core.errors import PrunebenchError
from harness.core.shape import Size
from tasks import judges, repository
from tasks.lmms import LoadedTask, RowsTask, Sample, choose, named_config, sha256
from tasks.named import MAX_NEW_TOKENS, PLACING, NamedTask, sampling, stop_strings
from tasks.pictures import SampleImage
from tasks.rules import rules_of
from tasks.sources import DataSource
from tasks.turns import user_turn
from tasks.unread import (
    EncodedImages,
    Origin,
    UnreadImage,
    encoded_rows,
    image_columns,
    named_rows,
    names_as_images,
    origins,
)

#: column with the number of a row in the source, while `process_docs` has the rows
_ROW = "prunebench_row"
#: keys that say where rows come from and in which order they are tried: the rows themselves are identified
_UNIDENTIFIED = ("dataset_path", "dataset_name", "dataset_kwargs", "process_docs", *PLACING)
#: an answer of no worth, to try the scoring with
_ANSWER = "?"


def load(task: NamedTask, source: DataSource, limit: int | None, seed: int) -> LoadedTask:
    """A task on a seeded subset of whole images, in the order of its own code.

    Raises PrunebenchError, in one line that names the row, for data out of reach, a column that the task's code misses,
    and prompts that cannot be asked.
    """
    config = _config(task)
    prepared = _prepare(task, config, source)
    groups = range(len(prepared.docs)) if limit is None else _groups(prepared.docs, prepared.store)
    chosen = choose(groups, None, limit, seed)
    rows, keys = prepared.docs.select(chosen), [prepared.keys[at] for at in chosen]
    _check_target(task, rows.column_names)
    with names_as_images():
        loaded = _UpstreamTask.made(config, rows, keys[0])
    judged = judges.judge(task) is not None
    samples, parts = [], [_identity(task, config), importlib.metadata.version("lmms-eval").encode()]
    with names_as_images():
        for index, key in enumerate(keys):
            sample, identified = _sample(task, loaded, index, key)
            samples.append(sample)
            parts.append(json.dumps(identified, default=str).encode())
        targets = [next(iter(sample.targets), _ANSWER) for sample in samples]
        rules = rules_of(task, loaded, targets, partial(_tried, task, loaded, keys), judged)
    return LoadedTask(
        name=task.name,
        metric=rules.metric(len(samples)),
        samples=tuple(samples),
        fingerprint=sha256(*parts),
        max_new_tokens=task.generation.get("max_new_tokens", MAX_NEW_TOKENS),
        until=stop_strings(task.generation),
        rules=rules,
        sampling=sampling(task.generation),
        _task=loaded,
        _store=prepared.store,
    )


def _check_target(task: NamedTask, columns: Sequence[str]) -> None:
    """Raise PrunebenchError where lmms-eval would take the misspelt name of a column for the answer to every row."""
    target = task.config.get("doc_to_target")
    plain = type(target) is str and target.isidentifier() and target not in columns
    if plain and not task.shipped and "process_results" not in task.config:
        raise PrunebenchError(
            f"task {task.name}: expected a column or a template as its doc_to_target, found {target!r}, which would be"
            f" the answer to every row; the columns are {', '.join(columns)}"
        )


# ------------------------------------------------------------------------------------------------------- configurations


def _config(task: NamedTask) -> dict[str, Any]:
    """The file as lmms-eval's own loader reads it, functions imported."""
    try:
        config: dict[str, Any] = load_yaml_config(str(task.file), mode="full")
    except ModuleNotFoundError as error:
        raise _missing(task, error) from None
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, ModuleNotFoundError):
            raise _missing(task, cause) from None
        raise PrunebenchError(f"task {task.name}: its code cannot be imported: {_said(cause)}") from None
    return {key: copy.deepcopy(value) for key, value in config.items() if key not in PLACING}


def _missing(task: NamedTask, error: ModuleNotFoundError) -> PrunebenchError:
    return PrunebenchError(
        f"task {task.name}: its code needs the package {error.name}, which is not installed: install it, or choose"
        " another task"
    )


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _identity(task: NamedTask, config: Mapping[str, Any]) -> bytes:
    """The configuration with functions by name; the code of functions that are not lmms-eval's own goes in too."""
    kept = {key: value for key, value in config.items() if key not in _UNIDENTIFIED}
    files = {} if task.shipped else {Path(f.__code__.co_filename) for f in _functions(config)}
    codes = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file())
    return json.dumps([named_config(kept), task.headline, *codes], sort_keys=True, default=str).encode()


def _functions(value: Any) -> Iterator[Any]:
    """The Python functions in a configuration, wherever they stand."""
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _functions(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _functions(one)
    elif hasattr(value, "__code__"):
        yield value


class _UpstreamTask(RowsTask):
    """lmms-eval's task on rows whose images are names."""

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        split = self.config.test_split or self.config.validation_split
        self.dataset = datasets.DatasetDict({split: self._rows})
        seen = self._rows
        if not self.config.process_results_use_image:
            seen = seen.remove_columns(list(image_columns(seen)[0]))
        self.dataset_no_image = datasets.DatasetDict({split: seen})

    @classmethod
    def made(cls, config: Mapping[str, Any], rows: datasets.Dataset, key: str) -> _UpstreamTask:
        """Raises PrunebenchError where the first row lacks what its code reads."""
        kept = {k: v for k, v in config.items() if k not in ("dataset_kwargs", "process_docs")}
        for unused in ("training_split", "fewshot_split", "fewshot_config", "num_fewshot"):
            kept.pop(unused, None)  # no examples are shown
        if kept.get("test_split"):
            kept.pop("validation_split", None)
        try:
            return cls(copy.deepcopy(kept), rows)
        except PrunebenchError:
            raise
        except Exception as error:
            raise _failed(key, "doc_to_text and doc_to_target", error, rows.column_names) from None


# ----------------------------------------------------------------------------------------------------------------- rows


class _Prepared(NamedTuple):
    """Rows as the task's code wants them, and the key of each."""

    docs: datasets.Dataset
    keys: list[str]
    store: EncodedImages


def _prepare(task: NamedTask, config: Mapping[str, Any], source: DataSource) -> _Prepared:
    found = encoded_rows(repository.rows_of(task, source))
    names, listed = image_columns(found)
    store = EncodedImages(task.name, found, names, listed, source.mend)
    docs = named_rows(store, _ROW)
    if (process := config.get("process_docs")) is not None:
        with names_as_images(), _reading(config, source), repository.quiet(), redirect_stdout(io.StringIO()):
            try:
                docs = process(docs)
            except Exception as error:
                raise PrunebenchError(
                    f"task {task.name}: its process_docs failed on the rows of split {task.split}: {_said(error)}"
                    f" (columns: {', '.join(found.column_names)}); the rows are not as it expects"
                ) from None
        if not len(docs):
            raise PrunebenchError(f"task {task.name}: its process_docs left none of {len(found)} rows")
    rows = _source_rows(docs)
    if _ROW in docs.column_names:
        docs = docs.remove_columns([_ROW])
    seen: dict[int, int] = {}
    keys = []
    for row in rows:
        again = seen[row] = seen.get(row, -1) + 1
        keys.append(f"{task.name}/{row:06d}" + (f".{again}" if again else ""))
    return _Prepared(docs, keys, store)


def _source_rows(docs: datasets.Dataset) -> list[int]:
    """The number of each row in the source: by the hidden column, else by the row's images, else by its place."""
    if _ROW in docs.column_names:
        return [int(row) for row in docs[_ROW]]
    named = [next(iter(found), None) for found in _named_images(docs)]
    if all(origin is not None for origin in named):
        return [origin.row for origin in named if origin is not None]
    return list(range(len(docs)))


def _named_images(docs: datasets.Dataset) -> Iterator[Sequence[Origin]]:
    names, _ = image_columns(docs)
    if not names:
        yield from ((),) * len(docs)
        return
    shown = docs.select_columns(list(names))
    with repository.quiet():
        shown = shown if shown._indices is None else shown.flatten_indices()
    for doc in encoded_rows(shown):
        yield origins(doc)


def _groups(docs: datasets.Dataset, store: EncodedImages) -> list[Hashable]:
    """Per row what tells its images from others'; a row without any is alone."""
    known: dict[int, Hashable] = {}
    groups: list[Hashable] = []
    for at, found in enumerate(_named_images(docs)):
        rows = tuple(dict.fromkeys(origin.row for origin in found))
        for row in rows:
            if row not in known:
                known[row] = store.near(row)
        groups.append(tuple(known[row] for row in rows) if rows else at)
    return groups


@contextmanager
def _reading(config: Mapping[str, Any], source: DataSource) -> Iterator[None]:
    """Inside, a task's code that asks `datasets` for another table of a local source gets that folder's."""
    places = [f.__globals__ for f in _functions(config) if f.__globals__.get("load_dataset") is datasets.load_dataset]

    def read(path: str, name: str | None = None, split: str | None = None, **kwargs: Any) -> Any:
        folder = repository.find_repository(path, source)
        if folder is None or split is None:
            return datasets.load_dataset(path, name, split=split, **kwargs)
        return repository.local_rows(folder, name, split, {}, source.mend)

    for place in places:
        place["load_dataset"] = read
    try:
        yield
    finally:
        for place in places:
            place["load_dataset"] = datasets.load_dataset


# -------------------------------------------------------------------------------------------------------------- samples


def _failed(where: str, what: str, error: Exception, columns: Sequence[str]) -> PrunebenchError:
    if isinstance(error, KeyError) and error.args and error.args[0] not in columns:
        return PrunebenchError(
            f"{where} lacks the column {error.args[0]}, which the task's {what} read: found {', '.join(columns)};"
            " use the version of the data set that the task was written for, or mend the task's code"
        )
    return PrunebenchError(
        f"{where}: the task's {what} failed: {_said(error)}; use the version of the data set that the task was"
        " written for, or mend the task's code"
    )


def _call(key: str, what: str, columns: Sequence[str], function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except PrunebenchError:
        raise
    except Exception as error:
        raise _failed(key, what, error, columns) from None


def _sample(task: NamedTask, loaded: _UpstreamTask, index: int, key: str) -> tuple[Sample, list[Any]]:
    """A sample and what identifies it."""
    columns = loaded.features
    doc = _call(key, "images", columns, loaded.eval_docs.__getitem__, index)
    seen = loaded.eval_docs_no_media[index]
    _call(key, "doc_to_text", list(seen), loaded.doc_to_text, seen)
    target = _call(key, "doc_to_target", list(seen), loaded.doc_to_target, seen)
    content, pictures = user_turn(_call(key, "doc_to_messages", columns, loaded.doc_to_messages, doc), key)
    images = tuple(_image(loaded, index, place, picture, key) for place, picture in enumerate(pictures))
    digests = [image.key for image in images]
    targets = tuple(map(str, target)) if isinstance(target, list | tuple) else (str(target),)
    name = next((seen[c] for c in ("question_id", "id", "index") if isinstance(seen.get(c), str | int)), index)
    category = seen.get("category")
    sample = Sample(
        task=task.name,
        key=key,
        index=index,
        question_id=str(name),
        category=category if isinstance(category, str) else "",
        content=content,
        targets=targets,
        images=images,
    )
    plain = {name: value for name, value in seen.items() if not isinstance(value, Image.Image)}
    return sample, [key, content, digests, list(targets), plain]


def _image(loaded: _UpstreamTask, index: int, place: int, picture: Image.Image, key: str) -> SampleImage:
    """An image of a prompt: by its file's hash where the task shows it as it is, else by its pixels."""
    shown = partial(_shown, loaded, index, place, key)
    origin = picture.origin if isinstance(picture, UnreadImage) else None
    if origin is not None:
        return SampleImage(origin.digest[:16], shown, origin.size)
    pixels = picture.convert("RGB")
    size = (pixels.height, pixels.width)
    digest = hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes()).hexdigest()
    return SampleImage(digest[:16], shown, partial(_given, size))


def _given(size: Size) -> Size:
    return size


def _shown(loaded: _UpstreamTask, index: int, place: int, key: str) -> Image.Image:
    """The image in RGB as the task's code shows it."""
    with names_as_images():
        messages = loaded.doc_to_messages(loaded.eval_docs[index])
        picture = user_turn(messages, key)[1][place]
        return picture.convert("RGB").copy() if not isinstance(picture, UnreadImage) else _read(picture)


def _read(picture: UnreadImage) -> Image.Image:
    """A plain image with the pixels."""
    if picture.origin is not None:
        return picture.origin.decode().convert("RGB")
    return Image.Image.convert(picture, "RGB")


def _tried(
    task: NamedTask, loaded: _UpstreamTask, keys: Sequence[str], index: int, answer: str = _ANSWER
) -> dict[str, Any]:
    """What scoring gives for an answer, by default for one of no worth."""
    seen = loaded.eval_docs_no_media[index]
    found = _call(keys[index], "process_results", list(seen), loaded.process_results, seen, [answer])
    if not isinstance(found, Mapping):
        raise PrunebenchError(f"{keys[index]}: expected metrics by name from process_results, found {found!r}")
    return dict(found)
