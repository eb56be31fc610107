"""`prunebench lmms-eval`: lmms-eval's command line, refused in one line where it cannot do what was asked."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.core.errors import PrunebenchError
from harness.core.shown import one_line
from harness.plugin import manifests
from harness.plugin.model import Abort
from harness.plugin.names import ENDINGS, SHIPPED, own
from tasks import sources as src
from tasks.lmms import UPSTREAM

# isort: split
# behind tasks.lmms, which looks whether lmms-eval was imported before it
from lmms_eval.utils import load_yaml_config, simple_parse_args_string

# ---------------------------------------------------------------------------------------------------------- its own CLI


def mini_task_files(folder: Path, ending: str = "_mini") -> list[str]:
    """Write `<task>_mini.yaml` for the mini data into a folder for `--include_path`; returns the tasks' names.

    `ending`: `_mini_qwen` for the data of the mini Qwen, which are drawn where they are not there.

    They include upstream's YAML by its absolute path, which is known only at run time. Under other names, because a
    built-in task silently wins against an included one of the same name.
    """
    source = src.DataSource.parse(ENDINGS[ending])
    source.ready()
    names = []
    for spec in map(src.task_spec, SHIPPED):
        name = spec.name + ending
        paths = [str(p) for p in src.files(spec, spec.table, source)]
        lines = [
            f"include: {json.dumps(str(UPSTREAM / spec.yaml))}",
            f"task: {name}",
            "dataset_path: parquet",
            "dataset_name: null",
            f"dataset_kwargs: {json.dumps({'data_files': {spec.table.split: paths}})}",
        ]
        if spec.images is not None:
            lines.append(f"process_docs: !function tasks.sources.join_gqa{ending}")
        if spec.max_new_tokens is not None:
            generation = {**load_yaml_config(str(UPSTREAM / spec.yaml), mode="simple")["generation_kwargs"]}
            lines.append(f"generation_kwargs: {json.dumps({**generation, 'max_new_tokens': spec.max_new_tokens})}")
        (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
        names.append(name)
    return names


def _check_limit(options: argparse.Namespace) -> None:
    """MME is scored in pairs: a limit that cuts one fails in upstream's aggregation, after all inference."""
    mme = [t for t in (options.tasks or "").split(",") if own(t) == "mme"]
    if mme and options.limit is not None and options.limit > 0 and options.limit % 2 != 0:
        raise Abort(
            f"prunebench: --limit {options.limit:g} would cut a pair of {mme[0]}: expected an even whole number"
        )


def _check_output(options: argparse.Namespace) -> None:
    """lmms-eval reads the folder out of a list with commas, and numbers as numbers: it would fail, or only warn after
    all inference."""
    path = options.output_path
    if not path:
        return
    try:
        found = simple_parse_args_string(f"output_path={path}").get("output_path")
    except ValueError:
        found = None
    if found != path:
        raise Abort(
            f"prunebench: --output_path {path}: expected a folder without a comma in its name, and not a number alone:"
            " lmms-eval cannot read it; try ./ in front of a number"
        )


def _saved(output: str | None, since: float) -> bool:
    """Whether a results file was written; lmms-eval only warns when saving fails."""
    if not output:
        return True
    path = Path(output)
    folder = path.parent if path.suffix in (".json", ".jsonl") else path
    return any(p.stat().st_mtime >= since - 2 for p in folder.rglob("*_results.json"))


def _names(args: Sequence[str], ending: str) -> bool:
    """Whether a word of a command line, or the file of a `--config`, holds a task of this ending."""
    if any(ending in word for word in args):
        return True
    for word, behind in zip(args, [*args[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        with suppress(OSError, UnicodeDecodeError):  # lmms-eval itself says what is wrong with the file
            if name == "--config" and ending in Path(value if equals else behind).read_text(encoding="utf-8"):
                return True
    return False


def lmms_cli(args: Sequence[str]) -> int:
    """lmms-eval's command line with our model class and mini tasks; 0 only if every evaluation asked for has results.

    Upstream exits with 0 after a failure, so each of its evaluations is watched: `cli_evaluate_single` is wrapped for
    the time of the call, which also covers the several runs of one `--config` file.
    """
    from lmms_eval import __main__ as upstream
    from lmms_eval.cli import dispatch
    from lmms_eval.models import MODEL_REGISTRY_V2

    for entry in manifests():
        MODEL_REGISTRY_V2.register_manifest(entry, overwrite=True)  # also where the package is not installed
    original, argv = upstream.cli_evaluate_single, sys.argv
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:

        def watched(options: argparse.Namespace) -> Any:
            began = time.time()
            failures.append(f"no results for {options.tasks}")  # taken back below
            theirs = (
                [options.include_path] if isinstance(options.include_path, str) else list(options.include_path or [])
            )
            options.include_path = [folder, *theirs]
            _check_limit(options)
            _check_output(options)
            try:
                results, samples = original(options)
            except SystemExit as stop:
                if options.tasks in ("list", "list_groups", "list_tags", "list_subtasks") and not stop.code:
                    failures.pop()
                raise
            if os.environ.get("RANK", "0").strip() not in ("", "0"):
                failures.pop()  # the results of a group of ranks are the first rank's
            elif not _saved(options.output_path, began):
                failures[-1] = f"no results file was written under {options.output_path}"
            elif results and results.get("results"):
                failures.pop()
            return results, samples

        upstream.cli_evaluate_single = watched
        sys.argv = ["lmms-eval", *args]
        code: int | str | None = 0
        try:
            mini_task_files(Path(folder))
            if _names(args, "_mini_qwen"):
                mini_task_files(Path(folder), "_mini_qwen")
            dispatch.main()
        except SystemExit as stop:
            code = stop.code
        except Exception as error:
            if not isinstance(error, PrunebenchError):
                traceback.print_exc()
            code = f"prunebench: {error}"
        finally:
            upstream.cli_evaluate_single, sys.argv = original, argv
    if isinstance(code, str):
        print(one_line(code), file=sys.stderr)
        code = 1
    for failure in failures:
        print(one_line(f"prunebench: {failure} (see above)"), file=sys.stderr)
    return code or (1 if failures else 0)
