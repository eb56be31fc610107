"""A run of lmms-eval's own command line as it lies on disk: results file and per-sample logs, read and checked.

lmms-eval writes `<time>_results.json` and, with `--log_samples`, one `<time>_samples_<task>.jsonl` for each task. Times
have seconds, so that two runs may write into one log. Everything that is not one whole run of our model class is
refused here, before data are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from harness.core.cell import KEY_VERSION, NUMERICS_VERSION
from harness.core.errors import PrunebenchError, naming
from harness.core.provenance import versions_now
from harness.plugin import MODEL_ID, log

RESULTS = "_results.json"
AGAIN = "run it again with --log_samples and a fresh --output_path"


class Logged(NamedTuple):
    """One answered question: the answer as the model gave it, and our entry beside it."""

    answer: str
    entry: Mapping[str, Any]


@dataclass(frozen=True)
class LoggedTask:
    """One task of a run. `name`: lmms-eval's. `lines` by the number of the document. `run`: what was measured with, as
    harness/plugin/opened.py describes it. `metrics`: lmms-eval's own, by name; empty for a run that was not scored."""

    name: str
    file: Path
    lines: Mapping[int, Logged]
    run: Mapping[str, Any]
    metrics: Mapping[str, float]
    date: str
    limited: str
    """How the run was cut, as it was typed; "" for every question."""


def results_file(path: Path) -> Path:
    """The results file of the one run that `path`, a file or a folder, holds. Raises PrunebenchError for none and for
    several."""
    if path.is_dir():
        found = sorted(p for p in path.rglob(f"*{RESULTS}") if p.is_file())
        if len(found) != 1:
            said = "none" if not found else f"{len(found)}: {', '.join(str(p.relative_to(path)) for p in found[:4])}"
            mend = "name the folder of --output_path" if not found else "name one of these files"
            raise PrunebenchError(f"{path}: expected one *{RESULTS} of lmms-eval, found {said}; {mend}")
        return found[0]
    if not path.is_file() or not path.name.endswith(RESULTS):
        found_it = "a file of another name" if path.is_file() else "nothing there"
        raise PrunebenchError(
            f"{path}: expected the folder of --output_path or a *{RESULTS} in it, found {found_it}; check the path"
        )
    return path


def read_run(path: Path) -> list[LoggedTask]:
    """Every task of the run at `path`, in the order of their names. Raises PrunebenchError for anything that is not one
    whole run of our model class, written by this version of lmms-eval and of the log."""
    file = results_file(path)
    with naming(str(file)):
        whole = _json(_read(file))
        config, configs = _mapping(whole, "config"), _mapping(whole, "configs")
        model = config.get("model")
        if model != MODEL_ID:
            raise PrunebenchError(f"expected a run of --model {MODEL_ID}, found --model {model}")
        if not configs:
            raise PrunebenchError("expected at least one task, found none")
        options = config.get("resolved_cli_args")
        options = options if isinstance(options, Mapping) else {}
        repeats = options.get("repeats", 1)
        if repeats not in (1, None):
            raise PrunebenchError(f"expected one answer a question, found --repeats {repeats}: run it without")
    return [_task(file, whole, name, options) for name in sorted(configs)]


def _task(file: Path, results: Mapping[str, Any], name: str, options: Mapping[str, Any]) -> LoggedTask:
    path = file.with_name(f"{file.name.removesuffix(RESULTS)}_samples_{name}.jsonl")
    if not path.is_file():
        raise PrunebenchError(f"{file}: expected the log of {name} beside it, {path.name}, found none: {AGAIN}")
    with naming(str(path)):
        config = _mapping(_mapping(results, "configs"), name)
        lines, run = _lines(path, name, n_filters=max(1, len(config.get("filter_list") or ())))
        _check_versions(run)
        counted = results.get("n-samples", {}).get(name, {}).get("effective")
        if isinstance(counted, int | float) and len(lines) < counted:
            raise PrunebenchError(
                f"expected {counted:g} questions, as {file.name} says, found {len(lines)}: the log was cut; {AGAIN}"
            )
    given = {key: options.get(key) for key in ("limit", "offset")}
    limited = " ".join(f"--{key} {value:g}" for key, value in given.items() if value and value != -1)
    scored = not options.get("predict_only")
    metrics = _metrics(results, name) if scored else {}
    if scored and not metrics:
        raise PrunebenchError(f"{file}: expected metrics of {name}, found none: it was edited, or the run failed")
    return LoggedTask(name, path, lines, run, metrics, str(results.get("date", "")), limited)


def _lines(path: Path, task: str, n_filters: int) -> tuple[dict[int, Logged], Mapping[str, Any]]:
    """The answers by document, and the one description of the run. A task with several filters logs each answer once
    for each."""
    found: dict[int, Logged] = {}
    times: dict[int, int] = {}
    runs: list[Mapping[str, Any]] = []
    for number, line in _numbered(path):
        with naming(f"line {number}"):
            doc_id, logged = _line(line, task)
            if found.setdefault(doc_id, logged) != logged:
                raise _twice(doc_id)
            times[doc_id] = times.get(doc_id, 0) + 1
            if log.RUN in logged.entry and times[doc_id] == 1:
                runs.append(logged.entry[log.RUN])
    if not found:
        raise PrunebenchError(f"expected answers, found an empty file: {AGAIN}")
    often = next((doc_id for doc_id, n in times.items() if n != n_filters), None)
    if often is not None:
        raise _twice(often) if times[often] > n_filters else PrunebenchError(f"it was cut at document {often}; {AGAIN}")
    if not runs:
        raise PrunebenchError(f"expected the description of the run with its first answer, found none: {AGAIN}")
    first, settings = runs[0], {str(one.entry["settings"]) for one in found.values()}
    for run in runs:
        for what in ("settings", "environment", "key_version", "numerics_version"):
            if run.get(what) != first.get(what):
                raise PrunebenchError(f"expected answers of one run, found two with other {what}: {AGAIN}")
    if settings != {log.digest(first.get("settings"))}:
        raise PrunebenchError(f"expected answers of one setting, found {len(settings)}: {AGAIN}")
    return found, first


def _twice(doc_id: int) -> PrunebenchError:
    return PrunebenchError(
        f"expected document {doc_id} once, found it again: runs that start in one second write into one log; {AGAIN}"
    )


def _line(line: bytes, task: str) -> tuple[int, Logged]:
    values = _json(line)
    doc_id, counts = values.get("doc_id"), values.get("token_counts")
    if isinstance(doc_id, bool) or not isinstance(doc_id, int):
        raise PrunebenchError(f"expected a doc_id, found {doc_id!r}: it was edited")
    entry = counts[0] if isinstance(counts, list) and counts else None
    if entry is None:
        raise PrunebenchError("expected costs beside the answer, found none: run it again without --use_cache")
    if not isinstance(entry, Mapping) or "prunebench" not in entry:
        raise PrunebenchError(
            f"expected an entry of prunebench in token_counts, found {sorted(entry)[:4]}: it is another model's, or an"
            " earlier prunebench's"
        )
    if entry["prunebench"] != log.VERSION:
        raise PrunebenchError(
            f"expected version {log.VERSION} of the log, found {entry['prunebench']}: import it with the prunebench"
            " that wrote it"
        )
    answer: Any = values.get("resps", values.get("filtered_resps"))
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if not isinstance(answer, str) or (entry.get("task"), entry.get("doc_id")) != (task, doc_id):
        raise PrunebenchError(f"expected one answer to document {doc_id} of {task}: it was edited")
    if not log.whole(entry, answer):
        raise PrunebenchError(
            f"the answer to document {doc_id}, or its costs, are not as they were written: restore the file"
        )
    missing = [name for name in log.FIELDS if name not in entry]
    if missing:
        raise PrunebenchError(f"expected {', '.join(missing)} in the entry, found none")
    return doc_id, Logged(answer, entry)


def _check_versions(run: Mapping[str, Any]) -> None:
    for name, here in (("key_version", KEY_VERSION), ("numerics_version", NUMERICS_VERSION)):
        if run.get(name) != here:
            raise PrunebenchError(
                f"expected {name} {here}, found {run.get(name)}: import it with the prunebench that wrote it"
            )
    there, here_too = _mapping(run, "environment").get("lmms-eval"), versions_now()["lmms-eval"]
    if there != here_too:
        raise PrunebenchError(
            f"expected a run of lmms-eval {here_too}, which scores here, found one of {there}: import it where"
            f" {there} is installed"
        )


def _metrics(results: Mapping[str, Any], name: str) -> dict[str, float]:
    found = _mapping(_mapping(results, "results"), name)
    return {
        key.removesuffix(",none"): float(value)
        for key, value in found.items()
        if "," in key and "_stderr" not in key and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PrunebenchError(f"cannot be read: {error.strerror or error}") from None


def _numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines, from 1; not those of `splitlines`, for answers may hold other ends of lines."""
    data = _read(path)
    if data and not data.endswith(b"\n"):
        raise PrunebenchError(f"its last line has no end: the log was cut; {AGAIN}")
    yield from enumerate(data.split(b"\n")[:-1], start=1)


def _json(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PrunebenchError(f"expected JSON, found damage ({str(error)[:60]}); {AGAIN}") from None
    if not isinstance(found, dict):
        raise PrunebenchError(f"expected a JSON object, found {type(found).__name__}")
    return found


def _mapping(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    if not isinstance(found, Mapping):
        raise PrunebenchError(f"expected {name} as lmms-eval writes it, found {type(found).__name__}")
    return found
