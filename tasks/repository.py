"""Rows of a data set by the name that a task of lmms-eval gives: from the hub, or from a folder laid out as the hub's
repository.

In a folder, files are those of the `configs:` block of its README.md where there is one, else
`<configuration or data>/<split>-*.parquet`. They are read by name: `datasets` would keep a folder's rows under its name
and its README, and return them again after the files have changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from harness.core.errors import PrunebenchError, naming
from harness.core.spelling import given
from tasks import columns
from tasks.named import NamedTask
from tasks.sources import DataSource

if TYPE_CHECKING:
    from datasets import Dataset

#: `dataset_path` of a task whose files stand beside its YAML, by lmms-eval's rule
FILE_KINDS = ("parquet", "json", "csv")
_SUFFIXES = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
#: what `load_dataset` takes; everything else in `dataset_kwargs` is lmms-eval's own, for logins, caches and videos
_TAKEN = ("data_dir", "data_files", "features", "revision", "verification_mode", "skipinitialspace")
_TRUNCATED = 200


def stands_alone(task: NamedTask) -> bool:
    """Whether a task names its own files, so that no data source is asked."""
    return str(task.config.get("dataset_path")) in FILE_KINDS or _own_folder(task) is not None


def rows_of(task: NamedTask, source: DataSource) -> Dataset:
    """The rows of the split that a task is evaluated on, with its images not yet decoded by anyone.

    Raises PrunebenchError in one line where they are out of reach, missing, gated or unknown.
    """
    path, split = str(task.config.get("dataset_path")), str(task.split)
    name = task.config.get("dataset_name")
    kwargs = _kwargs(task.config)
    with naming(f"task {task.name}"):
        if path in FILE_KINDS:
            rows = _own_files(task, path, split, kwargs)
        elif (folder := _own_folder(task)) is not None:
            rows = local_rows(folder, name, split, kwargs, "correct the files or `dataset_path`")
        elif source.root is not None:
            rows = local_rows(_repository(path, source), name, split, kwargs, source.mend)
        else:
            rows = hub_rows(path, name, split, kwargs)
        if not len(rows):
            raise PrunebenchError(f"expected rows in split {split} of {path}, found none; choose another split or data")
    return rows


def _kwargs(config: Mapping[str, Any]) -> dict[str, Any]:
    found = config.get("dataset_kwargs") or {}
    return {key: found[key] for key in _TAKEN if found.get(key) is not None}


# -------------------------------------------------------------------------------------------------------------- the hub


def hub_rows(path: str, name: str | None, split: str, kwargs: Mapping[str, Any]) -> Dataset:
    """A split of a repository on the hub, with the token of whoever is logged in, and without one else."""
    import datasets

    try:
        return datasets.load_dataset(path, name, split=split, **kwargs)
    except Exception as error:
        raise _unreached(path, name, split, error) from None


def _unreached(path: str, name: str | None, split: str, error: Exception) -> PrunebenchError:
    text = " ".join(str(error).split())
    kinds = {kind.__name__ for kind in type(error).__mro__}
    what = f"{path} ({', '.join([*([str(name)] if name else []), f'split {split}'])})"
    if "gated" in text.lower() or "GatedRepoError" in kinds:
        return PrunebenchError(
            f"needs an account: {path} is gated: accept its terms on its page, log in with `hf auth login`, or give"
            f" {given('data', 'FOLDER')} with a copy"
        )
    if "LocalTokenNotFoundError" in kinds or "401" in text:
        return PrunebenchError(
            f"needs an account: {path} is not open to everybody: log in with `hf auth login`, or give"
            f" {given('data', 'FOLDER')} with a copy"
        )
    if "DatasetNotFoundError" in kinds or "RepositoryNotFoundError" in kinds:
        return PrunebenchError(
            f"expected the data set {path} on the hub, found none by that name, or none that is open: give"
            f" {given('data', 'FOLDER')} with a copy"
        )
    if "Dataset scripts are no longer supported" in text:
        return PrunebenchError(
            f"{path} is a script, which `datasets` runs no more: give {given('data', 'FOLDER')} with parquet files"
        )
    short = text if len(text) <= _TRUNCATED else f"{text[:_TRUNCATED]}..."
    return PrunebenchError(
        f"cannot load {what} from the hub: {type(error).__name__}: {short}; check the network and HF_HUB_OFFLINE, or"
        f" give {given('data', 'FOLDER')} with a copy"
    )


# ------------------------------------------------------------------------------------------------------------- a folder


def _repository(path: str, source: DataSource) -> Path:
    """The folder of a repository in a local source: `owner/name`, else `name`."""
    assert source.root is not None
    places = [source.root / path, source.root / path.rpartition("/")[2]]
    for place in places:
        if place.is_dir():
            return place
    raise PrunebenchError(
        f"expected its data set {path} at {places[0]} or {places[1]}, found no such folder; copy it there, laid out as"
        " the hub's repository"
    )


def find_repository(path: str, source: DataSource) -> Path | None:
    """As above; None where the source has it not."""
    if source.root is None:
        return None
    return next((p for p in (source.root / path, source.root / path.rpartition("/")[2]) if p.is_dir()), None)


def _own_folder(task: NamedTask) -> Path | None:
    """The folder that `dataset_path` names, from where the command runs or from beside the YAML; None for a name on the
    hub."""
    path = task.config.get("dataset_path")
    if task.shipped or not isinstance(path, str) or not path:
        return None
    return next((p for p in (Path(path).expanduser(), task.file.parent / path) if p.is_dir()), None)


def _own_files(task: NamedTask, kind: str, split: str, kwargs: Mapping[str, Any]) -> Dataset:
    named = kwargs.get("data_files")
    found = named.get(split) if isinstance(named, Mapping) else named
    if not found:
        raise PrunebenchError(
            f"{task.file}: expected `dataset_kwargs: {{data_files: {{{split}: FILE}}}}` beside `dataset_path: {kind}`,"
            f" found {named!r}"
        )
    listed = [found] if isinstance(found, str) else list(found)
    files = [file for text in listed for file in _globbed(task.file.parent, str(text))]
    if not files:
        raise PrunebenchError(f"{task.file}: expected its files {', '.join(map(str, listed))} beside it, found none")
    return _read(files, kind)


def _globbed(folder: Path, pattern: str) -> list[Path]:
    """Files of a pattern below a folder, in order; an absolute one from the root."""
    if Path(pattern).is_absolute():
        return sorted(Path("/").glob(pattern.lstrip("/")))
    return sorted(folder.glob(pattern))


def local_rows(folder: Path, name: str | None, split: str, kwargs: Mapping[str, Any], mend: str) -> Dataset:
    """A split of a repository's copy. Raises PrunebenchError with what is expected and what is there."""
    patterns = _patterns(folder, name, split, kwargs)
    files = [file for pattern in patterns for file in _globbed(folder, pattern) if file.suffix in _SUFFIXES]
    if not files:
        there = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix in _SUFFIXES)
        found = ", ".join(there[:6]) + (f" and {len(there) - 6} more" if len(there) > 6 else "")
        raise PrunebenchError(
            f"expected files at {folder / patterns[0]}, found {found or 'no parquet, JSON or CSV file'}; {mend}"
        )
    columns.check_whole(folder.name, files, mend)
    kinds = {_SUFFIXES[file.suffix] for file in files}
    if len(kinds) > 1:
        raise PrunebenchError(f"expected files of one kind at {folder / patterns[0]}, found {', '.join(sorted(kinds))}")
    return _read(files, kinds.pop())


def _patterns(folder: Path, name: str | None, split: str, kwargs: Mapping[str, Any]) -> Sequence[str]:
    named = kwargs.get("data_files")
    found = named.get(split) if isinstance(named, Mapping) else named
    if found:
        return [str(one) for one in ([found] if isinstance(found, str) else found)]
    return _of_readme(folder, name, split) or [f"{name or 'data'}/{split}-*.parquet"]


def _of_readme(folder: Path, name: str | None, split: str) -> list[str]:
    """Patterns of the `configs:` block of README.md; none where it has no such block."""
    readme = folder / "README.md"
    if not readme.is_file():
        return []
    lines = readme.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return []
    end = next((n for n, line in enumerate(lines[1:], 1) if line.strip() == "---"), 0)
    try:
        head = yaml.safe_load("\n".join(lines[1:end])) or {}
    except yaml.YAMLError:
        raise PrunebenchError(f"{readme}: expected its head, between two lines ---, as YAML; correct it") from None
    configs = head.get("configs") if isinstance(head, Mapping) else None
    if not configs:
        return []
    by_name = {str(c.get("config_name", "default")): c for c in configs}
    wanted = name or next((n for n, c in by_name.items() if c.get("default")), "default")
    if name is None and wanted not in by_name and len(by_name) == 1:
        wanted = next(iter(by_name))
    if wanted not in by_name:
        raise PrunebenchError(f"{readme}: expected the configuration {wanted}, found {', '.join(by_name)}")
    files = by_name[wanted].get("data_files")
    if files is None:
        return [f"{by_name[wanted].get('data_dir') or wanted}/{split}-*"]
    if isinstance(files, Mapping):
        files = [{"split": key, "path": value} for key, value in files.items()]
    if isinstance(files, str) or all(isinstance(entry, str) for entry in files):
        files = [{"split": "train", "path": files}]  # as `datasets` calls files that no split is named for
    splits = {str(entry["split"]): entry["path"] for entry in files}
    if split not in splits:
        raise PrunebenchError(f"{readme}: expected the split {split} in {wanted}, found {', '.join(splits)}")
    return _texts(splits[split])


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(one) for one in value]


def _read(files: Iterable[Path], kind: str) -> Dataset:
    """Files by `datasets`' reader, known by their names and times of change."""
    import datasets

    listed = [str(file) for file in files]
    try:
        with quiet():
            return datasets.load_dataset(kind, data_files={"rows": listed}, split="rows")
    except Exception as error:
        cause = error.__cause__ or error
        text = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise PrunebenchError(f"{listed[0]} cannot be read as {kind}: {text}; copy the file again") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without `datasets`' progress bars."""
    import datasets

    shown = datasets.utils.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
