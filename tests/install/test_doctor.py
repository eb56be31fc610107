"""`prunebench doctor`: each kind of problem is found, names its command, and the last line says what mends all."""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import run

from harness.core import tested
from harness.install import doctor
from harness.method import registry
from harness.store.lease import ONE_RUNNER
from tasks.mini import data

Patch = pytest.MonkeyPatch


def lacking_package(patch: Patch, tmp: Path) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "datasets":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    patch.setattr(importlib.metadata, "version", version)


def another_version(patch: Patch, tmp: Path) -> None:
    wanted = {name: str(one.newest) for name, one in tested.tested_ranges().items()} | {"pandas": "1.0"}
    real = importlib.metadata.version
    patch.setattr(importlib.metadata, "version", lambda name: wanted.get(name) or real(name))


def another_python(patch: Patch, tmp: Path) -> None:
    class Info(tuple[int, ...]):
        major, minor = 3, 10

    patch.setattr(sys, "version_info", Info((3, 10, 1)))


def torch_pair(patch: Patch, tmp: Path) -> None:
    patch.setitem(sys.modules, "torchvision", None)


def full_disk(patch: Patch, tmp: Path) -> None:
    real = shutil.disk_usage(tmp)
    patch.setattr(shutil, "disk_usage", lambda _: real._replace(free=10**8))


def closed_results(patch: Patch, tmp: Path) -> None:
    (tmp / "r").write_text("a file where the folder would be")


def read_only_disk(patch: Patch, tmp: Path) -> None:
    _refused(patch, tmp, errno.EROFS)


def disk_without_room(patch: Patch, tmp: Path) -> None:
    _refused(patch, tmp, errno.ENOSPC)


def closed_folder(patch: Patch, tmp: Path) -> None:
    _refused(patch, tmp, errno.EACCES)


def folder_of_another(patch: Patch, tmp: Path) -> None:
    _refused(patch, tmp, errno.EACCES)
    patch.setattr(os, "geteuid", lambda: 12345)


def _refused(patch: Patch, tmp: Path, number: int) -> None:
    real = tempfile.TemporaryFile

    def refuses(dir: Path) -> object:
        if dir == tmp:
            raise OSError(number, os.strerror(number))
        return real(dir=dir)

    patch.setattr(tempfile, "TemporaryFile", refuses)


def package_that_does_not_load(patch: Patch, tmp: Path) -> None:
    patch.setitem(sys.modules, "transformers", None)


def no_locks(patch: Patch, tmp: Path) -> None:
    def none(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    patch.setattr(fcntl, "flock", none)


def closed_hub_cache(patch: Patch, tmp: Path) -> None:
    from huggingface_hub import constants

    (tmp / "cache").write_text("")
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_CACHE", str(tmp / "cache" / "hub"))


def closed_data_cache(patch: Patch, tmp: Path) -> None:
    (tmp / "cache").write_text("")
    patch.setenv("XDG_CACHE_HOME", str(tmp / "cache"))


def broken_plugin(patch: Patch, tmp: Path) -> None:
    info = tmp / "others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[prunebench.methods]\nodd = plugin_odd_of_doctor:X\n")
    (tmp / "plugin_odd_of_doctor.py").write_text("raise RuntimeError('on import')")
    patch.syspath_prepend(str(tmp))
    patch.setattr(registry, "_REGISTRY", dict(registry.registered()))
    patch.setattr(registry, "_PLUGINS_LOADED", False)
    patch.setattr(registry, "BROKEN", {})


def no_data(patch: Patch, tmp: Path) -> None:
    (tmp / "manifest.json").write_text(json.dumps({"files": {"gone.parquet": {"sha256": "0"}}}))
    patch.setattr(data.verify, "__defaults__", (tmp,))


def no_weights(patch: Patch, tmp: Path) -> None:
    from harness.models.config import ModelConfig

    real = ModelConfig.folder.fget  # type: ignore[attr-defined]

    def folder(config: ModelConfig) -> Path:
        there: Path = real(config)
        if config.name == "mini-qwen":
            return there
        if not (tmp / "weights").exists():
            shutil.copytree(there, tmp / "weights", ignore=shutil.ignore_patterns("*.safetensors"))
        return tmp / "weights"

    patch.setattr(ModelConfig, "folder", property(folder))


#: what breaks, what is said of it, and the command that mends it
KINDS: dict[str, tuple[Callable[[Patch, Path], None], str, str]] = {
    "lacking package": (lacking_package, "datasets is not installed", doctor.REINSTALL),
    "another version": (another_version, "pandas 1.0 is outside the tested range", doctor.REINSTALL),
    "another Python": (another_python, "expected Python 3.11 to 3.13", f"{doctor.REINSTALL} PYTHON=python3.12"),
    "torch pair": (torch_pair, "do not fit together", doctor.REINSTALL),
    "full disk": (full_disk, "expected 1 GB of free disk for results, found 0.10 GB", "results gc --yes --results"),
    "closed results": (closed_results, "expected a results folder that takes files", "mv "),
    "closed folder": (closed_folder, "Permission denied", "chmod u+rwx"),
    "folder of another": (folder_of_another, "name another folder as RESULTS=", "mkdir -p"),
    "read-only disk": (read_only_disk, "name another folder as RESULTS=", "mkdir -p"),
    "disk without room": (disk_without_room, "No space left on device", "results gc --yes --results"),
    "unloaded package": (
        package_that_does_not_load,
        "a package does not load: import of transformers",
        doctor.REINSTALL,
    ),
    "no locks": (no_locks, "expected a file system with flock, found one without", f"export {ONE_RUNNER}=1"),
    "closed cache of the hub": (closed_hub_cache, "expected a cache for files of the hub", "export HF_HOME="),
    "closed cache of data": (closed_data_cache, "expected a cache for the data of mini-qwen", "export XDG_CACHE_HOME="),
    "broken plug-in": (broken_plugin, "plug-in 'odd' of the package others", "-m pip uninstall -y others"),
    "no data": (no_data, "gone.parquet is listed in the manifest but missing", doctor.RESTORE),
    "no weights": (no_weights, "weights", doctor.RESTORE),
}


def said(tmp: Path) -> tuple[bool, list[str]]:
    lines: list[str] = []
    fine = doctor.report(lambda text: lines.extend(text.splitlines()), tmp / "r")
    return fine, lines


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_found_and_the_last_line_mends_it(kind: str, tmp_path: Path, monkeypatch: Patch) -> None:
    breaks, text, mend = KINDS[kind]
    breaks(monkeypatch, tmp_path)
    fine, lines = said(tmp_path)
    (problem,) = [line for line in lines if line.startswith("PROBLEM")]
    assert not fine
    assert text in problem
    assert mend in problem.partition("; mend it with: ")[2]
    assert lines[-1].startswith("1 problem, mended by: ")
    assert mend in lines[-1]
    assert sum("mended by" in line for line in lines) == 1


def test_what_is_well_ends_so_and_leaves_nothing_behind(tmp_path: Path) -> None:
    fine, lines = said(tmp_path)
    assert (fine, lines[-1]) == (True, "all well")
    assert list(tmp_path.iterdir()) == []


def test_the_exit_code_and_the_last_line_of_the_command(
    tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(capsys, monkeypatch, "doctor")[0] == 0
    full_disk(monkeypatch, tmp_path)
    no_locks(monkeypatch, tmp_path)
    code, out, _ = run(capsys, monkeypatch, "doctor")
    assert code == 1
    both = f"{doctor.PROGRAM} results gc --yes --results results/local && export {ONE_RUNNER}=1"
    assert out.splitlines()[-1] == f"2 problems, mended by: {both}"


def test_a_command_is_named_once_and_a_new_environment_needs_one() -> None:
    one, other = doctor.Problem("a", doctor.REINSTALL), doctor.Problem("b", doctor.REINSTALL)
    assert doctor.verdict([one, other]) == f"2 problems, mended by: {doctor.REINSTALL}"
    python = doctor.Problem("c", f"{doctor.REINSTALL} PYTHON=python3.12")
    assert doctor.verdict([one, python]) == f"2 problems, mended by: {python.mend}"


@pytest.mark.parametrize("name", doctor.OFFLINE)
def test_a_variable_that_closes_the_hub_is_a_note_with_its_command(
    name: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    for other in doctor.OFFLINE:
        monkeypatch.delenv(other, raising=False)
    assert not any("unset" in line for line in said(tmp_path)[1])
    monkeypatch.setenv(name, "1")
    fine, lines = said(tmp_path)
    assert fine
    assert [line for line in lines if line.startswith("note ") and f"`unset {name}`" in line]


def test_lacking_programs_of_the_pages_are_notes(tmp_path: Path, monkeypatch: Patch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "mkdocs" else real(name, *a))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    fine, lines = said(tmp_path)
    assert fine
    notes = " ".join(line for line in lines if line.startswith("note "))
    assert "no mkdocs: `make docs` adds it" in notes
    assert "no chromium and no chromedriver" in notes


def test_the_restoring_command_is_one_that_git_takes() -> None:
    """In a checkout, RESTORE names a path that is tracked."""
    path = doctor.RESTORE.split()[-1]
    if shutil.which("git") is None or not (Path(str(tested.CHECKOUT)) / ".git").exists():
        pytest.skip("no git, or no checkout of git")
    done = subprocess.run(["git", "ls-files", path], cwd=tested.CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.strip()
