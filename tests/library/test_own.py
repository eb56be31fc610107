"""Folders of users with packages under our names, and where our files lie."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.core import paths, provenance
from harness.core.errors import PrunebenchError
from harness.models import config
from harness.proof.gate.command import renew
from harness.proof.golden_files import load_index
from harness.runner import sweep
from prunebench import _own

TOP = str(paths.TOP)


def python(folder: Path, *words: str) -> tuple[int, str, str]:
    """Python started in a folder, with our packages behind it on the path as if they were installed."""
    code = f"import sys; sys.path.append({TOP!r}); "
    done = subprocess.run(
        [sys.executable, "-c", code + words[0], *words[1:]], cwd=folder, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").write_text("raise SystemExit('imported')")
    return tmp_path


@pytest.mark.parametrize("name", ["harness", "methods", "tasks"])
@pytest.mark.parametrize("form", ["{}/__init__.py", "{}.py"])
def test_a_package_of_the_users_is_named_with_its_folder(tmp_path: Path, name: str, form: str) -> None:
    file = tmp_path / form.format(name)
    file.parent.mkdir(exist_ok=True)
    file.write_text("raise SystemExit('imported')")
    code, out, err = python(tmp_path, "import prunebench")
    assert (code, out) == (1, "")
    said = err.strip().splitlines()[-1]
    assert said.startswith(f"prunebench._own.ForeignPackageError: {tmp_path} has a package {name!r} of its own")
    assert "python -P -m ..." in said


def test_a_folder_without_init_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    assert python(tmp_path, "import prunebench, tasks; print(tasks.__file__)")[:2] == (0, f"{TOP}/tasks/__init__.py\n")


def test_the_path_is_left_as_it_is(foreign: Path) -> None:
    code = "before = list(sys.path)\ntry:\n import prunebench\nexcept ImportError:\n sys.exit(sys.path != before)"
    assert python(foreign, "pass\n" + code)[0] == 0


@pytest.mark.parametrize(
    "words", [["-m", "prunebench", "methods"], ["-m", "harness.cli", "methods"], ["-Bm", "prunebench"]]
)
def test_a_command_there_exits_with_two_and_one_line(foreign: Path, words: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": TOP}
    done = subprocess.run([sys.executable, *words], cwd=foreign, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"prunebench: {foreign} has a package 'tasks'")
    assert done.stderr.count("\n") == 1


def test_with_a_safe_path_the_command_works_there(foreign: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": TOP}
    words = ["-P", "-m", "prunebench", "cost", "--help"]
    done = subprocess.run([sys.executable, *words], cwd=foreign, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("argv", "asked", "command"),
    [
        (["-m"], ["python", "-m", "prunebench"], True),
        (["-m"], ["python", "-m", "pytest", "prunebench"], False),
        (["/env/bin/prunebench", "eval"], [], True),
        (["/env/lmms_eval/__main__.py", "--model", "prunebench"], [], True),
        (["/env/bin/lmms-eval", "--model=prunebench"], [], True),
        (["/env/bin/lmms-eval", "--model", "llava"], [], False),
        (["/env/ipykernel_launcher.py"], [], False),
        ([""], [], False),
    ],
)
def test_a_command_is_told_from_a_program_that_imports_us(argv: list[str], asked: list[str], command: bool) -> None:
    assert _own._command(argv, asked) == command


# ------------------------------------------------------------------------------------------------------------- places


def test_a_file_of_the_working_directory_goes_before_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = Path("configs/mini.yaml")
    assert paths.resolved(named) == paths.DATA / named
    assert sweep.load(named).models == ("mini",)
    assert paths.resolved(Path("configs/none.yaml")) == Path("configs/none.yaml")
    (tmp_path / "configs").mkdir()
    named.write_text("models: [mini]\nmethods: [random]\nbudgets: [7]\n")
    assert paths.resolved(named) == named
    assert sweep.load(named).budgets == (7,)


def test_where_it_is_installed_a_checkouts_part_is_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "CHECKOUT", None)
    with pytest.raises(PrunebenchError, match="renewing the baseline needs a checkout"):
        renew()
    monkeypatch.setattr("harness.proof.golden_files.CHECKOUT", None)
    with pytest.raises(PrunebenchError, match="those of prunebench are in a checkout of its repository"):
        load_index(Path("tests/goldens"))
    # knobs that `analyze --write-config` derives stay with the user
    monkeypatch.setattr(config, "CHECKOUT", None)
    assert config.calibration_file("visipruner", "owner/m") == tmp_path / "configs" / "visipruner" / "owner--m.yaml"
    (tmp_path / "configs" / "visipruner").mkdir(parents=True)
    config.calibration_file("visipruner", "owner/m").write_text("knobs: {exit_votes: 9}\nderived_by: hand\n")
    assert config.calibrated_knobs("visipruner", "owner/m") == {"exit_votes": 9}
    assert config.calibrated_knobs("visipruner", "mini"), "ours is read where the user has none"


def test_the_commit_is_ours_only_in_our_own_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-c", "user.name=u", "-c", "user.email=u@example.org"]
    subprocess.run([*git, "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], cwd=tmp_path, check=True)
    inside = tmp_path / "env" / "site-packages"
    inside.mkdir(parents=True)
    nothing = {"git": None, "dirty": None}
    for checkout, known in ((tmp_path, False), (inside, True), (None, True)):
        monkeypatch.setattr(provenance, "CHECKOUT", checkout)
        assert (provenance.git_state() == nothing) == known, checkout
