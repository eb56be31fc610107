"""The steps of the template's workflows, run as a runner does: on good pull requests and on hostile ones.

tests/house/test_results_repository.py holds the rules of the workflows' text.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from published import forged, place, published

from harness.core.paths import TOP

TEMPLATE = TOP / "examples" / "results-repository"


class Runner:
    """A runner's folder: `trusted` at the base, `proposed` at the merge of a pull request that `change` made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
        base = root / "proposed"
        shutil.copytree(TEMPLATE, base)
        self.call("init", "-q")
        published(base / "submissions" / "2026-11-01-first", "First")
        self.commit("base")
        shutil.copytree(base, root / "trusted")
        (root / "temp").mkdir()

    def call(self, *words: str) -> None:
        subprocess.run([*self.git, *words], cwd=self.root / "proposed", check=True, capture_output=True)

    def commit(self, name: str) -> None:
        self.call("add", "-A")
        self.call("commit", "-q", "--allow-empty", "-m", name)

    def propose(self) -> None:
        """Commit what was changed on a branch, and merge the branch as a pull request is."""
        self.call("checkout", "-q", "-b", "theirs")
        self.commit("theirs")
        self.call("checkout", "-q", "main")
        self.call("merge", "-q", "--no-ff", "-m", "merge", "theirs")

    def run(self, name: str) -> tuple[str, str]:
        """Run the commands of a workflow's first job but the installation: the name of the step that failed, and all
        output."""
        workflow = yaml.safe_load((TEMPLATE / ".github" / "workflows" / name).read_text())
        job = next(iter(workflow["jobs"].values()))
        folder = Path(sys.executable).parent
        env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "RUNNER_TEMP": str(self.root / "temp")}
        env |= {**workflow["env"], "GITHUB_WORKSPACE": str(self.root)}
        output = ""
        for step in job["steps"]:
            if "run" not in step or step["run"].startswith("pip install"):
                continue
            words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
            done = subprocess.run(words, cwd=self.root, env=env, capture_output=True, text=True, check=False)
            output += done.stdout + done.stderr
            if done.returncode:
                return step["name"], output
        return "", output


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


CHANGES, VERIFY = "Only files below submissions/ are added", "Verify the submissions that it adds"


def test_a_good_pull_request_passes_and_its_rows_are_on_the_site(runner: Runner) -> None:
    published(runner.root / "proposed" / "submissions" / "2026-11-30-second", "Second", "fastv-64-d61145b9df2ab80e")
    runner.propose()
    failed, output = runner.run("verify.yml")
    assert failed == "", output
    assert "measured by Second; 1 of 1 cells hold" in output
    shutil.rmtree(runner.root / "trusted")
    shutil.copytree(runner.root / "proposed", runner.root / "trusted")
    shutil.rmtree(runner.root / "temp")
    (runner.root / "temp").mkdir()
    failed, output = runner.run("pages.yml")
    assert failed == "", output
    site = runner.root / "temp" / "site"
    assert {"index.html", "LEADERBOARD.md", "leaderboard.csv"} <= {path.name for path in site.iterdir()}
    assert "| First |" in (site / "LEADERBOARD.md").read_text()
    assert '"measured":["Second"]' in (site / "index.html").read_text()


@pytest.mark.parametrize(
    "name",
    [
        "requirements.txt",
        ".github/workflows/verify.yml",
        "submissions/x",
        "sitecustomize.py",
        "submissions/-rf/x",
        "submissions/.hidden/x",
        "submissions/a\nb/x",
        "evil\nsubmissions/a/x",
        "evil submissions/a/x",
    ],
)
def test_a_pull_request_that_changes_other_files_fails_first(runner: Runner, name: str) -> None:
    path = runner.root / "proposed" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("prunebench @ evil")
    runner.propose()
    failed, output = runner.run("verify.yml")
    assert failed == CHANGES
    assert "leave them out of the pull request" in output


def test_a_pull_request_that_edits_or_removes_rows_of_others_fails_first(runner: Runner) -> None:
    shutil.rmtree(place(runner.root / "proposed" / "submissions" / "2026-11-01-first"))
    runner.propose()
    failed, output = runner.run("verify.yml")
    assert failed == CHANGES
    assert "maintainers correct and retract rows" in output


def test_a_forged_row_fails_and_code_in_a_pull_request_never_runs(runner: Runner) -> None:
    folder = published(runner.root / "proposed" / "submissions" / "2026-11-30-mallory", "Mallory")
    ran = runner.root / "ran"
    for place_of_code in (folder, runner.root / "proposed" / "submissions" / "2026-11-30-code"):
        place_of_code.mkdir(exist_ok=True)
        for name in ("sitecustomize.py", "pyarrow.py", "conftest.py", "evil.py"):
            (place_of_code / name).write_text(f"open({str(ran)!r}, 'w')\n")

    def change(new: dict[str, Any]) -> None:
        new["cell"]["method"] = new["provenance"]["request"]["method"] = "evil.py:Evil"

    forged(folder, change)
    runner.propose()
    failed, output = runner.run("verify.yml")
    assert failed == VERIFY
    assert "the method 'evil.py:Evil' is none that this prunebench has: nothing was imported" in output
    assert "evil.py: expected submission.json and cells/ alone: remove it" in output
    assert not ran.exists()


def test_a_folder_of_links_fails(runner: Runner) -> None:
    (runner.root / "proposed" / "submissions" / "2026-11-30-link").mkdir()
    (runner.root / "proposed" / "submissions" / "2026-11-30-link" / "cells").symlink_to("/etc")
    runner.propose()
    failed, output = runner.run("verify.yml")
    assert failed == VERIFY
    assert "cells: expected a folder, found a link" in output


def rebased(runner: Runner) -> None:
    """Let the base be what is proposed, as after a merge."""
    for name in ("trusted", "temp"):
        shutil.rmtree(runner.root / name)
    shutil.copytree(runner.root / "proposed", runner.root / "trusted", symlinks=True)
    (runner.root / "temp").mkdir()


def test_a_merged_folder_that_does_not_hold_stops_nobody(runner: Runner) -> None:
    bad = published(runner.root / "proposed" / "submissions" / "2026-11-02-bad", "Bad")
    forged(bad, lambda new: new["metrics"].update(pope_accuracy=1.0))
    runner.commit("an old prunebench took it")
    rebased(runner)
    failed, output = runner.run("pages.yml")
    assert failed == "", output
    assert "2026-11-02-bad/cells/pope/" in output
    assert "::warning::some cells or folders do not hold" in output
    assert '"measured":["First"]' in (runner.root / "temp" / "site" / "index.html").read_text()
    rebased(runner)
    published(runner.root / "proposed" / "submissions" / "2026-11-30-third", "Third", "fastv-64-d61145b9df2ab80e")
    runner.propose()
    failed, output = runner.run("verify.yml")
    assert failed == "", output
    assert "measured by Third; 1 of 1 cells hold" in output
    assert "measured by First" not in output, "only what the pull request adds is verified"


def test_a_repository_without_submissions_has_a_page_and_takes_the_first_one(runner: Runner) -> None:
    shutil.rmtree(runner.root / "proposed" / "submissions" / "2026-11-01-first")
    (runner.root / "proposed" / "submissions" / "README").write_text("a file of a maintainer")
    runner.commit("empty")
    rebased(runner)
    failed, output = runner.run("pages.yml")
    assert failed == "", output
    assert "No submission holds yet" in (runner.root / "temp" / "site" / "index.html").read_text()
    published(runner.root / "proposed" / "submissions" / "2026-11-30-first", "First", "fastv-64-d61145b9df2ab80e")
    runner.propose()
    failed, output = runner.run("verify.yml")
    assert failed == "", output


@pytest.mark.parametrize("name", ["verify.yml", "pages.yml"])
def test_no_step_that_prints_words_of_others_obeys_them(name: str) -> None:
    for job in yaml.safe_load((TEMPLATE / ".github" / "workflows" / name).read_text())["jobs"].values():
        for step in job["steps"]:
            run = step.get("run", "")
            if "prunebench re" in run:
                assert run.index("::stop-commands::") < run.index("prunebench re")
